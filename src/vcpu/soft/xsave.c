/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * FXSAVE, FXRSTOR, the XSAVE family, LDMXCSR, STMXCSR, and the FPU part of VcpuState. State
 * components: x87 (0), SSE (1), AVX (2), PKRU (9). Source: Intel SDM vol. 1 chapters 10.5 and 13.
 */
#include "vcpu/soft/vector.h"

#define CR4_OSXSAVE (1u << 18)
#define COMPONENTS (7u | PKRU)
#define X87 1u
#define SSE 2u
#define AVX 4u
#define PKRU SOFT_XCR0_PKRU
#define PKRU_SIZE 8u /* the upper half is zero */
#define XSAVE_HEADER 512u
#define XSAVE_AVX 576u /* CPUID.(0DH,2):EBX; the compacted format has it there too */
#define XSAVE_SIZE (SOFT_XSAVE_PKRU + PKRU_SIZE)
#define XCOMP_COMPACT (1ull << 63)
#define MXCSR_RESET 0x1f80u

static uint64_t get64(const uint8_t *from)
{
    uint64_t v;
    memcpy(&v, from, 8);
    return v;
}

static void put64(uint8_t *to, uint64_t v)
{
    memcpy(to, &v, 8);
}

static unsigned vector_registers(const SoftCpu *cpu)
{
    return cpu->mode & SOFT_MODE_CODE64 ? 16 : 8;
}

/* ---- the legacy region --------------------------------------------------------------------- */

/* Bytes 0-23 and 32-159. Without @wide the pointers are 32 bits, with selectors of 0. */
static void x87_pack(const SoftFpu *f, bool wide, uint8_t *image)
{
    memcpy(image, f->fxsave, FX_MXCSR);
    image[5] = 0;
    if (!wide) {
        memset(image + FX_FIP + 4, 0, 4);
        memset(image + FX_FDP + 4, 0, 4);
    }
    for (unsigned i = 0; i < 8; i++) {
        memcpy(image + FX_ST + i * 16, f->fxsave + FX_ST + i * 16, 10);
        memset(image + FX_ST + i * 16 + 10, 0, 6);
    }
}

static void x87_unpack(SoftFpu *f, bool wide, const uint8_t *image)
{
    memcpy(f->fxsave, image, FX_MXCSR);
    f->fxsave[5] = 0;
    fpu_set16(f, FX_FCW, (uint16_t)((fpu_u16(f, FX_FCW) & 0x1f3f) | 0x40));
    fpu_set16(f, FX_FOP, fpu_u16(f, FX_FOP) & 0x7ff);
    if (!wide) {
        memset(f->fxsave + FX_FIP + 4, 0, 4);
        memset(f->fxsave + FX_FDP + 4, 0, 4);
    }
    for (unsigned i = 0; i < 8; i++) {
        memcpy(f->fxsave + FX_ST + i * 16, image + FX_ST + i * 16, 10);
        memset(f->fxsave + FX_ST + i * 16 + 10, 0, 6);
    }
    x87_update_summary(f);
}

static void mxcsr_pack(const SoftFpu *f, uint8_t *image)
{
    uint32_t mask = SOFT_MXCSR_MASK;
    memcpy(image + FX_MXCSR, f->fxsave + FX_MXCSR, 4);
    memcpy(image + FX_MXCSR_MASK, &mask, 4);
}

static uint32_t image_mxcsr(const uint8_t *image)
{
    uint32_t v;
    memcpy(&v, image + FX_MXCSR, 4);
    return v;
}

static void check_mxcsr(SoftCpu *cpu, uint32_t mxcsr)
{
    if (mxcsr & ~SOFT_MXCSR_MASK)
        soft_raise_error(cpu, EXC_GP, 0);
}

static void xmm_pack(const SoftCpu *cpu, uint8_t *image)
{
    for (unsigned i = 0; i < vector_registers(cpu); i++)
        memcpy(image + FX_XMM + i * 16, cpu->fpu.ymm[i], 16);
}

