/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * stdio: the process's own terminal, or whatever its standard input and output are. A
 * terminal goes into raw mode, so that every key reaches the guest; Ctrl-] leaves.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

#include "base/error.h"
#include "machine/chardev/chardev-type.h"

#define ESCAPE_KEY 0x1d /* Ctrl-] */

/* The terminal's settings before raw mode, for whoever calls exit(). */
static struct termios saved;
static bool saved_valid;
static Chardev *owner;

static void set_terminal(const struct termios *settings)
{
    /* From the background, tcsetattr would stop the process. */
    sigset_t block, before;
    sigemptyset(&block);
    sigaddset(&block, SIGTTOU);
    pthread_sigmask(SIG_BLOCK, &block, &before);
    tcsetattr(STDIN_FILENO, TCSANOW, settings);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static void restore_terminal(void)
{
    if (saved_valid) {
        saved_valid = false;
        set_terminal(&saved);
    }
}

static void make_raw(Chardev *c)
{
    static bool registered;
    if (!isatty(STDIN_FILENO) || tcgetattr(STDIN_FILENO, &saved) < 0)
        return;
    c->in_terminal = true;
    struct termios raw = saved;
    raw.c_iflag &= ~(tcflag_t)(IGNBRK | BRKINT | PARMRK | ISTRIP | INLCR | IGNCR | ICRNL | IXON);
    raw.c_lflag &= ~(tcflag_t)(ECHO | ECHONL | ICANON | IEXTEN | ISIG);
    raw.c_cflag = (raw.c_cflag & ~(tcflag_t)(CSIZE | PARENB)) | CS8;
    raw.c_cc[VMIN] = 1;
    raw.c_cc[VTIME] = 0;
    saved_valid = true;
    if (!registered)
        registered = atexit(restore_terminal) == 0;
    set_terminal(&raw);
}

/* A description of our own that does not block; the one we inherited is shared with others. */
static void open_output(Chardev *c)
{
    struct stat st;
    c->out_fd = STDOUT_FILENO;
    if (fstat(STDOUT_FILENO, &st) < 0) {
        c->out_fd = -1;
        return;
    }
    if (S_ISSOCK(st.st_mode)) {
        c->out_socket = true;
    } else if (S_ISCHR(st.st_mode) || S_ISFIFO(st.st_mode)) {
        int fd = open("/proc/self/fd/1", O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
        if (fd >= 0)
            c->aux_fd = c->out_fd = fd;
        else
            c->out_may_block = true;
    }
}

static bool stdio_open(Chardev *c, const MachineItem *item, GError **err)
{
    if (owner)
        return lodge_fail(err, LODGE_ERROR_BUSY,
                          "chardev '%s': stdio is taken by chardev '%s'; one device can have it",
                          item->id, owner->id);
    owner = c;
    open_output(c);
    make_raw(c);
    struct stat st;
    if (fstat(STDIN_FILENO, &st) == 0)
        c->in_fd = STDIN_FILENO;
    c->connected = true;
    return true;
}

static void stdio_close(Chardev *c)
{
    if (owner != c)
        return;
    owner = NULL;
    restore_terminal();
}

static size_t stdio_filter(Chardev *c, uint8_t *data, size_t size)
{
    if (!c->in_terminal)
        return size;
    uint8_t *key = memchr(data, ESCAPE_KEY, size);
    if (!key)
        return size;
    static const char message[] = "\r\n[left by Ctrl-]: the machine is stopped]\r\n";
    chardev_write(c, (const uint8_t *)message, sizeof(message) - 1);
    machine_shutdown(c->machine, MACHINE_CAUSE_HOST_SIGNAL);
    return key - data;
}

static const char *const stdio_options[] = {NULL};

const ChardevType chardev_type_stdio = {
    .name = "stdio",
    .summary = "standard input and output; Ctrl-] leaves",
    .options = stdio_options,
    .open = stdio_open,
    .close = stdio_close,
    .filter = stdio_filter,
};
