/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The PCI transport: VIRTIO 1.2, 4.1 Virtio Over PCI Bus, without the legacy interface. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "machine/device/virtio/virtio.h"

/* One BAR holds every structure, a page each. */
enum { BAR_INDEX = 4, BAR_SIZE = 0x4000, BAR_PAGE = 0x1000, MSIX_BAR_INDEX = 1 };
enum { PAGE_COMMON, PAGE_ISR, PAGE_DEVICE, PAGE_NOTIFY };
enum { PCI_COMMAND_LOW = 4 /* configuration register */ };
enum { NOTIFY_MULTIPLIER = 4, MSI_NO_VECTOR = 0xffff };

/* 4.1.4 Virtio Structure PCI Capabilities */
enum { CAP_VENDOR_SPECIFIC = 0x09 };
enum { CFG_COMMON = 1, CFG_NOTIFY = 2, CFG_ISR = 3, CFG_DEVICE = 4, CFG_PCI = 5 };
enum { CAP_CFG_TYPE = 3, CAP_BAR = 4, CAP_OFFSET = 8, CAP_LENGTH = 12, CAP_EXTRA = 16 };

/* 4.1.4.3 Common configuration structure layout */
enum {
    COMMON_DEVICE_FEATURE_SELECT = 0,
    COMMON_DEVICE_FEATURE = 4,
    COMMON_DRIVER_FEATURE_SELECT = 8,
    COMMON_DRIVER_FEATURE = 12,
    COMMON_CONFIG_VECTOR = 16,
    COMMON_NUM_QUEUES = 18,
    COMMON_STATUS = 20,
    COMMON_GENERATION = 21,
    COMMON_QUEUE_SELECT = 22,
    COMMON_QUEUE_SIZE = 24,
    COMMON_QUEUE_VECTOR = 26,
    COMMON_QUEUE_ENABLE = 28,
    COMMON_QUEUE_NOTIFY_OFF = 30,
    COMMON_QUEUE_DESC = 32,
    COMMON_QUEUE_DRIVER = 40,
    COMMON_QUEUE_DEVICE = 48,
    COMMON_QUEUE_NOTIFY_DATA = 56,
    COMMON_QUEUE_RESET = 58,
    COMMON_SIZE = 60,
};

enum { ISR_QUEUE = 1, ISR_CONFIG = 2 };

const StateField virtio_device_state[] = {
    {STATE_NESTED, "pci", offsetof(VirtioDevice, pci), sizeof(PciDevice), 1, pci_device_state},
    STATE_FIELD(VirtioDevice, status),
    STATE_FIELD(VirtioDevice, isr),
    STATE_FIELD(VirtioDevice, config_generation),
    STATE_FIELD(VirtioDevice, device_feature_select),
    STATE_FIELD(VirtioDevice, driver_feature_select),
    STATE_FIELD(VirtioDevice, driver_features),
    STATE_FIELD(VirtioDevice, config_vector),
    STATE_FIELD(VirtioDevice, queue_select),
    STATE_STRUCTS(VirtioDevice, queues, virtqueue_state),
    STATE_FIELDS_END,
};

static const VirtioDeviceType *type_of(const VirtioDevice *v)
{
    return (const VirtioDeviceType *)(const void *)v->pci.dev.type;
}

/* ---- interrupts ---- */

static void notify_vector(VirtioDevice *v, uint16_t vector, uint8_t isr_bit)
{
    if (v->ended)
        return;
    if (pci_msix_enabled(&v->pci)) {
        if (vector != MSI_NO_VECTOR)
            pci_msix_notify(&v->pci, vector);
        return;
    }
    v->isr |= isr_bit;
    pci_set_intx(&v->pci, true);
}

void virtio_notify_queue(VirtioDevice *v, unsigned index)
{
    Virtqueue *q = &v->queues[index];
    if (virtq_should_interrupt(q))
        notify_vector(v, q->vector, ISR_QUEUE);
}

void virtio_config_changed(VirtioDevice *v)
{
    v->config_generation++;
    if (v->status & VIRTIO_STATUS_DRIVER_OK)
        notify_vector(v, v->config_vector, ISR_CONFIG);
}

