/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Several memory accesses under one check. A block is emitted once with a check for each access, which
 * also tells what accesses it has; if some of them are at constant distances from each other, it is
 * emitted again: the first access of such a group checks the span of all of them and keeps the
 * addend, in TEMP2 and in SoftCpu.groups. A block that jumps back to itself is emitted several times over, and
 * the groups whose address goes on by a constant from one iteration to the next are checked once for
 * all of those, at the head. Over mirrored memory nothing is checked: there the addends are all that
 * such a loop shares.
 *
 * A check that fails leads to the same place in the first emission, and so does the end of every slow path, as
 * C may have changed what was checked. Guest registers and memory are the same in both at each access.
 *
 * Distances are found by value numbers: each register is a value plus a constant.
 */
#include "vcpu/soft/translate/cache.h"
#include "vcpu/soft/translate/mirror.h"
#include "vcpu/soft/vector.h"

#define SPAN_MAX 512
#define MIRROR_SPAN_MAX (1 << 20) /* far less than the guards of mirrored memory */
#define UNROLL_MAX 8
#define EMITTED_OPS_MAX 128 /* of an unrolled loop */
#define VALUE_NONE 0xffff   /* of no register */

/* ---- what an op does to general registers ---- */

typedef struct Value {
    uint16_t number; /* 0-15: that register at the start of the block */
    int64_t delta;
} Value;

typedef struct Values {
    Value reg[16];
    uint16_t next;
} Values;

static void values_init(Values *v)
{
    for (unsigned r = 0; r < 16; r++)
        v->reg[r] = (Value){.number = (uint16_t)r};
    v->next = 16;
}

static void values_forget(Values *v, unsigned mask)
{
    for (unsigned r = 0; r < 16; r++)
        if (mask & 1u << r)
            v->reg[r] = (Value){.number = v->next++};
}

/* ADD, SUB, INC, DEC of a 64-bit register by a constant. */
static bool adds_constant(const SoftOp *op, const TranslateInfo *info, int64_t *by)
{
    if (info->emit != translate_rm || op->map != 0 || op->size != 8 || (op->flags & SOFT_OP_MEM))
        return false;
    int digit = info->opcode->digit;
    if (op->opcode == 0x81 || op->opcode == 0x83)
        *by = digit == 0 ? (int64_t)op->imm : -(int64_t)op->imm;
    else if (op->opcode == 0xff)
        *by = digit == 0 ? 1 : -1;
    else
        return false;
    return digit == 0 || digit == (op->opcode == 0xff ? 1 : 5);
}

static unsigned vector_writes(const SoftOp *op)
{
    const VectorRow *row = vector_op_row(op);
    unsigned mask = row->flags & VO_ECX ? 1u << GPR_RCX : 0;

    if (row->flags & VO_REG_GPR)
        mask |= 1u << op->reg;
    if ((row->flags & VO_RM_GPR) && (row->flags & VO_STORE) && !(op->flags & SOFT_OP_MEM))
        mask |= 1u << op->rm;
    return mask;
}

static void lea_values(Values *v, const SoftOp *op)
{
    bool plain = op->size == 8 && op->asize == 8 && op->index == SOFT_REG_NONE &&
                 op->base != SOFT_REG_NONE;

    if (!plain) {
        values_forget(v, 1u << op->reg);
        return;
    }
    v->reg[op->reg] = v->reg[op->base];
    v->reg[op->reg].delta += op->disp;
}

static bool copies_register(const SoftOp *op, const TranslateInfo *info)
{
    return info->emit == translate_mov && op->map == 0 && op->size == 8 &&
           (op->opcode == 0x89 || op->opcode == 0x8b) && !(op->flags & SOFT_OP_MEM);
}

