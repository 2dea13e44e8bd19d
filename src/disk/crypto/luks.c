/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* LUKS headers: opened, made, described. */
#include "disk/crypto/luks.h"

#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "disk/crypto/kdf.h"
#include "disk/crypto/luks-header.h"

void block_luks_free(BlockLuks *luks)
{
    if (!luks)
        return;
    block_cipher_free(luks->cipher);
    g_free(luks->secret);
    g_free(luks);
}

uint64_t block_luks_payload(const BlockLuks *luks)
{
    return (uint64_t)luks->header.payload_sector * BLOCK_CIPHER_SECTOR;
}

bool block_luks_locked(const BlockLuks *luks)
{
    return !luks->cipher;
}

BlockCipher *block_luks_cipher(const BlockLuks *luks)
{
    return luks->cipher;
}

/* ---- open */

static bool secret_required(const char *id, const char *prefix, GError **err)
{
    return id || lodge_fail(err, LODGE_ERROR_INVALID,
                            "Parameter '%skey-secret' is required for cipher", prefix);
}

static bool unlock_with(BlockLuks *luks, const BlockLuksIo *io, const char *passphrase,
                        GError **err)
{
    uint8_t key[BLOCK_CIPHER_KEY_MAX];
    bool ok = luks_find_key(luks, io, passphrase, key, err) && luks_unlock(luks, key, err);
    explicit_bzero(key, sizeof(key));
    return ok;
}

BlockLuks *block_luks_open(const BlockLuksIo *io, const BlockLuksOpen *how, GError **err)
{
    g_autoptr(BlockLuks) luks = g_new0(BlockLuks, 1);
    g_autoptr(LuksPassphrase) passphrase = NULL;
    if (!how->locked) {
        if (!secret_required(how->key_secret, how->prefix, err))
            return NULL;
        passphrase = luks_passphrase(how->objects, how->key_secret, err);
        if (!passphrase)
            return NULL;
    }
    luks->secret = g_strdup(how->key_secret);
    if (!luks_header_read(luks, io, how->detached, err) ||
        (passphrase && !unlock_with(luks, io, passphrase, err)))
        return NULL;
    return g_steal_pointer(&luks);
}

/* ---- create */

json_t *luks_own_options(const json_t *options, const char *prefix)
{
    const char *name;
    json_t *value, *own = json_object();
    json_object_foreach((json_t *)options, name, value)
    {
        if (g_str_has_prefix(name, prefix))
            json_object_set(own, name + strlen(prefix), value);
    }
    return own;
}

/* Option @name as a row of @names; absent: *out stays. */
static bool choose(const json_t *own, const char *name, const char *const *names, int count,
                   int *out, GError **err)
{
    const char *text = block_option_string(own, NULL, name);
    if (!text)
        return true;
    int row = block_crypto_find(names, count, text);
    if (row < 0)
        return lodge_fail(err, LODGE_ERROR_INVALID, "Parameter '%s' does not accept value '%s'",
                          name, text);
    *out = row;
    return true;
}

bool block_luks_create_options(const json_t *options, const char *prefix, BlockLuksCreate *create,
                               GError **err)
{
    json_auto_t *own = luks_own_options(options, prefix);
    int alg = BLOCK_CIPHER_AES_256, mode = BLOCK_CIPHER_XTS, ivgen = BLOCK_IVGEN_PLAIN64;
    int ivgen_hash = BLOCK_HASH_SHA256, hash = BLOCK_HASH_SHA256;
    *create = (BlockLuksCreate){.iter_time_ms = LUKS_ITER_TIME_MS, .prefix = prefix};
    if (!choose(own, "cipher-alg", block_cipher_alg_names, BLOCK_CIPHER_COUNT, &alg, err) ||
        !choose(own, "cipher-mode", block_cipher_mode_names, BLOCK_CIPHER_MODE_COUNT, &mode, err) ||
        !choose(own, "ivgen-alg", block_ivgen_names, BLOCK_IVGEN_COUNT, &ivgen, err) ||
        !choose(own, "ivgen-hash-alg", block_hash_names, BLOCK_HASH_COUNT, &ivgen_hash, err) ||
        !choose(own, "hash-alg", block_hash_names, BLOCK_HASH_COUNT, &hash, err) ||
        !block_option_number(own, NULL, "iter-time", &create->iter_time_ms, err))
        return false;
    create->cipher = (BlockCipherParams){(BlockCipherAlg)alg, (BlockCipherMode)mode,
                                         (BlockIvgen)ivgen, (BlockHash)ivgen_hash};
    create->ivgen_hash_given =
        ivgen == BLOCK_IVGEN_ESSIV || block_option_given(own, "ivgen-hash-alg");
    create->hash = (BlockHash)hash;
    create->key_secret = block_option_string(own, NULL, "key-secret");
    return true;
}

