/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The console device with its ports: VIRTIO 1.2, 5.3. */
#include "machine/device/virtio/virtio-serial.h"

#include <string.h>

#include "base/bytes.h"
#include "base/error.h"

/* 5.3.3 Feature bits */
enum { CONSOLE_F_MULTIPORT = 1, CONSOLE_F_EMERG_WRITE = 2 };
/* 5.3.4 Device configuration layout */
enum { CONFIG_MAX_PORTS = 4, CONFIG_EMERGENCY = 8, CONFIG_SIZE = 12 };
/* 5.3.2 Virtqueues: port 0, control, port 1 … */
enum { CONTROL_RX = 2, CONTROL_TX = 3, PORT_QUEUE_SIZE = 128, CONTROL_QUEUE_SIZE = 64 };
/* 5.3.6.2 Multiport device operation: struct virtio_console_control and its events */
enum { CONTROL_SIZE = 8 };
enum {
    EVENT_DEVICE_READY = 0,
    EVENT_DEVICE_ADD = 1,
    EVENT_PORT_READY = 3,
    EVENT_CONSOLE_PORT = 4,
    EVENT_RESIZE = 5,
    EVENT_PORT_OPEN = 6,
    EVENT_PORT_NAME = 7,
};
enum { BUDGET = 64, WRITE_MAX = 16 * 1024 * 1024 /* bytes of one write by the guest */ };

static unsigned rx_queue(unsigned nr)
{
    return nr == 0 ? 0 : 2 + 2 * nr;
}

/* ---- control messages to the guest ---- */

static void control_flush(VirtioSerial *s)
{
    VirtioDevice *v = &s->virtio;
    Virtqueue *q = &v->queues[CONTROL_RX];
    if (virtio_paused(v) || !virtio_queue_usable(v, CONTROL_RX))
        return;
    while (s->n_messages && (virtq_has_work(q) || virtq_want_notify(q, true))) {
        const SerialMessage *message = &s->message[s->first_message];
        if (!virtio_pop(v, CONTROL_RX, &s->chain))
            return;
        size_t n = virt_chain_write(&s->chain, virtio_machine(v), 0, message->bytes, message->size);
        virtq_push(q, s->chain.head, (uint32_t)n);
        s->first_message = (uint16_t)((s->first_message + 1) % SERIAL_MESSAGES_MAX);
        s->n_messages--;
    }
    virtio_notify_queue(v, CONTROL_RX);
}

static void control_send(VirtioSerial *s, unsigned nr, uint16_t event, uint16_t value,
                         const void *extra, size_t extra_size)
{
    if (!virtio_has(&s->virtio, CONSOLE_F_MULTIPORT) || s->n_messages == SERIAL_MESSAGES_MAX)
        return;
    SerialMessage *message =
        &s->message[(s->first_message + s->n_messages++) % SERIAL_MESSAGES_MAX];
    message->size = (uint16_t)(CONTROL_SIZE + extra_size);
    le32_put(message->bytes, nr);
    le16_put(message->bytes + 4, event);
    le16_put(message->bytes + 6, value);
    if (extra_size)
        memcpy(message->bytes + CONTROL_SIZE, extra, extra_size);
    control_flush(s);
}

static void send_port_details(VirtioSerial *s, const SerialPort *port)
{
    if (port->is_console)
        control_send(s, port->nr, EVENT_CONSOLE_PORT, 1, NULL, 0);
    if (port->is_console && port->columns && port->rows) {
        uint8_t size[4]; /* struct virtio_console_resize */
        le16_put(size, port->columns);
        le16_put(size + 2, port->rows);
        control_send(s, port->nr, EVENT_RESIZE, 0, size, sizeof(size));
    }
    if (port->name)
        control_send(s, port->nr, EVENT_PORT_NAME, 1, port->name, strlen(port->name) + 1);
    if (port->host_open)
        control_send(s, port->nr, EVENT_PORT_OPEN, 1, NULL, 0);
}