/* After op @i; false if nothing is known of it: nothing may be coalesced across it. */
static bool values_step(Values *v, const Translation *t, unsigned i)
{
    const SoftOp *op = &t->op[i];
    const TranslateInfo *info = &t->info[i];
    int64_t by;

    if (t->helper[i] || !info->emit)
        return false;
    if (adds_constant(op, info, &by))
        v->reg[op->rm].delta += by;
    else if (copies_register(op, info))
        v->reg[op->rm] = v->reg[op->reg];
    else if (info->emit == translate_rm || info->emit == translate_mov)
        values_forget(v, translate_rm_writes(op, info));
    else if (info->emit == translate_vector)
        values_forget(v, vector_writes(op));
    else if (info->emit == translate_lea)
        lea_values(v, op);
    else if (info->emit == translate_push) {
        v->reg[GPR_RSP].delta -= 8;
    } else if (info->emit == translate_pop) {
        values_forget(v, 1u << op->rm);
        v->reg[GPR_RSP].delta += 8;
    } else if (info->emit == translate_leave) {
        v->reg[GPR_RSP] = v->reg[GPR_RBP];
        v->reg[GPR_RSP].delta += 8;
        values_forget(v, 1u << GPR_RBP);
    } else if (info->emit == translate_plain) {
        values_forget(v, 1u << GPR_RAX | 1u << GPR_RDX);
    } else if (info->emit == translate_bswap) {
        values_forget(v, 1u << op->rm);
    } else if (info->emit == translate_call || info->emit == translate_ret) {
        values_forget(v, 1u << GPR_RSP);
    } else if (info->emit != translate_nop && info->emit != translate_jcc &&
               info->emit != translate_jmp) {
        return false;
    }
    return true;
}

bool coalesce_values_hold(const Translation *t, const uint64_t *before, const uint64_t *after)
{
    Values v;

    values_init(&v);
    if (!values_step(&v, t, 0))
        return true;
    for (unsigned r = 0; r < 16; r++)
        if (v.reg[r].number < 16 && after[r] != before[v.reg[r].number] + (uint64_t)v.reg[r].delta)
            return false;
    return true;
}

/* ---- which temporaries an op uses for itself ---- */

static bool in_temps(unsigned n)
{
    return n < 16 && !guest_register_is_host(n);
}

/* Whether op @i leaves TEMP2 alone, checks of its accesses aside. */
static bool keeps_temp2(const Translation *t, unsigned i)
{
    const SoftOp *op = &t->op[i];
    const TranslateInfo *info = &t->info[i];
    bool memory = op->flags & SOFT_OP_MEM;
    TranslateEmit emit = info->emit;

    if (t->helper[i])
        return false;
    if (emit == translate_vector || emit == translate_lea)
        return !in_temps(op->reg) && (memory || !in_temps(op->rm));
    if (emit == translate_push || emit == translate_pop)
        return !memory && !in_temps(op->rm);
    if (emit == translate_nop || emit == translate_jcc || emit == translate_plain)
        return true;
    if (emit != translate_rm && emit != translate_mov)
        return false;
    unsigned reg = op->reg, rm = op->rm;
    if (info->opcode->flags & OPC_REG8) {
        if (reg & 1)
            return false;
        reg >>= 3;
    }
    if ((info->opcode->flags & OPC_RM8) && !memory) {
        if (rm & 1)
            return false;
        rm >>= 3;
    }
    return !in_temps(reg) && (memory || !in_temps(rm)) &&
           !((info->opcode->flags & OPC_VEX) && in_temps(op->vvvv));
}

/* Whether it uses no temporary at all then. */
static bool keeps_temps(const Translation *t, unsigned i)
{
    const SoftOp *op = &t->op[i];

    return keeps_temp2(t, i) && t->info[i].emit != translate_lea && !in_temps(op->base) &&
           !in_temps(op->index);
}

/* ---- finding groups ---- */

void coalesce_record(Translation *t, const TranslateAccess *access)
{
    TranslateAccess *a = &t->access[t->n_accesses++];

    g_assert(t->n_accesses <= TRANSLATE_ACCESSES_MAX);
    *a = *access;
    a->group = -1;
}

static bool mirrored(const Translation *t)
{
    return t->key & TRANSLATE_KEY_MIRROR;
}

typedef struct Key {
    uint16_t base, index;
    uint8_t scale;
} Key;

typedef struct Place {
    Key key;
    int64_t offset;
    unsigned op, segment; /* segments: between ops that nothing is known of */
} Place;

