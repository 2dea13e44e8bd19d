/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Vector and x87 instructions: the opcode table and what the files of this part share.
 *
 * Guest and host have the same instruction set, so arithmetic is not emulated: a small native
 * stub, made once for each encoding, loads the registers of an instruction from SoftFpu, executes
 * the very instruction with its memory operand replaced by (%rsi), and stores the results.
 */
#pragma once

#include <glib.h>

#include "vcpu/soft/cpu.h"

typedef enum VectorFeature {
    VF_NONE, /* the encoding does not exist */
    VF_BASE, /* MMX, SSE, SSE2: always there in long mode */
    VF_SSE3,
    VF_SSSE3,
    VF_SSE41,
    VF_SSE42,
    VF_AES,
    VF_PCLMUL,
    VF_SHA,
    VF_GFNI,
    VF_AVX,
    VF_AVX2,
    VF_FMA,
    VF_F16C,
    VF_AES_AVX,
    VF_PCLMUL_AVX,
    VF_GFNI_AVX,
    VF_VAES,
    VF_VPCLMUL,
} VectorFeature;

/* Size of the memory operand: in bytes up to 32, or one of these. */
enum {
    VM_FULL = 0x80, /* the vector: 16, or 32 with VEX.L */
    VM_HALF,
    VM_QUARTER,
    VM_EIGHTH,
    VM_W,   /* 8 with REX.W or VEX.W, else 4 */
    VM_DUP, /* MOVDDUP: 8, or 32 with VEX.L */
};

enum {
    VO_NDS = 1 << 0,      /* VEX.vvvv is a source; otherwise it must be 1111b */
    VO_NDS_REG = 1 << 1,  /* a source in the register form only */
    VO_NDD = 1 << 2,      /* VEX.vvvv is the destination */
    VO_IMM = 1 << 3,      /* an immediate byte follows */
    VO_STORE = 1 << 4,    /* the r/m operand is the destination */
    VO_MEM = 1 << 5,      /* memory form only */
    VO_REG = 1 << 6,      /* register form only */
    VO_FP = 1 << 7,       /* obeys and sets MXCSR */
    VO_FLAGS = 1 << 8,    /* sets the arithmetic flags */
    VO_REG_GPR = 1 << 9,  /* ModRM.reg names a general register */
    VO_RM_GPR = 1 << 10,  /* so does ModRM.rm in the register form */
    VO_REG_MMX = 1 << 11, /* ModRM.reg names an MMX register */
    VO_RM_MMX = 1 << 12,
    VO_UNALIGNED = 1 << 13, /* a legacy encoding without alignment check */
    VO_ALIGNED = 1 << 14,   /* the VEX encoding checks alignment too */
    VO_XMM0 = 1 << 15,      /* XMM0 is an implicit source (legacy) or destination */
    VO_IS4 = 1 << 16,       /* imm[7:4] is a source register */
    VO_LIG = 1 << 17,       /* scalar: VEX.L is ignored */
    VO_W0 = 1 << 18,        /* VEX.W must be 0 */
    VO_W1 = 1 << 19,
    VO_ECX = 1 << 20,     /* PCMPxSTRI: result in ECX */
    VO_LENGTHS = 1 << 21, /* PCMPESTRx: lengths in EAX and EDX */
    VO_REG_AVX2 = 1 << 22, /* the register form came with AVX2 */
    VO_SPECIAL = 1 << 23,  /* a handler in C instead of a stub */
    VO_VSIB = 1 << 24,     /* gather */
    VO_DEST_XMM0 = 1 << 25,
    VO_ALIGNED_INTEL = 1 << 26, /* a legacy encoding whose alignment Intel's processors check, AMD's do not */
};
#define MMX_ANY (VO_REG_MMX | VO_RM_MMX)

typedef struct VectorRow {
    uint8_t map, prefix, opcode;
    int8_t digit; /* required ModRM.reg, or -1 */
    uint8_t legacy, vex128, vex256; /* VectorFeature of each encoding */
    uint8_t memory;
    uint32_t flags;
} VectorRow;

extern const VectorRow vector_rows[];
extern const unsigned vector_row_count;

