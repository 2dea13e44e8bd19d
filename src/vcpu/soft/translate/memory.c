/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Memory operands: the inline look into the first-level TLB.
 *
 *     lea   operand,TEMP0
 *     rorx  $7,TEMP0,TEMP1         page number times the size of an entry ...
 *     and   $(SIZE-1)*32,TEMP1     ... within the table
 *     mov   TEMP0,TEMP2
 *     xor   gs:tag(TEMP1),TEMP2    offset in the page if it hits
 *     cmp   $4096-size,TEMP2       one compare: hit, and not into the next page
 *     ja    stub
 *     mov   gs:addend(TEMP1),TEMP1
 *     op    (TEMP0,TEMP1)
 *
 * Without an index TEMP0 need not be kept: the operand is disp(base,TEMP1). The entry of a constant
 * address is known: there is only its tag to compare.
 *
 * The stub has the TLB filled and starts again, or has the interpreter do the instruction.
 */
#include "vcpu/soft/translate/cache.h"


static bool fits32(int64_t v)
{
    return v == (int32_t)v;
}

void translate_address(Translation *t, const SoftOp *op, unsigned to, bool segment)
{
    Emit *e = &t->e;
    unsigned base = op->base == SOFT_REG_NONE ? HOST_NONE : op->base;
    unsigned index = op->index == SOFT_REG_NONE ? HOST_NONE : op->index;

    /* Guest R9-R11 have the numbers of the temporaries, but are not there. */
    bool load_base = base != HOST_NONE && !guest_register_is_host(base);
    bool load_index = index != HOST_NONE && !guest_register_is_host(index);
    if (load_index) {
        unsigned temp = load_base && index != base ? (to == TEMP1 ? TEMP0 : TEMP1) : to;
        emit_load(e, temp, GS_GPR(index));
        index = temp;
    }
    if (load_base) {
        if (op->index != op->base)
            emit_load(e, to, GS_GPR(base));
        base = to;
    }
    if (!fits32(op->disp)) { /* only without a base: RIP-relative, or an absolute address */
        emit_constant(e, to, (uint64_t)op->disp);
    } else if (base == HOST_NONE && index == HOST_NONE) {
        emit_constant(e, to, op->asize == 4 ? (uint32_t)op->disp : (uint64_t)op->disp);
    } else {
        EmitOperand m = {.kind = EMIT_MEM, .base = (uint8_t)base, .index = (uint8_t)index,
                         .scale = op->scale, .disp = (int32_t)op->disp};
        if (op->asize == 4)
            emit_lea32(e, to, m);
        else if (index == HOST_NONE && m.disp == 0)
            emit_mov(e, to, base);
        else
            emit_lea(e, to, m);
    }
    if (segment && op->seg >= SEG_FS) {
        unsigned temp = to == TEMP1 ? TEMP0 : TEMP1;
        emit_load(e, temp, emit_gs(offsetof(SoftCpu, seg) + op->seg * sizeof(VcpuSegment) +
                                   offsetof(VcpuSegment, base)));
        emit_lea(e, to, emit_mem_index(to, temp, 0, 0));
    }
}

/* TranslateStub.b besides the base register of a stack operand. */
enum {
    OWN_OPERAND = 0xff,  /* the op's own operand */
    BASE_SLOW = 0xfe,    /* no access at all: the interpreter is to do the op */
    BASE_SCRATCH = 0xfd, /* the linear address is in SoftCpu.scratch_value */
};

/* a: the CodeSite's offset; b: base register of a stack operand, or BASE_*; c: its displacement. */
static void stub_emit(Translation *t, const TranslateStub *stub)
{
    Emit *e = &t->e;
    if (stub->b == OWN_OPERAND)
        translate_address(t, stub->op, TEMP0, true);
    else if (stub->b == BASE_SLOW)
        emit_constant(e, TEMP0, 4095); /* with a size of 2: what no refill can help */
    else if (stub->b == BASE_SCRATCH)
        emit_load(e, TEMP0, GS_FIELD(scratch_value));
    else
        emit_lea(e, TEMP0, emit_mem(stub->b, (int32_t)stub->c));
    emit_store32_imm(e, GS_FIELD(site), stub->a);
    emit_jmp_to(e, t->cache->rw + t->cache->thunk.refill);
}

/* One access in translation. */
typedef struct Access {
    const SoftOp *op;
    const uint8_t *start;  /* where its address is computed */
    unsigned base;         /* of a stack operand; OWN_OPERAND: the op's own operand */
    int32_t disp;
    unsigned size, access, align;
} Access;

