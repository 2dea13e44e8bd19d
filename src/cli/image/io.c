/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Requests by hand, as qemu-io takes them: what tests are made of. */
#include "cli/image/io.h"

#include "disk/json-text.h"

#include <errno.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- numbers */

int io_number(const char *text, uint64_t *value)
{
    int result = image_size_parse(text, value);
    if (result == -ERANGE)
        printf("Parsing error: argument too large -- %s\n", text);
    else if (result < 0)
        printf("Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- %s\n",
               text);
    return result;
}

char *io_size_text(double value)
{
    static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    unsigned unit = 0;
    while (value >= 1024 && unit + 1 < G_N_ELEMENTS(units)) {
        value /= 1024;
        unit++;
    }
    g_autofree char *number = unit ? g_strdup_printf("%.3f", value) : g_strdup_printf("%f", value);
    char *zeroes = strstr(number, ".000");
    if (zeroes)
        *zeroes = '\0';
    return g_strdup_printf("%s %s", number, units[unit]);
}

/* ---- commands that are no requests */

static int io_aio_flush(IoSession *s, int argc, char **argv)
{
    io_drain(s);
    return 0;
}

static int io_flush(IoSession *s, int argc, char **argv)
{
    return block_flush(s->node);
}

static int io_truncate(IoSession *s, int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    BlockResize resize = {.shrink = true};
    int option;
    optind = 0;
    while ((option = getopt(argc, argv, "m:")) != -1) {
        if (option != 'm')
            return io_usage(io_command_find("truncate"));
        json_auto_t *mode = json_pack("{s:s}", "preallocation", optarg);
        if (!mode || !block_preallocation(mode, &resize.preallocation, NULL)) {
            image_fail("Invalid preallocation mode '%s'", optarg);
            return -EINVAL;
        }
    }
    if (optind >= argc)
        return io_usage(io_command_find("truncate"));
    int result = io_number(argv[optind], &resize.size);
    if (result < 0 || block_resize(s->node, &resize, &error))
        return result;
    image_fail("%s", error->message);
    return -EIO;
}

static int io_length(IoSession *s, int argc, char **argv)
{
    g_autofree char *text = io_size_text((double)block_size(s->node));
    printf("%s\n", text);
    return 0;
}

/* Where qcow2 keeps the state of machines: behind all that its first-level table maps for the disk.
 */
static uint64_t vmstate_offset(BlockNode *node, const BlockInfo *info)
{
    if (strcmp(block_format(node), "qcow2"))
        return 0;
    bool extended = json_is_true(json_object_get(info->specific, "extended-l2"));
    uint64_t reach = info->cluster_size / (extended ? 16 : 8) * info->cluster_size;
    return reach ? (info->virtual_size + reach - 1) / reach * reach : 0;
}

static int io_info(IoSession *s, int argc, char **argv)
{
    BlockInfo info;
    printf("format name: %s\n", block_format(s->node));
    block_info(s->node, &info);
    if (info.no_dirty_flag) {
        block_info_clear(&info);
        return -ENOTSUP;
    }
    g_autofree char *cluster = io_size_text((double)info.cluster_size);
    g_autofree char *state = io_size_text((double)vmstate_offset(s->node, &info));
    printf("cluster size: %s\nvm state offset: %s\n", cluster, state);
    image_print_specific(info.specific);
    block_info_clear(&info);
    return 0;
}

static int io_alloc(IoSession *s, int argc, char **argv)
{
    uint64_t start, count = IO_SECTOR, sum = 0, size = block_size(s->node);
    int result = io_number(argv[1], &start);
    if (result == 0 && argc == 3)
        result = io_number(argv[2], &count);
    if (result < 0)
        return result;
    uint64_t end = start > size ? start : MIN(size, start + count);
    for (uint64_t at = start; at < end;) {
        BlockExtent extent;
        result = block_status(s->node, at, end - at, &extent);
        if (result < 0) {
            printf("is_allocated failed: %s\n", g_strerror(-result));
            return result;
        }
        uint64_t length = MIN(extent.length, end - at);
        sum += extent.present ? length : 0;
        at += length;
    }
    g_autofree char *where = io_size_text((double)start);
    printf("%" G_GUINT64_FORMAT "/%" G_GUINT64_FORMAT " bytes allocated at offset %s\n", sum,
           end - start, where);
    return 0;
}

