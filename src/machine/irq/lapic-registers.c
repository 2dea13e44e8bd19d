/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The local APIC's registers as MMIO (xAPIC, 10.4.1) and as MSRs (x2APIC, 10.12). */
#include "machine/irq/lapic.h"

#define MSR_APIC_BASE    0x1bu
#define MSR_TSC_DEADLINE 0x6e0u
#define MSR_X2APIC       0x800u

#define ICR_WRITABLE 0x000ccfffu

static uint32_t logical_id(const Lapic *l)
{
    /* x2APIC: derived from the ID (10.12.10.2). */
    return lapic_x2apic(l) ? l->index >> 4 << 16 | 1u << (l->index & 15) : l->ldr;
}

/* False: no such register. */
static bool read_register(Lapic *l, unsigned reg, uint32_t *value)
{
    if (reg >= LAPIC_ISR && reg < LAPIC_ISR + 8)
        return *value = l->isr[reg - LAPIC_ISR], true;
    if (reg >= LAPIC_TMR && reg < LAPIC_TMR + 8)
        return *value = l->tmr[reg - LAPIC_TMR], true;
    if (reg >= LAPIC_IRR && reg < LAPIC_IRR + 8)
        return *value = l->irr[reg - LAPIC_IRR], true;
    if (reg >= LAPIC_LVT_FIRST && reg <= LAPIC_LVT_LAST)
        return *value = l->lvt[reg - LAPIC_LVT_FIRST], true;
    switch (reg) {
    case LAPIC_ID:
        *value = lapic_x2apic(l) ? l->index : l->index << 24;
        return true;
    case LAPIC_VERSION:
        *value = (LVT_COUNT - 1) << 16 | 0x14;
        return true;
    case LAPIC_TPR:
        *value = l->tpr;
        return true;
    case LAPIC_APR:
        *value = 0;
        return true;
    case LAPIC_PPR:
        *value = lapic_ppr(l);
        return true;
    case LAPIC_LDR:
        *value = logical_id(l);
        return true;
    case LAPIC_DFR:
        *value = l->dfr;
        return !lapic_x2apic(l);
    case LAPIC_SVR:
        *value = l->svr;
        return true;
    case LAPIC_ESR:
        *value = l->esr;
        return true;
    case LAPIC_ICR:
        *value = l->icr_low;
        return true;
    case LAPIC_ICR_HIGH:
        *value = l->icr_high;
        return !lapic_x2apic(l);
    case LAPIC_INITIAL:
        *value = l->initial_count;
        return true;
    case LAPIC_CURRENT:
        *value = lapic_timer_current(l);
        return true;
    case LAPIC_DIVIDE:
        *value = l->divide;
        return true;
    default:
        *value = 0;
        return false;
    }
}

static const uint32_t lvt_writable[LVT_COUNT] = {
    [LVT_TIMER] = 0x700ff, [LVT_THERMAL] = 0x107ff, [LVT_PERFORMANCE] = 0x107ff,
    [LVT_LINT0] = 0x1a7ff, [LVT_LINT1] = 0x1a7ff,   [LVT_ERROR] = 0x100ff,
};

/* The lock held. */
static void write_lvt(Lapic *l, unsigned n, uint32_t value)
{
    uint32_t old = l->lvt[n];
    value &= lvt_writable[n];
    if (!(l->svr & SVR_ENABLE))
        value |= LVT_MASKED;
    l->lvt[n] = value;
    if (n != LVT_TIMER)
        return;
    bool was_deadline = LVT_TIMER_MODE(old) == TIMER_TSC_DEADLINE;
    bool is_deadline = LVT_TIMER_MODE(value) == TIMER_TSC_DEADLINE;
    if (was_deadline != is_deadline) { /* switching disarms (10.5.4.1) */
        l->tsc_deadline = 0;
        l->initial_count = 0;
    } else if (LVT_TIMER_MODE(old) != LVT_TIMER_MODE(value)) {
        lapic_timer_mode_changed(l, LVT_TIMER_MODE(old));
    }
    lapic_timer_arm(l);
}

static void write_svr(Lapic *l, uint32_t value)
{
    l->svr = value & 0x3ff;
    if (l->svr & SVR_ENABLE)
        return;
    for (unsigned i = 0; i < LVT_COUNT; i++)
        l->lvt[i] |= LVT_MASKED;
    lapic_timer_arm(l);
}