static size_t tag_field(const Translation *t, const Access *a)
{
    return code_tlb_field(t->key, a->access == TRANSLATE_WRITE ? offsetof(SoftTlbEntry, write_tag)
                                                          : offsetof(SoftTlbEntry, read_tag));
}

/* The jump at @from is taken if the access cannot go on. */
static void missed(Translation *t, const Access *a, uint8_t *from)
{
    CodeCache *c = t->cache;
    CodeSite *site = code_record(c, sizeof(*site));
    *site = (CodeSite){.rip = a->op->rip, .retry = code_offset(c, a->start), .key = t->key,
                       .length = a->op->length, .size = (uint8_t)a->size,
                       .access = (uint8_t)a->access, .align = (uint8_t)a->align};
    TranslateStub *stub = translate_stub(t, from, stub_emit);
    stub->a = code_offset(c, (uint8_t *)site);
    stub->b = a->base;
    stub->c = (uint32_t)a->disp;
}

/* Compares the address in @address, which is lost, with the entry; TEMP1 = its addend if it hits. */
static void compare(Translation *t, const Access *a, unsigned address)
{
    Emit *e = &t->e;
    uint8_t *from;

    emit_alu(e, ALU_XOR, address, emit_gs_index(tag_field(t, a), TEMP1, 0));
    if (a->align) { /* the offset must be one of the aligned ones: no page is straddled then either */
        emit_test_imm(e, emit_reg(address), ~(int32_t)(4096 - a->align));
        from = emit_jcc(e, 5);
    } else {
        emit_alu_imm(e, ALU_CMP, emit_reg(address), (int32_t)(4096 - a->size));
        from = emit_jcc(e, 7);
    }
    emit_load(e, TEMP1, emit_gs_index(code_tlb_field(t->key, offsetof(SoftTlbEntry, addend)), TEMP1, 0));
    missed(t, a, from);
}

/* Of the linear address in TEMP0. */
static EmitOperand check(Translation *t, const Access *a)
{
    code_tlb_entry(&t->e, TEMP0);
    emit_mov(&t->e, TEMP2, TEMP0);
    t->held = -1;
    compare(t, a, TEMP2);
    return emit_mem_index(TEMP0, TEMP1, 0, 0);
}

/* Of @disp bytes behind host register @base. */
static EmitOperand check_base(Translation *t, const Access *a, unsigned base, int32_t disp)
{
    Emit *e = &t->e;

    if (disp)
        emit_lea(e, TEMP0, emit_mem(base, disp));
    code_tlb_entry(e, disp ? TEMP0 : base);
    if (!disp)
        emit_mov(e, TEMP0, base);
    compare(t, a, TEMP0);
    return emit_mem_index(base, TEMP1, 0, disp);
}

/* Of a constant address, which is aligned as it must be and straddles no page. */
static EmitOperand check_constant(Translation *t, const Access *a, uint64_t address)
{
    Emit *e = &t->e;
    int64_t page = (int64_t)(address & ~(uint64_t)4095);
    size_t entry = (size_t)((address >> 12 & (SOFT_TLB_SIZE - 1)) << CODE_TLB_SHIFT);
    EmitOperand tag = emit_gs(tag_field(t, a) + entry);

    if (fits32(page)) {
        emit_alu_imm(e, ALU_CMP, tag, (int32_t)page);
    } else {
        emit_constant(e, TEMP0, (uint64_t)page);
        emit_alu(e, ALU_CMP, TEMP0, tag);
    }
    missed(t, a, emit_jcc(e, 5));
    emit_load(e, TEMP1, emit_gs(code_tlb_field(t->key, offsetof(SoftTlbEntry, addend)) + entry));
    if (fits32(page))
        return emit_mem(TEMP1, (int32_t)(int64_t)address);
    return emit_mem_index(TEMP0, TEMP1, 0, (int32_t)(address & 4095));
}

void translate_slow_from(Translation *t, const SoftOp *op, uint8_t *from)
{
    CodeSite *site = code_record(t->cache, sizeof(*site));
    TranslateStub *stub = translate_stub(t, from, stub_emit);

    *site = (CodeSite){.rip = op->rip, .key = t->key, .length = op->length, .size = 2};
    if (op->flags & (SOFT_OP_REP | SOFT_OP_REPNE)) /* comes here for every page: not to be decoded again */
        site->op = code_op_copy(t->cache, op);
    stub->a = code_offset(t->cache, (uint8_t *)site);
    stub->b = BASE_SLOW;
}

/* Remembers the access for coalesce.c. */
static void record(Translation *t, const Access *a, TranslateAccess address)
{
    address.op = a->op;
    address.start = code_offset(t->cache, a->start);
    address.size = (uint8_t)a->size;
    address.access = (uint8_t)a->access;
    address.align = (uint8_t)a->align;
    coalesce_record(t, &address);
}

