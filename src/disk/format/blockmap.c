/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/bytes.h"
#include "base/error.h"
#include "disk/format/blockmap.h"
#include "disk/iov.h"

#include <errno.h>

#define LOAD_BYTES    65536u

bool blockmap_init(BlockMap *m, BlockNode *node, const BlockMapOps *ops, GError **err)
{
    m->node = node;
    m->ops = ops;
    g_mutex_init(&m->change);
    g_mutex_init(&m->lock);
    int result = node->file->ops->size(node->file, &m->limit);
    return result == 0 || lodge_fail_errno(err, -result, "%s: cannot find its size", node->path);
}

bool blockmap_allocate(BlockMap *m, GError **err)
{
    const char *path = m->node->path;
    if (m->blocks > BLOCKMAP_TABLE_MAX / 4)
        return lodge_fail(err, LODGE_ERROR_LIMIT,
                          "%s: a block table of %" G_GUINT64_FORMAT " entries; at most %u are "
                          "supported",
                          path, m->blocks, (unsigned)(BLOCKMAP_TABLE_MAX / 4));
    m->table = g_try_new(uint32_t, m->blocks + 1);
    m->dirty = g_try_malloc0(m->blocks / BLOCKMAP_PIECE + 1);
    if (!m->table || !m->dirty)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "%s: no memory for its block table", path);
    return true;
}

bool blockmap_load(BlockMap *m, GError **err)
{
    const char *path = m->node->path;
    uint64_t bytes = m->blocks * 4;
    if (m->blocks <= BLOCKMAP_TABLE_MAX / 4 && !range_within(m->table_offset, bytes, m->limit))
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "%s: the block table (%" G_GUINT64_FORMAT " entries at 0x%"
                          G_GINT64_MODIFIER "x) is not within the file",
                          path, m->blocks, m->table_offset);
    if (!blockmap_allocate(m, err))
        return false;
    for (uint64_t done = 0; done < bytes; done += LOAD_BYTES) {
        int result = block_file_read(m->node->file, m->table_offset + done,
                                     (uint8_t *)m->table + done, MIN(LOAD_BYTES, bytes - done));
        if (result < 0)
            return lodge_fail_errno(err, -result, "%s: cannot read its block table", path);
    }
    for (uint64_t i = 0; i < m->blocks; i++)
        m->table[i] = m->ops->decode(&m->table[i]);
    return true;
}

void blockmap_clear(BlockMap *m)
{
    g_free(m->table);
    g_free(m->dirty);
    g_free(m->unprepared);
    if (m->ops) {
        g_mutex_clear(&m->change);
        g_mutex_clear(&m->lock);
    }
}

uint64_t blockmap_offset(const BlockMap *m, uint32_t entry)
{
    return m->base + entry * m->unit; /* below 2^32 * 2^26 plus a 32-bit base */
}

static bool unprepared(const BlockMap *m, uint64_t index)
{
    return m->unprepared && (m->unprepared[index / 8] & (1u << (index % 8)));
}

/* Where the bytes at @offset are, and how many of @length follow on alike. */
typedef struct Run {
    bool there, prepared;
    uint64_t host, length;
} Run;

/* `lock` is held; looks at no more blocks than the answer needs. */
static int look_up(const BlockMap *m, uint64_t offset, uint64_t length, Run *run)
{
    uint64_t block = m->block, within = offset % block;
    uint64_t index = offset / block, last = (offset + length - 1) / block;
    uint32_t entry = m->table[index];
    *run = (Run){.there = entry < m->none_from, .prepared = !unprepared(m, index)};
    uint64_t start = blockmap_offset(m, entry);
    if (run->there && start >= m->limit)
        return -EIO;
    uint64_t next = index + 1;
    for (; next <= last; next++) {
        uint32_t other = m->table[next];
        if (!run->there ? other < m->none_from
                        : other >= m->none_from || unprepared(m, next) == run->prepared ||
                              blockmap_offset(m, other) != start + ((next - index) * block) ||
                              blockmap_offset(m, other) >= m->limit)
            break;
    }
    run->host = start + within;
    run->length = MIN(length, (next - index) * block - within);
    return 0;
}

static int find(BlockMap *m, uint64_t offset, uint64_t length, Run *run)
{
    g_mutex_lock(&m->lock);
    int result = look_up(m, offset, length, run);
    g_mutex_unlock(&m->lock);
    return result;
}

int blockmap_readv(BlockMap *m, uint64_t offset, const struct iovec *iov, int n)
{
    uint64_t total = block_iov_length(iov, n);
    for (uint64_t done = 0; done < total;) {
        Run run;
        int result = find(m, offset + done, total - done, &run);
        if (result == 0 && run.there)
            result = block_file_readv(m->node->file, run.host, iov, n, done, run.length);
        else if (result == 0)
            block_iov_zero(iov, n, done, run.length);
        if (result < 0)
            return result;
        done += run.length;
    }
    return 0;
}

/* The table refers to the block from now on; the file's table from the next commit on. */
static void publish(BlockMap *m, uint64_t index, uint32_t entry)
{
    g_mutex_lock(&m->lock);
    m->table[index] = entry;
    m->dirty[index / BLOCKMAP_PIECE] = 1;
    m->uncommitted = true;
    g_mutex_unlock(&m->lock);
}

/* A block that reads as zero and that nothing refers to. `change` is held. */
static int take_block(BlockMap *m, uint32_t *entry)
{
    if (!m->has_spare)
        return m->ops->reserve(m, entry);
    BlockFile *file = m->node->file;
    *entry = m->spare;
    int result = file->ops->zero(file, blockmap_offset(m, m->spare), m->block, true);
    m->has_spare = result < 0;
    return result;
}

