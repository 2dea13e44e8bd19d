/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* System instructions that belong to no larger group, and the operands of all of them. */
#include <x86intrin.h>

#include "vcpu/soft/system-ops.h"
#include "vcpu/soft/vm.h"

/* ---- operands ---- */

uint64_t soft_rm_read(SoftCpu *cpu, const SoftOp *op, unsigned size)
{
    if (!(op->flags & SOFT_OP_MEM)) {
        uint64_t v = cpu->gpr[op->rm];
        return size == 8 ? v : v & ((1ull << (size * 8)) - 1);
    }
    uint64_t linear = soft_operand(cpu, op, size, SOFT_READ);
    switch (size) {
    case 1:
        return soft_load8(cpu, linear);
    case 2:
        return soft_load16(cpu, linear);
    case 4:
        return soft_load32(cpu, linear);
    default:
        return soft_load64(cpu, linear);
    }
}

void soft_gpr_write(SoftCpu *cpu, unsigned reg, unsigned size, uint64_t value)
{
    if (size == 2)
        cpu->gpr[reg] = (cpu->gpr[reg] & ~(uint64_t)0xffff) | (value & 0xffff);
    else
        cpu->gpr[reg] = size == 4 ? (uint32_t)value : value;
}

void soft_rm_write(SoftCpu *cpu, const SoftOp *op, unsigned size, uint64_t value)
{
    if (!(op->flags & SOFT_OP_MEM)) {
        soft_gpr_write(cpu, op->rm, size, value);
        return;
    }
    uint64_t linear = soft_operand(cpu, op, size, SOFT_WRITE);
    if (size == 2)
        soft_store16(cpu, linear, (uint16_t)value);
    else if (size == 4)
        soft_store32(cpu, linear, (uint32_t)value);
    else
        soft_store64(cpu, linear, value);
}

void soft_require_cpl0(SoftCpu *cpu, const SoftOp *op)
{
    cpu->op = op;
    if (cpu->cpl != 0)
        soft_raise_error(cpu, EXC_GP, 0);
}

void soft_shadow_begin(SoftCpu *cpu, bool mov_ss)
{
    SoftSystem *s = cpu->system;
    if (cpu->shadow) /* only the first of several in a row holds interrupts off */
        return;
    cpu->shadow = true;
    s->shadow_new = true;
    s->shadow_ss = mov_ss;
    soft_mode_update(cpu);
    soft_pend(cpu, SOFT_PENDING_LOOP);
}

static void advance(SoftCpu *cpu, const SoftOp *op)
{
    cpu->rip = soft_next_rip(cpu, op);
}

_Noreturn static void undefined(SoftCpu *cpu, const SoftOp *op)
{
    cpu->op = op;
    soft_raise(cpu, EXC_UD);
}

/* ---- halting and interrupts ---- */

void soft_op_hlt(SoftCpu *cpu, const SoftOp *op)
{
    soft_require_cpl0(cpu, op);
    advance(cpu, op);
    cpu->activity = VCPU_HALTED;
    soft_pend(cpu, SOFT_PENDING_LOOP);
}

/* CLI and STI below the I/O privilege level work on VIF where VME or PVI says so. */
static bool virtual_if(SoftCpu *cpu)
{
    if (!(cpu->mode & SOFT_MODE_PROTECTED) || cpu->cpl <= soft_iopl(cpu))
        return false;
    uint64_t wanted = cpu->mode & SOFT_MODE_VM86 ? CR4_VME : CR4_PVI;
    if (!(cpu->cr4 & wanted) || cpu->cpl != 3)
        soft_raise_error(cpu, EXC_GP, 0);
    return true;
}

void soft_op_cli(SoftCpu *cpu, const SoftOp *op)
{
    cpu->op = op;
    if (virtual_if(cpu))
        cpu->rflags &= ~(uint64_t)FLAG_VIF;
    else
        cpu->rflags &= ~(uint64_t)FLAG_IF;
    advance(cpu, op);
}

void soft_op_sti(SoftCpu *cpu, const SoftOp *op)
{
    cpu->op = op;
    if (virtual_if(cpu)) {
        if (cpu->rflags & FLAG_VIP)
            soft_raise_error(cpu, EXC_GP, 0);
        cpu->rflags |= FLAG_VIF;
    } else if (!(cpu->rflags & FLAG_IF)) {
        cpu->rflags |= FLAG_IF;
        soft_shadow_begin(cpu, false);
    }
    advance(cpu, op);
}

