/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Reading and writing the grains of a GrainMap. */
#include "base/bytes.h"
#include "base/error.h"
#include "disk/format/grains.h"
#include "disk/iov.h"

#include <errno.h>
#include <string.h>

#define BATCH_BYTES  MIB(8) /* that are given their place at once */
#define BOUNCE_BYTES MIB(1) /* of one step through the cipher */
#define SECTOR       512u

static void hold(GrainMap *m, BlockRange *range, uint64_t offset, uint64_t length)
{
    uint64_t end = (offset + length + m->grain - 1) / m->grain * m->grain;
    g_mutex_lock(&m->lock);
    block_range_acquire(&m->ranges, &m->lock, range, offset - offset % m->grain, end, true, NULL,
                        NULL);
    g_mutex_unlock(&m->lock);
}

static void release(GrainMap *m, BlockRange *range)
{
    g_mutex_lock(&m->lock);
    block_range_release(&m->ranges, range);
    g_mutex_unlock(&m->lock);
}

static int may_write(GrainMap *m)
{
    if (m->read_only)
        return -EROFS;
    return g_atomic_int_get(&m->suspect) ? -EIO : 0;
}

/* Bytes that the grain of @offset has: the last one may be shorter. */
static uint64_t grain_length(const GrainMap *m, uint64_t offset)
{
    uint64_t start = offset - offset % m->grain;
    return MIN(m->grain, m->size - start);
}

/* The grain that was unpacked last is kept: a guest reads it in small pieces, one after the other. */
static int read_packed(GrainMap *m, uint64_t offset, const Grain *grain, const struct iovec *iov,
                       int n, uint64_t skip, uint64_t length)
{
    uint64_t within = offset % m->grain, whole = grain_length(m, offset);
    g_mutex_lock(&m->cache_lock);
    bool hit = m->cache_offset == grain->offset && m->cache_offset;
    if (hit)
        block_iov_from(iov, n, skip, m->cache + within, length);
    g_mutex_unlock(&m->cache_lock);
    if (hit)
        return 0;
    struct iovec direct;
    uint64_t covered;
    if (length == m->grain && block_iov_slice(&direct, 1, iov, n, skip, length, &covered) == 1 &&
        covered == length) /* all of it is wanted, in one piece */
        return m->ops->unpack(m, grain, direct.iov_base, length);
    g_autofree uint8_t *out = g_try_malloc(m->grain);
    if (!out)
        return -ENOMEM;
    int result = m->ops->unpack(m, grain, out, whole);
    if (result < 0)
        return result;
    block_iov_from(iov, n, skip, out + within, length);
    if (length < whole) {
        g_mutex_lock(&m->cache_lock);
        uint8_t *old = m->cache;
        m->cache = g_steal_pointer(&out);
        m->cache_offset = grain->offset;
        g_mutex_unlock(&m->cache_lock);
        g_free(old);
    }
    return 0;
}

/* Sector by sector, as the cipher has them: at most BOUNCE_BYTES; *took says how many. */
static int read_ciphered(GrainMap *m, uint64_t offset, uint64_t host, const struct iovec *iov, int n,
                         uint64_t skip, uint64_t length, uint64_t *took)
{
    uint64_t before = offset % SECTOR, room = BOUNCE_BYTES - before;
    *took = MIN(length, room);
    size_t bytes = align_up(before + *took, SECTOR);
    g_autofree uint8_t *bounce = g_try_malloc(bytes);
    if (!bounce)
        return -ENOMEM;
    int result = block_file_read(m->file, host - before, bounce, bytes);
    if (result == 0)
        result = block_cipher_decrypt(m->cipher, (m->start + offset - before) / SECTOR, bounce,
                                      bounce, bytes);
    if (result == 0)
        block_iov_from(iov, n, skip, bounce + before, *took);
    return result;
}

