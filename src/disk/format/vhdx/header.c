/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Headers (section 2.2), the region table (2.2.3) and the metadata region (2.6). */
#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/error.h"
#include "disk/format/vhdx/vhdx.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/random.h>

/* GUIDs as they are in the file: the first three fields little-endian. */
const VhdxGuid vhdx_bat = {{0x66, 0x77, 0xc2, 0x2d, 0x23, 0xf6, 0x00, 0x42, 0x9d, 0x64, 0x11, 0x5e,
                            0x9b, 0xfd, 0x4a, 0x08}};
const VhdxGuid vhdx_metadata = {{0x06, 0xa2, 0x7c, 0x8b, 0x90, 0x47, 0x9a, 0x4b, 0xb8, 0xfe, 0x57,
                                 0x5f, 0x05, 0x0f, 0x88, 0x6e}};
const VhdxGuid vhdx_file_parameters = {{0x37, 0x67, 0xa1, 0xca, 0x36, 0xfa, 0x43, 0x4d, 0xb3, 0xb6,
                                        0x33, 0xf0, 0xaa, 0x44, 0xe7, 0x6b}};
const VhdxGuid vhdx_disk_size = {{0x24, 0x42, 0xa5, 0x2f, 0x1b, 0xcd, 0x76, 0x48, 0xb2, 0x11, 0x5d,
                                  0xbe, 0xd8, 0x3b, 0xf4, 0xb8}};
const VhdxGuid vhdx_page_83 = {{0xab, 0x12, 0xca, 0xbe, 0xe6, 0xb2, 0x23, 0x45, 0x93, 0xef, 0xc3,
                                0x09, 0xe0, 0x00, 0xc7, 0x46}};
const VhdxGuid vhdx_logical_sector = {{0x1d, 0xbf, 0x41, 0x81, 0x6f, 0xa9, 0x09, 0x47, 0xba, 0x47,
                                       0xf2, 0x33, 0xa8, 0xfa, 0xab, 0x5f}};
const VhdxGuid vhdx_physical_sector = {{0xc7, 0x48, 0xa3, 0xcd, 0x5d, 0x44, 0x71, 0x44, 0x9c, 0xc9,
                                        0xe9, 0x88, 0x52, 0x51, 0xc5, 0x56}};
static const VhdxGuid parent_locator = {{0x2d, 0x5f, 0xd3, 0xa8, 0x0b, 0xb3, 0x4d, 0x45, 0xab, 0xf7,
                                         0xd3, 0xd8, 0x48, 0x34, 0xab, 0x0c}};

bool vhdx_guid_new(uint8_t *guid)
{
    if (getrandom(guid, 16, 0) != 16)
        return false;
    guid[7] = (uint8_t)((guid[7] & 0x0f) | 0x40); /* version 4; this field is little-endian */
    guid[8] = (uint8_t)((guid[8] & 0x3f) | 0x80);
    return true;
}

bool vhdx_guid_none(const uint8_t *guid)
{
    static const uint8_t none[16];
    return !memcmp(guid, none, sizeof(none));
}

static uint32_t checksum(const uint8_t *bytes, size_t length, size_t at)
{
    static const uint8_t none[4];
    uint32_t crc = crc32c(crc32c(0, bytes, at), none, 4);
    return crc32c(crc, bytes + at + 4, length - at - 4);
}

void vhdx_seal(uint8_t *bytes, size_t length, size_t at)
{
    le32_put(bytes + at, checksum(bytes, length, at));
}

bool vhdx_sealed(const uint8_t *bytes, size_t length, size_t at)
{
    return le32_get(bytes + at) == checksum(bytes, length, at);
}

static bool header_valid(const uint8_t *h)
{
    return !memcmp(h, "head", 4) && vhdx_sealed(h, VHDX_HEADER_BYTES, VHDX_HEADER_CHECKSUM) &&
           le16_get(h + VHDX_HEADER_VERSION) == 1;
}

/* Chooses the valid one with the higher number; two that are the same in all are one. */
static bool choose_header(const char *path, uint8_t both[2][VHDX_HEADER_BYTES], unsigned *chosen,
                          GError **err)
{
    bool first = header_valid(both[0]), second = header_valid(both[1]);
    uint64_t a = le64_get(both[0] + VHDX_HEADER_SEQUENCE);
    uint64_t b = le64_get(both[1] + VHDX_HEADER_SEQUENCE);
    if ((!first && !second) ||
        (first && second && a == b && memcmp(both[0], both[1], VHDX_HEADER_BYTES)))
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "%s: No valid VHDX header found", path);
    *chosen = second && (!first || b > a);
    return true;
}

