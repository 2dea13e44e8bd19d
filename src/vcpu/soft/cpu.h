/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The software CPU's own state and its innermost interfaces: what decoder, instruction
 * handlers, memory management and event delivery share. Nothing outside vcpu/soft
 * includes this.
 *
 * A vCPU executes blocks of decoded instructions (SoftOp). A handler performs one
 * instruction: first every check and memory access that can fault, then its
 * architectural writes, so that a fault leaves the state as it was before the
 * instruction. A fault does not return (soft_raise jumps back to the run loop).
 */
#pragma once

#include <setjmp.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "vcpu/engine.h"
#include "vcpu/state.h"

typedef struct SoftCpu SoftCpu;
typedef struct SoftVm SoftVm;
typedef struct SoftOp SoftOp;
typedef struct SoftBlock SoftBlock;

/* ---- decoded instructions --------------------------------------------------------------- */

/*
 * Performs @op and all ops after it in its block: a handler ends with SOFT_NEXT(cpu, op)
 * (a tail call) unless it ends the block; a handler that ends a block sets cpu->rip and returns.
 */
typedef void (*SoftHandler)(SoftCpu *cpu, const SoftOp *op);
#define SOFT_NEXT(cpu, op) return (op)[1].handler((cpu), (op) + 1)

#define SOFT_REG_NONE 16 /* no base or index: indexes SoftCpu.gpr_zero */
#define SOFT_REG_RIP 0xfe /* decoder only: folded into disp64 before handlers see it */

enum {
    SOFT_OP_MEM = 1 << 0,   /* the r/m operand is memory */
    SOFT_OP_LOCK = 1 << 1,
    SOFT_OP_REP = 1 << 2,   /* F3 */
    SOFT_OP_REPNE = 1 << 3, /* F2 */
    SOFT_OP_REX = 1 << 4,   /* a REX prefix is present: no AH..BH */
    SOFT_OP_VEX = 1 << 5,
    SOFT_OP_W = 1 << 6,     /* REX.W or VEX.W */
    SOFT_OP_L = 1 << 7,     /* VEX.L: 256 bits */
};

/* One decoded instruction: 64 bytes, one cache line. */
struct SoftOp {
    SoftHandler handler;
    uint64_t rip;      /* offset in CS of its first byte; the next instruction is rip + length */
    uint64_t imm;      /* immediate, sign extended to the operand size; or the branch target */
    const void *aux;   /* handler-private (e.g. a native stub) */
    int64_t disp;      /* displacement; for RIP-relative operands the whole address */
    uint8_t length;    /* in bytes, 1-15 */
    uint8_t size;      /* operand size in bytes: 1, 2, 4, 8 (vectors: 16, 32) */
    uint8_t asize;     /* address size in bytes: 2, 4, 8 */
    uint8_t reg, rm;   /* register numbers 0-15 (with REX/VEX bits); rm only if not SOFT_OP_MEM */
    uint8_t base, index, scale; /* of the memory operand; SOFT_REG_NONE; scale is a shift */
    uint8_t seg;       /* effective segment of the memory operand, SEG_* */
    uint8_t flags;     /* SOFT_OP_* */
    uint8_t map;       /* opcode map: 0 one-byte, 1 0F, 2 0F38, 3 0F3A */
    uint8_t opcode;
    uint8_t modrm;
    uint8_t prefix;    /* mandatory prefix of maps 1-3 and VEX.pp: 0 none, 1 66, 2 F3, 3 F2 */
    uint8_t vvvv;      /* VEX.vvvv, not inverted */
    uint8_t sub;       /* handler-private */
    uint8_t plain;     /* the memory operand's linear address is base + index + disp: flat, 64-bit */
    uint8_t spare[3];
    uint32_t link_epoch; /* block.c: aux is a linked successor while cpu->fetch_epoch equals this */
};
_Static_assert(sizeof(SoftOp) == 64, "SoftOp is one cache line");

/* ---- flags ------------------------------------------------------------------------------- */

/*
 * The six arithmetic flags in the form that LAHF + SETO leave in AX, so that handlers take
 * them from the host's own ALU: AL = OF, AH = SF:ZF:0:AF:0:PF:1:CF.
 */
#define ARITH_OF 0x0001u
#define ARITH_CF 0x0100u
#define ARITH_PF 0x0400u
#define ARITH_AF 0x1000u
#define ARITH_ZF 0x4000u
#define ARITH_SF 0x8000u

