/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The keyboard controller, as far as a machine without keyboard and mouse has one: self
 * test, command byte, output port (reset, A20) and the reset pulse; and port 0x92. IBM PS/2
 * Hardware Interface Technical Reference, "Keyboard and Auxiliary Device Controller".
 * Every command is answered at once, so that nobody waits for a time-out: bytes for
 * the absent keyboard come back as a time-out with "resend".
 *
 * The A20 gate is always open: no address wraps at 1 MiB.
 */
#include <string.h>

#include "base/error.h"
#include "machine/board/devices.h"

#define PORT_DATA             0x60
#define PORT_COMMAND          0x64
#define PORT_SYSTEM_CONTROL_A 0x92
#define KEYBOARD_IRQ          1

#define STATUS_OUTPUT_FULL 0x01
#define STATUS_SYSTEM      0x04
#define STATUS_COMMAND     0x08
#define STATUS_UNLOCKED    0x10
#define STATUS_TIMEOUT     0x40

#define CTR_KEYBOARD_IRQ 0x01
#define CTR_SYSTEM       0x04
#define CTR_KEYBOARD_OFF 0x10
#define CTR_AUX_OFF      0x20

#define OUTPUT_PORT_RESET 0x01 /* active low */
#define OUTPUT_PORT_A20   0x02

#define KEYBOARD_RESEND    0xfe
#define SELF_TEST_PASSED   0x55
#define AUX_TEST_CLOCK_LOW 0x01 /* nothing drives the mouse port */

typedef struct I8042 {
    Device dev;
    IoRegion *data, *command, *control_a;
    uint8_t status, ctr, output;
    uint8_t pending; /* the command that waits for its data byte, or 0 */
    uint8_t ram[32]; /* commands 0x20-0x3f read it, 0x60-0x7f write it; byte 0 is ctr */
} I8042;

static void reply(I8042 *k, uint8_t value, uint8_t extra_status)
{
    k->output = value;
    k->status = (k->status & ~STATUS_TIMEOUT) | STATUS_OUTPUT_FULL | extra_status;
    if (k->ctr & CTR_KEYBOARD_IRQ)
        machine_set_gsi(k->dev.machine, KEYBOARD_IRQ, true);
}

static void command(I8042 *k, uint8_t value)
{
    k->status |= STATUS_COMMAND;
    k->pending = 0;
    switch (value) {
    case 0x20:
        reply(k, k->ctr, 0);
        break;
    case 0x21 ... 0x3f:
        reply(k, k->ram[value & 0x1f], 0);
        break;
    case 0x60 ... 0x7f: /* write the command byte or RAM */
    case 0xd1:          /* write the output port */
    case 0xd2:          /* as if from the keyboard */
    case 0xd3:          /* as if from the mouse */
    case 0xd4:          /* to the mouse */
        k->pending = value;
        break;
    case 0xa7:
        k->ctr |= CTR_AUX_OFF;
        break;
    case 0xa8:
        k->ctr &= ~CTR_AUX_OFF;
        break;
    case 0xa9:
        reply(k, AUX_TEST_CLOCK_LOW, 0);
        break;
    case 0xaa:
        k->status |= STATUS_SYSTEM;
        reply(k, SELF_TEST_PASSED, 0);
        break;
    case 0xab:
        reply(k, 0, 0);
        break;
    case 0xad:
        k->ctr |= CTR_KEYBOARD_OFF;
        break;
    case 0xae:
        k->ctr &= ~CTR_KEYBOARD_OFF;
        break;
    case 0xc0: /* input port: keyboard not locked */
        reply(k, 0x80, 0);
        break;
    case 0xd0:
        reply(k, OUTPUT_PORT_RESET | OUTPUT_PORT_A20, 0);
        break;
    case 0xf0 ... 0xff: /* pulses the output port bits that are zero */
        if (!(value & OUTPUT_PORT_RESET))
            machine_reset(k->dev.machine, MACHINE_CAUSE_GUEST_RESET);
        break;
    default:
        break;
    }
}

