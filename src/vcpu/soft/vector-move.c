/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Vector moves and clears in C: what the guest's memcpy, memset and strlen execute most, without
 * the cost of a stub.
 */
#include "vcpu/soft/vector.h"

static inline void copy16(void *to, const void *from)
{
    memcpy(to, from, 16);
}

static inline void zero_upper(SoftCpu *cpu, unsigned n)
{
    memset(cpu->fpu.ymm[n] + 16, 0, 16);
}

static inline void load_vector(SoftCpu *cpu, const SoftOp *op, unsigned size)
{
    uint64_t linear = vector_linear(cpu, op, size, SOFT_READ);
    SoftTlbEntry *e = soft_tlb_entry(cpu, linear);
    uint8_t *to = cpu->fpu.ymm[op->reg];
    if (__builtin_expect(SOFT_TLB_HIT(e->read_tag, linear, size), 1)) {
        memcpy(to, (const void *)(linear + e->addend), size);
    } else {
        soft_load_bytes(cpu, linear, cpu->vector->scratch, size);
        memcpy(to, cpu->vector->scratch, size);
    }
}

static inline void store_vector(SoftCpu *cpu, const SoftOp *op, unsigned size)
{
    uint64_t linear = vector_linear(cpu, op, size, SOFT_WRITE);
    SoftTlbEntry *e = soft_tlb_entry(cpu, linear);
    const uint8_t *from = cpu->fpu.ymm[op->reg];
    if (__builtin_expect(SOFT_TLB_HIT(e->write_tag, linear, size), 1))
        memcpy((void *)(linear + e->addend), from, size);
    else
        soft_store_bytes(cpu, linear, from, size);
}

static void load16(SoftCpu *cpu, const SoftOp *op)
{
    load_vector(cpu, op, 16);
    SOFT_NEXT(cpu, op);
}

static void load16_vex(SoftCpu *cpu, const SoftOp *op)
{
    load_vector(cpu, op, 16);
    zero_upper(cpu, op->reg);
    SOFT_NEXT(cpu, op);
}

static void load32(SoftCpu *cpu, const SoftOp *op)
{
    load_vector(cpu, op, 32);
    SOFT_NEXT(cpu, op);
}

static void store16(SoftCpu *cpu, const SoftOp *op)
{
    store_vector(cpu, op, 16);
    VECTOR_NEXT_STORED(cpu, op);
}

static void store32(SoftCpu *cpu, const SoftOp *op)
{
    store_vector(cpu, op, 32);
    VECTOR_NEXT_STORED(cpu, op);
}

/* Register to register; the op's reg is the destination or, for store forms, the source. */
static void copy_in(SoftCpu *cpu, const SoftOp *op)
{
    copy16(cpu->fpu.ymm[op->reg], cpu->fpu.ymm[op->rm]);
    SOFT_NEXT(cpu, op);
}

static void copy_out(SoftCpu *cpu, const SoftOp *op)
{
    copy16(cpu->fpu.ymm[op->rm], cpu->fpu.ymm[op->reg]);
    SOFT_NEXT(cpu, op);
}

static void copy_in_vex(SoftCpu *cpu, const SoftOp *op)
{
    copy16(cpu->fpu.ymm[op->reg], cpu->fpu.ymm[op->rm]);
    zero_upper(cpu, op->reg);
    SOFT_NEXT(cpu, op);
}

static void copy_out_vex(SoftCpu *cpu, const SoftOp *op)
{
    copy16(cpu->fpu.ymm[op->rm], cpu->fpu.ymm[op->reg]);
    zero_upper(cpu, op->rm);
    SOFT_NEXT(cpu, op);
}

static void copy_in32(SoftCpu *cpu, const SoftOp *op)
{
    memmove(cpu->fpu.ymm[op->reg], cpu->fpu.ymm[op->rm], 32);
    SOFT_NEXT(cpu, op);
}

