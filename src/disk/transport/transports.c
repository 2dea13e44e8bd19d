/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "disk/transport/transport.h"

#include "base/error.h"
#include "disk/node.h"
#include "disk/transport/remote.h"

#include <string.h>
#include <sys/stat.h>

static const BlockOption host_options[] = {
    {"filename", BLOCK_OPTION_STRING, "the file", NULL},
    {"locking", BLOCK_OPTION_STRING, "on, off or auto: QEMU's image locks", NULL},
    {"aio", BLOCK_OPTION_STRING, "accepted for QEMU's sake", NULL},
    {"drop-cache", BLOCK_OPTION_BOOL, "accepted for QEMU's sake", NULL},
    {NULL, 0, NULL, NULL},
};

static bool host_parse(const char *uri, json_t *options, GError **err)
{
    if (g_str_has_prefix(uri, "file:"))
        uri += strlen("file:");
    json_object_set_new(options, "filename", json_string(uri));
    return true;
}

static BlockFile *host_open(const BlockOpen *how, const json_t *options, GError **err)
{
    BlockOpen here = *how;
    here.path = block_option_string(options, NULL, "filename");
    const char *locking = block_option_string(options, NULL, "locking");
    if (!here.path) {
        lodge_fail(err, LODGE_ERROR_INVALID, "Parameter 'filename' is missing");
        return NULL;
    }
    if (locking && !strcmp(locking, "off"))
        here.shared = true;
    return block_file_open(&here, err);
}

static const char *const host_schemes[] = {"file", NULL};

static const BlockTransport host_transport = {
    .name = "file",
    .schemes = host_schemes,
    .options = host_options,
    .parse = host_parse,
    .open = host_open,
    .create = block_file_create,
};

static const BlockTransport host_device_transport = {
    .name = "host_device",
    .options = host_options,
    .parse = host_parse,
    .open = host_open,
    .create = block_file_create,
};

/* One row a transport; the host's files come first. */
const BlockTransport *const block_transports[] = {
    &host_transport,
    &host_device_transport,
    &block_transport_http,
    &block_transport_https,
    &block_transport_ftp,
    &block_transport_ftps,
    &block_transport_iscsi,
    &block_transport_nfs,
    &block_transport_rbd,
    &block_transport_ssh,
    &block_transport_null_co,
    &block_transport_null_aio,
    NULL,
};

const BlockTransport *block_transport_find(const char *name)
{
    for (const BlockTransport *const *t = block_transports; *t; t++) {
        if (!strcmp((*t)->name, name))
            return *t;
    }
    return NULL;
}

const BlockTransport *block_transport_for(const char *path)
{
    const char *colon = strchr(path, ':'), *slash = strchr(path, '/');
    if (colon && (!slash || colon < slash)) {
        size_t length = (size_t)(colon - path);
        for (const BlockTransport *const *t = block_transports; *t; t++) {
            for (const char *const *s = (*t)->schemes; s && *s; s++) {
                if (strlen(*s) == length && !g_ascii_strncasecmp(*s, path, length))
                    return *t;
            }
        }
    }
    return block_transports[0];
}

/* A known scheme leads to its transport; "name:..." of a file that is there to that file. */
static const BlockTransport *transport_of(const char *path, GError **err)
{
    const BlockTransport *t = block_transport_for(path);
    const char *colon = strchr(path, ':'), *slash = strchr(path, '/');
    struct stat st;
    if (t == block_transports[0] && colon && (!slash || colon < slash) &&
        !g_str_has_prefix(path, "file:") && stat(path, &st) < 0) {
        lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "Unknown protocol '%.*s'", (int)(colon - path),
                   path);
        return NULL;
    }
    return t;
}

static BlockFile *open_by(const BlockTransport *t, const BlockOpen *how, const json_t *options,
                          GError **err)
{
    if (!block_options_known(options, t->options, block_node_options, t->name, err))
        return NULL;
    return t->open(how, options, err);
}

BlockFile *block_transport_open(const BlockOpen *how, const json_t *options, GError **err)
{
    json_auto_t *parsed = NULL;
    if (!options) {
        if (how->opener) /* the caller hands out descriptors: nothing but files by their names */
            return block_file_open(how, err);
        const BlockTransport *t = transport_of(how->path, err);
        parsed = json_object();
        if (!t || !t->parse(how->path, parsed, err))
            return NULL;
        return open_by(t, how, parsed, err);
    }
    const char *driver = block_option_string(options, NULL, "driver");
    const char *filename = block_option_string(options, NULL, "filename");
    BlockOpen below = *how;
    bool read_only = how->read_only;
    if (!block_option_bool(options, NULL, "read-only", &read_only, err))
        return NULL;
    below.read_only = read_only;
    if (driver && block_format_find(driver)) {
        below.path = NULL;
        below.format = NULL;
        below.options = options;
        BlockNode *node = block_open(&below, err);
        return node ? block_node_file(node, err) : NULL;
    }
    below.options = options;
    const BlockTransport *t = driver     ? block_transport_find(driver)
                              : filename ? transport_of(filename, err)
                                         : block_transports[0];
    if (!t && driver)
        lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "Unknown driver '%s'", driver);
    if (!t)
        return NULL;
    if (!driver && filename && t != block_transports[0]) { /* a URI */
        parsed = json_object();
        if (!t->parse(filename, parsed, err))
            return NULL;
        options = parsed;
    }
    return open_by(t, &below, options, err);
}

BlockFile *block_transport_create(const char *path, uint64_t size, const BlockObjects *objects,
                                  GError **err)
{
    const BlockTransport *t = transport_of(path, err);
    if (!t)
        return NULL;
    json_auto_t *parsed = json_object();
    if (!t->parse(path, parsed, err))
        return NULL;
    if (t->create) {
        const char *name = block_option_string(parsed, NULL, "filename");
        return t->create(name ? name : path, size, err);
    }
    BlockOpen how = {.path = path, .objects = objects};
    return t->open(&how, parsed, err);
}
