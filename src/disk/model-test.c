/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Random requests on images of every shape, beside a copy of the disk in memory. */
#include "base/bytes.h"
#include "disk/block.h"
#include "disk/image.h"

#include <glib/gstdio.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct Shape {
    const char *name, *format;
    uint64_t size;
    const char *options; /* of `-o`; DATA: a file's name */
    bool backed, direct;
    unsigned operations;
} Shape;

static const Shape shapes[] = {
    {"raw", "raw", MIB(3) + 512, "", false, false, 400},
    {"raw-direct", "raw", MIB(2), "", false, true, 200},
    {"qcow2", "qcow2", MIB(9) + 512, "", false, false, 500},
    {"qcow2-direct", "qcow2", MIB(4), "cluster_size=4096", false, true, 300},
    {"qcow2-512", "qcow2", MIB(1) + 7 * 512, "cluster_size=512", false, false, 800},
    {"qcow2-512-64bit", "qcow2", KIB(700), "cluster_size=512,refcount_bits=64", true, false, 600},
    {"qcow2-1bit", "qcow2", MIB(3), "cluster_size=4096,refcount_bits=1", true, false, 500},
    {"qcow2-4bit", "qcow2", MIB(3), "cluster_size=4096,refcount_bits=4,compression_type=zstd", false, false, 400},
    {"qcow2-v2", "qcow2", MIB(8) + 1024, "cluster_size=65536,compat=0.10", true, false, 500},
    {"qcow2-2m", "qcow2", MIB(24), "cluster_size=2M", true, false, 60},
    {"qcow2-zstd", "qcow2", MIB(5), "cluster_size=65536,compression_type=zstd", true, false, 300},
    {"qcow2-extended", "qcow2", MIB(9) + 512, "extended_l2=on", true, false, 600},
    {"qcow2-extended-16k", "qcow2", MIB(5),
     "extended_l2=on,cluster_size=16k,compression_type=zstd", true, false, 600},
    {"qcow2-extended-2m", "qcow2", MIB(24), "extended_l2=on,cluster_size=2M", false, false, 100},
    {"qcow2-extended-metadata", "qcow2", MIB(6), "extended_l2=on,preallocation=metadata", true, false, 300},
    {"qcow2-data-file", "qcow2", MIB(9), "data_file=DATA", true, false, 400},
    {"qcow2-data-file-direct", "qcow2", MIB(9), "data_file=DATA,cluster_size=4k", false, true, 300},
    {"qcow2-data-file-raw", "qcow2", MIB(5) + 512,
     "data_file=DATA,data_file_raw=on,cluster_size=32k", false, false, 400},
    {"qcow2-data-file-extended", "qcow2", MIB(9), "data_file=DATA,extended_l2=on", true, false, 400},
    {"qcow2-full", "qcow2", MIB(9), "preallocation=full", false, false, 300},
    {"qcow2-falloc", "qcow2", MIB(9), "preallocation=falloc,extended_l2=on", true, false, 300},
    {"qcow2-metadata", "qcow2", MIB(16), "cluster_size=65536,preallocation=metadata", false, false, 300},
};

typedef struct Bench {
    char *folder, *path, *base, *data;
    uint8_t *model;
    uint64_t size;
    BlockNode *node;
    BlockQueue *queue;
} Bench;

static int last_result;
static void note_result(BlockRequest *request, int result)
{
    last_result = result;
}

static int perform(Bench *b, BlockRequest *request, bool queued)
{
    if (queued) {
        request->done = note_result;
        last_result = 1;
        block_queue_submit(b->queue, request);
        while (last_result == 1) {
            struct pollfd event = {.fd = block_queue_fd(b->queue), .events = POLLIN};
            g_assert_cmpint(poll(&event, 1, 10000), ==, 1);
            block_queue_reap(b->queue);
        }
        return last_result;
    }
    switch (request->op) {
    case BLOCK_READ:
        return block_readv(b->node, request->offset, request->iov, request->n_iov);
    case BLOCK_WRITE:
        return block_writev(b->node, request->offset, request->iov, request->n_iov,
                            request->flags);
    case BLOCK_WRITE_ZEROES:
        return block_write_zeroes(b->node, request->offset, request->length, request->flags);
    case BLOCK_DISCARD:
        return block_discard(b->node, request->offset, request->length);
    case BLOCK_FLUSH:
        return block_flush(b->node);
    }
    return -1;
}

