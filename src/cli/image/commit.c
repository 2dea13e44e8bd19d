/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "cli/image/image.h"

#include "base/error.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK (2u << 20)

typedef struct Commit {
    const char *base;        /* -b; NULL: the backing file */
    bool drop;               /* leave the image as it is */
    uint64_t rate;           /* bytes a second; 0: any */
    BlockNode *top, *target; /* the image, and the base opened for writing */
    unsigned depth;          /* the base is so many images below the top */
    int64_t start_us;
} Commit;

/* Does the name @base, written in or beside the image at @overlay, mean the image at @path? */
static bool names_image(const char *base, const char *overlay, const char *path)
{
    g_autofree char *full = block_reference_path(overlay, base);
    g_autofree char *real = realpath(full, NULL), *here = realpath(path, NULL);
    return strchr(base, ':') ? !strcmp(path, base) : real && here && !strcmp(real, here);
}

/*
 * How far below @top the image is that the person calls @base; 0: it is not there. As for QEMU, a
 * relative name is meant from where the images of the chain are.
 */
static unsigned find_base(BlockNode *top, const char *base)
{
    unsigned depth = 1;
    for (BlockNode *over = top, *n; (n = block_backing(over)); over = n, depth++) {
        if (names_image(base, block_path(over), block_path(n)))
            return depth;
    }
    return 0;
}

static BlockNode *below(BlockNode *node, unsigned depth)
{
    while (depth--)
        node = block_backing(node);
    return node;
}

/* Not faster than -r says. */
static void pace(const Commit *c, uint64_t done)
{
    if (!c->rate)
        return;
    int64_t due = c->start_us + (int64_t)((double)done / (double)c->rate * 1e6);
    int64_t now = g_get_monotonic_time();
    if (due > now)
        g_usleep((gulong)(due - now));
}

/* Up to *length bytes at @at that a layer above the base has; *length: how many were seen. */
static int copy_run(Commit *c, uint64_t at, uint64_t *length, uint8_t *buffer)
{
    BlockExtent extent;
    unsigned depth;
    int result = block_status_chain(c->top, at, *length, &extent, &depth);
    if (result < 0)
        return result;
    *length = MIN(*length, extent.length);
    /* Past the end of a layer above the base there are zeroes; past the base's end it has them. */
    if (depth >= c->depth || (!extent.present && depth + 1 >= c->depth))
        return 0;
    if (extent.zero)
        return block_write_zeroes(c->target, at, *length, BLOCK_UNMAP);
    struct iovec iov = {buffer, *length};
    result = block_readv(c->top, at, &iov, 1);
    return result < 0 ? result : block_writev(c->target, at, &iov, 1, 0);
}

static bool copy_down(Commit *c, GError **err)
{
    uint64_t size = block_size(c->top);
    g_autofree uint8_t *buffer = g_malloc(CHUNK);
    if (block_size(c->target) < size && !block_resize(c->target, &(BlockResize){.size = size}, err))
        return false;
    c->start_us = g_get_monotonic_time();
    for (uint64_t at = 0; at < size;) {
        uint64_t length = MIN(CHUNK, size - at);
        int result = copy_run(c, at, &length, buffer);
        if (result < 0)
            return lodge_fail_errno(err, -result, "Block job failed");
        at += length;
        if (!image_progress_step(NULL, at, size))
            return lodge_fail(err, LODGE_ERROR_CANCELLED,
                              "interrupted; the image still has everything, commit it again");
        pace(c, at);
    }
    int result = block_flush(c->target);
    return result == 0 || lodge_fail_errno(err, -result, "Block job failed");
}

/*
 * The image once more, on a base that is open for writing elsewhere: the chain's own view of it
 * takes no lock.
 */
static BlockNode *reopen_above(const ImageOpen *open, const char *path, unsigned depth,
                               GError **err)
{
    json_t *tree = json_pack("{s:b}", "force-share", 1);
    for (unsigned i = 0; i < depth; i++)
        tree = json_pack("{s:o}", "backing", tree);
    json_auto_t *options = tree;
    if (open->image_opts) {
        json_auto_t *own = image_options_tree(path, false, err);
        if (!own)
            return NULL;
        json_object_update_recursive(options, own);
    }
    BlockOpen again = {.path = open->image_opts ? NULL : path,
                       .options = options,
                       .format = open->format,
                       .discard_unmap = true,
                       .direct = image_cache_direct(open->cache),
                       .no_flush = !g_strcmp0(open->cache, "unsafe"),
                       .objects = open->objects};
    return block_open(&again, err);
}

