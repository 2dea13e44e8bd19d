/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One debugger's conversation, without its socket: bytes in, bytes out. Everything runs on the
 * machine's main thread with the machine lock held.
 *
 * All vCPUs stop and go together (all-stop mode); thread n is vCPU n - 1. While the debugger has
 * control, the machine is paused.
 */
#pragma once

#include "machine/machine.h"
#include "monitor/gdb/packet.h"

#define GDB_BREAKPOINTS_MAX VCPU_BREAKPOINTS_MAX

typedef struct GdbSession GdbSession;

/* Sends @size bytes to the debugger. */
typedef void (*GdbSend)(void *opaque, const char *data, size_t size);

/* Stops the machine. One session a machine. */
GdbSession *gdb_session_new(Machine *m, GdbSend send, void *opaque);
/* Takes every breakpoint away; the guest goes on, unless it stood still before. */
void gdb_session_free(GdbSession *session); /* NULL is accepted */
/* False: the conversation is over. */
bool gdb_session_input(GdbSession *session, const uint8_t *data, size_t size);
void gdb_session_event(GdbSession *session, const MachineEvent *event);

/* ---- memory (memory.c) ---- */

/* The guest physical address of @linear by the page tables that @state selects; accessed and dirty
 * bits stay as they are. False: nothing is mapped there. */
bool gdb_translate(Machine *m, const VcpuState *state, uint64_t linear, uint64_t *gpa);
/* How many bytes from @linear could be read or written: up to the first that is not RAM or ROM
 * (writing: RAM). */
size_t gdb_memory_read(Machine *m, const VcpuState *state, uint64_t linear, uint8_t *to,
                       size_t size);
size_t gdb_memory_write(Machine *m, const VcpuState *state, uint64_t linear, const uint8_t *from,
                        size_t size);

/* ---- breakpoints (breakpoints.c) ---- */

typedef struct GdbBreakpoint {
    VcpuBreakpoint at;
    bool patched; /* INT3 stands at @gpa instead of @byte */
    uint64_t gpa;
    uint8_t byte;
} GdbBreakpoint;

typedef enum GdbBreakResult {
    GDB_BREAK_DONE,
    GDB_BREAK_UNSUPPORTED, /* this kind, on this engine */
    GDB_BREAK_IMPOSSIBLE,  /* that many, there, or of that length */
} GdbBreakResult;

/* @list: of GdbBreakpoint. @state: of the vCPU whose page tables are meant. */
GdbBreakResult gdb_breakpoint_add(GArray *list, Machine *m, const VcpuState *state,
                                  const VcpuBreakpoint *at);
/* Removing what is not there is no error. */
void gdb_breakpoint_remove(GArray *list, Machine *m, const VcpuBreakpoint *at);
void gdb_breakpoints_clear(GArray *list, Machine *m);
/* Whether @why is still something that the debugger wants to stop at. */
bool gdb_breakpoint_wanted(const GArray *list, const VcpuDebugStop *why);
/* Gives the list to a vCPU's engine. @active: false takes the debugger away. */
bool gdb_breakpoints_apply(const GArray *list, Machine *m, unsigned vcpu, bool active, bool step,
                           GError **err);
