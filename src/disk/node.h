/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Inside an open image: what the formats, the chain and the queues share. */
#pragma once

#include "disk/block.h"
#include "disk/image.h"
#include "disk/range.h"
#include "disk/transport/file.h"

/* How a request can skip the format: where the kernel finds its bytes. */
typedef struct BlockFast {
    BlockFile *file; /* NULL: node->file */
    uint64_t file_offset;
    BlockRange hold; /* keeps the mapping as it is until fast_end */
    bool zero; /* a read: the range reads as zero, nothing is held */
} BlockFast;

typedef struct BlockSnapshotOps {
    bool (*create)(BlockNode *node, const BlockSnapshotInfo *snapshot, GError **err);
    bool (*apply)(BlockNode *node, const char *which, GError **err);
    bool (*remove)(BlockNode *node, const char *which, GError **err);
    /* Turns a node that was opened read-only into a view of a snapshot. */
    bool (*view)(BlockNode *node, const char *which, GError **err);
    int (*vmstate_readv)(BlockNode *node, uint64_t offset, const struct iovec *iov, int n);
    int (*vmstate_writev)(BlockNode *node, uint64_t offset, const struct iovec *iov, int n);
} BlockSnapshotOps;

typedef struct BlockFormat {
    const char *name;
    /* True when the first @length bytes of a file are of this format. NULL: never probed. */
    bool (*probe)(const uint8_t *head, size_t length);
    /* Files with such a name are of this format when no other claims them. NULL: a name says nothing. */
    const char *suffix;
    /* Reads node->file; sets size and state and, if there is one, backing_path and _format. */
    bool (*open)(BlockNode *node, const BlockOpen *options, GError **err);
    /* Called once the backing chain is there, before the first write; may be NULL. */
    bool (*activate)(BlockNode *node, GError **err);
    void (*close)(BlockNode *node); /* flushes; also after a failed open (state may be NULL) */
    /* The data path: ranges are checked by block.c. */
    int (*readv)(BlockNode *node, uint64_t offset, const struct iovec *iov, int n);
    int (*writev)(BlockNode *node, uint64_t offset, const struct iovec *iov, int n);
    int (*write_zeroes)(BlockNode *node, uint64_t offset, uint64_t length, bool unmap);
    int (*discard)(BlockNode *node, uint64_t offset, uint64_t length);
    int (*flush)(BlockNode *node);
    int (*status)(BlockNode *node, uint64_t offset, uint64_t length, BlockExtent *extent);
    /*
     * The queue's short cut, never blocking: true when the whole range lies in one piece in
     * the file and may be read (or, @write, overwritten) there. Ended by fast_end, any thread.
     */
    bool (*fast_begin)(BlockNode *node, bool write, uint64_t offset, uint64_t length,
                       BlockFast *fast);
    void (*fast_end)(BlockNode *node, BlockFast *fast);
    /* True when a flush has nothing to do but flush the file. */
    bool (*flush_is_plain)(BlockNode *node);
    /* What "json:", --image-opts and QMP may say about an opening, beyond block_node_options. */
    const BlockOption *open_options;
    /* For tools; NULL where the format has no such thing. */
    const BlockOption *create_options; /* names of `-o` */
    const BlockOption *amend_options;
    /* Can such an image be? Asked before the file is touched. */
    bool (*create_check)(const BlockCreate *create, GError **err);
    /* @file: new and empty, or one that cannot be shortened (a device, an export). */
    bool (*create)(BlockFile *file, const BlockCreate *create, GError **err);
    bool (*measure)(const BlockCreate *create, BlockNode *source, BlockMeasure *measure,
                    GError **err);
    void (*info)(BlockNode *node, BlockInfo *info);
    bool (*check)(BlockNode *node, BlockCheck *check, GError **err);
    bool check_explains; /* it calls BlockCheck.finding */
    bool (*resize)(BlockNode *node, const BlockResize *resize, GError **err);
    bool (*amend)(BlockNode *node, const json_t *options, const BlockObjects *objects, bool force,
                  const BlockProgress *progress, GError **err);
    bool (*set_backing)(BlockNode *node, const char *path, const char *format, GError **err);
    bool (*make_empty)(BlockNode *node, GError **err);
    int (*write_compressed)(BlockNode *node, uint64_t offset, const void *cluster,
                            size_t length);
    bool (*only_compressed)(BlockNode *node); /* NULL: writev works, too */
    /* Both steps of write_compressed (see block_pack); NULL: only as one. No locks in the first. */
    ssize_t (*pack)(BlockNode *node, const void *cluster, size_t length, void *packed,
                    size_t room);
    int (*write_packed)(BlockNode *node, uint64_t offset, const void *packed,
                        size_t packed_length, size_t length);
    const BlockSnapshotOps *snapshots;
    /*
     * Persistent bitmaps: may one of that name be kept; take a stored one out of the image. Opening
     * attaches what the image has, closing stores what is persistent.
     */
    bool (*bitmap_can_store)(BlockNode *node, const char *name, unsigned granularity_bits,
                             GError **err);
    bool (*bitmap_remove)(BlockNode *node, const char *name, GError **err);
} BlockFormat;

