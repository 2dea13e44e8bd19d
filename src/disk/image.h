/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Disk images as a tool looks at them: creating, describing, checking, mapping, resizing. */
#pragma once

#include "disk/block.h"
#include "disk/options.h"

/* A run of bytes with one answer to "what is here". */
typedef struct BlockExtent {
    uint64_t length;
    bool present;    /* this layer decides the content; otherwise its backing image does */
    bool data;       /* there are stored bytes to be read */
    bool zero;       /* reads as zero */
    bool compressed;
    bool has_offset; /* the bytes are at file_offset, unencoded */
    uint64_t file_offset;
    const char *in_file; /* the file that has them, borrowed; NULL: the node's own */
    bool unknown;        /* not present, and what a reader finds there is not known either */
} BlockExtent;

/* What this image alone says about [offset, offset + length); extent->length is at least 1. */
int block_status(BlockNode *node, uint64_t offset, uint64_t length, BlockExtent *extent);
/*
 * The same through the whole chain: *depth is how many backing images down the answer is;
 * where nobody in the chain has the range, present is false and zero is true.
 */
int block_status_chain(BlockNode *node, uint64_t offset, uint64_t length, BlockExtent *extent,
                       unsigned *depth);
const char *block_file_path(const BlockNode *node); /* the file that holds the image */
BlockNode *block_backing(const BlockNode *node); /* borrowed; NULL: none */

/* The image's backing file as it is opened ("full-backing-filename"); NULL: none. Free it. */
char *block_backing_full_path(const BlockNode *node);
/* What the image at @image_path means by @written, as a path or URI that can be opened. */
char *block_reference_path(const char *image_path, const char *written);

/* What a new image is to be. */
typedef struct BlockCreate {
    const char *path, *format;
    uint64_t size;
    const char *backing, *backing_format; /* written into the image; NULL: none */
    const json_t *options;       /* `-o` by name, a flat object; NULL: the format's defaults */
    const BlockObjects *objects; /* secrets that options refer to; NULL: none */
} BlockCreate;

/* The file must not be in use; what it held is lost. */
bool block_create(const BlockCreate *create, GError **err);
/* The `-o` names that @format knows; NULL when there is no such format or it is read-only. */
const BlockOption *block_create_options(const char *format);
/* Those of the file below: what it is created with, beyond the format's; NULL: none can be made. */
const BlockOption *block_create_file_options(const char *path, GError **err);
bool block_format_exists(const char *format);
char *block_format_list(void); /* " raw qcow2 ...", sorted, as --help has it; free it */
/* Those that block_amend can change afterwards; NULL: none. */
const BlockOption *block_amend_options(const char *format);

typedef enum BlockPreallocation {
    BLOCK_PREALLOCATE_OFF,
    BLOCK_PREALLOCATE_METADATA, /* every cluster has its place; its bytes are a hole */
    BLOCK_PREALLOCATE_FALLOC,   /* host storage is set aside, unwritten */
    BLOCK_PREALLOCATE_FULL,     /* zeroes are written */
} BlockPreallocation;
/* Option "preallocation" of @options; absent: off. */
bool block_preallocation(const json_t *options, BlockPreallocation *mode, GError **err);

/* How far a long operation is; false: it shall stop, leaving the image usable. */
typedef struct BlockProgress {
    bool (*step)(void *opaque, uint64_t done, uint64_t total);
    void *opaque;
} BlockProgress;

/* What an image of this kind would take on the host, in bytes. */
typedef struct BlockMeasure {
    uint64_t required, fully_allocated;
    bool has_bitmaps;
    uint64_t bitmaps; /* for the source's bitmaps, beyond the two above */
} BlockMeasure;
/* For a copy of @source, or (NULL) an empty image of @create->size. */
bool block_measure(const BlockCreate *create, BlockNode *source, BlockMeasure *measure,
                   GError **err);

typedef struct BlockSnapshotInfo {
    char *id, *name;
    uint64_t vm_state_size, date_seconds, date_ns, vm_clock_ns;
    uint64_t icount; /* instructions the guest had executed, if has_icount */
    bool has_icount;
} BlockSnapshotInfo;

