/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Virtio devices over PCI (VIRTIO 1.2, 4.1, modern only). A device is one file closed by a const
 * VirtioDeviceType; virtio-pci.c does the rest: registers, negotiation, interrupts, doorbells.
 *
 * All of a device's functions run with the machine lock held; start, stop and the queue
 * handler on the main thread.
 */
#pragma once

#include "machine/device/virtio/virtqueue.h"
#include "machine/pci/pci.h"

#define VIRTIO_QUEUES_MAX 66
#define VIRTIO_CONFIG_MAX 64 /* bytes of device-specific configuration */

/* VIRTIO 1.2, 2.1 Device Status Field */
enum {
    VIRTIO_STATUS_ACKNOWLEDGE = 1,
    VIRTIO_STATUS_DRIVER = 2,
    VIRTIO_STATUS_DRIVER_OK = 4,
    VIRTIO_STATUS_FEATURES_OK = 8,
    VIRTIO_STATUS_NEEDS_RESET = 64,
    VIRTIO_STATUS_FAILED = 128,
};

/* VIRTIO 1.2, 6 Reserved Feature Bits */
enum {
    VIRTIO_F_RING_INDIRECT_DESC = 28,
    VIRTIO_F_RING_EVENT_IDX = 29,
    VIRTIO_F_VERSION_1 = 32,
    VIRTIO_F_RING_RESET = 40,
};

#define VIRTIO_BIT(n) (1ull << (n))

typedef struct VirtioDevice VirtioDevice;

typedef struct VirtioDeviceType {
    DeviceType base;      /* first; VIRTIO_DEVICE_BASE fills it */
    uint16_t virtio_id;   /* VIRTIO 1.2, 5 Device Types */
    uint32_t class_code;  /* PCI */
    unsigned config_size; /* bytes, at most VIRTIO_CONFIG_MAX */

    /* Checks options, calls virtio_add_queue, sets host_features (device bits). */
    bool (*start)(VirtioDevice *v, GError **err);
    void (*stop)(VirtioDevice *v); /* accepts a half-started device */
    /* The whole device configuration, config_size bytes; NULL if there is none. */
    void (*config_read)(VirtioDevice *v, uint8_t *config);
    /* May be NULL: then writes are ignored. Within config_size. */
    void (*config_write)(VirtioDevice *v, unsigned offset, unsigned size, uint32_t value);
    /* The driver settled its features (FEATURES_OK); may be NULL. */
    void (*features)(VirtioDevice *v);
    /* The driver announced work (or DRIVER_OK was just set). */
    void (*queue)(VirtioDevice *v, unsigned index);
    /* Nothing is in flight; forget what the driver told. The queues are gone after it. */
    void (*reset)(VirtioDevice *v);
    /* Whether requests are in flight, and waiting for them (all, or those of one queue). Both may
     * be NULL. */
    bool (*busy)(VirtioDevice *v);
    void (*drain)(VirtioDevice *v);
    /* After a restore, queues included; may be NULL. */
    bool (*restored)(VirtioDevice *v, GError **err);
} VirtioDeviceType;

typedef struct VirtioQueueHost {
    int kick;  /* eventfd: the driver's doorbell; -1 before realize */
    bool held; /* kicked while the machine was paused */
} VirtioQueueHost;

struct VirtioDevice {
    PciDevice pci; /* first */
    /* What the driver set (saved and restored). */
    uint8_t status, isr, config_generation;
    uint32_t device_feature_select, driver_feature_select;
    uint64_t driver_features;
    uint16_t config_vector, queue_select;
    Virtqueue queues[VIRTIO_QUEUES_MAX];
    /* The device's own. */
    unsigned n_queues;
    uint64_t host_features; /* offered */
    VirtioQueueHost host[VIRTIO_QUEUES_MAX];
    int kicks; /* epoll: all the doorbells, so that the main loop has one descriptor a device */
    GSource *watch;
    uint16_t cfg_window; /* config space offset of the capability of 4.1.4.9 */
    bool resetting;      /* waits for requests in flight */
    uint8_t late_status; /* written while resetting */
    bool ended;          /* unrealized: callbacks must not touch it */
    const char *error;   /* why NEEDS_RESET is set */
};

extern const StateField virtio_device_state[];
#define VIRTIO_STATE(type, member)                                                                 \
    {                                                                                              \
        STATE_NESTED, "virtio", offsetof(type, member), sizeof(VirtioDevice), 1,                   \
            virtio_device_state                                                                    \
    }

bool virtio_device_realize(Device *dev, GError **err);
void virtio_device_reset(Device *dev);
void virtio_device_drain(Device *dev);
void virtio_device_unrealize(Device *dev);
bool virtio_device_state_loaded(Device *dev, GError **err);

#define VIRTIO_DEVICE_BASE(name_, summary_, struct_, options_, state_)                             \
    {                                                                                              \
        .name = name_, .summary = summary_, .bus = DEVICE_BUS_PCI,                                 \
        .instance_size = sizeof(struct_), .options = options_, .realize = virtio_device_realize,   \
        .reset = virtio_device_reset, .drain = virtio_device_drain,                                \
        .unrealize = virtio_device_unrealize, .state = state_,                                     \
        .state_loaded = virtio_device_state_loaded,                                                \
    }

/* For start: the next queue, of @size entries. */
Virtqueue *virtio_add_queue(VirtioDevice *v, unsigned size);
static inline Machine *virtio_machine(const VirtioDevice *v)
{
    return v->pci.dev.machine;
}
static inline bool virtio_has(const VirtioDevice *v, unsigned feature)
{
    return v->driver_features & VIRTIO_BIT(feature);
}
/* DRIVER_OK, not broken, not resetting, bus master and the queue is enabled: the device may use it.
 */
bool virtio_queue_usable(const VirtioDevice *v, unsigned index);
/* The machine is paused: do not touch guest memory for what comes from outside. */
bool virtio_paused(const VirtioDevice *v);
/* The next chain; false: none, or the ring is bad (then the device has failed already). */
bool virtio_pop(VirtioDevice *v, unsigned index, VirtChain *chain);
/* Interrupts the driver if it wants it for what was pushed. */
void virtio_notify_queue(VirtioDevice *v, unsigned index);
/* Runs the queue handler (again), from the main loop. */
void virtio_kick(VirtioDevice *v, unsigned index);
/* The device configuration changed. */
void virtio_config_changed(VirtioDevice *v);
/* The driver broke the protocol: DEVICE_NEEDS_RESET; nothing is processed until the reset. @why:
 * static. */
void virtio_fail(VirtioDevice *v, const char *why);

/* ---- the device types: rows of devices.c ---- */

extern const VirtioDeviceType virtio_blk_type, virtio_net_type, virtio_serial_type, virtio_rng_type,
    virtio_balloon_type;
extern const DeviceType virtconsole_type, virtserialport_type;
