/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Random loops of one block: pointers that go on by constants, accesses at constant distances from
 * each other, within pages and over their ends, some with a way out in the middle. The translator emits
 * such loops several times over and checks many accesses at once.
 */
#include "diff.h"
#include "vcpu/soft/translate/emit.h"

#define COUNTER HOST_RCX /* which nothing else here changes */
#define INDEX HOST_R15

static const uint8_t bases[] = {HOST_RBX, HOST_RSI, HOST_RDI, HOST_RBP, HOST_R8, HOST_R9, HOST_R12, HOST_R13};
static const uint8_t values[] = {HOST_RAX, HOST_RDX, HOST_R10, HOST_R11, HOST_R14};

/* The few bases that this loop uses, so that accesses meet. */
static uint8_t used[3];

static unsigned base(void)
{
    return used[diff_below(sizeof(used))];
}

static unsigned value(void)
{
    return values[diff_below(sizeof(values))];
}

static int32_t distance(void)
{
    return diff_chance(70) ? (int32_t)diff_below(8) * 8 - 16 : (int32_t)diff_below(200) - 100;
}

static EmitOperand operand(void)
{
    if (diff_chance(75))
        return emit_mem(base(), distance());
    return emit_mem_index(base(), INDEX, (unsigned)diff_below(4), distance());
}

static void emit_integer_access(Emit *e)
{
    static const uint8_t opcodes[] = {0x8b, 0x89, 0x8b, 0x89, 0x03, 0x01, 0x33, 0x3b};
    EmitForm form = {.opcode = opcodes[diff_below(sizeof(opcodes))],
                     .flags = diff_chance(70) ? EMIT_W : 0};
    emit_rm(e, form, value(), operand());
}

static void emit_vector_access(Emit *e)
{
    static const EmitForm forms[] = {
        {1, 0x10, 0, 0}, {1, 0x11, 0, 0}, {1, 0x6f, 1, 0}, {1, 0x7f, 1, 0}, {1, 0xfe, 1, 0},
        {1, 0x10, 3, 0}, {1, 0x11, 3, 0}, {1, 0x58, 3, 0}, {1, 0x7e, 1, EMIT_W}, {1, 0xef, 1, 0},
    };
    emit_rm(e, forms[diff_below(G_N_ELEMENTS(forms))], (unsigned)diff_below(8), operand());
}

static void emit_step(Emit *e)
{
    static const int8_t steps[] = {8, 16, 8, 16, 4, 1, -8, -16, 32, 64, 127, -128};
    unsigned reg = diff_chance(80) ? base() : INDEX;
    int32_t by = reg == INDEX ? 1 : steps[diff_below(sizeof(steps))];
    if (diff_chance(30))
        emit_lea(e, reg, emit_mem(reg, by));
    else
        emit_alu_imm(e, diff_chance(80) ? ALU_ADD : ALU_SUB, emit_reg(reg), by);
}

static void emit_push_pop(Emit *e)
{
    unsigned push = value(), pop = value();
    if (push >= 8)
        emit_imm(e, 0x41, 1);
    emit_imm(e, 0x50 | (push & 7), 1);
    if (diff_chance(30))
        emit_vector_access(e);
    if (pop >= 8)
        emit_imm(e, 0x41, 1);
    emit_imm(e, 0x58 | (pop & 7), 1);
}

/* A base from elsewhere, which the next iteration does not know of beforehand. */
static void emit_other_base(Emit *e)
{
    unsigned from = base(), to = base();
    if (diff_chance(50))
        emit_mov(e, to, from);
    else
        emit_alu_imm(e, ALU_AND, emit_reg(to), -64);
}

static void emit_part(Emit *e, uint8_t **out)
{
    switch (diff_below(12)) {
    case 0:
    case 1:
    case 2:
    case 3:
        emit_integer_access(e);
        break;
    case 4:
    case 5:
    case 6:
        emit_vector_access(e);
        break;
    case 7:
    case 8:
        emit_step(e);
        break;
    case 9:
        emit_push_pop(e);
        break;
    case 10:
        if (diff_chance(30))
            emit_other_base(e);
        else
            emit_alu(e, (unsigned)diff_below(8), value(), emit_reg(value()));
        break;
    default:
        if (!*out && diff_chance(40)) {
            emit_alu_imm(e, ALU_CMP, emit_reg(COUNTER), (int32_t)diff_below(30));
            *out = emit_jcc(e, 4);
        }
        break;
    }
}

void diff_generate_loop(DiffCase *c)
{
    Emit e = {c->bytes, c->bytes + sizeof(c->bytes)};
    uint8_t *out = NULL;

    c->in.rflags &= ~(uint64_t)(FLAG_DF | FLAG_AC);
    c->in.gpr[GPR_RSP] = DIFF_BASE + 0x2000 + 8 * diff_below(64) - 256;
    c->in.gpr[COUNTER] = 1 + diff_below(diff_chance(50) ? 8 : 60);
    c->in.gpr[INDEX] = diff_below(16);
    for (unsigned i = 0; i < sizeof(used); i++)
        used[i] = bases[diff_below(sizeof(bases))];
    for (unsigned i = 0; i < sizeof(bases); i++)
        c->in.gpr[bases[i]] = diff_address() & ~(diff_chance(80) ? 15ull : 0ull);
    for (unsigned n = 2 + (unsigned)diff_below(12); n-- && e.at < e.end - 64;)
        emit_part(&e, &out);
    emit_alu_imm(&e, ALU_SUB, emit_reg(COUNTER), 1);
    emit_jcc_to(&e, 5, c->bytes);
    if (out)
        emit_patch(out, e.at);
    emit_imm(&e, 0x0b0f, 2); /* ud2 */
    c->length = (unsigned)(e.at - c->bytes);
}
