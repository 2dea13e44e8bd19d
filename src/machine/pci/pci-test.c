/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Configuration space, BARs, MSI-X, INTx, root ports and the assignment of resources. */
#include <string.h>

#include "machine/board/layout.h"
#include "machine/irq/irq.h"
#include "machine/pci/pci-internal.h"
#include "machine/test-machine.h"

typedef struct Card {
    PciDevice pci;
    uint32_t last;
} Card;

static uint64_t card_read(void *opaque, uint64_t offset, unsigned size)
{
    return 0xc0ffee00 + offset;
}

static void card_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    ((Card *)opaque)->last = (uint32_t)value;
}

static const IoOps card_ops = {card_read, card_write, 1, 4, false};

static bool card_realize(Device *dev, GError **err)
{
    Card *card = (Card *)dev;
    static const PciIds ids = {0x1234, 0x5678, 0x9abc, 0xdef0, 7, 0x020000};
    if (!pci_device_init(&card->pci, &ids, err))
        return false;
    return pci_add_bar(&card->pci, 0, 0x100, true, false, &card_ops, card, err) &&
           pci_add_bar(&card->pci, 1, 0x2000, false, false, &card_ops, card, err) &&
           pci_add_bar(&card->pci, 2, MIB(1), false, true, &card_ops, card, err) &&
           pci_add_msix(&card->pci, 4, 5, err) &&
           pci_add_pcie_capability(&card->pci, PCIE_TYPE_INTEGRATED_ENDPOINT);
}

static void card_unrealize(Device *dev)
{
    pci_device_exit((PciDevice *)dev);
}

static const StateField card_state[] = {
    {STATE_NESTED, "pci", offsetof(Card, pci), sizeof(PciDevice), 1, pci_device_state},
    STATE_FIELDS_END,
};

static const DeviceType card_type = {
    .name = "card",
    .summary = "a card for tests",
    .bus = DEVICE_BUS_PCI,
    .instance_size = sizeof(Card),
    .realize = card_realize,
    .unrealize = card_unrealize,
    .state = card_state,
};

static GPtrArray *items; /* configuration items live as long as their machine */

static Card *add_card(Machine *m, const char *address)
{
    g_autoptr(GError) error = NULL;
    MachineItem *item = machine_item_new("card", NULL);
    if (address)
        machine_item_set(item, "addr", address);
    g_ptr_array_add(items, item);
    Card *card = (Card *)device_new(m, &card_type, item, &error);
    g_assert_no_error(error);
    return card;
}

static Device *add_port(Machine *m, const char *address, const char *bus)
{
    g_autoptr(GError) error = NULL;
    MachineItem *item = machine_item_new("pcie-root-port", NULL);
    machine_item_set(item, "addr", address);
    if (bus)
        machine_item_set(item, "bus", bus);
    g_ptr_array_add(items, item);
    Device *dev = device_new(m, &pcie_root_port_device_type, item, &error);
    g_assert_no_error(error);
    return dev;
}

static void assign(Machine *m)
{
    g_autoptr(GError) error = NULL;
    g_assert_true(pci_assign_resources(m, &error));
}

static uint32_t config(Machine *m, unsigned bdf, unsigned reg, unsigned size)
{
    return (uint32_t)test_mmio_read(m, 0, LAYOUT_ECAM_BASE + (bdf << 12) + reg, size);
}

static void config_set(Machine *m, unsigned bdf, unsigned reg, unsigned size, uint32_t value)
{
    test_mmio_write(m, 0, LAYOUT_ECAM_BASE + (bdf << 12) + reg, size, value);
}

