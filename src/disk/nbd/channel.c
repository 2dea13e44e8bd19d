/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "disk/nbd/channel.h"

#include "base/error.h"
#include "disk/iov.h"
#include "disk/nbd/wire.h"

#include <errno.h>
#include <poll.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <unistd.h>

/* Several requests come with one system call; a payload above this goes to its place directly. */
#define BUFFER_SIZE 16384u
#define IOV_PIECE   64

struct NbdChannel {
    int fd;
    gint64 deadline; /* g_get_monotonic_time; 0: none */
    NbdTlsSession *tls;
    size_t start, end; /* of what is in the buffer */
    uint8_t buffer[BUFFER_SIZE];
};

static const struct {
    int host;
    uint32_t wire;
} errors[] = {
    {EPERM, NBD_EPERM},     {EROFS, NBD_EPERM},
    {EACCES, NBD_EPERM},    {EIO, NBD_EIO},
    {ENOMEM, NBD_ENOMEM},   {EINVAL, NBD_EINVAL},
    {ENOSPC, NBD_ENOSPC},   {EDQUOT, NBD_ENOSPC},
    {EFBIG, NBD_ENOSPC},    {EOVERFLOW, NBD_EOVERFLOW},
    {ENOTSUP, NBD_ENOTSUP}, {ESHUTDOWN, NBD_ESHUTDOWN},
};

uint32_t nbd_error_put(int result)
{
    for (size_t i = 0; i < G_N_ELEMENTS(errors); i++) {
        if (errors[i].host == -result)
            return errors[i].wire;
    }
    return result ? NBD_EIO : 0;
}

int nbd_error_get(uint32_t wire_error)
{
    for (size_t i = 0; i < G_N_ELEMENTS(errors); i++) {
        if (errors[i].wire == wire_error)
            return -errors[i].host;
    }
    return wire_error ? -EIO : 0;
}

NbdChannel *nbd_channel_new(int fd)
{
    NbdChannel *channel = g_new(NbdChannel, 1);
    channel->fd = fd;
    channel->deadline = 0;
    channel->tls = NULL;
    channel->start = channel->end = 0;
    return channel;
}

void nbd_channel_free(NbdChannel *channel)
{
    if (!channel)
        return;
    nbd_tls_session_free(channel->tls);
    close(channel->fd);
    g_free(channel);
}

void nbd_channel_deadline(NbdChannel *channel, unsigned seconds)
{
    channel->deadline = seconds ? g_get_monotonic_time() + seconds * G_USEC_PER_SEC : 0;
}

void nbd_channel_shut(NbdChannel *channel)
{
    shutdown(channel->fd, SHUT_RDWR);
}

/* Until the socket is ready; only a deadline needs it, without one the calls themselves wait. */
static int await(NbdChannel *channel, short events)
{
    while (channel->deadline) {
        gint64 left = (channel->deadline - g_get_monotonic_time()) / 1000;
        struct pollfd p = {.fd = channel->fd, .events = events};
        if (left <= 0)
            return -ETIMEDOUT;
        int ready = poll(&p, 1, (int)MIN(left, G_MAXINT));
        if (ready > 0)
            return 0;
        if (ready < 0 && errno != EINTR)
            return -errno;
    }
    return 0;
}

static ssize_t socket_receive(void *opaque, void *buffer, size_t length)
{
    NbdChannel *channel = opaque;
    for (;;) {
        int result = await(channel, POLLIN);
        if (result < 0)
            return result;
        ssize_t got = recv(channel->fd, buffer, length, 0);
        if (got >= 0 || errno != EINTR)
            return got >= 0 ? got : -errno;
    }
}

static ssize_t socket_sendv(NbdChannel *channel, struct iovec *iov, int n, bool more)
{
    struct msghdr message = {.msg_iov = iov, .msg_iovlen = (size_t)n};
    int flags = MSG_NOSIGNAL | (more ? MSG_MORE : 0);
    for (;;) {
        int result = await(channel, POLLOUT);
        if (result < 0)
            return result;
        if (channel->deadline)
            flags |= MSG_DONTWAIT;
        ssize_t put = sendmsg(channel->fd, &message, flags);
        if (put >= 0)
            return put;
        if (errno != EINTR && errno != EAGAIN)
            return -errno;
    }
}

static ssize_t socket_send(void *opaque, const void *buffer, size_t length)
{
    struct iovec iov = {(void *)buffer, length};
    return socket_sendv(opaque, &iov, 1, false);
}

static ssize_t receive_some(NbdChannel *channel, void *buffer, size_t length)
{
    return channel->tls ? nbd_tls_receive(channel->tls, buffer, length)
                        : socket_receive(channel, buffer, length);
}

