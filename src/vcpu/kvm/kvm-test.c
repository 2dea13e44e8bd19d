/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The KVM engine with guests of a few instructions: they run on any /dev/kvm, hardware behind
 * it or not. Skipped visibly where there is none.
 */
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/error.h"
#include "vcpu/engine.h"
#include "vcpu/kvm/kvm-private.h"

#define RAM_SIZE 0x10000u
#define CODE     0x1000u

typedef struct Guest {
    VcpuBus bus;
    VcpuVm *vm;
    Vcpu *vcpu;
    uint8_t *ram;
    unsigned n_writes;
    uint16_t port[8];
    uint64_t value[8], mmio_gpa, mmio_value;
    int irq_fd; /* signalled when the guest writes to port 0x80 */
} Guest;

static uint64_t port_read(void *opaque, unsigned vcpu, uint16_t port, unsigned size)
{
    return 0x5a;
}

static void port_write(void *opaque, unsigned vcpu, uint16_t port, unsigned size, uint64_t value)
{
    Guest *g = opaque;
    if (g->n_writes < G_N_ELEMENTS(g->port)) {
        g->port[g->n_writes] = port;
        g->value[g->n_writes++] = value;
    }
    if (port == 0x80)
        g_assert_cmpint(eventfd_write(g->irq_fd, 1), ==, 0);
    if (port == 0xf4)
        g->vm->engine->kick(g->vcpu);
}

static uint64_t mmio_read(void *opaque, unsigned vcpu, uint64_t gpa, unsigned size)
{
    return 0x1234;
}

static void mmio_write(void *opaque, unsigned vcpu, uint64_t gpa, unsigned size, uint64_t value)
{
    Guest *g = opaque;
    g->mmio_gpa = gpa;
    g->mmio_value = value;
}

static bool guest_new_with(Guest *g, const X86CpuSpec *cpu)
{
    *g = (Guest){.bus = {.opaque = g,
                         .port_read = port_read,
                         .port_write = port_write,
                         .mmio_read = mmio_read,
                         .mmio_write = mmio_write}};
    g_autoptr(GError) err = NULL;
    VcpuVmConfig config = {.n_vcpus = 1, .bus = &g->bus, .cpu = cpu};
    g->vm = vcpu_engine_kvm.vm_new(&config, &err);
    if (!g->vm) {
        g_test_skip(err->message);
        return false;
    }
    g->ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    VcpuRamSlot slot = {.size = RAM_SIZE, .hva = g->ram};
    g_assert_true(vcpu_engine_kvm.set_ram(g->vm, 0, &slot, &err));
    g->vcpu = vcpu_engine_kvm.vcpu_new(g->vm, 0, &err);
    g_assert_no_error(err);
    return true;
}

static bool guest_new(Guest *g)
{
    return guest_new_with(g, NULL);
}

static void guest_free(Guest *g)
{
    vcpu_engine_kvm.vcpu_free(g->vcpu);
    vcpu_engine_kvm.vm_free(g->vm);
    munmap(g->ram, RAM_SIZE);
}

/* Puts @code at CODE in real mode and runs it until it writes to port 0xf4. */
static void guest_run(Guest *g, const uint8_t *code, size_t size)
{
    g_autoptr(GError) err = NULL;
    g_autofree VcpuState *state = g_new0(VcpuState, 1);
    memcpy(g->ram + CODE, code, size);
    g_assert_true(vcpu_engine_kvm.get_state(g->vcpu, state, &err));
    state->seg[SEG_CS].base = 0;
    state->seg[SEG_CS].selector = 0;
    state->rip = CODE;
    state->rflags = 2;
    state->activity = VCPU_RUNNING;
    g_assert_true(vcpu_engine_kvm.set_state(g->vcpu, state, &err));
    VcpuExit why = vcpu_engine_kvm.run(g->vcpu, &err);
    g_assert_no_error(err);
    g_assert_cmpint(why, ==, VCPU_EXIT_KICK);
}

