/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The engine interface: what runs guest instructions. `kvm` uses the host's hardware
 * virtualization, `soft` is Lodge's own CPU. An engine sees the rest of the machine only
 * through VcpuBus, and is tested without a machine.
 *
 * Threads: each vCPU is run by one thread of the caller; kick, signal and the VM-wide
 * calls may come from any thread.
 */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/x86-cpu.h"
#include "vcpu/state.h"

#define VCPU_COUNT_MAX     64
#define VCPU_RAM_SLOTS_MAX 32

typedef struct VcpuVm VcpuVm; /* one guest; engines derive by embedding it first */
typedef struct Vcpu Vcpu;     /* one vCPU; likewise */

/* One piece of RAM or ROM in guest physical memory; gpa, hva and size are page aligned. */
typedef struct VcpuRamSlot {
    uint64_t gpa, size;
    uint8_t *hva;
    bool readonly; /* guest writes are dropped into mmio_write */
} VcpuRamSlot;

/*
 * What a vCPU reaches outside RAM. All are called on the vCPU's own thread, without
 * locks held. size: 1, 2, 4 or 8 bytes. Reads of nothing return all ones.
 */
typedef struct VcpuBus {
    void *opaque;
    uint64_t (*port_read)(void *opaque, unsigned vcpu, uint16_t port, unsigned size);
    void (*port_write)(void *opaque, unsigned vcpu, uint16_t port, unsigned size, uint64_t value);
    uint64_t (*mmio_read)(void *opaque, unsigned vcpu, uint64_t gpa, unsigned size);
    void (*mmio_write)(void *opaque, unsigned vcpu, uint64_t gpa, unsigned size, uint64_t value);
    /* The members below are used only by engines without an irqchip of their own. */
    /* Takes the interrupt that the local APIC or PIC would deliver now: a vector, or -1 for none.
     */
    int (*interrupt_acknowledge)(void *opaque, unsigned vcpu);
    uint64_t (*cr8_read)(void *opaque, unsigned vcpu); /* TPR bits 7:4 */
    void (*cr8_write)(void *opaque, unsigned vcpu, uint64_t value);
    /* MSRs that live in the APIC: 0x1b, 0x6e0, 0x800-0x8ff. False: raise #GP. */
    bool (*apic_msr_read)(void *opaque, unsigned vcpu, uint32_t msr, uint64_t *value);
    bool (*apic_msr_write)(void *opaque, unsigned vcpu, uint32_t msr, uint64_t value);
    /* An interrupt as a write of @icr (its low half) with the physical destination @apic_id sends
     * it. False: there is no such APIC. May be NULL. */
    bool (*apic_send)(void *opaque, unsigned vcpu, uint32_t apic_id, uint32_t icr);
} VcpuBus;

typedef enum VcpuSignal {
    VCPU_SIGNAL_INTERRUPT, /* interrupt_acknowledge may have something; idempotent */
    VCPU_SIGNAL_NMI,
    VCPU_SIGNAL_INIT,
    VCPU_SIGNAL_SIPI, /* argument: the start-up vector */
} VcpuSignal;

typedef enum VcpuExit {
    VCPU_EXIT_KICK,         /* somebody called kick */
    VCPU_EXIT_TRIPLE_FAULT, /* shutdown state: the board resets or stops */
    VCPU_EXIT_ERROR,        /* *err says why; the guest cannot go on */
    VCPU_EXIT_DEBUG,        /* a debugger's stop: debug_stop tells which */
} VcpuExit;

/*
 * Ways to run that show faults of the software CPU: each must change its speed and nothing that a guest can
 * see. All zero is how it should be; another engine refuses the rest. lodge-vmm --cpu-debug.
 */
typedef struct VcpuTuning {
    bool interpreter;      /* nothing is translated to host code */
    bool kick;             /* something is always pending: every block is left to the run loop */
    bool tlb_one;          /* a fill of the first-level TLB empties the rest of it */
    bool no_coalescing;    /* every access of a block is checked by itself */
    bool no_chains;        /* no block knows its successor */
    bool no_mirror;        /* user code goes through the software TLB, too */
    bool mirror_now;       /* ... and this way it never does */
    uint32_t flush_blocks; /* the code cache is emptied whenever so many blocks were made; 0: when it is full */
    uint32_t block_ops;    /* at most so many instructions a block, 1: or repetitions; 0: no such limit */
} VcpuTuning;

/* Sets what @text asks for ("kick,flush=7"), and leaves the rest as it is. */
bool vcpu_tuning_parse(const char *text, VcpuTuning *tuning, GError **err);
static inline bool vcpu_tuning_any(const VcpuTuning *t)
{
    return t->interpreter || t->kick || t->tlb_one || t->no_coalescing || t->no_chains || t->no_mirror ||
           t->mirror_now || t->flush_blocks || t->block_ops;
}

