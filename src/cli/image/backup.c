/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Backups of images into a store that keeps each piece once: backup, restore, verify. */
#include "cli/image/image.h"
#include "disk/backup/overlay.h"
#include "disk/backup/store.h"

#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { BITMAP = IMAGE_OWN, PARENT, CHUNK_SIZE, LIST, DELETE, PRUNE, OVERLAY };

typedef struct Backup {
    const char *bitmap, *parent, *removed, *base, *base_format;
    bool list, prune, overlay;
    uint64_t chunk;
} Backup;

static ImageApplied apply(void *opaque, int key, const char *value)
{
    Backup *b = opaque;
    switch (key) {
    case BITMAP:
        b->bitmap = value;
        return IMAGE_APPLIED;
    case PARENT:
        b->parent = value;
        return IMAGE_APPLIED;
    case LIST:
        b->list = true;
        return IMAGE_APPLIED;
    case DELETE:
        b->removed = value;
        return IMAGE_APPLIED;
    case PRUNE:
        b->prune = true;
        return IMAGE_APPLIED;
    case OVERLAY:
        b->overlay = true;
        return IMAGE_APPLIED;
    case 'b':
        b->base = value;
        return IMAGE_APPLIED;
    case 'F':
        b->base_format = value;
        return IMAGE_APPLIED;
    case CHUNK_SIZE:
        if (block_parse_size(value, &b->chunk) && b->chunk <= BACKUP_CHUNK_MAX)
            return IMAGE_APPLIED;
        image_fail("--chunk-size: '%s' is no size from %u to %u", value, BACKUP_CHUNK_MIN,
                   BACKUP_CHUNK_MAX);
        return IMAGE_REFUSED;
    default:
        return IMAGE_NOT_MINE;
    }
}

static json_t *json_of(const BackupInfo *info)
{
    return json_pack("{s:s, s:I, s:I, s:I, s:s, s:s*}", "name", info->name, "size",
                     (json_int_t)info->size, "data", (json_int_t)info->data, "time",
                     (json_int_t)info->time, "source", info->source ? info->source : "", "parent",
                     info->parent);
}

static void print_one(const BackupInfo *info)
{
    g_autofree char *size = image_size_text(info->size), *data = image_size_text(info->data);
    char date[64] = "";
    time_t when = (time_t)info->time;
    struct tm local;
    if (localtime_r(&when, &local))
        strftime(date, sizeof(date), "%Y-%m-%d %H:%M:%S", &local);
    printf("%-24s %10s %10s  %s  %s\n", info->name, size, data, date,
           info->parent ? info->parent : "");
}

static int list(BackupStore *store, bool json)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GPtrArray) names = backup_list(store, &error);
    json_auto_t *all = json_array();
    if (!names)
        return image_fail("%s", error->message);
    if (!json)
        printf("%-24s %10s %10s  %-19s  %s\n", "NAME", "SIZE", "DATA", "TAKEN", "PARENT");
    int status = 0;
    for (guint i = 0; i < names->len; i++) {
        BackupInfo info = {0};
        g_clear_error(&error);
        if (!backup_describe(store, g_ptr_array_index(names, i), &info, &error)) {
            status = image_fail("%s", error->message);
            continue;
        }
        if (json)
            json_array_append_new(all, json_of(&info));
        else
            print_one(&info);
        backup_info_clear(&info);
    }
    if (json)
        image_print_json(all);
    return status;
}

static int keep_house(const Backup *b, const char *path, bool json, bool quiet)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(BackupStore) store = backup_store_open(path, !b->list, &error);
    uint64_t freed;
    if (!store)
        return image_fail("%s", error->message);
    if (b->list)
        return list(store, json);
    if (b->removed && !backup_delete(store, b->removed, &error))
        return image_fail("%s", error->message);
    if (b->prune && !backup_prune(store, &freed, &error))
        return image_fail("%s", error->message);
    if (b->prune && !quiet)
        printf("%" G_GUINT64_FORMAT " bytes given back\n", freed);
    return 0;
}

static BackupStore *store_of(const Backup *b, const char *path)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *settings = g_build_filename(path, "lodge-store.json", NULL);
    uint32_t chunk = b->chunk ? (uint32_t)b->chunk : BACKUP_CHUNK_DEFAULT;
    BackupStore *store = NULL;
    if (g_file_test(settings, G_FILE_TEST_EXISTS) || backup_store_create(path, chunk, &error))
        store = backup_store_open(path, true, &error);
    if (!store)
        image_fail("%s", error->message);
    return store;
}

