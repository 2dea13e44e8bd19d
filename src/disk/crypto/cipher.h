/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Encryption of disks by sectors of 512 bytes: the algorithms, modes and IV generators that QEMU
 * and dm-crypt name. The work is libgcrypt's, which uses the CPU's AES instructions.
 */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#define BLOCK_CIPHER_SECTOR 512u
#define BLOCK_CIPHER_KEY_MAX 64u /* of XTS: two keys */

typedef enum BlockCipherAlg {
    BLOCK_CIPHER_AES_128,
    BLOCK_CIPHER_AES_192,
    BLOCK_CIPHER_AES_256,
    BLOCK_CIPHER_DES,
    BLOCK_CIPHER_3DES,
    BLOCK_CIPHER_CAST5_128,
    BLOCK_CIPHER_SERPENT_128,
    BLOCK_CIPHER_SERPENT_192,
    BLOCK_CIPHER_SERPENT_256,
    BLOCK_CIPHER_TWOFISH_128,
    BLOCK_CIPHER_TWOFISH_192,
    BLOCK_CIPHER_TWOFISH_256,
    BLOCK_CIPHER_COUNT,
} BlockCipherAlg;

typedef enum BlockCipherMode {
    BLOCK_CIPHER_ECB,
    BLOCK_CIPHER_CBC,
    BLOCK_CIPHER_XTS,
    BLOCK_CIPHER_CTR,
    BLOCK_CIPHER_MODE_COUNT,
} BlockCipherMode;

/* How the initialization vector of a sector follows from its number. */
typedef enum BlockIvgen {
    BLOCK_IVGEN_PLAIN,   /* its low 32 bits */
    BLOCK_IVGEN_PLAIN64, /* all of it */
    BLOCK_IVGEN_ESSIV,   /* all of it, encrypted with a hash of the key */
    BLOCK_IVGEN_COUNT,
} BlockIvgen;

typedef enum BlockHash {
    BLOCK_HASH_MD5,
    BLOCK_HASH_SHA1,
    BLOCK_HASH_SHA224,
    BLOCK_HASH_SHA256,
    BLOCK_HASH_SHA384,
    BLOCK_HASH_SHA512,
    BLOCK_HASH_RIPEMD160,
    BLOCK_HASH_COUNT,
} BlockHash;

/* Names as QAPI has them ("aes-256", "xts", "plain64", "sha256"); each table has its COUNT rows. */
extern const char *const block_cipher_alg_names[];
extern const char *const block_cipher_mode_names[];
extern const char *const block_ivgen_names[];
extern const char *const block_hash_names[];
/* The row of @name in a table of @count rows; -1: none. */
int block_crypto_find(const char *const *names, int count, const char *name);

unsigned block_cipher_key_length(BlockCipherAlg alg, BlockCipherMode mode); /* XTS: of both keys */
unsigned block_cipher_block_length(BlockCipherAlg alg);

/* A key at work. Any thread may use it, many at once: each call takes a handle from a pool. */
typedef struct BlockCipher BlockCipher;

typedef struct BlockCipherParams {
    BlockCipherAlg alg;
    BlockCipherMode mode;
    BlockIvgen ivgen;
    BlockHash ivgen_hash; /* of essiv */
} BlockCipherParams;

/* NULL with @err when there is no such combination. The key is copied, and wiped when freed. */
BlockCipher *block_cipher_new(const BlockCipherParams *params, const uint8_t *key, size_t length,
                              GError **err);
void block_cipher_free(BlockCipher *cipher); /* NULL is accepted */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(BlockCipher, block_cipher_free)
/* As block_cipher_new would answer for a key of the right length. */
bool block_cipher_supported(const BlockCipherParams *params, GError **err);

/*
 * Whole sectors, the first being number @sector; @in and @out may be the same, else must not
 * overlap. 0 or -errno.
 */
int block_cipher_encrypt(BlockCipher *cipher, uint64_t sector, const void *in, void *out,
                         size_t length);
int block_cipher_decrypt(BlockCipher *cipher, uint64_t sector, const void *in, void *out,
                         size_t length);

/* The same between a flat buffer of ciphertext and the bytes [skip, skip + length) of @iov. */
int block_cipher_encrypt_iov(BlockCipher *cipher, uint64_t sector, const struct iovec *iov, int n,
                             uint64_t skip, void *out, size_t length);
int block_cipher_decrypt_iov(BlockCipher *cipher, uint64_t sector, const void *in,
                             const struct iovec *iov, int n, uint64_t skip, size_t length);

/*
 * One message of whole blocks in CBC mode with the vector @iv of one block (a secret's AES-256).
 * 0 or -errno.
 */
int block_cipher_cbc_decrypt(BlockCipherAlg alg, const uint8_t *key, const uint8_t *iv,
                             const uint8_t *in, uint8_t *out, size_t length);
