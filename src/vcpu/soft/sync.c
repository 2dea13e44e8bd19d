/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * vCPU threads among each other. A vCPU is `inside` while it executes guest code; others can ask it
 * to drop write tags (a page is about to hold decoded code) or to stand still (a locked access that
 * no host instruction can do). It complies at block boundaries and wherever it waits itself; one that
 * is outside (halted, in a device, not running) counts as having complied, and does so on entering.
 */
#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#include "vcpu/soft/vm.h"

/* How long HLT looks for work before it gives the host CPU away. */
#define SPIN_NS 50000

bool soft_sync_init(SoftCpu *cpu)
{
    return pthread_mutex_init(&cpu->system->sync.lock, NULL) == 0;
}

void soft_sync_free(SoftCpu *cpu)
{
    pthread_mutex_destroy(&cpu->system->sync.lock);
}

static void flush_requested(SoftCpu *cpu)
{
    SoftSync *s = &cpu->system->sync;
    if (atomic_load(&s->served) == atomic_load(&s->requested))
        return;
    pthread_mutex_lock(&s->lock);
    if (s->n_flush > SOFT_FLUSH_MAX)
        soft_tlb_protect(cpu, 0, true);
    else
        for (unsigned i = 0; i < s->n_flush; i++)
            soft_tlb_protect(cpu, s->flush[i], false);
    s->n_flush = 0;
    atomic_store(&s->served, atomic_load(&s->requested));
    pthread_mutex_unlock(&s->lock);
}

void soft_sync_enter(SoftCpu *cpu)
{
    SoftVm *vm = soft_vm(cpu);
    SoftSync *s = &cpu->system->sync;
    for (;;) {
        atomic_store(&s->inside, 1);
        SoftCpu *owner = atomic_load(&vm->exclusive);
        if (!owner || owner == cpu)
            break;
        atomic_store(&s->inside, 0);
        sched_yield();
    }
    flush_requested(cpu);
}

void soft_sync_leave(SoftCpu *cpu)
{
    atomic_store(&cpu->system->sync.inside, 0);
}

void soft_sync_serve(SoftCpu *cpu)
{
    atomic_fetch_and(&cpu->pending, ~SOFT_PENDING_SYNC);
    flush_requested(cpu);
    SoftCpu *owner = atomic_load(&soft_vm(cpu)->exclusive);
    if (owner && owner != cpu) {
        soft_sync_leave(cpu);
        soft_sync_enter(cpu);
    }
}

/* Waits until @other has served up to @ticket; does this vCPU's own duties meanwhile. */
static void wait_served(SoftCpu *cpu, SoftCpu *other, uint32_t ticket)
{
    SoftSync *s = &other->system->sync;
    for (unsigned spins = 0; atomic_load(&s->inside); spins++) {
        if ((int32_t)(atomic_load(&s->served) - ticket) >= 0)
            return;
        soft_sync_serve(cpu);
        if (spins < 200)
            _mm_pause();
        else
            sched_yield();
    }
}

static void protect_elsewhere(SoftCpu *cpu, uint64_t gpa)
{
    SoftVm *vm = soft_vm(cpu);
    uint32_t tickets[VCPU_COUNT_MAX];
    unsigned n = MIN(vm->vm.config.n_vcpus, VCPU_COUNT_MAX);
    for (unsigned i = 0; i < n; i++) {
        SoftCpu *other = vm->cpus[i];
        if (!other || other == cpu)
            continue;
        SoftSync *s = &other->system->sync;
        pthread_mutex_lock(&s->lock);
        if (s->n_flush < SOFT_FLUSH_MAX)
            s->flush[s->n_flush++] = gpa;
        else
            s->n_flush = SOFT_FLUSH_MAX + 1;
        tickets[i] = atomic_fetch_add(&s->requested, 1) + 1;
        pthread_mutex_unlock(&s->lock);
        soft_pend(other, SOFT_PENDING_SYNC);
    }
    for (unsigned i = 0; i < n; i++)
        if (vm->cpus[i] && vm->cpus[i] != cpu)
            wait_served(cpu, vm->cpus[i], tickets[i]);
}

uint32_t soft_page_protect(SoftCpu *cpu, uint64_t gpa)
{
    SoftPage page = soft_page_find(soft_vm(cpu), gpa);
    if (!page.word)
        return 0;
    gpa &= ~(uint64_t)0xfff;
    const uint32_t both = SOFT_WORD_PROTECTED | SOFT_WORD_SYNCED;
    for (;;) {
        uint32_t word = atomic_load(page.word);
        if ((word & both) == both)
            return word;
        uint32_t marked = word | SOFT_WORD_PROTECTED;
        if (!atomic_compare_exchange_strong(page.word, &word, marked))
            continue;
        soft_tlb_protect(cpu, gpa, false);
        if (soft_vm(cpu)->vm.config.n_vcpus > 1)
            protect_elsewhere(cpu, gpa);
        /* A device or another vCPU may have written meanwhile, which took the mark away. */
        if (atomic_compare_exchange_strong(page.word, &marked, marked | SOFT_WORD_SYNCED))
            return marked | SOFT_WORD_SYNCED;
    }
}

void soft_exclusive_begin(SoftCpu *cpu)
{
    SoftVm *vm = soft_vm(cpu);
    if (vm->vm.config.n_vcpus == 1)
        return;
    while (pthread_mutex_trylock(&vm->exclusive_lock)) {
        soft_sync_serve(cpu);
        sched_yield();
    }
    atomic_store(&vm->exclusive, cpu);
    for (unsigned i = 0; i < vm->vm.config.n_vcpus; i++) {
        SoftCpu *other = vm->cpus[i];
        if (!other || other == cpu)
            continue;
        soft_pend(other, SOFT_PENDING_SYNC);
        while (atomic_load(&other->system->sync.inside)) {
            flush_requested(cpu);
            sched_yield();
        }
    }
}

void soft_exclusive_end(SoftCpu *cpu)
{
    SoftVm *vm = soft_vm(cpu);
    if (vm->vm.config.n_vcpus == 1)
        return;
    atomic_store(&vm->exclusive, NULL);
    pthread_mutex_unlock(&vm->exclusive_lock);
}

void soft_sync_sleep(SoftCpu *cpu)
{
    SoftSync *s = &cpu->system->sync;
    uint64_t limit = __rdtsc() + vcpu_host_tsc_khz() * SPIN_NS / 1000000;
    while (__rdtsc() < limit) {
        if (atomic_load(&cpu->pending))
            return;
        _mm_pause();
    }
    atomic_store(&s->sleeping, 1);
    if (atomic_load(&cpu->pending) == 0)
        syscall(SYS_futex, (uint32_t *)&cpu->pending, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
    atomic_store(&s->sleeping, 0);
}

void soft_sync_wake(SoftCpu *cpu)
{
    if (atomic_load(&cpu->system->sync.sleeping))
        syscall(SYS_futex, (uint32_t *)&cpu->pending, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}
