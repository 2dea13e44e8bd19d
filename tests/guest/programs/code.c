/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Code that changes while it runs: in its own block and elsewhere, by all kinds of stores, mappings, other CPUs. */
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "check.h"

#define PAGE 4096u
typedef unsigned (*Code)(unsigned);

static uint8_t *code; /* two pages, readable, writable, executable */

static unsigned call(const uint8_t *at, unsigned argument)
{
    return ((Code)(uintptr_t)at)(argument);
}

/* mov $value, %eax; ret */
static void put_constant(uint8_t *at, uint32_t value)
{
    at[0] = 0xb8;
    memcpy(at + 1, &value, 4);
    at[5] = 0xc3;
}

static void own_block(void)
{
    static const uint8_t bytes[] = {0x40, 0x88, 0x3d, 1, 0, 0, 0, /* mov %dil, imm(%rip) */
                                    0xb8, 0xaa, 0, 0, 0,          /* mov $imm, %eax */
                                    0xc3};
    memcpy(code, bytes, sizeof(bytes));
    unsigned wrong = 0;
    for (unsigned i = 0; i < 300; i++)
        wrong += call(code, i) != (i & 0xff);
    CHECK_EQUAL(wrong, 0);
}

static void next_block(void)
{
    static const uint8_t bytes[] = {0x40, 0x88, 0x3d, 3, 0, 0, 0, 0xeb, 0, /* mov; jmp over nothing */
                                    0xb8, 0xaa, 0, 0, 0, 0xc3};
    memcpy(code, bytes, sizeof(bytes));
    unsigned wrong = 0;
    for (unsigned i = 0; i < 300; i++)
        wrong += call(code, i) != (i & 0xff);
    CHECK_EQUAL(wrong, 0);
}

/* A loop that changes its own first instruction each time around. */
static void own_loop(void)
{
    static const uint8_t bytes[] = {0x31, 0xc0,                    /* xor %eax, %eax */
                                    0xb9, 0, 0, 0, 0,              /* 1: mov $imm, %ecx */
                                    0x01, 0xc8,                    /* add %ecx, %eax */
                                    0xfe, 0x05, 0xf4, 0xff, 0xff, 0xff, /* incb imm(%rip) */
                                    0xff, 0xcf, 0x75, 0xef,        /* dec %edi; jnz 1b */
                                    0xc3};
    for (unsigned n = 1; n < 20; n++) {
        memcpy(code, bytes, sizeof(bytes));
        CHECK_EQUAL(call(code, n), n * (n - 1) / 2);
    }
}

/* Code writes over the code after it with a string and with a vector instruction. */
static void wide_stores(void)
{
    static const uint8_t string[] = {0x89, 0xf8,                               /* mov %edi, %eax */
                                     0x48, 0x8d, 0x3d, 8, 0, 0, 0,             /* lea 1f(%rip), %rdi */
                                     0xb9, 4, 0, 0, 0, 0xf3, 0xaa,             /* mov $4, %ecx; rep stosb */
                                     0xb8, 1, 2, 3, 4, 0xc3};                  /* mov $imm, %eax; 1 is imm */
    static const uint8_t vector[] = {0x66, 0x0f, 0x6e, 0xc7, 0x66, 0x0f, 0x70, 0xc0, 0, /* movd, pshufd $0 */
                                     0xf3, 0x0f, 0x7f, 0x05, 1, 0, 0, 0,       /* movdqu %xmm0, 1f(%rip) */
                                     0xb8, 1, 2, 3, 4,                         /* mov $imm, %eax */
                                     0xc3};
    for (unsigned i = 0; i < 200; i++) {
        memcpy(code, string, sizeof(string));
        CHECK_EQUAL(call(code, i), (i & 0xff) * 0x01010101u);
        memcpy(code, vector, sizeof(vector));
        /* Bytes after the immediate become the pattern, too: the next one is its low byte, a return. */
        CHECK_EQUAL(call(code, i << 8 | 0xc3), i << 8 | 0xc3);
    }
}

/* An instruction across a page end, with either part changed. */
static void across_pages(void)
{
    unsigned wrong = 0;
    for (unsigned split = 1; split < 6; split++)
        for (unsigned i = 0; i < 100; i++) {
            put_constant(code + PAGE - split, i * 0x01010101u);
            wrong += call(code + PAGE - split, 0) != i * 0x01010101u;
            code[PAGE - split + 1] ^= 0x55;
            wrong += call(code + PAGE - split, 0) != (i * 0x01010101u ^ 0x55);
            code[PAGE - split + 4] ^= 0x77;
            wrong += call(code + PAGE - split, 0) != (i * 0x01010101u ^ 0x77000055);
        }
    CHECK_EQUAL(wrong, 0);
}

