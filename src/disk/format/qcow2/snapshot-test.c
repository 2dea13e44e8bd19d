/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Internal snapshots: each keeps what the disk held, whatever is written since, whatever fails,
 * and whenever the power goes.
 */
#include "base/bytes.h"
#include "disk/format/qcow2/qcow2.h"
#include "disk/memory-file.h"

#include <errno.h>
#include <string.h>

#define DISK    MIB(1)
#define LIMIT   MIB(32)
#define SECTORS (DISK / 512)

typedef struct Kind {
    const char *name, *options;
    bool marked; /* version 3: a crash in the middle is told by the dirty bit */
} Kind;

static const Kind kinds[] = {
    {"64k", "cluster_size=64k", true},
    {"512", "cluster_size=512,refcount_bits=64", true},
    {"4k-narrow", "cluster_size=4k,refcount_bits=8", true},
    {"extended", "cluster_size=16k,extended_l2=on", true},
    {"v2", "cluster_size=4k,compat=0.10", false},
};

static GByteArray *new_image(const char *options)
{
    g_autoptr(GError) error = NULL;
    GByteArray *bytes = g_byte_array_new();
    json_auto_t *named = json_object();
    g_assert_true(block_options_parse(options, NULL, NULL, named, &error));
    BlockCreate create = {.path = "m", .format = "qcow2", .size = DISK, .options = named};
    g_autoptr(BlockFile) file = &memory_file_new(bytes, LIMIT, NULL)->file;
    g_assert_true(block_format_qcow2.create(file, &create, &error));
    return bytes;
}

static BlockNode *open_image(GByteArray *bytes, bool read_only, const char *snapshot, GArray *log)
{
    g_autoptr(GError) error = NULL;
    BlockOpen options = {.path = "m", .format = "qcow2", .read_only = read_only,
                         .discard_unmap = true, .snapshot = snapshot};
    BlockNode *node = block_open_file(&memory_file_new(bytes, LIMIT, log)->file, &options, &error);
    g_assert_no_error(error);
    return node;
}

static void assert_clean(BlockNode *node, bool leaks_allowed, bool flags_allowed)
{
    g_autoptr(GError) error = NULL;
    BlockCheck check = {0};
    g_assert_true(block_check(node, &check, &error));
    if (!flags_allowed)
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

static uint8_t *content(BlockNode *node)
{
    uint8_t *all = g_malloc(DISK);
    struct iovec iov = {all, DISK};
    g_assert_cmpint(block_readv(node, 0, &iov, 1), ==, 0);
    return all;
}

static void scribble(BlockNode *node, GRand *random, int times)
{
    for (int i = 0; i < times; i++) {
        uint64_t first = (uint64_t)g_rand_int_range(random, 0, SECTORS);
        uint64_t n = MIN((uint64_t)g_rand_int_range(random, 1, 200), SECTORS - first);
        int kind = g_rand_int_range(random, 0, 8);
        if (kind == 0)
            block_write_zeroes(node, first * 512, n * 512, BLOCK_UNMAP);
        else if (kind == 1)
            block_discard(node, first * 512, n * 512);
        else
            fill(node, first * 512, n * 512, (uint8_t)g_rand_int_range(random, 1, 256));
    }
}

static bool make(BlockNode *node, const char *name, GError **err)
{
    BlockSnapshotInfo info = {.name = (char *)(uintptr_t)name, .date_seconds = 7, .icount = 3,
                              .has_icount = true};
    return block_snapshot_create(node, &info, err);
}

/* Snapshots come and go in a random order; each keeps what it saw. */
static void test_model(gconstpointer data)
{
    const Kind *kind = data;
    g_autoptr(GByteArray) bytes = new_image(kind->options);
    GRand *random = g_rand_new_with_seed(g_test_rand_int());
    uint8_t *kept[5] = {NULL};
    BlockNode *node = open_image(bytes, false, NULL, NULL);
    for (int round = 0; round < 40; round++) {
        int which = g_rand_int_range(random, 0, G_N_ELEMENTS(kept));
        g_autofree char *name = g_strdup_printf("s%d", which);
        scribble(node, random, 6);
        if (!kept[which]) {
            kept[which] = content(node);
            g_assert_true(make(node, name, NULL));
        } else if (g_rand_boolean(random)) {
            g_assert_true(block_snapshot_apply(node, name, NULL));
            g_autofree uint8_t *now = content(node);
            g_assert_cmpmem(now, DISK, kept[which], DISK);
        } else {
            g_assert_true(block_snapshot_delete(node, name, NULL));
            g_clear_pointer(&kept[which], g_free);
        }
        assert_clean(node, false, false);
        for (int i = 0; round % 5 == 0 && i < (int)G_N_ELEMENTS(kept); i++) {
            if (!kept[i])
                continue;
            g_autofree char *viewed = g_strdup_printf("s%d", i);
            g_assert_cmpint(block_flush(node), ==, 0);
            BlockNode *view = open_image(bytes, true, viewed, NULL);
            g_autofree uint8_t *then = content(view);
            g_assert_cmpmem(then, DISK, kept[i], DISK);
            block_unref(view);
        }
    }
    block_unref(node);
    node = open_image(bytes, false, NULL, NULL);
    for (int i = 0; i < (int)G_N_ELEMENTS(kept); i++) {
        g_autofree char *name = g_strdup_printf("s%d", i);
        g_assert_true(!kept[i] || block_snapshot_delete(node, name, NULL));
        g_free(kept[i]);
    }
    assert_clean(node, false, false);
    block_unref(node);
    g_rand_free(random);
}

/* The state of a machine goes with the snapshot that was made after it was written. */
static void test_vmstate(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GByteArray) bytes = new_image("cluster_size=4k");
    g_autofree uint8_t *state = g_malloc(KIB(300)), *back = g_malloc(KIB(300));
    struct iovec out = {state, KIB(300)}, in = {back, KIB(300)};
    memset(state, 0x5a, KIB(300));
    BlockNode *node = open_image(bytes, false, NULL, NULL);
    g_assert_cmpint(fill(node, 0, KIB(100), 1), ==, 0);
    g_assert_cmpint(block_vmstate_writev(node, 5000, &out, 1), ==, 0);
    g_assert_cmpint(block_vmstate_readv(node, 5000, &in, 1), ==, 0);
    g_assert_cmpmem(state, KIB(300), back, KIB(300));
    BlockSnapshotInfo info = {.name = (char *)"vm", .vm_state_size = 5000 + KIB(300)};
    g_assert_true(block_snapshot_create(node, &info, &error));
    assert_clean(node, false, false);
    memset(back, 1, KIB(300));
    int result = block_vmstate_readv(node, 5000, &in, 1);
    g_assert_true(result == -EINVAL || (result == 0 && back[0] == 0 && back[KIB(200)] == 0));
    g_assert_true(block_snapshot_apply(node, "vm", &error));
    g_assert_cmpint(block_vmstate_readv(node, 5000, &in, 1), ==, 0);
    g_assert_cmpmem(state, KIB(300), back, KIB(300));
    g_assert_true(block_snapshot_delete(node, "1", &error));
    assert_clean(node, false, false);
    block_unref(node);
}

