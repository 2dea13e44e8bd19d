/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The system half of the software CPU: the VM, the vCPU's rarely used state and the interfaces
 * between run loop, memory management, events and segmentation. Decoder and instruction
 * handlers need only cpu.h.
 */
#pragma once

#include <pthread.h>

#include "vcpu/soft/cpu.h"

#define CR0_PE 0x1u
#define CR0_MP 0x2u
#define CR0_EM 0x4u
#define CR0_TS 0x8u
#define CR0_ET 0x10u
#define CR0_NE 0x20u
#define CR0_WP 0x10000u
#define CR0_AM 0x40000u
#define CR0_NW 0x20000000u
#define CR0_CD 0x40000000u
#define CR0_PG 0x80000000u

#define CR4_VME 0x1u
#define CR4_PVI 0x2u
#define CR4_TSD 0x4u
#define CR4_DE 0x8u
#define CR4_PSE 0x10u
#define CR4_PAE 0x20u
#define CR4_MCE 0x40u
#define CR4_PGE 0x80u
#define CR4_PCE 0x100u
#define CR4_OSFXSR 0x200u
#define CR4_OSXMMEXCPT 0x400u
#define CR4_UMIP 0x800u
#define CR4_FSGSBASE 0x10000u
#define CR4_PCIDE 0x20000u
#define CR4_OSXSAVE 0x40000u
#define CR4_SMEP 0x100000u
#define CR4_SMAP 0x200000u
#define CR4_PKE 0x400000u
#define CR4_PKS 0x1000000u

#define EFER_SCE 0x1u
#define EFER_LME 0x100u
#define EFER_LMA 0x400u
#define EFER_NXE 0x800u

/* The reads and writes of paging that CPUID offers (SDM vol. 3 4.1.4); filled by soft_features_init. */
typedef struct SoftLimits {
    bool intel;           /* the vendor advertised: where Intel and AMD differ, follow it */
    bool smep, smap, umip, pcid, page1g, nx, xsave, pku, pks;
    unsigned physical_bits;
    uint64_t cr4_allowed;
    uint64_t efer_allowed;
} SoftLimits;
extern SoftLimits soft_limits;

/*
 * A VM is made whose CPUs are @spec's (NULL: all that there is). Fails if @spec cannot be met, or if
 * VMs of another specification live. *lacking: see x86_cpu_resolve. Release when the VM is freed.
 */
bool soft_cpu_model_take(const X86CpuSpec *spec, char **lacking, GError **err);
void soft_cpu_model_release(void);

/* ---- the VM --------------------------------------------------------------------------------- */

struct SoftVm {
    VcpuVm vm; /* first */
    SoftCpu *cpus[VCPU_COUNT_MAX];
    /* One word a page of each RAM slot: see ram.c. */
    _Atomic uint32_t *page_words[VCPU_RAM_SLOTS_MAX];
    _Atomic(uint8_t *) read_only[VCPU_RAM_SLOTS_MAX]; /* the slot once more, made when first asked for */
    GPtrArray *retired_words; /* of removed slots: blocks may still point there */
    unsigned slots_used;      /* slots at and after this index are empty */

    pthread_mutex_t exclusive_lock;
    _Atomic(SoftCpu *) exclusive; /* the vCPU for whose sake all others wait, or NULL */

    /* Of every vCPU whose guest did not move its TSC: they tick alike. Set by set_state. */
    int64_t tsc_offset;

    struct SoftPerfMap *perf_map; /* NULL: none was asked for */
};

/* ---- rarely used state --- */

#define SOFT_MTRR_VARIABLE 8

typedef struct SoftMsrs {
    uint64_t star, lstar, cstar, fmask, kernel_gs_base;
    uint64_t sysenter_cs, sysenter_esp, sysenter_eip;
    uint64_t pkrs; /* as written by soft_keys_set alone */
    uint64_t pat, tsc_adjust, tsc_aux, misc_enable, feature_control, debugctl;
    uint64_t mcg_status, mcg_ctl;
    uint64_t mtrr_def_type, mtrr_fixed[11], mtrr_base[SOFT_MTRR_VARIABLE], mtrr_mask[SOFT_MTRR_VARIABLE];
    uint64_t kvm_system_time, kvm_wall_clock;
} SoftMsrs;