static uint64_t area_linear(SoftCpu *cpu, const SoftOp *op, unsigned size, unsigned align,
                            unsigned access)
{
    cpu->op = op;
    uint64_t linear = soft_operand(cpu, op, size, access);
    if (linear & (align - 1))
        soft_raise_error(cpu, EXC_GP, 0);
    return linear;
}

/* ---- FXSAVE, FXRSTOR, MXCSR ---------------------------------------------------------------- */

static VECTOR_OUTLINE void op_fxsave_body(SoftCpu *cpu, const SoftOp *op)
{
    uint8_t image[512];
    unsigned size = FX_XMM + vector_registers(cpu) * 16;
    uint64_t linear = area_linear(cpu, op, 512, 16, SOFT_WRITE);
    x87_pack(&cpu->fpu, op->flags & SOFT_OP_W, image);
    mxcsr_pack(&cpu->fpu, image);
    xmm_pack(cpu, image);
    soft_probe_store(cpu, linear, 512);
    soft_store_bytes(cpu, linear, image, size);
}

static void op_fxsave(SoftCpu *cpu, const SoftOp *op)
{
    op_fxsave_body(cpu, op);
    VECTOR_NEXT_STORED(cpu, op);
}

static VECTOR_OUTLINE void op_fxrstor_body(SoftCpu *cpu, const SoftOp *op)
{
    uint8_t image[512];
    uint64_t linear = area_linear(cpu, op, 512, 16, SOFT_READ);
    soft_load_bytes(cpu, linear, image, 512);
    check_mxcsr(cpu, image_mxcsr(image));
    x87_unpack(&cpu->fpu, op->flags & SOFT_OP_W, image);
    fpu_set32(&cpu->fpu, FX_MXCSR, image_mxcsr(image));
    for (unsigned i = 0; i < vector_registers(cpu); i++)
        memcpy(cpu->fpu.ymm[i], image + FX_XMM + i * 16, 16);
}

static void op_fxrstor(SoftCpu *cpu, const SoftOp *op)
{
    op_fxrstor_body(cpu, op);
    SOFT_NEXT(cpu, op);
}

static void op_ldmxcsr(SoftCpu *cpu, const SoftOp *op)
{
    cpu->op = op;
    uint32_t mxcsr = soft_load32(cpu, soft_operand(cpu, op, 4, SOFT_READ));
    check_mxcsr(cpu, mxcsr);
    fpu_set32(&cpu->fpu, FX_MXCSR, mxcsr);
    SOFT_NEXT(cpu, op);
}

static void op_stmxcsr(SoftCpu *cpu, const SoftOp *op)
{
    cpu->op = op;
    soft_store32(cpu, soft_operand(cpu, op, 4, SOFT_WRITE), fpu_u32(&cpu->fpu, FX_MXCSR));
    VECTOR_NEXT_STORED(cpu, op);
}

/* ---- XSAVE -------------------------------------------------------------------------------------- */

static bool is_zero(const uint8_t *p, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        if (p[i])
            return false;
    return true;
}

/* XINUSE: the components that are not in their initial configuration (SDM vol. 1 13.6). */
static uint64_t components_in_use(const SoftCpu *cpu)
{
    const SoftFpu *f = &cpu->fpu;
    uint64_t in_use = 0;
    bool x87_initial = fpu_u16(f, FX_FCW) == 0x37f && is_zero(f->fxsave + 2, FX_MXCSR - 2);
    for (unsigned i = 0; i < 8 && x87_initial; i++)
        x87_initial = is_zero(f->fxsave + FX_ST + i * 16, 10);
    if (!x87_initial)
        in_use |= X87;
    for (unsigned i = 0; i < 16; i++) {
        if (!is_zero(f->ymm[i], 16))
            in_use |= SSE;
        if (!is_zero(f->ymm[i] + 16, 16))
            in_use |= AVX;
    }
    if (soft_pkru(cpu))
        in_use |= PKRU;
    return in_use;
}

static uint64_t requested(const SoftCpu *cpu)
{
    uint64_t mask = (uint32_t)cpu->gpr[GPR_RAX] | cpu->gpr[GPR_RDX] << 32;
    return mask & cpu->xcr0 & COMPONENTS;
}

