/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * System instructions that kernels execute all the time. Here is what they do when nothing stands in
 * the way; what does is looked for first, and then the interpreter has them. A privilege level other
 * than the mode's 0 or 3 is such a thing.
 */
#include "vcpu/soft/translate/cache.h"

#define SEG_BASE(n) emit_gs(offsetof(SoftCpu, seg) + (n) * sizeof(VcpuSegment) + offsetof(VcpuSegment, base))
#define SYSTEM_FIELD(reg, field) emit_mem(reg, (int32_t)offsetof(SoftSystem, field))

enum { CC_Z = 4, CC_NZ = 5 };

/* Only for code of level 0: gives up in user mode, looks at the level in the modes of 0 to 2. */
static bool supervisor_only(Translation *t, const SoftOp *op)
{
    if (t->key & SOFT_MODE_USER)
        return false;
    translate_flags_clobber(t);
    emit_alu8_imm(&t->e, ALU_CMP, GS_FIELD(cpl), 0);
    translate_slow_from(t, op, emit_jcc(&t->e, CC_NZ));
    return true;
}

static void rflags_change(Translation *t, uint32_t flag, bool set)
{
    if (set)
        emit_alu32_imm(&t->e, ALU_OR, GS_FIELD(rflags), (int32_t)flag);
    else
        emit_alu32_imm(&t->e, ALU_AND, GS_FIELD(rflags), (int32_t)~flag);
}

bool translate_direction(Translation *t, const SoftOp *op)
{
    translate_flags_clobber(t);
    rflags_change(t, FLAG_DF, op->opcode & 1);
    return true;
}

/* ---- interrupts ---- */

bool translate_cli(Translation *t, const SoftOp *op)
{
    if (!supervisor_only(t, op))
        return false;
    rflags_change(t, FLAG_IF, false);
    translate_memory_done(t, op);
    return true;
}

/*
 * No interrupt is taken between STI and the next instruction (SDM vol. 2, STI): so it is in translated
 * code, which looks for them when it leaves the block, if only there is a next one in this block and
 * none is waiting already.
 */
bool translate_sti(Translation *t, const SoftOp *op)
{
    if (t->i + 1 == t->n || !supervisor_only(t, op))
        return false;
    emit_load(&t->e, TEMP0, GS_FIELD(system));
    emit_alu8_imm(&t->e, ALU_CMP, SYSTEM_FIELD(TEMP0, interrupt_waiting), 0);
    translate_slow_from(t, op, emit_jcc(&t->e, CC_NZ));
    rflags_change(t, FLAG_IF, true);
    translate_memory_done(t, op);
    return true;
}

/* RFLAGS without VM and RF; AH of LAHF has its bit 1 set as RFLAGS has. */
bool translate_pushf(Translation *t, const SoftOp *op)
{
    Emit *e = &t->e;
    EmitOperand m;

    if (op->size != 8)
        return false;
    translate_flags_clobber(t);
    emit_load8_zero(e, TEMP0, GS_FIELD(arith));
    emit_rm(e, (EmitForm){.opcode = 0xc1}, 4, emit_reg(TEMP0)); /* shl $11: AL is OF */
    emit_imm(e, 11, 1);
    emit_load8_zero(e, TEMP1, emit_gs(offsetof(SoftCpu, arith) + 1));
    emit_alu32(e, ALU_OR, TEMP0, emit_reg(TEMP1));
    emit_load32(e, TEMP1, GS_FIELD(rflags));
    emit_alu32_imm(e, ALU_AND, emit_reg(TEMP1), (int32_t)~(FLAG_VM | FLAG_RF | FLAG_ARITH));
    emit_alu32(e, ALU_OR, TEMP0, emit_reg(TEMP1));
    emit_store(e, GS_FIELD(scratch_value), TEMP0);
    m = translate_memory_at(t, op, GPR_RSP, -8, 8, TRANSLATE_WRITE);
    emit_load(e, TEMP2, GS_FIELD(scratch_value));
    emit_store(e, m, TEMP2);
    emit_lea(e, HOST_RSP, emit_mem(HOST_RSP, -8));
    translate_memory_done(t, op);
    return true;
}

/* ---- supervisor access to user pages ---- */

/* The key of the code that follows, where data accesses are of kind @mmu. */
static void access_change(Translation *t, const SoftOp *op, bool ac, unsigned mmu)
{
    uint32_t key = (t->key & ~(7u << TRANSLATE_KEY_MMU_SHIFT)) | mmu << TRANSLATE_KEY_MMU_SHIFT;
    rflags_change(t, FLAG_AC, ac);
    emit_rm(&t->e, (EmitForm){.opcode = 0xc6}, 0, GS_FIELD(mmu));
    emit_imm(&t->e, mmu, 1);
    emit_store32_imm(&t->e, GS_FIELD(code_key), key);
    translate_exit(t, translate_next_rip(op), key);
}

