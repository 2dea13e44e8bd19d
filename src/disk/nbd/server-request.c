/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Requests of one client: its threads take turns to read the next one, work on theirs at the same
 * time, and take turns to reply (proto.md, "Transmission").
 */
#include "disk/nbd/server-private.h"

#include "disk/node.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>

/* Threads of one client; a request that finds all busy waits in its socket. */
#define WORKERS_MAX 16u
/* What a thread keeps; larger requests take from the client's share. */
#define BUFFER_KEPT MIB(1)
/* Bytes of large requests that one client may have in memory; one request is always served. */
#define RESERVED_MAX MIB(64)
/* Reads from this size on leave holes out, and go from the file to the socket without a copy. */
#define HOLES_FROM KIB(64)

typedef struct Worker {
    NbdConnection *c;
    uint8_t *buffer;
    size_t room;
    uint64_t reserved;
} Worker;

static bool reserve(Worker *w, uint64_t length)
{
    NbdConnection *c = w->c;
    if (length > BUFFER_KEPT) {
        g_mutex_lock(&c->lock);
        while (c->reserved > 0 && c->reserved + length > RESERVED_MAX)
            g_cond_wait(&c->room, &c->lock);
        c->reserved += length;
        g_mutex_unlock(&c->lock);
        w->reserved = length;
    }
    if (w->room < length) {
        g_free(w->buffer);
        w->buffer = g_try_malloc(length);
        w->room = w->buffer ? length : 0;
    }
    return w->buffer || length == 0;
}

static void release(Worker *w)
{
    NbdConnection *c = w->c;
    if (!w->reserved)
        return;
    g_clear_pointer(&w->buffer, g_free);
    w->room = 0;
    g_mutex_lock(&c->lock);
    c->reserved -= w->reserved;
    g_cond_broadcast(&c->room);
    g_mutex_unlock(&c->lock);
    w->reserved = 0;
}

/* ---- replies: 0, or below it when the stream cannot go on */

int nbd_send_error(NbdConnection *c, uint64_t cookie, int result, const char *text)
{
    uint8_t head[NBD_CHUNK_SIZE + 6];
    size_t length = strlen(text);
    NbdChunk chunk = {NBD_CHUNK_DONE, NBD_CHUNK_ERROR, cookie, (uint32_t)(6 + length)};
    nbd_chunk_put(head, &chunk);
    be32_put(head + NBD_CHUNK_SIZE, nbd_error_put(result));
    be16_put(head + NBD_CHUNK_SIZE + 4, (uint16_t)length);
    struct iovec iov[] = {{head, sizeof(head)}, {(void *)text, length}};
    g_mutex_lock(&c->send);
    int sent = nbd_channel_writev(c->channel, iov, 2, sizeof(head) + length, false);
    g_mutex_unlock(&c->send);
    return sent;
}

static int reply_error(NbdConnection *c, const NbdRequest *r, int result)
{
    uint8_t head[NBD_SIMPLE_SIZE];
    if (c->structured && result < 0)
        return nbd_send_error(c, r->cookie, result, g_strerror(-result));
    nbd_simple_put(head, nbd_error_put(result), r->cookie);
    g_mutex_lock(&c->send);
    int sent = nbd_channel_write(c->channel, head, sizeof(head), false);
    g_mutex_unlock(&c->send);
    return sent;
}

static int reply_simple_data(NbdConnection *c, const NbdRequest *r, const uint8_t *data)
{
    uint8_t head[NBD_SIMPLE_SIZE];
    nbd_simple_put(head, 0, r->cookie);
    struct iovec iov[] = {{head, sizeof(head)}, {(void *)data, r->length}};
    g_mutex_lock(&c->send);
    int sent = nbd_channel_writev(c->channel, iov, 2, sizeof(head) + r->length, false);
    g_mutex_unlock(&c->send);
    return sent;
}

static void data_head(uint8_t *head, const NbdRequest *r, uint64_t done, uint64_t length, bool last)
{
    NbdChunk chunk = {last ? NBD_CHUNK_DONE : 0, NBD_CHUNK_DATA, r->cookie, (uint32_t)(8 + length)};
    nbd_chunk_put(head, &chunk);
    be64_put(head + NBD_CHUNK_SIZE, r->offset + done);
}

