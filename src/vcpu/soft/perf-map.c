/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "vcpu/soft/perf-map.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

#include "base/error.h"
#include "vcpu/soft/vm.h"

#define MAP_SIZE_MAX (64u << 20)

struct SoftPerfMap {
    int fd;
    _Atomic uint64_t size; /* as far as lines were begun */
};

static char *expand(const char *path)
{
    g_auto(GStrv) pieces = g_strsplit(path, "%p", -1);
    g_autofree char *pid = g_strdup_printf("%d", (int)getpid());
    return g_strjoinv(pid, pieces);
}

SoftPerfMap *soft_perf_map_open(const char *path, GError **err)
{
    g_autofree char *name = expand(path);
    /* perf's place is /tmp, where others may have left a link of that name. */
    int fd = open(name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_APPEND | O_CLOEXEC, 0600);
    if (fd < 0) {
        lodge_fail_errno(err, errno, "cannot make the perf map '%s'", name);
        return NULL;
    }
    SoftPerfMap *map = g_new0(SoftPerfMap, 1);
    map->fd = fd;
    return map;
}

void soft_perf_map_close(SoftPerfMap *map)
{
    if (!map)
        return;
    close(map->fd);
    g_free(map);
}

/* Where the code runs: user or kernel by its privilege, and its width if that is not 64 bits. */
static const char *mode_name(uint32_t mode)
{
    if (mode & SOFT_MODE_CODE64)
        return mode & SOFT_MODE_USER ? "user" : "guest";
    if (mode & SOFT_MODE_CODE32)
        return mode & SOFT_MODE_USER ? "user32" : "guest32";
    return mode & SOFT_MODE_USER ? "user16" : "guest16";
}

void soft_perf_map_add(SoftVm *vm, const void *host, size_t size, uint64_t rip, uint64_t gpa,
                       uint32_t mode)
{
    SoftPerfMap *map = vm->perf_map;
    if (!map)
        return;
    char line[128];
    int n = snprintf(line, sizeof(line), "%" PRIxPTR " %zx %s:%" PRIx64 "@%" PRIx64 "\n",
                     (uintptr_t)host, size, mode_name(mode), rip, gpa);
    if (atomic_fetch_add(&map->size, (uint64_t)n) + (uint64_t)n > MAP_SIZE_MAX)
        return;
    /* One line a write with O_APPEND: vCPUs do not mix theirs. A full disk costs lines, not the guest. */
    if (write(map->fd, line, (size_t)n) < 0)
        return;
}
