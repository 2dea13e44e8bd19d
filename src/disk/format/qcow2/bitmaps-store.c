/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Writing persistent bitmaps. All goes into clusters of its own: data, tables, directory; then the
 * header is switched to the new directory. Until then the old one says "in use".
 */
#include "base/bytes.h"
#include "base/error.h"
#include "disk/format/qcow2/bitmaps.h"

#include <errno.h>
#include <string.h>

/* The clusters that a stored bitmap has; @free: to be given back, else gone at once. */
static void release(Qcow2 *q, const Qcow2Bitmap *b, bool later)
{
    for (uint32_t i = 0; i < b->entries && b->table; i++) {
        uint64_t offset = b->table[i] & QCOW2_OFFSET_MASK;
        if (offset == 0)
            continue;
        if (later)
            qcow2_free_later(q, offset, q->cluster_size, true);
        else
            qcow2_refcount_add(q, offset, q->cluster_size, -1);
    }
    uint64_t length = align_up((uint64_t)b->entries * 8, q->cluster_size);
    if (!b->table_offset || !length)
        return;
    if (later)
        qcow2_free_later(q, b->table_offset, length, true);
    else
        qcow2_refcount_add(q, b->table_offset, length, -1);
}

/* Cluster @index of @live's data into the file, unless it is all zero. */
static int write_cluster(Qcow2 *q, const BlockBitmap *live, uint64_t index, uint8_t *buffer,
                         uint64_t *entry)
{
    uint64_t per = q->cluster_size / 8, first = index * per, words = live->n / 64 + 1, any = 0;
    memset(buffer, 0, q->cluster_size);
    for (uint64_t i = 0; i < per && first + i < words; i++) {
        any |= live->words[first + i];
        le64_put(buffer + i * 8, live->words[first + i]);
    }
    *entry = 0;
    return any ? qcow2_write_new(q, buffer, q->cluster_size, entry) : 0;
}

static int write_table(Qcow2 *q, Qcow2Bitmap *b)
{
    uint64_t length = align_up((uint64_t)b->entries * 8, q->cluster_size);
    g_autofree uint8_t *raw = g_try_malloc0(MAX(length, 8));
    if (!raw)
        return -ENOMEM;
    for (uint32_t i = 0; i < b->entries; i++)
        be64_put(raw + i * 8ull, b->table[i]);
    return length ? qcow2_write_new(q, raw, length, &b->table_offset) : 0;
}

/* A stored form of @live, in clusters nobody refers to yet; NULL with *result. */
static Qcow2Bitmap *store_one(Qcow2 *q, const BlockBitmap *live, int *result)
{
    Qcow2Bitmap *b = g_new0(Qcow2Bitmap, 1);
    b->name = g_strdup(live->name);
    b->granularity_bits = live->granularity_bits;
    b->flags = live->enabled ? QCOW2_BITMAP_AUTO : 0;
    uint64_t entries = qcow2_bitmap_entries(q, live->size, live->granularity_bits);
    g_autofree uint8_t *buffer = g_try_malloc(q->cluster_size);
    b->table = g_try_new0(uint64_t, entries + 1);
    *result = b->table && buffer ? 0 : -ENOMEM;
    b->entries = (uint32_t)entries;
    for (uint32_t i = 0; i < b->entries && *result == 0; i++)
        *result = write_cluster(q, live, i, buffer, &b->table[i]);
    if (*result == 0)
        *result = write_table(q, b);
    if (*result == 0)
        return b;
    release(q, b, false);
    qcow2_bitmap_free(b);
    return NULL;
}

/*
 * The header gets a directory of @list. Bitmaps of the old one that are not in @list are given
 * back. @list is taken over when that works.
 */
static int switch_directory(Qcow2 *q, GPtrArray *list)
{
    uint64_t bytes, offset = 0;
    g_autofree uint8_t *raw = qcow2_bitmaps_encode(list, q->cluster_size, &bytes);
    uint64_t length = align_up(bytes, q->cluster_size);
    Qcow2Header old = q->header;
    uint64_t old_offset = q->bitmaps_offset, old_bytes = q->bitmaps_bytes;
    uint32_t old_n = q->n_bitmaps;
    int result = raw ? 0 : -ENOMEM;
    if (result == 0 && bytes)
        result = qcow2_write_new(q, raw, length, &offset);
    if (result == 0)
        result = qcow2_commit(q); /* all of it is in the file */
    if (result < 0) {
        if (offset)
            qcow2_refcount_add(q, offset, length, -1);
        return result;
    }
    q->bitmaps_offset = offset;
    q->bitmaps_bytes = bytes;
    q->n_bitmaps = list->len;
    q->header.autoclear &= ~QCOW2_AUTOCLEAR_BITMAPS;
    if (list->len)
        q->header.autoclear |= QCOW2_AUTOCLEAR_BITMAPS;
    result = qcow2_header_rewrite(q);
    if (result < 0) {
        q->header = old;
        q->bitmaps_offset = old_offset;
        q->bitmaps_bytes = old_bytes;
        q->n_bitmaps = old_n;
        /* Which of them the file names is not known unless this works: nothing is freed then. */
        if (qcow2_header_rewrite(q) == 0 && offset)
            qcow2_refcount_add(q, offset, length, -1);
        return result;
    }
    for (guint i = 0; i < q->bitmaps->len; i++) {
        Qcow2Bitmap *b = g_ptr_array_index(q->bitmaps, i);
        if (!g_ptr_array_find(list, b, NULL)) {
            release(q, b, true);
            qcow2_bitmap_free(b);
        }
    }
    g_ptr_array_set_free_func(q->bitmaps, NULL);
    g_ptr_array_unref(q->bitmaps);
    q->bitmaps = list;
    g_ptr_array_set_free_func(list, qcow2_bitmap_free);
    if (old_bytes)
        qcow2_free_later(q, old_offset, old_bytes, true);
    g_mutex_lock(&q->lock);
    qcow2_fixed_build(q);
    g_mutex_unlock(&q->lock);
    return 0;
}

