/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Model-specific registers (SDM vol. 4; APM vol. 2 appendix A). One that is not here raises #GP, as
 * on hardware; those of the local APIC are the bus's.
 */
#include "vcpu/soft/vm.h"

#define MSR_TSC                  0x10u
#define MSR_PLATFORM_ID          0x17u
#define MSR_APIC_BASE            0x1bu
#define MSR_FEATURE_CONTROL      0x3au
#define MSR_TSC_ADJUST           0x3bu
#define MSR_UCODE_WRITE          0x79u
#define MSR_UCODE_REV            0x8bu
#define MSR_PLATFORM_INFO        0xceu
#define MSR_MTRR_CAP             0xfeu
#define MSR_SYSENTER_CS          0x174u
#define MSR_SYSENTER_ESP         0x175u
#define MSR_SYSENTER_EIP         0x176u
#define MSR_MCG_CAP              0x179u
#define MSR_MCG_STATUS           0x17au
#define MSR_MCG_CTL              0x17bu
#define MSR_MISC_ENABLE          0x1a0u
#define MSR_DEBUGCTL             0x1d9u
#define MSR_MTRR_VARIABLE        0x200u
#define MSR_MTRR_FIX64K          0x250u
#define MSR_MTRR_FIX16K_80000    0x258u
#define MSR_MTRR_FIX16K_A0000    0x259u
#define MSR_MTRR_FIX4K           0x268u
#define MSR_PAT                  0x277u
#define MSR_MTRR_DEF_TYPE        0x2ffu
#define MSR_TSC_DEADLINE         0x6e0u
#define MSR_PKRS                 0x6e1u
#define MSR_X2APIC_FIRST         0x800u
#define MSR_X2APIC_LAST          0x8ffu
#define MSR_KVM_WALL_CLOCK       0x4b564d00u
#define MSR_KVM_SYSTEM_TIME      0x4b564d01u
#define MSR_EFER                 0xc0000080u
#define MSR_STAR                 0xc0000081u
#define MSR_LSTAR                0xc0000082u
#define MSR_CSTAR                0xc0000083u
#define MSR_FMASK                0xc0000084u
#define MSR_FS_BASE              0xc0000100u
#define MSR_GS_BASE              0xc0000101u
#define MSR_KERNEL_GS_BASE       0xc0000102u
#define MSR_TSC_AUX              0xc0000103u
#define MSR_AMD_PERFORMANCE      0xc0010000u /* four event selectors, then four counters */
#define MSR_AMD_SYSCFG           0xc0010010u
#define MSR_AMD_HWCR             0xc0010015u
#define MSR_AMD_PATCH_LOADER     0xc0010020u
#define MSR_AMD_NB_CFG           0xc001001fu
#define MSR_AMD_INT_PENDING      0xc0010055u
#define MSR_AMD_LS_CFG           0xc0011020u
#define MSR_AMD_IC_CFG           0xc0011021u
#define MSR_AMD_DC_CFG           0xc0011022u
#define MSR_AMD_BU_CFG           0xc0011023u
#define MSR_AMD_DE_CFG           0xc0011029u
#define MSR_AMD_BU_CFG2          0xc001102au

#define HWCR_TSC_FREQ_SEL (1ull << 24)
#define DE_CFG_LFENCE_SERIALIZE 2u
#define MTRR_CAP_VALUE (SOFT_MTRR_VARIABLE | 0x500u) /* fixed ranges, write combining */

/* Registers of SoftMsrs that hold whatever was written. */
typedef struct Plain {
    uint32_t index;
    uint16_t offset;
    bool canonical; /* #GP for an address that is not */
} Plain;

#define PLAIN(index, member, canonical) {index, offsetof(SoftMsrs, member), canonical}
static const Plain plain[] = {
    PLAIN(MSR_SYSENTER_CS, sysenter_cs, false), PLAIN(MSR_SYSENTER_ESP, sysenter_esp, true),
    PLAIN(MSR_SYSENTER_EIP, sysenter_eip, true), PLAIN(MSR_STAR, star, false),
    PLAIN(MSR_LSTAR, lstar, true),               PLAIN(MSR_CSTAR, cstar, true),
    PLAIN(MSR_KERNEL_GS_BASE, kernel_gs_base, true),
    PLAIN(MSR_MCG_STATUS, mcg_status, false),    PLAIN(MSR_MISC_ENABLE, misc_enable, false),
};

