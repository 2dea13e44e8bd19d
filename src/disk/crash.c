/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "disk/crash.h"

#include "base/bytes.h"

#include <stdlib.h>
#include <string.h>

#define SECTOR 512u

/* What the guest did: [start, end) in the log of the file, sectors, the byte they were set to. */
typedef struct Guest {
    guint start, end;
    bool flush, failed;
    uint64_t first, sectors;
    uint8_t value;
} Guest;

void crash_begin(CrashRun *run, uint64_t sectors, uint8_t first)
{
    run->sectors = sectors;
    run->first_model = g_malloc(sectors);
    memset(run->first_model, first, sectors);
    run->initial = g_byte_array_new();
    g_byte_array_append(run->initial, run->live->data, run->live->len);
    run->log = g_array_new(FALSE, FALSE, sizeof(MemoryEntry));
    run->guest = g_array_new(FALSE, FALSE, sizeof(Guest));
    run->random = g_rand_new_with_seed(g_test_rand_int());
}

void crash_end(CrashRun *run)
{
    if (run->log)
        memory_log_free(run->log);
    if (run->guest)
        g_array_unref(run->guest);
    if (run->random)
        g_rand_free(run->random);
    if (run->initial)
        g_byte_array_unref(run->initial);
    g_byte_array_unref(run->live);
    g_free(run->first_model);
}

static BlockNode *open_bytes(const CrashRun *run, MemoryFile *file, bool read_only)
{
    g_autoptr(GError) error = NULL;
    BlockNode *node = run->open(run->opaque, &file->file, read_only, &error);
    if (!node)
        g_error("%s: %s", run->name, error->message);
    return node;
}

static void operate(CrashRun *run, BlockNode *node, uint8_t *buffer)
{
    Guest g = {.start = run->log->len};
    int result, kind = g_rand_int_range(run->random, 0, 100);
    int most = g_rand_int_range(run->random, 0, 4) ? 16 : 300;
    g.first = (uint64_t)g_rand_int_range(run->random, 0, (int)run->sectors);
    g.sectors = (uint64_t)g_rand_int_range(run->random, 1, most);
    g.sectors = MIN(g.sectors, run->sectors - g.first);
    uint64_t offset = g.first * SECTOR, length = g.sectors * SECTOR;
    if (kind < 12) {
        g.flush = true;
        result = block_flush(node);
    } else if (kind < 35) {
        result = block_write_zeroes(node, offset, length, kind & 1 ? BLOCK_UNMAP : 0);
    } else {
        g.value = (uint8_t)g_rand_int_range(run->random, 1, 256);
        memset(buffer, g.value, length);
        struct iovec iov = {buffer, length};
        result = block_writev(node, offset, &iov, 1, 0);
    }
    g.failed = result < 0;
    g.end = run->log->len;
    g_array_append_val(run->guest, g);
}

void crash_work(CrashRun *run, unsigned operations)
{
    BlockNode *node =
        open_bytes(run, memory_file_new(run->live, CRASH_FILE_LIMIT, run->log), false);
    g_autofree uint8_t *buffer = g_malloc(KIB(300));
    g_array_set_size(run->guest, 0);
    for (unsigned i = 0; i < operations; i++) {
        operate(run, node, buffer);
        g_assert_false(g_array_index(run->guest, Guest, i).failed);
    }
    block_unref(node);
}

static bool keep(void *opaque)
{
    CrashRun *run = opaque;
    return g_rand_int_range(run->random, 0, 100) < run->keep_percent;
}

static bool covers(const Guest *g, uint64_t s)
{
    return !g->flush && s >= g->first && s < g->first + g->sectors;
}

/* May sector @s hold @value after a cut at @cut? */
static bool acceptable_cut(const CrashRun *run, uint64_t s, uint8_t value, guint cut)
{
    uint8_t durable = run->first_model[s];
    guint last = 0;
    for (guint i = 0; i < run->guest->len; i++) {
        const Guest *g = &g_array_index(run->guest, Guest, i);
        if (g->flush && g->end <= cut)
            last = i;
    }
    for (guint i = 0; i < run->guest->len; i++) {
        const Guest *g = &g_array_index(run->guest, Guest, i);
        if (!covers(g, s))
            continue;
        if (i < last)
            durable = g->value;
        else if (g->start <= cut && g->value == value)
            return true;
    }
    return durable == value;
}

