/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The translator's integer instructions: that the table covers the decoder's, and that what is emitted
 * does to random states what the interpreter's handlers do. Memory operands are served by a stand-in
 * for memory.c: guest addresses are the host's, and everything that a check may destroy is destroyed.
 */
#include <asm/prctl.h>
#include <glib.h>
#include <inttypes.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "vcpu/soft/integer.h"
#include "vcpu/soft/translate/translate.h"

#define MODE64 (SOFT_MODE_LONG | SOFT_MODE_PROTECTED | SOFT_MODE_CODE64)

/* What GS points to: the CPU, and what the trampoline needs. */
typedef struct Bench {
    SoftCpu cpu;
    uint64_t host_rsp;
    uint64_t flags_in, flags_out; /* in the form of SoftCpu.arith */
    uint64_t gpr_out[16];
    uint32_t slow; /* the code gave up */
} Bench;

#define BENCH_FIELD(field) emit_gs(offsetof(Bench, field))

static Bench *bench;
static uint8_t *window, *code;
static GRand *dice;
static uint8_t *slow_jumps[4];
static unsigned n_slow_jumps;

/* ---- stand-ins for memory.c ---- */

void translate_address(Translation *t, const SoftOp *op, unsigned to, bool segment)
{
    unsigned base = op->base == SOFT_REG_NONE ? HOST_NONE : translate_get(t, op->base, TEMP0);
    unsigned index = op->index == SOFT_REG_NONE ? HOST_NONE : translate_get(t, op->index, TEMP1);
    EmitOperand m = { .kind = EMIT_MEM, .base = (uint8_t)base, .index = (uint8_t)index,
                      .scale = op->scale, .disp = (int32_t)op->disp };

    if (op->disp != (int32_t)op->disp)
        emit_constant(&t->e, to, (uint64_t)op->disp);
    else if (op->asize == 4)
        emit_lea32(&t->e, to, m);
    else
        emit_lea(&t->e, to, m);
}

EmitOperand translate_memory(Translation *t, const SoftOp *op, unsigned size, unsigned access,
                             unsigned align)
{
    translate_flags_clobber(t);
    translate_address(t, op, TEMP0, true);
    emit_constant(&t->e, TEMP2, 0xdeaddeaddead);
    emit_constant(&t->e, TEMP1, 0);
    emit_alu_imm(&t->e, ALU_CMP, emit_reg(TEMP2), (int32_t)g_rand_int(dice));
    return emit_mem_index(TEMP0, TEMP1, 0, 0);
}

EmitOperand translate_memory_at(Translation *t, const SoftOp *op, unsigned base, int32_t disp,
                                unsigned size, unsigned access)
{
    translate_flags_clobber(t);
    emit_lea(&t->e, TEMP0, emit_mem(base, disp));
    emit_constant(&t->e, TEMP2, 0xdeaddeaddead);
    emit_constant(&t->e, TEMP1, 0);
    emit_alu_imm(&t->e, ALU_CMP, emit_reg(TEMP2), (int32_t)g_rand_int(dice));
    return emit_mem_index(TEMP0, TEMP1, 0, 0);
}

EmitOperand translate_memory_scratch(Translation *t, const SoftOp *op, unsigned size, unsigned access)
{
    translate_flags_clobber(t);
    emit_load(&t->e, TEMP0, GS_FIELD(scratch_value));
    emit_constant(&t->e, TEMP2, 0xdeaddeaddead);
    emit_constant(&t->e, TEMP1, 0);
    emit_alu_imm(&t->e, ALU_CMP, emit_reg(TEMP2), (int32_t)g_rand_int(dice));
    return emit_mem_index(TEMP0, TEMP1, 0, 0);
}

uint8_t **translate_run_check(Translation *t, unsigned address, unsigned access, unsigned shift,
                              unsigned to, uint8_t **slow)
{
    emit_constant(&t->e, TEMP2, 0xdeaddeaddead);
    emit_constant(&t->e, to, 0);
    emit_alu_imm(&t->e, ALU_CMP, emit_reg(TEMP2), (int32_t)g_rand_int(dice));
    return slow;
}

