/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Where the image's own tables are, so that no write of data lands on them. */
#include "base/bytes.h"
#include "disk/format/qcow2/qcow2.h"

#include <errno.h>

/* The index of the first table at or after @offset. */
static guint find_table(const Qcow2 *q, uint64_t offset)
{
    guint low = 0, high = q->tables->len;
    while (low < high) {
        guint middle = low + (high - low) / 2;
        if (g_array_index(q->tables, uint64_t, middle) < offset)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static int compare_offsets(gconstpointer a, gconstpointer b)
{
    uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;
    return left < right ? -1 : left > right;
}

void qcow2_tables_build(Qcow2 *q)
{
    g_array_set_size(q->tables, 0);
    for (uint32_t i = 0; i < q->header.l1_entries; i++) {
        uint64_t offset = q->l1[i] & QCOW2_OFFSET_MASK;
        if (offset)
            g_array_append_val(q->tables, offset);
    }
    for (uint64_t i = 0; i < q->reftable_entries; i++) {
        uint64_t offset = q->reftable[i] & QCOW2_OFFSET_MASK;
        if (offset)
            g_array_append_val(q->tables, offset);
    }
    g_array_sort(q->tables, compare_offsets);
}

void qcow2_tables_add(Qcow2 *q, uint64_t offset)
{
    g_array_insert_val(q->tables, find_table(q, offset), offset);
}

void qcow2_tables_remove(Qcow2 *q, uint64_t offset)
{
    guint at = find_table(q, offset);
    if (at < q->tables->len && g_array_index(q->tables, uint64_t, at) == offset)
        g_array_remove_index(q->tables, at);
}

bool qcow2_overlaps(const Qcow2 *q, uint64_t offset, uint64_t length)
{
    uint64_t start = align_down(offset, q->cluster_size), end = offset + length;
    if (offset < q->cluster_size)
        return true; /* the header */
    guint at = find_table(q, start);
    if (at < q->tables->len && g_array_index(q->tables, uint64_t, at) < end)
        return true;
    for (guint i = 0; i < q->fixed->len; i++) {
        const Qcow2Range *range = &g_array_index(q->fixed, Qcow2Range, i);
        if (start < range->end && range->start < end)
            return true;
    }
    Qcow2Range l1 = {q->header.l1_offset,
                     q->header.l1_offset + (uint64_t)q->header.l1_entries * 8};
    Qcow2Range reftable = {q->header.reftable_offset,
                           q->header.reftable_offset +
                               q->header.reftable_clusters * q->cluster_size};
    return (start < l1.end && l1.start < end) || (start < reftable.end && reftable.start < end);
}

int qcow2_corrupt(Qcow2 *q)
{
    g_mutex_lock(&q->lock);
    bool first = !q->corrupt;
    q->corrupt = true;
    g_mutex_unlock(&q->lock);
    if (first && !q->node->read_only && q->header.version >= 3) {
        /* Only this bit: what is in memory may be what is wrong. */
        uint8_t raw[8];
        if (block_file_read(q->file, 72, raw, sizeof(raw)) == 0) {
            be64_put(raw, be64_get(raw) | QCOW2_INCOMPAT_CORRUPT);
            if (block_file_write(q->file, 72, raw, sizeof(raw)) == 0)
                block_node_sync(q->node);
        }
    }
    return -EIO;
}
