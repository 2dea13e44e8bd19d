/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "disk/crypto/twofish.h"

#include <string.h>

#include <nettle/cbc.h>
#include <nettle/ctr.h>
#include <nettle/twofish.h>
#include <nettle/xts.h>

#define KEY_LENGTH 24u

struct BlockTwofish {
    BlockCipherMode mode;
    struct twofish_ctx data, tweak; /* tweak: of XTS */
};

/* nettle's general modes take functions on any context. */
static void encrypt_blocks(const void *ctx, size_t length, uint8_t *out, const uint8_t *in)
{
    twofish_encrypt(ctx, length, out, in);
}

static void decrypt_blocks(const void *ctx, size_t length, uint8_t *out, const uint8_t *in)
{
    twofish_decrypt(ctx, length, out, in);
}

BlockTwofish *block_twofish_new(BlockCipherMode mode, const uint8_t *key)
{
    BlockTwofish *t = g_new0(BlockTwofish, 1);
    t->mode = mode;
    twofish_set_key(&t->data, KEY_LENGTH, key);
    if (mode == BLOCK_CIPHER_XTS)
        twofish_set_key(&t->tweak, KEY_LENGTH, key + KEY_LENGTH);
    return t;
}

void block_twofish_free(BlockTwofish *t)
{
    if (t)
        explicit_bzero(t, sizeof(*t));
    g_free(t);
}

static void cbc(const BlockTwofish *t, bool encrypt, uint8_t *iv, const uint8_t *in, uint8_t *out)
{
    if (encrypt)
        cbc_encrypt(&t->data, encrypt_blocks, TWOFISH_BLOCK_SIZE, iv, BLOCK_CIPHER_SECTOR, out, in);
    else
        cbc_decrypt(&t->data, decrypt_blocks, TWOFISH_BLOCK_SIZE, iv, BLOCK_CIPHER_SECTOR, out, in);
}

static void xts(const BlockTwofish *t, bool encrypt, uint8_t *iv, const uint8_t *in, uint8_t *out)
{
    if (encrypt)
        xts_encrypt_message(&t->data, &t->tweak, encrypt_blocks, iv,
                            BLOCK_CIPHER_SECTOR, out, in);
    else
        xts_decrypt_message(&t->data, &t->tweak, decrypt_blocks, encrypt_blocks, iv,
                            BLOCK_CIPHER_SECTOR, out, in);
}

void block_twofish_sector(const BlockTwofish *t, bool encrypt, uint8_t *iv, const uint8_t *in,
                          uint8_t *out)
{
    switch (t->mode) {
    case BLOCK_CIPHER_ECB:
        (encrypt ? encrypt_blocks : decrypt_blocks)(&t->data, BLOCK_CIPHER_SECTOR, out, in);
        break;
    case BLOCK_CIPHER_CBC:
        cbc(t, encrypt, iv, in, out);
        break;
    case BLOCK_CIPHER_CTR:
        ctr_crypt(&t->data, encrypt_blocks, TWOFISH_BLOCK_SIZE, iv, BLOCK_CIPHER_SECTOR, out, in);
        break;
    default:
        xts(t, encrypt, iv, in, out);
        break;
    }
}
