/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The memory balloon: VIRTIO 1.2, 5.5, with statistics and free page reporting. */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "base/bytes.h"
#include "base/error.h"
#include "machine/balloon.h"
#include "machine/device/virtio/virtio.h"

/* 5.5.3 Feature bits */
enum { BALLOON_F_STATS_VQ = 1, BALLOON_F_DEFLATE_ON_OOM = 2, BALLOON_F_REPORTING = 5 };
/* 5.5.4 Device configuration layout */
enum { CONFIG_NUM_PAGES = 0, CONFIG_ACTUAL = 4, CONFIG_SIZE = 8 };
enum { INFLATE = 0, DEFLATE = 1, STATS = 2 };
enum { QUEUE_SIZE = 128, PAGE_SHIFT = 12, PAGE_SIZE = 1 << PAGE_SHIFT };
/* Drivers list at most 1024 pages in one buffer; more would hold up the main loop. */
enum { PAGE_LIST_MAX = 64 * 1024, STAT_SIZE = 10, STATS_LIST_MAX = 64 * STAT_SIZE };
enum { BUDGET = 32 };
#define EVENT_INTERVAL_NS 1000000000ll

typedef struct VirtioBalloon {
    VirtioDevice virtio; /* first */
    uint32_t target_pages,
        actual_pages;   /* 4 KiB pages in the balloon: wanted, told by the driver */
    uint8_t stats_held; /* the driver's statistics buffer is here */
    uint16_t stats_head;
    MachineBalloonStats stats;
    /* Host side. */
    bool registered;
    uint32_t told_pages; /* actual_pages in the last event */
    uint64_t stats_interval_ms;
    MachineTimer *event_timer, *stats_timer;
    VirtChain chain;
} VirtioBalloon;

/* ---- giving memory back to the host ---- */

static void release(Machine *m, uint64_t gpa, uint64_t length)
{
    uint64_t end = align_down(gpa + length, PAGE_SIZE);
    gpa = align_up(gpa, PAGE_SIZE);
    if (gpa >= end)
        return;
    void *p = machine_ram(m, gpa, end - gpa);
    if (!p)
        return; /* a page that is not RAM: nothing to give back */
    /* A hole in the memfd; where the memory is not shared, dropping the private pages. */
    if (madvise(p, end - gpa, MADV_REMOVE) != 0)
        (void)madvise(p, end - gpa, MADV_DONTNEED);
    machine_ram_dirty(m, gpa, end - gpa);
}

/* The chain is a list of 32-bit page numbers; neighbours are released together. */
static void release_list(VirtioBalloon *b)
{
    uint32_t pfn[256];
    uint64_t start = 0, length = 0, offset = 0;
    for (;;) {
        size_t n = virt_chain_read(&b->chain, offset, pfn, sizeof(pfn)) / sizeof(pfn[0]);
        for (size_t i = 0; i < n; i++) {
            uint64_t gpa = (uint64_t)le32_get(&pfn[i]) << PAGE_SHIFT;
            if (length && gpa == start + length) {
                length += PAGE_SIZE;
                continue;
            }
            release(virtio_machine(&b->virtio), start, length);
            start = gpa;
            length = PAGE_SIZE;
        }
        offset += n * sizeof(pfn[0]);
        if (n < G_N_ELEMENTS(pfn))
            break;
    }
    release(virtio_machine(&b->virtio), start, length);
}

/* ---- statistics: 5.5.6.3 ---- */

static void stats_parse(VirtioBalloon *b)
{
    memset(&b->stats, 0, sizeof(b->stats));
    uint8_t raw[STAT_SIZE];
    for (uint64_t at = 0; at < STATS_LIST_MAX; at += STAT_SIZE) {
        if (virt_chain_read(&b->chain, at, raw, sizeof(raw)) != sizeof(raw))
            break;
        uint16_t tag = le16_get(raw);
        if (tag >= MACHINE_BALLOON_STATS)
            continue;
        b->stats.present |= 1u << tag;
        b->stats.value[tag] = le64_get(raw + 2);
    }
}

static void stats_queue(VirtioBalloon *b)
{
    VirtioDevice *v = &b->virtio;
    Virtqueue *q = &v->queues[STATS];
    unsigned budget = BUDGET;
    while (budget-- && virtio_pop(v, STATS, &b->chain)) {
        if (b->stats_held) /* the driver owns one buffer only; give the older one back */
            virtq_push(q, b->stats_head, 0);
        b->stats_held = 1;
        b->stats_head = b->chain.head;
        stats_parse(b);
    }
    virtio_notify_queue(v, STATS);
    if (virtq_want_notify(q, true))
        virtio_kick(v, STATS);
    if (b->stats_interval_ms && !machine_timer_pending(b->stats_timer))
        machine_timer_set(b->stats_timer, machine_clock_ns(virtio_machine(v)) +
                                              (int64_t)b->stats_interval_ms * 1000000);
}

