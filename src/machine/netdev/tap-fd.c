/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A network by a descriptor handed in: a tap interface, or a datagram socket that carries one
 * Ethernet frame a datagram. Linux Documentation/networking/tuntap, tun(4) ioctls.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/error.h"
#include "machine/netdev/netdev-type.h"

enum { BUDGET = 64 /* frames read before others have their turn */ };

typedef struct NetdevTap {
    Netdev netdev; /* first */
    int fd;
    GSource *watch; /* NULL while the device has no room */
    uint8_t frame[NETDEV_FRAME_MAX];
} NetdevTap;

static void tap_unwatch(NetdevTap *t)
{
    if (!t->watch)
        return;
    g_source_destroy(t->watch);
    g_source_unref(t->watch);
    t->watch = NULL;
}

static void tap_readable(void *opaque, int fd, GIOCondition condition)
{
    NetdevTap *t = opaque;
    for (unsigned i = 0; i < BUDGET; i++) {
        if (t->netdev.user && !netdev_has_room(&t->netdev)) {
            tap_unwatch(t); /* tap_room watches again */
            return;
        }
        ssize_t n = read(fd, t->frame, sizeof(t->frame));
        if (n > 0) {
            netdev_deliver(&t->netdev, t->frame, (size_t)n);
        } else if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
            return;
        } else {
            tap_unwatch(t); /* the other end is gone for good */
            return;
        }
    }
}

static void tap_watch(NetdevTap *t)
{
    if (!t->watch)
        t->watch = machine_watch_fd(t->netdev.machine, t->fd, G_IO_IN, tap_readable, t);
}

static void tap_room(Netdev *n)
{
    tap_watch((NetdevTap *)n);
}

static void tap_send(Netdev *n, const struct iovec *iov, int count)
{
    NetdevTap *t = (NetdevTap *)n;
    ssize_t r;
    do {
        r = writev(t->fd, iov, count);
    } while (r < 0 && errno == EINTR);
    /* A full queue or an interface that is down loses the frame, as a wire would. */
}

/* A tap that puts a virtio_net_hdr before each frame does not suit us. */
static bool tap_check(const NetdevTap *t, const char *id, GError **err)
{
    struct ifreq request = {0};
    if (ioctl(t->fd, TUNGETIFF, &request) == 0) {
        if (request.ifr_flags & IFF_VNET_HDR)
            return lodge_fail(
                err, LODGE_ERROR_UNSUPPORTED,
                "netdev '%s': tap %.15s was opened with IFF_VNET_HDR; open it without", id,
                request.ifr_name);
        if (!(request.ifr_flags & IFF_TAP) || !(request.ifr_flags & IFF_NO_PI))
            return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                              "netdev '%s': %.15s is not a tap opened with IFF_TAP | IFF_NO_PI", id,
                              request.ifr_name);
        return true;
    }
    int type = 0;
    socklen_t length = sizeof(type);
    if (getsockopt(t->fd, SOL_SOCKET, SO_TYPE, &type, &length) == 0 &&
        (type == SOCK_DGRAM || type == SOCK_SEQPACKET))
        return true;
    return lodge_fail(err, LODGE_ERROR_INVALID,
                      "netdev '%s': fd %d is neither a tap nor a datagram socket", id, t->fd);
}

static bool tap_open(Netdev *n, const MachineItem *item, GError **err)
{
    NetdevTap *t = (NetdevTap *)n;
    const char *text = machine_item_get(item, "fd");
    char *end = NULL;
    t->fd = -1;
    if (!text)
        return lodge_fail(err, LODGE_ERROR_INVALID, "netdev '%s': tap-fd needs fd=NUMBER",
                          item->id);
    errno = 0;
    long fd = strtol(text, &end, 10);
    if (end == text || *end || errno || fd < 0 || fd > INT_MAX)
        return lodge_fail(err, LODGE_ERROR_INVALID, "netdev '%s': fd=%s is not a descriptor",
                          item->id, text);
    int flags = fcntl((int)fd, F_GETFL);
    if (flags < 0)
        return lodge_fail_errno(err, errno, "netdev '%s': descriptor %ld", item->id, fd);
    t->fd = (int)fd;
    if (!tap_check(t, item->id, err)) {
        t->fd = -1; /* not ours to close */
        return false;
    }
    (void)fcntl(t->fd, F_SETFL, flags | O_NONBLOCK);
    (void)fcntl(t->fd, F_SETFD, FD_CLOEXEC);
    tap_watch(t);
    return true;
}

static void tap_close(Netdev *n)
{
    NetdevTap *t = (NetdevTap *)n;
    tap_unwatch(t);
    if (t->fd >= 0)
        close(t->fd);
    t->fd = -1;
}

static const char *const tap_options[] = {"fd", NULL};

const NetdevType netdev_type_tap_fd = {
    .name = "tap-fd",
    .summary = "a tap interface or datagram socket handed in as a descriptor",
    .options = tap_options,
    .instance_size = sizeof(NetdevTap),
    .open = tap_open,
    .close = tap_close,
    .send = tap_send,
    .room = tap_room,
};
