/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "disk/transport/transport.h"

#include "base/error.h"
#include "disk/json-text.h"
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

static const BlockTransport host_cdrom_transport = {
    .name = "host_cdrom",
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
    &host_cdrom_transport,
    &block_transport_nbd,
    &block_transport_http,
    &block_transport_https,
    &block_transport_ftp,
    &block_transport_ftps,
    &block_transport_iscsi,
    &block_transport_nfs,
    &block_transport_rbd,
    &block_transport_ssh,
    &block_transport_blkdebug,
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
    if (how->opener && t->open != block_transports[0]->open) {
        lodge_fail(err, LODGE_ERROR_DENIED,
                   "the driver '%s' opens more than the files that are handed out here", t->name);
        return NULL;
    }
    return t->open(how, options, err);
}

/* A tree in the place of a name. */
static BlockFile *open_json(const BlockOpen *how, GError **err)
{
    g_autofree char *problem = NULL;
    json_auto_t *flat = json_text_parse(how->path + strlen("json:"), &problem);
    if (!json_is_object(flat)) {
        lodge_fail(err, LODGE_ERROR_INVALID, "Could not parse the JSON options: %s",
                   flat ? "not an object" : problem);
        return NULL;
    }
    json_auto_t *tree = block_options_nest(flat, err);
    BlockOpen below = *how;
    below.path = NULL;
    return tree ? block_transport_open(&below, tree, err) : NULL;
}

static BlockFile *open_path(const BlockOpen *how, GError **err)
{
    if (how->opener) /* the caller hands out descriptors: nothing but files by their names */
        return block_file_open(how, err);
    if (g_str_has_prefix(how->path, "json:"))
        return open_json(how, err);
    const BlockTransport *t = transport_of(how->path, err);
    json_auto_t *parsed = json_object();
    return t && t->parse(how->path, parsed, err) ? open_by(t, how, parsed, err) : NULL;
}

/* @options of @t, and what @name says that they do not. A new reference. */
static json_t *with_name(const BlockTransport *t, const json_t *options, const char *name,
                         GError **err)
{
    json_auto_t *parsed = json_object();
    if (!t->parse(name, parsed, err))
        return NULL;
    bool named = block_option_given(parsed, "filename");
    json_object_update(parsed, (json_t *)options);
    if (!named)
        json_object_del(parsed, "filename");
    return json_incref(parsed);
}

BlockFile *block_transport_open(const BlockOpen *how, const json_t *options, GError **err)
{
    if (!options)
        return open_path(how, err);
    const char *driver = block_option_string(options, NULL, "driver");
    const char *filename = block_option_string(options, NULL, "filename");
    const char *name = filename ? filename : how->path;
    BlockOpen below = *how;
    bool read_only = how->read_only;
    if (!block_option_bool(options, NULL, "read-only", &read_only, err))
        return NULL;
    below.read_only = read_only;
    below.options = options;
    if (driver && block_format_find(driver)) {
        if (filename || block_option_given(options, "file"))
            below.path = NULL;
        below.format = NULL;
        BlockNode *node = block_open(&below, err);
        return node ? block_node_file(node, err) : NULL;
    }
    const BlockTransport *t = driver ? block_transport_find(driver)
                              : name ? transport_of(name, err)
                                     : block_transports[0];
    if (!t && driver)
        lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "Unknown driver '%s'", driver);
    if (!t)
        return NULL;
    json_auto_t *merged = name && t->parse && (!filename || t != block_transports[0])
                              ? with_name(t, options, name, err)
                              : json_incref((json_t *)options);
    return merged ? open_by(t, &below, merged, err) : NULL;
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
