/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Makes random encodings of an opcode and states worth executing them on: edge values, and
 * memory operands near the ends of pages with different rights.
 */
#include "diff.h"

static uint64_t random_state = 1;

void diff_random_seed(uint64_t seed)
{
    random_state = seed * 0x9e3779b97f4a7c15u + 0x1234567;
    if (!random_state)
        random_state = 1;
}

/* xorshift64* */
uint64_t diff_random(void)
{
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return random_state * 0x2545f4914f6cdd1du;
}

static uint64_t edge_value(void)
{
    static const uint64_t edges[] = {
        0, 1, 2, 0x7f, 0x80, 0xff, 0x100, 0x7fff, 0x8000, 0xffff, 0x7fffffff, 0x80000000,
        0xffffffff, 0x100000000, 0x7fffffffffffffff, 0x8000000000000000, 0xffffffffffffffff,
        0xfffffffffffffffe, 0xffffffffffffff80, 0xffffffff80000000, 0x5555555555555555,
    };
    switch (diff_below(8)) {
    case 0:
    case 1:
        return diff_random();
    case 2:
        return diff_below(66);
    case 3:
        return (uint64_t)(int64_t)(int32_t)diff_random();
    case 4:
        return diff_address();
    case 5:
        return 1ull << diff_below(64);
    default:
        return edges[diff_below(G_N_ELEMENTS(edges))];
    }
}

uint64_t diff_address(void)
{
    uint64_t page = DIFF_BASE + 4096 * (1 + diff_below(10));
    if (diff_chance(2))
        return diff_random();
    if (diff_chance(40))
        return page + diff_below(4096);
    if (diff_chance(60))
        return page + (diff_below(8) * 16) - 64;
    return page + diff_below(160) - 80;
}

/* ---- vectors and x87 ------------------------------------------------------------------------- */

static uint32_t edge_single(void)
{
    static const uint32_t edges[] = {0, 0x80000000, 0x3f800000, 0xbf800000, 0x7f800000, 0xff800000,
                                     0x7fc00000, 0x7f800001, 0xffbfffff, 1, 0x807fffff, 0x00800000,
                                     0x7f7fffff, 0x4f000000, 0xcf000000, 0x4effffff, 0x5f000000};
    uint32_t r = (uint32_t)diff_random();
    if (diff_chance(40))
        return edges[diff_below(G_N_ELEMENTS(edges))];
    return diff_chance(50) ? (r & 0x80ffffff) | 0x3f000000 : r;
}

static uint64_t edge_double(void)
{
    static const uint64_t edges[] = {
        0, 0x8000000000000000, 0x3ff0000000000000, 0xbff0000000000000, 0x7ff0000000000000,
        0xfff0000000000000, 0x7ff8000000000000, 0x7ff0000000000001, 1, 0x800fffffffffffff,
        0x0010000000000000, 0x7fefffffffffffff, 0x43e0000000000000, 0x41dfffffffc00000,
        0xc1e0000000000000, 0x3810000000000000, 0x47f0000000000000, 0x36a0000000000000};
    uint64_t r = diff_random();
    if (diff_chance(40))
        return edges[diff_below(G_N_ELEMENTS(edges))];
    return diff_chance(50) ? (r & 0x803fffffffffffff) | 0x3fc0000000000000 : r;
}

/* Fills @n bytes, a multiple of 8. */
static void random_vector(uint8_t *to, unsigned n)
{
    unsigned kind = (unsigned)diff_below(8);
    for (unsigned i = 0; i < n; i += 8) {
        uint64_t v;
        switch (kind) {
        case 0:
            v = 0;
            break;
        case 1:
        case 2:
            v = edge_single() | (uint64_t)edge_single() << 32;
            break;
        case 3:
        case 4:
            v = edge_double();
            break;
        case 5:
            v = diff_below(100) | diff_below(100) << 32;
            break;
        case 6:
            v = diff_random() & 0x8080808080808080;
            v = (v >> 7) * 0xff;
            break;
        default:
            v = diff_random();
        }
        memcpy(to + i, &v, 8);
    }
}

