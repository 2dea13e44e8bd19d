/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * QEMU's enhanced disks, over GrainMap: clusters reach the file before the tables that refer to
 * them, so that the image never needs a check and is never marked to need one. docs/format/qed.md
 */
#include "disk/format/qed/qed.h"

#include "base/bytes.h"
#include "base/error.h"
#include "disk/format/formats.h"
#include "disk/iov.h"

#include <errno.h>

static bool qed_probe(const uint8_t *head, size_t length)
{
    return length >= QED_HEADER_BYTES && !memcmp(head, "QED\0", 4);
}

bool qed_place_valid(const Qed *q, uint64_t offset, uint64_t length, uint64_t file_size)
{
    return offset % q->cluster == 0 && offset >= q->first &&
           range_within(offset, length, align_down(file_size, q->cluster));
}

static bool entry_decode(const GrainMap *m, const uint8_t *p, Grain *grain)
{
    const Qed *q = m->owner;
    uint64_t entry = le64_get(p);
    if (entry <= QED_ZERO) {
        *grain = (Grain){.kind = entry == QED_ZERO ? GRAIN_ZERO : GRAIN_NONE};
        return true;
    }
    *grain = (Grain){.kind = GRAIN_DATA, .offset = entry};
    return entry % q->cluster == 0 && entry >= q->first && entry <= m->file_max - q->cluster;
}

static void entry_encode(const GrainMap *m, uint8_t *p, const Grain *grain)
{
    le64_put(p, grain->kind == GRAIN_DATA   ? grain->offset
                : grain->kind == GRAIN_ZERO ? QED_ZERO
                                            : 0);
}

static bool table_decode(const GrainMap *m, const uint8_t *p, uint64_t *offset)
{
    const Qed *q = m->owner;
    *offset = le64_get(p);
    return *offset == 0 || (*offset % q->cluster == 0 && *offset >= q->first &&
                            *offset <= m->file_max - q->table_bytes);
}

static void table_encode(const GrainMap *m, uint8_t *p, uint64_t offset)
{
    le64_put(p, offset);
}

static const GrainOps grain_ops = {
    .decode = entry_decode,
    .encode = entry_encode,
    .table_decode = table_decode,
    .table_encode = table_encode,
};

int qed_write_header(Qed *q, const uint8_t *header)
{
    int result = block_node_sync(q->node);
    if (result == 0)
        result = block_file_write(q->node->file, 0, header, QED_HEADER_BYTES);
    if (result == 0)
        result = block_node_sync(q->node);
    if (result == 0)
        memcpy(q->header, header, QED_HEADER_BYTES);
    return result;
}

uint64_t qed_disk_max(uint64_t cluster, uint64_t table_bytes)
{
    uint64_t entries = table_bytes / 8, clusters = entries * entries, most;
    return mul_u64(clusters, cluster, &most) && most <= INT64_MAX ? most : INT64_MAX;
}

static bool power_of_two(uint64_t v)
{
    return v && !(v & (v - 1));
}

/* In QEMU's words. */
static bool check_header(Qed *q, uint64_t file_size, GError **err)
{
    const uint8_t *h = q->header;
    uint64_t unknown = le64_get(h + QED_FEATURES) & ~(uint64_t)QED_KNOWN_FEATURES;
    uint64_t table = le32_get(h + QED_TABLE_SIZE), header = le32_get(h + QED_HEADER_SIZE);
    uint64_t size = le64_get(h + QED_IMAGE_SIZE);
    q->cluster = le32_get(h + QED_CLUSTER_SIZE);
    if (memcmp(h, "QED\0", 4))
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "Image not in QED format");
    if (unknown)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "Unsupported QED features: %" G_GINT64_MODIFIER "x", unknown);
    if (!power_of_two(q->cluster) || q->cluster < QED_CLUSTER_MIN || q->cluster > QED_CLUSTER_MAX)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "QED cluster size is invalid");
    if (!power_of_two(table) || table > 16)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "QED table size is invalid");
    q->table_bytes = table * q->cluster;
    if (q->table_bytes > QED_TABLE_MAX)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "QED tables of %" G_GUINT64_FORMAT " bytes are not supported; at most "
                          "64 MiB are",
                          q->table_bytes);
    if (size % 512 || size > qed_disk_max(q->cluster, q->table_bytes))
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "QED image size is invalid");
    if (header > UINT32_MAX / q->cluster)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "QED header size is too large");
    q->first = header * q->cluster;
    if (header == 0 || !qed_place_valid(q, le64_get(h + QED_L1_TABLE), q->table_bytes, file_size))
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "QED table offset is invalid");
    q->node->size = size;
    return true;
}

static bool read_backing_name(Qed *q, GError **err)
{
    uint64_t features = le64_get(q->header + QED_FEATURES);
    uint32_t at = le32_get(q->header + QED_NAME_OFFSET), size = le32_get(q->header + QED_NAME_SIZE);
    if (!(features & QED_BACKED))
        return true;
    if (!range_within(at, size, q->first))
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "QED backing filename offset is invalid");
    if (size == 0 || size > QED_NAME_MAX)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "Failed to read backing filename");
    q->node->backing_path = g_malloc0(size + 1);
    int result = block_file_read(q->node->file, at, q->node->backing_path, size);
    if (result < 0)
        return lodge_fail_errno(err, -result, "Failed to read backing filename");
    if (features & QED_BACKING_RAW)
        q->node->backing_format = g_strdup("raw");
    return true;
}

/* What autoclear features we do not know are void once we have written: gone before that. */
static bool clear_autoclear(Qed *q, GError **err)
{
    uint8_t header[QED_HEADER_BYTES];
    if (le64_get(q->header + QED_AUTOCLEAR_FEATURES) == 0)
        return true;
    memcpy(header, q->header, sizeof(header));
    le64_put(header + QED_AUTOCLEAR_FEATURES, 0);
    int result = qed_write_header(q, header);
    return result == 0 || lodge_fail_errno(err, -result, "Failed to update header");
}

