/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The RAM slots of the software CPU, and one word a page that tells who may write there without
 * telling anyone: bit 0 = the page holds decoded code and is in no write TLB, bit 1 = every vCPU
 * has complied, above them a generation that each write to a page so marked increments.
 */
#include <sys/mman.h>

#include "base/error.h"
#include "vcpu/soft/vm.h"

static const _Atomic uint32_t no_word;

static unsigned slot_of(const SoftVm *vm, uint64_t gpa)
{
    for (unsigned i = 0; i < vm->slots_used; i++)
        if (gpa - vm->vm.ram[i].gpa < vm->vm.ram[i].size)
            return i;
    return VCPU_RAM_SLOTS_MAX;
}

SoftPage soft_page_find(SoftVm *vm, uint64_t gpa)
{
    unsigned i = slot_of(vm, gpa);
    if (i == VCPU_RAM_SLOTS_MAX)
        return (SoftPage){0};
    const VcpuRamSlot *slot = &vm->vm.ram[i];
    uint64_t offset = (gpa - slot->gpa) & ~(uint64_t)0xfff;
    return (SoftPage){slot->hva + offset, &vm->page_words[i][offset >> 12], slot->readonly};
}

uint8_t *soft_ram_read_only(SoftVm *vm, const uint8_t *host)
{
    for (unsigned i = 0; i < vm->slots_used; i++) {
        const VcpuRamSlot *slot = &vm->vm.ram[i];
        if ((uintptr_t)host - (uintptr_t)slot->hva >= slot->size)
            continue;
        uint8_t *alias = atomic_load(&vm->read_only[i]), *none = NULL;
        if (!alias) { /* old size 0: a second mapping of shared memory (mremap(2)) */
            void *p = mremap(slot->hva, 0, slot->size, MREMAP_MAYMOVE);
            if (p == MAP_FAILED || mprotect(p, slot->size, PROT_READ) < 0)
                return NULL;
            if (!atomic_compare_exchange_strong(&vm->read_only[i], &none, p))
                munmap(p, slot->size);
            alias = atomic_load(&vm->read_only[i]);
        }
        return alias + (host - slot->hva);
    }
    return NULL;
}

static void read_only_free(SoftVm *vm, unsigned slot)
{
    uint8_t *alias = atomic_exchange(&vm->read_only[slot], NULL);
    if (alias)
        munmap(alias, vm->vm.ram[slot].size);
}

static const _Atomic uint32_t *page_word(SoftVm *vm, uint64_t gpa)
{
    SoftPage page = soft_page_find(vm, gpa);
    return page.word ? page.word : &no_word;
}

uint32_t soft_page_generation(SoftVm *vm, uint64_t gpa)
{
    return atomic_load(page_word(vm, gpa));
}

void soft_page_written(SoftVm *vm, _Atomic uint32_t *word)
{
    uint32_t old = atomic_load_explicit(word, memory_order_acquire);
    do {
        if (!(old & SOFT_WORD_PROTECTED))
            return;
    } while (!atomic_compare_exchange_weak(
        word, &old, (old & ~(SOFT_WORD_PROTECTED | SOFT_WORD_SYNCED)) + SOFT_WORD_STEP));
    atomic_fetch_add(&soft_code_epoch, 1);
    /* Blocks are linked to each other: every vCPU has to come out and look. */
    for (unsigned i = 0; i < vm->vm.config.n_vcpus; i++)
        if (vm->cpus[i])
            soft_pend(vm->cpus[i], SOFT_PENDING_LOOP);
}

void soft_ram_dirty(VcpuVm *base, uint64_t gpa, uint64_t size)
{
    SoftVm *vm = (SoftVm *)base;
    uint64_t end = gpa + size;
    if (end < gpa)
        end = UINT64_MAX;
    for (unsigned i = 0; i < vm->slots_used; i++) {
        const VcpuRamSlot *slot = &vm->vm.ram[i];
        uint64_t from = MAX(gpa, slot->gpa), to = MIN(end, slot->gpa + slot->size);
        for (uint64_t a = from & ~(uint64_t)0xfff; from < to && a < to; a += 4096)
            soft_page_written(vm, &vm->page_words[i][(a - slot->gpa) >> 12]);
    }
}

/* Blocks decoded from the slot must not be taken for valid: their words live on, incremented. */
static void retire(SoftVm *vm, unsigned slot)
{
    if (!vm->page_words[slot])
        return;
    for (uint64_t i = 0; i < vm->vm.ram[slot].size >> 12; i++)
        soft_page_written(vm, &vm->page_words[slot][i]);
    g_ptr_array_add(vm->retired_words, (void *)vm->page_words[slot]);
    vm->page_words[slot] = NULL;
}

bool soft_ram_set(SoftVm *vm, unsigned slot, const VcpuRamSlot *ram, GError **err)
{
    if (slot >= VCPU_RAM_SLOTS_MAX)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "RAM slot %u: there are %d", slot,
                          VCPU_RAM_SLOTS_MAX);
    if ((ram->gpa | ram->size | (uintptr_t)ram->hva) & 0xfff)
        return lodge_fail(err, LODGE_ERROR_INVALID, "RAM slot %u is not aligned to pages", slot);
    if (ram->size && ram->gpa + ram->size - 1 < ram->gpa)
        return lodge_fail(err, LODGE_ERROR_INVALID, "RAM slot %u ends above 2^64", slot);
    _Atomic uint32_t *words = NULL;
    if (ram->size && !(words = g_try_new0(_Atomic uint32_t, ram->size >> 12)))
        return lodge_fail(err, LODGE_ERROR_LIMIT, "no memory for RAM slot %u of %" G_GUINT64_FORMAT
                          " bytes", slot, ram->size);
    retire(vm, slot);
    read_only_free(vm, slot);
    vm->vm.ram[slot] = *ram;
    vm->page_words[slot] = words;
    vm->slots_used = 0;
    for (unsigned i = 0; i < VCPU_RAM_SLOTS_MAX; i++)
        if (vm->vm.ram[i].size)
            vm->slots_used = i + 1;
    for (unsigned i = 0; i < VCPU_COUNT_MAX; i++)
        if (vm->cpus[i])
            soft_tlb_reset(vm->cpus[i]);
    return true;
}

void soft_ram_free(SoftVm *vm)
{
    for (unsigned i = 0; i < VCPU_RAM_SLOTS_MAX; i++) {
        read_only_free(vm, i);
        g_free((void *)vm->page_words[i]);
    }
    if (vm->retired_words)
        g_ptr_array_unref(vm->retired_words);
}

/* Applies @move to each page of the range; false if part of it is no RAM. */
static bool physical(SoftVm *vm, uint64_t gpa, uint8_t *bytes, unsigned size, bool write)
{
    while (size) {
        SoftPage page = soft_page_find(vm, gpa);
        unsigned n = MIN(size, 4096 - (unsigned)(gpa & 0xfff));
        if (!page.host || (write && page.readonly))
            return false;
        if (write) {
            memcpy(page.host + (gpa & 0xfff), bytes, n);
            soft_page_written(vm, page.word);
        } else {
            memcpy(bytes, page.host + (gpa & 0xfff), n);
        }
        gpa += n;
        bytes += n;
        size -= n;
    }
    return true;
}

bool soft_physical_write(SoftVm *vm, uint64_t gpa, const void *from, unsigned size)
{
    return physical(vm, gpa, (uint8_t *)from, size, true);
}

bool soft_physical_read(SoftVm *vm, uint64_t gpa, void *to, unsigned size)
{
    return physical(vm, gpa, to, size, false);
}
