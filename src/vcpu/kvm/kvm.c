/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The KVM engine: VMs, vCPUs and the run loop. api.rst 4.2, 4.7, 4.10 and chapter 5 (struct
 * kvm_run). */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/error.h"
#include "vcpu/kvm/kvm-private.h"

#define MSR_LIST_MAX 1024u
/* Interrupts KVM_RUN; its handler does nothing. */
#define KICK_SIGNAL (SIGRTMIN + 3)

static void on_kick_signal(int number)
{
}

static void kvm_vm_free(VcpuVm *vm)
{
    KvmVm *kvm = (KvmVm *)vm;
    if (!kvm)
        return;
    if (kvm->fd >= 0)
        close(kvm->fd);
    if (kvm->dev_fd >= 0)
        close(kvm->dev_fd);
    pthread_mutex_destroy(&kvm->routes_lock);
    g_free(kvm->cpuid);
    g_free(kvm->vm.cpu_lacking);
    g_free(kvm->msrs);
    g_free(kvm);
}

static bool vm_open(KvmVm *kvm, const VcpuVmConfig *config, GError **err)
{
    kvm->dev_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (kvm->dev_fd < 0)
        return lodge_fail_errno(err, errno, "cannot open /dev/kvm");
    int size = ioctl(kvm->dev_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
    kvm->fd = ioctl(kvm->dev_fd, KVM_CREATE_VM, 0);
    if (kvm->fd < 0 || size < (int)sizeof(struct kvm_run))
        return lodge_fail_errno(err, errno, "KVM cannot make a VM");
    kvm->run_size = (size_t)size;
    kvm->msrs = g_malloc0(sizeof(*kvm->msrs) + MSR_LIST_MAX * sizeof(kvm->msrs->indices[0]));
    kvm->msrs->nmsrs = MSR_LIST_MAX;
    if (ioctl(kvm->dev_fd, KVM_GET_MSR_INDEX_LIST, kvm->msrs) < 0)
        return lodge_fail_errno(err, errno, "KVM list of MSRs");
    return kvm_cpuid_load(kvm, config->cpu, err) && kvm_irqchip_create(kvm, err);
}

static VcpuVm *kvm_vm_new(const VcpuVmConfig *config, GError **err)
{
    if (config->perf_map) {
        lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                   "a perf map is of the software CPU's translated code; engine kvm has none");
        return NULL;
    }
    if (vcpu_tuning_any(&config->tuning)) {
        lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "--cpu-debug is for the software CPU; engine kvm has no such modes");
        return NULL;
    }
    KvmVm *kvm = g_new0(KvmVm, 1);
    kvm->vm = (VcpuVm){.engine = &vcpu_engine_kvm, .bus = config->bus, .config = *config};
    kvm->dev_fd = kvm->fd = -1;
    pthread_mutex_init(&kvm->routes_lock, NULL);
    kvm->vm.config.cpu = NULL; /* the caller's */
    if (!vm_open(kvm, config, err)) {
        kvm_vm_free(&kvm->vm);
        return NULL;
    }
    struct sigaction action = {.sa_handler = on_kick_signal};
    sigaction(KICK_SIGNAL, &action, NULL);
    return &kvm->vm;
}

static void kvm_vcpu_free(Vcpu *vcpu)
{
    KvmVcpu *kv = (KvmVcpu *)vcpu;
    if (!kv)
        return;
    if (kv->run)
        munmap(kv->run, kvm_vm_of(vcpu)->run_size);
    if (kv->fd >= 0)
        close(kv->fd);
    pthread_mutex_destroy(&kv->thread_lock);
    g_free(kv->breakpoints);
    g_free(kv);
}

