/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Internal snapshots: made, gone back to, dropped, looked at. While refcounts and copied flags are
 * between two states the header says "dirty" (version 3), and the header is switched to another
 * table by one write: after a crash there are leaked clusters at worst, and the old or the new
 * state.
 */
#include "base/bytes.h"
#include "base/error.h"
#include "disk/format/qcow2/qcow2.h"
#include "disk/iov.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define WHOLE UINT64_MAX

/* Nobody else works on the image, and the file has everything. */
static int begin(Qcow2 *q, BlockRange *range)
{
    qcow2_hold(q, range, 0, WHOLE, true);
    g_mutex_lock(&q->meta);
    if (q->header.incompatible & QCOW2_INCOMPAT_DATA_FILE)
        return -ENOTSUP; /* the data have no refcounts */
    /* Twice: what the first sets free, the second writes down. */
    int result = qcow2_commit(q);
    return result < 0 ? result : qcow2_commit(q);
}

static void end(Qcow2 *q, BlockRange *range)
{
    g_mutex_unlock(&q->meta);
    qcow2_release(q, range);
}

/* The errno for a message: refcounts that are too narrow are an "Invalid argument" to qemu-img. */
static int shown(int result)
{
    return result == -E2BIG ? EINVAL : -result;
}

/* The last step: flags as the refcounts ask for, both in the file. */
static int settle(Qcow2 *q)
{
    int result = qcow2_commit(q);
    if (result == 0)
        result = qcow2_commit(q);
    if (result == 0)
        result = qcow2_tree_copied(q);
    return result < 0 ? result : qcow2_header_dirty(q, false);
}

static uint64_t disk_l1_entries(const Qcow2 *q, uint64_t size)
{
    uint64_t span = 1ull << (q->cluster_bits + q->l2_bits);
    return (size + span - 1) / span;
}

/* A copy of an L1 table in clusters of its own, all of it shared. */
static int copy_l1(Qcow2 *q, const uint64_t *l1, uint32_t entries, uint64_t *offset)
{
    uint64_t length = MAX(align_up((uint64_t)entries * 8, q->cluster_size), q->cluster_size);
    g_autofree uint8_t *raw = g_try_malloc0(length);
    if (!raw)
        return -ENOMEM;
    for (uint32_t i = 0; i < entries; i++)
        be64_put(raw + i * 8ull, l1[i] & ~QCOW2_COPIED);
    return qcow2_write_new(q, raw, length, offset);
}

static uint64_t l1_length(const Qcow2 *q, uint32_t entries)
{
    return MAX(align_up((uint64_t)entries * 8, q->cluster_size), q->cluster_size);
}

/* The header gets a table of @list; what it had goes. @list is taken over when that works. */
static int switch_table(Qcow2 *q, Qcow2Snapshot *list, uint32_t n, bool *unsure)
{
    Qcow2Header old = q->header;
    uint64_t offset, bytes, old_bytes = q->snapshots_bytes;
    int result = qcow2_snapshots_write(q, list, n, &offset, &bytes);
    *unsure = false;
    if (result == 0)
        result = qcow2_commit(q);
    if (result < 0)
        return result;
    q->header.snapshots_offset = offset;
    q->header.n_snapshots = n;
    result = qcow2_header_switch(q, &old, unsure);
    if (result < 0) {
        if (!*unsure)
            qcow2_refcount_add(q, offset, bytes, -1);
        return result;
    }
    g_mutex_lock(&q->lock);
    g_free(q->snapshots);
    q->snapshots = list;
    q->snapshots_bytes = bytes;
    qcow2_fixed_build(q);
    g_mutex_unlock(&q->lock);
    if (old_bytes)
        qcow2_free_later(q, old.snapshots_offset, old_bytes, true);
    return 0;
}

int qcow2_snapshots_rewrite(Qcow2 *q)
{
    bool unsure;
    uint32_t n = q->header.n_snapshots;
    Qcow2Snapshot *list = g_memdup2(q->snapshots, n * sizeof(*list));
    int result = switch_table(q, list, n, &unsure);
    if (result < 0)
        g_free(list);
    return result < 0 ? result : qcow2_commit(q);
}

static char *next_id(const Qcow2 *q)
{
    unsigned long highest = 0;
    for (uint32_t i = 0; i < q->header.n_snapshots; i++)
        highest = MAX(highest, strtoul(q->snapshots[i].id, NULL, 10));
    return g_strdup_printf("%lu", highest + 1);
}

