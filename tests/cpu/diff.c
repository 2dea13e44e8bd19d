/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * cpu-diff: the differential test's program. LODGE_DIFF_SEED and LODGE_DIFF_COUNT choose the
 * cases, LODGE_DIFF_ROW a substring of the rows' names, LODGE_DIFF_VERBOSE how many mismatches
 * of each row are shown; LODGE_DIFF_ENGINE is "translator" or "interpreter" (the default).
 */
#include "diff.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static uint64_t seed = 1, count = 1000000, done, mismatches;
static unsigned verbose = 2;
static const char *only;

/* Shared with the parent, which reports the case when the child crashes. */
typedef struct Shared {
    DiffCase current;
    uint64_t number;
} Shared;
static Shared *shared;

static uint64_t environment_number(const char *name, uint64_t otherwise)
{
    const char *text = getenv(name);
    return text ? g_ascii_strtoull(text, NULL, 0) : otherwise;
}

void diff_memory_write(uint64_t linear, const void *from, unsigned size)
{
    for (unsigned i = 0; i < size; i++) {
        uint64_t offset = linear + i - DIFF_BASE;
        if (offset >= DIFF_PAGES * 4096ull || diff_page_kind[offset >> 12] == DIFF_ABSENT ||
            diff_page_kind[offset >> 12] == DIFF_CODE_RX)
            continue;
        uint8_t byte = ((const uint8_t *)from)[i];
        diff_host_page((unsigned)(offset >> 12))[offset & 4095] = byte;
        diff_soft_page((unsigned)(offset >> 12))[offset & 4095] = byte;
    }
}

static void place_code(const DiffCase *c)
{
    static const uint8_t filler[288] = {[0 ... 287] = 0xcc};
    unsigned at = (unsigned)(c->in.rip - DIFF_CODE);
    memcpy(diff_host_page(DIFF_CODE_PAGE) + at, filler, sizeof(filler));
    memcpy(diff_host_page(DIFF_CODE_PAGE) + at, c->bytes, c->length);
    memcpy(diff_soft_page(DIFF_CODE_PAGE) + at, filler, sizeof(filler));
    memcpy(diff_soft_page(DIFF_CODE_PAGE) + at, c->bytes, c->length);
}

/* Rows with few encodings need fewer cases, but every row gets some. */
static DiffRow *choose_row(void)
{
    if (!only && done >= diff_row_count && diff_chance(10))
        return &diff_rows[diff_row_count - 1 - diff_below(2)]; /* the sequence, the loop */
    for (;;) {
        DiffRow *row = done < diff_row_count ? &diff_rows[done] : &diff_rows[diff_below(diff_row_count)];
        if (row->kind == DIFF_X87_REGISTER && done >= diff_row_count && diff_chance(60))
            continue;
        if (only && !strstr(row->name, only)) {
            row = &diff_rows[diff_below(diff_row_count)];
            if (!strstr(row->name, only))
                continue;
        }
        return row;
    }
}

static bool choose_mode(const DiffRow *row)
{
    if (row->kind == DIFF_SEQUENCE)
        return false;
    unsigned flags = row->integer ? row->integer->flags : 0;
    if (flags & OPC_ONLY64)
        return false;
    return (flags & OPC_NO64) || diff_chance(25);
}

static DiffResult soft_result;

static const DiffCase *next_case(void)
{
    if (done >= count)
        return NULL;
    DiffCase *c = &shared->current;
    shared->number = done;
    DiffRow *row = choose_row();
    diff_generate(c, row, choose_mode(row));
    memset(c->bytes + c->length, 0xcc, MIN(sizeof(c->bytes) - c->length, 32));
    place_code(c);
    row->tried++;
    done++;
    diff_soft_run(c, &soft_result);
    return c;
}

/* ---- comparison ------------------------------------------------------------------------------- */

/* Flags that the manuals leave undefined and that the interpreter computes on its own. */
static const struct {
    uint8_t opcode; /* of the one-byte map */
    uint64_t flags;
} undefined_flags[] = {
    {0x37, FLAG_OF | FLAG_SF | FLAG_ZF | FLAG_PF}, /* AAA */
    {0x3f, FLAG_OF | FLAG_SF | FLAG_ZF | FLAG_PF}, /* AAS */
    {0x27, FLAG_OF},                               /* DAA */
    {0x2f, FLAG_OF},                               /* DAS */
    {0xd4, FLAG_OF | FLAG_AF | FLAG_CF},           /* AAM */
    {0xd5, FLAG_OF | FLAG_AF | FLAG_CF},           /* AAD */
};

