/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * An NBD server: images as exports, clients on sockets that its owner accepts. Each client has
 * threads of its own, so that its requests are worked on at the same time.
 */
#pragma once

#include "disk/image.h"
#include "disk/nbd/channel.h"

typedef struct NbdServer NbdServer;

#define NBD_SERVER_CLIENTS_MAX       1024u
#define NBD_SERVER_HANDSHAKE_SECONDS 10u

typedef struct NbdServerConfig {
    unsigned clients; /* at the same time, 1 to NBD_SERVER_CLIENTS_MAX; more wait in the backlog */
    unsigned
        handshake_seconds; /* to get through the negotiation; 0: NBD_SERVER_HANDSHAKE_SECONDS */
    const NbdTls *tls;     /* every client must encrypt; NULL: none can */
    /*
     * A client is gone (@negotiated: it had got as far as an export), @left others are there. From
     * its thread; calls nothing of the server's. May be NULL.
     */
    void (*gone)(void *opaque, bool negotiated, unsigned left);
    /* Why a negotiation failed, as a person reads it. From the client's thread. May be NULL. */
    void (*log)(void *opaque, const char *text);
    void *opaque;
} NbdServerConfig;

typedef struct NbdExportConfig {
    const char *name;        /* "" is the default export */
    const char *description; /* NULL: none */
    BlockNode *node;         /* a reference is taken */
    uint64_t offset, size;   /* which part of the disk; size 0: to its end */
    bool read_only;
    bool allocation_depth; /* context "qemu:allocation-depth" */
    const char *const
        *bitmaps; /* each a context "qemu:dirty-bitmap:NAME"; NULL-terminated, or NULL */
} NbdExportConfig;

NbdServer *nbd_server_new(const NbdServerConfig *config);
/* Ends every client, waits for their requests; images are flushed. NULL is accepted. */
void nbd_server_free(NbdServer *server);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(NbdServer, nbd_server_free)

/* Before the first client. */
bool nbd_server_add(NbdServer *server, const NbdExportConfig *config, GError **err);
/* Serves the client on the connected socket @fd, which becomes the server's. Any thread. */
void nbd_server_client(NbdServer *server, int fd);
unsigned nbd_server_clients(NbdServer *server); /* how many there are now */
