/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "cli/image/image.h"

#include "base/error.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool image_option_list_valid(const char *text)
{
    size_t length = strlen(text), commas = 0;
    while (commas < length && text[length - 1 - commas] == ',')
        commas++;
    if (length && text[0] != ',' && commas % 2 == 0)
        return true;
    image_fail("Invalid option list: %s", text);
    return false;
}

bool image_wants_option_help(const char *text)
{
    for (const char *at = text; *at;) {
        size_t length = strcspn(at, ",");
        if ((length == 4 && !strncmp(at, "help", 4)) || (length == 1 && *at == '?'))
            return true;
        at += length;
        while (at[0] == ',' && at[1] == ',') { /* a comma of the value, and what follows it */
            at += 2;
            at += strcspn(at, ",");
        }
        at += *at == ',';
    }
    return false;
}

static int compare_lines(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void add_help_lines(GPtrArray *lines, const BlockOption *table, const BlockOption *known)
{
    static const char *const types[] = {"str", "bool (on/off)", "num", "size", "str"};
    for (const BlockOption *o = table; o->name; o++) {
        if (known && block_option_find(known, o->name))
            continue;
        g_autofree char *head = g_strdup_printf("  %s=<%s>", o->name, types[o->type]);
        g_ptr_array_add(lines,
                        o->help ? g_strdup_printf("%-24s - %s", head, o->help) : g_strdup(head));
    }
}

static void print_sorted(GPtrArray *lines)
{
    qsort(lines->pdata, lines->len, sizeof(char *), compare_lines);
    for (guint i = 0; i < lines->len; i++)
        printf("%s\n", (char *)g_ptr_array_index(lines, i));
}

void image_print_option_table(const BlockOption *table)
{
    g_autoptr(GPtrArray) lines = g_ptr_array_new_with_free_func(g_free);
    add_help_lines(lines, table, NULL);
    print_sorted(lines);
}

int image_option_help(const char *path, const char *format)
{
    const BlockOption *table = block_create_options(format);
    g_autoptr(GPtrArray) lines = g_ptr_array_new_with_free_func(g_free);
    g_autoptr(GError) error = NULL;
    if (!block_format_exists(format))
        return image_fail("Unknown file format '%s'", format);
    if (!table)
        return image_fail("Format driver '%s' does not support image creation", format);
    const BlockOption *more = path ? block_create_file_options(path, &error) : NULL;
    if (path && !more)
        return image_fail("%s", error->message);
    if (path)
        printf("Supported options:\n");
    else
        printf("Supported %s options:\n", format);
    add_help_lines(lines, table, NULL);
    if (more)
        add_help_lines(lines, more, table);
    print_sorted(lines);
    if (!path)
        printf("\nThe protocol level may support further options.\n"
               "Specify the target filename to include those options.\n");
    return 0;
}

bool image_check_option_values(const json_t *options, const BlockOption *table, GError **err)
{
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)options, name, value)
    {
        const BlockOption *row = block_option_find(table, name);
        uint64_t number;
        bool flag;
        if (row && ((row->type == BLOCK_OPTION_BOOL &&
                     !block_option_bool(options, NULL, name, &flag, err)) ||
                    (row->type == BLOCK_OPTION_SIZE &&
                     !block_option_size(options, NULL, name, &number, err)) ||
                    (row->type == BLOCK_OPTION_NUMBER &&
                     !block_option_number(options, NULL, name, &number, err))))
            return false;
    }
    return true;
}

/* What the format knows, and behind it what the file below does. Free it. */
static BlockOption *all_options(const BlockCreate *create)
{
    GArray *rows = g_array_new(TRUE, TRUE, sizeof(BlockOption));
    const BlockOption *own = block_create_options(create->format);
    const BlockOption *file = block_create_file_options(create->path, NULL);
    for (const BlockOption *o = own; o && o->name; o++)
        g_array_append_val(rows, *o);
    for (const BlockOption *o = file; o && o->name; o++) {
        if (!block_option_find(own, o->name))
            g_array_append_val(rows, *o);
    }
    return (BlockOption *)(void *)g_array_free(rows, FALSE);
}

