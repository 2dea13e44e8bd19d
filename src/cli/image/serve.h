/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The parts of `serve`: what was asked for, the sockets, life in the background. */
#pragma once

#include "cli/image/image.h"
#include "disk/nbd/server.h"

typedef struct ServeOptions {
    ImageArguments arguments;
    const char *socket, *address, *port; /* -k, -b, -p */
    GPtrArray *names;                    /* -x, one an image */
    GPtrArray *bitmaps;                  /* -B */
    const char *description, *tls_creds, *tls_authz, *tls_hostname, *pid_file;
    const char *snapshot; /* -l */
    const char *cache;
    uint64_t clients, offset;
    bool read_only, persistent, verbose, depth, list, fork, temporary, keep_discard;
} ServeOptions;

/* ---- serve-listen.c */

#define SERVE_SOCKETS_MAX 16u

typedef struct ServeSockets {
    int fds[SERVE_SOCKETS_MAX];
    unsigned n;
    char *path;  /* of a UNIX socket that is ours to remove */
    char *where; /* "nbd+unix:///%s?socket=..." with %s for the export's name */
} ServeSockets;

/* One socket handed over by systemd or a test (LISTEN_FDS), else those that @o names. */
bool serve_listen(const ServeOptions *o, ServeSockets *sockets, GError **err);
void serve_close(ServeSockets *sockets);
/* Until SIGINT, SIGTERM or SIGHUP, or the last client is gone if that is the end. */
int serve_loop(const ServeOptions *o, const NbdServerConfig *config, NbdServer *server,
               ServeSockets *sockets, int gone);

/* ---- serve-background.c */

typedef struct ServeBackground {
    int ready, old_stderr; /* -1: not in the background */
} ServeBackground;
/*
 * The parent waits in here until its child serves, and does not come back: it exits as the child
 * fared. True in the child; false with a message.
 */
bool serve_fork(ServeBackground *background, bool verbose);
void serve_is_ready(ServeBackground *background);

/* ---- serve-list.c */

/* -L; the exit status. */
int serve_list(const ServeOptions *o, const NbdTls *tls);
