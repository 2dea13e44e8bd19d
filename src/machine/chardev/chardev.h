/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The host side of a character device: where a UART, a virtio console port or the debug
 * console writes to and reads from. Types register in chardev/chardevs.c: stdio (raw terminal,
 * Ctrl-] leaves), file, unix (server socket), pty, null, fd.
 *
 * Everything runs on the machine's main thread under the machine lock, except chardev_write.
 */
#pragma once

#include "machine/machine.h"

typedef struct Chardev Chardev;

typedef struct ChardevUser {
    /* How many bytes the device can take now; 0 holds the source back until chardev_accept_input.
     */
    size_t (*can_receive)(void *opaque);
    void (*receive)(void *opaque, const uint8_t *data, size_t size);
    void (*opened)(void *opaque, bool open); /* a peer connected or left; may be NULL */
} ChardevUser;

Chardev *chardev_find(Machine *m, const char *id);
/* One user at a time (stdio may be shared with none). False and @err if taken. */
bool chardev_attach(Chardev *c, const ChardevUser *user, void *opaque, GError **err);
void chardev_detach(Chardev *c);
bool chardev_in_use(const Chardev *c);
/* Never blocks for long: what the peer does not take is buffered up to 64 KiB, then the oldest is
 * dropped. Any thread. */
void chardev_write(Chardev *c, const uint8_t *data, size_t size);
void chardev_accept_input(Chardev *c);
/* For the creator (machine_new). */
Chardev *chardev_new(Machine *m, const MachineItem *item, GError **err);
void chardev_free(Chardev *c);
/* The path a person connects to (pty name, socket path) or NULL. */
const char *chardev_path(const Chardev *c);
