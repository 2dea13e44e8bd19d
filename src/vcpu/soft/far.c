/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Far jumps and calls: code segments, call gates, task gates and task state segments (SDM vol. 3 5.8). */
#include "vcpu/soft/system-ops.h"
#include "vcpu/soft/vm.h"

typedef struct FarTarget {
    uint16_t selector;
    uint64_t offset;
} FarTarget;

static FarTarget target_imm(const SoftOp *op)
{
    return (FarTarget){(uint16_t)(op->imm >> 32), op->imm & 0xffffffff};
}

static FarTarget target_mem(SoftCpu *cpu, const SoftOp *op)
{
    uint64_t linear = soft_operand(cpu, op, op->size + 2u, SOFT_READ);
    FarTarget t = {0};
    uint8_t raw[10];
    soft_load_bytes(cpu, linear, raw, op->size + 2u);
    memcpy(&t.offset, raw, op->size);
    memcpy(&t.selector, raw + op->size, 2);
    return t;
}

static void check_offset(SoftCpu *cpu, const VcpuSegment *cs, uint64_t offset)
{
    bool wide = (cpu->mode & SOFT_MODE_LONG) && (cs->attr & SEG_ATTR_L);
    if (wide ? !soft_canonical(offset) : offset > cs->limit)
        soft_raise_error(cpu, EXC_GP, cpu->system->ext);
}

/* The hidden part of a directly addressed code segment; CPL does not change. */
static VcpuSegment direct_code(SoftCpu *cpu, SoftDescriptor *d, uint16_t selector)
{
    unsigned dpl = soft_descriptor_dpl(d), rpl = selector & 3;
    if (soft_descriptor_conforming(d) ? dpl > cpu->cpl : rpl > cpu->cpl || dpl != cpu->cpl)
        soft_raise_selector(cpu, EXC_GP, selector);
    if (!soft_descriptor_present(d))
        soft_raise_selector(cpu, EXC_NP, selector);
    VcpuSegment cs = soft_descriptor_segment(d, (uint16_t)((selector & ~3u) | cpu->cpl));
    if ((cpu->mode & SOFT_MODE_LONG) &&
        (cs.attr & (SEG_ATTR_L | SEG_ATTR_DB)) == (SEG_ATTR_L | SEG_ATTR_DB))
        soft_raise_selector(cpu, EXC_GP, selector);
    return cs;
}

static void push_return(SoftCpu *cpu, SoftStack *s, const SoftOp *op, unsigned size)
{
    soft_stack_push(cpu, s, cpu->seg[SEG_CS].selector, size);
    soft_stack_push(cpu, s, soft_next_rip(cpu, op), size);
}

static void go_direct(SoftCpu *cpu, const SoftOp *op, SoftDescriptor *d, FarTarget t, bool call)
{
    VcpuSegment cs = direct_code(cpu, d, t.selector);
    check_offset(cpu, &cs, t.offset);
    soft_descriptor_accessed(cpu, d);
    cs.attr |= 1;
    if (call) {
        SoftStack s = soft_stack_current(cpu);
        push_return(cpu, &s, op, op->size);
        soft_set_sp(cpu, s.sp);
    }
    cpu->seg[SEG_CS] = cs;
    cpu->rip = t.offset;
    soft_mode_update(cpu);
}

/* ---- call gates ---- */

typedef struct Gate {
    uint16_t selector;
    uint64_t offset;
    unsigned size; /* of what a call pushes: 2, 4, 8 */
    unsigned parameters;
} Gate;

static Gate read_gate(SoftCpu *cpu, SoftDescriptor *d, uint16_t selector)
{
    Gate g = {.selector = (uint16_t)(d->low >> 16)};
    bool wide = soft_descriptor_type(d) == SYS_CALL32;
    g.offset = d->low & 0xffff;
    if (wide)
        g.offset |= d->low >> 32 & 0xffff0000;
    g.size = wide ? 4 : 2;
    g.parameters = (unsigned)(d->low >> 32) & 0x1f;
    if (cpu->mode & SOFT_MODE_LONG) {
        soft_descriptor_read_high(cpu, selector, d);
        g.offset |= d->high << 32;
        g.size = 8;
        g.parameters = 0;
    }
    return g;
}

