/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the integer handlers share: registers by operand size, memory operands, arithmetic
 * flags taken from the host's ALU, and the ways on to the next instruction.
 *
 * Handlers of memory operands come in pairs. The fast one serves an operand whose linear
 * address is plain (flat, 64-bit) and hits the TLB, calls nothing and so needs no stack
 * frame; all else goes to its slow twin, which may fault, meet MMIO or write to code.
 */
#pragma once

#include "vcpu/soft/opcode-table.h"
#include "vcpu/soft/system-ops.h"

#define ALWAYS_INLINE inline __attribute__((always_inline))
#define COLD __attribute__((noinline, cold))
#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)

#define PASTE_(a, b) a##b
#define PASTE(a, b) PASTE_(a, b)

/* ---- registers: op->reg and op->rm of byte operands are offsets in bytes from cpu->gpr ---- */

static ALWAYS_INLINE uint8_t *gpr8(SoftCpu *cpu, unsigned offset)
{
    return (uint8_t *)cpu->gpr + offset;
}

static ALWAYS_INLINE uint8_t get8(SoftCpu *cpu, unsigned n)
{
    return *gpr8(cpu, n);
}

static ALWAYS_INLINE uint16_t get16(SoftCpu *cpu, unsigned n)
{
    return (uint16_t)cpu->gpr[n];
}

static ALWAYS_INLINE uint32_t get32(SoftCpu *cpu, unsigned n)
{
    return (uint32_t)cpu->gpr[n];
}

static ALWAYS_INLINE uint64_t get64(SoftCpu *cpu, unsigned n)
{
    return cpu->gpr[n];
}

static ALWAYS_INLINE void set8(SoftCpu *cpu, unsigned n, uint8_t v)
{
    *gpr8(cpu, n) = v;
}

static ALWAYS_INLINE void set16(SoftCpu *cpu, unsigned n, uint16_t v)
{
    memcpy(&cpu->gpr[n], &v, 2);
}

static ALWAYS_INLINE void set32(SoftCpu *cpu, unsigned n, uint32_t v)
{
    cpu->gpr[n] = v;
}

static ALWAYS_INLINE void set64(SoftCpu *cpu, unsigned n, uint64_t v)
{
    cpu->gpr[n] = v;
}

/* By a size known only at run time; not for byte registers. */
static inline uint64_t get_sized(SoftCpu *cpu, unsigned n, unsigned size)
{
    return size == 8 ? cpu->gpr[n] : size == 4 ? (uint32_t)cpu->gpr[n] : (uint16_t)cpu->gpr[n];
}

static inline void set_sized(SoftCpu *cpu, unsigned n, unsigned size, uint64_t v)
{
    if (size == 8)
        cpu->gpr[n] = v;
    else if (size == 4)
        cpu->gpr[n] = (uint32_t)v;
    else
        set16(cpu, n, (uint16_t)v);
}

/* ---- memory ------------------------------------------------------------------------------- */

/* The address of a plain operand. */
static ALWAYS_INLINE uint64_t plain_address(const SoftCpu *cpu, const SoftOp *op)
{
    const uint64_t *gpr = cpu->gpr;

    return (uint64_t)op->disp + gpr[op->base] + (gpr[op->index] << op->scale);
}

/* Whether the plain operand may be read right away: then *p is its host address. */
static ALWAYS_INLINE bool fast_read(SoftCpu *cpu, const SoftOp *op, unsigned size, void *p)
{
    uint64_t linear = plain_address(cpu, op);
    const SoftTlbEntry *e = soft_tlb_entry(cpu, linear);

    *(void **)p = (void *)(linear + e->addend);
    return LIKELY(op->plain) && LIKELY(SOFT_TLB_HIT(e->read_tag, linear, size));
}

static ALWAYS_INLINE bool fast_write(SoftCpu *cpu, const SoftOp *op, unsigned size, void *p)
{
    uint64_t linear = plain_address(cpu, op);
    const SoftTlbEntry *e = soft_tlb_entry(cpu, linear);

    *(void **)p = (void *)(linear + e->addend);
    return LIKELY(op->plain) && LIKELY(SOFT_TLB_HIT(e->write_tag, linear, size));
}

