/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Between the engine-independent state of a vCPU and the software CPU's own; INIT. */
#include "base/error.h"
#include <inttypes.h>
#include <stdlib.h>
#include <x86intrin.h>

#include "vcpu/soft/engine.h"
#include "vcpu/soft/vm.h"

bool soft_get_state(Vcpu *vcpu, VcpuState *state, GError **err)
{
    SoftCpu *cpu = (SoftCpu *)vcpu;
    const SoftSystem *s = cpu->system;
    const VcpuBus *bus = vcpu->vm->bus;
    *state = (VcpuState){
        .rip = cpu->rip, .rflags = soft_rflags(cpu), .ldtr = cpu->ldtr, .tr = cpu->tr,
        .gdtr = cpu->gdtr, .idtr = cpu->idtr, .cr0 = cpu->cr0, .cr2 = cpu->cr2, .cr3 = cpu->cr3,
        .cr4 = cpu->cr4, .efer = cpu->efer, .xcr0 = cpu->xcr0, .activity = cpu->activity,
        .interrupt_shadow = cpu->shadow, .nmi_masked = cpu->nmi_masked,
        .exception_pending = s->exception_pending, .exception_vector = s->exception_vector,
        .exception_has_error = s->exception_has_error, .exception_error = s->exception_error,
        .tsc = soft_tsc(cpu),
    };
    memcpy(state->gpr, cpu->gpr, sizeof(state->gpr));
    memcpy(state->seg, cpu->seg, sizeof(state->seg));
    memcpy(state->dr, cpu->dr, sizeof(state->dr));
    state->cr8 = bus->cr8_read ? bus->cr8_read(bus->opaque, vcpu->index) : 0;
    unsigned n;
    const uint32_t *list = soft_msr_list(&n);
    for (unsigned i = 0; i < n && state->n_msr < VCPU_MSR_MAX; i++) {
        VcpuMsr *m = &state->msr[state->n_msr];
        m->index = list[i];
        if (soft_msr_read(cpu, list[i], &m->value))
            state->n_msr++;
    }
    soft_fpu_to_xsave(cpu, state->xsave);
    return true;
}

/* ---- validation ---- */

static bool segments_valid(const VcpuState *st, GError **err)
{
    for (unsigned i = 0; i < SEG_COUNT; i++) {
        const VcpuSegment *s = &st->seg[i];
        if (s->attr & ~0x1f0ffu)
            return lodge_fail(err, LODGE_ERROR_INVALID, "segment %u has attributes %#x", i, s->attr);
    }
    const VcpuSegment *cs = &st->seg[SEG_CS];
    bool protected = (st->cr0 & CR0_PE) && !(st->rflags & FLAG_VM);
    if (protected && ((cs->attr & SEG_ATTR_UNUSABLE) || (cs->attr & 0x18) != 0x18))
        return lodge_fail(err, LODGE_ERROR_INVALID, "CS attributes %#x are no code segment's",
                          cs->attr);
    if ((cs->attr & SEG_ATTR_L) && (cs->attr & SEG_ATTR_DB) && (st->efer & EFER_LMA))
        return lodge_fail(err, LODGE_ERROR_INVALID, "CS has both L and D set");
    return true;
}

static bool state_valid(const VcpuState *st, GError **err)
{
    if (!soft_cr0_valid(st->cr0))
        return lodge_fail(err, LODGE_ERROR_INVALID, "CR0 value %#" PRIx64 " is impossible", st->cr0);
    if (!soft_cr4_valid(st->cr4))
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "CR4 value %#" PRIx64
                          " has bits that this CPU lacks", st->cr4);
    if (st->efer & ~(soft_limits.efer_allowed | EFER_LMA))
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "EFER value %#" PRIx64
                          " has bits that this CPU lacks", st->efer);
    bool lma = (st->cr0 & CR0_PG) && (st->efer & EFER_LME);
    if (lma != !!(st->efer & EFER_LMA) || (lma && !(st->cr4 & CR4_PAE)))
        return lodge_fail(err, LODGE_ERROR_INVALID, "EFER %#" PRIx64 ", CR0 %#" PRIx64 " and CR4 %#"
                          PRIx64 " contradict each other", st->efer, st->cr0, st->cr4);
    if (st->cr3 >> soft_limits.physical_bits)
        return lodge_fail(err, LODGE_ERROR_INVALID, "CR3 value %#" PRIx64 " is impossible", st->cr3);
    uint64_t xcr0 = soft_xcr0_offered();
    if (!(st->xcr0 & 1) || (st->xcr0 & ~xcr0) || (st->xcr0 & 6) == 4)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "XCR0 value %#" PRIx64
                          " is not one of this CPU's", st->xcr0);
    if (st->rflags & ~0x3f7fd7ull)
        return lodge_fail(err, LODGE_ERROR_INVALID, "RFLAGS value %#" PRIx64 " is impossible",
                          st->rflags);
    if ((st->rflags & FLAG_VM) && (!(st->cr0 & CR0_PE) || lma))
        return lodge_fail(err, LODGE_ERROR_INVALID, "virtual-8086 mode outside protected mode");
    if (st->activity > VCPU_WAIT_FOR_SIPI)
        return lodge_fail(err, LODGE_ERROR_INVALID, "activity state %d does not exist",
                          (int)st->activity);
    if (st->n_msr > VCPU_MSR_MAX || (st->exception_pending && st->exception_vector > 31))
        return lodge_fail(err, LODGE_ERROR_INVALID, "%u MSRs, exception %u: out of range",
                          st->n_msr, st->exception_vector);
    return segments_valid(st, err);
}