void virtio_fail(VirtioDevice *v, const char *why)
{
    if (v->status & VIRTIO_STATUS_NEEDS_RESET)
        return;
    v->error = why;
    v->status |= VIRTIO_STATUS_NEEDS_RESET;
    virtio_config_changed(v); /* 2.1.2: a configuration change notification if DRIVER_OK is set */
}

/* ---- queues ---- */

Virtqueue *virtio_add_queue(VirtioDevice *v, unsigned size)
{
    g_assert(v->n_queues < VIRTIO_QUEUES_MAX && size <= VIRTQ_SIZE_MAX);
    Virtqueue *q = &v->queues[v->n_queues++];
    q->max_size = (uint16_t)size;
    virtq_reset(q);
    return q;
}

bool virtio_queue_usable(const VirtioDevice *v, unsigned index)
{
    return (v->status & VIRTIO_STATUS_DRIVER_OK) && !(v->status & VIRTIO_STATUS_NEEDS_RESET) &&
           !v->resetting && index < v->n_queues && v->queues[index].enabled &&
           pci_bus_master(&v->pci);
}

bool virtio_paused(const VirtioDevice *v)
{
    return machine_status(virtio_machine(v)) == MACHINE_PAUSED;
}

bool virtio_pop(VirtioDevice *v, unsigned index, VirtChain *chain)
{
    Virtqueue *q = &v->queues[index];
    int r = virtq_pop(q, chain);
    if (r < 0)
        virtio_fail(v, q->error);
    return r > 0;
}

void virtio_kick(VirtioDevice *v, unsigned index)
{
    /* Fails only when the counter is full, and then the descriptor is readable already. */
    (void)!write(v->host[index].kick, &(uint64_t){1}, sizeof(uint64_t));
}

static void queue_run(VirtioDevice *v, unsigned index)
{
    if (!virtio_queue_usable(v, index))
        return;
    if (virtio_paused(v))
        v->host[index].held = true;
    else
        type_of(v)->queue(v, index);
}

/* Edge-triggered: the kick itself is the event, so the counters are never read. */
static void kicks_ready(void *opaque, int fd, GIOCondition condition)
{
    VirtioDevice *v = opaque;
    struct epoll_event ready[16];
    int n = epoll_wait(fd, ready, G_N_ELEMENTS(ready), 0);
    for (int i = 0; i < n; i++)
        queue_run(v, ready[i].data.u32);
}

static void machine_event(void *opaque, const MachineEvent *event)
{
    VirtioDevice *v = opaque;
    if (event->type != MACHINE_EVENT_RESUME || v->ended)
        return;
    for (unsigned i = 0; i < v->n_queues; i++) {
        if (v->host[i].held)
            virtio_kick(v, i);
        v->host[i].held = false;
    }
}

/* ---- reset and status ---- */

static void reset_now(VirtioDevice *v)
{
    if (type_of(v)->reset)
        type_of(v)->reset(v);
    for (unsigned i = 0; i < v->n_queues; i++) {
        virtq_reset(&v->queues[i]);
        v->host[i].held = false;
    }
    v->status = v->late_status;
    v->late_status = 0;
    v->resetting = false;
    v->isr = 0;
    v->device_feature_select = v->driver_feature_select = 0;
    v->driver_features = 0;
    v->config_vector = MSI_NO_VECTOR;
    v->queue_select = 0;
    v->error = NULL;
    pci_set_intx(&v->pci, false);
}

static void reset_deferred(void *opaque)
{
    VirtioDevice *v = opaque;
    if (!v->resetting)
        return;
    type_of(v)->drain(v);
    reset_now(v);
}

/*
 * 2.4.1: after a reset the device touches neither memory nor rings. Requests in flight are waited
 * for on the main thread; until then the status does not read as 0, which the driver waits for
 * (4.1.4.3.2).
 */
static void reset_requested(VirtioDevice *v)
{
    if (v->resetting) {
        v->late_status = 0;
        return;
    }
    if (type_of(v)->busy && type_of(v)->busy(v)) {
        v->resetting = true;
        machine_defer(virtio_machine(v), reset_deferred, v);
        return;
    }
    reset_now(v);
}