static void print_run(uint64_t start, uint64_t length, bool present)
{
    g_autofree char *size = io_size_text((double)length);
    g_autofree char *where = io_size_text((double)start);
    printf("%s (0x%" G_GINT64_MODIFIER "x) bytes %sallocated at offset %s (0x%" G_GINT64_MODIFIER
           "x)\n",
           size, length, present ? "    " : "not ", where, start);
}

static int io_map(IoSession *s, int argc, char **argv)
{
    uint64_t size = block_size(s->node), start = 0;
    bool present = false;
    for (uint64_t at = 0; at < size;) {
        BlockExtent extent;
        int result = block_status(s->node, at, size - at, &extent);
        if (result < 0) {
            image_fail("Failed to get allocation status: %s", g_strerror(-result));
            return result;
        }
        if (at > start && extent.present != present) {
            print_run(start, at - start, present);
            start = at;
        }
        present = extent.present;
        at += extent.length;
    }
    if (size > start)
        print_run(start, size - start, present);
    return 0;
}

/* Breakpoints are of the driver blkdebug; an image on another one has none. */
static int io_break(IoSession *s, int argc, char **argv)
{
    int result = block_breakpoint(s->node, BLOCK_BREAK_SET, argv[1], argv[2]);
    if (result < 0)
        printf("Could not set breakpoint: %s\n", g_strerror(-result));
    return result;
}

static int io_remove_break(IoSession *s, int argc, char **argv)
{
    int result = block_breakpoint(s->node, BLOCK_BREAK_REMOVE, NULL, argv[1]);
    if (result < 0)
        printf("Could not remove breakpoint %s: %s\n", argv[1], g_strerror(-result));
    return result;
}

static int io_resume(IoSession *s, int argc, char **argv)
{
    int result = block_breakpoint(s->node, BLOCK_BREAK_RESUME, NULL, argv[1]);
    if (result < 0)
        printf("Could not resume request: %s\n", g_strerror(-result));
    else
        printf("blkdebug: Resuming request '%s'\n", argv[1]);
    return result;
}

static int io_wait_break(IoSession *s, int argc, char **argv)
{
    int result = block_breakpoint(s->node, BLOCK_BREAK_WAIT, NULL, argv[1]);
    if (result < 0)
        printf("Could not wait for breakpoint %s: %s\n", argv[1], g_strerror(-result));
    else
        printf("blkdebug: Suspended request '%s'\n", argv[1]);
    return result;
}

static int io_abort(IoSession *s, int argc, char **argv)
{
    abort();
}

static int io_sigraise(IoSession *s, int argc, char **argv)
{
    uint64_t number;
    int result = io_number(argv[1], &number);
    if (result < 0)
        return result;
    if (number >= NSIG) {
        printf("signal argument '%s' is too large to be a valid signal\n", argv[1]);
        return -EINVAL;
    }
    fflush(NULL);
    raise((int)number);
    return 0;
}

static int io_sleep(IoSession *s, int argc, char **argv)
{
    char *end;
    long ms = strtol(argv[1], &end, 0);
    if (ms < 0 || *end || end == argv[1]) {
        printf("%s is not a valid number\n", argv[1]);
        return -EINVAL;
    }
    gint64 until = g_get_monotonic_time() + ms * 1000;
    for (gint64 left; (left = until - g_get_monotonic_time()) > 0;) {
        struct pollfd fd = {.fd = s->queue ? block_queue_fd(s->queue) : -1, .events = POLLIN};
        poll(&fd, 1, (int)MIN(left / 1000 + 1, 1000));
        io_reap(s);
    }
    return 0;
}

static int io_quit(IoSession *s, int argc, char **argv)
{
    s->quit = true;
    return 0;
}

static void print_summary(const char *name, const IoCommand *c)
{
    printf("%s %s%s-- %s\n", name, c->arguments ? c->arguments : "", c->arguments ? " " : "",
           c->summary);
}

static int io_help(IoSession *s, int argc, char **argv)
{
    if (argc < 2) {
        for (const IoCommand *c = io_commands; c->name; c++)
            print_summary(c->name, c);
        printf("\nUse 'help commandname' for extended help.\n");
        return 0;
    }
    const IoCommand *c = io_command_find(argv[1]);
    if (!c) {
        printf("command %s not found\n", argv[1]);
        return -EINVAL;
    }
    print_summary(argv[1], c);
    if (c->help)
        printf("\n%s\n", c->help);
    return 0;
}

