/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "disk/image.h"

#include "base/bytes.h"
#include "base/error.h"
#include "disk/bitmap-internal.h"
#include "disk/iov.h"
#include "disk/node.h"
#include "disk/transport/transport.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int block_status(BlockNode *node, uint64_t offset, uint64_t length, BlockExtent *extent)
{
    if (length == 0 || !range_within(offset, length, node->size))
        return -EINVAL;
    extent->in_file = NULL;
    return node->format->status(node, offset, length, extent);
}

int block_status_chain(BlockNode *node, uint64_t offset, uint64_t length, BlockExtent *extent,
                       unsigned *depth)
{
    *depth = 0;
    for (;; node = node->backing, ++*depth) {
        int result = block_status(node, offset, length, extent);
        if (result < 0 || extent->present || extent->unknown)
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

const char *block_file_path(const BlockNode *node)
{
    return node->file->path;
}

const BlockOption *block_create_options(const char *format)
{
    const BlockFormat *f = block_format_find(format);
    return f && f->create ? f->create_options : NULL;
}

bool block_format_exists(const char *format)
{
    return block_format_find(format) || block_transport_find(format);
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

char *block_format_list(void)
{
    g_autoptr(GPtrArray) names = g_ptr_array_new();
    for (const BlockFormat *const *f = block_formats; *f; f++)
        g_ptr_array_add(names, (char *)(uintptr_t)(*f)->name);
    for (const BlockTransport *const *t = block_transports; *t; t++)
        g_ptr_array_add(names, (char *)(uintptr_t)(*t)->name);
    qsort(names->pdata, names->len, sizeof(char *), compare_names);
    GString *list = g_string_new(NULL);
    for (guint i = 0; i < names->len; i++)
        g_string_append_printf(list, " %s", (char *)g_ptr_array_index(names, i));
    return g_string_free(list, FALSE);
}

const BlockOption *block_create_file_options(const char *path, GError **err)
{
    static const BlockOption host[] = {
        {"size", BLOCK_OPTION_SIZE, "Virtual disk size", NULL},
        {"nocow", BLOCK_OPTION_BOOL, "Turn off copy-on-write (valid only on btrfs)", NULL},
        {"extent_size_hint", BLOCK_OPTION_SIZE, "Extent size hint for the image file, 0 to disable",
         NULL},
        {NULL, 0, NULL, NULL},
    };
    if (block_transport_for(path))
        return host;
    lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "Unknown protocol '%s'", path);
    return NULL;
}

const BlockOption *block_amend_options(const char *format)
{
    const BlockFormat *f = block_format_find(format);
    return f ? f->amend_options : NULL;
}

bool block_preallocation(const json_t *options, BlockPreallocation *mode, GError **err)
{
    static const char *const names[] = {"off", "metadata", "falloc", "full"};
    const char *text = block_option_string(options, NULL, "preallocation");
    *mode = BLOCK_PREALLOCATE_OFF;
    for (unsigned i = 0; text && i < G_N_ELEMENTS(names); i++) {
        if (!strcmp(names[i], text)) {
            *mode = (BlockPreallocation)i;
            return true;
        }
    }
    return !text || lodge_fail(err, LODGE_ERROR_INVALID,
                               "Parameter 'preallocation' does not accept value '%s'", text);
}

static const BlockFormat *creatable(const BlockCreate *create, GError **err)
{
    const BlockFormat *format = block_format_find(create->format);
    if (!format) {
        lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "Unknown file format '%s'", create->format);
        return NULL;
    }
    if (!format->create) {
        lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                   "Format driver '%s' does not support image creation", create->format);
        return NULL;
    }
    if (create->size > INT64_MAX - MIB(4)) {
        lodge_fail(err, LODGE_ERROR_LIMIT, "%s: an image of %" G_GUINT64_FORMAT " bytes",
                   create->path, create->size);
        return NULL;
    }
    if (create->backing && !block_option_find(format->create_options, "backing_file")) {
        lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                   "Backing file not supported for file format '%s'", create->format);
        return NULL;
    }
    const BlockOption *file = block_create_file_options(create->path, err);
    return file && block_options_known(create->options, format->create_options, file, format->name,
                                       err)
               ? format
               : NULL;
}

bool block_create(const BlockCreate *create, GError **err)
{
    const BlockFormat *format = creatable(create, err);
    if (!format || !format->create_check(create, err))
        return false;
    uint64_t size = !strcmp(format->name, "raw") ? create->size : 0;
    if (!block_file_prepare(create->path, create->options, err))
        return false;
    g_autoptr(BlockFile) file = block_transport_create(create->path, size, create->objects, err);
    return file && format->create(file, create, err);
}

bool block_measure(const BlockCreate *create, BlockNode *source, BlockMeasure *measure,
                   GError **err)
{
    const BlockFormat *format = creatable(create, err);
    if (!format)
        return false;
    if (!format->measure)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "Block driver '%s' does not support size measurement", format->name);
    *measure = (BlockMeasure){0};
    return format->measure(create, source, measure, err);
}

