/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Processes and threads that share memory, take it from each other, or write into each other's. */
#include "mirror.h"

#include <linux/futex.h>
#include <pthread.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdatomic.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>

#define AREA 0x40000000000ull
#define VALUE(p, i) (((volatile uint64_t *)(p))[i])

static void expect_exit(pid_t child, int wanted)
{
    int status;
    waitpid(child, &status, 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == wanted);
}

static void copy_on_write(void)
{
    uint8_t *p = map_at(AREA, 64 * PAGE, PROT_READ | PROT_WRITE, 0);
    uint8_t *s = map_at(AREA + (1 << 24), PAGE, PROT_READ | PROT_WRITE, MAP_SHARED);
    for (unsigned i = 0; i < 64; i++)
        VALUE(p + i * PAGE, 0) = i;
    warm(40);
    for (unsigned round = 0; round < 10; round++) {
        VALUE(s, 0) = 0;
        pid_t child = fork();
        if (child == 0) {
            warm(10);
            for (unsigned i = 0; i < 64; i++)
                if (VALUE(p + i * PAGE, 0) != i + round)
                    _exit(1);
            for (unsigned i = 0; i < 64; i += 2)
                VALUE(p + i * PAGE, 0) = 1000;
            VALUE(s, 0) = 1;
            while (VALUE(s, 0) != 2)
                ;
            for (unsigned i = 0; i < 64; i++)
                if (VALUE(p + i * PAGE, 0) != (i % 2 ? i + round : 1000))
                    _exit(2);
            _exit(42);
        }
        while (VALUE(s, 0) != 1)
            ;
        for (unsigned i = 0; i < 64; i++)
            CHECK(VALUE(p + i * PAGE, 0) == i + round);
        for (unsigned i = 0; i < 64; i++)
            VALUE(p + i * PAGE, 0)++;
        VALUE(s, 0) = 2;
        expect_exit(child, 42);
        for (unsigned i = 0; i < 64; i++)
            CHECK(VALUE(p + i * PAGE, 0) == i + round + 1);
    }
}

static void two_processes(void)
{
    volatile uint64_t *s = map_at(AREA, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED);
    pid_t child = fork();
    for (uint64_t i = 0; i < 400; i++) {
        while ((s[0] & 1) != (child ? 0 : 1))
            sched_yield();
        s[1 + i % 100] += i;
        s[0]++;
        if (i == 20)
            warm(20);
    }
    if (child == 0)
        _exit(7);
    expect_exit(child, 7);
    uint64_t sum = 0;
    for (unsigned i = 1; i < 101; i++)
        sum += s[i];
    CHECK(sum == 399ull * 400 && s[0] == 800);
}

static void forks(void)
{
    volatile uint64_t *p = map_at(AREA, 4 * PAGE, PROT_READ | PROT_WRITE, 0);
    warm(40);
    for (unsigned i = 0; i < 60; i++) {
        p[512] = i;
        pid_t child = i % 3 ? fork() : vfork();
        if (child == 0) {
            if (i % 2) {
                execl("/proc/self/exe", "mirror", "--exit", "9", NULL);
                _exit(1);
            }
            if (i % 3)
                p[512] = 5;
            _exit(9);
        }
        expect_exit(child, 9);
        CHECK(p[512] == i);
    }
}

/* ---- a debugger ---- */

__attribute__((noinline)) static int traced_constant(int x)
{
    __asm__ volatile("" : "+r"(x));
    return x + 0x1234;
}

