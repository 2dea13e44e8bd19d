/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Raw images: byte n of the disk is byte n of the file. docs/format/raw.md */
#include "base/bytes.h"
#include "base/error.h"
#include "disk/format/formats.h"
#include "disk/iov.h"

#include <errno.h>

#define SECTOR 512

/* The part of the file that is the disk. */
typedef struct Raw {
    uint64_t start;
    bool sized; /* its length was said */
} Raw;

static uint64_t start_of(const BlockNode *node)
{
    return ((const Raw *)node->state)->start;
}

static const BlockOption raw_open_options[] = {
    {"offset", BLOCK_OPTION_SIZE, "offset in the file at which the disk begins", NULL},
    {"size", BLOCK_OPTION_SIZE, "virtual disk size", NULL},
    {NULL, 0, NULL, NULL},
};

static bool window(BlockNode *node, const BlockOpen *options, uint64_t file_size, GError **err)
{
    Raw *raw = node->state;
    uint64_t size = UINT64_MAX;
    /* A bare transport's "size" is its own. */
    const json_t *own = node->driver ? NULL : options->options;
    if (!block_option_size(own, NULL, "offset", &raw->start, err) ||
        !block_option_size(own, NULL, "size", &size, err))
        return false;
    raw->sized = size != UINT64_MAX;
    if (raw->start > file_size)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "Offset (%" G_GUINT64_FORMAT
                          ") cannot be greater than size of the containing file (%" G_GUINT64_FORMAT
                          ")",
                          raw->start, file_size);
    if (raw->sized && file_size - raw->start < size)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "The sum of offset (%" G_GUINT64_FORMAT ") and size (%" G_GUINT64_FORMAT
                          ") has to be smaller or equal to the actual size of the containing file "
                          "(%" G_GUINT64_FORMAT ")",
                          raw->start, size, file_size);
    if (raw->sized && size % SECTOR)
        return lodge_fail(err, LODGE_ERROR_INVALID, "Specified size is not multiple of %d", SECTOR);
    /* A last partial sector reads on as zero. */
    node->size = raw->sized ? size : align_up(file_size - raw->start, SECTOR);
    return true;
}

static bool raw_open(BlockNode *node, const BlockOpen *options, GError **err)
{
    uint64_t size;
    int result = node->file->ops->size(node->file, &size);
    if (result < 0)
        return lodge_fail_errno(err, -result, "%s: cannot find its size", node->path);
    if (size > INT64_MAX - SECTOR)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "%s: the file is too large", node->path);
    node->state = g_new0(Raw, 1);
    return window(node, options, size, err);
}

static void raw_close(BlockNode *node)
{
    if (!node->read_only && node->state)
        block_node_sync(node);
    g_free(node->state);
}

static int raw_readv(BlockNode *node, uint64_t offset, const struct iovec *iov, int n)
{
    return node->file->ops->readv(node->file, start_of(node) + offset, iov, n);
}

static int raw_writev(BlockNode *node, uint64_t offset, const struct iovec *iov, int n)
{
    return node->file->ops->writev(node->file, start_of(node) + offset, iov, n);
}

static int raw_write_zeroes(BlockNode *node, uint64_t offset, uint64_t length, bool unmap)
{
    return node->file->ops->zero(node->file, start_of(node) + offset, length, unmap);
}

static int raw_discard(BlockNode *node, uint64_t offset, uint64_t length)
{
    return node->file->ops->discard(node->file, start_of(node) + offset, length);
}

static int raw_status(BlockNode *node, uint64_t offset, uint64_t length, BlockExtent *extent)
{
    bool data = true;
    uint64_t same = length, size, at = start_of(node) + offset;
    if (node->file->ops->describe)
        return node->file->ops->describe(node->file, at, length, extent);
    if (node->file->ops->status) {
        int result = node->file->ops->status(node->file, at, length, &data, &same);
        if (result < 0)
            return result;
    }
    /* With O_DIRECT, the unit that the file ends in is one with what is before its end. */
    if (same < length && node->file->alignment > 1 &&
        node->file->ops->size(node->file, &size) == 0 && at + same >= size)
        same = MIN(length, align_up(same, node->file->alignment));
    *extent = (BlockExtent){.length = same,
                            .present = true,
                            .data = data,
                            .zero = !data,
                            .has_offset = true,
                            .file_offset = at};
    return 0;
}

