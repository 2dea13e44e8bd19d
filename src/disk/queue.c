/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Requests off the caller's thread. What lies in one piece in the file goes to the kernel through
 * io_uring; everything else (metadata to be read, clusters to be allocated, compressed data) and
 * everything where io_uring is missing runs on a pool of threads that all queues share.
 */
#include "base/bytes.h"
#include "base/error.h"
#include "disk/bitmap-internal.h"
#include "disk/iov.h"
#include "disk/node.h"

#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#define QUEUE_DEPTH_MAX 1024
#define QUEUE_THREADS   16
#define REAP_MAX        1024 /* requests a call of reap ends, about */
#define DRAIN_POLL_MS   100

typedef struct Slot Slot;
struct Slot {
    BlockQueue *queue;
    BlockRequest *request;
    BlockFast fast;
    uint64_t expected; /* bytes the kernel shall move */
    bool holds;        /* fast is to be ended */
    Slot *next;        /* free list */
};

struct BlockQueue {
    BlockNode *node;
    int event;
    bool uring, plugged;
    bool reaping; /* the owner looks at what is done before it waits again */
    GMutex lock; /* all below, and the ring; taken before the node's own locks */
    struct io_uring ring;
    Slot *slots, *free;
    BlockRequest *pending_first, *pending_last; /* wait for a slot */
    BlockRequest *done_first, *done_last;
    unsigned in_flight; /* submitted, done not yet called */
};

static void worker(gpointer data, gpointer unused);

static GThreadPool *worker_pool(void)
{
    static gsize once;
    static GThreadPool *pool;
    if (g_once_init_enter(&once)) {
        pool = g_thread_pool_new(worker, NULL, QUEUE_THREADS, FALSE, NULL);
        g_once_init_leave(&once, 1);
    }
    return pool;
}

static void signal_event(BlockQueue *queue)
{
    uint64_t one = 1;
    ssize_t written = write(queue->event, &one, sizeof(one));
    (void)written; /* a full counter is readable all the same */
}

static void append(BlockRequest **first, BlockRequest **last, BlockRequest *request)
{
    request->private_next = NULL;
    if (*last)
        (*last)->private_next = request;
    else
        *first = request;
    *last = request;
}

static void finish_locked(Slot *slot, int result)
{
    BlockQueue *queue = slot->queue;
    slot->request->private_result = result;
    append(&queue->done_first, &queue->done_last, slot->request);
    slot->request = NULL;
    slot->next = queue->free;
    queue->free = slot;
}

static int perform(BlockNode *node, BlockRequest *request)
{
    switch (request->op) {
    case BLOCK_READ:
        return block_readv(node, request->offset, request->iov, request->n_iov);
    case BLOCK_WRITE:
        return block_writev(node, request->offset, request->iov, request->n_iov, request->flags);
    case BLOCK_WRITE_ZEROES:
        return block_write_zeroes(node, request->offset, request->length, request->flags);
    case BLOCK_DISCARD:
        return block_discard(node, request->offset, request->length);
    case BLOCK_FLUSH:
        return block_flush(node);
    }
    return -EINVAL;
}

static void submit_ring(BlockQueue *queue)
{
    if (!queue->uring || queue->plugged || io_uring_sq_ready(&queue->ring) == 0)
        return;
    io_uring_submit(&queue->ring);
    /* A refusal (no memory for now) leaves entries in the ring, and maybe nothing that will end:
     * block_queue_reap tries again. */
    if (io_uring_sq_ready(&queue->ring) > 0)
        signal_event(queue);
}

static int fast_fd(const BlockNode *node, const Slot *slot)
{
    return slot->fast.file ? slot->fast.file->fd : node->file->fd;
}

/* Prepares @slot's read or write for the kernel; false: not possible without a thread. */
static bool start_transfer(BlockQueue *queue, Slot *slot)
{
    BlockNode *node = queue->node;
    BlockRequest *request = slot->request;
    bool write = request->op == BLOCK_WRITE;
    bool fua = write && (request->flags & BLOCK_FUA) && !node->no_flush;
    uint64_t length = block_iov_length(request->iov, request->n_iov);
    unsigned alignment = node->file->alignment;

    if (node->file->fd < 0 || request->n_iov > BLOCK_IOV_MAX || length == 0 ||
        !range_within(request->offset, length, node->size) || length > INT32_MAX ||
        (write && node->read_only) || !node->format->fast_begin)
        return false;
    if (alignment > 1 && (request->offset % alignment != 0 ||
                          !block_iov_aligned(request->iov, request->n_iov, alignment)))
        return false;
    if (write)
        block_bitmaps_dirty(node, request->offset, length);
    slot->fast.file = NULL;
    slot->fast.zero = false;
    if (!node->format->fast_begin(node, write, request->offset, length, &slot->fast))
        return false;
    if (slot->fast.zero) { /* done already */
        block_iov_zero(request->iov, request->n_iov, 0, length);
        finish_locked(slot, 0);
        if (!queue->reaping)
            signal_event(queue);
        return true;
    }
    if (fua && !node->format->flush_is_plain(node)) {
        node->format->fast_end(node, &slot->fast);
        return false;
    }
    struct io_uring_sqe *sqe = io_uring_get_sqe(&queue->ring);
    if (!sqe) {
        node->format->fast_end(node, &slot->fast);
        return false;
    }
    if (write)
        io_uring_prep_writev2(sqe, fast_fd(node, slot), request->iov, (unsigned)request->n_iov,
                              slot->fast.file_offset, fua ? RWF_DSYNC : 0);
    else
        io_uring_prep_readv(sqe, fast_fd(node, slot), request->iov, (unsigned)request->n_iov,
                            slot->fast.file_offset);
    slot->holds = true;
    slot->expected = length;
    io_uring_sqe_set_data(sqe, slot);
    return true;
}

