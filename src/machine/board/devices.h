/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The board's devices, for the device table. */
#pragma once

#include "machine/device.h"

extern const DeviceType acpi_pm_device_type;
extern const DeviceType i8042_device_type;
extern const DeviceType debugcon_device_type;
extern const DeviceType isa_debug_exit_device_type;
extern const DeviceType pc_testdev_device_type;
extern const DeviceType fw_cfg_device_type;
extern const DeviceType isa_serial_device_type;

/* Which of COM1-COM4 (0-3) the isa-serial device @dev is, and its resources. */
typedef struct IsaSerialResources {
    unsigned index;
    uint16_t port;
    unsigned irq;
} IsaSerialResources;
void isa_serial_resources(const Device *dev, IsaSerialResources *resources);
