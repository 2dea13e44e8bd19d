/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Every device type. */
#include <string.h>

#include "machine/board/devices.h"
#include "machine/device.h"
#include "machine/device/virtio/virtio.h"
#include "machine/iommu/vtd.h"
#include "machine/irq/irq.h"
#include "machine/pci/pci-internal.h"
#include "machine/timer/timers.h"

const DeviceType *const device_types[] = {
    /* the board's own */
    &lapic_device_type,
    &ioapic_device_type,
    &pic_device_type,
    &pit_device_type,
    &hpet_device_type,
    &rtc_device_type,
    &pcie_root_device_type,
    &acpi_pm_device_type,
    &i8042_device_type,
    /* what a configuration may name */
    &pcie_root_port_device_type,
    &isa_serial_device_type,
    &debugcon_device_type,
    &isa_debug_exit_device_type,
    &pc_testdev_device_type,
    &fw_cfg_device_type,
    &intel_iommu_device_type,
    &edu_device_type,
    &virtio_blk_type.base,
    &virtio_net_type.base,
    &virtio_serial_type.base,
    &virtio_rng_type.base,
    &virtio_balloon_type.base,
    &virtconsole_type,
    &virtserialport_type,
    NULL,
};

const DeviceType *device_type_find(const char *name)
{
    for (unsigned i = 0; device_types[i]; i++)
        if (!strcmp(device_types[i]->name, name))
            return device_types[i];
    return NULL;
}
