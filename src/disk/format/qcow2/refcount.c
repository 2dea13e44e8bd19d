/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Who uses which cluster: refcounts, finding free clusters, growing the refcount table. */
#include "base/bytes.h"
#include "disk/format/qcow2/qcow2.h"

#include <errno.h>
#include <string.h>

uint64_t qcow2_refcount_max(const Qcow2 *q)
{
    return q->refcount_bits == 64 ? UINT64_MAX : (1ull << q->refcount_bits) - 1;
}

/* Entries narrower than a byte fill it from the least significant bit on. */
uint64_t qcow2_refcount_decode(const Qcow2 *q, const uint8_t *block, uint64_t index)
{
    switch (q->refcount_bits) {
    case 8:
        return block[index];
    case 16:
        return be16_get(block + index * 2);
    case 32:
        return be32_get(block + index * 4);
    case 64:
        return be64_get(block + index * 8);
    default: {
        unsigned shift = (unsigned)(index * q->refcount_bits) & 7;
        return (block[index * q->refcount_bits / 8] >> shift) & ((1u << q->refcount_bits) - 1);
    }
    }
}

void qcow2_refcount_encode(const Qcow2 *q, uint8_t *block, uint64_t index, uint64_t value)
{
    switch (q->refcount_bits) {
    case 8:
        block[index] = (uint8_t)value;
        return;
    case 16:
        be16_put(block + index * 2, (uint16_t)value);
        return;
    case 32:
        be32_put(block + index * 4, (uint32_t)value);
        return;
    case 64:
        be64_put(block + index * 8, value);
        return;
    default: {
        unsigned shift = (unsigned)(index * q->refcount_bits) & 7;
        uint8_t *byte = &block[index * q->refcount_bits / 8];
        uint8_t mask = (uint8_t)(((1u << q->refcount_bits) - 1) << shift);
        *byte = (uint8_t)((*byte & ~mask) | ((value << shift) & mask));
    }
    }
}

/* The refcount entries of one page of a block, as indices. */
static uint64_t page_entries(const Qcow2 *q)
{
    return (uint64_t)q->refcounts.page_size * 8 / q->refcount_bits;
}

/* The host offset of the refcount block for @cluster; 0: there is none. */
static int block_of(Qcow2 *q, uint64_t cluster, uint64_t *offset)
{
    uint64_t index = cluster >> q->block_bits;
    *offset = index < q->reftable_entries ? q->reftable[index] & QCOW2_OFFSET_MASK : 0;
    return *offset % q->cluster_size ? qcow2_corrupt(q) : 0;
}

/* The page with @cluster's refcount; `lock` is held on success. */
static int page_of(Qcow2 *q, uint64_t block, uint64_t cluster, Qcow2Page **page)
{
    uint64_t within = cluster & ((1ull << q->block_bits) - 1);
    g_mutex_lock(&q->lock);
    int result = qcow2_cache_get(q, &q->refcounts, block + within * q->refcount_bits / 8, page);
    if (result < 0)
        g_mutex_unlock(&q->lock);
    return result;
}

int qcow2_refcount_get(Qcow2 *q, uint64_t cluster, uint64_t *value)
{
    uint64_t block;
    Qcow2Page *page;
    int result = block_of(q, cluster, &block);
    *value = 0;
    if (result < 0 || block == 0)
        return result;
    result = page_of(q, block, cluster, &page);
    if (result < 0)
        return result;
    *value = qcow2_refcount_decode(q, page->bytes, cluster % page_entries(q));
    g_mutex_unlock(&q->lock);
    return 0;
}

void qcow2_reftable_set(Qcow2 *q, uint64_t index, uint64_t offset)
{
    q->reftable[index] = offset;
    if (q->reftable_dirty_first == q->reftable_dirty_end) {
        q->reftable_dirty_first = index;
        q->reftable_dirty_end = index + 1;
    } else {
        q->reftable_dirty_first = MIN(q->reftable_dirty_first, index);
        q->reftable_dirty_end = MAX(q->reftable_dirty_end, index + 1);
    }
}

/*
 * Makes the cluster at @offset the refcount block for the clusters from @first_cluster on, those
 * of [used_from, used_end) in use.
 */
