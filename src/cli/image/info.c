/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "cli/image/image.h"

#include <getopt.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static char *full_backing(const char *path, const char *backing)
{
    g_autofree char *folder = g_path_get_dirname(path);
    if (g_path_is_absolute(backing) || !strcmp(folder, "."))
        return g_strdup(backing);
    return g_build_filename(folder, backing, NULL);
}

static json_t *json_snapshots(const BlockInfo *info)
{
    json_t *list = json_array();
    for (unsigned i = 0; i < info->n_snapshots; i++) {
        const BlockSnapshotInfo *s = &info->snapshots[i];
        json_array_append_new(
            list, json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:I}", "id", s->id, "name", s->name,
                            "vm-state-size", (json_int_t)s->vm_state_size, "date-sec",
                            (json_int_t)s->date_seconds, "date-nsec", (json_int_t)s->date_ns,
                            "vm-clock-sec", (json_int_t)(s->vm_clock_ns / 1000000000),
                            "vm-clock-nsec", (json_int_t)(s->vm_clock_ns % 1000000000)));
    }
    return list;
}

static json_t *json_info(BlockNode *node, const BlockInfo *info)
{
    const char *path = block_path(node);
    json_t *root = json_pack("{s:I, s:s, s:s, s:I, s:b}", "virtual-size",
                             (json_int_t)info->virtual_size, "filename", path, "format",
                             block_format(node), "actual-size", (json_int_t)info->actual_size,
                             "dirty-flag", info->dirty);
    if (info->cluster_size)
        json_object_set_new(root, "cluster-size", json_integer((json_int_t)info->cluster_size));
    if (info->n_snapshots)
        json_object_set_new(root, "snapshots", json_snapshots(info));
    if (info->specific)
        json_object_set_new(root, "format-specific",
                            json_pack("{s:s, s:O}", "type", info->specific_type, "data",
                                      info->specific));
    if (info->backing_path) {
        g_autofree char *full = full_backing(path, info->backing_path);
        json_object_set_new(root, "backing-filename", json_string(info->backing_path));
        json_object_set_new(root, "full-backing-filename", json_string(full));
        if (info->backing_format)
            json_object_set_new(root, "backing-filename-format", json_string(info->backing_format));
    }
    return root;
}

static void print_snapshots(const BlockInfo *info)
{
    if (info->n_snapshots == 0)
        return;
    printf("Snapshot list:\n%-10s%-17s%8s%20s%13s%11s\n", "ID", "TAG", "VM SIZE", "DATE",
           "VM CLOCK", "ICOUNT");
    for (unsigned i = 0; i < info->n_snapshots; i++) {
        const BlockSnapshotInfo *s = &info->snapshots[i];
        g_autofree char *size = image_size_text(s->vm_state_size);
        char date[64] = "";
        time_t when = (time_t)s->date_seconds;
        struct tm local;
        if (localtime_r(&when, &local))
            strftime(date, sizeof(date), "%Y-%m-%d %H:%M:%S", &local);
        uint64_t seconds = s->vm_clock_ns / 1000000000;
        g_autofree char *clock = g_strdup_printf(
            "%02d:%02d:%02d.%03d", (int)(seconds / 3600), (int)(seconds / 60 % 60),
            (int)(seconds % 60), (int)(s->vm_clock_ns / 1000000 % 1000));
        printf("%-9s %-16s %7s %19s %12s %10s\n", s->id, s->name, size, date, clock, "");
    }
}

/* "lazy-refcounts": true as "    lazy refcounts: true". */
static void print_specific(json_t *data)
{
    const char *name;
    json_t *value;
    printf("Format specific information:\n");
    json_object_foreach(data, name, value)
    {
        g_autofree char *label = g_strdelimit(g_strdup(name), "-", ' ');
        if (json_is_string(value))
            printf("    %s: %s\n", label, json_string_value(value));
        else if (json_is_integer(value))
            printf("    %s: %" JSON_INTEGER_FORMAT "\n", label, json_integer_value(value));
        else if (json_is_boolean(value))
            printf("    %s: %s\n", label, json_is_true(value) ? "true" : "false");
    }
}

static void print_info(BlockNode *node, const BlockInfo *info)
{
    g_autofree char *virtual_text = image_size_text(info->virtual_size);
    g_autofree char *actual_text = image_size_text(info->actual_size);
    const char *path = block_path(node);
    printf("image: %s\nfile format: %s\nvirtual size: %s (%" G_GUINT64_FORMAT " bytes)\n"
           "disk size: %s\n",
           path, block_format(node), virtual_text, info->virtual_size, actual_text);
    if (info->cluster_size)
        printf("cluster_size: %" G_GUINT64_FORMAT "\n", info->cluster_size);
    if (info->dirty)
        printf("cleanly shut down: no\n");
    if (info->backing_path) {
        g_autofree char *full = full_backing(path, info->backing_path);
        printf("backing file: %s", info->backing_path);
        if (strcmp(full, info->backing_path))
            printf(" (actual path: %s)", full);
        printf("\n");
        if (info->backing_format)
            printf("backing file format: %s\n", info->backing_format);
    }
    print_snapshots(info);
    if (info->specific)
        print_specific(info->specific);
}

static int show(const char *path, ImageOpen open, bool json, bool chain)
{
    g_autoptr(BlockNode) top = image_open(path, &open);
    if (!top)
        return 1;
    json_t *list = json_array();
    for (BlockNode *node = top; node; node = chain ? block_backing(node) : NULL) {
        BlockInfo info;
        block_info(node, &info);
        if (json)
            json_array_append_new(list, json_info(node, &info));
        else
            print_info(node, &info);
        if (!json && chain && block_backing(node))
            printf("\n");
        block_info_clear(&info);
    }
    if (json) {
        char *text = json_dumps(chain ? list : json_array_get(list, 0), JSON_INDENT(4));
        printf("%s\n", text);
        free(text);
    }
    json_decref(list);
    return 0;
}

static const struct option long_options[] = {{"output", required_argument, NULL, 'O'},
                                             {"backing-chain", no_argument, NULL, 'B'},
                                             {"force-share", no_argument, NULL, 'U'},
                                             {NULL, 0, NULL, 0}};

static int run(int argc, char **argv)
{
    ImageOpen open = {.no_backing = true};
    bool json = false, chain = false;
    int option;
    opterr = 0;
    while ((option = getopt_long(argc, argv, "f:U", long_options, NULL)) != -1) {
        switch (option) {
        case 'f':
            open.format = optarg;
            break;
        case 'U':
            open.shared = true;
            break;
        case 'B':
            chain = true;
            open.no_backing = false;
            break;
        case 'O':
            if (!image_parse_output(optarg, &json))
                return 1;
            break;
        default:
            return image_bad_option("info", argv);
        }
    }
    if (argc - optind != 1)
        return image_fail("info: expecting one image file name");
    return show(argv[optind], open, json, chain);
}

const ImageCommand image_info_command = {
    .name = "info",
    .run = run,
    .usage = "[-f FORMAT] [--output=human|json] [--backing-chain] [-U] FILE",
};
