/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The server's side of the fixed newstyle negotiation (proto.md, "Newstyle negotiation"). */
#include "disk/nbd/server-private.h"

#include "base/error.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>

/* Of one option: names are 4096 bytes at most, and a client asks for a few contexts. */
#define OPTION_MAX KIB(64)
/* In one negotiation; a client that asks for all there is needs some ten. */
#define OPTIONS_MAX 4096u
/* What a client is told to use: whole pages. */
#define PREFERRED_BLOCK 4096u

typedef struct Option {
    NbdConnection *c;
    uint32_t number, length;
    const uint8_t *data;
} Option;

/* What an option leads to. */
typedef enum Step { STEP_NEXT, STEP_TRANSMISSION, STEP_CLOSE } Step;

/* All answers: -errno or 0. */
static int answer(const Option *o, uint32_t type, const void *data, uint32_t length)
{
    uint8_t head[NBD_OPTION_REPLY_SIZE];
    nbd_option_reply_put(head, o->number, type, length);
    struct iovec iov[] = {{head, sizeof(head)}, {(void *)data, length}};
    return nbd_channel_writev(o->c->channel, iov, 2, sizeof(head) + length, false);
}

static int refuse(const Option *o, uint32_t type, const char *format, ...) G_GNUC_PRINTF(3, 4);
static int refuse(const Option *o, uint32_t type, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *text = g_strdup_vprintf(format, args);
    va_end(args);
    return answer(o, type, text, (uint32_t)MIN(strlen(text), NBD_STRING_MAX));
}

static int refuse_length(const Option *o)
{
    return refuse(o, NBD_REP_ERR_INVALID, "option '%s' has unexpected length",
                  nbd_option_name(o->number));
}

static Step next(int result)
{
    return result < 0 ? STEP_CLOSE : STEP_NEXT;
}

static NbdExport *find_export(NbdConnection *c, const uint8_t *name, uint32_t length)
{
    for (guint i = 0; i < c->server->exports->len; i++) {
        NbdExport *export = g_ptr_array_index(c->server->exports, i);
        if (strlen(export->name) == length && !memcmp(export->name, name, length))
            return export;
    }
    return NULL;
}

/* Takes a string with its length in front from the option's data at *at. */
static bool take_string(const Option *o, uint32_t *at, const uint8_t **text, uint32_t *length)
{
    if (o->length - *at < 4)
        return false;
    *length = be32_get(o->data + *at);
    *at += 4;
    if (*length > NBD_STRING_MAX || *length > o->length - *at)
        return false;
    *text = o->data + *at;
    *at += *length;
    return true;
}

static void enter(NbdConnection *c, NbdExport *export)
{
    c->export = export;
    if (c->context_export != export)
        c->contexts = 0;
}

static Step export_name(const Option *o)
{
    NbdConnection *c = o->c;
    NbdExport *export = find_export(c, o->data, o->length);
    uint8_t reply[10 + 124] = {0};
    if (!export) /* this option has no way to say so */
        return STEP_CLOSE;
    enter(c, export);
    be64_put(reply, export->size);
    be16_put(reply + 8, nbd_export_flags(c, export));
    return nbd_channel_write(c->channel, reply, c->no_zeroes ? 10 : sizeof(reply), false) < 0
               ? STEP_CLOSE
               : STEP_TRANSMISSION;
}

static Step list(const Option *o)
{
    if (o->length)
        return next(refuse_length(o));
    for (guint i = 0; i < o->c->server->exports->len; i++) {
        const NbdExport *export = g_ptr_array_index(o->c->server->exports, i);
        uint8_t reply[4 + 2 * NBD_STRING_MAX];
        size_t name = strlen(export->name);
        size_t description = export->description ? strlen(export->description) : 0;
        be32_put(reply, (uint32_t)name);
        memcpy(reply + 4, export->name, name);
        if (description)
            memcpy(reply + 4 + name, export->description, description);
        if (answer(o, NBD_REP_SERVER, reply, (uint32_t)(4 + name + description)) < 0)
            return STEP_CLOSE;
    }
    return next(answer(o, NBD_REP_ACK, NULL, 0));
}

static int inform(const Option *o, uint16_t type, const void *data, size_t length)
{
    uint8_t reply[2 + NBD_STRING_MAX];
    be16_put(reply, type);
    memcpy(reply + 2, data, length);
    return answer(o, NBD_REP_INFO, reply, (uint32_t)(2 + length));
}

