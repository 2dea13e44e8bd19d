/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * How each integer instruction is translated, and its traffic with the arithmetic flags (Intel SDM
 * vol. 1 appendix A; vol. 2 for each instruction). A flag that both Intel and AMD leave undefined counts
 * as killed where processors compute it from the operands, and as touched only where some keep it.
 */
#include <pthread.h>

#include "vcpu/soft/integer.h"
#include "vcpu/soft/translate/translate.h"

#define ALL TF_ALL
#define CF TF_CF
#define ZF TF_ZF
#define OF TF_OF
#define AHF (TF_SF | TF_ZF | TF_AF | TF_PF | TF_CF)

#define DR TO_DEST_READ
#define DW TO_DEST_WRITE
#define SR TO_SOURCE_READ
#define SW TO_SOURCE_WRITE
#define REG TO_DEST_REG
#define VR TO_V_READ
#define VW TO_V_WRITE
#define HOST TO_REGISTER
#define ON TO_GOES_ON

/* Everything that 64-bit mode has but system instructions; NULL: the interpreter does it. */
static const TranslateRow integer_rows[] = {
    { "add", translate_rm, 0, ALL, ALL, DR | DW | SR },
    { "or", translate_rm, 0, ALL, ALL, DR | DW | SR },
    { "adc", translate_rm, CF, ALL, ALL, DR | DW | SR },
    { "sbb", translate_rm, CF, ALL, ALL, DR | DW | SR },
    { "and", translate_rm, 0, ALL, ALL, DR | DW | SR },
    { "sub", translate_rm, 0, ALL, ALL, DR | DW | SR },
    { "xor", translate_rm, 0, ALL, ALL, DR | DW | SR },
    { "cmp", translate_rm, 0, ALL, ALL, DR | SR },
    { "test", translate_rm, 0, ALL, ALL, DR | SR },
    { "not", translate_rm, 0, 0, 0, DR | DW },
    { "neg", translate_rm, 0, ALL, ALL, DR | DW },
    { "inc", translate_rm, 0, ALL & ~CF, ALL & ~CF, DR | DW },
    { "dec", translate_rm, 0, ALL & ~CF, ALL & ~CF, DR | DW },

    /* By a count that is not 0; see shift_flags. */
    { "rol", translate_rm, 0, CF | OF, CF | OF, DR | DW },
    { "ror", translate_rm, 0, CF | OF, CF | OF, DR | DW },
    { "rcl", translate_rm, CF, CF | OF, CF | OF, DR | DW },
    { "rcr", translate_rm, CF, CF | OF, CF | OF, DR | DW },
    { "shl", translate_rm, 0, ALL, ALL, DR | DW },
    { "shr", translate_rm, 0, ALL, ALL, DR | DW },
    { "sar", translate_rm, 0, ALL, ALL, DR | DW },
    { "shld", translate_rm, 0, ALL, ALL, DR | DW | SR },
    { "shrd", translate_rm, 0, ALL, ALL, DR | DW | SR },

    { "mul", translate_rm, 0, CF | OF, ALL, SR | REG },
    { "imul", translate_rm, 0, CF | OF, ALL, DR | DW | SR | REG },
    { "div", translate_divide, 0, 0, ALL, 0 },
    { "idiv", translate_divide, 0, 0, ALL, 0 },

    { "bt", translate_bit, 0, CF, ALL, DR | SR | HOST },
    { "bts", translate_bit, 0, CF, ALL, DR | DW | SR | HOST },
    { "btr", translate_bit, 0, CF, ALL, DR | DW | SR | HOST },
    { "btc", translate_bit, 0, CF, ALL, DR | DW | SR | HOST },
    { "bsf", translate_rm, 0, ZF, ALL, DR | DW | SR | REG },
    { "bsr", translate_rm, 0, ZF, ALL, DR | DW | SR | REG },
    { "tzcnt", translate_rm, 0, CF | ZF, ALL, DR | DW | SR | REG },
    { "lzcnt", translate_rm, 0, CF | ZF, ALL, DR | DW | SR | REG },
    { "popcnt", translate_rm, 0, ALL, ALL, DR | DW | SR | REG },
    { "crc32", translate_rm, 0, 0, 0, DR | DW | SR | REG },
    { "adcx", translate_rm, CF, CF, CF, DR | DW | SR | REG },
    { "adox", translate_rm, OF, OF, OF, DR | DW | SR | REG },

    { "andn", translate_rm, 0, ALL, ALL, DW | SR | REG | VR },
    { "blsr", translate_rm, 0, ALL, ALL, SR | REG | VW },
    { "blsmsk", translate_rm, 0, ALL, ALL, SR | REG | VW },
    { "blsi", translate_rm, 0, ALL, ALL, SR | REG | VW },
    { "bextr", translate_rm, 0, CF | ZF | OF, ALL, DW | SR | REG | VR },
    { "bzhi", translate_rm, 0, ALL, ALL, DW | SR | REG | VR },
    { "pext", translate_rm, 0, 0, 0, DW | SR | REG | VR },
    { "pdep", translate_rm, 0, 0, 0, DW | SR | REG | VR },
    { "mulx", translate_rm, 0, 0, 0, DW | SR | REG | VW },
    { "shlx", translate_rm, 0, 0, 0, DW | SR | REG | VR },
    { "sarx", translate_rm, 0, 0, 0, DW | SR | REG | VR },
    { "shrx", translate_rm, 0, 0, 0, DW | SR | REG | VR },
    { "rorx", translate_rm, 0, 0, 0, DW | SR | REG },

    { "mov", translate_mov, 0, 0, 0, DW | SR },
    { "movnti", translate_rm, 0, 0, 0, DW | SR },
    { "movzx", translate_rm, 0, 0, 0, DW | SR | REG },
    { "movsx", translate_rm, 0, 0, 0, DW | SR | REG },
    { "movsxd", translate_rm, 0, 0, 0, DW | SR | REG },
    { "movbe", translate_rm, 0, 0, 0, DW | SR | REG },
    { "lea", translate_lea, 0, 0, 0, 0 },
    { "cmov", translate_rm, 0, 0, 0, DR | DW | SR | REG },
    { "set", translate_rm, 0, 0, 0, DW },
    { "cbw", translate_plain, 0, 0, 0, 0 },
    { "cwd", translate_plain, 0, 0, 0, 0 },
    { "bswap", translate_bswap, 0, 0, 0, 0 },
    { "xlat", NULL, 0, 0, 0, 0 },

    { "xchg", translate_rm, 0, 0, 0, DR | DW | SR | SW | HOST },
    { "xadd", translate_rm, 0, ALL, ALL, DR | DW | SR | SW | HOST },
    { "cmpxchg", translate_rm, 0, ALL, ALL, DR | DW | SR | HOST },
    { "cmpxchg16b", translate_rm, 0, ZF, ZF, DR | DW },
    { "cmpxchg8b", translate_rm, 0, ZF, ZF, DR | DW },

    { "push", translate_push, 0, 0, 0, 0 },
    { "pop", translate_pop, 0, 0, 0, 0 },
    { "enter", NULL, 0, 0, 0, 0 },
    { "leave", translate_leave, 0, 0, 0, 0 },

    /* Repeated, the comparisons may do nothing: see translate_info. */
    { "movs", translate_movs, 0, 0, 0, 0 },
    { "stos", translate_stos, 0, 0, 0, 0 },
    { "lods", translate_lods, 0, 0, 0, 0 },
    { "cmps", NULL, 0, ALL, ALL, 0 },
    { "scas", NULL, 0, ALL, ALL, 0 },

    { "j", translate_jcc, 0, 0, 0, 0 },
    { "loopne", NULL, ZF, 0, 0, 0 },
    { "loope", NULL, ZF, 0, 0, 0 },
    { "loop", translate_loop, 0, 0, 0, 0 },
    { "jcxz", translate_jcxz, 0, 0, 0, 0 },
    { "call", translate_call, 0, 0, 0, 0 },
    { "jmp", translate_jmp, 0, 0, 0, 0 },
    { "ret", translate_ret, 0, 0, 0, 0 },

    { "pause", translate_plain, 0, 0, 0, 0 },
    { "nop", translate_nop, 0, 0, 0, 0 },
    { "prefetchw", translate_nop, 0, 0, 0, 0 },
    { "prefetch", translate_nop, 0, 0, 0, 0 },
    { "endbr", translate_nop, 0, 0, 0, 0 },
    { "clc", translate_plain, 0, CF, CF, 0 },
    { "stc", translate_plain, 0, CF, CF, 0 },
    { "cmc", translate_plain, CF, CF, CF, 0 },
    { "cld", translate_direction, 0, 0, 0, 0 },
    { "std", translate_direction, 0, 0, 0, 0 },
    { "lahf", translate_plain, AHF, 0, 0, 0 },
    { "sahf", translate_plain, 0, AHF, AHF, 0 },
    { "lfence", translate_plain, 0, 0, 0, 0 },
    { "mfence", translate_plain, 0, 0, 0, 0 },
    { "sfence", translate_plain, 0, 0, 0, 0 },
    { "clflush", NULL, 0, 0, 0, 0 },
    { "clflushopt", NULL, 0, 0, 0, 0 },
    { "clwb", NULL, 0, 0, 0, 0 },
    { "rdrand", NULL, 0, ALL, ALL, 0 },
    { "rdseed", NULL, 0, ALL, ALL, 0 },
    { "ud2", NULL, 0, 0, 0, 0 },
    { "ud1", NULL, 0, 0, 0, 0 },
    { "ud0", NULL, 0, 0, 0, 0 },
};

