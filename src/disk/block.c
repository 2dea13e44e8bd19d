/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Opening images and their chains, and the checked way into a format's data path. */
#include "disk/block.h"

#include "base/bytes.h"
#include "base/error.h"
#include "disk/iov.h"
#include "disk/node.h"

#include <errno.h>
#include <string.h>

/* The longest chain of backing images; each costs a descriptor and a look-up a read. */
#define BLOCK_CHAIN_MAX 128
#define PROBE_BYTES     2048

typedef struct Visited {
    uint64_t device, inode;
} Visited;

static BlockNode *open_one(BlockFile *taken, const BlockOpen *options, GArray *chain,
                           GError **err);

/*
 * @written, the backing file's name as @node has it, as a path to open. A relative name is
 * meant from the folder of the image that names it.
 */
static char *resolve_backing(const BlockNode *node, const char *written, GError **err)
{
    if (g_str_has_prefix(written, "file:"))
        written += strlen("file:");
    const char *colon = strchr(written, ':');
    const char *slash = strchr(written, '/');
    if (colon && (!slash || colon < slash)) {
        lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                   "%s: the backing file \"%s\" uses the protocol \"%.*s\"; only files and block "
                   "devices of the host are supported",
                   node->path, written, (int)(colon - written), written);
        return NULL;
    }
    if (g_path_is_absolute(written))
        return g_strdup(written);
    g_autofree char *folder = g_path_get_dirname(node->path);
    if (!strcmp(folder, "."))
        return g_strdup(written);
    return g_build_filename(folder, written, NULL);
}

static bool open_backing(BlockNode *node, const BlockOpen *options, GArray *chain, GError **err)
{
    g_autofree char *path = resolve_backing(node, node->backing_path, err);
    if (!path)
        return false;
    BlockOpen below = *options;
    below.path = path;
    below.format = node->backing_format;
    below.read_only = true;
    g_autoptr(GError) cause = NULL;
    node->backing = open_one(NULL, &below, chain, &cause);
    if (!node->backing) {
        GError *copy = g_error_new(LODGE_ERROR, cause->code, "%s: its backing file: %s",
                                   node->path, cause->message);
        g_propagate_error(err, copy);
        return false;
    }
    return true;
}

static bool remember(GArray *chain, const BlockFile *file, GError **err)
{
    Visited here = {file->device, file->inode};
    for (guint i = 0; i < chain->len; i++) {
        const Visited *seen = &g_array_index(chain, Visited, i);
        if (here.inode != 0 && seen->device == here.device && seen->inode == here.inode)
            return lodge_fail(err, LODGE_ERROR_INVALID,
                              "%s: the chain of backing files loops back to this file", file->path);
    }
    if (chain->len >= BLOCK_CHAIN_MAX)
        return lodge_fail(err, LODGE_ERROR_LIMIT,
                          "%s: the chain of backing files is longer than %d images", file->path,
                          BLOCK_CHAIN_MAX);
    g_array_append_val(chain, here);
    return true;
}

static bool choose_format(BlockNode *node, const BlockOpen *options, GError **err)
{
    if (options->format) {
        node->format = block_format_find(options->format);
        if (node->format)
            return true;
        g_autofree char *names = block_format_names();
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "%s: the format \"%s\" is not supported; %s are", options->path,
                          options->format, names);
    }
    uint8_t head[PROBE_BYTES];
    int result = block_file_read(node->file, 0, head, sizeof(head));
    if (result < 0)
        return lodge_fail_errno(err, -result, "%s: cannot read the start of the image",
                                options->path);
    node->format = block_format_probe(head, sizeof(head));
    node->probed_raw = !strcmp(node->format->name, "raw");
    return true;
}

static BlockNode *open_one(BlockFile *taken, const BlockOpen *options, GArray *chain,
                           GError **err)
{
    BlockFile *file = taken ? taken : block_file_open(options, err);
    if (!file)
        return NULL;
    g_autoptr(BlockNode) node = g_new0(BlockNode, 1);
    node->refs = 1;
    node->file = file;
    node->path = g_strdup(options->path);
    node->read_only = options->read_only;
    node->no_flush = options->no_flush;
    node->discard_unmap = options->discard_unmap;
    node->queues = g_ptr_array_new();
    g_mutex_init(&node->queues_lock);
    if (!remember(chain, file, err) || !choose_format(node, options, err) ||
        !node->format->open(node, options, err))
        return NULL;
    if (node->backing_path && !options->no_backing && !open_backing(node, options, chain, err))
        return NULL;
    if (node->format->activate && !node->format->activate(node, err))
        return NULL;
    return g_steal_pointer(&node);
}

