/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The power fails at any moment: everything before the file's last flush is on the disk, and of
 * what came after it any subset of sectors. The image must be free of corruption (leaks are
 * allowed), and everything that the guest had flushed must be there.
 */
#include "base/bytes.h"
#include "disk/format/formats.h"
#include "disk/memory-file.h"

#include <glib/gstdio.h>
#include <stdlib.h>
#include <string.h>

#define FILE_LIMIT MIB(64)
#define SECTOR     512

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
    {"snapshot", "cluster_size=4k", MIB(1), false, true},
    {"snapshot-512", "cluster_size=512", KIB(256), false, true},
};

/* What the guest did: [start, end) in the log of the file, sectors, the byte they were set to. */
typedef struct Guest {
    guint start, end;
    bool flush;
    uint64_t first, sectors;
    uint8_t value;
} Guest;

typedef struct Run {
    const Shape *shape;
    char *folder, *base;
    GByteArray *initial, *live;
    GArray *log, *guest;
    uint8_t *first_model; /* a byte a sector */
    uint64_t sectors;
    GRand *random;
    int keep_percent;
} Run;

static BlockNode *open_bytes(const Run *run, GByteArray *bytes, GArray *log, bool read_only)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *path = g_build_filename(run->folder, "memory", NULL);
    BlockOpen options = {.path = path, .format = "qcow2", .read_only = read_only,
                         .discard_unmap = true};
    BlockNode *node =
        block_open_file(&memory_file_new(bytes, FILE_LIMIT, log)->file, &options, &error);
    g_assert_no_error(error);
    return node;
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
        g_byte_array_append(run->live, (guint8 *)text, (guint)length);
    memset(run->first_model, 9, KIB(200) / SECTOR);
    g_unlink(path);
    return made;
}

static bool make(Run *run, const Shape *shape)
{
    g_autoptr(GError) error = NULL;
    run->shape = shape;
    run->folder = g_dir_make_tmp("lodge-powercut-XXXXXX", NULL);
    run->sectors = shape->size / SECTOR;
    run->first_model = g_malloc0(run->sectors);
    run->live = g_byte_array_new();
    run->log = g_array_new(FALSE, FALSE, sizeof(MemoryEntry));
    run->guest = g_array_new(FALSE, FALSE, sizeof(Guest));
    run->random = g_rand_new_with_seed(g_test_rand_int());
    if (shape->backed) {
        run->base = g_build_filename(run->folder, "base", NULL);
        g_autofree char *content = g_malloc(shape->size / 2);
        memset(content, 0xee, shape->size / 2);
        memset(run->first_model, 0xee, run->sectors / 2);
        g_file_set_contents(run->base, content, (gssize)shape->size / 2, NULL);
    }
    if (shape->snapshot && !load_from_qemu(run))
        return false;
    if (!shape->snapshot) {
        json_auto_t *named = json_object();
        g_assert_true(block_options_parse(shape->options, NULL, NULL, named, &error));
        BlockCreate create = {.path = "memory",
                              .format = "qcow2",
                              .size = shape->size,
                              .options = named,
                              .backing = run->base,
                              .backing_format = run->base ? "raw" : NULL};
        g_autoptr(BlockFile) file = &memory_file_new(run->live, FILE_LIMIT, NULL)->file;
        g_assert_true(block_format_qcow2.create(file, &create, &error));
    }
    run->initial = g_byte_array_new();
    g_byte_array_append(run->initial, run->live->data, run->live->len);
    return true;
}

static void work(Run *run, unsigned operations)
{
    BlockNode *node = open_bytes(run, run->live, run->log, false);
    g_autofree uint8_t *buffer = g_malloc(KIB(300));
    for (unsigned i = 0; i < operations; i++) {
        Guest g = {.start = run->log->len};
        int kind = g_rand_int_range(run->random, 0, 100);
        int most = g_rand_int_range(run->random, 0, 4) ? 16 : 300;
        g.first = (uint64_t)g_rand_int_range(run->random, 0, (int)run->sectors);
        g.sectors = (uint64_t)g_rand_int_range(run->random, 1, most);
        g.sectors = MIN(g.sectors, run->sectors - g.first);
        uint64_t offset = g.first * SECTOR, length = g.sectors * SECTOR;
        if (kind < 12) {
            g.flush = true;
            g_assert_cmpint(block_flush(node), ==, 0);
        } else if (kind < 35) {
            g_assert_cmpint(block_write_zeroes(node, offset, length, kind & 1 ? BLOCK_UNMAP : 0),
                            ==, 0);
        } else {
            g.value = (uint8_t)g_rand_int_range(run->random, 1, 256);
            memset(buffer, g.value, length);
            struct iovec iov = {buffer, length};
            g_assert_cmpint(block_writev(node, offset, &iov, 1, 0), ==, 0);
        }
        g.end = run->log->len;
        g_array_append_val(run->guest, g);
    }
    block_unref(node);
}

