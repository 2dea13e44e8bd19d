/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* PCI functions: configuration space, BARs, capabilities, INTx. */
#include "machine/pci/pci.h"

#include <string.h>

#include "machine/board/layout.h"
#include "machine/pci/pci-internal.h"

#define CAPABILITIES_START 0x40
#define CAPABILITIES_END   0x100

/* ---- INTx
 * ------------------------------------------------------------------------------------------- */

/* The GSI of a function's pin, swizzled on the way up (PCI-to-PCI Bridge 1.2, 9.1). */
unsigned pci_intx_gsi(const PciDevice *pci)
{
    unsigned slot = pci->devfn >> 3, pin = (pci->config[PCI_INTERRUPT_PIN] - 1u) & 3;
    for (const PciBus *bus = pci->bus; bus->bridge; bus = bus->bridge->bus) {
        pin = (pin + slot) & 3;
        slot = bus->bridge->devfn >> 3;
    }
    return layout_pci_gsi(slot, pin);
}

static bool asserted(const PciDevice *pci)
{
    return pci->intx_level && pci->config[PCI_INTERRUPT_PIN] &&
           !(le16_get(pci->config + PCI_COMMAND) & PCI_COMMAND_INTX_DISABLE);
}

/* The wire of @pci's GSI: asserted by any function on it. */
static void update_intx(PciDevice *pci)
{
    PciRoot *root = pci->dev.machine->pci;
    if (!pci->config[PCI_INTERRUPT_PIN])
        return;
    unsigned gsi = pci_intx_gsi(pci);
    bool level = false;
    for (unsigned i = 0; i < root->buses->len && !level; i++) {
        PciBus *bus = root->buses->pdata[i];
        for (unsigned n = 0; n < 256 && !level; n++)
            level = bus->devices[n] && asserted(bus->devices[n]) &&
                    pci_intx_gsi(bus->devices[n]) == gsi;
    }
    machine_set_gsi(pci->dev.machine, gsi, level);
}

void pci_set_intx(PciDevice *pci, bool level)
{
    machine_lock(pci->dev.machine);
    if (pci->intx_level != level) {
        pci->intx_level = level;
        if (level)
            pci->config[PCI_STATUS] |= PCI_STATUS_INTX;
        else
            pci->config[PCI_STATUS] &= (uint8_t)~PCI_STATUS_INTX;
        update_intx(pci);
    }
    machine_unlock(pci->dev.machine);
}

/* ---- BARs
 * --------------------------------------------------------------------------------------------- */

static uint64_t bar_address(const PciDevice *pci, unsigned i)
{
    const PciBar *bar = &pci->bar[i];
    const uint8_t *p = pci->config + PCI_BAR0 + 4 * i;
    uint64_t address = le32_get(p);
    if (bar->is_port)
        return address & ~UINT64_C(3);
    address &= ~UINT64_C(15);
    return bar->is_64bit ? address | (uint64_t)le32_get(p + 4) << 32 : address;
}

void pci_update(PciDevice *pci)
{
    unsigned command = le16_get(pci->config + PCI_COMMAND);
    for (unsigned i = 0; i < PCI_BAR_COUNT; i++) {
        PciBar *bar = &pci->bar[i];
        if (!bar->size)
            continue;
        uint64_t address = bar_address(pci, i);
        bool on = command & (bar->is_port ? PCI_COMMAND_PORTS : PCI_COMMAND_MEMORY);
        io_region_move(bar->region, on && address, address);
    }
    update_intx(pci);
}

bool pci_add_bar(PciDevice *pci, unsigned index, uint64_t size, bool is_port, bool prefetchable64,
                 const IoOps *ops, void *opaque, GError **err)
{
    uint64_t least = is_port ? 4 : 16, most = is_port ? 256 : GIB(16);
    unsigned slots = prefetchable64 ? 2 : 1;
    bool free_slot = index + slots <= PCI_BAR_COUNT && !pci->bar[index].size &&
                     (!index || !pci->bar[index - 1].is_64bit) &&
                     (slots == 1 || !pci->bar[index + 1].size);
    if (!free_slot || size < least || size > most || (size & (size - 1)) ||
        (is_port && prefetchable64))
        return lodge_fail(err, LODGE_ERROR_INTERNAL,
                          "device %s: BAR %u of %" G_GUINT64_FORMAT " bytes is not possible",
                          pci->dev.type->name, index, size);
    PciBar *bar = &pci->bar[index];
    bar->region = io_region_new(pci->dev.machine, is_port, size, ops, opaque, pci->dev.type->name);
    if (!bar->region)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "device %s: more than %d register areas",
                          pci->dev.type->name, MACHINE_REGIONS_MAX);
    bar->size = size;
    bar->is_port = is_port;
    bar->is_64bit = bar->prefetchable = prefetchable64;
    uint8_t *config = pci->config + PCI_BAR0 + 4 * index;
    uint8_t *mask = pci->write_mask + PCI_BAR0 + 4 * index;
    le32_put(config, is_port ? 1 : prefetchable64 ? 0xc : 0);
    le32_put(mask, (uint32_t) ~(size - 1) & (is_port ? ~3u : ~15u));
    if (prefetchable64) {
        le32_put(config + 4, 0);
        le32_put(mask + 4, (uint32_t)(~(size - 1) >> 32));
    }
    return true;
}