void translate_slow_from(Translation *t, const SoftOp *op, uint8_t *from)
{
    g_assert(n_slow_jumps < G_N_ELEMENTS(slow_jumps));
    slow_jumps[n_slow_jumps++] = from;
}

void translate_memory_done(Translation *t, const SoftOp *op)
{
}

/* ---- running translated code ---- */

static const uint8_t kept[] = { HOST_RBX, HOST_RBP, HOST_R12, HOST_R13, HOST_R14, HOST_R15 };

static void emit_push_pop(Emit *e, unsigned opcode, unsigned reg)
{
    if (reg >= 8)
        emit_imm(e, 0x41, 1);
    emit_imm(e, opcode | (reg & 7), 1);
}

static void emit_enter(Emit *e)
{
    for (unsigned i = 0; i < sizeof(kept); i++)
        emit_push_pop(e, 0x50, kept[i]);
    emit_store(e, BENCH_FIELD(host_rsp), HOST_RSP);
    emit_load16_zero(e, HOST_RAX, BENCH_FIELD(flags_in));
    emit_alu8_imm(e, ALU_ADD, emit_reg(HOST_RAX), 0x7f);
    emit_sahf(e);
    for (unsigned n = 0; n < 16; n++) {
        if (guest_register_is_host(n))
            emit_load(e, n, GS_GPR(n));
        else
            emit_constant(e, n, 0x5151515151515151);
    }
}

static void emit_leave(Emit *e)
{
    for (unsigned n = 0; n < 16; n++)
        emit_store(e, emit_gs(offsetof(Bench, gpr_out) + n * 8), n);
    emit_lahf(e);
    emit_setcc(e, 0, HOST_RAX);
    emit_store16(e, BENCH_FIELD(flags_out), HOST_RAX);
    emit_load(e, HOST_RSP, BENCH_FIELD(host_rsp));
    for (unsigned i = sizeof(kept); i-- > 0;)
        emit_push_pop(e, 0x58, kept[i]);
    emit_imm(e, 0xc3, 1);
}

/* The op of @t as translated code; false if it is left to the interpreter. */
static bool emit_op(Translation *t)
{
    uint8_t *start;

    t->e = (Emit){ code, code + 4096 };
    n_slow_jumps = 0;
    emit_enter(&t->e);
    start = t->e.at;
    if (!t->info[0].emit || !t->info[0].emit(t, &t->op[0])) {
        g_assert(t->e.at == start);
        return false;
    }
    emit_leave(&t->e);
    while (n_slow_jumps-- > 0)
        emit_patch(slow_jumps[n_slow_jumps], t->e.at);
    emit_store32_imm(&t->e, BENCH_FIELD(slow), 1);
    emit_leave(&t->e);
    return true;
}

static uint32_t arith_of(uint8_t tf)
{
    static const uint32_t bits[6] = { ARITH_CF, ARITH_PF, ARITH_AF, ARITH_ZF, ARITH_SF, ARITH_OF };
    uint32_t r = 0;

    for (unsigned i = 0; i < 6; i++)
        r |= tf >> i & 1 ? bits[i] : 0;
    return r;
}

/*
 * Rotations by an immediate leave OF undefined but for one place: Intel's processors leave it as it was
 * when the count is an immediate, and the interpreter rotates by CL.
 */
static uint32_t undefined_of(const SoftOp *op, const SoftOpcode *row)
{
    bool rotates = row->mnemonic[0] == 'r' && (row->mnemonic[1] == 'o' || row->mnemonic[1] == 'c');
    unsigned count = (unsigned)op->imm & (op->size == 8 ? 63u : 31u);
    return rotates && (op->opcode | 1) == 0xc1 && count != 1 ? ARITH_OF : 0;
}

#define ARITH_ALL (ARITH_OF | ARITH_CF | ARITH_PF | ARITH_AF | ARITH_ZF | ARITH_SF)

static uint32_t random_arith(void)
{
    return (g_rand_int(dice) & ARITH_ALL) | 0x200; /* bit 1 of AH as LAHF makes it */
}

/* ---- random instructions ---- */