/* ---- setting ---- */

static unsigned cpl_of(const VcpuState *st)
{
    if (!(st->cr0 & CR0_PE))
        return 0;
    if (st->rflags & FLAG_VM)
        return 3;
    return st->seg[SEG_SS].attr & SEG_ATTR_UNUSABLE
               ? st->seg[SEG_CS].selector & 3
               : st->seg[SEG_SS].attr >> SEG_ATTR_DPL_SHIFT & 3;
}

static void apply(SoftCpu *cpu, const VcpuState *st)
{
    SoftSystem *s = cpu->system;
    memcpy(cpu->gpr, st->gpr, sizeof(cpu->gpr));
    memcpy(cpu->seg, st->seg, sizeof(cpu->seg));
    memcpy(cpu->dr, st->dr, sizeof(cpu->dr));
    cpu->rip = st->rip;
    cpu->ldtr = st->ldtr;
    cpu->tr = st->tr;
    cpu->gdtr = st->gdtr;
    cpu->idtr = st->idtr;
    cpu->cr0 = st->cr0;
    cpu->cr2 = st->cr2;
    cpu->cr3 = st->cr3;
    cpu->cr4 = st->cr4;
    cpu->efer = st->efer;
    cpu->xcr0 = st->xcr0;
    cpu->activity = st->activity;
    cpu->shadow = st->interrupt_shadow;
    cpu->nmi_masked = st->nmi_masked;
    cpu->cpl = (uint8_t)cpl_of(st);
    s->exception_pending = st->exception_pending;
    s->exception_vector = st->exception_vector;
    s->exception_has_error = st->exception_has_error;
    s->exception_error = st->exception_error;
    s->delivering = s->rip_is_next = s->triple = s->single_once = false;
    s->nmi_waiting = 0;
    s->ext = s->debug_hits = 0;
    s->debugger.hit = false;
    s->interrupt_waiting = true; /* whoever set the state may have set the APIC's too */
    soft_tlb_reset(cpu);
    soft_rflags_set(cpu, st->rflags);
    soft_debug_update(cpu);
}

/*
 * vCPUs are set one after the other, each with its TSC of that moment: those that come out within a
 * second of each other are meant to tick alike.
 */
static void tsc_restore(SoftCpu *cpu, uint64_t tsc)
{
    SoftVm *vm = soft_vm(cpu);
    int64_t adjust = (int64_t)cpu->system->msr.tsc_adjust;
    int64_t offset = (int64_t)(tsc - __rdtsc()) - adjust;
    if (llabs(offset - vm->tsc_offset) > (int64_t)vcpu_host_tsc_khz() * 1000)
        vm->tsc_offset = offset;
    cpu->tsc_offset = vm->tsc_offset + adjust;
    soft_pvclock_system_time(cpu);
}

bool soft_set_state(Vcpu *vcpu, const VcpuState *st, GError **err)
{
    SoftCpu *cpu = (SoftCpu *)vcpu;
    const VcpuBus *bus = vcpu->vm->bus;
    if (!state_valid(st, err))
        return false;
    for (unsigned i = 0; i < st->n_msr; i++) {
        uint64_t ignored;
        if (!soft_msr_read(cpu, st->msr[i].index, &ignored))
            return lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "this CPU has no MSR %#x",
                              st->msr[i].index);
    }
    apply(cpu, st);
    if (bus->cr8_write)
        bus->cr8_write(bus->opaque, vcpu->index, st->cr8 & 15);
    soft_msr_reset(cpu);
    for (unsigned i = 0; i < st->n_msr; i++)
        if (!soft_msr_restore(cpu, st->msr[i].index, st->msr[i].value))
            return lodge_fail(err, LODGE_ERROR_INVALID, "MSR %#x cannot have the value %#" PRIx64,
                              st->msr[i].index, st->msr[i].value);
    tsc_restore(cpu, st->tsc);
    soft_fpu_from_xsave(cpu, st->xsave);
    return true;
}

/* SDM vol. 3 table 10-1: what INIT leaves alone is the x87 and vector state, MSRs and XCR0. */
void soft_reset_init(SoftCpu *cpu)
{
    VcpuState *st = g_new(VcpuState, 1);
    vcpu_state_reset(st, cpu->vcpu.index);
    st->cr0 = 0x10 | (cpu->cr0 & (CR0_CD | CR0_NW));
    st->xcr0 = cpu->xcr0;
    apply(cpu, st);
    cpu->system->interrupt_waiting = false;
    g_free(st);
}
