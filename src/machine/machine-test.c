/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The machine core: dispatch, memory, clock, threads, devices' options and state. */
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "machine/board/layout.h"
#include "machine/test-machine.h"

typedef struct Log {
    GString *text;
    uint64_t answer;
} Log;

static uint64_t log_read(void *opaque, uint64_t offset, unsigned size)
{
    Log *log = opaque;
    g_string_append_printf(log->text, "r%u.%u ", (unsigned)offset, size);
    return log->answer >> (8 * (offset & 7));
}

static void log_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    Log *log = opaque;
    g_string_append_printf(log->text, "w%u.%u=%" G_GINT64_MODIFIER "x ", (unsigned)offset, size,
                           value);
}

static void expect_log(Log *log, const char *text)
{
    g_assert_cmpstr(log->text->str, ==, text);
    g_string_truncate(log->text, 0);
}

static void test_dispatch(void)
{
    Machine *m = test_machine(1);
    Log log = {g_string_new(NULL), 0x8877665544332211};
    static const IoOps any = {log_read, log_write, 0, 0, false};
    static const IoOps words = {log_read, log_write, 4, 4, false};
    static const IoOps wide = {log_read, log_write, 1, 8, false};
    static const IoOps bytes = {log_read, log_write, 1, 1, true};
    g_assert_nonnull(machine_map_mmio(m, 0xf0000000, 0x100, &any, &log, "any"));
    g_assert_nonnull(machine_map_mmio(m, 0xf0001000, 0x100, &words, &log, "words"));
    g_assert_nonnull(machine_map_mmio(m, 0xf0002000, 0x100, &wide, &log, "wide"));
    g_assert_nonnull(machine_map_ports(m, 0x100, 4, &bytes, &log, "bytes"));
    g_assert_null(machine_map_mmio(m, 0xf00000ff, 1, &any, &log, "overlap"));
    g_assert_null(machine_map_ports(m, 0xffff, 2, &any, &log, "too long"));

    g_assert_cmphex(test_mmio_read(m, 0, 0xf0000000, 8), ==, 0x8877665544332211);
    expect_log(&log, "r0.4 r4.4 ");
    g_assert_cmphex(test_mmio_read(m, 0, 0xf0002000, 8), ==, 0x8877665544332211);
    expect_log(&log, "r0.8 ");
    g_assert_cmphex(test_mmio_read(m, 0, 0xf0001001, 2), ==, 0x3322);
    expect_log(&log, "r0.4 r0.4 ");
    g_assert_cmphex(test_mmio_read(m, 0, 0xf0000001, 4), ==, 0x55443322);
    expect_log(&log, "r1.1 r2.2 r4.1 ");
    test_mmio_write(m, 0, 0xf0001006, 2, 0xabcd);
    expect_log(&log, "w4.4=abcd0000 ");
    io_space_write(m, &m->ports, 0x102, 4, 0x44332211);
    expect_log(&log, "w2.1=11 w3.1=22 ");
    g_assert_cmphex(io_space_read(m, &m->ports, 0x1000, 4), ==, 0xffffffff);
    g_assert_cmphex(test_mmio_read(m, 0, UINT64_MAX - 1, 8), ==, UINT64_MAX);
    g_assert_cmphex(test_mmio_read(m, 0, 0xf00000ff, 2), ==, 0xff88);
    g_string_free(log.text, TRUE);
    machine_free(m);
}

