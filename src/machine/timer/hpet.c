/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The high precision event timer: a 64-bit counter of 100 MHz and three comparators. IA-PC HPET
 * Specification 1.0a. The counter is computed from the clock; host timers run only for
 * comparators whose interrupt is enabled. Not there: FSB (MSI) delivery.
 */
#include "machine/board/layout.h"
#include "machine/machine-internal.h"
#include "machine/timer/timers.h"

#define TIMERS    3
#define TICK_NS   INT64_C(10)
#define PERIOD_FS UINT64_C(10000000)
/* GSIs 16 to 23 for comparators outside of the legacy route. */
#define ROUTES        UINT64_C(0x00ff0000)
#define PERIOD_MIN_NS INT64_C(50000)

#define CONFIG_ENABLE 1u
#define CONFIG_LEGACY 2u

#define TIMER_LEVEL        (UINT64_C(1) << 1)
#define TIMER_ENABLE       (UINT64_C(1) << 2)
#define TIMER_PERIODIC     (UINT64_C(1) << 3)
#define TIMER_CAN_PERIODIC (UINT64_C(1) << 4)
#define TIMER_CAN_64       (UINT64_C(1) << 5)
#define TIMER_SET          (UINT64_C(1) << 6)
#define TIMER_32           (UINT64_C(1) << 8)
#define TIMER_ROUTE(c)     ((unsigned)((c) >> 9 & 31))
#define TIMER_WRITABLE     (TIMER_LEVEL | TIMER_ENABLE | TIMER_PERIODIC | TIMER_SET | TIMER_32 | 0x3e00)

typedef struct Hpet Hpet;

typedef struct HpetTimer {
    Hpet *hpet;
    unsigned index;
    MachineTimer *timer;
    uint64_t config, comparator, period;
} HpetTimer;

struct Hpet {
    Device dev;
    uint64_t config, status;
    uint64_t counter; /* while it stands */
    int64_t start_ns; /* while it runs: machine clock at which it was 0 (may be before 0) */
    HpetTimer timer[TIMERS];
    IoRegion *region;
};

static bool runs(const Hpet *h)
{
    return h->config & CONFIG_ENABLE;
}

static uint64_t counter(const Hpet *h)
{
    if (!runs(h))
        return h->counter;
    return h->counter + (uint64_t)(machine_clock_ns(h->dev.machine) - h->start_ns) / TICK_NS;
}

/* ---- interrupts
 * --------------------------------------------------------------------------------------- */

static bool legacy_allowed(const Hpet *h)
{
    /* A PIT inside the engine cannot be cut off from IRQ 0. */
    return !h->dev.machine->engine->has_irqchip;
}

static int gsi_of(const HpetTimer *t)
{
    if ((t->hpet->config & CONFIG_LEGACY) && t->index < 2)
        return t->index ? 8 : 0;
    unsigned route = TIMER_ROUTE(t->config);
    return ROUTES >> route & 1 ? (int)route : -1;
}

static void fire(HpetTimer *t)
{
    Hpet *h = t->hpet;
    int gsi = gsi_of(t);
    if (t->config & TIMER_LEVEL)
        h->status |= UINT64_C(1) << t->index;
    if (!(t->config & TIMER_ENABLE) || gsi < 0)
        return;
    machine_set_gsi(h->dev.machine, (unsigned)gsi, true);
    if (!(t->config & TIMER_LEVEL))
        machine_set_gsi(h->dev.machine, (unsigned)gsi, false);
}

static void release(HpetTimer *t)
{
    int gsi = gsi_of(t);
    if (gsi >= 0)
        machine_set_gsi(t->hpet->dev.machine, (unsigned)gsi, false);
}

static uint64_t width_mask(const HpetTimer *t)
{
    return t->config & TIMER_32 ? UINT32_MAX : UINT64_MAX;
}

static void arm(HpetTimer *t)
{
    Hpet *h = t->hpet;
    if (!runs(h) || !(t->config & TIMER_ENABLE)) {
        machine_timer_cancel(t->timer);
        return;
    }
    uint64_t left = (t->comparator - counter(h)) & width_mask(t);
    int64_t now = machine_clock_ns(h->dev.machine), wait;
    /* A 64-bit comparator that was passed comes around in 5,800 years. */
    if (__builtin_mul_overflow((int64_t)MIN(left, (uint64_t)INT64_MAX), TICK_NS, &wait) ||
        wait > INT64_MAX / 2)
        machine_timer_cancel(t->timer);
    else
        machine_timer_set(t->timer,
                          now + MAX(wait, t->config & TIMER_PERIODIC ? PERIOD_MIN_NS : 0));
}

