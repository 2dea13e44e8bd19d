/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The assembler of the translator: appends x86-64 instructions to a buffer. It knows encodings
 * (Intel SDM vol. 2, chapter 2), not what they are used for; the caller leaves enough room.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum {
    HOST_RAX, HOST_RCX, HOST_RDX, HOST_RBX, HOST_RSP, HOST_RBP, HOST_RSI, HOST_RDI,
    HOST_R8, HOST_R9, HOST_R10, HOST_R11, HOST_R12, HOST_R13, HOST_R14, HOST_R15,
};
#define HOST_NONE 16 /* no base, no index */

/* Where the next byte goes. Instructions are at most 15 bytes; @end is the caller's affair. */
typedef struct Emit {
    uint8_t *at;
    uint8_t *end;
} Emit;

/* A ModRM operand: a register, memory, or a field of the structure that GS points to. */
typedef struct EmitOperand {
    enum { EMIT_REG, EMIT_MEM, EMIT_GS } kind;
    uint8_t reg;         /* EMIT_REG */
    uint8_t base, index; /* EMIT_MEM: HOST_* or HOST_NONE; index is never RSP. EMIT_GS: index or HOST_NONE */
    uint8_t scale;       /* a shift, 0-3 */
    int32_t disp;        /* without a base: the absolute address, sign extended */
} EmitOperand;

static inline EmitOperand emit_reg(unsigned reg)
{
    return (EmitOperand){.kind = EMIT_REG, .reg = (uint8_t)reg};
}
static inline EmitOperand emit_mem(unsigned base, int32_t disp)
{
    return (EmitOperand){.kind = EMIT_MEM, .base = (uint8_t)base, .index = HOST_NONE, .disp = disp};
}
static inline EmitOperand emit_mem_index(unsigned base, unsigned index, unsigned scale, int32_t disp)
{
    return (EmitOperand){.kind = EMIT_MEM, .base = (uint8_t)base, .index = (uint8_t)index,
                         .scale = (uint8_t)scale, .disp = disp};
}
static inline EmitOperand emit_gs(size_t offset)
{
    return (EmitOperand){.kind = EMIT_GS, .base = HOST_NONE, .index = HOST_NONE, .disp = (int32_t)offset};
}
/* gs:offset(index << scale) */
static inline EmitOperand emit_gs_index(size_t offset, unsigned index, unsigned scale)
{
    return (EmitOperand){.kind = EMIT_GS, .base = HOST_NONE, .index = (uint8_t)index,
                         .scale = (uint8_t)scale, .disp = (int32_t)offset};
}

/* ---- the general forms ---- */

enum { /* EmitForm.flags */
    EMIT_W = 1 << 0,        /* REX.W, VEX.W */
    EMIT_LOCK = 1 << 1,
    EMIT_BYTE_REG = 1 << 2, /* reg is a byte register: 4-7 are SPL..DIL, which takes a REX prefix */
    EMIT_BYTE_RM = 1 << 3,  /* the same for a register operand */
    EMIT_HIGH_REG = 1 << 4, /* reg 4-7 are AH..BH: the instruction must do without REX */
    EMIT_HIGH_RM = 1 << 5,
    EMIT_66 = 1 << 6,       /* operand size prefix besides @prefix */
    EMIT_L = 1 << 7,        /* VEX.L */
};

typedef struct EmitForm {
    uint8_t map;    /* 0 one-byte, 1 0F, 2 0F38, 3 0F3A */
    uint8_t opcode;
    uint8_t prefix; /* mandatory: 0 none, 1 66, 2 F3, 3 F2 */
    uint8_t flags;  /* EMIT_* */
} EmitForm;

/* Whether emit_rm can encode it: AH..BH exclude every register that takes REX. */
bool emit_rm_possible(EmitForm form, unsigned reg, EmitOperand rm);
/* [prefixes] opcode ModRM [SIB] [disp]; reg is a register 0-15 or an opcode digit. Immediates follow by emit_imm. */
void emit_rm(Emit *e, EmitForm form, unsigned reg, EmitOperand rm);
/* The same with a VEX prefix; map 1-3, vvvv 0-15 (0 encodes "none" as the caller's 0: pass 0 then). */
void emit_vex_rm(Emit *e, EmitForm form, unsigned vvvv, unsigned reg, EmitOperand rm);
/* @size bytes of @value, little endian: 1, 2, 4 or 8. */
void emit_imm(Emit *e, uint64_t value, unsigned size);
void emit_bytes(Emit *e, const void *bytes, unsigned n);

/* ---- what is used often; 64 bits unless the name says 32 ---- */

void emit_mov(Emit *e, unsigned to, unsigned from);
void emit_mov32(Emit *e, unsigned to, unsigned from);
void emit_load(Emit *e, unsigned to, EmitOperand from);
void emit_load32(Emit *e, unsigned to, EmitOperand from);
void emit_load16_zero(Emit *e, unsigned to, EmitOperand from); /* movzwl */
void emit_load8_zero(Emit *e, unsigned to, EmitOperand from);  /* movzbl */
void emit_store(Emit *e, EmitOperand to, unsigned from);
void emit_store32(Emit *e, EmitOperand to, unsigned from);
void emit_store16(Emit *e, EmitOperand to, unsigned from);
void emit_store8(Emit *e, EmitOperand to, unsigned from);
void emit_store32_imm(Emit *e, EmitOperand to, uint32_t value);
void emit_lea(Emit *e, unsigned to, EmitOperand from); /* EMIT_MEM only */
void emit_lea32(Emit *e, unsigned to, EmitOperand from);
/* to = value, by the shortest encoding; leaves the flags alone. */
void emit_constant(Emit *e, unsigned to, uint64_t value);
/* add, or, adc, sbb, and, sub, xor, cmp: SDM's digits 0-7. */
enum { ALU_ADD, ALU_OR, ALU_ADC, ALU_SBB, ALU_AND, ALU_SUB, ALU_XOR, ALU_CMP };
void emit_alu(Emit *e, unsigned alu, unsigned to, EmitOperand from);   /* alu from,to */
void emit_alu32(Emit *e, unsigned alu, unsigned to, EmitOperand from);
void emit_alu_imm(Emit *e, unsigned alu, EmitOperand to, int32_t value);
void emit_alu32_imm(Emit *e, unsigned alu, EmitOperand to, int32_t value);
void emit_alu8_imm(Emit *e, unsigned alu, EmitOperand to, int8_t value);
void emit_test_imm(Emit *e, EmitOperand rm, int32_t value);
void emit_rorx(Emit *e, unsigned to, unsigned from, unsigned count); /* BMI2: no flags */
void emit_shr_imm(Emit *e, unsigned reg, unsigned count);
void emit_lahf(Emit *e);
void emit_sahf(Emit *e);
void emit_setcc(Emit *e, unsigned cc, unsigned reg); /* byte register of 0-15 */

/* ---- jumps ---- */

/* Each gives where its rel32 is, for emit_patch; the target may be unknown yet. */
uint8_t *emit_jmp(Emit *e);
uint8_t *emit_jcc(Emit *e, unsigned cc);
void emit_jmp_to(Emit *e, const uint8_t *target); /* in the same mapping as e->at */
void emit_jcc_to(Emit *e, unsigned cc, const uint8_t *target);
void emit_jmp_operand(Emit *e, EmitOperand target); /* jmp *target */
/* jrcxz +rel8: gives where the byte is; emit_patch8 sets it to reach @target. */
uint8_t *emit_jrcxz(Emit *e);
void emit_patch8(uint8_t *rel8, const uint8_t *target);
void emit_patch(uint8_t *rel32, const uint8_t *target);
