/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * x87: decoding and execution. An instruction runs natively between FXRSTOR and FXSAVE of the
 * guest's registers; what does not wait for pending exceptions, or only looks at the control
 * and status words, is done in C. Source: Intel SDM vol. 1 chapter 8, vol. 2 table A-7 on.
 *
 * The last-instruction pointers are kept by us. Code and data selectors in them read as 0, as
 * on processors with CPUID.(7,0):EBX.FCS_FDS_DEPRECATED.
 */
#include "vcpu/soft/vector.h"

#define CR0_MP 0x2u
#define CR0_TS 0x8u
#define CR0_NE 0x20u

void x87_update_summary(SoftFpu *f)
{
    uint16_t fcw = fpu_u16(f, FX_FCW), fsw = fpu_u16(f, FX_FSW);
    fsw &= (uint16_t)~(FSW_ES | FSW_B);
    if (fsw & ~fcw & 0x3f)
        fsw |= FSW_ES | FSW_B;
    fpu_set16(f, FX_FSW, fsw);
}

/*
 * With CR0.NE clear a PC reports the exception through FERR# and IRQ 13, which this machine does not
 * wire up: execution goes on and the exception stays pending.
 */
void x87_check_pending(SoftCpu *cpu)
{
    if ((fpu_u16(&cpu->fpu, FX_FSW) & FSW_ES) && (cpu->cr0 & CR0_NE))
        soft_raise(cpu, EXC_MF);
}

/* Sets TOP to 0; FXSAVE's order of registers depends on it, so they are rotated. */
static void x87_clear_top(SoftFpu *f)
{
    uint16_t fsw = fpu_u16(f, FX_FSW);
    unsigned top = FSW_TOP(fsw);
    uint8_t st[8][16];
    if (!top)
        return;
    memcpy(st, f->fxsave + FX_ST, sizeof(st));
    for (unsigned i = 0; i < 8; i++)
        memcpy(f->fxsave + FX_ST + ((i + top) & 7) * 16, st[i], 16);
    fpu_set16(f, FX_FSW, fsw & ~0x3800);
}

void x87_enter_mmx(SoftFpu *f)
{
    x87_clear_top(f);
    f->fxsave[FX_FTW] = 0xff;
}

void x87_initialize(SoftFpu *f)
{
    x87_clear_top(f);
    memset(f->fxsave, 0, FX_MXCSR);
    fpu_set16(f, FX_FCW, 0x37f);
}

/* ---- forms ------------------------------------------------------------------------------------ */

/* Aliases that processors accept though undocumented, by (opcode, modrm & F8): the real one. */
static const struct {
    uint8_t opcode, modrm, to_opcode, to_modrm;
} aliases[] = {
    {0xdc, 0xd0, 0xd8, 0xd0}, {0xdc, 0xd8, 0xd8, 0xd8}, {0xdd, 0xc8, 0xd9, 0xc8}, {0xde, 0xd0, 0xd8, 0xd8},
    {0xdf, 0xc8, 0xd9, 0xc8}, {0xdf, 0xd0, 0xdd, 0xd8}, {0xdf, 0xd8, 0xdd, 0xd8},
};

void x87_canonical(const SoftOp *op, uint8_t *opcode, uint8_t *modrm)
{
    *opcode = op->opcode;
    *modrm = op->modrm;
    for (unsigned i = 0; i < G_N_ELEMENTS(aliases); i++) {
        if (aliases[i].opcode == op->opcode && aliases[i].modrm == (op->modrm & 0xf8)) {
            *opcode = aliases[i].to_opcode;
            *modrm = (uint8_t)(aliases[i].to_modrm | (op->modrm & 7));
            return;
        }
    }
}

static bool x87_register_form(const SoftOp *op)
{
    return !(op->flags & SOFT_OP_MEM);
}

/* FCMOVcc */
bool x87_reads_flags(const SoftOp *op)
{
    return x87_register_form(op) && (op->opcode == 0xda || op->opcode == 0xdb) &&
           op->modrm < 0xe0;
}

/* FCOMI, FUCOMI and their popping forms */
bool x87_sets_flags(const SoftOp *op)
{
    return x87_register_form(op) && (op->opcode == 0xdb || op->opcode == 0xdf) &&
           op->modrm >= 0xe8 && op->modrm < 0xf8;
}