static void status_written(VirtioDevice *v, uint8_t value)
{
    if (value == 0) {
        reset_requested(v);
        return;
    }
    if (v->resetting) {
        /* This driver did not wait: remember the harmless bits for when the reset is done. */
        v->late_status |= value & (VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER);
        return;
    }
    uint8_t added = value & (uint8_t)~v->status & (uint8_t)~VIRTIO_STATUS_NEEDS_RESET;
    if (added & VIRTIO_STATUS_FEATURES_OK) {
        /* 3.1.1 step 5: the bit stays clear when we cannot work with what the driver took. */
        if ((v->driver_features & ~v->host_features) || !virtio_has(v, VIRTIO_F_VERSION_1))
            added &= (uint8_t)~VIRTIO_STATUS_FEATURES_OK;
    }
    if ((added & VIRTIO_STATUS_DRIVER_OK) && !((v->status | added) & VIRTIO_STATUS_FEATURES_OK))
        added &= (uint8_t)~VIRTIO_STATUS_DRIVER_OK;
    v->status |= added;
    if ((added & VIRTIO_STATUS_FEATURES_OK) && type_of(v)->features)
        type_of(v)->features(v);
    if (added & VIRTIO_STATUS_DRIVER_OK)
        for (unsigned i = 0; i < v->n_queues; i++)
            if (v->queues[i].enabled)
                virtio_kick(v, i);
}

static void queue_enable(VirtioDevice *v, Virtqueue *q)
{
    if (q->enabled || !(v->status & VIRTIO_STATUS_FEATURES_OK))
        return;
    if (!virtq_enable(q, virtio_machine(v), virtio_has(v, VIRTIO_F_RING_INDIRECT_DESC),
                      virtio_has(v, VIRTIO_F_RING_EVENT_IDX)))
        virtio_fail(v, q->error);
    else if (v->status & VIRTIO_STATUS_DRIVER_OK)
        virtio_kick(v, (unsigned)(q - v->queues));
}

static void queue_reset(VirtioDevice *v, Virtqueue *q)
{
    if (!virtio_has(v, VIRTIO_F_RING_RESET))
        return;
    /* Only a device without requests in flight offers the feature: nothing to wait for. */
    virtq_reset(q);
}

/* ---- common configuration ---- */

static uint64_t common_field(VirtioDevice *v, unsigned field)
{
    static const Virtqueue none = {.vector = MSI_NO_VECTOR};
    bool exists = v->queue_select < v->n_queues;
    const Virtqueue *q = exists ? &v->queues[v->queue_select] : &none;

    switch (field) {
    case COMMON_DEVICE_FEATURE_SELECT:
        return v->device_feature_select;
    case COMMON_DEVICE_FEATURE:
        return v->device_feature_select < 2
                   ? (uint32_t)(v->host_features >> (32 * v->device_feature_select))
                   : 0;
    case COMMON_DRIVER_FEATURE_SELECT:
        return v->driver_feature_select;
    case COMMON_DRIVER_FEATURE:
        return v->driver_feature_select < 2
                   ? (uint32_t)(v->driver_features >> (32 * v->driver_feature_select))
                   : 0;
    case COMMON_CONFIG_VECTOR:
        return v->config_vector;
    case COMMON_NUM_QUEUES:
        return v->n_queues;
    case COMMON_STATUS:
        return v->status;
    case COMMON_GENERATION:
        return v->config_generation;
    case COMMON_QUEUE_SELECT:
        return v->queue_select;
    case COMMON_QUEUE_SIZE:
        return q->size;
    case COMMON_QUEUE_VECTOR:
        return q->vector;
    case COMMON_QUEUE_ENABLE:
        return q->enabled;
    case COMMON_QUEUE_NOTIFY_OFF:
        return exists ? v->queue_select : 0;
    case COMMON_QUEUE_DESC:
        return q->desc_gpa;
    case COMMON_QUEUE_DRIVER:
        return q->avail_gpa;
    case COMMON_QUEUE_DEVICE:
        return q->used_gpa;
    default: /* queue_notify_data without its feature; queue_reset is 0 once done */
        return 0;
    }
}