static void copy_out32(SoftCpu *cpu, const SoftOp *op)
{
    memmove(cpu->fpu.ymm[op->rm], cpu->fpu.ymm[op->reg], 32);
    SOFT_NEXT(cpu, op);
}

/* Sets the low 8 bytes, zeroes the rest of the XMM register and, for VEX, of the YMM register. */
static inline void set_low(SoftCpu *cpu, const SoftOp *op, unsigned n, uint64_t value)
{
    uint64_t v[2] = {value, 0};
    memcpy(cpu->fpu.ymm[n], v, 16);
    if (op->flags & SOFT_OP_VEX)
        zero_upper(cpu, n);
}

static inline uint64_t get_low(const SoftCpu *cpu, unsigned n)
{
    uint64_t v;
    memcpy(&v, cpu->fpu.ymm[n], 8);
    return v;
}

static void load4(SoftCpu *cpu, const SoftOp *op)
{
    set_low(cpu, op, op->reg, soft_load32(cpu, vector_linear(cpu, op, 4, SOFT_READ)));
    SOFT_NEXT(cpu, op);
}

static void load8(SoftCpu *cpu, const SoftOp *op)
{
    set_low(cpu, op, op->reg, soft_load64(cpu, vector_linear(cpu, op, 8, SOFT_READ)));
    SOFT_NEXT(cpu, op);
}

static void store4(SoftCpu *cpu, const SoftOp *op)
{
    uint64_t linear = vector_linear(cpu, op, 4, SOFT_WRITE);
    soft_store32(cpu, linear, (uint32_t)get_low(cpu, op->reg));
    VECTOR_NEXT_STORED(cpu, op);
}

static void store8(SoftCpu *cpu, const SoftOp *op)
{
    uint64_t linear = vector_linear(cpu, op, 8, SOFT_WRITE);
    soft_store64(cpu, linear, get_low(cpu, op->reg));
    VECTOR_NEXT_STORED(cpu, op);
}

static void store8_high(SoftCpu *cpu, const SoftOp *op)
{
    uint64_t linear = vector_linear(cpu, op, 8, SOFT_WRITE), v;
    memcpy(&v, cpu->fpu.ymm[op->reg] + 8, 8);
    soft_store64(cpu, linear, v);
    VECTOR_NEXT_STORED(cpu, op);
}

static void from_gpr4(SoftCpu *cpu, const SoftOp *op)
{
    set_low(cpu, op, op->reg, (uint32_t)cpu->gpr[op->rm]);
    SOFT_NEXT(cpu, op);
}

static void from_gpr8(SoftCpu *cpu, const SoftOp *op)
{
    set_low(cpu, op, op->reg, cpu->gpr[op->rm]);
    SOFT_NEXT(cpu, op);
}

static void to_gpr4(SoftCpu *cpu, const SoftOp *op)
{
    cpu->gpr[op->rm] = (uint32_t)get_low(cpu, op->reg);
    SOFT_NEXT(cpu, op);
}

static void to_gpr8(SoftCpu *cpu, const SoftOp *op)
{
    cpu->gpr[op->rm] = get_low(cpu, op->reg);
    SOFT_NEXT(cpu, op);
}

static void movq_in(SoftCpu *cpu, const SoftOp *op)
{
    set_low(cpu, op, op->reg, get_low(cpu, op->rm));
    SOFT_NEXT(cpu, op);
}

static void movq_out(SoftCpu *cpu, const SoftOp *op)
{
    set_low(cpu, op, op->rm, get_low(cpu, op->reg));
    SOFT_NEXT(cpu, op);
}

static void clear16(SoftCpu *cpu, const SoftOp *op)
{
    memset(cpu->fpu.ymm[op->reg], 0, 16);
    SOFT_NEXT(cpu, op);
}

static void clear32(SoftCpu *cpu, const SoftOp *op)
{
    memset(cpu->fpu.ymm[op->reg], 0, 32);
    SOFT_NEXT(cpu, op);
}

