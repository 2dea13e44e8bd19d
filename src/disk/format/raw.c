/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Raw images: byte n of the disk is byte n of the file. docs/format/raw.md */
#include "base/bytes.h"
#include "base/error.h"
#include "disk/format/formats.h"
#include "disk/iov.h"

#include <errno.h>

#define SECTOR 512

static bool raw_open(BlockNode *node, const BlockOpen *options, GError **err)
{
    uint64_t size;
    int result = node->file->ops->size(node->file, &size);
    if (result < 0)
        return lodge_fail_errno(err, -result, "%s: cannot find its size", node->path);
    if (size > INT64_MAX - SECTOR)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "%s: the file is too large", node->path);
    node->size = align_up(size, SECTOR); /* a last partial sector reads on as zero */
    return true;
}

static void raw_close(BlockNode *node)
{
    if (!node->read_only)
        block_node_sync(node);
}

static int raw_readv(BlockNode *node, uint64_t offset, const struct iovec *iov, int n)
{
    return node->file->ops->readv(node->file, offset, iov, n);
}

static int raw_writev(BlockNode *node, uint64_t offset, const struct iovec *iov, int n)
{
    return node->file->ops->writev(node->file, offset, iov, n);
}

static int raw_write_zeroes(BlockNode *node, uint64_t offset, uint64_t length, bool unmap)
{
    return node->file->ops->zero(node->file, offset, length, unmap);
}

static int raw_discard(BlockNode *node, uint64_t offset, uint64_t length)
{
    return node->file->ops->discard(node->file, offset, length);
}

static int raw_status(BlockNode *node, uint64_t offset, uint64_t length, BlockExtent *extent)
{
    bool data = true;
    uint64_t same = length;
    if (node->file->ops->status) {
        int result = node->file->ops->status(node->file, offset, length, &data, &same);
        if (result < 0)
            return result;
    }
    *extent = (BlockExtent){.length = same, .present = true, .data = data, .zero = !data,
                            .has_offset = true, .file_offset = offset};
    return 0;
}

/* In a probed image, sector 0 is watched; it goes the long way. */
static bool raw_fast_begin(BlockNode *node, bool write, uint64_t offset, uint64_t length,
                           BlockFast *fast)
{
    fast->file_offset = offset;
    return !(write && node->probed_raw && offset < 4096);
}

static void raw_fast_end(BlockNode *node, BlockFast *fast)
{
}

static bool raw_flush_is_plain(BlockNode *node)
{
    return true;
}

static bool raw_create_check(const BlockCreate *create, GError **err)
{
    BlockPreallocation mode;
    return block_preallocation(create->options, &mode, err) &&
           (mode == BLOCK_PREALLOCATE_OFF ||
            lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                       "Unsupported preallocation mode for raw images; \"off\" is supported"));
}

static bool raw_create(BlockFile *file, const BlockCreate *create, GError **err)
{
    return true; /* block_file_create made it as long as it shall be */
}

static bool raw_resize(BlockNode *node, const BlockResize *resize, GError **err)
{
    uint64_t size = resize->size;
    int result = node->file->ops->truncate(node->file, size);
    if (result < 0)
        return lodge_fail_errno(err, -result, "%s: cannot change the file's length", node->path);
    node->size = align_up(size, SECTOR);
    return true;
}

static const BlockOption raw_create_options[] = {
    {"size", BLOCK_OPTION_SIZE, "Virtual disk size", NULL},
    {"preallocation", BLOCK_OPTION_STRING, "Preallocation mode (allowed values: off)", "off"},
    {NULL, 0, NULL, NULL},
};

const BlockFormat block_format_raw = {
    .name = "raw",
    .open = raw_open,
    .close = raw_close,
    .readv = raw_readv,
    .writev = raw_writev,
    .write_zeroes = raw_write_zeroes,
    .discard = raw_discard,
    .flush = block_node_sync,
    .status = raw_status,
    .fast_begin = raw_fast_begin,
    .fast_end = raw_fast_end,
    .flush_is_plain = raw_flush_is_plain,
    .create_options = raw_create_options,
    .create_check = raw_create_check,
    .create = raw_create,
    .resize = raw_resize,
};
