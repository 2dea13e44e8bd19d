/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Two-operand and one-operand arithmetic and logic. */
#include "vcpu/soft/integer.h"

#define BITS 8
#define T uint8_t
#define Q "b"
#define RC "q"
#include "vcpu/soft/alu-template.h"
#define BITS 16
#define T uint16_t
#define Q "w"
#define RC "r"
#include "vcpu/soft/alu-template.h"
#define BITS 32
#define T uint32_t
#define Q "l"
#define RC "r"
#include "vcpu/soft/alu-template.h"
#define BITS 64
#define T uint64_t
#define Q "q"
#define RC "r"
#include "vcpu/soft/alu-template.h"

/* OP r/m, r; OP r, r/m; OP r/m, imm: the register-to-register form is one (OPC_SWAP). */
#define ALU_SETS(name)                                                                             \
    static const SoftHandlerSet name##_mr_set = { SET_REG(name##_rr), SET_MEM(name##_mr),          \
                                                  .lock = { name##_mr_lock_8, name##_mr_lock_16,   \
                                                            name##_mr_lock_32,                     \
                                                            name##_mr_lock_64 } };                 \
    static const SoftHandlerSet name##_rm_set = { SET_REG(name##_rr), SET_MEM(name##_rm) };        \
    static const SoftHandlerSet name##_mi_set = { SET_REG(name##_ri), SET_MEM(name##_mi),          \
                                                  .lock = { name##_mi_lock_8, name##_mi_lock_16,   \
                                                            name##_mi_lock_32,                     \
                                                            name##_mi_lock_64 } };

ALU_SETS(add)
ALU_SETS(or)
ALU_SETS(and)
ALU_SETS(sub)
ALU_SETS(xor)
ALU_SETS(adc)
ALU_SETS(sbb)

static const SoftHandlerSet cmp_mr_set = { SET_REG(cmp_rr), SET_MEM(cmp_mr) };
static const SoftHandlerSet cmp_rm_set = { SET_REG(cmp_rr), SET_MEM(cmp_rm) };
static const SoftHandlerSet cmp_mi_set = { SET_REG(cmp_ri), SET_MEM(cmp_mi) };
static const SoftHandlerSet test_mr_set = { SET_REG(test_rr), SET_MEM(test_mr) };
static const SoftHandlerSet test_mi_set = { SET_REG(test_ri), SET_MEM(test_mi) };

#define UNARY_SET(name)                                                                            \
    static const SoftHandlerSet name##_set = {                                                     \
        SET_REG(name##_r), SET_MEM(name##_m),                                                      \
        .lock = { name##_m_slow_8, name##_m_slow_16, name##_m_slow_32, name##_m_slow_64 }          \
    };

UNARY_SET(inc)
UNARY_SET(dec)
UNARY_SET(neg)
UNARY_SET(not)

#define M OPC_MODRM
#define L OPC_LOCK
#define BYTES (OPC_REG8 | OPC_RM8)

#define ALU_ROWS(name, n, lock)                                                                    \
    { ROW(#name, 0, PREFIX_ANY, 8 * n + 0, -1, SIZE_B, IMM_NONE, M | BYTES | lock),                \
      .set = &name##_mr_set },                                                                     \
    { ROW(#name, 0, PREFIX_ANY, 8 * n + 1, -1, SIZE_V, IMM_NONE, M | lock),                        \
      .set = &name##_mr_set },                                                                     \
    { ROW(#name, 0, PREFIX_ANY, 8 * n + 2, -1, SIZE_B, IMM_NONE, M | BYTES | OPC_SWAP),            \
      .set = &name##_rm_set },                                                                     \
    { ROW(#name, 0, PREFIX_ANY, 8 * n + 3, -1, SIZE_V, IMM_NONE, M | OPC_SWAP),                    \
      .set = &name##_rm_set },                                                                     \
    { ROW(#name, 0, PREFIX_ANY, 8 * n + 4, -1, SIZE_B, IMM_B, OPC_RM8), .set = &name##_mi_set },   \
    { ROW(#name, 0, PREFIX_ANY, 8 * n + 5, -1, SIZE_V, IMM_Z, 0), .set = &name##_mi_set },         \
    { ROW(#name, 0, PREFIX_ANY, 0x80, n, SIZE_B, IMM_B, M | OPC_RM8 | lock),                       \
      .set = &name##_mi_set },                                                                     \
    { ROW(#name, 0, PREFIX_ANY, 0x81, n, SIZE_V, IMM_Z, M | lock), .set = &name##_mi_set },        \
    { ROW(#name, 0, PREFIX_ANY, 0x82, n, SIZE_B, IMM_B, M | OPC_RM8 | OPC_NO64 | lock),            \
      .set = &name##_mi_set },                                                                     \
    { ROW(#name, 0, PREFIX_ANY, 0x83, n, SIZE_V, IMM_B, M | lock), .set = &name##_mi_set }

static const SoftOpcode rows[] = {
    ALU_ROWS(add, 0, L),
    ALU_ROWS(or, 1, L),
    ALU_ROWS(adc, 2, L),
    ALU_ROWS(sbb, 3, L),
    ALU_ROWS(and, 4, L),
    ALU_ROWS(sub, 5, L),
    ALU_ROWS(xor, 6, L),
    ALU_ROWS(cmp, 7, 0),
    { ROW("test", 0, PREFIX_ANY, 0x84, -1, SIZE_B, IMM_NONE, M | BYTES), .set = &test_mr_set },
    { ROW("test", 0, PREFIX_ANY, 0x85, -1, SIZE_V, IMM_NONE, M), .set = &test_mr_set },
    { ROW("test", 0, PREFIX_ANY, 0xa8, -1, SIZE_B, IMM_B, OPC_RM8), .set = &test_mi_set },
    { ROW("test", 0, PREFIX_ANY, 0xa9, -1, SIZE_V, IMM_Z, 0), .set = &test_mi_set },
    { ROW("test", 0, PREFIX_ANY, 0xf6, 0, SIZE_B, IMM_B, M | OPC_RM8), .set = &test_mi_set },
    { ROW("test", 0, PREFIX_ANY, 0xf6, 1, SIZE_B, IMM_B, M | OPC_RM8), .set = &test_mi_set },
    { ROW("test", 0, PREFIX_ANY, 0xf7, 0, SIZE_V, IMM_Z, M), .set = &test_mi_set },
    { ROW("test", 0, PREFIX_ANY, 0xf7, 1, SIZE_V, IMM_Z, M), .set = &test_mi_set },
    { ROW("not", 0, PREFIX_ANY, 0xf6, 2, SIZE_B, IMM_NONE, M | OPC_RM8 | L), .set = &not_set },
    { ROW("not", 0, PREFIX_ANY, 0xf7, 2, SIZE_V, IMM_NONE, M | L), .set = &not_set },
    { ROW("neg", 0, PREFIX_ANY, 0xf6, 3, SIZE_B, IMM_NONE, M | OPC_RM8 | L), .set = &neg_set },
    { ROW("neg", 0, PREFIX_ANY, 0xf7, 3, SIZE_V, IMM_NONE, M | L), .set = &neg_set },
    { ROW("inc", 0, PREFIX_ANY, 0xfe, 0, SIZE_B, IMM_NONE, M | OPC_RM8 | L), .set = &inc_set },
    { ROW("inc", 0, PREFIX_ANY, 0xff, 0, SIZE_V, IMM_NONE, M | L), .set = &inc_set },
    { ROW("inc", 0, PREFIX_ANY, 0x40, -1, SIZE_V, IMM_NONE, OPC_OREG | OPC_NO64), .set = &inc_set },
    { ROW("dec", 0, PREFIX_ANY, 0xfe, 1, SIZE_B, IMM_NONE, M | OPC_RM8 | L), .set = &dec_set },
    { ROW("dec", 0, PREFIX_ANY, 0xff, 1, SIZE_V, IMM_NONE, M | L), .set = &dec_set },
    { ROW("dec", 0, PREFIX_ANY, 0x48, -1, SIZE_V, IMM_NONE, OPC_OREG | OPC_NO64), .set = &dec_set },
};

const SoftOpcodeGroup soft_alu_opcodes = { "alu", rows, sizeof(rows) / sizeof(rows[0]) };
