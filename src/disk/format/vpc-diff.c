/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Differencing VHD images: which sectors are the image's own, and which file is its parent. "Virtual
 * Hard Disk Image Format Specification", Microsoft, version 1.0, "Implementing Differencing Disks".
 */
#include "base/bytes.h"
#include "base/error.h"
#include "disk/format/vpc.h"
#include "disk/iov.h"

#include <errno.h>
#include <string.h>

#define LOCATORS      8u
#define LOCATOR_BYTES 24u
#define LOCATOR_MAX   KIB(4) /* bytes of a name that are looked at */
#define NAME_UNITS    256u   /* of the parent's name in the header */

/* Byte offsets in a parent locator entry. */
enum { LOCATOR_CODE = 0, LOCATOR_LENGTH = 8, LOCATOR_OFFSET = 16 };

/* ".\sub\parent.vhd" and "C:\sub\parent.vhd" as a path from the image's folder. */
static char *host_path(const char *windows, bool relative)
{
    g_autofree char *path = g_strdelimit(g_strdup(windows), "\\", '/');
    if (!relative)
        return g_path_get_basename(path);
    const char *from = path;
    while (g_str_has_prefix(from, "./"))
        from += 2;
    return g_strdup(from);
}

/* The name that the locator with this code gives, in UTF-16, little-endian; NULL: it gives none. */
static char *read_locator(BlockNode *node, const uint8_t *header, uint64_t end, const char *code)
{
    for (unsigned i = 0; i < LOCATORS; i++) {
        const uint8_t *l = header + VPC_DYNAMIC_LOCATORS + i * LOCATOR_BYTES;
        uint32_t length = be32_get(l + LOCATOR_LENGTH);
        uint64_t at = be64_get(l + LOCATOR_OFFSET);
        if (memcmp(l + LOCATOR_CODE, code, 4) || length < 2 || length > LOCATOR_MAX ||
            !range_within(at, length, end))
            continue;
        g_autofree gunichar2 *units = g_new0(gunichar2, LOCATOR_MAX / 2 + 1);
        if (block_file_read(node->file, at, units, length & ~1u) == 0)
            return g_utf16_to_utf8(units, length / 2, NULL, NULL, NULL);
    }
    return NULL;
}

/* What the header itself says: UTF-16, big-endian. */
static char *read_header_name(const uint8_t *header)
{
    gunichar2 units[NAME_UNITS + 1] = {0};
    for (unsigned i = 0; i < NAME_UNITS; i++)
        units[i] = be16_get(header + VPC_DYNAMIC_PARENT_NAME + i * 2);
    return g_utf16_to_utf8(units, -1, NULL, NULL, NULL);
}

bool vpc_diff_parent(BlockNode *node, const uint8_t *header, uint64_t end, GError **err)
{
    g_autofree char *relative = read_locator(node, header, end, "W2ru");
    g_autofree char *absolute = relative ? NULL : read_locator(node, header, end, "W2ku");
    g_autofree char *named = relative || absolute ? NULL : read_header_name(header);
    const char *name = relative ? relative : absolute ? absolute : named;
    if (!name || !*name)
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "%s: a VHD differencing image that does not name its parent", node->path);
    node->backing_path = host_path(name, relative != NULL);
    node->backing_format = g_strdup("vpc");
    return true;
}

void vpc_diff_init(VpcDiff *d, BlockMap *map, uint64_t bitmap)
{
    d->map = map;
    d->bitmap = bitmap;
    d->block = UINT64_MAX;
    g_mutex_init(&d->lock);
}

void vpc_diff_clear(VpcDiff *d)
{
    if (d->map)
        g_mutex_clear(&d->lock);
    g_free(d->bits);
}

/* `lock` is held. */
static int load_bits(VpcDiff *d, uint64_t block)
{
    BlockMap *m = d->map;
    if (d->block == block)
        return 0;
    d->block = UINT64_MAX;
    if (!d->bits)
        d->bits = g_try_malloc(d->bitmap);
    if (!d->bits)
        return -ENOMEM;
    int result = block_file_read(m->node->file, (uint64_t)m->table[block] * VPC_SECTOR, d->bits,
                                 d->bitmap);
    if (result == 0)
        d->block = block;
    return result;
}

/* The bit of a sector: the highest one of a byte comes first. */
static bool own_sector(const VpcDiff *d, uint64_t sector)
{
    return d->bits[sector / 8] & (0x80u >> (sector % 8));
}

int vpc_diff_find(VpcDiff *d, uint64_t offset, uint64_t length, VpcDiffRun *run)
{
    BlockMap *m = d->map;
    uint64_t size = m->block, block = offset / size;
    uint64_t within = offset % size, sector = within / VPC_SECTOR;
    *run = (VpcDiffRun){.length = MIN(length, size - within)};
    if (m->table[block] == VPC_FREE)
        return 0;
    g_mutex_lock(&d->lock);
    int result = load_bits(d, block);
    if (result == 0) {
        uint64_t next = sector + 1, end = (within + run->length + VPC_SECTOR - 1) / VPC_SECTOR;
        run->own = own_sector(d, sector);
        while (next < end && own_sector(d, next) == run->own)
            next++;
        run->length = MIN(run->length, next * VPC_SECTOR - within);
        run->host = blockmap_offset(m, m->table[block]) + within;
    }
    g_mutex_unlock(&d->lock);
    return result;
}

int vpc_diff_readv(VpcDiff *d, uint64_t offset, const struct iovec *iov, int n)
{
    BlockNode *node = d->map->node;
    uint64_t total = block_iov_length(iov, n);
    for (uint64_t done = 0; done < total;) {
        VpcDiffRun run;
        int result = vpc_diff_find(d, offset + done, total - done, &run);
        if (result == 0 && run.own)
            result = block_file_readv(node->file, run.host, iov, n, done, run.length);
        else if (result == 0)
            result = block_read_backing(node, offset + done, iov, n, done, run.length);
        if (result < 0)
            return result;
        done += run.length;
    }
    return 0;
}

int vpc_diff_status(VpcDiff *d, uint64_t offset, uint64_t length, BlockExtent *extent)
{
    VpcDiffRun run;
    int result = vpc_diff_find(d, offset, length, &run);
    *extent = (BlockExtent){.length = run.length, .present = run.own, .data = run.own,
                            .has_offset = run.own, .file_offset = run.host};
    return result;
}
