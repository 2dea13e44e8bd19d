/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * LUKS version 1 (cryptsetup's "LUKS On-Disk Format Specification" 1.2.3): a header with eight key
 * slots, each holding the master key under a passphrase, and sectors encrypted with the master
 * key. The header may be anywhere: at the start of a file, inside a qcow2 image, in a file of its
 * own. Option names and messages are those of QEMU's QAPI type QCryptoBlock*LUKS.
 */
#pragma once

#include <jansson.h>

#include "disk/crypto/cipher.h"
#include "disk/objects.h"
#include "disk/options.h"

#define BLOCK_LUKS_SLOTS 8u

/* Where the header is; offset 0 is its first byte. 0 or -errno; reads past the end give zeroes. */
typedef struct BlockLuksIo {
    int (*read)(void *opaque, uint64_t offset, void *buffer, size_t length);
    int (*write)(void *opaque, uint64_t offset, const void *buffer, size_t length);
    int (*flush)(void *opaque); /* what was written is on stable storage; may be NULL */
    void *opaque;
} BlockLuksIo;

typedef struct BlockLuks BlockLuks;

/*
 * True when a file that starts with these bytes is LUKS version 1. A later version is found to be
 * raw, as QEMU finds it, so that it can be copied; opened as "luks" it is refused by name.
 */
bool block_luks_probe(const uint8_t *head, size_t length);

/*
 * Options are looked up as @prefix + name in @options ("encrypt." in qcow2, "" elsewhere), and
 * named so in messages.
 */
typedef struct BlockLuksOpen {
    const char *prefix;
    const char *key_secret; /* the id of the passphrase's secret; NULL: not given */
    const BlockObjects *objects;
    bool locked;   /* nothing but its header is wanted: no secret is needed, none is tried */
    bool detached; /* the header is in a file of its own */
} BlockLuksOpen;

BlockLuks *block_luks_open(const BlockLuksIo *io, const BlockLuksOpen *how, GError **err);
void block_luks_free(BlockLuks *luks); /* wipes the key; NULL is accepted */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(BlockLuks, block_luks_free)

/* What a new header is to be. */
typedef struct BlockLuksCreate {
    BlockCipherParams cipher;
    bool ivgen_hash_given; /* written into the header even where it means nothing, as QEMU does */
    BlockHash hash;
    uint64_t iter_time_ms;
    const char *prefix, *key_secret; /* borrowed; key_secret may be NULL until it is created */
} BlockLuksCreate;

/* Reads cipher-alg, cipher-mode, ivgen-alg, ivgen-hash-alg, hash-alg, iter-time, key-secret. */
bool block_luks_create_options(const json_t *options, const char *prefix, BlockLuksCreate *create,
                               GError **err);
/* Is there such a cipher, and such a passphrase? Asked before a file is touched. */
bool block_luks_create_check(const BlockLuksCreate *create, const BlockObjects *objects,
                             GError **err);
/* Bytes from the header's start to the payload, key slots included. */
uint64_t block_luks_create_size(const BlockLuksCreate *create);
/* Writes a new header with the passphrase in slot 0; unlocked. */
BlockLuks *block_luks_create(const BlockLuksIo *io, const BlockLuksCreate *create,
                             const BlockObjects *objects, GError **err);
/*
 * As block_luks_create, for a header in a file of its own: the payload starts at 0 of another one.
 */
BlockLuks *block_luks_create_detached(const BlockLuksIo *io, const BlockLuksCreate *create,
                                      const BlockObjects *objects, GError **err);

/* "active" or "inactive" key slots: state, new-secret, old-secret, keyslot, iter-time, secret. */
bool block_luks_amend(BlockLuks *luks, const BlockLuksIo *io, const json_t *options,
                      const char *prefix, const BlockObjects *objects, bool force, GError **err);

/* Where the payload starts, from the header's first byte, or (detached) in its own file. */
uint64_t block_luks_payload(const BlockLuks *luks);
bool block_luks_locked(const BlockLuks *luks);
/* NULL while locked. Borrowed: sectors count from wherever the format says. */
BlockCipher *block_luks_cipher(const BlockLuks *luks);
/* QAPI's QCryptoBlockInfoLUKS; a new reference. */
json_t *block_luks_info(const BlockLuks *luks);

/* Rows for option tables, with QEMU's help texts: those of key-secret differ. */
#define BLOCK_LUKS_CREATE_OPTIONS(prefix)                                                          \
    {prefix "cipher-alg", BLOCK_OPTION_STRING, "Name of encryption cipher algorithm", NULL},       \
    {prefix "cipher-mode", BLOCK_OPTION_STRING, "Name of encryption cipher mode", NULL},           \
    {prefix "ivgen-alg", BLOCK_OPTION_STRING, "Name of IV generator algorithm", NULL},             \
    {prefix "ivgen-hash-alg", BLOCK_OPTION_STRING, "Name of IV generator hash algorithm", NULL},   \
    {prefix "hash-alg", BLOCK_OPTION_STRING, "Name of encryption hash algorithm", NULL},           \
    {prefix "iter-time", BLOCK_OPTION_NUMBER, "Time to spend in PBKDF in milliseconds", NULL}
#define BLOCK_LUKS_AMEND_OPTIONS(prefix)                                                           \
    {prefix "iter-time", BLOCK_OPTION_NUMBER, "Time to spend in PBKDF in milliseconds", NULL},     \
    {prefix "keyslot", BLOCK_OPTION_NUMBER, "Select a single keyslot to modify explicitly", NULL}, \
    {prefix "new-secret", BLOCK_OPTION_STRING,                                                     \
     "New secret to set in the matching keyslots. Empty string to erase", NULL},                   \
    {prefix "old-secret", BLOCK_OPTION_STRING, "Select all keyslots that match this password",     \
     NULL},                                                                                        \
    {prefix "state", BLOCK_OPTION_STRING,                                                          \
     "Select new state of affected keyslots (active/inactive)", NULL}
