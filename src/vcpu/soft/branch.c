/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Near branches. A direct branch whose target needs no check has a handler in the set's reg
 * slots, one that does (a code segment with a limit, a target that is not canonical) in the
 * mem slots; the decoder chooses. A conditional branch does not end its block.
 */
#include "vcpu/soft/integer.h"
#include "vcpu/soft/vm.h"

/* #GP(0) where the branch would leave the code segment; the branch is the faulting instruction. */
static void check_target(SoftCpu *cpu, const SoftOp *op, uint64_t target)
{
    cpu->op = op;
    if (cpu->mode & SOFT_MODE_CODE64) {
        if (!canonical(target))
            soft_raise_error(cpu, EXC_GP, 0);
    } else if (target > cpu->seg[SEG_CS].limit) {
        soft_raise_error(cpu, EXC_GP, 0);
    }
}

/* Faults of the stack come before those of the target. Not inlined: a local forbids tail calls. */
static COLD void probe_push(SoftCpu *cpu, const SoftOp *op)
{
    SoftStack s = soft_stack_current(cpu);

    cpu->op = op;
    soft_stack_probe(cpu, &s, op->size);
}

/* ---- direct ---- */

static void jmp(SoftCpu *cpu, const SoftOp *op)
{
    SOFT_BRANCH(cpu, op);
}

static void jmp_checked(SoftCpu *cpu, const SoftOp *op)
{
    check_target(cpu, op, op->imm);
    SOFT_BRANCH(cpu, op);
}

#define JCC(cc)                                                                                    \
    static void jcc_##cc(SoftCpu *cpu, const SoftOp *op)                                           \
    {                                                                                              \
        if (condition(cpu, cc))                                                                    \
            SOFT_BRANCH(cpu, op);                                                                  \
        SOFT_NEXT(cpu, op);                                                                        \
    }                                                                                              \
    static void jcc_checked_##cc(SoftCpu *cpu, const SoftOp *op)                                   \
    {                                                                                              \
        if (condition(cpu, cc))                                                                    \
            return jmp_checked(cpu, op);                                                           \
        SOFT_NEXT(cpu, op);                                                                        \
    }

#define BY_CONDITION(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
BY_CONDITION(JCC)

static uint64_t counter(const SoftCpu *cpu, const SoftOp *op)
{
    uint64_t c = cpu->gpr[GPR_RCX];

    return op->asize == 8 ? c : op->asize == 4 ? (uint32_t)c : (uint16_t)c;
}

static void jcxz(SoftCpu *cpu, const SoftOp *op)
{
    if (counter(cpu, op) == 0)
        SOFT_BRANCH(cpu, op);
    SOFT_NEXT(cpu, op);
}

static void jcxz_checked(SoftCpu *cpu, const SoftOp *op)
{
    if (counter(cpu, op) == 0)
        return jmp_checked(cpu, op);
    SOFT_NEXT(cpu, op);
}

/* sub: 0 LOOPNE, 1 LOOPE, 2 LOOP. */
static bool loop_taken(const SoftCpu *cpu, const SoftOp *op)
{
    bool zero = cpu->arith & ARITH_ZF;

    return counter(cpu, op) != 1 && (op->sub == 2 || zero == (op->sub == 1));
}

static void loop(SoftCpu *cpu, const SoftOp *op)
{
    bool taken = loop_taken(cpu, op);

    if (taken)
        check_target(cpu, op, op->imm);
    set_sized(cpu, GPR_RCX, op->asize, cpu->gpr[GPR_RCX] - 1);
    if (taken)
        SOFT_BRANCH(cpu, op);
    SOFT_NEXT(cpu, op);
}

static COLD void call64_slow(SoftCpu *cpu, const SoftOp *op)
{
    cpu->op = op;
    soft_push(cpu, op->rip + op->length, 8);
    SOFT_BRANCH(cpu, op);
}

