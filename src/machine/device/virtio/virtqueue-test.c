/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "machine/device/virtio/virtio-test-driver.h"

enum { SIZE = 8, DESC = 0x1000, AVAIL = 0x2000, USED = 0x3000, TABLE = 0x4000, DATA = 0x10000 };
enum { F_NEXT = 1, F_WRITE = 2, F_INDIRECT = 4, RAM = 0x40000 };

typedef struct Fixture {
    Machine *m;
    Virtqueue q;
    VirtChain chain;
    uint16_t avail_idx;
} Fixture;

static void setup_with(Fixture *f, bool event_idx)
{
    f->m = test_machine_new(RAM, 1);
    f->q.max_size = 256;
    virtq_reset(&f->q);
    g_assert_cmpuint(f->q.size, ==, 256);
    f->q.size = SIZE;
    f->q.desc_gpa = DESC;
    f->q.avail_gpa = AVAIL;
    f->q.used_gpa = USED;
    g_assert_true(virtq_enable(&f->q, f->m, true, event_idx));
    virt_chain_init(&f->chain);
}

static void setup(Fixture *f, gconstpointer data)
{
    setup_with(f, GPOINTER_TO_INT(data));
}

static void teardown(Fixture *f, gconstpointer data)
{
    test_check_dirty(f->m);
    virt_chain_clear(&f->chain);
    test_machine_free(f->m);
}

static void put16(Fixture *f, uint64_t gpa, uint16_t v)
{
    uint8_t raw[2];
    le16_put(raw, v);
    test_ram_write(f->m, gpa, raw, 2);
}

static void descriptor(Fixture *f, uint64_t table, unsigned i, uint64_t gpa, uint32_t size,
                       uint16_t flags, uint16_t next)
{
    uint8_t raw[16];
    le64_put(raw, gpa);
    le32_put(raw + 8, size);
    le16_put(raw + 12, flags);
    le16_put(raw + 14, next);
    test_ram_write(f->m, table + 16ull * i, raw, 16);
}

static void publish(Fixture *f, uint16_t head)
{
    put16(f, AVAIL + 4 + 2ull * (f->avail_idx % SIZE), head);
    put16(f, AVAIL + 2, ++f->avail_idx);
}

static void test_chain(Fixture *f, gconstpointer data)
{
    g_assert_cmpint(virtq_pop(&f->q, &f->chain), ==, 0);
    /* Readable 16 + 4, an empty one, writable 100 + 28 that touch. */
    descriptor(f, DESC, 3, DATA, 16, F_NEXT, 5);
    descriptor(f, DESC, 5, DATA + 0x100, 4, F_NEXT, 0);
    descriptor(f, DESC, 0, DATA + 0x200, 0, F_NEXT, 1);
    descriptor(f, DESC, 1, DATA + 0x300, 100, F_NEXT | F_WRITE, 2);
    descriptor(f, DESC, 2, DATA + 0x300 + 100, 28, F_WRITE, 7);
    test_ram_write(f->m, DATA, "0123456789abcdef", 16);
    test_ram_write(f->m, DATA + 0x100, "WXYZ", 4);
    publish(f, 3);
    g_assert_true(virtq_has_work(&f->q));
    g_assert_cmpint(virtq_pop(&f->q, &f->chain), ==, 1);
    g_assert_cmpuint(f->chain.head, ==, 3);
    g_assert_cmpuint(f->chain.n_out, ==, 2);
    g_assert_cmpuint(f->chain.out_size, ==, 20);
    g_assert_cmpuint(f->chain.n_in, ==, 1);
    g_assert_cmpuint(f->chain.in_size, ==, 128);

    char text[8];
    g_assert_cmpuint(virt_chain_read(&f->chain, 14, text, sizeof(text)), ==, 6);
    g_assert_cmpmem(text, 6, "efWXYZ", 6);
    virt_chain_skip_out(&f->chain, 17);
    g_assert_cmpuint(f->chain.out_size, ==, 3);
    g_assert_cmpuint(virt_chain_read(&f->chain, 0, text, sizeof(text)), ==, 3);
    g_assert_cmpmem(text, 3, "XYZ", 3);

    uint64_t gpa;
    uint8_t *last = virt_chain_take_last(&f->chain, &gpa);
    g_assert_cmpuint(gpa, ==, DATA + 0x300 + 127);
    g_assert_true(last == test_ram(f->m, gpa));
    g_assert_cmpuint(virt_chain_write(&f->chain, f->m, 120, "0123456789", 10), ==, 7);

    virtq_push(&f->q, f->chain.head, 127);
    g_assert_cmpuint(le16_get(test_ram(f->m, USED + 2)), ==, 1);
    g_assert_cmpuint(le32_get(test_ram(f->m, USED + 4)), ==, 3);
    g_assert_cmpuint(le32_get(test_ram(f->m, USED + 8)), ==, 127);
    g_assert_cmpint(virtq_pop(&f->q, &f->chain), ==, 0);
}

