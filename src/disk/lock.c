/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "disk/lock.h"

#include "base/error.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define LOCK_USED_BASE      100
#define LOCK_FORBIDDEN_BASE 200
#define LOCK_BITS           4

static const char *const lock_names[LOCK_BITS] = {"consistent read", "write", "write unchanged",
                                                     "resize"};

static int lock_byte(int fd, short type, unsigned byte)
{
    struct flock range = {.l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
    return fcntl(fd, F_OFD_SETLK, &range) < 0 ? errno : 0;
}

static void unlock_all(int fd)
{
    for (unsigned i = 0; i < LOCK_BITS; i++) {
        lock_byte(fd, F_UNLCK, LOCK_USED_BASE + i);
        lock_byte(fd, F_UNLCK, LOCK_FORBIDDEN_BASE + i);
    }
}

/* True when another open file description holds @byte. */
static bool byte_held(int fd, unsigned byte)
{
    struct flock range = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
    return fcntl(fd, F_OFD_GETLK, &range) == 0 && range.l_type != F_UNLCK;
}

/* In QEMU's words, which scripts know, and with the process that a person would look for. */
static bool fail_held(int fd, const char *path, unsigned bit, unsigned byte, GError **err)
{
    g_autofree char *holder = block_lock_holder(fd, byte);
    return lodge_fail(err, LODGE_ERROR_BUSY,
                      "Failed to get %s\"%s\" lock\nIs another process using the image [%s]?%s%s%s",
                      byte < LOCK_FORBIDDEN_BASE ? "shared " : "", lock_names[bit], path,
                      holder ? BLOCK_LOCK_HOLDER_WORDS : "", holder ? holder : "",
                      holder ? "." : "");
}

bool block_lock(int fd, const char *path, unsigned used, unsigned forbidden, GError **err)
{
    for (unsigned i = 0; i < LOCK_BITS; i++) {
        int error = 0;
        if (used & (1u << i))
            error = lock_byte(fd, F_RDLCK, LOCK_USED_BASE + i);
        if (!error && (forbidden & (1u << i)))
            error = lock_byte(fd, F_RDLCK, LOCK_FORBIDDEN_BASE + i);
        /* A file system without locks: as QEMU, go on without. */
        if (error == EINVAL || error == ENOLCK || error == ENOSYS || error == ENOTSUP)
            return true;
        if (error) {
            unlock_all(fd);
            return lodge_fail_errno(err, error, "%s: cannot take the \"%s\" lock", path, lock_names[i]);
        }
    }
    for (unsigned i = 0; i < LOCK_BITS; i++) {
        if ((used & (1u << i)) && byte_held(fd, LOCK_FORBIDDEN_BASE + i)) {
            unlock_all(fd);
            return fail_held(fd, path, i, LOCK_FORBIDDEN_BASE + i, err);
        }
        if ((forbidden & (1u << i)) && byte_held(fd, LOCK_USED_BASE + i)) {
            unlock_all(fd);
            return fail_held(fd, path, i, LOCK_USED_BASE + i, err);
        }
    }
    return true;
}

bool block_lock_no_readers(int fd, const char *path, GError **err)
{
    if (lock_byte(fd, F_RDLCK, LOCK_FORBIDDEN_BASE)) /* as above: go on without */
        return true;
    if (!byte_held(fd, LOCK_USED_BASE))
        return true;
    block_lock_readers(fd);
    return fail_held(fd, path, 0, LOCK_USED_BASE, err);
}

void block_lock_readers(int fd)
{
    lock_byte(fd, F_UNLCK, LOCK_FORBIDDEN_BASE);
}
