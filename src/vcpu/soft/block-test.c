/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The block cache with guests that change what it holds: self-modifying code, remapped pages,
 * instructions across pages, a cache that is too small, writes by devices, constant kicks.
 */
#include <pthread.h>
#include <sys/mman.h>

#include "vcpu/soft/cpu.h"

#define RAM_SIZE (4u << 20)
#define TABLES 0x10000 /* page tables: PML4, PDPT, PD, one PT for the first 2 MiB */
#define PT (TABLES + 0x3000)
#define CODE 0x100000
#define DONE_PORT 0xf4

typedef struct Guest {
    VcpuVm *vm;
    Vcpu *vcpu;
    VcpuBus bus;
    uint8_t *ram;
    bool done;
    VcpuState state;
} Guest;

/* Guest code: position independent; ends with OUT to DONE_PORT. */
#define GUEST_CODE(name, body)                                                                     \
    extern const uint8_t name##_start[], name##_end[];                                             \
    __asm__(".pushsection .rodata\n" #name "_start:\n" body                                        \
            "\nmov $0xf4, %dx\nout %al, %dx\n99: jmp 99b\n" #name "_end:\n.popsection")
#define LOAD(guest, name) memcpy((guest)->ram + CODE, name##_start, (size_t)(name##_end - name##_start))

static void port_write(void *opaque, unsigned vcpu, uint16_t port, unsigned size, uint64_t value)
{
    Guest *g = opaque;

    if (port == DONE_PORT) {
        g->done = true;
        vcpu_engine_soft.kick(g->vcpu);
    }
}

static uint64_t read_nothing(void *opaque, unsigned vcpu, uint64_t gpa, unsigned size)
{
    return ~(uint64_t)0;
}

static void write_nothing(void *opaque, unsigned vcpu, uint64_t gpa, unsigned size, uint64_t value)
{
}

static uint64_t read_port(void *opaque, unsigned vcpu, uint16_t port, unsigned size)
{
    return ~(uint64_t)0;
}

static int no_interrupt(void *opaque, unsigned vcpu)
{
    return -1;
}

static void tables_build(Guest *g)
{
    uint64_t *t = (uint64_t *)(g->ram + TABLES);

    t[0] = (TABLES + 0x1000) | 7;
    t[512] = (TABLES + 0x2000) | 7;
    t[1024] = PT | 7;
    t[1025] = 0x200000 | 0x87; /* 2 to 4 MiB as one page */
    for (unsigned i = 0; i < 512; i++)
        t[1536 + i] = (uint64_t)i << 12 | 7;
}

static Guest *guest_new(uint64_t cache_size)
{
    Guest *g = g_new0(Guest, 1);
    VcpuVmConfig config = { .n_vcpus = 1, .bus = &g->bus, .code_cache_size = cache_size };
    VcpuState *s = &g->state;

    g->bus = (VcpuBus){ .opaque = g, .port_read = read_port, .port_write = port_write,
                        .mmio_read = read_nothing, .mmio_write = write_nothing,
                        .interrupt_acknowledge = no_interrupt };
    g->ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    g_assert_true(g->ram != MAP_FAILED);
    g->vm = vcpu_engine_soft.vm_new(&config, NULL);
    VcpuRamSlot slot = { 0, RAM_SIZE, g->ram, false };
    g_assert_true(vcpu_engine_soft.set_ram(g->vm, 0, &slot, NULL));
    g->vcpu = vcpu_engine_soft.vcpu_new(g->vm, 0, NULL);
    g_assert_nonnull(g->vcpu);
    tables_build(g);
    g_assert_true(vcpu_engine_soft.get_state(g->vcpu, s, NULL));
    s->cr0 = 0x80000031;
    s->cr3 = TABLES;
    s->cr4 = 0x620;
    s->efer = 0x500;
    s->rip = CODE;
    s->gpr[GPR_RSP] = 0x80000;
    for (unsigned i = 0; i < SEG_COUNT; i++)
        s->seg[i] = (VcpuSegment){ 0, 0xffffffff, i == SEG_CS ? 0xa09b : 0xc093, 8 };
    return g;
}

static void guest_run(Guest *g)
{
    g_assert_true(vcpu_engine_soft.set_state(g->vcpu, &g->state, NULL));
    g->done = false;
    while (!g->done)
        g_assert_cmpint(vcpu_engine_soft.run(g->vcpu, NULL), ==, VCPU_EXIT_KICK);
    g_assert_true(vcpu_engine_soft.get_state(g->vcpu, &g->state, NULL));
}

static void guest_free(Guest *g)
{
    vcpu_engine_soft.vcpu_free(g->vcpu);
    vcpu_engine_soft.vm_free(g->vm);
    munmap(g->ram, RAM_SIZE);
    g_free(g);
}

/* Fibonacci by recursion: calls, returns and conditional branches. */
GUEST_CODE(fib, "mov $20, %edi\n"
                "call 1f\n"
                "jmp 9f\n"
                "1: cmp $2, %edi\n"
                "jb 2f\n"
                "push %rdi\n"
                "dec %edi\n"
                "call 1b\n"
                "pop %rdi\n"
                "push %rax\n"
                "sub $2, %edi\n"
                "call 1b\n"
                "pop %rcx\n"
                "add %rcx, %rax\n"
                "ret\n"
                "2: mov %edi, %eax\n"
                "ret\n"
                "9:");

static void test_calls(void)
{
    Guest *g = guest_new(0);

    LOAD(g, fib);
    guest_run(g);
    g_assert_cmpuint(g->state.gpr[GPR_RAX], ==, 6765);
    g_assert_cmphex(g->state.gpr[GPR_RSP], ==, 0x80000);
    guest_free(g);
}

/* Each iteration patches the immediate of the very next instruction: MOV $n, %eax. */
GUEST_CODE(patch_next, "xor %ebx, %ebx\n"
                       "mov $100, %ecx\n"
                       "1: mov %ecx, 2f+1(%rip)\n"
                       "2: mov $0x11223344, %eax\n"
                       "add %eax, %ebx\n"
                       "dec %ecx\n"
                       "jnz 1b\n");

/* The same by REP STOS and by a locked operation. */
GUEST_CODE(patch_string, "xor %ebx, %ebx\n"
                         "mov $100, %esi\n"
                         "1: mov %esi, %eax\n"
                         "lea 2f+1(%rip), %rdi\n"
                         "mov $1, %ecx\n"
                         "rep stosl\n"
                         "2: mov $0x11223344, %eax\n"
                         "add %eax, %ebx\n"
                         "lea 3f+1(%rip), %rdi\n"
                         "mov %esi, %eax\n"
                         "xchg %eax, (%rdi)\n"
                         "3: mov $0x11223344, %eax\n"
                         "sub %esi, %eax\n"
                         "add %eax, %ebx\n"
                         "dec %esi\n"
                         "jnz 1b\n");

static void test_patch_next(void)
{
    Guest *g = guest_new(0);

    LOAD(g, patch_next);
    guest_run(g);
    g_assert_cmpuint(g->state.gpr[GPR_RBX], ==, 5050);
    g->state.rip = CODE;
    LOAD(g, patch_string);
    vcpu_engine_soft.ram_dirty(g->vm, CODE, 4096);
    guest_run(g);
    g_assert_cmpuint(g->state.gpr[GPR_RBX], ==, 5050);
    guest_free(g);
}

/* A function in another page is rewritten between calls: MOV $n, %eax; RET at 0x180000. */
GUEST_CODE(patch_far, "xor %ebx, %ebx\n"
                      "mov $0x180000, %esi\n"
                      "movb $0xb8, (%rsi)\n"
                      "movb $0xc3, 5(%rsi)\n"
                      "mov $100, %ecx\n"
                      "1: mov %ecx, 1(%rsi)\n"
                      "call *%rsi\n"
                      "add %eax, %ebx\n"
                      "call *%rsi\n"
                      "add %eax, %ebx\n"
                      "dec %ecx\n"
                      "jnz 1b\n");

static void test_patch_far(void)
{
    Guest *g = guest_new(0);

    LOAD(g, patch_far);
    guest_run(g);
    g_assert_cmpuint(g->state.gpr[GPR_RBX], ==, 10100);
    guest_free(g);
}

static void put_function(Guest *g, uint64_t gpa, uint32_t value)
{
    g->ram[gpa] = 0xb8; /* mov $value, %eax; ret */
    memcpy(g->ram + gpa + 1, &value, 4);
    g->ram[gpa + 5] = 0xc3;
}

/*
 * Page 180 is mapped to frames 180 and 190 in turn, each with its own function at offset 0.
 * The function at 181ffe reaches into page 182, which alternates between frames 182 and 192.
 */
GUEST_CODE(remap, "xor %ebx, %ebx\n"
                  "mov $100, %ecx\n"
                  "1: xorq $0x10000, 0x13000 + 0x180 * 8\n"
                  "invlpg 0x180000\n"
                  "mov $0x180000, %esi\n"
                  "call *%rsi\n"
                  "add %eax, %ebx\n"
                  "xorq $0x10000, 0x13000 + 0x182 * 8\n"
                  "invlpg 0x182000\n"
                  "mov $0x181ffe, %esi\n"
                  "call *%rsi\n"
                  "add %eax, %ebx\n"
                  "dec %ecx\n"
                  "jnz 1b\n");

static void test_remap(void)
{
    Guest *g = guest_new(0);

    LOAD(g, remap);
    put_function(g, 0x180000, 1);
    put_function(g, 0x190000, 10);
    put_function(g, 0x181ffe, 0x100064);
    memcpy(g->ram + 0x192000, "\x20\x00\x00\xc3", 4); /* there it is mov $0x2064, %eax */
    guest_run(g);
    g_assert_cmpuint(g->state.gpr[GPR_RBX], ==, 50 * (1 + 10 + 0x100064 + 0x2064));
    guest_free(g);
}

/* 30000 different instructions in a row, twice, with the smallest cache. */
static void test_small_cache(void)
{
    Guest *g = guest_new(1);
    uint8_t *p = g->ram + 0x200000;
    uint32_t n = 30000;

    for (uint32_t i = 1; i <= n; i++) {
        *p++ = 0x81; /* add $i, %ebx */
        *p++ = 0xc3;
        memcpy(p, &i, 4);
        p += 4;
        if (i % 7 == 0) {
            *p++ = 0xeb; /* jmp .+2 */
            *p++ = 0;
        }
    }
    memcpy(p, "\xff\xc9\x75\x05\x66\xba\xf4\x00\xee\xb8\x00\x00\x20\x00\xff\xe0", 16);
    g->state.rip = 0x200000;
    g->state.gpr[GPR_RCX] = 3;
    guest_run(g);
    g_assert_cmpuint((uint32_t)g->state.gpr[GPR_RBX], ==, (uint32_t)(3u * (n / 2 * (n + 1))));
    guest_free(g);
}

/* What a device writes is seen in the next run, whatever was decoded and linked. */
static void test_device_write(void)
{
    Guest *g = guest_new(0);

    for (uint32_t i = 0; i < 20; i++) {
        put_function(g, 0x180000, i);
        vcpu_engine_soft.ram_dirty(g->vm, 0x180000, 6);
        memcpy(g->ram + CODE, "\xbe\x00\x00\x18\x00\xff\xd6\x66\xba\xf4\x00\xee\xeb\xfe", 14);
        g->state.rip = CODE;
        guest_run(g);
        g_assert_cmpuint(g->state.gpr[GPR_RAX], ==, i);
    }
    guest_free(g);
}

static void *kicker(void *data)
{
    Guest *g = data;

    while (!__atomic_load_n(&g->done, __ATOMIC_RELAXED)) {
        vcpu_engine_soft.kick(g->vcpu);
        g_usleep(20);
    }
    return NULL;
}

/* Interrupted at arbitrary block boundaries and within REP, the result is the same. */
GUEST_CODE(copy, "cld\n"
                 "mov $200, %ebp\n"
                 "1: mov $0x200000, %esi\n"
                 "mov $0x280003, %edi\n"
                 "mov $0x20000, %ecx\n"
                 "rep movsb\n"
                 "mov $0x200000, %esi\n"
                 "mov $0x280003, %edi\n"
                 "mov $0x8000, %ecx\n"
                 "repe cmpsl\n"
                 "jne 2f\n"
                 "add $1, %rbx\n"
                 "2: dec %ebp\n"
                 "jnz 1b\n");

static void test_kicks(void)
{
    Guest *g = guest_new(0);
    pthread_t thread;

    LOAD(g, copy);
    for (unsigned i = 0; i < 0x20000; i++)
        g->ram[0x200000 + i] = (uint8_t)(i * 7 + (i >> 8));
    g_assert_cmpint(pthread_create(&thread, NULL, kicker, g), ==, 0);
    guest_run(g);
    pthread_join(thread, NULL);
    g_assert_cmpuint(g->state.gpr[GPR_RBX], ==, 200);
    g_assert_cmpint(memcmp(g->ram + 0x200000, g->ram + 0x280003, 0x20000), ==, 0);
    guest_free(g);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/block/calls", test_calls);
    g_test_add_func("/block/patch-next", test_patch_next);
    g_test_add_func("/block/patch-far", test_patch_far);
    g_test_add_func("/block/remap", test_remap);
    g_test_add_func("/block/small-cache", test_small_cache);
    g_test_add_func("/block/device-write", test_device_write);
    g_test_add_func("/block/kicks", test_kicks);
    return g_test_run();
}
