/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* New images, and growing one. */
#include "base/bytes.h"
#include "base/error.h"
#include "disk/format/qcow2/qcow2.h"

#include <errno.h>
#include <string.h>

#define HEADER_LENGTH  112u
#define EXT_BACKING    0xe2792acau
#define EXT_FEATURES   0x6803f857u
#define EXT_CRYPTO     0x0537be77u
#define EXT_DATA_FILE  0x44415441u
#define FEATURE_RECORD 48u

typedef struct Feature {
    uint8_t type, bit; /* type 0: incompatible, 1: compatible, 2: autoclear */
    const char *name;
} Feature;

static const Feature features[] = {
    {0, 0, "dirty bit"},          {0, 1, "corrupt bit"},         {0, 2, "external data file"},
    {0, 3, "compression type"},   {0, 4, "extended L2 entries"}, {1, 0, "lazy refcounts"},
    {2, 0, "bitmaps"},            {2, 1, "raw external data"},
};

/* In the order in which qemu-img lists them in its "Formatting" line. */
const BlockOption qcow2_create_options[] = {
    {"encryption", BLOCK_OPTION_BOOL,
     "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)", NULL},
    {"encrypt.format", BLOCK_OPTION_STRING, "Encrypt the image, format choices: 'aes', 'luks'",
     NULL},
    {"encrypt.key-secret", BLOCK_OPTION_STRING,
     "ID of secret providing qcow AES key or LUKS passphrase", NULL},
    BLOCK_LUKS_CREATE_OPTIONS("encrypt."),
    {"cluster_size", BLOCK_OPTION_SIZE, "qcow2 cluster size", "65536"},
    {"extended_l2", BLOCK_OPTION_BOOL, "Extended L2 tables", "off"},
    {"preallocation", BLOCK_OPTION_STRING,
     "Preallocation mode (allowed values: off, metadata, falloc, full)", NULL},
    {"compression_type", BLOCK_OPTION_STRING,
     "Compression method used for image cluster compression", "zlib"},
    {"size", BLOCK_OPTION_SIZE, "Virtual disk size", NULL},
    {"compat", BLOCK_OPTION_STRING, "Compatibility level (v2 [0.10] or v3 [1.1])", NULL},
    {"backing_file", BLOCK_OPTION_STRING, "File name of a base image", NULL},
    {"backing_fmt", BLOCK_OPTION_STRING, "Image format of the base image", NULL},
    {"data_file", BLOCK_OPTION_STRING, "File name of an external data file", NULL},
    {"data_file_raw", BLOCK_OPTION_BOOL, "The external data file must stay valid as a raw image",
     NULL},
    {"lazy_refcounts", BLOCK_OPTION_BOOL, "Postpone refcount updates", "off"},
    {"refcount_bits", BLOCK_OPTION_NUMBER, "Width of a reference count entry in bits", "16"},
    {NULL, 0, NULL, NULL},
};

/* Where the parts of the new image lie, in clusters: header, refcount table, blocks, L1. */
typedef struct Layout {
    unsigned cluster_bits, order;
    bool old, lazy, zstd, extended, raw;
    const char *data_file; /* borrowed; NULL: none */
    Qcow2CryptCreate crypt;
    uint64_t crypt_clusters;
    BlockPreallocation preallocation;
    uint64_t reftable_clusters, blocks, l1_clusters, l1_entries;
    uint64_t total; /* clusters in use */
} Layout;

static bool parse_compat(const BlockCreate *c, Layout *layout, GError **err)
{
    const char *text = block_option_string(c->options, NULL, "compat");
    layout->old = text && (!strcmp(text, "0.10") || !strcmp(text, "v2"));
    if (!text || layout->old || !strcmp(text, "1.1") || !strcmp(text, "v3"))
        return true;
    return lodge_fail(err, LODGE_ERROR_INVALID, "Parameter 'version' does not accept value '%s'", text);
}

