/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Passphrases given to and taken from a LUKS header that is there. */
#include <string.h>

#include "base/error.h"
#include "disk/crypto/luks-header.h"

typedef struct Amend {
    BlockLuks *luks;
    const BlockLuksIo *io;
    const BlockObjects *objects;
    bool force;
    const char *state, *new_secret, *old_secret, *secret; /* NULL: not given */
    bool has_keyslot, has_iter_time;
    uint64_t keyslot, iter_time_ms;
} Amend;

static unsigned count_active(const BlockLuks *luks)
{
    unsigned n = 0;
    for (unsigned i = 0; i < BLOCK_LUKS_SLOTS; i++)
        n += luks_slot_active(luks, i);
    return n;
}

static bool check_keyslot(const Amend *a, GError **err)
{
    return !a->has_keyslot || a->keyslot < BLOCK_LUKS_SLOTS ||
           lodge_fail(err, LODGE_ERROR_INVALID,
                      "Invalid keyslot %" G_GUINT64_FORMAT " specified, must be between 0 and %u",
                      a->keyslot, BLOCK_LUKS_SLOTS - 1);
}

/* ---- active */

static bool pick_slot(const Amend *a, unsigned *slot, GError **err)
{
    *slot = (unsigned)a->keyslot;
    if (!a->has_keyslot) {
        for (*slot = 0; *slot < BLOCK_LUKS_SLOTS && luks_slot_active(a->luks, *slot); ++*slot)
            continue;
        if (*slot == BLOCK_LUKS_SLOTS)
            return lodge_fail(err, LODGE_ERROR_STATE,
                              "Can't add a keyslot - all keyslots are in use");
    }
    if (!a->force && luks_slot_active(a->luks, *slot))
        return lodge_fail(err, LODGE_ERROR_STATE,
                          "Refusing to overwrite active keyslot %u - please erase it first", *slot);
    return true;
}

static bool activate(const Amend *a, GError **err)
{
    uint8_t key[BLOCK_CIPHER_KEY_MAX];
    unsigned slot;
    if (!a->new_secret)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "'new-secret' is required to activate a keyslot");
    if (a->old_secret)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "'old-secret' must not be given when activating keyslots");
    if (!check_keyslot(a, err) || !pick_slot(a, &slot, err))
        return false;
    const char *id = a->secret ? a->secret : a->luks->secret;
    if (!id)
        return lodge_fail(err, LODGE_ERROR_INVALID, "the image was opened without 'key-secret'");
    g_autoptr(LuksPassphrase) old = luks_passphrase(a->objects, id, err);
    if (!old)
        return false;
    bool ok = luks_find_key(a->luks, a->io, old, key, err);
    if (ok) {
        g_autoptr(LuksPassphrase) passphrase = luks_passphrase(a->objects, a->new_secret, err);
        ok = passphrase &&
             luks_slot_store(a->luks, a->io, slot, passphrase, key, a->iter_time_ms, err);
    }
    explicit_bzero(key, sizeof(key));
    return ok;
}

/* ---- inactive */

/* Does @passphrase open @slot? 1, 0, or -1 with @err. */
static int matches(const Amend *a, unsigned slot, const char *passphrase, GError **err)
{
    uint8_t key[BLOCK_CIPHER_KEY_MAX];
    int result = luks_slot_try(a->luks, a->io, slot, passphrase, key, err);
    explicit_bzero(key, sizeof(key));
    return result;
}

static bool erase_numbered(const Amend *a, const char *old, GError **err)
{
    unsigned slot = (unsigned)a->keyslot;
    int match = old ? matches(a, slot, old, err) : 1;
    if (match < 0)
        return false;
    if (match == 0)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "Given keyslot %u doesn't contain the given "
                          "old password for erase operation",
                          slot);
    if (!a->force && !luks_slot_active(a->luks, slot))
        return lodge_fail(err, LODGE_ERROR_STATE, "Given keyslot %u is already erased (inactive) ",
                          slot);
    if (!a->force && count_active(a->luks) == 1)
        return lodge_fail(err, LODGE_ERROR_STATE,
                          "Attempt to erase the only active keyslot %u "
                          "which will erase all the data in the image "
                          "irreversibly - refusing operation",
                          slot);
    return luks_slot_erase(a->luks, a->io, slot, err);
}

static bool erase_matching(const Amend *a, const char *old, GError **err)
{
    bool match[BLOCK_LUKS_SLOTS];
    unsigned n = 0;
    for (unsigned i = 0; i < BLOCK_LUKS_SLOTS; i++) {
        int result = matches(a, i, old, err);
        if (result < 0)
            return false;
        match[i] = result > 0;
        n += match[i];
    }
    if (n == 0)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "No keyslots match given (old) password for erase operation");
    if (!a->force && n == count_active(a->luks))
        return lodge_fail(err, LODGE_ERROR_STATE,
                          "All the active keyslots match the (old) password that "
                          "was given and erasing them will erase all the data in "
                          "the image irreversibly - refusing operation");
    for (unsigned i = 0; i < BLOCK_LUKS_SLOTS; i++) {
        if (match[i] && !luks_slot_erase(a->luks, a->io, i, err))
            return false;
    }
    return true;
}

static bool deactivate(const Amend *a, GError **err)
{
    const char *wrong = a->new_secret      ? "new-secret"
                        : a->has_iter_time ? "iter-time"
                        : a->secret        ? "secret"
                                           : NULL;
    if (wrong)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "'%s' must not be given when erasing keyslots", wrong);
    g_autoptr(LuksPassphrase) old =
        a->old_secret ? luks_passphrase(a->objects, a->old_secret, err) : NULL;
    if ((a->old_secret && !old) || !check_keyslot(a, err))
        return false;
    if (a->has_keyslot)
        return erase_numbered(a, old, err);
    if (old)
        return erase_matching(a, old, err);
    return lodge_fail(err, LODGE_ERROR_INVALID,
                      "To erase keyslot(s), either explicit keyslot index "
                      "or the password currently contained in them must be given");
}

bool block_luks_amend(BlockLuks *luks, const BlockLuksIo *io, const json_t *options,
                      const char *prefix, const BlockObjects *objects, bool force, GError **err)
{
    json_auto_t *own = luks_own_options(options, prefix);
    Amend a = {.luks = luks, .io = io, .objects = objects, .force = force,
               .state = block_option_string(own, NULL, "state"),
               .new_secret = block_option_string(own, NULL, "new-secret"),
               .old_secret = block_option_string(own, NULL, "old-secret"),
               .secret = block_option_string(own, NULL, "secret"),
               .has_keyslot = block_option_given(own, "keyslot"),
               .has_iter_time = block_option_given(own, "iter-time"),
               .iter_time_ms = LUKS_ITER_TIME_MS};
    if (!a.state)
        return lodge_fail(err, LODGE_ERROR_INVALID, "Parameter 'state' is missing");
    bool active = !strcmp(a.state, "active");
    if (!active && strcmp(a.state, "inactive"))
        return lodge_fail(err, LODGE_ERROR_INVALID, "Parameter 'state' does not accept value '%s'",
                          a.state);
    if (!block_option_number(own, NULL, "keyslot", &a.keyslot, err) ||
        !block_option_number(own, NULL, "iter-time", &a.iter_time_ms, err))
        return false;
    return active ? activate(&a, err) : deactivate(&a, err);
}
