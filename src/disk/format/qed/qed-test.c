/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* qed: headers that lie are refused by name; checks find and repair; what is said about backing files. */
#include "disk/format/qed/qed.h"

#include "base/bytes.h"
#include "disk/format/formats.h"
#include "disk/memory-file.h"

#include <string.h>

#define LIMIT   MIB(64)
#define CLUSTER 4096u
#define L1      CLUSTER

static GByteArray *new_image(const char *backing, uint64_t size)
{
    g_autoptr(GError) error = NULL;
    GByteArray *bytes = g_byte_array_new();
    json_auto_t *named = json_object();
    g_assert_true(block_options_parse("cluster_size=4096,table_size=1", NULL, NULL, named, NULL));
    BlockCreate create = {.path = "m", .format = "qed", .size = size, .options = named,
                          .backing = backing, .backing_format = backing ? "raw" : NULL};
    g_autoptr(BlockFile) file = &memory_file_new(bytes, LIMIT, NULL)->file;
    g_assert_true(qed_create_check(&create, &error));
    g_assert_true(qed_create(file, &create, &error));
    return bytes;
}

static BlockNode *try_open(GByteArray *bytes, bool read_only, bool repair, GError **err)
{
    BlockOpen options = {.path = "m", .format = "qed", .read_only = read_only, .repair = repair,
                         .no_backing = true};
    return block_open_file(&memory_file_new(bytes, LIMIT, NULL)->file, &options, err);
}

static BlockNode *open_image(GByteArray *bytes)
{
    g_autoptr(GError) error = NULL;
    BlockNode *node = try_open(bytes, false, false, &error);
    g_assert_no_error(error);
    return node;
}

static void fill(BlockNode *node, uint64_t offset, uint8_t value)
{
    uint8_t buffer[512];
    memset(buffer, value, sizeof(buffer));
    struct iovec iov = {buffer, sizeof(buffer)};
    g_assert_cmpint(block_writev(node, offset, &iov, 1, 0), ==, 0);
}

static uint8_t read_byte(BlockNode *node, uint64_t offset)
{
    uint8_t byte;
    struct iovec iov = {&byte, 1};
    g_assert_cmpint(block_readv(node, offset, &iov, 1), ==, 0);
    return byte;
}

static BlockCheck check_image(GByteArray *bytes, bool repair)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(BlockNode) node = try_open(bytes, !repair, repair, &error);
    BlockCheck check = {.repair = repair ? BLOCK_REPAIR_ALL : BLOCK_REPAIR_NONE};
    g_assert_no_error(error);
    g_assert_true(block_check(node, &check, &error));
    return check;
}

static void test_headers(void)
{
    static const struct {
        unsigned at, width;
        uint64_t value;
        const char *word;
    } bad[] = {
        {0, 4, 1, "QED format"},           {4, 4, 2048, "cluster size"},
        {4, 4, 5000, "cluster size"},      {4, 4, 1u << 27, "cluster size"},
        {8, 4, 0, "table size"},           {8, 4, 3, "table size"},
        {8, 4, 32, "table size"},          {12, 4, 0, "table offset"},
        {12, 4, 0xfffffff, "header size"}, {16, 8, 8, "features: 8"},
        {40, 8, 100, "table offset"},      {40, 8, 1ull << 62, "table offset"},
        {40, 8, 0, "table offset"},        {48, 8, 513, "image size"},
        {48, 8, GIB(2), "image size"},     {16, 8, 1, "backing filename"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GByteArray) bytes = new_image(NULL, MIB(1));
        g_autoptr(GError) error = NULL;
        if (bad[i].width == 8)
            le64_put(bytes->data + bad[i].at, bad[i].value);
        else
            le32_put(bytes->data + bad[i].at, (uint32_t)bad[i].value);
        g_assert_null(try_open(bytes, true, false, &error));
        if (!strstr(error->message, bad[i].word))
            g_error("no \"%s\" in: %s", bad[i].word, error->message);
    }
}

static GByteArray *written_image(void)
{
    GByteArray *bytes = new_image(NULL, MIB(1));
    BlockNode *node = open_image(bytes);
    fill(node, 0, 1);
    fill(node, KIB(64), 2);
    block_unref(node);
    return bytes;
}

static void test_check(void)
{
    g_autoptr(GByteArray) bytes = written_image();
    BlockCheck check = check_image(bytes, false);
    g_assert_cmpuint(check.corruptions + check.leaks + check.errors, ==, 0);
    g_assert_cmpuint(check.allocated_clusters, ==, 2);
    g_assert_cmpuint(check.total_clusters, ==, 256);
    uint64_t l2 = le64_get(bytes->data + L1);
    g_assert_cmpuint(l2, <, bytes->len);
    /* One entry leads nowhere, one to where another leads, one cluster is nobody's. */
    le64_put(bytes->data + l2 + 8, GIB(1));
    le64_put(bytes->data + l2 + 16, le64_get(bytes->data + l2));
    le64_put(bytes->data + l2 + 128, 0);
    le64_put(bytes->data + L1 + 8, 77);
    check = check_image(bytes, false);
    g_assert_cmpuint(check.corruptions, ==, 3);
    g_assert_cmpuint(check.leaks, ==, 1);
    check = check_image(bytes, true);
    g_assert_cmpuint(check.corruptions_fixed, ==, 2);
    g_assert_cmpuint(check.corruptions, ==, 1);
    check = check_image(bytes, false);
    g_assert_cmpuint(check.corruptions, ==, 1);
}

