/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The client's side of the negotiation (proto.md, "Newstyle negotiation"). */
#include "disk/nbd/client.h"

#include "base/error.h"
#include "disk/nbd/wire.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* Names and descriptions are 4096 bytes at most; no reply to an option is longer than two and a
 * head. */
#define REPLY_MAX     16384u
#define REPLIES_MAX   10000u /* to one option: exports of a server */
#define OLDSTYLE_REST 124u

typedef struct Reply {
    uint32_t type, length;
    uint8_t data[REPLY_MAX + 1]; /* a NUL follows */
} Reply;

static int connect_unix(const char *path, GError **err)
{
    struct sockaddr_un where = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof(where.sun_path)) {
        lodge_fail(err, LODGE_ERROR_LIMIT,
                   "UNIX socket path '%s' is too long\nPath must be less than %zu bytes", path,
                   sizeof(where.sun_path));
        return -1;
    }
    strcpy(where.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&where, sizeof(where)) == 0)
        return fd;
    lodge_fail_errno(err, errno, "Failed to connect to '%s'", path);
    if (fd >= 0)
        close(fd);
    return -1;
}

static int connect_tcp(const char *host, const char *port, GError **err)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found = NULL;
    int fd = -1, one = 1, problem = ENOENT, result = getaddrinfo(host, port, &hints, &found);
    if (result != 0) {
        lodge_fail(err, LODGE_ERROR_NOT_FOUND, "address resolution failed for %s:%s: %s", host,
                   port, gai_strerror(result));
        return -1;
    }
    for (const struct addrinfo *a = found; a && fd < 0; a = a->ai_next) {
        fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd >= 0 && connect(fd, a->ai_addr, a->ai_addrlen) == 0)
            break;
        problem = errno;
        if (fd >= 0)
            close(fd);
        fd = -1;
    }
    freeaddrinfo(found);
    if (fd < 0) {
        lodge_fail_errno(err, problem, "Failed to connect to '%s:%s'", host, port);
        return -1;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
    return fd;
}

int nbd_client_connect(const NbdClientConfig *config, GError **err)
{
    return config->path ? connect_unix(config->path, err)
                        : connect_tcp(config->host, config->port ? config->port : NBD_PORT, err);
}

/* ---- options and their replies */

static bool broken(int result, const char *what, GError **err)
{
    return lodge_fail_errno(err, -result, "Failed to %s", what);
}

static bool send_option(NbdChannel *c, uint32_t option, const void *data, uint32_t length,
                        GError **err)
{
    uint8_t head[NBD_OPTION_SIZE];
    nbd_option_put(head, option, length);
    struct iovec iov[] = {{head, sizeof(head)}, {(void *)data, length}};
    int result = nbd_channel_writev(c, iov, 2, sizeof(head) + length, false);
    return result == 0 || broken(result, "send option request", err);
}

static bool receive_reply(NbdChannel *c, uint32_t option, Reply *reply, GError **err)
{
    uint8_t head[NBD_OPTION_REPLY_SIZE];
    NbdOptionReply got;
    int result = nbd_channel_read(c, head, sizeof(head));
    if (result < 0)
        return broken(result, "read option reply", err);
    if (!nbd_option_reply_get(head, &got))
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "Unexpected option reply magic");
    if (got.option != option)
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "Unexpected option type %u (%s), expected %u (%s)", got.option,
                          nbd_option_name(got.option), option, nbd_option_name(option));
    if (got.length > REPLY_MAX)
        return lodge_fail(err, LODGE_ERROR_LIMIT,
                          "the server's reply to option %u (%s) has %u bytes", option,
                          nbd_option_name(option), got.length);
    reply->type = got.type;
    reply->length = got.length;
    reply->data[got.length] = '\0';
    result = nbd_channel_read(c, reply->data, got.length);
    return result == 0 || broken(result, "read option reply", err);
}

