/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The decoder: prefixes, opcode map, ModRM and immediate (SDM vol. 2 chapter 2), driven by the
 * rows of opcode-table.h. Whatever has no row there is offered to the vector decoder.
 */
#include <cpuid.h>
#include <pthread.h>

#include "vcpu/soft/integer.h"

#define LENGTH_MAX 15 /* SDM vol. 2 2.3.11: longer is #GP */

/* ---- the rows by opcode ---- */

static const SoftOpcodeGroup *const groups[] = {
    &soft_misc_opcodes, /* has rows for 90 that come before exchange's */
    &soft_alu_opcodes,      &soft_shift_opcodes, &soft_multiply_opcodes, &soft_bit_opcodes,
    &soft_bmi_opcodes,      &soft_move_opcodes,  &soft_push_opcodes,     &soft_string_opcodes,
    &soft_exchange_opcodes, &soft_branch_opcodes, &soft_system_opcodes,
};
#define N_GROUPS (sizeof(groups) / sizeof(groups[0]))

const SoftOpcodeGroup *soft_opcode_group(unsigned index)
{
    return index < N_GROUPS ? groups[index] : NULL;
}

/*
 * A chain of rows for each opcode: a cell names a row (group and row number) and the next
 * cell. Rows that cover 8 or 16 opcodes have as many cells. Cell 0 ends a chain.
 */
#define CELLS_MAX 2048

typedef struct Cell {
    const SoftOpcode *row;
    uint16_t next;
} Cell;

static Cell cells[CELLS_MAX];
static uint16_t n_cells = 1;
static uint16_t chains[2][4][256]; /* by VEX, map, opcode */
static bool host_is_amd;
static pthread_once_t table_once = PTHREAD_ONCE_INIT;

static void table_add(const SoftOpcode *row)
{
    unsigned span = row->flags & OPC_OREG ? 8 : row->flags & OPC_CC ? 16 : 1;

    for (unsigned i = 0; i < span; i++) {
        uint16_t *at = &chains[(row->flags & OPC_VEX) != 0][row->map][row->opcode + i];
        while (*at)
            at = &cells[*at].next;
        g_assert(n_cells < CELLS_MAX);
        cells[n_cells].row = row;
        *at = n_cells++;
    }
}

static void table_build(void)
{
    unsigned eax, ebx, ecx, edx;

    for (unsigned g = 0; g < N_GROUPS; g++) {
        for (unsigned i = 0; i < groups[g]->n_rows; i++)
            table_add(&groups[g]->rows[i]);
    }
    if (__get_cpuid(0, &eax, &ebx, &ecx, &edx))
        host_is_amd = ebx == signature_AMD_ebx || ebx == 0x6f677948; /* "Auth", "Hygo" */
}

/* ---- the bytes ---- */

typedef struct Decoder {
    SoftCpu *cpu;
    const uint8_t *bytes;
    unsigned available, at;
    bool starved; /* wanted a byte beyond what is available */
    uint32_t mode;
    SoftOp *op;
    const SoftOpcode *row;
    bool operand66, lock, vex, vex_l, rip_relative, code64;
    uint8_t rex;          /* W R X B in bits 3-0; VEX gives the same */
    int segment;          /* override or -1 */
    unsigned opcode;
} Decoder;

static uint8_t take8(Decoder *d)
{
    if (d->at >= d->available) {
        d->starved = true;
        return 0;
    }
    return d->bytes[d->at++];
}

static uint64_t take(Decoder *d, unsigned n)
{
    uint64_t v = 0;

    for (unsigned i = 0; i < n; i++)
        v |= (uint64_t)take8(d) << (8 * i);
    return v;
}

static int64_t take_signed(Decoder *d, unsigned n)
{
    unsigned shift = 64 - 8 * n;

    return (int64_t)(take(d, n) << shift) >> shift;
}

/* ---- prefixes and opcode map ---- */

static void prefix_segment(Decoder *d, int segment)
{
    if (!d->code64 || segment >= SEG_FS) /* the others are ignored in 64-bit mode */
        d->segment = segment;
}