/* Copies the parameters and return address to the inner level's stack, which becomes current. */
static void call_inner(SoftCpu *cpu, const SoftOp *op, const Gate *g, unsigned cpl)
{
    SoftStack outer = soft_stack_current(cpu), s;
    VcpuSegment ss;
    if (cpu->mode & SOFT_MODE_LONG) {
        uint64_t sp = soft_tss_rsp(cpu, cpl);
        ss = soft_segment_null((uint16_t)cpl);
        s = soft_stack_of(cpu, &ss, sp, cpl);
        s.wide = true;
        s.base = 0;
        s.mask = UINT64_MAX;
    } else {
        uint16_t selector;
        uint32_t sp;
        soft_tss_stack(cpu, cpl, &selector, &sp);
        ss = soft_segment_stack(cpu, selector, cpl, EXC_TS);
        s = soft_stack_of(cpu, &ss, sp, cpl);
    }
    soft_stack_push(cpu, &s, cpu->seg[SEG_SS].selector, g->size);
    soft_stack_push(cpu, &s, cpu->gpr[GPR_RSP] & outer.mask, g->size);
    for (unsigned i = g->parameters; i-- > 0;) {
        SoftStack at = outer;
        at.sp += i * g->size;
        soft_stack_push(cpu, &s, soft_stack_pop(cpu, &at, g->size), g->size);
    }
    push_return(cpu, &s, op, g->size);
    cpu->seg[SEG_SS] = ss;
    soft_set_cpl(cpu, cpl);
    if (s.wide || (ss.attr & SEG_ATTR_DB))
        cpu->gpr[GPR_RSP] = s.wide ? s.sp : (uint32_t)s.sp;
    else
        cpu->gpr[GPR_RSP] = (cpu->gpr[GPR_RSP] & ~(uint64_t)0xffff) | (s.sp & 0xffff);
}

static void go_gate(SoftCpu *cpu, const SoftOp *op, SoftDescriptor *d, uint16_t selector, bool call)
{
    unsigned dpl = soft_descriptor_dpl(d);
    if (dpl < cpu->cpl || dpl < (selector & 3u))
        soft_raise_selector(cpu, EXC_GP, selector);
    if (!soft_descriptor_present(d))
        soft_raise_selector(cpu, EXC_NP, selector);
    Gate g = read_gate(cpu, d, selector);
    SoftDescriptor code;
    if (!(g.selector & 0xfffc))
        soft_raise_error(cpu, EXC_GP, 0);
    if (!soft_descriptor_read(cpu, g.selector, &code) || !soft_descriptor_code(&code) ||
        soft_descriptor_dpl(&code) > cpu->cpl)
        soft_raise_selector(cpu, EXC_GP, g.selector);
    bool conforming = soft_descriptor_conforming(&code);
    unsigned cpl = conforming ? cpu->cpl : soft_descriptor_dpl(&code);
    if (!call && cpl != cpu->cpl)
        soft_raise_selector(cpu, EXC_GP, g.selector);
    VcpuSegment cs = soft_descriptor_segment(&code, (uint16_t)((g.selector & ~3u) | cpl));
    if ((cpu->mode & SOFT_MODE_LONG) && (cs.attr & (SEG_ATTR_L | SEG_ATTR_DB)) != SEG_ATTR_L)
        soft_raise_selector(cpu, EXC_GP, g.selector);
    if (!soft_descriptor_present(&code))
        soft_raise_selector(cpu, EXC_NP, g.selector);
    check_offset(cpu, &cs, g.offset);
    soft_descriptor_accessed(cpu, &code);
    cs.attr |= 1;
    if (call && cpl < cpu->cpl) {
        call_inner(cpu, op, &g, cpl);
    } else if (call) {
        SoftStack s = soft_stack_current(cpu);
        push_return(cpu, &s, op, g.size);
        soft_set_sp(cpu, s.sp);
    }
    cpu->seg[SEG_CS] = cs;
    cpu->rip = g.offset;
    soft_mode_update(cpu);
}

