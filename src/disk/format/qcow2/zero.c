/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Write-zeroes and discard: whole clusters by their L2 entries, the rest as data. */
#include "base/bytes.h"
#include "disk/format/qcow2/qcow2.h"
#include "disk/iov.h"

#include <errno.h>

#define STEP_MAX     MIB(512) /* guest bytes under one hold */
#define PAGE_ENTRIES 512

typedef enum Change { CHANGE_DISCARD, CHANGE_ZERO_UNMAP, CHANGE_ZERO_KEEP } Change;

/* What becomes of @entry; *possible is false when version 2 has no way to say it. */
static uint64_t changed_entry(const Qcow2 *q, Change change, uint64_t entry, bool backed,
                              bool *possible)
{
    Qcow2Kind kind = qcow2_entry_kind(q, entry);
    bool flags = q->header.version >= 3;
    *possible = true;
    if (kind == QCOW2_NONE) {
        *possible = !backed || flags || change == CHANGE_DISCARD;
        return backed && flags ? QCOW2_ZERO : entry;
    }
    if (kind == QCOW2_ZEROES && change == CHANGE_ZERO_KEEP)
        return entry;
    if (change == CHANGE_ZERO_KEEP && kind == QCOW2_DATA) {
        if (!flags) {
            *possible = false;
            return entry;
        }
        return entry & QCOW2_COPIED ? entry | QCOW2_ZERO : QCOW2_ZERO;
    }
    if (flags)
        return QCOW2_ZERO;
    if (!backed)
        return 0;
    *possible = change == CHANGE_DISCARD; /* which may as well do nothing */
    return entry;
}

/* Changes the entries of whole clusters from @offset on, within one page of one table. */
static int change_page(Qcow2 *q, Change change, uint64_t offset, uint64_t *length)
{
    uint64_t old[PAGE_ENTRIES];
    bool changed[PAGE_ENTRIES];
    uint64_t per_page = q->l2.page_size / 8;
    uint64_t first = (offset >> q->cluster_bits) % per_page;
    uint64_t clusters = MIN(per_page - first, *length >> q->cluster_bits);
    *length = clusters << q->cluster_bits;
    Qcow2Page *page;
    int result = qcow2_commit_if_full(q);
    if (result == 0)
        result = qcow2_l2_writable(q, offset);
    if (result < 0)
        return result;
    uint64_t table = q->l1[offset >> (q->cluster_bits + q->l2_bits)] & QCOW2_OFFSET_MASK;
    uint64_t index = (offset >> q->cluster_bits) & ((1ull << q->l2_bits) - 1);
    g_mutex_lock(&q->lock);
    result = qcow2_cache_get(q, &q->l2, table + index * 8, &page);
    for (uint64_t i = 0; i < clusters && result == 0; i++) {
        const BlockNode *below = q->node->backing;
        bool backed = below && offset + (i << q->cluster_bits) < below->size, possible;
        old[i] = be64_get(page->bytes + (first + i) * 8);
        uint64_t entry = changed_entry(q, change, old[i], backed, &possible);
        if (!possible) { /* the clusters before it are done; this one is for the caller */
            clusters = i;
            *length = clusters << q->cluster_bits;
            result = i ? 0 : -ENOTSUP;
            break;
        }
        changed[i] = entry != old[i];
        if (!changed[i])
            continue;
        be64_put(page->bytes + (first + i) * 8, entry);
        qcow2_cache_dirty(&q->l2, page);
        q->uncommitted = true;
        if (entry & QCOW2_OFFSET_MASK)
            changed[i] = false; /* the cluster stays */
    }
    g_mutex_unlock(&q->lock);
    for (uint64_t i = 0; i < clusters && result == 0; i++) {
        if (changed[i])
            qcow2_entry_free(q, old[i], q->node->discard_unmap);
    }
    return result;
}

/* How far from @offset there is no L2 table at all; 0: there is one. */
static uint64_t bare(Qcow2 *q, uint64_t offset, uint64_t length)
{
    uint64_t span = 1ull << (q->cluster_bits + q->l2_bits);
    g_mutex_lock(&q->lock);
    bool none = (q->l1[offset >> (q->cluster_bits + q->l2_bits)] & QCOW2_OFFSET_MASK) == 0;
    g_mutex_unlock(&q->lock);
    return none ? MIN(length, span - (offset & (span - 1))) : 0;
}

