/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Bit tests and scans: BT, BTS, BTR, BTC, BSF, BSR, TZCNT, LZCNT, POPCNT, CRC32, ADCX, ADOX. */
#include "vcpu/soft/integer.h"

/* The host tests bit @n of *p (within the operand); @lock is "" or "lock ". */
#define BIT_RUN(lock, insn, suffix, p, n)                                                          \
    __asm__ volatile(FLAGS_RESTORE lock insn suffix " %2, %0\n\t" FLAGS_SAVE                       \
                     : "+m"(*(p)), "+a"(f)                                                         \
                     : "r"(n)                                                                      \
                     : "cc", "memory")

/* Opens the operand that holds bit @n: a register number selects from the whole bit string. */
static uint64_t bit_linear(SoftCpu *cpu, const SoftOp *op, int64_t n, unsigned access)
{
    unsigned bits = op->size * 8;
    uint64_t offset = soft_offset(cpu, op);

    cpu->op = op;
    offset += (uint64_t)((n - (int64_t)((uint64_t)n & (bits - 1))) / 8);
    if (op->asize != 8)
        offset = op->asize == 4 ? (uint32_t)offset : (uint16_t)offset;
    return soft_linear(cpu, op->seg, offset, op->size, access);
}

#define BIT(name, insn, bits, suffix)                                                              \
    static ALWAYS_INLINE void name##_at_##bits(SoftCpu *cpu, uint##bits##_t *p, uint64_t n,        \
                                               bool locked)                                        \
    {                                                                                              \
        uint32_t f = cpu->arith;                                                                   \
        uint##bits##_t bit = (uint##bits##_t)(n & (bits - 1));                                     \
        if (locked)                                                                                \
            BIT_RUN("lock ", insn, suffix, p, bit);                                                \
        else                                                                                       \
            BIT_RUN("", insn, suffix, p, bit);                                                     \
        cpu->arith = (uint16_t)f;                                                                  \
    }                                                                                              \
    static ALWAYS_INLINE void name##_value_##bits(SoftCpu *cpu, const SoftOp *op, uint64_t n)      \
    {                                                                                              \
        uint32_t f = cpu->arith;                                                                   \
        uint##bits##_t v = get##bits(cpu, op->rm), bit = (uint##bits##_t)n;                        \
        __asm__(FLAGS_RESTORE insn suffix " %2, %0\n\t" FLAGS_SAVE                                 \
                : "+r"(v), "+a"(f)                                                                 \
                : "r"(bit)                                                                         \
                : "cc");                                                                           \
        cpu->arith = (uint16_t)f;                                                                  \
        set##bits(cpu, op->rm, v);                                                                 \
    }                                                                                              \
    static void name##_rr_##bits(SoftCpu *cpu, const SoftOp *op)                                   \
    {                                                                                              \
        name##_value_##bits(cpu, op, cpu->gpr[op->reg]);                                           \
        SOFT_NEXT(cpu, op);                                                                        \
    }                                                                                              \
    static void name##_ri_##bits(SoftCpu *cpu, const SoftOp *op)                                   \
    {                                                                                              \
        name##_value_##bits(cpu, op, op->imm);                                                     \
        SOFT_NEXT(cpu, op);                                                                        \
    }                                                                                              \
    static void name##_mem_##bits(SoftCpu *cpu, const SoftOp *op, int64_t bit, bool locked)        \
    {                                                                                              \
        uint64_t linear = bit_linear(cpu, op, bit, SOFT_WRITE);                                    \
        name##_at_##bits(cpu, soft_rmw_begin(cpu, &cpu->rmw, linear, bits / 8, locked), (uint64_t)bit,  \
                         locked);                                                                  \
        soft_rmw_end(cpu, &cpu->rmw);                                                                   \
        SOFT_NEXT_STORED(cpu, op);                                                                 \
    }                                                                                              \
    static void name##_mr_##bits(SoftCpu *cpu, const SoftOp *op)                                   \
    {                                                                                              \
        return name##_mem_##bits(cpu, op, (int##bits##_t)get##bits(cpu, op->reg), false);          \
    }                                                                                              \
    static void name##_mr_lock_##bits(SoftCpu *cpu, const SoftOp *op)                              \
    {                                                                                              \
        return name##_mem_##bits(cpu, op, (int##bits##_t)get##bits(cpu, op->reg), true);           \
    }                                                                                              \
    static void name##_mi_##bits(SoftCpu *cpu, const SoftOp *op)                                   \
    {                                                                                              \
        return name##_mem_##bits(cpu, op, op->imm & (bits - 1), false);                            \
    }                                                                                              \
    static void name##_mi_lock_##bits(SoftCpu *cpu, const SoftOp *op)                              \
    {                                                                                              \
        return name##_mem_##bits(cpu, op, op->imm & (bits - 1), true);                             \
    }