void soft_op_monitor(SoftCpu *cpu, const SoftOp *op)
{
    undefined(cpu, op); /* CPUID does not offer MONITOR */
}

void soft_op_mwait(SoftCpu *cpu, const SoftOp *op)
{
    undefined(cpu, op);
}

void soft_op_rsm(SoftCpu *cpu, const SoftOp *op)
{
    undefined(cpu, op); /* there is no system management mode to return from */
}

/* ---- KVM's paravirtual calls (Linux, Documentation/virt/kvm/x86/hypercalls.rst) ---- */

#define HYPERCALL_SEND_IPI 10
#define HYPERCALL_EPERM    (-1)
#define HYPERCALL_EINVAL   (-22)
#define HYPERCALL_ENOSYS   (-1000)
#define ICR_DESTINATION    0x000c0800u /* shorthand and logical mode: neither fits the call */

/* Bits of @set name APIC ids from @first on; returns how many of them there are. */
static unsigned send_ipis(SoftCpu *cpu, uint64_t set, uint64_t first, uint32_t icr)
{
    const VcpuBus *bus = cpu->vcpu.vm->bus;
    unsigned sent = 0;
    for (; set; set &= set - 1) {
        uint64_t id = first + (unsigned)__builtin_ctzll(set);
        sent += id <= UINT32_MAX &&
                bus->apic_send(bus->opaque, cpu->vcpu.index, (uint32_t)id, icr);
    }
    return sent;
}

/* RBX and RCX: a set of destinations, RDX: the APIC id of its bit 0, RSI: the ICR's low half. */
static int64_t hypercall_send_ipi(SoftCpu *cpu)
{
    bool wide = cpu->mode & SOFT_MODE_CODE64;
    uint64_t mask = wide ? UINT64_MAX : UINT32_MAX;
    uint64_t low = cpu->gpr[GPR_RBX] & mask, high = cpu->gpr[GPR_RCX] & mask;
    uint64_t first = (uint32_t)cpu->gpr[GPR_RDX];
    uint32_t icr = (uint32_t)cpu->gpr[GPR_RSI];
    if (icr & ICR_DESTINATION)
        return HYPERCALL_EINVAL;
    soft_sync_leave(cpu);
    unsigned sent = send_ipis(cpu, low, first, icr) +
                    send_ipis(cpu, high, first + (wide ? 64 : 32), icr);
    soft_sync_enter(cpu);
    return sent;
}

void soft_op_vmcall(SoftCpu *cpu, const SoftOp *op)
{
    int64_t result = HYPERCALL_ENOSYS;
    cpu->op = op;
    if (cpu->cpl != 0)
        result = HYPERCALL_EPERM;
    else if ((uint32_t)cpu->gpr[GPR_RAX] == HYPERCALL_SEND_IPI && cpu->vcpu.vm->bus->apic_send)
        result = hypercall_send_ipi(cpu);
    soft_gpr_write(cpu, GPR_RAX, cpu->mode & SOFT_MODE_CODE64 ? 8 : 4, (uint64_t)result);
    advance(cpu, op);
}

/* ---- caches and the TLB ---- */

void soft_op_invd(SoftCpu *cpu, const SoftOp *op)
{
    soft_require_cpl0(cpu, op);
    advance(cpu, op);
}

void soft_op_wbinvd(SoftCpu *cpu, const SoftOp *op)
{
    soft_require_cpl0(cpu, op);
    advance(cpu, op);
}

void soft_op_invlpg(SoftCpu *cpu, const SoftOp *op)
{
    soft_require_cpl0(cpu, op);
    uint64_t linear = soft_offset(cpu, op);
    if (!(cpu->mode & SOFT_MODE_CODE64))
        linear = (uint32_t)(linear + cpu->seg[op->seg].base);
    else if (op->seg >= SEG_FS)
        linear += cpu->seg[op->seg].base;
    if (!(cpu->mode & SOFT_MODE_LONG) || soft_canonical(linear))
        soft_tlb_flush_page(cpu, linear);
    advance(cpu, op);
}