/* Takes a legacy prefix; false if @b is none. */
static bool prefix_legacy(Decoder *d, uint8_t b, bool *address67)
{
    static const int8_t segments[] = { [0x26] = SEG_ES + 1, [0x2e] = SEG_CS + 1,
                                       [0x36] = SEG_SS + 1, [0x3e] = SEG_DS + 1,
                                       [0x64] = SEG_FS + 1, [0x65] = SEG_GS + 1 };

    switch (b) {
    case 0x66:
        d->operand66 = true;
        return true;
    case 0x67:
        *address67 = true;
        return true;
    case 0xf0:
        d->lock = true;
        return true;
    case 0xf2:
        d->op->flags = (uint8_t)((d->op->flags & ~SOFT_OP_REP) | SOFT_OP_REPNE);
        return true;
    case 0xf3:
        d->op->flags = (uint8_t)((d->op->flags & ~SOFT_OP_REPNE) | SOFT_OP_REP);
        return true;
    default:
        if (b >= sizeof(segments) || !segments[b])
            return false;
        prefix_segment(d, segments[b] - 1);
        return true;
    }
}

/* Takes all prefixes; returns the first byte after them. */
static uint8_t take_prefixes(Decoder *d)
{
    bool address67 = false;
    uint8_t b;

    for (;;) {
        b = take8(d);
        if (d->starved)
            return 0;
        if (d->code64 && (b & 0xf0) == 0x40) {
            d->rex = b; /* counts only if the opcode follows at once */
            continue;
        }
        if (!prefix_legacy(d, b, &address67))
            break;
        d->rex = 0;
    }
    if (d->rex) {
        d->op->flags |= SOFT_OP_REX;
        d->rex &= 0xf;
    }
    if (d->code64)
        d->op->asize = address67 ? 4 : 8;
    else
        d->op->asize = ((d->mode & SOFT_MODE_CODE32) != 0) != address67 ? 4 : 2;
    return b;
}

static bool vex_possible(const Decoder *d)
{
    if (d->at < d->available && !d->code64 && (d->bytes[d->at] & 0xc0) != 0xc0)
        return false; /* LES, LDS */
    return (d->mode & SOFT_MODE_PROTECTED) && !(d->mode & SOFT_MODE_VM86);
}

/* The rest of a VEX prefix; false: undefined. */
static bool take_vex(Decoder *d, bool three)
{
    uint8_t p0 = take8(d), p1 = p0;

    if (d->operand66 || d->lock || (d->op->flags & (SOFT_OP_REP | SOFT_OP_REPNE | SOFT_OP_REX)))
        return false;
    d->op->map = 1;
    d->rex = p0 & 0x80 ? 0 : 4;
    if (three) {
        p1 = take8(d);
        d->op->map = p0 & 0x1f;
        d->rex = (uint8_t)((~p0 >> 5 & 7) | (p1 & 0x80 ? 8 : 0));
    }
    d->vex = true;
    d->vex_l = p1 & 4;
    d->op->vvvv = ~p1 >> 3 & 15;
    d->op->prefix = p1 & 3;
    d->op->flags |= SOFT_OP_VEX | (d->vex_l ? SOFT_OP_L : 0);
    if (!d->code64) {
        d->rex &= 8;
        d->op->vvvv &= 7;
    }
    d->opcode = take8(d);
    return d->op->map >= 1 && d->op->map <= 3;
}

static bool take_opcode(Decoder *d)
{
    uint8_t b = take_prefixes(d);
    SoftOp *op = d->op;

    if (d->starved)
        return true;
    if ((b == 0xc4 || b == 0xc5) && (d->at >= d->available || vex_possible(d)))
        return take_vex(d, b == 0xc4);
    if (b == 0x0f) {
        op->map = 1;
        b = take8(d);
        if (b == 0x38 || b == 0x3a) {
            op->map = b == 0x38 ? 2 : 3;
            b = take8(d);
        }
    }
    d->opcode = b;
    op->prefix = op->flags & SOFT_OP_REP ? 2 : op->flags & SOFT_OP_REPNE ? 3 : d->operand66 ? 1 : 0;
    return true;
}

/* ---- finding the row ---- */

static bool prefix_matches(const SoftOpcode *row, unsigned prefix)
{
    return row->prefix == PREFIX_ANY || row->prefix == (int)prefix ||
           (row->prefix == PREFIX_NONE && prefix < 2);
}

