/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The `soft` engine: VMs and vCPUs of the software CPU. */
#include "vcpu/soft/engine.h"

#include <sys/mman.h>
#include <x86intrin.h>

#include "base/error.h"
#include "vcpu/soft/perf-map.h"
#include "vcpu/soft/translate/mirror.h"
#include "vcpu/soft/translate/run.h"
#include "vcpu/soft/vm.h"

static bool soft_probe(char **why)
{
    if (!__builtin_cpu_supports("sse2")) {
        *why = g_strdup("the host CPU has no SSE2");
        return false;
    }
    return true;
}

static VcpuVm *soft_vm_new(const VcpuVmConfig *config, GError **err)
{
    if (config->n_vcpus < 1 || config->n_vcpus > VCPU_COUNT_MAX) {
        lodge_fail(err, LODGE_ERROR_LIMIT, "%u vCPUs: there can be 1 to %d", config->n_vcpus,
                   VCPU_COUNT_MAX);
        return NULL;
    }
    g_autofree char *lacking = NULL;
    if (!soft_cpu_model_take(config->cpu, &lacking, err))
        return NULL;
    SoftVm *vm = g_new0(SoftVm, 1);
    vm->vm.engine = &vcpu_engine_soft;
    vm->vm.bus = config->bus;
    vm->vm.config = *config;
    vm->vm.config.perf_map = NULL; /* the caller's, as is the next */
    vm->vm.config.cpu = NULL;
    vm->vm.cpu_lacking = g_steal_pointer(&lacking);
    if (config->perf_map && !(vm->perf_map = soft_perf_map_open(config->perf_map, err))) {
        soft_cpu_model_release();
        g_free(vm->vm.cpu_lacking);
        g_free(vm);
        return NULL;
    }
    vm->retired_words = g_ptr_array_new_with_free_func(g_free);
    pthread_mutex_init(&vm->exclusive_lock, NULL);
    vm->tsc_offset = -(int64_t)__rdtsc();
    return &vm->vm;
}

static void soft_vm_free(VcpuVm *base)
{
    SoftVm *vm = (SoftVm *)base;
    if (!vm)
        return;
    soft_ram_free(vm);
    soft_perf_map_close(vm->perf_map);
    soft_cpu_model_release();
    g_free(vm->vm.cpu_lacking);
    pthread_mutex_destroy(&vm->exclusive_lock);
    g_free(vm);
}

static bool soft_set_ram(VcpuVm *base, unsigned slot, const VcpuRamSlot *ram, GError **err)
{
    return soft_ram_set((SoftVm *)base, slot, ram, err);
}

static void soft_vcpu_free(Vcpu *vcpu)
{
    SoftCpu *cpu = (SoftCpu *)vcpu;
    if (!cpu)
        return;
    SoftVm *vm = soft_vm(cpu);
    if (vm->cpus[vcpu->index] == cpu)
        vm->cpus[vcpu->index] = NULL;
    soft_blocks_free(cpu);
    code_cache_free(cpu);
    mirror_free(cpu);
    soft_vector_free(cpu);
    soft_mmu_free(cpu);
    if (cpu->system) {
        soft_sync_free(cpu);
        soft_debugger_free(cpu);
    }
    g_free(cpu->system);
    munmap(cpu, sizeof(*cpu));
}

static bool vcpu_init(SoftCpu *cpu, GError **err)
{
    g_autofree VcpuState *state = g_new(VcpuState, 1);
    if (!soft_sync_init(cpu))
        return lodge_fail(err, LODGE_ERROR_INTERNAL, "cannot make a vCPU's lock");
    if (!soft_mmu_init(cpu, err) || !soft_vector_init(cpu, err) || !soft_blocks_init(cpu, err))
        return false;
    uint64_t size = cpu->vcpu.vm->config.code_cache_size;
    if (!cpu->vcpu.vm->config.tuning.interpreter &&
        !code_cache_init(cpu, (size ? size : CODE_CACHE_DEFAULT) / cpu->vcpu.vm->config.n_vcpus, err))
        return false;
    if (cpu->code)
        mirror_init(cpu);
    vcpu_state_reset(state, cpu->vcpu.index);
    soft_fpu_reset(cpu);
    return soft_set_state(&cpu->vcpu, state, err);
}

static Vcpu *soft_vcpu_new(VcpuVm *base, unsigned index, GError **err)
{
    SoftVm *vm = (SoftVm *)base;
    if (index >= base->config.n_vcpus || vm->cpus[index]) {
        lodge_fail(err, LODGE_ERROR_INVALID, "vCPU %u: the VM has %u, each once", index,
                   base->config.n_vcpus);
        return NULL;
    }
    /* Not from the heap: aligned, zero, and only the pages in use take memory. */
    SoftCpu *cpu = mmap(NULL, sizeof(*cpu), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                        -1, 0);
    if (cpu == MAP_FAILED) {
        lodge_fail(err, LODGE_ERROR_LIMIT, "no memory for vCPU %u", index);
        return NULL;
    }
    cpu->vcpu = (Vcpu){.engine = &vcpu_engine_soft, .vm = base, .index = index};
    cpu->system = g_new0(SoftSystem, 1);
    if (!vcpu_init(cpu, err)) {
        soft_vcpu_free(&cpu->vcpu);
        return NULL;
    }
    vm->cpus[index] = cpu;
    return &cpu->vcpu;
}

static void soft_kick(Vcpu *vcpu)
{
    soft_pend((SoftCpu *)vcpu, SOFT_PENDING_KICK);
    soft_sync_wake((SoftCpu *)vcpu);
}

static void soft_signal(Vcpu *vcpu, VcpuSignal signal, unsigned argument)
{
    SoftCpu *cpu = (SoftCpu *)vcpu;
    switch (signal) {
    case VCPU_SIGNAL_INTERRUPT:
        soft_pend(cpu, SOFT_PENDING_INTERRUPT);
        break;
    case VCPU_SIGNAL_NMI:
        atomic_fetch_add(&cpu->system->nmi_signals, 1);
        soft_pend(cpu, SOFT_PENDING_NMI);
        break;
    case VCPU_SIGNAL_INIT:
        soft_pend(cpu, SOFT_PENDING_INIT);
        break;
    case VCPU_SIGNAL_SIPI:
        atomic_store(&cpu->system->sipi_vector, argument);
        soft_pend(cpu, SOFT_PENDING_SIPI);
        break;
    }
    soft_sync_wake(cpu);
}

static uint64_t soft_engine_tsc(Vcpu *vcpu)
{
    return soft_tsc((SoftCpu *)vcpu);
}

static void soft_stats(Vcpu *vcpu, VcpuStats *stats)
{
    vcpu_stats_copy(stats, &((SoftCpu *)vcpu)->stats);
}

const VcpuEngine vcpu_engine_soft = {
    .name = "soft",
    .probe = soft_probe,
    .vm_new = soft_vm_new,
    .vm_free = soft_vm_free,
    .set_ram = soft_set_ram,
    .ram_dirty = soft_ram_dirty,
    .vcpu_new = soft_vcpu_new,
    .vcpu_free = soft_vcpu_free,
    .run = soft_run,
    .kick = soft_kick,
    .signal = soft_signal,
    .get_state = soft_get_state,
    .set_state = soft_set_state,
    .tsc = soft_engine_tsc,
    .stats = soft_stats,
    .debug = soft_debugger_set,
    .debug_stop = soft_debugger_why,
};
