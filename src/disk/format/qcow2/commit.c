/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Changed metadata, in the order that survives a crash after any write. */
#include "base/bytes.h"
#include "disk/format/qcow2/qcow2.h"

#include <errno.h>

#define PENDING_MAX 4096u /* runs of clusters waiting to be freed */

static int write_entries(Qcow2 *q, uint64_t table, const uint64_t *entries, uint64_t *first,
                         uint64_t *end)
{
    uint8_t raw[4096];
    for (uint64_t i = *first; i < *end;) {
        uint64_t n = MIN(*end - i, sizeof(raw) / 8);
        for (uint64_t k = 0; k < n; k++)
            be64_put(raw + k * 8, entries[i + k]);
        int result = block_file_write(q->file, table + i * 8, raw, n * 8);
        if (result < 0)
            return result;
        i += n;
    }
    *first = *end = 0;
    return 0;
}

/* Nothing in the file refers to the pending clusters any more: free them. */
static int apply_pending(Qcow2 *q)
{
    g_mutex_lock(&q->lock);
    g_autoptr(GArray) items = q->pending;
    q->pending = g_array_new(FALSE, FALSE, sizeof(Qcow2Free));
    g_mutex_unlock(&q->lock);
    int first_error = 0;
    for (guint i = 0; i < items->len; i++) {
        const Qcow2Free *item = &g_array_index(items, Qcow2Free, i);
        uint64_t end = item->start + item->length;
        for (uint64_t at = item->start; at < end; at += q->cluster_size) {
            uint64_t count = 0;
            int result = qcow2_refcount_get(q, at >> q->cluster_bits, &count);
            /* Space is given back before anybody can get the cluster anew. */
            if (result == 0 && item->punch && count == 1)
                q->file->ops->discard(q->file, at, q->cluster_size);
            if (result == 0)
                result = qcow2_refcount_add(q, at, q->cluster_size, -1);
            if (result < 0 && first_error == 0)
                first_error = result;
        }
    }
    return first_error;
}

int qcow2_commit(Qcow2 *q)
{
    int result = 0;
    bool tables = q->uncommitted;
    if (q->corrupt)
        return -EIO;
    if (q->refcounts.dirty > 0)
        result = qcow2_cache_write(q, &q->refcounts);
    if (result == 0 && q->reftable_dirty_end > q->reftable_dirty_first) {
        result = qcow2_sync(q);
        if (result == 0)
            result = write_entries(q, q->header.reftable_offset, q->reftable,
                                   &q->reftable_dirty_first, &q->reftable_dirty_end);
    }
    if (result == 0 && tables) {
        /* Refcounts, and the data that was copied, before what refers to them. */
        result = qcow2_sync(q);
        if (result == 0)
            result = qcow2_cache_write(q, &q->l2);
    }
    if (result == 0 && q->l1_dirty_end > q->l1_dirty_first) {
        result = qcow2_sync(q);
        if (result == 0)
            result = write_entries(q, q->header.l1_offset, q->l1, &q->l1_dirty_first,
                                   &q->l1_dirty_end);
    }
    if (result == 0)
        result = qcow2_sync(q);
    if (result < 0)
        return result;
    g_mutex_lock(&q->lock);
    q->uncommitted = false;
    g_mutex_unlock(&q->lock);
    return q->pending->len ? apply_pending(q) : 0;
}

int qcow2_commit_if_full(Qcow2 *q)
{
    g_mutex_lock(&q->lock);
    bool full = q->l2.dirty >= q->l2.max_pages / 2 ||
                q->refcounts.dirty >= q->refcounts.max_pages / 2 ||
                q->pending->len >= PENDING_MAX;
    g_mutex_unlock(&q->lock);
    return full ? qcow2_commit(q) : 0;
}
