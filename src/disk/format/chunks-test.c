/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* bochs, cloop, dmg: images that the test makes are read, by many threads; those that lie are refused. */
#include "base/bytes.h"
#include "disk/format/chunks.h"
#include "disk/format/formats.h"
#include "disk/memory-file.h"

#include <bzlib.h>
#include <errno.h>
#include <lzma.h>
#include <string.h>
#include <zlib.h>

#define LIMIT MIB(64)
#define BLOCK KIB(16)

static BlockNode *try_open(const char *format, GByteArray *bytes, GError **err)
{
    BlockOpen options = {.path = "m", .format = format, .read_only = true};
    return block_open_file(&memory_file_new(bytes, LIMIT, NULL)->file, &options, err);
}

static BlockNode *open_image(const char *format, GByteArray *bytes)
{
    g_autoptr(GError) error = NULL;
    BlockNode *node = try_open(format, bytes, &error);
    g_assert_no_error(error);
    return node;
}

static void refused(const char *format, GByteArray *bytes, const char *word)
{
    g_autoptr(GError) error = NULL;
    g_assert_null(try_open(format, bytes, &error));
    if (!strstr(error->message, word))
        g_error("no \"%s\" in: %s", word, error->message);
}

static void expect(BlockNode *node, uint64_t offset, const uint8_t *bytes, uint64_t length)
{
    g_autofree uint8_t *back = g_malloc(length);
    struct iovec iov[2] = {{back, length / 2}, {back + length / 2, length - length / 2}};
    g_assert_cmpint(block_readv(node, offset, iov, 2), ==, 0);
    g_assert_cmpmem(back, length, bytes, length);
}

static uint8_t *pattern(uint64_t length)
{
    uint8_t *bytes = g_malloc(length);
    for (uint64_t i = 0; i < length; i++)
        bytes[i] = (uint8_t)(i >> 3 ^ i >> 11);
    return bytes;
}

static size_t pack(ChunkKind kind, const uint8_t *in, size_t length, uint8_t *out, size_t room)
{
    uLongf zlib = room;
    unsigned bzip2 = (unsigned)room;
    size_t xz = 0;
    switch (kind) {
    case CHUNK_ZLIB:
        g_assert_cmpint(compress(out, &zlib, in, length), ==, Z_OK);
        return zlib;
    case CHUNK_BZIP2:
        g_assert_cmpint(BZ2_bzBuffToBuffCompress((char *)out, &bzip2, (char *)in, (unsigned)length, 9,
                                                 0, 0),
                        ==, BZ_OK);
        return bzip2;
    case CHUNK_XZ:
        g_assert_cmpint(lzma_easy_buffer_encode(1, LZMA_CHECK_CRC32, NULL, in, length, out, &xz, room),
                        ==, LZMA_OK);
        return xz;
    case CHUNK_RAW:
        memcpy(out, in, length);
        return length;
    default:
        return 0;
    }
}

static GByteArray *new_cloop(const uint8_t *disk, uint32_t blocks)
{
    static const char head[128] = "#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t "
                                  "iso9660 /dev/cloop $1\n";
    GByteArray *bytes = g_byte_array_new();
    g_byte_array_append(bytes, (const guint8 *)head, sizeof(head));
    g_byte_array_set_size(bytes, 136 + (blocks + 1) * 8);
    be32_put(bytes->data + 128, BLOCK);
    be32_put(bytes->data + 132, blocks);
    for (uint32_t i = 0; i <= blocks; i++) {
        uint8_t out[2 * BLOCK];
        be64_put(bytes->data + 136 + (size_t)i * 8, bytes->len);
        if (i < blocks)
            g_byte_array_append(bytes, out,
                                (guint)pack(CHUNK_ZLIB, disk + i * BLOCK, BLOCK, out, sizeof(out)));
    }
    return bytes;
}

static gpointer read_all(gpointer data)
{
    BlockNode *node = data;
    g_autofree uint8_t *disk = pattern(block_size(node));
    for (uint64_t at = 0; at + 3000 < block_size(node); at += 2777)
        expect(node, at, disk + at, 3000);
    return NULL;
}