static uint64_t *plain_find(SoftCpu *cpu, uint32_t index, bool *canonical)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(plain); i++)
        if (plain[i].index == index) {
            *canonical = plain[i].canonical;
            return (uint64_t *)((char *)&cpu->system->msr + plain[i].offset);
        }
    return NULL;
}

/* ---- memory types ---- */

static bool type_valid(unsigned type)
{
    return type == 0 || type == 1 || (type >= 4 && type <= 6);
}

/* Eight memory types; PAT has UC- (7) in addition. */
static bool types_valid(uint64_t v, bool pat)
{
    for (unsigned i = 0; i < 8; i++, v >>= 8)
        if (!type_valid(v & 0xff) && !(pat && (v & 0xff) == 7))
            return false;
    return true;
}

static uint64_t *mtrr_find(SoftCpu *cpu, uint32_t index)
{
    SoftMsrs *m = &cpu->system->msr;
    if (index >= MSR_MTRR_VARIABLE && index < MSR_MTRR_VARIABLE + 2 * SOFT_MTRR_VARIABLE) {
        unsigned i = (index - MSR_MTRR_VARIABLE) / 2;
        return index & 1 ? &m->mtrr_mask[i] : &m->mtrr_base[i];
    }
    if (index == MSR_MTRR_FIX64K)
        return &m->mtrr_fixed[0];
    if (index == MSR_MTRR_FIX16K_80000 || index == MSR_MTRR_FIX16K_A0000)
        return &m->mtrr_fixed[1 + (index & 1)];
    if (index >= MSR_MTRR_FIX4K && index < MSR_MTRR_FIX4K + 8)
        return &m->mtrr_fixed[3 + index - MSR_MTRR_FIX4K];
    if (index == MSR_MTRR_DEF_TYPE)
        return &m->mtrr_def_type;
    return NULL;
}

static bool mtrr_valid(uint32_t index, uint64_t v)
{
    if (index == MSR_MTRR_DEF_TYPE)
        return !(v & ~0xcffull) && type_valid(v & 0xff);
    if (index >= MSR_MTRR_FIX64K)
        return types_valid(v, false);
    if (v >> soft_limits.physical_bits)
        return false;
    return index & 1 ? !(v & 0x7ff) : !(v & 0xf00) && type_valid(v & 0xff);
}

/* ---- the local APIC's ---- */

static bool is_apic(uint32_t index)
{
    return index == MSR_APIC_BASE || index == MSR_TSC_DEADLINE ||
           (index >= MSR_X2APIC_FIRST && index <= MSR_X2APIC_LAST);
}

static bool apic_read(SoftCpu *cpu, uint32_t index, uint64_t *value)
{
    const VcpuBus *bus = cpu->vcpu.vm->bus;
    if (!bus->apic_msr_read)
        return false;
    soft_sync_leave(cpu);
    bool ok = bus->apic_msr_read(bus->opaque, cpu->vcpu.index, index, value);
    soft_sync_enter(cpu);
    return ok;
}

static bool apic_write(SoftCpu *cpu, uint32_t index, uint64_t value)
{
    const VcpuBus *bus = cpu->vcpu.vm->bus;
    if (!bus->apic_msr_write)
        return false;
    soft_sync_leave(cpu);
    bool ok = bus->apic_msr_write(bus->opaque, cpu->vcpu.index, index, value);
    soft_sync_enter(cpu);
    return ok;
}

/* ---- reading ---- */

/*
 * Every AMD processor has these eight, without a CPUID bit (APM vol. 2 13.2.1); software that wants
 * no events clears them. Here nothing is counted: they read as zero, whatever was written.
 */
static bool is_amd_performance(uint32_t index)
{
    return index >= MSR_AMD_PERFORMANCE && index < MSR_AMD_PERFORMANCE + 8;
}

