/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What check.c (finding) and repair.c (putting right) share. */
#pragma once

#include "disk/format/qcow2/qcow2.h"

typedef struct Qcow2Fix {
    uint64_t cluster, refcount; /* what it should be */
} Qcow2Fix;

typedef struct Qcow2Check {
    Qcow2 *q;
    BlockCheck *out;
    uint32_t *counts; /* references found, by cluster of the file */
    uint64_t clusters;
    uint8_t *buffer;  /* one cluster */
    GHashTable *l2_tables; /* host offset -> how many L1 entries refer to it */
    GArray *fix;           /* Qcow2Fix; NULL when nothing is to be repaired */
    bool broken;           /* the refcount structure itself cannot be used */
    uint64_t low;          /* clusters whose refcount is too low */
    uint64_t end, next_offset;
    unsigned messages, findings; /* told so far */
    BlockRepair repair; /* what this pass is to put right */
    bool rebuild;       /* clusters in use count as free: no refcount can be trusted */
    char table[96];     /* what is looked at, for findings */
    int64_t index;
    uint64_t guest;
} Qcow2Check;

/* What is looked at from now on; its entries are counted in c->index. */
void qcow2_check_at(Qcow2Check *c, const char *table, ...) G_GNUC_PRINTF(2, 3);
/* Counts and tells a fault at @f->host; the place is filled in. @format: the line about it. */
void qcow2_check_found(Qcow2Check *c, BlockFinding f, const char *format, ...) G_GNUC_PRINTF(3, 4);
/* The disk's offset that entry @index of L2 table @table describes. */
uint64_t qcow2_check_guest(const Qcow2 *q, uint64_t table, uint64_t index);
/* An offset inside a cluster, whose data nobody needs as it reads as zeroes. */
bool qcow2_check_spare(const Qcow2 *q, const Qcow2Entry *entry);
void qcow2_check_say(Qcow2Check *c, const char *format, ...) G_GNUC_PRINTF(2, 3);

/* repair.c; meta is held */
/* Compares the copied flags with the refcounts, and corrects them with c->fix. */
bool qcow2_check_copied(Qcow2Check *c, GError **err);
bool qcow2_check_repair(Qcow2Check *c, BlockRepair repair, bool *changed, GError **err);
/* A refcount structure behind everything, of what was counted; the header is switched to it. */
int qcow2_check_rebuild(Qcow2Check *c);
/* check.c: counts all references, and keeps them in refcounts of 2^@order bits from now on. */
bool qcow2_check_widen(Qcow2 *q, unsigned order, GError **err);
/* check.c: as block_check; meta is held and nothing is uncommitted */
bool qcow2_check_locked(Qcow2 *q, BlockCheck *check, GError **err);
