/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "disk/format/chunks.h"
#include "base/bytes.h"
#include "base/error.h"
#include "disk/iov.h"

#include <bzlib.h>
#include <errno.h>
#include <libdeflate.h>
#include <lzma.h>
#include <stdlib.h>

#define XZ_MEMORY_MAX MIB(192) /* more than the dictionary of any preset takes */

void chunks_init(ChunkMap *m, BlockNode *node)
{
    m->node = node;
    m->chunks = g_array_new(FALSE, FALSE, sizeof(Chunk));
    g_mutex_init(&m->lock);
}

void chunks_clear(ChunkMap *m)
{
    if (!m->chunks)
        return;
    for (unsigned i = 0; i < CHUNKS_CACHED; i++) {
        if (m->cache[i].bytes)
            g_bytes_unref(m->cache[i].bytes);
    }
    g_array_unref(m->chunks);
    g_mutex_clear(&m->lock);
    m->chunks = NULL;
}

bool chunks_read_only(const BlockNode *node, GError **err)
{
    return node->read_only || lodge_fail(err, LODGE_ERROR_DENIED, "Image is read-only");
}

bool chunks_add(ChunkMap *m, const Chunk *c, GError **err)
{
    bool plain = c->kind == CHUNK_ZERO || c->kind == CHUNK_RAW;
    uint64_t end;
    if (c->length == 0)
        return true;
    if (m->chunks->len >= CHUNKS_MAX)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "%s: more than %u chunks", m->node->path,
                          CHUNKS_MAX);
    if (!plain && c->length > CHUNK_BYTES_MAX)
        return lodge_fail(err, LODGE_ERROR_LIMIT,
                          "%s: sector count %" G_GUINT64_FORMAT " for chunk %u is larger than max "
                          "(%u)",
                          m->node->path, c->length / 512, m->chunks->len,
                          (unsigned)(CHUNK_BYTES_MAX / 512));
    if (!plain && c->packed > CHUNK_BYTES_MAX * 2)
        return lodge_fail(err, LODGE_ERROR_LIMIT,
                          "%s: length %" G_GUINT64_FORMAT " for chunk %u is larger than max (%u)",
                          m->node->path, c->packed, m->chunks->len, (unsigned)CHUNK_BYTES_MAX * 2);
    if (!add_u64(c->start, c->length, &end) || end > INT64_MAX ||
        !add_u64(c->offset, c->packed, &end) || end > INT64_MAX)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "%s: chunk %u cannot be where it is",
                          m->node->path, m->chunks->len);
    g_array_append_val(m->chunks, *c);
    return true;
}

static int by_start(gconstpointer a, gconstpointer b)
{
    uint64_t x = ((const Chunk *)a)->start, y = ((const Chunk *)b)->start;
    return x < y ? -1 : x > y;
}

void chunks_sort(ChunkMap *m)
{
    g_array_sort(m->chunks, by_start);
}

/* The last one that begins at or before @offset; NULL where there is none, or it has ended. */
static const Chunk *find(const ChunkMap *m, uint64_t offset, uint64_t *index, uint64_t *length)
{
    const Chunk *c = (const Chunk *)m->chunks->data;
    guint low = 0, high = m->chunks->len; /* the first that begins behind offset */
    while (low < high) {
        guint middle = low + (high - low) / 2;
        if (c[middle].start <= offset)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == 0 || offset - c[low - 1].start >= c[low - 1].length)
        return NULL;
    uint64_t end = c[low - 1].start + c[low - 1].length;
    if (low < m->chunks->len)
        end = MIN(end, c[low].start);
    *index = low - 1;
    *length = end - offset;
    return &c[low - 1];
}

static void free_decompressor(gpointer d)
{
    libdeflate_free_decompressor(d);
}

static GPrivate decompressors = G_PRIVATE_INIT(free_decompressor);

static bool unpack_zlib(const uint8_t *in, size_t packed, uint8_t *out, size_t length)
{
    struct libdeflate_decompressor *d = g_private_get(&decompressors);
    size_t got = 0;
    if (!d) {
        d = libdeflate_alloc_decompressor();
        g_private_set(&decompressors, d);
    }
    return d &&
           libdeflate_zlib_decompress(d, in, packed, out, length, &got) == LIBDEFLATE_SUCCESS &&
           got == length;
}

static bool unpack(ChunkKind kind, uint8_t *in, size_t packed, uint8_t *out, size_t length)
{
    if (kind == CHUNK_ZLIB)
        return unpack_zlib(in, packed, out, length);
    if (kind == CHUNK_BZIP2) {
        unsigned got = (unsigned)length;
        return BZ2_bzBuffToBuffDecompress((char *)out, &got, (char *)in, (unsigned)packed, 0, 0) ==
                   BZ_OK &&
               got == length;
    }
    uint64_t memory = XZ_MEMORY_MAX;
    size_t in_at = 0, out_at = 0;
    return lzma_stream_buffer_decode(&memory, 0, NULL, in, &in_at, packed, out, &out_at, length) ==
               LZMA_OK &&
           out_at == length;
}