static const struct CommonField {
    uint8_t offset, size;
} common_fields[] = {
    {COMMON_DEVICE_FEATURE_SELECT, 4},
    {COMMON_DEVICE_FEATURE, 4},
    {COMMON_DRIVER_FEATURE_SELECT, 4},
    {COMMON_DRIVER_FEATURE, 4},
    {COMMON_CONFIG_VECTOR, 2},
    {COMMON_NUM_QUEUES, 2},
    {COMMON_STATUS, 1},
    {COMMON_GENERATION, 1},
    {COMMON_QUEUE_SELECT, 2},
    {COMMON_QUEUE_SIZE, 2},
    {COMMON_QUEUE_VECTOR, 2},
    {COMMON_QUEUE_ENABLE, 2},
    {COMMON_QUEUE_NOTIFY_OFF, 2},
    {COMMON_QUEUE_DESC, 8},
    {COMMON_QUEUE_DRIVER, 8},
    {COMMON_QUEUE_DEVICE, 8},
    {COMMON_QUEUE_NOTIFY_DATA, 2},
    {COMMON_QUEUE_RESET, 2},
};

static uint64_t common_read(VirtioDevice *v, uint64_t offset, unsigned size)
{
    uint64_t value = 0;
    /* Byte by byte, so that any access that lies within the structure gets what is there. */
    for (unsigned i = 0; i < G_N_ELEMENTS(common_fields); i++) {
        const struct CommonField *f = &common_fields[i];
        if (f->offset >= offset + size || f->offset + f->size <= offset)
            continue;
        uint64_t field = common_field(v, f->offset);
        for (unsigned b = 0; b < f->size; b++)
            if (f->offset + b >= offset && f->offset + b < offset + size)
                value |= ((field >> (8 * b)) & 0xff) << (8 * (f->offset + b - offset));
    }
    return value;
}

static uint16_t vector_checked(const VirtioDevice *v, uint64_t value)
{
    return value < v->pci.msix_vectors ? (uint16_t)value : MSI_NO_VECTOR;
}

static void put_half(uint64_t *field, bool high, uint64_t value)
{
    unsigned shift = high ? 32 : 0;
    *field = (*field & ~(0xffffffffull << shift)) | ((value & 0xffffffff) << shift);
}

static void common_write_queue(VirtioDevice *v, uint64_t offset, uint64_t value)
{
    if (v->queue_select >= v->n_queues)
        return;
    Virtqueue *q = &v->queues[v->queue_select];
    if (offset == COMMON_QUEUE_VECTOR) {
        q->vector = vector_checked(v, value);
        return;
    }
    if (offset == COMMON_QUEUE_RESET) {
        if (value == 1)
            queue_reset(v, q);
        return;
    }
    if (q->enabled)
        return; /* 4.1.4.3.2: the driver must not change an enabled queue */
    switch (offset) {
    case COMMON_QUEUE_SIZE:
        q->size = (uint16_t)value; /* virtq_enable checks it */
        break;
    case COMMON_QUEUE_ENABLE:
        if (value == 1)
            queue_enable(v, q);
        break;
    case COMMON_QUEUE_DESC:
    case COMMON_QUEUE_DESC + 4:
        put_half(&q->desc_gpa, offset & 4, value);
        break;
    case COMMON_QUEUE_DRIVER:
    case COMMON_QUEUE_DRIVER + 4:
        put_half(&q->avail_gpa, offset & 4, value);
        break;
    case COMMON_QUEUE_DEVICE:
    case COMMON_QUEUE_DEVICE + 4:
        put_half(&q->used_gpa, offset & 4, value);
        break;
    default:
        break;
    }
}

/* 4.1.3.1: a driver uses each field's natural width (64-bit fields in two halves); others are
 * ignored. */
static bool common_width_ok(uint64_t offset, unsigned size)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(common_fields); i++) {
        const struct CommonField *f = &common_fields[i];
        if (f->size == 8 && size == 4 && (offset == f->offset || offset == f->offset + 4u))
            return true;
        if (f->offset == offset)
            return f->size == size;
    }
    return false;
}

static void common_write(VirtioDevice *v, uint64_t offset, unsigned size, uint64_t value)
{
    if (!common_width_ok(offset, size) || (v->resetting && offset != COMMON_STATUS))
        return;
    switch (offset) {
    case COMMON_DEVICE_FEATURE_SELECT:
        v->device_feature_select = (uint32_t)value;
        break;
    case COMMON_DRIVER_FEATURE_SELECT:
        v->driver_feature_select = (uint32_t)value;
        break;
    case COMMON_DRIVER_FEATURE:
        if (v->driver_feature_select < 2 && !(v->status & VIRTIO_STATUS_FEATURES_OK))
            put_half(&v->driver_features, v->driver_feature_select, value);
        break;
    case COMMON_CONFIG_VECTOR:
        v->config_vector = vector_checked(v, value);
        break;
    case COMMON_STATUS:
        status_written(v, (uint8_t)value);
        break;
    case COMMON_QUEUE_SELECT:
        v->queue_select = (uint16_t)value;
        break;
    default:
        common_write_queue(v, offset, value);
        break;
    }
}

