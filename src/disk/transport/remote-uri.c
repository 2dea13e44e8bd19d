/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "disk/transport/remote-uri.h"

#include <string.h>

#include "base/error.h"

static void put(json_t *options, const char *name, const char *value)
{
    json_object_set_new(options, name, json_string(value));
}

/* ---- iSCSI */

static bool iscsi_bad(const char *uri, const char *what, GError **err)
{
    return lodge_fail(err, LODGE_ERROR_INVALID,
                      "Failed to parse URL : %s: %s; it is "
                      "iscsi://[user[%%password]@]host[:port]/target/lun",
                      uri, what);
}

bool block_uri_iscsi(const char *uri, json_t *options, GError **err)
{
    const char *rest = uri + strlen("iscsi://");
    if (g_ascii_strncasecmp(uri, "iscsi://", strlen("iscsi://")))
        return iscsi_bad(uri, "no \"//\"", err);
    g_auto(GStrv) parts = g_strsplit(rest, "/", 3);
    if (g_strv_length(parts) != 3 || !*parts[1] || !*parts[2] || strchr(parts[2], '/'))
        return iscsi_bad(uri, "no target or no lun", err);
    char *host = strrchr(parts[0], '@');
    if (host) {
        *host++ = '\0';
        char *password = strchr(parts[0], '%');
        if (password)
            *password++ = '\0';
        put(options, "user", parts[0]);
        if (password)
            put(options, "password", password);
    } else {
        host = parts[0];
    }
    if (!*host)
        return iscsi_bad(uri, "no host", err);
    put(options, "transport", "tcp");
    put(options, "portal", host);
    put(options, "target", parts[1]);
    put(options, "lun", parts[2]);
    return true;
}

/* ---- NFS */

static bool nfs_parameter(const char *name, const char *value, json_t *options, GError **err)
{
    static const struct {
        const char *in_uri, *option;
    } names[] = {
        {"uid", "user"},           {"gid", "group"},
        {"tcp-syncnt", "tcp-syn-count"}, {"readahead", "readahead-size"},
        {"pagecache", "page-cache-size"}, {"debug", "debug"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
        if (!strcmp(names[i].in_uri, name)) {
            put(options, names[i].option, value);
            return true;
        }
    }
    return lodge_fail(err, LODGE_ERROR_INVALID, "Unknown NFS parameter name: %s", name);
}

bool block_uri_nfs(const char *uri, json_t *options, GError **err)
{
    g_autoptr(GError) cause = NULL;
    g_autoptr(GUri) parsed = g_uri_parse(uri, G_URI_FLAGS_NONE, &cause);
    if (!parsed)
        return lodge_fail(err, LODGE_ERROR_INVALID, "Invalid URI specified: %s", cause->message);
    const char *host = g_uri_get_host(parsed), *path = g_uri_get_path(parsed);
    const char *query = g_uri_get_query(parsed);
    if (!host || !*host)
        return lodge_fail(err, LODGE_ERROR_INVALID, "Invalid hostname in URI");
    if (!path || strlen(path) < 2)
        return lodge_fail(err, LODGE_ERROR_INVALID, "Invalid file path in URI");
    json_t *server = json_object();
    put(server, "type", "inet");
    put(server, "host", host);
    json_object_set_new(options, "server", server);
    put(options, "path", path);
    if (!query)
        return true;
    g_autoptr(GHashTable) parameters =
        g_uri_parse_params(query, -1, "&", G_URI_PARAMS_NONE, &cause);
    if (!parameters)
        return lodge_fail(err, LODGE_ERROR_INVALID, "Invalid URI specified: %s", cause->message);
    GHashTableIter iter;
    gpointer name, value;
    g_hash_table_iter_init(&iter, parameters);
    while (g_hash_table_iter_next(&iter, &name, &value)) {
        if (!nfs_parameter(name, value, options, err))
            return false;
    }
    return true;
}

/* ---- Ceph */

/* Up to an unescaped character of @ends (or the end), unescaped; *rest is moved to it. */
static char *take(const char **rest, const char *ends)
{
    GString *out = g_string_new(NULL);
    const char *at = *rest;
    for (; *at && !strchr(ends, *at); at++) {
        if (*at == '\\' && at[1])
            at++;
        g_string_append_c(out, *at);
    }
    *rest = at;
    return g_string_free(out, FALSE);
}

static bool rbd_settings(const char *rest, json_t *options, GError **err)
{
    json_t *others = json_object();
    while (*rest == ':') {
        rest++;
        g_autofree char *key = take(&rest, "=:");
        if (*rest != '=') {
            json_decref(others);
            return lodge_fail(err, LODGE_ERROR_INVALID, "conf option %s has no value", key);
        }
        rest++;
        g_autofree char *value = take(&rest, ":");
        if (!strcmp(key, "conf"))
            put(options, "conf", value);
        else if (!strcmp(key, "id"))
            put(options, "user", value);
        else
            put(others, key, value);
    }
    if (json_object_size(others) > 0) {
        char *text = json_dumps(others, JSON_COMPACT);
        put(options, "keyvalue", text);
        free(text);
    }
    json_decref(others);
    return true;
}

bool block_uri_rbd(const char *uri, json_t *options, GError **err)
{
    const char *rest = uri + strlen("rbd:");
    if (g_ascii_strncasecmp(uri, "rbd:", strlen("rbd:")))
        return lodge_fail(err, LODGE_ERROR_INVALID, "File name must start with 'rbd:'");
    g_autofree char *pool = take(&rest, "/");
    if (*rest != '/')
        return lodge_fail(err, LODGE_ERROR_INVALID, "Pool name is required");
    rest++;
    g_autofree char *first = take(&rest, "/@:");
    put(options, "pool", pool);
    if (*rest == '/') {
        rest++;
        g_autofree char *image = take(&rest, "@:");
        put(options, "namespace", first);
        put(options, "image", image);
    } else {
        put(options, "image", first);
    }
    if (*rest == '@') {
        rest++;
        g_autofree char *snapshot = take(&rest, ":");
        put(options, "snapshot", snapshot);
    }
    return rbd_settings(rest, options, err);
}
