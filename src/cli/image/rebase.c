/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "cli/image/image.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK (2u << 20)
#define UNIT  512u /* what differs is found and written in these */

typedef struct Rebase {
    const char *backing, *backing_format; /* -b; NULL: not given, "": none */
    bool unsafe, compress;
    BlockNode *node, *before, *after; /* the image, its old and new backing images (NULL: none) */
    bool shares;                      /* @after is in the image's chain: */
    unsigned depth;                   /* so many images below it */
    uint8_t *old_bytes, *new_bytes;
    uint64_t chunk;
} Rebase;

/* What a backing image (or none) has at @offset; past its end all is zero. */
static int read_backing(BlockNode *backing, uint64_t offset, uint8_t *bytes, uint64_t length)
{
    uint64_t size = backing ? block_size(backing) : 0;
    uint64_t inside = offset < size ? MIN(length, size - offset) : 0;
    struct iovec iov = {bytes, inside};
    memset(bytes + inside, 0, length - inside);
    return inside ? block_readv(backing, offset, &iov, 1) : 0;
}

static bool all_zero(const uint8_t *bytes, uint64_t length)
{
    return bytes[0] == 0 && !memcmp(bytes, bytes + 1, length - 1);
}

/*
 * Without an old backing image a format may take what is not there for zeroes already; under the
 * new one it has to be there.
 */
static int write_zeroes(Rebase *r, uint64_t offset, uint8_t *bytes, uint64_t length)
{
    int result = block_write_zeroes(r->node, offset, length, 0);
    while (length > 0 && result == 0) {
        BlockExtent extent;
        result = block_status(r->node, offset, length, &extent);
        uint64_t part = result < 0 ? 0 : MIN(length, extent.length);
        struct iovec iov = {bytes, part};
        if (result >= 0)
            result = extent.present ? 0 : block_writev(r->node, offset, &iov, 1, 0);
        offset += part;
        bytes += part;
        length -= part;
    }
    return result;
}

static int write_bytes(Rebase *r, uint64_t offset, uint8_t *bytes, uint64_t length)
{
    struct iovec iov = {bytes, length};
    if (r->compress && !all_zero(bytes, length))
        return block_write_compressed(r->node, offset, bytes, length);
    return all_zero(bytes, length) ? write_zeroes(r, offset, bytes, length)
                                   : block_writev(r->node, offset, &iov, 1, 0);
}

/* Writes into the image what the two backing images do not have in common. */
static int keep_differences(Rebase *r, uint64_t offset, uint64_t length)
{
    uint64_t unit = r->compress ? r->chunk : UNIT;
    for (uint64_t at = 0; at < length;) {
        uint64_t end = at;
        bool differs = memcmp(r->old_bytes + at, r->new_bytes + at, MIN(unit, length - at)) != 0;
        do {
            end = MIN(end + unit, length);
        } while (end < length && !r->compress &&
                 differs == (memcmp(r->old_bytes + end, r->new_bytes + end,
                                    MIN(unit, length - end)) != 0));
        int result = differs ? write_bytes(r, offset + at, r->old_bytes + at, end - at) : 0;
        if (result < 0)
            return image_fail("Error while writing to COW image: %s", g_strerror(-result));
        at = end;
    }
    return 0;
}

/* One run: what the image has itself, or shares with the new backing image, stays. */
static int keep_run(Rebase *r, uint64_t offset, uint64_t *length)
{
    BlockExtent extent;
    unsigned depth;
    int result = block_status(r->node, offset, *length, &extent);
    if (result < 0)
        return image_fail("error while reading image metadata: %s", g_strerror(-result));
    *length = MIN(*length, extent.length);
    if (extent.present)
        return 0;
    if (r->shares) {
        result = block_status_chain(r->node, offset, *length, &extent, &depth);
        if (result < 0)
            return image_fail("error while reading image metadata: %s", g_strerror(-result));
        *length = MIN(*length, extent.length);
        if (extent.present && depth >= r->depth)
            return 0;
    }
    if (read_backing(r->before, offset, r->old_bytes, *length) < 0)
        return image_fail("error while reading from old backing file");
    if (read_backing(r->after, offset, r->new_bytes, *length) < 0)
        return image_fail("error while reading from new backing file");
    return keep_differences(r, offset, *length);
}

static int keep_content(Rebase *r)
{
    uint64_t size = block_size(r->node);
    g_autofree uint8_t *old_bytes = g_malloc(CHUNK), *new_bytes = g_malloc(CHUNK);
    r->old_bytes = old_bytes;
    r->new_bytes = new_bytes;
    r->chunk = r->compress ? MIN(block_cluster_size(r->node), CHUNK) : CHUNK;
    if (r->chunk == 0)
        return image_fail("Compression not supported for this file format");
    for (uint64_t at = 0; at < size;) {
        uint64_t length = MIN(r->chunk, size - at);
        if (keep_run(r, at, &length))
            return 1;
        at += length;
        if (!image_progress_step(NULL, at, size))
            return image_fail("interrupted; the image still has its old backing file");
    }
    return 0;
}