/* Marked by somebody who was interrupted. */
static void test_need_check(void)
{
    g_autoptr(GByteArray) bytes = written_image();
    g_autoptr(GError) error = NULL;
    uint64_t l2 = le64_get(bytes->data + L1);
    le64_put(bytes->data + QED_FEATURES, QED_NEED_CHECK);
    le64_put(bytes->data + l2 + 8, GIB(1));
    BlockNode *node = try_open(bytes, true, false, &error);
    BlockInfo info;
    block_info(node, &info);
    g_assert_true(info.dirty);
    block_info_clear(&info);
    g_assert_cmpuint(read_byte(node, 0), ==, 1);
    block_unref(node);
    node = open_image(bytes);
    g_assert_cmpuint(le64_get(bytes->data + QED_FEATURES), ==, 0);
    g_assert_cmpuint(le64_get(bytes->data + l2 + 8), ==, 0);
    g_assert_cmpuint(read_byte(node, KIB(64)), ==, 2);
    block_unref(node);
    le64_put(bytes->data + QED_FEATURES, QED_NEED_CHECK);
    le64_put(bytes->data + l2 + 8, le64_get(bytes->data + l2));
    g_assert_null(try_open(bytes, false, false, &error));
    g_assert_cmpstr(error->message, ==, "Image corrupted");
}

static void test_autoclear(void)
{
    g_autoptr(GByteArray) bytes = written_image();
    g_autoptr(GError) error = NULL;
    le64_put(bytes->data + QED_AUTOCLEAR_FEATURES, 6);
    block_unref(try_open(bytes, true, false, &error));
    g_assert_cmpuint(le64_get(bytes->data + QED_AUTOCLEAR_FEATURES), ==, 6);
    block_unref(open_image(bytes));
    g_assert_cmpuint(le64_get(bytes->data + QED_AUTOCLEAR_FEATURES), ==, 0);
}

static void test_backing(void)
{
    g_autoptr(GByteArray) bytes = new_image("base.raw", MIB(1));
    g_autoptr(GError) error = NULL;
    BlockNode *node = open_image(bytes);
    g_assert_cmpstr(node->backing_path, ==, "base.raw");
    g_assert_cmpstr(node->backing_format, ==, "raw");
    g_assert_true(block_set_backing(node, "other.qcow2", "qcow2", &error));
    block_unref(node);
    node = open_image(bytes);
    g_assert_cmpstr(node->backing_path, ==, "other.qcow2");
    g_assert_null(node->backing_format);
    g_autofree char *longest = g_strnfill(2000, 'x');
    g_assert_false(block_set_backing(node, longest, NULL, &error));
    g_assert_nonnull(strstr(error->message, "2000"));
    g_clear_error(&error);
    g_assert_true(block_set_backing(node, NULL, NULL, &error));
    block_unref(node);
    le64_put(bytes->data + QED_COMPAT_FEATURES, 1);
    node = open_image(bytes);
    g_assert_null(node->backing_path);
    g_assert_false(block_set_backing(node, "x", "raw", &error));
    block_unref(node);
}

static void test_resize(void)
{
    g_autoptr(GByteArray) bytes = new_image(NULL, CLUSTER + 512);
    g_autoptr(GError) error = NULL;
    BlockNode *node = open_image(bytes);
    fill(node, CLUSTER, 3);
    g_assert_false(block_resize(node, &(BlockResize){.size = 512, .shrink = true}, &error));
    g_assert_nonnull(strstr(error->message, "Shrinking"));
    g_clear_error(&error);
    g_assert_false(block_resize(node, &(BlockResize){.size = GIB(2)}, &error));
    g_clear_error(&error);
    g_assert_true(block_resize(node, &(BlockResize){.size = MIB(512)}, &error));
    fill(node, MIB(512) - 512, 4);
    block_unref(node);
    node = open_image(bytes);
    g_assert_cmpuint(read_byte(node, CLUSTER), ==, 3);
    g_assert_cmpuint(read_byte(node, CLUSTER + 512), ==, 0);
    g_assert_cmpuint(read_byte(node, MIB(512) - 1), ==, 4);
    block_unref(node);
    BlockCheck check = check_image(bytes, false);
    g_assert_cmpuint(check.corruptions + check.leaks, ==, 0);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/disk/qed/headers", test_headers);
    g_test_add_func("/disk/qed/check", test_check);
    g_test_add_func("/disk/qed/need-check", test_need_check);
    g_test_add_func("/disk/qed/autoclear", test_autoclear);
    g_test_add_func("/disk/qed/backing", test_backing);
    g_test_add_func("/disk/qed/resize", test_resize);
    return g_test_run();
}
