/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * State in and out, refused states, MSRs, CPUID, the paravirtual clock, signals and kicks.
 * Instructions and modes are tested by the images in tests/cpu/images.
 */
#include <cpuid.h>
#include <pthread.h>
#include <sys/mman.h>

#include "base/bytes.h"
#include "vcpu/soft/vm.h"

#define RAM_SIZE (1u << 20)

typedef struct Fixture {
    VcpuBus bus;
    VcpuVm *vm;
    Vcpu *vcpu;
    SoftCpu *cpu;
    uint8_t *ram;
    VcpuState *state;
    _Atomic int vector; /* what acknowledge gives next, or -1 */
    _Atomic unsigned out;
} Fixture;

static int acknowledge(void *opaque, unsigned vcpu)
{
    return atomic_exchange(&((Fixture *)opaque)->vector, -1);
}

static void port_write(void *opaque, unsigned vcpu, uint16_t port, unsigned size, uint64_t value)
{
    Fixture *f = opaque;
    f->out = (unsigned)value;
    vcpu_engine_soft.kick(f->vcpu);
}

static void set_up(Fixture *f, gconstpointer unused)
{
    GError *err = NULL;
    f->vector = -1;
    f->bus = (VcpuBus){.opaque = f, .interrupt_acknowledge = acknowledge, .port_write = port_write};
    VcpuVmConfig config = {.n_vcpus = 4, .cores = 2, .threads = 2, .bus = &f->bus};
    f->vm = vcpu_engine_soft.vm_new(&config, &err);
    g_assert_no_error(err);
    f->ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    VcpuRamSlot slot = {.size = RAM_SIZE, .hva = f->ram};
    g_assert_true(vcpu_engine_soft.set_ram(f->vm, 0, &slot, &err));
    f->vcpu = vcpu_engine_soft.vcpu_new(f->vm, 0, &err);
    g_assert_no_error(err);
    f->cpu = (SoftCpu *)f->vcpu;
    f->state = g_new0(VcpuState, 1);
    g_assert_true(vcpu_engine_soft.get_state(f->vcpu, f->state, &err));
}

static void tear_down(Fixture *f, gconstpointer unused)
{
    vcpu_engine_soft.vcpu_free(f->vcpu);
    vcpu_engine_soft.vm_free(f->vm);
    munmap(f->ram, RAM_SIZE);
    g_free(f->state);
}

static void test_state(Fixture *f, gconstpointer unused)
{
    GError *err = NULL;
    VcpuState *again = g_new0(VcpuState, 1);
    g_assert_cmphex(f->state->rip, ==, 0xfff0);
    g_assert_cmphex(f->state->seg[SEG_CS].base, ==, 0xffff0000);
    for (unsigned i = 0; i < 16; i++)
        f->state->gpr[i] = 0x1111111111111111ull * i;
    f->state->rflags = 0x8d7;
    f->state->cr2 = 0x1234;
    f->state->interrupt_shadow = f->state->nmi_masked = true;
    f->state->activity = VCPU_HALTED;
    le32_put(f->state->xsave + SOFT_XSAVE_PKRU, 0x55555554);
    g_assert_true(vcpu_engine_soft.set_state(f->vcpu, f->state, &err));
    g_assert_true(vcpu_engine_soft.get_state(f->vcpu, again, &err));
    g_assert_cmpint(again->tsc - f->state->tsc, <, vcpu_host_tsc_khz() * 1000);
    again->tsc = f->state->tsc;
    g_assert_cmpmem(again, sizeof(*again), f->state, sizeof(*again));
    g_free(again);
}

static void refused(Fixture *f, const char *part)
{
    GError *err = NULL;
    g_assert_false(vcpu_engine_soft.set_state(f->vcpu, f->state, &err));
    g_assert_nonnull(err);
    g_assert_nonnull(strstr(err->message, part));
    g_error_free(err);
    g_assert_true(vcpu_engine_soft.get_state(f->vcpu, f->state, NULL));
}

