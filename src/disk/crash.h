/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * For tests: a guest's random writes to an image in memory, and what the image may hold after the
 * power was cut at any write of them, or after any of them failed.
 */
#pragma once

#include "disk/image.h"
#include "disk/memory-file.h"

#define CRASH_FILE_LIMIT (64u << 20)

/* Opens the image in @bytes; NULL with @err. Writes are noted in @log unless it is NULL. */
typedef BlockNode *(*CrashOpen)(void *opaque, BlockFile *file, bool read_only, GError **err);

typedef struct CrashRun {
    const char *name; /* for messages */
    CrashOpen open;
    void *opaque;
    uint64_t sectors;
    uint8_t *first_model; /* what each sector is filled with before the guest begins */
    GByteArray *live;     /* the image; crash_begin keeps a copy of what it holds then */
    /* its own */
    GByteArray *initial;
    GArray *log, *guest;
    GRand *random;
    int keep_percent;
} CrashRun;

/* Set: name, open, opaque, live. @first: the byte of every sector at first. */
void crash_begin(CrashRun *run, uint64_t sectors, uint8_t first);
void crash_end(CrashRun *run); /* also frees live */

/* The guest's random operations on the live image, opened and closed around them. */
void crash_work(CrashRun *run, unsigned operations);
/* Cuts at @cuts random points; sectors written since the last flush are each there or not. */
void crash_cut(CrashRun *run, unsigned cuts);
/*
 * The same work on a fresh copy each time, with one operation of the file failing (EIO): whatever
 * the guest was told had succeeded is there afterwards, and the image is consistent. @rounds copies.
 */
void crash_fail(CrashRun *run, unsigned operations, unsigned rounds);
