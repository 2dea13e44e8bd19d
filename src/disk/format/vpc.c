/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * VHD images as Virtual PC and Hyper-V make them, fixed and dynamic. "Virtual Hard Disk Image
 * Format Specification", Microsoft, version 1.0, 2006. docs/format/vpc.md
 */
#include "disk/format/vpc.h"

#include "base/bytes.h"
#include "base/error.h"
#include "disk/format/formats.h"

#include <errno.h>
#include <string.h>

#define BLOCK_SIZE_MIN KIB(4)
#define BLOCK_SIZE_MAX MIB(64)

typedef struct Vpc {
    BlockMap map;
    bool fixed, differencing;
    uint8_t footer[VPC_FOOTER_BYTES];
    uint64_t bitmap; /* bytes of the bitmap before each block */
    uint64_t end;    /* of the last structure: where the footer is, and the next block goes */
    VpcDiff diff;    /* of a differencing image */
    uint8_t parent_uuid[16];
} Vpc;

uint32_t vpc_checksum(const uint8_t *bytes, size_t length, size_t at)
{
    uint32_t sum = 0;
    for (size_t i = 0; i < length; i++) {
        if (i < at || i >= at + 4)
            sum += bytes[i];
    }
    return ~sum;
}

uint64_t vpc_bitmap_bytes(uint64_t block)
{
    return align_up((block / VPC_SECTOR + 7) / 8, VPC_SECTOR);
}

static bool has_cookie(const uint8_t *footer)
{
    return !memcmp(footer + VPC_COOKIE, "conectix", 8);
}

static bool footer_valid(const uint8_t *footer)
{
    return has_cookie(footer) && be32_get(footer + VPC_CHECKSUM) ==
                                     vpc_checksum(footer, VPC_FOOTER_BYTES, VPC_CHECKSUM);
}

/* A fixed image starts with the guest's own bytes: only a dynamic one is found by probing. */
static bool vpc_probe(const uint8_t *head, size_t length)
{
    return length >= VPC_FOOTER_BYTES && has_cookie(head);
}

/*
 * The footer at the end of the file decides; its copy at the start, which in a fixed image the
 * guest can write, only stands in for one that is lost.
 */
static bool find_footer(BlockNode *node, Vpc *v, uint64_t file_size, GError **err)
{
    uint8_t head[VPC_FOOTER_BYTES], tail[VPC_FOOTER_BYTES] = {0};
    int result = block_file_read(node->file, 0, head, sizeof(head));
    if (result == 0 && file_size >= VPC_FOOTER_BYTES)
        result = block_file_read(node->file, file_size - VPC_FOOTER_BYTES, tail, sizeof(tail));
    if (result < 0)
        return lodge_fail_errno(err, -result, "%s: cannot read its footer", node->path);
    bool at_end = footer_valid(tail);
    v->end = at_end ? file_size - VPC_FOOTER_BYTES : file_size;
    if (at_end)
        memcpy(v->footer, tail, sizeof(tail));
    else if (footer_valid(head))
        memcpy(v->footer, head, sizeof(head));
    else if (has_cookie(tail) || has_cookie(head))
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "%s: the checksum of the VHD footer is wrong",
                          node->path);
    else
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "%s: not a VHD image: it has no footer",
                          node->path);
    return true;
}

typedef enum SizeBy { SIZE_BY_CREATOR, SIZE_BY_FIELD, SIZE_BY_CHS } SizeBy;

static bool size_by(const json_t *options, SizeBy *by, GError **err)
{
    const char *text = block_option_string(options, NULL, "force_size_calc");
    *by = !text ? SIZE_BY_CREATOR : !strcmp(text, "chs") ? SIZE_BY_CHS : SIZE_BY_FIELD;
    return *by != SIZE_BY_FIELD || !strcmp(text, "current_size") ||
           lodge_fail(err, LODGE_ERROR_INVALID, "Invalid size calculation mode: '%s'", text);
}

/*
 * In sectors. Virtual PC goes by the geometry, others by the size. The creator tells them apart; a
 * geometry at its limit says nothing.
 */
static uint64_t disk_size(const uint8_t *footer, SizeBy by)
{
    static const char by_size[][5] = {"win ", "qem2", "d2v ", "tap\0", "CTXS"};
    uint64_t size = be64_get(footer + VPC_CURRENT_SIZE) / VPC_SECTOR;
    uint64_t geometry = (uint64_t)be16_get(footer + VPC_CYLINDERS) * footer[VPC_HEADS] *
                        footer[VPC_SECTORS];
    for (size_t i = 0; i < G_N_ELEMENTS(by_size); i++) {
        if (by == SIZE_BY_CREATOR && !memcmp(footer + VPC_CREATOR, by_size[i], 4))
            by = SIZE_BY_FIELD;
    }
    return geometry >= VPC_CHS_MAX || by == SIZE_BY_FIELD ? size : geometry;
}

