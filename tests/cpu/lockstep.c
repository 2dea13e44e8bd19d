/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * LODGE_LOCKSTEP_BREAK=N flips a bit of the leader's RAX after its Nth block, to see the test fail.
 * LODGE_LOCKSTEP_MEMORY=N compares all RAM every N blocks (and at the end), 0: never.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/error.h"
#include "lockstep-private.h"

typedef struct LockCpu {
    Vcpu vcpu; /* first */
    LockVm *vm;
} LockCpu;

unsigned lockstep_slow = 1;
static uint64_t blocks, instructions, sweeps;

static uint64_t environment_number(const char *name, uint64_t otherwise)
{
    const char *text = getenv(name);
    return text ? g_ascii_strtoull(text, NULL, 0) : otherwise;
}

/* ---- comparison ---- */

static _Noreturn void diverged(LockVm *l, const char *what)
{
    fprintf(stderr, "lockstep: after block %" PRIu64 " (instruction %" PRIu64 "): %s\n", blocks, instructions, what);
    lockstep_report(l->lead, l->follow, l->met ? &l->met_fpu : &l->follow->fpu, l->trace, l->tries);
    fflush(NULL);
    _exit(1);
}

/* The address of the first difference, or -1. */
static uint64_t ram_difference(const LockVm *l)
{
    for (unsigned i = 0; i < VCPU_RAM_SLOTS_MAX; i++) {
        const VcpuRamSlot *a = &l->vm.ram[i], *b = &l->follower->ram[i];
        if (!a->size || memcmp(a->hva, b->hva, a->size) == 0)
            continue;
        uint64_t at = 0;
        while (a->hva[at] == b->hva[at])
            at++;
        return a->gpa + at;
    }
    return UINT64_MAX;
}

static void compare_memory(LockVm *l)
{
    uint64_t at = ram_difference(l);
    char text[80];
    sweeps++;
    if (at == UINT64_MAX)
        return;
    snprintf(text, sizeof(text), "RAM differs at guest physical %#" PRIx64, at);
    lockstep_dump_ram("leader", l->leader, at);
    lockstep_dump_ram("follower", l->follower, at);
    diverged(l, text);
}

/* Between two instructions of the follower: it stops where the leader is. */
static bool follow_between(SoftCpu *cpu, void *opaque)
{
    LockVm *l = opaque;
    SoftSystem *s = cpu->system;
    const LogEntry *next = l->head < l->log->len ? &g_array_index(l->log, LogEntry, l->head) : NULL;
    /* Interrupts are taken where the leader asked for one: before anything else since they last met. */
    s->interrupt_waiting = !l->acknowledged && next && next->kind == LOG_ACKNOWLEDGE;
    l->acknowledged = true;
    lockstep_trace(&l->trace[l->tries], cpu);
    bool stepped = s->steps != l->follow_steps, needed = l->lead->system->steps != l->lead_steps;
    if (cpu->rip == l->lead->rip && stepped >= needed && l->head == l->log->len && lockstep_equal(l->lead, cpu)) {
        l->arrived = true;
        return true;
    }
    if (cpu->rip == l->lead->rip && stepped >= needed && !l->met) {
        l->met_fpu = cpu->fpu;
        l->met = true;
    }
    if (l->wrong || s->triple || (cpu->activity != VCPU_RUNNING && !s->interrupt_waiting))
        return true;
    if (l->tries && l->trace[l->tries - 1].rip == cpu->rip) /* its place in the trace is the next one's */
        return ++l->repetitions >= REPETITIONS_MAX;
    return ++l->tries >= STEPS_MAX;
}

static void catch_up(LockVm *l)
{
    GError *err = NULL;
    SoftSystem *s = l->follow->system;
    l->tries = 0;
    l->repetitions = 0;
    l->arrived = l->acknowledged = l->met = false;
    l->follow_steps = s->steps;
    s->nmi_waiting = l->nmi_waiting;
    s->exception_pending = l->exception_pending;
    vcpu_engine_soft.run(&l->follow->vcpu, &err);
    instructions += s->steps - l->follow_steps;
    if (!l->arrived)
        diverged(l, l->wrong ? l->wrong : "the follower does not get there");
    g_array_set_size(l->log, 0);
    l->head = 0;
}

static void copy_dma(LockVm *l)
{
    pthread_mutex_lock(&l->lock);
    for (guint i = 0; i < l->dma->len; i++) {
        const DmaRange *r = &g_array_index(l->dma, DmaRange, i);
        uint8_t *to = lockstep_follower_ram(l, r->gpa, r->size);
        SoftPage from = soft_page_find((SoftVm *)l->leader, r->gpa);
        if (to && from.host)
            memcpy(to, from.host + (r->gpa & 4095), r->size);
        vcpu_engine_soft.ram_dirty(l->follower, r->gpa, r->size);
    }
    g_array_set_size(l->dma, 0);
    pthread_mutex_unlock(&l->lock);
}

