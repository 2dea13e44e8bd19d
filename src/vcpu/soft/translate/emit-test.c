/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The assembler: against what the GNU assembler makes of the same text, and random operands against
 * the project's own decoder.
 */
#include <glib.h>

#include "vcpu/soft/opcode-table.h"
#include "vcpu/soft/translate/emit.h"

#define FORM(m, o, p, f) ((EmitForm){.map = (m), .opcode = (o), .prefix = (p), .flags = (f)})

static uint8_t code[1024];

static void check(const char *text, const char *expected, size_t length, Emit e)
{
    size_t n = (size_t)(e.at - code);

    if (n == length && memcmp(code, expected, n) == 0)
        return;
    for (size_t i = 0; i < n; i++)
        g_test_message("byte %zu: %02x", i, code[i]);
    g_error("%s is encoded otherwise", text);
}

/* @text: what the GNU assembler was given to make @bytes. */
#define CHECK(text, bytes, ...)                                                                    \
    do {                                                                                           \
        Emit e = {code, code + sizeof(code)};                                                      \
        __VA_ARGS__;                                                                               \
        check(text, bytes, sizeof(bytes) - 1, e);                                                  \
    } while (0)

static void test_operands(void)
{
    CHECK("mov %r9,%rax", "\x4c\x89\xc8", emit_mov(&e, HOST_RAX, HOST_R9));
    CHECK("mov %eax,%r15d", "\x41\x89\xc7", emit_mov32(&e, HOST_R15, HOST_RAX));
    CHECK("mov (%rsp),%rdx", "\x48\x8b\x14\x24", emit_load(&e, HOST_RDX, emit_mem(HOST_RSP, 0)));
    CHECK("mov 0x10(%r12),%rdx", "\x49\x8b\x54\x24\x10",
          emit_load(&e, HOST_RDX, emit_mem(HOST_R12, 16)));
    CHECK("mov (%rbp),%rax", "\x48\x8b\x45\x00", emit_load(&e, HOST_RAX, emit_mem(HOST_RBP, 0)));
    CHECK("mov (%r13),%r9", "\x4d\x8b\x4d\x00", emit_load(&e, HOST_R9, emit_mem(HOST_R13, 0)));
    CHECK("mov 0x80(%r13),%r9", "\x4d\x8b\x8d\x80\x00\x00\x00",
          emit_load(&e, HOST_R9, emit_mem(HOST_R13, 128)));
    CHECK("mov -0x80(%rbx),%r9", "\x4c\x8b\x4b\x80",
          emit_load(&e, HOST_R9, emit_mem(HOST_RBX, -128)));
    CHECK("mov %gs:0x12345678,%r11", "\x65\x4c\x8b\x1c\x25\x78\x56\x34\x12",
          emit_load(&e, HOST_R11, emit_gs(0x12345678)));
    CHECK("mov %gs:0x40(,%r10,8),%rcx", "\x65\x4a\x8b\x0c\xd5\x40\x00\x00\x00",
          emit_load(&e, HOST_RCX, emit_gs_index(64, HOST_R10, 3)));
    CHECK("mov 0x1234,%eax", "\x8b\x04\x25\x34\x12\x00\x00",
          emit_load32(&e, HOST_RAX, emit_mem(HOST_NONE, 0x1234)));
    CHECK("mov 0x10(,%r9,2),%rax", "\x4a\x8b\x04\x4d\x10\x00\x00\x00",
          emit_load(&e, HOST_RAX, emit_mem_index(HOST_NONE, HOST_R9, 1, 16)));
    CHECK("mov (%r13,%r14,4),%rax", "\x4b\x8b\x44\xb5\x00",
          emit_load(&e, HOST_RAX, emit_mem_index(HOST_R13, HOST_R14, 2, 0)));
    CHECK("mov (%r9,%r12),%rax", "\x4b\x8b\x04\x21",
          emit_load(&e, HOST_RAX, emit_mem_index(HOST_R9, HOST_R12, 0, 0)));
    CHECK("mov 0x7f(%rsp,%rbp,2),%eax", "\x8b\x44\x6c\x7f",
          emit_load32(&e, HOST_RAX, emit_mem_index(HOST_RSP, HOST_RBP, 1, 127)));
}