/* ---- the BAR ---- */

static uint64_t device_config_read(VirtioDevice *v, uint64_t offset, unsigned size)
{
    const VirtioDeviceType *type = type_of(v);
    uint8_t config[VIRTIO_CONFIG_MAX + 8] = {0};
    if (!type->config_read || offset >= type->config_size)
        return 0;
    type->config_read(v, config);
    memset(config + type->config_size, 0, sizeof(config) - type->config_size);
    uint64_t value = 0;
    memcpy(&value, config + offset, MIN(size, 8));
    return value;
}

static uint64_t bar_read(void *opaque, uint64_t offset, unsigned size)
{
    VirtioDevice *v = opaque;
    uint64_t in_page = offset % BAR_PAGE;
    switch (offset / BAR_PAGE) {
    case PAGE_COMMON:
        return common_read(v, in_page, size);
    case PAGE_ISR: {
        if (in_page)
            return 0;
        uint8_t isr = v->isr; /* 4.1.4.5: reading clears it and lowers the line */
        v->isr = 0;
        pci_set_intx(&v->pci, false);
        return isr;
    }
    case PAGE_DEVICE:
        return device_config_read(v, in_page, size);
    default:
        return 0;
    }
}

static void bar_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    VirtioDevice *v = opaque;
    uint64_t in_page = offset % BAR_PAGE;
    switch (offset / BAR_PAGE) {
    case PAGE_COMMON:
        common_write(v, in_page, size, value);
        break;
    case PAGE_DEVICE:
        if (type_of(v)->config_write && range_within(in_page, size, type_of(v)->config_size))
            type_of(v)->config_write(v, (unsigned)in_page, size, (uint32_t)value);
        break;
    case PAGE_NOTIFY: /* a doorbell that no ioeventfd caught */
        if (in_page / NOTIFY_MULTIPLIER < v->n_queues)
            virtio_kick(v, (unsigned)(in_page / NOTIFY_MULTIPLIER));
        break;
    default:
        break;
    }
}

static const IoOps bar_ops = {.read = bar_read, .write = bar_write, .min_size = 1, .max_size = 4};

/* ---- configuration space ---- */

static uint16_t add_capability(VirtioDevice *v, uint8_t cfg_type, unsigned page, uint32_t length,
                               uint8_t extra)
{
    uint8_t size = (uint8_t)(CAP_EXTRA + extra);
    uint16_t at = pci_add_capability(&v->pci, CAP_VENDOR_SPECIFIC, size);
    uint8_t *cap = v->pci.config + at;
    cap[2] = size;
    cap[CAP_CFG_TYPE] = cfg_type;
    cap[CAP_BAR] = cfg_type == CFG_PCI ? 0 : BAR_INDEX;
    le32_put(cap + CAP_OFFSET, page * BAR_PAGE);
    le32_put(cap + CAP_LENGTH, length);
    return at;
}

/* 4.1.4.9 PCI configuration access capability: whether the window points at something. */
static bool window(const VirtioDevice *v, uint32_t *offset, uint32_t *length)
{
    const uint8_t *cap = v->pci.config + v->cfg_window;
    *offset = le32_get(cap + CAP_OFFSET);
    *length = le32_get(cap + CAP_LENGTH);
    return cap[CAP_BAR] == BAR_INDEX && (*length == 1 || *length == 2 || *length == 4) &&
           *offset % *length == 0 && range_within(*offset, *length, BAR_SIZE);
}

static bool touches_window(const VirtioDevice *v, unsigned offset, unsigned size)
{
    unsigned data = v->cfg_window + CAP_EXTRA;
    return v->cfg_window && offset < data + 4 && offset + size > data;
}