static Place place_of(const Values *v, const TranslateAccess *a, unsigned op, unsigned segment)
{
    Place p = {.key = {VALUE_NONE, VALUE_NONE, 0}, .offset = a->disp, .op = op, .segment = segment};

    if (a->base != SOFT_REG_NONE) {
        p.key.base = v->reg[a->base].number;
        p.offset += v->reg[a->base].delta;
    }
    if (a->index != SOFT_REG_NONE) {
        p.key.index = v->reg[a->index].number;
        p.key.scale = a->scale;
        p.offset += (int64_t)((uint64_t)v->reg[a->index].delta << a->scale);
    }
    return p;
}

/* What one iteration adds to the address; false: nobody knows. */
static bool stride_of(const Values *end, Key key, int64_t *stride)
{
    *stride = 0;
    if (key.base != VALUE_NONE) {
        if (key.base >= 16 || end->reg[key.base].number != key.base)
            return false;
        *stride += end->reg[key.base].delta;
    }
    if (key.index != VALUE_NONE) {
        if (key.index >= 16 || end->reg[key.index].number != key.index)
            return false;
        *stride += (int64_t)((uint64_t)end->reg[key.index].delta << key.scale);
    }
    return true;
}

static bool same_key(const Place *a, const Place *b)
{
    return a->key.base == b->key.base && a->key.index == b->key.index &&
           a->key.scale == b->key.scale && a->segment == b->segment;
}

static bool groupable(const TranslateAccess *a)
{
    return a->simple && a->group < 0 &&
           !(in_temps(a->base) && in_temps(a->index) && a->base != a->index);
}

static int64_t floor_to(int64_t n, int64_t anchor, int64_t align)
{
    return n - (((n - anchor) % align + align) % align);
}

/* Adds to group @g every access that fits; @places are those of all accesses. */
static void group_collect(Translation *t, TranslateGroup *g, int index, const Place *places,
                          int64_t stride)
{
    const Place *leader = &places[g->leader];
    int64_t travel = stride * (int64_t)(t->unrolled - 1), low, high, anchor = 0;

    low = leader->offset;
    high = low;
    for (unsigned i = g->leader; i < t->n_accesses; i++) {
        TranslateAccess *a = &t->access[i];
        int64_t from = places[i].offset, to = from + a->size, l, h;
        if (!groupable(a) || !same_key(&places[i], leader))
            continue;
        if (!mirrored(t) && a->align && (stride % a->align || (g->align && (from - anchor) % a->align)))
            continue;
        l = MIN(low, travel < 0 ? from + travel : from);
        h = MAX(high, travel > 0 ? to + travel : to);
        unsigned align = MAX(g->align, a->align);
        if (align && !mirrored(t))
            l = floor_to(l, a->align ? from : anchor, align);
        if (h - l > (mirrored(t) ? MIRROR_SPAN_MAX : SPAN_MAX) || l != (int32_t)l)
            continue;
        low = l;
        high = h;
        if (a->align && !g->align)
            anchor = from;
        g->align = (uint8_t)align;
        g->access |= a->access;
        g->n++;
        a->group = (int8_t)index;
    }
    g->low = low;
    g->span = (unsigned)(high - low);
}

static void group_drop(Translation *t, int index)
{
    for (unsigned i = 0; i < t->n_accesses; i++)
        if (t->access[i].group == index)
            t->access[i].group = -1;
}

static void groups_find(Translation *t, const Place *places, const Values *end)
{
    for (unsigned i = 0; i < t->n_accesses && t->n_groups < TRANSLATE_GROUPS_MAX; i++) {
        int64_t stride = 0;
        bool head = t->unrolled > 1 && stride_of(end, places[i].key, &stride);
        if (!groupable(&t->access[i]))
            continue;
        if (!head && places[i].key.base == VALUE_NONE && places[i].key.index == VALUE_NONE)
            continue; /* constant addresses have a short check */
        unsigned unrolled = t->unrolled;
        if (!head)
            t->unrolled = 1;
        TranslateGroup *g = &t->group[t->n_groups];
        *g = (TranslateGroup){.leader = (uint8_t)i, .head = head, .held = HOST_NONE,
                              .base = SOFT_REG_NONE, .index = SOFT_REG_NONE,
                              .scale = places[i].key.scale};
        group_collect(t, g, (int)t->n_groups, places, stride);
        t->unrolled = unrolled;
        if (head && places[i].key.base != VALUE_NONE)
            g->base = (uint8_t)places[i].key.base;
        if (head && places[i].key.index != VALUE_NONE)
            g->index = (uint8_t)places[i].key.index;
        if (!head) /* from the leader's own operand */
            g->low -= places[i].offset - t->access[i].disp;
        if (g->n > !head)
            t->n_groups++;
        else
            group_drop(t, (int)t->n_groups);
    }
}