static void random_x87_register(uint8_t *st)
{
    static const uint16_t exponents[] = {0, 0x7fff, 0x3fff, 1, 0x7ffe, 0x3fff + 62, 0x3fff + 63,
                                         0x3fff - 64, 0x3fff + 30, 0x3fff + 14};
    static const uint64_t mantissas[] = {0, 0x8000000000000000, 0xc000000000000000,
                                         0xffffffffffffffff, 0x8000000000000001, 1,
                                         0x4000000000000000};
    uint64_t m = diff_chance(50) ? mantissas[diff_below(G_N_ELEMENTS(mantissas))] : diff_random();
    uint16_t e = diff_chance(50) ? exponents[diff_below(G_N_ELEMENTS(exponents))]
                                 : (uint16_t)(0x3fc0 + diff_below(0x80));
    if (diff_chance(60))
        m |= 1ull << 63;
    if (diff_chance(50))
        e |= 0x8000;
    memset(st, 0, 16);
    memcpy(st, &m, 8);
    memcpy(st + 8, &e, 2);
}

static void random_x87(uint8_t *fx, bool pending)
{
    uint16_t fcw = 0x37f, fsw;
    if (diff_chance(50))
        fcw = (uint16_t)(0x40 | (diff_below(4) << 8) | (diff_below(4) << 10) | 0x3f);
    if (diff_chance(15))
        fcw &= (uint16_t)~diff_below(0x40);
    fsw = (uint16_t)((diff_random() & 0x7f00) | (diff_chance(20) ? diff_below(0x80) : 0));
    if (!pending)
        fsw &= (uint16_t)~(~fcw & 0x3f);
    if (fsw & ~fcw & 0x3f)
        fsw |= 0x8080;
    memset(fx, 0, FX_MXCSR);
    memcpy(fx + FX_FCW, &fcw, 2);
    memcpy(fx + FX_FSW, &fsw, 2);
    fx[FX_FTW] = (uint8_t)(diff_chance(60) ? 0xff : diff_random());
    for (unsigned i = 0; i < 8; i++)
        random_x87_register(fx + FX_ST + i * 16);
}

static void random_state_fill(DiffState *s, bool floating)
{
    uint32_t mxcsr = 0x1f80, mask = SOFT_MXCSR_MASK;
    memset(s, 0, sizeof(*s));
    for (unsigned i = 0; i < 16; i++)
        s->gpr[i] = edge_value();
    if (diff_chance(90))
        s->gpr[GPR_RSP] = diff_chance(70) ? diff_address() & ~7ull : diff_address();
    s->rip = DIFF_CODE + 0x800 + diff_below(1024);
    s->rflags = 0x202 | (diff_random() & (FLAG_ARITH | FLAG_DF));
    if (!floating && diff_chance(2)) /* vendors differ in #AC of vector operands */
        s->rflags |= FLAG_AC;
    if (floating || diff_chance(5)) {
        random_x87(s->fx, diff_chance(10));
        if (diff_chance(40))
            mxcsr = (uint32_t)diff_random() & (diff_chance(60) ? 0xe07f : 0xffff);
        if (diff_chance(70))
            mxcsr |= 0x1f80;
        for (unsigned i = 0; i < 16; i++) {
            random_vector(s->fx + FX_XMM + i * 16, 16);
            random_vector(s->high[i], 16);
        }
    } else {
        s->fx[FX_FCW] = 0x7f;
        s->fx[FX_FCW + 1] = 3;
    }
    memcpy(s->fx + FX_MXCSR, &mxcsr, 4);
    memcpy(s->fx + FX_MXCSR_MASK, &mask, 4);
}

/* ---- encodings -------------------------------------------------------------------------------- */

typedef struct Encoder {
    DiffCase *c;
    unsigned rex; /* 0x40 | WRXB */
    bool use_rex, address32, gs;
    unsigned opsize66;
    uint8_t modrm, sib, displacement_size;
    int32_t displacement;
    bool has_modrm, has_sib, rip_relative;
    unsigned immediate_size;
    bool code32;
    bool fixed;     /* part of a sequence: registers stay as they are */
} Encoder;

static void put(Encoder *e, unsigned byte)
{
    if (e->c->length < sizeof(e->c->bytes))
        e->c->bytes[e->c->length++] = (uint8_t)byte;
}

static uint64_t linear_base(const Encoder *e)
{
    return e->gs ? DIFF_GS_BASE : 0;
}

