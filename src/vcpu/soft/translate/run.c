/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The dispatcher: finds or translates the block at cpu->rip, enters it, and links blocks that
 * leave for each other. And what thunks call when translated code cannot go on by itself.
 */
#include "vcpu/soft/translate/cache.h"
#include "vcpu/soft/translate/mirror.h"
#include "vcpu/soft/translate/run.h"

uint32_t translate_key(const SoftCpu *cpu)
{
    uint32_t mxcsr;
    memcpy(&mxcsr, cpu->fpu.fxsave + 24, sizeof(mxcsr));
    uint32_t key = cpu->mode | (uint32_t)cpu->mmu << TRANSLATE_KEY_MMU_SHIFT;
    if ((mxcsr >> 7 & 0x3f) != 0x3f)
        key |= TRANSLATE_KEY_FP_TRAP;
    return cpu->mirror_on && cpu->mmu == SOFT_MMU_USER ? key | TRANSLATE_KEY_MIRROR : key;
}

/* ---- one instruction by the interpreter ---- */

void soft_op_stop(SoftCpu *cpu, const SoftOp *op)
{
    cpu->rip = op->rip;
    cpu->code->stopped = true;
}

bool soft_op_run(SoftCpu *cpu, SoftOp *op)
{
    CodeCache *c = cpu->code;
    c->stopped = false;
    op->handler(cpu, op);
    return c->stopped;
}

/* Whether translated code may go on after an op that C executed. */
static bool may_resume(SoftCpu *cpu, const CodeSite *site)
{
    return site->resume && !atomic_load_explicit(&cpu->pending, memory_order_relaxed) &&
           cpu->rip == site->rip + site->length && translate_key(cpu) == site->key &&
           !cpu->system->debug_hits;
}

/* The instruction at @rip, for execution by itself. */
static SoftOp *step_decode(SoftCpu *cpu, uint64_t rip)
{
    CodeCache *c = cpu->code;
    uint8_t bytes[15];
    const uint8_t *host;
    unsigned room = 4096 - (unsigned)(rip & 4095);
    bool ends;

    c->fetch.rip = rip;
    cpu->op = &c->fetch;
    soft_fetch_translate(cpu, rip, &host);
    if (room >= sizeof(bytes) && host)
        memcpy(bytes, host, sizeof(bytes));
    else if (host)
        memcpy(bytes, host, room);
    else
        memset(bytes, 0xff, sizeof(bytes));
    unsigned available = MIN(room, (unsigned)sizeof(bytes));
    unsigned length = soft_decode(cpu, cpu->mode, rip, bytes, available, &c->step[0], &ends);
    if (!length) {
        soft_fetch_translate(cpu, rip + room, &host);
        if (host)
            memcpy(bytes + room, host, sizeof(bytes) - room);
        else
            memset(bytes + room, 0xff, sizeof(bytes) - room);
        length = soft_decode(cpu, cpu->mode, rip, bytes, sizeof(bytes), &c->step[0], &ends);
    }
    c->step[1] = (SoftOp){.handler = soft_op_stop, .rip = rip + length};
    return c->step;
}

const void *translate_slow(SoftCpu *cpu)
{
    CodeCache *c = cpu->code;
    const CodeSite *site = (const CodeSite *)(c->rw + cpu->site);
    uint32_t flushes = c->flushes;
    cpu->rip = site->rip;
    cpu->code_exit = 0;
    soft_op_run(cpu, site->op ? site->op : step_decode(cpu, site->rip));
    if (c->flushes != flushes || !may_resume(cpu, site))
        return NULL;
    return code_rx(c, site->resume);
}

const void *translate_helper(SoftCpu *cpu)
{
    vcpu_count(&cpu->stats.exits_helper, 1);
    return translate_slow(cpu);
}

const void *translate_refill(SoftCpu *cpu, uint64_t linear)
{
    CodeCache *c = cpu->code;
    const CodeSite *site = (const CodeSite *)(c->rw + cpu->site);
    const SoftTlbEntry *e = soft_tlb_entry(cpu, linear);
    SoftTranslation t;
    uint32_t error;

    if ((linear & 4095) + site->size > 4096 || (site->align && (linear & (site->align - 1u))) ||
        !soft_canonical(linear))
        return NULL;
    if (!soft_translate_try(cpu, linear, cpu->mmu, site->access, &t, &error))
        return NULL;
    uint64_t tag = site->access == SOFT_WRITE ? e->write_tag : e->read_tag;
    return tag == (linear & ~(uint64_t)4095) ? code_rx(c, site->retry) : NULL;
}

/* ---- the dispatcher ---- */

