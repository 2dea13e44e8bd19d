/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Requests on one connection. There is no thread for replies: of those who wait for one, one reads,
 * also for the others, until it has its own, and then the next goes on.
 */
#include "disk/nbd/client.h"

#include "disk/iov.h"
#include "disk/nbd/wire.h"

#include <errno.h>

#define SLOTS 64u
/* An error's text, and what a chunk of an unknown error may hold. */
#define ERROR_CHUNK_MAX 65550u
/* Errors within one reply; more are somebody's idea of keeping us busy. */
#define ERRORS_MAX 64u
/* The longest block status, in extents; only the first is kept. */
#define EXTENTS_MAX (UINT32_C(1) << 20)

typedef struct Slot {
    NbdCall *call; /* NULL: free */
    uint64_t cookie, received;
    int result;
    unsigned errors;
    bool done, waiting, described;
    GCond *wake;
} Slot;

struct NbdLink {
    int refs; /* atomic */
    NbdChannel *channel;
    NbdClientExport export;
    GMutex send; /* one request at a time */
    GMutex lock; /* for what follows */
    GCond room;
    Slot slots[SLOTS];
    unsigned busy;
    uint32_t generation;
    bool reading; /* somebody reads replies */
    bool lost;
};

NbdLink *nbd_link_new(NbdChannel *channel, const NbdClientExport *export)
{
    NbdLink *link = g_new0(NbdLink, 1);
    link->refs = 1;
    link->channel = channel;
    link->export = *export;
    g_mutex_init(&link->send);
    g_mutex_init(&link->lock);
    g_cond_init(&link->room);
    return link;
}

NbdLink *nbd_link_ref(NbdLink *link)
{
    g_atomic_int_inc(&link->refs);
    return link;
}

void nbd_link_unref(NbdLink *link)
{
    uint8_t bye[NBD_REQUEST_SIZE];
    NbdRequest request = {.type = NBD_CMD_DISC};
    if (!link || !g_atomic_int_dec_and_test(&link->refs))
        return;
    nbd_request_put(bye, &request);
    if (!link->lost)
        nbd_channel_write(link->channel, bye, sizeof(bye), false);
    nbd_channel_shut(link->channel);
    nbd_channel_free(link->channel);
    g_mutex_clear(&link->send);
    g_mutex_clear(&link->lock);
    g_cond_clear(&link->room);
    g_free(link);
}

void nbd_link_shut(NbdLink *link)
{
    nbd_channel_shut(link->channel);
}

bool nbd_link_lost(NbdLink *link)
{
    g_mutex_lock(&link->lock);
    bool lost = link->lost;
    g_mutex_unlock(&link->lock);
    return lost;
}

unsigned nbd_link_busy(NbdLink *link)
{
    g_mutex_lock(&link->lock);
    unsigned busy = link->busy;
    g_mutex_unlock(&link->lock);
    return busy;
}

const NbdClientExport *nbd_link_export(const NbdLink *link)
{
    return &link->export;
}

/* ---- replies: 0, or -EPROTO and the like when the connection cannot go on */

static Slot *find_slot(NbdLink *link, uint64_t cookie)
{
    Slot *slot = &link->slots[cookie % SLOTS];
    g_mutex_lock(&link->lock);
    bool mine = slot->call && !slot->done && slot->cookie == cookie;
    g_mutex_unlock(&link->lock);
    return mine ? slot : NULL;
}

static void finish(NbdLink *link, Slot *slot, int result)
{
    g_mutex_lock(&link->lock);
    slot->result = result;
    slot->done = true;
    if (slot->waiting)
        g_cond_signal(slot->wake);
    g_mutex_unlock(&link->lock);
}

static int read_simple(NbdLink *link)
{
    uint8_t rest[NBD_SIMPLE_SIZE - 4];
    int result = nbd_channel_read(link->channel, rest, sizeof(rest));
    if (result < 0)
        return result;
    Slot *slot = find_slot(link, be64_get(rest + 4));
    uint32_t error = be32_get(rest);
    if (!slot || slot->received || slot->errors || slot->described)
        return -EPROTO;
    NbdCall *call = slot->call;
    bool structured = call->type == NBD_CMD_BLOCK_STATUS ||
                      (call->type == NBD_CMD_READ && link->export.structured);
    if (structured && !error)
        return -EPROTO;
    if (!error && call->type == NBD_CMD_READ)
        result = nbd_channel_readv(link->channel, call->iov, call->n, call->skip, call->length);
    if (result < 0)
        return result;
    finish(link, slot, nbd_error_get(error));
    return 0;
}

