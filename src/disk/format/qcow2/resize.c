/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Growing and shrinking an image. */
#include "base/bytes.h"
#include "base/error.h"
#include "disk/format/qcow2/qcow2.h"

#include <errno.h>

/* ---- growing */

/* The new area, up to @end, is to read as zero where the backing image has something else. */
static int hide_backing(Qcow2 *q, uint64_t from, uint64_t end)
{
    const BlockNode *below = q->node->backing;
    if (!below || below->size <= from)
        return 0;
    return qcow2_write_zeroes(q->node, from, end - from, false);
}

/* Sees to it that the header and the L1 table speak of @size bytes. */
static int set_size(Qcow2 *q, uint64_t size)
{
    uint64_t span = 1ull << (q->cluster_bits + q->l2_bits), entries = (size + span - 1) / span;
    int result = 0;
    g_mutex_lock(&q->meta);
    if (entries > q->header.l1_entries)
        result = qcow2_grow_l1(q, (uint32_t)entries);
    if (result == 0) {
        uint64_t old = q->header.size;
        q->header.size = size;
        result = qcow2_header_update(q);
        if (result < 0)
            q->header.size = old;
    }
    if (result == 0)
        result = qcow2_commit(q);
    g_mutex_unlock(&q->meta);
    return result;
}

static int preallocate(Qcow2 *q, uint64_t from, uint64_t size, BlockPreallocation mode)
{
    int result = qcow2_preallocate(q, align_up(from, q->cluster_size), size, mode);
    if (result < 0)
        return result;
    if (q->external)
        return mode >= BLOCK_PREALLOCATE_FALLOC
                   ? block_file_preallocate(q->data, from, size, mode == BLOCK_PREALLOCATE_FULL)
                   : 0;
    uint64_t have;
    result = q->file->ops->size(q->file, &have);
    if (result < 0 || q->file->block_device || have >= q->high_water)
        return result;
    return q->file->ops->truncate(q->file, q->high_water);
}

static bool grow(Qcow2 *q, const BlockResize *resize, GError **err)
{
    BlockNode *node = q->node;
    uint64_t old = node->size;
    BlockPreallocation mode = resize->preallocation;
    int result = q->external ? q->data->ops->truncate(q->data, resize->size) : 0;
    if (result == 0)
        result = set_size(q, resize->size);
    if (result < 0)
        return lodge_fail_errno(err, -result, "%s: cannot grow the image", node->path);
    node->size = resize->size;
    /* A raw data file can be read without the tables only if they are whole. */
    if (q->raw && mode == BLOCK_PREALLOCATE_OFF)
        mode = BLOCK_PREALLOCATE_METADATA;
    if (mode != BLOCK_PREALLOCATE_OFF)
        result = preallocate(q, old, resize->size, mode);
    if (result == 0)
        result = hide_backing(q, old, resize->size);
    if (result == 0)
        result = node->format->flush(node);
    return result == 0 ||
           lodge_fail_errno(err, -result, "%s: cannot preallocate what was added", node->path);
}

/* ---- shrinking */

/* Takes the entries from @first on out of the L2 table that @offset is in. */
static int drop_entries(Qcow2 *q, uint64_t offset)
{
    Qcow2Page *page;
    uint64_t index, left = (1ull << q->l2_bits) - qcow2_l2_index(q, offset);
    int result = qcow2_l2_writable(q, offset);
    while (left > 0 && result == 0) {
        result = qcow2_l2_page(q, offset, &page, &index);
        if (result < 0)
            return result;
        uint64_t n = MIN(left, qcow2_page_entries(q) - index);
        g_autofree Qcow2Entry *old = g_new(Qcow2Entry, n);
        for (uint64_t i = 0; i < n; i++) {
            old[i] = qcow2_entry_get(q, page->bytes, index + i);
            qcow2_entry_put(q, page->bytes, index + i, (Qcow2Entry){0});
        }
        qcow2_cache_dirty(&q->l2, page);
        q->uncommitted = true;
        g_mutex_unlock(&q->lock);
        for (uint64_t i = 0; i < n; i++)
            qcow2_entry_free(q, &old[i], true);
        offset += n << q->cluster_bits;
        left -= n;
        result = qcow2_commit_if_full(q);
    }
    return result;
}

/* Everything from @size on: entries of its L2 table, then whole tables. */
static int drop_tables(Qcow2 *q, uint64_t size)
{
    uint64_t span = 1ull << (q->cluster_bits + q->l2_bits);
    uint64_t from = align_up(size, q->cluster_size), first = (from + span - 1) / span;
    int result = qcow2_commit(q);
    if (result == 0 && from % span && (q->l1[from / span] & QCOW2_OFFSET_MASK))
        result = drop_entries(q, from);
    if (result == 0)
        result = qcow2_commit(q);
    if (result < 0 || first >= q->header.l1_entries)
        return result;
    uint32_t n = q->header.l1_entries - (uint32_t)first;
    g_autofree uint64_t *gone = g_memdup2(q->l1 + first, n * sizeof(*gone));
    g_mutex_lock(&q->lock);
    for (uint32_t i = 0; i < n; i++) {
        if (gone[i])
            qcow2_l1_set(q, first + i, 0);
        if (gone[i] & QCOW2_OFFSET_MASK) {
            qcow2_tables_remove(q, gone[i] & QCOW2_OFFSET_MASK);
            qcow2_cache_forget(q, &q->l2, gone[i] & QCOW2_OFFSET_MASK, q->cluster_size);
        }
    }
    q->uncommitted = true;
    g_mutex_unlock(&q->lock);
    result = qcow2_commit(q);
    return result < 0 ? result : qcow2_tree_free(q, gone, n);
}