/*
 * In sequences many operands share a base that points near the end of a page, so that checks of several accesses
 * may be one: [base + disp], or [base + R10 + disp]. If an instruction before this one has changed them, the operand
 * is somewhere else, or nowhere.
 */
static const uint8_t sequence_bases[] = {3, 5, 6, 7, 9, 11, 12, 13, 15};
#define SEQUENCE_INDEX 10u

static bool sequence_operand(Encoder *e, unsigned reg, bool vsib)
{
    unsigned high = e->use_rex && (e->rex & 1) ? 8 : 0, n = 0, bases[sizeof(sequence_bases)];
    bool r10 = e->use_rex && (e->rex & 2);
    if (e->code32 || e->gs || e->address32 || vsib || diff_chance(35))
        return false;
    for (unsigned i = 0; i < sizeof(sequence_bases); i++)
        if ((sequence_bases[i] & 8u) == high)
            bases[n++] = sequence_bases[i];
    unsigned base = bases[diff_below(n)] & 7;
    bool index = r10 && diff_chance(40), wide = diff_chance(30);
    e->has_modrm = true;
    e->has_sib = index || base == 4;
    e->modrm = (uint8_t)((wide ? 2 : 1) << 6 | (reg & 7) << 3 | (e->has_sib ? 4 : base));
    /* With REX.X there is an index whenever there is a SIB byte. */
    e->sib = (uint8_t)(diff_below(4) << 6 | (r10 ? SEQUENCE_INDEX & 7 : 4) << 3 | base);
    e->displacement_size = wide ? 4 : 1;
    e->displacement = wide ? (int32_t)diff_below(320) - 160 : (int8_t)diff_random();
    if (diff_chance(60))
        e->displacement &= ~15;
    return true;
}

/* Chooses base, index and displacement so that the operand is at @target. */
static void memory_operand(Encoder *e, unsigned reg, uint64_t target, bool vsib)
{
    DiffState *s = &e->c->in;
    bool wide = !e->code32;
    uint64_t offset = target - linear_base(e);
    unsigned mod = (unsigned)diff_below(3), rm = (unsigned)diff_below(8);
    if (vsib)
        rm = 4;
    if (e->fixed && sequence_operand(e, reg, vsib))
        return;
    if (e->fixed) { /* RIP relative */
        mod = 0;
        rm = 5;
    }
    e->has_modrm = true;
    e->displacement = mod == 1 ? (int8_t)diff_random() : (int32_t)diff_random();
    if (mod == 2 && diff_chance(50))
        e->displacement = (int32_t)diff_below(0x1000) - 0x800;
    e->displacement_size = mod == 0 ? 0 : mod == 1 ? 1 : 4;
    if (mod == 0)
        e->displacement = 0;
    unsigned base = rm | (e->use_rex && (e->rex & 1) ? 8u : 0), index = 4, scale = 0;
    bool has_base = true;
    if (rm == 4) {
        e->has_sib = true;
        unsigned b = (unsigned)diff_below(8);
        unsigned x = (unsigned)diff_below(8);
        scale = (unsigned)diff_below(4);
        e->sib = (uint8_t)(scale << 6 | x << 3 | b);
        base = b | (e->use_rex && (e->rex & 1) ? 8u : 0);
        index = x | (e->use_rex && (e->rex & 2) ? 8u : 0);
        if (b == 5 && mod == 0) {
            has_base = false;
            e->displacement_size = 4;
        }
    } else if (rm == 5 && mod == 0) {
        has_base = false;
        e->displacement_size = 4;
        e->rip_relative = wide;
    }
    e->modrm = (uint8_t)(mod << 6 | (reg & 7) << 3 | rm);
    bool has_index = rm == 4 && index != 4 && !vsib;
    if (has_base && has_index && base == index) {
        s->gpr[base] = (offset - (uint64_t)e->displacement) / ((1u << scale) + 1);
    } else if (has_base) {
        uint64_t sum = (uint64_t)e->displacement;
        if (has_index)
            sum += s->gpr[index] << scale;
        s->gpr[base] = offset - sum;
    } else if (has_index) {
        e->displacement = (int32_t)((uint32_t)offset - (uint32_t)(diff_below(64) << scale));
        s->gpr[index] = (offset - (uint64_t)(int64_t)e->displacement) >> scale;
    } else {
        e->displacement = (int32_t)offset; /* RIP relative: corrected when the length is known */
    }
}

