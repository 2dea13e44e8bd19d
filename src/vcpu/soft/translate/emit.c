/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Encoding of x86-64 instructions: Intel SDM vol. 2, chapter 2 (prefixes, ModRM, SIB, VEX) and the
 * opcode columns of chapters 3 to 5.
 */
#include "vcpu/soft/translate/emit.h"

static void put8(Emit *e, unsigned value)
{
    *e->at++ = (uint8_t)value;
}

static void put32(Emit *e, uint32_t value)
{
    memcpy(e->at, &value, 4);
    e->at += 4;
}

void emit_imm(Emit *e, uint64_t value, unsigned size)
{
    memcpy(e->at, &value, size);
    e->at += size;
}

void emit_bytes(Emit *e, const void *bytes, unsigned n)
{
    memcpy(e->at, bytes, n);
    e->at += n;
}

/* ---- ModRM ---- */

/* The X and B bits, in the places that they have in REX. */
static unsigned operand_xb(EmitOperand rm)
{
    unsigned x = rm.index != HOST_NONE && rm.index >= 8 ? 2 : 0;

    if (rm.kind == EMIT_REG)
        return rm.reg >= 8;
    if (rm.kind == EMIT_GS)
        return x;
    return x | (rm.base != HOST_NONE && rm.base >= 8);
}

static void put_modrm(Emit *e, unsigned reg, EmitOperand rm)
{
    unsigned middle = (reg & 7) << 3, index = rm.index == HOST_NONE ? 4 : rm.index & 7u;
    unsigned mod, sib = (unsigned)rm.scale << 6 | index << 3;

    if (rm.kind == EMIT_REG) {
        put8(e, 0xc0 | middle | (rm.reg & 7));
        return;
    }
    if (rm.kind == EMIT_GS || rm.base == HOST_NONE) {
        /* Not mod 0, rm 5 alone: that is relative to RIP in 64-bit mode. */
        put8(e, middle | 4);
        put8(e, sib | 5);
        put32(e, (uint32_t)rm.disp);
        return;
    }
    if (rm.disp == 0 && (rm.base & 7) != HOST_RBP)
        mod = 0;
    else
        mod = rm.disp == (int8_t)rm.disp ? 1 : 2;
    if (rm.index == HOST_NONE && (rm.base & 7) != HOST_RSP) {
        put8(e, mod << 6 | middle | (rm.base & 7));
    } else {
        put8(e, mod << 6 | middle | 4);
        put8(e, sib | (rm.base & 7));
    }
    if (mod == 1)
        put8(e, (unsigned)rm.disp);
    else if (mod == 2)
        put32(e, (uint32_t)rm.disp);
}

/* ---- prefixes and opcode ---- */

static const uint8_t mandatory[] = {0, 0x66, 0xf3, 0xf2};

/* REX, 0 for none. */
static unsigned rex_of(EmitForm form, unsigned reg, EmitOperand rm)
{
    unsigned rex = operand_xb(rm) | (reg >= 8 ? 4 : 0) | (form.flags & EMIT_W ? 8 : 0);

    if ((form.flags & EMIT_BYTE_REG) && reg >= 4)
        rex |= 0x40;
    if ((form.flags & EMIT_BYTE_RM) && rm.kind == EMIT_REG && rm.reg >= 4)
        rex |= 0x40;
    return rex ? rex | 0x40 : 0;
}

bool emit_rm_possible(EmitForm form, unsigned reg, EmitOperand rm)
{
    bool high = (form.flags & EMIT_HIGH_REG) ||
                ((form.flags & EMIT_HIGH_RM) && rm.kind == EMIT_REG);

    return !high || !rex_of(form, reg, rm);
}

void emit_rm(Emit *e, EmitForm form, unsigned reg, EmitOperand rm)
{
    unsigned rex = rex_of(form, reg, rm);

    if (rm.kind == EMIT_GS)
        put8(e, 0x65);
    if ((form.flags & EMIT_66) && form.prefix != 1)
        put8(e, 0x66);
    if (form.prefix)
        put8(e, mandatory[form.prefix]);
    if (form.flags & EMIT_LOCK)
        put8(e, 0xf0);
    if (rex)
        put8(e, rex);
    if (form.map)
        put8(e, 0x0f);
    if (form.map >= 2)
        put8(e, form.map == 2 ? 0x38 : 0x3a);
    put8(e, form.opcode);
    put_modrm(e, reg, rm);
}

