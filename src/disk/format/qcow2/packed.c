/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Compressed clusters. zlib's are raw deflate streams (specification: "Compressed Clusters"). */
#include "base/bytes.h"
#include "disk/format/qcow2/qcow2.h"
#include "disk/iov.h"

#include <errno.h>
#include <libdeflate.h>
#include <string.h>
#include <zstd.h>

/*
 * Both formats of streams, each library at a level whose output is not larger than QEMU's (zlib at
 * its default level with a window of 4 KiB, zstd at its default).
 *
 * libdeflate looks back as far as deflate allows, 32 KiB. QEMU announces a window of 4 KiB when it
 * reads (inflateInit2 with -12), but hands the whole cluster to one call of inflate, which then
 * takes distances from the output itself and keeps no window: tests/interop/convert.py.
 */
#define DEFLATE_LEVEL 2
#define ZSTD_LEVEL    3

/* What a thread keeps from one cluster to the next. */
typedef struct Codecs {
    struct libdeflate_compressor *deflate;
    struct libdeflate_decompressor *inflate;
    ZSTD_CCtx *zstd;
    ZSTD_DCtx *unzstd;
    uint8_t *input;
    size_t input_room;
} Codecs;

static void codecs_free(gpointer data)
{
    Codecs *c = data;
    libdeflate_free_compressor(c->deflate);
    libdeflate_free_decompressor(c->inflate);
    ZSTD_freeCCtx(c->zstd);
    ZSTD_freeDCtx(c->unzstd);
    g_free(c->input);
    g_free(c);
}

static GPrivate own_codecs = G_PRIVATE_INIT(codecs_free);

static Codecs *codecs(void)
{
    Codecs *c = g_private_get(&own_codecs);
    if (!c) {
        c = g_new0(Codecs, 1);
        g_private_set(&own_codecs, c);
    }
    return c;
}

static int inflate_cluster(uint8_t *out, size_t out_length, const uint8_t *in, size_t in_length)
{
    Codecs *c = codecs();
    size_t used, made;
    if (!c->inflate)
        c->inflate = libdeflate_alloc_decompressor();
    if (!c->inflate)
        return -ENOMEM;
    /* What follows the stream in its last sector is not ours to judge. */
    enum libdeflate_result result =
        libdeflate_deflate_decompress_ex(c->inflate, in, in_length, out, out_length, &used, &made);
    return result == LIBDEFLATE_SUCCESS && made == out_length ? 0 : -EIO;
}

static int unzstd_cluster(uint8_t *out, size_t out_length, const uint8_t *in, size_t in_length)
{
    Codecs *c = codecs();
    if (!c->unzstd)
        c->unzstd = ZSTD_createDCtx();
    if (!c->unzstd)
        return -ENOMEM;
    ZSTD_DCtx_reset(c->unzstd, ZSTD_reset_session_only);
    ZSTD_outBuffer output = {out, out_length, 0};
    ZSTD_inBuffer input = {in, in_length, 0};
    while (output.pos < output.size) {
        size_t before = output.pos, read_before = input.pos;
        size_t left = ZSTD_decompressStream(c->unzstd, &output, &input);
        if (ZSTD_isError(left) || (output.pos == before && input.pos == read_before))
            return -EIO;
    }
    return 0;
}

/* Room for a compressed cluster, kept by the thread. */
static uint8_t *input_room(size_t length)
{
    Codecs *c = codecs();
    if (c->input_room < length) {
        g_free(c->input);
        c->input = g_try_malloc(length);
        c->input_room = c->input ? length : 0;
    }
    return c->input;
}

static int unpack(Qcow2 *q, uint64_t entry, uint8_t *out)
{
    uint64_t offset, length;
    qcow2_packed_extent(q, entry, &offset, &length);
    if (offset < q->cluster_size || length > 2 * q->cluster_size || offset > QCOW2_HOST_MAX)
        return -EIO;
    uint8_t *in = input_room(2 * q->cluster_size);
    if (!in)
        return -ENOMEM;
    int result = block_file_read(q->file, offset, in, length);
    if (result < 0)
        return result;
    return q->header.compression == QCOW2_ZSTD ? unzstd_cluster(out, q->cluster_size, in, length)
                                               : inflate_cluster(out, q->cluster_size, in, length);
}