/* SDM vol. 2 INVPCID: the descriptor is 16 bytes, PCID in bits 11:0 and the address above bit 64. */
void soft_op_invpcid(SoftCpu *cpu, const SoftOp *op)
{
    soft_require_cpl0(cpu, op);
    uint64_t type = cpu->gpr[op->reg], d[2];
    if (!(cpu->mode & SOFT_MODE_CODE64))
        type = (uint32_t)type;
    soft_load_bytes(cpu, soft_operand(cpu, op, 16, SOFT_READ), d, 16);
    bool bad = type > 3 || d[0] >> 12;
    if (type < 2 && !(cpu->cr4 & CR4_PCIDE) && (d[0] & 0xfff))
        bad = true;
    if (type == 0 && (cpu->mode & SOFT_MODE_LONG) && !soft_canonical(d[1]))
        bad = true;
    if (bad)
        soft_raise_error(cpu, EXC_GP, 0);
    if (type == 0)
        soft_tlb_flush_pcid_page(cpu, d[0] & 0xfff, d[1]);
    else if (type == 1)
        soft_tlb_flush_pcid(cpu, d[0] & 0xfff);
    else
        soft_tlb_flush(cpu, true); /* type 3 may keep global pages, but need not */
    advance(cpu, op);
}

/* ---- time and identification ---- */

uint64_t soft_tsc(const SoftCpu *cpu)
{
    return __rdtsc() + (uint64_t)cpu->tsc_offset;
}

static void put_edx_eax(SoftCpu *cpu, uint64_t v)
{
    cpu->gpr[GPR_RAX] = (uint32_t)v;
    cpu->gpr[GPR_RDX] = v >> 32;
}

static void rdtsc(SoftCpu *cpu, const SoftOp *op)
{
    cpu->op = op;
    if ((cpu->cr4 & CR4_TSD) && cpu->cpl != 0)
        soft_raise_error(cpu, EXC_GP, 0);
    _mm_lfence(); /* or the host reads it ahead of what the guest did before */
    put_edx_eax(cpu, soft_observed_time(cpu, soft_tsc(cpu)));
    advance(cpu, op);
}

void soft_op_rdtsc(SoftCpu *cpu, const SoftOp *op)
{
    rdtsc(cpu, op);
}

void soft_op_rdtscp(SoftCpu *cpu, const SoftOp *op)
{
    rdtsc(cpu, op);
    cpu->gpr[GPR_RCX] = (uint32_t)cpu->system->msr.tsc_aux;
}

void soft_op_rdpid(SoftCpu *cpu, const SoftOp *op)
{
    cpu->op = op;
    soft_gpr_write(cpu, op->rm, 8, (uint32_t)cpu->system->msr.tsc_aux);
    advance(cpu, op);
}

/* No performance counters are offered, so every index is invalid. */
void soft_op_rdpmc(SoftCpu *cpu, const SoftOp *op)
{
    cpu->op = op;
    soft_raise_error(cpu, EXC_GP, 0);
}

void soft_op_cpuid(SoftCpu *cpu, const SoftOp *op)
{
    cpu->op = op;
    SoftCpuid c = soft_cpuid(cpu, (uint32_t)cpu->gpr[GPR_RAX], (uint32_t)cpu->gpr[GPR_RCX]);
    cpu->gpr[GPR_RAX] = c.eax;
    cpu->gpr[GPR_RBX] = c.ebx;
    cpu->gpr[GPR_RCX] = c.ecx;
    cpu->gpr[GPR_RDX] = c.edx;
    advance(cpu, op);
}

/* ---- MSRs and extended control registers ---- */

void soft_op_rdmsr(SoftCpu *cpu, const SoftOp *op)
{
    soft_require_cpl0(cpu, op);
    uint64_t v;
    if (!soft_msr_read(cpu, (uint32_t)cpu->gpr[GPR_RCX], &v))
        soft_raise_error(cpu, EXC_GP, 0);
    put_edx_eax(cpu, v);
    advance(cpu, op);
}

void soft_op_wrmsr(SoftCpu *cpu, const SoftOp *op)
{
    soft_require_cpl0(cpu, op);
    uint64_t v = (uint32_t)cpu->gpr[GPR_RAX] | cpu->gpr[GPR_RDX] << 32;
    if (!soft_msr_write(cpu, (uint32_t)cpu->gpr[GPR_RCX], v))
        soft_raise_error(cpu, EXC_GP, 0);
    advance(cpu, op);
}

void soft_op_xgetbv(SoftCpu *cpu, const SoftOp *op)
{
    cpu->op = op;
    if (!(cpu->cr4 & CR4_OSXSAVE))
        soft_raise(cpu, EXC_UD);
    uint32_t index = (uint32_t)cpu->gpr[GPR_RCX];
    if (index == 0)
        put_edx_eax(cpu, cpu->xcr0);
    else if (index == 1 && soft_features.xgetbv1)
        put_edx_eax(cpu, cpu->xcr0 & cpu->fpu.xinuse);
    else
        soft_raise_error(cpu, EXC_GP, 0);
    advance(cpu, op);
}

