/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* IRET in every mode, and far returns, which share its checks (SDM vol. 2 IRET, RET). */
#include "vcpu/soft/system-ops.h"
#include "vcpu/soft/vm.h"

/* The code segment that a return goes to; every check but that of the offset. */
static VcpuSegment return_code(SoftCpu *cpu, uint16_t selector)
{
    SoftDescriptor d;
    unsigned rpl = selector & 3;
    if (!(selector & 0xfffc))
        soft_raise_error(cpu, EXC_GP, 0);
    if (!soft_descriptor_read(cpu, selector, &d) || !soft_descriptor_code(&d) || rpl < cpu->cpl)
        soft_raise_selector(cpu, EXC_GP, selector);
    unsigned dpl = soft_descriptor_dpl(&d);
    if (soft_descriptor_conforming(&d) ? dpl > rpl : dpl != rpl)
        soft_raise_selector(cpu, EXC_GP, selector);
    VcpuSegment cs = soft_descriptor_segment(&d, selector);
    if ((cpu->mode & SOFT_MODE_LONG) &&
        (cs.attr & (SEG_ATTR_L | SEG_ATTR_DB)) == (SEG_ATTR_L | SEG_ATTR_DB))
        soft_raise_selector(cpu, EXC_GP, selector);
    if (!soft_descriptor_present(&d))
        soft_raise_selector(cpu, EXC_NP, selector);
    soft_descriptor_accessed(cpu, &d);
    cs.attr |= 1;
    return cs;
}

static void check_target(SoftCpu *cpu, const VcpuSegment *cs, uint64_t rip)
{
    bool wide = (cpu->mode & SOFT_MODE_LONG) && (cs->attr & SEG_ATTR_L);
    if (wide ? !soft_canonical(rip) : rip > cs->limit)
        soft_raise_error(cpu, EXC_GP, 0);
}

static VcpuSegment return_stack(SoftCpu *cpu, const VcpuSegment *cs, uint16_t selector,
                                unsigned cpl)
{
    if (!(selector & 0xfffc)) {
        bool wide = (cpu->mode & SOFT_MODE_LONG) && (cs->attr & SEG_ATTR_L);
        if (!wide || cpl == 3 || (selector & 3) != cpl)
            soft_raise_error(cpu, EXC_GP, 0);
        return soft_segment_null(selector);
    }
    return soft_segment_stack(cpu, selector, cpl, EXC_GP);
}

/* The flags that IRET and POPF may change at this privilege (SDM vol. 2 POPF, table 4-15). */
static uint64_t flags_mask(const SoftCpu *cpu, unsigned size)
{
    uint64_t mask = FLAG_ARITH | FLAG_TF | FLAG_DF | FLAG_NT;
    if (size > 2)
        mask |= FLAG_RF | FLAG_AC | FLAG_ID;
    if (cpu->cpl <= soft_iopl(cpu))
        mask |= FLAG_IF;
    if (cpu->cpl == 0) {
        mask |= FLAG_IOPL;
        if (size > 2)
            mask |= FLAG_VIF | FLAG_VIP;
    }
    return mask;
}

static void flags_load(SoftCpu *cpu, uint64_t value, uint64_t mask)
{
    soft_rflags_set(cpu, (soft_rflags(cpu) & ~mask) | (value & mask));
}

static void nmi_unmask(SoftCpu *cpu)
{
    cpu->nmi_masked = false;
    if (cpu->system->nmi_waiting)
        soft_pend(cpu, SOFT_PENDING_LOOP);
}

/* RF holds for one instruction, and only code breakpoints ask for it: without one it is over. */
static void resume_flag(SoftCpu *cpu)
{
    if (!cpu->system->code_breakpoints)
        cpu->rflags &= ~(uint64_t)FLAG_RF;
    else if (cpu->rflags & FLAG_RF)
        soft_pend(cpu, SOFT_PENDING_LOOP);
}

static void finish(SoftCpu *cpu)
{
    resume_flag(cpu);
    soft_mode_update(cpu);
    nmi_unmask(cpu);
}

static void iret_real(SoftCpu *cpu, unsigned size)
{
    SoftStack s = soft_stack_current(cpu);
    uint64_t rip = soft_stack_pop(cpu, &s, size);
    uint16_t cs = (uint16_t)soft_stack_pop(cpu, &s, size);
    uint64_t flags = soft_stack_pop(cpu, &s, size);
    if (rip > cpu->seg[SEG_CS].limit)
        soft_raise_error(cpu, EXC_GP, 0);
    soft_set_sp(cpu, s.sp);
    soft_segment_real(cpu, SEG_CS, cs);
    cpu->rip = rip;
    uint64_t mask = flags_mask(cpu, size);
    if (cpu->rflags & FLAG_VM)
        mask &= ~(uint64_t)FLAG_IOPL;
    flags_load(cpu, flags, mask & ~(uint64_t)(FLAG_VIF | FLAG_VIP));
    finish(cpu);
}

