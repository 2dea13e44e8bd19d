/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One address space that changes under code that runs: protections, moves, large pages, many windows. */
#include "mirror.h"

#include <sys/personality.h>
#include <sys/syscall.h>

#define AREA 0x40000000000ull
#define USER 4u   /* bits of a page fault's error code */
#define WRITE 2u
#define PRESENT 1u

#define VALUE(p, i) (((volatile uint64_t *)(p))[i])

static void faults(int number, uint64_t at, uint64_t error, int code, int line)
{
    bool ok = number == SIGSEGV && fault_address == at && fault_error == error && fault_code == code;
    if (!ok)
        printf("  signal %d address %llx (not %llx) error %llu (not %llu) code %d (not %d)\n", number,
               (unsigned long long)fault_address, (unsigned long long)at, (unsigned long long)fault_error,
               (unsigned long long)error, fault_code, code);
    check_at(ok, "the right fault", line);
}
#define FAULTS(try, at, error, code) faults((try), (uint64_t)(at), (error), (code), __LINE__)

static void touch(uint8_t *p, unsigned pages)
{
    for (unsigned i = 0; i < pages; i++) {
        VALUE(p + i * PAGE, 0) = i + 1;
        VALUE(p + i * PAGE, 511) += VALUE(p + i * PAGE, 0);
    }
}

static void protections(void)
{
    for (unsigned round = 0; round < 20; round++) {
        uint8_t *p = map_at(AREA, 16 * PAGE, PROT_READ | PROT_WRITE, 0);
        touch(p, 16);
        warm(round ? 2 : 40);
        mprotect(p + 4 * PAGE, PAGE, PROT_READ);
        CHECK(try_read(p + 4 * PAGE, NULL) == 0);
        FAULTS(try_write(p + 4 * PAGE, 1), p + 4 * PAGE, USER | WRITE | PRESENT, SEGV_ACCERR);
        CHECK(VALUE(p + 4 * PAGE, 0) == 5 && try_write(p + 3 * PAGE, 9) == 0 && try_write(p + 5 * PAGE, 9) == 0);
        FAULTS(try_write(p + 4 * PAGE - 4, 1), p + 4 * PAGE, USER | WRITE | PRESENT, SEGV_ACCERR);
        mprotect(p + 6 * PAGE, PAGE, PROT_NONE);
        FAULTS(try_read(p + 6 * PAGE + 8, NULL), p + 6 * PAGE + 8, USER, SEGV_ACCERR);
        FAULTS(try_read(p + 6 * PAGE - 1, NULL), p + 6 * PAGE, USER, SEGV_ACCERR);
        mprotect(p + 4 * PAGE, 3 * PAGE, PROT_READ | PROT_WRITE);
        CHECK(try_write(p + 4 * PAGE, 77) == 0 && VALUE(p + 4 * PAGE, 0) == 77 && VALUE(p + 6 * PAGE, 0) == 7);
        munmap(p + 8 * PAGE, 2 * PAGE);
        FAULTS(try_read(p + 8 * PAGE, NULL), p + 8 * PAGE, USER, SEGV_MAPERR);
        FAULTS(try_write(p + 9 * PAGE, 1), p + 9 * PAGE, USER | WRITE, SEGV_MAPERR);
        uint8_t *q = mremap(p, 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, p + 64 * PAGE);
        CHECK(q == p + 64 * PAGE && VALUE(q, 0) == 1 && VALUE(q + PAGE, 0) == 2);
        FAULTS(try_read(p, NULL), p, USER, SEGV_MAPERR);
        VALUE(q, 3) = 5;
        madvise(q, 2 * PAGE, MADV_DONTNEED);
        CHECK(VALUE(q, 0) == 0 && VALUE(q, 3) == 0 && VALUE(q + PAGE, 0) == 0 && VALUE(q + 2 * PAGE, 0) == 3);
        munmap(p, 128 * PAGE);
        for (unsigned i = 0; i < 128; i += 9)
            CHECK(try_read(p + i * PAGE, NULL) == SIGSEGV);
    }
}

/* What is mapped anew at an address is new, again and again. */
static void reuse(void)
{
    warm(40);
    for (unsigned i = 0; i < 300; i++) {
        volatile uint64_t *p = map_at(AREA, 4 * PAGE, PROT_READ | PROT_WRITE, 0);
        uint64_t sum = 0;
        for (unsigned j = 0; j < 4 * PAGE / 8; j += 64)
            sum += p[j];
        CHECK(sum == 0);
        for (unsigned j = 0; j < 4 * PAGE / 8; j += 64)
            p[j] = i + 1;
        for (unsigned j = 0; j < 4 * PAGE / 8; j += 64)
            sum += p[j];
        CHECK(sum == 32 * (i + 1));
        munmap((void *)p, 4 * PAGE);
        if (i % 50 == 0)
            warm(20);
    }
}

