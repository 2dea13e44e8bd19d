/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Compressed clusters. zlib's are raw deflate streams (specification: "Compressed Clusters"). */
#include "base/bytes.h"
#include "disk/format/qcow2/qcow2.h"
#include "disk/iov.h"

#include <errno.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#define DEFLATE_WINDOW 12 /* bits, as the specification demands of a writer */

static int inflate_cluster(uint8_t *out, size_t out_length, const uint8_t *in, size_t in_length)
{
    z_stream stream = {.next_in = (uint8_t *)in,
                       .avail_in = (uInt)in_length,
                       .next_out = out,
                       .avail_out = (uInt)out_length};
    if (inflateInit2(&stream, -MAX_WBITS) != Z_OK)
        return -ENOMEM;
    int result = inflate(&stream, Z_FINISH);
    bool full = stream.avail_out == 0;
    inflateEnd(&stream);
    /* What follows the stream in its last sector is not ours to judge. */
    return full && (result == Z_STREAM_END || result == Z_BUF_ERROR) ? 0 : -EIO;
}

static int unzstd_cluster(uint8_t *out, size_t out_length, const uint8_t *in, size_t in_length)
{
    ZSTD_DCtx *context = ZSTD_createDCtx();
    if (!context)
        return -ENOMEM;
    ZSTD_outBuffer output = {out, out_length, 0};
    ZSTD_inBuffer input = {in, in_length, 0};
    int result = 0;
    while (output.pos < output.size && result == 0) {
        size_t before = output.pos, read_before = input.pos;
        size_t left = ZSTD_decompressStream(context, &output, &input);
        if (ZSTD_isError(left) || (output.pos == before && input.pos == read_before))
            result = -EIO;
    }
    ZSTD_freeDCtx(context);
    return result;
}

static int unpack(Qcow2 *q, uint64_t entry, uint8_t *out)
{
    uint64_t offset, length;
    qcow2_packed_extent(q, entry, &offset, &length);
    if (offset < q->cluster_size || length > 2 * q->cluster_size || offset > QCOW2_HOST_MAX)
        return -EIO;
    g_autofree uint8_t *in = g_try_malloc(length);
    if (!in)
        return -ENOMEM;
    int result = block_file_read(q->file, offset, in, length);
    if (result < 0)
        return result;
    return q->header.compression == QCOW2_ZSTD ? unzstd_cluster(out, q->cluster_size, in, length)
                                               : inflate_cluster(out, q->cluster_size, in, length);
}

/* The last cluster read stays unpacked: a guest reads it in small pieces, one after the other. */
int qcow2_packed_read(Qcow2 *q, uint64_t entry, uint64_t within, const struct iovec *iov, int n,
                      uint64_t skip, uint64_t length)
{
    int result = 0;
    g_mutex_lock(&q->packed_lock);
    if (!q->packed)
        q->packed = g_try_malloc(q->cluster_size);
    if (!q->packed)
        result = -ENOMEM;
    if (result == 0 && q->packed_entry != entry) {
        q->packed_entry = 0;
        result = unpack(q, entry, q->packed);
        if (result == 0)
            q->packed_entry = entry;
    }
    if (result == 0)
        block_iov_from(iov, n, skip, q->packed + within, length);
    g_mutex_unlock(&q->packed_lock);
    return result;
}

void qcow2_packed_forget(Qcow2 *q)
{
    g_mutex_lock(&q->packed_lock);
    q->packed_entry = 0;
    g_mutex_unlock(&q->packed_lock);
}

static size_t deflate_cluster(uint8_t *out, size_t room, const uint8_t *in, size_t length)
{
    z_stream stream = {.next_in = (uint8_t *)in,
                       .avail_in = (uInt)length,
                       .next_out = out,
                       .avail_out = (uInt)room};
    if (deflateInit2(&stream, Z_DEFAULT_COMPRESSION, Z_DEFLATED, -DEFLATE_WINDOW, 9,
                     Z_DEFAULT_STRATEGY) != Z_OK)
        return 0;
    int result = deflate(&stream, Z_FINISH);
    deflateEnd(&stream);
    return result == Z_STREAM_END ? room - stream.avail_out : 0;
}

