/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The IOMMU's registers, faults and invalidation queue. VT-d chapters 6, 7 and 11.4. */
#include "machine/iommu/vtd.h"

#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "machine/board/layout.h"

/* CAP: 64 Ki domains; 39- and 48-bit tables; MGAW; fault record at 220H; 2 MiB and 1 GiB pages; page
 * selective invalidation with any mask; draining. */
#define CAP_VALUE                                                                                  \
    (6u | 6u << 8 | (VTD_GUEST_BITS - 1u) << 16 | UINT64_C(0x22) << 24 | UINT64_C(3) << 34 |       \
     UINT64_C(1) << 39 | UINT64_C(0x12) << 48 | UINT64_C(3) << 54)
/* ECAP: queued invalidation, interrupt remapping, extended interrupts, pass-through; IOTLB
 * registers at 200H; any handle mask. */
#define ECAP_VALUE (UINT64_C(0x5a) | 0x20u << 8 | 0xfu << 20)

#define FSTS_OVERFLOW    1u
#define FSTS_PENDING     2u
#define FSTS_QUEUE_ERROR 0x10u
#define EVENT_MASKED     (1u << 31)
#define EVENT_PENDING    (1u << 30)
#define RECORD_FAULT     (1u << 31)
#define RECORD_READ      (1u << 30)
#define ICS_COMPLETE     1u

/* ---- faults and events ---- */

/* Control, data, address and upper address follow each other (11.4.7 to 11.4.12). */
void vtd_event(Vtd *v, unsigned control)
{
    uint32_t *c = vtd_reg(v, control);
    if (*c & EVENT_MASKED) {
        *c |= EVENT_PENDING;
        return;
    }
    *c &= ~EVENT_PENDING;
    /* The unit's own messages are not remapped (5.1.6). */
    if (c[2] >> 20 != 0xfee)
        return;
    IrqMessage message = {
        .destination = (c[2] >> 12 & 0xff) | (c[3] & 0xffffff00),
        .logical = c[2] & 4,
        .delivery = (IrqDelivery)(c[1] >> 8 & 7),
        .vector = (uint8_t)c[1],
    };
    if (!message.logical && message.destination == 0xff)
        message.destination = UINT32_MAX;
    if (message.delivery != IRQ_SIPI && v->dev.machine->irq.lapic)
        lapic_send(v->dev.machine->irq.lapic, &message);
}

void vtd_fault(Vtd *v, uint16_t source, uint64_t address, unsigned reason, bool read)
{
    uint32_t *record = vtd_reg(v, VTD_FRCD);
    if (record[3] & RECORD_FAULT) {
        *vtd_reg(v, VTD_FSTS) |= FSTS_OVERFLOW;
        return;
    }
    record[0] = (uint32_t)address & ~0xfffu;
    record[1] = (uint32_t)(address >> 32);
    record[2] = source;
    record[3] = reason | RECORD_FAULT | (read ? RECORD_READ : 0);
    *vtd_reg(v, VTD_FSTS) |= FSTS_PENDING;
    vtd_event(v, VTD_FECTL);
}

/* ---- the invalidation queue ---- */

enum { DESCRIPTOR_CONTEXT = 1, DESCRIPTOR_IOTLB, DESCRIPTOR_DEVICE, DESCRIPTOR_IEC, DESCRIPTOR_WAIT };

/* False: not a descriptor. */
static bool descriptor_run(Vtd *v, uint64_t low, uint64_t high)
{
    uint8_t status[4];
    switch (low & 0xf) {
    case DESCRIPTOR_CONTEXT:
    case DESCRIPTOR_IOTLB:
    case DESCRIPTOR_IEC:
        return true; /* nothing is cached */
    case DESCRIPTOR_WAIT:
        if (low & 0x20) { /* a status to be written */
            le32_put(status, (uint32_t)(low >> 32));
            machine_dma_write(v->dev.machine, high & ~UINT64_C(3), status, sizeof(status));
        }
        if (low & 0x10) { /* an interrupt */
            *vtd_reg(v, VTD_ICS) |= ICS_COMPLETE;
            vtd_event(v, VTD_IECTL);
        }
        return true;
    default:
        return false;
    }
}

