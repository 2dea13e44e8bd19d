/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The header: decoded, bounded, and its unknown parts named. */
#include "base/bytes.h"
#include "base/error.h"
#include "disk/format/qcow2/qcow2.h"

#include <string.h>

#define HEADER_V2      72u
#define HEADER_V3      104u
#define EXT_END        0x00000000u
#define EXT_BACKING    0xe2792acau
#define EXT_FEATURES   0x6803f857u
#define EXT_CRYPTO     0x0537be77u
#define EXT_DATA_FILE  0x44415441u
#define FEATURE_RECORD 48u

bool qcow2_probe(const uint8_t *head, size_t length)
{
    return length >= 8 && be32_get(head) == QCOW2_MAGIC && be32_get(head + 4) >= 2;
}

static void decode(Qcow2Header *h, const uint8_t *raw)
{
    h->version = be32_get(raw + 4);
    h->backing_offset = be64_get(raw + 8);
    h->backing_length = be32_get(raw + 16);
    h->cluster_bits = be32_get(raw + 20);
    h->size = be64_get(raw + 24);
    h->crypt_method = be32_get(raw + 32);
    h->l1_entries = be32_get(raw + 36);
    h->l1_offset = be64_get(raw + 40);
    h->reftable_offset = be64_get(raw + 48);
    h->reftable_clusters = be32_get(raw + 56);
    h->n_snapshots = be32_get(raw + 60);
    h->snapshots_offset = be64_get(raw + 64);
    h->refcount_order = 4;
    h->length = HEADER_V2;
    if (h->version < 3)
        return;
    h->incompatible = be64_get(raw + 72);
    h->compatible = be64_get(raw + 80);
    h->autoclear = be64_get(raw + 88);
    h->refcount_order = be32_get(raw + 96);
    h->length = be32_get(raw + 100);
    if (h->length > HEADER_V3)
        h->compression = raw[104];
}

static bool check_version(const BlockNode *node, const Qcow2Header *h, GError **err)
{
    if (h->version != 2 && h->version != 3)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "%s: qcow2 version %u is not supported; 2 and 3 are", node->path,
                          h->version);
    if (h->cluster_bits < 9 || h->cluster_bits > 21)
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "%s: a cluster size of 2^%u bytes; it must be 512 bytes to 2 MiB",
                          node->path, h->cluster_bits);
    if (h->crypt_method > QCOW2_CRYPT_LUKS)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "Unsupported encryption method %u",
                          h->crypt_method);
    if (h->refcount_order > 6)
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "%s: refcounts of 2^%u bits; the widest are 64 bits", node->path,
                          h->refcount_order);
    if (h->version == 3 && h->length > (1ull << h->cluster_bits))
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "qcow2 header exceeds cluster size");
    if (h->backing_offset > (1ull << h->cluster_bits))
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "Invalid backing file offset");
    if (h->version == 3 && (h->length < HEADER_V3 || h->length % 8 != 0))
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "%s: a header length of %u bytes", node->path,
                          h->length);
    return true;
}

/* The name the image's own table gives to incompatible feature @bit. */
static char *feature_name(const uint8_t *table, uint32_t length, unsigned bit)
{
    for (uint32_t at = 0; table && at + 2 < length; at += FEATURE_RECORD) {
        if (table[at] == 0 && table[at + 1] == bit) {
            uint32_t room = MIN(length - at, FEATURE_RECORD) - 2;
            char *name = g_strndup((const char *)table + at + 2, room);
            char *valid = g_utf8_make_valid(name, -1);
            g_free(name);
            return g_strdelimit(valid, "\r\n\t\033", '?');
        }
    }
    return NULL;
}

static bool check_features(const BlockNode *node, const Qcow2Header *h, const uint8_t *table,
                           uint32_t table_length, GError **err)
{
    static const char *const known[] = {"dirty bit", "corrupt bit", "external data file",
                                        "compression type", "extended L2 entries"};
    uint64_t supported = QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT |
                         QCOW2_INCOMPAT_COMPRESSION | QCOW2_INCOMPAT_EXTENDED_L2 |
                         QCOW2_INCOMPAT_DATA_FILE;
    uint64_t unknown = h->incompatible & ~supported;
    if (unknown) {
        g_autoptr(GString) names = g_string_new(NULL);
        uint64_t nameless = 0;
        for (unsigned bit = 0; bit < 64; bit++) {
            if (!(unknown & (1ull << bit)))
                continue;
            g_autofree char *name = bit < G_N_ELEMENTS(known)
                                        ? g_strdup(known[bit])
                                        : feature_name(table, table_length, bit);
            if (name)
                g_string_append_printf(names, "%s%s", names->len ? ", " : "", name);
            else
                nameless |= 1ull << bit;
        }
        if (nameless)
            g_string_append_printf(names, "%sUnknown incompatible feature: %" G_GINT64_MODIFIER "x",
                                   names->len ? ", " : "", nameless);
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "Unsupported qcow2 feature(s): %s",
                          names->str);
    }
    if ((h->incompatible & QCOW2_INCOMPAT_EXTENDED_L2) && h->cluster_bits < 14)
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "%s: clusters of 2^%u bytes with extended L2 entries; they must have at "
                          "least 16 KiB",
                          node->path, h->cluster_bits);
    bool flagged = (h->incompatible & QCOW2_INCOMPAT_COMPRESSION) != 0;
    if (flagged != (h->compression != 0))
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "%s: the compression type %u and its feature bit contradict each other",
                          node->path, h->compression);
    if (h->compression > QCOW2_ZSTD)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "%s: the compression type %u is not supported; zlib (0) and zstd (1) are",
                          node->path, h->compression);
    return true;
}

