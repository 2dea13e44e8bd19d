/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "cli/image/image.h"

#include <getopt.h>
#include <stdio.h>
#include <string.h>

static const struct option long_options[] = {{"shrink", no_argument, NULL, 's'},
                                             {"preallocation", required_argument, NULL, 'p'},
                                             {NULL, 0, NULL, 0}};

static int resize(const char *path, const char *text, const ImageOpen *open, bool shrink,
                  bool quiet)
{
    g_autoptr(GError) error = NULL;
    char sign = text[0] == '+' || text[0] == '-' ? text[0] : 0;
    uint64_t amount;
    if (!block_parse_size(sign ? text + 1 : text, &amount))
        return image_fail("Parameter 'size' expects a size: '%s'", text);
    g_autoptr(BlockNode) node = image_open(path, open);
    if (!node)
        return 1;
    uint64_t now = block_size(node);
    if (sign == '-' && amount >= now)
        return image_fail("New image size must be positive");
    uint64_t size = sign == '+' ? now + amount : sign == '-' ? now - amount : amount;
    if (size == 0)
        return image_fail("New image size must be positive");
    size = (size + 511) & ~511ull;
    if (size < now && !shrink)
        return image_fail("Use the --shrink option to perform a shrink operation. Shrinking an "
                          "image deletes all data beyond the new end.");
    if (!block_resize(node, &(BlockResize){.size = size, .shrink = shrink}, &error))
        return image_fail("%s", error->message);
    if (!quiet)
        printf("Image resized.\n");
    return 0;
}

static int run(int argc, char **argv)
{
    ImageOpen open = {.write = true};
    bool shrink = false, quiet = false;
    int option;
    opterr = 0;
    /* The options come first, so that a size of -1G is not taken for one. */
    while (optind < argc && (argv[optind][0] != '-' || !g_ascii_isdigit(argv[optind][1])) &&
           (option = getopt_long(argc, argv, "+f:q", long_options, NULL)) != -1) {
        switch (option) {
        case 'f':
            open.format = optarg;
            break;
        case 'q':
            quiet = true;
            break;
        case 's':
            shrink = true;
            break;
        case 'p':
            if (!strcmp(optarg, "off"))
                break;
            return image_fail("resize: preallocation '%s' is not supported; off is", optarg);
        default:
            return image_bad_option("resize", argv);
        }
    }
    if (argc - optind != 2)
        return image_fail("Expecting image file name and size");
    return resize(argv[optind], argv[optind + 1], &open, shrink, quiet);
}

const ImageCommand image_resize_command = {
    .name = "resize",
    .run = run,
    .usage = "[-f FORMAT] [--preallocation=off] [-q] [--shrink] FILE [+|-]SIZE",
};
