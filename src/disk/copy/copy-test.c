/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Copies between images in memory, beside a plain copy; reads and writes that fail; cancelling. */
#include "disk/copy/copy.h"

#include "base/bytes.h"
#include "base/error.h"
#include "disk/bitmap.h"
#include "disk/memory-file.h"
#include "disk/node.h"

#include <errno.h>
#include <string.h>

#define SIZE (MIB(5) + 1536)

static BlockNode *open_memory(MemoryFile *file, const char *format)
{
    g_autoptr(GError) error = NULL;
    BlockOpen open = {.path = "memory", .format = format, .discard_unmap = true};
    BlockNode *node = block_open_file(&file->file, &open, &error);
    g_assert_no_error(error);
    return node;
}

/* An empty image; *file: what holds it, borrowed. */
static BlockNode *make(const char *format, uint64_t size, const char *options, MemoryFile **file)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GByteArray) bytes = g_byte_array_new();
    json_auto_t *named = json_object();
    g_assert_true(block_options_parse(options, NULL, NULL, named, &error));
    BlockCreate create = {.path = "memory", .format = format, .size = size, .options = named};
    MemoryFile *memory = memory_file_new(bytes, GIB(1), NULL);
    if (!strcmp(format, "raw"))
        g_assert_cmpint(memory->file.ops->truncate(&memory->file, size), ==, 0);
    else
        g_assert_true(block_format_find(format)->create(&memory->file, &create, &error));
    g_assert_no_error(error);
    if (file)
        *file = memory;
    return open_memory(memory, format);
}

/* Data, zeroes that are stored, and holes, at places of any alignment. */
static void scatter(BlockNode *node, uint8_t *model, uint64_t size, unsigned seed)
{
    g_autoptr(GRand) random = g_rand_new_with_seed(seed);
    for (int i = 0; i < 60; i++) {
        uint64_t length = 512ull * (uint64_t)g_rand_int_range(random, 1, 400);
        uint64_t at = 512ull * (uint64_t)g_rand_int_range(random, 0, (gint32)(size / 512));
        length = MIN(length, size - at);
        int fill = g_rand_int_range(random, 0, 4);
        memset(model + at, fill ? g_rand_int_range(random, 1, 256) : 0, length);
        struct iovec iov = {model + at, length};
        g_assert_cmpint(block_writev(node, at, &iov, 1, 0), ==, 0);
    }
}

static void expect(BlockNode *node, const uint8_t *model, uint64_t size)
{
    g_autofree uint8_t *got = g_malloc(size);
    struct iovec iov = {got, size};
    g_assert_cmpint(block_readv(node, 0, &iov, 1), ==, 0);
    g_assert_cmpint(memcmp(got, model, size), ==, 0);
}

typedef struct Shape {
    const char *from, *to, *options;
    bool compress, in_order;
    uint64_t sparse;
    bool dirty; /* the target holds something else before */
} Shape;

static void test_model(void)
{
    static const Shape shapes[] = {
        {"raw", "raw", "", false, false, 4096, false},
        {"raw", "raw", "", false, true, 0, true},
        {"raw", "qcow2", "", false, true, 4096, false},
        {"qcow2", "qcow2", "cluster_size=4096", false, false, 512, true},
        {"qcow2", "qcow2", "cluster_size=2M", true, false, 4096, false},
        {"raw", "qcow2", "", true, true, 4096, false},
        {"raw", "qcow2", "cluster_size=512", true, false, 65536, true},
        {"qcow2", "qcow2", "compression_type=zstd", true, false, 1536, false},
        {"qcow2", "raw", "", false, true, MIB(1), true},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(shapes); i++) {
        const Shape *s = &shapes[i];
        g_autoptr(GError) error = NULL;
        g_autofree uint8_t *model = g_malloc0(SIZE);
        g_autofree uint8_t *scratch = g_malloc0(SIZE);
        g_autoptr(BlockNode) from = make(s->from, SIZE, "", NULL);
        g_autoptr(BlockNode) to = make(s->to, SIZE, s->options, NULL);
        scatter(from, model, SIZE, (unsigned)i);
        if (s->dirty)
            scatter(to, scratch, SIZE, 99);
        BlockCopy copy = {.sources = &from,
                          .n_sources = 1,
                          .target = to,
                          .length = UINT64_MAX,
                          .compress = s->compress,
                          .in_order = s->in_order,
                          .sparse = s->sparse,
                          .threads = (unsigned)i % 5,
                          .target_is_zero = !s->dirty,
                          .backing_size = UINT64_MAX};
        g_assert_true(block_copy(&copy, &error));
        g_assert_no_error(error);
        expect(to, model, SIZE);
    }
}

