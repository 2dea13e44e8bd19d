/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Multiboot Specification 0.6.96: header in 3.1, machine state in 3.2, information in 3.3. */
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "machine/board/layout.h"
#include "machine/board/memory-map.h"
#include "machine/boot/boot.h"

#define HEADER_MAGIC        0x1badb002u
#define LOADER_MAGIC        0x2badb002u
#define HEADER_SIZE         12u
#define ADDRESS_FIELDS_SIZE 20u
#define FLAGS_KNOWN         0x0007u /* page-aligned modules, memory information, video (not given) */
#define FLAGS_REQUIRED      0xffffu
#define FLAG_ADDRESSES      0x10000u

#define INFO_SIZE        116
#define INFO_MEMORY      0x001u
#define INFO_CMDLINE     0x004u
#define INFO_MODULES     0x008u
#define INFO_MAP         0x040u
#define INFO_LOADER_NAME 0x200u

#define MODULE_LIST       BOOT_LISTS
#define MODULE_NAME       (BOOT_LISTS + 0x20)
#define LOADER_NAME       (BOOT_LISTS + 0x60)
#define MEMMAP            (BOOT_LISTS + 0x100)
#define MEMMAP_ENTRY_SIZE 24

/* The header: four-byte aligned within the first 8192 bytes. -1: there is none. */
static int find_header(const uint8_t *head, size_t size)
{
    for (size_t at = 0; at + HEADER_SIZE <= size; at += 4)
        if (le32_get(head + at) == HEADER_MAGIC &&
            le32_get(head + at) + le32_get(head + at + 4) + le32_get(head + at + 8) == 0)
            return (int)at;
    return -1;
}

static bool multiboot_probe(const BootImage *image, const uint8_t *head, size_t size)
{
    return find_header(head, size) >= 0;
}

typedef struct Loaded {
    uint64_t start, end, entry;
} Loaded;

/* The header's own addresses, for files that are not ELF. */
static bool load_by_addresses(const BootImage *image, const uint8_t *fields, uint64_t header_offset,
                              Loaded *loaded, GError **err)
{
    uint64_t header = le32_get(fields), start = le32_get(fields + 4);
    uint64_t load_end = le32_get(fields + 8), bss_end = le32_get(fields + 12);
    if (header < start || header - start > header_offset)
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "kernel '%s': its multiboot load address does not match its header",
                          image->kernel.path);
    uint64_t offset = header_offset - (header - start);
    uint64_t length = image->kernel.size - offset;
    if (load_end != 0) {
        if (load_end < start || load_end - start > length)
            return lodge_fail(err, LODGE_ERROR_CORRUPT,
                              "kernel '%s': its multiboot load end lies outside the file",
                              image->kernel.path);
        length = load_end - start;
    }
    uint64_t memory = bss_end > start ? MAX(bss_end - start, length) : length;
    if (memory == 0 || !boot_kernel_fits(image, start, memory))
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "kernel '%s' wants 0x%" G_GINT64_MODIFIER
                          "x bytes at 0x%" G_GINT64_MODIFIER
                          "x, where the machine has no memory for it",
                          image->kernel.path, memory, start);
    *loaded = (Loaded){start, start + memory, le32_get(fields + 16)};
    return boot_file_load(image, &image->kernel, offset, length, start, memory, err);
}

static bool load_kernel(const BootImage *image, Loaded *loaded, GError **err)
{
    g_autofree uint8_t *head = g_malloc0(BOOT_HEAD_SIZE);
    uint64_t size = MIN(image->kernel.size, BOOT_HEAD_SIZE);
    if (!boot_file_read(&image->kernel, 0, head, size, err))
        return false;
    int at = find_header(head, size);
    if (at < 0)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "kernel '%s' is no multiboot image any more",
                          image->kernel.path);
    uint32_t flags = le32_get(head + at + 4);
    if (flags & FLAGS_REQUIRED & ~FLAGS_KNOWN)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "kernel '%s' requires multiboot features 0x%x, which are not supported",
                          image->kernel.path, flags & FLAGS_REQUIRED & ~FLAGS_KNOWN);
    if (flags & FLAG_ADDRESSES) {
        uint8_t fields[ADDRESS_FIELDS_SIZE];
        return boot_file_read(&image->kernel, (uint64_t)at + HEADER_SIZE, fields, sizeof(fields),
                              err) &&
               load_by_addresses(image, fields, at, loaded, err);
    }
    BootElf elf;
    if (!boot_elf_read(image, true, &elf, err))
        return false;
    *loaded = (Loaded){elf.start, elf.end, elf.entry};
    return true;
}

