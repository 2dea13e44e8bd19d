/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Exceptions, interrupts and INT n: delivery in every mode (SDM vol. 3 chapter 6 and 20.1). */
#include "vcpu/soft/system-ops.h"
#include "vcpu/soft/vm.h"

_Noreturn static void leave(SoftCpu *cpu, unsigned vector, bool has_error, uint32_t error)
{
    cpu->fault_vector = (uint8_t)vector;
    cpu->fault_has_error = has_error;
    cpu->fault_error = error;
    longjmp(cpu->fault_jump, 1);
}

void soft_raise(SoftCpu *cpu, unsigned vector)
{
    leave(cpu, vector, false, 0);
}

void soft_raise_error(SoftCpu *cpu, unsigned vector, uint32_t error)
{
    leave(cpu, vector, true, error);
}

void soft_raise_pf(SoftCpu *cpu, uint64_t linear, uint32_t error)
{
    cpu->cr2 = linear;
    leave(cpu, EXC_PF, true, error);
}

/* An event on its way through a gate. */
typedef struct Delivery {
    unsigned vector, type;
    bool has_error;
    uint32_t error;
    uint64_t rip;    /* the return address */
    uint64_t rflags; /* as pushed */
    /* from the gate */
    uint16_t selector;
    uint64_t offset;
    unsigned gate_type, ist;
    /* the handler's code segment */
    VcpuSegment cs;
    unsigned cpl;
} Delivery;

/* ---- real mode ---- */

static void deliver_real(SoftCpu *cpu, const Delivery *d)
{
    uint32_t offset = d->vector * 4;
    if (offset + 3 > cpu->idtr.limit)
        soft_raise_error(cpu, EXC_GP, d->vector * 8 + 2);
    uint32_t entry = (uint32_t)soft_system_load(cpu, (uint32_t)cpu->idtr.base + offset, 4);
    SoftStack s = soft_stack_current(cpu);
    soft_stack_push(cpu, &s, d->rflags, 2);
    soft_stack_push(cpu, &s, cpu->seg[SEG_CS].selector, 2);
    soft_stack_push(cpu, &s, d->rip, 2);
    soft_set_sp(cpu, s.sp);
    soft_segment_real(cpu, SEG_CS, (uint16_t)(entry >> 16));
    cpu->rip = entry & 0xffff;
    cpu->rflags &= ~(uint64_t)(FLAG_IF | FLAG_TF | FLAG_AC | FLAG_RF);
}

/* ---- gates ---- */

_Noreturn static void raise_gate(SoftCpu *cpu, const Delivery *d, unsigned vector)
{
    soft_raise_error(cpu, vector, d->vector * 8 + 2 + cpu->system->ext);
}

static void read_gate(SoftCpu *cpu, Delivery *d)
{
    bool long_mode = cpu->mode & SOFT_MODE_LONG;
    uint32_t size = long_mode ? 16 : 8, offset = d->vector * size;
    if (offset + size - 1 > cpu->idtr.limit)
        raise_gate(cpu, d, EXC_GP);
    uint64_t at = cpu->idtr.base + offset;
    uint64_t low = soft_system_load(cpu, long_mode ? at : (uint32_t)at, 8);
    uint64_t high = long_mode ? soft_system_load(cpu, at + 8, 8) : 0;

    d->gate_type = (unsigned)(low >> 40) & 0x1f;
    bool known = d->gate_type == SYS_INT32 || d->gate_type == SYS_TRAP32;
    if (!long_mode)
        known = known || d->gate_type == SYS_INT16 || d->gate_type == SYS_TRAP16 ||
                d->gate_type == SYS_TASK_GATE;
    if (!known)
        raise_gate(cpu, d, EXC_GP);
    if (d->type == SOFT_EVENT_SOFTWARE && (low >> 45 & 3) < cpu->cpl)
        raise_gate(cpu, d, EXC_GP);
    if (!(low >> 47 & 1))
        raise_gate(cpu, d, EXC_NP);
    d->selector = (uint16_t)(low >> 16);
    d->offset = (low & 0xffff) | (low >> 32 & 0xffff0000) | high << 32;
    if (d->gate_type == SYS_INT16 || d->gate_type == SYS_TRAP16)
        d->offset &= 0xffff;
    d->ist = long_mode ? (unsigned)(low >> 32) & 7 : 0;
}

