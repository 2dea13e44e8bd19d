/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Ranges of the guest's disk that requests in flight rely on. Shared holders need the mapping
 * of their range to stay; exclusive holders change it. First come, first served, so that
 * neither kind starves. The owner's lock protects the list.
 */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct BlockRange BlockRange;
struct BlockRange {
    BlockRange *previous, *next;
    uint64_t start, end;
    bool exclusive;
};

typedef struct BlockRangeList {
    BlockRange *first, *last;
    GCond changed;
    unsigned waiters;
} BlockRangeList;

/* Adds @range unless it would have to wait. */
bool block_range_try(BlockRangeList *list, BlockRange *range, uint64_t start, uint64_t end,
                     bool exclusive);
/*
 * Adds @range and waits until nothing earlier is in its way. @lock is held; it is dropped while
 * waiting, and @poke(@opaque) is called from time to time without it.
 */
void block_range_acquire(BlockRangeList *list, GMutex *lock, BlockRange *range, uint64_t start,
                         uint64_t end, bool exclusive, void (*poke)(void *), void *opaque);
void block_range_release(BlockRangeList *list, BlockRange *range);
