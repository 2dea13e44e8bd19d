/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The software CPU: one vCPU in ring 3 of 64-bit mode. For the interpreter a case is decoded into an
 * array of two ops, the second of which stops, and its handler is called as the run loop would. For the
 * translator it is a block of its own.
 */
#include "diff.h"

#include <asm/prctl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "vcpu/soft/translate/cache.h"
#include "vcpu/soft/translate/run.h"

#define RAM_SIZE (1u << 20)
/* Guest physical memory: page tables, then the data pages in an order that is not linear. */
#define GPA_TABLES 0x1000u
#define GPA_PAGES 0x10000u

static uint8_t *ram;
static SoftCpu *cpu;
static VcpuSegment segments[2][SEG_COUNT]; /* 64-bit and compatibility mode */
static unsigned cases;
bool diff_translator;

static uint32_t page_gpa(unsigned page)
{
    return GPA_PAGES + (page * 7u % DIFF_PAGES) * 4096u;
}

uint8_t *diff_soft_page(unsigned page)
{
    return ram + page_gpa(page);
}

static void put64(uint32_t gpa, uint64_t value)
{
    memcpy(ram + gpa, &value, 8);
}

static void page_tables(void)
{
    uint32_t pml4 = GPA_TABLES, pdpt = pml4 + 4096, pd = pdpt + 4096, pt = pd + 4096;
    put64(pml4, pdpt | 7u);
    put64(pdpt, pd | 7u);
    put64(pd + (uint32_t)(DIFF_BASE >> 21 & 511) * 8, pt | 7u);
    for (unsigned i = 0; i < DIFF_PAGES; i++) {
        static const uint64_t rights[] = {0, 0x8000000000000007, 0x8000000000000005, 5};
        uint64_t entry = rights[diff_page_kind[i]];
        if (entry)
            put64(pt + ((uint32_t)(DIFF_BASE >> 12 & 511) + i) * 8, entry | page_gpa(i));
    }
}

static void fail(GError *err)
{
    fprintf(stderr, "diff: %s\n", err ? err->message : "?");
    exit(99);
}

static void set_segment(VcpuSegment *s, uint16_t selector, uint32_t attr)
{
    s->selector = selector;
    s->base = 0;
    s->limit = 0xffffffff;
    s->attr = attr;
}

static void initial_state(VcpuState *s)
{
    vcpu_state_reset(s, 0);
    s->cr0 = 0x80050033; /* PG AM WP NE ET MP PE */
    s->cr4 = 0x50620;    /* OSXSAVE FSGSBASE OSXMMEXCPT OSFXSR PAE */
    s->efer = 0xd01;
    s->xcr0 = 7;
    s->cr3 = GPA_TABLES;
    s->rflags = 0x202;
    set_segment(&s->seg[SEG_CS], 0x33, 0xa0fb);
    set_segment(&s->seg[SEG_SS], 0x2b, 0xc0f3);
    for (unsigned i = 0; i < SEG_COUNT; i++)
        if (i != SEG_CS && i != SEG_SS)
            set_segment(&s->seg[i], i < SEG_FS ? 0x2b : 0, i < SEG_FS ? 0xc0f3 : SEG_ATTR_UNUSABLE);
    s->seg[SEG_GS].base = DIFF_GS_BASE;
}

void diff_soft_init(void)
{
    static const VcpuBus bus;
    VcpuVmConfig config = {.n_vcpus = 1, .bus = &bus};
    GError *err = NULL;
    VcpuState state;
    diff_translator = g_strcmp0(getenv("LODGE_DIFF_ENGINE"), "translator") == 0;
    config.tuning.interpreter = !diff_translator;
    if (getenv("LODGE_DIFF_TUNING") && !vcpu_tuning_parse(getenv("LODGE_DIFF_TUNING"), &config.tuning, &err))
        fail(err);
    ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    VcpuVm *vm = vcpu_engine_soft.vm_new(&config, &err);
    if (!vm)
        fail(err);
    VcpuRamSlot slot = {.gpa = 0, .size = RAM_SIZE, .hva = ram};
    if (!vcpu_engine_soft.set_ram(vm, 0, &slot, &err))
        fail(err);
    cpu = (SoftCpu *)vcpu_engine_soft.vcpu_new(vm, 0, &err);
    if (!cpu)
        fail(err);
    if (diff_translator && !cpu->code) {
        fprintf(stderr, "diff: the translator is not there\n");
        exit(99);
    }
    for (unsigned i = 0; i < DIFF_PAGES; i++)
        memset(ram + page_gpa(i), 0xcc, 4096);
    page_tables();
    initial_state(&state);
    if (!vcpu_engine_soft.set_state(&cpu->vcpu, &state, &err))
        fail(err);
    memcpy(segments[0], cpu->seg, sizeof(segments[0]));
    memcpy(segments[1], cpu->seg, sizeof(segments[1]));
    set_segment(&segments[1][SEG_CS], 0x23, 0xc0fb);
}

