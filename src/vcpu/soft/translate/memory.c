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
 * The stub has the TLB filled and starts again, or has the interpreter do the instruction.
 */
#include "vcpu/soft/translate/cache.h"

#define ENTRY_SHIFT 5
_Static_assert(sizeof(SoftTlbEntry) == 1 << ENTRY_SHIFT, "index arithmetic");

static size_t tlb_field(uint32_t key, size_t field)
{
    return offsetof(SoftCpu, tlb) + key_mmu(key) * sizeof(((SoftCpu *)0)->tlb[0]) + field;
}

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

/* a: the CodeSite's offset; b: base register of a stack operand, or 0xff; c: its displacement. */
static void stub_emit(Translation *t, const TranslateStub *stub)
{
    Emit *e = &t->e;
    if (stub->b == 0xff)
        translate_address(t, stub->op, TEMP0, true);
    else
        emit_lea(e, TEMP0, emit_mem(stub->b, (int32_t)stub->c));
    emit_store32_imm(e, GS_FIELD(site), stub->a);
    emit_jmp_to(e, t->cache->rw + t->cache->thunk.refill);
}

/* The check of the linear address in TEMP0. @start: where it is computed. */
static EmitOperand check(Translation *t, const SoftOp *op, const uint8_t *start, unsigned base,
                         int32_t disp, unsigned size, unsigned access, unsigned align)
{
    Emit *e = &t->e;
    CodeCache *c = t->cache;
    size_t tag = access == TRANSLATE_WRITE ? offsetof(SoftTlbEntry, write_tag)
                                           : offsetof(SoftTlbEntry, read_tag);
    emit_rorx(e, TEMP1, TEMP0, 12 - ENTRY_SHIFT);
    emit_alu32_imm(e, ALU_AND, emit_reg(TEMP1), (SOFT_TLB_SIZE - 1) << ENTRY_SHIFT);
    emit_mov(e, TEMP2, TEMP0);
    emit_alu(e, ALU_XOR, TEMP2, emit_gs_index(tlb_field(t->key, tag), TEMP1, 0));
    uint8_t *from;
    if (align) { /* the offset must be one of the aligned ones: no page is straddled then either */
        emit_test_imm(e, emit_reg(TEMP2), ~(int32_t)(4096 - align));
        from = emit_jcc(e, 5);
    } else {
        emit_alu_imm(e, ALU_CMP, emit_reg(TEMP2), (int32_t)(4096 - size));
        from = emit_jcc(e, 7);
    }
    emit_load(e, TEMP1, emit_gs_index(tlb_field(t->key, offsetof(SoftTlbEntry, addend)), TEMP1, 0));

    CodeSite *site = code_record(c, sizeof(*site));
    *site = (CodeSite){.rip = op->rip, .retry = code_offset(c, start), .key = t->key,
                       .length = op->length, .size = (uint8_t)size, .access = (uint8_t)access,
                       .align = (uint8_t)align};
    TranslateStub *stub = translate_stub(t, from, stub_emit);
    stub->a = code_offset(c, (uint8_t *)site);
    stub->b = base;
    stub->c = (uint32_t)disp;
    return emit_mem_index(TEMP0, TEMP1, 0, 0);
}

EmitOperand translate_memory(Translation *t, const SoftOp *op, unsigned size, unsigned access,
                             unsigned align)
{
    translate_flags_clobber(t);
    const uint8_t *start = t->e.at;
    translate_address(t, op, TEMP0, true);
    return check(t, op, start, 0xff, 0, size, access, align);
}

EmitOperand translate_memory_at(Translation *t, const SoftOp *op, unsigned base, int32_t disp,
                                unsigned size, unsigned access)
{
    translate_flags_clobber(t);
    const uint8_t *start = t->e.at;
    if (disp)
        emit_lea(&t->e, TEMP0, emit_mem(base, disp));
    else
        emit_mov(&t->e, TEMP0, base);
    return check(t, op, start, base, disp, size, access, 0);
}

void translate_memory_done(Translation *t, const SoftOp *op)
{
    for (unsigned i = t->n_stubs; i-- > 0 && t->stub[i].op == op;)
        if (t->stub[i].emit == stub_emit)
            ((CodeSite *)(t->cache->rw + t->stub[i].a))->resume = code_offset(t->cache, t->e.at);
}
