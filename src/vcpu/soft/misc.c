/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Flag operations, decimal adjustment, BOUND, hints, fences, cache lines, random numbers, UD. */
#include "vcpu/soft/integer.h"

static void nop(SoftCpu *cpu, const SoftOp *op)
{
    SOFT_NEXT(cpu, op);
}

static void pause_hint(SoftCpu *cpu, const SoftOp *op)
{
    __builtin_ia32_pause();
    SOFT_NEXT(cpu, op);
}

static void fence(SoftCpu *cpu, const SoftOp *op)
{
    atomic_thread_fence(memory_order_seq_cst);
    SOFT_NEXT(cpu, op);
}

/* CLFLUSH and its kin: the address must be readable, the caches are the host's business. */
static void cache_line(SoftCpu *cpu, const SoftOp *op)
{
    slow_read(cpu, op, 1);
    SOFT_NEXT(cpu, op);
}

/* ---- flags ---- */

static void clc(SoftCpu *cpu, const SoftOp *op)
{
    cpu->arith &= ~ARITH_CF;
    SOFT_NEXT(cpu, op);
}

static void stc(SoftCpu *cpu, const SoftOp *op)
{
    cpu->arith |= ARITH_CF;
    SOFT_NEXT(cpu, op);
}

static void cmc(SoftCpu *cpu, const SoftOp *op)
{
    cpu->arith ^= ARITH_CF;
    SOFT_NEXT(cpu, op);
}

static void cld(SoftCpu *cpu, const SoftOp *op)
{
    cpu->rflags &= ~(uint64_t)FLAG_DF;
    SOFT_NEXT(cpu, op);
}

static void std(SoftCpu *cpu, const SoftOp *op)
{
    cpu->rflags |= FLAG_DF;
    SOFT_NEXT(cpu, op);
}

#define AH_OFFSET 1 /* in bytes from cpu->gpr */
#define AH_FLAGS (FLAG_SF | FLAG_ZF | FLAG_AF | FLAG_PF | FLAG_CF)

static void lahf(SoftCpu *cpu, const SoftOp *op)
{
    set8(cpu, AH_OFFSET, (uint8_t)((cpu->arith >> 8 & AH_FLAGS) | 2));
    SOFT_NEXT(cpu, op);
}

static void sahf(SoftCpu *cpu, const SoftOp *op)
{
    cpu->arith = (cpu->arith & ARITH_OF) | (uint32_t)(get8(cpu, AH_OFFSET) & AH_FLAGS) << 8;
    SOFT_NEXT(cpu, op);
}

static void salc(SoftCpu *cpu, const SoftOp *op)
{
    set8(cpu, 0, flag_cf(cpu) ? 0xff : 0);
    SOFT_NEXT(cpu, op);
}

/* ---- decimal adjustment: SDM vol. 2; 64-bit hosts have none of these ---- */

static uint32_t result_flags(uint8_t r)
{
    uint32_t f = 0;

    __asm__("testb %1, %1\n\t" FLAGS_SAVE : "+a"(f) : "q"(r) : "cc");
    return f;
}

static void aaa_aas(SoftCpu *cpu, const SoftOp *op)
{
    uint16_t ax = get16(cpu, GPR_RAX);
    bool adjust = (ax & 0xf) > 9 || (cpu->arith & ARITH_AF);

    if (adjust)
        ax = (uint16_t)(op->sub ? ax - 0x106 : ax + 0x106);
    ax &= 0xff0f;
    set16(cpu, GPR_RAX, ax);
    cpu->arith = result_flags((uint8_t)ax) | (adjust ? ARITH_AF | ARITH_CF : 0);
    SOFT_NEXT(cpu, op);
}

static void daa_das(SoftCpu *cpu, const SoftOp *op)
{
    uint8_t al = get8(cpu, 0), old = al;
    bool carry = flag_cf(cpu), low = (al & 0xf) > 9 || (cpu->arith & ARITH_AF);
    bool high = old > 0x99 || carry, out = high;

    if (low) {
        out |= op->sub ? old < 6 : old > 0xf9;
        al = (uint8_t)(op->sub ? al - 6 : al + 6);
    }
    if (high)
        al = (uint8_t)(op->sub ? al - 0x60 : al + 0x60);
    set8(cpu, 0, al);
    cpu->arith = result_flags(al) | (low ? ARITH_AF : 0) | (out ? ARITH_CF : 0);
    SOFT_NEXT(cpu, op);
}