static void files(void)
{
    int fd = memfd_create("space", 0);
    CHECK(ftruncate(fd, 8 * PAGE) == 0);
    uint8_t *a = mmap((void *)AREA, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
    uint8_t *b = mmap((void *)(AREA + (1 << 24)), 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
    uint8_t *c = mmap((void *)(AREA + (2 << 24)), 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, 0);
    warm(40);
    for (unsigned i = 0; i < 200; i++) {
        VALUE(a, i) = i * 3 + 1;
        CHECK(VALUE(b, i) == i * 3 + 1);
        CHECK(VALUE(c + PAGE * 2, i) == 0);
    }
    VALUE(c, 0) = 1234; /* its own page now */
    VALUE(a, 0) = 5;
    CHECK(VALUE(c, 0) == 1234 && VALUE(b, 0) == 5 && VALUE(c, 1) == 4);
    VALUE(a, 1) = 6;
    CHECK(VALUE(c, 1) == 4);
    uint64_t v = 99;
    CHECK(pwrite(fd, &v, 8, PAGE) == 8);
    CHECK(VALUE(a + PAGE, 0) == 99 && VALUE(b + PAGE, 0) == 99 && VALUE(c + PAGE, 0) == 99);
    CHECK(pread(fd, (void *)(c + PAGE), 8, 0) == 8);
    CHECK(VALUE(c + PAGE, 0) == 5 && VALUE(a + PAGE, 0) == 99);
    CHECK(ftruncate(fd, 4 * PAGE) == 0);
    CHECK(try_read(a + 5 * PAGE, NULL) == SIGBUS && try_write(b + 4 * PAGE, 1) == SIGBUS);
    CHECK(try_read(a + 3 * PAGE, NULL) == 0);
    close(fd);
}

static void large(void)
{
    uint8_t *p = map_at(AREA, 16 << 20, PROT_READ | PROT_WRITE, 0);
    madvise(p, 16 << 20, MADV_HUGEPAGE);
    warm(40);
    for (unsigned i = 0; i < 4096; i++)
        VALUE(p + i * PAGE, 0) = i;
    mprotect(p + 512 * PAGE + 7 * PAGE, PAGE, PROT_READ);
    CHECK(try_write(p + 519 * PAGE, 1) == SIGSEGV);
    CHECK(try_write(p + 520 * PAGE, 520) == 0 && try_write(p + 518 * PAGE, 518) == 0);
    madvise(p + 1030 * PAGE, PAGE, MADV_DONTNEED);
    CHECK(VALUE(p + 1030 * PAGE, 0) == 0 && VALUE(p + 1031 * PAGE, 0) == 1031);
    munmap(p + 1600 * PAGE, PAGE);
    CHECK(try_read(p + 1600 * PAGE, NULL) == SIGSEGV && VALUE(p + 1601 * PAGE, 0) == 1601);
    pid_t child = fork();
    if (child == 0) {
        for (unsigned i = 2048; i < 2600; i++)
            VALUE(p + i * PAGE, 0) = 0;
        _exit(0);
    }
    int status;
    waitpid(child, &status, 0);
    for (unsigned i = 0; i < 4096; i++)
        if (i != 1030 && i != 1600)
            CHECK(VALUE(p + i * PAGE, 0) == i);
    uint8_t *q = mremap(p + 2048 * PAGE, 2 << 20, 2 << 20, MREMAP_MAYMOVE | MREMAP_FIXED, p + (64 << 20));
    CHECK(VALUE(q + 5 * PAGE, 0) == 2053 && try_read(p + 2048 * PAGE, NULL) == SIGSEGV);
}

static uint64_t stack_deep(unsigned n)
{
    volatile uint64_t here[256];
    here[0] = n;
    here[255] = n;
    return n ? stack_deep(n - 1) + here[0] + here[255] : 0;
}

static void stack_growth(void)
{
    warm(40);
    CHECK(stack_deep(2000) == 2000ull * 2001);
    CHECK(stack_deep(3000) == 3000ull * 3001);
}

/* A part of each of many windows. */
static void windows(void)
{
    enum { N = 100 };
    uint8_t *p[N];
    warm(40);
    for (unsigned i = 0; i < N; i++) {
        p[i] = map_at(0x10000000000ull * (i + 3) + PAGE * i, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_FIXED_NOREPLACE);
        CHECK(p[i] != MAP_FAILED);
        VALUE(p[i], 0) = i;
        if (i == 2 || i == 5)
            warm(20);
    }
    double start = now();
    for (unsigned round = 0; round < 50; round++)
        for (unsigned i = 0; i < N; i++) {
            CHECK(VALUE(p[i], 0) == i + round);
            VALUE(p[i], 0)++;
        }
    fprintf(stderr, "TIME windows %.3f\n", now() - start);
    for (unsigned i = 0; i < N; i++) {
        munmap(p[i], 2 * PAGE);
        CHECK(try_read(p[i], NULL) == SIGSEGV);
    }
}

/* More pages in pieces than an emulator's host may map. */
static void scattered(void)
{
    enum { N = 60000, STEP = 3 };
    uint8_t *p = map_at(AREA, (size_t)N * STEP * PAGE, PROT_READ | PROT_WRITE, MAP_NORESERVE);
    warm(40);
    double start = now();
    for (unsigned round = 0; round < 3; round++)
        for (unsigned i = 0; i < N; i++) {
            if (VALUE(p + (size_t)i * STEP * PAGE, 1) != round)
                CHECK(!"lost");
            VALUE(p + (size_t)i * STEP * PAGE, 1)++;
        }
    fprintf(stderr, "TIME scattered %.3f\n", now() - start);
    for (unsigned i = 0; i < N; i += 1000) {
        mprotect(p + (size_t)i * STEP * PAGE, PAGE, PROT_NONE);
        CHECK(try_read(p + (size_t)i * STEP * PAGE, NULL) == SIGSEGV);
    }
}

static void kernel_writes(void)
{
    int fds[2];
    uint8_t *p = map_at(AREA, 4 * PAGE, PROT_READ | PROT_WRITE, 0);
    CHECK(pipe(fds) == 0);
    warm(40);
    for (uint64_t i = 0; i < 200; i++) {
        VALUE(p, 0) = i;
        CHECK(write(fds[1], p, 4096) == 4096);
        CHECK(read(fds[0], p + 3 * PAGE / 2, 4096) == 4096);
        CHECK(VALUE(p + 3 * PAGE / 2, 0) == i);
        VALUE(p + 3 * PAGE / 2, 0) = 0;
    }
    mprotect(p + PAGE, PAGE, PROT_READ);
    CHECK(write(fds[1], p, 8) == 8 && read(fds[0], p + PAGE, 8) == -1 && errno == EFAULT);
}

/* Code that is rewritten, through its own mapping or another one. */
static void jit(void)
{
    int fd = memfd_create("jit", 0);
    CHECK(ftruncate(fd, PAGE) == 0);
    uint8_t *both = map_at(AREA, 2 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, 0);
    uint8_t *w = mmap((void *)(AREA + (1 << 24)), PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
    uint8_t *x = mmap((void *)(AREA + (2 << 24)), PAGE, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_FIXED, fd, 0);
    static const uint8_t code[] = {0xb8, 0, 0, 0, 0, 0xc3};
    warm(40);
    for (uint32_t i = 0; i < 1000; i++) {
        memcpy(both + 128, code, 6);
        memcpy(both + 129, &i, 4);
        CHECK(((uint32_t (*)(void))(both + 128))() == i);
        memcpy(w, code, 6);
        *(volatile uint32_t *)(w + 1) = i + 7;
        CHECK(((uint32_t (*)(void))x)() == i + 7);
        VALUE(both + 1024, i % 64) += i; /* data beside code */
        CHECK(VALUE(both + 1024, i % 64) >= i);
        if (i % 100 == 0)
            warm(5);
    }
    /* A loop that counts in its own page. */
    static const uint8_t loop[] = {0x48, 0xff, 0x07, 0xff, 0xce, 0x75, 0xf9, 0xc3}; /* inc (%rdi); dec %esi; jnz; ret */
    memcpy(both + 512, loop, sizeof(loop));
    VALUE(both, 100) = 0;
    ((void (*)(void *, unsigned))(both + 512))(both + 800, 3000);
    CHECK(VALUE(both, 100) == 3000);
}

static uint64_t spin_sum(volatile uint64_t *p, unsigned n)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < n; i++)
        sum += p[i % 512];
    return sum;
}

static void no_aslr(void)
{
    if (personality(0xffffffff) & ADDR_NO_RANDOMIZE) {
        warm(40);
        uint64_t here = 0;
        CHECK(spin_sum((volatile uint64_t *)map_at(AREA, PAGE, PROT_READ, 0), 10000) == 0);
        CHECK((uint64_t)&here > 0x7ffffff00000);
        return;
    }
    personality(ADDR_NO_RANDOMIZE);
    pid_t child = fork();
    if (child == 0) {
        execl("/proc/self/exe", "mirror", "no aslr", NULL);
        _exit(1);
    }
    int status;
    waitpid(child, &status, 0);
    CHECK(status == 0);
}

/* Maps, writes and unmaps all the time: what that costs is printed, to be compared between engines. */
static void churn(void)
{
    warm(40);
    double start = now();
    for (unsigned i = 0; i < 12000; i++) {
        volatile uint64_t *p = map_at(AREA, 8 * PAGE, PROT_READ | PROT_WRITE, 0);
        for (unsigned j = 0; j < 8; j++)
            p[j * 512] = 1;
        munmap((void *)p, 8 * PAGE);
    }
    printf("TIME churn %.3f\n", now() - start);
}

const Case space_cases[] = {
    {"protections", protections}, {"reuse", reuse}, {"files", files}, {"large", large}, {"stack", stack_growth},
    {"windows", windows}, {"scattered", scattered}, {"kernel writes", kernel_writes}, {"jit", jit},
    {"no aslr", no_aslr}, {"churn", churn}, {NULL, NULL},
};
