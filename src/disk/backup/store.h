/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A store of backups: a folder that keeps each piece of disk content once, by its SHA-256, however
 * many backups have it. docs/backup.md describes the files in it.
 *
 * A backup exists once its manifest does, and that is written last: whatever is interrupted leaves
 * at worst chunks that no backup refers to, which the next backup uses. One writer at a time; any
 * number of readers beside it. A BackupStore belongs to one thread.
 */
#pragma once

#include "disk/image.h"

#define BACKUP_CHUNK_DEFAULT 65536u
#define BACKUP_CHUNK_MIN     4096u
#define BACKUP_CHUNK_MAX     (4u << 20)

typedef struct BackupStore BackupStore;

/* Makes the folder @path, which must be empty or not there, a store. @chunk: a power of two. */
bool backup_store_create(const char *path, uint32_t chunk, GError **err);
/* @write: waits for no other writer, but fails (LODGE_ERROR_BUSY). */
BackupStore *backup_store_open(const char *path, bool write, GError **err);
void backup_store_free(BackupStore *store); /* NULL is accepted */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(BackupStore, backup_store_free)

typedef struct BackupInfo {
    char *name, *source, *parent; /* parent: what an incremental one was taken on; NULL: none */
    uint64_t size;                /* of the disk, bytes */
    uint64_t data;                /* of it in chunks, not holes */
    int64_t time;                 /* when it was begun: seconds since 1970 */
} BackupInfo;
void backup_info_clear(BackupInfo *info);

/* Names of the backups in @store, sorted; NULL with @err. Free with g_ptr_array_unref. */
GPtrArray *backup_list(BackupStore *store, GError **err);
bool backup_describe(BackupStore *store, const char *name, BackupInfo *info, GError **err);
/* The disk is not there any more; chunks that only it had go with backup_prune. */
bool backup_delete(BackupStore *store, const char *name, GError **err);
/* Gives back packs whose chunks no backup refers to; *freed: bytes. */
bool backup_prune(BackupStore *store, uint64_t *freed, GError **err);

typedef struct BackupStats {
    uint64_t read, stored, chunks_new, chunks_known; /* stored: bytes added to the store */
} BackupStats;

typedef struct BackupTake {
    const char *name;   /* letters, digits, '.', '_', '-'; not in the store yet */
    BlockNode *source;  /* nothing writes to it meanwhile */
    const char *parent; /* with @bitmap: the backup since which the bitmap has been dirty */
    const char *bitmap; /* only what is dirty here is read, the rest is @parent's; NULL: all */
    unsigned threads;   /* 0: as many as there are CPUs */
    BlockProgress progress;
} BackupTake;
bool backup_take(BackupStore *store, const BackupTake *take, BackupStats *stats, GError **err);

/* Writes backup @name to @target, which is as large or larger and reads as zero if @blank. */
bool backup_restore(BackupStore *store, const char *name, BlockNode *target, bool blank,
                    const BlockProgress *progress, GError **err);

typedef struct BackupVerify {
    uint64_t chunks, damaged;
    /* One line about each damage; may be NULL. */
    void (*message)(void *opaque, const char *text);
    void *opaque;
} BackupVerify;
/* Reads and hashes every chunk of backup @name (NULL: of all). False: could not be done. */
bool backup_verify(BackupStore *store, const char *name, BackupVerify *verify,
                   const BlockProgress *progress, GError **err);
