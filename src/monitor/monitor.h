/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The QMP server around one machine: one client at a time, the next one waits. Runs on the
 * machine's main thread.
 */
#pragma once

#include <glib.h>

#include "machine/machine.h"

typedef struct Monitor Monitor;

/* @where: "unix:PATH" (a server socket, made here) or "fd:N" (a listening or connected socket,
 * taken over). */
Monitor *monitor_new(Machine *m, const char *where, GError **err);
/* Sends what is still to be sent, if the client takes it at once. Before machine_free; NULL is
 * accepted. */
void monitor_free(Monitor *monitor);
