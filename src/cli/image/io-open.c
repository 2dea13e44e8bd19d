/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Opening, reopening and closing the exerciser's image. */
#include "cli/image/io.h"

#include "base/error.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DEPTH 64

void io_open_clear(IoOpen *open)
{
    g_free(open->path);
    g_free(open->format);
    json_decref(open->options);
    *open = (IoOpen){.path = NULL};
}

void io_close(IoSession *s)
{
    io_drain(s);
    g_clear_pointer(&s->queue, block_queue_free);
    g_clear_pointer(&s->node, block_unref);
}

bool io_open_cache(IoOpen *open, const char *mode)
{
    open->direct = open->no_flush = open->writethrough = false;
    if (!strcmp(mode, "none") || !strcmp(mode, "off"))
        open->direct = true;
    else if (!strcmp(mode, "directsync"))
        open->direct = open->writethrough = true;
    else if (!strcmp(mode, "writethrough"))
        open->writethrough = true;
    else if (!strcmp(mode, "unsafe"))
        open->no_flush = true;
    else if (strcmp(mode, "writeback")) {
        image_fail("Invalid cache option: %s", mode);
        return false;
    }
    return true;
}

/*
 * -s: writes go to an image of their own that is gone with the program. Its file is in TMPDIR, as
 * QEMU's is.
 */
static BlockNode *open_snapshot(const BlockOpen *how, GError **err)
{
    g_autofree char *path = g_build_filename(g_get_tmp_dir(), "lodge-io-XXXXXX", NULL);
    BlockOpen below = *how;
    below.read_only = true;
    g_autoptr(BlockNode) base = block_open(&below, err);
    int fd = base ? g_mkstemp(path) : -1;
    if (fd < 0) {
        if (base)
            lodge_fail_errno(err, errno, "%s: cannot create the file", path);
        return NULL;
    }
    close(fd);
    g_autofree char *absolute = g_canonicalize_filename(block_path(base), NULL);
    BlockCreate create = {.path = path,
                          .format = "qcow2",
                          .size = block_size(base),
                          .backing = absolute,
                          .backing_format = block_format(base)};
    BlockOpen above = {.path = path,
                       .format = "qcow2",
                       .no_flush = true,
                       .shared = how->shared,
                       .trust_references = true,
                       .objects = how->objects};
    BlockNode *node = block_create(&create, err) ? block_open(&above, err) : NULL;
    unlink(path);
    return node;
}

static json_t *nested(const IoOpen *open, GError **err)
{
    const char *share = block_option_string(open->options, NULL, "force-share");
    if (open->shared && share && strcmp(share, "on")) {
        lodge_fail(err, LODGE_ERROR_INVALID, "-U conflicts with image options");
        return NULL;
    }
    return block_options_nest(open->options, err);
}

bool io_open(IoSession *s)
{
    const IoOpen *open = &s->open;
    g_autoptr(GError) error = NULL;
    json_auto_t *tree = NULL;
    if (s->node) {
        image_fail("file open already, try 'help close'");
        return false;
    }
    const char *refused =
        open->copy_on_read && !open->write ? "Can't use copy-on-read on read-only device"
        : open->shared && open->write      ? "force-share=on can only be used with read-only images"
                                           : NULL;
    if (refused) {
        image_fail("can't open%s%s: %s", open->path ? " device " : "", open->path ? open->path : "",
                   refused);
        return false;
    }
    if (open->options) {
        tree = nested(open, &error);
        if (!tree) {
            image_fail("%s", error->message);
            return false;
        }
    }
    BlockOpen how = {.path = open->path,
                     .options = tree,
                     .format = open->format,
                     .read_only = !open->write,
                     .shared = open->shared,
                     .direct = open->direct,
                     .no_flush = open->no_flush,
                     .discard_unmap = open->discard_unmap,
                     .objects = s->objects};
    s->node = open->snapshot ? open_snapshot(&how, &error) : block_open(&how, &error);
    image_warn_probed(s->node);
    if (s->node)
        s->queue = block_queue_new(s->node, DEPTH, &error);
    if (s->queue)
        return true;
    g_clear_pointer(&s->node, block_unref);
    image_fail("can't open%s%s: %s", open->path ? " device " : "", open->path ? open->path : "",
               error->message);
    return false;
}

static int add_options(IoOpen *open, const char *text)
{
    g_autoptr(GError) error = NULL;
    if (!open->options)
        open->options = json_object();
    if (block_options_parse(text, NULL, NULL, open->options, &error))
        return 0;
    image_fail("%s", error->message);
    return -EINVAL;
}

