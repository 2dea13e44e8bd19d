/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Disks encrypted as a whole: a LUKS header, then the disk's sectors. docs/format/luks.md */
#include "base/bytes.h"
#include "base/error.h"
#include "disk/crypto/luks.h"
#include "disk/format/formats.h"
#include "disk/iov.h"
#include "disk/lock.h"

#include <errno.h>
#include <stdlib.h>

#define SECTOR BLOCK_CIPHER_SECTOR

/* Ciphertext passes through buffers of this size, so that a guest never sees or changes it. */
#define PIECE        ((size_t)KIB(256))
#define PIECES_KEPT  16u
#define PIECE_ALIGN  4096u

typedef struct Luks {
    BlockLuks *luks;
    BlockFile *header; /* detached; NULL: in front of the payload */
    uint64_t payload;
    GMutex lock; /* of pieces */
    void *pieces[PIECES_KEPT];
    unsigned n_pieces;
    GRWLock sectors; /* written exclusively by those that change part of a sector */
} Luks;

/* ---- where the header is */

static int io_read(void *opaque, uint64_t offset, void *buffer, size_t length)
{
    return block_file_read(opaque, offset, buffer, length);
}

static int io_write(void *opaque, uint64_t offset, const void *buffer, size_t length)
{
    return block_file_write(opaque, offset, buffer, length);
}

static int io_flush(void *opaque)
{
    BlockFile *file = opaque;
    return file->ops->flush(file);
}

static BlockLuksIo io_of(BlockFile *file)
{
    return (BlockLuksIo){io_read, io_write, io_flush, file};
}

/* ---- open */

static bool luks_probe(const uint8_t *head, size_t length)
{
    return block_luks_probe(head, length);
}

static bool find_size(BlockNode *node, GError **err)
{
    const Luks *l = node->state;
    uint64_t size;
    int result = node->file->ops->size(node->file, &size);
    if (result < 0)
        return lodge_fail_errno(err, -result, "%s: cannot find its size", node->path);
    if (l->payload > size)
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "%s: the encrypted payload starts at byte %" G_GUINT64_FORMAT
                          ", and the file has %" G_GUINT64_FORMAT,
                          node->path, l->payload, size);
    if (size > INT64_MAX - SECTOR)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "%s: the file is too large", node->path);
    node->size = align_up(size - l->payload, SECTOR);
    return true;
}

static bool luks_open(BlockNode *node, const BlockOpen *options, GError **err)
{
    Luks *l = node->state = g_new0(Luks, 1);
    g_mutex_init(&l->lock);
    g_rw_lock_init(&l->sectors);
    BlockLuksOpen how = {.prefix = "", .objects = options->objects, .locked = options->no_secrets,
                         .key_secret = block_option_string(options->options, NULL, "key-secret"),
                         .detached = block_option_given(options->options, "header")};
    if (how.detached) {
        l->header =
            block_reference_open(node, options, "header", NULL, !node->read_only, err);
        if (!l->header)
            return false;
    }
    BlockLuksIo io = io_of(l->header ? l->header : node->file);
    l->luks = block_luks_open(&io, &how, err);
    if (!l->luks)
        return false;
    l->payload = block_luks_payload(l->luks);
    return find_size(node, err);
}

static void luks_close(BlockNode *node)
{
    Luks *l = node->state;
    if (!l)
        return;
    if (!node->read_only)
        block_node_sync(node);
    for (unsigned i = 0; i < l->n_pieces; i++)
        free(l->pieces[i]);
    block_luks_free(l->luks);
    block_file_close(l->header);
    g_rw_lock_clear(&l->sectors);
    g_mutex_clear(&l->lock);
    g_clear_pointer(&node->state, g_free);
}

/* ---- data */

static void *piece_take(Luks *l)
{
    void *piece = NULL;
    g_mutex_lock(&l->lock);
    if (l->n_pieces > 0)
        piece = l->pieces[--l->n_pieces];
    g_mutex_unlock(&l->lock);
    return piece || posix_memalign(&piece, PIECE_ALIGN, PIECE) == 0 ? piece : NULL;
}

static void piece_give(Luks *l, void *piece)
{
    g_mutex_lock(&l->lock);
    if (l->n_pieces < PIECES_KEPT) {
        l->pieces[l->n_pieces++] = piece;
        piece = NULL;
    }
    g_mutex_unlock(&l->lock);
    free(piece);
}

/* Whole sectors of ciphertext, which a piece has room for. */
static int file_io(BlockNode *node, bool write, uint64_t offset, void *piece, size_t length)
{
    const Luks *l = node->state;
    return write ? block_file_write(node->file, l->payload + offset, piece, length)
                 : block_file_read(node->file, l->payload + offset, piece, length);
}