static void test_ports(void)
{
    static const uint8_t code[] = {0xe4, 0x80, 0xfe, 0xc0, 0xe6, 0x81, 0xe6, 0xf4, 0xeb, 0xfe};
    Guest g; /* in al,80; inc al; out 81,al; out f4,al; jmp $ */
    if (!guest_new(&g))
        return;
    guest_run(&g, code, sizeof(code));
    g_assert_cmpuint(g.n_writes, ==, 2);
    g_assert_cmphex(g.port[0], ==, 0x81);
    g_assert_cmphex(g.value[0], ==, 0x5b);
    guest_free(&g);
}

/* What the engine gives to KVM (not every KVM heeds it). */
static uint32_t leaf_ecx(const X86CpuSpec *cpu, uint32_t leaf)
{
    uint32_t value = 0;
    Guest g;
    if (!guest_new_with(&g, cpu))
        return 0;
    const struct kvm_cpuid2 *all = kvm_vm_of(g.vcpu)->cpuid;
    for (unsigned i = 0; i < all->nent; i++)
        if (all->entries[i].function == leaf && all->entries[i].index == 0)
            value = all->entries[i].ecx;
    guest_free(&g);
    return value;
}

/* A model takes features out of what CPUID says, and leaves the rest; what KVM has not is refused. */
static void test_cpu_model(void)
{
    static const uint32_t cx16 = 1u << 13, not_v1 = 1u << 28 | 1u << 26 | 1u << 20 | 1u << 13 | 1u;
    Guest g;
    if (!guest_new(&g))
        return;
    guest_free(&g);
    g_autoptr(GError) err = NULL;
    g_autoptr(X86CpuSpec) v1 = x86_cpu_parse("x86-64-v1,check=off", NULL);
    g_autoptr(X86CpuSpec) less = x86_cpu_parse("max,cx16=disable", NULL);
    g_autoptr(X86CpuSpec) more = x86_cpu_parse("max,pcommit=require", NULL);
    uint32_t all = leaf_ecx(NULL, 1);
    g_assert_cmphex(all & cx16, ==, cx16); /* every x86-64 processor with virtualization has it */
    g_assert_cmphex(leaf_ecx(v1, 1), ==, all & leaf_ecx(v1, 1) & ~not_v1);
    g_assert_cmphex(leaf_ecx(less, 1), ==, all & ~cx16);
    VcpuVmConfig config = {.n_vcpus = 1, .bus = &g.bus, .cpu = more};
    g_assert_null(vcpu_engine_kvm.vm_new(&config, &err));
    g_assert_nonnull(strstr(err->message, "pcommit"));
}

static void test_mmio_and_doorbell(void)
{
    /* mov ax,[es:0]; mov [es:2],ax; mov [es:4],ax; out f4,al; jmp $, with ES at 0xa0000 */
    static const uint8_t code[] = {0xb8, 0x00, 0xa0, 0x8e, 0xc0, 0x26, 0xa1, 0x00, 0x00, 0x26, 0xa3,
                                   0x02, 0x00, 0x26, 0xa3, 0x04, 0x00, 0xe6, 0xf4, 0xeb, 0xfe};
    Guest g;
    if (!guest_new(&g))
        return;
    g_autoptr(GError) err = NULL;
    int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    g_assert_true(vcpu_engine_kvm.add_ioeventfd(g.vm, 0xa0004, 2, fd, &err));
    guest_run(&g, code, sizeof(code));
    g_assert_cmphex(g.mmio_gpa, ==, 0xa0002); /* the write to the doorbell never came here */
    g_assert_cmphex(g.mmio_value, ==, 0x1234);
    eventfd_t rung = 0;
    g_assert_cmpint(eventfd_read(fd, &rung), ==, 0);
    g_assert_cmpuint(rung, ==, 1);
    g_assert_true(vcpu_engine_kvm.del_ioeventfd(g.vm, 0xa0004, 2, fd, &err));
    close(fd);
    guest_free(&g);
}

