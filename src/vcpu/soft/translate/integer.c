/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Integer instructions of ModRM operands. Nearly all are the guest's own instruction again, with the
 * memory operand's host address in place of the guest's, and temporaries in place of R9-R11. What is
 * left to do is to know which operands it reads and writes (TO_*).
 */
#include "vcpu/soft/translate/translate.h"

/* ---- guest registers ---- */

unsigned translate_get(Translation *t, unsigned n, unsigned temp)
{
    if (guest_register_is_host(n))
        return n;
    emit_load(&t->e, temp, GS_GPR(n));
    return temp;
}

void translate_put(Translation *t, unsigned n, unsigned host)
{
    if (!guest_register_is_host(n))
        emit_store(&t->e, GS_GPR(n), host);
    else if (n != host)
        emit_mov(&t->e, n, host);
}

/* ---- operands ---- */

typedef struct Register {
    bool present, high; /* high: AH to BH, n is RAX to RBX */
    bool read, write;
    uint8_t n;
} Register;

typedef struct Operands {
    EmitForm form;
    bool vex, host_only;
    uint8_t digit;     /* in place of reg */
    uint8_t imm_size, size;
    uint8_t rm_size;   /* of memory operands */
    Register reg, rm, v;
} Operands;

static void byte_register(Register *r, bool byte)
{
    if (!byte)
        return;
    r->high = r->n & 1;
    r->n >>= 3;
}

/* Writing 8 or 16 bits of a register leaves the others. */
static void merge(Register *r, unsigned size)
{
    if (r->write && size < 4)
        r->read = true;
}

static uint8_t imm_size(const SoftOpcode *row, const SoftOp *op)
{
    switch (row->imm) {
    case IMM_B:
    case IMM_BU:
        return 1;
    case IMM_Z:
        return op->size == 2 ? 2 : 4;
    default:
        return 0;
    }
}

static uint8_t rm_size(const SoftOp *op)
{
    if (op->map == 0 && op->opcode == 0x63)
        return op->size == 2 ? 2 : 4; /* MOVSXD */
    if (op->map == 1 && (op->opcode & 0xf6) == 0xb6)
        return op->opcode & 1 ? 2 : 1; /* MOVZX, MOVSX */
    if (op->map == 1 && op->opcode == 0xc7)
        return (uint8_t)(2 * op->size); /* CMPXCHG8B, CMPXCHG16B */
    return op->size;
}

static EmitForm form_of(const SoftOpcode *row, const SoftOp *op)
{
    unsigned flags = (op->size == 8 ? EMIT_W : 0u) | (op->flags & SOFT_OP_LOCK ? EMIT_LOCK : 0u) |
                     (op->size == 2 ? EMIT_66 : 0u) | (row->flags & OPC_REG8 ? EMIT_BYTE_REG : 0u) |
                     (row->flags & OPC_RM8 ? EMIT_BYTE_RM : 0u);

    return (EmitForm){ .map = op->map,
                       .opcode = row->flags & OPC_OREG ? 0x87 : op->opcode, /* XCHG with rAX */
                       .prefix = row->prefix > 0 ? (uint8_t)row->prefix : 0,
                       .flags = (uint8_t)flags };
}

static Operands operands_of(const SoftOp *op, const TranslateInfo *info)
{
    const SoftOpcode *row = info->opcode;
    unsigned uses = info->operands;
    bool memory = op->flags & SOFT_OP_MEM, swapped = (row->flags & OPC_SWAP) && !memory;
    bool dest_reg = (uses & TO_DEST_REG) || (row->flags & OPC_SWAP);
    Register dest = { .present = true, .read = uses & TO_DEST_READ, .write = uses & TO_DEST_WRITE };
    Register source = { .present = true, .read = uses & TO_SOURCE_READ,
                        .write = uses & TO_SOURCE_WRITE };
    Operands o = { .form = form_of(row, op),
                   .vex = row->flags & OPC_VEX,
                   .host_only = uses & TO_REGISTER,
                   .digit = row->digit >= 0 ? (uint8_t)row->digit : 0,
                   .imm_size = imm_size(row, op),
                   .size = op->size,
                   .rm_size = rm_size(op) };

    if (row->map == 2 && row->opcode == 0xf1 && row->prefix == PREFIX_NONE)
        dest_reg = false; /* MOVBE to memory */
    o.reg = dest_reg ? dest : source;
    o.rm = dest_reg ? source : dest;
    o.reg.present = row->digit < 0 && (uses & (TO_SOURCE_READ | TO_SOURCE_WRITE));
    o.reg.n = swapped ? op->rm : op->reg;
    o.rm.n = swapped ? op->reg : op->rm;
    byte_register(&o.reg, row->flags & OPC_REG8);
    byte_register(&o.rm, (row->flags & OPC_RM8) && !memory);
    o.v = (Register){ .present = uses & (TO_V_READ | TO_V_WRITE), .read = uses & TO_V_READ,
                      .write = uses & TO_V_WRITE, .n = op->vvvv };
    merge(&o.reg, op->size);
    merge(&o.rm, op->size);
    return o;
}