struct BlockNode {
    int refs; /* atomic */
    const BlockFormat *format;
    const char *driver; /* what block_format says, if not the format's name: a bare transport */
    BlockFile *file;
    BlockNode *backing;   /* read only; NULL: none */
    char *path;
    char *shown;          /* what block_shown_name says; NULL: the path */
    char *backing_path;   /* as written in the image */
    char *backing_format; /* as written in the image; NULL: not said */
    const BlockObjects *objects; /* borrowed from whoever opened it; NULL: none */
    uint64_t size;
    bool read_only, no_flush, discard_unmap, direct, shared;
    bool probed_raw;      /* writes must not make sector 0 look like another format */
    void *state;          /* the format's */

    GMutex bitmaps_lock;  /* innermost */
    GPtrArray *bitmaps;   /* BlockBitmap (disk/bitmap-internal.h), sorted by name; NULL: none */
    int bitmaps_recording; /* atomic: how many want to hear of writes */

    GMutex queues_lock;   /* outermost of all locks */
    GPtrArray *queues;    /* BlockQueue, live ones */
};

extern const BlockFormat *const block_formats[]; /* ends with NULL */
const BlockFormat *block_format_find(const char *name);
char *block_format_names(void); /* "a, b and c", for a message; to be freed */
/* The format of @file by its first bytes; raw when no other claims it. */
const BlockFormat *block_format_probe(const uint8_t *head, size_t length);

/* What any node may be told: "driver", "file", "backing", "read-only", "cache" ... */
extern const BlockOption block_node_options[];

/*
 * Opens another file that @node's image names (an extent, a data file): what @how says under
 * @role ("data-file"), else @written as found in the image, a relative path being meant from the
 * image's folder. Checks the policy on references. @write: for writing.
 */
BlockFile *block_reference_open(BlockNode *node, const BlockOpen *how, const char *role,
                                const char *written, bool write, GError **err);
/*
 * May an image (@how->referenced) lead its reader to the file that is open as @fd, whatever links
 * led there? System folders and keys (/etc, /proc, .ssh ...) are out unless @how trusts it.
 */
bool block_reference_allowed(const BlockOpen *how, int fd, GError **err);

/* As block_open, on @file (taken over, also on failure); @options->path names it. */
BlockNode *block_open_file(BlockFile *file, const BlockOpen *options, GError **err);

/* Reads from the backing image, zeroes where there is none or past its end. */
int block_read_backing(BlockNode *node, uint64_t offset, const struct iovec *iov, int n,
                       uint64_t skip, uint64_t length);

/* Gives completed requests of all queues of @node the chance to release what they hold. */
void block_queues_poke(BlockNode *node);

/* Tells blkdebug, if that is the file's driver, what happens ("l2_load"); else nothing. */
void block_event(BlockNode *node, const char *event);

int block_node_sync(BlockNode *node); /* flush of the file, unless cache=unsafe */