static bool check_data_file(const BlockCreate *c, Layout *layout, GError **err)
{
    layout->data_file = block_option_string(c->options, NULL, "data_file");
    if (layout->raw && !layout->data_file)
        return lodge_fail(err, LODGE_ERROR_INVALID, "data-file-raw requires data-file");
    if (layout->raw && c->backing)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "Backing file and data-file-raw cannot be used at the same time");
    if (layout->data_file && layout->old)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "External data files are only supported with compatibility level 1.1 "
                          "and above (use version=v3 or greater)");
    /* Without the tables, the data file reads as the disk does only if all is in its place. */
    if (layout->raw && layout->preallocation == BLOCK_PREALLOCATE_OFF)
        layout->preallocation = BLOCK_PREALLOCATE_METADATA;
    return true;
}

static bool check_options(const BlockCreate *c, Layout *layout, GError **err)
{
    const BlockOption *table = qcow2_create_options;
    const char *compression = block_option_string(c->options, table, "compression_type");
    uint64_t cluster, bits;
    if (!parse_compat(c, layout, err) ||
        !block_option_size(c->options, table, "cluster_size", &cluster, err) ||
        !block_option_number(c->options, table, "refcount_bits", &bits, err) ||
        !block_option_bool(c->options, table, "lazy_refcounts", &layout->lazy, err) ||
        !block_option_bool(c->options, table, "extended_l2", &layout->extended, err) ||
        !block_option_bool(c->options, table, "data_file_raw", &layout->raw, err) ||
        !block_preallocation(c->options, &layout->preallocation, err))
        return false;
    bool old = layout->old;
    if (old && layout->extended)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "Extended L2 entries are only supported with compatibility level 1.1 "
                          "and above (use version=v3 or greater)");
    if (cluster < 512 || cluster > MIB(2) || (cluster & (cluster - 1)))
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "Cluster size must be a power of two between 512 and 2048k");
    if (layout->extended && cluster < QCOW2_EXTENDED_MIN)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "Extended L2 entries are only supported with cluster sizes of at least "
                          "%u bytes",
                          QCOW2_EXTENDED_MIN);
    if (bits == 0 || bits > 64 || (bits & (bits - 1)))
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "Refcount width must be a power of two and may not exceed 64 bits");
    if (old && bits != 16)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "Different refcount widths than 16 bits require compatibility level 1.1 or "
                          "above (use version=v3 or greater)");
    if (old && layout->lazy)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "Lazy refcounts only supported with compatibility level 1.1 and above "
                          "(use version=v3 or greater)");
    if (!check_data_file(c, layout, err) || !qcow2_crypt_create_check(c, &layout->crypt, err))
        return false;
    layout->zstd = !strcmp(compression, "zstd");
    if (!layout->zstd && strcmp(compression, "zlib"))
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "The compression type \"%s\" is not supported; zlib and zstd are",
                          compression);
    if (old && layout->zstd)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "Non-zlib compression type is only supported with compatibility level "
                          "1.1 and above (use version=v3 or greater)");
    if (layout->preallocation && c->backing && !layout->extended)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "Backing file and preallocation can only be used at the same time if "
                          "extended_l2 is on");
    layout->cluster_bits = (unsigned)__builtin_ctzll(cluster);
    layout->order = (unsigned)__builtin_ctzll(bits);
    return true;
}

static bool plan_layout(const BlockCreate *c, Layout *layout, GError **err)
{
    if (!check_options(c, layout, err))
        return false;
    unsigned bits = layout->cluster_bits;
    uint64_t cluster = 1ull << bits, span = 1ull << (2 * bits - (layout->extended ? 4 : 3));
    if (c->size > INT64_MAX - span || (c->size + span - 1) / span > QCOW2_L1_MAX / 8)
        return lodge_fail(err, LODGE_ERROR_LIMIT,
                          "The image size is too large for clusters of %" G_GUINT64_FORMAT
                          " bytes (try using a larger cluster size)",
                          cluster);
    layout->l1_entries = MAX((c->size + span - 1) / span, 1);
    layout->l1_clusters = align_up(layout->l1_entries * 8, cluster) >> bits;
    layout->crypt_clusters = align_up(layout->crypt.length, cluster) >> bits;
    uint64_t tail = layout->l1_clusters + layout->crypt_clusters;
    layout->reftable_clusters = layout->blocks = 1;
    uint64_t per_block = 1ull << (bits + 3 - layout->order), per_table = cluster / 8;
    do {
        layout->total = 1 + layout->reftable_clusters + layout->blocks + tail;
        layout->blocks = (layout->total + per_block - 1) / per_block;
        layout->reftable_clusters = (layout->blocks + per_table - 1) / per_table;
    } while (layout->total !=
             1 + layout->reftable_clusters + layout->blocks + tail);
    return true;
}