/* ---- emission ---- */

/* The number that stands for a register in an instruction; R9-R11 come into @temp if they are read. */
static unsigned register_in(Translation *t, const Register *r, unsigned temp)
{
    if (r->high)
        return 4u + r->n;
    if (guest_register_is_host(r->n))
        return r->n;
    if (r->read)
        emit_load(&t->e, temp, GS_GPR(r->n));
    return temp;
}

static void register_out(Translation *t, const Register *r, unsigned temp)
{
    if (r->present && r->write && !r->high && !guest_register_is_host(r->n))
        emit_store(&t->e, GS_GPR(r->n), temp);
}

/*
 * VEX instructions read vvvv or write it: read, it may share its temporary with the destination; written,
 * it may take the place of the address, which the instruction has used by then.
 */
static unsigned v_temp(const Operands *o)
{
    return o->v.write ? TEMP0 : TEMP2;
}

static void instruction(Translation *t, const SoftOp *op, const Operands *o, unsigned reg, EmitOperand rm)
{
    unsigned v = o->v.present ? register_in(t, &o->v, v_temp(o)) : 0;

    translate_flags_before(t);
    if (o->vex)
        emit_vex_rm(&t->e, o->form, v, reg, rm);
    else
        emit_rm(&t->e, o->form, reg, rm);
    emit_imm(&t->e, op->imm, o->imm_size);
    translate_flags_after(t);
    register_out(t, &o->v, v_temp(o));
    register_out(t, &o->reg, TEMP2);
}

static bool memory_form(Translation *t, const SoftOp *op, Operands *o)
{
    unsigned reg = o->digit;
    EmitOperand m;

    if (o->reg.present && o->reg.high && o->reg.write)
        return false; /* the operand's address has registers that take REX */
    m = translate_memory(t, op, o->rm_size, o->rm.write ? TRANSLATE_WRITE : TRANSLATE_READ,
                         o->rm_size == 16 ? 16 : 0);
    if (o->reg.present && o->reg.high) {
        emit_rorx(&t->e, TEMP2, o->reg.n, 8);
        reg = TEMP2;
    } else if (o->reg.present) {
        reg = register_in(t, &o->reg, TEMP2);
    }
    instruction(t, op, o, reg, m);
    translate_memory_done(t, op);
    return true;
}

/* The operations of both directions: r/m is then the one that may be in SoftCpu. */
static void choose_direction(const SoftOp *op, Operands *o)
{
    bool two_ways = op->map == 0 && (op->opcode < 0x40 || (op->opcode & 0xfc) == 0x88);
    Register swap = o->reg;

    if (!two_ways || !o->reg.present || guest_register_is_host(o->reg.n) || !guest_register_is_host(o->rm.n))
        return;
    o->reg = o->rm;
    o->rm = swap;
    o->form.opcode ^= 2;
}

/* XOR or SUB of R9-R11 from itself: the processor knows it for a zero only as a register. */
static bool is_zeroing(const SoftOp *op, const Operands *o)
{
    return op->map == 0 && (op->opcode & 0xfd) == 0x31 && o->reg.n == o->rm.n && op->size >= 4 &&
           !guest_register_is_host(o->rm.n);
}