int nbd_channel_read(NbdChannel *channel, void *buffer, size_t length)
{
    for (size_t done = 0; done < length;) {
        size_t have = MIN(channel->end - channel->start, length - done);
        memcpy((char *)buffer + done, channel->buffer + channel->start, have);
        channel->start += have;
        done += have;
        if (done == length)
            break;
        bool direct = length - done >= BUFFER_SIZE / 2;
        ssize_t got =
            receive_some(channel, direct ? (char *)buffer + done : (void *)channel->buffer,
                         direct ? length - done : BUFFER_SIZE);
        if (got <= 0)
            return got < 0 ? (int)got : done == 0 ? -EPIPE : -ECONNRESET;
        if (direct) {
            done += (size_t)got;
        } else {
            channel->start = 0;
            channel->end = (size_t)got;
        }
    }
    return 0;
}

int nbd_channel_readv(NbdChannel *channel, const struct iovec *iov, int n, uint64_t skip,
                      uint64_t length)
{
    while (length > 0) {
        struct iovec part[IOV_PIECE];
        uint64_t covered;
        int entries = block_iov_slice(part, IOV_PIECE, iov, n, skip, length, &covered);
        if (covered == 0)
            return -EINVAL;
        for (int i = 0; i < entries; i++) {
            int result = nbd_channel_read(channel, part[i].iov_base, part[i].iov_len);
            if (result < 0)
                return result;
        }
        skip += covered;
        length -= covered;
    }
    return 0;
}

int nbd_channel_skip(NbdChannel *channel, uint64_t length)
{
    uint8_t waste[4096];
    while (length > 0) {
        size_t part = MIN(length, sizeof(waste));
        int result = nbd_channel_read(channel, waste, part);
        if (result < 0)
            return result;
        length -= part;
    }
    return 0;
}

static ssize_t send_part(NbdChannel *channel, struct iovec *part, int entries, bool more)
{
    return channel->tls ? nbd_tls_send(channel->tls, part[0].iov_base, part[0].iov_len)
                        : socket_sendv(channel, part, entries, more);
}

/* A header and a little data: one record of TLS, not two. */
static ssize_t send_joined(NbdChannel *channel, const struct iovec *iov, int n, uint64_t skip,
                           uint64_t length)
{
    uint8_t joined[8192];
    block_iov_to(joined, iov, n, skip, length);
    return nbd_tls_send(channel->tls, joined, length);
}

int nbd_channel_writev(NbdChannel *channel, const struct iovec *iov, int n, uint64_t length,
                       bool more)
{
    for (uint64_t done = 0; done < length;) {
        struct iovec part[IOV_PIECE];
        uint64_t covered;
        int entries = block_iov_slice(part, IOV_PIECE, iov, n, done, length - done, &covered);
        if (covered == 0)
            return -EINVAL;
        ssize_t put = channel->tls && entries > 1 && length - done <= 8192
                          ? send_joined(channel, iov, n, done, length - done)
                          : send_part(channel, part, entries, more || done + covered < length);
        if (put <= 0)
            return put < 0 ? (int)put : -EPIPE;
        done += (uint64_t)put;
    }
    return 0;
}

int nbd_channel_write(NbdChannel *channel, const void *buffer, size_t length, bool more)
{
    struct iovec iov = {(void *)buffer, length};
    return nbd_channel_writev(channel, &iov, 1, length, more);
}

static int send_zeroes(NbdChannel *channel, uint64_t length)
{
    static const uint8_t zeroes[65536];
    while (length > 0) {
        size_t part = MIN(length, sizeof(zeroes));
        int result = nbd_channel_write(channel, zeroes, part, length > part);
        if (result < 0)
            return result;
        length -= part;
    }
    return 0;
}

int nbd_channel_send_file(NbdChannel *channel, int file, uint64_t offset, uint64_t length,
                          int *failed)
{
    off_t at = (off_t)offset;
    uint64_t left = length;
    if (channel->tls)
        return -EOPNOTSUPP;
    while (left > 0) {
        ssize_t put = sendfile(channel->fd, file, &at, left);
        if (put > 0) {
            left -= (uint64_t)put;
            continue;
        }
        if (put < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (put < 0 && (errno == EPIPE || errno == ECONNRESET))
            return -errno;
        if (put < 0 && left == length && (errno == EINVAL || errno == ENOSYS))
            return -EOPNOTSUPP;
        *failed = put < 0 ? -errno : 0; /* past the end of the file there are zeroes */
        return send_zeroes(channel, left);
    }
    return 0;
}

bool nbd_channel_start_tls(NbdChannel *channel, const NbdTls *tls, const char *hostname,
                           GError **err)
{
    /* Plain bytes behind STARTTLS could be taken for protected ones. */
    if (channel->start != channel->end)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "unencrypted data follows the start of TLS");
    NbdTlsSession *session =
        nbd_tls_session_new(tls, hostname, channel, socket_receive, socket_send, err);
    if (!session)
        return false;
    channel->tls = session;
    return true;
}
