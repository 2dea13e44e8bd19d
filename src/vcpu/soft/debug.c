/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Breakpoints by DR0-DR3 and DR7 (SDM vol. 3 17.2). */
#include "vcpu/soft/vm.h"

enum { BREAK_EXECUTE, BREAK_WRITE, BREAK_PORT, BREAK_ACCESS };

static bool enabled(const SoftCpu *cpu, unsigned i)
{
    return cpu->dr[7] >> (2 * i) & 3;
}

static unsigned kind(const SoftCpu *cpu, unsigned i)
{
    return (unsigned)(cpu->dr[7] >> (16 + 4 * i)) & 3;
}

static unsigned length(const SoftCpu *cpu, unsigned i)
{
    static const uint8_t bytes[] = {1, 2, 8, 4};
    return bytes[cpu->dr[7] >> (18 + 4 * i) & 3];
}

/* Whether breakpoint @i of a data or port kind covers part of [at, at + size). */
static bool covers(const SoftCpu *cpu, unsigned i, uint64_t at, uint64_t size)
{
    uint64_t n = length(cpu, i), start = cpu->dr[i] & ~(n - 1);
    return at < start + n && start < at + size;
}

void soft_debug_update(SoftCpu *cpu)
{
    bool code = false, data = false;
    for (unsigned i = 0; i < 4; i++) {
        if (!enabled(cpu, i))
            continue;
        if (kind(cpu, i) == BREAK_EXECUTE)
            code = true;
        else
            data = true;
    }
    cpu->system->code_breakpoints = code;
    cpu->system->data_breakpoints = data || cpu->system->debugger.data;
    soft_tlb_flush(cpu, true); /* watched pages must not stay in the first level */
    soft_mode_update(cpu);
    soft_pend(cpu, SOFT_PENDING_LOOP);
}

bool soft_debug_page_watched(const SoftCpu *cpu, uint64_t linear)
{
    if (!cpu->system->data_breakpoints)
        return false;
    for (unsigned i = 0; i < 4; i++)
        if (enabled(cpu, i) && (kind(cpu, i) == BREAK_WRITE || kind(cpu, i) == BREAK_ACCESS) &&
            covers(cpu, i, linear & ~(uint64_t)0xfff, 4096))
            return true;
    return soft_debugger_page_watched(cpu, linear);
}

static void hit(SoftCpu *cpu, uint32_t dr6)
{
    cpu->system->debug_hits |= dr6;
    soft_pend(cpu, SOFT_PENDING_DEBUG);
}

void soft_debug_access(SoftCpu *cpu, uint64_t linear, unsigned size, unsigned access)
{
    for (unsigned i = 0; i < 4; i++) {
        if (!enabled(cpu, i) || access == SOFT_EXECUTE)
            continue;
        unsigned k = kind(cpu, i);
        if (k == BREAK_ACCESS || (k == BREAK_WRITE && access == SOFT_WRITE))
            if (covers(cpu, i, linear, size))
                hit(cpu, 1u << i);
    }
    soft_debugger_access(cpu, linear, size, access);
}

bool soft_debug_must_restart(const SoftCpu *cpu)
{
    const SoftSystem *s = cpu->system;
    return (s->debug_hits || s->debugger.hit) && !(cpu->mode & SOFT_MODE_SINGLE) && !s->delivering;
}

void soft_debug_port(SoftCpu *cpu, uint16_t port, unsigned size)
{
    if (!cpu->system->data_breakpoints || !(cpu->cr4 & CR4_DE))
        return;
    for (unsigned i = 0; i < 4; i++)
        if (enabled(cpu, i) && kind(cpu, i) == BREAK_PORT && covers(cpu, i, port, size))
            hit(cpu, 1u << i);
}

uint32_t soft_debug_code(const SoftCpu *cpu, uint64_t linear)
{
    uint32_t dr6 = 0;
    for (unsigned i = 0; i < 4; i++)
        if (enabled(cpu, i) && kind(cpu, i) == BREAK_EXECUTE && cpu->dr[i] == linear)
            dr6 |= 1u << i;
    return dr6;
}

void soft_debug_trap(SoftCpu *cpu, uint32_t dr6)
{
    hit(cpu, dr6);
}