static int reply_data(NbdConnection *c, const NbdRequest *r, uint64_t done, const uint8_t *data,
                      uint64_t length)
{
    uint8_t head[NBD_CHUNK_SIZE + 8];
    data_head(head, r, done, length, done + length == r->length);
    struct iovec iov[] = {{head, sizeof(head)}, {(void *)data, length}};
    g_mutex_lock(&c->send);
    int sent = nbd_channel_writev(c->channel, iov, 2, sizeof(head) + length, false);
    g_mutex_unlock(&c->send);
    return sent;
}

static int reply_hole(NbdConnection *c, const NbdRequest *r, uint64_t done, uint64_t length)
{
    uint8_t message[NBD_CHUNK_SIZE + 12];
    bool last = done + length == r->length;
    NbdChunk chunk = {last ? NBD_CHUNK_DONE : 0, NBD_CHUNK_HOLE, r->cookie, 12};
    nbd_chunk_put(message, &chunk);
    be64_put(message + NBD_CHUNK_SIZE, r->offset + done);
    be32_put(message + NBD_CHUNK_SIZE + 8, (uint32_t)length);
    g_mutex_lock(&c->send);
    int sent = nbd_channel_write(c->channel, message, sizeof(message), false);
    g_mutex_unlock(&c->send);
    return sent;
}

/* ---- reading */

/*
 * Whether the kernel may send the bytes from the file when it likes. In an image with clusters that
 * is written meanwhile, the place could hold another cluster's bytes by then.
 */
static bool sendable(const NbdExport *export)
{
    const BlockNode *node = export->node;
    return node->file->fd >= 0 && !node->direct && node->format->fast_begin &&
           (node->read_only || !strcmp(node->format->name, "raw"));
}

/*
 * Sends a piece as it is in the file; *sent is 0 or the stream's error. False: it has to be read.
 * *result is the file's error; then zeroes went in the bytes' place, and an error is to follow.
 */
static bool reply_from_file(NbdConnection *c, const NbdRequest *r, uint64_t done, uint64_t length,
                            int *result, int *sent)
{
    BlockNode *node = c->export->node;
    uint8_t head[NBD_CHUNK_SIZE + 8];
    BlockFast fast = {0};
    if (c->encrypted ||
        !node->format->fast_begin(node, false, c->export->offset + r->offset + done, length, &fast))
        return false;
    int fd = fast.file ? fast.file->fd : node->file->fd;
    if (fd < 0) {
        node->format->fast_end(node, &fast);
        return false;
    }
    /* The disk works on it while another thread's reply is on its way. */
    posix_fadvise(fd, (off_t)fast.file_offset, (off_t)length, POSIX_FADV_WILLNEED);
    data_head(head, r, done, length, false);
    g_mutex_lock(&c->send);
    *sent = nbd_channel_write(c->channel, head, sizeof(head), true);
    if (*sent == 0)
        *sent = nbd_channel_send_file(c->channel, fd, fast.file_offset, length, result);
    if (*sent == 0 && *result == 0 && done + length == r->length) {
        NbdChunk end = {NBD_CHUNK_DONE, NBD_CHUNK_NONE, r->cookie, 0};
        nbd_chunk_put(head, &end);
        *sent = nbd_channel_write(c->channel, head, NBD_CHUNK_SIZE, false);
    }
    g_mutex_unlock(&c->send);
    node->format->fast_end(node, &fast);
    return true;
}

/* How much of what is left is one piece, and whether a hole. */
static int next_piece(NbdConnection *c, const NbdRequest *r, uint64_t done, uint64_t *length,
                      bool *hole)
{
    BlockExtent extent;
    unsigned depth;
    *length = r->length - done;
    *hole = false;
    if (r->length < HOLES_FROM)
        return 0;
    int result = block_status_chain(c->export->node, c->export->offset + r->offset + done, *length,
                                    &extent, &depth);
    if (result == 0) {
        *length = MIN(*length, extent.length);
        *hole = extent.zero;
    }
    return result;
}

/* Through memory; *length is how much. */
static int read_data(Worker *w, const NbdRequest *r, uint64_t done, uint64_t *length, int *result)
{
    NbdConnection *c = w->c;
    *length = MIN(*length, BUFFER_KEPT);
    if (!reserve(w, *length)) {
        *result = -ENOMEM;
        return 0;
    }
    struct iovec iov = {w->buffer, *length};
    *result = block_readv(c->export->node, c->export->offset + r->offset + done, &iov, 1);
    return *result < 0 ? 0 : reply_data(c, r, done, w->buffer, *length);
}

