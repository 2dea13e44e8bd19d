/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The translator: 64-bit guest code into host code of the same instruction set.
 *
 * Registers. The guest's registers are the host's of the same number, RSP included, but R9, R10 and
 * R11, which stay in SoftCpu.gpr and leave their host registers to the translator as TEMP0 to TEMP2.
 * GS points to the SoftCpu. Host code runs on the guest's stack pointer and never uses the stack.
 * Vector registers are the host's while SoftCpu.vectors_live is set, else in SoftCpu.fpu.
 *
 * Flags. The six arithmetic flags are in the host's EFLAGS or in SoftCpu.arith; while a block is
 * translated, Translation.flags_at says which. Host DF is always clear.
 *
 * Memory. An access is checked against the first-level TLB inline (memory.c). On a miss a thunk
 * fills the TLB and tries again; what cannot be served that way (MMIO, page straddling, code pages,
 * watchpoints, faults) is done by the interpreter, one instruction, with all registers in SoftCpu.
 *
 * What the translator has no code for is a helper op: the interpreter's handler is called in its place.
 */
#pragma once

#include "vcpu/soft/opcode-table.h"
#include "vcpu/soft/translate/emit.h"

#define TEMP0 HOST_R9
#define TEMP1 HOST_R10
#define TEMP2 HOST_R11

static inline bool guest_register_is_host(unsigned n)
{
    return n < 9 || n > 11;
}

#define GS_FIELD(field) emit_gs(offsetof(SoftCpu, field))
#define GS_GPR(n) emit_gs(offsetof(SoftCpu, gpr) + (n) * 8u)

typedef struct CodeCache CodeCache;
typedef struct CodePage CodePage;
typedef struct CodeBlock CodeBlock;
typedef struct Translation Translation;

/* ---- the table (table.c) ---- */

enum { TF_CF = 1, TF_PF = 2, TF_AF = 4, TF_ZF = 8, TF_SF = 16, TF_OF = 32, TF_ALL = 63 };

/*
 * Emits host code for @op, all of it, or emits nothing and returns false: then it becomes a helper op.
 * An op that goes elsewhere ends by translate_exit or translate_exit_indirect.
 */
typedef bool (*TranslateEmit)(Translation *t, const SoftOp *op);

/*
 * What the host instruction does with its operands, so that translate_rm knows what to load and store
 * of R9-R11. The destination is r/m, or ModRM.reg with OPC_SWAP and with DEST_REG; the source is the
 * other one.
 */
enum {
    TO_DEST_READ = 1 << 0,
    TO_DEST_WRITE = 1 << 1,
    TO_SOURCE_READ = 1 << 2,
    TO_SOURCE_WRITE = 1 << 3,
    TO_DEST_REG = 1 << 4,
    TO_V_READ = 1 << 5,  /* VEX.vvvv */
    TO_V_WRITE = 1 << 6,
    TO_REGISTER = 1 << 7, /* a register operand of the guest must be one of the host */
    TO_GOES_ON = 1 << 8,  /* ends the decoder's blocks, but need not end those of translated code */
};

/* How one op is translated: found by mnemonic (integer) or VectorRow. */
typedef struct TranslateRow {
    const char *mnemonic; /* of SoftOpcode */
    TranslateEmit emit;   /* NULL: always a helper op */
    uint8_t reads;        /* TF_*: flags that it reads (with OPC_CC: by the condition) */
    uint8_t kills;        /* flags that do not depend on what they were before, whatever the operands */
    uint8_t touches;      /* flags that it may change, those of kills included */
    uint16_t operands;    /* TO_* */
} TranslateRow;

/* What translating @op takes, with conditions and operands worked in. */
typedef struct TranslateInfo {
    const SoftOpcode *opcode; /* NULL: vector, x87 or undefined */
    TranslateEmit emit;       /* NULL: helper op */
    uint8_t reads, kills, touches;
    uint16_t operands;        /* TO_* of integer ops */
} TranslateInfo;
TranslateInfo translate_info(const SoftOp *op, uint32_t mode);
/* The table itself, for tests: of system instructions, or of the others. */
const TranslateRow *translate_rows(bool system, unsigned *n);
/* Whether control may simply go on after @op although its decoding ended a block. */
bool translate_goes_on(const SoftOp *op, uint32_t mode);
/* Flags that condition @cc reads. */
uint8_t translate_condition_reads(unsigned cc);