static bool register_form(Translation *t, const SoftOp *op, Operands *o)
{
    unsigned reg = o->digit;
    EmitOperand rm;

    choose_direction(op, o);
    if (o->reg.present && o->reg.high)
        o->form.flags |= EMIT_HIGH_REG;
    if (o->rm.high)
        o->form.flags |= EMIT_HIGH_RM;
    o->form.flags &= (uint8_t)~((o->reg.high ? EMIT_BYTE_REG : 0u) | (o->rm.high ? EMIT_BYTE_RM : 0u));
    if (is_zeroing(op, o)) {
        emit_alu32(&t->e, ALU_XOR, TEMP0, emit_reg(TEMP0));
        emit_store(&t->e, GS_GPR(o->rm.n), TEMP0);
        translate_flags_after(t);
        return true;
    }
    if (o->reg.present)
        reg = register_in(t, &o->reg, TEMP2);
    if (!guest_register_is_host(o->rm.n) && !o->host_only && (!o->rm.write || o->size == 8)) {
        instruction(t, op, o, reg, GS_GPR(o->rm.n));
        return true;
    }
    rm = emit_reg(register_in(t, &o->rm, TEMP0));
    instruction(t, op, o, reg, rm);
    register_out(t, &o->rm, TEMP0);
    return true;
}

/* Of AL to RAX and an immediate, in the encoding without ModRM. */
static bool accumulator_form(Translation *t, const SoftOp *op)
{
    translate_flags_before(t);
    if (op->size == 2)
        emit_imm(&t->e, 0x66, 1);
    if (op->size == 8)
        emit_imm(&t->e, 0x48, 1);
    emit_imm(&t->e, op->opcode, 1);
    emit_imm(&t->e, op->imm, op->size < 4 ? op->size : 4);
    translate_flags_after(t);
    return true;
}

bool translate_rm(Translation *t, const SoftOp *op)
{
    const TranslateInfo *info = &t->info[t->i];
    Operands o;

    if (!(info->opcode->flags & (OPC_MODRM | OPC_OREG)))
        return accumulator_form(t, op);
    o = operands_of(op, info);
    if (!(op->flags & SOFT_OP_MEM))
        return register_form(t, op, &o);
    return memory_form(t, op, &o);
}

/* ---- bit strings ---- */

static void shift_imm(Translation *t, unsigned digit, unsigned reg, unsigned count)
{
    emit_rm(&t->e, (EmitForm){ .opcode = 0xc1, .flags = EMIT_W }, digit, emit_reg(reg));
    emit_imm(&t->e, count, 1);
}

/* SoftCpu.scratch_value = address of the operand that has the bit whose number is in op->reg. */
static void bit_address(Translation *t, const SoftOp *op)
{
    unsigned scale = op->size == 8 ? 3 : 2, n;

    translate_flags_clobber(t);
    translate_address(t, op, TEMP0, true);
    n = translate_get(t, op->reg, TEMP1);
    if (op->size == 8)
        emit_mov(&t->e, TEMP1, n);
    else
        emit_rm(&t->e, (EmitForm){ .opcode = 0x63, .flags = EMIT_W }, TEMP1, emit_reg(n)); /* MOVSXD */
    shift_imm(t, 7, TEMP1, scale + 3);
    emit_lea(&t->e, TEMP0, emit_mem_index(TEMP0, TEMP1, scale, 0));
    emit_store(&t->e, GS_FIELD(scratch_value), TEMP0);
}

/* With the bit's number in a register the memory operand is a string of bits, in both directions. */
bool translate_bit(Translation *t, const SoftOp *op)
{
    const TranslateInfo *info = &t->info[t->i];
    EmitOperand m;
    Operands o;

    if (!(op->flags & SOFT_OP_MEM) || info->opcode->imm != IMM_NONE)
        return translate_rm(t, op);
    if (op->size == 2 || op->asize != 8)
        return false;
    o = operands_of(op, info);
    bit_address(t, op);
    m = translate_memory_scratch(t, op, op->size, o.rm.write ? TRANSLATE_WRITE : TRANSLATE_READ);
    emit_mov32(&t->e, TEMP2, translate_get(t, op->reg, TEMP2));
    emit_alu32_imm(&t->e, ALU_AND, emit_reg(TEMP2), op->size * 8 - 1);
    instruction(t, op, &o, TEMP2, m);
    translate_memory_done(t, op);
    return true;
}

/* ---- division ---- */

/*
 * What the host's instruction would fault on goes to the interpreter, which raises #DE: DIV with a high
 * half that is not less than the divisor. Of IDIV only those go ahead whose dividend is no longer than the
 * divisor, which are nearly all; -1 could overflow.
 */
