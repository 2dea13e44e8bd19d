/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The debug console: every byte written to its port goes to a character device; reading
 * gives 0xe9, by which software finds it. A convention of Bochs, port 0xe9; firmware uses 0x402.
 */
#include "base/error.h"
#include "machine/board/devices.h"
#include "machine/chardev/chardev.h"

#define DEBUGCON_READBACK 0xe9

typedef struct Debugcon {
    Device dev;
    IoRegion *region;
    Chardev *chardev;
} Debugcon;

static uint64_t debugcon_read(void *opaque, uint64_t offset, unsigned size)
{
    return DEBUGCON_READBACK;
}

static void debugcon_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    Debugcon *d = opaque;
    uint8_t byte = value;
    chardev_write(d->chardev, &byte, 1);
}

static const IoOps debugcon_ops = {
    .read = debugcon_read, .write = debugcon_write, .min_size = 1, .max_size = 1};

static size_t nothing_received(void *opaque)
{
    return SIZE_MAX;
}

static void drop(void *opaque, const uint8_t *data, size_t size)
{
}

static const ChardevUser debugcon_user = {.can_receive = nothing_received, .receive = drop};

static void debugcon_unrealize(Device *dev)
{
    Debugcon *d = (Debugcon *)dev;
    g_clear_pointer(&d->region, io_region_free);
    g_clear_pointer(&d->chardev, chardev_detach);
}

static bool debugcon_realize(Device *dev, GError **err)
{
    Debugcon *d = (Debugcon *)dev;
    const char *id = device_option(dev, "chardev");
    unsigned port = device_option_uint(dev, "iobase");
    Chardev *c = chardev_find(dev->machine, id);
    if (!c)
        return lodge_fail(err, LODGE_ERROR_NOT_FOUND, "debugcon: there is no chardev '%s'", id);
    if (!chardev_attach(c, &debugcon_user, d, err))
        return false;
    d->chardev = c;
    d->region = machine_map_ports(dev->machine, port, 1, &debugcon_ops, d, "debugcon");
    if (!d->region) {
        debugcon_unrealize(dev);
        return lodge_fail(err, LODGE_ERROR_BUSY, "debugcon: port 0x%x is taken", port);
    }
    return true;
}

static const DeviceOption debugcon_options[] = {
    {.name = "chardev", .type = OPTION_STRING, .help = "where the bytes go"},
    {.name = "iobase",
     .type = OPTION_UINT,
     .fallback = "0xe9",
     .min = 1,
     .max = 0xffff,
     .help = "its port"},
    {0},
};

static const StateField debugcon_state[] = {STATE_FIELDS_END};

const DeviceType debugcon_device_type = {
    .name = "debugcon",
    .summary = "debug console on one port",
    .bus = DEVICE_BUS_ISA,
    .instance_size = sizeof(Debugcon),
    .options = debugcon_options,
    .realize = debugcon_realize,
    .unrealize = debugcon_unrealize,
    .state = debugcon_state,
};
