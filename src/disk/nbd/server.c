/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Exports and clients. docs/nbd.md */
#include "disk/nbd/server-private.h"

#include "base/error.h"
#include "disk/bitmap.h"

#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

static void export_free(gpointer data)
{
    NbdExport *export = data;
    for (unsigned i = 0; i < export->n_contexts; i++)
        g_free(export->contexts[i].name);
    if (export->node && !export->read_only)
        block_flush(export->node);
    block_unref(export->node);
    g_free(export->name);
    g_free(export->description);
    g_free(export);
}
G_DEFINE_AUTOPTR_CLEANUP_FUNC(NbdExport, export_free)

NbdServer *nbd_server_new(const NbdServerConfig *config)
{
    NbdServer *server = g_new0(NbdServer, 1);
    server->config = *config;
    server->config.clients = CLAMP(config->clients, 1, NBD_SERVER_CLIENTS_MAX);
    if (!server->config.handshake_seconds)
        server->config.handshake_seconds = NBD_SERVER_HANDSHAKE_SECONDS;
    server->exports = g_ptr_array_new_with_free_func(export_free);
    server->connections = g_ptr_array_new();
    g_mutex_init(&server->lock);
    g_cond_init(&server->changed);
    return server;
}

void nbd_server_free(NbdServer *server)
{
    if (!server)
        return;
    g_mutex_lock(&server->lock);
    server->stopping = true;
    for (guint i = 0; i < server->connections->len; i++) {
        NbdConnection *c = g_ptr_array_index(server->connections, i);
        nbd_channel_shut(c->channel);
    }
    while (server->connections->len > 0)
        g_cond_wait(&server->changed, &server->lock);
    g_mutex_unlock(&server->lock);
    g_ptr_array_unref(server->connections);
    g_ptr_array_unref(server->exports);
    g_mutex_clear(&server->lock);
    g_cond_clear(&server->changed);
    g_free(server);
}

static bool add_context(NbdExport *export, NbdContextKind kind, const char *bitmap, GError **err)
{
    if (export->n_contexts == NBD_CONTEXTS_MAX)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "export '%s' has more than %u bitmaps",
                          export->name, NBD_CONTEXTS_MAX - 2);
    NbdContext *context = &export->contexts[export->n_contexts++];
    context->kind = kind;
    context->name = kind == NBD_ALLOCATION ? g_strdup(NBD_CONTEXT_ALLOCATION)
                    : kind == NBD_DEPTH    ? g_strdup(NBD_CONTEXT_DEPTH)
                                           : g_strconcat(NBD_CONTEXT_BITMAP, bitmap, NULL);
    context->bitmap = bitmap ? context->name + strlen(NBD_CONTEXT_BITMAP) : NULL;
    return true;
}

/* A bitmap of the image, or of one that it is based on. */
static bool add_bitmap(NbdExport *export, const char *bitmap, GError **err)
{
    BlockNode *node = export->node;
    while (node && !block_bitmap_check(node, bitmap, NULL))
        node = block_backing(node);
    if (!node)
        return lodge_fail(err, LODGE_ERROR_NOT_FOUND, "Bitmap '%s' is not found", bitmap);
    if (!add_context(export, NBD_BITMAP, bitmap, err))
        return false;
    export->contexts[export->n_contexts - 1].node = node;
    return true;
}

static bool check_config(NbdServer *server, const NbdExportConfig *config, GError **err)
{
    uint64_t disk = block_size(config->node);
    if (strlen(config->name) > NBD_STRING_MAX)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "export name '%s' too long", config->name);
    if (config->description && strlen(config->description) > NBD_STRING_MAX)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "export description '%s' too long",
                          config->description);
    for (guint i = 0; i < server->exports->len; i++) {
        const NbdExport *other = g_ptr_array_index(server->exports, i);
        if (!strcmp(other->name, config->name))
            return lodge_fail(err, LODGE_ERROR_EXISTS, "NBD server already has export named '%s'",
                              config->name);
    }
    if (!range_within(config->offset, config->size, disk))
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "export '%s' of %" G_GUINT64_FORMAT " bytes at %" G_GUINT64_FORMAT
                          " is not within the disk of %" G_GUINT64_FORMAT,
                          config->name, config->size, config->offset, disk);
    return true;
}