bool vhdx_read_headers(BlockNode *node, GError **err)
{
    Vhdx *v = vhdx_of(node);
    uint8_t both[2][VHDX_HEADER_BYTES], signature[8];
    int result = block_file_read(node->file, 0, signature, sizeof(signature));
    for (unsigned i = 0; i < 2 && result == 0; i++)
        result = block_file_read(node->file, VHDX_HEADER_AT * (i + 1), both[i], VHDX_HEADER_BYTES);
    if (result < 0)
        return lodge_fail_errno(err, -result, "%s: cannot read its header", node->path);
    if (memcmp(signature, "vhdxfile", 8))
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "%s: not a VHDX image", node->path);
    if (!choose_header(node->path, both, &v->current, err))
        return false;
    memcpy(v->header, both[v->current], VHDX_HEADER_BYTES);
    v->log_offset = le64_get(v->header + VHDX_HEADER_LOG_OFFSET);
    v->log_length = le32_get(v->header + VHDX_HEADER_LOG_LENGTH);
    if (le16_get(v->header + VHDX_HEADER_LOG_VERSION) != 0)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "%s: VHDX log version %u is not supported; 0 is", node->path,
                          le16_get(v->header + VHDX_HEADER_LOG_VERSION));
    if (v->log_offset < VHDX_ALIGNMENT || v->log_offset % VHDX_ALIGNMENT ||
        v->log_length % VHDX_ALIGNMENT || v->log_offset > (uint64_t)INT64_MAX - v->log_length)
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "%s: a VHDX log of %u bytes at 0x%" G_GINT64_MODIFIER
                          "x; both must be multiples of 1 MiB",
                          node->path, v->log_length, v->log_offset);
    if (v->log_length)
        v->spans[v->n_spans++] = (VhdxSpan){v->log_offset, v->log_offset + v->log_length};
    return true;
}

static int write_header(Vhdx *v, uint8_t *header)
{
    unsigned other = !v->current;
    le64_put(header + VHDX_HEADER_SEQUENCE, le64_get(v->header + VHDX_HEADER_SEQUENCE) + 1);
    vhdx_seal(header, VHDX_HEADER_BYTES, VHDX_HEADER_CHECKSUM);
    int result = block_file_write(v->map.node->file, VHDX_HEADER_AT * (other + 1), header,
                                  VHDX_HEADER_BYTES);
    if (result == 0)
        result = block_node_sync(v->map.node);
    if (result == 0) {
        memcpy(v->header, header, VHDX_HEADER_BYTES);
        v->current = other;
    }
    return result;
}

int vhdx_write_headers(Vhdx *v, const uint8_t log[16], bool new_data)
{
    uint8_t header[VHDX_HEADER_BYTES];
    memcpy(header, v->header, sizeof(header));
    if (!vhdx_guid_new(header + VHDX_HEADER_FILE_WRITE) ||
        (new_data && !vhdx_guid_new(header + VHDX_HEADER_DATA_WRITE)))
        return -EIO;
    memcpy(header + VHDX_HEADER_LOG_GUID, log, 16);
    int result = write_header(v, header);
    return result == 0 ? write_header(v, header) : result;
}

static int compare_spans(const void *a, const void *b)
{
    const VhdxSpan *x = a, *y = b;
    return x->start < y->start ? -1 : x->start > y->start;
}

static bool add_region(BlockNode *node, const uint8_t *e, GError **err)
{
    Vhdx *v = vhdx_of(node);
    uint64_t at = le64_get(e + 16), bytes = le32_get(e + 24), *place = NULL;
    if (at < VHDX_ALIGNMENT || at > (uint64_t)INT64_MAX - bytes)
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "%s: a VHDX region at 0x%" G_GINT64_MODIFIER "x of %" G_GUINT64_FORMAT
                          " bytes is not possible",
                          node->path, at, bytes);
    if (!memcmp(e, vhdx_bat.bytes, 16)) {
        place = &v->bat_at, v->bat_bytes = bytes;
    } else if (!memcmp(e, vhdx_metadata.bytes, 16)) {
        place = &v->metadata_at, v->metadata_bytes = bytes;
    } else if (le32_get(e + 28) & 1) {
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "%s: it has a required VHDX region that is not known", node->path);
    }
    if (place && *place)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "%s: a VHDX region is there twice", node->path);
    if (place)
        *place = at;
    if (bytes)
        v->spans[v->n_spans++] = (VhdxSpan){at, at + bytes};
    return true;
}

