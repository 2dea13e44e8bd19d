/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The I/O APIC: 24 inputs. Intel 82093AA datasheet (290566), with the EOI register of version
 * 0x20 (ICH9 datasheet 13.5). ExtINT entries deliver nothing: the 8259's output is wired to LINT0.
 */
#include "machine/board/layout.h"
#include "machine/iommu/vtd.h"
#include "machine/irq/irq.h"
#include "machine/machine-internal.h"
#include "machine/timer/timers.h"

#define PINS            LAYOUT_GSI_COUNT
#define VERSION         0x20u
#define RTE_DELIVERY(e) ((e) >> 8 & 7)
#define RTE_LOGICAL     (UINT64_C(1) << 11)
#define RTE_REMOTE_IRR  (UINT64_C(1) << 14)
#define RTE_LEVEL       (UINT64_C(1) << 15)
#define RTE_MASKED      (UINT64_C(1) << 16)
#define RTE_REMAPPABLE  UINT64_C(0x00ff000000000000) /* the other format's index, VT-d 5.1.5.1 */
#define RTE_WRITABLE    UINT64_C(0xff0000000001afff)

typedef struct Ioapic {
    Device dev;
    uint64_t rte[PINS];
    uint32_t lines; /* input levels */
    uint32_t id;
    uint8_t index;
    IoRegion *region;
} Ioapic;

static void deliver(Ioapic *io, unsigned pin)
{
    uint64_t e = io->rte[pin];
    IrqMessage message = {
        .destination = (uint32_t)(e >> 56),
        .logical = e & RTE_LOGICAL,
        .level = e & RTE_LEVEL,
        .delivery = (IrqDelivery)RTE_DELIVERY(e),
        .vector = (uint8_t)e,
    };
    struct Vtd *iommu = io->dev.machine->iommu;
    if (!message.logical && message.destination == 0xff)
        message.destination = UINT32_MAX;
    if (iommu && !vtd_remap_ioapic(iommu, e, &message))
        return;
    if (message.delivery == IRQ_EXTINT || message.delivery == IRQ_SIPI)
        return;
    if (e & RTE_LEVEL)
        io->rte[pin] |= RTE_REMOTE_IRR;
    if (io->dev.machine->irq.lapic)
        lapic_send(io->dev.machine->irq.lapic, &message);
}

/* A level input that is asserted, unmasked and not in service. */
static void evaluate(Ioapic *io, unsigned pin)
{
    uint64_t e = io->rte[pin];
    if ((io->lines & (1u << pin)) && (e & RTE_LEVEL) && !(e & (RTE_MASKED | RTE_REMOTE_IRR)))
        deliver(io, pin);
}

void ioapic_set_pin(Device *dev, unsigned pin, bool level)
{
    Ioapic *io = (Ioapic *)dev;
    if (pin >= PINS)
        return;
    uint32_t bit = 1u << pin;
    bool was = io->lines & bit;
    io->lines = level ? io->lines | bit : io->lines & ~bit;
    uint64_t e = io->rte[pin];
    if (e & RTE_LEVEL)
        evaluate(io, pin);
    else if (level && !was && !(e & RTE_MASKED)) /* an edge on a masked pin is lost (3.2.4) */
        deliver(io, pin);
}

void ioapic_end_of_interrupt(Device *dev, uint8_t vector)
{
    Ioapic *io = (Ioapic *)dev;
    for (unsigned pin = 0; pin < PINS; pin++) {
        uint64_t e = io->rte[pin];
        if ((uint8_t)e == vector && (e & RTE_LEVEL) && (e & RTE_REMOTE_IRR)) {
            io->rte[pin] &= ~RTE_REMOTE_IRR;
            evaluate(io, pin);
        }
    }
}

bool ioapic_pin_masked(const Device *dev, unsigned pin)
{
    const Ioapic *io = (const Ioapic *)dev;
    return pin >= PINS || (io->rte[pin] & RTE_MASKED);
}

