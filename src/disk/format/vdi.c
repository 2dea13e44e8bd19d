/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * VirtualBox disk images, version 1.1, dynamic and static: a header, a table of blocks, blocks.
 * Layout: "All about VDIs" (forums.virtualbox.org, topic 8046). docs/format/vdi.md
 */
#include "base/bytes.h"
#include "base/error.h"
#include "disk/format/blockmap.h"
#include "disk/format/formats.h"

#include <errno.h>
#include <sys/random.h>

#define HEADER_BYTES 512u
#define SIGNATURE    0xbeda107fu
#define VERSION_1_1  0x00010001u
#define HEADER_SIZE  0x180u /* of the version 1.1 header from the field that says so on */

/* Byte offsets of the header's little-endian fields. */
enum {
    AT_SIGNATURE = 0x40,
    AT_VERSION = 0x44,
    AT_HEADER_SIZE = 0x48,
    AT_TYPE = 0x4c,
    AT_TABLE = 0x154,
    AT_DATA = 0x158,
    AT_SECTOR_SIZE = 0x168,
    AT_DISK_SIZE = 0x170,
    AT_BLOCK_SIZE = 0x178,
    AT_BLOCK_EXTRA = 0x17c,
    AT_BLOCKS = 0x180,
    AT_ALLOCATED = 0x184,
    AT_UUID = 0x188,
    AT_UUID_SNAPSHOT = 0x198,
    AT_UUID_LINK = 0x1a8,
    AT_UUID_PARENT = 0x1b8,
};

enum { TYPE_DYNAMIC = 1, TYPE_STATIC = 2, TYPE_UNDO = 3, TYPE_DIFFERENCING = 4 };

#define ENTRY_FREE     0xffffffffu /* never written */
#define ENTRY_ZERO     0xfffffffeu /* given back: reads as zero */
#define CREATE_BLOCK   MIB(1)      /* the block size that every implementation takes */
#define BLOCK_SIZE_MIN KIB(4)
#define BLOCK_SIZE_MAX MIB(64)
#define DATA_ALIGNMENT KIB(4)      /* of the first block of a new image: a page */

typedef struct Vdi {
    BlockMap map;
    bool is_static;
    uint32_t allocated; /* as the header in the file has it */
    uint32_t next;      /* the first block that no entry at or below refers to */
    uint64_t used_end;  /* bytes of the file from here on read as zero */
} Vdi;

static bool vdi_probe(const uint8_t *head, size_t length)
{
    return length >= HEADER_BYTES && le32_get(head + AT_SIGNATURE) == SIGNATURE;
}

static bool set_uuid(const uint8_t *uuid)
{
    static const uint8_t none[16];
    return memcmp(uuid, none, sizeof(none)) != 0;
}

static bool check_kind(const char *path, const uint8_t *h, GError **err)
{
    uint32_t version = le32_get(h + AT_VERSION), type = le32_get(h + AT_TYPE);
    if (le32_get(h + AT_SIGNATURE) != SIGNATURE)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "%s: not a VDI image", path);
    if (version != VERSION_1_1)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "%s: VDI version %u.%u is not supported; 1.1 is", path, version >> 16,
                          version & 0xffff);
    if (type == TYPE_UNDO || type == TYPE_DIFFERENCING)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "%s: VDI %s images are not supported; dynamic and static ones are", path,
                          type == TYPE_UNDO ? "undo" : "differencing");
    if (type != TYPE_DYNAMIC && type != TYPE_STATIC)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "%s: VDI image type %u is not known", path,
                          type);
    if (set_uuid(h + AT_UUID_LINK) || set_uuid(h + AT_UUID_PARENT))
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "%s: a VDI image with a parent image is not supported", path);
    return true;
}

static bool check_geometry(const char *path, const uint8_t *h, GError **err)
{
    uint32_t block = le32_get(h + AT_BLOCK_SIZE), blocks = le32_get(h + AT_BLOCKS);
    uint64_t size = le64_get(h + AT_DISK_SIZE);
    uint32_t table = le32_get(h + AT_TABLE), data = le32_get(h + AT_DATA);
    if (le32_get(h + AT_SECTOR_SIZE) != 512)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "%s: a sector size of %u is not supported; 512 is", path,
                          le32_get(h + AT_SECTOR_SIZE));
    if (block < BLOCK_SIZE_MIN || block > BLOCK_SIZE_MAX || (block & (block - 1)))
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "%s: a block size of %u is not supported; powers of two from 4 KiB to "
                          "64 MiB are",
                          path, block);
    if (le32_get(h + AT_BLOCK_EXTRA) != 0)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "%s: extra data before each block (%u bytes) is not supported", path,
                          le32_get(h + AT_BLOCK_EXTRA));
    if (size > INT64_MAX - 512 || (size + block - 1) / block > blocks)
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "%s: %u blocks of %u bytes are too few for a disk of %" G_GUINT64_FORMAT
                          " bytes",
                          path, blocks, block, size);
    if (table < HEADER_BYTES || table % 512 || data % 512 || data < table ||
        (data - table) / 4 < blocks)
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "%s: the block table at 0x%x and the data at 0x%x are not possible for "
                          "%u blocks",
                          path, table, data, blocks);
    return true;
}

