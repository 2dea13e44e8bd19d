/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * SYSCALL, SYSRET, SYSENTER, SYSEXIT (SDM vol. 2; APM vol. 3). Where Intel and AMD differ the vendor
 * that CPUID names decides: Intel has SYSCALL in 64-bit mode only and checks SYSRET's target, AMD
 * has SYSENTER in legacy mode only.
 */
#include "vcpu/soft/system-ops.h"
#include "vcpu/soft/vm.h"

#define DR6_BS 0x4000u

static VcpuSegment flat(uint16_t selector, uint32_t attr)
{
    return (VcpuSegment){.selector = selector, .limit = 0xffffffff, .attr = attr};
}

/* Flat segments: type, S, DPL, P, G; L or D for code, B for stacks. */
static VcpuSegment flat_code(uint16_t selector, unsigned cpl, bool wide)
{
    return flat(selector, 0x9b | cpl << SEG_ATTR_DPL_SHIFT | SEG_ATTR_G |
                              (wide ? SEG_ATTR_L : SEG_ATTR_DB));
}

static VcpuSegment flat_stack(uint16_t selector, unsigned cpl)
{
    return flat(selector, 0x93 | cpl << SEG_ATTR_DPL_SHIFT | SEG_ATTR_G | SEG_ATTR_DB);
}

static void enter(SoftCpu *cpu, uint16_t cs, uint16_t ss, unsigned cpl, bool wide, uint64_t rip)
{
    cpu->seg[SEG_CS] = flat_code(cs, cpl, wide);
    cpu->seg[SEG_SS] = flat_stack(ss, cpl);
    soft_set_cpl(cpu, cpl);
    cpu->rip = rip;
}

void soft_op_syscall(SoftCpu *cpu, const SoftOp *op)
{
    const SoftMsrs *m = &cpu->system->msr;
    bool code64 = cpu->mode & SOFT_MODE_CODE64;
    cpu->op = op;
    if (!(cpu->efer & EFER_SCE) || !(cpu->mode & SOFT_MODE_PROTECTED) ||
        (soft_limits.intel && !code64))
        soft_raise(cpu, EXC_UD);
    uint16_t cs = (uint16_t)(m->star >> 32) & 0xfffc;
    cpu->gpr[GPR_RCX] = soft_next_rip(cpu, op);
    if (cpu->mode & SOFT_MODE_LONG) {
        uint64_t flags = soft_rflags(cpu) & ~(uint64_t)FLAG_RF;
        cpu->gpr[11] = flags;
        enter(cpu, cs, (uint16_t)(cs + 8), 0, true, code64 ? m->lstar : m->cstar);
        soft_rflags_set(cpu, flags & ~m->fmask);
    } else {
        uint64_t flags = soft_rflags(cpu);
        enter(cpu, cs, (uint16_t)(cs + 8), 0, false, (uint32_t)m->star);
        soft_rflags_set(cpu, flags & ~(uint64_t)(FLAG_IF | FLAG_RF | FLAG_VM));
    }
    cpu->system->no_step = !(cpu->rflags & FLAG_TF);
}

void soft_op_sysret(SoftCpu *cpu, const SoftOp *op)
{
    const SoftMsrs *m = &cpu->system->msr;
    bool code64 = cpu->mode & SOFT_MODE_CODE64, wide = op->size == 8;
    cpu->op = op;
    if (!(cpu->efer & EFER_SCE) || !(cpu->mode & SOFT_MODE_PROTECTED) ||
        (soft_limits.intel && !code64))
        soft_raise(cpu, EXC_UD);
    soft_require_cpl0(cpu, op);
    uint64_t rip = wide ? cpu->gpr[GPR_RCX] : (uint32_t)cpu->gpr[GPR_RCX];
    if (soft_limits.intel && wide && !soft_canonical(rip))
        soft_raise_error(cpu, EXC_GP, 0);
    uint16_t base = (uint16_t)(m->star >> 48);
    uint64_t flags = cpu->gpr[11];
    bool long_mode = cpu->mode & SOFT_MODE_LONG;
    enter(cpu, (uint16_t)((base + (wide ? 16 : 0)) | 3), (uint16_t)((base + 8) | 3), 3, wide, rip);
    if (long_mode)
        soft_rflags_set(cpu, (flags & 0x3c7fd7) | 2);
    else
        soft_rflags_set(cpu, soft_rflags(cpu) | FLAG_IF);
    /* TF at its end traps, not TF at its beginning. */
    cpu->system->no_step = true;
    if (cpu->rflags & FLAG_TF)
        soft_debug_trap(cpu, DR6_BS);
}

void soft_op_sysenter(SoftCpu *cpu, const SoftOp *op)
{
    const SoftMsrs *m = &cpu->system->msr;
    bool long_mode = cpu->mode & SOFT_MODE_LONG;
    cpu->op = op;
    if (long_mode && !soft_limits.intel)
        soft_raise(cpu, EXC_UD);
    if (!(cpu->mode & SOFT_MODE_PROTECTED) || !(m->sysenter_cs & 0xfffc))
        soft_raise_error(cpu, EXC_GP, 0);
    uint16_t cs = (uint16_t)m->sysenter_cs & 0xfffc;
    cpu->rflags &= ~(uint64_t)(FLAG_VM | FLAG_IF | FLAG_RF);
    enter(cpu, cs, (uint16_t)(cs + 8), 0, long_mode,
          long_mode ? m->sysenter_eip : (uint32_t)m->sysenter_eip);
    cpu->gpr[GPR_RSP] = long_mode ? m->sysenter_esp : (uint32_t)m->sysenter_esp;
    soft_mode_update(cpu);
}

void soft_op_sysexit(SoftCpu *cpu, const SoftOp *op)
{
    const SoftMsrs *m = &cpu->system->msr;
    bool wide = op->size == 8;
    cpu->op = op;
    if ((cpu->mode & SOFT_MODE_LONG) && !soft_limits.intel)
        soft_raise(cpu, EXC_UD);
    if (!(cpu->mode & SOFT_MODE_PROTECTED) || !(m->sysenter_cs & 0xfffc) || cpu->cpl != 0)
        soft_raise_error(cpu, EXC_GP, 0);
    uint64_t rip = cpu->gpr[GPR_RDX], rsp = cpu->gpr[GPR_RCX];
    if (wide && (!soft_canonical(rip) || !soft_canonical(rsp)))
        soft_raise_error(cpu, EXC_GP, 0);
    unsigned base = (unsigned)m->sysenter_cs & 0xfffc;
    unsigned cs = base + (wide ? 32 : 16);
    enter(cpu, (uint16_t)(cs | 3), (uint16_t)((cs + 8) | 3), 3, wide, wide ? rip : (uint32_t)rip);
    cpu->gpr[GPR_RSP] = wide ? rsp : (uint32_t)rsp;
    soft_mode_update(cpu);
}
