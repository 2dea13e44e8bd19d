/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The extents of a VMDK: flat ones, hosted sparse ones, and COWD. "Virtual Disk Format 5.0". */
#include "base/bytes.h"
#include "base/error.h"
#include "disk/format/vmdk/vmdk.h"

#include <errno.h>
#include <libdeflate.h>
#include <string.h>

#define COWD_TABLE_ENTRIES 4096u
#define COWD_HEADER_BYTES  2048u /* as VMware writes it */
#define FILE_SECTORS_MAX   (1ull << 32) /* an entry is a sector in 32 bits */
#define DEFLATE_LEVEL      6

/* Byte offsets in the header of a COWD extent; little-endian. */
enum {
    COWD_CAPACITY = 12,
    COWD_GRAIN_SIZE = 16,
    COWD_DIRECTORY = 20,
    COWD_DIRECTORY_SIZE = 24,
};

bool vmdk_magic(const uint8_t *head, bool *cowd)
{
    *cowd = !memcmp(head, "COWD", 4);
    return *cowd || !memcmp(head, "KDMV", 4);
}

VmdkExtent *vmdk_extent_new(Vmdk *v, BlockFile *file, bool owns, const VmdkExtentLine *line)
{
    VmdkExtent *e = g_new0(VmdkExtent, 1);
    e->vmdk = v;
    e->file = file;
    e->owns_file = owns;
    e->start = v->node->size;
    if (line) {
        e->type = line->type;
        e->named = true;
    }
    e->map.node = v->node;
    e->map.file = file;
    e->map.owner = e;
    e->map.start = e->start;
    e->map.read_only = v->node->read_only;
    return e;
}

void vmdk_extent_free(gpointer extent)
{
    VmdkExtent *e = extent;
    if (!e)
        return;
    grains_clear(&e->map);
    if (e->owns_file)
        block_file_close(e->file);
    g_free(e);
}

bool vmdk_extent_start(VmdkExtent *e, GError **err)
{
    BlockNode *node = e->vmdk->node;
    uint64_t end;
    bool good = add_u64(node->size, e->size, &end) && end <= INT64_MAX - VMDK_SECTOR;
    if (!good)
        lodge_fail(err, LODGE_ERROR_LIMIT, "%s: the extents are too large together", node->path);
    e->map.size = e->size;
    good = good && (e->flat || grains_init(&e->map, err));
    if (!good) {
        vmdk_extent_free(e);
        return false;
    }
    node->size = end;
    g_ptr_array_add(e->vmdk->extents, e);
    return true;
}

bool vmdk_extent_add_flat(Vmdk *v, BlockFile *file, const VmdkExtentLine *line, GError **err)
{
    VmdkExtent *e = vmdk_extent_new(v, file, true, line);
    if (line->sectors > INT64_MAX / VMDK_SECTOR ||
        !add_u64(line->offset * VMDK_SECTOR, line->sectors * VMDK_SECTOR, &e->size) ||
        e->size > INT64_MAX) {
        vmdk_extent_free(e);
        return lodge_fail(err, LODGE_ERROR_LIMIT, "%s: an extent of %" G_GUINT64_FORMAT " sectors",
                          v->node->path, line->sectors);
    }
    e->flat = true;
    e->flat_offset = line->offset * VMDK_SECTOR;
    e->size = line->sectors * VMDK_SECTOR;
    return vmdk_extent_start(e, err);
}

static bool sparse_decode(const GrainMap *m, const uint8_t *p, Grain *grain)
{
    const VmdkExtent *e = m->owner;
    uint32_t entry = le32_get(p);
    if (entry == 0)
        *grain = (Grain){.kind = GRAIN_NONE};
    else if (entry == VMDK_ENTRY_ZERO && m->zero_entries)
        *grain = (Grain){.kind = GRAIN_ZERO};
    else
        *grain = (Grain){.kind = e->compressed ? GRAIN_PACKED : GRAIN_DATA,
                         .offset = (uint64_t)entry * VMDK_SECTOR};
    return true;
}