/* What the table refers to. */
typedef struct Scan {
    uint64_t used, bad, twice;
    uint32_t next; /* one more than the highest good entry */
} Scan;

/* @seen: a bit for each block of the file, or NULL. */
static void look_at_entry(const Vdi *v, uint64_t index, uint8_t *seen, uint64_t seen_bits,
                          BlockCheck *check, Scan *scan)
{
    uint32_t entry = v->map.table[index];
    const char *wrong = NULL;
    if (entry >= ENTRY_ZERO)
        return;
    scan->used++;
    if (blockmap_offset(&v->map, entry) >= v->map.limit) {
        wrong = "which is not within the file";
        scan->bad++;
    } else {
        scan->next = MAX(scan->next, entry + 1);
        if (seen && entry < seen_bits) {
            if (seen[entry / 8] & (1u << (entry % 8))) {
                wrong = "which another entry refers to as well";
                scan->twice++;
            }
            seen[entry / 8] |= (uint8_t)(1u << (entry % 8));
        }
    }
    if (wrong && check && check->message) {
        g_autofree char *text = g_strdup_printf(
            "ERROR: entry %" G_GUINT64_FORMAT " of the block table refers to block %u, %s", index,
            entry, wrong);
        check->message(check->opaque, text);
    }
}

static bool scan_table(const Vdi *v, BlockCheck *check, Scan *scan, GError **err)
{
    const BlockMap *m = &v->map;
    *scan = (Scan){0};
    uint64_t bits = m->limit > m->base ? (m->limit - m->base) / m->block + 1 : 0;
    bits = MIN(bits, (uint64_t)UINT32_MAX);
    g_autofree uint8_t *seen = check ? g_try_malloc0(bits / 8 + 1) : NULL;
    if (check && !seen)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "%s: no memory to check its block table",
                          m->node->path);
    for (uint64_t i = 0; i < m->blocks; i++)
        look_at_entry(v, i, seen, bits, check, scan);
    return true;
}

static int write_allocated(Vdi *v)
{
    uint8_t field[4];
    le32_put(field, v->next);
    int result = block_file_write(v->map.node->file, AT_ALLOCATED, field, sizeof(field));
    if (result == 0)
        v->allocated = v->next;
    return result;
}

/*
 * Blocks are handed out in the order of the file. Durable before the table is written, so that
 * other implementations, which go by the header, give none twice after a power cut.
 */
static int vdi_before_commit(BlockMap *m)
{
    Vdi *v = m->node->state;
    if (v->allocated == v->next)
        return 0;
    int result = write_allocated(v);
    return result == 0 ? block_node_sync(m->node) : result;
}

static int vdi_reserve(BlockMap *m, uint32_t *entry)
{
    Vdi *v = m->node->state;
    BlockFile *file = m->node->file;
    if (v->next >= m->blocks)
        return -EIO; /* more blocks in use than the disk has: some are referred to twice */
    uint64_t start = blockmap_offset(m, v->next), end = start + m->block;
    int result = 0;
    if (file->block_device) {
        if (end > m->limit)
            return -ENOSPC;
        result = file->ops->zero(file, start, end - start, true);
    } else {
        if (start < v->used_end) /* left by a crash */
            result = file->ops->zero(file, start, MIN(end, v->used_end) - start, true);
        if (result == 0 && end > m->limit)
            result = file->ops->truncate(file, end);
    }
    if (result < 0)
        return result;
    *entry = v->next++;
    g_mutex_lock(&m->lock);
    m->limit = MAX(m->limit, end);
    g_mutex_unlock(&m->lock);
    v->used_end = MAX(v->used_end, end);
    return 0;
}

static uint32_t vdi_decode(const void *p)
{
    return le32_get(p);
}

static void vdi_encode(void *p, uint32_t entry)
{
    le32_put(p, entry);
}

static const BlockMapOps vdi_map_ops = {
    .reserve = vdi_reserve,
    .before_commit = vdi_before_commit,
    .decode = vdi_decode,
    .encode = vdi_encode,
};

