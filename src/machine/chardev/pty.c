/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * pty: a pseudo-terminal that a person connects to by its path. Its other end is kept open
 * here, so that nobody being connected is no hang-up and recent output awaits the next one.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <termios.h>
#include <unistd.h>

#include "base/error.h"
#include "machine/chardev/chardev-type.h"

static bool pty_open(Chardev *c, const MachineItem *item, GError **err)
{
    c->in_fd = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
    if (c->in_fd < 0)
        return lodge_fail_errno(err, errno, "chardev '%s': no pseudo-terminal", item->id);
    c->out_fd = c->in_fd;
    c->owns_fds = true;
    char name[64];
    if (grantpt(c->in_fd) < 0 || unlockpt(c->in_fd) < 0 ||
        ptsname_r(c->in_fd, name, sizeof(name)) != 0)
        return lodge_fail_errno(err, errno, "chardev '%s': pseudo-terminal", item->id);
    c->aux_fd = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
    struct termios settings;
    if (c->aux_fd < 0 || tcgetattr(c->aux_fd, &settings) < 0)
        return lodge_fail_errno(err, errno, "chardev '%s': %s", item->id, name);
    cfmakeraw(&settings);
    tcsetattr(c->aux_fd, TCSANOW, &settings);
    c->path = g_strdup(name);
    c->connected = true;
    return true;
}

static const char *const pty_options[] = {NULL};

const ChardevType chardev_type_pty = {
    .name = "pty",
    .summary = "a pseudo-terminal",
    .options = pty_options,
    .open = pty_open,
};
