/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "disk/range.h"

/* How long to wait before looking whether completed requests can be collected. */
#define POKE_INTERVAL_US 1000

/* Is there an entry before @before (NULL: any) that a new one must wait for? */
static bool conflicts(const BlockRangeList *list, const BlockRange *before, uint64_t start,
                      uint64_t end, bool exclusive)
{
    for (const BlockRange *r = list->first; r != before; r = r->next) {
        if (r->start < end && start < r->end && (exclusive || r->exclusive))
            return true;
    }
    return false;
}

static void append(BlockRangeList *list, BlockRange *range, uint64_t start, uint64_t end,
                   bool exclusive)
{
    range->start = start;
    range->end = end;
    range->exclusive = exclusive;
    range->next = NULL;
    range->previous = list->last;
    if (list->last)
        list->last->next = range;
    else
        list->first = range;
    list->last = range;
}

bool block_range_try(BlockRangeList *list, BlockRange *range, uint64_t start, uint64_t end,
                     bool exclusive)
{
    if (conflicts(list, NULL, start, end, exclusive))
        return false;
    append(list, range, start, end, exclusive);
    return true;
}

void block_range_acquire(BlockRangeList *list, GMutex *lock, BlockRange *range, uint64_t start,
                         uint64_t end, bool exclusive, void (*poke)(void *), void *opaque)
{
    append(list, range, start, end, exclusive);
    while (conflicts(list, range, start, end, exclusive)) {
        list->waiters++;
        bool woken = g_cond_wait_until(&list->changed, lock,
                                       g_get_monotonic_time() + POKE_INTERVAL_US);
        list->waiters--;
        if (!woken && poke) {
            g_mutex_unlock(lock);
            poke(opaque);
            g_mutex_lock(lock);
        }
    }
}

void block_range_release(BlockRangeList *list, BlockRange *range)
{
    if (range->previous)
        range->previous->next = range->next;
    else
        list->first = range->next;
    if (range->next)
        range->next->previous = range->previous;
    else
        list->last = range->previous;
    if (list->waiters > 0)
        g_cond_broadcast(&list->changed);
}