static void test_dirty_log(void)
{
    static const uint8_t code[] = {0xb8, 0x00, 0x05, 0x8e, 0xc0, 0x26, 0xa2,
                                   0x00, 0x00, 0xe6, 0xf4, 0xeb, 0xfe}; /* writes 0x5000 */
    Guest g;
    if (!guest_new(&g))
        return;
    g_autoptr(GError) err = NULL;
    uint8_t bitmap[RAM_SIZE / 4096 / 8] = {0};
    g_assert_false(vcpu_engine_kvm.dirty_log_read(g.vm, 0, bitmap, sizeof(bitmap), &err));
    g_assert_error(err, LODGE_ERROR, LODGE_ERROR_STATE);
    g_clear_error(&err);
    g_assert_true(vcpu_engine_kvm.dirty_log_start(g.vm, 0, &err));
    guest_run(&g, code, sizeof(code));
    g_assert_true(vcpu_engine_kvm.dirty_log_read(g.vm, 0, bitmap, sizeof(bitmap), &err));
    g_assert_cmphex(bitmap[0], ==, 1u << 5);
    g_assert_true(vcpu_engine_kvm.dirty_log_stop(g.vm, 0, &err));
    guest_free(&g);
}

#define HANDLER (CODE + 0x100)
#define IDT 0x2000u
#define VECTOR 0x40u

/* Flat 32-bit protected mode at CODE, with one interrupt gate. */
static void enter_protected(Guest *g)
{
    g_autoptr(GError) err = NULL;
    g_autofree VcpuState *state = g_new0(VcpuState, 1);
    g_assert_true(vcpu_engine_kvm.get_state(g->vcpu, state, &err));
    for (unsigned i = 0; i < SEG_COUNT; i++)
        state->seg[i] = (VcpuSegment){.limit = UINT32_MAX, .attr = 0xc093, .selector = 0x10};
    state->seg[SEG_CS] = (VcpuSegment){.limit = UINT32_MAX, .attr = 0xc09b, .selector = 8};
    uint64_t gdt[] = {0, 0x00cf9b000000ffffull, 0x00cf93000000ffffull};
    memcpy(g->ram + 0x3000, gdt, sizeof(gdt));
    state->gdtr = (VcpuTable){.base = 0x3000, .limit = sizeof(gdt) - 1};
    uint64_t gate = 0x00008e0000080000ull | HANDLER;
    memcpy(g->ram + IDT + VECTOR * 8, &gate, sizeof(gate));
    state->idtr = (VcpuTable){.base = IDT, .limit = 0x7ff};
    state->cr0 |= 1;
    state->rip = CODE;
    state->rflags = 2;
    state->gpr[GPR_RSP] = 0x8000;
    state->activity = VCPU_RUNNING;
    g_assert_true(vcpu_engine_kvm.set_state(g->vcpu, state, &err));
}

/* A descriptor that the guest makes the host signal raises the MSI of its route. */
static void test_irqfd(void)
{
    static const uint8_t code[] = {0xc7, 0x05, 0xf0, 0x00, 0xe0, 0xfe, 0xff, 0x01, 0x00, 0x00,
                                   0xe6, 0x80, 0xfb, 0xf4, 0xeb, 0xfd};
    static const uint8_t handler[] = {0xb0, 0x07, 0xe6, 0xf4, 0xeb, 0xfe};
    Guest g; /* mov [0xfee000f0],1ff; out 80,al; sti; hlt; jmp -1; handler: out f4,7; jmp $ */
    if (!guest_new(&g))
        return;
    g_autoptr(GError) err = NULL;
    unsigned route = 0;
    g.irq_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    memcpy(g.ram + CODE, code, sizeof(code));
    memcpy(g.ram + HANDLER, handler, sizeof(handler));
    enter_protected(&g);
    g_assert_true(vcpu_engine_kvm.add_irqfd(g.vm, g.irq_fd, 0xfee00000, VECTOR, &route, &err));
    g_assert_cmpint(vcpu_engine_kvm.run(g.vcpu, &err), ==, VCPU_EXIT_KICK);
    g_assert_no_error(err);
    g_assert_cmpuint(g.n_writes, ==, 2);
    g_assert_cmphex(g.value[1], ==, 7);
    g_assert_true(vcpu_engine_kvm.del_irqfd(g.vm, g.irq_fd, route, &err));
    g_assert_false(vcpu_engine_kvm.del_irqfd(g.vm, g.irq_fd, route, &err));
    g_assert_error(err, LODGE_ERROR, LODGE_ERROR_INVALID);
    close(g.irq_fd);
    guest_free(&g);
}

