/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Decoding of vector instructions by the table, and the handlers that run stubs.
 */
#include "vcpu/soft/system-ops.h"
#include "vcpu/soft/vector.h"
#include "vcpu/soft/vm.h"

void vector_op_nm(SoftCpu *cpu, const SoftOp *op)
{
    cpu->op = op;
    soft_raise(cpu, EXC_NM);
}

void vector_op_fpu_off(SoftCpu *cpu, const SoftOp *op)
{
    cpu->op = op;
    soft_raise(cpu, cpu->cr0 & 4 ? EXC_UD : EXC_NM);
}

/* ---- memory operands --------------------------------------------------------------------------- */

/* The operand in RAM itself if the TLB has it, else a copy in the scratch buffer. */
static inline const void *operand_read(SoftCpu *cpu, const SoftOp *op)
{
    unsigned size = op->sub;
    uint64_t linear = vector_linear(cpu, op, op->sub, SOFT_READ);
    SoftTlbEntry *e = soft_tlb_entry(cpu, linear);
    if (__builtin_expect(SOFT_TLB_HIT(e->read_tag, linear, size), 1))
        return (const void *)(linear + e->addend);
    soft_load_bytes(cpu, linear, cpu->vector->scratch, size);
    return cpu->vector->scratch;
}

static inline void operand_write(SoftCpu *cpu, uint64_t linear, const void *from, unsigned size)
{
    SoftTlbEntry *e = soft_tlb_entry(cpu, linear);
    if (__builtin_expect(SOFT_TLB_HIT(e->write_tag, linear, size), 1))
        memcpy((void *)(linear + e->addend), from, size);
    else
        soft_store_bytes(cpu, linear, from, size);
}

/* ---- handlers without MXCSR ------------------------------------------------------------------------- */

static void op_reg(SoftCpu *cpu, const SoftOp *op)
{
    vector_stub_run(cpu, op, NULL);
    SOFT_NEXT(cpu, op);
}

static void op_load(SoftCpu *cpu, const SoftOp *op)
{
    cpu->op = op;
    vector_stub_run(cpu, op, operand_read(cpu, op));
    SOFT_NEXT(cpu, op);
}

static void op_store(SoftCpu *cpu, const SoftOp *op)
{
    uint64_t linear = vector_linear(cpu, op, op->sub, SOFT_WRITE);
    vector_stub_run(cpu, op, cpu->vector->scratch);
    operand_write(cpu, linear, cpu->vector->scratch, op->sub);
    VECTOR_NEXT_STORED(cpu, op);
}

/* ---- floating point: MXCSR ---------------------------------------------------------------------------- */

#define MXCSR_FLAGS 0x3fu
#define MXCSR_MASKS 0x1f80u
#define MXCSR_PRE (1u | 2u | 4u) /* invalid, denormal, zero divide: found before computing */
#define MXCSR_UE 0x10u
#define MXCSR_UM 0x800u
#define MXCSR_FTZ 0x8000u

typedef struct FpSaved {
    SoftFpu fpu;
    uint64_t gpr[16];
    uint32_t arith;
} FpSaved;

static void fp_restore(SoftCpu *cpu, const FpSaved *saved)
{
    cpu->fpu = saved->fpu;
    memcpy(cpu->gpr, saved->gpr, sizeof(cpu->gpr));
    cpu->arith = saved->arith;
}

/* The exceptions of one run with everything masked. */
static uint32_t fp_try(SoftCpu *cpu, const SoftOp *op, const void *memory, uint32_t mxcsr)
{
    fpu_set32(&cpu->fpu, FX_MXCSR, (mxcsr & ~MXCSR_FLAGS) | MXCSR_MASKS);
    vector_stub_run(cpu, op, memory);
    return fpu_u32(&cpu->fpu, FX_MXCSR) & MXCSR_FLAGS;
}

/*
 * Some exception is unmasked: run with all masked and look at the flags. An unmasked underflow is
 * signalled for exact tiny results too (SDM vol. 1 11.5.2.5); masked underflow reports those
 * only with flush-to-zero, so a run with that finds them. Whether a result that raises an unmasked
 * overflow or underflow is inexact too is not known exactly: MXCSR.PE may then be set needlessly.
 * VCVTPS2PH ignores flush-to-zero: its exact tiny results go unsignalled.
 */
static void fp_run_unmasked(SoftCpu *cpu, const SoftOp *op, const void *memory)
{
    FpSaved saved = {.fpu = cpu->fpu, .arith = cpu->arith};
    memcpy(saved.gpr, cpu->gpr, sizeof(cpu->gpr));
    uint32_t guest = fpu_u32(&cpu->fpu, FX_MXCSR), found = 0;
    uint32_t unmasked = ~(guest >> 7) & MXCSR_FLAGS;
    if (unmasked & MXCSR_UE) {
        found = fp_try(cpu, op, memory, guest | MXCSR_FTZ) & MXCSR_UE;
        fp_restore(cpu, &saved);
        found |= fp_try(cpu, op, memory, guest & ~MXCSR_FTZ);
    } else {
        found = fp_try(cpu, op, memory, guest);
    }
    if (found & unmasked) {
        fp_restore(cpu, &saved);
        if (found & unmasked & MXCSR_PRE)
            found &= MXCSR_PRE;
        fpu_set32(&cpu->fpu, FX_MXCSR, guest | found);
        soft_raise(cpu, cpu->cr4 & CR4_OSXMMEXCPT ? EXC_XM : EXC_UD);
    }
    fpu_set32(&cpu->fpu, FX_MXCSR, guest | found);
}

