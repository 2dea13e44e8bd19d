/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* vdi, vpc, vhdx: headers that lie are refused by name; what is flushed survives; order of writes. */
#include "base/bytes.h"
#include "base/error.h"
#include "disk/format/formats.h"
#include "disk/format/vpc.h"
#include "disk/memory-file.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <string.h>

static GByteArray *new_image(const char *format, const char *subformat, bool is_static, uint64_t size)
{
    g_autoptr(GError) error = NULL;
    GByteArray *bytes = g_byte_array_new();
    json_auto_t *named = json_object();
    if (subformat)
        json_object_set_new(named, "subformat", json_string(subformat));
    if (!strcmp(format, "vdi"))
        json_object_set_new(named, "static", json_boolean(is_static));
    else if (!strcmp(format, "vpc"))
        json_object_set_new(named, "force_size", json_true());
    else
        json_object_set_new(named, "block_size", json_string("1M"));
    BlockCreate create = {.path = "m", .format = format, .size = size, .options = named};
    const BlockFormat *f = block_format_find(format);
    g_autoptr(BlockFile) file = &memory_file_new(bytes, MIB(64), NULL)->file;
    g_assert_true(f->create_check(&create, &error));
    g_assert_true(f->create(file, &create, &error));
    return bytes;
}

static BlockNode *try_open(const char *format, GByteArray *bytes, uint64_t limit, GArray *log,
                           bool read_only, GError **err)
{
    BlockOpen options = {.path = "m", .format = format, .read_only = read_only,
                         .discard_unmap = true};
    return block_open_file(&memory_file_new(bytes, limit, log)->file, &options, err);
}

static BlockNode *open_image(const char *format, GByteArray *bytes, GArray *log)
{
    g_autoptr(GError) error = NULL;
    BlockNode *node = try_open(format, bytes, MIB(64), log, false, &error);
    g_assert_no_error(error);
    return node;
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

static void refused(const char *format, GByteArray *bytes, bool read_only, const char *word)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(BlockNode) node = try_open(format, bytes, MIB(64), NULL, read_only, &error);
    g_assert_null(node);
    g_assert_nonnull(error);
    if (!strstr(error->message, word))
        g_error("no \"%s\" in: %s", word, error->message);
}

/* One field of the header changed, and what the refusal must name. */
typedef struct BadField {
    uint32_t at, width;
    uint64_t value;
    const char *word;
} BadField;

static void test_vdi_headers(void)
{
    static const BadField bad[] = {
        {0x40, 4, 1, "not a VDI"},          {0x44, 4, 0x00020000, "version 2.0"},
        {0x4c, 4, 3, "undo"},               {0x4c, 4, 4, "differencing"},
        {0x4c, 4, 99, "type 99"},           {0x154, 4, 511, "block table"},
        {0x154, 4, 0xfffffe00, "table"},    {0x158, 4, 512, "block table"},
        {0x158, 4, 4097, "block table"},    {0x168, 4, 4096, "sector size"},
        {0x170, 8, UINT64_MAX, "too few"},  {0x170, 8, MIB(8) + 1, "too few"},
        {0x178, 4, 0, "block size"},        {0x178, 4, 3 << 20, "block size"},
        {0x178, 4, 1u << 31, "block size"}, {0x17c, 4, 512, "extra data"},
        {0x180, 4, 7, "too few"},           {0x180, 4, 0xffffffff, "block table"},
        {0x1a8, 4, 1, "parent"},            {0x1b8, 4, 1, "parent"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GByteArray) bytes = new_image("vdi", NULL, false, MIB(8));
        if (bad[i].width == 8)
            le64_put(bytes->data + bad[i].at, bad[i].value);
        else
            le32_put(bytes->data + bad[i].at, (uint32_t)bad[i].value);
        refused("vdi", bytes, true, bad[i].word);
    }
    /* A table that fits between its offset and the data's, and yet is too large to hold. */
    g_autoptr(GByteArray) bytes = new_image("vdi", NULL, false, MIB(8));
    le32_put(bytes->data + 0x180, 20u << 20);
    le32_put(bytes->data + 0x158, 0xfffffe00u);
    refused("vdi", bytes, true, "at most");
    le32_put(bytes->data + 0x180, 1u << 20);
    refused("vdi", bytes, true, "not within the file");
    g_byte_array_set_size(bytes, 100);
    refused("vdi", bytes, true, "sector size");
}