/* The new backing image: one of the chain, or another file. */
static int find_after(Rebase *r, const ImageArguments *a)
{
    g_autoptr(GError) error = NULL;
    if (!*r->backing)
        return 0;
    g_autofree char *path = block_reference_path(block_path(r->node), r->backing);
    unsigned depth = 1;
    for (BlockNode *n = block_backing(r->node); n; n = block_backing(n), depth++) {
        if (strcmp(block_path(n), path))
            continue;
        r->after = block_ref(n);
        r->shares = true;
        r->depth = depth;
        return 0;
    }
    BlockOpen open = {.path = path,
                      .format = r->backing_format,
                      .read_only = true,
                      .shared = a->shared,
                      .objects = a->objects};
    r->after = block_open(&open, &error);
    return r->after
               ? 0
               : image_fail("Could not open new backing file '%s': %s", r->backing, error->message);
}

static int change_backing(Rebase *r)
{
    g_autoptr(GError) error = NULL;
    bool none = !r->backing || !*r->backing;
    if (!none && !r->backing_format)
        return image_fail("Could not change the backing file to '%s': backing format must be "
                          "specified",
                          r->backing);
    if (block_set_backing(r->node, none ? NULL : r->backing, none ? NULL : r->backing_format,
                          &error))
        return 0;
    return image_fail("Could not change the backing file to '%s': %s", r->backing ? r->backing : "",
                      error->message);
}

static int rebase(Rebase *r, const ImageArguments *a)
{
    if (r->backing_format && !block_format_exists(r->backing_format))
        return image_fail("Invalid format name: '%s'", r->backing_format);
    if (r->unsafe)
        return change_backing(r);
    r->before = block_backing(r->node);
    if (find_after(r, a) || keep_content(r))
        return 1;
    int result = block_flush(r->node);
    if (result < 0)
        return image_fail("Error while writing to COW image: %s", g_strerror(-result));
    return change_backing(r);
}

static ImageApplied apply(void *opaque, int key, const char *value)
{
    Rebase *r = opaque;
    switch (key) {
    case 'b':
        r->backing = value;
        return IMAGE_APPLIED;
    case 'F':
    case 'B':
        r->backing_format = value;
        return IMAGE_APPLIED;
    case 'u':
        r->unsafe = true;
        return IMAGE_APPLIED;
    case 'c':
        r->compress = true;
        return IMAGE_APPLIED;
    default:
        return IMAGE_NOT_MINE;
    }
}

static const ImageOption options[] = {
    IMAGE_OPTION_HELP,
    IMAGE_OPTION_OBJECT,
    IMAGE_OPTION_IMAGE_OPTS,
    IMAGE_OPTION_SHARE,
    IMAGE_OPTION_QUIET,
    IMAGE_OPTION_FORMAT,
    IMAGE_OPTION_CACHE,
    IMAGE_OPTION_SOURCE_CACHE,
    IMAGE_OPTION_PROGRESS,
    {'u', NULL, NULL, "only write the new name; both backing files are known to be equal"},
    {'c', "compress", NULL, "compress what has to be copied into the image"},
    {'b', NULL, "BACKING_FILE", "the new backing file; an empty name: none any more"},
    {'F', NULL, "BACKING_FMT", "format of the new backing file"},
    {0, NULL, NULL, NULL},
};

static int run(int argc, char **argv)
{
    g_auto(ImageArguments) a = {0};
    Rebase r = {0};
    int status;
    if (!image_parse(options, argc, argv, &a, apply, &r, &status))
        return status;
    if (a.n_names != 1)
        return image_usage("Expecting one image file name");
    if (!r.unsafe && !r.backing)
        return image_usage("Must specify backing file (-b) or use unsafe mode (-u)");
    image_progress_begin(a.progress);
    ImageOpen open = {.format = a.format,
                      .write = true,
                      .no_backing = r.unsafe,
                      .image_opts = a.image_opts,
                      .cache = a.cache,
                      .objects = a.objects};
    if (a.source_cache && !image_cache_known(a.source_cache, true))
        return image_progress_end(false), 1;
    r.node = image_open(a.names[0], &open);
    status = r.node ? rebase(&r, &a) : 1;
    image_progress_end(status == 0);
    block_unref(r.after);
    block_unref(r.node);
    return status;
}

const ImageCommand image_rebase_command = {
    .name = "rebase",
    .run = run,
    .usage = "[--object objectdef] [--image-opts] [-U] [-q] [-f fmt] [-t cache] [-T src_cache] "
             "[-p] [-u] [-c] -b backing_file [-F backing_fmt] filename",
    .options = options,
};
