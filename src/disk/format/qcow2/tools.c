/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What tools ask of a qcow2 image as a whole: another backing file, nothing in it, how large. */
#include "base/bytes.h"
#include "base/error.h"
#include "disk/format/qcow2/bitmaps.h"

#include <errno.h>
#include <string.h>

bool qcow2_set_backing(BlockNode *node, const char *path, const char *format, GError **err)
{
    Qcow2 *q = node->state;
    if (path && (q->header.autoclear & QCOW2_AUTOCLEAR_RAW))
        return lodge_fail(err, LODGE_ERROR_INVALID, "%s", g_strerror(EINVAL));
    g_autofree char *old_path = node->backing_path, *old_format = node->backing_format;
    node->backing_path = path && *path ? g_strdup(path) : NULL;
    node->backing_format = format && *format ? g_strdup(format) : NULL;
    g_mutex_lock(&q->meta);
    int result = qcow2_commit(q);
    if (result == 0)
        result = qcow2_header_rewrite(q);
    if (result < 0) {
        char *path_now = node->backing_path, *format_now = node->backing_format;
        node->backing_path = g_steal_pointer(&old_path);
        node->backing_format = g_steal_pointer(&old_format);
        g_free(path_now);
        g_free(format_now);
    }
    g_mutex_unlock(&q->meta);
    return result == 0 || lodge_fail(err, LODGE_ERROR_IO, "%s",
                                     result == -ENOSPC ? "No space left in the file header"
                                                       : g_strerror(-result));
}

/* Free clusters at the end of the file go. */
static int shorten(Qcow2 *q)
{
    uint64_t size, refcount = 0;
    int result = q->file->ops->size(q->file, &size);
    uint64_t clusters = align_up(size, q->cluster_size) >> q->cluster_bits, end = clusters;
    while (result == 0 && end > 1) {
        result = qcow2_refcount_get(q, end - 1, &refcount);
        if (result < 0 || refcount)
            break;
        end--;
    }
    if (result < 0 || end == clusters || q->file->block_device)
        return result;
    result = q->file->ops->truncate(q->file, end << q->cluster_bits);
    if (result == 0) {
        g_mutex_lock(&q->lock);
        q->high_water = end << q->cluster_bits;
        q->pack_next = 0;
        g_mutex_unlock(&q->lock);
    }
    return result;
}

/* The tables that the disk had are let go, and the file shrinks to what is left. */
static int empty(Qcow2 *q)
{
    int result = qcow2_commit(q);
    if (result == 0)
        result = qcow2_commit(q);
    if (result < 0)
        return result;
    g_autofree uint64_t *old = g_memdup2(q->l1, (gsize)q->header.l1_entries * 8);
    g_mutex_lock(&q->lock);
    for (uint32_t i = 0; i < q->header.l1_entries; i++) {
        if (q->l1[i])
            qcow2_l1_set(q, i, 0);
    }
    qcow2_tables_build(q);
    g_mutex_unlock(&q->lock);
    result = qcow2_commit(q);
    if (result == 0)
        result = qcow2_tree_free(q, old, q->header.l1_entries);
    if (result == 0)
        result = qcow2_commit(q);
    if (result == 0)
        result = qcow2_commit(q);
    qcow2_packed_forget(q);
    return result < 0 ? result : shorten(q);
}

bool qcow2_make_empty(BlockNode *node, GError **err)
{
    Qcow2 *q = node->state;
    BlockRange range;
    qcow2_hold(q, &range, 0, UINT64_MAX, true);
    g_mutex_lock(&q->meta);
    int result = empty(q);
    g_mutex_unlock(&q->meta);
    qcow2_release(q, &range);
    return result == 0 || lodge_fail_errno(err, -result, "Could not empty %s", node->path);
}