#define SOFT_FLUSH_MAX 16

/* How other threads reach a vCPU that runs; see sync.c. */
typedef struct SoftSync {
    _Atomic uint32_t inside;   /* executes guest code or touches its TLB */
    _Atomic uint32_t sleeping; /* in the futex of HLT */
    pthread_mutex_t lock;      /* of the members below */
    uint64_t flush[SOFT_FLUSH_MAX];
    unsigned n_flush; /* more than SOFT_FLUSH_MAX: everything */
    _Atomic uint32_t requested, served;
} SoftSync;

/* A debugger's share of a vCPU (debugger.c). */
typedef struct SoftDebugger {
    VcpuBreakpoint *list;
    unsigned n;
    VcpuBreakpoint *built; /* the list that decoded code was made with */
    unsigned n_built;
    bool step;    /* leave after one instruction */
    bool code;    /* the list has code breakpoints: blocks are decoded with them */
    bool data;    /* ... or watchpoints */
    bool hit;     /* this instruction met a watchpoint */
    bool stop;    /* run must return VCPU_EXIT_DEBUG, and @why says why */
    bool stopped; /* it did so last time, at @stopped_at: not there again */
    uint64_t stopped_at;
    VcpuDebugStop why;
} SoftDebugger;

/*
 * Who looks on while a vCPU runs, on its thread: lockstep of two CPUs (tests/cpu/lockstep.c). With tuning
 * "kick" every block is followed by a look.
 */
typedef struct SoftObserver {
    void *opaque;
    /* Before the next event or block, all state in SoftCpu. True: run returns VCPU_EXIT_KICK. */
    bool (*between)(SoftCpu *cpu, void *opaque);
    /* What the guest reads as the time (its TSC, the wall clock) instead of @now. */
    uint64_t (*time)(SoftCpu *cpu, void *opaque, uint64_t now);
} SoftObserver;

typedef struct SoftSystem {
    const SoftObserver *observer; /* NULL: nobody. While there is one, reading the time takes a handler. */
    uint64_t steps; /* blocks or runs of them begun, but for those that come to nothing */
    SoftMsrs msr;
    SoftSync sync;
    _Atomic uint32_t sipi_vector;
    bool interrupt_waiting; /* signalled while interrupts were off */
    _Atomic uint32_t nmi_signals; /* NMIs that other threads sent since the last look */
    uint8_t nmi_waiting;          /* NMIs that were not delivered yet: at most 2 */
    bool code_breakpoints;  /* DR7 enables an execution breakpoint */
    bool data_breakpoints;  /* ... or one on data or ports, or the debugger watches something */
    SoftDebugger debugger;
    bool single_once;       /* run one instruction, then drop this: it stores into its own code */
    bool no_step;           /* this instruction's single-step trap was lost (delivery, SYSCALL) */
    bool shadow_new;        /* this instruction began the interrupt shadow */
    bool shadow_ss;         /* the shadow is MOV SS's, which holds off #DB and NMI as well */
    uint32_t debug_hits;    /* DR6 bits of data breakpoints that this instruction met */

    /* The event in delivery: a fault meanwhile combines with it (SDM vol. 3 table 6-5). */
    bool delivering;
    uint8_t delivering_vector;
    bool delivering_exception; /* vector is an exception, not an interrupt or INT n */
    uint32_t pkru;             /* rights of the protection keys of user pages: see soft_keys_set */
    uint32_t ext;              /* the EXT bit of error codes now */
    bool rip_is_next;          /* the fault's return address is cpu->rip, not cpu->op->rip */
    bool triple;

    bool exception_pending; /* put there by set_state */
    uint8_t exception_vector;
    bool exception_has_error;
    uint32_t exception_error;
} SoftSystem;

static inline unsigned soft_supervisor_mmu(const SoftCpu *cpu, bool ac)
{
    return (cpu->cr4 & CR4_SMAP) && !ac ? SOFT_MMU_KERNEL : SOFT_MMU_KERNEL_SMAP_OFF;
}

/* RIP after @op, for handlers. */
static inline uint64_t soft_next_rip(const SoftCpu *cpu, const SoftOp *op)
{
    uint64_t rip = op->rip + op->length;
    return cpu->mode & SOFT_MODE_CODE64 ? rip : (uint32_t)rip;
}

