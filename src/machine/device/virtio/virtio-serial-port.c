/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The ports of virtio-serial: virtconsole (hvc in Linux) and virtserialport (a named data channel).
 */
#include <string.h>

#include "base/error.h"
#include "machine/device/virtio/virtio-serial.h"

static size_t port_can_receive(void *opaque)
{
    return virtio_serial_room(opaque);
}

static void port_receive(void *opaque, const uint8_t *data, size_t size)
{
    virtio_serial_send(opaque, data, size);
}

static void port_opened(void *opaque, bool open)
{
    SerialPort *port = opaque;
    /* A console is there whether or not somebody looks at it; a data port follows its peer. */
    virtio_serial_host_open(port, open || port->is_console);
}

static const ChardevUser port_user = {
    .can_receive = port_can_receive,
    .receive = port_receive,
    .opened = port_opened,
};

static bool port_realize(Device *dev, GError **err)
{
    SerialPort *port = (SerialPort *)dev;
    const char *id = device_option(dev, "chardev");

    port->is_console = dev->type == &virtconsole_type;
    port->name = device_option(dev, "name");
    if (port->name && strlen(port->name) > SERIAL_NAME_MAX)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "%s: the name \"%s\" is longer than %d bytes",
                          dev->type->name, port->name, SERIAL_NAME_MAX);
    if (port->is_console) {
        port->columns = (uint16_t)device_option_uint(dev, "columns");
        port->rows = (uint16_t)device_option_uint(dev, "rows");
    }
    if (!virtio_serial_attach(port, err))
        return false;
    port->host_open = port->is_console;
    if (!id)
        return true;
    Chardev *chardev = chardev_find(dev->machine, id);
    if (!chardev)
        lodge_fail(err, LODGE_ERROR_NOT_FOUND, "%s: there is no chardev \"%s\"", dev->type->name,
                   id);
    if (!chardev || !chardev_attach(chardev, &port_user, port, err)) {
        virtio_serial_detach(port);
        return false;
    }
    port->chardev = chardev;
    return true;
}

static void port_unrealize(Device *dev)
{
    SerialPort *port = (SerialPort *)dev;
    if (port->chardev)
        chardev_detach(port->chardev);
    port->chardev = NULL;
    virtio_serial_detach(port);
}

#define PORT_OPTIONS                                                                               \
    {.name = "chardev", .type = OPTION_STRING, .optional = true, .help = "where it leads"},        \
        {.name = "bus",                                                                            \
         .type = OPTION_STRING,                                                                    \
         .optional = true,                                                                         \
         .help = "id of its virtio-serial device; default: the first"},                            \
        {.name = "nr",                                                                             \
         .type = OPTION_UINT,                                                                      \
         .optional = true,                                                                         \
         .max = SERIAL_PORTS_MAX - 1,                                                              \
         .help = "port number; default: the first free one"},                                      \
    {                                                                                              \
        .name = "name", .type = OPTION_STRING, .optional = true,                                   \
        .help = "the guest finds the port by it (/dev/virtio-ports/NAME)"                          \
    }

static const DeviceOption console_options[] = {
    PORT_OPTIONS,
    {.name = "columns",
     .type = OPTION_UINT,
     .fallback = "0",
     .max = 65535,
     .help = "width to tell the guest; 0: not told"},
    {.name = "rows",
     .type = OPTION_UINT,
     .fallback = "0",
     .max = 65535,
     .help = "height to tell the guest; 0: not told"},
    {0},
};

static const DeviceOption port_options[] = {PORT_OPTIONS, {0}};

const DeviceType virtconsole_type = {
    .name = "virtconsole",
    .summary = "console port of virtio-serial",
    .bus = DEVICE_BUS_VIRTIO_SERIAL,
    .instance_size = sizeof(SerialPort),
    .options = console_options,
    .realize = port_realize,
    .unrealize = port_unrealize,
};

const DeviceType virtserialport_type = {
    .name = "virtserialport",
    .summary = "data port of virtio-serial",
    .bus = DEVICE_BUS_VIRTIO_SERIAL,
    .instance_size = sizeof(SerialPort),
    .options = port_options,
    .realize = port_realize,
    .unrealize = port_unrealize,
};