static int split(struct iovec *iov, uint8_t *buffer, uint64_t length)
{
    int n = 0;
    while (length > 0 && n < 5) {
        uint64_t part = length;
        if (n < 4 && length > 512)
            part = 512ull * (uint64_t)g_random_int_range(1, (int)(length / 512) + 1);
        iov[n++] = (struct iovec){buffer, part};
        buffer += part;
        length -= part;
    }
    return n;
}

static void random_operation(Bench *b, uint8_t *buffer, uint64_t most)
{
    struct iovec iov[5];
    BlockRequest request = {.iov = iov};
    bool queued = g_random_boolean();
    uint64_t sectors = b->size / 512;
    uint64_t length = 512ull * (uint64_t)g_random_int_range(1, (int)(most / 512) + 1);
    uint64_t offset = 512ull * (uint64_t)g_random_int_range(0, (int)sectors);
    length = MIN(length, b->size - offset);
    int kind = g_random_int_range(0, 100);
    request.offset = offset;
    request.length = length;
    if (kind < 45) {
        request.op = BLOCK_WRITE;
        memset(buffer, g_random_int_range(1, 256), length);
        buffer[0] = (uint8_t)kind;
        request.n_iov = split(iov, buffer, length);
        request.flags = kind == 0 ? BLOCK_FUA : 0;
        memcpy(b->model + offset, buffer, length);
    } else if (kind < 80) {
        request.op = BLOCK_READ;
        memset(buffer, 0x5a, length);
        request.n_iov = split(iov, buffer, length);
    } else if (kind < 90) {
        request.op = BLOCK_WRITE_ZEROES;
        request.flags = kind & 1 ? BLOCK_UNMAP : 0;
        memset(b->model + offset, 0, length);
    } else if (kind < 97) {
        request.op = BLOCK_DISCARD;
    } else {
        request.op = BLOCK_FLUSH;
    }
    g_assert_cmpint(perform(b, &request, queued), ==, 0);
    if (request.op == BLOCK_READ)
        g_assert_cmpint(memcmp(buffer, b->model + offset, length), ==, 0);
    if (request.op == BLOCK_DISCARD) { /* old content or zeroes, a cluster at a time */
        struct iovec all = {b->model + offset, length};
        g_autofree uint8_t *before = g_memdup2(b->model + offset, length);
        g_assert_cmpint(block_readv(b->node, offset, &all, 1), ==, 0);
        for (uint64_t i = 0; i < length; i++)
            g_assert_true(b->model[offset + i] == before[i] || b->model[offset + i] == 0 ||
                          b->base);
    }
}

static void verify(Bench *b)
{
    g_autofree uint8_t *all = g_malloc(b->size);
    struct iovec iov = {all, b->size};
    g_assert_cmpint(block_readv(b->node, 0, &iov, 1), ==, 0);
    g_assert_cmpint(memcmp(all, b->model, b->size), ==, 0);
}

static void open_node(Bench *b, const Shape *shape)
{
    g_autoptr(GError) error = NULL;
    BlockOpen options = {.path = b->path, .format = shape->format, .discard_unmap = true,
                         .direct = shape->direct};
    b->node = block_open(&options, &error);
    g_assert_no_error(error);
    b->queue = block_queue_new(b->node, 8, &error);
    g_assert_no_error(error);
}

static void close_node(Bench *b)
{
    block_queue_free(b->queue);
    block_unref(b->node);
}