static Vcpu *kvm_vcpu_new(VcpuVm *vm, unsigned index, GError **err)
{
    KvmVm *kvm = (KvmVm *)vm;
    KvmVcpu *kv = g_new0(KvmVcpu, 1);
    kv->vcpu = (Vcpu){.engine = &vcpu_engine_kvm, .vm = vm, .index = index};
    pthread_mutex_init(&kv->thread_lock, NULL);
    kv->fd = ioctl(kvm->fd, KVM_CREATE_VCPU, (unsigned long)index);
    if (kv->fd < 0) {
        lodge_fail_errno(err, errno, "KVM cannot make vCPU %u", index);
        goto fail;
    }
    void *run = mmap(NULL, kvm->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, kv->fd, 0);
    if (run == MAP_FAILED) {
        lodge_fail_errno(err, errno, "KVM run page of vCPU %u", index);
        goto fail;
    }
    kv->run = run;
    kv->tsc_offset = -(int64_t)__builtin_ia32_rdtsc();
    if (kvm_cpuid_apply(kv, err))
        return &kv->vcpu;
fail:
    kvm_vcpu_free(&kv->vcpu);
    return NULL;
}

static uint64_t load_sized(const uint8_t *p, unsigned size)
{
    uint64_t v = 0;
    memcpy(&v, p, size);
    return v;
}

static void exit_io(KvmVcpu *kv)
{
    struct kvm_run *run = kv->run;
    const VcpuBus *bus = kv->vcpu.vm->bus;
    uint8_t *data = (uint8_t *)run + run->io.data_offset;
    for (uint32_t i = 0; i < run->io.count; i++, data += run->io.size) {
        if (run->io.direction == KVM_EXIT_IO_OUT) {
            bus->port_write(bus->opaque, kv->vcpu.index, run->io.port, run->io.size,
                            load_sized(data, run->io.size));
        } else {
            uint64_t v = bus->port_read(bus->opaque, kv->vcpu.index, run->io.port, run->io.size);
            memcpy(data, &v, run->io.size);
        }
    }
}

static void exit_mmio(KvmVcpu *kv)
{
    struct kvm_run *run = kv->run;
    const VcpuBus *bus = kv->vcpu.vm->bus;
    uint64_t gpa = run->mmio.phys_addr;
    unsigned length = MIN(run->mmio.len, 8u);
    if (run->mmio.is_write) {
        bus->mmio_write(bus->opaque, kv->vcpu.index, gpa, length,
                        load_sized(run->mmio.data, length));
    } else {
        uint64_t v = bus->mmio_read(bus->opaque, kv->vcpu.index, gpa, length);
        memcpy(run->mmio.data, &v, length);
    }
}

static VcpuExit exit_unexpected(KvmVcpu *kv, GError **err)
{
    const struct kvm_run *run = kv->run;
    struct kvm_regs regs = {0};
    ioctl(kv->fd, KVM_GET_REGS, &regs);
    if (run->exit_reason == KVM_EXIT_INTERNAL_ERROR)
        lodge_fail(err, LODGE_ERROR_INTERNAL, "KVM internal error %u on vCPU %u at rip 0x%llx",
                   run->internal.suberror, kv->vcpu.index, (unsigned long long)regs.rip);
    else if (run->exit_reason == KVM_EXIT_FAIL_ENTRY)
        lodge_fail(err, LODGE_ERROR_INTERNAL, "KVM cannot enter vCPU %u (hardware reason 0x%llx)",
                   kv->vcpu.index,
                   (unsigned long long)run->fail_entry.hardware_entry_failure_reason);
    else
        lodge_fail(err, LODGE_ERROR_INTERNAL,
                   "KVM stopped vCPU %u with exit reason %u at rip 0x%llx", kv->vcpu.index,
                   run->exit_reason, (unsigned long long)regs.rip);
    return VCPU_EXIT_ERROR;
}