/* A refusal in words, and good-bye to the server; always false. */
static bool refused(NbdChannel *c, uint32_t option, const Reply *reply, GError **err)
{
    static const struct {
        uint32_t type;
        const char *text; /* %u, %s: the option */
    } texts[] = {
        {NBD_REP_ERR_UNSUP, "Unsupported option type %u (%s)"},
        {NBD_REP_ERR_POLICY, "Denied by server for option %u (%s)"},
        {NBD_REP_ERR_INVALID, "Invalid parameters for option %u (%s)"},
        {NBD_REP_ERR_PLATFORM, "Server lacks support for option %u (%s)"},
        {NBD_REP_ERR_TLS_REQD, "TLS negotiation required before option %u (%s)"},
        {NBD_REP_ERR_SHUTDOWN, "Server shutting down before option %u (%s)"},
        {NBD_REP_ERR_BLOCK_SIZE, "Server requires INFO_BLOCK_SIZE for option %u (%s)"},
    };
    g_autoptr(GString) text = g_string_new(NULL);
    if (reply->type == NBD_REP_ERR_UNKNOWN)
        g_string_append(text, "Requested export not available");
    for (size_t i = 0; i < G_N_ELEMENTS(texts); i++) {
        const char *format = texts[i].text, *hole = strstr(format, "%u");
        if (texts[i].type == reply->type)
            g_string_append_printf(text, "%.*s%u (%s)", (int)(hole - format), format, option,
                                   nbd_option_name(option));
    }
    if (text->len == 0)
        g_string_append_printf(text, "Unknown error code when asking for option %u (%s)", option,
                               nbd_option_name(option));
    if (reply->type == NBD_REP_ERR_TLS_REQD)
        g_string_append(text, "\nDid you forget a valid tls-creds?");
    if (reply->length > 0 && reply->length <= NBD_STRING_MAX &&
        g_utf8_validate((const char *)reply->data, reply->length, NULL))
        g_string_append_printf(text, "\nserver reported: %s", (const char *)reply->data);
    send_option(c, NBD_OPT_ABORT, NULL, 0, NULL);
    return lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "%s", text->str);
}

static bool is_error(const Reply *reply)
{
    return reply->type >= NBD_REP_ERROR(0);
}

/* An option with nothing but an acknowledgement for an answer; *granted may be false. */
static bool simple_option(NbdChannel *c, uint32_t option, bool must, bool *granted, GError **err)
{
    Reply reply;
    *granted = false;
    if (!send_option(c, option, NULL, 0, err) || !receive_reply(c, option, &reply, err))
        return false;
    if (is_error(&reply))
        return must ? refused(c, option, &reply, err) : true;
    if (reply.type != NBD_REP_ACK || reply.length)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "Unexpected reply to option %u (%s)", option,
                          nbd_option_name(option));
    *granted = true;
    return true;
}

/* ---- the steps */

static GByteArray *put_string(GByteArray *into, const char *text)
{
    uint8_t length[4];
    be32_put(length, (uint32_t)strlen(text));
    g_byte_array_append(into, length, sizeof(length));
    return g_byte_array_append(into, (const uint8_t *)text, (guint)strlen(text));
}

static bool set_context(NbdChannel *c, const NbdClientConfig *config, NbdClientExport *export,
                        GError **err)
{
    g_autoptr(GByteArray) data = g_byte_array_new();
    static const uint8_t one[4] = {0, 0, 0, 1};
    Reply reply;
    put_string(data, config->export);
    g_byte_array_append(data, one, sizeof(one));
    put_string(data, config->context);
    if (!send_option(c, NBD_OPT_SET_META_CONTEXT, data->data, data->len, err))
        return false;
    for (unsigned n = 0; n < 3; n++) {
        if (!receive_reply(c, NBD_OPT_SET_META_CONTEXT, &reply, err))
            return false;
        if (is_error(&reply) || reply.type == NBD_REP_ACK)
            return true;
        if (reply.type != NBD_REP_META_CONTEXT || reply.length < 4 || export->has_context ||
            strcmp((const char *)reply.data + 4, config->context))
            break;
        export->has_context = true;
        export->context = be32_get(reply.data);
    }
    return lodge_fail(err, LODGE_ERROR_CORRUPT, "the server answers with another context than '%s'",
                      config->context);
}