/* ---- configuration space
 * ---------------------------------------------------------------------------------- */

uint32_t pci_config_read(PciDevice *pci, unsigned offset, unsigned size)
{
    uint32_t value = UINT32_MAX;
    if (!range_within(offset, size, PCI_CONFIG_SIZE))
        return value;
    if (pci->config_read)
        pci->config_read(pci, offset, size);
    value = 0;
    memcpy(&value, pci->config + offset, MIN(size, 4));
    return value;
}

static bool touches(unsigned offset, unsigned size, unsigned at, unsigned length)
{
    return offset < at + length && at < offset + size;
}

void pci_config_write(PciDevice *pci, unsigned offset, unsigned size, uint32_t value)
{
    if (!range_within(offset, size, PCI_CONFIG_SIZE))
        return;
    for (unsigned i = 0; i < size; i++) {
        uint8_t mask = pci->write_mask[offset + i];
        uint8_t *p = &pci->config[offset + i];
        *p = (uint8_t)((*p & ~mask) | (value >> (8 * i) & mask));
    }
    if (touches(offset, size, PCI_COMMAND, 2) || touches(offset, size, PCI_BAR0, 4 * PCI_BAR_COUNT))
        pci_update(pci);
    if (pci->msix_offset && (touches(offset, size, pci->msix_offset + 2u, 2) ||
                             touches(offset, size, PCI_COMMAND, 2)))
        pci_msix_config_written(pci);
    if (pci->config_written)
        pci->config_written(pci, offset, size);
}

uint16_t pci_add_capability(PciDevice *pci, uint8_t id, uint8_t size)
{
    unsigned at = (unsigned)align_up(pci->capability_end, 4);
    g_assert(size >= 2 && at + size <= CAPABILITIES_END);
    memset(pci->config + at, 0, size);
    pci->config[at] = id;
    pci->config[at + 1] = pci->config[PCI_CAPABILITIES];
    pci->config[PCI_CAPABILITIES] = (uint8_t)at;
    pci->config[PCI_STATUS] |= PCI_STATUS_CAPABILITIES;
    pci->capability_end = (uint16_t)(at + size);
    return (uint16_t)at;
}

/* PCIe 5.0 7.5.3: a version 2 capability; ports have a link of 2.5 GT/s and width 1. */
bool pci_add_pcie_capability(PciDevice *pci, unsigned port_type)
{
    if (align_up(pci->capability_end, 4) + 0x3c > CAPABILITIES_END)
        return false;
    uint8_t *c = pci->config + pci_add_capability(pci, 0x10, 0x3c);
    uint8_t *mask = pci->write_mask + (c - pci->config);
    le16_put(c + 0x02, (uint16_t)(2 | port_type << 4));
    le32_put(c + 0x04, 1u << 15); /* device capabilities: role-based error reporting */
    le16_put(mask + 0x08,
             0x78ff); /* device control: reporting, sizes, relaxed ordering, no snoop */
    if (port_type != PCIE_TYPE_INTEGRATED_ENDPOINT) {
        le32_put(c + 0x0c, 1 | 1u << 4 | 1u << 20); /* link capabilities */
        le16_put(mask + 0x10, 0x00c3);              /* link control */
        le16_put(c + 0x12, 1 | 1u << 4 | 1u << 13); /* link status: active */
        le16_put(mask + 0x1c, 0x001f);              /* root control */
    }
    return true;
}

/* ---- life
 * ---------------------------------------------------------------------------------------------------
 */

