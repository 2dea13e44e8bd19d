/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Linux bzImage. The Linux/x86 Boot Protocol (Documentation/arch/x86/boot.rst) and "zero page"
 * (zero-page.rst). A kernel with a 64-bit entry is entered there; others by the 32-bit protocol.
 */
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "machine/board/layout.h"
#include "machine/board/memory-map.h"
#include "machine/boot/boot.h"

/* Offsets in the first sectors of the file, and alike in the zero page. */
#define HEADER_START     0x1f1
#define SETUP_SECTS      0x1f1
#define SYSSIZE 0x1f4 /* 32-bit code and data in paragraphs, rounded up */
#define BOOT_FLAG        0x1fe
#define HEADER_JUMP      0x201 /* the header ends this many bytes after 0x202 */
#define MAGIC            0x202
#define VERSION          0x206
#define TYPE_OF_LOADER   0x210
#define LOADFLAGS        0x211
#define CODE32_START     0x214
#define RAMDISK_IMAGE    0x218
#define RAMDISK_SIZE     0x21c
#define CMD_LINE_PTR     0x228
#define INITRD_ADDR_MAX  0x22c
#define KERNEL_ALIGNMENT 0x230
#define RELOCATABLE      0x234
#define XLOADFLAGS       0x236
#define CMDLINE_SIZE     0x238
#define PREF_ADDRESS     0x258
#define INIT_SIZE        0x260
#define HEADER_END_MAX   0x290
#define HEAD_SIZE        0x400

/* Only in the zero page. */
#define ZERO_RSDP       0x070
#define ZERO_E820_COUNT 0x1e8
#define ZERO_E820       0x2d0
#define E820_ENTRY_SIZE 20

#define SECTOR              512u
#define PARAGRAPH 16u
#define MAGIC_HDRS          0x53726448u
#define LOADED_HIGH         0x01u
#define XLF_KERNEL_64       0x01u
#define LOADER_UNDEFINED    0xff
#define ENTRY_64_OFFSET     0x200u
#define LEGACY_LOAD_ADDRESS 0x100000u
#define LEGACY_INITRD_MAX   0x37ffffffu
#define LEGACY_CMDLINE_MAX  255u
#define DEFAULT_ALIGNMENT   0x200000u

typedef struct BzImage {
    uint8_t head[HEAD_SIZE];
    unsigned version;
    uint64_t setup_size; /* bytes before the protected-mode kernel */
    uint64_t payload_size;
    uint64_t load_address, init_size;
    bool entry64;
} BzImage;

static bool bzimage_probe(const BootImage *image, const uint8_t *head, size_t size)
{
    return size >= HEAD_SIZE && le32_get(head + MAGIC) == MAGIC_HDRS &&
           le16_get(head + BOOT_FLAG) == 0xaa55 && le16_get(head + VERSION) >= 0x206 &&
           (head[LOADFLAGS] & LOADED_HIGH);
}

/* The preferred place if the machine has it, else, for a relocatable kernel, the lowest. */
static bool choose_address(const BootImage *image, BzImage *bz, GError **err)
{
    bool v210 = bz->version >= 0x20a;
    uint64_t alignment = le32_get(bz->head + KERNEL_ALIGNMENT);
    uint64_t preferred = v210 ? le64_get(bz->head + PREF_ADDRESS) : LEGACY_LOAD_ADDRESS;
    uint64_t init_size = v210 ? le32_get(bz->head + INIT_SIZE) : 0;
    bz->init_size = MAX(init_size, bz->payload_size);
    if (!v210 || alignment == 0 || (alignment & (alignment - 1)) || alignment > GIB(1))
        alignment = DEFAULT_ALIGNMENT;
    if (boot_is_usable(image, preferred, bz->init_size)) {
        bz->load_address = preferred;
        return true;
    }
    uint64_t lowest = align_up(BOOT_KERNEL_MIN, alignment);
    if (bz->version >= 0x205 && bz->head[RELOCATABLE] &&
        boot_is_usable(image, lowest, bz->init_size)) {
        bz->load_address = lowest;
        return true;
    }
    return lodge_fail(err, LODGE_ERROR_INVALID,
                      "kernel '%s' needs %" G_GUINT64_FORMAT
                      " MiB of memory at 0x%" G_GINT64_MODIFIER "x: give the machine more memory",
                      image->kernel.path, (bz->init_size >> 20) + 1, preferred);
}

