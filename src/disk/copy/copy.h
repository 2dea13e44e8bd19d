/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Copying disks: from one or several images, one after the other, into another that is open for
 * writing. Holes stay holes, zeroes are found, several threads read, compress and write at once,
 * memory is bounded (threads times BLOCK_COPY_WINDOW, or a compressed cluster if that is larger).
 */
#pragma once

#include "disk/image.h"

#define BLOCK_COPY_THREADS_MAX 16u
#define BLOCK_COPY_WINDOW      (512u << 10) /* bytes a thread works on at a time */
#define BLOCK_COPY_CLUSTER_MAX (2u << 20)   /* the largest cluster that is compressed */
#define BLOCK_COPY_SPARSE_MAX  (16u << 20)

typedef struct BlockCopy {
    BlockNode *const *sources; /* their disks, one after the other, are what is copied */
    unsigned n_sources;
    BlockNode *target;
    uint64_t source_offset, target_offset;
    uint64_t length;     /* UINT64_MAX: up to the end of the last source */
    unsigned threads;    /* 0: as many as the host suggests */
    bool in_order;       /* write the first bytes first */
    bool compress;       /* whole clusters of the target's format */
    uint64_t sparse;     /* runs of zeroes of this many bytes are not data; 0: all is written */
    bool target_is_zero; /* the range reads as zero already */
    bool offload;        /* let the kernel copy from file to file where it can */
    /* Only what the topmost @layers images of the source hold; the rest of the target stays as
     * it is. 0: the whole chain. From @backing_size on, zeroes count as not held. */
    unsigned layers;
    uint64_t backing_size; /* UINT64_MAX: not known */
    const char *bitmap;    /* only what is dirty in this bitmap of the first source; NULL: all */
    bool salvage;          /* what cannot be read is zero */
    void (*warn)(void *opaque, const char *text); /* of what was salvaged; from any thread; NULL */
    void *warn_opaque;
    uint64_t rate;          /* bytes a second; 0: no limit */
    BlockProgress progress; /* called by the caller's thread; step may be NULL */
} BlockCopy;

/* False with @err at the first error, or (LODGE_ERROR_CANCELLED) when progress.step said so. The
 * target is not flushed. */
bool block_copy(const BlockCopy *copy, GError **err);

/* Is [bytes, bytes + length) all zero? */
bool block_copy_is_zero(const void *bytes, size_t length);
