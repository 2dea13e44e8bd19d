/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Transports whose libraries are large or rare live in modules of their own, which are loaded when
 * a name asks for them: lodge-disk-NAME.so in LODGE_MODULE_DIR, or in the folder that the
 * environment's LODGE_MODULES names. A module exports one BlockModule as lodge_disk_module.
 */
#pragma once

#include "disk/options.h"
#include "disk/transport/file.h"

#define BLOCK_MODULE_SYMBOL "lodge_disk_module"

typedef struct BlockModuleOpen BlockModuleOpen;
struct BlockModuleOpen {
    const char *driver; /* which transport of the module: "https" */
    const BlockOption *table;
    const json_t *options;
    bool read_only, direct;
    bool create; /* a new file of @size bytes; modules whose row has no create do not see it */
    uint64_t size;
    /*
     * The text of the secret whose id option @name gives: *text, to be wiped and freed, or NULL
     * when the option is not given.
     */
    bool (*secret)(const BlockModuleOpen *how, const char *name, char **text, GError **err);
    const BlockObjects *objects; /* for secret */
};

typedef struct BlockModule {
    const char *version; /* LODGE_VERSION of its build: another one is refused, and another ... */
    size_t open_size;    /* ... sizeof(BlockModuleOpen), which changes within a version, too */
    BlockFile *(*open)(const BlockModuleOpen *how, GError **err);
} BlockModule;