static void queue_error(Vtd *v)
{
    *vtd_reg(v, VTD_FSTS) |= FSTS_QUEUE_ERROR;
    vtd_event(v, VTD_FECTL);
}

/* Bounded: the head passes the tail within one turn of the queue. */
void vtd_queue_run(Vtd *v)
{
    uint64_t base = vtd_reg64(v, VTD_IQA);
    uint32_t size = 0x1000u << (base & 7), tail = *vtd_reg(v, VTD_IQT);
    uint32_t *head = vtd_reg(v, VTD_IQH);
    if (!(*vtd_reg(v, VTD_GSTS) & VTD_G_QUEUE) || (*vtd_reg(v, VTD_FSTS) & FSTS_QUEUE_ERROR))
        return;
    if (tail >= size || *head >= size) {
        queue_error(v);
        return;
    }
    while (*head != tail) {
        uint8_t d[16];
        if (!machine_dma_read(v->dev.machine, (base & ~UINT64_C(0xfff)) + *head, d, sizeof(d)) ||
            !descriptor_run(v, le64_get(d), le64_get(d + 8))) {
            queue_error(v);
            return;
        }
        *head = (*head + 16) % size;
    }
}

/* ---- registers ---- */

static void global_command(Vtd *v, uint32_t command)
{
    const uint32_t follows = VTD_G_TRANSLATION | VTD_G_QUEUE | VTD_G_INTERRUPTS | VTD_G_COMPATIBLE;
    uint32_t *status = vtd_reg(v, VTD_GSTS), changed = (*status ^ command) & follows;
    *status ^= changed;
    if (command & VTD_G_ROOT) {
        v->root = vtd_reg64(v, VTD_RTADDR);
        *status |= VTD_G_ROOT;
    }
    if (command & VTD_G_IRT) {
        v->interrupt_table = vtd_reg64(v, VTD_IRTA);
        *status |= VTD_G_IRT;
    }
    if (changed & VTD_G_QUEUE) {
        *vtd_reg(v, VTD_IQH) = 0;
        vtd_queue_run(v);
    }
}

/* What the guest may write in each 32-bit register; others are read-only. */
static const struct {
    uint16_t offset;
    uint32_t writable, clears; /* clears: bits that writing 1 sets to 0 */
} writable[] = {
    {VTD_RTADDR, 0xfffff000, 0}, {VTD_RTADDR + 4, UINT32_MAX, 0},
    {VTD_CCMD, UINT32_MAX, 0},   {VTD_CCMD + 4, UINT32_MAX, 0},
    {VTD_FSTS, 0, FSTS_OVERFLOW | FSTS_QUEUE_ERROR},
    {VTD_FECTL, EVENT_MASKED, 0}, {VTD_FECTL + 4, UINT32_MAX, 0},
    {VTD_FECTL + 8, ~3u, 0},      {VTD_FECTL + 12, UINT32_MAX, 0},
    {VTD_IQT, 0x7fff0, 0},        {VTD_IQA, 0xfffff007, 0}, {VTD_IQA + 4, UINT32_MAX, 0},
    {VTD_ICS, 0, ICS_COMPLETE},
    {VTD_IECTL, EVENT_MASKED, 0}, {VTD_IECTL + 4, UINT32_MAX, 0},
    {VTD_IECTL + 8, ~3u, 0},      {VTD_IECTL + 12, UINT32_MAX, 0},
    {VTD_IRTA, 0xfffff80f, 0},    {VTD_IRTA + 4, UINT32_MAX, 0},
    {VTD_IVA, UINT32_MAX, 0},     {VTD_IVA + 4, UINT32_MAX, 0},
    {VTD_IOTLB, UINT32_MAX, 0},   {VTD_IOTLB + 4, UINT32_MAX, 0},
    {VTD_FRCD + 12, 0, RECORD_FAULT},
};

static void written(Vtd *v, unsigned offset)
{
    uint32_t *r = vtd_reg(v, offset);
    switch (offset) {
    case VTD_CCMD + 4: /* done at once: as globally as was asked */
        *r = (*r & ~(1u << 31 | 3u << 27)) | (*r >> 2 & 3u << 27);
        break;
    case VTD_IOTLB + 4:
        *r = (*r & ~(1u << 31 | 3u << 25)) | (*r >> 3 & 3u << 25);
        break;
    case VTD_FECTL:
    case VTD_IECTL:
        if (*r & EVENT_PENDING)
            vtd_event(v, offset);
        break;
    case VTD_FRCD + 12:
        if (!(*r & RECORD_FAULT))
            *vtd_reg(v, VTD_FSTS) &= ~FSTS_PENDING;
        break;
    case VTD_FSTS:
    case VTD_IQT:
        vtd_queue_run(v);
        break;
    default:
        break;
    }
}

