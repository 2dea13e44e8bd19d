/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Encrypted images: method 2 keeps a LUKS header in clusters of the file and numbers the sectors
 * by where they are in it; method 1, of old, is AES-128-CBC numbered by the guest's sectors.
 */
#include "base/bytes.h"
#include "base/error.h"
#include "disk/format/qcow2/qcow2.h"
#include "disk/iov.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SECTOR   BLOCK_CIPHER_SECTOR
#define PIECE    ((size_t)KIB(256))
#define AES_KEY  16u

/* ---- options: "encrypt" is a group when opening, dotted names when creating */

static const char *open_option(const json_t *options, const char *name)
{
    const json_t *group = options ? json_object_get(options, "encrypt") : NULL;
    g_autofree char *dotted = g_strdup_printf("encrypt.%s", name);
    const char *text = json_is_object(group) ? block_option_string(group, NULL, name) : NULL;
    return text ? text : block_option_string(options, NULL, dotted);
}

static BlockCipher *aes_cipher(const char *id, const BlockObjects *objects, GError **err)
{
    static const BlockCipherParams params = {.alg = BLOCK_CIPHER_AES_128, .mode = BLOCK_CIPHER_CBC,
                                             .ivgen = BLOCK_IVGEN_PLAIN64};
    uint8_t key[AES_KEY] = {0};
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

/* ---- where the LUKS header is */

typedef struct Window {
    BlockFile *file;
    uint64_t offset, length;
} Window;

static int window_read(void *opaque, uint64_t offset, void *buffer, size_t length)
{
    const Window *w = opaque;
    if (!range_within(offset, length, w->length))
        return -EINVAL;
    return block_file_read(w->file, w->offset + offset, buffer, length);
}

static int window_write(void *opaque, uint64_t offset, const void *buffer, size_t length)
{
    const Window *w = opaque;
    if (!range_within(offset, length, w->length))
        return -EINVAL;
    return block_file_write(w->file, w->offset + offset, buffer, length);
}

static int window_flush(void *opaque)
{
    const Window *w = opaque;
    return w->file->ops->flush(w->file);
}

static bool open_luks(Qcow2 *q, const BlockOpen *options, GError **err)
{
    Window w = {q->file, q->header.crypt_offset, q->header.crypt_length};
    BlockLuksIo io = {window_read, window_write, window_flush, &w};
    BlockLuksOpen how = {.prefix = "encrypt.", .objects = options->objects,
                         .locked = options->no_secrets,
                         .key_secret = open_option(options->options, "key-secret")};
    if (w.length == 0)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "Missing CRYPTO header for crypt method %u",
                          q->header.crypt_method);
    if (w.offset % q->cluster_size || w.offset == 0 || w.offset > QCOW2_HOST_MAX ||
        w.length > QCOW2_CRYPT_MAX)
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "Encryption header offset '%" G_GUINT64_FORMAT
                          "' is not a multiple of cluster size '%" G_GUINT64_FORMAT "'",
                          w.offset, q->cluster_size);
    q->luks = block_luks_open(&io, &how, err);
    return q->luks != NULL;
}

bool qcow2_crypt_open(Qcow2 *q, const BlockOpen *options, GError **err)
{
    uint32_t method = q->header.crypt_method;
    const char *format = open_option(options->options, "format");
    const char *actual = method == QCOW2_CRYPT_AES ? "aes" : "luks";
    if (method == 0)
        return !format || lodge_fail(err, LODGE_ERROR_INVALID,
                                     "No encryption in image header, but options specified format "
                                     "'%s'",
                                     format);
    if (format && strcmp(format, actual))
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "Header reported '%s' encryption format but options specify '%s'",
                          actual, format);
    q->encrypted = true;
    if (method == QCOW2_CRYPT_LUKS)
        return open_luks(q, options, err);
    if (options->no_secrets)
        return true;
    q->aes = aes_cipher(open_option(options->options, "key-secret"), options->objects, err);
    return q->aes != NULL;
}

void qcow2_crypt_close(Qcow2 *q)
{
    g_clear_pointer(&q->luks, block_luks_free);
    g_clear_pointer(&q->aes, block_cipher_free);
}

bool qcow2_crypt_amend(Qcow2 *q, const json_t *options, const BlockObjects *objects, bool force,
                       GError **err)
{
    if (!q->luks)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          q->encrypted
                              ? "Only LUKS encryption options can be amended"
                              : "Can't amend encryption options - encryption not present");
    Window w = {q->file, q->header.crypt_offset, q->header.crypt_length};
    BlockLuksIo io = {window_read, window_write, window_flush, &w};
    return block_luks_amend(q->luks, &io, options, "encrypt.", objects, force, err);
}

json_t *qcow2_crypt_info(const Qcow2 *q)
{
    json_t *info = q->luks ? block_luks_info(q->luks) : json_object();
    json_object_set_new(info, "format", json_string(q->luks ? "luks" : "aes"));
    return info;
}

/* ---- data */

static BlockCipher *cipher_of(const Qcow2 *q)
{
    return q->luks ? block_luks_cipher(q->luks) : q->aes;
}

static uint64_t sector_of(const Qcow2 *q, uint64_t guest, uint64_t host)
{
    return (q->luks ? host : guest) / SECTOR;
}