static size_t put_extension(uint8_t *at, uint32_t type, const void *data, uint32_t length)
{
    be32_put(at, type);
    be32_put(at + 4, length);
    memcpy(at + 8, data, length);
    return 8 + align_up(length, 8);
}

size_t qcow2_put_features(uint8_t *at)
{
    uint8_t table[G_N_ELEMENTS(features) * FEATURE_RECORD] = {0};
    for (size_t i = 0; i < G_N_ELEMENTS(features); i++) {
        uint8_t *record = table + i * FEATURE_RECORD;
        record[0] = features[i].type;
        record[1] = features[i].bit;
        memcpy(record + 2, features[i].name, strlen(features[i].name));
    }
    return put_extension(at, EXT_FEATURES, table, sizeof(table));
}

/* @raw: a zeroed first cluster. */
static bool build_header(const BlockCreate *c, const Layout *layout, uint8_t *raw, GError **err)
{
    uint64_t cluster = 1ull << layout->cluster_bits;
    bool old = layout->old, zstd = layout->zstd;
    be32_put(raw, QCOW2_MAGIC);
    be32_put(raw + 4, old ? 2 : 3);
    be32_put(raw + 20, layout->cluster_bits);
    be64_put(raw + 24, c->size);
    be32_put(raw + 32, layout->crypt.method);
    be32_put(raw + 36, (uint32_t)layout->l1_entries);
    be64_put(raw + 40, (1 + layout->reftable_clusters + layout->blocks) * cluster);
    be64_put(raw + 48, cluster);
    be32_put(raw + 56, (uint32_t)layout->reftable_clusters);
    size_t at = 72;
    if (!old) {
        be64_put(raw + 72, (zstd ? QCOW2_INCOMPAT_COMPRESSION : 0) |
                               (layout->extended ? QCOW2_INCOMPAT_EXTENDED_L2 : 0) |
                               (layout->data_file ? QCOW2_INCOMPAT_DATA_FILE : 0));
        be64_put(raw + 88, layout->raw ? QCOW2_AUTOCLEAR_RAW : 0);
        be64_put(raw + 80, layout->lazy ? QCOW2_COMPAT_LAZY : 0);
        be32_put(raw + 96, layout->order);
        be32_put(raw + 100, HEADER_LENGTH);
        raw[104] = zstd ? QCOW2_ZSTD : QCOW2_ZLIB;
        at = HEADER_LENGTH;
    }
    size_t name = c->backing ? strlen(c->backing) : 0;
    size_t format = c->backing && c->backing_format ? strlen(c->backing_format) : 0;
    size_t table = old ? 0 : 8 + G_N_ELEMENTS(features) * FEATURE_RECORD;
    size_t data = layout->data_file ? strlen(layout->data_file) : 0;
    size_t needed = at + (format ? 8 + align_up(format, 8) : 0) +
                    (data ? 8 + align_up(data, 8) : 0) + (layout->crypt.length ? 24 : 0) + 8 + name;
    if (data > 1023 || (data && needed > cluster))
        return lodge_fail(err, LODGE_ERROR_LIMIT,
                          "The data file's name is too long for clusters of %" G_GUINT64_FORMAT
                          " bytes",
                          cluster);
    if (name > 1023 || needed > cluster)
        return lodge_fail(err, LODGE_ERROR_LIMIT,
                          "The backing file's name is too long for clusters of %" G_GUINT64_FORMAT
                          " bytes",
                          cluster);
    if (format)
        at += put_extension(raw + at, EXT_BACKING, c->backing_format, (uint32_t)format);
    if (layout->crypt.length) {
        uint8_t where[16];
        be64_put(where, (layout->total - layout->crypt_clusters) * cluster);
        be64_put(where + 8, layout->crypt.length);
        at += put_extension(raw + at, EXT_CRYPTO, where, sizeof(where));
    }
    if (data)
        at += put_extension(raw + at, EXT_DATA_FILE, layout->data_file, (uint32_t)data);
    if (table && needed + table <= cluster) /* 512-byte clusters have no room for it */
        at += qcow2_put_features(raw + at);
    at += 8; /* the end of the extensions, all zero */
    if (name) {
        be64_put(raw + 8, at);
        be32_put(raw + 16, (uint32_t)name);
        memcpy(raw + at, c->backing, name);
    }
    return true;
}

