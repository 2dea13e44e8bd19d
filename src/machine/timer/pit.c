/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The 8254 interval timer and the speaker gate at port 0x61. Intel 8254 datasheet (231164).
 * Outputs are computed from the clock when somebody looks; a host timer runs only while channel
 * 0's interrupt can be delivered. BCD counting is computed as binary with a limit of 9999.
 */
#include "machine/board/layout.h"
#include "machine/irq/irq.h"
#include "machine/machine-internal.h"
#include "machine/timer/timers.h"

#define PIT_HZ UINT64_C(1193182)
#define NS_S   UINT64_C(1000000000)

/* Interrupts closer than this are drawn apart: a guest may ask for a million a second. */
#define PERIOD_MIN_NS INT64_C(50000)

typedef struct PitChannel {
    uint32_t count;   /* initial count: 1 to 65536 (BCD 10000) */
    int64_t start_ns; /* when it was loaded or the gate rose */
    uint16_t latch;
    uint8_t status_latch;
    uint8_t mode, access; /* access: 1 low byte, 2 high byte, 3 low then high */
    uint8_t write_low;    /* first half of an access of two bytes */
    bool write_high_next, read_high_next, latched, status_latched;
    bool gate, bcd, null_count; /* null_count: not loaded yet */
    bool started;               /* modes 1 and 5: the gate rose since the count was set */
    int64_t stopped_ticks;      /* gate low in modes 0 and 4: ticks so far */
} PitChannel;

typedef struct Pit {
    Device dev;
    PitChannel channel[3];
    uint8_t port61; /* bits 0, 1 as written */
    bool replaced;  /* HPET drives IRQ 0 */
    MachineTimer *timer;
    IoRegion *region[2];
} Pit;

/* ---- time
 * -------------------------------------------------------------------------------------------- */

static int64_t ticks_of(int64_t ns)
{
    return (int64_t)((__int128)ns * PIT_HZ / NS_S);
}

/* The first nanosecond at which @ticks have passed. */
static int64_t ns_of(int64_t ticks)
{
    return (int64_t)(((__int128)ticks * NS_S + PIT_HZ - 1) / PIT_HZ);
}

static int64_t elapsed(const Pit *pit, const PitChannel *c)
{
    if (!c->gate && (c->mode == 0 || c->mode == 4))
        return c->stopped_ticks;
    return ticks_of(machine_clock_ns(pit->dev.machine) - c->start_ns);
}

static bool counting(const PitChannel *c)
{
    if (c->null_count)
        return false;
    if (c->mode == 1 || c->mode == 5)
        return c->started;
    return c->gate || c->mode == 0 || c->mode == 4;
}

/* OUT after @t ticks (datasheet, "mode definitions"). */
static bool output_at(const PitChannel *c, int64_t t)
{
    if (!counting(c))
        return c->mode != 0;
    switch (c->mode) {
    case 0:
    case 1:
        return t >= c->count;
    case 2:
        return t % c->count != c->count - 1;
    case 3:
        return t % c->count < (c->count + 1) / 2;
    default: /* 4 and 5: low for one tick at the end */
        return t != c->count;
    }
}

static bool output(const Pit *pit, const PitChannel *c)
{
    return output_at(c, elapsed(pit, c));
}

/* Ticks from @t to the next change of OUT; 0: none. */
static int64_t next_change(const PitChannel *c, int64_t t)
{
    if (!counting(c) || (!c->gate && (c->mode == 0 || c->mode == 4)))
        return 0;
    int64_t phase = t % c->count, half = (c->count + 1) / 2;
    switch (c->mode) {
    case 0:
    case 1:
        return t < c->count ? c->count - t : 0;
    case 2:
        if (c->count == 1)
            return 1;
        return phase < c->count - 1 ? c->count - 1 - phase : 1;
    case 3:
        return phase < half ? MAX(half - phase, 1) : c->count - phase;
    default:
        return t < c->count ? c->count - t : t == c->count ? 1 : 0;
    }
}

