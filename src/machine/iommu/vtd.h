/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * An IOMMU after Intel's Virtualization Technology for Directed I/O, revision 3.3 ("VT-d" below):
 * DMA remapping with legacy-mode root tables and 3- or 4-level second-level tables, interrupt
 * remapping, queued and register-based invalidation. It caches nothing, so every invalidation is
 * complete at once. Not there: scalable mode, first-level tables, device TLBs, posted interrupts.
 * virtio devices do not offer VIRTIO_F_ACCESS_PLATFORM and so bypass DMA remapping, as that
 * feature's absence says (Virtio 1.2, 6.1); their interrupts are remapped.
 */
#pragma once

#include "machine/irq/irq.h"
#include "machine/machine-internal.h"

extern const DeviceType intel_iommu_device_type;

#define VTD_REGISTERS   0x230u /* bytes with registers in them; the page has 4 KiB */
#define VTD_SOURCE_NONE (-1)   /* the IOAPIC: its requests are not checked for their source */

typedef struct Vtd {
    Device dev; /* first */
    IoRegion *region;
    uint32_t reg[VTD_REGISTERS / 4];
    uint64_t root, interrupt_table; /* RTADDR and IRTA as GCMD latched them */
} Vtd;

/* Registers by offset (VT-d 11.4). */
enum {
    VTD_VER = 0x00,
    VTD_CAP = 0x08,
    VTD_ECAP = 0x10,
    VTD_GCMD = 0x18,
    VTD_GSTS = 0x1c,
    VTD_RTADDR = 0x20,
    VTD_CCMD = 0x28,
    VTD_FSTS = 0x34,
    VTD_FECTL = 0x38,
    VTD_IQH = 0x80,
    VTD_IQT = 0x88,
    VTD_IQA = 0x90,
    VTD_ICS = 0x9c,
    VTD_IECTL = 0xa0,
    VTD_IRTA = 0xb8,
    VTD_IVA = 0x200,
    VTD_IOTLB = 0x208,
    VTD_FRCD = 0x220,
};

#define VTD_G_TRANSLATION  (1u << 31) /* GCMD and GSTS */
#define VTD_G_ROOT         (1u << 30)
#define VTD_G_QUEUE        (1u << 26)
#define VTD_G_INTERRUPTS   (1u << 25)
#define VTD_G_IRT          (1u << 24)
#define VTD_G_COMPATIBLE   (1u << 23)
#define VTD_GUEST_BITS     48 /* MGAW */
#define VTD_IRTA_EXTENDED  (1u << 11)

static inline uint32_t *vtd_reg(Vtd *v, unsigned offset)
{
    return &v->reg[offset / 4];
}

static inline uint64_t vtd_reg64(Vtd *v, unsigned offset)
{
    return *vtd_reg(v, offset) | (uint64_t)*vtd_reg(v, offset + 4) << 32;
}

/* All with the machine lock held. */

/* Records what a request of @source to @address did wrong (VT-d 7.2.1; @reason from appendix A). */
void vtd_fault(Vtd *v, uint16_t source, uint64_t address, unsigned reason, bool read);
void vtd_event(Vtd *v, unsigned control); /* the MSI of FECTL or IECTL */
void vtd_queue_run(Vtd *v);

/* The guest physical address of a device's @iova; false: the access is blocked, and recorded. */
bool vtd_translate(Vtd *v, uint16_t source, uint64_t iova, bool write, uint64_t *gpa);
/* An MSI as it was written; false: blocked. @source may be VTD_SOURCE_NONE. */
bool vtd_remap_msi(Vtd *v, int source, uint64_t address, uint32_t data, IrqMessage *message);
/* An IOAPIC entry likewise. Both leave *message alone unless remapping is on. */
bool vtd_remap_ioapic(Vtd *v, uint64_t entry, IrqMessage *message);