static void test_moves(void)
{
    CHECK("movzwl (%rdi),%r10d", "\x44\x0f\xb7\x17",
          emit_load16_zero(&e, HOST_R10, emit_mem(HOST_RDI, 0)));
    CHECK("movzbl (%rdi),%r10d", "\x44\x0f\xb6\x17",
          emit_load8_zero(&e, HOST_R10, emit_mem(HOST_RDI, 0)));
    CHECK("movzbl %sil,%eax", "\x40\x0f\xb6\xc6",
          emit_load8_zero(&e, HOST_RAX, emit_reg(HOST_RSI)));
    CHECK("mov %rsi,0x100(%rdi)", "\x48\x89\xb7\x00\x01\x00\x00",
          emit_store(&e, emit_mem(HOST_RDI, 256), HOST_RSI));
    CHECK("mov %r8d,%gs:0x10", "\x65\x44\x89\x04\x25\x10\x00\x00\x00",
          emit_store32(&e, emit_gs(16), HOST_R8));
    CHECK("mov %r8w,(%r9)", "\x66\x45\x89\x01", emit_store16(&e, emit_mem(HOST_R9, 0), HOST_R8));
    CHECK("mov %sil,(%rax)", "\x40\x88\x30", emit_store8(&e, emit_mem(HOST_RAX, 0), HOST_RSI));
    CHECK("mov %al,(%rax)", "\x88\x00", emit_store8(&e, emit_mem(HOST_RAX, 0), HOST_RAX));
    CHECK("movl $0x12345678,%gs:0x20", "\x65\xc7\x04\x25\x20\x00\x00\x00\x78\x56\x34\x12",
          emit_store32_imm(&e, emit_gs(32), 0x12345678));
    CHECK("lea -8(%rsp),%r10", "\x4c\x8d\x54\x24\xf8",
          emit_lea(&e, HOST_R10, emit_mem(HOST_RSP, -8)));
    CHECK("lea (%rax,%rcx,8),%r9d", "\x44\x8d\x0c\xc8",
          emit_lea32(&e, HOST_R9, emit_mem_index(HOST_RAX, HOST_RCX, 3, 0)));
    CHECK("mov $0x12345678,%r10d", "\x41\xba\x78\x56\x34\x12",
          emit_constant(&e, HOST_R10, 0x12345678));
    CHECK("mov $0,%eax", "\xb8\x00\x00\x00\x00", emit_constant(&e, HOST_RAX, 0));
    CHECK("mov $0xffffffffffffffff,%r11", "\x49\xc7\xc3\xff\xff\xff\xff",
          emit_constant(&e, HOST_R11, ~UINT64_C(0)));
    CHECK("mov $0xffffffff80000000,%rcx", "\x48\xc7\xc1\x00\x00\x00\x80",
          emit_constant(&e, HOST_RCX, 0xffffffff80000000));
    CHECK("movabs $0x123456789abcdef0,%r9", "\x49\xb9\xf0\xde\xbc\x9a\x78\x56\x34\x12",
          emit_constant(&e, HOST_R9, 0x123456789abcdef0));
    CHECK("mov $0x80000000,%ebx", "\xbb\x00\x00\x00\x80", emit_constant(&e, HOST_RBX, 0x80000000));
    CHECK("mov $0xffffffff,%ebx", "\xbb\xff\xff\xff\xff", emit_constant(&e, HOST_RBX, 0xffffffff));
    CHECK("movabs $0xffffffff7fffffff,%rbx", "\x48\xbb\xff\xff\xff\x7f\xff\xff\xff\xff",
          emit_constant(&e, HOST_RBX, 0xffffffff7fffffff));
}