static inline void soft_pend(SoftCpu *cpu, uint32_t bits)
{
    atomic_fetch_or_explicit(&cpu->pending, bits, memory_order_seq_cst);
}

static inline unsigned soft_iopl(const SoftCpu *cpu)
{
    return (unsigned)(cpu->rflags >> 12) & 3;
}

static inline bool soft_canonical(uint64_t linear)
{
    return (uint64_t)((int64_t)(linear << 16) >> 16) == linear;
}

/* ---- RAM (ram.c) --- */

/* A guest physical page: host address of its first byte (NULL: no RAM) and its word. */
typedef struct SoftPage {
    uint8_t *host;
    _Atomic uint32_t *word;
    bool readonly;
} SoftPage;

#define SOFT_WORD_PROTECTED 1u /* holds decoded code: out of every write TLB */
#define SOFT_WORD_SYNCED 2u    /* ... and every vCPU has complied */
#define SOFT_WORD_STEP 4u      /* the generation counts above the flags */

SoftPage soft_page_find(SoftVm *vm, uint64_t gpa);
/* The same byte of RAM in a mapping that cannot be written; NULL if there can be none. Any thread. */
uint8_t *soft_ram_read_only(SoftVm *vm, const uint8_t *host);
/* The page was written: decoded code of it is stale, and all vCPUs come to know. Any thread. */
void soft_page_written(SoftVm *vm, _Atomic uint32_t *word);
bool soft_ram_set(SoftVm *vm, unsigned slot, const VcpuRamSlot *ram, GError **err);
void soft_ram_free(SoftVm *vm);
void soft_ram_dirty(VcpuVm *vm, uint64_t gpa, uint64_t size);

/* ---- vCPUs among each other (sync.c) --- */

bool soft_sync_init(SoftCpu *cpu);
void soft_sync_free(SoftCpu *cpu);
/* Around everything that runs guest code; leave also around callbacks that may block. */
void soft_sync_enter(SoftCpu *cpu);
void soft_sync_leave(SoftCpu *cpu);
/* Does what other vCPUs asked for. */
void soft_sync_serve(SoftCpu *cpu);
/* Excludes all other vCPUs until end. Guest memory may change before begin returns. */
void soft_exclusive_begin(SoftCpu *cpu);
void soft_exclusive_end(SoftCpu *cpu);
/* Sleeps until cpu->pending is not 0 (or seems so). */
void soft_sync_sleep(SoftCpu *cpu);
void soft_sync_wake(SoftCpu *cpu);

/* ---- memory (mmu.c, walk.c, access.c) --- */

/* What a translation leads to. */
typedef struct SoftTranslation {
    uint64_t gpa; /* of the byte asked for */
    SoftPage page;
} SoftTranslation;

/* A page table walk's result; flags are SOFT_PTE_*. */
typedef struct SoftWalk {
    uint64_t gpa; /* of the 4 KiB page */
    uint32_t flags;
} SoftWalk;

#define SOFT_PTE_WRITE 0x2u
#define SOFT_PTE_USER 0x4u
#define SOFT_PTE_DIRTY 0x40u
#define SOFT_PTE_LARGE 0x80u
#define SOFT_PTE_GLOBAL 0x100u
#define SOFT_PTE_NX 0x200u
#define SOFT_PTE_HUGE 0x400u /* 1 GiB, always with LARGE */
#define SOFT_PTE_KEY_SHIFT 12 /* the page's protection key, 4 bits */

#define PF_PRESENT 1u
#define PF_WRITE 2u
#define PF_USER 4u
#define PF_RESERVED 8u
#define PF_FETCH 16u
#define PF_KEY 32u

/* Walks the page tables; sets accessed and dirty bits. False: *error is the #PF error code. */
bool soft_walk(SoftCpu *cpu, uint64_t linear, unsigned mmu, unsigned access, SoftWalk *walk,
               uint32_t *error);
/* Whether @flags permit the access; *error is completed if not. */
bool soft_walk_permits(const SoftCpu *cpu, uint32_t flags, unsigned mmu, unsigned access,
                       uint32_t *error);
/* PAE's page directory pointers have no reserved bit set (checked on loads of CR3). */
bool soft_pdptes_valid(SoftCpu *cpu, uint64_t cr3);

