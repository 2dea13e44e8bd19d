/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* VcpuState <-> the kernel's structures. api.rst 4.11-4.20, 4.41, 4.43, 4.33 (VCPU_EVENTS). */
#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/error.h"
#include "vcpu/kvm/kvm-private.h"

#define MSR_TSC    0x10u
#define XCR0_INDEX 0u

/* MSRs that make up a guest's state, apart from those with a field of their own. */
static const uint32_t saved_msrs[] = {
    0x174, 0x175, 0x176, /* SYSENTER_CS, _ESP, _EIP */
    0xc0000081, 0xc0000082, 0xc0000083, 0xc0000084, 0xc0000102, 0xc0000103,
    /* STAR LSTAR CSTAR FMASK KERNEL_GS_BASE TSC_AUX */
    0x277, 0x3b, 0x1a0, 0x2ff, /* PAT, TSC_ADJUST, MISC_ENABLE, MTRR_DEF_TYPE */
    0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f, /* fixed MTRRs */
    0x200, 0x201, 0x202, 0x203, 0x204, 0x205, 0x206, 0x207, /* variable MTRRs */
    0x208, 0x209, 0x20a, 0x20b, 0x20c, 0x20d, 0x20e, 0x20f, 0x4b564d00, 0x4b564d01, 0x4b564d02,
    0x4b564d03, 0x4b564d04, /* KVM's own: clock, async PF, steal, EOI */
};

static bool fail(GError **err, const char *what, const Vcpu *vcpu)
{
    return lodge_fail_errno(err, errno, "KVM %s of vCPU %u", what, vcpu->index);
}

static void segment_get(VcpuSegment *to, const struct kvm_segment *from)
{
    to->base = from->base;
    to->limit = from->limit;
    to->selector = from->selector;
    to->attr = from->type | from->s << 4 | from->dpl << 5 | from->present << 7 | from->avl << 12 |
               from->l << 13 | from->db << 14 | from->g << 15 |
               (from->unusable ? SEG_ATTR_UNUSABLE : 0);
}

static void segment_set(struct kvm_segment *to, const VcpuSegment *from)
{
    *to = (struct kvm_segment){
        .base = from->base,
        .limit = from->limit,
        .selector = from->selector,
        .type = from->attr & 15,
        .s = from->attr >> 4 & 1,
        .dpl = from->attr >> 5 & 3,
        .present = from->attr >> 7 & 1,
        .avl = from->attr >> 12 & 1,
        .l = from->attr >> 13 & 1,
        .db = from->attr >> 14 & 1,
        .g = from->attr >> 15 & 1,
        .unusable = (from->attr & SEG_ATTR_UNUSABLE) != 0,
    };
}

static void regs_get(VcpuState *s, const struct kvm_regs *r)
{
    const uint64_t gpr[16] = {r->rax, r->rcx, r->rdx, r->rbx, r->rsp, r->rbp, r->rsi, r->rdi,
                              r->r8,  r->r9,  r->r10, r->r11, r->r12, r->r13, r->r14, r->r15};
    memcpy(s->gpr, gpr, sizeof(gpr));
    s->rip = r->rip;
    s->rflags = r->rflags;
}

static void regs_set(struct kvm_regs *r, const VcpuState *s)
{
    const uint64_t *g = s->gpr;
    *r = (struct kvm_regs){
        .rax = g[0],
        .rcx = g[1],
        .rdx = g[2],
        .rbx = g[3],
        .rsp = g[4],
        .rbp = g[5],
        .rsi = g[6],
        .rdi = g[7],
        .r8 = g[8],
        .r9 = g[9],
        .r10 = g[10],
        .r11 = g[11],
        .r12 = g[12],
        .r13 = g[13],
        .r14 = g[14],
        .r15 = g[15],
        .rip = s->rip,
        .rflags = s->rflags,
    };
}

static void sregs_get(VcpuState *s, const struct kvm_sregs *k)
{
    const struct kvm_segment *seg[SEG_COUNT] = {&k->es, &k->cs, &k->ss, &k->ds, &k->fs, &k->gs};
    for (unsigned i = 0; i < SEG_COUNT; i++)
        segment_get(&s->seg[i], seg[i]);
    segment_get(&s->ldtr, &k->ldt);
    segment_get(&s->tr, &k->tr);
    s->gdtr = (VcpuTable){.base = k->gdt.base, .limit = k->gdt.limit};
    s->idtr = (VcpuTable){.base = k->idt.base, .limit = k->idt.limit};
    s->cr0 = k->cr0;
    s->cr2 = k->cr2;
    s->cr3 = k->cr3;
    s->cr4 = k->cr4;
    s->cr8 = k->cr8;
    s->efer = k->efer;
}