bool image_create_options(const char *text, BlockCreate *create, json_t *options, GError **err)
{
    g_autofree BlockOption *table = all_options(create);
    if (!block_options_parse(text, table, NULL, options, err) ||
        !image_check_option_values(options, table, err) ||
        !block_option_size(options, NULL, "size", &create->size, err))
        return false;
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

bool image_parse_create(const char *path, const char *text, BlockCreate *create, json_t *options)
{
    g_autoptr(GError) error = NULL;
    if (image_create_options(text, create, options, &error))
        return true;
    image_fail("%s: %s", path, error->message);
    return false;
}

/* A comma in a value is written twice, so that the line can be parsed again. */
static void print_text(const char *name, const char *value)
{
    printf(" %s=", name);
    for (const char *at = value; *at; at++)
        printf(*at == ',' ? ",," : "%c", *at);
}

/* As qemu-img: options in the order of the format's table, the size where its row is. */
static void announce(const BlockCreate *c)
{
    g_autofree BlockOption *table = all_options(c);
    printf("Formatting '%s', fmt=%s", c->path, c->format);
    for (const BlockOption *o = table; o->name; o++) {
        const char *value = block_option_string(c->options, NULL, o->name);
        uint64_t number = 0;
        if (!strcmp(o->name, "size")) {
            printf(" size=%" G_GUINT64_FORMAT, c->size);
        } else if (!strcmp(o->name, "backing_file")) {
            if (c->backing)
                print_text(o->name, c->backing);
        } else if (!strcmp(o->name, "backing_fmt")) {
            if (c->backing_format)
                print_text(o->name, c->backing_format);
        } else if (value && (o->type == BLOCK_OPTION_SIZE || o->type == BLOCK_OPTION_NUMBER)) {
            block_option_size(c->options, NULL, o->name, &number, NULL);
            printf(" %s=%" G_GUINT64_FORMAT, o->name, number);
        } else if (value || o->fallback) {
            print_text(o->name, value ? value : o->fallback);
        }
    }
    printf("\n");
    fflush(stdout);
}

/* The backing image must open; its size is the default. */
static bool look_at_backing(BlockCreate *c, bool unchecked, GError **err)
{
    static const char no_format[] = "Backing file specified without backing format";
    if (!c->backing)
        return true;
    if (unchecked)
        return c->backing_format || lodge_fail(err, LODGE_ERROR_INVALID, no_format);
    g_autofree char *path = block_reference_path(c->path, c->backing);
    BlockOpen open = {.path = path,
                      .format = c->backing_format,
                      .read_only = true,
                      .shared = true,
                      .no_secrets = true,
                      .objects = c->objects};
    g_autoptr(BlockNode) node = block_open(&open, err);
    if (!node) {
        if (err && *err) {
            GError *hinted = g_error_new((*err)->domain, LODGE_ERROR_INVALID,
                                         "%s\nCould not open backing image.", (*err)->message);
            g_clear_error(err);
            g_propagate_error(err, hinted);
        }
        return false;
    }
    if (!c->backing_format)
        return lodge_fail(err, LODGE_ERROR_INVALID, "%s\nDetected format of %s.", no_format,
                          block_format(node));
    if (c->size == UINT64_MAX)
        c->size = block_size(node);
    return true;
}

typedef struct Create {
    BlockCreate create;
    const char *backing, *backing_format;
    GPtrArray *texts; /* of -o */
    bool unchecked, help;
} Create;

static ImageApplied apply(void *opaque, int key, const char *value)
{
    Create *c = opaque;
    switch (key) {
    case 'b':
        c->backing = value;
        return IMAGE_APPLIED;
    case 'F':
        c->backing_format = value;
        return IMAGE_APPLIED;
    case 'o':
        g_ptr_array_add(c->texts, (char *)(uintptr_t)value);
        c->help = c->help || image_wants_option_help(value);
        return image_option_list_valid(value) ? IMAGE_APPLIED : IMAGE_REFUSED;
    case 'u':
        c->unchecked = true;
        return IMAGE_APPLIED;
    default:
        return IMAGE_NOT_MINE;
    }
}

static bool check_format(const BlockCreate *c, GError **err)
{
    if (!block_format_exists(c->format))
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "Unknown file format '%s'", c->format);
    if (!block_create_file_options(c->path, err))
        return false;
    return block_create_options(c->format) ||
           lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                      "Format driver '%s' does not support image creation", c->format);
}