/* Sets PKRU (@supervisor false) or IA32_PKRS: what was cached under the old rights goes. */
void soft_keys_set(SoftCpu *cpu, bool supervisor, uint32_t rights);
bool soft_mmu_init(SoftCpu *cpu, GError **err);
void soft_mmu_free(SoftCpu *cpu);
/* False with a #PF error code; no address but a canonical one may come here. */
bool soft_translate_try(SoftCpu *cpu, uint64_t linear, unsigned mmu, unsigned access,
                        SoftTranslation *t, uint32_t *error);
/* Drops write tags of the page at @gpa (or of all pages). */
void soft_tlb_protect(SoftCpu *cpu, uint64_t gpa, bool all);
/* What user code may have mapped for the page of @linear. large: the 2 MiB around it, @host and @gpa their start. */
typedef struct SoftUserPage {
    uint8_t *host;
    uint64_t gpa;
    bool writable, large;
} SoftUserPage;
/* False: the access faults, or must be looked at each time (devices, code, watchpoints). */
bool soft_user_page(SoftCpu *cpu, uint64_t linear, unsigned access, SoftUserPage *out);
/* Forgets which code pages user code may jump to without asking. */
void soft_fetch_ids_forget(SoftCpu *cpu);
/* Forgets everything, RAM slots included. */
void soft_tlb_reset(SoftCpu *cpu);
void soft_tlb_load_cr3(SoftCpu *cpu, uint64_t cr3, bool keep);
void soft_tlb_flush_pcid(SoftCpu *cpu, unsigned pcid);
void soft_tlb_flush_pcid_page(SoftCpu *cpu, unsigned pcid, uint64_t linear);

/* Loads and stores as another kind of access than the current one (mmu = SOFT_MMU_*). */
uint64_t soft_load_as(SoftCpu *cpu, unsigned mmu, uint64_t linear, unsigned size);
void soft_store_as(SoftCpu *cpu, unsigned mmu, uint64_t linear, unsigned size, uint64_t value);
/* Faults if the access would; used before a sequence of stores that must not fault half way. */
void soft_probe_as(SoftCpu *cpu, unsigned mmu, uint64_t linear, unsigned size, unsigned access);
/* Guest physical memory, for pvclock and tests of it; false outside RAM. */
bool soft_physical_write(SoftVm *vm, uint64_t gpa, const void *from, unsigned size);
bool soft_physical_read(SoftVm *vm, uint64_t gpa, void *to, unsigned size);

/* ---- events (event.c, iret.c, task.c, run.c) --- */

enum { SOFT_EVENT_EXTERNAL, SOFT_EVENT_EXCEPTION, SOFT_EVENT_SOFTWARE, SOFT_EVENT_INT1 };

/* Delivers an event; @rip is the return address. Faults leave by soft_raise. */
void soft_event_deliver(SoftCpu *cpu, unsigned vector, unsigned type, bool has_error,
                        uint32_t error, uint64_t rip);
/* An exception, combined with what was in delivery. */
void soft_event_exception(SoftCpu *cpu, unsigned vector, bool has_error, uint32_t error,
                          uint64_t rip);
VcpuExit soft_run(Vcpu *vcpu, GError **err);
void soft_reset_init(SoftCpu *cpu); /* what the INIT signal does */
/* Sets the debug trap that is due when this instruction is over. */
void soft_debug_trap(SoftCpu *cpu, uint32_t dr6);

/* ---- debug registers (debug.c) --- */

void soft_debug_update(SoftCpu *cpu); /* after DR7 changed */
bool soft_debug_page_watched(const SoftCpu *cpu, uint64_t linear);
void soft_debug_access(SoftCpu *cpu, uint64_t linear, unsigned size, unsigned access);
void soft_debug_port(SoftCpu *cpu, uint16_t port, unsigned size);
/* DR6 bits of code breakpoints at the linear address @linear. */
uint32_t soft_debug_code(const SoftCpu *cpu, uint64_t linear);
/* This instruction met a data breakpoint outside SOFT_MODE_SINGLE: it must run again in a block of its
 * own, so that the trap comes right after it. */
bool soft_debug_must_restart(const SoftCpu *cpu);

/* ---- a debugger outside the guest (debugger.c) --- */

