/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "cli/image/image.h"

#include "cli/image/snapshot-table.h"

#include <stdio.h>
#include <string.h>

void image_print_snapshots(const BlockSnapshotInfo *snapshots, unsigned n)
{
    if (n == 0)
        return;
    printf("Snapshot list:\n%-10s%-17s%8s%20s%13s%11s\n", "ID", "TAG", "VM SIZE", "DATE",
           "VM CLOCK", "ICOUNT");
    for (unsigned i = 0; i < n; i++) {
        const BlockSnapshotInfo *s = &snapshots[i];
        g_autofree char *size = image_size_text(s->vm_state_size);
        g_autofree char *icount =
            s->has_icount ? g_strdup_printf("%" G_GUINT64_FORMAT, s->icount) : g_strdup("");
        g_autoptr(GDateTime) date = g_date_time_new_from_unix_local((gint64)s->date_seconds);
        g_autofree char *when = date ? g_date_time_format(date, "%Y-%m-%d %H:%M:%S") : g_strdup("");
        uint64_t seconds = s->vm_clock_ns / 1000000000;
        g_autofree char *clock =
            g_strdup_printf("%02d:%02d:%02d.%03d", (int)(seconds / 3600), (int)(seconds / 60 % 60),
                            (int)(seconds % 60), (int)(s->vm_clock_ns / 1000000 % 1000));
        printf("%-9s %-16s %8s%20s%13s%11s\n", s->id, s->name, size, when, clock, icount);
    }
}

typedef struct Snapshot {
    int action; /* the option's letter; 0: none */
    const char *name;
} Snapshot;

static ImageApplied apply(void *opaque, int key, const char *value)
{
    Snapshot *s = opaque;
    if (!strchr("lacd", key) || key > 255)
        return IMAGE_NOT_MINE;
    if (s->action) {
        image_usage("Cannot mix '-l', '-a', '-c', '-d'");
        return IMAGE_REFUSED;
    }
    s->action = key;
    s->name = value;
    return IMAGE_APPLIED;
}

static int create(BlockNode *node, const char *name)
{
    g_autoptr(GError) error = NULL;
    gint64 now = g_get_real_time();
    BlockSnapshotInfo snapshot = {.name = (char *)(uintptr_t)name,
                                  .date_seconds = (uint64_t)(now / G_USEC_PER_SEC),
                                  .date_ns = (uint64_t)(now % G_USEC_PER_SEC) * 1000,
                                  .has_icount = true};
    if (block_snapshot_create(node, &snapshot, &error))
        return 0;
    return image_fail("Could not create snapshot '%s': %s", name, error->message);
}

static bool find(const BlockInfo *info, const char *which)
{
    for (unsigned i = 0; i < info->n_snapshots; i++) {
        if (!strcmp(info->snapshots[i].id, which) || !strcmp(info->snapshots[i].name, which))
            return true;
    }
    return false;
}

static int act(BlockNode *node, const Snapshot *s)
{
    g_autoptr(GError) error = NULL;
    BlockInfo info;
    bool there;
    switch (s->action) {
    case 'l':
        block_info(node, &info);
        image_print_snapshots(info.snapshots, info.n_snapshots);
        block_info_clear(&info);
        return 0;
    case 'c':
        return create(node, s->name);
    case 'a':
        if (block_snapshot_apply(node, s->name, &error))
            return 0;
        return image_fail("Could not apply snapshot '%s': %s", s->name, error->message);
    case 'd':
        block_info(node, &info);
        there = find(&info, s->name);
        block_info_clear(&info);
        if (!there)
            return image_fail("Could not delete snapshot '%s': snapshot not found", s->name);
        if (block_snapshot_delete(node, s->name, &error))
            return 0;
        return image_fail("Could not delete snapshot '%s': %s", s->name, error->message);
    default:
        return 0;
    }
}

static const ImageOption options[] = {
    IMAGE_OPTION_HELP,
    IMAGE_OPTION_OBJECT,
    IMAGE_OPTION_IMAGE_OPTS,
    IMAGE_OPTION_SHARE,
    IMAGE_OPTION_QUIET,
    {'l', NULL, NULL, "list the image's snapshots"},
    {'a', NULL, "SNAPSHOT", "go back to this snapshot; what was written since is lost"},
    {'c', NULL, "SNAPSHOT", "make a snapshot of that name"},
    {'d', NULL, "SNAPSHOT", "delete this snapshot"},
    {0, NULL, NULL, NULL},
};

static int run(int argc, char **argv)
{
    g_auto(ImageArguments) a = {0};
    Snapshot s = {0, NULL};
    int status;
    if (!image_parse(options, argc, argv, &a, apply, &s, &status))
        return status;
    if (a.n_names != 1)
        return image_usage("Expecting one image file name");
    ImageOpen open = {.write = s.action != 'l',
                      .shared = a.shared,
                      .image_opts = a.image_opts,
                      .objects = a.objects};
    g_autoptr(BlockNode) node = image_open(a.names[0], &open);
    return node ? act(node, &s) : 1;
}

const ImageCommand image_snapshot_command = {
    .name = "snapshot",
    .run = run,
    .usage = "[--object objectdef] [--image-opts] [-U] [-q] "
             "[-l | -a snapshot | -c snapshot | -d snapshot] filename",
    .options = options,
};