/* What --image-opts says about the base: how it is opened, its secrets. NULL: nothing. */
static json_t *base_options(const Commit *c, const ImageOpen *open, const char *path)
{
    if (!open->image_opts)
        return NULL;
    json_auto_t *tree = image_options_tree(path, false, NULL);
    json_t *base = tree;
    for (unsigned i = 0; i < c->depth; i++)
        base = json_object_get(base, "backing");
    return json_is_object(base) ? json_incref(base) : NULL;
}

static bool open_both(Commit *c, const ImageOpen *open, const char *path, GError **err)
{
    BlockNode *base = below(c->top, c->depth);
    g_autofree char *base_path = g_strdup(block_path(base));
    json_auto_t *options = base_options(c, open, path);
    bool file = block_option_given(options, "file") || block_option_given(options, "filename");
    /* A base that was probed is probed again: as a raw one that is known for sure it would take a
     * header of another format, which whoever opens it next would believe. */
    bool probe = block_option_given(options, "driver") || block_probed_raw(base);
    BlockOpen write = {.path = file ? NULL : base_path,
                       .options = options,
                       .format = probe ? NULL : block_format(base),
                       .discard_unmap = true,
                       .direct = image_cache_direct(open->cache),
                       .no_flush = !g_strcmp0(open->cache, "unsafe"),
                       .objects = open->objects};
    if (!file && g_str_has_prefix(base_path, "json:"))
        write.format = NULL;
    g_clear_pointer(&c->top, block_unref);
    c->target = block_open(&write, err);
    if (c->target)
        c->top = reopen_above(open, path, c->depth, err);
    return c->top != NULL;
}

static bool commit(Commit *c, const ImageOpen *open, const char *path, GError **err)
{
    c->depth = c->base ? find_base(c->top, c->base) : block_backing(c->top) ? 1 : 0;
    if (!c->depth && c->base)
        return lodge_fail(err, LODGE_ERROR_NOT_FOUND,
                          "Did not find '%s' in the backing chain of '%s'", c->base, path);
    if (!c->depth)
        return lodge_fail(err, LODGE_ERROR_INVALID, "Image does not have a backing file");
    if (!open_both(c, open, path, err) || !copy_down(c, err))
        return false;
    g_autoptr(GError) cause = NULL;
    if (c->drop || block_make_empty(c->top, &cause) || cause->code == LODGE_ERROR_UNSUPPORTED)
        return true;
    g_propagate_error(err, g_steal_pointer(&cause));
    return false;
}

static ImageApplied apply(void *opaque, int key, const char *value)
{
    Commit *c = opaque;
    switch (key) {
    case 'b':
        c->base = value;
        c->drop = true;
        return IMAGE_APPLIED;
    case 'd':
        c->drop = true;
        return IMAGE_APPLIED;
    case 'r':
        return image_parse_number("rate limit", value, 0, INT64_MAX, &c->rate) ? IMAGE_APPLIED
                                                                               : IMAGE_REFUSED;
    default:
        return IMAGE_NOT_MINE;
    }
}

static const ImageOption options[] = {
    IMAGE_OPTION_HELP,
    IMAGE_OPTION_OBJECT,
    IMAGE_OPTION_IMAGE_OPTS,
    IMAGE_OPTION_QUIET,
    IMAGE_OPTION_FORMAT,
    IMAGE_OPTION_CACHE,
    {'b', NULL, "BASE", "the image of the chain that takes the changes; implies -d"},
    {'r', NULL, "RATE_LIMIT", "bytes a second at most"},
    {'d', NULL, NULL, "do not empty the image afterwards"},
    IMAGE_OPTION_PROGRESS,
    {0, NULL, NULL, NULL},
};

static int run(int argc, char **argv)
{
    g_auto(ImageArguments) a = {0};
    g_autoptr(GError) error = NULL;
    Commit c = {0};
    int status;
    if (!image_parse(options, argc, argv, &a, apply, &c, &status))
        return status;
    if (a.n_names != 1)
        return image_usage("Expecting one image file name");
    ImageOpen open = {.format = a.format,
                      .write = true,
                      .image_opts = a.image_opts,
                      .cache = a.cache,
                      .objects = a.objects};
    c.top = image_open(a.names[0], &open);
    if (!c.top)
        return 1;
    image_progress_begin(a.progress);
    bool ok = commit(&c, &open, a.names[0], &error);
    image_progress_end(ok);
    block_unref(c.top);
    block_unref(c.target);
    if (!ok)
        return image_fail("%s", error->message);
    if (!a.quiet)
        printf("Image committed.\n");
    return 0;
}

const ImageCommand image_commit_command = {
    .name = "commit",
    .run = run,
    .usage = "[--object objectdef] [--image-opts] [-q] [-f fmt] [-t cache] [-b base] "
             "[-r rate_limit] [-d] [-p] filename",
    .options = options,
};