static void test_refused(Fixture *f, gconstpointer unused)
{
    f->state->cr0 = CR0_PG;
    refused(f, "CR0");
    f->state->cr4 = 1ull << 40;
    refused(f, "CR4");
    f->state->efer = EFER_LMA;
    refused(f, "EFER");
    f->state->efer = 1u << 12; /* SVME */
    refused(f, "EFER");
    f->state->cr3 = UINT64_MAX;
    refused(f, "CR3");
    f->state->xcr0 = 5; /* AVX without SSE */
    refused(f, "XCR0");
    f->state->rflags = 1ull << 32;
    refused(f, "RFLAGS");
    f->state->rflags |= FLAG_VM;
    refused(f, "virtual-8086");
    f->state->n_msr = VCPU_MSR_MAX + 1;
    refused(f, "MSR");
    f->state->n_msr = 1;
    f->state->msr[0] = (VcpuMsr){0x12345, 0};
    refused(f, "0x12345");
    f->state->seg[SEG_DS].attr = 0x20000;
    refused(f, "segment");
}

static void test_msr(Fixture *f, gconstpointer unused)
{
    static const uint32_t gone[] = {0x12345, 0xc0000fff, 0x48, 0x10a};
    uint64_t v;
    for (unsigned i = 0; i < G_N_ELEMENTS(gone); i++) {
        g_assert_false(soft_msr_read(f->cpu, gone[i], &v));
        g_assert_false(soft_msr_write(f->cpu, gone[i], 0));
    }
    g_assert_false(soft_msr_write(f->cpu, 0xc0000082, 0x800000000000)); /* LSTAR: not canonical */
    g_assert_true(soft_msr_write(f->cpu, 0xc0000082, 0xffff800000000000));
    g_assert_false(soft_msr_write(f->cpu, 0xc0000080, 1u << 12)); /* EFER.SVME */
    g_assert_false(soft_msr_write(f->cpu, 0x277, 2));             /* PAT: reserved type */
    g_assert_false(soft_msr_write(f->cpu, 0x201, 0x7ff));         /* MTRR mask: reserved bits */
    g_assert_true(soft_msr_write(f->cpu, 0x201, 0xfc0000800));
    /* TSC_ADJUST follows writes of the TSC, and moves it */
    g_assert_true(soft_msr_write(f->cpu, 0x10, 1ull << 50));
    g_assert_true(soft_msr_read(f->cpu, 0x10, &v));
    g_assert_cmpuint(v, >=, 1ull << 50);
    g_assert_true(soft_msr_write(f->cpu, 0x3b, 0));
    g_assert_true(soft_msr_read(f->cpu, 0x10, &v));
    g_assert_cmpuint(v, <, 1ull << 50);
}