static bool take_info(const Reply *reply, NbdClientExport *export, bool *sized, GError **err)
{
    unsigned type = reply->length >= 2 ? be16_get(reply->data) : UINT16_MAX + 1u;
    if (type == NBD_INFO_EXPORT && reply->length == 12) {
        export->size = be64_get(reply->data + 2);
        export->flags = be16_get(reply->data + 10);
        *sized = true;
    } else if (type == NBD_INFO_BLOCK_SIZE && reply->length == 14) {
        export->min_block = be32_get(reply->data + 2);
        export->preferred_block = be32_get(reply->data + 6);
        export->max_block = be32_get(reply->data + 10);
    } else if (type == NBD_INFO_DESCRIPTION && export->contexts) {
        g_free(export->description);
        export->description = g_strdup((const char *)reply->data + 2);
    } else if (type <= NBD_INFO_BLOCK_SIZE && type != NBD_INFO_NAME &&
               type != NBD_INFO_DESCRIPTION) {
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "the server's info %u has %u bytes", type,
                          reply->length);
    } else if (type > UINT16_MAX) {
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "the server's info has no type");
    }
    return true;
}

/* NBD_OPT_INFO or NBD_OPT_GO; *known is false when the server has not heard of it. */
static bool ask(NbdChannel *c, uint32_t option, const char *name, NbdClientExport *export,
                bool *known, GError **err)
{
    static const uint8_t wanted[] = {0, 2, 0, NBD_INFO_BLOCK_SIZE, 0, NBD_INFO_DESCRIPTION};
    g_autoptr(GByteArray) data = g_byte_array_new();
    Reply reply;
    bool sized = false;
    *known = true;
    put_string(data, name);
    g_byte_array_append(data, wanted, sizeof(wanted));
    if (!send_option(c, option, data->data, data->len, err))
        return false;
    for (unsigned n = 0; n < 64; n++) {
        if (!receive_reply(c, option, &reply, err))
            return false;
        if (reply.type == NBD_REP_ERR_UNSUP) {
            *known = false;
            return true;
        }
        if (is_error(&reply))
            return refused(c, option, &reply, err);
        if (reply.type == NBD_REP_ACK)
            return sized ||
                   lodge_fail(err, LODGE_ERROR_CORRUPT, "broken server omitted NBD_INFO_EXPORT");
        if (reply.type != NBD_REP_INFO)
            break;
        if (!take_info(&reply, export, &sized, err))
            return false;
    }
    return lodge_fail(err, LODGE_ERROR_CORRUPT, "Unexpected reply to option %u (%s)", option,
                      nbd_option_name(option));
}

/* The way of servers without NBD_OPT_GO: no answer but the export, or the end of the connection. */
static bool export_name(NbdChannel *c, const char *name, bool zeroes, NbdClientExport *export,
                        GError **err)
{
    uint8_t reply[10];
    if (!send_option(c, NBD_OPT_EXPORT_NAME, name, (uint32_t)strlen(name), err))
        return false;
    int result = nbd_channel_read(c, reply, sizeof(reply));
    if (result == 0 && zeroes)
        result = nbd_channel_skip(c, OLDSTYLE_REST);
    if (result < 0)
        return broken(result, "read export length (does the export exist?)", err);
    export->size = be64_get(reply);
    export->flags = be16_get(reply + 8);
    return true;
}

static bool oldstyle(NbdChannel *c, const NbdClientConfig *config, NbdClientExport *export,
                     GError **err)
{
    uint8_t rest[12];
    if (config->tls)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "Server does not support STARTTLS");
    if (*config->export)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "Server does not support non-empty export names");
    int result = nbd_channel_read(c, rest, sizeof(rest));
    if (result == 0)
        result = nbd_channel_skip(c, OLDSTYLE_REST);
    if (result < 0)
        return broken(result, "read export length", err);
    export->size = be64_get(rest);
    export->flags = (uint16_t)be32_get(rest + 8);
    return true;
}