static void check_osxsave(SoftCpu *cpu, const SoftOp *op)
{
    cpu->op = op;
    if (!(cpu->cr4 & CR4_OSXSAVE))
        soft_raise(cpu, EXC_UD);
    if (cpu->cr0 & 8)
        soft_raise(cpu, EXC_NM);
}

/* Where PKRU is: in the compacted format it closes ranks with the components that the area has. */
static unsigned pkru_offset(uint64_t components, bool compact)
{
    return compact && !(components & AVX) ? XSAVE_AVX : SOFT_XSAVE_PKRU;
}

static unsigned area_size(uint64_t components, bool compact)
{
    if (components & PKRU)
        return pkru_offset(components, compact) + PKRU_SIZE;
    return components & AVX ? XSAVE_AVX + 256 : XSAVE_AVX;
}

/* Writes the chosen components, and MXCSR if @mxcsr, at @linear, which can be written. */
static void components_store(SoftCpu *cpu, uint64_t linear, uint64_t chosen, bool mxcsr, bool wide)
{
    uint8_t image[512], high[16][16];
    if (chosen & X87) {
        x87_pack(&cpu->fpu, wide, image);
        soft_store_bytes(cpu, linear, image, FX_MXCSR);
        soft_store_bytes(cpu, linear + FX_ST, image + FX_ST, 128);
    }
    if (mxcsr) {
        mxcsr_pack(&cpu->fpu, image);
        soft_store_bytes(cpu, linear + FX_MXCSR, image + FX_MXCSR, 8);
    }
    if (chosen & SSE) {
        xmm_pack(cpu, image);
        soft_store_bytes(cpu, linear + FX_XMM, image + FX_XMM, vector_registers(cpu) * 16);
    }
    if (chosen & AVX) {
        for (unsigned i = 0; i < 16; i++)
            memcpy(high[i], cpu->fpu.ymm[i] + 16, 16);
        soft_store_bytes(cpu, linear + XSAVE_AVX, high, vector_registers(cpu) * 16);
    }
}

/* XSAVE writes every requested component; XSAVEOPT leaves out those in their initial state. */
static void xsave_standard(SoftCpu *cpu, const SoftOp *op, bool optimized)
{
    check_osxsave(cpu, op);
    uint64_t wanted = requested(cpu), in_use = components_in_use(cpu);
    uint64_t linear = area_linear(cpu, op, XSAVE_AVX, 64, SOFT_WRITE);
    soft_probe_store(cpu, linear, area_size(wanted, false));
    uint64_t header = soft_load64(cpu, linear + XSAVE_HEADER);
    uint64_t chosen = optimized ? wanted & in_use : wanted;
    components_store(cpu, linear, chosen, wanted & (SSE | AVX), op->flags & SOFT_OP_W);
    if (chosen & PKRU)
        soft_store64(cpu, linear + SOFT_XSAVE_PKRU, soft_pkru(cpu));
    soft_store64(cpu, linear + XSAVE_HEADER, (header & ~wanted) | (wanted & in_use));
}

static void op_xsave(SoftCpu *cpu, const SoftOp *op)
{
    xsave_standard(cpu, op, false);
    VECTOR_NEXT_STORED(cpu, op);
}

static void op_xsaveopt(SoftCpu *cpu, const SoftOp *op)
{
    xsave_standard(cpu, op, true);
    VECTOR_NEXT_STORED(cpu, op);
}

/* A changed MXCSR counts as SSE in use (SDM vol. 1 13.10). */
static VECTOR_OUTLINE void op_xsavec_body(SoftCpu *cpu, const SoftOp *op)
{
    check_osxsave(cpu, op);
    uint64_t wanted = requested(cpu), in_use = components_in_use(cpu);
    if (fpu_u32(&cpu->fpu, FX_MXCSR) != MXCSR_RESET)
        in_use |= SSE;
    uint64_t linear = area_linear(cpu, op, XSAVE_AVX, 64, SOFT_WRITE), saved = wanted & in_use;
    soft_probe_store(cpu, linear, area_size(wanted, true));
    components_store(cpu, linear, saved, saved & SSE, op->flags & SOFT_OP_W);
    if (saved & PKRU)
        soft_store64(cpu, linear + pkru_offset(wanted, true), soft_pkru(cpu));
    soft_store64(cpu, linear + XSAVE_HEADER, saved);
    soft_store64(cpu, linear + XSAVE_HEADER + 8, wanted | XCOMP_COMPACT);
}

