/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* L2 entries: 64 bits, or 128 with a bitmap of subclusters (specification: "Extended L2 Entries"). */
#include "base/bytes.h"
#include "disk/format/qcow2/qcow2.h"

Qcow2Entry qcow2_entry_get(const Qcow2 *q, const uint8_t *table, uint64_t index)
{
    const uint8_t *at = table + index * q->entry_size;
    Qcow2Entry entry = {.word = be64_get(at)};
    if (entry.word & QCOW2_COMPRESSED)
        return entry; /* a bitmap would mean nothing */
    if (q->subclusters > 1) {
        uint64_t bitmap = be64_get(at + 8);
        entry.alloc = (uint32_t)bitmap;
        entry.zero = (uint32_t)(bitmap >> 32);
        return entry;
    }
    entry.zero = entry.word & QCOW2_ZERO ? 1 : 0;
    entry.word &= ~QCOW2_ZERO;
    entry.alloc = !entry.zero && qcow2_entry_placed(q, &entry) ? 1 : 0;
    return entry;
}

void qcow2_entry_put(const Qcow2 *q, uint8_t *table, uint64_t index, Qcow2Entry entry)
{
    uint8_t *at = table + index * q->entry_size;
    if (q->subclusters > 1)
        be64_put(at + 8, (uint64_t)entry.zero << 32 | entry.alloc);
    else if (entry.zero)
        entry.word |= QCOW2_ZERO;
    be64_put(at, entry.word);
}

bool qcow2_entry_placed(const Qcow2 *q, const Qcow2Entry *entry)
{
    if (entry->word & QCOW2_COMPRESSED)
        return false;
    /* Of a data file, offset 0 may be in use: then the flag says so. */
    return (entry->word & QCOW2_OFFSET_MASK) || (q->external && (entry->word & QCOW2_COPIED));
}

bool qcow2_entry_owned(const Qcow2 *q, const Qcow2Entry *entry)
{
    return (entry->word & QCOW2_COPIED) && qcow2_entry_placed(q, entry);
}

bool qcow2_entry_bad(const Qcow2 *q, const Qcow2Entry *entry)
{
    if (entry->word & QCOW2_COMPRESSED)
        return q->external; /* its reader checks the extent */
    if ((entry->word & QCOW2_OFFSET_MASK) % q->cluster_size)
        return true;
    if (q->subclusters > 1)
        return (entry->alloc & entry->zero) || (entry->alloc && !qcow2_entry_placed(q, entry));
    return entry->zero && q->header.version < 3; /* the flag exists from version 3 on */
}

Qcow2Kind qcow2_entry_kind(const Qcow2Entry *entry, unsigned sub)
{
    if (entry->word & QCOW2_COMPRESSED)
        return QCOW2_PACKED;
    if (entry->zero >> sub & 1)
        return QCOW2_ZEROES;
    return entry->alloc >> sub & 1 ? QCOW2_DATA : QCOW2_NONE;
}

uint64_t qcow2_l2_index(const Qcow2 *q, uint64_t offset)
{
    return (offset >> q->cluster_bits) & ((1ull << q->l2_bits) - 1);
}

uint64_t qcow2_page_entries(const Qcow2 *q)
{
    return q->l2.page_size / q->entry_size;
}

int qcow2_l2_page(Qcow2 *q, uint64_t offset, Qcow2Page **page, uint64_t *index)
{
    g_mutex_lock(&q->lock);
    uint64_t table = q->l1[offset >> (q->cluster_bits + q->l2_bits)] & QCOW2_OFFSET_MASK;
    *index = qcow2_l2_index(q, offset) % qcow2_page_entries(q);
    int result =
        qcow2_cache_get(q, &q->l2, table + qcow2_l2_index(q, offset) * q->entry_size, page);
    if (result < 0)
        g_mutex_unlock(&q->lock);
    return result;
}