bool translate_stac(Translation *t, const SoftOp *op)
{
    if (key_mmu(t->key) != SOFT_MMU_KERNEL || !supervisor_only(t, op))
        return false; /* with SMAP off, or allowed already */
    access_change(t, op, true, SOFT_MMU_KERNEL_SMAP_OFF);
    return true;
}

bool translate_clac(Translation *t, const SoftOp *op)
{
    if (key_mmu(t->key) != SOFT_MMU_KERNEL_SMAP_OFF || !supervisor_only(t, op))
        return false;
    emit_test_imm(&t->e, GS_FIELD(cr4), CR4_SMAP);
    translate_slow_from(t, op, emit_jcc(&t->e, CC_Z));
    access_change(t, op, false, SOFT_MMU_KERNEL);
    return true;
}

/* ---- segment bases ---- */

bool translate_swapgs(Translation *t, const SoftOp *op)
{
    if (!supervisor_only(t, op))
        return false;
    emit_load(&t->e, TEMP0, GS_FIELD(system));
    emit_load(&t->e, TEMP1, SEG_BASE(SEG_GS));
    emit_load(&t->e, TEMP2, SYSTEM_FIELD(TEMP0, msr.kernel_gs_base));
    emit_store(&t->e, SYSTEM_FIELD(TEMP0, msr.kernel_gs_base), TEMP1);
    emit_store(&t->e, SEG_BASE(SEG_GS), TEMP2);
    translate_memory_done(t, op);
    return true;
}

static void require_fsgsbase(Translation *t, const SoftOp *op)
{
    translate_flags_clobber(t);
    emit_test_imm(&t->e, GS_FIELD(cr4), CR4_FSGSBASE);
    translate_slow_from(t, op, emit_jcc(&t->e, CC_Z));
}

/* ModRM.reg: 0 and 2 FS, 1 and 3 GS. */
static unsigned base_segment(const SoftOp *op)
{
    return op->modrm & 8 ? SEG_GS : SEG_FS;
}

bool translate_base_read(Translation *t, const SoftOp *op)
{
    unsigned to = translate_target(op->rm, TEMP0);

    require_fsgsbase(t, op);
    if (op->size == 8)
        emit_load(&t->e, to, SEG_BASE(base_segment(op)));
    else
        emit_load32(&t->e, to, SEG_BASE(base_segment(op)));
    translate_put(t, op->rm, to);
    translate_memory_done(t, op);
    return true;
}

bool translate_base_write(Translation *t, const SoftOp *op)
{
    Emit *e = &t->e;
    unsigned from;

    require_fsgsbase(t, op);
    from = translate_get(t, op->rm, TEMP2);
    if (op->size == 8) {
        translate_require_canonical(t, op, from);
        emit_store(e, SEG_BASE(base_segment(op)), from);
    } else {
        emit_mov32(e, TEMP0, from);
        emit_store(e, SEG_BASE(base_segment(op)), TEMP0);
    }
    translate_memory_done(t, op);
    return true;
}

/* Loads of segment registers and moves of control and debug registers are the interpreter's. */
bool translate_mov_from_segment(Translation *t, const SoftOp *op)
{
    unsigned to = translate_target(op->rm, TEMP0);

    if (op->map != 0 || op->opcode != 0x8c || (op->flags & SOFT_OP_MEM) || op->size == 2)
        return false;
    emit_load16_zero(&t->e, to, emit_gs(offsetof(SoftCpu, seg) + op->reg * sizeof(VcpuSegment) +
                                        offsetof(VcpuSegment, selector)));
    translate_put(t, op->rm, to);
    return true;
}

/* ---- time ---- */

bool translate_rdtsc(Translation *t, const SoftOp *op)
{
    static const uint8_t lfence_rdtsc[] = {0x0f, 0xae, 0xe8, 0x0f, 0x31};
    Emit *e = &t->e;

    if (t->cpu->system->observer)
        return false;
    translate_flags_clobber(t);
    emit_test_imm(e, GS_FIELD(cr4), CR4_TSD);
    translate_slow_from(t, op, emit_jcc(e, CC_NZ));
    emit_bytes(e, lfence_rdtsc, sizeof(lfence_rdtsc)); /* or it is read ahead of what came before */
    emit_rorx(e, HOST_RDX, HOST_RDX, 32);
    emit_lea(e, TEMP0, emit_mem_index(HOST_RDX, HOST_RAX, 0, 0));
    emit_load(e, TEMP1, GS_FIELD(tsc_offset));
    emit_alu(e, ALU_ADD, TEMP0, emit_reg(TEMP1));
    emit_mov32(e, HOST_RAX, TEMP0);
    emit_rorx(e, TEMP0, TEMP0, 32);
    emit_mov32(e, HOST_RDX, TEMP0);
    if (op->modrm == 0xf9) { /* RDTSCP */
        emit_load(e, TEMP0, GS_FIELD(system));
        emit_load32(e, HOST_RCX, SYSTEM_FIELD(TEMP0, msr.tsc_aux));
    }
    translate_memory_done(t, op);
    return true;
}
