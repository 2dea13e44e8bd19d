/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Reading and writing; copy-on-write when a cluster has to be allocated. */
#include "base/bytes.h"
#include "disk/format/qcow2/qcow2.h"
#include "disk/iov.h"

#include <errno.h>
#include <string.h>

#define ALLOCATE_MAX MIB(4) /* guest bytes one allocation step works on */
#define PAGE_ENTRIES 512    /* the most L2 entries a page of the cache has */
#define SPIN_MAX     64     /* tries for a lock that is held for some hundred nanoseconds */

static void poke(void *opaque)
{
    block_queues_poke(opaque);
}

void qcow2_hold(Qcow2 *q, BlockRange *range, uint64_t start, uint64_t end, bool exclusive)
{
    g_mutex_lock(&q->lock);
    block_range_acquire(&q->ranges, &q->lock, range, start, end, exclusive, poke, q->node);
    g_mutex_unlock(&q->lock);
}

void qcow2_release(Qcow2 *q, BlockRange *range)
{
    g_mutex_lock(&q->lock);
    block_range_release(&q->ranges, range);
    g_mutex_unlock(&q->lock);
}

/* Reads bytes [skip, skip + length) of @iov from @offset; the caller holds the range. */
static int read_held(Qcow2 *q, uint64_t offset, const struct iovec *iov, int n, uint64_t skip,
                     uint64_t length)
{
    while (length > 0) {
        Qcow2Map map;
        g_mutex_lock(&q->lock);
        int result = qcow2_map(q, offset, length, true, &map);
        g_mutex_unlock(&q->lock);
        if (result < 0)
            return result;
        switch (map.kind) {
        case QCOW2_NONE:
            result = block_read_backing(q->node, offset, iov, n, skip, map.length);
            break;
        case QCOW2_ZEROES:
            block_iov_zero(iov, n, skip, map.length);
            break;
        case QCOW2_DATA:
            result = qcow2_data_read(q, offset, map.host, iov, n, skip, map.length);
            break;
        case QCOW2_PACKED:
            result = qcow2_packed_read(q, map.host, offset & (q->cluster_size - 1), iov, n, skip,
                                       map.length);
            break;
        }
        if (result < 0)
            return result;
        offset += map.length;
        skip += map.length;
        length -= map.length;
    }
    return 0;
}

int qcow2_readv(BlockNode *node, uint64_t offset, const struct iovec *iov, int n)
{
    Qcow2 *q = node->state;
    BlockRange range;
    uint64_t length = block_iov_length(iov, n);
    qcow2_hold(q, &range, offset, offset + length, false);
    int result = read_held(q, offset, iov, n, 0, length);
    qcow2_release(q, &range);
    return result;
}

/* Writes what may be overwritten where it is; *moved is 0 when that is nothing. */
static int write_in_place(Qcow2 *q, uint64_t offset, const struct iovec *iov, int n,
                          uint64_t skip, uint64_t length, uint64_t *moved)
{
    BlockRange range;
    Qcow2Map map;
    bool overlap = false;
    *moved = 0;
    qcow2_hold(q, &range, offset, offset + length, false);
    g_mutex_lock(&q->lock);
    int result = qcow2_map(q, offset, length, true, &map);
    if (result == 0 && map.in_place)
        overlap = qcow2_data_overlaps(q, map.host, map.length);
    g_mutex_unlock(&q->lock);
    if (overlap)
        result = qcow2_corrupt(q);
    if (result == 0 && map.in_place) {
        *moved = map.length;
        result = qcow2_data_write(q, offset, map.host, iov, n, skip, map.length);
    }
    qcow2_release(q, &range);
    return result;
}

/* One step of an allocating write: clusters in a row, in the guest's disk and in the file. */
typedef struct Step {
    uint64_t offset, length; /* the guest's bytes written */
    uint64_t clusters;
    uint64_t host;           /* of the first cluster */
    bool fresh;              /* the host's clusters read as zero */
    bool reuse;              /* they were there, and only (some) subclusters had no data in them */
    bool in_place;           /* nothing to allocate after all */
    unsigned from, to;       /* subclusters filled: from @from of the first cluster on, below @to
                                of the last one */
    Qcow2Kind head, tail;    /* what was in those around the written bytes */
} Step;