/* The length of the compressed cluster; 0: it does not get smaller. */
static size_t pack(const Qcow2 *q, uint8_t *out, const uint8_t *in)
{
    size_t room = q->cluster_size - 1;
    if (q->header.compression != QCOW2_ZSTD)
        return deflate_cluster(out, room, in, q->cluster_size);
    size_t length = ZSTD_compress(out, room, in, q->cluster_size, ZSTD_CLEVEL_DEFAULT);
    return ZSTD_isError(length) ? 0 : length;
}

/*
 * Room for @length bytes: behind the last compressed cluster if they fit into the cluster that
 * it ends in, or at the start of a new one.
 */
static int alloc_bytes(Qcow2 *q, uint64_t length, uint64_t *offset)
{
    uint64_t got;
    bool fresh;
    uint64_t at = q->pack_next;
    uint64_t room = at ? q->cluster_size - (at & (q->cluster_size - 1)) : 0;
    int result;
    if (at && room >= length) {
        result = qcow2_refcount_add(q, at, length, 1);
        if (result == 0) {
            *offset = at;
            q->pack_next = length < room ? at + length : 0;
            return 0;
        }
        if (result != -E2BIG) /* as many as the width of the refcounts allows */
            return result;
    }
    result = qcow2_alloc(q, 1, offset, &got, &fresh);
    if (result < 0)
        return result;
    q->pack_next = length < q->cluster_size ? *offset + length : 0;
    return 0;
}

static int put_entry(Qcow2 *q, uint64_t offset, uint64_t word, Qcow2Entry *old)
{
    Qcow2Page *page;
    uint64_t index;
    int result = qcow2_l2_page(q, offset, &page, &index);
    if (result < 0)
        return result;
    *old = qcow2_entry_get(q, page->bytes, index);
    qcow2_entry_put(q, page->bytes, index, (Qcow2Entry){.word = word});
    qcow2_cache_dirty(&q->l2, page);
    q->uncommitted = true;
    g_mutex_unlock(&q->lock);
    return 0;
}

/* Stores @packed for the cluster at @offset, whose range is held. */
static int store(Qcow2 *q, uint64_t offset, uint8_t *packed, size_t length)
{
    uint64_t host;
    Qcow2Entry old = {0};
    int result = qcow2_commit_if_full(q);
    if (result == 0)
        result = qcow2_l2_writable(q, offset);
    if (result == 0)
        result = alloc_bytes(q, length, &host);
    if (result < 0)
        return result;
    /* Up to the next sector, so that a reader of whole sectors finds them in the file. */
    uint64_t padded = align_up(host + length, 512) - host;
    memset(packed + length, 0, padded - length);
    result = block_file_write(q->file, host, packed, padded);
    unsigned x = 62 - (q->cluster_bits - 8);
    uint64_t sectors = ((host + length - 1) >> 9) - (host >> 9);
    if (result == 0)
        result = put_entry(q, offset, host | QCOW2_COMPRESSED | sectors << x, &old);
    if (result < 0) {
        qcow2_refcount_add(q, host, length, -1);
        q->pack_next = 0;
        return result;
    }
    qcow2_entry_free(q, &old, false);
    return 0;
}

int qcow2_write_compressed(BlockNode *node, uint64_t offset, const void *cluster, size_t length)
{
    Qcow2 *q = node->state;
    if (offset % q->cluster_size || length == 0 || length > q->cluster_size ||
        (length < q->cluster_size && offset + length != node->size))
        return -EINVAL;
    g_autofree uint8_t *in = g_try_malloc0(q->cluster_size);
    g_autofree uint8_t *out = g_try_malloc(q->cluster_size + 512);
    if (!in || !out)
        return -ENOMEM;
    memcpy(in, cluster, length);
    size_t packed = pack(q, out, in);
    if (packed == 0) {
        struct iovec iov = {(void *)cluster, length};
        return qcow2_writev(node, offset, &iov, 1);
    }
    BlockRange range;
    qcow2_hold(q, &range, offset, offset + q->cluster_size, true);
    g_mutex_lock(&q->meta);
    int result = q->corrupt ? -EIO : store(q, offset, out, packed);
    g_mutex_unlock(&q->meta);
    qcow2_release(q, &range);
    return result;
}
