/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Taking a backup: threads read, hash and compress a batch of chunks, one adds them in order. */
#include "base/bytes.h"
#include "base/error.h"
#include "disk/backup/internal.h"
#include "disk/bitmap.h"

#include <errno.h>
#include <string.h>
#include <time.h>
#include <zstd.h>

#define BATCH_BYTES MIB(8)
#define ZSTD_LEVEL  3
#define THREADS_MAX 64u

typedef struct Item {
    uint64_t index;
    uint32_t length, packed_length;
    bool hole, known, compressed;
    int result;
    uint8_t hash[BACKUP_HASH];
    uint8_t *content, *packed;
} Item;

typedef struct Take {
    BackupStore *store;
    const BackupTake *what;
    BackupStats *stats;
    uint64_t size, chunks;
    Item *items;
    unsigned batch, n;
    int next;            /* atomic: the first item that no thread has taken */
    GThreadPool *pool;
    GMutex lock;
    GCond idle;
    unsigned busy;
    BackupWriter *writer;
    BackupManifest *parent;
    bool parent_more;
    uint64_t parent_index;
    const uint8_t *parent_hash;
} Take;

static bool all_zero(const uint8_t *bytes, size_t length)
{
    return bytes[0] == 0 && !memcmp(bytes, bytes + 1, length - 1);
}

static void work_item(Take *t, Item *item, ZSTD_CCtx *zstd)
{
    struct iovec iov = {item->content, item->length};
    BackupPlace place;
    item->result = block_readv(t->what->source, item->index * t->store->chunk, &iov, 1);
    item->hole = item->result == 0 && all_zero(item->content, item->length);
    if (item->result < 0 || item->hole)
        return;
    backup_hash(item->content, item->length, item->hash);
    item->known = backup_chunk_find(t->store, item->hash, &place);
    if (item->known)
        return;
    size_t n = ZSTD_compressCCtx(zstd, item->packed, item->length, item->content, item->length,
                                 ZSTD_LEVEL);
    item->compressed = !ZSTD_isError(n) && n < item->length;
    item->packed_length = item->compressed ? (uint32_t)n : item->length;
}

/* A thread's part of a batch; the store's table is only read meanwhile. */
static void worker(gpointer data, gpointer opaque)
{
    Take *t = opaque;
    ZSTD_CCtx *zstd = ZSTD_createCCtx();
    for (;;) {
        int i = g_atomic_int_add(&t->next, 1);
        if (i >= (int)t->n)
            break;
        if (zstd)
            work_item(t, &t->items[i], zstd);
        else
            t->items[i].result = -ENOMEM;
    }
    ZSTD_freeCCtx(zstd);
    g_mutex_lock(&t->lock);
    t->busy--;
    g_cond_signal(&t->idle);
    g_mutex_unlock(&t->lock);
}

static bool add_item(Take *t, const Item *item, GError **err)
{
    if (item->result < 0)
        return lodge_fail_errno(err, -item->result, "%s: cannot read at byte %" G_GUINT64_FORMAT,
                                block_path(t->what->source), item->index * t->store->chunk);
    t->stats->read += item->length;
    if (item->hole)
        return true;
    BackupPlace place; /* known by now, if the batch has it twice */
    if (!item->known && !backup_chunk_find(t->store, item->hash, &place)) {
        const void *bytes = item->compressed ? item->packed : item->content;
        if (!backup_chunk_add(t->store, item->hash, bytes, item->packed_length, item->length,
                              item->compressed, err))
            return false;
        t->stats->stored += item->packed_length;
        t->stats->chunks_new++;
    } else {
        t->stats->chunks_known++;
    }
    return backup_writer_add(t->writer, item->index, item->hash, err);
}

static bool run_batch(Take *t, GError **err)
{
    unsigned threads = t->what->threads ? t->what->threads : g_get_num_processors();
    threads = MIN(MIN(threads, THREADS_MAX), t->n);
    t->next = 0;
    t->busy = threads;
    for (unsigned i = 0; i < threads; i++)
        g_thread_pool_push(t->pool, t, NULL);
    g_mutex_lock(&t->lock);
    while (t->busy > 0)
        g_cond_wait(&t->idle, &t->lock);
    g_mutex_unlock(&t->lock);
    for (unsigned i = 0; i < t->n; i++) {
        if (!add_item(t, &t->items[i], err))
            return false;
    }
    t->n = 0;
    return true;
}

static bool enqueue(Take *t, uint64_t index, GError **err)
{
    uint64_t offset = index * t->store->chunk;
    Item *item = &t->items[t->n++];
    uint8_t *content = item->content, *packed = item->packed;
    *item = (Item){.index = index, .content = content, .packed = packed,
                   .length = (uint32_t)MIN(t->store->chunk, t->size - offset)};
    return t->n < t->batch || run_batch(t, err);
}

/* What the parent has at @index goes into this backup, too. */
static bool inherit(Take *t, uint64_t index, GError **err)
{
    while (t->parent_more && t->parent_index < index) {
        int result = backup_manifest_next(t->parent, &t->parent_index, &t->parent_hash);
        if (result < 0)
            return lodge_fail_errno(err, -result, "%s: cannot read the backup '%s'",
                                    t->store->path, t->what->parent);
        t->parent_more = result == 1;
    }
    if (!t->parent_more || t->parent_index != index)
        return true;
    t->stats->chunks_known++;
    return backup_writer_add(t->writer, index, t->parent_hash, err);
}

