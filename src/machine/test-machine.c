/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "machine/test-machine.h"

#include <string.h>

#include "machine/irq/irq.h"
#include "machine/pci/pci-internal.h"
#include "machine/timer/timers.h"

static bool test_probe(char **why)
{
    return true;
}

static VcpuVm *test_vm_new(const VcpuVmConfig *config, GError **err)
{
    VcpuVm *vm = g_new0(VcpuVm, 1);
    vm->engine = &test_engine;
    vm->bus = config->bus;
    vm->config = *config;
    return vm;
}

static void test_vm_free(VcpuVm *vm)
{
    g_free(vm);
}

static bool test_set_ram(VcpuVm *vm, unsigned slot, const VcpuRamSlot *ram, GError **err)
{
    vm->ram[slot] = *ram;
    return true;
}

static Vcpu *test_vcpu_new(VcpuVm *vm, unsigned index, GError **err)
{
    TestVcpu *v = g_new0(TestVcpu, 1);
    v->vcpu = (Vcpu){&test_engine, vm, index};
    g_mutex_init(&v->lock);
    g_cond_init(&v->wake);
    return &v->vcpu;
}

static void test_vcpu_free(Vcpu *vcpu)
{
    TestVcpu *v = (TestVcpu *)vcpu;
    g_mutex_clear(&v->lock);
    g_cond_clear(&v->wake);
    g_free(v);
}

static VcpuExit test_run(Vcpu *vcpu, GError **err)
{
    TestVcpu *v = (TestVcpu *)vcpu;
    g_mutex_lock(&v->lock);
    VcpuExit result = v->exit_with;
    v->exit_with = VCPU_EXIT_KICK;
    v->runs++;
    while (result == VCPU_EXIT_KICK && !v->kicked)
        g_cond_wait(&v->wake, &v->lock);
    v->kicked = false;
    g_mutex_unlock(&v->lock);
    if (result == VCPU_EXIT_ERROR)
        lodge_fail(err, LODGE_ERROR_INTERNAL, "the test wanted an error");
    return result;
}

static void test_kick(Vcpu *vcpu)
{
    TestVcpu *v = (TestVcpu *)vcpu;
    g_mutex_lock(&v->lock);
    v->kicked = true;
    g_cond_signal(&v->wake);
    g_mutex_unlock(&v->lock);
}

static void test_signal(Vcpu *vcpu, VcpuSignal signal, unsigned argument)
{
    TestVcpu *v = (TestVcpu *)vcpu;
    g_mutex_lock(&v->lock);
    v->interrupts += signal == VCPU_SIGNAL_INTERRUPT;
    v->nmis += signal == VCPU_SIGNAL_NMI;
    v->inits += signal == VCPU_SIGNAL_INIT;
    v->sipis += signal == VCPU_SIGNAL_SIPI;
    if (signal == VCPU_SIGNAL_SIPI)
        v->sipi_vector = argument;
    g_mutex_unlock(&v->lock);
}

static bool test_get_state(Vcpu *vcpu, VcpuState *state, GError **err)
{
    *state = ((TestVcpu *)vcpu)->state;
    return true;
}

static bool test_set_state(Vcpu *vcpu, const VcpuState *state, GError **err)
{
    ((TestVcpu *)vcpu)->state = *state;
    return true;
}

/* 1 GHz, with the machine's clock: bus->opaque is the machine. */
static uint64_t test_tsc(Vcpu *vcpu)
{
    return (uint64_t)machine_clock_ns(vcpu->vm->bus->opaque);
}

const VcpuEngine test_engine = {
    .name = "test",
    .probe = test_probe,
    .vm_new = test_vm_new,
    .vm_free = test_vm_free,
    .set_ram = test_set_ram,
    .vcpu_new = test_vcpu_new,
    .vcpu_free = test_vcpu_free,
    .run = test_run,
    .kick = test_kick,
    .signal = test_signal,
    .get_state = test_get_state,
    .set_state = test_set_state,
    .tsc = test_tsc,
};

MachineConfig *test_config(unsigned n_vcpus)
{
    MachineConfig *config = machine_config_new();
    config->name = g_strdup("test");
    config->memory_size = MIB(64);
    config->n_vcpus = config->cores = n_vcpus;
    config->hpet = true;
    return config;
}

Machine *test_machine(unsigned n_vcpus)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(MachineConfig) config = test_config(n_vcpus);
    Machine *m = machine_new_bare(config, &test_engine, &error);
    g_assert_no_error(error);
    return m;
}

Machine *test_board(unsigned n_vcpus)
{
    g_autoptr(GError) error = NULL;
    Machine *m = test_machine(n_vcpus);
    machine_irq_init(m);
    m->irq.lapic = device_new(m, &lapic_device_type, NULL, &error);
    g_assert_no_error(error);
    m->irq.ioapic = device_new(m, &ioapic_device_type, NULL, &error);
    m->irq.pic = device_new(m, &pic_device_type, NULL, &error);
    m->irq.pit = device_new(m, &pit_device_type, NULL, &error);
    m->irq.rtc = device_new(m, &rtc_device_type, NULL, &error);
    m->irq.hpet = device_new(m, &hpet_device_type, NULL, &error);
    device_new(m, &pcie_root_device_type, NULL, &error);
    g_assert_no_error(error);
    return m;
}

TestVcpu *test_vcpu(Machine *m, unsigned index)
{
    return (TestVcpu *)machine_vcpu(m, index);
}

uint64_t test_mmio_read(Machine *m, unsigned vcpu, uint64_t gpa, unsigned size)
{
    machine_set_current_vcpu((int)vcpu);
    uint64_t value = io_space_read(m, &m->mmio, gpa, size);
    machine_set_current_vcpu(-1);
    return value;
}

void test_mmio_write(Machine *m, unsigned vcpu, uint64_t gpa, unsigned size, uint64_t value)
{
    machine_set_current_vcpu((int)vcpu);
    io_space_write(m, &m->mmio, gpa, size, value);
    machine_set_current_vcpu(-1);
}

uint8_t test_in(Machine *m, uint16_t port)
{
    return (uint8_t)io_space_read(m, &m->ports, port, 1);
}

void test_out(Machine *m, uint16_t port, uint8_t value)
{
    io_space_write(m, &m->ports, port, 1, value);
}