static inline void fp_run(SoftCpu *cpu, const SoftOp *op, const void *memory)
{
    if (__builtin_expect((fpu_u32(&cpu->fpu, FX_MXCSR) & MXCSR_MASKS) == MXCSR_MASKS, 1))
        vector_stub_run(cpu, op, memory);
    else
        fp_run_unmasked(cpu, op, memory);
}

static void op_fp_reg(SoftCpu *cpu, const SoftOp *op)
{
    cpu->op = op;
    fp_run(cpu, op, NULL);
    SOFT_NEXT(cpu, op);
}

static void op_fp_load(SoftCpu *cpu, const SoftOp *op)
{
    cpu->op = op;
    fp_run(cpu, op, operand_read(cpu, op));
    SOFT_NEXT(cpu, op);
}

/* VCVTPS2PH. The store may fault after MXCSR changed, so it is tried first. */
static void op_fp_store(SoftCpu *cpu, const SoftOp *op)
{
    cpu->op = op;
    uint64_t linear = vector_linear(cpu, op, op->sub, SOFT_WRITE);
    soft_probe_store(cpu, linear, op->sub);
    fp_run(cpu, op, cpu->vector->scratch);
    soft_store_bytes(cpu, linear, cpu->vector->scratch, op->sub);
    VECTOR_NEXT_STORED(cpu, op);
}

/* ---- MMX registers ------------------------------------------------------------------------------------- */

/* A written MMX register has ones in the exponent of the x87 register that it is. */
static void mmx_mark_written(SoftCpu *cpu, const VectorRow *row, const SoftOp *op)
{
    unsigned n;
    if (row->flags & VO_STORE) {
        if ((op->flags & SOFT_OP_MEM) || !(row->flags & VO_RM_MMX))
            return;
        n = op->rm & 7;
    } else {
        if (!(row->flags & VO_REG_MMX))
            return;
        n = op->reg & 7;
    }
    memset(cpu->fpu.fxsave + FX_ST + n * 16 + 8, 0xff, 2);
}

static void op_mmx(SoftCpu *cpu, const SoftOp *op)
{
    const VectorRow *row = vector_op_row(op);
    bool memory = op->flags & SOFT_OP_MEM, store = memory && (row->flags & VO_STORE);
    const void *operand = cpu->vector->scratch;
    uint64_t linear = 0;
    cpu->op = op;
    x87_check_pending(cpu);
    if (store) {
        linear = vector_linear(cpu, op, op->sub, SOFT_WRITE);
        soft_probe_store(cpu, linear, op->sub);
    } else if (memory) {
        operand = operand_read(cpu, op);
    }
    x87_enter_mmx(&cpu->fpu); /* stays if a SIMD floating-point exception follows */
    if (row->flags & VO_FP)
        fp_run(cpu, op, operand);
    else
        vector_stub_run(cpu, op, operand);
    mmx_mark_written(cpu, row, op);
    if (store)
        soft_store_bytes(cpu, linear, cpu->vector->scratch, op->sub);
    VECTOR_NEXT_STORED(cpu, op);
}

/* ---- decoding ------------------------------------------------------------------------------------------- */

static VectorFeature encoding_feature(const VectorRow *row, const SoftOp *op)
{
    if (!(op->flags & SOFT_OP_VEX))
        return row->legacy;
    if ((op->flags & SOFT_OP_L) && !(row->flags & VO_LIG))
        return row->vex256;
    return row->vex128;
}

/* What must hold for a VEX encoding beyond its opcode (SDM vol. 2 2.3.5-2.3.6, table 2-15 on). */
static bool vex_valid(const VectorRow *row, const SoftOp *op)
{
    bool memory = op->flags & SOFT_OP_MEM, w = op->flags & SOFT_OP_W;
    if (((row->flags & VO_W0) && w) || ((row->flags & VO_W1) && !w))
        return false;
    if ((row->flags & VO_REG_AVX2) && !memory && !soft_features.avx2)
        return false;
    bool uses = (row->flags & (VO_NDS | VO_NDD)) || ((row->flags & VO_NDS_REG) && !memory);
    return uses || op->vvvv == 0;
}

/* Registers above 7 and W exist in 64-bit mode only. */
static void narrow_operands(const VectorRow *row, SoftOp *op)
{
    op->vvvv &= 7;
    if (row->flags & VO_IS4)
        op->imm &= 0x7f;
    if (row->flags & (VO_REG_GPR | VO_RM_GPR | VO_LENGTHS))
        op->flags &= (uint8_t)~SOFT_OP_W;
}