/* Bytes of the data clusters that a copy of @source needs. */
static int count_data(BlockNode *source, uint64_t cluster, uint64_t *bytes)
{
    *bytes = 0;
    for (uint64_t at = 0; at < source->size;) {
        BlockExtent extent;
        unsigned depth;
        int result = block_status_chain(source, at, source->size - at, &extent, &depth);
        if (result < 0)
            return result;
        uint64_t next = at + extent.length;
        if (extent.data && !extent.zero) {
            next = align_up(next, cluster);
            *bytes += at % cluster + (next - at);
        }
        at = next;
    }
    return 0;
}

/* Refcount blocks and their table for @clusters and for themselves. */
static uint64_t refcount_bytes(uint64_t clusters, uint64_t cluster, uint64_t bits)
{
    uint64_t per_table = cluster / 8, per_block = cluster * 8 / bits, total = 0, before;
    do {
        before = total;
        uint64_t blocks = (clusters + total + per_block - 1) / per_block;
        total = blocks + (blocks + per_table - 1) / per_table;
    } while (total != before);
    return total * cluster;
}

static uint64_t bitmaps_bytes(BlockNode *source, uint64_t cluster)
{
    uint64_t bytes = 0, directory = 0;
    g_mutex_lock(&source->bitmaps_lock);
    for (guint i = 0; source->bitmaps && i < source->bitmaps->len; i++) {
        const BlockBitmap *b = g_ptr_array_index(source->bitmaps, i);
        if (!b->persistent || b->inconsistent)
            continue;
        uint64_t clusters = ((b->n + 7) / 8 + cluster - 1) / cluster;
        bytes += clusters * cluster + align_up(clusters * 8, cluster);
        directory += align_up(24 + strlen(b->name), 8);
    }
    g_mutex_unlock(&source->bitmaps_lock);
    return bytes + align_up(directory, cluster);
}

static bool keeps_bitmaps(const BlockNode *node)
{
    return node->format == &block_format_qcow2 && ((Qcow2 *)node->state)->header.version >= 3;
}

bool qcow2_measure(const BlockCreate *create, BlockNode *source, BlockMeasure *measure,
                   GError **err)
{
    const BlockOption *table = qcow2_create_options;
    uint64_t cluster, bits, data = 0;
    bool extended = false;
    BlockPreallocation mode;
    if (!qcow2_create_check(create, err) ||
        !block_option_size(create->options, table, "cluster_size", &cluster, err) ||
        !block_option_number(create->options, table, "refcount_bits", &bits, err) ||
        !block_option_bool(create->options, table, "extended_l2", &extended, err) ||
        !block_preallocation(create->options, &mode, err))
        return false;
    const char *compat = block_option_string(create->options, NULL, "compat");
    bool old = compat && (!strcmp(compat, "0.10") || !strcmp(compat, "v2"));
    uint64_t size = align_up(source ? source->size : create->size, cluster);
    if (source) {
        bool backed = create->backing || block_option_given(create->options, "backing_file");
        int result = backed ? 0 : count_data(source, cluster, &data);
        if (result < 0)
            return lodge_fail_errno(err, -result, "Unable to get block status");
        if (backed)
            data = size;
    }
    if (mode > BLOCK_PREALLOCATE_METADATA)
        data = size;
    uint64_t entry = extended ? 16 : 8, per_l2 = cluster / entry;
    uint64_t l2 = align_up(size / cluster, per_l2) * entry;
    uint64_t l1 = align_up(l2 / cluster, cluster / 8) * 8;
    uint64_t meta = cluster + l2 + l1;
    meta += refcount_bytes((meta + size) / cluster, cluster, bits);
    Qcow2CryptCreate crypt = {0};
    if (!qcow2_crypt_create_check(create, &crypt, err))
        return false;
    meta += align_up(crypt.length, cluster);
    measure->fully_allocated = meta + size;
    measure->required = meta + data;
    measure->has_bitmaps = source && !old && keeps_bitmaps(source);
    if (measure->has_bitmaps)
        measure->bitmaps = bitmaps_bytes(source, cluster);
    return true;
}
