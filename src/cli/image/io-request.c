/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Reads, writes and discards by hand, at once or through the queue. */
#include "cli/image/io.h"

#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MISALIGNMENT 16u
#define VECTORS_MAX  1024

/* One request with its memory and what to say about it. */
typedef struct Work {
    BlockRequest request;
    struct iovec iov[VECTORS_MAX];
    int n_iov;
    uint8_t *memory; /* the allocation */
    uint8_t *bytes;  /* in it, maybe misaligned */
    uint64_t length;
    int pattern;      /* -1: none */
    const char *file; /* to write from; NULL: none */
    uint64_t check_from, check_length;
    bool check_from_given, check_length_given;
    bool quiet, verbose, terse, zero, compressed, vmstate, no_fallback, write, invalid;
    bool finished;
    int result;
    struct timespec start, end;
} Work;

static void work_free(Work *w)
{
    free(w->memory);
    g_free(w);
}

G_DEFINE_AUTOPTR_CLEANUP_FUNC(Work, work_free)

/* ---- what is said */

static void print_report(const Work *w, const char *what)
{
    double seconds = (double)(w->end.tv_sec - w->start.tv_sec) +
                     (double)(w->end.tv_nsec - w->start.tv_nsec) / 1e9;
    unsigned whole = (unsigned)seconds;
    double rate = (double)w->length / seconds;
    if (w->terse) {
        printf("%" G_GUINT64_FORMAT ",1,%u:%02u:%05.2f,%.3f,%.3f\n", w->length, whole / 3600,
               whole / 60 % 60, seconds - (double)(whole - whole % 60), rate, 1 / seconds);
        return;
    }
    g_autofree char *size = io_size_text((double)w->length);
    g_autofree char *speed = io_size_text(rate);
    g_autofree char *took = whole ? g_strdup_printf("%u:%02u:%05.2f", whole / 3600, whole / 60 % 60,
                                                    seconds - (double)(whole - whole % 60))
                                  : g_strdup_printf("%05.2f sec", seconds);
    printf("%s %" G_GUINT64_FORMAT "/%" G_GUINT64_FORMAT " bytes at offset %" G_GUINT64_FORMAT "\n",
           what, w->length, w->length, w->request.offset);
    printf("%s, 1 ops; %s (%s/sec and %.4f ops/sec)\n", size, took, speed, 1 / seconds);
}

static void dump(const Work *w)
{
    for (uint64_t at = 0; at < w->length; at += 16) {
        uint64_t end = MIN(at + 16, w->length);
        printf("%08" G_GINT64_MODIFIER "x:  ", w->request.offset + at);
        for (uint64_t i = at; i < end; i++)
            printf("%02x ", w->bytes[i]);
        printf(" ");
        for (uint64_t i = at; i < end; i++)
            printf("%c", isalnum(w->bytes[i]) ? w->bytes[i] : '.');
        printf("\n");
    }
}

static int check_pattern(const Work *w)
{
    const uint8_t *bytes = w->bytes + w->check_from;
    if (w->pattern < 0 || w->check_length == 0 ||
        (bytes[0] == w->pattern && !memcmp(bytes, bytes + 1, w->check_length - 1)))
        return 0;
    printf("Pattern verification failed at offset %" G_GUINT64_FORMAT ", %" G_GUINT64_FORMAT
           " bytes\n",
           w->request.offset + w->check_from, w->check_length);
    return -EINVAL;
}

/* @failed: how the message about an error calls it. */
static int report(const Work *w, const char *failed, const char *done)
{
    int result = w->result;
    if (result < 0) {
        printf("%s failed: %s\n", failed, g_strerror(-result));
        return result;
    }
    if (!w->write)
        result = check_pattern(w);
    if (w->quiet)
        return result;
    if (w->verbose && !w->write)
        dump(w);
    print_report(w, done);
    return result;
}

/* ---- what is asked for */

static int parse_pattern(const char *text, int *pattern)
{
    char *end;
    long value = strtol(text, &end, 0);
    if (value < 0 || value > 255 || *end || end == text) {
        printf("%s is not a valid pattern byte\n", text);
        return -EINVAL;
    }
    *pattern = (int)value;
    return 0;
}

