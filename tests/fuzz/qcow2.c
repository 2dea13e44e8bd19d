/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A qcow2 image from anywhere: refused, or read, checked, written and repaired within bounds. */
#include "base/bytes.h"
#include "disk/memory-file.h"
#include "disk/node.h"

#include <stdlib.h>
#include <string.h>

#define FILE_LIMIT MIB(24)
#define PIECE      KIB(96)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static BlockNode *open_copy(GByteArray *bytes, bool read_only, bool repair)
{
    g_autoptr(GError) err = NULL;
    BlockOpen options = {.path = "input", .format = "qcow2", .read_only = read_only,
                         .repair = repair, .no_backing = true, .discard_unmap = true};
    BlockNode *node = block_open_file(&memory_file_new(bytes, FILE_LIMIT, NULL)->file, &options, &err);
    if (!node != !!err)
        abort();
    return node;
}

static void check(BlockNode *node, BlockRepair repair)
{
    g_autoptr(GError) err = NULL;
    BlockCheck c = {.repair = repair};
    if (!block_check(node, &c, &err) != !!err)
        abort();
}

/* Some places of the disk: its start, its end, the middle. */
static void touch(BlockNode *node, uint8_t *buffer, bool write)
{
    uint64_t size = block_size(node);
    uint64_t length = MIN(size, PIECE);
    uint64_t places[] = {0, size - length, (size - length) / 2, MIN(KIB(64), size - length)};
    struct iovec iov = {buffer, length};
    for (size_t i = 0; i < G_N_ELEMENTS(places); i++) {
        BlockExtent extent;
        unsigned depth;
        if (length && block_status_chain(node, places[i], size - places[i], &extent, &depth) == 0 &&
            (extent.length == 0 || extent.length > size - places[i]))
            abort();
        block_readv(node, places[i], &iov, 1);
        if (!write)
            continue;
        memset(buffer, 0x41, length);
        iov.iov_len = length / 3;
        int result = block_writev(node, places[i], &iov, 1, i & 1 ? BLOCK_FUA : 0);
        iov.iov_len = length;
        memset(buffer, 0, length);
        /* What was written is there; the tables may be anything, but not both. */
        if (result == 0 && block_readv(node, places[i], &iov, 1) == 0 && length >= 3 && buffer[0] != 0x41 && i == 0)
            abort();
        block_write_zeroes(node, places[i], length / 2, BLOCK_UNMAP);
        block_discard(node, places[i] + length / 2, length / 2);
    }
    if (write)
        block_flush(node);
}

static void one(const uint8_t *data, size_t size, bool read_only, bool repair)
{
    g_autoptr(GByteArray) bytes = g_byte_array_new();
    g_autofree uint8_t *buffer = g_malloc0(PIECE);
    g_byte_array_append(bytes, data, (guint)size);
    g_autoptr(BlockNode) node = open_copy(bytes, read_only, repair);
    if (!node)
        return;
    BlockInfo info;
    block_info(node, &info);
    block_info_clear(&info);
    if (repair) {
        check(node, BLOCK_REPAIR_ALL);
        check(node, BLOCK_REPAIR_NONE);
    } else {
        touch(node, buffer, !read_only);
        check(node, BLOCK_REPAIR_NONE);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size > MIB(4))
        return 0;
    one(data, size, true, false);
    one(data, size, false, false);
    one(data, size, false, true);
    return 0;
}
