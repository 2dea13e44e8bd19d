/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Split virtqueues, the device's side (VIRTIO 1.2, 2.7). Everything in guest memory is
 * hostile and changes under our feet: each value is fetched once and checked; a queue that
 * breaks the rules stays broken until it is enabled anew.
 *
 * One thread at a time uses a queue (the machine lock is held); the driver's vCPUs run beside it.
 */
#pragma once

#include <sys/uio.h>

#include "machine/machine.h"
#include "machine/state.h"

#define VIRTQ_SIZE_MAX 1024
/* VIRTIO 1.2, 2.7.5: a chain describes at most 2^32 bytes. */
#define VIRTQ_CHAIN_BYTES_MAX UINT32_MAX

/* One descriptor chain: what the device may read (out), then what it may write (in). */
typedef struct VirtChain {
    uint16_t head;
    unsigned n_out, n_in; /* pieces; pieces that touch in memory are joined, empty ones left out */
    struct iovec *out, *in;
    uint64_t *in_gpa;           /* guest physical address of each in piece */
    uint64_t out_size, in_size; /* bytes */
    struct iovec *iov;          /* storage, kept from one chain to the next */
    uint64_t *gpa;
    unsigned capacity;
} VirtChain;

typedef struct Virtqueue {
    /* What the driver set (saved and restored). */
    uint16_t size, vector;
    uint8_t enabled;
    uint64_t desc_gpa, avail_gpa, used_gpa;
    uint16_t last_avail;     /* next entry of the available ring that we take */
    uint16_t used_idx;       /* next entry of the used ring that we fill */
    uint16_t signalled_used; /* used_idx at the last decision about an interrupt */
    /* Derived. */
    uint16_t max_size;
    bool indirect, event_idx; /* negotiated */
    Machine *machine;
    uint8_t *desc, *avail, *used; /* in guest RAM; NULL while not enabled */
    const char *error;            /* why the queue is broken; NULL while it is not */
} Virtqueue;

extern const StateField virtqueue_state[];

/* Checks size and addresses, finds the rings in RAM, starts at entry @q->last_avail. */
bool virtq_enable(Virtqueue *q, Machine *m, bool indirect, bool event_idx);
/* Back to "never set up"; size becomes max_size. */
void virtq_reset(Virtqueue *q);

/* 1: *chain is the next chain; 0: nothing there; -EINVAL: the queue is broken (q->error). */
int virtq_pop(Virtqueue *q, VirtChain *chain);
/* True when the driver has made something available (or the queue is broken: pop tells). */
bool virtq_has_work(const Virtqueue *q);
/* Gives back the last @n popped chains, none of which was pushed. */
void virtq_unpop(Virtqueue *q, unsigned n);
/* Hands chain @head back with @written bytes in it. */
void virtq_push(Virtqueue *q, uint16_t head, uint32_t written);
/* The same in two steps: fill entries 0, 1, 2 … then publish them all at once. */
void virtq_fill(Virtqueue *q, unsigned index, uint16_t head, uint32_t written);
void virtq_flush(Virtqueue *q, unsigned n);
/* Asks the driver for (or not to send) notifications. Returns virtq_has_work after asking. */
bool virtq_want_notify(Virtqueue *q, bool want);
/* Whether the driver wants an interrupt for what was pushed since the last call. */
bool virtq_should_interrupt(Virtqueue *q);

void virt_chain_init(VirtChain *chain);
void virt_chain_clear(VirtChain *chain);
/* Copy from the out part, to the in part; return how many bytes there were (at most @size). */
size_t virt_chain_read(const VirtChain *chain, uint64_t offset, void *to, size_t size);
size_t virt_chain_write(const VirtChain *chain, Machine *m, uint64_t offset, const void *from,
                        size_t size);
/* Tells the machine that bytes [0, @size) of the in part were written. */
void virt_chain_dirty(const VirtChain *chain, Machine *m, uint64_t size);
/* Drops the first @size bytes of the out part, or the last byte of the in part (which must be
 * there). */
void virt_chain_skip_out(VirtChain *chain, uint64_t size);
uint8_t *virt_chain_take_last(VirtChain *chain, uint64_t *gpa);