static void poke(void)
{
    volatile uint64_t *p = map_at(AREA, PAGE, PROT_READ | PROT_WRITE, 0);
    volatile uint64_t *s = map_at(AREA + (1 << 24), PAGE, PROT_READ | PROT_WRITE, MAP_SHARED);
    pid_t child = fork();
    if (child == 0) {
        warm(30);
        p[1] = 1;
        traced_constant(1);
        s[0] = 1;
        while (p[0] == 0)
            p[2]++;
        s[1] = p[0];
        while (p[3] == 0)
            ;
        _exit(traced_constant(0) == 0x7777 && p[3] == 0x55 ? 11 : 12);
    }
    while (!s[0])
        sched_yield();
    int status;
    CHECK(ptrace(PTRACE_ATTACH, child, 0, 0) == 0);
    waitpid(child, &status, 0);
    CHECK(ptrace(PTRACE_PEEKDATA, child, &p[1], 0) == 1);
    CHECK(ptrace(PTRACE_POKEDATA, child, &p[0], 77l) == 0);
    CHECK(ptrace(PTRACE_DETACH, child, 0, 0) == 0);
    while (!s[1])
        sched_yield();
    CHECK(s[1] == 77);
    CHECK(ptrace(PTRACE_ATTACH, child, 0, 0) == 0);
    waitpid(child, &status, 0);
    /* The constant in its code: this process has the same code. */
    uint8_t *code = (uint8_t *)traced_constant;
    unsigned at = 0;
    while (at < 64 && memcmp(code + at, "\x34\x12\0\0", 4))
        at++;
    CHECK(at < 64);
    long word = ptrace(PTRACE_PEEKTEXT, child, code + at, 0);
    CHECK((word & 0xffffffff) == 0x1234);
    CHECK(ptrace(PTRACE_POKETEXT, child, code + at, (word & ~0xffffffffl) | 0x7777) == 0);
    CHECK(ptrace(PTRACE_DETACH, child, 0, 0) == 0);
    uint64_t value = 0x55;
    struct iovec here = {&value, 8}, there = {(void *)&p[3], 8};
    CHECK(process_vm_writev(child, &here, 1, &there, 1, 0) == 8);
    expect_exit(child, 11);
    CHECK(traced_constant(0) == 0x1234);
}

/* A watchpoint of a debug register on a page in use. */
static void watch(void)
{
    volatile uint64_t *p = map_at(AREA, 4 << 20, PROT_READ | PROT_WRITE, 0);
    madvise((void *)p, 4 << 20, MADV_HUGEPAGE);
    pid_t child = fork();
    if (child == 0) {
        p[0] = 1;
        warm(40);
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        raise(SIGSTOP);
        for (unsigned i = 0; i < 1000; i++) {
            p[512 + i % 100]++;
            if (i == 500)
                p[100] = 3;
        }
        _exit(13);
    }
    int status;
    waitpid(child, &status, 0);
    CHECK(WIFSTOPPED(status));
    size_t registers = offsetof(struct user, u_debugreg);
    CHECK(ptrace(PTRACE_POKEUSER, child, registers, &p[100]) == 0);
    CHECK(ptrace(PTRACE_POKEUSER, child, registers + 7 * 8, 0x90001l) == 0); /* DR0, 8 bytes, writes */
    ptrace(PTRACE_CONT, child, 0, 0);
    waitpid(child, &status, 0);
    CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGTRAP);
    CHECK(ptrace(PTRACE_PEEKDATA, child, &p[100], 0) == 3);
    CHECK(ptrace(PTRACE_POKEUSER, child, registers + 7 * 8, 0l) == 0);
    ptrace(PTRACE_CONT, child, 0, 0);
    expect_exit(child, 13);
}

/* ---- threads ---- */

static _Atomic uint64_t turn, stop_reading;
static __thread sigjmp_buf jump;
static __thread volatile sig_atomic_t catching;
static _Atomic uint64_t last_fault;

static void on_thread_fault(int number, siginfo_t *info, void *context)
{
    if (!catching) {
        printf("FAIL signal %d at %p\n", number, info->si_addr);
        _exit(1);
    }
    atomic_store(&last_fault, (uint64_t)info->si_addr);
    siglongjmp(jump, 1);
}

/* Reads and writes a page all the time; says what it saw last, or that it faulted. */
static _Atomic uint64_t seen, n_faults, n_reads;

static void *reader(void *of)
{
    volatile uint64_t *p = of;
    while (!atomic_load(&stop_reading)) {
        if (sigsetjmp(jump, 1) == 0) {
            catching = 1;
            for (unsigned i = 0; i < 100; i++) {
                atomic_store(&seen, p[1]);
                atomic_fetch_add(&n_reads, 1);
            }
            catching = 0;
        } else {
            catching = 0;
            atomic_fetch_add(&n_faults, 1);
        }
    }
    return NULL;
}