EmitOperand translate_memory(Translation *t, const SoftOp *op, unsigned size, unsigned access,
                             unsigned align)
{
    if (t->key & TRANSLATE_KEY_MIRROR)
        return mirror_memory(t, op, access);
    bool flat = op->seg < SEG_FS, based = op->base != SOFT_REG_NONE;
    uint64_t address = op->asize == 4 ? (uint32_t)op->disp : (uint64_t)op->disp;
    EmitOperand operand;

    if (t->coalesced && coalesce_operand(t, &operand))
        return operand;
    translate_flags_clobber(t);
    Access a = {.op = op, .start = t->e.at, .base = OWN_OPERAND, .size = size, .access = access, .align = align};
    if (!t->coalesced)
        record(t, &a, (TranslateAccess){.base = op->base, .index = op->index, .scale = op->scale,
                                        .disp = op->disp,
                                        .simple = flat && op->asize == 8 && fits32(op->disp)});
    if (flat && op->index == SOFT_REG_NONE) {
        if (!based && (address & 4095) + size <= 4096 && (!align || (address & (align - 1)) == 0))
            return check_constant(t, &a, address);
        if (based && op->asize == 8 && guest_register_is_host(op->base) && fits32(op->disp))
            return check_base(t, &a, op->base, (int32_t)op->disp);
    }
    translate_address(t, op, TEMP0, true);
    return check(t, &a);
}

EmitOperand translate_memory_at(Translation *t, const SoftOp *op, unsigned base, int32_t disp,
                                unsigned size, unsigned access)
{
    if (t->key & TRANSLATE_KEY_MIRROR)
        return mirror_memory_at(t, op, base, disp, access);
    EmitOperand operand;

    if (t->coalesced && coalesce_operand(t, &operand))
        return operand;
    translate_flags_clobber(t);
    Access a = {.op = op, .start = t->e.at, .base = base, .disp = disp, .size = size, .access = access};
    if (!t->coalesced)
        record(t, &a, (TranslateAccess){.base = (uint8_t)base, .index = SOFT_REG_NONE, .disp = disp,
                                        .simple = true});
    return check_base(t, &a, base, disp);
}

uint8_t **translate_run_check(Translation *t, unsigned address, unsigned access, unsigned shift,
                              unsigned to, uint8_t **slow)
{
    Emit *e = &t->e;
    Access a = {.access = access};

    code_tlb_entry(e, address);
    emit_mov(e, TEMP2, address);
    emit_alu(e, ALU_XOR, TEMP2, emit_gs_index(tag_field(t, &a), TEMP1, 0));
    emit_alu_imm(e, ALU_CMP, emit_reg(TEMP2), 4095);
    *slow++ = emit_jcc(e, 7);
    emit_alu_imm(e, ALU_CMP, emit_reg(HOST_RCX), 4096); /* what follows must not wrap around */
    *slow++ = emit_jcc(e, 7);
    emit_lea(e, TEMP2, emit_mem_index(TEMP2, HOST_RCX, shift, 0));
    emit_alu_imm(e, ALU_CMP, emit_reg(TEMP2), 4096);
    *slow++ = emit_jcc(e, 7);
    emit_load(e, to, emit_gs_index(code_tlb_field(t->key, offsetof(SoftTlbEntry, addend)), TEMP1, 0));
    return slow;
}

EmitOperand translate_memory_scratch(Translation *t, const SoftOp *op, unsigned size, unsigned access)
{
    EmitOperand operand;

    if (t->coalesced && coalesce_operand(t, &operand))
        return operand; /* never: it only counts this access */
    translate_flags_clobber(t);
    Access a = {.op = op, .start = t->e.at, .base = BASE_SCRATCH, .size = size, .access = access};
    if (!t->coalesced)
        record(t, &a, (TranslateAccess){.simple = false});
    emit_load(&t->e, TEMP0, GS_FIELD(scratch_value));
    return check(t, &a);
}

void translate_memory_done(Translation *t, const SoftOp *op)
{
    /* In the second emission a slow path goes on in the first one: it may have changed what was checked. */
    uint32_t here = t->coalesced ? t->after[t->i] : code_offset(t->cache, t->e.at);

    t->after[t->i] = here;
    for (unsigned i = t->n_stubs; i-- > 0 && t->stub[i].op == op;)
        if (t->stub[i].emit == stub_emit)
            ((CodeSite *)(t->cache->rw + t->stub[i].a))->resume = here;
}
