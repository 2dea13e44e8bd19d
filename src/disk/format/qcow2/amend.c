/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Options changed in place: the version, refcounts' width, lazy refcounts, size, data file. */
#include "base/bytes.h"
#include "base/error.h"
#include "disk/crypto/luks.h"
#include "disk/format/qcow2/check.h"

#include <errno.h>
#include <string.h>

const BlockOption qcow2_amend_table[] = {
    BLOCK_LUKS_AMEND_OPTIONS("encrypt."),
    {"size", BLOCK_OPTION_SIZE, "Virtual disk size", NULL},
    {"compat", BLOCK_OPTION_STRING, "Compatibility level (v2 [0.10] or v3 [1.1])", NULL},
    {"backing_file", BLOCK_OPTION_STRING, "File name of a base image", NULL},
    {"backing_fmt", BLOCK_OPTION_STRING, "Image format of the base image", NULL},
    {"data_file", BLOCK_OPTION_STRING, "File name of an external data file", NULL},
    {"data_file_raw", BLOCK_OPTION_BOOL, "The external data file must stay valid as a raw image",
     NULL},
    {"lazy_refcounts", BLOCK_OPTION_BOOL, "Postpone refcount updates", NULL},
    {"refcount_bits", BLOCK_OPTION_NUMBER, "Width of a reference count entry in bits", NULL},
    {NULL, 0, NULL, NULL},
};

typedef struct Amend {
    uint32_t version;
    uint64_t refcount_bits, size;
    bool lazy, raw, resize;
    const char *backing, *backing_format, *data_file; /* borrowed; NULL: not said */
} Amend;

static bool parse_version(const json_t *options, Amend *a, GError **err)
{
    const char *compat = block_option_string(options, NULL, "compat");
    if (!compat)
        return true;
    if (!strcmp(compat, "0.10") || !strcmp(compat, "v2"))
        a->version = 2;
    else if (!strcmp(compat, "1.1") || !strcmp(compat, "v3"))
        a->version = 3;
    else
        return lodge_fail(err, LODGE_ERROR_INVALID, "Unknown compatibility level %s", compat);
    return true;
}

static bool parse(const Qcow2 *q, const json_t *options, Amend *a, GError **err)
{
    bool external = q->header.incompatible & QCOW2_INCOMPAT_DATA_FILE;
    bool raw = q->header.autoclear & QCOW2_AUTOCLEAR_RAW;
    *a = (Amend){
        .version = q->header.version,
        .refcount_bits = q->refcount_bits,
        .lazy = q->header.compatible & QCOW2_COMPAT_LAZY,
        .raw = raw,
        .resize = block_option_given(options, "size"),
        .backing = block_option_string(options, NULL, "backing_file"),
        .backing_format = block_option_string(options, NULL, "backing_fmt"),
        .data_file = block_option_string(options, NULL, "data_file"),
    };
    if (!parse_version(options, a, err) ||
        !block_option_size(options, NULL, "size", &a->size, err) ||
        !block_option_number(options, NULL, "refcount_bits", &a->refcount_bits, err) ||
        !block_option_bool(options, NULL, "lazy_refcounts", &a->lazy, err) ||
        !block_option_bool(options, NULL, "data_file_raw", &a->raw, err))
        return false;
    uint64_t bits = a->refcount_bits;
    if (bits == 0 || bits > 64 || (bits & (bits - 1)))
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "Refcount width must be a power of two and may not exceed 64 bits");
    if (a->data_file && !external)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "data-file can only be set for images that use an external data file");
    if (a->raw && !raw)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "data-file-raw cannot be set on existing images");
    return true;
}

/* "encrypt." options are for the key slots. */
static bool has_keys(const json_t *options)
{
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)options, name, value)
        if (g_str_has_prefix(name, "encrypt."))
            return true;
    return false;
}

static bool rewrite(Qcow2 *q, const Qcow2Header *old, GError **err)
{
    int result = qcow2_header_rewrite(q);
    if (result < 0)
        q->header = *old;
    return result == 0 ||
           lodge_fail_errno(err, -result, "Failed to update the image header");
}

