/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What qcow2 must survive: failing I/O, a full disk, tables that lie, clusters that change hands.
 */
#include "base/bytes.h"
#include "disk/format/qcow2/qcow2.h"
#include "disk/memory-file.h"

#include <errno.h>
#include <string.h>

#define SECTOR 512

static GByteArray *new_image(uint64_t size, uint64_t cluster)
{
    g_autoptr(GError) error = NULL;
    GByteArray *bytes = g_byte_array_new();
    json_auto_t *named = json_object();
    if (cluster)
        json_object_set_new(named, "cluster_size", json_integer((json_int_t)cluster));
    BlockCreate create = {.path = "m", .format = "qcow2", .size = size, .options = named};
    g_autoptr(BlockFile) file = &memory_file_new(bytes, MIB(64), NULL)->file;
    g_assert_true(block_format_qcow2.create(file, &create, &error));
    return bytes;
}

static BlockNode *try_open(GByteArray *bytes, uint64_t limit, bool read_only, GError **err)
{
    BlockOpen options = {
        .path = "m", .format = "qcow2", .read_only = read_only, .discard_unmap = true};
    return block_open_file(&memory_file_new(bytes, limit, NULL)->file, &options, err);
}

static BlockNode *open_image(GByteArray *bytes, uint64_t limit, bool read_only)
{
    g_autoptr(GError) error = NULL;
    BlockNode *node = try_open(bytes, limit, read_only, &error);
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
    g_assert_cmpint(block_readv(node, offset, &iov, 1), ==, 0);
    for (uint64_t i = 0; i < length; i++)
        g_assert_cmpuint(buffer[i], ==, value);
}

/* The rest of a half-used cluster of compressed data must not be used once it has a new owner. */
static void test_packed_reuse(void)
{
    uint64_t cluster = 4096;
    g_autofree uint8_t *data = g_malloc0(cluster);
    g_autoptr(GByteArray) bytes = new_image(MIB(1), cluster);
    BlockNode *node = open_image(bytes, MIB(8), false);
    memset(data, 1, cluster);
    g_assert_cmpint(block_write_compressed(node, 0, data, cluster), ==, 0);
    g_assert_cmpint(fill(node, 0, cluster, 2), ==, 0);
    g_assert_cmpint(block_flush(node), ==, 0);
    for (uint64_t i = 1; i < 5; i++)
        g_assert_cmpint(fill(node, i * cluster, cluster, (uint8_t)(i + 2)), ==, 0);
    memset(data, 9, cluster);
    g_assert_cmpint(block_write_compressed(node, 8 * cluster, data, cluster), ==, 0);
    for (uint64_t i = 0; i < 5; i++)
        assert_filled(node, i * cluster, cluster, (uint8_t)(i + 2));
    assert_filled(node, 8 * cluster, cluster, 9);
    assert_clean(node, false);
    block_unref(node);
}

/* A disk that is full: the write fails, what was there stays, and nothing is corrupted. */
static void test_full(void)
{
    g_autoptr(GByteArray) bytes = new_image(MIB(4), 4096);
    BlockNode *node = open_image(bytes, KIB(300), false);
    int result = 0;
    uint64_t at = 0;
    for (; at < MIB(4) && result == 0; at += 8192)
        result = fill(node, at, 8192, 7);
    g_assert_cmpint(result, ==, -ENOSPC);
    assert_filled(node, 0, at - 8192, 7);
    g_assert_cmpint(block_discard(node, 0, 65536), ==, 0);
    g_assert_cmpint(block_flush(node), ==, 0);
    g_assert_cmpint(fill(node, MIB(3), 16384, 8), ==, 0); /* there is room again */
    assert_filled(node, MIB(3), 16384, 8);
    block_unref(node);
    node = open_image(bytes, MIB(8), true);
    assert_filled(node, MIB(3), 16384, 8);
    assert_clean(node, true);
    block_unref(node);
}