static int inform_all(const Option *o, const NbdExport *export, bool name, bool description)
{
    uint8_t sizes[12], basics[10];
    /* Requests are not bound to sectors; the disk of an image found by probing is, at its start. */
    be32_put(sizes, 1);
    be32_put(sizes + 4, PREFERRED_BLOCK);
    be32_put(sizes + 8, NBD_REQUEST_MAX);
    be64_put(basics, export->size);
    be16_put(basics + 8, nbd_export_flags(o->c, export));
    int result = 0;
    if (name)
        result = inform(o, NBD_INFO_NAME, export->name, strlen(export->name));
    if (result == 0 && description && export->description)
        result = inform(o, NBD_INFO_DESCRIPTION, export->description, strlen(export->description));
    if (result == 0)
        result = inform(o, NBD_INFO_BLOCK_SIZE, sizes, sizeof(sizes));
    if (result == 0)
        result = inform(o, NBD_INFO_EXPORT, basics, sizeof(basics));
    return result == 0 ? answer(o, NBD_REP_ACK, NULL, 0) : result;
}

/* NBD_OPT_INFO and NBD_OPT_GO: a name, and which infos are wanted. */
static Step info(const Option *o)
{
    const uint8_t *name;
    uint32_t at = 0, length;
    bool want_name = false, want_description = false;
    if (!take_string(o, &at, &name, &length) || o->length - at < 2)
        return next(refuse_length(o));
    unsigned n = be16_get(o->data + at);
    at += 2;
    if (o->length - at != n * 2)
        return next(refuse_length(o));
    for (unsigned i = 0; i < n; i++) {
        uint16_t want = be16_get(o->data + at + 2 * i);
        want_name |= want == NBD_INFO_NAME;
        want_description |= want == NBD_INFO_DESCRIPTION;
    }
    NbdExport *export = find_export(o->c, name, length);
    if (!export)
        return next(refuse(o, NBD_REP_ERR_UNKNOWN, "export '%.*s' not present", (int)length,
                           (const char *)name));
    int result = inform_all(o, export, want_name, want_description);
    if (result < 0 || o->number == NBD_OPT_INFO)
        return next(result);
    enter(o->c, export);
    return STEP_TRANSMISSION;
}

/* Which contexts of @export a query means. The whole namespace can only be listed. */
static uint32_t match(const Option *o, const NbdExport *export, const uint8_t *query,
                      uint32_t length)
{
    uint32_t found = 0;
    bool prefix = o->number == NBD_OPT_LIST_META_CONTEXT && length > 0 && query[length - 1] == ':';
    for (unsigned i = 0; i < export->n_contexts; i++) {
        const char *name = export->contexts[i].name;
        size_t size = strlen(name);
        if ((size == length || (prefix && size > length)) && !memcmp(name, query, length))
            found |= UINT32_C(1) << i;
    }
    return found;
}

static Step meta_context(const Option *o)
{
    NbdConnection *c = o->c;
    bool set = o->number == NBD_OPT_SET_META_CONTEXT;
    const uint8_t *text;
    uint32_t at = 0, length, chosen = 0;
    if (set)
        c->contexts = 0;
    if (!c->structured)
        return next(refuse(o, NBD_REP_ERR_INVALID,
                           "request option '%s' when structured reply is not negotiated",
                           nbd_option_name(o->number)));
    if (!take_string(o, &at, &text, &length))
        return next(refuse_length(o));
    NbdExport *export = find_export(c, text, length);
    if (!export)
        return next(refuse(o, NBD_REP_ERR_UNKNOWN, "export '%.*s' not present", (int)length,
                           (const char *)text));
    if (o->length - at < 4)
        return next(refuse_length(o));
    uint32_t queries = be32_get(o->data + at);
    at += 4;
    for (uint32_t i = 0; i < queries; i++) {
        if (!take_string(o, &at, &text, &length))
            return next(refuse_length(o));
        chosen |= match(o, export, text, length);
    }
    if (at != o->length)
        return next(refuse_length(o));
    if (queries == 0 && !set)
        chosen = UINT32_MAX;
    for (unsigned i = 0; i < export->n_contexts; i++) {
        uint8_t reply[4 + NBD_STRING_MAX];
        size_t size = MIN(strlen(export->contexts[i].name), NBD_STRING_MAX);
        if (!(chosen >> i & 1))
            continue;
        be32_put(reply, set ? i : 0);
        memcpy(reply + 4, export->contexts[i].name, size);
        if (answer(o, NBD_REP_META_CONTEXT, reply, (uint32_t)(4 + size)) < 0)
            return STEP_CLOSE;
    }
    if (set) {
        c->contexts = chosen;
        c->context_export = export;
    }
    return next(answer(o, NBD_REP_ACK, NULL, 0));
}

static Step start_tls(const Option *o, GError **err)
{
    NbdConnection *c = o->c;
    if (o->length)
        return next(refuse_length(o));
    if (c->encrypted)
        return next(refuse(o, NBD_REP_ERR_INVALID, "TLS already enabled"));
    if (!c->server->config.tls)
        return next(refuse(o, NBD_REP_ERR_POLICY, "TLS not configured"));
    if (answer(o, NBD_REP_ACK, NULL, 0) < 0 ||
        !nbd_channel_start_tls(c->channel, c->server->config.tls, NULL, err))
        return STEP_CLOSE;
    c->encrypted = true;
    /* What was said in the clear does not count. */
    c->structured = false;
    c->contexts = 0;
    return STEP_NEXT;
}

