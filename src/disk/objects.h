/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What `--object` defines and options refer to by id: secrets and TLS credentials. Set up by one
 * thread, then only read, by any.
 */
#pragma once

#include "disk/block.h"

BlockObjects *block_objects_new(void);
void block_objects_free(BlockObjects *objects); /* wipes secrets; NULL is accepted */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(BlockObjects, block_objects_free)

/* "secret,id=s0,data=...", "tls-creds-x509,id=t0,dir=/...", or the same as JSON ("{...}"). */
bool block_objects_add(BlockObjects *objects, const char *text, GError **err);

/*
 * The bytes of secret @id, borrowed, a NUL behind them; NULL with @err when there is none (also
 * @objects NULL).
 */
const uint8_t *block_objects_secret(const BlockObjects *objects, const char *id, size_t *length,
                                    GError **err);

/* Credentials as gnutls takes them; that the files are there is checked, what is in them not. */
typedef struct BlockTlsCredentials {
    enum { BLOCK_TLS_X509, BLOCK_TLS_PSK, BLOCK_TLS_ANON } kind;
    const char *dir;        /* ca-cert.pem, client-cert.pem, ..., keys.psk */
    const char *username;   /* psk */
    const char *priority;   /* a gnutls priority string; NULL: the library's choice */
    bool server;            /* endpoint */
    bool verify_peer;
    const char *password_secret; /* of the private key: a secret's id; NULL: none */
} BlockTlsCredentials;
const BlockTlsCredentials *block_objects_tls(const BlockObjects *objects, const char *id,
                                             GError **err);
