/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The threads of a copy. Each takes the next piece, a hole of any length or a window of data,
 * and does all of it; the caller's thread watches, so that progress and cancelling have one.
 */
#include "disk/copy/internal.h"

#include "base/bytes.h"
#include "base/error.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define WATCH_US (100 * 1000)
#define UNIT_MAX KIB(4)

bool copy_failed(CopyJob *job, int result, const char *doing, uint64_t position)
{
    g_mutex_lock(&job->lock);
    if (!job->error)
        lodge_fail_errno(&job->error, -result,
                         !strcmp(doing, "reading block status")
                             ? "error while %s at offset %" G_GUINT64_FORMAT
                             : "error while %s at byte %" G_GUINT64_FORMAT,
                         doing, job->how->source_offset + position);
    job->stop = true;
    g_cond_broadcast(&job->changed);
    g_mutex_unlock(&job->lock);
    return false;
}

bool copy_wait_turn(CopyJob *job, uint64_t position)
{
    if (!job->in_order)
        return true;
    g_mutex_lock(&job->lock);
    while (job->written != position && !job->stop)
        g_cond_wait(&job->changed, &job->lock);
    bool go = !job->stop;
    g_mutex_unlock(&job->lock);
    return go;
}

void copy_pass_turn(CopyJob *job, uint64_t position)
{
    if (!job->in_order)
        return;
    g_mutex_lock(&job->lock);
    job->written = position;
    g_cond_broadcast(&job->changed);
    g_mutex_unlock(&job->lock);
}

/* Waits until the rate allows @bytes more. The lock is held. */
static void pace_locked(CopyJob *job, uint64_t bytes)
{
    if (!job->how->rate)
        return;
    int64_t due = job->start_us +
                  (int64_t)((double)job->paced * 1e6 / (double)job->how->rate);
    job->paced += bytes;
    while (!job->stop && g_get_monotonic_time() < due)
        g_cond_wait_until(&job->changed, &job->lock, due);
}

/* The next piece; false: there is none, or the job has ended. The lock is held. */
static bool next_piece_locked(CopyJob *job, CopyPiece *piece, int *result)
{
    uint64_t at = job->next;
    *result = 0;
    if (job->stop || at >= job->length)
        return false;
    if (at >= job->known_until) {
        uint64_t length = job->length - at;
        *result = copy_status(job, at, &length, &job->known);
        if (*result < 0)
            return false;
        job->known_until = at + length;
    }
    /* Windows start at multiples of their size in the target, so that clusters stay whole. */
    uint64_t shift = job->how->target_offset;
    uint64_t window_end = MIN(align_down(shift + at, job->window) + job->window - shift,
                              job->length);
    uint64_t until = job->known_until;
    if (until < job->length)
        until = MAX(align_down(shift + until, job->window), shift) - shift;
    *piece = (CopyPiece){at, window_end - at, COPY_DATA, false};
    if (job->known == COPY_DATA || (job->known == COPY_ZERO && !job->how->sparse))
        piece->whole = job->known == COPY_DATA && job->known_until >= window_end;
    else if (until > at)
        *piece = (CopyPiece){at, until - at, job->known, false};
    job->next = at + piece->length;
    return true;
}

static bool take(CopyJob *job, CopyPiece *piece)
{
    int result;
    g_mutex_lock(&job->lock);
    bool got = next_piece_locked(job, piece, &result);
    uint64_t at = job->next;
    if (got && piece->kind == COPY_DATA)
        pace_locked(job, piece->length);
    g_mutex_unlock(&job->lock);
    if (result < 0)
        return copy_failed(job, result, "reading block status", at);
    return got;
}

static void worker_clear(CopyWorker *w)
{
    free(w->buffer);
    free(w->packed);
    g_free(w->packed_length);
    g_free(w->kinds);
}

static bool worker_init(CopyWorker *w, CopyJob *job)
{
    *w = (CopyWorker){.job = job};
    void *buffer = NULL, *packed = NULL;
    bool ok = posix_memalign(&buffer, KIB(4), job->window) == 0;
    if (job->how->compress)
        ok = ok && posix_memalign(&packed, KIB(4), job->window) == 0;
    w->buffer = buffer;
    w->packed = packed;
    w->packed_length = g_new0(size_t, job->window / job->unit + 1);
    w->kinds = g_new0(uint8_t, job->window / job->unit + 1);
    return ok;
}