void emit_vex_rm(Emit *e, EmitForm form, unsigned vvvv, unsigned reg, EmitOperand rm)
{
    unsigned xb = operand_xb(rm), r = reg >= 8 ? 0 : 0x80;
    unsigned low = (~vvvv & 15) << 3 | (form.flags & EMIT_L ? 4 : 0) | form.prefix;

    if (rm.kind == EMIT_GS)
        put8(e, 0x65);
    if (form.map == 1 && !xb && !(form.flags & EMIT_W)) {
        put8(e, 0xc5);
        put8(e, r | low);
    } else {
        put8(e, 0xc4);
        put8(e, r | (~xb & 3) << 5 | form.map);
        put8(e, (form.flags & EMIT_W ? 0x80 : 0) | low);
    }
    put8(e, form.opcode);
    put_modrm(e, reg, rm);
}

/* ---- moves ---- */

void emit_mov(Emit *e, unsigned to, unsigned from)
{
    emit_rm(e, (EmitForm){.opcode = 0x89, .flags = EMIT_W}, from, emit_reg(to));
}

void emit_mov32(Emit *e, unsigned to, unsigned from)
{
    emit_rm(e, (EmitForm){.opcode = 0x89}, from, emit_reg(to));
}

void emit_load(Emit *e, unsigned to, EmitOperand from)
{
    emit_rm(e, (EmitForm){.opcode = 0x8b, .flags = EMIT_W}, to, from);
}

void emit_load32(Emit *e, unsigned to, EmitOperand from)
{
    emit_rm(e, (EmitForm){.opcode = 0x8b}, to, from);
}

void emit_load16_zero(Emit *e, unsigned to, EmitOperand from)
{
    emit_rm(e, (EmitForm){.map = 1, .opcode = 0xb7}, to, from);
}

void emit_load8_zero(Emit *e, unsigned to, EmitOperand from)
{
    emit_rm(e, (EmitForm){.map = 1, .opcode = 0xb6, .flags = EMIT_BYTE_RM}, to, from);
}

void emit_store(Emit *e, EmitOperand to, unsigned from)
{
    emit_rm(e, (EmitForm){.opcode = 0x89, .flags = EMIT_W}, from, to);
}

void emit_store32(Emit *e, EmitOperand to, unsigned from)
{
    emit_rm(e, (EmitForm){.opcode = 0x89}, from, to);
}

void emit_store16(Emit *e, EmitOperand to, unsigned from)
{
    emit_rm(e, (EmitForm){.opcode = 0x89, .flags = EMIT_66}, from, to);
}

void emit_store8(Emit *e, EmitOperand to, unsigned from)
{
    emit_rm(e, (EmitForm){.opcode = 0x88, .flags = EMIT_BYTE_REG | EMIT_BYTE_RM}, from, to);
}

void emit_store32_imm(Emit *e, EmitOperand to, uint32_t value)
{
    emit_rm(e, (EmitForm){.opcode = 0xc7}, 0, to);
    put32(e, value);
}

void emit_lea(Emit *e, unsigned to, EmitOperand from)
{
    emit_rm(e, (EmitForm){.opcode = 0x8d, .flags = EMIT_W}, to, from);
}

void emit_lea32(Emit *e, unsigned to, EmitOperand from)
{
    emit_rm(e, (EmitForm){.opcode = 0x8d}, to, from);
}

void emit_constant(Emit *e, unsigned to, uint64_t value)
{
    if ((int64_t)value == (int32_t)value && (int64_t)value < 0) {
        emit_rm(e, (EmitForm){.opcode = 0xc7, .flags = EMIT_W}, 0, emit_reg(to));
        put32(e, (uint32_t)value);
        return;
    }
    bool wide = value > UINT32_MAX;
    unsigned rex = (wide ? 8 : 0) | (to >= 8);
    if (rex)
        put8(e, 0x40 | rex);
    put8(e, 0xb8 | (to & 7));
    emit_imm(e, value, wide ? 8 : 4);
}

/* ---- arithmetic ---- */