static void test_indirect(Fixture *f, gconstpointer data)
{
    /* One normal descriptor, then an indirect one: 2.7.5.3.2. */
    descriptor(f, DESC, 0, DATA, 8, F_NEXT, 1);
    descriptor(f, DESC, 1, TABLE + 3, 3 * 16, F_INDIRECT, 0); /* tables need no alignment */
    descriptor(f, TABLE + 3, 0, DATA + 0x100, 8, F_NEXT, 2);
    descriptor(f, TABLE + 3, 2, DATA + 0x200, 8, F_WRITE, 0);
    publish(f, 0);
    g_assert_cmpint(virtq_pop(&f->q, &f->chain), ==, 1);
    g_assert_cmpuint(f->chain.out_size, ==, 16);
    g_assert_cmpuint(f->chain.in_size, ==, 8);
    virtq_unpop(&f->q, 1);
    g_assert_cmpint(virtq_pop(&f->q, &f->chain), ==, 1);
    g_assert_cmpint(virtq_pop(&f->q, &f->chain), ==, 0);
}

static void test_wraps(Fixture *f, gconstpointer data)
{
    f->q.last_avail = f->q.used_idx = f->avail_idx = 65530;
    put16(f, AVAIL + 2, f->avail_idx);
    descriptor(f, DESC, 0, DATA, 8, F_WRITE, 0);
    for (unsigned i = 0; i < 20; i++) {
        publish(f, 0);
        g_assert_cmpint(virtq_pop(&f->q, &f->chain), ==, 1);
        virtq_push(&f->q, 0, i);
        g_assert_cmpuint(le16_get(test_ram(f->m, USED + 2)), ==, (uint16_t)(65531 + i));
    }
}

static void test_flags_notify(Fixture *f, gconstpointer data)
{
    virtq_push(&f->q, 0, 0);
    g_assert_true(virtq_should_interrupt(&f->q));
    g_assert_false(virtq_should_interrupt(&f->q)); /* nothing new */
    put16(f, AVAIL, 1);                            /* NO_INTERRUPT */
    virtq_push(&f->q, 0, 0);
    g_assert_false(virtq_should_interrupt(&f->q));
    virtq_want_notify(&f->q, false);
    g_assert_cmpuint(le16_get(test_ram(f->m, USED)), ==, 1);
    g_assert_false(virtq_want_notify(&f->q, true));
    g_assert_cmpuint(le16_get(test_ram(f->m, USED)), ==, 0);
    descriptor(f, DESC, 0, DATA, 8, F_WRITE, 0);
    publish(f, 0);
    g_assert_true(virtq_want_notify(&f->q, true));
}

static void test_event_index(Fixture *f, gconstpointer data)
{
    uint64_t used_event = AVAIL + 4 + 2 * SIZE, avail_event = USED + 4 + 8 * SIZE;
    g_assert_false(virtq_should_interrupt(&f->q)); /* nothing was pushed yet */
    virtq_push(&f->q, 0, 0);
    g_assert_true(virtq_should_interrupt(&f->q));
    put16(f, used_event, 3); /* interrupt when entry 3 is used */
    virtq_push(&f->q, 0, 0);
    virtq_push(&f->q, 0, 0);
    g_assert_false(virtq_should_interrupt(&f->q)); /* index 3: entries 1 and 2 */
    virtq_push(&f->q, 0, 0);
    g_assert_true(virtq_should_interrupt(&f->q));
    virtq_push(&f->q, 0, 0);
    g_assert_false(virtq_should_interrupt(&f->q)); /* passed already */

    descriptor(f, DESC, 0, DATA, 8, F_WRITE, 0);
    for (unsigned i = 0; i < 3; i++)
        publish(f, 0);
    g_assert_cmpint(virtq_pop(&f->q, &f->chain), ==, 1);
    virtq_want_notify(&f->q, false); /* leaves the event behind: no more doorbells */
    g_assert_cmpuint(le16_get(test_ram(f->m, avail_event)), ==, 0);
    g_assert_true(virtq_want_notify(&f->q, true));
    g_assert_cmpuint(le16_get(test_ram(f->m, avail_event)), ==, 1);
}