static bool is_legacy_prefix(uint8_t byte)
{
    return byte == 0x66 || byte == 0x67 || byte == 0x64 || byte == 0x65 || byte == 0xf2 ||
           byte == 0xf3 || (byte & 0xe7) == 0x26;
}

static bool has_prefix(const DiffCase *c, uint8_t prefix)
{
    for (unsigned i = 0; i < c->length && is_legacy_prefix(c->bytes[i]); i++)
        if (c->bytes[i] == prefix)
            return true;
    return false;
}

/* A rotation by more than one place: OF is undefined (SDM vol. 2, RCL/RCR/ROL/ROR). */
static bool rotates_far(const DiffCase *c)
{
    unsigned i = 0;
    while (is_legacy_prefix(c->bytes[i]))
        i++;
    unsigned mask = !c->code32 && (c->bytes[i] & 0xf8) == 0x48 ? 0x3f : 0x1f;
    return (c->row->opcode == 0xc0 || c->row->opcode == 0xc1) &&
           (!strncmp(c->row->name, "ro", 2) || !strncmp(c->row->name, "rc", 2)) &&
           (c->bytes[c->length - 1] & mask) != 1;
}

/* Flags that the two need not agree on after this instruction. */
static uint64_t flags_ignored(const DiffCase *c, const DiffResult *host)
{
    uint64_t ignored = FLAG_TF | FLAG_RF | FLAG_IF;
    /* The translator does not compute flags that an instruction sets anew if it does not fault. */
    if (diff_translator && c->row->kind == DIFF_SEQUENCE && host->vector != EXC_UD)
        ignored |= FLAG_ARITH;
    if (!c->row->integer || c->row->map)
        return ignored;
    if (rotates_far(c))
        ignored |= FLAG_OF;
    /* SCAS, CMPS that fault after some iterations: of which one the flags are. */
    if (c->repeats && host->vector >= 0 && ((c->row->opcode | 9) == 0xaf))
        ignored |= FLAG_ARITH;
    for (unsigned i = 0; i < G_N_ELEMENTS(undefined_flags); i++)
        if (undefined_flags[i].opcode == c->row->opcode)
            ignored |= undefined_flags[i].flags;
    return ignored;
}

/* Bytes of the legacy region that are not compared: FOP, FIP, FDP, and what is reserved. */
static bool fx_compared(unsigned i)
{
    if (i == 5 || (i >= FX_FOP && i < FX_MXCSR) || (i >= FX_MXCSR_MASK && i < FX_ST))
        return false;
    return i < FX_ST || i >= FX_XMM || (i & 15) < 10;
}

static bool memory_equal(unsigned page)
{
    return memcmp(diff_host_page(page), diff_soft_page(page), 4096) == 0;
}

/*
 * With an unmasked overflow or underflow, inexactness is that of a result with unlimited
 * exponent, which the software CPU does not know. DPPS and DPPD stop at the first of their steps
 * that faults.
 */
static uint8_t mxcsr_ignored(const DiffResult *host, bool dot_product)
{
    uint32_t mxcsr;
    memcpy(&mxcsr, host->state.fx + FX_MXCSR, 4);
    if (host->vector == EXC_XM && dot_product)
        return 0x3f;
    return host->vector == EXC_XM && (~mxcsr & 0xc00) ? 0x20 : 0;
}

static bool vectors_equal(const DiffCase *c, const DiffResult *host, const DiffResult *soft)
{
    bool dot_product = c->row->kind == DIFF_SEQUENCE ||
                       (c->row->kind == DIFF_VECTOR && c->row->map == 3 && (c->row->opcode & 0xfe) == 0x40);
    for (unsigned i = 0; i < (c->code32 ? FX_XMM + 8 * 16 : 416); i++) {
        uint8_t ignored = i == FX_MXCSR ? mxcsr_ignored(host, dot_product) : 0;
        if (fx_compared(i) && ((host->state.fx[i] ^ soft->state.fx[i]) & ~ignored))
            return false;
    }
    return memcmp(host->state.high, soft->state.high, c->code32 ? 8 * 16 : 16 * 16) == 0;
}

