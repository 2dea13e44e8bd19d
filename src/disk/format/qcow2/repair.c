/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Putting an image right: refcounts to what was counted, copied flags to what that means. */
#include "base/bytes.h"
#include "base/error.h"
#include "disk/format/qcow2/check.h"

#include <errno.h>
#include <string.h>

static bool copied_wrong(Qcow2Check *c, uint64_t entry, bool fixing)
{
    uint64_t cluster = (entry & QCOW2_OFFSET_MASK) >> c->q->cluster_bits;
    if (cluster == 0 || cluster >= c->clusters || (entry & QCOW2_OFFSET_MASK) % c->q->cluster_size)
        return false;
    uint64_t refcount = 0;
    if (fixing)
        refcount = c->counts[cluster]; /* what it is going to be */
    else if (qcow2_refcount_get(c->q, cluster, &refcount) < 0)
        return false;
    return ((entry & QCOW2_COPIED) != 0) != (refcount == 1);
}

/* As qemu-img words it; @l1_index is -1 for an entry of an L2 table. */
static void complain(Qcow2Check *c, int64_t l1_index, uint64_t entry)
{
    uint64_t refcount = 0;
    const char *verb = c->repair == BLOCK_REPAIR_ALL ? "Repairing" : "ERROR";
    BlockFinding f = {.kind = "copied flag wrong", .severity = BLOCK_FINDING_CORRUPTION,
                      .host = entry & QCOW2_OFFSET_MASK, .mended_by = BLOCK_REPAIR_ALL,
                      .repair = "set the flag if the refcount is 1, else clear it"};
    qcow2_refcount_get(c->q, (entry & QCOW2_OFFSET_MASK) >> c->q->cluster_bits, &refcount);
    if (l1_index >= 0)
        qcow2_check_found(c, f, "%s OFLAG_COPIED L2 cluster: l1_index=%d l1_entry=%"
                          G_GINT64_MODIFIER "x refcount=%" G_GUINT64_FORMAT, verb, (int)l1_index,
                          entry, refcount);
    else
        qcow2_check_found(c, f, "%s OFLAG_COPIED data cluster: l2_entry=%" G_GINT64_MODIFIER
                          "x refcount=%" G_GUINT64_FORMAT, verb, entry, refcount);
}

/* A preallocated cluster at no cluster's start: its entry reads as zeroes without it from now. */
static bool drop_spare(Qcow2Check *c, uint64_t index)
{
    Qcow2 *q = c->q;
    Qcow2Entry entry = qcow2_entry_get(q, c->buffer, index);
    if (!qcow2_check_spare(q, &entry) || q->header.version < 3)
        return false;
    Qcow2Entry zero = {.word = 0, .zero = q->sub_all};
    qcow2_entry_put(q, c->buffer, index, zero);
    return true;
}

/* Flags and spare clusters in one L2 table; written back when @fixing and changed. */
static int check_l2(Qcow2Check *c, uint64_t table, uint32_t number, bool fixing)
{
    Qcow2 *q = c->q;
    bool changed = false;
    int result = block_file_read(q->file, table, c->buffer, q->cluster_size);
    for (uint64_t i = 0; i < 1ull << q->l2_bits && result == 0; i++) {
        uint8_t *at = c->buffer + i * q->entry_size;
        uint64_t entry = be64_get(at);
        c->index = (int64_t)i;
        c->guest = qcow2_check_guest(q, number, i);
        if (fixing && drop_spare(c, i)) {
            changed = true;
            continue;
        }
        if (q->external || (entry & QCOW2_COMPRESSED) || !copied_wrong(c, entry, fixing))
            continue;
        complain(c, -1, entry);
        be64_put(at, entry ^ QCOW2_COPIED);
        changed = true;
    }
    if (!fixing || !changed || result < 0)
        return result;
    g_mutex_lock(&q->lock);
    qcow2_cache_forget(q, &q->l2, table, q->cluster_size);
    g_mutex_unlock(&q->lock);
    return block_file_write(q->file, table, c->buffer, q->cluster_size);
}

