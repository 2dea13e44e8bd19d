/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What firmware does before an operating system starts, as none runs here: bus numbers, BARs,
 * bridge windows, interrupt lines, command registers.
 */
#include <stdlib.h>

#include "machine/board/layout.h"
#include "machine/pci/pci-internal.h"

/* One of the three windows of the root bus; next moves up. */
typedef struct Window {
    const char *name;
    uint64_t next, end, granule; /* granule: of a bridge's window */
} Window;

enum { WINDOW_PORTS, WINDOW_MEMORY, WINDOW_PREFETCH, WINDOW_COUNT };

typedef struct Assignment {
    Window window[WINDOW_COUNT];
} Assignment;

typedef struct Request {
    PciDevice *pci;
    unsigned bar;
} Request;

static unsigned window_of(const PciBar *bar)
{
    return bar->is_port ? WINDOW_PORTS : bar->is_64bit ? WINDOW_PREFETCH : WINDOW_MEMORY;
}

static int larger_first(const void *a, const void *b)
{
    const Request *x = a, *y = b;
    uint64_t size_x = x->pci->bar[x->bar].size, size_y = y->pci->bar[y->bar].size;
    return size_x < size_y ? 1 : size_x > size_y ? -1 : 0;
}

static bool assign_bar(Assignment *a, const Request *request, GError **err)
{
    PciDevice *pci = request->pci;
    const PciBar *bar = &pci->bar[request->bar];
    Window *w = &a->window[window_of(bar)];
    uint64_t address = align_up(w->next, bar->size);
    if (address > w->end || bar->size > w->end - address)
        return lodge_fail(err, LODGE_ERROR_LIMIT,
                          "device %s: no room for BAR %u of %" G_GUINT64_FORMAT
                          " bytes in the %s window",
                          pci->dev.type->name, request->bar, bar->size, w->name);
    w->next = address + bar->size;
    uint8_t *p = pci->config + PCI_BAR0 + 4 * request->bar;
    le32_put(p, (le32_get(p) & (bar->is_port ? 3u : 15u)) | (uint32_t)address);
    if (bar->is_64bit)
        le32_put(p + 4, (uint32_t)(address >> 32));
    return true;
}

static bool assign_bars(Assignment *a, PciBus *bus, GError **err)
{
    g_autoptr(GArray) requests = g_array_new(FALSE, FALSE, sizeof(Request));
    for (unsigned devfn = 0; devfn < 256; devfn++) {
        PciDevice *pci = bus->devices[devfn];
        for (unsigned i = 0; pci && i < PCI_BAR_COUNT; i++) {
            Request request = {pci, i};
            if (pci->bar[i].size)
                g_array_append_val(requests, request);
        }
    }
    g_array_sort(requests, larger_first);
    for (unsigned i = 0; i < requests->len; i++)
        if (!assign_bar(a, &g_array_index(requests, Request, i), err))
            return false;
    return true;
}

static void set_windows(PciDevice *bridge, const uint64_t start[WINDOW_COUNT],
                        const uint64_t end[WINDOW_COUNT])
{
    uint8_t *c = bridge->config;
    /* A base above the limit closes a window. */
    bool ports = end[WINDOW_PORTS] > start[WINDOW_PORTS];
    c[PCI_PORT_BASE] = ports ? (uint8_t)(start[WINDOW_PORTS] >> 8) : 0xf0;
    c[PCI_PORT_LIMIT] = ports ? (uint8_t)((end[WINDOW_PORTS] - 1) >> 8 & 0xf0) : 0;
    bool memory = end[WINDOW_MEMORY] > start[WINDOW_MEMORY];
    le16_put(c + PCI_MEMORY_BASE, memory ? (uint16_t)(start[WINDOW_MEMORY] >> 16) : 0xfff0);
    le16_put(c + PCI_MEMORY_LIMIT,
             memory ? (uint16_t)((end[WINDOW_MEMORY] - 1) >> 16 & 0xfff0) : 0);
    bool prefetch = end[WINDOW_PREFETCH] > start[WINDOW_PREFETCH];
    uint64_t base = start[WINDOW_PREFETCH], last = end[WINDOW_PREFETCH] - 1;
    le16_put(c + PCI_PREFETCH_BASE, (prefetch ? (base >> 16 & 0xfff0) : 0xfff0) | 1);
    le16_put(c + PCI_PREFETCH_LIMIT, (prefetch ? (last >> 16 & 0xfff0) : 0) | 1);
    le32_put(c + PCI_PREFETCH_BASE_HIGH, prefetch ? (uint32_t)(base >> 32) : 0);
    le32_put(c + PCI_PREFETCH_LIMIT_HIGH, prefetch ? (uint32_t)(last >> 32) : 0);
}

/* A root port's bus; root ports stand on the root bus only, so that this does not nest. */
static bool assign_secondary(Assignment *a, PciBus *bus, GError **err)
{
    uint64_t start[WINDOW_COUNT], end[WINDOW_COUNT];
    PciDevice *bridge = bus->bridge;
    bridge->config[PCI_PRIMARY_BUS] = (uint8_t)bridge->bus->number;
    bridge->config[PCI_SECONDARY_BUS] = bridge->config[PCI_SUBORDINATE_BUS] = (uint8_t)bus->number;
    for (unsigned i = 0; i < WINDOW_COUNT; i++)
        start[i] = a->window[i].next = align_up(a->window[i].next, a->window[i].granule);
    if (!assign_bars(a, bus, err))
        return false;
    for (unsigned i = 0; i < WINDOW_COUNT; i++)
        end[i] = a->window[i].next = align_up(a->window[i].next, a->window[i].granule);
    set_windows(bridge, start, end);
    return true;
}

static void enable(PciDevice *pci)
{
    unsigned command = 0;
    for (unsigned i = 0; i < PCI_BAR_COUNT; i++)
        if (pci->bar[i].size)
            command |= pci->bar[i].is_port ? PCI_COMMAND_PORTS : PCI_COMMAND_MEMORY;
    if ((pci->config[PCI_HEADER_TYPE] & 0x7f) == 1)
        command |= PCI_COMMAND_PORTS | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER;
    le16_put(pci->config + PCI_COMMAND, (uint16_t)command);
    if (pci->config[PCI_INTERRUPT_PIN])
        pci->config[PCI_INTERRUPT_LINE] = (uint8_t)pci_intx_gsi(pci);
    pci_update(pci);
}

bool pci_assign_resources(Machine *m, GError **err)
{
    PciRoot *root = m->pci;
    uint64_t base64 = layout_pci64_base(m->config->memory_size, m->low_ram);
    Assignment a = {{
        {"port", LAYOUT_PCI_PORTS_BASE, LAYOUT_PCI_PORTS_END, 0x1000},
        {"32-bit memory", LAYOUT_PCI32_BASE, LAYOUT_PCI32_END, MIB(1)},
        {"64-bit memory", base64, base64 + LAYOUT_PCI64_SIZE, MIB(1)},
    }};
    for (unsigned i = 0; i < root->buses->len; i++) {
        PciBus *bus = root->buses->pdata[i];
        if (!(bus->bridge ? assign_secondary(&a, bus, err) : assign_bars(&a, bus, err)))
            return false;
    }
    for (unsigned i = 0; i < root->buses->len; i++) {
        PciBus *bus = root->buses->pdata[i];
        for (unsigned devfn = 0; devfn < 256; devfn++)
            if (bus->devices[devfn])
                enable(bus->devices[devfn]);
    }
    return true;
}