static void aam(SoftCpu *cpu, const SoftOp *op)
{
    uint8_t al = get8(cpu, 0), base = (uint8_t)op->imm;

    cpu->op = op;
    if (base == 0)
        soft_raise(cpu, EXC_DE);
    set16(cpu, GPR_RAX, (uint16_t)((al / base) << 8 | al % base));
    cpu->arith = result_flags(al % base);
    SOFT_NEXT(cpu, op);
}

static void aad(SoftCpu *cpu, const SoftOp *op)
{
    uint8_t al = (uint8_t)(get8(cpu, 0) + get8(cpu, AH_OFFSET) * (uint8_t)op->imm);

    set16(cpu, GPR_RAX, al);
    cpu->arith = result_flags(al);
    SOFT_NEXT(cpu, op);
}

/* ---- the rest ---- */

static void bound(SoftCpu *cpu, const SoftOp *op)
{
    int64_t index, low, high;
    uint64_t linear;

    cpu->op = op;
    linear = soft_operand(cpu, op, 2u * op->size, SOFT_READ);
    if (op->size == 2) {
        index = (int16_t)cpu->gpr[op->reg];
        low = (int16_t)soft_load16(cpu, linear);
        high = (int16_t)soft_load16(cpu, linear + 2);
    } else {
        index = (int32_t)cpu->gpr[op->reg];
        low = (int32_t)soft_load32(cpu, linear);
        high = (int32_t)soft_load32(cpu, linear + 4);
    }
    if (index < low || index > high)
        soft_raise(cpu, EXC_BR);
    SOFT_NEXT(cpu, op);
}

/* sub: 0 RDRAND, 1 RDSEED. The value is the host's; CF says whether there was one. */
static void random_number(SoftCpu *cpu, const SoftOp *op)
{
    uint64_t v = 0;
    bool ok = false;

    for (unsigned i = 0; i < 10 && !ok; i++) {
        if (op->sub)
            __asm__ volatile("rdseed %0" : "=r"(v), "=@ccc"(ok));
        else
            __asm__ volatile("rdrand %0" : "=r"(v), "=@ccc"(ok));
    }
    set_sized(cpu, op->rm, op->size, ok ? v : 0);
    cpu->arith = ok ? ARITH_CF : 0;
    SOFT_NEXT(cpu, op);
}

#define M OPC_MODRM