/* The place of each access, and the values after the block. */
static bool places_find(Translation *t, Place *places, Values *v)
{
    unsigned a = 0, segment = 0;

    values_init(v);
    for (unsigned i = 0; i < t->n; i++) {
        Values before = *v;
        bool known = values_step(v, t, i);
        for (; a < t->n_accesses && t->access[a].op == &t->op[i]; a++) {
            places[a] = place_of(&before, &t->access[a], i, segment);
            t->access[a].simple &= known;
        }
        if (!known) {
            values_forget(v, 0xffff);
            segment++;
        }
    }
    return segment == 0;
}

/* ---- loops ---- */

static unsigned unroll_limit(const Translation *t)
{
    unsigned u = UNROLL_MAX, room = TRANSLATE_STUBS_MAX - t->n_stubs;

    while (u > 1 && (u * t->n > EMITTED_OPS_MAX || u * t->n_stubs + TRANSLATE_GROUPS_MAX > room))
        u /= 2;
    return u;
}

static bool any_head(const Translation *t)
{
    for (unsigned g = 0; g < t->n_groups; g++)
        if (t->group[g].head)
            return true;
    return false;
}

static void groups_reset(Translation *t)
{
    t->n_groups = 0;
    for (unsigned i = 0; i < t->n_accesses; i++)
        t->access[i].group = -1;
}

/* Host registers for the addends of head groups, if the iterations do without the temporaries. */
static bool hold_in_registers(Translation *t)
{
    uint8_t free[3] = {TEMP2, TEMP1, TEMP0};
    unsigned n_free = 3;

    for (unsigned i = 0; i < t->n; i++)
        if (!keeps_temps(t, i))
            return false;
    for (unsigned i = 0; i < t->n_accesses; i++) {
        const TranslateAccess *a = &t->access[i];
        if (a->group < 0 || !t->group[a->group].head)
            return false;
        if (a->index != SOFT_REG_NONE || a->base == SOFT_REG_NONE)
            n_free = 2; /* TEMP0 is for their addresses */
    }
    if (t->n_groups > n_free) { /* the others go through TEMP1 */
        free[1] = TEMP0;
        n_free--;
    }
    for (unsigned g = 0; g < t->n_groups && g < n_free; g++)
        t->group[g].held = free[g];
    return t->n_groups <= n_free;
}

bool coalesce_plan(Translation *t)
{
    Place places[TRANSLATE_ACCESSES_MAX];
    Values end;
    unsigned saved = 0;

    t->unrolled = 1;
    t->n_groups = 0;
    if (t->n_accesses == 0)
        return false;
    bool known = places_find(t, places, &end);
    if (t->loop && known) {
        for (t->unrolled = unroll_limit(t); t->unrolled > 1; t->unrolled /= 2) {
            groups_find(t, places, &end);
            if (any_head(t))
                break;
            groups_reset(t);
        }
    }
    if (t->unrolled < 2) {
        t->unrolled = 1;
        groups_find(t, places, &end);
    }
    if (mirrored(t)) { /* without checks: only the iterations are worth while */
        if (t->unrolled > 1 && !hold_in_registers(t))
            groups_reset(t);
        return t->unrolled > 1;
    }
    for (unsigned g = 0; g < t->n_groups; g++)
        saved += t->group[g].n - !t->group[g].head;
    if (saved < 2 && t->unrolled == 1)
        return false;
    if (t->unrolled > 1)
        hold_in_registers(t);
    return true;
}

/* ---- emission ---- */