#define FLAG_CF 0x1u
#define FLAG_PF 0x4u
#define FLAG_AF 0x10u
#define FLAG_ZF 0x40u
#define FLAG_SF 0x80u
#define FLAG_TF 0x100u
#define FLAG_IF 0x200u
#define FLAG_DF 0x400u
#define FLAG_OF 0x800u
#define FLAG_IOPL 0x3000u
#define FLAG_NT 0x4000u
#define FLAG_RF 0x10000u
#define FLAG_VM 0x20000u
#define FLAG_AC 0x40000u
#define FLAG_VIF 0x80000u
#define FLAG_VIP 0x100000u
#define FLAG_ID 0x200000u
#define FLAG_ARITH 0x8d5u

/* ---- execution mode ------------------------------------------------------------------------ */

/* What decoding depends on; part of a block's key. Recomputed by soft_mode_update. */
enum {
    SOFT_MODE_LONG = 1 << 0,   /* EFER.LMA */
    SOFT_MODE_CODE64 = 1 << 1, /* 64-bit mode: LMA and CS.L */
    SOFT_MODE_CODE32 = 1 << 2, /* CS.D */
    SOFT_MODE_STACK32 = 1 << 3, /* SS.B */
    SOFT_MODE_PROTECTED = 1 << 4,
    SOFT_MODE_VM86 = 1 << 5,
    SOFT_MODE_USER = 1 << 6,   /* CPL 3 */
    SOFT_MODE_SINGLE = 1 << 7, /* blocks of one instruction: TF, interrupt shadow, code breakpoints */
    SOFT_MODE_FPU_OFF = 1 << 8, /* CR0.EM or CR0.TS: x87 raises #NM */
    SOFT_MODE_SSE_OFF = 1 << 9, /* CR4.OSFXSR clear or CR0.EM: #UD */
    SOFT_MODE_AVX_OFF = 1 << 10, /* CR4.OSXSAVE or XCR0 lacks SSE|AVX: #UD */
    SOFT_MODE_TS = 1 << 11,    /* CR0.TS: SSE/AVX raise #NM */
    SOFT_MODE_FLAT = 1 << 12,  /* legacy modes: CS, DS, ES, SS have base 0 and limit 4 GiB, usable, writable data */
};

/* ---- TLB ----------------------------------------------------------------------------------- */

/*
 * CHECKED: user accesses while alignment is checked (#AC); never filled, so that all of them take the
 * slow path.
 */
enum {
    SOFT_MMU_USER,
    SOFT_MMU_KERNEL,
    SOFT_MMU_KERNEL_SMAP_OFF,
    SOFT_MMU_CHECKED,
    SOFT_MMU_COUNT
};
#define SOFT_TLB_BITS 10
#define SOFT_TLB_SIZE (1u << SOFT_TLB_BITS)
/* A tag that no address which uses @slot can hit, neither one of the topmost page nor a non-canonical one. */
#define SOFT_TLB_INVALID(slot) ((slot) == SOFT_TLB_SIZE - 1 ? 0 : ~(uint64_t)0)

/* tag: linear page address if the access may go straight to RAM, else SOFT_TLB_INVALID (miss,
 * MMIO, watchpoint; for writes also: clean page, page holding decoded code). */
typedef struct SoftTlbEntry {
    uint64_t read_tag;
    uint64_t write_tag;
    uintptr_t addend; /* host address = linear + addend */
    uint64_t gpa;     /* page address, for the slow path; mmu.c keeps flags in the low bits */
} SoftTlbEntry;

enum { SOFT_READ = 0, SOFT_WRITE = 1, SOFT_EXECUTE = 2 };

#define SOFT_FETCH_IDS 1024u
#define SOFT_JUMPS     65536u /* the low 16 bits of an address */

/* ---- the CPU --------------------------------------------------------------------------------- */

enum { /* SoftCpu.pending */
    SOFT_PENDING_KICK = 1 << 0,
    SOFT_PENDING_INTERRUPT = 1 << 1,
    SOFT_PENDING_NMI = 1 << 2,
    SOFT_PENDING_INIT = 1 << 3,
    SOFT_PENDING_SIPI = 1 << 4,
    SOFT_PENDING_SYNC = 1 << 5,  /* the VM asks this vCPU to flush write tags (code page protection) */
    SOFT_PENDING_DEBUG = 1 << 6, /* a trap (#DB) is due after the current instruction */
    SOFT_PENDING_LOOP = 1 << 7,  /* leave the block chain and look again (mode or mapping changed) */
};

