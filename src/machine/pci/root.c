/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The PCI Express root complex: host bridge and the two ways to configuration space, ECAM
 * (PCIe 5.0 7.2.2) and the ports 0xcf8/0xcfc (PCI Local Bus 3.0, 3.2.2.3.2).
 */
#include "machine/board/board.h"
#include "machine/board/layout.h"
#include "machine/pci/pci-internal.h"

PciBus *pci_bus_find(PciRoot *root, unsigned number)
{
    for (unsigned i = 0; i < root->buses->len; i++) {
        PciBus *bus = root->buses->pdata[i];
        if (bus->number == number)
            return bus;
    }
    return NULL;
}

/* By the numbers that the bridges have now. */
static PciDevice *function_at(PciRoot *root, unsigned number, unsigned devfn)
{
    for (unsigned i = 0; i < root->buses->len; i++) {
        PciBus *bus = root->buses->pdata[i];
        unsigned now = bus->bridge ? bus->bridge->config[PCI_SECONDARY_BUS] : 0;
        if (now == number && (number || !bus->bridge))
            return bus->devices[devfn];
    }
    return NULL;
}

static uint64_t config_read(PciRoot *root, unsigned bdf, unsigned offset, unsigned size)
{
    PciDevice *pci = function_at(root, bdf >> 8 & 0xff, bdf & 0xff);
    return pci ? pci_config_read(pci, offset, size) : UINT32_MAX;
}

static void config_write(PciRoot *root, unsigned bdf, unsigned offset, unsigned size,
                         uint32_t value)
{
    PciDevice *pci = function_at(root, bdf >> 8 & 0xff, bdf & 0xff);
    if (pci)
        pci_config_write(pci, offset, size, value);
}

static uint64_t ecam_read(void *opaque, uint64_t offset, unsigned size)
{
    return config_read(opaque, (unsigned)(offset >> 12), offset & 0xfff, size);
}

static void ecam_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    config_write(opaque, (unsigned)(offset >> 12), offset & 0xfff, size, (uint32_t)value);
}

static uint64_t address_read(void *opaque, uint64_t offset, unsigned size)
{
    PciRoot *root = opaque;
    if (size == 4)
        return root->address;
    if (size == 1 && offset == LAYOUT_PORT_RESET - LAYOUT_PORT_PCI_ADDRESS &&
        root->pci.dev.machine->pm)
        return board_reset_control_read(root->pci.dev.machine->pm);
    return UINT32_MAX;
}

static void address_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    PciRoot *root = opaque;
    if (size == 4)
        root->address = (uint32_t)value & 0x80ffffff;
    else if (size == 1 && offset == LAYOUT_PORT_RESET - LAYOUT_PORT_PCI_ADDRESS &&
             root->pci.dev.machine->pm)
        board_reset_control_write(root->pci.dev.machine->pm, (uint8_t)value);
}

/* Bits 1:0 of the address are reserved (PCI Local Bus 3.0, 3.2.2.3.2), but software exists that puts the
 * register's there instead of adding them to the data port. */
static unsigned data_register(const PciRoot *root, uint64_t offset, unsigned size)
{
    unsigned low = (root->address & 3) | (unsigned)offset;
    return (root->address & 0xfc) + (low + size <= 4 ? low : (unsigned)offset);
}

static uint64_t data_read(void *opaque, uint64_t offset, unsigned size)
{
    PciRoot *root = opaque;
    if (!(root->address >> 31))
        return UINT32_MAX;
    return config_read(root, root->address >> 8, data_register(root, offset, size), size);
}

static void data_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    PciRoot *root = opaque;
    if (root->address >> 31)
        config_write(root, root->address >> 8, data_register(root, offset, size), size,
                     (uint32_t)value);
}

static const IoOps ecam_ops = {ecam_read, ecam_write, 1, 4, false};
static const IoOps address_ops = {address_read, address_write, 1, 4, false};
static const IoOps data_ops = {data_read, data_write, 1, 4, false};

static void root_unrealize(Device *dev)
{
    PciRoot *root = (PciRoot *)dev;
    pci_device_exit(&root->pci);
    for (unsigned i = 0; i < 3; i++)
        io_region_free(root->region[i]);
    g_ptr_array_unref(root->buses);
    dev->machine->pci = NULL;
}

static bool root_realize(Device *dev, GError **err)
{
    PciRoot *root = (PciRoot *)dev;
    Machine *m = dev->machine;
    /* Intel's 3200/3210 host bridge, the q35 of other machines: kernels know it. */
    static const PciIds ids = {0x8086, 0x29c0, 0x1af4, 0x1100, 0x02, 0x060000};
    if (m->pci)
        return lodge_fail(err, LODGE_ERROR_EXISTS, "the machine has a PCI root already");
    m->pci = root;
    root->buses = g_ptr_array_new();
    root->bus.machine = m;
    g_ptr_array_add(root->buses, &root->bus);
    root->region[0] =
        machine_map_mmio(m, LAYOUT_ECAM_BASE, LAYOUT_ECAM_SIZE, &ecam_ops, root, "ecam");
    root->region[1] =
        machine_map_ports(m, LAYOUT_PORT_PCI_ADDRESS, 4, &address_ops, root, "pci-address");
    root->region[2] = machine_map_ports(m, LAYOUT_PORT_PCI_DATA, 4, &data_ops, root, "pci-data");
    if (!root->region[0] || !root->region[1] || !root->region[2]) {
        root_unrealize(dev);
        return lodge_fail(err, LODGE_ERROR_INTERNAL, "pcie-root: its addresses are taken");
    }
    /* The first device of all, and at 00:00.0 where others are not placed by themselves. */
    root->pci.bus = &root->bus;
    root->bus.devices[0] = &root->pci;
    pci_function_init(&root->pci, &ids);
    root->pci.config[PCI_INTERRUPT_PIN] = 0;
    return true;
}

static void root_reset(Device *dev)
{
    PciRoot *root = (PciRoot *)dev;
    pci_device_reset(&root->pci);
    root->address = 0;
}

static bool root_loaded(Device *dev, GError **err)
{
    PciRoot *root = (PciRoot *)dev;
    root->address &= 0x80ffffff;
    return pci_device_loaded(&root->pci, err);
}

static const StateField root_state[] = {
    {STATE_NESTED, "pci", offsetof(PciRoot, pci), sizeof(PciDevice), 1, pci_device_state},
    STATE_FIELD(PciRoot, address),
    STATE_FIELDS_END,
};

const DeviceType pcie_root_device_type = {
    .name = "pcie-root",
    .summary = "PCI Express root complex",
    .bus = DEVICE_BUS_SYSTEM,
    .instance_size = sizeof(PciRoot),
    .realize = root_realize,
    .reset = root_reset,
    .unrealize = root_unrealize,
    .state = root_state,
    .state_loaded = root_loaded,
};