/* VM86: with IOPL 3 as in real mode; else #GP, or with CR4.VME on the virtual interrupt flag. */
static void iret_vm86(SoftCpu *cpu, unsigned size)
{
    if (soft_iopl(cpu) == 3) {
        iret_real(cpu, size);
        return;
    }
    if (!(cpu->cr4 & CR4_VME) || size != 2)
        soft_raise_error(cpu, EXC_GP, 0);
    SoftStack s = soft_stack_current(cpu);
    uint64_t rip = soft_stack_pop(cpu, &s, 2);
    uint16_t cs = (uint16_t)soft_stack_pop(cpu, &s, 2);
    uint64_t flags = soft_stack_pop(cpu, &s, 2);
    if (((flags & FLAG_IF) && (cpu->rflags & FLAG_VIP)) || (flags & FLAG_TF))
        soft_raise_error(cpu, EXC_GP, 0);
    soft_set_sp(cpu, s.sp);
    soft_segment_real(cpu, SEG_CS, cs);
    cpu->rip = rip;
    if (flags & FLAG_IF)
        flags |= FLAG_VIF;
    flags_load(cpu, flags, FLAG_ARITH | FLAG_TF | FLAG_DF | FLAG_NT | FLAG_VIF);
    finish(cpu);
}

static void iret_to_vm86(SoftCpu *cpu, SoftStack *s, uint64_t rip, uint16_t cs, uint64_t flags)
{
    static const uint8_t order[] = {SEG_ES, SEG_DS, SEG_FS, SEG_GS};
    uint16_t selector[4];
    uint64_t sp = soft_stack_pop(cpu, s, 4);
    uint16_t ss = (uint16_t)soft_stack_pop(cpu, s, 4);
    for (unsigned i = 0; i < 4; i++)
        selector[i] = (uint16_t)soft_stack_pop(cpu, s, 4);
    if (rip > 0xffff)
        soft_raise_error(cpu, EXC_GP, 0);
    cpu->rflags |= FLAG_VM;
    for (unsigned i = 0; i < 4; i++)
        soft_segment_real(cpu, order[i], selector[i]);
    soft_segment_real(cpu, SEG_CS, cs);
    soft_segment_real(cpu, SEG_SS, ss);
    cpu->gpr[GPR_RSP] = (uint32_t)sp;
    cpu->rip = rip;
    uint64_t mask = flags_mask(cpu, 4) | FLAG_VM;
    soft_set_cpl(cpu, 3);
    flags_load(cpu, flags, mask);
    finish(cpu);
}

static void iret_task(SoftCpu *cpu, const SoftOp *op)
{
    if (cpu->mode & SOFT_MODE_LONG)
        soft_raise_error(cpu, EXC_GP, 0);
    uint16_t link = (uint16_t)soft_system_load(cpu, (uint32_t)cpu->tr.base, 2);
    soft_task_switch(cpu, link, SOFT_TASK_IRET, soft_next_rip(cpu, op), false, 0);
    resume_flag(cpu);
    nmi_unmask(cpu);
}

static void iret_protected(SoftCpu *cpu, const SoftOp *op)
{
    unsigned size = op->size;
    if (cpu->rflags & FLAG_NT) {
        iret_task(cpu, op);
        return;
    }
    SoftStack s = soft_stack_current(cpu);
    uint64_t rip = soft_stack_pop(cpu, &s, size);
    uint16_t selector = (uint16_t)soft_stack_pop(cpu, &s, size);
    uint64_t flags = soft_stack_pop(cpu, &s, size);
    if (size == 4 && (flags & FLAG_VM) && cpu->cpl == 0 && !(cpu->mode & SOFT_MODE_LONG)) {
        iret_to_vm86(cpu, &s, rip, selector, flags);
        return;
    }
    VcpuSegment cs = return_code(cpu, selector);
    unsigned cpl = selector & 3;
    bool outer = cpl > cpu->cpl;
    VcpuSegment ss = cpu->seg[SEG_SS];
    uint64_t sp = s.sp;
    if (outer || (cpu->mode & SOFT_MODE_CODE64)) {
        sp = soft_stack_pop(cpu, &s, size);
        ss = return_stack(cpu, &cs, (uint16_t)soft_stack_pop(cpu, &s, size), cpl);
    }
    check_target(cpu, &cs, rip);

    bool was64 = cpu->mode & SOFT_MODE_CODE64;
    uint64_t mask = flags_mask(cpu, size);
    cpu->seg[SEG_CS] = cs;
    cpu->seg[SEG_SS] = ss;
    soft_set_cpl(cpu, cpl);
    cpu->rip = rip;
    flags_load(cpu, flags, mask);
    if (was64 && size == 8)
        cpu->gpr[GPR_RSP] = sp;
    else
        soft_set_sp(cpu, sp);
    if (outer)
        soft_segment_return_checks(cpu);
    finish(cpu);
}

