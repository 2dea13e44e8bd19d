/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * PUSH, POP and LEAVE of 8 bytes; other sizes go to the interpreter. RSP moves by LEA, which leaves the
 * flags alone, after every check.
 */
#include "vcpu/soft/translate/translate.h"

static void move_rsp(Translation *t, int32_t by)
{
    emit_lea(&t->e, HOST_RSP, emit_mem(HOST_RSP, by));
}

static void push_finish(Translation *t, const SoftOp *op)
{
    move_rsp(t, -8);
    translate_memory_done(t, op);
}

bool translate_push(Translation *t, const SoftOp *op)
{
    bool immediate = t->info[t->i].opcode->imm != IMM_NONE;
    EmitOperand m;

    if (op->size != 8)
        return false;
    if (op->flags & SOFT_OP_MEM) {
        m = translate_memory(t, op, 8, TRANSLATE_READ, 0);
        emit_load(&t->e, TEMP2, m);
        emit_store(&t->e, GS_FIELD(scratch_value), TEMP2); /* the second check takes all temporaries */
    }
    m = translate_memory_at(t, op, GPR_RSP, -8, 8, TRANSLATE_WRITE);
    if (immediate) {
        emit_rm(&t->e, (EmitForm){ .opcode = 0xc7, .flags = EMIT_W }, 0, m);
        emit_imm(&t->e, op->imm, 4); /* sign extended */
    } else if (op->flags & SOFT_OP_MEM) {
        emit_load(&t->e, TEMP2, GS_FIELD(scratch_value));
        emit_store(&t->e, m, TEMP2);
    } else {
        emit_store(&t->e, m, translate_get(t, op->rm, TEMP2));
    }
    push_finish(t, op);
    return true;
}

/* To memory the operand's address is of the new RSP: the interpreter's. */
bool translate_pop(Translation *t, const SoftOp *op)
{
    unsigned to = translate_target(op->rm, TEMP2);
    EmitOperand m;

    if (op->size != 8 || (op->flags & SOFT_OP_MEM))
        return false;
    m = translate_memory_at(t, op, GPR_RSP, 0, 8, TRANSLATE_READ);
    emit_load(&t->e, to, m);
    if (op->rm != GPR_RSP)
        move_rsp(t, 8);
    translate_put(t, op->rm, to);
    translate_memory_done(t, op);
    return true;
}

bool translate_leave(Translation *t, const SoftOp *op)
{
    EmitOperand m;

    if (op->size != 8)
        return false;
    m = translate_memory_at(t, op, GPR_RBP, 0, 8, TRANSLATE_READ);
    emit_load(&t->e, TEMP2, m);
    emit_lea(&t->e, HOST_RSP, emit_mem(HOST_RBP, 8));
    emit_mov(&t->e, HOST_RBP, TEMP2);
    translate_memory_done(t, op);
    return true;
}