/* Does random work while operations from @first on fail; what succeeded is in @model. */
static void work_failing(BlockNode *node, GRand *random, uint8_t *model, bool *unsure,
                         uint64_t sectors)
{
    for (int i = 0; i < 60; i++) {
        uint64_t first = (uint64_t)g_rand_int_range(random, 0, (int)sectors);
        uint64_t n = (uint64_t)g_rand_int_range(random, 1, 60);
        n = MIN(n, sectors - first);
        int kind = g_rand_int_range(random, 0, 10);
        uint8_t value = kind < 6 ? (uint8_t)g_rand_int_range(random, 1, 256) : 0;
        int result;
        if (kind < 6)
            result = fill(node, first * SECTOR, n * SECTOR, value);
        else if (kind < 9)
            result = block_write_zeroes(node, first * SECTOR, n * SECTOR, BLOCK_UNMAP);
        else
            result = block_flush(node);
        for (uint64_t s = first; s < first + n && kind < 9; s++) {
            model[s] = value;
            unsure[s] = result != 0;
        }
    }
}

static void test_failing(gconstpointer data)
{
    uint64_t cluster = GPOINTER_TO_SIZE(data), sectors = 1024;
    GRand *random = g_rand_new_with_seed(g_test_rand_int());
    for (uint64_t first = 5; first < 330; first += 13) {
        g_autoptr(GByteArray) bytes = new_image(sectors * SECTOR, cluster);
        BlockNode *node = open_image(bytes, MIB(16), false);
        MemoryFile *file = (MemoryFile *)node->file;
        g_autofree uint8_t *model = g_malloc0(sectors);
        g_autofree bool *unsure = g_new0(bool, sectors);
        file->fail_from = file->operations + first;
        file->fail_until = file->fail_from + (uint64_t)g_rand_int_range(random, 1, 6);
        work_failing(node, random, model, unsure, sectors);
        file->fail_until = 0;
        for (uint64_t s = 0; s < sectors; s++) {
            if (!unsure[s])
                assert_filled(node, s * SECTOR, SECTOR, model[s]);
        }
        g_assert_cmpint(block_flush(node), ==, 0);
        block_unref(node);
        node = open_image(bytes, MIB(16), true);
        assert_clean(node, true);
        for (uint64_t s = 0; s < sectors; s++) {
            if (!unsure[s])
                assert_filled(node, s * SECTOR, SECTOR, model[s]);
        }
        block_unref(node);
    }
    g_rand_free(random);
}

/* A data cluster that is the L1 table: reading may go on, writing marks the image corrupt. */
static void test_overlap(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GByteArray) bytes = new_image(MIB(1), 4096);
    BlockNode *node = open_image(bytes, MIB(8), false);
    g_assert_cmpint(fill(node, 0, 8192, 5), ==, 0);
    block_unref(node);
    uint64_t l1 = be64_get(bytes->data + 40);
    uint64_t l2 = be64_get(bytes->data + l1) & QCOW2_OFFSET_MASK;
    be64_put(bytes->data + l2 + 8, l1 | QCOW2_COPIED);
    node = open_image(bytes, MIB(8), false);
    g_assert_cmpint(fill(node, 0, 512, 6), ==, 0);
    g_assert_cmpint(fill(node, 4096, 512, 6), ==, -EIO);
    g_assert_cmpint(fill(node, 0, 512, 7), ==, -EIO);
    assert_filled(node, 512, 512, 5);
    block_unref(node);
    g_assert_cmpuint(be64_get(bytes->data + 72), ==, QCOW2_INCOMPAT_CORRUPT);
    g_assert_null(try_open(bytes, MIB(8), false, &error));
    g_assert_nonnull(strstr(error->message, "marked corrupt"));
    node = open_image(bytes, MIB(8), true);
    assert_filled(node, 0, 512, 6);
    block_unref(node);
}

typedef struct Lie {
    const char *name;
    unsigned offset, width;
    uint64_t value;
    const char *said;
} Lie;

