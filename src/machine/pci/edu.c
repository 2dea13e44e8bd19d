/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * edu: a PCI function for tests of interrupts and DMA: it computes factorials, raises INTx or MSI on
 * request, and copies between memory and a buffer of 4 KiB (QEMU's docs/specs/edu, whose register
 * layout test programs know).
 */
#include <string.h>

#include "base/bytes.h"
#include "machine/pci/pci-internal.h"

#define REG_ID         0x00u
#define REG_LIVENESS   0x04u
#define REG_FACTORIAL  0x08u
#define REG_STATUS     0x20u
#define REG_INTERRUPTS 0x24u
#define REG_RAISE      0x60u
#define REG_ACK        0x64u
#define REG_DMA_SOURCE 0x80u
#define REG_DMA_TARGET 0x88u
#define REG_DMA_COUNT  0x90u
#define REG_DMA_START  0x98u

#define BAR_SIZE          0x100000u
#define ID_VALUE          0x010000edu
#define STATUS_INTERRUPT  0x80u /* raise one when a factorial is done */
#define INTERRUPT_DONE    0x001u
#define INTERRUPT_DMA     0x100u
#define DMA_RUN           1u
#define DMA_TO_MEMORY     2u
#define DMA_INTERRUPT     4u
#define BUFFER            0x40000u
#define BUFFER_SIZE       0x1000u

#define MSI_ID     5u
#define MSI_SIZE   14u /* with a 64-bit address, without masks */
#define MSI_ENABLE 1u
#define MSI_WIDE   0x80u

typedef struct Edu {
    PciDevice pci; /* first */
    uint32_t liveness, factorial, status, interrupts;
    uint64_t dma[4]; /* source, target, count, command */
    uint8_t buffer[BUFFER_SIZE];
    uint16_t msi; /* offset of the capability */
} Edu;

/* ---- interrupts ---- */

/* PCI Local Bus 3.0 6.8.1: a message where MSI is on, else the wire. */
static void interrupts_set(Edu *e, uint32_t bits)
{
    const uint8_t *msi = e->pci.config + e->msi;
    bool message = le16_get(msi + 2) & MSI_ENABLE, rises = bits && !e->interrupts;
    e->interrupts = bits;
    pci_set_intx(&e->pci, bits && !message);
    if (message && rises && pci_bus_master(&e->pci))
        pci_send_msi(&e->pci, le64_get(msi + 4), le16_get(msi + 12));
}

/* ---- DMA ---- */

static void dma_run(Edu *e)
{
    bool to_memory = e->dma[3] & DMA_TO_MEMORY;
    uint64_t memory = e->dma[to_memory ? 1 : 0], at = e->dma[to_memory ? 0 : 1] - BUFFER;
    uint64_t count = e->dma[2];
    e->dma[3] &= ~(uint64_t)DMA_RUN;
    if (!range_within(at, count, BUFFER_SIZE))
        return; /* outside the buffer: nothing is moved */
    if (to_memory)
        pci_dma_write(&e->pci, memory, e->buffer + at, count);
    else
        pci_dma_read(&e->pci, memory, e->buffer + at, count);
    if (e->dma[3] & DMA_INTERRUPT)
        interrupts_set(e, e->interrupts | INTERRUPT_DMA);
}

/* ---- registers ---- */

static uint64_t edu_read(void *opaque, uint64_t offset, unsigned size)
{
    const Edu *e = opaque;
    if (offset >= REG_DMA_SOURCE && offset < REG_DMA_START + 8) {
        uint64_t value = e->dma[(offset - REG_DMA_SOURCE) / 8];
        return size == 8 ? value : (uint32_t)(value >> (offset & 4) * 8);
    }
    switch (offset) {
    case REG_ID:
        return ID_VALUE;
    case REG_LIVENESS:
        return e->liveness;
    case REG_FACTORIAL:
        return e->factorial;
    case REG_STATUS:
        return e->status;
    case REG_INTERRUPTS:
        return e->interrupts;
    default:
        return 0;
    }
}

