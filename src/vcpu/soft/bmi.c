/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* BMI1 and BMI2 (VEX encoded, SDM vol. 2 5.1.16): three registers, 32 or 64 bits. */
#include "vcpu/soft/integer.h"

/* Both forms of an instruction from its body: s is the r/m operand. */
#define BMI(name, bits)                                                                            \
    static void name##_##bits(SoftCpu *cpu, const SoftOp *op)                                      \
    {                                                                                              \
        name##_do_##bits(cpu, op, get##bits(cpu, op->rm));                                         \
        SOFT_NEXT(cpu, op);                                                                        \
    }                                                                                              \
    static void name##_mem_##bits(SoftCpu *cpu, const SoftOp *op)                                  \
    {                                                                                              \
        name##_do_##bits(cpu, op, (uint##bits##_t)slow_read(cpu, op, bits / 8));                   \
        SOFT_NEXT(cpu, op);                                                                        \
    }

#define BMI_SET(name)                                                                              \
    static const SoftHandlerSet name##_set = {                                                     \
        .reg = { NULL, NULL, name##_32, name##_64 },                                               \
        .mem = { NULL, NULL, name##_mem_32, name##_mem_64 }                                        \
    };

/* @dest: the field of the destination; @args: operands in AT&T order of %1 (r/m), %2 (other). */
#define BMI_OP(name, bits, insn, dest, other)                                                      \
    static ALWAYS_INLINE void name##_do_##bits(SoftCpu *cpu, const SoftOp *op, uint##bits##_t s)   \
    {                                                                                              \
        uint##bits##_t o = (uint##bits##_t)(other), d;                                             \
        uint32_t f = cpu->arith;                                                                   \
        __asm__(FLAGS_RESTORE insn "\n\t" FLAGS_SAVE                                               \
                : "=&r"(d), "+a"(f)                                                                \
                : "r"(s), "r"(o)                                                                   \
                : "cc");                                                                           \
        cpu->arith = (uint16_t)f;                                                                  \
        set##bits(cpu, op->dest, d);                                                               \
    }                                                                                              \
    BMI(name, bits)

#define BMI_BOTH(name, insn, dest, other)                                                          \
    BMI_OP(name, 32, insn, dest, other)                                                            \
    BMI_OP(name, 64, insn, dest, other)                                                            \
    BMI_SET(name)

BMI_BOTH(andn, "andn %2, %3, %0", reg, cpu->gpr[op->vvvv])
BMI_BOTH(bextr, "bextr %3, %2, %0", reg, cpu->gpr[op->vvvv])
BMI_BOTH(bzhi, "bzhi %3, %2, %0", reg, cpu->gpr[op->vvvv])
BMI_BOTH(pdep, "pdep %2, %3, %0", reg, cpu->gpr[op->vvvv])
BMI_BOTH(pext, "pext %2, %3, %0", reg, cpu->gpr[op->vvvv])
BMI_BOTH(sarx, "sarx %3, %2, %0", reg, cpu->gpr[op->vvvv])
BMI_BOTH(shlx, "shlx %3, %2, %0", reg, cpu->gpr[op->vvvv])
BMI_BOTH(shrx, "shrx %3, %2, %0", reg, cpu->gpr[op->vvvv])
BMI_BOTH(blsr, "blsr %2, %0", vvvv, 0)
BMI_BOTH(blsmsk, "blsmsk %2, %0", vvvv, 0)
BMI_BOTH(blsi, "blsi %2, %0", vvvv, 0)

#define MULX(bits, wide)                                                                           \
    static ALWAYS_INLINE void mulx_do_##bits(SoftCpu *cpu, const SoftOp *op, uint##bits##_t s)     \
    {                                                                                              \
        wide product = (wide)s * get##bits(cpu, GPR_RDX);                                          \
        set##bits(cpu, op->vvvv, (uint##bits##_t)product);                                         \
        set##bits(cpu, op->reg, (uint##bits##_t)(product >> bits)); /* wins if both are one */     \
    }                                                                                              \
    static ALWAYS_INLINE void rorx_do_##bits(SoftCpu *cpu, const SoftOp *op, uint##bits##_t s)     \
    {                                                                                              \
        unsigned n = op->imm & (bits - 1);                                                         \
        set##bits(cpu, op->reg, s >> n | s << (-n & (bits - 1)));                                  \
    }                                                                                              \
    BMI(mulx, bits)                                                                                \
    BMI(rorx, bits)
MULX(32, uint64_t)
MULX(64, unsigned __int128)
BMI_SET(mulx)
BMI_SET(rorx)

#define BMI_ROW(name, pp, opcode, digit, level)                                                    \
    { ROW(#name, 2, pp, opcode, digit, SIZE_Y, IMM_NONE, OPC_MODRM | OPC_VEX | OPC_VVVV),          \
      .feature = SOFT_FEATURE(level), .set = &name##_set }

static const SoftOpcode rows[] = {
    BMI_ROW(andn, 0, 0xf2, -1, bmi1),
    BMI_ROW(blsr, 0, 0xf3, 1, bmi1),
    BMI_ROW(blsmsk, 0, 0xf3, 2, bmi1),
    BMI_ROW(blsi, 0, 0xf3, 3, bmi1),
    BMI_ROW(bextr, 0, 0xf7, -1, bmi1),
    BMI_ROW(bzhi, 0, 0xf5, -1, bmi2),
    BMI_ROW(pext, 2, 0xf5, -1, bmi2),
    BMI_ROW(pdep, 3, 0xf5, -1, bmi2),
    BMI_ROW(mulx, 3, 0xf6, -1, bmi2),
    BMI_ROW(shlx, 1, 0xf7, -1, bmi2),
    BMI_ROW(sarx, 2, 0xf7, -1, bmi2),
    BMI_ROW(shrx, 3, 0xf7, -1, bmi2),
    { ROW("rorx", 3, 3, 0xf0, -1, SIZE_Y, IMM_BU, OPC_MODRM | OPC_VEX),
      .feature = SOFT_FEATURE(bmi2), .set = &rorx_set },
};

const SoftOpcodeGroup soft_bmi_opcodes = { "bmi", rows, sizeof(rows) / sizeof(rows[0]) };
