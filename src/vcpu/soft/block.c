/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Blocks of decoded instructions: where they are kept, found and linked.
 *
 * Each vCPU has a cache of its own, so nothing here is locked. A block is keyed by the guest
 * physical address of its first byte, its RIP and the mode; it lies in one page, whose
 * generation says whether it is still what memory holds. Links and jump-cache entries stand
 * for a linear address and are valid while cpu->fetch_epoch is what it was when they were
 * made: the epoch moves on when a mapping changes (mmu.c) and when any decoded code was
 * written (soft_code_epoch), and only then are generations looked at again.
 *
 * An instruction that straddles two pages is a block of its own, with an op before it that
 * checks the second page each time.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "base/error.h"
#include "vcpu/soft/integer.h"
#include "vcpu/soft/translate/run.h"
#include "vcpu/soft/vm.h"

#define OPS_MAX 64
#define HASH_BITS 13
#define ARENA_DEFAULT (7u << 20) /* bytes a VM: docs/SPECIFICATION.md, memory beyond the guest's own */
#define ARENA_MIN (1u << 20)

_Atomic uint32_t soft_code_epoch = 1;

struct SoftBlock {
    uint64_t gpa, rip;
    uint32_t mode, generation;
    SoftBlock *next; /* in its hash chain */
    uint64_t second_gpa; /* a straddling instruction's second page */
    uint32_t second_generation;
    uint32_t spare[3];
    _Alignas(64) SoftOp ops[];
};
_Static_assert(sizeof(SoftBlock) == 64, "ops start on a cache line");

typedef struct SoftBlockCache {
    SoftJumpCache jumps; /* first: handlers look into it */
    uint32_t code_epoch; /* soft_code_epoch when last looked */
    uint32_t seen_epoch; /* cpu->fetch_epoch when last looked */
    uint32_t flushes;
    uint32_t made;       /* blocks since the last flush */
    uint8_t *arena;
    size_t size, used;
    SoftOp fetch;      /* stands for the instruction while it is being fetched */
    SoftOp nowhere[2]; /* what is executed outside RAM */
    SoftBlock *hash[1 << HASH_BITS];
} SoftBlockCache;

static void cache_flush(SoftCpu *cpu, SoftBlockCache *c)
{
    memset(c->hash, 0, sizeof(c->hash));
    memset(&c->jumps, 0, sizeof(c->jumps));
    c->used = 0;
    c->made = 0;
    c->flushes++;
    vcpu_count(&cpu->stats.code_cache_evictions, 1);
    cpu->fetch_epoch++;
}

/* Takes note of changed code and mappings; after this cpu->fetch_epoch is not 0. */
static void epoch_update(SoftCpu *cpu, SoftBlockCache *c)
{
    uint32_t code = atomic_load_explicit(&soft_code_epoch, memory_order_acquire);

    if (code != c->code_epoch) {
        c->code_epoch = code;
        cpu->fetch_epoch++;
    }
    if (UNLIKELY(cpu->fetch_epoch < c->seen_epoch || cpu->fetch_epoch == 0)) {
        cache_flush(cpu, c); /* it wrapped: old links would look valid */
        cpu->fetch_epoch = 1;
    }
    c->seen_epoch = cpu->fetch_epoch;
}

static SoftBlock **hash_slot(SoftBlockCache *c, uint64_t gpa, uint64_t rip, uint32_t mode)
{
    uint64_t h = (gpa ^ rip >> 12 ^ (uint64_t)mode << 7) * 0x9e3779b97f4a7c15;

    return &c->hash[h >> (64 - HASH_BITS)];
}

void soft_blocks_flush(SoftCpu *cpu)
{
    cache_flush(cpu, cpu->blocks);
    if (cpu->code)
        code_cache_flush(cpu);
}

uint64_t soft_code_linear(const SoftCpu *cpu, uint64_t rip)
{
    if (cpu->mode & SOFT_MODE_CODE64)
        return rip;
    return (uint32_t)(cpu->seg[SEG_CS].base + rip);
}

/* Only where a linear address follows from RIP and the mode alone. */
static bool linkable(const SoftCpu *cpu)
{
    return (cpu->mode & (SOFT_MODE_CODE64 | SOFT_MODE_FLAT)) && !(cpu->mode & SOFT_MODE_SINGLE) &&
           !cpu->vcpu.vm->config.tuning.no_chains;
}

/* ---- the ops that decoding adds ---- */