static void finish(Encoder *e)
{
    DiffCase *c = e->c;
    if (e->has_modrm)
        put(e, e->modrm);
    if (e->has_sib)
        put(e, e->sib);
    if (e->rip_relative)
        e->displacement -= (int32_t)(c->in.rip + c->length + 4 + e->immediate_size);
    for (unsigned i = 0; i < e->displacement_size; i++)
        put(e, (uint32_t)e->displacement >> (8 * i));
    for (unsigned i = 0; i < e->immediate_size; i++)
        put(e, diff_chance(30) ? (diff_chance(50) ? 0xff : 0) : (unsigned)diff_random());
    if (c->length > 15 && !e->fixed)
        c->length = 15;
}

static void prefixes(Encoder *e, bool vex)
{
    if (!e->code32 && diff_chance(8)) {
        e->gs = true;
        put(e, 0x65);
    } else if (diff_chance(3)) {
        static const uint8_t ignored[] = {0x2e, 0x36, 0x3e, 0x26};
        put(e, ignored[diff_below(4)]);
    }
    if (!e->code32 && diff_chance(8)) {
        e->address32 = true;
        put(e, 0x67);
    }
    if (diff_chance(vex ? 1 : 2))
        put(e, 0xf0);
}

static void random_rex(Encoder *e, unsigned percent)
{
    e->use_rex = !e->code32 && diff_chance(percent);
    e->rex = 0x40 | (unsigned)diff_below(16);
}

static void put_rex(Encoder *e)
{
    if (e->use_rex)
        put(e, e->rex);
}

static void put_escape(Encoder *e, unsigned map)
{
    if (map)
        put(e, 0x0f);
    if (map >= 2)
        put(e, map == 2 ? 0x38 : 0x3a);
}

static void put_mandatory(Encoder *e, unsigned prefix)
{
    static const uint8_t bytes[] = {0, 0x66, 0xf3, 0xf2};
    if (prefix)
        put(e, bytes[prefix]);
}

/* A VEX prefix from e->rex (WRXB). */
static void put_vex(Encoder *e, unsigned map, unsigned pp, unsigned vvvv, bool l)
{
    bool r = e->rex & 4, x = e->rex & 2, b = e->rex & 1, w = e->rex & 8;
    if (map == 1 && !w && !x && !b && diff_chance(50)) {
        put(e, 0xc5);
        put(e, (r ? 0 : 0x80) | (~vvvv & 15) << 3 | (l ? 4 : 0) | pp);
        return;
    }
    put(e, 0xc4);
    put(e, (r ? 0 : 0x80) | (x ? 0 : 0x40) | (b ? 0 : 0x20) | map);
    put(e, (w ? 0x80 : 0) | (~vvvv & 15) << 3 | (l ? 4 : 0) | pp);
}

static void register_operand(Encoder *e, unsigned reg)
{
    e->has_modrm = true;
    e->modrm = (uint8_t)(0xc0 | (reg & 7) << 3 | diff_below(8));
}

/* ---- integer rows ----------------------------------------------------------------------------- */

static unsigned immediate_bytes(const SoftOpcode *o, bool size16, bool w, bool address32, bool code32)
{
    switch (o->imm) {
    case IMM_B:
    case IMM_BU:
    case IMM_JB:
        return 1;
    case IMM_W:
        return 2;
    case IMM_Z:
        return size16 && !w ? 2 : 4;
    case IMM_JZ:
        return code32 && size16 ? 2 : 4;
    case IMM_V:
        return w ? 8 : size16 ? 2 : 4;
    case IMM_MOFFS:
        return address32 ? 4 : 8;
    case IMM_FAR:
        return 6;
    case IMM_ENTER:
        return 3;
    default:
        return 0;
    }
}