static int take(const Backup *b, const ImageArguments *a)
{
    g_autoptr(GError) error = NULL;
    ImageOpen open = {.format = a->format, .shared = a->shared, .image_opts = a->image_opts,
                      .cache = a->source_cache, .source = true, .objects = a->objects};
    g_autoptr(BlockNode) source = image_open(a->names[2], &open);
    g_autoptr(BackupStore) store = source ? store_of(b, a->names[0]) : NULL;
    if (!store)
        return 1;
    BackupTake what = {.name = a->names[1], .source = source, .parent = b->parent,
                       .bitmap = b->bitmap, .progress = {image_progress_step, NULL}};
    BackupStats stats;
    image_progress_begin(a->progress);
    bool done = backup_take(store, &what, &stats, &error);
    image_progress_end(done);
    if (!done)
        return image_fail("%s", error->message);
    if (!a->quiet)
        printf("%" G_GUINT64_FORMAT " bytes read, %" G_GUINT64_FORMAT " new chunks stored in %"
               G_GUINT64_FORMAT " bytes, %" G_GUINT64_FORMAT " known ones\n",
               stats.read, stats.chunks_new, stats.stored, stats.chunks_known);
    return 0;
}

static int overlay(const Backup *b, const ImageArguments *a)
{
    g_autoptr(GError) error = NULL;
    ImageOpen open = {.format = a->format, .shared = a->shared, .image_opts = a->image_opts,
                      .cache = a->source_cache, .source = true, .objects = a->objects};
    if (!b->base || !b->base_format)
        return image_usage("backup --overlay needs the backup before (-b) and its format (-F)");
    g_autoptr(BlockNode) source = image_open(a->names[0], &open);
    if (!source)
        return 1;
    BackupOverlay what = {.source = source, .target = a->names[1], .base = b->base,
                          .base_format = b->base_format, .bitmap = b->bitmap,
                          .progress = {image_progress_step, NULL}};
    image_progress_begin(a->progress);
    bool done = backup_overlay(&what, &error);
    image_progress_end(done);
    return done ? 0 : image_fail("%s", error->message);
}

static const ImageOption backup_options[] = {
    IMAGE_OPTION_HELP,
    IMAGE_OPTION_OBJECT,
    IMAGE_OPTION_IMAGE_OPTS,
    IMAGE_OPTION_FORMAT,
    IMAGE_OPTION_SOURCE_CACHE,
    IMAGE_OPTION_OUTPUT,
    IMAGE_OPTION_QUIET,
    IMAGE_OPTION_PROGRESS,
    IMAGE_OPTION_SHARE,
    {BITMAP, "bitmap", "BITMAP", "copy what is dirty in this bitmap only"},
    {PARENT, "parent", "NAME", "the backup since which the bitmap has been dirty"},
    {CHUNK_SIZE, "chunk-size", "SIZE", "of a new store; 64k otherwise"},
    {LIST, "list", NULL, "list the backups of a store"},
    {DELETE, "delete", "NAME", "delete a backup"},
    {PRUNE, "prune", NULL, "give back space that no backup needs"},
    {OVERLAY, "overlay", NULL, "into a qcow2 image on top of the backup before"},
    {'b', NULL, "BASE", "with --overlay: the backup before, an image"},
    {'F', NULL, "BASE_FMT", "with --overlay: its format"},
    {0, NULL, NULL, NULL},
};

static int run_backup(int argc, char **argv)
{
    g_auto(ImageArguments) a = {0};
    Backup b = {0};
    int status;
    if (!image_parse(backup_options, argc, argv, &a, apply, &b, &status))
        return status;
    bool house = b.list || b.removed || b.prune;
    int wanted = house ? 1 : b.overlay ? 2 : 3;
    if (a.n_names != wanted)
        return image_usage(house       ? "backup: the store's folder is expected"
                           : b.overlay ? "backup: the image and the new overlay are expected"
                                       : "backup: the store's folder, a name for the backup and "
                                         "the image are expected");
    return house       ? keep_house(&b, a.names[0], a.json, a.quiet)
           : b.overlay ? overlay(&b, &a)
                       : take(&b, &a);
}

const ImageCommand image_backup_command = {
    .name = "backup",
    .run = run_backup,
    .options = backup_options,
    .usage = "[--object OBJECTDEF] [--image-opts] [-f FMT] [-T SRC_CACHE] [-p] [-q] [-U] "
             "[--bitmap BITMAP --parent NAME] [--chunk-size SIZE] STORE NAME FILENAME | "
             "--overlay -b BASE -F BASE_FMT [--bitmap BITMAP] FILENAME OVERLAY | "
             "{--list [--output=OFMT] | --delete NAME | --prune} STORE",
};

/* ---- restore */

enum { NO_CREATE = IMAGE_OWN };

typedef struct Restore {
    const char *format;
    bool no_create;
    GPtrArray *texts;
} Restore;

static ImageApplied apply_restore(void *opaque, int key, const char *value)
{
    Restore *r = opaque;
    if (key == 'O')
        r->format = value;
    else if (key == 'n')
        r->no_create = true;
    else if (key == 'o')
        g_ptr_array_add(r->texts, (char *)value);
    else
        return IMAGE_NOT_MINE;
    return IMAGE_APPLIED;
}

