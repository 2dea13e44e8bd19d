/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a type of network backend implements; netdevs.c lists them. */
#pragma once

#include "machine/netdev/netdev.h"

/* Frames held for a device that has no room now. */
#define NETDEV_HELD_MAX 512

typedef struct NetdevType {
    const char *name;
    const char *summary;
    const char *const *options; /* names, NULL-terminated; others are refused */
    size_t instance_size;       /* struct that starts with Netdev */
    bool (*open)(Netdev *n, const MachineItem *item, GError **err);
    void (*close)(Netdev *n); /* accepts a half-opened backend */
    void (*send)(Netdev *n, const struct iovec *iov, int count);
    void (*room)(Netdev *n); /* the held frames were taken: go on receiving; may be NULL */
} NetdevType;

struct Netdev {
    const NetdevType *type;
    Machine *machine;
    char *id;
    const NetdevUser *user;
    void *user_opaque;
    GQueue held; /* of GBytes: frames that the device had no room for */
};

/* Null-terminated. */
extern const NetdevType *const netdev_types[];
extern const NetdevType netdev_type_user, netdev_type_tap_fd;

/* A frame from outside for the device: delivered, held, or dropped when too many are held. Machine
 * lock held. */
void netdev_deliver(Netdev *n, const uint8_t *frame, size_t size);
/* Whether a frame would be delivered at once. */
bool netdev_has_room(Netdev *n);
/* on/off of option @name; false and @err for anything else. */
bool netdev_bool_option(const MachineItem *item, const char *name, bool fallback, bool *value,
                        GError **err);