/* Registers that an opcode uses implicitly get values that lead somewhere. */
static void integer_state(Encoder *e, const SoftOpcode *o)
{
    DiffState *s = &e->c->in;
    if (e->fixed)
        return;
    if ((o->flags & OPC_STRING) || diff_chance(20)) {
        uint64_t base = linear_base(e);
        s->gpr[GPR_RSI] = diff_address() - base;
        s->gpr[GPR_RDI] = diff_address();
        if (o->flags & OPC_STRING) {
            s->gpr[GPR_RCX] = diff_below(12);
            if (e->address32 && diff_chance(30))
                s->gpr[GPR_RCX] |= diff_random() << 32;
        }
    }
    if (o->flags & OPC_STACK)
        s->gpr[GPR_RBP] = diff_chance(70) ? diff_address() & ~7ull : s->gpr[GPR_RBP];
    if (o->map == 0 && o->opcode == 0xd7) /* XLAT */
        s->gpr[GPR_RBX] = diff_address() - linear_base(e) - (uint8_t)s->gpr[GPR_RAX];
    /* BT and its kin address memory by bit number: mostly near. */
    if (o->map == 1 && (o->opcode & 0xe7) == 0xa3 && diff_chance(70))
        for (unsigned i = 0; i < 16; i++)
            s->gpr[i] = (uint64_t)((int64_t)diff_below(4096) - 2048);
    /* Divisions should mostly succeed. */
    if (o->map == 0 && (o->opcode & 0xfe) == 0xf6 && o->digit >= 6 && diff_chance(70))
        s->gpr[GPR_RDX] = diff_chance(50) ? 0 : diff_below(16);
}

static void generate_integer(Encoder *e, const SoftOpcode *o)
{
    DiffCase *c = e->c;
    bool size16 = false, vex = o->flags & OPC_VEX, memory;
    bool no66 = o->map == 0 && o->opcode == 0x63; /* of MOVSXD: vendors differ in the width */
    unsigned opcode = o->opcode, reg = (unsigned)diff_below(8);
    if (o->flags & OPC_OREG)
        opcode |= (unsigned)diff_below(8);
    if (o->flags & OPC_CC)
        opcode |= (unsigned)diff_below(16);
    if (o->digit >= 0)
        reg = (unsigned)o->digit;
    prefixes(e, vex);
    if (!vex && (o->flags & OPC_LOCK) && diff_chance(15))
        put(e, 0xf0);
    if (vex) {
        random_rex(e, 100);
        if (e->code32)
            e->rex &= 8;
        put_vex(e, o->map, (unsigned)MAX(o->prefix, 0),
                (o->flags & OPC_VVVV) ? (unsigned)diff_below(e->code32 ? 8 : 16) : diff_chance(2) ? 3 : 0,
                diff_chance(2));
    } else {
        bool wants66 = !no66 && diff_chance(25);
        if (o->prefix >= 0) {
            if (o->prefix != 1 && wants66 && diff_chance(30)) {
                put(e, 0x66);
                size16 = true;
            }
            put_mandatory(e, (unsigned)o->prefix);
            size16 |= o->prefix == 1;
        } else {
            if (wants66) {
                put(e, 0x66);
                size16 = true;
            }
            if ((o->flags & OPC_STRING) && diff_chance(60)) {
                put(e, diff_chance(50) ? 0xf3 : 0xf2);
                c->repeats = true;
            } else if (o->prefix == PREFIX_ANY && (opcode & 0xfc) != 0xe0 && diff_chance(3)) {
                put(e, diff_chance(50) ? 0xf3 : 0xf2);
                c->repeats = o->flags & OPC_STRING;
            }
        }
        random_rex(e, 50);
        put_rex(e);
        put_escape(e, o->map);
    }
    put(e, opcode);
    bool w = e->use_rex && (e->rex & 8);
    e->immediate_size = immediate_bytes(o, size16, w, e->address32 || e->code32, e->code32);
    integer_state(e, o);
    if (o->modrm >= 0) {
        e->has_modrm = true;
        e->modrm = (uint8_t)o->modrm;
    } else if (o->flags & OPC_MODRM) {
        memory = (o->flags & OPC_MEM) || (!(o->flags & OPC_REG) && diff_chance(60));
        if (o->map != 1 || o->opcode != 0xae) /* those rows' other forms save state */
            memory ^= diff_chance(1);
        if (memory)
            memory_operand(e, reg, diff_address(), false);
        else
            register_operand(e, reg);
    }
    finish(e);
    /* In sequences somebody may read OF, which rotations by more than one place leave undefined. */
    if (e->fixed && o->map == 0 && (opcode & 0xfe) == 0xc0 && ((e->modrm >> 3) & 7) < 4)
        c->bytes[c->length - 1] = (uint8_t)((c->bytes[c->length - 1] & 0xc0) | 1);
    if (o->imm == IMM_MOFFS) {
        uint64_t a = diff_address() - linear_base(e);
        memcpy(c->bytes + c->length - e->immediate_size, &a, e->immediate_size);
    }
}