/* The row of an opcode for one encoding, or NULL. modrm chooses among groups and forms. */
const VectorRow *vector_row_find(unsigned map, unsigned prefix, unsigned opcode, bool vex,
                                 uint8_t modrm);
/* The first row of an opcode, of whatever encoding, or NULL. */
const VectorRow *vector_row_find_any(unsigned map, unsigned prefix, unsigned opcode);
bool vector_feature_present(VectorFeature feature);
/* Bytes of memory operand of @row. */
unsigned vector_memory_size(const VectorRow *row, bool l, bool w);

/* ---- stubs (vector-stub.c) ---- */

typedef void (*VectorStub)(SoftCpu *cpu, const void *memory);

/* A stub is found by the instruction that it executes and by what surrounds it. */
typedef struct VectorStubKey {
    uint8_t bytes[10]; /* of the instruction, rewritten */
    uint8_t length;
    uint8_t kind;    /* 0 vector, 1 x87 */
    uint16_t row;    /* index of the row; x87: flags in and out */
    int8_t reg_gpr, rm_gpr; /* guest registers that the stub loads or stores, or -1 */
} VectorStubKey;
_Static_assert(sizeof(VectorStubKey) == 16, "hashed as two words");

#define VECTOR_STUB_MAX 320u /* bytes of the longest stub */
#define VECTOR_STUB_SLOTS 65536u /* of the hash table; a power of two */

/* The vector unit of a vCPU: vector-stub.c. */
typedef struct SoftVector {
    _Alignas(64) uint8_t scratch[64]; /* for memory operands on their way */
    uint8_t *rw;
    const uint8_t *rx;
    unsigned used;
    unsigned count;
    struct {
        VectorStubKey key;
        uint32_t offset; /* into the arena; 0 = free slot */
    } slot[VECTOR_STUB_SLOTS];
} SoftVector;

/* The arena was full when @op was decoded: builds the stub for this execution only. */
const void *vector_stub_late(SoftCpu *cpu, const SoftOp *op);

/* Calls the stub of @op. */
static inline void vector_stub_run(SoftCpu *cpu, const SoftOp *op, const void *memory)
{
    const void *code = op->aux;
    if (__builtin_expect(!code, 0))
        code = vector_stub_late(cpu, op);
    ((VectorStub)(uintptr_t)code)(cpu, memory);
}
/* Finds or makes the stub of a vector op, or of an x87 op; NULL if the arena is full. */
const void *vector_stub_get(SoftCpu *cpu, const VectorRow *row, const SoftOp *op);
const void *x87_stub_get(SoftCpu *cpu, const SoftOp *op);
/* Builds code for @op at @code; returns its length. x87-stub part in x87-decode.c. */
unsigned vector_stub_build(uint8_t *code, const VectorRow *row, const SoftOp *op,
                           VectorStubKey *key);
unsigned x87_stub_build(uint8_t *code, const SoftOp *op, VectorStubKey *key);

/* ---- decoding helpers ---- */

/* Private fields of a vector SoftOp: sub is the size of the memory operand, and of spare: */
enum { VS_ALIGN, VS_ROW_LOW, VS_ROW_HIGH };

static inline const VectorRow *vector_op_row(const SoftOp *op)
{
    return &vector_rows[op->spare[VS_ROW_LOW] | op->spare[VS_ROW_HIGH] << 8];
}

/* vector-move.c: the handler for a move that needs no stub, or NULL. */
SoftHandler vector_move_handler(const VectorRow *row, const SoftOp *op);
/* vector-mask.c: handlers of VO_SPECIAL rows, or NULL if undefined with these operands. */
SoftHandler vector_special_handler(uint32_t mode, const VectorRow *row, const SoftOp *op);
/* x87-decode.c */
bool x87_decode(SoftCpu *cpu, uint32_t mode, SoftOp *op);
/* The documented encoding of an x87 instruction; whether it reads or sets the arithmetic flags. */
void x87_canonical(const SoftOp *op, uint8_t *opcode, uint8_t *modrm);
bool x87_form_exists(uint8_t opcode, uint8_t modrm);
bool x87_reads_flags(const SoftOp *op);
bool x87_sets_flags(const SoftOp *op);
/* x87-environment.c: FLDENV, FNSTENV, FNSAVE, FRSTOR; 0 for other instructions */
SoftHandler x87_environment_handler(const SoftOp *op);
void x87_initialize(SoftFpu *f);
/* xsave.c: 0F AE and 0F C7 */
bool xsave_decode(SoftCpu *cpu, uint32_t mode, SoftOp *op);

