/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * isa-debug-exit: a port whose write ends the machine; writing v makes lodge-vmm exit
 * with status (v << 1) | 1. Test images report success or failure by it.
 */
#include "base/error.h"
#include "machine/board/devices.h"

typedef struct DebugExit {
    Device dev;
    IoRegion *region;
} DebugExit;

static uint64_t debug_exit_read(void *opaque, uint64_t offset, unsigned size)
{
    return 0;
}

static void debug_exit_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    machine_exit(((DebugExit *)opaque)->dev.machine, (int)((value << 1 | 1) & 0xff));
}

static const IoOps debug_exit_ops = {.read = debug_exit_read, .write = debug_exit_write};

static void debug_exit_unrealize(Device *dev)
{
    g_clear_pointer(&((DebugExit *)dev)->region, io_region_free);
}

static bool debug_exit_realize(Device *dev, GError **err)
{
    DebugExit *d = (DebugExit *)dev;
    unsigned port = device_option_uint(dev, "iobase"), count = device_option_uint(dev, "iosize");
    if (port + count > 0x10000)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "isa-debug-exit: iobase 0x%x with iosize %u goes past port 0xffff", port,
                          count);
    d->region = machine_map_ports(dev->machine, port, count, &debug_exit_ops, d, "isa-debug-exit");
    if (!d->region)
        return lodge_fail(err, LODGE_ERROR_BUSY, "isa-debug-exit: port 0x%x is taken", port);
    return true;
}

static const DeviceOption debug_exit_options[] = {
    {.name = "iobase",
     .type = OPTION_UINT,
     .fallback = "0x501",
     .min = 1,
     .max = 0xffff,
     .help = "its first port"},
    {.name = "iosize",
     .type = OPTION_UINT,
     .fallback = "2",
     .min = 1,
     .max = 8,
     .help = "how many ports it takes"},
    {0},
};

static const StateField debug_exit_state[] = {STATE_FIELDS_END};

const DeviceType isa_debug_exit_device_type = {
    .name = "isa-debug-exit",
    .summary = "ends the machine with an exit status (for test images)",
    .bus = DEVICE_BUS_ISA,
    .instance_size = sizeof(DebugExit),
    .options = debug_exit_options,
    .realize = debug_exit_realize,
    .unrealize = debug_exit_unrealize,
    .state = debug_exit_state,
};
