/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The MC146818 real-time clock and its CMOS memory. Motorola MC146818A datasheet. The time is
 * computed from the host's when it is read; a host timer runs only while an interrupt is enabled.
 */
#include <string.h>
#include <time.h>

#include "machine/board/layout.h"
#include "machine/irq/irq.h"
#include "machine/machine-internal.h"
#include "machine/timer/timers.h"

#define NS_S      INT64_C(1000000000)
#define RTC_IRQ   8
#define CMOS_SIZE 128

enum {
    RTC_SECONDS,
    RTC_SECONDS_ALARM,
    RTC_MINUTES,
    RTC_MINUTES_ALARM,
    RTC_HOURS,
    RTC_HOURS_ALARM,
    RTC_WEEKDAY,
    RTC_DAY,
    RTC_MONTH,
    RTC_YEAR,
    RTC_A,
    RTC_B,
    RTC_C,
    RTC_D,
    RTC_CENTURY = 0x32,
};

#define A_UIP    0x80u
#define B_SET    0x80u
#define B_PIE    0x40u /* C has the matching flag bits in the same places */
#define B_AIE    0x20u
#define B_UIE    0x10u
#define B_BINARY 0x04u
#define B_24H    0x02u
#define C_IRQ    0x80u

/* A guest may set dates that nanoseconds in 64 bits cannot count: years 1780 to 2223 are kept. */
#define TIME_MIN_S (-INT64_C(6000000000))
#define TIME_MAX_S INT64_C(8000000000)

/* The update takes this long, and UIP announces it: 244 + 1984 us at 32.768 kHz. */
#define UPDATE_NS INT64_C(2228000)

typedef struct Rtc {
    Device dev;
    uint8_t cmos[CMOS_SIZE]; /* time registers: valid while B_SET, and the alarm always */
    uint8_t index;
    bool replaced;       /* HPET drives IRQ 8 */
    int64_t offset_ns;   /* the clock shows host realtime + this */
    int64_t checked_ns;  /* clock time up to which flags were computed */
    int64_t periodic_ns; /* machine clock of the last periodic tick that was counted */
    MachineTimer *timer;
    IoRegion *region;
} Rtc;

/* ---- time
 * --------------------------------------------------------------------------------------------- */

static int64_t host_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return t.tv_sec * NS_S + t.tv_nsec;
}

static int64_t now_ns(const Rtc *rtc)
{
    return host_ns() + rtc->offset_ns;
}

static uint8_t encode(const Rtc *rtc, unsigned value)
{
    return (uint8_t)(rtc->cmos[RTC_B] & B_BINARY ? value : value / 10 << 4 | value % 10);
}

static unsigned decode(const Rtc *rtc, uint8_t value)
{
    return rtc->cmos[RTC_B] & B_BINARY ? value : (value >> 4) * 10u + (value & 15);
}

static uint8_t encode_hours(const Rtc *rtc, unsigned hours)
{
    if (rtc->cmos[RTC_B] & B_24H)
        return encode(rtc, hours);
    return (uint8_t)(encode(rtc, (hours + 11) % 12 + 1) | (hours >= 12 ? 0x80 : 0));
}

static unsigned decode_hours(const Rtc *rtc, uint8_t value)
{
    if (rtc->cmos[RTC_B] & B_24H)
        return decode(rtc, value);
    return decode(rtc, value & 0x7f) % 12 + (value & 0x80 ? 12 : 0);
}

static void time_to_registers(Rtc *rtc, int64_t ns)
{
    /* Rounded down, also before 1970. */
    time_t seconds = ns / NS_S - (ns % NS_S < 0);
    struct tm tm;
    if (!gmtime_r(&seconds, &tm))
        return;
    rtc->cmos[RTC_SECONDS] = encode(rtc, (unsigned)tm.tm_sec % 60);
    rtc->cmos[RTC_MINUTES] = encode(rtc, (unsigned)tm.tm_min);
    rtc->cmos[RTC_HOURS] = encode_hours(rtc, (unsigned)tm.tm_hour);
    rtc->cmos[RTC_WEEKDAY] = encode(rtc, (unsigned)tm.tm_wday + 1);
    rtc->cmos[RTC_DAY] = encode(rtc, (unsigned)tm.tm_mday);
    rtc->cmos[RTC_MONTH] = encode(rtc, (unsigned)tm.tm_mon + 1);
    unsigned year = (unsigned)(tm.tm_year + 1900) % 10000;
    rtc->cmos[RTC_YEAR] = encode(rtc, year % 100);
    rtc->cmos[RTC_CENTURY] = (uint8_t)(year / 1000 << 4 | year / 100 % 10); /* always BCD */
}

