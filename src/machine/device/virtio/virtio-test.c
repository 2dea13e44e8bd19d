/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The transport and each device, driven by registers and rings. */
#include <string.h>

#include "base/bytes.h"
#include "machine/balloon.h"
#include "machine/device/virtio/virtio-test-driver.h"

enum { RAM = 0x400000, RINGS = 0x10000, RING_SPACE = 0x8000, DATA = 0x200000 };
enum { DATA_READ = DATA, HEADER = DATA + 0x10000, STATUS = DATA + 0x20000, TABLE = DATA + 0x30000 };

static const uint64_t ring_features =
    VIRTIO_BIT(VIRTIO_F_RING_INDIRECT_DESC) | VIRTIO_BIT(VIRTIO_F_RING_EVENT_IDX);

static Device *new_device(Machine *m, const DeviceType *type, const char *options)
{
    GError *err = NULL;
    Device *dev = test_device_new(m, type, options, &err);
    g_assert_no_error(err);
    return dev;
}

static void start(Device *dev, uint64_t features, TestQueue *queues, unsigned n)
{
    g_assert_true(test_negotiate(dev, features));
    for (unsigned i = 0; i < n; i++)
        test_queue_setup(&queues[i], dev, i, RINGS + (uint64_t)i * RING_SPACE);
    test_driver_ok(dev);
    g_assert_cmpuint(test_status(dev) & VIRTIO_STATUS_NEEDS_RESET, ==, 0);
}

/* ---- transport ---- */

static void test_negotiation(void)
{
    Machine *m = test_machine_new(RAM, 1);
    Device *dev = new_device(m, &virtio_rng_type.base, NULL);
    uint64_t offered = test_features(dev);
    g_assert_true(offered & VIRTIO_BIT(VIRTIO_F_VERSION_1));
    g_assert_true((offered & ring_features) == ring_features);
    g_assert_false(test_negotiate(dev, VIRTIO_BIT(63))); /* never offered */
    /* Without VERSION_1 the device does not work either. */
    test_bar_write(dev, TEST_COMMON + 20, 1, 0);
    test_bar_write(dev, TEST_COMMON + 20, 1, 3);
    test_bar_write(dev, TEST_COMMON + 20, 1, 3 | VIRTIO_STATUS_FEATURES_OK);
    g_assert_cmpuint(test_status(dev), ==, 3);
    test_bar_write(dev, TEST_COMMON + 20, 1, 3 | VIRTIO_STATUS_DRIVER_OK);
    g_assert_cmpuint(test_status(dev), ==, 3);
    g_assert_true(test_negotiate(dev, ring_features));
    /* Features are settled now. */
    test_bar_write(dev, TEST_COMMON + 8, 4, 0);
    test_bar_write(dev, TEST_COMMON + 12, 4, 0);
    g_assert_cmphex(test_bar_read(dev, TEST_COMMON + 12, 4), ==, (uint32_t)ring_features);
    test_machine_free(m);
}

static void test_registers(void)
{
    Machine *m = test_machine_new(RAM, 1);
    Device *dev = new_device(m, &virtio_rng_type.base, NULL);
    g_assert_true(test_negotiate(dev, 0));
    g_assert_cmpuint(test_bar_read(dev, TEST_COMMON + 18, 2), ==, 1); /* num_queues */
    g_assert_cmpuint(test_bar_read(dev, TEST_COMMON + 24, 2), ==, 8); /* queue_size */
    g_assert_cmphex(test_bar_read(dev, TEST_COMMON + 26, 2), ==, 0xffff);
    test_bar_write(dev, TEST_COMMON + 26, 2, 2); /* beyond the table: NO_VECTOR */
    g_assert_cmphex(test_bar_read(dev, TEST_COMMON + 26, 2), ==, 0xffff);
    test_bar_write(dev, TEST_COMMON + 26, 2, 1);
    g_assert_cmphex(test_bar_read(dev, TEST_COMMON + 26, 2), ==, 1);
    test_bar_write(dev, TEST_COMMON + 32, 4, 0x89abcdef);
    test_bar_write(dev, TEST_COMMON + 36, 4, 0x01234567);
    g_assert_cmphex(test_bar_read(dev, TEST_COMMON + 32, 4), ==, 0x89abcdef);
    g_assert_cmphex(test_bar_read(dev, TEST_COMMON + 36, 2), ==, 0x4567);
    test_bar_write(dev, TEST_COMMON + 32, 1, 0); /* not the field's width */
    g_assert_cmphex(test_bar_read(dev, TEST_COMMON + 32, 4), ==, 0x89abcdef);
    /* A queue that is not there. */
    test_bar_write(dev, TEST_COMMON + 22, 2, 1);
    g_assert_cmpuint(test_bar_read(dev, TEST_COMMON + 24, 2), ==, 0);
    test_bar_write(dev, TEST_COMMON + 28, 2, 1);
    g_assert_cmpuint(test_bar_read(dev, TEST_COMMON + 28, 2), ==, 0);
    test_machine_free(m);
}

static unsigned find_window(Device *dev)
{
    const uint8_t *config = ((PciDevice *)dev)->config;
    for (unsigned at = config[0x34]; at; at = config[at + 1])
        if (config[at] == 9 && config[at + 3] == 5)
            return at;
    g_assert_not_reached();
}