/* Sectors that are whole in the request. */
static int whole(BlockNode *node, bool write, uint64_t offset, const struct iovec *iov, int n,
                 uint64_t skip, size_t length, void *piece)
{
    BlockCipher *cipher = block_luks_cipher(((Luks *)node->state)->luks);
    int result = write ? block_cipher_encrypt_iov(cipher, offset / SECTOR, iov, n, skip, piece,
                                                  length)
                       : file_io(node, false, offset, piece, length);
    if (result < 0)
        return result;
    return write ? file_io(node, true, offset, piece, length)
                 : block_cipher_decrypt_iov(cipher, offset / SECTOR, piece, iov, n, skip, length);
}

/* @length bytes within one sector: it is read whole and, @write, written back changed. */
static int part(BlockNode *node, bool write, uint64_t offset, const struct iovec *iov, int n,
                uint64_t skip, size_t length, uint8_t *piece)
{
    BlockCipher *cipher = block_luks_cipher(((Luks *)node->state)->luks);
    uint64_t start = align_down(offset, SECTOR);
    int result = file_io(node, false, start, piece, SECTOR);
    if (result == 0)
        result = block_cipher_decrypt(cipher, start / SECTOR, piece, piece, SECTOR);
    if (result < 0 || !write) {
        block_iov_from(iov, n, skip, piece + (offset - start), result < 0 ? 0 : length);
        return result;
    }
    block_iov_to(piece + (offset - start), iov, n, skip, length);
    result = block_cipher_encrypt(cipher, start / SECTOR, piece, piece, SECTOR);
    return result < 0 ? result : file_io(node, true, start, piece, SECTOR);
}

static int transfer(BlockNode *node, bool write, uint64_t offset, const struct iovec *iov, int n)
{
    Luks *l = node->state;
    uint64_t length = block_iov_length(iov, n);
    if (block_luks_locked(l->luks))
        return -EACCES;
    uint8_t *piece = piece_take(l);
    if (!piece)
        return -ENOMEM;
    int result = 0;
    for (uint64_t done = 0; done < length && result == 0;) {
        uint64_t at = offset + done, within = at % SECTOR, left = length - done, step;
        if (within || left < SECTOR) {
            step = MIN(left, SECTOR - within);
            result = part(node, write, at, iov, n, done, step, piece);
        } else {
            step = MIN(align_down(left, SECTOR), PIECE);
            result = whole(node, write, at, iov, n, done, step, piece);
        }
        done += step;
    }
    piece_give(l, piece);
    return result;
}

static int luks_readv(BlockNode *node, uint64_t offset, const struct iovec *iov, int n)
{
    return transfer(node, false, offset, iov, n);
}

static int luks_writev(BlockNode *node, uint64_t offset, const struct iovec *iov, int n)
{
    Luks *l = node->state;
    if ((offset | block_iov_length(iov, n)) % SECTOR) {
        g_rw_lock_writer_lock(&l->sectors);
        int result = transfer(node, true, offset, iov, n);
        g_rw_lock_writer_unlock(&l->sectors);
        return result;
    }
    g_rw_lock_reader_lock(&l->sectors);
    int result = transfer(node, true, offset, iov, n);
    g_rw_lock_reader_unlock(&l->sectors);
    return result;
}

/* There is no other way to make a sector read as zero than to write what decrypts to it. */
static int luks_write_zeroes(BlockNode *node, uint64_t offset, uint64_t length, bool unmap)
{
    static const uint8_t zeroes[64 * 1024];
    struct iovec iov[8];
    int result = 0;
    for (uint64_t done = 0; done < length && result == 0;) {
        uint64_t step = 0;
        int n = 0;
        for (; n < 8 && done + step < length; n++) {
            iov[n] = (struct iovec){(void *)zeroes, MIN(length - done - step, sizeof(zeroes))};
            step += iov[n].iov_len;
        }
        result = luks_writev(node, offset + done, iov, n);
        done += step;
    }
    return result;
}

/* Which sectors are in use is nobody's business: the hint is not passed on. */
static int luks_discard(BlockNode *node, uint64_t offset, uint64_t length)
{
    return 0;
}

static int luks_status(BlockNode *node, uint64_t offset, uint64_t length, BlockExtent *extent)
{
    *extent = (BlockExtent){.length = length, .present = true, .data = true};
    return 0;
}

/* ---- create */

static const BlockOption luks_open_options[] = {
    {"key-secret", BLOCK_OPTION_STRING, "ID of the secret that provides the keyslot passphrase",
     NULL},
    {"header", BLOCK_OPTION_TREE, "the node that holds a detached header", NULL},
    {NULL, 0, NULL, NULL},
};

static const BlockOption luks_create_options[] = {
    {"size", BLOCK_OPTION_SIZE, "Virtual disk size", NULL},
    {"key-secret", BLOCK_OPTION_STRING, "ID of the secret that provides the keyslot passphrase",
     NULL},
    BLOCK_LUKS_CREATE_OPTIONS(""),
    {"detached-header", BLOCK_OPTION_BOOL, "Create a detached LUKS header", NULL},
    {"preallocation", BLOCK_OPTION_STRING, "Preallocation mode (allowed values: off, falloc, full)",
     NULL},
    {NULL, 0, NULL, NULL},
};