/* ---- control messages from the guest ---- */

static void control_received(VirtioSerial *s, uint32_t nr, uint16_t event, uint16_t value)
{
    if (event == EVENT_DEVICE_READY) {
        for (unsigned i = 0; value == 1 && i < s->max_ports; i++)
            if (s->port[i])
                control_send(s, i, EVENT_DEVICE_ADD, 1, NULL, 0);
        return;
    }
    if (nr >= s->max_ports || !s->port[nr])
        return; /* a port that does not exist: nothing to do for it */
    SerialPort *port = s->port[nr];
    switch (event) {
    case EVENT_PORT_READY:
        s->guest_ready[nr] = value == 1;
        if (value == 1)
            send_port_details(s, port);
        break;
    case EVENT_PORT_OPEN:
        s->guest_open[nr] = value == 1;
        if (value == 1 && port->chardev)
            chardev_accept_input(port->chardev);
        break;
    default:
        break;
    }
}

static void control_queue(VirtioSerial *s)
{
    VirtioDevice *v = &s->virtio;
    Virtqueue *q = &v->queues[CONTROL_TX];
    unsigned budget = BUDGET;
    while (budget && virtio_pop(v, CONTROL_TX, &s->chain)) {
        budget--;
        uint8_t raw[CONTROL_SIZE];
        uint16_t head = s->chain.head;
        bool whole = virt_chain_read(&s->chain, 0, raw, sizeof(raw)) == sizeof(raw);
        virtq_push(q, head, 0);
        if (whole) /* may use s->chain for the answers */
            control_received(s, le32_get(raw), le16_get(raw + 4), le16_get(raw + 6));
    }
    virtio_notify_queue(v, CONTROL_TX);
    if (virtq_want_notify(q, true))
        virtio_kick(v, CONTROL_TX);
}

/* ---- data ---- */

static void port_output(VirtioSerial *s, unsigned nr, unsigned index)
{
    VirtioDevice *v = &s->virtio;
    Virtqueue *q = &v->queues[index];
    unsigned budget = BUDGET;
    while (budget && virtio_pop(v, index, &s->chain)) {
        budget--;
        if (s->chain.out_size > WRITE_MAX) {
            virtio_fail(v, "a write of more than 16 MiB to a console port");
            return;
        }
        SerialPort *port = s->port[nr];
        for (unsigned i = 0; port && port->chardev && i < s->chain.n_out; i++)
            chardev_write(port->chardev, s->chain.out[i].iov_base, s->chain.out[i].iov_len);
        virtq_push(q, s->chain.head, 0);
    }
    virtio_notify_queue(v, index);
    if (virtq_want_notify(q, true))
        virtio_kick(v, index);
}

static bool port_listens(const VirtioSerial *s, unsigned nr)
{
    if (!virtio_has(&s->virtio, CONSOLE_F_MULTIPORT))
        return nr == 0;
    return s->guest_open[nr];
}

size_t virtio_serial_room(SerialPort *port)
{
    VirtioSerial *s = port->bus;
    if (!s || !port_listens(s, port->nr))
        return 0;
    VirtioDevice *v = &s->virtio;
    unsigned index = rx_queue(port->nr);
    Virtqueue *q = &v->queues[index];
    if (virtio_paused(v) || !virtio_queue_usable(v, index) ||
        !(virtq_has_work(q) || virtq_want_notify(q, true)))
        return 0;
    if (!virtio_pop(v, index, &s->chain))
        return 0;
    virtq_unpop(q, 1);
    if (s->chain.in_size == 0) {
        virtio_fail(v, "a console buffer to receive into has no room");
        return 0;
    }
    return s->chain.in_size;
}

