/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Dirty bitmaps: which parts of a disk were written since the bitmap was cleared, so that a backup
 * copies only those. They live with the open node; formats that can (qcow2) keep the persistent
 * ones in the image. Any thread; every write through block.h or a queue marks the enabled ones.
 */
#pragma once

#include "disk/block.h"

#define BLOCK_BITMAP_NAME_MAX        1023u
#define BLOCK_BITMAP_GRANULARITY_MIN 512u
#define BLOCK_BITMAP_GRANULARITY_MAX (1u << 31)
#define BLOCK_BITMAP_BYTES_MAX       (512ull << 20) /* in memory, each */

typedef struct BlockBitmapInfo {
    char *name;
    uint64_t granularity;  /* bytes that one bit speaks of; a power of two */
    uint64_t count;        /* dirty bytes, in whole granules */
    bool recording;        /* enabled: writes mark it */
    bool persistent;       /* kept in the image */
    bool inconsistent;     /* was in use when its writer died: can only be removed */
} BlockBitmapInfo;

/* A copy of what there is, sorted by name; free with block_bitmap_list_free. */
BlockBitmapInfo *block_bitmap_list(BlockNode *node, unsigned *n);
void block_bitmap_list_free(BlockBitmapInfo *list, unsigned n);

/* @granularity 0: the image's cluster size, but at least 4 KiB and at most 64 KiB. */
bool block_bitmap_add(BlockNode *node, const char *name, uint64_t granularity, bool enabled,
                      bool persistent, GError **err);
bool block_bitmap_remove(BlockNode *node, const char *name, GError **err);
bool block_bitmap_clear(BlockNode *node, const char *name, GError **err);
bool block_bitmap_enable(BlockNode *node, const char *name, bool enabled, GError **err);
/* What is dirty in @from's @source is dirty in @node's @target afterwards, too. */
bool block_bitmap_merge(BlockNode *node, const char *target, BlockNode *from, const char *source,
                        GError **err);
/* Checks that it is there and can be used; the error is as qemu-img words it. */
bool block_bitmap_check(BlockNode *node, const char *name, GError **err);

/*
 * Is @offset dirty in the bitmap, and for how many bytes from there (1 to @length) is the answer
 * the same? -ENOENT: no such bitmap, -EINVAL: inconsistent or out of range.
 */
int block_bitmap_next(BlockNode *node, const char *name, uint64_t offset, uint64_t length,
                      bool *dirty, uint64_t *same);
/* Marks a range by hand. */
int block_bitmap_mark(BlockNode *node, const char *name, uint64_t offset, uint64_t length);
