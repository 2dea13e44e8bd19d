/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "disk/crypto/cipher.h"

#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "disk/crypto/gcrypt.h"
#include "disk/crypto/kdf.h"
#include "disk/crypto/twofish.h"
#include "disk/iov.h"

#define BLOCK_LENGTH_MAX 16u

/* Handles that are kept for the next caller; a few threads work on an image at once. */
#define HANDLES_KEPT 32u

static const struct {
    int id;
    unsigned key, block;
    char family; /* ESSIV may take another key length of the same algorithm */
} algorithms[BLOCK_CIPHER_COUNT] = {
    [BLOCK_CIPHER_AES_128] = {GCRY_CIPHER_AES128, 16, 16, 'a'},
    [BLOCK_CIPHER_AES_192] = {GCRY_CIPHER_AES192, 24, 16, 'a'},
    [BLOCK_CIPHER_AES_256] = {GCRY_CIPHER_AES256, 32, 16, 'a'},
    [BLOCK_CIPHER_DES] = {GCRY_CIPHER_DES, 8, 8, 0},
    [BLOCK_CIPHER_3DES] = {GCRY_CIPHER_3DES, 24, 8, 0},
    [BLOCK_CIPHER_CAST5_128] = {GCRY_CIPHER_CAST5, 16, 8, 0},
    [BLOCK_CIPHER_SERPENT_128] = {GCRY_CIPHER_SERPENT128, 16, 16, 's'},
    [BLOCK_CIPHER_SERPENT_192] = {GCRY_CIPHER_SERPENT192, 24, 16, 's'},
    [BLOCK_CIPHER_SERPENT_256] = {GCRY_CIPHER_SERPENT256, 32, 16, 's'},
    [BLOCK_CIPHER_TWOFISH_128] = {GCRY_CIPHER_TWOFISH128, 16, 16, 't'},
    /* Not libgcrypt's: twofish.h. */
    [BLOCK_CIPHER_TWOFISH_192] = {GCRY_CIPHER_NONE, 24, 16, 't'},
    [BLOCK_CIPHER_TWOFISH_256] = {GCRY_CIPHER_TWOFISH, 32, 16, 't'},
};

static const int modes[BLOCK_CIPHER_MODE_COUNT] = {
    [BLOCK_CIPHER_ECB] = GCRY_CIPHER_MODE_ECB,
    [BLOCK_CIPHER_CBC] = GCRY_CIPHER_MODE_CBC,
    [BLOCK_CIPHER_XTS] = GCRY_CIPHER_MODE_XTS,
    [BLOCK_CIPHER_CTR] = GCRY_CIPHER_MODE_CTR,
};

const char *const block_cipher_alg_names[] = {
    "aes-128",     "aes-192",     "aes-256",     "des",         "3des",        "cast5-128",
    "serpent-128", "serpent-192", "serpent-256", "twofish-128", "twofish-192", "twofish-256"};
const char *const block_cipher_mode_names[] = {"ecb", "cbc", "xts", "ctr"};
const char *const block_ivgen_names[] = {"plain", "plain64", "essiv"};

/* What one call works with; the library's handles are not for two threads. */
typedef struct Handle Handle;
struct Handle {
    gcry_cipher_hd_t data, essiv; /* data NULL: twofish */
    BlockTwofish *twofish;
    Handle *next;
};

struct BlockCipher {
    BlockCipherParams params;
    BlockCipherAlg essiv_alg;
    uint8_t key[BLOCK_CIPHER_KEY_MAX], essiv_key[BLOCK_HASH_LENGTH_MAX];
    unsigned key_length, essiv_key_length, block;
    GMutex lock; /* of free and n_free */
    Handle *free;
    unsigned n_free;
};

int block_crypto_find(const char *const *names, int count, const char *name)
{
    for (int i = 0; i < count; i++) {
        if (!strcmp(names[i], name))
            return i;
    }
    return -1;
}