void virtio_serial_send(SerialPort *port, const uint8_t *data, size_t size)
{
    VirtioSerial *s = port->bus;
    unsigned index = rx_queue(port->nr);
    while (size && s && virtio_queue_usable(&s->virtio, index)) {
        if (!virtio_pop(&s->virtio, index, &s->chain))
            break;
        size_t n = virt_chain_write(&s->chain, virtio_machine(&s->virtio), 0, data, size);
        virtq_push(&s->virtio.queues[index], s->chain.head, (uint32_t)n);
        if (n == 0)
            break;
        data += n;
        size -= n;
    }
    if (s)
        virtio_notify_queue(&s->virtio, index);
}

static void serial_queue(VirtioDevice *v, unsigned index)
{
    VirtioSerial *s = (VirtioSerial *)v;
    if (index == CONTROL_RX) {
        control_flush(s);
    } else if (index == CONTROL_TX) {
        control_queue(s);
    } else {
        unsigned nr = index < 2 ? 0 : index / 2 - 1;
        if (index & 1)
            port_output(s, nr, index);
        else if (s->port[nr] && s->port[nr]->chardev)
            chardev_accept_input(s->port[nr]->chardev);
    }
}

/* ---- ports ---- */

void virtio_serial_host_open(SerialPort *port, bool open)
{
    if (port->host_open == open)
        return;
    port->host_open = open;
    if (port->bus && port->bus->guest_ready[port->nr])
        control_send(port->bus, port->nr, EVENT_PORT_OPEN, open, NULL, 0);
}

static void find_first_bus(Device *dev, void *opaque)
{
    VirtioSerial **found = opaque;
    if (!*found && dev->type == &virtio_serial_type.base)
        *found = (VirtioSerial *)dev;
}

static VirtioSerial *find_bus(SerialPort *port, GError **err)
{
    Machine *m = port->dev.machine;
    const char *id = device_option(&port->dev, "bus");
    VirtioSerial *s = NULL;
    if (!id) {
        machine_foreach_device(m, find_first_bus, &s);
        if (!s)
            lodge_fail(err, LODGE_ERROR_NOT_FOUND, "%s: there is no virtio-serial device before it",
                       port->dev.type->name);
        return s;
    }
    Device *dev = machine_find_device(m, id);
    if (!dev || dev->type != &virtio_serial_type.base) {
        lodge_fail(err, LODGE_ERROR_NOT_FOUND, "%s: there is no virtio-serial device \"%s\"",
                   port->dev.type->name, id);
        return NULL;
    }
    return (VirtioSerial *)dev;
}

bool virtio_serial_attach(SerialPort *port, GError **err)
{
    const char *type = port->dev.type->name, *nr_option = device_option(&port->dev, "nr");
    VirtioSerial *s = find_bus(port, err);
    if (!s)
        return false;
    unsigned nr = 0;
    if (nr_option) {
        nr = (unsigned)device_option_uint(&port->dev, "nr");
    } else {
        /* Port 0 is a console for drivers without MULTIPORT: only a console gets it by itself. */
        nr = port->is_console ? 0 : 1;
        while (nr < s->max_ports && s->port[nr])
            nr++;
    }
    if (nr >= s->max_ports)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "%s: the bus has ports 0 to %u only", type,
                          s->max_ports - 1);
    if (nr == 0 && !port->is_console)
        return lodge_fail(err, LODGE_ERROR_INVALID, "%s: port 0 is for a virtconsole", type);
    if (s->port[nr])
        return lodge_fail(err, LODGE_ERROR_EXISTS, "%s: port %u is taken", type, nr);
    port->nr = nr;
    port->bus = s;
    s->port[nr] = port;
    return true;
}

void virtio_serial_detach(SerialPort *port)
{
    if (port->bus)
        port->bus->port[port->nr] = NULL;
    port->bus = NULL;
}

/* ---- configuration and life ---- */

static void serial_config_read(VirtioDevice *v, uint8_t *config)
{
    VirtioSerial *s = (VirtioSerial *)v;
    memset(config, 0, CONFIG_SIZE); /* the console's size is told by a control message */
    le32_put(config + CONFIG_MAX_PORTS, s->max_ports);
}

