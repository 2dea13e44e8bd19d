/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* New VHD images. "Virtual Hard Disk Image Format Specification", Microsoft, version 1.0, 2006. */
#include "base/bytes.h"
#include "base/error.h"
#include "disk/format/vpc.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#define EPOCH_2000   946684800 /* 2000-01-01 00:00 UTC in seconds since 1970 */
#define HEADER_AT    512u      /* of the dynamic header: behind the copy of the footer */
#define TABLE_AT     (HEADER_AT + VPC_DYNAMIC_BYTES)
#define CHS_TRIES    65536u    /* a geometry is never further than 16 * 255 sectors away */

typedef struct Geometry {
    uint32_t cylinders, heads, sectors;
} Geometry;

/* The specification's appendix "CHS Calculation": the geometry for a disk of @total sectors. */
static Geometry chs_for(uint64_t total)
{
    Geometry g = {65535, 16, 255};
    if (total >= VPC_CHS_MAX)
        return g;
    if (total >= 65535ull * 16 * 63) {
        g.cylinders = (uint32_t)(total / g.sectors / g.heads);
        return g;
    }
    g.sectors = 17;
    uint64_t tracks = total / 17;
    g.heads = MAX((uint32_t)((tracks + 1023) / 1024), 4);
    if (tracks >= g.heads * 1024ull || g.heads > 16) {
        g.sectors = 31;
        g.heads = 16;
        tracks = total / 31;
    }
    if (tracks >= g.heads * 1024ull) {
        g.sectors = 63;
        g.heads = 16;
        tracks = total / 63;
    }
    g.cylinders = (uint32_t)(tracks / g.heads);
    return g;
}

static uint64_t capacity(const Geometry *g)
{
    return (uint64_t)g->cylinders * g->heads * g->sectors;
}

const BlockOption vpc_create_options[] = {
    {"size", BLOCK_OPTION_SIZE, "Virtual disk size", NULL},
    {"subformat", BLOCK_OPTION_STRING,
     "Type of virtual hard disk format. Supported formats are {dynamic (default) | fixed} ",
     "dynamic"},
    {"force_size", BLOCK_OPTION_BOOL,
     "Force disk size calculation to use the actual size specified, rather than using the nearest "
     "CHS-based calculation",
     "off"},
    {"preallocation", BLOCK_OPTION_STRING, "Preallocation mode (allowed values: off)", NULL},
    {NULL, 0, NULL, NULL},
};

static const char *subformat(const BlockCreate *c)
{
    return block_option_string(c->options, vpc_create_options, "subformat");
}

static bool is_fixed(const BlockCreate *c)
{
    return !strcmp(subformat(c), "fixed");
}

/* Checked by vpc_create_check. */
static bool force_size(const BlockCreate *c)
{
    bool force = false;
    block_option_bool(c->options, NULL, "force_size", &force, NULL);
    return force;
}

/* The disk's size in sectors: what was asked for, or the next that a geometry has exactly. */
static uint64_t choose_size(const BlockCreate *c, Geometry *g)
{
    uint64_t wanted = (c->size + VPC_SECTOR - 1) / VPC_SECTOR;
    *g = (Geometry){65535, 16, 255};
    if (force_size(c))
        return wanted;
    for (uint64_t more = 0; more < CHS_TRIES; more++) {
        *g = chs_for(wanted + more);
        if (capacity(g) >= wanted)
            break;
    }
    return capacity(g) >= VPC_CHS_MAX ? wanted : capacity(g);
}

bool vpc_create_check(const BlockCreate *c, GError **err)
{
    BlockPreallocation mode;
    bool force;
    if (!block_preallocation(c->options, &mode, err) ||
        !block_option_bool(c->options, vpc_create_options, "force_size", &force, err))
        return false;
    if (mode != BLOCK_PREALLOCATE_OFF)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "this preallocation is not supported for vpc images; \"off\" and "
                          "subformat=fixed are");
    if (!is_fixed(c) && strcmp(subformat(c), "dynamic"))
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "Parameter 'subformat' does not accept value '%s'", subformat(c));
    if (c->size > VPC_SECTORS_MAX * VPC_SECTOR)
        return lodge_fail(err, LODGE_ERROR_LIMIT,
                          "The image size is too large for file format 'vpc'");
    return true;
}

