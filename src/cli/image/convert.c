/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "cli/image/image.h"

#include <getopt.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define CHUNK          (2u << 20)
#define SPARSE_DEFAULT 4096u

typedef struct Convert {
    const char *source, *target, *source_format, *target_format, *target_cache;
    bool compress, progress, quiet, no_create, shared, target_is_zero;
    uint64_t sparse; /* runs of zeroes shorter than this are written as data; 0: all are */
    BlockNode *from, *to;
    uint64_t size;
    uint8_t *buffer;
    size_t chunk;
} Convert;

static int write_bytes(Convert *c, uint64_t offset, uint8_t *bytes, uint64_t length)
{
    struct iovec iov = {bytes, length};
    return length ? block_writev(c->to, offset, &iov, 1, 0) : 0;
}

static int write_hole(Convert *c, uint64_t offset, uint64_t length)
{
    if (c->target_is_zero || length == 0)
        return 0;
    return block_write_zeroes(c->to, offset, length, BLOCK_UNMAP);
}

static bool all_zero(const uint8_t *bytes, uint64_t length)
{
    return bytes[0] == 0 && !memcmp(bytes, bytes + 1, length - 1);
}

/* Data and holes of one chunk, told apart in units of -S. */
static int write_sparse(Convert *c, uint64_t offset, uint64_t length)
{
    uint64_t unit = c->sparse;
    uint64_t start = 0;
    bool data = false;
    for (uint64_t at = 0; at <= length; at += unit) {
        bool end = at >= length;
        bool now = !end && !all_zero(c->buffer + at, MIN(unit, length - at));
        if (at > 0 && (end || now != data)) {
            uint64_t stop = MIN(at, length);
            int result = data ? write_bytes(c, offset + start, c->buffer + start, stop - start)
                              : write_hole(c, offset + start, stop - start);
            if (result < 0)
                return result;
            start = stop;
        }
        data = now;
    }
    if (start < length)
        return data ? write_bytes(c, offset + start, c->buffer + start, length - start)
                    : write_hole(c, offset + start, length - start);
    return 0;
}

static int copy_chunk(Convert *c, uint64_t offset, uint64_t length)
{
    uint64_t from_size = block_size(c->from);
    uint64_t inside = offset < from_size ? MIN(length, from_size - offset) : 0;
    struct iovec iov = {c->buffer, inside};
    memset(c->buffer + inside, 0, length - inside);
    int result = inside ? block_readv(c->from, offset, &iov, 1) : 0;
    if (result < 0) {
        image_fail("error while reading at byte %" G_GUINT64_FORMAT ": %s", offset,
                   g_strerror(-result));
        return result;
    }
    if (c->compress)
        result = all_zero(c->buffer, length)
                     ? write_hole(c, offset, length)
                     : block_write_compressed(c->to, offset, c->buffer, length);
    else if (c->sparse)
        result = write_sparse(c, offset, length);
    else
        result = write_bytes(c, offset, c->buffer, length);
    if (result < 0)
        image_fail("error while writing at byte %" G_GUINT64_FORMAT ": %s", offset,
                   g_strerror(-result));
    return result;
}

/* How many bytes from @offset on are known to be zero without reading them. */
static int zero_ahead(Convert *c, uint64_t offset, uint64_t *length)
{
    BlockExtent extent;
    unsigned depth;
    *length = 0;
    if (c->sparse == 0)
        return 0;
    int result = block_status_chain(c->from, offset, c->size - offset, &extent, &depth);
    if (result < 0) {
        image_fail("error while reading the block status at offset %" G_GUINT64_FORMAT ": %s",
                   offset, g_strerror(-result));
        return result;
    }
    if (extent.zero)
        *length = extent.length;
    if (c->compress && offset + *length != c->size)
        *length -= *length % c->chunk; /* compressed data comes in whole clusters */
    return 0;
}

static int copy_all(Convert *c)
{
    for (uint64_t at = 0; at < c->size;) {
        uint64_t zero;
        int result = zero_ahead(c, at, &zero);
        if (result == 0 && zero) {
            result = write_hole(c, at, zero);
            at += zero;
        } else if (result == 0) {
            uint64_t length = MIN(c->chunk, c->size - at);
            result = copy_chunk(c, at, length);
            at += length;
        }
        if (result < 0)
            return 1;
        if (!image_progress_step(NULL, at, c->size))
            return image_fail("interrupted");
    }
    int result = block_flush(c->to);
    return result < 0 ? image_fail("error while flushing: %s", g_strerror(-result)) : 0;
}