/* The machine's state belongs to the snapshot now. Entries past the disk's end are dropped. */
static int drop_vmstate(Qcow2 *q)
{
    uint64_t first = disk_l1_entries(q, q->header.size);
    if (first >= q->header.l1_entries)
        return 0;
    uint32_t n = q->header.l1_entries - (uint32_t)first;
    g_autofree uint64_t *old = g_memdup2(q->l1 + first, (gsize)n * 8);
    g_mutex_lock(&q->lock);
    for (uint64_t i = first; i < q->header.l1_entries; i++) {
        if (q->l1[i])
            qcow2_l1_set(q, i, 0);
    }
    qcow2_tables_build(q);
    g_mutex_unlock(&q->lock);
    int result = qcow2_commit(q);
    return result < 0 ? result : qcow2_tree_free(q, old, n);
}

static int add_snapshot(Qcow2 *q, const Qcow2Snapshot *fresh, bool *unsure)
{
    uint32_t n = q->header.n_snapshots;
    Qcow2Snapshot *list = g_try_new(Qcow2Snapshot, n + 1);
    if (!list)
        return -ENOMEM;
    if (n)
        memcpy(list, q->snapshots, n * sizeof(*list));
    list[n] = *fresh;
    int result = switch_table(q, list, n + 1, unsure);
    if (result < 0)
        g_free(list);
    return result;
}

static int create(Qcow2 *q, Qcow2Snapshot *fresh)
{
    if (q->header.n_snapshots >= QCOW2_SNAPSHOTS_MAX)
        return -EFBIG;
    int result = copy_l1(q, q->l1, q->header.l1_entries, &fresh->l1_offset);
    if (result < 0)
        return result;
    fresh->l1_entries = q->header.l1_entries;
    result = qcow2_tree_refer(q, q->l1, q->header.l1_entries);
    if (result == 0)
        result = qcow2_commit(q); /* refcounts first */
    if (result == 0)
        result = qcow2_tree_copied(q); /* then nothing is overwritten in place */
    bool counted = result == 0, unsure = false;
    if (result == 0)
        result = add_snapshot(q, fresh, &unsure);
    if (result == 0)
        return fresh->vm_state_size ? drop_vmstate(q) : 0;
    if (unsure)
        return result;
    qcow2_refcount_add(q, fresh->l1_offset, l1_length(q, fresh->l1_entries), -1);
    if (counted)
        qcow2_tree_free(q, q->l1, q->header.l1_entries);
    return result;
}

static bool snapshot_create(BlockNode *node, const BlockSnapshotInfo *info, GError **err)
{
    Qcow2 *q = node->state;
    BlockRange range;
    Qcow2Snapshot fresh = {
        .name = g_strdup(info->name ? info->name : ""),
        .vm_state_size = info->vm_state_size,
        .date_seconds = info->date_seconds,
        .date_ns = info->date_ns,
        .vm_clock_ns = info->vm_clock_ns,
        .disk_size = node->size,
        .icount = info->has_icount ? info->icount : UINT64_MAX,
    };
    int result = begin(q, &range);
    fresh.id = info->id && info->id[0] ? g_strdup(info->id) : next_id(q);
    if (strlen(fresh.name) > UINT16_MAX || strlen(fresh.id) > UINT16_MAX)
        result = -ENAMETOOLONG;
    if (result == 0)
        result = qcow2_header_dirty(q, true);
    bool made = false;
    if (result == 0) {
        uint32_t before = q->header.n_snapshots;
        result = create(q, &fresh);
        made = q->header.n_snapshots > before;
        int settled = settle(q);
        result = result < 0 ? result : settled;
    }
    end(q, &range);
    if (!made) {
        g_free(fresh.id);
        g_free(fresh.name);
    }
    return result == 0 || lodge_fail(err, LODGE_ERROR_IO, "-%d (%s)", shown(result),
                                     g_strerror(shown(result)));
}

