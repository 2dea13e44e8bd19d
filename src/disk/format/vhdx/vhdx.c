/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Hyper-V's virtual disks, version 2, dynamic and fixed. docs/format/vhdx.md */
#include "disk/format/vhdx/vhdx.h"

#include "base/bytes.h"
#include "base/error.h"
#include "disk/format/formats.h"

#include <errno.h>

static bool vhdx_probe(const uint8_t *head, size_t length)
{
    return length >= 8 && !memcmp(head, "vhdxfile", 8);
}

/* Makes room at the end of the file, aligned to 1 MiB. */
static int vhdx_reserve(BlockMap *m, uint32_t *entry)
{
    Vhdx *v = m->node->state;
    BlockFile *file = m->node->file;
    uint64_t start = v->next, end = start + m->block;
    if (start >> VHDX_PLACE_SHIFT >= VHDX_BAD)
        return -EFBIG;
    int result;
    if (file->block_device)
        result = end > m->limit ? -ENOSPC : file->ops->zero(file, start, m->block, true);
    else
        result = file->ops->truncate(file, end);
    if (result < 0)
        return result;
    *entry = (uint32_t)(start >> VHDX_PLACE_SHIFT);
    v->next = end;
    g_mutex_lock(&m->lock);
    m->limit = MAX(m->limit, end);
    g_mutex_unlock(&m->lock);
    return 0;
}

static const BlockMapOps map_ops = {.reserve = vhdx_reserve, .write_table = vhdx_write_table};

static uint32_t decode(uint64_t raw)
{
    switch (raw & VHDX_STATE_MASK) {
    case VHDX_PRESENT:
        return (uint32_t)MIN(raw >> VHDX_PLACE_SHIFT, (uint64_t)VHDX_BAD);
    case VHDX_PARTIAL: /* only differencing images have such */
    case 4:
        return VHDX_BAD;
    default: /* not present, undefined, zero, unmapped, and unmapped as version 0.95 had it */
        return VHDX_NONE;
    }
}

static bool load_table(BlockNode *node, GError **err)
{
    Vhdx *v = vhdx_of(node);
    BlockMap *m = &v->map;
    g_autofree uint8_t *piece = g_malloc(VHDX_TABLE_BYTES);
    m->blocks = (node->size + m->block - 1) / m->block;
    uint64_t bytes = vhdx_entries(m->blocks, v->chunk) * 8;
    if (bytes > v->bat_bytes || !range_within(v->bat_at, bytes, m->limit))
        return lodge_fail(
            err, LODGE_ERROR_CORRUPT,
            "%s: its VHDX block allocation table is too short for the disk's %" G_GUINT64_FORMAT
            " blocks",
            node->path, m->blocks);
    if (!blockmap_allocate(m, err))
        return false;
    for (uint64_t done = 0; done < bytes; done += VHDX_TABLE_BYTES) {
        uint64_t length = MIN(VHDX_TABLE_BYTES, bytes - done);
        int result = block_file_read(node->file, v->bat_at + done, piece, length);
        if (result < 0)
            return lodge_fail_errno(err, -result, "%s: cannot read its block table", node->path);
        for (uint64_t i = 0; i < length / 8; i++) {
            uint64_t raw = done / 8 + i, within = raw % (v->chunk + 1);
            if (within < v->chunk)
                m->table[raw / (v->chunk + 1) * v->chunk + within] =
                    decode(le64_get(piece + i * 8));
        }
    }
    return true;
}

/* True when [start, end) touches the log or a region. */
static bool in_region(const Vhdx *v, uint64_t start, uint64_t end)
{
    unsigned low = 0, high = v->n_spans;
    while (low < high) { /* the first span that ends behind start */
        unsigned middle = low + (high - low) / 2;
        if (v->spans[middle].end > start)
            high = middle;
        else
            low = middle + 1;
    }
    return low < v->n_spans && v->spans[low].start < end;
}

/* What is wrong with entry @index, to be freed; NULL: nothing. In QEMU's words where it has some.
 */
static char *find_fault(const Vhdx *v, uint64_t index)
{
    const BlockMap *m = &v->map;
    uint32_t entry = m->table[index];
    uint64_t raw = index + index / v->chunk, start = blockmap_offset(m, entry);
    uint64_t used = MIN(m->block, m->node->size - index * m->block);
    if (entry == VHDX_NONE)
        return NULL;
    if (entry == VHDX_BAD)
        return g_strdup_printf("VHDX BAT entry %" G_GUINT64_FORMAT " offset overflow.", raw);
    if (start >= m->limit)
        return g_strdup_printf("VHDX BAT entry %" G_GUINT64_FORMAT
                               " start offset %" G_GUINT64_FORMAT
                               " points after end of file (%" G_GUINT64_FORMAT "). Image has "
                               "probably been truncated.",
                               raw, start, m->limit);
    if (used > m->limit - start) /* the last one may be there in part */
        return g_strdup_printf("VHDX BAT entry %" G_GUINT64_FORMAT " end offset %" G_GUINT64_FORMAT
                               " points after end of file (%" G_GUINT64_FORMAT "). Image has "
                               "probably been truncated.",
                               raw, start + used - 1, m->limit);
    if (start < VHDX_ALIGNMENT || in_region(v, start, start + m->block))
        return g_strdup_printf("VHDX BAT entry %" G_GUINT64_FORMAT
                               ": its block at %" G_GUINT64_FORMAT
                               " lies on the image's own structures.",
                               raw, start);
    return NULL;
}