/* Guest x87 state: FXSAVE layout (bytes 0-159 of it are kept current), SDM vol. 1 10.5.1. */
typedef struct SoftFpu {
    _Alignas(64) uint8_t fxsave[512]; /* FCW FSW FTW FOP FIP FDP at 0-23, ST0-7 at 32-159; MXCSR at 24 */
    _Alignas(32) uint8_t ymm[16][32]; /* XMM = the low half */
    uint64_t xinuse;                  /* XINUSE for XGETBV(1)/XSAVEOPT/XSAVEC: bits 0 x87, 1 SSE, 2 AVX */
} SoftFpu;

/*
 * A read-modify-write operand (size 1, 2, 4, 8, 16). Returns a host pointer to the operand: RAM
 * itself where it is contiguous RAM (then use a host atomic instruction for LOCK), or a copy in
 * rmw->bounce otherwise (rmw->bounced; done under the VM's split lock, all other vCPUs excluded
 * if @locked). soft_rmw_end writes a bounced operand back. No fault can come after begin.
 */
typedef struct SoftRmw {
    uint64_t linear;
    unsigned size;
    bool bounced, locked;
    _Alignas(16) uint8_t bounce[16];
} SoftRmw;

struct SoftCpu {
    Vcpu vcpu; /* first */

    /* touched by every instruction */
    uint64_t gpr[16];
    uint64_t gpr_zero; /* always 0: gpr[SOFT_REG_NONE] */
    uint64_t rip;      /* valid between blocks */
    const SoftOp *op;  /* the instruction in execution: every handler that may fault sets it first */
    uint32_t arith;    /* ARITH_* */
    uint32_t mode;     /* SOFT_MODE_* */
    uint64_t rflags;   /* without the six arithmetic flags; bit 1 set */
    _Atomic uint32_t pending;
    /*
     * Never 0; changes whenever a fetch from the same linear address might meet other code:
     * mmu.c increments it on every TLB flush (also of one page) and change of paging mode,
     * block.c when code was written. Links between blocks are valid for one value.
     */
    uint32_t fetch_epoch;
    uint8_t cpl;
    uint8_t mmu;       /* SOFT_MMU_* of data accesses now */
    bool shadow;       /* interrupts are held off for one instruction (STI, MOV SS) */
    bool nmi_masked;
    VcpuActivity activity;

    VcpuSegment seg[SEG_COUNT];
    VcpuSegment ldtr, tr;
    VcpuTable gdtr, idtr;
    uint64_t cr0, cr2, cr3, cr4;
    uint64_t efer, xcr0;
    uint64_t dr[8];
    int64_t tsc_offset; /* guest TSC = host TSC + this */
    SoftFpu fpu;

    /* a fault on its way to the run loop */
    jmp_buf fault_jump;
    uint8_t fault_vector;
    bool fault_has_error;
    uint32_t fault_error;

    /*
     * What translated code reaches through GS (translate/translate.h).
     * fetch_ids: of the code page mapped at each slot of linear pages, [1] for user code; 0: unknown.
     */
    SoftCpu *self;
    uint64_t host_rsp;      /* the host's stack while translated code runs */
    uint64_t enter_target;  /* where a thunk goes */
    uint64_t scratch_temp;
    uint32_t code_exit;     /* the exit that was taken, or 0 */
    uint32_t code_key;      /* what the code that runs was translated for (translate_key) */
    uint32_t site;          /* the memory access or helper op in progress */
    uint32_t host_mxcsr;
    bool vectors_live;      /* the guest's vector registers and MXCSR are in the host's */
    bool second_missing;    /* the instruction at rip: its second page must be looked up */
    bool branch_missed;    /* an indirect branch found no block: that of branch_site */
    uint32_t branch_site;
    uint32_t fetch_ids[2][SOFT_FETCH_IDS];
    const uint8_t *jump[SOFT_JUMPS]; /* by the target's low bits: a block's entry */
    uint64_t window_delta[256]; /* translate/mirror.h: by bits 40-47 of a linear address */
    bool mirror_on;             /* the current process has a mirror */
    struct SoftMirror *mirror;
    struct CodeCache *code; /* translate/cache.h; NULL: the interpreter only */

    SoftTlbEntry tlb[SOFT_MMU_COUNT][SOFT_TLB_SIZE];

