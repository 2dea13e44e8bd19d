/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The run loop of a vCPU: signals between blocks, blocks, traps after an instruction, and the
 * way back from a fault (SDM vol. 3 table 6-2 gives the order).
 */
#include <asm/prctl.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "vcpu/soft/translate/mirror.h"
#include "vcpu/soft/vm.h"

#define HWCAP2_FSGSBASE_BIT 2u /* Documentation/arch/x86/elf_hwcaps.rst */

#define DR6_BS 0x4000u

/* How a fault left its instruction: everything that held for it alone is over. */
static void instruction_over(SoftCpu *cpu)
{
    cpu->shadow = false;
    cpu->system->single_once = false;
    cpu->system->debug_hits = 0;
    cpu->system->debugger.hit = false;
}

static void take_fault(SoftCpu *cpu)
{
    SoftSystem *s = cpu->system;
    bool next = s->delivering || s->rip_is_next;
    s->rip_is_next = false;
    if (!next)
        cpu->rip = cpu->op->rip;
    instruction_over(cpu);
    vcpu_count(&cpu->stats.exits_fault, 1);
    soft_event_exception(cpu, cpu->fault_vector, cpu->fault_has_error, cpu->fault_error, cpu->rip);
}

static void deliver_debug(SoftCpu *cpu, uint32_t dr6)
{
    cpu->dr[6] = (cpu->dr[6] & ~(uint64_t)0xf) | dr6;
    cpu->activity = VCPU_RUNNING; /* HLT may have been what was stepped over */
    soft_event_exception(cpu, EXC_DB, false, 0, cpu->rip);
}

/* Interrupts and NMIs that may be delivered now. */
static void deliver_events(SoftCpu *cpu)
{
    SoftSystem *s = cpu->system;
    if (s->exception_pending) {
        s->exception_pending = false;
        soft_event_exception(cpu, s->exception_vector, s->exception_has_error, s->exception_error,
                             cpu->rip);
        return;
    }
    /* A step ends at the next instruction, not in the handler of whatever was due. */
    if (s->debugger.step && cpu->activity == VCPU_RUNNING)
        return;
    if (s->nmi_waiting && !cpu->nmi_masked && !cpu->shadow) {
        s->nmi_waiting--;
        cpu->nmi_masked = true;
        cpu->activity = VCPU_RUNNING;
        soft_event_deliver(cpu, EXC_NMI, SOFT_EVENT_EXTERNAL, false, 0, cpu->rip);
        return;
    }
    if (s->interrupt_waiting && (cpu->rflags & FLAG_IF) && !cpu->shadow) {
        const VcpuBus *bus = cpu->vcpu.vm->bus;
        s->interrupt_waiting = false;
        soft_sync_leave(cpu);
        int vector = bus->interrupt_acknowledge(bus->opaque, cpu->vcpu.index);
        soft_sync_enter(cpu);
        if (vector < 0)
            return;
        s->interrupt_waiting = true; /* there may be another */
        vcpu_count(&cpu->stats.exits_interrupt, 1);
        cpu->activity = VCPU_RUNNING;
        soft_event_deliver(cpu, (unsigned)vector & 0xff, SOFT_EVENT_EXTERNAL, false, 0, cpu->rip);
    }
}

static void start_up(SoftCpu *cpu)
{
    if (cpu->activity != VCPU_WAIT_FOR_SIPI)
        return;
    unsigned vector = atomic_load(&cpu->system->sipi_vector) & 0xff;
    VcpuSegment *cs = &cpu->seg[SEG_CS];
    cs->selector = (uint16_t)(vector << 8);
    cs->base = vector << 12;
    cpu->rip = 0;
    cpu->activity = VCPU_RUNNING;
    soft_mode_update(cpu);
}

/*
 * One NMI is kept while another is served (SDM vol. 3 6.7.1). Outside of that two are: a processor
 * would have begun with the first before the second came.
 */
static void count_nmis(SoftCpu *cpu)
{
    SoftSystem *s = cpu->system;
    unsigned most = cpu->nmi_masked ? 1 : 2;
    uint32_t waiting = s->nmi_waiting + atomic_exchange(&s->nmi_signals, 0);
    s->nmi_waiting = (uint8_t)MIN(waiting, most);
}

/* True if run must return VCPU_EXIT_KICK. */
static bool take_pending(SoftCpu *cpu)
{
    SoftSystem *s = cpu->system;
    /* Tuning "kick": there is always something. */
    uint32_t bits = atomic_exchange(&cpu->pending, cpu->vcpu.vm->config.tuning.kick ? SOFT_PENDING_LOOP : 0);
    if (bits & SOFT_PENDING_SYNC)
        soft_sync_serve(cpu);
    if (bits & SOFT_PENDING_INIT) {
        s->nmi_waiting = 0;
        atomic_store(&s->nmi_signals, 0);
        soft_reset_init(cpu);
    }
    if (bits & SOFT_PENDING_SIPI)
        start_up(cpu);
    if (bits & SOFT_PENDING_NMI)
        count_nmis(cpu);
    if (bits & SOFT_PENDING_INTERRUPT)
        s->interrupt_waiting = true;
    if (!(bits & SOFT_PENDING_KICK))
        return false;
    vcpu_count(&cpu->stats.exits_kick, 1);
    return true;
}

