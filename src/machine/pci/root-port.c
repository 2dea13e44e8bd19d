/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A PCI Express root port: a bridge to a bus with one slot. PCI-to-PCI Bridge 1.2 chapter 3
 * (configuration header), PCIe 5.0 7.5.3. Not there: hotplug, power management and error events.
 * The windows are kept for the guest, but do not hold back accesses to BARs outside of them.
 */
#include "machine/pci/pci-internal.h"

typedef struct RootPort {
    PciDevice pci;
    PciBus bus;
} RootPort;

static bool choose_number(RootPort *port, PciRoot *root, GError **err)
{
    unsigned number = (unsigned)device_option_uint(&port->pci.dev, "bus");
    if (number && pci_bus_find(root, number))
        return lodge_fail(err, LODGE_ERROR_EXISTS, "device pcie-root-port: bus=%u is taken",
                          number);
    for (unsigned i = 1; !number && i < 256; i++)
        number = pci_bus_find(root, i) ? 0 : i;
    if (!number)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "device pcie-root-port: all 255 buses are taken");
    port->bus.number = number;
    return true;
}

static void bridge_masks(PciDevice *pci)
{
    uint8_t *mask = pci->write_mask;
    mask[PCI_PRIMARY_BUS] = mask[PCI_SECONDARY_BUS] = mask[PCI_SUBORDINATE_BUS] = 0xff;
    mask[PCI_PORT_BASE] = mask[PCI_PORT_LIMIT] = 0xf0;
    le16_put(mask + PCI_MEMORY_BASE, 0xfff0);
    le16_put(mask + PCI_MEMORY_LIMIT, 0xfff0);
    le16_put(mask + PCI_PREFETCH_BASE, 0xfff0);
    le16_put(mask + PCI_PREFETCH_LIMIT, 0xfff0);
    le32_put(mask + PCI_PREFETCH_BASE_HIGH, UINT32_MAX);
    le32_put(mask + PCI_PREFETCH_LIMIT_HIGH, UINT32_MAX);
    le16_put(mask + PCI_BRIDGE_CONTROL, 0x0003);
    /* 64-bit prefetchable window; ports are decoded with 16 bits. */
    pci->config[PCI_PREFETCH_BASE] = pci->config[PCI_PREFETCH_LIMIT] = 1;
}

static bool root_port_realize(Device *dev, GError **err)
{
    RootPort *port = (RootPort *)dev;
    PciDevice *pci = &port->pci;
    /* Red Hat's generic root port: class drivers take it by class. */
    static const PciIds ids = {0x1b36, 0x000c, 0, 0, 0, 0x060400};
    PciRoot *root = dev->machine->pci;
    if (!pci_device_init(pci, &ids, err))
        return false;
    if (pci->bus->bridge) {
        pci_device_exit(pci);
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "device pcie-root-port: addr=%s: must be on bus 0",
                          device_option(dev, "addr"));
    }
    if (!choose_number(port, root, err)) {
        pci_device_exit(pci);
        return false;
    }
    le32_put(pci->config + PCI_SUBSYSTEM_VENDOR, 0); /* another field in a bridge's header */
    pci->config[PCI_HEADER_TYPE] = (pci->config[PCI_HEADER_TYPE] & 0x80) | 1;
    pci->config[PCI_INTERRUPT_PIN] = 0;
    bridge_masks(pci);
    pci_add_pcie_capability(pci, PCIE_TYPE_ROOT_PORT);
    port->bus.machine = dev->machine;
    port->bus.bridge = pci;
    g_ptr_array_add(root->buses, &port->bus);
    return true;
}

static void root_port_unrealize(Device *dev)
{
    RootPort *port = (RootPort *)dev;
    PciRoot *root = dev->machine->pci;
    if (root)
        g_ptr_array_remove(root->buses, &port->bus);
    pci_device_exit(&port->pci);
}

static void root_port_reset(Device *dev)
{
    pci_device_reset((PciDevice *)dev);
}

static bool root_port_loaded(Device *dev, GError **err)
{
    return pci_device_loaded((PciDevice *)dev, err);
}

static const DeviceOption root_port_options[] = {
    {"bus", OPTION_UINT, NULL, true, 1, 255, "number of the bus behind it (the next free one)"},
    {0},
};

static const StateField root_port_state[] = {
    {STATE_NESTED, "pci", offsetof(RootPort, pci), sizeof(PciDevice), 1, pci_device_state},
    STATE_FIELDS_END,
};

const DeviceType pcie_root_port_device_type = {
    .name = "pcie-root-port",
    .summary = "PCI Express root port",
    .bus = DEVICE_BUS_PCI,
    .instance_size = sizeof(RootPort),
    .options = root_port_options,
    .realize = root_port_realize,
    .reset = root_port_reset,
    .unrealize = root_port_unrealize,
    .state = root_port_state,
    .state_loaded = root_port_loaded,
};