static void divide_check(Translation *t, const SoftOp *op, unsigned divisor)
{
    void (*alu)(Emit *e, unsigned operation, unsigned to, EmitOperand from) =
        op->size == 8 ? emit_alu : emit_alu32;
    Emit *e = &t->e;

    if (!(op->modrm & 8)) {
        alu(e, ALU_CMP, HOST_RDX, emit_reg(divisor));
        translate_slow_from(t, op, emit_jcc(e, 3)); /* JAE */
        return;
    }
    emit_mov(e, TEMP0, HOST_RAX);
    emit_rm(e, (EmitForm){ .opcode = 0xc1, .flags = op->size == 8 ? EMIT_W : 0 }, 7, emit_reg(TEMP0));
    emit_imm(e, op->size * 8 - 1, 1);
    alu(e, ALU_CMP, TEMP0, emit_reg(HOST_RDX));
    translate_slow_from(t, op, emit_jcc(e, 5)); /* JNE */
    if (op->size == 8)
        emit_lea(e, TEMP0, emit_mem(divisor, 1));
    else
        emit_lea32(e, TEMP0, emit_mem(divisor, 1));
    emit_alu_imm(e, ALU_CMP, emit_reg(TEMP0), 1);
    translate_slow_from(t, op, emit_jcc(e, 6)); /* JBE: 0 or -1 */
}

bool translate_divide(Translation *t, const SoftOp *op)
{
    EmitForm form = { .opcode = 0xf7, .flags = op->size == 8 ? EMIT_W : 0 };
    unsigned divisor = TEMP2;
    EmitOperand m;

    if (op->size < 4)
        return false;
    if (op->flags & SOFT_OP_MEM) {
        m = translate_memory(t, op, op->size, TRANSLATE_READ, 0);
        if (op->size == 8)
            emit_load(&t->e, divisor, m);
        else
            emit_load32(&t->e, divisor, m);
    } else {
        divisor = translate_get(t, op->rm, TEMP2);
    }
    translate_flags_clobber(t); /* an access to mirrored memory has not done so */
    divide_check(t, op, divisor);
    translate_flags_before(t);
    emit_rm(&t->e, form, op->modrm >> 3 & 7, emit_reg(divisor));
    translate_flags_after(t);
    translate_memory_done(t, op);
    return true;
}

/* What is written besides the operands of ModRM. */
static uint16_t implicit_writes(const SoftOp *op, const SoftOpcode *row)
{
    const uint16_t ax = 1u << GPR_RAX, ax_dx = ax | 1u << GPR_RDX;

    if (op->map == 0 && (op->opcode & 0xfe) == 0xf6 && row->digit >= 4)
        return ax_dx; /* MUL to IDIV */
    if (op->map == 1 && (op->opcode & 0xfe) == 0xb0)
        return ax; /* CMPXCHG */
    return op->map == 1 && op->opcode == 0xc7 ? ax_dx : 0;
}

uint16_t translate_rm_writes(const SoftOp *op, const TranslateInfo *info)
{
    const SoftOpcode *row = info->opcode;
    bool mov = info->emit == translate_mov;

    if (mov && row->imm == IMM_MOFFS)
        return op->opcode < 0xa2 ? 1u << GPR_RAX : 0;
    if (mov && (row->flags & OPC_OREG))
        return (uint16_t)(1u << (op->size == 1 ? op->rm >> 3 : op->rm));
    if (!(row->flags & (OPC_MODRM | OPC_OREG)))
        return info->operands & TO_DEST_WRITE ? 1u << GPR_RAX : 0;
    Operands o = operands_of(op, info);
    unsigned mask = implicit_writes(op, row);
    if (o.reg.present && o.reg.write)
        mask |= 1u << o.reg.n;
    if (o.rm.write && !(op->flags & SOFT_OP_MEM))
        mask |= 1u << o.rm.n;
    if (o.v.present && o.v.write)
        mask |= 1u << o.v.n;
    return (uint16_t)mask;
}

/* ---- MOV ---- */

/* Between the accumulator and a 64-bit address: as the ModRM forms 88 to 8B. */
static bool mov_absolute(Translation *t, const SoftOp *op)
{
    bool load = op->opcode < 0xa2;
    Operands o = { .form = { .opcode = (uint8_t)((load ? 0x8a : 0x88) | (op->opcode & 1)),
                             .flags = op->size == 8 ? EMIT_W : op->size == 2 ? EMIT_66 : 0 },
                   .size = op->size,
                   .rm_size = op->size,
                   .reg = { .present = true, .n = GPR_RAX },
                   .rm = { .present = true, .write = !load } };

    return memory_form(t, op, &o);
}

