/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* How fast requests through a queue are. */
#include "cli/image/image.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEPTH_MAX 1024 /* of a queue */

enum { PATTERN = IMAGE_OWN, FLUSH_INTERVAL, NO_DRAIN };

typedef struct Bench {
    ImageArguments arguments;
    uint64_t count, depth, size, step, offset, pattern, flush_interval;
    bool write, no_drain;
    BlockNode *node;
    BlockQueue *queue;
    uint64_t submitted, completed, at; /* requests; where the next one goes */
    uint64_t idle;                     /* slots without a request */
    bool flushing, flush_due;
    BlockRequest flush;
    struct Slot *slots;
    int error;
} Bench;

typedef struct Slot {
    BlockRequest request; /* first, so that one can be taken for the other */
    struct iovec iov;
    Bench *bench;
    bool busy;
} Slot;

static void submit(Slot *slot)
{
    Bench *b = slot->bench;
    uint64_t disk = block_size(b->node);
    slot->request.offset = b->at;
    b->at = (b->at + b->step) % disk;
    b->submitted++;
    b->flush_due = b->flush_interval && b->submitted % b->flush_interval == 0;
    slot->busy = true;
    b->idle--;
    block_queue_submit(b->queue, &slot->request);
}

static void fill(Bench *b);

static void flushed(BlockRequest *request, int result)
{
    Bench *b = (Bench *)((char *)request - G_STRUCT_OFFSET(Bench, flush));
    b->flushing = false;
    if (result < 0)
        b->error = result;
    fill(b);
}

/* Flushes when it is time, with nothing else in flight unless --no-drain; then more requests. */
static void fill(Bench *b)
{
    for (;;) {
        if (b->flush_due && !b->flushing && (b->no_drain || b->idle == b->depth)) {
            b->flush_due = false;
            b->flushing = true;
            b->flush = (BlockRequest){.op = BLOCK_FLUSH, .done = flushed};
            block_queue_submit(b->queue, &b->flush);
        }
        if (b->error || b->submitted >= b->count || b->idle == 0 || b->flush_due ||
            (b->flushing && !b->no_drain))
            return;
        Slot *slot = b->slots;
        while (slot->busy)
            slot++;
        submit(slot);
    }
}

static void done(BlockRequest *request, int result)
{
    Slot *slot = (Slot *)request;
    Bench *b = slot->bench;
    b->completed++;
    b->idle++;
    slot->busy = false;
    if (result < 0)
        b->error = result;
    if (b->flush_interval)
        fill(b);
    else if (b->submitted < b->count && !b->error)
        submit(slot);
}

static void prepare(Bench *b, char *memory)
{
    b->slots = g_new0(Slot, b->depth);
    b->idle = b->depth;
    for (uint64_t i = 0; i < b->depth; i++) {
        Slot *slot = &b->slots[i];
        slot->bench = b;
        slot->iov = (struct iovec){memory + i * b->size, b->size};
        slot->request = (BlockRequest){.op = b->write ? BLOCK_WRITE : BLOCK_READ,
                                       .iov = &slot->iov,
                                       .n_iov = 1,
                                       .done = done};
    }
}

static int measure(Bench *b)
{
    void *memory = NULL;
    if (posix_memalign(&memory, 4096, MAX(b->size * b->depth, 1)))
        return image_fail("%s", g_strerror(ENOMEM));
    memset(memory, (int)b->pattern, b->size * b->depth);
    prepare(b, memory);
    int64_t start = g_get_monotonic_time();
    block_queue_plug(b->queue);
    fill(b);
    block_queue_unplug(b->queue);
    while (b->completed < b->submitted || b->flushing) {
        block_queue_plug(b->queue);
        unsigned reaped = block_queue_reap(b->queue);
        block_queue_unplug(b->queue);
        struct pollfd event = {.fd = block_queue_fd(b->queue), .events = POLLIN};
        if (reaped == 0)
            poll(&event, 1, -1);
    }
    double seconds = (double)(g_get_monotonic_time() - start) / 1e6;
    free(memory);
    g_free(b->slots);
    if (b->error)
        return image_fail("Failed request: %s", g_strerror(-b->error));
    printf("Run completed in %3.3f seconds.\n", seconds);
    return 0;
}

static void announce(const Bench *b)
{
    printf("Sending %" G_GUINT64_FORMAT " %s requests, %" G_GUINT64_FORMAT
           " bytes each, %" G_GUINT64_FORMAT " in parallel (starting at offset %" G_GUINT64_FORMAT
           ", step size %" G_GUINT64_FORMAT ")\n",
           b->count, b->write ? "write" : "read", b->size, b->depth, b->offset, b->step);
    if (b->flush_interval)
        printf("Sending flush every %" G_GUINT64_FORMAT " requests\n", b->flush_interval);
    fflush(stdout);
}

