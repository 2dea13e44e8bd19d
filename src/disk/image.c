/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "disk/image.h"

#include "base/bytes.h"
#include "base/error.h"
#include "disk/iov.h"
#include "disk/node.h"

#include <errno.h>
#include <string.h>

int block_status(BlockNode *node, uint64_t offset, uint64_t length, BlockExtent *extent)
{
    if (length == 0 || !range_within(offset, length, node->size))
        return -EINVAL;
    return node->format->status(node, offset, length, extent);
}

int block_status_chain(BlockNode *node, uint64_t offset, uint64_t length, BlockExtent *extent,
                       unsigned *depth)
{
    *depth = 0;
    for (;; node = node->backing, ++*depth) {
        int result = block_status(node, offset, length, extent);
        if (result < 0 || extent->present)
            return result;
        if (!node->backing)
            break;
        length = extent->length;
        if (offset >= node->backing->size) /* past a shorter backing image */
            break;
        length = MIN(length, node->backing->size - offset);
    }
    extent->zero = true;
    return 0;
}

const char *const *block_create_options(const char *format)
{
    const BlockFormat *f = block_format_find(format);
    return f ? f->create_options : NULL;
}

bool block_create(const BlockCreate *create, GError **err)
{
    const BlockFormat *format = block_format_find(create->format);
    if (!format || !format->create) {
        g_autofree char *names = block_format_names();
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "new images of format \"%s\" are not supported; the formats are %s",
                          create->format, names);
    }
    bool raw = !strcmp(format->name, "raw");
    if (raw && create->backing)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "the format \"raw\" does not support backing files");
    if (create->size > INT64_MAX - MIB(4))
        return lodge_fail(err, LODGE_ERROR_LIMIT, "%s: an image of %" G_GUINT64_FORMAT " bytes",
                          create->path, create->size);
    if (!format->create_check(create, err))
        return false;
    g_autoptr(BlockFile) file = block_file_create(create->path, raw ? create->size : 0, err);
    return file && format->create(file, create, err);
}

void block_info(BlockNode *node, BlockInfo *info)
{
    *info = (BlockInfo){.virtual_size = node->size,
                        .backing_path = node->backing_path,
                        .backing_format = node->backing_format};
    if (node->file->ops->allocated)
        node->file->ops->allocated(node->file, &info->actual_size);
    if (node->format->info)
        node->format->info(node, info);
}

void block_info_clear(BlockInfo *info)
{
    for (unsigned i = 0; i < info->n_snapshots; i++) {
        g_free(info->snapshots[i].id);
        g_free(info->snapshots[i].name);
    }
    g_clear_pointer(&info->snapshots, g_free);
    info->n_snapshots = 0;
}

bool block_can_check(const BlockNode *node)
{
    return node->format->check != NULL;
}

bool block_check(BlockNode *node, BlockCheck *check, GError **err)
{
    if (!node->format->check)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "%s: This image format does not support checks", node->path);
    return node->format->check(node, check, err);
}

bool block_resize(BlockNode *node, uint64_t size, GError **err)
{
    if (node->read_only)
        return lodge_fail(err, LODGE_ERROR_DENIED, "%s: the image is open read-only", node->path);
    if (size > INT64_MAX - MIB(4))
        return lodge_fail(err, LODGE_ERROR_LIMIT, "%s: a size of %" G_GUINT64_FORMAT " bytes",
                          node->path, size);
    if (!node->format->resize)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "%s: Image format driver does not support resize: its format is \"%s\"",
                          node->path, node->format->name);
    return node->format->resize(node, size, err);
}

int block_write_compressed(BlockNode *node, uint64_t offset, const void *cluster, size_t length)
{
    if (!range_within(offset, length, node->size))
        return -EINVAL;
    if (node->read_only)
        return -EROFS;
    if (!node->format->write_compressed)
        return -ENOTSUP;
    return node->format->write_compressed(node, offset, cluster, length);
}

uint64_t block_cluster_size(BlockNode *node)
{
    BlockInfo info;
    block_info(node, &info);
    uint64_t size = info.cluster_size;
    block_info_clear(&info);
    return size;
}
