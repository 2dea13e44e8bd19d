/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The power fails at any moment: everything before the file's last flush is on the disk, and of
 * what came after it any subset of sectors. The image must be free of corruption (leaks are
 * allowed), and everything that the guest had flushed must be there.
 */
#include "base/bytes.h"
#include "disk/format/formats.h"
#include "disk/crash.h"

#include <glib/gstdio.h>
#include <string.h>

#define SECTOR 512

typedef struct Shape {
    const char *name, *options; /* options: for qemu-img, which makes the snapshot */
    uint64_t size;
    bool backed, snapshot;
} Shape;

static const Shape shapes[] = {
    {"64k", "cluster_size=65536", MIB(4), false, false},
    {"4k", "cluster_size=4096", MIB(1), false, false},
    {"512", "cluster_size=512,refcount_bits=64", KIB(512), false, false},
    {"4k-backed", "cluster_size=4096,refcount_bits=1", MIB(1), true, false},
    {"v2", "cluster_size=4096,compat=0.10", MIB(1), true, false},
    {"lazy", "cluster_size=4096,lazy_refcounts=on", MIB(1), false, false},
    {"extended", "extended_l2=on,cluster_size=16k", MIB(2), true, false},
    {"extended-snapshot", "extended_l2=on", MIB(2), false, true},
    {"snapshot", "cluster_size=4k", MIB(1), false, true},
    {"snapshot-512", "cluster_size=512", KIB(256), false, true},
};

typedef struct Run {
    CrashRun crash;
    const Shape *shape;
    char *folder, *base;
} Run;

static BlockNode *open_image(void *opaque, BlockFile *file, bool read_only, GError **err)
{
    const Run *run = opaque;
    g_autofree char *path = g_build_filename(run->folder, "memory", NULL);
    BlockOpen options = {.path = path, .format = "qcow2", .read_only = read_only,
                         .discard_unmap = true};
    return block_open_file(file, &options, err);
}

static bool load_from_qemu(Run *run)
{
    g_autofree char *path = g_build_filename(run->folder, "made", NULL);
    g_autofree char *script = g_strdup_printf(
        "qemu-img create -q -f qcow2 -o %s %s %" G_GUINT64_FORMAT " && qemu-io -c 'write -q -P 9 0 "
        "200k' %s && qemu-img snapshot -c one %s",
        run->shape->options, path, run->shape->size, path, path);
    const char *argv[] = {"sh", "-c", script, NULL};
    int status = -1;
    g_autofree char *text = NULL;
    gsize length = 0;
    bool made = g_spawn_sync(NULL, (char **)argv, NULL,
                             G_SPAWN_SEARCH_PATH | G_SPAWN_STDERR_TO_DEV_NULL, NULL, NULL, NULL,
                             NULL, &status, NULL) &&
                status == 0 && g_file_get_contents(path, &text, &length, NULL);
    if (made)
        g_byte_array_append(run->crash.live, (guint8 *)text, (guint)length);
    g_unlink(path);
    return made;
}

static void create_image(Run *run)
{
    const Shape *shape = run->shape;
    g_autoptr(GError) error = NULL;
    json_auto_t *named = json_object();
    g_assert_true(block_options_parse(shape->options, NULL, NULL, named, &error));
    BlockCreate create = {.path = "memory",
                          .format = "qcow2",
                          .size = shape->size,
                          .options = named,
                          .backing = run->base,
                          .backing_format = run->base ? "raw" : NULL};
    g_autoptr(BlockFile) file = &memory_file_new(run->crash.live, CRASH_FILE_LIMIT, NULL)->file;
    g_assert_true(block_format_qcow2.create(file, &create, &error));
}

static bool make(Run *run, const Shape *shape)
{
    run->shape = shape;
    run->folder = g_dir_make_tmp("lodge-powercut-XXXXXX", NULL);
    run->crash = (CrashRun){.name = shape->name, .open = open_image, .opaque = run,
                            .live = g_byte_array_new()};
    if (shape->backed) {
        run->base = g_build_filename(run->folder, "base", NULL);
        g_autofree char *content = g_malloc(shape->size / 2);
        memset(content, 0xee, shape->size / 2);
        g_file_set_contents(run->base, content, (gssize)shape->size / 2, NULL);
    }
    if (!shape->snapshot)
        create_image(run);
    else if (!load_from_qemu(run))
        return false;
    crash_begin(&run->crash, shape->size / SECTOR, 0);
    if (shape->backed)
        memset(run->crash.first_model, 0xee, run->crash.sectors / 2);
    if (shape->snapshot)
        memset(run->crash.first_model, 9, KIB(200) / SECTOR);
    return true;
}

static void cut_shape(gconstpointer data)
{
    Run run = {0};
    bool full = g_getenv("LODGE_CHECK_LONG"), few = g_getenv("LODGE_SANITIZED");
    if (make(&run, data)) {
        crash_fail(&run.crash, 60, full ? 500 : few ? 10 : 40);
        crash_work(&run.crash, 120);
        crash_cut(&run.crash, full ? 2000 : few ? 30 : 120);
    } else {
        g_test_skip("qemu-img is not installed");
    }
    crash_end(&run.crash);
    if (run.base)
        g_unlink(run.base);
    g_rmdir(run.folder);
    g_free(run.base);
    g_free(run.folder);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    for (size_t i = 0; i < G_N_ELEMENTS(shapes); i++) {
        g_autofree char *name = g_strdup_printf("/disk/powercut/%s", shapes[i].name);
        g_test_add_data_func(name, &shapes[i], cut_shape);
    }
    return g_test_run();
}
