/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "cli/image/image.h"

#include "cli/image/snapshot-table.h"
#include "disk/json-text.h"

#include <stdio.h>
#include <string.h>

static json_t *json_snapshots(const BlockInfo *info)
{
    json_t *list = json_array();
    for (unsigned i = 0; i < info->n_snapshots; i++) {
        const BlockSnapshotInfo *s = &info->snapshots[i];
        json_t *one = json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:I}", "id", s->id, "name", s->name,
                                "vm-state-size", (json_int_t)s->vm_state_size, "date-sec",
                                (json_int_t)s->date_seconds, "date-nsec", (json_int_t)s->date_ns,
                                "vm-clock-sec", (json_int_t)(s->vm_clock_ns / 1000000000),
                                "vm-clock-nsec", (json_int_t)(s->vm_clock_ns % 1000000000));
        if (s->has_icount)
            json_object_set_new(one, "icount", json_integer((json_int_t)s->icount));
        json_array_append_new(list, one);
    }
    return list;
}

/* Members in the order of QEMU's schema, which decides where two share a bucket. */
static json_t *json_info(const BlockNode *node, const BlockInfo *info, const char *full)
{
    json_t *root =
        json_pack("{s:s, s:s}", "filename", block_shown_name(node), "format", block_format(node));
    if (!info->no_dirty_flag)
        json_object_set_new(root, "dirty-flag", json_boolean(info->dirty));
    if (info->has_actual_size)
        json_object_set_new(root, "actual-size", json_integer((json_int_t)info->actual_size));
    json_object_set_new(root, "virtual-size", json_integer((json_int_t)info->virtual_size));
    if (info->cluster_size)
        json_object_set_new(root, "cluster-size", json_integer((json_int_t)info->cluster_size));
    if (info->encrypted)
        json_object_set_new(root, "encrypted", json_true());
    if (info->backing_path)
        json_object_set_new(root, "backing-filename", json_string(info->backing_path));
    if (full)
        json_object_set_new(root, "full-backing-filename", json_string(full));
    if (info->backing_path && info->backing_format)
        json_object_set_new(root, "backing-filename-format", json_string(info->backing_format));
    if (info->n_snapshots)
        json_object_set_new(root, "snapshots", json_snapshots(info));
    if (info->specific)
        json_object_set_new(
            root, "format-specific",
            json_pack("{s:s, s:O}", "type", info->specific_type, "data", info->specific));
    return root;
}

/* ---- for people */

static void print_tree(const json_t *value, unsigned depth);

/* "LABEL:" and what it says, on this line or, for a group, on the next ones. */
static void print_member(const char *label, const json_t *value, unsigned depth)
{
    bool group = json_is_object(value) || json_is_array(value);
    printf("%*s%s:%c", (int)depth * 4, "", label, group ? '\n' : ' ');
    print_tree(value, depth + 1);
    if (!group)
        printf("\n");
}

static void print_tree(const json_t *value, unsigned depth)
{
    if (json_is_object(value)) {
        g_autoptr(GPtrArray) names = json_text_names(value);
        for (guint i = 0; i < names->len; i++) {
            const char *name = g_ptr_array_index(names, i);
            g_autofree char *label = g_strdelimit(g_strdup(name), "-", ' ');
            print_member(label, json_object_get(value, name), depth);
        }
    } else if (json_is_array(value)) {
        for (size_t i = 0; i < json_array_size(value); i++) {
            g_autofree char *label = g_strdup_printf("[%zu]", i);
            print_member(label, json_array_get(value, i), depth);
        }
    } else if (json_is_string(value)) {
        fputs(json_string_value(value), stdout);
    } else if (json_is_integer(value)) {
        printf("%" JSON_INTEGER_FORMAT, json_integer_value(value));
    } else if (json_is_boolean(value)) {
        fputs(json_is_true(value) ? "true" : "false", stdout);
    }
}

void image_print_specific(const json_t *specific)
{
    if (!specific)
        return;
    printf("Format specific information:\n");
    print_tree(specific, 1);
}

static void print_backing(const BlockInfo *info, const char *full)
{
    printf("backing file: %s", info->backing_path);
    if (!full)
        printf(" (cannot determine actual path)");
    else if (strcmp(full, info->backing_path))
        printf(" (actual path: %s)", full);
    printf("\n");
    if (info->backing_format)
        printf("backing file format: %s\n", info->backing_format);
}