static void sparse_encode(const GrainMap *m, uint8_t *p, const Grain *grain)
{
    uint32_t entry = 0;
    if (grain->kind == GRAIN_ZERO)
        entry = VMDK_ENTRY_ZERO;
    else if (grain->kind != GRAIN_NONE)
        entry = (uint32_t)(grain->offset / VMDK_SECTOR);
    le32_put(p, entry);
}

static bool table_decode(const GrainMap *m, const uint8_t *p, uint64_t *offset)
{
    *offset = (uint64_t)le32_get(p) * VMDK_SECTOR;
    return true;
}

static void table_encode(const GrainMap *m, uint8_t *p, uint64_t offset)
{
    le32_put(p, (uint32_t)(offset / VMDK_SECTOR));
}

static void free_decompressor(gpointer d)
{
    libdeflate_free_decompressor(d);
}

static void free_compressor(gpointer c)
{
    libdeflate_free_compressor(c);
}

/* They are large, and one thread works on one grain at a time. */
static GPrivate decompressors = G_PRIVATE_INIT(free_decompressor);
static GPrivate compressors = G_PRIVATE_INIT(free_compressor);

static int inflate_grain(const GrainMap *m, const uint8_t *in, size_t length, uint8_t *out,
                         size_t needed)
{
    struct libdeflate_decompressor *d = g_private_get(&decompressors);
    size_t used, got;
    if (!d) {
        d = libdeflate_alloc_decompressor();
        if (!d)
            return -ENOMEM;
        g_private_set(&decompressors, d);
    }
    enum libdeflate_result result =
        libdeflate_zlib_decompress_ex(d, in, length, out, m->grain, &used, &got);
    return result == LIBDEFLATE_SUCCESS && got >= needed ? 0 : -EIO;
}

/* "Compressed grains": a marker with the length before it, if the header says so. */
static int sparse_unpack(GrainMap *m, const Grain *grain, uint8_t *out, size_t needed)
{
    const VmdkExtent *e = m->owner;
    size_t most = 2 * m->grain, first = m->grain + VMDK_SECTOR, data = m->grain, head = 0;
    g_autofree uint8_t *in = g_try_malloc(first);
    if (!in)
        return -ENOMEM;
    int result = block_file_read(m->file, grain->offset, in, first);
    if (result < 0)
        return result;
    if (e->markers) {
        head = VMDK_GRAIN_MARKER_BYTES;
        data = le32_get(in + 8);
        if (data == 0 || data > most - head)
            return -EIO;
    }
    if (head + data > first) {
        uint8_t *more = g_try_realloc(in, head + data);
        if (!more)
            return -ENOMEM;
        in = more;
        result = block_file_read(m->file, grain->offset + first, in + first, head + data - first);
    }
    return result < 0 ? result : inflate_grain(m, in + head, data, out, needed);
}

static size_t sparse_pack(GrainMap *m, uint64_t start, const uint8_t *in, size_t length, uint8_t *out,
                          size_t room)
{
    struct libdeflate_compressor *c = g_private_get(&compressors);
    if (!c) {
        c = libdeflate_alloc_compressor(DEFLATE_LEVEL);
        if (!c)
            return 0;
        g_private_set(&compressors, c);
    }
    size_t data = libdeflate_zlib_compress(c, in, length, out + VMDK_GRAIN_MARKER_BYTES,
                                           room - VMDK_GRAIN_MARKER_BYTES);
    le64_put(out, start / VMDK_SECTOR);
    le32_put(out + 8, (uint32_t)data);
    return data ? data + VMDK_GRAIN_MARKER_BYTES : 0;
}

static const GrainOps sparse_ops = {
    .decode = sparse_decode,
    .encode = sparse_encode,
    .table_decode = table_decode,
    .table_encode = table_encode,
    .unpack = sparse_unpack,
    .pack = sparse_pack,
};