/* Of the system group: what has nothing to do with the arithmetic flags, or sets all. The others read and touch all. */
static const TranslateRow system_rows[] = {
    { "cli", translate_cli, 0, 0, 0, ON },
    { "sti", translate_sti, 0, 0, 0, ON },
    { "pushf", translate_pushf, ALL, 0, 0, ON },
    { "popf", NULL, 0, ALL, ALL, ON },
    { "stac", translate_stac, 0, 0, 0, 0 },
    { "clac", translate_clac, 0, 0, 0, 0 },
    { "swapgs", translate_swapgs, 0, 0, 0, ON },
    { "rdfsbase", translate_base_read, 0, 0, 0, ON },
    { "rdgsbase", translate_base_read, 0, 0, 0, ON },
    { "wrfsbase", translate_base_write, 0, 0, 0, ON },
    { "wrgsbase", translate_base_write, 0, 0, 0, ON },
    { "rdtsc", translate_rdtsc, 0, 0, 0, ON },
    { "rdtscp", translate_rdtsc, 0, 0, 0, ON },
    { "rdpid", NULL, 0, 0, 0, ON },
    { "rdmsr", NULL, 0, 0, 0, ON },
    { "wrmsr", NULL, 0, 0, 0, ON },
    { "cpuid", NULL, 0, 0, 0, ON },
    { "in", NULL, 0, 0, 0, ON },
    { "out", NULL, 0, 0, 0, ON },
    { "hlt", NULL, 0, 0, 0, 0 },
    { "clts", NULL, 0, 0, 0, 0 },
    { "invlpg", NULL, 0, 0, 0, 0 },
    { "invpcid", NULL, 0, 0, 0, 0 },
    { "mov", translate_mov_from_segment, 0, 0, 0, 0 },
    { "push", NULL, 0, 0, 0, 0 },
    { "pop", NULL, 0, 0, 0, 0 },
    { "iret", NULL, 0, ALL, ALL, 0 },
    { "sysret", NULL, 0, ALL, ALL, 0 },
};