static int unpack_chunk(ChunkMap *m, const Chunk *c, GBytes **bytes)
{
    g_autofree uint8_t *in = g_try_malloc(c->packed + 1), *out = g_try_malloc(c->length);
    if (!in || !out)
        return -ENOMEM;
    int result = block_file_read(m->node->file, c->offset, in, c->packed);
    if (result == 0 && !unpack(c->kind, in, c->packed, out, c->length))
        result = -EIO;
    if (result == 0)
        *bytes = g_bytes_new_take(g_steal_pointer(&out), c->length);
    return result;
}

static void remember(ChunkMap *m, uint64_t index, GBytes *bytes)
{
    size_t total = 0;
    g_mutex_lock(&m->lock);
    m->hand = (m->hand + 1) % CHUNKS_CACHED;
    g_clear_pointer(&m->cache[m->hand].bytes, g_bytes_unref);
    for (unsigned i = 0; i < CHUNKS_CACHED; i++)
        total += m->cache[i].bytes ? g_bytes_get_size(m->cache[i].bytes) : 0;
    if (total + g_bytes_get_size(bytes) <= CHUNKS_CACHE_BYTES) {
        m->cache[m->hand].index = index;
        m->cache[m->hand].bytes = g_bytes_ref(bytes);
    }
    g_mutex_unlock(&m->lock);
}

/* The unpacked chunk, to be unreferenced. */
static int get(ChunkMap *m, const Chunk *c, uint64_t index, GBytes **bytes)
{
    *bytes = NULL;
    g_mutex_lock(&m->lock);
    for (unsigned i = 0; i < CHUNKS_CACHED; i++) {
        if (m->cache[i].bytes && m->cache[i].index == index)
            *bytes = g_bytes_ref(m->cache[i].bytes);
        if (*bytes)
            break;
    }
    g_mutex_unlock(&m->lock);
    if (*bytes)
        return 0;
    int result = unpack_chunk(m, c, bytes);
    if (result == 0)
        remember(m, index, *bytes);
    return result;
}

static int read_plain(ChunkMap *m, const Chunk *c, uint64_t within, const struct iovec *iov, int n,
                      uint64_t skip, uint64_t length)
{
    uint64_t there = 0;
    if (c->kind == CHUNK_RAW && within < c->packed)
        there = MIN(length, c->packed - within);
    block_iov_zero(iov, n, skip + there, length - there);
    return there ? block_file_readv(m->node->file, c->offset + within, iov, n, skip, there) : 0;
}

int chunks_readv(ChunkMap *m, uint64_t offset, const struct iovec *iov, int n)
{
    uint64_t total = block_iov_length(iov, n), length;
    for (uint64_t done = 0; done < total; done += length) {
        uint64_t index;
        const Chunk *c = find(m, offset + done, &index, &length);
        if (!c)
            return -EIO;
        uint64_t within = offset + done - c->start;
        length = MIN(length, total - done);
        int result;
        if (c->kind == CHUNK_ZERO || c->kind == CHUNK_RAW) {
            result = read_plain(m, c, within, iov, n, done, length);
        } else {
            g_autoptr(GBytes) bytes = NULL;
            result = get(m, c, index, &bytes);
            if (result == 0)
                block_iov_from(iov, n, done,
                               (const uint8_t *)g_bytes_get_data(bytes, NULL) + within, length);
        }
        if (result < 0)
            return result;
    }
    return 0;
}

int chunks_status(ChunkMap *m, uint64_t offset, uint64_t length, BlockExtent *extent)
{
    uint64_t index, same;
    const Chunk *c = find(m, offset, &index, &same);
    *extent = (BlockExtent){.length = 1, .present = true, .data = true};
    if (!c) { /* which a read will say */
        extent->length = MIN(length, 512);
        return 0;
    }
    uint64_t within = offset - c->start;
    extent->length = MIN(length, same);
    if (c->kind == CHUNK_RAW && within < c->packed) {
        extent->length = MIN(extent->length, c->packed - within);
        extent->has_offset = true;
        extent->file_offset = c->offset + within;
    } else if (c->kind == CHUNK_RAW || c->kind == CHUNK_ZERO) {
        extent->data = false;
        extent->zero = true;
    } else {
        extent->compressed = true;
    }
    return 0;
}

bool chunks_fast_begin(ChunkMap *m, uint64_t offset, uint64_t length, BlockFast *fast)
{
    uint64_t index, same;
    const Chunk *c = find(m, offset, &index, &same);
    if (!c || c->kind != CHUNK_RAW || same < length ||
        !range_within(offset - c->start, length, c->packed))
        return false;
    fast->file_offset = c->offset + (offset - c->start);
    return true;
}
