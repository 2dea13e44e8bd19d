/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Every MMX, SSE, AVX, FMA, F16C, AES, PCLMULQDQ, SHA and GFNI opcode that the software CPU
 * implements. Source: Intel SDM vol. 2 (opcode tables and instruction pages), AMD APM vol. 4.
 */
#include "vcpu/soft/vector.h"

/* clang-format off */
#define MMX2 (VO_REG_MMX | VO_RM_MMX)

/* Packed single, packed double, scalar single, scalar double of one opcode of map 0F. */
#define PS(op, fl) {1, 0, op, -1, VF_BASE, VF_AVX, VF_AVX, VM_FULL, (fl)}
#define PD(op, fl) {1, 1, op, -1, VF_BASE, VF_AVX, VF_AVX, VM_FULL, (fl)}
#define SS(op, fl) {1, 2, op, -1, VF_BASE, VF_AVX, VF_AVX, 4, (fl) | VO_LIG}
#define SD(op, fl) {1, 3, op, -1, VF_BASE, VF_AVX, VF_AVX, 8, (fl) | VO_LIG}
#define ARITH4(op) PS(op, VO_NDS | VO_FP), PD(op, VO_NDS | VO_FP), SS(op, VO_NDS | VO_FP), SD(op, VO_NDS | VO_FP)

/* Packed integers: SSE2 and AVX2 with prefix 66, and MMX without. */
#define INT(op) {1, 1, op, -1, VF_BASE, VF_AVX, VF_AVX2, VM_FULL, VO_NDS}
#define MMX(op) {1, 0, op, -1, VF_BASE, VF_NONE, VF_NONE, 8, MMX2}
#define BOTH(op) MMX(op), INT(op)
/* Shifts whose count is an XMM register or 16 bytes of memory, whatever the vector length. */
#define SHIFT(op) MMX(op), {1, 1, op, -1, VF_BASE, VF_AVX, VF_AVX2, 16, VO_NDS}
#define SHIFT_IMM(op, digit) \
    {1, 0, op, digit, VF_BASE, VF_NONE, VF_NONE, 8, VO_RM_MMX | VO_REG | VO_IMM | VO_STORE}, \
    {1, 1, op, digit, VF_BASE, VF_AVX, VF_AVX2, 16, VO_NDD | VO_REG | VO_IMM | VO_STORE}

#define SSSE3(op) {2, 0, op, -1, VF_SSSE3, VF_NONE, VF_NONE, 8, MMX2}, \
    {2, 1, op, -1, VF_SSSE3, VF_AVX, VF_AVX2, VM_FULL, VO_NDS}
#define PABS(op) {2, 0, op, -1, VF_SSSE3, VF_NONE, VF_NONE, 8, MMX2}, \
    {2, 1, op, -1, VF_SSSE3, VF_AVX, VF_AVX2, VM_FULL, 0}
#define SSE41(op) {2, 1, op, -1, VF_SSE41, VF_AVX, VF_AVX2, VM_FULL, VO_NDS}
#define EXTEND(op, size) {2, 1, op, -1, VF_SSE41, VF_AVX, VF_AVX2, size, 0}

/* FMA: packed forms at even opcodes, scalar at odd ones; W chooses double. */
#define FMA_P(op) {2, 1, op, -1, VF_NONE, VF_FMA, VF_FMA, VM_FULL, VO_NDS | VO_FP}
#define FMA_S(op) {2, 1, op, -1, VF_NONE, VF_FMA, VF_FMA, VM_W, VO_NDS | VO_FP | VO_LIG}
#define FMA(base) FMA_P(base), FMA_P(base + 1), FMA_P(base + 2), FMA_S(base + 3), FMA_P(base + 4), \
    FMA_S(base + 5), FMA_P(base + 6), FMA_S(base + 7), FMA_P(base + 8), FMA_S(base + 9)