void qcow2_entry_free(Qcow2 *q, const Qcow2Entry *entry, bool punch)
{
    uint64_t offset = entry->word & QCOW2_OFFSET_MASK, length = q->cluster_size;
    if (entry->word & QCOW2_COMPRESSED) {
        qcow2_packed_extent(q, entry->word, &offset, &length);
        qcow2_packed_forget(q);
    } else if (!qcow2_entry_placed(q, entry)) {
        return;
    }
    if (q->external) {
        if (punch)
            q->data->ops->discard(q->data, offset, length);
        return;
    }
    g_mutex_lock(&q->lock);
    bool overlap = qcow2_overlaps(q, offset, length);
    g_mutex_unlock(&q->lock);
    if (overlap)
        qcow2_corrupt(q); /* data where a table is: not ours to give away */
    else
        qcow2_free_later(q, offset, length, punch);
}

/* Looks at the entries from @step->offset on: how many can be done alike. `lock` is held. */
static int plan(Qcow2 *q, Step *step, const Qcow2Page *page, uint64_t index)
{
    uint64_t per_page = qcow2_page_entries(q);
    uint64_t last = (step->offset + step->length - 1) >> q->cluster_bits;
    uint64_t most = last - (step->offset >> q->cluster_bits) + 1, count = 0;
    unsigned sub = (unsigned)((step->offset & (q->cluster_size - 1)) >> q->sub_bits);
    Qcow2Entry first = qcow2_entry_get(q, page->bytes, index);
    step->reuse = qcow2_entry_owned(q, &first);
    step->host = first.word & QCOW2_OFFSET_MASK;
    step->in_place = step->reuse && qcow2_entry_kind(&first, sub) == QCOW2_DATA;
    for (; count < most && index + count < per_page; count++) {
        Qcow2Entry entry = qcow2_entry_get(q, page->bytes, index + count);
        if (qcow2_entry_bad(q, &entry))
            return count ? 0 : -EIO;
        bool owned = qcow2_entry_owned(q, &entry);
        uint64_t next = step->host + (count << q->cluster_bits);
        if (step->reuse ? !owned || (entry.word & QCOW2_OFFSET_MASK) != next : owned)
            break;
        step->clusters = count + 1;
    }
    return 0;
}

/* What has to be copied along: new clusters take over the data that is beside the written. */
static void widen(const Qcow2 *q, Step *step, const Qcow2Entry *first, const Qcow2Entry *last)
{
    unsigned from = first->word & QCOW2_COMPRESSED ? 0 : step->from;
    unsigned to = last->word & QCOW2_COMPRESSED ? q->subclusters : step->to;
    if (first->alloc)
        from = MIN(from, (unsigned)__builtin_ctz(first->alloc));
    if (last->alloc)
        to = MAX(to, 32u - (unsigned)__builtin_clz(last->alloc));
    if (from < step->from)
        step->head = QCOW2_DATA;
    if (to > step->to)
        step->tail = QCOW2_DATA;
    step->from = from;
    step->to = to;
}

/* Cuts @step to its number of clusters and notes what its ends were. `lock` is held. */
static void trim(Qcow2 *q, Step *step, const Qcow2Page *page, uint64_t index)
{
    uint64_t room = (step->clusters << q->cluster_bits) - (step->offset & (q->cluster_size - 1));
    step->length = MIN(step->length, room);
    uint64_t end = step->offset + step->length - 1;
    Qcow2Entry first = qcow2_entry_get(q, page->bytes, index);
    Qcow2Entry last = qcow2_entry_get(q, page->bytes, index + step->clusters - 1);
    step->from = (unsigned)((step->offset & (q->cluster_size - 1)) >> q->sub_bits);
    step->to = (unsigned)((end & (q->cluster_size - 1)) >> q->sub_bits) + 1;
    step->head = qcow2_entry_kind(&first, step->from);
    step->tail = qcow2_entry_kind(&last, step->to - 1);
    if (!step->reuse)
        widen(q, step, &first, &last);
}