/* One option that several commands have; -ENOENT: it is none of them. */
static int parse_option(Work *w, int option, const char *value)
{
    switch (option) {
    case 'C':
        w->terse = true;
        return 0;
    case 'P':
        return parse_pattern(value, &w->pattern);
    case 'b':
        w->vmstate = true;
        return 0;
    case 'c':
        w->compressed = true;
        return 0;
    case 'f':
        w->request.flags |= BLOCK_FUA;
        return 0;
    case 'i':
        w->invalid = true;
        return 0;
    case 'l':
        w->check_length_given = true;
        return io_number(value, &w->check_length);
    case 'n':
        w->no_fallback = true;
        return 0;
    case 'p': /* what it once chose is all there is */
        return 0;
    case 'q':
        w->quiet = true;
        return 0;
    case 's':
        if (w->write) {
            w->file = value;
            return 0;
        }
        w->check_from_given = true;
        return io_number(value, &w->check_from);
    case 'u':
        w->request.flags |= BLOCK_UNMAP;
        return 0;
    case 'v':
        w->verbose = true;
        return 0;
    case 'z':
        w->zero = true;
        return 0;
    default:
        return -ENOENT;
    }
}

/* A new request after its options, or NULL with *result. @at: the first operand. */
static Work *parse_options(const char *command, const char *letters, bool write, int argc,
                           char **argv, int *at, int *result)
{
    g_autoptr(Work) w = g_new0(Work, 1);
    int option;
    w->write = write;
    w->pattern = -1;
    optind = 0;
    *result = 0;
    while ((option = getopt(argc, argv, letters)) != -1) {
        *result = parse_option(w, option, optarg);
        if (*result == -ENOENT)
            *result = io_usage(io_command_find(command));
        if (*result < 0)
            return NULL;
    }
    *at = optind;
    return g_steal_pointer(&w);
}

static int check_combination(const Work *w)
{
    bool fua = w->request.flags & BLOCK_FUA;
    const char *said = NULL;
    if (w->vmstate && w->zero)
        said = "-b and -z cannot be specified at the same time";
    else if (fua && (w->vmstate || w->compressed))
        said = "-f and -b or -c cannot be specified at the same time";
    else if (w->no_fallback && !w->zero)
        said = "-n requires -z to be specified";
    else if ((w->request.flags & BLOCK_UNMAP) && !w->zero)
        said = "-u requires -z to be specified";
    else if (w->zero + (w->pattern >= 0) + !!w->file > 1)
        said = "Only one of -z, -P, and -s can be specified at the same time";
    if (!said)
        return 0;
    printf("%s\n", said);
    return -EINVAL;
}

static int check_aligned(const Work *w, const char *length_text)
{
    if (!w->vmstate && !w->compressed)
        return 0;
    if (w->request.offset % IO_SECTOR)
        printf("%" G_GUINT64_FORMAT " is not a sector-aligned value for 'offset'\n",
               w->request.offset);
    else if (w->length % IO_SECTOR)
        printf("%" G_GUINT64_FORMAT " is not a sector-aligned value for 'count'\n", w->length);
    else
        return 0;
    return -EINVAL;
}

/* The file's bytes, again and again. */
static int fill_from_file(Work *w)
{
    FILE *file = fopen(w->file, "r");
    size_t have = file ? fread(w->bytes, 1, w->length, file) : 0;
    if (!file || ferror(file)) {
        perror(w->file);
    } else if (have == 0) {
        fprintf(stderr, "%s: file is empty\n", w->file);
    } else {
        for (size_t i = have; i < w->length; i++)
            w->bytes[i] = w->bytes[i - have];
    }
    if (file)
        fclose(file);
    return have ? 0 : -EINVAL;
}

static int give_memory(IoSession *s, Work *w)
{
    void *memory = NULL;
    uint64_t skip = s->misalign ? MISALIGNMENT : 0;
    if (w->zero)
        return 0;
    if (posix_memalign(&memory, 4096, w->length + skip + 1)) {
        printf("no memory for %" G_GUINT64_FORMAT " bytes\n", w->length);
        return -ENOMEM;
    }
    w->memory = memory;
    w->bytes = w->memory + skip;
    memset(w->bytes, !w->write ? 0xab : w->pattern < 0 ? 0xcd : w->pattern, w->length);
    if (w->file)
        return fill_from_file(w);
    return 0;
}

