/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What every row of the table of disk formats promises: it describes itself, refuses what is not
 * its own, keeps what is written, says truly what is where, survives power cuts and failing writes.
 * A new row is tested by standing there.
 */
#include "base/bytes.h"
#include "base/error.h"
#include "disk/crash.h"
#include "disk/format/formats.h"
#include "disk/objects.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define DISK   MIB(4)
#define SECTOR 512u

static const char *pages; /* the folder of the formats' documentation */

/* What some formats cannot be made or opened without. */
typedef struct Needs {
    const char *format, *create, *open, *object;
    bool noise; /* what was never written does not read as zeroes */
    bool repair; /* after a crash it must be repaired, or have its log replayed */
} Needs;

static const Needs needs[] = {
    {"luks", "key-secret=s0,iter-time=10", "key-secret=s0", "secret,id=s0,data=contract", true, false},
    {"vhdx", "block_size=1M", NULL, NULL, false, true},
    {"parallels", "cluster_size=64k", NULL, NULL, false, true},
};

static const Needs *needs_of(const BlockFormat *format)
{
    for (size_t i = 0; i < G_N_ELEMENTS(needs); i++) {
        if (!strcmp(needs[i].format, format->name))
            return &needs[i];
    }
    return NULL;
}

typedef struct Image {
    const BlockFormat *format;
    BlockObjects *objects;
    json_t *create, *open;
    GByteArray *bytes;
} Image;

static json_t *parse(const char *text)
{
    json_t *options = json_object();
    g_assert_true(block_options_parse(text ? text : "", NULL, NULL, options, NULL));
    return options;
}

static BlockNode *open_bytes(Image *image, bool read_only);

static void make_zero(BlockNode *node, uint64_t from)
{
    const Needs *own = needs_of(node->format);
    if (own && own->noise)
        g_assert_cmpint(block_write_zeroes(node, from, block_size(node) - from, 0), ==, 0);
}

static void image_begin(Image *image, const BlockFormat *format)
{
    g_autoptr(GError) error = NULL;
    *image = (Image){.format = format, .objects = block_objects_new(),
                     .bytes = g_byte_array_new()};
    const Needs *own = needs_of(format);
    if (own) {
        image->create = parse(own->create);
        image->open = parse(own->open);
    }
    if (own && own->object) {
        block_objects_add(image->objects, own->object, &error);
        g_assert_no_error(error);
    }
    BlockCreate create = {.path = "memory", .format = format->name, .size = DISK,
                          .options = image->create, .objects = image->objects};
    if (!strcmp(format->name, "raw")) { /* its file comes as long as it shall be */
        g_byte_array_set_size(image->bytes, DISK);
        memset(image->bytes->data, 0, DISK);
    }
    g_autoptr(BlockFile) file = &memory_file_new(image->bytes, CRASH_FILE_LIMIT, NULL)->file;
    bool made = format->create_check(&create, &error) && format->create(file, &create, &error);
    g_assert_no_error(error);
    g_assert_true(made);
    g_autoptr(BlockNode) node = open_bytes(image, false);
    make_zero(node, 0);
}

static void image_end(Image *image)
{
    block_objects_free(image->objects);
    json_decref(image->create);
    json_decref(image->open);
}

static void repair(const Image *image, GByteArray *bytes)
{
    BlockOpen how = {.path = "memory", .format = image->format->name, .repair = true};
    BlockCheck check = {.repair = BLOCK_REPAIR_ALL};
    g_autoptr(BlockNode) node =
        block_open_file(&memory_file_new(bytes, CRASH_FILE_LIMIT, NULL)->file, &how, NULL);
    if (node) /* else it is no image */
        g_assert_true(block_check(node, &check, NULL));
}

static BlockNode *open_image(void *opaque, BlockFile *file, bool read_only, GError **err)
{
    const Image *image = opaque;
    const Needs *own = needs_of(image->format);
    if (own && own->repair && read_only)
        repair(image, ((MemoryFile *)file)->bytes);
    BlockOpen how = {.path = "memory", .format = image->format->name, .options = image->open,
                     .objects = image->objects, .read_only = read_only, .discard_unmap = true};
    return block_open_file(file, &how, err);
}

static BlockNode *open_bytes(Image *image, bool read_only)
{
    g_autoptr(GError) error = NULL;
    BlockNode *node = open_image(
        image, &memory_file_new(image->bytes, CRASH_FILE_LIMIT, NULL)->file, read_only, &error);
    g_assert_no_error(error);
    return node;
}

/* ---- what it says of itself */

