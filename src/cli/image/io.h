/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The exerciser: qemu-io's command language on one open image. */
#pragma once

#include "cli/image/image.h"

/* QEMU's largest request: INT_MAX rounded down to sectors. */
#define IO_REQUEST_MAX 2147483136ull
#define IO_SECTOR      512u

/* How the image is opened, for reopen. */
typedef struct IoOpen {
    char *path;      /* NULL: @options names it */
    json_t *options; /* flat, of -o; NULL: none */
    char *format;
    bool write, shared, snapshot, copy_on_read;
    bool direct, no_flush, writethrough, discard_unmap;
} IoOpen;

typedef struct IoSession {
    BlockNode *node; /* NULL: none is open */
    BlockQueue *queue;
    GQueue works; /* requests of the queue, in the order in which they are told */
    IoOpen open;
    const BlockObjects *objects;
    bool misalign, image_opts, quit;
} IoSession;

enum { IO_NO_FILE = 1 << 0, IO_WRITES = 1 << 1 };

typedef struct IoCommand {
    const char *name, *short_name;                   /* NULL: no short one */
    int (*run)(IoSession *s, int argc, char **argv); /* 0 or -errno */
    int least, most;                                 /* arguments; -1: any number */
    unsigned flags;
    const char *arguments, *summary, *help; /* NULL: nothing to say */
} IoCommand;

extern const IoCommand io_commands[]; /* ends with a NULL name */

int io_usage(const IoCommand *command); /* prints it; -EINVAL */
const IoCommand *io_command_find(const char *name);

/* One of qemu-io's numbers; 0 or -errno after a message. */
int io_number(const char *text, uint64_t *value);
/* "64 KiB", "1.500 MiB", "512 bytes"; free it. */
char *io_size_text(double value);

/* io-open.c */
void io_open_clear(IoOpen *open);
void io_close(IoSession *s);
bool io_open(IoSession *s); /* as s->open says; false after a message */
bool io_open_cache(IoOpen *open, const char *mode);
int io_open_command(IoSession *s, int argc, char **argv);
int io_reopen_command(IoSession *s, int argc, char **argv);
int io_close_command(IoSession *s, int argc, char **argv);

/* io-request.c */
int io_read(IoSession *s, int argc, char **argv);
int io_readv(IoSession *s, int argc, char **argv);
int io_write(IoSession *s, int argc, char **argv);
int io_writev(IoSession *s, int argc, char **argv);
int io_aio_read(IoSession *s, int argc, char **argv);
int io_aio_write(IoSession *s, int argc, char **argv);
int io_aio_discard(IoSession *s, int argc, char **argv);
int io_aio_fsync(IoSession *s, int argc, char **argv);
int io_discard(IoSession *s, int argc, char **argv);
void io_reap(IoSession *s);  /* tells what is done */
void io_drain(IoSession *s); /* waits for everything and tells it */