/* "OFFSET LENGTH" */
static int parse_range(IoSession *s, Work *w, int argc, char **argv, int at)
{
    int result = io_number(argv[at], &w->request.offset);
    if (result == 0)
        result = io_number(argv[at + 1], &w->length);
    if (result < 0)
        return result;
    if (w->length > IO_REQUEST_MAX && !w->no_fallback) {
        printf("length cannot exceed %llu%s, given %s\n", IO_REQUEST_MAX,
               w->write ? " without -n" : "", argv[at + 1]);
        return -EINVAL;
    }
    if (w->zero && w->length > INT64_MAX - w->request.offset)
        return -EINVAL;
    w->n_iov = 1;
    return 0;
}

static int add_lengths(Work *w, int argc, char **argv, int at)
{
    for (; at < argc; at++) {
        uint64_t length;
        int result = io_number(argv[at], &length);
        if (result < 0)
            return result;
        if (w->n_iov == VECTORS_MAX) {
            printf("at most %d lengths\n", VECTORS_MAX);
            return -EINVAL;
        }
        if (length > IO_REQUEST_MAX) {
            printf("Argument '%s' exceeds maximum size %llu\n", argv[at], IO_REQUEST_MAX);
            return -EINVAL;
        }
        if (w->length + length > IO_REQUEST_MAX) {
            printf("The total number of bytes exceed the maximum size %llu\n", IO_REQUEST_MAX);
            return -EINVAL;
        }
        w->iov[w->n_iov++].iov_len = length;
        w->length += length;
    }
    return 0;
}

/* "OFFSET LENGTH [LENGTH]..." with memory */
static int parse_vector(IoSession *s, Work *w, int argc, char **argv, int at)
{
    int result = io_number(argv[at], &w->request.offset);
    if (result == 0)
        result = add_lengths(w, argc, argv, at + 1);
    if (result < 0)
        return -EINVAL;
    result = give_memory(s, w);
    uint8_t *next = w->bytes;
    for (int i = 0; i < w->n_iov && !w->zero && result == 0; i++) {
        w->iov[i].iov_base = next;
        next += w->iov[i].iov_len;
    }
    w->check_length = w->length;
    return result;
}

/* ---- what is done */

static int write_compressed(IoSession *s, const Work *w)
{
    uint64_t cluster = block_cluster_size(s->node), size = block_size(s->node);
    if (cluster == 0)
        return -ENOTSUP;
    if (w->request.offset % cluster)
        return -EINVAL;
    for (uint64_t done = 0; done < w->length;) {
        uint64_t at = w->request.offset + done;
        uint64_t part = MIN(cluster, w->length - done);
        if (part < cluster && at + part != size)
            return -EINVAL;
        int result = block_write_compressed(s->node, at, w->bytes + done, part);
        if (result < 0)
            return result;
        done += part;
    }
    return 0;
}

/* Copy on read: what a backing image answered is kept in the image. */
static int copy_up(IoSession *s, uint64_t offset, uint64_t length)
{
    uint64_t cluster = MAX(block_cluster_size(s->node), IO_SECTOR);
    uint64_t end = MIN(offset + length, block_size(s->node));
    for (uint64_t at = offset - offset % cluster; at < end;) {
        BlockExtent extent;
        uint64_t part = MIN(cluster, block_size(s->node) - at);
        int result = block_status(s->node, at, part, &extent);
        if (result == 0 && !extent.present) {
            g_autofree uint8_t *bytes = g_malloc(part);
            struct iovec iov = {bytes, part};
            result = block_readv(s->node, at, &iov, 1);
            if (result == 0)
                result = block_writev(s->node, at, &iov, 1, 0);
        }
        if (result < 0)
            return result;
        at += part;
    }
    return 0;
}

static bool beyond_end(const IoSession *s, const Work *w)
{
    uint64_t size = block_size(s->node);
    return w->request.offset > size || w->length > size - w->request.offset;
}

