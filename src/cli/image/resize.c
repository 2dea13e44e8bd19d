/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "cli/image/image.h"

#include <stdio.h>
#include <string.h>

enum { SHRINK = IMAGE_OWN, PREALLOCATION };

typedef struct Resize {
    BlockResize how;
    uint64_t amount;
    int sign; /* of a change; 0: @amount is the size */
} Resize;

static ImageApplied apply(void *opaque, int key, const char *value)
{
    Resize *r = opaque;
    if (key == SHRINK) {
        r->how.shrink = true;
        return IMAGE_APPLIED;
    }
    if (key != PREALLOCATION)
        return IMAGE_NOT_MINE;
    json_auto_t *option = json_pack("{s:s}", "preallocation", value);
    if (option && block_preallocation(option, &r->how.preallocation, NULL))
        return IMAGE_APPLIED;
    image_fail("Invalid preallocation mode '%s'", value);
    return IMAGE_REFUSED;
}

static bool parse_size(Resize *r, const char *text)
{
    g_autoptr(GError) error = NULL;
    r->sign = *text == '+' ? 1 : *text == '-' ? -1 : 0;
    json_auto_t *option = json_pack("{s:s}", "size", text + (r->sign != 0));
    if (option && block_option_size(option, NULL, "size", &r->amount, &error))
        return true;
    image_fail("%s", error ? error->message : "the size is not UTF-8");
    return false;
}

static int resize(BlockNode *node, Resize *r, bool quiet)
{
    g_autoptr(GError) error = NULL;
    uint64_t now = block_size(node);
    if ((r->sign < 0 && r->amount >= now) || (r->sign == 0 && r->amount == 0))
        return image_fail("New image size must be positive");
    uint64_t size = r->sign > 0 ? now + r->amount : r->sign < 0 ? now - r->amount : r->amount;
    if (size <= now && r->how.preallocation != BLOCK_PREALLOCATE_OFF)
        return image_fail("Preallocation can only be used for growing images");
    if (size < now && !r->how.shrink) {
        image_fail("Use the --shrink option to perform a shrink operation.");
        return image_fail("warning: Shrinking an image will delete all data beyond the shrunken "
                          "image's end. Before performing such an operation, make sure there is "
                          "no important data there.");
    }
    r->how.size = (size + 511) & ~511ull;
    if (!block_resize(node, &r->how, &error))
        return image_fail("%s", error->message);
    if (!quiet)
        printf("Image resized.\n");
    return 0;
}

static const ImageOption options[] = {
    IMAGE_OPTION_HELP,
    IMAGE_OPTION_OBJECT,
    IMAGE_OPTION_IMAGE_OPTS,
    IMAGE_OPTION_FORMAT,
    {PREALLOCATION, "preallocation", "PREALLOC",
     "off, metadata, falloc or full, for what is added"},
    IMAGE_OPTION_QUIET,
    {SHRINK, "shrink", NULL, "a smaller size is meant; what is beyond it is lost"},
    {0, NULL, NULL, NULL},
};

static int run(int argc, char **argv)
{
    g_auto(ImageArguments) a = {0};
    Resize r = {.sign = 0};
    int status;
    if (argc == 2 && (!strcmp(argv[1], "-h") || !strcmp(argv[1], "--help")))
        return image_parse(options, argc, argv, &a, NULL, NULL, &status) ? 1 : status;
    if (argc < 3)
        return image_usage("Not enough arguments");
    /* The size is the last word, so that -1G is not taken for an option. */
    if (!image_parse(options, argc - 1, argv, &a, apply, &r, &status))
        return status;
    if (a.n_names != 1)
        return image_usage("Expecting image file name and size");
    if (!parse_size(&r, argv[argc - 1]))
        return 1;
    ImageOpen open = {
        .format = a.format, .write = true, .image_opts = a.image_opts, .objects = a.objects};
    g_autoptr(BlockNode) node = image_open(a.names[0], &open);
    if (!node)
        return 1;
    image_progress_begin(false);
    r.how.progress = (BlockProgress){image_progress_step, NULL};
    return resize(node, &r, a.quiet);
}

const ImageCommand image_resize_command = {
    .name = "resize",
    .run = run,
    .usage = "[--object objectdef] [--image-opts] [-f fmt] [--preallocation=prealloc] [-q] "
             "[--shrink] filename [+ | -]size",
    .options = options,
};
