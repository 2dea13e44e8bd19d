/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Differential test of the software CPU: random instructions on random states, executed by it
 * and by the real CPU, and everything that can be seen compared.
 *
 * Both see the same linear address space: a few data pages (writable, read-only, absent) and
 * one page of code. On the host these are mapped at the very addresses; in the guest by page
 * tables. Their contents evolve from case to case and stay equal as long as both CPUs agree.
 */
#pragma once

#include "vcpu/soft/opcode-table.h"
#include "vcpu/soft/vector.h"

#define DIFF_BASE 0x20000000ull /* linear address of page 0 */
#define DIFF_PAGES 16u
#define DIFF_CODE_PAGE 14u /* in the window too, readable and executable */
#define DIFF_CODE (DIFF_BASE + DIFF_CODE_PAGE * 4096ull)
#define DIFF_GS_BASE (DIFF_BASE + 0x1230)

enum { DIFF_ABSENT, DIFF_RW, DIFF_RO, DIFF_CODE_RX };
extern const uint8_t diff_page_kind[DIFF_PAGES];

typedef struct DiffState {
    uint64_t gpr[16];
    uint64_t rip, rflags;
    uint8_t fx[512];      /* FXSAVE64 layout; bytes 464-511 unused */
    uint8_t high[16][16]; /* upper halves of the YMM registers */
} DiffState;

typedef struct DiffResult {
    DiffState state;
    int vector; /* -1: completed */
    uint32_t error;
    uint64_t address; /* of a page fault */
} DiffResult;

/*
 * One thing to cover: an encoding of an opcode. A sequence is several of them in one block, run by
 * the block cache until its final UD2 or a fault.
 */
typedef enum DiffKind {
    DIFF_INTEGER,
    DIFF_VECTOR,
    DIFF_X87_MEMORY,
    DIFF_X87_REGISTER,
    DIFF_STATE,
    DIFF_SEQUENCE
} DiffKind;

typedef struct DiffRow {
    DiffKind kind;
    char name[28];
    const SoftOpcode *integer;
    const VectorRow *vector;
    bool vex, l;
    bool loop; /* the sequence is diff-loop.c's */
    uint8_t map, opcode, modrm; /* x87 and state; modrm: the digit in place, or the whole byte */
    uint64_t tried, completed, faulted, mismatched;
} DiffRow;

typedef struct DiffCase {
    DiffRow *row;
    uint8_t bytes[256];
    unsigned length;  /* of the generated instruction, up to 15; or of a sequence and its UD2 */
    bool repeats;     /* a string instruction with a repeat prefix: the host steps through it */
    bool code32;      /* compatibility mode */
    DiffState in;
} DiffCase;

/* Deterministic random numbers. */
uint64_t diff_random(void);
void diff_random_seed(uint64_t seed);
static inline uint64_t diff_below(uint64_t n)
{
    return diff_random() % n;
}
static inline bool diff_chance(unsigned percent)
{
    return diff_below(100) < percent;
}

/* diff-rows.c */
extern DiffRow *diff_rows;
extern unsigned diff_row_count;
void diff_rows_init(void);

/* diff-generate.c: makes the next case for @row, in 64-bit or in compatibility mode. */
void diff_generate(DiffCase *c, DiffRow *row, bool code32);
/* diff-loop.c: the same, a loop that ends in UD2. */
void diff_generate_loop(DiffCase *c);
/* An address worth accessing. */
uint64_t diff_address(void);

/* diff-soft.c */
extern bool diff_translator; /* the translator is tested, not the interpreter */
void diff_soft_init(void);
void diff_soft_run(const DiffCase *c, DiffResult *result);
/* Whether the translator's idea of what the case does to general registers holds for @after. */
bool diff_soft_values_hold(const DiffCase *c, const DiffState *after);
uint8_t *diff_soft_page(unsigned page); /* the guest's memory */

/* diff-host.c */
void diff_host_init(void);
uint8_t *diff_host_page(unsigned page); /* a writable view of the host's */
/* Calls next() for a case until it returns NULL, and done() with what the real CPU did. */
void diff_host_loop(const DiffCase *(*next)(void), void (*done)(const DiffCase *, DiffResult *));

/* Writes to both memories. */
void diff_memory_write(uint64_t linear, const void *from, unsigned size);
