/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * QEMU's first copy-on-write format, "qcow" version 1: a header, a table of tables of clusters, which
 * are stored as they are, compressed, or encrypted. "The QCOW Image Format", M. McLoughlin, 2006.
 * docs/format/qcow.md
 */
#include "base/bytes.h"
#include "base/error.h"
#include "disk/format/formats.h"
#include "disk/format/grains.h"
#include "disk/iov.h"
#include "disk/objects.h"

#include <errno.h>
#include <string.h>
#include <zlib.h>

#define MAGIC          0x514649fbu /* "QFI\xfb" */
#define VERSION        1u
#define HEADER_BYTES   48u
#define SECTOR         512u
#define BACKING_MAX    1023u
#define KEY_BYTES      16u
#define COMPRESSED     (1ull << 63)
#define DEFLATE_WINDOW 12 /* bits, negative: no header around the stream */

/* Byte offsets of the header's big-endian fields. */
enum {
    AT_MAGIC = 0,
    AT_VERSION = 4,
    AT_BACKING = 8,
    AT_BACKING_SIZE = 16,
    AT_SIZE = 24,
    AT_CLUSTER_BITS = 32,
    AT_TABLE_BITS = 33,
    AT_CRYPT = 36,
    AT_DIRECTORY = 40,
};

enum { CRYPT_NONE = 0, CRYPT_AES = 1 };

typedef struct Qcow1 {
    GrainMap map;
    unsigned cluster_bits;
    bool encrypted;
    BlockCipher *cipher;
} Qcow1;

static bool qcow1_probe(const uint8_t *head, size_t length)
{
    return length >= HEADER_BYTES && be32_get(head + AT_MAGIC) == MAGIC &&
           be32_get(head + AT_VERSION) == VERSION;
}

static uint64_t offset_mask(const GrainMap *m)
{
    const Qcow1 *q = m->owner;
    return (1ull << (63 - q->cluster_bits)) - 1;
}

static bool qcow1_decode(const GrainMap *m, const uint8_t *p, Grain *grain)
{
    const Qcow1 *q = m->owner;
    uint64_t entry = be64_get(p);
    *grain = (Grain){.kind = GRAIN_NONE};
    if (entry & COMPRESSED)
        *grain = (Grain){.kind = GRAIN_PACKED, .offset = entry & offset_mask(m),
                         .length = entry >> (63 - q->cluster_bits) & (m->grain - 1)};
    else if (entry)
        *grain = (Grain){.kind = GRAIN_DATA, .offset = entry};
    return grain->kind != GRAIN_DATA || (entry % SECTOR == 0 && entry <= INT64_MAX - m->grain);
}

static void qcow1_encode(const GrainMap *m, uint8_t *p, const Grain *grain)
{
    const Qcow1 *q = m->owner;
    uint64_t entry = 0;
    if (grain->kind == GRAIN_DATA)
        entry = grain->offset;
    else if (grain->kind == GRAIN_PACKED)
        entry = COMPRESSED | grain->offset | grain->length << (63 - q->cluster_bits);
    be64_put(p, entry);
}

static bool qcow1_table_decode(const GrainMap *m, const uint8_t *p, uint64_t *offset)
{
    *offset = be64_get(p);
    return *offset <= INT64_MAX - m->entries * 8ull;
}

static void qcow1_table_encode(const GrainMap *m, uint8_t *p, uint64_t offset)
{
    be64_put(p, offset);
}

static int qcow1_unpack(GrainMap *m, const Grain *grain, uint8_t *out, size_t needed)
{
    g_autofree uint8_t *in = g_try_malloc(grain->length + 1);
    z_stream stream = {.next_out = out, .avail_out = (uInt)m->grain};
    if (!in)
        return -ENOMEM;
    int result = block_file_read(m->file, grain->offset, in, grain->length);
    if (result < 0)
        return result;
    stream.next_in = in;
    stream.avail_in = (uInt)grain->length;
    if (inflateInit2(&stream, -DEFLATE_WINDOW) != Z_OK)
        return -ENOMEM;
    result = inflate(&stream, Z_FINISH);
    bool full = m->grain - stream.avail_out >= needed;
    inflateEnd(&stream);
    return full && (result == Z_STREAM_END || result == Z_BUF_ERROR) ? 0 : -EIO;
}

/* The last cluster is compressed whole, with zeroes behind the end of the disk. */
static size_t qcow1_pack(GrainMap *m, uint64_t start, const uint8_t *in, size_t length, uint8_t *out,
                         size_t room)
{
    z_stream stream = {.next_in = (uint8_t *)in,
                       .avail_in = (uInt)m->grain,
                       .next_out = out,
                       .avail_out = (uInt)room};
    if (deflateInit2(&stream, Z_DEFAULT_COMPRESSION, Z_DEFLATED, -DEFLATE_WINDOW, 9,
                     Z_DEFAULT_STRATEGY) != Z_OK)
        return 0;
    int result = deflate(&stream, Z_FINISH);
    deflateEnd(&stream);
    return result == Z_STREAM_END ? room - stream.avail_out : 0;
}

