/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Arbitrary instruction bytes on the software CPU. The first byte chooses the mode (64-bit ring 3
 * and ring 0, compatibility, 32-bit, 16-bit protected, real), the second seeds registers,
 * the rest is code. Faults lead to a handler that ends the run with an OUT; code that loops or
 * halts is kicked out by a timer.
 */
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "vcpu/engine.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define RAM_SIZE (2u << 20)
#define RUN_MS 2
#define PORT_END 0x80

/* Guest physical memory, identity mapped. The interrupt vectors of real mode are at 0. */
enum {
    PML4 = 0x1000, PDPT = 0x2000, PD = 0x3000, GDT = 0x6000, IDT64 = 0x7000, IDT32 = 0x8000,
    TSS = 0x9000, HANDLER = 0xa000, CODE = 0x10000, STACK = 0x20000, DATA = 0x30000,
};
enum { SEL_CODE64 = 8, SEL_DATA = 0x10, SEL_CODE32 = 0x18, SEL_USER64 = 0x23, SEL_USER_DATA = 0x2b,
       SEL_USER32 = 0x33, SEL_TSS = 0x38, SEL_CODE16 = 0x48 };

static uint8_t *ram;
static VcpuVm *vm;
static Vcpu *vcpu;
static timer_t timer;
static _Atomic bool expired, ended;

static uint64_t port_read(void *opaque, unsigned index, uint16_t port, unsigned size)
{
    return ~0ull;
}

static void port_write(void *opaque, unsigned index, uint16_t port, unsigned size, uint64_t value)
{
    if (port == PORT_END) {
        ended = true;
        vcpu_engine_soft.kick(vcpu);
    }
}

static uint64_t mmio_read(void *opaque, unsigned index, uint64_t gpa, unsigned size)
{
    return ~0ull;
}

static void mmio_write(void *opaque, unsigned index, uint64_t gpa, unsigned size, uint64_t value)
{
}

static int interrupt_acknowledge(void *opaque, unsigned index)
{
    return -1;
}

static uint64_t cr8_read(void *opaque, unsigned index)
{
    return 0;
}

static void cr8_write(void *opaque, unsigned index, uint64_t value)
{
}

static bool apic_msr_read(void *opaque, unsigned index, uint32_t msr, uint64_t *value)
{
    return false;
}

static bool apic_msr_write(void *opaque, unsigned index, uint32_t msr, uint64_t value)
{
    return false;
}

static void on_timer(int number)
{
    int saved = errno;
    expired = true;
    vcpu_engine_soft.kick(vcpu);
    errno = saved;
}

static void fail(GError *err)
{
    fprintf(stderr, "soft-instructions: %s\n", err ? err->message : "cannot set up");
    abort();
}

static void put64(unsigned at, uint64_t value)
{
    memcpy(ram + at, &value, 8);
}

static void gates(void)
{
    for (unsigned i = 0; i < 256; i++) {
        uint64_t low = (HANDLER & 0xffff) | 0xee0000000000ull | (uint64_t)(HANDLER >> 16) << 48;
        put64(IDT64 + i * 16, low | SEL_CODE64 << 16);
        put64(IDT64 + i * 16 + 8, 0);
        put64(IDT32 + i * 8, low | SEL_CODE32 << 16);
        ram[i * 4] = HANDLER & 0xff; /* IVT */
        ram[i * 4 + 1] = HANDLER >> 8 & 0xff;
    }
}

static void memory_reset(void)
{
    static const uint8_t handler[] = {0xe6, PORT_END, 0xeb, 0xfc}; /* 1: out %al,$0x80; jmp 1b */
    memset(ram, 0, DATA + 0x10000);
    gates();
    put64(PML4, PDPT | 7);
    put64(PDPT, PD | 7);
    put64(PD, 0x87);
    put64(GDT + SEL_CODE64, 0x00af9b000000ffff);
    put64(GDT + SEL_DATA, 0x00cf93000000ffff);
    put64(GDT + SEL_CODE32, 0x00cf9b000000ffff);
    put64(GDT + (SEL_USER64 & ~3), 0x00affb000000ffff);
    put64(GDT + (SEL_USER_DATA & ~3), 0x00cff3000000ffff);
    put64(GDT + (SEL_USER32 & ~3), 0x00cffb000000ffff);
    put64(GDT + SEL_TSS, 0x00008b0000000067 | (uint64_t)TSS << 16);
    put64(GDT + SEL_TSS + 8, 0);
    put64(GDT + SEL_CODE16, 0x000f9b000000ffff);
    put64(TSS + 4, STACK + 0x8000); /* RSP0; ESP0 and SS0 of the 32-bit format */
    ram[TSS + 8] = SEL_DATA;
    memcpy(ram + HANDLER, handler, sizeof(handler));
}

static void set_segment(VcpuSegment *s, uint16_t selector, uint32_t attr, uint32_t limit)
{
    *s = (VcpuSegment){.selector = selector, .attr = attr, .limit = limit};
}

static void data_segments(VcpuState *s, uint16_t selector, uint32_t attr, uint32_t limit)
{
    for (unsigned i = 0; i < SEG_COUNT; i++)
        if (i != SEG_CS)
            set_segment(&s->seg[i], selector, attr, limit);
}

