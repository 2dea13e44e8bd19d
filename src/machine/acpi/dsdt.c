/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The DSDT: the PCI root, the board's own devices, the CPUs and soft-off. */
#include "machine/acpi/aml.h"
#include "machine/acpi/tables.h"
#include "machine/board/layout.h"
#include "machine/board/pm.h"

#define PCI_SLOTS 32
#define PCI_PINS  4

static void add_root_resources(Aml *aml, const AcpiBoard *board)
{
    uint64_t base64 = layout_pci64_base(board->memory_size, board->low_ram);
    aml_name(aml, "_CRS");
    aml_resources_begin(aml);
    aml_bus_range(aml, 0, LAYOUT_ECAM_SIZE / 0x100000 - 1);
    aml_io(aml, LAYOUT_PORT_PCI_ADDRESS, 8);
    aml_port_range(aml, 0, LAYOUT_PORT_PCI_ADDRESS - 1);
    aml_port_range(aml, LAYOUT_PORT_PCI_DATA + 4, LAYOUT_PCI_PORTS_END - 1);
    aml_memory_range32(aml, LAYOUT_PCI32_BASE, LAYOUT_PCI32_END - 1);
    aml_memory_range64(aml, base64, base64 + LAYOUT_PCI64_SIZE - 1, true);
    aml_end(aml);
}

/* _PRT (6.2.13): every slot and pin of the root bus, to a GSI. */
static void add_interrupt_routes(Aml *aml)
{
    aml_name(aml, "_PRT");
    aml_package_begin(aml, PCI_SLOTS * PCI_PINS);
    for (unsigned slot = 0; slot < PCI_SLOTS; slot++) {
        for (unsigned pin = 0; pin < PCI_PINS; pin++) {
            aml_package_begin(aml, 4);
            aml_int(aml, (uint64_t)slot << 16 | 0xffff);
            aml_int(aml, pin);
            aml_int(aml, 0);
            aml_int(aml, layout_pci_gsi(slot, pin));
            aml_end(aml);
        }
    }
    aml_end(aml);
}

static void add_pci_root(Aml *aml, const AcpiBoard *board)
{
    aml_device_begin(aml, "PCI0");
    aml_name(aml, "_HID");
    aml_eisaid(aml, "PNP0A08");
    aml_name(aml, "_CID");
    aml_eisaid(aml, "PNP0A03");
    aml_name(aml, "_UID");
    aml_int(aml, 0);
    aml_name(aml, "_SEG");
    aml_int(aml, 0);
    aml_name(aml, "_BBN");
    aml_int(aml, 0);
    add_root_resources(aml, board);
    add_interrupt_routes(aml);
    /* _OSC (6.2.11): the guest may have every PCI Express feature that it asks for. */
    aml_method_begin(aml, "_OSC", 4);
    aml_return_argument(aml, 3);
    aml_end(aml);
    aml_end(aml);
}

/* What the board decodes outside PCI: ECAM, and the ports of power management. */
static void add_motherboard(Aml *aml)
{
    aml_device_begin(aml, "MBRD");
    aml_name(aml, "_HID");
    aml_eisaid(aml, "PNP0C02");
    aml_name(aml, "_CRS");
    aml_resources_begin(aml);
    aml_memory32(aml, LAYOUT_ECAM_BASE, LAYOUT_ECAM_SIZE);
    aml_io(aml, LAYOUT_PORT_PM, LAYOUT_PORT_PM_COUNT);
    aml_end(aml);
    aml_end(aml);
}

static void add_rtc(Aml *aml)
{
    aml_device_begin(aml, "RTC0");
    aml_name(aml, "_HID");
    aml_eisaid(aml, "PNP0B00");
    aml_name(aml, "_CRS");
    aml_resources_begin(aml);
    aml_io(aml, LAYOUT_PORT_RTC, 2);
    aml_irq(aml, 8);
    aml_end(aml);
    aml_end(aml);
}

static void add_hpet(Aml *aml)
{
    aml_device_begin(aml, "HPET");
    aml_name(aml, "_HID");
    aml_eisaid(aml, "PNP0103");
    aml_name(aml, "_CRS");
    aml_resources_begin(aml);
    aml_memory32(aml, LAYOUT_HPET_BASE, 0x400);
    aml_end(aml);
    aml_end(aml);
}

static void add_com(Aml *aml, const IsaSerialResources *com)
{
    char name[5] = {'C', 'O', 'M', (char)('1' + (com->index & 3)), 0};
    aml_device_begin(aml, name);
    aml_name(aml, "_HID");
    aml_eisaid(aml, "PNP0501");
    aml_name(aml, "_UID");
    aml_int(aml, com->index + 1);
    aml_name(aml, "_CRS");
    aml_resources_begin(aml);
    aml_io(aml, com->port, 8);
    aml_irq(aml, com->irq);
    aml_end(aml);
    aml_end(aml);
}

static void add_cpu(Aml *aml, unsigned index)
{
    static const char hex[] = "0123456789ABCDEF";
    char name[5] = {'C', 'P', hex[index >> 4 & 15], hex[index & 15], 0};
    aml_device_begin(aml, name);
    aml_name(aml, "_HID");
    aml_string(aml, "ACPI0007");
    aml_name(aml, "_UID");
    aml_int(aml, index);
    aml_end(aml);
}

GByteArray *acpi_dsdt_new(const AcpiBoard *board)
{
    g_autoptr(Aml) aml = aml_new();
    aml_scope_begin(aml, "\\_SB");
    add_pci_root(aml, board);
    add_motherboard(aml);
    add_rtc(aml);
    if (board->hpet)
        add_hpet(aml);
    for (unsigned i = 0; i < board->n_com; i++)
        add_com(aml, &board->com[i]);
    for (unsigned i = 0; i < board->n_vcpus; i++)
        add_cpu(aml, i);
    aml_end(aml);
    aml_name(aml, "\\_S5");
    aml_package_begin(aml, 4);
    aml_int(aml, PM_SLEEP_TYPE_S5);
    aml_int(aml, PM_SLEEP_TYPE_S5);
    aml_int(aml, 0);
    aml_int(aml, 0);
    aml_end(aml);

    GByteArray *table = acpi_table_start("DSDT", 2);
    g_byte_array_append(table, aml->bytes->data, aml->bytes->len);
    acpi_table_finish(table);
    return table;
}