static void test_config_space(void)
{
    Machine *m = test_board(1);
    add_card(m, "03.0");
    g_assert_cmphex(config(m, 0, 0, 4), ==, 0x29c08086);
    g_assert_cmphex(config(m, 3 << 3, 0, 4), ==, 0x56781234);
    g_assert_cmphex(config(m, 3 << 3, 8, 4), ==, 0x02000007);
    g_assert_cmphex(config(m, 3 << 3, 0x2c, 4), ==, 0xdef09abc);
    g_assert_cmphex(config(m, 4 << 3, 0, 4), ==, 0xffffffff);
    g_assert_cmphex(config(m, 1 << 8, 0, 4), ==, 0xffffffff);
    /* The ports. */
    io_space_write(m, &m->ports, 0xcf8, 4, 0x80001800);
    g_assert_cmphex(io_space_read(m, &m->ports, 0xcfc, 4), ==, 0x56781234);
    g_assert_cmphex(io_space_read(m, &m->ports, 0xcfe, 2), ==, 0x5678);
    g_assert_cmphex(io_space_read(m, &m->ports, 0xcf8, 4), ==, 0x80001800);
    io_space_write(m, &m->ports, 0xcf8, 4, 0x80001802); /* the register's low bits in the address */
    g_assert_cmphex(io_space_read(m, &m->ports, 0xcfc, 2), ==, 0x5678);
    g_assert_cmphex(io_space_read(m, &m->ports, 0xcfc, 4), ==, 0x56781234);
    io_space_write(m, &m->ports, 0xcf8, 4, 0x00001800);
    g_assert_cmphex(io_space_read(m, &m->ports, 0xcfc, 4), ==, 0xffffffff);
    /* Read-only bits stay. */
    config_set(m, 3 << 3, 0, 4, 0);
    config_set(m, 3 << 3, 4, 4, 0xffffffff);
    g_assert_cmphex(config(m, 3 << 3, 0, 4), ==, 0x56781234);
    g_assert_cmphex(config(m, 3 << 3, 4, 4), ==, 0x00100547);
    /* Capabilities: PCIe, then MSI-X. */
    unsigned at = config(m, 3 << 3, 0x34, 1);
    g_assert_cmphex(config(m, 3 << 3, at, 1), ==, 0x10);
    g_assert_cmphex(config(m, 3 << 3, at + 2, 2), ==, 0x92);
    at = config(m, 3 << 3, at + 1, 1);
    g_assert_cmphex(config(m, 3 << 3, at, 1), ==, 0x11);
    g_assert_cmphex(config(m, 3 << 3, at + 2, 2), ==, 3);
    g_assert_cmphex(config(m, 3 << 3, at + 1, 1), ==, 0);
    machine_free(m);
}

static void test_bars(void)
{
    Machine *m = test_board(1);
    Card *card = add_card(m, NULL);
    unsigned bdf = 1 << 3;
    g_assert_cmphex(config(m, bdf, 0, 4), ==, 0x56781234);
    static const uint32_t sizes[] = {0xffffff01, 0xffffe000, 0xfff0000c, 0xffffffff, 0, 0xfffff000};
    for (unsigned i = 0; i < 6; i++) {
        config_set(m, bdf, 0x10 + 4 * i, 4, 0xffffffff);
        g_assert_cmphex(config(m, bdf, 0x10 + 4 * i, 4), ==, sizes[i]);
    }
    config_set(m, bdf, 0x10, 4, 0xc000);
    config_set(m, bdf, 0x14, 4, 0xd0000000);
    config_set(m, bdf, 0x18, 4, 0);
    config_set(m, bdf, 0x1c, 4, 0x20);
    g_assert_cmphex(test_mmio_read(m, 0, 0xd0000004, 4), ==, 0xffffffff); /* not enabled */
    config_set(m, bdf, 4, 2, 2);
    g_assert_cmphex(test_mmio_read(m, 0, 0xd0000004, 4), ==, 0xc0ffee04);
    g_assert_cmphex(test_mmio_read(m, 0, 0x20000ffffcull, 4), ==, 0xc0ffee00 + 0xffffc);
    g_assert_cmphex(io_space_read(m, &m->ports, 0xc010, 4), ==, 0xffffffff);
    config_set(m, bdf, 4, 2, 3);
    g_assert_cmphex(io_space_read(m, &m->ports, 0xc010, 4), ==, 0xc0ffee10);
    test_mmio_write(m, 0, 0xd0000000, 4, 77);
    g_assert_cmpuint(card->last, ==, 77);
    config_set(m, bdf, 0x14, 4, 0xfec00000); /* on the IOAPIC: the IOAPIC stays */
    g_assert_cmphex(test_mmio_read(m, 0, 0xfec00000, 4), ==, 0);
    pci_device_reset(&card->pci);
    g_assert_cmphex(config(m, bdf, 4, 2), ==, 0);
    g_assert_cmphex(config(m, bdf, 0x18, 4), ==, 0xc);
    g_assert_cmphex(io_space_read(m, &m->ports, 0xc010, 4), ==, 0xffffffff);
    machine_free(m);
}

