/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The local APICs of all vCPUs: accepting, prioritizing and acknowledging interrupts, and
 * messages between them. SDM vol. 3 chapter 10. Each has its own lock, so that interrupts never
 * wait for a device. Not there: EOI broadcast suppression, SMIs.
 */
#include "machine/irq/lapic.h"

#include <string.h>

#include "machine/board/layout.h"

/* ---- vectors ------------------------------------------------------------------------------------
 */

static int bits_highest(const uint32_t bits[8])
{
    for (int i = 7; i >= 0; i--)
        if (bits[i])
            return i * 32 + 31 - __builtin_clz(bits[i]);
    return -1;
}

static bool bit_get(const uint32_t bits[8], unsigned n)
{
    return bits[n / 32] & (1u << (n % 32));
}

static void bit_set(uint32_t bits[8], unsigned n, bool value)
{
    if (value)
        bits[n / 32] |= 1u << (n % 32);
    else
        bits[n / 32] &= ~(1u << (n % 32));
}

uint32_t lapic_ppr(const Lapic *l)
{
    int serving = bits_highest(l->isr);
    uint32_t class = serving < 0 ? 0 : (uint32_t)serving & 0xf0;
    return (l->tpr & 0xf0) >= class ? l->tpr : class;
}

bool lapic_deliverable(const Lapic *l)
{
    int vector = bits_highest(l->irr);
    return vector >= 0 && lapic_enabled(l) && ((uint32_t)vector & 0xf0) > (lapic_ppr(l) & 0xf0);
}

void lapic_signal(Lapic *l)
{
    Machine *m = l->machine;
    m->engine->signal(m->vcpus[l->index].vcpu, VCPU_SIGNAL_INTERRUPT, 0);
}

void lapic_error(Lapic *l, uint32_t bit)
{
    uint32_t lvt = l->lvt[LVT_ERROR];
    bool new = !(l->esr_pending & bit);
    l->esr_pending |= bit;
    if (new && !(lvt & LVT_MASKED) && (lvt & 0xff) >= 16)
        lapic_accept(l, (uint8_t)lvt, false);
}

void lapic_accept(Lapic *l, uint8_t vector, bool level)
{
    if (vector < 16) {
        /* An error interrupt with an illegal vector would report itself again. */
        l->esr_pending |= ESR_RECEIVE_ILLEGAL_VECTOR;
        uint32_t lvt = l->lvt[LVT_ERROR];
        if ((lvt & LVT_MASKED) || (lvt & 0xff) < 16)
            return;
        vector = (uint8_t)lvt;
        level = false;
    }
    if (!lapic_enabled(l))
        return;
    bit_set(l->irr, vector, true);
    bit_set(l->tmr, vector, level);
}

/* ---- messages
 * ------------------------------------------------------------------------------------- */

static bool matches(const Lapic *l, const IrqMessage *message)
{
    uint32_t to = message->destination;
    if (!(l->base & BASE_ENABLE))
        return false;
    if (!message->logical)
        return to == UINT32_MAX || to == l->index;
    if (to == UINT32_MAX)
        return true;
    if (lapic_x2apic(l)) /* 10.12.10.1: cluster in 31:16, a bit for each member in 15:0 */
        return to >> 16 == l->index >> 4 && (to & 1u << (l->index & 15));
    uint32_t id = l->ldr >> 24;
    if (l->dfr >> 28 == 0xf) /* flat */
        return (id & to & 0xff) != 0;
    return (id >> 4) == (to >> 4 & 0xf) && (id & to & 0xf);
}

static void deliver(Lapic *l, const IrqMessage *message)
{
    Machine *m = l->machine;
    Vcpu *vcpu = m->vcpus[l->index].vcpu;
    switch (message->delivery) {
    case IRQ_FIXED:
    case IRQ_LOWEST: {
        pthread_mutex_lock(&l->lock);
        lapic_accept(l, message->vector, message->level);
        bool wake = lapic_deliverable(l);
        pthread_mutex_unlock(&l->lock);
        if (wake)
            lapic_signal(l);
        break;
    }
    case IRQ_NMI:
        m->engine->signal(vcpu, VCPU_SIGNAL_NMI, 0);
        break;
    case IRQ_INIT:
        pthread_mutex_lock(&l->lock);
        lapic_init_state(l);
        pthread_mutex_unlock(&l->lock);
        m->engine->signal(vcpu, VCPU_SIGNAL_INIT, 0);
        break;
    case IRQ_SIPI:
        m->engine->signal(vcpu, VCPU_SIGNAL_SIPI, message->vector);
        break;
    case IRQ_SMI:
    case IRQ_EXTINT:
        break;
    }
}