static uint16_t current_count(const Pit *pit, const PitChannel *c)
{
    uint32_t limit = c->bcd ? 10000 : 65536;
    int64_t t = counting(c) ? elapsed(pit, c) : 0;
    uint32_t value;
    switch (c->mode) {
    case 2:
        value = c->count - (uint32_t)(t % c->count);
        break;
    case 3: /* counts down by two, twice a period */
        value = c->count - (uint32_t)((t * 2) % c->count);
        value &= ~1u;
        break;
    default: /* runs on below zero */
        value = (uint32_t)(((int64_t)c->count - t) % (int64_t)limit + limit);
    }
    value %= limit;
    if (!c->bcd)
        return (uint16_t)value;
    return (uint16_t)(value / 1000 << 12 | value / 100 % 10 << 8 | value / 10 % 10 << 4 |
                      value % 10);
}

/* ---- channel 0's interrupt
 * ------------------------------------------------------------------------------ */

static bool deliverable(const Pit *pit)
{
    const MachineIrqChips *irq = &pit->dev.machine->irq;
    return !pit->replaced && ((irq->pic && !pic_irq_masked(irq->pic, 0)) ||
                              (irq->ioapic && !ioapic_pin_masked(irq->ioapic, LAYOUT_GSI_PIT)));
}

static void update_irq(Pit *pit)
{
    const PitChannel *c = &pit->channel[0];
    Machine *m = pit->dev.machine;
    int64_t now = machine_clock_ns(m), t = elapsed(pit, c);
    if (!pit->replaced)
        machine_set_gsi(m, 0, output_at(c, t));
    int64_t wait = next_change(c, t);
    if (!wait || !deliverable(pit)) {
        machine_timer_cancel(pit->timer);
        return;
    }
    /* In mode 2 the output is low for one tick (0.8 us) before it rises: pit_timer makes the pulse.
     */
    if (c->mode == 2)
        wait = c->count - t % c->count;
    int64_t at = c->start_ns + ns_of(t + wait);
    if (c->mode == 2 || c->mode == 3)
        at = MAX(at, now + PERIOD_MIN_NS);
    machine_timer_set(pit->timer, at);
}

static void pit_timer(void *opaque)
{
    Pit *pit = opaque;
    const PitChannel *c = &pit->channel[0];
    /* Late by more than the low phase: give the edge that was missed. */
    if (deliverable(pit) && (c->mode == 2 || c->mode == 3) && output(pit, c))
        machine_set_gsi(pit->dev.machine, 0, false);
    update_irq(pit);
}

void pit_interrupt_unmasked(Machine *m)
{
    if (m->irq.pit)
        update_irq((Pit *)m->irq.pit);
}

void pit_set_replaced(Machine *m, bool replaced)
{
    Pit *pit = (Pit *)m->irq.pit;
    if (!pit || pit->replaced == replaced)
        return;
    pit->replaced = replaced;
    if (replaced)
        machine_set_gsi(m, 0, false);
    update_irq(pit);
}

/* ---- registers
 * --------------------------------------------------------------------------------------------- */

static void load(Pit *pit, PitChannel *c, uint16_t raw)
{
    uint32_t value = raw;
    if (c->bcd)
        value = (raw >> 12) * 1000u + (raw >> 8 & 15) * 100u + (raw >> 4 & 15) * 10u + (raw & 15);
    c->count = value ? value : c->bcd ? 10000 : 65536;
    c->null_count = false;
    c->start_ns = machine_clock_ns(pit->dev.machine);
    c->stopped_ticks = 0;
    if (c->mode == 1 || c->mode == 5)
        c->started = false;
}