const VectorRow vector_rows[] = {
    /* map 0F */
    PS(0x10, VO_UNALIGNED), PD(0x10, VO_UNALIGNED), SS(0x10, VO_NDS_REG), SD(0x10, VO_NDS_REG),
    PS(0x11, VO_UNALIGNED | VO_STORE), PD(0x11, VO_UNALIGNED | VO_STORE),
    SS(0x11, VO_NDS_REG | VO_STORE), SD(0x11, VO_NDS_REG | VO_STORE),
    {1, 0, 0x12, -1, VF_BASE, VF_AVX, VF_NONE, 8, VO_NDS},
    {1, 1, 0x12, -1, VF_BASE, VF_AVX, VF_NONE, 8, VO_NDS | VO_MEM},
    {1, 2, 0x12, -1, VF_SSE3, VF_AVX, VF_AVX, VM_FULL, 0},
    {1, 3, 0x12, -1, VF_SSE3, VF_AVX, VF_AVX, VM_DUP, 0},
    {1, 0, 0x13, -1, VF_BASE, VF_AVX, VF_NONE, 8, VO_STORE | VO_MEM},
    {1, 1, 0x13, -1, VF_BASE, VF_AVX, VF_NONE, 8, VO_STORE | VO_MEM},
    PS(0x14, VO_NDS), PD(0x14, VO_NDS), PS(0x15, VO_NDS), PD(0x15, VO_NDS),
    {1, 0, 0x16, -1, VF_BASE, VF_AVX, VF_NONE, 8, VO_NDS},
    {1, 1, 0x16, -1, VF_BASE, VF_AVX, VF_NONE, 8, VO_NDS | VO_MEM},
    {1, 2, 0x16, -1, VF_SSE3, VF_AVX, VF_AVX, VM_FULL, 0},
    {1, 0, 0x17, -1, VF_BASE, VF_AVX, VF_NONE, 8, VO_STORE | VO_MEM},
    {1, 1, 0x17, -1, VF_BASE, VF_AVX, VF_NONE, 8, VO_STORE | VO_MEM},
    PS(0x28, VO_ALIGNED), PD(0x28, VO_ALIGNED),
    PS(0x29, VO_ALIGNED | VO_STORE), PD(0x29, VO_ALIGNED | VO_STORE),
    {1, 0, 0x2a, -1, VF_BASE, VF_NONE, VF_NONE, 8, VO_RM_MMX | VO_FP},
    {1, 1, 0x2a, -1, VF_BASE, VF_NONE, VF_NONE, 8, VO_RM_MMX | VO_FP},
    {1, 2, 0x2a, -1, VF_BASE, VF_AVX, VF_AVX, VM_W, VO_NDS | VO_RM_GPR | VO_FP | VO_LIG},
    {1, 3, 0x2a, -1, VF_BASE, VF_AVX, VF_AVX, VM_W, VO_NDS | VO_RM_GPR | VO_FP | VO_LIG},
    PS(0x2b, VO_ALIGNED | VO_STORE | VO_MEM), PD(0x2b, VO_ALIGNED | VO_STORE | VO_MEM),
    {1, 0, 0x2c, -1, VF_BASE, VF_NONE, VF_NONE, 8, VO_REG_MMX | VO_FP},
    {1, 1, 0x2c, -1, VF_BASE, VF_NONE, VF_NONE, 16, VO_REG_MMX | VO_FP},
    {1, 2, 0x2c, -1, VF_BASE, VF_AVX, VF_AVX, 4, VO_REG_GPR | VO_FP | VO_LIG},
    {1, 3, 0x2c, -1, VF_BASE, VF_AVX, VF_AVX, 8, VO_REG_GPR | VO_FP | VO_LIG},
    {1, 0, 0x2d, -1, VF_BASE, VF_NONE, VF_NONE, 8, VO_REG_MMX | VO_FP},
    {1, 1, 0x2d, -1, VF_BASE, VF_NONE, VF_NONE, 16, VO_REG_MMX | VO_FP},
    {1, 2, 0x2d, -1, VF_BASE, VF_AVX, VF_AVX, 4, VO_REG_GPR | VO_FP | VO_LIG},
    {1, 3, 0x2d, -1, VF_BASE, VF_AVX, VF_AVX, 8, VO_REG_GPR | VO_FP | VO_LIG},
    {1, 0, 0x2e, -1, VF_BASE, VF_AVX, VF_AVX, 4, VO_FP | VO_FLAGS | VO_LIG},
    {1, 1, 0x2e, -1, VF_BASE, VF_AVX, VF_AVX, 8, VO_FP | VO_FLAGS | VO_LIG},
    {1, 0, 0x2f, -1, VF_BASE, VF_AVX, VF_AVX, 4, VO_FP | VO_FLAGS | VO_LIG},
    {1, 1, 0x2f, -1, VF_BASE, VF_AVX, VF_AVX, 8, VO_FP | VO_FLAGS | VO_LIG},
    PS(0x50, VO_REG | VO_REG_GPR), PD(0x50, VO_REG | VO_REG_GPR),
    PS(0x51, VO_FP), PD(0x51, VO_FP), SS(0x51, VO_NDS | VO_FP), SD(0x51, VO_NDS | VO_FP),
    PS(0x52, 0), SS(0x52, VO_NDS), PS(0x53, 0), SS(0x53, VO_NDS),
    PS(0x54, VO_NDS), PD(0x54, VO_NDS), PS(0x55, VO_NDS), PD(0x55, VO_NDS),
    PS(0x56, VO_NDS), PD(0x56, VO_NDS), PS(0x57, VO_NDS), PD(0x57, VO_NDS),
    ARITH4(0x58), ARITH4(0x59),
    {1, 0, 0x5a, -1, VF_BASE, VF_AVX, VF_AVX, VM_HALF, VO_FP}, PD(0x5a, VO_FP),
    SS(0x5a, VO_NDS | VO_FP), SD(0x5a, VO_NDS | VO_FP),
    PS(0x5b, VO_FP), PD(0x5b, VO_FP), {1, 2, 0x5b, -1, VF_BASE, VF_AVX, VF_AVX, VM_FULL, VO_FP},
    ARITH4(0x5c), ARITH4(0x5d), ARITH4(0x5e), ARITH4(0x5f),
    {1, 0, 0x60, -1, VF_BASE, VF_NONE, VF_NONE, 4, MMX2}, INT(0x60),
    {1, 0, 0x61, -1, VF_BASE, VF_NONE, VF_NONE, 4, MMX2}, INT(0x61),
    {1, 0, 0x62, -1, VF_BASE, VF_NONE, VF_NONE, 4, MMX2}, INT(0x62),
    BOTH(0x63), BOTH(0x64), BOTH(0x65), BOTH(0x66), BOTH(0x67),
    BOTH(0x68), BOTH(0x69), BOTH(0x6a), BOTH(0x6b), INT(0x6c), INT(0x6d),
    {1, 0, 0x6e, -1, VF_BASE, VF_NONE, VF_NONE, VM_W, VO_REG_MMX | VO_RM_GPR},
    {1, 1, 0x6e, -1, VF_BASE, VF_AVX, VF_NONE, VM_W, VO_RM_GPR},
    MMX(0x6f), PD(0x6f, VO_ALIGNED),
    {1, 2, 0x6f, -1, VF_BASE, VF_AVX, VF_AVX, VM_FULL, VO_UNALIGNED},
    {1, 0, 0x70, -1, VF_BASE, VF_NONE, VF_NONE, 8, MMX2 | VO_IMM},
    {1, 1, 0x70, -1, VF_BASE, VF_AVX, VF_AVX2, VM_FULL, VO_IMM},
    {1, 2, 0x70, -1, VF_BASE, VF_AVX, VF_AVX2, VM_FULL, VO_IMM},
    {1, 3, 0x70, -1, VF_BASE, VF_AVX, VF_AVX2, VM_FULL, VO_IMM},
    SHIFT_IMM(0x71, 2), SHIFT_IMM(0x71, 4), SHIFT_IMM(0x71, 6),
    SHIFT_IMM(0x72, 2), SHIFT_IMM(0x72, 4), SHIFT_IMM(0x72, 6),
    SHIFT_IMM(0x73, 2), SHIFT_IMM(0x73, 6),
    {1, 1, 0x73, 3, VF_BASE, VF_AVX, VF_AVX2, 16, VO_NDD | VO_REG | VO_IMM | VO_STORE},
    {1, 1, 0x73, 7, VF_BASE, VF_AVX, VF_AVX2, 16, VO_NDD | VO_REG | VO_IMM | VO_STORE},
    BOTH(0x74), BOTH(0x75), BOTH(0x76),
    {1, 1, 0x7c, -1, VF_SSE3, VF_AVX, VF_AVX, VM_FULL, VO_NDS | VO_FP},
    {1, 3, 0x7c, -1, VF_SSE3, VF_AVX, VF_AVX, VM_FULL, VO_NDS | VO_FP},
    {1, 1, 0x7d, -1, VF_SSE3, VF_AVX, VF_AVX, VM_FULL, VO_NDS | VO_FP},
    {1, 3, 0x7d, -1, VF_SSE3, VF_AVX, VF_AVX, VM_FULL, VO_NDS | VO_FP},
    {1, 0, 0x7e, -1, VF_BASE, VF_NONE, VF_NONE, VM_W, VO_REG_MMX | VO_RM_GPR | VO_STORE},
    {1, 1, 0x7e, -1, VF_BASE, VF_AVX, VF_NONE, VM_W, VO_RM_GPR | VO_STORE},
    {1, 2, 0x7e, -1, VF_BASE, VF_AVX, VF_NONE, 8, 0},
    {1, 0, 0x7f, -1, VF_BASE, VF_NONE, VF_NONE, 8, MMX2 | VO_STORE}, PD(0x7f, VO_ALIGNED | VO_STORE),
    {1, 2, 0x7f, -1, VF_BASE, VF_AVX, VF_AVX, VM_FULL, VO_UNALIGNED | VO_STORE},
    PS(0xc2, VO_NDS | VO_FP | VO_IMM), PD(0xc2, VO_NDS | VO_FP | VO_IMM),
    SS(0xc2, VO_NDS | VO_FP | VO_IMM), SD(0xc2, VO_NDS | VO_FP | VO_IMM),
    {1, 0, 0xc4, -1, VF_BASE, VF_NONE, VF_NONE, 2, VO_REG_MMX | VO_RM_GPR | VO_IMM},
    {1, 1, 0xc4, -1, VF_BASE, VF_AVX, VF_NONE, 2, VO_NDS | VO_RM_GPR | VO_IMM},
    {1, 0, 0xc5, -1, VF_BASE, VF_NONE, VF_NONE, 8, VO_REG_GPR | VO_RM_MMX | VO_REG | VO_IMM},
    {1, 1, 0xc5, -1, VF_BASE, VF_AVX, VF_NONE, 16, VO_REG_GPR | VO_REG | VO_IMM},
    PS(0xc6, VO_NDS | VO_IMM), PD(0xc6, VO_NDS | VO_IMM),
    {1, 1, 0xd0, -1, VF_SSE3, VF_AVX, VF_AVX, VM_FULL, VO_NDS | VO_FP},
    {1, 3, 0xd0, -1, VF_SSE3, VF_AVX, VF_AVX, VM_FULL, VO_NDS | VO_FP},
    SHIFT(0xd1), SHIFT(0xd2), SHIFT(0xd3), BOTH(0xd4), BOTH(0xd5),
    {1, 1, 0xd6, -1, VF_BASE, VF_AVX, VF_NONE, 8, VO_STORE},
    {1, 2, 0xd6, -1, VF_BASE, VF_NONE, VF_NONE, 8, VO_RM_MMX | VO_REG},
    {1, 3, 0xd6, -1, VF_BASE, VF_NONE, VF_NONE, 8, VO_REG_MMX | VO_REG},
    {1, 0, 0xd7, -1, VF_BASE, VF_NONE, VF_NONE, 8, VO_REG_GPR | VO_RM_MMX | VO_REG},
    {1, 1, 0xd7, -1, VF_BASE, VF_AVX, VF_AVX2, 16, VO_REG_GPR | VO_REG},
    BOTH(0xd8), BOTH(0xd9), BOTH(0xda), BOTH(0xdb), BOTH(0xdc), BOTH(0xdd), BOTH(0xde), BOTH(0xdf),
    BOTH(0xe0), SHIFT(0xe1), SHIFT(0xe2), BOTH(0xe3), BOTH(0xe4), BOTH(0xe5),
    {1, 1, 0xe6, -1, VF_BASE, VF_AVX, VF_AVX, VM_FULL, VO_FP},
    {1, 2, 0xe6, -1, VF_BASE, VF_AVX, VF_AVX, VM_HALF, VO_FP},
    {1, 3, 0xe6, -1, VF_BASE, VF_AVX, VF_AVX, VM_FULL, VO_FP},
    {1, 0, 0xe7, -1, VF_BASE, VF_NONE, VF_NONE, 8, VO_REG_MMX | VO_STORE | VO_MEM},
    PD(0xe7, VO_ALIGNED | VO_STORE | VO_MEM),
    BOTH(0xe8), BOTH(0xe9), BOTH(0xea), BOTH(0xeb), BOTH(0xec), BOTH(0xed), BOTH(0xee), BOTH(0xef),
    {1, 3, 0xf0, -1, VF_SSE3, VF_AVX, VF_AVX, VM_FULL, VO_UNALIGNED | VO_MEM},
    SHIFT(0xf1), SHIFT(0xf2), SHIFT(0xf3), BOTH(0xf4), BOTH(0xf5), BOTH(0xf6),
    {1, 0, 0xf7, -1, VF_BASE, VF_NONE, VF_NONE, 8, MMX2 | VO_REG | VO_SPECIAL},
    {1, 1, 0xf7, -1, VF_BASE, VF_AVX, VF_NONE, 16, VO_REG | VO_SPECIAL},
    BOTH(0xf8), BOTH(0xf9), BOTH(0xfa), BOTH(0xfb), BOTH(0xfc), BOTH(0xfd), BOTH(0xfe),
    /* EMMS; VZEROUPPER and VZEROALL. They have no ModRM byte. */
    {1, 0, 0x77, -1, VF_BASE, VF_AVX, VF_AVX, 0, VO_SPECIAL},

    /* map 0F 38 */
    SSSE3(0x00), SSSE3(0x01), SSSE3(0x02), SSSE3(0x03), SSSE3(0x04), SSSE3(0x05), SSSE3(0x06),
    SSSE3(0x07), SSSE3(0x08), SSSE3(0x09), SSSE3(0x0a), SSSE3(0x0b),
    {2, 1, 0x0c, -1, VF_NONE, VF_AVX, VF_AVX, VM_FULL, VO_NDS | VO_W0},
    {2, 1, 0x0d, -1, VF_NONE, VF_AVX, VF_AVX, VM_FULL, VO_NDS | VO_W0},
    {2, 1, 0x0e, -1, VF_NONE, VF_AVX, VF_AVX, VM_FULL, VO_FLAGS | VO_W0},
    {2, 1, 0x0f, -1, VF_NONE, VF_AVX, VF_AVX, VM_FULL, VO_FLAGS | VO_W0},
    {2, 1, 0x10, -1, VF_SSE41, VF_NONE, VF_NONE, 16, VO_XMM0},
    {2, 1, 0x13, -1, VF_NONE, VF_F16C, VF_F16C, VM_HALF, VO_FP | VO_W0},
    {2, 1, 0x14, -1, VF_SSE41, VF_NONE, VF_NONE, 16, VO_XMM0},
    {2, 1, 0x15, -1, VF_SSE41, VF_NONE, VF_NONE, 16, VO_XMM0},
    {2, 1, 0x16, -1, VF_NONE, VF_NONE, VF_AVX2, VM_FULL, VO_NDS | VO_W0},
    {2, 1, 0x17, -1, VF_SSE41, VF_AVX, VF_AVX, VM_FULL, VO_FLAGS},
    {2, 1, 0x18, -1, VF_NONE, VF_AVX, VF_AVX, 4, VO_W0 | VO_REG_AVX2},
    {2, 1, 0x19, -1, VF_NONE, VF_NONE, VF_AVX, 8, VO_W0 | VO_REG_AVX2},
    {2, 1, 0x1a, -1, VF_NONE, VF_NONE, VF_AVX, 16, VO_W0 | VO_MEM},
    PABS(0x1c), PABS(0x1d), PABS(0x1e),
    EXTEND(0x20, VM_HALF), EXTEND(0x21, VM_QUARTER), EXTEND(0x22, VM_EIGHTH),
    EXTEND(0x23, VM_HALF), EXTEND(0x24, VM_QUARTER), EXTEND(0x25, VM_HALF),
    SSE41(0x28), SSE41(0x29),
    {2, 1, 0x2a, -1, VF_SSE41, VF_AVX, VF_AVX2, VM_FULL, VO_MEM | VO_ALIGNED},
    SSE41(0x2b),
    {2, 1, 0x2c, -1, VF_NONE, VF_AVX, VF_AVX, VM_FULL, VO_NDS | VO_MEM | VO_W0 | VO_SPECIAL},
    {2, 1, 0x2d, -1, VF_NONE, VF_AVX, VF_AVX, VM_FULL, VO_NDS | VO_MEM | VO_W0 | VO_SPECIAL},
    {2, 1, 0x2e, -1, VF_NONE, VF_AVX, VF_AVX, VM_FULL, VO_NDS | VO_MEM | VO_W0 | VO_STORE | VO_SPECIAL},
    {2, 1, 0x2f, -1, VF_NONE, VF_AVX, VF_AVX, VM_FULL, VO_NDS | VO_MEM | VO_W0 | VO_STORE | VO_SPECIAL},
    EXTEND(0x30, VM_HALF), EXTEND(0x31, VM_QUARTER), EXTEND(0x32, VM_EIGHTH),
    EXTEND(0x33, VM_HALF), EXTEND(0x34, VM_QUARTER), EXTEND(0x35, VM_HALF),
    {2, 1, 0x36, -1, VF_NONE, VF_NONE, VF_AVX2, VM_FULL, VO_NDS | VO_W0},
    {2, 1, 0x37, -1, VF_SSE42, VF_AVX, VF_AVX2, VM_FULL, VO_NDS},
    SSE41(0x38), SSE41(0x39), SSE41(0x3a), SSE41(0x3b), SSE41(0x3c), SSE41(0x3d), SSE41(0x3e),
    SSE41(0x3f), SSE41(0x40), {2, 1, 0x41, -1, VF_SSE41, VF_AVX, VF_NONE, 16, 0},
    {2, 1, 0x45, -1, VF_NONE, VF_AVX2, VF_AVX2, VM_FULL, VO_NDS},
    {2, 1, 0x46, -1, VF_NONE, VF_AVX2, VF_AVX2, VM_FULL, VO_NDS | VO_W0},
    {2, 1, 0x47, -1, VF_NONE, VF_AVX2, VF_AVX2, VM_FULL, VO_NDS},
    {2, 1, 0x58, -1, VF_NONE, VF_AVX2, VF_AVX2, 4, VO_W0},
    {2, 1, 0x59, -1, VF_NONE, VF_AVX2, VF_AVX2, 8, VO_W0},
    {2, 1, 0x5a, -1, VF_NONE, VF_NONE, VF_AVX2, 16, VO_W0 | VO_MEM},
    {2, 1, 0x78, -1, VF_NONE, VF_AVX2, VF_AVX2, 1, VO_W0},
    {2, 1, 0x79, -1, VF_NONE, VF_AVX2, VF_AVX2, 2, VO_W0},
    {2, 1, 0x8c, -1, VF_NONE, VF_AVX2, VF_AVX2, VM_FULL, VO_NDS | VO_MEM | VO_SPECIAL},
    {2, 1, 0x8e, -1, VF_NONE, VF_AVX2, VF_AVX2, VM_FULL, VO_NDS | VO_MEM | VO_STORE | VO_SPECIAL},
    {2, 1, 0x90, -1, VF_NONE, VF_AVX2, VF_AVX2, VM_W, VO_NDS | VO_MEM | VO_VSIB | VO_SPECIAL},
    {2, 1, 0x91, -1, VF_NONE, VF_AVX2, VF_AVX2, VM_W, VO_NDS | VO_MEM | VO_VSIB | VO_SPECIAL},
    {2, 1, 0x92, -1, VF_NONE, VF_AVX2, VF_AVX2, VM_W, VO_NDS | VO_MEM | VO_VSIB | VO_SPECIAL},
    {2, 1, 0x93, -1, VF_NONE, VF_AVX2, VF_AVX2, VM_W, VO_NDS | VO_MEM | VO_VSIB | VO_SPECIAL},
    FMA(0x96), FMA(0xa6), FMA(0xb6),
    {2, 0, 0xc8, -1, VF_SHA, VF_NONE, VF_NONE, 16, VO_ALIGNED_INTEL},
    {2, 0, 0xc9, -1, VF_SHA, VF_NONE, VF_NONE, 16, VO_ALIGNED_INTEL},
    {2, 0, 0xca, -1, VF_SHA, VF_NONE, VF_NONE, 16, VO_ALIGNED_INTEL},
    {2, 0, 0xcb, -1, VF_SHA, VF_NONE, VF_NONE, 16, VO_XMM0 | VO_ALIGNED_INTEL},
    {2, 0, 0xcc, -1, VF_SHA, VF_NONE, VF_NONE, 16, VO_ALIGNED_INTEL},
    {2, 0, 0xcd, -1, VF_SHA, VF_NONE, VF_NONE, 16, VO_ALIGNED_INTEL},
    {2, 1, 0xcf, -1, VF_GFNI, VF_GFNI_AVX, VF_GFNI_AVX, VM_FULL, VO_NDS | VO_W0},
    {2, 1, 0xdb, -1, VF_AES, VF_AES_AVX, VF_NONE, 16, 0},
    {2, 1, 0xdc, -1, VF_AES, VF_AES_AVX, VF_VAES, VM_FULL, VO_NDS},
    {2, 1, 0xdd, -1, VF_AES, VF_AES_AVX, VF_VAES, VM_FULL, VO_NDS},
    {2, 1, 0xde, -1, VF_AES, VF_AES_AVX, VF_VAES, VM_FULL, VO_NDS},
    {2, 1, 0xdf, -1, VF_AES, VF_AES_AVX, VF_VAES, VM_FULL, VO_NDS},

    /* map 0F 3A */
    {3, 1, 0x00, -1, VF_NONE, VF_NONE, VF_AVX2, VM_FULL, VO_IMM | VO_W1},
    {3, 1, 0x01, -1, VF_NONE, VF_NONE, VF_AVX2, VM_FULL, VO_IMM | VO_W1},
    {3, 1, 0x02, -1, VF_NONE, VF_AVX2, VF_AVX2, VM_FULL, VO_NDS | VO_IMM | VO_W0},
    {3, 1, 0x04, -1, VF_NONE, VF_AVX, VF_AVX, VM_FULL, VO_IMM | VO_W0},
    {3, 1, 0x05, -1, VF_NONE, VF_AVX, VF_AVX, VM_FULL, VO_IMM | VO_W0},
    {3, 1, 0x06, -1, VF_NONE, VF_NONE, VF_AVX, VM_FULL, VO_NDS | VO_IMM | VO_W0},
    {3, 1, 0x08, -1, VF_SSE41, VF_AVX, VF_AVX, VM_FULL, VO_IMM | VO_FP},
    {3, 1, 0x09, -1, VF_SSE41, VF_AVX, VF_AVX, VM_FULL, VO_IMM | VO_FP},
    {3, 1, 0x0a, -1, VF_SSE41, VF_AVX, VF_AVX, 4, VO_NDS | VO_IMM | VO_FP | VO_LIG},
    {3, 1, 0x0b, -1, VF_SSE41, VF_AVX, VF_AVX, 8, VO_NDS | VO_IMM | VO_FP | VO_LIG},
    {3, 1, 0x0c, -1, VF_SSE41, VF_AVX, VF_AVX, VM_FULL, VO_NDS | VO_IMM},
    {3, 1, 0x0d, -1, VF_SSE41, VF_AVX, VF_AVX, VM_FULL, VO_NDS | VO_IMM},
    {3, 1, 0x0e, -1, VF_SSE41, VF_AVX, VF_AVX2, VM_FULL, VO_NDS | VO_IMM},
    {3, 0, 0x0f, -1, VF_SSSE3, VF_NONE, VF_NONE, 8, MMX2 | VO_IMM},
    {3, 1, 0x0f, -1, VF_SSSE3, VF_AVX, VF_AVX2, VM_FULL, VO_NDS | VO_IMM},
    {3, 1, 0x14, -1, VF_SSE41, VF_AVX, VF_NONE, 1, VO_RM_GPR | VO_IMM | VO_STORE},
    {3, 1, 0x15, -1, VF_SSE41, VF_AVX, VF_NONE, 2, VO_RM_GPR | VO_IMM | VO_STORE},
    {3, 1, 0x16, -1, VF_SSE41, VF_AVX, VF_NONE, VM_W, VO_RM_GPR | VO_IMM | VO_STORE},
    {3, 1, 0x17, -1, VF_SSE41, VF_AVX, VF_NONE, 4, VO_RM_GPR | VO_IMM | VO_STORE},
    {3, 1, 0x18, -1, VF_NONE, VF_NONE, VF_AVX, 16, VO_NDS | VO_IMM | VO_W0},
    {3, 1, 0x19, -1, VF_NONE, VF_NONE, VF_AVX, 16, VO_IMM | VO_W0 | VO_STORE},
    {3, 1, 0x1d, -1, VF_NONE, VF_F16C, VF_F16C, VM_HALF, VO_IMM | VO_W0 | VO_STORE | VO_FP},
    {3, 1, 0x20, -1, VF_SSE41, VF_AVX, VF_NONE, 1, VO_NDS | VO_RM_GPR | VO_IMM},
    {3, 1, 0x21, -1, VF_SSE41, VF_AVX, VF_NONE, 4, VO_NDS | VO_IMM},
    {3, 1, 0x22, -1, VF_SSE41, VF_AVX, VF_NONE, VM_W, VO_NDS | VO_RM_GPR | VO_IMM},
    {3, 1, 0x38, -1, VF_NONE, VF_NONE, VF_AVX2, 16, VO_NDS | VO_IMM | VO_W0},
    {3, 1, 0x39, -1, VF_NONE, VF_NONE, VF_AVX2, 16, VO_IMM | VO_W0 | VO_STORE},
    {3, 1, 0x40, -1, VF_SSE41, VF_AVX, VF_AVX, VM_FULL, VO_NDS | VO_IMM | VO_FP},
    {3, 1, 0x41, -1, VF_SSE41, VF_AVX, VF_NONE, VM_FULL, VO_NDS | VO_IMM | VO_FP},
    {3, 1, 0x42, -1, VF_SSE41, VF_AVX, VF_AVX2, VM_FULL, VO_NDS | VO_IMM},
    {3, 1, 0x44, -1, VF_PCLMUL, VF_PCLMUL_AVX, VF_VPCLMUL, VM_FULL, VO_NDS | VO_IMM},
    {3, 1, 0x46, -1, VF_NONE, VF_NONE, VF_AVX2, VM_FULL, VO_NDS | VO_IMM | VO_W0},
    {3, 1, 0x4a, -1, VF_NONE, VF_AVX, VF_AVX, VM_FULL, VO_NDS | VO_IMM | VO_IS4 | VO_W0},
    {3, 1, 0x4b, -1, VF_NONE, VF_AVX, VF_AVX, VM_FULL, VO_NDS | VO_IMM | VO_IS4 | VO_W0},
    {3, 1, 0x4c, -1, VF_NONE, VF_AVX, VF_AVX2, VM_FULL, VO_NDS | VO_IMM | VO_IS4 | VO_W0},
    {3, 1, 0x60, -1, VF_SSE42, VF_AVX, VF_NONE, 16,
     VO_IMM | VO_UNALIGNED | VO_FLAGS | VO_LENGTHS | VO_XMM0 | VO_DEST_XMM0},
    {3, 1, 0x61, -1, VF_SSE42, VF_AVX, VF_NONE, 16, VO_IMM | VO_UNALIGNED | VO_FLAGS | VO_LENGTHS | VO_ECX},
    {3, 1, 0x62, -1, VF_SSE42, VF_AVX, VF_NONE, 16,
     VO_IMM | VO_UNALIGNED | VO_FLAGS | VO_XMM0 | VO_DEST_XMM0},
    {3, 1, 0x63, -1, VF_SSE42, VF_AVX, VF_NONE, 16, VO_IMM | VO_UNALIGNED | VO_FLAGS | VO_ECX},
    {3, 0, 0xcc, -1, VF_SHA, VF_NONE, VF_NONE, 16, VO_IMM | VO_ALIGNED_INTEL},
    {3, 1, 0xce, -1, VF_GFNI, VF_GFNI_AVX, VF_GFNI_AVX, VM_FULL, VO_NDS | VO_IMM | VO_W1},
    {3, 1, 0xcf, -1, VF_GFNI, VF_GFNI_AVX, VF_GFNI_AVX, VM_FULL, VO_NDS | VO_IMM | VO_W1},
    {3, 1, 0xdf, -1, VF_AES, VF_AES_AVX, VF_NONE, 16, VO_IMM},
};
/* clang-format on */

