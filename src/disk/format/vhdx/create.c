/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* New vhdx images, laid out as qemu-img does: header, log, block allocation table, metadata. */
#include "base/bytes.h"
#include "base/error.h"
#include "disk/format/vhdx/vhdx.h"

#include <errno.h>

#define METADATA_BYTES MIB(1)
#define HEAD_BYTES     (VHDX_REGIONS_AT + 2 * VHDX_TABLE_BYTES)
#define SPARE_BYTES    MIB(5) /* the metadata region and room behind it, before the first block */

const BlockOption vhdx_create_options[] = {
    {"size", BLOCK_OPTION_SIZE, "Virtual disk size; max of 64TB.", NULL},
    {"log_size", BLOCK_OPTION_SIZE, "Log size; min 1MB.", "1048576"},
    {"block_size", BLOCK_OPTION_SIZE,
     "Block Size; min 1MB, max 256MB. 0 means auto-calculate based on image size.", "0"},
    {"subformat", BLOCK_OPTION_STRING,
     "VHDX format type, can be either 'dynamic' or 'fixed'. Default is 'dynamic'.", NULL},
    {"block_state_zero", BLOCK_OPTION_BOOL,
     "Force use of payload blocks of type 'ZERO'. Non-standard, but default.  Do not set to 'off' "
     "when using 'qemu-img convert' with subformat=dynamic.",
     NULL},
    {NULL, 0, NULL, NULL},
};

typedef struct Plan {
    uint64_t size, block, log, blocks, chunk, bat_at, bat_bytes, metadata_at, data_at;
    bool fixed, zero;
} Plan;

uint64_t vhdx_entries(uint64_t blocks, uint64_t chunk)
{
    return blocks ? blocks + (blocks - 1) / chunk : 0;
}

static uint64_t default_block(uint64_t size)
{
    if (size > 32 * GIB(1024))
        return MIB(64);
    return size > GIB(100) ? MIB(32) : size > GIB(1) ? MIB(16) : MIB(8);
}

static bool read_options(const BlockCreate *c, Plan *p, GError **err)
{
    uint64_t block = 0, log = 0;
    const char *subformat = block_option_string(c->options, vhdx_create_options, "subformat");
    *p = (Plan){.size = c->size, .zero = true};
    if (!block_option_size(c->options, vhdx_create_options, "block_size", &block, err) ||
        !block_option_size(c->options, vhdx_create_options, "log_size", &log, err) ||
        !block_option_bool(c->options, vhdx_create_options, "block_state_zero", &p->zero, err))
        return false;
    if (subformat && strcmp(subformat, "dynamic") && strcmp(subformat, "fixed"))
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "Parameter 'subformat' does not accept value '%s'", subformat);
    p->fixed = subformat && !strcmp(subformat, "fixed");
    if (p->size > VHDX_DISK_MAX)
        return lodge_fail(err, LODGE_ERROR_INVALID, "Image size too large; max of 64TB");
    p->size = align_up(p->size, 512);
    if (log > UINT32_MAX - VHDX_ALIGNMENT)
        return lodge_fail(err, LODGE_ERROR_INVALID, "Log size must be smaller than 4 GB");
    p->log = align_up(log, VHDX_ALIGNMENT);
    if (p->log < VHDX_ALIGNMENT)
        return lodge_fail(err, LODGE_ERROR_INVALID, "Log size must be a multiple of 1 MB");
    block = block ? MIN(align_up(MIN(block, VHDX_BLOCK_MAX), MIB(1)), VHDX_BLOCK_MAX)
                  : default_block(p->size);
    if (block & (block - 1))
        return lodge_fail(err, LODGE_ERROR_INVALID, "Block size must be a power of two");
    p->block = block;
    return true;
}

static bool make_plan(const BlockCreate *c, Plan *p, GError **err)
{
    if (!read_options(c, p, err))
        return false;
    p->blocks = (p->size + p->block - 1) / p->block;
    p->chunk = VHDX_SECTORS_A_CHUNK * 512 / p->block;
    p->bat_at = VHDX_ALIGNMENT + p->log;
    /* A table of no bytes would be no region. */
    p->bat_bytes = align_up(MAX(vhdx_entries(p->blocks, p->chunk) * 8, 1), VHDX_ALIGNMENT);
    p->metadata_at = p->bat_at + p->bat_bytes;
    p->data_at = p->bat_at + p->bat_bytes + SPARE_BYTES;
    if (p->blocks > BLOCKMAP_TABLE_MAX / 4)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "a VHDX image of %" G_GUINT64_FORMAT " blocks; at most %u are supported: "
                          "give it a larger block_size",
                          p->blocks, (unsigned)(BLOCKMAP_TABLE_MAX / 4));
    return true;
}

bool vhdx_create_check(const BlockCreate *c, GError **err)
{
    Plan p;
    return make_plan(c, &p, err);
}

