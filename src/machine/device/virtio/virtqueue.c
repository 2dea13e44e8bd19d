/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "machine/device/virtio/virtqueue.h"

#include <errno.h>
#include <string.h>

#include "base/bytes.h"

/* VIRTIO 1.2, 2.7.5 The Virtqueue Descriptor Table */
enum { DESC_F_NEXT = 1, DESC_F_WRITE = 2, DESC_F_INDIRECT = 4, DESC_SIZE = 16 };
/* 2.7.6 The Virtqueue Available Ring, 2.7.8 The Virtqueue Used Ring */
enum { AVAIL_F_NO_INTERRUPT = 1, USED_F_NO_NOTIFY = 1 };
enum { RING_FLAGS = 0, RING_IDX = 2, RING_ENTRIES = 4, AVAIL_ENTRY = 2, USED_ENTRY = 8 };

typedef struct Descriptor {
    uint64_t gpa;
    uint32_t length;
    uint16_t flags, next;
} Descriptor;

const StateField virtqueue_state[] = {
    STATE_FIELD(Virtqueue, size),           STATE_FIELD(Virtqueue, vector),
    STATE_FIELD(Virtqueue, enabled),        STATE_FIELD(Virtqueue, desc_gpa),
    STATE_FIELD(Virtqueue, avail_gpa),      STATE_FIELD(Virtqueue, used_gpa),
    STATE_FIELD(Virtqueue, last_avail),     STATE_FIELD(Virtqueue, used_idx),
    STATE_FIELD(Virtqueue, signalled_used), STATE_FIELDS_END,
};

/* ---- ring memory: shared with vCPU threads, aligned by virtq_enable ---- */

static uint16_t ring_load(const uint8_t *p)
{
    return __atomic_load_n((const uint16_t *)(const void *)p, __ATOMIC_ACQUIRE);
}

static void ring_store(uint8_t *p, uint16_t value)
{
    __atomic_store_n((uint16_t *)(void *)p, value, __ATOMIC_RELEASE);
}

static uint8_t *used_event_field(const Virtqueue *q) /* at the end of the available ring */
{
    return q->avail + RING_ENTRIES + (size_t)AVAIL_ENTRY * q->size;
}

static uint64_t avail_event_offset(const Virtqueue *q) /* at the end of the used ring */
{
    return RING_ENTRIES + (uint64_t)USED_ENTRY * q->size;
}

static Descriptor descriptor_fetch(const uint8_t *table, uint32_t index)
{
    uint8_t raw[DESC_SIZE];
    memcpy(raw, table + (size_t)index * DESC_SIZE, sizeof(raw));
    /* The guest may change the descriptor meanwhile: no second fetch after the checks. */
    __asm__ volatile("" ::: "memory");
    return (Descriptor){le64_get(raw), le32_get(raw + 8), le16_get(raw + 12), le16_get(raw + 14)};
}

/* ---- life ---- */

bool virtq_enable(Virtqueue *q, Machine *m, bool indirect, bool event_idx)
{
    q->enabled = 0;
    q->desc = q->avail = q->used = NULL;
    q->error = NULL;
    if (q->size == 0 || q->size > q->max_size || (q->size & (q->size - 1))) {
        q->error = "the queue's size is not a power of two within the maximum";
        return false;
    }
    /* VIRTIO 1.2, 2.7: alignments of the three parts. */
    if ((q->desc_gpa & 15) || (q->avail_gpa & 1) || (q->used_gpa & 3)) {
        q->error = "a part of the queue is not aligned";
        return false;
    }
    uint8_t *desc = machine_ram(m, q->desc_gpa, (uint64_t)DESC_SIZE * q->size);
    uint8_t *avail = machine_ram(m, q->avail_gpa, 6 + (uint64_t)AVAIL_ENTRY * q->size);
    uint8_t *used = machine_ram(m, q->used_gpa, 6 + (uint64_t)USED_ENTRY * q->size);
    if (!desc || !avail || !used) {
        q->error = "a part of the queue lies outside RAM";
        return false;
    }
    q->machine = m;
    q->desc = desc;
    q->avail = avail;
    q->used = used;
    q->indirect = indirect;
    q->event_idx = event_idx;
    q->enabled = 1;
    return true;
}

void virtq_reset(Virtqueue *q)
{
    uint16_t max_size = q->max_size;
    *q = (Virtqueue){.size = max_size, .max_size = max_size, .vector = UINT16_MAX};
}

/* ---- taking chains ---- */

static int virtq_break(Virtqueue *q, const char *why)
{
    q->error = why;
    return -EINVAL;
}

static bool chain_reserve(VirtChain *c, unsigned n)
{
    if (n <= c->capacity)
        return true;
    unsigned capacity = MAX(16, c->capacity * 2);
    struct iovec *iov = g_try_renew(struct iovec, c->iov, capacity);
    if (!iov)
        return false;
    c->iov = iov;
    uint64_t *gpa = g_try_renew(uint64_t, c->gpa, capacity);
    if (!gpa)
        return false;
    c->gpa = gpa;
    c->capacity = capacity;
    return true;
}