static void op_next_block(SoftCpu *cpu, const SoftOp *op)
{
    SOFT_BRANCH(cpu, op);
}

static void op_leave(SoftCpu *cpu, const SoftOp *op)
{
    cpu->rip = op->imm;
}

/* Stands for an instruction at which the debugger stops. */
static void op_breakpoint(SoftCpu *cpu, const SoftOp *op)
{
    cpu->rip = op->rip;
    soft_debugger_break(cpu, soft_code_linear(cpu, op->rip));
}

/* Faults of fetching are those of the instruction at @rip. */
static void fetch_begin(SoftCpu *cpu, uint64_t rip)
{
    SoftBlockCache *c = cpu->blocks;

    c->fetch.rip = rip;
    cpu->op = &c->fetch;
}

static COLD bool second_page_same(SoftCpu *cpu, const SoftOp *op)
{
    const SoftBlock *b = op->aux;
    const uint8_t *host;
    uint64_t gpa, linear;

    fetch_begin(cpu, op->rip);
    linear = (soft_code_linear(cpu, op->rip) | 4095) + 1;
    gpa = soft_fetch_translate(cpu, cpu->mode & SOFT_MODE_CODE64 ? linear : (uint32_t)linear, &host);
    if (gpa == b->second_gpa && soft_page_generation(soft_vm(cpu), gpa) == b->second_generation)
        return true;
    ((SoftBlock *)b)->gpa = ~(uint64_t)0; /* never found again */
    cpu->rip = op->rip;
    cpu->fetch_epoch++;
    return false;
}

static void op_check_second_page(SoftCpu *cpu, const SoftOp *op)
{
    if (second_page_same(cpu, op))
        SOFT_NEXT(cpu, op);
}

static void add_end(SoftCpu *cpu, SoftOp *op, uint64_t rip)
{
    memset(op, 0, sizeof(*op));
    op->handler = cpu->mode & SOFT_MODE_SINGLE ? op_leave : op_next_block;
    op->rip = rip;
    op->imm = cpu->mode & SOFT_MODE_CODE64 ? rip : (uint32_t)rip;
}

/* ---- decoding a block ---- */

/* The block at @gpa and @rip, still valid; stale ones met on the way are dropped. */
static SoftBlock *block_lookup(SoftCpu *cpu, SoftBlockCache *c, uint64_t gpa, uint64_t rip)
{
    SoftBlock **at = hash_slot(c, gpa, rip, cpu->mode), *b;

    while ((b = *at)) {
        if (b->gpa == gpa && b->rip == rip && b->mode == cpu->mode) {
            if (b->generation == soft_page_generation(soft_vm(cpu), gpa & ~(uint64_t)4095))
                return b;
            *at = b->next; /* its memory comes back with the next flush */
            continue;
        }
        at = &b->next;
    }
    return NULL;
}

static SoftBlock *block_alloc(SoftCpu *cpu, SoftBlockCache *c)
{
    uint32_t most = cpu->vcpu.vm->config.tuning.flush_blocks;

    if (c->size - c->used < sizeof(SoftBlock) + (OPS_MAX + 2) * sizeof(SoftOp) || (most && c->made >= most))
        cache_flush(cpu, c);
    c->made++;
    return (SoftBlock *)(c->arena + c->used);
}

static void block_commit(SoftCpu *cpu, SoftBlockCache *c, SoftBlock *b, unsigned n_ops)
{
    SoftBlock **slot = hash_slot(c, b->gpa, b->rip, b->mode);

    c->used += sizeof(*b) + n_ops * sizeof(SoftOp);
    b->next = *slot;
    *slot = b;
    vcpu_count(&cpu->stats.blocks_decoded, 1);
    if (!cpu->code) /* else they tell of translated code */
        vcpu_count_set(&cpu->stats.code_cache_used, c->used);
}

/* Whether the instruction lies within the code segment's limit. */
static bool within_limit(const SoftCpu *cpu, uint64_t rip, unsigned length)
{
    return (cpu->mode & (SOFT_MODE_CODE64 | SOFT_MODE_FLAT)) ||
           rip + length - 1 <= cpu->seg[SEG_CS].limit;
}