static void test_assign(void)
{
    Machine *m = test_board(1);
    add_port(m, "02.0", "5");
    add_port(m, "02.1", NULL);
    Card *direct = add_card(m, "04.0"), *behind = add_card(m, "05:00.0");
    assign(m);
    for (unsigned i = 0; i < 2; i++) {
        Card *card = i ? behind : direct;
        unsigned bdf = i ? 5 << 8 : 4 << 3;
        uint32_t port = config(m, bdf, 0x10, 4) & ~3u, memory = config(m, bdf, 0x14, 4);
        uint64_t wide = (config(m, bdf, 0x18, 4) & ~15u) | (uint64_t)config(m, bdf, 0x1c, 4) << 32;
        g_assert_cmphex(port, >=, LAYOUT_PCI_PORTS_BASE);
        g_assert_cmphex(memory, >=, LAYOUT_PCI32_BASE);
        g_assert_cmphex(memory, <, LAYOUT_PCI32_END);
        g_assert_cmphex(memory & 0x1fff, ==, 0);
        g_assert_cmphex(wide, >=, LAYOUT_HIGH_RAM);
        g_assert_cmphex(test_mmio_read(m, 0, memory, 4), ==, 0xc0ffee00);
        g_assert_cmphex(test_mmio_read(m, 0, wide, 4), ==, 0xc0ffee00);
        g_assert_cmphex(io_space_read(m, &m->ports, port, 4), ==, 0xc0ffee00);
        test_mmio_write(m, 0, memory, 4, 5 + i);
        g_assert_cmpuint(card->last, ==, 5 + i);
    }
    /* The port: numbers, windows around its card, and the second function is announced. */
    unsigned port = 2 << 3;
    g_assert_cmphex(config(m, port, 0x18, 4), ==, 0x00050500);
    g_assert_cmphex(config(m, port, 0x0e, 1), ==, 0x81);
    uint32_t memory = config(m, 5 << 8, 0x14, 4);
    uint64_t base = (uint64_t)(config(m, port, 0x20, 2) & 0xfff0) << 16;
    uint64_t limit = (uint64_t)(config(m, port, 0x22, 2) & 0xfff0) << 16 | 0xfffff;
    g_assert_cmphex(base, <=, memory);
    g_assert_cmphex(limit, >=, memory + 0x1fff);
    uint64_t wide = (config(m, 5 << 8, 0x18, 4) & ~15u) | (uint64_t)config(m, 5 << 8, 0x1c, 4)
                                                              << 32;
    base = (uint64_t)(config(m, port, 0x24, 2) & 0xfff0) << 16 | (uint64_t)config(m, port, 0x28, 4)
                                                                     << 32;
    limit = (uint64_t)(config(m, port, 0x26, 2) & 0xfff0) << 16 | 0xfffff |
            (uint64_t)config(m, port, 0x2c, 4) << 32;
    g_assert_cmphex(base, <=, wide);
    g_assert_cmphex(limit, >=, wide + MIB(1) - 1);
    /* The empty port's windows are closed, and its bus is 1. */
    port = 2 << 3 | 1;
    g_assert_cmphex(config(m, port, 0x19, 1), ==, 1);
    g_assert_cmphex(config(m, port, 0x20, 2), >, config(m, port, 0x22, 2));
    /* The guest may renumber. */
    config_set(m, 2 << 3, 0x19, 1, 9);
    g_assert_cmphex(config(m, 5 << 8, 0, 4), ==, 0xffffffff);
    g_assert_cmphex(config(m, 9 << 8, 0, 4), ==, 0x56781234);
    /* Swizzled: slot 0 behind slot 2, INTA. */
    g_assert_cmphex(config(m, 4 << 3, 0x3c, 2), ==, 0x100 | layout_pci_gsi(4, 0));
    g_assert_cmphex(config(m, 9 << 8, 0x3c, 2), ==, 0x100 | layout_pci_gsi(2, 0));
    machine_free(m);
}

