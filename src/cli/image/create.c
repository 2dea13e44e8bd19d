/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "cli/image/image.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool image_parse_create(const char *path, const char *text, BlockCreate *create, json_t *options)
{
    g_autoptr(GError) error = NULL;
    if (!block_options_parse(text, block_create_options(create->format), NULL, options, &error))
        return image_fail("%s: %s", path, error->message), false;
    if (!block_option_size(options, NULL, "size", &create->size, &error))
        return image_fail("%s: %s", path, error->message), false;
    const char *backing = block_option_string(options, NULL, "backing_file");
    const char *format = block_option_string(options, NULL, "backing_fmt");
    if (backing)
        create->backing = g_intern_string(backing);
    if (format)
        create->backing_format = g_intern_string(format);
    json_object_del(options, "size");
    json_object_del(options, "backing_file");
    json_object_del(options, "backing_fmt");
    create->options = options;
    return true;
}

/* As qemu-img: options in the order of the format's table, the size where its row is. */
static void announce(const BlockCreate *c)
{
    printf("Formatting '%s', fmt=%s", c->path, c->format);
    for (const BlockOption *o = block_create_options(c->format); o->name; o++) {
        const char *value = block_option_string(c->options, NULL, o->name);
        if (!strcmp(o->name, "size"))
            printf(" size=%" G_GUINT64_FORMAT, c->size);
        else if (!strcmp(o->name, "backing_file") && c->backing)
            printf(" backing_file=%s", c->backing);
        else if (!strcmp(o->name, "backing_fmt") && c->backing_format)
            printf(" backing_fmt=%s", c->backing_format);
        else if (value || o->fallback)
            printf(" %s=%s", o->name, value ? value : o->fallback);
    }
    printf("\n");
}

/* The backing image must open; its size is the default. */
static bool look_at_backing(BlockCreate *c, bool unchecked, bool *sized)
{
    if (!c->backing)
        return true;
    if (!c->backing_format)
        return image_fail("%s: Backing file specified without backing format", c->path), false;
    if (unchecked)
        return true;
    g_autofree char *folder = g_path_get_dirname(c->path);
    g_autofree char *path = g_path_is_absolute(c->backing) || !strcmp(folder, ".")
                                ? g_strdup(c->backing)
                                : g_build_filename(folder, c->backing, NULL);
    ImageOpen open = {.format = c->backing_format};
    g_autoptr(BlockNode) node = image_open(path, &open);
    if (!node)
        return false;
    if (!*sized)
        c->size = block_size(node);
    *sized = true;
    return true;
}

static const struct option long_options[] = {{"help", no_argument, NULL, 'h'}, {NULL, 0, NULL, 0}};

static int run(int argc, char **argv)
{
    BlockCreate create = {.format = "raw"};
    json_auto_t *named = json_object();
    g_autoptr(GPtrArray) texts = g_ptr_array_new();
    bool quiet = false, unchecked = false;
    int option;
    opterr = 0;
    while ((option = getopt_long(argc, argv, "f:b:F:o:qu", long_options, NULL)) != -1) {
        switch (option) {
        case 'f':
            create.format = optarg;
            break;
        case 'b':
            create.backing = optarg;
            break;
        case 'F':
            create.backing_format = optarg;
            break;
        case 'o':
            g_ptr_array_add(texts, optarg);
            break;
        case 'q':
            quiet = true;
            break;
        case 'u':
            unchecked = true;
            break;
        default:
            return image_bad_option("create", argv);
        }
    }
    if (argc - optind < 1 || argc - optind > 2)
        return image_fail("create: expecting a file name and a size");
    create.path = argv[optind];
    if (!block_create_options(create.format))
        return image_fail("%s: Unknown file format '%s'", create.path, create.format);
    create.size = UINT64_MAX;
    for (guint i = 0; i < texts->len; i++) {
        if (!image_parse_create(create.path, g_ptr_array_index(texts, i), &create, named))
            return 1;
    }
    bool sized = create.size != UINT64_MAX;
    if (argc - optind == 2) {
        if (!block_parse_size(argv[optind + 1], &create.size))
            return image_fail("Invalid image size specified. You may use k, M, G, T, P or E "
                              "suffixes for kilobytes, megabytes, gigabytes, terabytes, petabytes "
                              "and exabytes.");
        sized = true;
    }
    if (!look_at_backing(&create, unchecked, &sized))
        return 1;
    if (!sized)
        return image_fail("%s: Image creation needs a size parameter", create.path);
    create.size = (create.size + 511) & ~511ull;
    if (!quiet)
        announce(&create);
    g_autoptr(GError) error = NULL;
    if (!block_create(&create, &error))
        return image_fail("%s: %s", create.path, error->message);
    return 0;
}

const ImageCommand image_create_command = {
    .name = "create",
    .run = run,
    .usage = "[-q] [-f FORMAT] [-b BACKING -F FORMAT] [-u] [-o OPTIONS] FILE [SIZE]",
};