/* Of the addressed ones the one with the lowest processor priority; among equals they take turns.
 */
static void deliver_lowest(LapicDevice *d, const IrqMessage *message)
{
    unsigned start = __atomic_load_n(&d->lowest, __ATOMIC_RELAXED) + 1;
    Lapic *best = NULL;
    uint32_t best_priority = 0;
    for (unsigned i = 0; i < d->count; i++) {
        Lapic *l = &d->cpu[(start + i) % d->count];
        pthread_mutex_lock(&l->lock);
        bool candidate = matches(l, message) && lapic_enabled(l);
        uint32_t priority = lapic_ppr(l) >> 4;
        pthread_mutex_unlock(&l->lock);
        if (candidate && (!best || priority < best_priority)) {
            best = l;
            best_priority = priority;
        }
    }
    if (!best)
        return;
    __atomic_store_n(&d->lowest, best->index, __ATOMIC_RELAXED);
    deliver(best, message);
}

void lapic_send(Device *dev, const IrqMessage *message)
{
    LapicDevice *d = (LapicDevice *)dev;
    if (message->delivery == IRQ_LOWEST) {
        deliver_lowest(d, message);
        return;
    }
    if (!message->logical && message->destination < d->count) {
        Lapic *l = &d->cpu[message->destination];
        if (l->base & BASE_ENABLE)
            deliver(l, message);
        return;
    }
    for (unsigned i = 0; i < d->count; i++) {
        pthread_mutex_lock(&d->cpu[i].lock);
        bool match = matches(&d->cpu[i], message);
        pthread_mutex_unlock(&d->cpu[i].lock);
        if (match)
            deliver(&d->cpu[i], message);
    }
}

/* 10.5.3: who sends an interrupt with one of the first 16 vectors has made an error. */
static bool send_illegal(Lapic *l, const IrqMessage *message)
{
    if (message->vector >= 16 ||
        (message->delivery != IRQ_FIXED && message->delivery != IRQ_LOWEST))
        return false;
    pthread_mutex_lock(&l->lock);
    lapic_error(l, ESR_SEND_ILLEGAL_VECTOR);
    bool wake = lapic_deliverable(l);
    pthread_mutex_unlock(&l->lock);
    if (wake)
        lapic_signal(l);
    return true;
}

bool lapic_send_to(Device *dev, unsigned vcpu, uint32_t apic_id, uint32_t icr)
{
    LapicDevice *d = (LapicDevice *)dev;
    IrqMessage message = {
        .destination = apic_id,
        .vector = (uint8_t)icr,
        .delivery = (IrqDelivery)(icr >> 8 & 7),
    };
    if (apic_id >= d->count)
        return false;
    if (!send_illegal(&d->cpu[vcpu], &message))
        lapic_send(dev, &message);
    return true;
}

/* The interrupt command register was written (10.6.1). */
void lapic_send_icr(Lapic *l, uint64_t icr)
{
    LapicDevice *d = lapic_device(l);
    bool assert_level = icr & 0x4000, trigger_level = icr & 0x8000;
    IrqMessage message = {
        .vector = (uint8_t)icr,
        .delivery = (IrqDelivery)(icr >> 8 & 7),
        .logical = icr & 0x800,
    };
    if (lapic_x2apic(l)) {
        message.destination = (uint32_t)(icr >> 32);
    } else {
        message.destination = (uint32_t)(icr >> 56);
        if (!message.logical && message.destination == 0xff)
            message.destination = UINT32_MAX;
    }
    /* INIT level de-assert only synchronizes arbitration IDs, which nobody has any more. */
    if (message.delivery == IRQ_INIT && trigger_level && !assert_level)
        return;
    if (send_illegal(l, &message))
        return;
    switch (icr >> 18 & 3) {
    case 0:
        lapic_send(&d->dev, &message);
        break;
    case 1: /* self: fixed only */
        message.delivery = IRQ_FIXED;
        deliver(l, &message);
        break;
    case 2: /* all, 3: all but self */
    case 3:
        if (message.delivery == IRQ_LOWEST)
            message.delivery = IRQ_FIXED;
        for (unsigned i = 0; i < d->count; i++)
            if ((icr >> 18 & 3) == 2 || i != l->index)
                deliver(&d->cpu[i], &message);
        break;
    }
}

/* ---- the vCPU's side
 * -------------------------------------------------------------------------------- */