static bool row_matches(const SoftOpcode *row, const SoftOp *op, uint32_t mode, bool rex_b)
{
    bool memory = op->modrm < 0xc0, code64 = mode & SOFT_MODE_CODE64;

    if (!prefix_matches(row, op->prefix) || (row->flags & (code64 ? OPC_NO64 : OPC_ONLY64)))
        return false;
    if (row->flags & OPC_MODRM) {
        if (row->digit >= 0 && row->digit != (op->modrm >> 3 & 7))
            return false;
        if (row->modrm >= 0 && row->modrm != op->modrm)
            return false;
        if (((row->flags & OPC_MEM) && !memory) || ((row->flags & OPC_REG) && memory))
            return false;
    } else if (row->map == 0 && row->opcode == 0x90 && !(row->flags & OPC_OREG) && rex_b) {
        return false; /* XCHG r8, rAX */
    }
    if ((row->flags & OPC_VEX) &&
        ((op->flags & SOFT_OP_L) || (!(row->flags & OPC_VVVV) && op->vvvv != 0)))
        return false;
    return !row->feature || ((const bool *)&soft_features)[row->feature - 1];
}

static const SoftOpcode *row_find(uint16_t cell, const SoftOp *op, uint32_t mode, bool rex_b)
{
    for (; cell; cell = cells[cell].next) {
        if (row_matches(cells[cell].row, op, mode, rex_b))
            return cells[cell].row;
    }
    return NULL;
}

const SoftOpcode *soft_opcode_of(const SoftOp *op, uint32_t mode)
{
    pthread_once(&table_once, table_build);
    return row_find(chains[(op->flags & SOFT_OP_VEX) != 0][op->map][op->opcode], op, mode,
                    op->rm >= 8);
}

/* ---- operands ---- */

static unsigned size_v(const Decoder *d)
{
    if (d->code64)
        return d->rex & 8 ? 8 : d->operand66 ? 2 : 4;
    return ((d->mode & SOFT_MODE_CODE32) != 0) != d->operand66 ? 4 : 2;
}

static unsigned operand_size(const Decoder *d, unsigned rule)
{
    unsigned v = size_v(d);

    switch (rule) {
    case SIZE_B:
        return 1;
    case SIZE_W:
        return 2;
    case SIZE_D:
        return 4;
    case SIZE_Q:
        return 8;
    case SIZE_64:
        return !d->code64 ? v : v == 2 ? 2 : 8;
    case SIZE_NEAR: /* APM vol. 3 1.2.4: 66 counts; Intel ignores it */
        return !d->code64 ? v : v == 2 && host_is_amd ? 2 : 8;
    case SIZE_Y:
        return d->code64 && (d->rex & 8) ? 8 : 4;
    case SIZE_N:
        return d->code64 ? 8 : 4;
    case SIZE_T:
        return d->code64 ? 8 : v;
    case SIZE_Z:
        return v == 2 ? 2 : 4;
    default:
        return v;
    }
}

/* SDM vol. 2 table 2-1. */
static void take_memory16(Decoder *d)
{
    static const uint8_t bases[8] = { GPR_RBX, GPR_RBX, GPR_RBP, GPR_RBP,
                                      GPR_RSI, GPR_RDI, GPR_RBP, GPR_RBX };
    static const uint8_t indexes[8] = { GPR_RSI,       GPR_RDI,       GPR_RSI,       GPR_RDI,
                                        SOFT_REG_NONE, SOFT_REG_NONE, SOFT_REG_NONE, SOFT_REG_NONE };
    unsigned mod = d->op->modrm >> 6, rm = d->op->modrm & 7;

    if (mod == 0 && rm == 6) {
        d->op->disp = take_signed(d, 2);
        return;
    }
    d->op->base = bases[rm];
    d->op->index = indexes[rm];
    if (d->op->base == GPR_RBP)
        d->op->seg = SEG_SS;
    if (mod)
        d->op->disp = take_signed(d, mod);
}

/* SDM vol. 2 tables 2-2 and 2-3, with REX. */
static void take_memory(Decoder *d)
{
    unsigned mod = d->op->modrm >> 6, rm = d->op->modrm & 7;
    uint8_t sib;

    if (rm == 4) {
        sib = take8(d);
        rm = sib & 7;
        d->op->index = (uint8_t)((sib >> 3 & 7) | (d->rex & 2 ? 8 : 0));
        d->op->scale = sib >> 6;
        if (d->op->index == GPR_RSP)
            d->op->index = SOFT_REG_NONE; /* a gather's is YMM4 nonetheless, so the scale stays */
        if (rm == 5 && mod == 0) {
            d->op->disp = take_signed(d, 4);
            return;
        }
    } else if (rm == 5 && mod == 0) {
        d->op->disp = take_signed(d, 4);
        d->rip_relative = d->code64;
        return;
    }
    d->op->base = (uint8_t)(rm | (d->rex & 1 ? 8 : 0));
    if (d->op->base == GPR_RSP || d->op->base == GPR_RBP)
        d->op->seg = SEG_SS;
    if (mod)
        d->op->disp = take_signed(d, mod == 1 ? 1 : 4);
}

