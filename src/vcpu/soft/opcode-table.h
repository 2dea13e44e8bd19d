/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The table of integer and system instructions: what the decoder works from, and what tests
 * iterate for coverage. Each file of handlers closes with its rows; soft_opcode_groups lists
 * them all. Encodings: Intel SDM vol. 2, appendix A; AMD APM vol. 3, appendix A.
 */
#pragma once

#include "vcpu/soft/cpu.h"

enum { /* SoftOpcode.flags */
    OPC_MODRM = 1 << 0,
    OPC_MEM = 1 << 1,    /* the r/m operand must be memory: a register is #UD */
    OPC_REG = 1 << 2,    /* the r/m operand must be a register: this row does not match memory */
    OPC_NO64 = 1 << 3,   /* this row is not valid in 64-bit mode */
    OPC_ONLY64 = 1 << 4, /* this row is valid in 64-bit mode only */
    OPC_SYSTEM = 1 << 5, /* a system instruction, or one that depends on privilege or I/O */
    OPC_BRANCH = 1 << 6, /* may go elsewhere than to the next instruction */
    OPC_LOCK = 1 << 7,   /* LOCK is allowed with a memory destination */
    OPC_VEX = 1 << 8,    /* VEX encoded, L = 0 */
    OPC_REG8 = 1 << 9,   /* ModRM.reg names a byte register */
    OPC_RM8 = 1 << 10,   /* r/m, or the register in the opcode, names a byte register */
    OPC_SWAP = 1 << 11,  /* the destination is ModRM.reg */
    OPC_OREG = 1 << 12,  /* 8 opcodes: the low 3 bits (and REX.B) are a register, in op->rm */
    OPC_CC = 1 << 13,    /* 16 opcodes: the low 4 bits are a condition */
    OPC_END = 1 << 14,   /* ends its block */
    OPC_STRING = 1 << 15, /* a string instruction: F3 and F2 repeat it */
    OPC_NONDET = 1 << 16, /* gives what no two executions need to give alike */
    OPC_STACK = 1 << 17,  /* accesses the stack implicitly */
    OPC_VVVV = 1 << 18,   /* VEX.vvvv names an operand (else it must be 1111) */
    OPC_IGNORES_66 = 1 << 19, /* 66 does not change the operand size although the size is V */
    OPC_MODRM_REG = 1 << 20, /* mod is ignored: r/m is always a register (MOV CR, DR) */
};

enum { /* SoftOpcode.imm */
    IMM_NONE,
    IMM_B,     /* 8 bits, sign extended */
    IMM_BU,    /* 8 bits, zero extended */
    IMM_W,     /* 16 bits, zero extended */
    IMM_Z,     /* 16 or 32 bits by operand size, sign extended */
    IMM_V,     /* 16, 32 or 64 bits by operand size */
    IMM_JB,    /* 8-bit displacement of a branch; op->imm is the target */
    IMM_JZ,    /* 16- or 32-bit displacement of a branch; op->imm is the target */
    IMM_MOFFS, /* an address of the address size: op->disp, the operand is memory */
    IMM_FAR,   /* offset of 16 or 32 bits and selector: op->imm = offset | selector << 32 */
    IMM_ENTER, /* 16 bits and 8 bits: op->imm = size | level << 16 */
    IMM_ONE,   /* no byte: op->imm is 1 (shifts by one) */
};

enum { /* SoftOpcode.size: how the operand size comes about */
    SIZE_B,    /* 1 */
    SIZE_W,    /* 2 */
    SIZE_D,    /* 4 */
    SIZE_Q,    /* 8 */
    SIZE_V,    /* 2, 4 or 8: mode, 66, REX.W */
    SIZE_64,   /* as V, but in 64-bit mode 8, or 2 with 66 (stack operations) */
    SIZE_NEAR, /* near branches: in 64-bit mode 8; 66 counts on AMD hosts only */
    SIZE_Y,    /* 4, or 8 with REX.W in 64-bit mode; 66 does not count */
    SIZE_N,    /* 8 in 64-bit mode, else 4 (control registers) */
    SIZE_T,    /* 8 in 64-bit mode, else as V (descriptor tables) */
    SIZE_Z,    /* 2 or 4: as V without REX.W (I/O ports) */
};

#define PREFIX_ANY (-1)  /* 66 is the operand size, F2 and F3 do not matter */
#define PREFIX_NONE (-2) /* 66 is the operand size, neither F2 nor F3 */

/* Handlers of one instruction by operand size (1, 2, 4, 8 bytes); NULL where there is none. */
typedef struct SoftHandlerSet {
    SoftHandler reg[4];  /* r/m is a register, or there is no r/m */
    SoftHandler mem[4];  /* r/m is memory */
    SoftHandler lock[4]; /* r/m is memory, with LOCK */
} SoftHandlerSet;

typedef struct SoftOpcode {
    const char *mnemonic;
    uint8_t map;     /* 0 one-byte, 1 0F, 2 0F38, 3 0F3A */
    int8_t prefix;   /* mandatory: 0 none, 1 66, 2 F3, 3 F2 (or VEX.pp); PREFIX_* */
    uint8_t opcode;  /* the first of 8 with OPC_OREG, of 16 with OPC_CC */
    int8_t digit;    /* ModRM.reg that this row is for, or -1 */
    uint8_t imm;     /* IMM_* */
    uint8_t size;    /* SIZE_* */
    uint8_t feature; /* SOFT_FEATURE(name): #UD (or another row) without it; 0: always there */
    uint8_t sub;     /* initial value of op->sub */
    uint32_t flags;  /* OPC_* */
    int16_t modrm;   /* the one ModRM byte that this row is for (0F 01 D0 ...), or -1 */
    SoftHandler handler;       /* for every operand size; or NULL and: */
    const SoftHandlerSet *set; /* with OPC_CC 16 of them, by condition */
} SoftOpcode;

#define SOFT_FEATURE(name) ((uint8_t)(offsetof(SoftFeatures, name) + 1))

typedef struct SoftOpcodeGroup {
    const char *name; /* the file of the handlers */
    const SoftOpcode *rows;
    unsigned n_rows;
} SoftOpcodeGroup;

/*
 * Every row: groups 0, 1, ... until NULL. Among the rows of one opcode the decoder takes the
 * first that matches.
 */
const SoftOpcodeGroup *soft_opcode_group(unsigned index);

/* The row that decoding this op used, or NULL for vector and undefined instructions. decode.c */
const SoftOpcode *soft_opcode_of(const SoftOp *op, uint32_t mode);
