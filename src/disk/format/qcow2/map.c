/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* From an offset of the guest's disk to where its bytes are: L1, L2. */
#include "base/bytes.h"
#include "disk/format/qcow2/qcow2.h"

#include <errno.h>

static void begin_map(const Qcow2 *q, const Qcow2Entry *entry, uint64_t within, Qcow2Map *map)
{
    *map = (Qcow2Map){.kind = qcow2_entry_kind(entry, (unsigned)(within >> q->sub_bits))};
    map->in_place = map->kind == QCOW2_DATA && (entry->word & QCOW2_COPIED);
    map->placed = qcow2_entry_placed(q, entry);
    map->host = map->kind == QCOW2_PACKED ? entry->word
                                          : (entry->word & QCOW2_OFFSET_MASK) + within;
}

/* Does subcluster @sub of @entry, @distance bytes after @map's start, go on in the same way? */
static bool goes_on(const Qcow2 *q, const Qcow2Map *map, const Qcow2Entry *entry, unsigned sub,
                    uint64_t distance)
{
    if (qcow2_entry_kind(entry, sub) != map->kind || map->kind == QCOW2_PACKED)
        return false;
    bool placed = qcow2_entry_placed(q, entry);
    uint64_t host = (entry->word & QCOW2_OFFSET_MASK) + ((uint64_t)sub << q->sub_bits);
    if (placed != map->placed || (placed && host != map->host + distance))
        return false;
    return map->kind != QCOW2_DATA || ((entry->word & QCOW2_COPIED) != 0) == map->in_place;
}

static int map_in_page(Qcow2 *q, const Qcow2Page *page, uint64_t offset, uint64_t length,
                       Qcow2Map *map)
{
    uint64_t per_page = qcow2_page_entries(q), sub_size = 1ull << q->sub_bits;
    uint64_t index = (offset >> q->cluster_bits) % per_page;
    uint64_t within = offset & (q->cluster_size - 1);
    unsigned sub = (unsigned)(within >> q->sub_bits);
    Qcow2Entry entry = qcow2_entry_get(q, page->bytes, index);
    if (qcow2_entry_bad(q, &entry))
        return -EIO;
    begin_map(q, &entry, within, map);
    bool packed = map->kind == QCOW2_PACKED;
    uint64_t covered = packed ? q->cluster_size - within : sub_size - (offset & (sub_size - 1));
    while (covered < length && !packed) {
        if (++sub == q->subclusters) {
            sub = 0;
            if (++index == per_page)
                break;
            entry = qcow2_entry_get(q, page->bytes, index);
            if (qcow2_entry_bad(q, &entry))
                break;
        }
        if (!goes_on(q, map, &entry, sub, covered))
            break;
        covered += sub_size;
    }
    map->length = MIN(covered, length);
    return 0;
}

int qcow2_map(Qcow2 *q, uint64_t offset, uint64_t length, bool wait, Qcow2Map *map)
{
    uint64_t l1_index = offset >> (q->cluster_bits + q->l2_bits);
    uint64_t l2_at = qcow2_l2_index(q, offset) * q->entry_size;
    for (;;) {
        uint64_t l1_entry = q->l1[l1_index];
        uint64_t table = l1_entry & QCOW2_OFFSET_MASK;
        Qcow2Page *page;
        if (table == 0) {
            uint64_t span = 1ull << (q->cluster_bits + q->l2_bits);
            *map = (Qcow2Map){.kind = QCOW2_NONE,
                              .length = MIN(length, span - (offset & (span - 1)))};
            return 0;
        }
        if (table % q->cluster_size || table >= q->high_water)
            return -EIO; /* no cluster of the file */
        if (!wait) {
            page = qcow2_cache_peek(&q->l2, table + l2_at);
            return page ? map_in_page(q, page, offset, length, map) : -EAGAIN;
        }
        block_event(q->node, "l2_load");
        int result = qcow2_cache_get(q, &q->l2, table + l2_at, &page);
        if (result < 0)
            return result;
        /* While the page was read, the table may have been copied elsewhere. */
        if (q->l1[l1_index] == l1_entry)
            return map_in_page(q, page, offset, length, map);
    }
}

void qcow2_packed_extent(const Qcow2 *q, uint64_t entry, uint64_t *offset, uint64_t *length)
{
    unsigned x = 62 - (q->cluster_bits - 8);
    uint64_t sectors = ((entry & ~(QCOW2_COMPRESSED | QCOW2_COPIED)) >> x) + 1;
    *offset = entry & ((1ull << x) - 1);
    *length = sectors * 512 - (*offset & 511);
}

/* A new table: empty, or a copy of the one at @old. */
static int fill_table(Qcow2 *q, uint64_t table, uint64_t old)
{
    if (old == 0)
        return q->file->ops->zero(q->file, table, q->cluster_size, false);
    g_autofree uint8_t *copy = g_try_malloc(q->cluster_size);
    if (!copy)
        return -ENOMEM;
    int result = block_file_read(q->file, old, copy, q->cluster_size);
    return result < 0 ? result : block_file_write(q->file, table, copy, q->cluster_size);
}

void qcow2_l1_set(Qcow2 *q, uint64_t index, uint64_t entry)
{
    q->l1[index] = entry;
    if (q->l1_dirty_first == q->l1_dirty_end) {
        q->l1_dirty_first = index;
        q->l1_dirty_end = index + 1;
    } else {
        q->l1_dirty_first = MIN(q->l1_dirty_first, index);
        q->l1_dirty_end = MAX(q->l1_dirty_end, index + 1);
    }
    q->uncommitted = true;
}

int qcow2_l2_writable(Qcow2 *q, uint64_t offset)
{
    uint64_t index = offset >> (q->cluster_bits + q->l2_bits);
    uint64_t entry = q->l1[index], old = entry & QCOW2_OFFSET_MASK, table, got;
    bool fresh;
    if (old % q->cluster_size)
        return qcow2_corrupt(q);
    if (old && (entry & QCOW2_COPIED))
        return 0;
    int result = qcow2_alloc(q, 1, &table, &got, &fresh);
    if (result < 0)
        return result;
    /* A table that is shared with a snapshot was never changed, so the file has it whole. */
    result = fill_table(q, table, old);
    if (result < 0) {
        qcow2_refcount_add(q, table, q->cluster_size, -1);
        return result;
    }
    g_mutex_lock(&q->lock);
    qcow2_cache_forget(q, &q->l2, table, q->cluster_size);
    qcow2_cache_forget(q, &q->refcounts, table, q->cluster_size);
    qcow2_l1_set(q, index, table | QCOW2_COPIED);
    qcow2_tables_add(q, table);
    if (old)
        qcow2_tables_remove(q, old);
    g_mutex_unlock(&q->lock);
    if (old)
        qcow2_free_later(q, old, q->cluster_size, false);
    return 0;
}