/* The footer, two sectors before the end, is a header that knows where the directory is. */
static bool read_footer(const Vmdk *v, BlockFile *file, uint8_t *h, GError **err)
{
    uint8_t tail[3 * VMDK_SECTOR];
    uint64_t size;
    int result = file->ops->size(file, &size);
    size = align_up(size, VMDK_SECTOR);
    if (result == 0 && size < sizeof(tail))
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "Invalid footer");
    if (result == 0)
        result = block_file_read(file, size - sizeof(tail), tail, sizeof(tail));
    if (result < 0)
        return lodge_fail_errno(err, -result, "Failed to read footer");
    const uint8_t *footer = tail + VMDK_SECTOR, *end = footer + VMDK_SECTOR;
    if (memcmp(footer, "KDMV", 4) || le32_get(tail + 8) != 0 ||
        le32_get(tail + 12) != VMDK_MARKER_FOOTER || le64_get(end) != 0 || le32_get(end + 8) != 0 ||
        le32_get(end + 12) != VMDK_MARKER_END)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "Invalid footer");
    if (!v->node->read_only)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "%s: a stream-optimized image whose tables are at its end can only be "
                          "read",
                          file->path);
    memcpy(h, footer, VMDK_SECTOR);
    return true;
}

static bool check_sparse_header(const Vmdk *v, BlockFile *file, const uint8_t *h, GError **err)
{
    uint32_t version = le32_get(h + VMDK_VERSION), entries = le32_get(h + VMDK_TABLE_SIZE);
    uint64_t grain = le64_get(h + VMDK_GRAIN_SIZE), capacity = le64_get(h + VMDK_CAPACITY);
    uint64_t overhead = le64_get(h + VMDK_OVERHEAD), size, covers;
    bool compressed = le16_get(h + VMDK_COMPRESSION) == VMDK_DEFLATE;
    if (version > 3)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "Unsupported VMDK version %u", version);
    if (version == 3 && !compressed && !v->node->read_only)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "VMDK version 3 must be read only");
    if (entries > VMDK_TABLE_ENTRIES)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "L2 table size too big");
    if (entries == 0 || grain == 0)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "L1 entry size is invalid");
    int result = file->ops->size(file, &size);
    if (result < 0)
        return lodge_fail_errno(err, -result, "%s: cannot find its size", file->path);
    if ((size + VMDK_SECTOR - 1) / VMDK_SECTOR < overhead)
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "File truncated, expecting at least %" G_GINT64_FORMAT " bytes",
                          (int64_t)(overhead * VMDK_SECTOR));
    if (grain > GRAINS_GRAIN_MAX / VMDK_SECTOR || (grain & (grain - 1)))
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "Invalid granularity, image may be corrupt");
    covers = grain * entries;
    if (capacity / covers >= GRAINS_TABLES_MAX || capacity > INT64_MAX / VMDK_SECTOR - covers)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "L1 size too big");
    return true;
}

static void set_sparse(VmdkExtent *e, const uint8_t *h)
{
    GrainMap *m = &e->map;
    uint32_t flags = le32_get(h + VMDK_FLAGS);
    e->compressed = le16_get(h + VMDK_COMPRESSION) == VMDK_DEFLATE;
    e->markers = flags & VMDK_FLAG_MARKERS;
    e->size = le64_get(h + VMDK_CAPACITY) * VMDK_SECTOR;
    m->ops = &sparse_ops;
    m->grain = le64_get(h + VMDK_GRAIN_SIZE) * VMDK_SECTOR;
    m->entries = le32_get(h + VMDK_TABLE_SIZE);
    m->entry_bytes = m->table_entry_bytes = 4;
    m->directory = (le64_get(h + VMDK_DIRECTORY) & (INT64_MAX >> 10)) * VMDK_SECTOR;
    if (flags & VMDK_FLAG_REDUNDANT)
        m->mirror = (le64_get(h + VMDK_REDUNDANT) & (INT64_MAX >> 10)) * VMDK_SECTOR;
    m->header = VMDK_HEADER_BYTES;
    m->alignment = m->grain;
    m->pack_alignment = VMDK_SECTOR;
    m->file_max = FILE_SECTORS_MAX * VMDK_SECTOR;
    m->zero_entries = flags & VMDK_FLAG_ZERO_GRAIN;
    m->packs = e->compressed && e->markers;
    if (m->packs)
        m->pack_room = VMDK_GRAIN_MARKER_BYTES + libdeflate_zlib_compress_bound(NULL, m->grain);
    if (e->compressed && !e->markers) /* only grains with markers can be made */
        m->read_only = true;
}

