/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "cli/image/convert.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct Dd {
    ImageArguments arguments;
    const char *from, *to, *target_format;
    uint64_t block, count, skip;
    bool counted;
} Dd;

static ImageApplied apply(void *opaque, int key, const char *value)
{
    Dd *d = opaque;
    if (key != 'O')
        return IMAGE_NOT_MINE;
    d->target_format = value;
    return IMAGE_APPLIED;
}

/* "bs=4k" */
static bool operand(Dd *d, const char *text)
{
    const char *value = strchr(text, '=');
    size_t length = value ? (size_t)(value - text) : strlen(text);
    value = value ? value + 1 : NULL;
    if (value && length == 2 && !strncmp(text, "if", 2)) {
        d->from = value;
    } else if (value && length == 2 && !strncmp(text, "of", 2)) {
        d->to = value;
    } else if (value && length == 2 && !strncmp(text, "bs", 2)) {
        return image_parse_number("bs", value, 1, INT32_MAX, &d->block);
    } else if (value && length == 5 && !strncmp(text, "count", 5)) {
        d->counted = true;
        return image_parse_number("count", value, 0, INT64_MAX, &d->count);
    } else if (value && length == 4 && !strncmp(text, "skip", 4)) {
        return image_parse_number("skip", value, 0, INT64_MAX, &d->skip);
    } else {
        image_fail("unrecognized operand %.*s", (int)length, text);
        return false;
    }
    return true;
}

static bool make_target(const Dd *d, uint64_t size)
{
    g_autoptr(GError) error = NULL;
    BlockCreate create = {.path = d->to,
                          .format = d->target_format,
                          .size = (size + 511) & ~511ull,
                          .objects = d->arguments.objects};
    if (!block_format_exists(d->target_format)) {
        image_fail("Unknown file format");
        return false;
    }
    if (!block_create_file_options(d->to, &error)) {
        image_fail("%s", error->message);
        return false;
    }
    if (!block_create_options(d->target_format)) {
        image_fail("Format driver '%s' does not support image creation", d->target_format);
        return false;
    }
    if (block_create(&create, &error))
        return true;
    image_fail("%s: error while creating output image: %s", d->to, error->message);
    return false;
}

static int copy(const Dd *d, BlockNode *from, uint64_t start, uint64_t size)
{
    g_autoptr(GError) error = NULL;
    struct stat st;
    ImageOpen open = {.format = d->target_format, .write = true, .objects = d->arguments.objects};
    g_autoptr(BlockNode) to = image_open(d->to, &open);
    if (!to)
        return 1;
    bool file = stat(d->to, &st) == 0 && S_ISREG(st.st_mode);
    BlockCopy copy = {.sources = &from,
                      .n_sources = 1,
                      .target = to,
                      .source_offset = start,
                      .length = size - start,
                      .sparse = 4096,
                      .in_order = true,
                      .compress = block_only_compressed(to),
                      .target_is_zero = file && strcmp(d->target_format, "luks"),
                      .backing_size = UINT64_MAX,
                      .progress = {image_progress_step, NULL}};
    image_progress_begin(false);
    if (!block_copy(&copy, &error)) {
        if (!image_interrupted())
            return image_fail("%s", error->message);
        if (file)
            unlink(d->to);
        return image_fail("interrupted");
    }
    int result = block_flush(to);
    return result < 0 ? image_fail("error while flushing: %s", g_strerror(-result)) : 0;
}

static int dd(Dd *d)
{
    if (!d->from || !d->to)
        return image_fail("Must specify both input and output files");
    ImageOpen open = {.format = d->arguments.format,
                      .shared = d->arguments.shared,
                      .image_opts = d->arguments.image_opts,
                      .objects = d->arguments.objects};
    g_autoptr(BlockNode) from = image_open(d->from, &open);
    if (!from)
        return 1;
    /* As qemu-img: count is from the image's start, what is skipped included. */
    uint64_t size = block_size(from), start = 0;
    if (d->counted && d->count <= INT64_MAX / d->block)
        size = MIN(size, d->count * d->block);
    bool beyond = d->skip > INT64_MAX / d->block || d->skip * d->block > size;
    start = beyond ? size : d->skip * d->block;
    if (!make_target(d, size - start))
        return 1;
    if (beyond)
        image_fail("%s: cannot skip to specified offset", d->from);
    return start < size ? copy(d, from, start, size) : 0;
}

static const ImageOption options[] = {
    IMAGE_OPTION_HELP,
    IMAGE_OPTION_OBJECT,
    IMAGE_OPTION_IMAGE_OPTS,
    IMAGE_OPTION_SHARE,
    IMAGE_OPTION_FORMAT,
    {'O', NULL, "FMT", "format of the output; raw when it is not said"},
    {0, NULL, NULL, NULL},
};

static int run(int argc, char **argv)
{
    Dd d = {.target_format = "raw", .block = 512};
    int status;
    bool ok = image_parse(options, argc, argv, &d.arguments, apply, &d, &status);
    for (int i = 0; ok && i < d.arguments.n_names; i++) {
        ok = operand(&d, d.arguments.names[i]);
        status = 1;
    }
    if (ok)
        status = dd(&d);
    image_arguments_clear(&d.arguments);
    return status;
}

const ImageCommand image_dd_command = {
    .name = "dd",
    .run = run,
    .usage = "[--object objectdef] [--image-opts] [-U] [-f fmt] [-O output_fmt] [bs=block_size] "
             "[count=blocks] [skip=blocks] if=input of=output",
    .options = options,
};
