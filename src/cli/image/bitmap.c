/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "cli/image/image.h"

#include "disk/bitmap.h"

#include <string.h>

enum { ADD = IMAGE_OWN, REMOVE, CLEAR, ENABLE, DISABLE, MERGE };

typedef struct Action {
    int what;
    const char *from; /* of MERGE */
} Action;

typedef struct Bitmap {
    GArray *actions; /* Action, in the order they were given */
    const char *source, *source_format;
    uint64_t granularity;
} Bitmap;

static ImageApplied apply(void *opaque, int key, const char *value)
{
    Bitmap *b = opaque;
    Action action = {key, value};
    if (key >= ADD && key <= MERGE) {
        g_array_append_val(b->actions, action);
        return IMAGE_APPLIED;
    }
    switch (key) {
    case 'b':
        b->source = value;
        return IMAGE_APPLIED;
    case 'F':
        b->source_format = value;
        return IMAGE_APPLIED;
    case 'g':
        return image_parse_number("granularity", value, 0, INT64_MAX, &b->granularity)
                   ? IMAGE_APPLIED
                   : IMAGE_REFUSED;
    default:
        return IMAGE_NOT_MINE;
    }
}

static bool has(const Bitmap *b, int what)
{
    for (guint i = 0; i < b->actions->len; i++) {
        if (g_array_index(b->actions, Action, i).what == what)
            return true;
    }
    return false;
}

static bool act(const Action *a, const Bitmap *b, BlockNode *node, BlockNode *source,
                const char *name, GError **err)
{
    switch (a->what) {
    case ADD:
        return block_bitmap_add(node, name, b->granularity, true, true, err);
    case REMOVE:
        return block_bitmap_remove(node, name, err);
    case CLEAR:
        return block_bitmap_clear(node, name, err);
    case ENABLE:
        return block_bitmap_enable(node, name, true, err);
    case DISABLE:
        return block_bitmap_enable(node, name, false, err);
    default:
        return block_bitmap_merge(node, name, source, a->from, err);
    }
}

static int act_all(const Bitmap *b, BlockNode *node, BlockNode *source, const char *name)
{
    static const char *const names[] = {"add", "remove", "clear", "enable", "disable", "merge"};
    for (guint i = 0; i < b->actions->len; i++) {
        const Action *a = &g_array_index(b->actions, Action, i);
        g_autoptr(GError) error = NULL;
        if (!act(a, b, node, source, name, &error))
            return image_fail("Operation %s on bitmap %s failed: %s", names[a->what - ADD], name,
                              error->message);
    }
    int result = block_flush(node);
    return result < 0 ? image_fail("%s: %s", block_path(node), g_strerror(-result)) : 0;
}

static const ImageOption options[] = {
    IMAGE_OPTION_HELP,
    {MERGE, "merge", "SOURCE", "add what is dirty in this bitmap"},
    {ADD, "add", NULL, "make a bitmap that records writes"},
    {REMOVE, "remove", NULL, "remove it"},
    {CLEAR, "clear", NULL, "nothing is dirty any more"},
    {ENABLE, "enable", NULL, "record writes"},
    {DISABLE, "disable", NULL, "record no more writes"},
    {'b', "source-file", "SOURCE_FILE", "the image whose bitmap is merged; else this one"},
    {'F', "source-format", "SOURCE_FMT", "its format"},
    {'g', "granularity", "GRANULARITY", "bytes that one bit of a new bitmap speaks of"},
    IMAGE_OPTION_OBJECT,
    IMAGE_OPTION_IMAGE_OPTS,
    IMAGE_OPTION_FORMAT,
    {0, NULL, NULL, NULL},
};

static int run(int argc, char **argv)
{
    g_autoptr(GArray) actions = g_array_new(FALSE, FALSE, sizeof(Action));
    g_auto(ImageArguments) a = {0};
    Bitmap b = {.actions = actions};
    int status;
    if (!image_parse(options, argc, argv, &a, apply, &b, &status))
        return status;
    if (actions->len == 0)
        return image_fail("Need at least one of --add, --remove, --clear, --enable, --disable, or "
                          "--merge");
    if (b.granularity && !has(&b, ADD))
        return image_fail("granularity only supported with --add");
    if (b.source_format && !b.source)
        return image_fail("-F only supported with -b");
    if (b.source && !has(&b, MERGE))
        return image_fail("Merge bitmap source file only supported with --merge");
    if (a.n_names != 2)
        return image_fail("Expecting filename and bitmap name");
    ImageOpen open = {.format = a.format,
                      .write = true,
                      .no_backing = true,
                      .image_opts = a.image_opts,
                      .objects = a.objects};
    ImageOpen from = {.format = b.source_format, .no_backing = true, .objects = a.objects};
    g_autoptr(BlockNode) node = image_open(a.names[0], &open);
    if (!node)
        return 1;
    g_autoptr(BlockNode) source = b.source ? image_open(b.source, &from) : block_ref(node);
    return source ? act_all(&b, node, source, a.names[1]) : 1;
}

const ImageCommand image_bitmap_command = {
    .name = "bitmap",
    .run = run,
    .usage = "(--merge SOURCE | --add | --remove | --clear | --enable | --disable)... "
             "[-b source_file [-F source_fmt]] [-g granularity] [--object objectdef] "
             "[--image-opts | -f fmt] filename bitmap",
    .options = options,
};