static const TranslateRow unknown = { "", NULL, ALL, 0, ALL, 0 };

/* ---- from a row of the decoder's to one of these ---- */

#define GROUPS_MAX 16
#define ROWS_MAX 192

static const TranslateRow *row_of[GROUPS_MAX][ROWS_MAX];
static pthread_once_t rows_once = PTHREAD_ONCE_INIT;

static const TranslateRow *row_by_name(const TranslateRow *rows, size_t n, const char *mnemonic)
{
    for (size_t i = 0; i < n; i++) {
        if (strcmp(rows[i].mnemonic, mnemonic) == 0)
            return &rows[i];
    }
    return &unknown;
}

static void rows_build(void)
{
    const SoftOpcodeGroup *group;

    for (unsigned g = 0; (group = soft_opcode_group(g)) != NULL; g++) {
        g_assert(g < GROUPS_MAX && group->n_rows <= ROWS_MAX);
        for (unsigned i = 0; i < group->n_rows; i++) {
            const SoftOpcode *opcode = &group->rows[i];
            row_of[g][i] = opcode->flags & OPC_SYSTEM
                               ? row_by_name(system_rows, G_N_ELEMENTS(system_rows), opcode->mnemonic)
                               : row_by_name(integer_rows, G_N_ELEMENTS(integer_rows), opcode->mnemonic);
        }
    }
}

