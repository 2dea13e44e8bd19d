/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Bochs' growing disks: a catalogue of extents, each a bitmap of its sectors and the sectors.
 * Read only. Layout: Bochs' user manual, "Disk image modes".
 */
#include "base/bytes.h"
#include "base/error.h"
#include "disk/format/chunks.h"
#include "disk/format/formats.h"
#include "disk/iov.h"

#include <errno.h>

#define HEADER_BYTES  512u
#define SECTOR        512u
#define CATALOG_MAX   0x100000u /* entries; limits are QEMU's */
#define EXTENT_MAX    0x800000u /* bytes */
#define NO_EXTENT     0xffffffffu
#define EXTENT_BITMAP (EXTENT_MAX / SECTOR / 8)

/* Byte offsets in the header, little-endian. */
enum {
    AT_TYPE = 32,
    AT_SUBTYPE = 48,
    AT_VERSION = 64,
    AT_HEADER = 68,
    AT_CATALOG = 72, /* entries */
    AT_BITMAP = 76,
    AT_EXTENT = 80,
    AT_DISK_1 = 84, /* version 1 */
    AT_DISK_2 = 88,
};

typedef struct Bochs {
    uint32_t *catalog;
    uint64_t data, extent, bitmap_bytes; /* bitmap_bytes: in whole sectors */
} Bochs;

static bool bochs_probe(const uint8_t *head, size_t length)
{
    static const char magic[32] = "Bochs Virtual HD Image", type[16] = "Redolog";
    if (length < HEADER_BYTES)
        return false;
    uint32_t version = le32_get(head + AT_VERSION);
    return !memcmp(head, magic, strlen(magic) + 1) &&
           !memcmp(head + AT_TYPE, type, strlen(type) + 1) &&
           !memcmp(head + AT_SUBTYPE, "Growing", 8) && (version == 0x20000 || version == 0x10000);
}

/* In QEMU's words. */
static bool check_header(BlockNode *node, const uint8_t *h, GError **err)
{
    Bochs *b = node->state;
    uint32_t entries = le32_get(h + AT_CATALOG), extent = le32_get(h + AT_EXTENT);
    uint32_t bitmap = le32_get(h + AT_BITMAP);
    if (!bochs_probe(h, HEADER_BYTES))
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "Image not in Bochs format");
    uint64_t disk = le64_get(h + (le32_get(h + AT_VERSION) == 0x10000 ? AT_DISK_1 : AT_DISK_2));
    if (entries > CATALOG_MAX)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "Catalog size is too large");
    if (extent < SECTOR)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "Extent size must be at least 512");
    if (extent & (extent - 1))
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "Extent size %u is not a power of two", extent);
    if (extent > EXTENT_MAX)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "Extent size %u is too large", extent);
    if (disk / extent + (disk % extent >= SECTOR) > entries)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "Catalog size is too small for this disk size");
    if (bitmap == 0 || bitmap * 8ull < extent / SECTOR)
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "%s: a bitmap of %u bytes is too small for extents of %u", node->path,
                          bitmap, extent);
    node->size = align_down(disk, SECTOR);
    b->extent = extent;
    b->bitmap_bytes = align_up(bitmap, SECTOR);
    b->data = (uint64_t)le32_get(h + AT_HEADER) + (uint64_t)entries * 4;
    return true;
}

static bool bochs_open(BlockNode *node, const BlockOpen *options, GError **err)
{
    uint8_t h[HEADER_BYTES];
    uint64_t size;
    if (!chunks_read_only(node, err))
        return false;
    Bochs *b = g_new0(Bochs, 1);
    node->state = b;
    int result = node->file->ops->size(node->file, &size);
    if (result == 0)
        result = block_file_read(node->file, 0, h, sizeof(h));
    if (result < 0)
        return lodge_fail_errno(err, -result, "%s: cannot read its header", node->path);
    if (!check_header(node, h, err))
        return false;
    uint32_t entries = le32_get(h + AT_CATALOG);
    if (b->data > size)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "%s: its catalog is not within the file",
                          node->path);
    b->catalog = g_try_new(uint32_t, (size_t)entries + 1);
    if (!b->catalog)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "Could not allocate memory for catalog");
    result = block_file_read(node->file, b->data - entries * 4ull, b->catalog, entries * 4ull);
    for (uint32_t i = 0; i < entries; i++)
        b->catalog[i] = le32_get(&b->catalog[i]);
    return result == 0 || lodge_fail_errno(err, -result, "%s: cannot read its catalog", node->path);
}

static void bochs_close(BlockNode *node)
{
    Bochs *b = node->state;
    if (b)
        g_free(b->catalog);
    g_free(b);
    node->state = NULL;
}

static bool bit_at(const uint8_t *bits, uint64_t i)
{
    return bits[i / 8] & (1u << (i % 8));
}

/* Bytes from @offset on, within its extent, that are alike: stored at *host or (0) zero. */
static int find(BlockNode *node, uint64_t offset, uint64_t length, uint64_t *host, uint64_t *same)
{
    const Bochs *b = node->state;
    uint64_t within = offset % b->extent, index = offset / b->extent;
    uint8_t bits[EXTENT_BITMAP];
    *host = 0;
    *same = length = MIN(length, b->extent - within);
    if (b->catalog[index] == NO_EXTENT)
        return 0;
    uint64_t start = b->data + b->catalog[index] * (b->extent + b->bitmap_bytes);
    uint64_t first = within / SECTOR, last = (within + length - 1) / SECTOR, next = first + 1;
    int result = block_file_read(node->file, start + first / 8, bits, last / 8 - first / 8 + 1);
    if (result < 0)
        return result;
    uint64_t base = first / 8 * 8;
    bool there = bit_at(bits, first - base);
    while (next <= last && bit_at(bits, next - base) == there)
        next++;
    *same = MIN(length, next * SECTOR - within);
    if (there)
        *host = start + b->bitmap_bytes + within;
    return 0;
}

static int bochs_readv(BlockNode *node, uint64_t offset, const struct iovec *iov, int n)
{
    uint64_t total = block_iov_length(iov, n), same;
    for (uint64_t done = 0; done < total; done += same) {
        uint64_t host;
        int result = find(node, offset + done, total - done, &host, &same);
        if (result == 0 && host)
            result = block_file_readv(node->file, host, iov, n, done, same);
        else if (result == 0)
            block_iov_zero(iov, n, done, same);
        if (result < 0)
            return result;
    }
    return 0;
}

static int bochs_status(BlockNode *node, uint64_t offset, uint64_t length, BlockExtent *extent)
{
    uint64_t host, same;
    int result = find(node, offset, length, &host, &same);
    *extent = (BlockExtent){.length = same,
                            .present = true,
                            .data = host != 0,
                            .zero = host == 0,
                            .has_offset = host != 0,
                            .file_offset = host};
    return result;
}

static void bochs_info(BlockNode *node, BlockInfo *info)
{
    info->no_dirty_flag = true;
}

const BlockFormat block_format_bochs = {
    .name = "bochs",
    .probe = bochs_probe,
    .open = bochs_open,
    .close = bochs_close,
    .readv = bochs_readv,
    .status = bochs_status,
    .info = bochs_info,
};