static void test_regions_move(void)
{
    Machine *m = test_machine(1);
    Log log = {g_string_new(NULL), 0};
    static const IoOps ops = {log_read, log_write, 0, 0, false};
    IoRegion *fixed = machine_map_mmio(m, 0xf0000000, 0x1000, &ops, &log, "fixed");
    IoRegion *bar = io_region_new(m, false, 0x4000, &ops, &log, "bar");
    g_assert_cmphex(test_mmio_read(m, 0, 0x0, 4), ==, 0xffffffff);
    io_region_move(bar, true, 0xe0000000);
    test_mmio_read(m, 0, 0xe0003ffc, 4);
    expect_log(&log, "r16380.4 ");
    io_region_move(bar, true, 0xf0000000); /* covers the fixed one: hidden */
    test_mmio_read(m, 0, 0xf0000004, 4);
    expect_log(&log, "r4.4 ");
    g_assert_cmphex(test_mmio_read(m, 0, 0xf0001000, 4), ==, 0xffffffff);
    io_region_move(bar, true, UINT64_MAX - 0xfff); /* does not fit there: off */
    g_assert_false(io_region_enabled(bar));
    io_region_move(bar, true, 0xe8000000);

    int fd = eventfd(0, EFD_NONBLOCK);
    eventfd_t count = 0;
    g_assert_true(io_region_add_ioeventfd(bar, 0x10, 2, fd));
    g_assert_false(io_region_add_ioeventfd(bar, 0x3fff, 2, fd));
    test_mmio_write(m, 0, 0xe8000010, 2, 7);
    expect_log(&log, "");
    g_assert_cmpint(eventfd_read(fd, &count), ==, 0);
    test_mmio_write(m, 0, 0xe8000010, 4, 7); /* another size: the device's own */
    expect_log(&log, "w16.4=7 ");
    io_region_del_ioeventfd(bar, 0x10, 2);
    test_mmio_write(m, 0, 0xe8000010, 2, 7);
    expect_log(&log, "w16.2=7 ");
    close(fd);
    io_region_free(bar);
    io_region_free(fixed);
    g_string_free(log.text, TRUE);
    machine_free(m);
}

static void expect_refused(MachineConfig *config, const char *text)
{
    g_autoptr(GError) error = NULL;
    g_assert_null(machine_new_bare(config, &test_engine, &error));
    g_assert_nonnull(error);
    g_assert_nonnull(strstr(error->message, text));
}

static void test_memory(void)
{
    g_autoptr(MachineConfig) config = test_config(1);
    config->memory_size = GIB(5);
    g_autoptr(GError) error = NULL;
    Machine *m = machine_new_bare(config, &test_engine, &error);
    g_assert_no_error(error);
    g_assert_cmphex(machine_low_ram(m), ==, LAYOUT_LOW_RAM_MAX);
    uint8_t *low = machine_ram(m, 0, LAYOUT_LOW_RAM_MAX);
    g_assert_nonnull(low);
    g_assert_null(machine_ram(m, LAYOUT_LOW_RAM_MAX - 1, 2));
    g_assert_null(machine_ram(m, 0, UINT64_MAX));
    g_assert_true(machine_ram(m, LAYOUT_HIGH_RAM, GIB(3)) == low + LAYOUT_LOW_RAM_MAX);
    g_assert_null(machine_ram(m, LAYOUT_HIGH_RAM + GIB(3), 1));
    g_assert_null(machine_ram(m, LAYOUT_HIGH_RAM - 1, 1));
    g_assert_true(machine_dma_write(m, LAYOUT_HIGH_RAM + 5, "xyz", 3));
    char back[3];
    g_assert_true(machine_dma_read(m, LAYOUT_HIGH_RAM + 5, back, 3));
    g_assert_cmpmem(back, 3, "xyz", 3);
    g_assert_false(machine_dma_write(m, LAYOUT_LOW_RAM_MAX - 1, "xyz", 3));

    g_autofree uint8_t *rom = g_malloc0(8192);
    rom[4096] = 0x5a;
    g_assert_false(machine_add_rom(m, 0x1000, rom, 8192, &error));
    g_clear_error(&error);
    g_assert_true(machine_add_rom(m, 0xffffe000, rom, 8192, &error));
    g_assert_false(machine_add_rom(m, 0xfffff000, rom, 4096, &error));
    g_clear_error(&error);
    g_assert_true(machine_dma_read(m, 0xfffff000, back, 1));
    g_assert_cmphex((uint8_t)back[0], ==, 0x5a);
    g_assert_false(machine_dma_write(m, 0xfffff000, back, 1));
    machine_free(m);

    config->memory_size = MIB(1) + 1;
    expect_refused(config, "multiple of 1 MiB");
    config->memory_size = 0;
    expect_refused(config, "multiple of 1 MiB");
    config->memory_size = MIB(1);
    config->cores = 3;
    expect_refused(config, "topology");
    config->n_vcpus = 65;
    expect_refused(config, "65 vCPUs");
}