void lapic_end_of_interrupt(Lapic *l)
{
    Machine *m = l->machine;
    pthread_mutex_lock(&l->lock);
    int vector = bits_highest(l->isr);
    bool broadcast = false;
    if (vector >= 0) {
        bit_set(l->isr, (unsigned)vector, false);
        broadcast = bit_get(l->tmr, (unsigned)vector);
    }
    bool wake = lapic_deliverable(l);
    pthread_mutex_unlock(&l->lock);
    if (broadcast && m->irq.ioapic) {
        machine_lock(m);
        ioapic_end_of_interrupt(m->irq.ioapic, (uint8_t)vector);
        machine_unlock(m);
    }
    if (wake)
        lapic_signal(l);
}

/* Whether the 8259's INTR reaches this vCPU: through LINT0, or directly while the APIC is off. */
static bool takes_extint(const Lapic *l)
{
    uint32_t lint0 = l->lvt[LVT_LINT0];
    return !(l->base & BASE_ENABLE) || (!(lint0 & LVT_MASKED) && LVT_DELIVERY(lint0) == IRQ_EXTINT);
}

int lapic_acknowledge(Device *dev, unsigned vcpu)
{
    LapicDevice *d = (LapicDevice *)dev;
    Lapic *l = &d->cpu[vcpu];
    Machine *m = l->machine;
    int vector = -1;
    pthread_mutex_lock(&l->lock);
    if (lapic_deliverable(l)) {
        vector = bits_highest(l->irr);
        bit_set(l->irr, (unsigned)vector, false);
        bit_set(l->isr, (unsigned)vector, true);
    }
    bool extint = vector < 0 && takes_extint(l);
    pthread_mutex_unlock(&l->lock);
    if (!extint || !__atomic_load_n(&d->extint, __ATOMIC_ACQUIRE))
        return vector;
    machine_lock(m);
    if (d->extint && m->irq.pic)
        vector = pic_acknowledge(m->irq.pic);
    machine_unlock(m);
    return vector;
}

/* The local interrupt pin @lvt was asserted; ExtINT is left to the caller. */
static void local_pin(Lapic *l, unsigned lvt)
{
    IrqMessage message = {.delivery = IRQ_FIXED};
    pthread_mutex_lock(&l->lock);
    uint32_t value = l->lvt[lvt];
    bool on = (l->base & BASE_ENABLE) && !(value & LVT_MASKED);
    pthread_mutex_unlock(&l->lock);
    message.delivery = LVT_DELIVERY(value);
    message.vector = (uint8_t)value;
    if (on && (message.delivery == IRQ_FIXED || message.delivery == IRQ_NMI))
        deliver(l, &message);
}

void lapic_set_extint(Device *dev, bool level)
{
    LapicDevice *d = (LapicDevice *)dev;
    bool was = __atomic_exchange_n(&d->extint, level, __ATOMIC_ACQ_REL);
    for (unsigned i = 0; i < d->count && level && !was; i++) {
        Lapic *l = &d->cpu[i];
        pthread_mutex_lock(&l->lock);
        bool takes = takes_extint(l);
        pthread_mutex_unlock(&l->lock);
        if (takes)
            lapic_signal(l);
        else
            local_pin(l, LVT_LINT0);
    }
}

void lapic_lvt_changed(Lapic *l, unsigned lvt)
{
    LapicDevice *d = lapic_device(l);
    if (lvt != LVT_LINT0 || !__atomic_load_n(&d->extint, __ATOMIC_ACQUIRE))
        return;
    pthread_mutex_lock(&l->lock);
    bool takes = takes_extint(l);
    pthread_mutex_unlock(&l->lock);
    if (takes)
        lapic_signal(l);
}

void lapic_nmi(Device *dev)
{
    LapicDevice *d = (LapicDevice *)dev;
    for (unsigned i = 0; i < d->count; i++)
        local_pin(&d->cpu[i], LVT_LINT1);
}

/* ---- device
 * -------------------------------------------------------------------------------------------- */

void lapic_init_state(Lapic *l)
{
    l->tpr = l->ldr = l->esr = l->esr_pending = l->icr_low = l->icr_high = 0;
    l->dfr = UINT32_MAX;
    l->svr = 0xff;
    memset(l->isr, 0, sizeof(l->isr));
    memset(l->tmr, 0, sizeof(l->tmr));
    memset(l->irr, 0, sizeof(l->irr));
    for (unsigned i = 0; i < LVT_COUNT; i++)
        l->lvt[i] = LVT_MASKED;
    l->initial_count = l->divide = 0;
    l->count_over = false;
    l->tsc_deadline = 0;
    machine_timer_cancel(l->timer);
}

