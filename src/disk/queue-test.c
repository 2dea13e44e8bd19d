/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Queues: on io_uring and on threads, many requests, many queues on one image. */
#include "base/bytes.h"
#include "disk/image.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <poll.h>
#include <string.h>

#define STRIPE   4096u
#define STRIPES  600u
#define WORKERS  3u

typedef struct Fixture {
    char *folder, *path;
    BlockNode *node;
} Fixture;

static void setup(Fixture *f, const char *format, uint64_t size, uint64_t cluster)
{
    g_autoptr(GError) error = NULL;
    f->folder = g_dir_make_tmp("lodge-queue-XXXXXX", NULL);
    f->path = g_build_filename(f->folder, "image", NULL);
    json_auto_t *named = json_object();
    if (cluster)
        json_object_set_new(named, "cluster_size", json_integer((json_int_t)cluster));
    BlockCreate create = {.path = f->path, .format = format, .size = size, .options = named};
    g_assert_true(block_create(&create, &error));
    BlockOpen options = {.path = f->path, .format = format, .discard_unmap = true};
    f->node = block_open(&options, &error);
    g_assert_no_error(error);
}

static void teardown(Fixture *f)
{
    block_unref(f->node);
    g_unlink(f->path);
    g_rmdir(f->folder);
    g_free(f->path);
    g_free(f->folder);
}

static BlockQueue *new_queue(Fixture *f, unsigned depth)
{
    g_autoptr(GError) error = NULL;
    BlockQueue *queue = block_queue_new(f->node, depth, &error);
    g_assert_no_error(error);
    return queue;
}

typedef struct Work {
    BlockRequest request; /* first, so that one can be taken for the other */
    struct iovec iov;
    uint8_t bytes[STRIPE];
    int result;
    unsigned times;
    BlockQueue *again;
} Work;

static void done(BlockRequest *request, int result)
{
    Work *w = (Work *)request;
    w->result = result;
    w->times++;
    if (w->again && w->times < 3)
        block_queue_submit(w->again, request);
}

static void prepare(Work *w, BlockOp op, uint64_t offset, uint8_t value)
{
    memset(w, 0, sizeof(*w));
    memset(w->bytes, value, sizeof(w->bytes));
    w->iov = (struct iovec){w->bytes, sizeof(w->bytes)};
    w->result = 1;
    w->request = (BlockRequest){.op = op, .offset = offset, .length = STRIPE, .iov = &w->iov,
                                .n_iov = 1, .done = done};
}

/* More requests than the queue is deep; then one that fails, and some made by done. */
static void test_depth(gconstpointer format)
{
    Fixture f;
    setup(&f, format, STRIPES * STRIPE, 0);
    BlockQueue *queue = new_queue(&f, 4);
    g_autofree Work *works = g_new0(Work, STRIPES);
    for (unsigned i = 0; i < STRIPES; i++) {
        prepare(&works[i], BLOCK_WRITE, (uint64_t)i * STRIPE, (uint8_t)(i % 255 + 1));
        block_queue_submit(queue, &works[i].request);
    }
    block_queue_drain(queue);
    block_queue_plug(queue);
    for (unsigned i = 0; i < STRIPES; i++) {
        g_assert_cmpint(works[i].result, ==, 0);
        prepare(&works[i], BLOCK_READ, (uint64_t)i * STRIPE, 0);
        block_queue_submit(queue, &works[i].request);
    }
    block_queue_unplug(queue);
    unsigned reaped = 0;
    while (reaped < STRIPES) {
        struct pollfd event = {.fd = block_queue_fd(queue), .events = POLLIN};
        g_assert_cmpint(poll(&event, 1, 10000), ==, 1);
        reaped += block_queue_reap(queue);
    }
    for (unsigned i = 0; i < STRIPES; i++) {
        g_assert_cmpint(works[i].result, ==, 0);
        g_assert_cmpuint(works[i].times, ==, 1);
        g_assert_cmpuint(works[i].bytes[0], ==, i % 255 + 1);
        g_assert_cmpuint(works[i].bytes[STRIPE - 1], ==, i % 255 + 1);
    }
    prepare(&works[0], BLOCK_READ, STRIPES * STRIPE - 512, 0);
    prepare(&works[1], BLOCK_WRITE, UINT64_MAX - 100, 0);
    prepare(&works[2], BLOCK_FLUSH, 0, 0);
    works[2].again = queue;
    for (unsigned i = 0; i < 3; i++)
        block_queue_submit(queue, &works[i].request);
    block_queue_drain(queue);
    g_assert_cmpint(works[0].result, ==, -EINVAL);
    g_assert_cmpint(works[1].result, ==, -EINVAL);
    g_assert_cmpint(works[2].result, ==, 0);
    g_assert_cmpuint(works[2].times, ==, 3);
    g_assert_cmpuint(block_queue_reap(queue), ==, 0);
    block_queue_free(queue);
    teardown(&f);
}