static bool mov_immediate(Translation *t, const SoftOp *op)
{
    unsigned n = op->size == 1 ? op->rm >> 3 : op->rm;
    EmitOperand rm = guest_register_is_host(n) ? emit_reg(n) : GS_GPR(n);
    EmitForm form = { .opcode = op->size == 1 ? 0xc6 : 0xc7 };

    if (op->size >= 4) {
        if (!guest_register_is_host(n) && op->imm == (uint64_t)(int32_t)op->imm) {
            form.flags = EMIT_W;
            emit_rm(&t->e, form, 0, rm);
            emit_imm(&t->e, op->imm, 4);
            return true;
        }
        emit_constant(&t->e, translate_target(n, TEMP0), op->imm);
        translate_put(t, n, translate_target(n, TEMP0));
        return true;
    }
    if (op->size == 2) {
        form.flags = EMIT_66;
    } else if (op->rm & 1) {
        form.flags = EMIT_HIGH_RM;
        rm = emit_reg(4 + n);
    } else {
        form.flags = EMIT_BYTE_RM;
    }
    emit_rm(&t->e, form, 0, rm);
    emit_imm(&t->e, op->imm, op->size);
    return true;
}

bool translate_mov(Translation *t, const SoftOp *op)
{
    const SoftOpcode *row = t->info[t->i].opcode;

    if (row->imm == IMM_MOFFS)
        return mov_absolute(t, op);
    if (row->flags & OPC_OREG)
        return mov_immediate(t, op);
    return translate_rm(t, op);
}

/* ---- the rest ---- */

bool translate_lea(Translation *t, const SoftOp *op)
{
    unsigned to = translate_target(op->reg, TEMP0);
    EmitOperand m = { .kind = EMIT_MEM, .base = HOST_NONE, .index = HOST_NONE, .scale = op->scale,
                      .disp = (int32_t)op->disp };

    if (op->size == 2)
        return false;
    if (op->base == SOFT_REG_NONE && op->index == SOFT_REG_NONE) { /* often relative to RIP */
        emit_constant(&t->e, to, op->size == 8 && op->asize == 8 ? (uint64_t)op->disp : (uint32_t)op->disp);
        translate_put(t, op->reg, to);
        return true;
    }
    if (op->base != SOFT_REG_NONE)
        m.base = (uint8_t)translate_get(t, op->base, TEMP0);
    if (op->index != SOFT_REG_NONE)
        m.index = (uint8_t)translate_get(t, op->index, TEMP1);
    if (op->size == 4 || op->asize == 4)
        emit_lea32(&t->e, to, m);
    else
        emit_lea(&t->e, to, m);
    translate_put(t, op->reg, to);
    return true;
}

bool translate_bswap(Translation *t, const SoftOp *op)
{
    unsigned r;

    if (op->size == 2)
        return false; /* undefined */
    r = translate_get(t, op->rm, TEMP0);
    if (op->size == 8 || r >= 8)
        emit_imm(&t->e, 0x40 | (op->size == 8 ? 8 : 0) | (r >= 8), 1);
    emit_imm(&t->e, 0x0f, 1);
    emit_imm(&t->e, 0xc8 | (r & 7), 1);
    if (r == TEMP0)
        translate_put(t, op->rm, r);
    return true;
}

bool translate_plain(Translation *t, const SoftOp *op)
{
    bool sized = op->map == 0 && (op->opcode & 0xfe) == 0x98; /* CBW, CWD and their kin */

    translate_flags_before(t);
    if (sized && op->size == 2)
        emit_imm(&t->e, 0x66, 1);
    if (sized && op->size == 8)
        emit_imm(&t->e, 0x48, 1);
    if (op->map == 0 && op->opcode == 0x90)
        emit_imm(&t->e, 0xf3, 1); /* PAUSE */
    if (op->map == 1)
        emit_imm(&t->e, 0x0f, 1);
    emit_imm(&t->e, op->opcode, 1);
    if (t->info[t->i].opcode->flags & OPC_MODRM)
        emit_imm(&t->e, op->modrm, 1);
    translate_flags_after(t);
    return true;
}

bool translate_nop(Translation *t, const SoftOp *op)
{
    return true;
}
