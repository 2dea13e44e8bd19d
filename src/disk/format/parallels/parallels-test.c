/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* parallels: both magics, headers that lie, checks that find and repair, bitmaps of the extension. */
#include "disk/format/parallels/parallels.h"

#include "base/bytes.h"
#include "disk/bitmap.h"
#include "disk/format/formats.h"
#include "disk/memory-file.h"

#include <string.h>

#define LIMIT   MIB(64)
#define CLUSTER KIB(64)

static GByteArray *new_image(void)
{
    g_autoptr(GError) error = NULL;
    GByteArray *bytes = g_byte_array_new();
    json_auto_t *named = json_object();
    g_assert_true(block_options_parse("cluster_size=64k", NULL, NULL, named, NULL));
    BlockCreate create = {.path = "m", .format = "parallels", .size = MIB(2), .options = named};
    g_autoptr(BlockFile) file = &memory_file_new(bytes, LIMIT, NULL)->file;
    g_assert_true(parallels_create_check(&create, &error));
    g_assert_true(parallels_create(file, &create, &error));
    return bytes;
}

static BlockNode *try_open(GByteArray *bytes, bool read_only, bool repair, GError **err)
{
    BlockOpen options = {.path = "m", .format = "parallels", .read_only = read_only, .repair = repair};
    return block_open_file(&memory_file_new(bytes, LIMIT, NULL)->file, &options, err);
}

