/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Checking: every reference is counted anew from the tables, then compared with the refcounts.
 * The work is bounded by the size of the file: a table that is referred to often is walked once.
 */
#include "disk/format/qcow2/check.h"

#include "base/bytes.h"
#include "base/error.h"
#include "disk/format/qcow2/bitmaps.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>

#define CLUSTERS_MAX   (1u << 27) /* counted; 4 bytes of memory each */
#define BEYOND_MAX     (1u << 20) /* clusters past the end of the file that are still counted */
#define L1_TOTAL_MAX   (1u << 24) /* L1 entries of all snapshots together */
#define MESSAGES_MAX   10000u

void qcow2_check_say(Qcow2Check *c, const char *format, ...)
{
    if (!c->out->message || c->messages++ >= MESSAGES_MAX)
        return;
    va_list args;
    va_start(args, format);
    g_autofree char *text = g_strdup_vprintf(format, args);
    va_end(args);
    c->out->message(c->out->opaque, text);
}

void qcow2_check_at(Qcow2Check *c, const char *table, ...)
{
    va_list args;
    va_start(args, table);
    g_vsnprintf(c->table, sizeof(c->table), table, args);
    va_end(args);
    c->index = -1;
    c->guest = BLOCK_NO_OFFSET;
}

void qcow2_check_found(Qcow2Check *c, BlockFinding f, const char *format, ...)
{
    bool leak = f.severity == BLOCK_FINDING_LEAK;
    *(leak ? &c->out->leaks : &c->out->corruptions) += 1;
    if ((!c->out->message && !c->out->finding) || c->findings++ >= MESSAGES_MAX)
        return;
    va_list args;
    va_start(args, format);
    g_autofree char *text = g_strdup_vprintf(format, args);
    va_end(args);
    qcow2_check_say(c, "%s", text);
    if (!c->out->finding)
        return;
    f.table = c->table;
    f.index = c->index;
    f.guest = c->guest;
    f.cluster = f.host >> c->q->cluster_bits;
    f.fixing = f.mended_by != BLOCK_REPAIR_NONE && c->repair >= f.mended_by;
    c->out->finding(c->out->opaque, &f);
}

uint64_t qcow2_check_guest(const Qcow2 *q, uint64_t table, uint64_t index)
{
    return (table << q->l2_bits | index) << q->cluster_bits;
}

bool qcow2_check_spare(const Qcow2 *q, const Qcow2Entry *e)
{
    bool data = q->subclusters > 1 ? e->alloc != 0 : !e->zero;
    return !(e->word & QCOW2_COMPRESSED) && !data && e->word & QCOW2_OFFSET_MASK &&
           (e->word & QCOW2_OFFSET_MASK) % q->cluster_size;
}

/* Nothing repairs it; @lost: what that means. */
#define corrupt(c, fault, at, lost, ...)                                                           \
    qcow2_check_found(c,                                                                           \
                      (BlockFinding){.kind = fault, .severity = BLOCK_FINDING_CORRUPTION,          \
                                     .host = at, .repair = lost},                                  \
                      __VA_ARGS__)
/* "check -r all" does @deed. */
#define mendable(c, fault, at, deed, ...)                                                          \
    qcow2_check_found(c,                                                                           \
                      (BlockFinding){.kind = fault, .severity = BLOCK_FINDING_CORRUPTION,          \
                                     .host = at, .mended_by = BLOCK_REPAIR_ALL, .repair = deed},   \
                      __VA_ARGS__)

#define REBUILD "write a new refcount structure from the references that were counted"

/* Notes that something refers to [offset, offset + length), @times over. */
static void refer(Qcow2Check *c, uint64_t offset, uint64_t length, uint32_t times)
{
    Qcow2 *q = c->q;
    if (length == 0)
        return;
    uint64_t first = offset >> q->cluster_bits, last = (offset + length - 1) >> q->cluster_bits;
    if (offset + length < offset || last >= c->clusters) {
        corrupt(c, "reference outside the file", offset, "what it refers to is lost",
                "ERROR: counting reference for region exceeding the end of the file by one "
                "cluster or more: offset 0x%" G_GINT64_MODIFIER "x size 0x%" G_GINT64_MODIFIER "x",
                offset, length);
        return;
    }
    for (uint64_t i = first; i <= last; i++) {
        if (__builtin_add_overflow(c->counts[i], times, &c->counts[i]))
            c->counts[i] = UINT32_MAX;
    }
}

