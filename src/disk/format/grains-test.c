/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The formats on GrainMap: the power fails at any write, any operation fails, many threads write. */
#include "base/bytes.h"
#include "disk/crash.h"
#include "disk/format/formats.h"
#include "disk/objects.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <string.h>

#define SECTOR  512u
#define THREADS 4

typedef struct Shape {
    const char *name, *format, *options;
    uint64_t size;
    bool backed;
} Shape;

static const Shape shapes[] = {
    {"vmdk", "vmdk", "", MIB(4), false},
    {"vmdk-odd", "vmdk", "", MIB(1) + 5 * SECTOR, false},
    {"vmdk-zero", "vmdk", "zeroed_grain=on", MIB(2), false},
    {"vmdk-backed", "vmdk", "", MIB(2), true},
    {"vmdk-backed-zero", "vmdk", "zeroed_grain=on", MIB(2), true},
    {"qcow", "qcow", "", MIB(4), false},
    {"qcow-odd", "qcow", "", MIB(1) + 5 * SECTOR, false},
    {"qcow-backed", "qcow", "", MIB(2), true},
    {"qcow-aes", "qcow", "encrypt.format=aes,encrypt.key-secret=s", MIB(1), false},
    {"qcow-aes-backed", "qcow", "encrypt.format=aes,encrypt.key-secret=s", MIB(1), true},
    {"qed", "qed", "cluster_size=4096,table_size=1", MIB(4), false},
    {"qed-64k", "qed", "table_size=1", MIB(3) + 512, false},
    {"qed-backed", "qed", "cluster_size=8192,table_size=2", MIB(2), true},
    {"vmdk-stream", "vmdk", "subformat=streamOptimized", MIB(1), false},
};

static BlockObjects *objects; /* the secret */

typedef struct Run {
    CrashRun crash;
    const Shape *shape;
    char *folder, *base;
} Run;

static BlockNode *open_image(void *opaque, BlockFile *file, bool read_only, GError **err)
{
    const Run *run = opaque;
    g_autofree char *path = g_build_filename(run->folder, "memory", NULL);
    json_auto_t *named = NULL;
    if (strstr(run->shape->options, "encrypt"))
        named = json_pack("{s:{s:s}}", "encrypt", "key-secret", "s");
    BlockOpen options = {.path = path, .format = run->shape->format, .read_only = read_only,
                         .discard_unmap = true, .options = named, .objects = objects};
    return block_open_file(file, &options, err);
}

static int fill(BlockNode *node, uint64_t offset, uint64_t length, uint8_t value)
{
    g_autofree uint8_t *buffer = g_malloc(length);
    memset(buffer, value, length);
    struct iovec iov = {buffer, length};
    return block_writev(node, offset, &iov, 1, 0);
}

static void assert_filled(BlockNode *node, uint64_t offset, uint64_t length, uint8_t value)
{
    g_autofree uint8_t *buffer = g_malloc(length);
    struct iovec iov = {buffer, length};
    memset(buffer, (uint8_t)~value, length);
    g_assert_cmpint(block_readv(node, offset, &iov, 1), ==, 0);
    for (uint64_t i = 0; i < length; i++)
        g_assert_cmpuint(buffer[i], ==, value);
}

static void make_base(Run *run)
{
    g_autoptr(GError) error = NULL;
    const Shape *shape = run->shape;
    run->base = g_build_filename(run->folder, "base", NULL);
    BlockCreate create = {.path = run->base, .format = shape->format, .size = shape->size};
    g_assert_true(block_create(&create, &error));
    BlockOpen options = {.path = run->base, .format = shape->format};
    g_autoptr(BlockNode) node = block_open(&options, &error);
    g_assert_no_error(error);
    g_assert_cmpint(fill(node, 0, shape->size, 0xee), ==, 0);
}

static void make(Run *run, const Shape *shape)
{
    g_autoptr(GError) error = NULL;
    json_auto_t *named = json_object();
    *run = (Run){.shape = shape, .folder = g_dir_make_tmp("lodge-grains-XXXXXX", NULL)};
    run->crash = (CrashRun){.name = shape->name, .open = open_image, .opaque = run,
                            .live = g_byte_array_new()};
    if (shape->backed)
        make_base(run);
    g_assert_true(block_options_parse(shape->options, NULL, NULL, named, &error));
    g_autofree char *path = g_build_filename(run->folder, "memory", NULL);
    BlockCreate create = {.path = path, .format = shape->format, .size = shape->size,
                          .options = named, .objects = objects, .backing = run->base,
                          .backing_format = run->base ? shape->format : NULL};
    const BlockFormat *format = block_format_find(shape->format);
    g_autoptr(BlockFile) file = &memory_file_new(run->crash.live, CRASH_FILE_LIMIT, NULL)->file;
    g_assert_true(format->create_check(&create, &error));
    g_assert_true(format->create(file, &create, &error));
    crash_begin(&run->crash, shape->size / SECTOR, shape->backed ? 0xee : 0);
}

