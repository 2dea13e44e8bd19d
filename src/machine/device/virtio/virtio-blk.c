/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The disk: VIRTIO 1.2, 5.2. Each virtqueue has a BlockQueue of its own; requests complete in any
 * order. An error of the image is reported to the guest (VIRTIO_BLK_S_IOERR).
 */
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "disk/block.h"
#include "machine/device/virtio/virtio.h"

/* 5.2.3 Feature bits */
enum {
    BLK_F_SEG_MAX = 2,
    BLK_F_RO = 5,
    BLK_F_BLK_SIZE = 6,
    BLK_F_FLUSH = 9,
    BLK_F_TOPOLOGY = 10,
    BLK_F_CONFIG_WCE = 11,
    BLK_F_MQ = 12,
    BLK_F_DISCARD = 13,
    BLK_F_WRITE_ZEROES = 14,
};

/* 5.2.4 Device configuration layout: offsets */
enum {
    CONFIG_CAPACITY = 0,
    CONFIG_SEG_MAX = 12,
    CONFIG_BLK_SIZE = 20,
    CONFIG_PHYSICAL_BLOCK_EXP = 24,
    CONFIG_MIN_IO_SIZE = 26,
    CONFIG_OPT_IO_SIZE = 28,
    CONFIG_WRITEBACK = 32,
    CONFIG_NUM_QUEUES = 34,
    CONFIG_MAX_DISCARD_SECTORS = 36,
    CONFIG_MAX_DISCARD_SEG = 40,
    CONFIG_DISCARD_ALIGNMENT = 44,
    CONFIG_MAX_WRITE_ZEROES_SECTORS = 48,
    CONFIG_MAX_WRITE_ZEROES_SEG = 52,
    CONFIG_WRITE_ZEROES_MAY_UNMAP = 56,
    CONFIG_SIZE = 60,
};

/* 5.2.6 Device operation */
enum {
    BLK_T_IN = 0,
    BLK_T_OUT = 1,
    BLK_T_FLUSH = 4,
    BLK_T_GET_ID = 8,
    BLK_T_DISCARD = 11,
    BLK_T_WRITE_ZEROES = 13,
};
enum { BLK_S_OK = 0, BLK_S_IOERR = 1, BLK_S_UNSUPP = 2 };
enum { SECTOR = 512, HEADER_SIZE = 16, ID_SIZE = 20 };
enum { RANGE_SIZE = 16, RANGES_MAX = 16, RANGE_F_UNMAP = 1 };
#define RANGE_SECTORS_MAX (1u << 22) /* 2 GiB: one range does not occupy the image for long */

typedef struct VirtioBlk VirtioBlk;

typedef struct BlkRange {
    uint64_t offset, length; /* bytes */
    unsigned flags;
} BlkRange;

typedef struct BlkRequest {
    BlockRequest block; /* first */
    struct BlkRequest *next_free;
    VirtioBlk *blk;
    unsigned queue;
    VirtChain chain; /* what is left of it is the data */
    uint8_t *status;
    uint64_t status_gpa;
    unsigned n_ranges, range; /* discard, write zeroes: how many, and which runs */
    BlkRange ranges[RANGES_MAX];
} BlkRequest;

typedef struct BlkQueue {
    BlockQueue *io;
    GSource *watch;
    unsigned in_flight;
    bool full; /* stopped taking requests at the depth's limit */
    BlkRequest *free;
} BlkQueue;

struct VirtioBlk {
    VirtioDevice virtio; /* first */
    uint8_t writeback;   /* the cache mode that the driver chose */
    /* Configuration and host side. */
    BlockNode *node;
    bool read_only, discard, writethrough; /* writethrough: cache= of the drive */
    uint32_t logical_block, physical_block;
    unsigned depth;
    char id[ID_SIZE + 1];
    unsigned n_queues;
    BlkQueue queue[VCPU_COUNT_MAX];
};

/* ---- requests ---- */

static BlkRequest *request_new(VirtioBlk *b, unsigned queue)
{
    BlkRequest *r = b->queue[queue].free;
    if (r) {
        b->queue[queue].free = r->next_free;
        return r;
    }
    r = g_new0(BlkRequest, 1);
    r->blk = b;
    r->queue = queue;
    virt_chain_init(&r->chain);
    return r;
}

static void request_recycle(BlkRequest *r)
{
    BlkQueue *q = &r->blk->queue[r->queue];
    r->next_free = q->free;
    q->free = r;
}

