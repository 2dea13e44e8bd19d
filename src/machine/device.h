/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A device is one .c file closed by one const DeviceType, and one row in device/devices.c.
 */
#pragma once

#include "machine/machine.h"
#include "machine/state.h"

typedef struct Device Device;
typedef struct DeviceType DeviceType;

typedef enum DeviceBus {
    DEVICE_BUS_SYSTEM,
    DEVICE_BUS_ISA,
    DEVICE_BUS_PCI,
    DEVICE_BUS_VIRTIO_SERIAL
} DeviceBus;
typedef enum DeviceOptionType {
    OPTION_STRING,
    OPTION_BOOL,
    OPTION_UINT,
    OPTION_SIZE,
    OPTION_MAC,
    OPTION_PCI_ADDRESS
} DeviceOptionType;

/* What may be written after the type in the configuration; others are refused by name. */
typedef struct DeviceOption {
    const char *name;
    DeviceOptionType type;
    const char *fallback; /* NULL: required unless optional */
    bool optional;
    uint64_t min, max; /* OPTION_UINT, OPTION_SIZE; 0,0: any */
    const char *help;
} DeviceOption;

struct DeviceType {
    const char *name;
    const char *summary; /* one line */
    DeviceBus bus;
    size_t instance_size;        /* struct that starts with Device (or PciDevice) */
    const DeviceOption *options; /* ends with {0}; may be NULL */
    /* Options were checked. Registers its regions; on failure leaves nothing behind. */
    bool (*realize)(Device *dev, GError **err);
    void (*reset)(Device *dev);     /* to power-on state; may be NULL */
    void (*drain)(Device *dev);     /* vCPUs are paused: finish what is in flight; may be NULL */
    void (*unrealize)(Device *dev); /* accepts a half-realized device; may be NULL */
    const StateField *state;        /* what to save and restore; ends with {0} */
    bool (*state_loaded)(Device *dev,
                         GError **err); /* validates and re-derives after a restore; may be NULL */
};

struct Device {
    const DeviceType *type;
    Machine *machine;
    const MachineItem *item; /* its configuration; NULL for the board's own */
    char *id;
};

/* Creates, configures and realizes; the machine owns it. */
Device *device_new(Machine *m, const DeviceType *type, const MachineItem *item, GError **err);
const DeviceType *device_type_find(const char *name);
extern const DeviceType *const device_types[]; /* NULL-terminated; devices.c */
Device *machine_find_device(Machine *m, const char *id);
void machine_foreach_device(Machine *m, void (*f)(Device *dev, void *opaque), void *opaque);

/* What is wrong with the options of @item, naming device and option. Opens and creates nothing. */
bool device_check_options(const DeviceType *type, const MachineItem *item, GError **err);
/* "BB:SS.F" or "SS.F" (bus 0), hexadecimal. */
bool device_parse_pci_address(const char *text, unsigned *bus, unsigned *slot, unsigned *function);
/* The machine is paused or the lock held. A failed load leaves the device in need of a reset. */
void device_save(Device *dev, GByteArray *to);
bool device_load(Device *dev, const uint8_t *data, size_t size, GError **err);

/* Option values of the device's item with the table's fallback applied (options were validated). */
const char *device_option(const Device *dev, const char *name);
uint64_t device_option_uint(const Device *dev, const char *name);
bool device_option_bool(const Device *dev, const char *name);
