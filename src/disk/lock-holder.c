/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Who holds a lock on an image, for a message that a person can act on. */
#include "disk/lock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

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
 * /proc/locks gives no pid for open-file-description locks, but the fdinfo files of the processes we
 * may look into do.
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
            g_autofree char *file = g_strdup_printf("%s/%s", folder, name);
            if ((!self || atoi(name) != fd) && fdinfo_holds(file, inode, byte))
                return atoi(pid);
        }
    }
    return 0;
}

char *block_lock_holder(int fd, unsigned byte)
{
    int pid = find_holder(fd, byte);
    g_autofree char *file = g_strdup_printf("/proc/%d/comm", pid);
    g_autofree char *command = NULL;
    if (pid == 0)
        return NULL;
    if (g_file_get_contents(file, &command, NULL, NULL))
        g_strchomp(command);
    return g_strdup_printf("process %d (%s)", pid, command ? command : "?");
}
