/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Where translated code is kept and how it is found. Each vCPU has a cache of its own, used by its
 * thread only, so nothing here is locked.
 *
 * A CodePage is one page of code as seen by its blocks: linear page, guest physical page and key. It
 * has an id; SoftCpu.fetch_ids holds, for each slot of linear pages, the id of the page that is mapped
 * there now, so a jump from another page is valid while that id is still in its slot: TLB flushes clear
 * slots (mmu.c), and a page whose code was written never gets its id back.
 */
#pragma once

#include "vcpu/soft/integer.h"
#include "vcpu/soft/translate/translate.h"
#include "vcpu/soft/vm.h"

/* A key: the mode bits of cpu.h, then: */
#define TRANSLATE_KEY_MMU_SHIFT 20
#define TRANSLATE_KEY_FP_TRAP (1u << 23) /* MXCSR unmasks an exception: no vector arithmetic in place */

#define TRANSLATE_KEY_MIRROR (1u << 24)  /* user code over mirrored memory */

static inline unsigned key_mmu(uint32_t key)
{
    return key >> TRANSLATE_KEY_MMU_SHIFT & 7;
}

#define CODE_PAGE_CHAINS 16u
#define CODE_FRONT_SIZE 4096u

struct CodePage {
    CodePage *next; /* in its hash chain */
    uint64_t va, gpa;
    uint32_t key, id, generation;
    uint32_t spare;
    CodeBlock *block[CODE_PAGE_CHAINS]; /* its blocks, by where they start: they go when it goes */
};

struct CodeBlock {
    CodeBlock *next; /* in its page's chain */
    CodePage *page, *second; /* second: where its only instruction ends, or NULL */
    uint64_t rip;
    uint32_t entry; /* offsets in the arena: where indirect jumps arrive (TEMP0 = rip), and links */
    uint32_t main;
    uint8_t live;     /* TF_*: flags that it needs at its start */
    uint8_t flags_at; /* FLAGS_*: where it wants them there, if live */
    uint16_t n_ops;
};

/* A direct exit of a block. */
typedef struct CodeExit {
    uint64_t target;
    CodePage *from;
    CodeBlock *linked; /* what it leads to now, or NULL */
    uint32_t key;      /* of the target */
    uint32_t patch; /* arena offset of the rel32 that leads to the stub, and then to the target */
    uint32_t stub;  /* arena offset: the way to the dispatcher */
    uint8_t flags_at;
    bool backward;  /* looks for pending events on the way */
} CodeExit;

/* A memory access, helper op or indirect branch of a block, for the time when it is not simple. */
typedef struct CodeSite {
    uint64_t rip;
    uint32_t retry;  /* arena offset: the check; 0 for helper ops */
    uint32_t resume; /* arena offset behind the op; 0: go to the dispatcher */
    uint32_t key;
    uint8_t length, size, access, align;
    uint8_t flags_at; /* of accesses to mirrored memory, which leave EFLAGS alone */
    SoftOp *op;    /* helper ops and repeated string instructions: the op, and one that stops; or NULL */
    uint32_t drop; /* indirect branches: what was added to RSP */
} CodeSite;

/* Addresses in the executable mapping. */
typedef struct CodeThunks {
    uint32_t enter;       /* void (SoftCpu *, const void *code): runs until the code leaves */
    uint32_t leave_host;  /* to the dispatcher, flags in EFLAGS */
    uint32_t leave_saved; /* ... in SoftCpu.arith */
    uint32_t miss;        /* an indirect jump to TEMP0 found no block; flags saved */
    uint32_t second;      /* the second page of the instruction at TEMP0 changed; flags saved */
    uint32_t slow_host, slow_saved; /* from the signal handler: as refill does if it fails; flags where */
    uint32_t refill;      /* TEMP0 = linear address, SoftCpu.site = CodeSite */
    uint32_t helper;      /* SoftCpu.site = CodeSite */
    uint32_t load_vectors; /* returns to TEMP1 */
} CodeThunks;

typedef struct CodeFront {
    uint64_t rip;
    CodeBlock *block;
    uint32_t id, key;
} CodeFront;

/* Host code from @start to the next one accesses mirrored memory as @site tells; 0: it accesses none. */
typedef struct CodeMirrored {
    uint32_t start, site;
} CodeMirrored;

struct CodeCache {
    uint8_t *rw;       /* the arena, and the same memory executable */
    const uint8_t *rx;
    uint32_t size;
    uint32_t start;    /* first byte after the thunks */
    uint32_t used;     /* code grows up from start ... */
    uint32_t records;  /* ... and records grow down from size */
    uint32_t next_id;
    uint32_t code_epoch; /* soft_code_epoch when last looked */
    uint32_t flushes;
    unsigned ops_max;  /* of a block */
    unsigned flush_every; /* for tests: blocks after which everything is forgotten; 0 = never */
    unsigned since_flush; /* blocks */
    bool no_chains;    /* for tests: every exit asks the dispatcher */
    bool stopped;      /* the op in soft_op_run went through to its end */
    CodeThunks thunk;
    uint64_t ticks; /* of the host's TSC, spent translating */
    CodeMirrored *mirrored; /* ascending */
    uint32_t n_mirrored, mirrored_max;
    SoftOp fetch;      /* stands for an instruction while it is being fetched */
    SoftOp step[2];    /* an op that is executed once */
    Translation *translation;
    CodePage *pages[1 << 12];
    CodePage **by_id;  /* id - first_id -> page; of this generation of the cache */
    uint32_t first_id, ids_max;
    CodeFront front[CODE_FRONT_SIZE];
};

