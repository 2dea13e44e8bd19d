/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The board's devices at their registers. */
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "machine/board/board.h"
#include "machine/board/devices.h"
#include "machine/board/layout.h"
#include "machine/board/pm.h"
#include "machine/chardev/chardev.h"
#include "machine/test-engine.h"

#define COM1 0x3f8

typedef struct Fixture {
    Machine *m;
    int peer; /* the other end of chardev "c" */
    unsigned events[8];
    MachineCause cause;
} Fixture;

static void count_event(void *opaque, const MachineEvent *event)
{
    Fixture *f = opaque;
    f->events[event->type]++;
    f->cause = event->cause;
}

static void set_up(Fixture *f, gconstpointer unused)
{
    int fds[2];
    f->m = test_machine_new();
    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), ==, 0);
    f->peer = fds[0];
    g_autofree char *fd = g_strdup_printf("%d", fds[1]);
    MachineItem *item = machine_item_new("fd", "c");
    machine_item_set(item, "fd", fd);
    g_autoptr(GError) error = NULL;
    Chardev *c = chardev_new(f->m, item, &error);
    g_assert_no_error(error);
    g_assert_true(chardev_find(f->m, "c") == c);
    machine_item_free(item);
    machine_lock(f->m);
    machine_clock_run(f->m, true);
    machine_unlock(f->m);
    machine_add_event_handler(f->m, count_event, f);
}

static void tear_down(Fixture *f, gconstpointer unused)
{
    Chardev *c = chardev_find(f->m, "c");
    machine_free(f->m);
    chardev_free(c);
    close(f->peer);
}

/* A device with options "key=value key=value", or NULL and the error's text in *message. */
static Device *add(Fixture *f, const DeviceType *type, const char *options, char **message)
{
    MachineItem *item = machine_item_new(type->name, NULL);
    g_auto(GStrv) words = g_strsplit(options, " ", -1);
    for (char **w = words; *w && **w; w++) {
        char *equals = strchr(*w, '=');
        *equals = 0;
        machine_item_set(item, *w, equals + 1);
    }
    g_ptr_array_add(f->m->config->devices, item); /* which owns it */
    g_autoptr(GError) error = NULL;
    machine_lock(f->m);
    Device *dev = device_new(f->m, type, item, &error);
    machine_unlock(f->m);
    if (message)
        *message = error ? g_strdup(error->message) : NULL;
    else
        g_assert_no_error(error);
    return dev;
}

static unsigned com_in(Fixture *f, unsigned reg)
{
    return test_in(f->m, COM1 + reg, 1);
}

static void com_out(Fixture *f, unsigned reg, unsigned value)
{
    test_out(f->m, COM1 + reg, 1, value);
}

static void test_uart_registers(Fixture *f, gconstpointer unused)
{
    add(f, &isa_serial_device_type, "chardev=c", NULL);
    g_assert_cmphex(com_in(f, 5), ==, 0x60);
    g_assert_cmphex(com_in(f, 2), ==, 0x01);
    g_assert_cmphex(com_in(f, 6), ==, 0xb0);
    com_out(f, 7, 0x5a);
    g_assert_cmphex(com_in(f, 7), ==, 0x5a);
    com_out(f, 3, 0x83);
    com_out(f, 0, 0x0c);
    com_out(f, 1, 0x01);
    g_assert_cmphex(com_in(f, 0), ==, 0x0c);
    g_assert_cmphex(com_in(f, 1), ==, 0x01);
    com_out(f, 3, 0x03);
    com_out(f, 1, 0xff);
    g_assert_cmphex(com_in(f, 1), ==, 0x0f); /* upper bits do not exist */
    com_out(f, 2, 0x01);
    g_assert_cmphex(com_in(f, 2) & 0xc0, ==, 0xc0);
    com_out(f, 5, 0); /* read-only */
    g_assert_cmphex(com_in(f, 5), ==, 0x60);
}

