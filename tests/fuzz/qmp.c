/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A QMP client's bytes against a whole session on a machine whose CPU does nothing. The first byte
 * chooses how the stream is cut; odd: the negotiation is done before.
 */
#include <string.h>

#include "machine/test-engine.h"
#include "monitor/qmp-session.h"

#define NEGOTIATION "{\"execute\":\"qmp_capabilities\"}"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void count_lines(void *opaque, const char *data, size_t size)
{
    /* Every message is one line of JSON. */
    g_assert_cmpuint(size, >, 2);
    g_assert_true(data[0] == '{' && data[size - 1] == '\n');
    g_assert_null(memchr(data, '\n', size - 1));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1)
        return 0;
    Machine *m = test_machine_new();
    QmpSession *session = qmp_session_new(m, count_lines, NULL);
    size_t piece = 1 + (data[0] >> 1) * 3u;
    if (data[0] & 1)
        qmp_session_input(session, NEGOTIATION, strlen(NEGOTIATION));
    machine_lock(m);
    for (size_t at = 1; at < size; at += piece)
        if (!qmp_session_input(session, (const char *)data + at, MIN(piece, size - at)))
            break;
    const MachineEvent event = {.type = MACHINE_EVENT_RESET, .cause = MACHINE_CAUSE_GUEST_RESET};
    qmp_session_event(session, &event);
    machine_unlock(m);
    while (g_main_context_iteration(m->context, FALSE))
        ;
    qmp_session_free(session);
    machine_free(m);
    return 0;
}