static gpointer work(gpointer data)
{
    CopyJob *job = data;
    CopyWorker worker;
    CopyPiece piece;
    bool ok = worker_init(&worker, job);
    if (!ok)
        copy_failed(job, -ENOMEM, "reading", 0);
    while (ok && take(job, &piece)) {
        ok = copy_piece(&worker, &piece);
        g_mutex_lock(&job->lock);
        job->done += piece.length;
        g_mutex_unlock(&job->lock);
    }
    worker_clear(&worker);
    g_mutex_lock(&job->lock);
    job->running--;
    g_cond_broadcast(&job->changed);
    g_mutex_unlock(&job->lock);
    return NULL;
}

/* Until all threads have ended. */
static void watch(CopyJob *job)
{
    const BlockProgress *progress = &job->how->progress;
    g_mutex_lock(&job->lock);
    while (job->running > 0) {
        g_cond_wait_until(&job->changed, &job->lock, g_get_monotonic_time() + WATCH_US);
        uint64_t done = job->done;
        g_mutex_unlock(&job->lock);
        bool go = !progress->step || progress->step(progress->opaque, done, job->length);
        g_mutex_lock(&job->lock);
        if (go || job->stop)
            continue;
        job->stop = true;
        lodge_fail(&job->error, LODGE_ERROR_CANCELLED, "the copy was cancelled");
        g_cond_broadcast(&job->changed);
    }
    g_mutex_unlock(&job->lock);
}

static uint64_t floor_power(uint64_t value)
{
    return 1ull << (63 - __builtin_clzll(value));
}

/* Sizes of windows and units, and whether order matters. */
static bool plan(CopyJob *job, GError **err)
{
    const BlockCopy *how = job->how;
    uint64_t total = 0;
    for (unsigned i = 0; i < how->n_sources; i++)
        total += block_size(how->sources[i]);
    uint64_t rest = how->source_offset < total ? total - how->source_offset : 0;
    job->length = MIN(how->length, rest);
    job->cluster = block_cluster_size(how->target);
    job->window = BLOCK_COPY_WINDOW;
    job->unit = how->sparse ? MIN(floor_power(MAX(how->sparse, 512)), UNIT_MAX) : KIB(4);
    if (how->layers || how->bitmap)
        job->unit = 512;
    if (how->compress) {
        if (job->cluster < 512 || job->cluster > BLOCK_COPY_CLUSTER_MAX ||
            how->target_offset % job->cluster)
            return lodge_fail(err, LODGE_ERROR_INVALID, "invalid cluster size");
        job->unit = job->cluster;
    }
    job->window = MAX(job->window, job->unit);
    if (job->window % job->unit)
        job->window = job->unit;
    /* A raw image has one place for each byte: when it is written does not show. */
    job->in_order = how->in_order && strcmp(block_format(how->target), "raw") != 0;
    job->packs = how->compress && block_packs(how->target);
    job->direct_files = copy_offload_possible(how);
    job->start_us = g_get_monotonic_time();
    return true;
}

static unsigned choose_threads(const CopyJob *job)
{
    unsigned n = job->how->threads ? job->how->threads : CLAMP(2 * g_get_num_processors(), 4, 16);
    uint64_t windows = job->length / job->window + 1;
    return (unsigned)MIN(MIN(n, BLOCK_COPY_THREADS_MAX), windows);
}

bool block_copy(const BlockCopy *copy, GError **err)
{
    CopyJob job = {.how = copy};
    GThread *threads[BLOCK_COPY_THREADS_MAX];
    if (!plan(&job, err))
        return false;
    if (job.length == 0 || copy_clone_all(&job))
        return true;
    g_mutex_init(&job.lock);
    g_cond_init(&job.changed);
    unsigned n = choose_threads(&job);
    job.running = n;
    for (unsigned i = 0; i < n; i++)
        threads[i] = g_thread_new("copy", work, &job);
    watch(&job);
    for (unsigned i = 0; i < n; i++)
        g_thread_join(threads[i]);
    g_cond_clear(&job.changed);
    g_mutex_clear(&job.lock);
    if (!job.error)
        return true;
    g_propagate_error(err, job.error);
    return false;
}