/* The first instruction reaches into the next page. @host: its first byte, @room: bytes there. */
static unsigned decode_straddling(SoftCpu *cpu, SoftBlock *b, const uint8_t *host, unsigned room)
{
    uint64_t linear = (soft_code_linear(cpu, b->rip) | 4095) + 1;
    uint8_t bytes[15];
    const uint8_t *second;
    bool ends;

    if (!(cpu->mode & SOFT_MODE_CODE64))
        linear = (uint32_t)linear;
    memcpy(bytes, host, room);
    b->second_gpa = soft_fetch_translate(cpu, linear, &second);
    if (second) {
        b->second_generation = soft_page_protect(cpu, b->second_gpa & ~(uint64_t)4095);
        memcpy(bytes + room, second, sizeof(bytes) - room);
    } else {
        b->second_generation = soft_page_generation(soft_vm(cpu), b->second_gpa);
        memset(bytes + room, 0xff, sizeof(bytes) - room);
    }
    soft_decode(cpu, cpu->mode, b->rip, bytes, sizeof(bytes), &b->ops[1], &ends);
    memset(&b->ops[0], 0, sizeof(b->ops[0]));
    b->ops[0].handler = op_check_second_page;
    b->ops[0].rip = b->rip;
    b->ops[0].aux = b;
    if (!within_limit(cpu, b->rip, b->ops[1].length))
        soft_raise_error(cpu, EXC_GP, 0);
    if (!ends)
        add_end(cpu, &b->ops[2], b->rip + b->ops[1].length);
    return ends ? 2 : 3;
}

/* In SOFT_MODE_SINGLE the run loop looks by itself, before each instruction. */
static bool breakpoint_at(const SoftCpu *cpu, uint64_t rip)
{
    return cpu->system->debugger.code && !(cpu->mode & SOFT_MODE_SINGLE) &&
           soft_debugger_code_at(cpu, soft_code_linear(cpu, rip));
}

/* Decodes from @host to the end of the block; returns how many ops. */
static unsigned decode_ops(SoftCpu *cpu, SoftBlock *b, const uint8_t *host)
{
    unsigned room = 4096 - (b->gpa & 4095), n = 0, length;
    unsigned most = cpu->vcpu.vm->config.tuning.block_ops;
    unsigned max = cpu->mode & SOFT_MODE_SINGLE ? 1 : most ? MIN(most, OPS_MAX) : OPS_MAX;
    uint64_t rip = b->rip;
    bool ends = false;

    while (n < max && !ends) {
        if (UNLIKELY(breakpoint_at(cpu, rip))) {
            if (n > 0)
                break;
            memset(&b->ops[0], 0, sizeof(b->ops[0]));
            b->ops[0].handler = op_breakpoint;
            b->ops[0].rip = rip;
            return 1;
        }
        length = soft_decode(cpu, cpu->mode, rip, host, room, &b->ops[n], &ends);
        if (length == 0) {
            if (n == 0)
                return decode_straddling(cpu, b, host, room);
            ends = false;
            break;
        }
        if (!within_limit(cpu, rip, length)) {
            if (n == 0)
                soft_raise_error(cpu, EXC_GP, 0);
            ends = false;
            break;
        }
        n++;
        rip += length;
        host += length;
        room -= length;
        if (!ends && block_lookup(cpu, cpu->blocks, b->gpa + (rip - b->rip), rip))
            break; /* what follows has been decoded already */
    }
    if (!ends)
        add_end(cpu, &b->ops[n++], rip);
    return n;
}

/* Outside RAM every byte reads as ones, which is no instruction. */
static const SoftOp *nowhere(SoftCpu *cpu, SoftBlockCache *c)
{
    static const uint8_t ones[15] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
                                      0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff };
    bool ends;

    soft_decode(cpu, cpu->mode, cpu->rip, ones, sizeof(ones), &c->nowhere[0], &ends);
    add_end(cpu, &c->nowhere[1], cpu->rip + c->nowhere[0].length);
    return c->nowhere;
}

static SoftBlock *block_decode(SoftCpu *cpu, SoftBlockCache *c, uint64_t gpa, const uint8_t *host)
{
    SoftBlock *b = block_alloc(cpu, c);

    b->gpa = gpa;
    b->rip = cpu->rip;
    b->mode = cpu->mode;
    b->generation = soft_page_protect(cpu, gpa & ~(uint64_t)4095);
    block_commit(cpu, c, b, decode_ops(cpu, b, host));
    return b;
}

/* ---- finding a block ---- */

