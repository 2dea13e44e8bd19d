/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Vector instructions as they are: the guest's XMM and YMM registers are the host's, and so is MXCSR,
 * while SoftCpu.vectors_live is set. Only memory operands and general registers R9 to R11 change.
 *
 * Helper ops are: what uses MMX or x87 registers, what accesses memory by element (gathers,
 * MASKMOVDQU), what saves or loads state, and arithmetic while an exception is unmasked in MXCSR, which
 * the host would raise as a signal.
 */
#include "vcpu/soft/system-ops.h"
#include "vcpu/soft/translate/cache.h"
#include "vcpu/soft/vector.h"

/* ---- making vectors live ---- */

/* lea back,TEMP1; jmp load_vectors */
static void stub_load(Translation *t, const TranslateStub *stub)
{
    static const uint8_t lea_rip[] = {0x4c, 0x8d, 0x15, 0, 0, 0, 0};

    emit_bytes(&t->e, lea_rip, sizeof(lea_rip));
    emit_patch(t->e.at - 4, stub->back);
    emit_jmp_to(&t->e, t->cache->rw + t->cache->thunk.load_vectors);
}
_Static_assert(TEMP1 == HOST_R10, "lea_rip's register");

void translate_vectors(Translation *t)
{
    if (t->vectors_checked)
        return;
    translate_flags_clobber(t);
    emit_alu8_imm(&t->e, ALU_CMP, GS_FIELD(vectors_live), 0);
    TranslateStub *stub = translate_stub(t, emit_jcc(&t->e, 4), stub_load);
    stub->back = t->e.at;
    t->vectors_checked = true;
    t->mirror_base = -1; /* the stub takes TEMP1 */
}

/* ---- what can run in place ---- */

static bool is_vzero(const SoftOp *op)
{
    return op->map == 1 && op->opcode == 0x77 && (op->flags & SOFT_OP_VEX);
}

/*
 * VMASKMOV and VPMASKMOV run in place although they are handlers in C: the whole operand is checked, and
 * if any of it is not plain memory, then the interpreter looks at the mask.
 */
static bool is_maskmov(const VectorRow *row)
{
    return row->map == 2 && (row->flags & VO_MEM) && !(row->flags & VO_VSIB);
}

/* The row of an op that decoded to a vector instruction which raises nothing by itself, or NULL. */
static const VectorRow *runnable_row(const SoftOp *op)
{
    if (op->map == 0 || op->size < 16 || op->handler == soft_op_undefined ||
        op->handler == vector_op_nm || op->handler == vector_op_fpu_off)
        return NULL;
    const VectorRow *row = vector_op_row(op);
    return row->map == op->map && row->opcode == op->opcode ? row : NULL;
}

static bool in_place(const VectorRow *row, const SoftOp *op, uint32_t key)
{
    if (row->flags & (MMX_ANY | VO_VSIB))
        return false;
    if ((row->flags & VO_FP) && (key & TRANSLATE_KEY_FP_TRAP))
        return false;
    return !(row->flags & VO_SPECIAL) || is_vzero(op) || is_maskmov(row);
}

TranslateInfo translate_vector_info(const SoftOp *op, uint32_t mode)
{
    const VectorRow *row = runnable_row(op);
    TranslateInfo info = {0};

    if (!row) { /* x87 and state, which may touch flags, and what raises, which shows them */
        info.reads = TF_ALL;
        info.touches = TF_ALL;
        return info;
    }
    if (in_place(row, op, mode))
        info.emit = translate_vector;
    if (row->flags & VO_FLAGS)
        info.kills = info.touches = TF_ALL;
    return info;
}

/* ---- the instruction ---- */

static void emit_instruction(Translation *t, const VectorRow *row, const SoftOp *op, unsigned reg,
                             EmitOperand rm)
{
    EmitForm form = {.map = op->map, .opcode = op->opcode, .prefix = op->prefix};

    if (op->flags & SOFT_OP_W)
        form.flags |= EMIT_W;
    if ((op->flags & SOFT_OP_L) && !(row->flags & VO_LIG))
        form.flags |= EMIT_L;
    if (op->flags & SOFT_OP_VEX)
        emit_vex_rm(&t->e, form, op->vvvv, reg, rm);
    else
        emit_rm(&t->e, form, reg, rm);
    if (row->flags & VO_IMM)
        emit_imm(&t->e, op->imm, 1);
}

static void emit_vzero(Emit *e, bool all)
{
    const uint8_t code[] = {0xc5, all ? 0xfc : 0xf8, 0x77};

    emit_bytes(e, code, sizeof(code));
}

/* The r/m operand; a general register in @rm is a source or, with VO_STORE, the destination. */
static EmitOperand operand_rm(Translation *t, const VectorRow *row, const SoftOp *op)
{
    if (op->flags & SOFT_OP_MEM) {
        unsigned access = row->flags & VO_STORE ? TRANSLATE_WRITE : TRANSLATE_READ;
        return translate_memory(t, op, op->sub, access, op->spare[VS_ALIGN]);
    }
    if (!(row->flags & VO_RM_GPR))
        return emit_reg(op->rm);
    return emit_reg(row->flags & VO_STORE ? translate_target(op->rm, TEMP2)
                                          : translate_get(t, op->rm, TEMP2));
}

bool translate_vector(Translation *t, const SoftOp *op)
{
    const VectorRow *row = vector_op_row(op);
    bool memory = op->flags & SOFT_OP_MEM;
    unsigned reg = row->digit >= 0 ? (unsigned)row->digit : op->reg;

    translate_vectors(t);
    if (is_vzero(op)) {
        emit_vzero(&t->e, op->flags & SOFT_OP_L);
        return true;
    }
    EmitOperand rm = operand_rm(t, row, op);
    if (row->flags & VO_REG_GPR)
        reg = translate_target(op->reg, TEMP2); /* always the destination, written whole */
    translate_flags_before(t);
    emit_instruction(t, row, op, reg, rm);
    translate_flags_after(t);
    if (row->flags & VO_REG_GPR)
        translate_put(t, op->reg, reg);
    else if (!memory && (row->flags & VO_RM_GPR) && (row->flags & VO_STORE))
        translate_put(t, op->rm, rm.reg);
    if (memory)
        translate_memory_done(t, op);
    return true;
}