static int walk_copied(Qcow2Check *c, bool fixing)
{
    Qcow2 *q = c->q;
    for (uint32_t i = 0; i < q->header.l1_entries; i++) {
        uint64_t entry = q->l1[i], table = entry & QCOW2_OFFSET_MASK;
        uint64_t cluster = table >> q->cluster_bits;
        if (table == 0 || table % q->cluster_size || cluster >= c->clusters)
            continue;
        if (copied_wrong(c, entry, fixing)) {
            qcow2_check_at(c, "L1 table");
            c->index = i;
            c->guest = qcow2_check_guest(q, i, 0);
            complain(c, i, entry);
            if (fixing) {
                uint8_t raw[8];
                q->l1[i] ^= QCOW2_COPIED;
                be64_put(raw, q->l1[i]);
                int result = block_file_write(q->file, q->header.l1_offset + i * 8ull, raw, 8);
                if (result < 0)
                    return result;
            }
        }
        /* A table used more than once here was complained about, and would take for ever. */
        if (c->counts[cluster] > 1 && q->header.n_snapshots == 0)
            continue;
        qcow2_check_at(c, "L2 table %u", i);
        int result = check_l2(c, table, i, fixing);
        if (result < 0)
            return result;
    }
    return 0;
}

bool qcow2_check_copied(Qcow2Check *c, GError **err)
{
    /* Unless closed properly, refcounts and so these flags may be out of date. */
    if (c->broken || (c->q->header.incompatible & QCOW2_INCOMPAT_DIRTY))
        return true;
    int result = walk_copied(c, false);
    return result == 0 || lodge_fail_errno(err, -result, "%s: cannot read its tables",
                                           c->q->node->path);
}

/* A new refcount structure behind everything in use: @blocks blocks, then the table. */
typedef struct Rebuild {
    uint64_t start, blocks, table_clusters, entries;
} Rebuild;

static bool plan_rebuild(const Qcow2Check *c, Rebuild *r)
{
    const Qcow2 *q = c->q;
    uint64_t per_block = 1ull << q->block_bits, per_table = q->cluster_size / 8;
    r->blocks = r->table_clusters = 1;
    uint64_t before;
    do {
        before = r->blocks + r->table_clusters;
        r->blocks = (r->start + before + per_block - 1) / per_block;
        r->table_clusters = (r->blocks + per_table - 1) / per_table;
    } while (before != r->blocks + r->table_clusters);
    r->entries = r->table_clusters * per_table;
    return r->entries * 8 <= QCOW2_REFTABLE_MAX;
}

static int write_rebuilt(Qcow2Check *c, const Rebuild *r, uint64_t *table)
{
    Qcow2 *q = c->q;
    uint64_t per_block = 1ull << q->block_bits, per_table = q->cluster_size / 8;
    uint64_t end = r->start + r->blocks + r->table_clusters;
    for (uint64_t b = 0; b < r->blocks; b++) {
        memset(c->buffer, 0, q->cluster_size);
        for (uint64_t i = 0; i < per_block && (b << q->block_bits) + i < end; i++) {
            uint64_t cluster = (b << q->block_bits) + i;
            uint64_t value = cluster < r->start ? c->counts[cluster] : 1;
            if (value > qcow2_refcount_max(q))
                return -E2BIG;
            qcow2_refcount_encode(q, c->buffer, i, value);
        }
        table[b] = (r->start + b) << q->cluster_bits;
        int result = block_file_write(q->file, table[b], c->buffer, q->cluster_size);
        if (result < 0)
            return result;
    }
    for (uint64_t t = 0; t < r->table_clusters; t++) {
        for (uint64_t i = 0; i < per_table; i++)
            be64_put(c->buffer + i * 8, table[t * per_table + i]);
        int result = block_file_write(q->file, (r->start + r->blocks + t) << q->cluster_bits,
                                      c->buffer, q->cluster_size);
        if (result < 0)
            return result;
    }
    return block_node_sync(q->node);
}

static void uncount(Qcow2Check *c, uint64_t cluster)
{
    if (cluster >= c->clusters || c->counts[cluster] == 0)
        return;
    c->counts[cluster]--;
    if (c->repair == BLOCK_REPAIR_ALL)
        qcow2_check_say(c, "Repairing cluster %" G_GUINT64_FORMAT " refcount=%u reference=%u",
                        cluster, c->counts[cluster] + 1, c->counts[cluster]);
}