static int write_refcounts(BlockFile *file, const Layout *layout, uint8_t *raw)
{
    uint64_t cluster = 1ull << layout->cluster_bits;
    uint64_t per_block = 1ull << (layout->cluster_bits + 3 - layout->order);
    Qcow2 shape = {.refcount_bits = 1u << layout->order};
    int result = 0;
    for (uint64_t b = 0; b < layout->blocks && result == 0; b++) {
        memset(raw, 0, cluster);
        uint64_t used = MIN(per_block, layout->total - b * per_block);
        for (uint64_t i = 0; i < used; i++)
            qcow2_refcount_encode(&shape, raw, i, 1);
        result = block_file_write(file, (1 + layout->reftable_clusters + b) * cluster, raw, cluster);
    }
    uint64_t per_table = cluster / 8;
    for (uint64_t t = 0; t < layout->reftable_clusters && result == 0; t++) {
        memset(raw, 0, cluster);
        for (uint64_t i = 0; i < per_table && t * per_table + i < layout->blocks; i++)
            be64_put(raw + i * 8, (1 + layout->reftable_clusters + t * per_table + i) * cluster);
        result = block_file_write(file, (1 + t) * cluster, raw, cluster);
    }
    return result;
}

/* Gives the clusters from *at on their places, as many as one page of an L2 table has entries for. */
static int place(Qcow2 *q, uint64_t *at, uint64_t end, BlockPreallocation mode)
{
    Qcow2Page *page;
    uint64_t index, host, got, want = (align_up(end, q->cluster_size) - *at) >> q->cluster_bits;
    bool fresh;
    int result = qcow2_commit_if_full(q);
    if (result == 0)
        result = qcow2_l2_writable(q, *at);
    if (result == 0)
        result = qcow2_l2_page(q, *at, &page, &index);
    if (result < 0)
        return result;
    uint64_t room = MIN(want, qcow2_page_entries(q) - index), n = 0;
    while (n < room && qcow2_entry_get(q, page->bytes, index + n).word == 0)
        n++;
    g_mutex_unlock(&q->lock);
    if (n == 0) { /* there is something already */
        *at += q->cluster_size;
        return 0;
    }
    result = qcow2_data_alloc(q, *at, n, &host, &got, &fresh);
    /* A cluster that was in use before has something else in it. */
    if (result == 0 && !fresh && !q->external)
        result = q->file->ops->zero(q->file, host, got << q->cluster_bits, true);
    if (result == 0 && mode >= BLOCK_PREALLOCATE_FALLOC && !q->external)
        result = block_file_preallocate(q->file, host, host + (got << q->cluster_bits),
                                        mode == BLOCK_PREALLOCATE_FULL);
    if (result == 0)
        result = qcow2_l2_page(q, *at, &page, &index);
    if (result < 0)
        return result;
    /* With subclusters nothing is said of the content, which a backing image may have. */
    uint32_t alloc = q->subclusters == 1, zero = 0;
    /* What a hole decrypts to is not zero: where it can be said, they read as zero. */
    if (q->encrypted && alloc && q->header.version >= 3) {
        alloc = 0;
        zero = 1;
    }
    for (uint64_t i = 0; i < got; i++)
        qcow2_entry_put(q, page->bytes, index + i,
                        (Qcow2Entry){(host + (i << q->cluster_bits)) | QCOW2_COPIED, alloc, zero});
    qcow2_cache_dirty(&q->l2, page);
    q->uncommitted = true;
    g_mutex_unlock(&q->lock);
    *at += got << q->cluster_bits;
    return 0;
}

int qcow2_preallocate(Qcow2 *q, uint64_t at, uint64_t end, BlockPreallocation mode)
{
    int result = 0;
    while (at < end && result == 0) {
        g_mutex_lock(&q->meta);
        result = place(q, &at, end, mode);
        g_mutex_unlock(&q->meta);
    }
    return result;
}