static void test_state(void)
{
    Guest g;
    if (!guest_new(&g))
        return;
    g_autoptr(GError) err = NULL;
    g_autofree VcpuState *a = g_new0(VcpuState, 1), *b = g_new0(VcpuState, 1);
    g_assert_true(vcpu_engine_kvm.get_state(g.vcpu, a, &err));
    for (unsigned i = 0; i < 16; i++)
        a->gpr[i] = 0x1111111111111111ull * i;
    a->dr[0] = 0x4000;
    a->seg[SEG_FS].base = 0x12340;
    a->seg[SEG_FS].selector = 0x1234;
    a->cr2 = 0xdeadb000;
    for (unsigned i = 0; i < 16; i++)
        a->xsave[160 + i] = (uint8_t)(i + 1); /* XMM0 */
    a->xsave[512] |= 3;                       /* XSTATE_BV: x87, SSE */
    g_assert_true(vcpu_engine_kvm.set_state(g.vcpu, a, &err));
    g_assert_true(vcpu_engine_kvm.get_state(g.vcpu, b, &err));
    g_assert_cmpmem(a->gpr, sizeof(a->gpr), b->gpr, sizeof(b->gpr));
    g_assert_cmpmem(a->xsave + 160, 16, b->xsave + 160, 16);
    g_assert_cmphex(b->dr[0], ==, 0x4000);
    g_assert_cmphex(b->seg[SEG_FS].base, ==, 0x12340);
    g_assert_cmphex(b->cr2, ==, 0xdeadb000);
    g_assert_cmpuint(b->n_msr, >, 10);
    guest_free(&g);
}

/* Without hardware behind it, KVM knows neither INT3 nor data breakpoints. */
static bool has_hardware(void)
{
    g_autofree char *why = NULL;
    return vcpu_engine_kvm.probe(&why);
}

static VcpuDebugStop run_to_stop(Guest *g, const VcpuDebug *debug, uint64_t rip)
{
    g_autoptr(GError) err = NULL;
    g_autofree VcpuState *state = g_new0(VcpuState, 1);
    g_assert_true(vcpu_engine_kvm.debug(g->vcpu, debug, &err));
    VcpuExit why = vcpu_engine_kvm.run(g->vcpu, &err);
    g_assert_no_error(err);
    g_assert_cmpint(why, ==, VCPU_EXIT_DEBUG);
    g_assert_true(vcpu_engine_kvm.get_state(g->vcpu, state, &err));
    g_assert_cmphex(state->rip, ==, rip);
    return vcpu_engine_kvm.debug_stop(g->vcpu);
}

/* nop; inc eax; mov [5000],eax; int3 (the debugger's); out f4,al; jmp $ */
static void test_debug(void)
{
    static const uint8_t code[] = {0x90, 0x40, 0xa3, 0x00, 0x50, 0x00, 0x00,
                                   0xcc, 0xe6, 0xf4, 0xeb, 0xfe};
    const VcpuBreakpoint points[] = {{CODE + 1, 1, VCPU_BREAK_HARDWARE},
                                     {0x5000, 4, VCPU_BREAK_WRITE},
                                     {CODE + 7, 1, VCPU_BREAK_SOFTWARE}};
    Guest g;
    if (!guest_new(&g))
        return;
    memcpy(g.ram + CODE, code, sizeof(code));
    enter_protected(&g);
    VcpuDebug debug = {.active = true, .n = 3, .breakpoints = points};
    VcpuDebugStop stop = run_to_stop(&g, &debug, CODE + 1);
    g_assert_false(stop.step);
    g_assert_cmpint(stop.kind, ==, VCPU_BREAK_HARDWARE);
    g_assert_cmphex(stop.address, ==, CODE + 1);
    debug = (VcpuDebug){.active = true, .step = true};
    g_assert_true(run_to_stop(&g, &debug, CODE + 2).step);
    debug = (VcpuDebug){.active = true, .n = 3, .breakpoints = points};
    if (has_hardware()) {
        stop = run_to_stop(&g, &debug, CODE + 7);
        g_assert_cmpint(stop.kind, ==, VCPU_BREAK_WRITE);
        g_assert_cmphex(stop.address, ==, 0x5000);
        stop = run_to_stop(&g, &debug, CODE + 7);
        g_assert_cmpint(stop.kind, ==, VCPU_BREAK_SOFTWARE);
    }
    g.ram[CODE + 7] = 0x90;
    debug.active = false;
    g_autoptr(GError) err = NULL;
    g_assert_true(vcpu_engine_kvm.debug(g.vcpu, &debug, &err));
    g_assert_cmpint(vcpu_engine_kvm.run(g.vcpu, &err), ==, VCPU_EXIT_KICK);
    guest_free(&g);
}