static bool place(PciDevice *pci, PciRoot *root, GError **err)
{
    const char *text = pci->dev.item ? machine_item_get(pci->dev.item, "addr") : NULL;
    const char *name = pci->dev.type->name;
    unsigned number = 0, slot = 0, function = 0;
    PciBus *bus = &root->bus;
    if (!text) {
        for (slot = 1; slot < 32 && bus->devices[slot << 3]; slot++)
            continue;
        if (slot == 32)
            return lodge_fail(err, LODGE_ERROR_LIMIT, "device %s: the root bus is full", name);
    } else {
        if (!device_parse_pci_address(text, &number, &slot, &function))
            return lodge_fail(err, LODGE_ERROR_INVALID, "device %s: addr=%s is not a PCI address",
                              name, text);
        bus = pci_bus_find(root, number);
        if (!bus)
            return lodge_fail(err, LODGE_ERROR_NOT_FOUND,
                              "device %s: addr=%s: there is no PCI bus %u (a pcie-root-port with "
                              "bus=%u must come before)",
                              name, text, number, number);
        if (bus->bridge && slot)
            return lodge_fail(err, LODGE_ERROR_INVALID,
                              "device %s: addr=%s: a root port has slot 0 only", name, text);
    }
    unsigned devfn = slot << 3 | function;
    if (bus->devices[devfn])
        return lodge_fail(err, LODGE_ERROR_EXISTS,
                          "device %s: PCI address %02x:%02x.%x is taken by %s", name, bus->number,
                          slot, function, bus->devices[devfn]->dev.type->name);
    pci->bus = bus;
    pci->devfn = (uint8_t)devfn;
    bus->devices[devfn] = pci;
    return true;
}

/* Function 0 says whether there are others (PCI Local Bus 3.0, 6.2.1). */
static void mark_multifunction(PciBus *bus, unsigned devfn)
{
    PciDevice *first = bus->devices[devfn & ~7u];
    bool others = false;
    for (unsigned i = 1; i < 8; i++)
        others |= bus->devices[(devfn & ~7u) + i] != NULL;
    if (first && others)
        first->config[PCI_HEADER_TYPE] |= 0x80;
}

void pci_function_init(PciDevice *pci, const PciIds *ids)
{
    uint8_t *c = pci->config;
    le16_put(c + PCI_VENDOR, ids->vendor);
    le16_put(c + PCI_DEVICE_ID, ids->device);
    c[PCI_REVISION] = ids->revision;
    c[PCI_CLASS] = (uint8_t)ids->class_code;
    le16_put(c + PCI_CLASS + 1, (uint16_t)(ids->class_code >> 8));
    le16_put(c + PCI_SUBSYSTEM_VENDOR, ids->subsystem_vendor);
    le16_put(c + PCI_SUBSYSTEM, ids->subsystem);
    c[PCI_INTERRUPT_PIN] = 1;
    le16_put(pci->write_mask + PCI_COMMAND, PCI_COMMAND_PORTS | PCI_COMMAND_MEMORY |
                                                PCI_COMMAND_MASTER | 0x140 |
                                                PCI_COMMAND_INTX_DISABLE);
    pci->write_mask[0x0c] = 0xff; /* cache line size: software's scratch in PCI Express */
    pci->write_mask[PCI_INTERRUPT_LINE] = 0xff;
    pci->capability_end = CAPABILITIES_START;
    mark_multifunction(pci->bus, pci->devfn);
}

bool pci_device_init(PciDevice *pci, const PciIds *ids, GError **err)
{
    PciRoot *root = pci->dev.machine->pci;
    if (!root)
        return lodge_fail(err, LODGE_ERROR_STATE, "device %s: the machine has no PCI bus",
                          pci->dev.type->name);
    if (!place(pci, root, err))
        return false;
    pci_function_init(pci, ids);
    return true;
}

void pci_device_exit(PciDevice *pci)
{
    if (!pci->bus)
        return;
    if (pci->dev.machine->pci)
        pci_set_intx(pci, false);
    for (unsigned i = 0; i < PCI_BAR_COUNT; i++) {
        io_region_free(pci->bar[i].region);
        pci->bar[i] = (PciBar){0};
    }
    pci->bus->devices[pci->devfn] = NULL;
    pci->bus = NULL;
}

void pci_device_reset(PciDevice *pci)
{
    pci_set_intx(pci, false);
    for (unsigned i = 0; i < PCI_CONFIG_SIZE; i++)
        pci->config[i] &= (uint8_t)~pci->write_mask[i];
    pci_msix_reset(pci);
    pci_update(pci);
}

bool pci_device_loaded(PciDevice *pci, GError **err)
{
    pci_update(pci);
    return true;
}

const StateField pci_device_state[] = {
    STATE_BUFFER(PciDevice, config),
    STATE_BUFFER(PciDevice, msix_table),
    STATE_BUFFER(PciDevice, msix_pending),
    STATE_FIELD(PciDevice, intx_level),
    STATE_FIELDS_END,
};