int grains_readv(GrainMap *m, uint64_t offset, const struct iovec *iov, int n, uint64_t skip,
                 uint64_t length)
{
    while (length > 0) {
        GrainRun run;
        uint64_t took;
        int result = grains_find(m, offset, length, &run);
        if (result < 0)
            return result;
        took = run.length;
        if (run.grain.kind == GRAIN_NONE)
            result = m->bad_backing ? -EINVAL
                                    : block_read_backing(m->node, m->start + offset, iov, n, skip,
                                                         took);
        else if (run.grain.kind == GRAIN_ZERO)
            block_iov_zero(iov, n, skip, took);
        else if (run.grain.kind == GRAIN_PACKED)
            result = read_packed(m, offset, &run.grain, iov, n, skip, took);
        else if (m->cipher)
            result = read_ciphered(m, offset, run.host, iov, n, skip, run.length, &took);
        else
            result = block_file_readv(m->file, run.host, iov, n, skip, took);
        if (result < 0)
            return result;
        offset += took;
        skip += took;
        length -= took;
    }
    return 0;
}

static int read_flat(GrainMap *m, uint64_t offset, uint8_t *buffer, uint64_t length)
{
    struct iovec iov = {buffer, length};
    return length ? grains_readv(m, offset, &iov, 1, 0, length) : 0;
}

/* Over sectors that have their place; what is only touched in part is read first. */
static int write_ciphered(GrainMap *m, uint64_t offset, uint64_t host, const struct iovec *iov,
                          int n, uint64_t skip, uint64_t length, uint64_t *took)
{
    BlockRange range;
    uint64_t before = offset % SECTOR;
    *took = MIN(length, BOUNCE_BYTES - before);
    size_t bytes = align_up(before + *took, SECTOR);
    g_autofree uint8_t *bounce = g_try_malloc(bytes);
    if (!bounce)
        return -ENOMEM;
    int result = 0;
    hold(m, &range, offset, *took);
    if (before || bytes != *took)
        result = read_flat(m, offset - before, bounce, MIN(bytes, m->size - (offset - before)));
    block_iov_to(bounce + before, iov, n, skip, *took);
    if (result == 0)
        result = block_cipher_encrypt(m->cipher, (m->start + offset - before) / SECTOR, bounce,
                                      bounce, bytes);
    if (result == 0)
        result = block_file_write(m->file, host - before, bounce, bytes);
    release(m, &range);
    return result;
}

/* A new grain with its whole content in @bytes. */
static int place(GrainMap *m, uint64_t index, GrainKind kind, const uint8_t *bytes, size_t length,
                 size_t room, uint64_t alignment)
{
    Grain g = {.kind = kind, .length = length};
    int result = grains_reserve(m, room, alignment, length < room, &g.offset);
    if (result < 0)
        return result;
    result = block_file_write(m->file, g.offset, bytes, length);
    if (result < 0) {
        grains_unreserve(m, g.offset, room);
        return result;
    }
    return grains_publish(m, index, 1, &g);
}

/* @bytes: one grain, @length of it within the disk and the rest zeroes. Its range is held. */
static int store_grain(GrainMap *m, uint64_t index, uint8_t *bytes, size_t length, bool pack)
{
    uint64_t start = m->start + index * m->grain;
    if (pack && m->pack_room) {
        g_autofree uint8_t *out = g_try_malloc0(align_up(m->pack_room, m->pack_alignment));
        if (!out)
            return -ENOMEM;
        size_t packed = m->ops->pack(m, start, bytes, length, out, m->pack_room);
        size_t padded = align_up(packed, m->pack_alignment);
        if (packed)
            return place(m, index, GRAIN_PACKED, out, padded, padded, m->pack_alignment);
        if (m->packs)
            return -EIO;
    }
    if (m->cipher) {
        int result = block_cipher_encrypt(m->cipher, start / SECTOR, bytes, bytes, m->grain);
        if (result < 0)
            return result;
    }
    return place(m, index, GRAIN_DATA, bytes, m->grain, m->grain, m->alignment);
}

