/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Inside a running copy: what its threads share. */
#pragma once

#include "disk/copy/copy.h"

typedef enum CopyKind {
    COPY_LEAVE, /* nothing to do with it */
    COPY_ZERO,
    COPY_DATA,
} CopyKind;

/* A piece of the work: positions count from the start of what is copied. */
typedef struct CopyPiece {
    uint64_t start, length;
    CopyKind kind; /* COPY_DATA: to be looked at closely */
    bool whole;    /* COPY_DATA: known to be data all through */
} CopyPiece;

typedef struct CopyJob {
    const BlockCopy *how;
    uint64_t length, window, unit, cluster;
    bool in_order, direct_files;
    bool packs; /* compressing is a step of its own */
    int64_t start_us;
    int no_offload; /* atomic: the kernel refused */

    GMutex lock; /* all below */
    GCond changed;
    uint64_t next;         /* where the next piece starts */
    CopyKind known;        /* what is there ... */
    uint64_t known_until;  /* ... up to here */
    uint64_t written;      /* in order: up to here */
    uint64_t done;         /* bytes dealt with */
    uint64_t paced;        /* bytes that count for the rate */
    unsigned running;      /* threads */
    bool stop;
    GError *error; /* the first */
} CopyJob;

/* What a thread has for itself. */
typedef struct CopyWorker {
    CopyJob *job;
    uint8_t *buffer;     /* window bytes, aligned */
    uint8_t *packed;     /* compressed clusters of a window, each with room for a cluster */
    size_t *packed_length;
    uint8_t *kinds;      /* CopyKind of each unit of a window */
} CopyWorker;

/* What is at @position, and for how many bytes (*length: in the most, out). 0 or -errno. */
int copy_status(CopyJob *job, uint64_t position, uint64_t *length, CopyKind *kind);
/* Reads across sources. On error *failed is the position that could not be read. */
int copy_read(CopyJob *job, uint64_t position, uint8_t *buffer, uint64_t length,
              uint64_t *failed);
/* False: the job has failed, the piece is not done. */
bool copy_piece(CopyWorker *worker, const CopyPiece *piece);
/* Notes the first error; all threads stop. Returns false. */
bool copy_failed(CopyJob *job, int result, const char *doing, uint64_t position);
bool copy_wait_turn(CopyJob *job, uint64_t position);
void copy_pass_turn(CopyJob *job, uint64_t position);

/* offload.c: true when the kernel has copied it. */
bool copy_offload_possible(const BlockCopy *copy);
bool copy_clone_all(CopyJob *job);
bool copy_offload(CopyJob *job, uint64_t position, uint64_t length);
