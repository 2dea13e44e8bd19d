/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The LUKS header between disk and memory; what does not hold together is refused by name. */
#include "disk/crypto/luks-header.h"

#include <string.h>

#include "base/bytes.h"
#include "base/error.h"

#define SECTOR      BLOCK_CIPHER_SECTOR
#define SLOTS_AT    208u
#define SLOT_BYTES  48u
#define HEAD_SECTORS (LUKS_ALIGNMENT / SECTOR)

static const uint8_t magic[6] = {'L', 'U', 'K', 'S', 0xba, 0xbe};

/* The algorithms that LUKS has names for; the key's length makes the rest of ours. */
static const struct {
    const char *name;
    BlockCipherAlg first;
    int count;
} families[] = {
    {"aes", BLOCK_CIPHER_AES_128, 3},
    {"cast5", BLOCK_CIPHER_CAST5_128, 1},
    {"serpent", BLOCK_CIPHER_SERPENT_128, 3},
    {"twofish", BLOCK_CIPHER_TWOFISH_128, 3},
};

bool block_luks_probe(const uint8_t *head, size_t length)
{
    return length >= 8 && memcmp(head, magic, sizeof(magic)) == 0 &&
           be16_get(head + 6) == LUKS_VERSION;
}

const char *luks_cipher_name(BlockCipherAlg alg)
{
    for (size_t i = 0; i < G_N_ELEMENTS(families); i++) {
        if (alg >= families[i].first && (int)alg < (int)families[i].first + families[i].count)
            return families[i].name;
    }
    return NULL;
}

/* As cryptsetup does it, which is not what the specification's pseudo code says. */
uint64_t luks_material_sectors(uint32_t length)
{
    return align_up(((uint64_t)length * LUKS_STRIPES + SECTOR - 1) / SECTOR, HEAD_SECTORS);
}

bool luks_slot_active(const BlockLuks *luks, unsigned slot)
{
    return luks->header.slots[slot].state == LUKS_SLOT_ACTIVE;
}

/* ---- bytes */

static bool get_name(char *out, const uint8_t *bytes, const char *what, GError **err)
{
    if (!memchr(bytes, '\0', LUKS_NAME))
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "LUKS header %s is not NUL terminated", what);
    memcpy(out, bytes, LUKS_NAME);
    return g_utf8_validate(out, -1, NULL) ||
           lodge_fail(err, LODGE_ERROR_CORRUPT, "LUKS header %s is not UTF-8", what);
}

static bool decode(LuksHeader *h, const uint8_t *bytes, GError **err)
{
    if (!get_name(h->cipher, bytes + 8, "cipher name", err) ||
        !get_name(h->mode, bytes + 40, "cipher mode", err) ||
        !get_name(h->hash, bytes + 72, "hash spec", err))
        return false;
    h->payload_sector = be32_get(bytes + 104);
    h->key_length = be32_get(bytes + 108);
    memcpy(h->digest, bytes + 112, LUKS_DIGEST);
    memcpy(h->salt, bytes + 132, LUKS_SALT);
    h->iterations = be32_get(bytes + 164);
    memcpy(h->uuid, bytes + 168, LUKS_UUID);
    for (unsigned i = 0; i < BLOCK_LUKS_SLOTS; i++) {
        const uint8_t *at = bytes + SLOTS_AT + i * SLOT_BYTES;
        LuksSlot *slot = &h->slots[i];
        slot->state = be32_get(at);
        slot->iterations = be32_get(at + 4);
        memcpy(slot->salt, at + 8, LUKS_SALT);
        slot->sector = be32_get(at + 40);
        slot->stripes = be32_get(at + 44);
    }
    return true;
}

static void encode(const LuksHeader *h, uint8_t *bytes)
{
    memcpy(bytes, magic, sizeof(magic));
    be16_put(bytes + 6, LUKS_VERSION);
    memcpy(bytes + 8, h->cipher, LUKS_NAME);
    memcpy(bytes + 40, h->mode, LUKS_NAME);
    memcpy(bytes + 72, h->hash, LUKS_NAME);
    be32_put(bytes + 104, h->payload_sector);
    be32_put(bytes + 108, h->key_length);
    memcpy(bytes + 112, h->digest, LUKS_DIGEST);
    memcpy(bytes + 132, h->salt, LUKS_SALT);
    be32_put(bytes + 164, h->iterations);
    memcpy(bytes + 168, h->uuid, LUKS_UUID);
    for (unsigned i = 0; i < BLOCK_LUKS_SLOTS; i++) {
        uint8_t *at = bytes + SLOTS_AT + i * SLOT_BYTES;
        const LuksSlot *slot = &h->slots[i];
        be32_put(at, slot->state);
        be32_put(at + 4, slot->iterations);
        memcpy(at + 8, slot->salt, LUKS_SALT);
        be32_put(at + 40, slot->sector);
        be32_put(at + 44, slot->stripes);
    }
}

/* ---- checks */

static bool check_iterations(uint32_t count, const char *whose, GError **err)
{
    if (count == 0)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "%s iteration count is zero", whose);
    return count <= LUKS_ITERATIONS_MAX ||
           lodge_fail(err, LODGE_ERROR_LIMIT, "%s iteration count is %u; at most %u are done", whose,
                      count, LUKS_ITERATIONS_MAX);
}

