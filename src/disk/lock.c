/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "disk/lock.h"

#include "base/error.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define LOCK_USED_BASE      100
#define LOCK_FORBIDDEN_BASE 200
#define LOCK_BITS           4

static const char *const lock_names[LOCK_BITS] = {"read", "write", "write unchanged", "resize"};

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

/* One /proc/PID/fdinfo/FD: does it show a lock on @byte of the inode written "maj:min:ino"? */
static bool fdinfo_holds(const char *path, const char *inode, unsigned byte)
{
    g_autofree char *text = NULL;
    if (!g_file_get_contents(path, &text, NULL, NULL))
        return false;
    g_auto(GStrv) lines = g_strsplit(text, "\n", 256);
    for (char **line = lines; *line; line++) {
        char id[64];
        unsigned long long first, last;
        if (sscanf(*line, "lock: %*s %*s %*s %*s %*s %63s %llu %llu", id, &first, &last) == 3 &&
            !strcmp(id, inode) && first <= byte && byte <= last)
            return true;
    }
    return false;
}

/*
 * The process holding @byte. /proc/locks gives no pid for open-file-description locks, but the
 * fdinfo files of the processes we may look into do. 0 when not found.
 */
static int find_holder(int fd, unsigned byte)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return 0;
    g_autofree char *inode = g_strdup_printf("%02x:%02x:%lu", major(st.st_dev), minor(st.st_dev),
                                             (unsigned long)st.st_ino);
    g_autoptr(GDir) proc = g_dir_open("/proc", 0, NULL);
    const char *pid;
    while (proc && (pid = g_dir_read_name(proc))) {
        if (!g_ascii_isdigit(pid[0]))
            continue;
        g_autofree char *folder = g_strdup_printf("/proc/%s/fdinfo", pid);
        g_autoptr(GDir) fds = g_dir_open(folder, 0, NULL);
        const char *name;
        bool self = (pid_t)atoi(pid) == getpid();
        while (fds && (name = g_dir_read_name(fds))) {
            if (self && atoi(name) == fd)
                continue;
            g_autofree char *file = g_strdup_printf("%s/%s", folder, name);
            if (fdinfo_holds(file, inode, byte))
                return atoi(pid);
        }
    }
    return 0;
}

static bool fail_held(int fd, const char *path, unsigned bit, unsigned byte, GError **err)
{
    int pid = find_holder(fd, byte);
    g_autofree char *command = NULL;
    g_autofree char *who = NULL;
    if (pid > 0) {
        g_autofree char *comm = g_strdup_printf("/proc/%d/comm", pid);
        if (g_file_get_contents(comm, &command, NULL, NULL))
            g_strchomp(command);
        who = g_strdup_printf("process %d (%s)", pid, command ? command : "?");
    }
    return lodge_fail(err, LODGE_ERROR_BUSY,
                      "%s: the image is in use by %s: failed to get \"%s\" lock", path,
                      who ? who : "another process", lock_names[bit]);
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
            return fail_held(fd, path, i, LOCK_USED_BASE + i, err);
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