/* The last cluster read in part stays unpacked: a guest reads it in pieces, one after the other. */
static int read_kept(Qcow2 *q, uint64_t entry, uint64_t within, const struct iovec *iov, int n,
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

int qcow2_packed_read(Qcow2 *q, uint64_t entry, uint64_t within, const struct iovec *iov, int n,
                      uint64_t skip, uint64_t length)
{
    struct iovec whole;
    uint64_t covered;
    /* A whole cluster for one piece of memory needs neither the lock nor a copy. */
    if (length == q->cluster_size &&
        block_iov_slice(&whole, 1, iov, n, skip, length, &covered) == 1 && covered == length)
        return unpack(q, entry, whole.iov_base);
    return read_kept(q, entry, within, iov, n, skip, length);
}

void qcow2_packed_forget(Qcow2 *q)
{
    g_mutex_lock(&q->packed_lock);
    q->packed_entry = 0;
    g_mutex_unlock(&q->packed_lock);
}

static ssize_t deflate_cluster(uint8_t *out, size_t room, const uint8_t *in, size_t length)
{
    Codecs *c = codecs();
    if (!c->deflate)
        c->deflate = libdeflate_alloc_compressor(DEFLATE_LEVEL);
    if (!c->deflate)
        return -ENOMEM;
    return (ssize_t)libdeflate_deflate_compress(c->deflate, in, length, out, room);
}

static ssize_t zstd_cluster(uint8_t *out, size_t room, const uint8_t *in, size_t length)
{
    Codecs *c = codecs();
    if (!c->zstd)
        c->zstd = ZSTD_createCCtx();
    if (!c->zstd)
        return -ENOMEM;
    size_t made = ZSTD_compressCCtx(c->zstd, out, room, in, length, ZSTD_LEVEL);
    return ZSTD_isError(made) ? 0 : (ssize_t)made;
}

/* The image's last cluster is compressed as if zeroes followed. */
ssize_t qcow2_pack(BlockNode *node, const void *cluster, size_t length, void *packed, size_t room)
{
    const Qcow2 *q = node->state;
    g_autofree uint8_t *whole = NULL;
    if (length == 0 || length > q->cluster_size || room < q->cluster_size)
        return -EINVAL;
    if (length < q->cluster_size) {
        whole = g_try_malloc0(q->cluster_size);
        if (!whole)
            return -ENOMEM;
        memcpy(whole, cluster, length);
        cluster = whole;
    }
    return q->header.compression == QCOW2_ZSTD
               ? zstd_cluster(packed, q->cluster_size - 1, cluster, q->cluster_size)
               : deflate_cluster(packed, q->cluster_size - 1, cluster, q->cluster_size);
}

/* @length bytes at @at, whose cluster has room; -E2BIG: no more share it. */
static int share_cluster(Qcow2 *q, uint64_t at, uint64_t length, uint64_t *offset)
{
    int result = qcow2_refcount_add(q, at, length, 1);
    if (result == 0)
        *offset = at;
    return result;
}

/*
 * Room for @length bytes, less than a cluster: behind the last compressed cluster, into the next
 * host cluster if that is free, or at the start of another one.
 */
static int alloc_bytes(Qcow2 *q, uint64_t length, uint64_t *offset)
{
    uint64_t got, fresh_cluster;
    bool fresh;
    uint64_t at = q->pack_next;
    uint64_t room = at ? q->cluster_size - (at & (q->cluster_size - 1)) : 0;
    if (room >= length) {
        int result = share_cluster(q, at, length, offset);
        if (result != -E2BIG) { /* as many as the width of the refcounts allows */
            q->pack_next = result == 0 && length < room ? at + length : 0;
            return result;
        }
    }
    int result = qcow2_alloc(q, 1, &fresh_cluster, &got, &fresh);
    if (result < 0)
        return result;
    *offset = fresh_cluster;
    q->pack_next = fresh_cluster + length;
    if (room && room < length && fresh_cluster == at + room &&
        share_cluster(q, at, room, offset) == 0)
        q->pack_next = at + length;
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
static int store(Qcow2 *q, uint64_t offset, const uint8_t *packed, size_t length)
{
    static const uint8_t zeroes[512];
    uint64_t host = 0;
    Qcow2Entry old = {0};
    int result = qcow2_commit_if_full(q);
    if (result == 0)
        result = qcow2_l2_writable(q, offset);
    if (result == 0)
        result = alloc_bytes(q, length, &host);
    if (result < 0)
        return result;
    /* Up to the next sector, so that a reader of whole sectors finds them in the file. */
    struct iovec iov[2] = {{(void *)packed, length},
                           {(void *)zeroes, align_up(host + length, 512) - (host + length)}};
    result = q->file->ops->writev(q->file, host, iov, iov[1].iov_len ? 2 : 1);
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

int qcow2_write_packed(BlockNode *node, uint64_t offset, const void *packed, size_t packed_length,
                       size_t length)
{
    Qcow2 *q = node->state;
    if (q->external || q->encrypted)
        return -ENOTSUP;
    if (offset % q->cluster_size || packed_length == 0 || packed_length >= q->cluster_size ||
        (length < q->cluster_size && offset + length != node->size))
        return -EINVAL;
    BlockRange range;
    qcow2_hold(q, &range, offset, offset + q->cluster_size, true);
    g_mutex_lock(&q->meta);
    int result = q->corrupt ? -EIO : store(q, offset, packed, packed_length);
    g_mutex_unlock(&q->meta);
    qcow2_release(q, &range);
    return result;
}

int qcow2_write_compressed(BlockNode *node, uint64_t offset, const void *cluster, size_t length)
{
    Qcow2 *q = node->state;
    if (q->external || q->encrypted) /* host clusters have their places, and are whole */
        return -ENOTSUP;
    if (offset % q->cluster_size || (length < q->cluster_size && offset + length != node->size))
        return -EINVAL;
    g_autofree uint8_t *packed = g_try_malloc(q->cluster_size);
    if (!packed)
        return -ENOMEM;
    ssize_t made = qcow2_pack(node, cluster, length, packed, q->cluster_size);
    if (made < 0)
        return (int)made;
    if (made > 0)
        return qcow2_write_packed(node, offset, packed, (size_t)made, length);
    struct iovec iov = {(void *)cluster, length};
    return qcow2_writev(node, offset, &iov, 1);
}
