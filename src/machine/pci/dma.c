/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A function's own accesses to memory and its messages, through the IOMMU if there is one. */
#include "machine/iommu/vtd.h"
#include "machine/pci/pci-internal.h"

#define PAGE 0x1000u

static uint16_t source_of(const PciDevice *pci)
{
    return (uint16_t)(pci->bus->number << 8 | pci->devfn);
}

static bool dma(PciDevice *pci, uint64_t at, uint8_t *data, uint64_t length, bool write)
{
    Machine *m = pci->dev.machine;
    if (!pci_bus_master(pci))
        return false;
    while (length) {
        uint64_t piece = MIN(length, PAGE - (at & (PAGE - 1))), gpa = at;
        if (m->iommu && !vtd_translate(m->iommu, source_of(pci), at, write, &gpa))
            return false;
        if (!(write ? machine_dma_write(m, gpa, data, piece)
                    : machine_dma_read(m, gpa, data, piece)))
            return false;
        at += piece;
        data += piece;
        length -= piece;
    }
    return true;
}

bool pci_dma_read(PciDevice *pci, uint64_t at, void *to, uint64_t length)
{
    return dma(pci, at, to, length, false);
}

bool pci_dma_write(PciDevice *pci, uint64_t at, const void *from, uint64_t length)
{
    return dma(pci, at, (uint8_t *)from, length, true);
}

void pci_send_msi(PciDevice *pci, uint64_t address, uint32_t data)
{
    machine_send_msi_from(pci->dev.machine, source_of(pci), address, data);
}
