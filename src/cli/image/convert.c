/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "cli/image/convert.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SPARSE_DEFAULT 4096u

enum {
    SALVAGE = IMAGE_OWN,
    TARGET_IMAGE_OPTS,
    TARGET_IS_ZERO,
    BITMAPS,
    SKIP_BROKEN,
};

void image_warn(const char *text)
{
    fflush(stdout);
    fprintf(stderr, "%s: warning: %s\n", image_program(), text);
}

static void warn(void *opaque, const char *text)
{
    image_warn(text);
}

static bool apply_threads(Convert *c, const char *value)
{
    char *end;
    long n = strtol(value, &end, 0);
    if (end != value && !*end && n >= 1 && n <= (long)BLOCK_COPY_THREADS_MAX) {
        c->copy.threads = (unsigned)n;
        return true;
    }
    image_fail("Invalid number of coroutines. Allowed number of coroutines is between 1 and %u",
               BLOCK_COPY_THREADS_MAX);
    return false;
}

static bool apply_sparse(Convert *c, const char *value)
{
    c->sparse_given = true;
    if (!image_parse_number("buffer size for sparse output", value, 0, INT64_MAX, &c->copy.sparse))
        return false;
    if (c->copy.sparse % 512 == 0 && c->copy.sparse <= BLOCK_COPY_SPARSE_MAX)
        return true;
    image_fail("Invalid buffer size for sparse output specified. Valid sizes are multiples of 512 "
               "up to %u. Select 0 to disable sparse detection (fully allocates output).",
               BLOCK_COPY_SPARSE_MAX);
    return false;
}

static ImageApplied apply_flag(Convert *c, int key)
{
    switch (key) {
    case 'C':
        c->copy.offload = true;
        break;
    case 'c':
        c->copy.compress = true;
        break;
    case 'n':
        c->no_create = true;
        break;
    case 'W':
        c->copy.in_order = false;
        break;
    case SALVAGE:
        c->copy.salvage = true;
        break;
    case TARGET_IMAGE_OPTS:
        c->target_image_opts = true;
        break;
    case TARGET_IS_ZERO:
        c->copy.target_is_zero = true;
        break;
    case BITMAPS:
        c->bitmaps = true;
        break;
    case SKIP_BROKEN:
        c->skip_broken = true;
        break;
    default:
        return IMAGE_NOT_MINE;
    }
    return IMAGE_APPLIED;
}

static ImageApplied apply(void *opaque, int key, const char *value)
{
    Convert *c = opaque;
    bool ok = true;
    switch (key) {
    case 'O':
        c->target_format = value;
        break;
    case 'B':
        c->backing = value;
        break;
    case 'F':
        c->backing_format = value;
        break;
    case 'o':
        g_ptr_array_add(c->texts, (char *)(uintptr_t)value);
        c->help = c->help || image_wants_option_help(value);
        ok = image_option_list_valid(value);
        break;
    case 'l':
        g_clear_pointer(&c->snapshot, g_free);
        ok = image_snapshot_param(value, &c->snapshot);
        break;
    case 'S':
        ok = apply_sparse(c, value);
        break;
    case 'm':
        ok = apply_threads(c, value);
        break;
    case 'r':
        ok = image_parse_number("rate limit", value, 0, INT64_MAX, &c->copy.rate);
        break;
    default:
        return apply_flag(c, key);
    }
    return ok ? IMAGE_APPLIED : IMAGE_REFUSED;
}

/* What cannot be meant together; NULL: nothing. */
static const char *contradiction(const Convert *c)
{
    if (c->skip_broken && !c->bitmaps)
        return "Use of --skip-broken-bitmaps requires --bitmaps";
    if (c->copy.compress && c->copy.offload)
        return "Cannot enable copy offloading when -c is used";
    if (c->sparse_given && c->copy.offload)
        return "Cannot enable copy offloading when -S is used";
    if (c->copy.offload && c->copy.salvage)
        return "Cannot use copy offloading in salvaging mode";
    if (c->target_image_opts && !c->no_create)
        return "--target-image-opts requires use of -n flag";
    if (c->no_create && c->texts->len)
        return "-o has no effect when skipping image creation";
    if (c->copy.target_is_zero && !c->no_create)
        return "--target-is-zero requires use of -n flag";
    return NULL;
}

static bool open_source(Convert *c, const char *name)
{
    ImageOpen open = {.format = c->arguments.format,
                      .shared = c->arguments.shared,
                      .image_opts = c->arguments.image_opts,
                      .cache = c->arguments.source_cache,
                      .source = true,
                      .objects = c->arguments.objects};
    BlockNode *node = image_open(name, &open);
    if (!node)
        return false;
    g_ptr_array_add(c->sources, node);
    c->size += block_size(node);
    return true;
}

/* The first source again, as its snapshot has it. */
static bool load_snapshot(Convert *c)
{
    g_autoptr(GError) error = NULL;
    json_auto_t *tree = NULL;
    const ImageArguments *a = &c->arguments;
    BlockOpen open = {.path = a->names[0],
                      .format = a->format,
                      .read_only = true,
                      .shared = a->shared,
                      .direct = a->source_cache && image_cache_direct(a->source_cache),
                      .objects = a->objects,
                      .snapshot = c->snapshot};
    if (c->sources->len > 1)
        return image_fail("No support for concatenating multiple snapshot"), false;
    if (a->image_opts) {
        tree = image_options_tree(a->names[0], a->shared, &error);
        open.path = NULL;
        open.options = tree;
    }
    BlockNode *node = a->image_opts && !tree ? NULL : block_open(&open, &error);
    if (!node)
        return image_fail("Failed to load snapshot: %s", error->message), false;
    c->size = block_size(node);
    g_ptr_array_remove_index(c->sources, 0);
    g_ptr_array_add(c->sources, node);
    return true;
}

