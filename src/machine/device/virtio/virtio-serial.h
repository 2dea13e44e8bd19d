/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the console device (virtio-serial.c) and its ports (virtio-serial-port.c) share.
 * Machine lock held.
 */
#pragma once

#include "machine/chardev/chardev.h"
#include "machine/device/virtio/virtio.h"

#define SERIAL_PORTS_MAX    31
#define SERIAL_NAME_MAX     63 /* bytes of a port's name */
#define SERIAL_MESSAGE_MAX  (8 + SERIAL_NAME_MAX + 1)
#define SERIAL_MESSAGES_MAX 192 /* waiting for the driver to have room; more are dropped */

typedef struct VirtioSerial VirtioSerial;

typedef struct SerialPort {
    Device dev;        /* first */
    VirtioSerial *bus; /* NULL until attached */
    unsigned nr;
    bool is_console;
    const char *name;       /* NULL: none */
    uint16_t columns, rows; /* 0: not known */
    Chardev *chardev;       /* NULL: none */
    uint8_t host_open;      /* a peer is there */
} SerialPort;

typedef struct SerialMessage {
    uint16_t size;
    uint8_t bytes[SERIAL_MESSAGE_MAX];
} SerialMessage;

struct VirtioSerial {
    VirtioDevice virtio; /* first */
    uint8_t guest_ready[SERIAL_PORTS_MAX], guest_open[SERIAL_PORTS_MAX];
    uint16_t n_messages; /* from first_message on, round the end */
    uint16_t first_message;
    SerialMessage message[SERIAL_MESSAGES_MAX];
    /* Configuration. */
    unsigned max_ports;
    SerialPort *port[SERIAL_PORTS_MAX];
    VirtChain chain;
};

/* Finds the bus of option bus= (else the first one) and a number; connects. */
bool virtio_serial_attach(SerialPort *port, GError **err);
void virtio_serial_detach(SerialPort *port);
/* A peer came or went. */
void virtio_serial_host_open(SerialPort *port, bool open);
/* How many bytes the guest takes from this port now; 0: a notification will come. */
size_t virtio_serial_room(SerialPort *port);
void virtio_serial_send(SerialPort *port, const uint8_t *data, size_t size);
