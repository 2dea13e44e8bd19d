/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The data path that formats with one flat table of blocks share (vdi, vpc, vhdx, parallels): a table of 32-bit
 * entries, each either "no block here" or where in the file the block is.
 *
 * Locks, in this order: `change` is held, across I/O, by whoever gives the disk a new block or
 * writes the table; `lock` is short and covers the table. An entry that is set never changes
 * again, so whoever has read it needs no lock to use it.
 *
 * What reaches the file in which order: room for the block, its data, a flush, and then (with the
 * guest's flush, or when the image is closed) its entry of the table. A crash leaves at worst
 * blocks that no entry refers to.
 */
#pragma once

#include "disk/node.h"

#define BLOCKMAP_TABLE_MAX MIB(64) /* bytes of a table, which is held in memory */
#define BLOCKMAP_PIECE     128u    /* entries that are written at once: a sector of them */

typedef struct BlockMap BlockMap;

typedef struct BlockMapOps {
    /* Makes room for one more block, which reads as zero. `change` is held. */
    int (*reserve)(BlockMap *m, uint32_t *entry);
    /* Before the first write in place to the block of entry @index; `change` is held. May be NULL. */
    int (*prepare)(BlockMap *m, uint64_t index);
    /* Before entries are written: what must be in the file first. May be NULL. `change` is held. */
    int (*before_commit)(BlockMap *m);
    /*
     * Writes the pieces that are dirty and marks them clean, where the table is not plainly an
     * array of 32-bit entries (decode and encode are then not needed). The data is in the file
     * for certain; what is written need not be yet. May be NULL. `change` is held.
     */
    int (*write_table)(BlockMap *m);
    uint32_t (*decode)(const void *p);
    void (*encode)(void *p, uint32_t entry);
} BlockMapOps;

struct BlockMap {
    BlockNode *node;
    const BlockMapOps *ops;
    uint64_t block;        /* bytes of a block */
    uint64_t blocks;       /* entries of the table */
    uint64_t table_offset; /* in the file */
    uint64_t base, unit;   /* block of entry e: base + e * unit */
    uint32_t none_from;    /* entries from this value on mean: no block */

    GMutex change, lock;
    uint32_t *table;
    uint8_t *unprepared;   /* bit i: entry i needs `prepare`; NULL: none does */
    uint8_t *dirty;        /* byte i: piece i of the table is not in the file */
    bool uncommitted;
    uint64_t limit;        /* no block begins at or after this byte of the file */
    bool has_spare;        /* a block that was made room for and then not used */
    uint32_t spare;
};

bool blockmap_init(BlockMap *m, BlockNode *node, const BlockMapOps *ops, GError **err);
/* Reads the table: block, blocks, table_offset, base, unit, none_from are set. */
bool blockmap_load(BlockMap *m, GError **err);
/* Only makes room for it, for a format that reads it in its own way. */
bool blockmap_allocate(BlockMap *m, GError **err);
void blockmap_clear(BlockMap *m); /* also after a failed init or load */

uint64_t blockmap_pieces(const BlockMap *m); /* of `dirty` */
uint64_t blockmap_offset(const BlockMap *m, uint32_t entry);

int blockmap_readv(BlockMap *m, uint64_t offset, const struct iovec *iov, int n);
int blockmap_writev(BlockMap *m, uint64_t offset, const struct iovec *iov, int n);
int blockmap_write_zeroes(BlockMap *m, uint64_t offset, uint64_t length, bool unmap);
int blockmap_discard(BlockMap *m, uint64_t offset, uint64_t length);
int blockmap_flush(BlockMap *m);
bool blockmap_flush_is_plain(BlockMap *m);
int blockmap_status(BlockMap *m, uint64_t offset, uint64_t length, BlockExtent *extent);
bool blockmap_fast_begin(BlockMap *m, bool write, uint64_t offset, uint64_t length,
                         BlockFast *fast);