static void count_write(Pit *pit, unsigned n, uint8_t value)
{
    PitChannel *c = &pit->channel[n];
    if (c->access == 1) {
        load(pit, c, value);
    } else if (c->access == 2) {
        load(pit, c, (uint16_t)(value << 8));
    } else if (!c->write_high_next) {
        c->write_low = value;
        c->write_high_next = true;
        if (c->mode == 0) /* writing the first byte stops the count */
            c->null_count = true;
    } else {
        c->write_high_next = false;
        load(pit, c, (uint16_t)(value << 8 | c->write_low));
    }
    if (n == 0)
        update_irq(pit);
}

static uint8_t count_read(Pit *pit, unsigned n)
{
    PitChannel *c = &pit->channel[n];
    if (c->status_latched) {
        c->status_latched = false;
        return c->status_latch;
    }
    uint16_t value = c->latched ? c->latch : current_count(pit, c);
    bool high = c->access == 2 || (c->access == 3 && c->read_high_next);
    if (c->access == 3)
        c->read_high_next = !c->read_high_next;
    if (c->latched && (c->access != 3 || high))
        c->latched = false;
    return (uint8_t)(high ? value >> 8 : value);
}

static void latch_count(const Pit *pit, PitChannel *c)
{
    if (c->latched)
        return;
    c->latch = current_count(pit, c);
    c->latched = true;
    c->read_high_next = false;
}

static void read_back(Pit *pit, uint8_t value)
{
    for (unsigned n = 0; n < 3; n++) {
        PitChannel *c = &pit->channel[n];
        if (!(value & (2u << n)))
            continue;
        if (!(value & 0x20))
            latch_count(pit, c);
        if (!(value & 0x10) && !c->status_latched) {
            c->status_latch = (uint8_t)((output(pit, c) ? 0x80 : 0) | (c->null_count ? 0x40 : 0) |
                                        c->access << 4 | c->mode << 1 | c->bcd);
            c->status_latched = true;
        }
    }
}

static void control_write(Pit *pit, uint8_t value)
{
    if (value >> 6 == 3) {
        read_back(pit, value);
        return;
    }
    PitChannel *c = &pit->channel[value >> 6];
    if (!(value & 0x30)) {
        latch_count(pit, c);
        return;
    }
    c->access = value >> 4 & 3;
    c->mode = value >> 1 & 7;
    if (c->mode > 5)
        c->mode -= 4; /* 6 and 7 mean 2 and 3 */
    c->bcd = value & 1;
    c->null_count = true;
    c->started = c->latched = c->status_latched = false;
    c->write_high_next = c->read_high_next = false;
    if (c == &pit->channel[0])
        update_irq(pit);
}

static void set_gate(Pit *pit, PitChannel *c, bool gate)
{
    if (gate == c->gate)
        return;
    int64_t now = machine_clock_ns(pit->dev.machine), t = elapsed(pit, c);
    c->gate = gate;
    if (c->mode == 0 || c->mode == 4) { /* the gate holds the count */
        if (gate)
            c->start_ns = now - ns_of(t);
        else
            c->stopped_ticks = t;
    } else if (gate) { /* the gate starts it anew */
        c->start_ns = now;
        c->started = true;
    }
}

static uint64_t pit_read(void *opaque, uint64_t offset, unsigned size)
{
    return offset == 3 ? 0xff : count_read(opaque, (unsigned)offset);
}

static void pit_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    if (offset == 3)
        control_write(opaque, (uint8_t)value);
    else
        count_write(opaque, (unsigned)offset, (uint8_t)value);
}

/* Port 0x61 (ICH9 13.7.1): bit 0 gate of channel 2, 1 speaker, 4 refresh toggle, 5 OUT2. */
static uint64_t port61_read(void *opaque, uint64_t offset, unsigned size)
{
    Pit *pit = opaque;
    bool refresh = machine_clock_ns(pit->dev.machine) / 15085 & 1; /* toggles every 15.085 us */
    return pit->port61 | (refresh ? 0x10 : 0) | (output(pit, &pit->channel[2]) ? 0x20 : 0);
}