static const GrainOps qcow1_ops = {
    .decode = qcow1_decode,
    .encode = qcow1_encode,
    .table_decode = qcow1_table_decode,
    .table_encode = qcow1_table_encode,
    .unpack = qcow1_unpack,
    .pack = qcow1_pack,
};

/* Options come as "encrypt": {"key-secret": ...}, or with a dot in a flat object. */
static const char *encrypt_option(const json_t *options, const char *name)
{
    const json_t *nested = options ? json_object_get(options, "encrypt") : NULL;
    g_autofree char *dotted = g_strdup_printf("encrypt.%s", name);
    const char *value = block_option_string(nested, NULL, name);
    return value ? value : block_option_string(options, NULL, dotted);
}

/* AES-128-CBC; the key is the secret's first 16 bytes, filled up with zeroes. */
static BlockCipher *make_cipher(const json_t *options, const BlockObjects *objects, GError **err)
{
    static const BlockCipherParams params = {.alg = BLOCK_CIPHER_AES_128, .mode = BLOCK_CIPHER_CBC,
                                             .ivgen = BLOCK_IVGEN_PLAIN64};
    const char *id = encrypt_option(options, "key-secret");
    uint8_t key[KEY_BYTES] = {0};
    size_t length;
    if (!id) {
        lodge_fail(err, LODGE_ERROR_INVALID,
                   "Parameter 'encrypt.key-secret' is required for cipher");
        return NULL;
    }
    const uint8_t *secret = block_objects_secret(objects, id, &length, err);
    if (!secret)
        return NULL;
    memcpy(key, secret, MIN(length, sizeof(key)));
    BlockCipher *cipher = block_cipher_new(&params, key, sizeof(key), err);
    explicit_bzero(key, sizeof(key));
    return cipher;
}

static bool open_encrypted(Qcow1 *q, uint32_t method, const BlockOpen *options, GError **err)
{
    const char *format = encrypt_option(options->options, "format");
    if (method == CRYPT_NONE)
        return !format || lodge_fail(err, LODGE_ERROR_INVALID,
                                     "No encryption in image header, but options specified format "
                                     "'%s'",
                                     format);
    if (method != CRYPT_AES)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "invalid encryption method in qcow header");
    if (format && strcmp(format, "aes"))
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "Header reported 'aes' encryption format but options specify '%s'",
                          format);
    q->encrypted = true;
    if (options->no_secrets)
        return true;
    q->cipher = q->map.cipher = make_cipher(options->options, options->objects, err);
    return q->cipher != NULL;
}

static bool check_header(const uint8_t *h, GError **err)
{
    uint32_t version = be32_get(h + AT_VERSION);
    uint64_t size = be64_get(h + AT_SIZE);
    unsigned cluster_bits = h[AT_CLUSTER_BITS], table_bits = h[AT_TABLE_BITS];
    if (be32_get(h + AT_MAGIC) != MAGIC)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "Image not in qcow format");
    if (version != VERSION)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "qcow (v%u) does not support qcow version %u%s", VERSION, version,
                          version == 2 || version == 3 ? "\nTry the 'qcow2' driver instead." : "");
    if (size <= 1)
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "Image size is too small (must be at least 2 bytes)");
    if (cluster_bits < 9 || cluster_bits > 16)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "Cluster size must be between 512 and 64k");
    if (table_bits < 6 || table_bits > 13)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "L2 table size must be between 512 and 64k");
    if (size > INT64_MAX - SECTOR || size >> (cluster_bits + table_bits) >= GRAINS_TABLES_MAX)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "Image too large");
    return true;
}

static bool read_backing(BlockNode *node, const uint8_t *h, GError **err)
{
    char name[BACKING_MAX + 1] = "";
    uint64_t at = be64_get(h + AT_BACKING);
    uint32_t length = be32_get(h + AT_BACKING_SIZE);
    if (at == 0)
        return true;
    if (length > BACKING_MAX)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "Backing file name too long");
    int result = at > INT64_MAX / 2 ? -EINVAL : block_file_read(node->file, at, name, length);
    if (result < 0)
        return lodge_fail_errno(err, -result, "%s: cannot read the name of its backing file",
                                node->path);
    if (*name)
        node->backing_path = g_strdup(name);
    return true;
}