/* Where the dispatcher remembers the block at @rip. */
static inline CodeFront *code_front(CodeCache *c, uint64_t rip)
{
    return &c->front[(rip ^ rip >> 12) % CODE_FRONT_SIZE];
}
static inline uint32_t code_offset(const CodeCache *c, const uint8_t *rw)
{
    return (uint32_t)(rw - c->rw);
}
static inline const uint8_t *code_rx(const CodeCache *c, uint32_t offset)
{
    return c->rx + offset;
}

/* ---- the first-level TLB in code ---- */

#define CODE_TLB_SHIFT 5
_Static_assert(sizeof(SoftTlbEntry) == 1 << CODE_TLB_SHIFT, "index arithmetic");

/* The offset in SoftCpu of @field of the first entry for @key's accesses. */
static inline size_t code_tlb_field(uint32_t key, size_t field)
{
    return offsetof(SoftCpu, tlb) + key_mmu(key) * sizeof(((SoftCpu *)0)->tlb[0]) + field;
}

/* TEMP1 = offset in the table of the entry for the linear address in host register @address. */
static inline void code_tlb_entry(Emit *e, unsigned address)
{
    emit_rorx(e, TEMP1, address, 12 - CODE_TLB_SHIFT);
    emit_alu32_imm(e, ALU_AND, emit_reg(TEMP1), (SOFT_TLB_SIZE - 1) << CODE_TLB_SHIFT);
}

/* ---- cache.c ---- */

bool code_cache_init(SoftCpu *cpu, uint64_t size, GError **err);
void code_cache_free(SoftCpu *cpu);
/* Forgets everything. */
void code_cache_flush(SoftCpu *cpu);
/* @size bytes of records, 8-aligned, from the top of the arena; NULL if code and records met. */
void *code_record(CodeCache *c, size_t size);
/* @op and one that stops, as records: there is room for those of a block. */
SoftOp *code_op_copy(CodeCache *c, const SoftOp *op);
/* Bytes left between code and records. */
static inline uint32_t code_room(const CodeCache *c)
{
    return c->records - c->used;
}
static inline CodeExit *code_exit_at(CodeCache *c, uint32_t offset)
{
    return (CodeExit *)(c->rw + offset);
}

/* The page of code at cpu-linear @va, which is mapped to @gpa; puts its id into its slot. */
CodePage *code_page_get(SoftCpu *cpu, uint64_t va, uint64_t gpa, uint32_t key);
CodeBlock *code_block_find(const CodePage *page, uint64_t rip);
void code_block_add(CodeCache *c, CodeBlock *b);
/* The dispatcher will not find it again. */
void code_block_drop(CodeCache *c, CodeBlock *b);
/* Code somewhere was written: forgets pages that are stale. */
void code_pages_check(SoftCpu *cpu);

/* ---- block.c: translates the block at cpu->rip; NULL: the cache was flushed, look again ---- */
CodeBlock *translate_block(SoftCpu *cpu, CodePage *page, const uint8_t *host);

/* ---- exit.c ---- */
/* EFLAGS into SoftCpu.arith, and back; RAX is lost. */
void code_flags_store(Emit *e);
void code_flags_load(Emit *e);
/* Saves EFLAGS into SoftCpu.arith, and restores them; RAX is kept in TEMP0. */
void code_flags_save(Emit *e);
void code_flags_restore(Emit *e);
/* Makes @x lead to @b without the dispatcher. */
void code_link(SoftCpu *cpu, CodeExit *x, CodeBlock *b);

/* ---- mirror-memory.c: translate_memory and what belongs to it, for TRANSLATE_KEY_MIRROR ---- */
/* TEMP1 = what is to be added to the linear address in host register @address. */
void mirror_delta(Translation *t, unsigned address);
EmitOperand mirror_memory(Translation *t, const SoftOp *op, unsigned access);
EmitOperand mirror_memory_at(Translation *t, const SoftOp *op, unsigned base, int32_t disp, unsigned access);
#define MIRROR_STEP_MAX (1 << 20) /* far less than the guards, even 64 times */
/* Whether the current op leaves @base where it was, or moves it by a constant of less than MIRROR_STEP_MAX. */
bool mirror_keeps(const Translation *t, const SoftOp *op, unsigned base);
/* After each op: forgets what it changed. */
void mirror_op_done(Translation *t, const SoftOp *op);

/* ---- thunk.c ---- */
void code_thunks_emit(SoftCpu *cpu);

/* ---- run.c ---- */
uint32_t translate_key(const SoftCpu *cpu);
/* Executes @op alone (@op[1] is a stop); true if it went through to the next instruction. */
bool soft_op_run(SoftCpu *cpu, SoftOp *op);
void soft_op_stop(SoftCpu *cpu, const SoftOp *op);
/* Called by thunks. */
const void *translate_refill(SoftCpu *cpu, uint64_t linear);
const void *translate_slow(SoftCpu *cpu);
const void *translate_helper(SoftCpu *cpu);
