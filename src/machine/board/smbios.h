/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* SMBIOS structures as bytes. DMTF DSP0134 3.6. */
#pragma once

#include <glib.h>
#include <stdint.h>

#define SMBIOS_ENTRY_SIZE 24

typedef struct SmbiosBoard {
    const uint8_t *uuid; /* 16 bytes, RFC 4122 order */
    const char *version;
    uint64_t memory_size, low_ram;
    unsigned sockets, cores, threads; /* cores per socket, threads per core */
} SmbiosBoard;

GByteArray *smbios_structures_new(const SmbiosBoard *board);
void smbios_entry_fill(uint8_t entry[SMBIOS_ENTRY_SIZE], uint64_t table, uint32_t size);