static uint64_t random_value(void)
{
    uint64_t v = (uint64_t)g_rand_int(dice) << 32 | g_rand_int(dice);

    switch (g_rand_int_range(dice, 0, 6)) {
    case 0:
        return v & 0xff;
    case 1:
        return -(v & 3);
    case 2:
        return (uint64_t)1 << (v & 63);
    case 3:
        return (uint64_t)(int64_t)(int32_t)v;
    default:
        return v;
    }
}

static bool one_in(int n)
{
    return g_rand_int_range(dice, 0, n) == 0;
}

static unsigned encode_modrm(const SoftOpcode *row)
{
    unsigned modrm = g_rand_int(dice) & 0xff;

    if (one_in(2))
        modrm |= 0xc0;
    if (row->digit >= 0)
        modrm = (modrm & 0xc7) | (unsigned)row->digit << 3;
    return row->modrm >= 0 ? (unsigned)row->modrm : modrm;
}

static unsigned encode_vex(const SoftOpcode *row, uint8_t *b)
{
    unsigned n = 0, r = g_rand_int(dice), v = row->flags & OPC_VVVV ? r >> 8 & 15 : 15;

    b[n++] = 0xc4;
    b[n++] = (uint8_t)((r & 0xe0) | row->map);
    b[n++] = (uint8_t)((r >> 12 & 1) << 7 | v << 3 | (unsigned)row->prefix);
    b[n++] = row->opcode;
    return n;
}

static unsigned encode_legacy(const SoftOpcode *row, uint8_t *b)
{
    static const uint8_t mandatory[] = { 0, 0x66, 0xf3, 0xf2 };
    unsigned n = 0;

    if (one_in(8))
        b[n++] = 0x67;
    if (row->prefix != 0 && row->prefix != 1 && one_in(4))
        b[n++] = 0x66;
    if (row->prefix > 0)
        b[n++] = mandatory[row->prefix];
    if ((row->flags & OPC_LOCK) && one_in(4))
        b[n++] = 0xf0;
    if (!one_in(3))
        b[n++] = (uint8_t)(0x40 | (g_rand_int(dice) & 15));
    if (row->map)
        b[n++] = 0x0f;
    if (row->map >= 2)
        b[n++] = row->map == 2 ? 0x38 : 0x3a;
    b[n++] = (uint8_t)(row->opcode + (row->flags & OPC_OREG ? g_rand_int(dice) & 7
                                      : row->flags & OPC_CC ? g_rand_int(dice) & 15
                                                            : 0));
    return n;
}

/* An encoding of @row, its operand in the window; false if this one will not do. */
static bool random_op(const SoftOpcode *row, SoftOp *op)
{
    uint64_t target = (uintptr_t)window + (uint64_t)g_rand_int_range(dice, 0, 4096 - 16);
    SoftCpu *cpu = &bench->cpu;
    uint8_t b[32];
    unsigned n;
    bool ends;

    for (unsigned i = 0; i < sizeof(b); i++)
        b[i] = (uint8_t)g_rand_int(dice);
    n = row->flags & OPC_VEX ? encode_vex(row, b) : encode_legacy(row, b);
    if (row->flags & OPC_MODRM)
        b[n++] = (uint8_t)encode_modrm(row);
    if (row->imm == IMM_MOFFS)
        memcpy(b + n, &target, 8);
    if (one_in(2))
        target &= ~(uint64_t)15;
    if (!soft_decode(cpu, MODE64, 0x400000, b, 15, op, &ends) || ends)
        return false;
    if (op->handler == soft_op_undefined || op->length == 15 || soft_opcode_of(op, MODE64) != row)
        return false;
    for (unsigned i = 0; i < 16; i++)
        cpu->gpr[i] = random_value();
    if (!(op->flags & SOFT_OP_MEM) || row->imm == IMM_MOFFS)
        return true;
    if (op->map == 1 && (op->opcode & 0xe7) == 0xa3) { /* the operand is a bit string */
        if (op->base == op->reg || op->index == op->reg)
            return false;
        cpu->gpr[op->reg] = (uint64_t)g_rand_int_range(dice, -2048, 2048);
        target = (uintptr_t)window + (uint64_t)g_rand_int_range(dice, 512, 4096 - 512);
    }
    if (op->base == SOFT_REG_NONE || op->base == op->index) {
        if (op->index != SOFT_REG_NONE || op->base != SOFT_REG_NONE || (op->modrm & 7) == 4)
            return false;
        op->disp = (int64_t)target; /* relative to RIP */
        return true;
    }
    cpu->gpr[op->base] = target - (uint64_t)op->disp -
                         (op->index == SOFT_REG_NONE ? 0 : cpu->gpr[op->index] << op->scale);
    return true;
}