static void serial_config_write(VirtioDevice *v, unsigned offset, unsigned size, uint32_t value)
{
    VirtioSerial *s = (VirtioSerial *)v;
    if (offset == CONFIG_EMERGENCY && s->port[0] && s->port[0]->chardev) {
        uint8_t byte = (uint8_t)value; /* 5.3.4: the low byte is a character for the console */
        chardev_write(s->port[0]->chardev, &byte, 1);
    }
}

static void serial_reset(VirtioDevice *v)
{
    VirtioSerial *s = (VirtioSerial *)v;
    memset(s->guest_ready, 0, sizeof(s->guest_ready));
    memset(s->guest_open, 0, sizeof(s->guest_open));
    s->n_messages = s->first_message = 0;
}

static bool serial_start(VirtioDevice *v, GError **err)
{
    VirtioSerial *s = (VirtioSerial *)v;
    s->max_ports = (unsigned)device_option_uint(&v->pci.dev, "max-ports");
    virt_chain_init(&s->chain);
    for (unsigned i = 0; i < 2 * s->max_ports + 2; i++)
        virtio_add_queue(v,
                         i == CONTROL_RX || i == CONTROL_TX ? CONTROL_QUEUE_SIZE : PORT_QUEUE_SIZE);
    v->host_features = VIRTIO_BIT(CONSOLE_F_MULTIPORT) | VIRTIO_BIT(CONSOLE_F_EMERG_WRITE);
    return true;
}

static void serial_stop(VirtioDevice *v)
{
    VirtioSerial *s = (VirtioSerial *)v;
    for (unsigned i = 0; i < SERIAL_PORTS_MAX; i++)
        if (s->port[i])
            virtio_serial_detach(s->port[i]);
    virt_chain_clear(&s->chain);
}

static bool serial_restored(VirtioDevice *v, GError **err)
{
    VirtioSerial *s = (VirtioSerial *)v;
    if (s->n_messages > SERIAL_MESSAGES_MAX || s->first_message >= SERIAL_MESSAGES_MAX)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "virtio-serial: %u control messages",
                          s->n_messages);
    for (unsigned i = 0; i < SERIAL_MESSAGES_MAX; i++)
        if (s->message[i].size > SERIAL_MESSAGE_MAX)
            return lodge_fail(err, LODGE_ERROR_CORRUPT,
                              "virtio-serial: a control message of %u bytes", s->message[i].size);
    return true;
}

static const DeviceOption serial_options[] = {
    {.name = "max-ports",
     .type = OPTION_UINT,
     .fallback = "31",
     .min = 1,
     .max = SERIAL_PORTS_MAX,
     .help = "how many ports there can be"},
    {0},
};

static const StateField message_state[] = {
    STATE_FIELD(SerialMessage, size),
    STATE_BUFFER(SerialMessage, bytes),
    STATE_FIELDS_END,
};

static const StateField serial_state[] = {
    VIRTIO_STATE(VirtioSerial, virtio),
    STATE_BUFFER(VirtioSerial, guest_ready),
    STATE_BUFFER(VirtioSerial, guest_open),
    STATE_FIELD(VirtioSerial, n_messages),
    STATE_FIELD(VirtioSerial, first_message),
    STATE_STRUCTS(VirtioSerial, message, message_state),
    STATE_FIELDS_END,
};

const VirtioDeviceType virtio_serial_type = {
    .base = VIRTIO_DEVICE_BASE("virtio-serial", "bus of console and data ports", VirtioSerial,
                               serial_options, serial_state),
    .virtio_id = 3,
    .class_code = 0x078000,
    .config_size = CONFIG_SIZE,
    .start = serial_start,
    .stop = serial_stop,
    .config_read = serial_config_read,
    .config_write = serial_config_write,
    .queue = serial_queue,
    .reset = serial_reset,
    .restored = serial_restored,
};
