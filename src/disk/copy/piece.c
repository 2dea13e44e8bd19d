/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One window: look what is there, read, find zeroes, compress, write. */
#include "disk/copy/internal.h"

#include "base/bytes.h"

#include <errno.h>
#include <string.h>

/* Zeroes between data of one cluster are written along when another request would cost more. */
#define GAP_MAX KIB(16)

/* Marks the units that hold no data; a unit that is only partly so is read like data. */
static int look(CopyWorker *w, const CopyPiece *piece)
{
    CopyJob *job = w->job;
    uint64_t unit = job->unit, n = (piece->length + unit - 1) / unit;
    memset(w->kinds, COPY_DATA, n);
    for (uint64_t at = 0; at < piece->length && !piece->whole;) {
        uint64_t length = piece->length - at;
        CopyKind kind;
        int result = copy_status(job, piece->start + at, &length, &kind);
        if (result < 0)
            return result;
        uint64_t first = (at + unit - 1) / unit, end = (at + length) / unit;
        if (at + length == piece->length)
            end = n;
        if (kind != COPY_DATA && first < end)
            memset(w->kinds + first, kind, end - first);
        at += length;
    }
    return 0;
}

/* The run of units like the one at @first. */
static uint64_t run_end(const uint8_t *kinds, uint64_t first, uint64_t n)
{
    uint64_t end = first + 1;
    while (end < n && kinds[end] == kinds[first])
        end++;
    return end;
}

static bool read_data(CopyWorker *w, const CopyPiece *piece, uint64_t n)
{
    CopyJob *job = w->job;
    for (uint64_t i = 0, end; i < n; i = end) {
        end = run_end(w->kinds, i, n);
        uint64_t at = i * job->unit, stop = MIN(end * job->unit, piece->length);
        if (w->kinds[i] != COPY_DATA)
            continue;
        uint64_t failed = 0;
        int result = copy_read(job, piece->start + at, w->buffer + at, stop - at, &failed);
        if (result < 0)
            return copy_failed(job, result, "reading", failed);
    }
    return true;
}

/* Zeroes found in data, until it is known how many there are in a row. */
#define COPY_FOUND (COPY_DATA + 1)

static void scan(CopyWorker *w, const CopyPiece *piece, uint64_t n)
{
    uint64_t unit = w->job->unit;
    for (uint64_t i = 0; i < n; i++) {
        uint64_t at = i * unit;
        if (w->kinds[i] == COPY_DATA &&
            block_copy_is_zero(w->buffer + at, MIN(unit, piece->length - at)))
            w->kinds[i] = COPY_FOUND;
    }
}

/* Units [i, end) of zeroes are written like data. */
static void keep_as_data(CopyWorker *w, const CopyPiece *piece, uint64_t i, uint64_t end)
{
    uint64_t unit = w->job->unit, at = i * unit;
    memset(w->buffer + at, 0, MIN(end * unit, piece->length) - at);
    memset(w->kinds + i, COPY_DATA, end - i);
}

/*
 * Data that is zero counts as zero if there is enough of it in a row, with holes around it. What
 * was known to be zero stays so, unless it is a short gap in the data of one cluster.
 */
static void find_zeroes(CopyWorker *w, const CopyPiece *piece, uint64_t n)
{
    const CopyJob *job = w->job;
    uint64_t sparse = job->how->sparse, gap = job->how->compress ? 0 : MIN(GAP_MAX, job->cluster);
    uint8_t *kinds = w->kinds;
    if (sparse)
        scan(w, piece, n);
    for (uint64_t i = 0, end; i < n; i = end) {
        end = i + 1;
        if (kinds[i] != COPY_ZERO && kinds[i] != COPY_FOUND)
            continue;
        while (end < n && (kinds[end] == COPY_ZERO || kinds[end] == COPY_FOUND))
            end++;
        bool between = i > 0 && end < n && kinds[i - 1] == COPY_DATA && kinds[end] == COPY_DATA;
        uint64_t length = (end - i) * job->unit;
        if (!sparse || (between && length < gap)) {
            keep_as_data(w, piece, i, end);
            continue;
        }
        /* At the window's edges, the run may be longer than what is seen of it. */
        bool enough = length >= sparse || !between || job->how->compress;
        for (uint64_t j = i, stop; j < end; j = stop) {
            stop = run_end(kinds, j, end);
            if (kinds[j] == COPY_FOUND && enough)
                memset(kinds + j, COPY_ZERO, stop - j);
            else if (kinds[j] == COPY_FOUND)
                keep_as_data(w, piece, j, stop);
        }
    }
}