static const BlockOption luks_amend_options[] = {
    BLOCK_LUKS_AMEND_OPTIONS(""),
    {NULL, 0, NULL, NULL},
};

typedef struct NewLuks {
    BlockLuksCreate luks;
    BlockPreallocation preallocation;
    bool detached;
    uint64_t payload;
} NewLuks;

static bool parse_create(const BlockCreate *create, NewLuks *new, GError **err)
{
    *new = (NewLuks){0};
    if (!block_luks_create_options(create->options, "", &new->luks, err) ||
        !block_preallocation(create->options, &new->preallocation, err) ||
        !block_option_bool(create->options, NULL, "detached-header", &new->detached, err))
        return false;
    if (!new->luks.key_secret)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "Parameter 'key-secret' is required for cipher");
    new->payload = block_luks_create_size(&new->luks);
    if (new->payload > INT64_MAX - SECTOR || create->size > INT64_MAX - SECTOR - new->payload)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "The requested file size is too large");
    return true;
}

static bool luks_create_check(const BlockCreate *create, GError **err)
{
    NewLuks new;
    return parse_create(create, &new, err) &&
           block_luks_create_check(&new.luks, create->objects, err);
}

static bool reserve(BlockFile *file, uint64_t from, uint64_t end, BlockPreallocation mode,
                    GError **err)
{
    int result = file->ops->truncate(file, end);
    if (result < 0) { /* a device that is large enough will do */
        uint64_t have = 0;
        if (file->ops->size(file, &have) == 0 && have >= end)
            result = 0;
    }
    bool fill = mode == BLOCK_PREALLOCATE_FALLOC || mode == BLOCK_PREALLOCATE_FULL;
    if (result == 0 && fill && end > from)
        result = file->ops->zero(file, from, end - from, false);
    return result == 0 || lodge_fail_errno(err, -result, "%s: cannot set its size to %" G_GUINT64_FORMAT,
                                           file->path, end);
}

static bool luks_create(BlockFile *file, const BlockCreate *create, GError **err)
{
    NewLuks new;
    BlockLuksIo io = io_of(file);
    if (!parse_create(create, &new, err) ||
        !reserve(file, 0, new.payload + (new.detached ? 0 : create->size), new.preallocation, err))
        return false;
    g_autoptr(BlockLuks) luks =
        new.detached ? block_luks_create_detached(&io, &new.luks, create->objects, err)
                     : block_luks_create(&io, &new.luks, create->objects, err);
    return luks;
}

static bool luks_measure(const BlockCreate *create, BlockNode *source, BlockMeasure *measure,
                         GError **err)
{
    NewLuks new;
    if (!parse_create(create, &new, err))
        return false;
    measure->required = new.payload + (source ? source->size : create->size);
    measure->fully_allocated = measure->required;
    return true;
}

/* ---- the rest */

static void luks_info(BlockNode *node, BlockInfo *info)
{
    info->encrypted = true;
    info->specific_type = "luks";
    info->specific = block_luks_info(((Luks *)node->state)->luks);
}

static bool luks_resize(BlockNode *node, const BlockResize *resize, GError **err)
{
    const Luks *l = node->state;
    if (resize->size > INT64_MAX - SECTOR - l->payload)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "The requested file size is too large");
    uint64_t size = align_up(resize->size, SECTOR);
    if (!reserve(node->file, l->payload + MIN(node->size, size), l->payload + size,
                 resize->preallocation, err))
        return false;
    node->size = size;
    return true;
}

static bool luks_amend(BlockNode *node, const json_t *options, const BlockObjects *objects,
                       bool force, const BlockProgress *progress, GError **err)
{
    Luks *l = node->state;
    BlockFile *file = l->header ? l->header : node->file;
    BlockLuksIo io = io_of(file);
    bool lock = file->fd >= 0 && !node->shared;
    if (lock && !block_lock_no_readers(file->fd, file->path, err))
        return false;
    bool ok = block_luks_amend(l->luks, &io, options, "", objects, force, err);
    if (lock)
        block_lock_readers(file->fd);
    return ok;
}

const BlockFormat block_format_luks = {
    .name = "luks",
    .probe = luks_probe,
    .open = luks_open,
    .close = luks_close,
    .readv = luks_readv,
    .writev = luks_writev,
    .write_zeroes = luks_write_zeroes,
    .discard = luks_discard,
    .flush = block_node_sync,
    .status = luks_status,
    .open_options = luks_open_options,
    .create_options = luks_create_options,
    .amend_options = luks_amend_options,
    .create_check = luks_create_check,
    .create = luks_create,
    .measure = luks_measure,
    .info = luks_info,
    .resize = luks_resize,
    .amend = luks_amend,
};
