/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The character devices that are little more than a descriptor: file, fd, null. */
#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "machine/chardev/chardev-type.h"

static bool file_open(Chardev *c, const MachineItem *item, GError **err)
{
    const char *path = machine_item_get(item, "path");
    bool append;
    if (!path)
        return lodge_fail(err, LODGE_ERROR_INVALID, "chardev '%s': file needs path=", item->id);
    if (!chardev_bool_option(item, "append", false, &append, err))
        return false;
    /* O_NONBLOCK: a FIFO that nobody reads must not hold up the start, nor a full one the guest. */
    int flags = O_WRONLY | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
    c->out_fd = open(path, flags | (append ? O_APPEND : O_TRUNC), 0600);
    if (c->out_fd < 0 && errno == ENXIO)
        return lodge_fail(err, LODGE_ERROR_STATE,
                          "chardev '%s': nobody reads '%s': start its reader first, or use unix",
                          item->id, path);
    if (c->out_fd < 0)
        return lodge_fail_errno(err, errno, "chardev '%s': cannot open '%s'", item->id, path);
    c->path = g_strdup(path);
    c->owns_fds = c->connected = true;
    return true;
}

static const char *const file_options[] = {"path", "append", NULL};

const ChardevType chardev_type_file = {
    .name = "file",
    .summary = "output goes to a file",
    .options = file_options,
    .open = file_open,
};

static bool fd_open(Chardev *c, const MachineItem *item, GError **err)
{
    const char *text = machine_item_get(item, "fd");
    uint64_t fd;
    if (!text || !g_ascii_string_to_unsigned(text, 10, 0, G_MAXINT, &fd, NULL))
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "chardev '%s': fd needs fd=N, an open descriptor's number", item->id);
    struct stat st;
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fstat(fd, &st) < 0)
        return lodge_fail_errno(err, errno, "chardev '%s': descriptor %s", item->id, text);
    int mode = flags & O_ACCMODE;
    c->in_fd = mode == O_WRONLY || S_ISREG(st.st_mode) ? -1 : (int)fd;
    c->out_fd = mode == O_RDONLY ? -1 : (int)fd;
    c->out_socket = S_ISSOCK(st.st_mode);
    c->out_may_block = !c->out_socket && !S_ISREG(st.st_mode) && !(flags & O_NONBLOCK);
    c->owns_fds = c->connected = true;
    return true;
}

static const char *const fd_options[] = {"fd", NULL};

const ChardevType chardev_type_fd = {
    .name = "fd",
    .summary = "an open descriptor handed in: fd=N",
    .options = fd_options,
    .open = fd_open,
};

static bool null_open(Chardev *c, const MachineItem *item, GError **err)
{
    c->connected = true;
    return true;
}

static const char *const null_options[] = {NULL};

const ChardevType chardev_type_null = {
    .name = "null",
    .summary = "drops everything",
    .options = null_options,
    .open = null_open,
};