static Step structured_reply(const Option *o)
{
    if (o->length)
        return next(refuse_length(o));
    if (o->c->structured)
        return next(refuse(o, NBD_REP_ERR_INVALID, "structured reply already negotiated"));
    o->c->structured = true;
    return next(answer(o, NBD_REP_ACK, NULL, 0));
}

static Step option(const Option *o, GError **err)
{
    if (o->c->server->config.tls && !o->c->encrypted && o->number != NBD_OPT_STARTTLS &&
        o->number != NBD_OPT_ABORT) {
        if (o->number == NBD_OPT_EXPORT_NAME)
            return STEP_CLOSE;
        return next(
            refuse(o, NBD_REP_ERR_TLS_REQD, "Option 0x%x not permitted before TLS", o->number));
    }
    switch (o->number) {
    case NBD_OPT_EXPORT_NAME:
        return export_name(o);
    case NBD_OPT_ABORT:
        answer(o, NBD_REP_ACK, NULL, 0);
        return STEP_CLOSE;
    case NBD_OPT_LIST:
        return list(o);
    case NBD_OPT_STARTTLS:
        return start_tls(o, err);
    case NBD_OPT_INFO:
    case NBD_OPT_GO:
        return info(o);
    case NBD_OPT_STRUCTURED_REPLY:
        return structured_reply(o);
    case NBD_OPT_LIST_META_CONTEXT:
    case NBD_OPT_SET_META_CONTEXT:
        return meta_context(o);
    default:
        return next(refuse(o, NBD_REP_ERR_UNSUP, "Unsupported option %u (%s)", o->number,
                           nbd_option_name(o->number)));
    }
}

static bool read_all(NbdConnection *c, void *buffer, size_t length, const char *what, GError **err)
{
    int result = nbd_channel_read(c->channel, buffer, length);
    if (result == -EPIPE || result == -ECONNRESET)
        return lodge_fail(err, LODGE_ERROR_IO,
                          "Failed to read %s: Unexpected end-of-file before all bytes were read",
                          what);
    return result == 0 || lodge_fail_errno(err, -result, "Failed to read %s", what);
}

static bool greet(NbdConnection *c, GError **err)
{
    uint8_t hello[18], flags[4];
    be64_put(hello, NBD_INIT_MAGIC);
    be64_put(hello + 8, NBD_OPTION_MAGIC);
    be16_put(hello + 16, NBD_HANDSHAKE_FIXED | NBD_HANDSHAKE_NO_ZEROES);
    int result = nbd_channel_write(c->channel, hello, sizeof(hello), false);
    if (result < 0)
        return lodge_fail_errno(err, -result, "Failed to greet the client");
    if (!read_all(c, flags, sizeof(flags), "flags", err))
        return false;
    uint32_t given = be32_get(flags);
    c->fixed = given & NBD_HANDSHAKE_FIXED;
    c->no_zeroes = given & NBD_HANDSHAKE_NO_ZEROES;
    return !(given & ~(uint32_t)(NBD_HANDSHAKE_FIXED | NBD_HANDSHAKE_NO_ZEROES)) ||
           lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "Unknown client flags 0x%x received", given);
}

static Step read_option(NbdConnection *c, uint8_t *data, GError **err)
{
    uint8_t head[NBD_OPTION_SIZE];
    if (!read_all(c, head, sizeof(head), "opts magic", err))
        return STEP_CLOSE;
    Option o = {c, be32_get(head + 8), be32_get(head + 12), data};
    if (be64_get(head) != NBD_OPTION_MAGIC) {
        lodge_fail(err, LODGE_ERROR_CORRUPT, "Bad magic received");
        return STEP_CLOSE;
    }
    if (!c->fixed && o.number != NBD_OPT_EXPORT_NAME) {
        lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "Unsupported option %u (%s)", o.number,
                   nbd_option_name(o.number));
        return STEP_CLOSE;
    }
    if (o.length > OPTION_MAX) {
        lodge_fail(err, LODGE_ERROR_LIMIT, "option '%s' of %u bytes", nbd_option_name(o.number),
                   o.length);
        return STEP_CLOSE;
    }
    return read_all(c, data, o.length, "option data", err) ? option(&o, err) : STEP_CLOSE;
}

bool nbd_negotiate(NbdConnection *c, GError **err)
{
    g_autofree uint8_t *data = g_malloc(OPTION_MAX);
    if (!greet(c, err))
        return false;
    for (unsigned n = 0; n < OPTIONS_MAX; n++) {
        Step step = read_option(c, data, err);
        if (step != STEP_NEXT)
            return step == STEP_TRANSMISSION;
    }
    return lodge_fail(err, LODGE_ERROR_LIMIT, "the client sent more than %u options", OPTIONS_MAX);
}
