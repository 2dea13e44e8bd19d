/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Stopping and resuming the vCPUs, and what the debugger is told about it. */
#include <string.h>

#include "monitor/gdb/session-internal.h"

/* ---- state ---- */

typedef struct StateRequest {
    VcpuState *get;
    const VcpuState *set;
    bool ok;
} StateRequest;

static void exchange_state(Vcpu *vcpu, void *opaque)
{
    StateRequest *r = opaque;
    r->ok = r->get ? vcpu->engine->get_state(vcpu, r->get, NULL)
                   : vcpu->engine->set_state(vcpu, r->set, NULL);
}

bool gdb_state_get(GdbSession *s, unsigned vcpu, VcpuState *state)
{
    StateRequest r = {.get = state};
    machine_with_vcpu(s->machine, vcpu, exchange_state, &r);
    return r.ok;
}

bool gdb_state_set(GdbSession *s, unsigned vcpu, const VcpuState *state)
{
    StateRequest r = {.set = state};
    machine_with_vcpu(s->machine, vcpu, exchange_state, &r);
    return r.ok;
}

/* ---- stop replies: GDB manual, appendix E.3 ---- */

static void report(GdbSession *s)
{
    if (!s->waiting)
        return;
    s->waiting = false;
    gdb_send_packet(s, s->report->str, s->report->len);
}

static void report_signal(GdbSession *s, unsigned signal)
{
    g_string_printf(s->report, "T%02xthread:%x;", signal, s->vcpu + 1);
    report(s);
}

static void report_stop(GdbSession *s, unsigned vcpu)
{
    static const char *const watches[] = {
        [VCPU_BREAK_WRITE] = "watch", [VCPU_BREAK_READ] = "rwatch", [VCPU_BREAK_ACCESS] = "awatch"};
    const VcpuDebugStop *why = &s->stop[vcpu].why;
    s->stop[vcpu].pending = false;
    s->vcpu = s->step_vcpu = vcpu;
    g_string_printf(s->report, "T%02xthread:%x;", GDB_SIGNAL_TRAP, vcpu + 1);
    if (!why->step && why->kind >= VCPU_BREAK_WRITE)
        g_string_append_printf(s->report, "%s:%" G_GINT64_MODIFIER "x;", watches[why->kind],
                               why->address);
    else if (!why->step && why->kind == VCPU_BREAK_SOFTWARE && s->swbreak)
        g_string_append(s->report, "swbreak:;");
    else if (!why->step && why->kind == VCPU_BREAK_HARDWARE && s->hwbreak)
        g_string_append(s->report, "hwbreak:;");
    report(s);
}

/* A vCPU whose stop was not reported yet must not run past it. */
static bool must_report(GdbSession *s, unsigned vcpu)
{
    if (!s->stop[vcpu].pending)
        return false;
    const VcpuDebugStop *why = &s->stop[vcpu].why;
    bool valid = !why->step && gdb_breakpoint_wanted(s->breakpoints, why);
    if (valid && why->kind < VCPU_BREAK_WRITE) {
        /* The debugger may have moved it elsewhere. */
        valid = gdb_state_get(s, vcpu, &s->state) &&
                (why->address == s->state.rip ||
                 why->address == (uint32_t)(s->state.rip + s->state.seg[SEG_CS].base));
    }
    s->stop[vcpu].pending = valid;
    return valid;
}

/* Tells the engine of the breakpoints, for each vCPU that is to run. @action: NULL: no debugger. */
static bool apply(GdbSession *s, const uint8_t *action)
{
    for (unsigned i = 0; i < machine_vcpu_count(s->machine); i++)
        if ((!action || action[i] != GDB_HOLD) &&
            !gdb_breakpoints_apply(s->breakpoints, s->machine, i, action != NULL,
                                   action && action[i] == GDB_STEP, NULL))
            return false;
    return true;
}

