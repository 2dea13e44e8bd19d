/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Twofish with keys of 24 bytes, which QEMU's images may have and libgcrypt has not: nettle's
 * (which is here with gnutls anyway).
 */
#pragma once

#include "disk/crypto/cipher.h"

typedef struct BlockTwofish BlockTwofish; /* only read once made: any thread */

/* @key: block_cipher_key_length bytes of BLOCK_CIPHER_TWOFISH_192 in @mode. */
BlockTwofish *block_twofish_new(BlockCipherMode mode, const uint8_t *key);
void block_twofish_free(BlockTwofish *twofish); /* wipes; NULL is accepted */
/* One sector, with the vector @iv of 16 bytes, which is changed. @in and @out may be the same. */
void block_twofish_sector(const BlockTwofish *twofish, bool encrypt, uint8_t *iv,
                          const uint8_t *in, uint8_t *out);