static void state_in(const DiffState *s, bool code32)
{
    memcpy(cpu->seg, segments[code32], sizeof(cpu->seg));
    memcpy(cpu->gpr, s->gpr, sizeof(cpu->gpr));
    cpu->rip = s->rip;
    soft_rflags_set(cpu, s->rflags);
    memcpy(cpu->fpu.fxsave, s->fx, FX_XMM);
    for (unsigned i = 0; i < 16; i++) {
        memcpy(cpu->fpu.ymm[i], s->fx + FX_XMM + i * 16, 16);
        memcpy(cpu->fpu.ymm[i] + 16, s->high[i], 16);
    }
    soft_mode_update(cpu);
}

static void state_out(DiffState *s)
{
    memcpy(s->gpr, cpu->gpr, sizeof(cpu->gpr));
    s->rflags = soft_rflags(cpu);
    memcpy(s->fx, cpu->fpu.fxsave, FX_XMM);
    for (unsigned i = 0; i < 16; i++) {
        memcpy(s->fx + FX_XMM + i * 16, cpu->fpu.ymm[i], 16);
        memcpy(s->high[i], cpu->fpu.ymm[i] + 16, 16);
    }
}

static void stop(SoftCpu *c, const SoftOp *op)
{
    c->rip = op->rip;
}

/* Decodes and executes; returns without a fault, or jumps to cpu->fault_jump. */
static void execute(const DiffCase *c)
{
    static SoftOp ops[2];
    bool ends;
    memset(ops, 0, sizeof(ops));
    cpu->op = &ops[0];
    ops[0].rip = c->in.rip;
    unsigned length = soft_decode(cpu, cpu->mode, c->in.rip, c->bytes, 15, &ops[0], &ends);
    if (!length)
        length = 15;
    ops[1].handler = stop;
    ops[1].rip = c->in.rip + length;
    if (cpu->mode & SOFT_MODE_CODE64 ? 0 : 1)
        ops[1].rip = (uint32_t)ops[1].rip;
    ops[0].handler(cpu, &ops[0]);
}

static void forget_code(void)
{
    cpu->vcpu.engine->ram_dirty(cpu->vcpu.vm, page_gpa(DIFF_CODE_PAGE), 4096);
}

/* A sequence runs in the block cache until something faults, at the latest its last instruction. */
static _Noreturn void execute_sequence(void)
{
    forget_code();
    for (;;) {
        atomic_store(&cpu->pending, 0);
        if (diff_translator && soft_translate_possible(cpu)) {
            cpu->code->ops_max = TRANSLATE_OPS_MAX;
            soft_translate_run(cpu);
        } else {
            soft_blocks_run(cpu);
        }
    }
}

/* Translated code reaches the vCPU through GS, the host's cases their data. */
static void set_gs(uintptr_t base)
{
    if (diff_translator && syscall(SYS_arch_prctl, ARCH_SET_GS, base))
        exit(99);
}

/* A block of one instruction: the translator returns after it, as something is pending. */
static void execute_translated(void)
{
    cpu->code->ops_max = 1;
    soft_translate_run(cpu);
}

void diff_soft_run(const DiffCase *c, DiffResult *result)
{
    GError *err = NULL;
    /* Stubs of random encodings are used once: start afresh before the arena is full. */
    if (++cases % 16384 == 0) {
        soft_vector_free(cpu);
        if (!soft_vector_init(cpu, &err))
            fail(err);
    }
    if (diff_chance(20))
        soft_tlb_flush(cpu, true);
    state_in(&c->in, c->code32);
    memset(result, 0, sizeof(*result));
    /* Something is pending, so that branches and stores return instead of going on. */
    if (diff_translator)
        forget_code();
    atomic_store(&cpu->pending, c->repeats ? 0 : SOFT_PENDING_KICK);
    set_gs((uintptr_t)cpu);
    if (setjmp(cpu->fault_jump) == 0) {
        if (c->row->kind == DIFF_SEQUENCE)
            execute_sequence();
        if (diff_translator && soft_translate_possible(cpu))
            execute_translated();
        else
            execute(c);
        result->vector = -1;
        state_out(&result->state);
        result->state.rip = cpu->rip;
    } else {
        result->vector = cpu->fault_vector;
        result->error = cpu->fault_has_error ? cpu->fault_error : 0;
        if (result->vector == EXC_PF)
            result->address = cpu->cr2;
        state_out(&result->state);
        result->state.rip = cpu->op->rip;
        /* A repeated instruction, for which nothing was pending, went through: the filler faults. */
        if (diff_translator && c->repeats && cpu->op->rip == c->in.rip + c->length)
            result->vector = -1;
    }
    set_gs(DIFF_GS_BASE);
}

bool diff_soft_values_hold(const DiffCase *c, const DiffState *after)
{
    if (!diff_translator || c->code32 || c->row->kind == DIFF_SEQUENCE)
        return true;
    const Translation *t = cpu->code->translation;
    if (t->rip != c->in.rip)
        return true;
    for (unsigned r = 0; r < 16; r++) {
        int64_t moved = (int64_t)(after->gpr[r] - c->in.gpr[r]);
        if (!t->helper[0] && (moved >= MIRROR_STEP_MAX || moved <= -MIRROR_STEP_MAX) &&
            mirror_keeps(t, &t->op[0], r))
            return false;
    }
    return coalesce_values_hold(t, c->in.gpr, after->gpr);
}