/* Two sources in a row, from an offset to another one. */
static void test_ranges(void)
{
    g_autoptr(GError) error = NULL;
    uint64_t half = MIB(2) + 512, skip = MIB(1) + 512, put = KIB(96);
    g_autofree uint8_t *model = g_malloc0(2 * half + put);
    BlockNode *from[2] = {make("raw", half, "", NULL), make("qcow2", half, "", NULL)};
    g_autoptr(BlockNode) to = make("qcow2", 2 * half, "", NULL);
    scatter(from[0], model, half, 1);
    scatter(from[1], model + half, half, 2);
    BlockCopy copy = {.sources = from,
                      .n_sources = 2,
                      .target = to,
                      .source_offset = skip,
                      .target_offset = put,
                      .length = MIB(2),
                      .sparse = 4096,
                      .target_is_zero = true,
                      .backing_size = UINT64_MAX};
    g_assert_true(block_copy(&copy, &error));
    g_autofree uint8_t *got = g_malloc(MIB(2));
    struct iovec iov = {got, MIB(2)};
    g_assert_cmpint(block_readv(to, put, &iov, 1), ==, 0);
    g_assert_cmpint(memcmp(got, model + skip, MIB(2)), ==, 0);
    block_unref(from[0]);
    block_unref(from[1]);
}

/* Only what a bitmap marks. */
static void test_bitmap(void)
{
    g_autoptr(GError) error = NULL;
    g_autofree uint8_t *model = g_malloc0(SIZE);
    g_autofree uint8_t *before = g_malloc0(SIZE);
    g_autoptr(BlockNode) from = make("raw", SIZE, "", NULL);
    g_autoptr(BlockNode) to = make("raw", SIZE, "", NULL);
    scatter(from, model, SIZE, 3);
    scatter(to, before, SIZE, 4);
    g_assert_true(block_bitmap_add(from, "b", 65536, true, false, &error));
    g_assert_cmpint(block_bitmap_mark(from, "b", MIB(1), KIB(64)), ==, 0);
    BlockCopy copy = {.sources = &from,
                      .n_sources = 1,
                      .target = to,
                      .length = UINT64_MAX,
                      .sparse = 4096,
                      .bitmap = "b",
                      .backing_size = UINT64_MAX};
    g_assert_true(block_copy(&copy, &error));
    memcpy(before + MIB(1), model + MIB(1), KIB(64));
    expect(to, before, SIZE);
}

/* Whichever operation of either end fails: an error that says so, and an end. */
static void test_failures(void)
{
    for (uint64_t n = 0; n < 40; n++) {
        for (int side = 0; side < 2; side++) {
            g_autoptr(GError) error = NULL;
            g_autofree uint8_t *model = g_malloc0(SIZE);
            MemoryFile *files[2];
            g_autoptr(BlockNode) from = make("qcow2", SIZE, "", &files[0]);
            g_autoptr(BlockNode) to = make("qcow2", SIZE, "", &files[1]);
            scatter(from, model, SIZE, 5);
            MemoryFile *f = files[side];
            f->fail_from = f->operations + n;
            f->fail_until = f->fail_from + 1;
            BlockCopy copy = {.sources = &from,
                              .n_sources = 1,
                              .target = to,
                              .length = UINT64_MAX,
                              .sparse = 4096,
                              .compress = n % 2,
                              .threads = 3,
                              .target_is_zero = true,
                              .backing_size = UINT64_MAX};
            bool copied = block_copy(&copy, &error);
            f->fail_from = f->fail_until = 0;
            if (copied)
                expect(to, model, SIZE); /* there were fewer operations */
            else
                g_assert_nonnull(strstr(error->message, side ? "writing" : "reading"));
        }
    }
}

