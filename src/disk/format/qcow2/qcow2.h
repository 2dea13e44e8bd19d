/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Inside the qcow2 format (specification: QEMU's docs/interop/qcow2.txt, format versions 2 and 3).
 *
 * Locks, in this order: a range of the guest's disk (disk/range.h), `meta`, `lock`.
 * `meta` is held, across I/O, by whoever changes metadata. `lock` is short and covers the caches,
 * the tables in memory and the range list; who changes those holds both, who reads them either.
 *
 * What reaches the file in which order (commit.c): refcounts before the tables that refer to the
 * clusters, L2 tables before the L1 entries that refer to them, and refcounts go down only when
 * nothing on the disk refers to the cluster any more. So a crash leaves at worst leaked clusters.
 */
#pragma once

#include "disk/crypto/luks.h"
#include "disk/format/formats.h"

#define QCOW2_MAGIC        0x514649fbu /* "QFI\xfb" */
#define QCOW2_L1_MAX       (32u << 20) /* bytes of an L1 table */
#define QCOW2_REFTABLE_MAX (8u << 20)  /* bytes of a refcount table */
#define QCOW2_HOST_MAX     (1ull << 56)
#define QCOW2_CACHE_BYTES  (32u << 20)
#define QCOW2_SNAPSHOTS_MAX 65536u

#define QCOW2_INCOMPAT_DIRTY       (1ull << 0)
#define QCOW2_INCOMPAT_CORRUPT     (1ull << 1)
#define QCOW2_INCOMPAT_DATA_FILE   (1ull << 2)
#define QCOW2_INCOMPAT_COMPRESSION (1ull << 3)
#define QCOW2_INCOMPAT_EXTENDED_L2 (1ull << 4)
#define QCOW2_EXTENDED_MIN         16384u /* bytes of a cluster with extended L2 entries */
#define QCOW2_CRYPT_MAX            (64u << 20) /* bytes of a LUKS header */
#define QCOW2_AUTOCLEAR_RAW        (1ull << 1)
#define QCOW2_COMPAT_LAZY          (1ull << 0)
#define QCOW2_AUTOCLEAR_BITMAPS    (1ull << 0)
#define QCOW2_EXT_BITMAPS          0x23852875u
#define QCOW2_FEATURES_BYTES       392u /* of the extension that names the features */

#define QCOW2_OFFSET_MASK 0x00fffffffffffe00ull /* of L1, L2 and refcount table entries */
#define QCOW2_COPIED      (1ull << 63)          /* the refcount is exactly one */
#define QCOW2_COMPRESSED  (1ull << 62)
#define QCOW2_ZERO        (1ull << 0)

enum { QCOW2_CRYPT_AES = 1, QCOW2_CRYPT_LUKS = 2 };
enum { QCOW2_ZLIB = 0, QCOW2_ZSTD = 1 };

/* The fixed part of the header, decoded (header.c). */
typedef struct Qcow2Header {
    uint32_t version;
    uint64_t backing_offset;
    uint32_t backing_length;
    uint32_t cluster_bits;
    uint64_t size;
    uint32_t crypt_method;
    uint32_t l1_entries;
    uint64_t l1_offset;
    uint64_t reftable_offset;
    uint32_t reftable_clusters;
    uint32_t n_snapshots;
    uint64_t snapshots_offset;
    uint64_t incompatible, compatible, autoclear;
    uint32_t refcount_order;
    uint32_t length;
    uint8_t compression;
    uint64_t crypt_offset, crypt_length; /* of the LUKS header's extension */
    char *data_file; /* of the extension; NULL: not named */
} Qcow2Header;

/* A piece of a metadata table in memory, as it is in the file (big-endian). */
typedef struct Qcow2Page Qcow2Page;
struct Qcow2Page {
    uint64_t offset;
    uint8_t *bytes;
    bool dirty, loading;
    Qcow2Page *newer, *older;
};

typedef struct Qcow2Cache {
    GHashTable *pages; /* offset -> Qcow2Page */
    Qcow2Page *newest, *oldest;
    unsigned page_size, max_pages, count, dirty;
    GCond loaded;
} Qcow2Cache;

typedef struct Qcow2Range {
    uint64_t start, end;
} Qcow2Range;

typedef struct Qcow2Free {
    uint64_t start, length; /* whole clusters */
    bool punch;             /* give the space back to the host */
} Qcow2Free;

typedef struct Qcow2Snapshot {
    uint64_t l1_offset;
    uint32_t l1_entries;
    char *id, *name;
    uint64_t vm_state_size, date_seconds, date_ns, vm_clock_ns;
    uint64_t disk_size;
    uint64_t icount;       /* UINT64_MAX: not counted */
    uint8_t *extra;        /* what we do not know of its extra data, kept as it is */
    uint32_t extra_length;
} Qcow2Snapshot;

typedef struct Qcow2 {
    BlockNode *node;
    BlockFile *file;
    BlockFile *data; /* where the guest's bytes are: @file, or an external data file */
    bool external;   /* the latter: cluster n is at n in it, and has no refcount */
    bool encrypted;
    BlockLuks *luks;  /* method 2 */
    BlockCipher *aes; /* method 1; NULL: locked */
    GRWLock sectors;  /* of an encrypted image; written by whoever changes part of a sector */
    bool raw;        /* and it reads as the disk does without this image */
    Qcow2Header header;
    unsigned cluster_bits;
    uint64_t cluster_size;
    unsigned l2_bits;       /* log2 of the entries of an L2 table */
    unsigned entry_size;    /* bytes of an L2 entry: 8, or 16 when it is extended */
    unsigned subclusters;   /* of a cluster: 1, or 32 with extended entries */
    unsigned sub_bits;      /* log2 of a subcluster's bytes */
    uint32_t sub_all;       /* a bit for each subcluster */
    unsigned refcount_bits; /* width of a refcount */
    unsigned block_bits;    /* log2 of the entries of a refcount block */

    GMutex meta, lock;
    BlockRangeList ranges;
    Qcow2Cache l2, refcounts;

    uint64_t *l1; /* decoded; header.l1_entries of them */
    uint64_t l1_dirty_first, l1_dirty_end;
    uint64_t *reftable;
    uint64_t reftable_entries;
    uint64_t reftable_dirty_first, reftable_dirty_end;
    bool uncommitted;    /* L2 or L1 changes not in the file yet */
    GArray *pending;     /* Qcow2Free: after the next commit */
    uint64_t free_hint;  /* no free cluster below this index */
    uint64_t high_water; /* host bytes from here on were never written: they read as zero */

    GArray *tables;      /* sorted host offsets (uint64_t) of L2 tables and refcount blocks */
    GArray *fixed;       /* Qcow2Range: the other metadata */
    Qcow2Snapshot *snapshots;
    uint64_t snapshots_bytes; /* of their table */
    GPtrArray *bitmaps;       /* Qcow2Bitmap (bitmaps.h): as the file has them */
    uint32_t n_bitmaps;       /* as the header's extension says it */
    uint64_t bitmaps_offset, bitmaps_bytes; /* of their directory */
    bool repairing;      /* opened for block_check */
    bool active;         /* opened for writing, wholly */
    bool corrupt;        /* found out: nothing is written any more */

    GMutex packed_lock;  /* the decompressed cluster kept below */
    uint64_t packed_entry;
    uint8_t *packed;

    uint64_t pack_next;  /* where compressed data may go on in a half-used cluster; 0: none */
} Qcow2;

/* header.c */
bool qcow2_probe(const uint8_t *head, size_t length);
bool qcow2_header_read(BlockNode *node, Qcow2Header *header, GError **err);
/* Writes the fields that change in place: features, L1, refcount table, size. meta held. */
int qcow2_header_update(Qcow2 *q);
/*
 * The same for a header that was @old before. When it fails q->header is @old again, in the file
 * too unless *unsure: then nothing that either refers to may be freed.
 */
int qcow2_header_switch(Qcow2 *q, const Qcow2Header *old, bool *unsure);
/*
 * Marks the image as one whose refcounts and copied flags are in flux, so that whoever opens it
 * after a crash counts them anew (version 3; version 2 has no such mark).
 */
int qcow2_header_dirty(Qcow2 *q, bool dirty);

/* header-rewrite.c */
/* Up to @length bytes of an extension; how long it is, -ENOENT when there is none, or -errno. */
int qcow2_extension_read(Qcow2 *q, uint32_t type, void *data, uint32_t length);
/*
 * The first cluster anew: q->header, the node's backing file, the bitmaps' extension, all other
 * extensions as they are. -ENOSPC: no room. meta held.
 */
int qcow2_header_rewrite(Qcow2 *q);

/* bitmaps.c, bitmaps-store.c */
bool qcow2_bitmaps_load(Qcow2 *q, GError **err);
int qcow2_bitmaps_store(Qcow2 *q); /* before the image is closed; meta held */
bool qcow2_bitmap_can_store(BlockNode *node, const char *name, unsigned granularity_bits,
                            GError **err);
bool qcow2_bitmap_remove(BlockNode *node, const char *name, GError **err);

/* snapshot.c */
bool qcow2_snapshots_load(Qcow2 *q, GError **err);
void qcow2_snapshots_free(Qcow2 *q);
/* By id, else by name; NULL: there is none. */
Qcow2Snapshot *qcow2_snapshot_find(const Qcow2 *q, const char *which);
/* A table of @list in new clusters, which the header does not refer to yet. meta held. */
int qcow2_snapshots_write(Qcow2 *q, const Qcow2Snapshot *list, uint32_t n, uint64_t *offset,
                          uint64_t *bytes);
/* q->fixed anew: the tables of snapshots and bitmaps. `lock` is held or not yet shared. */
void qcow2_fixed_build(Qcow2 *q);

/* snapshot-ops.c */
int qcow2_snapshots_rewrite(Qcow2 *q); /* their table as version 3 wants it; meta held */
extern const BlockSnapshotOps qcow2_snapshot_ops;

/* tree.c: all that an L1 table leads to; meta is held and nothing is uncommitted */
/* Counts everything one up; when it fails, nothing is changed. */
int qcow2_tree_refer(Qcow2 *q, const uint64_t *l1, uint32_t entries);
/* Gives everything back, by qcow2_free_later. */
int qcow2_tree_free(Qcow2 *q, const uint64_t *l1, uint32_t entries);
/* Sets the copied flags of the disk's tables to what the refcounts say. */
int qcow2_tree_copied(Qcow2 *q);

/* cache.c: `lock` is held */
void qcow2_cache_init(Qcow2Cache *cache, unsigned page_size, uint64_t bytes);
void qcow2_cache_clear(Qcow2Cache *cache);
/* The page holding host offset @at if it is in memory; never blocks. */
Qcow2Page *qcow2_cache_peek(Qcow2Cache *cache, uint64_t at);
/* The same, read if need be (`lock` is dropped meanwhile). Valid until `lock` is dropped. */
int qcow2_cache_get(Qcow2 *q, Qcow2Cache *cache, uint64_t at, Qcow2Page **page);
void qcow2_cache_dirty(Qcow2Cache *cache, Qcow2Page *page);
/* Drops the pages of a range whose content in the file was replaced. */
void qcow2_cache_forget(Qcow2 *q, Qcow2Cache *cache, uint64_t start, uint64_t length);
/* Writes all dirty pages; meta held, `lock` not. */
int qcow2_cache_write(Qcow2 *q, Qcow2Cache *cache);

/* overlap.c */
void qcow2_tables_build(Qcow2 *q); /* meta held or not yet shared */
void qcow2_tables_add(Qcow2 *q, uint64_t offset);
void qcow2_tables_remove(Qcow2 *q, uint64_t offset);
bool qcow2_overlaps(const Qcow2 *q, uint64_t offset, uint64_t length);
/* Notes the image as corrupt, in the file too (v3); returns -EIO. `lock` is not held. */
int qcow2_corrupt(Qcow2 *q);

/* refcount.c: meta is held, `lock` is not */
/* Changes an entry of the refcount table in memory; `lock` is held. */
void qcow2_reftable_set(Qcow2 *q, uint64_t index, uint64_t offset);
uint64_t qcow2_refcount_max(const Qcow2 *q);
uint64_t qcow2_refcount_decode(const Qcow2 *q, const uint8_t *block, uint64_t index);
void qcow2_refcount_encode(const Qcow2 *q, uint8_t *block, uint64_t index, uint64_t value);
int qcow2_refcount_get(Qcow2 *q, uint64_t cluster, uint64_t *value);
int qcow2_refcount_set(Qcow2 *q, uint64_t cluster, uint64_t value);
/* Adds @delta (1 or -1) to every cluster that [offset, offset + length) touches. */
int qcow2_refcount_add(Qcow2 *q, uint64_t offset, uint64_t length, int delta);
/* 1 to @want free clusters in a row, refcount set to one; *fresh: they read as zero. */
int qcow2_alloc(Qcow2 *q, uint64_t want, uint64_t *offset, uint64_t *got, bool *fresh);
/* Exactly @clusters free clusters in a row, for a table; refcount set to one. */
int qcow2_alloc_table(Qcow2 *q, uint64_t clusters, uint64_t *offset);
/* Exactly @clusters free clusters in a row, where they are found. */
int qcow2_alloc_row(Qcow2 *q, uint64_t clusters, uint64_t *offset);
/* @bytes (whole clusters) into clusters of their own; on failure they are free again. */
int qcow2_write_new(Qcow2 *q, const void *bytes, uint64_t length, uint64_t *offset);
/* Gives clusters back once nothing in the file refers to them. */
void qcow2_free_later(Qcow2 *q, uint64_t offset, uint64_t length, bool punch);

/* data.c */
/* Opens what the header says is the data file; without one, @data is the image's own file. */
bool qcow2_data_open(Qcow2 *q, const BlockOpen *options, GError **err);
void qcow2_data_close(Qcow2 *q);
/* As qcow2_alloc, for the guest's clusters from @guest on; and taken back. meta is held. */
int qcow2_data_alloc(Qcow2 *q, uint64_t guest, uint64_t want, uint64_t *offset, uint64_t *got,
                     bool *fresh);
void qcow2_data_unalloc(Qcow2 *q, uint64_t offset, uint64_t clusters);
/* Would writing there hit the image's own tables? `lock` is held. */
bool qcow2_data_overlaps(const Qcow2 *q, uint64_t offset, uint64_t length);
/* What the guest wrote, and the image's file, are on the disk when it returns 0. */
int qcow2_sync(Qcow2 *q);
/* A new data file for a new image. */
bool qcow2_data_create(const BlockCreate *create, BlockPreallocation mode, GError **err);

/* Bytes of the guest at @guest, which are at @host of @data: decrypted, encrypted if need be. */
int qcow2_data_read(Qcow2 *q, uint64_t guest, uint64_t host, const struct iovec *iov, int n,
                    uint64_t skip, uint64_t length);
int qcow2_data_write(Qcow2 *q, uint64_t guest, uint64_t host, const struct iovec *iov, int n,
                     uint64_t skip, uint64_t length);

/* crypt.c */
typedef struct Qcow2CryptCreate {
    uint32_t method; /* 0: not encrypted */
    BlockLuksCreate luks;
    uint64_t length; /* of the LUKS header */
} Qcow2CryptCreate;
bool qcow2_crypt_open(Qcow2 *q, const BlockOpen *options, GError **err);
void qcow2_crypt_close(Qcow2 *q);
bool qcow2_crypt_amend(Qcow2 *q, const json_t *options, const BlockObjects *objects, bool force,
                       GError **err);
json_t *qcow2_crypt_info(const Qcow2 *q); /* a new reference */
int qcow2_crypt_transfer(Qcow2 *q, bool write, uint64_t guest, uint64_t host,
                         const struct iovec *iov, int n, uint64_t skip, uint64_t length);
/* A write of any bytes; it ends in qcow2_write_sectors. */
int qcow2_crypt_writev(Qcow2 *q, uint64_t offset, const struct iovec *iov, int n);
bool qcow2_crypt_create_check(const BlockCreate *c, Qcow2CryptCreate *create, GError **err);
/* The LUKS header, to @offset of @file. */
bool qcow2_crypt_create(BlockFile *file, const BlockCreate *c, const Qcow2CryptCreate *create,
                        uint64_t offset, GError **err);

/* commit.c: meta is held, `lock` is not */
int qcow2_commit(Qcow2 *q);        /* metadata and data are on the disk when it returns 0 */
int qcow2_commit_if_full(Qcow2 *q); /* bounds what waits in memory */

/* entry.c */
/*
 * An L2 entry of either width. Without extended entries, a cluster is one subcluster: the zero
 * flag is found in @zero, and that there is data in @alloc.
 */
typedef struct Qcow2Entry {
    uint64_t word;        /* the offset and its flags, except QCOW2_ZERO */
    uint32_t alloc, zero; /* by subcluster, the first being bit 0; nothing for compressed ones */
} Qcow2Entry;
/* Entry @index of the table, or the part of one, that starts at @table. */
Qcow2Entry qcow2_entry_get(const Qcow2 *q, const uint8_t *table, uint64_t index);
void qcow2_entry_put(const Qcow2 *q, uint8_t *table, uint64_t index, Qcow2Entry entry);
bool qcow2_entry_bad(const Qcow2 *q, const Qcow2Entry *entry); /* nobody can have meant it */
bool qcow2_entry_placed(const Qcow2 *q, const Qcow2Entry *entry); /* has a cluster of its own */
bool qcow2_entry_owned(const Qcow2 *q, const Qcow2Entry *entry);  /* and nobody else has it */
uint64_t qcow2_l2_index(const Qcow2 *q, uint64_t offset);  /* of @offset's entry in its table */
uint64_t qcow2_page_entries(const Qcow2 *q);               /* of one page of the cache */
/* The L2 page with @offset's entry, number *index, in it. `lock` is held on success. */
int qcow2_l2_page(Qcow2 *q, uint64_t offset, Qcow2Page **page, uint64_t *index);

/* map.c */
typedef enum Qcow2Kind { QCOW2_NONE, QCOW2_ZEROES, QCOW2_DATA, QCOW2_PACKED } Qcow2Kind;
typedef struct Qcow2Map {
    Qcow2Kind kind;
    bool in_place;   /* QCOW2_DATA: may be overwritten where it is */
    bool placed;     /* there is a cluster for it, perhaps with nothing in it */
    uint64_t host;   /* QCOW2_DATA, placed: of the first byte; PACKED: the entry */
    uint64_t length; /* how far it goes on like this, at most what was asked */
} Qcow2Map;
Qcow2Kind qcow2_entry_kind(const Qcow2Entry *entry, unsigned sub);
/* 0, or -EAGAIN when a table is not in memory and !@wait. `lock` is held. */
int qcow2_map(Qcow2 *q, uint64_t offset, uint64_t length, bool wait, Qcow2Map *map);
/* The host bytes a compressed entry refers to. */
void qcow2_packed_extent(const Qcow2 *q, uint64_t entry, uint64_t *offset, uint64_t *length);
/* Changes an entry of the L1 table in memory; `lock` is held. */
void qcow2_l1_set(Qcow2 *q, uint64_t index, uint64_t entry);
/* Makes the L2 table for @offset ours to change; meta held. */
int qcow2_l2_writable(Qcow2 *q, uint64_t offset);

/* io.c */
int qcow2_readv(BlockNode *node, uint64_t offset, const struct iovec *iov, int n);
int qcow2_writev(BlockNode *node, uint64_t offset, const struct iovec *iov, int n);
int qcow2_write_sectors(BlockNode *node, uint64_t offset, const struct iovec *iov, int n);
bool qcow2_fast_begin(BlockNode *node, bool write, uint64_t offset, uint64_t length,
                      BlockFast *fast);
void qcow2_fast_end(BlockNode *node, BlockFast *fast);
void qcow2_hold(Qcow2 *q, BlockRange *range, uint64_t start, uint64_t end, bool exclusive);
void qcow2_release(Qcow2 *q, BlockRange *range);
/* Gives back what an L2 entry referred to. meta held, `lock` not. */
void qcow2_entry_free(Qcow2 *q, const Qcow2Entry *entry, bool punch);

/* zero.c */
int qcow2_write_zeroes(BlockNode *node, uint64_t offset, uint64_t length, bool unmap);
int qcow2_discard(BlockNode *node, uint64_t offset, uint64_t length);

/* packed.c */
int qcow2_packed_read(Qcow2 *q, uint64_t entry, uint64_t within, const struct iovec *iov, int n,
                      uint64_t skip, uint64_t length);
void qcow2_packed_forget(Qcow2 *q);
int qcow2_write_compressed(BlockNode *node, uint64_t offset, const void *cluster, size_t length);
ssize_t qcow2_pack(BlockNode *node, const void *cluster, size_t length, void *packed, size_t room);
int qcow2_write_packed(BlockNode *node, uint64_t offset, const void *packed, size_t packed_length,
                       size_t length);

/* tools.c */
bool qcow2_set_backing(BlockNode *node, const char *path, const char *format, GError **err);
bool qcow2_make_empty(BlockNode *node, GError **err);
bool qcow2_measure(const BlockCreate *create, BlockNode *source, BlockMeasure *measure,
                   GError **err);

/* amend.c */
extern const BlockOption qcow2_amend_table[];
bool qcow2_amend(BlockNode *node, const json_t *options, const BlockObjects *objects, bool force,
                 const BlockProgress *progress, GError **err);

/* check.c */
bool qcow2_check(BlockNode *node, BlockCheck *check, GError **err);

/* create.c */
extern const BlockOption qcow2_create_options[];
/* Gives clusters of [@at, @end), none of which has one, a place in the file. */
int qcow2_preallocate(Qcow2 *q, uint64_t at, uint64_t end, BlockPreallocation mode);
/* The extension that names the features, QCOW2_FEATURES_BYTES long. */
size_t qcow2_put_features(uint8_t *at);
bool qcow2_create_check(const BlockCreate *create, GError **err);
bool qcow2_create(BlockFile *file, const BlockCreate *create, GError **err);
/* resize.c */
bool qcow2_resize(BlockNode *node, const BlockResize *resize, GError **err);
/* A longer L1 table in new clusters; the caller updates the header, then commits. meta held. */
int qcow2_grow_l1(Qcow2 *q, uint32_t entries);

/* runtime.c: QEMU's tuning options are right or refused. */
bool qcow2_runtime_check(const Qcow2 *q, const json_t *options, GError **err);