static void test_words(gconstpointer data)
{
    const BlockFormat *format = data;
    g_autofree char *page = g_strdup_printf("%s/%s.md", pages, format->name);
    if (!g_file_test(page, G_FILE_TEST_EXISTS))
        g_error("%s: there is no page %s", format->name, page);
    g_assert_nonnull(format->open);
    g_assert_nonnull(format->close);
    g_assert_nonnull(format->readv);
    g_assert_nonnull(format->status);
    /* All of writing, or none. */
    bool writes = format->writev != NULL;
    g_assert_true((format->write_zeroes != NULL) == writes);
    g_assert_true((format->discard != NULL) == writes);
    g_assert_true((format->flush != NULL) == writes);
    g_assert_true((format->create != NULL) == (format->create_options != NULL));
    g_assert_true((format->create != NULL) == (format->create_check != NULL));
    for (const BlockOption *o = format->create_options; o && o->name; o++) {
        if (!o->help || !*o->help)
            g_error("%s: option %s has no help", format->name, o->name);
    }
    g_assert_true(!format->create || block_option_find(format->create_options, "size"));
}

static void test_stranger(gconstpointer data)
{
    const BlockFormat *format = data;
    Image image = {.format = format, .bytes = g_byte_array_new()};
    g_autoptr(GError) error = NULL;
    for (int round = 0; round < 3; round++) { /* nothing, zeroes, noise */
        g_byte_array_set_size(image.bytes, round == 0 ? 0 : 8192);
        for (guint i = 0; i < image.bytes->len; i++)
            image.bytes->data[i] = round == 1 ? 0 : (uint8_t)g_test_rand_int();
        g_autoptr(BlockNode) node = open_image(
            &image, &memory_file_new(image.bytes, CRASH_FILE_LIMIT, NULL)->file, true, &error);
        if (!strcmp(format->name, "raw")) {
            g_assert_nonnull(node);
            continue;
        }
        g_assert_null(node);
        g_assert_nonnull(error);
        /* Some in QEMU's words, without the file's name, which the tool puts in front. */
        g_assert_cmpstr(error->message, !=, "");
        g_clear_error(&error);
    }
    g_byte_array_unref(image.bytes);
}

/* ---- what it keeps */

static void check_extents(BlockNode *node, const uint8_t *all, uint64_t size)
{
    for (uint64_t at = 0; at < size;) {
        BlockExtent extent;
        g_assert_cmpint(block_status(node, at, size - at, &extent), ==, 0);
        g_assert_cmpuint(extent.length, >, 0);
        g_assert_cmpuint(extent.length, <=, size - at);
        if (extent.zero || !extent.present) {
            for (uint64_t i = 0; i < extent.length; i++)
                g_assert_cmpuint(all[at + i], ==, 0);
        }
        at += extent.length;
    }
}

static void compare(BlockNode *node, const uint8_t *model, uint64_t size)
{
    g_autofree uint8_t *all = g_malloc(size);
    struct iovec iov = {all, size};
    g_assert_cmpint(block_readv(node, 0, &iov, 1), ==, 0);
    g_assert_cmpmem(all, size, model, size);
    check_extents(node, all, size);
}

static void operate(BlockNode *node, uint8_t *model, uint64_t size)
{
    uint64_t sectors = size / SECTOR;
    uint64_t first = (uint64_t)g_test_rand_int_range(0, (int)sectors);
    uint64_t count = (uint64_t)g_test_rand_int_range(1, g_test_rand_bit() ? 8 : 400);
    uint64_t offset = first * SECTOR, length = MIN(count, sectors - first) * SECTOR;
    uint8_t *bytes = model + offset;
    int kind = g_test_rand_int_range(0, 10);
    if (kind < 6) {
        for (uint64_t i = 0; i < length; i++)
            bytes[i] = (uint8_t)(i * 31 + first);
        struct iovec iov[2] = {{bytes, length / 3}, {bytes + length / 3, length - length / 3}};
        g_assert_cmpint(block_writev(node, offset, iov, 2, kind == 0 ? BLOCK_FUA : 0), ==, 0);
    } else if (kind < 8) {
        memset(bytes, 0, length);
        g_assert_cmpint(block_write_zeroes(node, offset, length, kind == 6 ? BLOCK_UNMAP : 0), ==,
                        0);
    } else if (kind == 8) { /* what it holds afterwards is the format's choice */
        g_assert_cmpint(block_discard(node, offset, length), ==, 0);
        struct iovec iov = {bytes, length};
        g_assert_cmpint(block_readv(node, offset, &iov, 1), ==, 0);
    } else {
        g_assert_cmpint(block_flush(node), ==, 0);
    }
}

static void check_clean(BlockNode *node)
{
    BlockCheck check = {.repair = BLOCK_REPAIR_NONE};
    g_autoptr(GError) error = NULL;
    if (!block_can_check(node))
        return;
    g_assert_true(block_check(node, &check, &error));
    g_assert_no_error(error);
    g_assert_cmpuint(check.corruptions + check.leaks + check.errors, ==, 0);
}

