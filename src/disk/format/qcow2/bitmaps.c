/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Persistent dirty bitmaps (specification: "Bitmaps"): read when the image is opened, and marked
 * "in use" in the file before the first write, so that after a crash nobody trusts them.
 */
#include "disk/format/qcow2/bitmaps.h"

#include "base/bytes.h"
#include "base/error.h"

#include <errno.h>
#include <string.h>

#define RECORD_FIXED     24u
#define TYPE_TRACKING    1u
#define RESERVED_FLAGS   0xfffffffcu
#define TABLE_RESERVED   0xff000000000001feull
#define TABLE_ONES       (1ull << 0)
#define MEMORY_MAX       (1ull << 30) /* of all bitmaps of one image */

void qcow2_bitmap_free(gpointer item)
{
    Qcow2Bitmap *b = item;
    g_free(b->name);
    g_free(b->table);
    g_free(b);
}

uint64_t qcow2_bitmap_entries(const Qcow2 *q, uint64_t size, unsigned granularity_bits)
{
    uint64_t bits = size ? ((size - 1) >> granularity_bits) + 1 : 0;
    return (bits + q->cluster_size * 8 - 1) / (q->cluster_size * 8);
}

static bool broken(const Qcow2 *q, GError **err)
{
    return lodge_fail(err, LODGE_ERROR_CORRUPT, "%s: Broken bitmap directory", q->node->path);
}

/* One record of the directory; *at is moved past it. */
static bool decode_record(const Qcow2 *q, const uint8_t *raw, uint64_t length, uint64_t *at,
                          uint64_t file_size, Qcow2Bitmap *b, GError **err)
{
    if (length - *at < RECORD_FIXED)
        return broken(q, err);
    raw += *at;
    b->table_offset = be64_get(raw);
    b->entries = be32_get(raw + 8);
    b->flags = be32_get(raw + 12);
    b->granularity_bits = raw[17];
    uint16_t name = be16_get(raw + 18);
    uint32_t extra = be32_get(raw + 20);
    uint64_t whole = align_up(RECORD_FIXED + (uint64_t)extra + name, 8);
    if (whole > length - *at)
        return broken(q, err);
    if (extra)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "%s: Bitmap extra data is not supported",
                          q->node->path);
    b->name = g_strndup((const char *)raw + RECORD_FIXED, name);
    bool fits = (b->flags & QCOW2_BITMAP_IN_USE) ||
                b->entries == qcow2_bitmap_entries(q, q->header.size, b->granularity_bits);
    if (raw[16] != TYPE_TRACKING || (b->flags & RESERVED_FLAGS) || name == 0 ||
        name > BLOCK_BITMAP_NAME_MAX || strlen(b->name) != name || b->granularity_bits < 9 ||
        b->granularity_bits > 31 || !fits || b->table_offset % q->cluster_size ||
        !range_within(b->table_offset, (uint64_t)b->entries * 8, file_size))
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "%s: Bitmap '%s' doesn't satisfy the constraints", q->node->path,
                          b->name);
    *at += whole;
    return true;
}

static bool load_table(Qcow2 *q, Qcow2Bitmap *b, uint64_t file_size, GError **err)
{
    b->table = g_try_new0(uint64_t, (gsize)b->entries + 1);
    int result = b->table ? 0 : -ENOMEM;
    if (result == 0 && b->entries)
        result = block_file_read(q->file, b->table_offset, b->table, (size_t)b->entries * 8);
    if (result < 0)
        return lodge_fail_errno(err, -result, "%s: Could not read bitmap_table table of bitmap '%s'",
                                q->node->path, b->name);
    for (uint32_t i = 0; i < b->entries; i++) {
        b->table[i] = be64_get(&b->table[i]);
        uint64_t offset = b->table[i] & QCOW2_OFFSET_MASK;
        if ((b->table[i] & TABLE_RESERVED) || offset % q->cluster_size || offset > file_size ||
            (offset && (b->table[i] & TABLE_ONES)))
            return lodge_fail(err, LODGE_ERROR_CORRUPT,
                              "%s: entry %u of the table of bitmap '%s' is invalid", q->node->path, i,
                              b->name);
    }
    return true;
}