/* Plans @step and allocates its clusters. */
static int prepare(Qcow2 *q, Step *step)
{
    Qcow2Page *page;
    uint64_t index;
    int result = qcow2_commit_if_full(q);
    if (result == 0)
        result = qcow2_l2_writable(q, step->offset);
    if (result == 0)
        result = qcow2_l2_page(q, step->offset, &page, &index);
    if (result < 0)
        return result;
    result = plan(q, step, page, index);
    g_mutex_unlock(&q->lock);
    if (result < 0 || step->in_place)
        return result;
    if (step->reuse) {
        g_mutex_lock(&q->lock);
        bool overlap = qcow2_data_overlaps(q, step->host, step->clusters << q->cluster_bits);
        g_mutex_unlock(&q->lock);
        if (overlap)
            return qcow2_corrupt(q);
    } else {
        result = qcow2_data_alloc(q, step->offset, step->clusters, &step->host, &step->clusters,
                                  &step->fresh);
        if (result < 0)
            return result;
    }
    result = qcow2_l2_page(q, step->offset, &page, &index);
    if (result < 0) {
        if (!step->reuse)
            qcow2_data_unalloc(q, step->host, step->clusters);
        return result;
    }
    trim(q, step, page, index);
    g_mutex_unlock(&q->lock);
    return 0;
}

/* What was around the written bytes, from @offset on, is there already in the new place. */
static bool needless(const Qcow2 *q, const Step *step, Qcow2Kind kind, uint64_t offset)
{
    const BlockNode *below = q->node->backing;
    if (step->reuse)
        return kind == QCOW2_DATA;
    return step->fresh && !q->encrypted && (kind == QCOW2_ZEROES ||
                           (kind == QCOW2_NONE && (!below || offset >= below->size)));
}

/* Reads what is around the written bytes: @head bytes before them and @tail behind. */
static int read_around(Qcow2 *q, const Step *step, uint8_t *around, uint64_t head, uint64_t tail)
{
    struct iovec old_head = {around, head}, old_tail = {around + head, tail};
    uint64_t size = q->node->size, tail_at = step->offset + step->length;
    int result = read_held(q, step->offset - head, &old_head, 1, 0, head);
    if (result < 0)
        return result;
    /* Past the end of a disk that ends within a cluster there is nothing to read. */
    uint64_t inside = tail_at < size ? MIN(tail, size - tail_at) : 0;
    memset(around + head + inside, 0, tail - inside);
    return read_held(q, tail_at, &old_tail, 1, 0, inside);
}

/* Writes the new clusters: the data, and around it what was there before. */
static int fill(Qcow2 *q, const Step *step, const struct iovec *iov, int n, uint64_t skip)
{
    uint64_t start = align_down(step->offset, q->cluster_size);
    uint64_t end = start + ((step->clusters - 1) << q->cluster_bits) +
                   ((uint64_t)step->to << q->sub_bits);
    uint64_t tail_at = step->offset + step->length, tail = end - tail_at;
    uint64_t head = step->offset - start - ((uint64_t)step->from << q->sub_bits);
    if (head && needless(q, step, step->head, step->offset - head))
        head = 0;
    if (tail && needless(q, step, step->tail, tail_at))
        tail = 0;
    /* A raw data file is as long as the disk, not as its last cluster. */
    if (q->raw)
        tail = MIN(tail, q->node->size > tail_at ? q->node->size - tail_at : 0);
    uint64_t host = step->host + (step->offset - start) - head, guest = step->offset - head;
    if (head + tail == 0)
        return qcow2_data_write(q, guest, host, iov, n, skip, step->length);

    g_autofree uint8_t *around = g_try_malloc(head + tail);
    if (!around)
        return -ENOMEM;
    int result = read_around(q, step, around, head, tail);
    if (result < 0)
        return result;
    struct iovec whole[64];
    uint64_t covered;
    int entries = block_iov_slice(whole + 1, 62, iov, n, skip, step->length, &covered);
    if (covered == step->length) {
        whole[0] = (struct iovec){around, head};
        whole[entries + 1] = (struct iovec){around + head, tail};
        return qcow2_data_write(q, guest, host, whole, entries + 2, 0, head + tail + covered);
    }
    struct iovec before = {around, head}, behind = {around + head, tail};
    result = qcow2_data_write(q, guest, host, &before, 1, 0, head);
    if (result == 0)
        result = qcow2_data_write(q, step->offset, host + head, iov, n, skip, step->length);
    if (result == 0)
        result = qcow2_data_write(q, tail_at, host + head + step->length, &behind, 1, 0, tail);
    return result;
}

/* Bits of the subclusters that @step fills in its cluster number @i. */
static uint32_t filled(const Qcow2 *q, const Step *step, uint64_t i)
{
    unsigned from = i == 0 ? step->from : 0;
    unsigned to = i == step->clusters - 1 ? step->to : q->subclusters;
    return (uint32_t)((1ull << to) - (1ull << from));
}