static bool fault_equal(const DiffCase *c, const DiffResult *host, const DiffResult *soft)
{
    uint32_t mask = ~0u;
    if (host->vector != soft->vector)
        return false;
    /* The state-saving instructions look at their pages in any order. */
    if (host->vector < 0 || (host->vector == EXC_PF && c->row->kind == DIFF_STATE))
        return true;
    /* Large operands and MASKMOVDQU: the fault names some byte, not always the first one. */
    bool somewhere = c->row->kind == DIFF_X87_MEMORY ||
                     (c->row->kind == DIFF_VECTOR && c->row->map == 1 && c->row->opcode == 0xf7);
    if (host->vector == EXC_PF && (host->address ^ soft->address) >> (somewhere ? 12 : 0))
        return false;
    /* Linux reports every fault outside its user half as a protection violation. */
    if (host->vector == EXC_PF && host->address >= 0x7ffffffff000)
        mask = ~1u;
    return host->error == 0 ? (soft->error & mask) == 0 : (host->error & mask) == (soft->error & mask);
}

static bool is_integer(const DiffCase *c, unsigned opcode)
{
    return c->row->integer && c->row->map == 0 && c->row->opcode == opcode;
}

/* The bytes of the instruction at @rip, prefixes skipped; in a sequence not always the first one. */
static const uint8_t *opcode_at(const DiffCase *c, uint64_t rip)
{
    uint64_t at = rip - c->in.rip;
    while (at + 1 < c->length && (is_legacy_prefix(c->bytes[at]) || (c->bytes[at] & 0xf0) == 0x40))
        at++;
    return c->bytes + MIN(at, c->length);
}

/* The vector instruction that the case ends with is {map, opcode}. */
static bool ends_with(const DiffCase *c, const DiffResult *host, unsigned map, unsigned opcode)
{
    const uint8_t *at = opcode_at(c, host->state.rip);
    if (c->row->kind != DIFF_SEQUENCE)
        return c->row->kind == DIFF_VECTOR && c->row->map == map && c->row->opcode == opcode;
    if (*at == 0xc4)
        return (at[1] & 31u) == map && at[3] == opcode;
    if (*at == 0xc5)
        return map == 1 && at[2] == opcode;
    return *at == 0x0f && map == 1 && at[1] == opcode;
}

/* With 32-bit addresses a repeated string instruction may clear the upper halves of its registers. */
static bool string_registers_alike(const DiffResult *host, const DiffResult *soft)
{
    for (unsigned i = 0; i < 16; i++) {
        bool counts = i == 1 || i == 6 || i == 7;
        if ((host->state.gpr[i] ^ soft->state.gpr[i]) & (counts ? 0xffffffff : ~0ull))
            return false;
    }
    for (unsigned i = 0; i < DIFF_PAGES; i++)
        if (diff_page_kind[i] != DIFF_ABSENT && !memory_equal(i))
            return false;
    return host->vector == soft->vector && host->state.rip == soft->state.rip;
}

/* An x87 store with an unmasked exception stores nothing: then its address does not matter. */
static bool no_x87_store(const DiffCase *c, const DiffResult *host, const DiffResult *soft)
{
    if (soft->vector != EXC_PF && soft->vector != EXC_GP && soft->vector != EXC_SS)
        return false;
    if (c->row->kind == DIFF_SEQUENCE) /* the host went on behind it */
        return (*opcode_at(c, soft->state.rip) & 0xf8) == 0xd8 &&
               (host->state.rip != soft->state.rip || host->vector != soft->vector);
    return c->row->kind == DIFF_X87_MEMORY && host->vector < 0 && (host->state.fx[2] & 0x80);
}

/*
 * What Intel's and AMD's processors do each in their way (both were seen; the SDM leaves it open):
 * in which order an instruction finds its faults, and what it has done before one.
 */
