/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* An image as a raw file in the file system. docs/mount.md */
#include "cli/image/serve.h"

#include "disk/fuse/mount.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

enum {
    MOUNT_FORK = IMAGE_OWN,
    MOUNT_PID_FILE,
    MOUNT_ALLOW_OTHER,
    MOUNT_GROWABLE,
    MOUNT_CACHE,
};

typedef struct Mount {
    ImageArguments arguments;
    const char *name, *pid_file, *cache;
    bool read_only, allow_other, growable, fork;
} Mount;

static ImageApplied apply(void *opaque, int key, const char *value)
{
    Mount *m = opaque;
    switch (key) {
    case 'r':
        m->read_only = true;
        return IMAGE_APPLIED;
    case 'x':
        m->name = value;
        return IMAGE_APPLIED;
    case MOUNT_FORK:
        m->fork = true;
        return IMAGE_APPLIED;
    case MOUNT_PID_FILE:
        m->pid_file = value;
        return IMAGE_APPLIED;
    case MOUNT_ALLOW_OTHER:
        m->allow_other = true;
        return IMAGE_APPLIED;
    case MOUNT_GROWABLE:
        m->growable = true;
        return IMAGE_APPLIED;
    case MOUNT_CACHE:
        m->cache = value;
        return image_cache_known(value, false) ? IMAGE_APPLIED : IMAGE_REFUSED;
    default:
        return IMAGE_NOT_MINE;
    }
}

static void mount_log(void *opaque, const char *text)
{
    image_fail("%s", text);
}

/* What ends it; blocked before there are threads, so that none of them gets them. */
static int signals_fd(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    return signalfd(-1, &set, SFD_CLOEXEC);
}

static bool write_pid(const char *path)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *text = g_strdup_printf("%d\n", (int)getpid());
    return !path || g_file_set_contents(path, text, -1, &error) ||
           (image_fail("cannot write the process id: %s", error->message), false);
}

/* Until a signal, or somebody unmounts it. */
static int serve_until(DiskMount *mount, int signals, const Mount *m, ServeBackground *background)
{
    g_autoptr(GError) error = NULL;
    int ended;
    if (!disk_mount_start(mount, &ended, &error))
        return image_fail("%s", error->message);
    if (!write_pid(m->pid_file))
        return 1;
    serve_is_ready(background);
    struct pollfd fds[] = {{.fd = ended, .events = POLLIN}, {.fd = signals, .events = POLLIN}};
    while (poll(fds, G_N_ELEMENTS(fds), -1) < 0 && errno == EINTR)
        ;
    if (m->pid_file)
        unlink(m->pid_file);
    return 0;
}

static int mount_image(Mount *m, ServeBackground *background)
{
    const char *image = m->arguments.names[0];
    ImageOpen open = {.format = m->arguments.format,
                      .write = !m->read_only,
                      .cache = m->cache,
                      .image_opts = m->arguments.image_opts,
                      .objects = m->arguments.objects};
    g_autofree char *base = g_path_get_basename(image);
    bool plain = !m->arguments.image_opts && !strchr(image, ':');
    DiskMountConfig config = {.path = m->arguments.names[1],
                              .name = m->name ? m->name
                                      : plain ? base
                                              : "disk",
                              .read_only = m->read_only,
                              .growable = m->growable,
                              .allow_other = m->allow_other,
                              .log = mount_log};
    g_autoptr(GError) error = NULL;
    int signals = signals_fd();
    if (strchr(config.name, '/') || !*config.name || !strcmp(config.name, ".") ||
        !strcmp(config.name, ".."))
        return image_fail("'%s' cannot be a file's name (-x)", config.name);
    g_autoptr(BlockNode) node = image_open(image, &open);
    if (!node)
        return 1;
    config.node = node;
    DiskMount *mount = disk_mount_new(&config, &error);
    if (!mount)
        return image_fail("%s", error->message);
    int status = serve_until(mount, signals, m, background);
    int result = disk_mount_free(mount);
    close(signals);
    if (result < 0)
        return image_fail("cannot flush the image: %s", g_strerror(-result));
    return status;
}

static const ImageOption options[] = {
    IMAGE_OPTION_HELP,
    IMAGE_OPTION_OBJECT,
    IMAGE_OPTION_IMAGE_OPTS,
    IMAGE_OPTION_FORMAT,
    {'r', "read-only", NULL, "let nobody write"},
    {'x', "export-name", "NAME", "the file's name in a folder; else the image's"},
    {MOUNT_GROWABLE, "growable", NULL, "truncate and writes past the end change the disk's size"},
    {MOUNT_ALLOW_OTHER, "allow-other", NULL, "let other users in, as the file's mode has it"},
    {MOUNT_CACHE, "cache", "CACHE", "cache mode of the image"},
    {MOUNT_FORK, "fork", NULL, "come back once it is mounted"},
    {MOUNT_PID_FILE, "pid-file", "PATH", "write the process id there"},
    {0, NULL, NULL, NULL},
};

static int run(int argc, char **argv)
{
    Mount m = {.name = NULL};
    ServeBackground background = {-1, -1};
    int status;
    if (image_parse(options, argc, argv, &m.arguments, apply, &m, &status)) {
        if (m.arguments.n_names != 2)
            status = image_usage("Expecting an image and where to mount it");
        else if (m.fork && !serve_fork(&background, false))
            status = 1;
        else
            status = mount_image(&m, &background);
    }
    image_arguments_clear(&m.arguments);
    return status;
}

const ImageCommand image_mount_command = {
    .name = "mount",
    .run = run,
    .usage = "[--object objectdef] [--image-opts] [-f fmt] [-r] [-x name] [--growable] "
             "[--allow-other] [--cache=cache] [--fork] [--pid-file path] filename mountpoint",
    .options = options,
};