/* May sector @s hold @value after all, where a failed write may have happened or not? */
static bool acceptable_failed(const CrashRun *run, uint64_t s, uint8_t value)
{
    bool possible = run->first_model[s] == value;
    for (guint i = 0; i < run->guest->len; i++) {
        const Guest *g = &g_array_index(run->guest, Guest, i);
        if (covers(g, s))
            possible = g->value == value || (possible && g->failed);
    }
    return possible;
}

#define NO_CUT G_MAXUINT

static void report(void *opaque, const char *text)
{
    g_test_message("%s: %s", ((CrashRun *)opaque)->name, text);
}

static void verify(CrashRun *run, GByteArray *bytes, guint cut)
{
    g_autoptr(GError) error = NULL;
    BlockNode *node = open_bytes(run, memory_file_new(bytes, CRASH_FILE_LIMIT, NULL), true);
    BlockCheck check = {.repair = BLOCK_REPAIR_NONE, .message = report, .opaque = run};
    if (block_can_check(node)) {
        g_assert_true(block_check(node, &check, &error));
        g_assert_cmpuint(check.corruptions, ==, 0);
    }
    g_autofree uint8_t *all = g_malloc(run->sectors * SECTOR);
    struct iovec iov = {all, run->sectors * SECTOR};
    g_assert_cmpint(block_readv(node, 0, &iov, 1), ==, 0);
    for (uint64_t s = 0; s < run->sectors; s++) {
        const uint8_t *sector = all + s * SECTOR;
        for (unsigned i = 1; i < SECTOR; i++)
            g_assert_cmpuint(sector[i], ==, sector[0]);
        if (cut == NO_CUT ? !acceptable_failed(run, s, sector[0])
                          : !acceptable_cut(run, s, sector[0], cut))
            g_error("%s: sector %" G_GUINT64_FORMAT " holds %u after %s %u", run->name, s,
                    sector[0], cut == NO_CUT ? "a failure; seed" : "a cut at", cut);
    }
    block_unref(node);
}

static int compare_cuts(gconstpointer a, gconstpointer b)
{
    return (int)*(const guint *)a - (int)*(const guint *)b;
}

void crash_cut(CrashRun *run, unsigned cuts)
{
    g_autofree guint *points = g_new(guint, cuts);
    for (unsigned i = 0; i < cuts; i++)
        points[i] = (guint)g_rand_int_range(run->random, 0, (int)run->log->len + 1);
    qsort(points, cuts, sizeof(guint), compare_cuts);
    GByteArray *durable = run->initial; /* what is on the disk for certain */
    guint applied = 0;
    for (unsigned i = 0; i < cuts; i++) {
        guint flushed = points[i];
        while (flushed > applied && g_array_index(run->log, MemoryEntry, flushed - 1).op != MEMORY_FLUSH)
            flushed--;
        for (; applied < flushed; applied++)
            memory_entry_apply(&g_array_index(run->log, MemoryEntry, applied), durable, NULL, NULL);
        g_autoptr(GByteArray) after = g_byte_array_new();
        g_byte_array_append(after, durable->data, durable->len);
        static const int chances[] = {0, 15, 50, 85, 100};
        run->keep_percent = chances[i % G_N_ELEMENTS(chances)];
        for (guint e = applied; e < points[i]; e++)
            memory_entry_apply(&g_array_index(run->log, MemoryEntry, e), after, keep, run);
        verify(run, after, points[i]);
    }
}

void crash_fail(CrashRun *run, unsigned operations, unsigned rounds)
{
    g_autofree uint8_t *buffer = g_malloc(KIB(300));
    uint64_t most = operations * 4; /* of the file, about */
    for (unsigned round = 0; round < rounds; round++) {
        g_autoptr(GByteArray) bytes = g_byte_array_new();
        g_byte_array_append(bytes, run->initial->data, run->initial->len);
        g_array_set_size(run->guest, 0);
        MemoryFile *file = memory_file_new(bytes, CRASH_FILE_LIMIT, NULL);
        BlockNode *node = open_bytes(run, file, false);
        file->fail_from = file->operations + (uint64_t)g_rand_int_range(run->random, 0, (int)most);
        file->fail_until = file->fail_from + 1;
        for (unsigned i = 0; i < operations; i++)
            operate(run, node, buffer);
        /* Flushed before the file is closed: the failure is over, or comes in it. */
        file->fail_until = MIN(file->fail_until, file->operations);
        g_assert_cmpint(block_flush(node), ==, 0);
        block_unref(node);
        verify(run, bytes, NO_CUT);
    }
}