/* ---- one comparison ---- */

static void stop(SoftCpu *cpu, const SoftOp *op)
{
}

typedef struct Snapshot {
    uint64_t gpr[16];
    uint32_t arith;
    uint8_t window[4096];
} Snapshot;

static void snapshot_take(Snapshot *s)
{
    memcpy(s->gpr, bench->cpu.gpr, sizeof(s->gpr));
    s->arith = bench->cpu.arith;
    memcpy(s->window, window, sizeof(s->window));
}

static void snapshot_put(const Snapshot *s)
{
    memcpy(bench->cpu.gpr, s->gpr, sizeof(s->gpr));
    bench->cpu.arith = s->arith;
    memcpy(window, s->window, sizeof(s->window));
}

static void describe(const SoftOp *op, const char *name)
{
    g_test_message("%s: map %u opcode %02x modrm %02x size %u flags %02x reg %u rm %u base %u index %u",
                   name, op->map, op->opcode, op->modrm, op->size, op->flags, op->reg, op->rm,
                   op->base, op->index);
}

static void compare(const Snapshot *got, const Snapshot *want, uint32_t flags, const SoftOp *op,
                    const char *name)
{
    if (memcmp(got->gpr, want->gpr, sizeof(got->gpr)) == 0 &&
        memcmp(got->window, want->window, sizeof(got->window)) == 0 &&
        ((got->arith ^ want->arith) & flags) == 0)
        return;
    describe(op, name);
    for (unsigned i = 0; i < 16; i++) {
        if (got->gpr[i] != want->gpr[i])
            g_test_message("gpr %u: %016" PRIx64 ", not %016" PRIx64, i, got->gpr[i], want->gpr[i]);
    }
    g_error("flags %04x, not %04x (of %04x); memory %s", got->arith, want->arith, flags,
            memcmp(got->window, want->window, sizeof(got->window)) ? "differs" : "agrees");
}

/* Executes t's code and puts what it left into @s; false if it wants the interpreter to do it all. */
static bool run_code(const Translation *t, const Snapshot *before, unsigned flags_at, Snapshot *s)
{
    bench->flags_in = flags_at == FLAGS_HOST ? before->arith : random_arith();
    bench->cpu.arith = flags_at == FLAGS_SAVED ? before->arith : random_arith();
    bench->slow = 0;
    ((void (*)(void))(uintptr_t)code)();
    for (unsigned i = 0; i < 16; i++) {
        if (guest_register_is_host(i))
            bench->cpu.gpr[i] = bench->gpr_out[i];
    }
    if (t->flags_at == FLAGS_HOST)
        bench->cpu.arith = (uint32_t)bench->flags_out;
    snapshot_take(s);
    return !bench->slow;
}

static bool is_division(const SoftOpcode *row)
{
    return strcmp(row->mnemonic, "div") == 0 || strcmp(row->mnemonic, "idiv") == 0;
}