static void refer_refcounts(Qcow2Check *c)
{
    Qcow2 *q = c->q;
    qcow2_check_at(c, "header");
    refer(c, q->header.reftable_offset, q->header.reftable_clusters * q->cluster_size, 1);
    qcow2_check_at(c, "refcount table");
    for (uint64_t i = 0; i < q->reftable_entries; i++) {
        uint64_t offset = q->reftable[i] & QCOW2_OFFSET_MASK;
        c->index = (int64_t)i;
        if (offset == 0)
            continue;
        if (offset % q->cluster_size) {
            mendable(c, "refcount block not aligned", offset, REBUILD,
                     "ERROR refcount block %" G_GUINT64_FORMAT
                     " is not cluster aligned; refcount table entry corrupted", i);
            c->broken = true;
            continue;
        }
        if (offset >> q->cluster_bits >= c->clusters) {
            mendable(c, "refcount block outside the file", offset, REBUILD,
                     "%s refcount block %" G_GUINT64_FORMAT " is outside image",
                     c->repair == BLOCK_REPAIR_ALL ? "Repairing" : "ERROR", i);
            c->broken = true;
            continue;
        }
        refer(c, offset, q->cluster_size, 1);
        if (c->counts[offset >> q->cluster_bits] > 1) {
            mendable(c, "refcount block shares its cluster", offset, REBUILD,
                     "ERROR refcount block %" G_GUINT64_FORMAT " refcount=%u", i,
                     c->counts[offset >> q->cluster_bits]);
            c->broken = true;
        }
    }
}

/* Adds the L2 tables of one L1 table to the list of tables to walk, with their multiplicity. */
static void refer_l1(Qcow2Check *c, const uint64_t *l1, uint32_t entries, bool active)
{
    Qcow2 *q = c->q;
    for (uint32_t i = 0; i < entries; i++) {
        uint64_t offset = l1[i] & QCOW2_OFFSET_MASK;
        c->index = i;
        c->guest = qcow2_check_guest(q, i, 0);
        if (offset == 0)
            continue;
        if (offset % q->cluster_size) {
            corrupt(c, "L2 table not aligned", offset, "the part of the disk it described is lost",
                    "ERROR l2_offset=%" G_GINT64_MODIFIER
                    "x: Table is not cluster aligned; L1 entry corrupted", offset);
            continue;
        }
        refer(c, offset, q->cluster_size, 1); /* which complains of one outside the file */
        if (offset >> q->cluster_bits >= c->clusters)
            continue;
        uintptr_t times = (uintptr_t)g_hash_table_lookup(c->l2_tables, &offset);
        if (times) {
            g_hash_table_insert(c->l2_tables, g_memdup2(&offset, 8), (gpointer)(times + 1));
            if (active)
                corrupt(c, "L2 table used twice", offset, "one of the two parts of the disk is lost",
                        "ERROR L2 table at 0x%" G_GINT64_MODIFIER "x is used twice", offset);
            continue;
        }
        g_hash_table_insert(c->l2_tables, g_memdup2(&offset, 8), (gpointer)(uintptr_t)1);
    }
}