static void test_cloop(void)
{
    g_autofree uint8_t *disk = pattern(20 * BLOCK);
    g_autoptr(GByteArray) bytes = new_cloop(disk, 20);
    BlockNode *node = open_image("cloop", bytes);
    GThread *threads[4];
    g_assert_cmpuint(block_size(node), ==, 20 * BLOCK);
    expect(node, 0, disk, 20 * BLOCK);
    for (size_t i = 0; i < G_N_ELEMENTS(threads); i++)
        threads[i] = g_thread_new("reader", read_all, node);
    for (size_t i = 0; i < G_N_ELEMENTS(threads); i++)
        g_thread_join(threads[i]);
    block_unref(node);
    bytes->data[be64_get(bytes->data + 136 + 8) + 20] ^= 0xff; /* in the second block */
    node = open_image("cloop", bytes);
    uint8_t byte;
    struct iovec iov = {&byte, 1};
    g_assert_cmpint(block_readv(node, 0, &iov, 1), ==, 0);
    g_assert_cmpint(block_readv(node, BLOCK, &iov, 1), ==, -EIO);
    block_unref(node);
}

static void test_bad_cloop(void)
{
    static const struct {
        unsigned at;
        uint32_t value;
        const char *word;
    } bad[] = {
        {128, 513, "multiple of 512"},   {128, 0, "cannot be zero"}, {128, 0x7ffffe00, "64 MB"},
        {132, 0xffffffff, "n_blocks"},   {132, 1u << 23, "too many"}, {132, 1u << 21, "within"},
        {136 + 12, 0, "monotonically"},  {136 + 8 * 20, 1, "block size at index"},
    };
    g_autofree uint8_t *disk = pattern(20 * BLOCK);
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GByteArray) bytes = new_cloop(disk, 20);
        be32_put(bytes->data + bad[i].at, bad[i].value);
        refused("cloop", bytes, bad[i].word);
    }
}

/* One chunk of each kind; the list as a property list or a resource fork. */
static const struct {
    uint32_t type;
    ChunkKind kind;
} kinds[] = {{0x80000005, CHUNK_ZLIB}, {0x80000006, CHUNK_BZIP2}, {0x80000008, CHUNK_XZ},
             {1, CHUNK_RAW},           {2, CHUNK_ZERO},           {0x7ffffffe, CHUNK_ZERO},
             {0, CHUNK_ZERO}};
#define CHUNKS     G_N_ELEMENTS(kinds)
#define MISH_BYTES (204 + (CHUNKS + 1) * 40)

static GByteArray *new_dmg(uint8_t *disk, bool list, uint8_t *mish)
{
    GByteArray *bytes = g_byte_array_new();
    uint8_t trailer[512] = "koly", out[2 * BLOCK];
    uint64_t sector = 0;
    memset(mish, 0, MISH_BYTES);
    memcpy(mish, "mish", 4);
    for (size_t i = 0; i < CHUNKS; i++) {
        uint8_t *e = mish + 204 + i * 40;
        bool comment = kinds[i].type == 0x7ffffffe;
        be32_put(e, kinds[i].type);
        be64_put(e + 8, sector);
        be64_put(e + 16, BLOCK / 512);
        be64_put(e + 24, bytes->len);
        if (kinds[i].kind == CHUNK_ZERO && !comment)
            memset(disk + sector * 512, 0, BLOCK);
        size_t packed = pack(kinds[i].kind, disk + sector * 512, BLOCK, out, sizeof(out));
        be64_put(e + 32, packed);
        g_byte_array_append(bytes, out, (guint)packed);
        sector += comment ? 0 : BLOCK / 512;
    }
    be32_put(mish + 204 + CHUNKS * 40, 0xffffffff);
    be64_put(trailer + 0x1ec, sector);
    be64_put(trailer + (list ? 0xd8 : 0x28), bytes->len);
    g_autofree char *text = g_base64_encode(mish, MISH_BYTES);
    g_autofree char *plist = g_strdup_printf("<plist><data>AAAA</data><data>\n\t%s\n</data>", text);
    uint8_t head[20] = {0};
    be32_put(head, 16);
    be32_put(head + 8, MISH_BYTES + 4);
    be32_put(head + 16, MISH_BYTES);
    if (list) {
        g_byte_array_append(bytes, (guint8 *)plist, (guint)strlen(plist));
        be64_put(trailer + 0xe0, strlen(plist));
    } else {
        g_byte_array_append(bytes, head, sizeof(head));
        g_byte_array_append(bytes, mish, MISH_BYTES);
        be64_put(trailer + 0x30, sizeof(head) + MISH_BYTES);
    }
    g_byte_array_append(bytes, trailer, sizeof(trailer));
    return bytes;
}