/* ---- one block in translation (block.c) ---- */

#define TRANSLATE_OPS_MAX 64
#define TRANSLATE_STUBS_MAX (8 * TRANSLATE_OPS_MAX)
#define TRANSLATE_ACCESSES_MAX (2 * TRANSLATE_OPS_MAX)
#define TRANSLATE_GROUPS_MAX 8 /* of SoftCpu.groups */

enum FlagsAt {
    FLAGS_HOST,  /* in EFLAGS; SoftCpu.arith is stale */
    FLAGS_SAVED, /* in SoftCpu.arith; EFLAGS are anything */
};

/* Code that is rarely reached: emitted after the block. */
typedef struct TranslateStub TranslateStub;
struct TranslateStub {
    void (*emit)(Translation *t, const TranslateStub *stub);
    uint8_t *from;        /* rel32 that leads here */
    uint8_t *back;        /* where it goes on: the check to try again, or what follows the op */
    const SoftOp *op;
    uint32_t a, b, c;     /* the emitting file's own */
    unsigned flags_at;
};

/* A memory operand of the block, as its check was emitted first. */
typedef struct TranslateAccess {
    const SoftOp *op;
    uint32_t start;       /* arena offset: where its address is computed */
    uint8_t base, index;  /* SOFT_REG_NONE: none */
    uint8_t scale, size, access, align;
    int64_t disp;
    bool simple;          /* base + index + disp is all there is to the linear address */
    int8_t group;         /* coalesce.c; -1: checked by itself */
} TranslateAccess;

/* Accesses that one check covers: coalesce.c. */
typedef struct TranslateGroup {
    uint8_t leader;       /* the first of them */
    uint8_t base, index, scale; /* of its address, SOFT_REG_NONE */
    bool head;            /* checked at the head of the loop, for all its iterations here */
    uint8_t held;         /* the host register that keeps the addend all the time, or HOST_NONE */
    uint8_t access, align;
    int64_t low;          /* what is checked: @span bytes from base + index + low */
    unsigned span, n;
} TranslateGroup;

struct Translation {
    SoftCpu *cpu;
    CodeCache *cache;
    CodePage *page;        /* where the block lies */
    CodePage *second;      /* where its only op ends, if that is another page */
    bool falls_through;    /* after the last op */
    Emit e;
    uint32_t key;          /* cache.h: mode and what else the code depends on */
    uint64_t rip;          /* of the block */
    SoftOp op[TRANSLATE_OPS_MAX + 1];
    TranslateInfo info[TRANSLATE_OPS_MAX + 1];
    uint8_t live[TRANSLATE_OPS_MAX + 1]; /* TF_*: flags needed before op i; [n]: after the last */
    unsigned n, i;         /* ops; the one in translation */
    unsigned flags_at;     /* FLAGS_*: while translation goes on */
    int mirror_base;       /* guest register whose window's delta is in TEMP1, or -1 (mirror-memory.c) */
    bool vectors_checked;  /* vectors are live here for certain */
    bool ended;            /* the op has left the block */
    TranslateStub stub[TRANSLATE_STUBS_MAX];
    unsigned n_stubs;

    /* What the first emission of the block found out, for the second one: coalesce.c. */
    TranslateAccess access[TRANSLATE_ACCESSES_MAX];
    unsigned n_accesses, next_access;
    bool helper[TRANSLATE_OPS_MAX + 1];    /* became a helper op */
    uint32_t after[TRANSLATE_OPS_MAX + 1]; /* arena offset behind op i, for its slow path; 0: dispatcher */
    TranslateGroup group[TRANSLATE_GROUPS_MAX];
    unsigned n_groups, unrolled;           /* iterations of the loop */
    bool loop;             /* the last op jumps back to the first */
    bool coalesced;        /* this is the second emission */
    int held;              /* the group whose addend is in TEMP2, or -1 */
};