static void hpet_timer(void *opaque)
{
    HpetTimer *t = opaque;
    uint64_t mask = width_mask(t), period = t->period & mask;
    if ((t->config & TIMER_PERIODIC) && period) {
        /* The first multiple that is still to come. */
        uint64_t late = (counter(t->hpet) - t->comparator) & mask;
        t->comparator = (t->comparator + (late / period + 1) * period) & mask;
        arm(t);
    } else if (t->config & TIMER_32) {
        /* One-shot in 32 bits: it matches again when the counter comes around. */
        machine_timer_set(t->timer,
                          machine_clock_ns(t->hpet->dev.machine) + (INT64_C(1) << 32) * TICK_NS);
    }
    fire(t);
}

/* ---- registers
 * ------------------------------------------------------------------------------------------ */

static void write_config(Hpet *h, uint64_t value)
{
    bool ran = runs(h);
    uint64_t now = counter(h);
    value &= CONFIG_ENABLE | (legacy_allowed(h) ? CONFIG_LEGACY : 0);
    if ((value ^ h->config) & CONFIG_LEGACY) {
        release(&h->timer[0]);
        release(&h->timer[1]);
        pit_set_replaced(h->dev.machine, value & CONFIG_LEGACY);
        rtc_set_replaced(h->dev.machine, value & CONFIG_LEGACY);
    }
    h->config = value;
    if (ran != runs(h)) {
        h->counter = now;
        h->start_ns = machine_clock_ns(h->dev.machine);
    }
    for (unsigned i = 0; i < TIMERS; i++)
        arm(&h->timer[i]);
}

static void write_timer_config(HpetTimer *t, uint64_t value)
{
    uint64_t fixed = t->config & ~TIMER_WRITABLE;
    if ((t->config & TIMER_LEVEL) && !((value & TIMER_LEVEL) && (value & TIMER_ENABLE)))
        release(t);
    value &= TIMER_WRITABLE;
    if (!(fixed & TIMER_CAN_PERIODIC))
        value &= ~TIMER_PERIODIC;
    t->config = fixed | value;
    t->comparator &= width_mask(t);
    arm(t);
}

static void write_comparator(HpetTimer *t, uint64_t value)
{
    uint64_t mask = width_mask(t);
    /* Periodic: the value is the period, and the comparator too if VAL_SET says so (2.3.9.2.2). */
    if (!(t->config & TIMER_PERIODIC) || (t->config & TIMER_SET))
        t->comparator = value & mask;
    if (t->config & TIMER_PERIODIC)
        t->period = value & mask;
    t->config &= ~TIMER_SET;
    arm(t);
}

static uint64_t register_read(const Hpet *h, unsigned reg)
{
    const HpetTimer *t =
        reg >= 0x100 && reg < 0x100 + 0x20 * TIMERS ? &h->timer[(reg - 0x100) / 0x20] : NULL;
    switch (reg) {
    case 0x00: /* revision 1, vendor 8086, 64 bits */
        return PERIOD_FS << 32 | UINT64_C(0x80862001) | (TIMERS - 1) << 8 |
               (legacy_allowed(h) ? 0x8000 : 0);
    case 0x10:
        return h->config;
    case 0x20:
        return h->status;
    case 0xf0:
        return counter(h);
    }
    if (!t)
        return 0;
    switch (reg & 0x18) {
    case 0x00:
        return t->config;
    case 0x08:
        return t->comparator;
    default:
        return 0;
    }
}

static void register_write(Hpet *h, unsigned reg, uint64_t value)
{
    HpetTimer *t =
        reg >= 0x100 && reg < 0x100 + 0x20 * TIMERS ? &h->timer[(reg - 0x100) / 0x20] : NULL;
    switch (reg) {
    case 0x10:
        write_config(h, value);
        return;
    case 0x20:
        for (unsigned i = 0; i < TIMERS; i++)
            if (value & h->status & (UINT64_C(1) << i))
                release(&h->timer[i]);
        h->status &= ~value;
        return;
    case 0xf0:
        h->counter = value;
        h->start_ns = machine_clock_ns(h->dev.machine);
        for (unsigned i = 0; i < TIMERS; i++)
            arm(&h->timer[i]);
        return;
    }
    if (t && (reg & 0x18) == 0x00)
        write_timer_config(t, value);
    else if (t && (reg & 0x18) == 0x08)
        write_comparator(t, value);
}