static void test_uart_transmit(Fixture *f, gconstpointer unused)
{
    char got[8] = {0};
    add(f, &isa_serial_device_type, "chardev=c", NULL);
    com_out(f, 4, 0x0b); /* OUT2 lets interrupts through */
    com_out(f, 1, 0x02);
    g_assert_true(test_gsi(4)); /* empty when enabled */
    g_assert_cmphex(com_in(f, 2), ==, 0x02);
    g_assert_false(test_gsi(4)); /* reading IIR took it */
    com_out(f, 0, 'h');
    g_assert_true(test_gsi(4)); /* sent, empty again */
    com_out(f, 0, 'i');
    g_assert_cmpint(recv(f->peer, got, sizeof(got), MSG_DONTWAIT), ==, 2);
    g_assert_cmpstr(got, ==, "hi");
    com_out(f, 1, 0);
    g_assert_false(test_gsi(4));
    com_out(f, 4, 0x03);
    com_out(f, 1, 0x02);
    g_assert_false(test_gsi(4)); /* OUT2 is off */
}

static void test_uart_receive(Fixture *f, gconstpointer unused)
{
    add(f, &isa_serial_device_type, "chardev=c index=0", NULL);
    com_out(f, 4, 0x08);
    com_out(f, 2, 0x81); /* FIFO, trigger at 8 */
    com_out(f, 1, 0x01);
    g_assert_cmpint(write(f->peer, "abc", 3), ==, 3);
    test_loop(f->m, 20);
    g_assert_cmphex(com_in(f, 2), ==, 0xcc); /* fewer than 8: time-out */
    g_assert_true(test_gsi(4));
    g_assert_cmphex(com_in(f, 5) & 1, ==, 1);
    g_assert_cmpint(com_in(f, 0), ==, 'a');
    g_assert_false(test_gsi(4)); /* reading restarts the time-out */
    test_loop(f->m, 20);
    g_assert_true(test_gsi(4));
    com_in(f, 0);
    com_in(f, 0);
    g_assert_cmphex(com_in(f, 5), ==, 0x60);
    g_assert_cmphex(com_in(f, 2), ==, 0xc1);

    /* Forty bytes: sixteen at once, the others as room comes. */
    const char *text = "0123456789abcdefghijklmnopqrstuvwxyzABCD";
    g_assert_cmpint(write(f->peer, text, 40), ==, 40);
    test_loop(f->m, 20);
    g_assert_cmphex(com_in(f, 2), ==, 0xc4);
    for (unsigned i = 0; i < 40; i++)
        g_assert_cmpint(com_in(f, 0), ==, text[i]);
    g_assert_cmphex(com_in(f, 5), ==, 0x60); /* and no overrun */

    g_assert_cmpint(write(f->peer, "xy", 2), ==, 2);
    test_loop(f->m, 20);
    com_out(f, 2, 0x83); /* clear the receiver */
    g_assert_cmphex(com_in(f, 5), ==, 0x60);
}

static void test_uart_loopback(Fixture *f, gconstpointer unused)
{
    char got[4];
    add(f, &isa_serial_device_type, "chardev=c", NULL);
    com_in(f, 6);
    com_out(f, 4, 0x1a);                     /* RTS, OUT2 */
    g_assert_cmphex(com_in(f, 6), ==, 0x92); /* CTS, DCD; DSR fell */
    com_out(f, 4, 0x15);                     /* DTR, OUT1 */
    g_assert_cmphex(com_in(f, 6), ==, 0x6b); /* DSR, RI; three changed */
    com_out(f, 4, 0x11);
    g_assert_cmphex(com_in(f, 6), ==, 0x24); /* the trailing edge of RI */
    com_out(f, 0, 0x42);
    g_assert_cmpint(recv(f->peer, got, sizeof(got), MSG_DONTWAIT), <, 0);
    com_out(f, 0, 0x43); /* one byte deep without FIFO: overrun */
    g_assert_cmphex(com_in(f, 5), ==, 0x63);
    g_assert_cmphex(com_in(f, 5), ==, 0x61); /* reading LSR clears the error */
    g_assert_cmphex(com_in(f, 0), ==, 0x43);
    com_out(f, 3, 0x43);
    g_assert_cmphex(com_in(f, 5), ==, 0x71); /* break */
    g_assert_cmphex(com_in(f, 0), ==, 0);
}