static void read_code(SoftCpu *cpu, Delivery *d)
{
    SoftDescriptor code;
    if (!(d->selector & 0xfffc))
        soft_raise_selector(cpu, EXC_GP, 0);
    if (!soft_descriptor_read(cpu, d->selector, &code) || !soft_descriptor_code(&code) ||
        soft_descriptor_dpl(&code) > cpu->cpl)
        soft_raise_selector(cpu, EXC_GP, d->selector);
    if (!soft_descriptor_present(&code))
        soft_raise_selector(cpu, EXC_NP, d->selector);
    unsigned dpl = soft_descriptor_dpl(&code);
    d->cpl = soft_descriptor_conforming(&code) ? cpu->cpl : dpl;
    if ((cpu->mode & SOFT_MODE_VM86) && d->cpl != 0)
        soft_raise_selector(cpu, EXC_GP, d->selector);
    d->cs = soft_descriptor_segment(&code, (uint16_t)((d->selector & ~3u) | d->cpl));
    if ((cpu->mode & SOFT_MODE_LONG) &&
        (d->cs.attr & (SEG_ATTR_L | SEG_ATTR_DB)) != SEG_ATTR_L)
        soft_raise_selector(cpu, EXC_GP, d->selector);
    soft_descriptor_accessed(cpu, &code);
    d->cs.attr |= 1;
}

static void enter_handler(SoftCpu *cpu, const Delivery *d)
{
    cpu->seg[SEG_CS] = d->cs;
    soft_set_cpl(cpu, d->cpl);
    cpu->rip = d->offset;
    cpu->rflags &= ~(uint64_t)(FLAG_TF | FLAG_NT | FLAG_RF | FLAG_VM);
    if (!(d->gate_type & 1))
        cpu->rflags &= ~(uint64_t)FLAG_IF;
}

static void deliver_long(SoftCpu *cpu, Delivery *d)
{
    read_code(cpu, d);
    SoftStack s = soft_stack_current(cpu);
    s.wide = true;
    s.base = 0;
    s.mask = UINT64_MAX;
    s.error = cpu->system->ext;
    s.mmu = d->cpl == 3 ? SOFT_MMU_USER : soft_supervisor_mmu(cpu, false);
    if (d->ist)
        s.sp = soft_tss_rsp(cpu, 3 + d->ist);
    else if (d->cpl < cpu->cpl)
        s.sp = soft_tss_rsp(cpu, d->cpl);
    if (!soft_canonical(s.sp))
        soft_raise_error(cpu, EXC_SS, cpu->system->ext);
    if (!soft_canonical(d->offset))
        soft_raise_error(cpu, EXC_GP, cpu->system->ext);
    s.sp &= ~(uint64_t)15;
    soft_stack_push(cpu, &s, cpu->seg[SEG_SS].selector, 8);
    soft_stack_push(cpu, &s, cpu->gpr[GPR_RSP], 8);
    soft_stack_push(cpu, &s, d->rflags, 8);
    soft_stack_push(cpu, &s, cpu->seg[SEG_CS].selector, 8);
    soft_stack_push(cpu, &s, d->rip, 8);
    if (d->has_error)
        soft_stack_push(cpu, &s, d->error, 8);
    if (d->cpl < cpu->cpl)
        cpu->seg[SEG_SS] = soft_segment_null((uint16_t)d->cpl);
    cpu->gpr[GPR_RSP] = s.sp;
    enter_handler(cpu, d);
}

