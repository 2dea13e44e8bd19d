/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "cli/image/image.h"

#include "base/error.h"

#include <stdio.h>
#include <string.h>

enum { FORCE = IMAGE_OWN };

typedef struct Amend {
    GPtrArray *texts; /* of -o */
    bool force, help;
} Amend;

static ImageApplied apply(void *opaque, int key, const char *value)
{
    Amend *m = opaque;
    if (key == FORCE) {
        m->force = true;
        return IMAGE_APPLIED;
    }
    if (key != 'o')
        return IMAGE_NOT_MINE;
    g_ptr_array_add(m->texts, (char *)(uintptr_t)value);
    m->help = m->help || image_wants_option_help(value);
    return image_option_list_valid(value) ? IMAGE_APPLIED : IMAGE_REFUSED;
}

static int help(const char *format)
{
    const BlockOption *table = block_amend_options(format);
    if (!block_format_exists(format))
        return image_fail("Unknown file format '%s'", format);
    if (!table)
        return image_fail("Format driver '%s' does not support option amendment", format);
    printf("Amend options for '%s':\n", format);
    image_print_option_table(table);
    return 0;
}

/* What is known for creation only is refused with words that say so. */
static bool parse(const char *format, GPtrArray *texts, json_t *named, GError **err)
{
    const BlockOption *table = block_amend_options(format);
    for (guint i = 0; i < texts->len; i++) {
        const char *text = g_ptr_array_index(texts, i);
        g_autoptr(GError) cause = NULL;
        if (block_options_parse(text, table, NULL, named, &cause) &&
            image_check_option_values(named, table, &cause))
            continue;
        json_auto_t *scratch = json_object();
        bool creates = block_options_parse(text, block_create_options(format), NULL, scratch, NULL);
        return lodge_fail(err, LODGE_ERROR_INVALID, "%s%s", cause->message,
                          creates ? "\nThis option is only supported for image creation" : "");
    }
    return true;
}

static int amend(BlockNode *node, const Amend *m, const ImageArguments *a)
{
    g_autoptr(GError) error = NULL;
    json_auto_t *named = json_object();
    const char *format = block_format(node);
    if (m->help)
        return help(format);
    if (!block_amend_options(format))
        return image_fail("Format driver '%s' does not support option amendment", format);
    if (!parse(format, m->texts, named, &error))
        return image_fail("%s", error->message);
    BlockProgress progress = {image_progress_step, NULL};
    image_progress_begin(a->progress);
    bool ok = block_amend(node, named, a->objects, m->force, &progress, &error);
    image_progress_end(true);
    return ok ? 0 : image_fail("%s", error->message);
}

static const ImageOption options[] = {
    IMAGE_OPTION_HELP,
    IMAGE_OPTION_OBJECT,
    IMAGE_OPTION_IMAGE_OPTS,
    IMAGE_OPTION_PROGRESS,
    IMAGE_OPTION_QUIET,
    IMAGE_OPTION_FORMAT,
    IMAGE_OPTION_CACHE,
    {FORCE, "force", NULL, "even what may make the image unreadable, as removing its last key"},
    {'o', NULL, "OPTIONS", "what to change, name=value separated by commas; help lists the names"},
    {0, NULL, NULL, NULL},
};

static int run(int argc, char **argv)
{
    g_autoptr(GPtrArray) texts = g_ptr_array_new();
    g_auto(ImageArguments) a = {0};
    Amend m = {.texts = texts};
    int status;
    if (!image_parse(options, argc, argv, &a, apply, &m, &status))
        return status;
    if (texts->len == 0)
        return image_usage("Must specify options (-o)");
    if (a.format && m.help)
        return help(a.format);
    if (a.n_names != 1)
        return image_fail("Expecting one image file name");
    ImageOpen open = {.format = a.format,
                      .write = true,
                      .image_opts = a.image_opts,
                      .cache = a.cache,
                      .objects = a.objects};
    g_autoptr(BlockNode) node = image_open(a.names[0], &open);
    return node ? amend(node, &m, &a) : 1;
}

const ImageCommand image_amend_command = {
    .name = "amend",
    .run = run,
    .usage = "[--object objectdef] [--image-opts] [-p] [-q] [-f fmt] [-t cache] [--force] "
             "-o options filename",
    .options = options,
};