/* Adds one descriptor's memory to the chain; NULL or why that cannot be. */
static const char *chain_add(VirtChain *c, Virtqueue *q, const Descriptor *d)
{
    bool write = d->flags & DESC_F_WRITE;
    unsigned n = c->n_out + c->n_in;

    if (!write && c->n_in)
        return "a readable descriptor follows a writable one";
    if (d->length == 0)
        return NULL;
    if (c->out_size + c->in_size + d->length > VIRTQ_CHAIN_BYTES_MAX)
        return "a chain describes more than 2^32 - 1 bytes";
    void *p = machine_ram(q->machine, d->gpa, d->length);
    if (!p)
        return "a descriptor points outside RAM";

    *(write ? &c->in_size : &c->out_size) += d->length;
    bool same_part = write ? c->n_in > 0 : c->n_out > 0;
    if (same_part && c->gpa[n - 1] + c->iov[n - 1].iov_len == d->gpa &&
        (uint8_t *)c->iov[n - 1].iov_base + c->iov[n - 1].iov_len == (uint8_t *)p) {
        c->iov[n - 1].iov_len += d->length;
        return NULL;
    }
    if (n >= VIRTQ_SIZE_MAX)
        return "a chain has more than 1024 pieces";
    if (!chain_reserve(c, n + 1))
        return "out of memory";
    c->iov[n] = (struct iovec){p, d->length};
    c->gpa[n] = d->gpa;
    (*(write ? &c->n_in : &c->n_out))++;
    return NULL;
}

/* Follows a chain in @table of @entries, of at most @limit descriptors. */
static const char *chain_walk(VirtChain *c, Virtqueue *q, const uint8_t *table, uint32_t entries,
                              uint32_t index, uint32_t limit, bool is_indirect)
{
    for (uint32_t count = 1;; count++) {
        Descriptor d = descriptor_fetch(table, index);
        if (d.flags & DESC_F_INDIRECT) {
            /* 2.7.5.3.1: never within an indirect table, never with NEXT, only if negotiated.
             * 2.7.5.3.2: it may follow normal descriptors. */
            if (is_indirect || !q->indirect || (d.flags & DESC_F_NEXT))
                return "an indirect descriptor where none may be";
            if (d.length == 0 || d.length % DESC_SIZE)
                return "an indirect table's length is not a multiple of 16";
            const uint8_t *inner = machine_ram(q->machine, d.gpa, d.length);
            if (!inner)
                return "an indirect table lies outside RAM";
            return chain_walk(c, q, inner, d.length / DESC_SIZE, 0,
                              MIN(d.length / DESC_SIZE, VIRTQ_SIZE_MAX), true);
        }
        const char *why = chain_add(c, q, &d);
        if (why)
            return why;
        if (!(d.flags & DESC_F_NEXT))
            return NULL;
        if (d.next >= entries)
            return "a descriptor's next lies outside the table";
        if (count >= limit)
            return "a chain loops or is longer than the queue";
        index = d.next;
    }
}

bool virtq_has_work(const Virtqueue *q)
{
    return q->enabled && (q->error || ring_load(q->avail + RING_IDX) != q->last_avail);
}

int virtq_pop(Virtqueue *q, VirtChain *c)
{
    if (q->error)
        return -EINVAL;
    if (!q->enabled)
        return 0;
    uint16_t pending = (uint16_t)(ring_load(q->avail + RING_IDX) - q->last_avail);
    if (pending == 0)
        return 0;
    if (pending > q->size)
        return virtq_break(q, "the available index jumped by more than the queue's size");

    uint16_t head =
        ring_load(q->avail + RING_ENTRIES + (size_t)AVAIL_ENTRY * (q->last_avail & (q->size - 1)));
    if (head >= q->size)
        return virtq_break(q, "an available entry names no descriptor");
    c->head = head;
    c->n_out = c->n_in = 0;
    c->out_size = c->in_size = 0;
    const char *why = chain_walk(c, q, q->desc, q->size, head, q->size, false);
    if (why)
        return virtq_break(q, why);
    c->out = c->iov;
    c->in = c->iov + c->n_out;
    c->in_gpa = c->gpa + c->n_out;
    q->last_avail++;
    return 1;
}

void virtq_unpop(Virtqueue *q, unsigned n)
{
    q->last_avail -= (uint16_t)n;
}

/* ---- giving chains back ---- */

void virtq_fill(Virtqueue *q, unsigned index, uint16_t head, uint32_t written)
{
    if (!q->enabled || q->error)
        return;
    uint64_t offset =
        RING_ENTRIES + (uint64_t)USED_ENTRY * ((q->used_idx + index) & (q->size - 1u));
    le32_put(q->used + offset, head);
    le32_put(q->used + offset + 4, written);
    machine_ram_dirty(q->machine, q->used_gpa + offset, USED_ENTRY);
}

