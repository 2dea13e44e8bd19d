/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the files behind virtio-test-driver.h share. */
#pragma once

#include "machine/chardev/chardev.h"
#include "machine/device/virtio/virtio-test-driver.h"
#include "machine/netdev/netdev-type.h"

typedef struct TestHandler {
    MachineEventHandler f;
    void *opaque;
} TestHandler;

typedef struct TestPci {
    Device *dev;
    bool msix_enabled;
    unsigned interrupts[PCI_MSIX_VECTORS_MAX];
} TestPci;

struct BlockNode;

struct Machine {
    MachineConfig config;
    MachineStatus status;
    GMainContext *context;
    int ram_fd;
    uint8_t *ram, *shadow;
    int64_t clock;
    GPtrArray *timers, *devices;
    TestHandler handlers[16];
    unsigned n_handlers;
    unsigned events[16];
    TestPci pci[16];
    struct BlockNode *disk;
    GHashTable *chardevs; /* of Chardev, by id */
    Netdev *netdev;
};

MachineItem *test_item_new(const char *type, const char *id, const char *options);
void test_item_free(const MachineItem *item);
void test_host_free(Machine *m);