static void request_finish(BlkRequest *r, uint8_t status, uint64_t data_written)
{
    VirtioDevice *v = &r->blk->virtio;
    virt_chain_dirty(&r->chain, virtio_machine(v), data_written);
    *r->status = status;
    machine_ram_dirty(virtio_machine(v), r->status_gpa, 1);
    /* 2.7.8.2: count only what was written from the start of the buffer on. */
    uint64_t written = data_written == r->chain.in_size ? data_written + 1 : data_written;
    virtq_push(&v->queues[r->queue], r->chain.head, (uint32_t)written);
    request_recycle(r);
}

static void request_done(BlockRequest *block, int result);

static void request_submit(BlkRequest *r)
{
    r->block.done = request_done;
    block_queue_submit(r->blk->queue[r->queue].io, &r->block);
}

static void range_submit(BlkRequest *r)
{
    const BlkRange *range = &r->ranges[r->range++];
    r->block.offset = range->offset;
    r->block.length = range->length;
    r->block.flags = range->flags;
    request_submit(r);
}

static void request_done(BlockRequest *block, int result)
{
    BlkRequest *r = (BlkRequest *)block;
    if (result == 0 && r->range < r->n_ranges) {
        range_submit(r);
        return;
    }
    r->blk->queue[r->queue].in_flight--;
    bool read = block->op == BLOCK_READ;
    /* After a failed read nobody knows which bytes were written: all of them are dirty. */
    if (read && result < 0)
        virt_chain_dirty(&r->chain, virtio_machine(&r->blk->virtio), r->chain.in_size);
    request_finish(r, result == 0 ? BLK_S_OK : BLK_S_IOERR,
                   read && result == 0 ? r->chain.in_size : 0);
}

/* Fills r->ranges; returns a status. */
static uint8_t parse_ranges(BlkRequest *r, bool discard)
{
    VirtioBlk *b = r->blk;
    uint64_t size = r->chain.out_size;
    if (size == 0 || size % RANGE_SIZE || size / RANGE_SIZE > RANGES_MAX)
        return BLK_S_IOERR;
    r->n_ranges = (unsigned)(size / RANGE_SIZE);
    r->range = 0;
    for (unsigned i = 0; i < r->n_ranges; i++) {
        uint8_t raw[RANGE_SIZE];
        virt_chain_read(&r->chain, (uint64_t)i * RANGE_SIZE, raw, sizeof(raw));
        uint64_t sector = le64_get(raw);
        uint32_t count = le32_get(raw + 8), flags = le32_get(raw + 12);
        /* 5.2.6.2: unmap is for write zeroes only, other bits are reserved. */
        if ((flags & ~(uint32_t)RANGE_F_UNMAP) || (discard && flags))
            return BLK_S_UNSUPP;
        if (count > RANGE_SECTORS_MAX || !range_within(sector, count, block_size(b->node) / SECTOR))
            return BLK_S_IOERR;
        bool through = !discard && !b->writeback;
        r->ranges[i] = (BlkRange){
            .offset = sector * SECTOR,
            .length = (uint64_t)count * SECTOR,
            .flags = ((flags & RANGE_F_UNMAP) && b->discard ? BLOCK_UNMAP : 0u) |
                     (through ? BLOCK_FUA : 0u),
        };
    }
    return BLK_S_OK;
}

/* Reads or writes the chain's data; returns a status, BLK_S_OK meaning that it was submitted. */
static uint8_t start_transfer(BlkRequest *r, bool write, uint64_t sector)
{
    VirtioBlk *b = r->blk;
    uint64_t size = write ? r->chain.out_size : r->chain.in_size;
    if (write && b->read_only)
        return BLK_S_IOERR;
    if (size == 0 || size % SECTOR ||
        !range_within(sector, size / SECTOR, block_size(b->node) / SECTOR))
        return BLK_S_IOERR;
    r->block.op = write ? BLOCK_WRITE : BLOCK_READ;
    r->block.flags = write && !b->writeback ? BLOCK_FUA : 0;
    r->block.offset = sector * SECTOR;
    r->block.length = size;
    r->block.iov = write ? r->chain.out : r->chain.in;
    r->block.n_iov = (int)(write ? r->chain.n_out : r->chain.n_in);
    r->n_ranges = r->range = 0;
    b->queue[r->queue].in_flight++;
    request_submit(r);
    return BLK_S_OK;
}