/* 4.1.4.9: registers by configuration space. */
static void test_config_window(void)
{
    Machine *m = test_machine_new(RAM, 1);
    Device *dev = new_device(m, &virtio_rng_type.base, NULL);
    unsigned cap = find_window(dev);
    test_config_write(dev, cap + 4, 1, 4);
    test_config_write(dev, cap + 8, 4, TEST_COMMON + 20);
    test_config_write(dev, cap + 12, 4, 1);
    test_config_write(dev, cap + 16, 4, 3);
    g_assert_cmpuint(test_status(dev), ==, 3);
    g_assert_cmpuint(test_config_read(dev, cap + 16, 1), ==, 3);
    /* Windows that point at nothing. */
    test_config_write(dev, cap + 8, 4, 0xfffffffc);
    test_config_write(dev, cap + 12, 4, 4);
    test_config_write(dev, cap + 16, 4, 0);
    test_config_write(dev, cap + 8, 4, TEST_COMMON + 20);
    test_config_write(dev, cap + 12, 4, 3);
    test_config_write(dev, cap + 16, 4, 0);
    g_assert_cmpuint(test_status(dev), ==, 3);
    test_machine_free(m);
}

static void test_bad_queue_address(void)
{
    Machine *m = test_machine_new(RAM, 1);
    Device *dev = new_device(m, &virtio_rng_type.base, NULL);
    g_assert_true(test_negotiate(dev, 0));
    test_bar_write(dev, TEST_COMMON + 20, 1, test_status(dev) | VIRTIO_STATUS_DRIVER_OK);
    test_bar_write(dev, TEST_COMMON + 36, 4, 0xffffffff);
    test_bar_write(dev, TEST_COMMON + 28, 2, 1);
    g_assert_true(test_status(dev) & VIRTIO_STATUS_NEEDS_RESET);
    g_assert_cmpuint(test_interrupts(dev, 0), ==, 1); /* told as a configuration change */
    g_assert_true(test_negotiate(dev, 0));            /* a reset cures it */
    test_machine_free(m);
}

static void test_intx_fallback(void)
{
    Machine *m = test_machine_new(RAM, 1);
    Device *dev = new_device(m, &virtio_rng_type.base, NULL);
    TestQueue q;
    start(dev, 0, &q, 1);
    test_msix_enable(dev, false);
    test_add(&q, &(TestBuffer){DATA, 16, true}, 1);
    test_kick(&q);
    g_assert_true(test_intx(dev));
    g_assert_cmpuint(test_bar_read(dev, TEST_ISR, 1), ==, 1);
    g_assert_false(test_intx(dev));
    g_assert_cmpuint(test_bar_read(dev, TEST_ISR, 1), ==, 0);
    test_check_dirty(m);
    test_machine_free(m);
}

static void test_paused(void)
{
    Machine *m = test_machine_new(RAM, 1);
    Device *dev = new_device(m, &virtio_rng_type.base, NULL);
    TestQueue q;
    start(dev, 0, &q, 1);
    test_machine_set_status(m, MACHINE_PAUSED);
    test_add(&q, &(TestBuffer){DATA, 16, true}, 1);
    test_kick(&q);
    g_assert_false(test_used(&q, NULL, NULL));
    test_machine_set_status(m, MACHINE_RUNNING);
    test_run(m, 0);
    g_assert_true(test_used(&q, NULL, NULL));
    test_machine_free(m);
}

static void test_queue_reset(void)
{
    Machine *m = test_machine_new(RAM, 1);
    Device *dev = new_device(m, &virtio_rng_type.base, NULL);
    TestQueue q;
    start(dev, VIRTIO_BIT(VIRTIO_F_RING_RESET), &q, 1);
    test_bar_write(dev, TEST_COMMON + 58, 2, 1);
    g_assert_cmpuint(test_bar_read(dev, TEST_COMMON + 58, 2), ==, 0);
    g_assert_cmpuint(test_bar_read(dev, TEST_COMMON + 28, 2), ==, 0);
    test_queue_setup(&q, dev, 0, RINGS + RING_SPACE);
    test_add(&q, &(TestBuffer){DATA, 16, true}, 1);
    test_kick(&q);
    g_assert_true(test_used(&q, NULL, NULL));
    test_machine_free(m);
}

/* Saved in the middle of work, loaded into another machine with the same memory. */
static void test_state(void)
{
    Machine *m = test_machine_new(RAM, 1);
    Device *dev = new_device(m, &virtio_rng_type.base, NULL);
    TestQueue q;
    start(dev, ring_features, &q, 1);
    test_add(&q, &(TestBuffer){DATA, 16, true}, 1);
    test_kick(&q);
    g_assert_true(test_used(&q, NULL, NULL));
    g_autoptr(GByteArray) saved = g_byte_array_new();
    state_save(dev->type->state, dev, saved);

    Machine *m2 = test_machine_new(RAM, 1);
    Device *dev2 = new_device(m2, &virtio_rng_type.base, NULL);
    test_ram_write(m2, 0, test_ram(m, 0), RAM);
    size_t used = 0;
    GError *err = NULL;
    g_assert_true(state_load(dev2->type->state, dev2, saved->data, saved->len, &used, &err));
    g_assert_true(dev2->type->state_loaded(dev2, &err));
    g_assert_no_error(err);
    g_autoptr(GByteArray) again = g_byte_array_new();
    state_save(dev2->type->state, dev2, again);
    g_assert_cmpmem(saved->data, saved->len, again->data, again->len);
    TestQueue q2 = q;
    q2.dev = dev2;
    test_msix_enable(dev2, true);
    test_add(&q2, &(TestBuffer){DATA, 16, true}, 1);
    test_kick(&q2);
    g_assert_true(test_used(&q2, NULL, NULL));

    /* What cannot be is refused. */
    ((VirtioDevice *)dev2)->queues[0].desc_gpa = RAM;
    g_assert_false(dev2->type->state_loaded(dev2, &err));
    g_clear_error(&err);
    ((VirtioDevice *)dev2)->driver_features = UINT64_MAX;
    g_assert_false(dev2->type->state_loaded(dev2, &err));
    g_clear_error(&err);
    test_machine_free(m);
    test_machine_free(m2);
}

/* ---- rng ---- */

