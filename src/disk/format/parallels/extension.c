/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The format extension, a cluster with features, of which dirty bitmaps are known. Read only. */
#include "base/bytes.h"
#include "base/error.h"
#include "disk/bitmap-internal.h"
#include "disk/format/parallels/parallels.h"

#include <errno.h>

#define EXTENSION_MAGIC 0xab234cef23dcea87ull
#define BITMAP_MAGIC    0x20385fae252cb34aull
#define HEAD_BYTES      24u /* magic and checksum */
#define FEATURE_BYTES   24u
#define BITMAP_BYTES    32u /* the table of clusters follows */
#define BITMAPS_MAX     65535u

typedef struct Extension {
    BlockNode *node;
    const uint8_t *bytes;
    uint64_t length;
    uint8_t *cluster; /* of a bitmap */
} Extension;

static void mark_bits(BlockBitmap *bitmap, const uint8_t *bits, uint64_t first, uint64_t bytes)
{
    uint64_t granule = 1ull << bitmap->granularity_bits;
    for (uint64_t i = 0; i < bytes * 8 && first + i < bitmap->n; i++) {
        uint64_t at = (first + i) * granule;
        if (bits[i / 8] & (1u << (i % 8)))
            block_bitmap_set(bitmap, at, MIN(granule, bitmap->size - at));
    }
}

static bool load_bits(Extension *e, BlockBitmap *bitmap, const uint8_t *table, uint32_t entries,
                      GError **err)
{
    Parallels *p = parallels_of(e->node);
    uint64_t cluster = p->map.block, covers = cluster * 8;
    uint64_t bytes = align_up((bitmap->n + 7) / 8, 8); /* in words of 64 bits, as QEMU counts */
    uint64_t expected = (bytes + cluster - 1) / cluster;
    if (expected != entries)
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "Bitmap table size %u does not correspond to bitmap size and cluster "
                          "size. Expected %" G_GUINT64_FORMAT,
                          entries, expected);
    for (uint32_t i = 0; i < entries; i++) {
        uint64_t entry = le64_get(table + (size_t)i * 8), first = i * covers;
        uint64_t from = first << bitmap->granularity_bits;
        if (entry == 0 || first >= bitmap->n)
            continue;
        if (entry == 1) {
            block_bitmap_set(bitmap, from,
                             MIN(covers << bitmap->granularity_bits, bitmap->size - from));
            continue;
        }
        if (entry > INT64_MAX / PARALLELS_SECTOR - cluster)
            return lodge_fail(err, LODGE_ERROR_CORRUPT, "Failed to read bitmap data cluster");
        int result = block_file_read(e->node->file, entry * PARALLELS_SECTOR, e->cluster, cluster);
        if (result < 0)
            return lodge_fail_errno(err, -result, "Failed to read bitmap data cluster");
        p->extension_end = MAX(p->extension_end, entry * PARALLELS_SECTOR + cluster);
        mark_bits(bitmap, e->cluster, first, cluster);
    }
    return true;
}

static char *uuid_text(const uint8_t *u)
{
    return g_strdup_printf("%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x",
                           u[0], u[1], u[2], u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11],
                           u[12], u[13], u[14], u[15]);
}

