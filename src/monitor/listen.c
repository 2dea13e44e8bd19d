/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "monitor/listen.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/error.h"

#define BACKLOG 4

/* A socket file that nobody serves any more is in the way of bind(). */
static void remove_stale(const struct sockaddr_un *address)
{
    struct stat st;
    if (lstat(address->sun_path, &st) < 0 || !S_ISSOCK(st.st_mode))
        return;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return;
    if (connect(fd, (const struct sockaddr *)address, sizeof(*address)) < 0 &&
        errno == ECONNREFUSED)
        unlink(address->sun_path);
    close(fd);
}

/* Closes @fd, and fails with @errnum. */
static int give_up(int fd, int errnum, const char *what, const char *where, GError **err)
{
    close(fd);
    lodge_fail_errno(err, errnum, "%s: cannot listen on '%s'", what, where);
    return -1;
}

int listen_unix(const char *what, const char *path, GError **err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (!*path || strlen(path) >= sizeof(address.sun_path)) {
        lodge_fail(err, LODGE_ERROR_LIMIT, "%s: a socket's path has 1 to %zu bytes: '%s'", what,
                   sizeof(address.sun_path) - 1, path);
        return -1;
    }
    strcpy(address.sun_path, path);
    remove_stale(&address);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        lodge_fail_errno(err, errno, "%s: no socket", what);
        return -1;
    }
    /* Who may connect may do anything to the machine: the owner only. */
    mode_t before = umask(0177);
    int result = bind(fd, (const struct sockaddr *)&address, sizeof(address));
    int bind_errno = errno;
    umask(before);
    if (result < 0) {
        close(fd);
        lodge_fail_errno(err, bind_errno, "%s: cannot make the socket '%s'", what, path);
        return -1;
    }
    if (listen(fd, BACKLOG) < 0) {
        int errnum = errno;
        unlink(path);
        return give_up(fd, errnum, what, path, err);
    }
    return fd;
}

typedef union Address {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
} Address;

static bool parse_address(const char *where, Address *a)
{
    const char *colon = strrchr(where, ':');
    guint64 port;
    memset(a, 0, sizeof(*a));
    if (!colon || !g_ascii_string_to_unsigned(colon + 1, 10, 1, UINT16_MAX, &port, NULL))
        return false;
    g_autofree char *host = g_strndup(where, (size_t)(colon - where));
    size_t length = strlen(host);
    if (host[0] == '[' && host[length - 1] == ']') {
        host[length - 1] = '\0';
        a->v6.sin6_family = AF_INET6;
        a->v6.sin6_port = htons((uint16_t)port);
        return inet_pton(AF_INET6, host + 1, &a->v6.sin6_addr) == 1;
    }
    a->v4.sin_family = AF_INET;
    a->v4.sin_port = htons((uint16_t)port);
    return inet_pton(AF_INET, host, &a->v4.sin_addr) == 1;
}

bool listen_tcp_is_remote(const char *where)
{
    Address a;
    if (!parse_address(where, &a))
        return false;
    if (a.any.sa_family == AF_INET)
        return ntohl(a.v4.sin_addr.s_addr) >> 24 != IN_LOOPBACKNET;
    return !IN6_IS_ADDR_LOOPBACK(&a.v6.sin6_addr);
}

int listen_tcp(const char *what, const char *where, GError **err)
{
    Address a;
    int one = 1;
    if (!parse_address(where, &a)) {
        lodge_fail(err, LODGE_ERROR_INVALID,
                   "%s: '%s' is not an address and a port like 127.0.0.1:1234 or [::1]:1234", what,
                   where);
        return -1;
    }
    int fd = socket(a.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        lodge_fail_errno(err, errno, "%s: no socket", what);
        return -1;
    }
    socklen_t size = a.any.sa_family == AF_INET ? sizeof(a.v4) : sizeof(a.v6);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (bind(fd, &a.any, size) < 0 || listen(fd, BACKLOG) < 0)
        return give_up(fd, errno, what, where, err);
    return fd;
}
