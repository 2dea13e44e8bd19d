/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Vector instructions that access memory by element under a mask, which therefore cannot run as
 * they are on a copy of their operand: MASKMOVDQU, VMASKMOV, gathers. And EMMS, VZEROUPPER.
 */
#include "vcpu/soft/vector.h"

static uint64_t element_get(const uint8_t *vector, unsigned i, unsigned size)
{
    uint64_t v = 0;
    memcpy(&v, vector + i * size, size);
    return v;
}

static bool element_masked_in(const uint8_t *mask, unsigned i, unsigned size)
{
    return mask[i * size + size - 1] & 0x80;
}

static uint64_t element_load(SoftCpu *cpu, uint64_t linear, unsigned size)
{
    return size == 8 ? soft_load64(cpu, linear) : soft_load32(cpu, linear);
}

/* ---- VMASKMOVPS/PD, VPMASKMOVD/Q: only elements whose mask is set are accessed ---- */

static unsigned maskmov_size(const SoftOp *op)
{
    if (op->opcode == 0x2c || op->opcode == 0x2e)
        return 4;
    if (op->opcode == 0x2d || op->opcode == 0x2f)
        return 8;
    return op->flags & SOFT_OP_W ? 8 : 4;
}

static VECTOR_OUTLINE void maskmov_load_body(SoftCpu *cpu, const SoftOp *op)
{
    unsigned size = maskmov_size(op), count = op->size / size;
    const uint8_t *mask = cpu->fpu.ymm[op->vvvv];
    uint8_t result[32] = {0};
    uint64_t offset = soft_offset(cpu, op);
    cpu->op = op;
    for (unsigned i = 0; i < count; i++) {
        if (!element_masked_in(mask, i, size))
            continue;
        uint64_t v = element_load(
            cpu, soft_linear(cpu, op->seg, offset + i * size, size, SOFT_READ), size);
        memcpy(result + i * size, &v, size);
    }
    memcpy(cpu->fpu.ymm[op->reg], result, 32);
}

static void maskmov_load(SoftCpu *cpu, const SoftOp *op)
{
    maskmov_load_body(cpu, op);
    SOFT_NEXT(cpu, op);
}

static VECTOR_OUTLINE void maskmov_store_body(SoftCpu *cpu, const SoftOp *op)
{
    unsigned size = maskmov_size(op), count = op->size / size;
    const uint8_t *mask = cpu->fpu.ymm[op->vvvv], *from = cpu->fpu.ymm[op->reg];
    uint64_t offset = soft_offset(cpu, op);
    uint64_t linear[8];
    cpu->op = op;
    for (unsigned i = 0; i < count; i++) {
        if (!element_masked_in(mask, i, size))
            continue;
        linear[i] = soft_linear(cpu, op->seg, offset + i * size, size, SOFT_WRITE);
        soft_probe_store(cpu, linear[i], size);
    }
    for (unsigned i = 0; i < count; i++)
        if (element_masked_in(mask, i, size))
            soft_store_bytes(cpu, linear[i], from + i * size, size);
}

static void maskmov_store(SoftCpu *cpu, const SoftOp *op)
{
    maskmov_store_body(cpu, op);
    VECTOR_NEXT_STORED(cpu, op);
}

/* ---- MASKMOVDQU, MASKMOVQ: bytes to DS:rDI ---- */

static void masked_bytes(SoftCpu *cpu, const SoftOp *op, const uint8_t *from, const uint8_t *mask,
                         unsigned size)
{
    uint64_t offset = cpu->gpr[GPR_RDI];
    if (op->asize < 8)
        offset &= op->asize == 4 ? 0xffffffffu : 0xffffu;
    uint64_t linear = soft_linear(cpu, op->seg, offset, size, SOFT_WRITE);
    soft_probe_store(cpu, linear, size); /* whatever the mask, as real ones do */
    for (unsigned i = 0; i < size; i++)
        if (mask[i] & 0x80)
            soft_store8(cpu, linear + i, from[i]);
}

static VECTOR_OUTLINE void maskmovdqu_body(SoftCpu *cpu, const SoftOp *op)
{
    cpu->op = op;
    masked_bytes(cpu, op, cpu->fpu.ymm[op->reg], cpu->fpu.ymm[op->rm], 16);
}

static void maskmovdqu(SoftCpu *cpu, const SoftOp *op)
{
    maskmovdqu_body(cpu, op);
    VECTOR_NEXT_STORED(cpu, op);
}