static void take_modrm_operands(Decoder *d, bool always_register)
{
    SoftOp *op = d->op;

    op->reg = (uint8_t)((op->modrm >> 3 & 7) | (d->rex & 4 ? 8 : 0));
    if (op->modrm >= 0xc0 || always_register) {
        op->rm = (uint8_t)((op->modrm & 7) | (d->rex & 1 ? 8 : 0));
        return;
    }
    op->flags |= SOFT_OP_MEM;
    if (op->asize == 2)
        take_memory16(d);
    else
        take_memory(d);
}

static void take_immediate(Decoder *d, unsigned kind)
{
    SoftOp *op = d->op;

    switch (kind) {
    case IMM_B:
    case IMM_JB:
        op->imm = (uint64_t)take_signed(d, 1);
        break;
    case IMM_BU:
        op->imm = take8(d);
        break;
    case IMM_W:
        op->imm = take(d, 2);
        break;
    case IMM_Z:
    case IMM_JZ:
        op->imm = (uint64_t)take_signed(d, op->size == 2 ? 2 : 4);
        break;
    case IMM_V:
        op->imm = take(d, op->size);
        break;
    case IMM_MOFFS:
        op->disp = (int64_t)take(d, op->asize);
        op->flags |= SOFT_OP_MEM;
        break;
    case IMM_FAR:
        op->imm = take(d, op->size == 2 ? 2 : 4);
        op->imm |= take(d, 2) << 32;
        break;
    case IMM_ENTER:
        op->imm = take(d, 3);
        break;
    case IMM_ONE:
        op->imm = 1;
        break;
    default:
        break;
    }
}

/* What depends on the instruction's length. */
static void finish_addresses(Decoder *d)
{
    SoftOp *op = d->op;
    uint64_t next = op->rip + d->at;

    op->length = (uint8_t)d->at;
    if (d->rip_relative)
        op->disp += (int64_t)next;
    if (d->segment >= 0)
        op->seg = (uint8_t)d->segment;
    op->plain = d->code64 && op->asize == 8 && op->seg < SEG_FS;
    if (d->row && (d->row->imm == IMM_JB || d->row->imm == IMM_JZ)) {
        op->imm += next;
        if (op->size != 8)
            op->imm = op->size == 4 ? (uint32_t)op->imm : (uint16_t)op->imm;
    }
}

/* ---- handlers ---- */

static void op_too_long(SoftCpu *cpu, const SoftOp *op)
{
    cpu->op = op;
    soft_raise_error(cpu, EXC_GP, 0);
}

static void undefined(Decoder *d, bool *ends_block)
{
    d->op->handler = soft_op_undefined;
    d->op->length = (uint8_t)d->at;
    *ends_block = true;
}

/* The offset of a byte register from the register file; AH to BH without REX. */
static uint8_t byte_register(const SoftOp *op, unsigned n)
{
    if (!(op->flags & SOFT_OP_REX) && n >= 4 && n < 8)
        return (uint8_t)((n - 4) * 8 + 1);
    return (uint8_t)(n * 8);
}

static bool branch_needs_check(const Decoder *d)
{
    if (d->code64)
        return !canonical(d->op->imm);
    return !(d->mode & SOFT_MODE_FLAT);
}

static SoftHandler choose_handler(const Decoder *d)
{
    const SoftOpcode *row = d->row;
    const SoftHandlerSet *set = row->set;
    unsigned i = (unsigned)__builtin_ctz(d->op->size);

    if (row->handler)
        return row->handler;
    if (row->flags & OPC_CC)
        set += d->op->opcode & 15;
    if (row->imm == IMM_JB || row->imm == IMM_JZ)
        return branch_needs_check(d) ? set->mem[i] : set->reg[i];
    if (!(d->op->flags & SOFT_OP_MEM))
        return set->reg[i];
    return d->lock ? set->lock[i] : set->mem[i];
}

/* Segment registers have three bits and not all of them exist; CS cannot be loaded. */
static bool segment_operand_ok(const SoftOpcode *row, SoftOp *op)
{
    if (row->handler == soft_op_push_seg || row->handler == soft_op_pop_seg)
        op->reg = row->sub;
    if (row->handler != soft_op_mov_to_seg && row->handler != soft_op_mov_from_seg)
        return true;
    op->reg &= 7;
    return op->reg <= SEG_GS && !(row->handler == soft_op_mov_to_seg && op->reg == SEG_CS);
}

