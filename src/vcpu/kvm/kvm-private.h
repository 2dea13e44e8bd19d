/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The KVM engine's own types. API: Linux, Documentation/virt/kvm/api.rst. */
#pragma once

#include <linux/kvm.h>
#include <pthread.h>
#include <stdatomic.h>

#include "vcpu/engine.h"

#define KVM_GSI_COUNT         24 /* IOAPIC pins; MSI routes come after them */
#define KVM_MSI_ROUTES_MAX    1024
#define KVM_CPUID_ENTRIES_MAX 256

typedef struct KvmMsiRoute {
    bool used;
    uint64_t address;
    uint32_t data;
} KvmMsiRoute;

typedef struct KvmVm {
    VcpuVm vm; /* first */
    int dev_fd, fd;
    size_t run_size;           /* of the mapping shared with each vCPU */
    struct kvm_cpuid2 *cpuid;  /* what the guest sees, apart from each vCPU's own numbers */
    uint32_t ecx1_mask;        /* of leaf 1 ECX: what the CPU model allows */
    struct kvm_msr_list *msrs; /* what it saves */
    bool logging[VCPU_RAM_SLOTS_MAX];
    pthread_mutex_t routes_lock; /* guards routes */
    KvmMsiRoute routes[KVM_MSI_ROUTES_MAX];
} KvmVm;

typedef struct KvmVcpu {
    Vcpu vcpu; /* first */
    int fd;
    struct kvm_run *run;
    int64_t tsc_offset;          /* guest TSC = host TSC + this, as of the last set_state */
    pthread_mutex_t thread_lock; /* guards thread and running */
    pthread_t thread;
    bool running;
    VcpuStats stats;
    struct kvm_guest_debug debug; /* as the kernel has it; what follows is its meaning */
    VcpuBreakpoint *breakpoints;
    unsigned n_breakpoints, n_debug_slots;
    unsigned debug_slot[4]; /* of DR0-DR3: index of the breakpoint */
    VcpuDebugStop debug_why;
} KvmVcpu;

static inline KvmVm *kvm_vm_of(Vcpu *vcpu)
{
    return (KvmVm *)vcpu->vm;
}

/* kvm-state.c */
bool kvm_get_state(Vcpu *vcpu, VcpuState *state, GError **err);
bool kvm_set_state(Vcpu *vcpu, const VcpuState *state, GError **err);

/* kvm-cpuid.c: what KVM supports, with this vCPU's APIC id and the configured topology. */
/* @spec: see VcpuVmConfig.cpu. */
bool kvm_cpuid_load(KvmVm *kvm, const X86CpuSpec *spec, GError **err);
bool kvm_cpuid_apply(KvmVcpu *kv, GError **err);

/* kvm-irq.c */
bool kvm_irqchip_create(KvmVm *kvm, GError **err);
bool kvm_set_gsi(VcpuVm *vm, unsigned gsi, bool level);
bool kvm_send_msi(VcpuVm *vm, uint64_t address, uint32_t data);
bool kvm_add_ioeventfd(VcpuVm *vm, uint64_t gpa, unsigned size, int fd, GError **err);
bool kvm_del_ioeventfd(VcpuVm *vm, uint64_t gpa, unsigned size, int fd, GError **err);
bool kvm_add_irqfd(VcpuVm *vm, int fd, uint64_t address, uint32_t data, unsigned *route,
                   GError **err);
bool kvm_del_irqfd(VcpuVm *vm, int fd, unsigned route, GError **err);

/* kvm-memory.c */
bool kvm_set_ram(VcpuVm *vm, unsigned slot, const VcpuRamSlot *ram, GError **err);
bool kvm_dirty_log_start(VcpuVm *vm, unsigned slot, GError **err);
bool kvm_dirty_log_read(VcpuVm *vm, unsigned slot, uint8_t *bitmap, size_t size, GError **err);
bool kvm_dirty_log_stop(VcpuVm *vm, unsigned slot, GError **err);

/* kvm-debug.c */
bool kvm_debug(Vcpu *vcpu, const VcpuDebug *debug, GError **err);
VcpuDebugStop kvm_debug_stop(Vcpu *vcpu);
/* KVM_EXIT_DEBUG; as run_once returns. */
bool kvm_exit_debug(KvmVcpu *kv, VcpuExit *result, GError **err);

/* kvm-probe.c */
bool kvm_probe(char **why);
