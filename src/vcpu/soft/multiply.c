/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Multiplication and division. */
#include "vcpu/soft/integer.h"

/* Defines NAME_BITS for a register and NAME_mem_BITS for a memory operand from F(cpu, op, value). */
#define READ_FORMS(name, bits)                                                                     \
    static void name##_##bits(SoftCpu *cpu, const SoftOp *op)                                      \
    {                                                                                              \
        cpu->op = op;                                                                              \
        name##_do_##bits(cpu, op, get##bits(cpu, op->rm));                                         \
        SOFT_NEXT(cpu, op);                                                                        \
    }                                                                                              \
    static void name##_mem_##bits(SoftCpu *cpu, const SoftOp *op)                                  \
    {                                                                                              \
        name##_do_##bits(cpu, op, (uint##bits##_t)slow_read(cpu, op, bits / 8));                   \
        SOFT_NEXT(cpu, op);                                                                        \
    }

/* AX = AL * value: the 8-bit forms of MUL, IMUL, DIV and IDIV live in AX alone. */
#define ONE_OPERAND_8(name)                                                                        \
    static ALWAYS_INLINE void name##_run_8(SoftCpu *cpu, uint8_t s)                                \
    {                                                                                              \
        uint16_t ax = get16(cpu, GPR_RAX);                                                         \
        uint32_t f = cpu->arith, r;                                                                \
        __asm__ volatile(FLAGS_RESTORE "movzwl %2, %%eax\n\t" #name "b %b3\n\t"                    \
                                       "movzwl %%ax, %1\n\t" FLAGS_SAVE                            \
                         : "+a"(f), "=&d"(r)                                                       \
                         : "r"(ax), "r"(s)                                                         \
                         : "cc");                                                                  \
        cpu->arith = (uint16_t)f;                                                                  \
        set16(cpu, GPR_RAX, (uint16_t)r);                                                          \
    }

/* DX:AX, EDX:EAX or RDX:RAX. */
#define ONE_OPERAND(name, bits, suffix)                                                            \
    static ALWAYS_INLINE void name##_run_##bits(SoftCpu *cpu, uint##bits##_t s)                    \
    {                                                                                              \
        uint64_t a = cpu->gpr[GPR_RAX], d = cpu->gpr[GPR_RDX], f = cpu->arith;                     \
        __asm__ volatile("xchg %%rax, %2\n\t" FLAGS_RESTORE "xchg %%rax, %2\n\t" #name suffix      \
                         " %3\n\t"                                                                 \
                         "mov %%rax, %2\n\t" FLAGS_SAVE "xchg %%rax, %2"                           \
                         : "+a"(a), "+d"(d), "+&r"(f)                                              \
                         : "r"(s)                                                                  \
                         : "cc");                                                                  \
        cpu->arith = (uint16_t)f;                                                                  \
        set##bits(cpu, GPR_RAX, (uint##bits##_t)a);                                                \
        set##bits(cpu, GPR_RDX, (uint##bits##_t)d);                                                \
    }

ONE_OPERAND_8(mul)
ONE_OPERAND(mul, 16, "w")
ONE_OPERAND(mul, 32, "l")
ONE_OPERAND(mul, 64, "q")
ONE_OPERAND_8(imul)
ONE_OPERAND(imul, 16, "w")
ONE_OPERAND(imul, 32, "l")
ONE_OPERAND(imul, 64, "q")
ONE_OPERAND_8(div)
ONE_OPERAND(div, 16, "w")
ONE_OPERAND(div, 32, "l")
ONE_OPERAND(div, 64, "q")
ONE_OPERAND_8(idiv)
ONE_OPERAND(idiv, 16, "w")
ONE_OPERAND(idiv, 32, "l")
ONE_OPERAND(idiv, 64, "q")

/* #DE exactly when the quotient does not fit (SDM vol. 2, DIV and IDIV), so that the host never faults. */
static ALWAYS_INLINE bool div_fits(SoftCpu *cpu, unsigned bits, uint64_t s)
{
    uint64_t high = bits == 8    ? cpu->gpr[GPR_RAX] >> 8 & 0xff
                    : bits == 16 ? (uint16_t)cpu->gpr[GPR_RDX]
                    : bits == 32 ? (uint32_t)cpu->gpr[GPR_RDX]
                                 : cpu->gpr[GPR_RDX];

    return high < s; /* also refuses s == 0 */
}

static ALWAYS_INLINE bool idiv_fits(SoftCpu *cpu, unsigned bits, int64_t s)
{
    uint64_t a = cpu->gpr[GPR_RAX], d = cpu->gpr[GPR_RDX];
    unsigned __int128 magnitude, limit;
    __int128 n;

    if (s == 0)
        return false;
    if (bits == 8)
        n = (int16_t)a;
    else if (bits == 16)
        n = (int32_t)((uint32_t)(uint16_t)a | (uint32_t)d << 16);
    else if (bits == 32)
        n = (int64_t)((uint64_t)(uint32_t)a | d << 32);
    else
        n = (__int128)((unsigned __int128)d << 64 | a);
    magnitude = n < 0 ? -(unsigned __int128)n : (unsigned __int128)n;
    limit = (unsigned __int128)1 << (bits - 1); /* a negative quotient reaches one further */
    if ((n < 0) == (s < 0))
        limit--;
    /* |n| / |s| <= limit */
    return magnitude / (s < 0 ? -(uint64_t)s : (uint64_t)s) <= limit;
}

