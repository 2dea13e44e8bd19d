/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The parts of the server: negotiation, requests, block status. */
#pragma once

#include "disk/nbd/server.h"
#include "disk/nbd/wire.h"

/* What a BLOCK_STATUS can ask about; its index among the export's is its id on the wire. */
typedef enum NbdContextKind { NBD_ALLOCATION, NBD_DEPTH, NBD_BITMAP } NbdContextKind;
typedef struct NbdContext {
    NbdContextKind kind;
    char *name;
    const char *bitmap; /* within name */
    BlockNode *node;    /* whose bitmap; borrowed from the export */
} NbdContext;

#define NBD_CONTEXTS_MAX 32u

typedef struct NbdExport {
    char *name, *description;
    BlockNode *node;
    uint64_t offset, size;
    bool read_only;
    NbdContext contexts[NBD_CONTEXTS_MAX];
    unsigned n_contexts;
} NbdExport;

struct NbdServer {
    NbdServerConfig config;
    GPtrArray *exports;
    GMutex lock;
    GCond changed;
    GPtrArray *connections;
    bool stopping;
};

typedef struct NbdConnection {
    NbdServer *server;
    NbdChannel *channel;
    bool fixed, no_zeroes, structured, encrypted;
    NbdExport *export;         /* NULL: not negotiated */
    NbdExport *context_export; /* which export @contexts are of */
    uint32_t contexts;         /* bit i: context i was asked for */

    GMutex receive, send; /* one request, one reply at a time */
    GMutex lock;          /* for what follows */
    GCond room;
    unsigned workers, idle;
    bool ended;        /* no more requests */
    uint64_t reserved; /* bytes of large requests in flight */
} NbdConnection;

/* True: on to the requests. False: close; @err only if there is something to tell. */
bool nbd_negotiate(NbdConnection *c, GError **err);
/* Transmission flags for this client. */
uint16_t nbd_export_flags(const NbdConnection *c, const NbdExport *export);
/* Until the client goes. */
void nbd_serve_requests(NbdConnection *c);
/* The reply to NBD_CMD_BLOCK_STATUS; below 0: the connection is to be closed. */
int nbd_serve_status(NbdConnection *c, const NbdRequest *request);
/* A structured error. */
int nbd_send_error(NbdConnection *c, uint64_t cookie, int result, const char *text);