/* Bytes or a hole of a read; each byte comes once. */
static int take_piece(NbdLink *link, Slot *slot, const NbdChunk *chunk)
{
    uint8_t head[12];
    bool hole = chunk->type == NBD_CHUNK_HOLE;
    NbdCall *call = slot->call;
    if (call->type != NBD_CMD_READ || !link->export.structured ||
        (hole ? chunk->length != 12 : chunk->length <= 8))
        return -EPROTO;
    int result = nbd_channel_read(link->channel, head, hole ? 12 : 8);
    if (result < 0)
        return result;
    uint64_t offset = be64_get(head), length = hole ? be32_get(head + 8) : chunk->length - 8;
    if (length == 0 || offset < call->offset ||
        !range_within(offset - call->offset, length, call->length) ||
        length > call->length - slot->received)
        return -EPROTO;
    slot->received += length;
    uint64_t skip = call->skip + (offset - call->offset);
    if (!hole)
        return nbd_channel_readv(link->channel, call->iov, call->n, skip, length);
    block_iov_zero(call->iov, call->n, skip, length);
    return 0;
}

static int take_status(NbdLink *link, Slot *slot, const NbdChunk *chunk)
{
    uint8_t head[12];
    NbdCall *call = slot->call;
    if (call->type != NBD_CMD_BLOCK_STATUS || slot->described || chunk->length < 12 ||
        (chunk->length - 4) % 8 || (chunk->length - 4) / 8 > EXTENTS_MAX)
        return -EPROTO;
    int result = nbd_channel_read(link->channel, head, sizeof(head));
    if (result == 0)
        result = nbd_channel_skip(link->channel, chunk->length - 12);
    if (result < 0)
        return result;
    if (be32_get(head) != link->export.context || be32_get(head + 4) == 0)
        return -EPROTO;
    call->extent_length = be32_get(head + 4);
    call->extent_flags = be32_get(head + 8);
    slot->described = true;
    return 0;
}

static int take_error(NbdLink *link, Slot *slot, const NbdChunk *chunk)
{
    uint8_t head[6];
    if (chunk->length < sizeof(head) || chunk->length > ERROR_CHUNK_MAX ||
        slot->errors++ >= ERRORS_MAX)
        return -EPROTO;
    int result = nbd_channel_read(link->channel, head, sizeof(head));
    if (result == 0)
        result = nbd_channel_skip(link->channel, chunk->length - sizeof(head));
    if (result < 0)
        return result;
    if (be32_get(head) == 0 || be16_get(head + 4) > chunk->length - sizeof(head))
        return -EPROTO;
    if (slot->result == 0)
        slot->result = nbd_error_get(be32_get(head));
    return 0;
}

static int take_chunk(NbdLink *link, Slot *slot, const NbdChunk *chunk)
{
    switch (chunk->type) {
    case NBD_CHUNK_NONE:
        return chunk->length || !(chunk->flags & NBD_CHUNK_DONE) ? -EPROTO : 0;
    case NBD_CHUNK_DATA:
    case NBD_CHUNK_HOLE:
        return take_piece(link, slot, chunk);
    case NBD_CHUNK_STATUS:
        return take_status(link, slot, chunk);
    default: /* the upper half are errors, known or not */
        return chunk->type >= NBD_CHUNK_ERROR ? take_error(link, slot, chunk) : -EPROTO;
    }
}

static int read_chunk(NbdLink *link)
{
    uint8_t head[NBD_CHUNK_SIZE];
    int result = nbd_channel_read(link->channel, head + 4, sizeof(head) - 4);
    if (result < 0)
        return result;
    NbdChunk chunk = nbd_chunk_get(head);
    Slot *slot = link->export.structured ? find_slot(link, chunk.cookie) : NULL;
    if (!slot)
        return -EPROTO;
    result = take_chunk(link, slot, &chunk);
    if (result < 0 || !(chunk.flags & NBD_CHUNK_DONE))
        return result;
    const NbdCall *call = slot->call;
    bool whole = (call->type != NBD_CMD_READ || slot->received == call->length) &&
                 (call->type != NBD_CMD_BLOCK_STATUS || slot->described);
    finish(link, slot, slot->result == 0 && !whole ? -EIO : slot->result);
    return 0;
}