static void test_rng(void)
{
    Machine *m = test_machine_new(RAM, 1);
    Device *dev = new_device(m, &virtio_rng_type.base, "max-bytes=100,period=10");
    TestQueue q;
    uint32_t head, written;
    start(dev, ring_features, &q, 1);
    uint16_t first = test_add(&q, &(TestBuffer){DATA, 64, true}, 1);
    test_add(&q, &(TestBuffer){DATA + 0x100, 64, true}, 1);
    test_add(&q, &(TestBuffer){DATA + 0x200, 64, true}, 1);
    test_kick(&q);
    g_assert_true(test_used(&q, &head, &written));
    g_assert_cmpuint(head, ==, first);
    g_assert_cmpuint(written, ==, 64);
    uint8_t zero[64] = {0};
    g_assert_true(memcmp(test_ram(m, DATA), zero, 64) != 0);
    g_assert_true(test_used(&q, NULL, &written));
    g_assert_cmpuint(written, ==, 36); /* the quota */
    g_assert_false(test_used(&q, NULL, NULL));
    test_clock_advance(m, 10 * 1000000);
    test_run(m, 0);
    g_assert_true(test_used(&q, NULL, &written));
    g_assert_cmpuint(written, ==, 64);
    g_assert_cmpuint(test_interrupts(dev, 1), >=, 1);
    test_check_dirty(m);
    test_machine_free(m);
}

/* A device that is not bus master leaves memory alone, and forgets no doorbell. */
static void test_bus_master(void)
{
    Machine *m = test_machine_new(RAM, 1);
    Device *dev = new_device(m, &virtio_rng_type.base, "max-bytes=0");
    TestQueue q;
    start(dev, ring_features, &q, 1);
    test_config_write(dev, 4, 2, 0);
    test_add(&q, &(TestBuffer){DATA, 64, true}, 1);
    test_kick(&q);
    g_assert_false(test_used(&q, NULL, NULL));
    test_config_write(dev, 4, 2, 4);
    test_run(m, 0);
    g_assert_true(test_used(&q, NULL, NULL));
    test_machine_free(m);
}

/* ---- blk ---- */

enum { T_IN = 0, T_OUT = 1, T_FLUSH = 4, T_GET_ID = 8, T_DISCARD = 11, T_WRITE_ZEROES = 13 };
enum { BLK_FLUSH = 9, BLK_CONFIG_WCE = 11, BLK_MQ = 12, BLK_RO = 5 };

/* Queues one request with its own header and status. */
static void blk_add(TestQueue *q, unsigned slot, uint32_t type, uint64_t sector, uint64_t gpa,
                    uint32_t size)
{
    Machine *m = q->dev->machine;
    uint8_t header[16] = {0};
    le32_put(header, type);
    le64_put(header + 8, sector);
    test_ram_write(m, HEADER + 16ull * slot, header, sizeof(header));
    test_ram_write(m, STATUS + slot, "\xff", 1);
    bool in = type == T_IN || type == T_GET_ID;
    TestBuffer buffers[3] = {
        {HEADER + 16ull * slot, 16, false}, {gpa, size, in}, {STATUS + slot, 1, true}};
    if (!size)
        buffers[1] = buffers[2];
    if (((VirtioDevice *)q->dev)->driver_features & VIRTIO_BIT(VIRTIO_F_RING_INDIRECT_DESC))
        test_add_indirect(q, TABLE + 64ull * slot, buffers, size ? 3 : 2);
    else
        test_add(q, buffers, size ? 3 : 2);
}

static uint8_t blk_do(TestQueue *q, uint32_t type, uint64_t sector, uint64_t gpa, uint32_t size)
{
    blk_add(q, 0, type, sector, gpa, size);
    test_kick(q);
    g_assert_true(test_used(q, NULL, NULL));
    return *test_ram(q->dev->machine, STATUS);
}

static void test_blk(void)
{
    Machine *m = test_machine_new(RAM, 1);
    TestDisk *disk = test_disk(m, MIB(1) + 100, "serial=S123");
    Device *dev = new_device(m, &virtio_blk_type.base, "drive=disk0");
    TestQueue q;
    for (unsigned i = 0; i < MIB(1); i++)
        disk->data[i] = (uint8_t)(i / 512 + i);
    g_assert_false(test_features(dev) & VIRTIO_BIT(BLK_MQ));
    g_assert_cmpuint(test_bar_read(dev, TEST_DEVICE, 4), ==, MIB(1) / 512);
    start(dev, ring_features | VIRTIO_BIT(BLK_FLUSH) | VIRTIO_BIT(BLK_CONFIG_WCE), &q, 1);

    g_assert_cmpuint(blk_do(&q, T_IN, 3, DATA, 4096), ==, 0);
    g_assert_cmpmem(test_ram(m, DATA), 4096, disk->data + 3 * 512, 4096);
    g_assert_cmpuint(blk_do(&q, T_OUT, 100, DATA, 4096), ==, 0);
    g_assert_cmpmem(disk->data + 100 * 512, 4096, disk->data + 3 * 512, 4096);
    g_assert_cmpuint(disk->fua, ==, 0);
    g_assert_cmpuint(blk_do(&q, T_FLUSH, 0, 0, 0), ==, 0);
    g_assert_cmpuint(disk->flushes, ==, 1);
    g_assert_cmpuint(blk_do(&q, T_GET_ID, 0, DATA, 20), ==, 0);
    g_assert_cmpstr((char *)test_ram(m, DATA), ==, "S123");
    g_assert_cmpuint(blk_do(&q, 99, 0, DATA, 512), ==, 2);

    /* The driver switches the write cache off: every write is durable. */
    test_bar_write(dev, TEST_DEVICE + 32, 1, 0);
    g_assert_cmpuint(blk_do(&q, T_OUT, 0, DATA, 512), ==, 0);
    g_assert_cmpuint(disk->fua, ==, 1);

    /* Errors. */
    g_assert_cmpuint(blk_do(&q, T_IN, MIB(1) / 512 - 1, DATA, 1024), ==, 1);
    g_assert_cmpuint(blk_do(&q, T_IN, UINT64_MAX, DATA, 512), ==, 1);
    g_assert_cmpuint(blk_do(&q, T_IN, 0, DATA, 100), ==, 1);
    g_assert_cmpuint(blk_do(&q, T_OUT, 0, 0, 0), ==, 1);
    disk->fail = -5;
    g_assert_cmpuint(blk_do(&q, T_IN, 0, DATA, 512), ==, 1);
    g_assert_cmpuint(blk_do(&q, T_FLUSH, 0, 0, 0), ==, 1);
    disk->fail = 0;
    test_check_dirty(m);
    test_machine_free(m);
}

