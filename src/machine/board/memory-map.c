/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "machine/board/memory-map.h"

#include "machine/board/layout.h"

uint64_t memory_map_low_end(uint64_t low_ram)
{
    return low_ram - LAYOUT_ACPI_SIZE;
}

unsigned memory_map_fill(MemoryMapEntry map[MEMORY_MAP_ENTRIES_MAX], uint64_t memory_size,
                         uint64_t low_ram)
{
    const uint64_t low_end = memory_map_low_end(low_ram), nvs = low_ram - LAYOUT_ACPI_NVS_SIZE;
    unsigned n = 0;
    map[n++] = (MemoryMapEntry){0, LAYOUT_EBDA, MEMORY_RAM};
    map[n++] = (MemoryMapEntry){LAYOUT_EBDA, 0xa0000 - LAYOUT_EBDA, MEMORY_RESERVED};
    map[n++] = (MemoryMapEntry){LAYOUT_SMBIOS_BASE, 0x100000 - LAYOUT_SMBIOS_BASE, MEMORY_RESERVED};
    map[n++] = (MemoryMapEntry){0x100000, low_end - 0x100000, MEMORY_RAM};
    map[n++] = (MemoryMapEntry){low_end, nvs - low_end, MEMORY_ACPI};
    map[n++] = (MemoryMapEntry){nvs, low_ram - nvs, MEMORY_NVS};
    map[n++] = (MemoryMapEntry){LAYOUT_ECAM_BASE, LAYOUT_ECAM_SIZE, MEMORY_RESERVED};
    if (memory_size > low_ram)
        map[n++] = (MemoryMapEntry){LAYOUT_HIGH_RAM, memory_size - low_ram, MEMORY_RAM};
    return n;
}