static void expect_refused(Machine *m, const DeviceType *type, const char *address,
                           const char *message)
{
    g_autoptr(GError) error = NULL;
    MachineItem *item = machine_item_new(type->name, NULL);
    machine_item_set(item, "addr", address);
    g_assert_null(device_new(m, type, item, &error));
    g_assert_nonnull(strstr(error->message, message));
    machine_item_free(item);
}

static void test_places(void)
{
    Machine *m = test_board(1);
    add_port(m, "02.0", NULL);
    add_card(m, "03.0");
    expect_refused(m, &card_type, "03.0", "PCI address 00:03.0 is taken by card");
    expect_refused(m, &card_type, "00.0", "taken by pcie-root");
    expect_refused(m, &card_type, "02:00.0", "there is no PCI bus 2");
    expect_refused(m, &card_type, "01:01.0", "slot 0 only");
    expect_refused(m, &pcie_root_port_device_type, "01:00.0", "must be on bus 0");
    for (unsigned i = 0; i < 29; i++)
        add_card(m, NULL);
    g_autoptr(GError) error = NULL;
    g_assert_null(device_new(m, &card_type, NULL, &error));
    g_assert_nonnull(strstr(error->message, "the root bus is full"));
    machine_free(m);
}

static void test_msix(void)
{
    Machine *m = test_board(1);
    Card *card = add_card(m, "03.0");
    unsigned bdf = 3 << 3, control = card->pci.msix_offset + 2u;
    assign(m);
    test_mmio_write(m, 0, LAYOUT_LAPIC_BASE + 0xf0, 4, 0x1ff);
    uint32_t table = config(m, bdf, 0x24, 4);
    g_assert_cmphex(test_mmio_read(m, 0, table + 12, 4), ==, 1);
    test_mmio_write(m, 0, table + 16, 8, 0xfee00000);
    test_mmio_write(m, 0, table + 24, 4, 0x4071);
    test_mmio_write(m, 0, table + 28, 4, 0);
    pci_msix_notify(&card->pci, 1); /* not enabled */
    g_assert_cmpint(lapic_acknowledge(m->irq.lapic, 0), ==, -1);
    g_assert_false(pci_msix_enabled(&card->pci));
    config_set(m, bdf, control, 2, 0x8000);
    g_assert_true(pci_msix_enabled(&card->pci));
    pci_msix_notify(&card->pci, 1); /* no bus master: the message waits */
    g_assert_cmpint(lapic_acknowledge(m->irq.lapic, 0), ==, -1);
    g_assert_cmphex(test_mmio_read(m, 0, table + 0x800, 8), ==, 2);
    config_set(m, bdf, 4, 2, config(m, bdf, 4, 2) | 4);
    g_assert_cmpint(lapic_acknowledge(m->irq.lapic, 0), ==, 0x71);
    test_mmio_write(m, 0, LAYOUT_LAPIC_BASE + 0xb0, 4, 0);
    pci_msix_notify(&card->pci, 1);
    g_assert_cmpint(lapic_acknowledge(m->irq.lapic, 0), ==, 0x71);
    test_mmio_write(m, 0, LAYOUT_LAPIC_BASE + 0xb0, 4, 0);
    /* Masked, one and all: pending. */
    test_mmio_write(m, 0, table + 28, 4, 1);
    pci_msix_notify(&card->pci, 1);
    pci_msix_notify(&card->pci, 99);
    g_assert_cmphex(test_mmio_read(m, 0, table + 0x800, 8), ==, 2);
    g_assert_cmpint(lapic_acknowledge(m->irq.lapic, 0), ==, -1);
    config_set(m, bdf, control, 2, 0xc000);
    test_mmio_write(m, 0, table + 28, 4, 0);
    g_assert_cmpint(lapic_acknowledge(m->irq.lapic, 0), ==, -1);
    config_set(m, bdf, control, 2, 0x8000);
    g_assert_cmpint(lapic_acknowledge(m->irq.lapic, 0), ==, 0x71);
    g_assert_cmphex(test_mmio_read(m, 0, table + 0x800, 8), ==, 0);
    test_mmio_write(m, 0, table + 0x7f8, 8, UINT64_MAX); /* past the table: nothing */
    g_assert_cmphex(test_mmio_read(m, 0, table + 0x7f8, 8), ==, 0);
    machine_free(m);
}

