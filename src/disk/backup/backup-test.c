/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Backups: what is restored is what was there, stored once, and damage is found. */
#include "base/bytes.h"
#include "base/error.h"
#include "disk/backup/overlay.h"
#include "disk/backup/store.h"
#include "disk/bitmap.h"
#include "disk/memory-file.h"
#include "disk/node.h"

#include <fcntl.h>
#include <glib/gstdio.h>
#include <string.h>
#include <unistd.h>

#define DISK  (MIB(4) + 4096)
#define CHUNK 65536u

typedef struct Fixture {
    char *folder, *store;
    GByteArray *bytes;
    BlockNode *source;
} Fixture;

static BlockNode *open_bytes(GByteArray *bytes, const char *path)
{
    g_autoptr(GError) error = NULL;
    BlockOpen how = {.path = path, .format = "raw", .discard_unmap = true};
    BlockNode *node = block_open_file(&memory_file_new(bytes, MIB(64), NULL)->file, &how, &error);
    g_assert_no_error(error);
    return node;
}

static void fill(BlockNode *node, uint64_t offset, uint64_t length, int kind)
{
    g_autofree uint8_t *bytes = g_malloc(length);
    for (uint64_t i = 0; i < length; i++)
        bytes[i] = kind == 0   ? 0
                   : kind == 1 ? (uint8_t)(i / 100)
                               : (uint8_t)g_test_rand_int();
    struct iovec iov = {bytes, length};
    g_assert_cmpint(block_writev(node, offset, &iov, 1, 0), ==, 0);
}

static void setup(Fixture *f, gconstpointer data)
{
    g_autoptr(GError) error = NULL;
    f->folder = g_dir_make_tmp("lodge-backup-XXXXXX", NULL);
    f->store = g_build_filename(f->folder, "store", NULL);
    f->bytes = g_byte_array_new();
    g_byte_array_set_size(f->bytes, DISK);
    memset(f->bytes->data, 0, DISK);
    f->source = open_bytes(f->bytes, "disk");
    fill(f->source, CHUNK * 3, CHUNK * 5, 1); /* the same chunk over and over: not quite */
    fill(f->source, CHUNK * 10, CHUNK * 4, 2);
    fill(f->source, DISK - 6000 + 6000 % 512, 512, 2);
    g_assert_true(backup_store_create(f->store, CHUNK, &error));
}

static void remove_tree(const char *path)
{
    g_autoptr(GDir) folder = g_dir_open(path, 0, NULL);
    const char *name;
    while (folder && (name = g_dir_read_name(folder))) {
        g_autofree char *inner = g_build_filename(path, name, NULL);
        remove_tree(inner);
    }
    g_remove(path);
}

static void teardown(Fixture *f, gconstpointer data)
{
    block_unref(f->source);
    g_byte_array_unref(f->bytes);
    remove_tree(f->folder);
    g_free(f->folder);
    g_free(f->store);
}

static BackupStats take(Fixture *f, const char *name, const char *bitmap, const char *parent)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(BackupStore) store = backup_store_open(f->store, true, &error);
    BackupTake what = {.name = name, .source = f->source, .bitmap = bitmap, .parent = parent};
    BackupStats stats;
    g_assert_no_error(error);
    bool done = backup_take(store, &what, &stats, &error);
    g_assert_no_error(error);
    g_assert_true(done);
    return stats;
}

/* Restores over noise, and over a blank disk. */
static void expect(Fixture *f, const char *name, const uint8_t *content)
{
    for (int blank = 0; blank < 2; blank++) {
        g_autoptr(GError) error = NULL;
        g_autoptr(BackupStore) store = backup_store_open(f->store, false, &error);
        g_autoptr(GByteArray) bytes = g_byte_array_new();
        g_byte_array_set_size(bytes, DISK + 512);
        memset(bytes->data, blank ? 0 : 0x55, bytes->len);
        BlockNode *target = open_bytes(bytes, "target");
        bool done = backup_restore(store, name, target, blank, NULL, &error);
        g_assert_no_error(error);
        g_assert_true(done);
        block_unref(target);
        g_assert_cmpmem(bytes->data, DISK, content, DISK);
        g_assert_cmpuint(bytes->data[DISK], ==, 0);
    }
}

static uint64_t damages(Fixture *f, const char *name)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(BackupStore) store = backup_store_open(f->store, false, &error);
    BackupVerify verify = {0};
    g_assert_no_error(error);
    g_assert_true(backup_verify(store, name, &verify, NULL, &error));
    g_assert_no_error(error);
    return verify.damaged;
}