static bool refer_snapshots(Qcow2Check *c, GError **err)
{
    Qcow2 *q = c->q;
    uint64_t total = 0;
    for (guint i = 0; i < q->fixed->len; i++) {
        const Qcow2Range *range = &g_array_index(q->fixed, Qcow2Range, i);
        qcow2_check_at(c, "tables of snapshots and bitmaps");
        refer(c, range->start, range->end - range->start, 1);
    }
    for (uint32_t i = 0; i < q->header.n_snapshots; i++) {
        const Qcow2Snapshot *s = &q->snapshots[i];
        total += s->l1_entries;
        if (total > L1_TOTAL_MAX)
            return lodge_fail(err, LODGE_ERROR_LIMIT,
                              "%s: its snapshots have more than %u L1 entries", q->node->path,
                              L1_TOTAL_MAX);
        g_autofree uint64_t *l1 = g_try_new0(uint64_t, s->l1_entries + 1);
        int result = l1 ? block_file_read(q->file, s->l1_offset, l1, (size_t)s->l1_entries * 8)
                        : -ENOMEM;
        if (result < 0)
            return lodge_fail_errno(err, -result, "%s: cannot read the L1 table of snapshot \"%s\"",
                                    q->node->path, s->name);
        for (uint32_t k = 0; k < s->l1_entries; k++)
            l1[k] = be64_get(&l1[k]);
        qcow2_check_at(c, "snapshot '%s'", s->name);
        refer_l1(c, l1, s->l1_entries, false);
    }
    return true;
}

/* Directory and tables are among q->fixed. */
static void refer_bitmaps(Qcow2Check *c)
{
    const Qcow2 *q = c->q;
    for (guint i = 0; i < q->bitmaps->len; i++) {
        const Qcow2Bitmap *b = g_ptr_array_index(q->bitmaps, i);
        qcow2_check_at(c, "bitmap '%s'", b->name);
        for (uint32_t k = 0; k < b->entries; k++) {
            c->index = k;
            uint64_t offset = b->table[k] & QCOW2_OFFSET_MASK;
            if (offset)
                refer(c, offset, q->cluster_size, 1);
        }
    }
}

/* One L2 entry; @active: it counts for the statistics too. */
static void refer_entry(Qcow2Check *c, const Qcow2Entry *e, uint32_t times, bool active)
{
    Qcow2 *q = c->q;
    uint64_t entry = e->word;
    uint64_t offset = entry & QCOW2_OFFSET_MASK, length = q->cluster_size;
    if (entry & QCOW2_COMPRESSED) {
        if (entry & QCOW2_COPIED)
            corrupt(c, "compressed cluster with the copied flag", offset,
                    "its data can be read, so convert the image to a new one",
                    "ERROR: coffset=0x%" G_GINT64_MODIFIER
                    "x: copied flag must never be set for compressed clusters",
                    (uint64_t)(entry & ((1ull << (70 - q->cluster_bits)) - 1)));
        qcow2_packed_extent(q, entry, &offset, &length);
        c->out->allocated_clusters += active;
        c->out->compressed_clusters += active;
        c->out->fragmented_clusters += active;
    } else if (!qcow2_entry_placed(q, e)) {
        return;
    } else if (offset % q->cluster_size) {
        if (qcow2_check_spare(q, e))
            mendable(c, "preallocated cluster not aligned", offset,
                     "make the entry read as zeroes without a cluster",
                     "%s offset=%" G_GINT64_MODIFIER
                     "x: Preallocated cluster is not properly aligned; L2 entry corrupted.",
                     c->repair == BLOCK_REPAIR_ALL ? "Repairing" : "ERROR", offset);
        else
            corrupt(c, "data cluster not aligned", offset, "the data of this cluster is lost",
                    "ERROR offset=%" G_GINT64_MODIFIER
                    "x: Data cluster is not properly aligned; L2 entry corrupted.", offset);
        return;
    } else if (active) {
        c->out->allocated_clusters++;
        c->out->fragmented_clusters += c->next_offset && c->next_offset != offset;
        c->next_offset = offset + q->cluster_size;
    }
    if (e->zero && q->header.version < 3)
        corrupt(c, "zero flag in a version 2 image", offset, "amend the image to compat=1.1",
                "ERROR zero flag in a version 2 image: 0x%" G_GINT64_MODIFIER "x", entry);
    if (q->external && (entry & QCOW2_COMPRESSED))
        corrupt(c, "compressed cluster with a data file", offset,
                "the data of this cluster cannot be read",
                "ERROR compressed cluster %d with data file, entry=0x%" G_GINT64_MODIFIER "x",
                (int)c->index, entry);
    else if (!q->external)
        refer(c, offset, length, times);
}

