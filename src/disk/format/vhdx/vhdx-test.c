/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* vhdx: what lies is refused by name; logs, ours and contrived ones, are replayed or left alone. */
#include "disk/format/vhdx/vhdx.h"

#include "base/bytes.h"
#include "disk/format/formats.h"
#include "disk/memory-file.h"

#include <string.h>

#define LIMIT  MIB(64)
#define LOG_AT MIB(1)

static GByteArray *new_image(const char *options)
{
    g_autoptr(GError) error = NULL;
    GByteArray *bytes = g_byte_array_new();
    json_auto_t *named = json_object();
    g_assert_true(block_options_parse(options, vhdx_create_options, NULL, named, NULL));
    BlockCreate create = {.path = "m", .format = "vhdx", .size = MIB(12), .options = named};
    g_autoptr(BlockFile) file = &memory_file_new(bytes, LIMIT, NULL)->file;
    g_assert_true(vhdx_create_check(&create, &error));
    g_assert_true(vhdx_create(file, &create, &error));
    return bytes;
}

static BlockNode *try_open(GByteArray *bytes, GArray *log, bool read_only, GError **err)
{
    BlockOpen options = {.path = "m", .format = "vhdx", .read_only = read_only};
    return block_open_file(&memory_file_new(bytes, LIMIT, log)->file, &options, err);
}

static BlockNode *open_image(GByteArray *bytes, GArray *log)
{
    g_autoptr(GError) error = NULL;
    BlockNode *node = try_open(bytes, log, false, &error);
    g_assert_no_error(error);
    return node;
}

static void refused(GByteArray *bytes, bool read_only, const char *word)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(BlockNode) node = try_open(bytes, NULL, read_only, &error);
    g_assert_null(node);
    if (!strstr(error->message, word))
        g_error("no \"%s\" in: %s", word, error->message);
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

typedef struct BadField {
    uint64_t at;
    unsigned width;
    uint64_t value;
    const char *word;
} BadField;

static void put(GByteArray *bytes, const BadField *bad)
{
    if (bad->width == 8)
        le64_put(bytes->data + bad->at, bad->value);
    else
        le32_put(bytes->data + bad->at, (uint32_t)bad->value);
}