static bool qcow1_open(BlockNode *node, const BlockOpen *options, GError **err)
{
    uint8_t h[HEADER_BYTES];
    int result = block_file_read(node->file, 0, h, sizeof(h));
    if (result < 0)
        return lodge_fail_errno(err, -result, "%s: cannot read its header", node->path);
    if (!check_header(h, err))
        return false;
    Qcow1 *q = node->state = g_new0(Qcow1, 1);
    GrainMap *m = &q->map;
    q->cluster_bits = h[AT_CLUSTER_BITS];
    node->size = align_down(be64_get(h + AT_SIZE), SECTOR);
    m->node = node;
    m->file = node->file;
    m->ops = &qcow1_ops;
    m->owner = q;
    m->size = node->size;
    m->grain = 1ull << q->cluster_bits;
    m->entries = 1u << h[AT_TABLE_BITS];
    m->entry_bytes = m->table_entry_bytes = 8;
    m->directory = be64_get(h + AT_DIRECTORY);
    m->header = HEADER_BYTES;
    if (be64_get(h + AT_BACKING) == HEADER_BYTES)
        m->header += MIN(be32_get(h + AT_BACKING_SIZE), BACKING_MAX);
    m->alignment = m->grain;
    m->pack_alignment = 1;
    m->file_max = MIN(offset_mask(m), INT64_MAX - MIB(1));
    m->pack_room = m->grain - 1;
    m->read_only = node->read_only;
    return open_encrypted(q, be32_get(h + AT_CRYPT), options, err) && read_backing(node, h, err) &&
           grains_init(m, err);
}

static void qcow1_close(BlockNode *node)
{
    Qcow1 *q = node->state;
    if (!q)
        return;
    if (!node->read_only && q->map.set_up)
        grains_flush(&q->map);
    grains_clear(&q->map);
    block_cipher_free(q->cipher);
    g_free(q);
    node->state = NULL;
}

/* Opened without its key: the image can only be described. */
static bool locked(const Qcow1 *q)
{
    return q->encrypted && !q->cipher;
}

static int qcow1_readv(BlockNode *node, uint64_t offset, const struct iovec *iov, int n)
{
    Qcow1 *q = node->state;
    return locked(q) ? -EACCES
                     : grains_readv(&q->map, offset, iov, n, 0, block_iov_length(iov, n));
}

static int qcow1_writev(BlockNode *node, uint64_t offset, const struct iovec *iov, int n)
{
    Qcow1 *q = node->state;
    return locked(q) ? -EACCES
                     : grains_writev(&q->map, offset, iov, n, 0, block_iov_length(iov, n));
}

static int qcow1_write_zeroes(BlockNode *node, uint64_t offset, uint64_t length, bool unmap)
{
    Qcow1 *q = node->state;
    return locked(q) ? -EACCES : grains_write_zeroes(&q->map, offset, length, unmap);
}

static int qcow1_write_compressed(BlockNode *node, uint64_t offset, const void *cluster,
                                  size_t length)
{
    Qcow1 *q = node->state;
    return q->encrypted ? -ENOTSUP : grains_write_packed(&q->map, offset, cluster, length);
}

static int qcow1_discard(BlockNode *node, uint64_t offset, uint64_t length)
{
    Qcow1 *q = node->state;
    return q->encrypted ? 0 : grains_discard(&q->map, offset, length);
}

static int qcow1_flush(BlockNode *node)
{
    return grains_flush(&((Qcow1 *)node->state)->map);
}

static bool qcow1_flush_is_plain(BlockNode *node)
{
    return grains_flush_is_plain(&((Qcow1 *)node->state)->map);
}

static int qcow1_status(BlockNode *node, uint64_t offset, uint64_t length, BlockExtent *extent)
{
    Qcow1 *q = node->state;
    int result = grains_status(&q->map, offset, length, extent);
    if (q->encrypted)
        extent->has_offset = false;
    return result;
}

static bool qcow1_fast_begin(BlockNode *node, bool write, uint64_t offset, uint64_t length,
                             BlockFast *fast)
{
    Qcow1 *q = node->state;
    return !q->encrypted && grains_fast_begin(&q->map, write, offset, length, fast);
}

static void qcow1_fast_end(BlockNode *node, BlockFast *fast)
{
}

static void qcow1_info(BlockNode *node, BlockInfo *info)
{
    const Qcow1 *q = node->state;
    info->cluster_size = q->map.grain;
    info->encrypted = q->encrypted;
}

static bool qcow1_check(BlockNode *node, BlockCheck *check, GError **err)
{
    if (check->repair != BLOCK_REPAIR_NONE)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "This image format does not support checks");
    return grains_check(&((Qcow1 *)node->state)->map, check, err);
}

static bool qcow1_make_empty(BlockNode *node, GError **err)
{
    int result = grains_make_empty(&((Qcow1 *)node->state)->map);
    return result == 0 || lodge_fail_errno(err, -result, "%s: cannot empty it", node->path);
}