static bool check_footer(BlockNode *node, const Vpc *v, uint64_t sectors, GError **err)
{
    const char *path = node->path;
    uint32_t version = be32_get(v->footer + VPC_FILE_VERSION), type = be32_get(v->footer + VPC_TYPE);
    if (version >> 16 != 1)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "%s: VHD version %u.%u is not supported; 1.0 is", path, version >> 16,
                          version & 0xffff);
    if (type == VPC_DIFFERENCING && !node->read_only)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "%s: VHD differencing images can only be read", path);
    if (type != VPC_FIXED && type != VPC_DYNAMIC && type != VPC_DIFFERENCING)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "%s: VHD type %u is not known", path, type);
    if (sectors > VPC_SECTORS_MAX)
        return lodge_fail(err, LODGE_ERROR_LIMIT,
                          "%s: a disk of %" G_GUINT64_FORMAT " sectors; a VHD has at most %llu", path,
                          sectors, VPC_SECTORS_MAX);
    if (type == VPC_FIXED && sectors * VPC_SECTOR > v->end)
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "%s: the file is too short for a disk of %" G_GUINT64_FORMAT " sectors",
                          path, sectors);
    return true;
}

/* In the order and, where it has them, the words of QEMU; it does not look at the checksum. */
static bool check_dynamic_header(BlockNode *node, const Vpc *v, const uint8_t *h, GError **err)
{
    const char *path = node->path;
    uint32_t block = be32_get(h + VPC_DYNAMIC_BLOCK_SIZE), blocks = be32_get(h + VPC_DYNAMIC_BLOCKS);
    uint64_t at = be64_get(v->footer + VPC_DATA_OFFSET);
    if (memcmp(h, "cxsparse", 8))
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "%s: the dynamic header has a wrong cookie", path);
    if (block < VPC_SECTOR || (block & (block - 1)))
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "Invalid block size %u", block);
    if ((uint64_t)blocks * block < node->size)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "Page table too small");
    if (blocks > INT32_MAX / 4)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "Max Table Entries too large (%d)", (int)blocks);
    if (block < BLOCK_SIZE_MIN || block > BLOCK_SIZE_MAX)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "%s: a block size of %u is not supported; powers of two from 4 KiB to "
                          "64 MiB are",
                          path, block);
    if (!range_within(at, VPC_DYNAMIC_BYTES, v->end))
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "%s: the dynamic header at 0x%" G_GINT64_MODIFIER
                          "x is not within the file",
                          path, at);
    return be32_get(h + VPC_DYNAMIC_CHECKSUM) ==
               vpc_checksum(h, VPC_DYNAMIC_BYTES, VPC_DYNAMIC_CHECKSUM) ||
           lodge_fail(err, LODGE_ERROR_CORRUPT, "%s: the checksum of the dynamic header is wrong",
                      path);
}

static bool read_dynamic_header(BlockNode *node, Vpc *v, GError **err)
{
    uint8_t h[VPC_DYNAMIC_BYTES];
    BlockMap *m = &v->map;
    const char *path = node->path;
    uint64_t at = be64_get(v->footer + VPC_DATA_OFFSET);
    int result = at % VPC_SECTOR || at > INT64_MAX / 2 ? -EINVAL
                                                       : block_file_read(node->file, at, h, sizeof(h));
    if (result < 0)
        return lodge_fail_errno(err, -result, "%s: cannot read its dynamic header", path);
    if (!check_dynamic_header(node, v, h, err))
        return false;
    m->block = be32_get(h + VPC_DYNAMIC_BLOCK_SIZE);
    m->blocks = (node->size + m->block - 1) / m->block;
    m->table_offset = be64_get(h + VPC_DYNAMIC_TABLE);
    if (m->table_offset % VPC_SECTOR || m->table_offset < VPC_FOOTER_BYTES ||
        (m->table_offset < at + sizeof(h) && m->table_offset + m->blocks * 4 > at))
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "%s: the block table at 0x%" G_GINT64_MODIFIER "x lies on the header",
                          path, m->table_offset);
    v->bitmap = vpc_bitmap_bytes(m->block);
    m->base = v->bitmap;
    m->unit = VPC_SECTOR;
    m->none_from = VPC_FREE;
    if (!v->differencing)
        return true;
    memcpy(v->parent_uuid, h + VPC_DYNAMIC_PARENT_UUID, sizeof(v->parent_uuid));
    vpc_diff_init(&v->diff, m, v->bitmap);
    return vpc_diff_parent(node, h, v->end, err);
}

