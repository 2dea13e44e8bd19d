/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "machine/acpi/tables.h"

#include <string.h>

#include "base/bytes.h"
#include "machine/board/layout.h"
#include "machine/board/pm.h"

#define HEADER_SIZE    36
#define TABLE_LENGTH   4
#define TABLE_CHECKSUM 9
#define OEM_ID         "LODGE "
#define OEM_TABLE_ID   "LODGEPC "

#define FADT_SIZE                 276
#define FADT_REVISION             6
#define FADT_MINOR_REVISION       5
#define FADT_WBINVD               (1u << 0)
#define FADT_PROC_C1              (1u << 2)
#define FADT_NO_SLEEP_BUTTON      (1u << 5)
#define FADT_NO_FIXED_RTC         (1u << 6)
#define FADT_RESET_REGISTER       (1u << 10)
#define BOOT_LEGACY_DEVICES       (1u << 0)
#define BOOT_NO_VGA               (1u << 2)
#define PROFILE_ENTERPRISE_SERVER 4
#define RTC_CENTURY_INDEX         0x32

#define MADT_PCAT_COMPAT 1u
/* Event timer block: hardware revision 1, 3 comparators, 64-bit counter, legacy replacement, Intel.
 */
#define HPET_BLOCK_ID 0x8086a201u

static uint8_t checksum(const uint8_t *data, size_t size)
{
    uint8_t sum = 0;
    for (size_t i = 0; i < size; i++)
        sum += data[i];
    return -sum;
}

static void put(GByteArray *to, uint64_t value, unsigned size)
{
    uint8_t bytes[8];
    le64_put(bytes, value);
    g_byte_array_append(to, bytes, size);
}

GByteArray *acpi_table_start(const char *signature, uint8_t revision)
{
    GByteArray *t = g_byte_array_new();
    g_byte_array_append(t, (const uint8_t *)signature, 4);
    put(t, 0, 4); /* length */
    put(t, revision, 1);
    put(t, 0, 1); /* checksum */
    g_byte_array_append(t, (const uint8_t *)OEM_ID, 6);
    g_byte_array_append(t, (const uint8_t *)OEM_TABLE_ID, 8);
    put(t, 1, 4); /* OEM revision */
    g_byte_array_append(t, (const uint8_t *)"LODG", 4);
    put(t, 1, 4); /* creator revision */
    return t;
}

void acpi_table_finish(GByteArray *table)
{
    le32_put(table->data + TABLE_LENGTH, table->len);
    table->data[TABLE_CHECKSUM] = 0;
    table->data[TABLE_CHECKSUM] = checksum(table->data, table->len);
}

/* Generic address structure (5.2.3.2) for a port of @bytes. */
static void gas_put(uint8_t *to, uint16_t port, unsigned bytes)
{
    to[0] = 1; /* system I/O */
    to[1] = bytes * 8;
    to[2] = 0;
    to[3] = bytes == 1 ? 1 : bytes == 2 ? 2 : 3; /* access size; blocks by dword */
    le64_put(to + 4, port);
}