static bool vendors_differ(const DiffCase *c, const DiffResult *host, const DiffResult *soft)
{
    bool faults = host->vector >= 0 && soft->vector >= 0 && host->state.rip == soft->state.rip;
    bool alike = faults && host->vector == soft->vector;
    /* Stores of MMX registers: the x87 stack is an MMX state already when they fault. */
    if (alike && (ends_with(c, host, 1, 0x7e) || ends_with(c, host, 1, 0x7f) ||
                  ends_with(c, host, 1, 0xe7)))
        return true;
    /* VCVTPS2PH: MXCSR's flags, or #XM itself, come before the store's fault. */
    if (faults && ends_with(c, host, 3, 0x1d))
        return true;
    /* VMASKMOV, MASKMOVDQU: which of the bytes that are not there is named. */
    if (alike && (ends_with(c, host, 2, 0x2e) || ends_with(c, host, 2, 0x2f) ||
                  ends_with(c, host, 2, 0x8e) || ends_with(c, host, 1, 0xf7)))
        return true;
    /* CALL to no canonical address: pushed before the fault. */
    if (alike && host->vector == EXC_GP && is_integer(c, 0xff))
        return true;
    /* Which of the two operands of CMPS is looked at first. */
    if (faults && (is_integer(c, 0xa6) || is_integer(c, 0xa7)))
        return true;
    /* FBSTP across a page end: how much it has stored. */
    if (alike && host->vector == EXC_PF && (*opcode_at(c, host->state.rip) & 0xf8) == 0xd8)
        return true;
    if (no_x87_store(c, host, soft))
        return true;
    /* XSAVE and XRSTOR with components left out may look at all of the area, or not. */
    if (c->row->kind == DIFF_STATE && host->vector < 0 && soft->vector == EXC_PF &&
        !strncmp(c->row->name, "x", 1))
        return true;
    uint8_t last = *opcode_at(c, host->state.rip);
    if (c->row->kind == DIFF_SEQUENCE ? alike && last >= 0xa4 && last <= 0xaf
                                      : c->repeats && !c->code32 && has_prefix(c, 0x67))
        return string_registers_alike(host, soft);
    /* PREFETCHW of a register: undefined to some, nothing to others. */
    if (!strncmp(c->row->name, "prefetch", 8) && (host->vector < 0) != (soft->vector < 0))
        return true;
    /* PAUSE with REX.B: XCHG with R8 to some. */
    return is_integer(c, 0x90) && host->vector < 0 && soft->vector < 0 && has_prefix(c, 0xf3);
}

/* Where processors may differ in what a faulting instruction leaves behind. */
static bool tolerated(const DiffCase *c, const DiffResult *host, const DiffResult *soft)
{
    bool both = host->vector == EXC_PF && soft->vector == EXC_PF;
    /* They gather in whatever order they like. */
    if (host->vector >= 0 && soft->vector >= 0 && c->row->kind == DIFF_VECTOR &&
        (c->row->vector->flags & VO_VSIB))
        return true;
    /* PUSHA, POPA and ENTER may have done part of their work. */
    if (both && (is_integer(c, 0x60) || is_integer(c, 0x61) || is_integer(c, 0xc8)))
        return true;
    /* XRSTOR may look at components that its header says are not there, and fault half-way. */
    if (c->row->kind == DIFF_STATE && c->row->opcode == 0xae && c->row->modrm == 5 << 3 &&
        host->vector >= 0 && (soft->vector >= 0 || host->vector == EXC_PF))
        return true;
    /* A stack address both misaligned and not canonical: either may be found first. */
    if (c->row->kind == DIFF_STATE && host->vector == EXC_SS && soft->vector == EXC_GP)
        return true;
    if (vendors_differ(c, host, soft))
        return true;
    /* Flat segments are taken to have no end, also for operands across 4 GiB. */
    return c->code32 && (host->vector == EXC_SS || host->vector == EXC_GP) &&
           soft->vector == EXC_PF && (soft->address >> 12 == 0xfffff || soft->address < 4096);
}

static bool equal(const DiffCase *c, const DiffResult *host, const DiffResult *soft)
{
    uint64_t flags = (FLAG_ARITH | FLAG_DF | FLAG_AC | FLAG_ID | FLAG_NT | FLAG_IOPL) & ~flags_ignored(c, host);
    if (!fault_equal(c, host, soft) || host->state.rip != soft->state.rip)
        return false;
    for (unsigned i = 0; i < (c->code32 ? 8 : 16); i++)
        if ((host->state.gpr[i] ^ soft->state.gpr[i]) & (c->code32 ? 0xffffffff : ~0ull))
            return false;
    if ((host->state.rflags ^ soft->state.rflags) & flags)
        return false;
    if (!vectors_equal(c, host, soft))
        return false;
    for (unsigned i = 0; i < DIFF_PAGES; i++)
        if (diff_page_kind[i] != DIFF_ABSENT && !memory_equal(i))
            return false;
    return true;
}

