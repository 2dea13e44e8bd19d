/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* DMA and interrupt remapping: the tables in the guest's memory. VT-d chapters 3, 5 and 9. */
#include "base/bytes.h"
#include "machine/iommu/vtd.h"

/* Fault reasons (VT-d appendix A). */
enum {
    FAULT_ROOT_ABSENT = 0x1,
    FAULT_CONTEXT_ABSENT = 0x2,
    FAULT_CONTEXT_INVALID = 0x3,
    FAULT_ADDRESS = 0x4,
    FAULT_WRITE = 0x5,
    FAULT_READ = 0x6,
    FAULT_TABLE_ACCESS = 0x7,
    FAULT_ROOT_ACCESS = 0x8,
    FAULT_CONTEXT_ACCESS = 0x9,
    FAULT_INTERRUPT_INDEX = 0x21,
    FAULT_INTERRUPT_ABSENT = 0x22,
    FAULT_INTERRUPT_ACCESS = 0x23,
    FAULT_INTERRUPT_RESERVED = 0x24,
    FAULT_INTERRUPT_COMPATIBLE = 0x25,
    FAULT_INTERRUPT_SOURCE = 0x26,
};

#define ADDRESS_MASK   UINT64_C(0x000ffffffffff000)
#define ENTRY_PRESENT  1u
#define ENTRY_QUIET    2u /* context entry and IRTE: do not report faults */
#define PTE_READ       1u
#define PTE_WRITE      2u
#define PTE_LARGE      0x80u
#define TYPE_PASS      2u
#define IRTE_POSTED    (1u << 15)
#define VERIFY_SOURCE  1u
#define VERIFY_BUS     2u

static bool entry_read(Vtd *v, uint64_t at, uint64_t entry[2])
{
    uint8_t bytes[16];
    if (!machine_dma_read(v->dev.machine, at, bytes, sizeof(bytes)))
        return false;
    entry[0] = le64_get(bytes);
    entry[1] = le64_get(bytes + 8);
    return true;
}

/* ---- DMA ---- */

/* 0, or the reason of the fault. */
static unsigned context_find(Vtd *v, uint16_t source, uint64_t context[2])
{
    uint64_t root[2];
    context[0] = 0;
    if (!entry_read(v, (v->root & ADDRESS_MASK) + (source >> 8) * 16u, root))
        return FAULT_ROOT_ACCESS;
    if (!(root[0] & ENTRY_PRESENT))
        return FAULT_ROOT_ABSENT;
    if (!entry_read(v, (root[0] & ADDRESS_MASK) + (source & 0xff) * 16u, context)) {
        context[0] = 0;
        return FAULT_CONTEXT_ACCESS;
    }
    return context[0] & ENTRY_PRESENT ? 0 : FAULT_CONTEXT_ABSENT;
}

/* Second-level tables of 3 or 4 levels, as the context entry's address width says (9.3, 9.8). */
static unsigned table_walk(Vtd *v, const uint64_t context[2], uint64_t iova, bool write,
                           uint64_t *gpa)
{
    unsigned width = context[1] & 7, level = width + 2;
    if (width != 1 && width != 2)
        return FAULT_CONTEXT_INVALID;
    if (iova >> (12 + 9 * level))
        return FAULT_ADDRESS;
    uint64_t table = context[0] & ADDRESS_MASK;
    for (;; level--) {
        unsigned shift = 12 + 9 * (level - 1);
        uint8_t bytes[8];
        if (!machine_dma_read(v->dev.machine, table + (iova >> shift & 0x1ff) * 8, bytes, 8))
            return FAULT_TABLE_ACCESS;
        uint64_t entry = le64_get(bytes);
        if (!(entry & (write ? PTE_WRITE : PTE_READ)))
            return write ? FAULT_WRITE : FAULT_READ;
        if (level == 1 || ((entry & PTE_LARGE) && level <= 3)) {
            uint64_t offset = (UINT64_C(1) << shift) - 1;
            *gpa = (entry & ADDRESS_MASK & ~offset) | (iova & offset);
            return 0;
        }
        table = entry & ADDRESS_MASK;
    }
}

bool vtd_translate(Vtd *v, uint16_t source, uint64_t iova, bool write, uint64_t *gpa)
{
    uint64_t context[2];
    *gpa = iova;
    if (!(*vtd_reg(v, VTD_GSTS) & VTD_G_TRANSLATION))
        return true;
    unsigned reason = context_find(v, source, context), type = context[0] >> 2 & 3;
    if (!reason && type == TYPE_PASS)
        return true;
    if (!reason)
        reason = type ? FAULT_CONTEXT_INVALID : table_walk(v, context, iova, write, gpa);
    if (reason && !(context[0] & ENTRY_QUIET))
        vtd_fault(v, source, iova, reason, !write);
    return !reason;
}

