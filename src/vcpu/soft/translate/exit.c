/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Ways out of a block. A direct exit leads to a stub, which asks the dispatcher; once the target is
 * known, code_link makes it lead there: at once where nothing is to be done on the way, else through
 * glue, which looks whether the target's page is still mapped, whether something is pending (on
 * backward jumps, so that every loop looks), and moves the flags where the target wants them.
 */
#include "vcpu/soft/translate/cache.h"

static void stub_emit(Translation *t, const TranslateStub *stub)
{
    CodeCache *c = t->cache;
    CodeExit *x = code_exit_at(c, stub->a);
    x->stub = code_offset(c, t->e.at);
    emit_store32_imm(&t->e, GS_FIELD(code_exit), stub->a);
    emit_constant(&t->e, TEMP0, x->target);
    emit_store(&t->e, GS_FIELD(rip), TEMP0);
    emit_jmp_to(&t->e, c->rw + (stub->flags_at == FLAGS_HOST ? c->thunk.leave_host : c->thunk.leave_saved));
}

static void exit_add(Translation *t, uint8_t *from, uint64_t target, uint32_t key)
{
    CodeCache *c = t->cache;
    CodeExit *x = code_record(c, sizeof(*x));
    const SoftOp *op = &t->op[t->i];
    *x = (CodeExit){.target = target, .from = t->page, .key = key, .patch = code_offset(c, from),
                    .flags_at = (uint8_t)t->flags_at, .backward = target <= op->rip};
    TranslateStub *stub = translate_stub(t, from, stub_emit);
    stub->a = code_offset(c, (uint8_t *)x);
}

void translate_exit_from(Translation *t, uint8_t *from, uint64_t target)
{
    exit_add(t, from, target, t->key);
}

void translate_exit(Translation *t, uint64_t target, uint32_t key)
{
    exit_add(t, emit_jmp(&t->e), target, key);
    t->ended = true;
}

void translate_exit_indirect(Translation *t, uint32_t drop)
{
    const SoftOp *op = &t->op[t->i];
    CodeSite *site = code_record(t->cache, sizeof(*site));

    *site = (CodeSite){.rip = op->rip, .key = t->key, .length = op->length, .drop = drop};
    emit_store32_imm(&t->e, GS_FIELD(branch_site), code_offset(t->cache, (uint8_t *)site));
    translate_flags_clobber(t);
    emit_load16_zero(&t->e, TEMP1, emit_reg(TEMP0));
    emit_jmp_operand(&t->e, emit_gs_index(offsetof(SoftCpu, jump), TEMP1, 3));
    t->ended = true;
}

/* ---- glue ---- */

/* Goes to @stub if pending, or if @page is not what is mapped at its address; keeps EFLAGS. */
static void glue_check_keeping_flags(Emit *e, const CodePage *page, bool poll, const uint8_t *stub)
{
    emit_mov(e, TEMP0, HOST_RCX);
    if (page) {
        emit_load32(e, HOST_RCX, emit_gs(soft_fetch_id_offset(page->va, page->key & SOFT_MODE_USER)));
        emit_lea32(e, HOST_RCX, emit_mem(HOST_RCX, -(int32_t)page->id));
        uint8_t *same = emit_jrcxz(e);
        emit_mov(e, HOST_RCX, TEMP0);
        emit_jmp_to(e, stub);
        emit_patch8(same, e->at);
    }
    if (poll) {
        emit_load32(e, HOST_RCX, GS_FIELD(pending));
        uint8_t *none = emit_jrcxz(e);
        emit_mov(e, HOST_RCX, TEMP0);
        emit_jmp_to(e, stub);
        emit_patch8(none, e->at);
    }
    emit_mov(e, HOST_RCX, TEMP0);
}

static void glue_check(Emit *e, const CodePage *page, bool poll, const uint8_t *stub)
{
    if (page) {
        emit_alu32_imm(e, ALU_CMP, emit_gs(soft_fetch_id_offset(page->va, page->key & SOFT_MODE_USER)),
                       (int32_t)page->id);
        emit_jcc_to(e, 5, stub);
    }
    if (poll) {
        emit_alu32_imm(e, ALU_CMP, GS_FIELD(pending), 0);
        emit_jcc_to(e, 5, stub);
    }
}

void code_flags_save(Emit *e)
{
    emit_mov(e, TEMP0, HOST_RAX);
    code_flags_store(e);
    emit_mov(e, HOST_RAX, TEMP0);
}

void code_flags_restore(Emit *e)
{
    emit_mov(e, TEMP0, HOST_RAX);
    code_flags_load(e);
    emit_mov(e, HOST_RAX, TEMP0);
}

void code_link(SoftCpu *cpu, CodeExit *x, CodeBlock *b)
{
    CodeCache *c = cpu->code;
    /* Within a page the mapping is that of the jump itself, whatever the key. */
    bool same = b->page->va == x->from->va && b->page->gpa == x->from->gpa;
    const CodePage *check = same ? NULL : b->page;
    bool move = b->live && x->flags_at != b->flags_at;

    if (x->linked == b || x->key != b->page->key || x->target != b->rip || code_room(c) < 256 ||
        c->no_chains)
        return;
    x->linked = b;
    if (!check && !x->backward && !move) {
        emit_patch(c->rw + x->patch, c->rw + b->main);
        return;
    }
    Emit e = {c->rw + c->used, c->rw + c->records};
    const uint8_t *glue = e.at, *stub = c->rw + x->stub;
    if (check || x->backward) {
        if (b->live && x->flags_at == FLAGS_HOST)
            glue_check_keeping_flags(&e, check, x->backward, stub);
        else
            glue_check(&e, check, x->backward, stub);
    }
    if (move && x->flags_at == FLAGS_HOST)
        code_flags_save(&e);
    else if (move)
        code_flags_restore(&e);
    emit_jmp_to(&e, c->rw + b->main);
    c->used = code_offset(c, e.at);
    emit_patch(c->rw + x->patch, glue);
}
