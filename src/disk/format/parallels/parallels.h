/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the parts of the parallels format share; QEMU's docs/interop/parallels.txt describes it. */
#pragma once

#include "disk/format/blockmap.h"

#define PARALLELS_SECTOR        512u
#define PARALLELS_HEADER_BYTES  64u                /* the table follows */
#define PARALLELS_CLUSTER_MAX   (INT32_MAX / 513u) /* sectors, as in QEMU */
#define PARALLELS_IN_USE        0x746f6e59u
#define PARALLELS_NONE          0xffffffffu /* of blockmap's table; 0 in the file */
#define PARALLELS_EXTENSION_MAX MIB(64)     /* bytes of a cluster that holds the extension */

/* Byte offsets in the header, little-endian. */
enum {
    PARALLELS_MAGIC = 0, /* "WithoutFreeSpace" or "WithouFreSpacExt" */
    PARALLELS_VERSION = 16,
    PARALLELS_HEADS = 20,
    PARALLELS_CYLINDERS = 24,
    PARALLELS_TRACKS = 28, /* sectors of a cluster */
    PARALLELS_ENTRIES = 32,
    PARALLELS_SECTORS = 36,
    PARALLELS_INUSE = 44,
    PARALLELS_DATA = 48,
    PARALLELS_FLAGS = 52,
    PARALLELS_EXTENSION = 56,
};

typedef struct Parallels {
    BlockMap map;
    uint64_t data;     /* byte of the file where clusters begin */
    uint64_t next;     /* where the next one goes */
    uint64_t file_end; /* of the file as we have grown it */
    uint64_t stale;    /* up to here the file may hold anything; behind it, zeroes */
    uint64_t extension, extension_end; /* bytes; 0: there is none */
    uint64_t preallocate;
    bool falloc;  /* how: by reserving storage */
    bool unclean; /* was in use when its writer died */
    int writing;  /* atomic: the header says that it is in use */
} Parallels;

static inline Parallels *parallels_of(const BlockNode *node)
{
    return node->state;
}

bool parallels_check(BlockNode *node, BlockCheck *check, GError **err);
/* extension.c: attaches the bitmaps of the format extension to the node. */
bool parallels_read_extension(BlockNode *node, GError **err);
/* create.c */
extern const BlockOption parallels_create_options[];
bool parallels_create_check(const BlockCreate *create, GError **err);
bool parallels_create(BlockFile *file, const BlockCreate *create, GError **err);