#define FORMS(bits)                                                                                \
    static ALWAYS_INLINE void mul_do_##bits(SoftCpu *cpu, const SoftOp *op, uint##bits##_t s)      \
    {                                                                                              \
        mul_run_##bits(cpu, s);                                                                    \
    }                                                                                              \
    static ALWAYS_INLINE void imul_do_##bits(SoftCpu *cpu, const SoftOp *op, uint##bits##_t s)     \
    {                                                                                              \
        imul_run_##bits(cpu, s);                                                                   \
    }                                                                                              \
    static ALWAYS_INLINE void div_do_##bits(SoftCpu *cpu, const SoftOp *op, uint##bits##_t s)      \
    {                                                                                              \
        if (UNLIKELY(!div_fits(cpu, bits, s)))                                                     \
            soft_raise(cpu, EXC_DE);                                                               \
        div_run_##bits(cpu, s);                                                                    \
    }                                                                                              \
    static ALWAYS_INLINE void idiv_do_##bits(SoftCpu *cpu, const SoftOp *op, uint##bits##_t s)     \
    {                                                                                              \
        if (UNLIKELY(!idiv_fits(cpu, bits, (int##bits##_t)s)))                                     \
            soft_raise(cpu, EXC_DE);                                                               \
        idiv_run_##bits(cpu, s);                                                                   \
    }                                                                                              \
    READ_FORMS(mul, bits)                                                                          \
    READ_FORMS(imul, bits)                                                                         \
    READ_FORMS(div, bits)                                                                          \
    READ_FORMS(idiv, bits)

FORMS(8)
FORMS(16)
FORMS(32)
FORMS(64)

/* IMUL r, r/m and IMUL r, r/m, imm. */
#define IMUL(bits, suffix)                                                                         \
    static ALWAYS_INLINE uint##bits##_t imul2_run_##bits(SoftCpu *cpu, uint##bits##_t a,           \
                                                         uint##bits##_t b)                         \
    {                                                                                              \
        uint32_t f = cpu->arith;                                                                   \
        __asm__(FLAGS_RESTORE "imul" suffix " %2, %0\n\t" FLAGS_SAVE                               \
                : "+r"(a), "+a"(f)                                                                 \
                : "r"(b)                                                                           \
                : "cc");                                                                           \
        cpu->arith = (uint16_t)f;                                                                  \
        return a;                                                                                  \
    }                                                                                              \
    static ALWAYS_INLINE void imul2_do_##bits(SoftCpu *cpu, const SoftOp *op, uint##bits##_t s)    \
    {                                                                                              \
        set##bits(cpu, op->reg, imul2_run_##bits(cpu, get##bits(cpu, op->reg), s));                \
    }                                                                                              \
    static ALWAYS_INLINE void imul3_do_##bits(SoftCpu *cpu, const SoftOp *op, uint##bits##_t s)    \
    {                                                                                              \
        set##bits(cpu, op->reg, imul2_run_##bits(cpu, s, (uint##bits##_t)op->imm));                \
    }                                                                                              \
    READ_FORMS(imul2, bits)                                                                        \
    READ_FORMS(imul3, bits)

IMUL(16, "w")
IMUL(32, "l")
IMUL(64, "q")

#define SETS(name) static const SoftHandlerSet name##_set = { SET_REG(name), SET_MEM(name##_mem) };
SETS(mul)
SETS(imul)
SETS(div)
SETS(idiv)
static const SoftHandlerSet imul2_set = { SET_REGV(imul2), SET_MEMV(imul2_mem) };
static const SoftHandlerSet imul3_set = { SET_REGV(imul3), SET_MEMV(imul3_mem) };

#define M OPC_MODRM

static const SoftOpcode rows[] = {
    { ROW("mul", 0, PREFIX_ANY, 0xf6, 4, SIZE_B, IMM_NONE, M | OPC_RM8), .set = &mul_set },
    { ROW("mul", 0, PREFIX_ANY, 0xf7, 4, SIZE_V, IMM_NONE, M), .set = &mul_set },
    { ROW("imul", 0, PREFIX_ANY, 0xf6, 5, SIZE_B, IMM_NONE, M | OPC_RM8), .set = &imul_set },
    { ROW("imul", 0, PREFIX_ANY, 0xf7, 5, SIZE_V, IMM_NONE, M), .set = &imul_set },
    { ROW("div", 0, PREFIX_ANY, 0xf6, 6, SIZE_B, IMM_NONE, M | OPC_RM8), .set = &div_set },
    { ROW("div", 0, PREFIX_ANY, 0xf7, 6, SIZE_V, IMM_NONE, M), .set = &div_set },
    { ROW("idiv", 0, PREFIX_ANY, 0xf6, 7, SIZE_B, IMM_NONE, M | OPC_RM8), .set = &idiv_set },
    { ROW("idiv", 0, PREFIX_ANY, 0xf7, 7, SIZE_V, IMM_NONE, M), .set = &idiv_set },
    { ROW("imul", 1, PREFIX_ANY, 0xaf, -1, SIZE_V, IMM_NONE, M), .set = &imul2_set },
    { ROW("imul", 0, PREFIX_ANY, 0x69, -1, SIZE_V, IMM_Z, M), .set = &imul3_set },
    { ROW("imul", 0, PREFIX_ANY, 0x6b, -1, SIZE_V, IMM_B, M), .set = &imul3_set },
};

const SoftOpcodeGroup soft_multiply_opcodes = { "multiply", rows, sizeof(rows) / sizeof(rows[0]) };
