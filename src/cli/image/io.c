/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Requests by hand, as qemu-io takes them: what tests are made of. */
#include "cli/image/image.h"

#include <errno.h>
#include <getopt.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define LENGTH_MAX (1u << 30)
#define DEPTH      64

typedef struct Session {
    BlockNode *node;
    BlockQueue *queue;
    bool failed, quit;
} Session;

/* One request with its memory and what to say about it. */
typedef struct Work {
    BlockRequest request;
    struct iovec iov;
    Session *session;
    uint8_t *memory;
    int pattern; /* -1: none */
    bool quiet, zero, compressed;
} Work;

typedef struct Verb {
    const char *name;
    BlockOp op;
    bool queued;
} Verb;

static const Verb verbs[] = {
    {"read", BLOCK_READ, false},         {"write", BLOCK_WRITE, false},
    {"discard", BLOCK_DISCARD, false},   {"flush", BLOCK_FLUSH, false},
    {"aio_read", BLOCK_READ, true},      {"aio_write", BLOCK_WRITE, true},
    {"aio_discard", BLOCK_DISCARD, true}, {"aio_fsync", BLOCK_FLUSH, true},
};

static void report(Work *w, int result)
{
    static const char *const done[] = {"read", "wrote", "wrote", "discard", "flushed"};
    static const char *const name[] = {"read", "write", "write", "discard", "flush"};
    uint64_t length = w->request.length;
    if (result < 0) {
        printf("%s failed: %s\n", name[w->request.op], g_strerror(-result));
        w->session->failed = true;
        return;
    }
    if (w->request.op == BLOCK_READ && w->pattern >= 0) {
        for (uint64_t i = 0; i < length; i++) {
            if (w->memory[i] == w->pattern)
                continue;
            printf("Pattern verification failed at offset %" G_GUINT64_FORMAT ", %" G_GUINT64_FORMAT
                   " bytes\n", w->request.offset, length);
            w->session->failed = true;
            break;
        }
    }
    if (w->quiet)
        return;
    if (w->request.op == BLOCK_FLUSH)
        printf("flushed\n");
    else
        printf("%s %" G_GUINT64_FORMAT "/%" G_GUINT64_FORMAT " bytes at offset %" G_GUINT64_FORMAT
               "\n", done[w->request.op], length, length, w->request.offset);
}

static void work_free(Work *w)
{
    free(w->memory);
    g_free(w);
}

static void done(BlockRequest *request, int result)
{
    Work *w = (Work *)request; /* its first member */
    report(w, result);
    work_free(w);
}

static int perform(Work *w)
{
    Session *s = w->session;
    BlockRequest *r = &w->request;
    switch (r->op) {
    case BLOCK_READ:
        return block_readv(s->node, r->offset, &w->iov, 1);
    case BLOCK_WRITE:
        if (w->compressed)
            return block_write_compressed(s->node, r->offset, w->memory, r->length);
        return block_writev(s->node, r->offset, &w->iov, 1, r->flags);
    case BLOCK_WRITE_ZEROES:
        return block_write_zeroes(s->node, r->offset, r->length, r->flags);
    case BLOCK_DISCARD:
        return block_discard(s->node, r->offset, r->length);
    case BLOCK_FLUSH:
        return block_flush(s->node);
    }
    return -EINVAL;
}

static bool parse_switches(Work *w, int argc, char **argv, int *at)
{
    for (*at = 1; *at < argc && argv[*at][0] == '-' && argv[*at][1]; ++*at) {
        const char *text = argv[*at];
        if (!strcmp(text, "-P") && *at + 1 < argc) {
            w->pattern = (int)strtoul(argv[++*at], NULL, 0) & 0xff;
        } else if (!strcmp(text, "-q")) {
            w->quiet = true;
        } else if (!strcmp(text, "-z")) {
            w->zero = true;
        } else if (!strcmp(text, "-u")) {
            w->request.flags |= BLOCK_UNMAP;
        } else if (!strcmp(text, "-f")) {
            w->request.flags |= BLOCK_FUA;
        } else if (!strcmp(text, "-c")) {
            w->compressed = true;
        } else {
            image_fail("io: %s: the option '%s' is not supported", argv[0], text);
            return false;
        }
    }
    return true;
}

