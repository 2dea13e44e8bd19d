/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Parallels' expandable images, with both magics. docs/format/parallels.md */
#include "disk/format/parallels/parallels.h"

#include "base/bytes.h"
#include "base/error.h"
#include "disk/format/formats.h"

#include <errno.h>

static bool magic_plain(const uint8_t *head)
{
    return !memcmp(head, "WithoutFreeSpace", 16);
}

static bool parallels_probe(const uint8_t *head, size_t length)
{
    return length >= PARALLELS_HEADER_BYTES && le32_get(head + PARALLELS_VERSION) == 2 &&
           (magic_plain(head) || !memcmp(head, "WithouFreSpacExt", 16));
}

static const BlockOption parallels_open_options[] = {
    {"prealloc-size", BLOCK_OPTION_SIZE, "Preallocation size on image expansion", "128M"},
    {"prealloc-mode", BLOCK_OPTION_STRING,
     "Preallocation mode on image expansion (allowed values: falloc, truncate)", "falloc"},
    {NULL, 0, NULL, NULL},
};

/* Grows the file up to @end, and ahead of it if that can be. Behind @start it reads as zero. */
static int grow(Parallels *p, BlockFile *file, uint64_t start, uint64_t end)
{
    uint64_t ahead = end + p->preallocate;
    int result = p->falloc ? file->ops->zero(file, start, ahead - start, false)
                           : file->ops->truncate(file, ahead);
    if (result < 0) { /* no room for so much */
        ahead = end;
        result = file->ops->truncate(file, ahead);
    }
    if (result == 0)
        p->file_end = ahead;
    return result;
}

static int parallels_reserve(BlockMap *m, uint32_t *entry)
{
    Parallels *p = m->node->state;
    BlockFile *file = m->node->file;
    uint64_t start = p->next, end = start + m->block;
    int result = 0;
    if (start / m->unit >= PARALLELS_NONE)
        return -EFBIG;
    if (file->block_device) {
        result = end > m->limit ? -ENOSPC : file->ops->zero(file, start, m->block, true);
    } else {
        if (start < p->stale) /* left by a crash */
            result = file->ops->zero(file, start, MIN(end, p->stale) - start, true);
        if (result == 0 && end > p->file_end)
            result = grow(p, file, MAX(start, p->file_end), end);
    }
    if (result < 0)
        return result;
    *entry = (uint32_t)(start / m->unit);
    p->next = end;
    g_mutex_lock(&m->lock);
    m->limit = MAX(m->limit, end);
    g_mutex_unlock(&m->lock);
    return 0;
}

static uint32_t parallels_decode(const void *bytes)
{
    uint32_t entry = le32_get(bytes);
    return entry ? MIN(entry, PARALLELS_NONE - 1) : PARALLELS_NONE;
}

static void parallels_encode(void *bytes, uint32_t entry)
{
    le32_put(bytes, entry == PARALLELS_NONE ? 0 : entry);
}

static const BlockMapOps map_ops = {
    .reserve = parallels_reserve,
    .decode = parallels_decode,
    .encode = parallels_encode,
};

