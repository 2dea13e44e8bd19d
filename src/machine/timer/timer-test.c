/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* PIT, HPET and RTC, by their registers. */
#include "machine/timer/timers.h"

#include <time.h>

#include "machine/board/layout.h"
#include "machine/irq/irq.h"
#include "machine/test-machine.h"

#define TICK_NS (1000000000.0 / 1193182)

static int64_t pit_ns(double ticks)
{
    return (int64_t)(ticks * TICK_NS + 1);
}

/* The 8259 with automatic EOI and only @irq open; count_irq counts its interrupts. */
static void open_irq(Machine *m, unsigned irq)
{
    static const uint8_t words[2][4] = {{0x11, 0x30, 0x04, 0x03}, {0x11, 0x38, 0x02, 0x03}};
    unsigned mask = ~((1u << irq) | (irq > 7 ? 4u : 0));
    for (unsigned chip = 0; chip < 2; chip++)
        for (unsigned i = 0; i < 4; i++)
            test_out(m, (uint16_t)((chip ? 0xa0 : 0x20) + (i ? 1 : 0)), words[chip][i]);
    test_out(m, 0x21, (uint8_t)mask);
    test_out(m, 0xa1, (uint8_t)(mask >> 8));
}

/* Advances by @ns in small steps and counts interrupts. */
static unsigned count_irq(Machine *m, int64_t ns, int64_t step)
{
    unsigned count = 0;
    for (int64_t done = 0; done < ns; done += step) {
        machine_clock_advance(m, step);
        while (lapic_acknowledge(m->irq.lapic, 0) >= 0)
            count++;
    }
    return count;
}

static void pit_program(Machine *m, unsigned channel, unsigned mode, unsigned count)
{
    test_out(m, 0x43, (uint8_t)(channel << 6 | 0x30 | mode << 1));
    test_out(m, (uint16_t)(0x40 + channel), (uint8_t)count);
    test_out(m, (uint16_t)(0x40 + channel), (uint8_t)(count >> 8));
}

static unsigned pit_latched(Machine *m, unsigned channel)
{
    test_out(m, 0x43, (uint8_t)(channel << 6));
    unsigned low = test_in(m, (uint16_t)(0x40 + channel));
    return low | (unsigned)test_in(m, (uint16_t)(0x40 + channel)) << 8;
}

static uint8_t pit_status(Machine *m, unsigned channel)
{
    test_out(m, 0x43, (uint8_t)(0xe0 | 2u << channel));
    return test_in(m, (uint16_t)(0x40 + channel));
}

static void test_pit_counts(void)
{
    Machine *m = test_board(1);
    pit_program(m, 0, 2, 1000);
    g_assert_cmpuint(pit_latched(m, 0), ==, 1000);
    machine_clock_advance(m, pit_ns(300));
    g_assert_cmpuint(pit_latched(m, 0), ==, 700);
    test_out(m, 0x43, 0); /* the latch holds */
    machine_clock_advance(m, pit_ns(100));
    g_assert_cmphex(test_in(m, 0x40), ==, 700 & 0xff);
    g_assert_cmphex(test_in(m, 0x40), ==, 700 >> 8);
    machine_clock_advance(m, pit_ns(700));
    g_assert_cmpuint(pit_latched(m, 0), ==, 900);
    g_assert_cmphex(pit_status(m, 0), ==, 0x80 | 0x30 | 4);
    /* Mode 0: output rises at the end and stays. */
    pit_program(m, 0, 0, 100);
    g_assert_cmphex(pit_status(m, 0), ==, 0x30);
    machine_clock_advance(m, pit_ns(101));
    g_assert_cmphex(pit_status(m, 0), ==, 0xb0);
    g_assert_cmpuint(pit_latched(m, 0), ==, 65535); /* runs on */
    /* Low byte only, and a read-back of count and status at once. */
    test_out(m, 0x43, 0x14);
    test_out(m, 0x40, 50);
    test_out(m, 0x43, 0xc2);
    g_assert_cmphex(test_in(m, 0x40), ==, 0x94);
    g_assert_cmphex(test_in(m, 0x40), ==, 50);
    /* Not loaded yet: null count. */
    test_out(m, 0x43, 0x34);
    g_assert_cmphex(pit_status(m, 0) & 0x40, ==, 0x40);
    /* BCD. */
    test_out(m, 0x43, 0x35);
    test_out(m, 0x40, 0x00);
    test_out(m, 0x40, 0x10);
    machine_clock_advance(m, pit_ns(1));
    g_assert_cmphex(pit_latched(m, 0), ==, 0x0999);
    machine_free(m);
}