static void call64(SoftCpu *cpu, const SoftOp *op)
{
    uint64_t linear = cpu->gpr[GPR_RSP] - 8, v = op->rip + op->length;
    const SoftTlbEntry *e = soft_tlb_entry(cpu, linear);

    if (UNLIKELY(!SOFT_TLB_HIT(e->write_tag, linear, 8)))
        return call64_slow(cpu, op);
    memcpy((void *)(linear + e->addend), &v, 8);
    cpu->gpr[GPR_RSP] = linear;
    SOFT_BRANCH(cpu, op);
}

/* Any size and mode. */
static void call_checked(SoftCpu *cpu, const SoftOp *op)
{
    probe_push(cpu, op);
    check_target(cpu, op, op->imm);
    soft_push(cpu, next_rip(cpu, op), op->size);
    SOFT_BRANCH(cpu, op);
}

/* ---- indirect ---- */

static void jmp64_reg(SoftCpu *cpu, const SoftOp *op)
{
    uint64_t target = cpu->gpr[op->rm];

    if (UNLIKELY(!canonical(target)))
        check_target(cpu, op, target);
    SOFT_JUMP(cpu, target);
}

static COLD void jmp_slow(SoftCpu *cpu, const SoftOp *op)
{
    uint64_t target = slow_read(cpu, op, op->size);

    check_target(cpu, op, target);
    SOFT_JUMP(cpu, target);
}

static void jmp64_mem(SoftCpu *cpu, const SoftOp *op)
{
    const uint64_t *p;

    if (!fast_read(cpu, op, 8, &p) || UNLIKELY(!canonical(*p)))
        return jmp_slow(cpu, op);
    SOFT_JUMP(cpu, *p);
}

static void jmp_reg(SoftCpu *cpu, const SoftOp *op)
{
    uint64_t target = get_sized(cpu, op->rm, op->size);

    check_target(cpu, op, target);
    SOFT_JUMP(cpu, target);
}

static COLD void call_to(SoftCpu *cpu, const SoftOp *op, uint64_t target)
{
    probe_push(cpu, op);
    check_target(cpu, op, target);
    soft_push(cpu, next_rip(cpu, op), op->size);
    SOFT_JUMP(cpu, target);
}

static ALWAYS_INLINE void call64_to(SoftCpu *cpu, const SoftOp *op, uint64_t target)
{
    uint64_t linear = cpu->gpr[GPR_RSP] - 8, v = op->rip + op->length;
    const SoftTlbEntry *e = soft_tlb_entry(cpu, linear);

    if (UNLIKELY(!canonical(target)) || UNLIKELY(!SOFT_TLB_HIT(e->write_tag, linear, 8)))
        return call_to(cpu, op, target);
    memcpy((void *)(linear + e->addend), &v, 8);
    cpu->gpr[GPR_RSP] = linear;
    SOFT_JUMP(cpu, target);
}

static void call64_reg(SoftCpu *cpu, const SoftOp *op)
{
    return call64_to(cpu, op, cpu->gpr[op->rm]);
}

static void call_mem(SoftCpu *cpu, const SoftOp *op)
{
    return call_to(cpu, op, slow_read(cpu, op, op->size));
}

static void call64_mem(SoftCpu *cpu, const SoftOp *op)
{
    const uint64_t *p;

    if (!fast_read(cpu, op, 8, &p))
        return call_mem(cpu, op);
    return call64_to(cpu, op, *p);
}

static void call_reg(SoftCpu *cpu, const SoftOp *op)
{
    return call_to(cpu, op, get_sized(cpu, op->rm, op->size));
}

/* RET and RET imm16 in any mode: imm is 0 for the plain one. */
static COLD void ret_any(SoftCpu *cpu, const SoftOp *op)
{
    uint64_t target;

    cpu->op = op;
    target = soft_peek(cpu, 0, op->size);
    check_target(cpu, op, target);
    soft_stack_add(cpu, (int64_t)(op->size + op->imm));
    SOFT_JUMP(cpu, target);
}