bool nbd_server_add(NbdServer *server, const NbdExportConfig *config, GError **err)
{
    if (!check_config(server, config, err))
        return false;
    g_autoptr(NbdExport) export = g_new0(NbdExport, 1);
    export->name = g_strdup(config->name);
    export->description = g_strdup(config->description);
    export->node = block_ref(config->node);
    export->offset = config->offset;
    export->size = config->size ? config->size : block_size(config->node) - config->offset;
    export->read_only = config->read_only || block_read_only(config->node);
    if (!add_context(export, NBD_ALLOCATION, NULL, err) ||
        (config->allocation_depth && !add_context(export, NBD_DEPTH, NULL, err)))
        return false;
    for (const char *const *b = config->bitmaps; b && *b; b++) {
        if (!add_bitmap(export, *b, err))
            return false;
    }
    g_ptr_array_add(server->exports, g_steal_pointer(&export));
    return true;
}

uint16_t nbd_export_flags(const NbdConnection *c, const NbdExport *export)
{
    unsigned flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_FLUSH | NBD_FLAG_FUA | NBD_FLAG_CACHE;
    flags |= export->read_only ? NBD_FLAG_READ_ONLY
                               : NBD_FLAG_TRIM | NBD_FLAG_WRITE_ZEROES | NBD_FLAG_FAST_ZERO;
    if (c->structured)
        flags |= NBD_FLAG_DF;
    /* All connections go to one image: what one has flushed, all have. */
    if (c->server->config.clients > 1)
        flags |= NBD_FLAG_MULTI_CONN;
    return (uint16_t)flags;
}

static void connection_free(NbdConnection *c)
{
    nbd_channel_free(c->channel);
    g_mutex_clear(&c->receive);
    g_mutex_clear(&c->send);
    g_mutex_clear(&c->lock);
    g_cond_clear(&c->room);
    g_free(c);
}

/* sendfile would raise it, and it would end the program. */
static void block_sigpipe(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
}

static gpointer connection_main(gpointer data)
{
    NbdConnection *c = data;
    NbdServer *server = c->server;
    g_autoptr(GError) error = NULL;
    block_sigpipe();
    nbd_channel_deadline(c->channel, server->config.handshake_seconds);
    bool negotiated = nbd_negotiate(c, &error);
    if (negotiated) {
        nbd_channel_deadline(c->channel, 0);
        nbd_serve_requests(c);
    } else if (error && server->config.log) {
        g_autofree char *text = g_strdup_printf("option negotiation failed: %s", error->message);
        server->config.log(server->config.opaque, text);
    }
    nbd_channel_shut(c->channel);
    g_mutex_lock(&server->lock);
    g_ptr_array_remove_fast(server->connections, c);
    connection_free(c);
    if (server->config.gone)
        server->config.gone(server->config.opaque, negotiated, server->connections->len);
    g_cond_broadcast(&server->changed);
    g_mutex_unlock(&server->lock);
    return NULL;
}

void nbd_server_client(NbdServer *server, int fd)
{
    g_mutex_lock(&server->lock);
    if (server->stopping || server->connections->len >= server->config.clients) {
        close(fd);
        g_mutex_unlock(&server->lock);
        return;
    }
    NbdConnection *c = g_new0(NbdConnection, 1);
    c->server = server;
    c->channel = nbd_channel_new(fd);
    g_mutex_init(&c->receive);
    g_mutex_init(&c->send);
    g_mutex_init(&c->lock);
    g_cond_init(&c->room);
    g_ptr_array_add(server->connections, c);
    GThread *thread = g_thread_try_new("nbd-client", connection_main, c, NULL);
    if (thread) {
        g_thread_unref(thread);
    } else {
        g_ptr_array_remove_fast(server->connections, c);
        connection_free(c);
    }
    g_mutex_unlock(&server->lock);
}

unsigned nbd_server_clients(NbdServer *server)
{
    g_mutex_lock(&server->lock);
    unsigned n = server->connections->len;
    g_mutex_unlock(&server->lock);
    return n;
}