static bool wants_encryption(const BlockCreate *c, bool *wanted, GError **err)
{
    const char *format = encrypt_option(c->options, "format");
    *wanted = false;
    if (!block_option_bool(c->options, NULL, "encryption", wanted, err))
        return false;
    if (format && strcmp(format, "aes"))
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "Unsupported encryption format");
    *wanted = *wanted || format;
    return true;
}

static bool qcow1_create_check(const BlockCreate *c, GError **err)
{
    bool encrypt;
    unsigned bits = c->backing ? 9 + 12 : 12 + 9;
    if (!wants_encryption(c, &encrypt, err))
        return false;
    if (c->size == 0)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "Image size is too small, cannot be zero length");
    if (c->size >> bits >= GRAINS_TABLES_MAX)
        return lodge_fail(err, LODGE_ERROR_LIMIT,
                          "The image size is too large for file format 'qcow'");
    if (c->backing && strlen(c->backing) > BACKING_MAX)
        return lodge_fail(err, LODGE_ERROR_INVALID, "Backing file name too long");
    if (c->backing_format && !block_format_find(c->backing_format))
        return lodge_fail(err, LODGE_ERROR_INVALID, "unrecognized backing format '%s'",
                          c->backing_format);
    g_autoptr(BlockCipher) cipher = encrypt ? make_cipher(c->options, c->objects, err) : NULL;
    return !encrypt || cipher;
}

/* Clusters of a sector where there is a backing file: none of it has to be copied then. */
static bool qcow1_create(BlockFile *file, const BlockCreate *c, GError **err)
{
    bool encrypt;
    unsigned cluster_bits = c->backing ? 9 : 12, table_bits = c->backing ? 12 : 9;
    size_t name = c->backing ? strlen(c->backing) : 0;
    uint64_t size = align_up(c->size, SECTOR), directory = align_up(HEADER_BYTES + name, 8);
    uint64_t covers = 1ull << (cluster_bits + table_bits);
    uint64_t entries = (size + covers - 1) / covers;
    uint64_t end = directory + align_up(entries * 8, SECTOR);
    g_autofree uint8_t *h = g_malloc0(directory);
    if (!wants_encryption(c, &encrypt, err))
        return false;
    be32_put(h + AT_MAGIC, MAGIC);
    be32_put(h + AT_VERSION, VERSION);
    if (name) {
        be64_put(h + AT_BACKING, HEADER_BYTES);
        be32_put(h + AT_BACKING_SIZE, (uint32_t)name);
        memcpy(h + HEADER_BYTES, c->backing, name);
    }
    be64_put(h + AT_SIZE, size);
    h[AT_CLUSTER_BITS] = (uint8_t)cluster_bits;
    h[AT_TABLE_BITS] = (uint8_t)table_bits;
    be32_put(h + AT_CRYPT, encrypt ? CRYPT_AES : CRYPT_NONE);
    be64_put(h + AT_DIRECTORY, directory);
    int result = file->ops->zero(file, 0, end, false);
    if (result == 0)
        result = block_file_write(file, 0, h, directory);
    return result == 0 || lodge_fail_errno(err, -result, "%s: cannot write the image", c->path);
}

static const BlockOption qcow1_create_options[] = {
    {"size", BLOCK_OPTION_SIZE, "Virtual disk size", NULL},
    {"backing_file", BLOCK_OPTION_STRING, "File name of a base image", NULL},
    {"backing_fmt", BLOCK_OPTION_STRING, "Format of the backing image", NULL},
    {"encryption", BLOCK_OPTION_BOOL,
     "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)", NULL},
    {"encrypt.format", BLOCK_OPTION_STRING, "Encrypt the image, format choices: 'aes'", NULL},
    {"encrypt.key-secret", BLOCK_OPTION_STRING,
     "ID of the secret that provides the AES encryption key", NULL},
    {NULL, 0, NULL, NULL},
};

static const BlockOption qcow1_open_options[] = {
    {"encrypt", BLOCK_OPTION_TREE, "format (aes), key-secret", NULL},
    {NULL, 0, NULL, NULL},
};

const BlockFormat block_format_qcow1 = {
    .name = "qcow",
    .probe = qcow1_probe,
    .open = qcow1_open,
    .close = qcow1_close,
    .readv = qcow1_readv,
    .writev = qcow1_writev,
    .write_zeroes = qcow1_write_zeroes,
    .discard = qcow1_discard,
    .flush = qcow1_flush,
    .status = qcow1_status,
    .fast_begin = qcow1_fast_begin,
    .fast_end = qcow1_fast_end,
    .flush_is_plain = qcow1_flush_is_plain,
    .open_options = qcow1_open_options,
    .create_options = qcow1_create_options,
    .create_check = qcow1_create_check,
    .create = qcow1_create,
    .info = qcow1_info,
    .check = qcow1_check,
    .make_empty = qcow1_make_empty,
    .write_compressed = qcow1_write_compressed,
};