static int init_block(Qcow2 *q, uint64_t offset, uint64_t first_cluster, uint64_t used_from,
                      uint64_t used_end)
{
    if (qcow2_overlaps(q, offset, q->cluster_size))
        return qcow2_corrupt(q);
    g_mutex_lock(&q->lock);
    qcow2_cache_forget(q, &q->refcounts, offset, q->cluster_size);
    qcow2_cache_forget(q, &q->l2, offset, q->cluster_size);
    q->high_water = MAX(q->high_water, offset + q->cluster_size);
    g_mutex_unlock(&q->lock);
    int result = q->file->ops->zero(q->file, offset, q->cluster_size, false);
    uint64_t entries = 1ull << q->block_bits;
    used_from = MAX(used_from, first_cluster);
    used_end = MIN(used_end, first_cluster + entries);
    for (uint64_t c = used_from; c < used_end && result == 0; c++) {
        Qcow2Page *page;
        result = page_of(q, offset, c, &page);
        if (result < 0)
            break;
        qcow2_refcount_encode(q, page->bytes, c % page_entries(q), 1);
        qcow2_cache_dirty(&q->refcounts, page);
        g_mutex_unlock(&q->lock);
    }
    return result;
}

static int write_reftable(Qcow2 *q, uint64_t offset, const uint64_t *table, uint64_t entries)
{
    size_t bytes = entries * 8;
    g_autofree uint8_t *raw = g_try_malloc(bytes);
    if (!raw)
        return -ENOMEM;
    for (uint64_t i = 0; i < entries; i++)
        be64_put(raw + i * 8, table[i]);
    int result = block_file_write(q->file, offset, raw, bytes);
    return result < 0 ? result : block_node_sync(q->node);
}

/* The old table goes once the header on the disk names the new one. Takes *table if that works. */
static int switch_reftable(Qcow2 *q, uint64_t offset, uint64_t **table, uint64_t entries)
{
    uint64_t old_offset = q->header.reftable_offset;
    uint64_t old_length = q->header.reftable_clusters * q->cluster_size;
    uint32_t old_clusters = q->header.reftable_clusters;
    int result = qcow2_cache_write(q, &q->refcounts);
    if (result == 0)
        result = write_reftable(q, offset, *table, entries);
    if (result < 0)
        return result;
    q->header.reftable_offset = offset;
    q->header.reftable_clusters = (uint32_t)(entries * 8 / q->cluster_size);
    result = qcow2_header_update(q);
    if (result < 0) {
        q->header.reftable_offset = old_offset;
        q->header.reftable_clusters = old_clusters;
        return result;
    }
    g_free(q->reftable);
    q->reftable = g_steal_pointer(table);
    q->reftable_entries = entries;
    q->reftable_dirty_first = q->reftable_dirty_end = 0;
    return qcow2_refcount_add(q, old_offset, old_length, -1);
}

/*
 * Everything from the first cluster that the full table does not cover is unused. There the new
 * table goes, behind the refcount blocks that account for both.
 */
static int grow_reftable(Qcow2 *q, uint64_t needed)
{
    uint64_t per_cluster = q->cluster_size / 8;
    uint64_t start = q->reftable_entries << q->block_bits;
    uint64_t blocks = 1, entries, clusters;
    for (;;) {
        uint64_t want = MAX(MAX(needed, q->reftable_entries + q->reftable_entries / 2),
                            q->reftable_entries + blocks);
        entries = align_up(want, per_cluster);
        clusters = entries / per_cluster;
        if ((blocks << q->block_bits) >= blocks + clusters)
            break;
        blocks++;
    }
    if (entries * 8 > QCOW2_REFTABLE_MAX ||
        (start + blocks + clusters) > QCOW2_HOST_MAX >> q->cluster_bits)
        return -EFBIG;
    g_autofree uint64_t *table = g_try_new0(uint64_t, entries);
    if (!table)
        return -ENOMEM;
    if (q->reftable_entries)
        memcpy(table, q->reftable, q->reftable_entries * 8);
    uint64_t host = start << q->cluster_bits;
    for (uint64_t b = 0; b < blocks; b++) {
        uint64_t first = start + (b << q->block_bits);
        uint64_t offset = host + (b << q->cluster_bits);
        int result = init_block(q, offset, first, start, start + blocks + clusters);
        if (result < 0)
            return result;
        table[q->reftable_entries + b] = offset;
    }
    uint64_t offset = host + (blocks << q->cluster_bits);
    g_mutex_lock(&q->lock);
    q->high_water = MAX(q->high_water, offset + (clusters << q->cluster_bits));
    for (uint64_t b = 0; b < blocks; b++)
        qcow2_tables_add(q, host + (b << q->cluster_bits));
    g_mutex_unlock(&q->lock);
    return switch_reftable(q, offset, &table, entries);
}