/* ---- interrupts ---- */

static bool source_allowed(int source, uint64_t high)
{
    /* The last bits of the function's number may be left out of the comparison (9.10, SQ). */
    static const uint8_t ignored[] = {0, 4, 6, 7};
    unsigned id = high & 0xffff, bus = (unsigned)source >> 8;
    if (source == VTD_SOURCE_NONE)
        return true;
    switch (high >> 18 & 3) {
    case VERIFY_SOURCE:
        return ((id ^ (unsigned)source) & ~(unsigned)ignored[high >> 16 & 3]) == 0;
    case VERIFY_BUS:
        return bus >= id >> 8 && bus <= (id & 0xff);
    default:
        return true;
    }
}

static unsigned irte_find(Vtd *v, int source, unsigned index, uint64_t irte[2])
{
    irte[0] = 0;
    if (index >= 2u << (v->interrupt_table & 0xf))
        return FAULT_INTERRUPT_INDEX;
    if (!entry_read(v, (v->interrupt_table & ADDRESS_MASK) + index * 16u, irte)) {
        irte[0] = 0;
        return FAULT_INTERRUPT_ACCESS;
    }
    if (!(irte[0] & ENTRY_PRESENT))
        return FAULT_INTERRUPT_ABSENT;
    if (irte[0] & IRTE_POSTED)
        return FAULT_INTERRUPT_RESERVED;
    return source_allowed(source, irte[1]) ? 0 : FAULT_INTERRUPT_SOURCE;
}

static bool remap(Vtd *v, int source, unsigned index, IrqMessage *message)
{
    uint64_t irte[2];
    unsigned reason = irte_find(v, source, index, irte);
    uint16_t id = source == VTD_SOURCE_NONE ? 0 : (uint16_t)source;
    if (reason) {
        if (!(irte[0] & ENTRY_QUIET))
            vtd_fault(v, id, (uint64_t)index << 48, reason, false);
        return false;
    }
    uint32_t to = (uint32_t)(irte[0] >> 32);
    *message = (IrqMessage){
        .logical = irte[0] & 4,
        .level = irte[0] & 0x10,
        .delivery = (IrqDelivery)(irte[0] >> 5 & 7),
        .vector = (uint8_t)(irte[0] >> 16),
        .destination = v->interrupt_table & VTD_IRTA_EXTENDED ? to : to >> 8 & 0xff,
    };
    if (!message->logical && message->destination == 0xff &&
        !(v->interrupt_table & VTD_IRTA_EXTENDED))
        message->destination = UINT32_MAX;
    return message->delivery != IRQ_SIPI && message->delivery != IRQ_EXTINT;
}

static bool compatible(Vtd *v, int source)
{
    bool extended = v->interrupt_table & VTD_IRTA_EXTENDED;
    if (!extended && (*vtd_reg(v, VTD_GSTS) & VTD_G_COMPATIBLE))
        return true;
    vtd_fault(v, source == VTD_SOURCE_NONE ? 0 : (uint16_t)source, 0, FAULT_INTERRUPT_COMPATIBLE,
              false);
    return false;
}

/* 5.1.2.2: bit 4 of the address tells the format; index in 19:5 and 2, subhandle in the data. */
bool vtd_remap_msi(Vtd *v, int source, uint64_t address, uint32_t data, IrqMessage *message)
{
    if (!(*vtd_reg(v, VTD_GSTS) & VTD_G_INTERRUPTS))
        return true;
    if (!(address & 0x10))
        return compatible(v, source);
    unsigned index = (unsigned)(address >> 5 & 0x7fff) | (unsigned)(address >> 2 & 1) << 15;
    if (address & 8)
        index += data & 0xffff;
    return remap(v, source, index, message);
}

/* 5.1.5.1: bit 48 tells the format; index in 63:49 and 11. */
bool vtd_remap_ioapic(Vtd *v, uint64_t entry, IrqMessage *message)
{
    if (!(*vtd_reg(v, VTD_GSTS) & VTD_G_INTERRUPTS))
        return true;
    if (!(entry >> 48 & 1))
        return compatible(v, VTD_SOURCE_NONE);
    return remap(v, VTD_SOURCE_NONE, (unsigned)(entry >> 49) | (unsigned)(entry >> 11 & 1) << 15,
                 message);
}