/* @number: its L1 entry, when the disk as it is now has it (@active). */
static bool walk_l2(Qcow2Check *c, uint64_t table, uint32_t times, bool active, uint32_t number,
                    GError **err)
{
    Qcow2 *q = c->q;
    int result = block_file_read(q->file, table, c->buffer, q->cluster_size);
    if (result < 0)
        return lodge_fail_errno(err, -result, "%s: cannot read an L2 table", q->node->path);
    c->next_offset = 0; /* fragments are counted within a table, as qemu-img does */
    for (uint64_t i = 0; i < 1ull << q->l2_bits; i++) {
        Qcow2Entry entry = qcow2_entry_get(q, c->buffer, i);
        c->index = (int64_t)i;
        c->guest = active ? qcow2_check_guest(q, number, i) : BLOCK_NO_OFFSET;
        if (q->subclusters > 1 && qcow2_entry_bad(q, &entry) && (entry.alloc | entry.zero))
            corrupt(c, "subcluster bitmap invalid", entry.word & QCOW2_OFFSET_MASK,
                    "the data of this cluster is lost",
                    "ERROR offset=%" G_GINT64_MODIFIER
                    "x: Allocated cluster has corrupted subcluster allocation bitmap",
                    (uint64_t)(entry.word & QCOW2_OFFSET_MASK));
        refer_entry(c, &entry, times, active);
    }
    return true;
}

/* Every L2 table once: first those of the disk as it is now, then those of snapshots only. */
static bool walk_tables(Qcow2Check *c, GError **err)
{
    Qcow2 *q = c->q;
    GHashTableIter iter;
    gpointer key, value;
    for (uint32_t i = 0; i < q->header.l1_entries; i++) {
        uint64_t offset = q->l1[i] & QCOW2_OFFSET_MASK;
        uintptr_t times = (uintptr_t)g_hash_table_lookup(c->l2_tables, &offset);
        qcow2_check_at(c, "L2 table %u", i);
        if (times && !walk_l2(c, offset, (uint32_t)times, true, i, err))
            return false;
        g_hash_table_remove(c->l2_tables, &offset);
    }
    g_hash_table_iter_init(&iter, c->l2_tables);
    while (g_hash_table_iter_next(&iter, &key, &value)) {
        qcow2_check_at(c, "L2 table at 0x%" G_GINT64_MODIFIER "x of a snapshot", *(uint64_t *)key);
        if (!walk_l2(c, *(uint64_t *)key, (uint32_t)(uintptr_t)value, false, 0, err))
            return false;
    }
    return true;
}

static void compare_one(Qcow2Check *c, uint64_t cluster, uint64_t refcount)
{
    uint64_t references = cluster < c->clusters ? c->counts[cluster] : 0;
    if (refcount || references)
        c->end = MAX(c->end, cluster + 1);
    if (refcount == references)
        return;
    if (refcount > references) {
        qcow2_check_found(c,
                          (BlockFinding){.kind = "cluster leaked", .severity = BLOCK_FINDING_LEAK,
                                         .host = cluster << c->q->cluster_bits,
                                         .mended_by = BLOCK_REPAIR_LEAKS,
                                         .repair = "set the refcount to the references, which "
                                                   "gives back what nothing uses"},
                          "Leaked cluster %" G_GUINT64_FORMAT " refcount=%" G_GUINT64_FORMAT
                          " reference=%" G_GUINT64_FORMAT, cluster, refcount, references);
    } else {
        mendable(c, "refcount too low", cluster << c->q->cluster_bits,
                 refcount ? "set the refcount to the number of references" : REBUILD,
                 "ERROR cluster %" G_GUINT64_FORMAT " refcount=%" G_GUINT64_FORMAT
                 " reference=%" G_GUINT64_FORMAT, cluster, refcount, references);
        c->low++;
        c->rebuild |= refcount == 0;
    }
    if (c->fix && refcount != references) {
        Qcow2Fix fix = {cluster, references};
        if (c->fix->len < CLUSTERS_MAX / 16)
            g_array_append_val(c->fix, fix);
        else
            c->broken = true;
    }
}