/* ---- vector rows ------------------------------------------------------------------------------ */

static void gather_state(Encoder *e, unsigned index)
{
    DiffState *s = &e->c->in;
    int32_t v[8];
    for (unsigned i = 0; i < 8; i++)
        v[i] = (int32_t)diff_below(256) - 128;
    if (diff_chance(50))
        for (unsigned i = 1; i < 8; i += 2) /* as 64-bit indices */
            v[i] = v[i - 1] >> 31;
    memcpy(s->fx + FX_XMM + index * 16, v, 16);
    memcpy(s->high[index], v + 4, 16);
}

static void generate_vector(Encoder *e, const DiffRow *row)
{
    const VectorRow *v = row->vector;
    bool no_modrm = v->map == 1 && v->opcode == 0x77;
    unsigned reg = (unsigned)diff_below(8);
    if (v->digit >= 0)
        reg = (unsigned)v->digit;
    bool memory = !(v->flags & VO_REG) && ((v->flags & VO_MEM) || diff_chance(50));
    if (v->map == 3 && v->opcode == 0x1d) /* VCVTPS2PH ignores flush-to-zero: see fp_run_unmasked */
        e->c->in.fx[FX_MXCSR + 1] |= 8;
    prefixes(e, row->vex);
    random_rex(e, row->vex ? 100 : 50);
    if (row->vex) {
        bool uses = (v->flags & (VO_NDS | VO_NDD)) || ((v->flags & VO_NDS_REG) && !memory);
        unsigned vvvv = uses ? (unsigned)diff_below(e->code32 ? 8 : 16) : diff_chance(1) ? 5 : 0;
        if (e->code32)
            e->rex &= 8;
        if (((v->flags & VO_W0) && diff_chance(98)) || (e->code32 && (v->flags & VO_RM_GPR)))
            e->rex &= ~8u;
        if (v->flags & VO_W1) /* AMD accepts W0 of some */
            e->rex |= 8;
        e->use_rex = true;
        put_vex(e, v->map, v->prefix, vvvv, row->l);
    } else {
        put_mandatory(e, v->prefix);
        put_rex(e);
        put_escape(e, v->map);
    }
    put(e, v->opcode);
    e->immediate_size = (v->flags & VO_IMM) != 0;
    if (v->opcode == 0xf7 && v->map == 1) {
        e->c->in.gpr[GPR_RDI] = diff_address() - linear_base(e);
        memory = false;
    }
    if (no_modrm) {
        finish(e);
        return;
    }
    if (memory) {
        uint64_t target = diff_address();
        if (diff_chance(60))
            target &= ~(uint64_t)(row->l ? 31 : 15);
        memory_operand(e, reg, target, v->flags & VO_VSIB);
        e->c->repeats = v->flags & VO_VSIB; /* a trap may come between two elements */
        if (v->flags & VO_VSIB)
            gather_state(e, (e->sib >> 3 & 7) | (e->rex & 2 ? 8u : 0));
    } else {
        register_operand(e, reg);
    }
    finish(e);
}

/* ---- x87 and state saving ------------------------------------------------------------------------- */

static void generate_x87(Encoder *e, const DiffRow *row)
{
    prefixes(e, false);
    if (diff_chance(10))
        put(e, 0x66);
    random_rex(e, 20);
    put_rex(e);
    put(e, row->opcode);
    if (row->kind == DIFF_X87_MEMORY) {
        memory_operand(e, row->modrm >> 3, diff_address(), false);
    } else if (row->opcode != 0x9b) {
        e->has_modrm = true;
        e->modrm = row->modrm;
    }
    finish(e);
}

