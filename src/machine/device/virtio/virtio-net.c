/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The network card: VIRTIO 1.2, 5.1. No offloads: the backends carry plain Ethernet frames. */
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "machine/device/virtio/virtio.h"
#include "machine/netdev/netdev.h"

/* 5.1.3 Feature bits */
enum { NET_F_MTU = 3, NET_F_MAC = 5, NET_F_MRG_RXBUF = 15, NET_F_STATUS = 16 };
/* 5.1.4 Device configuration layout: mac, status, max_virtqueue_pairs, mtu */
enum { NET_CONFIG_SIZE = 12, NET_S_LINK_UP = 1 };
enum {
    NET_RX = 0,
    NET_TX = 1,
    NET_TX_BUDGET = 256 /* frames sent before others have their turn */
};
/* 5.1.6 struct virtio_net_hdr, 12 bytes with VERSION_1; num_buffers is its last member */
enum { NET_HEADER_SIZE = 12, NET_HEADER_NUM_BUFFERS = 10 };

typedef struct VirtioNet {
    VirtioDevice virtio; /* first */
    uint8_t mac[6];
    uint16_t mtu; /* 0: not told */
    Netdev *netdev;
    VirtChain chain, first; /* first: the one that holds the header of a received frame */
} VirtioNet;

/* ---- guest to host ---- */

static void net_transmit(VirtioNet *n)
{
    VirtioDevice *v = &n->virtio;
    Virtqueue *q = &v->queues[NET_TX];
    unsigned budget = NET_TX_BUDGET;

    do {
        virtq_want_notify(q, false);
        while (virtio_pop(v, NET_TX, &n->chain)) {
            if (n->chain.out_size < NET_HEADER_SIZE) {
                virtio_fail(v, "a frame to send is shorter than its header");
                return;
            }
            virt_chain_skip_out(&n->chain, NET_HEADER_SIZE);
            if (n->chain.out_size && n->chain.out_size <= NETDEV_FRAME_MAX)
                netdev_send(n->netdev, n->chain.out, (int)n->chain.n_out);
            virtq_push(q, n->chain.head, 0);
            if (--budget == 0) {
                virtio_notify_queue(v, NET_TX);
                virtio_kick(v, NET_TX);
                return;
            }
        }
    } while (virtq_want_notify(q, true));
    virtio_notify_queue(v, NET_TX);
}

static void net_queue(VirtioDevice *v, unsigned index)
{
    VirtioNet *n = (VirtioNet *)v;
    if (index == NET_TX) {
        net_transmit(n);
    } else {
        virtq_want_notify(&v->queues[NET_RX], false);
        netdev_accept_input(n->netdev);
    }
}

/* ---- host to guest ---- */

static bool net_can_receive(void *opaque)
{
    VirtioNet *n = opaque;
    VirtioDevice *v = &n->virtio;
    Virtqueue *q = &v->queues[NET_RX];
    return virtio_queue_usable(v, NET_RX) && !virtio_paused(v) &&
           (virtq_has_work(q) || virtq_want_notify(q, true));
}

/* Puts @frame into one buffer (or with MRG_RXBUF several); the header goes first. */
static void net_receive(void *opaque, const uint8_t *frame, size_t size)
{
    VirtioNet *n = opaque;
    VirtioDevice *v = &n->virtio;
    Virtqueue *q = &v->queues[NET_RX];
    uint8_t header[NET_HEADER_SIZE] = {0};
    size_t done = 0;
    unsigned used = 0;

    if (!virtio_queue_usable(v, NET_RX))
        return;
    while (done < size || used == 0) {
        VirtChain *c = used == 0 ? &n->first : &n->chain;
        if (!virtio_pop(v, NET_RX, c))
            goto drop;
        size_t reserve = used == 0 ? NET_HEADER_SIZE : 0;
        if (c->in_size <= reserve ||
            (!virtio_has(v, NET_F_MRG_RXBUF) && c->in_size < reserve + size)) {
            used++;
            goto drop; /* 5.1.6.4: the driver's buffers are too small for this frame */
        }
        size_t part = MIN(size - done, c->in_size - reserve);
        virt_chain_write(c, virtio_machine(v), reserve, frame + done, part);
        done += part;
        virtq_fill(q, used, c->head, (uint32_t)(part + reserve));
        used++;
    }
    le16_put(header + NET_HEADER_NUM_BUFFERS, (uint16_t)used);
    virt_chain_write(&n->first, virtio_machine(v), 0, header, sizeof(header));
    virtq_flush(q, used);
    virtio_notify_queue(v, NET_RX);
    return;

drop:
    virtq_unpop(q, used);
}