static bool start_flush(BlockQueue *queue, Slot *slot)
{
    BlockNode *node = queue->node;
    if (node->file->fd < 0 || node->read_only || node->no_flush ||
        !node->format->flush_is_plain || !node->format->flush_is_plain(node))
        return false;
    struct io_uring_sqe *sqe = io_uring_get_sqe(&queue->ring);
    if (!sqe)
        return false;
    io_uring_prep_fsync(sqe, node->file->fd, IORING_FSYNC_DATASYNC);
    slot->holds = false;
    slot->expected = 0;
    io_uring_sqe_set_data(sqe, slot);
    return true;
}

static void start_locked(BlockQueue *queue, BlockRequest *request)
{
    Slot *slot = queue->free;
    queue->free = slot->next;
    slot->request = request;
    slot->holds = false;
    bool started = false;
    if (queue->uring && (request->op == BLOCK_READ || request->op == BLOCK_WRITE))
        started = start_transfer(queue, slot);
    else if (queue->uring && request->op == BLOCK_FLUSH)
        started = start_flush(queue, slot);
    if (!started)
        g_thread_pool_push(worker_pool(), slot, NULL);
}

static void start_pending_locked(BlockQueue *queue)
{
    while (queue->free && queue->pending_first) {
        BlockRequest *request = queue->pending_first;
        queue->pending_first = request->private_next;
        if (!queue->pending_first)
            queue->pending_last = NULL;
        start_locked(queue, request);
    }
    submit_ring(queue);
}

static void worker(gpointer data, gpointer unused)
{
    Slot *slot = data;
    BlockQueue *queue = slot->queue;
    int result = perform(queue->node, slot->request);
    g_mutex_lock(&queue->lock);
    finish_locked(slot, result);
    start_pending_locked(queue);
    /* Under the lock: once it is dropped, the owner may free the queue. */
    signal_event(queue);
    g_mutex_unlock(&queue->lock);
}

/* Collects what the kernel has finished. */
static void harvest_locked(BlockQueue *queue)
{
    struct io_uring_cqe *cqe;
    if (!queue->uring)
        return;
    while (io_uring_peek_cqe(&queue->ring, &cqe) == 0) {
        Slot *slot = io_uring_cqe_get_data(cqe);
        int result = cqe->res;
        io_uring_cqe_seen(&queue->ring, cqe);
        if (slot->holds)
            queue->node->format->fast_end(queue->node, &slot->fast);
        slot->holds = false;
        /* A short transfer (the end of the file) and a busy kernel: once more, on a thread. */
        if (result == -EAGAIN || result == -EINTR ||
            (result >= 0 && (uint64_t)result < slot->expected))
            g_thread_pool_push(worker_pool(), slot, NULL);
        else
            finish_locked(slot, MIN(result, 0));
    }
    start_pending_locked(queue);
}

void block_queues_poke(BlockNode *node)
{
    g_mutex_lock(&node->queues_lock);
    for (guint i = 0; i < node->queues->len; i++) {
        BlockQueue *queue = g_ptr_array_index(node->queues, i);
        g_mutex_lock(&queue->lock);
        harvest_locked(queue);
        if (queue->done_first)
            signal_event(queue);
        g_mutex_unlock(&queue->lock);
    }
    g_mutex_unlock(&node->queues_lock);
}

/* liburing 2.3 declares functions for what is done here but does not export them. */
static bool ring_register(struct io_uring *ring, unsigned what, const void *argument, unsigned count)
{
    return syscall(__NR_io_uring_register, ring->ring_fd, what, argument, count) == 0;
}

/*
 * A ring that can do what a queue does and nothing else: in a sandbox that allows no open() or connect(), it
 * must not be the way around that. Linux 5.10; io_uring_register(2), IORING_REGISTER_RESTRICTIONS.
 */
static bool ring_init(struct io_uring *ring, unsigned depth, int event)
{
    static const uint8_t operations[] = {IORING_OP_READV, IORING_OP_WRITEV, IORING_OP_FSYNC};
    struct io_uring_restriction allowed[G_N_ELEMENTS(operations)] = {0};
    for (unsigned i = 0; i < G_N_ELEMENTS(operations); i++) {
        allowed[i].opcode = IORING_RESTRICTION_SQE_OP;
        allowed[i].sqe_op = operations[i];
    }
    if (io_uring_queue_init(depth, ring, IORING_SETUP_R_DISABLED) < 0)
        return false;
    if (io_uring_register_eventfd(ring, event) == 0 &&
        ring_register(ring, IORING_REGISTER_RESTRICTIONS, allowed, G_N_ELEMENTS(allowed)) &&
        ring_register(ring, IORING_REGISTER_ENABLE_RINGS, NULL, 0))
        return true;
    io_uring_queue_exit(ring);
    return false;
}

