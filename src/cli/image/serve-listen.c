/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The server's sockets, and the loop that takes clients from them. */
#include "cli/image/serve.h"

#include "base/error.h"
#include "disk/nbd/wire.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define FIRST_HANDED_FD 3 /* sd_listen_fds(3) */
#define BACKLOG         128

/* True when somebody listens there: then it is not ours to replace. */
static bool alive(const struct sockaddr_un *where)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    bool answered = fd >= 0 && (connect(fd, (const struct sockaddr *)where, sizeof(*where)) == 0 ||
                                errno == EAGAIN);
    if (fd >= 0)
        close(fd);
    return answered;
}

static bool listen_unix(const char *name, ServeSockets *s, GError **err)
{
    struct sockaddr_un where = {.sun_family = AF_UNIX};
    struct stat st;
    g_autofree char *path = g_canonicalize_filename(name, NULL);
    if (strlen(path) >= sizeof(where.sun_path))
        return lodge_fail(err, LODGE_ERROR_LIMIT,
                          "UNIX socket path '%s' is too long\n"
                          "Path must be less than %zu bytes",
                          path, sizeof(where.sun_path));
    strcpy(where.sun_path, path);
    /* What a server that was killed left behind. */
    if (lstat(path, &st) == 0 && S_ISSOCK(st.st_mode) && !alive(&where))
        unlink(path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&where, sizeof(where)) < 0 ||
        listen(fd, BACKLOG) < 0) {
        lodge_fail_errno(err, errno, "Failed to bind socket to %s", path);
        if (fd >= 0)
            close(fd);
        return false;
    }
    s->fds[s->n++] = fd;
    g_autofree char *escaped = g_uri_escape_string(path, "/", FALSE);
    s->where = g_strconcat("nbd+unix:///%s?socket=", escaped, NULL);
    s->path = g_steal_pointer(&path);
    return true;
}

static int listen_on(const struct addrinfo *a)
{
    int one = 1;
    int fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (a->ai_family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one));
    if (bind(fd, a->ai_addr, a->ai_addrlen) == 0 && listen(fd, BACKLOG) == 0)
        return fd;
    int problem = errno;
    close(fd);
    errno = problem;
    return -1;
}

static bool listen_tcp(const char *address, const char *port, ServeSockets *s, GError **err)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *found = NULL;
    int result = getaddrinfo(address, port, &hints, &found), problem = 0;
    if (result != 0)
        return lodge_fail(err, LODGE_ERROR_INVALID, "address resolution failed for %s:%s: %s",
                          address, port, gai_strerror(result));
    for (const struct addrinfo *a = found; a && s->n < SERVE_SOCKETS_MAX; a = a->ai_next) {
        int fd = listen_on(a);
        if (fd >= 0)
            s->fds[s->n++] = fd;
        else
            problem = errno;
    }
    freeaddrinfo(found);
    if (s->n == 0)
        return lodge_fail_errno(err, problem, "Failed to find an available port");
    struct sockaddr_storage bound = {0};
    socklen_t length = sizeof(bound);
    char real[NI_MAXSERV] = "";
    getsockname(s->fds[0], (struct sockaddr *)&bound, &length);
    getnameinfo((struct sockaddr *)&bound, length, NULL, 0, real, sizeof(real), NI_NUMERICSERV);
    bool v6 = strchr(address, ':') != NULL;
    s->where = g_strdup_printf("nbd://%s%s%s:%s/%%s", v6 ? "[" : "", address, v6 ? "]" : "", real);
    return true;
}

/* True when @s has the one socket that whoever started us has opened already. */
static bool handed_over(ServeSockets *s, GError **err)
{
    const char *pid = g_getenv("LISTEN_PID"), *n = g_getenv("LISTEN_FDS");
    if (!pid || !n || g_ascii_strtoll(pid, NULL, 10) != getpid())
        return false;
    g_autofree char *count = g_strdup(n);
    g_unsetenv("LISTEN_PID");
    g_unsetenv("LISTEN_FDS");
    if (strcmp(count, "1"))
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "%s does not support socket activation with LISTEN_FDS > 1",
                          image_program());
    fcntl(FIRST_HANDED_FD, F_SETFD, FD_CLOEXEC);
    s->fds[s->n++] = FIRST_HANDED_FD;
    return true;
}

bool serve_listen(const ServeOptions *o, ServeSockets *s, GError **err)
{
    GError *problem = NULL;
    bool handed = handed_over(s, &problem);
    if (problem) {
        g_propagate_error(err, problem);
        return false;
    }
    if (handed)
        return true;
    return o->socket ? listen_unix(o->socket, s, err)
                     : listen_tcp(o->address ? o->address : "0.0.0.0", o->port ? o->port : NBD_PORT,
                                  s, err);
}

void serve_close(ServeSockets *s)
{
    for (unsigned i = 0; i < s->n; i++)
        close(s->fds[i]);
    if (s->path)
        unlink(s->path);
    g_clear_pointer(&s->path, g_free);
    g_clear_pointer(&s->where, g_free);
    s->n = 0;
}

static void take_client(NbdServer *server, int listener)
{
    int one = 1, fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0)
        return;
    /* Replies are whole messages: none waits for another; fails on UNIX sockets, which never wait.
     */
    setsockopt(fd, IPPROTO_TCP, 1 /* TCP_NODELAY */, &one, sizeof(one));
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
    nbd_server_client(server, fd);
}

int serve_loop(const ServeOptions *o, const NbdServerConfig *config, NbdServer *server,
               ServeSockets *s, int gone)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    int signals = signalfd(-1, &set, SFD_CLOEXEC);
    if (signals < 0)
        return image_fail("cannot wait for signals: %s", g_strerror(errno));
    struct pollfd events[2 + SERVE_SOCKETS_MAX] = {{signals, POLLIN, 0}, {gone, POLLIN, 0}};
    for (;;) {
        bool room = nbd_server_clients(server) < config->clients;
        for (unsigned i = 0; i < s->n; i++)
            events[2 + i] = (struct pollfd){s->fds[i], POLLIN, 0};
        if (poll(events, room ? 2 + s->n : 2, -1) < 0 && errno != EINTR)
            break;
        uint64_t count;
        /* serve.c writes 1 when a client went, and more when it was the last one. */
        if (events[1].revents && read(gone, &count, sizeof(count)) > 0 && count >= (1u << 16) &&
            !o->persistent)
            break;
        if (events[0].revents)
            break;
        for (unsigned i = 0; room && i < s->n; i++) {
            if (events[2 + i].revents & POLLIN)
                take_client(server, s->fds[i]);
            room = nbd_server_clients(server) < config->clients;
        }
    }
    close(signals);
    return 0;
}