static void note_warning(void *opaque, const char *text)
{
    g_atomic_int_inc((int *)opaque);
}

static void test_salvage(void)
{
    g_autoptr(GError) error = NULL;
    g_autofree uint8_t *model = g_malloc0(SIZE);
    MemoryFile *file;
    int warnings = 0;
    g_autoptr(BlockNode) from = make("raw", SIZE, "", &file);
    g_autoptr(BlockNode) to = make("raw", SIZE, "", NULL);
    scatter(from, model, SIZE, 6);
    file->fail_from = 0;
    file->fail_until = UINT64_MAX;
    BlockCopy copy = {.sources = &from,
                      .n_sources = 1,
                      .target = to,
                      .length = MIB(1),
                      .sparse = 4096,
                      .salvage = true,
                      .warn = note_warning,
                      .warn_opaque = &warnings,
                      .target_is_zero = true,
                      .backing_size = UINT64_MAX};
    g_assert_true(block_copy(&copy, &error));
    g_assert_cmpint(warnings, >, 0);
    memset(model, 0, SIZE);
    expect(to, model, SIZE);
    file->fail_until = 0;
}

static bool refuse(void *opaque, uint64_t done, uint64_t total)
{
    return false;
}

static void test_cancel(void)
{
    g_autoptr(GError) error = NULL;
    g_autofree uint8_t *model = g_malloc0(SIZE);
    g_autoptr(BlockNode) from = make("raw", SIZE, "", NULL);
    g_autoptr(BlockNode) to = make("qcow2", SIZE, "", NULL);
    scatter(from, model, SIZE, 7);
    BlockCopy copy = {.sources = &from,
                      .n_sources = 1,
                      .target = to,
                      .length = UINT64_MAX,
                      .sparse = 4096,
                      .rate = KIB(512), /* ten seconds, if it were not cancelled */
                      .progress = {refuse, NULL},
                      .backing_size = UINT64_MAX};
    int64_t start = g_get_monotonic_time();
    g_assert_false(block_copy(&copy, &error));
    g_assert_error(error, LODGE_ERROR, LODGE_ERROR_CANCELLED);
    g_assert_cmpint(g_get_monotonic_time() - start, <, 5000000);
}

static void test_rate(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(BlockNode) from = make("raw", MIB(2), "", NULL);
    g_autoptr(BlockNode) to = make("raw", MIB(2), "", NULL);
    BlockCopy copy = {.sources = &from,
                      .n_sources = 1,
                      .target = to,
                      .length = UINT64_MAX,
                      .rate = MIB(4),
                      .backing_size = UINT64_MAX};
    int64_t start = g_get_monotonic_time();
    g_assert_true(block_copy(&copy, &error));
    g_assert_cmpint(g_get_monotonic_time() - start, >, 300000);
}

static void test_zeroes(void)
{
    g_autofree uint8_t *bytes = g_malloc0(1024);
    for (size_t length = 0; length < 700; length += 7) {
        g_assert_true(block_copy_is_zero(bytes + 3, length));
        for (size_t at = 0; at < length; at++) {
            bytes[3 + at] = 1;
            g_assert_false(block_copy_is_zero(bytes + 3, length));
            bytes[3 + at] = 0;
        }
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/disk/copy/model", test_model);
    g_test_add_func("/disk/copy/ranges", test_ranges);
    g_test_add_func("/disk/copy/bitmap", test_bitmap);
    g_test_add_func("/disk/copy/failures", test_failures);
    g_test_add_func("/disk/copy/salvage", test_salvage);
    g_test_add_func("/disk/copy/cancel", test_cancel);
    g_test_add_func("/disk/copy/rate", test_rate);
    g_test_add_func("/disk/copy/zeroes", test_zeroes);
    return g_test_run();
}
