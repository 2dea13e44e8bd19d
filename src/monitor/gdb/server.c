/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "monitor/gdb/gdb.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/error.h"
#include "monitor/gdb/session.h"
#include "monitor/listen.h"

#define WHAT        "gdb"
#define OUTPUT_MAX  (1024 * 1024) /* a debugger that does not read is left */
#define OUTPUT_HIGH (64 * 1024)   /* above it, no more packets are read */

struct GdbServer {
    Machine *machine;
    int listen_fd, client_fd; /* -1: none */
    char *path;               /* of the socket made here */
    GdbSession *session;
    GByteArray *output;
    GSource *listen_watch, *in_watch, *out_watch;
    bool broken; /* the client is to be left as soon as possible */
    bool busy;   /* within the session, which must not be freed now */
};

static void update(GdbServer *server);

static void drop(GSource **source)
{
    if (*source) {
        g_source_destroy(*source);
        g_clear_pointer(source, g_source_unref);
    }
}

static void flush_output(GdbServer *server)
{
    while (server->output->len && server->client_fd >= 0) {
        ssize_t n = send(server->client_fd, server->output->data, server->output->len,
                         MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return;
        if (n <= 0) {
            server->broken = true;
            return;
        }
        g_byte_array_remove_range(server->output, 0, (guint)n);
    }
}

static void send_bytes(void *opaque, const char *data, size_t size)
{
    GdbServer *server = opaque;
    if (server->output->len + size > OUTPUT_MAX) {
        server->broken = true;
        return;
    }
    g_byte_array_append(server->output, (const guint8 *)data, (guint)size);
    flush_output(server);
}

static void leave_client(GdbServer *server)
{
    drop(&server->in_watch);
    drop(&server->out_watch);
    g_clear_pointer(&server->session, gdb_session_free);
    g_byte_array_set_size(server->output, 0);
    if (server->client_fd >= 0)
        close(server->client_fd);
    server->client_fd = -1;
    server->broken = false;
}

static void client_writable(void *opaque, int fd, GIOCondition condition)
{
    GdbServer *server = opaque;
    flush_output(server);
    update(server);
}

static void client_readable(void *opaque, int fd, GIOCondition condition)
{
    GdbServer *server = opaque;
    uint8_t data[4096];
    ssize_t n = recv(fd, data, sizeof(data), MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    server->busy = true;
    if (n <= 0 || !gdb_session_input(server->session, data, (size_t)n))
        server->broken = true;
    server->busy = false;
    update(server);
}

static void client_waits(void *opaque, int fd, GIOCondition condition)
{
    GdbServer *server = opaque;
    int one = 1;
    if (server->client_fd >= 0)
        return;
    int client = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (client < 0)
        return;
    /* Packets are short and waited for; a UNIX socket has no such option. */
    setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    server->client_fd = client;
    server->busy = true;
    server->session = gdb_session_new(server->machine, send_bytes, server);
    server->busy = false;
    update(server);
}

static void watch(GdbServer *server, GSource **source, bool wanted, int fd, GIOCondition condition,
                  MachineFdHandler f)
{
    if (wanted && !*source)
        *source = machine_watch_fd(server->machine, fd, condition, f, server);
    else if (!wanted)
        drop(source);
}

/* Waits for what the state asks for. */
static void update(GdbServer *server)
{
    if (server->busy)
        return;
    if (server->broken)
        leave_client(server);
    bool client = server->client_fd >= 0;
    watch(server, &server->in_watch, client && server->output->len <= OUTPUT_HIGH,
          server->client_fd, G_IO_IN | G_IO_HUP | G_IO_ERR, client_readable);
    watch(server, &server->out_watch, client && server->output->len, server->client_fd, G_IO_OUT,
          client_writable);
    watch(server, &server->listen_watch, !client, server->listen_fd, G_IO_IN, client_waits);
}

static void on_event(void *opaque, const MachineEvent *event)
{
    GdbServer *server = opaque;
    if (!server->session)
        return;
    gdb_session_event(server->session, event);
    update(server);
}

GdbServer *gdb_server_new(Machine *m, const char *where, GError **err)
{
    int fd = -1;
    if (g_str_has_prefix(where, "unix:"))
        fd = listen_unix(WHAT, where + 5, err);
    else if (g_str_has_prefix(where, "tcp:"))
        fd = listen_tcp(WHAT, where + 4, err);
    else
        lodge_fail(err, LODGE_ERROR_INVALID, "gdb: '%s' is neither unix:PATH nor tcp:ADDRESS:PORT",
                   where);
    if (fd < 0)
        return NULL;
    GdbServer *server = g_new0(GdbServer, 1);
    server->machine = m;
    server->listen_fd = fd;
    server->client_fd = -1;
    server->path = g_str_has_prefix(where, "unix:") ? g_strdup(where + 5) : NULL;
    server->output = g_byte_array_new();
    machine_add_event_handler(m, on_event, server);
    update(server);
    return server;
}

void gdb_server_free(GdbServer *server)
{
    if (!server)
        return;
    machine_remove_event_handler(server->machine, on_event, server);
    flush_output(server);
    leave_client(server);
    drop(&server->listen_watch);
    close(server->listen_fd);
    if (server->path)
        unlink(server->path);
    g_byte_array_unref(server->output);
    g_free(server->path);
    g_free(server);
}

bool gdb_where_is_remote(const char *where)
{
    return g_str_has_prefix(where, "tcp:") && listen_tcp_is_remote(where + 4);
}
