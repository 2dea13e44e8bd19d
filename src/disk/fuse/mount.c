/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The life of a mount: made, served by threads that take requests from one descriptor, ended. */
#include "disk/fuse/mount.h"

#include "base/error.h"
#include "disk/fuse/private.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

/* Wakes a thread that waits for a request. */
#define WAKE    SIGUSR2
#define WAKE_US 5000

static void woken(int signal_number)
{
}

/* A server that died leaves a mount that answers nothing but ENOTCONN. */
static void remove_dead(const char *path)
{
    if (umount2(path, MNT_DETACH) == 0)
        return;
    const char *const argv[] = {"fusermount3", "-u", "-z", "-q", "--", path, NULL};
    g_spawn_sync(NULL, (char **)argv, NULL,
                 G_SPAWN_SEARCH_PATH | G_SPAWN_STDOUT_TO_DEV_NULL | G_SPAWN_STDERR_TO_DEV_NULL,
                 NULL, NULL, NULL, NULL, NULL, NULL);
}

static bool check_place(DiskMount *m, GError **err)
{
    struct stat st;
    int result = stat(m->path, &st);
    if (result < 0 && errno == ENOTCONN) {
        remove_dead(m->path);
        result = stat(m->path, &st);
    }
    if (result < 0)
        return lodge_fail(err, LODGE_ERROR_NOT_FOUND,
                          "cannot mount on '%s': %s (it must be a file or a folder)", m->path,
                          g_strerror(errno));
    if (!S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode))
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "cannot mount on '%s': neither a regular file nor a folder", m->path);
    m->folder = S_ISDIR(st.st_mode);
    return true;
}

static void set_up(DiskMount *m, const DiskMountConfig *config)
{
    m->node = block_ref(config->node);
    m->path = g_canonicalize_filename(config->path, NULL);
    m->name = g_strdup(config->name);
    m->read_only = config->read_only || block_read_only(config->node);
    m->growable = config->growable;
    m->log = config->log;
    m->opaque = config->opaque;
    m->ended = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    m->attributes.st_mode = S_IFREG | (m->read_only ? 0400 : 0600);
    m->attributes.st_uid = geteuid();
    m->attributes.st_gid = getegid();
    clock_gettime(CLOCK_REALTIME, &m->attributes.st_mtim);
    m->attributes.st_atim = m->attributes.st_ctim = m->attributes.st_mtim;
    g_rw_lock_init(&m->resize);
    g_mutex_init(&m->lock);
}

static void tear_down(DiskMount *m)
{
    block_unref(m->node);
    if (m->ended >= 0)
        close(m->ended);
    g_rw_lock_clear(&m->resize);
    g_mutex_clear(&m->lock);
    g_free(m->path);
    g_free(m->name);
    g_free(m);
}

/* A comma in the image's name would begin another option. */
static char *mount_options(const DiskMount *m, bool allow_other)
{
    g_autofree char *source = g_strdup(block_path(m->node));
    g_strdelimit(source, ",\\\n", '_');
    return g_strdup_printf("fsname=%s,subtype=lodge%s%s", source, m->read_only ? ",ro" : "",
                           allow_other ? ",allow_other,default_permissions" : "");
}

static bool mount_it(DiskMount *m, bool allow_other, GError **err)
{
    g_autofree char *options = mount_options(m, allow_other);
    char *argv[] = {(char *)"lodge", (char *)"-o", options, NULL};
    struct fuse_args args = {3, argv, 0};
    m->session =
        m->fuse->session_new(&args, &disk_mount_operations, sizeof(disk_mount_operations), m);
    m->fuse->opt_free_args(&args);
    if (!m->session)
        return lodge_fail(err, LODGE_ERROR_IO, "cannot begin a FUSE session");
    if (m->fuse->session_mount(m->session, m->path) == 0)
        return true;
    m->fuse->session_destroy(m->session);
    return lodge_fail(err, LODGE_ERROR_IO, "cannot mount on '%s'%s", m->path,
                      access("/dev/fuse", F_OK) < 0 ? ": there is no /dev/fuse" : "");
}

DiskMount *disk_mount_new(const DiskMountConfig *config, GError **err)
{
    const FuseLibrary *fuse = fuse_library(err);
    if (!fuse)
        return NULL;
    DiskMount *m = g_new0(DiskMount, 1);
    m->fuse = fuse;
    set_up(m, config);
    if (check_place(m, err) && mount_it(m, config->allow_other, err))
        return m;
    tear_down(m);
    return NULL;
}

static void *serve(void *data)
{
    DiskMount *m = data;
    struct fuse_buf buffer = {.mem = NULL};
    while (!m->fuse->session_exited(m->session)) {
        int got = m->fuse->session_receive_buf(m->session, &buffer);
        if (got > 0)
            m->fuse->session_process_buf(m->session, &buffer);
        else if (got != -EINTR && got != -EAGAIN)
            break;
    }
    free(buffer.mem);
    /* One that cannot go on ends all: a mount must not be half served. */
    m->fuse->session_exit(m->session);
    uint64_t one = 1;
    ssize_t put = write(m->ended, &one, sizeof(one));
    (void)put; /* it can only be full of news */
    g_atomic_int_add(&m->running, -1);
    return NULL;
}

bool disk_mount_start(DiskMount *m, int *fd, GError **err)
{
    struct sigaction action = {.sa_handler = woken}; /* no SA_RESTART: it interrupts */
    sigaction(WAKE, &action, NULL);
    for (m->n_threads = 0; m->n_threads < MOUNT_THREADS; m->n_threads++) {
        g_atomic_int_inc(&m->running);
        int result = pthread_create(&m->threads[m->n_threads], NULL, serve, m);
        if (result != 0) {
            g_atomic_int_add(&m->running, -1);
            return lodge_fail(err, LODGE_ERROR_IO, "cannot start a thread: %s", g_strerror(result));
        }
    }
    *fd = m->ended;
    return true;
}

/* Pages that users have changed through a mapping are still the kernel's. */
static void fetch_dirty(const DiskMount *m)
{
    g_autofree char *file =
        m->folder ? g_build_filename(m->path, m->name, NULL) : g_strdup(m->path);
    int fd = m->read_only ? -1 : open(file, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return;
    fsync(fd);
    close(fd);
}

static void stop(DiskMount *m)
{
    if (m->n_threads && !m->fuse->session_exited(m->session))
        fetch_dirty(m);
    m->fuse->session_exit(m->session);
    /* A signal that comes just before the wait is lost: again, until they are gone. */
    while (g_atomic_int_get(&m->running) > 0) {
        for (unsigned i = 0; i < m->n_threads; i++)
            pthread_kill(m->threads[i], WAKE);
        g_usleep(WAKE_US);
    }
    for (unsigned i = 0; i < m->n_threads; i++)
        pthread_join(m->threads[i], NULL);
}

int disk_mount_free(DiskMount *m)
{
    if (!m)
        return 0;
    stop(m);
    m->fuse->session_unmount(m->session);
    m->fuse->session_destroy(m->session);
    int result = m->read_only ? 0 : block_flush(m->node);
    tear_down(m);
    return result;
}