static int perform(IoSession *s, Work *w)
{
    BlockNode *node = s->node;
    struct iovec whole = {w->bytes, w->length};
    const struct iovec *iov = w->n_iov > 1 ? w->iov : &whole;
    uint64_t offset = w->request.offset;
    unsigned flags = w->request.flags | (s->open.writethrough ? BLOCK_FUA : 0);
    if (w->vmstate)
        return w->write ? block_vmstate_writev(node, offset, &whole, 1)
                        : block_vmstate_readv(node, offset, &whole, 1);
    if (beyond_end(s, w))
        return -EIO;
    if (w->zero)
        return block_write_zeroes(node, offset, w->length, flags);
    if (w->compressed)
        return write_compressed(s, w);
    if (w->write)
        return block_writev(node, offset, iov, w->n_iov, flags);
    if (s->open.copy_on_read) {
        int result = copy_up(s, offset, w->length);
        if (result < 0)
            return result;
    }
    return block_readv(node, offset, iov, w->n_iov);
}

static void perform_now(IoSession *s, Work *w)
{
    clock_gettime(CLOCK_MONOTONIC, &w->start);
    w->result = perform(s, w);
    clock_gettime(CLOCK_MONOTONIC, &w->end);
}

/* The part of a read that -s and -l choose is what -P looks at. */
static int check_window(Work *w)
{
    if (w->pattern < 0 && (w->check_from_given || w->check_length_given))
        return io_usage(io_command_find("read"));
    if (!w->check_length_given && w->check_from <= w->length)
        w->check_length = w->length - w->check_from;
    if (w->check_from > w->length || w->check_length > w->length - w->check_from) {
        printf("pattern verification range exceeds end of read data\n");
        return -EINVAL;
    }
    return 0;
}

int io_read(IoSession *s, int argc, char **argv)
{
    int at, result;
    g_autoptr(Work) w = parse_options("read", "bCl:pP:qs:v", false, argc, argv, &at, &result);
    if (!w)
        return result;
    if (at != argc - 2)
        return io_usage(io_command_find("read"));
    result = parse_range(s, w, argc, argv, at);
    if (result == 0)
        result = check_window(w);
    if (result == 0)
        result = check_aligned(w, argv[at + 1]);
    if (result == 0)
        result = give_memory(s, w);
    if (result < 0)
        return result;
    perform_now(s, w);
    return report(w, "read", "read");
}

int io_readv(IoSession *s, int argc, char **argv)
{
    int at, result;
    g_autoptr(Work) w = parse_options("readv", "CP:qv", false, argc, argv, &at, &result);
    if (!w)
        return result;
    if (at > argc - 2)
        return io_usage(io_command_find("readv"));
    result = parse_vector(s, w, argc, argv, at);
    if (result < 0)
        return result;
    perform_now(s, w);
    return report(w, "readv", "read");
}

int io_write(IoSession *s, int argc, char **argv)
{
    int at, result;
    g_autoptr(Work) w = parse_options("write", "bcCfnpP:qs:uz", true, argc, argv, &at, &result);
    if (!w)
        return result;
    if (at != argc - 2)
        return io_usage(io_command_find("write"));
    result = check_combination(w);
    if (result == 0)
        result = parse_range(s, w, argc, argv, at);
    if (result == 0)
        result = check_aligned(w, argv[at + 1]);
    if (result == 0)
        result = give_memory(s, w);
    if (result < 0)
        return result;
    perform_now(s, w);
    return report(w, "write", "wrote");
}

int io_writev(IoSession *s, int argc, char **argv)
{
    int at, result;
    g_autoptr(Work) w = parse_options("writev", "CfqP:", true, argc, argv, &at, &result);
    if (!w)
        return result;
    if (at > argc - 2)
        return io_usage(io_command_find("writev"));
    result = parse_vector(s, w, argc, argv, at);
    if (result < 0)
        return result;
    perform_now(s, w);
    return report(w, "writev", "wrote");
}

int io_discard(IoSession *s, int argc, char **argv)
{
    int at, result;
    g_autoptr(Work) w = parse_options("discard", "Cq", true, argc, argv, &at, &result);
    if (!w)
        return result;
    if (at != argc - 2)
        return io_usage(io_command_find("discard"));
    result = io_number(argv[at], &w->request.offset);
    if (result == 0)
        result = io_number(argv[at + 1], &w->length);
    if (result < 0)
        return result;
    if (w->length > IO_REQUEST_MAX) {
        printf("length cannot exceed %llu, given %s\n", IO_REQUEST_MAX, argv[at + 1]);
        return -EINVAL;
    }
    clock_gettime(CLOCK_MONOTONIC, &w->start);
    w->result = beyond_end(s, w) ? -EIO : block_discard(s->node, w->request.offset, w->length);
    clock_gettime(CLOCK_MONOTONIC, &w->end);
    return report(w, "discard", "discard");
}

