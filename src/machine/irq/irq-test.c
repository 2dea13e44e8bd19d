/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The interrupt controllers, by their registers. */
#include "machine/irq/irq.h"

#include "machine/board/layout.h"
#include "machine/test-machine.h"

#define APIC LAYOUT_LAPIC_BASE

static uint32_t apic_read(Machine *m, unsigned vcpu, unsigned reg)
{
    return (uint32_t)test_mmio_read(m, vcpu, APIC + reg, 4);
}

static void apic_write(Machine *m, unsigned vcpu, unsigned reg, uint32_t value)
{
    test_mmio_write(m, vcpu, APIC + reg, 4, value);
}

static void apic_enable(Machine *m, unsigned vcpu)
{
    apic_write(m, vcpu, 0xf0, 0x1ff);
}

static uint32_t io_apic_read(Machine *m, unsigned reg)
{
    test_mmio_write(m, 0, LAYOUT_IOAPIC_BASE, 4, reg);
    return (uint32_t)test_mmio_read(m, 0, LAYOUT_IOAPIC_BASE + 0x10, 4);
}

static void io_apic_write(Machine *m, unsigned reg, uint32_t value)
{
    test_mmio_write(m, 0, LAYOUT_IOAPIC_BASE, 4, reg);
    test_mmio_write(m, 0, LAYOUT_IOAPIC_BASE + 0x10, 4, value);
}

static void io_apic_route(Machine *m, unsigned pin, uint64_t entry)
{
    io_apic_write(m, 0x11 + 2 * pin, (uint32_t)(entry >> 32));
    io_apic_write(m, 0x10 + 2 * pin, (uint32_t)entry);
}

static int take(Machine *m, unsigned vcpu)
{
    return lapic_acknowledge(m->irq.lapic, vcpu);
}

/* ---- local APIC ---------------------------------------------------------------------------------
 */

static void test_lapic_reset(void)
{
    Machine *m = test_board(2);
    g_assert_cmphex(apic_read(m, 1, 0x20), ==, 1u << 24);
    g_assert_cmphex(apic_read(m, 0, 0x30), ==, 0x50014);
    g_assert_cmphex(apic_read(m, 1, 0xf0), ==, 0xff);
    g_assert_cmphex(apic_read(m, 1, 0xe0), ==, 0xffffffff);
    g_assert_cmphex(apic_read(m, 1, 0x320), ==, 0x10000);
    g_assert_cmphex(apic_read(m, 1, 0x350), ==, 0x10000);
    g_assert_cmphex(apic_read(m, 0, 0x350), ==, 0x700); /* virtual wire */
    apic_write(m, 1, 0x350, 0x700);                     /* software disabled: stays masked */
    g_assert_cmphex(apic_read(m, 1, 0x350), ==, 0x10700);
    machine_free(m);
}

static void test_lapic_priority(void)
{
    Machine *m = test_board(1);
    apic_enable(m, 0);
    IrqMessage message = {.destination = 0, .vector = 0x41};
    g_assert_cmpint(take(m, 0), ==, -1);
    lapic_send(m->irq.lapic, &message);
    g_assert_cmpuint(test_vcpu(m, 0)->interrupts, ==, 1);
    message.vector = 0x61;
    lapic_send(m->irq.lapic, &message);
    g_assert_cmphex(apic_read(m, 0, 0x220), ==, 2); /* IRR 0x41 */
    g_assert_cmpint(take(m, 0), ==, 0x61);
    g_assert_cmphex(apic_read(m, 0, 0x130), ==, 2); /* ISR 0x61 */
    g_assert_cmphex(apic_read(m, 0, 0xa0), ==, 0x60);
    g_assert_cmpint(take(m, 0), ==, -1);
    unsigned before = test_vcpu(m, 0)->interrupts;
    apic_write(m, 0, 0xb0, 0);
    g_assert_cmpuint(test_vcpu(m, 0)->interrupts, ==, before + 1);
    /* The task priority holds back its class and below. */
    lapic_cr8_write(m->irq.lapic, 0, 4);
    g_assert_cmphex(apic_read(m, 0, 0x80), ==, 0x40);
    g_assert_cmpint(take(m, 0), ==, -1);
    before = test_vcpu(m, 0)->interrupts;
    apic_write(m, 0, 0x80, 0x3f);
    g_assert_cmpuint(test_vcpu(m, 0)->interrupts, ==, before + 1);
    g_assert_cmpuint(lapic_cr8_read(m->irq.lapic, 0), ==, 3);
    g_assert_cmpint(take(m, 0), ==, 0x41);
    apic_write(m, 0, 0xb0, 0);
    g_assert_cmphex(apic_read(m, 0, 0x120), ==, 0);
    machine_free(m);
}

