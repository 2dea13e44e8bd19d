/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "monitor/monitor.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/error.h"
#include "monitor/listen.h"
#include "monitor/qmp-session.h"

#define OUTPUT_MAX  (4 * 1024 * 1024) /* a client that does not read is left */
#define OUTPUT_HIGH (64 * 1024)       /* above it, no more commands are read */

struct Monitor {
    Machine *machine;
    int listen_fd, client_fd; /* -1: none */
    char *path;               /* of the socket made here */
    QmpSession *session;
    GByteArray *output;
    GSource *listen_watch, *in_watch, *out_watch;
    bool broken; /* the client is to be left as soon as possible */
    bool busy;   /* within the session, which must not be freed now */
};

static void update(Monitor *mon);

static void drop(GSource **source)
{
    if (*source) {
        g_source_destroy(*source);
        g_clear_pointer(source, g_source_unref);
    }
}

static void leave_client(Monitor *mon)
{
    drop(&mon->in_watch);
    drop(&mon->out_watch);
    g_clear_pointer(&mon->session, qmp_session_free);
    g_byte_array_set_size(mon->output, 0);
    if (mon->client_fd >= 0)
        close(mon->client_fd);
    mon->client_fd = -1;
    mon->broken = false;
}

static void flush_output(Monitor *mon)
{
    while (mon->output->len && mon->client_fd >= 0) {
        ssize_t n =
            send(mon->client_fd, mon->output->data, mon->output->len, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return;
        if (n <= 0) {
            mon->broken = true;
            return;
        }
        g_byte_array_remove_range(mon->output, 0, n);
    }
}

static void send_bytes(void *opaque, const char *data, size_t size)
{
    Monitor *mon = opaque;
    if (mon->output->len + size > OUTPUT_MAX) {
        mon->broken = true;
        return;
    }
    g_byte_array_append(mon->output, (const guint8 *)data, size);
    flush_output(mon);
}

static void client_writable(void *opaque, int fd, GIOCondition condition)
{
    Monitor *mon = opaque;
    flush_output(mon);
    update(mon);
}

static void client_readable(void *opaque, int fd, GIOCondition condition)
{
    Monitor *mon = opaque;
    char data[4096];
    ssize_t n = recv(fd, data, sizeof(data), MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    mon->busy = true;
    if (n <= 0 || !qmp_session_input(mon->session, data, n))
        mon->broken = true;
    mon->busy = false;
    update(mon);
}

static void take_client(Monitor *mon, int fd)
{
    mon->client_fd = fd;
    mon->session = qmp_session_new(mon->machine, send_bytes, mon);
}

static void client_waits(void *opaque, int fd, GIOCondition condition)
{
    Monitor *mon = opaque;
    if (mon->client_fd >= 0)
        return;
    int client = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (client < 0)
        return;
    take_client(mon, client);
    update(mon);
}

static void watch(Monitor *mon, GSource **source, bool wanted, int fd, GIOCondition condition,
                  MachineFdHandler f)
{
    if (wanted && !*source)
        *source = machine_watch_fd(mon->machine, fd, condition, f, mon);
    else if (!wanted)
        drop(source);
}

/* Waits for what the state asks for. */
static void update(Monitor *mon)
{
    if (mon->busy)
        return;
    if (mon->broken)
        leave_client(mon);
    bool client = mon->client_fd >= 0;
    watch(mon, &mon->in_watch, client && mon->output->len <= OUTPUT_HIGH, mon->client_fd,
          G_IO_IN | G_IO_HUP | G_IO_ERR, client_readable);
    watch(mon, &mon->out_watch, client && mon->output->len, mon->client_fd, G_IO_OUT,
          client_writable);
    watch(mon, &mon->listen_watch, !client && mon->listen_fd >= 0, mon->listen_fd, G_IO_IN,
          client_waits);
}

static void on_event(void *opaque, const MachineEvent *event)
{
    Monitor *mon = opaque;
    if (!mon->session)
        return;
    qmp_session_event(mon->session, event);
    update(mon);
}

/* ---- where clients come from ---- */

static bool listen_at(Monitor *mon, const char *path, GError **err)
{
    mon->listen_fd = listen_unix("QMP", path, err);
    if (mon->listen_fd < 0)
        return false;
    mon->path = g_strdup(path);
    return true;
}

static bool take_descriptor(Monitor *mon, const char *text, GError **err)
{
    guint64 fd;
    int listening = 0;
    socklen_t size = sizeof(listening);
    if (!g_ascii_string_to_unsigned(text, 10, 0, G_MAXINT, &fd, NULL))
        return lodge_fail(err, LODGE_ERROR_INVALID, "QMP: fd:%s: a descriptor's number is needed",
                          text);
    if (getsockopt((int)fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size) < 0)
        return lodge_fail_errno(err, errno, "QMP: descriptor %s", text);
    fcntl((int)fd, F_SETFD, FD_CLOEXEC);
    if (listening)
        mon->listen_fd = (int)fd;
    else
        take_client(mon, (int)fd);
    return true;
}

Monitor *monitor_new(Machine *m, const char *where, GError **err)
{
    Monitor *mon = g_new0(Monitor, 1);
    mon->machine = m;
    mon->listen_fd = mon->client_fd = -1;
    mon->output = g_byte_array_new();
    bool ok;
    if (g_str_has_prefix(where, "unix:"))
        ok = listen_at(mon, where + 5, err);
    else if (g_str_has_prefix(where, "fd:"))
        ok = take_descriptor(mon, where + 3, err);
    else
        ok = lodge_fail(err, LODGE_ERROR_INVALID, "QMP: '%s' is neither unix:PATH nor fd:N", where);
    if (!ok) {
        monitor_free(mon);
        return NULL;
    }
    machine_add_event_handler(m, on_event, mon);
    update(mon);
    return mon;
}

void monitor_free(Monitor *mon)
{
    if (!mon)
        return;
    machine_remove_event_handler(mon->machine, on_event, mon);
    flush_output(mon);
    leave_client(mon);
    drop(&mon->listen_watch);
    if (mon->listen_fd >= 0)
        close(mon->listen_fd);
    if (mon->path)
        unlink(mon->path);
    g_byte_array_unref(mon->output);
    g_free(mon->path);
    g_free(mon);
}