/* One piece within @room bytes of @buffer; whole sectors around what is asked for. */
static int read_piece(Qcow2 *q, uint64_t guest, uint64_t host, const struct iovec *iov, int n,
                      uint64_t skip, uint64_t length, uint8_t *buffer)
{
    uint64_t before = host % SECTOR, whole = align_up(before + length, SECTOR);
    int result = block_file_read(q->data, host - before, buffer, whole);
    if (result == 0)
        result = block_cipher_decrypt(cipher_of(q), sector_of(q, guest - before, host - before),
                                      buffer, buffer, whole);
    if (result == 0)
        block_iov_from(iov, n, skip, buffer + before, length);
    return result;
}

static int write_piece(Qcow2 *q, uint64_t guest, uint64_t host, const struct iovec *iov, int n,
                       uint64_t skip, uint64_t length, uint8_t *buffer)
{
    int result = block_cipher_encrypt_iov(cipher_of(q), sector_of(q, guest, host), iov, n, skip,
                                          buffer, length);
    return result < 0 ? result : block_file_write(q->data, host, buffer, length);
}

int qcow2_crypt_transfer(Qcow2 *q, bool write, uint64_t guest, uint64_t host,
                         const struct iovec *iov, int n, uint64_t skip, uint64_t length)
{
    void *buffer = NULL;
    int result = 0;
    if (!cipher_of(q))
        return -EACCES;
    if (write && (host | length) % SECTOR)
        return -EINVAL; /* writers come with whole sectors */
    if (posix_memalign(&buffer, 4096, PIECE + 2 * SECTOR) != 0)
        return -ENOMEM;
    for (uint64_t done = 0, part; done < length && result == 0; done += part) {
        part = MIN(length - done, PIECE - (host + done) % SECTOR);
        result = (write ? write_piece : read_piece)(q, guest + done, host + done, iov, n,
                                                    skip + done, part, buffer);
    }
    free(buffer);
    return result;
}

/* The bytes around an odd request make it whole sectors; nobody else changes those meanwhile. */
static int write_odd(Qcow2 *q, uint64_t offset, const struct iovec *iov, int n)
{
    uint64_t length = block_iov_length(iov, n), start = align_down(offset, SECTOR);
    uint64_t whole = align_up(offset + length, SECTOR) - start;
    g_autofree uint8_t *buffer = g_try_malloc0(whole);
    if (!buffer)
        return -ENOMEM;
    struct iovec first = {buffer, SECTOR}, last = {buffer + whole - SECTOR, SECTOR};
    int result = qcow2_readv(q->node, start, &first, 1);
    if (result == 0 && whole > SECTOR)
        result = qcow2_readv(q->node, start + whole - SECTOR, &last, 1);
    if (result < 0)
        return result;
    block_iov_to(buffer + (offset - start), iov, n, 0, length);
    struct iovec all = {buffer, whole};
    return qcow2_write_sectors(q->node, start, &all, 1);
}

int qcow2_crypt_writev(Qcow2 *q, uint64_t offset, const struct iovec *iov, int n)
{
    int result;
    if ((offset | block_iov_length(iov, n)) % SECTOR) {
        g_rw_lock_writer_lock(&q->sectors);
        result = write_odd(q, offset, iov, n);
        g_rw_lock_writer_unlock(&q->sectors);
        return result;
    }
    g_rw_lock_reader_lock(&q->sectors);
    result = qcow2_write_sectors(q->node, offset, iov, n);
    g_rw_lock_reader_unlock(&q->sectors);
    return result;
}

/* ---- creating */

bool qcow2_crypt_create_check(const BlockCreate *c, Qcow2CryptCreate *create, GError **err)
{
    const char *format = block_option_string(c->options, NULL, "encrypt.format");
    const char *secret = block_option_string(c->options, NULL, "encrypt.key-secret");
    bool old = false;
    size_t length;
    if (!block_option_bool(c->options, NULL, "encryption", &old, err))
        return false;
    if (format && old)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "'encrypt.format' and its alias 'encryption' can't be used at the same "
                          "time");
    if (!format && !old)
        return !secret ||
               lodge_fail(err, LODGE_ERROR_INVALID, "Parameter 'encrypt.format' is missing");
    if (format && strcmp(format, "luks") && strcmp(format, "aes"))
        return lodge_fail(err, LODGE_ERROR_INVALID, "Parameter 'format' does not accept value '%s'",
                          format);
    bool luks = format && !strcmp(format, "luks");
    create->method = luks ? QCOW2_CRYPT_LUKS : QCOW2_CRYPT_AES;
    if (luks && !block_luks_create_options(c->options, "encrypt.", &create->luks, err))
        return false;
    if (!secret)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "Parameter 'encrypt.key-secret' is required for cipher");
    if (!block_objects_secret(c->objects, secret, &length, err))
        return false;
    create->length = luks ? block_luks_create_size(&create->luks) : 0;
    return !luks || block_luks_create_check(&create->luks, c->objects, err);
}

bool qcow2_crypt_create(BlockFile *file, const BlockCreate *c, const Qcow2CryptCreate *create,
                        uint64_t offset, GError **err)
{
    if (create->method != QCOW2_CRYPT_LUKS)
        return true;
    Window w = {file, offset, create->length};
    BlockLuksIo io = {window_read, window_write, window_flush, &w};
    g_autoptr(BlockLuks) luks = block_luks_create(&io, &create->luks, c->objects, err);
    return luks != NULL;
}