/* Version 3 asks for more in the snapshot table than version 2 had. */
static bool upgrade(Qcow2 *q, GError **err)
{
    Qcow2Header old = q->header;
    int result = q->header.n_snapshots ? qcow2_snapshots_rewrite(q) : 0;
    if (result < 0)
        return lodge_fail_errno(err, -result, "Failed to update the snapshot table");
    old = q->header;
    q->header.version = 3;
    return rewrite(q, &old, err);
}

static bool may_downgrade(const Qcow2 *q, GError **err)
{
    uint64_t features = q->header.incompatible & ~QCOW2_INCOMPAT_COMPRESSION;
    if (q->refcount_bits != 16)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "compat=0.10 requires refcount_bits=16");
    if (features & QCOW2_INCOMPAT_DATA_FILE)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "Cannot downgrade an image with a data file");
    if (q->header.n_snapshots)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "Internal snapshots prevent downgrade of image");
    if (q->node->bitmaps && q->node->bitmaps->len)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "Cannot downgrade an image with persistent bitmaps");
    if (features)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "Cannot downgrade an image with incompatible features 0x%"
                          G_GINT64_MODIFIER "x set",
                          features);
    return true;
}

/* Where nothing shows through, a cluster of zeroes is no cluster. */
static int drop_zero(Qcow2 *q, uint64_t offset)
{
    Qcow2Page *page;
    uint64_t index;
    int result = qcow2_commit_if_full(q);
    if (result == 0)
        result = qcow2_l2_writable(q, offset);
    if (result == 0)
        result = qcow2_l2_page(q, offset, &page, &index);
    if (result < 0)
        return result;
    Qcow2Entry old = qcow2_entry_get(q, page->bytes, index);
    qcow2_entry_put(q, page->bytes, index, (Qcow2Entry){0});
    qcow2_cache_dirty(&q->l2, page);
    q->uncommitted = true;
    g_mutex_unlock(&q->lock);
    if (qcow2_entry_placed(q, &old))
        qcow2_entry_free(q, &old, true);
    return 0;
}

static int expand_zero(Qcow2 *q, uint64_t offset, uint64_t length)
{
    static const char zeroes[65536];
    const BlockNode *below = q->node->backing;
    if (!below || offset >= below->size) {
        g_mutex_lock(&q->meta);
        int result = drop_zero(q, offset);
        g_mutex_unlock(&q->meta);
        return result;
    }
    for (uint64_t at = 0; at < length; at += sizeof(zeroes)) {
        struct iovec iov = {(void *)(uintptr_t)zeroes, MIN(length - at, sizeof(zeroes))};
        int result = qcow2_writev(q->node, offset + at, &iov, 1);
        if (result < 0)
            return result;
    }
    return 0;
}

/* Version 2 knows no clusters of zeroes, and one compression only. */
static int expand_all(Qcow2 *q, const BlockProgress *progress, bool *packed)
{
    uint64_t size = q->node->size;
    for (uint64_t at = 0; at < size;) {
        Qcow2Map map;
        g_mutex_lock(&q->lock);
        int result = qcow2_map(q, at, size - at, true, &map);
        g_mutex_unlock(&q->lock);
        uint64_t end = MIN(size, align_down(at, q->cluster_size) + q->cluster_size);
        if (result == 0 && map.kind == QCOW2_ZEROES) {
            map.length = end - at;
            result = expand_zero(q, at, map.length);
        }
        *packed |= result == 0 && map.kind == QCOW2_PACKED;
        if (result < 0)
            return result;
        at += map.length;
        if (progress->step && !progress->step(progress->opaque, at, size))
            return -ECANCELED;
    }
    return 0;
}

