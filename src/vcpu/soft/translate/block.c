/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Translates one block: decodes to the first instruction after which control cannot fall through,
 * finds out which flags are needed where, emits each op, then the stubs.
 */
#include <x86intrin.h>

#include "vcpu/soft/perf-map.h"
#include "vcpu/soft/translate/cache.h"

/* More than the longest block takes, code and records: then there is no need to look at each byte. */
#define ROOM_MIN (128u << 10)

TranslateStub *translate_stub(Translation *t, uint8_t *from,
                              void (*emit)(Translation *t, const TranslateStub *stub))
{
    g_assert(t->n_stubs < TRANSLATE_STUBS_MAX);
    TranslateStub *stub = &t->stub[t->n_stubs++];
    *stub = (TranslateStub){.emit = emit, .from = from, .op = &t->op[t->i], .flags_at = t->flags_at};
    return stub;
}

/* ---- decoding ---- */

/* The op that reaches into the next page; its bytes from both. May fault. */
static bool decode_straddling(SoftCpu *cpu, Translation *t, const uint8_t *host, unsigned room)
{
    uint8_t bytes[15];
    const uint8_t *second;
    uint64_t va = t->page->va + 4096;
    bool ends;

    memcpy(bytes, host, room);
    cpu->code->fetch.rip = t->rip;
    cpu->op = &cpu->code->fetch;
    uint64_t gpa = soft_fetch_translate(cpu, va, &second);
    if (second)
        memcpy(bytes + room, second, sizeof(bytes) - room);
    else
        memset(bytes + room, 0xff, sizeof(bytes) - room);
    uint32_t flushes = t->cache->flushes;
    t->second = code_page_get(cpu, va, gpa & ~(uint64_t)4095, t->key);
    soft_decode(cpu, cpu->mode, t->rip, bytes, sizeof(bytes), &t->op[0], &ends);
    t->n = 1;
    t->falls_through = !ends;
    return t->cache->flushes == flushes;
}

/* A conditional jump to the start of its own block. */
static bool jumps_back(const Translation *t, const SoftOp *op)
{
    return ((op->map == 0 && (op->opcode & 0xf0) == 0x70) ||
            (op->map == 1 && (op->opcode & 0xf0) == 0x80)) &&
           op->imm == t->rip;
}

/* False: the cache was flushed meanwhile. */
static bool decode(SoftCpu *cpu, Translation *t, const uint8_t *host)
{
    unsigned room = 4096 - (unsigned)(t->rip & 4095), max = MIN(t->cache->ops_max, TRANSLATE_OPS_MAX);
    uint64_t rip = t->rip;
    bool ends = false;

    t->n = 0;
    t->second = NULL;
    t->falls_through = true;
    while (t->n < max && !ends) {
        /* No block begins there either: the dispatcher stops before. */
        if (t->n && cpu->system->debugger.code && soft_debugger_code_at(cpu, rip))
            break;
        unsigned length = soft_decode(cpu, cpu->mode, rip, host, room, &t->op[t->n], &ends);
        if (!length) {
            if (t->n == 0)
                return decode_straddling(cpu, t, host, room);
            return true;
        }
        if (ends && translate_goes_on(&t->op[t->n], cpu->mode))
            ends = false;
        t->n++;
        rip += length;
        host += length;
        room -= length;
        t->falls_through = !ends;
        if (!room || (!ends && code_block_find(t->page, rip)) || jumps_back(t, &t->op[t->n - 1]))
            break;
    }
    return true;
}

/* ---- flags ---- */

static bool conditional_exit(const TranslateInfo *info)
{
    return info->opcode && (info->opcode->flags & OPC_BRANCH);
}

static void liveness(Translation *t)
{
    t->live[t->n] = TF_ALL;
    for (unsigned i = t->n; i-- > 0;) {
        const TranslateInfo *info = &t->info[i] ;
        uint8_t after = conditional_exit(info) ? TF_ALL : t->live[i + 1];
        t->live[i] = (uint8_t)((after & ~info->kills) | info->reads);
    }
}

static bool clobbers(const Translation *t, const SoftOp *op, const TranslateInfo *info)
{
    if (!info->emit || !info->opcode)
        return true;
    if (t->key & TRANSLATE_KEY_MIRROR)
        return info->opcode->flags & OPC_STRING;
    return (op->flags & SOFT_OP_MEM) || (info->opcode->flags & (OPC_STACK | OPC_STRING));
}

/* Where the block wants the flags at its start: where its first op that cares does. */
static unsigned flags_wanted(const Translation *t)
{
    for (unsigned i = 0; i < t->n && t->live[i]; i++) {
        const TranslateInfo *info = &t->info[i];
        if (clobbers(t, &t->op[i], info))
            return FLAGS_SAVED;
        if (info->reads || (info->touches & ~info->kills & t->live[i + 1]))
            return FLAGS_HOST;
    }
    return FLAGS_HOST;
}