static void lapic_reset(Device *dev)
{
    LapicDevice *d = (LapicDevice *)dev;
    for (unsigned i = 0; i < d->count; i++) {
        Lapic *l = &d->cpu[i];
        pthread_mutex_lock(&l->lock);
        lapic_init_state(l);
        l->base = LAYOUT_LAPIC_BASE | BASE_ENABLE | (i ? 0 : BASE_BSP);
        if (i == 0) {
            /* No firmware runs, so this is what it would leave: virtual wire mode through the
             * local APIC (MultiProcessor Specification 1.4, 3.6.2.2). */
            l->svr = SVR_ENABLE | 0xff;
            l->lvt[LVT_LINT0] = IRQ_EXTINT << 8;
            l->lvt[LVT_LINT1] = IRQ_NMI << 8;
        }
        pthread_mutex_unlock(&l->lock);
    }
    lapic_windows_close_unused(d);
}

static void lapic_unrealize(Device *dev)
{
    LapicDevice *d = (LapicDevice *)dev;
    for (unsigned i = 0; i < G_N_ELEMENTS(d->window); i++)
        g_clear_pointer(&d->window[i].region, io_region_free);
    for (unsigned i = 0; i < d->count; i++) {
        machine_timer_free(d->cpu[i].timer);
        pthread_mutex_destroy(&d->cpu[i].lock);
    }
}

static bool lapic_realize(Device *dev, GError **err)
{
    LapicDevice *d = (LapicDevice *)dev;
    Machine *m = dev->machine;
    LapicWindow *w = &d->window[0];
    w->device = d;
    w->base = LAYOUT_LAPIC_BASE;
    w->region = machine_map_mmio(m, LAYOUT_LAPIC_BASE, 0x1000, &lapic_ops, w, "lapic");
    if (!w->region)
        return lodge_fail(err, LODGE_ERROR_INTERNAL, "lapic: its address is taken");
    for (d->count = 0; d->count < m->n_vcpus; d->count++) {
        Lapic *l = &d->cpu[d->count];
        pthread_mutex_init(&l->lock, NULL);
        l->machine = m;
        l->index = d->count;
        l->timer = machine_timer_new(m, lapic_timer_fired, l);
        machine_timer_set_no_lock(l->timer);
    }
    lapic_reset(dev);
    return true;
}

static bool lapic_state_loaded(Device *dev, GError **err)
{
    LapicDevice *d = (LapicDevice *)dev;
    for (unsigned i = 0; i < d->count; i++) {
        Lapic *l = &d->cpu[i];
        uint64_t flags = BASE_ENABLE | BASE_X2APIC;
        if ((l->base & ~(flags | BASE_BSP | BASE_ADDRESS)) ||
            (l->base & flags) == BASE_X2APIC || !lapic_window_open(d, l->base & BASE_ADDRESS))
            return lodge_fail(err, LODGE_ERROR_CORRUPT, "lapic: impossible base in saved state");
        l->tpr &= 0xff;
        l->divide &= 0xb;
        pthread_mutex_lock(&l->lock);
        lapic_timer_arm(l);
        pthread_mutex_unlock(&l->lock);
    }
    return true;
}

static const StateField cpu_state[] = {
    STATE_FIELD(Lapic, base),         STATE_FIELD(Lapic, tpr),
    STATE_FIELD(Lapic, ldr),          STATE_FIELD(Lapic, dfr),
    STATE_FIELD(Lapic, svr),          STATE_FIELD(Lapic, esr),
    STATE_FIELD(Lapic, esr_pending),  STATE_FIELD(Lapic, icr_low),
    STATE_FIELD(Lapic, icr_high),     STATE_ARRAY(Lapic, isr),
    STATE_ARRAY(Lapic, tmr),          STATE_ARRAY(Lapic, irr),
    STATE_ARRAY(Lapic, lvt),          STATE_FIELD(Lapic, initial_count),
    STATE_FIELD(Lapic, divide),       STATE_FIELD(Lapic, count_start_ns),
    STATE_FIELD(Lapic, tsc_deadline), STATE_FIELD(Lapic, count_over),
    STATE_FIELDS_END,
};

static const StateField lapic_state[] = {
    STATE_STRUCTS(LapicDevice, cpu, cpu_state),
    STATE_FIELD(LapicDevice, extint),
    STATE_FIELD(LapicDevice, lowest),
    STATE_FIELDS_END,
};

const DeviceType lapic_device_type = {
    .name = "lapic",
    .summary = "local APICs (xAPIC and x2APIC)",
    .bus = DEVICE_BUS_SYSTEM,
    .instance_size = sizeof(LapicDevice),
    .realize = lapic_realize,
    .reset = lapic_reset,
    .unrealize = lapic_unrealize,
    .state = lapic_state,
    .state_loaded = lapic_state_loaded,
};
