/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "cli/image/image.h"

#include <getopt.h>
#include <stdio.h>
#include <string.h>

#define CHUNK (2u << 20)

enum { EXIT_DIFFERENT = 1, EXIT_OPEN = 2, EXIT_STATUS = 3, EXIT_READ = 4 };

typedef struct Compare {
    BlockNode *a, *b;
    const char *a_path, *b_path;
    bool strict, quiet, progress;
    uint8_t *a_buffer, *b_buffer;
} Compare;

/* The run at @offset: is it zero, and for how long; past the end of an image all is zero. */
static int zero_run(BlockNode *node, uint64_t offset, uint64_t length, bool *zero, bool *present,
                    uint64_t *run)
{
    BlockExtent extent;
    unsigned depth;
    *zero = true;
    *present = false;
    *run = length;
    if (offset >= block_size(node))
        return 0;
    int result = block_status_chain(node, offset, MIN(length, block_size(node) - offset), &extent,
                                    &depth);
    if (result < 0)
        return result;
    *zero = extent.zero;
    *present = extent.present;
    *run = extent.length;
    return 0;
}

static int read_part(BlockNode *node, const char *path, uint64_t offset, uint8_t *buffer,
                     uint64_t length)
{
    uint64_t size = block_size(node);
    uint64_t inside = offset < size ? MIN(length, size - offset) : 0;
    struct iovec iov = {buffer, inside};
    memset(buffer + inside, 0, length - inside);
    int result = inside ? block_readv(node, offset, &iov, 1) : 0;
    if (result < 0)
        image_fail("Error while reading offset %" G_GUINT64_FORMAT " of %s: %s", offset, path,
                   g_strerror(-result));
    return result;
}

static int mismatch(const Compare *c, uint64_t offset)
{
    if (!c->quiet)
        printf("Content mismatch at offset %" G_GUINT64_FORMAT "!\n", offset);
    return EXIT_DIFFERENT;
}

static int compare_data(Compare *c, uint64_t offset, uint64_t length)
{
    if (read_part(c->a, c->a_path, offset, c->a_buffer, length) < 0 ||
        read_part(c->b, c->b_path, offset, c->b_buffer, length) < 0)
        return EXIT_READ;
    if (!memcmp(c->a_buffer, c->b_buffer, length))
        return 0;
    uint64_t at = 0;
    while (c->a_buffer[at] == c->b_buffer[at])
        at++;
    return mismatch(c, offset + at - at % 512);
}

static int compare_all(Compare *c)
{
    uint64_t a_size = block_size(c->a), b_size = block_size(c->b), total = MAX(a_size, b_size);
    if (a_size != b_size) {
        if (c->strict) {
            if (!c->quiet)
                printf("Strict mode: Image size mismatch!\n");
            return EXIT_DIFFERENT;
        }
        if (!c->quiet)
            printf("Warning: Image size mismatch!\n");
    }
    for (uint64_t at = 0; at < total;) {
        bool a_zero, b_zero, a_present, b_present;
        uint64_t a_run, b_run;
        if (zero_run(c->a, at, total - at, &a_zero, &a_present, &a_run) < 0 ||
            zero_run(c->b, at, total - at, &b_zero, &b_present, &b_run) < 0)
            return image_fail("Sector allocation test failed"), EXIT_STATUS;
        uint64_t run = MIN(a_run, b_run);
        if (c->strict && a_present != b_present) {
            if (!c->quiet)
                printf("Strict mode: Offset %" G_GUINT64_FORMAT " block status mismatch!\n", at);
            return EXIT_DIFFERENT;
        }
        if (!(a_zero && b_zero)) {
            run = MIN(run, CHUNK);
            int result = compare_data(c, at, run);
            if (result)
                return result;
        }
        at += run;
        image_progress(c->progress, at, total);
    }
    if (!c->quiet)
        printf("Images are identical.\n");
    return 0;
}

static const struct option long_options[] = {{"force-share", no_argument, NULL, 'U'},
                                             {NULL, 0, NULL, 0}};

static int run(int argc, char **argv)
{
    Compare c = {0};
    ImageOpen a = {0}, b = {0};
    int option;
    opterr = 0;
    while ((option = getopt_long(argc, argv, "f:F:T:pqsU", long_options, NULL)) != -1) {
        switch (option) {
        case 'f':
            a.format = optarg;
            break;
        case 'F':
            b.format = optarg;
            break;
        case 'T':
            a.cache = b.cache = optarg;
            break;
        case 'p':
            c.progress = true;
            break;
        case 'q':
            c.quiet = true;
            break;
        case 's':
            c.strict = true;
            break;
        case 'U':
            a.shared = b.shared = true;
            break;
        default:
            return image_bad_option("compare", argv), EXIT_OPEN;
        }
    }
    if (argc - optind != 2)
        return image_fail("compare: expecting two image file names"), EXIT_OPEN;
    c.progress = c.progress && !c.quiet;
    c.a_path = argv[optind];
    c.b_path = argv[optind + 1];
    g_autoptr(BlockNode) first = image_open(c.a_path, &a);
    g_autoptr(BlockNode) second = first ? image_open(c.b_path, &b) : NULL;
    if (!second)
        return EXIT_OPEN;
    c.a = first;
    c.b = second;
    g_autofree uint8_t *a_memory = g_malloc(CHUNK);
    g_autofree uint8_t *b_memory = g_malloc(CHUNK);
    c.a_buffer = a_memory;
    c.b_buffer = b_memory;
    return compare_all(&c);
}

const ImageCommand image_compare_command = {
    .name = "compare",
    .run = run,
    .usage = "[-f FORMAT] [-F FORMAT] [-T CACHE] [-p] [-q] [-s] [-U] FILE1 FILE2",
};