/* Sees to it that @cluster has a refcount block. A new one is the first cluster it covers. */
static int ensure_block(Qcow2 *q, uint64_t cluster)
{
    uint64_t index = cluster >> q->block_bits;
    if (index >= (QCOW2_HOST_MAX >> q->cluster_bits) >> q->block_bits)
        return -EFBIG;
    if (index >= q->reftable_entries) {
        int result = grow_reftable(q, index + 1);
        if (result < 0)
            return result;
    }
    if (q->reftable[index] & QCOW2_OFFSET_MASK)
        return 0;
    uint64_t first = index << q->block_bits;
    uint64_t offset = first << q->cluster_bits;
    int result = init_block(q, offset, first, first, first + 1);
    if (result < 0)
        return result;
    g_mutex_lock(&q->lock);
    qcow2_reftable_set(q, index, offset);
    qcow2_tables_add(q, offset);
    g_mutex_unlock(&q->lock);
    return 0;
}

/* As many clusters in a row as a table needs, behind the refcount blocks made for them. */
int qcow2_alloc_table(Qcow2 *q, uint64_t clusters, uint64_t *offset)
{
    uint64_t blocks = 1, first = 0;
    while ((blocks << q->block_bits) < blocks + clusters)
        blocks++;
    for (int i = 0; i < 2; i++) {
        for (first = q->reftable_entries; first > 0; first--) {
            if (q->reftable[first - 1] & QCOW2_OFFSET_MASK)
                break;
        }
        if (first + blocks <= q->reftable_entries)
            break;
        /* A longer refcount table takes blocks of its own. */
        int result = i ? -EFBIG : grow_reftable(q, first + 2 * blocks + 8);
        if (result < 0)
            return result;
    }
    uint64_t start = first << q->block_bits;
    *offset = (start + blocks) << q->cluster_bits;
    if (start + blocks + clusters > QCOW2_HOST_MAX >> q->cluster_bits)
        return -EFBIG;
    if (qcow2_overlaps(q, *offset, clusters << q->cluster_bits))
        return qcow2_corrupt(q);
    for (uint64_t b = 0; b < blocks; b++) {
        uint64_t at = (start + b) << q->cluster_bits;
        int result = init_block(q, at, start + (b << q->block_bits), start,
                                start + blocks + clusters);
        if (result < 0)
            return result;
        g_mutex_lock(&q->lock);
        qcow2_reftable_set(q, first + b, at);
        qcow2_tables_add(q, at);
        g_mutex_unlock(&q->lock);
    }
    g_mutex_lock(&q->lock);
    q->high_water = MAX(q->high_water, *offset + (clusters << q->cluster_bits));
    g_mutex_unlock(&q->lock);
    return 0;
}

int qcow2_refcount_set(Qcow2 *q, uint64_t cluster, uint64_t value)
{
    uint64_t block;
    Qcow2Page *page;
    int result = value ? ensure_block(q, cluster) : 0;
    if (result == 0)
        result = block_of(q, cluster, &block);
    if (result < 0)
        return result;
    if (block == 0)
        return 0;
    result = page_of(q, block, cluster, &page);
    if (result < 0)
        return result;
    qcow2_refcount_encode(q, page->bytes, cluster % page_entries(q), value);
    qcow2_cache_dirty(&q->refcounts, page);
    if (value == 0) {
        q->free_hint = MIN(q->free_hint, cluster);
        if (q->pack_next >> q->cluster_bits == cluster)
            q->pack_next = 0; /* somebody else may get the half-used cluster */
    }
    g_mutex_unlock(&q->lock);
    return 0;
}

int qcow2_refcount_add(Qcow2 *q, uint64_t offset, uint64_t length, int delta)
{
    uint64_t first = offset >> q->cluster_bits, last = (offset + length - 1) >> q->cluster_bits;
    for (uint64_t c = first; length > 0 && c <= last; c++) {
        uint64_t value;
        int result = qcow2_refcount_get(q, c, &value);
        if (result < 0)
            return result;
        if (delta < 0 && value == 0)
            return qcow2_corrupt(q);
        if (delta > 0 && value == qcow2_refcount_max(q))
            return -E2BIG;
        result = qcow2_refcount_set(q, c, value + (uint64_t)(int64_t)delta);
        if (result < 0)
            return result;
    }
    return 0;
}

