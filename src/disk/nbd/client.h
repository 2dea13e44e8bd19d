/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * An NBD client: connections to a server, and requests on them from many threads at the same time.
 * The server is not trusted: what it says is checked before it is used.
 */
#pragma once

#include "disk/nbd/channel.h"

#define NBD_CLIENT_HANDSHAKE_SECONDS 30u

typedef struct NbdClientConfig {
    const char *path;        /* of a UNIX socket; NULL: TCP */
    const char *host, *port; /* TCP */
    const char *export;
    const char *context;  /* what block status is asked of; NULL: nothing */
    const NbdTls *tls;    /* NULL: in the clear */
    const char *hostname; /* in the server's certificate; NULL: none known */
} NbdClientConfig;

/* What the server says of an export. */
typedef struct NbdClientExport {
    char *name, *description; /* in lists only */
    uint64_t size;
    uint16_t flags;                                 /* NBD_FLAG_... */
    uint32_t min_block, preferred_block, max_block; /* 0: not said */
    bool structured, has_context;
    uint32_t context;    /* its id, if has_context */
    GPtrArray *contexts; /* in lists only: names */
} NbdClientExport;

/* A connected socket; -1 with @err. */
int nbd_client_connect(const NbdClientConfig *config, GError **err);
/* Negotiates for config->export; the channel is ready for requests. */
bool nbd_client_negotiate(NbdChannel *channel, const NbdClientConfig *config,
                          NbdClientExport *export, GError **err);
/* All that the server lists: NbdClientExport; NULL with @err. Ends the connection. */
GPtrArray *nbd_client_list(NbdChannel *channel, const NbdClientConfig *config, GError **err);

/* ---- requests */

typedef struct NbdLink NbdLink; /* a connection past its negotiation; reference counted */

NbdLink *nbd_link_new(NbdChannel *channel, const NbdClientExport *export); /* takes @channel */
NbdLink *nbd_link_ref(NbdLink *link);
void nbd_link_unref(NbdLink *link); /* the last one says good-bye */
void nbd_link_shut(NbdLink *link);
bool nbd_link_lost(NbdLink *link);
unsigned nbd_link_busy(NbdLink *link); /* requests in flight */
const NbdClientExport *nbd_link_export(const NbdLink *link);

typedef struct NbdCall {
    uint16_t type, flags; /* NBD_CMD_... */
    uint64_t offset;
    uint32_t length;
    const struct iovec *iov; /* read: where to; write: from where */
    int n;
    uint64_t skip; /* of @iov */
    /* Block status: the first extent. */
    uint32_t extent_length, extent_flags;
} NbdCall;

/* 0, the server's error as -errno, or -ENOLINK: the connection is lost. Any thread. */
int nbd_link_call(NbdLink *link, NbdCall *call);