static void test_intx(void)
{
    Machine *m = test_board(1);
    Card *a = add_card(m, "03.0"), *b = add_card(m, "0b.0"); /* the same GSI */
    unsigned gsi = layout_pci_gsi(3, 0);
    assign(m);
    test_mmio_write(m, 0, LAYOUT_LAPIC_BASE + 0xf0, 4, 0x1ff);
    test_mmio_write(m, 0, LAYOUT_IOAPIC_BASE, 4, 0x10 + 2 * gsi);
    test_mmio_write(m, 0, LAYOUT_IOAPIC_BASE + 0x10, 4, 0x8066);
    pci_set_intx(&a->pci, true);
    pci_set_intx(&b->pci, true);
    g_assert_cmpint(lapic_acknowledge(m->irq.lapic, 0), ==, 0x66);
    g_assert_cmphex(config(m, 3 << 3, 6, 1) & 8, ==, 8);
    pci_set_intx(&a->pci, false);
    test_mmio_write(m, 0, LAYOUT_LAPIC_BASE + 0xb0, 4, 0);
    g_assert_cmpint(lapic_acknowledge(m->irq.lapic, 0), ==, 0x66); /* the other one */
    config_set(m, 11 << 3, 4, 2, 0x407);                           /* INTx disable */
    test_mmio_write(m, 0, LAYOUT_LAPIC_BASE + 0xb0, 4, 0);
    g_assert_cmpint(lapic_acknowledge(m->irq.lapic, 0), ==, -1);
    config_set(m, 11 << 3, 4, 2, 7);
    g_assert_cmpint(lapic_acknowledge(m->irq.lapic, 0), ==, 0x66);
    machine_free(m);
}

static void test_state(void)
{
    Machine *m = test_board(1);
    g_autoptr(GError) error = NULL;
    Card *card = add_card(m, "03.0");
    assign(m);
    uint32_t memory = config(m, 3 << 3, 0x14, 4);
    g_autoptr(GByteArray) saved = g_byte_array_new();
    device_save(&card->pci.dev, saved);
    pci_device_reset(&card->pci);
    g_assert_cmphex(test_mmio_read(m, 0, memory, 4), ==, 0xffffffff);
    g_assert_true(device_load(&card->pci.dev, saved->data, saved->len, &error));
    g_assert_true(pci_device_loaded(&card->pci, &error));
    g_assert_cmphex(test_mmio_read(m, 0, memory, 4), ==, 0xc0ffee00);
    machine_free(m);
}

static void free_item(void *p)
{
    machine_item_free(p);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    items = g_ptr_array_new_with_free_func(free_item);
    g_test_add_func("/pci/config-space", test_config_space);
    g_test_add_func("/pci/bars", test_bars);
    g_test_add_func("/pci/assign", test_assign);
    g_test_add_func("/pci/places", test_places);
    g_test_add_func("/pci/msix", test_msix);
    g_test_add_func("/pci/intx", test_intx);
    g_test_add_func("/pci/state", test_state);
    int result = g_test_run();
    g_ptr_array_unref(items);
    return result;
}
