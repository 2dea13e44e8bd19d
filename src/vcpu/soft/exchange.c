/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* XCHG, XADD, CMPXCHG, CMPXCHG8B, CMPXCHG16B: the atomic read-modify-writes. */
#include "vcpu/soft/integer.h"

#define EXCHANGE(bits, suffix, rc)                                                                 \
    static void xchg_##bits(SoftCpu *cpu, const SoftOp *op)                                        \
    {                                                                                              \
        uint##bits##_t t = get##bits(cpu, op->rm);                                                 \
        set##bits(cpu, op->rm, get##bits(cpu, op->reg));                                           \
        set##bits(cpu, op->reg, t);                                                                \
        SOFT_NEXT(cpu, op);                                                                        \
    }                                                                                              \
    static void xchg_mem_##bits(SoftCpu *cpu, const SoftOp *op)                                    \
    {                                                                                              \
        uint##bits##_t *p = slow_rmw(cpu, op, &cpu->rmw, bits / 8, true);                               \
        uint##bits##_t v = get##bits(cpu, op->reg);                                                \
        __asm__ volatile("xchg" suffix " %0, %1" : "+" rc(v), "+m"(*p) : : "memory");              \
        set##bits(cpu, op->reg, v);                                                                \
        soft_rmw_end(cpu, &cpu->rmw);                                                                   \
        SOFT_NEXT_STORED(cpu, op);                                                                 \
    }                                                                                              \
    static void xadd_##bits(SoftCpu *cpu, const SoftOp *op)                                        \
    {                                                                                              \
        uint##bits##_t d = get##bits(cpu, op->rm), s = get##bits(cpu, op->reg);                    \
        uint32_t f = 0;                                                                            \
        __asm__("xadd" suffix " %1, %0\n\t" FLAGS_SAVE : "+" rc(d), "+" rc(s), "+a"(f) : : "cc");  \
        cpu->arith = f;                                                                            \
        set##bits(cpu, op->reg, s);                                                                \
        set##bits(cpu, op->rm, d);                                                                 \
        SOFT_NEXT(cpu, op);                                                                        \
    }                                                                                              \
    static void xadd_mem_##bits(SoftCpu *cpu, const SoftOp *op)                                    \
    {                                                                                              \
        bool locked = op->flags & SOFT_OP_LOCK;                                                    \
        uint##bits##_t *p = slow_rmw(cpu, op, &cpu->rmw, bits / 8, locked);                             \
        uint##bits##_t s = get##bits(cpu, op->reg);                                                \
        uint32_t f = 0;                                                                            \
        if (locked)                                                                                \
            __asm__ volatile("lock xadd" suffix " %1, %0\n\t" FLAGS_SAVE                           \
                             : "+m"(*p), "+" rc(s), "+a"(f)                                        \
                             :                                                                     \
                             : "cc", "memory");                                                    \
        else                                                                                       \
            __asm__ volatile("xadd" suffix " %1, %0\n\t" FLAGS_SAVE                                \
                             : "+m"(*p), "+" rc(s), "+a"(f)                                        \
                             :                                                                     \
                             : "cc", "memory");                                                    \
        cpu->arith = f;                                                                            \
        set##bits(cpu, op->reg, s);                                                                \
        soft_rmw_end(cpu, &cpu->rmw);                                                                   \
        SOFT_NEXT_STORED(cpu, op);                                                                 \
    }                                                                                              \
    /* The accumulator is AL/AX/EAX/RAX; returns it, the new flags in *f. */                       \
    static ALWAYS_INLINE uint##bits##_t cmpxchg_do_##bits(uint##bits##_t *p, uint##bits##_t a,     \
                                                          uint##bits##_t s, bool locked,           \
                                                          uint32_t *flags)                         \
    {                                                                                              \
        uint64_t f;                                                                                \
        if (locked)                                                                                \
            __asm__ volatile("lock cmpxchg" suffix " %3, %1\n\tmov %%rax, %2\n\t" FLAGS_SAVE       \
                             "xchg %%rax, %2"                                                      \
                             : "+a"(a), "+m"(*p), "=&r"(f)                                         \
                             : rc(s)                                                               \
                             : "cc", "memory");                                                    \
        else                                                                                       \
            __asm__ volatile("cmpxchg" suffix " %3, %1\n\tmov %%rax, %2\n\t" FLAGS_SAVE            \
                             "xchg %%rax, %2"                                                      \
                             : "+a"(a), "+m"(*p), "=&r"(f)                                         \
                             : rc(s)                                                               \
                             : "cc", "memory");                                                    \
        *flags = (uint16_t)f;                                                                      \
        return a;                                                                                  \
    }                                                                                              \
    /* 32 bits: whichever of accumulator and destination is written has its upper half cleared,    \
     * the other keeps it (so the host does; the write is skipped here likewise). */               \
    static void cmpxchg_##bits(SoftCpu *cpu, const SoftOp *op)                                     \
    {                                                                                              \
        uint##bits##_t *d = (uint##bits##_t *)cpu->rmw.bounce, s = get##bits(cpu, op->reg);        \
        uint##bits##_t a = (uint##bits##_t)cpu->gpr[GPR_RAX];                                      \
        *d = get##bits(cpu, op->rm);                                                               \
        a = cmpxchg_do_##bits(d, a, s, false, &cpu->arith);                                        \
        if (cpu->arith & ARITH_ZF)                                                                 \
            set##bits(cpu, op->rm, *d);                                                            \
        else                                                                                       \
            set##bits(cpu, GPR_RAX, a);                                                            \
        SOFT_NEXT(cpu, op);                                                                        \
    }                                                                                              \
    static void cmpxchg_mem_##bits(SoftCpu *cpu, const SoftOp *op)                                 \
    {                                                                                              \
        bool locked = op->flags & SOFT_OP_LOCK;                                                    \
        uint##bits##_t *p = slow_rmw(cpu, op, &cpu->rmw, bits / 8, locked);                             \
        uint##bits##_t a = (uint##bits##_t)cpu->gpr[GPR_RAX];                                      \
        a = cmpxchg_do_##bits(p, a, get##bits(cpu, op->reg), locked, &cpu->arith);                 \
        if (!(cpu->arith & ARITH_ZF))                                                              \
            set##bits(cpu, GPR_RAX, a);                                                            \
        soft_rmw_end(cpu, &cpu->rmw);                                                                   \
        SOFT_NEXT_STORED(cpu, op);                                                                 \
    }