/* ---- clock
 * -------------------------------------------------------------------------------------------- */

static void count_up(void *opaque)
{
    ++*(unsigned *)opaque;
}

static void test_timers(void)
{
    Machine *m = test_machine(1);
    unsigned a = 0, b = 0;
    MachineTimer *ta = machine_timer_new(m, count_up, &a), *tb = machine_timer_new(m, count_up, &b);
    machine_timer_set(ta, 100);
    machine_timer_set(tb, 50);
    machine_clock_advance(m, 60);
    g_assert_cmpuint(a, ==, 0);
    g_assert_cmpuint(b, ==, 1);
    g_assert_true(machine_timer_pending(ta));
    g_assert_false(machine_timer_pending(tb));
    machine_timer_set(ta, 70);
    machine_clock_advance(m, 20);
    g_assert_cmpuint(a, ==, 1);
    g_assert_cmpint(machine_clock_ns(m), ==, 80);
    /* Many, in a random order, some cancelled. */
    GRand *rand = g_rand_new_with_seed(1);
    MachineTimer *many[200];
    unsigned count = 0, expected = 0;
    for (unsigned i = 0; i < 200; i++)
        many[i] = machine_timer_new(m, count_up, &count);
    for (unsigned i = 0; i < 2000; i++) {
        MachineTimer *t = many[g_rand_int_range(rand, 0, 200)];
        if (g_rand_int_range(rand, 0, 4))
            machine_timer_set(t, 100 + g_rand_int_range(rand, 0, 1000));
        else
            machine_timer_cancel(t);
    }
    for (unsigned i = 0; i < 200; i++)
        expected += machine_timer_pending(many[i]);
    machine_clock_advance(m, 2000);
    g_assert_cmpuint(count, ==, expected);
    for (unsigned i = 0; i < 200; i++)
        machine_timer_free(many[i]);
    machine_timer_free(ta);
    machine_timer_free(tb);
    g_rand_free(rand);
    machine_free(m);
}

static void quit_machine(void *opaque)
{
    machine_shutdown(opaque, MACHINE_CAUSE_HOST_QMP_QUIT);
}

static void test_real_timer(void)
{
    Machine *m = test_machine(1);
    g_autoptr(GError) error = NULL;
    MachineTimer *t = machine_timer_new(m, quit_machine, m);
    machine_timer_set(t, 20 * 1000 * 1000);
    g_assert_cmpint(machine_clock_ns(m), ==, 0);
    g_assert_true(machine_start(m, &error));
    g_assert_cmpint(machine_run(m), ==, 0);
    int64_t now = machine_clock_ns(m);
    g_assert_cmpint(now, >=, 20 * 1000 * 1000);
    g_usleep(2000);
    g_assert_cmpint(machine_clock_ns(m), ==, now); /* stands still after the shutdown */
    machine_timer_free(t);
    machine_free(m);
}

/* ---- life
 * ------------------------------------------------------------------------------------------------
 */

typedef struct Events {
    GString *text;
    Machine *machine;
} Events;

static void on_event(void *opaque, const MachineEvent *event)
{
    static const char *const names[] = {"shutdown",  "reset",   "stop", "resume",
                                        "powerdown", "balloon", "error"};
    Events *events = opaque;
    g_string_append_printf(events->text, "%s ", names[event->type]);
}

static bool reset_hook(void *opaque, GError **err)
{
    Events *events = opaque;
    g_string_append(events->text, "hook ");
    g_assert_cmpuint(test_vcpu(events->machine, 0)->state.rip, ==, 0xfff0);
    g_assert_cmpuint(test_vcpu(events->machine, 1)->state.activity, ==, VCPU_WAIT_FOR_SIPI);
    test_vcpu(events->machine, 0)->state.rip = 0x1234;
    return true;
}

static void spin(Machine *m, unsigned ms)
{
    gint64 end = g_get_monotonic_time() + ms * 1000;
    while (g_get_monotonic_time() < end) {
        if (!g_main_context_iteration(m->context, FALSE))
            g_usleep(500);
    }
}

static void expect_events(Events *events, const char *text)
{
    g_assert_cmpstr(events->text->str, ==, text);
    g_string_truncate(events->text, 0);
}