static void finish_registers(Decoder *d)
{
    const SoftOpcode *row = d->row;
    SoftOp *op = d->op;
    uint8_t t;

    if (row->flags & OPC_OREG)
        op->rm = (uint8_t)((op->opcode & 7) | (d->rex & 1 ? 8 : 0));
    if (row->flags & OPC_REG8)
        op->reg = byte_register(op, op->reg);
    if ((row->flags & OPC_RM8) && !(op->flags & SOFT_OP_MEM))
        op->rm = byte_register(op, op->rm);
    if ((row->flags & OPC_SWAP) && !(op->flags & SOFT_OP_MEM)) {
        t = op->rm;
        op->rm = op->reg;
        op->reg = t;
    }
}

static void decode_row(Decoder *d, bool *ends_block)
{
    const SoftOpcode *row = d->row;
    SoftOp *op = d->op;

    op->size = (uint8_t)operand_size(d, row->size);
    op->sub = row->flags & OPC_CC ? op->opcode & 15 : row->sub;
    if (row->flags & OPC_MODRM)
        take_modrm_operands(d, row->flags & OPC_MODRM_REG);
    take_immediate(d, row->imm);
    if (d->starved)
        return;
    finish_addresses(d);
    finish_registers(d);
    *ends_block = row->flags & OPC_END;
    if (d->lock)
        op->flags |= SOFT_OP_LOCK;
    if ((d->lock && !((row->flags & OPC_LOCK) && (op->flags & SOFT_OP_MEM))) ||
        !segment_operand_ok(row, op))
        return undefined(d, ends_block);
    op->handler = choose_handler(d);
    if (!op->handler)
        undefined(d, ends_block);
}

static void decode_vector(Decoder *d, bool modrm, bool *ends_block)
{
    SoftOp *op = d->op;
    int imm = soft_vector_imm(d->mode, op->map, op->opcode, op->prefix, d->vex);

    if (imm < 0)
        return undefined(d, ends_block);
    op->size = (uint8_t)size_v(d);
    if (modrm)
        take_modrm_operands(d, false);
    if (imm > 0)
        op->imm = take(d, (unsigned)imm);
    if (d->starved)
        return;
    finish_addresses(d);
    *ends_block = false;
    if (d->lock || !soft_vector_decode(d->cpu, d->mode, op))
        undefined(d, ends_block);
}

static void decode_all(Decoder *d, bool *ends_block)
{
    SoftOp *op = d->op;
    uint16_t chain;
    bool modrm;

    if (!take_opcode(d) && !d->starved)
        return undefined(d, ends_block);
    if (d->starved)
        return;
    op->opcode = (uint8_t)d->opcode;
    if (d->rex & 8)
        op->flags |= SOFT_OP_W;
    chain = chains[d->vex][op->map][op->opcode];
    if (!chain && soft_vector_imm(d->mode, op->map, op->opcode, op->prefix, d->vex) < 0)
        return undefined(d, ends_block);
    if (chain)
        modrm = cells[chain].row->flags & OPC_MODRM;
    else /* EMMS, VZEROUPPER; FWAIT */
        modrm = !(op->map == 1 && op->opcode == 0x77) && !(op->map == 0 && op->opcode == 0x9b);
    if (modrm)
        op->modrm = take8(d);
    if (d->starved)
        return;
    d->row = row_find(chain, op, d->mode, d->rex & 1);
    if (d->row)
        decode_row(d, ends_block);
    else
        decode_vector(d, modrm, ends_block);
}

unsigned soft_decode(SoftCpu *cpu, uint32_t mode, uint64_t rip, const uint8_t *bytes,
                     unsigned available, SoftOp *op, bool *ends_block)
{
    Decoder d = { .cpu = cpu,
                  .bytes = bytes,
                  .available = available < LENGTH_MAX ? available : LENGTH_MAX,
                  .mode = mode,
                  .op = op,
                  .code64 = mode & SOFT_MODE_CODE64,
                  .segment = -1 };

    pthread_once(&table_once, table_build);
    memset(op, 0, sizeof(*op));
    op->rip = rip;
    op->seg = SEG_DS;
    op->base = op->index = SOFT_REG_NONE;
    decode_all(&d, ends_block);
    if (!d.starved)
        return op->length;
    if (available < LENGTH_MAX)
        return 0;
    op->handler = op_too_long;
    op->length = LENGTH_MAX;
    *ends_block = true;
    return LENGTH_MAX;
}