static bool parse_work(Work *w, int argc, char **argv)
{
    int at;
    if (!parse_switches(w, argc, argv, &at))
        return false;
    if (w->request.op == BLOCK_FLUSH)
        return true;
    if (argc - at != 2 || !block_parse_size(argv[at], &w->request.offset) ||
        !block_parse_size(argv[at + 1], &w->request.length))
        return image_fail("io: %s: expecting an offset and a length", argv[0]), false;
    if (w->request.op == BLOCK_WRITE && w->zero)
        w->request.op = BLOCK_WRITE_ZEROES;
    if (w->request.op != BLOCK_READ && w->request.op != BLOCK_WRITE)
        return true;
    if (w->request.length > LENGTH_MAX)
        return image_fail("io: %s: at most %u bytes at once", argv[0], LENGTH_MAX), false;
    void *memory = NULL;
    if (posix_memalign(&memory, 4096, MAX(w->request.length, 1)))
        return image_fail("io: no memory"), false;
    w->memory = memory;
    memset(memory, w->request.op == BLOCK_READ ? 0xab : w->pattern < 0 ? 0xcd : w->pattern,
           w->request.length);
    w->iov = (struct iovec){memory, w->request.length};
    w->request.iov = &w->iov;
    w->request.n_iov = 1;
    return true;
}

static void run_verb(Session *s, const Verb *verb, int argc, char **argv)
{
    Work *w = g_new0(Work, 1);
    w->session = s;
    w->pattern = -1;
    w->request.op = verb->op;
    w->request.done = done;
    if (!parse_work(w, argc, argv)) {
        s->failed = true;
        work_free(w);
    } else if (verb->queued) {
        block_queue_submit(s->queue, &w->request);
    } else {
        report(w, perform(w));
        work_free(w);
    }
}

static void run_command(Session *s, const char *line)
{
    int argc;
    g_auto(GStrv) argv = NULL;
    if (!g_shell_parse_argv(line, &argc, &argv, NULL))
        return;
    for (size_t i = 0; i < G_N_ELEMENTS(verbs); i++) {
        if (!strcmp(verbs[i].name, argv[0])) {
            run_verb(s, &verbs[i], argc, argv);
            return;
        }
    }
    if (!strcmp(argv[0], "aio_flush")) {
        block_queue_drain(s->queue);
    } else if (!strcmp(argv[0], "length")) {
        printf("%" G_GUINT64_FORMAT "\n", block_size(s->node));
    } else if (!strcmp(argv[0], "sleep") && argc == 2) {
        struct timespec pause = {atoi(argv[1]) / 1000, atoi(argv[1]) % 1000 * 1000000l};
        nanosleep(&pause, NULL);
    } else if (!strcmp(argv[0], "quit")) {
        s->quit = true;
    } else {
        image_fail("io: the command \"%s\" is not supported", argv[0]);
        s->failed = true;
    }
    block_queue_reap(s->queue);
}

static int run_session(BlockNode *node, GPtrArray *lines)
{
    g_autoptr(GError) error = NULL;
    Session s = {.node = node, .queue = block_queue_new(node, DEPTH, &error)};
    if (!s.queue)
        return image_fail("%s", error->message);
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (guint i = 0; i < lines->len && !s.quit; i++)
        run_command(&s, g_ptr_array_index(lines, i));
    char *line = NULL;
    size_t room = 0;
    while (lines->len == 0 && !s.quit && getline(&line, &room, stdin) >= 0) {
        run_command(&s, line);
        fflush(stdout);
    }
    free(line);
    block_queue_drain(s.queue);
    block_queue_free(s.queue);
    return s.failed;
}

static const struct option long_options[] = {{"force-share", no_argument, NULL, 'U'},
                                             {NULL, 0, NULL, 0}};

static int run(int argc, char **argv)
{
    ImageOpen open = {.write = true};
    g_autoptr(GPtrArray) lines = g_ptr_array_new();
    int option;
    opterr = 0;
    while ((option = getopt_long(argc, argv, "c:f:nrt:U", long_options, NULL)) != -1) {
        switch (option) {
        case 'c':
            g_ptr_array_add(lines, optarg);
            break;
        case 'f':
            open.format = optarg;
            break;
        case 'n':
            open.cache = "none";
            break;
        case 'r':
            open.write = false;
            break;
        case 't':
            open.cache = optarg;
            break;
        case 'U':
            open.shared = true;
            break;
        default:
            return image_usage("unrecognized option '%s'", argv[optind - 1]);
        }
    }
    if (argc - optind != 1)
        return image_fail("io: expecting one image file name");
    g_autoptr(BlockNode) node = image_open(argv[optind], &open);
    return node ? run_session(node, lines) : 1;
}

const ImageCommand image_io_command = {
    .name = "io",
    .run = run,
    .usage = "[-f FORMAT] [-r] [-n] [-t CACHE] [-U] [-c COMMAND]... FILE\n"
             "          COMMAND: read|write|discard|flush|aio_read|aio_write|aio_discard|aio_fsync\n"
             "          [-P PATTERN] [-q] [-z [-u]] [-f] [-c] OFFSET LENGTH; aio_flush; length;\n"
             "          sleep MS; quit. Without -c they are read from standard input.",
};