static void test_arithmetic(void)
{
    CHECK("add %gs:0x8,%r9", "\x65\x4c\x03\x0c\x25\x08\x00\x00\x00",
          emit_alu(&e, ALU_ADD, HOST_R9, emit_gs(8)));
    CHECK("xor (%r9),%r10d", "\x45\x33\x11",
          emit_alu32(&e, ALU_XOR, HOST_R10, emit_mem(HOST_R9, 0)));
    CHECK("cmp $0x7f,%r10", "\x49\x83\xfa\x7f", emit_alu_imm(&e, ALU_CMP, emit_reg(HOST_R10), 127));
    CHECK("cmp $0x80,%r10", "\x49\x81\xfa\x80\x00\x00\x00",
          emit_alu_imm(&e, ALU_CMP, emit_reg(HOST_R10), 128));
    CHECK("and $0x7ff0,%r10d", "\x41\x81\xe2\xf0\x7f\x00\x00",
          emit_alu32_imm(&e, ALU_AND, emit_reg(HOST_R10), 0x7ff0));
    CHECK("subl $-1,%gs:0x30", "\x65\x83\x2c\x25\x30\x00\x00\x00\xff",
          emit_alu32_imm(&e, ALU_SUB, emit_gs(48), -1));
    CHECK("cmpb $0,%gs:0x31", "\x65\x80\x3c\x25\x31\x00\x00\x00\x00",
          emit_alu8_imm(&e, ALU_CMP, emit_gs(49), 0));
    CHECK("cmpb $1,%sil", "\x40\x80\xfe\x01", emit_alu8_imm(&e, ALU_CMP, emit_reg(HOST_RSI), 1));
    CHECK("testq $0x1000,%gs:0x38", "\x65\x48\xf7\x04\x25\x38\x00\x00\x00\x00\x10\x00\x00",
          emit_test_imm(&e, emit_gs(56), 4096));
    CHECK("rorx $8,%r9,%r10", "\xc4\x43\xfb\xf0\xd1\x08", emit_rorx(&e, HOST_R10, HOST_R9, 8));
    CHECK("shr $12,%r10", "\x49\xc1\xea\x0c", emit_shr_imm(&e, HOST_R10, 12));
    CHECK("lahf", "\x9f", emit_lahf(&e));
    CHECK("sahf", "\x9e", emit_sahf(&e));
    CHECK("seto %al", "\x0f\x90\xc0", emit_setcc(&e, 0, HOST_RAX));
    CHECK("setb %r10b", "\x41\x0f\x92\xc2", emit_setcc(&e, 2, HOST_R10));
    CHECK("setz %sil", "\x40\x0f\x94\xc6", emit_setcc(&e, 4, HOST_RSI));
    CHECK("jmp *%gs:0x1000", "\x65\xff\x24\x25\x00\x10\x00\x00",
          emit_jmp_operand(&e, emit_gs(4096)));
    CHECK("jmp *%r9", "\x41\xff\xe1", emit_jmp_operand(&e, emit_reg(HOST_R9)));
}