/* @s's L1 table, with room for @entries at least; NULL with *result. */
static uint64_t *read_l1(Qcow2 *q, const Qcow2Snapshot *s, uint32_t entries, int *result)
{
    uint64_t *l1 = g_try_new0(uint64_t, (gsize)MAX(entries, s->l1_entries) + 1);
    *result = l1 ? 0 : -ENOMEM;
    if (l1 && s->l1_entries)
        *result = block_file_read(q->file, s->l1_offset, l1, (size_t)s->l1_entries * 8);
    for (uint32_t i = 0; i < s->l1_entries && *result == 0; i++)
        l1[i] = be64_get(&l1[i]);
    if (*result < 0)
        g_clear_pointer(&l1, g_free);
    return l1;
}

/* The disk is what @l1 leads to, in a table of its own at @offset. What it was before is freed. */
static int switch_disk(Qcow2 *q, uint64_t **l1, uint32_t entries, uint64_t offset, uint64_t size,
                       bool *unsure)
{
    Qcow2Header old = q->header;
    q->header.l1_offset = offset;
    q->header.l1_entries = entries;
    q->header.size = size;
    int result = qcow2_header_switch(q, &old, unsure);
    if (result < 0)
        return result;
    g_autofree uint64_t *before = q->l1;
    g_mutex_lock(&q->lock);
    q->l1 = g_steal_pointer(l1);
    q->l1_dirty_first = q->l1_dirty_end = 0;
    q->node->size = size;
    qcow2_tables_build(q);
    g_mutex_unlock(&q->lock);
    qcow2_packed_forget(q);
    qcow2_free_later(q, old.l1_offset, l1_length(q, old.l1_entries), true);
    return qcow2_tree_free(q, before, old.l1_entries);
}

static int apply(Qcow2 *q, const Qcow2Snapshot *s)
{
    int result;
    uint64_t needed = MAX(disk_l1_entries(q, s->disk_size), s->l1_entries), offset;
    if (needed > QCOW2_L1_MAX / 8 || s->disk_size > INT64_MAX)
        return -EFBIG;
    uint32_t entries = MAX((uint32_t)needed, 1);
    g_autofree uint64_t *l1 = read_l1(q, s, entries, &result);
    if (result < 0)
        return result;
    for (uint32_t i = 0; i < entries; i++)
        l1[i] &= ~QCOW2_COPIED;
    result = copy_l1(q, l1, entries, &offset);
    if (result < 0)
        return result;
    result = qcow2_tree_refer(q, l1, s->l1_entries);
    bool counted = result == 0, unsure = false;
    if (result == 0)
        result = qcow2_commit(q);
    if (result == 0)
        result = switch_disk(q, &l1, entries, offset, s->disk_size, &unsure);
    if (result == 0 || !l1 || unsure)
        return result;
    qcow2_refcount_add(q, offset, l1_length(q, entries), -1);
    if (counted)
        qcow2_tree_free(q, l1, s->l1_entries);
    return result;
}

static bool snapshot_apply(BlockNode *node, const char *which, GError **err)
{
    Qcow2 *q = node->state;
    BlockRange range;
    if (node->bitmaps && node->bitmaps->len)
        return lodge_fail(err, LODGE_ERROR_BUSY, "Device has active dirty bitmaps");
    int result = begin(q, &range);
    const Qcow2Snapshot *s = qcow2_snapshot_find(q, which);
    if (result == 0 && !s)
        result = -ENOENT;
    if (result == 0)
        result = qcow2_header_dirty(q, true);
    if (result == 0) {
        result = apply(q, s);
        int settled = settle(q);
        result = result < 0 ? result : settled;
    }
    end(q, &range);
    return result == 0 || lodge_fail_errno(err, shown(result), "Failed to load snapshot");
}

static int remove_one(Qcow2 *q, uint32_t index)
{
    int result;
    bool unsure;
    uint32_t n = q->header.n_snapshots;
    Qcow2Snapshot gone = q->snapshots[index];
    g_autofree uint64_t *l1 = read_l1(q, &gone, 0, &result);
    if (result < 0)
        return result;
    Qcow2Snapshot *list = g_try_new0(Qcow2Snapshot, n);
    if (!list)
        return -ENOMEM;
    memcpy(list, q->snapshots, index * sizeof(*list));
    memcpy(list + index, q->snapshots + index + 1, (n - index - 1) * sizeof(*list));
    result = switch_table(q, list, n - 1, &unsure);
    if (result < 0) {
        g_free(list);
        return result;
    }
    g_free(gone.id);
    g_free(gone.name);
    g_free(gone.extra);
    qcow2_free_later(q, gone.l1_offset, l1_length(q, gone.l1_entries), true);
    return qcow2_tree_free(q, l1, gone.l1_entries);
}

