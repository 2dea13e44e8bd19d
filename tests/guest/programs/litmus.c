/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Memory ordering between CPUs (SDM vol. 3 8.2.3): outcomes that x86 forbids must not be seen. And locked operations
 * are atomic, also across the ends of lines and pages.
 */
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "check.h"

#define THREADS_MAX 4u
#define ROUNDS 20000u
#define SECONDS 2.0 /* at most, each */

static struct {
    volatile uint32_t x __attribute__((aligned(128)));
    volatile uint32_t y __attribute__((aligned(128)));
} at;
static volatile uint32_t result[THREADS_MAX][2];
static volatile uint32_t arrived __attribute__((aligned(128))), released __attribute__((aligned(128)));

typedef struct Litmus {
    const char *name;
    unsigned threads;
    void (*run[THREADS_MAX])(void);
    bool (*forbidden)(void);
} Litmus;

static const Litmus *current;
static volatile unsigned bad, rounds;
static volatile bool over;

#define STORE(where, value) __asm__ volatile("movl %1, %0" : "=m"(where) : "i"(value) : "memory")
#define LOAD(n, i, where)                                                                          \
    do {                                                                                           \
        uint32_t v_;                                                                               \
        __asm__ volatile("movl %1, %0" : "=r"(v_) : "m"(where) : "memory");                        \
        result[n][i] = v_;                                                                         \
    } while (0)
#define FENCE() __asm__ volatile("mfence" : : : "memory")
#define LOCKED() __asm__ volatile("lock orl $0, (%%rsp)" : : : "cc", "memory")

/* store buffering, with a fence, a locked operation, XCHG */
static void sb_fence_0(void) { STORE(at.x, 1); FENCE(); LOAD(0, 0, at.y); }
static void sb_fence_1(void) { STORE(at.y, 1); FENCE(); LOAD(1, 0, at.x); }
static void sb_lock_0(void) { STORE(at.x, 1); LOCKED(); LOAD(0, 0, at.y); }
static void sb_lock_1(void) { STORE(at.y, 1); LOCKED(); LOAD(1, 0, at.x); }
static void sb_xchg_0(void)
{
    uint32_t v = 1;
    __asm__ volatile("xchgl %0, %1" : "+r"(v), "+m"(at.x) : : "memory");
    LOAD(0, 0, at.y);
}
static void sb_xchg_1(void)
{
    uint32_t v = 1;
    __asm__ volatile("xchgl %0, %1" : "+r"(v), "+m"(at.y) : : "memory");
    LOAD(1, 0, at.x);
}
static bool both_zero(void) { return result[0][0] == 0 && result[1][0] == 0; }

/* message passing */
static void mp_0(void) { STORE(at.x, 1); STORE(at.y, 1); }
static void mp_1(void) { LOAD(1, 0, at.y); LOAD(1, 1, at.x); }
static bool mp_forbidden(void) { return result[1][0] == 1 && result[1][1] == 0; }

/* load buffering */
static void lb_0(void) { LOAD(0, 0, at.x); STORE(at.y, 1); }
static void lb_1(void) { LOAD(1, 0, at.y); STORE(at.x, 1); }
static bool lb_forbidden(void) { return result[0][0] == 1 && result[1][0] == 1; }

/* independent reads of independent writes */
static void iriw_0(void) { STORE(at.x, 1); }
static void iriw_1(void) { STORE(at.y, 1); }
static void iriw_2(void) { LOAD(2, 0, at.x); LOAD(2, 1, at.y); }
static void iriw_3(void) { LOAD(3, 0, at.y); LOAD(3, 1, at.x); }
static bool iriw_forbidden(void)
{
    return result[2][0] == 1 && result[2][1] == 0 && result[3][0] == 1 && result[3][1] == 0;
}