static void test_forms(void)
{
    CHECK("vaddps %gs:0x50,%ymm1,%ymm2", "\x65\xc5\xf4\x58\x14\x25\x50\x00\x00\x00",
          emit_vex_rm(&e, FORM(1, 0x58, 0, EMIT_L), 1, 2, emit_gs(80)));
    CHECK("vaddps (%r9),%ymm9,%ymm2", "\xc4\xc1\x34\x58\x11",
          emit_vex_rm(&e, FORM(1, 0x58, 0, EMIT_L), 9, 2, emit_mem(HOST_R9, 0)));
    CHECK("vmovups %xmm9,%gs:0x50(,%r9)", "\x65\xc4\x21\x78\x11\x0c\x0d\x50\x00\x00\x00",
          emit_vex_rm(&e, FORM(1, 0x11, 0, 0), 0, 9, emit_gs_index(80, HOST_R9, 0)));
    CHECK("vfmadd213ps (%rax,%r12,2),%ymm3,%ymm4", "\xc4\xa2\x65\xa8\x24\x60",
          emit_vex_rm(&e, FORM(2, 0xa8, 1, EMIT_L), 3, 4, emit_mem_index(HOST_RAX, HOST_R12, 1, 0)));
    CHECK("vmovq %rax,%xmm3", "\xc4\xe1\xf9\x6e\xd8",
          emit_vex_rm(&e, FORM(1, 0x6e, 1, EMIT_W), 0, 3, emit_reg(HOST_RAX)));
    CHECK("crc32q (%rsi),%rax", "\xf2\x48\x0f\x38\xf1\x06",
          emit_rm(&e, FORM(2, 0xf1, 3, EMIT_W), HOST_RAX, emit_mem(HOST_RSI, 0)));
    CHECK("crc32w %cx,%eax", "\x66\xf2\x0f\x38\xf1\xc1",
          emit_rm(&e, FORM(2, 0xf1, 3, EMIT_66), HOST_RAX, emit_reg(HOST_RCX)));
    CHECK("lock addl $1,(%r9,%r10)", "\xf0\x43\x83\x04\x11\x01",
          emit_rm(&e, FORM(0, 0x83, 0, EMIT_LOCK), 0, emit_mem_index(HOST_R9, HOST_R10, 0, 0)),
          emit_imm(&e, 1, 1));
    CHECK("aeskeygenassist $3,(%r9,%r10),%xmm8", "\x66\x47\x0f\x3a\xdf\x04\x11\x03",
          emit_rm(&e, FORM(3, 0xdf, 1, 0), 8, emit_mem_index(HOST_R9, HOST_R10, 0, 0)),
          emit_imm(&e, 3, 1));
    CHECK("movsd %xmm15,%gs:0x8", "\x65\xf2\x44\x0f\x11\x3c\x25\x08\x00\x00\x00",
          emit_rm(&e, FORM(1, 0x11, 3, 0), 15, emit_gs(8)));
    CHECK("mov %ah,(%rdi)", "\x88\x27",
          emit_rm(&e, FORM(0, 0x88, 0, EMIT_HIGH_REG), 4, emit_mem(HOST_RDI, 0)));
    CHECK("mov %dil,%bpl", "\x40\x88\xfd",
          emit_rm(&e, FORM(0, 0x88, 0, EMIT_BYTE_REG | EMIT_BYTE_RM), 7, emit_reg(5)));
}

/* AH to BH and REX exclude each other: SDM vol. 2 2.2.1.2. */
static void test_high_bytes(void)
{
    EmitForm high = FORM(0, 0x88, 0, EMIT_HIGH_REG);
    EmitForm both = FORM(0, 0x88, 0, EMIT_HIGH_REG | EMIT_BYTE_RM);
    EmitForm rm = FORM(0, 0x80, 0, EMIT_HIGH_RM);

    g_assert_true(emit_rm_possible(high, 4, emit_mem(HOST_RDI, 0)));
    g_assert_true(emit_rm_possible(high, 4, emit_gs(8)));
    g_assert_false(emit_rm_possible(high, 4, emit_mem(HOST_R9, 0)));
    g_assert_false(emit_rm_possible(high, 4, emit_gs_index(8, HOST_R10, 0)));
    g_assert_true(emit_rm_possible(both, 4, emit_reg(HOST_RBX)));
    g_assert_false(emit_rm_possible(both, 4, emit_reg(HOST_RSI)));
    g_assert_true(emit_rm_possible(rm, 7, emit_reg(4)));
    g_assert_true(emit_rm_possible(rm, 7, emit_mem(HOST_R9, 0)));
    g_assert_false(emit_rm_possible(FORM(1, 0xb6, 0, EMIT_HIGH_RM), HOST_R9, emit_reg(4)));
    g_assert_true(emit_rm_possible(FORM(0, 0x88, 0, EMIT_BYTE_REG), 6, emit_mem(HOST_R9, 0)));
}