static bool snapshot_remove(BlockNode *node, const char *which, GError **err)
{
    Qcow2 *q = node->state;
    BlockRange range;
    int result = begin(q, &range);
    const Qcow2Snapshot *s = qcow2_snapshot_find(q, which);
    bool found = s != NULL;
    if (result == 0 && found)
        result = qcow2_header_dirty(q, true);
    if (result == 0 && found) {
        result = remove_one(q, (uint32_t)(s - q->snapshots));
        int settled = settle(q);
        result = result < 0 ? result : settled;
    }
    end(q, &range);
    if (result == 0 && !found)
        return lodge_fail(err, LODGE_ERROR_NOT_FOUND, "Can't find the snapshot");
    return result == 0 ||
           lodge_fail_errno(err, -result, "Failed to remove snapshot from snapshot list");
}

static bool snapshot_view(BlockNode *node, const char *which, GError **err)
{
    Qcow2 *q = node->state;
    int result;
    const Qcow2Snapshot *s = qcow2_snapshot_find(q, which);
    if (!s)
        return lodge_fail(err, LODGE_ERROR_NOT_FOUND, "Can't find snapshot");
    if (!node->read_only)
        return lodge_fail(err, LODGE_ERROR_STATE, "Device is not readonly");
    uint64_t needed = disk_l1_entries(q, s->disk_size);
    if (needed > QCOW2_L1_MAX / 8)
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "%s: snapshot \"%s\" has a disk of %" G_GUINT64_FORMAT " bytes",
                          node->path, s->name, s->disk_size);
    uint64_t *l1 = read_l1(q, s, (uint32_t)needed, &result);
    if (!l1)
        return lodge_fail(err, LODGE_ERROR_IO, "Failed to read l1 table for snapshot");
    g_mutex_lock(&q->lock);
    g_free(q->l1);
    q->l1 = l1;
    q->header.l1_entries = MAX((uint32_t)needed, s->l1_entries);
    q->header.size = node->size = s->disk_size;
    g_mutex_unlock(&q->lock);
    qcow2_packed_forget(q);
    return true;
}

/* Where the machine's state begins: behind the last L2 table of the disk. */
static uint64_t vmstate_start(const Qcow2 *q)
{
    return disk_l1_entries(q, q->header.size) << (q->cluster_bits + q->l2_bits);
}

static bool vmstate_range(const Qcow2 *q, uint64_t offset, uint64_t length, uint64_t *end_entry)
{
    uint64_t most = (uint64_t)(QCOW2_L1_MAX / 8) << (q->cluster_bits + q->l2_bits);
    uint64_t start = vmstate_start(q);
    if (start > most || !range_within(offset, length, most - start))
        return false;
    *end_entry = disk_l1_entries(q, start + offset + length);
    return true;
}

static int vmstate_readv(BlockNode *node, uint64_t offset, const struct iovec *iov, int n)
{
    Qcow2 *q = node->state;
    uint64_t end_entry;
    if (!vmstate_range(q, offset, block_iov_length(iov, n), &end_entry) ||
        end_entry > q->header.l1_entries)
        return -EINVAL;
    return qcow2_readv(node, vmstate_start(q) + offset, iov, n);
}

static int vmstate_writev(BlockNode *node, uint64_t offset, const struct iovec *iov, int n)
{
    Qcow2 *q = node->state;
    uint64_t end_entry;
    if (!vmstate_range(q, offset, block_iov_length(iov, n), &end_entry))
        return -EFBIG;
    int result = 0;
    g_mutex_lock(&q->meta);
    if (end_entry > q->header.l1_entries) {
        result = qcow2_grow_l1(q, (uint32_t)end_entry);
        if (result == 0)
            result = qcow2_header_update(q);
        if (result == 0)
            result = qcow2_commit(q);
    }
    g_mutex_unlock(&q->meta);
    return result < 0 ? result : qcow2_writev(node, vmstate_start(q) + offset, iov, n);
}

const BlockSnapshotOps qcow2_snapshot_ops = {
    .create = snapshot_create,
    .apply = snapshot_apply,
    .remove = snapshot_remove,
    .view = snapshot_view,
    .vmstate_readv = vmstate_readv,
    .vmstate_writev = vmstate_writev,
};