bool qed_start(BlockNode *node, GError **err)
{
    Qed *q = qed_of(node);
    q->map = (GrainMap){
        .node = node,
        .file = node->file,
        .ops = &grain_ops,
        .owner = q,
        .size = node->size,
        .grain = q->cluster,
        .entries = (uint32_t)(q->table_bytes / 8),
        .entry_bytes = 8,
        .table_entry_bytes = 8,
        .directory = le64_get(q->header + QED_L1_TABLE),
        .header = q->first,
        .alignment = q->cluster,
        .file_max = align_down(INT64_MAX, q->cluster),
        .zero_entries = true,
        .read_only = node->read_only,
    };
    return grains_init(&q->map, err);
}

static bool qed_open(BlockNode *node, const BlockOpen *options, GError **err)
{
    Qed *q = g_new0(Qed, 1);
    uint64_t file_size;
    node->state = q;
    q->node = node;
    int result = node->file->ops->size(node->file, &file_size);
    if (result == 0)
        result = block_file_read(node->file, 0, q->header, QED_HEADER_BYTES);
    if (result < 0)
        return lodge_fail_errno(err, -result, "Failed to read QED header");
    if (!check_header(q, file_size, err) || !read_backing_name(q, err) ||
        (!node->read_only && !clear_autoclear(q, err)))
        return false;
    q->checking = options->repair && !node->read_only;
    if (q->checking)
        return true;
    /* Written by somebody who was interrupted: tables may say what never came true. */
    if (!node->read_only && (le64_get(q->header + QED_FEATURES) & QED_NEED_CHECK)) {
        BlockCheck check = {.repair = BLOCK_REPAIR_ALL};
        if (!qed_check_tables(node, &check, err))
            return false;
        if (check.corruptions || check.errors)
            return lodge_fail(err, LODGE_ERROR_CORRUPT, "Image corrupted");
    }
    return qed_start(node, err);
}

static void qed_close(BlockNode *node)
{
    Qed *q = node->state;
    if (!q)
        return;
    if (!node->read_only && q->map.loaded)
        grains_flush(&q->map);
    grains_clear(&q->map);
    g_free(q);
    node->state = NULL;
}

static int qed_readv(BlockNode *node, uint64_t offset, const struct iovec *iov, int n)
{
    Qed *q = qed_of(node);
    return q->checking ? -EIO : grains_readv(&q->map, offset, iov, n, 0, block_iov_length(iov, n));
}

static int qed_writev(BlockNode *node, uint64_t offset, const struct iovec *iov, int n)
{
    Qed *q = qed_of(node);
    return q->checking ? -EIO : grains_writev(&q->map, offset, iov, n, 0, block_iov_length(iov, n));
}

static int qed_write_zeroes(BlockNode *node, uint64_t offset, uint64_t length, bool unmap)
{
    Qed *q = qed_of(node);
    return q->checking ? -EIO : grains_write_zeroes(&q->map, offset, length, unmap);
}

static int qed_discard(BlockNode *node, uint64_t offset, uint64_t length)
{
    Qed *q = qed_of(node);
    return q->checking ? -EIO : grains_discard(&q->map, offset, length);
}

static int qed_flush(BlockNode *node)
{
    Qed *q = qed_of(node);
    return q->checking ? block_node_sync(node) : grains_flush(&q->map);
}

static bool qed_flush_is_plain(BlockNode *node)
{
    Qed *q = qed_of(node);
    return q->checking || grains_flush_is_plain(&q->map);
}

static int qed_status(BlockNode *node, uint64_t offset, uint64_t length, BlockExtent *extent)
{
    Qed *q = qed_of(node);
    return q->checking ? -EIO : grains_status(&q->map, offset, length, extent);
}

static bool qed_fast_begin(BlockNode *node, bool write, uint64_t offset, uint64_t length,
                           BlockFast *fast)
{
    Qed *q = qed_of(node);
    return !q->checking && grains_fast_begin(&q->map, write, offset, length, fast);
}

static void qed_fast_end(BlockNode *node, BlockFast *fast)
{
}

static void qed_info(BlockNode *node, BlockInfo *info)
{
    const Qed *q = qed_of(node);
    info->cluster_size = q->cluster;
    info->dirty = le64_get(q->header + QED_FEATURES) & QED_NEED_CHECK;
}

static bool qed_check(BlockNode *node, BlockCheck *check, GError **err)
{
    Qed *q = qed_of(node);
    int result = q->checking || node->read_only ? 0 : grains_flush(&q->map);
    if (result < 0)
        return lodge_fail_errno(err, -result, "%s: cannot write its tables", node->path);
    if (check->repair != BLOCK_REPAIR_NONE && !q->checking)
        return lodge_fail(err, LODGE_ERROR_STATE, "%s: it is not open for repair", node->path);
    return qed_check_tables(node, check, err);
}

const BlockFormat block_format_qed = {
    .name = "qed",
    .probe = qed_probe,
    .open = qed_open,
    .close = qed_close,
    .readv = qed_readv,
    .writev = qed_writev,
    .write_zeroes = qed_write_zeroes,
    .discard = qed_discard,
    .flush = qed_flush,
    .status = qed_status,
    .fast_begin = qed_fast_begin,
    .fast_end = qed_fast_end,
    .flush_is_plain = qed_flush_is_plain,
    .create_options = qed_create_options,
    .create_check = qed_create_check,
    .create = qed_create,
    .info = qed_info,
    .check = qed_check,
    .resize = qed_resize,
    .set_backing = qed_set_backing,
};