    SoftRmw rmw; /* of the instruction in execution: a local one would forbid the tail call */

    VcpuStats stats;

    /* Translated code puts down here what it has no register for, within one instruction. */
    uint64_t scratch_rax, scratch_value;
    uint64_t groups[8];     /* addends that several accesses share (translate/coalesce.c) */

    struct SoftMmu *mmu_private;     /* mmu.c: instruction TLB, flush requests */
    struct SoftSystem *system;       /* MSRs and other rarely used state (system.h) */
    struct SoftBlockCache *blocks;   /* block.c */
    struct SoftVector *vector;       /* vector.c: stub cache */
};

_Static_assert(offsetof(SoftCpu, gpr_zero) == offsetof(SoftCpu, gpr) + 16 * 8, "see SOFT_REG_NONE");

static inline SoftVm *soft_vm(SoftCpu *cpu)
{
    return (SoftVm *)cpu->vcpu.vm;
}

/* The whole RFLAGS, and setting it (the caller has masked what may change). flags.c */
uint64_t soft_rflags(const SoftCpu *cpu);
void soft_rflags_set(SoftCpu *cpu, uint64_t rflags);
/* Recomputes mode, cpl-dependent mmu index and so on after CR0/CR4/EFER/XCR0/RFLAGS/segment changes. */
void soft_mode_update(SoftCpu *cpu);

/* ---- faults: none of these returns (event.c) ------------------------------------------------- */

enum {
    EXC_DE = 0, EXC_DB = 1, EXC_NMI = 2, EXC_BP = 3, EXC_OF = 4, EXC_BR = 5, EXC_UD = 6, EXC_NM = 7,
    EXC_DF = 8, EXC_TS = 10, EXC_NP = 11, EXC_SS = 12, EXC_GP = 13, EXC_PF = 14, EXC_MF = 16,
    EXC_AC = 17, EXC_MC = 18, EXC_XM = 19,
};
_Noreturn void soft_raise(SoftCpu *cpu, unsigned vector);                       /* no error code */
_Noreturn void soft_raise_error(SoftCpu *cpu, unsigned vector, uint32_t error);
_Noreturn void soft_raise_pf(SoftCpu *cpu, uint64_t linear, uint32_t error);    /* sets CR2 */

/* ---- memory (mmu.c) --------------------------------------------------------------------------- */

/* Slow paths: TLB fill, page straddling, MMIO, code pages, watchpoints. size 1, 2, 4, 8. */
uint64_t soft_load_slow(SoftCpu *cpu, uint64_t linear, unsigned size);
void soft_store_slow(SoftCpu *cpu, uint64_t linear, unsigned size, uint64_t value);

#define SOFT_TLB_HIT(tag, linear, size) (((linear) ^ (tag)) <= 4096u - (size))

static inline SoftTlbEntry *soft_tlb_entry(SoftCpu *cpu, uint64_t linear)
{
    return &cpu->tlb[cpu->mmu][(linear >> 12) & (SOFT_TLB_SIZE - 1)];
}