static void test_lapic_ipi(void)
{
    Machine *m = test_board(4);
    for (unsigned i = 0; i < 4; i++)
        apic_enable(m, i);
    apic_write(m, 0, 0x310, 2u << 24);
    apic_write(m, 0, 0x300, 0x4050); /* fixed, physical 2 */
    g_assert_cmpint(take(m, 2), ==, 0x50);
    g_assert_cmpint(take(m, 1), ==, -1);
    apic_write(m, 3, 0x300, 0xc4051); /* all but self */
    g_assert_cmpint(take(m, 0), ==, 0x51);
    g_assert_cmpint(take(m, 1), ==, 0x51);
    g_assert_cmpint(take(m, 3), ==, -1);
    apic_write(m, 3, 0x300, 0x84062); /* all */
    g_assert_cmpint(take(m, 3), ==, 0x62);
    apic_write(m, 1, 0x300, 0x44073); /* self */
    g_assert_cmpint(take(m, 1), ==, 0x73);
    /* Logical flat: 1 and 3. */
    for (unsigned i = 0; i < 4; i++)
        apic_write(m, i, 0xd0, 1u << (24 + i));
    apic_write(m, 0, 0x310, 0x0a000000);
    apic_write(m, 0, 0x300, 0x4884);
    g_assert_cmpint(take(m, 1), ==, 0x84);
    g_assert_cmpint(take(m, 3), ==, 0x84);
    apic_write(m, 0, 0x310, 0xff000000); /* physical broadcast */
    apic_write(m, 0, 0x300, 0x4095);
    g_assert_cmpint(take(m, 0), ==, 0x95);
    /* Cluster 1: CPUs 2 and 3 are members 0 and 1. */
    for (unsigned i = 0; i < 4; i++) {
        apic_write(m, i, 0xe0, 0x0fffffff);
        apic_write(m, i, 0xd0, (i / 2) << 28 | 1u << (24 + i % 2));
    }
    apic_write(m, 0, 0x310, 0x12000000);
    apic_write(m, 0, 0x300, 0x48a6);
    g_assert_cmpint(take(m, 3), ==, 0xa6);
    g_assert_cmphex(apic_read(m, 2, 0x250), ==, 0); /* 2 has nothing of 0xa0-0xbf */
    /* NMI, INIT (and its de-assert), SIPI. */
    apic_write(m, 0, 0x310, 3u << 24);
    apic_write(m, 0, 0x300, 0x4400);
    g_assert_cmpuint(test_vcpu(m, 3)->nmis, ==, 1);
    apic_write(m, 0, 0x300, 0xc500);
    apic_write(m, 0, 0x300, 0x8500);
    g_assert_cmpuint(test_vcpu(m, 3)->inits, ==, 1);
    g_assert_cmphex(apic_read(m, 3, 0xf0), ==, 0xff);
    apic_write(m, 0, 0x300, 0x4609);
    g_assert_cmpuint(test_vcpu(m, 3)->sipis, ==, 1);
    g_assert_cmphex(test_vcpu(m, 3)->sipi_vector, ==, 9);
    machine_free(m);
}