static int32_t rel32_at(const uint8_t *at)
{
    int32_t v;

    memcpy(&v, at, 4);
    return v;
}

static void test_jumps(void)
{
    Emit e = {code, code + sizeof(code)};
    uint8_t *rel = emit_jmp(&e);
    g_assert_true(rel == code + 1 && e.at == code + 5 && code[0] == 0xe9);
    emit_patch(rel, code + 32);
    g_assert_cmpint(rel32_at(rel), ==, 27);
    rel = emit_jcc(&e, 5);
    g_assert_true(rel == code + 7 && e.at == code + 11 && code[5] == 0x0f && code[6] == 0x85);
    emit_patch(rel, code);
    g_assert_cmpint(rel32_at(rel), ==, -11);
    rel = emit_jrcxz(&e);
    g_assert_true(rel == code + 12 && e.at == code + 13 && code[11] == 0xe3);
    emit_patch8(rel, code + 20);
    g_assert_cmpint(*rel, ==, 7);

    e.at = code;
    emit_jmp_to(&e, code + 2 + 127);
    g_assert_true(e.at == code + 2 && code[0] == 0xeb && code[1] == 127);
    e.at = code;
    emit_jmp_to(&e, code + 2 + 128);
    g_assert_true(e.at == code + 5 && code[0] == 0xe9);
    g_assert_cmpint(rel32_at(code + 1), ==, 125);
    e.at = code;
    emit_jcc_to(&e, 0xc, code);
    g_assert_true(e.at == code + 2 && code[0] == 0x7c && code[1] == 0xfe);
    e.at = code;
    emit_jcc_to(&e, 0xc, code + 1000);
    g_assert_true(e.at == code + 6 && code[0] == 0x0f && code[1] == 0x8c);
    g_assert_cmpint(rel32_at(code + 2), ==, 994);
}

/* ---- round trip ---- */

static VcpuVm *vm;
static SoftCpu *cpu;
static GRand *dice;

static unsigned roll(unsigned n)
{
    return (unsigned)g_rand_int_range(dice, 0, (int)n);
}

static int32_t random_disp(void)
{
    switch (roll(4)) {
    case 0:
        return 0;
    case 1:
        return (int32_t)roll(256) - 128;
    case 2:
        return (int32_t)roll(600) - 300;
    default:
        return (int32_t)g_rand_int(dice);
    }
}

static EmitOperand random_operand(void)
{
    unsigned index = roll(17);

    if (index == HOST_RSP)
        index = HOST_NONE;
    switch (roll(3)) {
    case 0:
        return emit_reg(roll(16));
    case 1:
        return emit_gs_index(g_rand_int(dice) & 0x7fffffff, index, roll(4));
    default:
        return emit_mem_index(roll(17), index, roll(4), random_disp());
    }
}

static void assert_operand(const SoftOp *op, EmitOperand rm)
{
    if (rm.kind == EMIT_REG) {
        g_assert_false(op->flags & SOFT_OP_MEM);
        g_assert_cmpuint(op->rm, ==, rm.reg);
        return;
    }
    g_assert_true(op->flags & SOFT_OP_MEM);
    g_assert_cmpint(op->disp, ==, rm.disp);
    g_assert_cmpuint(op->base, ==, rm.kind == EMIT_GS ? HOST_NONE : rm.base);
    g_assert_cmpuint(op->index, ==, rm.index);
    if (rm.index != HOST_NONE)
        g_assert_cmpuint(op->scale, ==, rm.scale);
    g_assert_true((op->seg == SEG_GS) == (rm.kind == EMIT_GS));
}

