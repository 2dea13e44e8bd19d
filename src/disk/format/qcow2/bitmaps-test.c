/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Persistent bitmaps: they come back as they were, and after a crash nobody is lied to. */
#include "base/bytes.h"
#include "disk/bitmap.h"
#include "disk/format/qcow2/qcow2.h"
#include "disk/memory-file.h"

#include <errno.h>
#include <string.h>

#define DISK  MIB(8)
#define LIMIT MIB(32)

static GByteArray *new_image(const char *options)
{
    g_autoptr(GError) error = NULL;
    GByteArray *bytes = g_byte_array_new();
    json_auto_t *named = json_object();
    g_assert_true(block_options_parse(options, NULL, NULL, named, &error));
    BlockCreate create = {.path = "m", .format = "qcow2", .size = DISK, .options = named};
    g_autoptr(BlockFile) file = &memory_file_new(bytes, LIMIT, NULL)->file;
    g_assert_true(block_format_qcow2.create(file, &create, &error));
    return bytes;
}

static BlockNode *open_image(GByteArray *bytes, bool read_only, GArray *log)
{
    g_autoptr(GError) error = NULL;
    BlockOpen options = {.path = "m", .format = "qcow2", .read_only = read_only,
                         .discard_unmap = true};
    BlockNode *node = block_open_file(&memory_file_new(bytes, LIMIT, log)->file, &options, &error);
    g_assert_no_error(error);
    return node;
}

static void assert_clean(BlockNode *node, bool leaks_allowed)
{
    g_autoptr(GError) error = NULL;
    BlockCheck check = {0};
    g_assert_true(block_check(node, &check, &error));
    g_assert_cmpuint(check.corruptions, ==, 0);
    if (!leaks_allowed)
        g_assert_cmpuint(check.leaks, ==, 0);
}

static void fill(BlockNode *node, uint64_t offset, uint64_t length)
{
    g_autofree uint8_t *buffer = g_malloc(length);
    memset(buffer, 1, length);
    struct iovec iov = {buffer, length};
    g_assert_cmpint(block_writev(node, offset, &iov, 1, 0), ==, 0);
}

static bool dirty(BlockNode *node, const char *name, uint64_t offset)
{
    bool is = false;
    uint64_t same;
    g_assert_cmpint(block_bitmap_next(node, name, offset, 1, &is, &same), ==, 0);
    return is;
}

static void test_kept(gconstpointer data)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GByteArray) bytes = new_image(data);
    BlockNode *node = open_image(bytes, false, NULL);
    g_assert_true(block_bitmap_add(node, "on", 512, true, true, &error));
    g_assert_true(block_bitmap_add(node, "off", 65536, false, true, &error));
    g_assert_true(block_bitmap_add(node, "gone", 0, true, false, &error));
    fill(node, MIB(1), 512);
    fill(node, DISK - 512, 512);
    block_unref(node);
    for (int round = 0; round < 3; round++) {
        unsigned n;
        node = open_image(bytes, round < 2, NULL);
        BlockBitmapInfo *list = block_bitmap_list(node, &n);
        g_assert_cmpuint(n, ==, 2);
        g_assert_cmpstr(list[1].name, ==, "on");
        g_assert_true(list[1].recording && !list[0].recording && list[1].persistent);
        g_assert_cmpuint(list[1].count, ==, 1024);
        block_bitmap_list_free(list, n);
        g_assert_true(dirty(node, "on", MIB(1)) && dirty(node, "on", DISK - 1));
        g_assert_false(dirty(node, "on", MIB(1) + 512) || dirty(node, "off", MIB(1)));
        assert_clean(node, false);
        if (round == 2) { /* as seen while somebody has it open for writing */
            BlockNode *other = open_image(bytes, true, NULL);
            g_assert_false(block_bitmap_check(other, "on", &error));
            g_assert_nonnull(strstr(error->message, "inconsistent"));
            g_clear_error(&error);
            block_unref(other);
        }
        block_unref(node);
    }
    node = open_image(bytes, false, NULL);
    BlockResize resize = {.size = 2 * DISK};
    g_assert_true(block_resize(node, &resize, &error));
    fill(node, DISK + MIB(2), 4096);
    g_assert_true(block_bitmap_remove(node, "off", &error));
    block_unref(node);
    node = open_image(bytes, false, NULL);
    g_assert_true(dirty(node, "on", MIB(1)) && dirty(node, "on", DISK + MIB(2)));
    g_assert_true(block_bitmap_remove(node, "on", &error));
    assert_clean(node, false);
    block_unref(node);
    g_assert_cmpuint(be64_get(bytes->data + 88), ==, 0);
    node = open_image(bytes, true, NULL);
    assert_clean(node, false);
    block_unref(node);
}