/* Headers that cannot be: each is refused with a word that names what is wrong. */
static const Lie lies[] = {
    {"version", 4, 4, 1, "version 1"},
    {"cluster-bits-small", 20, 4, 8, "cluster size"},
    {"cluster-bits-large", 20, 4, 22, "cluster size"},
    {"size", 24, 8, 1ull << 62, "Image is too big"},
    {"encryption", 32, 4, 3, "Unsupported encryption method 3"},
    {"encryption-aes", 32, 4, 1, "encrypt.key-secret"},
    {"encryption-luks", 32, 4, 2, "CRYPTO header"},
    {"l1-entries", 36, 4, UINT32_MAX, "Active L1 table too large"},
    {"l1-none", 36, 4, 0, "L1 table"},
    {"l1-unaligned", 40, 8, 0x30001, "Active L1 table offset invalid"},
    {"l1-outside", 40, 8, 1ull << 40, "L1 table"},
    {"reftable-outside", 48, 8, 1ull << 50, "Reference count table"},
    {"reftable-unaligned", 48, 8, 0x10008, "Reference count table offset invalid"},
    {"reftable-none", 56, 4, 0, "reference count table"},
    {"reftable-long", 56, 4, 1u << 20, "Reference count table too large"},
    {"snapshots", 60, 4, 70000, "Snapshot table too large"},
    {"snapshots-outside", 60, 4, 3, "snapshot"},
    {"backing-name", 8, 8, 0x20000, "backing file offset"},
    {"refcount-order", 96, 4, 7, "refcounts"},
    {"header-length", 100, 4, 100, "header length"},
    {"header-odd", 100, 4, 109, "header length"},
    {"compression", 104, 1, 1, "compression"},
    {"extension", 116, 4, 0xfffffff0u, "Header extension too large"},
};

static void test_lie(gconstpointer data)
{
    const Lie *lie = data;
    g_autoptr(GError) error = NULL;
    g_autoptr(GByteArray) bytes = new_image(MIB(64), 65536);
    if (lie->width == 8)
        be64_put(bytes->data + lie->offset, lie->value);
    else if (lie->width == 4)
        be32_put(bytes->data + lie->offset, (uint32_t)lie->value);
    else
        bytes->data[lie->offset] = (uint8_t)lie->value;
    if (lie->offset == 8)
        be32_put(bytes->data + 16, 10);
    if (lie->offset == 60)
        be64_put(bytes->data + 64, lie->value == 3 ? 1ull << 40 : 0);
    for (int read_only = 0; read_only < 2; read_only++) {
        g_assert_null(try_open(bytes, MIB(64), read_only, &error));
        g_test_message("%s", error->message);
        g_assert_nonnull(strstr(error->message, lie->said));
        g_clear_error(&error);
    }
}

typedef struct Told {
    unsigned n;
    BlockFinding first;
    char table[64];
} Told;

static void tell(void *opaque, const BlockFinding *f)
{
    Told *told = opaque;
    if (told->n++)
        return;
    told->first = *f;
    g_strlcpy(told->table, f->table, sizeof(told->table));
}

/* Damage at @at of an image with clusters of 64 KiB, whose first data is cluster 5. */
typedef struct Damage {
    uint64_t at, value;
    unsigned bytes;
    const char *kind, *table;
    int64_t index;
    uint64_t host, guest;
    BlockRepair mended_by;
} Damage;

static const Damage damages[] = {
    {0x20000 + 2 * 5, 0, 2, "refcount too low", "refcount block 0", 5, 0x50000, BLOCK_NO_OFFSET,
     BLOCK_REPAIR_ALL},
    {0x20000 + 2 * 5, 2, 2, "cluster leaked", "refcount block 0", 5, 0x50000, BLOCK_NO_OFFSET,
     BLOCK_REPAIR_LEAKS},
    {0x40008, 0x60000, 8, "copied flag wrong", "L2 table 0", 1, 0x60000, 0x10000,
     BLOCK_REPAIR_ALL},
    {0x40008, 0x8000000000060201, 8, "preallocated cluster not aligned", "L2 table 0", 1, 0x60200,
     0x10000, BLOCK_REPAIR_ALL},
    {0x40008, 0x8000000000060200, 8, "data cluster not aligned", "L2 table 0", 1, 0x60200, 0x10000,
     BLOCK_REPAIR_NONE},
    {0x40008, 0x8000001000060000, 8, "reference outside the file", "L2 table 0", 1, 0x1000060000,
     0x10000, BLOCK_REPAIR_NONE},
    {0x30000, 0x8000000000040200, 8, "L2 table not aligned", "L1 table", 0, 0x40200, 0,
     BLOCK_REPAIR_NONE},
    {0x10000, 0x20200, 8, "refcount block not aligned", "refcount table", 0, 0x20200,
     BLOCK_NO_OFFSET, BLOCK_REPAIR_ALL},
    {0x10000, 0x1000020000, 8, "refcount block outside the file", "refcount table", 0,
     0x1000020000, BLOCK_NO_OFFSET, BLOCK_REPAIR_ALL},
};

