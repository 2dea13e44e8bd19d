/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Guest memory slots and their dirty logs. api.rst 4.35 (SET_USER_MEMORY_REGION), 4.8
 * (GET_DIRTY_LOG). */
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/error.h"
#include "vcpu/kvm/kvm-private.h"

#define PAGE_SIZE_4K 4096u

static bool region_set(KvmVm *kvm, unsigned slot, const VcpuRamSlot *ram, bool log, GError **err)
{
    struct kvm_userspace_memory_region region = {
        .slot = slot,
        .flags = (ram->readonly ? KVM_MEM_READONLY : 0) | (log ? KVM_MEM_LOG_DIRTY_PAGES : 0),
        .guest_phys_addr = ram->gpa,
        .memory_size = ram->size,
        .userspace_addr = (uintptr_t)ram->hva,
    };
    if (ioctl(kvm->fd, KVM_SET_USER_MEMORY_REGION, &region) < 0)
        return lodge_fail_errno(err, errno, "KVM memory slot %u at 0x%" G_GINT64_MODIFIER "x", slot,
                                ram->gpa);
    return true;
}

static bool slot_check(const KvmVm *kvm, unsigned slot, GError **err)
{
    if (slot >= VCPU_RAM_SLOTS_MAX || kvm->vm.ram[slot].size == 0)
        return lodge_fail(err, LODGE_ERROR_INVALID, "KVM memory slot %u is not in use", slot);
    return true;
}

bool kvm_set_ram(VcpuVm *vm, unsigned slot, const VcpuRamSlot *ram, GError **err)
{
    KvmVm *kvm = (KvmVm *)vm;
    if (slot >= VCPU_RAM_SLOTS_MAX)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "memory slot %u: at most %d slots", slot,
                          VCPU_RAM_SLOTS_MAX);
    if (!region_set(kvm, slot, ram, false, err))
        return false;
    vm->ram[slot] = *ram;
    kvm->logging[slot] = false;
    return true;
}

static bool logging_set(VcpuVm *vm, unsigned slot, bool log, GError **err)
{
    KvmVm *kvm = (KvmVm *)vm;
    if (!slot_check(kvm, slot, err) || !region_set(kvm, slot, &vm->ram[slot], log, err))
        return false;
    kvm->logging[slot] = log;
    return true;
}

bool kvm_dirty_log_start(VcpuVm *vm, unsigned slot, GError **err)
{
    return logging_set(vm, slot, true, err);
}

bool kvm_dirty_log_stop(VcpuVm *vm, unsigned slot, GError **err)
{
    return logging_set(vm, slot, false, err);
}

bool kvm_dirty_log_read(VcpuVm *vm, unsigned slot, uint8_t *bitmap, size_t size, GError **err)
{
    KvmVm *kvm = (KvmVm *)vm;
    if (!slot_check(kvm, slot, err))
        return false;
    if (!kvm->logging[slot])
        return lodge_fail(err, LODGE_ERROR_STATE, "memory slot %u is not being logged", slot);
    /* The kernel writes whole 64-bit words. */
    size_t words = (vm->ram[slot].size / PAGE_SIZE_4K + 63) / 64;
    size_t wanted = (vm->ram[slot].size / PAGE_SIZE_4K + 7) / 8;
    if (size < wanted)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "a dirty bitmap of %zu bytes; slot %u needs %zu", size, slot, wanted);
    g_autofree uint64_t *buffer = g_try_new0(uint64_t, words);
    if (!buffer)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "no memory for a dirty bitmap of %zu bytes",
                          words * 8);
    struct kvm_dirty_log log = {.slot = slot, .dirty_bitmap = buffer};
    if (ioctl(kvm->fd, KVM_GET_DIRTY_LOG, &log) < 0)
        return lodge_fail_errno(err, errno, "KVM dirty log of slot %u", slot);
    memcpy(bitmap, buffer, wanted);
    return true;
}
