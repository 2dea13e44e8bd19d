/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Read-only images that are made of compressed chunks (cloop, dmg): a sorted table of them, and the
 * few that were unpacked last. Any thread; chunks are unpacked without a lock.
 */
#pragma once

#include "disk/node.h"

#define CHUNKS_MAX         (4u << 20) /* of one image */
#define CHUNK_BYTES_MAX    MIB(64)    /* of one, packed or not, unless it is zeroes or as it is */
#define CHUNKS_CACHED      8u
#define CHUNKS_CACHE_BYTES MIB(128)

typedef enum ChunkKind { CHUNK_ZERO, CHUNK_RAW, CHUNK_ZLIB, CHUNK_BZIP2, CHUNK_XZ } ChunkKind;

typedef struct Chunk {
    uint64_t start, length;  /* of the disk */
    uint64_t offset, packed; /* in the file; RAW: what is behind the packed bytes is zero */
    ChunkKind kind;
} Chunk;

typedef struct ChunkMap {
    BlockNode *node;
    GArray *chunks; /* Chunk */
    GMutex lock;    /* covers the rest */
    struct {
        uint64_t index;
        GBytes *bytes; /* NULL: free */
    } cache[CHUNKS_CACHED];
    unsigned hand;
} ChunkMap;

void chunks_init(ChunkMap *m, BlockNode *node);
void chunks_clear(ChunkMap *m);
/* False with @err when there are too many, or it is too large. */
bool chunks_add(ChunkMap *m, const Chunk *chunk, GError **err);
void chunks_sort(ChunkMap *m); /* once all are there */

int chunks_readv(ChunkMap *m, uint64_t offset, const struct iovec *iov, int n);
int chunks_status(ChunkMap *m, uint64_t offset, uint64_t length, BlockExtent *extent);
bool chunks_fast_begin(ChunkMap *m, uint64_t offset, uint64_t length, BlockFast *fast);

/* For formats that cannot be written: false with QEMU's words when @node is not read-only. */
bool chunks_read_only(const BlockNode *node, GError **err);