/* One row a command. */
const IoCommand io_commands[] = {
    {"abort", NULL, io_abort, 0, 0, IO_NO_FILE, NULL, "simulate a program crash using abort(3)",
     NULL},
    {"aio_discard", NULL, io_aio_discard, 2, -1, IO_WRITES, "[-Cq] off len",
     "asynchronously discards a number of bytes", NULL},
    {"aio_flush", NULL, io_aio_flush, 0, 0, 0, NULL, "completes all outstanding aio requests",
     NULL},
    {"aio_fsync", NULL, io_aio_fsync, 0, 1, 0, NULL, "asynchronously flushes to disk", NULL},
    {"aio_read", NULL, io_aio_read, 2, -1, 0, "[-Ciqv] [-P pattern] off len [len..]",
     "asynchronously reads a number of bytes",
     " -C  one line of numbers; -P  what is read must be this byte; -i  only say that an invalid\n"
     " request was made; -v  show the bytes; -q  say nothing. aio_flush waits for it."},
    {"aio_write", NULL, io_aio_write, 2, -1, IO_WRITES, "[-Cfiquz] [-P pattern] off len [len..]",
     "asynchronously writes a number of bytes",
     " -C  one line of numbers; -P  the byte to write; -f  to stable storage; -i  only say that "
     "an\n"
     " invalid request was made; -q  say nothing; -z  zeroes; -u  that may be unmapped.\n"
     " aio_flush waits for it."},
    {"alloc", "a", io_alloc, 1, 2, 0, "offset [count]", "checks if offset is allocated in the file",
     NULL},
    {"break", NULL, io_break, 2, 2, 0, "event tag",
     "sets a breakpoint on event and tags the stopped request as tag", NULL},
    {"close", "c", io_close_command, 0, 0, 0, NULL, "close the current open file", NULL},
    {"discard", "d", io_discard, 2, -1, IO_WRITES, "[-Cq] off len",
     "discards a number of bytes at a specified offset",
     " -C  one line of numbers; -q  say nothing"},
    {"flush", "f", io_flush, 0, 0, 0, NULL, "flush all in-core file state to disk", NULL},
    {"help", "?", io_help, 0, 1, IO_NO_FILE, "[command]", "help for one or all commands", NULL},
    {"info", "i", io_info, 0, 0, 0, NULL, "prints information about the current file", NULL},
    {"length", "l", io_length, 0, 0, 0, NULL, "gets the length of the current file", NULL},
    {"map", NULL, io_map, 0, 0, 0, "", "prints the allocated areas of a file", NULL},
    {"open", "o", io_open_command, 1, -1, IO_NO_FILE,
     "[-rsCnkU] [-t cache] [-d discard] [-o options] [path]", "open the file specified by path",
     " -r  for reading only; -s  writes go to a file that is removed; -C  keep what backing files\n"
     " answered; -n  no host cache; -U  without locks; -t  cache mode; -d  discard mode; -k, -i  "
     "how\n"
     " requests are made, which is Lodge's own choice; -o  options of the driver"},
    {"quit", "q", io_quit, -1, -1, IO_NO_FILE, NULL, "exit the program", NULL},
    {"read", "r", io_read, 2, -1, 0, "[-abCqv] [-P pattern [-s off] [-l len]] off len",
     "reads a number of bytes at a specified offset",
     " -b  from the machine state's area; -C  one line of numbers; -P  what is read must be this\n"
     " byte, from -s on, for -l bytes; -v  show the bytes; -q  say nothing"},
    {"readv", NULL, io_readv, 2, -1, 0, "[-Cqv] [-P pattern] off len [len..]",
     "reads a number of bytes at a specified offset",
     " -C  one line of numbers; -P  what is read must be this byte; -v  show the bytes; -q  say\n"
     " nothing"},
    {"remove_break", NULL, io_remove_break, 1, 1, 0, "tag", "remove a breakpoint by tag", NULL},
    {"reopen", NULL, io_reopen_command, 0, -1, 0, "[(-r|-w)] [-c cache] [-o options]",
     "reopens an image with new options",
     " -r  for reading only; -w  for writing; -c  cache mode; -o  options of the driver"},
    {"resume", NULL, io_resume, 1, 1, 0, "tag", "resumes the request tagged as tag", NULL},
    {"sigraise", NULL, io_sigraise, 1, 1, IO_NO_FILE, "signal", "raises a signal", NULL},
    {"sleep", NULL, io_sleep, 1, 1, IO_NO_FILE, NULL, "waits for the given value in milliseconds",
     NULL},
    {"truncate", "t", io_truncate, 1, 3, IO_WRITES, "[-m prealloc_mode] off",
     "truncates the current file at the given offset", NULL},
    {"wait_break", NULL, io_wait_break, 1, 1, 0, "tag", "waits for the suspension of a request",
     NULL},
    {"write", "w", io_write, 2, -1, IO_WRITES, "[-bcCfnquz] [-P pattern | -s source_file] off len",
     "writes a number of bytes at a specified offset",
     " -b  to the machine state's area; -c  compressed; -C  one line of numbers; -f  to stable\n"
     " storage; -z  zeroes; -n  only where that is quick; -u  that may be unmapped; -P  the byte "
     "to\n"
     " write; -s  a file with what to write; -q  say nothing"},
    {"writev", NULL, io_writev, 2, -1, IO_WRITES, "[-Cfq] [-P pattern] off len [len..]",
     "writes a number of bytes at a specified offset",
     " -C  one line of numbers; -f  to stable storage; -P  the byte to write; -q  say nothing"},
    {NULL, NULL, NULL, 0, 0, 0, NULL, NULL, NULL},
};