typedef enum Greeting { GREETING_BAD, GREETING_OLD, GREETING_NEW, GREETING_FIXED } Greeting;

static Greeting greet(NbdChannel *c, bool *zeroes, GError **err)
{
    uint8_t hello[16], flags[4];
    int result = nbd_channel_read(c, hello, sizeof(hello));
    if (result < 0)
        return broken(result, "read initial magic", err), GREETING_BAD;
    if (be64_get(hello) != NBD_INIT_MAGIC) {
        lodge_fail(err, LODGE_ERROR_CORRUPT, "Bad initial magic received: it is no NBD server");
        return GREETING_BAD;
    }
    if (be64_get(hello + 8) == NBD_OLDSTYLE_MAGIC)
        return GREETING_OLD;
    if (be64_get(hello + 8) != NBD_OPTION_MAGIC) {
        lodge_fail(err, LODGE_ERROR_CORRUPT, "Bad server magic received");
        return GREETING_BAD;
    }
    result = nbd_channel_read(c, flags, 2);
    unsigned given = be16_get(flags) & (NBD_HANDSHAKE_FIXED | NBD_HANDSHAKE_NO_ZEROES);
    *zeroes = !(given & NBD_HANDSHAKE_NO_ZEROES);
    be32_put(flags, given);
    if (result == 0)
        result = nbd_channel_write(c, flags, sizeof(flags), false);
    if (result < 0)
        return broken(result, "exchange handshake flags", err), GREETING_BAD;
    return given & NBD_HANDSHAKE_FIXED ? GREETING_FIXED : GREETING_NEW;
}

static bool start_tls(NbdChannel *c, const NbdClientConfig *config, GError **err)
{
    bool granted;
    return !config->tls || (simple_option(c, NBD_OPT_STARTTLS, true, &granted, err) &&
                            nbd_channel_start_tls(c, config->tls, config->hostname, err));
}

static bool fixed_newstyle(NbdChannel *c, const NbdClientConfig *config, bool zeroes,
                           NbdClientExport *export, GError **err)
{
    bool known = true;
    if (!start_tls(c, config, err) ||
        !simple_option(c, NBD_OPT_STRUCTURED_REPLY, false, &export->structured, err))
        return false;
    if (export->structured && config->context && !set_context(c, config, export, err))
        return false;
    if (!ask(c, NBD_OPT_GO, config->export, export, &known, err))
        return false;
    return known || export_name(c, config->export, zeroes, export, err);
}

/* What the server says must make sense before anybody computes with it. */
static bool check_export(NbdClientExport *export, GError **err)
{
    uint32_t min = export->min_block;
    if (export->size > INT64_MAX)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "the server offers %" G_GUINT64_FORMAT " bytes",
                          export->size);
    if (min && ((min & (min - 1)) || min > 65536 || export->max_block < min || export->size % min))
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "server requires a minimum block of %u of a size of %" G_GUINT64_FORMAT
                          " and at most %u at once",
                          min, export->size, export->max_block);
    if (!(export->flags & NBD_FLAG_HAS_FLAGS))
        export->flags = 0;
    return true;
}

bool nbd_client_negotiate(NbdChannel *c, const NbdClientConfig *config, NbdClientExport *export,
                          GError **err)
{
    bool zeroes = true, done = false;
    *export = (NbdClientExport){0};
    if (strlen(config->export) > NBD_STRING_MAX)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "export name too long to send to server");
    nbd_channel_deadline(c, NBD_CLIENT_HANDSHAKE_SECONDS);
    switch (greet(c, &zeroes, err)) {
    case GREETING_OLD:
        done = oldstyle(c, config, export, err);
        break;
    case GREETING_NEW:
        if (config->tls)
            lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "Server does not support STARTTLS");
        else
            done = export_name(c, config->export, zeroes, export, err);
        break;
    case GREETING_FIXED:
        done = fixed_newstyle(c, config, zeroes, export, err);
        break;
    case GREETING_BAD:
        break;
    }
    if (!done || !check_export(export, err))
        return false;
    nbd_channel_deadline(c, 0);
    return true;
}