BlockQueue *block_queue_new(BlockNode *node, unsigned depth, GError **err)
{
    if (depth < 1 || depth > QUEUE_DEPTH_MAX) {
        lodge_fail(err, LODGE_ERROR_INVALID, "a queue depth of %u: it must be 1 to %d", depth,
                   QUEUE_DEPTH_MAX);
        return NULL;
    }
    int event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (event < 0) {
        lodge_fail_errno(err, errno, "%s: cannot make an eventfd for its queue", node->path);
        return NULL;
    }
    BlockQueue *queue = g_new0(BlockQueue, 1);
    queue->node = block_ref(node);
    queue->event = event;
    g_mutex_init(&queue->lock);
    queue->slots = g_new0(Slot, depth);
    for (unsigned i = 0; i < depth; i++) {
        queue->slots[i].queue = queue;
        queue->slots[i].next = queue->free;
        queue->free = &queue->slots[i];
    }
    queue->uring = g_strcmp0(g_getenv("LODGE_IO_URING"), "0") != 0 && node->file->fd >= 0 &&
                   ring_init(&queue->ring, depth, event);
    g_mutex_lock(&node->queues_lock);
    g_ptr_array_add(node->queues, queue);
    g_mutex_unlock(&node->queues_lock);
    return queue;
}

void block_queue_free(BlockQueue *queue)
{
    if (!queue)
        return;
    block_queue_drain(queue);
    g_mutex_lock(&queue->node->queues_lock);
    g_ptr_array_remove(queue->node->queues, queue);
    g_mutex_unlock(&queue->node->queues_lock);
    /* A worker that finished the last request may still be inside the lock. */
    g_mutex_lock(&queue->lock);
    g_mutex_unlock(&queue->lock);
    if (queue->uring)
        io_uring_queue_exit(&queue->ring);
    close(queue->event);
    g_mutex_clear(&queue->lock);
    block_unref(queue->node);
    g_free(queue->slots);
    g_free(queue);
}

void block_queue_submit(BlockQueue *queue, BlockRequest *request)
{
    g_mutex_lock(&queue->lock);
    queue->in_flight++;
    if (queue->free && !queue->pending_first)
        start_locked(queue, request);
    else
        append(&queue->pending_first, &queue->pending_last, request);
    submit_ring(queue);
    g_mutex_unlock(&queue->lock);
}

void block_queue_plug(BlockQueue *queue)
{
    g_mutex_lock(&queue->lock);
    queue->plugged = true;
    g_mutex_unlock(&queue->lock);
}

void block_queue_unplug(BlockQueue *queue)
{
    g_mutex_lock(&queue->lock);
    queue->plugged = false;
    submit_ring(queue);
    g_mutex_unlock(&queue->lock);
}

int block_queue_fd(const BlockQueue *queue)
{
    return queue->event;
}

/* Calls done of what is finished; requests that it submits may be finished at once. */
static unsigned reap_finished(BlockQueue *queue)
{
    g_mutex_lock(&queue->lock);
    harvest_locked(queue);
    BlockRequest *request = queue->done_first;
    queue->done_first = queue->done_last = NULL;
    g_mutex_unlock(&queue->lock);

    unsigned reaped = 0;
    while (request) {
        BlockRequest *next = request->private_next;
        g_mutex_lock(&queue->lock);
        queue->in_flight--;
        g_mutex_unlock(&queue->lock);
        request->done(request, request->private_result);
        reaped++;
        request = next;
    }
    return reaped;
}

unsigned block_queue_reap(BlockQueue *queue)
{
    uint64_t count;
    unsigned reaped = 0, more;
    ssize_t got = read(queue->event, &count, sizeof(count));
    (void)got; /* nothing signalled is fine */
    g_mutex_lock(&queue->lock);
    queue->reaping = true;
    g_mutex_unlock(&queue->lock);
    do {
        more = reap_finished(queue);
        reaped += more;
    } while (more && reaped < REAP_MAX);
    g_mutex_lock(&queue->lock);
    queue->reaping = false;
    if (queue->done_first)
        signal_event(queue);
    g_mutex_unlock(&queue->lock);
    return reaped;
}

void block_queue_drain(BlockQueue *queue)
{
    for (;;) {
        block_queue_unplug(queue);
        g_mutex_lock(&queue->lock);
        unsigned left = queue->in_flight;
        g_mutex_unlock(&queue->lock);
        if (left == 0)
            return;
        if (block_queue_reap(queue) == 0) {
            struct pollfd event = {.fd = queue->event, .events = POLLIN};
            poll(&event, 1, DRAIN_POLL_MS);
        }
    }
}
