/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Consistency ("Consistency checking" in the specification): each cluster referred to once, each
 * place within the file. Entries that lead nowhere are cleared by a repair; clusters that two
 * entries refer to stay as they are. Reads the tables from the file, one piece at a time.
 */
#include "base/bytes.h"
#include "base/error.h"
#include "disk/format/qed/qed.h"

#include <errno.h>

#define PIECE_BYTES  KIB(64)
#define CLUSTERS_MAX (8ull << 30) /* bits of memory: a file of 32 TiB with the smallest clusters   \
                                   */

typedef struct Walk {
    Qed *q;
    BlockCheck *check;
    uint64_t file_size, clusters;
    uint8_t *used; /* a bit for each cluster of the file */
    bool fix, failed;
} Walk;

static void say(const Walk *w, const char *format, uint64_t a, uint64_t b)
{
    if (!w->check->message)
        return;
    g_autofree char *text = g_strdup_printf(
        "ERROR: %s 0x%" G_GINT64_MODIFIER "x refers to 0x%" G_GINT64_MODIFIER "x", format, a, b);
    w->check->message(w->check->opaque, text);
}

/* False when one of them was in use. */
static bool use(Walk *w, uint64_t offset, uint64_t length)
{
    bool first = true;
    for (uint64_t c = offset / w->q->cluster; c < (offset + length) / w->q->cluster; c++) {
        uint8_t bit = (uint8_t)(1u << (c % 8));
        if (w->used[c / 8] & bit) {
            first = false;
            w->check->corruptions++;
        }
        w->used[c / 8] |= bit;
    }
    return first;
}

/* The entry leads nowhere. True: it was cleared in @p. */
static bool clear_entry(Walk *w, uint8_t *p)
{
    if (!w->fix) {
        w->check->corruptions++;
        return false;
    }
    le64_put(p, 0);
    w->check->corruptions_fixed++;
    return true;
}

typedef bool (*VisitEntry)(Walk *w, uint64_t at, uint8_t *p, uint64_t *state);

static void walk_table(Walk *w, uint64_t table, VisitEntry visit)
{
    BlockFile *file = w->q->node->file;
    g_autofree uint8_t *piece = g_malloc(PIECE_BYTES);
    uint64_t state = 0;
    for (uint64_t done = 0; done < w->q->table_bytes; done += PIECE_BYTES) {
        uint64_t length = MIN(PIECE_BYTES, w->q->table_bytes - done);
        bool changed = false;
        int result = block_file_read(file, table + done, piece, length);
        for (uint64_t i = 0; i < length && result == 0; i += 8) {
            if (le64_get(piece + i))
                changed |= visit(w, table + done + i, piece + i, &state);
        }
        if (result == 0 && changed)
            result = block_file_write(file, table + done, piece, length);
        if (result < 0) {
            w->check->errors++;
            w->failed = true;
            return;
        }
    }
}

static bool visit_l2(Walk *w, uint64_t at, uint8_t *p, uint64_t *last)
{
    uint64_t offset = le64_get(p);
    if (offset == QED_ZERO)
        return false;
    w->check->allocated_clusters++;
    w->check->fragmented_clusters += *last && *last + w->q->cluster != offset;
    *last = offset;
    if (!qed_place_valid(w->q, offset, w->q->cluster, w->file_size)) {
        say(w, "the L2 entry at", at, offset);
        return clear_entry(w, p);
    }
    if (!use(w, offset, w->q->cluster))
        say(w, "a cluster is in use twice: the L2 entry at", at, offset);
    return false;
}

static bool visit_l1(Walk *w, uint64_t at, uint8_t *p, uint64_t *unused)
{
    uint64_t offset = le64_get(p);
    if (!qed_place_valid(w->q, offset, w->q->table_bytes, w->file_size)) {
        say(w, "the L1 entry at", at, offset);
        return clear_entry(w, p);
    }
    if (use(w, offset, w->q->table_bytes))
        walk_table(w, offset, visit_l2);
    else
        say(w, "a table is in use twice: the L1 entry at", at, offset);
    return false;
}

static void count_leaks(Walk *w)
{
    for (uint64_t c = w->q->first / w->q->cluster; c < w->clusters; c++)
        w->check->leaks += !(w->used[c / 8] & (1u << (c % 8)));
}

/* The flag goes once nothing is wrong any more. */
static bool mark_clean(Walk *w, GError **err)
{
    uint8_t header[QED_HEADER_BYTES];
    uint64_t features = le64_get(w->q->header + QED_FEATURES);
    if (w->check->corruptions || w->check->errors || !(features & QED_NEED_CHECK))
        return true;
    memcpy(header, w->q->header, sizeof(header));
    le64_put(header + QED_FEATURES, features & ~(uint64_t)QED_NEED_CHECK);
    int result = qed_write_header(w->q, header);
    return result == 0 ||
           lodge_fail_errno(err, -result, "%s: cannot write its header", w->q->node->path);
}

bool qed_check_tables(BlockNode *node, BlockCheck *check, GError **err)
{
    Qed *q = qed_of(node);
    Walk w = {
        .q = q, .check = check, .fix = check->repair != BLOCK_REPAIR_NONE && !node->read_only};
    int result = node->file->ops->size(node->file, &w.file_size);
    if (result < 0)
        return lodge_fail_errno(err, -result, "%s: cannot find its size", node->path);
    w.clusters = w.file_size / q->cluster;
    g_autofree uint8_t *used =
        w.clusters <= CLUSTERS_MAX ? g_try_malloc0(w.clusters / 8 + 1) : NULL;
    if (!used)
        return lodge_fail(err, LODGE_ERROR_LIMIT,
                          "%s: no memory to check %" G_GUINT64_FORMAT " clusters", node->path,
                          w.clusters);
    w.used = used;
    check->total_clusters = (node->size + q->cluster - 1) / q->cluster;
    uint64_t l1 = le64_get(q->header + QED_L1_TABLE);
    use(&w, l1, q->table_bytes);
    walk_table(&w, l1, visit_l1);
    if (w.failed)
        return true;
    count_leaks(&w);
    return !w.fix || mark_clean(&w, err);
}