static void test_dmg(gconstpointer list)
{
    uint64_t size = (CHUNKS - 1) * BLOCK;
    g_autofree uint8_t *disk = pattern(size);
    uint8_t mish[MISH_BYTES];
    g_autoptr(GByteArray) bytes = new_dmg(disk, list != NULL, mish);
    BlockNode *node = open_image("dmg", bytes);
    g_assert_cmpuint(block_size(node), ==, size);
    expect(node, 0, disk, size);
    for (uint64_t at = 0; at + 900 <= size; at += 777)
        expect(node, at, disk + at, 900);
    BlockExtent e;
    g_assert_cmpint(block_status(node, 3 * BLOCK, BLOCK, &e), ==, 0);
    g_assert_true(e.data && e.has_offset && e.length == BLOCK);
    g_assert_cmpint(block_status(node, 0, BLOCK, &e), ==, 0);
    g_assert_true(e.data && e.compressed && !e.has_offset);
    g_assert_cmpint(block_status(node, 4 * BLOCK, BLOCK, &e), ==, 0);
    g_assert_true(e.zero);
    block_unref(node);
    for (size_t i = 0; i < 3; i++) { /* damage in what is packed: an error, or what was there */
        uint8_t *entry = mish + 204 + i * 40;
        bytes->data[be64_get(entry + 24) + be64_get(entry + 32) / 2] ^= 0x55;
        node = open_image("dmg", bytes);
        uint8_t byte;
        struct iovec iov = {&byte, 1};
        g_assert_cmpint(block_readv(node, i * BLOCK, &iov, 1), ==, -EIO);
        g_assert_cmpint(block_readv(node, 3 * BLOCK, &iov, 1), ==, 0);
        block_unref(node);
    }
}

static void test_bad_dmg(void)
{
    static const struct {
        unsigned entry, at;
        uint64_t value;
        const char *word;
    } bad[] = {
        {0, 16, MIB(1), "sector count"},   {0, 32, GIB(1), "length"},
        {0, 8, 1ull << 60, "cannot be"},   {0, 24, ~0ull, "cannot be"},
        {0, 0, 0x80000004ull << 32, "ADC"}, {0, 0, 0x80000007ull << 32, "LZFSE"},
        {1, 0, 0x80000099ull << 32, "unknown type 80000099"},
    };
    static const struct {
        unsigned from_end;
        uint64_t value;
        const char *word;
    } trailers[] = {
        {512, 0, "UDIF trailer"},         {512 - 0x28, ~0ull, "trailer is not valid"},
        {512 - 0x18, ~0ull, "not valid"}, {512 - 0x30, 0, "no list of chunks"},
        {512 - 0x1ec, ~0ull, "not valid"}, {512 - 0x30, 17, "not valid"},
    };
    g_autofree uint8_t *disk = pattern(CHUNKS * BLOCK);
    uint8_t mish[MISH_BYTES];
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GByteArray) bytes = new_dmg(disk, false, mish);
        uint8_t *e = bytes->data + bytes->len - 512 - MISH_BYTES + 204 + bad[i].entry * 40;
        be64_put(e + bad[i].at, bad[i].value);
        refused("dmg", bytes, bad[i].word);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(trailers); i++) {
        g_autoptr(GByteArray) bytes = new_dmg(disk, false, mish);
        be64_put(bytes->data + bytes->len - trailers[i].from_end, trailers[i].value);
        refused("dmg", bytes, trailers[i].word);
    }
}