/* Makes the bytes at @at a plausible FXSAVE or XSAVE area, in both memories. */
static void plausible_area(uint64_t at, bool header)
{
    DiffState s;
    uint64_t words[8] = {diff_below(8)};
    random_state_fill(&s, true);
    if (diff_chance(5)) {
        uint32_t bad = (uint32_t)diff_random();
        memcpy(s.fx + FX_MXCSR, &bad, 4);
    }
    diff_memory_write(at, s.fx, 416);
    if (!header)
        return;
    if (soft_features.xsavec && diff_chance(40)) {
        words[1] = 1ull << 63 | diff_below(8);
        if (diff_chance(80))
            words[0] &= words[1];
    }
    if (diff_chance(10))
        words[diff_below(8)] ^= diff_chance(50) ? 1ull << diff_below(3) : 1ull << (8 + diff_below(55));
    diff_memory_write(at + 512, words, sizeof(words));
    diff_memory_write(at + 576, s.high, sizeof(s.high));
}

static void generate_state(Encoder *e, const DiffRow *row)
{
    unsigned digit = row->modrm >> 3;
    bool extended = row->opcode == 0xc7 || digit >= 4, small = digit == 2 || digit == 3;
    uint64_t target = diff_address();
    prefixes(e, row->vex);
    random_rex(e, row->vex ? 100 : 50);
    if (row->vex) {
        if (e->code32)
            e->rex &= 8;
        put_vex(e, 1, 0, diff_chance(2) ? 1 : 0, diff_chance(2));
        e->use_rex = true;
    } else {
        put_rex(e);
        put_escape(e, 1);
    }
    put(e, row->opcode);
    if (!small && diff_chance(95))
        target &= ~63ull;
    if (!small && diff_chance(60)) /* where it fits */
        target = DIFF_BASE + 0x1000 * (diff_chance(50) ? 5u : 8u) + 64 * diff_below(48);
    if ((digit == 5 || digit == 1 || (digit == 4 && diff_chance(50))) && row->opcode == 0xae)
        plausible_area(target, extended);
    if (small && diff_chance(80)) {
        uint32_t mxcsr = (uint32_t)diff_random() & 0xffff;
        diff_memory_write(target, &mxcsr, 4);
    }
    memory_operand(e, digit, target, false);
    if (extended) { /* the host has more state components than the guest */
        unsigned used = e->modrm & 7;
        if (used != 4 && used != 0 && used != 2) {
            e->c->in.gpr[GPR_RAX] = (e->c->in.gpr[GPR_RAX] & ~0xffffffffull) | diff_below(8);
        } else {
            e->has_sib = e->rip_relative = false;
            e->modrm = (uint8_t)(0x80 | digit << 3 | 3);
            e->displacement_size = 4;
            e->displacement = (int32_t)diff_below(256);
            unsigned base = 3 | (e->use_rex && (e->rex & 1) ? 8u : 0);
            e->c->in.gpr[base] = target - linear_base(e) - (uint64_t)e->displacement;
            e->c->in.gpr[GPR_RAX] = diff_below(8);
        }
        e->c->in.gpr[GPR_RAX] &= ~0xfffffff8ull;
    }
    finish(e);
}

/* Whether @row may stand in a sequence. */
static bool fits_sequence(const DiffRow *row)
{
    const SoftOpcode *o = row->integer;
    switch (row->kind) {
    case DIFF_INTEGER:
        if (o->flags & OPC_CC)
            return !(o->flags & OPC_NO64);
        /* What processors do each in their way with odd prefixes, or first. */
        if ((o->map == 0 && o->opcode == 0x90) || !strncmp(row->name, "cmps", 4) ||
            !strncmp(row->name, "prefetch", 8))
            return false;
        return !(o->flags & (OPC_BRANCH | OPC_END | OPC_NO64)) && strncmp(row->name, "ud", 2) != 0 &&
               o->imm != IMM_ENTER;
    case DIFF_VECTOR: /* gathers and MASKMOVDQU: their faults differ */
        return !(row->vector->flags & VO_VSIB) && !(row->map == 1 && row->opcode == 0xf7);
    case DIFF_X87_MEMORY: /* not those that store the last instruction's address */
        return (row->opcode != 0xd9 && row->opcode != 0xdd) || row->modrm >> 3 < 4;
    case DIFF_X87_REGISTER:
        return true;
    default:
        return false;
    }
}

