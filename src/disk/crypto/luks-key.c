/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Key slots: the master key, split and encrypted under a passphrase. Specification, section 4. */
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "disk/crypto/kdf.h"
#include "disk/crypto/luks-header.h"

#define SECTOR BLOCK_CIPHER_SECTOR

void luks_wipe_free(void *secret, size_t length)
{
    if (secret)
        explicit_bzero(secret, length);
    g_free(secret);
}

/* QEMU takes a passphrase up to its first NUL, and so do we. */
LuksPassphrase *luks_passphrase(const BlockObjects *objects, const char *id, GError **err)
{
    size_t length;
    const uint8_t *bytes = block_objects_secret(objects, id, &length, err);
    if (!bytes)
        return NULL;
    if (!g_utf8_validate((const char *)bytes, (gssize)strnlen((const char *)bytes, length), NULL)) {
        lodge_fail(err, LODGE_ERROR_INVALID, "Data from secret %s is not valid UTF-8", id);
        return NULL;
    }
    if (length > LUKS_PASSPHRASE_MAX) {
        lodge_fail(err, LODGE_ERROR_LIMIT, "Data from secret %s is longer than %u bytes", id,
                   LUKS_PASSPHRASE_MAX);
        return NULL;
    }
    return g_strndup((const char *)bytes, length);
}

/* ---- the anti-forensic splitter, specification section 2.4 */

/* Each digest-sized piece of @block becomes the digest of its number and itself. */
static int diffuse(BlockHash hash, uint8_t *block, uint32_t length)
{
    uint8_t in[4 + BLOCK_HASH_LENGTH_MAX], out[BLOCK_HASH_LENGTH_MAX];
    uint32_t step = block_hash_length(hash), number = 0;
    for (uint32_t at = 0; at < length; at += step) {
        uint32_t part = MIN(step, length - at);
        be32_put(in, number++);
        memcpy(in + 4, block + at, part);
        int result = block_hash_digest(hash, in, 4 + part, out);
        if (result < 0)
            return result;
        memcpy(block + at, out, part);
    }
    return 0;
}

static void mix(uint8_t *block, const uint8_t *with, uint32_t length)
{
    for (uint32_t i = 0; i < length; i++)
        block[i] ^= with[i];
}

/* All stripes but the last, mixed and diffused in turn, into @block. */
static int stripes_fold(BlockHash hash, const uint8_t *material, uint32_t length, uint8_t *block)
{
    int result = 0;
    memset(block, 0, length);
    for (uint32_t i = 0; i < LUKS_STRIPES - 1 && result == 0; i++) {
        mix(block, material + (size_t)i * length, length);
        result = diffuse(hash, block, length);
    }
    return result;
}

static int split(BlockHash hash, const uint8_t *key, uint32_t length, uint8_t *material)
{
    uint8_t *last = material + (size_t)(LUKS_STRIPES - 1) * length;
    int result = block_random(material, (size_t)(LUKS_STRIPES - 1) * length);
    if (result == 0)
        result = stripes_fold(hash, material, length, last);
    mix(last, key, length);
    return result;
}

static int merge(BlockHash hash, const uint8_t *material, uint32_t length, uint8_t *key)
{
    int result = stripes_fold(hash, material, length, key);
    mix(key, material + (size_t)(LUKS_STRIPES - 1) * length, length);
    return result;
}

/* ---- slots */

/* The cipher of a slot's material, its key from the passphrase. */
static BlockCipher *slot_cipher(const BlockLuks *luks, const LuksSlot *slot, const char *passphrase,
                                GError **err)
{
    uint8_t key[BLOCK_CIPHER_KEY_MAX];
    BlockCipher *cipher = NULL;
    int result = block_pbkdf2(luks->hash, passphrase, strlen(passphrase), slot->salt, LUKS_SALT,
                              slot->iterations, key, luks->header.key_length);
    if (result < 0)
        lodge_fail_errno(err, -result, "Cannot derive a key with PBKDF2 and %s",
                         block_hash_names[luks->hash]);
    else
        cipher = block_cipher_new(&luks->params, key, luks->header.key_length, err);
    explicit_bzero(key, sizeof(key));
    return cipher;
}

/* The material in whole sectors; what is behind its end stays as it is on the disk. */
static size_t material_length(const BlockLuks *luks)
{
    return align_up((uint64_t)luks->header.key_length * LUKS_STRIPES, SECTOR);
}

/* Is it the master key? Its digest says so. */
static int is_master(const BlockLuks *luks, const uint8_t *key)
{
    const LuksHeader *h = &luks->header;
    uint8_t digest[LUKS_DIGEST];
    int result = block_pbkdf2(luks->hash, key, h->key_length, h->salt, LUKS_SALT, h->iterations,
                              digest, sizeof(digest));
    return result < 0 ? result : memcmp(digest, h->digest, sizeof(digest)) == 0;
}

