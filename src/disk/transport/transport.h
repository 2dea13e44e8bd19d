/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Where files come from: the host, or a server. One row of transports.c each. */
#pragma once

#include "disk/options.h"
#include "disk/transport/file.h"

typedef struct BlockTransport {
    const char *name;           /* its "driver" in options */
    const char *const *schemes; /* "nbd" for "nbd:...", NULL-terminated; NULL: none */
    const BlockOption *options; /* keys beside block_node_options */
    /* Puts what @uri says into @options; NULL for the host's files. */
    bool (*parse)(const char *uri, json_t *options, GError **err);
    /* @options: its own part of the tree; @how: read-only, cache modes, objects. */
    BlockFile *(*open)(const BlockOpen *how, const json_t *options, GError **err);
    /* Makes a new file of that name; NULL: an image is put into what is there already. */
    BlockFile *(*create)(const char *path, uint64_t size, GError **err);
} BlockTransport;

extern const BlockTransport block_transport_null_co, block_transport_null_aio,
    block_transport_blkdebug;
extern const BlockTransport block_transport_nbd; /* nbd.c */

extern const BlockTransport *const block_transports[]; /* ends with NULL */
const BlockTransport *block_transport_find(const char *name);
/* By the scheme of @path; the host's files when it has none that is known. */
const BlockTransport *block_transport_for(const char *path);

/*
 * The file of an image: by @options if not NULL (an object with "driver"; a format's name there
 * puts a file on that node's disk), else by @how->path.
 */
BlockFile *block_transport_open(const BlockOpen *how, const json_t *options, GError **err);
/* A new, empty file, or one that is there if the transport cannot make any. */
BlockFile *block_transport_create(const char *path, uint64_t size, const BlockObjects *objects,
                                  GError **err);

/* A file whose bytes are @node's disk; takes the reference, also on failure. */
BlockFile *block_node_file(BlockNode *node, GError **err);
