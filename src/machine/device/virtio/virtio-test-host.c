/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The host side of virtio-test-driver.h: doubles of a disk, of character devices and of a network.
 */
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "disk/block.h"
#include "machine/device/virtio/virtio-test-internal.h"

/* ---- disk ---- */

struct BlockNode {
    TestDisk disk; /* first */
    MachineItem *item;
    bool claimed;
};

struct BlockQueue {
    BlockNode *node;
    int fd;
    GQueue requests;
    unsigned depth;
    bool plugged;
};

TestDisk *test_disk(Machine *m, uint64_t size, const char *options)
{
    BlockNode *node = g_new0(BlockNode, 1);
    node->disk.data = g_malloc0(size);
    node->disk.size = size;
    node->item = test_item_new("raw", "disk0", options);
    m->disk = node;
    return &node->disk;
}

struct BlockNode *machine_drive(Machine *m, const char *id, const MachineItem **item)
{
    if (!m->disk || strcmp(id, "disk0") != 0)
        return NULL;
    *item = m->disk->item;
    return m->disk;
}

bool machine_claim_drive(Machine *m, const char *id, GError **err)
{
    if (m->disk->claimed)
        return lodge_fail(err, LODGE_ERROR_BUSY, "drive '%s' is in use", id);
    m->disk->claimed = true;
    return true;
}

BlockNode *block_ref(BlockNode *node)
{
    return node;
}

void block_unref(BlockNode *node)
{
}

uint64_t block_size(const BlockNode *node)
{
    return node->disk.size;
}

bool block_read_only(const BlockNode *node)
{
    return node->disk.read_only;
}

BlockQueue *block_queue_new(BlockNode *node, unsigned depth, GError **err)
{
    BlockQueue *q = g_new0(BlockQueue, 1);
    q->node = node;
    q->depth = depth;
    q->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    g_queue_init(&q->requests);
    return q;
}

void block_queue_free(BlockQueue *q)
{
    block_queue_drain(q);
    close(q->fd);
    g_free(q);
}

int block_queue_fd(const BlockQueue *q)
{
    return q->fd;
}

/* Requests stay in the double until the test completes them: there is nothing to collect. */
void block_queue_plug(BlockQueue *q)
{
    g_assert_false(q->plugged);
    q->plugged = true;
}

void block_queue_unplug(BlockQueue *q)
{
    g_assert_true(q->plugged);
    q->plugged = false;
}

void block_queue_submit(BlockQueue *q, BlockRequest *request)
{
    g_assert(g_queue_get_length(&q->requests) < q->depth);
    g_queue_push_tail(&q->requests, request);
    g_assert(write(q->fd, &(uint64_t){1}, 8) == 8);
}

static int transfer(TestDisk *d, const BlockRequest *r)
{
    uint64_t at = r->offset;
    for (int i = 0; i < r->n_iov; i++) {
        if (!range_within(at, r->iov[i].iov_len, d->size))
            return -EINVAL;
        if (r->op == BLOCK_READ)
            memcpy(r->iov[i].iov_base, d->data + at, r->iov[i].iov_len);
        else
            memcpy(d->data + at, r->iov[i].iov_base, r->iov[i].iov_len);
        at += r->iov[i].iov_len;
    }
    return 0;
}

static int perform(TestDisk *d, const BlockRequest *r)
{
    d->reads += r->op == BLOCK_READ;
    d->writes += r->op == BLOCK_WRITE;
    d->flushes += r->op == BLOCK_FLUSH;
    d->discards += r->op == BLOCK_DISCARD;
    d->zeroes += r->op == BLOCK_WRITE_ZEROES;
    d->fua += (r->flags & BLOCK_FUA) != 0;
    if (d->fail)
        return d->fail;
    switch (r->op) {
    case BLOCK_READ:
    case BLOCK_WRITE:
        return transfer(d, r);
    case BLOCK_WRITE_ZEROES:
        g_assert(range_within(r->offset, r->length, d->size));
        memset(d->data + r->offset, 0, r->length);
        return 0;
    case BLOCK_DISCARD:
        g_assert(range_within(r->offset, r->length, d->size));
        return 0;
    default:
        return 0;
    }
}

unsigned block_queue_reap(BlockQueue *q)
{
    unsigned n = 0;
    uint64_t count;
    if (q->node->disk.hold)
        return 0;
    (void)!read(q->fd, &count, sizeof(count));
    BlockRequest *r;
    while ((r = g_queue_pop_head(&q->requests))) {
        r->done(r, perform(&q->node->disk, r));
        n++;
    }
    return n;
}

