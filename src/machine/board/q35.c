/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The q35 board: which devices it always has, and what happens at reset. */
#include "machine/board/board.h"

#include "machine/irq/irq.h"
#include "machine/machine-internal.h"
#include "machine/pci/pci-internal.h"
#include "machine/timer/timers.h"

static bool create(Machine *m, const DeviceType *type, Device **place, GError **err)
{
    Device *dev = device_new(m, type, NULL, err);
    if (place)
        *place = dev;
    return dev != NULL;
}

static bool create_irq_chips(Machine *m, GError **err)
{
    if (m->engine->has_irqchip)
        return true;
    machine_irq_init(m);
    return create(m, &lapic_device_type, &m->irq.lapic, err) &&
           create(m, &ioapic_device_type, &m->irq.ioapic, err) &&
           create(m, &pic_device_type, &m->irq.pic, err) &&
           create(m, &pit_device_type, &m->irq.pit, err);
}

/* ---- reset
 * -------------------------------------------------------------------------------------------- */

static bool reset_pci(void *opaque, GError **err)
{
    return pci_assign_resources(opaque, err);
}

static bool reset_acpi(void *opaque, GError **err)
{
    return board_acpi_build(opaque, err);
}

static bool reset_smbios(void *opaque, GError **err)
{
    return board_smbios_build(opaque, err);
}

/* Puts the kernel into RAM and the first vCPU at its entry. */
static bool reset_boot(void *opaque, GError **err)
{
    Machine *m = opaque;
    if (!m->boot)
        return true;
    g_autofree VcpuState *state = g_new0(VcpuState, 1);
    vcpu_state_reset(state, 0);
    if (!board_boot_load(m->boot, state, err))
        return false;
    /* Loading took time: the vCPUs' time-stamp counters were reset together and stay so. */
    state->tsc = m->engine->tsc(m->vcpus[0].vcpu);
    return m->engine->set_state(m->vcpus[0].vcpu, state, err);
}

bool board_q35_init(Machine *m, GError **err)
{
    if (!create_irq_chips(m, err) || !create(m, &rtc_device_type, &m->irq.rtc, err) ||
        (m->config->hpet && !create(m, &hpet_device_type, &m->irq.hpet, err)) ||
        !create(m, &pcie_root_device_type, NULL, err))
        return false;
    m->pm = board_pm_init(m, err);
    if (!m->pm)
        return false;
    machine_add_reset_hook(m, reset_pci, m);
    machine_add_reset_hook(m, reset_acpi, m);
    machine_add_reset_hook(m, reset_smbios, m);
    machine_add_reset_hook(m, reset_boot, m);
    return true;
}