static void test_vdi_entries(void)
{
    g_autoptr(GError) error = NULL;
    BlockCheck check = {0};
    g_autoptr(GByteArray) bytes = new_image("vdi", NULL, false, MIB(8));
    le32_put(bytes->data + 512 + 4 * 2, 7);
    refused("vdi", bytes, false, "read-only");
    g_autoptr(BlockNode) node = try_open("vdi", bytes, MIB(64), NULL, true, &error);
    g_assert_no_error(error);
    uint8_t sector[512];
    struct iovec iov = {sector, sizeof(sector)};
    g_assert_cmpint(block_readv(node, MIB(2), &iov, 1), ==, -EIO);
    assert_filled(node, MIB(3), 512, 0);
    g_assert_true(block_check(node, &check, &error));
    g_assert_cmpuint(check.corruptions, ==, 1);
}

static void vpc_seal(GByteArray *bytes)
{
    uint8_t *footers[] = {bytes->data, bytes->data + bytes->len - 512};
    for (size_t i = 0; i < 2; i++)
        be32_put(footers[i] + VPC_CHECKSUM, vpc_checksum(footers[i], VPC_FOOTER_BYTES, VPC_CHECKSUM));
    be32_put(bytes->data + 512 + VPC_DYNAMIC_CHECKSUM,
             vpc_checksum(bytes->data + 512, VPC_DYNAMIC_BYTES, VPC_DYNAMIC_CHECKSUM));
}

static void vpc_put(uint8_t *at, const BadField *bad)
{
    if (bad->width == 8)
        be64_put(at, bad->value);
    else
        be32_put(at, (uint32_t)bad->value);
}

static void test_vpc_headers(void)
{
    static const BadField footer[] = {
        {0, 4, 0, "no footer"},
        {VPC_FILE_VERSION, 4, 0x20000, "version 2.0"},
        {VPC_TYPE, 4, 4, "differencing"},
        {VPC_TYPE, 4, 77, "type 77"},
        {VPC_CURRENT_SIZE, 8, UINT64_MAX, "at most"},
        {VPC_CURRENT_SIZE, 8, GIB(1), "too small"},
        {VPC_DATA_OFFSET, 8, 513, "dynamic header"},
        {VPC_DATA_OFFSET, 8, UINT64_MAX - 511, "dynamic header"},
        {VPC_DATA_OFFSET, 8, 1024, "cookie"},
        {VPC_TYPE, 4, 2, "too short"},
    };
    static const BadField header[] = {
        {0, 4, 0, "cookie"},
        {VPC_DYNAMIC_BLOCKS, 4, 3, "too small"},
        {VPC_DYNAMIC_BLOCK_SIZE, 4, 0, "block size"},
        {VPC_DYNAMIC_BLOCK_SIZE, 4, 3 << 20, "block size"},
        {VPC_DYNAMIC_TABLE, 8, 0, "block table"},
        {VPC_DYNAMIC_TABLE, 8, 1024, "block table"},
        {VPC_DYNAMIC_TABLE, 8, UINT64_MAX - 511, "block table"},
        {VPC_DYNAMIC_TABLE, 8, MIB(1), "not within"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(footer) + G_N_ELEMENTS(header); i++) {
        g_autoptr(GByteArray) bytes = new_image("vpc", NULL, false, MIB(8));
        bool head = i >= G_N_ELEMENTS(footer);
        const BadField *bad = head ? &header[i - G_N_ELEMENTS(footer)] : &footer[i];
        vpc_put(bytes->data + (head ? 512 : 0) + bad->at, bad);
        if (!head)
            vpc_put(bytes->data + bytes->len - 512 + bad->at, bad);
        vpc_seal(bytes);
        refused("vpc", bytes, true, bad->word);
    }
    for (uint32_t sector = 0; sector < 5000; sector += sector < 10 ? 1 : 4000) {
        g_autoptr(GByteArray) bytes = new_image("vpc", NULL, false, MIB(8));
        be32_put(bytes->data + 1536, sector);
        refused("vpc", bytes, true, "no block can be");
    }
    g_autoptr(GByteArray) bytes = new_image("vpc", NULL, false, MIB(8));
    bytes->data[100]++;
    bytes->data[bytes->len - 300]++;
    refused("vpc", bytes, true, "checksum");
}

/* A guest that writes a dynamic image's header into a fixed image does not change what it is. */
static void test_vpc_forged(void)
{
    g_autoptr(GByteArray) other = new_image("vpc", "dynamic", false, MIB(4));
    g_autoptr(GByteArray) bytes = new_image("vpc", "fixed", false, MIB(8));
    memcpy(bytes->data, other->data, other->len);
    g_autoptr(BlockNode) node = open_image("vpc", bytes, NULL);
    g_assert_cmpuint(block_size(node), ==, MIB(8));
    uint8_t sector[512];
    struct iovec iov = {sector, sizeof(sector)};
    g_assert_cmpint(block_readv(node, 0, &iov, 1), ==, 0);
    g_assert_cmpmem(sector, 8, "conectix", 8);
}

/* What was flushed is there after the program is killed, at every step of what it then writes. */
static void test_killed(gconstpointer format)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GByteArray) bytes = new_image(format, NULL, false, MIB(12));
    g_autoptr(GByteArray) disk = g_byte_array_new();
    g_byte_array_append(disk, bytes->data, bytes->len);
    GArray *log = g_array_new(FALSE, FALSE, sizeof(MemoryEntry));
    BlockNode *node = open_image(format, bytes, log);
    g_assert_cmpint(fill(node, MIB(5), 4096, 1), ==, 0);
    g_assert_cmpint(block_flush(node), ==, 0);
    guint flushed = log->len;
    g_assert_cmpint(fill(node, MIB(1) + 512, 4096, 2), ==, 0);
    g_assert_cmpint(fill(node, MIB(9), 8192, 3), ==, 0);
    g_assert_cmpint(block_flush(node), ==, 0);
    guint end = log->len;
    block_unref(node);
    for (guint i = 0; i < end; i++) {
        memory_entry_apply(&g_array_index(log, MemoryEntry, i), disk, NULL, NULL);
        g_autoptr(GByteArray) copy = g_byte_array_new();
        g_byte_array_append(copy, disk->data, disk->len);
        g_autoptr(BlockNode) after = open_image(format, copy, NULL);
        BlockCheck check = {0};
        if (block_can_check(after)) {
            g_assert_true(block_check(after, &check, &error));
            g_assert_cmpuint(check.corruptions, ==, 0);
        }
        if (i + 1 >= flushed)
            assert_filled(after, MIB(5), 4096, 1);
        /* The next writer is given room that nobody uses, and that reads as zero. */
        g_assert_cmpint(fill(after, MIB(11), 512, 4), ==, 0);
        assert_filled(after, MIB(11) + 512, MIB(1) - 512, 0);
        assert_filled(after, MIB(11), 512, 4);
        if (i + 1 >= flushed)
            assert_filled(after, MIB(5), 4096, 1);
    }
    memory_log_free(log);
}