/* All of it from the leader: after a reset, or whatever else came from outside. */
static void take_over(LockVm *l)
{
    GError *err = NULL;
    g_autofree VcpuState *state = g_new0(VcpuState, 1);
    for (unsigned i = 0; i < VCPU_RAM_SLOTS_MAX; i++) {
        const VcpuRamSlot *a = &l->vm.ram[i], *b = &l->follower->ram[i];
        for (uint64_t at = 0; at < a->size; at += 4096)
            if (memcmp(b->hva + at, a->hva + at, 4096) != 0)
                memcpy(b->hva + at, a->hva + at, 4096);
        if (a->size)
            vcpu_engine_soft.ram_dirty(l->follower, a->gpa, a->size);
    }
    l->logging = false;
    if (!vcpu_engine_soft.get_state(&l->lead->vcpu, state, &err) ||
        !vcpu_engine_soft.set_state(&l->follow->vcpu, state, &err)) {
        fprintf(stderr, "lockstep: %s\n", err->message);
        _exit(99);
    }
    l->logging = true;
    l->follow->fpu.xinuse = l->lead->fpu.xinuse;
    l->fresh = false;
}

static bool lead_between(SoftCpu *cpu, void *opaque)
{
    LockVm *l = opaque;
    if (l->fresh) {
        g_array_set_size(l->log, 0);
        take_over(l);
    } else {
        if (l->break_at && ++blocks == l->break_at)
            cpu->gpr[GPR_RAX] ^= 0x10;
        blocks += l->break_at == 0;
        catch_up(l);
        if (l->memory_every && blocks % l->memory_every == 0)
            compare_memory(l);
    }
    copy_dma(l);
    l->lead_steps = cpu->system->steps;
    l->nmi_waiting = cpu->system->nmi_waiting;
    l->exception_pending = cpu->system->exception_pending;
    return false;
}

/* ---- the engine ---- */

static bool lock_probe(char **why)
{
    return vcpu_engine_soft.probe(why);
}

static void lock_vm_free(VcpuVm *vm)
{
    LockVm *l = (LockVm *)vm;
    if (!l)
        return;
    vcpu_engine_soft.vm_free(l->leader);
    VcpuRamSlot ram[VCPU_RAM_SLOTS_MAX] = {0};
    if (l->follower)
        memcpy(ram, l->follower->ram, sizeof(ram));
    vcpu_engine_soft.vm_free(l->follower);
    for (unsigned i = 0; i < VCPU_RAM_SLOTS_MAX; i++)
        if (ram[i].size)
            munmap(ram[i].hva, ram[i].size);
    g_array_free(l->log, TRUE);
    g_array_free(l->dma, TRUE);
    pthread_mutex_destroy(&l->lock);
    g_aligned_free(l);
}

static VcpuVm *lock_vm_new(const VcpuVmConfig *config, GError **err)
{
    if (config->n_vcpus != 1) {
        lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "lockstep is of one vCPU");
        return NULL;
    }
    soft_features_init();
    soft_features.rdrand = soft_features.rdseed = false; /* the one source that no log holds */
    LockVm *l = g_aligned_alloc0(1, sizeof(LockVm), 64);
    l->vm = (VcpuVm){.engine = &vcpu_engine_lockstep, .bus = config->bus, .config = *config};
    l->log = g_array_new(FALSE, TRUE, sizeof(LogEntry));
    l->dma = g_array_new(FALSE, TRUE, sizeof(DmaRange));
    pthread_mutex_init(&l->lock, NULL);
    l->leader_bus = lockstep_leader_bus;
    l->follower_bus = lockstep_follower_bus;
    l->leader_bus.opaque = l->follower_bus.opaque = l;
    l->leader_observer = (SoftObserver){l, lead_between, lockstep_leader_time};
    l->follower_observer = (SoftObserver){l, follow_between, lockstep_follower_time};
    l->break_at = environment_number("LODGE_LOCKSTEP_BREAK", 0);
    l->memory_every = environment_number("LODGE_LOCKSTEP_MEMORY", 0);
    VcpuVmConfig inner = *config;
    inner.tuning.no_chains = inner.tuning.kick = true;
    inner.bus = &l->leader_bus;
    l->leader = vcpu_engine_soft.vm_new(&inner, err);
    inner.perf_map = NULL;
    inner.tuning = (VcpuTuning){.interpreter = true, .kick = true, .block_ops = 1};
    inner.bus = &l->follower_bus;
    l->follower = l->leader ? vcpu_engine_soft.vm_new(&inner, err) : NULL;
    if (!l->follower) {
        lock_vm_free(&l->vm);
        return NULL;
    }
    return &l->vm;
}