static ALWAYS_INLINE uint64_t slow_read(SoftCpu *cpu, const SoftOp *op, unsigned size)
{
    uint64_t linear;

    cpu->op = op;
    linear = soft_operand(cpu, op, size, SOFT_READ);
    return size == 1   ? soft_load8(cpu, linear)
           : size == 2 ? soft_load16(cpu, linear)
           : size == 4 ? soft_load32(cpu, linear)
                       : soft_load64(cpu, linear);
}

static ALWAYS_INLINE void slow_write(SoftCpu *cpu, const SoftOp *op, unsigned size, uint64_t value)
{
    uint64_t linear;

    cpu->op = op;
    linear = soft_operand(cpu, op, size, SOFT_WRITE);
    if (size == 1)
        soft_store8(cpu, linear, (uint8_t)value);
    else if (size == 2)
        soft_store16(cpu, linear, (uint16_t)value);
    else if (size == 4)
        soft_store32(cpu, linear, (uint32_t)value);
    else
        soft_store64(cpu, linear, value);
}

/* Opens a memory operand for reading and writing; the twin of fast_write. */
static ALWAYS_INLINE void *slow_rmw(SoftCpu *cpu, const SoftOp *op, SoftRmw *rmw, unsigned size,
                                    bool locked)
{
    uint64_t linear;

    cpu->op = op;
    linear = soft_operand(cpu, op, size, SOFT_WRITE);
    return soft_rmw_begin(cpu, rmw, linear, size, locked);
}

/* ---- on to the next instruction ------------------------------------------------------------- */

static ALWAYS_INLINE uint64_t next_rip(const SoftCpu *cpu, const SoftOp *op)
{
    uint64_t rip = op->rip + op->length;

    return cpu->mode & SOFT_MODE_CODE64 ? rip : (uint32_t)rip;
}

/*
 * After a store that went the slow way: it may have changed the instructions that follow in
 * this block (then SOFT_PENDING_LOOP is set), so the block ends if anything is pending.
 */
#define SOFT_NEXT_STORED(cpu, op)                                                                  \
    do {                                                                                           \
        if (UNLIKELY(atomic_load_explicit(&(cpu)->pending, memory_order_relaxed))) {               \
            (cpu)->rip = next_rip(cpu, op);                                                        \
            return;                                                                                \
        }                                                                                          \
        SOFT_NEXT(cpu, op);                                                                        \
    } while (0)

/* ---- flags --------------------------------------------------------------------------------- */

/* In inline assembly: AX takes the flags; and gives them back, OF included, destroying AX. */
#define FLAGS_SAVE "lahf\n\tseto %%al\n\t"
#define FLAGS_RESTORE "addb $0x7f, %%al\n\tsahf\n\t"

static ALWAYS_INLINE bool flag_cf(const SoftCpu *cpu)
{
    return cpu->arith & ARITH_CF;
}

/* Condition @cc (SDM vol. 2 B.1.4.7), a constant where this is inlined. */
static ALWAYS_INLINE bool condition(const SoftCpu *cpu, unsigned cc)
{
    uint32_t a = cpu->arith;
    bool r = false;

    switch (cc >> 1) {
    case 0:
        r = a & ARITH_OF;
        break;
    case 1:
        r = a & ARITH_CF;
        break;
    case 2:
        r = a & ARITH_ZF;
        break;
    case 3:
        r = a & (ARITH_CF | ARITH_ZF);
        break;
    case 4:
        r = a & ARITH_SF;
        break;
    case 5:
        r = a & ARITH_PF;
        break;
    case 6:
        r = (a >> 15 ^ a) & 1;
        break;
    case 7:
        r = ((a >> 15 ^ a) & 1) | (a & ARITH_ZF);
        break;
    }
    return r ^ (cc & 1);
}

/* The same for a condition known at run time only. */
bool soft_condition(const SoftCpu *cpu, unsigned cc);

/* ---- control flow (block.c) ------------------------------------------------------------------ */

/*
 * Goes to op->imm, a constant target: straight into the linked block if the link still holds. @op
 * is part of a block, so writing the link into it is block.c's right.
 */
