/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "cli/image/image.h"

#include <stdio.h>
#include <string.h>

typedef struct Piece {
    uint64_t start;
    unsigned depth;
    BlockExtent extent;
    const char *file; /* where its bytes are; NULL: nowhere in one piece */
} Piece;

static bool goes_on(const Piece *p, const Piece *next)
{
    const BlockExtent *a = &p->extent, *b = &next->extent;
    return p->depth == next->depth && a->present == b->present && a->zero == b->zero &&
           a->data == b->data && a->has_offset == b->has_offset &&
           !g_strcmp0(p->file, next->file) &&
           (!a->has_offset || a->file_offset + a->length == b->file_offset);
}

static const char *path_at(BlockNode *node, unsigned depth)
{
    while (depth-- && block_backing(node))
        node = block_backing(node);
    return block_file_path(node);
}

static const char *truth(bool value)
{
    return value ? "true" : "false";
}

static void print_json(const Piece *p, bool more)
{
    const BlockExtent *e = &p->extent;
    printf("{ \"start\": %" G_GUINT64_FORMAT ", \"length\": %" G_GUINT64_FORMAT
           ", \"depth\": %u, \"present\": %s, \"zero\": %s, \"data\": %s",
           p->start, e->length, p->depth, truth(e->present), truth(e->zero), truth(e->data));
    if (e->has_offset)
        printf(", \"offset\": %" G_GUINT64_FORMAT, e->file_offset);
    printf(more ? "},\n" : "}");
}

static bool print_human(const Piece *p)
{
    const BlockExtent *e = &p->extent;
    if (e->data && !e->has_offset) {
        image_fail("File contains external, encrypted or compressed clusters.");
        return false;
    }
    if (e->data && !e->zero)
        printf("%#-16" G_GINT64_MODIFIER "x%#-16" G_GINT64_MODIFIER "x%#-16" G_GINT64_MODIFIER
               "x%s\n",
               p->start, e->length, e->file_offset, p->file ? p->file : "");
    return true;
}

/* For people all that is not data is the same. */
static void blur(Piece *p)
{
    if (!p->extent.data || p->extent.zero) {
        p->extent.data = false;
        p->extent.zero = true;
    }
}

static bool look(BlockNode *node, uint64_t at, uint64_t length, Piece *now)
{
    *now = (Piece){.start = at};
    int result = block_status_chain(node, at, length, &now->extent, &now->depth);
    if (result < 0) {
        image_fail("Could not read file metadata: %s", g_strerror(-result));
        return false;
    }
    now->file = !now->extent.has_offset ? NULL
                : now->extent.in_file   ? now->extent.in_file
                                        : path_at(node, now->depth);
    return true;
}

static int map(BlockNode *node, uint64_t start, uint64_t length, bool json)
{
    uint64_t size = block_size(node), end = size;
    Piece last = {.start = start};
    bool any = false;
    if (length <= INT64_MAX && start < size)
        end = MIN(size, start + length);
    if (json)
        printf("[");
    else
        printf("%-16s%-16s%-16s%s\n", "Offset", "Length", "Mapped to", "File");
    for (uint64_t at = start; at < end;) {
        Piece now;
        if (!look(node, at, end - at, &now))
            return 1;
        at += now.extent.length;
        if (any && goes_on(&last, &now)) {
            last.extent.length += now.extent.length;
            continue;
        }
        if (any && json)
            print_json(&last, true);
        else if (any && !print_human(&last))
            return 1;
        if (any && !json)
            blur(&now);
        any = true;
        last = now;
    }
    if (!json)
        return print_human(&last) ? 0 : 1;
    print_json(&last, false);
    printf("]\n");
    return 0;
}

typedef struct Window {
    uint64_t start, length;
} Window;

static ImageApplied apply(void *opaque, int key, const char *value)
{
    Window *w = opaque;
    bool start = key == 's';
    if (key != 's' && key != 'l')
        return IMAGE_NOT_MINE;
    return image_parse_number(start ? "start offset" : "max length", value, 0, INT64_MAX,
                              start ? &w->start : &w->length)
               ? IMAGE_APPLIED
               : IMAGE_REFUSED;
}

static const ImageOption options[] = {
    IMAGE_OPTION_HELP,
    IMAGE_OPTION_OBJECT,
    IMAGE_OPTION_IMAGE_OPTS,
    {'f', "format", "FMT", "format of the image; else it is probed"},
    {'s', "start-offset", "OFFSET", "begin here"},
    {'l', "max-length", "LEN", "at most so many bytes"},
    IMAGE_OPTION_OUTPUT,
    IMAGE_OPTION_SHARE,
    {0, NULL, NULL, NULL},
};

static int run(int argc, char **argv)
{
    g_auto(ImageArguments) a = {0};
    Window w = {0, UINT64_MAX};
    int status;
    if (!image_parse(options, argc, argv, &a, apply, &w, &status))
        return status;
    if (a.n_names != 1)
        return image_usage("Expecting one image file name");
    ImageOpen open = {
        .format = a.format, .shared = a.shared, .image_opts = a.image_opts, .objects = a.objects};
    g_autoptr(BlockNode) node = image_open(a.names[0], &open);
    return node ? map(node, w.start, w.length, a.json) : 1;
}

const ImageCommand image_map_command = {
    .name = "map",
    .run = run,
    .usage = "[--object objectdef] [--image-opts] [-f fmt] [--start-offset=offset] "
             "[--max-length=len] [--output=ofmt] [-U] filename",
    .options = options,
};
