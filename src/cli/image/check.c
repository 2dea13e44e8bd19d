/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "cli/image/image.h"

#include <stdio.h>
#include <string.h>

enum { EXIT_CORRUPT = 2, EXIT_LEAKS = 3, EXIT_NO_CHECK = 63 };
enum { EXPLAIN = IMAGE_OWN, DRY_RUN };

/* Findings are told as they are found, beside what --output prints. */
static void say(void *opaque, const char *text)
{
    fprintf(stderr, "%s\n", text);
}

/* What --explain adds to the line before: where, and what would help. */
static void explain(void *opaque, const BlockFinding *f)
{
    g_autoptr(GString) text = g_string_new(NULL);
    g_string_printf(text, "    %s: %s", f->kind, f->table);
    if (f->index >= 0)
        g_string_append_printf(text, " entry %" G_GINT64_FORMAT, f->index);
    g_string_append_printf(text, ", host cluster %" G_GUINT64_FORMAT " at offset 0x%"
                           G_GINT64_MODIFIER "x", f->cluster, f->host);
    if (f->guest != BLOCK_NO_OFFSET)
        g_string_append_printf(text, ", guest offset 0x%" G_GINT64_MODIFIER "x", f->guest);
    if (f->mended_by == BLOCK_REPAIR_NONE)
        g_string_append_printf(text, "; no repair: %s", f->repair);
    else if (f->fixing)
        g_string_append_printf(text, "; repair: %s", f->repair);
    else
        g_string_append_printf(text, "; \"-r %s\" would %s",
                               f->mended_by == BLOCK_REPAIR_LEAKS ? "leaks" : "all", f->repair);
    say(opaque, text->str);
}

typedef struct Check {
    BlockRepair repair;
    bool write, dry_run, explain;
} Check;

static void put(json_t *root, const char *name, uint64_t value)
{
    if (value)
        json_object_set_new(root, name, json_integer((json_int_t)value));
}

static void print_json(const char *path, BlockNode *node, const BlockCheck *c)
{
    json_auto_t *root = json_pack("{s:s, s:s, s:I}", "filename", path, "format", block_format(node),
                                  "check-errors", (json_int_t)c->errors);
    put(root, "image-end-offset", c->image_end);
    put(root, "corruptions", c->corruptions);
    put(root, "leaks", c->leaks);
    put(root, "corruptions-fixed", c->corruptions_fixed);
    put(root, "leaks-fixed", c->leaks_fixed);
    put(root, "total-clusters", c->total_clusters);
    put(root, "allocated-clusters", c->allocated_clusters);
    put(root, "fragmented-clusters", c->fragmented_clusters);
    put(root, "compressed-clusters", c->compressed_clusters);
    image_print_json(root);
}

static void print_human(const BlockCheck *c)
{
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
    if (c->errors)
        printf("\n%" G_GUINT64_FORMAT " internal errors have occurred during the check.\n",
               c->errors);
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

/* What was repaired is looked at once more, as a check that repairs nothing sees it. */
static bool look_again(BlockNode *node, BlockCheck *c, bool human, GError **err)
{
    if (!c->corruptions_fixed && !c->leaks_fixed)
        return true;
    if (human)
        printf("The following inconsistencies were found and repaired:\n\n"
               "    %" G_GUINT64_FORMAT " leaked clusters\n    %" G_GUINT64_FORMAT
               " corruptions\n\nDouble checking the fixed image now...\n",
               c->leaks_fixed, c->corruptions_fixed);
    BlockCheck again = {.repair = BLOCK_REPAIR_NONE, .message = say, .finding = c->finding};
    if (!block_check(node, &again, err))
        return false;
    again.corruptions_fixed = c->corruptions_fixed;
    again.leaks_fixed = c->leaks_fixed;
    *c = again;
    return true;
}

static int check(const char *path, const ImageOpen *open, const Check *what,
                 const ImageArguments *a)
{
    g_autoptr(GError) error = NULL;
    bool told = what->explain || what->dry_run;
    BlockCheck c = {.repair = what->dry_run ? BLOCK_REPAIR_NONE : what->repair,
                    .message = say, .finding = told ? explain : NULL};
    g_autoptr(BlockNode) node = image_open(path, open);
    if (!node)
        return 1;
    if (!block_can_check(node)) {
        image_fail("This image format does not support checks");
        return EXIT_NO_CHECK;
    }
    if (told && !block_check_explains(node))
        return image_fail("%s: the check of format \"%s\" cannot explain its findings: leave out "
                          "%s", path, block_format(node),
                          what->explain ? "--explain" : "--dry-run");
    if (!block_check(node, &c, &error) || !look_again(node, &c, !a->json && !a->quiet, &error))
        return image_fail("Check failed: %s", error->message);
    if (a->json && !a->quiet)
        print_json(path, node, &c);
    else if (!a->quiet)
        print_human(&c);
    if (c.errors)
        return image_fail("Check failed");
    return c.corruptions ? EXIT_CORRUPT : c.leaks ? EXIT_LEAKS : 0;
}

static ImageApplied apply(void *opaque, int key, const char *value)
{
    Check *c = opaque;
    if (key == EXPLAIN || key == DRY_RUN) {
        *(key == EXPLAIN ? &c->explain : &c->dry_run) = true;
        return IMAGE_APPLIED;
    }
    if (key != 'r')
        return IMAGE_NOT_MINE;
    c->write = true;
    if (!strcmp(value, "leaks")) {
        c->repair = BLOCK_REPAIR_LEAKS;
    } else if (!strcmp(value, "all")) {
        c->repair = BLOCK_REPAIR_ALL;
    } else {
        image_usage("Unknown option value for -r (expecting 'leaks' or 'all'): %s", value);
        return IMAGE_REFUSED;
    }
    return IMAGE_APPLIED;
}

static const ImageOption options[] = {
    IMAGE_OPTION_HELP,
    IMAGE_OPTION_OBJECT,
    IMAGE_OPTION_IMAGE_OPTS,
    IMAGE_OPTION_QUIET,
    {'f', "format", "FMT", "format of the image; else it is probed"},
    IMAGE_OPTION_OUTPUT,
    {'r', "repair", "WHAT", "leaks: give back what nothing uses; all: mend everything"},
    {EXPLAIN, "explain", NULL, "say of each finding where it is and what would repair it"},
    {DRY_RUN, "dry-run", NULL, "say what -r would do, and write nothing"},
    IMAGE_OPTION_SOURCE_CACHE,
    IMAGE_OPTION_SHARE,
    {0, NULL, NULL, NULL},
};

static int run(int argc, char **argv)
{
    g_auto(ImageArguments) a = {0};
    Check c = {0};
    int status;
    if (!image_parse(options, argc, argv, &a, apply, &c, &status))
        return status;
    if (a.n_names != 1)
        return image_usage("Expecting one image file name");
    if (c.dry_run && !c.write)
        return image_usage("--dry-run needs -r: it says what that would do");
    c.write &= !c.dry_run;
    ImageOpen open = {.format = a.format,
                      .write = c.write,
                      .repair = c.write,
                      .shared = a.shared,
                      .image_opts = a.image_opts,
                      .cache = a.source_cache,
                      .source = true,
                      .objects = a.objects};
    return check(a.names[0], &open, &c, &a);
}

const ImageCommand image_check_command = {
    .name = "check",
    .run = run,
    .usage = "[--object objectdef] [--image-opts] [-q] [-f fmt] [--output=ofmt] "
             "[-r [leaks | all]] [--explain] [--dry-run] [-T src_cache] [-U] filename",
    .options = options,
};
