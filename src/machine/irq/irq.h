/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The board's own interrupt controllers, for engines without an irqchip: the 8259 pair, the
 * IOAPIC and the local APICs. Devices use machine_set_gsi and machine_send_msi instead.
 */
#pragma once

#include "machine/device.h"

extern const DeviceType lapic_device_type, ioapic_device_type, pic_device_type;

typedef enum IrqDelivery { /* SDM vol. 3 10.6.1; values of the ICR, RTEs and MSI data */
                           IRQ_FIXED = 0,
                           IRQ_LOWEST = 1,
                           IRQ_SMI = 2,
                           IRQ_NMI = 4,
                           IRQ_INIT = 5,
                           IRQ_SIPI = 6,
                           IRQ_EXTINT = 7,
} IrqDelivery;

/* What travels on the APIC bus. */
typedef struct IrqMessage {
    uint32_t destination; /* physical: UINT32_MAX = all */
    bool logical, level;
    IrqDelivery delivery;
    uint8_t vector;
} IrqMessage;

/* Any thread; takes no machine lock. */
void lapic_send(Device *lapic, const IrqMessage *message);
/* As if @vcpu had written its ICR; physical destination, no shorthand. False: nobody is there. */
bool lapic_send_to(Device *lapic, unsigned vcpu, uint32_t apic_id, uint32_t icr);
int lapic_acknowledge(Device *lapic, unsigned vcpu); /* a vector, or -1 */
uint64_t lapic_cr8_read(Device *lapic, unsigned vcpu);
void lapic_cr8_write(Device *lapic, unsigned vcpu, uint64_t value);
bool lapic_msr_read(Device *lapic, unsigned vcpu, uint32_t msr, uint64_t *value);
bool lapic_msr_write(Device *lapic, unsigned vcpu, uint32_t msr, uint64_t value);
/* The 8259's INTR, wired to LINT0 of every vCPU. */
void lapic_set_extint(Device *lapic, bool level);
void lapic_nmi(Device *lapic); /* LINT1 of every vCPU: the board's NMI button */

/* Machine lock held. */
void ioapic_set_pin(Device *ioapic, unsigned pin, bool level);
void ioapic_end_of_interrupt(Device *ioapic, uint8_t vector);
bool ioapic_pin_masked(const Device *ioapic, unsigned pin);

/* Machine lock held. */
void pic_set_irq(Device *pic, unsigned irq, bool level);
int pic_acknowledge(Device *pic); /* a vector */
bool pic_irq_masked(const Device *pic, unsigned irq);

/* machine-irq.c: fills the interrupt members of the engine's bus from Machine.irq. */
void machine_irq_init(Machine *m);
