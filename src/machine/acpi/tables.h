/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The ACPI tables as bytes, from a description of the board. ACPI Specification 6.5. */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "machine/board/devices.h"

#define ACPI_RSDP_SIZE 36
#define ACPI_FACS_SIZE 64

typedef struct AcpiBoard {
    uint64_t memory_size, low_ram; /* bytes */
    unsigned n_vcpus;
    bool hpet, iommu;
    IsaSerialResources com[4];
    unsigned n_com;
} AcpiBoard;

/* All tables but RSDP and FACS, to be put at @base; *xsdt: offset of the XSDT in them. */
GByteArray *acpi_tables_new(const AcpiBoard *board, uint64_t base, uint64_t facs, uint32_t *xsdt);
/* The DSDT alone, with its header. */
GByteArray *acpi_dsdt_new(const AcpiBoard *board);
void acpi_rsdp_fill(uint8_t rsdp[ACPI_RSDP_SIZE], uint64_t xsdt);
void acpi_facs_fill(uint8_t facs[ACPI_FACS_SIZE]);

/* For the table builders: a header of 36 bytes to start with, length and checksum to finish. */
GByteArray *acpi_table_start(const char *signature, uint8_t revision);
void acpi_table_finish(GByteArray *table);