uint64_t block_luks_create_size(const BlockLuksCreate *create)
{
    uint32_t length = block_cipher_key_length(create->cipher.alg, create->cipher.mode);
    return LUKS_ALIGNMENT + BLOCK_LUKS_SLOTS * luks_material_sectors(length) * BLOCK_CIPHER_SECTOR;
}

static bool supported(const BlockLuksCreate *create, GError **err)
{
    if (!luks_cipher_name(create->cipher.alg))
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "Algorithm '%s' not supported",
                          block_cipher_alg_names[create->cipher.alg]);
    return block_cipher_supported(&create->cipher, err);
}

bool block_luks_create_check(const BlockLuksCreate *create, const BlockObjects *objects,
                             GError **err)
{
    const char *prefix = create->prefix ? create->prefix : "";
    if (!secret_required(create->key_secret, prefix, err))
        return false;
    g_autoptr(LuksPassphrase) passphrase = luks_passphrase(objects, create->key_secret, err);
    return passphrase && supported(create, err);
}

static void name_cipher(LuksHeader *h, const BlockLuksCreate *create)
{
    g_strlcpy(h->cipher, luks_cipher_name(create->cipher.alg), LUKS_NAME);
    g_snprintf(h->mode, LUKS_NAME, "%s-%s%s%s", block_cipher_mode_names[create->cipher.mode],
               block_ivgen_names[create->cipher.ivgen], create->ivgen_hash_given ? ":" : "",
               create->ivgen_hash_given ? block_hash_names[create->cipher.ivgen_hash] : "");
    g_strlcpy(h->hash, block_hash_names[create->hash], LUKS_NAME);
}

static bool lay_out(BlockLuks *luks, const BlockLuksCreate *create, bool detached, GError **err)
{
    LuksHeader *h = &luks->header;
    luks->params = create->cipher;
    luks->hash = create->hash;
    if (!supported(create, err))
        return false;
    name_cipher(h, create);
    h->key_length = block_cipher_key_length(create->cipher.alg, create->cipher.mode);
    g_autofree char *uuid = g_uuid_string_random();
    g_strlcpy(h->uuid, uuid, LUKS_UUID);
    uint64_t sector = LUKS_ALIGNMENT / BLOCK_CIPHER_SECTOR;
    for (unsigned i = 0; i < BLOCK_LUKS_SLOTS; i++) {
        h->slots[i] = (LuksSlot){
            .state = LUKS_SLOT_INACTIVE, .sector = (uint32_t)sector, .stripes = LUKS_STRIPES};
        sector += luks_material_sectors(h->key_length);
    }
    h->payload_sector = detached ? 0 : (uint32_t)sector;
    return true;
}

/* The digest by which a passphrase that opened a slot is known to be right. */
static bool set_digest(BlockLuks *luks, const uint8_t *key, uint64_t iter_time_ms, GError **err)
{
    LuksHeader *h = &luks->header;
    if (!luks_iterations(luks, LUKS_DIGEST, iter_time_ms, BLOCK_LUKS_SLOTS, &h->iterations, err))
        return false;
    int result = block_random(h->salt, LUKS_SALT);
    if (result == 0)
        result = block_pbkdf2(luks->hash, key, h->key_length, h->salt, LUKS_SALT, h->iterations,
                              h->digest, LUKS_DIGEST);
    return result == 0 || lodge_fail_errno(err, -result, "Cannot make the master key's digest");
}