/* Kernels measure the TSC with channel 2 in mode 0 and the speaker gate. */
static void test_pit_speaker(void)
{
    Machine *m = test_board(1);
    test_out(m, 0x61, (uint8_t)((test_in(m, 0x61) & ~2) | 1));
    pit_program(m, 2, 0, 11932); /* 10 ms */
    g_assert_cmphex(test_in(m, 0x61) & 0x21, ==, 1);
    machine_clock_advance(m, 9990000);
    g_assert_cmphex(test_in(m, 0x61) & 0x20, ==, 0);
    machine_clock_advance(m, 20000);
    g_assert_cmphex(test_in(m, 0x61) & 0x20, ==, 0x20);
    /* The gate holds the count. */
    pit_program(m, 2, 0, 1000);
    machine_clock_advance(m, pit_ns(400));
    test_out(m, 0x61, 0);
    machine_clock_advance(m, pit_ns(5000));
    g_assert_cmpuint(pit_latched(m, 2), ==, 600);
    test_out(m, 0x61, 1);
    machine_clock_advance(m, pit_ns(100));
    g_assert_cmpuint(pit_latched(m, 2), ==, 500);
    /* Mode 1: the gate starts it. */
    test_out(m, 0x61, 0);
    pit_program(m, 2, 1, 100);
    g_assert_cmphex(test_in(m, 0x61) & 0x20, ==, 0x20);
    test_out(m, 0x61, 1);
    g_assert_cmphex(test_in(m, 0x61) & 0x20, ==, 0);
    machine_clock_advance(m, pit_ns(101));
    g_assert_cmphex(test_in(m, 0x61) & 0x20, ==, 0x20);
    machine_free(m);
}

static void test_pit_interrupt(void)
{
    Machine *m = test_board(1);
    pit_program(m, 0, 2, 11932);             /* 100 Hz */
    g_assert_cmpuint(m->timers->len, ==, 0); /* masked: no host timer */
    open_irq(m, 0);
    g_assert_cmpuint(m->timers->len, ==, 1);
    g_assert_cmpuint(count_irq(m, 1000000000, 1000000), ==, 99); /* 10.0002 ms each */
    pit_program(m, 0, 3, 11932);
    g_assert_cmpuint(ABS((int)count_irq(m, 1000000000, 1000000) - 100), <=, 1);
    pit_program(m, 0, 0, 11932);
    g_assert_cmpuint(count_irq(m, 1000000000, 1000000), ==, 1);
    g_assert_cmpuint(m->timers->len, ==, 0);
    pit_program(m, 0, 4, 11932);
    g_assert_cmpuint(count_irq(m, 1000000000, 1000000), ==, 1);
    pit_program(m, 0, 2, 2); /* half a million a second: drawn apart */
    g_assert_cmpuint(count_irq(m, 10000000, 10000), <=, 200);
    test_out(m, 0x21, 0xff);
    count_irq(m, 1000000, 100000);
    g_assert_cmpuint(m->timers->len, ==, 0);
    machine_free(m);
}

/* ---- HPET
 * -------------------------------------------------------------------------------------------- */

static uint64_t hpet_read(Machine *m, unsigned reg)
{
    return test_mmio_read(m, 0, LAYOUT_HPET_BASE + reg, 8);
}

static void hpet_write(Machine *m, unsigned reg, uint64_t value)
{
    test_mmio_write(m, 0, LAYOUT_HPET_BASE + reg, 8, value);
}

static void test_hpet_counter(void)
{
    Machine *m = test_board(1);
    g_assert_cmphex(hpet_read(m, 0), ==, 0x009896808086a201);
    machine_clock_advance(m, 1000);
    g_assert_cmpuint(hpet_read(m, 0xf0), ==, 0);
    hpet_write(m, 0x10, 1);
    machine_clock_advance(m, 1000);
    g_assert_cmpuint(hpet_read(m, 0xf0), ==, 100);
    hpet_write(m, 0x10, 0);
    machine_clock_advance(m, 1000);
    g_assert_cmpuint(hpet_read(m, 0xf0), ==, 100);
    hpet_write(m, 0xf0, UINT64_C(0xfffffffff));
    hpet_write(m, 0x10, 1);
    machine_clock_advance(m, 10);
    g_assert_cmphex(hpet_read(m, 0xf0), ==, 0x1000000000);
    g_assert_cmphex(test_mmio_read(m, 0, LAYOUT_HPET_BASE + 0xf4, 4), ==, 0x10);
    machine_free(m);
}

