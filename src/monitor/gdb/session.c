/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "monitor/gdb/session.h"

#include <string.h>

#include "monitor/gdb/session-internal.h"

static void send_sent(GdbSession *s)
{
    s->send(s->opaque, s->sent->str, s->sent->len);
}

void gdb_send_packet(GdbSession *s, const char *contents, size_t size)
{
    g_string_free(s->sent, TRUE);
    s->sent = gdb_packet_encode(contents, size);
    send_sent(s);
}

GdbSession *gdb_session_new(Machine *m, GdbSend send, void *opaque)
{
    GdbSession *s = g_new0(GdbSession, 1);
    s->machine = m;
    s->send = send;
    s->opaque = opaque;
    gdb_reader_init(&s->reader);
    s->reply = g_string_new(NULL);
    s->sent = g_string_new(NULL);
    s->report = g_string_new(NULL);
    s->breakpoints = g_array_new(FALSE, TRUE, sizeof(GdbBreakpoint));
    gdb_control_attach(s);
    return s;
}

void gdb_session_free(GdbSession *s)
{
    if (!s)
        return;
    if (!s->over)
        gdb_control_release(s, s->go_on);
    gdb_reader_clear(&s->reader);
    g_string_free(s->reply, TRUE);
    g_string_free(s->sent, TRUE);
    g_string_free(s->report, TRUE);
    g_array_unref(s->breakpoints);
    g_free(s);
}

static void packet_came(GdbSession *s)
{
    bool no_reply = false, ack = !s->no_ack;
    if (ack)
        s->send(s->opaque, "+", 1);
    g_string_truncate(s->reply, 0);
    gdb_command(s, (const char *)s->reader.data->data, s->reader.data->len, &no_reply);
    if (!no_reply)
        gdb_send_packet(s, s->reply->str, s->reply->len);
}

bool gdb_session_input(GdbSession *s, const uint8_t *data, size_t size)
{
    for (size_t i = 0; i < size && !s->over; i++) {
        switch (gdb_reader_push(&s->reader, data[i])) {
        case GDB_INPUT_PACKET:
            packet_came(s);
            break;
        case GDB_INPUT_BAD:
            if (!s->no_ack)
                s->send(s->opaque, "-", 1);
            break;
        case GDB_INPUT_INTERRUPT:
            gdb_control_interrupt(s);
            break;
        case GDB_INPUT_NAK:
            if (!s->no_ack && s->sent->len)
                send_sent(s);
            break;
        default:
            break;
        }
    }
    return !s->over;
}
