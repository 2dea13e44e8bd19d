/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * For tests and fuzzing of virtio devices: a machine of RAM only, doubles of the disk, network
 * and character backends, and a guest driver that builds rings in that RAM. One thread.
 *
 * The machine keeps a shadow of RAM to find device writes that machine_ram_dirty was not told of.
 */
#pragma once

#include "machine/device/virtio/virtio.h"

/* ---- the machine ---- */

Machine *test_machine_new(uint64_t ram_size, unsigned n_vcpus);
void test_machine_free(Machine *m);
void test_machine_set_status(Machine *m,
                             MachineStatus status); /* PAUSED to RUNNING: emits RESUME */
/* Runs the main loop until nothing is left to do (at most @rounds rounds; 0: 10000). */
void test_run(Machine *m, unsigned rounds);
void test_clock_advance(Machine *m, int64_t ns);
/* Fails the test if the device wrote RAM without saying so. */
void test_check_dirty(Machine *m);
unsigned test_events(Machine *m, MachineEventType type); /* how many were emitted */
/* RAM as the guest sees it. */
uint8_t *test_ram(Machine *m, uint64_t gpa);
void test_ram_write(Machine *m, uint64_t gpa, const void *data, size_t size);

/* A device from "key=value,key=value"; the machine owns it. */
Device *test_device_new(Machine *m, const DeviceType *type, const char *options, GError **err);
uint64_t test_bar_read(Device *dev, uint64_t offset, unsigned size);
void test_bar_write(Device *dev, uint64_t offset, unsigned size, uint64_t value);
void test_config_write(Device *dev, unsigned offset, unsigned size, uint32_t value);
uint32_t test_config_read(Device *dev, unsigned offset, unsigned size);
/* MSI-X messages that vector @vector sent since the last call. */
unsigned test_interrupts(Device *dev, unsigned vector);
void test_msix_enable(Device *dev, bool enable);
bool test_intx(Device *dev);

/* ---- doubles of the host side ---- */

typedef struct TestDisk {
    uint8_t *data;
    uint64_t size;
    bool read_only, hold; /* hold: requests stay in flight until it is cleared */
    int fail;             /* 0, or the -errno of every request */
    unsigned reads, writes, flushes, discards, zeroes, fua;
} TestDisk;
/* The drive "disk0", made before the device; options as of a drive: "cache=writethrough". */
TestDisk *test_disk(Machine *m, uint64_t size, const char *options);

typedef struct TestChardev {
    GByteArray *output;
} TestChardev;
TestChardev *test_chardev(Machine *m, const char *id, bool open);
void test_chardev_open(Machine *m, const char *id, bool open);
/* Bytes for the guest; what it does not take waits. */
void test_chardev_input(Machine *m, const char *id, const void *data, size_t size);

typedef struct TestNet {
    GByteArray *sent; /* all frames, one after another */
    unsigned frames;
} TestNet;
TestNet *test_net(Machine *m); /* the netdev "net0" */
void test_net_receive(Machine *m, const void *frame, size_t size);

/* ---- the driver ---- */

enum { TEST_COMMON = 0, TEST_ISR = 0x1000, TEST_DEVICE = 0x2000, TEST_NOTIFY = 0x3000 };

typedef struct TestQueue {
    Device *dev;
    unsigned index;
    uint16_t size;
    uint64_t desc, avail, used; /* addresses */
    uint16_t next_desc, avail_idx, used_idx;
} TestQueue;

typedef struct TestBuffer {
    uint64_t gpa;
    uint32_t size;
    bool write; /* for the device to write */
} TestBuffer;

uint64_t test_features(Device *dev);
/* Reset to FEATURES_OK with @features (VERSION_1 is added); false if the device refused them. */
bool test_negotiate(Device *dev, uint64_t features);
/* Puts the queue's three parts at @gpa (at most 32 KiB) and enables it with vector @index + 1. */
void test_queue_setup(TestQueue *q, Device *dev, unsigned index, uint64_t gpa);
void test_driver_ok(Device *dev);
uint8_t test_status(Device *dev);
void test_set_descriptor(TestQueue *q, uint16_t i, uint64_t gpa, uint32_t size, uint16_t flags,
                         uint16_t next);
/* Makes a chain available (no kick) and returns its head. */
uint16_t test_add(TestQueue *q, const TestBuffer *buffers, unsigned n);
/* The same through an indirect table at @table. */
uint16_t test_add_indirect(TestQueue *q, uint64_t table, const TestBuffer *buffers, unsigned n);
void test_publish(TestQueue *q, uint16_t head);
void test_kick(TestQueue *q); /* rings the doorbell and runs the main loop */
bool test_used(TestQueue *q, uint32_t *head, uint32_t *written);