/* Handing the buffer back is the request for fresh statistics. */
static void stats_due(void *opaque)
{
    VirtioBalloon *b = opaque;
    VirtioDevice *v = &b->virtio;
    if (b->stats_held && virtio_queue_usable(v, STATS) && virtio_has(v, BALLOON_F_STATS_VQ)) {
        b->stats_held = 0;
        virtq_push(&v->queues[STATS], b->stats_head, 0);
        virtio_notify_queue(v, STATS);
    }
}

/* ---- queues ---- */

static void page_queue(VirtioBalloon *b, unsigned index, bool reporting)
{
    VirtioDevice *v = &b->virtio;
    Virtqueue *q = &v->queues[index];
    unsigned budget = BUDGET;
    while (budget && virtio_pop(v, index, &b->chain)) {
        budget--;
        if (!reporting && b->chain.out_size > PAGE_LIST_MAX) {
            virtio_fail(v, "a balloon request lists more than 16384 pages");
            return;
        }
        if (reporting) { /* 5.5.6.7: the buffers are the free pages themselves */
            for (unsigned i = 0; i < b->chain.n_in; i++)
                release(virtio_machine(v), b->chain.in_gpa[i], b->chain.in[i].iov_len);
        } else if (index == INFLATE) {
            release_list(b);
        }
        virtq_push(q, b->chain.head, 0);
    }
    virtio_notify_queue(v, index);
    if (virtq_want_notify(q, true))
        virtio_kick(v, index);
}

static void balloon_queue(VirtioDevice *v, unsigned index)
{
    VirtioBalloon *b = (VirtioBalloon *)v;
    bool has_stats = virtio_has(v, BALLOON_F_STATS_VQ);
    if (index == STATS && has_stats)
        stats_queue(b);
    else if (index <= DEFLATE)
        page_queue(b, index, false);
    else if (virtio_has(v, BALLOON_F_REPORTING) && index == (has_stats ? STATS + 1u : STATS))
        page_queue(b, index, true); /* 5.5.2: queues of features not negotiated do not count */
}

/* ---- target and actual size ---- */

static uint64_t memory_without(const VirtioBalloon *b, uint32_t pages)
{
    uint64_t size = machine_config(virtio_machine(&b->virtio))->memory_size;
    uint64_t ballooned = (uint64_t)pages << PAGE_SHIFT;
    return ballooned < size ? size - ballooned : 0;
}

static void tell_actual(VirtioBalloon *b)
{
    Machine *m = virtio_machine(&b->virtio);
    b->told_pages = b->actual_pages;
    const MachineEvent event = {.type = MACHINE_EVENT_BALLOON_CHANGE,
                                .value = memory_without(b, b->actual_pages)};
    machine_emit(m, &event);
}

static void event_due(void *opaque)
{
    VirtioBalloon *b = opaque;
    if (b->told_pages != b->actual_pages)
        tell_actual(b);
}

static void balloon_config_read(VirtioDevice *v, uint8_t *config)
{
    VirtioBalloon *b = (VirtioBalloon *)v;
    le32_put(config + CONFIG_NUM_PAGES, b->target_pages);
    le32_put(config + CONFIG_ACTUAL, b->actual_pages);
}

/* The driver tells its size after every few pages: an event at once, then at most one a second. */
static void balloon_config_write(VirtioDevice *v, unsigned offset, unsigned size, uint32_t value)
{
    VirtioBalloon *b = (VirtioBalloon *)v;
    if (offset != CONFIG_ACTUAL || size != 4 || value == b->actual_pages)
        return;
    b->actual_pages = value;
    if (machine_timer_pending(b->event_timer) && value != b->target_pages)
        return;
    tell_actual(b);
    machine_timer_set(b->event_timer, machine_clock_ns(virtio_machine(v)) + EVENT_INTERVAL_NS);
}

static bool balloon_set_target(void *opaque, uint64_t bytes, GError **err)
{
    VirtioBalloon *b = opaque;
    uint64_t size = machine_config(virtio_machine(&b->virtio))->memory_size;
    if (bytes == 0)
        return lodge_fail(err, LODGE_ERROR_INVALID, "a guest cannot do with 0 bytes of memory");
    uint64_t pages = bytes < size ? (size - bytes) >> PAGE_SHIFT : 0;
    if (pages > UINT32_MAX)
        return lodge_fail(err, LODGE_ERROR_LIMIT,
                          "a balloon of %" G_GUINT64_FORMAT " pages is over the limit of 2^32 - 1",
                          pages);
    b->target_pages = (uint32_t)pages;
    virtio_config_changed(&b->virtio);
    return true;
}

static uint64_t balloon_actual(void *opaque)
{
    const VirtioBalloon *b = opaque;
    return memory_without(b, b->actual_pages);
}

