/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* NBD_CMD_BLOCK_STATUS: what is where, by the contexts that the client chose (docs/nbd.md). */
#include "disk/nbd/server-private.h"

#include "disk/bitmap.h"

#include <errno.h>
#include <string.h>

/* Extents in one reply; the client asks again for what is behind. */
#define EXTENTS_MAX 4096u
/* Answers of the image that are looked at for one reply. */
#define LOOKS_MAX 65536u

/* The image below a shorter one may end before the export does. */
static int describe_bitmap(const NbdExport *export, const NbdContext *context, uint64_t offset,
                           uint64_t length, uint64_t *run, uint32_t *flags)
{
    uint64_t at = export->offset + offset, size = block_size(context->node);
    bool dirty = false;
    *run = length;
    *flags = 0;
    if (at >= size)
        return 0;
    int result =
        block_bitmap_next(context->node, context->bitmap, at, MIN(length, size - at), &dirty, run);
    *flags = dirty ? NBD_STATE_DIRTY : 0;
    return result;
}

/* The run at @offset (of the export) as @context has it. */
static int describe(const NbdExport *export, const NbdContext *context, uint64_t offset,
                    uint64_t length, uint64_t *run, uint32_t *flags)
{
    BlockExtent extent;
    unsigned depth;
    if (context->kind == NBD_BITMAP)
        return describe_bitmap(export, context, offset, length, run, flags);
    int result = block_status_chain(export->node, export->offset + offset, length, &extent, &depth);
    if (result < 0)
        return result;
    *run = MIN(extent.length, length);
    *flags = context->kind == NBD_DEPTH
                 ? (extent.present ? depth + 1 : 0)
                 : (extent.data ? 0 : NBD_STATE_HOLE) | (extent.zero ? NBD_STATE_ZERO : 0);
    return 0;
}

/* Fills @out with (length, flags) pairs; the number of bytes, or -errno. */
static int64_t collect(const NbdExport *export, const NbdContext *context, const NbdRequest *r,
                       uint8_t *out)
{
    uint64_t done = 0, at = 0; /* at: where the last extent starts */
    uint32_t last = 0, n = 0, looks = 0;
    uint32_t most = r->flags & NBD_CMD_FLAG_REQ_ONE ? 1 : EXTENTS_MAX;
    while (done < r->length && looks++ < LOOKS_MAX) {
        uint64_t run;
        uint32_t flags;
        int result = describe(export, context, r->offset + done, r->length - done, &run, &flags);
        if (result < 0)
            return result;
        if (run == 0)
            return -EIO;
        if (n == 0 || flags != last) {
            if (n == most)
                break;
            at = done;
            be32_put(out + 8 * n + 4, flags);
            last = flags;
            n++;
        }
        done += run;
        be32_put(out + 8 * (n - 1), (uint32_t)(done - at));
    }
    return 8 * n;
}

static int send_extents(NbdConnection *c, const NbdRequest *r, uint32_t id, const uint8_t *extents,
                        uint32_t length, bool last)
{
    uint8_t head[NBD_CHUNK_SIZE + 4];
    NbdChunk chunk = {last ? NBD_CHUNK_DONE : 0, NBD_CHUNK_STATUS, r->cookie, 4 + length};
    nbd_chunk_put(head, &chunk);
    be32_put(head + NBD_CHUNK_SIZE, id);
    struct iovec iov[] = {{head, sizeof(head)}, {(void *)extents, length}};
    g_mutex_lock(&c->send);
    int sent = nbd_channel_writev(c->channel, iov, 2, sizeof(head) + length, false);
    g_mutex_unlock(&c->send);
    return sent;
}

int nbd_serve_status(NbdConnection *c, const NbdRequest *r)
{
    g_autofree uint8_t *extents = g_malloc(8 * EXTENTS_MAX);
    uint32_t left = c->contexts;
    for (unsigned i = 0; i < c->export->n_contexts; i++) {
        if (!(left >> i & 1))
            continue;
        left &= ~(UINT32_C(1) << i);
        int64_t length = collect(c->export, &c->export->contexts[i], r, extents);
        if (length < 0)
            return nbd_send_error(c, r->cookie, (int)length, g_strerror((int)-length));
        int sent = send_extents(c, r, i, extents, (uint32_t)length, left == 0);
        if (sent < 0)
            return sent;
    }
    return 0;
}