/* Sizes by geometry suit every reader; "win " tells readers to use the size instead. */
static bool make_footer(uint8_t *f, const BlockCreate *c, uint64_t size, const Geometry *g,
                        GError **err)
{
    memcpy(f + VPC_COOKIE, "conectix", 8);
    be32_put(f + VPC_FEATURES, 2); /* reserved, always set */
    be32_put(f + VPC_FILE_VERSION, VPC_VERSION);
    be64_put(f + VPC_DATA_OFFSET, is_fixed(c) ? VPC_NO_DATA : HEADER_AT);
    be32_put(f + VPC_TIME, (uint32_t)(time(NULL) - EPOCH_2000));
    memcpy(f + VPC_CREATOR, force_size(c) ? "win " : "ldge", 4);
    be32_put(f + VPC_CREATOR_VERSION, VPC_VERSION);
    memcpy(f + VPC_CREATOR_OS, "Wi2k", 4); /* the specification knows this and "Mac " */
    be64_put(f + VPC_ORIGINAL_SIZE, size);
    be64_put(f + VPC_CURRENT_SIZE, size);
    be16_put(f + VPC_CYLINDERS, (uint16_t)g->cylinders);
    f[VPC_HEADS] = (uint8_t)g->heads;
    f[VPC_SECTORS] = (uint8_t)g->sectors;
    be32_put(f + VPC_TYPE, is_fixed(c) ? VPC_FIXED : VPC_DYNAMIC);
    if (getrandom(f + VPC_UUID, 16, 0) != 16)
        return lodge_fail_errno(err, errno, "%s: cannot make a UUID", c->path);
    f[VPC_UUID + 6] = (uint8_t)((f[VPC_UUID + 6] & 0x0f) | 0x40);
    f[VPC_UUID + 8] = (uint8_t)((f[VPC_UUID + 8] & 0x3f) | 0x80);
    be32_put(f + VPC_CHECKSUM, vpc_checksum(f, VPC_FOOTER_BYTES, VPC_CHECKSUM));
    return true;
}

static int write_fixed(BlockFile *file, uint64_t size, const uint8_t *footer)
{
    int result = 0;
    if (file->block_device)
        result = file->ops->zero(file, 0, size, true);
    return result < 0 ? result : block_file_write(file, size, footer, VPC_FOOTER_BYTES);
}

/* The footer's copy, the header, the table, the footer. */
static int write_dynamic(BlockFile *file, uint64_t size, const uint8_t *footer)
{
    uint64_t blocks = (size + VPC_CREATE_BLOCK - 1) / VPC_CREATE_BLOCK;
    uint64_t table = align_up(blocks * 4, VPC_SECTOR), bytes = TABLE_AT + table + VPC_FOOTER_BYTES;
    g_autofree uint8_t *image = g_try_malloc0(bytes);
    if (!image)
        return -ENOMEM;
    uint8_t *h = image + HEADER_AT;
    memcpy(image, footer, VPC_FOOTER_BYTES);
    memcpy(h, "cxsparse", 8);
    be64_put(h + VPC_DYNAMIC_NEXT, VPC_NO_DATA);
    be64_put(h + VPC_DYNAMIC_TABLE, TABLE_AT);
    be32_put(h + VPC_DYNAMIC_VERSION, VPC_VERSION);
    be32_put(h + VPC_DYNAMIC_BLOCKS, (uint32_t)blocks);
    be32_put(h + VPC_DYNAMIC_BLOCK_SIZE, (uint32_t)VPC_CREATE_BLOCK);
    be32_put(h + VPC_DYNAMIC_CHECKSUM, vpc_checksum(h, VPC_DYNAMIC_BYTES, VPC_DYNAMIC_CHECKSUM));
    memset(image + TABLE_AT, 0xff, table);
    memcpy(image + TABLE_AT + table, footer, VPC_FOOTER_BYTES);
    return block_file_write(file, 0, image, bytes);
}

bool vpc_create(BlockFile *file, const BlockCreate *c, GError **err)
{
    uint8_t footer[VPC_FOOTER_BYTES] = {0};
    Geometry g;
    uint64_t size = choose_size(c, &g) * VPC_SECTOR;
    if (!make_footer(footer, c, size, &g, err))
        return false;
    int result = is_fixed(c) ? write_fixed(file, size, footer) : write_dynamic(file, size, footer);
    return result == 0 || lodge_fail_errno(err, -result, "%s: cannot write the image", c->path);
}
