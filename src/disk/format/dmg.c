/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Apple's disk images (UDIF): chunks in a data fork, described by "mish" blocks in a property list
 * or a resource fork, both found by the "koly" trailer. Read only. docs/format/dmg.md
 */
#include "base/bytes.h"
#include "base/error.h"
#include "disk/format/chunks.h"
#include "disk/format/formats.h"

#include <errno.h>

#define TRAILER_BYTES 512u
#define FORK_MAX      MIB(16) /* bytes of the property list or resource fork */
#define MISH_HEAD     204u
#define MISH_ENTRY    40u

/* Byte offsets in the trailer, big-endian. */
enum {
    KOLY_DATA = 0x18,
    KOLY_RESOURCES = 0x28,
    KOLY_RESOURCES_LENGTH = 0x30,
    KOLY_LIST = 0xd8,
    KOLY_LIST_LENGTH = 0xe0,
    KOLY_SECTORS = 0x1ec,
};

typedef struct Dmg {
    ChunkMap map;
    uint64_t data; /* where the data fork is in the file */
} Dmg;

/* What a kind of chunk is to us; an absent name: it says nothing of the disk. */
static const struct {
    uint32_t type;
    ChunkKind kind;
    const char *unknown; /* not supported, and called so */
} kinds[] = {
    {0, CHUNK_ZERO, NULL},           {1, CHUNK_RAW, NULL},
    {2, CHUNK_ZERO, NULL},           {0x80000005, CHUNK_ZLIB, NULL},
    {0x80000006, CHUNK_BZIP2, NULL}, {0x80000008, CHUNK_XZ, NULL},
    {0x80000004, CHUNK_RAW, "ADC"},  {0x80000007, CHUNK_RAW, "LZFSE"},
};

static bool is_comment(uint32_t type)
{
    return type == 0x7ffffffe || type == 0xffffffff; /* the latter ends a list */
}

static bool add_entry(BlockNode *node, const uint8_t *e, uint64_t first_sector, uint64_t fork,
                      GError **err)
{
    Dmg *d = node->state;
    uint32_t type = be32_get(e);
    uint64_t sector = be64_get(e + 8) + first_sector, sectors = be64_get(e + 16);
    Chunk c = {.offset = be64_get(e + 24), .packed = be64_get(e + 32)};
    size_t i = 0;
    if (is_comment(type))
        return true;
    while (i < G_N_ELEMENTS(kinds) && kinds[i].type != type)
        i++;
    if (i == G_N_ELEMENTS(kinds))
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "%s: Image contains chunks of unknown type %x", node->path, type);
    if (kinds[i].unknown)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "%s: chunks packed with %s are not supported; zlib, bzip2 and lzma are",
                          node->path, kinds[i].unknown);
    c.kind = kinds[i].kind;
    if (sector > INT64_MAX / 512 || sectors > INT64_MAX / 512 ||
        !add_u64(c.offset, fork, &c.offset))
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "%s: a chunk cannot be where it is",
                          node->path);
    c.start = sector * 512;
    c.length = sectors * 512;
    if (c.kind == CHUNK_ZERO)
        c.offset = c.packed = 0;
    return chunks_add(&d->map, &c, err);
}

/* @bytes: a resource; those that are no description of chunks are passed over. */
static bool add_mish(BlockNode *node, const uint8_t *bytes, size_t length, GError **err)
{
    const Dmg *d = node->state;
    uint64_t fork;
    if (length < MISH_HEAD + MISH_ENTRY || memcmp(bytes, "mish", 4))
        return true;
    if (!add_u64(d->data, be64_get(bytes + 0x18), &fork))
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "%s: its data cannot be where it is",
                          node->path);
    for (size_t at = MISH_HEAD; at + MISH_ENTRY <= length; at += MISH_ENTRY) {
        if (!add_entry(node, bytes + at, be64_get(bytes + 8), fork, err))
            return false;
    }
    return true;
}

static bool walk_resources(BlockNode *node, const uint8_t *fork, uint64_t length, GError **err)
{
    uint64_t at = length >= 16 ? be32_get(fork) : length,
             count = length >= 16 ? be32_get(fork + 8) : 0;
    if (count == 0 || !range_within(at, count, length))
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "%s: its resource fork is not valid",
                          node->path);
    for (uint64_t end = at + count; at < end;) {
        uint64_t bytes = end - at >= 4 ? be32_get(fork + at) : 0;
        if (bytes == 0 || bytes > end - at - 4)
            return lodge_fail(err, LODGE_ERROR_CORRUPT,
                              "%s: a resource at %" G_GUINT64_FORMAT " is not valid", node->path,
                              at);
        if (!add_mish(node, fork + at + 4, bytes, err))
            return false;
        at += 4 + bytes;
    }
    return true;
}