static bool apply_backing(Create *c, GError **err)
{
    BlockCreate *create = &c->create;
    const BlockOption *table = block_create_options(create->format);
    if (c->backing)
        create->backing = c->backing;
    if (c->backing_format)
        create->backing_format = c->backing_format;
    if (create->backing && !block_option_find(table, "backing_file"))
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "Backing file not supported for file format '%s'", create->format);
    if (create->backing_format && !block_option_find(table, "backing_fmt"))
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "Backing file format not supported for file format '%s'", create->format);
    if (create->backing && !strcmp(create->backing, create->path))
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "Error: Trying to create an image with the same filename as the "
                          "backing file");
    if (create->backing && !*create->backing)
        return lodge_fail(err, LODGE_ERROR_INVALID, "Expected backing file name, got empty string");
    return look_at_backing(create, c->unchecked, err);
}

static bool make(Create *c, uint64_t size, bool quiet, json_t *named, GError **err)
{
    BlockCreate *create = &c->create;
    if (!check_format(create, err))
        return false;
    create->size = UINT64_MAX;
    create->options = named;
    for (guint i = 0; i < c->texts->len; i++) {
        if (!image_create_options(g_ptr_array_index(c->texts, i), create, named, err))
            return false;
    }
    if (create->size != UINT64_MAX && size != UINT64_MAX)
        return lodge_fail(err, LODGE_ERROR_INVALID, "The image size must be specified only once");
    create->size = MIN(create->size, size);
    if (!apply_backing(c, err))
        return false;
    if (create->size == UINT64_MAX)
        return lodge_fail(err, LODGE_ERROR_INVALID, "Image creation needs a size parameter");
    if (!quiet)
        announce(create);
    create->size = (create->size + 511) & ~511ull;
    g_autoptr(GError) cause = NULL;
    if (block_create(create, &cause))
        return true;
    if (cause->code != LODGE_ERROR_LIMIT) {
        g_propagate_error(err, g_steal_pointer(&cause));
        return false;
    }
    const char *cluster =
        block_option_string(named, block_create_options(create->format), "cluster_size");
    return lodge_fail(err, LODGE_ERROR_LIMIT, "The image size is too large for file format '%s'%s",
                      create->format,
                      cluster && strcmp(cluster, "0") ? " (try using a larger cluster size)" : "");
}

static const ImageOption options[] = {
    IMAGE_OPTION_HELP,
    IMAGE_OPTION_OBJECT,
    IMAGE_OPTION_QUIET,
    {'f', NULL, "FMT", "format of the new image; raw when it is not said"},
    {'b', NULL, "BACKING_FILE", "what the new image is based on"},
    {'F', NULL, "BACKING_FMT", "format of the backing file"},
    {'u', NULL, NULL, "do not look whether the backing file opens"},
    {'o', NULL, "OPTIONS",
     "options of the format, name=value separated by commas; help lists them"},
    {0, NULL, NULL, NULL},
};

static int run(int argc, char **argv)
{
    g_autoptr(GPtrArray) texts = g_ptr_array_new();
    g_auto(ImageArguments) a = {0};
    json_auto_t *named = json_object();
    Create c = {.texts = texts};
    uint64_t size = UINT64_MAX;
    int status;
    if (!image_parse(options, argc, argv, &a, apply, &c, &status))
        return status;
    const char *format = a.format ? a.format : "raw";
    if (c.help)
        return image_option_help(a.n_names ? a.names[0] : NULL, format);
    if (a.n_names == 0)
        return image_usage("Expecting image file name");
    if (a.n_names > 1 && !image_parse_number("image size", a.names[1], 0, INT64_MAX, &size))
        return 1;
    if (a.n_names > 2)
        return image_usage("Unexpected argument: %s", a.names[2]);
    c.create.path = a.names[0];
    c.create.format = format;
    c.create.objects = a.objects;
    g_autoptr(GError) error = NULL;
    if (!make(&c, size, a.quiet, named, &error))
        return image_fail("%s: %s", a.names[0], error->message);
    return 0;
}

const ImageCommand image_create_command = {
    .name = "create",
    .run = run,
    .usage = "[--object objectdef] [-q] [-f fmt] [-b backing_file [-F backing_fmt]] [-u] "
             "[-o options] filename [size]",
    .options = options,
};
