/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Compressed loop images of Knoppix, version 2: blocks of one size, each packed with zlib. Read
 * only. */
#include "base/bytes.h"
#include "base/error.h"
#include "disk/format/chunks.h"
#include "disk/format/formats.h"

#include <errno.h>

#define BLOCK_SIZE_AT 128u /* big-endian; then the number of blocks, then where each begins */
#define OFFSETS_AT    136u
#define PIECE         8192u /* offsets that are read at a time */

static const char magic[] = "#!/bin/sh\n"
                            "#V2.0 Format\n"
                            "modprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n";

static bool cloop_probe(const uint8_t *head, size_t length)
{
    return length >= sizeof(magic) - 1 && !memcmp(head, magic, sizeof(magic) - 1);
}

static bool add_block(ChunkMap *m, uint64_t i, uint64_t from, uint64_t to, uint64_t block,
                      GError **err)
{
    if (to < from)
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "offsets not monotonically increasing at index %" G_GUINT64_FORMAT
                          ", image file is corrupt",
                          i + 1);
    if (to - from > 2 * CHUNK_BYTES_MAX)
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "invalid compressed block size at index %" G_GUINT64_FORMAT
                          ", image file is corrupt",
                          i + 1);
    Chunk c = {.start = i * block,
               .length = block,
               .offset = from,
               .packed = to - from,
               .kind = CHUNK_ZLIB};
    return chunks_add(m, &c, err);
}

static bool read_offsets(BlockNode *node, uint64_t block, uint64_t blocks, GError **err)
{
    g_autofree uint8_t *raw = g_malloc(PIECE * 8);
    uint64_t last = 0;
    for (uint64_t first = 0; first <= blocks; first += PIECE) {
        uint64_t count = MIN(PIECE, blocks + 1 - first);
        int result = block_file_read(node->file, OFFSETS_AT + first * 8, raw, count * 8);
        if (result < 0)
            return lodge_fail_errno(err, -result, "%s: cannot read its offsets", node->path);
        for (uint64_t i = 0; i < count; i++) {
            uint64_t offset = be64_get(raw + i * 8);
            if (first + i > 0 && !add_block(node->state, first + i - 1, last, offset, block, err))
                return false;
            last = offset;
        }
    }
    return true;
}

/* Limits and words are QEMU's. */
static bool cloop_open(BlockNode *node, const BlockOpen *options, GError **err)
{
    uint8_t head[OFFSETS_AT];
    uint64_t size;
    if (!chunks_read_only(node, err))
        return false;
    ChunkMap *m = g_new0(ChunkMap, 1);
    node->state = m;
    chunks_init(m, node);
    int result = node->file->ops->size(node->file, &size);
    if (result == 0)
        result = block_file_read(node->file, 0, head, sizeof(head));
    if (result < 0)
        return lodge_fail_errno(err, -result, "%s: cannot read its header", node->path);
    uint32_t block = be32_get(head + BLOCK_SIZE_AT), blocks = be32_get(head + BLOCK_SIZE_AT + 4);
    if (block % 512)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "block_size %u must be a multiple of 512",
                          block);
    if (block == 0)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "block_size cannot be zero");
    if (block > CHUNK_BYTES_MAX)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "block_size %u must be %u MB or less", block,
                          (unsigned)(CHUNK_BYTES_MAX / MIB(1)));
    if (blocks > UINT32_MAX / 8)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "n_blocks %u must be %u or less", blocks,
                          UINT32_MAX / 8);
    if (blocks > CHUNKS_MAX)
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "image requires too many offsets, try increasing block size");
    if (!range_within(OFFSETS_AT, ((uint64_t)blocks + 1) * 8, size))
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "%s: its %u offsets are not within the file",
                          node->path, blocks);
    node->size = (uint64_t)blocks * block;
    return read_offsets(node, block, blocks, err);
}

static void cloop_close(BlockNode *node)
{
    if (node->state)
        chunks_clear(node->state);
    g_free(node->state);
    node->state = NULL;
}

static int cloop_readv(BlockNode *node, uint64_t offset, const struct iovec *iov, int n)
{
    return chunks_readv(node->state, offset, iov, n);
}

static int cloop_status(BlockNode *node, uint64_t offset, uint64_t length, BlockExtent *extent)
{
    return chunks_status(node->state, offset, length, extent);
}

static void cloop_info(BlockNode *node, BlockInfo *info)
{
    info->no_dirty_flag = true;
}

const BlockFormat block_format_cloop = {
    .name = "cloop",
    .probe = cloop_probe,
    .open = cloop_open,
    .close = cloop_close,
    .readv = cloop_readv,
    .status = cloop_status,
    .info = cloop_info,
};