/* A 16- or 32-bit gate in protected mode; @vm86: the interrupted code's mode. */
static void deliver_legacy(SoftCpu *cpu, Delivery *d)
{
    read_code(cpu, d);
    unsigned size = d->gate_type & 8 ? 4 : 2;
    bool inner = d->cpl < cpu->cpl, vm86 = cpu->mode & SOFT_MODE_VM86;
    SoftStack s = soft_stack_current(cpu);
    s.error = cpu->system->ext;
    if (inner) {
        uint16_t selector;
        uint32_t sp;
        soft_tss_stack(cpu, d->cpl, &selector, &sp);
        VcpuSegment ss = soft_segment_stack(cpu, selector, d->cpl, EXC_TS);
        s = soft_stack_of(cpu, &ss, sp, d->cpl);
        if (vm86) {
            soft_stack_push(cpu, &s, cpu->seg[SEG_GS].selector, size);
            soft_stack_push(cpu, &s, cpu->seg[SEG_FS].selector, size);
            soft_stack_push(cpu, &s, cpu->seg[SEG_DS].selector, size);
            soft_stack_push(cpu, &s, cpu->seg[SEG_ES].selector, size);
        }
        soft_stack_push(cpu, &s, cpu->seg[SEG_SS].selector, size);
        soft_stack_push(cpu, &s, cpu->gpr[GPR_RSP], size);
    }
    soft_stack_push(cpu, &s, d->rflags, size);
    soft_stack_push(cpu, &s, cpu->seg[SEG_CS].selector, size);
    soft_stack_push(cpu, &s, d->rip, size);
    if (d->has_error)
        soft_stack_push(cpu, &s, d->error, size);
    if (d->offset > d->cs.limit)
        soft_raise_error(cpu, EXC_GP, cpu->system->ext);

    if (vm86)
        for (unsigned i = 0; i < SEG_COUNT; i++)
            if (i != SEG_CS && i != SEG_SS)
                cpu->seg[i] = soft_segment_null(0);
    enter_handler(cpu, d);
    if (inner)
        cpu->seg[SEG_SS] = s.ss;
    soft_mode_update(cpu);
    soft_set_sp(cpu, s.sp);
}

static void deliver_protected(SoftCpu *cpu, Delivery *d)
{
    read_gate(cpu, d);
    if (d->gate_type == SYS_TASK_GATE)
        soft_task_switch(cpu, d->selector, SOFT_TASK_GATE, d->rip, d->has_error, d->error);
    else if (cpu->mode & SOFT_MODE_LONG)
        deliver_long(cpu, d);
    else
        deliver_legacy(cpu, d);
}

/* RF in the pushed image: set by faults, but not by #DB (SDM vol. 3 17.3.1.1). */
static uint64_t pushed_flags(const SoftCpu *cpu, unsigned vector, unsigned type)
{
    uint64_t f = soft_rflags(cpu);
    if (type == SOFT_EVENT_EXCEPTION && vector != EXC_DB && vector != EXC_BP && vector != EXC_OF)
        f |= FLAG_RF;
    return f;
}

void soft_event_deliver(SoftCpu *cpu, unsigned vector, unsigned type, bool has_error,
                        uint32_t error, uint64_t rip)
{
    SoftSystem *s = cpu->system;
    Delivery d = {.vector = vector, .type = type, .has_error = has_error, .error = error};
    d.rip = rip;
    d.rflags = pushed_flags(cpu, vector, type);
    s->delivering = true;
    s->delivering_vector = (uint8_t)vector;
    s->delivering_exception = type == SOFT_EVENT_EXCEPTION;
    s->ext = type == SOFT_EVENT_SOFTWARE ? 0 : 1;
    /* A fault on the way returns to the instruction that is not done: an INT n itself. */
    if (type == SOFT_EVENT_SOFTWARE)
        cpu->rip = cpu->op->rip;
    else
        cpu->rip = rip;
    if (cpu->cr0 & CR0_PE)
        deliver_protected(cpu, &d);
    else
        deliver_real(cpu, &d);
    s->delivering = false;
    s->ext = 0;
    s->no_step = true;
    if (vector == EXC_DB && type == SOFT_EVENT_EXCEPTION)
        cpu->dr[7] &= ~(uint64_t)0x2000; /* GD, so that the handler may use the debug registers */
    soft_mode_update(cpu);
    soft_pend(cpu, SOFT_PENDING_LOOP);
}

static bool contributory(unsigned vector)
{
    return vector == EXC_DE || (vector >= EXC_TS && vector <= EXC_GP);
}