static bool compare_refcounts(Qcow2Check *c, GError **err)
{
    Qcow2 *q = c->q;
    uint64_t per_block = 1ull << q->block_bits;
    uint64_t blocks = MAX(q->reftable_entries, (c->clusters + per_block - 1) / per_block);
    for (uint64_t b = 0; b < blocks; b++) {
        uint64_t offset = b < q->reftable_entries ? q->reftable[b] & QCOW2_OFFSET_MASK : 0;
        uint64_t first = b << q->block_bits;
        bool usable = offset && offset % q->cluster_size == 0 &&
                      offset >> q->cluster_bits < c->clusters &&
                      c->counts[offset >> q->cluster_bits] == 1;
        if (usable) {
            int result = block_file_read(q->file, offset, c->buffer, q->cluster_size);
            if (result < 0)
                return lodge_fail_errno(err, -result, "%s: cannot read a refcount block",
                                        q->node->path);
        }
        uint64_t end = usable ? per_block : MIN(per_block, c->clusters - MIN(first, c->clusters));
        if (end)
            qcow2_check_at(c, "refcount block %" G_GUINT64_FORMAT, b);
        for (uint64_t i = 0; i < end; i++) {
            c->index = (int64_t)i;
            uint64_t refcount = usable ? qcow2_refcount_decode(q, c->buffer, i) : 0;
            if (!usable && c->counts[first + i])
                c->broken = true; /* a cluster in use without a refcount block */
            compare_one(c, first + i, refcount);
        }
    }
    return true;
}

static bool count(Qcow2Check *c, GError **err)
{
    Qcow2 *q = c->q;
    qcow2_check_at(c, "header");
    refer(c, 0, q->cluster_size, 1);
    refer(c, q->header.l1_offset, (uint64_t)q->header.l1_entries * 8, 1);
    refer_refcounts(c);
    qcow2_check_at(c, "L1 table");
    refer_l1(c, q->l1, q->header.l1_entries, true);
    refer_bitmaps(c);
    return refer_snapshots(c, err) && walk_tables(c, err);
}

static bool prepare(Qcow2Check *c, GError **err)
{
    Qcow2 *q = c->q;
    uint64_t size;
    int result = q->file->ops->size(q->file, &size);
    if (result < 0)
        return lodge_fail_errno(err, -result, "%s: cannot find its size", q->node->path);
    uint64_t in_file = align_up(size, q->cluster_size) >> q->cluster_bits, covered = 0;
    for (uint64_t i = 0; i < q->reftable_entries; i++) {
        if (q->reftable[i] & QCOW2_OFFSET_MASK)
            covered = (i + 1) << q->block_bits;
    }
    c->clusters = MAX(in_file, MIN(covered, in_file + BEYOND_MAX));
    if (c->clusters > CLUSTERS_MAX)
        return lodge_fail(err, LODGE_ERROR_LIMIT,
                          "%s: a file of more than %u clusters cannot be checked", q->node->path,
                          CLUSTERS_MAX);
    c->counts = g_try_new0(uint32_t, c->clusters);
    c->buffer = g_try_malloc(q->cluster_size);
    c->l2_tables = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, NULL);
    return (c->counts && c->buffer) ||
           lodge_fail(err, LODGE_ERROR_LIMIT, "%s: no memory to check %" G_GUINT64_FORMAT " clusters",
                      q->node->path, c->clusters);
}

static void finish(Qcow2Check *c)
{
    g_clear_pointer(&c->counts, g_free);
    g_clear_pointer(&c->buffer, g_free);
    g_clear_pointer(&c->l2_tables, g_hash_table_unref);
    g_clear_pointer(&c->fix, g_array_unref);
}

/* Once over the image: counts, compares, and with @repair puts right what it found. */
static bool pass(Qcow2 *q, BlockCheck *out, BlockRepair repair, bool *changed, GError **err)
{
    Qcow2Check c = {.q = q, .out = out, .repair = repair};
    if (repair != BLOCK_REPAIR_NONE)
        c.fix = g_array_new(FALSE, FALSE, sizeof(Qcow2Fix));
    bool ok = prepare(&c, err) && count(&c, err) && compare_refcounts(&c, err) &&
              (repair != BLOCK_REPAIR_NONE || qcow2_check_copied(&c, err));
    out->image_end = c.end << q->cluster_bits;
    *changed = false;
    if (ok && repair != BLOCK_REPAIR_NONE)
        ok = qcow2_check_repair(&c, repair, changed, err);
    /* Leaks that are gone may have been all that was wrong with the flags. */
    if (ok && repair == BLOCK_REPAIR_LEAKS)
        ok = qcow2_check_copied(&c, err);
    finish(&c);
    return ok;
}