/* The list's <data> elements hold what resources would, in base64. @list ends with a NUL. */
static bool walk_list(BlockNode *node, char *list, GError **err)
{
    for (char *at = list; (at = strstr(at, "<data>"));) {
        char *data = at + strlen("<data>"), *end = strstr(data, "</data>");
        if (!end)
            return lodge_fail(err, LODGE_ERROR_CORRUPT, "%s: its property list is not valid",
                              node->path);
        gsize length = 0;
        *end = 0;
        g_autofree guchar *mish = g_base64_decode(data, &length);
        if (!add_mish(node, mish, length, err))
            return false;
        at = end + 1;
    }
    return true;
}

static bool read_fork(BlockNode *node, uint64_t at, uint64_t length, bool list, GError **err)
{
    if (length > FORK_MAX)
        return lodge_fail(err, LODGE_ERROR_LIMIT,
                          "%s: a %s of %" G_GUINT64_FORMAT " bytes; at most 16 MiB are supported",
                          node->path, list ? "property list" : "resource fork", length);
    g_autofree uint8_t *bytes = g_malloc0(length + 1);
    int result = block_file_read(node->file, at, bytes, length);
    if (result < 0)
        return lodge_fail_errno(err, -result, "%s: cannot read its list of chunks", node->path);
    return list ? walk_list(node, (char *)bytes, err) : walk_resources(node, bytes, length, err);
}

/* At the end of the file, which may be padded to a whole sector. */
static bool find_trailer(BlockNode *node, uint8_t *trailer, uint64_t *at, GError **err)
{
    uint8_t tail[2 * TRAILER_BYTES];
    uint64_t size;
    int result = node->file->ops->size(node->file, &size);
    if (result < 0)
        return lodge_fail_errno(err, -result, "Failed to get file size while reading UDIF trailer");
    if (size < TRAILER_BYTES)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "dmg file must be at least 512 bytes long");
    size_t length = MIN(size, sizeof(tail) - 1);
    result = block_file_read(node->file, size - length, tail, length);
    if (result < 0)
        return lodge_fail_errno(err, -result, "Failed while reading UDIF trailer");
    for (size_t i = length - TRAILER_BYTES + 1; i-- > 0;) {
        if (memcmp(tail + i, "koly", 4))
            continue;
        memcpy(trailer, tail + i, TRAILER_BYTES);
        *at = size - length + i;
        return true;
    }
    return lodge_fail(err, LODGE_ERROR_CORRUPT, "Could not locate UDIF trailer in dmg file");
}

static bool dmg_open(BlockNode *node, const BlockOpen *options, GError **err)
{
    uint8_t t[TRAILER_BYTES] = {0};
    uint64_t at = 0;
    if (!chunks_read_only(node, err))
        return false;
    Dmg *d = g_new0(Dmg, 1);
    node->state = d;
    chunks_init(&d->map, node);
    if (!find_trailer(node, t, &at, err))
        return false;
    uint64_t resources = be64_get(t + KOLY_RESOURCES), length = be64_get(t + KOLY_RESOURCES_LENGTH);
    uint64_t list = be64_get(t + KOLY_LIST), list_length = be64_get(t + KOLY_LIST_LENGTH);
    uint64_t sectors = be64_get(t + KOLY_SECTORS);
    d->data = be64_get(t + KOLY_DATA);
    if (d->data > at || !range_within(resources, length, at) ||
        !range_within(list, list_length, at) || sectors > INT64_MAX / 512)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "%s: its UDIF trailer is not valid",
                          node->path);
    if (length == 0 && list_length == 0)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "%s: it has no list of chunks", node->path);
    node->size = sectors * 512;
    if (!(length ? read_fork(node, resources, length, false, err)
                 : read_fork(node, list, list_length, true, err)))
        return false;
    chunks_sort(&d->map);
    return true;
}

static void dmg_close(BlockNode *node)
{
    Dmg *d = node->state;
    if (d)
        chunks_clear(&d->map);
    g_free(d);
    node->state = NULL;
}

static int dmg_readv(BlockNode *node, uint64_t offset, const struct iovec *iov, int n)
{
    return chunks_readv(&((Dmg *)node->state)->map, offset, iov, n);
}

static int dmg_status(BlockNode *node, uint64_t offset, uint64_t length, BlockExtent *extent)
{
    return chunks_status(&((Dmg *)node->state)->map, offset, length, extent);
}

static bool dmg_fast_begin(BlockNode *node, bool write, uint64_t offset, uint64_t length,
                           BlockFast *fast)
{
    return !write && chunks_fast_begin(&((Dmg *)node->state)->map, offset, length, fast);
}

static void dmg_fast_end(BlockNode *node, BlockFast *fast)
{
}

static void dmg_info(BlockNode *node, BlockInfo *info)
{
    info->no_dirty_flag = true;
}

const BlockFormat block_format_dmg = {
    .name = "dmg",
    .suffix = ".dmg",
    .open = dmg_open,
    .close = dmg_close,
    .readv = dmg_readv,
    .status = dmg_status,
    .fast_begin = dmg_fast_begin,
    .fast_end = dmg_fast_end,
    .info = dmg_info,
};