int io_usage(const IoCommand *command)
{
    printf("%s %s -- %s\n", command->name, command->arguments, command->summary);
    return -EINVAL;
}

const IoCommand *io_command_find(const char *name)
{
    for (const IoCommand *c = io_commands; c->name; c++) {
        if (!strcmp(c->name, name) || !g_strcmp0(c->short_name, name))
            return c;
    }
    return NULL;
}

/* ---- the loop */

static int complain_count(const IoCommand *c, const char *name, int n)
{
    if (c->most == -1)
        fprintf(stderr, "bad argument count %d to %s, expected at least %d arguments\n", n, name,
                c->least);
    else if (c->least == c->most)
        fprintf(stderr, "bad argument count %d to %s, expected %d arguments\n", n, name, c->least);
    else
        fprintf(stderr, "bad argument count %d to %s, expected between %d and %d arguments\n", n,
                name, c->least, c->most);
    return -EINVAL;
}

static int run_words(IoSession *s, int argc, char **argv)
{
    const IoCommand *c = io_command_find(argv[0]);
    if (!c) {
        fprintf(stderr, "command \"%s\" not found\n", argv[0]);
        return -EINVAL;
    }
    if (!s->node && !(c->flags & IO_NO_FILE)) {
        fprintf(stderr, "no file open, try 'help open'\n");
        return -EINVAL;
    }
    if (argc - 1 < c->least || (c->most != -1 && argc - 1 > c->most))
        return complain_count(c, argv[0], argc - 1);
    if ((c->flags & IO_WRITES) && block_read_only(s->node)) {
        image_fail("Block node is read-only");
        return -EACCES;
    }
    int result = c->run(s, argc, argv);
    if (!s->quit)
        io_reap(s);
    return result;
}

static int run_line(IoSession *s, const char *line)
{
    g_auto(GStrv) parts = g_strsplit(line, " ", -1);
    g_autoptr(GPtrArray) words = g_ptr_array_new();
    for (char **part = parts; *part; part++) {
        if (**part)
            g_ptr_array_add(words, *part);
    }
    g_ptr_array_add(words, NULL);
    return words->len > 1 ? run_words(s, (int)words->len - 1, (char **)words->pdata) : 0;
}

/* qemu-io shows its prompt to whoever reads its output; lodge-img only to people. */
static void prompt(void)
{
    bool always = !strcmp(image_program(), "qemu-io");
    if (always || isatty(STDIN_FILENO))
        printf("%s> ", always ? "qemu-io" : "lodge-io");
    fflush(stdout);
}

static int run_session(IoSession *s, GPtrArray *lines)
{
    int last = 0;
    for (guint i = 0; i < lines->len && !s->quit; i++) {
        int result = run_line(s, g_ptr_array_index(lines, i));
        last = result < 0 ? result : last;
    }
    char *line = NULL;
    size_t room = 0;
    while (lines->len == 0 && !s->quit) {
        prompt();
        if (getline(&line, &room, stdin) < 0)
            break;
        line[strcspn(line, "\n")] = '\0';
        int result = run_line(s, line);
        last = result < 0 ? result : last;
    }
    free(line);
    io_drain(s);
    io_close(s);
    return last < 0;
}

/* ---- the command line */

typedef struct Io {
    IoSession session;
    GPtrArray *lines;
} Io;