/* What a debugger stops at, beside the guest's own debug registers. Addresses are linear. */
typedef enum VcpuBreakKind {
    VCPU_BREAK_SOFTWARE, /* before the instruction at the address; see VcpuEngine.debug_patches */
    VCPU_BREAK_HARDWARE, /* the same, by a debug register where the engine needs one */
    VCPU_BREAK_WRITE,    /* after a store to part of [address, address + length) */
    VCPU_BREAK_READ,
    VCPU_BREAK_ACCESS, /* either */
} VcpuBreakKind;

typedef struct VcpuBreakpoint {
    uint64_t address, length; /* length 1 for the first two kinds */
    VcpuBreakKind kind;
} VcpuBreakpoint;

#define VCPU_BREAKPOINTS_MAX 1024

typedef struct VcpuDebug {
    bool active; /* false: no debugger; the rest is not looked at */
    bool step;   /* leave run after one instruction; interrupts wait meanwhile */
    unsigned n;
    const VcpuBreakpoint *breakpoints;
} VcpuDebug;

typedef struct VcpuDebugStop {
    bool step;          /* nothing but the step is over */
    VcpuBreakKind kind; /* unless step */
    uint64_t address;   /* of the breakpoint, or within the watched range */
} VcpuDebugStop;

typedef struct VcpuVmConfig {
    unsigned n_vcpus;
    const VcpuBus *bus; /* outlives the VM */
    /* Topology for CPUID; n_vcpus = sockets * cores * threads. 0 means 1. */
    unsigned sockets, cores, threads;
    const X86CpuSpec *cpu; /* NULL: all that the engine has. Read by vm_new only. */
    uint64_t code_cache_size; /* soft only; 0 = default (7 MiB) */
    /* soft only, others refuse it: where to write a perf map of translated code; NULL: nowhere. "%p" in it
     * stands for the process's number. Read by vm_new only. */
    const char *perf_map;
    VcpuTuning tuning; /* soft only, others refuse it */
} VcpuVmConfig;

/*
 * What an engine counts of one vCPU since it was made (vcpu/stats.c names them for users); what an
 * engine does not count stays 0. A vCPU's own thread counts with vcpu_count, any thread reads.
 */
typedef struct VcpuStats {
    uint64_t blocks_decoded;         /* for the interpreter */
    uint64_t blocks_translated;      /* to host code */
    uint64_t translated_guest_bytes; /* how much guest code went in */
    uint64_t translated_host_bytes;  /* ... and host code came out */
    uint64_t translation_ns;         /* spent on it */
    uint64_t code_cache_size, code_cache_used; /* bytes, now */
    uint64_t code_cache_evictions;   /* times that room was made */
    uint64_t code_cache_pause_ns;    /* the longest time that one took */
    uint64_t tlb_misses;             /* data accesses that the first level did not hold */
    uint64_t tlb_walks;              /* page table walks */
    uint64_t mirror_fills;           /* pages of guest processes that became mirrored memory */
    /* Why guest code was left: */
    uint64_t exits_interrupt, exits_io, exits_mmio, exits_halt, exits_fault;
    uint64_t exits_helper; /* an instruction that translated code leaves to the interpreter */
    uint64_t exits_smc;    /* it stored into decoded or translated code of its own */
    uint64_t exits_kick;
} VcpuStats;

/* Relaxed, by the one thread that writes @counter: an add, without a lock. */
static inline void vcpu_count(uint64_t *counter, uint64_t n)
{
    __atomic_store_n(counter, __atomic_load_n(counter, __ATOMIC_RELAXED) + n, __ATOMIC_RELAXED);
}

static inline void vcpu_count_set(uint64_t *counter, uint64_t value)
{
    __atomic_store_n(counter, value, __ATOMIC_RELAXED);
}