void soft_event_exception(SoftCpu *cpu, unsigned vector, bool has_error, uint32_t error,
                          uint64_t rip)
{
    SoftSystem *s = cpu->system;
    if (s->delivering && s->delivering_exception) {
        unsigned first = s->delivering_vector;
        bool second_bad = contributory(vector) || vector == EXC_PF;
        if (first == EXC_DF && second_bad) {
            s->delivering = false;
            s->ext = 0;
            s->triple = true;
            return;
        }
        if ((contributory(first) && contributory(vector)) || (first == EXC_PF && second_bad)) {
            vector = EXC_DF;
            has_error = true;
            error = 0;
        }
    }
    soft_event_deliver(cpu, vector, SOFT_EVENT_EXCEPTION, has_error, error, rip);
}

/* ---- the instructions ---- */

static void software_interrupt(SoftCpu *cpu, const SoftOp *op, unsigned vector)
{
    cpu->op = op;
    soft_event_deliver(cpu, vector, SOFT_EVENT_SOFTWARE, false, 0, soft_next_rip(cpu, op));
}

void soft_op_int3(SoftCpu *cpu, const SoftOp *op)
{
    software_interrupt(cpu, op, EXC_BP);
}

void soft_op_into(SoftCpu *cpu, const SoftOp *op)
{
    if (cpu->arith & ARITH_OF)
        software_interrupt(cpu, op, EXC_OF);
    else
        cpu->rip = soft_next_rip(cpu, op);
}

void soft_op_int1(SoftCpu *cpu, const SoftOp *op)
{
    cpu->op = op;
    /* A trap that MOV SS held off arrives together with this one. */
    cpu->dr[6] |= cpu->system->debug_hits;
    cpu->system->debug_hits = 0;
    soft_event_deliver(cpu, EXC_DB, SOFT_EVENT_INT1, false, 0, soft_next_rip(cpu, op));
}

/* VM86 with CR4.VME: bit @vector of the redirection map below the I/O bitmap (SDM vol. 3 20.3.3). */
static bool redirected(SoftCpu *cpu, unsigned vector)
{
    if (cpu->tr.limit < 0x67)
        return false;
    uint32_t map = (uint32_t)soft_system_load(cpu, cpu->tr.base + 0x66, 2);
    if (map < 32 || map - 32 + vector / 8 > cpu->tr.limit)
        return false;
    uint64_t byte = soft_system_load(cpu, (uint32_t)(cpu->tr.base + map - 32 + vector / 8), 1);
    return !(byte >> (vector % 8) & 1);
}

static void virtual_interrupt(SoftCpu *cpu, const SoftOp *op, unsigned vector)
{
    uint32_t entry = (uint32_t)soft_load_as(cpu, cpu->mmu, vector * 4, 4);
    uint64_t flags = soft_rflags(cpu);
    bool open = soft_iopl(cpu) == 3;
    if (!open) {
        flags = (flags & ~(uint64_t)FLAG_IF) | FLAG_IOPL;
        if (flags & FLAG_VIF)
            flags |= FLAG_IF;
    }
    SoftStack s = soft_stack_current(cpu);
    soft_stack_push(cpu, &s, flags, 2);
    soft_stack_push(cpu, &s, cpu->seg[SEG_CS].selector, 2);
    soft_stack_push(cpu, &s, soft_next_rip(cpu, op), 2);
    soft_set_sp(cpu, s.sp);
    soft_segment_real(cpu, SEG_CS, (uint16_t)(entry >> 16));
    cpu->rip = entry & 0xffff;
    cpu->rflags &= ~(uint64_t)(FLAG_TF | FLAG_NT | (open ? FLAG_IF : FLAG_VIF));
    soft_mode_update(cpu);
    soft_pend(cpu, SOFT_PENDING_LOOP);
}

void soft_op_int_imm(SoftCpu *cpu, const SoftOp *op)
{
    unsigned vector = (uint8_t)op->imm;
    cpu->op = op;
    if (cpu->mode & SOFT_MODE_VM86) {
        if ((cpu->cr4 & CR4_VME) && redirected(cpu, vector)) {
            virtual_interrupt(cpu, op, vector);
            return;
        }
        if (soft_iopl(cpu) < 3)
            soft_raise_error(cpu, EXC_GP, 0);
    }
    software_interrupt(cpu, op, vector);
}

void soft_op_undefined(SoftCpu *cpu, const SoftOp *op)
{
    cpu->op = op;
    soft_raise(cpu, EXC_UD);
}