static void test_rounds(Fixture *f, gconstpointer data)
{
    g_autofree uint8_t *first = g_memdup2(f->bytes->data, DISK);
    BackupStats stats = take(f, "one", NULL, NULL);
    g_assert_cmpuint(stats.chunks_new, >, 4);
    stats = take(f, "two", NULL, NULL); /* nothing changed: nothing is stored */
    g_assert_cmpuint(stats.chunks_new, ==, 0);
    g_assert_cmpuint(stats.stored, ==, 0);
    fill(f->source, CHUNK * 11, 1024, 2);
    fill(f->source, CHUNK * 40, CHUNK * 2, 2);
    fill(f->source, CHUNK * 3, CHUNK, 0);
    stats = take(f, "three", NULL, NULL);
    g_assert_cmpuint(stats.chunks_new, ==, 3);
    g_autofree uint8_t *last = g_memdup2(f->bytes->data, DISK);
    expect(f, "one", first);
    expect(f, "two", first);
    expect(f, "three", last);
    g_assert_cmpuint(damages(f, NULL), ==, 0);
}

static void test_incremental(Fixture *f, gconstpointer data)
{
    g_autoptr(GError) error = NULL;
    take(f, "full", NULL, NULL);
    g_assert_true(block_bitmap_add(f->source, "b", 4096, true, false, &error));
    fill(f->source, CHUNK * 12 + 5 * 512, 512, 2);
    fill(f->source, CHUNK * 4, CHUNK, 0);
    fill(f->source, CHUNK * 30 + 4096, CHUNK, 2);
    BackupStats stats = take(f, "more", "b", "full");
    g_assert_cmpuint(stats.read, <, CHUNK * 6);
    g_assert_cmpuint(stats.chunks_new, ==, 3);
    expect(f, "more", f->bytes->data);
}

static void test_overlay(Fixture *f, gconstpointer data)
{
    for (int by_bitmap = 0; by_bitmap < 2; by_bitmap++) {
        g_autoptr(GError) error = NULL;
        g_autofree char *base = g_build_filename(f->folder, "base", NULL);
        g_autofree char *top = g_strdup_printf("%s/top%d", f->folder, by_bitmap);
        g_assert_true(g_file_set_contents(base, (char *)f->bytes->data, DISK, NULL));
        if (by_bitmap)
            g_assert_true(block_bitmap_add(f->source, "b", 4096, true, false, &error));
        fill(f->source, CHUNK * 11 + 512, 1024, 2);
        fill(f->source, CHUNK * 5, 4096, 0);
        fill(f->source, CHUNK * 50, CHUNK * 3, 2);
        BackupOverlay what = {.source = f->source, .target = top, .base = "base",
                              .base_format = "raw", .bitmap = by_bitmap ? "b" : NULL};
        bool done = backup_overlay(&what, &error);
        g_assert_no_error(error);
        g_assert_true(done);
        BlockOpen how = {.path = top, .format = "qcow2", .read_only = true};
        g_autoptr(BlockNode) node = block_open(&how, &error);
        g_assert_no_error(error);
        g_autofree uint8_t *all = g_malloc(DISK);
        struct iovec iov = {all, DISK};
        g_assert_cmpint(block_readv(node, 0, &iov, 1), ==, 0);
        g_assert_cmpmem(all, DISK, f->bytes->data, DISK);
        BlockInfo info;
        block_info(node, &info);
        g_assert_cmpuint(info.actual_size, <, MIB(1)); /* the change, not the disk */
        block_info_clear(&info);
        g_assert_false(backup_overlay(&what, &error)); /* it is there already */
    }
}

static char *only_file(Fixture *f, const char *suffix)
{
    return g_strdup_printf("%s/packs/00000000.%s", f->store, suffix);
}

static void flip(const char *path, off_t at)
{
    uint8_t byte;
    int fd = open(path, O_RDWR);
    g_assert_cmpint(pread(fd, &byte, 1, at), ==, 1);
    byte ^= 0x40;
    g_assert_cmpint(pwrite(fd, &byte, 1, at), ==, 1);
    close(fd);
}

static bool restores(Fixture *f, const char *name, GError **err)
{
    g_autoptr(BackupStore) store = backup_store_open(f->store, false, err);
    g_autoptr(GByteArray) bytes = g_byte_array_new();
    g_byte_array_set_size(bytes, DISK);
    g_autoptr(BlockNode) target = open_bytes(bytes, "target");
    return store && backup_restore(store, name, target, false, NULL, err);
}