static void test_lapic_lowest(void)
{
    Machine *m = test_board(3);
    unsigned hits[3] = {0};
    for (unsigned i = 0; i < 3; i++)
        apic_enable(m, i);
    apic_write(m, 1, 0x80, 0x20); /* busier than the others */
    IrqMessage message = {.destination = UINT32_MAX, .delivery = IRQ_LOWEST, .vector = 0x40};
    for (unsigned i = 0; i < 6; i++) {
        lapic_send(m->irq.lapic, &message);
        for (unsigned v = 0; v < 3; v++) {
            if (take(m, v) == 0x40) {
                hits[v]++;
                apic_write(m, v, 0xb0, 0);
            }
        }
    }
    g_assert_cmpuint(hits[0], ==, 3);
    g_assert_cmpuint(hits[1], ==, 0);
    g_assert_cmpuint(hits[2], ==, 3);
    machine_free(m);
}

static void test_lapic_errors(void)
{
    Machine *m = test_board(1);
    apic_enable(m, 0);
    apic_write(m, 0, 0x370, 0xfe);
    apic_write(m, 0, 0x300, 0x4405); /* NMI to itself: fine */
    apic_write(m, 0, 0x300, 0x4005); /* vector 5 */
    g_assert_cmphex(apic_read(m, 0, 0x280), ==, 0);
    apic_write(m, 0, 0x280, 0);
    g_assert_cmphex(apic_read(m, 0, 0x280), ==, 0x20);
    g_assert_cmpint(take(m, 0), ==, 0xfe);
    apic_read(m, 0, 0x3f0);
    apic_write(m, 0, 0x280, 0);
    g_assert_cmphex(apic_read(m, 0, 0x280), ==, 0x80);
    apic_write(m, 0, 0x280, 0);
    g_assert_cmphex(apic_read(m, 0, 0x280), ==, 0);
    machine_free(m);
}

static void test_lapic_timer(void)
{
    Machine *m = test_board(1);
    apic_enable(m, 0);
    apic_write(m, 0, 0x3e0, 0xb); /* divide by 1: 1 ns */
    apic_write(m, 0, 0x320, 0x30);
    apic_write(m, 0, 0x380, 1000000);
    machine_clock_advance(m, 400000);
    g_assert_cmpuint(apic_read(m, 0, 0x390), ==, 600000);
    g_assert_cmpint(take(m, 0), ==, -1);
    machine_clock_advance(m, 600000);
    g_assert_cmpint(take(m, 0), ==, 0x30);
    g_assert_cmpuint(apic_read(m, 0, 0x390), ==, 0);
    apic_write(m, 0, 0xb0, 0);
    machine_clock_advance(m, 10000000);
    g_assert_cmpint(take(m, 0), ==, -1);
    apic_write(m, 0, 0x320, 0x30); /* over already: writing the entry again fires nothing */
    machine_clock_advance(m, 10000000);
    g_assert_cmpint(take(m, 0), ==, -1);
    /* Periodic, divided by 16. */
    apic_write(m, 0, 0x3e0, 3);
    apic_write(m, 0, 0x320, 0x20031);
    apic_write(m, 0, 0x380, 62500); /* 1 ms */
    unsigned ticks = 0;
    for (unsigned i = 0; i < 100; i++) {
        machine_clock_advance(m, 100000);
        if (take(m, 0) == 0x31) {
            ticks++;
            apic_write(m, 0, 0xb0, 0);
        }
    }
    g_assert_cmpuint(ticks, ==, 10);
    /* From periodic to one-shot: what is left of the period. And back, when that is over: nothing. */
    apic_write(m, 0, 0x380, 62500);
    machine_clock_advance(m, 1400000);
    take(m, 0);
    apic_write(m, 0, 0xb0, 0);
    apic_write(m, 0, 0x320, 0x31);
    g_assert_cmpuint(apic_read(m, 0, 0x390), ==, 37500);
    machine_clock_advance(m, 600000);
    g_assert_cmpint(take(m, 0), ==, 0x31);
    apic_write(m, 0, 0xb0, 0);
    apic_write(m, 0, 0x320, 0x20031);
    g_assert_cmpuint(apic_read(m, 0, 0x390), ==, 0);
    machine_clock_advance(m, 5000000);
    g_assert_cmpint(take(m, 0), ==, -1);
    apic_write(m, 0, 0x380, 62500);
    g_assert_cmpuint(apic_read(m, 0, 0x390), ==, 62500);
    apic_write(m, 0, 0x320, 0x30031); /* masked: no host timer */
    g_assert_cmpuint(m->timers->len, ==, 0);
    apic_write(m, 0, 0x380, 0);
    machine_free(m);
}