void block_info(BlockNode *node, BlockInfo *info)
{
    *info = (BlockInfo){.virtual_size = node->size,
                        .backing_path = node->backing_path,
                        .backing_format = node->backing_format};
    if (node->file->ops->allocated)
        info->has_actual_size =
            node->file->ops->allocated(node->file, &info->actual_size) == 0;
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
    g_clear_pointer(&info->specific, json_decref);
    info->n_snapshots = 0;
}

bool block_can_check(const BlockNode *node)
{
    return node->format->check != NULL;
}

bool block_check_explains(const BlockNode *node)
{
    return node->format->check_explains;
}

bool block_check(BlockNode *node, BlockCheck *check, GError **err)
{
    if (!node->format->check)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "%s: This image format does not support checks", node->path);
    return node->format->check(node, check, err);
}

/* False with @err when @node cannot be changed, or its format has no @what. */
static bool may_change(const BlockNode *node, bool able, const char *what, GError **err)
{
    if (!able)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "%s: Image format driver does not support %s: its format is \"%s\"",
                          node->path, what, block_format(node));
    if (node->read_only)
        return lodge_fail(err, LODGE_ERROR_DENIED, "%s: the image is open read-only", node->path);
    return true;
}

bool block_resize(BlockNode *node, const BlockResize *resize, GError **err)
{
    if (!may_change(node, node->format->resize, "resize", err))
        return false;
    if (resize->size > INT64_MAX - MIB(4))
        return lodge_fail(err, LODGE_ERROR_LIMIT, "%s: a size of %" G_GUINT64_FORMAT " bytes",
                          node->path, resize->size);
    return node->format->resize(node, resize, err) && block_bitmaps_resize(node, node->size, err);
}

bool block_amend(BlockNode *node, const json_t *options, const BlockObjects *objects, bool force,
                 const BlockProgress *progress, GError **err)
{
    return may_change(node, node->format->amend, "option amendment", err) &&
           node->format->amend(node, options, objects, force, progress, err);
}

bool block_set_backing(BlockNode *node, const char *path, const char *format, GError **err)
{
    return may_change(node, node->format->set_backing, "backing files", err) &&
           node->format->set_backing(node, path, format, err);
}

bool block_make_empty(BlockNode *node, GError **err)
{
    return may_change(node, node->format->make_empty, "being emptied", err) &&
           node->format->make_empty(node, err);
}

bool block_snapshot_create(BlockNode *node, const BlockSnapshotInfo *snapshot, GError **err)
{
    return may_change(node, node->format->snapshots, "internal snapshots", err) &&
           node->format->snapshots->create(node, snapshot, err);
}

bool block_snapshot_apply(BlockNode *node, const char *which, GError **err)
{
    return may_change(node, node->format->snapshots, "internal snapshots", err) &&
           node->format->snapshots->apply(node, which, err);
}

bool block_snapshot_delete(BlockNode *node, const char *which, GError **err)
{
    return may_change(node, node->format->snapshots, "internal snapshots", err) &&
           node->format->snapshots->remove(node, which, err);
}

int block_vmstate_readv(BlockNode *node, uint64_t offset, const struct iovec *iov, int n)
{
    const BlockSnapshotOps *ops = node->format->snapshots;
    return ops && ops->vmstate_readv ? ops->vmstate_readv(node, offset, iov, n) : -ENOTSUP;
}

int block_vmstate_writev(BlockNode *node, uint64_t offset, const struct iovec *iov, int n)
{
    const BlockSnapshotOps *ops = node->format->snapshots;
    if (node->read_only)
        return -EROFS;
    return ops && ops->vmstate_writev ? ops->vmstate_writev(node, offset, iov, n) : -ENOTSUP;
}

int block_write_compressed(BlockNode *node, uint64_t offset, const void *cluster, size_t length)
{
    if (!range_within(offset, length, node->size))
        return -EINVAL;
    if (node->read_only)
        return -EROFS;
    if (!node->format->write_compressed)
        return -ENOTSUP;
    block_bitmaps_dirty(node, offset, length);
    return node->format->write_compressed(node, offset, cluster, length);
}

bool block_packs(const BlockNode *node)
{
    return node->format->pack && node->format->write_packed;
}

bool block_can_compress(const BlockNode *node)
{
    return node->format->write_compressed != NULL;
}

bool block_format_can_compress(const char *format)
{
    const BlockFormat *f = block_format_find(format);
    return f && f->write_compressed;
}

bool block_only_compressed(BlockNode *node)
{
    return node->format->only_compressed && node->format->only_compressed(node);
}

ssize_t block_pack(BlockNode *node, const void *cluster, size_t length, void *packed, size_t room)
{
    return node->format->pack ? node->format->pack(node, cluster, length, packed, room) : -ENOTSUP;
}

int block_write_packed(BlockNode *node, uint64_t offset, const void *packed, size_t packed_length,
                       size_t length)
{
    if (!range_within(offset, length, node->size))
        return -EINVAL;
    if (node->read_only)
        return -EROFS;
    if (!node->format->write_packed)
        return -ENOTSUP;
    block_bitmaps_dirty(node, offset, length);
    return node->format->write_packed(node, offset, packed, packed_length, length);
}

uint64_t block_cluster_size(BlockNode *node)
{
    BlockInfo info;
    block_info(node, &info);
    uint64_t size = info.cluster_size;
    block_info_clear(&info);
    return size;
}