static const SoftOpcode rows[] = {
    /* 90 is XCHG with REX.B (exchange.c); the decoder skips these two rows then. */
    { ROW("pause", 0, 2, 0x90, -1, SIZE_V, IMM_NONE, 0), .handler = pause_hint },
    { ROW("nop", 0, PREFIX_ANY, 0x90, -1, SIZE_V, IMM_NONE, 0), .handler = nop },
    { ROW("clc", 0, PREFIX_ANY, 0xf8, -1, SIZE_V, IMM_NONE, 0), .handler = clc },
    { ROW("stc", 0, PREFIX_ANY, 0xf9, -1, SIZE_V, IMM_NONE, 0), .handler = stc },
    { ROW("cmc", 0, PREFIX_ANY, 0xf5, -1, SIZE_V, IMM_NONE, 0), .handler = cmc },
    { ROW("cld", 0, PREFIX_ANY, 0xfc, -1, SIZE_V, IMM_NONE, 0), .handler = cld },
    { ROW("std", 0, PREFIX_ANY, 0xfd, -1, SIZE_V, IMM_NONE, 0), .handler = std },
    { ROW("lahf", 0, PREFIX_ANY, 0x9f, -1, SIZE_V, IMM_NONE, 0), .handler = lahf },
    { ROW("sahf", 0, PREFIX_ANY, 0x9e, -1, SIZE_V, IMM_NONE, 0), .handler = sahf },
    { ROW("salc", 0, PREFIX_ANY, 0xd6, -1, SIZE_B, IMM_NONE, OPC_NO64), .handler = salc },
    { ROW("aaa", 0, PREFIX_ANY, 0x37, -1, SIZE_B, IMM_NONE, OPC_NO64), .handler = aaa_aas },
    { ROW("aas", 0, PREFIX_ANY, 0x3f, -1, SIZE_B, IMM_NONE, OPC_NO64), .sub = 1,
      .handler = aaa_aas },
    { ROW("daa", 0, PREFIX_ANY, 0x27, -1, SIZE_B, IMM_NONE, OPC_NO64), .handler = daa_das },
    { ROW("das", 0, PREFIX_ANY, 0x2f, -1, SIZE_B, IMM_NONE, OPC_NO64), .sub = 1,
      .handler = daa_das },
    { ROW("aam", 0, PREFIX_ANY, 0xd4, -1, SIZE_B, IMM_BU, OPC_NO64), .handler = aam },
    { ROW("aad", 0, PREFIX_ANY, 0xd5, -1, SIZE_B, IMM_BU, OPC_NO64), .handler = aad },
    { ROW("bound", 0, PREFIX_ANY, 0x62, -1, SIZE_V, IMM_NONE, M | OPC_MEM | OPC_NO64),
      .handler = bound },
    { ROW("prefetchw", 1, PREFIX_ANY, 0x0d, -1, SIZE_V, IMM_NONE, M | OPC_MEM), .handler = nop },
    { ROW("prefetch", 1, PREFIX_ANY, 0x18, -1, SIZE_V, IMM_NONE, M), .handler = nop },
    { ROW("nop", 1, PREFIX_ANY, 0x19, -1, SIZE_V, IMM_NONE, M), .handler = nop },
    { ROW("nop", 1, PREFIX_ANY, 0x1a, -1, SIZE_V, IMM_NONE, M), .handler = nop },
    { ROW("nop", 1, PREFIX_ANY, 0x1b, -1, SIZE_V, IMM_NONE, M), .handler = nop },
    { ROW("nop", 1, PREFIX_ANY, 0x1c, -1, SIZE_V, IMM_NONE, M), .handler = nop },
    { ROW("nop", 1, PREFIX_ANY, 0x1d, -1, SIZE_V, IMM_NONE, M), .handler = nop },
    { ROW("endbr", 1, PREFIX_ANY, 0x1e, -1, SIZE_V, IMM_NONE, M), .handler = nop },
    { ROW("nop", 1, PREFIX_ANY, 0x1f, -1, SIZE_V, IMM_NONE, M), .handler = nop },
    { ROW("lfence", 1, 0, 0xae, 5, SIZE_D, IMM_NONE, M | OPC_REG), .handler = fence },
    { ROW("mfence", 1, 0, 0xae, 6, SIZE_D, IMM_NONE, M | OPC_REG), .handler = fence },
    { ROW("sfence", 1, 0, 0xae, 7, SIZE_D, IMM_NONE, M | OPC_REG), .handler = fence },
    { ROW("clflush", 1, 0, 0xae, 7, SIZE_B, IMM_NONE, M | OPC_MEM), .handler = cache_line },
    { ROW("clflushopt", 1, 1, 0xae, 7, SIZE_B, IMM_NONE, M | OPC_MEM),
      .feature = SOFT_FEATURE(clflushopt), .handler = cache_line },
    { ROW("clwb", 1, 1, 0xae, 6, SIZE_B, IMM_NONE, M | OPC_MEM), .feature = SOFT_FEATURE(clwb),
      .handler = cache_line },
    { ROW("rdrand", 1, PREFIX_NONE, 0xc7, 6, SIZE_V, IMM_NONE, M | OPC_REG | OPC_NONDET),
      .feature = SOFT_FEATURE(rdrand), .sub = 0, .handler = random_number },
    { ROW("rdseed", 1, PREFIX_NONE, 0xc7, 7, SIZE_V, IMM_NONE, M | OPC_REG | OPC_NONDET),
      .feature = SOFT_FEATURE(rdseed), .sub = 1, .handler = random_number },
    { ROW("ud2", 1, PREFIX_ANY, 0x0b, -1, SIZE_V, IMM_NONE, OPC_END), .handler = soft_op_undefined },
    { ROW("ud1", 1, PREFIX_ANY, 0xb9, -1, SIZE_V, IMM_NONE, M | OPC_END),
      .handler = soft_op_undefined },
    { ROW("ud0", 1, PREFIX_ANY, 0xff, -1, SIZE_V, IMM_NONE, M | OPC_END),
      .handler = soft_op_undefined },
};

const SoftOpcodeGroup soft_misc_opcodes = { "misc", rows, sizeof(rows) / sizeof(rows[0]) };