static void port61_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    Pit *pit = opaque;
    pit->port61 = value & 3;
    set_gate(pit, &pit->channel[2], value & 1);
}

static const IoOps pit_ops = {pit_read, pit_write, 1, 1, false};
static const IoOps port61_ops = {port61_read, port61_write, 1, 1, false};

/* ---- device
 * ----------------------------------------------------------------------------------------------------
 */

static void pit_reset(Device *dev)
{
    Pit *pit = (Pit *)dev;
    for (unsigned n = 0; n < 3; n++)
        pit->channel[n] = (PitChannel){
            .count = 65536, .mode = 3, .access = 3, .null_count = true, .gate = n != 2};
    pit->port61 = 0;
    pit->replaced = false;
    update_irq(pit);
}

static void pit_unrealize(Device *dev)
{
    Pit *pit = (Pit *)dev;
    machine_timer_free(pit->timer);
    io_region_free(pit->region[0]);
    io_region_free(pit->region[1]);
}

static bool pit_realize(Device *dev, GError **err)
{
    Pit *pit = (Pit *)dev;
    pit->timer = machine_timer_new(dev->machine, pit_timer, pit);
    pit->region[0] = machine_map_ports(dev->machine, 0x40, 4, &pit_ops, pit, "pit");
    pit->region[1] = machine_map_ports(dev->machine, 0x61, 1, &port61_ops, pit, "speaker");
    if (!pit->region[0] || !pit->region[1]) {
        pit_unrealize(dev);
        return lodge_fail(err, LODGE_ERROR_INTERNAL, "pit: its ports are taken");
    }
    pit_reset(dev);
    return true;
}

static bool pit_state_loaded(Device *dev, GError **err)
{
    Pit *pit = (Pit *)dev;
    int64_t now = machine_clock_ns(dev->machine);
    for (unsigned n = 0; n < 3; n++) {
        PitChannel *c = &pit->channel[n];
        if (c->mode > 5 || !c->access || c->access > 3 || !c->count || c->count > 65536 ||
            c->start_ns > now || c->start_ns < -INT64_MAX / 4 || c->stopped_ticks < 0)
            return lodge_fail(err, LODGE_ERROR_CORRUPT, "pit: impossible channel %u in saved state",
                              n);
    }
    update_irq(pit);
    return true;
}

static const StateField channel_state[] = {
    STATE_FIELD(PitChannel, count),
    STATE_FIELD(PitChannel, start_ns),
    STATE_FIELD(PitChannel, latch),
    STATE_FIELD(PitChannel, status_latch),
    STATE_FIELD(PitChannel, mode),
    STATE_FIELD(PitChannel, access),
    STATE_FIELD(PitChannel, write_low),
    STATE_FIELD(PitChannel, write_high_next),
    STATE_FIELD(PitChannel, read_high_next),
    STATE_FIELD(PitChannel, latched),
    STATE_FIELD(PitChannel, status_latched),
    STATE_FIELD(PitChannel, gate),
    STATE_FIELD(PitChannel, bcd),
    STATE_FIELD(PitChannel, null_count),
    STATE_FIELD(PitChannel, started),
    STATE_FIELD(PitChannel, stopped_ticks),
    STATE_FIELDS_END,
};

static const StateField pit_state[] = {
    STATE_STRUCTS(Pit, channel, channel_state),
    STATE_FIELD(Pit, port61),
    STATE_FIELD(Pit, replaced),
    STATE_FIELDS_END,
};

const DeviceType pit_device_type = {
    .name = "pit",
    .summary = "8254 interval timer and speaker gate",
    .bus = DEVICE_BUS_SYSTEM,
    .instance_size = sizeof(Pit),
    .realize = pit_realize,
    .reset = pit_reset,
    .unrealize = pit_unrealize,
    .state = pit_state,
    .state_loaded = pit_state_loaded,
};
