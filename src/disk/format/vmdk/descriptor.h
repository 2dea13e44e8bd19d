/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The text that describes a VMDK: where its extents are and what it is a child of. "Virtual Disk
 * Format 5.0", VMware, 2011, "The Descriptor".
 */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#define VMDK_DESCRIPTOR_MAX MIB(1) /* bytes of text that are looked at */
#define VMDK_EXTENTS_MAX    32768u /* 64 TiB in pieces of 2 GiB */
#define VMDK_CID_NONE       0xffffffffu

typedef enum VmdkExtentType {
    VMDK_FLAT,
    VMDK_SPARSE,
    VMDK_VMFS,
    VMDK_VMFSSPARSE,
    VMDK_SESPARSE,
} VmdkExtentType;

typedef struct VmdkExtentLine {
    VmdkExtentType type;
    uint64_t sectors;
    uint64_t offset; /* of a flat one, in its file, in sectors */
    char *name;
} VmdkExtentLine;

typedef struct VmdkDescriptor {
    uint32_t cid, parent_cid;
    size_t cid_at, cid_digits; /* where the text says the CID */
    char *create_type, *parent; /* NULL: not said */
    GArray *extents;            /* VmdkExtentLine */
} VmdkDescriptor;

/* Reads @text of @length bytes, which ends at its first NUL. */
bool vmdk_descriptor_parse(VmdkDescriptor *d, const char *text, size_t length, GError **err);
void vmdk_descriptor_clear(VmdkDescriptor *d); /* also after a failed parse */
/* Is this file a descriptor? */
bool vmdk_descriptor_probe(const char *text, size_t length);

extern const char *const vmdk_extent_types[]; /* "FLAT", ...: by VmdkExtentType */