static uint8_t blk_range(TestQueue *q, uint32_t type, uint64_t sector, uint32_t count,
                         uint32_t flags, unsigned repeat)
{
    uint8_t raw[32 * 16];
    for (unsigned i = 0; i < repeat; i++) {
        le64_put(raw + 16 * i, sector + i * 8ull);
        le32_put(raw + 16 * i + 8, count);
        le32_put(raw + 16 * i + 12, flags);
    }
    test_ram_write(q->dev->machine, DATA, raw, 16 * repeat);
    return blk_do(q, type, 0, DATA, 16 * repeat);
}

static void test_blk_ranges(void)
{
    Machine *m = test_machine_new(RAM, 1);
    TestDisk *disk = test_disk(m, MIB(1), "discard=unmap");
    Device *dev = new_device(m, &virtio_blk_type.base, "drive=disk0");
    TestQueue q;
    start(dev, 0, &q, 1); /* neither indirect nor FLUSH: writes go through */
    memset(disk->data, 0x55, MIB(1));
    g_assert_cmpuint(blk_range(&q, T_WRITE_ZEROES, 8, 8, 1, 3), ==, 0);
    g_assert_cmpuint(disk->zeroes, ==, 3);
    g_assert_cmpuint(disk->fua, ==, 3);
    g_assert_cmpuint(disk->data[8 * 512 - 1], ==, 0x55);
    g_assert_cmpuint(disk->data[8 * 512], ==, 0);
    g_assert_cmpuint(disk->data[32 * 512 - 1], ==, 0);
    g_assert_cmpuint(disk->data[32 * 512], ==, 0x55);
    g_assert_cmpuint(blk_range(&q, T_DISCARD, 8, 8, 0, 16), ==, 0);
    g_assert_cmpuint(disk->discards, ==, 16);
    g_assert_cmpuint(blk_range(&q, T_DISCARD, 8, 8, 1, 1), ==, 2);          /* unmap flag */
    g_assert_cmpuint(blk_range(&q, T_WRITE_ZEROES, 8, 8, 2, 1), ==, 2);     /* reserved flag */
    g_assert_cmpuint(blk_range(&q, T_DISCARD, 8, 8, 0, 17), ==, 1);         /* too many */
    g_assert_cmpuint(blk_range(&q, T_DISCARD, 2040, 16, 0, 1), ==, 1);      /* past the end */
    g_assert_cmpuint(blk_range(&q, T_DISCARD, UINT64_MAX, 8, 0, 1), ==, 1); /* wraps */
    g_assert_cmpuint(blk_do(&q, T_DISCARD, 0, DATA, 24), ==, 1);            /* half a range */
    test_check_dirty(m);
    test_machine_free(m);
}

static void test_blk_read_only(void)
{
    Machine *m = test_machine_new(RAM, 1);
    TestDisk *disk = test_disk(m, MIB(1), NULL);
    disk->read_only = true;
    Device *dev = new_device(m, &virtio_blk_type.base, "drive=disk0");
    TestQueue q;
    g_assert_true(test_features(dev) & VIRTIO_BIT(BLK_RO));
    start(dev, VIRTIO_BIT(BLK_RO), &q, 1);
    g_assert_cmpuint(blk_do(&q, T_OUT, 0, DATA, 512), ==, 1);
    g_assert_cmpuint(blk_range(&q, T_WRITE_ZEROES, 0, 8, 0, 1), ==, 1);
    g_assert_cmpuint(disk->writes + disk->zeroes, ==, 0);
    test_machine_free(m);
}

static void test_blk_multi_queue(void)
{
    Machine *m = test_machine_new(RAM, 4);
    test_disk(m, MIB(1), NULL);
    Device *dev = new_device(m, &virtio_blk_type.base, "drive=disk0,queue-size=16");
    TestQueue q[4];
    g_assert_true(test_features(dev) & VIRTIO_BIT(BLK_MQ));
    g_assert_cmpuint(test_bar_read(dev, TEST_DEVICE + 34, 2), ==, 4);
    start(dev, ring_features | VIRTIO_BIT(BLK_MQ), q, 4);
    for (unsigned i = 0; i < 4; i++) {
        g_assert_cmpuint(blk_do(&q[i], T_OUT, i, DATA, 512), ==, 0);
        g_assert_cmpuint(test_interrupts(dev, i + 1), ==, 1);
    }
    test_machine_free(m);
}