static void test_names(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GByteArray) bytes = new_image("cluster_size=4k");
    BlockNode *node = open_image(bytes, false, NULL, NULL);
    BlockInfo info;
    g_assert_true(make(node, "a", &error));
    g_assert_true(make(node, "a", &error));
    g_assert_true(block_snapshot_delete(node, "1", &error));
    g_assert_true(make(node, "2", &error)); /* its id is 3 */
    g_assert_true(block_snapshot_delete(node, "2", &error)); /* that id, not that name */
    block_info(node, &info);
    g_assert_cmpuint(info.n_snapshots, ==, 1);
    g_assert_cmpstr(info.snapshots[0].id, ==, "3");
    g_assert_cmpstr(info.snapshots[0].name, ==, "2");
    g_assert_cmpuint(info.snapshots[0].icount, ==, 3);
    block_info_clear(&info);
    g_assert_false(block_snapshot_delete(node, "none", &error));
    g_assert_cmpstr(error->message, ==, "Can't find the snapshot");
    block_unref(node);
}

/* A refcount that is full: refused, and as if nothing had been. */
static void test_overflow(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GByteArray) bytes = new_image("cluster_size=4k,refcount_bits=1");
    BlockNode *node = open_image(bytes, false, NULL, NULL);
    g_assert_cmpint(fill(node, 0, KIB(100), 1), ==, 0);
    g_assert_false(make(node, "a", &error));
    g_assert_cmpstr(error->message, ==, "-22 (Invalid argument)");
    assert_clean(node, false, false);
    block_unref(node);
}

typedef enum Act { ACT_CREATE, ACT_APPLY, ACT_DELETE, ACTS } Act;

static bool perform(BlockNode *node, Act act, GError **err)
{
    return act == ACT_CREATE  ? make(node, "new", err)
           : act == ACT_APPLY ? block_snapshot_apply(node, "old", err)
                              : block_snapshot_delete(node, "old", err);
}

/* An image with a snapshot "old" and something else since; what each holds. */
static GByteArray *prepared(const Kind *kind, GRand *random, uint8_t **old, uint8_t **now)
{
    GByteArray *bytes = new_image(kind->options);
    BlockNode *node = open_image(bytes, false, NULL, NULL);
    scribble(node, random, 10);
    *old = content(node);
    g_assert_true(make(node, "old", NULL));
    scribble(node, random, 10);
    *now = content(node);
    block_unref(node);
    return bytes;
}