static char *write_file(const char *folder, const char *name, const GByteArray *bytes)
{
    g_autoptr(GError) error = NULL;
    char *path = g_build_filename(folder, name, NULL);
    g_assert_true(g_file_set_contents(path, (const char *)bytes->data, bytes->len, &error));
    return path;
}

static void filled(GByteArray *bytes, uint64_t offset, uint64_t length, uint8_t value)
{
    g_autoptr(BlockNode) node = open_image("vpc", bytes, NULL);
    g_assert_cmpint(fill(node, offset, length, value), ==, 0);
}

/* Turns a dynamic image into a child of @parent, whose second block has sectors 8 to 15 as its own. */
static void make_child(GByteArray *bytes, const GByteArray *parent, const char *name)
{
    uint8_t *header = bytes->data + 512, *footer = bytes->data + bytes->len - 512;
    uint64_t table = be64_get(header + VPC_DYNAMIC_TABLE);
    uint8_t *bits = bytes->data + be32_get(bytes->data + table + 4) * 512ull;
    be32_put(bytes->data + VPC_TYPE, VPC_DIFFERENCING);
    be32_put(footer + VPC_TYPE, VPC_DIFFERENCING);
    memcpy(header + VPC_DYNAMIC_PARENT_UUID, parent->data + VPC_UUID, 16);
    for (size_t i = 0; name[i]; i++)
        be16_put(header + VPC_DYNAMIC_PARENT_NAME + i * 2, (uint8_t)name[i]);
    memset(bits, 0, 512);
    bits[1] = 0xff;
    vpc_seal(bytes);
}

static void test_vpc_differencing(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GByteArray) parent = new_image("vpc", NULL, false, MIB(8));
    g_autoptr(GByteArray) child = new_image("vpc", NULL, false, MIB(8));
    g_autofree char *folder = g_dir_make_tmp("lodge-vpc-XXXXXX", NULL);
    filled(parent, MIB(2), MIB(2), 1);
    filled(parent, MIB(6), 512, 3);
    filled(child, MIB(2), MIB(2), 2);
    make_child(child, parent, "base.vhd");
    g_autofree char *base = write_file(folder, "base.vhd", parent);
    g_autofree char *path = write_file(folder, "child.vhd", child);
    BlockOpen options = {.path = path, .format = "vpc", .read_only = true};
    g_autoptr(BlockNode) node = block_open(&options, &error);
    g_assert_no_error(error);
    assert_filled(node, 0, MIB(2), 0);
    assert_filled(node, MIB(2), 4096, 1);
    assert_filled(node, MIB(2) + 4096, 4096, 2);
    assert_filled(node, MIB(2) + 8192, MIB(2) - 8192, 1);
    assert_filled(node, MIB(6), 512, 3);
    BlockExtent extent;
    g_assert_cmpint(block_status(node, MIB(2), MIB(2), &extent), ==, 0);
    g_assert_false(extent.present);
    g_assert_cmpuint(extent.length, ==, 4096);
    g_assert_cmpint(block_status(node, MIB(2) + 4096, MIB(2) - 4096, &extent), ==, 0);
    g_assert_true(extent.present && extent.data && extent.length == 4096);
    g_clear_pointer(&node, block_unref);
    options.read_only = false;
    g_assert_null(block_open(&options, &error));
    g_assert_nonnull(strstr(error->message, "can only be read"));
    g_clear_error(&error);
    /* Another image under the parent's name. */
    options.read_only = true;
    g_autoptr(GByteArray) other = new_image("vpc", NULL, false, MIB(8));
    g_free(write_file(folder, "base.vhd", other));
    g_assert_null(block_open(&options, &error));
    g_assert_nonnull(strstr(error->message, "is not the parent"));
    g_remove(base);
    g_remove(path);
    g_rmdir(folder);
}