static ImageApplied refused_unless(bool ok)
{
    return ok ? IMAGE_APPLIED : IMAGE_REFUSED;
}

static ImageApplied apply(void *opaque, int key, const char *value)
{
    static const char *const aio[] = {"threads", "native", "io_uring", NULL};
    static const char *const discard[] = {"ignore", "off", "unmap", "on", NULL};
    Io *io = opaque;
    IoOpen *open = &io->session.open;
    switch (key) {
    case 'c':
        g_ptr_array_add(io->lines, (char *)(uintptr_t)value);
        return IMAGE_APPLIED;
    case 'r':
        open->write = false;
        return IMAGE_APPLIED;
    case 's':
        open->snapshot = true;
        return IMAGE_APPLIED;
    case 'n':
        return refused_unless(io_open_cache(open, "none"));
    case 'C':
        open->copy_on_read = true;
        return IMAGE_APPLIED;
    case 'm':
        io->session.misalign = true;
        return IMAGE_APPLIED;
    case 'k':
        return IMAGE_APPLIED;
    case 'i':
        if (!g_strv_contains(aio, value))
            image_fail("Invalid aio option: %s", value);
        return refused_unless(g_strv_contains(aio, value));
    case 'd':
        if (!g_strv_contains(discard, value))
            image_fail("Invalid discard option: %s", value);
        open->discard_unmap = !strcmp(value, "unmap") || !strcmp(value, "on");
        return refused_unless(g_strv_contains(discard, value));
    case 't':
        return refused_unless(io_open_cache(open, value));
    default:
        return IMAGE_NOT_MINE;
    }
}

static const ImageOption options[] = {
    IMAGE_OPTION_HELP,
    IMAGE_OPTION_OBJECT,
    IMAGE_OPTION_IMAGE_OPTS,
    {'c', "cmd", "STRING", "run this command; without any, they are read from standard input"},
    {'f', "format", "FMT", "format of the image; else it is probed"},
    {'r', "read-only", NULL, "open for reading only"},
    {'s', "snapshot", NULL, "writes go to a file that is removed at the end"},
    {'n', "nocache", NULL, "no host cache, as -t none"},
    {'C', "copy-on-read", NULL, "keep in the image what backing files answered"},
    {'m', "misalign", NULL, "memory of requests is not aligned"},
    {'k', "native-aio", NULL, "accepted; how requests are made is Lodge's own choice"},
    {'i', "aio", "MODE", "accepted: threads, native or io_uring"},
    {'t', "cache", "MODE", "cache mode of the image"},
    {'d', "discard", "MODE", "ignore or unmap"},
    IMAGE_OPTION_SHARE,
    {0, NULL, NULL, NULL},
};

static bool name_image(Io *io, const ImageArguments *a)
{
    IoOpen *open = &io->session.open;
    g_autoptr(GError) error = NULL;
    open->shared = a->shared;
    open->format = g_strdup(a->format);
    if (!a->image_opts) {
        open->path = g_strdup(a->names[0]);
        return true;
    }
    open->options = json_object();
    if (block_options_parse(a->names[0], NULL, "file", open->options, &error))
        return true;
    image_fail("%s", error->message);
    return false;
}

static int run(int argc, char **argv)
{
    g_autoptr(GPtrArray) lines = g_ptr_array_new();
    g_auto(ImageArguments) a = {0};
    Io io = {.lines = lines,
             .session.open = {.write = true, .writethrough = true, .discard_unmap = true}};
    int status;
    if (argc == 2 && (!strcmp(argv[1], "-V") || !strcmp(argv[1], "--version"))) {
        image_print_version();
        return 0;
    }
    if (!image_parse(options, argc, argv, &a, apply, &io, &status))
        return status;
    if (a.n_names > 1)
        return image_usage("Expecting one image file name");
    if (a.format && a.image_opts)
        return image_fail("--image-opts and -f are mutually exclusive");
    g_queue_init(&io.session.works);
    io.session.objects = a.objects;
    io.session.image_opts = a.image_opts;
    status = 1;
    if (a.n_names == 0 || (name_image(&io, &a) && io_open(&io.session)))
        status = run_session(&io.session, lines);
    io_open_clear(&io.session.open);
    return status;
}

const ImageCommand image_io_command = {
    .name = "io",
    .run = run,
    .usage = "[--object objectdef] [--image-opts] [-f fmt] [-rsnCmkU] [-i aio] [-t cache] "
             "[-d discard] [-c command]... [filename]",
    .options = options,
};
