/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Write-zeroes and discard: whole clusters by their L2 entries, the rest as data. */
#include "base/bytes.h"
#include "disk/format/qcow2/qcow2.h"
#include "disk/iov.h"

#include <errno.h>

#define STEP_MAX     MIB(512) /* guest bytes under one hold */
#define PAGE_ENTRIES 512

typedef enum Change { CHANGE_DISCARD, CHANGE_ZERO_UNMAP, CHANGE_ZERO_KEEP } Change;

/* Changes *@entry; false when version 2 has no way to say it. */
static bool change_entry(const Qcow2 *q, Change change, bool backed, Qcow2Entry *entry)
{
    bool flags = q->header.version >= 3, packed = entry->word & QCOW2_COMPRESSED;
    bool placed = qcow2_entry_placed(q, entry);
    const Qcow2Entry zeroes = {0, 0, q->sub_all};
    if (!packed && !placed && !entry->zero) {
        /* Also without a backing file: it may get one, and what was written must stay. */
        if (flags && (backed || change != CHANGE_DISCARD))
            *entry = zeroes;
        return !backed || flags || change == CHANGE_DISCARD;
    }
    if (change == CHANGE_ZERO_KEEP && placed) {
        if (!flags)
            return false;
        if (entry->zero == q->sub_all)
            return true;
        if (qcow2_entry_owned(q, entry))
            *entry = (Qcow2Entry){entry->word, 0, q->sub_all};
        else
            *entry = zeroes;
        return true;
    }
    if (flags) {
        *entry = zeroes;
        return true;
    }
    if (!backed)
        *entry = (Qcow2Entry){0};
    return !backed || change == CHANGE_DISCARD; /* which may as well do nothing */
}

static bool same_entry(const Qcow2Entry *a, const Qcow2Entry *b)
{
    return a->word == b->word && a->alloc == b->alloc && a->zero == b->zero;
}

/* Changes the entries of whole clusters from @offset on, within one page of one table. */
static int change_page(Qcow2 *q, Change change, uint64_t offset, uint64_t *length)
{
    Qcow2Entry old[PAGE_ENTRIES];
    bool gone[PAGE_ENTRIES];
    uint64_t first = qcow2_l2_index(q, offset) % qcow2_page_entries(q);
    uint64_t clusters = MIN(qcow2_page_entries(q) - first, *length >> q->cluster_bits);
    *length = clusters << q->cluster_bits;
    Qcow2Page *page;
    int result = qcow2_commit_if_full(q);
    if (result == 0)
        result = qcow2_l2_writable(q, offset);
    if (result == 0)
        result = qcow2_l2_page(q, offset, &page, &first);
    if (result < 0)
        return result;
    for (uint64_t i = 0; i < clusters; i++) {
        const BlockNode *below = q->node->backing;
        bool backed = below && offset + (i << q->cluster_bits) < below->size;
        Qcow2Entry entry = old[i] = qcow2_entry_get(q, page->bytes, first + i);
        if (!change_entry(q, change, backed, &entry)) {
            /* The clusters before it are done; this one is for the caller. */
            clusters = i;
            *length = clusters << q->cluster_bits;
            result = i ? 0 : -ENOTSUP;
            break;
        }
        bool changed = !same_entry(&entry, &old[i]);
        gone[i] = changed && entry.word == 0;
        if (!changed)
            continue;
        qcow2_entry_put(q, page->bytes, first + i, entry);
        qcow2_cache_dirty(&q->l2, page);
        q->uncommitted = true;
    }
    g_mutex_unlock(&q->lock);
    for (uint64_t i = 0; i < clusters && result == 0; i++) {
        if (gone[i])
            qcow2_entry_free(q, &old[i], q->node->discard_unmap);
    }
    return result;
}

/* A raw data file reads as the disk does, also without the tables. */
static int zero_data(Qcow2 *q, uint64_t offset, uint64_t length, bool unmap)
{
    if (!q->raw || q->encrypted) /* whose zeroes are not the file's */
        return 0;
    length = MIN(length, q->node->size - offset);
    return q->data->ops->zero(q->data, offset, length, unmap);
}

