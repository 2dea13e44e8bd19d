/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Where the bytes of an image live: a file or block device of the host. Formats see only these
 * operations, so that tests can put a transport that fails or records in their place.
 */
#pragma once

#include "disk/block.h"

typedef struct BlockFile BlockFile;
typedef struct BlockExtent BlockExtent; /* disk/image.h */

/* All: any thread; 0 or -errno, never a short transfer. */
typedef struct BlockFileOps {
    const char *name;
    /* Bytes past the end read as zero. */
    int (*readv)(BlockFile *file, uint64_t offset, const struct iovec *iov, int n);
    /* Grows the file when it writes past the end. */
    int (*writev)(BlockFile *file, uint64_t offset, const struct iovec *iov, int n);
    /* Makes a range read as zero, growing the file; @unmap: host space may be given back. */
    int (*zero)(BlockFile *file, uint64_t offset, uint64_t length, bool unmap);
    /* A hint that the range's content is not needed any more. */
    int (*discard)(BlockFile *file, uint64_t offset, uint64_t length);
    int (*flush)(BlockFile *file);
    int (*truncate)(BlockFile *file, uint64_t size);
    int (*size)(BlockFile *file, uint64_t *size);
    /* Data or hole at @offset: *data, and for how many bytes (at most @length). May be NULL. */
    int (*status)(BlockFile *file, uint64_t offset, uint64_t length, bool *data,
                  uint64_t *same);
    /* The same in full, for a transport that is told more than data or hole. May be NULL. */
    int (*describe)(BlockFile *file, uint64_t offset, uint64_t length, BlockExtent *extent);
    /* Bytes of host storage in use. May be NULL. */
    int (*allocated)(BlockFile *file, uint64_t *bytes);
    /* blkdebug only, else NULL: something happens above ("read_aio"); who calls it may be held up. */
    void (*event)(BlockFile *file, const char *event);
    /* Breakpoints on events; -ENOENT: there is none of that tag. */
    int (*breakpoint)(BlockFile *file, BlockBreak what, const char *event, const char *tag);
    void (*close)(BlockFile *file);
} BlockFileOps;

struct BlockFile {
    const BlockFileOps *ops;
    char *path;
    int fd;             /* -1 when the kernel cannot be given requests directly */
    bool block_device;
    bool read_only;
    unsigned alignment; /* of offsets, lengths and memory; 1 without O_DIRECT */
    uint64_t device, inode;
    GMutex rmw;         /* serialises read-modify-write of unaligned writes */
    int no_zero_range, no_punch; /* atomic: the file system refused, do not ask again */
};

/* The host file of @options, locked as QEMU would lock it. */
BlockFile *block_file_open(const BlockOpen *options, GError **err);
/* A new file of @size bytes, which must not be in use; truncates an existing one. */
BlockFile *block_file_create(const char *path, uint64_t size, GError **err);
/*
 * Makes the host file @path, if "nocow" or "extent_size_hint" of @options ask for what a file must
 * get before its first byte; a file system that has no such thing goes without, as with QEMU.
 */
bool block_file_prepare(const char *path, const json_t *options, GError **err);
void block_file_close(BlockFile *file); /* NULL is accepted */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(BlockFile, block_file_close)

/* Gives [start, end) its host storage: set aside, or (@full) written with zeroes. */
int block_file_preallocate(BlockFile *file, uint64_t start, uint64_t end, bool full);

/* Flat-buffer forms of the operations. */
int block_file_read(BlockFile *file, uint64_t offset, void *buffer, size_t length);
int block_file_write(BlockFile *file, uint64_t offset, const void *buffer, size_t length);
int block_file_readv(BlockFile *file, uint64_t offset, const struct iovec *iov, int n,
                     uint64_t skip, uint64_t length);
int block_file_writev(BlockFile *file, uint64_t offset, const struct iovec *iov, int n,
                      uint64_t skip, uint64_t length);
