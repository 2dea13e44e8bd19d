/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Opening and closing a qcow2 image, and its row in the table of formats. docs/format/qcow2.md */
#include "disk/format/qcow2/qcow2.h"

#include "base/bytes.h"
#include "base/error.h"
#include "disk/format/qcow2/bitmaps.h"

#include <errno.h>

#define PAGE_BYTES 4096u /* a piece of a table that is read and written at once */

static bool load_table(Qcow2 *q, uint64_t offset, uint64_t entries, uint64_t file_size,
                       const char *what, uint64_t **table, GError **err)
{
    const char *path = q->node->path;
    if (offset % q->cluster_size != 0 || offset > INT64_MAX - entries * 8)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "%s offset invalid", what);
    if ((entries && offset == 0) || !range_within(offset, entries * 8, file_size))
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "%s: %s (%" G_GUINT64_FORMAT " entries at 0x%" G_GINT64_MODIFIER
                          "x) is not within the file",
                          path, what, entries, offset);
    *table = g_try_new0(uint64_t, entries + 1);
    if (!*table)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "%s: no memory for its %s", path, what);
    int result = entries ? block_file_read(q->file, offset, *table, entries * 8) : 0;
    if (result < 0)
        return lodge_fail_errno(err, -result, "%s: cannot read its %s", path, what);
    for (uint64_t i = 0; i < entries; i++)
        (*table)[i] = be64_get(&(*table)[i]);
    return true;
}

/* Entries of tables may only be whole clusters within the file. */
static bool check_table(const Qcow2 *q, const uint64_t *table, uint64_t entries, uint64_t file_size,
                        const char *what, GError **err)
{
    for (uint64_t i = 0; i < entries; i++) {
        uint64_t offset = table[i] & QCOW2_OFFSET_MASK;
        if (offset % q->cluster_size != 0 || offset > file_size)
            return lodge_fail(err, LODGE_ERROR_CORRUPT,
                              "%s: entry %" G_GUINT64_FORMAT
                              " of the %s points to 0x%" G_GINT64_MODIFIER
                              "x, which is not a cluster of the file",
                              q->node->path, i, what, offset);
    }
    return true;
}

static bool load_tables(Qcow2 *q, GError **err)
{
    const Qcow2Header *h = &q->header;
    uint64_t file_size;
    int result = q->file->ops->size(q->file, &file_size);
    if (result < 0)
        return lodge_fail_errno(err, -result, "%s: cannot find its size", q->node->path);
    q->high_water = q->file->block_device ? UINT64_MAX : align_up(file_size, q->cluster_size);

    uint64_t span = 1ull << (q->cluster_bits + q->l2_bits);
    if (h->size > INT64_MAX - span || (h->size + span - 1) / span > INT32_MAX / 8)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "Image is too big");
    if ((uint64_t)h->l1_entries * 8 > QCOW2_L1_MAX)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "Active L1 table too large");
    if ((h->size + span - 1) / span > h->l1_entries)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "L1 table is too small");
    uint64_t reftable_bytes = h->reftable_clusters * q->cluster_size;
    if (reftable_bytes == 0)
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "Image does not contain a reference count table");
    if (reftable_bytes > QCOW2_REFTABLE_MAX)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "Reference count table too large");
    q->reftable_entries = reftable_bytes / 8;
    return load_table(q, h->l1_offset, h->l1_entries, file_size, "Active L1 table", &q->l1, err) &&
           load_table(q, h->reftable_offset, q->reftable_entries, file_size,
                      "Reference count table", &q->reftable, err);
}

static bool check_tables(Qcow2 *q, GError **err)
{
    uint64_t file_size;
    int result = q->file->ops->size(q->file, &file_size);
    if (result < 0)
        return lodge_fail_errno(err, -result, "%s: cannot find its size", q->node->path);
    if (!check_table(q, q->l1, q->header.l1_entries, file_size, "L1 table", err) ||
        !check_table(q, q->reftable, q->reftable_entries, file_size, "refcount table", err))
        return false;
    if ((q->header.incompatible & QCOW2_INCOMPAT_CORRUPT))
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "%s: the image is marked corrupt; it can be opened read-only, or "
                          "repaired with \"lodge-img check -r all\"",
                          q->node->path);
    return true;
}