static int64_t registers_to_time(const Rtc *rtc)
{
    unsigned century = (rtc->cmos[RTC_CENTURY] >> 4) * 10u + (rtc->cmos[RTC_CENTURY] & 15);
    struct tm tm = {
        .tm_sec = (int)decode(rtc, rtc->cmos[RTC_SECONDS]),
        .tm_min = (int)decode(rtc, rtc->cmos[RTC_MINUTES]),
        .tm_hour = (int)decode_hours(rtc, rtc->cmos[RTC_HOURS]),
        .tm_mday = (int)decode(rtc, rtc->cmos[RTC_DAY]),
        .tm_mon = (int)decode(rtc, rtc->cmos[RTC_MONTH]) - 1,
        .tm_year = (int)(century * 100 + decode(rtc, rtc->cmos[RTC_YEAR])) - 1900,
    };
    return CLAMP((int64_t)timegm(&tm), TIME_MIN_S, TIME_MAX_S) * NS_S;
}

static bool clock_runs(const Rtc *rtc)
{
    /* Register A's divider: 010 = 32.768 kHz; 110 and 111 hold it in reset. */
    return !(rtc->cmos[RTC_B] & B_SET) && (rtc->cmos[RTC_A] & 0x60) != 0x60;
}

/* ---- flags and interrupt
 * ------------------------------------------------------------------------------------ */

/* The first second after @after_ns at which the alarm matches, or INT64_MAX. */
static int64_t next_alarm(const Rtc *rtc, int64_t after_ns)
{
    int64_t second = after_ns / NS_S + 1;
    const uint8_t *c = rtc->cmos;
    /* Values from 0xc0 match anything. */
    int wanted_s = c[RTC_SECONDS_ALARM] >= 0xc0 ? -1 : (int)decode(rtc, c[RTC_SECONDS_ALARM]);
    int wanted_m = c[RTC_MINUTES_ALARM] >= 0xc0 ? -1 : (int)decode(rtc, c[RTC_MINUTES_ALARM]);
    int wanted_h =
        (c[RTC_HOURS_ALARM] & 0xc0) == 0xc0 ? -1 : (int)decode_hours(rtc, c[RTC_HOURS_ALARM]);
    if (wanted_s > 59 || wanted_m > 59 || wanted_h > 23)
        return INT64_MAX;
    for (int guard = 0; guard < 24 + 60 + 60 + 4; guard++) {
        int in_day = (int)(second % 86400);
        int h = in_day / 3600, m = in_day / 60 % 60, s = in_day % 60;
        if (wanted_h >= 0 && h != wanted_h)
            second += 3600 - in_day % 3600;
        else if (wanted_m >= 0 && m != wanted_m)
            second += 60 - in_day % 60;
        else if (wanted_s >= 0 && s != wanted_s)
            second++;
        else
            return second * NS_S;
    }
    return INT64_MAX;
}

/* 0: off. Rates 1 and 2 are those of 8 and 9 (table 5). */
static int64_t period_ns(const Rtc *rtc)
{
    unsigned rate = rtc->cmos[RTC_A] & 15;
    if (!rate || (rtc->cmos[RTC_A] & 0x70) > 0x20)
        return 0;
    if (rate < 3)
        rate += 7;
    return ((INT64_C(1) << (rate - 1)) * NS_S + 16384) / 32768;
}

static void update_line(Rtc *rtc)
{
    uint8_t *c = &rtc->cmos[RTC_C];
    bool irq = *c & rtc->cmos[RTC_B] & (B_PIE | B_AIE | B_UIE);
    *c = (uint8_t)((*c & ~C_IRQ) | (irq ? C_IRQ : 0));
    if (!rtc->replaced)
        machine_set_gsi(rtc->dev.machine, RTC_IRQ, irq);
}

/* Sets what happened in register C since the last look. */
static void catch_up(Rtc *rtc)
{
    int64_t now = now_ns(rtc), clock = machine_clock_ns(rtc->dev.machine), period = period_ns(rtc);
    if (clock_runs(rtc) && now > rtc->checked_ns) {
        if (now / NS_S != rtc->checked_ns / NS_S)
            rtc->cmos[RTC_C] |= B_UIE;
        if (next_alarm(rtc, rtc->checked_ns) <= now)
            rtc->cmos[RTC_C] |= B_AIE;
    }
    rtc->checked_ns = now;
    if (period && clock - rtc->periodic_ns >= period) {
        rtc->cmos[RTC_C] |= B_PIE;
        rtc->periodic_ns = clock - (clock - rtc->periodic_ns) % period;
    }
}

