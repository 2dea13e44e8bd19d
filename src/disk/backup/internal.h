/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Inside a store of backups: packs of chunks, and manifests. */
#pragma once

#include "disk/backup/store.h"

#define BACKUP_HASH     32u
#define BACKUP_PACK_MAX (64u << 20) /* bytes; then the next pack is begun */
#define BACKUP_NAME_MAX 128u
#define BACKUP_TEXT_MAX 65536u      /* bytes of JSON in a manifest */

/* Where a chunk is. */
typedef struct BackupPlace {
    uint32_t pack; /* index into BackupStore.packs */
    uint32_t slot;
} BackupPlace;

/* A pack in memory; its entries are those of the index file (pack.c). */
typedef struct BackupPack {
    uint32_t number;
    int fd;
    uint8_t *entries; /* n x PACK_ENTRY bytes */
    uint32_t n, room;
    void *mapped;     /* entries are a mapping of the index file of this length; NULL: allocated */
    size_t mapped_length;
    uint64_t end;     /* bytes in use */
    bool finished;    /* has its index file */
} BackupPack;

struct BackupStore {
    char *path;
    int folder; /* descriptor of the folder, which holds the lock */
    bool write;
    uint32_t chunk;
    GPtrArray *packs;   /* BackupPack */
    BackupPlace *table; /* open addressing by the hash; slot UINT32_MAX: free */
    uint64_t table_size, used;
};

/* pack.c */
bool backup_packs_load(BackupStore *store, GError **err);
void backup_pack_free(BackupPack *pack);
const uint8_t *backup_pack_hash(const BackupPack *pack, uint32_t slot);
bool backup_chunk_find(const BackupStore *store, const uint8_t *hash, BackupPlace *place);
/* A chunk that backup_chunk_find does not know; @packed: its content, zstd-compressed or as it is. */
bool backup_chunk_add(BackupStore *store, const uint8_t *hash, const void *packed,
                      uint32_t packed_length, uint32_t length, bool compressed, GError **err);
/* Reads a chunk into @buffer (store->chunk bytes) and checks its hash. 0, -EIO, -EBADMSG. */
int backup_chunk_read(const BackupStore *store, const BackupPlace *place, void *buffer,
                      uint32_t *length);
/* Everything added so far is on the disk. */
bool backup_packs_sync(BackupStore *store, GError **err);

void backup_hash(const void *data, size_t length, uint8_t *hash);

/* manifest.c: the content of a disk, as runs of chunks in order; what is in no run is a hole. */
typedef struct BackupManifest {
    BackupInfo info;
    char *path;
    int fd;
    uint64_t runs_at, runs_end; /* in the file */
    uint64_t at;                /* the next run's header */
    /* the run that is being read */
    uint64_t first, count, taken;
    uint64_t hashes_at;
    uint8_t *block; /* some hashes of it */
    uint64_t block_first, block_count;
    uint32_t chunk;
} BackupManifest;
BackupManifest *backup_manifest_open(BackupStore *store, const char *name, GError **err);
void backup_manifest_free(BackupManifest *manifest);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(BackupManifest, backup_manifest_free)
/* The next chunk in order: 1, 0 at the end, -errno. *hash is borrowed until the next call. */
int backup_manifest_next(BackupManifest *manifest, uint64_t *index, const uint8_t **hash);

typedef struct BackupWriter BackupWriter;
BackupWriter *backup_writer_new(BackupStore *store, const BackupInfo *info, GError **err);
/* Indices go up. */
bool backup_writer_add(BackupWriter *writer, uint64_t index, const uint8_t *hash, GError **err);
/* Makes the backup exist; the writer is freed either way. */
bool backup_writer_finish(BackupWriter *writer, GError **err);
void backup_writer_free(BackupWriter *writer); /* gives it up; NULL is accepted */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(BackupWriter, backup_writer_free)

bool backup_name_valid(const char *name, GError **err);
/* Writes @length bytes at once or not at all; for small files. */
bool backup_write_file(BackupStore *store, const char *name, const void *data, size_t length,
                       GError **err);