static inline uint64_t translate_next_rip(const SoftOp *op)
{
    return op->rip + op->length;
}
/* An entry of t->stub with from, op, flags_at set. */
TranslateStub *translate_stub(Translation *t, uint8_t *from,
                              void (*emit)(Translation *t, const TranslateStub *stub));

/* ---- flags (flags.c) ---- */

/* Before code that changes EFLAGS although the guest does not: saves them if somebody needs them. Uses TEMP1. */
void translate_flags_clobber(Translation *t);
/*
 * Before a host instruction that reads the guest's flags from EFLAGS or leaves some of them alone. Keeps
 * every register, temporaries included.
 */
void translate_flags_require(Translation *t);
/* Before emitting the host instruction of the current op: require, if by its info it must. */
void translate_flags_before(Translation *t);
/* After it: EFLAGS hold the guest's flags now, if it touches any. */
void translate_flags_after(Translation *t);

/* ---- guest registers (integer.c) ---- */

/* The host register that holds guest register @n; R9-R11 are loaded into @temp. */
unsigned translate_get(Translation *t, unsigned n, unsigned temp);
/* The host register that will hold @n's new value; translate_put stores it where it belongs. */
static inline unsigned translate_target(unsigned n, unsigned temp)
{
    return guest_register_is_host(n) ? n : temp;
}
void translate_put(Translation *t, unsigned n, unsigned host);

/* ---- memory operands (memory.c) ---- */

enum { TRANSLATE_READ = 0, TRANSLATE_WRITE = 1 };

/*
 * Checks the access of @size bytes (power of two up to 32) at @op's memory operand and gives the host
 * operand for it. @align: 0, or the alignment that the instruction demands (16, 32). Uses TEMP0 and
 * TEMP1, which the operand may contain, and clobbers EFLAGS (flags are saved before where needed); a
 * register operand that lives in SoftCpu goes into TEMP2, after this call. All accesses of an op are
 * checked before its first architectural change. If the check fails for good, the interpreter performs
 * the whole op and execution goes on after it: the translate_memory_done of the op tells where that is.
 */
EmitOperand translate_memory(Translation *t, const SoftOp *op, unsigned size, unsigned access,
                             unsigned align);
/* The same for linear address base + disp (guest stack operands: base GPR_RSP). */
EmitOperand translate_memory_at(Translation *t, const SoftOp *op, unsigned base, int32_t disp,
                                unsigned size, unsigned access);
/* The same for the linear address in SoftCpu.scratch_value. */
EmitOperand translate_memory_scratch(Translation *t, const SoftOp *op, unsigned size, unsigned access);
/* TEMP0 = the linear address of the operand (LEA takes it without segment base: @segment false). */
void translate_address(Translation *t, const SoftOp *op, unsigned to, bool segment);
/*
 * Checks that the RCX << @shift bytes at host register @address lie within one page which the TLB has for
 * @access, and gives the addend to its host address in TEMP0 or TEMP1 (@to); else jumps. Puts where the
 * rel32s of its jumps are to @slow, three of them, and returns the end. Uses TEMP1 and TEMP2 and changes
 * EFLAGS, which the caller has saved.
 */
uint8_t **translate_run_check(Translation *t, unsigned address, unsigned access, unsigned shift,
                              unsigned to, uint8_t **slow);
/* From the jump at @from (its rel32): the interpreter does the whole op, as if a check had failed for good. */
void translate_slow_from(Translation *t, const SoftOp *op, uint8_t *from);
/* After the last host instruction of the op: slow paths of its accesses come back here. */
void translate_memory_done(Translation *t, const SoftOp *op);

/* ---- several accesses under one check (coalesce.c) ---- */

