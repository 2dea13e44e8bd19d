/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The entropy device: VIRTIO 1.2, 5.4. */
#include <errno.h>
#include <sys/random.h>

#include "base/error.h"
#include "machine/device/virtio/virtio.h"

enum { RNG_QUEUE = 0, RNG_QUEUE_SIZE = 8, RNG_REQUEST_MAX = 64 * 1024 /* bytes a request gets */ };

typedef struct VirtioRng {
    VirtioDevice virtio; /* first */
    uint64_t left;       /* bytes of this period's quota */
    /* Configuration and host side. */
    uint64_t max_bytes, period_ms; /* 0: no limit */
    MachineTimer *timer;
    VirtChain chain;
} VirtioRng;

static uint32_t fill_chain(VirtioRng *r)
{
    uint8_t buffer[1024];
    uint64_t want = MIN(r->chain.in_size, RNG_REQUEST_MAX);
    if (r->max_bytes)
        want = MIN(want, r->left);

    uint64_t done = 0;
    while (done < want) {
        ssize_t n = getrandom(buffer, MIN(sizeof(buffer), want - done), GRND_NONBLOCK);
        if (n <= 0)
            break; /* the host is short of entropy: a shorter answer is an answer */
        done += virt_chain_write(&r->chain, virtio_machine(&r->virtio), done, buffer, (size_t)n);
    }
    if (r->max_bytes)
        r->left -= done;
    return (uint32_t)done;
}

static void rng_queue(VirtioDevice *v, unsigned index)
{
    VirtioRng *r = (VirtioRng *)v;
    Virtqueue *q = &v->queues[index];
    unsigned budget = RNG_QUEUE_SIZE;

    while (virtq_has_work(q)) {
        if (r->max_bytes && r->left == 0) {
            if (!machine_timer_pending(r->timer))
                machine_timer_set(r->timer, machine_clock_ns(virtio_machine(v)) +
                                                (int64_t)r->period_ms * 1000000);
            break;
        }
        if (budget-- == 0) {
            virtio_kick(v, index);
            break;
        }
        if (!virtio_pop(v, index, &r->chain))
            break;
        virtq_push(q, r->chain.head, fill_chain(r));
    }
    virtio_notify_queue(v, index);
    if (virtq_want_notify(q, true) && !(r->max_bytes && r->left == 0))
        virtio_kick(v, index);
}

static void quota_renewed(void *opaque)
{
    VirtioRng *r = opaque;
    r->left = r->max_bytes;
    virtio_kick(&r->virtio, RNG_QUEUE);
}

static void rng_reset(VirtioDevice *v)
{
    VirtioRng *r = (VirtioRng *)v;
    r->left = r->max_bytes;
    if (r->timer)
        machine_timer_cancel(r->timer);
}

static bool rng_start(VirtioDevice *v, GError **err)
{
    VirtioRng *r = (VirtioRng *)v;
    r->max_bytes = device_option_uint(&v->pci.dev, "max-bytes");
    r->period_ms = device_option_uint(&v->pci.dev, "period");
    if (r->max_bytes && !r->period_ms)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "virtio-rng: max-bytes needs a period of at least 1 ms");
    r->left = r->max_bytes;
    if (r->max_bytes)
        r->timer = machine_timer_new(virtio_machine(v), quota_renewed, r);
    virt_chain_init(&r->chain);
    virtio_add_queue(v, RNG_QUEUE_SIZE);
    return true;
}

static void rng_stop(VirtioDevice *v)
{
    VirtioRng *r = (VirtioRng *)v;
    g_clear_pointer(&r->timer, machine_timer_free);
    virt_chain_clear(&r->chain);
}

static bool rng_restored(VirtioDevice *v, GError **err)
{
    VirtioRng *r = (VirtioRng *)v;
    r->left = MIN(r->left, r->max_bytes);
    return true;
}

static const DeviceOption rng_options[] = {
    {.name = "max-bytes",
     .type = OPTION_SIZE,
     .fallback = "0",
     .help = "bytes that the guest may take in one period; 0: no limit"},
    {.name = "period",
     .type = OPTION_UINT,
     .fallback = "1000",
     .min = 1,
     .max = 3600000,
     .help = "length of the period of max-bytes in milliseconds"},
    {0},
};

static const StateField rng_state[] = {
    VIRTIO_STATE(VirtioRng, virtio),
    STATE_FIELD(VirtioRng, left),
    STATE_FIELDS_END,
};

const VirtioDeviceType virtio_rng_type = {
    .base = VIRTIO_DEVICE_BASE("virtio-rng", "random numbers from the host", VirtioRng, rng_options,
                               rng_state),
    .virtio_id = 4,
    .class_code = 0x00ff00,
    .start = rng_start,
    .stop = rng_stop,
    .queue = rng_queue,
    .reset = rng_reset,
    .restored = rng_restored,
};