/* 5.2.9. The keyboard controller is not announced: there is no keyboard on it. */
static GByteArray *fadt_new(uint64_t dsdt, uint64_t facs)
{
    GByteArray *table = acpi_table_start("FACP", FADT_REVISION);
    g_byte_array_set_size(table, FADT_SIZE);
    uint8_t *f = table->data;
    memset(f + HEADER_SIZE, 0, FADT_SIZE - HEADER_SIZE);
    const uint16_t event = LAYOUT_PORT_PM + PM_EVENT_OFFSET;
    const uint16_t control = LAYOUT_PORT_PM + PM_CONTROL_OFFSET;
    const uint16_t timer = LAYOUT_PORT_PM + PM_TIMER_OFFSET;
    const uint16_t gpe0 = LAYOUT_PORT_PM + PM_GPE0_OFFSET;
    /* FIRMWARE_CTRL and DSDT: the 64-bit fields below count; these are for older software. */
    le32_put(f + 36, facs);
    le32_put(f + 40, dsdt);
    f[45] = PROFILE_ENTERPRISE_SERVER;
    le16_put(f + 46, LAYOUT_GSI_SCI);
    le32_put(f + 56, event);
    le32_put(f + 64, control);
    le32_put(f + 76, timer);
    le32_put(f + 80, gpe0);
    f[88] = PM_EVENT_LENGTH;
    f[89] = PM_CONTROL_LENGTH;
    f[91] = PM_TIMER_LENGTH;
    f[92] = PM_GPE0_LENGTH;
    le16_put(f + 96, 0xfff); /* no C2, no C3 */
    le16_put(f + 98, 0xfff);
    f[108] = RTC_CENTURY_INDEX;
    le16_put(f + 109, BOOT_LEGACY_DEVICES | BOOT_NO_VGA);
    le32_put(f + 112, FADT_WBINVD | FADT_PROC_C1 | FADT_NO_SLEEP_BUTTON | FADT_NO_FIXED_RTC |
                          FADT_RESET_REGISTER);
    gas_put(f + 116, LAYOUT_PORT_RESET, 1);
    f[128] = PM_RESET_VALUE;
    f[131] = FADT_MINOR_REVISION;
    le64_put(f + 140, dsdt); /* X_FIRMWARE_CTRL stays 0 while FIRMWARE_CTRL is used (5.2.9) */
    gas_put(f + 148, event, PM_EVENT_LENGTH);
    gas_put(f + 172, control, PM_CONTROL_LENGTH);
    gas_put(f + 208, timer, PM_TIMER_LENGTH);
    gas_put(f + 220, gpe0, PM_GPE0_LENGTH);
    memcpy(f + 268, "Lodge\0\0\0", 8);
    return table;
}

/* Interrupt source override (5.2.12.5). */
static void add_override(GByteArray *madt, uint8_t irq, uint32_t gsi, uint16_t flags)
{
    put(madt, 2, 1);
    put(madt, 10, 1);
    put(madt, 0, 1); /* ISA */
    put(madt, irq, 1);
    put(madt, gsi, 4);
    put(madt, flags, 2);
}

static void add_local_apic(GByteArray *madt, unsigned index)
{
    if (index < 255) {
        put(madt, 0, 1);
        put(madt, 8, 1);
        put(madt, index, 1); /* processor UID */
        put(madt, index, 1); /* APIC ID */
        put(madt, 1, 4);     /* enabled */
        return;
    }
    put(madt, 9, 1); /* x2APIC (5.2.12.12) */
    put(madt, 16, 1);
    put(madt, 0, 2);
    put(madt, index, 4);
    put(madt, 1, 4);
    put(madt, index, 4);
}

/* 5.2.12 */
static GByteArray *madt_new(const AcpiBoard *board)
{
    GByteArray *t = acpi_table_start("APIC", 5);
    put(t, LAYOUT_LAPIC_BASE, 4);
    put(t, MADT_PCAT_COMPAT, 4);
    for (unsigned i = 0; i < board->n_vcpus; i++)
        add_local_apic(t, i);
    put(t, 1, 1); /* IOAPIC */
    put(t, 12, 1);
    put(t, 0, 1); /* its ID */
    put(t, 0, 1);
    put(t, LAYOUT_IOAPIC_BASE, 4);
    put(t, 0, 4); /* first GSI */
    add_override(t, 0, LAYOUT_GSI_PIT, 0);
    add_override(t, LAYOUT_GSI_SCI, LAYOUT_GSI_SCI, 0x0d); /* active high, level */
    put(t, 4, 1);                                          /* NMI on LINT1 of every processor */
    put(t, 6, 1);
    put(t, 0xff, 1);
    put(t, 0, 2);
    put(t, 1, 1);
    return t;
}

/* PCI Firmware Specification 3.3, 4.1.2 */
static GByteArray *mcfg_new(void)
{
    GByteArray *t = acpi_table_start("MCFG", 1);
    put(t, 0, 8);
    put(t, LAYOUT_ECAM_BASE, 8);
    put(t, 0, 2); /* segment */
    put(t, 0, 1); /* first bus */
    put(t, LAYOUT_ECAM_SIZE / 0x100000 - 1, 1);
    put(t, 0, 4);
    return t;
}

