/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Thunks: the code between C and translated code. They lie at the start of the arena, where rel32
 * reaches them. On the C side the host's stack and calling convention hold (System V ABI, AMD64);
 * on the other side every register is the guest's.
 */
#include "vcpu/soft/translate/cache.h"

static const uint8_t host_saved[] = {HOST_RBX, HOST_RBP, HOST_R12, HOST_R13, HOST_R14, HOST_R15};

static void emit_push(Emit *e, unsigned reg)
{
    if (reg >= 8)
        emit_imm(e, 0x41, 1);
    emit_imm(e, 0x50 | (reg & 7), 1);
}

static void emit_pop(Emit *e, unsigned reg)
{
    if (reg >= 8)
        emit_imm(e, 0x41, 1);
    emit_imm(e, 0x58 | (reg & 7), 1);
}

/* Guest registers that C may change, and those that it keeps. */
static const uint8_t changed[] = {HOST_RAX, HOST_RCX, HOST_RDX, HOST_RSI, HOST_RDI, HOST_R8};
static const uint8_t kept[] = {HOST_RBX, HOST_RBP, HOST_R12, HOST_R13, HOST_R14, HOST_R15, HOST_RSP};

static void emit_spill(Emit *e, const uint8_t *regs, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        emit_store(e, GS_GPR(regs[i]), regs[i]);
}

static void emit_reload(Emit *e, const uint8_t *regs, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        emit_load(e, regs[i], GS_GPR(regs[i]));
}
#define EMIT_SPILL(e, set) emit_spill((e), (set), sizeof(set))
#define EMIT_RELOAD(e, set) emit_reload((e), (set), sizeof(set))

/* ---- vectors ---- */

static bool host_has_avx(void)
{
    return __builtin_cpu_supports("avx");
}

static EmitOperand vector_place(unsigned n, unsigned at)
{
    return emit_gs(offsetof(SoftCpu, fpu.ymm) + n * 32u + at);
}

static void emit_vector_moves(Emit *e, bool store, bool wide)
{
    for (unsigned n = 0; n < 16; n++) {
        EmitForm form = {.map = 1, .opcode = store ? 0x11 : 0x10};
        if (wide) {
            form.flags = EMIT_L;
            emit_vex_rm(e, form, 0, n, vector_place(n, 0));
        } else {
            emit_rm(e, form, n, vector_place(n, 0));
        }
    }
}

static void emit_mxcsr(Emit *e, bool store, size_t offset)
{
    emit_rm(e, (EmitForm){.map = 1, .opcode = 0xae}, store ? 3 : 2, emit_gs(offset));
}

#define MXCSR_OFFSET (offsetof(SoftCpu, fpu.fxsave) + 24)

/* Vectors into SoftCpu if they are live; changes EFLAGS. */
static void emit_vectors_out(Emit *e)
{
    emit_alu8_imm(e, ALU_CMP, GS_FIELD(vectors_live), 0);
    uint8_t *skip = emit_jcc(e, 4);
    emit_vector_moves(e, true, host_has_avx());
    emit_mxcsr(e, true, MXCSR_OFFSET);
    emit_mxcsr(e, false, offsetof(SoftCpu, host_mxcsr));
    if (host_has_avx()) {
        static const uint8_t vzeroupper[] = {0xc5, 0xf8, 0x77};
        emit_bytes(e, vzeroupper, sizeof(vzeroupper));
    }
    emit_patch(skip, e->at);
}

/*
 * Changes EFLAGS. Where all upper halves are zero only the lower ones are loaded, after the VZEROUPPER of
 * emit_vectors_out or of the ABI: an SSE instruction depends on the old value of its destination while
 * the processor does not know that there is no upper half to keep.
 */
