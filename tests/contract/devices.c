/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What every row of device_types[] must keep: its options make sense and are documented, it comes
 * up on a real board, and its state survives save, reset and restore, whatever is restored.
 */
#include <string.h>
#include <unistd.h>

#include "machine/board/board.h"
#include "machine/board/devices.h"
#include "machine/test-machine.h"

static const char *docs; /* folder docs/device */
static char *disk_path;

static MachineItem *item_new(GPtrArray *list, const char *type, const char *id, const char *key,
                             const char *value)
{
    MachineItem *item = machine_item_new(type, id);
    if (key)
        machine_item_set(item, key, value);
    g_ptr_array_add(list, item);
    return item;
}

/* A paused machine with the board and @type, whose required options are given. */
static Machine *machine_with(const DeviceType *type, Device **dev)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(MachineConfig) config = machine_config_new();
    config->name = g_strdup("contract");
    config->memory_size = MIB(32);
    config->hpet = true;
    item_new(config->drives, "raw", "d0", "file", disk_path);
    item_new(config->chardevs, "null", "c0", NULL, NULL);
    item_new(config->netdevs, "user", "n0", NULL, NULL);
    if (type->bus == DEVICE_BUS_VIRTIO_SERIAL)
        item_new(config->devices, "virtio-serial", "vs0", NULL, NULL);
    bool board_has_it = type->bus == DEVICE_BUS_SYSTEM || type == &i8042_device_type;
    if (!board_has_it) {
        MachineItem *item = item_new(config->devices, type->name, "dut", NULL, NULL);
        for (const DeviceOption *o = type->options; o && o->name; o++) {
            if (g_str_equal(o->name, "drive"))
                machine_item_set(item, "drive", "d0");
            if (g_str_equal(o->name, "chardev"))
                machine_item_set(item, "chardev", "c0");
            if (g_str_equal(o->name, "netdev"))
                machine_item_set(item, "netdev", "n0");
        }
    }
    /* What machine_new does, but for the kernel, and with vCPUs that run nothing. */
    Machine *m = machine_new_bare(config, &test_engine, &error);
    g_assert_no_error(error);
    m->close_host = machine_host_close;
    machine_lock(m);
    bool ok = machine_host_open(m, &error) && board_q35_init(m, &error);
    for (unsigned i = 0; ok && i < m->config->devices->len; i++) {
        const MachineItem *item = m->config->devices->pdata[i];
        ok = device_new(m, device_type_find(item->type), item, &error) != NULL;
    }
    machine_unlock(m);
    g_assert_no_error(error);
    *dev = NULL;
    for (unsigned i = 0; i < m->devices->len; i++) {
        Device *found = m->devices->pdata[i];
        if (found->type == type)
            *dev = found;
    }
    g_assert_nonnull(*dev);
    return m;
}

static void reset_all(Machine *m)
{
    g_autoptr(GError) error = NULL;
    machine_lock(m);
    g_assert_true(machine_reset_state(m, &error));
    machine_unlock(m);
    g_assert_no_error(error);
}

static GByteArray *saved(Device *dev)
{
    GByteArray *bytes = g_byte_array_new();
    machine_lock(dev->machine);
    device_save(dev, bytes);
    machine_unlock(dev->machine);
    return bytes;
}

static void expect_equal(const DeviceType *type, const GByteArray *a, const GByteArray *b)
{
    g_assert_cmpuint(a->len, ==, b->len);
    for (unsigned i = 0; i < a->len; i++)
        if (a->data[i] != b->data[i])
            g_error("%s: byte %u of its state is %02x, was %02x", type->name, i, b->data[i],
                    a->data[i]);
}

static bool load(Device *dev, const uint8_t *data, size_t size)
{
    g_autoptr(GError) error = NULL;
    machine_lock(dev->machine);
    bool ok = device_load(dev, data, size, &error);
    machine_unlock(dev->machine);
    g_assert_true(ok == !error);
    return ok;
}

static void test_state(const void *opaque)
{
    const DeviceType *type = opaque;
    Device *dev;
    Machine *m = machine_with(type, &dev);
    reset_all(m);
    g_autoptr(GByteArray) first = saved(dev);
    reset_all(m);
    g_assert_true(load(dev, first->data, first->len));
    g_autoptr(GByteArray) second = saved(dev);
    /* The RTC notes up to which moment of the host's clock it looked. */
    if (!g_str_equal(type->name, "rtc"))
        expect_equal(type, first, second);

    /* What was cut off is refused; what is nonsense is refused or endured. */
    GRand *rand = g_rand_new_with_seed(7);
    for (unsigned i = 0; i < 16 && first->len; i++)
        g_assert_false(load(dev, first->data, (size_t)g_rand_int_range(rand, 0, (int)first->len)));
    g_autofree uint8_t *noise = g_memdup2(first->data, first->len);
    for (unsigned i = 0; i < 200 && first->len; i++) {
        unsigned flips = (unsigned)g_rand_int_range(rand, 1, 9);
        for (unsigned n = 0; n < flips; n++)
            noise[g_rand_int_range(rand, 0, (int)first->len)] = (uint8_t)g_rand_int(rand);
        load(dev, noise, first->len);
        g_main_context_iteration(m->context, FALSE);
    }
    g_rand_free(rand);
    reset_all(m);
    g_assert_true(load(dev, first->data, first->len));
    machine_free(m);
}

