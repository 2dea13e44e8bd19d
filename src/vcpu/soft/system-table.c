/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Descriptor table registers, and instructions that look at or load selectors. */
#include "vcpu/soft/system-ops.h"
#include "vcpu/soft/vm.h"

static void advance(SoftCpu *cpu, const SoftOp *op)
{
    cpu->rip = soft_next_rip(cpu, op);
}

/* SGDT, SIDT, SLDT, STR, SMSW with CR4.UMIP (SDM vol. 3 2.5). */
static void check_umip(SoftCpu *cpu, const SoftOp *op)
{
    cpu->op = op;
    if ((cpu->cr4 & CR4_UMIP) && cpu->cpl != 0)
        soft_raise_error(cpu, EXC_GP, 0);
}

static void require_protected(SoftCpu *cpu, const SoftOp *op)
{
    cpu->op = op;
    if ((cpu->mode & (SOFT_MODE_PROTECTED | SOFT_MODE_VM86)) != SOFT_MODE_PROTECTED)
        soft_raise(cpu, EXC_UD);
}

/* ---- GDTR and IDTR ---- */

static void table_store(SoftCpu *cpu, const SoftOp *op, const VcpuTable *t)
{
    check_umip(cpu, op);
    unsigned size = cpu->mode & SOFT_MODE_CODE64 ? 10 : 6;
    uint8_t raw[10];
    memcpy(raw, &t->limit, 2);
    memcpy(raw + 2, &t->base, 8);
    soft_store_bytes(cpu, soft_operand(cpu, op, size, SOFT_WRITE), raw, size);
    advance(cpu, op);
}

static void table_load(SoftCpu *cpu, const SoftOp *op, VcpuTable *t)
{
    soft_require_cpl0(cpu, op);
    bool wide = cpu->mode & SOFT_MODE_CODE64;
    unsigned size = wide ? 10 : 6;
    uint8_t raw[10] = {0};
    VcpuTable v;
    soft_load_bytes(cpu, soft_operand(cpu, op, size, SOFT_READ), raw, size);
    memcpy(&v.limit, raw, 2);
    memcpy(&v.base, raw + 2, 8);
    if (!wide && op->size == 2)
        v.base &= 0xffffff;
    if (wide && !soft_canonical(v.base))
        soft_raise_error(cpu, EXC_GP, 0);
    *t = v;
    advance(cpu, op);
}

void soft_op_sgdt(SoftCpu *cpu, const SoftOp *op)
{
    table_store(cpu, op, &cpu->gdtr);
}

void soft_op_sidt(SoftCpu *cpu, const SoftOp *op)
{
    table_store(cpu, op, &cpu->idtr);
}

void soft_op_lgdt(SoftCpu *cpu, const SoftOp *op)
{
    table_load(cpu, op, &cpu->gdtr);
}

void soft_op_lidt(SoftCpu *cpu, const SoftOp *op)
{
    table_load(cpu, op, &cpu->idtr);
}

/* ---- LDTR and TR ---- */

static void selector_store(SoftCpu *cpu, const SoftOp *op, uint16_t selector)
{
    require_protected(cpu, op);
    check_umip(cpu, op);
    soft_rm_write(cpu, op, op->flags & SOFT_OP_MEM ? 2 : op->size, selector);
    advance(cpu, op);
}

void soft_op_sldt(SoftCpu *cpu, const SoftOp *op)
{
    selector_store(cpu, op, cpu->ldtr.selector);
}

void soft_op_str(SoftCpu *cpu, const SoftOp *op)
{
    selector_store(cpu, op, cpu->tr.selector);
}

void soft_op_lldt(SoftCpu *cpu, const SoftOp *op)
{
    require_protected(cpu, op);
    soft_require_cpl0(cpu, op);
    soft_segment_lldt(cpu, (uint16_t)soft_rm_read(cpu, op, 2));
    advance(cpu, op);
}

void soft_op_ltr(SoftCpu *cpu, const SoftOp *op)
{
    require_protected(cpu, op);
    soft_require_cpl0(cpu, op);
    soft_segment_ltr(cpu, (uint16_t)soft_rm_read(cpu, op, 2));
    advance(cpu, op);
}

/* ---- looking at descriptors ---- */

/* Whether the current privilege sees the descriptor. */
static bool visible(const SoftCpu *cpu, const SoftDescriptor *d, uint16_t selector)
{
    if (soft_descriptor_conforming(d))
        return true;
    return soft_descriptor_dpl(d) >= MAX(cpu->cpl, selector & 3u);
}

/* System descriptor types that LAR and LSL accept, as bit masks (SDM vol. 2 LAR, LSL). */
#define LAR_LEGACY 0x1a3eu
#define LAR_LONG   0x1a04u
#define LSL_LEGACY 0x0a0eu
#define LSL_LONG   0x0a04u