bool vmdk_extent_add_sparse(Vmdk *v, BlockFile *file, bool owns, const VmdkExtentLine *line,
                            GError **err)
{
    uint8_t h[VMDK_HEADER_BYTES];
    VmdkExtent *e = vmdk_extent_new(v, file, owns, line);
    int result = block_file_read(file, 0, h, sizeof(h));
    bool good = result == 0 || lodge_fail_errno(err, -result,
                                                "Could not read header from file '%s'", file->path);
    if (good && le64_get(h + VMDK_DIRECTORY) == VMDK_DIRECTORY_AT_END)
        good = read_footer(v, file, h, err);
    if (!good || !check_sparse_header(v, file, h, err)) {
        vmdk_extent_free(e);
        return false;
    }
    set_sparse(e, h);
    if (!line) {
        uint64_t at = le64_get(h + VMDK_DESC_OFFSET), sectors = le64_get(h + VMDK_DESC_SIZE);
        if (at && at < KIB(64) && sectors <= VMDK_DESCRIPTOR_MAX / VMDK_SECTOR)
            e->map.header = MAX(e->map.header, (at + sectors) * VMDK_SECTOR);
    }
    if (!v->create_type)
        v->create_type = g_strdup(e->compressed ? "streamOptimized" : "monolithicSparse");
    return vmdk_extent_start(e, err);
}

bool vmdk_extent_add_cowd(Vmdk *v, BlockFile *file, bool owns, const VmdkExtentLine *line,
                          GError **err)
{
    uint8_t h[VMDK_HEADER_BYTES];
    VmdkExtent *e = vmdk_extent_new(v, file, owns, line);
    GrainMap *m = &e->map;
    int result = block_file_read(file, 0, h, sizeof(h));
    uint64_t grain = le32_get(h + COWD_GRAIN_SIZE);
    e->size = (uint64_t)le32_get(h + COWD_CAPACITY) * VMDK_SECTOR;
    bool good = false;
    if (result < 0)
        lodge_fail_errno(err, -result, "Could not read header from file '%s'", file->path);
    else if (!v->node->read_only)
        lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "No write support for COWD images available");
    else if (grain == 0 || grain > GRAINS_GRAIN_MAX / VMDK_SECTOR || (grain & (grain - 1)))
        lodge_fail(err, LODGE_ERROR_CORRUPT, "Invalid granularity, image may be corrupt");
    else if (e->size / VMDK_SECTOR > le32_get(h + COWD_DIRECTORY_SIZE) * grain * COWD_TABLE_ENTRIES)
        lodge_fail(err, LODGE_ERROR_CORRUPT, "%s: its grain directory is too small", file->path);
    else
        good = true;
    if (!good) {
        vmdk_extent_free(e);
        return false;
    }
    m->ops = &sparse_ops;
    m->read_only = true;
    m->grain = grain * VMDK_SECTOR;
    m->entries = COWD_TABLE_ENTRIES;
    m->entry_bytes = m->table_entry_bytes = 4;
    m->directory = (uint64_t)le32_get(h + COWD_DIRECTORY) * VMDK_SECTOR;
    m->header = COWD_HEADER_BYTES;
    m->alignment = m->grain;
    return vmdk_extent_start(e, err);
}