/* ---- dispatch ---- */

static void go_task(SoftCpu *cpu, const SoftOp *op, SoftDescriptor *d, uint16_t selector, bool call)
{
    unsigned dpl = soft_descriptor_dpl(d);
    if ((cpu->mode & SOFT_MODE_LONG) || dpl < cpu->cpl || dpl < (selector & 3u))
        soft_raise_selector(cpu, EXC_GP, selector);
    if (soft_descriptor_type(d) == SYS_TASK_GATE) {
        if (!soft_descriptor_present(d))
            soft_raise_selector(cpu, EXC_NP, selector);
        selector = (uint16_t)(d->low >> 16);
    }
    soft_task_switch(cpu, selector, call ? SOFT_TASK_CALL : SOFT_TASK_JMP, soft_next_rip(cpu, op),
                     false, 0);
}

static void go_protected(SoftCpu *cpu, const SoftOp *op, FarTarget t, bool call)
{
    SoftDescriptor d;
    if (!(t.selector & 0xfffc))
        soft_raise_error(cpu, EXC_GP, 0);
    if (!soft_descriptor_read(cpu, t.selector, &d))
        soft_raise_selector(cpu, EXC_GP, t.selector);
    if (soft_descriptor_s(&d)) {
        if (!soft_descriptor_code(&d))
            soft_raise_selector(cpu, EXC_GP, t.selector);
        go_direct(cpu, op, &d, t, call);
        return;
    }
    bool long_mode = cpu->mode & SOFT_MODE_LONG;
    switch (soft_descriptor_type(&d)) {
    case SYS_CALL16:
        if (long_mode)
            soft_raise_selector(cpu, EXC_GP, t.selector);
        go_gate(cpu, op, &d, t.selector, call);
        break;
    case SYS_CALL32:
        go_gate(cpu, op, &d, t.selector, call);
        break;
    case SYS_TASK_GATE:
    case SYS_TSS16:
    case SYS_TSS32:
        go_task(cpu, op, &d, t.selector, call);
        break;
    default:
        soft_raise_selector(cpu, EXC_GP, t.selector);
    }
}

static void go_real(SoftCpu *cpu, const SoftOp *op, FarTarget t, bool call)
{
    if (t.offset > cpu->seg[SEG_CS].limit)
        soft_raise_error(cpu, EXC_GP, 0);
    if (call) {
        SoftStack s = soft_stack_current(cpu);
        push_return(cpu, &s, op, op->size);
        soft_set_sp(cpu, s.sp);
    }
    soft_segment_real(cpu, SEG_CS, t.selector);
    cpu->rip = t.offset;
    soft_mode_update(cpu);
}

static void go(SoftCpu *cpu, const SoftOp *op, FarTarget t, bool call)
{
    if ((cpu->mode & (SOFT_MODE_PROTECTED | SOFT_MODE_VM86)) == SOFT_MODE_PROTECTED)
        go_protected(cpu, op, t, call);
    else
        go_real(cpu, op, t, call);
}

void soft_op_jmp_far_imm(SoftCpu *cpu, const SoftOp *op)
{
    cpu->op = op;
    go(cpu, op, target_imm(op), false);
}

void soft_op_call_far_imm(SoftCpu *cpu, const SoftOp *op)
{
    cpu->op = op;
    go(cpu, op, target_imm(op), true);
}

void soft_op_jmp_far_mem(SoftCpu *cpu, const SoftOp *op)
{
    cpu->op = op;
    go(cpu, op, target_mem(cpu, op), false);
}

void soft_op_call_far_mem(SoftCpu *cpu, const SoftOp *op)
{
    cpu->op = op;
    go(cpu, op, target_mem(cpu, op), true);
}