/* The decoder exchanges the two registers where the destination is ModRM.reg. */
static void undo_swap(SoftOp *op, uint32_t mode)
{
    const SoftOpcode *row = soft_opcode_of(op, mode);
    uint8_t reg = op->reg;

    if (!row || !(row->flags & OPC_SWAP) || (op->flags & SOFT_OP_MEM))
        return;
    op->reg = op->rm;
    op->rm = reg;
}

static void test_round_trip(void)
{
    static const struct {
        EmitForm form;
        bool vex;
        unsigned imm;
    } rows[] = {
        {FORM(0, 0x03, 0, 0), false, 0},        {FORM(0, 0x8b, 0, EMIT_W), false, 0},
        {FORM(0, 0x3b, 0, EMIT_66), false, 0},  {FORM(0, 0x69, 0, EMIT_W), false, 4},
        {FORM(1, 0xaf, 0, EMIT_W), false, 0},   {FORM(1, 0x58, 3, 0), false, 0},
        {FORM(1, 0x2a, 2, EMIT_W), false, 0},   {FORM(2, 0x00, 1, 0), false, 0},
        {FORM(3, 0x0f, 1, 0), false, 1},        {FORM(1, 0x58, 0, EMIT_L), true, 0},
        {FORM(2, 0xb8, 1, EMIT_W), true, 0},    {FORM(3, 0x4a, 1, EMIT_L), true, 1},
        {FORM(1, 0x5c, 3, 0), true, 0},
    };
    const uint32_t mode = SOFT_MODE_LONG | SOFT_MODE_PROTECTED | SOFT_MODE_CODE64;

    for (unsigned i = 0; i < 50000; i++) {
        unsigned r = roll(G_N_ELEMENTS(rows)), reg = roll(16), vvvv = roll(16);
        EmitOperand rm = random_operand();
        Emit e = {code, code + sizeof(code)};
        SoftOp op;
        bool ends;

        if (rows[r].vex)
            emit_vex_rm(&e, rows[r].form, vvvv, reg, rm);
        else
            emit_rm(&e, rows[r].form, reg, rm);
        emit_imm(&e, 0, rows[r].imm);
        unsigned length = (unsigned)(e.at - code);
        g_assert_cmpuint(soft_decode(cpu, mode, 0x1000, code, 15, &op, &ends), ==, length);
        undo_swap(&op, mode);
        g_assert_cmpuint(op.map, ==, rows[r].form.map);
        g_assert_cmpuint(op.opcode, ==, rows[r].form.opcode);
        g_assert_cmpuint(op.reg, ==, reg);
        if (rows[r].vex)
            g_assert_cmpuint(op.vvvv, ==, vvvv);
        g_assert_true(!(op.flags & SOFT_OP_W) == !(rows[r].form.flags & EMIT_W));
        assert_operand(&op, rm);
    }
}

int main(int argc, char **argv)
{
    static const VcpuBus bus = { 0 };
    VcpuVmConfig config = { .n_vcpus = 1, .bus = &bus };

    g_test_init(&argc, &argv, NULL);
    dice = g_rand_new_with_seed(20);
    vm = vcpu_engine_soft.vm_new(&config, NULL);
    cpu = (SoftCpu *)vcpu_engine_soft.vcpu_new(vm, 0, NULL);
    g_assert_nonnull(cpu);
    g_test_add_func("/emit/operands", test_operands);
    g_test_add_func("/emit/moves", test_moves);
    g_test_add_func("/emit/arithmetic", test_arithmetic);
    g_test_add_func("/emit/forms", test_forms);
    g_test_add_func("/emit/high-bytes", test_high_bytes);
    g_test_add_func("/emit/jumps", test_jumps);
    g_test_add_func("/emit/round-trip", test_round_trip);
    int status = g_test_run();
    vcpu_engine_soft.vcpu_free(&cpu->vcpu);
    vcpu_engine_soft.vm_free(vm);
    g_rand_free(dice);
    return status;
}