const unsigned vector_row_count = G_N_ELEMENTS(vector_rows);

bool vector_feature_present(VectorFeature feature)
{
    const SoftFeatures *f = &soft_features;
    switch (feature) {
    case VF_NONE:
        return false;
    case VF_BASE:
        return true;
    case VF_SSE3:
        return f->sse3;
    case VF_SSSE3:
        return f->ssse3;
    case VF_SSE41:
        return f->sse41;
    case VF_SSE42:
        return f->sse42;
    case VF_AES:
        return f->aes;
    case VF_PCLMUL:
        return f->pclmul;
    case VF_SHA:
        return f->sha;
    case VF_GFNI:
        return f->gfni;
    case VF_AVX:
        return f->avx;
    case VF_AVX2:
        return f->avx2;
    case VF_FMA:
        return f->fma;
    case VF_F16C:
        return f->f16c;
    case VF_AES_AVX:
        return f->aes && f->avx;
    case VF_PCLMUL_AVX:
        return f->pclmul && f->avx;
    case VF_GFNI_AVX:
        return f->gfni && f->avx;
    case VF_VAES:
        return f->vaes && f->avx;
    case VF_VPCLMUL:
        return f->vpclmul && f->avx;
    }
    return false;
}

/* First row of each (map, prefix, opcode), built on first use; rows of one opcode are linked. */
static int16_t row_first[4][4][256];
static int16_t row_next[G_N_ELEMENTS(vector_rows)];