static void op_xsavec(SoftCpu *cpu, const SoftOp *op)
{
    op_xsavec_body(cpu, op);
    VECTOR_NEXT_STORED(cpu, op);
}

/* ---- XRSTOR -------------------------------------------------------------------------------------- */

/* Checks the header of the area at @image (SDM vol. 1 13.8); true: compacted format. */
static bool check_header(SoftCpu *cpu, const uint8_t *image)
{
    uint64_t present = get64(image + XSAVE_HEADER), layout = get64(image + XSAVE_HEADER + 8);
    uint64_t allowed = cpu->xcr0 & COMPONENTS;
    bool compact = layout & XCOMP_COMPACT, bad;
    if (compact)
        bad = !soft_features.xsavec || (layout & ~XCOMP_COMPACT & ~allowed) || (present & ~layout) ||
              !is_zero(image + XSAVE_HEADER + 16, 48);
    else
        bad = (present & ~allowed) || layout || get64(image + XSAVE_HEADER + 16);
    if (bad)
        soft_raise_error(cpu, EXC_GP, 0);
    return compact;
}

static void components_load(SoftCpu *cpu, const uint8_t *image, uint64_t wanted, uint64_t present,
                            bool wide)
{
    SoftFpu *f = &cpu->fpu;
    if (wanted & present & X87)
        x87_unpack(f, wide, image);
    else if (wanted & X87) {
        x87_initialize(f);
        memset(f->fxsave + FX_ST, 0, 128);
    }
    for (unsigned i = 0; i < vector_registers(cpu); i++) {
        if (wanted & present & SSE)
            memcpy(f->ymm[i], image + FX_XMM + i * 16, 16);
        else if (wanted & SSE)
            memset(f->ymm[i], 0, 16);
        if (wanted & present & AVX)
            memcpy(f->ymm[i] + 16, image + XSAVE_AVX + i * 16, 16);
        else if (wanted & AVX)
            memset(f->ymm[i] + 16, 0, 16);
    }
}

static VECTOR_OUTLINE void op_xrstor_body(SoftCpu *cpu, const SoftOp *op)
{
    uint8_t image[XSAVE_SIZE];
    check_osxsave(cpu, op);
    uint64_t wanted = requested(cpu);
    uint64_t linear = area_linear(cpu, op, XSAVE_AVX, 64, SOFT_READ);
    soft_load_bytes(cpu, linear, image, XSAVE_AVX);
    bool compact = check_header(cpu, image);
    uint64_t present = get64(image + XSAVE_HEADER);
    uint32_t mxcsr = fpu_u32(&cpu->fpu, FX_MXCSR);
    if (compact) {
        if (wanted & SSE)
            mxcsr = present & SSE ? image_mxcsr(image) : MXCSR_RESET;
    } else if (wanted & (SSE | AVX)) {
        mxcsr = image_mxcsr(image);
    }
    check_mxcsr(cpu, mxcsr);
    if (wanted & present & AVX)
        soft_load_bytes(cpu, linear + XSAVE_AVX, image + XSAVE_AVX, 256);
    uint32_t pkru = 0;
    if (wanted & present & PKRU) {
        uint64_t layout = get64(image + XSAVE_HEADER + 8);
        pkru = soft_load32(cpu, linear + pkru_offset(layout, compact));
    }
    components_load(cpu, image, wanted, present, op->flags & SOFT_OP_W);
    fpu_set32(&cpu->fpu, FX_MXCSR, mxcsr);
    if (wanted & PKRU)
        soft_pkru_set(cpu, pkru);
}

static void op_xrstor(SoftCpu *cpu, const SoftOp *op)
{
    op_xrstor_body(cpu, op);
    SOFT_NEXT(cpu, op);
}