void soft_branch_slow(SoftCpu *cpu, const SoftOp *op);
/* Goes to cpu->rip through the jump cache. */
void soft_jump_slow(SoftCpu *cpu);

#define SOFT_JUMP_BITS 12

typedef struct SoftJump {
    uint64_t rip;
    uint32_t mode, epoch;
    const SoftOp *first;
    uint64_t spare;
} SoftJump;

/* block.c's own state starts with the jump cache, which handlers look into. */
typedef struct SoftJumpCache {
    SoftJump jump[1 << SOFT_JUMP_BITS];
} SoftJumpCache;

static ALWAYS_INLINE unsigned soft_jump_hash(uint64_t rip)
{
    return (unsigned)(rip ^ rip >> 12) & ((1 << SOFT_JUMP_BITS) - 1);
}

/* Tail calls need optimisation; without them each branch would deepen the host's stack. */
#if defined(__OPTIMIZE__) && !defined(__SANITIZE_ADDRESS__)
#define SOFT_CHAIN 1
#else
#define SOFT_CHAIN 0
#endif

#define SOFT_BRANCH(cpu, op)                                                                       \
    do {                                                                                           \
        if (SOFT_CHAIN && LIKELY((op)->link_epoch == (cpu)->fetch_epoch) &&                        \
            LIKELY(!atomic_load_explicit(&(cpu)->pending, memory_order_relaxed))) {                \
            const SoftOp *first_ = (op)->aux;                                                      \
            return first_->handler((cpu), first_);                                                 \
        }                                                                                          \
        return soft_branch_slow((cpu), (op));                                                      \
    } while (0)

#define SOFT_JUMP(cpu, target)                                                                     \
    do {                                                                                           \
        uint64_t rip_ = (target);                                                                  \
        const SoftJump *j_ =                                                                       \
            &((const SoftJumpCache *)(cpu)->blocks)->jump[soft_jump_hash(rip_)];                   \
        (cpu)->rip = rip_;                                                                         \
        if (SOFT_CHAIN && LIKELY(j_->rip == rip_) && LIKELY(j_->mode == (cpu)->mode) &&            \
            LIKELY(j_->epoch == (cpu)->fetch_epoch) &&                                             \
            LIKELY(!atomic_load_explicit(&(cpu)->pending, memory_order_relaxed))) {                \
            const SoftOp *first_ = j_->first;                                                      \
            return first_->handler((cpu), first_);                                                 \
        }                                                                                          \
        return soft_jump_slow(cpu);                                                                \
    } while (0)

static ALWAYS_INLINE bool canonical(uint64_t linear)
{
    return (uint64_t)((int64_t)(linear << 16) >> 16) == linear;
}

/* ---- tables --------------------------------------------------------------------------------- */

#define SET_REG(name) .reg = { name##_8, name##_16, name##_32, name##_64 }
#define SET_MEM(name) .mem = { name##_8, name##_16, name##_32, name##_64 }
#define SET_LOCK(name) .lock = { name##_8, name##_16, name##_32, name##_64 }
/* Without a byte form. */
#define SET_REGV(name) .reg = { NULL, name##_16, name##_32, name##_64 }
#define SET_MEMV(name) .mem = { NULL, name##_16, name##_32, name##_64 }
#define SET_LOCKV(name) .lock = { NULL, name##_16, name##_32, name##_64 }

/* A row's leading fields, in the order of most rows. */
#define ROW(name_, map_, prefix_, opcode_, digit_, size_, imm_, flags_)                            \
    .mnemonic = name_, .map = map_, .prefix = prefix_, .opcode = opcode_, .digit = digit_,         \
    .size = size_, .imm = imm_, .modrm = -1, .flags = flags_

extern const SoftOpcodeGroup soft_alu_opcodes, soft_shift_opcodes, soft_multiply_opcodes,
    soft_bit_opcodes, soft_move_opcodes, soft_push_opcodes, soft_string_opcodes,
    soft_branch_opcodes, soft_misc_opcodes, soft_exchange_opcodes, soft_bmi_opcodes,
    soft_system_opcodes;