/* The lock held. False: no such register. */
static bool write_locked(Lapic *l, unsigned reg, uint32_t value)
{
    if (reg >= LAPIC_LVT_FIRST && reg <= LAPIC_LVT_LAST)
        return write_lvt(l, reg - LAPIC_LVT_FIRST, value), true;
    switch (reg) {
    case LAPIC_ID: /* read-only, as in newer processors */
        return !lapic_x2apic(l);
    case LAPIC_TPR:
        l->tpr = value & 0xff;
        return true;
    case LAPIC_LDR:
        l->ldr = value & 0xff000000;
        return !lapic_x2apic(l);
    case LAPIC_DFR:
        l->dfr = value | 0x0fffffff;
        return !lapic_x2apic(l);
    case LAPIC_SVR:
        write_svr(l, value);
        return true;
    case LAPIC_ESR: /* a write shows what was collected since the last one (10.5.3) */
        l->esr = l->esr_pending;
        l->esr_pending = 0;
        return true;
    case LAPIC_ICR_HIGH:
        l->icr_high = value & 0xff000000;
        return !lapic_x2apic(l);
    case LAPIC_INITIAL:
        if (LVT_TIMER_MODE(l->lvt[LVT_TIMER]) == TIMER_TSC_DEADLINE)
            return true;
        l->initial_count = value;
        l->count_start_ns = machine_clock_ns(l->machine);
        l->count_over = false;
        lapic_timer_arm(l);
        return true;
    case LAPIC_DIVIDE:
        l->divide = value & 0xb;
        l->count_start_ns = machine_clock_ns(l->machine);
        lapic_timer_arm(l);
        return true;
    default:
        return false;
    }
}

/* No lock held. False: no such register, or not writable. */
static bool write_register(Lapic *l, unsigned reg, uint32_t value)
{
    if (reg == LAPIC_EOI) {
        lapic_end_of_interrupt(l);
        return true;
    }
    if (reg == LAPIC_ICR) {
        pthread_mutex_lock(&l->lock);
        l->icr_low = value & ICR_WRITABLE;
        uint64_t icr = (uint64_t)l->icr_high << 32 | l->icr_low;
        pthread_mutex_unlock(&l->lock);
        lapic_send_icr(l, icr);
        return true;
    }
    pthread_mutex_lock(&l->lock);
    bool ok = write_locked(l, reg, value);
    if (!ok && !lapic_x2apic(l)) /* in x2APIC mode #GP says it all */
        lapic_error(l, ESR_ILLEGAL_REGISTER);
    bool wake = lapic_deliverable(l);
    pthread_mutex_unlock(&l->lock);
    if (reg >= LAPIC_LVT_FIRST && reg <= LAPIC_LVT_LAST)
        lapic_lvt_changed(l, reg - LAPIC_LVT_FIRST);
    if (wake)
        lapic_signal(l);
    return ok;
}

/* ---- MMIO
 * --------------------------------------------------------------------------------------------- */

static Lapic *current(void *opaque)
{
    const LapicWindow *w = opaque;
    LapicDevice *d = w->device;
    int vcpu = machine_current_vcpu();
    if (vcpu < 0 || (unsigned)vcpu >= d->count)
        return NULL;
    Lapic *l = &d->cpu[vcpu];
    bool here = (l->base & BASE_ADDRESS) == __atomic_load_n(&w->base, __ATOMIC_RELAXED);
    return here && (l->base & (BASE_ENABLE | BASE_X2APIC)) == BASE_ENABLE ? l : NULL;
}

static uint64_t lapic_mmio_read(void *opaque, uint64_t offset, unsigned size)
{
    Lapic *l = current(opaque);
    uint32_t value = 0;
    if (!l)
        return UINT32_MAX;
    if (offset & 0xf)
        return 0; /* registers are aligned to 16 bytes; the rest is undefined */
    pthread_mutex_lock(&l->lock);
    if (!read_register(l, (unsigned)(offset >> 4), &value))
        lapic_error(l, ESR_ILLEGAL_REGISTER);
    pthread_mutex_unlock(&l->lock);
    return value;
}

static void lapic_mmio_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    Lapic *l = current(opaque);
    if (l && !(offset & 0xf))
        write_register(l, (unsigned)(offset >> 4), (uint32_t)value);
}

const IoOps lapic_ops = {lapic_mmio_read, lapic_mmio_write, 4, 4, true};

/* ---- MSRs
 * ---------------------------------------------------------------------------------------------- */

static bool write_base_locked(Lapic *l, uint64_t to, uint64_t address)
{
    uint64_t flags = BASE_ENABLE | BASE_X2APIC;
    pthread_mutex_lock(&l->lock);
    uint64_t from = l->base & flags;
    /* Figure 10-27: x2APIC only from xAPIC, and back only by way of disabled. */
    bool ok =
        to != BASE_X2APIC && !(from == 0 && to == flags) && !(from == flags && to == BASE_ENABLE);
    if (ok) {
        if (!to)
            lapic_init_state(l);
        l->base = (l->base & BASE_BSP) | address | to;
    }
    pthread_mutex_unlock(&l->lock);
    return ok;
}