static uint8_t start_ranges(BlkRequest *r, bool discard)
{
    VirtioBlk *b = r->blk;
    if (b->read_only)
        return BLK_S_IOERR;
    uint8_t status = parse_ranges(r, discard);
    if (status != BLK_S_OK)
        return status;
    r->block.op = discard ? BLOCK_DISCARD : BLOCK_WRITE_ZEROES;
    r->block.iov = NULL;
    r->block.n_iov = 0;
    b->queue[r->queue].in_flight++;
    range_submit(r);
    return BLK_S_OK;
}

static void start_flush(BlkRequest *r)
{
    r->block = (BlockRequest){.op = BLOCK_FLUSH};
    r->n_ranges = r->range = 0;
    r->blk->queue[r->queue].in_flight++;
    request_submit(r);
}

static void request_start(BlkRequest *r, uint32_t type, uint64_t sector)
{
    uint8_t status = BLK_S_OK;
    switch (type) {
    case BLK_T_IN:
    case BLK_T_OUT:
        status = start_transfer(r, type == BLK_T_OUT, sector);
        break;
    case BLK_T_FLUSH:
        start_flush(r);
        break;
    case BLK_T_DISCARD:
    case BLK_T_WRITE_ZEROES:
        status = start_ranges(r, type == BLK_T_DISCARD);
        break;
    case BLK_T_GET_ID: {
        size_t n =
            virt_chain_write(&r->chain, virtio_machine(&r->blk->virtio), 0, r->blk->id, ID_SIZE);
        request_finish(r, BLK_S_OK, n);
        return;
    }
    default:
        status = BLK_S_UNSUPP;
        break;
    }
    if (status != BLK_S_OK)
        request_finish(r, status, 0);
}

/* ---- queues ---- */

/* One chain: header, data, status byte (5.2.6). False: the device has failed. */
static bool take_request(VirtioBlk *b, unsigned index)
{
    BlkRequest *r = request_new(b, index);
    uint8_t header[HEADER_SIZE];
    if (!virtio_pop(&b->virtio, index, &r->chain)) {
        request_recycle(r);
        return false;
    }
    if (r->chain.out_size < HEADER_SIZE || r->chain.in_size < 1) {
        virtio_fail(&b->virtio, "a request without a header or a status byte");
        request_recycle(r);
        return false;
    }
    virt_chain_read(&r->chain, 0, header, sizeof(header));
    virt_chain_skip_out(&r->chain, HEADER_SIZE);
    r->status = virt_chain_take_last(&r->chain, &r->status_gpa);
    request_start(r, le32_get(header), le64_get(header + 8));
    return true;
}

static void blk_queue(VirtioDevice *v, unsigned index)
{
    VirtioBlk *b = (VirtioBlk *)v;
    BlkQueue *q = &b->queue[index];
    /* Requests that end at once (a serial number, an error) do not keep others waiting for ever. */
    unsigned budget = 2 * b->depth;

    q->full = false;
    block_queue_plug(q->io); /* what the ring holds goes to the kernel with one system call */
    do {
        virtq_want_notify(&v->queues[index], false);
        while (q->in_flight < b->depth && budget && take_request(b, index))
            budget--;
        if (q->in_flight >= b->depth) {
            q->full = true; /* blk_reap goes on */
            break;
        }
        if (budget == 0) {
            virtio_kick(v, index);
            break;
        }
    } while (virtio_queue_usable(v, index) && virtq_want_notify(&v->queues[index], true));
    block_queue_unplug(q->io);
    virtio_notify_queue(v, index);
}

static void blk_reap(void *opaque, int fd, GIOCondition condition)
{
    VirtioBlk *b = opaque;
    for (unsigned i = 0; i < b->n_queues; i++) {
        BlkQueue *q = &b->queue[i];
        if (block_queue_fd(q->io) != fd)
            continue;
        block_queue_reap(q->io);
        virtio_notify_queue(&b->virtio, i);
        if (q->full && q->in_flight < b->depth)
            virtio_kick(&b->virtio, i);
    }
}

static bool blk_busy(VirtioDevice *v)
{
    VirtioBlk *b = (VirtioBlk *)v;
    for (unsigned i = 0; i < b->n_queues; i++)
        if (b->queue[i].in_flight)
            return true;
    return false;
}

static void blk_drain(VirtioDevice *v)
{
    VirtioBlk *b = (VirtioBlk *)v;
    for (unsigned i = 0; i < b->n_queues; i++) {
        BlkQueue *q = &b->queue[i];
        while (q->in_flight) /* a range that ends may submit the next one */
            block_queue_drain(q->io);
        virtio_notify_queue(v, i);
        if (q->full)
            virtio_kick(v, i);
    }
}