static bool balloon_stats(void *opaque, MachineBalloonStats *stats)
{
    const VirtioBalloon *b = opaque;
    *stats = b->stats;
    return b->stats.present != 0;
}

static const MachineBalloonOps balloon_ops = {
    .set_target = balloon_set_target,
    .actual = balloon_actual,
    .stats = balloon_stats,
};

/* ---- life ---- */

static void balloon_reset(VirtioDevice *v)
{
    VirtioBalloon *b = (VirtioBalloon *)v;
    /* What the balloon held is the guest's again: its pages come back when it touches them. */
    b->actual_pages = b->told_pages = 0;
    b->stats_held = 0;
    memset(&b->stats, 0, sizeof(b->stats));
    machine_timer_cancel(b->event_timer);
    machine_timer_cancel(b->stats_timer);
}

static bool balloon_start(VirtioDevice *v, GError **err)
{
    VirtioBalloon *b = (VirtioBalloon *)v;
    Device *dev = &v->pci.dev;
    virt_chain_init(&b->chain);
    b->stats_interval_ms = device_option_uint(dev, "stats-interval") * 1000;
    v->host_features = VIRTIO_BIT(BALLOON_F_STATS_VQ);
    if (device_option_bool(dev, "deflate-on-oom"))
        v->host_features |= VIRTIO_BIT(BALLOON_F_DEFLATE_ON_OOM);
    for (unsigned i = 0; i < 3; i++)
        virtio_add_queue(v, QUEUE_SIZE);
    if (device_option_bool(dev, "free-page-reporting")) {
        v->host_features |= VIRTIO_BIT(BALLOON_F_REPORTING);
        virtio_add_queue(v, QUEUE_SIZE);
    }
    if (!machine_balloon_register(dev->machine, &balloon_ops, b, err))
        return false;
    b->registered = true;
    b->event_timer = machine_timer_new(dev->machine, event_due, b);
    b->stats_timer = machine_timer_new(dev->machine, stats_due, b);
    return true;
}

static void balloon_stop(VirtioDevice *v)
{
    VirtioBalloon *b = (VirtioBalloon *)v;
    if (b->registered)
        machine_balloon_unregister(virtio_machine(v), b);
    b->registered = false;
    g_clear_pointer(&b->event_timer, machine_timer_free);
    g_clear_pointer(&b->stats_timer, machine_timer_free);
    virt_chain_clear(&b->chain);
}

static bool balloon_restored(VirtioDevice *v, GError **err)
{
    VirtioBalloon *b = (VirtioBalloon *)v;
    b->told_pages = b->actual_pages;
    b->stats_held = b->stats_held && b->stats_head < v->queues[STATS].size;
    b->stats.present &= (1u << MACHINE_BALLOON_STATS) - 1;
    if (b->stats_interval_ms && b->stats_held)
        machine_timer_set(b->stats_timer, machine_clock_ns(virtio_machine(v)) +
                                              (int64_t)b->stats_interval_ms * 1000000);
    return true;
}

static const DeviceOption balloon_options[] = {
    {.name = "deflate-on-oom",
     .type = OPTION_BOOL,
     .fallback = "off",
     .help = "the guest may take memory back rather than kill a process"},
    {.name = "free-page-reporting",
     .type = OPTION_BOOL,
     .fallback = "off",
     .help = "the guest names free pages and the host takes their memory"},
    {.name = "stats-interval",
     .type = OPTION_UINT,
     .fallback = "0",
     .max = 86400,
     .help = "seconds between two readings of the guest's statistics; 0: one when it starts"},
    {0},
};

static const StateField balloon_stats_state[] = {
    STATE_FIELD(MachineBalloonStats, present),
    STATE_ARRAY(MachineBalloonStats, value),
    STATE_FIELDS_END,
};

static const StateField balloon_state[] = {
    VIRTIO_STATE(VirtioBalloon, virtio),
    STATE_FIELD(VirtioBalloon, target_pages),
    STATE_FIELD(VirtioBalloon, actual_pages),
    STATE_FIELD(VirtioBalloon, stats_held),
    STATE_FIELD(VirtioBalloon, stats_head),
    {STATE_NESTED, "stats", offsetof(VirtioBalloon, stats), sizeof(MachineBalloonStats), 1,
     balloon_stats_state},
    STATE_FIELDS_END,
};

const VirtioDeviceType virtio_balloon_type = {
    .base = VIRTIO_DEVICE_BASE("virtio-balloon", "memory balloon", VirtioBalloon, balloon_options,
                               balloon_state),
    .virtio_id = 5,
    .class_code = 0x00ff00,
    .config_size = CONFIG_SIZE,
    .start = balloon_start,
    .stop = balloon_stop,
    .config_read = balloon_config_read,
    .config_write = balloon_config_write,
    .queue = balloon_queue,
    .reset = balloon_reset,
    .restored = balloon_restored,
};