static bool look(SoftCpu *cpu, const SoftOp *op, unsigned legacy, unsigned wide, SoftDescriptor *d)
{
    require_protected(cpu, op);
    uint16_t selector = (uint16_t)soft_rm_read(cpu, op, 2);
    if (!(selector & 0xfffc) || !soft_descriptor_read(cpu, selector, d))
        return false;
    if (!soft_descriptor_s(d)) {
        unsigned allowed = cpu->mode & SOFT_MODE_LONG ? wide : legacy;
        if (!(allowed >> soft_descriptor_type(d) & 1))
            return false;
    }
    return visible(cpu, d, selector);
}

void soft_op_lar(SoftCpu *cpu, const SoftOp *op)
{
    SoftDescriptor d;
    bool ok = look(cpu, op, LAR_LEGACY, LAR_LONG, &d);
    if (ok)
        soft_gpr_write(cpu, op->reg, op->size, d.low >> 32 & 0x00f0ff00);
    soft_zf_set(cpu, ok);
    advance(cpu, op);
}

void soft_op_lsl(SoftCpu *cpu, const SoftOp *op)
{
    SoftDescriptor d;
    bool ok = look(cpu, op, LSL_LEGACY, LSL_LONG, &d);
    if (ok)
        soft_gpr_write(cpu, op->reg, op->size, soft_descriptor_segment(&d, 0).limit);
    soft_zf_set(cpu, ok);
    advance(cpu, op);
}

static void verify(SoftCpu *cpu, const SoftOp *op, bool write)
{
    SoftDescriptor d;
    bool ok = look(cpu, op, 0, 0, &d);
    if (ok) {
        unsigned type = soft_descriptor_type(&d);
        if (write)
            ok = !(type & 8) && (type & 2);
        else
            ok = !(type & 8) || (type & 2);
    }
    soft_zf_set(cpu, ok);
    advance(cpu, op);
}

void soft_op_verr(SoftCpu *cpu, const SoftOp *op)
{
    verify(cpu, op, false);
}

void soft_op_verw(SoftCpu *cpu, const SoftOp *op)
{
    verify(cpu, op, true);
}

void soft_op_arpl(SoftCpu *cpu, const SoftOp *op)
{
    require_protected(cpu, op);
    uint64_t to = soft_rm_read(cpu, op, 2), rpl = cpu->gpr[op->reg] & 3;
    bool raise = (to & 3) < rpl;
    if (raise)
        soft_rm_write(cpu, op, 2, (to & ~3ull) | rpl);
    soft_zf_set(cpu, raise);
    advance(cpu, op);
}

/* ---- segment registers ---- */

void soft_op_mov_from_seg(SoftCpu *cpu, const SoftOp *op)
{
    cpu->op = op;
    if (op->reg >= SEG_COUNT)
        soft_raise(cpu, EXC_UD);
    soft_rm_write(cpu, op, op->flags & SOFT_OP_MEM ? 2 : op->size, cpu->seg[op->reg].selector);
    advance(cpu, op);
}

void soft_op_mov_to_seg(SoftCpu *cpu, const SoftOp *op)
{
    cpu->op = op;
    if (op->reg >= SEG_COUNT || op->reg == SEG_CS)
        soft_raise(cpu, EXC_UD);
    soft_segment_load(cpu, op->reg, (uint16_t)soft_rm_read(cpu, op, 2));
    advance(cpu, op);
    if (op->reg == SEG_SS)
        soft_shadow_begin(cpu, true);
}

void soft_op_push_seg(SoftCpu *cpu, const SoftOp *op)
{
    cpu->op = op;
    soft_push(cpu, cpu->seg[op->reg].selector, op->size);
    advance(cpu, op);
}

void soft_op_pop_seg(SoftCpu *cpu, const SoftOp *op)
{
    cpu->op = op;
    uint16_t selector = (uint16_t)soft_peek(cpu, 0, op->size);
    /* RSP moves by the size of the stack that it leaves, but only if the load succeeds. */
    uint64_t before = cpu->gpr[GPR_RSP];
    soft_stack_add(cpu, op->size);
    uint64_t after = cpu->gpr[GPR_RSP];
    cpu->gpr[GPR_RSP] = before;
    soft_segment_load(cpu, op->reg, selector);
    cpu->gpr[GPR_RSP] = after;
    advance(cpu, op);
    if (op->reg == SEG_SS)
        soft_shadow_begin(cpu, true);
}

void soft_op_lseg(SoftCpu *cpu, const SoftOp *op)
{
    cpu->op = op;
    uint64_t linear = soft_operand(cpu, op, op->size + 2u, SOFT_READ), offset = 0;
    uint8_t raw[10];
    uint16_t selector;
    soft_load_bytes(cpu, linear, raw, op->size + 2u);
    memcpy(&offset, raw, op->size);
    memcpy(&selector, raw + op->size, 2);
    soft_segment_load(cpu, op->sub, selector);
    soft_gpr_write(cpu, op->reg, op->size, offset);
    advance(cpu, op);
}
