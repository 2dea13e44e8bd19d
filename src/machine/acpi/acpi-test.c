/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The tables' structure, and what iasl makes of them; SMBIOS and the memory map beside them. */
#include <string.h>

#include "base/bytes.h"
#include "machine/acpi/aml.h"
#include "machine/acpi/tables.h"
#include "machine/board/layout.h"
#include "machine/board/memory-map.h"
#include "machine/board/pm.h"
#include "machine/board/smbios.h"

static const AcpiBoard small = {
    .memory_size = GIB(1),
    .low_ram = GIB(1),
    .n_vcpus = 2,
    .hpet = true,
    .com = {{0, 0x3f8, 4}, {1, 0x2f8, 3}},
    .n_com = 2,
};
static const AcpiBoard large = {
    .memory_size = GIB(600), .low_ram = LAYOUT_LOW_RAM_MAX, .n_vcpus = 64, .hpet = false};

static uint8_t sum(const uint8_t *data, size_t size)
{
    uint8_t total = 0;
    for (size_t i = 0; i < size; i++)
        total += data[i];
    return total;
}

static const uint8_t *find_table(GByteArray *all, uint64_t base, uint32_t xsdt, const char *name)
{
    const uint8_t *root = all->data + xsdt;
    g_assert_cmpmem(root, 4, "XSDT", 4);
    for (uint32_t at = 36; at < le32_get(root + 4); at += 8) {
        const uint8_t *table = all->data + (le64_get(root + at) - base);
        if (memcmp(table, name, 4) == 0)
            return table;
    }
    return NULL;
}

static void test_tables(void)
{
    const uint64_t base = 0x3fff0000, facs = 0x3ffff000;
    uint32_t xsdt;
    g_autoptr(GByteArray) all = acpi_tables_new(&small, base, facs, &xsdt);
    static const char *const names[] = {"FACP", "APIC", "MCFG", "HPET"};
    for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
        const uint8_t *table = find_table(all, base, xsdt, names[i]);
        g_assert_nonnull(table);
        g_assert_cmpint(sum(table, le32_get(table + 4)), ==, 0);
    }
    const uint8_t *fadt = find_table(all, base, xsdt, "FACP");
    g_assert_cmpint(le32_get(fadt + 4), ==, 276);
    const uint8_t *dsdt = all->data + (le64_get(fadt + 140) - base);
    g_assert_cmpmem(dsdt, 4, "DSDT", 4);
    g_assert_cmpint(le32_get(fadt + 56), ==, LAYOUT_PORT_PM);
    g_assert_cmpint(fadt[128], ==, PM_RESET_VALUE);
    g_assert_cmpint(le64_get(fadt + 116 + 4), ==, LAYOUT_PORT_RESET);

    uint8_t rsdp[ACPI_RSDP_SIZE];
    acpi_rsdp_fill(rsdp, base + xsdt);
    g_assert_cmpint(sum(rsdp, 20), ==, 0);
    g_assert_cmpint(sum(rsdp, sizeof(rsdp)), ==, 0);

    g_autoptr(GByteArray) big = acpi_tables_new(&large, base, facs, &xsdt);
    g_assert_cmpuint(big->len, <=, LAYOUT_ACPI_SIZE - LAYOUT_ACPI_NVS_SIZE);
    g_assert_null(find_table(big, base, xsdt, "HPET"));
}

static void test_madt(void)
{
    uint32_t xsdt, at = 44, cpus = 0, overrides = 0;
    g_autoptr(GByteArray) all = acpi_tables_new(&large, 0, 0, &xsdt);
    const uint8_t *madt = find_table(all, 0, xsdt, "APIC");
    while (at < le32_get(madt + 4)) {
        g_assert_cmpint(madt[at + 1], >, 0);
        if (madt[at] == 0) {
            g_assert_cmpint(madt[at + 3], ==, cpus);
            cpus++;
        }
        overrides += madt[at] == 2;
        at += madt[at + 1];
    }
    g_assert_cmpint(at, ==, le32_get(madt + 4));
    g_assert_cmpint(cpus, ==, 64);
    g_assert_cmpint(overrides, ==, 2);
}

/* A length at each of the encoding's borders, read back (20.2.4). */
static void test_aml_lengths(void)
{
    static const unsigned sizes[] = {0, 57, 58, 59, 4000, 4088, 4089, 4090, 70000};
    for (size_t i = 0; i < G_N_ELEMENTS(sizes); i++) {
        g_autoptr(Aml) aml = aml_new();
        aml_scope_begin(aml, "ABCD");
        for (unsigned n = 0; n < sizes[i]; n++)
            aml_int(aml, 0);
        aml_end(aml);
        const uint8_t *b = aml->bytes->data + 1;
        unsigned extra = b[0] >> 6, length = extra ? b[0] & 0xf : b[0] & 0x3f;
        for (unsigned k = 0; k < extra; k++)
            length |= (unsigned)b[1 + k] << (4 + 8 * k);
        g_assert_cmpint(length, ==, aml->bytes->len - 1);
        g_assert_cmpint(length, ==, 1 + extra + 4 + sizes[i]);
    }
}

