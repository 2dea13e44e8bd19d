/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Memory operands over mirrored memory (mirror.h):
 *
 *     rorx    $40,base,TEMP1
 *     movzbl  TEMP1b,TEMP1d
 *     mov     gs:window_delta(,TEMP1,8),TEMP1
 *     op      disp(base,TEMP1)
 *
 * Nothing is compared and EFLAGS stay. The delta of a base register serves all accesses of the block
 * off that register, as long as it changes by little: the guards around windows are larger than any
 * displacement. Operands with an index, a segment base or an address outside 31 bits are computed first.
 */
#include "vcpu/soft/translate/cache.h"
#include "vcpu/soft/translate/mirror.h"

static void site_add(Translation *t, const SoftOp *op, unsigned access)
{
    CodeCache *c = t->cache;
    CodeSite *site = code_record(c, sizeof(*site));
    *site = (CodeSite){.rip = op->rip, .key = t->key, .length = op->length, .access = (uint8_t)access,
                       .flags_at = (uint8_t)t->flags_at};
    c->mirrored[c->n_mirrored++] = (CodeMirrored){code_offset(c, t->e.at), code_offset(c, (uint8_t *)site)};
}

void mirror_delta(Translation *t, unsigned address)
{
    emit_rorx(&t->e, TEMP1, address, MIRROR_WINDOW_BITS);
    emit_rm(&t->e, (EmitForm){.map = 1, .opcode = 0xb6, .flags = EMIT_BYTE_RM}, TEMP1, emit_reg(TEMP1));
    emit_load(&t->e, TEMP1, emit_gs_index(offsetof(SoftCpu, window_delta), TEMP1, 3));
}

static EmitOperand based(Translation *t, const SoftOp *op, unsigned base, int32_t disp, unsigned access)
{
    if (t->mirror_base != (int)base) {
        mirror_delta(t, base);
        t->mirror_base = (int)base;
    }
    site_add(t, op, access);
    return emit_mem_index(base, TEMP1, 0, disp);
}

/* The operand if it is one of an unrolled loop's (coalesce.c), else remembers it. */
static bool shared(Translation *t, const TranslateAccess *a, EmitOperand *operand)
{
    if (!t->coalesced) {
        coalesce_record(t, a);
        return false;
    }
    if (!coalesce_operand(t, operand))
        return false;
    site_add(t, a->op, a->access);
    return true;
}

EmitOperand mirror_memory(Translation *t, const SoftOp *op, unsigned access)
{
    TranslateAccess a = {.op = op, .base = op->base, .index = op->index, .scale = op->scale, .disp = op->disp,
                         .access = (uint8_t)access, .simple = op->plain && op->disp == (int32_t)op->disp};
    EmitOperand operand;

    if (shared(t, &a, &operand))
        return operand;
    bool plain = op->plain && op->base != SOFT_REG_NONE && op->index == SOFT_REG_NONE &&
                 guest_register_is_host(op->base);
    if (plain)
        return based(t, op, op->base, (int32_t)op->disp, access);
    t->mirror_base = -1;
    translate_address(t, op, TEMP0, true);
    if (op->base == SOFT_REG_NONE && op->index == SOFT_REG_NONE && op->seg < SEG_FS)
        emit_load(&t->e, TEMP1, emit_gs(offsetof(SoftCpu, window_delta) +
                                        ((uint64_t)op->disp >> MIRROR_WINDOW_BITS & 255) * 8));
    else
        mirror_delta(t, TEMP0);
    site_add(t, op, access);
    return emit_mem_index(TEMP0, TEMP1, 0, 0);
}

EmitOperand mirror_memory_at(Translation *t, const SoftOp *op, unsigned base, int32_t disp, unsigned access)
{
    TranslateAccess a = {.op = op, .base = (uint8_t)base, .index = SOFT_REG_NONE, .disp = disp,
                         .access = (uint8_t)access, .simple = true};
    EmitOperand operand;

    if (shared(t, &a, &operand))
        return operand;
    return based(t, op, base, disp, access);
}

static bool adds_little(const SoftOp *op)
{
    return op->size == 8 && (int64_t)op->imm < MIRROR_STEP_MAX && (int64_t)op->imm > -MIRROR_STEP_MAX;
}

/* An op that writes no register but its operands, and uses no temporary but for them. */
static bool is_simple(const char *name)
{
    static const char *const simple[] = {"mov", "movzx", "movsx", "movsxd", "lea", "cmp", "test", "add", "sub",
                                         "and", "or", "xor", "inc", "dec", "neg", "not", "shl", "shr", "sar",
                                         "cmov", "set", "j", "nop", "endbr", "adc", "sbb"};
    for (unsigned i = 0; i < G_N_ELEMENTS(simple); i++)
        if (strcmp(name, simple[i]) == 0)
            return true;
    return false;
}

/* Byte registers are named by their offset from the register file (opcode-table.h). */
static bool names(const SoftOp *op, unsigned base)
{
    return op->reg == base || op->rm == base || (op->reg & ~7u) == base * 8 || (op->rm & ~7u) == base * 8;
}

/* TEMP1 is left alone too. */
bool mirror_keeps(const Translation *t, const SoftOp *op, unsigned base)
{
    const TranslateInfo *info = &t->info[t->i];
    const char *name;

    if (!info->emit)
        return false;
    if (!info->opcode) /* vectors: they write general registers by ModRM, or RCX */
        return !names(op, base) && base != GPR_RCX;
    name = info->opcode->mnemonic;
    if (!strcmp(name, "push") || !strcmp(name, "pop"))
        return base == GPR_RSP ? op->rm != GPR_RSP || !strcmp(name, "push") : !names(op, base);
    if (!is_simple(name) || (!strcmp(name, "lea") && op->index != SOFT_REG_NONE))
        return false;
    if ((!strcmp(name, "add") || !strcmp(name, "sub")) && info->opcode->imm != IMM_NONE && adds_little(op))
        return true;
    if (!strcmp(name, "cmp") || !strcmp(name, "test") || !strcmp(name, "j"))
        return true;
    if (!(info->opcode->flags & (OPC_MODRM | OPC_OREG)) && base == GPR_RAX)
        return false; /* AL to RAX and an immediate */
    return !names(op, base) && !(base == GPR_RAX && info->opcode->imm == IMM_MOFFS);
}

void mirror_op_done(Translation *t, const SoftOp *op)
{
    if (t->mirror_base >= 0 && !mirror_keeps(t, op, (unsigned)t->mirror_base))
        t->mirror_base = -1;
}
