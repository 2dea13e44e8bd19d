/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The GDB stub of one machine: one debugger at a time, the next one waits. Runs on the machine's
 * main thread. A debugger that connects stops the machine; one that leaves lets it go on.
 */
#pragma once

#include <glib.h>

#include "machine/machine.h"

typedef struct GdbServer GdbServer;

/* @where: "unix:PATH" (a server socket, made here) or "tcp:ADDRESS:PORT". */
GdbServer *gdb_server_new(Machine *m, const char *where, GError **err);
/* Before machine_free; NULL is accepted. */
void gdb_server_free(GdbServer *server);
/* Whether other hosts could reach it. */
bool gdb_where_is_remote(const char *where);