void soft_op_iret(SoftCpu *cpu, const SoftOp *op)
{
    cpu->op = op;
    if (!(cpu->cr0 & CR0_PE))
        iret_real(cpu, op->size);
    else if (cpu->mode & SOFT_MODE_VM86)
        iret_vm86(cpu, op->size);
    else
        iret_protected(cpu, op);
}

/* ---- far returns ---- */

static void retf_real(SoftCpu *cpu, const SoftOp *op, unsigned drop)
{
    SoftStack s = soft_stack_current(cpu);
    uint64_t rip = soft_stack_pop(cpu, &s, op->size);
    uint16_t cs = (uint16_t)soft_stack_pop(cpu, &s, op->size);
    if (rip > cpu->seg[SEG_CS].limit)
        soft_raise_error(cpu, EXC_GP, 0);
    soft_set_sp(cpu, s.sp + drop);
    soft_segment_real(cpu, SEG_CS, cs);
    cpu->rip = rip;
    soft_mode_update(cpu);
}

static void retf_protected(SoftCpu *cpu, const SoftOp *op, unsigned drop)
{
    SoftStack s = soft_stack_current(cpu);
    uint64_t rip = soft_stack_pop(cpu, &s, op->size);
    uint16_t selector = (uint16_t)soft_stack_pop(cpu, &s, op->size);
    VcpuSegment cs = return_code(cpu, selector);
    unsigned cpl = selector & 3;
    s.sp += drop;
    if (cpl == cpu->cpl) {
        check_target(cpu, &cs, rip);
        soft_set_sp(cpu, s.sp);
        cpu->seg[SEG_CS] = cs;
        cpu->rip = rip;
        soft_mode_update(cpu);
        return;
    }
    uint64_t sp = soft_stack_pop(cpu, &s, op->size);
    VcpuSegment ss =
        return_stack(cpu, &cs, (uint16_t)soft_stack_pop(cpu, &s, op->size), cpl);
    check_target(cpu, &cs, rip);
    cpu->seg[SEG_CS] = cs;
    cpu->seg[SEG_SS] = ss;
    soft_set_cpl(cpu, cpl);
    cpu->rip = rip;
    soft_mode_update(cpu);
    soft_set_sp(cpu, sp + drop);
    soft_segment_return_checks(cpu);
    soft_mode_update(cpu);
}

static void retf(SoftCpu *cpu, const SoftOp *op, unsigned drop)
{
    cpu->op = op;
    if ((cpu->mode & (SOFT_MODE_PROTECTED | SOFT_MODE_VM86)) == SOFT_MODE_PROTECTED)
        retf_protected(cpu, op, drop);
    else
        retf_real(cpu, op, drop);
}

void soft_op_retf(SoftCpu *cpu, const SoftOp *op)
{
    retf(cpu, op, 0);
}

void soft_op_retf_imm(SoftCpu *cpu, const SoftOp *op)
{
    retf(cpu, op, op->imm & 0xffff);
}

/* ---- PUSHF and POPF ---- */

void soft_op_pushf(SoftCpu *cpu, const SoftOp *op)
{
    cpu->op = op;
    uint64_t flags = soft_rflags(cpu) & ~(uint64_t)(FLAG_VM | FLAG_RF);
    if ((cpu->mode & SOFT_MODE_VM86) && soft_iopl(cpu) < 3) {
        if (!(cpu->cr4 & CR4_VME) || op->size != 2)
            soft_raise_error(cpu, EXC_GP, 0);
        flags = (flags & ~(uint64_t)FLAG_IF) | FLAG_IOPL;
        if (flags & FLAG_VIF)
            flags |= FLAG_IF;
    }
    soft_push(cpu, flags, op->size);
    cpu->rip = soft_next_rip(cpu, op);
}

static void popf_virtual(SoftCpu *cpu, const SoftOp *op)
{
    if (!(cpu->cr4 & CR4_VME) || op->size != 2)
        soft_raise_error(cpu, EXC_GP, 0);
    uint64_t flags = soft_peek(cpu, 0, 2);
    if (((flags & FLAG_IF) && (cpu->rflags & FLAG_VIP)) || (flags & FLAG_TF))
        soft_raise_error(cpu, EXC_GP, 0);
    soft_stack_add(cpu, 2);
    if (flags & FLAG_IF)
        flags |= FLAG_VIF;
    flags_load(cpu, flags, FLAG_ARITH | FLAG_TF | FLAG_DF | FLAG_NT | FLAG_VIF);
}

void soft_op_popf(SoftCpu *cpu, const SoftOp *op)
{
    cpu->op = op;
    if ((cpu->mode & SOFT_MODE_VM86) && soft_iopl(cpu) < 3) {
        popf_virtual(cpu, op);
    } else {
        uint64_t flags = soft_peek(cpu, 0, op->size);
        uint64_t mask = flags_mask(cpu, op->size) & ~(uint64_t)(FLAG_VIF | FLAG_VIP);
        soft_stack_add(cpu, op->size);
        flags_load(cpu, flags, mask & ~(uint64_t)FLAG_RF);
    }
    cpu->rip = soft_next_rip(cpu, op);
}
