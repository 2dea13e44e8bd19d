/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * MOVS, STOS and LODS forward, in 64-bit address size. With a repeat prefix the host's instruction does
 * all of it if each operand lies within one page that the first-level TLB has; everything else is the
 * interpreter's, which works piece by piece.
 */
#include "vcpu/soft/translate/translate.h"

static unsigned log2_size(const SoftOp *op)
{
    return (unsigned)__builtin_ctz(op->size);
}

static bool repeated(const SoftOp *op)
{
    return op->flags & (SOFT_OP_REP | SOFT_OP_REPNE);
}

/* Backward is for the interpreter. */
static void require_forward(Translation *t, const SoftOp *op)
{
    translate_flags_clobber(t);
    emit_test_imm(&t->e, GS_FIELD(rflags), FLAG_DF);
    translate_slow_from(t, op, emit_jcc(&t->e, 5));
}

/* REP MOVS (A4, A5) or REP STOS (AA, AB) itself. */
static void emit_repeat(Translation *t, const SoftOp *op)
{
    if (op->size == 2)
        emit_imm(&t->e, 0x66, 1);
    emit_imm(&t->e, 0xf3, 1);
    if (op->size == 8)
        emit_imm(&t->e, 0x48, 1);
    emit_imm(&t->e, op->opcode, 1);
}

/* The jumps from @slow to @end lead to the interpreter, by one stub. */
static void run_done(Translation *t, const SoftOp *op, uint8_t **slow, uint8_t **end)
{
    uint8_t *over = emit_jmp(&t->e);

    while (slow < end)
        emit_patch(*slow++, t->e.at);
    translate_slow_from(t, op, emit_jmp(&t->e));
    emit_patch(over, t->e.at);
}

static void advance(Translation *t, const SoftOp *op, unsigned reg)
{
    emit_lea(&t->e, reg, emit_mem(reg, op->size));
}

static bool possible(const SoftOp *op)
{
    return op->asize == 8 && op->seg < SEG_FS;
}

bool translate_stos(Translation *t, const SoftOp *op)
{
    EmitForm store = { .opcode = op->size == 1 ? 0x88 : 0x89,
                       .flags = op->size == 8 ? EMIT_W : op->size == 2 ? EMIT_66 : 0 };
    uint8_t *slow[6], **end;
    EmitOperand m;

    if (!possible(op))
        return false;
    require_forward(t, op);
    if (repeated(op)) {
        end = translate_run_check(t, HOST_RDI, TRANSLATE_WRITE, log2_size(op), TEMP1, slow);
        emit_lea(&t->e, HOST_RDI, emit_mem_index(HOST_RDI, TEMP1, 0, 0));
        emit_repeat(t, op);
        emit_alu(&t->e, ALU_SUB, HOST_RDI, emit_reg(TEMP1));
        run_done(t, op, slow, end);
    } else {
        m = translate_memory_at(t, op, GPR_RDI, 0, op->size, TRANSLATE_WRITE);
        emit_rm(&t->e, store, HOST_RAX, m);
        advance(t, op, HOST_RDI);
    }
    translate_memory_done(t, op);
    return true;
}

bool translate_movs(Translation *t, const SoftOp *op)
{
    EmitForm load = { .opcode = op->size == 1 ? 0x8a : 0x8b,
                      .flags = op->size == 8 ? EMIT_W : op->size == 2 ? EMIT_66 : 0 };
    EmitForm store = { .opcode = load.opcode ^ 2, .flags = load.flags };
    uint8_t *slow[6], **end;
    EmitOperand m;

    if (!possible(op))
        return false;
    require_forward(t, op);
    if (repeated(op)) {
        end = translate_run_check(t, HOST_RSI, TRANSLATE_READ, log2_size(op), TEMP0, slow);
        end = translate_run_check(t, HOST_RDI, TRANSLATE_WRITE, log2_size(op), TEMP1, end);
        emit_lea(&t->e, HOST_RSI, emit_mem_index(HOST_RSI, TEMP0, 0, 0));
        emit_lea(&t->e, HOST_RDI, emit_mem_index(HOST_RDI, TEMP1, 0, 0));
        emit_repeat(t, op);
        emit_alu(&t->e, ALU_SUB, HOST_RSI, emit_reg(TEMP0));
        emit_alu(&t->e, ALU_SUB, HOST_RDI, emit_reg(TEMP1));
        run_done(t, op, slow, end);
    } else {
        m = translate_memory_at(t, op, GPR_RSI, 0, op->size, TRANSLATE_READ);
        emit_rm(&t->e, load, TEMP2, m);
        emit_store(&t->e, GS_FIELD(scratch_value), TEMP2); /* the second check takes all temporaries */
        m = translate_memory_at(t, op, GPR_RDI, 0, op->size, TRANSLATE_WRITE);
        emit_load(&t->e, TEMP2, GS_FIELD(scratch_value));
        emit_rm(&t->e, store, TEMP2, m);
        advance(t, op, HOST_RSI);
        advance(t, op, HOST_RDI);
    }
    translate_memory_done(t, op);
    return true;
}

bool translate_lods(Translation *t, const SoftOp *op)
{
    EmitForm load = { .opcode = op->size == 1 ? 0x8a : 0x8b,
                      .flags = op->size == 8 ? EMIT_W : op->size == 2 ? EMIT_66 : 0 };
    EmitOperand m;

    if (!possible(op) || repeated(op))
        return false;
    require_forward(t, op);
    m = translate_memory_at(t, op, GPR_RSI, 0, op->size, TRANSLATE_READ);
    emit_rm(&t->e, load, HOST_RAX, m);
    advance(t, op, HOST_RSI);
    translate_memory_done(t, op);
    return true;
}
