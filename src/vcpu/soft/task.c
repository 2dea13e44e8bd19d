/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Task switches between 16- and 32-bit task state segments (SDM vol. 3 8.3). */
#include "vcpu/soft/vm.h"

/* The two formats of SDM vol. 3 figures 8-2 and 8-10; GPRs and segments are consecutive. */
typedef struct TssFormat {
    unsigned size, limit;
    uint8_t eip, eflags, gpr, segments, n_segments, ldt, trap;
} TssFormat;

static const TssFormat format32 = {4, 0x67, 0x20, 0x24, 0x28, 0x48, 6, 0x60, 0x64};
static const TssFormat format16 = {2, 0x2b, 0x0e, 0x10, 0x12, 0x22, 4, 0x2a, 0};
#define TSS32_CR3 0x1c

static const TssFormat *format_of(unsigned type)
{
    return type & 8 ? &format32 : &format16;
}

/* What the incoming task starts with. */
typedef struct TaskImage {
    uint32_t cr3, eip, eflags, gpr[8];
    uint16_t segment[SEG_COUNT], ldt;
    bool trap;
} TaskImage;

static uint32_t field(SoftCpu *cpu, uint64_t base, unsigned offset, unsigned size)
{
    return (uint32_t)soft_system_load(cpu, (uint32_t)(base + offset), size);
}

static TaskImage image_read(SoftCpu *cpu, uint64_t base, const TssFormat *f)
{
    TaskImage t = {.cr3 = (uint32_t)cpu->cr3};
    if (f == &format32) {
        t.cr3 = field(cpu, base, TSS32_CR3, 4);
        t.trap = field(cpu, base, f->trap, 2) & 1;
    }
    t.eip = field(cpu, base, f->eip, f->size);
    t.eflags = field(cpu, base, f->eflags, f->size);
    for (unsigned i = 0; i < 8; i++)
        t.gpr[i] = field(cpu, base, f->gpr + i * f->size, f->size) |
                   (f->size == 2 ? 0xffff0000u : 0);
    for (unsigned i = 0; i < f->n_segments; i++)
        t.segment[i] = (uint16_t)field(cpu, base, f->segments + i * f->size, 2);
    t.ldt = (uint16_t)field(cpu, base, f->ldt, 2);
    return t;
}

static void image_save(SoftCpu *cpu, const TssFormat *f, uint64_t rip, uint64_t rflags)
{
    uint64_t base = cpu->tr.base;
    unsigned n = f->size;
    soft_system_store(cpu, (uint32_t)(base + f->eip), n, rip);
    soft_system_store(cpu, (uint32_t)(base + f->eflags), n, rflags);
    for (unsigned i = 0; i < 8; i++)
        soft_system_store(cpu, (uint32_t)(base + f->gpr + i * n), n, cpu->gpr[i]);
    for (unsigned i = 0; i < f->n_segments; i++)
        soft_system_store(cpu, (uint32_t)(base + f->segments + i * n), 2, cpu->seg[i].selector);
}

static void busy_set(SoftCpu *cpu, uint16_t selector, bool busy)
{
    uint32_t at = (uint32_t)cpu->gdtr.base + (selector & 0xfff8u) + 5;
    uint64_t type = soft_system_load(cpu, at, 1);
    soft_system_store(cpu, at, 1, busy ? type | 2 : type & ~2ull);
}

/* ---- loading the new task: faults here belong to it ---- */

static void load_ldt(SoftCpu *cpu, uint16_t selector)
{
    SoftDescriptor d;
    cpu->ldtr = soft_segment_null(selector);
    if (!(selector & 0xfffc))
        return;
    if ((selector & 4) || !soft_descriptor_read(cpu, selector, &d) || soft_descriptor_s(&d) ||
        soft_descriptor_type(&d) != SYS_LDT || !soft_descriptor_present(&d))
        soft_raise_selector(cpu, EXC_TS, selector);
    cpu->ldtr = soft_descriptor_segment(&d, selector);
}

static void load_code(SoftCpu *cpu, uint16_t selector)
{
    SoftDescriptor d;
    unsigned rpl = selector & 3;
    if (!(selector & 0xfffc) || !soft_descriptor_read(cpu, selector, &d) ||
        !soft_descriptor_code(&d))
        soft_raise_selector(cpu, EXC_TS, selector);
    unsigned dpl = soft_descriptor_dpl(&d);
    if (soft_descriptor_conforming(&d) ? dpl > rpl : dpl != rpl)
        soft_raise_selector(cpu, EXC_TS, selector);
    if (!soft_descriptor_present(&d))
        soft_raise_selector(cpu, EXC_NP, selector);
    soft_descriptor_accessed(cpu, &d);
    cpu->seg[SEG_CS] = soft_descriptor_segment(&d, selector);
}

static void load_data(SoftCpu *cpu, unsigned seg, uint16_t selector)
{
    SoftDescriptor d;
    unsigned rpl = selector & 3;
    if (!(selector & 0xfffc)) {
        cpu->seg[seg] = soft_segment_null(selector);
        return;
    }
    if (!soft_descriptor_read(cpu, selector, &d) || !soft_descriptor_s(&d) ||
        (soft_descriptor_code(&d) && !(soft_descriptor_type(&d) & 2)) ||
        (!soft_descriptor_conforming(&d) && soft_descriptor_dpl(&d) < MAX(rpl, cpu->cpl)))
        soft_raise_selector(cpu, EXC_TS, selector);
    if (!soft_descriptor_present(&d))
        soft_raise_selector(cpu, EXC_NP, selector);
    soft_descriptor_accessed(cpu, &d);
    cpu->seg[seg] = soft_descriptor_segment(&d, selector);
}