void virtq_flush(Virtqueue *q, unsigned n)
{
    if (!q->enabled || q->error)
        return;
    q->used_idx += (uint16_t)n;
    ring_store(q->used + RING_IDX, q->used_idx); /* release: entries and data are visible before */
    machine_ram_dirty(q->machine, q->used_gpa + RING_IDX, 2);
}

void virtq_push(Virtqueue *q, uint16_t head, uint32_t written)
{
    virtq_fill(q, 0, head, written);
    virtq_flush(q, 1);
}

/* ---- notifications: 2.7.7 and 2.7.10 ---- */

bool virtq_want_notify(Virtqueue *q, bool want)
{
    if (!q->enabled || q->error)
        return false;
    if (!q->event_idx) {
        ring_store(q->used + RING_FLAGS, want ? 0 : USED_F_NO_NOTIFY);
        machine_ram_dirty(q->machine, q->used_gpa + RING_FLAGS, 2);
    } else if (want) {
        ring_store(q->used + avail_event_offset(q), q->last_avail);
        machine_ram_dirty(q->machine, q->used_gpa + avail_event_offset(q), 2);
    }
    if (!want)
        return true;
    /* The driver stores the index, then looks at our wish; we do the opposite. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return virtq_has_work(q);
}

bool virtq_should_interrupt(Virtqueue *q)
{
    if (!q->enabled || q->error)
        return false;
    /* The driver stores its wish, then looks at the used index; we do the opposite. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    uint16_t old = q->signalled_used, now = q->used_idx;
    q->signalled_used = now;
    if (old == now)
        return false;
    if (!q->event_idx)
        return !(ring_load(q->avail + RING_FLAGS) & AVAIL_F_NO_INTERRUPT);
    /* 2.7.10: interrupt when the index has passed used_event since the last time. */
    uint16_t event = ring_load(used_event_field(q));
    return (uint16_t)(now - event - 1) < (uint16_t)(now - old);
}

/* ---- chains ---- */

void virt_chain_init(VirtChain *chain)
{
    *chain = (VirtChain){0};
}

void virt_chain_clear(VirtChain *chain)
{
    g_free(chain->iov);
    g_free(chain->gpa);
    virt_chain_init(chain);
}

size_t virt_chain_read(const VirtChain *chain, uint64_t offset, void *to, size_t size)
{
    size_t done = 0;
    for (unsigned i = 0; i < chain->n_out && done < size; i++) {
        size_t length = chain->out[i].iov_len;
        if (offset >= length) {
            offset -= length;
            continue;
        }
        size_t n = MIN(length - offset, size - done);
        memcpy((uint8_t *)to + done, (const uint8_t *)chain->out[i].iov_base + offset, n);
        done += n;
        offset = 0;
    }
    return done;
}

size_t virt_chain_write(const VirtChain *chain, Machine *m, uint64_t offset, const void *from,
                        size_t size)
{
    size_t done = 0;
    for (unsigned i = 0; i < chain->n_in && done < size; i++) {
        size_t length = chain->in[i].iov_len;
        if (offset >= length) {
            offset -= length;
            continue;
        }
        size_t n = MIN(length - offset, size - done);
        memcpy((uint8_t *)chain->in[i].iov_base + offset, (const uint8_t *)from + done, n);
        machine_ram_dirty(m, chain->in_gpa[i] + offset, n);
        done += n;
        offset = 0;
    }
    return done;
}

void virt_chain_dirty(const VirtChain *chain, Machine *m, uint64_t size)
{
    for (unsigned i = 0; i < chain->n_in && size; i++) {
        uint64_t n = MIN(chain->in[i].iov_len, size);
        if (n)
            machine_ram_dirty(m, chain->in_gpa[i], n);
        size -= n;
    }
}

void virt_chain_skip_out(VirtChain *chain, uint64_t size)
{
    size = MIN(size, chain->out_size);
    chain->out_size -= size;
    while (size) {
        if (chain->out->iov_len > size) {
            chain->out->iov_base = (uint8_t *)chain->out->iov_base + size;
            chain->out->iov_len -= size;
            return;
        }
        size -= chain->out->iov_len;
        chain->out++;
        chain->n_out--;
    }
}

uint8_t *virt_chain_take_last(VirtChain *chain, uint64_t *gpa)
{
    struct iovec *last = &chain->in[chain->n_in - 1];
    uint8_t *p = (uint8_t *)last->iov_base + --last->iov_len;
    *gpa = chain->in_gpa[chain->n_in - 1] + last->iov_len;
    chain->in_size--;
    if (last->iov_len == 0)
        chain->n_in--;
    return p;
}
