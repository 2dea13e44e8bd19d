/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Everything that an L1 table leads to, as making and dropping a snapshot has to see it. */
#include "base/bytes.h"
#include "disk/format/qcow2/qcow2.h"

#include <errno.h>

/* A cluster that holds a table, or what an L2 entry refers to; @entry is NULL for a table. */
typedef int (*Visit)(void *opaque, const Qcow2Entry *entry, uint64_t offset, uint64_t length);

static int visit_table(Qcow2 *q, uint64_t table, uint8_t *buffer, Visit visit, void *opaque)
{
    int result = block_file_read(q->file, table, buffer, q->cluster_size);
    for (uint64_t i = 0; i < 1ull << q->l2_bits && result == 0; i++) {
        Qcow2Entry entry = qcow2_entry_get(q, buffer, i);
        uint64_t offset = entry.word & QCOW2_OFFSET_MASK, length = q->cluster_size;
        if (entry.word & QCOW2_COMPRESSED)
            qcow2_packed_extent(q, entry.word, &offset, &length);
        else if (offset == 0)
            continue;
        else if (offset % q->cluster_size)
            return qcow2_corrupt(q);
        result = visit(opaque, &entry, offset, length);
    }
    return result == 0 ? visit(opaque, NULL, table, q->cluster_size) : result;
}

static int walk(Qcow2 *q, const uint64_t *l1, uint32_t entries, Visit visit, void *opaque)
{
    uint64_t left = q->high_water >> q->cluster_bits; /* a table is there once: that bounds us */
    g_autofree uint8_t *buffer = g_try_malloc(q->cluster_size);
    if (!buffer)
        return -ENOMEM;
    for (uint32_t i = 0; i < entries; i++) {
        uint64_t table = l1[i] & QCOW2_OFFSET_MASK;
        if (table == 0)
            continue;
        if (table % q->cluster_size || table >= q->high_water || left-- == 0)
            return qcow2_corrupt(q);
        int result = visit_table(q, table, buffer, visit, opaque);
        if (result == 0)
            result = qcow2_commit_if_full(q);
        if (result < 0)
            return result;
    }
    return 0;
}

typedef struct Count {
    Qcow2 *q;
    uint64_t done, limit; /* clusters counted; undoing ends at the limit */
    int delta;
} Count;

static int count(void *opaque, const Qcow2Entry *entry, uint64_t offset, uint64_t length)
{
    Count *c = opaque;
    uint64_t size = c->q->cluster_size;
    for (uint64_t at = align_down(offset, size); at < offset + length; at += size) {
        if (c->done == c->limit)
            return -ECANCELED;
        int result = qcow2_refcount_add(c->q, at, size, c->delta);
        if (result < 0)
            return result;
        c->done++;
    }
    return 0;
}

int qcow2_tree_refer(Qcow2 *q, const uint64_t *l1, uint32_t entries)
{
    Count up = {q, 0, UINT64_MAX, 1};
    int result = walk(q, l1, entries, count, &up);
    if (result < 0) {
        Count down = {q, 0, up.done, -1};
        walk(q, l1, entries, count, &down);
    }
    return result;
}

static int release(void *opaque, const Qcow2Entry *entry, uint64_t offset, uint64_t length)
{
    Qcow2 *q = opaque;
    if (entry)
        qcow2_entry_free(q, entry, true);
    else
        qcow2_free_later(q, offset, length, true);
    return 0;
}

int qcow2_tree_free(Qcow2 *q, const uint64_t *l1, uint32_t entries)
{
    return walk(q, l1, entries, release, q);
}

/* @entry, which refers to a whole cluster, with the flag that its refcount asks for. */
static int flagged(Qcow2 *q, uint64_t entry, uint64_t *out)
{
    uint64_t refcount;
    int result = qcow2_refcount_get(q, (entry & QCOW2_OFFSET_MASK) >> q->cluster_bits, &refcount);
    *out = refcount == 1 ? entry | QCOW2_COPIED : entry & ~QCOW2_COPIED;
    return result;
}

static int flag_table(Qcow2 *q, uint64_t table, uint8_t *buffer)
{
    bool changed = false;
    int result = block_file_read(q->file, table, buffer, q->cluster_size);
    for (uint64_t i = 0; i < 1ull << q->l2_bits && result == 0; i++) {
        uint8_t *at = buffer + i * q->entry_size;
        uint64_t entry = be64_get(at), now;
        if ((entry & QCOW2_COMPRESSED) || !(entry & QCOW2_OFFSET_MASK))
            continue;
        result = flagged(q, entry, &now);
        changed |= now != entry;
        be64_put(at, now);
    }
    if (result < 0 || !changed)
        return result;
    g_mutex_lock(&q->lock);
    qcow2_cache_forget(q, &q->l2, table, q->cluster_size);
    g_mutex_unlock(&q->lock);
    return block_file_write(q->file, table, buffer, q->cluster_size);
}

int qcow2_tree_copied(Qcow2 *q)
{
    g_autofree uint8_t *buffer = g_try_malloc(q->cluster_size);
    if (!buffer)
        return -ENOMEM;
    for (uint32_t i = 0; i < q->header.l1_entries; i++) {
        uint64_t entry = q->l1[i], table = entry & QCOW2_OFFSET_MASK, now;
        if (table == 0)
            continue;
        int result = flagged(q, entry, &now);
        if (result == 0)
            result = flag_table(q, table, buffer);
        if (result < 0)
            return result;
        if (now == entry)
            continue;
        g_mutex_lock(&q->lock);
        qcow2_l1_set(q, i, now);
        g_mutex_unlock(&q->lock);
    }
    return qcow2_commit(q);
}