typedef struct VcpuEngine {
    const char *name; /* "kvm", "soft" */
    bool has_irqchip; /* local APICs, IOAPIC, PIC and PIT are inside the engine */

    /* Whether the engine works here, by trying it. On false *why (owned by the caller) says why
     * not. */
    bool (*probe)(char **why);

    VcpuVm *(*vm_new)(const VcpuVmConfig *config, GError **err);
    void (*vm_free)(VcpuVm *vm); /* after all vCPUs were freed; NULL is accepted */
    /* Adds or (size 0) removes slot @slot. No vCPU may be running. */
    bool (*set_ram)(VcpuVm *vm, unsigned slot, const VcpuRamSlot *ram, GError **err);
    /* A device wrote guest RAM: translated code of the range is stale. NULL if the hardware sees
     * it. */
    void (*ram_dirty)(VcpuVm *vm, uint64_t gpa, uint64_t size);

    Vcpu *(*vcpu_new)(VcpuVm *vm, unsigned index, GError **err);
    void (*vcpu_free)(Vcpu *vcpu);
    /* Runs guest instructions until there is a reason to return; blocks while halted. */
    VcpuExit (*run)(Vcpu *vcpu, GError **err);
    /* Makes the current or the next run return VCPU_EXIT_KICK soon. Any thread. */
    void (*kick)(Vcpu *vcpu);
    /* Any thread; only for engines without an irqchip (NMI: for all). */
    void (*signal)(Vcpu *vcpu, VcpuSignal signal, unsigned argument);
    /* Only while the vCPU is not inside run. set_state refuses impossible states. */
    bool (*get_state)(Vcpu *vcpu, VcpuState *state, GError **err);
    bool (*set_state)(Vcpu *vcpu, const VcpuState *state, GError **err);
    /* The guest's TSC now. Any thread. */
    uint64_t (*tsc)(Vcpu *vcpu);
    /* Any thread, also while the vCPU runs. */
    void (*stats)(Vcpu *vcpu, VcpuStats *stats);

    /*
     * Takes a copy of @debug, in force until the next call; only while the vCPU is not inside run.
     * The next run does not stop again at the breakpoint where the last one did.
     */
    bool (*debug)(Vcpu *vcpu, const VcpuDebug *debug, GError **err);
    /* Why the last run returned VCPU_EXIT_DEBUG. */
    VcpuDebugStop (*debug_stop)(Vcpu *vcpu);
    bool debug_patches; /* VCPU_BREAK_SOFTWARE tells INT3s that the debugger wrote into memory */
    /* What all kinds but VCPU_BREAK_SOFTWARE share: that many, aligned, of 1, 2, 4 or 8 bytes,
     * and none of VCPU_BREAK_READ. 0: any number of any length and kind. */
    unsigned debug_registers;

    /* Engines with an irqchip; NULL otherwise. */
    bool (*set_gsi)(VcpuVm *vm, unsigned gsi, bool level);
    bool (*send_msi)(VcpuVm *vm, uint64_t address, uint32_t data);
    /* Signals @fd (an eventfd) instead of calling mmio_write for writes to [gpa, gpa+size). */
    bool (*add_ioeventfd)(VcpuVm *vm, uint64_t gpa, unsigned size, int fd, GError **err);
    bool (*del_ioeventfd)(VcpuVm *vm, uint64_t gpa, unsigned size, int fd, GError **err);
    /* Raises the MSI whenever @fd is signalled. */
    bool (*add_irqfd)(VcpuVm *vm, int fd, uint64_t address, uint32_t data, unsigned *route,
                      GError **err);
    bool (*del_irqfd)(VcpuVm *vm, int fd, unsigned route, GError **err);
    /* Dirty log of a RAM slot, one bit a page, cleared by reading; bitmap of size/4096/8 bytes. */
    bool (*dirty_log_start)(VcpuVm *vm, unsigned slot, GError **err);
    bool (*dirty_log_read)(VcpuVm *vm, unsigned slot, uint8_t *bitmap, size_t size, GError **err);
    bool (*dirty_log_stop)(VcpuVm *vm, unsigned slot, GError **err);
} VcpuEngine;

/* What every engine's VM and vCPU start with. */
struct VcpuVm {
    const VcpuEngine *engine;
    const VcpuBus *bus;
    VcpuVmConfig config;
    VcpuRamSlot ram[VCPU_RAM_SLOTS_MAX]; /* size 0: unused */
    char *cpu_lacking; /* features that config.cpu asked for and does without; NULL: none */
};

struct Vcpu {
    const VcpuEngine *engine;
    VcpuVm *vm;
    unsigned index;
};

extern const VcpuEngine vcpu_engine_kvm;
extern const VcpuEngine vcpu_engine_soft;

/* Every engine, best first, NULL-terminated. */
extern const VcpuEngine *const vcpu_engines[];

/*
 * The engine named @name, or for "auto" the first that works. *reason (owned by the caller)
 * says in one line which was taken and why. NULL and @err if the named one does not work.
 */
const VcpuEngine *vcpu_engine_select(const char *name, char **reason, GError **err);

/* The host's TSC frequency in kHz, measured once. Any thread. */
uint64_t vcpu_host_tsc_khz(void);

/* ---- what VcpuStats holds, for whoever prints it (stats.c) ---- */

typedef enum VcpuStatKind { VCPU_STAT_CUMULATIVE, VCPU_STAT_INSTANT, VCPU_STAT_PEAK } VcpuStatKind;
typedef enum VcpuStatUnit { VCPU_STAT_COUNT, VCPU_STAT_BYTES, VCPU_STAT_NS } VcpuStatUnit;

typedef struct VcpuStatField {
    const char *name; /* "blocks-translated" */
    size_t offset;    /* in VcpuStats, of a uint64_t */
    VcpuStatKind kind;
    VcpuStatUnit unit;
} VcpuStatField;
extern const VcpuStatField vcpu_stat_fields[]; /* ends with {0} */

/* A consistent enough copy of counters that another thread writes. */
void vcpu_stats_copy(VcpuStats *to, const VcpuStats *from);