/* Registers whose value is fixed or that only the advertised vendor has. */
static bool read_vendor(SoftCpu *cpu, uint32_t index, uint64_t *value)
{
    const SoftMsrs *m = &cpu->system->msr;
    *value = 0;
    if (soft_limits.intel) {
        switch (index) {
        case MSR_PLATFORM_ID:
        case MSR_PLATFORM_INFO:
            return true;
        case MSR_FEATURE_CONTROL:
            *value = m->feature_control;
            return true;
        case MSR_UCODE_REV:
            *value = 1ull << 32;
            return true;
        default:
            return false;
        }
    }
    switch (index) {
    case MSR_AMD_HWCR:
        *value = HWCR_TSC_FREQ_SEL;
        return true;
    case MSR_AMD_DE_CFG:
        *value = DE_CFG_LFENCE_SERIALIZE;
        return true;
    case MSR_UCODE_REV:
        *value = 0x1000065;
        return true;
    case MSR_AMD_SYSCFG:
    case MSR_AMD_NB_CFG:
    case MSR_AMD_INT_PENDING:
    case MSR_AMD_LS_CFG:
    case MSR_AMD_IC_CFG:
    case MSR_AMD_DC_CFG:
    case MSR_AMD_BU_CFG:
    case MSR_AMD_BU_CFG2:
        return true;
    default:
        return is_amd_performance(index);
    }
}

bool soft_msr_read(SoftCpu *cpu, uint32_t index, uint64_t *value)
{
    const SoftMsrs *m = &cpu->system->msr;
    bool canonical;
    const uint64_t *at = plain_find(cpu, index, &canonical);
    if (!at)
        at = mtrr_find(cpu, index);
    if (at) {
        *value = *at;
        return true;
    }
    if (is_apic(index))
        return apic_read(cpu, index, value);
    switch (index) {
    case MSR_TSC:
        *value = soft_observed_time(cpu, soft_tsc(cpu));
        return true;
    case MSR_TSC_ADJUST:
        *value = m->tsc_adjust;
        return true;
    case MSR_MTRR_CAP:
        *value = MTRR_CAP_VALUE;
        return true;
    case MSR_MCG_CAP:
        *value = 0;
        return true;
    case MSR_PKRS:
        *value = m->pkrs;
        return soft_limits.pks;
    case MSR_DEBUGCTL:
        *value = m->debugctl;
        return true;
    case MSR_PAT:
        *value = m->pat;
        return true;
    case MSR_KVM_WALL_CLOCK:
        *value = m->kvm_wall_clock;
        return true;
    case MSR_KVM_SYSTEM_TIME:
        *value = m->kvm_system_time;
        return true;
    case MSR_EFER:
        *value = cpu->efer;
        return true;
    case MSR_FMASK:
        *value = m->fmask;
        return true;
    case MSR_FS_BASE:
        *value = cpu->seg[SEG_FS].base;
        return true;
    case MSR_GS_BASE:
        *value = cpu->seg[SEG_GS].base;
        return true;
    case MSR_TSC_AUX:
        *value = m->tsc_aux;
        return true;
    default:
        return read_vendor(cpu, index, value);
    }
}

/* ---- writing ---- */

static bool efer_write(SoftCpu *cpu, uint64_t v)
{
    if (v & ~(soft_limits.efer_allowed | EFER_LMA))
        return false;
    if (((v ^ cpu->efer) & EFER_LME) && (cpu->cr0 & CR0_PG))
        return false;
    uint64_t changed = v ^ cpu->efer;
    cpu->efer = (v & ~(uint64_t)EFER_LMA) | (cpu->efer & EFER_LMA);
    if (changed & EFER_NXE)
        soft_tlb_flush(cpu, true);
    soft_mode_update(cpu);
    return true;
}

static void tsc_write(SoftCpu *cpu, uint64_t v)
{
    uint64_t delta = v - soft_observed_time(cpu, soft_tsc(cpu));
    cpu->tsc_offset += (int64_t)delta;
    cpu->system->msr.tsc_adjust += delta;
    soft_pvclock_system_time(cpu);
}

static bool write_vendor(uint32_t index)
{
    if (soft_limits.intel)
        return index == MSR_UCODE_REV || index == MSR_UCODE_WRITE;
    switch (index) {
    case MSR_UCODE_REV:
    case MSR_AMD_PATCH_LOADER:
    case MSR_AMD_SYSCFG:
    case MSR_AMD_HWCR:
    case MSR_AMD_NB_CFG:
    case MSR_AMD_INT_PENDING:
    case MSR_AMD_LS_CFG:
    case MSR_AMD_IC_CFG:
    case MSR_AMD_DC_CFG:
    case MSR_AMD_BU_CFG:
    case MSR_AMD_DE_CFG:
    case MSR_AMD_BU_CFG2:
        return true; /* nothing here that they could change */
    default:
        return is_amd_performance(index);
    }
}

