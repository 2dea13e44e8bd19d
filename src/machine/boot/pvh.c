/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * PVH: an ELF file whose Xen note names a 32-bit entry. Xen documentation misc/pvh and
 * public/arch-x86/hvm/start_info.h (layout of the structures).
 */
#include <elf.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "machine/board/layout.h"
#include "machine/board/memory-map.h"
#include "machine/boot/boot.h"

#define START_INFO_MAGIC  0x336ec578u
#define START_INFO_SIZE   56
#define MODULE_SIZE       32
#define MEMMAP_ENTRY_SIZE 24
#define MODULE_LIST       BOOT_LISTS
#define MEMMAP            (BOOT_LISTS + 0x100)

static bool pvh_probe(const BootImage *image, const uint8_t *head, size_t size)
{
    BootElf elf;
    return size >= sizeof(Elf64_Ehdr) && memcmp(head, ELFMAG, SELFMAG) == 0 &&
           boot_elf_read(image, false, &elf, NULL) && elf.has_pvh;
}

static bool write_memory_map(const BootImage *image, unsigned *count, GError **err)
{
    MemoryMapEntry map[MEMORY_MAP_ENTRIES_MAX];
    uint8_t bytes[MEMORY_MAP_ENTRIES_MAX * MEMMAP_ENTRY_SIZE] = {0};
    unsigned n = memory_map_fill(map, image->memory.memory_size, image->memory.low_ram);
    for (unsigned i = 0; i < n; i++) {
        uint8_t *e = bytes + i * MEMMAP_ENTRY_SIZE;
        le64_put(e, map[i].base);
        le64_put(e + 8, map[i].size);
        le32_put(e + 16, map[i].type);
    }
    *count = n;
    return boot_write(image, MEMMAP, bytes, n * MEMMAP_ENTRY_SIZE, err);
}

static bool pvh_load(const BootImage *image, VcpuState *bsp, GError **err)
{
    BootElf elf;
    uint64_t initrd;
    unsigned n_map;
    if (!boot_elf_read(image, true, &elf, err))
        return false;
    if (!elf.has_pvh || elf.pvh_entry < elf.start || elf.pvh_entry >= elf.end)
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "kernel '%s': its PVH entry lies outside what it loads",
                          image->kernel.path);
    if (!boot_load_initrd(image, LAYOUT_LOW_RAM_MAX, elf.start, elf.end, &initrd, err) ||
        !boot_load_cmdline(image, image->cmdline ? image->cmdline : "", BOOT_CMDLINE_MAX, err) ||
        !write_memory_map(image, &n_map, err))
        return false;
    uint8_t info[START_INFO_SIZE] = {0}, module[MODULE_SIZE] = {0};
    le32_put(info, START_INFO_MAGIC);
    le32_put(info + 4, 1); /* version */
    if (initrd) {
        le64_put(module, initrd);
        le64_put(module + 8, image->initrd.size);
        le32_put(info + 12, 1);
        le64_put(info + 16, MODULE_LIST);
    }
    le64_put(info + 24, BOOT_CMDLINE);
    le64_put(info + 32, LAYOUT_RSDP_BASE);
    le64_put(info + 40, MEMMAP);
    le32_put(info + 48, n_map);
    if (!boot_write(image, MODULE_LIST, module, sizeof(module), err) ||
        !boot_write(image, BOOT_PARAMS, info, sizeof(info), err))
        return false;
    boot_state_flat32(bsp, elf.pvh_entry);
    bsp->gpr[GPR_RBX] = BOOT_PARAMS;
    return true;
}

const BootProtocol boot_protocol_pvh = {
    .name = "PVH",
    .probe = pvh_probe,
    .load = pvh_load,
};
