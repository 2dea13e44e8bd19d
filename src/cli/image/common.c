/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "cli/image/image.h"

#include "disk/lock.h"

#include "base/error.h"
#include "disk/json-text.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define OPTIONS_MAX 64

static char *program;

void image_set_program(const char *argv0)
{
    static const char *const names[] = {"qemu-img", "qemu-io", "qemu-nbd"};
    g_autofree char *name = g_path_get_basename(argv0);
    g_free(program);
    program = g_strdup("lodge-img");
    for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
        if (!strcmp(name, names[i])) {
            g_free(program);
            program = g_strdup(names[i]);
        }
    }
}

const char *image_program(void)
{
    return program ? program : "lodge-img";
}

static void complain(const char *format, va_list args)
{
    g_autofree char *text = g_strdup_vprintf(format, args);
    /* Who calls us by the peer's name compares with the peer's words. */
    char *more = strstr(text, "]?" BLOCK_LOCK_HOLDER_WORDS);
    if (more && strcmp(program, "lodge-img"))
        more[2] = '\0';
    fprintf(stderr, "%s: %s\n", image_program(), text);
}

int image_fail(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    complain(format, args);
    va_end(args);
    return 1;
}

int image_usage(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    complain(format, args);
    va_end(args);
    fprintf(stderr, "Try '%s --help' for more information\n", image_program());
    return 1;
}

/* ---- options */

void image_arguments_clear(ImageArguments *arguments)
{
    block_objects_free(arguments->objects);
    arguments->objects = NULL;
}

/* What getopt_long wants, made of a table. */
typedef struct Getopt {
    char letters[2 * OPTIONS_MAX + 3];
    struct option names[OPTIONS_MAX + 1];
} Getopt;

static void make_getopt(const ImageOption *options, Getopt *made)
{
    unsigned n_letters = 0, n_names = 0, n = 0;
    memset(made, 0, sizeof(*made));
    made->letters[n_letters++] = ':';
    for (const ImageOption *o = options; o->key && n < OPTIONS_MAX; o++, n++) {
        if (o->key < 256)
            made->letters[n_letters++] = (char)o->key;
        if (o->key < 256 && o->argument)
            made->letters[n_letters++] = ':';
        if (o->name)
            made->names[n_names++] = (struct option){
                o->name, o->argument ? required_argument : no_argument, NULL, o->key};
    }
}

static bool add_object(ImageArguments *a, const char *text)
{
    g_autoptr(GError) error = NULL;
    if (!a->objects)
        a->objects = block_objects_new();
    return block_objects_add(a->objects, text, &error) || (image_fail("%s", error->message), false);
}

static bool apply_common(ImageArguments *a, int key, const char *value, const char **output)
{
    switch (key) {
    case 'f':
        a->format = value;
        break;
    case 't':
        a->cache = value;
        break;
    case 'T':
        a->source_cache = value;
        break;
    case 'U':
        a->shared = true;
        break;
    case 'p':
        a->progress = true;
        break;
    case 'q':
        a->quiet = true;
        break;
    case IMAGE_IMAGE_OPTS:
        a->image_opts = true;
        break;
    case IMAGE_OUTPUT:
        *output = value;
        break;
    case IMAGE_OBJECT:
        return add_object(a, value);
    default:
        g_assert_not_reached(); /* a table names what nobody takes */
    }
    return true;
}

static bool apply_output(ImageArguments *a, const char *output)
{
    a->json = output && !strcmp(output, "json");
    if (!output || a->json || !strcmp(output, "human"))
        return true;
    image_fail("--output must be used with human or json as argument.");
    return false;
}

bool image_parse(const ImageOption *options, int argc, char **argv, ImageArguments *arguments,
                 ImageApply apply, void *opaque, int *status)
{
    Getopt made;
    const char *output = NULL;
    int key;
    make_getopt(options, &made);
    *status = 1;
    optind = 0; /* from the start, whatever was parsed before */
    while ((key = getopt_long(argc, argv, made.letters, made.names, NULL)) != -1) {
        if (key == ':')
            return image_usage("missing argument for option '%s'", argv[optind - 1]), false;
        if (key == '?')
            return image_usage("unrecognized option '%s'", argv[optind - 1]), false;
        if (key == 'h') {
            g_autofree char *text = image_help();
            fputs(text, stdout);
            *status = 0;
            return false;
        }
        ImageApplied applied = apply ? apply(opaque, key, optarg) : IMAGE_NOT_MINE;
        if (applied == IMAGE_REFUSED ||
            (applied == IMAGE_NOT_MINE && !apply_common(arguments, key, optarg, &output)))
            return false;
    }
    arguments->names = argv + optind;
    arguments->n_names = argc - optind;
    arguments->progress = arguments->progress && !arguments->quiet;
    return apply_output(arguments, output);
}