static void test_lapic_deadline(void)
{
    Machine *m = test_board(1);
    uint64_t value = 0;
    apic_enable(m, 0);
    g_assert_true(lapic_msr_write(m->irq.lapic, 0, 0x6e0, 5000)); /* not in that mode: ignored */
    g_assert_true(lapic_msr_read(m->irq.lapic, 0, 0x6e0, &value));
    g_assert_cmpuint(value, ==, 0);
    apic_write(m, 0, 0x320, 0x40032);
    g_assert_true(lapic_msr_write(m->irq.lapic, 0, 0x6e0, 5000)); /* the TSC is the clock in ns */
    machine_clock_advance(m, 4990);
    g_assert_cmpint(take(m, 0), ==, -1);
    machine_clock_advance(m, 20);
    g_assert_cmpint(take(m, 0), ==, 0x32);
    g_assert_true(lapic_msr_read(m->irq.lapic, 0, 0x6e0, &value));
    g_assert_cmpuint(value, ==, 0);
    apic_write(m, 0, 0xb0, 0);
    lapic_msr_write(m->irq.lapic, 0, 0x6e0, 1); /* passed: at once */
    g_assert_cmpint(take(m, 0), ==, 0x32);
    apic_write(m, 0, 0xb0, 0);
    lapic_msr_write(m->irq.lapic, 0, 0x6e0, 9000);
    lapic_msr_write(m->irq.lapic, 0, 0x6e0, 0); /* disarmed */
    machine_clock_advance(m, 10000);
    g_assert_cmpint(take(m, 0), ==, -1);
    lapic_msr_write(m->irq.lapic, 0, 0x6e0, UINT64_MAX);
    machine_clock_advance(m, 10000);
    g_assert_cmpint(take(m, 0), ==, -1);
    machine_free(m);
}