/* The last sector of a raw file that is no multiple of 512 bytes long reads on as zeroes. */
static void test_short_file(void)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *folder = g_dir_make_tmp("lodge-queue-XXXXXX", NULL);
    g_autofree char *path = g_build_filename(folder, "image", NULL);
    g_autofree char *text = g_strnfill(5000, 'x');
    g_assert_true(g_file_set_contents(path, text, 5000, NULL));
    BlockOpen options = {.path = path, .format = "raw", .read_only = true};
    BlockNode *node = block_open(&options, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(block_size(node), ==, 5120);
    BlockQueue *queue = block_queue_new(node, 2, &error);
    Work w, refused;
    prepare(&w, BLOCK_READ, 1024, 7);
    prepare(&refused, BLOCK_WRITE, 0, 7);
    block_queue_submit(queue, &w.request);
    block_queue_submit(queue, &refused.request);
    block_queue_drain(queue);
    g_assert_cmpint(w.result, ==, 0);
    g_assert_cmpint(refused.result, ==, -EROFS);
    for (unsigned i = 0; i < STRIPE; i++)
        g_assert_cmpuint(w.bytes[i], ==, i < 5000 - 1024 ? 'x' : 0);
    block_queue_free(queue);
    block_unref(node);
    g_unlink(path);
    g_rmdir(folder);
}

/* One thread with two queues: draining one must not need the other to be reaped. */
static void test_two_queues(void)
{
    Fixture f;
    setup(&f, "qcow2", MIB(4), 65536);
    BlockQueue *a = new_queue(&f, 8), *b = new_queue(&f, 8);
    Work write, again, discard;
    for (int i = 0; i < 50; i++) {
        prepare(&write, BLOCK_WRITE, 0, 1);
        block_queue_submit(a, &write.request);
        block_queue_drain(a);
        prepare(&again, BLOCK_WRITE, STRIPE, 2);
        prepare(&discard, BLOCK_DISCARD, 0, 0);
        discard.request.length = 65536;
        block_queue_submit(b, &again.request); /* finished, but not reaped */
        block_queue_submit(a, &discard.request);
        block_queue_drain(a);
        g_assert_cmpint(discard.result, ==, 0);
        g_assert_cmpint(block_discard(f.node, 0, 65536), ==, 0);
        block_queue_drain(b);
        g_assert_cmpint(again.result, ==, 0);
    }
    block_queue_free(a);
    block_queue_free(b);
    teardown(&f);
}

typedef struct Stress {
    Fixture *f;
    unsigned index;
    guint32 seed;
} Stress;