static void sleep_until_signalled(SoftCpu *cpu)
{
    vcpu_count(&cpu->stats.exits_halt, 1);
    soft_sync_leave(cpu);
    soft_sync_sleep(cpu);
    soft_sync_enter(cpu);
}

/* A code breakpoint on the next instruction is a fault before it. True if one was delivered. */
static bool code_breakpoint(SoftCpu *cpu)
{
    uint32_t dr6 = soft_debug_code(cpu, soft_code_linear(cpu, cpu->rip));
    if (!dr6)
        return false;
    cpu->shadow = false;
    deliver_debug(cpu, dr6);
    return true;
}

/* One instruction in SOFT_MODE_SINGLE, else blocks until there is something to do. */
static void execute(SoftCpu *cpu)
{
    SoftSystem *s = cpu->system;
    bool single = cpu->mode & SOFT_MODE_SINGLE, tf = cpu->rflags & FLAG_TF, shadow = cpu->shadow;
    /* MOV SS holds off code breakpoints on Intel's processors, not on AMD's. */
    bool held_off = shadow && s->shadow_ss && soft_limits.intel;
    if (s->code_breakpoints && !(cpu->rflags & FLAG_RF) && !held_off && code_breakpoint(cpu)) {
        s->steps++;
        return;
    }
    cpu->rflags &= ~(uint64_t)FLAG_RF;
    s->steps++;
    s->no_step = false;
    s->shadow_new = false;
    soft_blocks_run(cpu);

    if (shadow && !s->shadow_new) {
        cpu->shadow = false;
        soft_mode_update(cpu);
    }
    if (single && s->single_once) {
        s->single_once = false;
        soft_mode_update(cpu);
    }
    if (cpu->shadow && s->shadow_ss)
        return; /* traps wait for the instruction after MOV SS */
    uint32_t dr6 = s->debug_hits;
    if (tf && !s->no_step)
        dr6 |= DR6_BS;
    s->debug_hits = 0;
    if (dr6)
        deliver_debug(cpu, dr6);
}

static void step(SoftCpu *cpu)
{
    if (soft_debugger_before(cpu))
        return;
    execute(cpu);
    soft_debugger_after(cpu);
}

/* Neither runs nor can be woken by an interrupt. */
static bool waits_for_sipi(const SoftCpu *cpu)
{
    return cpu->activity == VCPU_WAIT_FOR_SIPI && !atomic_load(&cpu->pending);
}

/* Translated code reaches the vCPU through GS, which nothing else on this thread uses. */
static void gs_set(SoftCpu *cpu)
{
    if (getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE_BIT)
        __asm__ volatile("wrgsbase %0" : : "r"(cpu));
    else
        syscall(SYS_arch_prctl, ARCH_SET_GS, cpu);
}

/* True if the observer wants run to return. It may have run another vCPU, an interpreter, on this thread. */
static bool observed(SoftCpu *cpu)
{
    const SoftObserver *o = cpu->system->observer;
    if (!o)
        return false;
    bool leave = o->between(cpu, o->opaque);
    gs_set(cpu);
    return leave;
}

static VcpuExit loop(SoftCpu *cpu)
{
    SoftSystem *s = cpu->system;
    switch (setjmp(cpu->fault_jump)) {
    case 1:
        take_fault(cpu);
        soft_debugger_after(cpu);
        break;
    case 2: /* the instruction stores into its own block, or met a watchpoint */
        cpu->rip = cpu->op->rip;
        s->steps--;
        vcpu_count(&cpu->stats.exits_smc, 1);
        s->debug_hits = 0;
        s->debugger.hit = false;
        soft_mode_update(cpu);
        break;
    default:
        break;
    }
    for (;;) {
        if (s->triple)
            return VCPU_EXIT_TRIPLE_FAULT;
        if (s->debugger.stop) {
            s->debugger.stop = false;
            return VCPU_EXIT_DEBUG;
        }
        if (atomic_load_explicit(&cpu->pending, memory_order_relaxed) && take_pending(cpu))
            return VCPU_EXIT_KICK;
        if (observed(cpu))
            return VCPU_EXIT_KICK;
        if (cpu->activity != VCPU_WAIT_FOR_SIPI)
            deliver_events(cpu);
        if (cpu->activity == VCPU_RUNNING)
            step(cpu);
        else if (s->debugger.step && waits_for_sipi(cpu))
            soft_debugger_after(cpu);
        else if (!s->triple && !atomic_load(&cpu->pending) && !s->exception_pending)
            sleep_until_signalled(cpu);
    }
}

VcpuExit soft_run(Vcpu *vcpu, GError **err)
{
    SoftCpu *cpu = (SoftCpu *)vcpu;
    gs_set(cpu);
    mirror_thread_start(cpu);
    if (vcpu->vm->config.tuning.kick)
        soft_pend(cpu, SOFT_PENDING_LOOP);
    soft_sync_enter(cpu);
    VcpuExit exit = loop(cpu);
    soft_sync_leave(cpu);
    mirror_thread_end(cpu);
    return exit;
}
