/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "machine/board/smbios.h"

#include <string.h>

#include "base/bytes.h"
#include "machine/board/layout.h"

#define HANDLE_CHASSIS 0x0300
#define HANDLE_CPU     0x0400
#define HANDLE_ARRAY   0x1000
#define HANDLE_MODULE  0x1100
#define HANDLE_MAPPED  0x1300
#define MODULE_SIZE    GIB(16)

/* One structure: its formatted part and the strings behind it. */
typedef struct Structure {
    GByteArray *to;
    guint start;
    unsigned n_strings;
    GString *strings; /* with their zeroes */
} Structure;

static void put(Structure *s, uint64_t value, unsigned size)
{
    uint8_t bytes[8];
    le64_put(bytes, value);
    g_byte_array_append(s->to, bytes, size);
}

static Structure begin(GByteArray *to, uint8_t type, uint16_t handle)
{
    Structure s = {.to = to, .start = to->len, .strings = g_string_new(NULL)};
    put(&s, type, 1);
    put(&s, 0, 1); /* length, by end() */
    put(&s, handle, 2);
    return s;
}

/* A string field: its number among the structure's strings. */
static void put_string(Structure *s, const char *text)
{
    g_string_append_len(s->strings, text, strlen(text) + 1);
    put(s, ++s->n_strings, 1);
}

static void end(Structure *s)
{
    s->to->data[s->start + 1] = s->to->len - s->start;
    g_byte_array_append(s->to, (const uint8_t *)s->strings->str, s->strings->len);
    put(s, 0, s->n_strings ? 1 : 2);
    g_string_free(s->strings, TRUE);
}

/* 7.1 */
static void add_bios(GByteArray *to, const SmbiosBoard *board)
{
    Structure s = begin(to, 0, 0);
    put_string(&s, "Lodge");
    put_string(&s, board->version);
    put(&s, 0xf000, 2); /* starting segment */
    put_string(&s, "01/01/2026");
    put(&s, 0, 1);       /* 64 KiB */
    put(&s, 1u << 3, 8); /* characteristics are not supported */
    put(&s, 0x0100, 2);  /* ACPI */
    put(&s, 0xff, 1);
    put(&s, 0xff, 1);
    put(&s, 0xff, 1);
    put(&s, 0xff, 1);
    put(&s, 0, 2); /* extended ROM size */
    end(&s);
}

/* 7.2; the UUID's first three fields are little-endian (7.2.1). */
static void add_system(GByteArray *to, const SmbiosBoard *board)
{
    Structure s = begin(to, 1, 0x0100);
    const uint8_t *u = board->uuid;
    put_string(&s, "Lodge");
    put_string(&s, "Lodge");
    put_string(&s, board->version);
    put(&s, 0, 1); /* no serial number */
    put(&s, be32_get(u), 4);
    put(&s, be16_get(u + 4), 2);
    put(&s, be16_get(u + 6), 2);
    g_byte_array_append(to, u + 8, 8);
    put(&s, 6, 1); /* woken by the power switch */
    put(&s, 0, 1); /* no SKU */
    put_string(&s, "Virtual Machine");
    end(&s);
}

/* 7.4 */
static void add_chassis(GByteArray *to, const SmbiosBoard *board)
{
    Structure s = begin(to, 3, HANDLE_CHASSIS);
    put_string(&s, "Lodge");
    put(&s, 1, 1); /* other */
    put_string(&s, board->version);
    put(&s, 0, 1);
    put(&s, 0, 1);
    put(&s, 3, 1); /* boot-up, power and thermal state: safe */
    put(&s, 3, 1);
    put(&s, 3, 1);
    put(&s, 2, 1); /* security: unknown */
    put(&s, 0, 4);
    put(&s, 0, 1); /* height */
    put(&s, 0, 1); /* power cords */
    put(&s, 0, 1); /* contained elements */
    put(&s, 0, 1);
    put(&s, 0, 1); /* SKU */
    end(&s);
}

/* 7.5 */
static void add_cpu(GByteArray *to, const SmbiosBoard *board, unsigned socket)
{
    unsigned cores = board->cores, threads = board->cores * board->threads;
    g_autofree char *name = g_strdup_printf("CPU %u", socket);
    Structure s = begin(to, 4, HANDLE_CPU + socket);
    put_string(&s, name);
    put(&s, 3, 1); /* central processor */
    put(&s, 1, 1); /* family: other */
    put_string(&s, "Lodge");
    put(&s, 0, 8); /* identification: CPUID tells */
    put_string(&s, board->version);
    put(&s, 0, 1); /* voltage, clocks: unknown */
    put(&s, 0, 2);
    put(&s, 2000, 2);
    put(&s, 2000, 2);
    put(&s, 0x41, 1);   /* populated, enabled */
    put(&s, 1, 1);      /* upgrade: other */
    put(&s, 0xffff, 2); /* caches: not described */
    put(&s, 0xffff, 2);
    put(&s, 0xffff, 2);
    put(&s, 0, 1);
    put(&s, 0, 1);
    put(&s, 0, 1);
    put(&s, MIN(cores, 0xff), 1);
    put(&s, MIN(cores, 0xff), 1);
    put(&s, MIN(threads, 0xff), 1);
    put(&s, 1u << 2, 2); /* 64-bit capable */
    put(&s, 1, 2);       /* family 2: other */
    put(&s, cores, 2);
    put(&s, cores, 2);
    put(&s, threads, 2);
    end(&s);
}

