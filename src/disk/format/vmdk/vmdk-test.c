/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* vmdk: descriptors, headers that lie, children and their parents' CID, what new images are. */
#include "base/bytes.h"
#include "base/error.h"
#include "disk/format/formats.h"
#include "disk/format/vmdk/vmdk.h"
#include "disk/memory-file.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <string.h>

static bool parse(const char *text, VmdkDescriptor *d, GError **err)
{
    return vmdk_descriptor_parse(d, text, strlen(text), err);
}

static void test_descriptor(void)
{
    g_autoptr(GError) error = NULL;
    VmdkDescriptor d;
    g_assert_true(parse("# Disk DescriptorFile\r\nversion=1\r\nCID = 12AB\r\nparentCID=ffffffff\n"
                        "createType=\"vmfs\"\nparentFileNameHint=\"a b.vmdk\"\n"
                        "RW 4192256 SPARSE \"x-s001.vmdk\"\n RW 7 FLAT \"x y\" 63\n"
                        "RW 9 VMFS \"z\"\nRDONLY 5 ZERO\nRW 0 SPARSE \"none\"\n"
                        "RW 5 OTHER \"none\"\nRW 1 SESPARSE \"s\"",
                        &d, &error));
    g_assert_no_error(error);
    g_assert_cmpuint(d.cid, ==, 0x12ab);
    g_assert_cmpuint(d.cid_digits, ==, 4);
    g_assert_cmpuint(d.parent_cid, ==, VMDK_CID_NONE);
    g_assert_cmpstr(d.create_type, ==, "vmfs");
    g_assert_cmpstr(d.parent, ==, "a b.vmdk");
    g_assert_cmpuint(d.extents->len, ==, 4);
    const VmdkExtentLine *e = (const VmdkExtentLine *)d.extents->data;
    g_assert_cmpuint(e[0].sectors, ==, 4192256);
    g_assert_cmpint(e[0].type, ==, VMDK_SPARSE);
    g_assert_cmpuint(e[1].offset, ==, 63);
    g_assert_cmpstr(e[1].name, ==, "x y");
    g_assert_cmpint(e[3].type, ==, VMDK_SESPARSE);
    vmdk_descriptor_clear(&d);
}

static void test_bad_descriptor(void)
{
    static const struct {
        const char *text, *word;
    } bad[] = {
        {"", "invalid VMDK image descriptor"},
        {"parentCID=1\n", "invalid VMDK image descriptor"},
        {"CID=xyz\n", "CID=xyz"},
        {"CID=123456789\n", "CID=123456789"},
        {"CID=1\ncreateType=vmfs\n", "createType"},
        {"CID=1\ncreateType=\"vmfs\n", "createType"},
        {"CID=1\nRW 1 FLAT \"x\"\n", "Invalid extent line: RW 1 FLAT \"x\""},
        {"CID=1\nRW 1 FLAT \"x\" -1\n", "Invalid extent line"},
        {"CID=1\nRW 1 VMFS \"x\" 1\n", "Invalid extent line: RW 1 VMFS \"x\" 1"},
        {"CID=1\nRW 1 SPARSE \"x\" 0\n", "Invalid extent line"},
        {"CID=1\nRW 1 FLAT \"x\" 99999999999999999999\n", "Invalid extent line"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GError) error = NULL;
        VmdkDescriptor d;
        g_assert_false(parse(bad[i].text, &d, &error));
        g_assert_nonnull(strstr(error->message, bad[i].word));
        vmdk_descriptor_clear(&d);
    }
}

static GByteArray *new_image(const char *options, uint64_t size)
{
    g_autoptr(GError) error = NULL;
    GByteArray *bytes = g_byte_array_new();
    json_auto_t *named = json_object();
    g_assert_true(block_options_parse(options, NULL, NULL, named, &error));
    BlockCreate create = {.path = "m", .format = "vmdk", .size = size, .options = named};
    g_autoptr(BlockFile) file = &memory_file_new(bytes, MIB(64), NULL)->file;
    g_assert_true(block_format_vmdk.create_check(&create, &error));
    g_assert_true(block_format_vmdk.create(file, &create, &error));
    return bytes;
}

static BlockNode *open_bytes(GByteArray *bytes, bool read_only, GError **err)
{
    BlockOpen options = {.path = "m", .format = "vmdk", .read_only = read_only};
    return block_open_file(&memory_file_new(bytes, MIB(64), NULL)->file, &options, err);
}