/* More requests than the depth (heads used twice), and a reset while they are in flight. */
static void test_blk_depth_and_reset(void)
{
    Machine *m = test_machine_new(RAM, 1);
    TestDisk *disk = test_disk(m, MIB(1), NULL);
    Device *dev = new_device(m, &virtio_blk_type.base, "drive=disk0,queue-size=4");
    TestQueue q;
    start(dev, VIRTIO_BIT(VIRTIO_F_RING_INDIRECT_DESC), &q, 1);
    disk->hold = true;
    for (unsigned i = 0; i < 4; i++)
        blk_add(&q, i, T_IN, i, DATA + 512ull * i, 512);
    test_bar_write(dev, TEST_NOTIFY, 2, 0);
    test_run(m, 10);
    for (unsigned i = 0; i < 4; i++) /* the double aborts if the depth were passed */
        blk_add(&q, 4 + i, T_IN, i, DATA + 512ull * i, 512);
    test_bar_write(dev, TEST_NOTIFY, 2, 0);
    test_run(m, 10);
    g_assert_false(test_used(&q, NULL, NULL));
    disk->hold = false;
    test_run(m, 0);
    for (unsigned i = 0; i < 8; i++)
        g_assert_true(test_used(&q, NULL, NULL));

    disk->hold = true;
    blk_add(&q, 0, T_IN, 0, DATA, 512);
    test_bar_write(dev, TEST_NOTIFY, 2, 0);
    test_run(m, 10);
    test_bar_write(dev, TEST_COMMON + 20, 1, 0);
    g_assert_cmpuint(test_status(dev), !=, 0); /* not over yet */
    test_run(m, 100);
    g_assert_cmpuint(test_status(dev), ==, 0);
    disk->hold = false;
    start(dev, 0, &q, 1);
    g_assert_cmpuint(blk_do(&q, T_IN, 0, DATA, 512), ==, 0);
    test_check_dirty(m);
    test_machine_free(m);
}

static void test_blk_hostile(void)
{
    Machine *m = test_machine_new(RAM, 1);
    test_disk(m, MIB(1), NULL);
    Device *dev = new_device(m, &virtio_blk_type.base, "drive=disk0");
    TestQueue q;
    const TestBuffer no_status[] = {{HEADER, 16, false}};
    const TestBuffer short_header[] = {{HEADER, 15, false}, {STATUS, 1, true}};
    start(dev, ring_features, &q, 1);
    test_add(&q, no_status, 1);
    blk_add(&q, 0, T_IN, 0, DATA, 512); /* a good one behind it is not looked at */
    test_kick(&q);
    g_assert_false(test_used(&q, NULL, NULL));
    g_assert_true(test_status(dev) & VIRTIO_STATUS_NEEDS_RESET);
    g_assert_cmpuint(test_interrupts(dev, 0), ==, 1);
    test_add(&q, short_header, 2); /* nothing is looked at any more */
    test_kick(&q);
    g_assert_false(test_used(&q, NULL, NULL));
    start(dev, ring_features, &q, 1);
    test_add(&q, short_header, 2);
    test_kick(&q);
    g_assert_true(test_status(dev) & VIRTIO_STATUS_NEEDS_RESET);
    start(dev, ring_features, &q, 1);
    test_set_descriptor(&q, 0, HEADER, 16, 1, 0); /* a loop */
    test_publish(&q, 0);
    test_kick(&q);
    g_assert_true(test_status(dev) & VIRTIO_STATUS_NEEDS_RESET);
    start(dev, ring_features, &q, 1);
    g_assert_cmpuint(blk_do(&q, T_IN, 0, DATA, 512), ==, 0);
    test_machine_free(m);
}

static void test_blk_options(void)
{
    Machine *m = test_machine_new(RAM, 1);
    test_disk(m, MIB(1), "cache=writethrough");
    GError *err = NULL;
    static const char *const bad[] = {"drive=nothing", "drive=disk0,queue-size=100",
                                      "drive=disk0,logical-block-size=768"};
    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_assert_null(test_device_new(m, &virtio_blk_type.base, bad[i], &err));
        g_assert_nonnull(err);
        g_clear_error(&err);
    }
    Device *dev = new_device(m, &virtio_blk_type.base,
                             "drive=disk0,logical-block-size=512,physical-block-size=4096");
    g_assert_cmpuint(test_bar_read(dev, TEST_DEVICE + 20, 4), ==, 512);
    g_assert_cmpuint(test_bar_read(dev, TEST_DEVICE + 24, 1), ==, 3);
    g_assert_cmpuint(test_bar_read(dev, TEST_DEVICE + 32, 1), ==, 0); /* writethrough */
    g_assert_null(test_device_new(m, &virtio_blk_type.base, "drive=disk0", &err)); /* taken */
    g_clear_error(&err);
    test_machine_free(m);
}

/* ---- net ---- */

enum { NET_MRG = 15, NET_MAC = 5 };

static void test_net_transmit(void)
{
    Machine *m = test_machine_new(RAM, 1);
    TestNet *net = test_net(m);
    Device *dev =
        new_device(m, &virtio_net_type.base, "netdev=net0,mac=52:54:00:aa:bb:0c,mtu=9000");
    TestQueue q[2];
    const uint8_t mac[6] = {0x52, 0x54, 0x00, 0xaa, 0xbb, 0x0c};
    for (unsigned i = 0; i < 6; i++)
        g_assert_cmphex(test_bar_read(dev, TEST_DEVICE + i, 1), ==, mac[i]);
    g_assert_cmpuint(test_bar_read(dev, TEST_DEVICE + 10, 2), ==, 9000);
    start(dev, ring_features | VIRTIO_BIT(NET_MAC), q, 2);
    test_ram_write(m, DATA + 12, "hello, ", 7);
    test_ram_write(m, DATA + 0x100, "wire", 4);
    const TestBuffer frame[] = {{DATA, 19, false}, {DATA + 0x100, 4, false}};
    for (unsigned i = 0; i < 300; i++) { /* more than the budget of a turn */
        test_add(&q[1], frame, 2);
        if (i % 100 == 99)
            test_kick(&q[1]);
    }
    g_assert_cmpuint(net->frames, ==, 300);
    g_assert_cmpmem(net->sent->data, 11, "hello, wire", 11);
    const TestBuffer too_short[] = {{DATA, 11, false}};
    test_add(&q[1], too_short, 1);
    test_kick(&q[1]);
    g_assert_true(test_status(dev) & VIRTIO_STATUS_NEEDS_RESET);
    test_check_dirty(m);
    test_machine_free(m);
}

