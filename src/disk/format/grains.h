/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The data path that formats with two levels of tables share (vmdk's sparse extents, qcow): a
 * directory of tables, each with the same number of entries, each of which says where one grain
 * (cluster) of the disk is.
 *
 * Locks, in this order: `commit` is held, across I/O, by whoever writes tables; `lock` is short and
 * covers the tables, the ranges and the end of the file; `cache_lock` covers the grain that was
 * unpacked last. Room for new grains is handed out at the end of the file and written without a
 * lock; writers of grains that are not there yet hold their range (disk/range.h). A grain that is
 * stored as it is keeps its place, so whoever has looked it up needs no lock to use it.
 *
 * What reaches the file in which order: grains, a flush, then (with the guest's flush, when too many
 * tables wait, or when the image is closed) their tables' entries, a flush, and for new tables
 * the directory's entries. A crash leaves at worst grains that no entry refers to.
 */
#pragma once

#include "disk/crypto/cipher.h"
#include "disk/node.h"

#define GRAINS_TABLES_MAX  (4u << 20)  /* tables of one directory: 128 TiB of VMDK's usual ones */
#define GRAINS_CACHE_BYTES MIB(4)      /* of tables held in memory */
#define GRAINS_GRAIN_MAX   MIB(64)     /* bytes of one grain */

typedef struct GrainMap GrainMap;

typedef enum GrainKind {
    GRAIN_NONE,   /* never written: the backing image's */
    GRAIN_ZERO,   /* reads as zero */
    GRAIN_DATA,   /* as it is, at offset */
    GRAIN_PACKED, /* compressed, at offset */
} GrainKind;

typedef struct Grain {
    GrainKind kind;
    uint64_t offset, length; /* length: of a packed one, when the entry says it */
} Grain;

typedef struct GrainOps {
    /* False: an entry cannot be like this. */
    bool (*decode)(const GrainMap *m, const uint8_t *p, Grain *grain);
    void (*encode)(const GrainMap *m, uint8_t *p, const Grain *grain);
    /* Where a table is, by its entry of the directory: 0 none; false: cannot be. */
    bool (*table_decode)(const GrainMap *m, const uint8_t *p, uint64_t *offset);
    void (*table_encode)(const GrainMap *m, uint8_t *p, uint64_t offset);
    /* At least the first @length bytes of a packed grain; @out has room for a whole one. */
    int (*unpack)(GrainMap *m, const Grain *grain, uint8_t *out, size_t length);
    /*
     * The grain as it goes into the file, at most @room bytes; 0: it does not get smaller.
     * @start: where on the node's disk it begins.
     */
    size_t (*pack)(GrainMap *m, uint64_t start, const uint8_t *in, size_t length, uint8_t *out,
                   size_t room);
} GrainOps;

typedef struct GrainTable {
    uint8_t *bytes;
    uint32_t dirty_from, dirty_to; /* bytes that are not in the file */
    bool fresh;                    /* nothing of it is in the file, nor in the directory */
    bool busy;                     /* being committed: stays */
} GrainTable;

struct GrainMap {
    /* Set by the format. */
    BlockNode *node;
    BlockFile *file; /* borrowed */
    const GrainOps *ops;
    void *owner;
    uint64_t start, size; /* the part of the node's disk */
    uint64_t grain;       /* bytes */
    uint32_t entries;     /* of a table */
    unsigned entry_bytes, table_entry_bytes;
    uint64_t directory, mirror; /* offsets in the file; mirror 0: there is no second one */
    uint64_t header;            /* bytes at the start of the file that are no grain's */
    uint64_t alignment, pack_alignment; /* of new grains and tables; of packed grains */
    uint64_t file_max;   /* no grain ends after this byte */
    size_t pack_room;    /* bytes that a packed grain may have; 0: grains are not packed */
    bool packs;          /* every new grain is packed */
    bool zero_entries;   /* GRAIN_ZERO can be written */
    bool read_only;
    bool bad_backing;    /* there is one, and it must not be read */
    BlockCipher *cipher; /* of grains that are stored as they are; NULL: none */

    /* The rest: grains-table.c's. */
    GMutex commit, lock, cache_lock;
    bool set_up;
    uint64_t tables;
    uint64_t *where, *mirrored; /* offset of each table; UINT64_MAX: an impossible entry */
    GrainTable **loaded;
    uint8_t *seen;     /* bit i: table i was looked over */
    GArray *resident;  /* uint64_t: tables in memory, in no order */
    guint hand;
    GArray *reserved;  /* start and end (uint64_t) of what is no grain's, sorted; for writers */
    uint64_t first_end; /* of the file when it was opened, rounded up */
    uint64_t end;      /* of what is handed out */
    uint64_t stale;    /* up to here the file may hold bytes of writes that failed */
    int suspect;       /* atomic: an entry leads outside of the file, no more writes */
    bool uncommitted;
    unsigned dirty;    /* tables */
    BlockRangeList ranges;
    uint8_t *cache;
    uint64_t cache_offset; /* of the packed grain in cache; 0: none */
};

/* A piece of the disk with one answer. */
typedef struct GrainRun {
    Grain grain;   /* of the first one */
    uint64_t host; /* DATA: where the first byte asked for is */
    uint64_t length;
} GrainRun;

/* Reads the directory. */
bool grains_init(GrainMap *m, GError **err);
void grains_clear(GrainMap *m); /* also after a failed init, or none */

/* Offsets are within the part. */
int grains_find(GrainMap *m, uint64_t offset, uint64_t length, GrainRun *run);
int grains_publish(GrainMap *m, uint64_t index, uint64_t count, const Grain *first);
/* Room at the end of the file; @grow: the file reaches to its end, and reads as zero there. */
int grains_reserve(GrainMap *m, uint64_t bytes, uint64_t alignment, bool grow, uint64_t *at);
/* A write into what was reserved failed. */
void grains_unreserve(GrainMap *m, uint64_t at, uint64_t bytes);
/* May [host, host + length) be overwritten, or is it part of the tables? */
bool grains_writable(const GrainMap *m, uint64_t host, uint64_t length);
bool grains_commit_is_due(GrainMap *m);

int grains_readv(GrainMap *m, uint64_t offset, const struct iovec *iov, int n, uint64_t skip,
                 uint64_t length);
int grains_writev(GrainMap *m, uint64_t offset, const struct iovec *iov, int n, uint64_t skip,
                  uint64_t length);
int grains_write_zeroes(GrainMap *m, uint64_t offset, uint64_t length, bool unmap);
int grains_write_packed(GrainMap *m, uint64_t offset, const void *grain, size_t length);
int grains_discard(GrainMap *m, uint64_t offset, uint64_t length);
int grains_flush(GrainMap *m);
bool grains_flush_is_plain(GrainMap *m);
int grains_status(GrainMap *m, uint64_t offset, uint64_t length, BlockExtent *extent);
bool grains_fast_begin(GrainMap *m, bool write, uint64_t offset, uint64_t length, BlockFast *fast);
bool grains_check(GrainMap *m, BlockCheck *check, GError **err);
/* Forgets every grain: all is the backing image's again. Only a directory without a mirror. */
int grains_make_empty(GrainMap *m);