/* Sizes of memory operands by opcode and ModRM.reg; 0 is undefined, S marks stores. */
#define S 0x40
#define C 0x80 /* control instructions: handled on their own */
static const uint8_t memory_form[8][8] = {
    {4, 4, 4, 4, 4, 4, 4, 4},
    {4, 0, 4 | S, 4 | S, C, C, C, C},
    {4, 4, 4, 4, 4, 4, 4, 4},
    {4, 4 | S, 4 | S, 4 | S, 0, 10, 0, 10 | S},
    {8, 8, 8, 8, 8, 8, 8, 8},
    {8, 8 | S, 8 | S, 8 | S, C, 0, C, C},
    {2, 2, 2, 2, 2, 2, 2, 2},
    {2, 2 | S, 2 | S, 2 | S, 10, 8, 10 | S, 8 | S},
};

/* Register forms that exist, a bit for each modrm - C0 of every opcode. */
static const uint64_t register_form[8] = {
    0xffffffffffffffff,
    0xffff7f33ff01ffff,
    0x00000200ffffffff,
    0x00ffff1fffffffff,
    0xffffffffffffffff,
    0x0000ffffffffffff,
    0xffffffff02ffffff,
    0x00ffff01ffffffff,
};

bool x87_form_exists(uint8_t opcode, uint8_t modrm)
{
    if (modrm < 0xc0)
        return memory_form[opcode & 7][(modrm >> 3) & 7] != 0;
    return register_form[opcode & 7] >> (modrm - 0xc0u) & 1;
}

/* ---- handlers -------------------------------------------------------------------------------- */

static void x87_pointers(SoftCpu *cpu, const SoftOp *op)
{
    SoftFpu *f = &cpu->fpu;
    fpu_set16(f, FX_FOP, (uint16_t)((op->opcode & 7) << 8 | op->modrm));
    fpu_set64(f, FX_FIP, op->rip);
    if (op->flags & SOFT_OP_MEM)
        fpu_set64(f, FX_FDP, soft_offset(cpu, op));
}

/* Runs the stub; the instruction pointers that the host leaves are replaced. */
static void x87_run(SoftCpu *cpu, const SoftOp *op, const void *memory)
{
    SoftFpu *f = &cpu->fpu;
    uint64_t fdp = fpu_u64(f, FX_FDP);
    uint16_t fcw = fpu_u16(f, FX_FCW), before = fpu_u16(f, FX_FSW);
    if (before & FSW_ES) { /* CR0.NE is clear: see x87_check_pending */
        fpu_set16(f, FX_FCW, fcw | 0x3f);
        fpu_set16(f, FX_FSW, before & (uint16_t)~(FSW_ES | FSW_B));
    }
    vector_stub_run(cpu, op, memory);
    fpu_set32(f, FX_MXCSR_MASK, 0);
    fpu_set64(f, FX_FDP, fdp);
    x87_pointers(cpu, op);
    if (before & FSW_ES) {
        fpu_set16(f, FX_FCW, fcw);
        x87_update_summary(f);
    }
}

static void x87_reg(SoftCpu *cpu, const SoftOp *op)
{
    cpu->op = op;
    x87_check_pending(cpu);
    x87_run(cpu, op, NULL);
    SOFT_NEXT(cpu, op);
}

static void x87_load(SoftCpu *cpu, const SoftOp *op)
{
    cpu->op = op;
    x87_check_pending(cpu);
    uint64_t linear = vector_linear(cpu, op, op->sub, SOFT_READ);
    soft_load_bytes(cpu, linear, cpu->vector->scratch, op->sub);
    x87_run(cpu, op, cpu->vector->scratch);
    SOFT_NEXT(cpu, op);
}

/*
 * An unmasked exception other than precision keeps the result from being stored (SDM vol. 1 8.5).
 */
static void x87_store(SoftCpu *cpu, const SoftOp *op)
{
    cpu->op = op;
    x87_check_pending(cpu);
    uint64_t linear = vector_linear(cpu, op, op->sub, SOFT_WRITE);
    soft_probe_store(cpu, linear, op->sub);
    uint16_t fcw = fpu_u16(&cpu->fpu, FX_FCW), before = fpu_u16(&cpu->fpu, FX_FSW);
    x87_run(cpu, op, cpu->vector->scratch);
    uint16_t raised = fpu_u16(&cpu->fpu, FX_FSW) & (uint16_t)~fcw & 0x1f;
    if (!raised || (before & FSW_ES))
        soft_store_bytes(cpu, linear, cpu->vector->scratch, op->sub);
    VECTOR_NEXT_STORED(cpu, op);
}