static void test_net_receive_merged(void)
{
    Machine *m = test_machine_new(RAM, 1);
    test_net(m);
    Device *dev = new_device(m, &virtio_net_type.base, "netdev=net0");
    TestQueue q[2];
    uint32_t head, written;
    uint8_t frame[1500];
    for (unsigned i = 0; i < sizeof(frame); i++)
        frame[i] = (uint8_t)(i * 7);
    start(dev, ring_features | VIRTIO_BIT(NET_MRG), q, 2);
    test_net_receive(m, frame, sizeof(frame)); /* no buffers yet: held */
    for (unsigned i = 0; i < 4; i++)
        test_add(&q[0], &(TestBuffer){DATA + 0x1000ull * i, 600, true}, 1);
    test_kick(&q[0]);
    g_assert_true(test_used(&q[0], &head, &written));
    g_assert_cmpuint(written, ==, 600);
    g_assert_cmpuint(le16_get(test_ram(m, DATA + 10)), ==, 3); /* num_buffers */
    g_assert_cmpmem(test_ram(m, DATA + 12), 588, frame, 588);
    g_assert_true(test_used(&q[0], NULL, &written));
    g_assert_cmpmem(test_ram(m, DATA + 0x1000), 600, frame + 588, 600);
    g_assert_true(test_used(&q[0], NULL, &written));
    g_assert_cmpuint(written, ==, 312);
    g_assert_false(test_used(&q[0], NULL, NULL));
    g_assert_cmpuint(test_interrupts(dev, 1), ==, 1);
    /* One buffer is left: too little, so the frame is lost and the buffer stays. */
    test_net_receive(m, frame, sizeof(frame));
    g_assert_false(test_used(&q[0], NULL, NULL));
    test_net_receive(m, frame, 60);
    g_assert_true(test_used(&q[0], NULL, &written));
    g_assert_cmpuint(written, ==, 72);
    test_check_dirty(m);
    test_machine_free(m);
}

static void test_net_receive_plain(void)
{
    Machine *m = test_machine_new(RAM, 1);
    test_net(m);
    Device *dev = new_device(m, &virtio_net_type.base, "netdev=net0");
    TestQueue q[2];
    uint32_t written;
    uint8_t frame[1514] = {1, 2, 3};
    start(dev, 0, q, 2);
    test_add(&q[0], &(TestBuffer){DATA, 1526, true}, 1);
    test_kick(&q[0]);
    test_net_receive(m, frame, sizeof(frame));
    g_assert_true(test_used(&q[0], NULL, &written));
    g_assert_cmpuint(written, ==, 1526);
    g_assert_cmpuint(le16_get(test_ram(m, DATA + 10)), ==, 1);
    test_add(&q[0], &(TestBuffer){DATA, 8, true}, 1); /* shorter than the header */
    test_kick(&q[0]);
    test_net_receive(m, frame, 60);
    g_assert_false(test_used(&q[0], NULL, NULL));
    test_check_dirty(m);
    test_machine_free(m);
}

static void test_net_options(void)
{
    Machine *m = test_machine_new(RAM, 1);
    test_net(m);
    GError *err = NULL;
    static const char *const bad[] = {"netdev=other", "netdev=net0,mac=01:00:00:00:00:00",
                                      "netdev=net0,queue-size=17"};
    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_assert_null(test_device_new(m, &virtio_net_type.base, bad[i], &err));
        g_assert_nonnull(err);
        g_clear_error(&err);
    }
    new_device(m, &virtio_net_type.base, "netdev=net0");
    g_assert_null(test_device_new(m, &virtio_net_type.base, "netdev=net0", &err));
    g_clear_error(&err);
    test_machine_free(m);
}

/* ---- serial ---- */

enum {
    MULTIPORT = 1,
    EV_READY = 0,
    EV_ADD = 1,
    EV_PORT_READY = 3,
    EV_CONSOLE = 4,
    EV_RESIZE = 5,
    EV_OPEN = 6,
    EV_NAME = 7
};

static void control(TestQueue *tx, uint32_t port, uint16_t event, uint16_t value)
{
    uint8_t raw[8];
    le32_put(raw, port);
    le16_put(raw + 4, event);
    le16_put(raw + 6, value);
    test_ram_write(tx->dev->machine, HEADER, raw, sizeof(raw));
    test_add(tx, &(TestBuffer){HEADER, 8, false}, 1);
    test_kick(tx);
    g_assert_true(test_used(tx, NULL, NULL));
}

static void expect_control(TestQueue *rx, uint32_t port, uint16_t event, uint16_t value,
                           const char *extra)
{
    uint32_t head, written;
    g_assert_true(test_used(rx, &head, &written));
    const uint8_t *raw = test_ram(rx->dev->machine, DATA + 0x100000 + 0x100 * head);
    g_assert_cmpuint(le32_get(raw), ==, port);
    g_assert_cmpuint(le16_get(raw + 4), ==, event);
    g_assert_cmpuint(le16_get(raw + 6), ==, value);
    if (extra)
        g_assert_cmpstr((const char *)raw + 8, ==, extra);
}

static void give_buffers(TestQueue *rx, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        test_add(rx, &(TestBuffer){DATA + 0x100000 + 0x100ull * rx->next_desc, 0x100, true}, 1);
    test_kick(rx);
}

