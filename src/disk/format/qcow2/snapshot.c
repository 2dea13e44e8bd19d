/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The table of internal snapshots: read, written, searched. snapshot-ops.c uses it. */
#include "base/bytes.h"
#include "base/error.h"
#include "disk/format/qcow2/bitmaps.h"

#include <errno.h>
#include <string.h>

#define RECORD_FIXED 40u
#define EXTRA_KNOWN  24u
#define EXTRA_MAX    1024u
#define TABLE_MAX    MIB(64) /* ids and names are kept in memory */

void qcow2_snapshots_free(Qcow2 *q)
{
    for (uint32_t i = 0; q->snapshots && i < q->header.n_snapshots; i++) {
        g_free(q->snapshots[i].id);
        g_free(q->snapshots[i].name);
        g_free(q->snapshots[i].extra);
    }
    g_clear_pointer(&q->snapshots, g_free);
}

Qcow2Snapshot *qcow2_snapshot_find(const Qcow2 *q, const char *which)
{
    for (uint32_t i = 0; i < q->header.n_snapshots; i++) {
        if (!strcmp(q->snapshots[i].id, which))
            return &q->snapshots[i];
    }
    for (uint32_t i = 0; i < q->header.n_snapshots; i++) {
        if (!strcmp(q->snapshots[i].name, which))
            return &q->snapshots[i];
    }
    return NULL;
}

void qcow2_fixed_build(Qcow2 *q)
{
    g_array_set_size(q->fixed, 0);
    if (q->snapshots_bytes) {
        Qcow2Range table = {
            q->header.snapshots_offset,
            align_up(q->header.snapshots_offset + q->snapshots_bytes, q->cluster_size)};
        g_array_append_val(q->fixed, table);
    }
    for (uint32_t i = 0; i < q->header.n_snapshots; i++) {
        const Qcow2Snapshot *s = &q->snapshots[i];
        Qcow2Range l1 = {s->l1_offset,
                         align_up(s->l1_offset + (uint64_t)s->l1_entries * 8, q->cluster_size)};
        g_array_append_val(q->fixed, l1);
    }
    if (q->bitmaps_bytes) {
        Qcow2Range directory = {q->bitmaps_offset,
                                align_up(q->bitmaps_offset + q->bitmaps_bytes, q->cluster_size)};
        g_array_append_val(q->fixed, directory);
    }
    if (q->luks) {
        Qcow2Range header = {
            q->header.crypt_offset,
            align_up(q->header.crypt_offset + q->header.crypt_length, q->cluster_size)};
        g_array_append_val(q->fixed, header);
    }
    for (guint i = 0; q->bitmaps && i < q->bitmaps->len; i++) {
        const Qcow2Bitmap *b = g_ptr_array_index(q->bitmaps, i);
        Qcow2Range table = {b->table_offset,
                            align_up(b->table_offset + (uint64_t)b->entries * 8, q->cluster_size)};
        g_array_append_val(q->fixed, table);
    }
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

/* The parts of @extra that have a meaning; absent ones keep what the caller set. */
static void decode_extra(Qcow2Snapshot *s, const uint8_t *extra, uint32_t length)
{
    if (length >= 8)
        s->vm_state_size = be64_get(extra);
    if (length >= 16)
        s->disk_size = be64_get(extra + 8);
    if (length >= 24)
        s->icount = be64_get(extra + 16);
    s->extra_length = length > EXTRA_KNOWN ? length - EXTRA_KNOWN : 0;
    s->extra = g_memdup2(extra + EXTRA_KNOWN, s->extra_length);
}

/* One record at *at, which is moved past it. */
static bool load_one(Qcow2 *q, Qcow2Snapshot *s, uint64_t *at, uint64_t file_size, GError **err)
{
    uint8_t raw[RECORD_FIXED + EXTRA_MAX] = {0};
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
    s->disk_size = q->header.size;
    s->icount = UINT64_MAX;
    uint32_t extra = be32_get(raw + 36);
    if (extra > EXTRA_MAX)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "%s: a snapshot with %u bytes of extra data",
                          path, extra);
    decode_extra(s, raw + RECORD_FIXED, extra);
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
    if (count > QCOW2_SNAPSHOTS_MAX)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "Snapshot table too large");
    if (q->header.snapshots_offset % q->cluster_size != 0 ||
        q->header.snapshots_offset > INT64_MAX - (uint64_t)count * RECORD_FIXED)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "Snapshot table offset invalid");
    if (!range_within(q->header.snapshots_offset, (uint64_t)count * RECORD_FIXED, file_size))
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
    q->snapshots_bytes = at - q->header.snapshots_offset;
    qcow2_fixed_build(q);
    return true;
}

static size_t record_bytes(const Qcow2Snapshot *s)
{
    return align_up(RECORD_FIXED + EXTRA_KNOWN + s->extra_length + strlen(s->id) + strlen(s->name),
                    8);
}

/* @at: zeroed. */
static void put_record(uint8_t *at, const Qcow2Snapshot *s)
{
    size_t id = strlen(s->id), name = strlen(s->name);
    be64_put(at, s->l1_offset);
    be32_put(at + 8, s->l1_entries);
    be16_put(at + 12, (uint16_t)id);
    be16_put(at + 14, (uint16_t)name);
    be32_put(at + 16, (uint32_t)s->date_seconds);
    be32_put(at + 20, (uint32_t)s->date_ns);
    be64_put(at + 24, s->vm_clock_ns);
    be32_put(at + 32, s->vm_state_size > UINT32_MAX ? 0 : (uint32_t)s->vm_state_size);
    be32_put(at + 36, EXTRA_KNOWN + s->extra_length);
    be64_put(at + 40, s->vm_state_size);
    be64_put(at + 48, s->disk_size);
    be64_put(at + 56, s->icount);
    at += RECORD_FIXED + EXTRA_KNOWN;
    if (s->extra_length)
        memcpy(at, s->extra, s->extra_length);
    memcpy(at + s->extra_length, s->id, id);
    memcpy(at + s->extra_length + id, s->name, name);
}

int qcow2_snapshots_write(Qcow2 *q, const Qcow2Snapshot *list, uint32_t n, uint64_t *offset,
                          uint64_t *bytes)
{
    uint64_t total = 0;
    for (uint32_t i = 0; i < n; i++)
        total += record_bytes(&list[i]);
    *offset = 0;
    *bytes = total;
    if (total == 0)
        return 0;
    if (total > TABLE_MAX)
        return -EFBIG;
    g_autofree uint8_t *raw = g_try_malloc0(align_up(total, q->cluster_size));
    if (!raw)
        return -ENOMEM;
    uint8_t *at = raw;
    for (uint32_t i = 0; i < n; i++) {
        put_record(at, &list[i]);
        at += record_bytes(&list[i]);
    }
    return qcow2_write_new(q, raw, align_up(total, q->cluster_size), offset);
}