/* From *cluster on: the first free one; *cluster may be one without a refcount block yet. */
static int find_free(Qcow2 *q, uint64_t *cluster)
{
    uint64_t c = *cluster, per_page = page_entries(q);
    for (;;) {
        uint64_t block;
        Qcow2Page *page;
        int result = block_of(q, c, &block);
        if (result < 0 || block == 0) {
            *cluster = c;
            return result;
        }
        result = page_of(q, block, c, &page);
        if (result < 0)
            return result;
        uint64_t i = c % per_page;
        while (i < per_page && qcow2_refcount_decode(q, page->bytes, i) != 0)
            i++;
        g_mutex_unlock(&q->lock);
        c = c - c % per_page + i;
        if (i < per_page) {
            *cluster = c;
            return 0;
        }
    }
}

/* Sets the run of free clusters from @cluster on, within one page, to one; returns its length. */
static int take_run(Qcow2 *q, uint64_t cluster, uint64_t want, uint64_t *got)
{
    uint64_t block, per_page = page_entries(q), n = 0;
    Qcow2Page *page;
    int result = block_of(q, cluster, &block);
    if (result == 0)
        result = page_of(q, block, cluster, &page);
    if (result < 0)
        return result;
    uint64_t i = cluster % per_page;
    for (; n < want && i + n < per_page; n++) {
        if (qcow2_refcount_decode(q, page->bytes, i + n) != 0)
            break;
        qcow2_refcount_encode(q, page->bytes, i + n, 1);
    }
    qcow2_cache_dirty(&q->refcounts, page);
    q->free_hint = cluster + n;
    g_mutex_unlock(&q->lock);
    *got = n;
    return n ? 0 : -EAGAIN;
}

int qcow2_alloc(Qcow2 *q, uint64_t want, uint64_t *offset, uint64_t *got, bool *fresh)
{
    if (q->corrupt)
        return -EIO;
    uint64_t cluster = MAX(q->free_hint, 1);
    for (;;) {
        int result = find_free(q, &cluster);
        if (result == 0)
            result = ensure_block(q, cluster); /* which may take this very cluster */
        if (result == 0)
            result = take_run(q, cluster, want, got);
        if (result == -EAGAIN) {
            cluster++;
            continue;
        }
        if (result < 0)
            return result;
        break;
    }
    *offset = cluster << q->cluster_bits;
    uint64_t length = *got << q->cluster_bits;
    g_mutex_lock(&q->lock);
    bool overlap = qcow2_overlaps(q, *offset, length);
    *fresh = *offset >= q->high_water;
    q->high_water = MAX(q->high_water, *offset + length);
    /* What an earlier, failed use as a table left must not be written back over what comes. */
    if (!overlap && !*fresh) {
        qcow2_cache_forget(q, &q->l2, *offset, length);
        qcow2_cache_forget(q, &q->refcounts, *offset, length);
    }
    g_mutex_unlock(&q->lock);
    /* A free cluster that is in use as metadata: the refcounts are wrong. */
    return overlap ? qcow2_corrupt(q) : 0;
}

int qcow2_alloc_row(Qcow2 *q, uint64_t clusters, uint64_t *offset)
{
    uint64_t got;
    bool fresh;
    int result = qcow2_alloc(q, clusters, offset, &got, &fresh);
    if (result < 0 || got == clusters)
        return result;
    result = qcow2_refcount_add(q, *offset, got << q->cluster_bits, -1);
    return result < 0 ? result : qcow2_alloc_table(q, clusters, offset);
}

int qcow2_write_new(Qcow2 *q, const void *bytes, uint64_t length, uint64_t *offset)
{
    int result = qcow2_alloc_row(q, length >> q->cluster_bits, offset);
    if (result < 0)
        return result;
    result = block_file_write(q->file, *offset, bytes, length);
    if (result < 0)
        qcow2_refcount_add(q, *offset, length, -1);
    return result;
}

void qcow2_free_later(Qcow2 *q, uint64_t offset, uint64_t length, bool punch)
{
    Qcow2Free item = {align_down(offset, q->cluster_size),
                      align_up(offset + length, q->cluster_size) -
                          align_down(offset, q->cluster_size),
                      punch};
    g_mutex_lock(&q->lock);
    Qcow2Free *last =
        q->pending->len ? &g_array_index(q->pending, Qcow2Free, q->pending->len - 1) : NULL;
    if (last && last->punch == punch && last->start + last->length == item.start)
        last->length += item.length;
    else
        g_array_append_val(q->pending, item);
    g_mutex_unlock(&q->lock);
}