static bool write_memory_map(const BootImage *image, uint8_t *info, GError **err)
{
    MemoryMapEntry map[MEMORY_MAP_ENTRIES_MAX];
    uint8_t bytes[MEMORY_MAP_ENTRIES_MAX * MEMMAP_ENTRY_SIZE];
    unsigned n = memory_map_fill(map, image->memory.memory_size, image->memory.low_ram);
    for (unsigned i = 0; i < n; i++) {
        uint8_t *e = bytes + i * MEMMAP_ENTRY_SIZE;
        le32_put(e, MEMMAP_ENTRY_SIZE - 4); /* the size field does not count itself */
        le64_put(e + 4, map[i].base);
        le64_put(e + 12, map[i].size);
        le32_put(e + 20, map[i].type);
    }
    le32_put(info + 4, LAYOUT_EBDA >> 10);
    le32_put(info + 8, (memory_map_low_end(image->memory.low_ram) - 0x100000) >> 10);
    le32_put(info + 44, n * MEMMAP_ENTRY_SIZE);
    le32_put(info + 48, MEMMAP);
    return boot_write(image, MEMMAP, bytes, n * MEMMAP_ENTRY_SIZE, err);
}

static bool write_module(const BootImage *image, uint64_t initrd, uint8_t *info, GError **err)
{
    uint8_t module[16] = {0};
    char name[0x40] = {0};
    g_autofree char *base = g_path_get_basename(image->initrd.path);
    g_strlcpy(name, base, sizeof(name));
    le32_put(module, initrd);
    le32_put(module + 4, initrd + image->initrd.size);
    le32_put(module + 8, MODULE_NAME);
    le32_put(info + 20, 1);
    le32_put(info + 24, MODULE_LIST);
    return boot_write(image, MODULE_LIST, module, sizeof(module), err) &&
           boot_write(image, MODULE_NAME, name, sizeof(name), err);
}

static bool multiboot_load(const BootImage *image, VcpuState *bsp, GError **err)
{
    Loaded loaded = {0};
    uint64_t initrd;
    if (!load_kernel(image, &loaded, err))
        return false;
    if (loaded.entry < loaded.start || loaded.entry >= loaded.end)
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "kernel '%s': its entry lies outside what it loads", image->kernel.path);
    /* As boot loaders do: the file's name is the first word of the command line. */
    g_autofree char *cmdline =
        g_strconcat(image->kernel.path, image->cmdline ? " " : "", image->cmdline, NULL);
    uint8_t info[INFO_SIZE] = {0};
    if (!boot_load_initrd(image, LAYOUT_LOW_RAM_MAX, loaded.start, loaded.end, &initrd, err) ||
        !boot_load_cmdline(image, cmdline, BOOT_CMDLINE_MAX, err) ||
        !write_memory_map(image, info, err) || (initrd && !write_module(image, initrd, info, err)))
        return false;
    le32_put(info, INFO_MEMORY | INFO_CMDLINE | INFO_MODULES | INFO_MAP | INFO_LOADER_NAME);
    le32_put(info + 16, BOOT_CMDLINE);
    le32_put(info + 64, LOADER_NAME);
    if (!boot_write(image, LOADER_NAME, "lodge", 6, err) ||
        !boot_write(image, BOOT_PARAMS, info, sizeof(info), err))
        return false;
    boot_state_flat32(bsp, loaded.entry);
    bsp->gpr[GPR_RAX] = LOADER_MAGIC;
    bsp->gpr[GPR_RBX] = BOOT_PARAMS;
    return boot_bios_state(image, bsp, err);
}

const BootProtocol boot_protocol_multiboot = {
    .name = "multiboot",
    .probe = multiboot_probe,
    .load = multiboot_load,
};
