/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One client's conversation, without its socket: bytes in, bytes out. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "machine/machine.h"
#include "protocol/qmp.h"

typedef struct QmpSession QmpSession;

/* Sends @size bytes to the client. */
typedef void (*QmpSend)(void *opaque, const char *data, size_t size);

/* Sends the greeting. */
QmpSession *qmp_session_new(Machine *m, QmpSend send, void *opaque);
void qmp_session_free(QmpSession *session); /* NULL is accepted */
/* False: the conversation cannot go on. */
bool qmp_session_input(QmpSession *session, const char *data, size_t size);
/* Tells the client, once it has negotiated. */
void qmp_session_event(QmpSession *session, const MachineEvent *event);

/* ---- commands (qmp-commands.c) ---- */

typedef struct QmpCommand {
    const char *name; /* of the schema */
    /* Returns a new value, or NULL with @err; *error_class starts as QMP_GENERIC_ERROR. */
    json_t *(*run)(Machine *m, json_t *arguments, QmpErrorClass *error_class, GError **err);
} QmpCommand;

extern const QmpCommand qmp_commands[]; /* ends with {0} */

/* qmp-stats.c */
json_t *qmp_query_stats(Machine *m, json_t *arguments, QmpErrorClass *error_class, GError **err);
json_t *qmp_query_stats_schemas(Machine *m, json_t *arguments, QmpErrorClass *error_class,
                                GError **err);

/* ---- human monitor (hmp.c) ---- */

/* The text that @line prints; owned by the caller. */
char *hmp_run(Machine *m, const char *line, unsigned cpu, GError **err);
/* "running", "paused", "prelaunch", "shutdown", "internal-error" */
const char *monitor_status_name(MachineStatus status);

/* ---- registers (registers.c) ---- */

void registers_print(GString *to, unsigned index, const VcpuState *state);
