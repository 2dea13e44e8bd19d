/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a debugger in the guest does to a program that is hot: breakpoints by INT3 and by debug registers, watchpoints,
 * single steps (SDM vol. 3 chapter 18), through ptrace(2).
 */
#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

#define ROUNDS 20000 /* before the debugger comes: everything has been translated by then */

/* The labels are the instructions of one round. */
__asm__(".pushsection .text\n"
        ".globl round_begin, step_mov, step_loop, step_call, step_after_call, step_inner, step_ret, step_rep,\n"
        ".globl step_load, step_store, step_after_store, step_vector, step_after_vector, step_rmw, step_after_rmw\n"
        ".globl step_syscall, step_after_syscall, round_end\n"
        ".type round_begin, @function\n"
        "round_begin: push %rbx\n"
        "step_mov:   mov $3, %ebx\n"
        "step_loop:  dec %ebx\n"
        "            jnz step_loop\n"
        "step_call:  call step_inner\n"
        "step_after_call: lea source(%rip), %rsi\n"
        "            lea target(%rip), %rdi\n"
        "            mov $16, %ecx\n"
        "step_rep:   rep movsb\n"
        "step_load:  mov watched(%rip), %eax\n"
        "            movdqu source(%rip), %xmm0\n"
        "step_store: mov %ecx, watched(%rip)\n"
        "step_after_store: nop\n"
        "step_vector: movdqu %xmm0, watched(%rip)\n"
        "step_after_vector: nop\n"
        "step_rmw:   lock addl $5, watched(%rip)\n"
        "step_after_rmw: mov $39, %eax\n" /* getpid */
        "step_syscall: test %edx, %edx\n"
        "            jz step_after_syscall\n"
        "            syscall\n"
        "step_after_syscall: pop %rbx\n"
        "round_end:  ret\n"
        "step_inner: xor %eax, %eax\n"
        "step_ret:   ret\n"
        ".popsection\n"
        ".pushsection .data\n"
        ".balign 64\n"
        ".globl source, target, watched\n"
        "source: .ascii \"0123456789abcdef\"\n"
        "target: .skip 48\n"
        "watched: .skip 64\n"
        ".popsection\n");
extern char round_begin[], step_mov[], step_loop[], step_call[], step_after_call[], step_inner[], step_ret[];
extern char step_rep[], step_load[], step_store[], step_after_store[], step_vector[], step_after_vector[];
extern char step_rmw[], step_after_rmw[], step_syscall[], step_after_syscall[], round_end[];
extern char source[], target[], watched[];

/* One round; with @system it asks the kernel something. */
static void round_run(long system)
{
    __asm__ volatile("call round_begin" : "+d"(system) : : "rax", "rcx", "rsi", "rdi", "r11", "xmm0", "cc", "memory");
}

static void debuggee(void)
{
    ptrace(PTRACE_TRACEME, 0, NULL, NULL);
    for (unsigned i = 0; i < ROUNDS; i++)
        round_run(0);
    raise(SIGSTOP);
    for (unsigned i = 0; i < 100; i++)
        round_run(1);
    _exit(42);
}

/* ---- the debugger ---- */

static pid_t child;
static int status;

static uint64_t address(const char *label)
{
    return (uint64_t)(uintptr_t)label;
}

static void resume(int request)
{
    if (ptrace(request, child, NULL, NULL) < 0 || waitpid(child, &status, 0) != child)
        status = -1;
}

static bool trapped(void)
{
    return WIFSTOPPED(status) && WSTOPSIG(status) == SIGTRAP;
}

static struct user_regs_struct registers(void)
{
    struct user_regs_struct r = {0};
    ptrace(PTRACE_GETREGS, child, NULL, &r);
    return r;
}

static void registers_set(struct user_regs_struct r)
{
    CHECK(ptrace(PTRACE_SETREGS, child, NULL, &r) == 0);
}

static void debug_set(unsigned n, uint64_t value)
{
    CHECK(ptrace(PTRACE_POKEUSER, child, offsetof(struct user, u_debugreg) + n * 8, value) == 0);
}

static uint64_t debug_get(unsigned n)
{
    errno = 0;
    return (uint64_t)ptrace(PTRACE_PEEKUSER, child, offsetof(struct user, u_debugreg) + n * 8, 0);
}

static uint64_t poke_byte(uint64_t at, uint8_t byte)
{
    uint64_t old = (uint64_t)ptrace(PTRACE_PEEKTEXT, child, at, NULL);
    ptrace(PTRACE_POKETEXT, child, at, (old & ~(uint64_t)0xff) | byte);
    return old;
}