static void test_x2apic(void)
{
    Machine *m = test_board(20);
    Device *l = m->irq.lapic;
    uint64_t value = 0;
    g_assert_false(lapic_msr_read(l, 0, 0x802, &value)); /* not in x2APIC mode */
    g_assert_true(lapic_msr_read(l, 17, 0x1b, &value));
    g_assert_cmphex(value, ==, 0xfee00800);
    g_assert_true(lapic_msr_read(l, 0, 0x1b, &value));
    g_assert_cmphex(value, ==, 0xfee00900);
    g_assert_false(lapic_msr_write(l, 0, 0x1b, 0xfee00500)); /* x2APIC without enable */
    g_assert_false(lapic_msr_write(l, 0, 0x1b, 0xfec00900)); /* elsewhere */
    for (unsigned i = 0; i < 20; i++) {
        g_assert_true(lapic_msr_write(l, i, 0x1b, 0xfee00c00));
        g_assert_true(lapic_msr_write(l, i, 0x80f, 0x1ff));
    }
    g_assert_false(lapic_msr_write(l, 0, 0x1b, 0xfee00800)); /* back to xAPIC directly */
    g_assert_cmphex(apic_read(m, 0, 0x30), ==, 0xffffffff);  /* no MMIO any more */
    g_assert_true(lapic_msr_read(l, 17, 0x802, &value));
    g_assert_cmphex(value, ==, 17);
    g_assert_true(lapic_msr_read(l, 17, 0x80d, &value));
    g_assert_cmphex(value, ==, 0x10002);
    g_assert_false(lapic_msr_read(l, 0, 0x80e, &value)); /* no DFR */
    g_assert_false(lapic_msr_read(l, 0, 0x831, &value));
    g_assert_false(lapic_msr_write(l, 0, 0x802, 1));
    g_assert_false(lapic_msr_write(l, 0, 0x80b, 1));
    g_assert_false(lapic_msr_write(l, 0, 0x808, 0x100));
    g_assert_true(lapic_msr_write(l, 0, 0x828, 0)); /* #GP says all: no ESR bit */
    g_assert_true(lapic_msr_read(l, 0, 0x828, &value));
    g_assert_cmphex(value, ==, 0);
    g_assert_true(lapic_msr_write(l, 0, 0x830, UINT64_C(17) << 32 | 0x4052));
    g_assert_cmpint(take(m, 17), ==, 0x52);
    g_assert_true(lapic_msr_write(l, 0, 0x830, UINT64_C(0x10006) << 32 | 0x4853)); /* 17 and 18 */
    g_assert_true(lapic_msr_write(l, 17, 0x80b, 0));
    g_assert_cmpint(take(m, 17), ==, 0x53);
    g_assert_cmpint(take(m, 18), ==, 0x53);
    g_assert_cmpint(take(m, 16), ==, -1);
    g_assert_true(lapic_msr_write(l, 3, 0x83f, 0x77));
    g_assert_cmpint(take(m, 3), ==, 0x77);
    g_assert_true(lapic_msr_write(l, 0, 0x1b, 0xfee00000));
    g_assert_true(lapic_msr_write(l, 0, 0x1b, 0xfee00800));
    machine_free(m);
}

static uint64_t mmio_read(Machine *m, unsigned vcpu, uint64_t at)
{
    return test_mmio_read(m, vcpu, at, 4);
}

static void test_lapic_moved(void)
{
    Machine *m = test_board(3);
    Device *l = m->irq.lapic;
    uint64_t value;
    uint32_t version = apic_read(m, 0, 0x30);
    g_assert_false(lapic_msr_write(l, 0, 0x1b, 0x1000 | 0x900));     /* RAM */
    g_assert_false(lapic_msr_write(l, 0, 0x1b, 0xfec00000 | 0x900)); /* the IOAPIC */
    g_assert_false(lapic_msr_write(l, 0, 0x1b, 1ull << 60 | 0x900));
    g_assert_false(lapic_msr_write(l, 0, 0x1b, 0xfee00901));
    for (uint64_t at = 0xfe000000; at < 0xfe010000; at += 0x1000) { /* more than there are windows */
        g_assert_true(lapic_msr_write(l, 0, 0x1b, at | 0x900));
        g_assert_cmphex(mmio_read(m, 0, at + 0x30), ==, version);
        g_assert_cmphex(mmio_read(m, 0, 0xfee00030), ==, UINT32_MAX);
        g_assert_cmphex(mmio_read(m, 1, at + 0x30), ==, UINT32_MAX); /* its own are elsewhere */
    }
    g_assert_true(lapic_msr_read(l, 0, 0x1b, &value));
    g_assert_cmphex(value, ==, 0xfe00f900);
    g_assert_true(lapic_msr_write(l, 1, 0x1b, 0xfe00f800)); /* in the same place */
    g_assert_cmphex(mmio_read(m, 1, 0xfe00f020), ==, 1 << 24);
    g_assert_cmphex(mmio_read(m, 0, 0xfe00f020), ==, 0);
    g_assert_cmphex(mmio_read(m, 2, 0xfee00020), ==, 2 << 24);
    g_assert_true(lapic_msr_write(l, 0, 0x1b, 0xfee00900));
    g_assert_cmphex(mmio_read(m, 0, 0xfee00030), ==, version);
    machine_free(m);
}