static EmitOperand slot(const Translation *t, const TranslateGroup *g)
{
    return emit_gs(offsetof(SoftCpu, groups) + (size_t)(g - t->group) * 8);
}

/* Checks the span that starts at the linear address in TEMP0; @to = its addend. */
static void check_span(Translation *t, const TranslateGroup *g, unsigned to, const uint8_t *plain)
{
    Emit *e = &t->e;
    size_t tag = g->access & TRANSLATE_WRITE ? offsetof(SoftTlbEntry, write_tag)
                                             : offsetof(SoftTlbEntry, read_tag);

    code_tlb_entry(e, TEMP0);
    emit_alu(e, ALU_XOR, TEMP0, emit_gs_index(code_tlb_field(t->key, tag), TEMP1, 0));
    emit_alu_imm(e, ALU_CMP, emit_reg(TEMP0), (int32_t)(4096 - g->span));
    emit_jcc_to(e, 7, plain);
    if (g->align) {
        emit_test_imm(e, emit_reg(TEMP0), g->align - 1);
        emit_jcc_to(e, 5, plain);
    }
    emit_load(e, to,
              emit_gs_index(code_tlb_field(t->key, offsetof(SoftTlbEntry, addend)), TEMP1, 0));
}

/* TEMP0 = base + index + disp of guest registers. */
static void address_into_temp0(Translation *t, const TranslateAccess *a, int64_t disp)
{
    SoftOp op = {.base = a->base, .index = a->index, .scale = a->scale, .disp = disp, .asize = 8,
                 .seg = SEG_DS};

    translate_address(t, &op, TEMP0, false);
}

void coalesce_head(Translation *t, const uint8_t *plain)
{
    for (unsigned i = 0; t->unrolled > 1 && i < t->n; i++)
        if (t->info[i].emit == translate_vector)
            translate_vectors(t); /* it takes a temporary */
    for (unsigned i = 0; i < t->n_groups; i++) {
        const TranslateGroup *g = &t->group[i];
        TranslateAccess address = {.base = g->base, .index = g->index, .scale = g->scale};
        if (!g->head)
            continue;
        address_into_temp0(t, &address, g->low);
        if (mirrored(t))
            mirror_delta(t, TEMP0);
        else
            check_span(t, g, TEMP1, plain);
        emit_store(&t->e, slot(t, g), TEMP1);
    }
    for (unsigned i = 0; i < t->n_groups; i++)
        if (t->group[i].held != HOST_NONE)
            emit_load(&t->e, t->group[i].held, slot(t, &t->group[i]));
}

/* The register that has the group's addend now. */
static unsigned addend_of(Translation *t, const TranslateAccess *a)
{
    TranslateGroup *g = &t->group[a->group];
    bool leader = !g->head && a == &t->access[g->leader];
    bool keeps = keeps_temp2(t, t->i) && t->group[0].held == HOST_NONE;
    unsigned to = keeps ? TEMP2 : TEMP1;

    if (g->held != HOST_NONE)
        return g->held;
    if (!leader && keeps && t->held == a->group)
        return TEMP2;
    if (leader) {
        translate_flags_clobber(t);
        address_into_temp0(t, a, g->low);
        check_span(t, g, to, t->cache->rw + a->start);
        emit_store(&t->e, slot(t, g), to);
    } else {
        emit_load(&t->e, to, slot(t, g));
    }
    if (to == TEMP2)
        t->held = a->group;
    return to;
}

bool coalesce_operand(Translation *t, EmitOperand *operand)
{
    const TranslateAccess *a = &t->access[t->next_access++];

    if (a->group < 0)
        return false;
    unsigned addend = addend_of(t, a);
    bool direct = a->index == SOFT_REG_NONE && a->base != SOFT_REG_NONE && !in_temps(a->base);
    if (direct) {
        *operand = emit_mem_index(a->base, addend, 0, (int32_t)a->disp);
    } else {
        address_into_temp0(t, a, a->disp);
        *operand = emit_mem_index(TEMP0, addend, 0, 0);
    }
    return true;
}

void coalesce_after(Translation *t)
{
    if (!keeps_temp2(t, t->i))
        t->held = -1;
}
