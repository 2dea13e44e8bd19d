/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the parts of the vhdx format share. The specification is [MS-VHDX], "Virtual Hard Disk v2
 * (VHDX) File Format"; sections are named as there. All numbers are little-endian.
 * docs/format/vhdx.md
 */
#pragma once

#include "disk/format/blockmap.h"

#define VHDX_HEADER_AT       KIB(64) /* and at twice this: two headers */
#define VHDX_HEADER_BYTES    4096u
#define VHDX_REGIONS_AT      KIB(192) /* and a copy at 256 KiB */
#define VHDX_TABLE_BYTES     65536u   /* of the region table, and of the metadata table */
#define VHDX_ALIGNMENT       MIB(1)   /* of the log, regions and blocks */
#define VHDX_REGIONS_MAX     2047u
#define VHDX_BLOCK_MAX       MIB(256)
#define VHDX_DISK_MAX        (64 * MIB(1048576))
#define VHDX_LOG_SECTOR      4096u
#define VHDX_LOG_REPLAY_MAX  MIB(256)     /* of a log that has entries: it is held in memory */
#define VHDX_SECTORS_A_CHUNK (1ull << 23) /* that one sector bitmap covers */

typedef struct VhdxGuid {
    uint8_t bytes[16];
} VhdxGuid;

/* Byte offsets in a header (section 2.2.2.1). */
enum {
    VHDX_HEADER_SIGNATURE = 0, /* "head" */
    VHDX_HEADER_CHECKSUM = 4,
    VHDX_HEADER_SEQUENCE = 8,
    VHDX_HEADER_FILE_WRITE = 16,
    VHDX_HEADER_DATA_WRITE = 32,
    VHDX_HEADER_LOG_GUID = 48,
    VHDX_HEADER_LOG_VERSION = 64,
    VHDX_HEADER_VERSION = 66,
    VHDX_HEADER_LOG_LENGTH = 68,
    VHDX_HEADER_LOG_OFFSET = 72,
};

/* Entries of the block allocation table (2.5.1). */
enum { VHDX_NOT_PRESENT = 0, VHDX_ZERO = 2, VHDX_PRESENT = 6, VHDX_PARTIAL = 7 };
#define VHDX_STATE_MASK  7u
#define VHDX_PLACE_SHIFT 20

/* Entries of blockmap's table: the block's place in MiB, or these. */
#define VHDX_NONE 0xffffffffu
#define VHDX_BAD  0xfffffffeu /* no place that can be: no file is that long */

typedef struct VhdxSpan {
    uint64_t start, end;
} VhdxSpan;

typedef struct Vhdx {
    BlockMap map;
    /* The header that counts, `change` is held to change it. */
    uint8_t header[VHDX_HEADER_BYTES];
    unsigned current; /* which of the two it is */
    uint64_t log_offset;
    uint32_t log_length;
    /* The log as we write it: entries one behind the other from its start, under one GUID. */
    uint32_t log_at;
    uint64_t log_sequence;
    int writing; /* atomic: the header says that somebody writes, and the log is ours */
    bool replayed;

    uint64_t bat_at, bat_bytes, metadata_at, metadata_bytes;
    VhdxSpan spans[VHDX_REGIONS_MAX + 1]; /* log and regions, sorted */
    unsigned n_spans;
    uint64_t chunk; /* blocks between two entries for sector bitmaps */
    uint64_t next;  /* where in the file the next block goes */
} Vhdx;

static inline Vhdx *vhdx_of(const BlockNode *node)
{
    return node->state;
}

/* header.c: the headers, the region table and what the metadata region says */
extern const VhdxGuid vhdx_bat, vhdx_metadata;
extern const VhdxGuid vhdx_file_parameters, vhdx_disk_size, vhdx_page_83, vhdx_logical_sector,
    vhdx_physical_sector;
bool vhdx_guid_new(uint8_t *guid);
bool vhdx_guid_none(const uint8_t *guid);
bool vhdx_read_headers(BlockNode *node, GError **err);
bool vhdx_read_regions(BlockNode *node, GError **err);
bool vhdx_read_metadata(BlockNode *node, GError **err); /* sets node->size and map.block */
/* Writes both headers, a new file-write GUID in them; @log: the log's GUID. `change` is held. */
int vhdx_write_headers(Vhdx *v, const uint8_t log[16], bool new_data);
/* Puts the checksum of a structure at @at within it. */
void vhdx_seal(uint8_t *bytes, size_t length, size_t at);
bool vhdx_sealed(const uint8_t *bytes, size_t length, size_t at);

/* log.c */
/* Replays what the log has, if anything; fails on a file that is opened read-only. */
bool vhdx_replay(BlockNode *node, GError **err);
/* Before the first write: new GUIDs, an empty log of our own. */
int vhdx_begin_writing(BlockNode *node);
/* As BlockMapOps.write_table: through the log. */
int vhdx_write_table(BlockMap *m);
/* Says that the log is empty; all that it was needed for has been flushed. */
void vhdx_end_writing(BlockNode *node);

/* create.c */
extern const BlockOption vhdx_create_options[];
bool vhdx_create_check(const BlockCreate *create, GError **err);
bool vhdx_create(BlockFile *file, const BlockCreate *create, GError **err);
/* Entries of the table for @blocks of them; @chunk: payload entries between bitmaps' (2.5). */
uint64_t vhdx_entries(uint64_t blocks, uint64_t chunk);