static void ret64(SoftCpu *cpu, const SoftOp *op)
{
    uint64_t linear = cpu->gpr[GPR_RSP], target;
    const SoftTlbEntry *e = soft_tlb_entry(cpu, linear);

    if (UNLIKELY(!SOFT_TLB_HIT(e->read_tag, linear, 8)))
        return ret_any(cpu, op);
    memcpy(&target, (const void *)(linear + e->addend), 8);
    if (UNLIKELY(!canonical(target)))
        return ret_any(cpu, op);
    cpu->gpr[GPR_RSP] = linear + 8 + op->imm;
    SOFT_JUMP(cpu, target);
}

#define ANY(h) { h, h, h, h }
static const SoftHandlerSet jmp_set = { .reg = ANY(jmp), .mem = ANY(jmp_checked) };
#define JCC_SET(cc) [cc] = { .reg = ANY(jcc_##cc), .mem = ANY(jcc_checked_##cc) },
static const SoftHandlerSet jcc_set[16] = { BY_CONDITION(JCC_SET) };
static const SoftHandlerSet jcxz_set = { .reg = ANY(jcxz), .mem = ANY(jcxz_checked) };
static const SoftHandlerSet call_set = { .reg = { NULL, call_checked, call_checked, call64 },
                                         .mem = { NULL, call_checked, call_checked, call_checked } };
static const SoftHandlerSet jmp_indirect_set = { .reg = { NULL, jmp_reg, jmp_reg, jmp64_reg },
                                                 .mem = { NULL, jmp_slow, jmp_slow, jmp64_mem } };
static const SoftHandlerSet call_indirect_set = { .reg = { NULL, call_reg, call_reg, call64_reg },
                                                  .mem = { NULL, call_mem, call_mem, call64_mem } };
static const SoftHandlerSet ret_set = { .reg = { NULL, ret_any, ret_any, ret64 } };

#define B OPC_BRANCH
#define E (OPC_BRANCH | OPC_END)
#define S OPC_STACK

static const SoftOpcode rows[] = {
    { ROW("j", 0, PREFIX_ANY, 0x70, -1, SIZE_NEAR, IMM_JB, B | OPC_CC), .set = jcc_set },
    { ROW("j", 1, PREFIX_ANY, 0x80, -1, SIZE_NEAR, IMM_JZ, B | OPC_CC), .set = jcc_set },
    { ROW("loopne", 0, PREFIX_ANY, 0xe0, -1, SIZE_NEAR, IMM_JB, B), .sub = 0, .handler = loop },
    { ROW("loope", 0, PREFIX_ANY, 0xe1, -1, SIZE_NEAR, IMM_JB, B), .sub = 1, .handler = loop },
    { ROW("loop", 0, PREFIX_ANY, 0xe2, -1, SIZE_NEAR, IMM_JB, B), .sub = 2, .handler = loop },
    { ROW("jcxz", 0, PREFIX_ANY, 0xe3, -1, SIZE_NEAR, IMM_JB, B), .set = &jcxz_set },
    { ROW("call", 0, PREFIX_ANY, 0xe8, -1, SIZE_NEAR, IMM_JZ, E | S), .set = &call_set },
    { ROW("jmp", 0, PREFIX_ANY, 0xe9, -1, SIZE_NEAR, IMM_JZ, E), .set = &jmp_set },
    { ROW("jmp", 0, PREFIX_ANY, 0xeb, -1, SIZE_NEAR, IMM_JB, E), .set = &jmp_set },
    { ROW("call", 0, PREFIX_ANY, 0xff, 2, SIZE_NEAR, IMM_NONE, E | S | OPC_MODRM),
      .set = &call_indirect_set },
    { ROW("jmp", 0, PREFIX_ANY, 0xff, 4, SIZE_NEAR, IMM_NONE, E | OPC_MODRM),
      .set = &jmp_indirect_set },
    { ROW("ret", 0, PREFIX_ANY, 0xc2, -1, SIZE_NEAR, IMM_W, E | S), .set = &ret_set },
    { ROW("ret", 0, PREFIX_ANY, 0xc3, -1, SIZE_NEAR, IMM_NONE, E | S), .set = &ret_set },
};

const SoftOpcodeGroup soft_branch_opcodes = { "branch", rows, sizeof(rows) / sizeof(rows[0]) };
