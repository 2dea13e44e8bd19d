/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Faults in the middle of things: what the handler sees must be as if the instruction had not begun, or, for string
 * instructions, as if it had ended after the last whole repetition; and when the cause is gone, it goes on.
 */
#include <immintrin.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include "check.h"

#define PAGE 4096u

static uint8_t *page;   /* one page; the next one is the guard */
static uint8_t *guard;  /* no access */
static uint8_t *frozen; /* read only */

/* What the last fault found. */
static greg_t seen[NGREG];
static uint8_t *seen_address;
static volatile unsigned faults;
static bool retry;             /* make the guard accessible and go on; else go to recover */
static greg_t recover_at __attribute__((used)), recover_stack __attribute__((used));

static void on_fault(int number, siginfo_t *info, void *context)
{
    ucontext_t *uc = context;
    (void)number;
    memcpy(seen, uc->uc_mcontext.gregs, sizeof(seen));
    seen_address = info->si_addr;
    faults++;
    if (faults > 1000)
        _exit(3);
    if (retry) {
        mprotect(guard, PAGE, PROT_READ | PROT_WRITE);
        return;
    }
    uc->uc_mcontext.gregs[REG_RIP] = recover_at;
    uc->uc_mcontext.gregs[REG_RSP] = recover_stack;
    uc->uc_mcontext.gregs[REG_EFL] &= ~0x400; /* DF */
}

/*
 * Runs @code between labels 771 and 772, with the registers of struct regs, and recovers at 772 with its own
 * stack. at_fault is where 771 is; what follows may read what the code left.
 */
struct regs {
    uint64_t rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp;
};
static uint64_t saved_rsp __attribute__((used)), saved_rbp __attribute__((used)), saved_rbx __attribute__((used));
static volatile uint64_t at_begin __attribute__((used));

