/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * String instructions. With a repeat prefix they work page by page where nothing is in the
 * way, and between such pieces they let interrupts in: rip stays at the instruction, and
 * RSI, RDI and RCX say how far it came (SDM vol. 2, REP).
 */
#include "vcpu/soft/integer.h"

/* What is pending before the next piece; single-stepping stops after each repetition. */
static bool must_yield(const SoftCpu *cpu)
{
    return atomic_load_explicit(&cpu->pending, memory_order_relaxed) ||
           (cpu->mode & SOFT_MODE_SINGLE);
}

static uint64_t masked(const SoftOp *op, uint64_t v)
{
    return op->asize == 8 ? v : op->asize == 4 ? (uint32_t)v : (uint16_t)v;
}

static uint64_t load_sized(SoftCpu *cpu, uint64_t linear, unsigned size)
{
    switch (size) {
    case 1:
        return soft_load8(cpu, linear);
    case 2:
        return soft_load16(cpu, linear);
    case 4:
        return soft_load32(cpu, linear);
    default:
        return soft_load64(cpu, linear);
    }
}

static void store_sized(SoftCpu *cpu, uint64_t linear, unsigned size, uint64_t v)
{
    switch (size) {
    case 1:
        soft_store8(cpu, linear, (uint8_t)v);
        break;
    case 2:
        soft_store16(cpu, linear, (uint16_t)v);
        break;
    case 4:
        soft_store32(cpu, linear, (uint32_t)v);
        break;
    default:
        soft_store64(cpu, linear, v);
    }
}

static uint64_t source(SoftCpu *cpu, const SoftOp *op)
{
    return soft_linear(cpu, op->seg, masked(op, cpu->gpr[GPR_RSI]), op->size, SOFT_READ);
}

static uint64_t destination(SoftCpu *cpu, const SoftOp *op, unsigned access)
{
    return soft_linear(cpu, SEG_ES, masked(op, cpu->gpr[GPR_RDI]), op->size, access);
}

static void advance(SoftCpu *cpu, const SoftOp *op, unsigned reg, uint64_t n)
{
    uint64_t step = n * op->size;

    set_sized(cpu, reg, op->asize, cpu->gpr[reg] + (cpu->rflags & FLAG_DF ? -step : step));
}

static uint64_t count_get(const SoftCpu *cpu, const SoftOp *op)
{
    return masked(op, cpu->gpr[GPR_RCX]);
}

static void count_take(SoftCpu *cpu, const SoftOp *op, uint64_t n)
{
    set_sized(cpu, GPR_RCX, op->asize, cpu->gpr[GPR_RCX] - n);
}

/* How many elements, at most @n, forward from @linear are in its page; 0 if a piece is not possible. */
static uint64_t piece(const SoftCpu *cpu, const SoftOp *op, uint64_t linear, uint64_t offset,
                      uint64_t n)
{
    uint64_t room = (4096 - (linear & 4095)) / op->size, wrap;

    if ((cpu->rflags & FLAG_DF) || !(cpu->mode & (SOFT_MODE_CODE64 | SOFT_MODE_FLAT)) ||
        (cpu->mode & SOFT_MODE_SINGLE) || cpu->vcpu.vm->config.tuning.block_ops == 1)
        return 0;
    if (op->asize != 8) { /* the offset must not wrap within the piece */
        wrap = ((op->asize == 4 ? 0x100000000 : 0x10000) - masked(op, offset)) / op->size;
        room = room < wrap ? room : wrap;
    }
    return room < n ? room : n;
}

static const uint8_t *readable(SoftCpu *cpu, uint64_t linear, uint64_t bytes)
{
    const SoftTlbEntry *e = soft_tlb_entry(cpu, linear);

    return bytes && SOFT_TLB_HIT(e->read_tag, linear, bytes) ? (void *)(linear + e->addend) : NULL;
}

static uint8_t *writable(SoftCpu *cpu, uint64_t linear, uint64_t bytes)
{
    const SoftTlbEntry *e = soft_tlb_entry(cpu, linear);

    return bytes && SOFT_TLB_HIT(e->write_tag, linear, bytes) ? (void *)(linear + e->addend) : NULL;
}