bool vhdx_read_regions(BlockNode *node, GError **err)
{
    Vhdx *v = vhdx_of(node);
    g_autofree uint8_t *table = g_malloc(VHDX_TABLE_BYTES);
    uint32_t count = 0;
    bool valid = false;
    for (unsigned copy = 0; copy < 2 && !valid; copy++) {
        int result = block_file_read(node->file, VHDX_REGIONS_AT + copy * VHDX_TABLE_BYTES, table,
                                     VHDX_TABLE_BYTES);
        if (result < 0)
            return lodge_fail_errno(err, -result, "%s: cannot read its regions", node->path);
        count = le32_get(table + 8);
        valid = !memcmp(table, "regi", 4) && count <= VHDX_REGIONS_MAX &&
                vhdx_sealed(table, VHDX_TABLE_BYTES, 4);
    }
    if (!valid)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "%s: no valid VHDX region table found",
                          node->path);
    for (uint32_t i = 0; i < count; i++) {
        if (!add_region(node, table + 16 + (size_t)i * 32, err))
            return false;
    }
    if (!v->bat_at || !v->metadata_at)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "%s: it has no %s region", node->path,
                          v->bat_at ? "metadata" : "block allocation table");
    qsort(v->spans, v->n_spans, sizeof(VhdxSpan), compare_spans);
    for (unsigned i = 0; i < v->n_spans; i++) {
        if (i && v->spans[i].start < v->spans[i - 1].end)
            return lodge_fail(err, LODGE_ERROR_CORRUPT,
                              "%s: VHDX regions overlap at 0x%" G_GINT64_MODIFIER "x", node->path,
                              v->spans[i].start);
        v->next = MAX(v->next, v->spans[i].end);
    }
    return true;
}

/* The items of the metadata region that we understand. */
typedef struct Items {
    uint64_t parameters, size, logical, physical;
    bool has_parameters, has_size, has_page_83, has_logical, has_physical;
} Items;

static bool read_item(BlockNode *node, const uint8_t *e, Items *items, GError **err)
{
    const struct {
        const VhdxGuid *guid;
        uint32_t bytes;
        uint64_t *value;
        bool *has;
    } known[] = {
        {&vhdx_file_parameters, 8, &items->parameters, &items->has_parameters},
        {&vhdx_disk_size, 8, &items->size, &items->has_size},
        {&vhdx_page_83, 16, NULL, &items->has_page_83},
        {&vhdx_logical_sector, 4, &items->logical, &items->has_logical},
        {&vhdx_physical_sector, 4, &items->physical, &items->has_physical},
    };
    const Vhdx *v = vhdx_of(node);
    uint32_t at = le32_get(e + 16);
    for (size_t i = 0; i < G_N_ELEMENTS(known); i++) {
        uint8_t bytes[8] = {0};
        if (memcmp(e, known[i].guid->bytes, 16))
            continue;
        if (*known[i].has || !range_within(at, known[i].bytes, v->metadata_bytes))
            return lodge_fail(err, LODGE_ERROR_CORRUPT,
                              "%s: an item of VHDX metadata is there twice or outside of its "
                              "region",
                              node->path);
        *known[i].has = true;
        if (!known[i].value)
            return true;
        int result = block_file_read(node->file, v->metadata_at + at, bytes, known[i].bytes);
        *known[i].value = le64_get(bytes);
        return result == 0 ||
               lodge_fail_errno(err, -result, "%s: cannot read its metadata", node->path);
    }
    if (memcmp(e, parent_locator.bytes, 16) && (le32_get(e + 24) & 4))
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "%s: it has a required item of VHDX metadata that is not known",
                          node->path);
    return true;
}

static bool check_items(BlockNode *node, const Items *items, GError **err)
{
    Vhdx *v = vhdx_of(node);
    uint32_t block = (uint32_t)items->parameters;
    if (!items->has_parameters || !items->has_size || !items->has_page_83 || !items->has_logical ||
        !items->has_physical)
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "%s: an item of VHDX metadata that must be there is missing", node->path);
    if (items->parameters >> 32 & 2)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "%s: VHDX differencing images are not supported; dynamic and fixed ones "
                          "are",
                          node->path);
    if (block < MIB(1) || block > VHDX_BLOCK_MAX || (block & (block - 1)))
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "%s: a VHDX block size of %u; powers of two from 1 MiB to 256 MiB can be",
                          node->path, block);
    if (items->logical != 512 && items->logical != 4096)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "%s: a logical sector size of %u is not supported; 512 and 4096 are",
                          node->path, (unsigned)items->logical);
    if (items->size > VHDX_DISK_MAX)
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "%s: a VHDX disk of %" G_GUINT64_FORMAT " bytes; at most 64 TiB can be",
                          node->path, items->size);
    node->size = align_down(items->size, 512);
    v->map.block = block;
    v->chunk = VHDX_SECTORS_A_CHUNK * items->logical / block;
    return true;
}

bool vhdx_read_metadata(BlockNode *node, GError **err)
{
    const Vhdx *v = vhdx_of(node);
    g_autofree uint8_t *table = g_malloc(VHDX_TABLE_BYTES);
    Items items = {0};
    int result = block_file_read(node->file, v->metadata_at, table, VHDX_TABLE_BYTES);
    if (result < 0)
        return lodge_fail_errno(err, -result, "%s: cannot read its metadata", node->path);
    unsigned count = le16_get(table + 10);
    if (memcmp(table, "metadata", 8) || count > VHDX_REGIONS_MAX ||
        v->metadata_bytes < VHDX_TABLE_BYTES)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "%s: its VHDX metadata table is not valid",
                          node->path);
    for (unsigned i = 0; i < count; i++) {
        if (!read_item(node, table + 32 + (size_t)i * 32, &items, err))
            return false;
    }
    return check_items(node, &items, err);
}
