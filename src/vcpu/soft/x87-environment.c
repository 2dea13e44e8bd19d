/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * FLDENV, FNSTENV, FNSAVE, FRSTOR: the x87 environment in its four layouts (SDM vol. 1 8.1.10,
 * figures 8-9 to 8-12), with the full tag word.
 */
#include "vcpu/soft/vector.h"

enum { TAG_VALID = 0, TAG_ZERO = 1, TAG_SPECIAL = 2, TAG_EMPTY = 3 };

static unsigned register_tag(const uint8_t *st)
{
    uint64_t mantissa;
    uint16_t exponent;
    memcpy(&mantissa, st, 8);
    memcpy(&exponent, st + 8, 2);
    exponent &= 0x7fff;
    if (exponent == 0)
        return mantissa ? TAG_SPECIAL : TAG_ZERO;
    return exponent == 0x7fff || !(mantissa >> 63) ? TAG_SPECIAL : TAG_VALID;
}

static uint16_t tag_word_full(const SoftFpu *f)
{
    unsigned top = FSW_TOP(fpu_u16(f, FX_FSW)), tags = 0;
    for (unsigned i = 0; i < 8; i++) {
        unsigned tag = TAG_EMPTY;
        if (f->fxsave[FX_FTW] & 1u << i)
            tag = register_tag(f->fxsave + FX_ST + ((i - top) & 7) * 16);
        tags |= tag << (2 * i);
    }
    return (uint16_t)tags;
}

static bool real_layout(const SoftCpu *cpu)
{
    return !(cpu->mode & SOFT_MODE_PROTECTED) || (cpu->mode & SOFT_MODE_VM86);
}

static void put16(uint8_t *to, unsigned index, unsigned value)
{
    uint16_t v = (uint16_t)value;
    memcpy(to + index * 2, &v, 2);
}

static void put32(uint8_t *to, unsigned index, uint32_t value)
{
    memcpy(to + index * 4, &value, 4);
}

static unsigned get16(const uint8_t *from, unsigned index)
{
    uint16_t v;
    memcpy(&v, from + index * 2, 2);
    return v;
}

static uint32_t get32(const uint8_t *from, unsigned index)
{
    uint32_t v;
    memcpy(&v, from + index * 4, 4);
    return v;
}

/* Returns the length: 14 or 28 bytes. */
static unsigned environment_pack(const SoftCpu *cpu, bool wide, uint8_t *to)
{
    const SoftFpu *f = &cpu->fpu;
    uint32_t fip = fpu_u32(f, FX_FIP), fdp = fpu_u32(f, FX_FDP);
    unsigned fop = fpu_u16(f, FX_FOP);
    bool real = real_layout(cpu);
    if (!wide) {
        put16(to, 0, fpu_u16(f, FX_FCW));
        put16(to, 1, fpu_u16(f, FX_FSW));
        put16(to, 2, tag_word_full(f));
        put16(to, 3, fip);
        put16(to, 4, real ? ((fip >> 16) & 15) << 12 | fop : 0);
        put16(to, 5, fdp);
        put16(to, 6, real ? ((fdp >> 16) & 15) << 12 : 0);
        return 14;
    }
    put32(to, 0, 0xffff0000u | fpu_u16(f, FX_FCW));
    put32(to, 1, 0xffff0000u | fpu_u16(f, FX_FSW));
    put32(to, 2, 0xffff0000u | tag_word_full(f));
    if (real) {
        put32(to, 3, 0xffff0000u | (fip & 0xffff));
        put32(to, 4, (fip >> 16) << 12 | fop);
        put32(to, 5, 0xffff0000u | (fdp & 0xffff));
        put32(to, 6, (fdp >> 16) << 12);
    } else {
        put32(to, 3, fip);
        put32(to, 4, fop << 16);
        put32(to, 5, fdp);
        put32(to, 6, 0xffff0000u);
    }
    return 28;
}

static void environment_unpack(SoftCpu *cpu, bool wide, const uint8_t *from)
{
    SoftFpu *f = &cpu->fpu;
    bool real = real_layout(cpu);
    unsigned tags = get16(from, wide ? 4 : 2), abridged = 0;
    uint32_t fip, fdp;
    unsigned fop = 0;
    for (unsigned i = 0; i < 8; i++)
        if (((tags >> (2 * i)) & 3) != TAG_EMPTY)
            abridged |= 1u << i;
    if (!wide) {
        fip = get16(from, 3);
        fdp = get16(from, 5);
        if (real) {
            fop = get16(from, 4) & 0x7ff;
            fip |= (get16(from, 4) >> 12) << 16;
            fdp |= (get16(from, 6) >> 12) << 16;
        }
    } else if (real) {
        fop = get32(from, 4) & 0x7ff;
        fip = (get32(from, 3) & 0xffff) | ((get32(from, 4) >> 12) & 0xffff) << 16;
        fdp = (get32(from, 5) & 0xffff) | ((get32(from, 6) >> 12) & 0xffff) << 16;
    } else {
        fip = get32(from, 3);
        fop = (get32(from, 4) >> 16) & 0x7ff;
        fdp = get32(from, 5);
    }
    fpu_set16(f, FX_FCW, (uint16_t)((get16(from, 0) & 0x1f3f) | 0x40));
    fpu_set16(f, FX_FSW, (uint16_t)get16(from, wide ? 2 : 1));
    f->fxsave[FX_FTW] = (uint8_t)abridged;
    fpu_set16(f, FX_FOP, (uint16_t)fop);
    fpu_set64(f, FX_FIP, fip);
    fpu_set64(f, FX_FDP, fdp);
    x87_update_summary(f);
}