/* Somebody else's cont means all vCPUs, without the step and the breakpoints of before. */
static void resumed_by_others(GdbSession *s)
{
    uint8_t action[VCPU_COUNT_MAX];
    memset(action, GDB_CONTINUE, sizeof(action));
    apply(s, action);
    for (unsigned i = 0; i < machine_vcpu_count(s->machine); i++)
        machine_hold_vcpu(s->machine, i, false);
}

/* The machine stands still, and nobody else is to hear that it was us. */
static void stop_machine(GdbSession *s)
{
    s->busy = true;
    machine_stop(s->machine);
    s->busy = false;
}

static void take_stop(Vcpu *vcpu, void *opaque)
{
    *(VcpuDebugStop *)opaque = vcpu->engine->debug_stop(vcpu);
}

static void on_debug(void *opaque, unsigned vcpu)
{
    GdbSession *s = opaque;
    machine_with_vcpu(s->machine, vcpu, take_stop, &s->stop[vcpu].why);
    s->stop[vcpu].pending = true;
    bool running = machine_status(s->machine) == MACHINE_RUNNING;
    if (s->waiting) {
        stop_machine(s);
        report_stop(s, vcpu);
    } else if (running && !must_report(s, vcpu)) {
        machine_hold_vcpu(s->machine, vcpu, false); /* of a list that is no more: QMP's cont */
    } else if (running) {
        stop_machine(s);
    }
    /* Else another was quicker: this one is reported when its vCPU is to go on. */
}

void gdb_session_event(GdbSession *s, const MachineEvent *event)
{
    switch (event->type) {
    case MACHINE_EVENT_STOP:
        if (!s->busy)
            report_signal(s, GDB_SIGNAL_INT);
        break;
    case MACHINE_EVENT_ERROR:
        report_signal(s, GDB_SIGNAL_ABRT);
        break;
    case MACHINE_EVENT_SHUTDOWN:
        g_string_assign(s->report, "W00");
        report(s);
        break;
    case MACHINE_EVENT_RESET:
        for (unsigned i = 0; i < VCPU_COUNT_MAX; i++)
            s->stop[i].pending = false;
        break;
    case MACHINE_EVENT_RESUME:
        s->go_on = true;
        if (!s->busy)
            resumed_by_others(s);
        break;
    default:
        break;
    }
}

/* ---- resuming ---- */

static void hold(GdbSession *s, const uint8_t *action)
{
    for (unsigned i = 0; i < machine_vcpu_count(s->machine); i++)
        machine_hold_vcpu(s->machine, i, action && action[i] == GDB_HOLD);
}

void gdb_control_resume(GdbSession *s, const uint8_t *action)
{
    Machine *m = s->machine;
    s->waiting = true;
    MachineStatus status = machine_status(m);
    if (status == MACHINE_SHUTDOWN) {
        report(s);
        return;
    }
    for (unsigned i = 0; i < machine_vcpu_count(m); i++)
        if (action[i] != GDB_HOLD && must_report(s, i)) {
            stop_machine(s);
            report_stop(s, i);
            return;
        }
    if (status == MACHINE_ERROR || !apply(s, action)) {
        report_signal(s, GDB_SIGNAL_ABRT);
        return;
    }
    hold(s, action);
    s->busy = true;
    machine_cont(m);
    s->busy = false;
}

void gdb_control_interrupt(GdbSession *s)
{
    if (!s->waiting)
        return;
    stop_machine(s);
    report_signal(s, GDB_SIGNAL_INT);
}

void gdb_control_attach(GdbSession *s)
{
    s->go_on = machine_status(s->machine) == MACHINE_RUNNING;
    machine_set_debug_handler(s->machine, on_debug, s);
    stop_machine(s);
    g_string_printf(s->report, "T%02xthread:1;", GDB_SIGNAL_TRAP);
}

void gdb_control_release(GdbSession *s, bool go)
{
    machine_set_debug_handler(s->machine, NULL, NULL);
    s->waiting = false;
    s->busy = true;
    machine_stop(s->machine); /* memory is not changed under a running guest */
    gdb_breakpoints_clear(s->breakpoints, s->machine);
    apply(s, NULL);
    hold(s, NULL);
    if (go)
        machine_cont(s->machine);
    s->busy = false;
}