static void blk_reset(VirtioDevice *v)
{
    VirtioBlk *b = (VirtioBlk *)v;
    b->writeback = !b->writethrough;
    for (unsigned i = 0; i < b->n_queues; i++)
        b->queue[i].full = false;
}

/* ---- configuration ---- */

static void blk_config_read(VirtioDevice *v, uint8_t *config)
{
    VirtioBlk *b = (VirtioBlk *)v;
    memset(config, 0, CONFIG_SIZE);
    le64_put(config + CONFIG_CAPACITY, block_size(b->node) / SECTOR);
    le32_put(config + CONFIG_SEG_MAX, v->queues[0].max_size - 2u); /* without header and status */
    le32_put(config + CONFIG_BLK_SIZE, b->logical_block);
    config[CONFIG_PHYSICAL_BLOCK_EXP] =
        (uint8_t)__builtin_ctz(b->physical_block / b->logical_block);
    le16_put(config + CONFIG_MIN_IO_SIZE, (uint16_t)(b->physical_block / b->logical_block));
    config[CONFIG_WRITEBACK] = b->writeback;
    le16_put(config + CONFIG_NUM_QUEUES, (uint16_t)b->n_queues);
    if (b->read_only)
        return;
    uint32_t alignment = MAX(b->physical_block, 4096) / SECTOR;
    le32_put(config + CONFIG_MAX_DISCARD_SECTORS, RANGE_SECTORS_MAX);
    le32_put(config + CONFIG_MAX_DISCARD_SEG, RANGES_MAX);
    le32_put(config + CONFIG_DISCARD_ALIGNMENT, alignment);
    le32_put(config + CONFIG_MAX_WRITE_ZEROES_SECTORS, RANGE_SECTORS_MAX);
    le32_put(config + CONFIG_MAX_WRITE_ZEROES_SEG, RANGES_MAX);
    config[CONFIG_WRITE_ZEROES_MAY_UNMAP] = b->discard;
}

/* 5.2.5.1: without FLUSH the driver cannot ask for durability, so writes must be durable. */
static void blk_features(VirtioDevice *v)
{
    VirtioBlk *b = (VirtioBlk *)v;
    if (!virtio_has(v, BLK_F_FLUSH))
        b->writeback = 0;
}

static void blk_config_write(VirtioDevice *v, unsigned offset, unsigned size, uint32_t value)
{
    VirtioBlk *b = (VirtioBlk *)v;
    if (offset == CONFIG_WRITEBACK && size == 1 && virtio_has(v, BLK_F_CONFIG_WCE))
        b->writeback = (value & 1) && virtio_has(v, BLK_F_FLUSH);
}

static bool block_sizes(VirtioBlk *b, GError **err)
{
    Device *dev = &b->virtio.pci.dev;
    b->logical_block = (uint32_t)device_option_uint(dev, "logical-block-size");
    b->physical_block = (uint32_t)device_option_uint(dev, "physical-block-size");
    if (b->physical_block < b->logical_block)
        b->physical_block = b->logical_block;
    if ((b->logical_block & (b->logical_block - 1)) ||
        (b->physical_block & (b->physical_block - 1)))
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "virtio-blk: block sizes %u and %u must be powers of two",
                          b->logical_block, b->physical_block);
    return true;
}

static bool open_drive(VirtioBlk *b, GError **err)
{
    Device *dev = &b->virtio.pci.dev;
    const char *drive = device_option(dev, "drive"), *serial = device_option(dev, "serial");
    const MachineItem *item = NULL;
    BlockNode *node = machine_drive(dev->machine, drive, &item);
    if (!node)
        return lodge_fail(err, LODGE_ERROR_NOT_FOUND, "virtio-blk: there is no drive \"%s\"",
                          drive);
    if (!machine_claim_drive(dev->machine, drive, err))
        return false;
    b->node = block_ref(node);
    b->read_only = block_read_only(node);
    const char *cache = machine_item_get(item, "cache");
    b->writethrough = g_strcmp0(cache, "writethrough") == 0 || g_strcmp0(cache, "directsync") == 0;
    b->discard = g_strcmp0(machine_item_get(item, "discard"), "unmap") == 0;
    if (!serial)
        serial = machine_item_get(item, "serial");
    if (serial && strlen(serial) > ID_SIZE)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "virtio-blk: serial \"%s\" is longer than %d characters", serial,
                          ID_SIZE);
    if (serial)
        memcpy(b->id, serial, strlen(serial));
    return true;
}