static void row_index_build(void)
{
    memset(row_first, 0xff, sizeof(row_first));
    for (int i = (int)vector_row_count - 1; i >= 0; i--) {
        const VectorRow *r = &vector_rows[i];
        row_next[i] = row_first[r->map][r->prefix][r->opcode];
        row_first[r->map][r->prefix][r->opcode] = (int16_t)i;
    }
}

static void row_index_ready(void)
{
    static gsize once;
    if (g_once_init_enter(&once)) {
        row_index_build();
        g_once_init_leave(&once, 1);
    }
}

const VectorRow *vector_row_find_any(unsigned map, unsigned prefix, unsigned opcode)
{
    row_index_ready();
    int i = row_first[map & 3][prefix & 3][opcode & 0xff];
    return i >= 0 ? &vector_rows[i] : NULL;
}

const VectorRow *vector_row_find(unsigned map, unsigned prefix, unsigned opcode, bool vex,
                                 uint8_t modrm)
{
    row_index_ready();
    bool memory = modrm < 0xc0;
    for (int i = row_first[map & 3][prefix & 3][opcode & 0xff]; i >= 0; i = row_next[i]) {
        const VectorRow *r = &vector_rows[i];
        if (vex ? !r->vex128 && !r->vex256 : !r->legacy)
            continue;
        if (r->digit >= 0 && r->digit != ((modrm >> 3) & 7))
            continue;
        if ((r->flags & (memory ? VO_REG : VO_MEM)))
            continue;
        return r;
    }
    return NULL;
}

unsigned vector_memory_size(const VectorRow *row, bool l, bool w)
{
    switch (row->memory) {
    case VM_FULL:
        return l ? 32 : 16;
    case VM_HALF:
        return l ? 16 : 8;
    case VM_QUARTER:
        return l ? 8 : 4;
    case VM_EIGHTH:
        return l ? 4 : 2;
    case VM_W:
        return w ? 8 : 4;
    case VM_DUP:
        return l ? 32 : 8;
    }
    return row->memory;
}