static int bench(Bench *b)
{
    g_autoptr(GError) error = NULL;
    const ImageArguments *a = &b->arguments;
    ImageOpen open = {.format = a->format,
                      .write = b->write,
                      .shared = a->shared,
                      .image_opts = a->image_opts,
                      .cache = a->cache};
    if (!b->write && b->flush_interval)
        return image_fail("--flush-interval is only available in write tests");
    if (b->flush_interval && b->flush_interval < b->depth)
        return image_fail("Flush interval can't be smaller than depth");
    if (b->depth < 1 || b->depth > DEPTH_MAX)
        return image_fail("Invalid queue depth specified: 1 to %d are possible", DEPTH_MAX);
    g_autoptr(BlockNode) node = image_open(a->names[0], &open);
    if (!node)
        return 1;
    b->node = node;
    b->at = b->offset;
    announce(b);
    /* One more for a flush beside full slots. */
    b->queue = block_queue_new(node, (unsigned)MIN(b->depth + 1, DEPTH_MAX), &error);
    if (!b->queue)
        return image_fail("%s", error->message);
    int status = measure(b);
    block_queue_free(b->queue);
    return status;
}

/* A plain number, as strtoul reads it. */
static bool plain(const char *what, const char *text, uint64_t most, uint64_t *value)
{
    char *end;
    errno = 0;
    *value = strtoull(text, &end, 0);
    if (end != text && !*end && errno == 0 && *value <= most && !strchr(text, '-'))
        return true;
    image_fail("Invalid %s specified", what);
    return false;
}

static bool apply_aio(const char *value)
{
    if (!strcmp(value, "threads") || !strcmp(value, "native") || !strcmp(value, "io_uring"))
        return true; /* the queue takes the best there is */
    image_fail("Invalid aio option: %s", value);
    return false;
}

static ImageApplied apply(void *opaque, int key, const char *value)
{
    Bench *b = opaque;
    bool ok = true;
    switch (key) {
    case 'c':
        ok = plain("request count", value, INT32_MAX, &b->count);
        break;
    case 'd':
        ok = plain("queue depth", value, INT32_MAX, &b->depth);
        break;
    case 'n':
        break;
    case 'i':
        ok = apply_aio(value);
        break;
    case 'o':
        ok = image_parse_number("offset", value, 0, INT64_MAX, &b->offset);
        break;
    case 's':
        ok = image_parse_number("buffer size", value, 0, INT32_MAX, &b->size);
        break;
    case 'S':
        ok = image_parse_number("step_size", value, 0, INT32_MAX, &b->step);
        break;
    case 'w':
        b->write = true;
        break;
    case PATTERN:
        ok = plain("pattern byte", value, 255, &b->pattern);
        break;
    case FLUSH_INTERVAL:
        ok = plain("flush interval", value, INT32_MAX, &b->flush_interval);
        break;
    case NO_DRAIN:
        b->no_drain = true;
        break;
    default:
        return IMAGE_NOT_MINE;
    }
    return ok ? IMAGE_APPLIED : IMAGE_REFUSED;
}

static const ImageOption options[] = {
    IMAGE_OPTION_HELP,
    IMAGE_OPTION_IMAGE_OPTS,
    IMAGE_OPTION_SHARE,
    IMAGE_OPTION_QUIET,
    IMAGE_OPTION_FORMAT,
    IMAGE_OPTION_CACHE,
    {'c', NULL, "COUNT", "how many requests"},
    {'d', NULL, "DEPTH", "how many at a time"},
    {'n', NULL, NULL, "accepted; the best way of I/O is always taken"},
    {'i', NULL, "AIO", "likewise: threads, native or io_uring"},
    {'o', NULL, "OFFSET", "where the first goes"},
    {'s', NULL, "BUFFER_SIZE", "bytes of each"},
    {'S', NULL, "STEP_SIZE", "from the start of one to that of the next"},
    {'w', NULL, NULL, "write"},
    {PATTERN, "pattern", "BYTE", "what is written"},
    {FLUSH_INTERVAL, "flush-interval", "N", "flush after so many"},
    {NO_DRAIN, "no-drain", NULL, "without waiting for those in flight"},
    {0, NULL, NULL, NULL},
};

static int run(int argc, char **argv)
{
    Bench b = {.count = 75000, .depth = 64, .size = 4096};
    int status;
    if (image_parse(options, argc, argv, &b.arguments, apply, &b, &status)) {
        b.step = b.step ? b.step : b.size;
        status = b.arguments.n_names == 1 ? bench(&b) : image_usage("Expecting one image file name");
    }
    image_arguments_clear(&b.arguments);
    return status;
}

const ImageCommand image_bench_command = {
    .name = "bench",
    .run = run,
    .usage = "[--image-opts] [-c count] [-d depth] [-f fmt] [--flush-interval=flush_interval] [-i aio] [-n] "
             "[--no-drain] [-o offset] [--pattern=pattern] [-q] [-s buffer_size] [-S step_size] "
             "[-t cache] [-w] [-U] filename",
    .options = options,
};