/* 7.17 */
static void add_array(GByteArray *to, const SmbiosBoard *board, unsigned n_modules)
{
    Structure s = begin(to, 16, HANDLE_ARRAY);
    put(&s, 1, 1);           /* location: other */
    put(&s, 3, 1);           /* system memory */
    put(&s, 6, 1);           /* multi-bit ECC */
    put(&s, 0x80000000u, 4); /* size is in the extended field */
    put(&s, 0xfffe, 2);
    put(&s, n_modules, 2);
    put(&s, board->memory_size, 8);
    end(&s);
}

/* 7.18; size: MiB, or in the extended field from 32 GiB - 1 MiB on */
static void add_module(GByteArray *to, unsigned index, uint64_t size)
{
    g_autofree char *name = g_strdup_printf("DIMM %u", index);
    Structure s = begin(to, 17, HANDLE_MODULE + index);
    put(&s, HANDLE_ARRAY, 2);
    put(&s, 0xfffe, 2);
    put(&s, 0xffff, 2); /* widths: unknown */
    put(&s, 0xffff, 2);
    put(&s, size >> 20 < 0x7fff ? size >> 20 : 0x7fff, 2);
    put(&s, 9, 1); /* DIMM */
    put(&s, 0, 1);
    put_string(&s, name);
    put(&s, 0, 1);
    put(&s, 7, 1); /* RAM */
    put(&s, 2, 2); /* other */
    put(&s, 0, 2);
    put_string(&s, "Lodge");
    put(&s, 0, 1);
    put(&s, 0, 1);
    put(&s, 0, 1);
    put(&s, 0, 1);
    put(&s, size >> 20 < 0x7fff ? 0 : size >> 20, 4);
    put(&s, 0, 2);
    put(&s, 0, 2);
    put(&s, 0, 2);
    put(&s, 0, 2);
    end(&s);
}

/* 7.20 */
static void add_mapped(GByteArray *to, unsigned index, uint64_t base, uint64_t size)
{
    Structure s = begin(to, 19, HANDLE_MAPPED + index);
    put(&s, 0xffffffffu, 4); /* addresses are in the extended fields */
    put(&s, 0xffffffffu, 4);
    put(&s, HANDLE_ARRAY, 2);
    put(&s, 1, 1);
    put(&s, base, 8);
    put(&s, base + size - 1, 8);
    end(&s);
}

GByteArray *smbios_structures_new(const SmbiosBoard *board)
{
    GByteArray *all = g_byte_array_new();
    unsigned n_modules = (board->memory_size + MODULE_SIZE - 1) / MODULE_SIZE;
    add_bios(all, board);
    add_system(all, board);
    add_chassis(all, board);
    for (unsigned i = 0; i < board->sockets; i++)
        add_cpu(all, board, i);
    add_array(all, board, n_modules);
    for (unsigned i = 0; i < n_modules; i++)
        add_module(all, i, MIN(MODULE_SIZE, board->memory_size - i * MODULE_SIZE));
    add_mapped(all, 0, 0, board->low_ram);
    if (board->memory_size > board->low_ram)
        add_mapped(all, 1, LAYOUT_HIGH_RAM, board->memory_size - board->low_ram);
    Structure boot = begin(all, 32, 0x2000); /* 7.33: no error */
    put(&boot, 0, 6);
    put(&boot, 0, 1);
    end(&boot);
    Structure last = begin(all, 127, 0x7f00);
    end(&last);
    return all;
}

/* 5.2.2 */
void smbios_entry_fill(uint8_t entry[SMBIOS_ENTRY_SIZE], uint64_t table, uint32_t size)
{
    memset(entry, 0, SMBIOS_ENTRY_SIZE);
    memcpy(entry, "_SM3_", 5);
    entry[6] = SMBIOS_ENTRY_SIZE;
    entry[7] = 3;
    entry[8] = 6;
    entry[10] = 1;
    le32_put(entry + 12, size);
    le64_put(entry + 16, table);
    uint8_t sum = 0;
    for (unsigned i = 0; i < SMBIOS_ENTRY_SIZE; i++)
        sum += entry[i];
    entry[5] = -sum;
}