/* @k holds the kernel's values; what VcpuState does not carry (the APIC base) stays. */
static void sregs_set(struct kvm_sregs *k, const VcpuState *s)
{
    struct kvm_segment *seg[SEG_COUNT] = {&k->es, &k->cs, &k->ss, &k->ds, &k->fs, &k->gs};
    for (unsigned i = 0; i < SEG_COUNT; i++)
        segment_set(seg[i], &s->seg[i]);
    segment_set(&k->ldt, &s->ldtr);
    segment_set(&k->tr, &s->tr);
    k->gdt = (struct kvm_dtable){.base = s->gdtr.base, .limit = s->gdtr.limit};
    k->idt = (struct kvm_dtable){.base = s->idtr.base, .limit = s->idtr.limit};
    k->cr0 = s->cr0;
    k->cr2 = s->cr2;
    k->cr3 = s->cr3;
    k->cr4 = s->cr4;
    k->cr8 = s->cr8;
    k->efer = s->efer;
    memset(k->interrupt_bitmap, 0, sizeof(k->interrupt_bitmap));
}

static bool fpu_get(KvmVcpu *kv, VcpuState *s, GError **err)
{
    struct kvm_xsave xsave;
    struct kvm_xcrs xcrs;
    if (ioctl(kv->fd, KVM_GET_XSAVE, &xsave) < 0)
        return fail(err, "XSAVE state", &kv->vcpu);
    if (ioctl(kv->fd, KVM_GET_XCRS, &xcrs) < 0)
        return fail(err, "XCR0", &kv->vcpu);
    G_STATIC_ASSERT(sizeof(xsave.region) == VCPU_XSAVE_SIZE);
    memcpy(s->xsave, xsave.region, VCPU_XSAVE_SIZE);
    for (unsigned i = 0; i < xcrs.nr_xcrs && i < G_N_ELEMENTS(xcrs.xcrs); i++)
        if (xcrs.xcrs[i].xcr == XCR0_INDEX)
            s->xcr0 = xcrs.xcrs[i].value;
    return true;
}

static bool fpu_set(KvmVcpu *kv, const VcpuState *s, GError **err)
{
    struct kvm_xcrs xcrs = {.nr_xcrs = 1, .xcrs = {{.xcr = XCR0_INDEX, .value = s->xcr0 | 1}}};
    struct kvm_xsave xsave;
    memcpy(xsave.region, s->xsave, VCPU_XSAVE_SIZE);
    if (ioctl(kv->fd, KVM_SET_XCRS, &xcrs) < 0)
        return fail(err, "XCR0", &kv->vcpu);
    if (ioctl(kv->fd, KVM_SET_XSAVE, &xsave) < 0)
        return fail(err, "XSAVE state", &kv->vcpu);
    return true;
}

static bool events_get(KvmVcpu *kv, VcpuState *s, GError **err)
{
    struct kvm_vcpu_events e;
    struct kvm_debugregs dr;
    struct kvm_mp_state mp;
    if (ioctl(kv->fd, KVM_GET_VCPU_EVENTS, &e) < 0)
        return fail(err, "pending events", &kv->vcpu);
    if (ioctl(kv->fd, KVM_GET_DEBUGREGS, &dr) < 0)
        return fail(err, "debug registers", &kv->vcpu);
    if (ioctl(kv->fd, KVM_GET_MP_STATE, &mp) < 0)
        return fail(err, "activity state", &kv->vcpu);
    s->interrupt_shadow = e.interrupt.shadow != 0;
    s->nmi_masked = e.nmi.masked != 0;
    s->exception_pending = e.exception.injected != 0;
    s->exception_vector = e.exception.nr;
    s->exception_has_error = e.exception.has_error_code != 0;
    s->exception_error = e.exception.error_code;
    memcpy(s->dr, dr.db, 4 * sizeof(uint64_t));
    s->dr[6] = dr.dr6;
    s->dr[7] = dr.dr7;
    s->activity = mp.mp_state == KVM_MP_STATE_HALTED     ? VCPU_HALTED
                  : mp.mp_state == KVM_MP_STATE_RUNNABLE ? VCPU_RUNNING
                                                         : VCPU_WAIT_FOR_SIPI;
    return true;
}

static bool events_set(KvmVcpu *kv, const VcpuState *s, GError **err)
{
    struct kvm_vcpu_events e = {
        .exception = {.injected = s->exception_pending,
                      .nr = s->exception_vector,
                      .has_error_code = s->exception_has_error,
                      .error_code = s->exception_error},
        .interrupt = {.shadow = s->interrupt_shadow ? KVM_X86_SHADOW_INT_STI : 0},
        .nmi = {.masked = s->nmi_masked},
        .flags = KVM_VCPUEVENT_VALID_SHADOW,
    };
    struct kvm_debugregs dr = {
        .db = {s->dr[0], s->dr[1], s->dr[2], s->dr[3]}, .dr6 = s->dr[6], .dr7 = s->dr[7]};
    struct kvm_mp_state mp = {.mp_state = s->activity == VCPU_HALTED ? KVM_MP_STATE_HALTED
                                          : s->activity == VCPU_RUNNING
                                              ? KVM_MP_STATE_RUNNABLE
                                              : KVM_MP_STATE_UNINITIALIZED};
    if (ioctl(kv->fd, KVM_SET_VCPU_EVENTS, &e) < 0)
        return fail(err, "pending events", &kv->vcpu);
    if (ioctl(kv->fd, KVM_SET_DEBUGREGS, &dr) < 0)
        return fail(err, "debug registers", &kv->vcpu);
    if (ioctl(kv->fd, KVM_SET_MP_STATE, &mp) < 0)
        return fail(err, "activity state", &kv->vcpu);
    return true;
}