/* Who does not know of bitmaps clears the bit: then there are none, whatever the header says. */
static void test_stale(void)
{
    unsigned n;
    g_autoptr(GError) error = NULL;
    g_autoptr(GByteArray) bytes = new_image("cluster_size=4k");
    BlockNode *node = open_image(bytes, false, NULL);
    g_assert_true(block_bitmap_add(node, "b", 0, true, true, &error));
    block_unref(node);
    g_assert_cmpuint(be64_get(bytes->data + 88), ==, 1);
    be64_put(bytes->data + 88, 0);
    node = open_image(bytes, false, NULL);
    BlockBitmapInfo *list = block_bitmap_list(node, &n);
    block_bitmap_list_free(list, n);
    g_assert_cmpuint(n, ==, 0);
    assert_clean(node, true);
    block_unref(node);
}

static bool keep_some(void *opaque)
{
    return g_rand_boolean(opaque);
}

/* Opened with a bitmap, written, closed; a cut anywhere leaves the truth or a broken bitmap. */
static void test_cut(gconstpointer data)
{
    g_autoptr(GError) error = NULL;
    GRand *random = g_rand_new_with_seed(g_test_rand_int());
    g_autoptr(GByteArray) initial = new_image(data), live = g_byte_array_new();
    BlockNode *node = open_image(initial, false, NULL);
    g_assert_true(block_bitmap_add(node, "b", 512, true, true, &error));
    g_assert_true(block_bitmap_add(node, "c", 512, true, true, &error));
    fill(node, MIB(1), 512);
    block_unref(node);
    g_byte_array_append(live, initial->data, initial->len);
    GArray *log = g_array_new(FALSE, FALSE, sizeof(MemoryEntry));
    node = open_image(live, false, log);
    guint opened = log->len;
    fill(node, MIB(2), 512);
    fill(node, MIB(6), MIB(1));
    g_assert_cmpint(block_flush(node), ==, 0);
    block_unref(node);
    for (guint cut = 0; cut <= log->len; cut++) {
        g_autoptr(GByteArray) after = g_byte_array_new();
        g_byte_array_append(after, initial->data, initial->len);
        guint flushed = cut;
        while (flushed > 0 && g_array_index(log, MemoryEntry, flushed - 1).op != MEMORY_FLUSH)
            flushed--;
        for (guint e = 0; e < cut; e++)
            memory_entry_apply(&g_array_index(log, MemoryEntry, e), after,
                               e < flushed ? NULL : keep_some, random);
        node = open_image(after, true, NULL);
        assert_clean(node, true);
        if (block_bitmap_check(node, "b", NULL)) {
            g_assert_true(dirty(node, "b", MIB(1)));
            g_assert_true(cut <= opened || dirty(node, "b", MIB(6)));
        }
        block_unref(node);
        node = open_image(after, false, NULL); /* and it can be got rid of */
        g_assert_true(block_bitmap_remove(node, "b", &error));
        assert_clean(node, true);
        block_unref(node);
    }
    memory_log_free(log);
    g_rand_free(random);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    static const char *const shapes[] = {"cluster_size=64k", "cluster_size=4k,refcount_bits=1",
                                         "cluster_size=512"};
    g_test_add_func("/disk/bitmaps/stale", test_stale);
    for (size_t i = 0; i < G_N_ELEMENTS(shapes); i++) {
        g_autofree char *kept = g_strdup_printf("/disk/bitmaps/kept/%s", shapes[i]);
        g_autofree char *cut = g_strdup_printf("/disk/bitmaps/cut/%s", shapes[i]);
        g_test_add_data_func(kept, shapes[i], test_kept);
        g_test_add_data_func(cut, shapes[i], test_cut);
    }
    return g_test_run();
}