static bool uses_mmx_register(const VectorRow *row, const SoftOp *op)
{
    return (row->flags & VO_REG_MMX) ||
           ((row->flags & VO_RM_MMX) && !(op->flags & SOFT_OP_MEM));
}

/* The handler that raises what CR0 and CR4 demand, or NULL; *undefined if that is #UD. */
static SoftHandler availability(uint32_t mode, const VectorRow *row, const SoftOp *op,
                                bool *undefined)
{
    bool vex = op->flags & SOFT_OP_VEX;
    bool pure_mmx = !vex && op->prefix == 0 && !(row->flags & VO_FP) &&
                    ((row->flags & MMX_ANY) || op->opcode == 0x77);
    *undefined = false;
    if (pure_mmx)
        return mode & SOFT_MODE_FPU_OFF ? vector_op_fpu_off : NULL;
    if (vex)
        *undefined = (mode & SOFT_MODE_AVX_OFF) || !(mode & SOFT_MODE_PROTECTED) ||
                     (mode & SOFT_MODE_VM86);
    else
        *undefined = mode & SOFT_MODE_SSE_OFF;
    return mode & SOFT_MODE_TS ? vector_op_nm : NULL;
}

static SoftHandler stub_handler(const VectorRow *row, const SoftOp *op)
{
    bool memory = op->flags & SOFT_OP_MEM;
    if (uses_mmx_register(row, op))
        return op_mmx;
    if (row->flags & VO_FP)
        return !memory ? op_fp_reg : row->flags & VO_STORE ? op_fp_store : op_fp_load;
    return !memory ? op_reg : row->flags & VO_STORE ? op_store : op_load;
}

static void op_fields(const VectorRow *row, SoftOp *op)
{
    bool vex = op->flags & SOFT_OP_VEX;
    unsigned index = (unsigned)(row - vector_rows);
    unsigned size = vector_memory_size(row, op->flags & SOFT_OP_L, op->flags & SOFT_OP_W);
    memset(op->spare, 0, sizeof(op->spare));
    op->sub = (uint8_t)size;
    unsigned unchecked = VO_UNALIGNED | (soft_limits.intel ? 0 : VO_ALIGNED_INTEL);
    if (vex ? (row->flags & VO_ALIGNED) : size == 16 && !(row->flags & unchecked))
        op->spare[VS_ALIGN] = (uint8_t)size;
    op->spare[VS_ROW_LOW] = (uint8_t)index;
    op->spare[VS_ROW_HIGH] = (uint8_t)(index >> 8);
    op->size = (uint8_t)((vex && (op->flags & SOFT_OP_L)) ? 32 : 16);
}

bool soft_vector_decode(SoftCpu *cpu, uint32_t mode, SoftOp *op)
{
    bool vex = op->flags & SOFT_OP_VEX, undefined;
    if (op->flags & SOFT_OP_LOCK)
        return false;
    if (op->map == 0)
        return !vex && x87_decode(cpu, mode, op);
    if (op->map == 1 && (op->opcode == 0xae || op->opcode == 0xc7))
        return xsave_decode(cpu, mode, op);
    bool no_modrm = op->map == 1 && op->opcode == 0x77;
    const VectorRow *row =
        vector_row_find(op->map, op->prefix, op->opcode, vex, no_modrm ? 0xc0 : op->modrm);
    if (!row)
        return false;
    if (!(mode & SOFT_MODE_CODE64))
        narrow_operands(row, op);
    if (!vector_feature_present(encoding_feature(row, op)) || (vex && !vex_valid(row, op)))
        return false;
    SoftHandler off = availability(mode, row, op, &undefined);
    if (undefined)
        return false;
    op_fields(row, op);
    op->aux = NULL;
    if (row->flags & VO_SPECIAL) {
        op->handler = vector_special_handler(mode, row, op);
        if (off && op->handler)
            op->handler = off;
        return op->handler != NULL;
    }
    op->handler = off ? off : vector_move_handler(row, op);
    if (op->handler)
        return true;
    op->aux = vector_stub_get(cpu, row, op);
    op->handler = stub_handler(row, op);
    return true;
}

int soft_vector_imm(uint32_t mode, unsigned map, unsigned opcode, unsigned prefix, bool vex)
{
    if (map == 0)
        return !vex && (opcode == 0x9b || (opcode & 0xf8) == 0xd8) ? 0 : -1;
    if (map == 1 && (opcode == 0xae || opcode == 0xc7))
        return 0;
    for (unsigned i = 0; i < 5; i++) {
        /* The prefix's own row, else any row of the opcode: an undefined prefix has the same form. */
        unsigned p = i == 0 ? prefix : i - 1;
        const VectorRow *row = vector_row_find_any(map, p, opcode);
        if (row && (!vex || row->vex128 || row->vex256))
            return (row->flags & VO_IMM) != 0;
    }
    return -1;
}