/* Whether its last op is a jump to the first one, where no flags are needed. */
static bool is_loop(const Translation *t)
{
    const SoftOp *op = &t->op[t->n - 1];

    return jumps_back(t, op) && t->info[t->n - 1].emit == translate_jcc && op->size == 8 &&
           !t->live[0] && !t->second && !t->cache->no_chains;
}

/* ---- emission ---- */

static void helper_emit(Translation *t, const SoftOp *op)
{
    Emit *e = &t->e;
    CodeCache *c = t->cache;
    SoftOp *copy = code_op_copy(c, op);
    CodeSite *site = code_record(c, sizeof(*site));
    bool last = t->i + 1 == t->n && !t->falls_through;

    t->helper[t->i] = true;
    translate_flags_clobber(t);
    *site = (CodeSite){.rip = op->rip, .key = t->key, .length = op->length, .op = copy};
    emit_store32_imm(e, GS_FIELD(site), code_offset(c, (uint8_t *)site));
    emit_jmp_to(e, c->rw + c->thunk.helper);
    site->resume = last ? 0 : code_offset(c, e->at);
    t->flags_at = FLAGS_SAVED;
    t->vectors_checked = false;
    t->mirror_base = -1;
    t->ended = last;
}

/* Where indirect jumps arrive: TEMP0 is the target, flags are saved. */
static void prologue_emit(Translation *t, CodeBlock *b)
{
    Emit *e = &t->e;
    CodeCache *c = t->cache;
    const CodePage *p = t->page;

    b->entry = code_offset(c, e->at);
    emit_constant(e, TEMP1, t->rip);
    emit_alu(e, ALU_CMP, TEMP0, emit_reg(TEMP1));
    emit_jcc_to(e, 5, c->rw + c->thunk.miss);
    /* The page's id may stand in its slot although the CPU is in another mode by now. */
    emit_alu32_imm(e, ALU_CMP, GS_FIELD(code_key), (int32_t)t->key);
    emit_jcc_to(e, 5, c->rw + c->thunk.miss);
    emit_alu32_imm(e, ALU_CMP, emit_gs(soft_fetch_id_offset(p->va, p->key & SOFT_MODE_USER)),
                   (int32_t)p->id);
    emit_jcc_to(e, 5, c->rw + c->thunk.miss);
    emit_alu32_imm(e, ALU_CMP, GS_FIELD(pending), 0);
    emit_jcc_to(e, 5, c->rw + c->thunk.miss);
    if (t->live[0] && b->flags_at == FLAGS_HOST)
        code_flags_restore(e);
    b->main = code_offset(c, e->at);
}

/* The second page of a straddling instruction is what it was, or the dispatcher looks. */
static void second_page_stub(Translation *t, const TranslateStub *stub)
{
    emit_constant(&t->e, TEMP0, stub->op->rip);
    emit_jmp_to(&t->e, t->cache->rw + t->cache->thunk.second);
}

static void second_page_emit(Translation *t)
{
    if (!t->second)
        return;
    translate_flags_clobber(t);
    emit_alu32_imm(&t->e, ALU_CMP,
                   emit_gs(soft_fetch_id_offset(t->second->va, t->key & SOFT_MODE_USER)),
                   (int32_t)t->second->id);
    translate_stub(t, emit_jcc(&t->e, 5), second_page_stub);
}

/*
 * The conditional jump back to the block itself: it looks for pending events on the way. @last: of the
 * iterations that are emitted one after the other; the earlier ones go on with the next.
 */
static uint8_t *loop_end(Translation *t, const SoftOp *op, bool last)
{
    translate_flags_before(t);
    translate_exit_from(t, emit_jcc(&t->e, op->sub ^ 1u), translate_next_rip(op));
    if (!last)
        return NULL;
    emit_alu32_imm(&t->e, ALU_CMP, GS_FIELD(pending), 0);
    uint8_t *back = emit_jcc(&t->e, 4);
    translate_exit(t, t->rip, t->key);
    return back;
}

/* All ops, or one iteration of them; gives where a loop's jump back is. */
static uint8_t *ops_emit(Translation *t, bool last)
{
    uint8_t *back = NULL;

    t->next_access = 0;
    for (t->i = 0; t->i < t->n && !t->ended; t->i++) {
        const SoftOp *op = &t->op[t->i];
        const TranslateInfo *info = &t->info[t->i];
        if (t->loop && t->i + 1 == t->n)
            back = loop_end(t, op, last);
        else if (!info->emit || !info->emit(t, op))
            helper_emit(t, op);
        mirror_op_done(t, op);
        if (t->coalesced)
            coalesce_after(t);
    }
    t->i = t->n - 1;
    if (!t->ended && last)
        translate_exit(t, translate_next_rip(&t->op[t->i]), t->key);
    return back;
}