EXCHANGE(8, "b", "q")
EXCHANGE(16, "w", "r")
EXCHANGE(32, "l", "r")
EXCHANGE(64, "q", "r")

static void cmpxchg8b(SoftCpu *cpu, const SoftOp *op)
{
    bool locked = op->flags & SOFT_OP_LOCK, equal;
    uint64_t *p = slow_rmw(cpu, op, &cpu->rmw, 8, locked);
    uint64_t old = (uint64_t)get32(cpu, GPR_RDX) << 32 | get32(cpu, GPR_RAX);
    uint64_t new = (uint64_t)get32(cpu, GPR_RCX) << 32 | get32(cpu, GPR_RBX);

    equal = __atomic_compare_exchange_n(p, &old, new, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    cpu->arith = equal ? cpu->arith | ARITH_ZF : cpu->arith & ~ARITH_ZF;
    if (!equal) {
        set32(cpu, GPR_RAX, (uint32_t)old);
        set32(cpu, GPR_RDX, (uint32_t)(old >> 32));
    }
    soft_rmw_end(cpu, &cpu->rmw);
    SOFT_NEXT_STORED(cpu, op);
}

static void cmpxchg16b(SoftCpu *cpu, const SoftOp *op)
{
    bool locked = op->flags & SOFT_OP_LOCK, equal;
    uint64_t *p, a = cpu->gpr[GPR_RAX], d = cpu->gpr[GPR_RDX];

    cpu->op = op;
    if (soft_operand(cpu, op, 16, SOFT_WRITE) & 15)
        soft_raise_error(cpu, EXC_GP, 0);
    p = slow_rmw(cpu, op, &cpu->rmw, 16, locked);
    __asm__ volatile("lock cmpxchg16b %0"
                     : "+m"(*(unsigned __int128 *)p), "+a"(a), "+d"(d), "=@ccz"(equal)
                     : "b"(cpu->gpr[GPR_RBX]), "c"(cpu->gpr[GPR_RCX])
                     : "memory");
    cpu->arith = equal ? cpu->arith | ARITH_ZF : cpu->arith & ~ARITH_ZF;
    if (!equal) {
        cpu->gpr[GPR_RAX] = a;
        cpu->gpr[GPR_RDX] = d;
    }
    soft_rmw_end(cpu, &cpu->rmw);
    SOFT_NEXT_STORED(cpu, op);
}

#define LOCK_TOO(name)                                                                             \
    .lock = { name##_8, name##_16, name##_32, name##_64 }
static const SoftHandlerSet xchg_set = { SET_REG(xchg), SET_MEM(xchg_mem), LOCK_TOO(xchg_mem) };
static const SoftHandlerSet xadd_set = { SET_REG(xadd), SET_MEM(xadd_mem), LOCK_TOO(xadd_mem) };
static const SoftHandlerSet cmpxchg_set = { SET_REG(cmpxchg), SET_MEM(cmpxchg_mem),
                                            LOCK_TOO(cmpxchg_mem) };
static const SoftHandlerSet cmpxchg8b_set = {
    .mem = { NULL, NULL, cmpxchg8b, cmpxchg16b }, .lock = { NULL, NULL, cmpxchg8b, cmpxchg16b }
};
static const SoftHandlerSet cmpxchg8b_only_set = {
    .mem = { NULL, NULL, cmpxchg8b, NULL }, .lock = { NULL, NULL, cmpxchg8b, NULL }
};

#define M OPC_MODRM
#define L OPC_LOCK
#define BYTES (OPC_REG8 | OPC_RM8)

static const SoftOpcode rows[] = {
    { ROW("xchg", 0, PREFIX_ANY, 0x86, -1, SIZE_B, IMM_NONE, M | BYTES | L), .set = &xchg_set },
    { ROW("xchg", 0, PREFIX_ANY, 0x87, -1, SIZE_V, IMM_NONE, M | L), .set = &xchg_set },
    /* 90 without REX.B is NOP or PAUSE: misc.c has that row before this one. */
    { ROW("xchg", 0, PREFIX_ANY, 0x90, -1, SIZE_V, IMM_NONE, OPC_OREG), .set = &xchg_set },
    { ROW("xadd", 1, PREFIX_ANY, 0xc0, -1, SIZE_B, IMM_NONE, M | BYTES | L), .set = &xadd_set },
    { ROW("xadd", 1, PREFIX_ANY, 0xc1, -1, SIZE_V, IMM_NONE, M | L), .set = &xadd_set },
    { ROW("cmpxchg", 1, PREFIX_ANY, 0xb0, -1, SIZE_B, IMM_NONE, M | BYTES | L),
      .set = &cmpxchg_set },
    { ROW("cmpxchg", 1, PREFIX_ANY, 0xb1, -1, SIZE_V, IMM_NONE, M | L), .set = &cmpxchg_set },
    { ROW("cmpxchg16b", 1, PREFIX_ANY, 0xc7, 1, SIZE_Y, IMM_NONE, M | OPC_MEM | L),
      .feature = SOFT_FEATURE(cx16), .set = &cmpxchg8b_set },
    { ROW("cmpxchg8b", 1, PREFIX_ANY, 0xc7, 1, SIZE_Y, IMM_NONE, M | OPC_MEM | L),
      .set = &cmpxchg8b_only_set },
};

const SoftOpcodeGroup soft_exchange_opcodes = { "exchange", rows, sizeof(rows) / sizeof(rows[0]) };