static const TranslateRow *row_find(const SoftOpcode *opcode)
{
    const SoftOpcodeGroup *group;

    for (unsigned g = 0; (group = soft_opcode_group(g)) != NULL; g++) {
        if (opcode >= group->rows && opcode < group->rows + group->n_rows)
            return row_of[g][opcode - group->rows];
    }
    return &unknown;
}

const TranslateRow *translate_rows(bool system, unsigned *n)
{
    *n = system ? G_N_ELEMENTS(system_rows) : G_N_ELEMENTS(integer_rows);
    return system ? system_rows : integer_rows;
}

/* ---- what depends on the operands ---- */

uint8_t translate_condition_reads(unsigned cc)
{
    static const uint8_t reads[8] = {
        TF_OF, TF_CF, TF_ZF, TF_CF | TF_ZF, TF_SF, TF_PF, TF_SF | TF_OF, TF_SF | TF_OF | TF_ZF,
    };
    return reads[cc >> 1 & 7];
}

/* A shift by nothing leaves the flags; SDM vol. 2: the count is taken modulo 32, or 64 by operand size. */
static void shift_flags(TranslateInfo *info, const SoftOp *op)
{
    bool by_cl = op->map == 0 ? op->opcode >= 0xd2 : (op->opcode & 1);

    if (by_cl)
        info->kills = 0;
    else if ((op->imm & (op->size == 8 ? 63 : 31)) == 0)
        info->reads = info->kills = info->touches = 0;
}

static bool is_shift(const SoftOpcode *opcode)
{
    if (opcode->map == 0)
        return (opcode->opcode & ~1) == 0xc0 || (opcode->opcode & ~3) == 0xd0;
    return opcode->map == 1 && (opcode->opcode & ~9) == 0xa4;
}

/*
 * Whether decoding chose one of the row's handlers: it did not if the instruction is undefined or too
 * long, or if a breakpoint is in its place.
 */
static bool handler_of_row(const SoftOpcode *opcode, const SoftOp *op)
{
    const SoftHandlerSet *set = opcode->set;
    unsigned size = (unsigned)__builtin_ctz(op->size);

    if (opcode->handler)
        return op->handler == opcode->handler;
    if (opcode->flags & OPC_CC)
        set += op->opcode & 15;
    return op->handler == set->reg[size] || op->handler == set->mem[size] ||
           op->handler == set->lock[size];
}

static TranslateInfo info_of(const SoftOpcode *opcode, const TranslateRow *row)
{
    return (TranslateInfo){ .opcode = opcode,
                            .emit = row->emit,
                            .reads = row->reads,
                            .kills = row->kills,
                            .touches = row->touches,
                            .operands = row->operands };
}

TranslateInfo translate_info(const SoftOp *op, uint32_t mode)
{
    const SoftOpcode *opcode;
    TranslateInfo info;

    pthread_once(&rows_once, rows_build);
    if (op->handler == soft_op_undefined || op->length >= 15 || op->size == 0)
        return info_of(NULL, &unknown);
    opcode = soft_opcode_of(op, mode);
    if (!opcode)
        return translate_vector_info(op, mode);
    if (!handler_of_row(opcode, op))
        return info_of(NULL, &unknown);
    info = info_of(opcode, row_find(opcode));
    if (opcode->flags & OPC_CC)
        info.reads |= translate_condition_reads(op->sub);
    if (is_shift(opcode))
        shift_flags(&info, op);
    if ((opcode->flags & OPC_STRING) && (op->flags & (SOFT_OP_REP | SOFT_OP_REPNE)))
        info.kills = 0;
    return info;
}

bool translate_goes_on(const SoftOp *op, uint32_t mode)
{
    return translate_info(op, mode).operands & TO_GOES_ON;
}