#define SOFT_MEMORY_ACCESSORS(bits)                                                                \
    static inline uint##bits##_t soft_load##bits(SoftCpu *cpu, uint64_t linear)                    \
    {                                                                                              \
        SoftTlbEntry *e = soft_tlb_entry(cpu, linear);                                             \
        if (__builtin_expect(SOFT_TLB_HIT(e->read_tag, linear, bits / 8), 1)) {                    \
            uint##bits##_t v;                                                                      \
            memcpy(&v, (const void *)(linear + e->addend), sizeof(v));                             \
            return v;                                                                              \
        }                                                                                          \
        return (uint##bits##_t)soft_load_slow(cpu, linear, bits / 8);                              \
    }                                                                                              \
    static inline void soft_store##bits(SoftCpu *cpu, uint64_t linear, uint##bits##_t v)           \
    {                                                                                              \
        SoftTlbEntry *e = soft_tlb_entry(cpu, linear);                                             \
        if (__builtin_expect(SOFT_TLB_HIT(e->write_tag, linear, bits / 8), 1))                     \
            memcpy((void *)(linear + e->addend), &v, sizeof(v));                                   \
        else                                                                                       \
            soft_store_slow(cpu, linear, bits / 8, v);                                             \
    }
SOFT_MEMORY_ACCESSORS(8)
SOFT_MEMORY_ACCESSORS(16)
SOFT_MEMORY_ACCESSORS(32)
SOFT_MEMORY_ACCESSORS(64)
#undef SOFT_MEMORY_ACCESSORS

/* Any length up to 4096; all of it or a fault before the first byte is written. */
void soft_load_bytes(SoftCpu *cpu, uint64_t linear, void *to, unsigned size);
void soft_store_bytes(SoftCpu *cpu, uint64_t linear, const void *from, unsigned size);
/* Faults if a store of @size bytes there would; changes nothing but accessed/dirty bits. */
void soft_probe_store(SoftCpu *cpu, uint64_t linear, unsigned size);

/* See SoftRmw. */
void *soft_rmw_begin(SoftCpu *cpu, SoftRmw *rmw, uint64_t linear, unsigned size, bool locked);
void soft_rmw_end(SoftCpu *cpu, SoftRmw *rmw);

/* Accesses to descriptor tables and task state segments: as supervisor, whatever the CPL. */
uint64_t soft_system_load(SoftCpu *cpu, uint64_t linear, unsigned size);
void soft_system_store(SoftCpu *cpu, uint64_t linear, unsigned size, uint64_t value);

/* PKRU, as part of the XSAVE state; setting it drops what was cached under the old rights. */
uint32_t soft_pkru(const SoftCpu *cpu);
void soft_pkru_set(SoftCpu *cpu, uint32_t pkru);
/* The components that XCR0 may have: x87, SSE, AVX, PKRU. cpuid.c */
#define SOFT_XCR0_PKRU 0x200u
#define SOFT_XSAVE_PKRU 832u /* CPUID.(0DH,9):EBX */
uint64_t soft_xcr0_offered(void);

void soft_tlb_flush(SoftCpu *cpu, bool global);  /* global: also entries of global pages */
void soft_tlb_flush_page(SoftCpu *cpu, uint64_t linear);

/*
 * Where the byte of code at CS-relative linear address @linear is: faults (#PF with the fetch bit) or
 * returns the guest physical address; *host is its host address, or NULL for code outside RAM.
 */
uint64_t soft_fetch_translate(SoftCpu *cpu, uint64_t linear, const uint8_t **host);

/* The slot of fetch_ids for the page of @linear, and its place in SoftCpu. */
static inline unsigned soft_fetch_slot(uint64_t linear)
{
    return (linear >> 12) % SOFT_FETCH_IDS;
}
static inline size_t soft_fetch_id_offset(uint64_t linear, bool user)
{
    return offsetof(SoftCpu, fetch_ids) + (user * SOFT_FETCH_IDS + soft_fetch_slot(linear)) * sizeof(uint32_t);
}
/* Code page @id is what soft_fetch_translate just found at @linear, until a TLB flush says otherwise. */
void soft_fetch_id_set(SoftCpu *cpu, uint64_t linear, bool user, uint32_t id);

/*
 * Decoded code of the 4 KiB page at @gpa is about to be cached: takes the page out of every vCPU's
 * write TLB (waits for the other vCPUs) and returns its generation, which every later write to the page,
 * by vCPU or device, increments. soft_page_generation reads it; a block is valid while its pages' are unchanged.
 */
uint32_t soft_page_protect(SoftCpu *cpu, uint64_t gpa);
/* Whoever increments a page's generation increments this too, afterwards. block.c */
extern _Atomic uint32_t soft_code_epoch;
uint32_t soft_page_generation(SoftVm *vm, uint64_t gpa);

/* ---- segmentation (segment.c) ------------------------------------------------------------------ */

/* The general case of soft_linear: limit, type and canonical checks; raises #GP/#SS. */
uint64_t soft_linear_slow(SoftCpu *cpu, unsigned seg, uint64_t offset, unsigned size, unsigned access);

/*
 * seg:offset -> linear address. In 64-bit mode only FS and GS have a base and a non-canonical
 * address is left to the TLB's slow path (which raises #GP, or #SS when cpu->op->seg is SEG_SS).
 */
static inline uint64_t soft_linear(SoftCpu *cpu, unsigned seg, uint64_t offset, unsigned size,
                                   unsigned access)
{
    if (__builtin_expect(cpu->mode & SOFT_MODE_CODE64, 1))
        return seg >= SEG_FS ? offset + cpu->seg[seg].base : offset;
    return soft_linear_slow(cpu, seg, offset, size, access);
}

/* The offset (not yet linear) of an op's memory operand, wrapped to the address size. */
static inline uint64_t soft_offset(const SoftCpu *cpu, const SoftOp *op)
{
    const uint64_t *gpr = cpu->gpr; /* and gpr_zero after it */
    uint64_t a = (uint64_t)op->disp + gpr[op->base] + (gpr[op->index] << op->scale);
    if (__builtin_expect(op->asize == 8, 1))
        return a;
    return op->asize == 4 ? (uint32_t)a : (uint16_t)a;
}

/* The linear address of an op's memory operand of @size bytes, for @access. */
static inline uint64_t soft_operand(SoftCpu *cpu, const SoftOp *op, unsigned size, unsigned access)
{
    return soft_linear(cpu, op->seg, soft_offset(cpu, op), size, access);
}

/* Loads a segment register as MOV/POP/LDS would, with every check and fault. Real, VM86 and protected mode. */
void soft_segment_load(SoftCpu *cpu, unsigned seg, uint16_t selector);

/* ---- the run loop and blocks -------------------------------------------------------------------- */

/*
 * block.c: finds or decodes the block at cs:rip for the current mode and runs blocks, at least
 * one, until cpu->pending is non-zero; one instruction (one repetition of a string instruction)
 * in SOFT_MODE_SINGLE. May raise faults. cpu->rip is valid on return.
 */
void soft_blocks_run(SoftCpu *cpu);
bool soft_blocks_init(SoftCpu *cpu, GError **err);
void soft_blocks_free(SoftCpu *cpu);

/*
 * decode.c: decodes one instruction from @bytes (@available of them, at most 15) at @rip in @mode. Returns
 * its length and fills @op (handler included); 0: more bytes are needed than @available; an undefined
 * instruction yields an op whose handler raises #UD, one longer than 15 bytes #GP. *ends_block tells whether
 * control does not simply fall through.
 */
unsigned soft_decode(SoftCpu *cpu, uint32_t mode, uint64_t rip, const uint8_t *bytes,
                     unsigned available, SoftOp *op, bool *ends_block);

/*
 * vector-decode.c: the decoder hands over every x87, MMX, SSE, AVX, FMA, AES, SHA, XSAVE-family
 * and FP-state opcode here with prefixes, map, opcode, modrm and operand fields filled in. Sets op->handler
 * (and aux), or returns false for an undefined one. Checks of #NM/#UD by mode bits happen here (mode is in the key).
 */
bool soft_vector_decode(SoftCpu *cpu, uint32_t mode, SoftOp *op);
/* Bytes of immediate that such an opcode carries (0 or 1); -1: not a vector/x87 opcode at all. */
int soft_vector_imm(uint32_t mode, unsigned map, unsigned opcode, unsigned prefix, bool vex);
bool soft_vector_init(SoftCpu *cpu, GError **err);
void soft_vector_free(SoftCpu *cpu);
/* FINIT + MXCSR reset state; VcpuState.xsave <-> SoftFpu. */
void soft_fpu_reset(SoftCpu *cpu);
void soft_fpu_to_xsave(const SoftCpu *cpu, uint8_t *xsave);
void soft_fpu_from_xsave(SoftCpu *cpu, const uint8_t *xsave);

/* What the guest's CPUID says for leaf/subleaf now (OSXSAVE, APIC id etc. included). cpuid.c */
typedef struct SoftCpuid {
    uint32_t eax, ebx, ecx, edx;
} SoftCpuid;
SoftCpuid soft_cpuid(SoftCpu *cpu, uint32_t leaf, uint32_t subleaf);

/* What the software CPU implements and the host has; decoding refuses the rest with #UD. */
typedef struct SoftFeatures {
    bool sse3, ssse3, sse41, sse42, popcnt, movbe, aes, pclmul, f16c, fma, avx, avx2, bmi1, bmi2,
        lzcnt, adx, sha, rdrand, rdseed, fsgsbase, rdpid, clflushopt, clwb, erms, fsrm, rdtscp, invpcid,
        xsaveopt, xsavec, xgetbv1, cx16, vaes, vpclmul, gfni, prefetchw;
} SoftFeatures;
/*
 * Of this process, as decode tables look at it: all VMs that live at one time have the same. Filled by
 * soft_features_init (all that there is) and narrowed by soft_cpu_model_set (cpuid.c).
 */
extern SoftFeatures soft_features;
void soft_features_init(void);
