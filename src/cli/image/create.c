/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "cli/image/image.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool parse_switch(const char *path, const char *name, const char *value, bool *on)
{
    if (!strcmp(value, "on") || !strcmp(value, "true") || !strcmp(value, "yes"))
        *on = true;
    else if (!strcmp(value, "off") || !strcmp(value, "false") || !strcmp(value, "no"))
        *on = false;
    else
        return image_fail("%s: Parameter '%s' expects 'on' or 'off'", path, name), false;
    return true;
}

static bool parse_number(const char *path, const char *name, const char *value, uint64_t *number)
{
    return image_parse_size(value, number) ||
           (image_fail("%s: Parameter '%s' expects a size", path, name), false);
}

static bool parse_compat(const char *path, const char *value, unsigned *version)
{
    if (!strcmp(value, "0.10") || !strcmp(value, "v2"))
        *version = 2;
    else if (!strcmp(value, "1.1") || !strcmp(value, "v3"))
        *version = 3;
    else
        return image_fail("%s: Invalid compatibility level: '%s'", path, value), false;
    return true;
}

static bool parse_one(const char *path, const char *name, const char *value, BlockCreate *create)
{
    uint64_t number;
    if (!strcmp(name, "size"))
        return parse_number(path, name, value, &create->size);
    if (!strcmp(name, "cluster_size")) {
        if (!parse_number(path, name, value, &number))
            return false;
        create->cluster_size = number ? number : 1; /* zero is refused as any wrong size */
        return true;
    }
    if (!strcmp(name, "refcount_bits")) {
        if (!parse_number(path, name, value, &number))
            return false;
        create->refcount_bits = number && number <= 64 ? (unsigned)number : 65;
        return true;
    }
    if (!strcmp(name, "compat"))
        return parse_compat(path, value, &create->version);
    if (!strcmp(name, "lazy_refcounts"))
        return parse_switch(path, name, value, &create->lazy_refcounts);
    if (!strcmp(name, "static"))
        return parse_switch(path, name, value, &create->static_blocks);
    if (!strcmp(name, "force_size"))
        return parse_switch(path, name, value, &create->force_size);
    if (!strcmp(name, "subformat"))
        create->subformat = value;
    else if (!strcmp(name, "compression_type"))
        create->compression = value;
    else if (!strcmp(name, "backing_file"))
        create->backing = value;
    else if (!strcmp(name, "backing_fmt"))
        create->backing_format = value;
    else if (!strcmp(name, "preallocation") && !strcmp(value, "metadata"))
        create->preallocate_metadata = true;
    else if (!strcmp(name, "preallocation") && strcmp(value, "off"))
        return image_fail("%s: preallocation '%s' is not supported; off and metadata are", path,
                          value),
               false;
    return true;
}

static bool known(const char *format, const char *name)
{
    const char *const *names = block_create_options(format);
    for (; names && *names; names++) {
        if (!strcmp(*names, name))
            return true;
    }
    return false;
}

/* "a=b,c=d"; a comma that belongs to a value is written twice. */
bool image_parse_create(const char *path, const char *text, BlockCreate *create, GPtrArray *kept)
{
    while (*text) {
        g_autoptr(GString) part = g_string_new(NULL);
        for (; *text && (*text != ',' || text[1] == ','); text++) {
            g_string_append_c(part, *text);
            if (*text == ',')
                text++;
        }
        if (*text == ',')
            text++;
        char *name = g_string_free(g_steal_pointer(&part), FALSE);
        g_ptr_array_add(kept, name);
        char *value = strchr(name, '=');
        if (value)
            *value++ = '\0';
        if (!known(create->format, name))
            return image_fail("%s: Invalid parameter '%s'", path, name), false;
        if (!parse_one(path, name, value ? value : "on", create))
            return false;
    }
    return true;
}

static void announce(const BlockCreate *c)
{
    uint64_t cluster = c->cluster_size ? c->cluster_size : 65536;
    printf("Formatting '%s', fmt=%s", c->path, c->format);
    if (!strcmp(c->format, "qcow2"))
        printf(" cluster_size=%" G_GUINT64_FORMAT " extended_l2=off", cluster);
    if (c->preallocate_metadata)
        printf(" preallocation=metadata");
    if (!strcmp(c->format, "qcow2"))
        printf(" compression_type=%s", c->compression ? c->compression : "zlib");
    printf(" size=%" G_GUINT64_FORMAT, c->size);
    if (!strcmp(c->format, "vdi"))
        printf(" static=%s", c->static_blocks ? "on" : "off");
    if (c->subformat)
        printf(" subformat=%s", c->subformat);
    if (c->force_size)
        printf(" force_size=on");
    if (c->version)
        printf(" compat=%s", c->version == 2 ? "0.10" : "1.1");
    if (c->backing)
        printf(" backing_file=%s", c->backing);
    if (c->backing_format)
        printf(" backing_fmt=%s", c->backing_format);
    if (!strcmp(c->format, "qcow2"))
        printf(" lazy_refcounts=%s refcount_bits=%u", c->lazy_refcounts ? "on" : "off",
               c->refcount_bits ? c->refcount_bits : 16);
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
    g_autoptr(GPtrArray) kept = g_ptr_array_new_with_free_func(g_free);
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
        if (!image_parse_create(create.path, g_ptr_array_index(texts, i), &create, kept))
            return 1;
    }
    bool sized = create.size != UINT64_MAX;
    if (argc - optind == 2) {
        if (!image_parse_size(argv[optind + 1], &create.size))
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
