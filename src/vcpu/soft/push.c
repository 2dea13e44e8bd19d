/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* PUSH, POP, PUSHA, POPA, ENTER, LEAVE. */
#include "vcpu/soft/integer.h"

/* ---- 64-bit mode, 8-byte operands: the common case ---- */

static COLD void push64_slow(SoftCpu *cpu, const SoftOp *op, uint64_t value)
{
    cpu->op = op;
    soft_push(cpu, value, 8);
    SOFT_NEXT_STORED(cpu, op);
}

#define PUSH64(name, value)                                                                        \
    static void name(SoftCpu *cpu, const SoftOp *op)                                               \
    {                                                                                              \
        uint64_t linear = cpu->gpr[GPR_RSP] - 8, v = (value);                                      \
        const SoftTlbEntry *e = soft_tlb_entry(cpu, linear);                                       \
        if (UNLIKELY(!SOFT_TLB_HIT(e->write_tag, linear, 8)))                                      \
            return push64_slow(cpu, op, v);                                                        \
        memcpy((void *)(linear + e->addend), &v, 8);                                               \
        cpu->gpr[GPR_RSP] = linear;                                                                \
        SOFT_NEXT(cpu, op);                                                                        \
    }

PUSH64(push64_reg, cpu->gpr[op->rm])
PUSH64(push64_imm, op->imm)

static void push64_mem(SoftCpu *cpu, const SoftOp *op)
{
    return push64_slow(cpu, op, slow_read(cpu, op, 8));
}

static COLD void pop64_reg_slow(SoftCpu *cpu, const SoftOp *op)
{
    uint64_t v;

    cpu->op = op;
    v = soft_peek(cpu, 0, 8);
    cpu->gpr[GPR_RSP] += 8;
    cpu->gpr[op->rm] = v; /* POP RSP: the value wins */
    SOFT_NEXT(cpu, op);
}

static void pop64_reg(SoftCpu *cpu, const SoftOp *op)
{
    uint64_t linear = cpu->gpr[GPR_RSP], v;
    const SoftTlbEntry *e = soft_tlb_entry(cpu, linear);

    if (UNLIKELY(!SOFT_TLB_HIT(e->read_tag, linear, 8)))
        return pop64_reg_slow(cpu, op);
    memcpy(&v, (const void *)(linear + e->addend), 8);
    cpu->gpr[GPR_RSP] = linear + 8;
    cpu->gpr[op->rm] = v;
    SOFT_NEXT(cpu, op);
}

/* ---- any mode and size ---- */

static void push_reg(SoftCpu *cpu, const SoftOp *op)
{
    cpu->op = op;
    soft_push(cpu, get_sized(cpu, op->rm, op->size), op->size);
    SOFT_NEXT_STORED(cpu, op);
}

static void push_imm(SoftCpu *cpu, const SoftOp *op)
{
    cpu->op = op;
    soft_push(cpu, op->imm, op->size);
    SOFT_NEXT_STORED(cpu, op);
}

static void push_mem(SoftCpu *cpu, const SoftOp *op)
{
    soft_push(cpu, slow_read(cpu, op, op->size), op->size);
    SOFT_NEXT_STORED(cpu, op);
}

static void pop_reg(SoftCpu *cpu, const SoftOp *op)
{
    uint64_t v;

    cpu->op = op;
    v = soft_peek(cpu, 0, op->size);
    soft_stack_add(cpu, op->size);
    set_sized(cpu, op->rm, op->size, v);
    SOFT_NEXT(cpu, op);
}

/* The address of POP's memory operand is computed with RSP already moved (SDM vol. 2, POP). */
static void pop_mem(SoftCpu *cpu, const SoftOp *op)
{
    uint64_t v, rsp = cpu->gpr[GPR_RSP], moved, offset, linear;

    cpu->op = op;
    v = soft_peek(cpu, 0, op->size);
    soft_stack_add(cpu, op->size);
    moved = cpu->gpr[GPR_RSP];
    offset = soft_offset(cpu, op);
    cpu->gpr[GPR_RSP] = rsp; /* in case of a fault */
    linear = soft_linear(cpu, op->seg, offset, op->size, SOFT_WRITE);
    if (op->size == 8)
        soft_store64(cpu, linear, v);
    else if (op->size == 4)
        soft_store32(cpu, linear, (uint32_t)v);
    else
        soft_store16(cpu, linear, (uint16_t)v);
    cpu->gpr[GPR_RSP] = moved;
    SOFT_NEXT_STORED(cpu, op);
}

/* What wraps when the stack pointer moves. */
static uint64_t stack_mask(const SoftCpu *cpu)
{
    if (cpu->mode & SOFT_MODE_CODE64)
        return ~(uint64_t)0;
    return cpu->mode & SOFT_MODE_STACK32 ? 0xffffffff : 0xffff;
}

static uint64_t stack_linear(SoftCpu *cpu, uint64_t offset, unsigned size, unsigned access)
{
    offset &= stack_mask(cpu);
    if ((cpu->mode & SOFT_MODE_CODE64) && !(canonical(offset) && canonical(offset + size - 1)))
        soft_raise_error(cpu, EXC_SS, 0); /* soft_linear leaves it to the TLB, which may say #GP */
    return soft_linear(cpu, SEG_SS, offset, size, access);
}

static void pusha(SoftCpu *cpu, const SoftOp *op)
{
    uint64_t rsp = cpu->gpr[GPR_RSP], value;

    cpu->op = op;
    for (unsigned i = 1; i <= 8; i++) /* every fault before the first store */
        soft_probe_store(cpu, stack_linear(cpu, rsp - i * op->size, op->size, SOFT_WRITE), op->size);
    for (unsigned i = 0; i < 8; i++) {
        value = i == GPR_RSP ? rsp : cpu->gpr[i];
        soft_push(cpu, value, op->size);
    }
    SOFT_NEXT_STORED(cpu, op);
}