static unsigned sequence_part(DiffCase *c, const DiffRow *row)
{
    Encoder e = {.c = c, .fixed = true};
    if (row->kind == DIFF_INTEGER)
        generate_integer(&e, row->integer);
    else if (row->kind == DIFF_VECTOR)
        generate_vector(&e, row);
    else
        generate_x87(&e, row);
    c->repeats = false;
    return row->integer && (row->integer->imm == IMM_JB || row->integer->imm == IMM_JZ) ? e.immediate_size : 0;
}

#define SEQUENCE_PARTS 16u

/* movabs: makes a base point near a page's end again. */
static void sequence_base(DiffCase *c)
{
    unsigned base = sequence_bases[diff_below(sizeof(sequence_bases))];
    uint64_t at = diff_address();
    if (diff_chance(30))
        at &= ~(uint64_t)31;
    c->bytes[c->length++] = (uint8_t)(0x48 | base >> 3);
    c->bytes[c->length++] = (uint8_t)(0xb8 | (base & 7));
    memcpy(c->bytes + c->length, &at, 8);
    c->length += 8;
}

/* A conditional jump of a sequence: where its displacement ends, and the part after it. */
typedef struct SequenceJump {
    unsigned end, size, next;
} SequenceJump;

/* Each goes to the beginning of some later part, or to the end. */
static void sequence_jumps(DiffCase *c, const SequenceJump *jump, unsigned n, const unsigned *part, unsigned parts)
{
    for (unsigned i = 0; i < n; i++) {
        unsigned to = jump[i].next + (unsigned)diff_below(MIN(parts + 1 - jump[i].next, 4));
        int32_t distance = (int32_t)(part[to] - jump[i].end);
        if (distance > 127)
            distance = 0;
        memcpy(c->bytes + jump[i].end - jump[i].size, &distance, jump[i].size);
    }
}

static void generate_sequence(DiffCase *c)
{
    unsigned parts = 2 + (unsigned)diff_below(SEQUENCE_PARTS - 3), n = 0, jumps = 0;
    unsigned part[SEQUENCE_PARTS];
    SequenceJump jump[SEQUENCE_PARTS];
    c->in.gpr[GPR_RSP] = DIFF_BASE + 0x2000 + 8 * diff_below(64) - 256;
    for (unsigned i = 0; i < sizeof(sequence_bases); i++)
        c->in.gpr[sequence_bases[i]] = diff_address();
    c->in.gpr[SEQUENCE_INDEX] = diff_chance(70) ? diff_below(16) : 8 * diff_below(8) - 32;
    c->in.gpr[GPR_RCX] = diff_below(12);
    while (n < parts && c->length < sizeof(c->bytes) - 32) {
        const DiffRow *row = &diff_rows[diff_below(diff_row_count)];
        part[n] = c->length;
        if (diff_chance(12)) {
            sequence_base(c);
            n++;
            continue;
        }
        if (!fits_sequence(row))
            continue;
        unsigned size = sequence_part(c, row);
        n++;
        if (size)
            jump[jumps++] = (SequenceJump){c->length, size, n};
    }
    part[n] = c->length;
    sequence_jumps(c, jump, jumps, part, n);
    c->bytes[c->length++] = 0x0f; /* ud2 */
    c->bytes[c->length++] = 0x0b;
}

/* In compatibility mode the upper halves are not seen, and undefined after it. */
static void narrow_registers(DiffState *s)
{
    for (unsigned i = 0; i < 16; i++)
        s->gpr[i] = i < 8 ? (uint32_t)s->gpr[i] : 0;
}

void diff_generate(DiffCase *c, DiffRow *row, bool code32)
{
    Encoder e = {.c = c, .code32 = code32};
    memset(c, 0, sizeof(*c));
    c->row = row;
    c->code32 = code32;
    random_state_fill(&c->in, row->kind != DIFF_INTEGER);
    if (code32)
        narrow_registers(&c->in);
    switch (row->kind) {
    case DIFF_INTEGER:
        generate_integer(&e, row->integer);
        break;
    case DIFF_VECTOR:
        generate_vector(&e, row);
        break;
    case DIFF_X87_MEMORY:
    case DIFF_X87_REGISTER:
        generate_x87(&e, row);
        break;
    case DIFF_STATE:
        generate_state(&e, row);
        break;
    case DIFF_SEQUENCE:
        if (row->loop)
            diff_generate_loop(c);
        else
            generate_sequence(c);
        break;
    }
    if (code32)
        narrow_registers(&c->in);
}