static int read_reply(NbdLink *link)
{
    uint8_t magic[4];
    int result = nbd_channel_read(link->channel, magic, sizeof(magic));
    if (result < 0)
        return result;
    if (be32_get(magic) == NBD_SIMPLE_MAGIC)
        return read_simple(link);
    return be32_get(magic) == NBD_STRUCTURED_MAGIC ? read_chunk(link) : -EPROTO;
}

/* ---- calls */

/* Only who reads says that all is over: until then it may write to the others' memory. */
static void lose_locked(NbdLink *link)
{
    link->lost = true;
    nbd_channel_shut(link->channel);
    for (unsigned i = 0; i < SLOTS; i++) {
        Slot *slot = &link->slots[i];
        if (!slot->call || slot->done)
            continue;
        slot->result = -ENOLINK;
        slot->done = true;
        if (slot->waiting)
            g_cond_signal(slot->wake);
    }
    g_cond_broadcast(&link->room);
}

static void next_reader_locked(NbdLink *link)
{
    for (unsigned i = 0; i < SLOTS; i++) {
        Slot *slot = &link->slots[i];
        if (slot->call && !slot->done && slot->waiting) {
            g_cond_signal(slot->wake);
            return;
        }
    }
}

static void await_locked(NbdLink *link, Slot *slot)
{
    while (!slot->done) {
        if (link->reading) {
            slot->waiting = true;
            g_cond_wait(slot->wake, &link->lock);
            slot->waiting = false;
            continue;
        }
        link->reading = true;
        while (!slot->done) {
            g_mutex_unlock(&link->lock);
            int result = read_reply(link);
            g_mutex_lock(&link->lock);
            if (result < 0)
                lose_locked(link);
        }
        link->reading = false;
        next_reader_locked(link);
    }
}

static int send_call(NbdLink *link, const NbdCall *call, uint64_t cookie)
{
    uint8_t head[NBD_REQUEST_SIZE];
    NbdRequest request = {call->flags, call->type, cookie, call->offset, call->length};
    bool data = call->type == NBD_CMD_WRITE;
    nbd_request_put(head, &request);
    g_mutex_lock(&link->send);
    int result = nbd_channel_write(link->channel, head, sizeof(head), data);
    for (uint64_t done = 0; result == 0 && data && done < call->length;) {
        struct iovec part[64];
        uint64_t covered;
        int n = block_iov_slice(part, G_N_ELEMENTS(part), call->iov, call->n, call->skip + done,
                                call->length - done, &covered);
        result = covered ? nbd_channel_writev(link->channel, part, n, covered,
                                              done + covered < call->length)
                         : -EINVAL;
        done += covered;
    }
    g_mutex_unlock(&link->send);
    return result;
}

static Slot *take_slot_locked(NbdLink *link, NbdCall *call, GCond *wake)
{
    while (!link->lost && link->busy == SLOTS)
        g_cond_wait(&link->room, &link->lock);
    if (link->lost)
        return NULL;
    unsigned i = 0;
    while (link->slots[i].call)
        i++;
    link->busy++;
    link->slots[i] =
        (Slot){.call = call, .wake = wake, .cookie = (uint64_t)++link->generation * SLOTS + i};
    return &link->slots[i];
}

int nbd_link_call(NbdLink *link, NbdCall *call)
{
    GCond wake;
    g_cond_init(&wake);
    g_mutex_lock(&link->lock);
    Slot *slot = take_slot_locked(link, call, &wake);
    int result = -ENOLINK;
    if (slot) {
        uint64_t cookie = slot->cookie;
        g_mutex_unlock(&link->lock);
        if (send_call(link, call, cookie) < 0)
            nbd_channel_shut(link->channel); /* whoever reads finds out */
        g_mutex_lock(&link->lock);
        await_locked(link, slot);
        result = slot->result;
        slot->call = NULL;
        link->busy--;
        g_cond_signal(&link->room);
    }
    g_mutex_unlock(&link->lock);
    g_cond_clear(&wake);
    return result;
}