static void breakpoint_by_int3(void)
{
    uint64_t at = address(step_call), old = poke_byte(at, 0xcc);
    for (unsigned i = 0; i < 5; i++) {
        resume(PTRACE_CONT);
        struct user_regs_struct r = registers();
        CHECK(trapped());
        CHECK_EQUAL(r.rip, at + 1);
        CHECK_EQUAL(r.rbx, 0);
        r.rip = at;
        registers_set(r);
        poke_byte(at, (uint8_t)old);
        resume(PTRACE_SINGLESTEP);
        CHECK_EQUAL(registers().rip, address(step_inner));
        poke_byte(at, 0xcc);
    }
    poke_byte(at, (uint8_t)old);
}

/* From inside the call to the end of the round. */
static void single_steps(void)
{
    resume(PTRACE_SINGLESTEP);
    CHECK_EQUAL(registers().rip, address(step_ret));
    resume(PTRACE_SINGLESTEP);
    CHECK_EQUAL(registers().rip, address(step_after_call));
    for (unsigned i = 0; i < 3; i++)
        resume(PTRACE_SINGLESTEP);
    CHECK_EQUAL(registers().rip, address(step_rep));
    for (unsigned left = 15; left > 0; left--) { /* a string instruction traps after each repetition */
        resume(PTRACE_SINGLESTEP);
        CHECK_EQUAL(registers().rip, address(step_rep));
        CHECK_EQUAL(registers().rcx, left);
    }
    resume(PTRACE_SINGLESTEP);
    CHECK_EQUAL(registers().rip, address(step_load));
    unsigned steps = 0;
    while (registers().rip != address(step_after_syscall) && steps < 30) {
        resume(PTRACE_SINGLESTEP);
        CHECK(trapped());
        steps++;
    }
    CHECK_EQUAL(steps, 11);
    CHECK_EQUAL(registers().rax, child);
    resume(PTRACE_SINGLESTEP);
    CHECK_EQUAL(registers().rip, address(round_end));
}

static void breakpoint_by_register(void)
{
    debug_set(0, address(step_loop));
    debug_set(7, 1);
    for (unsigned i = 0; i < 6; i++) { /* three times a round */
        resume(PTRACE_CONT);
        CHECK(trapped());
        CHECK_EQUAL(registers().rip, address(step_loop));
        CHECK_EQUAL(registers().rbx, 3 - i % 3);
        CHECK_EQUAL(debug_get(6) & 15, 1);
    }
    debug_set(7, 0);
}

/* DR7 for one watchpoint. @kind: 1 write, 3 read or write; @length: 0 one byte, 1 two, 3 four, 2 eight. */
static uint64_t watch(unsigned n, unsigned kind, unsigned length)
{
    return 1ull << (2 * n) | (uint64_t)(kind | length << 2) << (16 + 4 * n);
}

static void expect_stop(const char *at, uint64_t hits)
{
    resume(PTRACE_CONT);
    CHECK(trapped());
    CHECK_EQUAL(registers().rip, address(at));
    CHECK_EQUAL(debug_get(6) & 15, hits);
}

static void watchpoints(void)
{
    debug_set(1, address(watched));
    debug_set(7, watch(1, 1, 3));
    for (unsigned i = 0; i < 3; i++) {
        expect_stop(step_after_store, 2);
        CHECK_EQUAL((uint32_t)ptrace(PTRACE_PEEKDATA, child, address(watched), NULL), 0);
        expect_stop(step_after_vector, 2);
        expect_stop(step_after_rmw, 2);
        CHECK_EQUAL((uint32_t)ptrace(PTRACE_PEEKDATA, child, address(watched), NULL), 0x33323130 + 5);
    }
    debug_set(7, watch(1, 3, 0)); /* reads as well */
    expect_stop(step_load + 6, 2);
    expect_stop(step_after_store, 2);
    debug_set(7, 0);
    debug_set(2, address(watched) + 8); /* only the 16-byte store reaches it */
    debug_set(7, watch(2, 1, 2));
    expect_stop(step_after_vector, 4);
    expect_stop(step_after_vector, 4);
    debug_set(7, 0);
}

/* A trap in the middle of a string instruction. */
static void watch_string(void)
{
    debug_set(3, address(target) + 5);
    debug_set(7, watch(3, 1, 0));
    resume(PTRACE_CONT);
    CHECK(trapped());
    struct user_regs_struct r = registers();
    CHECK_EQUAL(r.rip, address(step_rep));
    CHECK_EQUAL(r.rdi, address(target) + 6);
    CHECK_EQUAL(r.rcx, 10);
    debug_set(7, 0);
}

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    child = fork();
    if (child == 0)
        debuggee();
    waitpid(child, &status, 0);
    CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
    breakpoint_by_int3();
    single_steps();
    breakpoint_by_register();
    watchpoints();
    watch_string();
    breakpoint_by_int3();
    resume(PTRACE_CONT);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 42);
    return checks_end("debugger");
}