/* Makes the guest's clusters refer to the new ones. */
static int publish(Qcow2 *q, const Step *step)
{
    Qcow2Entry old[PAGE_ENTRIES];
    Qcow2Page *page;
    uint64_t index;
    int result = qcow2_l2_page(q, step->offset, &page, &index);
    if (result < 0)
        return result;
    for (uint64_t i = 0; i < step->clusters; i++) {
        uint32_t mask = filled(q, step, i);
        old[i] = qcow2_entry_get(q, page->bytes, index + i);
        Qcow2Entry new = {(step->host + (i << q->cluster_bits)) | QCOW2_COPIED,
                          old[i].alloc | mask, old[i].zero & ~mask};
        qcow2_entry_put(q, page->bytes, index + i, new);
    }
    qcow2_cache_dirty(&q->l2, page);
    q->uncommitted = true;
    g_mutex_unlock(&q->lock);
    for (uint64_t i = 0; i < step->clusters && !step->reuse; i++)
        qcow2_entry_free(q, &old[i], false);
    return 0;
}

static int write_allocating(Qcow2 *q, uint64_t offset, const struct iovec *iov, int n,
                            uint64_t skip, uint64_t length, uint64_t *moved)
{
    Step step = {.offset = offset};
    uint64_t start = align_down(offset, q->cluster_size);
    step.length = MIN(length, start + MAX(ALLOCATE_MAX, q->cluster_size) - offset);
    BlockRange range;
    qcow2_hold(q, &range, start, align_up(offset + step.length, q->cluster_size), true);
    g_mutex_lock(&q->meta);
    int result = prepare(q, &step);
    g_mutex_unlock(&q->meta);
    if (result == 0 && !step.in_place) {
        result = fill(q, &step, iov, n, skip);
        g_mutex_lock(&q->meta);
        if (result == 0)
            result = publish(q, &step);
        if (result < 0 && !step.reuse)
            qcow2_data_unalloc(q, step.host, step.clusters);
        g_mutex_unlock(&q->meta);
        *moved = step.length;
    }
    qcow2_release(q, &range);
    return result;
}

int qcow2_writev(BlockNode *node, uint64_t offset, const struct iovec *iov, int n)
{
    Qcow2 *q = node->state;
    return q->encrypted ? qcow2_crypt_writev(q, offset, iov, n)
                        : qcow2_write_sectors(node, offset, iov, n);
}

int qcow2_write_sectors(BlockNode *node, uint64_t offset, const struct iovec *iov, int n)
{
    Qcow2 *q = node->state;
    uint64_t total = block_iov_length(iov, n), done = 0;
    if (q->corrupt)
        return -EIO;
    while (done < total) {
        uint64_t moved = 0;
        int result = write_in_place(q, offset + done, iov, n, done, total - done, &moved);
        if (result == 0 && moved == 0)
            result = write_allocating(q, offset + done, iov, n, done, total - done, &moved);
        if (result < 0)
            return result;
        done += moved;
    }
    return 0;
}

bool qcow2_fast_begin(BlockNode *node, bool write, uint64_t offset, uint64_t length,
                      BlockFast *fast)
{
    Qcow2 *q = node->state;
    Qcow2Map map;
    /* The queue looks at the image's file only. */
    if (q->encrypted)
        return false;
    if (q->external && (q->data->fd < 0 || q->data->alignment > q->file->alignment))
        return false;
    for (int i = 0; !g_mutex_trylock(&q->lock); i++) {
        if (i == SPIN_MAX)
            return false;
        __builtin_ia32_pause();
    }
    bool possible = qcow2_map(q, offset, length, false, &map) == 0 && map.length == length;
    if (possible && !write &&
        (map.kind == QCOW2_ZEROES || (map.kind == QCOW2_NONE && !node->backing))) {
        g_mutex_unlock(&q->lock);
        fast->zero = true;
        return true;
    }
    possible = possible && map.kind == QCOW2_DATA;
    if (write)
        possible = possible && map.in_place && !q->corrupt &&
                   !qcow2_data_overlaps(q, map.host, map.length);
    possible = possible &&
               block_range_try(&q->ranges, &fast->hold, offset, offset + length, false);
    g_mutex_unlock(&q->lock);
    fast->file = q->external ? q->data : NULL;
    fast->file_offset = map.host;
    return possible;
}

void qcow2_fast_end(BlockNode *node, BlockFast *fast)
{
    qcow2_release(node->state, &fast->hold);
}