static bool fill(BlockLuks *luks, const BlockLuksIo *io, const BlockLuksCreate *create,
                 const char *passphrase, GError **err)
{
    uint8_t key[BLOCK_CIPHER_KEY_MAX];
    int result = block_random(key, sizeof(key));
    if (result < 0)
        return lodge_fail_errno(err, -result, "Cannot get random bytes");
    bool ok = set_digest(luks, key, create->iter_time_ms, err) &&
              luks_slot_store(luks, io, 0, passphrase, key, create->iter_time_ms, err) &&
              luks_unlock(luks, key, err);
    explicit_bzero(key, sizeof(key));
    return ok;
}

static BlockLuks *make(const BlockLuksIo *io, const BlockLuksCreate *create,
                       const BlockObjects *objects, bool detached, GError **err)
{
    g_autoptr(BlockLuks) luks = g_new0(BlockLuks, 1);
    if (!secret_required(create->key_secret, create->prefix ? create->prefix : "", err))
        return NULL;
    g_autoptr(LuksPassphrase) passphrase = luks_passphrase(objects, create->key_secret, err);
    luks->secret = g_strdup(create->key_secret);
    if (!passphrase || !lay_out(luks, create, detached, err) ||
        !fill(luks, io, create, passphrase, err))
        return NULL;
    return g_steal_pointer(&luks);
}

BlockLuks *block_luks_create(const BlockLuksIo *io, const BlockLuksCreate *create,
                             const BlockObjects *objects, GError **err)
{
    return make(io, create, objects, false, err);
}

BlockLuks *block_luks_create_detached(const BlockLuksIo *io, const BlockLuksCreate *create,
                                      const BlockObjects *objects, GError **err)
{
    return make(io, create, objects, true, err);
}

/* ---- info */

static void put_text(json_t *into, const char *name, const char *value)
{
    json_object_set_new(into, name, json_string(value));
}

static void put_number(json_t *into, const char *name, uint64_t value)
{
    json_object_set_new(into, name, json_integer((json_int_t)value));
}

static json_t *slot_info(const LuksSlot *slot)
{
    json_t *info = json_object();
    bool active = slot->state == LUKS_SLOT_ACTIVE;
    json_object_set_new(info, "active", json_boolean(active));
    if (active)
        put_number(info, "iters", slot->iterations);
    put_number(info, "key-offset", (uint64_t)slot->sector * BLOCK_CIPHER_SECTOR);
    if (active)
        put_number(info, "stripes", slot->stripes);
    return info;
}

/* In the order in which qemu-img prints them. */
json_t *block_luks_info(const BlockLuks *luks)
{
    const LuksHeader *h = &luks->header;
    json_t *info = json_object(), *slots = json_array();
    g_autofree char *uuid = g_utf8_make_valid(h->uuid, -1);
    put_text(info, "ivgen-alg", block_ivgen_names[luks->params.ivgen]);
    put_text(info, "hash-alg", block_hash_names[luks->hash]);
    put_text(info, "cipher-alg", block_cipher_alg_names[luks->params.alg]);
    put_text(info, "uuid", uuid);
    if (luks->params.ivgen == BLOCK_IVGEN_ESSIV)
        put_text(info, "ivgen-hash-alg", block_hash_names[luks->params.ivgen_hash]);
    put_text(info, "cipher-mode", block_cipher_mode_names[luks->params.mode]);
    for (unsigned i = 0; i < BLOCK_LUKS_SLOTS; i++)
        json_array_append_new(slots, slot_info(&h->slots[i]));
    json_object_set_new(info, "slots", slots);
    put_number(info, "payload-offset", block_luks_payload(luks));
    put_number(info, "master-key-iters", h->iterations);
    return info;
}