static bool vdi_open(BlockNode *node, const BlockOpen *options, GError **err)
{
    uint8_t h[HEADER_BYTES];
    Scan scan;
    int result = block_file_read(node->file, 0, h, sizeof(h));
    if (result < 0)
        return lodge_fail_errno(err, -result, "%s: cannot read its header", node->path);
    if (!check_kind(node->path, h, err) || !check_geometry(node->path, h, err))
        return false;
    Vdi *v = g_new0(Vdi, 1);
    BlockMap *m = &v->map;
    node->state = v;
    node->size = align_up(le64_get(h + AT_DISK_SIZE), 512);
    v->is_static = le32_get(h + AT_TYPE) == TYPE_STATIC;
    v->allocated = le32_get(h + AT_ALLOCATED);
    m->block = le32_get(h + AT_BLOCK_SIZE);
    m->blocks = le32_get(h + AT_BLOCKS);
    m->table_offset = le32_get(h + AT_TABLE);
    m->base = le32_get(h + AT_DATA);
    m->unit = m->block;
    m->none_from = ENTRY_ZERO;
    if (!blockmap_init(m, node, &vdi_map_ops, err) || !blockmap_load(m, err) ||
        !scan_table(v, NULL, &scan, err))
        return false;
    v->next = scan.next;
    v->used_end = m->limit;
    if (scan.bad && !node->read_only && !options->repair)
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "%s: %" G_GUINT64_FORMAT " entries of the block table refer to blocks "
                          "that are not within the file; the image can be opened read-only",
                          node->path, scan.bad);
    return true;
}

static void vdi_close(BlockNode *node)
{
    Vdi *v = node->state;
    if (!v)
        return;
    if (!node->read_only && v->map.table)
        blockmap_flush(&v->map);
    blockmap_clear(&v->map);
    g_free(v);
    node->state = NULL;
}

static int vdi_readv(BlockNode *node, uint64_t offset, const struct iovec *iov, int n)
{
    return blockmap_readv(&((Vdi *)node->state)->map, offset, iov, n);
}

static int vdi_writev(BlockNode *node, uint64_t offset, const struct iovec *iov, int n)
{
    return blockmap_writev(&((Vdi *)node->state)->map, offset, iov, n);
}

static int vdi_write_zeroes(BlockNode *node, uint64_t offset, uint64_t length, bool unmap)
{
    return blockmap_write_zeroes(&((Vdi *)node->state)->map, offset, length, unmap);
}

static int vdi_discard(BlockNode *node, uint64_t offset, uint64_t length)
{
    return blockmap_discard(&((Vdi *)node->state)->map, offset, length);
}

static int vdi_flush(BlockNode *node)
{
    return blockmap_flush(&((Vdi *)node->state)->map);
}

static bool vdi_flush_is_plain(BlockNode *node)
{
    return blockmap_flush_is_plain(&((Vdi *)node->state)->map);
}

static int vdi_status(BlockNode *node, uint64_t offset, uint64_t length, BlockExtent *extent)
{
    Vdi *v = node->state;
    BlockFile *file = node->file;
    bool data = true;
    uint64_t same;
    int result = blockmap_status(&v->map, offset, length, extent);
    if (result < 0 || !v->is_static || !extent->data || !file->ops->status)
        return result;
    result = file->ops->status(file, extent->file_offset, extent->length, &data, &same);
    if (result == 0) {
        extent->length = same;
        extent->zero = !data;
    }
    return result;
}

static bool vdi_fast_begin(BlockNode *node, bool write, uint64_t offset, uint64_t length,
                           BlockFast *fast)
{
    return blockmap_fast_begin(&((Vdi *)node->state)->map, write, offset, length, fast);
}

static void vdi_fast_end(BlockNode *node, BlockFast *fast)
{
}

static bool is_static_wanted(const BlockCreate *c, bool *wanted, GError **err)
{
    *wanted = false;
    return block_option_bool(c->options, NULL, "static", wanted, err);
}

static bool vdi_create_check(const BlockCreate *c, GError **err)
{
    BlockPreallocation mode;
    bool is_static;
    if (!is_static_wanted(c, &is_static, err) || !block_preallocation(c->options, &mode, err))
        return false;
    if (mode != BLOCK_PREALLOCATE_OFF)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "this preallocation is not supported for vdi images; \"off\" and "
                          "static=on are");
    if ((c->size + CREATE_BLOCK - 1) / CREATE_BLOCK > BLOCKMAP_TABLE_MAX / 4)
        return lodge_fail(err, LODGE_ERROR_LIMIT,
                          "Unsupported VDI image size (size is 0x%" G_GINT64_MODIFIER
                          "x, max supported is 0x%" G_GINT64_MODIFIER "x)",
                          c->size, BLOCKMAP_TABLE_MAX / 4 * CREATE_BLOCK);
    return true;
}

static bool new_uuid(uint8_t *uuid)
{
    if (getrandom(uuid, 16, 0) != 16)
        return false;
    uuid[7] = (uint8_t)((uuid[7] & 0x0f) | 0x40); /* version 4; this field is little-endian */
    uuid[8] = (uint8_t)((uuid[8] & 0x3f) | 0x80);
    return true;
}