/* ---- choosing one ---- */

typedef struct MoveRow {
    uint8_t prefixes; /* bit per prefix value */
    uint8_t opcode;   /* of map 0F */
    SoftHandler memory, memory_vex, memory32;
    SoftHandler reg, reg_vex, reg32;
} MoveRow;

/* The scalar forms of 10/11 have register forms that merge: those are left to stubs. */
static const MoveRow move_rows[] = {
    {1 | 2, 0x10, load16, load16_vex, load32, copy_in, copy_in_vex, copy_in32},
    {1 | 2, 0x28, load16, load16_vex, load32, copy_in, copy_in_vex, copy_in32},
    {2 | 4, 0x6f, load16, load16_vex, load32, copy_in, copy_in_vex, copy_in32},
    {8, 0xf0, load16, load16_vex, load32, NULL, NULL, NULL},
    {1 | 2, 0x11, store16, store16, store32, copy_out, copy_out_vex, copy_out32},
    {1 | 2, 0x29, store16, store16, store32, copy_out, copy_out_vex, copy_out32},
    {2 | 4, 0x7f, store16, store16, store32, copy_out, copy_out_vex, copy_out32},
    {1 | 2, 0x2b, store16, store16, store32, NULL, NULL, NULL},
    {2, 0xe7, store16, store16, store32, NULL, NULL, NULL},
    {4, 0x10, load4, load4, load4, NULL, NULL, NULL},
    {8, 0x10, load8, load8, load8, NULL, NULL, NULL},
    {4, 0x11, store4, store4, store4, NULL, NULL, NULL},
    {8, 0x11, store8, store8, store8, NULL, NULL, NULL},
    {1 | 2, 0x13, store8, store8, NULL, NULL, NULL, NULL},
    {1 | 2, 0x17, store8_high, store8_high, NULL, NULL, NULL, NULL},
    {4, 0x7e, load8, load8, NULL, movq_in, movq_in, NULL},
    {2, 0xd6, store8, store8, NULL, movq_out, movq_out, NULL},
};

/* MOVD/MOVQ between XMM and general registers or memory: 66 0F 6E, 66 0F 7E. */
static SoftHandler movd_handler(const SoftOp *op)
{
    bool w = op->flags & SOFT_OP_W, memory = op->flags & SOFT_OP_MEM;
    if (op->opcode == 0x6e)
        return memory ? (w ? load8 : load4) : (w ? from_gpr8 : from_gpr4);
    return memory ? (w ? store8 : store4) : (w ? to_gpr8 : to_gpr4);
}

/* XORPS, XORPD, PXOR of a register with itself. */
static SoftHandler clear_handler(const SoftOp *op)
{
    bool vex = op->flags & SOFT_OP_VEX, same = op->reg == op->rm;
    if (op->flags & SOFT_OP_MEM)
        return NULL;
    if (!vex)
        return same ? clear16 : NULL;
    return op->vvvv == op->rm ? clear32 : NULL;
}

SoftHandler vector_move_handler(const VectorRow *row, const SoftOp *op)
{
    bool vex = op->flags & SOFT_OP_VEX, l = op->flags & SOFT_OP_L;
    if (row->map != 1)
        return NULL;
    if (row->prefix == 1 && (row->opcode == 0x6e || row->opcode == 0x7e))
        return movd_handler(op);
    if ((row->opcode == 0x57 && row->prefix < 2) || (row->opcode == 0xef && row->prefix == 1))
        return clear_handler(op);
    for (unsigned i = 0; i < G_N_ELEMENTS(move_rows); i++) {
        const MoveRow *m = &move_rows[i];
        if (m->opcode != row->opcode || !(m->prefixes & 1u << row->prefix))
            continue;
        if (op->flags & SOFT_OP_MEM)
            return !vex ? m->memory : l ? m->memory32 : m->memory_vex;
        return !vex ? m->reg : l ? m->reg32 : m->reg_vex;
    }
    return NULL;
}