/* Whole clusters; *done is how far it got when -ENOTSUP asks for zeroes as data. */
static int change_clusters(Qcow2 *q, Change change, uint64_t offset, uint64_t length,
                           uint64_t *done)
{
    BlockRange range;
    int result = 0;
    *done = 0;
    qcow2_hold(q, &range, offset, offset + length, true);
    g_mutex_lock(&q->meta);
    while (*done < length && result == 0) {
        uint64_t step = bare(q, offset + *done, length - *done);
        if (step == 0 || (q->node->backing && q->header.version >= 3)) {
            step = length - *done;
            result = change_page(q, change, offset + *done, &step);
        }
        if (result == 0)
            *done += step;
    }
    g_mutex_unlock(&q->meta);
    qcow2_release(q, &range);
    return result;
}

/* Zeroes as data, where they do not read as zero already. */
static int write_zero_data(Qcow2 *q, uint64_t offset, uint64_t length)
{
    static const char zeroes[65536];
    while (length > 0) {
        Qcow2Map map;
        BlockRange range;
        qcow2_hold(q, &range, offset, offset + length, false);
        g_mutex_lock(&q->lock);
        int result = qcow2_map(q, offset, length, true, &map);
        g_mutex_unlock(&q->lock);
        qcow2_release(q, &range);
        if (result < 0)
            return result;
        const BlockNode *below = q->node->backing;
        bool zero = map.kind == QCOW2_ZEROES ||
                    (map.kind == QCOW2_NONE && (!below || offset >= below->size));
        uint64_t part = zero ? map.length : MIN(map.length, sizeof(zeroes));
        if (!zero) {
            struct iovec iov = {(void *)zeroes, part};
            result = qcow2_writev(q->node, offset, &iov, 1);
            if (result < 0)
                return result;
        }
        offset += part;
        length -= part;
    }
    return 0;
}

int qcow2_write_zeroes(BlockNode *node, uint64_t offset, uint64_t length, bool unmap)
{
    Qcow2 *q = node->state;
    uint64_t end = offset + length;
    if (q->corrupt)
        return -EIO;
    while (offset < end) {
        uint64_t next = MIN(end, align_up(offset + 1, q->cluster_size));
        /* The disk's last cluster is whole when everything up to its end is written. */
        bool whole = offset % q->cluster_size == 0 &&
                     (next % q->cluster_size == 0 || next == node->size);
        int result;
        if (!whole) {
            result = write_zero_data(q, offset, next - offset);
            offset = next;
        } else {
            uint64_t limit = MIN(end, offset + STEP_MAX), done;
            uint64_t span = limit == node->size ? align_up(limit, q->cluster_size)
                                                : align_down(limit, q->cluster_size);
            result = change_clusters(q, unmap ? CHANGE_ZERO_UNMAP : CHANGE_ZERO_KEEP, offset,
                                     span - offset, &done);
            offset = MIN(end, offset + done);
            if (result == -ENOTSUP) {
                next = MIN(end, offset + q->cluster_size);
                result = write_zero_data(q, offset, next - offset);
                offset = next;
            }
        }
        if (result < 0)
            return result;
    }
    return 0;
}

int qcow2_discard(BlockNode *node, uint64_t offset, uint64_t length)
{
    Qcow2 *q = node->state;
    uint64_t end = offset + length;
    if (q->corrupt)
        return -EIO;
    /* A hint: only clusters that lie in it wholly. */
    uint64_t start = align_up(offset, q->cluster_size);
    uint64_t stop = end == node->size ? align_up(end, q->cluster_size)
                                      : align_down(end, q->cluster_size);
    while (start < stop) {
        uint64_t done;
        int result =
            change_clusters(q, CHANGE_DISCARD, start, MIN(STEP_MAX, stop - start), &done);
        if (result < 0)
            return result;
        start += done;
    }
    return 0;
}
