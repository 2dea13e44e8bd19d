/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The debugger's breakpoints and watchpoints, and how the engine comes to know them. */
#include <string.h>

#include "monitor/gdb/session.h"

#define INT3 0xcc

static bool is_code(VcpuBreakKind kind)
{
    return kind == VCPU_BREAK_SOFTWARE || kind == VCPU_BREAK_HARDWARE;
}

static bool same(const VcpuBreakpoint *a, const VcpuBreakpoint *b)
{
    return a->address == b->address && a->length == b->length && a->kind == b->kind;
}

static int find(const GArray *list, const VcpuBreakpoint *at)
{
    for (unsigned i = 0; i < list->len; i++)
        if (same(&g_array_index(list, GdbBreakpoint, i).at, at))
            return (int)i;
    return -1;
}

static const VcpuEngine *engine_of(Machine *m)
{
    return machine_vcpu(m, 0)->engine;
}

/* What debug registers can do (SDM vol. 3 17.2). */
static GdbBreakResult check_registers(const GArray *list, unsigned registers,
                                      const VcpuBreakpoint *at)
{
    unsigned used = 0;
    if (at->kind == VCPU_BREAK_READ)
        return GDB_BREAK_UNSUPPORTED;
    if (at->length > 8 || (at->length & (at->length - 1)) || (at->address & (at->length - 1)))
        return GDB_BREAK_IMPOSSIBLE;
    for (unsigned i = 0; i < list->len; i++)
        used += g_array_index(list, GdbBreakpoint, i).at.kind != VCPU_BREAK_SOFTWARE;
    return used < registers ? GDB_BREAK_DONE : GDB_BREAK_IMPOSSIBLE;
}

static bool patch(GdbBreakpoint *b, Machine *m, const VcpuState *state)
{
    uint8_t int3 = INT3;
    b->patched = gdb_translate(m, state, b->at.address, &b->gpa) &&
                 machine_dma_read(m, b->gpa, &b->byte, 1) && machine_dma_write(m, b->gpa, &int3, 1);
    return b->patched;
}

/* Only where INT3 still stands: the guest may have put other code there. */
static void unpatch(const GdbBreakpoint *b, Machine *m)
{
    uint8_t byte;
    if (b->patched && machine_dma_read(m, b->gpa, &byte, 1) && byte == INT3)
        machine_dma_write(m, b->gpa, &b->byte, 1);
}

GdbBreakResult gdb_breakpoint_add(GArray *list, Machine *m, const VcpuState *state,
                                  const VcpuBreakpoint *at)
{
    const VcpuEngine *engine = engine_of(m);
    GdbBreakpoint b = {.at = *at};
    if (!engine->debug)
        return GDB_BREAK_UNSUPPORTED;
    if (find(list, at) >= 0)
        return GDB_BREAK_DONE;
    if (list->len >= GDB_BREAKPOINTS_MAX || !at->length ||
        at->address + (at->length - 1) < at->address)
        return GDB_BREAK_IMPOSSIBLE;
    if (engine->debug_registers && at->kind != VCPU_BREAK_SOFTWARE) {
        GdbBreakResult result = check_registers(list, engine->debug_registers, at);
        if (result != GDB_BREAK_DONE)
            return result;
    }
    if (engine->debug_patches && at->kind == VCPU_BREAK_SOFTWARE && !patch(&b, m, state))
        return GDB_BREAK_IMPOSSIBLE;
    g_array_append_val(list, b);
    return GDB_BREAK_DONE;
}

void gdb_breakpoint_remove(GArray *list, Machine *m, const VcpuBreakpoint *at)
{
    int i = find(list, at);
    if (i < 0)
        return;
    unpatch(&g_array_index(list, GdbBreakpoint, i), m);
    g_array_remove_index(list, (guint)i);
}

void gdb_breakpoints_clear(GArray *list, Machine *m)
{
    for (unsigned i = 0; i < list->len; i++)
        unpatch(&g_array_index(list, GdbBreakpoint, i), m);
    g_array_set_size(list, 0);
}

bool gdb_breakpoint_wanted(const GArray *list, const VcpuDebugStop *why)
{
    for (unsigned i = 0; i < list->len; i++) {
        const VcpuBreakpoint *at = &g_array_index(list, GdbBreakpoint, i).at;
        bool inside = why->address >= at->address && why->address - at->address < at->length;
        if (inside && (at->kind == why->kind || (is_code(at->kind) && is_code(why->kind))))
            return true;
    }
    return false;
}

/* ---- applying ---- */

typedef struct Request {
    VcpuDebug debug;
    bool ok;
    GError *error;
} Request;

static void apply(Vcpu *vcpu, void *opaque)
{
    Request *r = opaque;
    r->ok = vcpu->engine->debug(vcpu, &r->debug, &r->error);
}

bool gdb_breakpoints_apply(const GArray *list, Machine *m, unsigned vcpu, bool active, bool step,
                           GError **err)
{
    if (!engine_of(m)->debug)
        return true;
    g_autofree VcpuBreakpoint *at = g_new(VcpuBreakpoint, list->len);
    for (unsigned i = 0; i < list->len; i++)
        at[i] = g_array_index(list, GdbBreakpoint, i).at;
    Request r = {.debug = {active, step, list->len, at}};
    machine_with_vcpu(m, vcpu, apply, &r);
    if (r.error)
        g_propagate_error(err, r.error);
    return r.ok;
}
