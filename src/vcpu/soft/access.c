/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Memory accesses that the first-level TLB does not satisfy: misses, page straddling, devices, pages
 * with decoded code, watchpoints and locked operands. Everything that can fault comes before the
 * first byte is written.
 */
#include "vcpu/soft/vm.h"

/* An access as the page pieces it consists of. */
typedef struct Pieces {
    SoftTranslation t[2];
    unsigned size[2];
    unsigned n;
} Pieces;

/* ---- devices ---- */

static uint64_t mmio_read(SoftCpu *cpu, uint64_t gpa, unsigned size)
{
    const VcpuBus *bus = cpu->vcpu.vm->bus;
    soft_sync_leave(cpu);
    vcpu_count(&cpu->stats.exits_mmio, 1);
    uint64_t v = bus->mmio_read(bus->opaque, cpu->vcpu.index, gpa, size);
    soft_sync_enter(cpu);
    return v;
}

static void mmio_write(SoftCpu *cpu, uint64_t gpa, unsigned size, uint64_t value)
{
    const VcpuBus *bus = cpu->vcpu.vm->bus;
    soft_sync_leave(cpu);
    vcpu_count(&cpu->stats.exits_mmio, 1);
    bus->mmio_write(bus->opaque, cpu->vcpu.index, gpa, size, value);
    soft_sync_enter(cpu);
}

/* The largest naturally aligned access at @gpa within @size bytes. */
static unsigned natural(uint64_t gpa, unsigned size)
{
    unsigned n = 8;
    while (n > size || (gpa & (n - 1)))
        n /= 2;
    return n;
}

static void device_read(SoftCpu *cpu, uint64_t gpa, uint8_t *to, unsigned size)
{
    while (size) {
        unsigned n = natural(gpa, size);
        uint64_t v = mmio_read(cpu, gpa, n);
        memcpy(to, &v, n);
        gpa += n;
        to += n;
        size -= n;
    }
}

static void device_write(SoftCpu *cpu, uint64_t gpa, const uint8_t *from, unsigned size)
{
    while (size) {
        unsigned n = natural(gpa, size);
        uint64_t v = 0;
        memcpy(&v, from, n);
        mmio_write(cpu, gpa, n, v);
        gpa += n;
        from += n;
        size -= n;
    }
}

/* ---- RAM ---- */

/* Guest accesses may be at any alignment, and alias anything. */
typedef uint16_t __attribute__((aligned(1), may_alias)) Unaligned16;
typedef uint32_t __attribute__((aligned(1), may_alias)) Unaligned32;
typedef uint64_t __attribute__((aligned(1), may_alias)) Unaligned64;

/* Copies with one host access where the size has one: what is atomic for the guest must stay so. */
static void copy(void *to, const void *from, unsigned size)
{
    switch (size) {
    case 1:
        *(volatile uint8_t *)to = *(const volatile uint8_t *)from;
        break;
    case 2:
        *(volatile Unaligned16 *)to = *(const volatile Unaligned16 *)from;
        break;
    case 4:
        *(volatile Unaligned32 *)to = *(const volatile Unaligned32 *)from;
        break;
    case 8:
        *(volatile Unaligned64 *)to = *(const volatile Unaligned64 *)from;
        break;
    default:
        memcpy(to, from, size);
    }
}

static void read_piece(SoftCpu *cpu, const SoftTranslation *t, uint8_t *to, unsigned size)
{
    if (t->page.host)
        copy(to, t->page.host + (t->gpa & 0xfff), size);
    else
        device_read(cpu, t->gpa, to, size);
}

static void write_piece(SoftCpu *cpu, const SoftTranslation *t, const uint8_t *from, unsigned size)
{
    if (!t->page.host || t->page.readonly) {
        device_write(cpu, t->gpa, from, size);
        return;
    }
    copy(t->page.host + (t->gpa & 0xfff), from, size);
    soft_page_written(soft_vm(cpu), t->page.word);
}

/* ---- translation of whole accesses ---- */

static void check_address(SoftCpu *cpu, uint64_t linear, unsigned size)
{
    if (!(cpu->mode & SOFT_MODE_LONG))
        return;
    if (!soft_canonical(linear) || !soft_canonical(linear + size - 1))
        soft_raise_error(cpu, cpu->op->seg == SEG_SS ? EXC_SS : EXC_GP, 0);
}

/* SDM vol. 3 6.15, interrupt 17: at CPL 3 with CR0.AM and EFLAGS.AC. */
static void check_alignment(SoftCpu *cpu, unsigned mmu, uint64_t linear, unsigned size)
{
    if (mmu == SOFT_MMU_CHECKED && (size & (size - 1)) == 0 && size <= 8 && (linear & (size - 1)))
        soft_raise_error(cpu, EXC_AC, 0);
}