/* Each breaks the queue for good, with its own words. */
static void expect_broken(Fixture *f, const char *words)
{
    g_assert_cmpint(virtq_pop(&f->q, &f->chain), ==, -EINVAL);
    g_assert_nonnull(f->q.error);
    if (!strstr(f->q.error, words))
        g_error("\"%s\" does not say \"%s\"", f->q.error, words);
    g_assert_cmpint(virtq_pop(&f->q, &f->chain), ==, -EINVAL);
    /* A broken queue writes nothing any more. */
    g_autofree uint8_t *before = g_memdup2(test_ram(f->m, USED), 0x100);
    virtq_push(&f->q, 0, 1);
    g_assert_false(virtq_should_interrupt(&f->q));
    g_assert_false(virtq_want_notify(&f->q, true));
    g_assert_cmpmem(before, 0x100, test_ram(f->m, USED), 0x100);
}

static void test_loop(Fixture *f, gconstpointer data)
{
    descriptor(f, DESC, 0, DATA, 8, F_NEXT, 1);
    descriptor(f, DESC, 1, DATA, 8, F_NEXT, 0);
    publish(f, 0);
    expect_broken(f, "loops");
}

static void test_empty_loop(Fixture *f, gconstpointer data)
{
    descriptor(f, DESC, 4, DATA, 0, F_NEXT, 4);
    publish(f, 4);
    expect_broken(f, "loops");
}

static void test_indirect_loop(Fixture *f, gconstpointer data)
{
    descriptor(f, DESC, 0, TABLE, 32, F_INDIRECT, 0);
    descriptor(f, TABLE, 0, DATA, 8, F_NEXT, 1);
    descriptor(f, TABLE, 1, DATA, 8, F_NEXT, 0);
    publish(f, 0);
    expect_broken(f, "loops");
}

static void test_next_outside(Fixture *f, gconstpointer data)
{
    descriptor(f, DESC, 0, DATA, 8, F_NEXT, SIZE);
    publish(f, 0);
    expect_broken(f, "next lies outside");
}

static void test_head_outside(Fixture *f, gconstpointer data)
{
    publish(f, SIZE);
    expect_broken(f, "names no descriptor");
}

static void test_index_jump(Fixture *f, gconstpointer data)
{
    put16(f, AVAIL + 2, SIZE + 1);
    expect_broken(f, "jumped");
}

static void test_outside_ram(Fixture *f, gconstpointer data)
{
    descriptor(f, DESC, 0, RAM - 4, 8, F_WRITE, 0);
    publish(f, 0);
    expect_broken(f, "outside RAM");
}

static void test_address_overflow(Fixture *f, gconstpointer data)
{
    descriptor(f, DESC, 0, UINT64_MAX - 3, 8, F_WRITE, 0);
    publish(f, 0);
    expect_broken(f, "outside RAM");
}

static void test_too_many_bytes(Fixture *f, gconstpointer data)
{
    descriptor(f, DESC, 0, 0, UINT32_MAX, F_NEXT, 1);
    publish(f, 0);
    expect_broken(f, "outside RAM"); /* no RAM is that large here; the sum is checked by fuzzing */
}

static void test_read_after_write(Fixture *f, gconstpointer data)
{
    descriptor(f, DESC, 0, DATA, 8, F_NEXT | F_WRITE, 1);
    descriptor(f, DESC, 1, DATA, 8, 0, 0);
    publish(f, 0);
    expect_broken(f, "readable descriptor follows");
}