static void refused(GByteArray *bytes, bool read_only, const char *word)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(BlockNode) node = open_bytes(bytes, read_only, &error);
    g_assert_null(node);
    g_assert_nonnull(error);
    if (!strstr(error->message, word))
        g_error("no \"%s\" in: %s", word, error->message);
}

static void test_headers(void)
{
    static const struct {
        uint32_t at, width;
        uint64_t value;
        bool writing;
        const char *word;
    } bad[] = {
        {0, 4, 0, false, "invalid VMDK"},
        {VMDK_VERSION, 4, 4, false, "Unsupported VMDK version 4"},
        {VMDK_VERSION, 4, 3, true, "VMDK version 3 must be read only"},
        {VMDK_CAPACITY, 8, UINT64_MAX, false, "L1 size too big"},
        {VMDK_CAPACITY, 8, 1ull << 40, false, "L1 size too big"},
        {VMDK_CAPACITY, 8, 1ull << 32, false, "not within the file"},
        {VMDK_GRAIN_SIZE, 8, UINT64_MAX, false, "Invalid granularity"},
        {VMDK_GRAIN_SIZE, 8, 3, false, "Invalid granularity"},
        {VMDK_GRAIN_SIZE, 8, 0, false, "L1 entry size is invalid"},
        {VMDK_TABLE_SIZE, 4, 513, false, "L2 table size too big"},
        {VMDK_TABLE_SIZE, 4, 0, false, "L1 entry size is invalid"},
        {VMDK_DIRECTORY, 8, 1ull << 50, false, "not within the file"},
        {VMDK_DIRECTORY, 8, UINT64_MAX, true, "Invalid footer"},
        {VMDK_DIRECTORY, 8, 0, true, "can be opened read-only"},
        {VMDK_REDUNDANT, 8, 26, true, "overlap"},
        {VMDK_OVERHEAD, 8, 1000, false, "File truncated, expecting at least 512000 bytes"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GByteArray) bytes = new_image("", MIB(8));
        if (bad[i].width == 8)
            le64_put(bytes->data + bad[i].at, bad[i].value);
        else
            le32_put(bytes->data + bad[i].at, (uint32_t)bad[i].value);
        refused(bytes, !bad[i].writing, bad[i].word);
    }
}

/* An entry that leads to a table: the guest does not get to write tables. */
static void test_forged_entry(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GByteArray) bytes = new_image("", MIB(8));
    uint64_t directory = le64_get(bytes->data + VMDK_DIRECTORY) * VMDK_SECTOR;
    uint64_t table = (uint64_t)le32_get(bytes->data + directory) * VMDK_SECTOR;
    le32_put(bytes->data + table, (uint32_t)(directory / VMDK_SECTOR)); /* grain 0 */
    g_autofree uint8_t *more = g_malloc0(KIB(64));
    g_byte_array_append(bytes, more, (guint)KIB(64));
    g_autoptr(BlockNode) node = open_bytes(bytes, false, &error);
    g_assert_no_error(error);
    uint8_t sector[VMDK_SECTOR] = {1};
    struct iovec iov = {sector, sizeof(sector)};
    g_assert_cmpint(block_writev(node, 0, &iov, 1, 0), ==, -EIO);
    g_assert_cmpint(block_writev(node, KIB(64), &iov, 1, 0), ==, 0);
    BlockCheck check = {0};
    g_assert_true(block_check(node, &check, &error));
    g_assert_cmpuint(check.corruptions, ==, 1);
}

/* The tables of a stream are at its end, and the footer says where. */
static void test_footer(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GByteArray) bytes = new_image("subformat=streamOptimized", MIB(1));
    g_autoptr(BlockNode) node = open_bytes(bytes, false, &error);
    uint8_t grain[KIB(64)];
    memset(grain, 7, sizeof(grain));
    g_assert_cmpint(block_write_compressed(node, KIB(64), grain, sizeof(grain)), ==, 0);
    g_clear_pointer(&node, block_unref);
    uint8_t tail[3 * VMDK_SECTOR] = {0};
    le32_put(tail + 12, VMDK_MARKER_FOOTER);
    memcpy(tail + VMDK_SECTOR, bytes->data, VMDK_SECTOR);
    g_byte_array_append(bytes, tail, sizeof(tail));
    le64_put(bytes->data + VMDK_DIRECTORY, VMDK_DIRECTORY_AT_END);
    refused(bytes, false, "can only be read");
    node = open_bytes(bytes, true, &error);
    g_assert_no_error(error);
    uint8_t sector[VMDK_SECTOR];
    struct iovec iov = {sector, sizeof(sector)};
    g_assert_cmpint(block_readv(node, KIB(64) + 1024, &iov, 1), ==, 0);
    g_assert_cmpint(memcmp(sector, grain, sizeof(sector)), ==, 0);
}