static void data(I8042 *k, uint8_t value)
{
    uint8_t pending = k->pending;
    k->status &= ~STATUS_COMMAND;
    k->pending = 0;
    switch (pending) {
    case 0x60:
        k->ctr = value;
        k->status = (k->status & ~STATUS_SYSTEM) | (value & CTR_SYSTEM);
        break;
    case 0x61 ... 0x7f:
        k->ram[pending & 0x1f] = value;
        break;
    case 0xd1:
        if (!(value & OUTPUT_PORT_RESET))
            machine_reset(k->dev.machine, MACHINE_CAUSE_GUEST_RESET);
        break;
    case 0xd2:
    case 0xd3: /* the answer lacks the mouse bit: there is no mouse port */
        reply(k, value, 0);
        break;
    default:
        reply(k, KEYBOARD_RESEND, STATUS_TIMEOUT);
        break;
    }
}

static uint64_t data_read(void *opaque, uint64_t offset, unsigned size)
{
    I8042 *k = opaque;
    k->status &= ~(STATUS_OUTPUT_FULL | STATUS_TIMEOUT);
    machine_set_gsi(k->dev.machine, KEYBOARD_IRQ, false);
    return k->output;
}

static void data_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    data(opaque, value);
}

static uint64_t command_read(void *opaque, uint64_t offset, unsigned size)
{
    return ((I8042 *)opaque)->status;
}

static void command_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    command(opaque, value);
}

static uint64_t control_a_read(void *opaque, uint64_t offset, unsigned size)
{
    return OUTPUT_PORT_A20;
}

static void control_a_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    if (value & 1)
        machine_reset(((I8042 *)opaque)->dev.machine, MACHINE_CAUSE_GUEST_RESET);
}

static const IoOps data_ops = {
    .read = data_read, .write = data_write, .min_size = 1, .max_size = 1};
static const IoOps command_ops = {
    .read = command_read, .write = command_write, .min_size = 1, .max_size = 1};
static const IoOps control_a_ops = {
    .read = control_a_read, .write = control_a_write, .min_size = 1, .max_size = 1};

static void i8042_reset(Device *dev)
{
    I8042 *k = (I8042 *)dev;
    k->status = STATUS_SYSTEM | STATUS_UNLOCKED;
    k->ctr = CTR_SYSTEM | CTR_AUX_OFF;
    k->output = k->pending = 0;
    memset(k->ram, 0, sizeof(k->ram));
    machine_set_gsi(dev->machine, KEYBOARD_IRQ, false);
}

static void i8042_unrealize(Device *dev)
{
    I8042 *k = (I8042 *)dev;
    g_clear_pointer(&k->data, io_region_free);
    g_clear_pointer(&k->command, io_region_free);
    g_clear_pointer(&k->control_a, io_region_free);
}

static bool i8042_realize(Device *dev, GError **err)
{
    I8042 *k = (I8042 *)dev;
    k->data = machine_map_ports(dev->machine, PORT_DATA, 1, &data_ops, k, "i8042-data");
    k->command = machine_map_ports(dev->machine, PORT_COMMAND, 1, &command_ops, k, "i8042-command");
    k->control_a = machine_map_ports(dev->machine, PORT_SYSTEM_CONTROL_A, 1, &control_a_ops, k,
                                     "system-control-a");
    if (!k->data || !k->command || !k->control_a) {
        i8042_unrealize(dev);
        return lodge_fail(err, LODGE_ERROR_INTERNAL, "i8042: port 0x60, 0x64 or 0x92 is taken");
    }
    i8042_reset(dev);
    return true;
}

static bool i8042_state_loaded(Device *dev, GError **err)
{
    I8042 *k = (I8042 *)dev;
    bool raised = (k->status & STATUS_OUTPUT_FULL) && (k->ctr & CTR_KEYBOARD_IRQ);
    machine_set_gsi(dev->machine, KEYBOARD_IRQ, raised);
    return true;
}

static const StateField i8042_state[] = {
    STATE_FIELD(I8042, status),  STATE_FIELD(I8042, ctr),  STATE_FIELD(I8042, output),
    STATE_FIELD(I8042, pending), STATE_BUFFER(I8042, ram), STATE_FIELDS_END,
};

const DeviceType i8042_device_type = {
    .name = "i8042",
    .summary = "keyboard controller without a keyboard: reset and A20",
    .bus = DEVICE_BUS_ISA,
    .instance_size = sizeof(I8042),
    .realize = i8042_realize,
    .reset = i8042_reset,
    .unrealize = i8042_unrealize,
    .state = i8042_state,
    .state_loaded = i8042_state_loaded,
};
