/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* MSI-X: the table and the pending bits in a BAR of their own. PCI Local Bus 3.0, 6.8.2. */
#include <string.h>

#include "machine/pci/pci-internal.h"

#define BAR_SIZE    0x1000u
#define PBA_OFFSET  0x800u
#define CONTROL     2
#define ENABLE      0x8000u
#define MASK_ALL    0x4000u
#define VECTOR_MASK 1u

G_STATIC_ASSERT(PCI_MSIX_VECTORS_MAX * 16 <= PBA_OFFSET);

static unsigned control(const PciDevice *pci)
{
    return le16_get(pci->config + pci->msix_offset + CONTROL);
}

bool pci_msix_enabled(const PciDevice *pci)
{
    return pci->msix_offset && (control(pci) & ENABLE);
}

static bool masked(const PciDevice *pci, unsigned vector)
{
    return !pci_bus_master(pci) || (control(pci) & MASK_ALL) ||
           (pci->msix_table[vector * 16 + 12] & VECTOR_MASK);
}

static void send(PciDevice *pci, unsigned vector)
{
    const uint8_t *entry = pci->msix_table + vector * 16;
    pci_send_msi(pci, le64_get(entry), le32_get(entry + 8));
}

void pci_msix_notify(PciDevice *pci, unsigned vector)
{
    if (vector >= pci->msix_vectors)
        return;
    machine_lock(pci->dev.machine);
    if (pci_msix_enabled(pci)) {
        if (masked(pci, vector))
            pci->msix_pending[vector / 8] |= 1u << (vector % 8);
        else
            send(pci, vector);
    }
    machine_unlock(pci->dev.machine);
}

/* Sends what waited for its mask to be cleared. */
static void flush(PciDevice *pci, unsigned vector)
{
    uint8_t bit = 1u << (vector % 8);
    if (!(pci->msix_pending[vector / 8] & bit) || !pci_msix_enabled(pci) || masked(pci, vector))
        return;
    pci->msix_pending[vector / 8] &= (uint8_t)~bit;
    send(pci, vector);
}

void pci_msix_config_written(PciDevice *pci)
{
    for (unsigned i = 0; i < pci->msix_vectors; i++) {
        flush(pci, i);
        if (pci->msix_changed)
            pci->msix_changed(pci, i);
    }
}

void pci_msix_reset(PciDevice *pci)
{
    memset(pci->msix_table, 0, sizeof(pci->msix_table));
    memset(pci->msix_pending, 0, sizeof(pci->msix_pending));
    for (unsigned i = 0; i < pci->msix_vectors; i++)
        pci->msix_table[i * 16 + 12] = VECTOR_MASK;
}

static uint64_t msix_read(void *opaque, uint64_t offset, unsigned size)
{
    PciDevice *pci = opaque;
    uint64_t value = 0;
    if (offset + size <= pci->msix_vectors * 16)
        memcpy(&value, pci->msix_table + offset, size);
    else if (offset >= PBA_OFFSET && offset - PBA_OFFSET + size <= sizeof(pci->msix_pending))
        memcpy(&value, pci->msix_pending + (offset - PBA_OFFSET), size);
    return value;
}

static void msix_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    PciDevice *pci = opaque;
    if (offset + size > pci->msix_vectors * 16)
        return;
    unsigned vector = (unsigned)offset / 16;
    memcpy(pci->msix_table + offset, &value, size);
    /* The low address bits and the rest of vector control are reserved. */
    pci->msix_table[vector * 16] &= 0xfc;
    le32_put(pci->msix_table + vector * 16 + 12,
             le32_get(pci->msix_table + vector * 16 + 12) & VECTOR_MASK);
    flush(pci, vector);
    if (pci->msix_changed)
        pci->msix_changed(pci, vector);
}

static const IoOps msix_ops = {msix_read, msix_write, 4, 8, false};

bool pci_add_msix(PciDevice *pci, unsigned vectors, unsigned bar, GError **err)
{
    if (!vectors || vectors > PCI_MSIX_VECTORS_MAX)
        return lodge_fail(err, LODGE_ERROR_LIMIT,
                          "device %s: %u MSI-X vectors, at most %d are possible",
                          pci->dev.type->name, vectors, PCI_MSIX_VECTORS_MAX);
    if (!pci_add_bar(pci, bar, BAR_SIZE, false, false, &msix_ops, pci, err))
        return false;
    uint16_t at = pci_add_capability(pci, 0x11, 12);
    le16_put(pci->config + at + CONTROL, (uint16_t)(vectors - 1));
    le16_put(pci->write_mask + at + CONTROL, ENABLE | MASK_ALL);
    le32_put(pci->config + at + 4, bar);
    le32_put(pci->config + at + 8, PBA_OFFSET | bar);
    pci->msix_offset = at;
    pci->msix_vectors = vectors;
    pci_msix_reset(pci);
    return true;
}
