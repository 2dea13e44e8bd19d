/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "cli/image/image.h"

#include <stdio.h>
#include <string.h>

enum { SIZE = IMAGE_OWN };

typedef struct Measure {
    BlockCreate create;
    char *snapshot;   /* owned; NULL: the present */
    GPtrArray *texts; /* of -o */
} Measure;

bool image_snapshot_param(const char *text, char **which)
{
    g_autoptr(GError) error = NULL;
    json_auto_t *named = json_object();
    static const BlockOption known[] = {
        {"snapshot.id", BLOCK_OPTION_STRING, NULL, NULL},
        {"snapshot.name", BLOCK_OPTION_STRING, NULL, NULL},
        {NULL, 0, NULL, NULL},
    };
    g_clear_pointer(which, g_free);
    if (!g_str_has_prefix(text, "snapshot.")) {
        *which = g_strdup(text);
        return true;
    }
    if (!block_options_parse(text, known, NULL, named, &error)) {
        image_fail("%s", error->message);
        image_fail("Failed in parsing snapshot param '%s'", text);
        return false;
    }
    const char *id = block_option_string(named, NULL, "snapshot.id");
    *which = g_strdup(id ? id : block_option_string(named, NULL, "snapshot.name"));
    return true;
}

static ImageApplied apply(void *opaque, int key, const char *value)
{
    Measure *m = opaque;
    switch (key) {
    case 'O':
        m->create.format = value;
        return IMAGE_APPLIED;
    case 'o':
        g_ptr_array_add(m->texts, (char *)(uintptr_t)value);
        return image_option_list_valid(value) ? IMAGE_APPLIED : IMAGE_REFUSED;
    case 'l':
        return image_snapshot_param(value, &m->snapshot) ? IMAGE_APPLIED : IMAGE_REFUSED;
    case SIZE:
        return image_parse_number("image size", value, 0, INT64_MAX, &m->create.size)
                   ? IMAGE_APPLIED
                   : IMAGE_REFUSED;
    default:
        return IMAGE_NOT_MINE;
    }
}

static bool parse_options(Measure *m, json_t *named)
{
    g_autoptr(GError) error = NULL;
    const BlockOption *table = block_create_options(m->create.format);
    if (!block_format_exists(m->create.format))
        return image_fail("Unknown file format '%s'", m->create.format), false;
    if (!table)
        return image_fail("Format driver '%s' does not support image creation", m->create.format),
               false;
    for (guint i = 0; i < m->texts->len; i++) {
        if (image_create_options(g_ptr_array_index(m->texts, i), &m->create, named, &error))
            continue;
        image_fail("%s", error->message);
        image_fail("Invalid options for file format '%s'", m->create.format);
        return false;
    }
    return true;
}

static void print(const BlockMeasure *m, bool json)
{
    if (json) {
        json_auto_t *root = json_pack("{s:I, s:I}", "required", (json_int_t)m->required,
                                      "fully-allocated", (json_int_t)m->fully_allocated);
        if (m->has_bitmaps)
            json_object_set_new(root, "bitmaps", json_integer((json_int_t)m->bitmaps));
        image_print_json(root);
        return;
    }
    printf("required size: %" G_GUINT64_FORMAT "\nfully allocated size: %" G_GUINT64_FORMAT "\n",
           m->required, m->fully_allocated);
    if (m->has_bitmaps)
        printf("bitmaps size: %" G_GUINT64_FORMAT "\n", m->bitmaps);
}

static int measure(Measure *m, const ImageArguments *a, const char *path)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *which = g_steal_pointer(&m->snapshot);
    json_auto_t *named = json_object();
    BlockMeasure result;
    ImageOpen open = {.format = a->format,
                      .shared = a->shared,
                      .image_opts = a->image_opts,
                      .snapshot = which,
                      .objects = a->objects};
    g_autoptr(BlockNode) source = path ? image_open(path, &open) : NULL;
    uint64_t size = m->create.size;
    if ((path && !source) || !parse_options(m, named))
        return 1;
    if (!path)
        m->create.size = size;
    else if (m->create.size == UINT64_MAX)
        m->create.size = block_size(source);
    if (!block_measure(&m->create, source, &result, &error))
        return image_fail("%s", error->message);
    print(&result, a->json);
    return 0;
}

static const ImageOption options[] = {
    IMAGE_OPTION_HELP,
    IMAGE_OPTION_OUTPUT,
    {'O', NULL, "OUTPUT_FMT", "format of the image to be; raw when it is not said"},
    {'o', NULL, "OPTIONS", "its options, as create takes them"},
    {SIZE, "size", "N", "an empty image of this size"},
    IMAGE_OPTION_OBJECT,
    IMAGE_OPTION_IMAGE_OPTS,
    {'f', NULL, "FMT", "format of the image that would be copied; else it is probed"},
    {'l', NULL, "SNAPSHOT_PARAM", "an internal snapshot of it"},
    IMAGE_OPTION_SHARE,
    {0, NULL, NULL, NULL},
};

static int run(int argc, char **argv)
{
    g_autoptr(GPtrArray) texts = g_ptr_array_new();
    g_auto(ImageArguments) a = {0};
    Measure m = {.create = {.format = "raw", .size = UINT64_MAX}, .texts = texts};
    int status;
    if (!image_parse(options, argc, argv, &a, apply, &m, &status))
        return status;
    const char *path = a.n_names ? a.names[0] : NULL;
    if (a.n_names > 1)
        return image_fail("At most one filename argument is allowed.");
    if (!path && (a.image_opts || a.format || m.snapshot))
        return image_fail("--image-opts, -f, and -l require a filename argument.");
    if (path && m.create.size != UINT64_MAX)
        return image_fail("--size N cannot be used together with a filename.");
    if (!path && m.create.size == UINT64_MAX)
        return image_fail("Either --size N or one filename must be specified.");
    m.create.path = path ? path : "";
    m.create.objects = a.objects;
    return measure(&m, &a, path);
}

const ImageCommand image_measure_command = {
    .name = "measure",
    .run = run,
    .usage = "[--output=ofmt] [-O output_fmt] [-o options] [--size N | [--object objectdef] "
             "[--image-opts] [-f fmt] [-l snapshot_param] [-U] filename]",
    .options = options,
};