static void count_run(Vcpu *vcpu, void *opaque)
{
    *(unsigned *)opaque = ((TestVcpu *)vcpu)->runs;
}

static void test_life(void)
{
    Machine *m = test_machine(2);
    g_autoptr(GError) error = NULL;
    Events events = {g_string_new(NULL), m};
    machine_add_event_handler(m, on_event, &events);
    machine_add_reset_hook(m, reset_hook, &events);
    g_assert_cmpint(machine_status(m), ==, MACHINE_PRELAUNCH);
    machine_cont(m); /* not started yet: nothing */
    g_assert_true(machine_start(m, &error));
    expect_events(&events, "hook ");
    g_assert_false(machine_start(m, &error));
    g_clear_error(&error);
    g_assert_cmpint(machine_status(m), ==, MACHINE_RUNNING);
    g_assert_cmpint(machine_vcpu_thread_id(m, 1), >, 0);
    machine_stop(m);
    machine_stop(m);
    g_assert_cmpint(machine_status(m), ==, MACHINE_PAUSED);
    unsigned runs = 0, later = 0;
    machine_with_vcpu(m, 0, count_run, &runs);
    spin(m, 5);
    machine_with_vcpu(m, 0, count_run, &later);
    g_assert_cmpuint(runs, ==, later);
    int64_t now = machine_clock_ns(m);
    machine_cont(m);
    expect_events(&events, "stop resume ");
    spin(m, 5);
    g_assert_cmpint(machine_clock_ns(m), >, now);
    machine_with_vcpu(m, 1, count_run, &runs);
    g_assert_cmpuint(runs, >, 0);

    machine_reset(m, MACHINE_CAUSE_HOST_QMP_SYSTEM_RESET);
    machine_reset(m, MACHINE_CAUSE_HOST_QMP_SYSTEM_RESET); /* one at a time */
    spin(m, 5);
    expect_events(&events, "hook reset ");
    g_assert_cmpuint(test_vcpu(m, 0)->state.rip, ==, 0x1234);

    /* A triple fault resets. */
    test_vcpu(m, 0)->exit_with = VCPU_EXIT_TRIPLE_FAULT;
    test_engine.kick(machine_vcpu(m, 0));
    spin(m, 20);
    expect_events(&events, "hook reset ");
    /* An engine's error stops; a reset is a way out. */
    test_vcpu(m, 1)->exit_with = VCPU_EXIT_ERROR;
    test_engine.kick(machine_vcpu(m, 1));
    spin(m, 20);
    expect_events(&events, "error ");
    g_assert_cmpint(machine_status(m), ==, MACHINE_ERROR);
    machine_reset(m, MACHINE_CAUSE_HOST_QMP_SYSTEM_RESET);
    spin(m, 5);
    machine_cont(m);
    g_assert_cmpint(machine_status(m), ==, MACHINE_RUNNING);
    expect_events(&events, "hook reset resume ");
    machine_exit(m, 35);
    g_assert_cmpint(machine_run(m), ==, 35);
    expect_events(&events, "shutdown ");
    g_string_free(events.text, TRUE);
    machine_free(m);
}

static void test_no_reboot(void)
{
    g_autoptr(MachineConfig) config = test_config(1);
    g_autoptr(GError) error = NULL;
    config->no_reboot = true;
    Machine *m = machine_new_bare(config, &test_engine, &error);
    g_assert_true(machine_start(m, &error));
    machine_reset(m, MACHINE_CAUSE_GUEST_RESET);
    g_assert_cmpint(machine_run(m), ==, 0);
    g_assert_cmpint(machine_status(m), ==, MACHINE_SHUTDOWN);
    machine_free(m);
}

/* A vCPU thread that waits for the machine lock must not keep a pause waiting that holds it. */
static void *locker(void *opaque)
{
    Machine *m = opaque;
    for (unsigned i = 0; i < 2000; i++) {
        machine_lock(m);
        machine_lock(m);
        machine_unlock(m);
        machine_unlock(m);
    }
    return NULL;
}

/* Two threads stop and continue at once: neither hangs, and the clock follows the status. */
static void *stopper(void *opaque)
{
    for (unsigned i = 0; i < 100; i++) {
        machine_stop(opaque);
        machine_cont(opaque);
    }
    return NULL;
}

