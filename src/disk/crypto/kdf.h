/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Digests, keys from passphrases, random bytes. Any thread. */
#pragma once

#include "disk/crypto/cipher.h"

#define BLOCK_HASH_LENGTH_MAX 64u

unsigned block_hash_length(BlockHash hash);
/* The digest of @length bytes (block_hash_length bytes at @out). 0 or -errno. */
int block_hash_digest(BlockHash hash, const void *data, size_t length, uint8_t *out);

/* PBKDF2 (RFC 8018, section 5.2) with HMAC of @hash. 0 or -errno. */
int block_pbkdf2(BlockHash hash, const void *secret, size_t secret_length, const uint8_t *salt,
                 size_t salt_length, uint64_t iterations, uint8_t *out, size_t out_length);
/* How many iterations for @out_length bytes this CPU does in @milliseconds; 0: it cannot. */
uint64_t block_pbkdf2_iterations(BlockHash hash, size_t out_length, uint64_t milliseconds);

/* From the kernel's generator. 0 or -errno. */
int block_random(void *out, size_t length);