static const Litmus tests[] = {
    {"SB+mfence", 2, {sb_fence_0, sb_fence_1}, both_zero},
    {"SB+lock", 2, {sb_lock_0, sb_lock_1}, both_zero},
    {"SB+xchg", 2, {sb_xchg_0, sb_xchg_1}, both_zero},
    {"MP", 2, {mp_0, mp_1}, mp_forbidden},
    {"LB", 2, {lb_0, lb_1}, lb_forbidden},
    {"IRIW", 4, {iriw_0, iriw_1, iriw_2, iriw_3}, iriw_forbidden},
};

static void wait_for(uint32_t round)
{
    for (unsigned spins = 0; released != round; spins++)
        if (spins % 64 == 63)
            sched_yield();
}

/* The last to arrive looks at the round before, and lets all go. */
static void meet(uint32_t round)
{
    if (__atomic_add_fetch(&arrived, 1, __ATOMIC_SEQ_CST) != current->threads) {
        wait_for(round);
        return;
    }
    static struct timespec start;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (round == 1)
        start = now;
    else
        bad += current->forbidden();
    rounds = round - 1;
    at.x = at.y = 0;
    memset((void *)(uintptr_t)result, 0, sizeof(result));
    double elapsed = (double)(now.tv_sec - start.tv_sec) + (double)(now.tv_nsec - start.tv_nsec) / 1e9;
    over = round > ROUNDS || elapsed > SECONDS;
    arrived = 0;
    __atomic_store_n(&released, round, __ATOMIC_SEQ_CST);
}

static void *litmus_thread(void *opaque)
{
    void (*run)(void) = current->run[(uintptr_t)opaque];
    for (uint32_t round = 1;; round++) {
        meet(round);
        if (over)
            return NULL;
        run();
    }
}

static void litmus(const Litmus *l)
{
    pthread_t thread[THREADS_MAX];
    current = l;
    arrived = released = bad = rounds = 0;
    over = false;
    for (uintptr_t i = 0; i < l->threads; i++)
        CHECK(pthread_create(&thread[i], NULL, litmus_thread, (void *)i) == 0);
    for (unsigned i = 0; i < l->threads; i++)
        pthread_join(thread[i], NULL);
    printf("%s: %u rounds, forbidden outcome %u times\n", l->name, rounds, bad);
    CHECK_EQUAL(bad, 0);
    CHECK(rounds > 10);
}

/* ---- atomicity ---- */

#define COUNTS 20000u
static uint8_t *area; /* two pages */
static volatile uint32_t spin_lock, guarded;

#define LOCKED_INC(place) __asm__ volatile("lock incl %0" : "+m"(*(uint32_t *)(void *)(place)) : : "cc", "memory")

static void *counter(void *opaque)
{
    for (unsigned i = 0; i < COUNTS; i++) {
        uint32_t one = 1, old = 1;
        LOCKED_INC(area);
        LOCKED_INC(area + 64 - 2);
        if (i % 16 == 0)
            LOCKED_INC(area + 4096 - 2);
        __asm__ volatile("lock xaddl %0, %1" : "+r"(one), "+m"(*(uint32_t *)(void *)(area + 128)) : : "cc", "memory");
        do {
            old = 1;
            __asm__ volatile("xchgl %0, %1" : "+r"(old), "+m"(spin_lock) : : "memory");
            if (old)
                sched_yield();
        } while (old);
        guarded = guarded + 1;
        spin_lock = 0;
    }
    return opaque;
}

static uint32_t word(unsigned offset)
{
    uint32_t v;
    memcpy(&v, area + offset, 4);
    return v;
}

static void atomicity(void)
{
    pthread_t other;
    area = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(pthread_create(&other, NULL, counter, NULL) == 0);
    counter(NULL);
    pthread_join(other, NULL);
    CHECK_EQUAL(word(0), 2 * COUNTS);
    CHECK_EQUAL(word(62), 2 * COUNTS);
    CHECK_EQUAL(word(4094), 2 * ((COUNTS + 15) / 16));
    CHECK_EQUAL(word(128), 2 * COUNTS);
    CHECK_EQUAL(guarded, 2 * COUNTS);
}

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (unsigned i = 0; i < sizeof(tests) / sizeof(tests[0]); i++)
        litmus(&tests[i]);
    atomicity();
    return checks_end("litmus");
}