BlockNode *block_open(const BlockOpen *options, GError **err)
{
    g_autoptr(GArray) chain = g_array_new(FALSE, FALSE, sizeof(Visited));
    return open_one(NULL, options, chain, err);
}

BlockNode *block_open_file(BlockFile *file, const BlockOpen *options, GError **err)
{
    g_autoptr(GArray) chain = g_array_new(FALSE, FALSE, sizeof(Visited));
    return open_one(file, options, chain, err);
}

BlockNode *block_ref(BlockNode *node)
{
    g_atomic_int_inc(&node->refs);
    return node;
}

void block_unref(BlockNode *node)
{
    if (!node || !g_atomic_int_dec_and_test(&node->refs))
        return;
    if (node->format)
        node->format->close(node);
    block_unref(node->backing);
    block_file_close(node->file);
    g_ptr_array_unref(node->queues);
    g_mutex_clear(&node->queues_lock);
    g_free(node->path);
    g_free(node->backing_path);
    g_free(node->backing_format);
    g_free(node);
}

uint64_t block_size(const BlockNode *node)
{
    return node->size;
}

bool block_read_only(const BlockNode *node)
{
    return node->read_only;
}

const char *block_path(const BlockNode *node)
{
    return node->path;
}

const char *block_format(const BlockNode *node)
{
    return node->format->name;
}

BlockNode *block_backing(const BlockNode *node)
{
    return node->backing;
}

static int check_range(const BlockNode *node, uint64_t offset, uint64_t length, bool write)
{
    if (!range_within(offset, length, node->size))
        return -EINVAL;
    return write && node->read_only ? -EROFS : 0;
}

int block_readv(BlockNode *node, uint64_t offset, const struct iovec *iov, int n)
{
    uint64_t length = block_iov_length(iov, n);
    int result = check_range(node, offset, length, false);
    if (result < 0 || length == 0)
        return result;
    return node->format->readv(node, offset, iov, n);
}

/*
 * A guest that wrote another format's magic into an image opened as raw by probing would choose
 * how the next one to open it reads it.
 */
static bool forges_format(BlockNode *node, uint64_t offset, const struct iovec *iov, int n,
                          uint64_t length)
{
    uint8_t head[PROBE_BYTES];
    if (!node->probed_raw || offset >= sizeof(head))
        return false;
    if (block_file_read(node->file, 0, head, sizeof(head)) < 0)
        return true;
    block_iov_to(head + offset, iov, n, 0, MIN(length, sizeof(head) - offset));
    return strcmp(block_format_probe(head, sizeof(head))->name, "raw") != 0;
}

int block_writev(BlockNode *node, uint64_t offset, const struct iovec *iov, int n, unsigned flags)
{
    uint64_t length = block_iov_length(iov, n);
    int result = check_range(node, offset, length, true);
    if (result < 0)
        return result;
    if (length > 0 && forges_format(node, offset, iov, n, length))
        return -EPERM;
    if (length > 0)
        result = node->format->writev(node, offset, iov, n);
    if (result == 0 && (flags & BLOCK_FUA))
        result = node->format->flush(node);
    return result;
}

int block_write_zeroes(BlockNode *node, uint64_t offset, uint64_t length, unsigned flags)
{
    int result = check_range(node, offset, length, true);
    if (result < 0)
        return result;
    if (length > 0)
        result = node->format->write_zeroes(node, offset, length,
                                            (flags & BLOCK_UNMAP) && node->discard_unmap);
    if (result == 0 && (flags & BLOCK_FUA))
        result = node->format->flush(node);
    return result;
}

int block_discard(BlockNode *node, uint64_t offset, uint64_t length)
{
    int result = check_range(node, offset, length, true);
    if (result < 0 || length == 0 || !node->discard_unmap)
        return result;
    return node->format->discard(node, offset, length);
}

int block_flush(BlockNode *node)
{
    return node->read_only ? 0 : node->format->flush(node);
}

int block_node_sync(BlockNode *node)
{
    return node->no_flush ? 0 : node->file->ops->flush(node->file);
}

int block_read_backing(BlockNode *node, uint64_t offset, const struct iovec *iov, int n,
                       uint64_t skip, uint64_t length)
{
    BlockNode *below = node->backing;
    uint64_t inside = below && offset < below->size ? MIN(length, below->size - offset) : 0;
    block_iov_zero(iov, n, skip + inside, length - inside);
    while (inside > 0) {
        struct iovec part[64];
        uint64_t covered;
        int entries = block_iov_slice(part, G_N_ELEMENTS(part), iov, n, skip, inside, &covered);
        if (covered == 0)
            return -EINVAL;
        int result = below->format->readv(below, offset, part, entries);
        if (result < 0)
            return result;
        offset += covered;
        skip += covered;
        inside -= covered;
    }
    return 0;
}