static const ImageOption restore_options[] = {
    IMAGE_OPTION_HELP,
    IMAGE_OPTION_OBJECT,
    IMAGE_OPTION_CACHE,
    IMAGE_OPTION_QUIET,
    IMAGE_OPTION_PROGRESS,
    {'O', NULL, "OUTPUT_FMT", "format of the image; raw otherwise"},
    {'o', NULL, "OPTIONS", "its options, as create takes them"},
    {'n', NULL, NULL, "the image is there already; overwrite it"},
    {0, NULL, NULL, NULL},
};

static bool create_target(const Restore *r, const ImageArguments *a, uint64_t size)
{
    g_autoptr(GError) error = NULL;
    json_auto_t *named = json_object();
    BlockCreate create = {.path = a->names[2], .format = r->format, .size = size,
                          .options = named, .objects = a->objects};
    if (g_file_test(a->names[2], G_FILE_TEST_EXISTS))
        return image_fail("%s: is there already; -n overwrites it", a->names[2]), false;
    for (guint i = 0; i < r->texts->len; i++) {
        if (!block_options_parse(g_ptr_array_index(r->texts, i), block_create_options(r->format),
                                 NULL, named, &error))
            return image_fail("%s: %s", a->names[2], error->message), false;
    }
    return block_create(&create, &error) ||
           (image_fail("%s: %s", a->names[2], error->message), false);
}

static int restore(const Restore *r, const ImageArguments *a)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(BackupStore) store = backup_store_open(a->names[0], false, &error);
    BackupInfo info = {0};
    if (!store || !backup_describe(store, a->names[1], &info, &error))
        return image_fail("%s", error->message);
    bool ready = r->no_create || create_target(r, a, info.size);
    backup_info_clear(&info);
    if (!ready)
        return 1;
    ImageOpen open = {.format = r->format, .write = true, .cache = a->cache,
                      .objects = a->objects};
    g_autoptr(BlockNode) target = image_open(a->names[2], &open);
    if (!target)
        return 1;
    BlockProgress progress = {image_progress_step, NULL};
    image_progress_begin(a->progress);
    bool done = backup_restore(store, a->names[1], target, !r->no_create, &progress, &error);
    image_progress_end(done);
    if (!done && !r->no_create)
        unlink(a->names[2]); /* half an image looks like a whole one */
    return done ? 0 : image_fail("%s", error->message);
}

static int run_restore(int argc, char **argv)
{
    g_auto(ImageArguments) a = {0};
    g_autoptr(GPtrArray) texts = g_ptr_array_new();
    Restore r = {.format = "raw", .texts = texts};
    int status;
    if (!image_parse(restore_options, argc, argv, &a, apply_restore, &r, &status))
        return status;
    if (a.n_names != 3)
        return image_usage("restore: the store's folder, the backup's name and the image are "
                           "expected");
    return restore(&r, &a);
}

const ImageCommand image_restore_command = {
    .name = "restore",
    .run = run_restore,
    .options = restore_options,
    .usage = "[--object OBJECTDEF] [-O OUTPUT_FMT] [-o OPTIONS] [-n] [-t CACHE] [-p] [-q] STORE "
             "NAME FILENAME",
};

/* ---- verify */

static const ImageOption verify_options[] = {
    IMAGE_OPTION_HELP,
    IMAGE_OPTION_QUIET,
    IMAGE_OPTION_PROGRESS,
    {0, NULL, NULL, NULL},
};

static void say(void *opaque, const char *text)
{
    image_fail("%s", text);
}

/* Exit status as that of check: 0 sound, 1 could not be done, 2 damaged. */
static int run_verify(int argc, char **argv)
{
    g_auto(ImageArguments) a = {0};
    g_autoptr(GError) error = NULL;
    int status;
    if (!image_parse(verify_options, argc, argv, &a, NULL, NULL, &status))
        return status;
    if (a.n_names < 1 || a.n_names > 2)
        return image_usage("verify: the store's folder and, if not all, a backup's name are "
                           "expected");
    g_autoptr(BackupStore) store = backup_store_open(a.names[0], false, &error);
    if (!store)
        return image_fail("%s", error->message);
    BackupVerify verify = {.message = say};
    BlockProgress progress = {image_progress_step, NULL};
    image_progress_begin(a.progress);
    bool done = backup_verify(store, a.n_names > 1 ? a.names[1] : NULL, &verify, &progress, &error);
    image_progress_end(done);
    if (!done)
        return image_fail("%s", error->message);
    if (!a.quiet)
        printf("%" G_GUINT64_FORMAT " chunks looked at, %" G_GUINT64_FORMAT " damages\n",
               verify.chunks, verify.damaged);
    return verify.damaged ? 2 : 0;
}

const ImageCommand image_verify_command = {
    .name = "verify",
    .run = run_verify,
    .options = verify_options,
    .usage = "[-p] [-q] STORE [NAME]",
};
