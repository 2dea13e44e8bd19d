/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Split rings of arbitrary content over a small RAM. Byte 0: size, byte 1: features, bytes 2-7:
 * where the parts lie; the rest is the RAM's content, followed by values of the available index.
 */
#include <string.h>

#include "base/bytes.h"
#include "machine/device/virtio/virtio-test-driver.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { RAM = 0x4000, HEADER = 8, ROUNDS = 64 };

static void check_chain(Machine *m, const VirtChain *c, const Virtqueue *q)
{
    uint64_t out = 0, in = 0;
    g_assert_cmpuint(c->head, <, q->size);
    g_assert_cmpuint(c->n_out + c->n_in, <=, VIRTQ_SIZE_MAX);
    for (unsigned i = 0; i < c->n_out; i++) {
        uint8_t *p = c->out[i].iov_base;
        g_assert_true(p >= test_ram(m, 0) && p + c->out[i].iov_len <= test_ram(m, 0) + RAM);
        out += c->out[i].iov_len;
    }
    for (unsigned i = 0; i < c->n_in; i++) {
        g_assert_true(range_within(c->in_gpa[i], c->in[i].iov_len, RAM));
        g_assert_true(c->in[i].iov_base == test_ram(m, c->in_gpa[i]));
        in += c->in[i].iov_len;
    }
    g_assert_cmpuint(out, ==, c->out_size);
    g_assert_cmpuint(in, ==, c->in_size);
    g_assert_cmpuint(in + out, <=, VIRTQ_CHAIN_BYTES_MAX);
}

static void use_chain(Machine *m, VirtChain *c, Virtqueue *q)
{
    uint8_t bytes[64] = {0};
    size_t n = virt_chain_read(c, c->out_size / 2, bytes, sizeof(bytes));
    virt_chain_skip_out(c, n);
    if (c->in_size) {
        uint64_t gpa;
        uint8_t *last = virt_chain_take_last(c, &gpa);
        g_assert_true(last == test_ram(m, gpa));
    }
    n = virt_chain_write(c, m, c->in_size / 2, bytes, sizeof(bytes));
    virtq_push(q, c->head, (uint32_t)n);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < HEADER)
        return 0;
    Machine *m = test_machine_new(RAM, 1);
    Virtqueue q = {.max_size = 256};
    VirtChain chain;
    virtq_reset(&q);
    virt_chain_init(&chain);
    size_t ram = MIN(size - HEADER, RAM);
    test_ram_write(m, 0, data + HEADER, ram);
    q.size = (uint16_t)(1u << (data[0] % 10));
    q.desc_gpa = (uint64_t)data[2] << 6;
    q.avail_gpa = (uint64_t)le16_get(data + 4) & 0x3ffe;
    q.used_gpa = (uint64_t)le16_get(data + 6) & 0x3ffc;
    if (virtq_enable(&q, m, data[1] & 1, data[1] & 2)) {
        for (unsigned round = 0; round < ROUNDS; round++) {
            int r = virtq_pop(&q, &chain);
            if (r < 0)
                break;
            if (r > 0) {
                check_chain(m, &chain, &q);
                use_chain(m, &chain, &q);
            } else {
                virtq_want_notify(&q, round & 1);
                uint8_t next[2] = {0};
                le16_put(next, (uint16_t)(q.last_avail + data[round % size] % (q.size + 2u)));
                test_ram_write(m, q.avail_gpa + 2, next, sizeof(next));
            }
            virtq_should_interrupt(&q);
        }
    }
    test_check_dirty(m);
    virt_chain_clear(&chain);
    test_machine_free(m);
    return 0;
}