static void test_damage(Fixture *f, gconstpointer data)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *pack = only_file(f, "pack");
    g_autofree char *manifest = g_strdup_printf("%s/backups/one.backup", f->store);
    take(f, "one", NULL, NULL);
    flip(pack, 48 + 20); /* in the first chunk's bytes */
    g_assert_cmpuint(damages(f, "one"), >, 0);
    g_assert_false(restores(f, "one", &error));
    g_assert_error(error, LODGE_ERROR, LODGE_ERROR_CORRUPT);
    g_clear_error(&error);
    flip(pack, 48 + 20);
    g_assert_cmpuint(damages(f, "one"), ==, 0);
    flip(manifest, 60);
    g_assert_cmpuint(damages(f, "one"), ==, 1);
    g_assert_false(restores(f, "one", &error));
    g_assert_error(error, LODGE_ERROR, LODGE_ERROR_CORRUPT);
    g_assert_nonnull(strstr(error->message, "one.backup"));
}

/* A writer that died: its pack ends in the middle of a record. The next one goes on from there. */
static void test_resume(Fixture *f, gconstpointer data)
{
    g_autofree char *pack = only_file(f, "pack");
    g_autofree char *manifest = g_strdup_printf("%s/backups/one.backup", f->store);
    BackupStats first = take(f, "one", NULL, NULL);
    GStatBuf st;
    g_assert_cmpint(g_stat(pack, &st), ==, 0);
    g_assert_cmpint(g_unlink(manifest), ==, 0);
    g_assert_cmpint(truncate(pack, st.st_size - 100), ==, 0);
    BackupStats again = take(f, "one", NULL, NULL);
    g_assert_cmpuint(again.chunks_new, ==, 1);
    g_assert_cmpuint(again.chunks_known, ==, first.chunks_new + first.chunks_known - 1);
    expect(f, "one", f->bytes->data);
    g_assert_cmpuint(damages(f, NULL), ==, 0);
}

static bool stop_early(void *opaque, uint64_t done, uint64_t total)
{
    return ++*(int *)opaque < 2;
}

static void test_cancel(Fixture *f, gconstpointer data)
{
    g_autoptr(GError) error = NULL;
    int steps = 0;
    {
        g_autoptr(BackupStore) store = backup_store_open(f->store, true, &error);
        BackupTake what = {.name = "one", .source = f->source, .progress = {stop_early, &steps}};
        BackupStats stats;
        g_assert_false(backup_take(store, &what, &stats, &error));
        g_assert_error(error, LODGE_ERROR, LODGE_ERROR_CANCELLED);
        g_clear_error(&error);
        g_autoptr(GPtrArray) names = backup_list(store, &error);
        g_assert_cmpuint(names->len, ==, 0);
        g_autoptr(BackupStore) second = backup_store_open(f->store, true, &error);
        g_assert_null(second);
        g_assert_error(error, LODGE_ERROR, LODGE_ERROR_BUSY);
    }
    take(f, "one", NULL, NULL);
    expect(f, "one", f->bytes->data);
}

static void test_prune(Fixture *f, gconstpointer data)
{
    g_autoptr(GError) error = NULL;
    uint64_t freed;
    take(f, "one", NULL, NULL);
    {
        g_autoptr(BackupStore) store = backup_store_open(f->store, true, &error);
        g_assert_true(backup_prune(store, &freed, &error));
        g_assert_cmpuint(freed, ==, 0);
        g_assert_true(backup_delete(store, "one", &error));
        g_assert_true(backup_prune(store, &freed, &error));
        g_assert_cmpuint(freed, >, CHUNK * 4);
        g_assert_false(backup_delete(store, "one", &error));
    }
    take(f, "two", NULL, NULL);
    expect(f, "two", f->bytes->data);
}

static void test_names(Fixture *f, gconstpointer data)
{
    static const char *const bad[] = {"", ".", "../x", "a/b", "-x", "a b", "a\n"};
    g_autoptr(BackupStore) store = backup_store_open(f->store, true, NULL);
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GError) error = NULL;
        BackupTake what = {.name = bad[i], .source = f->source};
        BackupStats stats;
        g_assert_false(backup_take(store, &what, &stats, &error));
        g_assert_error(error, LODGE_ERROR, LODGE_ERROR_INVALID);
    }
}

static void add(const char *name, void (*test)(Fixture *, gconstpointer))
{
    g_autofree char *path = g_strconcat("/disk/backup/", name, NULL);
    g_test_add(path, Fixture, NULL, setup, test, teardown);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    add("rounds", test_rounds);
    add("incremental", test_incremental);
    add("overlay", test_overlay);
    add("damage", test_damage);
    add("resume", test_resume);
    add("cancel", test_cancel);
    add("prune", test_prune);
    add("names", test_names);
    return g_test_run();
}