static void test_hpet_legacy(void)
{
    Machine *m = test_board(1);
    pit_program(m, 0, 2, 11932);
    open_irq(m, 0);
    hpet_write(m, 0x10, 3); /* the PIT is cut off */
    g_assert_cmpuint(count_irq(m, 100000000, 1000000), <=, 1);
    /* Periodic with VAL_SET, in 32-bit halves as kernels do: 1 kHz. */
    uint64_t now = hpet_read(m, 0xf0);
    test_mmio_write(m, 0, LAYOUT_HPET_BASE + 0x100, 4, 0x14c);
    test_mmio_write(m, 0, LAYOUT_HPET_BASE + 0x108, 4, (uint32_t)now + 100000);
    test_mmio_write(m, 0, LAYOUT_HPET_BASE + 0x108, 4, 100000);
    g_assert_cmpuint(count_irq(m, 100000000 + 50000, 50000), ==, 100);
    /* One-shot. */
    hpet_write(m, 0x100, 0x104);
    now = hpet_read(m, 0xf0);
    hpet_write(m, 0x108, now + 1000);
    g_assert_cmpuint(count_irq(m, 100000000, 100000), ==, 1);
    hpet_write(m, 0x100, 0);
    hpet_write(m, 0x10, 1); /* back to the PIT */
    g_assert_cmpuint(ABS((int)count_irq(m, 100000000, 1000000) - 10), <=, 1);
    machine_free(m);
}

static void test_hpet_level(void)
{
    Machine *m = test_board(1);
    test_mmio_write(m, 0, LAYOUT_LAPIC_BASE + 0xf0, 4, 0x1ff);
    test_mmio_write(m, 0, LAYOUT_IOAPIC_BASE, 4, 0x10 + 2 * 20);
    test_mmio_write(m, 0, LAYOUT_IOAPIC_BASE + 0x10, 4, 0x8055);
    hpet_write(m, 0x10, 1);
    hpet_write(m, 0x148, hpet_read(m, 0xf0) + 100); /* timer 2, level, GSI 20 */
    hpet_write(m, 0x140, 20 << 9 | 6);
    machine_clock_advance(m, 2000);
    g_assert_cmpint(lapic_acknowledge(m->irq.lapic, 0), ==, 0x55);
    g_assert_cmphex(hpet_read(m, 0x20), ==, 4);
    hpet_write(m, 0x20, 4);
    g_assert_cmphex(hpet_read(m, 0x20), ==, 0);
    test_mmio_write(m, 0, LAYOUT_LAPIC_BASE + 0xb0, 4, 0);
    g_assert_cmpint(lapic_acknowledge(m->irq.lapic, 0), ==, -1);
    machine_free(m);
}

/* ---- RTC
 * -----------------------------------------------------------------------------------------------
 */

static uint8_t rtc_read(Machine *m, uint8_t reg)
{
    test_out(m, 0x70, reg);
    return test_in(m, 0x71);
}

static void rtc_write(Machine *m, uint8_t reg, uint8_t value)
{
    test_out(m, 0x70, reg);
    test_out(m, 0x71, value);
}

static unsigned bcd(uint8_t value)
{
    return (value >> 4) * 10u + (value & 15);
}

static int64_t rtc_time(Machine *m)
{
    struct tm tm = {
        .tm_sec = (int)bcd(rtc_read(m, 0)),
        .tm_min = (int)bcd(rtc_read(m, 2)),
        .tm_hour = (int)bcd(rtc_read(m, 4)),
        .tm_mday = (int)bcd(rtc_read(m, 7)),
        .tm_mon = (int)bcd(rtc_read(m, 8)) - 1,
        .tm_year = (int)(bcd(rtc_read(m, 0x32)) * 100 + bcd(rtc_read(m, 9))) - 1900,
    };
    return timegm(&tm);
}