static void test_lapic_send_to(void)
{
    Machine *m = test_board(3);
    apic_enable(m, 2);
    g_assert_false(lapic_send_to(m->irq.lapic, 0, 3, 0x4050));
    g_assert_true(lapic_send_to(m->irq.lapic, 0, 2, 0x4050));
    g_assert_cmpint(take(m, 2), ==, 0x50);
    machine_free(m);
}

/* ---- IOAPIC
 * ------------------------------------------------------------------------------------------ */

static void test_ioapic_edge(void)
{
    Machine *m = test_board(2);
    apic_enable(m, 1);
    g_assert_cmphex(io_apic_read(m, 1), ==, 0x170020);
    g_assert_cmphex(io_apic_read(m, 0x10), ==, 0x10000);
    io_apic_write(m, 0, 0xff000000);
    g_assert_cmphex(io_apic_read(m, 0), ==, 0x0f000000);
    machine_set_gsi(m, 4, true); /* masked: lost */
    machine_set_gsi(m, 4, false);
    io_apic_route(m, 4, UINT64_C(1) << 56 | 0x45);
    g_assert_cmpint(take(m, 1), ==, -1);
    machine_set_gsi(m, 4, true);
    machine_set_gsi(m, 4, true);
    g_assert_cmpint(take(m, 1), ==, 0x45);
    apic_write(m, 1, 0xb0, 0);
    g_assert_cmpint(take(m, 1), ==, -1);
    machine_set_gsi(m, 4, false);
    machine_set_gsi(m, 4, true);
    g_assert_cmpint(take(m, 1), ==, 0x45);
    /* ISA interrupt 0 arrives at pin 2. */
    apic_write(m, 1, 0xb0, 0);
    io_apic_route(m, 2, UINT64_C(1) << 56 | 0x46);
    machine_set_gsi(m, 0, false);
    machine_set_gsi(m, 0, true);
    g_assert_cmpint(take(m, 1), ==, 0x46);
    machine_free(m);
}

static void test_ioapic_level(void)
{
    Machine *m = test_board(1);
    apic_enable(m, 0);
    io_apic_route(m, 17, 0x8051);
    machine_set_gsi(m, 17, true);
    g_assert_cmphex(io_apic_read(m, 0x10 + 34), ==, 0xc051); /* remote IRR */
    g_assert_cmpint(take(m, 0), ==, 0x51);
    g_assert_cmphex(apic_read(m, 0, 0x1a0), ==, 1u << 0x11); /* TMR 0x51 */
    machine_set_gsi(m, 17, true);
    g_assert_cmpint(take(m, 0), ==, -1);
    apic_write(m, 0, 0xb0, 0); /* still asserted: again */
    g_assert_cmpint(take(m, 0), ==, 0x51);
    machine_set_gsi(m, 17, false);
    apic_write(m, 0, 0xb0, 0);
    g_assert_cmpint(take(m, 0), ==, -1);
    g_assert_cmphex(io_apic_read(m, 0x10 + 34), ==, 0x8051);
    /* Masked while asserted, then unmasked. */
    io_apic_route(m, 17, 0x18051);
    machine_set_gsi(m, 17, true);
    g_assert_cmpint(take(m, 0), ==, -1);
    io_apic_route(m, 17, 0x8051);
    g_assert_cmpint(take(m, 0), ==, 0x51);
    machine_set_gsi(m, 17, false);
    test_mmio_write(m, 0, LAYOUT_IOAPIC_BASE + 0x40, 4, 0x51); /* the EOI register */
    g_assert_cmphex(io_apic_read(m, 0x10 + 34), ==, 0x8051);
    machine_free(m);
}

