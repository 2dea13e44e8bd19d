/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What CPUID says in the guest: what the host's KVM supports (api.rst 4.46), with this vCPU's
 * APIC id and the configured topology. SDM vol. 2 CPUID; AMD APM vol. 3 E.4.
 */
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/error.h"
#include "vcpu/kvm/kvm-private.h"

#define CPUID_1_ECX_TSC_DEADLINE (1u << 24)
#define CPUID_1_ECX_OSXSAVE      (1u << 27)
#define CPUID_1_ECX_HYPERVISOR   (1u << 31)
#define CPUID_1_EDX_HTT          (1u << 28)

static size_t cpuid_bytes(unsigned entries)
{
    return sizeof(struct kvm_cpuid2) + entries * sizeof(struct kvm_cpuid_entry2);
}

static uint32_t *word_of(struct kvm_cpuid_entry2 *e, X86Word word)
{
    const X86WordPlace *place = &x86_word_places[word];
    uint32_t *const regs[] = {&e->eax, &e->ebx, &e->ecx, &e->edx};
    return e->function == place->leaf && e->index == place->subleaf ? regs[place->reg] : NULL;
}

#define XCR0_MODEL 7u /* x87, SSE, AVX: what the models without AVX-512 have */
#define XCR0_AVX512 0xe0u

/* Leaf DH says which states XCR0 may hold, and where they lie (SDM vol. 1 13.2). */
static void limit_states(struct kvm_cpuid_entry2 *e, const X86FeatureSet *offered)
{
    uint32_t states = XCR0_MODEL;
    if (x86_has(offered, x86_feature_find("avx512f")))
        states |= XCR0_AVX512;
    if (!x86_has(offered, x86_feature_find("avx")))
        states &= ~4u;
    if (!x86_has(offered, x86_feature_find("xsave")))
        states = 0;
    if (e->index == 0) {
        e->eax &= states;
        e->edx = 0;
    } else if (e->index > 1 && (e->index >= 32 || !(states >> e->index & 1))) {
        e->eax = e->ebx = e->ecx = e->edx = 0;
    }
}

/* Takes out of kvm->cpuid what @spec does not have. */
static bool apply_model(KvmVm *kvm, const X86CpuSpec *spec, GError **err)
{
    X86FeatureSet have = {0}, offered;
    for (unsigned i = 0; i < kvm->cpuid->nent; i++)
        for (unsigned w = 0; w < X86_WORDS; w++) {
            const uint32_t *word = word_of(&kvm->cpuid->entries[i], (X86Word)w);
            if (word)
                have.word[w] |= *word;
        }
    /* What KVM leaves to its user to announce (api.rst 4.46), and what follows from the guest's CR4. */
    have.word[X86_1_ECX] |= CPUID_1_ECX_HYPERVISOR | CPUID_1_ECX_TSC_DEADLINE | CPUID_1_ECX_OSXSAVE;
    have.word[X86_1_EDX] |= CPUID_1_EDX_HTT;
    if (!x86_cpu_resolve(spec, &have, &offered, &kvm->vm.cpu_lacking, err))
        return false;
    kvm->ecx1_mask = x86_word_mask(spec, &offered, X86_1_ECX);
    for (unsigned i = 0; spec && i < kvm->cpuid->nent; i++) {
        struct kvm_cpuid_entry2 *e = &kvm->cpuid->entries[i];
        for (unsigned w = 0; w < X86_WORDS; w++) {
            uint32_t *word = word_of(e, (X86Word)w);
            if (word)
                *word &= x86_word_mask(spec, &offered, (X86Word)w);
        }
        if (e->function == 0xd && strcmp(spec->model, x86_models[0]) != 0)
            limit_states(e, &offered);
    }
    return true;
}

bool kvm_cpuid_load(KvmVm *kvm, const X86CpuSpec *spec, GError **err)
{
    kvm->cpuid = g_malloc0(cpuid_bytes(KVM_CPUID_ENTRIES_MAX));
    kvm->cpuid->nent = KVM_CPUID_ENTRIES_MAX;
    if (ioctl(kvm->dev_fd, KVM_GET_SUPPORTED_CPUID, kvm->cpuid) < 0)
        return lodge_fail_errno(err, errno, "KVM supported CPUID");
    return apply_model(kvm, spec, err);
}

static unsigned bits_for(unsigned n)
{
    unsigned bits = 0;
    while ((1u << bits) < n)
        bits++;
    return bits;
}

static void topology_leaf(struct kvm_cpuid_entry2 *e, const VcpuVmConfig *config, unsigned index)
{
    unsigned threads = MAX(config->threads, 1u), cores = MAX(config->cores, 1u);
    e->ecx = e->index & 0xff;
    e->edx = index;
    if (e->index == 0) {
        e->eax = bits_for(threads);
        e->ebx = threads;
        e->ecx |= 1u << 8; /* SMT level */
    } else if (e->index == 1) {
        e->eax = bits_for(threads * cores);
        e->ebx = threads * cores;
        e->ecx |= 2u << 8; /* core level */
    } else {
        e->eax = e->ebx = 0;
    }
}

static void adjust(struct kvm_cpuid_entry2 *e, const KvmVm *kvm, unsigned index)
{
    const VcpuVmConfig *config = &kvm->vm.config;
    unsigned siblings = MAX(config->threads, 1u) * MAX(config->cores, 1u);
    switch (e->function) {
    case 1:
        e->ebx = (e->ebx & 0x0000ffff) | index << 24 | siblings << 16;
        e->ecx |= (CPUID_1_ECX_HYPERVISOR | CPUID_1_ECX_TSC_DEADLINE) & kvm->ecx1_mask;
        e->edx = siblings > 1 ? e->edx | CPUID_1_EDX_HTT : e->edx & ~CPUID_1_EDX_HTT;
        break;
    case 4: /* cores per package, threads per cache; the host's numbers mean nothing here */
        e->eax = (e->eax & 0x3fff) | (siblings - 1) << 26;
        break;
    case 0xb:
    case 0x1f:
        topology_leaf(e, config, index);
        break;
    case 0x80000008:
        e->ecx = (e->ecx & ~0xf0ffu) | bits_for(siblings) << 12 | (siblings - 1);
        break;
    case 0x8000001e:
        e->eax = index;
        e->ebx = (index / MAX(config->threads, 1u)) | (MAX(config->threads, 1u) - 1) << 8;
        e->ecx = 0;
        break;
    default:
        break;
    }
}

bool kvm_cpuid_apply(KvmVcpu *kv, GError **err)
{
    KvmVm *kvm = kvm_vm_of(&kv->vcpu);
    g_autofree struct kvm_cpuid2 *mine = g_memdup2(kvm->cpuid, cpuid_bytes(kvm->cpuid->nent));
    for (unsigned i = 0; i < mine->nent; i++)
        adjust(&mine->entries[i], kvm, kv->vcpu.index);
    if (ioctl(kv->fd, KVM_SET_CPUID2, mine) < 0)
        return lodge_fail_errno(err, errno, "KVM CPUID of vCPU %u", kv->vcpu.index);
    return true;
}