static int open_option(IoSession *s, IoOpen *open, int option)
{
    static const char *const aio[] = {"threads", "native", "io_uring", NULL};
    switch (option) {
    case 's':
        open->snapshot = true;
        return 0;
    case 'n':
        return io_open_cache(open, "none") ? 0 : -EINVAL;
    case 'C':
        open->copy_on_read = true;
        return 0;
    case 'r':
        open->write = false;
        return 0;
    case 'k':
        return 0;
    case 'i':
        if (g_strv_contains(aio, optarg))
            return 0;
        image_fail("Invalid aio option: %s", optarg);
        return -EINVAL;
    case 't':
        return io_open_cache(open, optarg) ? 0 : -EINVAL;
    case 'd':
        open->discard_unmap = !strcmp(optarg, "unmap") || !strcmp(optarg, "on");
        if (open->discard_unmap || !strcmp(optarg, "ignore") || !strcmp(optarg, "off"))
            return 0;
        image_fail("Invalid discard option: %s", optarg);
        return -EINVAL;
    case 'U':
        open->shared = true;
        return 0;
    case 'o':
        if (!s->image_opts)
            return add_options(open, optarg);
        printf("--image-opts and 'open -o' are mutually exclusive\n");
        return -EINVAL;
    default:
        return io_usage(io_command_find("open"));
    }
}

int io_open_command(IoSession *s, int argc, char **argv)
{
    IoOpen open = {.write = true, .writethrough = true, .discard_unmap = true};
    int option, result = 0;
    optind = 0;
    while (result == 0 && (option = getopt(argc, argv, "snCro:ki:t:d:U")) != -1)
        result = open_option(s, &open, option);
    if (result == 0 && optind < argc - 1)
        result = io_usage(io_command_find("open"));
    if (result == 0 && optind == argc - 1 && s->image_opts)
        result = add_options(&open, argv[optind]);
    else if (result == 0 && optind == argc - 1)
        open.path = g_strdup(argv[optind]);
    if (result == 0 && s->node) {
        image_fail("file open already, try 'help close'");
        result = -EINVAL;
    }
    if (result < 0) {
        io_open_clear(&open);
        return result;
    }
    io_open_clear(&s->open);
    s->open = open;
    return io_open(s) ? 0 : -EINVAL;
}

int io_close_command(IoSession *s, int argc, char **argv)
{
    io_close(s);
    return 0;
}

static int reopen_option(IoOpen *open, int option, bool *access)
{
    switch (option) {
    case 'c':
        return io_open_cache(open, optarg) ? 0 : -EINVAL;
    case 'o':
        return add_options(open, optarg);
    case 'r':
    case 'w':
        open->write = option == 'w';
        if (!*access) {
            *access = true;
            return 0;
        }
        image_fail("Only one -r/-w option may be given");
        return -EINVAL;
    default:
        return io_usage(io_command_find("reopen"));
    }
}

static int check_reopen(const IoOpen *open, bool access, bool cache)
{
    if (access && block_option_given(open->options, "read-only"))
        return image_fail("Cannot set both -r/-w and 'read-only'"), -EINVAL;
    if (cache && (block_option_given(open->options, "cache.direct") ||
                  block_option_given(open->options, "cache.no-flush")))
        return image_fail("Cannot set both -c and the cache options"), -EINVAL;
    return 0;
}

/* The image is closed and opened as it was, but for what is said here. */
int io_reopen_command(IoSession *s, int argc, char **argv)
{
    IoOpen open = s->open, before = s->open;
    bool access = false, cache = false;
    int option, result = 0;
    open.path = g_strdup(open.path);
    open.format = g_strdup(open.format);
    open.options = open.options ? json_deep_copy(open.options) : NULL;
    optind = 0;
    while (result == 0 && (option = getopt(argc, argv, "c:o:rw")) != -1) {
        cache = cache || option == 'c';
        result = reopen_option(&open, option, &access);
    }
    if (result == 0 && optind != argc)
        result = io_usage(io_command_find("reopen"));
    if (result == 0)
        result = check_reopen(&open, access, cache);
    if (result < 0) {
        io_open_clear(&open);
        return result;
    }
    io_close(s);
    s->open = open;
    if (io_open(s)) {
        io_open_clear(&before);
        return 0;
    }
    s->open = before;
    io_open_clear(&open);
    io_open(s);
    return -EINVAL;
}