/* Does it look like a size, so that only its value can be wrong? */
static bool size_shaped(const char *text)
{
    size_t digits = strspn(text, "0123456789");
    return digits &&
           (!text[digits] || (strchr("bkmgtpeBKMGTPE", text[digits]) && !text[digits + 1]));
}

int image_size_parse(const char *text, uint64_t *value)
{
    while (g_ascii_isspace(*text))
        text++;
    if (block_parse_size(text, value))
        return 0;
    return size_shaped(text) ? -ERANGE : -EINVAL;
}

bool image_parse_number(const char *what, const char *text, uint64_t least, uint64_t most,
                        uint64_t *value)
{
    uint64_t number = UINT64_MAX;
    bool parsed = block_parse_size(text, &number);
    if (!parsed && !size_shaped(text)) {
        image_fail("Invalid %s specified. You may use k, M, G, T, P or E suffixes for", what);
        image_fail("kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes.");
        return false;
    }
    if (!parsed || number < least || number > most) {
        image_fail("Invalid %s specified. Must be between %" G_GUINT64_FORMAT
                   " and %" G_GUINT64_FORMAT ".",
                   what, least, most);
        return false;
    }
    *value = number;
    return true;
}

char *image_size_text(uint64_t size)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    int exponent;
    /* 1000 of one unit are already written in the next: three digits always suffice. */
    frexp((double)size / (1000.0 / 1024.0), &exponent);
    int unit = exponent > 0 ? (exponent - 1) / 10 : 0;
    return g_strdup_printf("%0.3g %s", (double)size / (double)(1ull << (unit * 10)), units[unit]);
}

void image_print_json(const json_t *value)
{
    g_autofree char *text = json_text(value, true);
    printf("%s\n", text);
}

/* ---- opening */

static bool apply_cache(const char *cache, BlockOpen *options)
{
    if (!cache || !strcmp(cache, "writeback") || !strcmp(cache, "writethrough"))
        return true;
    if (!strcmp(cache, "none") || !strcmp(cache, "directsync") || !strcmp(cache, "off")) {
        options->direct = true;
        return true;
    }
    options->no_flush = !strcmp(cache, "unsafe");
    return options->no_flush;
}

bool image_cache_known(const char *cache, bool source)
{
    BlockOpen scratch = {0};
    if (apply_cache(cache, &scratch))
        return true;
    image_fail(source ? "Invalid source cache option: %s" : "Invalid cache option: %s", cache);
    return false;
}

bool image_cache_direct(const char *cache)
{
    BlockOpen scratch = {0};
    return apply_cache(cache, &scratch) && scratch.direct;
}

/* "driver=qcow2,file.filename=a.img" */
json_t *image_options_tree(const char *text, bool shared, GError **err)
{
    json_auto_t *flat = json_object();
    if (!block_options_parse(text, NULL, "file", flat, err))
        return NULL;
    const char *share = block_option_string(flat, NULL, "force-share");
    if (shared && share && strcmp(share, "on")) {
        lodge_fail(err, LODGE_ERROR_INVALID, "--force-share/-U conflicts with image options");
        return NULL;
    }
    return block_options_nest(flat, err);
}

void image_warn_probed(const BlockNode *node)
{
    if (!node || !block_probed_raw(node) || block_read_only(node))
        return;
    fprintf(stderr,
            "WARNING: Image format was not specified for '%s' and probing guessed raw.\n"
            "         Automatically detecting the format is dangerous for raw images, write "
            "operations on block 0 will be restricted.\n"
            "         Specify the 'raw' format explicitly to remove the restrictions.\n",
            block_path(node));
}

BlockNode *image_open(const char *path, const ImageOpen *open)
{
    g_autoptr(GError) error = NULL;
    json_auto_t *tree = NULL;
    BlockOpen options = {.path = path,
                         .format = open->format,
                         .read_only = !open->write,
                         .shared = open->shared,
                         .no_backing = open->no_backing,
                         .no_secrets = open->no_secrets,
                         .repair = open->repair,
                         .snapshot = open->snapshot,
                         .objects = open->objects,
                         .trust_references = !g_strcmp0(g_getenv("LODGE_IMAGE_REFERENCES"), "any"),
                         .discard_unmap = !open->ignore_discard};
    if (!image_cache_known(open->cache, open->source))
        return NULL;
    apply_cache(open->cache, &options);
    if (open->image_opts && open->format) {
        image_fail("--image-opts and --format are mutually exclusive");
        return NULL;
    }
    if (open->image_opts) {
        tree = image_options_tree(path, open->shared, &error);
        if (!tree) {
            image_fail("%s", error->message);
            return NULL;
        }
        options.path = NULL;
        options.options = tree;
    }
    if (open->shared && open->write) {
        image_fail("Could not open '%s': force-share=on can only be used with read-only images",
                   path);
        return NULL;
    }
    BlockNode *node = block_open(&options, &error);
    if (!node)
        image_fail("Could not open '%s': %s", path, error->message);
    image_warn_probed(node);
    return node;
}