static VECTOR_OUTLINE void maskmovq_body(SoftCpu *cpu, const SoftOp *op)
{
    SoftFpu *f = &cpu->fpu;
    cpu->op = op;
    x87_check_pending(cpu);
    x87_enter_mmx(f);
    masked_bytes(cpu, op, f->fxsave + FX_ST + (op->reg & 7) * 16,
                 f->fxsave + FX_ST + (op->rm & 7) * 16, 8);
}

static void maskmovq(SoftCpu *cpu, const SoftOp *op)
{
    maskmovq_body(cpu, op);
    VECTOR_NEXT_STORED(cpu, op);
}

/* ---- gathers: 90, 92 have 32-bit indices, 91, 93 64-bit ones; W chooses 64-bit elements ---- */

static unsigned gather_index_register(const SoftOp *op)
{
    return op->index == SOFT_REG_NONE ? 4 : op->index;
}

/*
 * Elements are done one after the other; a fault leaves those done in the destination with their
 * masks cleared, so that the instruction goes on where it stopped (SDM vol. 2, VPGATHERDD).
 */
static VECTOR_OUTLINE void gather_body(SoftCpu *cpu, const SoftOp *op)
{
    unsigned size = op->flags & SOFT_OP_W ? 8 : 4, index_size = op->opcode & 1 ? 8 : 4;
    unsigned count = op->size / MAX(size, index_size);
    uint8_t *to = cpu->fpu.ymm[op->reg], *mask = cpu->fpu.ymm[op->vvvv];
    uint8_t index[32];
    memcpy(index, cpu->fpu.ymm[gather_index_register(op)], 32);
    uint64_t base = (uint64_t)op->disp + (op->base == SOFT_REG_NONE ? 0 : cpu->gpr[op->base]);
    cpu->op = op;
    for (unsigned i = 0; i < count; i++) {
        if (!element_masked_in(mask, i, size)) {
            memset(mask + i * size, 0, size);
            continue;
        }
        uint64_t n = element_get(index, i, index_size);
        if (index_size == 4)
            n = (uint64_t)(int32_t)n;
        uint64_t offset = base + (n << op->scale);
        if (op->asize == 4)
            offset = (uint32_t)offset;
        uint64_t v =
            element_load(cpu, soft_linear(cpu, op->seg, offset, size, SOFT_READ), size);
        memcpy(to + i * size, &v, size);
        memset(mask + i * size, 0, size);
    }
    memset(to + count * size, 0, 32 - count * size);
    memset(mask, 0, 32);
}

static void gather(SoftCpu *cpu, const SoftOp *op)
{
    gather_body(cpu, op);
    SOFT_NEXT(cpu, op);
}

static bool gather_valid(const SoftOp *op)
{
    unsigned index = gather_index_register(op);
    return (op->modrm & 7) == 4 && op->asize != 2 && index != op->reg && index != op->vvvv &&
           op->reg != op->vvvv;
}

/* ---- state ---- */

static void emms(SoftCpu *cpu, const SoftOp *op)
{
    cpu->op = op;
    x87_check_pending(cpu);
    x87_enter_mmx(&cpu->fpu);
    cpu->fpu.fxsave[FX_FTW] = 0;
    SOFT_NEXT(cpu, op);
}

static void vzero(SoftCpu *cpu, const SoftOp *op, unsigned from)
{
    unsigned count = cpu->mode & SOFT_MODE_CODE64 ? 16 : 8;
    for (unsigned i = 0; i < count; i++)
        memset(cpu->fpu.ymm[i] + from, 0, 32 - from);
}

static void vzeroupper(SoftCpu *cpu, const SoftOp *op)
{
    vzero(cpu, op, 16);
    SOFT_NEXT(cpu, op);
}

static void vzeroall(SoftCpu *cpu, const SoftOp *op)
{
    vzero(cpu, op, 0);
    SOFT_NEXT(cpu, op);
}

SoftHandler vector_special_handler(uint32_t mode, const VectorRow *row, const SoftOp *op)
{
    if (row->flags & VO_VSIB)
        return gather_valid(op) ? gather : NULL;
    if (row->map == 2)
        return row->flags & VO_STORE ? maskmov_store : maskmov_load;
    if (row->opcode == 0xf7)
        return row->flags & VO_REG_MMX ? maskmovq : maskmovdqu;
    if (!(op->flags & SOFT_OP_VEX))
        return emms;
    return op->flags & SOFT_OP_L ? vzeroall : vzeroupper;
}
