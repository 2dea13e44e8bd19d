/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Where everything of the q35 board lies: one place for the address decoders, the ACPI
 * tables and the boot loaders. Facts that software relies on: Intel ICH9 datasheet
 * (fixed ports), MultiProcessor and ACPI specifications; the rest is Lodge's choice.
 */
#pragma once

#include <stdint.h>

/* ---- guest physical memory ---- */
#define LAYOUT_LOW_RAM_MAX 0x80000000u  /* RAM below 4 GiB ends here at the latest */
#define LAYOUT_HIGH_RAM    0x100000000u /* RAM that does not fit below goes on here */
#define LAYOUT_ECAM_BASE   0xb0000000u  /* PCI Express configuration, 256 buses */
#define LAYOUT_ECAM_SIZE   0x10000000u
#define LAYOUT_PCI32_BASE  0xc0000000u /* BARs below 4 GiB */
#define LAYOUT_PCI32_END   0xfec00000u /* exclusive */
#define LAYOUT_IOAPIC_BASE 0xfec00000u
#define LAYOUT_HPET_BASE   0xfed00000u
#define LAYOUT_IOMMU_BASE  0xfed90000u
#define LAYOUT_LAPIC_BASE  0xfee00000u
#define LAYOUT_PCI64_SIZE  0x800000000u /* 32 GiB window for 64-bit BARs */

/* The 64-bit window begins at the first 32 GiB boundary above all RAM. */
static inline uint64_t layout_pci64_base(uint64_t memory_size, uint64_t low_ram)
{
    uint64_t top = LAYOUT_HIGH_RAM + (memory_size - low_ram);
    return (top + LAYOUT_PCI64_SIZE - 1) & ~((uint64_t)LAYOUT_PCI64_SIZE - 1);
}

/* Real-mode area: [0xa0000, 1 MiB) is RAM that the memory map reserves. */
#define LAYOUT_EBDA        0x9fc00u
#define LAYOUT_SMBIOS_BASE 0xf0000u /* SMBIOS 3 entry point, then its structures */
#define LAYOUT_SMBIOS_SIZE 0x8000u
#define LAYOUT_RSDP_BASE   0xf8000u
/* The last pieces of low RAM: ACPI tables, then 4 KiB of ACPI NVS (FACS). */
#define LAYOUT_ACPI_SIZE     0x10000u
#define LAYOUT_ACPI_NVS_SIZE 0x1000u

/* ---- ports ---- */
#define LAYOUT_PORT_RTC         0x70
#define LAYOUT_PORT_PM          0x600 /* PM1a event 0x600, control 0x604, timer 0x608, GPE0 0x620 */
#define LAYOUT_PORT_PM_COUNT    0x80
#define LAYOUT_PORT_PCI_ADDRESS 0xcf8 /* byte accesses to 0xcf9 are the reset control register */
#define LAYOUT_PORT_RESET       0xcf9
#define LAYOUT_PORT_PCI_DATA    0xcfc
#define LAYOUT_PCI_PORTS_BASE   0x1000  /* BARs in port space */
#define LAYOUT_PCI_PORTS_END    0x10000 /* exclusive */

/* ---- interrupts ---- */
#define LAYOUT_GSI_COUNT     24
#define LAYOUT_GSI_PIT       2 /* ISA IRQ 0 reaches IOAPIC pin 2 */
#define LAYOUT_GSI_SCI       9
#define LAYOUT_GSI_PCI_FIRST 16

/* INTx of a function on the root bus; @pin 0 = INTA#. Level, active low on the wire. */
static inline unsigned layout_pci_gsi(unsigned slot, unsigned pin)
{
    return LAYOUT_GSI_PCI_FIRST + ((slot + pin) & 7);
}