/*
 * Blocks lie between the footer's copy and the footer, and not on the table or the header. Those
 * that were there when the image was opened get a whole bitmap before they are written to.
 */
static bool check_table(BlockNode *node, Vpc *v, GError **err)
{
    BlockMap *m = &v->map;
    uint64_t length = v->bitmap + m->block;
    uint64_t table_end = m->table_offset + m->blocks * 4;
    uint64_t header = be64_get(v->footer + VPC_DATA_OFFSET);
    m->unprepared = g_try_malloc0(m->blocks / 8 + 1);
    if (!m->unprepared)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "%s: no memory for its blocks", node->path);
    for (uint64_t i = 0; i < m->blocks; i++) {
        uint64_t start = (uint64_t)m->table[i] * VPC_SECTOR;
        if (m->table[i] == VPC_FREE)
            continue;
        bool on_table = start < table_end && start + length > m->table_offset;
        bool on_header = start < header + VPC_DYNAMIC_BYTES && start + length > header;
        if (start < VPC_FOOTER_BYTES || !range_within(start, length, v->end) || on_table || on_header)
            return lodge_fail(err, LODGE_ERROR_CORRUPT,
                              "%s: entry %" G_GUINT64_FORMAT " of the block table points to sector "
                              "%u, where no block can be",
                              node->path, i, m->table[i]);
        m->unprepared[i / 8] |= (uint8_t)(1u << (i % 8));
    }
    return true;
}

/* The footer is written behind the new block before the block's bitmap goes over the old one. */
static int vpc_reserve(BlockMap *m, uint32_t *entry)
{
    Vpc *v = m->node->state;
    BlockFile *file = m->node->file;
    uint64_t start = align_up(v->end, VPC_SECTOR), data = start + v->bitmap;
    uint64_t end = data + m->block;
    if (file->block_device || start / VPC_SECTOR >= VPC_FREE)
        return -ENOSPC; /* the footer of a dynamic image cannot move on a device */
    int result = block_file_write(file, end, v->footer, sizeof(v->footer));
    if (result < 0)
        return result;
    g_autofree uint8_t *bitmap = g_try_malloc(v->bitmap);
    if (!bitmap)
        return -ENOMEM;
    memset(bitmap, 0xff, v->bitmap);
    result = block_file_write(file, start, bitmap, v->bitmap);
    if (result < 0)
        return result;
    v->end = end;
    g_mutex_lock(&m->lock);
    m->limit = end;
    g_mutex_unlock(&m->lock);
    *entry = (uint32_t)(start / VPC_SECTOR);
    return 0;
}

/* Marks all sectors of a block as written, which is how we read it. */
static int vpc_prepare(BlockMap *m, uint64_t index)
{
    Vpc *v = m->node->state;
    uint64_t at = (uint64_t)m->table[index] * VPC_SECTOR;
    g_autofree uint8_t *bitmap = g_try_malloc(v->bitmap);
    if (!bitmap)
        return -ENOMEM;
    int result = block_file_read(m->node->file, at, bitmap, v->bitmap);
    if (result < 0 || (bitmap[0] == 0xff && !memcmp(bitmap, bitmap + 1, v->bitmap - 1)))
        return result;
    memset(bitmap, 0xff, v->bitmap);
    return block_file_write(m->node->file, at, bitmap, v->bitmap);
}

static uint32_t vpc_decode(const void *p)
{
    return be32_get(p);
}

static void vpc_encode(void *p, uint32_t entry)
{
    be32_put(p, entry);
}

static const BlockMapOps vpc_map_ops = {
    .reserve = vpc_reserve,
    .prepare = vpc_prepare,
    .decode = vpc_decode,
    .encode = vpc_encode,
};

static bool vpc_open(BlockNode *node, const BlockOpen *options, GError **err)
{
    Vpc *v = g_new0(Vpc, 1);
    SizeBy by;
    node->state = v;
    if (!blockmap_init(&v->map, node, &vpc_map_ops, err) || !size_by(options->options, &by, err) ||
        !find_footer(node, v, v->map.limit, err))
        return false;
    uint64_t sectors = disk_size(v->footer, by);
    if (!check_footer(node, v, sectors, err))
        return false;
    node->size = sectors * VPC_SECTOR;
    v->fixed = be32_get(v->footer + VPC_TYPE) == VPC_FIXED;
    v->differencing = be32_get(v->footer + VPC_TYPE) == VPC_DIFFERENCING;
    if (v->fixed)
        return true;
    return read_dynamic_header(node, v, err) && blockmap_load(&v->map, err) &&
           check_table(node, v, err);
}