/* Every worker owns every third stripe: neighbours share clusters, but no bytes. */
static gpointer stress(gpointer data)
{
    const Stress *s = data;
    uint8_t model[STRIPES] = {0};
    bool busy[STRIPES] = {false};
    BlockQueue *queue = new_queue(s->f, 16);
    GRand *random = g_rand_new_with_seed(s->seed);
    g_autofree Work *works = g_new0(Work, 8);
    for (unsigned round = 0; round < 120; round++) {
        unsigned n = (unsigned)g_rand_int_range(random, 1, 9);
        unsigned where[8];
        memset(busy, 0, sizeof(busy));
        for (unsigned i = 0; i < n; i++) {
            unsigned stripe = (unsigned)g_rand_int_range(random, 0, STRIPES / WORKERS) * WORKERS + s->index;
            int kind = g_rand_int_range(random, 0, 10);
            uint8_t value = (uint8_t)g_rand_int_range(random, 1, 256);
            BlockOp op = kind < 5 ? BLOCK_WRITE : kind < 7 ? BLOCK_READ : kind < 9 ? BLOCK_WRITE_ZEROES : BLOCK_FLUSH;
            if (busy[stripe])
                op = BLOCK_FLUSH;
            busy[stripe] = true;
            where[i] = stripe;
            prepare(&works[i], op, (uint64_t)stripe * STRIPE, value);
            if (op == BLOCK_WRITE_ZEROES)
                works[i].request.flags = BLOCK_UNMAP;
            if (op == BLOCK_WRITE && kind == 0)
                works[i].request.flags = BLOCK_FUA;
            block_queue_submit(queue, &works[i].request);
        }
        block_queue_drain(queue);
        for (unsigned i = 0; i < n; i++) {
            g_assert_cmpint(works[i].result, ==, 0);
            if (works[i].request.op == BLOCK_WRITE)
                model[where[i]] = works[i].bytes[0];
            if (works[i].request.op == BLOCK_WRITE_ZEROES)
                model[where[i]] = 0;
            for (unsigned k = 0; works[i].request.op == BLOCK_READ && k < STRIPE; k += 512)
                g_assert_cmpuint(works[i].bytes[k], ==, model[where[i]]);
        }
    }
    for (unsigned stripe = s->index; stripe < STRIPES; stripe += WORKERS) {
        prepare(&works[0], BLOCK_READ, (uint64_t)stripe * STRIPE, 0);
        g_assert_cmpint(block_readv(s->f->node, (uint64_t)stripe * STRIPE, &works[0].iov, 1), ==, 0);
        g_assert_cmpuint(works[0].bytes[5], ==, model[stripe]);
    }
    g_rand_free(random);
    block_queue_free(queue);
    return NULL;
}

static void test_stress(gconstpointer cluster)
{
    g_autoptr(GError) error = NULL;
    Fixture f;
    setup(&f, "qcow2", STRIPES * STRIPE, GPOINTER_TO_SIZE(cluster));
    Stress work[WORKERS];
    GThread *threads[WORKERS];
    for (unsigned i = 0; i < WORKERS; i++) {
        work[i] = (Stress){&f, i, (guint32)g_test_rand_int()};
        threads[i] = g_thread_new("stress", stress, &work[i]);
    }
    for (unsigned i = 0; i < 200; i++) {
        BlockExtent extent;
        g_assert_cmpint(block_status(f.node, i * STRIPE, STRIPE, &extent), ==, 0);
        g_assert_cmpint(block_discard(f.node, 0, 0), ==, 0);
        g_usleep(200);
    }
    for (unsigned i = 0; i < WORKERS; i++)
        g_thread_join(threads[i]);
    g_assert_cmpint(block_flush(f.node), ==, 0);
    BlockCheck check = {0};
    g_assert_true(block_check(f.node, &check, &error));
    g_assert_cmpuint(check.corruptions + check.leaks, ==, 0);
    teardown(&f);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_data_func("/disk/queue/depth/raw", "raw", test_depth);
    g_test_add_data_func("/disk/queue/depth/qcow2", "qcow2", test_depth);
    g_test_add_func("/disk/queue/short-file", test_short_file);
    g_test_add_func("/disk/queue/two-queues", test_two_queues);
    g_test_add_data_func("/disk/queue/stress/64k", GSIZE_TO_POINTER(65536), test_stress);
    g_test_add_data_func("/disk/queue/stress/512", GSIZE_TO_POINTER(512), test_stress);
    return g_test_run();
}