bool soft_debugger_set(Vcpu *vcpu, const VcpuDebug *debug, GError **err);
VcpuDebugStop soft_debugger_why(Vcpu *vcpu);
void soft_debugger_free(SoftCpu *cpu);
/* Whether it has a code breakpoint at @linear. */
bool soft_debugger_code_at(const SoftCpu *cpu, uint64_t linear);
bool soft_debugger_page_watched(const SoftCpu *cpu, uint64_t linear);
void soft_debugger_access(SoftCpu *cpu, uint64_t linear, unsigned size, unsigned access);
/* Makes run return before the instruction at @linear. */
void soft_debugger_break(SoftCpu *cpu, uint64_t linear);
/* Before an instruction: true if it must not be executed. After one: notes what is to be reported. */
bool soft_debugger_before(SoftCpu *cpu);
void soft_debugger_after(SoftCpu *cpu);
/* The linear address of the next instruction. */
uint64_t soft_code_linear(const SoftCpu *cpu, uint64_t rip);
/* Forgets all decoded code (block.c). */
void soft_blocks_flush(SoftCpu *cpu);

/* ---- segmentation (segment.c, far.c, task.c) --- */

typedef struct SoftDescriptor {
    uint64_t low, high; /* high: the second half of a 16-byte system descriptor */
    uint64_t linear;    /* where it lies */
} SoftDescriptor;

static inline unsigned soft_descriptor_type(const SoftDescriptor *d)
{
    return (unsigned)(d->low >> 40) & 0xf;
}
static inline bool soft_descriptor_s(const SoftDescriptor *d)
{
    return d->low >> 44 & 1;
}
static inline unsigned soft_descriptor_dpl(const SoftDescriptor *d)
{
    return (unsigned)(d->low >> 45) & 3;
}
static inline bool soft_descriptor_present(const SoftDescriptor *d)
{
    return d->low >> 47 & 1;
}
static inline bool soft_descriptor_code(const SoftDescriptor *d)
{
    return soft_descriptor_s(d) && (soft_descriptor_type(d) & 8);
}
static inline bool soft_descriptor_conforming(const SoftDescriptor *d)
{
    return (soft_descriptor_type(d) & 0xc) == 0xc;
}

/* System descriptor types (SDM vol. 3 table 3-2); 64-bit mode uses the 32-bit numbers. */
enum {
    SYS_TSS16 = 1, SYS_LDT = 2, SYS_TSS16_BUSY = 3, SYS_CALL16 = 4, SYS_TASK_GATE = 5, SYS_INT16 = 6,
    SYS_TRAP16 = 7, SYS_TSS32 = 9, SYS_TSS32_BUSY = 11, SYS_CALL32 = 12, SYS_INT32 = 14,
    SYS_TRAP32 = 15,
};

/* #vector(selector): index, TI and the EXT bit of the moment. */
_Noreturn void soft_raise_selector(SoftCpu *cpu, unsigned vector, uint16_t selector);
/* False if @selector is outside its table. The high half is not read. */
bool soft_descriptor_read(SoftCpu *cpu, uint16_t selector, SoftDescriptor *d);
/* Reads the second half of a system descriptor in IA-32e mode; #GP(selector) if outside the table. */
void soft_descriptor_read_high(SoftCpu *cpu, uint16_t selector, SoftDescriptor *d);
VcpuSegment soft_descriptor_segment(const SoftDescriptor *d, uint16_t selector);
void soft_descriptor_accessed(SoftCpu *cpu, SoftDescriptor *d);
/* Selectors loaded in real and VM86 mode. */
void soft_segment_real(SoftCpu *cpu, unsigned seg, uint16_t selector);
VcpuSegment soft_segment_null(uint16_t selector);
/* After a return to an outer level: ES, DS, FS, GS that the new level may not use become null. */
void soft_segment_return_checks(SoftCpu *cpu);
void soft_segment_lldt(SoftCpu *cpu, uint16_t selector);
void soft_segment_ltr(SoftCpu *cpu, uint16_t selector);
/* The SS checks of a stack switch or a return to @cpl; returns the hidden part. #vector(selector). */
VcpuSegment soft_segment_stack(SoftCpu *cpu, uint16_t selector, unsigned cpl, unsigned vector);
void soft_set_cpl(SoftCpu *cpu, unsigned cpl);
/* SP, ESP or RSP = value by @ss's size (64-bit mode: all of it). */
void soft_set_sp(SoftCpu *cpu, uint64_t value);