static void test_two_controllers(void)
{
    Machine *m = test_machine(2);
    g_autoptr(GError) error = NULL;
    g_assert_true(machine_start(m, &error));
    GThread *thread = g_thread_new("stopper", stopper, m);
    for (unsigned i = 0; i < 100; i++) {
        machine_lock(m);
        machine_cont(m);
        machine_stop(m);
        machine_unlock(m);
    }
    g_thread_join(thread);
    machine_cont(m);
    g_assert_cmpint(machine_status(m), ==, MACHINE_RUNNING);
    int64_t now = machine_clock_ns(m);
    g_usleep(1000);
    g_assert_cmpint(machine_clock_ns(m), >, now);
    machine_free(m);
}

static void test_pause_under_lock(void)
{
    Machine *m = test_machine(2);
    g_autoptr(GError) error = NULL;
    g_assert_true(machine_start(m, &error));
    GThread *thread = g_thread_new("locker", locker, m);
    for (unsigned i = 0; i < 50; i++) {
        machine_lock(m);
        machine_stop(m);
        machine_cont(m);
        machine_unlock(m);
    }
    g_thread_join(thread);
    machine_free(m);
}

static void on_readable(void *opaque, int fd, GIOCondition condition)
{
    eventfd_t value;
    eventfd_read(fd, &value);
    ++*(unsigned *)opaque;
}

static void test_loop(void)
{
    Machine *m = test_machine(1);
    unsigned reads = 0, deferred = 0;
    int fd = eventfd(0, EFD_NONBLOCK);
    GSource *watch = machine_watch_fd(m, fd, G_IO_IN, on_readable, &reads);
    machine_defer(m, count_up, &deferred);
    eventfd_write(fd, 1);
    spin(m, 5);
    g_assert_cmpuint(reads, ==, 1);
    g_assert_cmpuint(deferred, ==, 1);
    g_source_destroy(watch);
    g_source_unref(watch);
    close(fd);
    machine_defer(m, count_up, &deferred); /* dropped with the machine */
    machine_free(m);
}

/* ---- devices
 * -----------------------------------------------------------------------------------------------
 */

typedef struct Sample {
    Device dev;
    uint32_t word;
    uint16_t array[3];
    uint8_t bytes[5];
    bool flag;
} Sample;

static bool sample_realize(Device *dev, GError **err)
{
    return !device_option_bool(dev, "fail") ||
           lodge_fail(err, LODGE_ERROR_INVALID, "device sample: it was to fail");
}

static const DeviceOption sample_options[] = {
    {"name", OPTION_STRING, NULL, false, 0, 0, "what it is called"},
    {"count", OPTION_UINT, "7", false, 1, 100, "how many"},
    {"size", OPTION_SIZE, "4K", false, 0, 0, "how much"},
    {"fail", OPTION_BOOL, "off", false, 0, 0, "whether to fail"},
    {"mac", OPTION_MAC, NULL, true, 0, 0, "address"},
    {0},
};

static const StateField sample_state[] = {
    STATE_FIELD(Sample, word), STATE_ARRAY(Sample, array), STATE_BUFFER(Sample, bytes),
    STATE_FIELD(Sample, flag), STATE_FIELDS_END,
};

static const DeviceType sample_type = {
    .name = "sample",
    .summary = "a device for tests",
    .bus = DEVICE_BUS_PCI,
    .instance_size = sizeof(Sample),
    .options = sample_options,
    .realize = sample_realize,
    .state = sample_state,
};

static void refused(const char *key, const char *value, const char *message)
{
    g_autoptr(GError) error = NULL;
    MachineItem *item = machine_item_new("sample", NULL);
    machine_item_set(item, "name", "x");
    if (key)
        machine_item_set(item, key, value);
    bool ok = device_check_options(&sample_type, item, &error);
    if (message) {
        g_assert_false(ok);
        g_assert_cmpstr(error->message, ==, message);
    } else {
        g_assert_no_error(error);
    }
    machine_item_free(item);
}