static bool load_bitmap(Extension *e, const uint8_t *data, uint64_t size, GError **err)
{
    if (size < BITMAP_BYTES)
        return lodge_fail(
            err, LODGE_ERROR_CORRUPT,
            "Too small Bitmap Feature area in Parallels Format Extension: %" G_GUINT64_FORMAT
            " bytes, expected at least %u bytes",
            size, BITMAP_BYTES);
    uint64_t sectors = le64_get(data), disk = e->node->size / PARALLELS_SECTOR;
    uint32_t granularity = le32_get(data + 24), entries = le32_get(data + 28);
    if (sectors != disk)
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "Bitmap size (in sectors) %" G_GUINT64_FORMAT
                          " differs from disk size in "
                          "sectors %" G_GUINT64_FORMAT,
                          sectors, disk);
    if (entries > (size - BITMAP_BYTES) / 8)
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "Bitmaps feature corrupted: l1 table exceeds extension data_size");
    if (granularity == 0 || granularity > BLOCK_BITMAP_GRANULARITY_MAX / PARALLELS_SECTOR ||
        (granularity & (granularity - 1)))
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "%s: a bitmap granularity of %u sectors",
                          e->node->path, granularity);
    g_autofree char *name = uuid_text(data + 8);
    unsigned bits = (unsigned)__builtin_ctzll((uint64_t)granularity * PARALLELS_SECTOR);
    if (block_bitmap_check(e->node, name, NULL))
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "Bitmap already exists: %s", name);
    BlockBitmap *bitmap = block_bitmap_new(name, e->node->size, bits, err);
    if (!bitmap)
        return false;
    if (!load_bits(e, bitmap, data + BITMAP_BYTES, entries, err)) {
        block_bitmap_free(bitmap);
        return false;
    }
    bitmap->enabled = true;
    block_bitmap_attach(e->node, bitmap);
    return true;
}

static bool check_head(const Extension *e, GError **err)
{
    uint8_t sum[16];
    gsize length = sizeof(sum);
    if (le64_get(e->bytes) != EXTENSION_MAGIC)
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "Wrong parallels Format Extension magic: 0x%" G_GINT64_MODIFIER
                          "x, expected: 0x%llx",
                          le64_get(e->bytes), EXTENSION_MAGIC);
    g_autoptr(GChecksum) md5 = g_checksum_new(G_CHECKSUM_MD5);
    g_checksum_update(md5, e->bytes + HEAD_BYTES, (gssize)(e->length - HEAD_BYTES));
    g_checksum_get_digest(md5, sum, &length);
    if (memcmp(sum, e->bytes + 8, sizeof(sum)))
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "Wrong checksum in Format Extension header. Format extension is "
                          "corrupted.");
    return true;
}

static bool walk_features(Extension *e, GError **err)
{
    uint64_t at = HEAD_BYTES;
    for (unsigned n = 0;; n++) {
        if (e->length < FEATURE_BYTES || at > e->length - FEATURE_BYTES || n > BITMAPS_MAX)
            return lodge_fail(err, LODGE_ERROR_CORRUPT,
                              "Can not read feature header, as remaining bytes (%" G_GUINT64_FORMAT
                              ") in Format Extension is less than Feature header size (%u)",
                              at > e->length ? 0 : e->length - at, FEATURE_BYTES);
        const uint8_t *f = e->bytes + at;
        uint64_t magic = le64_get(f), size = le32_get(f + 16);
        at += FEATURE_BYTES;
        if (le64_get(f + 8))
            return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                              "Flags for extension feature are unsupported");
        if (size > e->length - at)
            return lodge_fail(err, LODGE_ERROR_CORRUPT,
                              "Feature data_size exceedes Format Extension cluster");
        if (magic == 0)
            return true;
        if (magic != BITMAP_MAGIC)
            return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                              "Unknown feature: 0x%" G_GINT64_MODIFIER "x", magic);
        if (!load_bitmap(e, e->bytes + at, size, err))
            return false;
        at = align_up(at + size, 8);
    }
}

bool parallels_read_extension(BlockNode *node, GError **err)
{
    const Parallels *p = parallels_of(node);
    uint64_t length = p->map.block;
    if (length > PARALLELS_EXTENSION_MAX)
        return lodge_fail(err, LODGE_ERROR_LIMIT,
                          "%s: a format extension in a cluster of more than 64 MiB", node->path);
    g_autofree uint8_t *bytes = g_try_malloc(length), *cluster = g_try_malloc(length);
    if (!bytes || !cluster)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "%s: no memory for its format extension",
                          node->path);
    int result = block_file_read(node->file, p->extension, bytes, length);
    if (result < 0)
        return lodge_fail_errno(err, -result, "Failed to read Format Extension cluster");
    Extension e = {.node = node, .bytes = bytes, .length = length, .cluster = cluster};
    return check_head(&e, err) && walk_features(&e, err);
}