void soft_op_xsetbv(SoftCpu *cpu, const SoftOp *op)
{
    cpu->op = op;
    if (!(cpu->cr4 & CR4_OSXSAVE))
        soft_raise(cpu, EXC_UD);
    soft_require_cpl0(cpu, op);
    uint64_t v = (uint32_t)cpu->gpr[GPR_RAX] | cpu->gpr[GPR_RDX] << 32;
    uint64_t offered = soft_xcr0_offered();
    if ((uint32_t)cpu->gpr[GPR_RCX] != 0 || (v & ~offered) || !(v & 1) || ((v & 4) && !(v & 2)))
        soft_raise_error(cpu, EXC_GP, 0);
    cpu->xcr0 = v;
    soft_mode_update(cpu);
    advance(cpu, op);
}

/* ---- protection keys ---- */

static void check_pkru(SoftCpu *cpu, const SoftOp *op)
{
    cpu->op = op;
    if (!(cpu->cr4 & CR4_PKE))
        soft_raise(cpu, EXC_UD);
    if ((uint32_t)cpu->gpr[GPR_RCX])
        soft_raise_error(cpu, EXC_GP, 0);
}

void soft_op_rdpkru(SoftCpu *cpu, const SoftOp *op)
{
    check_pkru(cpu, op);
    put_edx_eax(cpu, cpu->system->pkru);
    advance(cpu, op);
}

void soft_op_wrpkru(SoftCpu *cpu, const SoftOp *op)
{
    check_pkru(cpu, op);
    if ((uint32_t)cpu->gpr[GPR_RDX])
        soft_raise_error(cpu, EXC_GP, 0);
    soft_keys_set(cpu, false, (uint32_t)cpu->gpr[GPR_RAX]);
    advance(cpu, op);
}

/* ---- segment bases and access to user pages ---- */

void soft_op_swapgs(SoftCpu *cpu, const SoftOp *op)
{
    if (!(cpu->mode & SOFT_MODE_CODE64))
        undefined(cpu, op);
    soft_require_cpl0(cpu, op);
    uint64_t base = cpu->seg[SEG_GS].base;
    cpu->seg[SEG_GS].base = cpu->system->msr.kernel_gs_base;
    cpu->system->msr.kernel_gs_base = base;
    advance(cpu, op);
}

static void base_read(SoftCpu *cpu, const SoftOp *op, unsigned seg)
{
    if (!(cpu->mode & SOFT_MODE_CODE64) || !(cpu->cr4 & CR4_FSGSBASE))
        undefined(cpu, op);
    soft_gpr_write(cpu, op->rm, op->size, cpu->seg[seg].base);
    advance(cpu, op);
}

static void base_write(SoftCpu *cpu, const SoftOp *op, unsigned seg)
{
    if (!(cpu->mode & SOFT_MODE_CODE64) || !(cpu->cr4 & CR4_FSGSBASE))
        undefined(cpu, op);
    cpu->op = op;
    uint64_t base = op->size == 8 ? cpu->gpr[op->rm] : (uint32_t)cpu->gpr[op->rm];
    if (!soft_canonical(base))
        soft_raise_error(cpu, EXC_GP, 0);
    cpu->seg[seg].base = base;
    advance(cpu, op);
}

void soft_op_rdfsbase(SoftCpu *cpu, const SoftOp *op)
{
    base_read(cpu, op, SEG_FS);
}

void soft_op_rdgsbase(SoftCpu *cpu, const SoftOp *op)
{
    base_read(cpu, op, SEG_GS);
}

void soft_op_wrfsbase(SoftCpu *cpu, const SoftOp *op)
{
    base_write(cpu, op, SEG_FS);
}

void soft_op_wrgsbase(SoftCpu *cpu, const SoftOp *op)
{
    base_write(cpu, op, SEG_GS);
}

static void ac_set(SoftCpu *cpu, const SoftOp *op, uint64_t ac)
{
    if (cpu->cpl != 0)
        undefined(cpu, op);
    cpu->rflags = (cpu->rflags & ~(uint64_t)FLAG_AC) | ac;
    soft_mode_update(cpu);
    advance(cpu, op);
}

void soft_op_clac(SoftCpu *cpu, const SoftOp *op)
{
    ac_set(cpu, op, 0);
}

void soft_op_stac(SoftCpu *cpu, const SoftOp *op)
{
    ac_set(cpu, op, FLAG_AC);
}