/* IA-PC HPET Specification 1.0a, 3.2.4 */
static GByteArray *hpet_new(void)
{
    GByteArray *t = acpi_table_start("HPET", 1);
    put(t, HPET_BLOCK_ID, 4);
    put(t, 0, 1); /* memory */
    put(t, 64, 1);
    put(t, 0, 2);
    put(t, LAYOUT_HPET_BASE, 8);
    put(t, 0, 1);   /* HPET number */
    put(t, 128, 2); /* minimum tick in periodic mode */
    put(t, 0, 1);
    return t;
}

/* VT-d 8.1, 8.3: one unit for all PCI functions and for the IOAPIC, which it calls f0:1f.7. */
static GByteArray *dmar_new(void)
{
    GByteArray *t = acpi_table_start("DMAR", 1);
    put(t, 48 - 1, 1); /* bits of an address, less 1 */
    put(t, 1, 1);      /* interrupts are remapped */
    put(t, 0, 8);
    put(t, 0, 2);
    put(t, 0, 2);      /* DRHD */
    put(t, 16 + 8, 2); /* its length */
    put(t, 1, 1);      /* all functions */
    put(t, 0, 1);      /* 4 KiB of registers */
    put(t, 0, 2);      /* segment */
    put(t, LAYOUT_IOMMU_BASE, 8);
    put(t, 3, 1); /* scope: an IOAPIC */
    put(t, 8, 1); /* its length */
    put(t, 0, 2);
    put(t, 0, 1); /* its ID */
    put(t, 0xf0, 1);
    put(t, 0x1f, 1);
    put(t, 7, 1);
    return t;
}

/* Appends @table on a 16-byte boundary and frees it; returns its offset. */
static uint32_t place(GByteArray *all, GByteArray *table)
{
    acpi_table_finish(table);
    while (all->len & 15)
        put(all, 0, 1);
    uint32_t offset = all->len;
    g_byte_array_append(all, table->data, table->len);
    g_byte_array_unref(table);
    return offset;
}

GByteArray *acpi_tables_new(const AcpiBoard *board, uint64_t base, uint64_t facs, uint32_t *xsdt)
{
    GByteArray *all = g_byte_array_new();
    uint64_t listed[5];
    unsigned n = 0;
    uint64_t dsdt = base + place(all, acpi_dsdt_new(board));
    listed[n++] = base + place(all, fadt_new(dsdt, facs));
    listed[n++] = base + place(all, madt_new(board));
    listed[n++] = base + place(all, mcfg_new());
    if (board->hpet)
        listed[n++] = base + place(all, hpet_new());
    if (board->iommu)
        listed[n++] = base + place(all, dmar_new());
    GByteArray *root = acpi_table_start("XSDT", 1);
    for (unsigned i = 0; i < n; i++)
        put(root, listed[i], 8);
    *xsdt = place(all, root);
    return all;
}

/* 5.2.5.3 */
void acpi_rsdp_fill(uint8_t rsdp[ACPI_RSDP_SIZE], uint64_t xsdt)
{
    memset(rsdp, 0, ACPI_RSDP_SIZE);
    memcpy(rsdp, "RSD PTR ", 8);
    memcpy(rsdp + 9, OEM_ID, 6);
    rsdp[15] = 2;
    le32_put(rsdp + 20, ACPI_RSDP_SIZE);
    le64_put(rsdp + 24, xsdt);
    rsdp[8] = checksum(rsdp, 20);
    rsdp[32] = checksum(rsdp, ACPI_RSDP_SIZE);
}

/* 5.2.10 */
void acpi_facs_fill(uint8_t facs[ACPI_FACS_SIZE])
{
    memset(facs, 0, ACPI_FACS_SIZE);
    memcpy(facs, "FACS", 4);
    le32_put(facs + 4, ACPI_FACS_SIZE);
    facs[32] = 2;
}