static void emit_vectors_in(Emit *e)
{
    static const uint8_t ptest[] = {0x66, 0x0f, 0x38, 0x17, 0xc0}; /* of XMM0 */

    if (!host_has_avx()) {
        emit_vector_moves(e, false, false);
    } else {
        for (unsigned n = 0; n < 16; n++) /* movaps, orps */
            emit_rm(e, (EmitForm){.map = 1, .opcode = n ? 0x56 : 0x28}, 0, vector_place(n, 16));
        emit_bytes(e, ptest, sizeof(ptest));
        uint8_t *upper = emit_jcc(e, 5);
        emit_vector_moves(e, false, false);
        uint8_t *done = emit_jmp(e);
        emit_patch(upper, e->at);
        emit_vector_moves(e, false, true);
        emit_patch(done, e->at);
    }
    emit_mxcsr(e, false, MXCSR_OFFSET);
}

static void emit_byte_store(Emit *e, EmitOperand to, uint8_t value)
{
    emit_rm(e, (EmitForm){.opcode = 0xc6}, 0, to);
    emit_imm(e, value, 1);
}

/* ---- calls of C ---- */

/* On the host's stack, which keeps the alignment that enter gave it. rdi = cpu. */
static void emit_call(Emit *e, const void *function)
{
    emit_load(e, HOST_RSP, GS_FIELD(host_rsp));
    emit_load(e, HOST_RDI, GS_FIELD(self));
    emit_constant(e, HOST_RAX, (uintptr_t)function);
    emit_rm(e, (EmitForm){.opcode = 0xff}, 2, emit_reg(HOST_RAX));
}

/* ---- the thunks ---- */

static void emit_enter(Emit *e)
{
    for (unsigned i = 0; i < sizeof(host_saved); i++)
        emit_push(e, host_saved[i]);
    emit_lea(e, HOST_RSP, emit_mem(HOST_RSP, -8)); /* 16-aligned at calls */
    emit_store(e, GS_FIELD(host_rsp), HOST_RSP);
    emit_store(e, GS_FIELD(enter_target), HOST_RSI);
    code_flags_load(e);
    EMIT_RELOAD(e, changed);
    EMIT_RELOAD(e, kept);
    emit_jmp_operand(e, GS_FIELD(enter_target));
}

/* Back to the caller of enter: the guest's registers are in SoftCpu and the host's stack is on. */
static void emit_return(Emit *e)
{
    emit_byte_store(e, GS_FIELD(vectors_live), 0);
    emit_lea(e, HOST_RSP, emit_mem(HOST_RSP, 8));
    for (unsigned i = sizeof(host_saved); i-- > 0;)
        emit_pop(e, host_saved[i]);
    emit_imm(e, 0xc3, 1);
}

static void emit_leave(CodeCache *c, Emit *e)
{
    c->thunk.leave_host = code_offset(c, e->at);
    emit_store(e, GS_GPR(HOST_RAX), HOST_RAX);
    code_flags_store(e);
    emit_load(e, HOST_RAX, GS_GPR(HOST_RAX));
    c->thunk.leave_saved = code_offset(c, e->at);
    EMIT_SPILL(e, changed);
    EMIT_SPILL(e, kept);
    emit_vectors_out(e);
    emit_load(e, HOST_RSP, GS_FIELD(host_rsp));
    emit_return(e);
}

static void emit_miss(CodeCache *c, Emit *e)
{
    c->thunk.miss = code_offset(c, e->at);
    emit_byte_store(e, GS_FIELD(branch_missed), 1);
    emit_store(e, GS_FIELD(rip), TEMP0);
    emit_store32_imm(e, GS_FIELD(code_exit), 0);
    emit_jmp_to(e, c->rw + c->thunk.leave_saved);
    c->thunk.second = code_offset(c, e->at);
    emit_byte_store(e, GS_FIELD(second_missing), 1);
    emit_jmp_to(e, c->rw + c->thunk.miss);
}

