/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the parts of the vmdk format share. docs/format/vmdk.md */
#pragma once

#include "disk/format/grains.h"
#include "disk/format/vmdk/descriptor.h"

#define VMDK_SECTOR        512u
#define VMDK_GRAIN_SECTORS 128u /* of new images */
#define VMDK_TABLE_ENTRIES 512u
#define VMDK_DESC_SECTOR   1u   /* of new images that hold their descriptor, */
#define VMDK_DESC_SECTORS  20u  /* and how much room it has */
#define VMDK_SPLIT_BYTES   GIB(2)

/* Byte offsets in the header of a hosted sparse extent ("Hosted Sparse Extents"); little-endian. */
enum {
    VMDK_MAGIC = 0,
    VMDK_VERSION = 4,
    VMDK_FLAGS = 8,
    VMDK_CAPACITY = 12,
    VMDK_GRAIN_SIZE = 20,
    VMDK_DESC_OFFSET = 28,
    VMDK_DESC_SIZE = 36,
    VMDK_TABLE_SIZE = 44,
    VMDK_REDUNDANT = 48,
    VMDK_DIRECTORY = 56,
    VMDK_OVERHEAD = 64,
    VMDK_UNCLEAN = 72,
    VMDK_NEWLINES = 73, /* four bytes that a transfer as text would change */
    VMDK_COMPRESSION = 77,
    VMDK_HEADER_BYTES = 512,
};

enum {
    VMDK_FLAG_NEWLINES = 1 << 0,
    VMDK_FLAG_REDUNDANT = 1 << 1,
    VMDK_FLAG_ZERO_GRAIN = 1 << 2,
    VMDK_FLAG_COMPRESSED = 1 << 16,
    VMDK_FLAG_MARKERS = 1 << 17,
};

enum { VMDK_MARKER_END = 0, VMDK_MARKER_FOOTER = 3, VMDK_GRAIN_MARKER_BYTES = 12 };

#define VMDK_DEFLATE          1u
#define VMDK_DIRECTORY_AT_END UINT64_MAX
#define VMDK_ENTRY_ZERO       1u /* of a grain table, with VMDK_FLAG_ZERO_GRAIN */

typedef struct Vmdk Vmdk;

typedef struct VmdkExtent {
    Vmdk *vmdk;
    VmdkExtentType type;
    bool named;          /* the descriptor's extent line gives the type */
    BlockFile *file;
    bool owns_file;      /* else it is the node's */
    uint64_t start, size; /* on the disk, in bytes */
    bool flat, markers, compressed;
    uint64_t flat_offset;
    uint64_t tables_at, grains_at; /* seSparse: what its entries count from */
    GrainMap map;        /* unless flat */
} VmdkExtent;

struct Vmdk {
    BlockNode *node;
    GPtrArray *extents; /* VmdkExtent, in the order of the disk */
    char *create_type;
    uint32_t cid, parent_cid;
    uint64_t desc_at; /* of the descriptor in node->file */
    uint64_t cid_at;  /* of the CID's text in node->file */
    size_t cid_digits;
    GMutex cid_lock;
    int cid_written; /* atomic: since the image was opened */
};

/* extent.c. The file is taken over when @owns, also on failure. */
bool vmdk_extent_add_flat(Vmdk *v, BlockFile *file, const VmdkExtentLine *line, GError **err);
/* @line: NULL for an image that is one sparse extent. */
bool vmdk_extent_add_sparse(Vmdk *v, BlockFile *file, bool owns, const VmdkExtentLine *line,
                            GError **err);
bool vmdk_extent_add_cowd(Vmdk *v, BlockFile *file, bool owns, const VmdkExtentLine *line,
                          GError **err);
/* sesparse.c */
bool vmdk_extent_add_sesparse(Vmdk *v, BlockFile *file, const VmdkExtentLine *line, GError **err);
VmdkExtent *vmdk_extent_new(Vmdk *v, BlockFile *file, bool owns, const VmdkExtentLine *line);
bool vmdk_extent_start(VmdkExtent *e, GError **err); /* once everything is set */
void vmdk_extent_free(gpointer extent);

bool vmdk_magic(const uint8_t *head, bool *cowd);

/* create.c */
extern const BlockOption vmdk_create_options[];
bool vmdk_create_check(const BlockCreate *create, GError **err);
bool vmdk_create(BlockFile *file, const BlockCreate *create, GError **err);

/* The CID of an open vmdk image; false: it is of another format. */
bool vmdk_cid_of(const BlockNode *node, uint32_t *cid);