static BlockNode *open_image(GByteArray *bytes, bool read_only)
{
    g_autoptr(GError) error = NULL;
    BlockNode *node = try_open(bytes, read_only, false, &error);
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

static BlockCheck check_image(GByteArray *bytes, BlockRepair repair)
{
    g_autoptr(GError) error = NULL;
    bool fix = repair != BLOCK_REPAIR_NONE;
    g_autoptr(BlockNode) node = try_open(bytes, !fix, fix, &error);
    BlockCheck check = {.repair = repair};
    g_assert_no_error(error);
    g_assert_true(block_check(node, &check, &error));
    return check;
}

static void test_headers(void)
{
    static const struct {
        unsigned at;
        uint32_t value;
        const char *word;
    } bad[] = {
        {0, 1, "not in Parallels"},  {16, 3, "not in Parallels"}, {28, 0, "Zero sectors"},
        {28, 1u << 23, "Too big"},   {32, 31, "too few"},         {32, 0x7fffffff, "Catalog"},
        {36, 0xffffff, "too few"},   {60, 0x80000000, "extension"}, {32, 0xffffff, "not within"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GByteArray) bytes = new_image();
        g_autoptr(GError) error = NULL;
        le32_put(bytes->data + bad[i].at, bad[i].value);
        if (bad[i].at == 32)
            le32_put(bytes->data + PARALLELS_DATA, 0);
        g_assert_null(try_open(bytes, true, false, &error));
        if (!strstr(error->message, bad[i].word))
            g_error("no \"%s\" in: %s", bad[i].word, error->message);
    }
}

/* The older magic: places in sectors, clusters of any size, data right behind the table. */
static void test_plain(void)
{
    g_autoptr(GByteArray) bytes = new_image();
    memcpy(bytes->data, "WithoutFreeSpace", 16);
    le32_put(bytes->data + PARALLELS_TRACKS, 126);
    le32_put(bytes->data + PARALLELS_ENTRIES, 33);
    le32_put(bytes->data + PARALLELS_DATA, 0);
    le32_put(bytes->data + PARALLELS_SECTORS + 4, 7); /* not looked at */
    g_byte_array_set_size(bytes, 512);
    BlockNode *node = open_image(bytes, false);
    g_assert_cmpuint(block_size(node), ==, MIB(2));
    fill(node, MIB(1), 1);
    fill(node, 126 * 512 - 512, 2);
    fill(node, 126 * 512, 3);
    block_unref(node);
    g_assert_cmpuint(le32_get(bytes->data + PARALLELS_HEADER_BYTES), ==, 127);
    g_assert_cmpuint(bytes->len, ==, 512 * (1 + 3 * 126));
    node = open_image(bytes, true);
    g_assert_cmpuint(read_byte(node, MIB(1)), ==, 1);
    g_assert_cmpuint(read_byte(node, 126 * 512 - 1), ==, 2);
    g_assert_cmpuint(read_byte(node, 126 * 512), ==, 3);
    block_unref(node);
}

static void test_in_use(void)
{
    g_autoptr(GByteArray) bytes = new_image(), copy = g_byte_array_new();
    g_autoptr(GError) error = NULL;
    BlockNode *node = open_image(bytes, false);
    g_assert_cmphex(le32_get(bytes->data + PARALLELS_INUSE), ==, 0);
    fill(node, MIB(1), 1);
    g_assert_cmphex(le32_get(bytes->data + PARALLELS_INUSE), ==, PARALLELS_IN_USE);
    g_assert_cmpint(block_flush(node), ==, 0);
    g_byte_array_append(copy, bytes->data, bytes->len);
    block_unref(node);
    g_assert_cmphex(le32_get(bytes->data + PARALLELS_INUSE), ==, 0);
    g_assert_null(try_open(copy, false, false, &error));
    g_assert_nonnull(strstr(error->message, "not closed correctly"));
    BlockCheck check = check_image(copy, BLOCK_REPAIR_NONE);
    g_assert_cmpuint(check.corruptions, ==, 1);
    check = check_image(copy, BLOCK_REPAIR_ALL);
    g_assert_cmpuint(check.corruptions_fixed, ==, 1);
    node = open_image(copy, false);
    g_assert_cmpuint(read_byte(node, MIB(1)), ==, 1);
    block_unref(node);
}

static void test_check(void)
{
    g_autoptr(GByteArray) bytes = new_image();
    BlockNode *node = open_image(bytes, false);
    for (unsigned i = 0; i < 4; i++)
        fill(node, i * CLUSTER, (uint8_t)(i + 1));
    block_unref(node);
    g_byte_array_set_size(bytes, bytes->len + 3 * CLUSTER);
    le32_put(bytes->data + PARALLELS_HEADER_BYTES + 8, 1000); /* the third */
    BlockCheck check = check_image(bytes, BLOCK_REPAIR_NONE);
    g_assert_cmpuint(check.corruptions, ==, 1);
    g_assert_cmpuint(check.leaks, ==, 3);
    g_assert_cmpuint(check.total_clusters, ==, 32);
    check = check_image(bytes, BLOCK_REPAIR_LEAKS);
    g_assert_cmpuint(check.leaks_fixed, ==, 3);
    g_assert_cmpuint(check.corruptions, ==, 1);
    g_assert_cmpuint(bytes->len, ==, 5 * CLUSTER);
    check = check_image(bytes, BLOCK_REPAIR_ALL);
    g_assert_cmpuint(check.corruptions_fixed, ==, 1);
    check = check_image(bytes, BLOCK_REPAIR_NONE);
    g_assert_cmpuint(check.corruptions + check.leaks, ==, 0);
    node = open_image(bytes, false);
    g_assert_cmpuint(read_byte(node, 3 * CLUSTER), ==, 4);
    g_assert_cmpuint(read_byte(node, 2 * CLUSTER), ==, 0);
    block_unref(node);
}

/* An image with an extension of one bitmap: bits in a cluster of its own, 4 KiB a bit. */
static GByteArray *bitmap_image(void)
{
    GByteArray *bytes = new_image();
    uint64_t at = bytes->len;
    g_byte_array_set_size(bytes, (guint)(at + 2 * CLUSTER));
    memset(bytes->data + at, 0, 2 * CLUSTER);
    uint8_t *e = bytes->data + at;
    le64_put(bytes->data + PARALLELS_EXTENSION, at / 512);
    le64_put(e, 0xab234cef23dcea87);
    le64_put(e + 24, 0x20385fae252cb34a);
    le32_put(e + 40, 40);
    le64_put(e + 48, MIB(2) / 512);
    for (uint8_t i = 0; i < 16; i++)
        e[56 + i] = (uint8_t)(i * 17);
    le32_put(e + 72, 8);
    le32_put(e + 76, 1);
    le64_put(e + 80, (at + CLUSTER) / 512);
    e[CLUSTER] = 0x06;
    e[CLUSTER + 63] = 0x80;
    return bytes;
}

static void seal(GByteArray *bytes)
{
    uint8_t *e = bytes->data + le64_get(bytes->data + PARALLELS_EXTENSION) * 512;
    g_autoptr(GChecksum) md5 = g_checksum_new(G_CHECKSUM_MD5);
    gsize length = 16;
    g_checksum_update(md5, e + 24, CLUSTER - 24);
    g_checksum_get_digest(md5, e + 8, &length);
}

static void test_bitmap(void)
{
    static const char name[] = "00112233-4455-6677-8899-aabbccddeeff";
    g_autoptr(GByteArray) bytes = bitmap_image();
    bool dirty;
    uint64_t same;
    seal(bytes);
    BlockNode *node = open_image(bytes, true);
    g_assert_cmpint(block_bitmap_next(node, name, 0, MIB(2), &dirty, &same), ==, 0);
    g_assert_true(!dirty && same == 4096);
    g_assert_cmpint(block_bitmap_next(node, name, 4096, MIB(2) - 4096, &dirty, &same), ==, 0);
    g_assert_true(dirty && same == 8192);
    g_assert_cmpint(block_bitmap_next(node, name, MIB(2) - 4096, 4096, &dirty, &same), ==, 0);
    g_assert_true(dirty);
    block_unref(node);
    BlockCheck check = check_image(bytes, BLOCK_REPAIR_NONE); /* its clusters are no leaks */
    g_assert_cmpuint(check.leaks, ==, 0);
    node = open_image(bytes, false);
    g_assert_cmpint(block_bitmap_next(node, name, 0, 512, &dirty, &same), <, 0);
    fill(node, 0, 1); /* goes behind the extension */
    block_unref(node);
    node = open_image(bytes, true);
    g_assert_cmpint(block_bitmap_next(node, name, 0, 512, &dirty, &same), ==, 0);
    block_unref(node);
}

static void test_bad_extension(void)
{
    static const struct {
        unsigned at;
        uint32_t value;
        const char *word;
    } bad[] = {
        {0, 1, "magic"},           {24, 1, "Unknown feature"}, {32, 1, "Flags"},
        {40, 65536, "data_size"},  {40, 16, "Too small"},      {40, 32, "l1 table exceeds"},
        {48, 77, "disk size"},     {72, 3, "granularity"},     {72, 0, "granularity"},
        {76, 0, "does not correspond"}, {84, 0x7fffffff, "bitmap data"},
    };
    for (size_t i = 0; i <= G_N_ELEMENTS(bad); i++) {
        g_autoptr(GByteArray) bytes = bitmap_image();
        g_autoptr(GError) error = NULL;
        uint8_t *e = bytes->data + le64_get(bytes->data + PARALLELS_EXTENSION) * 512;
        if (i < G_N_ELEMENTS(bad)) {
            le32_put(e + bad[i].at, bad[i].value);
            seal(bytes);
        }
        g_assert_null(try_open(bytes, true, false, &error));
        const char *word = i < G_N_ELEMENTS(bad) ? bad[i].word : "checksum";
        if (!strstr(error->message, word))
            g_error("no \"%s\" in: %s", word, error->message);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/disk/parallels/headers", test_headers);
    g_test_add_func("/disk/parallels/plain", test_plain);
    g_test_add_func("/disk/parallels/in-use", test_in_use);
    g_test_add_func("/disk/parallels/check", test_check);
    g_test_add_func("/disk/parallels/bitmap", test_bitmap);
    g_test_add_func("/disk/parallels/bad-extension", test_bad_extension);
    return g_test_run();
}