static void unmake(Run *run)
{
    crash_end(&run->crash);
    if (run->base)
        g_unlink(run->base);
    g_rmdir(run->folder);
    g_free(run->base);
    g_free(run->folder);
}

static void test_cut(gconstpointer shape)
{
    Run run;
    make(&run, shape);
    crash_work(&run.crash, 100);
    crash_cut(&run.crash, g_getenv("LODGE_CHECK_LONG") ? 1500 : g_getenv("LODGE_SANITIZED") ? 25 : 80);
    unmake(&run);
}

static void test_failing(gconstpointer shape)
{
    Run run;
    make(&run, shape);
    crash_fail(&run.crash, 40, g_getenv("LODGE_CHECK_LONG") ? 600 : 60);
    unmake(&run);
}

/* A full disk: an error, and the image goes on once there is room. */
static void test_full(gconstpointer data)
{
    const Shape *shape = data;
    g_autoptr(GError) error = NULL;
    Run run;
    make(&run, shape);
    uint64_t limit = run.crash.live->len + KIB(300), done = 0;
    BlockFile *file = &memory_file_new(run.crash.live, limit, NULL)->file;
    BlockNode *node = open_image(&run, file, false, &error);
    g_assert_no_error(error);
    int result = 0;
    g_autofree uint8_t *noise = g_malloc(KIB(64));
    for (size_t i = 0; i < KIB(64); i++)
        noise[i] = (uint8_t)g_test_rand_int();
    for (; done + KIB(64) <= shape->size && result == 0; done += KIB(64)) {
        struct iovec iov = {noise, KIB(64)};
        result = block_writev(node, done, &iov, 1, 0);
    }
    g_assert_cmpint(result, ==, -ENOSPC);
    block_unref(node);
    file = &memory_file_new(run.crash.live, CRASH_FILE_LIMIT, NULL)->file;
    node = open_image(&run, file, false, &error);
    g_assert_no_error(error);
    g_assert_cmpint(fill(node, done - KIB(64), KIB(64), 9), ==, 0);
    assert_filled(node, done - KIB(64), KIB(64), 9);
    g_autofree uint8_t *back = g_malloc(KIB(64));
    struct iovec iov = {back, KIB(64)};
    g_assert_cmpint(block_readv(node, 0, &iov, 1), ==, 0);
    g_assert_cmpint(memcmp(back, noise, KIB(64)), ==, 0);
    block_unref(node);
    unmake(&run);
}

typedef struct Writer {
    BlockNode *node;
    uint64_t sectors;
    unsigned number;
} Writer;

/* Each thread has every fourth sector: they meet in the same grains. */
static gpointer write_stripe(gpointer data)
{
    const Writer *w = data;
    for (uint64_t s = w->number; s < w->sectors; s += THREADS)
        g_assert_cmpint(fill(w->node, s * SECTOR, SECTOR, (uint8_t)(1 + w->number)), ==, 0);
    return NULL;
}

static void test_threads(gconstpointer data)
{
    const Shape *shape = data;
    g_autoptr(GError) error = NULL;
    Run run;
    Writer writers[THREADS];
    GThread *threads[THREADS];
    make(&run, shape);
    uint64_t sectors = KIB(300) / SECTOR;
    BlockFile *file = &memory_file_new(run.crash.live, CRASH_FILE_LIMIT, NULL)->file;
    BlockNode *node = open_image(&run, file, false, &error);
    g_assert_no_error(error);
    for (unsigned i = 0; i < THREADS; i++) {
        writers[i] = (Writer){node, sectors, i};
        threads[i] = g_thread_new("writer", write_stripe, &writers[i]);
    }
    for (unsigned i = 0; i < THREADS; i++)
        g_thread_join(threads[i]);
    block_unref(node);
    file = &memory_file_new(run.crash.live, CRASH_FILE_LIMIT, NULL)->file;
    node = open_image(&run, file, true, &error);
    for (uint64_t s = 0; s < sectors; s++)
        assert_filled(node, s * SECTOR, SECTOR, (uint8_t)(1 + s % THREADS));
    assert_filled(node, sectors * SECTOR, KIB(16), shape->backed ? 0xee : 0);
    block_unref(node);
    unmake(&run);
}

int main(int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    g_test_init(&argc, &argv, NULL);
    objects = block_objects_new();
    g_assert_true(block_objects_add(objects, "secret,id=s,data=correct horse battery", &error));
    static const struct {
        const char *name;
        GTestDataFunc run;
    } tests[] = {{"cut", test_cut}, {"failing", test_failing}, {"full", test_full},
                 {"threads", test_threads}};
    for (size_t i = 0; i < G_N_ELEMENTS(shapes); i++) {
        for (size_t k = 0; k < G_N_ELEMENTS(tests); k++) {
            g_autofree char *name =
                g_strdup_printf("/disk/grains/%s/%s", shapes[i].name, tests[k].name);
            g_test_add_data_func(name, &shapes[i], tests[k].run);
        }
    }
    int result = g_test_run();
    block_objects_free(objects);
    return result;
}
