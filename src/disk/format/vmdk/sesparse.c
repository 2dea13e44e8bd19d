/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Extents of type SESPARSE ("space efficient sparse", VMFS 6), read-only. Not documented by its
 * maker: only what is known for certain is accepted, in fields of 64 bits, little-endian.
 */
#include "base/bytes.h"
#include "base/error.h"
#include "disk/format/vmdk/vmdk.h"

#include <errno.h>

#define CONST_MAGIC    0x00000000cafebabeull
#define VOLATILE_MAGIC 0x00000000cafecafeull
#define VERSION_2_1    0x0000000200000001ull
#define GRAIN_SECTORS  8u
#define TABLE_SECTORS  64u

/* Which 64-bit field of the constant header. */
enum {
    F_MAGIC = 0,
    F_VERSION = 1,
    F_CAPACITY = 2,
    F_GRAIN = 3,
    F_TABLE = 4,
    F_FLAGS = 5,
    F_RESERVED = 6, /* four */
    F_VOLATILE = 10,
    F_DIRECTORY = 16,
    F_DIRECTORY_SIZE = 17,
    F_TABLES = 18,
    F_GRAINS = 24,
    F_PADDING = 26, /* up to the end of the sector */
};

enum { V_MAGIC = 0, V_REPLAY = 3, V_PADDING = 4 };

static uint64_t field(const uint8_t *header, unsigned number)
{
    return le64_get(header + (size_t)number * 8);
}

static bool all_zero(const uint8_t *header, unsigned from, unsigned to)
{
    for (unsigned i = from; i < to; i++) {
        if (field(header, i))
            return false;
    }
    return true;
}

static bool check_constant(const uint8_t *h, GError **err)
{
    if (field(h, F_MAGIC) != CONST_MAGIC)
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "Bad const header magic: 0x%016" G_GINT64_MODIFIER "x", field(h, F_MAGIC));
    if (field(h, F_VERSION) != VERSION_2_1)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "Unsupported version: 0x%016" G_GINT64_MODIFIER "x", field(h, F_VERSION));
    if (field(h, F_GRAIN) != GRAIN_SECTORS)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "Unsupported grain size: %" G_GUINT64_FORMAT, field(h, F_GRAIN));
    if (field(h, F_TABLE) != TABLE_SECTORS)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "Unsupported grain table size: %" G_GUINT64_FORMAT, field(h, F_TABLE));
    if (field(h, F_FLAGS))
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "Unsupported flags: 0x%016" G_GINT64_MODIFIER "x", field(h, F_FLAGS));
    if (!all_zero(h, F_RESERVED, F_RESERVED + 4))
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "Unsupported reserved bits");
    if (!all_zero(h, F_PADDING, VMDK_SECTOR / 8))
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "Unsupported non-zero const header padding");
    return true;
}

static bool check_volatile(const uint8_t *h, GError **err)
{
    if (field(h, V_MAGIC) != VOLATILE_MAGIC)
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "Bad volatile header magic: 0x%016" G_GINT64_MODIFIER "x",
                          field(h, V_MAGIC));
    if (field(h, V_REPLAY))
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "Image is dirty, Replaying journal not supported");
    if (!all_zero(h, V_PADDING, VMDK_SECTOR / 8))
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "Unsupported non-zero volatile header padding");
    return true;
}

/* The type is in the top four bits; the grain's number is folded around the next twelve. */
static bool decode(const GrainMap *m, const uint8_t *p, Grain *grain)
{
    const VmdkExtent *e = m->owner;
    uint64_t entry = le64_get(p), number;
    switch (entry >> 60) {
    case 0:
        *grain = (Grain){.kind = GRAIN_NONE};
        return entry == 0;
    case 1: /* unmapped by the guest */
    case 2:
        *grain = (Grain){.kind = GRAIN_ZERO};
        return true;
    case 3:
        number = (entry >> 48 & 0xfff) | (entry & 0xffffffffffffull) << 12;
        *grain = (Grain){.kind = GRAIN_DATA};
        return number < INT64_MAX / VMDK_SECTOR / GRAIN_SECTORS - e->grains_at &&
               add_u64(e->grains_at * VMDK_SECTOR, number * GRAIN_SECTORS * VMDK_SECTOR,
                       &grain->offset);
    default:
        return false;
    }
}

static bool table_decode(const GrainMap *m, const uint8_t *p, uint64_t *offset)
{
    const VmdkExtent *e = m->owner;
    uint64_t entry = le64_get(p);
    *offset = 0;
    if (entry == 0)
        return true;
    *offset = (e->tables_at + (entry & 0xffffffff) * TABLE_SECTORS) * VMDK_SECTOR;
    return entry >> 32 == 0x10000000;
}

static const GrainOps sesparse_ops = {.decode = decode, .table_decode = table_decode};

static bool set_map(VmdkExtent *e, const uint8_t *h, GError **err)
{
    const uint64_t most = INT64_MAX / VMDK_SECTOR / 4096; /* no field of a real image comes near */
    GrainMap *m = &e->map;
    m->ops = &sesparse_ops;
    m->read_only = true;
    m->grain = GRAIN_SECTORS * VMDK_SECTOR;
    m->entries = TABLE_SECTORS * VMDK_SECTOR / 8;
    m->entry_bytes = m->table_entry_bytes = 8;
    m->alignment = m->grain;
    m->header = VMDK_SECTOR;
    if (field(h, F_CAPACITY) > most || field(h, F_DIRECTORY) > most || field(h, F_TABLES) > most ||
        field(h, F_GRAINS) > most || field(h, F_DIRECTORY_SIZE) > most)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "%s: its seSparse header is not possible",
                          m->file->path);
    e->size = field(h, F_CAPACITY) * VMDK_SECTOR;
    e->tables_at = field(h, F_TABLES);
    e->grains_at = field(h, F_GRAINS);
    m->directory = field(h, F_DIRECTORY) * VMDK_SECTOR;
    uint64_t covers = field(h, F_DIRECTORY_SIZE) * (VMDK_SECTOR / 8);
    if ((e->size / m->grain + m->entries - 1) / m->entries > covers)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "%s: its grain directory is too small",
                          m->file->path);
    return true;
}

bool vmdk_extent_add_sesparse(Vmdk *v, BlockFile *file, const VmdkExtentLine *line, GError **err)
{
    uint8_t constant[VMDK_SECTOR], changing[VMDK_SECTOR];
    VmdkExtent *e = vmdk_extent_new(v, file, true, line);
    int result = block_file_read(file, 0, constant, sizeof(constant));
    bool good = false;
    if (!v->node->read_only)
        lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "No write support for seSparse images available");
    else if (result < 0)
        lodge_fail_errno(err, -result, "Could not read const header from file '%s'", file->path);
    else
        good = check_constant(constant, err) && set_map(e, constant, err);
    if (good) {
        uint64_t at = field(constant, F_VOLATILE);
        result = at > INT64_MAX / VMDK_SECTOR / 2
                     ? -EINVAL
                     : block_file_read(file, at * VMDK_SECTOR, changing, sizeof(changing));
        good = result == 0 ? check_volatile(changing, err)
                           : lodge_fail_errno(err, -result,
                                              "Could not read volatile header from file '%s'",
                                              file->path);
    }
    if (!good) {
        vmdk_extent_free(e);
        return false;
    }
    return vmdk_extent_start(e, err);
}
