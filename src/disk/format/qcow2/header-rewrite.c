/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The whole first cluster written anew, when more changes than fields in place: extensions come or
 * go, the backing file's name, the version. Extensions that nobody here knows are kept.
 */
#include "base/bytes.h"
#include "disk/format/qcow2/qcow2.h"

#include <errno.h>
#include <string.h>

#define HEADER_V2     72u
#define HEADER_V3     112u
#define EXT_END       0x00000000u
#define EXT_BACKING   0xe2792acau
#define EXT_FEATURES  0x6803f857u
#define EXT_DATA_FILE 0x44415441u
#define NAME_MAX_SIZE 1023u

typedef struct Extension {
    uint32_t type, length;
    const uint8_t *data;
} Extension;

/* The extensions of the first cluster @raw, as far as they make sense. */
static GArray *read_all(const Qcow2 *q, const uint8_t *raw)
{
    GArray *list = g_array_new(FALSE, FALSE, sizeof(Extension));
    uint64_t end = q->cluster_size, at = be32_get(raw + 4) >= 3 ? be32_get(raw + 100) : HEADER_V2;
    uint64_t name_at = be64_get(raw + 8);
    if (name_at && name_at < end)
        end = name_at;
    while (at + 8 <= end) {
        Extension e = {be32_get(raw + at), be32_get(raw + at + 4), raw + at + 8};
        if (e.type == EXT_END || e.length > end - at - 8)
            break;
        g_array_append_val(list, e);
        at += 8 + align_up(e.length, 8);
    }
    return list;
}

int qcow2_extension_read(Qcow2 *q, uint32_t type, void *data, uint32_t length)
{
    g_autofree uint8_t *raw = g_try_malloc0(q->cluster_size);
    if (!raw)
        return -ENOMEM;
    int result = block_file_read(q->file, 0, raw, q->cluster_size);
    if (result < 0)
        return result;
    g_autoptr(GArray) list = read_all(q, raw);
    for (guint i = 0; i < list->len; i++) {
        const Extension *e = &g_array_index(list, Extension, i);
        if (e->type != type)
            continue;
        memcpy(data, e->data, MIN(length, e->length));
        return (int)MIN(e->length, INT_MAX);
    }
    return -ENOENT;
}

static bool put(const Qcow2 *q, uint8_t *raw, uint64_t *at, uint32_t type, const void *data,
                uint32_t length)
{
    uint64_t needed = 8 + align_up(length, 8);
    if (*at + needed > q->cluster_size)
        return false;
    be32_put(raw + *at, type);
    be32_put(raw + *at + 4, length);
    memcpy(raw + *at + 8, data, length);
    *at += needed;
    return true;
}

static void put_fields(const Qcow2 *q, uint8_t *raw)
{
    const Qcow2Header *h = &q->header;
    be32_put(raw, QCOW2_MAGIC);
    be32_put(raw + 4, h->version);
    be32_put(raw + 20, h->cluster_bits);
    be64_put(raw + 24, h->size);
    be32_put(raw + 32, h->crypt_method);
    be32_put(raw + 36, h->l1_entries);
    be64_put(raw + 40, h->l1_offset);
    be64_put(raw + 48, h->reftable_offset);
    be32_put(raw + 56, h->reftable_clusters);
    be32_put(raw + 60, h->n_snapshots);
    be64_put(raw + 64, h->snapshots_offset);
    if (h->version < 3)
        return;
    be64_put(raw + 72, h->incompatible);
    be64_put(raw + 80, h->compatible);
    be64_put(raw + 88, h->autoclear);
    be32_put(raw + 96, h->refcount_order);
    be32_put(raw + 100, h->length);
    raw[104] = h->compression;
}

/*
 * The bitmaps' comes before the long table of names: in the first sector of the file, it changes
 * together with the feature bits.
 */
static bool put_extensions(const Qcow2 *q, const GArray *old, uint8_t *raw, uint64_t *at)
{
    const BlockNode *node = q->node;
    bool ok = true, new = q->header.version >= 3;
    if (node->backing_path && node->backing_format)
        ok = put(q, raw, at, EXT_BACKING, node->backing_format,
                 (uint32_t)strlen(node->backing_format));
    if (ok && q->n_bitmaps && new) {
        uint8_t bitmaps[24] = {0};
        be32_put(bitmaps, q->n_bitmaps);
        be64_put(bitmaps + 8, q->bitmaps_bytes);
        be64_put(bitmaps + 16, q->bitmaps_offset);
        ok = put(q, raw, at, QCOW2_EXT_BITMAPS, bitmaps, sizeof(bitmaps));
    }
    if (ok && q->header.data_file)
        ok = put(q, raw, at, EXT_DATA_FILE, q->header.data_file,
                 (uint32_t)strlen(q->header.data_file));
    for (guint i = 0; i < old->len && ok; i++) {
        const Extension *e = &g_array_index(old, Extension, i);
        if (e->type == EXT_DATA_FILE)
            continue;
        if (e->type != EXT_BACKING && e->type != QCOW2_EXT_BITMAPS && e->type != EXT_FEATURES)
            ok = put(q, raw, at, e->type, e->data, e->length);
    }
    /* Names of features are a courtesy, for which small clusters may have no room. */
    size_t name = node->backing_path ? strlen(node->backing_path) : 0;
    if (ok && new && *at + QCOW2_FEATURES_BYTES + 8 + name <= q->cluster_size)
        *at += qcow2_put_features(raw + *at);
    return ok;
}

int qcow2_header_rewrite(Qcow2 *q)
{
    g_autofree uint8_t *old = g_try_malloc0(q->cluster_size);
    g_autofree uint8_t *raw = g_try_malloc0(q->cluster_size);
    if (!old || !raw)
        return -ENOMEM;
    int result = block_file_read(q->file, 0, old, q->cluster_size);
    if (result < 0)
        return result;
    bool new = q->header.version >= 3, was_new = be32_get(old + 4) >= 3;
    uint32_t length = new ? MAX(HEADER_V3, was_new ? be32_get(old + 100) : 0) : HEADER_V2;
    if (length > q->cluster_size)
        return -EINVAL;
    if (new && was_new)
        memcpy(raw, old, be32_get(old + 100)); /* fields that nobody here knows */
    q->header.length = length;
    put_fields(q, raw);
    uint64_t at = length;
    g_autoptr(GArray) extensions = read_all(q, old);
    if (!put_extensions(q, extensions, raw, &at))
        return -ENOSPC;
    at += 8; /* the end of the extensions */
    size_t name = q->node->backing_path ? strlen(q->node->backing_path) : 0;
    if (name > NAME_MAX_SIZE)
        return -EINVAL;
    if (at + name > q->cluster_size)
        return -ENOSPC;
    be64_put(raw + 8, name ? at : 0);
    be32_put(raw + 16, (uint32_t)name);
    if (name)
        memcpy(raw + at, q->node->backing_path, name);
    result = block_file_write(q->file, 0, raw, q->cluster_size);
    return result < 0 ? result : block_node_sync(q->node);
}