static bool blk_start(VirtioDevice *v, GError **err)
{
    VirtioBlk *b = (VirtioBlk *)v;
    Device *dev = &v->pci.dev;
    unsigned size = (unsigned)device_option_uint(dev, "queue-size");
    unsigned queues = (unsigned)device_option_uint(dev, "num-queues");

    if (size & (size - 1))
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "virtio-blk: queue-size %u is not a power of two", size);
    if (!block_sizes(b, err) || !open_drive(b, err))
        return false;
    if (queues == 0)
        queues = MIN(machine_config(dev->machine)->n_vcpus, VCPU_COUNT_MAX);
    b->depth = size;
    for (unsigned i = 0; i < queues; i++) {
        BlkQueue *q = &b->queue[i];
        virtio_add_queue(v, size);
        q->io = block_queue_new(b->node, size, err);
        if (!q->io)
            return false;
        b->n_queues++;
        q->watch = machine_watch_fd(dev->machine, block_queue_fd(q->io), G_IO_IN, blk_reap, b);
    }
    blk_reset(v);

    v->host_features = VIRTIO_BIT(BLK_F_SEG_MAX) | VIRTIO_BIT(BLK_F_BLK_SIZE) |
                       VIRTIO_BIT(BLK_F_TOPOLOGY) | VIRTIO_BIT(BLK_F_FLUSH) |
                       VIRTIO_BIT(BLK_F_CONFIG_WCE);
    if (queues > 1)
        v->host_features |= VIRTIO_BIT(BLK_F_MQ);
    if (b->read_only)
        v->host_features |= VIRTIO_BIT(BLK_F_RO);
    else
        v->host_features |= VIRTIO_BIT(BLK_F_DISCARD) | VIRTIO_BIT(BLK_F_WRITE_ZEROES);
    return true;
}

static void blk_stop(VirtioDevice *v)
{
    VirtioBlk *b = (VirtioBlk *)v;
    blk_drain(v);
    for (unsigned i = 0; i < b->n_queues; i++) {
        BlkQueue *q = &b->queue[i];
        g_source_destroy(q->watch);
        g_source_unref(q->watch);
        block_queue_free(q->io);
        while (q->free) {
            BlkRequest *r = q->free;
            q->free = r->next_free;
            virt_chain_clear(&r->chain);
            g_free(r);
        }
    }
    b->n_queues = 0;
    block_unref(b->node);
    b->node = NULL;
}

static bool blk_restored(VirtioDevice *v, GError **err)
{
    VirtioBlk *b = (VirtioBlk *)v;
    b->writeback = b->writeback != 0;
    return true;
}

static const DeviceOption blk_options[] = {
    {.name = "drive", .type = OPTION_STRING, .help = "the drive that it shows"},
    {.name = "serial",
     .type = OPTION_STRING,
     .optional = true,
     .help = "serial number, at most 20 characters; default: the drive's"},
    {.name = "num-queues",
     .type = OPTION_UINT,
     .fallback = "0",
     .max = VCPU_COUNT_MAX,
     .help = "request queues; 0: one for each vCPU"},
    {.name = "queue-size",
     .type = OPTION_UINT,
     .fallback = "256",
     .min = 4,
     .max = 1024,
     .help = "entries of each ring, a power of two"},
    {.name = "logical-block-size",
     .type = OPTION_UINT,
     .fallback = "512",
     .min = 512,
     .max = 4096,
     .help = "block size that the guest addresses by, in bytes"},
    {.name = "physical-block-size",
     .type = OPTION_UINT,
     .fallback = "512",
     .min = 512,
     .max = 65536,
     .help = "block size that is written without reading first, in bytes"},
    {0},
};

static const StateField blk_state[] = {
    VIRTIO_STATE(VirtioBlk, virtio),
    STATE_FIELD(VirtioBlk, writeback),
    STATE_FIELDS_END,
};

const VirtioDeviceType virtio_blk_type = {
    .base = VIRTIO_DEVICE_BASE("virtio-blk", "disk", VirtioBlk, blk_options, blk_state),
    .virtio_id = 2,
    .class_code = 0x010000,
    .config_size = CONFIG_SIZE,
    .start = blk_start,
    .stop = blk_stop,
    .config_read = blk_config_read,
    .config_write = blk_config_write,
    .features = blk_features,
    .queue = blk_queue,
    .reset = blk_reset,
    .busy = blk_busy,
    .drain = blk_drain,
    .restored = blk_restored,
};