static void await(_Atomic uint64_t *counter, uint64_t more)
{
    uint64_t from = atomic_load(counter);
    double limit = now() + 20;
    while (atomic_load(counter) < from + more) {
        if (now() > limit) {
            CHECK(!"a thread goes on");
            _exit(1);
        }
        sched_yield();
    }
}

/* Once unmapping returned no thread may read what was there. */
static void take_away(void)
{
    struct sigaction action = {.sa_sigaction = on_thread_fault, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
    volatile uint64_t *p = map_at(AREA, PAGE, PROT_READ | PROT_WRITE, 0);
    pthread_t thread;
    pthread_create(&thread, NULL, reader, (void *)p);
    warm(40);
    for (uint64_t i = 1; i < 150; i++) {
        map_at(AREA, PAGE, PROT_READ | PROT_WRITE, 0);
        p[1] = i;
        await(&n_reads, 3);
        CHECK(atomic_load(&seen) == i);
        if (i % 3 == 0)
            munmap((void *)p, PAGE);
        else if (i % 3 == 1)
            mprotect((void *)p, PAGE, PROT_NONE);
        else
            map_at(AREA, PAGE, PROT_NONE, 0);
        uint64_t before = atomic_load(&n_reads);
        await(&n_faults, 2);
        /* One read may have been under way. */
        CHECK(atomic_load(&n_reads) <= before + 1);
        CHECK(atomic_load(&last_fault) == (uint64_t)&p[1]);
    }
    map_at(AREA, PAGE, PROT_READ | PROT_WRITE, 0);
    atomic_store(&stop_reading, 1);
    pthread_join(thread, NULL);
}

/* One thread writes while the other makes the page read-only and compares it over time. */
static _Atomic uint64_t stop_writing;

static void *writer(void *of)
{
    volatile uint64_t *p = of;
    while (!atomic_load(&stop_writing)) {
        if (sigsetjmp(jump, 1) == 0) {
            catching = 1;
            for (unsigned i = 0; i < 200; i++)
                p[2]++;
            catching = 0;
        } else {
            catching = 0;
            sched_yield();
        }
    }
    return NULL;
}

static void write_protect(void)
{
    struct sigaction action = {.sa_sigaction = on_thread_fault, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &action, NULL);
    volatile uint64_t *p = map_at(AREA, PAGE, PROT_READ | PROT_WRITE, 0);
    pthread_t thread;
    pthread_create(&thread, NULL, writer, (void *)p);
    warm(40);
    for (unsigned i = 0; i < 150; i++) {
        uint64_t before = p[2];
        double limit = now() + 10;
        while (p[2] == before && now() < limit)
            sched_yield();
        CHECK(p[2] != before);
        mprotect((void *)p, PAGE, PROT_READ);
        before = p[2];
        for (volatile unsigned j = 0; j < 20000; j++)
            ;
        CHECK(p[2] == before);
        mprotect((void *)p, PAGE, PROT_READ | PROT_WRITE);
    }
    atomic_store(&stop_writing, 1);
    pthread_join(thread, NULL);
}

static long futex(_Atomic uint32_t *at, int op, uint32_t value)
{
    return syscall(SYS_futex, at, op, value, NULL, NULL, 0);
}

static _Atomic uint32_t ball;
static volatile uint64_t rallies;

static void *player(void *me)
{
    uint32_t own = me ? 1 : 0;
    for (unsigned i = 0; i < 300; i++) {
        uint32_t now_at;
        while ((now_at = atomic_load(&ball)) != own)
            futex(&ball, FUTEX_WAIT_PRIVATE, now_at);
        rallies++;
        atomic_store(&ball, !own);
        futex(&ball, FUTEX_WAKE_PRIVATE, 1);
    }
    return NULL;
}

static void hand_off(void)
{
    pthread_t thread;
    warm(40);
    pthread_create(&thread, NULL, player, (void *)1);
    player(NULL);
    pthread_join(thread, NULL);
    CHECK(rallies == 600);
}

static _Atomic uint64_t counter;
static volatile uint64_t plain_lock_count;
static _Atomic uint32_t spin;

static void *adder(void *unused)
{
    for (unsigned i = 0; i < 100000; i++)
        atomic_fetch_add(&counter, 1);
    for (unsigned i = 0; i < 5000; i++) {
        while (atomic_exchange(&spin, 1))
            sched_yield();
        plain_lock_count++;
        atomic_store(&spin, 0);
    }
    /* a counter across two pages */
    uint64_t *split = (uint64_t *)(AREA + (1 << 24) + PAGE - 4);
    for (unsigned i = 0; i < 500; i++)
        __asm__ volatile("lock incq (%0)" : : "r"(split) : "memory");
    return NULL;
}

static void atomics(void)
{
    pthread_t threads[3];
    map_at(AREA + (1 << 24), 2 * PAGE, PROT_READ | PROT_WRITE, 0);
    warm(40);
    for (unsigned i = 0; i < 3; i++)
        pthread_create(&threads[i], NULL, adder, NULL);
    for (unsigned i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    uint64_t split;
    memcpy(&split, (void *)(AREA + (1 << 24) + PAGE - 4), 8);
    CHECK(counter == 300000 && plain_lock_count == 15000 && split == 1500);
}

/* Code rewritten by one thread while the other runs it. */
static _Atomic uint64_t stop_calling;
static _Atomic uint32_t result;
static uint8_t *routine;

static void *caller(void *unused)
{
    while (!atomic_load(&stop_calling))
        atomic_store(&result, ((uint32_t (*)(void))routine)());
    return NULL;
}

static void cross_modify(void)
{
    static const uint8_t code[] = {0xb8, 0, 0, 0, 0, 0xc3};
    pthread_t thread;
    routine = map_at(AREA, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, 0);
    memcpy(routine + 63, code, 6);
    routine += 63; /* the constant is aligned */
    pthread_create(&thread, NULL, caller, NULL);
    warm(40);
    for (uint32_t i = 1; i < 200; i++) {
        *(volatile uint32_t *)(routine + 1) = i;
        double limit = now() + 10;
        while (atomic_load(&result) != i && now() < limit)
            ;
        CHECK(atomic_load(&result) == i);
    }
    atomic_store(&stop_calling, 1);
    pthread_join(thread, NULL);
}

static volatile uint64_t ticks;

static void on_alarm(int number)
{
    volatile uint64_t local[64];
    for (unsigned i = 0; i < 64; i++)
        local[i] = i;
    ticks += local[63] == 63;
}

static void signals(void)
{
    static uint8_t stack[32 << 10];
    stack_t alternate = {.ss_sp = stack, .ss_size = sizeof(stack)};
    sigaltstack(&alternate, NULL);
    struct sigaction action = {.sa_handler = on_alarm, .sa_flags = SA_ONSTACK | SA_RESTART};
    sigaction(SIGALRM, &action, NULL);
    timer_t timer;
    const struct itimerspec often = {{0, 5000000}, {0, 5000000}};
    CHECK(timer_create(CLOCK_MONOTONIC, NULL, &timer) == 0);
    CHECK(timer_settime(timer, 0, &often, NULL) == 0);
    volatile uint64_t *p = map_at(AREA, PAGE, PROT_READ | PROT_WRITE, 0);
    double limit = now() + 60;
    uint64_t n = 0;
    while (ticks < 30 && now() < limit)
        for (unsigned i = 0; i < 512; i++) {
            p[i]++;
            n++;
        }
    timer_delete(timer);
    uint64_t sum = 0;
    for (unsigned i = 0; i < 512; i++)
        sum += p[i];
    CHECK(ticks >= 30 && sum == n);
}

const Case share_cases[] = {
    {"copy on write", copy_on_write}, {"two processes", two_processes}, {"forks", forks}, {"poke", poke},
    {"watch", watch}, {"signals", signals}, {NULL, NULL},
};
const Case thread_cases[] = {
    {"take away", take_away}, {"write protect", write_protect}, {"hand-off", hand_off}, {"atomics", atomics},
    {"cross-modify", cross_modify}, {NULL, NULL},
};
