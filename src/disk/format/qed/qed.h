/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the parts of the qed format share; the specification is QEMU's docs/interop/qed_spec.txt. */
#pragma once

#include "disk/format/grains.h"

#define QED_CLUSTER_MIN KIB(4)
#define QED_CLUSTER_MAX MIB(64)
#define QED_TABLE_MAX   MIB(64) /* bytes of a table; at least four are held in memory */
#define QED_NAME_MAX    1023u   /* bytes of the backing file's name, as in QEMU */

/* Byte offsets in the header, little-endian. */
enum {
    QED_MAGIC = 0, /* "QED\0" */
    QED_CLUSTER_SIZE = 4,
    QED_TABLE_SIZE = 8,   /* in clusters */
    QED_HEADER_SIZE = 12, /* in clusters */
    QED_FEATURES = 16,
    QED_COMPAT_FEATURES = 24,
    QED_AUTOCLEAR_FEATURES = 32,
    QED_L1_TABLE = 40,
    QED_IMAGE_SIZE = 48,
    QED_NAME_OFFSET = 56,
    QED_NAME_SIZE = 60,
    QED_HEADER_BYTES = 64,
};

enum { QED_BACKED = 1, QED_NEED_CHECK = 2, QED_BACKING_RAW = 4, QED_KNOWN_FEATURES = 7 };

#define QED_ZERO 1u /* an entry of an L2 table: reads as zero */

typedef struct Qed {
    BlockNode *node;
    GrainMap map;
    uint8_t header[QED_HEADER_BYTES];
    uint64_t cluster, table_bytes, first; /* first: where regular clusters begin */
    bool checking;                        /* opened only to be repaired: there is no data path */
} Qed;

static inline Qed *qed_of(const BlockNode *node)
{
    return node->state;
}

/* Can [offset, offset + length) be clusters of a file of @file_size bytes? */
bool qed_place_valid(const Qed *q, uint64_t offset, uint64_t length, uint64_t file_size);
int qed_write_header(Qed *q, const uint8_t *header); /* durable; becomes q->header */
uint64_t qed_disk_max(uint64_t cluster, uint64_t table_bytes);

/* check.c */
bool qed_check_tables(BlockNode *node, BlockCheck *check, GError **err);

/* create.c */
extern const BlockOption qed_create_options[];
bool qed_create_check(const BlockCreate *create, GError **err);
bool qed_create(BlockFile *file, const BlockCreate *create, GError **err);
bool qed_resize(BlockNode *node, const BlockResize *resize, GError **err);
bool qed_set_backing(BlockNode *node, const char *path, const char *format, GError **err);

/* qed.c */
bool qed_start(BlockNode *node, GError **err); /* reads the L1 table */