static void test_options(void)
{
    refused(NULL, NULL, NULL);
    refused("count", "0x10", NULL);
    refused("mac", "52:54:00:12:34:56", NULL);
    refused("addr", "1f.7", NULL);
    refused("addr", "00:1f.7", NULL);
    refused("count", "101", "device sample: count=101: must be 1 to 100");
    refused("count", "-1", "device sample: count=-1: must be a number");
    refused("count", "99999999999999999999",
            "device sample: count=99999999999999999999: must be a number");
    refused("size", "20000000T",
            "device sample: size=20000000T: must be a size in bytes, or with K, M, G or T");
    refused("fail", "maybe", "device sample: fail=maybe: must be on or off");
    refused("mac", "52:54",
            "device sample: mac=52:54: must be an Ethernet address such as 52:54:00:12:34:56");
    refused(
        "addr", "20.0",
        "device sample: addr=20.0: must be a PCI address such as 00:03.0 or 03.0, in hexadecimal");
    refused("colour", "red",
            "device sample has no option 'colour'; it has: name, count, size, fail, mac, addr");

    g_autoptr(GError) error = NULL;
    Machine *m = test_machine(1);
    g_assert_null(device_new(m, &sample_type, NULL, &error));
    g_assert_cmpstr(error->message, ==,
                    "device sample needs the option 'name' (what it is called)");
    g_clear_error(&error);
    MachineItem *item = machine_item_new("sample", "s0");
    machine_item_set(item, "name", "x");
    machine_item_set(item, "size", "2M");
    Device *dev = device_new(m, &sample_type, item, &error);
    g_assert_no_error(error);
    g_assert_true(machine_find_device(m, "s0") == dev);
    g_assert_cmpuint(device_option_uint(dev, "count"), ==, 7);
    g_assert_cmpuint(device_option_uint(dev, "size"), ==, MIB(2));
    g_assert_null(device_option(dev, "mac"));
    g_assert_null(device_new(m, &sample_type, item, &error));
    g_assert_cmpstr(error->message, ==, "there are two devices with the id 's0'");
    g_clear_error(&error);
    machine_free(m);
    machine_item_free(item);
}

static void test_state(void)
{
    Machine *m = test_machine(1);
    g_autoptr(GError) error = NULL;
    MachineItem *item = machine_item_new("sample", NULL);
    machine_item_set(item, "name", "x");
    Sample *s = (Sample *)device_new(m, &sample_type, item, &error);
    s->word = 0x12345678;
    s->array[2] = 0xabcd;
    memcpy(s->bytes, "hello", 5);
    s->flag = true;
    GByteArray *saved = g_byte_array_new();
    device_save(&s->dev, saved);
    g_assert_cmpuint(saved->len, ==, 4 + 6 + 5 + 1);
    s->word = 0;
    s->flag = false;
    memset(s->array, 0, sizeof(s->array));
    g_assert_true(device_load(&s->dev, saved->data, saved->len, &error));
    g_assert_cmphex(s->word, ==, 0x12345678);
    g_assert_cmphex(s->array[2], ==, 0xabcd);
    g_assert_true(s->flag);
    for (unsigned length = 0; length < saved->len; length++) {
        g_assert_false(device_load(&s->dev, saved->data, length, &error));
        g_assert_error(error, LODGE_ERROR, LODGE_ERROR_CORRUPT);
        g_clear_error(&error);
    }
    saved->data[15] = 2;
    g_assert_false(device_load(&s->dev, saved->data, saved->len, &error));
    g_assert_nonnull(strstr(error->message, "'flag' is 2"));
    g_byte_array_unref(saved);
    machine_free(m);
    machine_item_free(item);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/machine/dispatch", test_dispatch);
    g_test_add_func("/machine/regions-move", test_regions_move);
    g_test_add_func("/machine/memory", test_memory);
    g_test_add_func("/machine/timers", test_timers);
    g_test_add_func("/machine/real-timer", test_real_timer);
    g_test_add_func("/machine/life", test_life);
    g_test_add_func("/machine/no-reboot", test_no_reboot);
    g_test_add_func("/machine/pause-under-lock", test_pause_under_lock);
    g_test_add_func("/machine/two-controllers", test_two_controllers);
    g_test_add_func("/machine/loop", test_loop);
    g_test_add_func("/machine/options", test_options);
    g_test_add_func("/machine/state", test_state);
    return g_test_run();
}