static BlockBitmap *find_live(const BlockNode *node, const char *name)
{
    for (guint i = 0; node->bitmaps && i < node->bitmaps->len; i++) {
        BlockBitmap *b = g_ptr_array_index(node->bitmaps, i);
        if (!strcmp(b->name, name))
            return b;
    }
    return NULL;
}

static bool to_store(const BlockBitmap *b)
{
    return b && b->persistent && !b->inconsistent;
}

/* What is stored anew goes to @fresh, too; what stays as it is (inconsistent ones) does not. */
static int collect(Qcow2 *q, GPtrArray *list, GPtrArray *fresh)
{
    const BlockNode *node = q->node;
    int result = 0;
    for (guint i = 0; i < q->bitmaps->len && result == 0; i++) {
        Qcow2Bitmap *old = g_ptr_array_index(q->bitmaps, i), *b = old;
        const BlockBitmap *live = find_live(node, old->name);
        if (to_store(live)) {
            b = store_one(q, live, &result);
            if (b)
                g_ptr_array_add(fresh, b);
        }
        if (b)
            g_ptr_array_add(list, b);
    }
    for (guint i = 0; node->bitmaps && i < node->bitmaps->len && result == 0; i++) {
        BlockBitmap *live = g_ptr_array_index(node->bitmaps, i);
        if (!to_store(live) || live->stored)
            continue;
        Qcow2Bitmap *b = store_one(q, live, &result);
        if (b) {
            g_ptr_array_add(list, b);
            g_ptr_array_add(fresh, b);
        }
    }
    return result;
}

int qcow2_bitmaps_store(Qcow2 *q)
{
    bool any = false;
    for (guint i = 0; q->node->bitmaps && i < q->node->bitmaps->len; i++)
        any |= to_store(g_ptr_array_index(q->node->bitmaps, i));
    if (!any)
        return 0;
    GPtrArray *list = g_ptr_array_new();
    g_autoptr(GPtrArray) fresh = g_ptr_array_new();
    int result = collect(q, list, fresh);
    if (result == 0)
        result = switch_directory(q, list);
    if (result == 0)
        return 0;
    for (guint i = 0; i < fresh->len; i++) {
        release(q, g_ptr_array_index(fresh, i), false);
        qcow2_bitmap_free(g_ptr_array_index(fresh, i));
    }
    g_ptr_array_unref(list);
    return result;
}

bool qcow2_bitmap_can_store(BlockNode *node, const char *name, unsigned granularity_bits,
                            GError **err)
{
    const Qcow2 *q = node->state;
    if (q->header.version < 3)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "Cannot store dirty bitmaps in qcow2 v2 files");
    uint64_t count = 1, bytes = 32 + strlen(name);
    for (guint i = 0; node->bitmaps && i < node->bitmaps->len; i++) {
        const BlockBitmap *b = g_ptr_array_index(node->bitmaps, i);
        count += b->persistent;
        bytes += 32 + strlen(b->name);
    }
    if (count > QCOW2_BITMAPS_MAX)
        return lodge_fail(err, LODGE_ERROR_LIMIT,
                          "Maximum number of persistent bitmaps is already reached");
    if (bytes > QCOW2_BITMAP_DIRECTORY_MAX)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "Not enough space in the bitmap directory");
    if (qcow2_bitmap_entries(q, node->size, granularity_bits) * q->cluster_size >
        BLOCK_BITMAP_BYTES_MAX)
        return lodge_fail(err, LODGE_ERROR_LIMIT,
                          "Too much space will be occupied by the bitmap. Use larger granularity");
    return true;
}

bool qcow2_bitmap_remove(BlockNode *node, const char *name, GError **err)
{
    Qcow2 *q = node->state;
    GPtrArray *list = g_ptr_array_new();
    g_mutex_lock(&q->meta);
    for (guint i = 0; i < q->bitmaps->len; i++) {
        Qcow2Bitmap *b = g_ptr_array_index(q->bitmaps, i);
        if (strcmp(b->name, name))
            g_ptr_array_add(list, b);
    }
    int result = qcow2_commit(q);
    if (result == 0)
        result = switch_directory(q, list);
    if (result < 0)
        g_ptr_array_unref(list);
    if (result == 0)
        result = qcow2_commit(q);
    g_mutex_unlock(&q->meta);
    return result == 0 || lodge_fail_errno(err, -result, "Failed to remove persistent bitmap '%s'",
                                           name);
}
