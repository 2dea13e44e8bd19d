/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The parts of a mount: its life, its requests. */
#pragma once

#include "disk/fuse/library.h"
#include "disk/fuse/mount.h"

#include <pthread.h>
#include <sys/stat.h>

#define MOUNT_THREADS 16u

struct DiskMount {
    const FuseLibrary *fuse;
    BlockNode *node;
    char *path, *name;
    bool folder, read_only, growable;
    void (*log)(void *opaque, const char *text);
    void *opaque;
    struct fuse_session *session;
    pthread_t threads[MOUNT_THREADS];
    unsigned n_threads;
    int running;            /* atomic: threads that serve */
    int ended;              /* eventfd */
    GRWLock resize;         /* requests hold it as readers, changes of the size as writers */
    GMutex lock;            /* for the attributes */
    struct stat attributes; /* mode, owner and times of the file */
};

extern const struct fuse_lowlevel_ops disk_mount_operations;
