/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A guest to be debugged: functions that call each other, variables that change, vector registers,
 * user mode, a second processor. It turns round until somebody sets `finish`, and then switches itself off.
 */
#include <stdint.h>

#define APIC 0xfee00000u

void guest_main(void);
void second_main(void);
long factorial(long n);
void note(long value);
void vectors(void);
void user_work(void);
void user_call(void (*f)(void));

extern const char trampoline[], trampoline_end[];

volatile long rounds, result, watched, read_me = 77, finish, with_avx;
volatile long second_rounds, user_spins, user_rounds, user_value;
volatile unsigned char bytes[16];
const long constant = 0x1122334455667788;

__attribute__((noinline)) long factorial(long n)
{
    if (n < 2)
        return 1;
    return n * factorial(n - 1);
}

__attribute__((noinline)) void note(long value)
{
    watched = value;
    bytes[5] = (unsigned char)value;
}

/* At CPL 3, and long enough there for an engine to give user mode special treatment. */
__attribute__((noinline)) void user_work(void)
{
    for (long i = 0; i < 20000; i++)
        user_spins++;
    user_rounds++;
    user_value = user_rounds * 2;
}

static const uint64_t pattern[4] = {0x1111111111111111, 0x2222222222222222, 0x3333333333333333,
                                    0x4444444444444444};

/* xmm0 and, where there is AVX, ymm1 hold the pattern at vectors_loaded. */
__attribute__((noinline)) void vectors(void)
{
    __asm__ volatile("movdqu %0, %%xmm0" ::"m"(pattern) : "memory");
    if (with_avx)
        __asm__ volatile("vmovdqu %0, %%ymm1" ::"m"(pattern) : "memory");
    __asm__ volatile(".globl vectors_loaded\nvectors_loaded: nop" ::: "memory");
}

static void enable_avx(void)
{
    uint32_t a = 1, b, c = 0, d;
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    if ((c & (3u << 27 | 1u << 26)) == 0 || !(c >> 28 & 1) || !(c >> 26 & 1))
        return;
    __asm__ volatile("mov %%cr4, %%rax\n or $0x40000, %%rax\n mov %%rax, %%cr4\n"
                     "mov $7, %%eax\n xor %%edx, %%edx\n xor %%ecx, %%ecx\n xsetbv" ::
                         : "rax", "rcx", "rdx");
    with_avx = 1;
}

static void start_second(void)
{
    volatile uint32_t *apic = (volatile uint32_t *)(uintptr_t)APIC;
    char *to = (char *)0x8000;
    __asm__("" : "+r"(to));
    for (long i = 0; i < trampoline_end - trampoline; i++)
        to[i] = trampoline[i];
    apic[0xf0 / 4] = 0x1ff;
    apic[0x300 / 4] = 0xc4500; /* INIT, to all but self */
    apic[0x300 / 4] = 0xc4608; /* SIPI to 0x8000 */
}

__attribute__((noinline)) void second_main(void)
{
    for (;;) {
        second_rounds++;
        __asm__ volatile("pause");
    }
}

static void power_off(void)
{
    __asm__ volatile("outw %0, %1" ::"a"((uint16_t)(0x2000 | 5 << 10)), "Nd"((uint16_t)0x604));
}

void guest_main(void)
{
    enable_avx();
    start_second();
    for (;;) {
        rounds++;
        result = factorial(5);
        note(rounds * 3);
        result += read_me;
        vectors();
        user_call(user_work);
        if (finish)
            power_off();
    }
}