static Qcow2 *new_state(BlockNode *node)
{
    Qcow2 *q = g_new0(Qcow2, 1);
    q->node = node;
    q->file = node->file;
    q->tables = g_array_new(FALSE, FALSE, sizeof(uint64_t));
    q->fixed = g_array_new(FALSE, FALSE, sizeof(Qcow2Range));
    q->pending = g_array_new(FALSE, FALSE, sizeof(Qcow2Free));
    g_mutex_init(&q->meta);
    g_mutex_init(&q->lock);
    g_mutex_init(&q->packed_lock);
    g_rw_lock_init(&q->sectors);
    g_cond_init(&q->ranges.changed);
    return q;
}

static void free_state(Qcow2 *q)
{
    qcow2_cache_clear(&q->l2);
    qcow2_cache_clear(&q->refcounts);
    qcow2_snapshots_free(q);
    qcow2_data_close(q);
    qcow2_crypt_close(q);
    g_rw_lock_clear(&q->sectors);
    g_clear_pointer(&q->bitmaps, g_ptr_array_unref);
    g_array_unref(q->tables);
    g_array_unref(q->fixed);
    g_array_unref(q->pending);
    g_mutex_clear(&q->meta);
    g_mutex_clear(&q->lock);
    g_mutex_clear(&q->packed_lock);
    g_cond_clear(&q->ranges.changed);
    g_free(q->packed);
    g_free(q->l1);
    g_free(q->reftable);
    g_free(q);
}

static bool qcow2_open(BlockNode *node, const BlockOpen *options, GError **err)
{
    Qcow2 *q = new_state(node);
    node->state = q;
    if (!qcow2_header_read(node, &q->header, err)) {
        q->header.n_snapshots = 0;
        return false;
    }
    q->cluster_bits = q->header.cluster_bits;
    q->cluster_size = 1ull << q->cluster_bits;
    bool extended = q->header.incompatible & QCOW2_INCOMPAT_EXTENDED_L2;
    q->entry_size = extended ? 16 : 8;
    q->subclusters = extended ? 32 : 1;
    q->sub_bits = q->cluster_bits - (extended ? 5 : 0);
    q->sub_all = extended ? UINT32_MAX : 1;
    q->l2_bits = q->cluster_bits - (extended ? 4 : 3);
    q->refcount_bits = 1u << q->header.refcount_order;
    q->block_bits = q->cluster_bits + 3 - q->header.refcount_order;
    node->size = q->header.size;
    unsigned page = (unsigned)MIN(q->cluster_size, PAGE_BYTES);
    qcow2_cache_init(&q->l2, page, QCOW2_CACHE_BYTES);
    qcow2_cache_init(&q->refcounts, page, QCOW2_CACHE_BYTES / 8);
    if (!qcow2_runtime_check(q, options->options, err))
        return false;
    if (!qcow2_data_open(q, options, err) || !qcow2_crypt_open(q, options, err))
        return false;
    if (!qcow2_snapshots_load(q, err) || !load_tables(q, err) || !qcow2_bitmaps_load(q, err))
        return false;
    qcow2_fixed_build(q);
    q->repairing = options->repair;
    if (node->read_only || options->repair)
        return true;
    return check_tables(q, err);
}

/* A writer with lazy refcounts did not close the image: count them anew. */
static bool rebuild(Qcow2 *q, GError **err)
{
    BlockCheck check = {.repair = BLOCK_REPAIR_ALL};
    if (!qcow2_check(q->node, &check, err))
        return false;
    return check.corruptions == 0 ||
           lodge_fail(err, LODGE_ERROR_CORRUPT,
                      "%s: the image was not closed properly, and %" G_GUINT64_FORMAT
                      " errors in it could not be repaired",
                      q->node->path, check.corruptions);
}