/* In an image of 1 MiB blocks: the table at 2 MiB, metadata at 3 MiB, its items at 3 MiB + 64 KiB. */
static void test_headers(void)
{
    static const BadField headers[] = {
        {KIB(128) + 66, 4, 2, "header"},           {KIB(128) + 64, 4, 0x10001, "log version"},
        {KIB(128) + 68, 4, 4096, "VHDX log"},      {KIB(128) + 72, 8, 512, "VHDX log"},
        {KIB(128) + 72, 8, MIB(2), "overlap"},     {KIB(128) + 72, 8, ~0ull << 20, "VHDX log"},
    };
    static const BadField regions[] = {
        {KIB(192) + 16, 4, 7, "required"},           {KIB(192) + 32, 8, 4096, "region at"},
        {KIB(192) + 32, 8, MIB(3), "overlap"},       {KIB(192) + 40, 4, 64, "too short"},
        {KIB(192) + 8, 4, 1, "metadata region"},     {KIB(192) + 8, 4, 4000, "region table"},
        {KIB(192) + 32, 8, MIB(900), "too short"},   {KIB(192) + 72, 4, 512, "metadata"},
    };
    static const BadField others[] = {
        {0, 4, 0, "not a VHDX"},                   {MIB(3), 4, 0, "metadata table"},
        {MIB(3) + 32, 4, 1, "required item"},      {MIB(3) + 10, 4, 4, "missing"},
        {MIB(3) + 48, 4, 0xffffffff, "outside"},   {MIB(3) + KIB(64), 4, 3 << 20, "block size"},
        {MIB(3) + KIB(64), 4, 1 << 19, "block size"}, {MIB(3) + KIB(64) + 4, 4, 2, "differencing"},
        {MIB(3) + KIB(64) + 8, 8, 1ull << 62, "64 TiB"}, {MIB(3) + KIB(64) + 32, 4, 520, "sector size"},
        {MIB(3) + KIB(64) + 8, 8, MIB(1048576), "too short"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(others); i++) {
        g_autoptr(GByteArray) bytes = new_image("block_size=1M");
        put(bytes, &others[i]);
        refused(bytes, true, others[i].word);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(headers); i++) {
        g_autoptr(GByteArray) bytes = new_image("block_size=1M");
        put(bytes, &headers[i]);
        vhdx_seal(bytes->data + KIB(128), VHDX_HEADER_BYTES, 4);
        bytes->data[KIB(64)] = 0;
        refused(bytes, true, headers[i].word);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(regions); i++) {
        g_autoptr(GByteArray) bytes = new_image("block_size=1M");
        put(bytes, &regions[i]);
        vhdx_seal(bytes->data + KIB(192), VHDX_TABLE_BYTES, 4);
        bytes->data[KIB(256)] = 0;
        refused(bytes, true, regions[i].word);
    }
}

/* One damaged copy does no harm. */
static void test_copies(void)
{
    static const uint64_t damage[] = {KIB(64) + 9, KIB(128) + 9, KIB(192) + 40, KIB(256) + 40};
    for (size_t i = 0; i < G_N_ELEMENTS(damage); i++) {
        g_autoptr(GByteArray) bytes = new_image("block_size=1M");
        bytes->data[damage[i]] ^= 0x40;
        BlockNode *node = open_image(bytes, NULL);
        fill(node, MIB(3), 1);
        block_unref(node);
        node = open_image(bytes, NULL);
        g_assert_cmpuint(read_byte(node, MIB(3)), ==, 1);
        block_unref(node);
    }
    g_autoptr(GByteArray) bytes = new_image("block_size=1M");
    bytes->data[KIB(64) + 9] ^= 1;
    bytes->data[KIB(128) + 9] ^= 1;
    refused(bytes, true, "No valid VHDX header");
}

static void test_entries(void)
{
    static const BadField bad[] = {
        {MIB(2), 8, MIB(100) | 6, "after end"}, {MIB(2), 8, MIB(1) | 6, "structures"},
        {MIB(2) + 8, 8, MIB(3) | 6, "structures"}, {MIB(2), 8, 7, "overflow"},
        {MIB(2), 8, (~0ull << 20) | 6, "overflow"}, {MIB(2), 8, 6, "structures"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GByteArray) bytes = new_image("block_size=1M");
        g_autoptr(GError) error = NULL;
        put(bytes, &bad[i]);
        refused(bytes, false, bad[i].word);
        g_autoptr(BlockNode) node = try_open(bytes, NULL, true, &error);
        BlockCheck check = {0};
        g_assert_true(block_check(node, &check, &error));
        g_assert_cmpuint(check.corruptions, ==, 1);
    }
}

/* What the file looks like when the power fails right before the table is written in place. */
static GByteArray *dirty_image(void)
{
    GByteArray *live = new_image("block_size=1M"), *disk = g_byte_array_new();
    g_byte_array_append(disk, live->data, live->len);
    GArray *log = g_array_new(FALSE, FALSE, sizeof(MemoryEntry));
    BlockNode *node = open_image(live, log);
    fill(node, MIB(3), 1);
    g_assert_cmpint(block_flush(node), ==, 0);
    fill(node, MIB(7), 2);
    g_assert_cmpint(block_flush(node), ==, 0);
    guint end = log->len, seen = 0;
    for (guint i = 0; i < end && seen < 2; i++) {
        const MemoryEntry *e = &g_array_index(log, MemoryEntry, i);
        seen += e->op == MEMORY_WRITE && e->offset == MIB(2);
        if (seen < 2)
            memory_entry_apply(e, disk, NULL, NULL);
    }
    g_assert_cmpuint(seen, ==, 2);
    block_unref(node);
    memory_log_free(log);
    g_byte_array_unref(live);
    return disk;
}

static void test_replay(void)
{
    g_autoptr(GByteArray) bytes = dirty_image();
    g_autoptr(GError) error = NULL;
    refused(bytes, true, "contains a log that needs to be replayed");
    BlockNode *node = open_image(bytes, NULL);
    BlockCheck check = {0};
    g_assert_true(block_check(node, &check, &error));
    g_assert_cmpuint(check.corruptions_fixed, ==, 1);
    g_assert_cmpuint(check.corruptions, ==, 0);
    g_assert_cmpuint(read_byte(node, MIB(3)), ==, 1);
    g_assert_cmpuint(read_byte(node, MIB(7)), ==, 2);
    block_unref(node);
    node = try_open(bytes, NULL, true, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(read_byte(node, MIB(7)), ==, 2);
    block_unref(node);
}

/* Damage to the newest entry leaves the one before it; to both, none. */
static void test_torn(void)
{
    for (unsigned torn = 0; torn < 8192; torn += 37) {
        g_autoptr(GByteArray) bytes = dirty_image();
        bytes->data[LOG_AT + 8192 + torn] ^= 0x10;
        g_autoptr(BlockNode) node = open_image(bytes, NULL);
        g_assert_cmpuint(read_byte(node, MIB(3)), ==, 1);
        g_assert_cmpuint(read_byte(node, MIB(7)), ==, 0);
    }
    g_autoptr(GByteArray) bytes = dirty_image();
    memset(bytes->data + LOG_AT, 0, 16384);
    g_autoptr(BlockNode) node = open_image(bytes, NULL);
    g_assert_cmpuint(read_byte(node, MIB(3)), ==, 1);
}

/* An entry that begins in the log's last sector goes on in its first. */
static void test_wrapped(void)
{
    g_autoptr(GByteArray) bytes = dirty_image();
    uint8_t *log = bytes->data + LOG_AT, entry[8192];
    memcpy(entry, log + 8192, sizeof(entry));
    le32_put(entry + 12, MIB(1) - 4096); /* its tail: itself */
    vhdx_seal(entry, sizeof(entry), 4);
    memset(log, 0, 16384);
    memcpy(log + MIB(1) - 4096, entry, 4096);
    memcpy(log, entry + 4096, 4096);
    g_autoptr(BlockNode) node = open_image(bytes, NULL);
    g_assert_cmpuint(read_byte(node, MIB(7)), ==, 2);
}

/* A sequence that does not reach back to what it says is needed does not count. */
static void test_tail(void)
{
    g_autoptr(GByteArray) bytes = dirty_image();
    uint8_t *log = bytes->data + LOG_AT;
    le32_put(log + 8192 + 12, 65536);
    vhdx_seal(log + 8192, 8192, 4);
    g_autoptr(BlockNode) node = open_image(bytes, NULL);
    g_assert_cmpuint(read_byte(node, MIB(7)), ==, 0);
}

static void test_cut_file(void)
{
    g_autoptr(GByteArray) bytes = dirty_image();
    g_byte_array_set_size(bytes, bytes->len - 4096);
    refused(bytes, false, "cannot replay");
}

/* Entries within entries, all as long as the log: refused before they take all day. */
static void test_contrived(void)
{
    g_autoptr(GByteArray) bytes = dirty_image();
    uint8_t *log = bytes->data + LOG_AT;
    for (uint32_t at = 0; at < MIB(1); at += 4096) {
        memcpy(log + at, log + 8192, 64);
        le32_put(log + at + 8, MIB(1));
    }
    refused(bytes, false, "entries within entries");
}

/* More commits than the log has room for: it begins again, under another GUID. */
static void test_long_log(void)
{
    g_autoptr(GByteArray) bytes = new_image("block_size=1M");
    BlockNode *node = open_image(bytes, NULL);
    fill(node, 0, 9);
    vhdx_of(node)->log_at = MIB(1) - 4096;
    fill(node, MIB(1), 8);
    g_assert_cmpint(block_flush(node), ==, 0);
    g_assert_cmpuint(vhdx_of(node)->log_at, ==, 8192);
    g_autoptr(GByteArray) copy = g_byte_array_new();
    g_byte_array_append(copy, bytes->data, bytes->len);
    memset(copy->data + MIB(2), 0, 4096); /* the log has it */
    block_unref(node);
    node = open_image(copy, NULL);
    g_assert_cmpuint(read_byte(node, 0), ==, 9);
    g_assert_cmpuint(read_byte(node, MIB(1)), ==, 8);
    block_unref(node);
}

static void test_fixed(void)
{
    g_autoptr(GByteArray) bytes = new_image("block_size=4M,subformat=fixed");
    BlockNode *node = open_image(bytes, NULL);
    guint length = bytes->len;
    BlockExtent extent;
    g_assert_cmpint(block_status(node, 0, MIB(12), &extent), ==, 0);
    g_assert_true(extent.length == MIB(12) && extent.data);
    fill(node, MIB(11), 3);
    block_unref(node);
    g_assert_cmpuint(bytes->len, ==, length);
    node = open_image(bytes, NULL);
    g_assert_cmpuint(read_byte(node, MIB(11)), ==, 3);
    block_unref(node);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/disk/vhdx/headers", test_headers);
    g_test_add_func("/disk/vhdx/copies", test_copies);
    g_test_add_func("/disk/vhdx/entries", test_entries);
    g_test_add_func("/disk/vhdx/replay", test_replay);
    g_test_add_func("/disk/vhdx/torn", test_torn);
    g_test_add_func("/disk/vhdx/wrapped", test_wrapped);
    g_test_add_func("/disk/vhdx/tail", test_tail);
    g_test_add_func("/disk/vhdx/cut-file", test_cut_file);
    g_test_add_func("/disk/vhdx/contrived", test_contrived);
    g_test_add_func("/disk/vhdx/long-log", test_long_log);
    g_test_add_func("/disk/vhdx/fixed", test_fixed);
    return g_test_run();
}
