/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * pc-testdev: what images of the public kvm-unit-tests expect of a machine beside a PC's own parts.
 * The ports are those that the images use: four bytes of plain register at 0xe0, "forget the page
 * at this guest-physical address" at 0xe4, one port for each interrupt line from 0x2000, and
 * 64 KiB of memory-mapped register at 0xff000000.
 */
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "machine/board/devices.h"
#include "machine/board/layout.h"

#define PORT_REGISTER 0xe0
#define PORT_FLUSH    0xe4
#define PORT_LINES    0x2000
#define MMIO_BASE     0xff000000u
#define MMIO_SIZE     0x10000u

typedef struct TestDevice {
    Device dev; /* first */
    IoRegion *plain, *flush, *lines, *mmio;
    uint8_t reg[4];
    uint8_t mem[MMIO_SIZE];
    bool level[LAYOUT_GSI_COUNT];
} TestDevice;

/* Accesses are naturally aligned and within the region: machine.h, IoOps. */
static uint64_t bytes_read(const uint8_t *from, unsigned size)
{
    return size == 1 ? *from : size == 2 ? le16_get(from) : le32_get(from);
}

static void bytes_write(uint8_t *to, unsigned size, uint64_t value)
{
    for (unsigned i = 0; i < size; i++)
        to[i] = (uint8_t)(value >> 8 * i);
}

static uint64_t plain_read(void *opaque, uint64_t offset, unsigned size)
{
    return bytes_read(((TestDevice *)opaque)->reg + offset, size);
}

static void plain_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    bytes_write(((TestDevice *)opaque)->reg + offset, size, value);
}

static uint64_t mmio_read(void *opaque, uint64_t offset, unsigned size)
{
    return bytes_read(((TestDevice *)opaque)->mem + offset, size);
}

static void mmio_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    bytes_write(((TestDevice *)opaque)->mem + offset, size, value);
}

static uint64_t nothing_read(void *opaque, uint64_t offset, unsigned size)
{
    return 0;
}

/* The page's content stays; only what an engine may keep about it goes. */
static void flush_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    uint64_t page = value & ~0xfffull;
    if (machine_ram(((TestDevice *)opaque)->dev.machine, page, 4096))
        machine_ram_dirty(((TestDevice *)opaque)->dev.machine, page, 4096);
}

static void lines_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    TestDevice *d = opaque;
    d->level[offset] = value != 0;
    machine_set_gsi(d->dev.machine, (unsigned)offset, d->level[offset]);
}

static const IoOps plain_ops = {.read = plain_read, .write = plain_write};
static const IoOps flush_ops = {
    .read = nothing_read, .write = flush_write, .min_size = 4, .max_size = 4};
static const IoOps lines_ops = {
    .read = nothing_read, .write = lines_write, .min_size = 1, .max_size = 1};
static const IoOps mmio_ops = {.read = mmio_read, .write = mmio_write};

static void testdev_unrealize(Device *dev)
{
    TestDevice *d = (TestDevice *)dev;
    g_clear_pointer(&d->plain, io_region_free);
    g_clear_pointer(&d->flush, io_region_free);
    g_clear_pointer(&d->lines, io_region_free);
    g_clear_pointer(&d->mmio, io_region_free);
}

static bool testdev_realize(Device *dev, GError **err)
{
    TestDevice *d = (TestDevice *)dev;
    Machine *m = dev->machine;
    d->plain = machine_map_ports(m, PORT_REGISTER, 4, &plain_ops, d, "pc-testdev");
    d->flush = machine_map_ports(m, PORT_FLUSH, 4, &flush_ops, d, "pc-testdev-flush");
    d->lines = machine_map_ports(m, PORT_LINES, LAYOUT_GSI_COUNT, &lines_ops, d, "pc-testdev-irq");
    d->mmio = machine_map_mmio(m, MMIO_BASE, MMIO_SIZE, &mmio_ops, d, "pc-testdev-mmio");
    if (d->plain && d->flush && d->lines && d->mmio)
        return true;
    testdev_unrealize(dev);
    return lodge_fail(err, LODGE_ERROR_BUSY, "pc-testdev: one of its ports (0x%x, 0x%x, 0x%x) or "
                                             "its memory at 0x%x is taken",
                      PORT_REGISTER, PORT_FLUSH, PORT_LINES, MMIO_BASE);
}

/* The interrupt controllers' reset takes the lines down. */
static void testdev_reset(Device *dev)
{
    TestDevice *d = (TestDevice *)dev;
    memset(d->reg, 0, sizeof(d->reg));
    memset(d->mem, 0, sizeof(d->mem));
    memset(d->level, 0, sizeof(d->level));
}

static const StateField testdev_state[] = {
    STATE_BUFFER(TestDevice, reg), STATE_BUFFER(TestDevice, mem), STATE_ARRAY(TestDevice, level),
    STATE_FIELDS_END};

const DeviceType pc_testdev_device_type = {
    .name = "pc-testdev",
    .summary = "registers and interrupt lines for test images",
    .bus = DEVICE_BUS_ISA,
    .instance_size = sizeof(TestDevice),
    .realize = testdev_realize,
    .unrealize = testdev_unrealize,
    .reset = testdev_reset,
    .state = testdev_state,
};
