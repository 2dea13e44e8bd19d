/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * fw-cfg: the number of processors and the size of memory behind QEMU's firmware configuration
 * ports, where test images look for them. Selector at 0x510, data at 0x511, no DMA, no files
 * (QEMU's docs/specs/fw_cfg, "Hardware Interface" and "Well-known items").
 */
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "machine/board/devices.h"

#define PORT_SELECTOR 0x510
#define PORT_COUNT    2

enum {
    ITEM_SIGNATURE = 0x00,
    ITEM_ID = 0x01, /* 1: this interface and no other */
    ITEM_RAM_SIZE = 0x03,
    ITEM_CPUS = 0x05,
    ITEM_CPUS_MAX = 0x0f,
    ITEM_MASK = 0x3fff, /* what is left of a selector without its write and architecture bits */
};

typedef struct FwCfg {
    Device dev; /* first */
    IoRegion *region;
    uint16_t selector;
    uint32_t offset; /* of the next byte */
} FwCfg;

/* Fills @item; returns how many bytes it has. */
static unsigned item_fill(const FwCfg *f, uint8_t item[8])
{
    const MachineConfig *config = machine_config(f->dev.machine);
    switch (f->selector) {
    case ITEM_SIGNATURE:
        memcpy(item, "QEMU", 4);
        return 4;
    case ITEM_ID:
        le32_put(item, 1);
        return 4;
    case ITEM_RAM_SIZE:
        le64_put(item, config->memory_size);
        return 8;
    case ITEM_CPUS:
    case ITEM_CPUS_MAX:
        le16_put(item, (uint16_t)config->n_vcpus);
        return 2;
    default:
        return 0;
    }
}

/* Bytes behind an item's end, and items that are not there, read as zero. */
static uint64_t data_read(FwCfg *f)
{
    uint8_t item[8];
    unsigned size = item_fill(f, item);
    uint8_t value = f->offset < size ? item[f->offset] : 0;
    if (f->offset < sizeof(item))
        f->offset++;
    return value;
}

static uint64_t fw_cfg_read(void *opaque, uint64_t offset, unsigned size)
{
    return offset == 1 && size == 1 ? data_read(opaque) : 0;
}

/* The selector is written with 16 bits; one of 8 bits means its low half. */
static void fw_cfg_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    FwCfg *f = opaque;
    if (offset != 0)
        return;
    f->selector = value & ITEM_MASK;
    f->offset = 0;
}

static const IoOps fw_cfg_ops = {
    .read = fw_cfg_read, .write = fw_cfg_write, .min_size = 1, .max_size = 2};

static void fw_cfg_unrealize(Device *dev)
{
    g_clear_pointer(&((FwCfg *)dev)->region, io_region_free);
}

static bool fw_cfg_realize(Device *dev, GError **err)
{
    FwCfg *f = (FwCfg *)dev;
    f->region = machine_map_ports(dev->machine, PORT_SELECTOR, PORT_COUNT, &fw_cfg_ops, f, "fw-cfg");
    if (!f->region)
        return lodge_fail(err, LODGE_ERROR_BUSY, "fw-cfg: port 0x%x is taken", PORT_SELECTOR);
    return true;
}

static void fw_cfg_reset(Device *dev)
{
    ((FwCfg *)dev)->selector = 0;
    ((FwCfg *)dev)->offset = 0;
}

static const StateField fw_cfg_state[] = {
    STATE_FIELD(FwCfg, selector), STATE_FIELD(FwCfg, offset), STATE_FIELDS_END};

const DeviceType fw_cfg_device_type = {
    .name = "fw-cfg",
    .summary = "processor count and memory size for test images",
    .bus = DEVICE_BUS_ISA,
    .instance_size = sizeof(FwCfg),
    .realize = fw_cfg_realize,
    .unrealize = fw_cfg_unrealize,
    .reset = fw_cfg_reset,
    .state = fw_cfg_state,
};
