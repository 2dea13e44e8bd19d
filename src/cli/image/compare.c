/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "cli/image/image.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define CHUNK (2u << 20)

enum { EXIT_DIFFERENT = 1, EXIT_OPEN = 2, EXIT_STATUS = 3, EXIT_READ = 4 };

typedef struct Compare {
    BlockNode *a, *b;
    const char *a_path, *b_path;
    bool strict, quiet;
    uint8_t *a_buffer, *b_buffer;
} Compare;

typedef struct Run {
    uint64_t length;
    bool present, data, zero;
} Run;

/* What is at @offset, and for how long; past the end of an image all is zero. */
static int look(BlockNode *node, uint64_t offset, uint64_t length, Run *run)
{
    BlockExtent extent;
    unsigned depth;
    *run = (Run){.length = length, .zero = true};
    if (offset >= block_size(node))
        return 0;
    int result =
        block_status_chain(node, offset, MIN(length, block_size(node) - offset), &extent, &depth);
    if (result < 0)
        return result;
    *run = (Run){extent.length, extent.present, extent.data, extent.zero};
    return 0;
}

static int read_part(BlockNode *node, const char *path, uint64_t offset, uint8_t *buffer,
                     uint64_t length)
{
    uint64_t size = block_size(node);
    uint64_t inside = offset < size ? MIN(length, size - offset) : 0;
    struct iovec iov = {buffer, inside};
    memset(buffer + inside, 0, length - inside);
    int result = inside ? block_readv(node, offset, &iov, 1) : 0;
    if (result < 0)
        image_fail("Error while reading offset %" G_GUINT64_FORMAT " of %s: %s", offset, path,
                   g_strerror(-result));
    return result;
}

static int mismatch(const Compare *c, uint64_t offset)
{
    if (!c->quiet)
        printf("Content mismatch at offset %" G_GUINT64_FORMAT "!\n", offset);
    return EXIT_DIFFERENT;
}

static int compare_data(Compare *c, uint64_t offset, uint64_t length)
{
    if (read_part(c->a, c->a_path, offset, c->a_buffer, length) < 0 ||
        read_part(c->b, c->b_path, offset, c->b_buffer, length) < 0)
        return EXIT_READ;
    if (!memcmp(c->a_buffer, c->b_buffer, length))
        return 0;
    uint64_t at = 0;
    while (c->a_buffer[at] == c->b_buffer[at])
        at++;
    return mismatch(c, offset + at - at % 512);
}

static int say_different(const Compare *c, const char *format, ...) G_GNUC_PRINTF(2, 3);

static int say_different(const Compare *c, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    if (!c->quiet)
        vprintf(format, args);
    va_end(args);
    return EXIT_DIFFERENT;
}

/* One run at @at, at most up to @end; moves *at behind it. */
static int compare_run(Compare *c, uint64_t *at, uint64_t end)
{
    Run a, b;
    if (look(c->a, *at, end - *at, &a) < 0)
        return image_fail("Sector allocation test failed for %s", c->a_path), EXIT_STATUS;
    if (look(c->b, *at, end - *at, &b) < 0)
        return image_fail("Sector allocation test failed for %s", c->b_path), EXIT_STATUS;
    uint64_t length = MIN(a.length, b.length);
    if (c->strict && (a.present != b.present || a.zero != b.zero || a.data != b.data))
        return say_different(
            c, "Strict mode: Offset %" G_GUINT64_FORMAT " block status mismatch!\n", *at);
    if (!(a.zero && b.zero)) {
        length = MIN(length, CHUNK);
        int result = compare_data(c, *at, length);
        if (result)
            return result;
    }
    *at += length;
    return 0;
}

static int compare_all(Compare *c)
{
    uint64_t a_size = block_size(c->a), b_size = block_size(c->b), total = MAX(a_size, b_size);
    uint64_t common = MIN(a_size, b_size);
    if (c->strict && a_size != b_size)
        return say_different(c, "Strict mode: Image size mismatch!\n");
    for (uint64_t at = 0; at < total;) {
        if (at == common)
            say_different(c, "Warning: Image size mismatch!\n");
        int result = compare_run(c, &at, at < common ? common : total);
        if (result)
            return result;
        if (!image_progress_step(NULL, at, total))
            return image_fail("interrupted"), EXIT_READ;
    }
    if (!c->quiet)
        printf("Images are identical.\n");
    return 0;
}

typedef struct Options {
    const char *second_format;
    bool strict;
} Options;

static ImageApplied apply(void *opaque, int key, const char *value)
{
    Options *o = opaque;
    if (key == 'F')
        o->second_format = value;
    else if (key == 's')
        o->strict = true;
    else
        return IMAGE_NOT_MINE;
    return IMAGE_APPLIED;
}

static const ImageOption options[] = {
    IMAGE_OPTION_HELP,
    IMAGE_OPTION_OBJECT,
    IMAGE_OPTION_IMAGE_OPTS,
    {'f', NULL, "FMT", "format of the first image; else it is probed"},
    {'F', NULL, "FMT", "format of the second image"},
    IMAGE_OPTION_SOURCE_CACHE,
    IMAGE_OPTION_PROGRESS,
    IMAGE_OPTION_QUIET,
    {'s', NULL, NULL, "strict: size and what is allocated must be the same too"},
    IMAGE_OPTION_SHARE,
    {0, NULL, NULL, NULL},
};

static int run(int argc, char **argv)
{
    g_auto(ImageArguments) a = {0};
    Options o = {NULL, false};
    int status;
    if (!image_parse(options, argc, argv, &a, apply, &o, &status))
        return status;
    if (a.n_names != 2)
        return image_usage("Expecting two image file names");
    Compare c = {.strict = o.strict, .quiet = a.quiet, .a_path = a.names[0], .b_path = a.names[1]};
    ImageOpen open = {.format = a.format,
                      .shared = a.shared,
                      .image_opts = a.image_opts,
                      .cache = a.source_cache,
                      .source = true,
                      .objects = a.objects};
    g_autoptr(BlockNode) first = image_open(c.a_path, &open);
    open.format = o.second_format;
    g_autoptr(BlockNode) second = first ? image_open(c.b_path, &open) : NULL;
    if (!second)
        return EXIT_OPEN;
    c.a = first;
    c.b = second;
    g_autofree uint8_t *a_memory = g_malloc(CHUNK);
    g_autofree uint8_t *b_memory = g_malloc(CHUNK);
    c.a_buffer = a_memory;
    c.b_buffer = b_memory;
    image_progress_begin(a.progress);
    int result = compare_all(&c);
    image_progress_end(result == 0);
    return result;
}

const ImageCommand image_compare_command = {
    .name = "compare",
    .run = run,
    .usage = "[--object objectdef] [--image-opts] [-f fmt] [-F fmt] [-T src_cache] [-p] [-q] [-s] "
             "[-U] filename1 filename2",
    .options = options,
};