static void load_segments(SoftCpu *cpu, const TaskImage *t)
{
    static const uint8_t data[] = {SEG_ES, SEG_DS, SEG_FS, SEG_GS};
    load_ldt(cpu, t->ldt);
    if (cpu->rflags & FLAG_VM) {
        for (unsigned i = 0; i < SEG_COUNT; i++)
            soft_segment_real(cpu, i, t->segment[i]);
        return;
    }
    VcpuSegment ss = soft_segment_stack(cpu, t->segment[SEG_SS], cpu->cpl, EXC_TS);
    cpu->seg[SEG_SS] = ss;
    for (unsigned i = 0; i < sizeof(data); i++)
        load_data(cpu, data[i], t->segment[data[i]]);
    load_code(cpu, t->segment[SEG_CS]);
}

/* The registers of the new task, segments as selectors only: from here on it is the current one. */
static void commit(SoftCpu *cpu, const TaskImage *t, const TssFormat *f, uint32_t eflags)
{
    for (unsigned i = 0; i < 8; i++)
        cpu->gpr[i] = t->gpr[i];
    cpu->rip = t->eip;
    cpu->cr0 |= CR0_TS;
    cpu->dr[7] &= ~(uint64_t)0x155; /* local breakpoint enables and LE */
    soft_debug_update(cpu);
    if (f == &format32 && (cpu->cr0 & CR0_PG) && t->cr3 != cpu->cr3)
        soft_tlb_load_cr3(cpu, t->cr3, false);
    for (unsigned i = 0; i < SEG_COUNT; i++)
        cpu->seg[i] = soft_segment_null(t->segment[i]);
    soft_set_cpl(cpu, eflags & FLAG_VM ? 3 : t->segment[SEG_CS] & 3);
    soft_rflags_set(cpu, eflags & 0x3f7fd7);
}

static VcpuSegment find_tss(SoftCpu *cpu, uint16_t selector, unsigned reason, SoftDescriptor *d)
{
    unsigned fault = reason == SOFT_TASK_IRET ? EXC_TS : EXC_GP;
    unsigned busy = reason == SOFT_TASK_IRET ? 2 : 0;
    if (!(selector & 0xfffc) || (selector & 4) || !soft_descriptor_read(cpu, selector, d))
        soft_raise_selector(cpu, fault, selector);
    unsigned type = soft_descriptor_type(d);
    if (soft_descriptor_s(d) || (type & ~8u) != (SYS_TSS16 | busy))
        soft_raise_selector(cpu, fault, selector);
    if (!soft_descriptor_present(d))
        soft_raise_selector(cpu, EXC_NP, selector);
    VcpuSegment tss = soft_descriptor_segment(d, selector);
    if (tss.limit < format_of(type)->limit)
        soft_raise_selector(cpu, EXC_TS, selector);
    return tss;
}

void soft_task_switch(SoftCpu *cpu, uint16_t selector, unsigned reason, uint64_t rip,
                      bool has_error, uint32_t error)
{
    SoftDescriptor d;
    VcpuSegment tss = find_tss(cpu, selector, reason, &d);
    const TssFormat *to = format_of(soft_descriptor_type(&d));
    const TssFormat *from = format_of(cpu->tr.attr);
    bool nests = reason == SOFT_TASK_CALL || reason == SOFT_TASK_GATE;

    /* Everything that page faults in either TSS must do so before the first change. */
    TaskImage t = image_read(cpu, tss.base, to);
    unsigned mmu = soft_supervisor_mmu(cpu, false);
    soft_probe_as(cpu, mmu, (uint32_t)cpu->tr.base, from->limit + 1, SOFT_WRITE);
    soft_probe_as(cpu, mmu, (uint32_t)tss.base, to->limit + 1, SOFT_WRITE);

    if (reason == SOFT_TASK_JMP || reason == SOFT_TASK_IRET)
        busy_set(cpu, cpu->tr.selector, false);
    uint64_t rflags = soft_rflags(cpu);
    if (reason == SOFT_TASK_IRET)
        rflags &= ~(uint64_t)FLAG_NT;
    image_save(cpu, from, rip, rflags);
    if (nests) {
        soft_system_store(cpu, (uint32_t)tss.base, 2, cpu->tr.selector);
        t.eflags |= FLAG_NT;
    }
    if (reason != SOFT_TASK_IRET)
        busy_set(cpu, selector, true);
    tss.attr |= 2;
    cpu->tr = tss;

    cpu->system->rip_is_next = true;
    commit(cpu, &t, to, t.eflags | 2);
    load_segments(cpu, &t);
    soft_mode_update(cpu);
    if (has_error) {
        SoftStack s = soft_stack_current(cpu);
        soft_stack_push(cpu, &s, error, to->size);
        soft_set_sp(cpu, s.sp);
    }
    if (!(cpu->mode & SOFT_MODE_VM86) && cpu->rip > cpu->seg[SEG_CS].limit)
        soft_raise_error(cpu, EXC_GP, cpu->system->ext);
    cpu->system->rip_is_next = false;
    cpu->system->no_step = true;
    if (t.trap)
        soft_debug_trap(cpu, 0x8000); /* DR6.BT */
    soft_pend(cpu, SOFT_PENDING_LOOP);
}