/* rax = where to go on; vectors come back if they were live. */
static void emit_resume(Emit *e, bool flags)
{
    emit_store(e, GS_FIELD(enter_target), HOST_RAX);
    emit_alu8_imm(e, ALU_CMP, GS_FIELD(vectors_live), 0);
    uint8_t *skip = emit_jcc(e, 4);
    emit_vectors_in(e);
    emit_patch(skip, e->at);
    if (flags)
        code_flags_load(e);
    EMIT_RELOAD(e, changed);
}

static void emit_refill(CodeCache *c, Emit *e)
{
    static const uint8_t test_rax[] = {0x48, 0x85, 0xc0};
    c->thunk.refill = code_offset(c, e->at);
    EMIT_SPILL(e, changed);
    emit_store(e, GS_GPR(HOST_RSP), HOST_RSP);
    emit_store(e, GS_FIELD(scratch_temp), TEMP2);
    emit_mov(e, HOST_RSI, TEMP0);
    emit_vectors_out(e);
    emit_call(e, (const void *)(uintptr_t)translate_refill);
    emit_bytes(e, test_rax, sizeof(test_rax));
    uint8_t *slow = emit_jcc(e, 4);
    emit_resume(e, false);
    emit_load(e, HOST_RSP, GS_GPR(HOST_RSP));
    emit_load(e, TEMP2, GS_FIELD(scratch_temp));
    emit_jmp_operand(e, GS_FIELD(enter_target));

    c->thunk.slow_host = code_offset(c, e->at);
    code_flags_save(e);
    c->thunk.slow_saved = code_offset(c, e->at);
    EMIT_SPILL(e, changed);
    emit_store(e, GS_GPR(HOST_RSP), HOST_RSP);
    emit_vectors_out(e);
    emit_patch(slow, e->at);
    static const uint8_t rest[] = {HOST_RBX, HOST_RBP, HOST_R12, HOST_R13, HOST_R14, HOST_R15};
    EMIT_SPILL(e, rest);
    emit_call(e, (const void *)(uintptr_t)translate_slow);
    emit_bytes(e, test_rax, sizeof(test_rax));
    uint8_t *leave = emit_jcc(e, 4);
    emit_resume(e, true);
    EMIT_RELOAD(e, kept);
    emit_jmp_operand(e, GS_FIELD(enter_target));
    emit_patch(leave, e->at);
    emit_return(e);
}

static void emit_helper(CodeCache *c, Emit *e)
{
    static const uint8_t test_rax[] = {0x48, 0x85, 0xc0};
    c->thunk.helper = code_offset(c, e->at);
    EMIT_SPILL(e, changed);
    EMIT_SPILL(e, kept);
    emit_vectors_out(e);
    emit_byte_store(e, GS_FIELD(vectors_live), 0);
    emit_call(e, (const void *)(uintptr_t)translate_helper);
    emit_bytes(e, test_rax, sizeof(test_rax));
    uint8_t *leave = emit_jcc(e, 4);
    emit_store(e, GS_FIELD(enter_target), HOST_RAX);
    EMIT_RELOAD(e, changed);
    EMIT_RELOAD(e, kept);
    emit_jmp_operand(e, GS_FIELD(enter_target));
    emit_patch(leave, e->at);
    emit_return(e);
}

static void emit_load_vectors(CodeCache *c, Emit *e)
{
    c->thunk.load_vectors = code_offset(c, e->at);
    emit_vectors_in(e);
    emit_byte_store(e, GS_FIELD(vectors_live), 1);
    emit_jmp_operand(e, emit_reg(TEMP1));
}

void code_thunks_emit(SoftCpu *cpu)
{
    CodeCache *c = cpu->code;
    Emit e = {c->rw + 64, c->rw + 8192}; /* offset 0 is nowhere */
    cpu->host_mxcsr = 0x1f80;
    c->thunk.enter = code_offset(c, e.at);
    emit_enter(&e);
    emit_leave(c, &e);
    emit_miss(c, &e);
    emit_refill(c, &e);
    emit_helper(c, &e);
    emit_load_vectors(c, &e);
    g_assert(e.at < e.end);
    c->start = (code_offset(c, e.at) + 63) & ~63u;
}