/* ---- lists */

static void export_free(gpointer data)
{
    NbdClientExport *export = data;
    g_free(export->name);
    g_free(export->description);
    g_ptr_array_unref(export->contexts);
    g_free(export);
}

static bool list_names(NbdChannel *c, GPtrArray *list, GError **err)
{
    Reply reply;
    if (!send_option(c, NBD_OPT_LIST, NULL, 0, err))
        return false;
    for (unsigned n = 0; n < REPLIES_MAX; n++) {
        if (!receive_reply(c, NBD_OPT_LIST, &reply, err))
            return false;
        if (is_error(&reply))
            return refused(c, NBD_OPT_LIST, &reply, err);
        if (reply.type == NBD_REP_ACK)
            return true;
        uint32_t length = reply.length >= 4 ? be32_get(reply.data) : UINT32_MAX;
        if (reply.type != NBD_REP_SERVER || length > reply.length - 4)
            return lodge_fail(err, LODGE_ERROR_CORRUPT, "incorrect option name length");
        NbdClientExport *export = g_new0(NbdClientExport, 1);
        export->name = g_strndup((const char *)reply.data + 4, length);
        export->description = g_strdup((const char *)reply.data + 4 + length);
        export->contexts = g_ptr_array_new_with_free_func(g_free);
        g_ptr_array_add(list, export);
    }
    return lodge_fail(err, LODGE_ERROR_LIMIT, "the server has more than %u exports", REPLIES_MAX);
}

static bool list_contexts(NbdChannel *c, NbdClientExport *export, GError **err)
{
    static const uint8_t none[4];
    g_autoptr(GByteArray) data = g_byte_array_new();
    Reply reply;
    put_string(data, export->name);
    g_byte_array_append(data, none, sizeof(none));
    if (!send_option(c, NBD_OPT_LIST_META_CONTEXT, data->data, data->len, err))
        return false;
    for (unsigned n = 0; n < REPLIES_MAX; n++) {
        if (!receive_reply(c, NBD_OPT_LIST_META_CONTEXT, &reply, err))
            return false;
        if (is_error(&reply) || reply.type == NBD_REP_ACK)
            return true;
        if (reply.type != NBD_REP_META_CONTEXT || reply.length < 4)
            break;
        g_ptr_array_add(export->contexts, g_strdup((const char *)reply.data + 4));
    }
    return lodge_fail(err, LODGE_ERROR_CORRUPT, "Unexpected reply to option %u (%s)",
                      NBD_OPT_LIST_META_CONTEXT, nbd_option_name(NBD_OPT_LIST_META_CONTEXT));
}

static bool list_all(NbdChannel *c, const NbdClientConfig *config, GPtrArray *list, GError **err)
{
    bool structured;
    if (!start_tls(c, config, err) ||
        !simple_option(c, NBD_OPT_STRUCTURED_REPLY, false, &structured, err) ||
        !list_names(c, list, err))
        return false;
    for (guint i = 0; i < list->len; i++) {
        NbdClientExport *export = g_ptr_array_index(list, i);
        bool known;
        export->structured = structured;
        if (!ask(c, NBD_OPT_INFO, export->name, export, &known, err))
            return false;
        if (!known)
            return true;
        if (structured && !list_contexts(c, export, err))
            return false;
    }
    return true;
}

GPtrArray *nbd_client_list(NbdChannel *c, const NbdClientConfig *config, GError **err)
{
    g_autoptr(GPtrArray) list = g_ptr_array_new_with_free_func(export_free);
    bool zeroes;
    nbd_channel_deadline(c, NBD_CLIENT_HANDSHAKE_SECONDS);
    Greeting greeting = greet(c, &zeroes, err);
    if (greeting == GREETING_BAD)
        return NULL;
    if (greeting != GREETING_FIXED) {
        lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "Server does not support export lists");
        return NULL;
    }
    if (!list_all(c, config, list, err))
        return NULL;
    send_option(c, NBD_OPT_ABORT, NULL, 0, NULL);
    return g_steal_pointer(&list);
}