/* Compiles nothing: iasl only has to understand the DSDT, and to find what is in it. */
static void check_with_iasl(const AcpiBoard *board, const char *const *expected)
{
    g_autofree char *dir = g_dir_make_tmp("lodge-acpi-XXXXXX", NULL);
    g_autofree char *aml = g_build_filename(dir, "dsdt.aml", NULL);
    g_autofree char *dsl = g_build_filename(dir, "dsdt.dsl", NULL);
    g_autoptr(GByteArray) dsdt = acpi_dsdt_new(board);
    g_assert_cmpint(sum(dsdt->data, dsdt->len), ==, 0);
    g_assert_true(g_file_set_contents(aml, (char *)dsdt->data, dsdt->len, NULL));
    const char *const decompile[] = {"iasl", "-d", aml, NULL};
    const char *const compile[] = {"iasl", "-we", "-oa", dsl, NULL};
    g_autofree char *out = NULL, *errors = NULL, *text = NULL;
    int status = -1;
    g_spawn_sync(dir, (char **)decompile, NULL, G_SPAWN_SEARCH_PATH, NULL, NULL, &out, &errors,
                 &status, NULL);
    if (status != 0)
        g_error("iasl -d: %s%s", out, errors);
    g_assert_true(g_file_get_contents(dsl, &text, NULL, NULL));
    for (; *expected; expected++)
        if (!strstr(text, *expected))
            g_error("the DSDT lacks %s:\n%s", *expected, text);
    g_autofree char *out2 = NULL, *errors2 = NULL;
    g_spawn_sync(dir, (char **)compile, NULL, G_SPAWN_SEARCH_PATH, NULL, NULL, &out2, &errors2,
                 &status, NULL);
    if (status != 0 || !strstr(out2, "0 Errors"))
        g_error("iasl does not accept its own reading of the DSDT: %s%s", out2, errors2);
    const char *const remove[] = {"rm", "-r", dir, NULL};
    g_spawn_sync(NULL, (char **)remove, NULL, G_SPAWN_SEARCH_PATH, NULL, NULL, NULL, NULL, NULL,
                 NULL);
}

static void test_iasl(void)
{
    g_autofree char *iasl = g_find_program_in_path("iasl");
    if (!iasl) {
        g_test_skip("iasl (package acpica-tools) is not installed");
        return;
    }
    static const char *const parts[] = {
        "Device (PCI0)", "PNP0A08",       "Name (_PRT",  "Name (_CRS", "Name (\\_S5",   "COM2",
        "PNP0B00",       "Device (CP01)", "QWordMemory", "_OSC",       "Device (HPET)", NULL};
    static const char *const many[] = {"Device (CP3F)", NULL};
    check_with_iasl(&small, parts);
    check_with_iasl(&large, many);
}

static void test_smbios(void)
{
    static const uint8_t uuid[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const SmbiosBoard board = {uuid, "1.0", GIB(40), LAYOUT_LOW_RAM_MAX, 2, 3, 2};
    g_autoptr(GByteArray) all = smbios_structures_new(&board);
    unsigned count[128] = {0};
    uint32_t at = 0;
    while (at < all->len) {
        const uint8_t *s = all->data + at;
        g_assert_cmpint(s[0], <, 128);
        count[s[0]]++;
        if (s[0] == 1) {
            static const uint8_t expected[16] = {3, 2, 1,  0,  5,  4,  7,  6,
                                                 8, 9, 10, 11, 12, 13, 14, 15};
            g_assert_cmpmem(s + 8, 16, expected, 16);
            g_assert_cmpstr((char *)s + s[1], ==, "Lodge");
        }
        at += s[1];
        while (at + 1 < all->len && (all->data[at] || all->data[at + 1]))
            at++;
        at += 2;
    }
    g_assert_cmpint(at, ==, all->len);
    static const uint8_t once[] = {0, 1, 3, 16, 32, 127};
    for (size_t i = 0; i < sizeof(once); i++)
        g_assert_cmpint(count[once[i]], ==, 1);
    g_assert_cmpint(count[4], ==, 2);
    g_assert_cmpint(count[17], ==, 3);
    g_assert_cmpint(count[19], ==, 2);
    uint8_t entry[SMBIOS_ENTRY_SIZE];
    smbios_entry_fill(entry, 0xf0020, all->len);
    g_assert_cmpint(sum(entry, sizeof(entry)), ==, 0);
}

static void test_memory_map(void)
{
    static const uint64_t sizes[] = {MEMORY_MAP_MIN, MIB(64), GIB(2), GIB(16)};
    for (size_t k = 0; k < G_N_ELEMENTS(sizes); k++) {
        MemoryMapEntry map[MEMORY_MAP_ENTRIES_MAX];
        uint64_t low = MIN(sizes[k], LAYOUT_LOW_RAM_MAX), end = 0, ram = 0;
        unsigned n = memory_map_fill(map, sizes[k], low);
        for (unsigned i = 0; i < n; i++) {
            g_assert_cmpuint(map[i].base, >=, end);
            g_assert_cmpuint(map[i].size, >, 0);
            end = map[i].base + map[i].size;
            ram += map[i].type == MEMORY_RAM ? map[i].size : 0;
        }
        /* All of it but the top of the first MiB and the ACPI tables. */
        g_assert_cmpuint(ram, ==, sizes[k] - (0x100000 - LAYOUT_EBDA) - LAYOUT_ACPI_SIZE);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/acpi/tables", test_tables);
    g_test_add_func("/acpi/madt", test_madt);
    g_test_add_func("/acpi/aml-lengths", test_aml_lengths);
    g_test_add_func("/acpi/iasl", test_iasl);
    g_test_add_func("/smbios", test_smbios);
    g_test_add_func("/memory-map", test_memory_map);
    return g_test_run();
}