static void test_uart_options(Fixture *f, gconstpointer unused)
{
    static const struct {
        const char *options, *error;
    } cases[] = {
        {"chardev=nobody", "nobody"},
        {"index=9", "index"},
        {"colour=red", "colour"},
        {"iobase=0x60000", "iobase"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autofree char *message = NULL;
        g_assert_null(add(f, &isa_serial_device_type, cases[i].options, &message));
        g_assert_nonnull(strstr(message, cases[i].error));
    }
    IsaSerialResources r;
    for (unsigned i = 0; i < 4; i++) {
        isa_serial_resources(add(f, &isa_serial_device_type, "", NULL), &r);
        g_assert_cmpint(r.index, ==, i);
    }
    g_assert_cmphex(r.port, ==, 0x2e8);
    g_autofree char *message = NULL;
    g_assert_null(add(f, &isa_serial_device_type, "", &message));
    g_assert_nonnull(strstr(message, "at most 4"));
}

/* What was saved in the middle of things is there again after a reset and a load. */
static void test_uart_state(Fixture *f, gconstpointer unused)
{
    Device *dev = add(f, &isa_serial_device_type, "chardev=c", NULL);
    com_out(f, 4, 0x08);
    com_out(f, 2, 0x41);
    com_out(f, 1, 0x05);
    g_assert_cmpint(write(f->peer, "abcdef", 6), ==, 6);
    test_loop(f->m, 20);
    g_autoptr(GByteArray) saved = g_byte_array_new();
    device_save(dev, saved);
    dev->type->reset(dev);
    g_assert_false(test_gsi(4));
    g_assert_true(device_load(dev, saved->data, saved->len, NULL));
    g_assert_true(test_gsi(4));
    for (const char *c = "abcdef"; *c; c++)
        g_assert_cmpint(com_in(f, 0), ==, *c);
    saved->data[saved->len - 1] = 200; /* more in the FIFO than it holds */
    g_autoptr(GError) error = NULL;
    g_assert_false(device_load(dev, saved->data, saved->len, &error));
    g_assert_nonnull(error);
    dev->type->reset(dev);
}

static void test_pm(Fixture *f, gconstpointer unused)
{
    machine_lock(f->m);
    Device *pm = board_pm_init(f->m, NULL);
    machine_unlock(f->m);
    g_assert_nonnull(pm);
    g_assert_cmphex(test_in(f->m, LAYOUT_PORT_PM + 4, 2), ==, 1); /* SCI_EN */
    test_out(f->m, LAYOUT_PORT_PM + 2, 2, 0x100);
    g_assert_false(test_gsi(LAYOUT_GSI_SCI));
    board_pm_power_button(pm);
    g_assert_true(test_gsi(LAYOUT_GSI_SCI));
    g_assert_cmphex(test_in(f->m, LAYOUT_PORT_PM, 2) & 0x100, ==, 0x100);
    test_out(f->m, LAYOUT_PORT_PM, 1, 0xff); /* the low byte only */
    g_assert_true(test_gsi(LAYOUT_GSI_SCI));
    test_out(f->m, LAYOUT_PORT_PM, 2, 0x100);
    g_assert_false(test_gsi(LAYOUT_GSI_SCI));
    g_assert_cmphex(test_in(f->m, LAYOUT_PORT_PM + 8, 4), <, 1u << 24);

    test_out(f->m, LAYOUT_PORT_PM + 4, 2, 0x2000 | 3 << 10); /* not S5 */
    test_loop(f->m, 1);
    g_assert_cmpint(f->events[MACHINE_EVENT_SHUTDOWN], ==, 0);
    test_out(f->m, LAYOUT_PORT_PM + 4, 2, 0x2000 | PM_SLEEP_TYPE_S5 << 10);
    test_loop(f->m, 1);
    g_assert_cmpint(f->events[MACHINE_EVENT_SHUTDOWN], ==, 1);
    g_assert_cmpint(f->cause, ==, MACHINE_CAUSE_GUEST_SHUTDOWN);
}

static void test_pm_timer(Fixture *f, gconstpointer unused)
{
    machine_lock(f->m);
    Device *pm = board_pm_init(f->m, NULL);
    machine_unlock(f->m);
    uint32_t a = test_in(f->m, LAYOUT_PORT_PM + 8, 4);
    gint64 t0 = g_get_monotonic_time();
    g_usleep(20000);
    uint32_t b = test_in(f->m, LAYOUT_PORT_PM + 8, 4);
    gint64 us = g_get_monotonic_time() - t0;
    double hz = (double)((b - a) & 0xffffff) / (double)us * 1e6;
    g_assert_cmpfloat(hz, >, 3579545 * 0.9);
    g_assert_cmpfloat(hz, <, 3579545 * 1.1);
    /* Saved state with bits that do not exist is refused. */
    g_autoptr(GByteArray) saved = g_byte_array_new();
    g_autoptr(GError) error = NULL;
    device_save(pm, saved);
    memset(saved->data, 0xff, 6);
    g_assert_false(device_load(pm, saved->data, saved->len, &error));
    g_assert_nonnull(error);
}

static void count_reset(Fixture *f, unsigned *counter)
{
    *counter = f->m->reset_pending;
    f->m->reset_pending = 0;
}

static void test_resets(Fixture *f, gconstpointer unused)
{
    unsigned asked;
    machine_lock(f->m);
    Device *pm = board_pm_init(f->m, NULL);
    machine_unlock(f->m);
    board_reset_control_write(pm, 0x02);
    count_reset(f, &asked);
    g_assert_cmpint(asked, ==, 0);
    board_reset_control_write(pm, 0x06);
    count_reset(f, &asked);
    g_assert_cmpint(asked, ==, 1);
    g_assert_cmphex(board_reset_control_read(pm), ==, 0x06);
    test_out(f->m, 0x64, 1, 0xfe);
    count_reset(f, &asked);
    g_assert_cmpint(asked, ==, 1);
    test_out(f->m, 0x64, 1, 0xf1); /* pulses other lines */
    count_reset(f, &asked);
    g_assert_cmpint(asked, ==, 0);
    test_out(f->m, 0x92, 1, 3);
    count_reset(f, &asked);
    g_assert_cmpint(asked, ==, 1);
    test_loop(f->m, 1);
}

static void test_i8042(Fixture *f, gconstpointer unused)
{
    machine_lock(f->m);
    board_pm_init(f->m, NULL);
    machine_unlock(f->m);
    g_assert_cmphex(test_in(f->m, 0x64, 1) & 3, ==, 0);
    test_out(f->m, 0x64, 1, 0xaa);
    g_assert_cmphex(test_in(f->m, 0x64, 1) & 1, ==, 1);
    g_assert_cmphex(test_in(f->m, 0x60, 1), ==, 0x55);
    test_out(f->m, 0x64, 1, 0x60);
    test_out(f->m, 0x60, 1, 0x45);
    test_out(f->m, 0x64, 1, 0x20);
    g_assert_true(test_gsi(1));
    g_assert_cmphex(test_in(f->m, 0x60, 1), ==, 0x45);
    g_assert_false(test_gsi(1));
    test_out(f->m, 0x60, 1, 0xf2); /* to the keyboard: nobody there, at once */
    g_assert_cmphex(test_in(f->m, 0x64, 1) & 0x41, ==, 0x41);
    g_assert_cmphex(test_in(f->m, 0x60, 1), ==, 0xfe);
    test_out(f->m, 0x64, 1, 0xa9);
    g_assert_cmphex(test_in(f->m, 0x60, 1), !=, 0);
    g_assert_cmphex(test_in(f->m, 0x92, 1), ==, 2);
}

static void test_debug_ports(Fixture *f, gconstpointer unused)
{
    char got[8] = {0};
    add(f, &debugcon_device_type, "chardev=c iobase=0x402", NULL);
    g_assert_cmphex(test_in(f->m, 0x402, 1), ==, 0xe9);
    test_out(f->m, 0x402, 1, 'o');
    test_out(f->m, 0x402, 1, 'k');
    g_assert_cmpint(recv(f->peer, got, sizeof(got), MSG_DONTWAIT), ==, 2);
    g_assert_cmpstr(got, ==, "ok");
    g_autofree char *message = NULL;
    g_assert_null(add(f, &debugcon_device_type, "chardev=c", &message));
    g_assert_nonnull(strstr(message, "in use"));

    add(f, &isa_debug_exit_device_type, "iobase=0xf4 iosize=4", NULL);
    test_out(f->m, 0xf4, 4, 0x10);
    test_loop(f->m, 1);
    g_assert_cmpint(f->m->exit_status, ==, 0x21);
    g_assert_cmpint(f->events[MACHINE_EVENT_SHUTDOWN], ==, 1);
}

static void test_testdev(Fixture *f, gconstpointer unused)
{
    add(f, &pc_testdev_device_type, "", NULL);
    test_out(f->m, 0xe0, 4, 0x44332211);
    g_assert_cmphex(test_in(f->m, 0xe1, 1), ==, 0x22);
    test_out(f->m, 0xe2, 2, 0xbbaa);
    g_assert_cmphex(test_in(f->m, 0xe0, 4), ==, 0xbbaa2211);
    test_out(f->m, 0x2005, 1, 1);
    g_assert_true(test_gsi(5));
    test_out(f->m, 0x2005, 1, 0);
    g_assert_false(test_gsi(5));
    uint8_t *ram = machine_ram(f->m, 0x3000, 4096);
    ram[5] = 7;
    test_out(f->m, 0xe4, 4, 0x3123);
    test_out(f->m, 0xe4, 4, 0xfffff000); /* where there is no memory */
    g_assert_cmphex(ram[5], ==, 7);
    f->m->bus.mmio_write(f->m, 0, 0xff000ffc, 8, 0x1122334455667788);
    g_assert_cmphex(f->m->bus.mmio_read(f->m, 0, 0xff000ffe, 4), ==, 0x33445566);
    g_assert_cmphex(f->m->bus.mmio_read(f->m, 0, 0xff00fff8, 8), ==, 0);
    g_autofree char *message = NULL;
    g_assert_null(add(f, &pc_testdev_device_type, "", &message));
    g_assert_nonnull(strstr(message, "taken"));
}

static uint64_t fw_cfg_item(Fixture *f, unsigned selector, unsigned size)
{
    uint64_t value = 0;
    test_out(f->m, 0x510, 2, selector);
    for (unsigned i = 0; i < size; i++)
        value |= test_in(f->m, 0x511, 1) << 8 * i;
    return value;
}

static void test_fw_cfg(Fixture *f, gconstpointer unused)
{
    add(f, &fw_cfg_device_type, "", NULL);
    g_assert_cmphex(fw_cfg_item(f, 0, 4), ==, 0x554d4551); /* "QEMU" */
    g_assert_cmpuint(fw_cfg_item(f, 3, 8), ==, f->m->config->memory_size);
    g_assert_cmpuint(fw_cfg_item(f, 5, 4), ==, f->m->config->n_vcpus); /* zeroes behind its end */
    g_assert_cmpuint(fw_cfg_item(f, 15, 2), ==, f->m->config->n_vcpus);
    g_assert_cmphex(fw_cfg_item(f, 0x19, 8), ==, 0); /* no files */
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
#define ADD(name, function) g_test_add("/board/" name, Fixture, NULL, set_up, function, tear_down)
    ADD("uart/registers", test_uart_registers);
    ADD("uart/transmit", test_uart_transmit);
    ADD("uart/receive", test_uart_receive);
    ADD("uart/loopback", test_uart_loopback);
    ADD("uart/options", test_uart_options);
    ADD("uart/state", test_uart_state);
    ADD("pm", test_pm);
    ADD("pm-timer", test_pm_timer);
    ADD("resets", test_resets);
    ADD("i8042", test_i8042);
    ADD("debug-ports", test_debug_ports);
    ADD("testdev", test_testdev);
    ADD("fw-cfg", test_fw_cfg);
    return g_test_run();
}