static void make(Bench *b, const Shape *shape)
{
    g_autoptr(GError) error = NULL;
    b->folder = g_dir_make_tmp("lodge-disk-XXXXXX", &error);
    g_assert_no_error(error);
    b->path = g_build_filename(b->folder, "image", NULL);
    b->size = shape->size;
    b->model = g_malloc0(b->size);
    if (shape->backed) { /* shorter than the image, and a raw file */
        b->base = g_build_filename(b->folder, "base", NULL);
        uint64_t length = b->size / 2 - 1000;
        for (uint64_t i = 0; i < length; i++)
            b->model[i] = (uint8_t)(i / 512 * 7 + 3);
        g_assert_true(g_file_set_contents(b->base, (char *)b->model, (gssize)length, NULL));
    }
    json_auto_t *named = json_object();
    b->data = g_build_filename(b->folder, "data", NULL);
    g_auto(GStrv) parts = g_strsplit(shape->options, "DATA", -1);
    g_autofree char *options_text = g_strjoinv(b->data, parts);
    g_assert_true(block_options_parse(options_text, NULL, NULL, named, &error));
    BlockCreate create = {.path = b->path,
                          .format = shape->format,
                          .size = shape->size,
                          .options = named,
                          .backing = shape->backed ? "base" : NULL,
                          .backing_format = shape->backed ? "raw" : NULL};
    g_assert_true(block_create(&create, &error));
    g_assert_no_error(error);
}

static void check_by_qemu(const Bench *b, const Shape *shape)
{
    g_autofree char *tool = g_find_program_in_path("qemu-img");
    if (!tool || strcmp(shape->format, "qcow2"))
        return;
    const char *argv[] = {tool, "check", "-q", "-f", "qcow2", b->path, NULL};
    int status = 0;
    g_assert_true(g_spawn_sync(NULL, (char **)argv, NULL, 0, NULL, NULL, NULL, NULL, &status,
                               NULL));
    g_assert_cmpint(status, ==, 0);
}

static void run_shape(gconstpointer data)
{
    const Shape *shape = data;
    Bench b = {0};
    uint64_t most = MIN(shape->size / 3, KIB(300));
    g_autofree uint8_t *raw = g_malloc(most + 8192);
    uint8_t *buffer = (uint8_t *)align_up((uintptr_t)raw, 4096);
    make(&b, shape);
    for (int round = 0; round < 2; round++) {
        open_node(&b, shape);
        verify(&b);
        if (round == 0 && strstr(shape->options, "compression")) {
            memset(buffer, 0x77, 65536);
            uint64_t cluster = block_cluster_size(b.node);
            for (uint64_t at = 0; at + cluster <= shape->size / 4; at += cluster) {
                g_assert_cmpint(block_write_compressed(b.node, at, buffer, cluster), ==, 0);
                memset(b.model + at, 0x77, cluster);
            }
            verify(&b);
        }
        for (unsigned i = 0; i < shape->operations; i++)
            random_operation(&b, buffer, i % 8 ? MIN(most, 8192) : most);
        verify(&b);
        close_node(&b);
        check_by_qemu(&b, shape);
    }
    if (strstr(shape->options, "data_file_raw")) {
        g_autofree char *content = NULL;
        gsize length = 0;
        g_assert_true(g_file_get_contents(b.data, &content, &length, NULL));
        g_assert_cmpuint(length, ==, shape->size);
        g_assert_cmpint(memcmp(content, b.model, length), ==, 0);
    }
    g_unlink(b.path);
    if (b.base)
        g_unlink(b.base);
    g_rmdir(b.folder);
    g_free(b.path);
    g_free(b.base);
    g_unlink(b.data);
    g_free(b.data);
    g_free(b.folder);
    g_free(b.model);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    for (size_t i = 0; i < G_N_ELEMENTS(shapes); i++) {
        g_autofree char *name = g_strdup_printf("/disk/model/%s", shapes[i].name);
        g_test_add_data_func(name, &shapes[i], run_shape);
    }
    return g_test_run();
}