static const NetdevUser net_user = {.can_receive = net_can_receive, .receive = net_receive};

/* ---- configuration ---- */

static void net_config_read(VirtioDevice *v, uint8_t *config)
{
    VirtioNet *n = (VirtioNet *)v;
    memcpy(config, n->mac, 6);
    le16_put(config + 6, NET_S_LINK_UP);
    le16_put(config + 8, 1);
    le16_put(config + 10, n->mtu);
}

static bool parse_mac(const char *text, uint8_t mac[6])
{
    for (unsigned i = 0; i < 6; i++, text += 3) {
        if (!g_ascii_isxdigit(text[0]) || !g_ascii_isxdigit(text[1]) ||
            text[2] != (i < 5 ? ':' : '\0'))
            return false;
        mac[i] = (uint8_t)(g_ascii_xdigit_value(text[0]) * 16 + g_ascii_xdigit_value(text[1]));
    }
    return true;
}

/* Without mac=: the prefix that QEMU and libvirt use, then three bytes that stay the same for
 * this machine and this netdev. */
static void default_mac(VirtioNet *n, const char *netdev)
{
    const MachineConfig *config = machine_config(virtio_machine(&n->virtio));
    uint32_t hash = g_str_hash(netdev) ^ g_str_hash(config->name ? config->name : "");
    for (unsigned i = 0; i < sizeof(config->uuid); i++)
        hash = hash * 33 + config->uuid[i];
    const uint8_t mac[6] = {0x52,         0x54, 0x00, (uint8_t)(hash >> 16), (uint8_t)(hash >> 8),
                            (uint8_t)hash};
    memcpy(n->mac, mac, 6);
}

static bool net_start(VirtioDevice *v, GError **err)
{
    VirtioNet *n = (VirtioNet *)v;
    Device *dev = &v->pci.dev;
    const char *mac = device_option(dev, "mac"), *netdev = device_option(dev, "netdev");

    if (!mac) {
        default_mac(n, netdev);
    } else if (!parse_mac(mac, n->mac) || (n->mac[0] & 1)) {
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "virtio-net: mac \"%s\" is not the address of one card "
                          "(six hexadecimal bytes, the first of them even)",
                          mac);
    }
    n->mtu = (uint16_t)device_option_uint(dev, "mtu");
    virt_chain_init(&n->chain);
    virt_chain_init(&n->first);
    unsigned size = (unsigned)device_option_uint(dev, "queue-size");
    if (size & (size - 1))
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "virtio-net: queue-size %u is not a power of two", size);
    virtio_add_queue(v, size);
    virtio_add_queue(v, size);
    v->host_features =
        VIRTIO_BIT(NET_F_MAC) | VIRTIO_BIT(NET_F_STATUS) | VIRTIO_BIT(NET_F_MRG_RXBUF);
    if (n->mtu)
        v->host_features |= VIRTIO_BIT(NET_F_MTU);

    Netdev *backend = netdev_find(dev->machine, netdev);
    if (!backend)
        return lodge_fail(err, LODGE_ERROR_NOT_FOUND, "virtio-net: there is no netdev \"%s\"",
                          netdev);
    if (!netdev_attach(backend, &net_user, n, err))
        return false;
    n->netdev = backend;
    return true;
}

static void net_stop(VirtioDevice *v)
{
    VirtioNet *n = (VirtioNet *)v;
    if (n->netdev)
        netdev_detach(n->netdev);
    n->netdev = NULL;
    virt_chain_clear(&n->chain);
    virt_chain_clear(&n->first);
}

static const DeviceOption net_options[] = {
    {.name = "netdev", .type = OPTION_STRING, .help = "the netdev that it is connected to"},
    {.name = "mac",
     .type = OPTION_MAC,
     .optional = true,
     .help = "the card's address; default: made from the machine's UUID"},
    {.name = "mtu",
     .type = OPTION_UINT,
     .fallback = "0",
     .max = 65535,
     .help = "largest packet to tell the guest; 0: not told"},
    {.name = "queue-size",
     .type = OPTION_UINT,
     .fallback = "256",
     .min = 16,
     .max = 1024,
     .help = "entries of each ring, a power of two"},
    {0},
};

static const StateField net_state[] = {
    VIRTIO_STATE(VirtioNet, virtio),
    STATE_FIELDS_END,
};

const VirtioDeviceType virtio_net_type = {
    .base = VIRTIO_DEVICE_BASE("virtio-net", "network card", VirtioNet, net_options, net_state),
    .virtio_id = 1,
    .class_code = 0x020000,
    .config_size = NET_CONFIG_SIZE,
    .start = net_start,
    .stop = net_stop,
    .config_read = net_config_read,
    .queue = net_queue,
};