unsigned block_cipher_key_length(BlockCipherAlg alg, BlockCipherMode mode)
{
    return algorithms[alg].key * (mode == BLOCK_CIPHER_XTS ? 2 : 1);
}

unsigned block_cipher_block_length(BlockCipherAlg alg)
{
    return algorithms[alg].block;
}

/*
 * dm-crypt's ESSIV keys the algorithm of the data with a whole digest, so that its key length is
 * the digest's, whatever the data's is. -1: there is none of that length.
 */
static int essiv_alg(const BlockCipherParams *params)
{
    unsigned digest = block_hash_length(params->ivgen_hash);
    if (algorithms[params->alg].key == digest)
        return (int)params->alg;
    for (int i = 0; i < BLOCK_CIPHER_COUNT; i++) {
        if (algorithms[i].family && algorithms[i].family == algorithms[params->alg].family &&
            algorithms[i].key == digest)
            return i;
    }
    return -1;
}

static bool essiv_supported(const BlockCipherParams *params, GError **err)
{
    if (essiv_alg(params) >= 0)
        return true;
    const char *name = algorithms[params->alg].family == 'a'   ? "AES"
                       : algorithms[params->alg].family == 's' ? "Serpent"
                       : algorithms[params->alg].family == 't' ? "Twofish"
                                                               : NULL;
    if (!name)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "Cipher %s not supported with essiv",
                          block_cipher_alg_names[params->alg]);
    return lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "No %s cipher with key size %u available", name,
                      block_hash_length(params->ivgen_hash));
}

bool block_cipher_supported(const BlockCipherParams *params, GError **err)
{
    block_gcrypt_init();
    bool des = params->alg == BLOCK_CIPHER_DES || params->alg == BLOCK_CIPHER_3DES;
    if (params->mode == BLOCK_CIPHER_XTS && des)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "XTS mode not compatible with DES/3DES");
    if (params->ivgen == BLOCK_IVGEN_ESSIV && !essiv_supported(params, err))
        return false;
    int id = algorithms[params->alg].id;
    if (id != GCRY_CIPHER_NONE && gcry_cipher_test_algo(id))
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "Unsupported cipher algorithm %s",
                          block_cipher_alg_names[params->alg]);
    if (params->mode == BLOCK_CIPHER_XTS && algorithms[params->alg].block != BLOCK_LENGTH_MAX)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "Unsupported cipher mode xts for %s",
                          block_cipher_alg_names[params->alg]);
    return true;
}

/* ---- handles */

static void handle_free(Handle *h)
{
    gcry_cipher_close(h->data); /* wipes; NULL is accepted */
    gcry_cipher_close(h->essiv);
    block_twofish_free(h->twofish);
    g_free(h);
}

static gcry_error_t open_one(gcry_cipher_hd_t *out, int alg, int mode, const uint8_t *key,
                             size_t length)
{
    gcry_error_t error = gcry_cipher_open(out, alg, mode, 0);
    return error ? error : gcry_cipher_setkey(*out, key, length);
}

static Handle *handle_new(BlockCipher *c, gcry_error_t *error)
{
    Handle *h = g_new0(Handle, 1);
    int id = algorithms[c->params.alg].id;
    *error = 0;
    if (id == GCRY_CIPHER_NONE)
        h->twofish = block_twofish_new(c->params.mode, c->key);
    else
        *error = open_one(&h->data, id, modes[c->params.mode], c->key, c->key_length);
    if (!*error && c->params.ivgen == BLOCK_IVGEN_ESSIV)
        *error = open_one(&h->essiv, algorithms[c->essiv_alg].id, GCRY_CIPHER_MODE_ECB,
                          c->essiv_key, c->essiv_key_length);
    if (!*error)
        return h;
    handle_free(h);
    return NULL;
}