/* Every feature offered that runs on the host's own units is one of the host's. */
static void test_cpuid(Fixture *f, gconstpointer unused)
{
    unsigned a = 0, b = 0, c = 0, d = 0;
    SoftCpuid g = soft_cpuid(f->cpu, 1, 0);
    g_assert_true(__get_cpuid(1, &a, &b, &c, &d));
    const uint32_t ours = 1u << 17 | 1u << 21 | 1u << 24 | 1u << 27 | 1u << 31;
    g_assert_cmphex(g.ecx & ~c & ~ours, ==, 0);
    g_assert_cmphex(g.ecx & 1u << 3, ==, 0);  /* MONITOR */
    g_assert_cmphex(g.ecx & 1u << 5, ==, 0);  /* VMX */
    g_assert_cmphex(g.ecx & 1u << 27, ==, 0); /* OSXSAVE follows CR4 */
    f->cpu->cr4 |= CR4_OSXSAVE;
    g_assert_cmphex(soft_cpuid(f->cpu, 1, 0).ecx & 1u << 27, !=, 0);
    g = soft_cpuid(f->cpu, 7, 0);
    g_assert_true(__get_cpuid_count(7, 0, &a, &b, &c, &d));
    g_assert_cmphex(g.ebx >> 16 & ~(b >> 16) & ~(1u << 4), ==, 0); /* all but SMAP */
    g_assert_cmphex(g.ebx & 0xdc230000, ==, 0);                    /* no AVX-512 */
    g_assert_cmphex(g.ecx & 1u << 16, ==, 0);                      /* LA57 */
    /* topology of 2 cores with 2 threads */
    g_assert_cmpuint(soft_cpuid(f->cpu, 0xb, 0).eax, ==, 1);
    g_assert_cmpuint(soft_cpuid(f->cpu, 0xb, 1).eax, ==, 2);
    g_assert_cmpuint(soft_cpuid(f->cpu, 0xb, 1).ebx, ==, 4);
    g_assert_cmphex(soft_cpuid(f->cpu, 0x40000001, 0).eax, ==, 1u << 3 | 1u << 11 | 1u << 24);
    g_assert_cmphex(soft_cpuid(f->cpu, 0x80000001, 0).ecx & 1u << 2, ==, 0); /* SVM */
    g_assert_cmphex(soft_cpuid(f->cpu, 0x50000000, 0).eax, ==, 0);
}

static bool apic_base(void *opaque, unsigned vcpu, uint32_t msr, uint64_t *value)
{
    *value = ((Fixture *)opaque)->out;
    return msr == 0x1b;
}

/* CPUID shows an APIC while IA32_APIC_BASE enables it. */
static void test_cpuid_apic(Fixture *f, gconstpointer unused)
{
    f->bus.apic_msr_read = apic_base;
    f->out = 0xfee00800;
    g_assert_cmphex(soft_cpuid(f->cpu, 1, 0).edx & 1u << 9, !=, 0);
    f->out = 0xfee00000;
    g_assert_cmphex(soft_cpuid(f->cpu, 1, 0).edx & 1u << 9, ==, 0);
    g_assert_cmphex(soft_cpuid(f->cpu, 0x80000001, 0).edx & 1u << 9, ==, 0);
}

static bool sent(void *opaque, unsigned vcpu, uint32_t apic_id, uint32_t icr)
{
    ((Fixture *)opaque)->out |= icr == 0xfd && apic_id < 32 ? 1u << apic_id : 0;
    return apic_id != 9;
}

/* KVM's call 10: RBX and RCX are a set of APIC ids from RDX on. */
static void test_send_ipi(Fixture *f, gconstpointer unused)
{
    static const uint8_t code[] = {0x0f, 0x01, 0xc1, 0x0f, 0x01, 0xc1, 0xe6, 0xf4};
    f->bus.apic_send = sent;
    f->bus.port_write = NULL;
    memcpy(f->ram + 0x1000, code, sizeof(code));
    f->state->seg[SEG_CS].base = f->state->seg[SEG_CS].selector = 0;
    f->state->rip = 0x1000;
    f->state->gpr[GPR_RAX] = 10;
    f->state->gpr[GPR_RBX] = 0x15; /* 5, 7, 9 */
    f->state->gpr[GPR_RCX] = 0;
    f->state->gpr[GPR_RDX] = 5;
    f->state->gpr[GPR_RSI] = 0xfd;
    f->state->rflags |= FLAG_TF; /* one instruction, then #DB, whose handler is at 0:0 */
    g_assert_true(vcpu_engine_soft.set_state(f->vcpu, f->state, NULL));
    le16_put(f->ram + 4, 0x1006);
    f->bus.port_write = port_write;
    g_assert_cmpint(vcpu_engine_soft.run(f->vcpu, NULL), ==, VCPU_EXIT_KICK);
    g_assert_cmphex(f->out, ==, 2); /* how many there were */
}