static void test_serial(void)
{
    Machine *m = test_machine_new(RAM, 1);
    TestChardev *con = test_chardev(m, "con", true), *agent = test_chardev(m, "agent", false);
    Device *dev = new_device(m, &virtio_serial_type.base, "max-ports=4");
    new_device(m, &virtconsole_type, "chardev=con,columns=132,rows=43");
    new_device(m, &virtserialport_type, "chardev=agent,name=org.qemu.guest_agent.0,nr=2");
    TestQueue q[10];
    start(dev, ring_features | VIRTIO_BIT(MULTIPORT), q, 10);
    give_buffers(&q[2], 8);
    control(&q[3], UINT32_MAX, EV_READY, 1);
    expect_control(&q[2], 0, EV_ADD, 1, NULL);
    expect_control(&q[2], 2, EV_ADD, 1, NULL);
    control(&q[3], 0, EV_PORT_READY, 1);
    expect_control(&q[2], 0, EV_CONSOLE, 1, NULL);
    expect_control(&q[2], 0, EV_RESIZE, 0, NULL);
    expect_control(&q[2], 0, EV_OPEN, 1, NULL);
    control(&q[3], 2, EV_PORT_READY, 1);
    expect_control(&q[2], 2, EV_NAME, 1, "org.qemu.guest_agent.0");
    g_assert_false(test_used(&q[2], NULL, NULL)); /* nobody there yet */
    test_chardev_open(m, "agent", true);
    expect_control(&q[2], 2, EV_OPEN, 1, NULL);
    control(&q[3], 9, EV_OPEN, 1); /* no such port */

    /* Output, then input that waits until the guest has opened the port and given room. */
    test_ram_write(m, DATA, "from the guest", 14);
    test_add(&q[7], &(TestBuffer){DATA, 14, false}, 1);
    test_kick(&q[7]);
    g_assert_cmpmem(agent->output->data, agent->output->len, "from the guest", 14);
    g_assert_cmpuint(con->output->len, ==, 0);
    test_chardev_input(m, "agent", "0123456789", 10);
    test_add(&q[6], &(TestBuffer){DATA, 6, true}, 1);
    test_kick(&q[6]);
    g_assert_false(test_used(&q[6], NULL, NULL));
    control(&q[3], 2, EV_OPEN, 1);
    uint32_t written;
    g_assert_true(test_used(&q[6], NULL, &written));
    g_assert_cmpuint(written, ==, 6);
    test_add(&q[6], &(TestBuffer){DATA + 6, 6, true}, 1);
    test_kick(&q[6]);
    g_assert_cmpmem(test_ram(m, DATA), 10, "0123456789", 10);
    test_chardev_open(m, "agent", false);
    expect_control(&q[2], 2, EV_OPEN, 0, NULL);
    test_bar_write(dev, TEST_DEVICE + 8, 4, '!'); /* emergency write: the console */
    g_assert_cmpmem(con->output->data, con->output->len, "!", 1);
    test_check_dirty(m);
    test_machine_free(m);
}

/* A driver without MULTIPORT has port 0 only, and no control queues. */
static void test_serial_plain(void)
{
    Machine *m = test_machine_new(RAM, 1);
    TestChardev *con = test_chardev(m, "con", true);
    Device *dev = new_device(m, &virtio_serial_type.base, NULL);
    new_device(m, &virtconsole_type, "chardev=con");
    TestQueue q[2];
    start(dev, 0, q, 2);
    test_ram_write(m, DATA, "hi", 2);
    test_add(&q[1], &(TestBuffer){DATA, 2, false}, 1);
    test_kick(&q[1]);
    g_assert_cmpmem(con->output->data, con->output->len, "hi", 2);
    test_add(&q[0], &(TestBuffer){DATA, 10, true}, 1);
    test_kick(&q[0]);
    test_chardev_input(m, "con", "yes", 3);
    g_assert_cmpmem(test_ram(m, DATA), 3, "yes", 3);
    test_machine_free(m);
}

/* A driver that asks for the port list for ever and takes no answer. */
static void test_serial_hostile(void)
{
    Machine *m = test_machine_new(RAM, 1);
    Device *dev = new_device(m, &virtio_serial_type.base, "max-ports=3");
    new_device(m, &virtconsole_type, NULL);
    new_device(m, &virtserialport_type, NULL);
    TestQueue q[4];
    start(dev, VIRTIO_BIT(MULTIPORT), q, 4);
    for (unsigned i = 0; i < 500; i++)
        control(&q[3], 0, EV_READY, 1);
    give_buffers(&q[2], 4);
    expect_control(&q[2], 0, EV_ADD, 1, NULL);
    expect_control(&q[2], 1, EV_ADD, 1, NULL);
    test_check_dirty(m);
    test_machine_free(m);
}

static void test_serial_options(void)
{
    Machine *m = test_machine_new(RAM, 1);
    GError *err = NULL;
    g_assert_null(test_device_new(m, &virtconsole_type, NULL, &err)); /* no bus */
    g_clear_error(&err);
    new_device(m, &virtio_serial_type.base, "max-ports=2");
    static const char *const bad[] = {
        "nr=0", "nr=2", "bus=other", "chardev=none",
        "name=0123456789012345678901234567890123456789012345678901234567890123"};
    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_assert_null(test_device_new(m, &virtserialport_type, bad[i], &err));
        g_assert_nonnull(err);
        g_clear_error(&err);
    }
    new_device(m, &virtserialport_type, NULL);
    g_assert_null(test_device_new(m, &virtserialport_type, NULL, &err)); /* full */
    g_clear_error(&err);
    test_machine_free(m);
}

/* ---- balloon ---- */