static Handle *take(BlockCipher *c)
{
    g_mutex_lock(&c->lock);
    Handle *h = c->free;
    if (h) {
        c->free = h->next;
        c->n_free--;
    }
    g_mutex_unlock(&c->lock);
    gcry_error_t error;
    return h ? h : handle_new(c, &error);
}

static void give(BlockCipher *c, Handle *h)
{
    g_mutex_lock(&c->lock);
    bool keep = c->n_free < HANDLES_KEPT;
    if (keep) {
        h->next = c->free;
        c->free = h;
        c->n_free++;
    }
    g_mutex_unlock(&c->lock);
    if (!keep)
        handle_free(h);
}

BlockCipher *block_cipher_new(const BlockCipherParams *params, const uint8_t *key, size_t length,
                              GError **err)
{
    if (!block_cipher_supported(params, err))
        return NULL;
    unsigned wanted = block_cipher_key_length(params->alg, params->mode);
    if (length != wanted) {
        lodge_fail(err, LODGE_ERROR_INVALID, "Cipher key length %zu should be %u", length, wanted);
        return NULL;
    }
    g_autoptr(BlockCipher) c = g_new0(BlockCipher, 1);
    g_mutex_init(&c->lock);
    c->params = *params;
    c->key_length = wanted;
    c->block = algorithms[params->alg].block;
    memcpy(c->key, key, length);
    if (params->ivgen == BLOCK_IVGEN_ESSIV) {
        c->essiv_alg = (BlockCipherAlg)essiv_alg(params);
        c->essiv_key_length = algorithms[c->essiv_alg].key;
        block_hash_digest(params->ivgen_hash, key, length, c->essiv_key);
    }
    gcry_error_t error;
    Handle *first = handle_new(c, &error);
    if (!first) {
        lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "Could not set up the cipher %s in %s mode: %s",
                   block_cipher_alg_names[params->alg], block_cipher_mode_names[params->mode],
                   gcry_strerror(error));
        return NULL;
    }
    give(c, first);
    return g_steal_pointer(&c);
}

void block_cipher_free(BlockCipher *c)
{
    if (!c)
        return;
    while (c->free) {
        Handle *h = c->free;
        c->free = h->next;
        handle_free(h);
    }
    g_mutex_clear(&c->lock);
    explicit_bzero(c, sizeof(*c));
    g_free(c);
}

/* ---- sectors */

static gcry_error_t make_vector(const BlockCipher *c, Handle *h, uint64_t sector, uint8_t *iv)
{
    memset(iv, 0, BLOCK_LENGTH_MAX);
    le64_put(iv, c->params.ivgen == BLOCK_IVGEN_PLAIN ? sector & UINT32_MAX : sector);
    return h->essiv ? gcry_cipher_encrypt(h->essiv, iv, c->block, NULL, 0) : 0;
}

static gcry_error_t one_sector(const BlockCipher *c, Handle *h, bool encrypt, uint64_t sector,
                               const uint8_t *in, uint8_t *out)
{
    uint8_t iv[BLOCK_LENGTH_MAX];
    gcry_error_t error = make_vector(c, h, sector, iv);
    if (h->twofish && !error) {
        block_twofish_sector(h->twofish, encrypt, iv, in, out);
        return 0;
    }
    if (!error && c->params.mode == BLOCK_CIPHER_CTR)
        error = gcry_cipher_setctr(h->data, iv, c->block);
    else if (!error && c->params.mode != BLOCK_CIPHER_ECB)
        error = gcry_cipher_setiv(h->data, iv, c->block);
    if (error)
        return error;
    const void *from = in == out ? NULL : in; /* the library's way to say "in place" */
    size_t length = from ? BLOCK_CIPHER_SECTOR : 0;
    return encrypt ? gcry_cipher_encrypt(h->data, out, BLOCK_CIPHER_SECTOR, from, length)
                   : gcry_cipher_decrypt(h->data, out, BLOCK_CIPHER_SECTOR, from, length);
}