/* One grain at a time, through memory: packed ones, encrypted ones. Its range is held. */
static int rewrite_grain(GrainMap *m, uint64_t offset, const struct iovec *iov, int n, uint64_t skip,
                         uint64_t length)
{
    uint64_t within = offset % m->grain, whole = grain_length(m, offset);
    g_autofree uint8_t *bytes = g_try_malloc0(m->grain);
    if (!bytes)
        return -ENOMEM;
    int result = 0;
    if (length < whole)
        result = read_flat(m, offset - within, bytes, whole);
    if (result < 0)
        return result;
    block_iov_to(bytes + within, iov, n, skip, length);
    return store_grain(m, offset / m->grain, bytes, whole, m->packs);
}

/* What surrounds the new bytes in their first and last grain, from what was there before. */
static int fill_around(GrainMap *m, uint64_t offset, uint64_t length, uint64_t host)
{
    uint64_t head = offset % m->grain, end = offset + length;
    uint64_t tail = end % m->grain ? MIN(m->grain - end % m->grain, m->size - end) : 0;
    g_autofree uint8_t *bytes = g_try_malloc(MAX(head, tail) + 1);
    if (!bytes)
        return -ENOMEM;
    int result = read_flat(m, offset - head, bytes, head);
    if (result == 0 && head)
        result = block_file_write(m->file, host, bytes, head);
    if (result == 0)
        result = read_flat(m, end, bytes, tail);
    if (result == 0 && tail)
        result = block_file_write(m->file, host + head + length, bytes, tail);
    return result;
}

/* New grains for the range, side by side, written at once. The range is held. */
static int write_batch(GrainMap *m, uint64_t offset, const struct iovec *iov, int n, uint64_t skip,
                       uint64_t length, GrainKind old)
{
    uint64_t first = offset / m->grain, head = offset % m->grain;
    uint64_t count = (head + length + m->grain - 1) / m->grain;
    bool around = old == GRAIN_NONE && m->node->backing;
    bool grow = head + length < count * m->grain;
    Grain g = {.kind = GRAIN_DATA};
    int result = grains_reserve(m, count * m->grain, m->alignment, grow, &g.offset);
    if (result < 0)
        return result;
    if (around)
        result = fill_around(m, offset, length, g.offset);
    if (result == 0)
        result = block_file_writev(m->file, g.offset + head, iov, n, skip, length);
    if (result < 0) {
        grains_unreserve(m, g.offset, count * m->grain);
        return result;
    }
    return grains_publish(m, first, count, &g);
}

/* The first bytes of the range, which have no place of their own; *took may be 0: look again. */
static int write_new(GrainMap *m, uint64_t offset, const struct iovec *iov, int n, uint64_t skip,
                     uint64_t length, uint64_t *took)
{
    BlockRange range;
    GrainRun run;
    uint64_t batch = MAX(BATCH_BYTES / m->grain, 1) * m->grain - offset % m->grain;
    length = MIN(length, batch);
    *took = 0;
    hold(m, &range, offset, length);
    int result = grains_find(m, offset, length, &run);
    if (result == 0 && run.grain.kind != GRAIN_DATA) {
        *took = run.length;
        if (m->packs || m->cipher || run.grain.kind == GRAIN_PACKED) {
            *took = MIN(*took, m->grain - offset % m->grain);
            result = rewrite_grain(m, offset, iov, n, skip, *took);
        } else {
            result = write_batch(m, offset, iov, n, skip, run.length, run.grain.kind);
        }
    }
    release(m, &range);
    if (result == 0 && grains_commit_is_due(m))
        result = grains_flush(m);
    return result;
}

int grains_writev(GrainMap *m, uint64_t offset, const struct iovec *iov, int n, uint64_t skip,
                  uint64_t length)
{
    while (length > 0) {
        GrainRun run;
        uint64_t took;
        int result = grains_find(m, offset, length, &run);
        if (result < 0)
            return result;
        took = run.length;
        result = may_write(m);
        if (result < 0)
            return result;
        if (run.grain.kind != GRAIN_DATA)
            result = write_new(m, offset, iov, n, skip, length, &took);
        else if (!grains_writable(m, run.host, run.length))
            result = -EIO; /* the entry leads to a table */
        else if (m->cipher)
            result = write_ciphered(m, offset, run.host, iov, n, skip, run.length, &took);
        else
            result = block_file_writev(m->file, run.host, iov, n, skip, run.length);
        if (result < 0)
            return result;
        offset += took;
        skip += took;
        length -= took;
    }
    return 0;
}