static int write_zero(CopyJob *job, uint64_t position, uint64_t length)
{
    if (job->how->target_is_zero)
        return 0;
    return block_write_zeroes(job->how->target, job->how->target_offset + position, length,
                              BLOCK_UNMAP);
}

static int write_data(CopyWorker *w, uint64_t position, uint64_t within, uint64_t length)
{
    const BlockCopy *how = w->job->how;
    struct iovec iov = {w->buffer + within, length};
    return block_writev(how->target, how->target_offset + position, &iov, 1, 0);
}

/* Compressed clusters: what does not get smaller has length 0 and is written as it is. */
static bool pack_all(CopyWorker *w, const CopyPiece *piece, uint64_t n)
{
    CopyJob *job = w->job;
    for (uint64_t i = 0; i < n; i++) {
        uint64_t at = i * job->unit;
        if (w->kinds[i] != COPY_DATA)
            continue;
        ssize_t packed = block_pack(job->how->target, w->buffer + at,
                                    MIN(job->unit, piece->length - at), w->packed + at, job->unit);
        if (packed < 0)
            return copy_failed(job, (int)packed, "writing", piece->start + at);
        w->packed_length[i] = (size_t)packed;
    }
    return true;
}

static int write_packed(CopyWorker *w, uint64_t position, uint64_t within, uint64_t length)
{
    const CopyJob *job = w->job;
    for (uint64_t at = within; at < within + length; at += job->unit) {
        uint64_t index = at / job->unit, part = MIN(job->unit, within + length - at);
        uint64_t target = job->how->target_offset + position + (at - within);
        struct iovec iov = {w->buffer + at, part};
        int result;
        if (!job->packs)
            result = block_write_compressed(job->how->target, target, iov.iov_base, part);
        else if (w->packed_length[index])
            result = block_write_packed(job->how->target, target, w->packed + at,
                                        w->packed_length[index], part);
        else
            result = block_writev(job->how->target, target, &iov, 1, 0);
        if (result < 0)
            return result;
    }
    return 0;
}

static bool write_runs(CopyWorker *w, const CopyPiece *piece, uint64_t n)
{
    CopyJob *job = w->job;
    for (uint64_t i = 0, end; i < n; i = end) {
        end = run_end(w->kinds, i, n);
        uint64_t at = i * job->unit, stop = MIN(end * job->unit, piece->length);
        uint64_t position = piece->start + at;
        int result = 0;
        if (w->kinds[i] == COPY_ZERO)
            result = write_zero(job, position, stop - at);
        else if (w->kinds[i] == COPY_DATA && job->how->compress)
            result = write_packed(w, position, at, stop - at);
        else if (w->kinds[i] == COPY_DATA)
            result = write_data(w, position, at, stop - at);
        if (result < 0)
            return copy_failed(job, result, "writing", position);
    }
    return true;
}

static bool copy_window(CopyWorker *w, const CopyPiece *piece)
{
    CopyJob *job = w->job;
    uint64_t n = (piece->length + job->unit - 1) / job->unit;
    int result = look(w, piece);
    if (result < 0)
        return copy_failed(job, result, "reading block status", piece->start);
    if (!read_data(w, piece, n))
        return false;
    find_zeroes(w, piece, n);
    if (job->packs && !pack_all(w, piece, n))
        return false;
    return copy_wait_turn(job, piece->start) && write_runs(w, piece, n);
}

bool copy_piece(CopyWorker *w, const CopyPiece *piece)
{
    CopyJob *job = w->job;
    bool ok = true;
    if (piece->kind == COPY_DATA && piece->whole && copy_offload(job, piece->start, piece->length))
        return true;
    if (piece->kind == COPY_DATA) {
        ok = copy_window(w, piece);
    } else if (piece->kind == COPY_ZERO) {
        ok = copy_wait_turn(job, piece->start);
        int result = ok ? write_zero(job, piece->start, piece->length) : 0;
        if (result < 0)
            ok = copy_failed(job, result, "writing", piece->start);
    } else if (job->in_order) {
        ok = copy_wait_turn(job, piece->start);
    }
    if (ok)
        copy_pass_turn(job, piece->start + piece->length);
    return ok;
}