static bool qcow2_activate(BlockNode *node, GError **err)
{
    Qcow2 *q = node->state;
    if (node->read_only)
        return true;
    qcow2_tables_build(q);
    if ((q->header.incompatible & QCOW2_INCOMPAT_DIRTY) && !q->repairing && !rebuild(q, err))
        return false;
    if (q->bitmaps->len) {
        int result = qcow2_bitmaps_mark(q);
        if (result < 0)
            return lodge_fail_errno(err, -result, "%s: cannot mark its bitmaps as in use",
                                    node->path);
    }
    q->active = true;
    /* What the other autoclear features describe is not kept up to date by our writes. */
    uint64_t kept =
        (q->external ? QCOW2_AUTOCLEAR_RAW : 0) | (q->n_bitmaps ? QCOW2_AUTOCLEAR_BITMAPS : 0);
    if (q->header.autoclear & ~kept) {
        q->header.autoclear &= kept;
        int result = qcow2_header_update(q);
        if (result < 0)
            return lodge_fail_errno(err, -result, "%s: cannot write the header", node->path);
    }
    return true;
}

static int qcow2_flush(BlockNode *node)
{
    Qcow2 *q = node->state;
    g_mutex_lock(&q->lock);
    bool uncommitted = q->uncommitted;
    g_mutex_unlock(&q->lock);
    if (!uncommitted)
        return qcow2_sync(q);
    g_mutex_lock(&q->meta);
    int result = qcow2_commit(q);
    g_mutex_unlock(&q->meta);
    return result;
}

static bool qcow2_flush_is_plain(BlockNode *node)
{
    Qcow2 *q = node->state;
    g_mutex_lock(&q->lock);
    bool plain = !q->uncommitted && !q->external;
    g_mutex_unlock(&q->lock);
    return plain;
}

static void qcow2_close(BlockNode *node)
{
    Qcow2 *q = node->state;
    if (!q)
        return;
    if (!node->read_only && q->l2.pages && q->l1 && q->reftable) {
        g_mutex_lock(&q->meta);
        /* Twice: the first sets clusters free, the second writes that down. */
        if (qcow2_commit(q) == 0 && q->active && node->bitmaps && qcow2_bitmaps_store(q) == 0)
            qcow2_commit(q);
        if (q->refcounts.dirty > 0)
            qcow2_commit(q);
        g_mutex_unlock(&q->meta);
    }
    free_state(q);
    node->state = NULL;
}

static int qcow2_status(BlockNode *node, uint64_t offset, uint64_t length, BlockExtent *extent)
{
    Qcow2 *q = node->state;
    Qcow2Map map;
    g_mutex_lock(&q->lock);
    int result = qcow2_map(q, offset, length, true, &map);
    g_mutex_unlock(&q->lock);
    if (result < 0)
        return result;
    *extent = (BlockExtent){
        .length = map.length,
        .present = map.kind != QCOW2_NONE,
        .data = map.kind == QCOW2_DATA || map.kind == QCOW2_PACKED,
        .zero = map.kind == QCOW2_ZEROES,
        .compressed = map.kind == QCOW2_PACKED,
        .has_offset = map.placed,
        .file_offset = map.host,
        .in_file = q->external ? q->data->path : NULL,
    };
    return 0;
}