static Told check_damaged(GByteArray *bytes, BlockRepair repair, BlockCheck *check)
{
    g_autoptr(GError) error = NULL;
    Told told = {0};
    BlockOpen options = {.path = "m", .format = "qcow2", .read_only = repair == BLOCK_REPAIR_NONE,
                         .repair = repair != BLOCK_REPAIR_NONE};
    g_autoptr(BlockNode) node =
        block_open_file(&memory_file_new(bytes, MIB(64), NULL)->file, &options, &error);
    g_assert_no_error(error);
    *check = (BlockCheck){.repair = repair, .finding = tell, .opaque = &told};
    g_assert_true(block_check(node, check, &error));
    return told;
}

static void test_findings(void)
{
    for (size_t i = 0; i < G_N_ELEMENTS(damages); i++) {
        const Damage *d = &damages[i];
        g_autoptr(GByteArray) bytes = new_image(MIB(8), 0);
        BlockNode *node = open_image(bytes, MIB(64), false);
        BlockCheck check;
        g_assert_cmpint(fill(node, 0, KIB(128), 0x5a), ==, 0);
        block_unref(node);
        uint8_t raw[8];
        be64_put(raw, d->value);
        memcpy(bytes->data + d->at, raw + 8 - d->bytes, d->bytes);
        Told told = check_damaged(bytes, BLOCK_REPAIR_NONE, &check);
        g_assert_cmpstr(told.first.kind, ==, d->kind);
        g_assert_cmpstr(told.table, ==, d->table);
        g_assert_cmpint(told.first.index, ==, d->index);
        g_assert_cmphex(told.first.host, ==, d->host);
        g_assert_cmpuint(told.first.cluster, ==, d->host >> 16);
        g_assert_cmphex(told.first.guest, ==, d->guest);
        g_assert_cmpint(told.first.mended_by, ==, d->mended_by);
        g_assert_false(told.first.fixing);
        g_assert_cmpuint(told.n, ==, check.corruptions + check.leaks);
        /* What says that it is mended is, and what says that it is not is still there. */
        told = check_damaged(bytes, BLOCK_REPAIR_ALL, &check);
        g_assert_cmpint(told.first.fixing, ==, d->mended_by != BLOCK_REPAIR_NONE);
        told = check_damaged(bytes, BLOCK_REPAIR_NONE, &check);
        g_assert_cmpint(check.corruptions == 0, ==, d->mended_by != BLOCK_REPAIR_NONE);
        g_assert_cmpuint(check.leaks, ==, 0);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/disk/qcow2/packed-reuse", test_packed_reuse);
    g_test_add_func("/disk/qcow2/full", test_full);
    g_test_add_func("/disk/qcow2/overlap", test_overlap);
    g_test_add_data_func("/disk/qcow2/failing/512", GSIZE_TO_POINTER(512), test_failing);
    g_test_add_data_func("/disk/qcow2/failing/4k", GSIZE_TO_POINTER(4096), test_failing);
    g_test_add_data_func("/disk/qcow2/failing/64k", GSIZE_TO_POINTER(65536), test_failing);
    for (size_t i = 0; i < G_N_ELEMENTS(lies); i++) {
        g_autofree char *name = g_strdup_printf("/disk/qcow2/header/%s", lies[i].name);
        g_test_add_data_func(name, &lies[i], test_lie);
    }
    g_test_add_func("/disk/qcow2/findings", test_findings);
    return g_test_run();
}