static bool vdi_create(BlockFile *file, const BlockCreate *c, GError **err)
{
    bool is_static;
    if (!is_static_wanted(c, &is_static, err))
        return false;
    uint32_t blocks = (uint32_t)((c->size + CREATE_BLOCK - 1) / CREATE_BLOCK);
    uint64_t data = align_up(HEADER_BYTES + (uint64_t)blocks * 4, DATA_ALIGNMENT);
    g_autofree uint8_t *h = g_try_malloc0(data);
    if (!h)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "%s: no memory for its block table", c->path);
    g_strlcpy((char *)h, "<<< Lodge VM Virtual Disk Image >>>\n", AT_SIGNATURE);
    le32_put(h + AT_SIGNATURE, SIGNATURE);
    le32_put(h + AT_VERSION, VERSION_1_1);
    le32_put(h + AT_HEADER_SIZE, HEADER_SIZE);
    le32_put(h + AT_TYPE, is_static ? TYPE_STATIC : TYPE_DYNAMIC);
    le32_put(h + AT_TABLE, HEADER_BYTES);
    le32_put(h + AT_DATA, (uint32_t)data);
    le32_put(h + AT_SECTOR_SIZE, 512);
    le64_put(h + AT_DISK_SIZE, c->size);
    le32_put(h + AT_BLOCK_SIZE, (uint32_t)CREATE_BLOCK);
    le32_put(h + AT_BLOCKS, blocks);
    le32_put(h + AT_ALLOCATED, is_static ? blocks : 0);
    if (!new_uuid(h + AT_UUID) || !new_uuid(h + AT_UUID_SNAPSHOT))
        return lodge_fail_errno(err, errno, "%s: cannot make a UUID", c->path);
    for (uint32_t i = 0; i < blocks; i++)
        le32_put(h + HEADER_BYTES + (size_t)i * 4, is_static ? i : ENTRY_FREE);
    int result = 0;
    if (is_static && !file->block_device)
        result = file->ops->truncate(file, data + blocks * CREATE_BLOCK);
    else if (is_static)
        result = file->ops->zero(file, data, blocks * CREATE_BLOCK, true);
    if (result == 0)
        result = block_file_write(file, 0, h, data);
    return result == 0 || lodge_fail_errno(err, -result, "%s: cannot write the image", c->path);
}

static void vdi_info(BlockNode *node, BlockInfo *info)
{
    const Vdi *v = node->state;
    info->cluster_size = v->map.block;
}

static bool vdi_check(BlockNode *node, BlockCheck *check, GError **err)
{
    Vdi *v = node->state;
    Scan scan;
    if (!scan_table(v, check, &scan, err))
        return false;
    check->corruptions += scan.bad + scan.twice;
    if (v->allocated != scan.next && check->message) {
        g_autofree char *text = g_strdup_printf(
            "%s: the header says that %u blocks are in use; the block table uses %u",
            v->allocated > scan.next ? "Leaked" : "ERROR", v->allocated, scan.next);
        check->message(check->opaque, text);
    }
    bool leaked = v->allocated > scan.next;
    uint64_t wrong = leaked ? v->allocated - scan.next : v->allocated < scan.next;
    BlockRepair needed = leaked ? BLOCK_REPAIR_LEAKS : BLOCK_REPAIR_ALL;
    if (wrong && !node->read_only && check->repair >= needed && scan.bad == 0) {
        v->next = scan.next;
        int result = write_allocated(v);
        if (result < 0)
            return lodge_fail_errno(err, -result, "%s: cannot write the header", node->path);
        *(leaked ? &check->leaks_fixed : &check->corruptions_fixed) += wrong;
    } else {
        *(leaked ? &check->leaks : &check->corruptions) += wrong;
    }
    return true;
}

static const BlockOption vdi_create_options[] = {
    {"size", BLOCK_OPTION_SIZE, "Virtual disk size", NULL},
    {"static", BLOCK_OPTION_BOOL, "VDI static (pre-allocated) image", "off"},
    {"preallocation", BLOCK_OPTION_STRING, "Preallocation mode (allowed values: off)", NULL},
    {NULL, 0, NULL, NULL},
};

const BlockFormat block_format_vdi = {
    .name = "vdi",
    .probe = vdi_probe,
    .open = vdi_open,
    .close = vdi_close,
    .readv = vdi_readv,
    .writev = vdi_writev,
    .write_zeroes = vdi_write_zeroes,
    .discard = vdi_discard,
    .flush = vdi_flush,
    .status = vdi_status,
    .fast_begin = vdi_fast_begin,
    .fast_end = vdi_fast_end,
    .flush_is_plain = vdi_flush_is_plain,
    .create_options = vdi_create_options,
    .create_check = vdi_create_check,
    .create = vdi_create,
    .info = vdi_info,
    .check = vdi_check,
};