/* Sets the zero bits of whole subclusters of one cluster; -ENOTSUP: they have to be data. */
static int zero_subclusters(Qcow2 *q, uint64_t offset, uint64_t length)
{
    unsigned from = (unsigned)((offset & (q->cluster_size - 1)) >> q->sub_bits);
    unsigned to = from + (unsigned)(length >> q->sub_bits);
    uint32_t mask = (uint32_t)((1ull << to) - (1ull << from));
    uint64_t index, start = align_down(offset, q->cluster_size);
    BlockRange range;
    Qcow2Page *page;
    qcow2_hold(q, &range, start, start + q->cluster_size, true);
    g_mutex_lock(&q->meta);
    int result = zero_data(q, offset, length, false);
    if (result == 0)
        result = qcow2_commit_if_full(q);
    if (result == 0)
        result = qcow2_l2_writable(q, offset);
    if (result == 0)
        result = qcow2_l2_page(q, offset, &page, &index);
    if (result == 0) {
        Qcow2Entry entry = qcow2_entry_get(q, page->bytes, index);
        if (entry.word & QCOW2_COMPRESSED) {
            result = -ENOTSUP;
        } else {
            entry.zero |= mask;
            entry.alloc &= ~mask;
            qcow2_entry_put(q, page->bytes, index, entry);
            qcow2_cache_dirty(&q->l2, page);
            q->uncommitted = true;
        }
        g_mutex_unlock(&q->lock);
    }
    g_mutex_unlock(&q->meta);
    qcow2_release(q, &range);
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
static int change_held(Qcow2 *q, Change change, uint64_t offset, uint64_t length, uint64_t *done)
{
    *done = 0;
    int result = zero_data(q, offset, length, change != CHANGE_ZERO_KEEP);
    g_mutex_lock(&q->meta);
    while (*done < length && result == 0) {
        bool noted = q->node->backing || (q->header.version >= 3 && change != CHANGE_DISCARD);
        uint64_t step = noted ? 0 : bare(q, offset + *done, length - *done);
        if (step == 0) {
            step = length - *done;
            result = change_page(q, change, offset + *done, &step);
        }
        if (result == 0)
            *done += step;
    }
    g_mutex_unlock(&q->meta);
    return result;
}

static int change_clusters(Qcow2 *q, Change change, uint64_t offset, uint64_t length,
                           uint64_t *done)
{
    BlockRange range;
    qcow2_hold(q, &range, offset, offset + length, true);
    int result = change_held(q, change, offset, length, done);
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

/* Does all of @length bytes at @offset read as zero, with no place in the file? Under a hold. */
static bool reads_zero(Qcow2 *q, uint64_t offset, uint64_t length)
{
    BlockNode *below = q->node->backing;
    while (length > 0) {
        Qcow2Map map;
        BlockExtent extent = {.zero = true};
        unsigned depth;
        g_mutex_lock(&q->lock);
        int result = qcow2_map(q, offset, length, true, &map);
        g_mutex_unlock(&q->lock);
        if (result < 0 || (map.kind != QCOW2_ZEROES && map.kind != QCOW2_NONE))
            return false;
        uint64_t part = MIN(map.length, length);
        if (map.kind == QCOW2_NONE && below && offset < below->size) {
            part = MIN(part, below->size - offset);
            result = block_status_chain(below, offset, part, &extent, &depth);
            if (result < 0 || !extent.zero || extent.length == 0)
                return false;
            part = MIN(part, extent.length);
        }
        offset += part;
        length -= part;
    }
    return true;
}

/* Where the rest of its cluster is zero as well, the cluster becomes one of zeroes. */
static int zero_around(Qcow2 *q, uint64_t offset, uint64_t end)
{
    uint64_t start = align_down(offset, q->cluster_size), next = start + q->cluster_size, done;
    uint64_t stop = MAX(end, MIN(next, q->node->size));
    BlockRange range;
    if (q->header.version < 3 || q->subclusters > 1)
        return -ENOTSUP;
    qcow2_hold(q, &range, start, next, true);
    int result = -ENOTSUP;
    if (reads_zero(q, start, offset - start) && reads_zero(q, end, stop - end))
        result = change_held(q, CHANGE_ZERO_KEEP, start, q->cluster_size, &done);
    qcow2_release(q, &range);
    return result;
}

/* A part of one cluster: whole subclusters by their bits, the rest as data. */
static int zero_part(Qcow2 *q, uint64_t offset, uint64_t end)
{
    uint64_t size = 1ull << q->sub_bits;
    uint64_t start = align_up(offset, size);
    uint64_t stop = end == q->node->size ? align_up(end, size) : align_down(end, size);
    int result = zero_around(q, offset, end);
    if (result != -ENOTSUP)
        return result;
    if (q->subclusters == 1 || start >= stop)
        return write_zero_data(q, offset, end - offset);
    result = zero_subclusters(q, start, stop - start);
    if (result == -ENOTSUP)
        return write_zero_data(q, offset, end - offset);
    if (result == 0 && start > offset)
        result = write_zero_data(q, offset, start - offset);
    if (result == 0 && stop < end)
        result = write_zero_data(q, stop, end - stop);
    return result;
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
        bool whole =
            offset % q->cluster_size == 0 && (next % q->cluster_size == 0 || next == node->size);
        int result;
        if (!whole) {
            result = zero_part(q, offset, next);
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
    uint64_t stop =
        end == node->size ? align_up(end, q->cluster_size) : align_down(end, q->cluster_size);
    while (start < stop) {
        uint64_t done;
        int result = change_clusters(q, CHANGE_DISCARD, start, MIN(STEP_MAX, stop - start), &done);
        if (result < 0)
            return result;
        start += done;
    }
    return 0;
}
