/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* New qed images, their size, and what they are based on. */
#include "base/bytes.h"
#include "base/error.h"
#include "disk/format/qed/qed.h"

#include <errno.h>

#define DEFAULT_TABLE_SIZE 4u

const BlockOption qed_create_options[] = {
    {"size", BLOCK_OPTION_SIZE, "Virtual disk size", NULL},
    {"backing_file", BLOCK_OPTION_STRING, "File name of a base image", NULL},
    {"backing_fmt", BLOCK_OPTION_STRING, "Image format of the base image", NULL},
    {"cluster_size", BLOCK_OPTION_SIZE, "Cluster size (in bytes)", "65536"},
    {"table_size", BLOCK_OPTION_SIZE, "L1/L2 table size (in clusters)", NULL},
    {NULL, 0, NULL, NULL},
};

typedef struct Plan {
    uint64_t cluster, table;
} Plan;

static bool make_plan(const BlockCreate *c, Plan *p, GError **err)
{
    *p = (Plan){.table = DEFAULT_TABLE_SIZE};
    if (!block_option_size(c->options, qed_create_options, "cluster_size", &p->cluster, err) ||
        !block_option_size(c->options, qed_create_options, "table_size", &p->table, err))
        return false;
    if (p->cluster < QED_CLUSTER_MIN || p->cluster > QED_CLUSTER_MAX ||
        (p->cluster & (p->cluster - 1)))
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "QED cluster size must be within range [%u, %u] and power of 2",
                          (unsigned)QED_CLUSTER_MIN, (unsigned)QED_CLUSTER_MAX);
    if (p->table < 1 || p->table > 16 || (p->table & (p->table - 1)))
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "QED table size must be within range [1, 16] and power of 2");
    if (p->table * p->cluster > QED_TABLE_MAX)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "QED tables of %" G_GUINT64_FORMAT " bytes are not supported; at most 64 "
                          "MiB are: give a smaller table_size or cluster_size",
                          p->table * p->cluster);
    if (c->size % 512 || c->size > qed_disk_max(p->cluster, p->table * p->cluster))
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "QED image size must be a non-zero multiple of cluster size and less "
                          "than %" G_GUINT64_FORMAT " bytes",
                          qed_disk_max(p->cluster, p->table * p->cluster));
    return true;
}

bool qed_create_check(const BlockCreate *c, GError **err)
{
    Plan p;
    if (c->backing && strlen(c->backing) > QED_NAME_MAX)
        return lodge_fail(err, LODGE_ERROR_LIMIT,
                          "a backing file name of %zu bytes; at most %u are possible in qed images",
                          strlen(c->backing), QED_NAME_MAX);
    return make_plan(c, &p, err);
}

/* The backing file's name goes right behind the header's fields. */
static void put_backing(uint8_t *header, const char *path, const char *format)
{
    uint64_t features = le64_get(header + QED_FEATURES) & ~(uint64_t)(QED_BACKED | QED_BACKING_RAW);
    if (path)
        features |= QED_BACKED;
    if (path && format && !strcmp(format, "raw"))
        features |= QED_BACKING_RAW;
    le64_put(header + QED_FEATURES, features);
    le32_put(header + QED_NAME_OFFSET, path ? QED_HEADER_BYTES : 0);
    le32_put(header + QED_NAME_SIZE, path ? (uint32_t)strlen(path) : 0);
}

bool qed_create(BlockFile *file, const BlockCreate *c, GError **err)
{
    Plan p;
    uint8_t header[QED_HEADER_BYTES + QED_NAME_MAX + 1] = "QED";
    if (!make_plan(c, &p, err))
        return false;
    if (file->block_device)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "%s: a qed image cannot be on a block device: its length says what is in "
                          "use",
                          c->path);
    le32_put(header + QED_CLUSTER_SIZE, (uint32_t)p.cluster);
    le32_put(header + QED_TABLE_SIZE, (uint32_t)p.table);
    le32_put(header + QED_HEADER_SIZE, 1);
    le64_put(header + QED_L1_TABLE, p.cluster);
    le64_put(header + QED_IMAGE_SIZE, c->size);
    put_backing(header, c->backing, c->backing_format);
    if (c->backing)
        memcpy(header + QED_HEADER_BYTES, c->backing, strlen(c->backing));
    int result = file->ops->truncate(file, p.cluster * (1 + p.table));
    if (result == 0)
        result = block_file_write(file, 0, header,
                                  QED_HEADER_BYTES + (c->backing ? strlen(c->backing) : 0));
    return result == 0 || lodge_fail_errno(err, -result, "%s: cannot write the image", c->path);
}

/* What the backing image has beyond the old end must not come up in the new disk. */
static int hide_backing(Qed *q, uint64_t from)
{
    uint64_t to = q->node->backing ? MIN(block_size(q->node->backing), q->node->size) : 0;
    int result = to > from ? grains_write_zeroes(&q->map, from, to - from, false) : 0;
    return result == 0 ? grains_flush(&q->map) : result;
}

bool qed_resize(BlockNode *node, const BlockResize *resize, GError **err)
{
    Qed *q = qed_of(node);
    uint8_t header[QED_HEADER_BYTES];
    uint64_t old = node->size;
    if (resize->preallocation != BLOCK_PREALLOCATE_OFF) {
        static const char *const names[] = {"off", "metadata", "falloc", "full"};
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "Unsupported preallocation mode '%s'",
                          names[resize->preallocation]);
    }
    if (resize->size % 512 || resize->size > qed_disk_max(q->cluster, q->table_bytes))
        return lodge_fail(err, LODGE_ERROR_INVALID, "Invalid image size specified");
    if (resize->size < old)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "Shrinking images is currently not supported");
    int result = q->checking ? -EIO : grains_flush(&q->map);
    memcpy(header, q->header, sizeof(header));
    le64_put(header + QED_IMAGE_SIZE, resize->size);
    if (result == 0)
        result = qed_write_header(q, header);
    if (result < 0)
        return lodge_fail_errno(err, -result, "Failed to update the image size");
    grains_clear(&q->map);
    node->size = resize->size;
    if (!qed_start(node, err))
        return false;
    result = hide_backing(q, old);
    return result == 0 ||
           lodge_fail_errno(err, -result, "%s: cannot clear the new part of the disk", node->path);
}

bool qed_set_backing(BlockNode *node, const char *path, const char *format, GError **err)
{
    Qed *q = qed_of(node);
    g_autofree uint8_t *header = g_malloc0(QED_HEADER_BYTES + QED_NAME_MAX);
    size_t length = path ? strlen(path) : 0;
    if (path && le64_get(q->header + QED_COMPAT_FEATURES))
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "%s: it has QED compatible features that are not known, which may be "
                          "where the name would go",
                          node->path);
    if (length > QED_NAME_MAX || QED_HEADER_BYTES + length > q->first)
        return lodge_fail(err, LODGE_ERROR_LIMIT,
                          "%s: a backing file name of %zu bytes has no room in its header",
                          node->path, length);
    memcpy(header, q->header, QED_HEADER_BYTES);
    put_backing(header, path, format);
    memcpy(header + QED_HEADER_BYTES, path ? path : "", length);
    int result = block_node_sync(node);
    if (result == 0)
        result = block_file_write(node->file, 0, header, QED_HEADER_BYTES + length);
    if (result == 0)
        result = block_node_sync(node);
    if (result < 0)
        return lodge_fail_errno(err, -result, "%s: cannot write its header", node->path);
    memcpy(q->header, header, QED_HEADER_BYTES);
    return true;
}