static uint32_t register_read(const Ioapic *io)
{
    switch (io->index) {
    case 0:
    case 2: /* arbitration ID: the same as the ID */
        return io->id;
    case 1:
        return (PINS - 1) << 16 | VERSION;
    default: {
        unsigned n = io->index - 0x10u;
        if (io->index < 0x10 || n / 2 >= PINS)
            return 0;
        return (uint32_t)(io->rte[n / 2] >> (n & 1 ? 32 : 0));
    }
    }
}

static void register_write(Ioapic *io, uint32_t value)
{
    if (io->index == 0)
        io->id = value & 0x0f000000;
    unsigned n = io->index - 0x10u, pin = n / 2;
    if (io->index < 0x10 || pin >= PINS)
        return;
    uint64_t old = io->rte[pin];
    uint64_t e =
        n & 1 ? (old & UINT32_MAX) | (uint64_t)value << 32 : (old & ~(uint64_t)UINT32_MAX) | value;
    uint64_t may = RTE_WRITABLE | (io->dev.machine->iommu ? RTE_REMAPPABLE : 0);
    e = (e & may) | (old & RTE_REMOTE_IRR);
    /* Becoming edge triggered ends the service: system software without an EOI register does this.
     */
    if (!(e & RTE_LEVEL))
        e &= ~RTE_REMOTE_IRR;
    io->rte[pin] = e;
    evaluate(io, pin);
    if (pin == LAYOUT_GSI_PIT && (old & RTE_MASKED) && !(e & RTE_MASKED))
        pit_interrupt_unmasked(io->dev.machine);
}

static uint64_t ioapic_read(void *opaque, uint64_t offset, unsigned size)
{
    Ioapic *io = opaque;
    switch (offset) {
    case 0x00:
        return io->index;
    case 0x10:
        return register_read(io);
    default:
        return 0;
    }
}

static void ioapic_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    Ioapic *io = opaque;
    switch (offset) {
    case 0x00:
        io->index = (uint8_t)value;
        break;
    case 0x10:
        register_write(io, (uint32_t)value);
        break;
    case 0x40:
        ioapic_end_of_interrupt(&io->dev, (uint8_t)value);
        break;
    }
}

static const IoOps ioapic_ops = {ioapic_read, ioapic_write, 4, 4, false};

static void ioapic_reset(Device *dev)
{
    Ioapic *io = (Ioapic *)dev;
    for (unsigned i = 0; i < PINS; i++)
        io->rte[i] = RTE_MASKED;
    io->id = 0;
    io->index = 0;
}

static bool ioapic_realize(Device *dev, GError **err)
{
    Ioapic *io = (Ioapic *)dev;
    io->region =
        machine_map_mmio(dev->machine, LAYOUT_IOAPIC_BASE, 0x1000, &ioapic_ops, io, "ioapic");
    if (!io->region)
        return lodge_fail(err, LODGE_ERROR_INTERNAL, "ioapic: its address is taken");
    ioapic_reset(dev);
    return true;
}

static void ioapic_unrealize(Device *dev)
{
    io_region_free(((Ioapic *)dev)->region);
}

static bool ioapic_state_loaded(Device *dev, GError **err)
{
    Ioapic *io = (Ioapic *)dev;
    for (unsigned i = 0; i < PINS; i++)
        io->rte[i] &= RTE_WRITABLE | RTE_REMOTE_IRR;
    io->lines &= (1u << PINS) - 1;
    io->id &= 0x0f000000;
    return true;
}

static const StateField ioapic_state[] = {
    STATE_ARRAY(Ioapic, rte),   STATE_FIELD(Ioapic, lines), STATE_FIELD(Ioapic, id),
    STATE_FIELD(Ioapic, index), STATE_FIELDS_END,
};

const DeviceType ioapic_device_type = {
    .name = "ioapic",
    .summary = "I/O APIC with 24 inputs",
    .bus = DEVICE_BUS_SYSTEM,
    .instance_size = sizeof(Ioapic),
    .realize = ioapic_realize,
    .reset = ioapic_reset,
    .unrealize = ioapic_unrealize,
    .state = ioapic_state,
    .state_loaded = ioapic_state_loaded,
};