/* For tests: whether what is thought of the block's first op fits the general registers around it. */
bool coalesce_values_hold(const Translation *t, const uint64_t *before, const uint64_t *after);
/* In the first emission: adds an access, of the current op. */
void coalesce_record(Translation *t, const TranslateAccess *access);
/* Whether a second emission of the block, with groups and unrolled loops, is worth while. */
bool coalesce_plan(Translation *t);
/* At the head of the second emission. @plain: the first one, for what the checks refuse. */
void coalesce_head(Translation *t, const uint8_t *plain);
/* The operand of access t->next_access, if it belongs to a group. */
bool coalesce_operand(Translation *t, EmitOperand *operand);
/* After an op: whether TEMP2 is what it was. */
void coalesce_after(Translation *t);

/* ---- leaving the block (exit.c) ---- */

/* Goes to the constant @target. @key: of the target; t->key unless the op changed the mode. */
void translate_exit(Translation *t, uint64_t target, uint32_t key);
/* From the jump at @from (its rel32), which was taken with the flags as they are now. */
void translate_exit_from(Translation *t, uint8_t *from, uint64_t target);
/*
 * Goes to the linear address in TEMP0. Should it turn out not to be canonical, @drop is taken off RSP again
 * and the interpreter does the op.
 */
void translate_exit_indirect(Translation *t, uint32_t drop);

/* ---- vectors (vector.c) ---- */

/* NULL emit: a helper op. */
TranslateInfo translate_vector_info(const SoftOp *op, uint32_t mode);
/* Makes the vector registers live (once in a block); clobbers EFLAGS. */
void translate_vectors(Translation *t);

/* Bit n: an op of translate_rm or translate_mov writes guest register n. integer.c */
uint16_t translate_rm_writes(const SoftOp *op, const TranslateInfo *info);

/* ---- emitters by group: table.c names them ---- */

bool translate_rm(Translation *t, const SoftOp *op);      /* integer.c: any op of ModRM operands */
bool translate_mov(Translation *t, const SoftOp *op);     /* with immediates and absolute addresses */
bool translate_divide(Translation *t, const SoftOp *op);
bool translate_bit(Translation *t, const SoftOp *op);     /* BT, BTS, BTR, BTC */
bool translate_bswap(Translation *t, const SoftOp *op);
bool translate_plain(Translation *t, const SoftOp *op);   /* no operands but implicit ones: as it is */
bool translate_nop(Translation *t, const SoftOp *op);
bool translate_lea(Translation *t, const SoftOp *op);
bool translate_push(Translation *t, const SoftOp *op);    /* stack.c */
bool translate_pop(Translation *t, const SoftOp *op);
bool translate_leave(Translation *t, const SoftOp *op);
bool translate_jmp(Translation *t, const SoftOp *op);     /* branch.c: direct and indirect */
bool translate_call(Translation *t, const SoftOp *op);
/* The interpreter does the op if the address in @reg is not canonical; uses TEMP0, saves the flags before. */
void translate_require_canonical(Translation *t, const SoftOp *op, unsigned reg);
bool translate_jcc(Translation *t, const SoftOp *op);
bool translate_jcxz(Translation *t, const SoftOp *op);
bool translate_loop(Translation *t, const SoftOp *op);
bool translate_ret(Translation *t, const SoftOp *op);
bool translate_movs(Translation *t, const SoftOp *op);    /* string.c */
bool translate_stos(Translation *t, const SoftOp *op);
bool translate_lods(Translation *t, const SoftOp *op);
bool translate_mov_from_segment(Translation *t, const SoftOp *op);
bool translate_direction(Translation *t, const SoftOp *op); /* system.c */
bool translate_cli(Translation *t, const SoftOp *op);
bool translate_sti(Translation *t, const SoftOp *op);
bool translate_pushf(Translation *t, const SoftOp *op);
bool translate_stac(Translation *t, const SoftOp *op);
bool translate_clac(Translation *t, const SoftOp *op);
bool translate_swapgs(Translation *t, const SoftOp *op);
bool translate_base_read(Translation *t, const SoftOp *op);
bool translate_base_write(Translation *t, const SoftOp *op);
bool translate_rdtsc(Translation *t, const SoftOp *op);
bool translate_vector(Translation *t, const SoftOp *op);  /* vector.c */