static bool kvm_write(SoftCpu *cpu, uint32_t index, uint64_t v)
{
    SoftMsrs *m = &cpu->system->msr;
    if (index == MSR_KVM_WALL_CLOCK) {
        m->kvm_wall_clock = v;
        soft_pvclock_wall_clock(cpu, v);
    } else {
        m->kvm_system_time = v;
        soft_pvclock_system_time(cpu);
    }
    return true;
}

static bool base_write(SoftCpu *cpu, unsigned seg, uint64_t v)
{
    if (!soft_canonical(v))
        return false;
    cpu->seg[seg].base = v;
    return true;
}

bool soft_msr_write(SoftCpu *cpu, uint32_t index, uint64_t v)
{
    SoftMsrs *m = &cpu->system->msr;
    bool canonical;
    uint64_t *at = plain_find(cpu, index, &canonical);
    if (at) {
        if (canonical && !soft_canonical(v))
            return false;
        *at = v;
        return true;
    }
    if ((at = mtrr_find(cpu, index))) {
        if (!mtrr_valid(index, v))
            return false;
        *at = v;
        return true;
    }
    if (is_apic(index))
        return apic_write(cpu, index, v);
    switch (index) {
    case MSR_TSC:
        tsc_write(cpu, v);
        return true;
    case MSR_TSC_ADJUST:
        cpu->tsc_offset += (int64_t)(v - m->tsc_adjust);
        m->tsc_adjust = v;
        soft_pvclock_system_time(cpu);
        return true;
    case MSR_MCG_CTL:
        return false; /* MCG_CAP does not announce it */
    case MSR_PKRS:
        if (!soft_limits.pks || v >> 32)
            return false;
        soft_keys_set(cpu, true, (uint32_t)v);
        return true;
    case MSR_DEBUGCTL:
        if (v)
            return false; /* neither branch records nor branch stepping */
        return true;
    case MSR_PAT:
        if (!types_valid(v, true))
            return false;
        m->pat = v;
        return true;
    case MSR_KVM_WALL_CLOCK:
    case MSR_KVM_SYSTEM_TIME:
        return kvm_write(cpu, index, v);
    case MSR_EFER:
        return efer_write(cpu, v);
    case MSR_FMASK:
        m->fmask = (uint32_t)v;
        return true;
    case MSR_FS_BASE:
        return base_write(cpu, SEG_FS, v);
    case MSR_GS_BASE:
        return base_write(cpu, SEG_GS, v);
    case MSR_TSC_AUX:
        if (v >> 32)
            return false;
        m->tsc_aux = (uint32_t)v;
        return true;
    default:
        return write_vendor(index);
    }
}

/* ---- snapshots ---- */

static const uint32_t saved[] = {
    MSR_TSC_ADJUST, MSR_SYSENTER_CS, MSR_SYSENTER_ESP, MSR_SYSENTER_EIP, MSR_STAR, MSR_LSTAR,
    MSR_CSTAR, MSR_FMASK, MSR_KERNEL_GS_BASE, MSR_TSC_AUX, MSR_PAT, MSR_MISC_ENABLE,
    MSR_MCG_STATUS, MSR_MTRR_DEF_TYPE, 0x200, 0x201, 0x202, 0x203, 0x204, 0x205, 0x206, 0x207,
    0x208, 0x209, 0x20a, 0x20b, 0x20c, 0x20d, 0x20e, 0x20f, MSR_MTRR_FIX64K, MSR_MTRR_FIX16K_80000,
    MSR_MTRR_FIX16K_A0000, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f,
    MSR_KVM_WALL_CLOCK, MSR_KVM_SYSTEM_TIME, MSR_PKRS,
};

const uint32_t *soft_msr_list(unsigned *n)
{
    *n = G_N_ELEMENTS(saved);
    return saved;
}

bool soft_msr_restore(SoftCpu *cpu, uint32_t index, uint64_t value)
{
    if (index == MSR_TSC_ADJUST) { /* the TSC itself is restored apart */
        cpu->system->msr.tsc_adjust = value;
        return true;
    }
    if (index == MSR_KVM_WALL_CLOCK) { /* its structure is in the guest's memory already */
        cpu->system->msr.kvm_wall_clock = value;
        return true;
    }
    return soft_msr_write(cpu, index, value);
}

void soft_msr_reset(SoftCpu *cpu)
{
    cpu->system->msr = (SoftMsrs){
        .pat = 0x0007040600070406ull,
        .misc_enable = soft_limits.intel ? 1 : 0, /* fast strings */
        .feature_control = 1,                     /* locked: no VMX */
    };
}