static void config_written(PciDevice *pci, unsigned offset, unsigned size)
{
    VirtioDevice *v = (VirtioDevice *)pci;
    uint32_t at, length;
    if (offset <= PCI_COMMAND_LOW && offset + size > PCI_COMMAND_LOW)
        for (unsigned i = 0; i < v->n_queues; i++)
            if (virtio_queue_usable(v, i)) /* doorbells that rang before it was bus master */
                virtio_kick(v, i);
    if (touches_window(v, offset, size) && window(v, &at, &length)) {
        uint32_t value = le32_get(pci->config + v->cfg_window + CAP_EXTRA);
        bar_write(v, at, length, value & (0xffffffffu >> (32 - 8 * length)));
    }
}

static void config_read(PciDevice *pci, unsigned offset, unsigned size)
{
    VirtioDevice *v = (VirtioDevice *)pci;
    uint32_t at, length;
    if (touches_window(v, offset, size) && window(v, &at, &length))
        le32_put(pci->config + v->cfg_window + CAP_EXTRA, (uint32_t)bar_read(v, at, length));
}

static void add_capabilities(VirtioDevice *v)
{
    add_capability(v, CFG_COMMON, PAGE_COMMON, COMMON_SIZE, 0);
    add_capability(v, CFG_ISR, PAGE_ISR, 1, 0);
    if (type_of(v)->config_size)
        add_capability(v, CFG_DEVICE, PAGE_DEVICE, type_of(v)->config_size, 0);
    uint16_t notify =
        add_capability(v, CFG_NOTIFY, PAGE_NOTIFY, v->n_queues * NOTIFY_MULTIPLIER, 4);
    le32_put(v->pci.config + notify + CAP_EXTRA, NOTIFY_MULTIPLIER);

    uint16_t at = v->cfg_window = add_capability(v, CFG_PCI, 0, 0, 4);
    memset(v->pci.write_mask + at + CAP_BAR, 0xff, 1);
    memset(v->pci.write_mask + at + CAP_OFFSET, 0xff, 12);
    v->pci.config_written = config_written;
    v->pci.config_read = config_read;
}

/* ---- life ---- */

static bool realize_pci(VirtioDevice *v, GError **err)
{
    const VirtioDeviceType *type = type_of(v);
    PciDevice *pci = &v->pci;
    const PciIds ids = {
        .vendor = 0x1af4, /* 4.1.2: 0x1af4, 0x1040 + the device's type */
        .device = (uint16_t)(0x1040 + type->virtio_id),
        .subsystem_vendor = 0x1af4,
        .subsystem = 0x1100, /* 4.1.2.1: 0x40 or higher, revision 1 or higher */
        .revision = 1,
        .class_code = type->class_code,
    };
    enum { PCIE_ROOT_COMPLEX_INTEGRATED_ENDPOINT = 9 }; /* PCIe 5.0, 7.5.3.2 */

    if (!pci_device_init(pci, &ids, err) ||
        !pci_add_msix(pci, v->n_queues + 1, MSIX_BAR_INDEX, err) ||
        !pci_add_bar(pci, BAR_INDEX, BAR_SIZE, false, true, &bar_ops, v, err))
        return false;
    if (!pci_add_pcie_capability(pci, PCIE_ROOT_COMPLEX_INTEGRATED_ENDPOINT))
        return lodge_fail(err, LODGE_ERROR_INTERNAL, "no room for the PCI Express capability");
    add_capabilities(v);
    return true;
}

static bool add_doorbell(VirtioDevice *v, unsigned index, GError **err)
{
    VirtioQueueHost *host = &v->host[index];
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.u32 = index};
    host->kick = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (host->kick < 0 || epoll_ctl(v->kicks, EPOLL_CTL_ADD, host->kick, &event) < 0)
        return lodge_fail_errno(err, errno, "cannot create the doorbell of queue %u", index);
    /* Without an ioeventfd (too many) bar_write rings the bell. */
    (void)io_region_add_ioeventfd(v->pci.bar[BAR_INDEX].region,
                                  PAGE_NOTIFY * BAR_PAGE + index * NOTIFY_MULTIPLIER, 2,
                                  host->kick);
    return true;
}

static bool add_doorbells(VirtioDevice *v, GError **err)
{
    v->kicks = epoll_create1(EPOLL_CLOEXEC);
    if (v->kicks < 0)
        return lodge_fail_errno(err, errno, "cannot create the doorbells");
    for (unsigned i = 0; i < v->n_queues; i++)
        if (!add_doorbell(v, i, err))
            return false;
    v->watch = machine_watch_fd(virtio_machine(v), v->kicks, G_IO_IN, kicks_ready, v);
    return true;
}