static bool lock_set_ram(VcpuVm *vm, unsigned slot, const VcpuRamSlot *ram, GError **err)
{
    LockVm *l = (LockVm *)vm;
    VcpuRamSlot copy = *ram, old = l->follower->ram[slot];
    if (!vcpu_engine_soft.set_ram(l->leader, slot, ram, err))
        return false;
    if (ram->size) {
        copy.hva = mmap(NULL, ram->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (copy.hva == MAP_FAILED)
            return lodge_fail(err, LODGE_ERROR_LIMIT, "no memory for the follower's RAM");
    }
    if (!vcpu_engine_soft.set_ram(l->follower, slot, &copy, err))
        return false;
    if (old.size)
        munmap(old.hva, old.size);
    l->vm.ram[slot] = *ram;
    l->fresh = true;
    return true;
}

static void lock_ram_dirty(VcpuVm *vm, uint64_t gpa, uint64_t size)
{
    LockVm *l = (LockVm *)vm;
    vcpu_engine_soft.ram_dirty(l->leader, gpa, size);
    /* RAM is contiguous in the host only within a page. */
    while (size) {
        uint64_t n = MIN(size, 4096 - (gpa & 4095));
        SoftPage page = soft_page_find((SoftVm *)l->leader, gpa & ~(uint64_t)4095);
        if (page.host && l->logging && pthread_equal(l->thread, pthread_self())) {
            lockstep_log_add(l, (LogEntry){.kind = LOG_DMA, .address = gpa, .value = n,
                                  .data = g_memdup2(page.host + (gpa & 4095), n)});
        } else if (page.host) {
            DmaRange r = {gpa, n};
            pthread_mutex_lock(&l->lock);
            g_array_append_val(l->dma, r);
            pthread_mutex_unlock(&l->lock);
        }
        gpa += n;
        size -= n;
    }
}

static Vcpu *lock_vcpu_new(VcpuVm *vm, unsigned index, GError **err)
{
    LockVm *l = (LockVm *)vm;
    l->lead = (SoftCpu *)vcpu_engine_soft.vcpu_new(l->leader, index, err);
    l->follow = l->lead ? (SoftCpu *)vcpu_engine_soft.vcpu_new(l->follower, index, err) : NULL;
    if (!l->follow) {
        vcpu_engine_soft.vcpu_free(l->lead ? &l->lead->vcpu : NULL);
        return NULL;
    }
    l->lead->system->observer = &l->leader_observer;
    l->follow->system->observer = &l->follower_observer;
    LockCpu *c = g_new0(LockCpu, 1);
    c->vcpu = (Vcpu){.engine = &vcpu_engine_lockstep, .vm = vm, .index = index};
    c->vm = l;
    l->fresh = true;
    return &c->vcpu;
}

static void lock_vcpu_free(Vcpu *vcpu)
{
    LockCpu *c = (LockCpu *)vcpu;
    if (!c)
        return;
    vcpu_engine_soft.vcpu_free(&c->vm->lead->vcpu);
    vcpu_engine_soft.vcpu_free(&c->vm->follow->vcpu);
    g_free(c);
}

static VcpuExit lock_run(Vcpu *vcpu, GError **err)
{
    LockVm *l = ((LockCpu *)vcpu)->vm;
    l->thread = pthread_self();
    l->logging = true;
    VcpuExit exit = vcpu_engine_soft.run(&l->lead->vcpu, err);
    if (exit == VCPU_EXIT_KICK && !l->fresh) { /* it left before the observer was asked */
        lead_between(l->lead, l);
        if (l->memory_every)
            compare_memory(l);
    }
    l->logging = false;
    return exit;
}

static void lock_kick(Vcpu *vcpu)
{
    vcpu_engine_soft.kick(&((LockCpu *)vcpu)->vm->lead->vcpu);
}

static void lock_signal(Vcpu *vcpu, VcpuSignal signal, unsigned argument)
{
    vcpu_engine_soft.signal(&((LockCpu *)vcpu)->vm->lead->vcpu, signal, argument);
}

static bool lock_get_state(Vcpu *vcpu, VcpuState *state, GError **err)
{
    return vcpu_engine_soft.get_state(&((LockCpu *)vcpu)->vm->lead->vcpu, state, err);
}

static bool lock_set_state(Vcpu *vcpu, const VcpuState *state, GError **err)
{
    LockVm *l = ((LockCpu *)vcpu)->vm;
    l->fresh = true;
    return vcpu_engine_soft.set_state(&l->lead->vcpu, state, err);
}

static uint64_t lock_tsc(Vcpu *vcpu)
{
    return vcpu_engine_soft.tsc(&((LockCpu *)vcpu)->vm->lead->vcpu) / lockstep_slow;
}

const VcpuEngine vcpu_engine_lockstep = {
    .name = "lockstep",
    .probe = lock_probe,
    .vm_new = lock_vm_new,
    .vm_free = lock_vm_free,
    .set_ram = lock_set_ram,
    .ram_dirty = lock_ram_dirty,
    .vcpu_new = lock_vcpu_new,
    .vcpu_free = lock_vcpu_free,
    .run = lock_run,
    .kick = lock_kick,
    .signal = lock_signal,
    .get_state = lock_get_state,
    .set_state = lock_set_state,
    .tsc = lock_tsc,
};

void lockstep_summary(void)
{
    if (blocks)
        fprintf(stderr, "lockstep: %" PRIu64 " blocks, %" PRIu64 " instructions, RAM compared %" PRIu64
                " times: equal\n", blocks, instructions, sweeps);
}