/* The disk holds what it held, or (apply) what it then shall; "old", where it is, is whole. */
static void verify(GByteArray *bytes, const Kind *kind, Act act, const uint8_t *old,
                   const uint8_t *now, bool leaks)
{
    BlockInfo info;
    BlockNode *node = open_image(bytes, true, NULL, NULL);
    assert_clean(node, true, !kind->marked);
    g_autofree uint8_t *found = content(node);
    g_assert_true(!memcmp(found, now, DISK) || (act == ACT_APPLY && !memcmp(found, old, DISK)));
    block_info(node, &info);
    bool there = info.n_snapshots > 0 && !strcmp(info.snapshots[0].name, "old");
    block_info_clear(&info);
    block_unref(node);
    g_assert_true(there || act == ACT_DELETE);
    if (there) {
        node = open_image(bytes, true, "old", NULL);
        g_autofree uint8_t *viewed = content(node);
        g_assert_cmpmem(viewed, DISK, old, DISK);
        block_unref(node);
    }
    /* And it can be worked on: whoever opens it for writing repairs what a crash left. */
    node = open_image(bytes, false, NULL, NULL);
    assert_clean(node, leaks || !kind->marked, !kind->marked);
    g_assert_cmpint(fill(node, 0, 4096, 1), ==, 0);
    block_unref(node);
    if (there) {
        node = open_image(bytes, true, "old", NULL);
        g_autofree uint8_t *viewed = content(node);
        g_assert_cmpmem(viewed, DISK, old, DISK);
        block_unref(node);
    }
}

static bool keep_some(void *opaque)
{
    return g_rand_boolean(opaque);
}

/* The power goes at every write of making, applying and deleting. */
static void test_cut(gconstpointer data)
{
    const Kind *kind = data;
    bool few = g_getenv("LODGE_SANITIZED");
    GRand *random = g_rand_new_with_seed(g_test_rand_int());
    for (int act = 0; act < ACTS; act++) {
        uint8_t *old, *now;
        g_autoptr(GByteArray) initial = prepared(kind, random, &old, &now);
        g_autoptr(GByteArray) live = g_byte_array_new();
        g_byte_array_append(live, initial->data, initial->len);
        GArray *log = g_array_new(FALSE, FALSE, sizeof(MemoryEntry));
        BlockNode *node = open_image(live, false, NULL, log);
        g_assert_true(perform(node, (Act)act, NULL));
        block_unref(node);
        guint step = few ? 7 : 1;
        for (guint cut = 0; cut <= log->len; cut += MAX(step, log->len / 60)) {
            g_autoptr(GByteArray) after = g_byte_array_new();
            g_byte_array_append(after, initial->data, initial->len);
            guint flushed = cut;
            while (flushed > 0 && g_array_index(log, MemoryEntry, flushed - 1).op != MEMORY_FLUSH)
                flushed--;
            for (guint e = 0; e < cut; e++)
                memory_entry_apply(&g_array_index(log, MemoryEntry, e), after,
                                   e < flushed ? NULL : keep_some, random);
            verify(after, kind, (Act)act, old, now, false);
        }
        memory_log_free(log);
        g_free(old);
        g_free(now);
    }
    g_rand_free(random);
}

/* The nth operation of the file fails: said so, and the image is as before or as asked. */
static void test_failing(gconstpointer data)
{
    const Kind *kind = data;
    GRand *random = g_rand_new_with_seed(g_test_rand_int());
    for (int act = 0; act < ACTS; act++) {
        uint8_t *old, *now;
        g_autoptr(GByteArray) initial = prepared(kind, random, &old, &now);
        bool worked = false;
        for (uint64_t nth = 0; !worked; nth += 1 + nth / 8) {
            g_autoptr(GByteArray) bytes = g_byte_array_new();
            g_byte_array_append(bytes, initial->data, initial->len);
            BlockNode *node = open_image(bytes, false, NULL, NULL);
            MemoryFile *file = (MemoryFile *)node->file;
            file->fail_from = file->operations + nth;
            file->fail_until = file->fail_from + 1;
            worked = perform(node, (Act)act, NULL) && file->operations <= file->fail_from;
            file->fail_until = 0;
            block_unref(node);
            verify(bytes, kind, (Act)act, old, now, true);
        }
        g_free(old);
        g_free(now);
    }
    g_rand_free(random);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/disk/snapshot/vmstate", test_vmstate);
    g_test_add_func("/disk/snapshot/names", test_names);
    g_test_add_func("/disk/snapshot/overflow", test_overflow);
    for (size_t i = 0; i < G_N_ELEMENTS(kinds); i++) {
        g_autofree char *model = g_strdup_printf("/disk/snapshot/model/%s", kinds[i].name);
        g_autofree char *cut = g_strdup_printf("/disk/snapshot/cut/%s", kinds[i].name);
        g_autofree char *failing = g_strdup_printf("/disk/snapshot/failing/%s", kinds[i].name);
        g_test_add_data_func(model, &kinds[i], test_model);
        g_test_add_data_func(cut, &kinds[i], test_cut);
        g_test_add_data_func(failing, &kinds[i], test_failing);
    }
    return g_test_run();
}
