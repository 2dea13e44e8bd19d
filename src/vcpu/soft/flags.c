/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* RFLAGS as a whole, and the execution mode that follows from the control registers. */
#include "vcpu/soft/cpu.h"
#include "vcpu/soft/vm.h"

uint64_t soft_rflags(const SoftCpu *cpu)
{
    uint64_t f = cpu->rflags & ~(uint64_t)FLAG_ARITH;
    f |= (cpu->arith >> 8) & (FLAG_CF | FLAG_PF | FLAG_AF | FLAG_ZF | FLAG_SF);
    if (cpu->arith & ARITH_OF)
        f |= FLAG_OF;
    return f | 2;
}

void soft_rflags_set(SoftCpu *cpu, uint64_t rflags)
{
    cpu->rflags = (rflags & ~(uint64_t)FLAG_ARITH) | 2;
    cpu->arith = (uint32_t)(rflags & (FLAG_CF | FLAG_PF | FLAG_AF | FLAG_ZF | FLAG_SF)) << 8;
    if (rflags & FLAG_OF)
        cpu->arith |= ARITH_OF;
    soft_mode_update(cpu);
}

/* Base 0, limit 4 GiB, and a type that every access of its kind passes. */
static bool segment_flat(const VcpuSegment *s, bool code)
{
    if (s->base != 0 || s->limit != 0xffffffff || (s->attr & SEG_ATTR_UNUSABLE))
        return false;
    if (!(s->attr & SEG_ATTR_P))
        return false;
    return code ? (s->attr & 0xa) == 0xa : (s->attr & 0xe) == 0x2;
}

static uint32_t legacy_mode(const SoftCpu *cpu)
{
    uint32_t mode = 0;
    if (cpu->seg[SEG_CS].attr & SEG_ATTR_DB)
        mode |= SOFT_MODE_CODE32;
    if (cpu->seg[SEG_SS].attr & SEG_ATTR_DB)
        mode |= SOFT_MODE_STACK32;
    if (segment_flat(&cpu->seg[SEG_CS], true) && segment_flat(&cpu->seg[SEG_SS], false) &&
        segment_flat(&cpu->seg[SEG_DS], false) && segment_flat(&cpu->seg[SEG_ES], false))
        mode |= SOFT_MODE_FLAT;
    return mode;
}

static uint32_t fpu_mode(const SoftCpu *cpu)
{
    uint32_t mode = 0;
    if (cpu->cr0 & (CR0_EM | CR0_TS))
        mode |= SOFT_MODE_FPU_OFF;
    if (!(cpu->cr4 & CR4_OSFXSR) || (cpu->cr0 & CR0_EM))
        mode |= SOFT_MODE_SSE_OFF;
    if (!(cpu->cr4 & CR4_OSXSAVE) || (cpu->xcr0 & 6) != 6)
        mode |= SOFT_MODE_AVX_OFF;
    if (cpu->cr0 & CR0_TS)
        mode |= SOFT_MODE_TS;
    return mode;
}

void soft_mode_update(SoftCpu *cpu)
{
    uint32_t mode = fpu_mode(cpu);
    if (cpu->efer & EFER_LMA)
        mode |= SOFT_MODE_LONG;
    if ((cpu->efer & EFER_LMA) && (cpu->seg[SEG_CS].attr & SEG_ATTR_L))
        mode |= SOFT_MODE_CODE64 | (legacy_mode(cpu) & SOFT_MODE_STACK32);
    else
        mode |= legacy_mode(cpu);
    if (cpu->cr0 & CR0_PE)
        mode |= SOFT_MODE_PROTECTED;
    if ((cpu->cr0 & CR0_PE) && (cpu->rflags & FLAG_VM))
        mode |= SOFT_MODE_VM86;
    if (cpu->cpl == 3)
        mode |= SOFT_MODE_USER;
    if ((cpu->rflags & FLAG_TF) || cpu->shadow || cpu->system->code_breakpoints ||
        cpu->system->single_once || cpu->system->debugger.step)
        mode |= SOFT_MODE_SINGLE;
    /* Blocks hold breakpoints only where a linear address follows from RIP and the mode. */
    if (cpu->system->debugger.code && !(mode & (SOFT_MODE_CODE64 | SOFT_MODE_FLAT)))
        mode |= SOFT_MODE_SINGLE;
    /* The run loop must see the change before the next instruction. */
    if ((mode & ~cpu->mode & SOFT_MODE_SINGLE) ||
        ((cpu->rflags & FLAG_IF) && cpu->system->interrupt_waiting))
        soft_pend(cpu, SOFT_PENDING_LOOP);
    cpu->mode = mode;

    if (cpu->cpl == 3)
        cpu->mmu = (cpu->cr0 & CR0_AM) && (cpu->rflags & FLAG_AC) ? SOFT_MMU_CHECKED : SOFT_MMU_USER;
    else
        cpu->mmu = soft_supervisor_mmu(cpu, cpu->rflags & FLAG_AC);
}