#define RUN(r, code)                                                                               \
    do {                                                                                           \
        struct regs *r_ = (r);                                                                     \
        __asm__ volatile("mov %%rsp, saved_rsp(%%rip)\n mov %%rbp, saved_rbp(%%rip)\n"             \
                         "mov %%rbx, saved_rbx(%%rip)\n"                                           \
                         "lea 771f(%%rip), %%rcx\n mov %%rcx, at_begin(%%rip)\n"                   \
                         "lea 772f(%%rip), %%rcx\n mov %%rcx, recover_at(%%rip)\n"                 \
                         "mov %%rsp, recover_stack(%%rip)\n"                                       \
                         "mov 8(%%rax), %%rbx\n mov 16(%%rax), %%rcx\n mov 24(%%rax), %%rdx\n"     \
                         "mov 32(%%rax), %%rsi\n mov 40(%%rax), %%rdi\n mov 48(%%rax), %%rsp\n"    \
                         "mov 56(%%rax), %%rbp\n mov (%%rax), %%rax\n"                             \
                         "771: " code "\n"                                                         \
                         "772: mov saved_rsp(%%rip), %%rsp\n mov saved_rbp(%%rip), %%rbp\n"        \
                         "mov saved_rbx(%%rip), %%rbx\n cld\n"                                     \
                         : "+a"(r_)                                                                \
                         :                                                                         \
                         : "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "cc", "memory",   \
                           "xmm0", "xmm1", "xmm2");                                                \
    } while (0)

static void ready(bool again)
{
    mprotect(guard, PAGE, PROT_NONE);
    retry = again;
    faults = 0;
    memset(seen, 0, sizeof(seen));
}

static uint64_t u(const void *p)
{
    return (uint64_t)(uintptr_t)p;
}

static void at_instruction(const uint8_t *address)
{
    CHECK_EQUAL(faults, 1);
    CHECK_EQUAL(seen[REG_RIP], at_begin);
    CHECK_EQUAL(u(seen_address), u(address));
}

/* ---- string instructions ---- */

static void strings_stop(void)
{
    static uint8_t source[64];
    for (unsigned i = 0; i < sizeof(source); i++)
        source[i] = (uint8_t)(i + 1);
    ready(false);
    RUN((&(struct regs){.rcx = 40, .rsi = u(source), .rdi = u(guard) - 13}), "rep movsb");
    at_instruction(guard);
    CHECK_EQUAL(seen[REG_RCX], 27);
    CHECK_EQUAL(seen[REG_RSI], u(source) + 13);
    CHECK_EQUAL(seen[REG_RDI], u(guard));
    CHECK(memcmp(guard - 13, source, 13) == 0);

    ready(false); /* an element across the border is not stored in part */
    memset(guard - 32, 0xee, 32);
    RUN((&(struct regs){.rcx = 7, .rsi = u(source), .rdi = u(guard) - 20}), "rep movsq");
    at_instruction(guard);
    CHECK_EQUAL(seen[REG_RCX], 5);
    CHECK_EQUAL(seen[REG_RDI], u(guard) - 4);
    CHECK(guard[-4] == 0xee && guard[-1] == 0xee && guard[-5] == source[15]);

    ready(false); /* backwards, out of the guard's end */
    mprotect(guard, PAGE, PROT_READ | PROT_WRITE);
    mprotect(page, PAGE, PROT_NONE);
    RUN((&(struct regs){.rax = 0x12345678, .rcx = 100, .rdi = u(guard) + 16}), "std; 1: rep stosl");
    CHECK_EQUAL(faults, 1);
    CHECK_EQUAL(seen[REG_RIP], at_begin + 1);
    CHECK_EQUAL(seen[REG_RCX], 95);
    CHECK_EQUAL(seen[REG_RDI], u(guard) - 4);
    mprotect(page, PAGE, PROT_READ | PROT_WRITE);

    ready(false);
    memset(guard - 8, 7, 8);
    RUN((&(struct regs){.rax = 9, .rcx = 100, .rdi = u(guard) - 8}), "repne scasb");
    at_instruction(guard);
    CHECK_EQUAL(seen[REG_RCX], 92);
    ready(false);
    RUN((&(struct regs){.rcx = 100, .rsi = u(guard) - 4, .rdi = u(guard) - 8}), "repe cmpsb");
    at_instruction(guard);
    CHECK_EQUAL(seen[REG_RCX], 96);
    CHECK_EQUAL(seen[REG_RDI], u(guard) - 4);
}

static void strings_go_on(void)
{
    static uint8_t source[PAGE];
    for (unsigned i = 0; i < PAGE; i++)
        source[i] = (uint8_t)(i * 7);
    for (unsigned round = 0; round < 20; round++) {
        ready(true);
        RUN((&(struct regs){.rcx = 500, .rsi = u(source), .rdi = u(guard) - 123 - round}), "rep movsb");
        CHECK_EQUAL(faults, 1);
        CHECK(memcmp(guard - 123 - round, source, 500) == 0);
        ready(true);
        RUN((&(struct regs){.rax = 0xab, .rcx = 100, .rdi = u(guard) - 33 - round * 8}), "rep stosq");
        CHECK(guard[-33 - (int)round * 8] == 0xab && guard[700 - round * 8] == 0);
    }
}

/* ---- read-modify-write ---- */

static void rmw(void)
{
    ready(false); /* across the border: neither part changes */
    memset(guard - 8, 0xff, 8);
    RUN((&(struct regs){.rdi = u(guard) - 2}), "addl $1, (%%rdi)");
    at_instruction(guard);
    CHECK(guard[-1] == 0xff && guard[-2] == 0xff);
    ready(false);
    RUN((&(struct regs){.rax = 5, .rdi = u(guard) - 2}), "lock xadd %%eax, (%%rdi)");
    at_instruction(guard);
    CHECK(seen[REG_RAX] == 5 && guard[-2] == 0xff);
    ready(false);
    RUN((&(struct regs){.rax = 1, .rdi = u(frozen) + 8}), "lock xadd %%rax, (%%rdi)");
    at_instruction(frozen + 8);
    CHECK(seen[REG_RAX] == 1 && frozen[8] == 0);
    ready(false); /* CMPXCHG writes in any case */
    RUN((&(struct regs){.rax = 77, .rcx = 1, .rdi = u(frozen)}), "lock cmpxchg %%rcx, (%%rdi)");
    at_instruction(frozen);
    CHECK_EQUAL(seen[REG_RAX], 77);
    ready(false);
    RUN((&(struct regs){.rax = 3, .rdi = u(frozen)}), "xchg %%al, (%%rdi)");
    at_instruction(frozen);
    CHECK_EQUAL(seen[REG_RAX], 3);
    ready(true); /* and flags live across the fault */
    memset(guard - 8, 0, 8);
    RUN((&(struct regs){.rax = 1, .rbx = 2, .rdi = u(guard) - 4}),
        "cmp %%rbx, %%rax; mov %%rbx, (%%rdi); setb %%al; setz %%bl; mov %%al, 64(%%rdi); mov %%bl, 65(%%rdi)");
    CHECK_EQUAL(faults, 1);
    CHECK(guard[60] == 1 && guard[61] == 0 && guard[-4] == 2);
    ready(true);
    memset(guard - 8, 1, 8);
    RUN((&(struct regs){.rax = ~0ull, .rdi = u(guard) - 4}), "add $1, %%rax; adcq $0, (%%rdi); setc 64(%%rdi)");
    CHECK_EQUAL(faults, 1);
    CHECK(guard[-4] == 2 && guard[60] == 0);
}

/* ---- the stack ---- */

static void stack(void)
{
    struct regs low = {.rax = 1, .rdi = u(page), .rsp = u(guard) + 4, .rbp = 99};
    mprotect(guard, PAGE, PROT_READ | PROT_WRITE);
    memset(page, 0x5a, PAGE);
    ready(false);
    RUN((&(struct regs){.rax = 1, .rsp = u(guard) + 16}), "push %%rax");
    at_instruction(guard + 8);
    CHECK_EQUAL(seen[REG_RSP], u(guard) + 16);
    ready(false);
    RUN(&low, "push (%%rdi)");
    CHECK_EQUAL(seen[REG_RSP], u(guard) + 4);
    CHECK_EQUAL(seen[REG_RIP], at_begin);
    ready(false);
    RUN(&low, "call 1f; nop; 1: nop");
    CHECK_EQUAL(seen[REG_RSP], u(guard) + 4);
    CHECK_EQUAL(seen[REG_RIP], at_begin);
    ready(false);
    RUN(&low, "call *%%rdi");
    CHECK_EQUAL(seen[REG_RIP], at_begin);
    ready(false);
    RUN((&(struct regs){.rsp = u(guard) - 4}), "ret");
    at_instruction(guard);
    CHECK_EQUAL(seen[REG_RSP], u(guard) - 4);
    ready(false);
    RUN((&(struct regs){.rax = 6, .rsp = u(guard) - 4}), "pop %%rax");
    CHECK(seen[REG_RAX] == 6 && seen[REG_RSP] == (greg_t)(u(guard) - 4));
    ready(false); /* POP's destination faults: RSP is as before */
    RUN((&(struct regs){.rdi = u(guard), .rsp = u(page)}), "pop (%%rdi)");
    at_instruction(guard);
    CHECK_EQUAL(seen[REG_RSP], u(page));
    ready(false); /* LEAVE */
    RUN((&(struct regs){.rsp = u(page) + 64, .rbp = u(guard)}), "leave");
    at_instruction(guard);
    CHECK(seen[REG_RSP] == (greg_t)(u(page) + 64) && seen[REG_RBP] == (greg_t)u(guard));
    ready(false); /* ENTER: the first push faults */
    RUN((&(struct regs){.rsp = u(guard) + 8, .rbp = u(page) + 512}), "enter $32, $0");
    at_instruction(guard);
    CHECK(seen[REG_RSP] == (greg_t)(u(guard) + 8) && seen[REG_RBP] == (greg_t)(u(page) + 512));
}

/* ---- vectors ---- */

__attribute__((target("avx"))) static void vectors(void)
{
    ready(false);
    memset(guard - 32, 0x11, 32);
    RUN((&(struct regs){.rdi = u(guard) - 9}), "pcmpeqd %%xmm0, %%xmm0; 1: movdqu %%xmm0, (%%rdi)");
    CHECK_EQUAL(faults, 1);
    CHECK_EQUAL(u(seen_address), u(guard));
    CHECK(guard[-9] == 0x11 && guard[-1] == 0x11);
    if (!__builtin_cpu_supports("avx"))
        return;
    ready(false);
    RUN((&(struct regs){.rdi = u(guard) - 20}), "vpcmpeqd %%xmm0, %%xmm0, %%xmm0; vmovups %%ymm0, (%%rdi)");
    CHECK_EQUAL(faults, 1);
    CHECK(guard[-20] == 0x11 && guard[-1] == 0x11);
    ready(true);
    RUN((&(struct regs){.rdi = u(guard) - 20}), "vpcmpeqd %%xmm0, %%xmm0, %%xmm0; vmovups %%ymm0, (%%rdi); vzeroupper");
    CHECK_EQUAL(faults, 1);
    CHECK(guard[-20] == 0xff && guard[-5] == 0xff && guard[-1] == 0 && guard[11] == 0 && guard[-21] == 0x11);
    /* A masked-off element does not fault (SDM vol. 2, VMASKMOV). */
    ready(false);
    memset(guard - 32, 0x22, 32);
    RUN((&(struct regs){.rdi = u(guard) - 8}), "vpcmpeqd %%xmm0, %%xmm0, %%xmm0; vpsrldq $8, %%xmm0, %%xmm0; "
        "vmaskmovps %%xmm0, %%xmm0, (%%rdi)");
    CHECK_EQUAL(faults, 0);
    CHECK(guard[-8] == 0xff && guard[-1] == 0xff);
}

/* A gather that faults half way is taken up again by its mask. */
__attribute__((target("avx2"))) static void gather(void)
{
    if (!__builtin_cpu_supports("avx2"))
        return;
    static const int offsets[8] = {-4, 0, -8, 4, -12, 8, -16, 12};
    int result[8];
    mprotect(guard, PAGE, PROT_READ | PROT_WRITE);
    for (int i = -8; i < 8; i++)
        memcpy(guard + i * 4, &(int){i * 3}, 4);
    ready(true);
    __m256i at = _mm256_loadu_si256((const __m256i *)offsets), all = _mm256_set1_epi32(-1);
    __m256i r = _mm256_mask_i32gather_epi32(_mm256_set1_epi32(5), (const int *)(const void *)guard, at, all, 1);
    _mm256_storeu_si256((__m256i *)result, r);
    CHECK_EQUAL(faults, 1);
    for (unsigned i = 0; i < 8; i++)
        CHECK_EQUAL(result[i], offsets[i] / 4 * 3);
    ready(false); /* elements that are masked off are not read */
    all = _mm256_setr_epi32(-1, 0, -1, 0, -1, 0, -1, 0);
    r = _mm256_mask_i32gather_epi32(_mm256_set1_epi32(5), (const int *)(const void *)guard, at, all, 1);
    _mm256_storeu_si256((__m256i *)result, r);
    CHECK_EQUAL(faults, 0);
    for (unsigned i = 0; i < 8; i++)
        CHECK_EQUAL(result[i], i % 2 ? 5 : offsets[i] / 4 * 3);
}

/* ---- addresses ---- */

static uint64_t words[4] __attribute__((used)) = {0x1111, 0x2222};
static int last_signal;

static void on_which(int number, siginfo_t *info, void *context)
{
    last_signal = number;
    on_fault(number, info, context);
}

/*
 * A base that is no address by itself, with a displacement that makes it one; and addresses that are not
 * canonical: #GP, but #SS by way of RBP or RSP, which Linux makes SIGBUS.
 */
static void far_bases(void)
{
    const uint64_t bad = 1ull << 47, top = bad - 8;
    ready(false);
    for (unsigned i = 0; i < 100; i++) {
        uint64_t by_rbp = 0, by_rdi = 0;
        RUN((&(struct regs){.rbp = -16ull, .rdi = -16ull}),
            "movq words+16(%%rbp), %%rcx; movq words+24(%%rdi), %%rdx; "
            "movq %%rcx, words+32(%%rbp); movq %%rdx, words+40(%%rbp)");
        memcpy(&by_rbp, &words[2], 8);
        memcpy(&by_rdi, &words[3], 8);
        CHECK_EQUAL(by_rbp, 0x1111);
        CHECK_EQUAL(by_rdi, 0x2222);
        words[2] = words[3] = 0;
    }
    CHECK_EQUAL(faults, 0);
    for (unsigned i = 0; i < 20; i++) {
        ready(false);
        RUN((&(struct regs){.rdi = bad}), "movq (%%rdi), %%rcx");
        CHECK_EQUAL(seen[REG_RIP], at_begin);
        CHECK_EQUAL(last_signal, SIGSEGV);
        ready(false);
        RUN((&(struct regs){.rbp = bad}), "movq (%%rbp), %%rcx");
        CHECK_EQUAL(seen[REG_RIP], at_begin);
        CHECK_EQUAL(last_signal, SIGBUS);
        ready(false);
        RUN((&(struct regs){.rbp = top}), "movq 8(%%rbp), %%rcx");
        CHECK_EQUAL(last_signal, SIGBUS);
        ready(false);
        RUN((&(struct regs){.rax = 5, .rsp = bad + 8}), "push %%rax");
        CHECK_EQUAL(seen[REG_RSP], bad + 8);
        CHECK_EQUAL(last_signal, SIGBUS);
    }
}

/* ---- others ---- */

static volatile unsigned traps;
static greg_t trap_rip[64];

static void on_trap(int number, siginfo_t *info, void *context)
{
    (void)number, (void)info;
    if (traps < 64)
        trap_rip[traps] = ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
    traps++;
}

/* A program that sets TF by itself. */
static void single_step(void)
{
    for (unsigned round = 0; round < 200; round++) {
        uint64_t start;
        traps = 0;
        __asm__ volatile("lea 1f(%%rip), %0\n pushfq\n orl $0x100, (%%rsp)\n popfq\n"
                         "1: nop\n mov $2, %%ecx\n 2: dec %%ecx\n jnz 2b\n"
                         "pushfq\n andl $~0x100, (%%rsp)\n popfq\n nop\n"
                         : "=&r"(start) : : "rcx", "cc", "memory");
        CHECK_EQUAL(traps, 9);
        CHECK_EQUAL(trap_rip[0], start + 1);
        CHECK_EQUAL(trap_rip[1], start + 6);
        CHECK_EQUAL(trap_rip[3], start + 6);
    }
}

static void divide(void)
{
    ready(false);
    RUN((&(struct regs){.rax = 7, .rcx = 0, .rdx = 1}), "div %%rcx");
    CHECK_EQUAL(faults, 1);
    CHECK_EQUAL(seen[REG_RIP], at_begin);
    CHECK(seen[REG_RAX] == 7 && seen[REG_RDX] == 1);
}

/* Each of them again when its code has been executed often. */
static void all(void)
{
    strings_stop();
    strings_go_on();
    rmw();
    stack();
    vectors();
    gather();
    divide();
    far_bases();
}

int main(void)
{
    static const int signals[] = {SIGSEGV, SIGFPE, SIGBUS};
    struct sigaction action = {.sa_sigaction = on_which, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    struct sigaction trap = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    stack_t other = {.ss_sp = malloc(1 << 16), .ss_size = 1 << 16};
    setvbuf(stdout, NULL, _IOLBF, 0);
    sigaltstack(&other, NULL);
    for (unsigned i = 0; i < 3; i++)
        sigaction(signals[i], &action, NULL);
    sigaction(SIGTRAP, &trap, NULL);
    page = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    guard = page + PAGE;
    frozen = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (unsigned i = 0; i < 30; i++)
        all();
    single_step();
    return checks_end("faults");
}