int grains_write_packed(GrainMap *m, uint64_t offset, const void *grain, size_t length)
{
    GrainRun run;
    BlockRange range;
    if (offset % m->grain || length != grain_length(m, offset))
        return -EINVAL;
    if (may_write(m) < 0)
        return may_write(m);
    hold(m, &range, offset, length);
    int result = grains_find(m, offset, length, &run);
    bool there = result == 0 && run.grain.kind == GRAIN_DATA;
    if (result == 0 && !there) {
        g_autofree uint8_t *bytes = g_try_malloc0(m->grain);
        result = bytes ? 0 : -ENOMEM;
        if (bytes)
            memcpy(bytes, grain, length);
        if (bytes)
            result = store_grain(m, offset / m->grain, bytes, length, true);
    }
    release(m, &range);
    if (there) {
        struct iovec iov = {(void *)grain, length};
        return grains_writev(m, offset, &iov, 1, 0, length);
    }
    if (result == 0 && grains_commit_is_due(m))
        result = grains_flush(m);
    return result;
}

static int write_zero_bytes(GrainMap *m, uint64_t offset, uint64_t length)
{
    uint64_t piece = MIN(length, BOUNCE_BYTES);
    g_autofree uint8_t *zeroes = g_try_malloc0(piece);
    if (!zeroes)
        return -ENOMEM;
    while (length > 0) {
        struct iovec iov = {zeroes, MIN(length, piece)};
        int result = grains_writev(m, offset, &iov, 1, 0, iov.iov_len);
        if (result < 0)
            return result;
        offset += iov.iov_len;
        length -= iov.iov_len;
    }
    return 0;
}

/* Whole grains that need no bytes to read as zero: *took is 0 when they do, or have changed. */
static int zero_grains(GrainMap *m, uint64_t offset, uint64_t length, uint64_t *took)
{
    BlockRange range;
    GrainRun run;
    bool ends = offset + length == m->size;
    uint64_t whole = ends ? length : length - length % m->grain;
    Grain g = {.kind = m->zero_entries ? GRAIN_ZERO : GRAIN_NONE};
    *took = 0;
    if (offset % m->grain || whole == 0 || (m->node->backing && !m->zero_entries))
        return 0;
    hold(m, &range, offset, whole);
    int result = grains_find(m, offset, whole, &run);
    if (result == 0 && run.grain.kind != GRAIN_DATA) {
        whole = offset + run.length == m->size ? run.length : run.length - run.length % m->grain;
        uint64_t count = (whole + m->grain - 1) / m->grain;
        for (uint64_t i = 0; i < count && result == 0; i++)
            result = grains_publish(m, offset / m->grain + i, 1, &g);
        *took = whole;
    }
    release(m, &range);
    if (result == 0 && grains_commit_is_due(m))
        result = grains_flush(m);
    return result;
}

/* @run: what the range is now. */
static int zero_run(GrainMap *m, uint64_t offset, const GrainRun *run, bool unmap, uint64_t *took)
{
    GrainKind kind = run->grain.kind;
    *took = run->length;
    if (kind == GRAIN_ZERO || (kind == GRAIN_NONE && !m->node->backing && !m->zero_entries))
        return 0;
    if (kind == GRAIN_DATA && !m->cipher)
        return grains_writable(m, run->host, run->length)
                   ? m->file->ops->zero(m->file, run->host, run->length, unmap)
                   : -EIO;
    int result = 0;
    uint64_t part = run->length;
    if (kind != GRAIN_DATA) {
        result = zero_grains(m, offset, run->length, took);
        if (result < 0 || *took)
            return result;
        if (offset % m->grain && m->zero_entries) /* up to the next whole grain */
            part = MIN(part, m->grain - offset % m->grain);
    }
    *took = part;
    if (kind == GRAIN_NONE && !m->node->backing)
        return 0;
    return write_zero_bytes(m, offset, part);
}