/* Every cluster gets its place now; its content stays a hole that reads as zero. */
static bool preallocate(BlockFile *file, const BlockCreate *c, BlockPreallocation mode, GError **err)
{
    /* The node takes the file over and closes it, so it works on its own opening. */
    BlockOpen options = {.path = c->path, .format = "qcow2", .shared = true, .no_backing = true,
                         .no_secrets = true, .trust_references = true, .objects = c->objects};
    g_autoptr(BlockNode) node = block_open(&options, err);
    if (!node)
        return false;
    Qcow2 *q = node->state;
    int result = qcow2_preallocate(q, 0, c->size, mode);
    if (result < 0)
        return lodge_fail_errno(err, -result, "%s: cannot preallocate its metadata", c->path);
    result = file->block_device ? 0 : file->ops->truncate(file, q->high_water);
    return result == 0 || lodge_fail_errno(err, -result, "%s: cannot extend the file", c->path);
}

bool qcow2_create_check(const BlockCreate *c, GError **err)
{
    Layout layout = {0};
    if (!plan_layout(c, &layout, err))
        return false;
    g_autofree uint8_t *raw = g_malloc0((size_t)1 << layout.cluster_bits);
    return build_header(c, &layout, raw, err);
}

bool qcow2_create(BlockFile *file, const BlockCreate *c, GError **err)
{
    Layout layout = {0};
    if (!plan_layout(c, &layout, err))
        return false;
    uint64_t cluster = 1ull << layout.cluster_bits;
    g_autofree uint8_t *raw = g_malloc0(cluster);
    uint64_t l1_at = (1 + layout.reftable_clusters + layout.blocks) * cluster;
    int result = write_refcounts(file, &layout, raw);
    if (result == 0)
        result = file->ops->zero(file, l1_at, layout.l1_clusters * cluster, true);
    memset(raw, 0, cluster);
    if (result == 0 && !build_header(c, &layout, raw, err))
        return false;
    if (result == 0)
        result = block_file_write(file, 0, raw, cluster);
    if (result < 0)
        return lodge_fail_errno(err, -result, "%s: cannot write the new image", c->path);
    uint64_t crypt_at = (layout.total - layout.crypt_clusters) * cluster;
    if (layout.crypt_clusters)
        result = file->ops->zero(file, crypt_at, layout.crypt_clusters * cluster, true);
    if (result < 0)
        return lodge_fail_errno(err, -result, "%s: cannot write the new image", c->path);
    if (!qcow2_crypt_create(file, c, &layout.crypt, crypt_at, err))
        return false;
    if (layout.data_file && !qcow2_data_create(c, layout.preallocation, err))
        return false;
    return !layout.preallocation || preallocate(file, c, layout.preallocation, err);
}

int qcow2_grow_l1(Qcow2 *q, uint32_t entries)
{
    uint64_t bytes = (uint64_t)entries * 8;
    uint64_t clusters = align_up(bytes, q->cluster_size) >> q->cluster_bits;
    uint64_t start;
    int result;
    g_autofree uint64_t *table = g_try_new0(uint64_t, entries + 1);
    g_autofree uint8_t *raw = g_try_malloc0(clusters << q->cluster_bits);
    if (!table || !raw)
        return -ENOMEM;
    memcpy(table, q->l1, (uint64_t)q->header.l1_entries * 8);
    for (uint32_t i = 0; i < entries; i++)
        be64_put(raw + (uint64_t)i * 8, table[i]);
    result = qcow2_write_new(q, raw, clusters << q->cluster_bits, &start);
    if (result == 0)
        result = qcow2_commit(q);
    if (result < 0)
        return result;
    qcow2_free_later(q, q->header.l1_offset,
                     MAX(align_up((uint64_t)q->header.l1_entries * 8, q->cluster_size),
                         q->cluster_size),
                     false);
    q->header.l1_offset = start;
    q->header.l1_entries = entries;
    g_mutex_lock(&q->lock);
    g_free(q->l1);
    q->l1 = g_steal_pointer(&table);
    q->uncommitted = true;
    g_mutex_unlock(&q->lock);
    return 0;
}
