/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Stacks: the current one for instructions, and any other one for events and gates. */
#include "vcpu/soft/system-ops.h"
#include "vcpu/soft/vm.h"

void soft_set_sp(SoftCpu *cpu, uint64_t value)
{
    if (cpu->mode & SOFT_MODE_CODE64)
        cpu->gpr[GPR_RSP] = value;
    else if (cpu->mode & SOFT_MODE_STACK32)
        cpu->gpr[GPR_RSP] = (uint32_t)value;
    else
        cpu->gpr[GPR_RSP] = (cpu->gpr[GPR_RSP] & ~(uint64_t)0xffff) | (value & 0xffff);
}

void soft_stack_add(SoftCpu *cpu, int64_t delta)
{
    soft_set_sp(cpu, cpu->gpr[GPR_RSP] + (uint64_t)delta);
}

static void stack_shape(SoftStack *s, bool wide)
{
    s->wide = wide;
    s->base = wide ? 0 : s->ss.base;
    if (wide)
        s->mask = UINT64_MAX;
    else
        s->mask = s->ss.attr & SEG_ATTR_DB ? 0xffffffff : 0xffff;
}

SoftStack soft_stack_current(SoftCpu *cpu)
{
    SoftStack s = {.ss = cpu->seg[SEG_SS], .sp = cpu->gpr[GPR_RSP], .mmu = cpu->mmu};
    s.vector = EXC_SS;
    stack_shape(&s, cpu->mode & SOFT_MODE_CODE64);
    return s;
}

SoftStack soft_stack_of(SoftCpu *cpu, const VcpuSegment *ss, uint64_t sp, unsigned cpl)
{
    SoftStack s = {.ss = *ss, .sp = sp, .vector = EXC_SS};
    s.error = cpu->system->ext;
    s.mmu = cpl == 3 ? SOFT_MMU_USER : soft_supervisor_mmu(cpu, false);
    stack_shape(&s, false);
    return s;
}

static uint64_t stack_linear(SoftCpu *cpu, const SoftStack *s, uint64_t sp, unsigned size)
{
    uint64_t offset = sp & s->mask;
    if (s->wide) {
        if (!soft_canonical(offset) || !soft_canonical(offset + size - 1))
            soft_raise_error(cpu, s->vector, s->error);
        return offset;
    }
    uint64_t last = offset + size - 1;
    bool inside;
    if ((s->ss.attr & 0xc) == 4)
        inside = offset > s->ss.limit && last <= s->mask;
    else
        inside = last <= s->ss.limit || s->ss.limit == 0xffffffff;
    if (!inside || (s->ss.attr & SEG_ATTR_UNUSABLE))
        soft_raise_error(cpu, s->vector, s->error);
    return (uint32_t)(s->base + offset);
}

void soft_stack_push(SoftCpu *cpu, SoftStack *s, uint64_t value, unsigned size)
{
    uint64_t sp = s->sp - size;
    soft_store_as(cpu, s->mmu, stack_linear(cpu, s, sp, size), size, value);
    s->sp = sp;
}

uint64_t soft_stack_pop(SoftCpu *cpu, SoftStack *s, unsigned size)
{
    uint64_t v = soft_load_as(cpu, s->mmu, stack_linear(cpu, s, s->sp, size), size);
    s->sp += size;
    return v;
}

void soft_stack_probe(SoftCpu *cpu, SoftStack *s, unsigned size)
{
    soft_probe_as(cpu, s->mmu, stack_linear(cpu, s, s->sp - size, size), size, SOFT_WRITE);
}

void soft_push(SoftCpu *cpu, uint64_t value, unsigned size)
{
    SoftStack s = soft_stack_current(cpu);
    uint64_t sp = s.sp - size, linear = stack_linear(cpu, &s, sp, size);
    switch (size) {
    case 2:
        soft_store16(cpu, linear, (uint16_t)value);
        break;
    case 4:
        soft_store32(cpu, linear, (uint32_t)value);
        break;
    default:
        soft_store64(cpu, linear, value);
    }
    soft_set_sp(cpu, sp);
}

uint64_t soft_peek(SoftCpu *cpu, unsigned skip, unsigned size)
{
    SoftStack s = soft_stack_current(cpu);
    uint64_t linear = stack_linear(cpu, &s, s.sp + skip, size);
    switch (size) {
    case 2:
        return soft_load16(cpu, linear);
    case 4:
        return soft_load32(cpu, linear);
    default:
        return soft_load64(cpu, linear);
    }
}

/* ---- stacks that the TSS names (SDM vol. 3 8.2.1 and 8.7) ---- */

void soft_tss_stack(SoftCpu *cpu, unsigned cpl, uint16_t *ss, uint32_t *sp)
{
    bool wide = (cpu->tr.attr & 0xf) == SYS_TSS32 || (cpu->tr.attr & 0xf) == SYS_TSS32_BUSY;
    uint32_t offset = wide ? 4 + 8 * cpl : 2 + 4 * cpl;
    uint32_t last = offset + (wide ? 5 : 3);
    if ((cpu->tr.attr & SEG_ATTR_UNUSABLE) || last > cpu->tr.limit)
        soft_raise_selector(cpu, EXC_TS, cpu->tr.selector);
    uint32_t at = (uint32_t)cpu->tr.base + offset;
    *sp = (uint32_t)soft_system_load(cpu, at, wide ? 4 : 2);
    *ss = (uint16_t)soft_system_load(cpu, at + (wide ? 4 : 2), 2);
}

uint64_t soft_tss_rsp(SoftCpu *cpu, unsigned n)
{
    uint32_t offset = n < 3 ? 4 + 8 * n : 0x24 + 8 * (n - 4);
    if ((cpu->tr.attr & SEG_ATTR_UNUSABLE) || offset + 7 > cpu->tr.limit)
        soft_raise_selector(cpu, EXC_TS, cpu->tr.selector);
    return soft_system_load(cpu, cpu->tr.base + offset, 8);
}
