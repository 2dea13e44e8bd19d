/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "disk/transport/nbd-name.h"

#include "base/error.h"
#include "disk/nbd/wire.h"

#include <string.h>

static void set(json_t *options, const char *name, const char *value)
{
    json_object_set_new(options, name, json_string(value));
}

static void set_server(json_t *options, const char *path, const char *host, const char *port)
{
    json_t *server = json_object();
    set(server, "type", path ? "unix" : "inet");
    if (path) {
        set(server, "path", path);
    } else {
        set(server, "host", host);
        set(server, "port", port);
    }
    json_object_set_new(options, "server", server);
}

static bool bad(const char *name, GError **err)
{
    return lodge_fail(err, LODGE_ERROR_INVALID,
                      "No valid URL specified: '%s' (nbd://HOST[:PORT][/EXPORT] and "
                      "nbd+unix:///EXPORT?socket=PATH are)",
                      name);
}

/* The socket of "?socket=PATH", which must be all there is; NULL: not so. */
static char *socket_of(const char *query)
{
    const char *value =
        query && g_str_has_prefix(query, "socket=") ? query + strlen("socket=") : "";
    char *path = *value && !strchr(value, '&') ? g_uri_unescape_string(value, NULL) : NULL;
    return path;
}

static bool parse_uri(const char *name, json_t *options, GError **err)
{
    g_autoptr(GUri) uri = g_uri_parse(name, G_URI_FLAGS_ENCODED_QUERY, NULL);
    if (!uri)
        return bad(name, err);
    const char *scheme = g_uri_get_scheme(uri), *path = g_uri_get_path(uri);
    const char *host = g_uri_get_host(uri), *query = g_uri_get_query(uri);
    if (path[0] == '/' && path[1])
        set(options, "export", path + 1);
    if (!strcmp(scheme, "nbd+unix")) {
        g_autofree char *file = socket_of(query);
        if (!file || (host && *host) || g_uri_get_port(uri) > 0)
            return bad(name, err);
        set_server(options, file, NULL, NULL);
        return true;
    }
    if (!host || !*host || (query && *query))
        return bad(name, err);
    g_autofree char *port =
        g_uri_get_port(uri) > 0 ? g_strdup_printf("%d", g_uri_get_port(uri)) : g_strdup(NBD_PORT);
    set_server(options, NULL, host, port);
    return true;
}

/* "nbd:..." from before there were URIs. */
static bool parse_old(const char *name, json_t *options, GError **err)
{
    static const char marker[] = ":exportname=";
    const char *where = name + strlen("nbd:"), *export = strstr(where, marker);
    g_autofree char *server = export ? g_strndup(where, (gsize)(export - where)) : g_strdup(where);
    if (export && export[strlen(marker)])
        set(options, "export", export + strlen(marker));
    if (g_str_has_prefix(server, "unix:")) {
        if (!server[strlen("unix:")])
            return bad(name, err);
        set_server(options, server + strlen("unix:"), NULL, NULL);
        return true;
    }
    char *colon = strrchr(server, ':');
    if (!colon || !colon[1])
        return lodge_fail(err, LODGE_ERROR_INVALID, "port missing in '%s' (nbd:HOST:PORT)", name);
    *colon = '\0';
    size_t length = strlen(server);
    bool v6 = length > 2 && server[0] == '[' && server[length - 1] == ']';
    if (v6)
        server[length - 1] = '\0';
    set_server(options, NULL, *server ? server + v6 : "localhost", colon + 1);
    return true;
}

bool nbd_name_parse(const char *name, json_t *options, GError **err)
{
    if (!g_utf8_validate(name, -1, NULL))
        return lodge_fail(err, LODGE_ERROR_INVALID, "the name of the NBD server is not UTF-8");
    return strstr(name, "://") ? parse_uri(name, options, err) : parse_old(name, options, err);
}

char *nbd_name_of(const char *path, const char *host, const char *port, const char *export)
{
    bool v6 = host && strchr(host, ':');
    if (path && *export)
        return g_strdup_printf("nbd+unix:///%s?socket=%s", export, path);
    if (path)
        return g_strdup_printf("nbd+unix://?socket=%s", path);
    return g_strdup_printf("nbd://%s%s%s:%s%s%s", v6 ? "[" : "", host, v6 ? "]" : "", port,
                           *export ? "/" : "", export);
}