static void test_clock(Fixture *f, gconstpointer unused)
{
    g_assert_true(soft_msr_write(f->cpu, 0x4b564d01, 0x2001));
    uint32_t mul = le32_get(f->ram + 0x2018);
    int8_t shift = (int8_t)f->ram[0x201c];
    g_assert_cmphex(f->ram[0x201d] & 1, ==, 1);
    /* a second's ticks become a second, to a millionth */
    uint64_t ticks = vcpu_host_tsc_khz() * 1000;
    ticks = shift < 0 ? ticks >> -shift : ticks << shift;
    double ns = (double)ticks * mul / 4294967296.0;
    g_assert_cmpfloat(ns, >, 999999000.0);
    g_assert_cmpfloat(ns, <, 1000001000.0);
    g_assert_true(soft_msr_write(f->cpu, 0x4b564d00, 0x3000));
    int64_t wall = le32_get(f->ram + 0x3004);
    g_assert_cmpint(ABS(wall - g_get_real_time() / 1000000), <, 60);
    g_assert_true(soft_msr_write(f->cpu, 0x4b564d01, 0xfffffffffff00001ull)); /* no RAM: no harm */
}

static void *run_until_kick(void *opaque)
{
    Fixture *f = opaque;
    while (vcpu_engine_soft.run(f->vcpu, NULL) != VCPU_EXIT_KICK)
        ;
    return NULL;
}

/* Halted with interrupts on: an interrupt ends it, its handler writes a port. */
static void test_halt(Fixture *f, gconstpointer unused)
{
    static const uint8_t main_code[] = {0xfb, 0xf4, 0xeb, 0xfd};      /* sti; 1: hlt; jmp 1b */
    static const uint8_t handler[] = {0xb0, 0x5a, 0xe6, 0xf4, 0xcf}; /* mov $5a, %al; out; iret */
    pthread_t thread;
    memcpy(f->ram + 0x1000, main_code, sizeof(main_code));
    memcpy(f->ram + 0x2000, handler, sizeof(handler));
    le16_put(f->ram + 0x40 * 4, 0x2000);
    f->state->seg[SEG_CS].base = 0;
    f->state->seg[SEG_CS].selector = 0;
    f->state->rip = 0x1000;
    f->state->gpr[GPR_RSP] = 0x8000;
    g_assert_true(vcpu_engine_soft.set_state(f->vcpu, f->state, NULL));
    g_assert_cmpint(pthread_create(&thread, NULL, run_until_kick, f), ==, 0);
    g_usleep(20000);
    vcpu_engine_soft.signal(f->vcpu, VCPU_SIGNAL_INTERRUPT, 0); /* there is none: it sleeps on */
    g_usleep(5000);
    g_assert_cmphex(f->out, ==, 0);
    f->vector = 0x40;
    vcpu_engine_soft.signal(f->vcpu, VCPU_SIGNAL_INTERRUPT, 0);
    pthread_join(thread, NULL);
    g_assert_cmphex(f->out, ==, 0x5a);
    /* a kick alone ends a halted run as well, and before run it is kept */
    f->out = 0;
    vcpu_engine_soft.kick(f->vcpu);
    g_assert_cmpint(vcpu_engine_soft.run(f->vcpu, NULL), ==, VCPU_EXIT_KICK);
    g_assert_cmpint(pthread_create(&thread, NULL, run_until_kick, f), ==, 0);
    g_usleep(5000);
    vcpu_engine_soft.kick(f->vcpu);
    pthread_join(thread, NULL);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
#define ADD(name, fn) g_test_add("/soft/system/" name, Fixture, NULL, set_up, fn, tear_down)
    ADD("state", test_state);
    ADD("refused", test_refused);
    ADD("msr", test_msr);
    ADD("cpuid", test_cpuid);
    ADD("cpuid-apic", test_cpuid_apic);
    ADD("send-ipi", test_send_ipi);
    ADD("clock", test_clock);
    ADD("halt", test_halt);
#undef ADD
    return g_test_run();
}
