/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Every virtio device under a driver that does as the input says. Byte 0 chooses the device; then
 * operations of an opcode byte and its arguments, until the input ends.
 */
#include <string.h>

#include "base/bytes.h"
#include "machine/balloon.h"
#include "machine/device/virtio/virtio-test-driver.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { RAM = 0x40000, RINGS = 0x8000, RING_SPACE = 0x4000, QUEUES = 4, OPERATIONS_MAX = 400 };

typedef struct Input {
    const uint8_t *data;
    size_t size;
} Input;

static uint64_t take(Input *in, unsigned bytes)
{
    uint64_t v = 0;
    for (unsigned i = 0; i < bytes && in->size; i++, in->data++, in->size--)
        v |= (uint64_t)*in->data << (8 * i);
    return v;
}

typedef struct Fuzz {
    Machine *m;
    Device *dev;
    TestQueue q[QUEUES];
    TestDisk *disk;
    Input in;
} Fuzz;

static void make_device(Fuzz *f, unsigned kind)
{
    f->disk = test_disk(f->m, MIB(1), "discard=unmap");
    test_chardev(f->m, "a", true);
    test_chardev(f->m, "b", false);
    test_net(f->m);
    switch (kind % 5) {
    case 0:
        f->dev = test_device_new(f->m, &virtio_blk_type.base, "drive=disk0,queue-size=16", NULL);
        break;
    case 1:
        f->dev = test_device_new(f->m, &virtio_net_type.base, "netdev=net0,queue-size=16", NULL);
        break;
    case 2:
        f->dev = test_device_new(f->m, &virtio_serial_type.base, "max-ports=3", NULL);
        test_device_new(f->m, &virtconsole_type, "chardev=a,columns=80,rows=25", NULL);
        test_device_new(f->m, &virtserialport_type, "chardev=b,name=b", NULL);
        break;
    case 3:
        f->dev = test_device_new(f->m, &virtio_rng_type.base, "max-bytes=1000,period=1", NULL);
        break;
    default:
        f->dev = test_device_new(f->m, &virtio_balloon_type.base,
                                 "free-page-reporting=on,stats-interval=1", NULL);
        break;
    }
    g_assert_nonnull(f->dev);
}

/* The whole start, so that inputs need not find it. */
static void start(Fuzz *f)
{
    uint64_t features =
        test_features(f->dev) & (take(&f->in, 1) & 1 ? UINT64_MAX : take(&f->in, 6));
    test_negotiate(f->dev, features);
    for (unsigned i = 0; i < QUEUES; i++) {
        test_bar_write(f->dev, TEST_COMMON + 22, 2, i);
        if (test_bar_read(f->dev, TEST_COMMON + 24, 2) == 0)
            break;
        test_queue_setup(&f->q[i], f->dev, i, RINGS + (uint64_t)i * RING_SPACE);
    }
    test_driver_ok(f->dev);
}

static void add_chain(Fuzz *f)
{
    TestQueue *q = &f->q[take(&f->in, 1) % QUEUES];
    TestBuffer buffers[6];
    unsigned n = 1 + take(&f->in, 1) % G_N_ELEMENTS(buffers);
    if (!q->dev)
        return;
    for (unsigned i = 0; i < n; i++) {
        uint64_t word = take(&f->in, 5);
        buffers[i] = (TestBuffer){word & 0x3ffff, (word >> 18) & 0x1fff, (word >> 38) & 1};
        if ((word >> 31 & 0x7f) == 0x55)
            buffers[i].gpa |= 0xffffffff00000000;
    }
    if (n > 3)
        test_add_indirect(q, 0x100 + (take(&f->in, 1) << 6), buffers, n);
    else
        test_add(q, buffers, n);
}

static void operate(Fuzz *f)
{
    uint8_t bytes[256];
    switch (take(&f->in, 1) % 16) {
    case 0:
        start(f);
        break;
    case 1:
    case 2:
    case 3:
        add_chain(f);
        break;
    case 4:
    case 5: {
        TestQueue *q = &f->q[take(&f->in, 1) % QUEUES];
        if (q->dev)
            test_kick(q);
        break;
    }
    case 6: { /* a register of any kind */
        uint64_t offset = take(&f->in, 2) & 0x3fff, width = 1u << (take(&f->in, 1) % 3);
        test_bar_write(f->dev, offset, (unsigned)width, take(&f->in, (unsigned)width));
        break;
    }
    case 7: {
        uint64_t offset = take(&f->in, 2) & 0x3fff;
        test_bar_read(f->dev, offset, 1u << (take(&f->in, 1) % 3));
        break;
    }
    case 8: { /* memory, rings included */
        uint64_t gpa = take(&f->in, 3) % (RAM - sizeof(bytes));
        unsigned n = (unsigned)take(&f->in, 1) % 64;
        for (unsigned i = 0; i < n; i++)
            bytes[i] = (uint8_t)take(&f->in, 1);
        test_ram_write(f->m, gpa, bytes, n);
        break;
    }
    case 9: { /* a descriptor as it comes */
        TestQueue *q = &f->q[take(&f->in, 1) % QUEUES];
        if (q->dev)
            test_set_descriptor(q, (uint16_t)(take(&f->in, 1) % q->size), take(&f->in, 3),
                                (uint32_t)take(&f->in, 2), (uint16_t)take(&f->in, 1) & 7,
                                (uint16_t)take(&f->in, 1));
        break;
    }
    case 10: {
        TestQueue *q = &f->q[take(&f->in, 1) % QUEUES];
        if (q->dev)
            test_publish(q, (uint16_t)(take(&f->in, 1) % (q->size + 1u)));
        break;
    }
    case 11:
        f->disk->hold = take(&f->in, 1) & 1;
        break;
    case 12:
        memset(bytes, 0x42, sizeof(bytes));
        test_net_receive(f->m, bytes, (size_t)take(&f->in, 1));
        test_chardev_input(f->m, "a", bytes, (size_t)take(&f->in, 1));
        test_chardev_open(f->m, "b", take(&f->in, 1) & 1);
        break;
    case 13:
        test_clock_advance(f->m, (int64_t)take(&f->in, 4));
        machine_balloon_set(f->m, take(&f->in, 3), NULL);
        break;
    case 14:
        test_machine_set_status(f->m, take(&f->in, 1) & 1 ? MACHINE_PAUSED : MACHINE_RUNNING);
        break;
    default:
        if (take(&f->in, 1) & 1)
            f->dev->type->reset(f->dev);
        else
            test_config_write(f->dev, 0x40 + (unsigned)take(&f->in, 1) % 0x80, 4,
                              (uint32_t)take(&f->in, 4));
        break;
    }
    test_run(f->m, 30);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    Fuzz f = {.in = {data, size}};
    f.m = test_machine_new(RAM, 2);
    make_device(&f, (unsigned)take(&f.in, 1));
    for (unsigned i = 0; i < OPERATIONS_MAX && f.in.size; i++)
        operate(&f);
    f.disk->hold = false;
    test_machine_set_status(f.m, MACHINE_RUNNING);
    test_run(f.m, 2000);
    test_check_dirty(f.m);
    test_machine_free(f.m);
    return 0;
}