/* One KVM_RUN. True: go on; false: *result is set. */
static bool run_once(KvmVcpu *kv, VcpuExit *result, GError **err)
{
    if (ioctl(kv->fd, KVM_RUN, 0) < 0) {
        if (errno == EAGAIN)
            return true;
        if (errno == EINTR) {
            vcpu_count(&kv->stats.exits_kick, 1);
            *result = VCPU_EXIT_KICK;
            return !kv->run->immediate_exit;
        }
        lodge_fail_errno(err, errno, "KVM cannot run vCPU %u", kv->vcpu.index);
        *result = VCPU_EXIT_ERROR;
        return false;
    }
    switch (kv->run->exit_reason) {
    case KVM_EXIT_IO:
        vcpu_count(&kv->stats.exits_io, 1);
        exit_io(kv);
        return true;
    case KVM_EXIT_MMIO:
        vcpu_count(&kv->stats.exits_mmio, 1);
        exit_mmio(kv);
        return true;
    case KVM_EXIT_INTR:
    case KVM_EXIT_IRQ_WINDOW_OPEN:
        vcpu_count(&kv->stats.exits_interrupt, 1);
        return true;
    case KVM_EXIT_DEBUG:
        return kvm_exit_debug(kv, result, err);
    case KVM_EXIT_SHUTDOWN:
        *result = VCPU_EXIT_TRIPLE_FAULT;
        return false;
    default:
        *result = exit_unexpected(kv, err);
        return false;
    }
}

static VcpuExit kvm_run(Vcpu *vcpu, GError **err)
{
    KvmVcpu *kv = (KvmVcpu *)vcpu;
    VcpuExit result = VCPU_EXIT_KICK;
    pthread_mutex_lock(&kv->thread_lock);
    kv->thread = pthread_self();
    kv->running = true;
    pthread_mutex_unlock(&kv->thread_lock);
    while (run_once(kv, &result, err))
        ;
    pthread_mutex_lock(&kv->thread_lock);
    kv->running = false;
    if (result == VCPU_EXIT_KICK)
        kv->run->immediate_exit = 0;
    pthread_mutex_unlock(&kv->thread_lock);
    return result;
}

static void kvm_kick(Vcpu *vcpu)
{
    KvmVcpu *kv = (KvmVcpu *)vcpu;
    pthread_mutex_lock(&kv->thread_lock);
    kv->run->immediate_exit = 1;
    if (kv->running && !pthread_equal(kv->thread, pthread_self()))
        pthread_kill(kv->thread, KICK_SIGNAL);
    pthread_mutex_unlock(&kv->thread_lock);
}

static void kvm_signal(Vcpu *vcpu, VcpuSignal signal, unsigned argument)
{
    /* Interrupts, INIT and SIPI come from the in-kernel APICs. */
    if (signal == VCPU_SIGNAL_NMI)
        ioctl(((KvmVcpu *)vcpu)->fd, KVM_NMI);
}

static uint64_t kvm_tsc(Vcpu *vcpu)
{
    return __builtin_ia32_rdtsc() + (uint64_t)((KvmVcpu *)vcpu)->tsc_offset;
}

static void kvm_stats(Vcpu *vcpu, VcpuStats *stats)
{
    vcpu_stats_copy(stats, &((KvmVcpu *)vcpu)->stats);
}

const VcpuEngine vcpu_engine_kvm = {
    .name = "kvm",
    .has_irqchip = true,
    .probe = kvm_probe,
    .vm_new = kvm_vm_new,
    .vm_free = kvm_vm_free,
    .set_ram = kvm_set_ram,
    .vcpu_new = kvm_vcpu_new,
    .vcpu_free = kvm_vcpu_free,
    .run = kvm_run,
    .kick = kvm_kick,
    .signal = kvm_signal,
    .get_state = kvm_get_state,
    .set_state = kvm_set_state,
    .tsc = kvm_tsc,
    .stats = kvm_stats,
    .debug = kvm_debug,
    .debug_stop = kvm_debug_stop,
    .debug_patches = true,
    .debug_registers = 4,
    .set_gsi = kvm_set_gsi,
    .send_msi = kvm_send_msi,
    .add_ioeventfd = kvm_add_ioeventfd,
    .del_ioeventfd = kvm_del_ioeventfd,
    .add_irqfd = kvm_add_irqfd,
    .del_irqfd = kvm_del_irqfd,
    .dirty_log_start = kvm_dirty_log_start,
    .dirty_log_read = kvm_dirty_log_read,
    .dirty_log_stop = kvm_dirty_log_stop,
};