/* Takes back what the old structure's own clusters were counted for. */
static void uncount_old(Qcow2Check *c)
{
    Qcow2 *q = c->q;
    uint64_t first = q->header.reftable_offset >> q->cluster_bits;
    for (uint64_t i = 0; i < q->header.reftable_clusters; i++) {
        uncount(c, first + i);
    }
    for (uint64_t i = 0; i < q->reftable_entries; i++) {
        uint64_t offset = q->reftable[i] & QCOW2_OFFSET_MASK, cluster = offset >> q->cluster_bits;
        if (offset && offset % q->cluster_size == 0)
            uncount(c, cluster);
    }
}

int qcow2_check_rebuild(Qcow2Check *c)
{
    Qcow2 *q = c->q;
    Rebuild r = {.start = c->clusters};
    /* Behind the old structure too, which is in use until the header is switched. */
    while (r.start > 1 && c->counts[r.start - 1] == 0)
        r.start--;
    if (c->repair == BLOCK_REPAIR_ALL)
        qcow2_check_say(c, "Rebuilding refcount structure");
    uncount_old(c);
    if (!plan_rebuild(c, &r))
        return -EFBIG;
    g_autofree uint64_t *table = g_try_new0(uint64_t, r.entries);
    if (!table)
        return -ENOMEM;
    int result = write_rebuilt(c, &r, table);
    if (result < 0)
        return result;
    uint64_t old_offset = q->header.reftable_offset;
    uint32_t old_clusters = q->header.reftable_clusters;
    q->header.reftable_offset = (r.start + r.blocks) << q->cluster_bits;
    q->header.reftable_clusters = (uint32_t)r.table_clusters;
    result = qcow2_header_update(q);
    if (result < 0) {
        q->header.reftable_offset = old_offset;
        q->header.reftable_clusters = old_clusters;
        return result;
    }
    g_mutex_lock(&q->lock);
    g_free(q->reftable);
    q->reftable = g_steal_pointer(&table);
    q->reftable_entries = r.entries;
    q->reftable_dirty_first = q->reftable_dirty_end = 0;
    q->free_hint = 0;
    uint64_t end = (r.start + r.blocks + r.table_clusters) << q->cluster_bits;
    q->high_water = MAX(q->high_water, end);
    qcow2_cache_clear(&q->refcounts);
    qcow2_cache_init(&q->refcounts, q->l2.page_size, QCOW2_CACHE_BYTES / 8);
    qcow2_tables_build(q);
    g_mutex_unlock(&q->lock);
    return 0;
}

static int adjust(Qcow2Check *c, BlockRepair repair)
{
    for (guint i = 0; i < c->fix->len; i++) {
        const Qcow2Fix *fix = &g_array_index(c->fix, Qcow2Fix, i);
        uint64_t now;
        int result = qcow2_refcount_get(c->q, fix->cluster, &now);
        if (result == 0 && (repair == BLOCK_REPAIR_ALL || now > fix->refcount)) {
            if (fix->refcount > qcow2_refcount_max(c->q))
                return -E2BIG;
            qcow2_check_say(c, "Repairing cluster %" G_GUINT64_FORMAT " refcount=%" G_GUINT64_FORMAT
                               " reference=%" G_GUINT64_FORMAT, fix->cluster, now, fix->refcount);
            result = qcow2_refcount_set(c->q, fix->cluster, fix->refcount);
        }
        if (result < 0)
            return result;
        int full = qcow2_commit_if_full(c->q);
        if (full < 0)
            return full;
    }
    return 0;
}

bool qcow2_check_repair(Qcow2Check *c, BlockRepair repair, bool *changed, GError **err)
{
    Qcow2 *q = c->q;
    bool was_corrupt = q->corrupt;
    int result = 0;
    uint64_t found = c->out->corruptions;
    if (repair == BLOCK_REPAIR_LEAKS && found == 0 && c->out->leaks == 0)
        return true;
    *changed = found || c->out->leaks;
    q->corrupt = false;
    /* Refcounts that cannot be trusted: which leak is none would be a guess. */
    if (repair == BLOCK_REPAIR_ALL && (c->broken || c->rebuild))
        result = qcow2_check_rebuild(c);
    else if (!c->broken)
        result = adjust(c, repair);
    if (result == 0)
        result = qcow2_commit(q);
    if (result == 0 && repair == BLOCK_REPAIR_ALL)
        result = walk_copied(c, true);
    *changed |= c->out->corruptions > found;
    if (result == 0)
        result = block_node_sync(q->node);
    q->corrupt = was_corrupt;
    return result == 0 || lodge_fail_errno(err, -result, "%s: cannot repair the image",
                                           q->node->path);
}