/* ---- through the queue */

static void work_done(BlockRequest *request, int result)
{
    Work *w = (Work *)request; /* its first member */
    clock_gettime(CLOCK_MONOTONIC, &w->end);
    w->result = result;
    w->finished = true;
}

static void submit(IoSession *s, Work *w)
{
    g_queue_push_tail(&s->works, w);
    clock_gettime(CLOCK_MONOTONIC, &w->start);
    w->request.done = work_done;
    if (beyond_end(s, w)) {
        work_done(&w->request, -EIO);
        return;
    }
    if (w->request.op == BLOCK_READ) /* neither discard nor flush */
        w->request.op = w->zero ? BLOCK_WRITE_ZEROES : w->write ? BLOCK_WRITE : BLOCK_READ;
    w->request.length = w->length;
    w->request.iov = w->iov;
    w->request.n_iov = w->zero ? 0 : w->n_iov;
    if (w->write && s->open.writethrough)
        w->request.flags |= BLOCK_FUA;
    block_queue_submit(s->queue, &w->request);
}

static void report_queued(const Work *w)
{
    if (w->request.op == BLOCK_DISCARD)
        report(w, "aio_discard", "discard");
    else if (w->request.op == BLOCK_FLUSH)
        printf(w->result < 0 ? "aio_fsync failed: %s\n" : "flushed\n", g_strerror(-w->result));
    else
        report(w, w->write ? "aio_write" : "readv", w->write ? "wrote" : "read");
}

/* Requests are told in the order they were given, so that the output is the same every time. */
void io_reap(IoSession *s)
{
    Work *w;
    if (s->queue)
        block_queue_reap(s->queue);
    while ((w = g_queue_peek_head(&s->works)) && w->finished) {
        g_queue_pop_head(&s->works);
        report_queued(w);
        work_free(w);
    }
}

void io_drain(IoSession *s)
{
    if (s->queue)
        block_queue_drain(s->queue);
    io_reap(s);
}

int io_aio_read(IoSession *s, int argc, char **argv)
{
    int at, result;
    g_autoptr(Work) w = parse_options("aio_read", "CP:iqv", false, argc, argv, &at, &result);
    if (!w)
        return result;
    if (w->invalid) {
        printf("injecting invalid read request\n");
        return 0;
    }
    if (at > argc - 2)
        return io_usage(io_command_find("aio_read"));
    result = parse_vector(s, w, argc, argv, at);
    if (result == 0)
        submit(s, g_steal_pointer(&w));
    return result;
}

int io_aio_write(IoSession *s, int argc, char **argv)
{
    int at, result;
    g_autoptr(Work) w = parse_options("aio_write", "CfiqP:uz", true, argc, argv, &at, &result);
    if (!w)
        return result;
    if (w->invalid) {
        printf("injecting invalid write request\n");
        return 0;
    }
    if (at > argc - 2)
        return io_usage(io_command_find("aio_write"));
    if (w->zero && at != argc - 2) {
        printf("-z supports only a single length parameter\n");
        return -EINVAL;
    }
    if ((w->request.flags & BLOCK_UNMAP) && !w->zero) {
        printf("-u requires -z to be specified\n");
        return -EINVAL;
    }
    if (w->zero && w->pattern >= 0) {
        printf("-z and -P cannot be specified at the same time\n");
        return -EINVAL;
    }
    result = parse_vector(s, w, argc, argv, at);
    if (result == 0)
        submit(s, g_steal_pointer(&w));
    return result;
}

int io_aio_discard(IoSession *s, int argc, char **argv)
{
    int at, result;
    g_autoptr(Work) w = parse_options("aio_discard", "Cq", true, argc, argv, &at, &result);
    if (!w)
        return result;
    if (at != argc - 2)
        return io_usage(io_command_find("aio_discard"));
    w->request.op = BLOCK_DISCARD;
    result = parse_range(s, w, argc, argv, at);
    if (result == 0)
        submit(s, g_steal_pointer(&w));
    return result;
}

int io_aio_fsync(IoSession *s, int argc, char **argv)
{
    Work *w = g_new0(Work, 1);
    w->request.op = BLOCK_FLUSH;
    w->pattern = -1;
    submit(s, w);
    return 0;
}
