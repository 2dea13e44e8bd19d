/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Data movement: MOV and its extensions, LEA, CMOVcc, SETcc, sign extension, byte swaps. */
#include "vcpu/soft/integer.h"

bool soft_condition(const SoftCpu *cpu, unsigned cc)
{
    return condition(cpu, cc);
}

#define MOV(bits)                                                                                  \
    static void mov_rr_##bits(SoftCpu *cpu, const SoftOp *op)                                      \
    {                                                                                              \
        set##bits(cpu, op->rm, get##bits(cpu, op->reg));                                           \
        SOFT_NEXT(cpu, op);                                                                        \
    }                                                                                              \
    static void mov_ri_##bits(SoftCpu *cpu, const SoftOp *op)                                      \
    {                                                                                              \
        set##bits(cpu, op->rm, (uint##bits##_t)op->imm);                                           \
        SOFT_NEXT(cpu, op);                                                                        \
    }                                                                                              \
    static COLD void load_slow_##bits(SoftCpu *cpu, const SoftOp *op)                              \
    {                                                                                              \
        set##bits(cpu, op->reg, (uint##bits##_t)slow_read(cpu, op, bits / 8));                     \
        SOFT_NEXT(cpu, op);                                                                        \
    }                                                                                              \
    static void load_##bits(SoftCpu *cpu, const SoftOp *op)                                        \
    {                                                                                              \
        const uint##bits##_t *p;                                                                   \
        if (!fast_read(cpu, op, bits / 8, &p))                                                     \
            return load_slow_##bits(cpu, op);                                                      \
        set##bits(cpu, op->reg, *p);                                                               \
        SOFT_NEXT(cpu, op);                                                                        \
    }                                                                                              \
    static COLD void store_slow_##bits(SoftCpu *cpu, const SoftOp *op)                             \
    {                                                                                              \
        slow_write(cpu, op, bits / 8, get##bits(cpu, op->reg));                                    \
        SOFT_NEXT_STORED(cpu, op);                                                                 \
    }                                                                                              \
    static void store_##bits(SoftCpu *cpu, const SoftOp *op)                                       \
    {                                                                                              \
        uint##bits##_t *p;                                                                         \
        if (!fast_write(cpu, op, bits / 8, &p))                                                    \
            return store_slow_##bits(cpu, op);                                                     \
        *p = get##bits(cpu, op->reg);                                                              \
        SOFT_NEXT(cpu, op);                                                                        \
    }                                                                                              \
    static COLD void store_imm_slow_##bits(SoftCpu *cpu, const SoftOp *op)                         \
    {                                                                                              \
        slow_write(cpu, op, bits / 8, op->imm);                                                    \
        SOFT_NEXT_STORED(cpu, op);                                                                 \
    }                                                                                              \
    static void store_imm_##bits(SoftCpu *cpu, const SoftOp *op)                                   \
    {                                                                                              \
        uint##bits##_t *p;                                                                         \
        if (!fast_write(cpu, op, bits / 8, &p))                                                    \
            return store_imm_slow_##bits(cpu, op);                                                 \
        *p = (uint##bits##_t)op->imm;                                                              \
        SOFT_NEXT(cpu, op);                                                                        \
    }

MOV(8)
MOV(16)
MOV(32)
MOV(64)

static const SoftHandlerSet mov_store_set = { SET_REG(mov_rr), SET_MEM(store) };
static const SoftHandlerSet mov_load_set = { SET_REG(mov_rr), SET_MEM(load) };
static const SoftHandlerSet mov_imm_set = { SET_REG(mov_ri), SET_MEM(store_imm) };

/* MOVZX, MOVSX, MOVSXD: from is the operand in r/m, to the register. */
#define EXTEND(name, from, cast, bits)                                                             \
    static void name##_##bits(SoftCpu *cpu, const SoftOp *op)                                      \
    {                                                                                              \
        set##bits(cpu, op->reg, (uint##bits##_t)(cast)get##from(cpu, op->rm));                     \
        SOFT_NEXT(cpu, op);                                                                        \
    }                                                                                              \
    static COLD void name##_slow_##bits(SoftCpu *cpu, const SoftOp *op)                            \
    {                                                                                              \
        set##bits(cpu, op->reg, (uint##bits##_t)(cast)slow_read(cpu, op, from / 8));               \
        SOFT_NEXT(cpu, op);                                                                        \
    }                                                                                              \
    static void name##_mem_##bits(SoftCpu *cpu, const SoftOp *op)                                  \
    {                                                                                              \
        const cast *p;                                                                             \
        if (!fast_read(cpu, op, from / 8, &p))                                                     \
            return name##_slow_##bits(cpu, op);                                                    \
        set##bits(cpu, op->reg, (uint##bits##_t)*p);                                               \
        SOFT_NEXT(cpu, op);                                                                        \
    }
#define EXTEND_ALL(name, from, cast)                                                               \
    EXTEND(name, from, cast, 16)                                                                   \
    EXTEND(name, from, cast, 32)                                                                   \
    EXTEND(name, from, cast, 64)                                                                   \
    static const SoftHandlerSet name##_set = { SET_REGV(name), SET_MEMV(name##_mem) };

EXTEND_ALL(movzx8, 8, uint8_t)
EXTEND_ALL(movzx16, 16, uint16_t)
EXTEND_ALL(movsx8, 8, int8_t)
EXTEND_ALL(movsx16, 16, int16_t)
EXTEND(movsxd, 32, int32_t, 64)
EXTEND(movsxd, 32, int32_t, 32)
EXTEND(movsxd, 16, int16_t, 16) /* APM vol. 3, MOVSXD: 16 bits move as they are */
static const SoftHandlerSet movsxd_set = { SET_REGV(movsxd), SET_MEMV(movsxd_mem) };

#define LEA(bits)                                                                                  \
    static void lea_##bits(SoftCpu *cpu, const SoftOp *op)                                         \
    {                                                                                              \
        set##bits(cpu, op->reg, (uint##bits##_t)soft_offset(cpu, op));                             \
        SOFT_NEXT(cpu, op);                                                                        \
    }
LEA(16)
LEA(32)
LEA(64)
static const SoftHandlerSet lea_set = { SET_MEMV(lea) };

/* CMOVcc reads its operand whatever the condition; the 32-bit form clears the upper half anyway. */
#define CMOV(cc, bits)                                                                             \
    static void cmov_##cc##_##bits(SoftCpu *cpu, const SoftOp *op)                                 \
    {                                                                                              \
        set##bits(cpu, op->reg, get##bits(cpu, condition(cpu, cc) ? op->rm : op->reg));            \
        SOFT_NEXT(cpu, op);                                                                        \
    }
#define CMOV_MEM(bits)                                                                             \
    static void cmov_mem_##bits(SoftCpu *cpu, const SoftOp *op)                                    \
    {                                                                                              \
        uint##bits##_t v = (uint##bits##_t)slow_read(cpu, op, bits / 8);                           \
        set##bits(cpu, op->reg, soft_condition(cpu, op->sub) ? v : get##bits(cpu, op->reg));       \
        SOFT_NEXT(cpu, op);                                                                        \
    }
CMOV_MEM(16)
CMOV_MEM(32)
CMOV_MEM(64)

#define SETCC(cc)                                                                                  \
    static void set_##cc(SoftCpu *cpu, const SoftOp *op)                                           \
    {                                                                                              \
        set8(cpu, op->rm, condition(cpu, cc));                                                     \
        SOFT_NEXT(cpu, op);                                                                        \
    }
static void set_mem(SoftCpu *cpu, const SoftOp *op)
{
    slow_write(cpu, op, 1, soft_condition(cpu, op->sub));
    SOFT_NEXT_STORED(cpu, op);
}

#define BY_CONDITION(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
#define CMOV_ALL(cc) CMOV(cc, 16) CMOV(cc, 32) CMOV(cc, 64)
BY_CONDITION(CMOV_ALL)
BY_CONDITION(SETCC)

#define CMOV_SET(cc) [cc] = { SET_REGV(cmov_##cc), SET_MEMV(cmov_mem) },
#define SETCC_SET(cc) [cc] = { .reg = { set_##cc }, .mem = { set_mem } },
static const SoftHandlerSet cmov_set[16] = { BY_CONDITION(CMOV_SET) };
static const SoftHandlerSet setcc_set[16] = { BY_CONDITION(SETCC_SET) };

/* CBW, CWDE, CDQE and CWD, CDQ, CQO. */
#define WIDEN(bits, half)                                                                          \
    static void cbw_##bits(SoftCpu *cpu, const SoftOp *op)                                         \
    {                                                                                              \
        set##bits(cpu, GPR_RAX, (uint##bits##_t)(int##half##_t)cpu->gpr[GPR_RAX]);                 \
        SOFT_NEXT(cpu, op);                                                                        \
    }                                                                                              \
    static void cwd_##bits(SoftCpu *cpu, const SoftOp *op)                                         \
    {                                                                                              \
        set##bits(cpu, GPR_RDX, (uint##bits##_t)((int##bits##_t)cpu->gpr[GPR_RAX] >> (bits - 1))); \
        SOFT_NEXT(cpu, op);                                                                        \
    }
WIDEN(16, 8)
WIDEN(32, 16)
WIDEN(64, 32)
static const SoftHandlerSet cbw_set = { SET_REGV(cbw) };
static const SoftHandlerSet cwd_set = { SET_REGV(cwd) };

/* The 16-bit form is undefined; this is what processors do (they clear the register's low half). */
static void bswap_16(SoftCpu *cpu, const SoftOp *op)
{
    uint64_t v = cpu->gpr[op->rm];
    __asm__(".byte 0x66\n\tbswapl %k0" : "+r"(v));
    cpu->gpr[op->rm] = v;
    SOFT_NEXT(cpu, op);
}

static void bswap_32(SoftCpu *cpu, const SoftOp *op)
{
    set32(cpu, op->rm, __builtin_bswap32(get32(cpu, op->rm)));
    SOFT_NEXT(cpu, op);
}

static void bswap_64(SoftCpu *cpu, const SoftOp *op)
{
    set64(cpu, op->rm, __builtin_bswap64(get64(cpu, op->rm)));
    SOFT_NEXT(cpu, op);
}
static const SoftHandlerSet bswap_set = { SET_REGV(bswap) };

#define MOVBE(bits)                                                                                \
    static void movbe_load_##bits(SoftCpu *cpu, const SoftOp *op)                                  \
    {                                                                                              \
        set##bits(cpu, op->reg,                                                                    \
                  __builtin_bswap##bits((uint##bits##_t)slow_read(cpu, op, bits / 8)));            \
        SOFT_NEXT(cpu, op);                                                                        \
    }                                                                                              \
    static void movbe_store_##bits(SoftCpu *cpu, const SoftOp *op)                                 \
    {                                                                                              \
        slow_write(cpu, op, bits / 8, __builtin_bswap##bits(get##bits(cpu, op->reg)));             \
        SOFT_NEXT_STORED(cpu, op);                                                                 \
    }
MOVBE(16)
MOVBE(32)
MOVBE(64)
static const SoftHandlerSet movbe_load_set = { SET_MEMV(movbe_load) };
static const SoftHandlerSet movbe_store_set = { SET_MEMV(movbe_store) };

/* AL = [rBX + AL]; the decoder made rBX the base, AL is added here. */
static void xlat(SoftCpu *cpu, const SoftOp *op)
{
    uint64_t offset = cpu->gpr[GPR_RBX] + (uint8_t)cpu->gpr[GPR_RAX];

    cpu->op = op;
    if (op->asize != 8)
        offset = op->asize == 4 ? (uint32_t)offset : (uint16_t)offset;
    set8(cpu, 0, soft_load8(cpu, soft_linear(cpu, op->seg, offset, 1, SOFT_READ)));
    SOFT_NEXT(cpu, op);
}

#define M OPC_MODRM
#define BYTES (OPC_REG8 | OPC_RM8)

static const SoftOpcode rows[] = {
    { ROW("mov", 0, PREFIX_ANY, 0x88, -1, SIZE_B, IMM_NONE, M | BYTES), .set = &mov_store_set },
    { ROW("mov", 0, PREFIX_ANY, 0x89, -1, SIZE_V, IMM_NONE, M), .set = &mov_store_set },
    { ROW("mov", 0, PREFIX_ANY, 0x8a, -1, SIZE_B, IMM_NONE, M | BYTES | OPC_SWAP),
      .set = &mov_load_set },
    { ROW("mov", 0, PREFIX_ANY, 0x8b, -1, SIZE_V, IMM_NONE, M | OPC_SWAP), .set = &mov_load_set },
    { ROW("mov", 0, PREFIX_ANY, 0xa0, -1, SIZE_B, IMM_MOFFS, OPC_REG8), .set = &mov_load_set },
    { ROW("mov", 0, PREFIX_ANY, 0xa1, -1, SIZE_V, IMM_MOFFS, 0), .set = &mov_load_set },
    { ROW("mov", 0, PREFIX_ANY, 0xa2, -1, SIZE_B, IMM_MOFFS, OPC_REG8), .set = &mov_store_set },
    { ROW("mov", 0, PREFIX_ANY, 0xa3, -1, SIZE_V, IMM_MOFFS, 0), .set = &mov_store_set },
    { ROW("mov", 0, PREFIX_ANY, 0xb0, -1, SIZE_B, IMM_B, OPC_OREG | OPC_RM8), .set = &mov_imm_set },
    { ROW("mov", 0, PREFIX_ANY, 0xb8, -1, SIZE_V, IMM_V, OPC_OREG), .set = &mov_imm_set },
    { ROW("mov", 0, PREFIX_ANY, 0xc6, 0, SIZE_B, IMM_B, M | OPC_RM8), .set = &mov_imm_set },
    { ROW("mov", 0, PREFIX_ANY, 0xc7, 0, SIZE_V, IMM_Z, M), .set = &mov_imm_set },
    { ROW("movnti", 1, 0, 0xc3, -1, SIZE_Y, IMM_NONE, M | OPC_MEM), .set = &mov_store_set },
    { ROW("movzx", 1, PREFIX_ANY, 0xb6, -1, SIZE_V, IMM_NONE, M | OPC_RM8), .set = &movzx8_set },
    { ROW("movzx", 1, PREFIX_ANY, 0xb7, -1, SIZE_V, IMM_NONE, M), .set = &movzx16_set },
    { ROW("movsx", 1, PREFIX_ANY, 0xbe, -1, SIZE_V, IMM_NONE, M | OPC_RM8), .set = &movsx8_set },
    { ROW("movsx", 1, PREFIX_ANY, 0xbf, -1, SIZE_V, IMM_NONE, M), .set = &movsx16_set },
    { ROW("movsxd", 0, PREFIX_ANY, 0x63, -1, SIZE_V, IMM_NONE, M | OPC_ONLY64), .set = &movsxd_set },
    { ROW("lea", 0, PREFIX_ANY, 0x8d, -1, SIZE_V, IMM_NONE, M | OPC_MEM), .set = &lea_set },
    { ROW("cmov", 1, PREFIX_ANY, 0x40, -1, SIZE_V, IMM_NONE, M | OPC_CC), .set = cmov_set },
    { ROW("set", 1, PREFIX_ANY, 0x90, -1, SIZE_B, IMM_NONE, M | OPC_RM8 | OPC_CC),
      .set = setcc_set },
    { ROW("cbw", 0, PREFIX_ANY, 0x98, -1, SIZE_V, IMM_NONE, 0), .set = &cbw_set },
    { ROW("cwd", 0, PREFIX_ANY, 0x99, -1, SIZE_V, IMM_NONE, 0), .set = &cwd_set },
    { ROW("bswap", 1, PREFIX_ANY, 0xc8, -1, SIZE_V, IMM_NONE, OPC_OREG), .set = &bswap_set },
    { ROW("movbe", 2, PREFIX_NONE, 0xf0, -1, SIZE_V, IMM_NONE, M | OPC_MEM),
      .feature = SOFT_FEATURE(movbe), .set = &movbe_load_set },
    { ROW("movbe", 2, PREFIX_NONE, 0xf1, -1, SIZE_V, IMM_NONE, M | OPC_MEM),
      .feature = SOFT_FEATURE(movbe), .set = &movbe_store_set },
    { ROW("xlat", 0, PREFIX_ANY, 0xd7, -1, SIZE_B, IMM_NONE, 0), .handler = xlat },
};

const SoftOpcodeGroup soft_move_opcodes = { "move", rows, sizeof(rows) / sizeof(rows[0]) };
