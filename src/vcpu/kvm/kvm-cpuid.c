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
#define CPUID_1_ECX_HYPERVISOR   (1u << 31)
#define CPUID_1_EDX_HTT          (1u << 28)

static size_t cpuid_bytes(unsigned entries)
{
    return sizeof(struct kvm_cpuid2) + entries * sizeof(struct kvm_cpuid_entry2);
}

bool kvm_cpuid_load(KvmVm *kvm, GError **err)
{
    kvm->cpuid = g_malloc0(cpuid_bytes(KVM_CPUID_ENTRIES_MAX));
    kvm->cpuid->nent = KVM_CPUID_ENTRIES_MAX;
    if (ioctl(kvm->dev_fd, KVM_GET_SUPPORTED_CPUID, kvm->cpuid) < 0)
        return lodge_fail_errno(err, errno, "KVM supported CPUID");
    return true;
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

static void adjust(struct kvm_cpuid_entry2 *e, const VcpuVmConfig *config, unsigned index)
{
    unsigned siblings = MAX(config->threads, 1u) * MAX(config->cores, 1u);
    switch (e->function) {
    case 1:
        e->ebx = (e->ebx & 0x0000ffff) | index << 24 | siblings << 16;
        e->ecx |= CPUID_1_ECX_HYPERVISOR | CPUID_1_ECX_TSC_DEADLINE;
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
        adjust(&mine->entries[i], &kvm->vm.config, kv->vcpu.index);
    if (ioctl(kv->fd, KVM_SET_CPUID2, mine) < 0)
        return lodge_fail_errno(err, errno, "KVM CPUID of vCPU %u", kv->vcpu.index);
    return true;
}