static bool keep(void *opaque)
{
    Run *run = opaque;
    return g_rand_int_range(run->random, 0, 100) < run->keep_percent;
}

/* May sector @s hold @value after a cut at @cut? */
static bool acceptable(const Run *run, uint64_t s, uint8_t value, guint cut)
{
    uint8_t durable = run->first_model[s];
    guint last = 0;
    for (guint i = 0; i < run->guest->len; i++) {
        const Guest *g = &g_array_index(run->guest, Guest, i);
        if (g->flush && g->end <= cut)
            last = i;
    }
    for (guint i = 0; i < run->guest->len; i++) {
        const Guest *g = &g_array_index(run->guest, Guest, i);
        if (g->flush || s < g->first || s >= g->first + g->sectors)
            continue;
        if (i < last)
            durable = g->value;
        else if (g->start <= cut && g->value == value)
            return true;
    }
    return durable == value;
}

static void verify(Run *run, GByteArray *bytes, guint cut)
{
    g_autoptr(GError) error = NULL;
    BlockNode *node = open_bytes(run, bytes, NULL, true);
    BlockCheck check = {.repair = BLOCK_REPAIR_NONE};
    g_assert_true(block_check(node, &check, &error));
    g_assert_cmpuint(check.corruptions, ==, 0);
    g_autofree uint8_t *all = g_malloc(run->shape->size);
    struct iovec iov = {all, run->shape->size};
    g_assert_cmpint(block_readv(node, 0, &iov, 1), ==, 0);
    for (uint64_t s = 0; s < run->sectors; s++) {
        const uint8_t *sector = all + s * SECTOR;
        for (unsigned i = 1; i < SECTOR; i++)
            g_assert_cmpuint(sector[i], ==, sector[0]);
        if (!acceptable(run, s, sector[0], cut))
            g_error("%s: sector %" G_GUINT64_FORMAT " holds %u after a cut at %u",
                    run->shape->name, s, sector[0], cut);
    }
    block_unref(node);
}

static int compare_cuts(gconstpointer a, gconstpointer b)
{
    return (int)*(const guint *)a - (int)*(const guint *)b;
}

/* @durable: what is on the disk for certain when the log is cut after *applied entries. */
static void cut_all(Run *run, unsigned cuts)
{
    g_autofree guint *points = g_new(guint, cuts);
    for (unsigned i = 0; i < cuts; i++)
        points[i] = (guint)g_rand_int_range(run->random, 0, (int)run->log->len + 1);
    qsort(points, cuts, sizeof(guint), compare_cuts);
    GByteArray *durable = run->initial;
    guint applied = 0;
    for (unsigned i = 0; i < cuts; i++) {
        guint flushed = points[i];
        while (flushed > applied && g_array_index(run->log, MemoryEntry, flushed - 1).op != MEMORY_FLUSH)
            flushed--;
        for (; applied < flushed; applied++)
            memory_entry_apply(&g_array_index(run->log, MemoryEntry, applied), durable, NULL, NULL);
        g_autoptr(GByteArray) after = g_byte_array_new();
        g_byte_array_append(after, durable->data, durable->len);
        static const int chances[] = {0, 15, 50, 85, 100};
        run->keep_percent = chances[i % G_N_ELEMENTS(chances)];
        for (guint e = applied; e < points[i]; e++)
            memory_entry_apply(&g_array_index(run->log, MemoryEntry, e), after, keep, run);
        verify(run, after, points[i]);
    }
}

static void cut_shape(gconstpointer data)
{
    Run run = {0};
    if (make(&run, data)) {
        work(&run, 120);
        cut_all(&run, g_getenv("LODGE_CHECK_LONG") ? 2000 : g_getenv("LODGE_SANITIZED") ? 30 : 120);
        g_byte_array_unref(run.initial);
    } else {
        g_test_skip("qemu-img is not installed");
    }
    memory_log_free(run.log);
    g_array_unref(run.guest);
    g_byte_array_unref(run.live);
    g_rand_free(run.random);
    if (run.base)
        g_unlink(run.base);
    g_rmdir(run.folder);
    g_free(run.base);
    g_free(run.folder);
    g_free(run.first_model);
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
