/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* An image as a raw file in the file system, by FUSE. docs/mount.md */
#pragma once

#include "disk/image.h"

typedef struct DiskMount DiskMount;

typedef struct DiskMountConfig {
    BlockNode *node;  /* a reference is taken */
    const char *path; /* a file, which the disk hides, or a folder, in which it appears ... */
    const char *name; /* ... under this name */
    bool read_only;
    bool growable;    /* the disk's size may be changed: truncate, writes past the end */
    bool allow_other; /* other users may come, as the file's mode lets them */
    /* What went wrong beside a request's error number. Any thread. May be NULL. */
    void (*log)(void *opaque, const char *text);
    void *opaque;
} DiskMountConfig;

/*
 * Mounted, and nobody served yet. What a server that was killed left mounted at the same place is
 * taken away first.
 */
DiskMount *disk_mount_new(const DiskMountConfig *config, GError **err);
/* Serves until somebody unmounts it; *fd, an eventfd, is readable then. */
bool disk_mount_start(DiskMount *mount, int *fd, GError **err);
/*
 * What users have written through mappings is fetched, requests that are worked on are finished,
 * the image is flushed, the mount is gone. 0 or -errno of the flush.
 */
int disk_mount_free(DiskMount *mount);