void emit_alu(Emit *e, unsigned alu, unsigned to, EmitOperand from)
{
    emit_rm(e, (EmitForm){.opcode = (uint8_t)(alu << 3 | 3), .flags = EMIT_W}, to, from);
}

void emit_alu32(Emit *e, unsigned alu, unsigned to, EmitOperand from)
{
    emit_rm(e, (EmitForm){.opcode = (uint8_t)(alu << 3 | 3)}, to, from);
}

static void alu_imm(Emit *e, unsigned alu, EmitOperand to, int32_t value, uint8_t flags)
{
    bool byte = value == (int8_t)value;

    emit_rm(e, (EmitForm){.opcode = byte ? 0x83 : 0x81, .flags = flags}, alu, to);
    emit_imm(e, (uint32_t)value, byte ? 1 : 4);
}

void emit_alu_imm(Emit *e, unsigned alu, EmitOperand to, int32_t value)
{
    alu_imm(e, alu, to, value, EMIT_W);
}

void emit_alu32_imm(Emit *e, unsigned alu, EmitOperand to, int32_t value)
{
    alu_imm(e, alu, to, value, 0);
}

void emit_alu8_imm(Emit *e, unsigned alu, EmitOperand to, int8_t value)
{
    emit_rm(e, (EmitForm){.opcode = 0x80, .flags = EMIT_BYTE_RM}, alu, to);
    put8(e, (uint8_t)value);
}

void emit_test_imm(Emit *e, EmitOperand rm, int32_t value)
{
    emit_rm(e, (EmitForm){.opcode = 0xf7, .flags = EMIT_W}, 0, rm);
    put32(e, (uint32_t)value);
}

void emit_rorx(Emit *e, unsigned to, unsigned from, unsigned count)
{
    emit_vex_rm(e, (EmitForm){.map = 3, .opcode = 0xf0, .prefix = 3, .flags = EMIT_W}, 0, to,
                emit_reg(from));
    put8(e, count);
}

void emit_shr_imm(Emit *e, unsigned reg, unsigned count)
{
    emit_rm(e, (EmitForm){.opcode = 0xc1, .flags = EMIT_W}, 5, emit_reg(reg));
    put8(e, count);
}

void emit_lahf(Emit *e)
{
    put8(e, 0x9f);
}

void emit_sahf(Emit *e)
{
    put8(e, 0x9e);
}

void emit_setcc(Emit *e, unsigned cc, unsigned reg)
{
    emit_rm(e, (EmitForm){.map = 1, .opcode = (uint8_t)(0x90 | cc), .flags = EMIT_BYTE_RM}, 0,
            emit_reg(reg));
}

/* ---- jumps ---- */

uint8_t *emit_jmp(Emit *e)
{
    put8(e, 0xe9);
    put32(e, 0);
    return e->at - 4;
}

uint8_t *emit_jcc(Emit *e, unsigned cc)
{
    put8(e, 0x0f);
    put8(e, 0x80 | cc);
    put32(e, 0);
    return e->at - 4;
}

/* The short form if @target can be reached by it. */
static bool jump_short(Emit *e, unsigned opcode, const uint8_t *target)
{
    ptrdiff_t distance = target - (e->at + 2);

    if (distance != (int8_t)distance)
        return false;
    put8(e, opcode);
    put8(e, (uint8_t)distance);
    return true;
}

void emit_jmp_to(Emit *e, const uint8_t *target)
{
    if (!jump_short(e, 0xeb, target))
        emit_patch(emit_jmp(e), target);
}

void emit_jcc_to(Emit *e, unsigned cc, const uint8_t *target)
{
    if (!jump_short(e, 0x70 | cc, target))
        emit_patch(emit_jcc(e, cc), target);
}

void emit_jmp_operand(Emit *e, EmitOperand target)
{
    emit_rm(e, (EmitForm){.opcode = 0xff}, 4, target);
}

uint8_t *emit_jrcxz(Emit *e)
{
    put8(e, 0xe3);
    put8(e, 0);
    return e->at - 1;
}

void emit_patch8(uint8_t *rel8, const uint8_t *target)
{
    *rel8 = (uint8_t)(target - (rel8 + 1));
}

void emit_patch(uint8_t *rel32, const uint8_t *target)
{
    int32_t distance = (int32_t)(target - (rel32 + 4));

    memcpy(rel32, &distance, 4);
}