static bool pieces_try(SoftCpu *cpu, unsigned mmu, uint64_t linear, unsigned size, unsigned access,
                       Pieces *p, uint64_t *fault, uint32_t *error)
{
    unsigned first = 4096 - (unsigned)(linear & 0xfff);
    p->n = first < size ? 2 : 1;
    p->size[0] = MIN(first, size);
    p->size[1] = size - p->size[0];
    for (unsigned i = 0; i < p->n; i++) {
        *fault = i ? linear + first : linear;
        if (!(cpu->mode & SOFT_MODE_LONG))
            *fault = (uint32_t)*fault;
        if (!soft_translate_try(cpu, *fault, mmu, access, &p->t[i], error))
            return false;
    }
    return true;
}

static Pieces pieces(SoftCpu *cpu, unsigned mmu, uint64_t linear, unsigned size, unsigned access)
{
    Pieces p;
    uint64_t fault;
    uint32_t error;
    check_address(cpu, linear, size);
    check_alignment(cpu, mmu, linear, size);
    if (!pieces_try(cpu, mmu, linear, size, access, &p, &fault, &error))
        soft_raise_pf(cpu, fault, error);
    if (cpu->system->data_breakpoints)
        soft_debug_access(cpu, linear, size, access);
    return p;
}

static void load(SoftCpu *cpu, const Pieces *p, uint8_t *to)
{
    read_piece(cpu, &p->t[0], to, p->size[0]);
    if (p->n > 1)
        read_piece(cpu, &p->t[1], to + p->size[0], p->size[1]);
}

static void store(SoftCpu *cpu, const Pieces *p, const uint8_t *from)
{
    write_piece(cpu, &p->t[0], from, p->size[0]);
    if (p->n > 1)
        write_piece(cpu, &p->t[1], from + p->size[0], p->size[1]);
}

/*
 * An instruction that stores into the code around it: the rest of its block may be stale, so it
 * starts again in a block of its own. Code reaches at most into the page after its own.
 */
static void restart_if_own_code(SoftCpu *cpu, const Pieces *p)
{
    if (cpu->mode & SOFT_MODE_SINGLE)
        return;
    for (unsigned i = 0; i < p->n; i++) {
        const SoftPage *page = &p->t[i].page;
        if (!page->word || !(atomic_load(page->word) & SOFT_WORD_PROTECTED))
            continue;
        uint64_t rip = cpu->op->rip;
        if (!(cpu->mode & SOFT_MODE_CODE64))
            rip = (uint32_t)(rip + cpu->seg[SEG_CS].base);
        for (unsigned j = 0; j < 2; j++) {
            SoftTranslation code;
            uint32_t error;
            uint64_t at = rip + j * 4096;
            if ((cpu->mode & SOFT_MODE_LONG) && !soft_canonical(at))
                continue;
            if (soft_translate_try(cpu, at, cpu->cpl == 3 ? SOFT_MMU_USER : SOFT_MMU_KERNEL,
                                   SOFT_EXECUTE, &code, &error) &&
                code.page.word == page->word) {
                cpu->system->single_once = true;
                longjmp(cpu->fault_jump, 2);
            }
        }
    }
}

/* The operand of the instruction in execution; one that is watched is met in a block of its own. */
static Pieces operand_pieces(SoftCpu *cpu, uint64_t linear, unsigned size, unsigned access)
{
    Pieces p = pieces(cpu, cpu->mmu, linear, size, access);
    if (cpu->system->data_breakpoints && soft_debug_must_restart(cpu)) {
        cpu->system->single_once = true;
        longjmp(cpu->fault_jump, 2);
    }
    return p;
}

/* ---- what handlers call ---- */

uint64_t soft_load_as(SoftCpu *cpu, unsigned mmu, uint64_t linear, unsigned size)
{
    Pieces p = pieces(cpu, mmu, linear, size, SOFT_READ);
    uint64_t v = 0;
    load(cpu, &p, (uint8_t *)&v);
    return v;
}

void soft_store_as(SoftCpu *cpu, unsigned mmu, uint64_t linear, unsigned size, uint64_t value)
{
    Pieces p = pieces(cpu, mmu, linear, size, SOFT_WRITE);
    store(cpu, &p, (const uint8_t *)&value);
}

void soft_probe_as(SoftCpu *cpu, unsigned mmu, uint64_t linear, unsigned size, unsigned access)
{
    Pieces p;
    uint64_t fault;
    uint32_t error;
    check_address(cpu, linear, size);
    check_alignment(cpu, mmu, linear, size);
    if (!pieces_try(cpu, mmu, linear, size, access, &p, &fault, &error))
        soft_raise_pf(cpu, fault, error);
}