/* The stack pointer of level @cpl in the current TSS (32-bit or 16-bit format). */
void soft_tss_stack(SoftCpu *cpu, unsigned cpl, uint16_t *ss, uint32_t *sp);
/* The RSP (n 0-2) or IST (n 4-10, that is 3 + IST index) slot of the 64-bit TSS. */
uint64_t soft_tss_rsp(SoftCpu *cpu, unsigned n);

enum { SOFT_TASK_JMP, SOFT_TASK_CALL, SOFT_TASK_IRET, SOFT_TASK_GATE };
void soft_task_switch(SoftCpu *cpu, uint16_t selector, unsigned reason, uint64_t rip,
                      bool has_error, uint32_t error);

/*
 * A stack on which a frame is built or read: the fields are plain values until the caller commits
 * them, so that a fault half way changes nothing.
 */
typedef struct SoftStack {
    uint64_t base, sp, mask; /* linear address = base + (sp & mask) */
    VcpuSegment ss;
    unsigned mmu;
    unsigned vector;  /* what a limit violation raises: EXC_SS or EXC_TS */
    uint32_t error;
    bool wide; /* 64-bit: canonical checks only */
} SoftStack;
/* The current stack. */
SoftStack soft_stack_current(SoftCpu *cpu);
/* Another one; @mmu by the privilege level that will own it. */
SoftStack soft_stack_of(SoftCpu *cpu, const VcpuSegment *ss, uint64_t sp, unsigned cpl);
void soft_stack_push(SoftCpu *cpu, SoftStack *s, uint64_t value, unsigned size);
uint64_t soft_stack_pop(SoftCpu *cpu, SoftStack *s, unsigned size);
/* Faults if @size bytes cannot be pushed. */
void soft_stack_probe(SoftCpu *cpu, SoftStack *s, unsigned size);

/* ---- operands of system instructions (system-misc.c) --- */

/* The r/m operand: a register or memory of @size bytes. */
uint64_t soft_rm_read(SoftCpu *cpu, const SoftOp *op, unsigned size);
void soft_rm_write(SoftCpu *cpu, const SoftOp *op, unsigned size, uint64_t value);
/* A register's low 2 bytes, or all of it by a 4- or 8-byte write. */
void soft_gpr_write(SoftCpu *cpu, unsigned reg, unsigned size, uint64_t value);
/* #GP(0) unless CPL 0. */
void soft_require_cpl0(SoftCpu *cpu, const SoftOp *op);
static inline void soft_zf_set(SoftCpu *cpu, bool zf)
{
    cpu->arith = (cpu->arith & ~ARITH_ZF) | (zf ? ARITH_ZF : 0);
}
/* The next instruction; interrupts are held off until after it. */
void soft_shadow_begin(SoftCpu *cpu, bool mov_ss);

/* ---- ports and MSRs (system-io.c, system-msr.c, pvclock.c) --- */

uint64_t soft_port_read(SoftCpu *cpu, uint16_t port, unsigned size);
void soft_port_write(SoftCpu *cpu, uint16_t port, unsigned size, uint64_t value);
bool soft_msr_read(SoftCpu *cpu, uint32_t index, uint64_t *value);
bool soft_msr_write(SoftCpu *cpu, uint32_t index, uint64_t value);
/* As set_state does: values that only hardware could have put there are allowed. */
bool soft_msr_restore(SoftCpu *cpu, uint32_t index, uint64_t value);
void soft_msr_reset(SoftCpu *cpu);
/* The MSRs that a snapshot holds; NULL-free list of @n. */
const uint32_t *soft_msr_list(unsigned *n);
uint64_t soft_tsc(const SoftCpu *cpu);
/* What an instruction makes of the time @now: that, or what the observer says. */
static inline uint64_t soft_observed_time(SoftCpu *cpu, uint64_t now)
{
    const SoftObserver *o = cpu->system->observer;
    return o ? o->time(cpu, o->opaque, now) : now;
}
void soft_pvclock_system_time(SoftCpu *cpu);
void soft_pvclock_wall_clock(SoftCpu *cpu, uint64_t gpa);
bool soft_cr0_valid(uint64_t cr0);
bool soft_cr4_valid(uint64_t cr4);