/* A parent that is another image, or was made anew, is not what the child was made against. */
static bool vpc_activate(BlockNode *node, GError **err)
{
    const Vpc *v = node->state;
    if (!v->differencing || !node->backing)
        return true;
    if (node->backing->format != &block_format_vpc)
        return lodge_fail(err, LODGE_ERROR_INVALID, "%s: the parent of a VHD image is one as well",
                          node->path);
    const Vpc *parent = node->backing->state;
    return !memcmp(parent->footer + VPC_UUID, v->parent_uuid, sizeof(v->parent_uuid)) ||
           lodge_fail(err, LODGE_ERROR_INVALID,
                      "%s: %s is not the parent of this image: its identifier is another one",
                      node->path, node->backing->path);
}

static int vpc_flush(BlockNode *node)
{
    Vpc *v = node->state;
    return v->fixed ? block_node_sync(node) : blockmap_flush(&v->map);
}

static void vpc_close(BlockNode *node)
{
    Vpc *v = node->state;
    if (!v)
        return;
    if (!node->read_only && (v->fixed || v->map.unprepared))
        vpc_flush(node);
    vpc_diff_clear(&v->diff);
    blockmap_clear(&v->map);
    g_free(v);
    node->state = NULL;
}

static int vpc_readv(BlockNode *node, uint64_t offset, const struct iovec *iov, int n)
{
    Vpc *v = node->state;
    if (v->differencing)
        return vpc_diff_readv(&v->diff, offset, iov, n);
    return v->fixed ? node->file->ops->readv(node->file, offset, iov, n)
                    : blockmap_readv(&v->map, offset, iov, n);
}

static int vpc_writev(BlockNode *node, uint64_t offset, const struct iovec *iov, int n)
{
    Vpc *v = node->state;
    return v->fixed ? node->file->ops->writev(node->file, offset, iov, n)
                    : blockmap_writev(&v->map, offset, iov, n);
}

static int vpc_write_zeroes(BlockNode *node, uint64_t offset, uint64_t length, bool unmap)
{
    Vpc *v = node->state;
    return v->fixed ? node->file->ops->zero(node->file, offset, length, unmap)
                    : blockmap_write_zeroes(&v->map, offset, length, unmap);
}

static int vpc_discard(BlockNode *node, uint64_t offset, uint64_t length)
{
    Vpc *v = node->state;
    return v->fixed ? node->file->ops->discard(node->file, offset, length)
                    : blockmap_discard(&v->map, offset, length);
}

static bool vpc_flush_is_plain(BlockNode *node)
{
    Vpc *v = node->state;
    return v->fixed || blockmap_flush_is_plain(&v->map);
}

static int vpc_status(BlockNode *node, uint64_t offset, uint64_t length, BlockExtent *extent)
{
    Vpc *v = node->state;
    bool data = true;
    uint64_t same = length;
    if (v->differencing)
        return vpc_diff_status(&v->diff, offset, length, extent);
    if (!v->fixed)
        return blockmap_status(&v->map, offset, length, extent);
    int result = 0;
    if (node->file->ops->status)
        result = node->file->ops->status(node->file, offset, length, &data, &same);
    *extent = (BlockExtent){.length = same, .present = true, .data = true, .zero = !data,
                            .has_offset = true, .file_offset = offset};
    return result;
}

static bool vpc_fast_begin(BlockNode *node, bool write, uint64_t offset, uint64_t length,
                           BlockFast *fast)
{
    Vpc *v = node->state;
    fast->file_offset = offset;
    if (v->differencing)
        return false;
    return v->fixed || blockmap_fast_begin(&v->map, write, offset, length, fast);
}

static void vpc_fast_end(BlockNode *node, BlockFast *fast)
{
}

static void vpc_info(BlockNode *node, BlockInfo *info)
{
    const Vpc *v = node->state;
    if (!v->fixed)
        info->cluster_size = v->map.block;
}

static const BlockOption vpc_open_options[] = {
    {"force_size_calc", BLOCK_OPTION_STRING, "where the size is from: chs, current_size", NULL},
    {NULL, 0, NULL, NULL},
};

const BlockFormat block_format_vpc = {
    .name = "vpc",
    .probe = vpc_probe,
    .open = vpc_open,
    .activate = vpc_activate,
    .open_options = vpc_open_options,
    .close = vpc_close,
    .readv = vpc_readv,
    .writev = vpc_writev,
    .write_zeroes = vpc_write_zeroes,
    .discard = vpc_discard,
    .flush = vpc_flush,
    .status = vpc_status,
    .fast_begin = vpc_fast_begin,
    .fast_end = vpc_fast_end,
    .flush_is_plain = vpc_flush_is_plain,
    .create_options = vpc_create_options,
    .create_check = vpc_create_check,
    .create = vpc_create,
    .info = vpc_info,
};
