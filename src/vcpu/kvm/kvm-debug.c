/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A debugger's stops by KVM_SET_GUEST_DEBUG (api.rst 4.87): steps, INT3s that it wrote into memory,
 * and the four debug registers. While it uses one of these, the kernel keeps the guest's own DR0-DR7
 * from taking effect; without hardware breakpoints they do.
 */
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/error.h"
#include "vcpu/kvm/kvm-private.h"

#define DR6_BS    0x4000u
#define DR7_FIXED 0x700u /* bit 10, and exact matching (LE, GE) */
#define VECTOR_DB 1u
#define VECTOR_BP 3u

/* SDM vol. 3 17.2.4: R/W and LEN fields of DR7. */
static unsigned dr7_kind(const VcpuBreakpoint *b)
{
    return b->kind == VCPU_BREAK_HARDWARE ? 0 : b->kind == VCPU_BREAK_WRITE ? 1 : 3;
}

static bool dr7_length(const VcpuBreakpoint *b, unsigned *field)
{
    static const uint8_t fields[9] = {[1] = 0, [2] = 1, [4] = 3, [8] = 2};
    if (b->length < 1 || b->length > 8 || (b->length & (b->length - 1)) ||
        (b->address & (b->length - 1)))
        return false;
    *field = b->kind == VCPU_BREAK_HARDWARE ? 0 : fields[b->length];
    return true;
}

static bool use_registers(KvmVcpu *kv, struct kvm_guest_debug *d, GError **err)
{
    d->arch.debugreg[7] = DR7_FIXED;
    for (unsigned i = 0; i < kv->n_breakpoints; i++) {
        const VcpuBreakpoint *b = &kv->breakpoints[i];
        unsigned n = kv->n_debug_slots, length;
        if (b->kind == VCPU_BREAK_SOFTWARE) {
            d->control |= KVM_GUESTDBG_USE_SW_BP;
            continue;
        }
        if (n == G_N_ELEMENTS(kv->debug_slot))
            return lodge_fail(err, LODGE_ERROR_LIMIT,
                              "the CPU has %u debug registers, all of them in use", n);
        if (b->kind == VCPU_BREAK_READ || !dr7_length(b, &length))
            return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                              "no debug register watches reads alone, or anything but 1, 2, 4 or 8 "
                              "aligned bytes");
        kv->debug_slot[kv->n_debug_slots++] = i;
        d->control |= KVM_GUESTDBG_USE_HW_BP;
        d->arch.debugreg[n] = b->address;
        d->arch.debugreg[7] |= 2ull << (2 * n) | (uint64_t)dr7_kind(b) << (16 + 4 * n) |
                               (uint64_t)length << (18 + 4 * n);
    }
    return true;
}

bool kvm_debug(Vcpu *vcpu, const VcpuDebug *debug, GError **err)
{
    KvmVcpu *kv = (KvmVcpu *)vcpu;
    struct kvm_guest_debug d = {0};
    unsigned n = debug->active ? debug->n : 0;
    if (n > VCPU_BREAKPOINTS_MAX)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "more than %d breakpoints", VCPU_BREAKPOINTS_MAX);
    g_free(kv->breakpoints);
    kv->breakpoints = g_memdup2(debug->breakpoints, n * sizeof(*kv->breakpoints));
    kv->n_breakpoints = n;
    kv->n_debug_slots = 0;
    if (debug->active)
        d.control = KVM_GUESTDBG_ENABLE;
    if (debug->active && debug->step) {
        d.control |= KVM_GUESTDBG_SINGLESTEP;
        if (ioctl(kvm_vm_of(vcpu)->fd, KVM_CHECK_EXTENSION, KVM_CAP_SET_GUEST_DEBUG2) &
            KVM_GUESTDBG_BLOCKIRQ)
            d.control |= KVM_GUESTDBG_BLOCKIRQ;
    }
    if (!use_registers(kv, &d, err))
        return false;
    kv->debug = d;
    if (ioctl(kv->fd, KVM_SET_GUEST_DEBUG, &d) < 0)
        return lodge_fail_errno(err, errno, "KVM debugging of vCPU %u", vcpu->index);
    return true;
}

VcpuDebugStop kvm_debug_stop(Vcpu *vcpu)
{
    return ((KvmVcpu *)vcpu)->debug_why;
}

static bool stop_at_int3(KvmVcpu *kv, uint64_t pc)
{
    for (unsigned i = 0; i < kv->n_breakpoints; i++)
        if (kv->breakpoints[i].kind == VCPU_BREAK_SOFTWARE && kv->breakpoints[i].address == pc) {
            kv->debug_why = (VcpuDebugStop){.kind = VCPU_BREAK_SOFTWARE, .address = pc};
            return true;
        }
    return false;
}

static bool stop_at_trap(KvmVcpu *kv, uint64_t dr6)
{
    for (unsigned n = 0; n < kv->n_debug_slots; n++)
        if (dr6 >> n & 1) {
            const VcpuBreakpoint *b = &kv->breakpoints[kv->debug_slot[n]];
            kv->debug_why = (VcpuDebugStop){.kind = b->kind, .address = b->address};
            return true;
        }
    kv->debug_why = (VcpuDebugStop){.step = true};
    return (dr6 & DR6_BS) && (kv->debug.control & KVM_GUESTDBG_SINGLESTEP);
}

bool kvm_exit_debug(KvmVcpu *kv, VcpuExit *result, GError **err)
{
    const struct kvm_debug_exit_arch *e = &kv->run->debug.arch;
    if (e->exception == VECTOR_BP ? stop_at_int3(kv, e->pc) : stop_at_trap(kv, e->dr6)) {
        *result = VCPU_EXIT_DEBUG;
        return false;
    }
    /* The guest's own: back to it. */
    struct kvm_guest_debug d = kv->debug;
    d.control |= e->exception == VECTOR_BP ? KVM_GUESTDBG_INJECT_BP : KVM_GUESTDBG_INJECT_DB;
    if (ioctl(kv->fd, KVM_SET_GUEST_DEBUG, &d) == 0)
        return true;
    lodge_fail_errno(err, errno, "KVM exception %u of vCPU %u", e->exception, kv->vcpu.index);
    *result = VCPU_EXIT_ERROR;
    return false;
}