static void arm(Rtc *rtc)
{
    int64_t clock = machine_clock_ns(rtc->dev.machine), at = INT64_MAX;
    uint8_t enabled = rtc->cmos[RTC_B] & ~rtc->cmos[RTC_C];
    int64_t period = period_ns(rtc);
    if ((enabled & B_PIE) && period)
        at = rtc->periodic_ns + period;
    if (clock_runs(rtc) && (enabled & (B_UIE | B_AIE))) {
        int64_t now = now_ns(rtc), due = INT64_MAX;
        if (enabled & B_UIE)
            due = (now / NS_S + 1) * NS_S;
        if (enabled & B_AIE)
            due = MIN(due, next_alarm(rtc, now));
        if (due != INT64_MAX)
            at = MIN(at, clock + (due - now));
    }
    if (at == INT64_MAX)
        machine_timer_cancel(rtc->timer);
    else
        machine_timer_set(rtc->timer, at);
}

/* A flag that is set already interrupts nobody again until C is read: arm leaves it out. */
static void rtc_update(Rtc *rtc)
{
    catch_up(rtc);
    update_line(rtc);
    arm(rtc);
}

static void rtc_timer(void *opaque)
{
    rtc_update(opaque);
}

void rtc_set_replaced(Machine *m, bool replaced)
{
    Rtc *rtc = (Rtc *)m->irq.rtc;
    if (!rtc || rtc->replaced == replaced)
        return;
    rtc->replaced = replaced;
    if (replaced)
        machine_set_gsi(m, RTC_IRQ, false);
    rtc_update(rtc);
}

/* ---- registers
 * -------------------------------------------------------------------------------------------- */

static bool is_time(unsigned reg)
{
    return reg == RTC_SECONDS || reg == RTC_MINUTES || reg == RTC_HOURS ||
           (reg >= RTC_WEEKDAY && reg <= RTC_YEAR) || reg == RTC_CENTURY;
}

static uint8_t register_read(Rtc *rtc, unsigned reg)
{
    if (is_time(reg) && clock_runs(rtc))
        time_to_registers(rtc, now_ns(rtc));
    uint8_t value = rtc->cmos[reg];
    if (reg == RTC_A) {
        int64_t left = NS_S - now_ns(rtc) % NS_S;
        return (uint8_t)(value | (clock_runs(rtc) && left < UPDATE_NS ? A_UIP : 0));
    }
    if (reg == RTC_D)
        return 0x80; /* the battery is good */
    if (reg == RTC_C) {
        catch_up(rtc);
        update_line(rtc);
        value = rtc->cmos[RTC_C];
        rtc->cmos[RTC_C] = 0;
        update_line(rtc);
        arm(rtc);
    }
    return value;
}

static void set_clock(Rtc *rtc)
{
    /* The fraction of a second starts at nought. */
    int64_t shown = registers_to_time(rtc);
    rtc->offset_ns = shown - host_ns();
    rtc->checked_ns = shown;
}

static void register_write(Rtc *rtc, unsigned reg, uint8_t value)
{
    bool ran = clock_runs(rtc);
    switch (reg) {
    case RTC_A:
        catch_up(rtc);
        if (ran)
            time_to_registers(rtc, now_ns(rtc));
        if ((value ^ rtc->cmos[RTC_A]) & 0x7f)
            rtc->periodic_ns = machine_clock_ns(rtc->dev.machine);
        rtc->cmos[RTC_A] = value & 0x7f;
        break;
    case RTC_B:
        catch_up(rtc);
        if (ran)
            time_to_registers(rtc, now_ns(rtc));
        if (value & B_SET)
            value &= (uint8_t)~B_UIE;
        rtc->cmos[RTC_B] = value;
        break;
    case RTC_C:
    case RTC_D:
        return;
    default:
        if (is_time(reg) && ran)
            time_to_registers(rtc, now_ns(rtc));
        rtc->cmos[reg] = value;
        if (is_time(reg) && ran)
            set_clock(rtc);
    }
    if (!ran && clock_runs(rtc))
        set_clock(rtc);
    if (reg <= RTC_B)
        rtc_update(rtc);
}

static uint64_t rtc_read(void *opaque, uint64_t offset, unsigned size)
{
    Rtc *rtc = opaque;
    return offset == 0 ? 0xff : register_read(rtc, rtc->index);
}

static void rtc_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    Rtc *rtc = opaque;
    if (offset == 0)
        rtc->index = value & 0x7f; /* bit 7 masks NMIs on a PC: there is no source of them here */
    else
        register_write(rtc, rtc->index, (uint8_t)value);
}

static const IoOps rtc_ops = {rtc_read, rtc_write, 1, 1, false};

/* ---- device
 * -----------------------------------------------------------------------------------------------------
 */