/*
 * The extensions lie between the header and the backing file's name, within cluster 0. Those
 * that are not read here stay in the file as they are: the header is updated in place.
 */
static bool read_extensions(BlockNode *node, Qcow2Header *h, const uint8_t *raw, GError **err)
{
    uint64_t end = 1ull << h->cluster_bits;
    if (h->backing_offset != 0 && h->backing_offset < end)
        end = h->backing_offset;
    const uint8_t *features = NULL;
    uint32_t features_length = 0;
    uint64_t at = h->length;
    while (at + 8 <= end) {
        uint32_t type = be32_get(raw + at), length = be32_get(raw + at + 4);
        if (type == EXT_END)
            break;
        at += 8;
        if (length > end - at)
            return lodge_fail(err, LODGE_ERROR_CORRUPT, "Header extension too large");
        if (type == EXT_BACKING && !node->backing_format)
            node->backing_format = g_strndup((const char *)raw + at, MIN(length, 64));
        if (type == EXT_CRYPTO && length == 16) {
            h->crypt_offset = be64_get(raw + at);
            h->crypt_length = be64_get(raw + at + 8);
        }
        if (type == EXT_DATA_FILE && !h->data_file)
            h->data_file = g_strndup((const char *)raw + at, length);
        if (type == EXT_FEATURES) {
            features = raw + at;
            features_length = length;
        }
        at += ((uint64_t)length + 7) & ~7ull;
    }
    return check_features(node, h, features, features_length, err);
}

static bool read_backing_name(BlockNode *node, const Qcow2Header *h, const uint8_t *raw,
                              GError **err)
{
    if (h->backing_offset == 0)
        return true;
    if (h->backing_length > 1023 ||
        !range_within(h->backing_offset, h->backing_length, 1ull << h->cluster_bits))
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "Backing file name too long");
    if (h->backing_length == 0)
        return true;
    g_autofree char *name = g_strndup((const char *)raw + h->backing_offset, h->backing_length);
    if (strlen(name) != h->backing_length)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "%s: the backing file's name contains NUL",
                          node->path);
    node->backing_path = g_steal_pointer(&name);
    return true;
}

bool qcow2_header_read(BlockNode *node, Qcow2Header *h, GError **err)
{
    uint8_t head[112] = {0};
    memset(h, 0, sizeof(*h));
    int result = block_file_read(node->file, 0, head, sizeof(head));
    if (result < 0)
        return lodge_fail_errno(err, -result, "%s: cannot read the header", node->path);
    if (be32_get(head) != QCOW2_MAGIC)
        return lodge_fail(err, LODGE_ERROR_INVALID, "%s: is not a qcow2 image", node->path);
    decode(h, head);
    if (!check_version(node, h, err))
        return false;
    size_t cluster = (size_t)1 << h->cluster_bits;
    g_autofree uint8_t *raw = g_try_malloc0(cluster);
    if (!raw)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "%s: no memory for its header", node->path);
    result = block_file_read(node->file, 0, raw, cluster);
    if (result < 0)
        return lodge_fail_errno(err, -result, "%s: cannot read the header", node->path);
    return read_extensions(node, h, raw, err) && read_backing_name(node, h, raw, err);
}

int qcow2_header_update(Qcow2 *q)
{
    const Qcow2Header *h = &q->header;
    uint8_t raw[HEADER_V3];
    size_t length = h->version >= 3 ? HEADER_V3 : HEADER_V2;
    int result = block_file_read(q->file, 0, raw, length);
    if (result < 0)
        return result;
    be64_put(raw + 24, h->size);
    be32_put(raw + 36, h->l1_entries);
    be64_put(raw + 40, h->l1_offset);
    be64_put(raw + 48, h->reftable_offset);
    be32_put(raw + 56, h->reftable_clusters);
    be32_put(raw + 60, h->n_snapshots);
    be64_put(raw + 64, h->snapshots_offset);
    if (h->version >= 3) {
        be64_put(raw + 72, h->incompatible);
        be64_put(raw + 80, h->compatible);
        be64_put(raw + 88, h->autoclear);
        be32_put(raw + 96, h->refcount_order);
    }
    result = block_file_write(q->file, 0, raw, length);
    return result < 0 ? result : block_node_sync(q->node);
}

int qcow2_header_dirty(Qcow2 *q, bool dirty)
{
    uint64_t was = q->header.incompatible;
    if (q->header.version < 3)
        return 0;
    q->header.incompatible = dirty ? was | QCOW2_INCOMPAT_DIRTY : was & ~QCOW2_INCOMPAT_DIRTY;
    int result = was == q->header.incompatible ? 0 : qcow2_header_update(q);
    if (result < 0)
        q->header.incompatible = was;
    return result;
}

int qcow2_header_switch(Qcow2 *q, const Qcow2Header *old, bool *unsure)
{
    int result = qcow2_header_update(q);
    *unsure = false;
    if (result < 0) {
        q->header = *old;
        *unsure = qcow2_header_update(q) < 0;
    }
    return result;
}