/* The block once more, with its accesses in groups; then @plain is only for what the checks refuse. */
static uint8_t *coalesced_emit(Translation *t, CodeBlock *b, uint32_t plain)
{
    uint8_t *back = NULL;

    t->coalesced = true;
    t->ended = t->vectors_checked = false;
    t->flags_at = b->flags_at;
    t->held = t->mirror_base = -1;
    t->i = 0;
    t->e.at = t->cache->rw + ((code_offset(t->cache, t->e.at) + 15) & ~15u);
    prologue_emit(t, b);
    coalesce_head(t, t->cache->rw + plain);
    for (unsigned k = 1; k <= t->unrolled; k++)
        back = ops_emit(t, k == t->unrolled);
    return back;
}

/* All of the block but its stubs. */
static void body_emit(Translation *t, CodeBlock *b)
{
    const VcpuTuning *tuning = &t->cpu->vcpu.vm->config.tuning;
    uint8_t *back[2] = {NULL, NULL};

    t->flags_at = b->flags_at;
    t->i = t->n_accesses = 0;
    t->coalesced = t->vectors_checked = t->ended = false;
    memset(t->helper, 0, sizeof(t->helper));
    memset(t->after, 0, sizeof(t->after));
    prologue_emit(t, b);
    second_page_emit(t);
    uint32_t plain = b->main;
    back[0] = ops_emit(t, true);
    if (!tuning->no_coalescing && !t->second && coalesce_plan(t))
        back[1] = coalesced_emit(t, b, plain);
    for (unsigned i = 0; i < 2; i++)
        if (back[i])
            emit_patch(back[i], t->cache->rw + b->main);
}

static void stubs_emit(Translation *t)
{
    for (unsigned i = 0; i < t->n_stubs; i++) {
        const TranslateStub *stub = &t->stub[i];
        emit_patch(stub->from, t->e.at);
        stub->emit(t, stub);
    }
}

static void account(SoftCpu *cpu, const Translation *t, uint32_t host_bytes)
{
    const SoftOp *last = &t->op[t->n - 1];
    vcpu_count(&cpu->stats.blocks_translated, 1);
    vcpu_count(&cpu->stats.translated_guest_bytes, last->rip + last->length - t->rip);
    vcpu_count(&cpu->stats.translated_host_bytes, host_bytes);
    vcpu_count_set(&cpu->stats.code_cache_used, t->cache->used + t->cache->size - t->cache->records);
}

CodeBlock *translate_block(SoftCpu *cpu, CodePage *page, const uint8_t *host)
{
    CodeCache *c = cpu->code;
    Translation *t = c->translation;
    uint64_t start = __rdtsc();

    if (code_room(c) < ROOM_MIN || c->mirrored_max - c->n_mirrored < 8 * TRANSLATE_OPS_MAX ||
        (c->flush_every && c->since_flush >= c->flush_every)) {
        code_cache_flush(cpu);
        return NULL;
    }
    t->cpu = cpu;
    t->cache = c;
    t->page = page;
    t->key = page->key;
    t->rip = cpu->rip;
    t->n_stubs = 0;
    t->mirror_base = -1;
    if (!decode(cpu, t, host))
        return NULL;
    for (unsigned i = 0; i < t->n; i++)
        t->info[i] = translate_info(&t->op[i], t->key);
    liveness(t);

    CodeBlock *b = code_record(c, sizeof(*b));
    *b = (CodeBlock){.page = page, .second = t->second, .rip = t->rip, .live = t->live[0], .n_ops = (uint16_t)t->n};
    b->flags_at = t->second ? FLAGS_SAVED : (uint8_t)flags_wanted(t);
    t->loop = is_loop(t);
    t->e = (Emit){c->rw + ((c->used + 15) & ~15u), c->rw + c->records};
    body_emit(t, b);
    stubs_emit(t);
    uint32_t used = code_offset(c, t->e.at);
    if (t->key & TRANSLATE_KEY_MIRROR)
        c->mirrored[c->n_mirrored++] = (CodeMirrored){used, 0}; /* what comes behind has no site here */
    account(cpu, t, used - c->used);
    soft_perf_map_add(soft_vm(cpu), code_rx(c, b->entry), used - b->entry, t->rip,
                      page->gpa | (t->rip & 4095), t->key);
    c->used = used;
    code_block_add(c, b);
    c->ticks += __rdtsc() - start;
    vcpu_count_set(&cpu->stats.translation_ns,
                   (uint64_t)((unsigned __int128)c->ticks * 1000000u / vcpu_host_tsc_khz()));
    return b;
}