/* Two extents of 8 KiB in the reverse order, with every third sector in them. */
static GByteArray *new_bochs(uint8_t *disk, uint32_t version)
{
    GByteArray *bytes = g_byte_array_new();
    g_byte_array_set_size(bytes, 512 + 4 * 4 + 2 * (512 + 8192));
    uint8_t *h = bytes->data;
    memset(h, 0, bytes->len);
    memcpy(h, "Bochs Virtual HD Image", 22);
    memcpy(h + 32, "Redolog", 7);
    memcpy(h + 48, "Growing", 7);
    le32_put(h + 64, version);
    le32_put(h + 68, 512);
    le32_put(h + 72, 4);
    le32_put(h + 76, 2);
    le32_put(h + 80, 8192);
    le64_put(h + (version == 0x10000 ? 84 : 88), 30000);
    static const uint32_t catalog[] = {1, 0xffffffff, 0, 0xffffffff};
    for (unsigned i = 0; i < 4; i++) {
        le32_put(h + 512 + (size_t)i * 4, catalog[i]);
        uint8_t *extent = h + 528 + (size_t)(catalog[i] & 1) * (512 + 8192);
        for (unsigned s = 0; s < 16; s++) {
            bool there = catalog[i] != 0xffffffff && s % 3 == 0;
            if (there) {
                extent[s / 8] |= (uint8_t)(1u << (s % 8));
                memcpy(extent + 512 + s * 512, disk + i * 8192 + s * 512, 512);
            } else {
                memset(disk + i * 8192 + s * 512, 0, 512);
            }
        }
    }
    return bytes;
}

static void test_bochs(void)
{
    static const uint32_t versions[] = {0x10000, 0x20000};
    for (unsigned v = 0; v < 2; v++) {
        g_autofree uint8_t *disk = pattern(4 * 8192);
        g_autoptr(GByteArray) bytes = new_bochs(disk, versions[v]);
        g_autoptr(BlockNode) node = open_image("bochs", bytes);
        uint64_t size = block_size(node);
        g_assert_cmpuint(size, ==, 29696);
        expect(node, 0, disk, size);
        for (uint64_t at = 0; at + 1300 <= size; at += 333)
            expect(node, at, disk + at, 1300);
    }
}

static void test_bad_bochs(void)
{
    static const struct {
        unsigned at;
        uint32_t value;
        const char *word;
    } bad[] = {
        {0, 0, "not in Bochs"},          {64, 0x30000, "not in Bochs"}, {48, 0, "not in Bochs"},
        {72, 0x100001, "Catalog size"},  {72, 2, "too small"},          {80, 256, "at least 512"},
        {80, 5000, "power of two"},      {80, 1u << 24, "too large"},   {76, 0, "bitmap"},
        {76, 1, "bitmap"},               {68, 0xffffff00, "within"},    {92, 1, "too small"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autofree uint8_t *disk = pattern(4 * 8192);
        g_autoptr(GByteArray) bytes = new_bochs(disk, 0x20000);
        le32_put(bytes->data + bad[i].at, bad[i].value);
        refused("bochs", bytes, bad[i].word);
    }
}

static void test_writable(gconstpointer format)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GByteArray) bytes = g_byte_array_new();
    BlockOpen options = {.path = "m", .format = format};
    g_assert_null(block_open_file(&memory_file_new(bytes, LIMIT, NULL)->file, &options, &error));
    g_assert_cmpstr(error->message, ==, "Image is read-only");
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/disk/cloop/read", test_cloop);
    g_test_add_func("/disk/cloop/bad", test_bad_cloop);
    g_test_add_data_func("/disk/dmg/list", "list", test_dmg);
    g_test_add_data_func("/disk/dmg/resources", NULL, test_dmg);
    g_test_add_func("/disk/dmg/bad", test_bad_dmg);
    g_test_add_func("/disk/bochs/read", test_bochs);
    g_test_add_func("/disk/bochs/bad", test_bad_bochs);
    g_test_add_data_func("/disk/bochs/writable", "bochs", test_writable);
    g_test_add_data_func("/disk/cloop/writable", "cloop", test_writable);
    g_test_add_data_func("/disk/dmg/writable", "dmg", test_writable);
    return g_test_run();
}