/* Whether it was translated. */
static bool try_one(const SoftOpcode *row)
{
    static Translation t;
    static Snapshot before, want, got;
    SoftOp op[2] = { 0 };
    unsigned flags_at = one_in(2) ? FLAGS_HOST : FLAGS_SAVED;

    if (!random_op(row, &op[0]))
        return false;
    op[1].handler = stop;
    t = (Translation){ .cpu = &bench->cpu, .n = 1, .flags_at = flags_at };
    t.op[0] = op[0];
    t.info[0] = translate_info(&op[0], MODE64);
    if (t.info[0].opcode != row) {
        describe(&op[0], row->mnemonic);
        g_error("translate_info finds another row");
    }
    t.live[1] = one_in(2) ? TF_ALL : (uint8_t)(g_rand_int(dice) & TF_ALL);
    t.live[0] = (uint8_t)((t.live[1] & ~t.info[0].kills) | t.info[0].reads);
    if (!emit_op(&t))
        return false;
    bench->cpu.arith = random_arith();
    for (unsigned i = 0; i < 64; i++)
        window[g_rand_int_range(dice, 0, 4096)] = (uint8_t)g_rand_int(dice);
    snapshot_take(&before);
    if (setjmp(bench->cpu.fault_jump)) { /* then the code gives up, too; CMPXCHG16B has no check here */
        snapshot_put(&before);
        g_assert(op[0].opcode == 0xc7 || !run_code(&t, &before, flags_at, &got));
        return true;
    }
    op[0].handler(&bench->cpu, &op[0]);
    snapshot_take(&want);
    snapshot_put(&before);
    if (run_code(&t, &before, flags_at, &got))
        compare(&got, &want, arith_of(t.live[1]) & ~undefined_of(&op[0], row), &op[0], row->mnemonic);
    return true;
}

static bool in_scope(const SoftOpcode *row)
{
    return !(row->flags & (OPC_SYSTEM | OPC_NO64 | OPC_BRANCH | OPC_STACK | OPC_STRING | OPC_NONDET |
                           OPC_END)) &&
           /* with CMPXCHG16B its row covers CMPXCHG8B, too */
           !(soft_features.cx16 && strcmp(row->mnemonic, "cmpxchg8b") == 0) &&
           !(is_division(row) && row->size == SIZE_B) &&
           (!row->feature || ((const bool *)&soft_features)[row->feature - 1]);
}

static void test_against_interpreter(void)
{
    const SoftOpcodeGroup *group;

    for (unsigned g = 0; (group = soft_opcode_group(g)) != NULL; g++) {
        for (unsigned i = 0; i < group->n_rows; i++) {
            const SoftOpcode *row = &group->rows[i];
            unsigned done = 0, n;
            const TranslateRow *table = translate_rows(false, &n);

            while (n-- > 0 && strcmp(table->mnemonic, row->mnemonic) != 0)
                table++;
            if (!in_scope(row) || !table->emit)
                continue;
            for (unsigned k = 0; k < 4000 && done < 1000; k++)
                done += try_one(row);
            if (!done)
                g_error("no form of %s, opcode %02x, was translated", row->mnemonic, row->opcode);
        }
    }
}

/* ---- the table ---- */

static bool decoder_has(const char *mnemonic, bool system)
{
    const SoftOpcodeGroup *group;

    for (unsigned g = 0; (group = soft_opcode_group(g)) != NULL; g++) {
        for (unsigned i = 0; i < group->n_rows; i++) {
            if (strcmp(group->rows[i].mnemonic, mnemonic) == 0 &&
                ((group->rows[i].flags & OPC_SYSTEM) != 0) == system)
                return true;
        }
    }
    return false;
}

static bool table_has(const char *mnemonic)
{
    unsigned n;
    const TranslateRow *rows = translate_rows(false, &n);

    for (unsigned i = 0; i < n; i++) {
        if (strcmp(rows[i].mnemonic, mnemonic) == 0)
            return true;
    }
    return false;
}

static void test_table(void)
{
    const SoftOpcodeGroup *group;

    for (unsigned system = 0; system < 2; system++) {
        unsigned n;
        const TranslateRow *rows = translate_rows(system, &n);
        for (unsigned i = 0; i < n; i++) {
            if (!decoder_has(rows[i].mnemonic, system))
                g_error("the decoder has no %s", rows[i].mnemonic);
            g_assert((rows[i].kills & ~rows[i].touches) == 0);
        }
    }
    for (unsigned g = 0; (group = soft_opcode_group(g)) != NULL; g++) {
        for (unsigned i = 0; i < group->n_rows; i++) {
            const SoftOpcode *row = &group->rows[i];
            if (!(row->flags & (OPC_SYSTEM | OPC_NO64)) && !table_has(row->mnemonic))
                g_error("the translator does not know %s", row->mnemonic);
        }
    }
}