/* One chunk at *done; *result is the disk's error, the return value the stream's. */
static int read_piece(Worker *w, const NbdRequest *r, uint64_t *done, int *result)
{
    NbdConnection *c = w->c;
    uint64_t length;
    bool hole;
    int sent = 0;
    *result = next_piece(c, r, *done, &length, &hole);
    if (*result < 0)
        return 0;
    if (hole)
        sent = reply_hole(c, r, *done, length);
    else if (length < HOLES_FROM || !sendable(c->export) ||
             !reply_from_file(c, r, *done, length, result, &sent))
        sent = read_data(w, r, *done, &length, result);
    *done += length;
    return sent;
}

static int serve_read(Worker *w, const NbdRequest *r)
{
    NbdConnection *c = w->c;
    int result = 0, sent = 0;
    if (c->structured && !(r->flags & NBD_CMD_FLAG_DF) && r->length > 0) {
        for (uint64_t done = 0; done < r->length && result == 0 && sent == 0;)
            sent = read_piece(w, r, &done, &result);
        return result < 0 && sent == 0 ? reply_error(c, r, result) : sent;
    }
    if (!reserve(w, r->length))
        return reply_error(c, r, -ENOMEM);
    struct iovec iov = {w->buffer, r->length};
    result = block_readv(c->export->node, c->export->offset + r->offset, &iov, 1);
    if (result < 0 || (c->structured && r->length == 0))
        return reply_error(c, r, result);
    return c->structured ? reply_data(c, r, 0, w->buffer, r->length)
                         : reply_simple_data(c, r, w->buffer);
}

/* ---- everything else */

/* What the client wants in the page cache. */
static int serve_cache(Worker *w, const NbdRequest *r)
{
    if (!reserve(w, MIN(r->length, BUFFER_KEPT)))
        return -ENOMEM;
    for (uint64_t done = 0; done < r->length;) {
        struct iovec iov = {w->buffer, MIN(r->length - done, BUFFER_KEPT)};
        int result =
            block_readv(w->c->export->node, w->c->export->offset + r->offset + done, &iov, 1);
        if (result < 0)
            return result;
        done += iov.iov_len;
    }
    return 0;
}

/* Formats with tables note zeroes in them; a raw file needs a file system that can. */
static bool zeroes_fast(BlockNode *node)
{
    return strcmp(node->format->name, "raw") ||
           (node->file->fd >= 0 && !g_atomic_int_get(&node->file->no_zero_range));
}

static int serve_change(Worker *w, const NbdRequest *r)
{
    const NbdExport *export = w->c->export;
    BlockNode *node = export->node;
    uint64_t offset = export->offset + r->offset;
    unsigned flags = r->flags & NBD_CMD_FLAG_FUA ? BLOCK_FUA : 0;
    struct iovec iov = {w->buffer, r->length};
    int result;
    switch (r->type) {
    case NBD_CMD_WRITE:
        return block_writev(node, offset, &iov, 1, flags);
    case NBD_CMD_WRITE_ZEROES:
        if (r->flags & NBD_CMD_FLAG_FAST_ZERO && !zeroes_fast(node))
            return -ENOTSUP;
        return block_write_zeroes(node, offset, r->length,
                                  flags | (r->flags & NBD_CMD_FLAG_NO_HOLE ? 0 : BLOCK_UNMAP));
    case NBD_CMD_TRIM:
        result = block_discard(node, offset, r->length);
        if (result == -ENOTSUP)
            result = 0; /* a hint that this image cannot take */
        return result == 0 && flags ? block_flush(node) : result;
    default:
        return block_flush(node);
    }
}