/* ---- reports ------------------------------------------------------------------------------------ */

static void print_bytes(const char *what, const uint8_t *bytes, unsigned n)
{
    printf("%s", what);
    for (unsigned i = 0; i < n; i++)
        printf("%02x", bytes[n - 1 - i]);
}

static void report_outcome(const char *who, const DiffResult *r)
{
    printf("  %s: vector %d error %x address %" PRIx64 " rip %" PRIx64 " rflags %" PRIx64 "\n", who,
           r->vector, r->error, r->address, r->state.rip, r->state.rflags);
}

static void report_registers(const DiffState *in, const DiffState *h, const DiffState *s)
{
    for (unsigned i = 0; i < 16; i++)
        if (in->gpr[i] != h->gpr[i] || h->gpr[i] != s->gpr[i])
            printf("  gpr%-2u in %016" PRIx64 " host %016" PRIx64 " soft %016" PRIx64 "\n", i,
                   in->gpr[i], h->gpr[i], s->gpr[i]);
    for (unsigned i = 0; i < FX_ST; i++)
        if (fx_compared(i) && h->fx[i] != s->fx[i])
            printf("  fx[%u] in %02x host %02x soft %02x\n", i, in->fx[i], h->fx[i], s->fx[i]);
    for (unsigned i = 0; i < 8; i++) {
        unsigned at = FX_ST + i * 16;
        if (memcmp(h->fx + at, s->fx + at, 10) == 0)
            continue;
        printf("  st%u", i);
        print_bytes(" in ", in->fx + at, 10);
        print_bytes(" host ", h->fx + at, 10);
        print_bytes(" soft ", s->fx + at, 10);
        printf("\n");
    }
    for (unsigned i = 0; i < 16; i++) {
        unsigned at = FX_XMM + i * 16;
        if (memcmp(h->fx + at, s->fx + at, 16) == 0 && memcmp(h->high[i], s->high[i], 16) == 0)
            continue;
        printf("  ymm%u", i);
        print_bytes(" in ", in->high[i], 16);
        print_bytes("_", in->fx + at, 16);
        print_bytes("\n    host ", h->high[i], 16);
        print_bytes("_", h->fx + at, 16);
        print_bytes("\n    soft ", s->high[i], 16);
        print_bytes("_", s->fx + at, 16);
        printf("\n");
    }
}

static void report_memory(void)
{
    unsigned shown = 0;
    for (unsigned page = 0; page < DIFF_PAGES; page++) {
        if (diff_page_kind[page] == DIFF_ABSENT || memory_equal(page))
            continue;
        for (unsigned i = 0; i < 4096 && shown < 16; i++) {
            uint8_t h = diff_host_page(page)[i], s = diff_soft_page(page)[i];
            if (h != s) {
                printf("  mem %llx host %02x soft %02x\n", DIFF_BASE + page * 4096ull + i, h, s);
                shown++;
            }
        }
    }
}

static void report(const DiffCase *c, const DiffResult *host, const DiffResult *soft)
{
    printf("MISMATCH %s (case %" PRIu64 "): ", c->row->name, done - 1);
    for (unsigned i = 0; i < c->length; i++)
        printf("%02x ", c->bytes[i]);
    printf("%s\n  in: rip %" PRIx64 " rflags %" PRIx64, c->code32 ? "(32-bit)" : "",
           c->in.rip, c->in.rflags);
    print_bytes(" fcw ", c->in.fx, 2);
    print_bytes(" fsw ", c->in.fx + 2, 2);
    print_bytes(" ftw ", c->in.fx + 4, 1);
    print_bytes(" mxcsr ", c->in.fx + 24, 4);
    printf(" rax %" PRIx64 " rcx %" PRIx64 " rdx %" PRIx64 "\n", c->in.gpr[0], c->in.gpr[1], c->in.gpr[2]);
    report_outcome("host", host);
    report_outcome("soft", soft);
    report_registers(&c->in, &host->state, &soft->state);
    report_memory();
}

