/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The local APIC's timer: one-shot, periodic, TSC deadline. SDM vol. 3 10.5.4. */
#include "machine/irq/lapic.h"

/* A periodic timer does not fire more often than this, whatever the guest asks for. */
#define PERIOD_MIN_NS INT64_C(50000)

static unsigned divisor_shift(const Lapic *l)
{
    /* Bits 3, 1, 0: 0 = 2, 1 = 4 ... 6 = 128, 7 = 1 (figure 10-10). */
    unsigned code = (l->divide & 3) | (l->divide >> 1 & 4);
    return (code + 1) & 7;
}

static int64_t period_ns(const Lapic *l)
{
    return (int64_t)((uint64_t)l->initial_count << divisor_shift(l));
}

static uint64_t tsc_now(const Lapic *l)
{
    Machine *m = l->machine;
    return m->engine->tsc(m->vcpus[l->index].vcpu);
}

static uint64_t tsc_khz(const Lapic *l)
{
    return l->machine->tsc_khz ? MAX(l->machine->tsc_khz(), 1) : 1000000;
}

static void arm_deadline(Lapic *l)
{
    if (!l->tsc_deadline) {
        machine_timer_cancel(l->timer);
        return;
    }
    uint64_t now = tsc_now(l);
    int64_t wait = 0;
    if (l->tsc_deadline > now) {
        /* Rounded up, and held below 100 days so that the sum cannot overflow: it looks again then.
         */
        double ns = (double)(l->tsc_deadline - now) * 1e6 / (double)tsc_khz(l) + 1;
        wait = ns > 8.64e15 ? INT64_C(8640000000000000) : (int64_t)ns;
    }
    machine_timer_set(l->timer, machine_clock_ns(l->machine) + wait);
}

void lapic_timer_arm(Lapic *l)
{
    unsigned mode = LVT_TIMER_MODE(l->lvt[LVT_TIMER]);
    if (mode == TIMER_TSC_DEADLINE) {
        arm_deadline(l);
        return;
    }
    /* Masked, a count runs on but nobody would notice its end: no host timer then. */
    if (!l->initial_count || l->count_over || (l->lvt[LVT_TIMER] & LVT_MASKED)) {
        machine_timer_cancel(l->timer);
        return;
    }
    int64_t now = machine_clock_ns(l->machine), period = period_ns(l);
    int64_t next = l->count_start_ns + period;
    if (mode == TIMER_PERIODIC) {
        if (next <= now)
            next += (now - next) / period * period + period;
        next = MAX(next, now + PERIOD_MIN_NS);
    } else if (next <= now) {
        return; /* over; if the host timer has not come to it yet, it will */
    }
    machine_timer_set(l->timer, next);
}

uint32_t lapic_timer_current(Lapic *l)
{
    unsigned mode = LVT_TIMER_MODE(l->lvt[LVT_TIMER]);
    if (mode == TIMER_TSC_DEADLINE || !l->initial_count || l->count_over)
        return 0;
    int64_t elapsed = machine_clock_ns(l->machine) - l->count_start_ns, period = period_ns(l);
    if (elapsed >= period) {
        if (mode != TIMER_PERIODIC)
            return 0;
        elapsed %= period;
    }
    return (uint32_t)((uint64_t)(period - elapsed) >> divisor_shift(l));
}

/*
 * The count goes on from where it is (10.5.4): one that has ended stays at zero until it is written
 * anew, and a period becomes the one shot that is left of it.
 */
void lapic_timer_mode_changed(Lapic *l, unsigned old)
{
    int64_t period = period_ns(l), elapsed = machine_clock_ns(l->machine) - l->count_start_ns;
    if (!l->initial_count || elapsed < period)
        return;
    if (old == TIMER_PERIODIC)
        l->count_start_ns += elapsed / period * period;
    else
        l->count_over = true;
}

bool lapic_timer_deadline_passed(Lapic *l)
{
    uint32_t lvt = l->lvt[LVT_TIMER];
    if (!l->tsc_deadline || tsc_now(l) < l->tsc_deadline)
        return false;
    l->tsc_deadline = 0;
    if (!(lvt & LVT_MASKED))
        lapic_accept(l, (uint8_t)lvt, false);
    return true;
}

void lapic_timer_fired(void *opaque)
{
    Lapic *l = opaque;
    bool fire = true;
    pthread_mutex_lock(&l->lock);
    uint32_t lvt = l->lvt[LVT_TIMER];
    if (LVT_TIMER_MODE(lvt) == TIMER_TSC_DEADLINE) {
        if (!l->tsc_deadline || tsc_now(l) < l->tsc_deadline) {
            fire = false;
            arm_deadline(l);
        } else {
            l->tsc_deadline = 0;
        }
    } else {
        /* The guest may have changed its mind while this thread waited for the lock. */
        fire =
            l->initial_count && !l->count_over &&
            (LVT_TIMER_MODE(lvt) == TIMER_PERIODIC ||
                                 machine_clock_ns(l->machine) - l->count_start_ns >= period_ns(l));
        lapic_timer_arm(l);
    }
    if (fire && !(lvt & LVT_MASKED))
        lapic_accept(l, (uint8_t)lvt, false);
    bool wake = lapic_deliverable(l);
    pthread_mutex_unlock(&l->lock);
    if (wake)
        lapic_signal(l);
}