static bool bzimage_parse(const BootImage *image, BzImage *bz, GError **err)
{
    if (!boot_file_read(&image->kernel, 0, bz->head, HEAD_SIZE, err))
        return false;
    if (!bzimage_probe(image, bz->head, HEAD_SIZE))
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "kernel '%s' is no bzImage any more",
                          image->kernel.path);
    bz->version = le16_get(bz->head + VERSION);
    unsigned sectors = bz->head[SETUP_SECTS] ? bz->head[SETUP_SECTS] : 4;
    bz->setup_size = (sectors + 1) * SECTOR;
    if (bz->setup_size >= image->kernel.size)
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "kernel '%s' is cut short: its set-up part alone has %" G_GUINT64_FORMAT
                          " bytes",
                          image->kernel.path, bz->setup_size);
    bz->payload_size = image->kernel.size - bz->setup_size;
    uint64_t wanted = (uint64_t)le32_get(bz->head + SYSSIZE) * PARAGRAPH;
    if (bz->payload_size + PARAGRAPH - 1 < wanted)
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "kernel '%s' is cut short: it has %" G_GUINT64_FORMAT
                          " bytes and should have %" G_GUINT64_FORMAT,
                          image->kernel.path, image->kernel.size, bz->setup_size + wanted);
    bz->entry64 = bz->version >= 0x20c && (le16_get(bz->head + XLOADFLAGS) & XLF_KERNEL_64);
    if (bz->entry64 && bz->payload_size < ENTRY_64_OFFSET + 16)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "kernel '%s' is cut short at its 64-bit entry",
                          image->kernel.path);
    return choose_address(image, bz, err);
}

static void fill_e820(const BootImage *image, uint8_t *zero)
{
    MemoryMapEntry map[MEMORY_MAP_ENTRIES_MAX];
    unsigned n = memory_map_fill(map, image->memory.memory_size, image->memory.low_ram);
    zero[ZERO_E820_COUNT] = n;
    for (unsigned i = 0; i < n; i++) {
        uint8_t *e = zero + ZERO_E820 + i * E820_ENTRY_SIZE;
        le64_put(e, map[i].base);
        le64_put(e + 8, map[i].size);
        le32_put(e + 16, map[i].type);
    }
}

static void fill_zero_page(const BootImage *image, const BzImage *bz, uint64_t initrd,
                           uint8_t *zero)
{
    unsigned end = MIN(MAGIC + bz->head[HEADER_JUMP], HEADER_END_MAX);
    memcpy(zero + HEADER_START, bz->head + HEADER_START, end - HEADER_START);
    zero[TYPE_OF_LOADER] = LOADER_UNDEFINED;
    le32_put(zero + CODE32_START, bz->load_address);
    le32_put(zero + RAMDISK_IMAGE, initrd);
    le32_put(zero + RAMDISK_SIZE, initrd ? image->initrd.size : 0);
    le32_put(zero + CMD_LINE_PTR, BOOT_CMDLINE);
    le64_put(zero + ZERO_RSDP, LAYOUT_RSDP_BASE);
    fill_e820(image, zero);
}

static bool bzimage_load(const BootImage *image, VcpuState *bsp, GError **err)
{
    BzImage bz;
    if (!bzimage_parse(image, &bz, err))
        return false;
    uint64_t initrd;
    uint64_t initrd_max = le32_get(bz.head + INITRD_ADDR_MAX);
    uint64_t cmdline_max = le32_get(bz.head + CMDLINE_SIZE);
    if (!boot_load_initrd(image, (initrd_max ? initrd_max : LEGACY_INITRD_MAX) + 1, bz.load_address,
                          bz.load_address + bz.init_size, &initrd, err))
        return false;
    if (!boot_load_cmdline(image, image->cmdline ? image->cmdline : "",
                           cmdline_max ? cmdline_max : LEGACY_CMDLINE_MAX, err))
        return false;
    if (!boot_file_load(image, &image->kernel, bz.setup_size, bz.payload_size, bz.load_address,
                        bz.payload_size, err))
        return false;
    g_autofree uint8_t *zero = g_malloc0(BOOT_PARAMS_SIZE);
    fill_zero_page(image, &bz, initrd, zero);
    if (!boot_write(image, BOOT_PARAMS, zero, BOOT_PARAMS_SIZE, err))
        return false;
    if (!bz.entry64)
        boot_state_flat32(bsp, bz.load_address);
    else if (!boot_state_long(image, bsp, bz.load_address + ENTRY_64_OFFSET, err))
        return false;
    bsp->gpr[GPR_RSI] = BOOT_PARAMS;
    return true;
}

const BootProtocol boot_protocol_bzimage = {
    .name = "bzImage",
    .probe = bzimage_probe,
    .load = bzimage_load,
};