static void qcow2_info(BlockNode *node, BlockInfo *info)
{
    const Qcow2 *q = node->state;
    info->cluster_size = q->cluster_size;
    info->dirty = (q->header.incompatible & QCOW2_INCOMPAT_DIRTY) != 0;
    info->specific_type = "qcow2";
    bool new = q->header.version >= 3;
    info->specific = json_pack("{s:s, s:s}", "compat", new ? "1.1" : "0.10", "compression-type",
                               q->header.compression == QCOW2_ZSTD ? "zstd" : "zlib");
    if (new)
        json_object_set_new(info->specific, "lazy-refcounts",
                            json_boolean(q->header.compatible & QCOW2_COMPAT_LAZY));
    json_object_set_new(info->specific, "refcount-bits", json_integer(q->refcount_bits));
    if (q->external) {
        if (q->header.data_file)
            json_object_set_new(info->specific, "data-file", json_string(q->header.data_file));
        json_object_set_new(info->specific, "data-file-raw", json_boolean(q->raw));
    }
    info->encrypted = q->encrypted;
    if (q->encrypted)
        json_object_set_new(info->specific, "encrypt", qcow2_crypt_info(q));
    if (new) {
        json_object_set_new(info->specific, "corrupt",
                            json_boolean(q->header.incompatible & QCOW2_INCOMPAT_CORRUPT));
        json_object_set_new(info->specific, "extended-l2", json_boolean(q->subclusters > 1));
    }
    if (q->bitmaps->len)
        json_object_set_new(info->specific, "bitmaps", qcow2_bitmaps_info(q));
    info->snapshots = g_new0(BlockSnapshotInfo, q->header.n_snapshots + 1);
    info->n_snapshots = q->header.n_snapshots;
    for (unsigned i = 0; i < info->n_snapshots; i++) {
        const Qcow2Snapshot *s = &q->snapshots[i];
        info->snapshots[i] = (BlockSnapshotInfo){
            .id = g_strdup(s->id),
            .name = g_strdup(s->name),
            .vm_state_size = s->vm_state_size,
            .date_seconds = s->date_seconds,
            .date_ns = s->date_ns,
            .vm_clock_ns = s->vm_clock_ns,
            .icount = s->icount,
            .has_icount = s->icount != UINT64_MAX,
        };
    }
}

static const BlockOption qcow2_open_options[] = {
    {"encrypt", BLOCK_OPTION_TREE, "format and key-secret of an encrypted image", NULL},
    {"data-file", BLOCK_OPTION_TREE, "the node that holds the guest's data", NULL},
    {"lazy-refcounts", BLOCK_OPTION_BOOL, "checked only", NULL},
    {"pass-discard-request", BLOCK_OPTION_BOOL, "checked only", NULL},
    {"pass-discard-snapshot", BLOCK_OPTION_BOOL, "checked only", NULL},
    {"pass-discard-other", BLOCK_OPTION_BOOL, "checked only", NULL},
    {"overlap-check", BLOCK_OPTION_TREE, "checked only: every overlap is looked for", NULL},
    {"cache-size", BLOCK_OPTION_SIZE, "checked only", NULL},
    {"l2-cache-size", BLOCK_OPTION_SIZE, "checked only", NULL},
    {"l2-cache-entry-size", BLOCK_OPTION_SIZE, "checked only", NULL},
    {"refcount-cache-size", BLOCK_OPTION_SIZE, "checked only", NULL},
    {"cache-clean-interval", BLOCK_OPTION_NUMBER, "checked only", NULL},
    {NULL, 0, NULL, NULL},
};

const BlockFormat block_format_qcow2 = {
    .name = "qcow2",
    .probe = qcow2_probe,
    .open = qcow2_open,
    .activate = qcow2_activate,
    .close = qcow2_close,
    .readv = qcow2_readv,
    .writev = qcow2_writev,
    .write_zeroes = qcow2_write_zeroes,
    .discard = qcow2_discard,
    .flush = qcow2_flush,
    .status = qcow2_status,
    .fast_begin = qcow2_fast_begin,
    .fast_end = qcow2_fast_end,
    .flush_is_plain = qcow2_flush_is_plain,
    .open_options = qcow2_open_options,
    .create_options = qcow2_create_options,
    .create_check = qcow2_create_check,
    .create = qcow2_create,
    .info = qcow2_info,
    .check = qcow2_check,
    .check_explains = true,
    .resize = qcow2_resize,
    .snapshots = &qcow2_snapshot_ops,
    .set_backing = qcow2_set_backing,
    .make_empty = qcow2_make_empty,
    .measure = qcow2_measure,
    .amend_options = qcow2_amend_table,
    .amend = qcow2_amend,
    .bitmap_can_store = qcow2_bitmap_can_store,
    .bitmap_remove = qcow2_bitmap_remove,
    .write_compressed = qcow2_write_compressed,
    .pack = qcow2_pack,
    .write_packed = qcow2_write_packed,
};
