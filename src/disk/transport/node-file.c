/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A format's disk as another format's file: qcow2 in luks, vmdk in a range of a raw file ... */
#include "base/bytes.h"
#include "base/error.h"
#include "disk/iov.h"
#include "disk/node.h"
#include "disk/transport/transport.h"

#include <errno.h>

typedef struct NodeFile {
    BlockFile file; /* first */
    BlockNode *node;
} NodeFile;

static BlockNode *node_of(BlockFile *file)
{
    return ((NodeFile *)file)->node;
}

static int node_readv(BlockFile *file, uint64_t offset, const struct iovec *iov, int n)
{
    BlockNode *node = node_of(file);
    uint64_t length = block_iov_length(iov, n), size = node->size;
    uint64_t inside = offset < size ? MIN(length, size - offset) : 0;
    block_iov_zero(iov, n, inside, length - inside);
    for (uint64_t done = 0; done < inside;) {
        struct iovec part[64];
        uint64_t covered;
        int entries =
            block_iov_slice(part, G_N_ELEMENTS(part), iov, n, done, inside - done, &covered);
        int result = covered ? block_readv(node, offset + done, part, entries) : -EINVAL;
        if (result < 0)
            return result;
        done += covered;
    }
    return 0;
}

/* The disk grows with what is put on it, where its format can. */
static int reach(BlockNode *node, uint64_t end)
{
    if (end <= node->size)
        return 0;
    g_autoptr(GError) error = NULL;
    BlockResize resize = {.size = align_up(end, 512)};
    return block_resize(node, &resize, &error) ? 0 : -ENOSPC;
}

static int node_writev(BlockFile *file, uint64_t offset, const struct iovec *iov, int n)
{
    int result = reach(node_of(file), offset + block_iov_length(iov, n));
    return result < 0 ? result : block_writev(node_of(file), offset, iov, n, 0);
}

static int node_zero(BlockFile *file, uint64_t offset, uint64_t length, bool unmap)
{
    int result = reach(node_of(file), offset + length);
    return result < 0 ? result
                      : block_write_zeroes(node_of(file), offset, length, unmap ? BLOCK_UNMAP : 0);
}

static int node_discard(BlockFile *file, uint64_t offset, uint64_t length)
{
    uint64_t size = node_of(file)->size;
    return offset >= size ? 0 : block_discard(node_of(file), offset, MIN(length, size - offset));
}

static int node_flush(BlockFile *file)
{
    return block_flush(node_of(file));
}

static int node_truncate(BlockFile *file, uint64_t size)
{
    g_autoptr(GError) error = NULL;
    BlockResize resize = {.size = align_up(size, 512), .shrink = true};
    if (resize.size == node_of(file)->size)
        return 0;
    return block_resize(node_of(file), &resize, &error) ? 0 : -ENOTSUP;
}

static int node_size(BlockFile *file, uint64_t *size)
{
    *size = node_of(file)->size;
    return 0;
}

static int node_status(BlockFile *file, uint64_t offset, uint64_t length, bool *data,
                       uint64_t *same)
{
    BlockExtent extent;
    unsigned depth;
    uint64_t size = node_of(file)->size;
    if (offset >= size) {
        *data = false;
        *same = length;
        return 0;
    }
    int result =
        block_status_chain(node_of(file), offset, MIN(length, size - offset), &extent, &depth);
    if (result < 0)
        return result;
    *data = !extent.zero;
    *same = extent.length;
    return 0;
}

static int node_allocated(BlockFile *file, uint64_t *bytes)
{
    BlockFile *below = node_of(file)->file;
    return below->ops->allocated ? below->ops->allocated(below, bytes) : -ENOTSUP;
}

static void node_close(BlockFile *file)
{
    block_unref(node_of(file));
    g_mutex_clear(&file->rmw);
    g_free(file->path);
    g_free(file);
}

static const BlockFileOps node_ops = {
    .name = "node",
    .readv = node_readv,
    .writev = node_writev,
    .zero = node_zero,
    .discard = node_discard,
    .flush = node_flush,
    .truncate = node_truncate,
    .size = node_size,
    .status = node_status,
    .allocated = node_allocated,
    .close = node_close,
};

BlockFile *block_node_file(BlockNode *node, GError **err)
{
    NodeFile *f = g_new0(NodeFile, 1);
    f->file.ops = &node_ops;
    f->file.path = g_strdup(node->path);
    f->file.fd = -1;
    f->file.read_only = node->read_only;
    f->file.alignment = 1;
    f->file.device = node->file->device;
    f->file.inode = 0; /* another disk than the file below it */
    g_mutex_init(&f->file.rmw);
    f->node = node;
    return &f->file;
}
