/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The real CPU. A signal handler puts a case's state into the context that it returns to, with
 * EFLAGS.TF set, so that exactly one instruction runs before the next signal: #DB if it
 * completed, or its fault. One kernel round trip a case, and no code of ours in between.
 */
#include "diff.h"

#include <asm/prctl.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

const uint8_t diff_page_kind[DIFF_PAGES] = {
    DIFF_ABSENT, DIFF_RW, DIFF_RW, DIFF_ABSENT, DIFF_RO, DIFF_RW, DIFF_RO, DIFF_ABSENT,
    DIFF_RW, DIFF_RW, DIFF_RW, DIFF_ABSENT, DIFF_ABSENT, DIFF_ABSENT, DIFF_CODE_RX, DIFF_ABSENT,
};

#define STEPS_MAX 64u
#define AVX_OFFSET 576u
#define HEADER_OFFSET 512u

static uint8_t *view; /* of all pages, writable */
static const DiffCase *(*next_case)(void);
static void (*case_done)(const DiffCase *, DiffResult *);
static const DiffCase *current;
static unsigned steps;
static greg_t own_csgsfs;
static greg_t leave_gregs[NGREG];
static uint8_t leave_fx[AVX_OFFSET + 256];

static const int greg_of[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                REG_R12, REG_R13, REG_R14, REG_R15};

uint8_t *diff_host_page(unsigned page)
{
    return view + page * 4096u;
}

static void die(const char *what)
{
    fprintf(stderr, "diff: %s: %s\n", what, strerror(errno));
    exit(99);
}

void diff_host_init(void)
{
    size_t size = DIFF_PAGES * 4096u;
    int fd = memfd_create("diff-pages", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, (off_t)size) < 0)
        die("memfd");
    view = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (view == MAP_FAILED)
        die("mmap");
    memset(view, 0xcc, size);
    for (unsigned i = 0; i < DIFF_PAGES; i++) {
        static const int protection[] = {PROT_NONE, PROT_READ | PROT_WRITE, PROT_READ,
                                         PROT_READ | PROT_EXEC};
        volatile uint8_t *p =
            mmap((void *)(DIFF_BASE + i * 4096u), 4096, protection[diff_page_kind[i]],
                 MAP_SHARED | MAP_POPULATE | MAP_FIXED_NOREPLACE, fd, (off_t)i * 4096);
        if (p == MAP_FAILED)
            die("mmap at the fixed address");
        if (diff_page_kind[i] != DIFF_ABSENT)
            (void)*p;
        if (diff_page_kind[i] == DIFF_RW)
            *p = 0xcc;
    }
    close(fd);
    /* For compatibility mode; 64-bit code does not use them. */
    __asm__ volatile("mov %0, %%ds; mov %0, %%es" : : "r"(0x2b));
    if (syscall(SYS_arch_prctl, ARCH_SET_GS, DIFF_GS_BASE))
        die("arch_prctl");
}

static void state_to_context(const DiffCase *c, ucontext_t *uc)
{
    const DiffState *s = &c->in;
    greg_t *g = uc->uc_mcontext.gregs;
    uint8_t *fx = (uint8_t *)uc->uc_mcontext.fpregs;
    uint64_t present;
    for (unsigned i = 0; i < 16; i++)
        g[greg_of[i]] = (greg_t)s->gpr[i];
    g[REG_RIP] = (greg_t)s->rip;
    g[REG_EFL] = (greg_t)(s->rflags | (c->row->kind == DIFF_SEQUENCE ? 0 : FLAG_TF));
    g[REG_CSGSFS] = c->code32 ? (own_csgsfs & ~0xffffll) | 0x23 : own_csgsfs;
    memcpy(fx, s->fx, 416);
    if (!soft_features.avx) /* then the frame ends earlier, too */
        return;
    memcpy(fx + AVX_OFFSET, s->high, sizeof(s->high));
    memcpy(&present, fx + HEADER_OFFSET, 8);
    present |= 7;
    memcpy(fx + HEADER_OFFSET, &present, 8);
}

static void context_to_result(const ucontext_t *uc, DiffResult *r)
{
    const greg_t *g = uc->uc_mcontext.gregs;
    const uint8_t *fx = (const uint8_t *)uc->uc_mcontext.fpregs;
    uint64_t present;
    memset(r, 0, sizeof(*r));
    for (unsigned i = 0; i < 16; i++)
        r->state.gpr[i] = (uint64_t)g[greg_of[i]];
    r->state.rip = (uint64_t)g[REG_RIP];
    r->state.rflags = (uint64_t)g[REG_EFL];
    memcpy(r->state.fx, fx, 416);
    r->vector = (int)g[REG_TRAPNO];
    if (r->vector == EXC_DB)
        r->vector = -1;
    r->error = (uint32_t)g[REG_ERR];
    if (r->vector == EXC_PF)
        r->address = (uint64_t)g[REG_CR2];
    if (!soft_features.avx)
        return;
    memcpy(&present, fx + HEADER_OFFSET, 8);
    if (present & 4)
        memcpy(r->state.high, fx + AVX_OFFSET, sizeof(r->state.high));
    if (!(present & 2))
        memset(r->state.fx + FX_XMM, 0, 256);
}

static void next_into(ucontext_t *uc)
{
    current = next_case();
    steps = 0;
    if (current) {
        state_to_context(current, uc);
        return;
    }
    memcpy(uc->uc_mcontext.gregs, leave_gregs, sizeof(leave_gregs));
    memcpy(uc->uc_mcontext.fpregs, leave_fx, 416);
    if (soft_features.avx)
        memcpy((uint8_t *)uc->uc_mcontext.fpregs + AVX_OFFSET, leave_fx + AVX_OFFSET, 256);
}

static void on_signal(int number, siginfo_t *info, void *context)
{
    ucontext_t *uc = context;
    /* A handler inherits EFLAGS.AC: off with it, C code makes unaligned accesses. */
    __asm__ volatile("pushfq; andl $~0x40000, (%%rsp); popfq" ::: "cc", "memory");
    if (number == SIGUSR1) {
        memcpy(leave_gregs, uc->uc_mcontext.gregs, sizeof(leave_gregs));
        memcpy(leave_fx, uc->uc_mcontext.fpregs, soft_features.avx ? sizeof(leave_fx) : 512);
        own_csgsfs = uc->uc_mcontext.gregs[REG_CSGSFS];
        next_into(uc);
        return;
    }
    DiffResult result;
    context_to_result(uc, &result);
    if (result.vector == -1 && current->repeats && result.state.rip == current->in.rip &&
        ++steps < STEPS_MAX)
        return; /* one iteration of a string instruction: go on */
    case_done(current, &result);
    next_into(uc);
}

void diff_host_loop(const DiffCase *(*next)(void), void (*done)(const DiffCase *, DiffResult *))
{
    static const int signals[] = {SIGUSR1, SIGTRAP, SIGSEGV, SIGBUS, SIGILL, SIGFPE};
    size_t size = 1u << 20;
    stack_t stack = {.ss_sp = mmap(NULL, size, PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
                     .ss_size = size};
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    if (stack.ss_sp == MAP_FAILED || sigaltstack(&stack, NULL))
        die("sigaltstack");
    next_case = next;
    case_done = done;
    for (unsigned i = 0; i < G_N_ELEMENTS(signals); i++)
        sigaddset(&action.sa_mask, signals[i]);
    for (unsigned i = 0; i < G_N_ELEMENTS(signals); i++)
        sigaction(signals[i], &action, NULL);
    raise(SIGUSR1);
}