static uint64_t scan_table(Vhdx *v, BlockCheck *check, char **first)
{
    const BlockMap *m = &v->map;
    uint64_t faults = 0;
    for (uint64_t i = 0; i < m->blocks; i++) {
        char *fault = find_fault(v, i);
        if (!fault) {
            if (m->table[i] != VHDX_NONE)
                v->next = MAX(v->next, blockmap_offset(m, m->table[i]) + m->block);
            continue;
        }
        faults++;
        if (check && check->message)
            check->message(check->opaque, fault);
        if (first && !*first)
            *first = fault;
        else
            g_free(fault);
    }
    return faults;
}

/* Where blocks that must not be written are is not known to callers of blockmap: no such opening.
 */
static bool check_table(BlockNode *node, const BlockOpen *options, GError **err)
{
    Vhdx *v = vhdx_of(node);
    g_autofree char *fault = NULL;
    scan_table(v, NULL, &fault);
    if (fault && !node->read_only && !options->repair)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "%s: %s", node->path, fault);
    if (!node->file->block_device)
        v->next = MAX(v->next, align_up(v->map.limit, VHDX_ALIGNMENT));
    return true;
}

static bool vhdx_open(BlockNode *node, const BlockOpen *options, GError **err)
{
    Vhdx *v = g_new0(Vhdx, 1);
    BlockMap *m = &v->map;
    node->state = v;
    m->node = node;
    if (!vhdx_read_headers(node, err) || !vhdx_replay(node, err) || !vhdx_read_regions(node, err) ||
        !vhdx_read_metadata(node, err))
        return false;
    if (!node->read_only && v->log_length == 0)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "%s: a VHDX image without a log can only be opened read-only",
                          node->path);
    v->log_sequence = 1;
    m->unit = VHDX_ALIGNMENT;
    m->none_from = VHDX_NONE;
    return blockmap_init(m, node, &map_ops, err) && load_table(node, err) &&
           check_table(node, options, err);
}

static void vhdx_close(BlockNode *node)
{
    Vhdx *v = node->state;
    if (!v)
        return;
    if (!node->read_only && v->map.table)
        vhdx_end_writing(node);
    blockmap_clear(&v->map);
    g_free(v);
    node->state = NULL;
}

static int begin(BlockNode *node)
{
    return g_atomic_int_get(&vhdx_of(node)->writing) ? 0 : vhdx_begin_writing(node);
}

static int vhdx_readv(BlockNode *node, uint64_t offset, const struct iovec *iov, int n)
{
    return blockmap_readv(&vhdx_of(node)->map, offset, iov, n);
}

static int vhdx_writev(BlockNode *node, uint64_t offset, const struct iovec *iov, int n)
{
    int result = begin(node);
    return result < 0 ? result : blockmap_writev(&vhdx_of(node)->map, offset, iov, n);
}

static int vhdx_write_zeroes(BlockNode *node, uint64_t offset, uint64_t length, bool unmap)
{
    int result = begin(node);
    return result < 0 ? result : blockmap_write_zeroes(&vhdx_of(node)->map, offset, length, unmap);
}

static int vhdx_discard(BlockNode *node, uint64_t offset, uint64_t length)
{
    int result = begin(node);
    return result < 0 ? result : blockmap_discard(&vhdx_of(node)->map, offset, length);
}

static int vhdx_flush(BlockNode *node)
{
    return blockmap_flush(&vhdx_of(node)->map);
}

static bool vhdx_flush_is_plain(BlockNode *node)
{
    return blockmap_flush_is_plain(&vhdx_of(node)->map);
}

static int vhdx_status(BlockNode *node, uint64_t offset, uint64_t length, BlockExtent *extent)
{
    return blockmap_status(&vhdx_of(node)->map, offset, length, extent);
}

static bool vhdx_fast_begin(BlockNode *node, bool write, uint64_t offset, uint64_t length,
                            BlockFast *fast)
{
    Vhdx *v = vhdx_of(node);
    return (!write || g_atomic_int_get(&v->writing)) &&
           blockmap_fast_begin(&v->map, write, offset, length, fast);
}

static void vhdx_fast_end(BlockNode *node, BlockFast *fast)
{
}

static void vhdx_info(BlockNode *node, BlockInfo *info)
{
    info->cluster_size = vhdx_of(node)->map.block;
}

/* A log that was replayed when the image was opened counts as one thing repaired. */
static bool vhdx_check(BlockNode *node, BlockCheck *check, GError **err)
{
    Vhdx *v = vhdx_of(node);
    check->corruptions_fixed += v->replayed;
    v->replayed = false;
    check->corruptions += scan_table(v, check, NULL);
    return true;
}

const BlockFormat block_format_vhdx = {
    .name = "vhdx",
    .probe = vhdx_probe,
    .open = vhdx_open,
    .close = vhdx_close,
    .readv = vhdx_readv,
    .writev = vhdx_writev,
    .write_zeroes = vhdx_write_zeroes,
    .discard = vhdx_discard,
    .flush = vhdx_flush,
    .status = vhdx_status,
    .fast_begin = vhdx_fast_begin,
    .fast_end = vhdx_fast_end,
    .flush_is_plain = vhdx_flush_is_plain,
    .create_options = vhdx_create_options,
    .create_check = vhdx_create_check,
    .create = vhdx_create,
    .info = vhdx_info,
    .check = vhdx_check,
};
