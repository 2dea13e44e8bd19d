/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The table of internal snapshots: read, so that what they use is known and kept. */
#include "base/bytes.h"
#include "base/error.h"
#include "disk/format/qcow2/qcow2.h"

#include <string.h>

#define RECORD_FIXED 40u
#define EXTRA_MAX    1024u
#define TABLE_MAX    MIB(64) /* ids and names are kept in memory */

void qcow2_snapshots_free(Qcow2 *q)
{
    for (uint32_t i = 0; q->snapshots && i < q->header.n_snapshots; i++) {
        g_free(q->snapshots[i].id);
        g_free(q->snapshots[i].name);
    }
    g_clear_pointer(&q->snapshots, g_free);
}

static char *read_text(Qcow2 *q, uint64_t at, uint16_t length, GError **err)
{
    g_autofree char *text = g_malloc0(length + 1u);
    int result = block_file_read(q->file, at, text, length);
    if (result < 0) {
        lodge_fail_errno(err, -result, "%s: cannot read the snapshot table", q->node->path);
        return NULL;
    }
    return g_utf8_make_valid(text, -1);
}

/* One record at *at, which is moved past it. */
static bool load_one(Qcow2 *q, Qcow2Snapshot *s, uint64_t *at, uint64_t file_size, GError **err)
{
    uint8_t raw[RECORD_FIXED + 16] = {0};
    const char *path = q->node->path;
    if (!range_within(*at, RECORD_FIXED, file_size))
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "%s: the snapshot table goes past the end of the file", path);
    int result = block_file_read(q->file, *at, raw, sizeof(raw));
    if (result < 0)
        return lodge_fail_errno(err, -result, "%s: cannot read the snapshot table", path);
    s->l1_offset = be64_get(raw);
    s->l1_entries = be32_get(raw + 8);
    uint16_t id_length = be16_get(raw + 12), name_length = be16_get(raw + 14);
    s->date_seconds = be32_get(raw + 16);
    s->date_ns = be32_get(raw + 20);
    s->vm_clock_ns = be64_get(raw + 24);
    s->vm_state_size = be32_get(raw + 32);
    uint32_t extra = be32_get(raw + 36);
    if (extra > EXTRA_MAX)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "%s: a snapshot with %u bytes of extra data",
                          path, extra);
    if (extra >= 8)
        s->vm_state_size = be64_get(raw + RECORD_FIXED);
    uint64_t id_at = *at + RECORD_FIXED + extra;
    uint64_t end = id_at + id_length + name_length;
    if (end > file_size)
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "%s: the snapshot table goes past the end of the file", path);
    s->id = read_text(q, id_at, id_length, err);
    if (!s->id)
        return false;
    s->name = read_text(q, id_at + id_length, name_length, err);
    if (!s->name)
        return false;
    if ((uint64_t)s->l1_entries * 8 > QCOW2_L1_MAX || s->l1_offset % q->cluster_size != 0 ||
        !range_within(s->l1_offset, (uint64_t)s->l1_entries * 8, file_size))
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "%s: the L1 table of snapshot \"%s\" is not within the file", path,
                          s->name);
    *at = align_up(end, 8);
    return true;
}

bool qcow2_snapshots_load(Qcow2 *q, GError **err)
{
    uint64_t file_size;
    uint32_t count = q->header.n_snapshots;
    q->header.n_snapshots = 0; /* counts up, so that a failure frees what is there */
    if (count == 0)
        return true;
    int result = q->file->ops->size(q->file, &file_size);
    if (result < 0)
        return lodge_fail_errno(err, -result, "%s: cannot find its size", q->node->path);
    if (count > QCOW2_SNAPSHOTS_MAX || q->header.snapshots_offset % q->cluster_size != 0 ||
        !range_within(q->header.snapshots_offset, (uint64_t)count * RECORD_FIXED, file_size))
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "%s: the table of %u snapshots is not within the file", q->node->path,
                          count);
    q->snapshots = g_try_new0(Qcow2Snapshot, count);
    if (!q->snapshots)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "%s: no memory for %u snapshots", q->node->path,
                          count);
    uint64_t at = q->header.snapshots_offset;
    for (uint32_t i = 0; i < count; i++) {
        q->header.n_snapshots = i + 1;
        if (!load_one(q, &q->snapshots[i], &at, file_size, err))
            return false;
        if (at - q->header.snapshots_offset > TABLE_MAX)
            return lodge_fail(err, LODGE_ERROR_LIMIT,
                              "%s: the snapshot table is longer than 64 MiB", q->node->path);
    }
    Qcow2Range table = {q->header.snapshots_offset, align_up(at, q->cluster_size)};
    g_array_append_val(q->fixed, table);
    for (uint32_t i = 0; i < count; i++) {
        const Qcow2Snapshot *s = &q->snapshots[i];
        Qcow2Range l1 = {s->l1_offset,
                         align_up(s->l1_offset + (uint64_t)s->l1_entries * 8, q->cluster_size)};
        g_array_append_val(q->fixed, l1);
    }
    return true;
}