/* Does block number @index count nothing but, perhaps, itself? */
static int block_idle(Qcow2 *q, uint64_t index, bool *idle)
{
    uint64_t block = q->reftable[index] & QCOW2_OFFSET_MASK, first = index << q->block_bits;
    *idle = true;
    for (uint64_t c = first; c < first + (1ull << q->block_bits) && *idle; c++) {
        uint64_t count;
        int result = qcow2_refcount_get(q, c, &count);
        if (result < 0)
            return result;
        *idle = count == 0 || (count == 1 && c == block >> q->cluster_bits);
    }
    return 0;
}

/* Refcount blocks at the end that count nothing are given back. */
static int drop_blocks(Qcow2 *q)
{
    g_autoptr(GArray) gone = g_array_new(FALSE, FALSE, sizeof(uint64_t));
    for (uint64_t i = q->reftable_entries; i-- > 1;) {
        uint64_t block = q->reftable[i] & QCOW2_OFFSET_MASK;
        bool idle = true;
        int result = block && block % q->cluster_size == 0 ? block_idle(q, i, &idle) : 0;
        if (result < 0 || !idle)
            break;
        if (block == 0)
            continue;
        bool elsewhere = block >> q->cluster_bits >> q->block_bits != i;
        g_mutex_lock(&q->lock);
        qcow2_cache_forget(q, &q->refcounts, block, q->cluster_size);
        qcow2_tables_remove(q, block);
        qcow2_reftable_set(q, i, 0);
        q->free_hint = 0;
        g_mutex_unlock(&q->lock);
        if (elsewhere)
            g_array_append_val(gone, block);
    }
    int result = qcow2_commit(q);
    for (guint i = 0; i < gone->len && result == 0; i++)
        result = qcow2_refcount_add(q, g_array_index(gone, uint64_t, i), q->cluster_size, -1);
    return result;
}

/* The file ends behind the last cluster that is in use. */
static int cut_file(Qcow2 *q)
{
    uint64_t size, count = 0;
    int result = q->file->ops->size(q->file, &size);
    if (result < 0 || q->file->block_device)
        return result;
    uint64_t end = align_up(size, q->cluster_size) >> q->cluster_bits;
    while (end > 1) {
        result = qcow2_refcount_get(q, end - 1, &count);
        if (result < 0)
            return result;
        if (count)
            break;
        end--;
    }
    if (end << q->cluster_bits >= size)
        return 0;
    result = q->file->ops->truncate(q->file, end << q->cluster_bits);
    g_mutex_lock(&q->lock);
    if (result == 0)
        q->high_water = end << q->cluster_bits;
    g_mutex_unlock(&q->lock);
    return result;
}

static int shrink_locked(Qcow2 *q, uint64_t size)
{
    int result = drop_tables(q, size);
    if (result == 0)
        result = qcow2_commit(q); /* sets clusters free */
    if (result == 0)
        result = qcow2_commit(q); /* writes that down */
    if (result == 0)
        result = drop_blocks(q);
    if (result == 0)
        result = qcow2_commit(q);
    return result == 0 ? cut_file(q) : result;
}

static bool shrink(Qcow2 *q, uint64_t size, GError **err)
{
    BlockNode *node = q->node;
    /* What is beyond the end within the last cluster must not come back when the disk grows. */
    uint64_t tail = MIN(align_up(size, q->cluster_size), node->size) - size;
    int result = tail ? qcow2_write_zeroes(node, size, tail, false) : 0;
    if (result == 0) {
        g_mutex_lock(&q->meta);
        result = shrink_locked(q, size);
        g_mutex_unlock(&q->meta);
    }
    if (result == 0 && q->external)
        result = q->data->ops->truncate(q->data, size);
    if (result == 0)
        result = set_size(q, size);
    if (result < 0)
        return lodge_fail_errno(err, -result, "Failed to discard cropped clusters");
    node->size = size;
    return true;
}

bool qcow2_resize(BlockNode *node, const BlockResize *resize, GError **err)
{
    Qcow2 *q = node->state;
    uint64_t span = 1ull << (q->cluster_bits + q->l2_bits), size = resize->size;
    if (size % 512)
        return lodge_fail(err, LODGE_ERROR_INVALID, "The new size must be a multiple of 512");
    if (q->header.n_snapshots && q->header.version < 3)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "Can't resize a v2 image which has snapshots");
    if (size < node->size && resize->preallocation != BLOCK_PREALLOCATE_OFF)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "Preallocation can't be used for shrinking an image");
    if (size > INT64_MAX - span || (size + span - 1) / span > QCOW2_L1_MAX / 8)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "Failed to grow the L1 table: File too large");
    return size < node->size ? shrink(q, size, err) : grow(q, resize, err);
}