static bool downgrade(Qcow2 *q, const BlockProgress *progress, GError **err)
{
    bool packed = false;
    if (!may_downgrade(q, err))
        return false;
    int result = expand_all(q, progress, &packed);
    if (result < 0)
        return lodge_fail_errno(err, -result, "Failed to turn zero into data clusters");
    if (packed && (q->header.incompatible & QCOW2_INCOMPAT_COMPRESSION))
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "Cannot downgrade an image with zstd compression type and existing "
                          "compressed clusters");
    g_mutex_lock(&q->meta);
    result = qcow2_commit(q);
    if (result == 0)
        result = qcow2_commit(q);
    Qcow2Header old = q->header;
    q->header.version = 2;
    q->header.incompatible = q->header.compatible = q->header.autoclear = 0;
    q->header.compression = QCOW2_ZLIB;
    bool ok = result == 0 ? rewrite(q, &old, err)
                          : lodge_fail_errno(err, -result, "Failed to update the image header");
    if (result < 0)
        q->header = old;
    g_mutex_unlock(&q->meta);
    return ok;
}

static bool change_header(Qcow2 *q, const Amend *a, GError **err)
{
    Qcow2Header old = q->header;
    if (a->backing || a->backing_format) {
        const BlockNode *node = q->node;
        if (g_strcmp0(a->backing, node->backing_path) ||
            g_strcmp0(a->backing_format, node->backing_format))
            return lodge_fail(err, LODGE_ERROR_INVALID,
                              "Cannot amend the backing file\n"
                              "You can use 'qemu-img rebase' instead.");
    }
    if (a->lazy && a->version < 3 && !(q->header.compatible & QCOW2_COMPAT_LAZY))
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "Lazy refcounts only supported with compatibility level 1.1 and above "
                          "(use compat=1.1 or greater)");
    if (!a->raw)
        q->header.autoclear &= ~QCOW2_AUTOCLEAR_RAW;
    q->header.compatible &= ~QCOW2_COMPAT_LAZY;
    if (a->lazy)
        q->header.compatible |= QCOW2_COMPAT_LAZY;
    if (a->data_file)
        q->header.data_file = *a->data_file ? g_strdup(a->data_file) : NULL;
    if (!rewrite(q, &old, err))
        return false;
    if (a->data_file)
        g_free(old.data_file);
    return true;
}

static bool change(Qcow2 *q, const Amend *a, GError **err)
{
    int result = qcow2_commit(q);
    if (result == 0)
        result = qcow2_commit(q);
    if (result < 0)
        return lodge_fail_errno(err, -result, "%s: cannot write its metadata", q->node->path);
    if (a->version > q->header.version && !upgrade(q, err))
        return false;
    if (a->refcount_bits != q->refcount_bits) {
        if (a->version < 3 && a->refcount_bits != 16)
            return lodge_fail(err, LODGE_ERROR_INVALID,
                              "Refcount widths other than 16 bits require compatibility level 1.1 "
                              "or above (use compat=1.1 or greater)");
        if (!qcow2_check_widen(q, (unsigned)__builtin_ctzll(a->refcount_bits), err))
            return false;
    }
    return change_header(q, a, err);
}

bool qcow2_amend(BlockNode *node, const json_t *options, const BlockObjects *objects, bool force,
                 const BlockProgress *progress, GError **err)
{
    Qcow2 *q = node->state;
    Amend a;
    BlockProgress none = {0};
    if (!progress)
        progress = &none;
    if (!parse(q, options, &a, err) ||
        (has_keys(options) && !qcow2_crypt_amend(q, options, objects, force, err)))
        return false;
    g_mutex_lock(&q->meta);
    bool ok = change(q, &a, err);
    g_mutex_unlock(&q->meta);
    if (!ok)
        return false;
    if (a.resize && a.size) {
        BlockResize resize = {.size = a.size, .shrink = true, .progress = *progress};
        if (!qcow2_resize(node, &resize, err))
            return false;
    }
    if (a.version < q->header.version && !downgrade(q, progress, err))
        return false;
    if (progress->step)
        progress->step(progress->opaque, 1, 1);
    return true;
}
