/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Breakpoints, watchpoints and single steps of a debugger outside the guest, beside the guest's own
 * debug registers (debug.c).
 *
 * Code breakpoints cost nothing elsewhere: a block that would begin with such an instruction holds
 * one op, which leaves the run loop (the translator makes none, and its dispatcher looks before it
 * would), and other blocks end before it. A new list of breakpoints makes all code decoded anew, but
 * not for a step, which looks by itself: debuggers step past a breakpoint with the list empty and then
 * put the same one back. Where a linear address
 * does not follow from RIP and the mode, and for single steps, blocks have one instruction
 * (SOFT_MODE_SINGLE) and the run loop looks before each. Watched pages stay out of the first-level
 * TLB, so that each access to them comes to soft_debugger_access.
 */
#include "base/error.h"
#include "vcpu/soft/vm.h"

static bool is_code(const VcpuBreakpoint *b)
{
    return b->kind == VCPU_BREAK_SOFTWARE || b->kind == VCPU_BREAK_HARDWARE;
}

static bool valid(const VcpuDebug *debug, GError **err)
{
    if (debug->n > VCPU_BREAKPOINTS_MAX)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "more than %d breakpoints", VCPU_BREAKPOINTS_MAX);
    for (unsigned i = 0; i < debug->n; i++) {
        const VcpuBreakpoint *b = &debug->breakpoints[i];
        if (!b->length || b->address + (b->length - 1) < b->address || b->kind > VCPU_BREAK_ACCESS)
            return lodge_fail(err, LODGE_ERROR_INVALID, "a breakpoint of %#" G_GINT64_MODIFIER
                              "x bytes at %#" G_GINT64_MODIFIER "x", b->length, b->address);
    }
    return true;
}

static bool same_list(const VcpuBreakpoint *a, unsigned n_a, const VcpuBreakpoint *b, unsigned n_b)
{
    if (n_a != n_b)
        return false;
    for (unsigned i = 0; i < n_a; i++)
        if (a[i].address != b[i].address || a[i].length != b[i].length || a[i].kind != b[i].kind)
            return false;
    return true;
}

static void list_take(SoftCpu *cpu, const VcpuBreakpoint *list, unsigned n)
{
    SoftDebugger *d = &cpu->system->debugger;
    g_free(d->list);
    d->list = g_memdup2(list, n * sizeof(*list));
    d->n = n;
    d->code = d->data = false;
    for (unsigned i = 0; i < n; i++) {
        d->code |= is_code(&list[i]);
        d->data |= !is_code(&list[i]);
    }
    soft_debug_update(cpu);
}

/* Decoded code with the breakpoints of now. */
static void code_update(SoftCpu *cpu)
{
    SoftDebugger *d = &cpu->system->debugger;
    if (same_list(d->built, d->n_built, d->list, d->n))
        return;
    g_free(d->built);
    d->built = g_memdup2(d->list, d->n * sizeof(*d->list));
    d->n_built = d->n;
    soft_blocks_flush(cpu);
}

bool soft_debugger_set(Vcpu *vcpu, const VcpuDebug *debug, GError **err)
{
    SoftCpu *cpu = (SoftCpu *)vcpu;
    SoftDebugger *d = &cpu->system->debugger;
    unsigned n = debug->active ? debug->n : 0;
    if (debug->active && !valid(debug, err))
        return false;
    d->step = debug->active && debug->step;
    d->hit = false;
    if (!same_list(d->list, d->n, debug->breakpoints, n))
        list_take(cpu, debug->breakpoints, n);
    soft_mode_update(cpu);
    if (!d->step)
        code_update(cpu);
    return true;
}

void soft_debugger_free(SoftCpu *cpu)
{
    g_free(cpu->system->debugger.list);
    g_free(cpu->system->debugger.built);
}

VcpuDebugStop soft_debugger_why(Vcpu *vcpu)
{
    return ((SoftCpu *)vcpu)->system->debugger.why;
}

bool soft_debugger_code_at(const SoftCpu *cpu, uint64_t linear)
{
    const SoftDebugger *d = &cpu->system->debugger;
    for (unsigned i = 0; i < d->n; i++)
        if (is_code(&d->list[i]) && d->list[i].address == linear)
            return true;
    return false;
}

/* ---- watchpoints ---- */

static bool overlaps(const VcpuBreakpoint *b, uint64_t first, uint64_t last)
{
    return first <= b->address + (b->length - 1) && b->address <= last;
}

bool soft_debugger_page_watched(const SoftCpu *cpu, uint64_t linear)
{
    const SoftDebugger *d = &cpu->system->debugger;
    for (unsigned i = 0; i < d->n; i++)
        if (!is_code(&d->list[i]) && overlaps(&d->list[i], linear & ~(uint64_t)0xfff, linear | 0xfff))
            return true;
    return false;
}

void soft_debugger_access(SoftCpu *cpu, uint64_t linear, unsigned size, unsigned access)
{
    SoftDebugger *d = &cpu->system->debugger;
    VcpuBreakKind kind = access == SOFT_WRITE ? VCPU_BREAK_WRITE : VCPU_BREAK_READ;
    uint64_t last = linear + size - 1;
    if (!d->data || d->hit || !size || access == SOFT_EXECUTE)
        return;
    for (unsigned i = 0; i < d->n; i++) {
        const VcpuBreakpoint *b = &d->list[i];
        if ((b->kind != kind && b->kind != VCPU_BREAK_ACCESS) || !overlaps(b, linear, last))
            continue;
        d->hit = true;
        d->why = (VcpuDebugStop){.kind = b->kind, .address = MAX(linear, b->address)};
        soft_pend(cpu, SOFT_PENDING_DEBUG);
        return;
    }
}

/* ---- stops ---- */

static void stop(SoftCpu *cpu)
{
    SoftDebugger *d = &cpu->system->debugger;
    d->stop = d->stopped = true;
    d->stopped_at = soft_code_linear(cpu, cpu->rip);
    soft_pend(cpu, SOFT_PENDING_DEBUG);
}

void soft_debugger_break(SoftCpu *cpu, uint64_t linear)
{
    SoftDebugger *d = &cpu->system->debugger;
    d->why = (VcpuDebugStop){.kind = VCPU_BREAK_SOFTWARE, .address = linear};
    for (unsigned i = 0; i < d->n; i++)
        if (is_code(&d->list[i]) && d->list[i].address == linear)
            d->why.kind = d->list[i].kind;
    stop(cpu);
}

bool soft_debugger_before(SoftCpu *cpu)
{
    SoftDebugger *d = &cpu->system->debugger;
    if (!d->code && !d->stopped)
        return false;
    uint64_t linear = soft_code_linear(cpu, cpu->rip);
    bool resumed = d->stopped && d->stopped_at == linear;
    d->stopped = false;
    if (!d->code || !soft_debugger_code_at(cpu, linear))
        return false;
    if (!resumed) {
        soft_debugger_break(cpu, linear);
        return true;
    }
    cpu->system->single_once = true; /* past the op that stands for this instruction */
    soft_mode_update(cpu);
    return false;
}

void soft_debugger_after(SoftCpu *cpu)
{
    SoftDebugger *d = &cpu->system->debugger;
    if (d->stop)
        return;
    if (!d->hit) {
        if (!d->step)
            return;
        d->why = (VcpuDebugStop){.step = true};
    }
    d->hit = false;
    stop(cpu);
}