/* A full disk: an error, and the image goes on once there is room. */
static void test_full(gconstpointer format)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GByteArray) bytes = new_image(format, NULL, false, MIB(12));
    BlockNode *node = try_open(format, bytes, align_down(bytes->len, MIB(1)) + MIB(5), NULL, false, &error);
    g_assert_no_error(error);
    int result = 0;
    uint64_t done = 0;
    for (; done < MIB(12) && result == 0; done += MIB(1))
        result = fill(node, done, 4096, (uint8_t)(1 + done / MIB(1)));
    g_assert_cmpint(result, ==, -ENOSPC);
    block_unref(node);
    node = open_image(format, bytes, NULL);
    for (uint64_t at = 0; at + MIB(1) < done; at += MIB(1))
        assert_filled(node, at, 4096, (uint8_t)(1 + at / MIB(1)));
    g_assert_cmpint(fill(node, MIB(10), MIB(2), 9), ==, 0);
    assert_filled(node, MIB(10), MIB(2), 9);
    block_unref(node);
}

static void test_failing(gconstpointer format)
{
    for (uint64_t n = 0; n < 14; n++) {
        g_autoptr(GByteArray) bytes = new_image(format, NULL, false, MIB(12));
        MemoryFile *file = memory_file_new(bytes, MIB(64), NULL);
        BlockOpen options = {.path = "m", .format = format};
        g_autoptr(GError) error = NULL;
        BlockNode *node = block_open_file(&file->file, &options, &error);
        g_assert_no_error(error);
        file->fail_from = file->operations + n;
        file->fail_until = file->fail_from + 1;
        bool first = fill(node, MIB(3), 4096, 1) == 0, second = fill(node, MIB(7), 4096, 2) == 0;
        bool flushed = block_flush(node) == 0;
        block_unref(node);
        node = open_image(format, bytes, NULL);
        if (first && flushed)
            assert_filled(node, MIB(3), 4096, 1);
        if (second && flushed)
            assert_filled(node, MIB(7), 4096, 2);
        assert_filled(node, MIB(7) + 4096, KIB(64), 0);
        block_unref(node);
    }
}

static void test_resize(gconstpointer format)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GByteArray) bytes = new_image(format, NULL, false, MIB(8));
    g_autoptr(BlockNode) node = open_image(format, bytes, NULL);
    g_assert_false(block_resize(node, &(BlockResize){.size = MIB(16)}, &error));
    g_assert_error(error, LODGE_ERROR, LODGE_ERROR_UNSUPPORTED);
    g_assert_nonnull(strstr(error->message, format));
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/disk/vdi/headers", test_vdi_headers);
    g_test_add_func("/disk/vdi/entries", test_vdi_entries);
    g_test_add_func("/disk/vpc/headers", test_vpc_headers);
    g_test_add_func("/disk/vpc/forged", test_vpc_forged);
    g_test_add_func("/disk/vpc/differencing", test_vpc_differencing);
    g_test_add_data_func("/disk/vdi/killed", "vdi", test_killed);
    g_test_add_data_func("/disk/vpc/killed", "vpc", test_killed);
    g_test_add_data_func("/disk/vhdx/killed", "vhdx", test_killed);
    g_test_add_data_func("/disk/vdi/full", "vdi", test_full);
    g_test_add_data_func("/disk/vpc/full", "vpc", test_full);
    g_test_add_data_func("/disk/vhdx/full", "vhdx", test_full);
    g_test_add_data_func("/disk/vdi/failing", "vdi", test_failing);
    g_test_add_data_func("/disk/vpc/failing", "vpc", test_failing);
    g_test_add_data_func("/disk/vhdx/failing", "vhdx", test_failing);
    g_test_add_data_func("/disk/vdi/resize", "vdi", test_resize);
    g_test_add_data_func("/disk/vpc/resize", "vpc", test_resize);
    g_test_add_data_func("/disk/vhdx/resize", "vhdx", test_resize);
    return g_test_run();
}
