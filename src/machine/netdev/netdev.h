/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The host side of a network interface: user (libslirp: NAT, DHCP, DNS), tap-fd (a tap descriptor
 * handed in). Types register in netdev/netdevs.c. Main thread, machine lock held, except
 * netdev_send.
 */
#pragma once

#include <sys/uio.h>

#include "machine/machine.h"

#define NETDEV_FRAME_MAX (64 * 1024 + 64)

typedef struct Netdev Netdev;

typedef struct NetdevUser {
    /* False: no room; the backend holds frames back until netdev_accept_input. */
    bool (*can_receive)(void *opaque);
    void (*receive)(void *opaque, const uint8_t *frame,
                    size_t size); /* an Ethernet frame without FCS */
} NetdevUser;

Netdev *netdev_find(Machine *m, const char *id);
bool netdev_attach(Netdev *n, const NetdevUser *user, void *opaque, GError **err);
void netdev_detach(Netdev *n);
/* Machine lock held. */
void netdev_send(Netdev *n, const struct iovec *iov, int count);
void netdev_accept_input(Netdev *n);
Netdev *netdev_new(Machine *m, const MachineItem *item, GError **err);
void netdev_free(Netdev *n);
