/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "cli/image/image.h"

#include <getopt.h>
#include <stdio.h>
#include <string.h>

typedef struct Piece {
    uint64_t start;
    unsigned depth;
    BlockExtent extent;
} Piece;

static bool goes_on(const Piece *p, const Piece *next)
{
    const BlockExtent *a = &p->extent, *b = &next->extent;
    return p->depth == next->depth && a->present == b->present && a->zero == b->zero &&
           a->data == b->data && a->has_offset == b->has_offset &&
           (!a->has_offset || a->file_offset + a->length == b->file_offset);
}

static const char *path_at(BlockNode *node, unsigned depth)
{
    while (depth-- && block_backing(node))
        node = block_backing(node);
    return block_path(node);
}

static const char *truth(bool value)
{
    return value ? "true" : "false";
}

static int print_piece(BlockNode *node, const Piece *p, bool json, bool first)
{
    const BlockExtent *e = &p->extent;
    if (json) {
        printf("%s{ \"start\": %" G_GUINT64_FORMAT ", \"length\": %" G_GUINT64_FORMAT
               ", \"depth\": %u, \"present\": %s, \"zero\": %s, \"data\": %s",
               first ? "[" : ",\n", p->start, e->length, p->depth, truth(e->present),
               truth(e->zero), truth(e->data));
        if (e->has_offset)
            printf(", \"offset\": %" G_GUINT64_FORMAT, e->file_offset);
        printf("}");
        return 0;
    }
    if (e->data && !e->has_offset)
        return image_fail("File contains external, encrypted or compressed clusters.");
    if (e->data && !e->zero)
        printf("%#-16" G_GINT64_MODIFIER "x%#-16" G_GINT64_MODIFIER "x%#-16" G_GINT64_MODIFIER
               "x%s\n",
               p->start, e->length, e->file_offset, path_at(node, p->depth));
    return 0;
}

static int map(BlockNode *node, uint64_t start, uint64_t length, bool json)
{
    uint64_t size = block_size(node);
    uint64_t end = start < size ? start + MIN(length, size - start) : start;
    Piece last = {0};
    bool any = false, first = true;
    if (!json)
        printf("%-16s%-16s%-16s%s\n", "Offset", "Length", "Mapped to", "File");
    for (uint64_t at = start; at < end;) {
        Piece now = {.start = at};
        int result = block_status_chain(node, at, end - at, &now.extent, &now.depth);
        if (result < 0)
            return image_fail("Failed to read image metadata: %s", g_strerror(-result));
        at += now.extent.length;
        if (any && goes_on(&last, &now)) {
            last.extent.length += now.extent.length;
            continue;
        }
        if (any && print_piece(node, &last, json, first))
            return 1;
        first = first && !any;
        any = true;
        last = now;
    }
    if (any && print_piece(node, &last, json, first))
        return 1;
    if (json)
        printf("%s]\n", any ? "" : "[");
    return 0;
}

static const struct option long_options[] = {{"output", required_argument, NULL, 'O'},
                                             {"start-offset", required_argument, NULL, 's'},
                                             {"max-length", required_argument, NULL, 'l'},
                                             {"force-share", no_argument, NULL, 'U'},
                                             {NULL, 0, NULL, 0}};

static int run(int argc, char **argv)
{
    ImageOpen open = {0};
    uint64_t start = 0, length = UINT64_MAX;
    bool json = false;
    int option;
    opterr = 0;
    while ((option = getopt_long(argc, argv, "f:s:l:U", long_options, NULL)) != -1) {
        switch (option) {
        case 'f':
            open.format = optarg;
            break;
        case 'U':
            open.shared = true;
            break;
        case 's':
        case 'l':
            if (!block_parse_size(optarg, option == 's' ? &start : &length))
                return image_fail("Invalid %s specified: '%s'",
                                  option == 's' ? "start offset" : "maximum length", optarg);
            break;
        case 'O':
            if (!image_parse_output(optarg, &json))
                return 1;
            break;
        default:
            return image_bad_option("map", argv);
        }
    }
    if (argc - optind != 1)
        return image_fail("map: expecting one image file name");
    g_autoptr(BlockNode) node = image_open(argv[optind], &open);
    return node ? map(node, start, length, json) : 1;
}

const ImageCommand image_map_command = {
    .name = "map",
    .run = run,
    .usage = "[-f FORMAT] [--start-offset=N] [--max-length=N] [--output=human|json] [-U] FILE",
};
