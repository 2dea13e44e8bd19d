/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The memory map that boot protocols hand to the guest. Types: ACPI Specification 6.5, 15.1. */
#pragma once

#include <stdint.h>

#define MEMORY_MAP_MIN         0x200000u /* the least low RAM that this map makes sense for */
#define MEMORY_MAP_ENTRIES_MAX 10

enum { MEMORY_RAM = 1, MEMORY_RESERVED = 2, MEMORY_ACPI = 3, MEMORY_NVS = 4 };

typedef struct MemoryMapEntry {
    uint64_t base, size;
    uint32_t type;
} MemoryMapEntry;

/* Ascending and without overlaps; returns how many. */
unsigned memory_map_fill(MemoryMapEntry map[MEMORY_MAP_ENTRIES_MAX], uint64_t memory_size,
                         uint64_t low_ram);
/* Where RAM that the guest may use ends below 4 GiB. */
uint64_t memory_map_low_end(uint64_t low_ram);