bool virtio_device_realize(Device *dev, GError **err)
{
    VirtioDevice *v = (VirtioDevice *)dev;
    const VirtioDeviceType *type = type_of(v);

    for (unsigned i = 0; i < VIRTIO_QUEUES_MAX; i++) {
        v->host[i].kick = -1;
        virtq_reset(&v->queues[i]);
    }
    v->kicks = -1;
    v->config_vector = MSI_NO_VECTOR;
    if (!type->start(v, err))
        goto fail;
    v->host_features |= VIRTIO_BIT(VIRTIO_F_VERSION_1) | VIRTIO_BIT(VIRTIO_F_RING_INDIRECT_DESC) |
                        VIRTIO_BIT(VIRTIO_F_RING_EVENT_IDX);
    if (!type->busy)
        v->host_features |= VIRTIO_BIT(VIRTIO_F_RING_RESET);
    if (!realize_pci(v, err) || !add_doorbells(v, err))
        goto fail;
    machine_add_event_handler(dev->machine, machine_event, v);
    return true;

fail:
    virtio_device_unrealize(dev);
    return false;
}

void virtio_device_unrealize(Device *dev)
{
    VirtioDevice *v = (VirtioDevice *)dev;
    if (v->ended)
        return;
    v->ended = true;
    if (type_of(v)->stop)
        type_of(v)->stop(v);
    if (v->watch) {
        g_source_destroy(v->watch);
        g_source_unref(v->watch);
        v->watch = NULL;
    }
    for (unsigned i = 0; i < v->n_queues; i++) {
        if (v->host[i].kick < 0)
            continue;
        io_region_del_ioeventfd(v->pci.bar[BAR_INDEX].region,
                                PAGE_NOTIFY * BAR_PAGE + i * NOTIFY_MULTIPLIER, 2);
        close(v->host[i].kick);
        v->host[i].kick = -1;
    }
    if (v->kicks >= 0)
        close(v->kicks);
    v->kicks = -1;
    pci_device_exit(&v->pci);
}

void virtio_device_drain(Device *dev)
{
    VirtioDevice *v = (VirtioDevice *)dev;
    if (type_of(v)->drain)
        type_of(v)->drain(v);
}

void virtio_device_reset(Device *dev)
{
    VirtioDevice *v = (VirtioDevice *)dev;
    virtio_device_drain(dev);
    v->late_status = 0;
    reset_now(v);
    v->config_generation = 0;
    pci_device_reset(&v->pci);
}

static bool queue_restored(VirtioDevice *v, unsigned i, GError **err)
{
    Virtqueue *q = &v->queues[i];
    bool enabled = q->enabled;
    q->desc = q->avail = q->used = NULL;
    q->error = NULL;
    if (q->vector != MSI_NO_VECTOR && q->vector >= v->pci.msix_vectors)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "queue %u has vector %u of %u", i, q->vector,
                          v->pci.msix_vectors);
    if (enabled && !virtq_enable(q, virtio_machine(v), virtio_has(v, VIRTIO_F_RING_INDIRECT_DESC),
                                 virtio_has(v, VIRTIO_F_RING_EVENT_IDX)))
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "queue %u: %s", i, q->error);
    /* Doorbells are not part of the state: look at every queue once. */
    if (enabled)
        v->host[i].held = true;
    return true;
}

bool virtio_device_state_loaded(Device *dev, GError **err)
{
    VirtioDevice *v = (VirtioDevice *)dev;
    if (v->driver_features & ~v->host_features)
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "%s: the saved features 0x%" PRIx64 " are not all offered (0x%" PRIx64
                          ")",
                          dev->type->name, v->driver_features, v->host_features);
    if (v->config_vector != MSI_NO_VECTOR && v->config_vector >= v->pci.msix_vectors)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "%s: configuration vector %u of %u",
                          dev->type->name, v->config_vector, v->pci.msix_vectors);
    v->resetting = false;
    for (unsigned i = 0; i < VIRTIO_QUEUES_MAX; i++) {
        if (i >= v->n_queues)
            virtq_reset(&v->queues[i]);
        else if (!queue_restored(v, i, err))
            return false;
    }
    return !type_of(v)->restored || type_of(v)->restored(v, err);
}
