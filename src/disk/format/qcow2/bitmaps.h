/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What bitmaps.c (reading) and bitmaps-store.c (writing) share; check.c walks them. */
#pragma once

#include "disk/bitmap-internal.h"
#include "disk/format/qcow2/qcow2.h"

#define QCOW2_BITMAPS_MAX          65535u
#define QCOW2_BITMAP_DIRECTORY_MAX (64u << 20)
#define QCOW2_BITMAP_IN_USE        (1u << 0)
#define QCOW2_BITMAP_AUTO          (1u << 1)

/* A bitmap as the file has it. */
typedef struct Qcow2Bitmap {
    char *name;
    uint64_t table_offset;
    uint32_t entries, flags;
    unsigned granularity_bits;
    uint64_t *table; /* decoded */
} Qcow2Bitmap;

void qcow2_bitmap_free(gpointer item);
/* Clusters of data of a bitmap for a disk of @size bytes. */
uint64_t qcow2_bitmap_entries(const Qcow2 *q, uint64_t size, unsigned granularity_bits);
size_t qcow2_bitmap_record_bytes(const Qcow2Bitmap *b);
/* The directory, padded with zeroes to a multiple of @room; NULL: no memory. */
uint8_t *qcow2_bitmaps_encode(const GPtrArray *list, uint64_t room, uint64_t *bytes);
/* Says in the file that all of them are in use. */
int qcow2_bitmaps_mark(Qcow2 *q);
json_t *qcow2_bitmaps_info(const Qcow2 *q);