static bool make_target(Convert *c, GPtrArray *texts)
{
    g_autoptr(GError) error = NULL;
    json_auto_t *named = json_object();
    BlockCreate create = {.path = c->target, .format = c->target_format, .size = c->size};
    for (guint i = 0; i < texts->len; i++) {
        if (!image_parse_create(c->target, g_ptr_array_index(texts, i), &create, named))
            return false;
    }
    if (create.backing)
        return image_fail("convert: a backing file of the target is not supported"), false;
    if (!block_create(&create, &error))
        return image_fail("%s: error while converting %s: %s", c->target, c->target_format,
                          error->message),
               false;
    /* A raw block device keeps what it held. */
    struct stat st;
    c->target_is_zero =
        strcmp(c->target_format, "raw") || stat(c->target, &st) < 0 || !S_ISBLK(st.st_mode);
    return true;
}

static int convert(Convert *c, GPtrArray *texts)
{
    if (!block_create_options(c->target_format))
        return image_fail("Unknown file format '%s'", c->target_format);
    if (c->compress && strcmp(c->target_format, "qcow2"))
        return image_fail("Compression not supported for this file format");
    ImageOpen from = {.format = c->source_format, .shared = c->shared};
    g_autoptr(BlockNode) source = image_open(c->source, &from);
    if (!source)
        return 1;
    c->from = source;
    c->size = block_size(source);
    if (!c->no_create && !make_target(c, texts))
        return 1;
    ImageOpen to = {.format = c->target_format, .write = true, .cache = c->target_cache};
    g_autoptr(BlockNode) target = image_open(c->target, &to);
    if (!target)
        return 1;
    c->to = target;
    if (block_size(target) < c->size)
        return image_fail("output file is smaller than input file");
    c->chunk = c->compress ? (size_t)block_cluster_size(target) : CHUNK;
    g_autofree uint8_t *memory = g_malloc(c->chunk + 4096);
    c->buffer = (uint8_t *)(((uintptr_t)memory + 4095) & ~(uintptr_t)4095);
    image_progress_begin(c->progress);
    int status = copy_all(c);
    image_progress_end(status == 0);
    return status;
}

static const struct option long_options[] = {{"force-share", no_argument, NULL, 'U'},
                                             {"target-is-zero", no_argument, NULL, 'Z'},
                                             {NULL, 0, NULL, 0}};

static int parse(int argc, char **argv, Convert *c, GPtrArray *texts)
{
    int option;
    opterr = 0;
    while ((option = getopt_long(argc, argv, "f:O:o:S:t:T:m:cpqnUW", long_options, NULL)) != -1) {
        switch (option) {
        case 'f':
            c->source_format = optarg;
            break;
        case 'O':
            c->target_format = optarg;
            break;
        case 'o':
            g_ptr_array_add(texts, optarg);
            break;
        case 'S':
            if (!block_parse_size(optarg, &c->sparse) || c->sparse % 512 || c->sparse > CHUNK)
                return image_fail("Invalid sparse size '%s': a multiple of 512, at most 2M",
                                  optarg);
            break;
        case 't':
            c->target_cache = optarg;
            break;
        case 'T':
        case 'm':
        case 'W': /* how fast, not what: nothing to do here */
            break;
        case 'c':
            c->compress = true;
            break;
        case 'p':
            c->progress = true;
            break;
        case 'q':
            c->quiet = true;
            break;
        case 'n':
            c->no_create = true;
            break;
        case 'U':
            c->shared = true;
            break;
        case 'Z':
            c->target_is_zero = true;
            break;
        default:
            return image_usage("unrecognized option '%s'", argv[optind - 1]);
        }
    }
    return 0;
}

static int run(int argc, char **argv)
{
    Convert c = {.target_format = "raw", .sparse = SPARSE_DEFAULT, .target_cache = "unsafe"};
    g_autoptr(GPtrArray) texts = g_ptr_array_new();
    if (parse(argc, argv, &c, texts))
        return 1;
    if (argc - optind != 2)
        return image_fail("convert: expecting one source and one target file name");
    if (c.target_is_zero && !c.no_create)
        return image_fail("--target-is-zero requires use of -n flag");
    c.progress = c.progress && !c.quiet;
    c.source = argv[optind];
    c.target = argv[optind + 1];
    return convert(&c, texts);
}

const ImageCommand image_convert_command = {
    .name = "convert",
    .run = run,
    .usage = "[-U] [-c] [-p] [-q] [-n [--target-is-zero]] [-f FORMAT] [-t CACHE] [-T CACHE]\n"
             "          [-O FORMAT] [-o OPTIONS] [-S SIZE] [-m N] [-W] SOURCE TARGET",
};