#define BIT_ALL(name)                                                                              \
    BIT(name, #name, 16, "w")                                                                      \
    BIT(name, #name, 32, "l")                                                                      \
    BIT(name, #name, 64, "q")                                                                      \
    static const SoftHandlerSet name##_r_set = { SET_REGV(name##_rr), SET_MEMV(name##_mr),         \
                                                 SET_LOCKV(name##_mr_lock) };                      \
    static const SoftHandlerSet name##_i_set = { SET_REGV(name##_ri), SET_MEMV(name##_mi),         \
                                                 SET_LOCKV(name##_mi_lock) };

BIT_ALL(bts)
BIT_ALL(btr)
BIT_ALL(btc)

/* BT writes nothing: its operand is only read. */
#define BT(bits, suffix)                                                                           \
    static ALWAYS_INLINE void bt_do_##bits(SoftCpu *cpu, uint##bits##_t v, uint64_t n)             \
    {                                                                                              \
        uint32_t f = cpu->arith;                                                                   \
        uint##bits##_t bit = (uint##bits##_t)n;                                                    \
        __asm__(FLAGS_RESTORE "bt" suffix " %2, %1\n\t" FLAGS_SAVE                                 \
                : "+a"(f)                                                                          \
                : "r"(v), "r"(bit)                                                                 \
                : "cc");                                                                           \
        cpu->arith = (uint16_t)f;                                                                  \
    }                                                                                              \
    static void bt_rr_##bits(SoftCpu *cpu, const SoftOp *op)                                       \
    {                                                                                              \
        bt_do_##bits(cpu, get##bits(cpu, op->rm), cpu->gpr[op->reg]);                              \
        SOFT_NEXT(cpu, op);                                                                        \
    }                                                                                              \
    static void bt_ri_##bits(SoftCpu *cpu, const SoftOp *op)                                       \
    {                                                                                              \
        bt_do_##bits(cpu, get##bits(cpu, op->rm), op->imm);                                        \
        SOFT_NEXT(cpu, op);                                                                        \
    }                                                                                              \
    static void bt_mr_##bits(SoftCpu *cpu, const SoftOp *op)                                       \
    {                                                                                              \
        int64_t n = (int##bits##_t)get##bits(cpu, op->reg);                                        \
        bt_do_##bits(cpu, soft_load##bits(cpu, bit_linear(cpu, op, n, SOFT_READ)), (uint64_t)n);   \
        SOFT_NEXT(cpu, op);                                                                        \
    }                                                                                              \
    static void bt_mi_##bits(SoftCpu *cpu, const SoftOp *op)                                       \
    {                                                                                              \
        bt_do_##bits(cpu, (uint##bits##_t)slow_read(cpu, op, bits / 8), op->imm);                  \
        SOFT_NEXT(cpu, op);                                                                        \
    }
BT(16, "w")
BT(32, "l")
BT(64, "q")
static const SoftHandlerSet bt_r_set = { SET_REGV(bt_rr), SET_MEMV(bt_mr) };
static const SoftHandlerSet bt_i_set = { SET_REGV(bt_ri), SET_MEMV(bt_mi) };

/*
 * Scans and counts. The whole 64-bit destination goes through the host's instruction: what a
 * zero source leaves there is as undefined, and thus the same, as on the host.
 */
#define SCAN(name, bits, insn)                                                                     \
    static ALWAYS_INLINE void name##_do_##bits(SoftCpu *cpu, const SoftOp *op, uint##bits##_t s)   \
    {                                                                                              \
        uint64_t d = cpu->gpr[op->reg], wide = s;                                                  \
        uint32_t f = cpu->arith;                                                                   \
        __asm__(FLAGS_RESTORE insn "\n\t" FLAGS_SAVE : "+r"(d), "+a"(f) : "r"(wide) : "cc");       \
        cpu->arith = (uint16_t)f;                                                                  \
        cpu->gpr[op->reg] = d;                                                                     \
    }                                                                                              \
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
#define SCAN_ALL(name)                                                                             \
    SCAN(name, 16, #name "w %w2, %w0")                                                             \
    SCAN(name, 32, #name "l %k2, %k0")                                                             \
    SCAN(name, 64, #name "q %2, %0")                                                               \
    static const SoftHandlerSet name##_set = { SET_REGV(name), SET_MEMV(name##_mem) };
SCAN_ALL(bsf)
SCAN_ALL(bsr)
SCAN_ALL(tzcnt)
SCAN_ALL(lzcnt)
SCAN_ALL(popcnt)

/* CRC32 touches no flag; its destination has 32 significant bits whatever the operand size. */
SCAN(crc32, 8, "crc32b %b2, %k0")
SCAN(crc32, 16, "crc32w %w2, %k0")
SCAN(crc32, 32, "crc32l %k2, %k0")
SCAN(crc32, 64, "crc32q %2, %0")
static const SoftHandlerSet crc32_set = { SET_REG(crc32), SET_MEM(crc32_mem) };

SCAN(adcx, 32, "adcxl %k2, %k0")
SCAN(adcx, 64, "adcxq %2, %0")
SCAN(adox, 32, "adoxl %k2, %k0")
SCAN(adox, 64, "adoxq %2, %0")
static const SoftHandlerSet adcx_set = { .reg = { NULL, NULL, adcx_32, adcx_64 },
                                         .mem = { NULL, NULL, adcx_mem_32, adcx_mem_64 } };
static const SoftHandlerSet adox_set = { .reg = { NULL, NULL, adox_32, adox_64 },
                                         .mem = { NULL, NULL, adox_mem_32, adox_mem_64 } };

#define M OPC_MODRM
#define L OPC_LOCK

static const SoftOpcode rows[] = {
    { ROW("bt", 1, PREFIX_ANY, 0xa3, -1, SIZE_V, IMM_NONE, M), .set = &bt_r_set },
    { ROW("bts", 1, PREFIX_ANY, 0xab, -1, SIZE_V, IMM_NONE, M | L), .set = &bts_r_set },
    { ROW("btr", 1, PREFIX_ANY, 0xb3, -1, SIZE_V, IMM_NONE, M | L), .set = &btr_r_set },
    { ROW("btc", 1, PREFIX_ANY, 0xbb, -1, SIZE_V, IMM_NONE, M | L), .set = &btc_r_set },
    { ROW("bt", 1, PREFIX_ANY, 0xba, 4, SIZE_V, IMM_BU, M), .set = &bt_i_set },
    { ROW("bts", 1, PREFIX_ANY, 0xba, 5, SIZE_V, IMM_BU, M | L), .set = &bts_i_set },
    { ROW("btr", 1, PREFIX_ANY, 0xba, 6, SIZE_V, IMM_BU, M | L), .set = &btr_i_set },
    { ROW("btc", 1, PREFIX_ANY, 0xba, 7, SIZE_V, IMM_BU, M | L), .set = &btc_i_set },
    { ROW("popcnt", 1, 2, 0xb8, -1, SIZE_V, IMM_NONE, M), .feature = SOFT_FEATURE(popcnt),
      .set = &popcnt_set },
    { ROW("tzcnt", 1, 2, 0xbc, -1, SIZE_V, IMM_NONE, M), .feature = SOFT_FEATURE(bmi1),
      .set = &tzcnt_set },
    { ROW("lzcnt", 1, 2, 0xbd, -1, SIZE_V, IMM_NONE, M), .feature = SOFT_FEATURE(lzcnt),
      .set = &lzcnt_set },
    { ROW("bsf", 1, PREFIX_ANY, 0xbc, -1, SIZE_V, IMM_NONE, M), .set = &bsf_set },
    { ROW("bsr", 1, PREFIX_ANY, 0xbd, -1, SIZE_V, IMM_NONE, M), .set = &bsr_set },
    { ROW("crc32", 2, 3, 0xf0, -1, SIZE_B, IMM_NONE, M | OPC_RM8), .feature = SOFT_FEATURE(sse42),
      .set = &crc32_set },
    { ROW("crc32", 2, 3, 0xf1, -1, SIZE_V, IMM_NONE, M), .feature = SOFT_FEATURE(sse42),
      .set = &crc32_set },
    { ROW("adcx", 2, 1, 0xf6, -1, SIZE_Y, IMM_NONE, M), .feature = SOFT_FEATURE(adx),
      .set = &adcx_set },
    { ROW("adox", 2, 2, 0xf6, -1, SIZE_Y, IMM_NONE, M), .feature = SOFT_FEATURE(adx),
      .set = &adox_set },
};

const SoftOpcodeGroup soft_bit_opcodes = { "bits", rows, sizeof(rows) / sizeof(rows[0]) };