/* How many chunks from @index on have the same answer: *copy, to be read; else inherited or zero. */
static bool look(Take *t, uint64_t index, uint64_t *count, bool *copy, GError **err)
{
    BlockNode *node = t->what->source;
    uint64_t chunk = t->store->chunk, offset = index * chunk, same = t->size - offset;
    int result;
    if (t->what->bitmap) {
        result = block_bitmap_next(node, t->what->bitmap, offset, same, copy, &same);
        /* The end of a clean run may lie within a chunk whose rest is dirty. */
        *count = *copy ? (same + chunk - 1) / chunk : same == t->size - offset ? t->chunks - index : same / chunk;
        if (!*copy && *count == 0)
            *copy = true, *count = 1;
    } else {
        BlockExtent extent;
        unsigned depth;
        result = block_status_chain(node, offset, same, &extent, &depth);
        *copy = !extent.zero;
        bool end = extent.length >= same;
        *count = *copy ? (MIN(extent.length, same) + chunk - 1) / chunk
                       : end ? t->chunks - index : extent.length / chunk;
        if (!*copy && *count == 0)
            *copy = true, *count = 1;
    }
    return result == 0 || lodge_fail_errno(err, -result, "%s: cannot tell what is at byte %"
                                           G_GUINT64_FORMAT, block_path(node), offset);
}

static bool step(Take *t, uint64_t index, GError **err)
{
    const BlockProgress *p = &t->what->progress;
    return !p->step || p->step(p->opaque, MIN(index * t->store->chunk, t->size), t->size) ||
           lodge_fail(err, LODGE_ERROR_CANCELLED,
                      "cancelled; what was stored is used when the backup is begun again");
}

static bool take_all(Take *t, GError **err)
{
    for (uint64_t index = 0; index < t->chunks;) {
        uint64_t count;
        bool copy;
        if (!step(t, index, err) || !look(t, index, &count, &copy, err))
            return false;
        uint64_t most = MAX(t->batch, 1);
        count = MIN(count, copy || t->parent ? most : t->chunks - index);
        /* Chunks go into the manifest in order: what is being read comes first. */
        if (!copy && t->parent && t->n > 0 && !run_batch(t, err))
            return false;
        for (uint64_t i = 0; i < count && (copy || t->parent); i++) {
            if (!(copy ? enqueue(t, index + i, err) : inherit(t, index + i, err)))
                return false;
        }
        index += count;
    }
    return (t->n == 0 || run_batch(t, err)) && step(t, t->chunks, err);
}

static bool begin(Take *t, GError **err)
{
    const BackupTake *what = t->what;
    BackupStore *store = t->store;
    g_autoptr(GError) none = NULL;
    if (!backup_name_valid(what->name, err))
        return false;
    g_autoptr(BackupManifest) same = backup_manifest_open(store, what->name, &none);
    if (same || !g_error_matches(none, LODGE_ERROR, LODGE_ERROR_NOT_FOUND))
        return lodge_fail(err, LODGE_ERROR_EXISTS,
                          "%s: there is a backup '%s' already; choose another name or delete it",
                          store->path, what->name);
    if (!what->bitmap != !what->parent)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "an incremental backup needs both: the bitmap that says what changed, "
                          "and the parent backup since which it does");
    t->size = block_size(what->source);
    t->chunks = (t->size + store->chunk - 1) / store->chunk;
    if (what->parent) {
        t->parent = backup_manifest_open(store, what->parent, err);
        if (!t->parent)
            return false;
        int result = backup_manifest_next(t->parent, &t->parent_index, &t->parent_hash);
        if (result < 0)
            return lodge_fail_errno(err, -result, "%s: cannot read the backup '%s'", store->path,
                                    what->parent);
        t->parent_more = result == 1;
        if (t->parent->info.size != t->size)
            return lodge_fail(err, LODGE_ERROR_INVALID,
                              "%s: the backup '%s' is of a disk of %" G_GUINT64_FORMAT
                              " bytes, this one has %" G_GUINT64_FORMAT "; take a full backup",
                              store->path, what->parent, t->parent->info.size, t->size);
    }
    BackupInfo info = {.name = (char *)what->name, .source = (char *)block_path(what->source),
                       .parent = (char *)what->parent, .size = t->size, .time = time(NULL)};
    t->writer = backup_writer_new(store, &info, err);
    return t->writer != NULL;
}

bool backup_take(BackupStore *store, const BackupTake *what, BackupStats *stats, GError **err)
{
    Take t = {.store = store, .what = what, .stats = stats};
    *stats = (BackupStats){0};
    t.batch = (unsigned)MAX(BATCH_BYTES / store->chunk, 1);
    bool ok = begin(&t, err);
    g_mutex_init(&t.lock);
    g_cond_init(&t.idle);
    if (ok) {
        t.items = g_new0(Item, t.batch);
        for (unsigned i = 0; i < t.batch; i++) {
            t.items[i].content = g_malloc(store->chunk);
            t.items[i].packed = g_malloc(store->chunk);
        }
        t.pool = g_thread_pool_new(worker, &t, (int)THREADS_MAX, FALSE, NULL);
        ok = take_all(&t, err) && backup_packs_sync(store, err);
        g_thread_pool_free(t.pool, FALSE, TRUE);
    }
    if (ok)
        ok = backup_writer_finish(g_steal_pointer(&t.writer), err);
    backup_writer_free(t.writer);
    backup_manifest_free(t.parent);
    for (unsigned i = 0; t.items && i < t.batch; i++) {
        g_free(t.items[i].content);
        g_free(t.items[i].packed);
    }
    g_free(t.items);
    g_mutex_clear(&t.lock);
    g_cond_clear(&t.idle);
    return ok;
}