static void print_info(const BlockNode *node, const BlockInfo *info, const char *full)
{
    g_autofree char *virtual_text = image_size_text(info->virtual_size);
    g_autofree char *actual_text =
        info->has_actual_size ? image_size_text(info->actual_size) : g_strdup("unavailable");
    printf("image: %s\nfile format: %s\nvirtual size: %s (%" G_GUINT64_FORMAT " bytes)\n"
           "disk size: %s\n",
           block_shown_name(node), block_format(node), virtual_text, info->virtual_size,
           actual_text);
    if (info->encrypted)
        printf("encrypted: yes\n");
    if (info->cluster_size)
        printf("cluster_size: %" G_GUINT64_FORMAT "\n", info->cluster_size);
    if (info->dirty)
        printf("cleanly shut down: no\n");
    if (info->backing_path)
        print_backing(info, full);
    image_print_snapshots(info->snapshots, info->n_snapshots);
    image_print_specific(info->specific);
}

/* ---- */

typedef struct Shown {
    bool json, chain;
    json_t *list;
    unsigned n;
} Shown;

static void show_one(Shown *s, const BlockNode *node, const BlockInfo *info, const char *full)
{
    if (s->json) {
        json_array_append_new(s->list, json_info(node, info, full));
    } else {
        if (s->n++)
            printf("\n");
        print_info(node, info, full);
    }
}

typedef struct Link {
    BlockNode *node;
    BlockInfo info;
    char *full;
} Link;

static void free_link(void *opaque)
{
    Link *link = opaque;
    block_info_clear(&link->info);
    block_unref(link->node);
    g_free(link->full);
    g_free(link);
}

/*
 * Each image of a chain is opened alone, so that one whose backing file is gone is still shown. Of
 * a chain that comes back to itself nothing is.
 */
static bool show_chain(Shown *s, const char *path, ImageOpen open)
{
    g_autoptr(GHashTable) seen = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    g_autoptr(GPtrArray) links = g_ptr_array_new_with_free_func(free_link);
    g_autofree char *name = g_strdup(path), *format = g_strdup(open.format);
    bool ok = true;
    while (name && ok) {
        if (!g_hash_table_add(seen, g_strdup(name))) {
            image_fail("Backing file '%s' creates an infinite loop.", name);
            return false;
        }
        open.format = format;
        BlockNode *node = image_open(name, &open);
        ok = node != NULL;
        if (!ok)
            break;
        Link *link = g_new0(Link, 1);
        g_ptr_array_add(links, link);
        link->node = node;
        block_info(node, &link->info);
        link->full = link->info.backing_path ? block_backing_full_path(node) : NULL;
        g_free(name);
        g_free(format);
        format = g_strdup(link->info.backing_format);
        name = s->chain ? g_strdup(link->full) : NULL;
        open.image_opts = false;
    }
    for (guint i = 0; i < links->len; i++) {
        const Link *link = g_ptr_array_index(links, i);
        show_one(s, link->node, &link->info, link->full);
    }
    return ok;
}

enum { BACKING_CHAIN = IMAGE_OWN };

static ImageApplied apply(void *opaque, int key, const char *value)
{
    bool *chain = opaque;
    if (key != BACKING_CHAIN)
        return IMAGE_NOT_MINE;
    *chain = true;
    return IMAGE_APPLIED;
}

static const ImageOption options[] = {
    IMAGE_OPTION_HELP,
    IMAGE_OPTION_OBJECT,
    IMAGE_OPTION_IMAGE_OPTS,
    {'f', "format", "FMT", "format of the image; else it is probed"},
    IMAGE_OPTION_OUTPUT,
    {BACKING_CHAIN, "backing-chain", NULL, "also the backing file, its backing file, and so on"},
    IMAGE_OPTION_SHARE,
    {0, NULL, NULL, NULL},
};

static int run(int argc, char **argv)
{
    g_auto(ImageArguments) a = {0};
    json_auto_t *list = json_array();
    Shown shown = {.list = list};
    int status;
    if (!image_parse(options, argc, argv, &a, apply, &shown.chain, &status))
        return status;
    if (a.n_names != 1)
        return image_usage("Expecting one image file name");
    ImageOpen open = {.format = a.format,
                      .no_backing = true,
                      .no_secrets = true,
                      .shared = a.shared,
                      .image_opts = a.image_opts,
                      .objects = a.objects};
    shown.json = a.json;
    if (!show_chain(&shown, a.names[0], open))
        return 1;
    if (a.json)
        image_print_json(shown.chain ? list : json_array_get(list, 0));
    return 0;
}

const ImageCommand image_info_command = {
    .name = "info",
    .run = run,
    .usage = "[--object objectdef] [--image-opts] [-f fmt] [--output=ofmt] [--backing-chain] [-U] "
             "filename",
    .options = options,
};