/*
 * A handler ends in a tail call, which it cannot do while it has locals whose address was taken:
 * the body of such an instruction is a function of its own.
 */
#define VECTOR_OUTLINE __attribute__((noinline))

/*
 * The end of a handler that stored: the store may have changed instructions that follow in this
 * block (SOFT_PENDING_LOOP is set then), so the block ends if anything is pending.
 */
#define VECTOR_NEXT_STORED(cpu, op)                                                                \
    do {                                                                                           \
        if (__builtin_expect(atomic_load_explicit(&(cpu)->pending, memory_order_relaxed) != 0,     \
                             0)) {                                                                 \
            uint64_t next_ = (op)->rip + (op)->length;                                             \
            (cpu)->rip = (cpu)->mode & SOFT_MODE_CODE64 ? next_ : (uint32_t)next_;                 \
            return;                                                                                \
        }                                                                                          \
        SOFT_NEXT(cpu, op);                                                                        \
    } while (0)

/*
 * The linear address of the memory operand, with the alignment that the instruction demands.
 */
static inline uint64_t vector_linear(SoftCpu *cpu, const SoftOp *op, unsigned size,
                                     unsigned access)
{
    uint64_t linear;
    cpu->op = op;
    const uint64_t *gpr = cpu->gpr; /* and gpr_zero after it */
    if (__builtin_expect(op->plain, 1))
        linear = (uint64_t)op->disp + gpr[op->base] + (gpr[op->index] << op->scale);
    else
        linear = soft_operand(cpu, op, size, access);
    if (__builtin_expect(op->spare[VS_ALIGN] && linear & (op->spare[VS_ALIGN] - 1u), 0))
        soft_raise_error(cpu, EXC_GP, 0);
    return linear;
}

void vector_op_nm(SoftCpu *cpu, const SoftOp *op);     /* raises #NM */
void vector_op_fpu_off(SoftCpu *cpu, const SoftOp *op); /* MMX: #UD with CR0.EM, else #NM */

/* ---- x87 state ---- */

enum { FX_FCW = 0, FX_FSW = 2, FX_FTW = 4, FX_FOP = 6, FX_FIP = 8, FX_FDP = 16, FX_MXCSR = 24,
       FX_MXCSR_MASK = 28, FX_ST = 32, FX_XMM = 160 };
#define FSW_ES 0x80u
#define FSW_B 0x8000u
#define FSW_TOP(fsw) (((fsw) >> 11) & 7)

static inline uint16_t fpu_u16(const SoftFpu *f, unsigned at)
{
    uint16_t v;
    memcpy(&v, f->fxsave + at, 2);
    return v;
}
static inline uint32_t fpu_u32(const SoftFpu *f, unsigned at)
{
    uint32_t v;
    memcpy(&v, f->fxsave + at, 4);
    return v;
}
static inline uint64_t fpu_u64(const SoftFpu *f, unsigned at)
{
    uint64_t v;
    memcpy(&v, f->fxsave + at, 8);
    return v;
}
static inline void fpu_set16(SoftFpu *f, unsigned at, uint16_t v)
{
    memcpy(f->fxsave + at, &v, 2);
}
static inline void fpu_set32(SoftFpu *f, unsigned at, uint32_t v)
{
    memcpy(f->fxsave + at, &v, 4);
}
static inline void fpu_set64(SoftFpu *f, unsigned at, uint64_t v)
{
    memcpy(f->fxsave + at, &v, 8);
}

#define SOFT_MXCSR_MASK 0xffffu /* DAZ is there; AMD's misaligned-SSE bit is not offered */

/* Sets FSW.ES and FSW.B from the pending and masked exceptions. */
void x87_update_summary(SoftFpu *f);
/* Raises #MF if an unmasked x87 exception is pending. */
void x87_check_pending(SoftCpu *cpu);
/* What an MMX instruction does to the x87 state: TOP = 0, all tags valid. */
void x87_enter_mmx(SoftFpu *f);
