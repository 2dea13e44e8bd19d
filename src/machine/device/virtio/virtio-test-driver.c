/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The guest's side: VIRTIO 1.2, 3.1 Device Initialization and 2.7 Split Virtqueues. */
#include "machine/device/virtio/virtio-test-driver.h"

#include "base/bytes.h"

enum { F_NEXT = 1, F_WRITE = 2, F_INDIRECT = 4 };

uint64_t test_features(Device *dev)
{
    uint64_t features = 0;
    for (unsigned i = 0; i < 2; i++) {
        test_bar_write(dev, TEST_COMMON + 0, 4, i);
        features |= test_bar_read(dev, TEST_COMMON + 4, 4) << (32 * i);
    }
    return features;
}

uint8_t test_status(Device *dev)
{
    return (uint8_t)test_bar_read(dev, TEST_COMMON + 20, 1);
}

bool test_negotiate(Device *dev, uint64_t features)
{
    features |= VIRTIO_BIT(VIRTIO_F_VERSION_1);
    test_bar_write(dev, TEST_COMMON + 20, 1, 0);
    test_run(dev->machine, 0);
    g_assert_cmpuint(test_status(dev), ==, 0);
    test_msix_enable(dev, true);
    test_bar_write(dev, TEST_COMMON + 20, 1, VIRTIO_STATUS_ACKNOWLEDGE);
    test_bar_write(dev, TEST_COMMON + 20, 1, VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER);
    for (unsigned i = 0; i < 2; i++) {
        test_bar_write(dev, TEST_COMMON + 8, 4, i);
        test_bar_write(dev, TEST_COMMON + 12, 4, (uint32_t)(features >> (32 * i)));
    }
    test_bar_write(dev, TEST_COMMON + 16, 2, 0); /* configuration changes: vector 0 */
    test_bar_write(dev, TEST_COMMON + 20, 1,
                   VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER | VIRTIO_STATUS_FEATURES_OK);
    return test_status(dev) & VIRTIO_STATUS_FEATURES_OK;
}

static void write_address(Device *dev, unsigned field, uint64_t gpa)
{
    test_bar_write(dev, TEST_COMMON + field, 4, (uint32_t)gpa);
    test_bar_write(dev, TEST_COMMON + field + 4, 4, gpa >> 32);
}

void test_queue_setup(TestQueue *q, Device *dev, unsigned index, uint64_t gpa)
{
    test_bar_write(dev, TEST_COMMON + 22, 2, index);
    *q = (TestQueue){.dev = dev, .index = index};
    q->size = (uint16_t)test_bar_read(dev, TEST_COMMON + 24, 2);
    q->desc = gpa;
    q->avail = gpa + 16ull * q->size;
    q->used = align_up(q->avail + 6 + 2ull * q->size, 4);
    g_autofree uint8_t *zeroes = g_malloc0(q->used + 6 + 8ull * q->size - gpa);
    test_ram_write(dev->machine, gpa, zeroes, q->used + 6 + 8ull * q->size - gpa);
    write_address(dev, 32, q->desc);
    write_address(dev, 40, q->avail);
    write_address(dev, 48, q->used);
    test_bar_write(dev, TEST_COMMON + 26, 2, index + 1);
    test_bar_write(dev, TEST_COMMON + 28, 2, 1);
}

void test_driver_ok(Device *dev)
{
    test_bar_write(dev, TEST_COMMON + 20, 1, test_status(dev) | VIRTIO_STATUS_DRIVER_OK);
    test_run(dev->machine, 0);
}

static void put_descriptor(Machine *m, uint64_t at, uint64_t gpa, uint32_t size, uint16_t flags,
                           uint16_t next)
{
    uint8_t raw[16];
    le64_put(raw, gpa);
    le32_put(raw + 8, size);
    le16_put(raw + 12, flags);
    le16_put(raw + 14, next);
    test_ram_write(m, at, raw, sizeof(raw));
}

void test_set_descriptor(TestQueue *q, uint16_t i, uint64_t gpa, uint32_t size, uint16_t flags,
                         uint16_t next)
{
    put_descriptor(q->dev->machine, q->desc + 16ull * i, gpa, size, flags, next);
}

void test_publish(TestQueue *q, uint16_t head)
{
    uint8_t raw[2];
    le16_put(raw, head);
    test_ram_write(q->dev->machine, q->avail + 4 + 2ull * (q->avail_idx & (q->size - 1u)), raw, 2);
    le16_put(raw, ++q->avail_idx);
    test_ram_write(q->dev->machine, q->avail + 2, raw, 2);
}

uint16_t test_add(TestQueue *q, const TestBuffer *buffers, unsigned n)
{
    uint16_t head = q->next_desc;
    for (unsigned i = 0; i < n; i++) {
        uint16_t at = q->next_desc;
        q->next_desc = (uint16_t)((at + 1) & (q->size - 1));
        uint16_t flags = (uint16_t)((buffers[i].write ? F_WRITE : 0) | (i + 1 < n ? F_NEXT : 0));
        test_set_descriptor(q, at, buffers[i].gpa, buffers[i].size, flags, q->next_desc);
    }
    test_publish(q, head);
    return head;
}

uint16_t test_add_indirect(TestQueue *q, uint64_t table, const TestBuffer *buffers, unsigned n)
{
    uint16_t head = q->next_desc;
    for (unsigned i = 0; i < n; i++) {
        uint16_t flags = (uint16_t)((buffers[i].write ? F_WRITE : 0) | (i + 1 < n ? F_NEXT : 0));
        put_descriptor(q->dev->machine, table + 16ull * i, buffers[i].gpa, buffers[i].size, flags,
                       (uint16_t)(i + 1));
    }
    q->next_desc = (uint16_t)((head + 1) & (q->size - 1));
    test_set_descriptor(q, head, table, 16 * n, F_INDIRECT, 0);
    test_publish(q, head);
    return head;
}

void test_kick(TestQueue *q)
{
    test_bar_write(q->dev, TEST_NOTIFY + 4ull * q->index, 2, q->index);
    test_run(q->dev->machine, 0);
}

bool test_used(TestQueue *q, uint32_t *head, uint32_t *written)
{
    const uint8_t *used = test_ram(q->dev->machine, q->used);
    if (le16_get(used + 2) == q->used_idx)
        return false;
    const uint8_t *entry = used + 4 + 8u * (q->used_idx++ & (q->size - 1u));
    if (head)
        *head = le32_get(entry);
    if (written)
        *written = le32_get(entry + 4);
    return true;
}