static void test_keeps(gconstpointer data)
{
    Image image;
    image_begin(&image, data);
    g_autofree uint8_t *model = NULL;
    uint64_t size = 0;
    for (int round = 0; round < 4; round++) {
        BlockNode *node = open_bytes(&image, false);
        if (!model) {
            size = block_size(node);
            g_assert_cmpuint(size, >=, DISK);
            model = g_malloc0(size);
            compare(node, model, size);
        }
        for (int i = 0; i < 60; i++)
            operate(node, model, size);
        compare(node, model, size);
        block_unref(node);
        node = open_bytes(&image, true);
        compare(node, model, size);
        check_clean(node);
        uint8_t byte = 0;
        struct iovec iov = {&byte, 1};
        g_assert_cmpint(block_writev(node, 0, &iov, 1, 0), ==, -EROFS);
        g_assert_cmpint(block_readv(node, size, &iov, 1), ==, -EINVAL);
        block_unref(node);
    }
    g_byte_array_unref(image.bytes);
    image_end(&image);
}

/* Whole clusters, compressed, then overwritten. */
static void test_compressed(gconstpointer data)
{
    Image image;
    image_begin(&image, data);
    BlockNode *node = open_bytes(&image, false);
    uint64_t size = block_size(node), cluster = block_cluster_size(node);
    g_autofree uint8_t *model = g_malloc0(size);
    g_assert_cmpuint(cluster, >, 0);
    for (uint64_t at = 0; at + cluster <= size / 2; at += cluster) {
        for (uint64_t i = 0; i < cluster; i++)
            model[at + i] = (uint8_t)(at >> 9 ^ i >> 4);
        g_assert_cmpint(block_write_compressed(node, at, model + at, cluster), ==, 0);
    }
    g_assert_cmpint(block_flush(node), ==, 0);
    block_unref(node);
    node = open_bytes(&image, false);
    compare(node, model, size);
    for (int i = 0; i < 40; i++)
        operate(node, model, size);
    compare(node, model, size);
    block_unref(node);
    node = open_bytes(&image, true);
    compare(node, model, size);
    check_clean(node);
    block_unref(node);
    g_byte_array_unref(image.bytes);
    image_end(&image);
}

static void test_grows(gconstpointer data)
{
    Image image;
    image_begin(&image, data);
    BlockNode *node = open_bytes(&image, false);
    g_autoptr(GError) error = NULL;
    uint64_t old = block_size(node), size = old + MIB(3);
    g_autofree uint8_t *model = g_malloc0(size);
    for (int i = 0; i < 30; i++)
        operate(node, model, old);
    bool grown = block_resize(node, &(BlockResize){.size = size}, &error);
    g_assert_no_error(error);
    g_assert_true(grown);
    g_assert_cmpuint(block_size(node), ==, size);
    make_zero(node, old);
    compare(node, model, size);
    for (int i = 0; i < 30; i++)
        operate(node, model, size);
    block_unref(node);
    node = open_bytes(&image, true);
    g_assert_cmpuint(block_size(node), ==, size);
    compare(node, model, size);
    check_clean(node);
    block_unref(node);
    g_byte_array_unref(image.bytes);
    image_end(&image);
}

/* ---- what it survives */

static void test_crashes(gconstpointer data)
{
    Image image;
    image_begin(&image, data);
    BlockNode *node = open_bytes(&image, true);
    uint64_t sectors = MIN(block_size(node), DISK) / SECTOR;
    block_unref(node);
    bool full = g_getenv("LODGE_CHECK_LONG"), few = g_getenv("LODGE_SANITIZED");
    CrashRun run = {.name = image.format->name, .open = open_image, .opaque = &image,
                    .live = image.bytes};
    crash_begin(&run, sectors, 0);
    crash_fail(&run, 60, full ? 500 : few ? 10 : 40);
    crash_work(&run, 120);
    crash_cut(&run, full ? 2000 : few ? 30 : 120);
    crash_end(&run);
    image_end(&image);
}

static void add(const char *what, const BlockFormat *format, void (*test)(gconstpointer))
{
    g_autofree char *name = g_strdup_printf("/contract/disk/%s/%s", format->name, what);
    g_test_add_data_func(name, format, test);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    pages = argc > 1 ? argv[1] : "docs/format";
    for (const BlockFormat *const *f = block_formats; *f; f++) {
        add("words", *f, test_words);
        add("stranger", *f, test_stranger);
        if (!(*f)->create)
            continue;
        add("keeps", *f, test_keeps);
        add("crashes", *f, test_crashes);
        if ((*f)->write_compressed)
            add("compressed", *f, test_compressed);
        if ((*f)->resize)
            add("grows", *f, test_grows);
    }
    return g_test_run();
}
