/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Puts the ACPI and SMBIOS tables into guest RAM. */
#include "machine/acpi/tables.h"
#include "base/error.h"
#include "machine/board/board.h"
#include "machine/board/layout.h"
#include "machine/board/memory-map.h"
#include "machine/board/smbios.h"
#include "machine/machine-internal.h"

static void collect_com(Device *dev, void *opaque)
{
    AcpiBoard *board = opaque;
    if (dev->type == &isa_serial_device_type && board->n_com < G_N_ELEMENTS(board->com))
        isa_serial_resources(dev, &board->com[board->n_com++]);
}

bool board_acpi_build(Machine *m, GError **err)
{
    const MachineConfig *config = machine_config(m);
    AcpiBoard board = {
        .memory_size = config->memory_size,
        .low_ram = machine_low_ram(m),
        .n_vcpus = machine_vcpu_count(m),
        .hpet = config->hpet,
        .iommu = m->iommu != NULL,
    };
    if (board.low_ram < MEMORY_MAP_MIN)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "the machine's memory is %" G_GUINT64_FORMAT
                          " KiB; a PC with ACPI needs at least %u KiB",
                          board.low_ram >> 10, MEMORY_MAP_MIN >> 10);
    machine_foreach_device(m, collect_com, &board);
    uint64_t base = board.low_ram - LAYOUT_ACPI_SIZE;
    uint64_t facs = board.low_ram - LAYOUT_ACPI_NVS_SIZE;
    uint32_t xsdt;
    g_autoptr(GByteArray) tables = acpi_tables_new(&board, base, facs, &xsdt);
    if (tables->len > LAYOUT_ACPI_SIZE - LAYOUT_ACPI_NVS_SIZE)
        return lodge_fail(err, LODGE_ERROR_INTERNAL, "the ACPI tables take %u bytes, too many",
                          tables->len);
    uint8_t rsdp[ACPI_RSDP_SIZE], facs_bytes[ACPI_FACS_SIZE];
    acpi_rsdp_fill(rsdp, base + xsdt);
    acpi_facs_fill(facs_bytes);
    if (!machine_dma_write(m, base, tables->data, tables->len) ||
        !machine_dma_write(m, facs, facs_bytes, sizeof(facs_bytes)) ||
        !machine_dma_write(m, LAYOUT_RSDP_BASE, rsdp, sizeof(rsdp)))
        return lodge_fail(err, LODGE_ERROR_INTERNAL, "the ACPI tables do not lie in RAM");
    return true;
}

bool board_smbios_build(Machine *m, GError **err)
{
    const MachineConfig *config = machine_config(m);
    const SmbiosBoard board = {
        .uuid = config->uuid,
        .version = LODGE_VERSION,
        .memory_size = config->memory_size,
        .low_ram = machine_low_ram(m),
        .sockets = MAX(config->sockets, 1),
        .cores = MAX(config->cores, 1),
        .threads = MAX(config->threads, 1),
    };
    g_autoptr(GByteArray) all = smbios_structures_new(&board);
    uint64_t table = LAYOUT_SMBIOS_BASE + 0x20;
    if (all->len > LAYOUT_SMBIOS_SIZE - 0x20)
        return lodge_fail(err, LODGE_ERROR_INTERNAL, "the SMBIOS tables take %u bytes, too many",
                          all->len);
    uint8_t entry[SMBIOS_ENTRY_SIZE];
    smbios_entry_fill(entry, table, all->len);
    if (!machine_dma_write(m, LAYOUT_SMBIOS_BASE, entry, sizeof(entry)) ||
        !machine_dma_write(m, table, all->data, all->len))
        return lodge_fail(err, LODGE_ERROR_INTERNAL, "the SMBIOS tables do not lie in RAM");
    return true;
}