static void test_rtc_time(void)
{
    Machine *m = test_board(1);
    int64_t before = time(NULL), shown = rtc_time(m);
    if (shown < before || shown > time(NULL)) /* a second may pass between two registers */
        shown = rtc_time(m);
    g_assert_cmpint(ABS(shown - time(NULL)), <=, 1);
    g_assert_cmphex(rtc_read(m, 0x0d), ==, 0x80);
    /* Setting it: 2031-12-31 23:59:58, in 12-hour form and binary. */
    rtc_write(m, 0x0b, 0x84);
    static const uint8_t values[][2] = {{0, 58}, {2, 59}, {4, 0x8b},   {7, 31},
                                        {8, 12}, {9, 31}, {0x32, 0x20}};
    for (unsigned i = 0; i < G_N_ELEMENTS(values); i++)
        rtc_write(m, values[i][0], values[i][1]);
    g_assert_cmpuint(rtc_read(m, 0), ==, 58);
    rtc_write(m, 0x0b, 0x04);
    g_assert_cmphex(rtc_read(m, 4), ==, 0x8b);
    rtc_write(m, 0x0b, 0x02);
    g_assert_cmphex(rtc_read(m, 4), ==, 0x23);
    g_assert_cmpint(rtc_time(m) - 1956527998, <=, 1); /* 2031-12-31 23:59:58 */
    g_assert_cmpint(rtc_time(m) - 1956527998, >=, 0);
    g_assert_cmpuint(rtc_read(m, 6), ==, 4); /* a Wednesday */
    machine_free(m);
}

static void test_rtc_memory(void)
{
    Machine *m = test_board(2);
    g_assert_cmpuint(rtc_read(m, 0x15) | rtc_read(m, 0x16) << 8, ==, 640);
    g_assert_cmpuint(rtc_read(m, 0x34) | rtc_read(m, 0x35) << 8, ==, (64 - 16) * 16);
    g_assert_cmpuint(rtc_read(m, 0x5f), ==, 1);
    rtc_write(m, 0x40, 0xa5);
    g_assert_cmphex(rtc_read(m, 0xc0), ==, 0xa5); /* bit 7 of the index is the NMI mask */
    rtc_device_type.reset(m->irq.rtc);
    g_assert_cmphex(rtc_read(m, 0x40), ==, 0xa5);
    machine_free(m);
}

static void test_rtc_interrupts(void)
{
    Machine *m = test_board(1);
    open_irq(m, 8);
    machine_clock_advance(m, 5000000);
    g_assert_cmpuint(m->timers->len, ==, 0);
    rtc_write(m, 0x0a, 0x26); /* 1024 Hz */
    rtc_read(m, 0x0c);        /* flags are set without their interrupts too */
    rtc_write(m, 0x0b, 0x42);
    g_assert_cmpuint(m->timers->len, ==, 1);
    machine_clock_advance(m, 1000000);
    g_assert_cmpint(lapic_acknowledge(m->irq.lapic, 0), ==, 0x38);
    g_assert_cmphex(rtc_read(m, 0x0c) & 0xc0, ==, 0xc0);
    g_assert_cmphex(rtc_read(m, 0x0c) & 0xc0, ==, 0);
    unsigned count = 0;
    for (unsigned i = 0; i < 1000; i++) {
        machine_clock_advance(m, 100000);
        if (lapic_acknowledge(m->irq.lapic, 0) >= 0) {
            count++;
            rtc_read(m, 0x0c);
        }
    }
    g_assert_cmpuint(ABS((int)count - 102), <=, 1);
    rtc_write(m, 0x0b, 0x02);
    g_assert_cmpuint(m->timers->len, ==, 0);
    /* Update-ended and an alarm at any second need a host timer of at most a second. */
    rtc_write(m, 1, 0xff);
    rtc_write(m, 3, 0xff);
    rtc_write(m, 5, 0xff);
    rtc_write(m, 0x0b, 0x32);
    g_assert_cmpuint(m->timers->len, ==, 1);
    rtc_write(m, 0x0b, 0x02);
    /* An alarm that can never be: no timer. */
    rtc_write(m, 1, 0x75);
    rtc_write(m, 0x0b, 0x22);
    g_assert_cmpuint(m->timers->len, ==, 0);
    machine_free(m);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/timer/pit-counts", test_pit_counts);
    g_test_add_func("/timer/pit-speaker", test_pit_speaker);
    g_test_add_func("/timer/pit-interrupt", test_pit_interrupt);
    g_test_add_func("/timer/hpet-counter", test_hpet_counter);
    g_test_add_func("/timer/hpet-legacy", test_hpet_legacy);
    g_test_add_func("/timer/hpet-level", test_hpet_level);
    g_test_add_func("/timer/rtc-time", test_rtc_time);
    g_test_add_func("/timer/rtc-memory", test_rtc_memory);
    g_test_add_func("/timer/rtc-interrupts", test_rtc_interrupts);
    return g_test_run();
}