/* struct kvm_msrs with room for its entries. */
typedef struct MsrBuffer {
    uint32_t n, pad;
    struct kvm_msr_entry entries[VCPU_MSR_MAX + 1];
} MsrBuffer;
_Static_assert(offsetof(MsrBuffer, entries) == sizeof(struct kvm_msrs), "the kernel's layout");

static bool msr_known(const KvmVm *kvm, uint32_t index)
{
    for (unsigned i = 0; i < kvm->msrs->nmsrs; i++)
        if (kvm->msrs->indices[i] == index)
            return true;
    return false;
}

static bool msrs_get(KvmVcpu *kv, VcpuState *s, GError **err)
{
    KvmVm *kvm = kvm_vm_of(&kv->vcpu);
    G_STATIC_ASSERT(G_N_ELEMENTS(saved_msrs) <= VCPU_MSR_MAX);
    s->n_msr = 0;
    for (unsigned i = 0; i < G_N_ELEMENTS(saved_msrs); i++) {
        if (saved_msrs[i] >= 0x200 && saved_msrs[i] <= 0x2ff) {
            /* MTRRs are always there, but not in every kernel's list */
        } else if (!msr_known(kvm, saved_msrs[i])) {
            continue;
        }
        MsrBuffer one = {.n = 1, .entries[0].index = saved_msrs[i]};
        if (ioctl(kv->fd, KVM_GET_MSRS, &one) == 1)
            s->msr[s->n_msr++] = (VcpuMsr){.index = saved_msrs[i], .value = one.entries[0].data};
    }
    MsrBuffer tsc = {.n = 1, .entries[0].index = MSR_TSC};
    if (ioctl(kv->fd, KVM_GET_MSRS, &tsc) != 1)
        return fail(err, "TSC", &kv->vcpu);
    s->tsc = tsc.entries[0].data;
    return true;
}

static bool msrs_set(KvmVcpu *kv, const VcpuState *s, GError **err)
{
    if (s->n_msr > VCPU_MSR_MAX)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "%u MSRs; at most %d", s->n_msr, VCPU_MSR_MAX);
    MsrBuffer all = {.n = s->n_msr + 1};
    all.entries[0] = (struct kvm_msr_entry){.index = MSR_TSC, .data = s->tsc};
    for (unsigned i = 0; i < s->n_msr; i++)
        all.entries[i + 1] =
            (struct kvm_msr_entry){.index = s->msr[i].index, .data = s->msr[i].value};
    int done = ioctl(kv->fd, KVM_SET_MSRS, &all);
    if (done < 0)
        return fail(err, "MSRs", &kv->vcpu);
    if ((unsigned)done != all.n)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "KVM refuses 0x%" G_GINT64_MODIFIER "x in MSR 0x%x of vCPU %u",
                          (uint64_t)all.entries[done].data, all.entries[done].index,
                          kv->vcpu.index);
    kv->tsc_offset = (int64_t)(s->tsc - __builtin_ia32_rdtsc());
    return true;
}

bool kvm_get_state(Vcpu *vcpu, VcpuState *state, GError **err)
{
    KvmVcpu *kv = (KvmVcpu *)vcpu;
    struct kvm_regs regs;
    struct kvm_sregs sregs;
    memset(state, 0, sizeof(*state));
    if (ioctl(kv->fd, KVM_GET_REGS, &regs) < 0)
        return fail(err, "registers", vcpu);
    if (ioctl(kv->fd, KVM_GET_SREGS, &sregs) < 0)
        return fail(err, "system registers", vcpu);
    regs_get(state, &regs);
    sregs_get(state, &sregs);
    return fpu_get(kv, state, err) && events_get(kv, state, err) && msrs_get(kv, state, err);
}

bool kvm_set_state(Vcpu *vcpu, const VcpuState *state, GError **err)
{
    KvmVcpu *kv = (KvmVcpu *)vcpu;
    struct kvm_regs regs;
    struct kvm_sregs sregs;
    if (ioctl(kv->fd, KVM_GET_SREGS, &sregs) < 0)
        return fail(err, "system registers", vcpu);
    regs_set(&regs, state);
    sregs_set(&sregs, state);
    if (ioctl(kv->fd, KVM_SET_SREGS, &sregs) < 0)
        return fail(err, "system registers", vcpu);
    if (ioctl(kv->fd, KVM_SET_REGS, &regs) < 0)
        return fail(err, "registers", vcpu);
    return fpu_set(kv, state, err) && msrs_set(kv, state, err) && events_set(kv, state, err);
}