/* The PC's conventions for the CMOS memory, as kernels and boot loaders read them. */
static void fill_memory(Rtc *rtc)
{
    const Machine *m = rtc->dev.machine;
    uint8_t *c = rtc->cmos;
    uint64_t low = m->low_ram, high = m->config->memory_size - low;
    unsigned extended = (unsigned)MIN(low > MIB(1) ? (low - MIB(1)) / 1024 : 0, 65535);
    unsigned above_16m = (unsigned)MIN(low > MIB(16) ? (low - MIB(16)) / 65536 : 0, 65535);
    uint64_t above_4g = MIN(high / 65536, 0xffffff);
    c[0x15] = 640 & 0xff;
    c[0x16] = 640 >> 8;
    c[0x17] = c[0x30] = (uint8_t)extended;
    c[0x18] = c[0x31] = (uint8_t)(extended >> 8);
    c[0x34] = (uint8_t)above_16m;
    c[0x35] = (uint8_t)(above_16m >> 8);
    for (unsigned i = 0; i < 3; i++)
        c[0x5b + i] = (uint8_t)(above_4g >> (8 * i));
    c[0x5f] = (uint8_t)(m->n_vcpus - 1);
}

/* Such that no time between 2017 and 2048 makes the clock overflow. */
static bool offset_sane(const Rtc *rtc)
{
    return rtc->offset_ns <= (TIME_MAX_S - INT64_C(1500000000)) * NS_S &&
           rtc->offset_ns >= (TIME_MIN_S - INT64_C(2500000000)) * NS_S;
}

/* The battery keeps time and memory over a reset; interrupts go off (datasheet, RESET). */
static void rtc_reset(Device *dev)
{
    Rtc *rtc = (Rtc *)dev;
    rtc->cmos[RTC_B] &= (uint8_t) ~(B_PIE | B_AIE | B_UIE | B_SET);
    rtc->cmos[RTC_C] = 0;
    rtc->index = 0;
    rtc->replaced = false;
    if (!offset_sane(rtc)) /* a restore failed half-way */
        rtc->offset_ns = 0;
    rtc->checked_ns = now_ns(rtc);
    update_line(rtc);
    arm(rtc);
}

static void rtc_unrealize(Device *dev)
{
    Rtc *rtc = (Rtc *)dev;
    machine_timer_free(rtc->timer);
    io_region_free(rtc->region);
}

static bool rtc_realize(Device *dev, GError **err)
{
    Rtc *rtc = (Rtc *)dev;
    int64_t offset_s = dev->machine->config->rtc_offset_s;
    if (offset_s > 6000000000 || offset_s < -6000000000)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "RTC offset of %" G_GINT64_FORMAT
                          " seconds: must be within 6000000000 seconds (190 years) of now",
                          offset_s);
    rtc->region = machine_map_ports(dev->machine, LAYOUT_PORT_RTC, 2, &rtc_ops, rtc, "rtc");
    if (!rtc->region)
        return lodge_fail(err, LODGE_ERROR_INTERNAL, "rtc: its ports are taken");
    rtc->timer = machine_timer_new(dev->machine, rtc_timer, rtc);
    rtc->offset_ns = offset_s * NS_S;
    rtc->cmos[RTC_A] = 0x26; /* 32.768 kHz, 1024 Hz */
    rtc->cmos[RTC_B] = B_24H;
    rtc->cmos[RTC_D] = 0x80;
    fill_memory(rtc);
    rtc_reset(dev);
    time_to_registers(rtc, now_ns(rtc));
    return true;
}

static bool rtc_loaded(Device *dev, GError **err)
{
    Rtc *rtc = (Rtc *)dev;
    if (!offset_sane(rtc) || rtc->checked_ns > (TIME_MAX_S + 500000000) * NS_S ||
        rtc->checked_ns < TIME_MIN_S * NS_S || rtc->periodic_ns < 0 ||
        rtc->periodic_ns > machine_clock_ns(dev->machine))
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "rtc: impossible time in saved state");
    rtc->index &= 0x7f;
    rtc_update(rtc);
    return true;
}

static const StateField rtc_state[] = {
    STATE_BUFFER(Rtc, cmos),
    STATE_FIELD(Rtc, index),
    STATE_FIELD(Rtc, replaced),
    STATE_FIELD(Rtc, offset_ns),
    STATE_FIELD(Rtc, checked_ns),
    STATE_FIELD(Rtc, periodic_ns),
    STATE_FIELDS_END,
};

const DeviceType rtc_device_type = {
    .name = "rtc",
    .summary = "MC146818 real-time clock and CMOS memory",
    .bus = DEVICE_BUS_SYSTEM,
    .instance_size = sizeof(Rtc),
    .realize = rtc_realize,
    .reset = rtc_reset,
    .unrealize = rtc_unrealize,
    .state = rtc_state,
    .state_loaded = rtc_loaded,
};
