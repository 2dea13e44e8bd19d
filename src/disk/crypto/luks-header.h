/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Inside LUKS: the header as it is on the disk, and the key slots. Specification, section 2. */
#pragma once

#include "disk/crypto/luks.h"

#define LUKS_HEADER_BYTES   592u
#define LUKS_VERSION        1u
#define LUKS_NAME           32u /* cipher, mode and hash */
#define LUKS_DIGEST         20u
#define LUKS_SALT           32u
#define LUKS_UUID           40u
#define LUKS_STRIPES        4000u
#define LUKS_ALIGNMENT      4096u /* of key material, also the room for the header */
#define LUKS_SLOT_ACTIVE    0x00ac71f3u
#define LUKS_SLOT_INACTIVE  0x0000deadu
#define LUKS_ITERATIONS_MIN 1000u
/* An image chooses how long a passphrase takes to try: about a minute a slot. */
#define LUKS_ITERATIONS_MAX (1u << 28)
#define LUKS_ITER_TIME_MS   2000u
#define LUKS_PASSPHRASE_MAX (8u << 20)

typedef struct LuksSlot {
    uint32_t state, iterations, sector, stripes; /* sector: of the key material */
    uint8_t salt[LUKS_SALT];
} LuksSlot;

typedef struct LuksHeader {
    char cipher[LUKS_NAME + 1], mode[LUKS_NAME + 1], hash[LUKS_NAME + 1];
    uint32_t payload_sector, key_length, iterations;
    uint8_t digest[LUKS_DIGEST], salt[LUKS_SALT];
    char uuid[LUKS_UUID + 1];
    LuksSlot slots[BLOCK_LUKS_SLOTS];
} LuksHeader;

struct BlockLuks {
    LuksHeader header;
    BlockCipherParams params;
    BlockHash hash;
    BlockCipher *cipher; /* NULL: locked */
    char *secret;        /* the id of the one that opened it; NULL: none */
};

/* Reads and checks all of it. @detached: the payload is in another file. */
bool luks_header_read(BlockLuks *luks, const BlockLuksIo *io, bool detached, GError **err);
bool luks_header_write(const BlockLuks *luks, const BlockLuksIo *io, GError **err);
/* The header's name of an algorithm ("aes"); NULL: LUKS has none. */
const char *luks_cipher_name(BlockCipherAlg alg);
/* Sectors that the material of a key of @length bytes takes, up to the next. */
uint64_t luks_material_sectors(uint32_t length);
bool luks_slot_active(const BlockLuks *luks, unsigned slot);

/* A passphrase, wiped when freed. */
typedef char LuksPassphrase;
LuksPassphrase *luks_passphrase(const BlockObjects *objects, const char *id, GError **err);
void luks_wipe_free(void *secret, size_t length); /* NULL is accepted */
static inline void luks_passphrase_free(LuksPassphrase *passphrase)
{
    luks_wipe_free(passphrase, passphrase ? strlen(passphrase) : 0);
}
G_DEFINE_AUTOPTR_CLEANUP_FUNC(LuksPassphrase, luks_passphrase_free)

/* Does @passphrase open @slot? 1: yes, @key is the master key; 0: no; -1 with @err. */
int luks_slot_try(const BlockLuks *luks, const BlockLuksIo *io, unsigned slot,
                  const char *passphrase, uint8_t *key, GError **err);
/* The first slot that it opens. */
bool luks_find_key(const BlockLuks *luks, const BlockLuksIo *io, const char *passphrase,
                   uint8_t *key, GError **err);
/* Puts @key under @passphrase into @slot, and the header with it. */
bool luks_slot_store(BlockLuks *luks, const BlockLuksIo *io, unsigned slot, const char *passphrase,
                     const uint8_t *key, uint64_t iter_time_ms, GError **err);
bool luks_slot_erase(BlockLuks *luks, const BlockLuksIo *io, unsigned slot, GError **err);
/* Iterations that take this long, within LUKS's and our limits; @divide: a part of them. */
bool luks_iterations(const BlockLuks *luks, size_t length, uint64_t iter_time_ms, unsigned divide,
                     uint32_t *out, GError **err);
/* The options that start with @prefix, without it. A new reference. */
json_t *luks_own_options(const json_t *options, const char *prefix);
/* Sets up luks->cipher. */
bool luks_unlock(BlockLuks *luks, const uint8_t *key, GError **err);
