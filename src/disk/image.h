/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Disk images as a tool looks at them: creating, describing, checking, mapping, resizing. */
#pragma once

#include "disk/block.h"

/* A run of bytes with one answer to "what is here". */
typedef struct BlockExtent {
    uint64_t length;
    bool present;    /* this layer decides the content; otherwise its backing image does */
    bool data;       /* there are stored bytes to be read */
    bool zero;       /* reads as zero */
    bool compressed;
    bool has_offset; /* the bytes are at file_offset, unencoded */
    uint64_t file_offset;
} BlockExtent;

/* What this image alone says about [offset, offset + length); extent->length is at least 1. */
int block_status(BlockNode *node, uint64_t offset, uint64_t length, BlockExtent *extent);
/*
 * The same through the whole chain: *depth is how many backing images down the answer is;
 * where nobody in the chain has the range, present is false and zero is true.
 */
int block_status_chain(BlockNode *node, uint64_t offset, uint64_t length, BlockExtent *extent,
                       unsigned *depth);
BlockNode *block_backing(const BlockNode *node); /* borrowed; NULL: none */

/* What a new image is to be; zero and NULL mean the format's default. */
typedef struct BlockCreate {
    const char *path, *format;
    uint64_t size;
    uint64_t cluster_size;
    unsigned version; /* qcow2: 2 (compat=0.10) or 3 (compat=1.1) */
    bool lazy_refcounts;
    unsigned refcount_bits;
    bool preallocate_metadata;
    const char *compression;   /* "zlib", "zstd" */
    const char *backing, *backing_format;
    bool static_blocks;        /* vdi: every block has its place from the start */
    const char *subformat;     /* vpc: "dynamic", "fixed" */
    bool force_size;           /* vpc: the size to the byte, not the next a geometry has */
} BlockCreate;

/* The file must not be in use; what it held is lost. */
bool block_create(const BlockCreate *create, GError **err);
/* The `-o` names that @format knows, NULL-terminated; NULL when there is no such format. */
const char *const *block_create_options(const char *format);

typedef struct BlockSnapshotInfo {
    char *id, *name;
    uint64_t vm_state_size, date_seconds, date_ns, vm_clock_ns;
} BlockSnapshotInfo;

typedef struct BlockInfo {
    uint64_t virtual_size, actual_size; /* actual: bytes of host storage */
    uint64_t cluster_size;              /* 0: the format has no clusters */
    const char *backing_path, *backing_format; /* borrowed from the node; NULL: none */
    bool dirty;
    /* qcow2 only (version 0: another format) */
    unsigned version, refcount_bits;
    bool lazy_refcounts, corrupt;
    const char *compression;
    BlockSnapshotInfo *snapshots; /* freed by block_info_clear */
    unsigned n_snapshots;
} BlockInfo;

void block_info(BlockNode *node, BlockInfo *info);
void block_info_clear(BlockInfo *info);

typedef enum BlockRepair { BLOCK_REPAIR_NONE, BLOCK_REPAIR_LEAKS, BLOCK_REPAIR_ALL } BlockRepair;

typedef struct BlockCheck {
    BlockRepair repair; /* in */
    /* One line about each finding, as a person reads it; may be NULL. */
    void (*message)(void *opaque, const char *text);
    void *opaque;
    /* out */
    uint64_t corruptions, leaks, errors, corruptions_fixed, leaks_fixed;
    uint64_t total_clusters, allocated_clusters, compressed_clusters, fragmented_clusters;
    uint64_t image_end;
} BlockCheck;

/* False only when the check itself could not be done. */
bool block_check(BlockNode *node, BlockCheck *check, GError **err);
bool block_can_check(const BlockNode *node);

/* Grows the image; nothing else may use @node meanwhile. */
bool block_resize(BlockNode *node, uint64_t size, GError **err);
/* Writes one whole cluster (or the image's last, shorter one) compressed; 0 or -errno. */
int block_write_compressed(BlockNode *node, uint64_t offset, const void *cluster, size_t length);
uint64_t block_cluster_size(BlockNode *node); /* 0: none */