/* Ones of cluster @index of the bitmap's data into @live. */
static int load_cluster(Qcow2 *q, uint64_t entry, uint64_t index, uint8_t *buffer,
                        BlockBitmap *live)
{
    uint64_t offset = entry & QCOW2_OFFSET_MASK, per = q->cluster_size / 8;
    uint64_t first = index * per, words = live->n / 64 + 1;
    if (entry == 0)
        return 0;
    memset(buffer, 0xff, q->cluster_size);
    int result = offset ? block_file_read(q->file, offset, buffer, q->cluster_size) : 0;
    for (uint64_t i = 0; i < per && first + i < words && result == 0; i++)
        live->words[first + i] = le64_get(buffer + i * 8);
    return result;
}

static bool load_data(Qcow2 *q, const Qcow2Bitmap *b, GError **err)
{
    BlockNode *node = q->node;
    bool in_use = b->flags & QCOW2_BITMAP_IN_USE;
    BlockBitmap *live = block_bitmap_new(b->name, in_use ? 0 : node->size, b->granularity_bits, err);
    g_autofree uint8_t *buffer = g_try_malloc(q->cluster_size);
    int result = buffer ? 0 : -ENOMEM;
    if (!live)
        return false;
    for (uint32_t i = 0; i < b->entries && result == 0 && !in_use; i++)
        result = load_cluster(q, b->table[i], i, buffer, live);
    if (result < 0) {
        block_bitmap_free(live);
        return lodge_fail_errno(err, -result, "%s: Could not read bitmap '%s' from image",
                                node->path, b->name);
    }
    /* Bits past the disk's end mean nothing. */
    live->words[live->n / 64] &= (1ull << (live->n % 64)) - 1;
    live->enabled = b->flags & QCOW2_BITMAP_AUTO;
    live->persistent = live->stored = true;
    live->inconsistent = in_use;
    block_bitmap_attach(node, live);
    return true;
}

static bool load_directory(Qcow2 *q, const uint8_t *raw, uint64_t file_size, GError **err)
{
    uint64_t at = 0, memory = 0;
    g_autoptr(GHashTable) names = g_hash_table_new(g_str_hash, g_str_equal);
    while (at < q->bitmaps_bytes) {
        Qcow2Bitmap *b = g_new0(Qcow2Bitmap, 1);
        g_ptr_array_add(q->bitmaps, b);
        if (q->bitmaps->len > q->n_bitmaps)
            return lodge_fail(err, LODGE_ERROR_CORRUPT,
                              "%s: More bitmaps found than specified in header extension",
                              q->node->path);
        if (!decode_record(q, raw, q->bitmaps_bytes, &at, file_size, b, err) ||
            !load_table(q, b, file_size, err))
            return false;
        if (!g_hash_table_add(names, b->name))
            return lodge_fail(err, LODGE_ERROR_CORRUPT, "%s: two bitmaps are named '%s'",
                              q->node->path, b->name);
        memory += (uint64_t)b->entries * (q->cluster_size + 8);
        if (memory > MEMORY_MAX)
            return lodge_fail(err, LODGE_ERROR_LIMIT,
                              "%s: its bitmaps would take more than 1 GiB of memory",
                              q->node->path);
    }
    return q->bitmaps->len == q->n_bitmaps ||
           lodge_fail(err, LODGE_ERROR_CORRUPT,
                      "%s: Less bitmaps found than specified in header extension", q->node->path);
}

static bool load(Qcow2 *q, GError **err)
{
    uint64_t file_size;
    int result = q->file->ops->size(q->file, &file_size);
    if (result < 0)
        return lodge_fail_errno(err, -result, "%s: cannot find its size", q->node->path);
    g_autofree uint8_t *raw = g_try_malloc(q->bitmaps_bytes);
    if (!raw || !range_within(q->bitmaps_offset, q->bitmaps_bytes, file_size))
        return broken(q, err);
    result = block_file_read(q->file, q->bitmaps_offset, raw, q->bitmaps_bytes);
    if (result < 0)
        return lodge_fail_errno(err, -result, "%s: Failed to read bitmap directory",
                                q->node->path);
    if (!load_directory(q, raw, file_size, err))
        return false;
    for (guint i = 0; i < q->bitmaps->len; i++) {
        if (!load_data(q, g_ptr_array_index(q->bitmaps, i), err))
            return false;
    }
    return true;
}