static void write_32(Vtd *v, unsigned offset, uint32_t value)
{
    if (offset == VTD_GCMD) {
        global_command(v, value);
        return;
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(writable); i++) {
        if (writable[i].offset != offset)
            continue;
        uint32_t *r = vtd_reg(v, offset);
        *r = (*r & ~writable[i].writable & ~(value & writable[i].clears)) |
             (value & writable[i].writable);
        written(v, offset);
        return;
    }
}

static uint64_t mmio_read(void *opaque, uint64_t offset, unsigned size)
{
    Vtd *v = opaque;
    if (!range_within(offset, size, VTD_REGISTERS))
        return 0;
    uint32_t low = *vtd_reg(v, (unsigned)offset);
    return size == 8 ? vtd_reg64(v, (unsigned)offset) : low;
}

static void mmio_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    write_32(opaque, (unsigned)offset, (uint32_t)value);
    if (size == 8)
        write_32(opaque, (unsigned)offset + 4, (uint32_t)(value >> 32));
}

static const IoOps vtd_ops = {
    .read = mmio_read, .write = mmio_write, .min_size = 4, .max_size = 8};

/* ---- device ---- */

static void vtd_reset(Device *dev)
{
    Vtd *v = (Vtd *)dev;
    memset(v->reg, 0, sizeof(v->reg));
    v->root = v->interrupt_table = 0;
    *vtd_reg(v, VTD_VER) = 0x10;
    *vtd_reg(v, VTD_CAP) = (uint32_t)CAP_VALUE;
    *vtd_reg(v, VTD_CAP + 4) = (uint32_t)(CAP_VALUE >> 32);
    *vtd_reg(v, VTD_ECAP) = (uint32_t)ECAP_VALUE;
    *vtd_reg(v, VTD_FECTL) = *vtd_reg(v, VTD_IECTL) = EVENT_MASKED;
}

static void vtd_unrealize(Device *dev)
{
    Vtd *v = (Vtd *)dev;
    if (dev->machine->iommu == v)
        dev->machine->iommu = NULL;
    g_clear_pointer(&v->region, io_region_free);
}

static bool vtd_realize(Device *dev, GError **err)
{
    Vtd *v = (Vtd *)dev;
    Machine *m = dev->machine;
    if (m->engine->has_irqchip)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "intel-iommu: engine %s delivers interrupts past it", m->engine->name);
    if (m->iommu)
        return lodge_fail(err, LODGE_ERROR_EXISTS, "intel-iommu: the machine has one already");
    v->region = machine_map_mmio(m, LAYOUT_IOMMU_BASE, 0x1000, &vtd_ops, v, "intel-iommu");
    if (!v->region)
        return lodge_fail(err, LODGE_ERROR_BUSY, "intel-iommu: address 0x%x is taken",
                          LAYOUT_IOMMU_BASE);
    m->iommu = v;
    vtd_reset(dev);
    return true;
}

static bool vtd_loaded(Device *dev, GError **err)
{
    Vtd *v = (Vtd *)dev;
    *vtd_reg(v, VTD_IQH) &= 0x7fff0;
    *vtd_reg(v, VTD_IQT) &= 0x7fff0;
    return true;
}

static const StateField vtd_state[] = {STATE_ARRAY(Vtd, reg), STATE_FIELD(Vtd, root),
                                       STATE_FIELD(Vtd, interrupt_table), STATE_FIELDS_END};

const DeviceType intel_iommu_device_type = {
    .name = "intel-iommu",
    .summary = "IOMMU: DMA and interrupt remapping (VT-d)",
    .bus = DEVICE_BUS_ISA,
    .instance_size = sizeof(Vtd),
    .realize = vtd_realize,
    .unrealize = vtd_unrealize,
    .reset = vtd_reset,
    .state = vtd_state,
    .state_loaded = vtd_loaded,
};
