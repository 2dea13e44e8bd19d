/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* An image of one format from anywhere: refused, or read, described, checked and written. */
#pragma once

#include "base/bytes.h"
#include "disk/memory-file.h"
#include "disk/node.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define IMAGE_FILE_LIMIT MIB(12)
#define IMAGE_PIECE      KIB(24)

static inline void image_touch(BlockNode *node, uint8_t *buffer, bool write)
{
    uint64_t size = block_size(node), length = MIN(size, IMAGE_PIECE);
    uint64_t places[] = {0, size - length, (size - length) / 2};
    for (size_t i = 0; length && i < G_N_ELEMENTS(places); i++) {
        BlockExtent extent;
        struct iovec iov = {buffer, length};
        if (block_status(node, places[i], size - places[i], &extent) == 0 &&
            (extent.length == 0 || extent.length > size - places[i]))
            abort();
        block_readv(node, places[i], &iov, 1);
        if (!write)
            continue;
        memset(buffer, 0x41, length);
        int result = block_writev(node, places[i], &iov, 1, i ? BLOCK_FUA : 0);
        memset(buffer, 0, length);
        if (result == 0 && (block_readv(node, places[i], &iov, 1) < 0 || buffer[length - 1] != 0x41))
            abort();
        block_write_zeroes(node, places[i], length / 2, BLOCK_UNMAP);
        block_discard(node, places[i] + length / 2, length / 4);
    }
    block_flush(node);
}

/* Nothing that an image names is opened. */
static inline int image_no_file(void *opaque, const char *path, int open_flags)
{
    return -ENOENT;
}

static inline void image_once(const char *format, GByteArray *bytes, bool read_only, bool repair)
{
    g_autoptr(GError) err = NULL;
    g_autofree uint8_t *buffer = g_malloc0(IMAGE_PIECE);
    BlockOpen options = {.path = "input", .format = format, .read_only = read_only,
                         .repair = repair, .no_backing = true, .discard_unmap = true,
                         .opener = image_no_file};
    g_autoptr(BlockNode) node =
        block_open_file(&memory_file_new(bytes, IMAGE_FILE_LIMIT, NULL)->file, &options, &err);
    if (!node != !!err)
        abort();
    if (!node)
        return;
    BlockInfo info;
    BlockCheck check = {.repair = repair ? BLOCK_REPAIR_ALL : BLOCK_REPAIR_NONE};
    block_info(node, &info);
    block_info_clear(&info);
    if (!repair)
        image_touch(node, buffer, !read_only);
    if (block_can_check(node) && !block_check(node, &check, &err) != !!err)
        abort();
}

static inline void image_target(const char *format, const uint8_t *data, size_t size)
{
    for (int i = 0; i < 3; i++) {
        g_autoptr(GByteArray) bytes = g_byte_array_new();
        g_byte_array_append(bytes, data, (guint)size);
        image_once(format, bytes, i == 0, i == 2);
        image_once(format, bytes, true, false); /* what we wrote opens again, or is refused */
    }
}