static int copy_and_finish(Convert *c)
{
    g_autoptr(GError) error = NULL;
    c->copy.sources = (BlockNode *const *)c->sources->pdata;
    c->copy.n_sources = c->sources->len;
    c->copy.target = c->to;
    c->copy.length = c->size;
    c->copy.progress = (BlockProgress){image_progress_step, NULL};
    c->copy.warn = c->arguments.quiet ? NULL : warn;
    if (!block_copy(&c->copy, &error)) {
        if (!image_interrupted())
            return image_fail("%s", error->message);
        if (c->created) /* what is there must not be taken for the whole */
            unlink(c->target);
        return image_fail("interrupted");
    }
    if (c->bitmaps && !image_convert_copy_bitmaps(c))
        return 1;
    int result = block_flush(c->to);
    return result < 0 ? image_fail("error while flushing: %s", g_strerror(-result)) : 0;
}

static int convert(Convert *c)
{
    const ImageArguments *a = &c->arguments;
    for (int i = 0; i < a->n_names - 1; i++) {
        if (!open_source(c, a->names[i]))
            return 1;
    }
    if (c->snapshot && !load_snapshot(c))
        return 1;
    if (!image_convert_make_target(c) || !image_convert_open_target(c))
        return 1;
    return copy_and_finish(c);
}

static int checked(Convert *c)
{
    const ImageArguments *a = &c->arguments;
    const char *wrong = contradiction(c);
    if (!c->target_format && !c->target_image_opts)
        c->target_format = "raw";
    if (wrong)
        return image_fail("%s", wrong);
    c->target = a->n_names > 1 ? a->names[a->n_names - 1] : NULL;
    if (c->help)
        return image_option_help(c->target, c->target_format);
    if (!c->target)
        return image_fail("Must specify image file name");
    if (!image_cache_known(a->source_cache, true))
        return 1;
    image_progress_begin(a->progress);
    int status = convert(c);
    image_progress_end(status == 0);
    return status;
}

static const ImageOption options[] = {
    IMAGE_OPTION_HELP,
    IMAGE_OPTION_OBJECT,
    IMAGE_OPTION_IMAGE_OPTS,
    {TARGET_IMAGE_OPTS, "target-image-opts", NULL, "the target's name is an option string"},
    IMAGE_OPTION_SHARE,
    {'C', NULL, NULL, "let the kernel copy where it can"},
    {'c', NULL, NULL, "compress the target"},
    IMAGE_OPTION_PROGRESS,
    IMAGE_OPTION_QUIET,
    {'n', NULL, NULL, "the target is there already"},
    {TARGET_IS_ZERO, "target-is-zero", NULL, "and reads as zero"},
    {BITMAPS, "bitmaps", NULL, "copy persistent dirty bitmaps, too"},
    {SKIP_BROKEN, "skip-broken-bitmaps", NULL, "but not those that are inconsistent"},
    IMAGE_OPTION_FORMAT,
    IMAGE_OPTION_CACHE,
    IMAGE_OPTION_SOURCE_CACHE,
    {'O', NULL, "FMT", "format of the target; raw when it is not said"},
    {'B', NULL, "BACKING_FILE", "the target keeps only what differs from this image"},
    {'F', NULL, "BACKING_FMT", "format of the backing file"},
    {'o', NULL, "OPTIONS", "options of the target, name=value separated by commas"},
    {'l', NULL, "SNAPSHOT", "copy this internal snapshot"},
    {'S', NULL, "SIZE", "zeroes in a row that make a hole; 0: none do"},
    {'r', NULL, "RATE", "bytes a second in the most"},
    {'m', NULL, "N", "how many threads"},
    {'W', NULL, NULL, "write in any order"},
    {SALVAGE, "salvage", NULL, "what cannot be read becomes zero"},
    {0, NULL, NULL, NULL},
};

static int run(int argc, char **argv)
{
    g_autoptr(GPtrArray) texts = g_ptr_array_new();
    g_autoptr(GPtrArray) sources = g_ptr_array_new_with_free_func((GDestroyNotify)block_unref);
    Convert c = {.texts = texts,
                 .sources = sources,
                 .copy = {.sparse = SPARSE_DEFAULT, .in_order = true, .backing_size = UINT64_MAX}};
    int status;
    if (image_parse(options, argc, argv, &c.arguments, apply, &c, &status))
        status = checked(&c);
    block_unref(c.to);
    g_ptr_array_set_size(sources, 0); /* before the secrets they refer to */
    image_arguments_clear(&c.arguments);
    g_free(c.snapshot);
    return status;
}

const ImageCommand image_convert_command = {
    .name = "convert",
    .run = run,
    .usage = "[--object objectdef] [--image-opts] [--target-image-opts] [--target-is-zero] "
             "[--bitmaps [--skip-broken-bitmaps]] [-U] [-C] [-c] [-p] [-q] [-n] [-f fmt] "
             "[-t cache] [-T src_cache] [-O output_fmt] [-B backing_file [-F backing_fmt]] "
             "[-o options] [-l snapshot_param] [-S sparse_size] [-r rate_limit] "
             "[-m num_coroutines] [-W] [--salvage] filename [filename2 [...]] output_filename",
    .options = options,
};