/* Modulo 2^32: from 34 on it is 0. */
static uint32_t factorial(uint32_t n)
{
    uint32_t product = 1;
    for (uint32_t i = 2; i <= n && product; i++)
        product *= i;
    return product;
}

static void dma_write(Edu *e, unsigned offset, unsigned size, uint64_t value)
{
    uint64_t *r = &e->dma[(offset - REG_DMA_SOURCE) / 8];
    unsigned shift = (offset & 4) * 8;
    *r = size == 8 ? value
                   : (*r & ~((uint64_t)UINT32_MAX << shift)) | (uint64_t)(uint32_t)value << shift;
    if (r == &e->dma[3] && (value & DMA_RUN) && !shift)
        dma_run(e);
}

static void edu_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    Edu *e = opaque;
    if (offset >= REG_DMA_SOURCE && offset < REG_DMA_START + 8) {
        dma_write(e, (unsigned)offset, size, value);
        return;
    }
    switch (offset) {
    case REG_LIVENESS:
        e->liveness = ~(uint32_t)value;
        break;
    case REG_FACTORIAL:
        e->factorial = factorial((uint32_t)value);
        if (e->status & STATUS_INTERRUPT)
            interrupts_set(e, e->interrupts | INTERRUPT_DONE);
        break;
    case REG_STATUS:
        e->status = (uint32_t)value & STATUS_INTERRUPT;
        break;
    case REG_RAISE:
        interrupts_set(e, e->interrupts | (uint32_t)value);
        break;
    case REG_ACK:
        interrupts_set(e, e->interrupts & ~(uint32_t)value);
        break;
    default:
        break;
    }
}

static const IoOps edu_ops = {.read = edu_read, .write = edu_write, .min_size = 4, .max_size = 8};

/* ---- device ---- */

static void edu_reset(Device *dev)
{
    Edu *e = (Edu *)dev;
    pci_set_intx(&e->pci, false);
    pci_device_reset(&e->pci);
    e->liveness = e->factorial = e->status = e->interrupts = 0;
    memset(e->dma, 0, sizeof(e->dma));
    memset(e->buffer, 0, sizeof(e->buffer));
}

static void edu_unrealize(Device *dev)
{
    pci_device_exit((PciDevice *)dev);
}

static bool edu_realize(Device *dev, GError **err)
{
    Edu *e = (Edu *)dev;
    static const PciIds ids = {0x1234, 0x11e8, 0x1af4, 0x1100, 0x10, 0x00ff00};
    if (!pci_device_init(&e->pci, &ids, err))
        return false;
    e->msi = pci_add_capability(&e->pci, MSI_ID, MSI_SIZE);
    uint8_t *mask = e->pci.write_mask + e->msi;
    le16_put(e->pci.config + e->msi + 2, MSI_WIDE);
    le16_put(mask + 2, MSI_ENABLE);
    le32_put(mask + 4, 0xfffffffc);
    le32_put(mask + 8, UINT32_MAX);
    le16_put(mask + 12, UINT16_MAX);
    if (pci_add_bar(&e->pci, 0, BAR_SIZE, false, false, &edu_ops, e, err))
        return true;
    pci_device_exit(&e->pci);
    return false;
}

static bool edu_loaded(Device *dev, GError **err)
{
    return pci_device_loaded((PciDevice *)dev, err);
}

static const StateField edu_state[] = {
    {STATE_NESTED, "pci", offsetof(Edu, pci), sizeof(PciDevice), 1, pci_device_state},
    STATE_FIELD(Edu, liveness),
    STATE_FIELD(Edu, factorial),
    STATE_FIELD(Edu, status),
    STATE_FIELD(Edu, interrupts),
    STATE_ARRAY(Edu, dma),
    STATE_BUFFER(Edu, buffer),
    STATE_FIELDS_END,
};

const DeviceType edu_device_type = {
    .name = "edu",
    .summary = "PCI function for tests of interrupts and DMA",
    .bus = DEVICE_BUS_PCI,
    .instance_size = sizeof(Edu),
    .realize = edu_realize,
    .reset = edu_reset,
    .unrealize = edu_unrealize,
    .state = edu_state,
    .state_loaded = edu_loaded,
};
