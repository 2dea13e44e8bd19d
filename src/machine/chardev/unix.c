/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* unix: a server socket; one peer at a time, the next one waits in the queue. */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/error.h"
#include "machine/chardev/chardev-type.h"

static void peer_waits(void *opaque, int fd, GIOCondition condition)
{
    Chardev *c = opaque;
    if (!chardev_leave_hung_up(c))
        return; /* one at a time */
    int peer = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (peer < 0)
        return;
    g_source_destroy(c->listen_watch);
    g_clear_pointer(&c->listen_watch, g_source_unref);
    g_mutex_lock(&c->out_lock);
    c->in_fd = c->out_fd = peer;
    c->out_socket = c->owns_fds = true;
    g_mutex_unlock(&c->out_lock);
    chardev_set_connected(c, true);
}

static void wait_for_peer(Chardev *c)
{
    if (!c->listen_watch)
        c->listen_watch = machine_watch_fd(c->machine, c->listen_fd, G_IO_IN, peer_waits, c);
}

/* A socket file that nobody serves any more is in the way of bind(). */
static bool remove_stale(const char *path, const struct sockaddr_un *address)
{
    struct stat st;
    if (lstat(path, &st) < 0 || !S_ISSOCK(st.st_mode))
        return true; /* bind() tells */
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool alive = fd >= 0 && connect(fd, (const struct sockaddr *)address, sizeof(*address)) == 0;
    if (fd >= 0)
        close(fd);
    if (alive)
        return false;
    unlink(path);
    return true;
}

static bool unix_open(Chardev *c, const MachineItem *item, GError **err)
{
    const char *path = machine_item_get(item, "path");
    bool server, wait;
    if (!path)
        return lodge_fail(err, LODGE_ERROR_INVALID, "chardev '%s': unix needs path=", item->id);
    if (!chardev_bool_option(item, "server", true, &server, err) ||
        !chardev_bool_option(item, "wait", false, &wait, err))
        return false;
    if (!server || wait)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "chardev '%s': only server=on,wait=off is supported", item->id);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof(address.sun_path))
        return lodge_fail(err, LODGE_ERROR_LIMIT,
                          "chardev '%s': a socket's path has at most %zu bytes: '%s'", item->id,
                          sizeof(address.sun_path) - 1, path);
    strcpy(address.sun_path, path);
    if (!remove_stale(path, &address))
        return lodge_fail(err, LODGE_ERROR_BUSY, "chardev '%s': '%s' is served by another process",
                          item->id, path);
    c->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (c->listen_fd < 0 ||
        bind(c->listen_fd, (const struct sockaddr *)&address, sizeof(address)) < 0)
        return lodge_fail_errno(err, errno, "chardev '%s': cannot bind '%s'", item->id, path);
    c->path = g_strdup(path);
    c->owns_path = true;
    if (listen(c->listen_fd, 4) < 0)
        return lodge_fail_errno(err, errno, "chardev '%s': cannot listen on '%s'", item->id, path);
    wait_for_peer(c);
    return true;
}

static void unix_peer_left(Chardev *c)
{
    wait_for_peer(c);
}

static const char *const unix_options[] = {"path", "server", "wait", NULL};

const ChardevType chardev_type_unix = {
    .name = "unix",
    .summary = "a UNIX server socket",
    .options = unix_options,
    .open = unix_open,
    .peer_left = unix_peer_left,
};
