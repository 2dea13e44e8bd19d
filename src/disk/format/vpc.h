/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the parts of the vpc format share. docs/format/vpc.md */
#pragma once

#include "disk/format/blockmap.h"

#define VPC_SECTOR       512u
#define VPC_SECTORS_MAX  0xff000000ull /* 2040 GiB, the most a VHD holds */
#define VPC_CHS_MAX      (65535ull * 16 * 255)
#define VPC_NO_DATA      UINT64_MAX    /* "no further structure" of offset fields */
#define VPC_FREE         0xffffffffu   /* of the block allocation table */
#define VPC_CREATE_BLOCK MIB(2)
#define VPC_VERSION      0x00010000u

/* Byte offsets in the footer ("Hard Disk Footer Format"); numbers are big-endian. */
enum {
    VPC_COOKIE = 0,
    VPC_FEATURES = 8,
    VPC_FILE_VERSION = 12,
    VPC_DATA_OFFSET = 16,
    VPC_TIME = 24,
    VPC_CREATOR = 28,
    VPC_CREATOR_VERSION = 32,
    VPC_CREATOR_OS = 36,
    VPC_ORIGINAL_SIZE = 40,
    VPC_CURRENT_SIZE = 48,
    VPC_CYLINDERS = 56,
    VPC_HEADS = 58,
    VPC_SECTORS = 59,
    VPC_TYPE = 60,
    VPC_CHECKSUM = 64,
    VPC_UUID = 68,
    VPC_FOOTER_BYTES = 512,
};

/* Byte offsets in the header of a dynamic image ("Dynamic Disk Header Format"). */
enum {
    VPC_DYNAMIC_NEXT = 8,
    VPC_DYNAMIC_TABLE = 16,
    VPC_DYNAMIC_VERSION = 24,
    VPC_DYNAMIC_BLOCKS = 28,
    VPC_DYNAMIC_BLOCK_SIZE = 32,
    VPC_DYNAMIC_CHECKSUM = 36,
    VPC_DYNAMIC_PARENT_UUID = 40,
    VPC_DYNAMIC_PARENT_NAME = 64,
    VPC_DYNAMIC_LOCATORS = 576,
    VPC_DYNAMIC_BYTES = 1024,
};

enum { VPC_FIXED = 2, VPC_DYNAMIC = 3, VPC_DIFFERENCING = 4 };

/* The one's complement of the sum of all bytes but those of the checksum at @at. */
uint32_t vpc_checksum(const uint8_t *bytes, size_t length, size_t at);
/* Bytes of the bitmap before a block of @block bytes: a bit a sector, in whole sectors. */
uint64_t vpc_bitmap_bytes(uint64_t block);

/* vpc-diff.c: a differencing image, read-only. Bits before each block tell its sectors apart. */
typedef struct VpcDiff {
    BlockMap *map;
    uint64_t bitmap; /* bytes before each block */
    GMutex lock;
    uint8_t *bits;   /* of the block that was looked at last */
    uint64_t block;
} VpcDiff;

typedef struct VpcDiffRun {
    bool own; /* else the parent's */
    uint64_t host, length;
} VpcDiffRun;

/* Sets the node's backing file from the dynamic header and what it leads to before @end. */
bool vpc_diff_parent(BlockNode *node, const uint8_t *header, uint64_t end, GError **err);
void vpc_diff_init(VpcDiff *d, BlockMap *map, uint64_t bitmap);
void vpc_diff_clear(VpcDiff *d); /* also if there was no init */
int vpc_diff_find(VpcDiff *d, uint64_t offset, uint64_t length, VpcDiffRun *run);
int vpc_diff_readv(VpcDiff *d, uint64_t offset, const struct iovec *iov, int n);
int vpc_diff_status(VpcDiff *d, uint64_t offset, uint64_t length, BlockExtent *extent);

/* vpc-create.c */
extern const BlockOption vpc_create_options[];
bool vpc_create_check(const BlockCreate *create, GError **err);
bool vpc_create(BlockFile *file, const BlockCreate *create, GError **err);
