/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Bitmaps as formats load and store them, and as the write paths mark them. */
#pragma once

#include "disk/bitmap.h"
#include "disk/node.h"

typedef struct BlockBitmap {
    char *name;
    unsigned granularity_bits;
    uint64_t size;   /* of the disk, bytes */
    uint64_t n;      /* bits: granules of the disk */
    uint64_t *words; /* bit i of the disk: bit i % 64 of word i / 64 */
    bool enabled, persistent, inconsistent;
    bool stored;     /* the format has it in the image */
} BlockBitmap;

/* A bitmap with all bits clear, not yet the node's; NULL with @err when it would be too large. */
BlockBitmap *block_bitmap_new(const char *name, uint64_t size, unsigned granularity_bits,
                              GError **err);
void block_bitmap_free(BlockBitmap *bitmap);
/* Gives it to the node, which is being opened or locked by the caller. */
void block_bitmap_attach(BlockNode *node, BlockBitmap *bitmap);
void block_bitmap_set(BlockBitmap *bitmap, uint64_t offset, uint64_t length);
/* The disk has another size; new granules are clean. */
bool block_bitmaps_resize(BlockNode *node, uint64_t size, GError **err);
void block_bitmaps_free(BlockNode *node);

/* [offset, offset + length) is about to be written. Cheap where nothing records. */
void block_bitmaps_record(BlockNode *node, uint64_t offset, uint64_t length);
static inline void block_bitmaps_dirty(BlockNode *node, uint64_t offset, uint64_t length)
{
    if (g_atomic_int_get(&node->bitmaps_recording))
        block_bitmaps_record(node, offset, length);
}
