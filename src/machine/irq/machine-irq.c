/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Interrupts from devices to whoever delivers them: the board's own chips or the engine's. */
#include "machine/board/layout.h"
#include "machine/iommu/vtd.h"
#include "machine/irq/irq.h"
#include "machine/machine-internal.h"

void machine_set_gsi(Machine *m, unsigned gsi, bool level)
{
    if (m->engine->has_irqchip) {
        m->engine->set_gsi(m->vm, gsi, level);
        return;
    }
    machine_lock(m);
    if (gsi < 16 && m->irq.pic)
        pic_set_irq(m->irq.pic, gsi, level);
    /* ISA interrupt 0 arrives at pin 2 (layout.h); 2 is the 8259's cascade and arrives nowhere. */
    if (m->irq.ioapic && gsi != 2)
        ioapic_set_pin(m->irq.ioapic, gsi ? gsi : LAYOUT_GSI_PIT, level);
    machine_unlock(m);
}

/* SDM vol. 3 10.11: address and data of a message-signalled interrupt. */
void machine_send_msi_from(Machine *m, int source, uint64_t address, uint32_t data)
{
    if (address >> 20 != 0xfee)
        return; /* a write somewhere else: not an interrupt */
    if (m->engine->has_irqchip) {
        m->engine->send_msi(m->vm, address, data);
        return;
    }
    IrqMessage message = {
        .destination = (uint32_t)(address >> 12 & 0xff),
        .logical = address & 4,
        .level = data & 0x8000,
        .delivery = (IrqDelivery)(data >> 8 & 7),
        .vector = (uint8_t)data,
    };
    if (!message.logical && message.destination == 0xff)
        message.destination = UINT32_MAX;
    if (m->iommu && !vtd_remap_msi(m->iommu, source, address, data, &message))
        return;
    if (message.delivery != IRQ_SIPI && m->irq.lapic)
        lapic_send(m->irq.lapic, &message);
}

void machine_send_msi(Machine *m, uint64_t address, uint32_t data)
{
    machine_lock(m); /* for the IOMMU */
    machine_send_msi_from(m, VTD_SOURCE_NONE, address, data);
    machine_unlock(m);
}

/* ---- what an engine without an irqchip asks
 * ------------------------------------------------------- */

static int bus_acknowledge(void *opaque, unsigned vcpu)
{
    Machine *m = opaque;
    return lapic_acknowledge(m->irq.lapic, vcpu);
}

static uint64_t bus_cr8_read(void *opaque, unsigned vcpu)
{
    Machine *m = opaque;
    return lapic_cr8_read(m->irq.lapic, vcpu);
}

static void bus_cr8_write(void *opaque, unsigned vcpu, uint64_t value)
{
    Machine *m = opaque;
    lapic_cr8_write(m->irq.lapic, vcpu, value);
}

static bool bus_msr_read(void *opaque, unsigned vcpu, uint32_t msr, uint64_t *value)
{
    Machine *m = opaque;
    return lapic_msr_read(m->irq.lapic, vcpu, msr, value);
}

static bool bus_msr_write(void *opaque, unsigned vcpu, uint32_t msr, uint64_t value)
{
    Machine *m = opaque;
    return lapic_msr_write(m->irq.lapic, vcpu, msr, value);
}

static bool bus_apic_send(void *opaque, unsigned vcpu, uint32_t apic_id, uint32_t icr)
{
    Machine *m = opaque;
    return lapic_send_to(m->irq.lapic, vcpu, apic_id, icr);
}

void machine_irq_init(Machine *m)
{
    m->bus.apic_send = bus_apic_send;
    m->bus.interrupt_acknowledge = bus_acknowledge;
    m->bus.cr8_read = bus_cr8_read;
    m->bus.cr8_write = bus_cr8_write;
    m->bus.apic_msr_read = bus_msr_read;
    m->bus.apic_msr_write = bus_msr_write;
}