/* ---- decoding ---------------------------------------------------------------------------------- */

static bool group15_decode(uint32_t mode, SoftOp *op)
{
    bool vex = op->flags & SOFT_OP_VEX;
    unsigned digit = (op->modrm >> 3) & 7;
    if (!(op->flags & SOFT_OP_MEM) || op->prefix)
        return false;
    if (vex) {
        if ((digit != 2 && digit != 3) || (op->flags & SOFT_OP_L) || op->vvvv ||
            (mode & SOFT_MODE_AVX_OFF) || !soft_features.avx)
            return false;
    }
    switch (digit) {
    case 0:
    case 1:
        op->handler = digit ? op_fxrstor : op_fxsave;
        if (mode & SOFT_MODE_FPU_OFF)
            op->handler = vector_op_nm;
        return true;
    case 2:
    case 3:
        if (!vex && (mode & SOFT_MODE_SSE_OFF))
            return false;
        op->handler = mode & SOFT_MODE_TS ? vector_op_nm : digit == 2 ? op_ldmxcsr : op_stmxcsr;
        return true;
    case 4:
        op->handler = op_xsave;
        return true;
    case 5:
        op->handler = op_xrstor;
        return true;
    case 6:
        op->handler = op_xsaveopt;
        return soft_features.xsaveopt;
    default:
        return false;
    }
}

bool xsave_decode(SoftCpu *cpu, uint32_t mode, SoftOp *op)
{
    memset(op->spare, 0, sizeof(op->spare));
    if (op->opcode == 0xae)
        return group15_decode(mode, op);
    if (((op->modrm >> 3) & 7) != 4 || !(op->flags & SOFT_OP_MEM) || op->prefix ||
        (op->flags & SOFT_OP_VEX) || !soft_features.xsavec)
        return false;
    op->handler = op_xsavec;
    return true;
}

/* ---- VcpuState --------------------------------------------------------------------------------- */

void soft_fpu_reset(SoftCpu *cpu)
{
    SoftFpu *f = &cpu->fpu;
    memset(f, 0, sizeof(*f));
    fpu_set16(f, FX_FCW, 0x40);
    f->fxsave[FX_FTW] = 0xff; /* after RESET the tags say zero, not empty: SDM vol. 3 table 10-1 */
    fpu_set32(f, FX_MXCSR, MXCSR_RESET);
    f->xinuse = COMPONENTS;
    soft_pkru_set(cpu, 0);
}

void soft_fpu_to_xsave(const SoftCpu *cpu, uint8_t *xsave)
{
    const SoftFpu *f = &cpu->fpu;
    memset(xsave, 0, VCPU_XSAVE_SIZE);
    x87_pack(f, true, xsave);
    mxcsr_pack(f, xsave);
    for (unsigned i = 0; i < 16; i++) {
        memcpy(xsave + FX_XMM + i * 16, f->ymm[i], 16);
        memcpy(xsave + XSAVE_AVX + i * 16, f->ymm[i] + 16, 16);
    }
    put64(xsave + SOFT_XSAVE_PKRU, soft_pkru(cpu));
    put64(xsave + XSAVE_HEADER, COMPONENTS);
}

void soft_fpu_from_xsave(SoftCpu *cpu, const uint8_t *xsave)
{
    SoftFpu *f = &cpu->fpu;
    uint64_t present = get64(xsave + XSAVE_HEADER);
    soft_fpu_reset(cpu);
    x87_initialize(f);
    if (present & X87)
        x87_unpack(f, true, xsave);
    if (present & (SSE | AVX))
        fpu_set32(f, FX_MXCSR, image_mxcsr(xsave) & SOFT_MXCSR_MASK);
    for (unsigned i = 0; i < 16; i++) {
        if (present & SSE)
            memcpy(f->ymm[i], xsave + FX_XMM + i * 16, 16);
        if (present & AVX)
            memcpy(f->ymm[i] + 16, xsave + XSAVE_AVX + i * 16, 16);
    }
    if (present & PKRU)
        soft_pkru_set(cpu, (uint32_t)get64(xsave + SOFT_XSAVE_PKRU));
}