/* An INT3 that nobody but the guest put there is the guest's. */
static void test_guest_int3(void)
{
    static const uint8_t code[] = {0xcc, 0xeb, 0xfe}, handler[] = {0xb0, 0x09, 0xe6, 0xf4, 0xeb, 0xfe};
    const VcpuBreakpoint elsewhere = {CODE + 0x80, 1, VCPU_BREAK_SOFTWARE};
    const uint64_t gate = 0x00008e0000080000ull | HANDLER;
    Guest g;
    if (!has_hardware()) {
        g_test_skip("no hardware behind KVM");
        return;
    }
    if (!guest_new(&g))
        return;
    g_autoptr(GError) err = NULL;
    memcpy(g.ram + CODE, code, sizeof(code));
    memcpy(g.ram + HANDLER, handler, sizeof(handler));
    memcpy(g.ram + IDT + 3 * 8, &gate, sizeof(gate));
    enter_protected(&g);
    VcpuDebug debug = {.active = true, .n = 1, .breakpoints = &elsewhere};
    g_assert_true(vcpu_engine_kvm.debug(g.vcpu, &debug, &err));
    g_assert_cmpint(vcpu_engine_kvm.run(g.vcpu, &err), ==, VCPU_EXIT_KICK);
    g_assert_cmphex(g.value[0], ==, 9);
    guest_free(&g);
}

static void test_debug_refusals(void)
{
    const VcpuBreakpoint bad[] = {{CODE, 1, VCPU_BREAK_READ}, {CODE + 1, 2, VCPU_BREAK_WRITE},
                                  {CODE, 16, VCPU_BREAK_ACCESS}};
    VcpuBreakpoint many[5];
    Guest g;
    if (!guest_new(&g))
        return;
    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GError) err = NULL;
        VcpuDebug debug = {.active = true, .n = 1, .breakpoints = &bad[i]};
        g_assert_false(vcpu_engine_kvm.debug(g.vcpu, &debug, &err));
        g_assert_error(err, LODGE_ERROR, LODGE_ERROR_UNSUPPORTED);
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(many); i++)
        many[i] = (VcpuBreakpoint){CODE + i, 1, VCPU_BREAK_HARDWARE};
    g_autoptr(GError) err = NULL;
    VcpuDebug debug = {.active = true, .n = G_N_ELEMENTS(many), .breakpoints = many};
    g_assert_false(vcpu_engine_kvm.debug(g.vcpu, &debug, &err));
    g_assert_error(err, LODGE_ERROR, LODGE_ERROR_LIMIT);
    guest_free(&g);
}

static void test_probe(void)
{
    g_autofree char *why = NULL;
    if (!vcpu_engine_kvm.probe(&why))
        g_assert_nonnull(why);
    else
        g_assert_null(why);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/kvm/probe", test_probe);
    g_test_add_func("/kvm/ports", test_ports);
    g_test_add_func("/kvm/cpu-model", test_cpu_model);
    g_test_add_func("/kvm/mmio-and-doorbell", test_mmio_and_doorbell);
    g_test_add_func("/kvm/dirty-log", test_dirty_log);
    g_test_add_func("/kvm/irqfd", test_irqfd);
    g_test_add_func("/kvm/state", test_state);
    g_test_add_func("/kvm/debug", test_debug);
    g_test_add_func("/kvm/guest-int3", test_guest_int3);
    g_test_add_func("/kvm/debug-refusals", test_debug_refusals);
    return g_test_run();
}
