/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Disk images as a guest or a tool uses them: an opened image (with its backing chain) and
 * asynchronous queues on it. Formats and transports register in disk/format/formats.c.
 */
#pragma once

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

typedef struct BlockNode BlockNode;   /* an open image; reference counted */
typedef struct BlockQueue BlockQueue; /* requests of one submitter */
typedef struct BlockObjects BlockObjects; /* secrets and TLS credentials by id: disk/objects.h */

/* How files are opened: so that a sandboxed process can be handed descriptors. Returns an fd or
 * -errno. */
typedef int (*BlockOpener)(void *opaque, const char *path, int open_flags);

typedef struct BlockOpen {
    /* A file, a URI of a transport ("nbd://..."), "json:{...}"; NULL: @options names it. */
    const char *path;
    /*
     * QEMU's blockdev tree for this node and, nested, for those below it: "driver", "file",
     * "backing", "read-only", the format's own. Overrides what the image says. NULL: nothing.
     */
    const json_t *options;
    const BlockObjects *objects; /* what options refer to by id; NULL: none */
    const char *format; /* "raw", "qcow2", ...; NULL: probe (a raw image found by probing is opened
                           read-only at sector 0, as QEMU does) */
    bool read_only;
    bool shared;        /* do not take QEMU-compatible locks (force-share) */
    bool direct;        /* O_DIRECT (cache=none) */
    bool no_flush;      /* cache=unsafe */
    bool discard_unmap; /* discard='unmap': guest discards reach the file; else they are ignored */
    bool no_secrets;    /* only to describe it: an encrypted image opens without its key */
    bool no_backing;    /* do not open the backing file */
    const char *snapshot; /* read-only, as this internal snapshot (id or name) has it */
    bool trust_references; /* files that the image names may be anywhere, /etc included */
    bool repair;        /* for block_check: open for writing what is marked corrupt or dirty */
    BlockOpener opener; /* NULL: open(2) */
    void *opener_opaque;
    bool referenced;    /* an image led here; set by the disk layer itself */
    GArray *visited;    /* the disk layer's: what is being opened, to find loops */
} BlockOpen;

BlockNode *block_open(const BlockOpen *options, GError **err);
BlockNode *block_ref(BlockNode *node);
void block_unref(BlockNode *node); /* the last one flushes and closes; NULL is accepted */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(BlockNode, block_unref)

uint64_t block_size(const BlockNode *node); /* virtual size in bytes */
bool block_read_only(const BlockNode *node);
bool block_probed_raw(const BlockNode *node); /* raw because no format claimed it */
const char *block_path(const BlockNode *node);
/* The path, or "json:{...}" where it would not say how the image was opened, as QEMU shows it. */
const char *block_shown_name(const BlockNode *node);
const char *block_format(const BlockNode *node);

enum { BLOCK_FUA = 1 << 0, BLOCK_UNMAP = 1 << 1 };

/* Data path, synchronous: 0 or -errno. Any offset and length within block_size. Any thread. */
int block_readv(BlockNode *node, uint64_t offset, const struct iovec *iov, int n);
int block_writev(BlockNode *node, uint64_t offset, const struct iovec *iov, int n, unsigned flags);
int block_write_zeroes(BlockNode *node, uint64_t offset, uint64_t length, unsigned flags);
int block_discard(BlockNode *node, uint64_t offset, uint64_t length);
int block_flush(BlockNode *node);

/* Breakpoints of an image on the file driver blkdebug: requests wait there. 0 or -errno. */
typedef enum BlockBreak {
    BLOCK_BREAK_SET,    /* the next one that does @event waits, under the name @tag */
    BLOCK_BREAK_REMOVE, /* @tag */
    BLOCK_BREAK_RESUME, /* lets it go on */
    BLOCK_BREAK_WAIT,   /* until it waits */
} BlockBreak;
int block_breakpoint(BlockNode *node, BlockBreak what, const char *event, const char *tag);

typedef enum BlockOp {
    BLOCK_READ,
    BLOCK_WRITE,
    BLOCK_WRITE_ZEROES,
    BLOCK_DISCARD,
    BLOCK_FLUSH
} BlockOp;

/* One asynchronous request; the caller owns it and everything it points to until done is called. */
typedef struct BlockRequest BlockRequest;
struct BlockRequest {
    BlockOp op;
    unsigned flags;
    uint64_t offset, length; /* length: for write-zeroes and discard */
    const struct iovec *iov;
    int n_iov;
    void (*done)(BlockRequest *request, int result); /* 0 or -errno; from block_queue_reap */
    void *private_next; /* the queue's */
    int private_result;
};

/*
 * A queue that performs requests off the caller's thread: io_uring where the kernel has it, else
 * threads (always threads with LODGE_IO_URING=0 in the environment). One thread submits and
 * reaps; several queues of one node may run at once. At most @depth requests (1..1024) are worked
 * on at a time, more wait their turn. Requests in flight together are in no order; a flush covers
 * the writes that were done before it was submitted.
 */
BlockQueue *block_queue_new(BlockNode *node, unsigned depth, GError **err);
void block_queue_free(BlockQueue *queue); /* waits for everything in flight */
void block_queue_submit(BlockQueue *queue, BlockRequest *request);
/*
 * Between plug and unplug, requests for the kernel are collected and handed over with one system
 * call by unplug: for a submitter that has several at once.
 */
void block_queue_plug(BlockQueue *queue);
void block_queue_unplug(BlockQueue *queue);
/* An eventfd, readable when block_queue_reap has something to do. */
int block_queue_fd(const BlockQueue *queue);
/* Calls done of every finished request; returns how many. */
unsigned block_queue_reap(BlockQueue *queue);
/* Submits nothing more, reaps until nothing is in flight. */
void block_queue_drain(BlockQueue *queue);