/* A second machine of the same configuration takes the first one's state. */
static void test_migrate(const void *opaque)
{
    const DeviceType *type = opaque;
    Device *from, *to;
    Machine *a = machine_with(type, &from);
    reset_all(a);
    g_autoptr(GByteArray) bytes = saved(from);
    machine_free(a);
    Machine *b = machine_with(type, &to);
    reset_all(b);
    g_assert_true(load(to, bytes->data, bytes->len));
    machine_free(b);
}

static void test_options(const void *opaque)
{
    const DeviceType *type = opaque;
    g_assert_cmpuint(type->instance_size, >=, sizeof(Device));
    g_assert_nonnull(type->realize);
    g_assert_nonnull(type->summary);
    g_assert_null(strchr(type->summary, '\n'));
    g_assert_true(device_type_find(type->name) == type);
    for (const DeviceOption *o = type->options; o && o->name; o++) {
        g_autoptr(GError) error = NULL;
        g_assert_nonnull(o->help);
        g_assert_cmpuint(o->min, <=, o->max ? o->max : UINT64_MAX);
        g_assert_false(o->optional && o->fallback);
        for (const char *p = o->name; *p; p++)
            g_assert_true(g_ascii_islower(*p) || g_ascii_isdigit(*p) || *p == '-');
        for (const DeviceOption *other = type->options; other < o; other++)
            g_assert_cmpstr(other->name, !=, o->name);
        if (!o->fallback)
            continue;
        DeviceOption alone[2] = {*o, {0}};
        DeviceType copy = *type;
        copy.options = alone;
        MachineItem *item = machine_item_new(type->name, NULL);
        machine_item_set(item, o->name, o->fallback);
        g_assert_true(device_check_options(&copy, item, &error));
        machine_item_free(item);
    }
}

static void test_documented(const void *opaque)
{
    const DeviceType *type = opaque;
    g_autofree char *path = g_strdup_printf("%s/%s.md", docs, type->name);
    g_autofree char *text = NULL;
    if (!g_file_get_contents(path, &text, NULL, NULL))
        g_error("%s is missing", path);
    g_autofree char *title = g_strdup_printf("# %s", type->name);
    g_assert_true(g_str_has_prefix(text, title));
    for (const DeviceOption *o = type->options; o && o->name; o++) {
        g_autofree char *row = g_strdup_printf("`%s`", o->name);
        if (!strstr(text, row))
            g_error("%s says nothing of the option %s", path, o->name);
    }
}

static void refuse(const char *type, const char *key, const char *value, const char *message)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(MachineConfig) config = machine_config_new();
    config->memory_size = MIB(32);
    g_free(config->engine);
    config->engine = g_strdup("soft");
    item_new(config->devices, type, NULL, key, value);
    g_assert_null(machine_new(config, &error));
    g_assert_nonnull(error);
    if (!strstr(error->message, message))
        g_error("'%s' does not say '%s'", error->message, message);
}

static void test_refusals(void)
{
    refuse("vga", NULL, NULL, "there is no device type 'vga'");
    refuse("lapic", NULL, NULL, "belongs to the board");
    refuse("virtio-blk", "drive", "nowhere", "nowhere");
    refuse("virtio-blk", NULL, NULL, "needs the option 'drive'");
    refuse("virtio-net", "netdev", "nowhere", "nowhere");
    refuse("isa-serial", "chardev", "nowhere", "nowhere");
    refuse("virtio-rng", "colour", "red", "has no option 'colour'");
    refuse("virtio-rng", "addr", "77:01.0", "no PCI bus 119");
}

static void add(const DeviceType *type, const char *what, void (*f)(const void *opaque))
{
    g_autofree char *path = g_strdup_printf("/device/%s/%s", type->name, what);
    g_test_add_data_func(path, type, f);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_assert_cmpint(argc, ==, 2);
    docs = argv[1];
    int fd = g_file_open_tmp("lodge-contract-XXXXXX", &disk_path, NULL);
    g_assert_cmpint(ftruncate(fd, MIB(1)), ==, 0);
    close(fd);
    for (unsigned i = 0; device_types[i]; i++) {
        add(device_types[i], "options", test_options);
        add(device_types[i], "documented", test_documented);
        add(device_types[i], "state", test_state);
        add(device_types[i], "migrate", test_migrate);
    }
    g_test_add_func("/device/refusals", test_refusals);
    int result = g_test_run();
    unlink(disk_path);
    g_free(disk_path);
    return result;
}