/* Other pages come to lie at the same address, also under the second half of an instruction. */
static void remapped(void)
{
    int fd = memfd_create("code", 0);
    CHECK(ftruncate(fd, 3 * PAGE) == 0);
    uint8_t *all = mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    uint8_t *at = mmap(NULL, 2 * PAGE, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
    unsigned wrong = 0;
    put_constant(all + PAGE - 3, 0x11111111);
    for (unsigned page = 1; page < 3; page++) {
        all[page * PAGE] = all[page * PAGE + 1] = (uint8_t)(0x10 * page);
        all[page * PAGE + 2] = 0xc3;
        put_constant(all + page * PAGE + 64, page);
    }
    for (unsigned i = 0; i < 200; i++) {
        unsigned page = 1 + (i & 1);
        void *second = mmap(at + PAGE, PAGE, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_FIXED, fd, page * PAGE);
        CHECK(second != MAP_FAILED);
        wrong += call(at + PAGE - 3, 0) != (0x1111u | page << 20 | page << 28);
        wrong += call(at + PAGE + 64, 0) != page;
    }
    CHECK_EQUAL(wrong, 0);
    munmap(all, 3 * PAGE);
    munmap(at, 2 * PAGE);
    close(fd);
}

/* The same memory executed at two addresses, and written at a third. */
static void two_addresses(void)
{
    static const uint8_t where[] = {0x48, 0x8d, 0x05, 0xf9, 0xff, 0xff, 0xff, 0xc3}; /* lea itself(%rip), %rax; ret */
    int fd = memfd_create("code", 0);
    CHECK(ftruncate(fd, PAGE) == 0);
    uint8_t *writable = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    uint8_t *one = mmap(NULL, PAGE, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
    uint8_t *other = mmap(NULL, PAGE, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
    unsigned wrong = 0;
    memcpy(writable + 32, where, sizeof(where));
    for (unsigned i = 0; i < 300; i++) {
        put_constant(writable, i);
        wrong += call(one, 0) != i;
        wrong += call(other, 0) != i;
        wrong += call(one + 32, 0) != (uint32_t)(uintptr_t)(one + 32);
        wrong += call(other + 32, 0) != (uint32_t)(uintptr_t)(other + 32);
    }
    CHECK_EQUAL(wrong, 0);
    munmap(writable, PAGE);
    munmap(one, PAGE);
    munmap(other, PAGE);
    close(fd);
}

/* A child's copy is its own. */
static void copied_on_write(void)
{
    put_constant(code, 1);
    CHECK_EQUAL(call(code, 0), 1);
    pid_t child = fork();
    if (child == 0) {
        bool ok = call(code, 0) == 1;
        put_constant(code, 2);
        _exit(ok && call(code, 0) == 2 ? 7 : 8);
    }
    int status = 0;
    put_constant(code, 3);
    unsigned mine = call(code, 0);
    waitpid(child, &status, 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7);
    CHECK_EQUAL(mine, 3);
    CHECK_EQUAL(call(code, 0), 3);
}

/* A read() into code: the kernel writes it. */
static void written_by_kernel(void)
{
    int ends[2];
    unsigned wrong = 0;
    CHECK(pipe(ends) == 0);
    for (unsigned i = 0; i < 300; i++) {
        uint8_t bytes[6];
        put_constant(bytes, i);
        wrong += write(ends[1], bytes, 6) != 6 || read(ends[0], code, 6) != 6 || call(code, 0) != i;
    }
    CHECK_EQUAL(wrong, 0);
    close(ends[0]);
    close(ends[1]);
}

/* ---- cross-modifying code: the writer's CPU and the reader's (SDM vol. 3 9.1.3) ---- */

#define CROSS_ROUNDS 3000u
static volatile unsigned published;
static volatile bool reader_done;

static void *writer(void *opaque)
{
    for (unsigned i = 1; i <= CROSS_ROUNDS && !reader_done; i++) {
        __atomic_store_n((uint32_t *)(void *)(code + 68), i, __ATOMIC_SEQ_CST); /* the immediate, aligned */
        published = i;
        if (i % 16 == 0)
            sched_yield();
    }
    return opaque;
}

static void cross_modified(void)
{
    pthread_t thread;
    unsigned wrong = 0, seen = 0, changes = 0, last = 0;
    time_t start = time(NULL);
    put_constant(code + 67, 0);
    CHECK(pthread_create(&thread, NULL, writer, NULL) == 0);
    while (seen < CROSS_ROUNDS && time(NULL) - start < 30) {
        seen = published;
        unsigned a = 0, b, c = 0, d;
        __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d) : : "memory"); /* serializes */
        unsigned value = call(code + 67, 0);
        wrong += value < seen || value < last;
        changes += value != last;
        last = value;
    }
    reader_done = true;
    pthread_join(thread, NULL);
    CHECK_EQUAL(wrong, 0);
    CHECK(seen == CROSS_ROUNDS && changes >= 1);
    CHECK_EQUAL(call(code + 67, 0), CROSS_ROUNDS);
}

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    code = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(code != MAP_FAILED);
    own_block();
    next_block();
    own_loop();
    wide_stores();
    across_pages();
    remapped();
    two_addresses();
    copied_on_write();
    written_by_kernel();
    cross_modified();
    return checks_end("code");
}