static void test_nested_indirect(Fixture *f, gconstpointer data)
{
    descriptor(f, DESC, 0, TABLE, 16, F_INDIRECT, 0);
    descriptor(f, TABLE, 0, TABLE, 16, F_INDIRECT, 0);
    publish(f, 0);
    expect_broken(f, "indirect descriptor where none");
}

static void test_indirect_with_next(Fixture *f, gconstpointer data)
{
    descriptor(f, DESC, 0, TABLE, 16, F_INDIRECT | F_NEXT, 1);
    publish(f, 0);
    expect_broken(f, "indirect descriptor where none");
}

static void test_indirect_not_negotiated(Fixture *f, gconstpointer data)
{
    g_assert_true(virtq_enable(&f->q, f->m, false, false));
    descriptor(f, DESC, 0, TABLE, 16, F_INDIRECT, 0);
    publish(f, 0);
    expect_broken(f, "indirect descriptor where none");
}

static void test_indirect_length(Fixture *f, gconstpointer data)
{
    descriptor(f, DESC, 0, TABLE, 24, F_INDIRECT, 0);
    publish(f, 0);
    expect_broken(f, "multiple of 16");
}

static void test_indirect_outside(Fixture *f, gconstpointer data)
{
    descriptor(f, DESC, 0, RAM - 16, 32, F_INDIRECT, 0);
    publish(f, 0);
    expect_broken(f, "table lies outside RAM");
}

static void test_enable_checks(void)
{
    Machine *m = test_machine_new(RAM, 1);
    Virtqueue q = {.max_size = 256};
    static const struct {
        uint16_t size;
        uint64_t desc, avail, used;
        const char *words;
    } bad[] = {
        {0, DESC, AVAIL, USED, "power of two"},    {3, DESC, AVAIL, USED, "power of two"},
        {512, DESC, AVAIL, USED, "power of two"},  {8, DESC + 8, AVAIL, USED, "aligned"},
        {8, DESC, AVAIL + 1, USED, "aligned"},     {8, DESC, AVAIL, USED + 2, "aligned"},
        {8, RAM - 16, AVAIL, USED, "outside RAM"}, {8, DESC, RAM - 16, USED, "outside RAM"},
        {8, DESC, AVAIL, RAM - 64, "outside RAM"}, {8, DESC, AVAIL, ~(uint64_t)3, "outside RAM"},
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
        virtq_reset(&q);
        q.size = bad[i].size;
        q.desc_gpa = bad[i].desc;
        q.avail_gpa = bad[i].avail;
        q.used_gpa = bad[i].used;
        g_assert_false(virtq_enable(&q, m, true, true));
        g_assert_nonnull(strstr(q.error, bad[i].words));
        g_assert_cmpuint(q.enabled, ==, 0);
    }
    test_machine_free(m);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
#define ADD(name, f, event_idx)                                                                    \
    g_test_add("/virtqueue/" name, Fixture, GINT_TO_POINTER(event_idx), setup, f, teardown)
    ADD("chain", test_chain, false);
    ADD("indirect", test_indirect, false);
    ADD("wraps", test_wraps, false);
    ADD("notify-by-flags", test_flags_notify, false);
    ADD("notify-by-event-index", test_event_index, true);
    ADD("hostile/loop", test_loop, false);
    ADD("hostile/empty-loop", test_empty_loop, false);
    ADD("hostile/indirect-loop", test_indirect_loop, false);
    ADD("hostile/next-outside", test_next_outside, false);
    ADD("hostile/head-outside", test_head_outside, false);
    ADD("hostile/index-jump", test_index_jump, true);
    ADD("hostile/outside-ram", test_outside_ram, false);
    ADD("hostile/address-overflow", test_address_overflow, false);
    ADD("hostile/too-many-bytes", test_too_many_bytes, false);
    ADD("hostile/read-after-write", test_read_after_write, false);
    ADD("hostile/nested-indirect", test_nested_indirect, false);
    ADD("hostile/indirect-with-next", test_indirect_with_next, false);
    ADD("hostile/indirect-not-negotiated", test_indirect_not_negotiated, false);
    ADD("hostile/indirect-length", test_indirect_length, false);
    ADD("hostile/indirect-outside", test_indirect_outside, false);
    g_test_add_func("/virtqueue/enable-checks", test_enable_checks);
    return g_test_run();
}