static void long_mode(VcpuState *s, bool user, bool compatibility)
{
    s->cr0 = 0x80050033;
    s->cr4 = 0x406a0 & ~0x80u;
    s->efer = 0xd01;
    s->xcr0 = 7;
    s->cr3 = PML4;
    s->idtr = (VcpuTable){IDT64, 0xfff};
    if (user)
        set_segment(&s->seg[SEG_CS], compatibility ? SEL_USER32 : SEL_USER64,
                    compatibility ? 0xc0fb : 0xa0fb, 0xffffffff);
    else
        set_segment(&s->seg[SEG_CS], compatibility ? SEL_CODE32 : SEL_CODE64,
                    compatibility ? 0xc09b : 0xa09b, 0xffffffff);
    data_segments(s, user ? SEL_USER_DATA : SEL_DATA, user ? 0xc0f3 : 0xc093, 0xffffffff);
}

static void protected_mode(VcpuState *s, bool wide)
{
    s->cr0 = 0x33;
    s->cr4 = 0x600;
    s->idtr = (VcpuTable){IDT32, 0x7ff};
    set_segment(&s->seg[SEG_CS], wide ? SEL_CODE32 : SEL_CODE16, wide ? 0xc09b : 0x009b,
                wide ? 0xffffffff : 0xfffff);
    data_segments(s, SEL_DATA, 0xc093, 0xffffffff);
}

static void real_mode(VcpuState *s)
{
    s->cr0 = 0x10;
    s->idtr = (VcpuTable){0, 0x3ff};
    set_segment(&s->seg[SEG_CS], CODE >> 4, 0x9b, 0xffff);
    s->seg[SEG_CS].base = CODE;
    data_segments(s, 0, 0x93, 0xffff);
}

static void initial_state(VcpuState *s, unsigned mode, uint64_t seed)
{
    vcpu_state_reset(s, 0);
    s->gdtr = (VcpuTable){GDT, 0x4f};
    set_segment(&s->tr, SEL_TSS, 0x8b, 0x67);
    s->rflags = 0x202;
    s->rip = CODE;
    switch (mode % 8) {
    case 0:
    case 1:
    case 2:
    case 3:
        long_mode(s, mode & 1, mode & 2);
        break;
    case 4:
    case 5:
        protected_mode(s, mode & 1);
        break;
    default:
        real_mode(s);
        s->rip = 0;
    }
    for (unsigned i = 0; i < 16; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        s->gpr[i] = seed >> 62 ? DATA + (seed >> 40 & 0xffff) : seed;
        if (mode % 8 >= 2)
            s->gpr[i] = (uint32_t)s->gpr[i];
    }
    s->gpr[GPR_RSP] = mode % 8 >= 6 ? 0xf000 : STACK;
}

static void finish(void)
{
    timer_delete(timer);
    vcpu_engine_soft.vcpu_free(vcpu);
    vcpu_engine_soft.vm_free(vm);
}

static void start(void)
{
    static const VcpuBus bus = {
        .port_read = port_read, .port_write = port_write, .mmio_read = mmio_read,
        .mmio_write = mmio_write, .interrupt_acknowledge = interrupt_acknowledge,
        .cr8_read = cr8_read, .cr8_write = cr8_write, .apic_msr_read = apic_msr_read,
        .apic_msr_write = apic_msr_write,
    };
    VcpuVmConfig config = {.n_vcpus = 1, .bus = &bus};
    GError *err = NULL;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR2};
    struct sigaction action = {.sa_handler = on_timer, .sa_flags = SA_RESTART | SA_ONSTACK};
    ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    vm = ram == MAP_FAILED ? NULL : vcpu_engine_soft.vm_new(&config, &err);
    VcpuRamSlot slot = {.gpa = 0, .size = RAM_SIZE, .hva = ram};
    if (!vm || !vcpu_engine_soft.set_ram(vm, 0, &slot, &err))
        fail(err);
    vcpu = vcpu_engine_soft.vcpu_new(vm, 0, &err);
    if (!vcpu || timer_create(CLOCK_MONOTONIC, &event, &timer) || sigaction(SIGUSR2, &action, NULL))
        fail(err);
    atexit(finish);
}

static void run(void)
{
    struct itimerspec arm = {.it_value.tv_nsec = RUN_MS * 1000000}, disarm = {0};
    GError *err = NULL;
    expired = ended = false;
    timer_settime(timer, 0, &arm, NULL);
    while (!expired && !ended) {
        VcpuExit reason = vcpu_engine_soft.run(vcpu, &err);
        if (reason != VCPU_EXIT_KICK)
            break;
    }
    timer_settime(timer, 0, &disarm, NULL);
    g_clear_error(&err);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static VcpuState state;
    GError *err = NULL;
    if (!vcpu)
        start();
    if (size < 3 || size > 4096)
        return 0;
    memory_reset();
    memcpy(ram + CODE, data + 2, size - 2);
    ram[CODE + size - 2] = 0xe6; /* out %al,$0x80 */
    ram[CODE + size - 1] = PORT_END;
    vcpu_engine_soft.ram_dirty(vm, 0, RAM_SIZE);
    initial_state(&state, data[0], data[1]);
    if (!vcpu_engine_soft.set_state(vcpu, &state, &err))
        fail(err);
    run();
    if (!vcpu_engine_soft.get_state(vcpu, &state, &err))
        fail(err);
    return 0;
}
