/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "machine/test-engine.h"

#include <string.h>

static bool level[256];
static unsigned rises[256];

static bool probe(char **why)
{
    return true;
}

static bool set_ram(VcpuVm *vm, unsigned slot, const VcpuRamSlot *ram, GError **err)
{
    return true;
}

static VcpuVm *vm_new(const VcpuVmConfig *config, GError **err);
static Vcpu *vcpu_new(VcpuVm *vm, unsigned index, GError **err);

static void vm_free(VcpuVm *vm)
{
    g_free(vm);
}

static void vcpu_free(Vcpu *vcpu)
{
    g_free(vcpu);
}

static VcpuExit run(Vcpu *vcpu, GError **err)
{
    g_usleep(1000);
    return VCPU_EXIT_KICK;
}

static void kick(Vcpu *vcpu)
{
}

static bool get_state(Vcpu *vcpu, VcpuState *state, GError **err)
{
    *state = (VcpuState){.rip = 0x1234};
    return true;
}

static bool set_state(Vcpu *vcpu, const VcpuState *state, GError **err)
{
    return true;
}

static uint64_t tsc(Vcpu *vcpu)
{
    return 0;
}

static bool set_gsi(VcpuVm *vm, unsigned gsi, bool high)
{
    g_assert_cmpint(gsi, <, G_N_ELEMENTS(level));
    rises[gsi] += high && !level[gsi];
    level[gsi] = high;
    return true;
}

static bool send_msi(VcpuVm *vm, uint64_t address, uint32_t data)
{
    return true;
}

static const VcpuEngine test_engine = {
    .name = "test",
    .has_irqchip = true,
    .probe = probe,
    .vm_new = vm_new,
    .vm_free = vm_free,
    .set_ram = set_ram,
    .vcpu_new = vcpu_new,
    .vcpu_free = vcpu_free,
    .run = run,
    .kick = kick,
    .get_state = get_state,
    .set_state = set_state,
    .tsc = tsc,
    .set_gsi = set_gsi,
    .send_msi = send_msi,
};

static VcpuVm *vm_new(const VcpuVmConfig *config, GError **err)
{
    VcpuVm *vm = g_new0(VcpuVm, 1);
    vm->engine = &test_engine;
    vm->bus = config->bus;
    vm->config = *config;
    return vm;
}

static Vcpu *vcpu_new(VcpuVm *vm, unsigned index, GError **err)
{
    Vcpu *vcpu = g_new0(Vcpu, 1);
    *vcpu = (Vcpu){&test_engine, vm, index};
    return vcpu;
}

Machine *test_machine_new(void)
{
    g_autoptr(MachineConfig) config = machine_config_new();
    g_autoptr(GError) error = NULL;
    config->memory_size = MIB(16);
    memset(level, 0, sizeof(level));
    memset(rises, 0, sizeof(rises));
    Machine *m = machine_new_bare(config, &test_engine, &error);
    g_assert_no_error(error);
    return m;
}

bool test_gsi(unsigned gsi)
{
    return level[gsi];
}

unsigned test_gsi_rises(unsigned gsi)
{
    unsigned n = rises[gsi];
    rises[gsi] = 0;
    return n;
}

uint64_t test_in(Machine *m, uint16_t port, unsigned size)
{
    return io_space_read(m, &m->ports, port, size);
}

void test_out(Machine *m, uint16_t port, unsigned size, uint64_t value)
{
    io_space_write(m, &m->ports, port, size, value);
}

static gboolean expired(gpointer opaque)
{
    *(bool *)opaque = true;
    return G_SOURCE_REMOVE;
}

void test_loop(Machine *m, unsigned ms)
{
    bool over = false;
    GSource *source = g_timeout_source_new(ms);
    g_source_set_callback(source, expired, &over, NULL);
    g_source_attach(source, m->context);
    g_source_unref(source);
    while (!over)
        g_main_context_iteration(m->context, TRUE);
}