/* The first op of the block at cpu->rip, decoded if need be. May fault. */
static COLD const SoftOp *find(SoftCpu *cpu)
{
    SoftBlockCache *c = cpu->blocks;
    const uint8_t *host;
    SoftBlock *b;
    SoftJump *j;
    uint64_t gpa;

    epoch_update(cpu, c);
    fetch_begin(cpu, cpu->rip);
    if (cpu->mode & SOFT_MODE_CODE64 ? !canonical(cpu->rip) : !within_limit(cpu, cpu->rip, 1))
        soft_raise_error(cpu, EXC_GP, 0);
    gpa = soft_fetch_translate(cpu, soft_code_linear(cpu, cpu->rip), &host);
    if (!host)
        return nowhere(cpu, c);
    b = block_lookup(cpu, c, gpa, cpu->rip);
    if (!b)
        b = block_decode(cpu, c, gpa, host);
    if (linkable(cpu)) {
        j = &c->jumps.jump[soft_jump_hash(cpu->rip)];
        *j = (SoftJump){ cpu->rip, cpu->mode, cpu->fetch_epoch, b->ops, 0 };
    }
    return b->ops;
}

static bool must_leave(const SoftCpu *cpu)
{
    return !SOFT_CHAIN || atomic_load_explicit(&cpu->pending, memory_order_relaxed) ||
           (cpu->mode & SOFT_MODE_SINGLE) || ((cpu->mode & SOFT_MODE_CODE64) && cpu->code);
}

void soft_branch_slow(SoftCpu *cpu, const SoftOp *op)
{
    SoftBlockCache *c = cpu->blocks;
    uint32_t flushes = c->flushes;
    SoftOp *from = (SoftOp *)op;
    const SoftOp *first;

    cpu->rip = op->imm;
    if (must_leave(cpu))
        return;
    first = find(cpu);
    if (c->flushes == flushes && linkable(cpu) && first != c->nowhere) {
        from->aux = first;
        from->link_epoch = cpu->fetch_epoch;
    }
    return first->handler(cpu, first);
}

void soft_jump_slow(SoftCpu *cpu)
{
    const SoftOp *first;

    if (must_leave(cpu))
        return;
    first = find(cpu);
    return first->handler(cpu, first);
}

void soft_blocks_run(SoftCpu *cpu)
{
    SoftBlockCache *c = cpu->blocks;
    const SoftOp *first;
    const SoftJump *j;
    bool single;

    if (soft_translate_possible(cpu)) {
        soft_translate_run(cpu);
        return;
    }
    do {
        epoch_update(cpu, c);
        single = cpu->mode & SOFT_MODE_SINGLE;
        j = &c->jumps.jump[soft_jump_hash(cpu->rip)];
        if (j->rip == cpu->rip && j->mode == cpu->mode && j->epoch == cpu->fetch_epoch)
            first = j->first;
        else
            first = find(cpu);
        first->handler(cpu, first);
    } while (!single && !atomic_load_explicit(&cpu->pending, memory_order_relaxed) &&
             !soft_translate_possible(cpu));
}

/* ---- lifetime ---- */

bool soft_blocks_init(SoftCpu *cpu, GError **err)
{
    const VcpuVmConfig *config = &cpu->vcpu.vm->config;
    SoftBlockCache *c;
    void *arena;

    c = aligned_alloc(64, (sizeof(*c) + 63) & ~(size_t)63);
    if (!c)
        return lodge_fail_errno(err, ENOMEM, "allocating the code cache's index");
    memset(c, 0, sizeof(*c));
    c->size = config->code_cache_size ? config->code_cache_size : ARENA_DEFAULT;
    if (config->n_vcpus > 1)
        c->size /= config->n_vcpus;
    if (c->size < ARENA_MIN)
        c->size = ARENA_MIN;
    c->size &= ~(size_t)4095;
    arena = mmap(NULL, c->size, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (arena == MAP_FAILED) {
        lodge_fail_errno(err, errno, "mapping a code cache of %zu bytes", c->size);
        free(c);
        return false;
    }
    c->arena = arena;
    cpu->stats.code_cache_size = c->size;
    c->fetch.seg = SEG_CS;
    c->fetch.handler = op_leave;
    cpu->blocks = c;
    if (cpu->fetch_epoch == 0)
        cpu->fetch_epoch = 1;
    return true;
}

void soft_blocks_free(SoftCpu *cpu)
{
    SoftBlockCache *c = cpu->blocks;

    if (!c)
        return;
    munmap(c->arena, c->size);
    free(c);
    cpu->blocks = NULL;
}
