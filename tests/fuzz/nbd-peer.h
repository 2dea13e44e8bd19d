/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The hostile end of an NBD connection: says what it has to say and takes all that it is told. */
#pragma once

#include "base/bytes.h"

#include <errno.h>
#include <glib.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define NBD_PEER_DISK      MIB(1)
#define NBD_PEER_INPUT_MAX KIB(64)
/* Whoever takes longer than this to be done with one input hangs. */
#define NBD_PEER_HANG_MS 20000

static inline void nbd_peer_sockets(int ends[2])
{
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
        abort();
}

/* Sends @data and the end of the stream; reads until the other side has closed. */
static inline void nbd_peer_talk(int fd, const uint8_t *data, size_t length)
{
    uint8_t waste[4096];
    size_t sent = 0;
    bool sending = true;
    for (;;) {
        if (sending && sent == length) {
            shutdown(fd, SHUT_WR);
            sending = false;
        }
        struct pollfd p = {.fd = fd, .events = (short)(POLLIN | (sending ? POLLOUT : 0))};
        if (poll(&p, 1, NBD_PEER_HANG_MS) == 0)
            abort();
        if (sending && p.revents & (POLLOUT | POLLERR | POLLHUP)) {
            ssize_t put = send(fd, data + sent, length - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
            if (put > 0)
                sent += (size_t)put;
            else if (put < 0 && errno != EAGAIN && errno != EINTR)
                sending = false;
        }
        if (p.revents & (POLLIN | POLLERR | POLLHUP)) {
            ssize_t got = recv(fd, waste, sizeof(waste), MSG_DONTWAIT);
            if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR))
                return;
        }
    }
}