/* Element by element as the guest would, so that overlapping operands come out the same. */
static void host_movs(uint8_t *to, const uint8_t *from, uint64_t n, unsigned size)
{
    if (size == 1)
        __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
    else if (size == 2)
        __asm__ volatile("rep movsw" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
    else if (size == 4)
        __asm__ volatile("rep movsl" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
    else
        __asm__ volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
}

static void host_stos(uint8_t *to, uint64_t v, uint64_t n, unsigned size)
{
    if (size == 1)
        __asm__ volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(v) : "memory");
    else if (size == 2)
        __asm__ volatile("rep stosw" : "+D"(to), "+c"(n) : "a"(v) : "memory");
    else if (size == 4)
        __asm__ volatile("rep stosl" : "+D"(to), "+c"(n) : "a"(v) : "memory");
    else
        __asm__ volatile("rep stosq" : "+D"(to), "+c"(n) : "a"(v) : "memory");
}

#define REPEATED (SOFT_OP_REP | SOFT_OP_REPNE)

static uint64_t move_some(SoftCpu *cpu, const SoftOp *op, uint64_t n)
{
    uint64_t from = source(cpu, op), to = destination(cpu, op, SOFT_WRITE);
    const uint8_t *f;
    uint8_t *t;

    if (n > 1) {
        n = piece(cpu, op, from, cpu->gpr[GPR_RSI], n);
        n = piece(cpu, op, to, cpu->gpr[GPR_RDI], n);
        f = readable(cpu, from, n * op->size);
        t = writable(cpu, to, n * op->size);
        if (f && t) {
            host_movs(t, f, n, op->size);
            return n;
        }
    }
    store_sized(cpu, to, op->size, load_sized(cpu, from, op->size));
    return 1;
}

static void movs(SoftCpu *cpu, const SoftOp *op)
{
    bool repeat = op->flags & REPEATED;
    uint64_t count = repeat ? count_get(cpu, op) : 1, n;

    cpu->op = op;
    while (count) {
        n = move_some(cpu, op, count);
        advance(cpu, op, GPR_RSI, n);
        advance(cpu, op, GPR_RDI, n);
        count -= n;
        if (!repeat)
            break;
        count_take(cpu, op, n);
        if (count && UNLIKELY(must_yield(cpu))) {
            cpu->rip = op->rip;
            return;
        }
    }
    SOFT_NEXT_STORED(cpu, op);
}

static uint64_t store_some(SoftCpu *cpu, const SoftOp *op, uint64_t n)
{
    uint64_t to = destination(cpu, op, SOFT_WRITE);
    uint8_t *t;

    if (n > 1) {
        n = piece(cpu, op, to, cpu->gpr[GPR_RDI], n);
        t = writable(cpu, to, n * op->size);
        if (t) {
            host_stos(t, cpu->gpr[GPR_RAX], n, op->size);
            return n;
        }
    }
    store_sized(cpu, to, op->size, cpu->gpr[GPR_RAX]);
    return 1;
}

static void stos(SoftCpu *cpu, const SoftOp *op)
{
    bool repeat = op->flags & REPEATED;
    uint64_t count = repeat ? count_get(cpu, op) : 1, n;

    cpu->op = op;
    while (count) {
        n = store_some(cpu, op, count);
        advance(cpu, op, GPR_RDI, n);
        count -= n;
        if (!repeat)
            break;
        count_take(cpu, op, n);
        if (count && UNLIKELY(must_yield(cpu))) {
            cpu->rip = op->rip;
            return;
        }
    }
    SOFT_NEXT_STORED(cpu, op);
}

static void lods(SoftCpu *cpu, const SoftOp *op)
{
    bool repeat = op->flags & REPEATED;
    uint64_t v;

    cpu->op = op;
    while (!repeat || count_get(cpu, op)) {
        v = load_sized(cpu, source(cpu, op), op->size);
        if (op->size == 1)
            set8(cpu, 0, (uint8_t)v);
        else
            set_sized(cpu, GPR_RAX, op->size, v);
        advance(cpu, op, GPR_RSI, 1);
        if (!repeat)
            break;
        count_take(cpu, op, 1);
        if (count_get(cpu, op) && UNLIKELY(must_yield(cpu))) {
            cpu->rip = op->rip;
            return;
        }
    }
    SOFT_NEXT(cpu, op);
}

/* The flags of @a - @b. */
static void compare(SoftCpu *cpu, uint64_t a, uint64_t b, unsigned size)
{
    uint32_t f = 0;

    switch (size) {
    case 1:
        __asm__("cmpb %b2, %b1\n\t" FLAGS_SAVE : "+a"(f) : "r"(a), "r"(b) : "cc");
        break;
    case 2:
        __asm__("cmpw %w2, %w1\n\t" FLAGS_SAVE : "+a"(f) : "r"(a), "r"(b) : "cc");
        break;
    case 4:
        __asm__("cmpl %k2, %k1\n\t" FLAGS_SAVE : "+a"(f) : "r"(a), "r"(b) : "cc");
        break;
    default:
        __asm__("cmpq %2, %1\n\t" FLAGS_SAVE : "+a"(f) : "r"(a), "r"(b) : "cc");
    }
    cpu->arith = f;
}

static uint64_t element(const uint8_t *p, unsigned size)
{
    uint64_t v = 0;

    switch (size) {
    case 1:
        return *p;
    case 2:
        memcpy(&v, p, 2);
        return v;
    case 4:
        memcpy(&v, p, 4);
        return v;
    default:
        memcpy(&v, p, 8);
        return v;
    }
}

/* Compares up to @n elements; returns how many, the last two in *a and *b. REPE goes on while equal. */
static uint64_t compare_some(SoftCpu *cpu, const SoftOp *op, uint64_t n, bool equal, uint64_t *a,
                             uint64_t *b)
{
    uint64_t from = source(cpu, op), to = destination(cpu, op, SOFT_READ), i;
    const uint8_t *f, *t;

    if (n > 1) {
        n = piece(cpu, op, from, cpu->gpr[GPR_RSI], n);
        n = piece(cpu, op, to, cpu->gpr[GPR_RDI], n);
        f = readable(cpu, from, n * op->size);
        t = readable(cpu, to, n * op->size);
        if (f && t) {
            for (i = 0; i < n; i++) {
                *a = element(f + i * op->size, op->size);
                *b = element(t + i * op->size, op->size);
                if ((*a == *b) != equal)
                    return i + 1;
            }
            return n;
        }
    }
    *a = load_sized(cpu, from, op->size);
    *b = load_sized(cpu, to, op->size);
    return 1;
}

static void cmps(SoftCpu *cpu, const SoftOp *op)
{
    bool repeat = op->flags & REPEATED, equal = op->flags & SOFT_OP_REP;
    uint64_t count = repeat ? count_get(cpu, op) : 1, a = 0, b = 0, n;

    cpu->op = op;
    while (count) {
        n = compare_some(cpu, op, count, equal, &a, &b);
        advance(cpu, op, GPR_RSI, n);
        advance(cpu, op, GPR_RDI, n);
        compare(cpu, a, b, op->size);
        count -= n;
        if (!repeat)
            break;
        count_take(cpu, op, n);
        if ((a == b) != equal)
            break;
        if (count && UNLIKELY(must_yield(cpu))) {
            cpu->rip = op->rip;
            return;
        }
    }
    SOFT_NEXT(cpu, op);
}

static uint64_t scan_some(SoftCpu *cpu, const SoftOp *op, uint64_t n, bool equal, uint64_t a,
                          uint64_t *b)
{
    uint64_t to = destination(cpu, op, SOFT_READ), i;
    const uint8_t *t;

    if (n > 1) {
        n = piece(cpu, op, to, cpu->gpr[GPR_RDI], n);
        t = readable(cpu, to, n * op->size);
        if (t) {
            for (i = 0; i < n; i++) {
                *b = element(t + i * op->size, op->size);
                if ((a == *b) != equal)
                    return i + 1;
            }
            return n;
        }
    }
    *b = load_sized(cpu, to, op->size);
    return 1;
}

static void scas(SoftCpu *cpu, const SoftOp *op)
{
    bool repeat = op->flags & REPEATED, equal = op->flags & SOFT_OP_REP;
    uint64_t count = repeat ? count_get(cpu, op) : 1, n, b = 0;
    uint64_t a = op->size == 1 ? get8(cpu, 0) : get_sized(cpu, GPR_RAX, op->size);

    cpu->op = op;
    while (count) {
        n = scan_some(cpu, op, count, equal, a, &b);
        advance(cpu, op, GPR_RDI, n);
        compare(cpu, a, b, op->size);
        count -= n;
        if (!repeat)
            break;
        count_take(cpu, op, n);
        if ((a == b) != equal)
            break;
        if (count && UNLIKELY(must_yield(cpu))) {
            cpu->rip = op->rip;
            return;
        }
    }
    SOFT_NEXT(cpu, op);
}

#define STRING_ROWS(name, opcode)                                                                  \
    { ROW(#name, 0, PREFIX_ANY, opcode, -1, SIZE_B, IMM_NONE, OPC_STRING), .handler = name },      \
    { ROW(#name, 0, PREFIX_ANY, opcode + 1, -1, SIZE_V, IMM_NONE, OPC_STRING), .handler = name }

static const SoftOpcode rows[] = {
    STRING_ROWS(movs, 0xa4), STRING_ROWS(cmps, 0xa6), STRING_ROWS(stos, 0xaa),
    STRING_ROWS(lods, 0xac), STRING_ROWS(scas, 0xae),
};

const SoftOpcodeGroup soft_string_opcodes = { "string", rows, sizeof(rows) / sizeof(rows[0]) };