bool qcow2_bitmaps_load(Qcow2 *q, GError **err)
{
    uint8_t raw[24];
    const char *path = q->node->path;
    q->bitmaps = g_ptr_array_new_with_free_func(qcow2_bitmap_free);
    /* Without the bit, somebody who does not know of bitmaps has written since. */
    if (!(q->header.autoclear & QCOW2_AUTOCLEAR_BITMAPS))
        return true;
    int length = qcow2_extension_read(q, QCOW2_EXT_BITMAPS, raw, sizeof(raw));
    if (length == -ENOENT)
        return true;
    if (length < 0)
        return lodge_fail_errno(err, -length, "%s: cannot read the header", path);
    if (length != sizeof(raw))
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "%s: bitmaps_ext: Invalid extension length",
                          path);
    if (be32_get(raw + 4))
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "%s: bitmaps_ext: Reserved field is not zero",
                          path);
    q->n_bitmaps = be32_get(raw);
    q->bitmaps_bytes = be64_get(raw + 8);
    q->bitmaps_offset = be64_get(raw + 16);
    if (q->n_bitmaps == 0 || q->n_bitmaps > QCOW2_BITMAPS_MAX)
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "%s: bitmaps_ext: image has %u bitmaps; it must be 1 to %u", path,
                          q->n_bitmaps, QCOW2_BITMAPS_MAX);
    if (q->bitmaps_offset % q->cluster_size || q->bitmaps_offset == 0)
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "%s: bitmaps_ext: invalid bitmap directory offset", path);
    if (q->bitmaps_bytes == 0 || q->bitmaps_bytes > QCOW2_BITMAP_DIRECTORY_MAX)
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "%s: bitmaps_ext: bitmap directory size (%" G_GUINT64_FORMAT
                          ") exceeds the maximum supported size (%u)",
                          path, q->bitmaps_bytes, QCOW2_BITMAP_DIRECTORY_MAX);
    if (!load(q, err))
        return false;
    qcow2_fixed_build(q);
    return true;
}

size_t qcow2_bitmap_record_bytes(const Qcow2Bitmap *b)
{
    return align_up(RECORD_FIXED + strlen(b->name), 8);
}

uint8_t *qcow2_bitmaps_encode(const GPtrArray *list, uint64_t room, uint64_t *bytes)
{
    *bytes = 0;
    for (guint i = 0; i < list->len; i++)
        *bytes += qcow2_bitmap_record_bytes(g_ptr_array_index(list, i));
    uint8_t *raw = g_try_malloc0(MAX(align_up(*bytes, room), room)), *at = raw;
    for (guint i = 0; i < list->len && raw; i++) {
        const Qcow2Bitmap *b = g_ptr_array_index(list, i);
        size_t name = strlen(b->name);
        be64_put(at, b->table_offset);
        be32_put(at + 8, b->entries);
        be32_put(at + 12, b->flags);
        at[16] = TYPE_TRACKING;
        at[17] = (uint8_t)b->granularity_bits;
        be16_put(at + 18, (uint16_t)name);
        memcpy(at + RECORD_FIXED, b->name, name);
        at += qcow2_bitmap_record_bytes(b);
    }
    return raw;
}

int qcow2_bitmaps_mark(Qcow2 *q)
{
    bool all = true;
    for (guint i = 0; i < q->bitmaps->len; i++) {
        Qcow2Bitmap *b = g_ptr_array_index(q->bitmaps, i);
        all &= (b->flags & QCOW2_BITMAP_IN_USE) != 0;
        b->flags |= QCOW2_BITMAP_IN_USE;
    }
    if (all)
        return 0;
    /* In place: only flags differ, each of them in one sector. */
    uint64_t bytes;
    g_autofree uint8_t *raw = qcow2_bitmaps_encode(q->bitmaps, 8, &bytes);
    if (!raw)
        return -ENOMEM;
    int result = block_file_write(q->file, q->bitmaps_offset, raw, bytes);
    return result < 0 ? result : block_node_sync(q->node);
}

json_t *qcow2_bitmaps_info(const Qcow2 *q)
{
    json_t *list = json_array();
    for (guint i = 0; i < q->bitmaps->len; i++) {
        const Qcow2Bitmap *b = g_ptr_array_index(q->bitmaps, i);
        json_t *flags = json_array();
        if (b->flags & QCOW2_BITMAP_IN_USE)
            json_array_append_new(flags, json_string("in-use"));
        if (b->flags & QCOW2_BITMAP_AUTO)
            json_array_append_new(flags, json_string("auto"));
        json_array_append_new(
            list, json_pack("{s:o, s:s, s:I}", "flags", flags, "name", b->name, "granularity",
                            (json_int_t)(1ull << b->granularity_bits)));
    }
    return list;
}