int luks_slot_try(const BlockLuks *luks, const BlockLuksIo *io, unsigned slot,
                  const char *passphrase, uint8_t *key, GError **err)
{
    const LuksSlot *s = &luks->header.slots[slot];
    if (s->state != LUKS_SLOT_ACTIVE)
        return 0;
    size_t length = material_length(luks);
    g_autoptr(BlockCipher) cipher = slot_cipher(luks, s, passphrase, err);
    if (!cipher)
        return -1;
    uint8_t *material = g_malloc(length);
    int result = io->read(io->opaque, (uint64_t)s->sector * SECTOR, material, length);
    if (result == 0)
        result = block_cipher_decrypt(cipher, 0, material, material, length);
    if (result == 0)
        result = merge(luks->hash, material, luks->header.key_length, key);
    if (result == 0)
        result = is_master(luks, key);
    luks_wipe_free(material, length);
    if (result < 0)
        lodge_fail_errno(err, -result, "Could not read the key material of slot %u", slot);
    return result < 0 ? -1 : result;
}

bool luks_find_key(const BlockLuks *luks, const BlockLuksIo *io, const char *passphrase,
                   uint8_t *key, GError **err)
{
    for (unsigned i = 0; i < BLOCK_LUKS_SLOTS; i++) {
        int result = luks_slot_try(luks, io, i, passphrase, key, err);
        if (result != 0)
            return result > 0;
    }
    return lodge_fail(err, LODGE_ERROR_DENIED, "Invalid password, cannot unlock any keyslot");
}

bool luks_iterations(const BlockLuks *luks, size_t length, uint64_t iter_time_ms, unsigned divide,
                     uint32_t *out, GError **err)
{
    uint64_t count = block_pbkdf2_iterations(luks->hash, length, iter_time_ms) / divide;
    if (count > LUKS_ITERATIONS_MAX)
        return lodge_fail(err, LODGE_ERROR_LIMIT,
                          "PBKDF iterations %" G_GUINT64_FORMAT " larger than %u", count,
                          LUKS_ITERATIONS_MAX);
    *out = (uint32_t)MAX(count, LUKS_ITERATIONS_MIN);
    return true;
}

static int write_material(const BlockLuksIo *io, const LuksSlot *slot, const uint8_t *material,
                          size_t length)
{
    int result = io->write(io->opaque, (uint64_t)slot->sector * SECTOR, material, length);
    return result == 0 && io->flush ? io->flush(io->opaque) : result;
}

/* The material is on the disk before the header says that it is there. */
bool luks_slot_store(BlockLuks *luks, const BlockLuksIo *io, unsigned slot, const char *passphrase,
                     const uint8_t *key, uint64_t iter_time_ms, GError **err)
{
    LuksSlot *s = &luks->header.slots[slot], next = *s;
    size_t length = material_length(luks);
    if (!luks_iterations(luks, luks->header.key_length, iter_time_ms, 1, &next.iterations, err))
        return false;
    int result = block_random(next.salt, sizeof(next.salt));
    if (result < 0)
        return lodge_fail_errno(err, -result, "Cannot get random bytes");
    g_autoptr(BlockCipher) cipher = slot_cipher(luks, &next, passphrase, err);
    if (!cipher)
        return false;
    uint8_t *material = g_malloc0(length);
    result = split(luks->hash, key, luks->header.key_length, material);
    if (result == 0)
        result = block_cipher_encrypt(cipher, 0, material, material, length);
    if (result == 0)
        result = write_material(io, &next, material, length);
    luks_wipe_free(material, length);
    if (result < 0)
        return lodge_fail_errno(err, -result, "Could not write the key material of slot %u", slot);
    next.state = LUKS_SLOT_ACTIVE;
    *s = next;
    return luks_header_write(luks, io, err);
}

/*
 * The header first, then the material, which is overwritten even if the header could not be
 * written. Once: more passes would reach the disk only if each were flushed, and none of today's
 * disks keeps what an earlier pass left.
 */
bool luks_slot_erase(BlockLuks *luks, const BlockLuksIo *io, unsigned slot, GError **err)
{
    LuksSlot *s = &luks->header.slots[slot];
    size_t length = material_length(luks);
    g_autofree uint8_t *noise = g_malloc0(length);
    memset(s->salt, 0, sizeof(s->salt));
    s->iterations = 0;
    s->state = LUKS_SLOT_INACTIVE;
    bool written = luks_header_write(luks, io, err);
    int result = block_random(noise, length);
    if (result < 0)
        memset(noise, 0, length);
    result = write_material(io, s, noise, length);
    if (result < 0 && written)
        return lodge_fail_errno(err, -result, "Could not erase the key material of slot %u", slot);
    return written;
}

bool luks_unlock(BlockLuks *luks, const uint8_t *key, GError **err)
{
    luks->cipher = block_cipher_new(&luks->params, key, luks->header.key_length, err);
    return luks->cipher;
}