/*
 * AMD processors have MXCSR.MM (bit 17), which the software CPU does not offer: it shows in the
 * MXCSR_MASK that FXSAVE and XSAVE store.
 */
static void forget_misaligned_sse(const DiffCase *c)
{
    if (c->row->kind != DIFF_STATE)
        return;
    for (unsigned page = 0; page < DIFF_PAGES; page++) {
        uint8_t *host = diff_host_page(page), *soft = diff_soft_page(page);
        if (diff_page_kind[page] != DIFF_RW)
            continue;
        for (unsigned i = (FX_MXCSR_MASK + 2) & 15; i < 4096; i += 16)
            if (host[i] == 2 && soft[i] == 0)
                host[i] = 0;
    }
}

static void case_done(const DiffCase *c, DiffResult *host)
{
    forget_misaligned_sse(c);
    if (host->vector < 0 || (c->row->kind == DIFF_SEQUENCE && host->vector == EXC_UD))
        c->row->completed++;
    else
        c->row->faulted++;
    bool idea = host->vector >= 0 || diff_soft_values_hold(c, &host->state);
    if (!idea)
        printf("coalesce.c's idea of this is wrong:\n");
    if (idea && equal(c, host, &soft_result))
        return;
    if (!idea || !tolerated(c, host, &soft_result)) {
        mismatches++;
        if (c->row->mismatched++ < verbose) {
            report(c, host, &soft_result);
            fflush(stdout);
        }
    }
    for (unsigned i = 0; i < DIFF_PAGES; i++) /* agree again */
        memcpy(diff_soft_page(i), diff_host_page(i), 4096);
}

static int coverage(void)
{
    unsigned missing = 0;
    printf("opcode                       tried completed   faulted mismatched\n");
    for (unsigned i = 0; i < diff_row_count; i++) {
        const DiffRow *r = &diff_rows[i];
        if (only && !strstr(r->name, only))
            continue;
        printf("%-28s %5" PRIu64 " %9" PRIu64 " %9" PRIu64 " %10" PRIu64 "\n", r->name, r->tried,
               r->completed, r->faulted, r->mismatched);
        bool never = r->completed == 0 && count >= 100000 && strncmp(r->name, "ud", 2) != 0;
        if (!only && (r->tried == 0 || never)) {
            printf("NEVER EXECUTED: %s\n", r->name);
            missing++;
        }
    }
    printf("cpu-diff: seed %" PRIu64 ", %" PRIu64 " cases of %u encodings, %" PRIu64
           " mismatches, %u never executed\n",
           seed, done, diff_row_count, mismatches, missing);
    return mismatches || missing ? 1 : 0;
}

static int child(void)
{
    soft_features_init();
    diff_rows_init();
    diff_random_seed(seed);
    diff_host_init();
    diff_soft_init();
    diff_host_loop(next_case, case_done);
    return coverage();
}

int main(void)
{
    seed = environment_number("LODGE_DIFF_SEED", 1);
    count = environment_number("LODGE_DIFF_COUNT", 1000000);
    verbose = (unsigned)environment_number("LODGE_DIFF_VERBOSE", 2);
    only = getenv("LODGE_DIFF_ROW");
#ifdef __SANITIZE_ADDRESS__
    /* Its shadow memory lies where the real CPU must find nothing. */
    printf("cpu-diff: not with AddressSanitizer\n");
    return 77;
#endif
    printf("cpu-diff: LODGE_DIFF_SEED=%" PRIu64 " LODGE_DIFF_COUNT=%" PRIu64 "\n", seed, count);
    fflush(stdout);
    shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t pid = shared == MAP_FAILED ? -1 : fork();
    if (pid == 0) {
        int status = child();
        fflush(stdout);
        _exit(status);
    }
    int status;
    if (pid < 0 || waitpid(pid, &status, 0) < 0) {
        perror("cpu-diff");
        return 99;
    }
    if (WIFEXITED(status))
        return WEXITSTATUS(status);
    printf("cpu-diff: killed by signal %d in case %" PRIu64 ":", WTERMSIG(status), shared->number);
    for (unsigned i = 0; i < shared->current.length; i++)
        printf(" %02x", shared->current.bytes[i]);
    printf("\n");
    return 1;
}