static bool write_base(Lapic *l, uint64_t value)
{
    uint64_t flags = BASE_ENABLE | BASE_X2APIC, address = value & ~(BASE_BSP | flags);
    /* #GP too for an address that other parts of the machine have. */
    if (address & ~BASE_ADDRESS)
        return false;
    machine_lock(l->machine);
    bool open = lapic_window_open(lapic_device(l), address);
    bool ok = open && write_base_locked(l, value & flags, address);
    lapic_windows_close_unused(lapic_device(l));
    machine_unlock(l->machine);
    return ok;
}
static void write_deadline(Lapic *l, uint64_t value)
{
    pthread_mutex_lock(&l->lock);
    bool wake = false;
    if (LVT_TIMER_MODE(l->lvt[LVT_TIMER]) == TIMER_TSC_DEADLINE) {
        l->tsc_deadline = value;
        wake = lapic_timer_deadline_passed(l) && lapic_deliverable(l);
        lapic_timer_arm(l);
    }
    pthread_mutex_unlock(&l->lock);
    if (wake)
        lapic_signal(l);
}

bool lapic_msr_read(Device *dev, unsigned vcpu, uint32_t msr, uint64_t *value)
{
    Lapic *l = &((LapicDevice *)dev)->cpu[vcpu];
    unsigned reg = msr - MSR_X2APIC;
    uint32_t low = 0;
    pthread_mutex_lock(&l->lock);
    bool ok = true;
    if (msr == MSR_APIC_BASE) {
        *value = l->base;
    } else if (msr == MSR_TSC_DEADLINE) {
        *value = l->tsc_deadline;
    } else if (msr < MSR_X2APIC || reg > 0xff || !lapic_x2apic(l)) {
        ok = false;
    } else if (reg == LAPIC_ICR) {
        *value = (uint64_t)l->icr_high << 32 | l->icr_low;
    } else {
        ok = reg != LAPIC_APR && read_register(l, reg, &low);
        *value = low;
    }
    pthread_mutex_unlock(&l->lock);
    return ok;
}

/* Bits that are not 0 in a reserved place of a register raise #GP (10.12.1.3). */
static bool x2apic_value_valid(unsigned reg, uint64_t value)
{
    if (reg == LAPIC_ICR)
        return !(value & UINT32_MAX & ~(uint64_t)ICR_WRITABLE);
    if (value > UINT32_MAX)
        return false;
    if (reg == LAPIC_EOI || reg == LAPIC_ESR)
        return value == 0;
    if (reg == LAPIC_TPR || reg == LAPIC_SELF_IPI)
        return value <= 0xff;
    return true;
}

bool lapic_msr_write(Device *dev, unsigned vcpu, uint32_t msr, uint64_t value)
{
    Lapic *l = &((LapicDevice *)dev)->cpu[vcpu];
    unsigned reg = msr - MSR_X2APIC;
    if (msr == MSR_APIC_BASE)
        return write_base(l, value);
    if (msr == MSR_TSC_DEADLINE) {
        write_deadline(l, value);
        return true;
    }
    if (msr < MSR_X2APIC || reg > 0xff || !lapic_x2apic(l) || !x2apic_value_valid(reg, value))
        return false;
    if (reg == LAPIC_ICR) {
        pthread_mutex_lock(&l->lock);
        l->icr_low = (uint32_t)value;
        l->icr_high = (uint32_t)(value >> 32);
        pthread_mutex_unlock(&l->lock);
        lapic_send_icr(l, value);
        return true;
    }
    if (reg == LAPIC_SELF_IPI) {
        lapic_send_icr(l, 0x40000 | value); /* fixed, edge, to self */
        return true;
    }
    return reg != LAPIC_ID && write_register(l, reg, (uint32_t)value);
}

uint64_t lapic_cr8_read(Device *dev, unsigned vcpu)
{
    const Lapic *l = &((LapicDevice *)dev)->cpu[vcpu];
    return __atomic_load_n(&l->tpr, __ATOMIC_RELAXED) >> 4;
}

void lapic_cr8_write(Device *dev, unsigned vcpu, uint64_t value)
{
    write_register(&((LapicDevice *)dev)->cpu[vcpu], LAPIC_TPR, (uint32_t)(value & 0xf) << 4);
}