/* In a probed image, sector 0 is watched; it goes the long way. */
static bool raw_fast_begin(BlockNode *node, bool write, uint64_t offset, uint64_t length,
                           BlockFast *fast)
{
    fast->file_offset = start_of(node) + offset;
    return !(write && node->probed_raw && offset < 4096);
}

static void raw_fast_end(BlockNode *node, BlockFast *fast)
{
}

static bool raw_flush_is_plain(BlockNode *node)
{
    return true;
}

static bool check_mode(BlockPreallocation mode, GError **err)
{
    return mode != BLOCK_PREALLOCATE_METADATA ||
           lodge_fail(
               err, LODGE_ERROR_UNSUPPORTED,
               "Unsupported preallocation mode 'metadata'; off, falloc and full are supported");
}

static bool raw_create_check(const BlockCreate *create, GError **err)
{
    BlockPreallocation mode;
    return block_preallocation(create->options, &mode, err) && check_mode(mode, err);
}

/* Gives [start, end) of the file its host storage. */
static int preallocate(BlockFile *file, uint64_t start, uint64_t end, BlockPreallocation mode)
{
    return mode == BLOCK_PREALLOCATE_OFF
               ? 0
               : block_file_preallocate(file, start, end, mode == BLOCK_PREALLOCATE_FULL);
}

/*
 * As QEMU, a new file's first page is stored: what looks for the unit of O_DIRECT by reading has
 * something to read.
 */
static bool raw_create(BlockFile *file, const BlockCreate *create, GError **err)
{
    static const uint8_t page[4096];
    BlockPreallocation mode;
    if (!block_preallocation(create->options, &mode, err))
        return false;
    uint64_t first = create->size < sizeof(page) ? SECTOR : sizeof(page);
    int result = 0;
    if (mode == BLOCK_PREALLOCATE_OFF && create->size > 0 && !file->block_device)
        result = block_file_write(file, 0, page, MIN(first, create->size));
    else
        result = preallocate(file, 0, create->size, mode);
    return result == 0 || lodge_fail_errno(err, -result, "%s: cannot preallocate", create->path);
}

static bool raw_resize(BlockNode *node, const BlockResize *resize, GError **err)
{
    const Raw *raw = node->state;
    uint64_t size = resize->size;
    if (raw->sized)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "Cannot resize fixed-size raw disks");
    if (!check_mode(resize->preallocation, err))
        return false;
    int result = node->file->ops->truncate(node->file, raw->start + size);
    if (result == 0)
        result = preallocate(node->file, raw->start + node->size, raw->start + size,
                             resize->preallocation);
    if (result < 0)
        return lodge_fail_errno(err, -result, "%s: cannot change the file's length", node->path);
    node->size = align_up(size, SECTOR);
    return true;
}

static bool raw_measure(const BlockCreate *create, BlockNode *source, BlockMeasure *measure,
                        GError **err)
{
    uint64_t size = align_up(source ? block_size(source) : create->size, SECTOR);
    *measure = (BlockMeasure){.required = size, .fully_allocated = size};
    return true;
}

static const BlockOption raw_create_options[] = {
    {"size", BLOCK_OPTION_SIZE, "Virtual disk size", NULL},
    {"preallocation", BLOCK_OPTION_STRING, "Preallocation mode (allowed values: off, falloc, full)",
     NULL},
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
    .open_options = raw_open_options,
    .measure = raw_measure,
    .create_options = raw_create_options,
    .create_check = raw_create_check,
    .create = raw_create,
    .resize = raw_resize,
};