typedef struct BlockInfo {
    uint64_t virtual_size, actual_size; /* actual: bytes of host storage */
    uint64_t cluster_size;              /* 0: the format has no clusters */
    const char *backing_path, *backing_format; /* borrowed from the node; NULL: none */
    bool dirty, encrypted, compressed;
    bool has_actual_size;
    bool no_dirty_flag; /* the format knows of no such thing as being dirty */
    /* What only this format has, under the names of QEMU's QAPI type ImageInfoSpecific: */
    const char *specific_type;    /* "qcow2"; NULL: nothing */
    json_t *specific;             /* an object; freed by block_info_clear */
    BlockSnapshotInfo *snapshots; /* freed by block_info_clear */
    unsigned n_snapshots;
} BlockInfo;

void block_info(BlockNode *node, BlockInfo *info);
void block_info_clear(BlockInfo *info);

typedef enum BlockRepair { BLOCK_REPAIR_NONE, BLOCK_REPAIR_LEAKS, BLOCK_REPAIR_ALL } BlockRepair;

typedef enum BlockSeverity {
    BLOCK_FINDING_LEAK,       /* room is wasted, data is whole */
    BLOCK_FINDING_CORRUPTION, /* data is wrong or will be when the image is written */
} BlockSeverity;

#define BLOCK_NO_OFFSET UINT64_MAX

/* One fault of an image: what, where, and what can be done about it. */
typedef struct BlockFinding {
    const char *kind;      /* "refcount too low" */
    BlockSeverity severity;
    const char *table;     /* where it stands: "L2 table 3", "snapshot 'a'" */
    int64_t index;         /* of the entry in @table; -1: the whole of it */
    uint64_t host;         /* offset in the file that is spoken of */
    uint64_t cluster;      /* the same in clusters of the file */
    uint64_t guest;        /* offset in the disk, or BLOCK_NO_OFFSET */
    BlockRepair mended_by; /* the least that repairs it; BLOCK_REPAIR_NONE: nothing does */
    const char *repair;    /* what that does, or what is lost */
    bool fixing;           /* this run does it */
} BlockFinding;

typedef struct BlockCheck {
    BlockRepair repair; /* in */
    /* Each finding as it is found; NULL, or a format that block_check_explains. */
    void (*finding)(void *opaque, const BlockFinding *finding);
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
bool block_check_explains(const BlockNode *node); /* its check calls BlockCheck.finding */

typedef struct BlockResize {
    uint64_t size;
    BlockPreallocation preallocation; /* of what is added */
    bool shrink;                      /* what is beyond the new end may be lost */
    BlockProgress progress;
} BlockResize;
/* Nothing else may use @node meanwhile. */
bool block_resize(BlockNode *node, const BlockResize *resize, GError **err);

/* Changes @options of an image in place; @force: even if data becomes unreadable (luks). */
bool block_amend(BlockNode *node, const json_t *options, const BlockObjects *objects, bool force,
                 const BlockProgress *progress, GError **err);
/* Writes another backing file (NULL: none) into the image; what the disk reads is the caller's care. */
bool block_set_backing(BlockNode *node, const char *path, const char *format, GError **err);
/* Gives back everything this layer holds, so that all is read from the backing image. */
bool block_make_empty(BlockNode *node, GError **err);

/* Internal snapshots. @which: an id, else a name. Nothing else may use @node meanwhile. */
bool block_snapshot_create(BlockNode *node, const BlockSnapshotInfo *snapshot, GError **err);
bool block_snapshot_apply(BlockNode *node, const char *which, GError **err);
bool block_snapshot_delete(BlockNode *node, const char *which, GError **err);
/* The area beside the disk that holds a machine's state and goes into the next snapshot. */
int block_vmstate_readv(BlockNode *node, uint64_t offset, const struct iovec *iov, int n);
int block_vmstate_writev(BlockNode *node, uint64_t offset, const struct iovec *iov, int n);

/* Writes one whole cluster (or the image's last, shorter one) compressed; 0 or -errno. */
int block_write_compressed(BlockNode *node, uint64_t offset, const void *cluster, size_t length);
/*
 * The same in two steps, so that any number of threads do the first at once, where block_packs:
 * block_pack returns the length of @cluster compressed into @packed (0: it does not get smaller,
 * it is to be written as it is) or -errno; @room is at least the cluster's size.
 */
bool block_packs(const BlockNode *node);
bool block_can_compress(const BlockNode *node);
bool block_format_can_compress(const char *format);
bool block_only_compressed(BlockNode *node); /* this image takes whole compressed clusters only */
ssize_t block_pack(BlockNode *node, const void *cluster, size_t length, void *packed, size_t room);
int block_write_packed(BlockNode *node, uint64_t offset, const void *packed, size_t packed_length,
                       size_t length);
uint64_t block_cluster_size(BlockNode *node); /* 0: none */
