/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Listening sockets. @what ("QMP") begins every message. -1 and @err on failure. */
#pragma once

#include <glib.h>
#include <stdbool.h>

/* A socket file that only its owner may connect to; a stale one there is replaced. */
int listen_unix(const char *what, const char *path, GError **err);
/* "ADDRESS:PORT", with numbers only: "127.0.0.1:1234", "[::1]:1234". */
int listen_tcp(const char *what, const char *where, GError **err);
/* Whether @where is such an address, and one that other hosts can reach. */
bool listen_tcp_is_remote(const char *where);
