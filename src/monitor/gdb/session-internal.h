/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Between a session's packets (commands.c) and its control over the vCPUs (control.c). */
#pragma once

#include "monitor/gdb/session.h"

/* Signal numbers of the protocol: GDB manual, appendix E.3 and GDB's signals.def. */
#define GDB_SIGNAL_INT  2u
#define GDB_SIGNAL_TRAP 5u
#define GDB_SIGNAL_ABRT 6u

typedef enum GdbAction { GDB_HOLD, GDB_CONTINUE, GDB_STEP } GdbAction;

struct GdbSession {
    Machine *machine;
    GdbSend send;
    void *opaque;
    GdbReader reader;
    GString *reply;  /* to the packet in hand */
    GString *sent;   /* the last packet, for a NAK */
    GString *report; /* the last stop reply's contents, for "?" */
    GArray *breakpoints;
    bool no_ack, swbreak, hwbreak; /* what was agreed on */
    bool over;                     /* detached or killed */
    bool waiting;                  /* the debugger waits for a stop reply */
    bool busy;                     /* changes of the machine's status are our own */
    bool go_on; /* the guest ran before the debugger came, or was set going since */
    unsigned vcpu, step_vcpu;      /* of Hg and Hc */
    struct {
        bool pending; /* a stop that was not reported yet */
        VcpuDebugStop why;
    } stop[VCPU_COUNT_MAX];
    VcpuState state; /* of the packet in hand */
};

/* ---- commands.c ---- */

/* Handles one packet (NUL after it); the answer is in s->reply unless *no_reply. */
void gdb_command(GdbSession *s, const char *packet, size_t size, bool *no_reply);

/* ---- control.c ---- */

void gdb_send_packet(GdbSession *s, const char *contents, size_t size);
/* Sets the machine going; action: of each vCPU. The stop reply comes later, or at once. */
void gdb_control_resume(GdbSession *s, const uint8_t *action);
void gdb_control_interrupt(GdbSession *s);
/* Everything as if no debugger had been there. @go: the guest goes on. */
void gdb_control_release(GdbSession *s, bool go);
void gdb_control_attach(GdbSession *s);
/* Of vCPU @vcpu; false with nothing in *state. */
bool gdb_state_get(GdbSession *s, unsigned vcpu, VcpuState *state);
bool gdb_state_set(GdbSession *s, unsigned vcpu, const VcpuState *state);