/* Writes into the first block of the range, which was not there or not prepared. */
static int write_new(BlockMap *m, uint64_t offset, const struct iovec *iov, int n, uint64_t skip,
                     uint64_t length)
{
    uint64_t index = offset / m->block, within = offset % m->block;
    uint32_t entry;
    Run run;
    g_mutex_lock(&m->change);
    int result = find(m, offset, length, &run);
    if (result == 0 && run.there) {
        if (!run.prepared)
            result = m->ops->prepare(m, index);
        if (result == 0 && !run.prepared) {
            g_mutex_lock(&m->lock);
            m->unprepared[index / 8] &= (uint8_t)~(1u << (index % 8));
            g_mutex_unlock(&m->lock);
        }
        if (result == 0)
            result = block_file_writev(m->node->file, run.host, iov, n, skip, length);
        g_mutex_unlock(&m->change);
        return result;
    }
    if (result == 0)
        result = take_block(m, &entry);
    if (result == 0) {
        result = block_file_writev(m->node->file, blockmap_offset(m, entry) + within, iov, n, skip,
                                   length);
        if (result == 0)
            publish(m, index, entry);
        else
            m->spare = entry, m->has_spare = true;
    }
    g_mutex_unlock(&m->change);
    return result;
}

int blockmap_writev(BlockMap *m, uint64_t offset, const struct iovec *iov, int n)
{
    uint64_t total = block_iov_length(iov, n), block = m->block;
    for (uint64_t done = 0; done < total;) {
        Run run;
        int result = find(m, offset + done, total - done, &run);
        if (result == 0 && run.there && run.prepared) {
            result = block_file_writev(m->node->file, run.host, iov, n, done, run.length);
        } else if (result == 0) {
            uint64_t room = block - (offset + done) % block;
            run.length = MIN(room, total - done);
            result = write_new(m, offset + done, iov, n, done, run.length);
        }
        if (result < 0)
            return result;
        done += run.length;
    }
    return 0;
}

int blockmap_write_zeroes(BlockMap *m, uint64_t offset, uint64_t length, bool unmap)
{
    BlockFile *file = m->node->file;
    while (length > 0) {
        Run run;
        int result = find(m, offset, length, &run);
        if (result == 0 && run.there)
            result = file->ops->zero(file, run.host, run.length, unmap);
        if (result < 0)
            return result;
        offset += run.length;
        length -= run.length;
    }
    return 0;
}

int blockmap_discard(BlockMap *m, uint64_t offset, uint64_t length)
{
    BlockFile *file = m->node->file;
    while (length > 0) {
        Run run;
        int result = find(m, offset, length, &run);
        if (result == 0 && run.there)
            result = file->ops->discard(file, run.host, run.length);
        if (result < 0)
            return result;
        offset += run.length;
        length -= run.length;
    }
    return 0;
}

static int write_piece(BlockMap *m, uint64_t piece)
{
    uint8_t bytes[BLOCKMAP_PIECE * 4];
    uint64_t first = piece * BLOCKMAP_PIECE;
    uint64_t count = MIN(BLOCKMAP_PIECE, m->blocks - first);
    for (uint64_t i = 0; i < count; i++)
        m->ops->encode(bytes + i * 4, m->table[first + i]);
    return block_file_write(m->node->file, m->table_offset + first * 4, bytes, count * 4);
}

uint64_t blockmap_pieces(const BlockMap *m)
{
    return (m->blocks + BLOCKMAP_PIECE - 1) / BLOCKMAP_PIECE;
}

/* `change` is held: nobody adds entries. */
static int commit(BlockMap *m)
{
    int result = block_node_sync(m->node); /* the data, before what refers to it */
    if (result == 0 && m->ops->before_commit)
        result = m->ops->before_commit(m);
    if (result == 0 && m->ops->write_table)
        result = m->ops->write_table(m);
    for (uint64_t i = 0; result == 0 && i < blockmap_pieces(m); i++) {
        if (!m->dirty[i])
            continue;
        result = write_piece(m, i);
        m->dirty[i] = result < 0;
    }
    if (result == 0)
        result = block_node_sync(m->node);
    if (result == 0) {
        g_mutex_lock(&m->lock);
        m->uncommitted = false;
        g_mutex_unlock(&m->lock);
    }
    return result;
}

bool blockmap_flush_is_plain(BlockMap *m)
{
    g_mutex_lock(&m->lock);
    bool plain = !m->uncommitted;
    g_mutex_unlock(&m->lock);
    return plain;
}

int blockmap_flush(BlockMap *m)
{
    if (blockmap_flush_is_plain(m))
        return block_node_sync(m->node);
    g_mutex_lock(&m->change);
    int result = commit(m);
    g_mutex_unlock(&m->change);
    return result;
}

int blockmap_status(BlockMap *m, uint64_t offset, uint64_t length, BlockExtent *extent)
{
    Run run;
    int result = find(m, offset, length, &run);
    if (result < 0)
        return result;
    *extent = (BlockExtent){.length = run.length, .present = true, .data = run.there,
                            .zero = !run.there, .has_offset = run.there,
                            .file_offset = run.host};
    return 0;
}

bool blockmap_fast_begin(BlockMap *m, bool write, uint64_t offset, uint64_t length,
                         BlockFast *fast)
{
    Run run;
    if (!g_mutex_trylock(&m->lock))
        return false;
    int result = look_up(m, offset, length, &run);
    g_mutex_unlock(&m->lock);
    fast->file_offset = run.host;
    return result == 0 && run.there && run.length == length && (run.prepared || !write);
}