typedef struct Folder {
    char *path, *base, *child;
} Folder;

static void make_chain(Folder *f)
{
    g_autoptr(GError) error = NULL;
    f->path = g_dir_make_tmp("lodge-vmdk-XXXXXX", NULL);
    f->base = g_build_filename(f->path, "base.vmdk", NULL);
    f->child = g_build_filename(f->path, "child.vmdk", NULL);
    BlockCreate create = {.path = f->base, .format = "vmdk", .size = MIB(1)};
    g_assert_true(block_create(&create, &error));
    create.path = f->child;
    create.backing = "base.vmdk";
    create.backing_format = "raw";
    g_assert_false(block_create(&create, &error));
    g_assert_cmpstr(error->message, ==, "backing_file must be a vmdk image");
    g_clear_error(&error);
    create.backing_format = "vmdk";
    g_assert_true(block_create(&create, &error));
}

static int touch(const char *path, uint64_t offset)
{
    g_autoptr(GError) error = NULL;
    BlockOpen options = {.path = path, .format = "vmdk"};
    g_autoptr(BlockNode) node = block_open(&options, &error);
    uint8_t sector[VMDK_SECTOR] = {1};
    struct iovec iov = {sector, sizeof(sector)};
    g_assert_no_error(error);
    return block_writev(node, offset, &iov, 1, 0);
}

/* A parent that was written to behind its child's back is not read any more. */
static void test_parent(void)
{
    g_autoptr(GError) error = NULL;
    Folder f;
    make_chain(&f);
    uint8_t sector[VMDK_SECTOR];
    struct iovec iov = {sector, sizeof(sector)};
    BlockOpen options = {.path = f.child, .read_only = true};
    BlockNode *node = block_open(&options, &error);
    g_assert_no_error(error);
    g_assert_nonnull(block_backing(node));
    g_assert_cmpint(block_readv(node, 0, &iov, 1), ==, 0);
    block_unref(node);
    g_assert_cmpint(touch(f.child, 0), ==, 0);
    g_assert_cmpint(touch(f.base, KIB(512)), ==, 0);
    node = block_open(&options, &error);
    g_assert_no_error(error);
    g_assert_cmpint(block_readv(node, 0, &iov, 1), ==, 0); /* its own grain */
    g_assert_cmpint(block_readv(node, KIB(512), &iov, 1), ==, -EINVAL);
    block_unref(node);
    g_unlink(f.base);
    g_unlink(f.child);
    g_rmdir(f.path);
    g_free(f.base);
    g_free(f.child);
    g_free(f.path);
}

static void test_create_options(void)
{
    static const struct {
        const char *options, *word;
    } bad[] = {
        {"subformat=foo", "invalid parameter value: foo"},
        {"adapter_type=foo", "invalid parameter value: foo"},
        {"compat6=on,hwversion=7", "compat6 cannot be enabled with hwversion set"},
        {"subformat=monolithicFlat,zeroed_grain=on", "Flat image can't enable zeroed grain"},
        {"toolsversion=a\"b", "cannot stand in a VMDK descriptor"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GError) error = NULL;
        json_auto_t *named = json_object();
        g_assert_true(block_options_parse(bad[i].options, NULL, NULL, named, &error));
        BlockCreate create = {.path = "m", .format = "vmdk", .size = MIB(1), .options = named};
        g_assert_false(block_format_vmdk.create_check(&create, &error));
        g_assert_nonnull(strstr(error->message, bad[i].word));
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/disk/vmdk/descriptor", test_descriptor);
    g_test_add_func("/disk/vmdk/bad-descriptor", test_bad_descriptor);
    g_test_add_func("/disk/vmdk/headers", test_headers);
    g_test_add_func("/disk/vmdk/forged-entry", test_forged_entry);
    g_test_add_func("/disk/vmdk/footer", test_footer);
    g_test_add_func("/disk/vmdk/parent", test_parent);
    g_test_add_func("/disk/vmdk/create-options", test_create_options);
    return g_test_run();
}