static void test_balloon(void)
{
    Machine *m = test_machine_new(RAM, 1);
    Device *dev =
        new_device(m, &virtio_balloon_type.base, "stats-interval=2,free-page-reporting=on");
    TestQueue q[4];
    GError *err = NULL;
    uint64_t bytes;
    start(dev, ring_features | VIRTIO_BIT(1) | VIRTIO_BIT(5), q, 4);
    g_assert_true(machine_balloon_set(m, RAM - 3 * 4096, &err));
    g_assert_cmpuint(test_interrupts(dev, 0), ==, 1);
    g_assert_cmpuint(test_bar_read(dev, TEST_DEVICE, 4), ==, 3);

    /* Inflate: two neighbours, one apart, one outside RAM. */
    const uint64_t page = 0x300000;
    for (unsigned i = 0; i < 8; i++)
        test_ram_write(m, page + i * 4096, "data", 4);
    uint8_t list[16];
    le32_put(list, (uint32_t)(page >> 12));
    le32_put(list + 4, (uint32_t)(page >> 12) + 1);
    le32_put(list + 8, (uint32_t)(page >> 12) + 4);
    le32_put(list + 12, 0xffffffff);
    test_ram_write(m, DATA, list, sizeof(list));
    test_add(&q[0], &(TestBuffer){DATA, sizeof(list), false}, 1);
    test_kick(&q[0]);
    g_assert_true(test_used(&q[0], NULL, NULL));
    const bool gone[] = {true, true, false, false, true, false};
    for (unsigned i = 0; i < G_N_ELEMENTS(gone); i++)
        g_assert_cmpuint(*test_ram(m, page + i * 4096), ==, gone[i] ? 0 : 'd');
    test_bar_write(dev, TEST_DEVICE + 4, 4, 3);
    g_assert_cmpuint(test_events(m, MACHINE_EVENT_BALLOON_CHANGE), ==, 1);
    g_assert_true(machine_balloon_actual(m, &bytes, &err));
    g_assert_cmpuint(bytes, ==, RAM - 3 * 4096);

    /* Steps on the way are told once a second. */
    g_assert_true(machine_balloon_set(m, RAM, &err));
    test_bar_write(dev, TEST_DEVICE + 4, 4, 2);
    test_bar_write(dev, TEST_DEVICE + 4, 4, 1);
    g_assert_cmpuint(test_events(m, MACHINE_EVENT_BALLOON_CHANGE), ==, 1);
    test_clock_advance(m, 1000000000);
    g_assert_cmpuint(test_events(m, MACHINE_EVENT_BALLOON_CHANGE), ==, 2);

    /* Free page reporting: whole pages within the range go. */
    test_add(&q[3], &(TestBuffer){page + 2 * 4096, 2 * 4096, true}, 1);
    test_kick(&q[3]);
    g_assert_true(test_used(&q[3], NULL, NULL));
    g_assert_cmpuint(*test_ram(m, page + 2 * 4096), ==, 0);
    g_assert_cmpuint(*test_ram(m, page + 3 * 4096), ==, 0);
    g_assert_cmpuint(*test_ram(m, page + 5 * 4096), ==, 'd');
    g_assert_false(machine_balloon_set(m, 0, &err));
    g_clear_error(&err);
    test_check_dirty(m);
    test_machine_free(m);
}

static void test_balloon_stats(void)
{
    Machine *m = test_machine_new(RAM, 1);
    Device *dev = new_device(m, &virtio_balloon_type.base, "stats-interval=2");
    TestQueue q[3];
    MachineBalloonStats stats;
    GError *err = NULL;
    start(dev, VIRTIO_BIT(1), q, 3);
    g_assert_false(machine_balloon_stats(m, &stats, &err));
    g_clear_error(&err);
    uint8_t raw[20] = {0};
    le16_put(raw, 4); /* free memory */
    le64_put(raw + 2, 123456);
    le16_put(raw + 10, 999); /* unknown: passed over */
    test_ram_write(m, DATA, raw, sizeof(raw));
    test_add(&q[2], &(TestBuffer){DATA, sizeof(raw), false}, 1);
    test_kick(&q[2]);
    g_assert_false(test_used(&q[2], NULL, NULL)); /* kept until fresh ones are wanted */
    g_assert_true(machine_balloon_stats(m, &stats, &err));
    g_assert_cmphex(stats.present, ==, 1u << 4);
    g_assert_cmpuint(stats.value[4], ==, 123456);
    test_clock_advance(m, 2000000000);
    g_assert_true(test_used(&q[2], NULL, NULL));
    test_check_dirty(m);
    test_machine_free(m);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/virtio/pci/negotiation", test_negotiation);
    g_test_add_func("/virtio/pci/registers", test_registers);
    g_test_add_func("/virtio/pci/config-window", test_config_window);
    g_test_add_func("/virtio/pci/bad-queue-address", test_bad_queue_address);
    g_test_add_func("/virtio/pci/intx", test_intx_fallback);
    g_test_add_func("/virtio/pci/paused", test_paused);
    g_test_add_func("/virtio/pci/queue-reset", test_queue_reset);
    g_test_add_func("/virtio/pci/state", test_state);
    g_test_add_func("/virtio/rng", test_rng);
    g_test_add_func("/virtio/bus-master", test_bus_master);
    g_test_add_func("/virtio/blk/requests", test_blk);
    g_test_add_func("/virtio/blk/ranges", test_blk_ranges);
    g_test_add_func("/virtio/blk/read-only", test_blk_read_only);
    g_test_add_func("/virtio/blk/multi-queue", test_blk_multi_queue);
    g_test_add_func("/virtio/blk/depth-and-reset", test_blk_depth_and_reset);
    g_test_add_func("/virtio/blk/hostile", test_blk_hostile);
    g_test_add_func("/virtio/blk/options", test_blk_options);
    g_test_add_func("/virtio/net/transmit", test_net_transmit);
    g_test_add_func("/virtio/net/receive-merged", test_net_receive_merged);
    g_test_add_func("/virtio/net/receive-plain", test_net_receive_plain);
    g_test_add_func("/virtio/net/options", test_net_options);
    g_test_add_func("/virtio/serial/ports", test_serial);
    g_test_add_func("/virtio/serial/plain", test_serial_plain);
    g_test_add_func("/virtio/serial/hostile", test_serial_hostile);
    g_test_add_func("/virtio/serial/options", test_serial_options);
    g_test_add_func("/virtio/balloon/memory", test_balloon);
    g_test_add_func("/virtio/balloon/statistics", test_balloon_stats);
    return g_test_run();
}