/* The block at cpu->rip; NULL where there is no RAM. May fault. */
static CodeBlock *find(SoftCpu *cpu, uint32_t key)
{
    CodeCache *c = cpu->code;
    CodeFront *front = code_front(c, cpu->rip);
    bool user = key & SOFT_MODE_USER;
    const uint8_t *host;
    CodeBlock *b;

    if (front->rip == cpu->rip && front->key == key && front->id &&
        cpu->fetch_ids[user][soft_fetch_slot(cpu->rip)] == front->id) {
        cpu->jump[cpu->rip % SOFT_JUMPS] = code_rx(c, front->block->entry);
        return front->block;
    }
    do {
        c->fetch.rip = cpu->rip;
        cpu->op = &c->fetch;
        if (!canonical(cpu->rip))
            soft_raise_error(cpu, EXC_GP, 0);
        uint64_t gpa = soft_fetch_translate(cpu, cpu->rip, &host);
        if (!host)
            return NULL;
        CodePage *page = code_page_get(cpu, cpu->rip & ~(uint64_t)4095, gpa & ~(uint64_t)4095, key);
        b = code_block_find(page, cpu->rip);
        if (!b)
            b = translate_block(cpu, page, host);
    } while (!b);
    *front = (CodeFront){cpu->rip, b, b->page->id, key};
    cpu->jump[cpu->rip % SOFT_JUMPS] = code_rx(c, b->entry);
    return b;
}

/* A block whose instruction ends in the next page met another page there, or an unknown one. May fault. */
static void second_page_look(SoftCpu *cpu, uint32_t key)
{
    const uint8_t *host;
    uint64_t va = (cpu->rip | 4095) + 1;

    cpu->second_missing = false;
    CodeBlock *b = find(cpu, key);
    if (!b || !b->second)
        return;
    cpu->code->fetch.rip = cpu->rip;
    cpu->op = &cpu->code->fetch;
    uint64_t gpa = soft_fetch_translate(cpu, va, &host);
    uint32_t flushes = cpu->code->flushes;
    CodePage *page = code_page_get(cpu, va, gpa & ~(uint64_t)4095, key);
    if (cpu->code->flushes == flushes && b->second != page)
        code_block_drop(cpu->code, b);
}

/*
 * An indirect branch whose target is not canonical has gone there: it faults itself (SDM vol. 2, JMP, RET),
 * before RSP moves.
 */
static void branch_fault(SoftCpu *cpu)
{
    const CodeSite *site = (const CodeSite *)(cpu->code->rw + cpu->branch_site);

    cpu->gpr[GPR_RSP] -= site->drop;
    soft_op_run(cpu, step_decode(cpu, site->rip));
}

/* Code outside RAM, one instruction at a time. */
static void run_outside(SoftCpu *cpu)
{
    soft_op_run(cpu, step_decode(cpu, cpu->rip));
}

bool soft_translate_possible(const SoftCpu *cpu)
{
    return cpu->code && (cpu->mode & SOFT_MODE_CODE64) && !(cpu->mode & SOFT_MODE_SINGLE) &&
           !cpu->system->code_breakpoints;
}

void soft_translate_run(SoftCpu *cpu)
{
    CodeCache *c = cpu->code;
    typedef void (*Enter)(SoftCpu *, const void *);
    Enter enter = (Enter)(uintptr_t)code_rx(c, c->thunk.enter);

    cpu->code_exit = 0;
    cpu->vectors_live = false;
    do {
        if (cpu->mode & SOFT_MODE_USER)
            mirror_ready(cpu);
        uint32_t key = translate_key(cpu), flushes = c->flushes, exit = cpu->code_exit;
        cpu->code_exit = 0;
        code_pages_check(cpu);
        if (cpu->second_missing)
            second_page_look(cpu, key);
        if (UNLIKELY(cpu->system->debugger.code) && soft_debugger_code_at(cpu, cpu->rip)) {
            soft_debugger_break(cpu, cpu->rip);
            return;
        }
        CodeBlock *b = find(cpu, key);
        if (!b) {
            run_outside(cpu);
            continue;
        }
        if (exit && c->flushes == flushes)
            code_link(cpu, code_exit_at(c, exit), b);
        cpu->branch_missed = false;
        cpu->code_key = key;
        enter(cpu, code_rx(c, b->main));
        if (UNLIKELY(!canonical(cpu->rip)) && cpu->branch_missed)
            branch_fault(cpu);
        /* Kept for the next time, if something is pending: or the instruction would never be executed. */
        if (cpu->second_missing)
            cpu->system->steps--;
    } while (!atomic_load_explicit(&cpu->pending, memory_order_relaxed) &&
             soft_translate_possible(cpu) && !cpu->system->debug_hits);
}
