/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* How fast requests through a queue are: the counterpart of qemu-img bench, for side-by-side
 * figures. */
#include "cli/image/image.h"

#include <getopt.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SIZE_MAX_BYTES (16u << 20)

typedef struct Bench {
    const char *path, *cache, *format;
    uint64_t count, depth, size, step, offset;
    bool step_given, write, random, shared;
    int pattern;
    BlockNode *node;
    BlockQueue *queue;
    uint64_t submitted, completed, at;
    int error;
    uint32_t state;
} Bench;

typedef struct Slot {
    BlockRequest request;
    struct iovec iov;
    Bench *bench;
} Slot;

static uint64_t next_offset(Bench *b)
{
    uint64_t places = (block_size(b->node) - b->offset) / b->size;
    if (b->random) {
        b->state = b->state * 1664525u + 1013904223u;
        return b->offset + (((uint64_t)(b->state >> 4) * 2654435761u) % places) * b->size;
    }
    uint64_t at = b->at;
    b->at += b->step;
    if (b->at + b->size > block_size(b->node))
        b->at = b->offset;
    return at;
}

static void submit(Slot *slot)
{
    Bench *b = slot->bench;
    slot->request.offset = next_offset(b);
    b->submitted++;
    block_queue_submit(b->queue, &slot->request);
}

static void done(BlockRequest *request, int result)
{
    Slot *slot = (Slot *)request; /* its first member */
    Bench *b = slot->bench;
    b->completed++;
    if (result < 0)
        b->error = result;
    if (b->submitted < b->count && !b->error)
        submit(slot);
}

static int measure(Bench *b)
{
    g_autofree Slot *slots = g_new0(Slot, b->depth);
    void *memory = NULL;
    if (posix_memalign(&memory, 4096, b->size * b->depth))
        return image_fail("bench: no memory");
    memset(memory, b->pattern, b->size * b->depth);
    printf("Sending %" G_GUINT64_FORMAT " %s requests, %" G_GUINT64_FORMAT
           " bytes each, %" G_GUINT64_FORMAT " in parallel (starting at offset %" G_GUINT64_FORMAT
           ", step size %" G_GUINT64_FORMAT "%s)\n",
           b->count, b->write ? "write" : "read", b->size, b->depth, b->offset, b->step,
           b->random ? ", in random order" : "");
    gint64 start = g_get_monotonic_time();
    block_queue_plug(b->queue);
    for (uint64_t i = 0; i < b->depth && b->submitted < b->count; i++) {
        Slot *slot = &slots[i];
        slot->bench = b;
        slot->iov = (struct iovec){(char *)memory + i * b->size, b->size};
        slot->request = (BlockRequest){
            .op = b->write ? BLOCK_WRITE : BLOCK_READ, .iov = &slot->iov, .n_iov = 1, .done = done};
        submit(slot);
    }
    block_queue_unplug(b->queue);
    while (b->completed < b->submitted) {
        struct pollfd event = {.fd = block_queue_fd(b->queue), .events = POLLIN};
        poll(&event, 1, -1);
        block_queue_plug(b->queue);
        block_queue_reap(b->queue);
        block_queue_unplug(b->queue);
    }
    double seconds = (double)(g_get_monotonic_time() - start) / 1e6;
    free(memory);
    if (b->error)
        return image_fail("Failed request: %s", g_strerror(-b->error));
    printf("Run completed in %3.3f seconds.\n", seconds);
    return 0;
}

static int bench(Bench *b)
{
    g_autoptr(GError) error = NULL;
    ImageOpen open = {
        .format = b->format, .write = b->write, .shared = b->shared, .cache = b->cache};
    g_autoptr(BlockNode) node = image_open(b->path, &open);
    if (!node)
        return 1;
    if (b->offset > block_size(node) || block_size(node) - b->offset < b->size)
        return image_fail("bench: the image is smaller than one request");
    b->node = node;
    b->at = b->offset;
    b->queue = block_queue_new(node, (unsigned)b->depth, &error);
    if (!b->queue)
        return image_fail("%s", error->message);
    int status = measure(b);
    block_queue_free(b->queue);
    return status;
}

static bool number(const char *name, uint64_t *value, uint64_t least, uint64_t most)
{
    if (block_parse_size(optarg, value) && *value >= least && *value <= most)
        return true;
    image_fail("Invalid %s specified: '%s'", name, optarg);
    return false;
}

static const struct option long_options[] = {{"pattern", required_argument, NULL, 'P'},
                                             {"force-share", no_argument, NULL, 'U'},
                                             {"random", no_argument, NULL, 'R'},
                                             {NULL, 0, NULL, 0}};

static int run(int argc, char **argv)
{
    Bench b = {.count = 75000, .depth = 64, .size = 4096, .state = 1};
    uint64_t pattern = 0;
    bool ok = true;
    int option;
    opterr = 0;
    while (ok &&
           (option = getopt_long(argc, argv, "c:d:f:no:s:S:t:wU", long_options, NULL)) != -1) {
        switch (option) {
        case 'c':
            ok = number("request count", &b.count, 1, INT32_MAX);
            break;
        case 'd':
            ok = number("queue depth", &b.depth, 1, 1024);
            break;
        case 'f':
            b.format = optarg;
            break;
        case 'n':
            b.cache = "none";
            break;
        case 'o':
            ok = number("offset", &b.offset, 0, INT64_MAX);
            break;
        case 's':
            ok = number("buffer size", &b.size, 512, SIZE_MAX_BYTES);
            break;
        case 'S':
            ok = number("step size", &b.step, 1, INT64_MAX);
            b.step_given = true;
            break;
        case 't':
            b.cache = optarg;
            break;
        case 'w':
            b.write = true;
            break;
        case 'P':
            ok = number("pattern byte", &pattern, 0, 255);
            break;
        case 'R':
            b.random = true;
            break;
        case 'U':
            b.shared = true;
            break;
        default:
            return image_usage("unrecognized option '%s'", argv[optind - 1]);
        }
    }
    if (!ok)
        return 1;
    if (argc - optind != 1)
        return image_fail("bench: expecting one image file name");
    b.pattern = (int)pattern;
    b.step = b.step_given ? b.step : b.size;
    b.path = argv[optind];
    return bench(&b);
}

const ImageCommand image_bench_command = {
    .name = "bench",
    .run = run,
    .usage =
        "[-c COUNT] [-d DEPTH] [-f FORMAT] [-n] [-o OFFSET] [--pattern=N] [-s SIZE] [-S STEP]\n"
        "          [-t CACHE] [-w] [--random] [-U] FILE",
};