/* The first HEAD_BYTES: identifier, headers, region tables. */
static bool make_head(uint8_t *head, const Plan *p)
{
    static const char creator[] = "Lodge";
    memcpy(head, "vhdxfile", 8);
    for (size_t i = 0; creator[i]; i++)
        le16_put(head + 8 + i * 2, (uint16_t)creator[i]);
    uint8_t *h = head + VHDX_HEADER_AT, *second = h + VHDX_HEADER_AT;
    memcpy(h, "head", 4);
    le64_put(h + VHDX_HEADER_SEQUENCE, 1);
    le16_put(h + VHDX_HEADER_VERSION, 1);
    le32_put(h + VHDX_HEADER_LOG_LENGTH, (uint32_t)p->log);
    le64_put(h + VHDX_HEADER_LOG_OFFSET, VHDX_ALIGNMENT);
    if (!vhdx_guid_new(h + VHDX_HEADER_FILE_WRITE) || !vhdx_guid_new(h + VHDX_HEADER_DATA_WRITE))
        return false;
    memcpy(second, h, VHDX_HEADER_BYTES);
    le64_put(second + VHDX_HEADER_SEQUENCE, 2);
    vhdx_seal(h, VHDX_HEADER_BYTES, VHDX_HEADER_CHECKSUM);
    vhdx_seal(second, VHDX_HEADER_BYTES, VHDX_HEADER_CHECKSUM);
    uint8_t *r = head + VHDX_REGIONS_AT;
    memcpy(r, "regi", 4);
    le32_put(r + 8, 2);
    const struct {
        const VhdxGuid *guid;
        uint64_t at, bytes;
    } regions[] = {{&vhdx_bat, p->bat_at, p->bat_bytes},
                   {&vhdx_metadata, p->metadata_at, METADATA_BYTES}};
    for (size_t i = 0; i < G_N_ELEMENTS(regions); i++) {
        uint8_t *e = r + 16 + i * 32;
        memcpy(e, regions[i].guid->bytes, 16);
        le64_put(e + 16, regions[i].at);
        le32_put(e + 24, (uint32_t)regions[i].bytes);
        le32_put(e + 28, 1); /* required */
    }
    vhdx_seal(r, VHDX_TABLE_BYTES, 4);
    memcpy(r + VHDX_TABLE_BYTES, r, VHDX_TABLE_BYTES);
    return true;
}

static bool make_metadata(uint8_t *m, const Plan *p)
{
    uint8_t page_83[16], parameters[8], size[8], sector[4];
    le32_put(parameters, (uint32_t)p->block);
    le32_put(parameters + 4, p->fixed ? 1 : 0); /* LeaveBlockAllocated */
    le64_put(size, p->size);
    le32_put(sector, 512);
    if (!vhdx_guid_new(page_83))
        return false;
    const struct {
        const VhdxGuid *guid;
        const uint8_t *value;
        uint32_t bytes, flags; /* 4: required; 2: of the disk, not of the file */
    } items[] = {
        {&vhdx_file_parameters, parameters, 8, 4}, {&vhdx_disk_size, size, 8, 6},
        {&vhdx_page_83, page_83, 16, 6},           {&vhdx_logical_sector, sector, 4, 6},
        {&vhdx_physical_sector, sector, 4, 6},
    };
    uint32_t at = VHDX_TABLE_BYTES;
    memcpy(m, "metadata", 8);
    le16_put(m + 10, G_N_ELEMENTS(items));
    for (size_t i = 0; i < G_N_ELEMENTS(items); i++) {
        uint8_t *e = m + 32 + i * 32;
        memcpy(e, items[i].guid->bytes, 16);
        le32_put(e + 16, at);
        le32_put(e + 20, items[i].bytes);
        le32_put(e + 24, items[i].flags);
        memcpy(m + at, items[i].value, items[i].bytes);
        at += items[i].bytes;
    }
    return true;
}

static int write_bat(BlockFile *file, const Plan *p)
{
    if (!p->fixed && !p->zero)
        return 0;
    uint64_t bytes = align_up(vhdx_entries(p->blocks, p->chunk) * 8, VHDX_LOG_SECTOR);
    g_autofree uint8_t *bat = g_try_malloc0(bytes + 1);
    if (!bat)
        return -ENOMEM;
    for (uint64_t i = 0; i < p->blocks; i++)
        le64_put(bat + (i + i / p->chunk) * 8,
                 p->fixed ? (p->data_at + i * p->block) | VHDX_PRESENT : VHDX_ZERO);
    return block_file_write(file, p->bat_at, bat, bytes);
}

bool vhdx_create(BlockFile *file, const BlockCreate *c, GError **err)
{
    Plan p;
    if (!make_plan(c, &p, err))
        return false;
    uint64_t end = p.data_at + (p.fixed ? p.blocks * p.block : 0);
    g_autofree uint8_t *head = g_malloc0(HEAD_BYTES);
    g_autofree uint8_t *metadata = g_malloc0(VHDX_TABLE_BYTES * 2);
    if (!make_head(head, &p) || !make_metadata(metadata, &p))
        return lodge_fail_errno(err, errno, "%s: cannot make a GUID", c->path);
    int result =
        file->block_device ? file->ops->zero(file, 0, end, true) : file->ops->truncate(file, end);
    if (result == 0)
        result = write_bat(file, &p);
    if (result == 0)
        result = block_file_write(file, p.metadata_at, metadata, VHDX_TABLE_BYTES * 2);
    if (result == 0)
        result = block_file_write(file, 0, head, HEAD_BYTES);
    return result == 0 || lodge_fail_errno(err, -result, "%s: cannot write the image", c->path);
}