int grains_write_zeroes(GrainMap *m, uint64_t offset, uint64_t length, bool unmap)
{
    if (may_write(m) < 0)
        return may_write(m);
    while (length > 0) {
        GrainRun run;
        uint64_t took = 0;
        int result = grains_find(m, offset, length, &run);
        if (result == 0)
            result = zero_run(m, offset, &run, unmap, &took);
        if (result < 0)
            return result;
        offset += took;
        length -= took;
    }
    return 0;
}

int grains_discard(GrainMap *m, uint64_t offset, uint64_t length)
{
    while (length > 0) {
        GrainRun run;
        int result = grains_find(m, offset, length, &run);
        if (result == 0 && run.grain.kind == GRAIN_DATA && !m->cipher && !m->read_only &&
            grains_writable(m, run.host, run.length))
            result = m->file->ops->discard(m->file, run.host, run.length);
        if (result < 0)
            return result;
        offset += run.length;
        length -= run.length;
    }
    return 0;
}

int grains_status(GrainMap *m, uint64_t offset, uint64_t length, BlockExtent *extent)
{
    GrainRun run;
    int result = grains_find(m, offset, length, &run);
    if (result < 0)
        return result;
    GrainKind kind = run.grain.kind;
    bool plain = kind == GRAIN_DATA && !m->cipher;
    *extent = (BlockExtent){.length = run.length,
                            .present = kind != GRAIN_NONE,
                            .data = kind == GRAIN_DATA || kind == GRAIN_PACKED,
                            .zero = kind == GRAIN_ZERO,
                            .compressed = kind == GRAIN_PACKED,
                            .has_offset = plain,
                            .file_offset = plain ? run.host : 0};
    return 0;
}

/* What check has seen: a bit for each grain's worth of the file. */
typedef struct Seen {
    uint8_t *bits;
    uint64_t count, file_size;
} Seen;

static const char *wrong_with(const GrainMap *m, const Grain *g, Seen *seen)
{
    if (g->kind != GRAIN_DATA && g->kind != GRAIN_PACKED)
        return NULL;
    if (g->offset >= seen->file_size)
        return "points after EOF";
    if (m->reserved && !grains_writable(m, g->offset, g->kind == GRAIN_DATA ? m->grain : 1) &&
        !g_atomic_int_get(&m->suspect))
        return "points to a table";
    uint64_t bit = g->offset / m->grain;
    if (g->kind != GRAIN_DATA || g->offset % m->alignment || bit >= seen->count)
        return NULL;
    bool twice = seen->bits[bit / 8] & (1u << (bit % 8));
    seen->bits[bit / 8] |= (uint8_t)(1u << (bit % 8));
    return twice ? "is used by another entry as well" : NULL;
}

bool grains_check(GrainMap *m, BlockCheck *check, GError **err)
{
    Seen seen = {0};
    int result = m->file->ops->size(m->file, &seen.file_size);
    if (result < 0)
        return lodge_fail_errno(err, -result, "%s: cannot find its size", m->file->path);
    seen.count = MIN(seen.file_size / m->grain + 1, (uint64_t)UINT32_MAX);
    seen.bits = g_try_malloc0(seen.count / 8 + 1);
    if (!seen.bits)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "%s: no memory to check it", m->file->path);
    for (uint64_t at = 0; at < m->size;) {
        GrainRun run;
        result = grains_find(m, at, m->size - at, &run);
        /* Each grain of a run for itself. */
        uint64_t count = result < 0 ? 1 : (run.length + m->grain - 1) / m->grain;
        Grain g = run.grain;
        for (uint64_t i = 0; i < count; i++, g.offset += m->grain) {
            const char *wrong = result < 0 ? "cannot be found" : wrong_with(m, &g, &seen);
            if (!wrong)
                continue;
            check->corruptions++;
            g_autofree char *text = g_strdup_printf(
                "ERROR: cluster offset for sector %" G_GUINT64_FORMAT " %s",
                (m->start + at + i * m->grain) / SECTOR, wrong);
            if (check->message)
                check->message(check->opaque, text);
        }
        at += count * m->grain;
        if (check->corruptions > 1000000) /* enough to know */
            break;
    }
    g_free(seen.bits);
    return true;
}