uint64_t soft_load_slow(SoftCpu *cpu, uint64_t linear, unsigned size)
{
    Pieces p = operand_pieces(cpu, linear, size, SOFT_READ);
    uint64_t v = 0;
    load(cpu, &p, (uint8_t *)&v);
    return v;
}

void soft_store_slow(SoftCpu *cpu, uint64_t linear, unsigned size, uint64_t value)
{
    Pieces p = operand_pieces(cpu, linear, size, SOFT_WRITE);
    restart_if_own_code(cpu, &p);
    store(cpu, &p, (const uint8_t *)&value);
}

void soft_load_bytes(SoftCpu *cpu, uint64_t linear, void *to, unsigned size)
{
    if (!size)
        return;
    const SoftTlbEntry *e = soft_tlb_entry(cpu, linear);
    if (SOFT_TLB_HIT(e->read_tag, linear, size)) {
        memcpy(to, (const void *)(linear + e->addend), size);
        return;
    }
    Pieces p = operand_pieces(cpu, linear, size, SOFT_READ);
    load(cpu, &p, to);
}

void soft_store_bytes(SoftCpu *cpu, uint64_t linear, const void *from, unsigned size)
{
    if (!size)
        return;
    const SoftTlbEntry *e = soft_tlb_entry(cpu, linear);
    if (SOFT_TLB_HIT(e->write_tag, linear, size)) {
        memcpy((void *)(linear + e->addend), from, size);
        return;
    }
    Pieces p = operand_pieces(cpu, linear, size, SOFT_WRITE);
    restart_if_own_code(cpu, &p);
    store(cpu, &p, from);
}

void soft_probe_store(SoftCpu *cpu, uint64_t linear, unsigned size)
{
    const SoftTlbEntry *e = soft_tlb_entry(cpu, linear);
    if (SOFT_TLB_HIT(e->write_tag, linear, size))
        return;
    Pieces p = operand_pieces(cpu, linear, size, SOFT_WRITE);
    restart_if_own_code(cpu, &p); /* now: after the caller's next steps it is too late */
}

uint64_t soft_system_load(SoftCpu *cpu, uint64_t linear, unsigned size)
{
    return soft_load_as(cpu, soft_supervisor_mmu(cpu, false), linear, size);
}

void soft_system_store(SoftCpu *cpu, uint64_t linear, unsigned size, uint64_t value)
{
    soft_store_as(cpu, soft_supervisor_mmu(cpu, false), linear, size, value);
}

/* ---- read-modify-write ---- */

static bool direct(const SoftCpu *cpu, const Pieces *p, uint64_t linear)
{
    const SoftPage *page = &p->t[0].page;
    return p->n == 1 && page->host && !page->readonly &&
           !(atomic_load(page->word) & SOFT_WORD_PROTECTED) &&
           !soft_debug_page_watched(cpu, linear);
}

void *soft_rmw_begin(SoftCpu *cpu, SoftRmw *rmw, uint64_t linear, unsigned size, bool locked)
{
    rmw->linear = linear;
    rmw->size = size;
    rmw->bounced = false;
    rmw->locked = locked;
    const SoftTlbEntry *e = soft_tlb_entry(cpu, linear);
    if (SOFT_TLB_HIT(e->write_tag, linear, size))
        return (void *)(linear + e->addend);

    if (cpu->system->debugger.data)
        soft_debugger_access(cpu, linear, size, SOFT_READ);
    for (;;) {
        Pieces p = operand_pieces(cpu, linear, size, SOFT_WRITE);
        if (direct(cpu, &p, linear))
            return p.t[0].page.host + (p.t[0].gpa & 0xfff);
        restart_if_own_code(cpu, &p);
        if (locked) {
            /* The page tables may have changed until the others stood still: look again. */
            uint64_t fault;
            uint32_t error;
            soft_exclusive_begin(cpu);
            if (!pieces_try(cpu, cpu->mmu, linear, size, SOFT_WRITE, &p, &fault, &error)) {
                soft_exclusive_end(cpu);
                continue;
            }
        }
        rmw->bounced = true;
        load(cpu, &p, rmw->bounce);
        return rmw->bounce;
    }
}

void soft_rmw_end(SoftCpu *cpu, SoftRmw *rmw)
{
    if (!rmw->bounced)
        return;
    Pieces p;
    uint64_t fault;
    uint32_t error;
    /* The second-level TLB still holds what begin found; only this vCPU could have dropped it. */
    if (pieces_try(cpu, cpu->mmu, rmw->linear, rmw->size, SOFT_WRITE, &p, &fault, &error))
        store(cpu, &p, rmw->bounce);
    if (rmw->locked)
        soft_exclusive_end(cpu);
}
