/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "monitor/qmp-session.h"

#include <string.h>

#include "base/error.h"
#include "protocol/json-framer.h"

struct QmpSession {
    Machine *machine;
    QmpSend send;
    void *opaque;
    JsonFramer *framer;
    bool negotiated;
};

static void send_message(QmpSession *s, json_t *message)
{
    g_autofree char *line = qmp_encode(message);
    s->send(s->opaque, line, strlen(line));
    json_decref(message);
}

QmpSession *qmp_session_new(Machine *m, QmpSend send, void *opaque)
{
    QmpSession *s = g_new0(QmpSession, 1);
    s->machine = m;
    s->send = send;
    s->opaque = opaque;
    s->framer = json_framer_new();
    send_message(s, qmp_greeting());
    return s;
}

void qmp_session_free(QmpSession *s)
{
    if (s)
        json_framer_free(s->framer);
    g_free(s);
}

static json_t *negotiate(QmpSession *s, const QmpRequest *request)
{
    bool is_negotiation = strcmp(request->schema->name, "qmp_capabilities") == 0;
    if (is_negotiation == s->negotiated)
        return qmp_error(request->id, QMP_COMMAND_NOT_FOUND,
                         s->negotiated ? "the negotiation is over already"
                                       : "the first command must be qmp_capabilities");
    if (!is_negotiation)
        return NULL;
    json_t *enable = json_object_get(request->arguments, "enable");
    if (json_array_size(enable) > 0)
        return qmp_error(request->id, QMP_GENERIC_ERROR,
                         "qmp_capabilities: no capability is offered that could be enabled");
    s->negotiated = true;
    return qmp_return(request->id, json_object());
}

static json_t *run_command(QmpSession *s, const QmpRequest *request)
{
    json_t *answer = negotiate(s, request);
    if (answer)
        return answer;
    for (const QmpCommand *c = qmp_commands; c->name; c++) {
        if (strcmp(c->name, request->schema->name))
            continue;
        g_autoptr(GError) error = NULL;
        QmpErrorClass error_class = QMP_GENERIC_ERROR;
        json_t *value = c->run(s->machine, request->arguments, &error_class, &error);
        return value ? qmp_return(request->id, value)
                     : qmp_error(request->id, error_class, error->message);
    }
    return qmp_error(request->id, QMP_COMMAND_NOT_FOUND, "the command is in the schema only");
}

static bool handle(void *opaque, json_t *message, const GError *framing_error)
{
    QmpSession *s = opaque;
    g_autoptr(GError) error = NULL;
    QmpRequest request;
    QmpErrorClass error_class;
    if (framing_error)
        send_message(s, qmp_error(NULL, QMP_GENERIC_ERROR, framing_error->message));
    else if (!qmp_request_parse(message, &request, &error_class, &error))
        send_message(s, qmp_error(request.id, error_class, error->message));
    else
        send_message(s, run_command(s, &request));
    return true;
}

bool qmp_session_input(QmpSession *s, const char *data, size_t size)
{
    return json_framer_push(s->framer, data, size, handle, s);
}

static const struct {
    const char *name;
    bool by_guest;
} causes[] = {
    [MACHINE_CAUSE_GUEST_SHUTDOWN] = {"guest-shutdown", true},
    [MACHINE_CAUSE_GUEST_RESET] = {"guest-reset", true},
    [MACHINE_CAUSE_GUEST_PANIC] = {"guest-panic", true},
    [MACHINE_CAUSE_HOST_QMP_QUIT] = {"host-qmp-quit", false},
    [MACHINE_CAUSE_HOST_QMP_SYSTEM_RESET] = {"host-qmp-system-reset", false},
    [MACHINE_CAUSE_HOST_SIGNAL] = {"host-signal", false},
    [MACHINE_CAUSE_HOST_ERROR] = {"host-error", false},
};

/* The event's name in the schema and its data; NULL for what is told to nobody. */
static const char *describe(const MachineEvent *event, json_t **data)
{
    *data = NULL;
    switch (event->type) {
    case MACHINE_EVENT_SHUTDOWN:
    case MACHINE_EVENT_RESET:
        *data = json_pack("{s:b,s:s}", "guest", (int)causes[event->cause].by_guest, "reason",
                          causes[event->cause].name);
        return event->type == MACHINE_EVENT_RESET ? "RESET" : "SHUTDOWN";
    case MACHINE_EVENT_STOP:
    case MACHINE_EVENT_ERROR: /* the machine stands still; query-status says why */
        return "STOP";
    case MACHINE_EVENT_RESUME:
        return "RESUME";
    case MACHINE_EVENT_POWERDOWN:
        return "POWERDOWN";
    case MACHINE_EVENT_BALLOON_CHANGE:
        *data = json_pack("{s:I}", "actual", (json_int_t)event->value);
        return "BALLOON_CHANGE";
    default:
        return NULL;
    }
}

void qmp_session_event(QmpSession *s, const MachineEvent *event)
{
    if (!s->negotiated)
        return;
    json_t *data;
    const char *name = describe(event, &data);
    if (name)
        send_message(s, qmp_event(name, data, g_get_real_time()));
}