static void popa(SoftCpu *cpu, const SoftOp *op)
{
    uint64_t v[8];

    cpu->op = op;
    for (unsigned i = 0; i < 8; i++)
        v[i] = soft_peek(cpu, i * op->size, op->size);
    soft_stack_add(cpu, 8 * op->size);
    for (unsigned i = 0; i < 8; i++) {
        if (7 - i != GPR_RSP)
            set_sized(cpu, 7 - i, op->size, v[i]);
    }
    SOFT_NEXT(cpu, op);
}

static uint64_t load_sized(SoftCpu *cpu, uint64_t linear, unsigned size)
{
    return size == 8   ? soft_load64(cpu, linear)
           : size == 4 ? soft_load32(cpu, linear)
                       : soft_load16(cpu, linear);
}

static void store_sized(SoftCpu *cpu, uint64_t linear, unsigned size, uint64_t value)
{
    if (size == 8)
        soft_store64(cpu, linear, value);
    else if (size == 4)
        soft_store32(cpu, linear, (uint32_t)value);
    else
        soft_store16(cpu, linear, (uint16_t)value);
}

/* SDM vol. 2, ENTER. A fault may leave part of the frame in memory, but moves no register. */
static void enter(SoftCpu *cpu, const SoftOp *op)
{
    uint64_t mask = stack_mask(cpu), rsp = cpu->gpr[GPR_RSP], rbp = cpu->gpr[GPR_RBP], top = rsp;
    uint64_t locals = op->imm & 0xffff, frame;
    unsigned level = (op->imm >> 16) & 31, size = op->size;

    cpu->op = op;
    frame = rsp -= size;
    store_sized(cpu, stack_linear(cpu, rsp, size, SOFT_WRITE), size, rbp);
    for (unsigned i = 1; i < level; i++) {
        uint64_t v = load_sized(cpu, stack_linear(cpu, rbp - i * size, size, SOFT_READ), size);
        rsp -= size;
        store_sized(cpu, stack_linear(cpu, rsp, size, SOFT_WRITE), size, v);
    }
    if (level > 0) {
        rsp -= size;
        store_sized(cpu, stack_linear(cpu, rsp, size, SOFT_WRITE), size, frame);
    }
    /* The new top of the stack must be writable, too (the pseudo-code's last check). */
    rsp -= locals;
    soft_probe_store(cpu, stack_linear(cpu, rsp, size, SOFT_WRITE), size);
    rsp &= mask;
    cpu->gpr[GPR_RSP] = mask == 0xffff ? (top & ~mask) | rsp : rsp;
    set_sized(cpu, GPR_RBP, size, frame);
    SOFT_NEXT_STORED(cpu, op);
}

static void leave(SoftCpu *cpu, const SoftOp *op)
{
    uint64_t mask = stack_mask(cpu), rbp = cpu->gpr[GPR_RBP] & mask, linear, v;

    cpu->op = op;
    linear = stack_linear(cpu, rbp, op->size, SOFT_READ);
    v = load_sized(cpu, linear, op->size);
    rbp = (rbp + op->size) & mask;
    cpu->gpr[GPR_RSP] = mask == 0xffff ? (cpu->gpr[GPR_RSP] & ~mask) | rbp : rbp;
    set_sized(cpu, GPR_RBP, op->size, v);
    SOFT_NEXT(cpu, op);
}

static const SoftHandlerSet push_set = { .reg = { NULL, push_reg, push_reg, push64_reg },
                                         .mem = { NULL, push_mem, push_mem, push64_mem } };
static const SoftHandlerSet push_imm_set = { .reg = { NULL, push_imm, push_imm, push64_imm } };
static const SoftHandlerSet pop_set = { .reg = { NULL, pop_reg, pop_reg, pop64_reg },
                                        .mem = { NULL, pop_mem, pop_mem, pop_mem } };

#define S OPC_STACK

static const SoftOpcode rows[] = {
    { ROW("push", 0, PREFIX_ANY, 0x50, -1, SIZE_64, IMM_NONE, S | OPC_OREG), .set = &push_set },
    { ROW("pop", 0, PREFIX_ANY, 0x58, -1, SIZE_64, IMM_NONE, S | OPC_OREG), .set = &pop_set },
    { ROW("push", 0, PREFIX_ANY, 0x68, -1, SIZE_64, IMM_Z, S), .set = &push_imm_set },
    { ROW("push", 0, PREFIX_ANY, 0x6a, -1, SIZE_64, IMM_B, S), .set = &push_imm_set },
    { ROW("push", 0, PREFIX_ANY, 0xff, 6, SIZE_64, IMM_NONE, S | OPC_MODRM), .set = &push_set },
    { ROW("pop", 0, PREFIX_ANY, 0x8f, 0, SIZE_64, IMM_NONE, S | OPC_MODRM), .set = &pop_set },
    { ROW("pusha", 0, PREFIX_ANY, 0x60, -1, SIZE_V, IMM_NONE, S | OPC_NO64), .handler = pusha },
    { ROW("popa", 0, PREFIX_ANY, 0x61, -1, SIZE_V, IMM_NONE, S | OPC_NO64), .handler = popa },
    { ROW("enter", 0, PREFIX_ANY, 0xc8, -1, SIZE_64, IMM_ENTER, S), .handler = enter },
    { ROW("leave", 0, PREFIX_ANY, 0xc9, -1, SIZE_64, IMM_NONE, S), .handler = leave },
};

const SoftOpcodeGroup soft_push_opcodes = { "push", rows, sizeof(rows) / sizeof(rows[0]) };