void block_queue_drain(BlockQueue *q)
{
    bool hold = q->node->disk.hold;
    q->node->disk.hold = false;
    block_queue_reap(q);
    q->node->disk.hold = hold;
}

/* ---- character devices ---- */

struct Chardev {
    TestChardev test; /* first */
    char *id;
    bool open;
    const ChardevUser *user;
    void *opaque;
    GByteArray *input;
};

TestChardev *test_chardev(Machine *m, const char *id, bool open)
{
    Chardev *c = g_new0(Chardev, 1);
    c->id = g_strdup(id);
    c->open = open;
    c->test.output = g_byte_array_new();
    c->input = g_byte_array_new();
    g_hash_table_insert(m->chardevs, c->id, c);
    return &c->test;
}

Chardev *chardev_find(Machine *m, const char *id)
{
    return g_hash_table_lookup(m->chardevs, id);
}

bool chardev_attach(Chardev *c, const ChardevUser *user, void *opaque, GError **err)
{
    if (c->user)
        return lodge_fail(err, LODGE_ERROR_BUSY, "chardev '%s' is in use", c->id);
    c->user = user;
    c->opaque = opaque;
    if (c->open && user->opened)
        user->opened(opaque, true);
    return true;
}

void chardev_detach(Chardev *c)
{
    c->user = NULL;
}

void chardev_write(Chardev *c, const uint8_t *data, size_t size)
{
    g_byte_array_append(c->test.output, data, (guint)size);
    if (c->test.output->len > MIB(1)) /* fuzzing writes without end */
        g_byte_array_set_size(c->test.output, 0);
}

void chardev_accept_input(Chardev *c)
{
    size_t room;
    while (c->user && c->input->len && (room = c->user->can_receive(c->opaque)) > 0) {
        guint n = (guint)MIN(room, c->input->len);
        c->user->receive(c->opaque, c->input->data, n);
        g_byte_array_remove_range(c->input, 0, n);
    }
}

void test_chardev_open(Machine *m, const char *id, bool open)
{
    Chardev *c = chardev_find(m, id);
    c->open = open;
    if (c->user && c->user->opened)
        c->user->opened(c->opaque, open);
}

void test_chardev_input(Machine *m, const char *id, const void *data, size_t size)
{
    Chardev *c = chardev_find(m, id);
    g_byte_array_append(c->input, data, (guint)size);
    chardev_accept_input(c);
}

/* ---- network ---- */

typedef struct NetdevTest {
    Netdev netdev; /* first */
    TestNet net;
} NetdevTest;

static bool net_open(Netdev *n, const MachineItem *item, GError **err)
{
    ((NetdevTest *)n)->net.sent = g_byte_array_new();
    return true;
}

static void net_close(Netdev *n)
{
    g_byte_array_unref(((NetdevTest *)n)->net.sent);
}

static void net_send(Netdev *n, const struct iovec *iov, int count)
{
    TestNet *net = &((NetdevTest *)n)->net;
    net->frames++;
    if (net->sent->len > MIB(1))
        g_byte_array_set_size(net->sent, 0);
    for (int i = 0; i < count; i++)
        g_byte_array_append(net->sent, iov[i].iov_base, (guint)iov[i].iov_len);
}

static const char *const net_options[] = {NULL};

static const NetdevType netdev_type_test = {
    .name = "test",
    .options = net_options,
    .instance_size = sizeof(NetdevTest),
    .open = net_open,
    .close = net_close,
    .send = net_send,
};

const NetdevType *const netdev_types[] = {&netdev_type_test, NULL};

TestNet *test_net(Machine *m)
{
    MachineItem *item = test_item_new("test", "net0", NULL);
    m->netdev = netdev_new(m, item, NULL);
    test_item_free(item);
    return &((NetdevTest *)m->netdev)->net;
}

void test_net_receive(Machine *m, const void *frame, size_t size)
{
    netdev_deliver(m->netdev, frame, size);
}

void test_host_free(Machine *m)
{
    GHashTableIter iter;
    gpointer value;
    g_hash_table_iter_init(&iter, m->chardevs);
    while (g_hash_table_iter_next(&iter, NULL, &value)) {
        Chardev *c = value;
        g_byte_array_unref(c->test.output);
        g_byte_array_unref(c->input);
        g_hash_table_iter_remove(&iter);
        g_free(c->id);
        g_free(c);
    }
    netdev_free(m->netdev);
    if (m->disk) {
        g_free(m->disk->disk.data);
        test_item_free(m->disk->item);
        g_free(m->disk);
    }
}