static void set_width(Qcow2 *q, unsigned order)
{
    q->header.refcount_order = order;
    q->refcount_bits = 1u << order;
    q->block_bits = q->cluster_bits + 3 - order;
}

bool qcow2_check_widen(Qcow2 *q, unsigned order, GError **err)
{
    BlockCheck ignored = {0};
    Qcow2Check c = {.q = q, .out = &ignored};
    unsigned before = q->header.refcount_order;
    uint64_t most = order < 6 ? (1ull << (1u << order)) - 1 : UINT64_MAX;
    bool ok = prepare(&c, err) && count(&c, err);
    if (ok && ignored.corruptions)
        ok = lodge_fail(err, LODGE_ERROR_CORRUPT,
                        "%s: the image has errors; repair it before its refcounts are changed",
                        q->node->path);
    for (uint64_t i = 0; i < c.clusters && ok; i++) {
        if (c.counts[i] > most)
            ok = lodge_fail(err, LODGE_ERROR_LIMIT,
                            "Cannot decrease refcount entry width to %u bits: Cluster at offset "
                            "0x%" G_GINT64_MODIFIER "x has a refcount of %u",
                            1u << order, i << q->cluster_bits, c.counts[i]);
    }
    if (ok) {
        set_width(q, order);
        int result = qcow2_check_rebuild(&c);
        if (result < 0) {
            set_width(q, before);
            qcow2_header_update(q); /* if it can be: the file may have either by now */
            ok = lodge_fail_errno(err, -result, "%s: cannot write refcounts of %u bits",
                                  q->node->path, 1u << order);
        }
    }
    finish(&c);
    return ok;
}

bool qcow2_check_locked(Qcow2 *q, BlockCheck *check, GError **err)
{
    bool changed = false;
    BlockRepair repair = check->repair;
    check->total_clusters = align_up(q->node->size, q->cluster_size) >> q->cluster_bits;
    if (!pass(q, check, repair, &changed, err))
        return false;
    if (repair == BLOCK_REPAIR_NONE)
        return true;
    if (changed) {
        /* What is still wrong after the repair is what counts. */
        BlockCheck after = {.repair = BLOCK_REPAIR_NONE};
        if (!pass(q, &after, BLOCK_REPAIR_NONE, &changed, err))
            return false;
        check->leaks_fixed = check->leaks > after.leaks ? check->leaks - after.leaks : 0;
        check->corruptions_fixed =
            check->corruptions > after.corruptions ? check->corruptions - after.corruptions : 0;
        check->leaks = after.leaks;
        check->corruptions = after.corruptions;
        check->image_end = after.image_end;
    }
    bool marked = q->header.incompatible & (QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT);
    if (marked && repair == BLOCK_REPAIR_ALL && check->corruptions == 0) {
        q->header.incompatible &= ~(QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT);
        q->corrupt = false;
        int result = qcow2_header_update(q);
        if (result < 0)
            return lodge_fail_errno(err, -result, "%s: cannot write the header", q->node->path);
    }
    return true;
}

bool qcow2_check(BlockNode *node, BlockCheck *check, GError **err)
{
    Qcow2 *q = node->state;
    if (check->repair != BLOCK_REPAIR_NONE && node->read_only)
        return lodge_fail(err, LODGE_ERROR_DENIED, "%s: the image is open read-only", node->path);
    g_mutex_lock(&q->meta);
    int result = node->read_only || q->corrupt ? 0 : qcow2_commit(q);
    if (result == 0 && !node->read_only && !q->corrupt)
        result = qcow2_commit(q);
    bool ok = result == 0 ? qcow2_check_locked(q, check, err)
                          : lodge_fail_errno(err, -result, "%s: cannot write its metadata",
                                             node->path);
    g_mutex_unlock(&q->meta);
    return ok;
}