static void test_msi(void)
{
    Machine *m = test_board(2);
    apic_enable(m, 0);
    apic_enable(m, 1);
    machine_send_msi(m, 0xfee01000, 0x4061);
    g_assert_cmpint(take(m, 1), ==, 0x61);
    machine_send_msi(m, 0xfeeff000, 0x4062);
    g_assert_cmpint(take(m, 0), ==, 0x62);
    g_assert_cmphex(apic_read(m, 1, 0x230), ==, 4); /* 1 still serves 0x61 */
    machine_send_msi(m, 0xfed01000, 0x4063);        /* not an interrupt */
    machine_send_msi(m, 0x1fee01000, 0x4063);
    g_assert_cmphex(apic_read(m, 1, 0x230), ==, 4);
    machine_free(m);
}

/* ---- 8259
 * --------------------------------------------------------------------------------------------- */

static void pic_setup(Machine *m, uint8_t icw4)
{
    test_out(m, 0x20, 0x11);
    test_out(m, 0x21, 0x30);
    test_out(m, 0x21, 0x04);
    test_out(m, 0x21, icw4);
    test_out(m, 0xa0, 0x11);
    test_out(m, 0xa1, 0x38);
    test_out(m, 0xa1, 0x02);
    test_out(m, 0xa1, icw4);
    test_out(m, 0x21, 0);
    test_out(m, 0xa1, 0);
}

static void pulse(Machine *m, unsigned gsi)
{
    machine_set_gsi(m, gsi, true);
    machine_set_gsi(m, gsi, false);
}

static void test_pic(void)
{
    Machine *m = test_board(1);
    pic_setup(m, 1);
    g_assert_cmpint(take(m, 0), ==, -1);
    pulse(m, 4);
    g_assert_cmpuint(test_vcpu(m, 0)->interrupts, ==, 1);
    g_assert_cmpint(take(m, 0), ==, 0x34);
    pulse(m, 3); /* higher priority: nests */
    pulse(m, 5); /* lower: waits */
    g_assert_cmpint(take(m, 0), ==, 0x33);
    g_assert_cmpint(take(m, 0), ==, -1);
    test_out(m, 0x20, 0x0b);
    g_assert_cmphex(test_in(m, 0x20), ==, 0x18); /* ISR */
    test_out(m, 0x20, 0x0a);
    g_assert_cmphex(test_in(m, 0x20), ==, 0x20); /* IRR */
    test_out(m, 0x20, 0x20);
    g_assert_cmpint(take(m, 0), ==, -1);
    test_out(m, 0x20, 0x64); /* specific EOI of 4 */
    g_assert_cmpint(take(m, 0), ==, 0x35);
    test_out(m, 0x20, 0x20);
    /* The slave, and a request that goes away. */
    pulse(m, 12);
    g_assert_cmpint(take(m, 0), ==, 0x3c);
    test_out(m, 0xa0, 0x20);
    test_out(m, 0x20, 0x20);
    test_out(m, 0xa1, 0x10);
    pulse(m, 12);
    g_assert_cmpint(take(m, 0), ==, -1);
    test_out(m, 0xa1, 0);
    g_assert_cmpint(take(m, 0), ==, 0x3c);
    machine_free(m);
}

