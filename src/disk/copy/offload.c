/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Leaving the copying to the kernel, between raw images in files of the host. */
#include "disk/copy/internal.h"

#include "disk/node.h"

#include <errno.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static bool plain_file(const BlockNode *node)
{
    return !strcmp(node->format->name, "raw") && !node->backing && node->file->fd >= 0 &&
           !strcmp(node->file->ops->name, "file") && !node->probed_raw;
}

bool copy_offload_possible(const BlockCopy *copy)
{
    return copy->n_sources == 1 && !copy->compress && !copy->salvage && !copy->layers &&
           !copy->bitmap && !strcmp(copy->sources[0]->format->name, "raw") &&
           copy->sources[0]->file->fd >= 0 &&
           !strcmp(copy->sources[0]->file->ops->name, "file") && plain_file(copy->target);
}

/* A file system that shares blocks between files copies nothing at all. */
bool copy_clone_all(CopyJob *job)
{
    const BlockCopy *how = job->how;
    if (!job->direct_files || how->source_offset || how->target_offset || !how->target_is_zero ||
        how->sparse != 4096 || job->length != block_size(how->target) ||
        job->length != block_size(how->sources[0]))
        return false;
    return ioctl(how->target->file->fd, FICLONE, how->sources[0]->file->fd) == 0;
}

bool copy_offload(CopyJob *job, uint64_t position, uint64_t length)
{
    const BlockCopy *how = job->how;
    if (!how->offload || !job->direct_files || g_atomic_int_get(&job->no_offload))
        return false;
    off_t from = (off_t)(how->source_offset + position), to = (off_t)(how->target_offset + position);
    while (length > 0) {
        ssize_t moved = copy_file_range(how->sources[0]->file->fd, &from,
                                        how->target->file->fd, &to, length, 0);
        if (moved < 0 && errno == EINTR)
            continue;
        if (moved <= 0) { /* refused, or past the file's end: the long way says what is wrong */
            g_atomic_int_set(&job->no_offload, 1);
            return false;
        }
        length -= (uint64_t)moved;
    }
    return true;
}