static TranslateInfo info_of(const char *bytes, unsigned length)
{
    uint8_t b[16] = { 0 };
    SoftOp op;
    bool ends;

    memcpy(b, bytes, length);
    g_assert(soft_decode(&bench->cpu, MODE64, 0, b, 15, &op, &ends) == length);
    return translate_info(&op, MODE64);
}

static void test_flags(void)
{
    static const struct {
        const char *bytes;
        unsigned length, reads, kills, touches;
    } cases[] = {
        { "\x48\x01\xd8", 3, 0, TF_ALL, TF_ALL },                            /* add %rbx,%rax */
        { "\x48\x11\xd8", 3, TF_CF, TF_ALL, TF_ALL },                        /* adc %rbx,%rax */
        { "\xff\xc0", 2, 0, TF_ALL & ~TF_CF, TF_ALL & ~TF_CF },              /* inc %eax */
        { "\xc1\xe0\x03", 3, 0, TF_ALL, TF_ALL },                            /* shl $3,%eax */
        { "\xc1\xe0\x20", 3, 0, 0, 0 },                                      /* shl $32,%eax */
        { "\x48\xc1\xe0\x20", 4, 0, TF_ALL, TF_ALL },                        /* shl $32,%rax */
        { "\xd3\xe0", 2, 0, 0, TF_ALL },                                     /* shl %cl,%eax */
        { "\xd1\xc0", 2, 0, TF_CF | TF_OF, TF_CF | TF_OF },                  /* rol %eax */
        { "\x0f\xa5\xd8", 3, 0, 0, TF_ALL },                                 /* shld %cl,%ebx,%eax */
        { "\x0f\x4f\xc3", 3, TF_SF | TF_OF | TF_ZF, 0, 0 },                  /* cmovg %ebx,%eax */
        { "\xf3\xa6", 2, 0, 0, TF_ALL },                                     /* repe cmpsb */
        { "\xa6", 1, 0, TF_ALL, TF_ALL },                                    /* cmpsb */
        { "\x9c", 1, TF_ALL, 0, 0 },                                    /* pushf */
        { "\x0f\x0b", 2, TF_ALL, 0, TF_ALL },                                /* ud2 */
        { "\xf0\x48\x89\xd8", 4, TF_ALL, 0, TF_ALL },                        /* lock mov: undefined */
        { "\x75\x00", 2, TF_ZF, 0, 0 },                                      /* jnz */
    };

    for (unsigned i = 0; i < G_N_ELEMENTS(cases); i++) {
        TranslateInfo info = info_of(cases[i].bytes, cases[i].length);
        if (info.reads != cases[i].reads || info.kills != cases[i].kills ||
            info.touches != cases[i].touches)
            g_error("case %u: reads %02x, kills %02x, touches %02x", i, info.reads, info.kills,
                    info.touches);
    }
}

/* ---- */

static void bench_make(void)
{
    SoftTlbEntry *e;

    window = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    code = mmap(NULL, 8192, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    bench = mmap(NULL, sizeof(*bench), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    g_assert(window != MAP_FAILED && code != MAP_FAILED && bench != MAP_FAILED);
    g_assert(syscall(SYS_arch_prctl, ARCH_SET_GS, bench) == 0);
    soft_features_init();
    bench->cpu.mode = MODE64;
    for (unsigned i = 0; i < SOFT_TLB_SIZE; i++)
        bench->cpu.tlb[0][i].read_tag = bench->cpu.tlb[0][i].write_tag = SOFT_TLB_INVALID(i);
    e = soft_tlb_entry(&bench->cpu, (uintptr_t)window);
    e->read_tag = e->write_tag = (uintptr_t)window;
    dice = g_rand_new_with_seed(20261122);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    bench_make();
    g_test_add_func("/soft/translate/table", test_table);
    g_test_add_func("/soft/translate/flags", test_flags);
    g_test_add_func("/soft/translate/integer", test_against_interpreter);
    return g_test_run();
}
