/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A QMP client over a UNIX socket: asynchronous, on one GMainContext, one thread. The handshake
 * (greeting, qmp_capabilities) is its own business.
 */
#pragma once

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#define QMP_LINE_MAX (8u << 20) /* bytes of one message; a peer that sends more is cut off */

typedef struct QmpClient QmpClient;

typedef struct QmpClientHandlers {
    /* Commands may be sent. May be NULL. */
    void (*ready)(void *opaque);
    /* @data is an object, owned by the caller. May be NULL. */
    void (*event)(void *opaque, const char *name, const json_t *data);
    /* The connection failed or ended; nothing more is called. Commands under way were answered with
     * an error before. The client still has to be freed. May be NULL. */
    void (*closed)(void *opaque, const GError *error);
} QmpClientHandlers;

/* @result: the "return" value, owned by the caller; NULL: @error says why. */
typedef void (*QmpReply)(void *opaque, const json_t *result, const GError *error);

/*
 * Connects to the socket at @path, trying again while it is not there yet for @timeout_ms (the
 * process that makes it may be starting). @context NULL: the default one.
 */
QmpClient *qmp_client_new(const char *path, unsigned timeout_ms, const QmpClientHandlers *handlers,
                          void *opaque, GMainContext *context);
/* On a connected socket, which it owns. */
QmpClient *qmp_client_new_fd(int fd, const QmpClientHandlers *handlers, void *opaque,
                             GMainContext *context);
void qmp_client_free(QmpClient *client); /* commands under way are answered with CANCELLED */

/*
 * Sends @command; takes @arguments (an object, or NULL). Before the client is ready commands wait.
 * @reply may be NULL.
 */
void qmp_client_execute(QmpClient *client, const char *command, json_t *arguments, QmpReply reply,
                        void *opaque);
/* Runs the context until the answer is there, at most @timeout_ms. The caller owns the result. */
json_t *qmp_client_call(QmpClient *client, const char *command, json_t *arguments,
                        unsigned timeout_ms, GError **err);
