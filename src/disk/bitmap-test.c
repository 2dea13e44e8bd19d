/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/bytes.h"
#include "base/error.h"
#include "disk/bitmap-internal.h"
#include "disk/memory-file.h"

#include <errno.h>
#include <string.h>

#define DISK MIB(3)

static BlockNode *new_disk(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GByteArray) bytes = g_byte_array_new();
    g_byte_array_set_size(bytes, DISK);
    BlockOpen how = {.path = "memory", .format = "raw", .discard_unmap = true};
    BlockNode *node = block_open_file(&memory_file_new(bytes, DISK * 2, NULL)->file, &how, &error);
    g_assert_no_error(error);
    return node;
}

/* Runs of block_bitmap_next against a byte a granule. */
static void expect(BlockNode *node, const char *name, const uint8_t *model, uint64_t granule)
{
    for (uint64_t at = 0; at < DISK;) {
        bool dirty;
        uint64_t same;
        g_assert_cmpint(block_bitmap_next(node, name, at, DISK - at, &dirty, &same), ==, 0);
        g_assert_cmpuint(same, >, 0);
        for (uint64_t i = at / granule; i <= (at + same - 1) / granule; i++)
            g_assert_cmpuint(model[i], ==, dirty);
        at += same;
        if (at < DISK) /* a run ends where the answer changes */
            g_assert_cmpuint(model[at / granule], !=, dirty);
    }
}

static void mark_model(uint8_t *model, uint64_t granule, uint64_t offset, uint64_t length)
{
    for (uint64_t i = offset / granule; i <= (offset + length - 1) / granule; i++)
        model[i] = 1;
}

static void write_at(BlockNode *node, uint64_t offset, uint64_t length)
{
    g_autofree uint8_t *bytes = g_malloc0(length);
    struct iovec iov = {bytes, length};
    g_assert_cmpint(block_writev(node, offset, &iov, 1, 0), ==, 0);
}

static void test_marks(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(BlockNode) node = new_disk();
    uint8_t small[DISK / 512] = {0}, large[DISK / 65536] = {0};
    g_assert_true(block_bitmap_add(node, "small", 512, true, false, &error));
    g_assert_true(block_bitmap_add(node, "large", 0, true, false, &error));
    expect(node, "small", small, 512);
    for (int i = 0; i < 200; i++) {
        uint64_t offset = (uint64_t)g_test_rand_int_range(0, (int)(DISK / 512)) * 512;
        uint64_t length = (uint64_t)g_test_rand_int_range(1, 40) * 512;
        length = MIN(length, DISK - offset);
        if (i % 3 == 0)
            write_at(node, offset, length);
        else if (i % 3 == 1)
            g_assert_cmpint(block_write_zeroes(node, offset, length, 0), ==, 0);
        else
            g_assert_cmpint(block_discard(node, offset, length), ==, 0);
        mark_model(small, 512, offset, length);
        mark_model(large, 65536, offset, length);
        if (i % 20 == 0) {
            expect(node, "small", small, 512);
            expect(node, "large", large, 65536);
        }
    }
    g_assert_true(block_bitmap_clear(node, "small", &error));
    memset(small, 0, sizeof(small));
    g_assert_true(block_bitmap_enable(node, "small", false, &error));
    write_at(node, 4096, 4096);
    expect(node, "small", small, 512);
    /* Merging across granularities. */
    g_assert_true(block_bitmap_merge(node, "small", node, "large", &error));
    for (size_t i = 0; i < G_N_ELEMENTS(small); i++)
        small[i] = large[i / 128];
    mark_model(large, 65536, 4096, 4096);
    for (size_t i = 0; i < 128; i++)
        small[i] = large[0];
    expect(node, "small", small, 512);
}

static void ignore(BlockRequest *request, int result)
{
    g_assert_cmpint(result, ==, 0);
}

static void test_queue(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(BlockNode) node = new_disk();
    uint8_t model[DISK / 4096] = {0}, bytes[512] = {0};
    g_assert_true(block_bitmap_add(node, "b", 4096, true, false, &error));
    BlockQueue *queue = block_queue_new(node, 4, &error);
    struct iovec iov = {bytes, sizeof(bytes)};
    BlockRequest request = {.op = BLOCK_WRITE, .offset = 8192 + 512, .iov = &iov, .n_iov = 1,
                            .done = ignore};
    block_queue_submit(queue, &request);
    block_queue_drain(queue);
    block_queue_free(queue);
    model[2] = 1;
    expect(node, "b", model, 4096);
}

static void refused(bool done, GError **error, int code, const char *words)
{
    g_assert_false(done);
    g_assert_error(*error, LODGE_ERROR, code);
    g_assert_nonnull(strstr((*error)->message, words));
    g_clear_error(error);
}

static void test_refusals(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(BlockNode) node = new_disk();
    g_autofree char *longest = g_strnfill(BLOCK_BITMAP_NAME_MAX + 1, 'x');
    bool dirty;
    uint64_t same;
    refused(block_bitmap_add(node, "a", 1000, true, false, &error), &error, LODGE_ERROR_INVALID,
            "power of 2");
    refused(block_bitmap_add(node, "a", 256, true, false, &error), &error, LODGE_ERROR_INVALID,
            "at least 512");
    refused(block_bitmap_add(node, longest, 0, true, false, &error), &error, LODGE_ERROR_LIMIT,
            "too long");
    refused(block_bitmap_add(node, "a", 0, true, true, &error), &error, LODGE_ERROR_UNSUPPORTED,
            "Cannot store");
    g_assert_true(block_bitmap_add(node, "a", 0, true, false, &error));
    refused(block_bitmap_add(node, "a", 0, true, false, &error), &error, LODGE_ERROR_EXISTS, "a");
    refused(block_bitmap_clear(node, "b", &error), &error, LODGE_ERROR_NOT_FOUND, "'b' not found");
    g_assert_cmpint(block_bitmap_next(node, "b", 0, 1, &dirty, &same), ==, -ENOENT);
    g_assert_cmpint(block_bitmap_next(node, "a", DISK, 1, &dirty, &same), ==, -EINVAL);
    g_assert_true(block_bitmap_remove(node, "a", &error));
    refused(block_bitmap_remove(node, "a", &error), &error, LODGE_ERROR_NOT_FOUND, "not found");
}

static void test_resize(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(BlockNode) node = new_disk();
    bool dirty;
    uint64_t same;
    g_assert_true(block_bitmap_add(node, "a", 4096, true, false, &error));
    write_at(node, DISK - 4096, 4096);
    g_assert_true(block_bitmaps_resize(node, DISK + MIB(1), &error));
    g_assert_cmpint(block_bitmap_next(node, "a", DISK - 4096, MIB(1), &dirty, &same), ==, 0);
    g_assert_true(dirty);
    g_assert_cmpuint(same, ==, 4096);
    g_assert_cmpint(block_bitmap_next(node, "a", DISK, MIB(1), &dirty, &same), ==, 0);
    g_assert_false(dirty);
    g_assert_cmpuint(same, ==, MIB(1));
    g_assert_true(block_bitmaps_resize(node, MIB(1), &error));
    g_assert_cmpint(block_bitmap_next(node, "a", 0, MIB(1), &dirty, &same), ==, 0);
    g_assert_false(dirty);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/disk/bitmap/marks", test_marks);
    g_test_add_func("/disk/bitmap/queue", test_queue);
    g_test_add_func("/disk/bitmap/refusals", test_refusals);
    g_test_add_func("/disk/bitmap/resize", test_resize);
    return g_test_run();
}