static bool wide_layout(const SoftOp *op)
{
    return op->size != 2;
}

static VECTOR_OUTLINE void x87_fnstenv_body(SoftCpu *cpu, const SoftOp *op)
{
    uint8_t image[28];
    unsigned size = environment_pack(cpu, wide_layout(op), image);
    uint64_t linear = vector_linear(cpu, op, size, SOFT_WRITE);
    soft_store_bytes(cpu, linear, image, size);
    fpu_set16(&cpu->fpu, FX_FCW, fpu_u16(&cpu->fpu, FX_FCW) | 0x3f);
    x87_update_summary(&cpu->fpu);
}

static void x87_fnstenv(SoftCpu *cpu, const SoftOp *op)
{
    x87_fnstenv_body(cpu, op);
    VECTOR_NEXT_STORED(cpu, op);
}

static VECTOR_OUTLINE void x87_fldenv_body(SoftCpu *cpu, const SoftOp *op)
{
    uint8_t image[28];
    unsigned size = wide_layout(op) ? 28 : 14;
    cpu->op = op;
    x87_check_pending(cpu);
    soft_load_bytes(cpu, vector_linear(cpu, op, size, SOFT_READ), image, size);
    unsigned old_top = FSW_TOP(fpu_u16(&cpu->fpu, FX_FSW));
    environment_unpack(cpu, wide_layout(op), image);
    /* FXSAVE's registers are in stack order: a new TOP renames them. */
    unsigned shift = FSW_TOP(fpu_u16(&cpu->fpu, FX_FSW)) - old_top;
    uint8_t st[8][16];
    memcpy(st, cpu->fpu.fxsave + FX_ST, sizeof(st));
    for (unsigned i = 0; i < 8; i++)
        memcpy(cpu->fpu.fxsave + FX_ST + i * 16, st[(i + shift) & 7], 16);
}

static void x87_fldenv(SoftCpu *cpu, const SoftOp *op)
{
    x87_fldenv_body(cpu, op);
    SOFT_NEXT(cpu, op);
}

static VECTOR_OUTLINE void x87_fnsave_body(SoftCpu *cpu, const SoftOp *op)
{
    uint8_t image[28 + 80];
    unsigned size = environment_pack(cpu, wide_layout(op), image);
    for (unsigned i = 0; i < 8; i++, size += 10)
        memcpy(image + size, cpu->fpu.fxsave + FX_ST + i * 16, 10);
    uint64_t linear = vector_linear(cpu, op, size, SOFT_WRITE);
    soft_store_bytes(cpu, linear, image, size);
    x87_initialize(&cpu->fpu);
}

static void x87_fnsave(SoftCpu *cpu, const SoftOp *op)
{
    x87_fnsave_body(cpu, op);
    VECTOR_NEXT_STORED(cpu, op);
}

static VECTOR_OUTLINE void x87_frstor_body(SoftCpu *cpu, const SoftOp *op)
{
    uint8_t image[28 + 80];
    unsigned environment = wide_layout(op) ? 28 : 14, size = environment + 80;
    cpu->op = op;
    x87_check_pending(cpu);
    soft_load_bytes(cpu, vector_linear(cpu, op, size, SOFT_READ), image, size);
    environment_unpack(cpu, wide_layout(op), image);
    for (unsigned i = 0; i < 8; i++) {
        uint8_t *st = cpu->fpu.fxsave + FX_ST + i * 16;
        memcpy(st, image + environment + i * 10, 10);
        memset(st + 10, 0, 6);
    }
}

static void x87_frstor(SoftCpu *cpu, const SoftOp *op)
{
    x87_frstor_body(cpu, op);
    SOFT_NEXT(cpu, op);
}

SoftHandler x87_environment_handler(const SoftOp *op)
{
    unsigned digit = (op->modrm >> 3) & 7;
    if (op->opcode == 0xd9)
        return digit == 4 ? x87_fldenv : x87_fnstenv;
    return digit == 4 ? x87_frstor : x87_fnsave;
}
