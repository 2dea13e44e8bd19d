/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What is to be copied, as one disk: sources in a row, layers, a bitmap; and unreadable sectors. */
#include "disk/copy/internal.h"

#include "disk/bitmap.h"

#include <string.h>

#define SECTOR 512u

/* The source at @position, and how much of @length is in it. */
static BlockNode *source_at(const CopyJob *job, uint64_t position, uint64_t *offset,
                            uint64_t *length)
{
    const BlockCopy *how = job->how;
    uint64_t at = how->source_offset + position;
    unsigned i = 0;
    while (i + 1 < how->n_sources && at >= block_size(how->sources[i]))
        at -= block_size(how->sources[i++]);
    *offset = at;
    *length = MIN(*length, block_size(how->sources[i]) - at);
    return how->sources[i];
}

/* The topmost @layers images alone. */
static int status_above(BlockNode *node, unsigned layers, uint64_t offset, uint64_t *length,
                        CopyKind *kind)
{
    *kind = COPY_LEAVE;
    for (; layers && node; layers--, node = block_backing(node)) {
        BlockExtent extent;
        if (offset >= block_size(node)) { /* past a shorter image: zeroes hide what is below */
            *kind = COPY_ZERO;
            return 0;
        }
        uint64_t inside = MIN(*length, block_size(node) - offset);
        int result = block_status(node, offset, inside, &extent);
        if (result < 0)
            return result;
        *length = MIN(inside, extent.length);
        if (extent.present) {
            *kind = extent.zero ? COPY_ZERO : COPY_DATA;
            return 0;
        }
    }
    if (!node) /* nobody has it */
        *kind = COPY_ZERO;
    return 0;
}

static int status_of(CopyJob *job, BlockNode *node, uint64_t offset, uint64_t *length,
                     CopyKind *kind)
{
    const BlockCopy *how = job->how;
    if (how->bitmap) {
        bool dirty;
        uint64_t same;
        int result = block_bitmap_next(node, how->bitmap, offset, *length, &dirty, &same);
        if (result < 0)
            return result;
        *length = same;
        *kind = COPY_LEAVE;
        if (!dirty)
            return 0;
    }
    if (how->layers) {
        int result = status_above(node, how->layers, offset, length, kind);
        if (result == 0 && how->backing_size != UINT64_MAX && *kind == COPY_ZERO) {
            /* Where the target's backing image has ended there are zeroes anyway. */
            if (offset >= how->backing_size)
                *kind = COPY_LEAVE;
            else
                *length = MIN(*length, how->backing_size - offset);
        }
        return result;
    }
    BlockExtent extent;
    unsigned depth;
    int result = block_status_chain(node, offset, *length, &extent, &depth);
    *length = MIN(*length, extent.length);
    *kind = extent.zero ? COPY_ZERO : COPY_DATA;
    return result;
}

static void warn(const CopyJob *job, const char *what, uint64_t position, int result)
{
    if (!job->how->warn)
        return;
    g_autofree char *text = g_strdup_printf("%s %" G_GUINT64_FORMAT ": %s", what, position,
                                            g_strerror(-result));
    job->how->warn(job->how->warn_opaque, text);
}

int copy_status(CopyJob *job, uint64_t position, uint64_t *length, CopyKind *kind)
{
    uint64_t offset;
    BlockNode *node = source_at(job, position, &offset, length);
    int result = status_of(job, node, offset, length, kind);
    /* In salvage, a shorter range may still be known; a sector that is not is tried as data. */
    while (result < 0 && job->how->salvage && *length > SECTOR) {
        *length = MAX(SECTOR, *length / 4 & ~(uint64_t)(SECTOR - 1));
        result = status_of(job, node, offset, length, kind);
    }
    if (result < 0 && job->how->salvage) {
        warn(job, "error while reading block status at offset", offset, result);
        *kind = COPY_DATA;
        return 0;
    }
    return result;
}

static void salvage(CopyJob *job, BlockNode *node, uint64_t offset, uint8_t *buffer,
                    uint64_t length)
{
    for (uint64_t done = 0; done < length; done += SECTOR) {
        struct iovec iov = {buffer + done, MIN(SECTOR, length - done)};
        int result = block_readv(node, offset + done, &iov, 1);
        if (result < 0) {
            warn(job, "error while reading offset", offset + done, result);
            memset(iov.iov_base, 0, iov.iov_len);
        }
    }
}

int copy_read(CopyJob *job, uint64_t position, uint8_t *buffer, uint64_t length,
              uint64_t *failed)
{
    while (length > 0) {
        uint64_t offset, part = length;
        BlockNode *node = source_at(job, position, &offset, &part);
        struct iovec iov = {buffer, part};
        int result = block_readv(node, offset, &iov, 1);
        if (result < 0 && !job->how->salvage) {
            *failed = position;
            return result;
        }
        if (result < 0)
            salvage(job, node, offset, buffer, part);
        position += part;
        buffer += part;
        length -= part;
    }
    return 0;
}