/* Before anything is done. */
static int check(const NbdConnection *c, const NbdRequest *r)
{
    static const uint16_t allowed[] = {
        [NBD_CMD_READ] = NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_DF,
        [NBD_CMD_WRITE] = NBD_CMD_FLAG_FUA,
        [NBD_CMD_FLUSH] = NBD_CMD_FLAG_FUA,
        [NBD_CMD_TRIM] = NBD_CMD_FLAG_FUA,
        [NBD_CMD_CACHE] = NBD_CMD_FLAG_FUA,
        [NBD_CMD_WRITE_ZEROES] = NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO,
        [NBD_CMD_BLOCK_STATUS] = NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_REQ_ONE,
    };
    bool changes =
        r->type == NBD_CMD_WRITE || r->type == NBD_CMD_TRIM || r->type == NBD_CMD_WRITE_ZEROES;
    bool bounded = r->type == NBD_CMD_READ || r->type == NBD_CMD_CACHE;
    if (r->type >= G_N_ELEMENTS(allowed) || (r->flags & ~allowed[r->type]) ||
        (r->flags & NBD_CMD_FLAG_DF && !c->structured) || (bounded && r->length > NBD_REQUEST_MAX))
        return -EINVAL;
    if (changes && c->export->read_only)
        return -EPERM;
    if (r->type != NBD_CMD_FLUSH && !range_within(r->offset, r->length, c->export->size))
        return r->type == NBD_CMD_WRITE || r->type == NBD_CMD_WRITE_ZEROES ? -ENOSPC : -EINVAL;
    return r->type == NBD_CMD_BLOCK_STATUS && (!c->structured || !c->contexts || !r->length)
               ? -EINVAL
               : 0;
}

static int serve(Worker *w, const NbdRequest *r)
{
    int result = check(w->c, r);
    if (result < 0)
        return reply_error(w->c, r, result);
    if (r->type == NBD_CMD_READ)
        return serve_read(w, r);
    if (r->type == NBD_CMD_BLOCK_STATUS)
        return nbd_serve_status(w->c, r);
    result = r->type == NBD_CMD_CACHE ? serve_cache(w, r) : serve_change(w, r);
    return reply_error(w->c, r, result);
}

/* The next request, with what it writes; false: there is none. */
static bool receive(Worker *w, NbdRequest *r)
{
    NbdConnection *c = w->c;
    uint8_t head[NBD_REQUEST_SIZE];
    if (nbd_channel_read(c->channel, head, sizeof(head)) < 0 || !nbd_request_get(head, r) ||
        r->type == NBD_CMD_DISC)
        return false;
    if (r->type != NBD_CMD_WRITE)
        return true;
    if (r->length > NBD_REQUEST_MAX || !reserve(w, r->length))
        return false; /* its data would be taken for requests */
    return nbd_channel_read(c->channel, w->buffer, r->length) == 0;
}

static gpointer worker_thread(gpointer data);

/* Somebody shall wait for the next request while this thread works. */
static void see_to_reader(NbdConnection *c)
{
    g_mutex_lock(&c->lock);
    if (c->idle == 0 && c->workers < WORKERS_MAX) {
        c->workers++;
        GThread *thread = g_thread_try_new("nbd-request", worker_thread, c, NULL);
        if (thread)
            g_thread_unref(thread);
        else
            c->workers--;
    }
    g_mutex_unlock(&c->lock);
}

static bool take_request(Worker *w, NbdRequest *r)
{
    NbdConnection *c = w->c;
    g_mutex_lock(&c->lock);
    c->idle++;
    g_mutex_unlock(&c->lock);
    g_mutex_lock(&c->receive);
    g_mutex_lock(&c->lock);
    c->idle--;
    bool ended = c->ended;
    g_mutex_unlock(&c->lock);
    bool got = !ended && receive(w, r);
    g_mutex_lock(&c->lock);
    c->ended |= !got;
    g_mutex_unlock(&c->lock);
    g_mutex_unlock(&c->receive);
    return got;
}

static void work(NbdConnection *c)
{
    Worker w = {.c = c};
    NbdRequest r;
    while (take_request(&w, &r)) {
        see_to_reader(c);
        int sent = serve(&w, &r);
        release(&w);
        if (sent < 0) {
            nbd_channel_shut(c->channel);
            break;
        }
    }
    release(&w);
    g_free(w.buffer);
}

static gpointer worker_thread(gpointer data)
{
    NbdConnection *c = data;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    work(c);
    g_mutex_lock(&c->lock);
    c->workers--;
    g_cond_broadcast(&c->room);
    g_mutex_unlock(&c->lock);
    return NULL;
}

void nbd_serve_requests(NbdConnection *c)
{
    c->workers = 1;
    work(c);
    g_mutex_lock(&c->lock);
    while (c->workers > 1)
        g_cond_wait(&c->room, &c->lock);
    g_mutex_unlock(&c->lock);
}
