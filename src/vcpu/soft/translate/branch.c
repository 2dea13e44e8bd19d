/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Near branches of 64-bit code. What the interpreter does of a branch in case of a slow access always
 * ends at the dispatcher, so there is no translate_memory_done here.
 */
#include "vcpu/soft/translate/translate.h"

/* A constant target that needs no check, of a branch that is not AMD's 16-bit one. */
static bool direct_possible(const SoftOp *op)
{
    uint64_t target = op->imm;

    return op->size == 8 && (uint64_t)((int64_t)(target << 16) >> 16) == target;
}

static bool is_direct(const Translation *t)
{
    return t->info[t->i].opcode->imm != IMM_NONE;
}

bool translate_jcc(Translation *t, const SoftOp *op)
{
    if (!direct_possible(op))
        return false;
    translate_flags_before(t);
    translate_exit_from(t, emit_jcc(&t->e, op->sub), op->imm);
    return true;
}

/* Jumps if RCX (or ECX) is zero, or if it is not. */
static void branch_on_counter(Translation *t, const SoftOp *op, bool zero)
{
    uint8_t *short_jump, *skip;

    if (op->asize == 4)
        emit_imm(&t->e, 0x67, 1);
    short_jump = emit_jrcxz(&t->e);
    if (!zero) {
        translate_exit_from(t, emit_jmp(&t->e), op->imm);
        emit_patch8(short_jump, t->e.at);
        return;
    }
    skip = emit_jmp(&t->e);
    emit_patch8(short_jump, t->e.at);
    translate_exit_from(t, emit_jmp(&t->e), op->imm);
    emit_patch(skip, t->e.at);
}

bool translate_jcxz(Translation *t, const SoftOp *op)
{
    if (!direct_possible(op))
        return false;
    branch_on_counter(t, op, true);
    return true;
}

bool translate_loop(Translation *t, const SoftOp *op)
{
    if (!direct_possible(op))
        return false;
    if (op->asize == 4)
        emit_lea32(&t->e, HOST_RCX, emit_mem(HOST_RCX, -1));
    else
        emit_lea(&t->e, HOST_RCX, emit_mem(HOST_RCX, -1));
    branch_on_counter(t, op, false);
    return true;
}

/* The return address onto the stack; @m is the checked operand there. Uses TEMP2. */
static void push_return(Translation *t, const SoftOp *op, EmitOperand m)
{
    uint64_t next = translate_next_rip(op);

    if (next == (uint64_t)(int32_t)next) {
        emit_rm(&t->e, (EmitForm){ .opcode = 0xc7, .flags = EMIT_W }, 0, m);
        emit_imm(&t->e, next, 4);
    } else {
        emit_constant(&t->e, TEMP2, next);
        emit_store(&t->e, m, TEMP2);
    }
    emit_lea(&t->e, HOST_RSP, emit_mem(HOST_RSP, -8));
}

/* Canonical: all bits from 47 up are alike. */
void translate_require_canonical(Translation *t, const SoftOp *op, unsigned reg)
{
    Emit *e = &t->e;

    translate_flags_clobber(t);
    emit_mov(e, TEMP0, reg);
    emit_rm(e, (EmitForm){ .opcode = 0xc1, .flags = EMIT_W }, 7, emit_reg(TEMP0)); /* SAR */
    emit_imm(e, 47, 1);
    emit_alu_imm(e, ALU_ADD, emit_reg(TEMP0), 1);
    emit_alu_imm(e, ALU_CMP, emit_reg(TEMP0), 1);
    translate_slow_from(t, op, emit_jcc(e, 7)); /* JA */
}

static bool call_direct(Translation *t, const SoftOp *op)
{
    if (!direct_possible(op))
        return false;
    push_return(t, op, translate_memory_at(t, op, GPR_RSP, -8, 8, TRANSLATE_WRITE));
    translate_exit(t, op->imm, t->key);
    return true;
}

bool translate_call(Translation *t, const SoftOp *op)
{
    bool memory = op->flags & SOFT_OP_MEM;
    EmitOperand m;

    if (is_direct(t))
        return call_direct(t, op);
    if (op->size != 8 || (!memory && op->rm == GPR_RSP))
        return false;
    if (memory) {
        m = translate_memory(t, op, 8, TRANSLATE_READ, 0);
        emit_load(&t->e, TEMP2, m);
        emit_store(&t->e, GS_FIELD(scratch_value), TEMP2); /* the second check takes all temporaries */
    }
    translate_require_canonical(t, op, memory ? TEMP2 : translate_get(t, op->rm, TEMP2));
    push_return(t, op, translate_memory_at(t, op, GPR_RSP, -8, 8, TRANSLATE_WRITE));
    if (memory)
        emit_load(&t->e, TEMP0, GS_FIELD(scratch_value));
    else if (guest_register_is_host(op->rm))
        emit_mov(&t->e, TEMP0, op->rm);
    else
        emit_load(&t->e, TEMP0, GS_GPR(op->rm));
    translate_exit_indirect(t, 0);
    return true;
}

bool translate_jmp(Translation *t, const SoftOp *op)
{
    if (is_direct(t)) {
        if (!direct_possible(op))
            return false;
        translate_exit(t, op->imm, t->key);
        return true;
    }
    if (op->size != 8)
        return false;
    if (op->flags & SOFT_OP_MEM)
        emit_load(&t->e, TEMP0, translate_memory(t, op, 8, TRANSLATE_READ, 0));
    else if (guest_register_is_host(op->rm))
        emit_mov(&t->e, TEMP0, op->rm);
    else
        emit_load(&t->e, TEMP0, GS_GPR(op->rm));
    translate_exit_indirect(t, 0);
    return true;
}

bool translate_ret(Translation *t, const SoftOp *op)
{
    if (op->size != 8)
        return false;
    emit_load(&t->e, TEMP0, translate_memory_at(t, op, GPR_RSP, 0, 8, TRANSLATE_READ));
    emit_lea(&t->e, HOST_RSP, emit_mem(HOST_RSP, 8 + (int32_t)op->imm));
    translate_exit_indirect(t, 8 + (uint32_t)op->imm);
    return true;
}
