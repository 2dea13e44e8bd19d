/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * SIGSEGV in translated code over mirrored memory: the page is mapped and the instruction tried again,
 * or the interpreter does it, with the faults that the guest is to see. SIGBUS is what Linux makes of #SS,
 * which an address that is not canonical raises instead of #GP if its base is RSP or RBP. Anywhere else they are
 * a crash.
 */
#include <pthread.h>
#include <signal.h>
#include <ucontext.h>

#include "vcpu/soft/translate/cache.h"
#include "vcpu/soft/translate/mirror.h"

#define ERROR_WRITE 2 /* page fault error code */

static __thread SoftCpu *this_cpu;
static struct sigaction before_segv, before_bus;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static const CodeSite *site_of(const CodeCache *c, uint32_t offset, uint32_t *where)
{
    uint32_t low = 0, high = c->n_mirrored;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (c->mirrored[middle].start <= offset)
            low = middle + 1;
        else
            high = middle;
    }
    if (!low || !c->mirrored[low - 1].site)
        return NULL;
    *where = c->mirrored[low - 1].site;
    return (const CodeSite *)(c->rw + *where);
}

static void on_fault(int number, siginfo_t *info, void *context)
{
    greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;
    SoftCpu *cpu = this_cpu;
    CodeCache *c = cpu ? cpu->code : NULL;
    uint64_t offset = c ? (uint64_t)regs[REG_RIP] - (uintptr_t)c->rx : UINT64_MAX;
    uint32_t where;
    const CodeSite *site = c && offset < c->used ? site_of(c, (uint32_t)offset, &where) : NULL;

    if (!site || info->si_code <= 0 || (number == SIGBUS && info->si_code != SI_KERNEL)) {
        /* It comes again, for whoever had it before, unless it was sent. */
        sigaction(number, number == SIGBUS ? &before_bus : &before_segv, NULL);
        if (info->si_code <= 0)
            raise(number);
        return;
    }
    if (info->si_code != SI_KERNEL &&
        mirror_fill(cpu, (uintptr_t)info->si_addr, regs[REG_ERR] & ERROR_WRITE ? SOFT_WRITE : SOFT_READ))
        return;
    cpu->site = where;
    uint32_t thunk = site->flags_at == FLAGS_HOST ? c->thunk.slow_host : c->thunk.slow_saved;
    regs[REG_RIP] = (greg_t)(uintptr_t)code_rx(c, thunk);
}

static void install(void)
{
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigemptyset(&action.sa_mask);
    sigaction(SIGSEGV, &action, &before_segv);
    sigaction(SIGBUS, &action, &before_bus);
}

void mirror_thread_signals(SoftCpu *cpu)
{
    pthread_once(&once, install);
    this_cpu = cpu;
}