static void x87_fldcw(SoftCpu *cpu, const SoftOp *op)
{
    cpu->op = op;
    x87_check_pending(cpu);
    uint16_t fcw = soft_load16(cpu, vector_linear(cpu, op, 2, SOFT_READ));
    fpu_set16(&cpu->fpu, FX_FCW, (uint16_t)((fcw & 0x1f3f) | 0x40));
    x87_update_summary(&cpu->fpu);
    SOFT_NEXT(cpu, op);
}

static void x87_fnstcw(SoftCpu *cpu, const SoftOp *op)
{
    uint64_t linear = vector_linear(cpu, op, 2, SOFT_WRITE);
    soft_store16(cpu, linear, fpu_u16(&cpu->fpu, FX_FCW));
    VECTOR_NEXT_STORED(cpu, op);
}

static void x87_fnstsw(SoftCpu *cpu, const SoftOp *op)
{
    uint64_t linear = vector_linear(cpu, op, 2, SOFT_WRITE);
    soft_store16(cpu, linear, fpu_u16(&cpu->fpu, FX_FSW));
    VECTOR_NEXT_STORED(cpu, op);
}

static void x87_fnstsw_ax(SoftCpu *cpu, const SoftOp *op)
{
    memcpy(&cpu->gpr[GPR_RAX], cpu->fpu.fxsave + FX_FSW, 2);
    SOFT_NEXT(cpu, op);
}

static void x87_fninit(SoftCpu *cpu, const SoftOp *op)
{
    x87_initialize(&cpu->fpu);
    SOFT_NEXT(cpu, op);
}

static void x87_fnclex(SoftCpu *cpu, const SoftOp *op)
{
    SoftFpu *f = &cpu->fpu;
    fpu_set16(f, FX_FSW, fpu_u16(f, FX_FSW) & 0x7f00);
    SOFT_NEXT(cpu, op);
}

static void x87_nothing(SoftCpu *cpu, const SoftOp *op)
{
    SOFT_NEXT(cpu, op);
}

static void x87_fwait(SoftCpu *cpu, const SoftOp *op)
{
    cpu->op = op;
    if ((cpu->cr0 & (CR0_MP | CR0_TS)) == (CR0_MP | CR0_TS))
        soft_raise(cpu, EXC_NM);
    x87_check_pending(cpu);
    SOFT_NEXT(cpu, op);
}

/* ---- decoding --------------------------------------------------------------------------------- */

static SoftHandler control_handler(const SoftOp *op)
{
    unsigned digit = (op->modrm >> 3) & 7;
    if (op->opcode == 0xd9 && digit == 5)
        return x87_fldcw;
    if (op->opcode == 0xd9 && digit == 7)
        return x87_fnstcw;
    if (op->opcode == 0xdd && digit == 7)
        return x87_fnstsw;
    return x87_environment_handler(op);
}

static SoftHandler register_handler(const SoftOp *op)
{
    if (op->opcode == 0xdf && op->modrm == 0xe0)
        return x87_fnstsw_ax;
    if (op->opcode != 0xdb)
        return x87_reg;
    switch (op->modrm) {
    case 0xe0: /* FNENI, FNDISI, FNSETPM of the 8087 and 287 */
    case 0xe1:
    case 0xe4:
        return x87_nothing;
    case 0xe2:
        return x87_fnclex;
    case 0xe3:
        return x87_fninit;
    default:
        return x87_reg;
    }
}

static bool memory_decode(SoftOp *op)
{
    unsigned form = memory_form[op->opcode & 7][(op->modrm >> 3) & 7];
    if (form == 0)
        return false;
    if (((op->modrm >> 3) & 7) == 1 && (op->opcode & 1) && !soft_features.sse3)
        return false; /* FISTTP */
    if (form & C) {
        op->handler = control_handler(op);
        return true;
    }
    op->sub = form & 0x3f;
    op->handler = form & S ? x87_store : x87_load;
    return true;
}

bool x87_decode(SoftCpu *cpu, uint32_t mode, SoftOp *op)
{
    op->aux = NULL;
    memset(op->spare, 0, sizeof(op->spare));
    if (op->opcode == 0x9b) {
        op->handler = x87_fwait;
        return true;
    }
    if (op->flags & SOFT_OP_MEM) {
        if (!memory_decode(op))
            return false;
    } else {
        if (!x87_form_exists(op->opcode, op->modrm))
            return false;
        op->handler = register_handler(op);
    }
    if (mode & SOFT_MODE_FPU_OFF)
        op->handler = vector_op_nm;
    else if (op->handler == x87_reg || op->handler == x87_load || op->handler == x87_store)
        op->aux = x87_stub_get(cpu, op);
    return true;
}
