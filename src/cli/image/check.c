/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "cli/image/image.h"

#include <getopt.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { EXIT_CORRUPT = 2, EXIT_LEAKS = 3, EXIT_NO_CHECK = 63 };

static void say(void *opaque, const char *text)
{
    const bool *quiet = opaque;
    if (!*quiet)
        fprintf(stderr, "%s\n", text);
}

static void put(json_t *root, const char *name, uint64_t value)
{
    if (value)
        json_object_set_new(root, name, json_integer((json_int_t)value));
}

static void print_json(BlockNode *node, const BlockCheck *c)
{
    json_t *root = json_pack("{s:s, s:s, s:I}", "filename", block_path(node), "format",
                             block_format(node), "check-errors", (json_int_t)c->errors);
    put(root, "image-end-offset", c->image_end);
    put(root, "corruptions", c->corruptions);
    put(root, "leaks", c->leaks);
    put(root, "corruptions-fixed", c->corruptions_fixed);
    put(root, "leaks-fixed", c->leaks_fixed);
    put(root, "total-clusters", c->total_clusters);
    put(root, "allocated-clusters", c->allocated_clusters);
    put(root, "fragmented-clusters", c->fragmented_clusters);
    put(root, "compressed-clusters", c->compressed_clusters);
    char *text = json_dumps(root, JSON_INDENT(4));
    printf("%s\n", text);
    free(text);
    json_decref(root);
}

static void print_human(const BlockCheck *c)
{
    if (c->corruptions_fixed || c->leaks_fixed)
        printf("The following inconsistencies were found and repaired:\n\n"
               "    %" G_GUINT64_FORMAT " leaked clusters\n    %" G_GUINT64_FORMAT
               " corruptions\n\nDouble checking the fixed image now...\n",
               c->leaks_fixed, c->corruptions_fixed);
    if (!c->corruptions && !c->leaks && !c->errors)
        printf("No errors were found on the image.\n");
    if (c->corruptions)
        printf("\n%" G_GUINT64_FORMAT " errors were found on the image.\n"
               "Data may be corrupted, or further writes to the image may corrupt it.\n",
               c->corruptions);
    if (c->leaks)
        printf("\n%" G_GUINT64_FORMAT " leaked clusters were found on the image.\n"
               "This means waste of disk space, but no harm to data.\n",
               c->leaks);
    if (c->total_clusters && c->allocated_clusters)
        printf("%" G_GUINT64_FORMAT "/%" G_GUINT64_FORMAT
               " = %0.2f%% allocated, %0.2f%% fragmented, %0.2f%% compressed clusters\n",
               c->allocated_clusters, c->total_clusters,
               100.0 * (double)c->allocated_clusters / (double)c->total_clusters,
               100.0 * (double)c->fragmented_clusters / (double)c->allocated_clusters,
               100.0 * (double)c->compressed_clusters / (double)c->allocated_clusters);
    if (c->image_end)
        printf("Image end offset: %" G_GUINT64_FORMAT "\n", c->image_end);
}

static int check(const char *path, const ImageOpen *open, BlockRepair repair, bool json, bool quiet)
{
    g_autoptr(GError) error = NULL;
    bool silent = quiet || json;
    BlockCheck c = {.repair = repair, .message = say, .opaque = &silent};
    g_autoptr(BlockNode) node = image_open(path, open);
    if (!node)
        return 1;
    if (!block_can_check(node)) {
        image_fail("This image format does not support checks");
        return EXIT_NO_CHECK;
    }
    if (!block_check(node, &c, &error))
        return image_fail("Check failed: %s", error->message);
    if (json)
        print_json(node, &c);
    else if (!quiet)
        print_human(&c);
    return c.errors ? 1 : c.corruptions ? EXIT_CORRUPT : c.leaks ? EXIT_LEAKS : 0;
}

static const struct option long_options[] = {{"output", required_argument, NULL, 'O'},
                                             {"repair", required_argument, NULL, 'r'},
                                             {"force-share", no_argument, NULL, 'U'},
                                             {NULL, 0, NULL, 0}};

static int run(int argc, char **argv)
{
    ImageOpen open = {.no_backing = true};
    BlockRepair repair = BLOCK_REPAIR_NONE;
    bool json = false, quiet = false;
    int option;
    opterr = 0;
    while ((option = getopt_long(argc, argv, "f:r:T:qU", long_options, NULL)) != -1) {
        switch (option) {
        case 'f':
            open.format = optarg;
            break;
        case 'T':
            open.cache = optarg;
            break;
        case 'q':
            quiet = true;
            break;
        case 'U':
            open.shared = true;
            break;
        case 'r':
            open.write = open.repair = true;
            if (!strcmp(optarg, "leaks"))
                repair = BLOCK_REPAIR_LEAKS;
            else if (!strcmp(optarg, "all"))
                repair = BLOCK_REPAIR_ALL;
            else
                return image_fail("-r expects leaks or all, not '%s'", optarg);
            break;
        case 'O':
            if (!image_parse_output(optarg, &json))
                return 1;
            break;
        default:
            return image_bad_option("check", argv);
        }
    }
    if (argc - optind != 1)
        return image_fail("check: expecting one image file name");
    return check(argv[optind], &open, repair, json, quiet);
}

const ImageCommand image_check_command = {
    .name = "check",
    .run = run,
    .usage = "[-q] [-f FORMAT] [--output=human|json] [-r leaks|all] [-T CACHE] [-U] FILE",
};