static bool check_slot(const LuksHeader *h, unsigned i, bool detached, GError **err)
{
    const LuksSlot *slot = &h->slots[i];
    g_autofree char *whose = g_strdup_printf("Keyslot %u", i);
    uint64_t sectors = luks_material_sectors(h->key_length);
    if (slot->stripes != LUKS_STRIPES)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "Keyslot %u is corrupted (stripes %u != %u)", i,
                          slot->stripes, LUKS_STRIPES);
    if (slot->state != LUKS_SLOT_ACTIVE && slot->state != LUKS_SLOT_INACTIVE)
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "Keyslot %u state (active/disable) is corrupted", i);
    if (slot->state == LUKS_SLOT_ACTIVE && !check_iterations(slot->iterations, whose, err))
        return false;
    if (slot->sector < HEAD_SECTORS)
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "Keyslot %u is overlapping with the LUKS header", i);
    if (!detached && slot->sector + sectors > h->payload_sector)
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "Keyslot %u is overlapping with the encrypted payload", i);
    for (unsigned j = i + 1; j < BLOCK_LUKS_SLOTS; j++) {
        uint64_t other = h->slots[j].sector;
        if (slot->sector + sectors > other && other + sectors > slot->sector)
            return lodge_fail(err, LODGE_ERROR_CORRUPT,
                              "Keyslots %u and %u are overlapping in the header", i, j);
    }
    return true;
}

static bool check(const LuksHeader *h, bool detached, GError **err)
{
    if (!detached && h->payload_sector < HEAD_SECTORS)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "LUKS payload is overlapping with the header");
    if (!check_iterations(h->iterations, "LUKS key", err))
        return false;
    for (unsigned i = 0; i < BLOCK_LUKS_SLOTS; i++) {
        if (!check_slot(h, i, detached, err))
            return false;
    }
    return true;
}

/* ---- names */

static bool find_name(const char *const *names, int count, const char *name, const char *what,
                      int *out, GError **err)
{
    *out = block_crypto_find(names, count, name);
    return *out >= 0 ||
           lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "%s '%s' not supported", what, name);
}

static bool find_alg(BlockLuks *luks, GError **err)
{
    const LuksHeader *h = &luks->header;
    for (size_t i = 0; i < G_N_ELEMENTS(families); i++) {
        for (int k = 0; !strcmp(families[i].name, h->cipher) && k < families[i].count; k++) {
            BlockCipherAlg alg = (BlockCipherAlg)((int)families[i].first + k);
            if (block_cipher_key_length(alg, luks->params.mode) == h->key_length) {
                luks->params.alg = alg;
                return true;
            }
        }
    }
    return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                      "Algorithm '%s' with key size %u bytes not supported", h->cipher,
                      luks->params.mode == BLOCK_CIPHER_XTS ? h->key_length / 2 : h->key_length);
}

/* MODE-IVGEN[:HASH]; the hash means nothing but to essiv. */
static bool parse_names(BlockLuks *luks, GError **err)
{
    g_autofree char *mode = g_strdup(luks->header.mode);
    int row, hash = 0;
    char *ivgen = strchr(mode, '-'), *ivhash = ivgen ? strchr(ivgen, ':') : NULL;
    if (!ivgen)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "Unexpected cipher mode string format '%s'",
                          mode);
    *ivgen++ = '\0';
    if (ivhash)
        *ivhash++ = '\0';
    if (ivhash &&
        !find_name(block_hash_names, BLOCK_HASH_COUNT, ivhash, "Hash algorithm", &hash, err))
        return false;
    luks->params.ivgen_hash = (BlockHash)hash;
    if (!find_name(block_cipher_mode_names, BLOCK_CIPHER_MODE_COUNT, mode, "Cipher mode", &row,
                   err))
        return false;
    luks->params.mode = (BlockCipherMode)row;
    if (!find_alg(luks, err) || !find_name(block_hash_names, BLOCK_HASH_COUNT, luks->header.hash,
                                           "Hash algorithm", &row, err))
        return false;
    luks->hash = (BlockHash)row;
    if (!find_name(block_ivgen_names, BLOCK_IVGEN_COUNT, ivgen, "IV generator", &row, err))
        return false;
    luks->params.ivgen = (BlockIvgen)row;
    if (luks->params.ivgen == BLOCK_IVGEN_ESSIV && !ivhash)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "Missing IV generator hash specification");
    return block_cipher_supported(&luks->params, err);
}

bool luks_header_read(BlockLuks *luks, const BlockLuksIo *io, bool detached, GError **err)
{
    uint8_t bytes[LUKS_HEADER_BYTES];
    int result = io->read(io->opaque, 0, bytes, sizeof(bytes));
    if (result < 0)
        return lodge_fail_errno(err, -result, "Could not read encryption header");
    if (memcmp(bytes, magic, sizeof(magic)) != 0)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "Volume is not in LUKS format");
    unsigned version = be16_get(bytes + 6);
    if (version != LUKS_VERSION)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "LUKS version %u is not supported",
                          version);
    return decode(&luks->header, bytes, err) && check(&luks->header, detached, err) &&
           parse_names(luks, err);
}

bool luks_header_write(const BlockLuks *luks, const BlockLuksIo *io, GError **err)
{
    uint8_t bytes[LUKS_HEADER_BYTES] = {0};
    encode(&luks->header, bytes);
    int result = io->write(io->opaque, 0, bytes, sizeof(bytes));
    if (result == 0 && io->flush)
        result = io->flush(io->opaque);
    return result == 0 || lodge_fail_errno(err, -result, "Could not write encryption header");
}
