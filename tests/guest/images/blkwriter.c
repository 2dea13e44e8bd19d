/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A bare guest that writes to its virtio disk for ever, so that its machine can be killed at any
 * moment: write number i puts i, repeated, into 4 KiB block (i * STRIDE) mod BLOCKS; after a few
 * writes it flushes and prints "F<i>", the last number that must survive. Polled virtio 1.x driver:
 * VIRTIO 1.2, 2.7 (split queues), 4.1.4 (PCI capabilities), 5.2 (block device).
 */
#include "guest.h"

#define BLOCKS 16384u /* 64 MiB */
#define STRIDE 7919u
#define QUEUE_SIZE 8u
#define BAR_ADDRESS 0xd0000000u

enum { CAP_COMMON = 1, CAP_NOTIFY = 2, CAP_DEVICE = 4 };
enum { REQUEST_OUT = 1, REQUEST_FLUSH = 4 };
enum { DESC_NEXT = 1, DESC_WRITE = 2 };

struct desc {
    uint64_t address;
    uint32_t length;
    uint16_t flags, next;
};

static struct {
    struct desc desc[QUEUE_SIZE];
    struct {
        uint16_t flags, index, ring[QUEUE_SIZE];
    } avail;
    struct {
        uint16_t flags;
        volatile uint16_t index;
        struct {
            uint32_t id, length;
        } ring[QUEUE_SIZE];
    } used __attribute__((aligned(4096)));
} queue __attribute__((aligned(4096)));

static struct {
    uint32_t type, reserved;
    uint64_t sector;
} header;
static volatile uint8_t status;
static uint32_t block[1024] __attribute__((aligned(4096)));
static uint16_t *doorbell;

static uint32_t find_disk(void)
{
    for (unsigned device = 0; device < 32; device++)
        if (pci_read(device, 0) == 0x10421af4u)
            return device;
    fail("no virtio disk on bus 0");
}

/* Moves the virtio BAR below 4 GiB, where a guest without paging reaches it; returns the structure of @kind. */
static uint32_t find_structure(unsigned device, unsigned kind, uint32_t *multiplier)
{
    for (unsigned at = pci_read(device, 0x34) & 0xfc; at; at = pci_read(device, at) >> 8 & 0xfc) {
        uint32_t head = pci_read(device, at);
        if ((head & 0xff) != 9 || head >> 24 != kind)
            continue;
        unsigned bar = 0x10 + 4 * (pci_read(device, at + 4) & 0xff);
        uint32_t type = pci_read(device, bar) & 0xf;
        pci_write(device, bar, BAR_ADDRESS | type);
        if (type & 4)
            pci_write(device, bar + 4, 0);
        if (multiplier)
            *multiplier = pci_read(device, at + 16);
        return BAR_ADDRESS + pci_read(device, at + 8);
    }
    fail("a virtio capability is missing");
}

static void start_device(unsigned device)
{
    uint32_t multiplier = 0;
    pci_write(device, 4, 0);
    volatile uint8_t *common = (volatile uint8_t *)find_structure(device, CAP_COMMON, 0);
    uint32_t notify = find_structure(device, CAP_NOTIFY, &multiplier);
    pci_write(device, 4, 6); /* memory space, bus master */
    volatile uint32_t *word = (volatile uint32_t *)common;
    common[0x14] = 0;
    while (common[0x14])
        ;
    common[0x14] = 1;
    common[0x14] = 3;
    word[2] = 0; /* driver_feature_select */
    word[3] = 1u << 9; /* VIRTIO_BLK_F_FLUSH */
    word[2] = 1;
    word[3] = 1; /* VIRTIO_F_VERSION_1 */
    common[0x14] = 11;
    if (!(common[0x14] & 8))
        fail("the device refuses the features");
    *(volatile uint16_t *)(common + 0x16) = 0; /* queue_select */
    *(volatile uint16_t *)(common + 0x18) = QUEUE_SIZE;
    word[0x20 / 4] = (uint32_t)queue.desc;
    word[0x24 / 4] = 0;
    word[0x28 / 4] = (uint32_t)&queue.avail;
    word[0x2c / 4] = 0;
    word[0x30 / 4] = (uint32_t)&queue.used;
    word[0x34 / 4] = 0;
    doorbell = (uint16_t *)(notify + multiplier * *(volatile uint16_t *)(common + 0x1e));
    *(volatile uint16_t *)(common + 0x1c) = 1;
    common[0x14] = 15;
    queue.avail.flags = 1; /* no interrupts: this driver polls */
}

static void request(uint32_t type, uint64_t sector)
{
    header.type = type;
    header.sector = sector;
    status = 0xff;
    unsigned last = type == REQUEST_OUT ? 2 : 1;
    queue.desc[0] = (struct desc){(uint32_t)&header, sizeof(header), DESC_NEXT, 1};
    if (type == REQUEST_OUT)
        queue.desc[1] = (struct desc){(uint32_t)block, sizeof(block), DESC_NEXT, 2};
    queue.desc[last] = (struct desc){(uint32_t)&status, 1, DESC_WRITE, 0};
    queue.avail.ring[queue.avail.index % QUEUE_SIZE] = 0;
    uint16_t done = queue.used.index;
    __asm__ volatile("" ::: "memory");
    queue.avail.index++;
    __asm__ volatile("mfence" ::: "memory");
    *(volatile uint16_t *)doorbell = 0;
    while (queue.used.index == done)
        __asm__ volatile("pause");
    if (status != 0)
        fail("the disk reports an error");
}

void guest_main(void)
{
    start_device(find_disk());
    print("READY\n");
    for (uint32_t i = 1;; i++) {
        for (unsigned k = 0; k < 1024; k++)
            block[k] = i;
        request(REQUEST_OUT, (uint64_t)((i * STRIDE) % BLOCKS) * 8);
        if (i % 5 == 0) {
            request(REQUEST_FLUSH, 0);
            print_number('F', i);
        }
    }
}