/* In QEMU's words. */
static bool read_header(BlockNode *node, const uint8_t *h, GError **err)
{
    Parallels *p = parallels_of(node);
    BlockMap *m = &p->map;
    uint64_t tracks = le32_get(h + PARALLELS_TRACKS), sectors = le64_get(h + PARALLELS_SECTORS);
    if (!parallels_probe(h, PARALLELS_HEADER_BYTES))
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "Image not in Parallels format");
    if (tracks == 0)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "Invalid image: Zero sectors per track");
    if (tracks > PARALLELS_CLUSTER_MAX)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "Invalid image: Too big cluster");
    m->block = tracks * PARALLELS_SECTOR;
    m->unit = magic_plain(h) ? PARALLELS_SECTOR : m->block;
    if (magic_plain(h))
        sectors &= UINT32_MAX;
    m->blocks = le32_get(h + PARALLELS_ENTRIES);
    m->table_offset = PARALLELS_HEADER_BYTES;
    m->none_from = PARALLELS_NONE;
    if (m->blocks > BLOCKMAP_TABLE_MAX / 4)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "Catalog too large");
    if (sectors / tracks + (sectors % tracks != 0) > m->blocks)
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "%s: %" G_GUINT64_FORMAT
                          " clusters are too few for a disk of %" G_GUINT64_FORMAT " sectors",
                          node->path, m->blocks, sectors);
    node->size = sectors * PARALLELS_SECTOR;
    p->data = (uint64_t)le32_get(h + PARALLELS_DATA) * PARALLELS_SECTOR;
    p->extension = le64_get(h + PARALLELS_EXTENSION);
    if (p->extension > (INT64_MAX - m->block) / PARALLELS_SECTOR)
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "%s: its format extension cannot be where it is", node->path);
    p->extension *= PARALLELS_SECTOR;
    p->extension_end = p->extension ? p->extension + m->block : 0;
    p->unclean = le32_get(h + PARALLELS_INUSE) == PARALLELS_IN_USE;
    uint64_t head = align_up(PARALLELS_HEADER_BYTES + m->blocks * 4, PARALLELS_SECTOR);
    if (p->data == 0)
        p->data = head;
    if (p->data < align_down(PARALLELS_HEADER_BYTES + m->blocks * 4, PARALLELS_SECTOR))
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "%s: its data begins within its table",
                          node->path);
    p->data = MAX(p->data, head);
    return true;
}

/* Where new clusters go: behind all that is there. */
static bool look_at_table(BlockNode *node, const BlockOpen *options, GError **err)
{
    Parallels *p = parallels_of(node);
    BlockMap *m = &p->map;
    p->next = MAX(p->data, p->extension_end);
    for (uint64_t i = 0; i < m->blocks; i++) {
        uint64_t offset = blockmap_offset(m, m->table[i]);
        if (m->table[i] == PARALLELS_NONE)
            continue;
        if (offset >= m->limit || offset < p->data) {
            if (!node->read_only && !options->repair)
                return lodge_fail(err, LODGE_ERROR_CORRUPT,
                                  "%s: cluster %" G_GUINT64_FORMAT " is outside image; it can be "
                                  "opened read-only",
                                  node->path, i);
            continue;
        }
        p->next = MAX(p->next, offset + m->block);
    }
    /* With the extended magic, places are whole clusters. */
    p->next = (p->next + m->unit - 1) / m->unit * m->unit;
    p->file_end = p->stale = m->limit;
    return true;
}

static bool read_options(BlockNode *node, const BlockOpen *options, GError **err)
{
    Parallels *p = parallels_of(node);
    if (!block_option_size(options->options, parallels_open_options, "prealloc-size",
                           &p->preallocate, err))
        return false;
    const char *mode =
        block_option_string(options->options, parallels_open_options, "prealloc-mode");
    p->falloc = !strcmp(mode, "falloc");
    if (!p->falloc && strcmp(mode, "truncate"))
        return lodge_fail(err, LODGE_ERROR_INVALID, "invalid parameter value: %s", mode);
    p->preallocate = MIN(p->preallocate, GIB(1024));
    return true;
}

static bool parallels_open(BlockNode *node, const BlockOpen *options, GError **err)
{
    uint8_t h[PARALLELS_HEADER_BYTES];
    Parallels *p = g_new0(Parallels, 1);
    node->state = p;
    int result = block_file_read(node->file, 0, h, sizeof(h));
    if (result < 0)
        return lodge_fail_errno(err, -result, "%s: cannot read its header", node->path);
    if (!read_header(node, h, err) || !read_options(node, options, err))
        return false;
    if (p->unclean && !node->read_only && !options->repair)
        return lodge_fail(err, LODGE_ERROR_DENIED,
                          "parallels: Image was not closed correctly; cannot be opened read/write");
    if (!blockmap_init(&p->map, node, &map_ops, err) || !blockmap_load(&p->map, err) ||
        !look_at_table(node, options, err))
        return false;
    /* Whoever writes makes the extension void: an "in use" of 0 says so when it is closed. */
    return !node->read_only || !p->extension || parallels_read_extension(node, err);
}

/* The image itself cannot name a backing file; options of an opening can. */
static bool parallels_activate(BlockNode *node, GError **err)
{
    return !node->backing || lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                                        "%s: parallels images with a backing file are not supported",
                                        node->path);
}