static uint64_t hpet_read(void *opaque, uint64_t offset, unsigned size)
{
    uint64_t value = register_read(opaque, offset & 0x3f8);
    return size == 8 ? value : (offset & 4 ? value >> 32 : value) & UINT32_MAX;
}

/* A write of half a register leaves the other half as it is. */
static void hpet_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    Hpet *h = opaque;
    unsigned reg = offset & 0x3f8;
    if (size == 4) {
        uint64_t old = reg == 0x20 ? 0 : register_read(h, reg);
        value =
            offset & 4 ? (old & UINT32_MAX) | value << 32 : (old & ~(uint64_t)UINT32_MAX) | value;
        /* A comparator is written once as a whole: in 32-bit halves, the upper one is not a period.
         */
        if (offset & 4 && reg >= 0x100 && (reg & 0x18) == 8 && (value >> 32) == 0 && old >> 32 == 0)
            return;
    }
    register_write(h, reg, value);
}

static const IoOps hpet_ops = {hpet_read, hpet_write, 4, 8, false};

/* ---- device
 * -------------------------------------------------------------------------------------------------
 */

static void hpet_reset(Device *dev)
{
    Hpet *h = (Hpet *)dev;
    write_config(h, 0);
    h->status = h->counter = 0;
    for (unsigned i = 0; i < TIMERS; i++) {
        HpetTimer *t = &h->timer[i];
        machine_timer_cancel(t->timer);
        release(t);
        t->config = ROUTES << 32 | TIMER_CAN_64 | (i == 0 ? TIMER_CAN_PERIODIC : 0);
        t->comparator = UINT64_MAX;
        t->period = 0;
    }
}

static void hpet_unrealize(Device *dev)
{
    Hpet *h = (Hpet *)dev;
    io_region_free(h->region);
    for (unsigned i = 0; i < TIMERS; i++)
        machine_timer_free(h->timer[i].timer);
}

static bool hpet_realize(Device *dev, GError **err)
{
    Hpet *h = (Hpet *)dev;
    h->region = machine_map_mmio(dev->machine, LAYOUT_HPET_BASE, 0x400, &hpet_ops, h, "hpet");
    if (!h->region)
        return lodge_fail(err, LODGE_ERROR_INTERNAL, "hpet: its address is taken");
    for (unsigned i = 0; i < TIMERS; i++) {
        h->timer[i].hpet = h;
        h->timer[i].index = i;
        h->timer[i].timer = machine_timer_new(dev->machine, hpet_timer, &h->timer[i]);
    }
    hpet_reset(dev);
    return true;
}

static bool hpet_loaded(Device *dev, GError **err)
{
    Hpet *h = (Hpet *)dev;
    if (h->start_ns < 0 || h->start_ns > machine_clock_ns(dev->machine))
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "hpet: impossible time in saved state");
    h->config &= CONFIG_ENABLE | (legacy_allowed(h) ? CONFIG_LEGACY : 0);
    for (unsigned i = 0; i < TIMERS; i++) {
        HpetTimer *t = &h->timer[i];
        t->config = (t->config & TIMER_WRITABLE) | ROUTES << 32 | TIMER_CAN_64 |
                    (i == 0 ? TIMER_CAN_PERIODIC : 0);
        if (i)
            t->config &= ~TIMER_PERIODIC;
        arm(t);
    }
    pit_set_replaced(dev->machine, h->config & CONFIG_LEGACY);
    rtc_set_replaced(dev->machine, h->config & CONFIG_LEGACY);
    return true;
}

static const StateField timer_state[] = {
    STATE_FIELD(HpetTimer, config),
    STATE_FIELD(HpetTimer, comparator),
    STATE_FIELD(HpetTimer, period),
    STATE_FIELDS_END,
};

static const StateField hpet_state[] = {
    STATE_FIELD(Hpet, config),
    STATE_FIELD(Hpet, status),
    STATE_FIELD(Hpet, counter),
    STATE_FIELD(Hpet, start_ns),
    STATE_STRUCTS(Hpet, timer, timer_state),
    STATE_FIELDS_END,
};

const DeviceType hpet_device_type = {
    .name = "hpet",
    .summary = "high precision event timer",
    .bus = DEVICE_BUS_SYSTEM,
    .instance_size = sizeof(Hpet),
    .realize = hpet_realize,
    .reset = hpet_reset,
    .unrealize = hpet_unrealize,
    .state = hpet_state,
    .state_loaded = hpet_loaded,
};
