/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * PCI Express devices: configuration space, BARs, MSI-X, INTx. PCI Local Bus 3.0, PCIe 5.0
 * chapter 7.
 */
#pragma once

#include "machine/device.h"

#define PCI_CONFIG_SIZE      4096
#define PCI_BAR_COUNT        6
#define PCI_MSIX_VECTORS_MAX 128

typedef struct PciBus PciBus;

typedef struct PciBar {
    uint64_t size; /* 0: absent */
    bool is_port, is_64bit, prefetchable;
    IoRegion *region;
} PciBar;

typedef struct PciDevice {
    Device dev; /* first */
    PciBus *bus;
    uint8_t devfn;
    uint8_t config[PCI_CONFIG_SIZE];
    uint8_t write_mask[PCI_CONFIG_SIZE]; /* bits the guest may change */
    PciBar bar[PCI_BAR_COUNT];
    uint16_t capability_end; /* where the next capability goes */
    unsigned msix_vectors;
    uint16_t msix_offset; /* of the capability */
    uint8_t msix_table[PCI_MSIX_VECTORS_MAX * 16];
    uint8_t msix_pending[PCI_MSIX_VECTORS_MAX / 8];
    bool intx_level;
    void (*config_written)(struct PciDevice *pci, unsigned offset, unsigned size); /* may be NULL */
    /* Before the guest reads these bytes of config: may renew them. May be NULL. */
    void (*config_read)(struct PciDevice *pci, unsigned offset, unsigned size);
    void (*msix_changed)(struct PciDevice *pci,
                         unsigned vector); /* mask or message changed; may be NULL */
} PciDevice;

typedef struct PciIds {
    uint16_t vendor, device, subsystem_vendor, subsystem;
    uint8_t revision;
    uint32_t class_code; /* 24 bits */
} PciIds;

/* Takes the slot of option "addr" ("BB:SS.F" or "SS.F") or the first free one on the root bus. */
bool pci_device_init(PciDevice *pci, const PciIds *ids, GError **err);
void pci_device_exit(PciDevice *pci);
void pci_device_reset(PciDevice *pci); /* command, BARs, MSI-X back to power-on */
/* @size a power of two, at least 16 (ports: 4). */
bool pci_add_bar(PciDevice *pci, unsigned index, uint64_t size, bool is_port, bool prefetchable64,
                 const IoOps *ops, void *opaque, GError **err);
/* Reserves @size bytes of config space for a capability; returns its offset. */
uint16_t pci_add_capability(PciDevice *pci, uint8_t id, uint8_t size);
bool pci_add_pcie_capability(PciDevice *pci, unsigned port_type);
/* Table and PBA live in BAR @bar, which this creates (4 KiB-multiple MMIO). */
bool pci_add_msix(PciDevice *pci, unsigned vectors, unsigned bar, GError **err);
bool pci_msix_enabled(const PciDevice *pci);
/* Whether it may access memory; MSI-X messages wait until it may. PCI Local Bus 3.0, 6.2.2. */
static inline bool pci_bus_master(const PciDevice *pci)
{
    return pci->config[4] & 4;
}
/* Sends vector, or marks it pending while masked. Any thread (takes the machine lock if it must).
 */
void pci_msix_notify(PciDevice *pci, unsigned vector);
void pci_set_intx(PciDevice *pci, bool level);
/* Machine lock held. Memory as the function sees it, at addresses that an IOMMU may remap; false: the
 * function is no bus master, or some of it is not there. */
bool pci_dma_read(PciDevice *pci, uint64_t at, void *to, uint64_t length);
bool pci_dma_write(PciDevice *pci, uint64_t at, const void *from, uint64_t length);
void pci_send_msi(PciDevice *pci, uint64_t address, uint32_t data);
/* For state_loaded: maps the BARs where the loaded configuration says. */
bool pci_device_loaded(PciDevice *pci, GError **err);
extern const StateField pci_device_state[]; /* for STATE_NESTED use in a device's table */