static int write_in_use(BlockNode *node, uint32_t value)
{
    uint8_t field[4];
    le32_put(field, value);
    int result = block_file_write(node->file, PARALLELS_INUSE, field, sizeof(field));
    return result == 0 ? block_node_sync(node) : result;
}

static int begin(BlockNode *node)
{
    Parallels *p = parallels_of(node);
    int result = 0;
    if (g_atomic_int_get(&p->writing))
        return 0;
    g_mutex_lock(&p->map.change);
    if (!g_atomic_int_get(&p->writing)) {
        result = write_in_use(node, PARALLELS_IN_USE);
        if (result == 0)
            g_atomic_int_set(&p->writing, 1);
    }
    g_mutex_unlock(&p->map.change);
    return result;
}

/* The room that was made ahead goes; the header says that all is well. */
static void end_writing(BlockNode *node)
{
    Parallels *p = parallels_of(node);
    if (!g_atomic_int_get(&p->writing) || blockmap_flush(&p->map) < 0 || block_node_sync(node) < 0)
        return;
    if (p->file_end > p->next && !node->file->block_device)
        node->file->ops->truncate(node->file, p->next);
    write_in_use(node, 0);
}

static void parallels_close(BlockNode *node)
{
    Parallels *p = node->state;
    if (!p)
        return;
    if (!node->read_only && p->map.table)
        end_writing(node);
    blockmap_clear(&p->map);
    g_free(p);
    node->state = NULL;
}

static int parallels_readv(BlockNode *node, uint64_t offset, const struct iovec *iov, int n)
{
    return blockmap_readv(&parallels_of(node)->map, offset, iov, n);
}

static int parallels_writev(BlockNode *node, uint64_t offset, const struct iovec *iov, int n)
{
    int result = begin(node);
    return result < 0 ? result : blockmap_writev(&parallels_of(node)->map, offset, iov, n);
}

static int parallels_write_zeroes(BlockNode *node, uint64_t offset, uint64_t length, bool unmap)
{
    int result = begin(node);
    return result < 0 ? result
                      : blockmap_write_zeroes(&parallels_of(node)->map, offset, length, unmap);
}

static int parallels_discard(BlockNode *node, uint64_t offset, uint64_t length)
{
    int result = begin(node);
    return result < 0 ? result : blockmap_discard(&parallels_of(node)->map, offset, length);
}

static int parallels_flush(BlockNode *node)
{
    return blockmap_flush(&parallels_of(node)->map);
}

static bool parallels_flush_is_plain(BlockNode *node)
{
    return blockmap_flush_is_plain(&parallels_of(node)->map);
}

static int parallels_status(BlockNode *node, uint64_t offset, uint64_t length, BlockExtent *extent)
{
    int result = blockmap_status(&parallels_of(node)->map, offset, length, extent);
    if (result == 0)
        extent->present = extent->data;
    return result;
}

static bool parallels_fast_begin(BlockNode *node, bool write, uint64_t offset, uint64_t length,
                                 BlockFast *fast)
{
    Parallels *p = parallels_of(node);
    return (!write || g_atomic_int_get(&p->writing)) &&
           blockmap_fast_begin(&p->map, write, offset, length, fast);
}

static void parallels_fast_end(BlockNode *node, BlockFast *fast)
{
}

static void parallels_info(BlockNode *node, BlockInfo *info)
{
    info->no_dirty_flag = true; /* QEMU says nothing of clusters or the mark */
}

const BlockFormat block_format_parallels = {
    .name = "parallels",
    .probe = parallels_probe,
    .open = parallels_open,
    .activate = parallels_activate,
    .close = parallels_close,
    .readv = parallels_readv,
    .writev = parallels_writev,
    .write_zeroes = parallels_write_zeroes,
    .discard = parallels_discard,
    .flush = parallels_flush,
    .status = parallels_status,
    .fast_begin = parallels_fast_begin,
    .fast_end = parallels_fast_end,
    .flush_is_plain = parallels_flush_is_plain,
    .open_options = parallels_open_options,
    .create_options = parallels_create_options,
    .create_check = parallels_create_check,
    .create = parallels_create,
    .info = parallels_info,
    .check = parallels_check,
};