static void test_pic_modes(void)
{
    Machine *m = test_board(1);
    pic_setup(m, 3); /* automatic EOI */
    pulse(m, 1);
    pulse(m, 1);
    g_assert_cmpint(take(m, 0), ==, 0x31);
    pulse(m, 1);
    g_assert_cmpint(take(m, 0), ==, 0x31);
    pic_setup(m, 1);
    /* Level. */
    test_out(m, 0x4d0, 0xff);
    g_assert_cmphex(test_in(m, 0x4d0), ==, 0xf8);
    machine_set_gsi(m, 5, true);
    g_assert_cmpint(take(m, 0), ==, 0x35);
    test_out(m, 0x20, 0x20);
    g_assert_cmpint(take(m, 0), ==, 0x35);
    machine_set_gsi(m, 5, false);
    test_out(m, 0x20, 0x20);
    g_assert_cmpint(take(m, 0), ==, -1);
    test_out(m, 0x4d0, 0);
    /* Poll. */
    pulse(m, 6);
    test_out(m, 0x20, 0x0c);
    g_assert_cmphex(test_in(m, 0x20), ==, 0x86);
    test_out(m, 0x20, 0x0c);
    g_assert_cmphex(test_in(m, 0x20), ==, 0);
    test_out(m, 0x20, 0x20);
    /* Rotation: after IR4 was served it is the last. */
    pulse(m, 4);
    g_assert_cmpint(take(m, 0), ==, 0x34);
    test_out(m, 0x20, 0xa0);
    pulse(m, 3);
    pulse(m, 6);
    g_assert_cmpint(take(m, 0), ==, 0x36);
    test_out(m, 0x20, 0x20);
    g_assert_cmpint(take(m, 0), ==, 0x33);
    test_out(m, 0x20, 0x20);
    /* Special mask: a masked one in service does not hold back the rest. */
    test_out(m, 0x20, 0xc7);
    pulse(m, 1);
    g_assert_cmpint(take(m, 0), ==, 0x31);
    test_out(m, 0x21, 0x02);
    test_out(m, 0x20, 0x68);
    pulse(m, 6);
    g_assert_cmpint(take(m, 0), ==, 0x36);
    machine_free(m);
}

static void test_extint(void)
{
    Machine *m = test_board(2);
    pic_setup(m, 1);
    apic_enable(m, 0);
    apic_write(m, 0, 0x350, 0x10700);
    pulse(m, 1);
    g_assert_cmpint(take(m, 0), ==, -1);
    unsigned before = test_vcpu(m, 0)->interrupts;
    apic_write(m, 0, 0x350, 0x700);
    g_assert_cmpuint(test_vcpu(m, 0)->interrupts, ==, before + 1);
    g_assert_cmpint(take(m, 0), ==, 0x31);
    test_out(m, 0x20, 0x20);
    /* The APIC off altogether: the pin reaches the CPU. */
    g_assert_true(lapic_msr_write(m->irq.lapic, 0, 0x1b, 0xfee00000));
    pulse(m, 3);
    g_assert_cmpint(take(m, 0), ==, 0x33);
    test_out(m, 0x20, 0x20);
    /* LINT0 as a fixed interrupt. */
    apic_enable(m, 1);
    apic_write(m, 1, 0x350, 0x44);
    pulse(m, 4);
    g_assert_cmpint(take(m, 1), ==, 0x44);
    /* LINT1 is the NMI button. */
    apic_write(m, 1, 0x360, 0x400);
    lapic_nmi(m->irq.lapic);
    g_assert_cmpuint(test_vcpu(m, 1)->nmis, ==, 1);
    machine_free(m);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/irq/lapic-reset", test_lapic_reset);
    g_test_add_func("/irq/lapic-priority", test_lapic_priority);
    g_test_add_func("/irq/lapic-ipi", test_lapic_ipi);
    g_test_add_func("/irq/lapic-lowest", test_lapic_lowest);
    g_test_add_func("/irq/lapic-errors", test_lapic_errors);
    g_test_add_func("/irq/lapic-timer", test_lapic_timer);
    g_test_add_func("/irq/lapic-deadline", test_lapic_deadline);
    g_test_add_func("/irq/x2apic", test_x2apic);
    g_test_add_func("/irq/lapic-moved", test_lapic_moved);
    g_test_add_func("/irq/lapic-send-to", test_lapic_send_to);
    g_test_add_func("/irq/ioapic-edge", test_ioapic_edge);
    g_test_add_func("/irq/ioapic-level", test_ioapic_level);
    g_test_add_func("/irq/msi", test_msi);
    g_test_add_func("/irq/pic", test_pic);
    g_test_add_func("/irq/pic-modes", test_pic_modes);
    g_test_add_func("/irq/extint", test_extint);
    return g_test_run();
}
