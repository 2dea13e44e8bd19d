/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The PCI tree: buses, the root complex, bridges. */
#pragma once

#include "machine/machine-internal.h"
#include "machine/pci/pci.h"

/* Configuration registers (PCI Local Bus 3.0 chapter 6; PCI-to-PCI Bridge 1.2 chapter 3). */
enum {
    PCI_VENDOR = 0x00,
    PCI_DEVICE_ID = 0x02,
    PCI_COMMAND = 0x04,
    PCI_STATUS = 0x06,
    PCI_REVISION = 0x08,
    PCI_CLASS = 0x09,
    PCI_HEADER_TYPE = 0x0e,
    PCI_BAR0 = 0x10,
    PCI_SUBSYSTEM_VENDOR = 0x2c,
    PCI_SUBSYSTEM = 0x2e,
    PCI_CAPABILITIES = 0x34,
    PCI_INTERRUPT_LINE = 0x3c,
    PCI_INTERRUPT_PIN = 0x3d,
    PCI_PRIMARY_BUS = 0x18,
    PCI_SECONDARY_BUS = 0x19,
    PCI_SUBORDINATE_BUS = 0x1a,
    PCI_PORT_BASE = 0x1c,
    PCI_PORT_LIMIT = 0x1d,
    PCI_MEMORY_BASE = 0x20,
    PCI_MEMORY_LIMIT = 0x22,
    PCI_PREFETCH_BASE = 0x24,
    PCI_PREFETCH_LIMIT = 0x26,
    PCI_PREFETCH_BASE_HIGH = 0x28,
    PCI_PREFETCH_LIMIT_HIGH = 0x2c,
    PCI_PORT_BASE_HIGH = 0x30,
    PCI_PORT_LIMIT_HIGH = 0x32,
    PCI_BRIDGE_CONTROL = 0x3e,
};

#define PCI_COMMAND_PORTS        0x1u
#define PCI_COMMAND_MEMORY       0x2u
#define PCI_COMMAND_MASTER       0x4u
#define PCI_COMMAND_INTX_DISABLE 0x400u
#define PCI_STATUS_INTX          0x08u
#define PCI_STATUS_CAPABILITIES  0x10u

enum { PCIE_TYPE_ROOT_PORT = 4, PCIE_TYPE_INTEGRATED_ENDPOINT = 9 };

struct PciBus {
    Machine *machine;
    PciDevice *bridge;       /* NULL: the root bus */
    unsigned number;         /* assigned by configuration; the guest may choose another one */
    PciDevice *devices[256]; /* by devfn */
};

typedef struct PciRoot {
    PciDevice pci; /* the host bridge, 00:00.0 */
    PciBus bus;
    GPtrArray *buses; /* of PciBus; the root bus first */
    uint32_t address; /* port 0xcf8 */
    IoRegion *region[3];
} PciRoot;

extern const DeviceType pcie_root_device_type, pcie_root_port_device_type, edu_device_type;

/* The bus that configuration calls @number, or NULL. */
PciBus *pci_bus_find(PciRoot *root, unsigned number);
uint32_t pci_config_read(PciDevice *pci, unsigned offset, unsigned size);
void pci_config_write(PciDevice *pci, unsigned offset, unsigned size, uint32_t value);
/* The header of a function that has its place on a bus. */
void pci_function_init(PciDevice *pci, const PciIds *ids);
unsigned pci_intx_gsi(const PciDevice *pci);
/* After config was changed by other means: BARs, INTx. */
void pci_update(PciDevice *pci);
void pci_msix_config_written(PciDevice *pci);
void pci_msix_reset(PciDevice *pci);
/* What firmware would do: bus numbers, BARs, bridge windows, interrupt lines, command registers. */
bool pci_assign_resources(Machine *m, GError **err);