static int run(BlockCipher *c, bool encrypt, uint64_t sector, const uint8_t *in, uint8_t *out,
               size_t length)
{
    if (length % BLOCK_CIPHER_SECTOR)
        return -EINVAL;
    Handle *h = take(c);
    if (!h)
        return -ENOMEM;
    gcry_error_t error = 0;
    for (size_t at = 0; at < length && !error; at += BLOCK_CIPHER_SECTOR)
        error = one_sector(c, h, encrypt, sector++, in + at, out + at);
    give(c, h);
    return error ? -EIO : 0;
}

int block_cipher_encrypt(BlockCipher *cipher, uint64_t sector, const void *in, void *out,
                         size_t length)
{
    return run(cipher, true, sector, in, out, length);
}

int block_cipher_decrypt(BlockCipher *cipher, uint64_t sector, const void *in, void *out,
                         size_t length)
{
    return run(cipher, false, sector, in, out, length);
}

/*
 * Sectors that lie whole in one entry of @iov are worked on where they are; one that is spread
 * over entries goes through a buffer.
 */
static int run_iov(BlockCipher *c, bool encrypt, uint64_t sector, const struct iovec *iov, int n,
                   uint64_t skip, uint8_t *flat, size_t length)
{
    uint8_t whole[BLOCK_CIPHER_SECTOR];
    int result = 0;
    for (size_t at = 0; at < length && result == 0;) {
        while (n > 0 && skip >= iov->iov_len) {
            skip -= iov->iov_len;
            iov++;
            n--;
        }
        if (n == 0)
            return -EINVAL;
        uint8_t *base = (uint8_t *)iov->iov_base + skip;
        size_t part = MIN(length - at, align_down(iov->iov_len - skip, BLOCK_CIPHER_SECTOR));
        if (part > 0) {
            result = encrypt ? run(c, true, sector, base, flat + at, part)
                             : run(c, false, sector, flat + at, base, part);
        } else {
            part = BLOCK_CIPHER_SECTOR;
            if (block_iov_length(iov, n) - skip < part)
                return -EINVAL;
            if (encrypt) {
                block_iov_to(whole, iov, n, skip, part);
                result = run(c, true, sector, whole, flat + at, part);
            } else {
                result = run(c, false, sector, flat + at, whole, part);
                block_iov_from(iov, n, skip, whole, part);
            }
        }
        at += part;
        skip += part;
        sector += part / BLOCK_CIPHER_SECTOR;
    }
    explicit_bzero(whole, sizeof(whole));
    return result;
}

int block_cipher_encrypt_iov(BlockCipher *cipher, uint64_t sector, const struct iovec *iov, int n,
                             uint64_t skip, void *out, size_t length)
{
    if (length % BLOCK_CIPHER_SECTOR)
        return -EINVAL;
    return run_iov(cipher, true, sector, iov, n, skip, out, length);
}

int block_cipher_decrypt_iov(BlockCipher *cipher, uint64_t sector, const void *in,
                             const struct iovec *iov, int n, uint64_t skip, size_t length)
{
    if (length % BLOCK_CIPHER_SECTOR)
        return -EINVAL;
    return run_iov(cipher, false, sector, iov, n, skip, (uint8_t *)in, length);
}

int block_cipher_cbc_decrypt(BlockCipherAlg alg, const uint8_t *key, const uint8_t *iv,
                             const uint8_t *in, uint8_t *out, size_t length)
{
    gcry_cipher_hd_t h = NULL;
    block_gcrypt_init();
    if (length % algorithms[alg].block)
        return -EINVAL;
    gcry_error_t error =
        open_one(&h, algorithms[alg].id, GCRY_CIPHER_MODE_CBC, key, algorithms[alg].key);
    if (!error)
        error = gcry_cipher_setiv(h, iv, algorithms[alg].block);
    if (!error)
        error = gcry_cipher_decrypt(h, out, length, in, length);
    gcry_cipher_close(h);
    return error ? -EIO : 0;
}
