/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The commands of lodge-img: qemu-img's names, options, output and exit codes. */
#pragma once

#include "disk/image.h"
#include "disk/objects.h"

/* An option of a command: a row of a table that ends with key 0. */
typedef struct ImageOption {
    int key;              /* the short option's letter, or one of the keys below */
    const char *name;     /* the long one; NULL: none */
    const char *argument; /* what help calls its argument; NULL: it takes none */
    const char *help;
} ImageOption;

/* Keys without a letter. What every command understands alike, and a command's own. */
enum {
    IMAGE_OBJECT = 256,
    IMAGE_IMAGE_OPTS,
    IMAGE_OUTPUT,
    IMAGE_OWN,
};

/* Rows for tables of commands; -q, -p and -U mean the same everywhere. */
#define IMAGE_OPTION_HELP                                                                          \
    {                                                                                              \
        'h', "help", NULL, "print the help text"                                                   \
    }
#define IMAGE_OPTION_OBJECT                                                                        \
    {                                                                                              \
        IMAGE_OBJECT, "object", "OBJECTDEF", "define a secret or TLS credentials"                  \
    }
#define IMAGE_OPTION_IMAGE_OPTS                                                                    \
    {                                                                                              \
        IMAGE_IMAGE_OPTS, "image-opts", NULL, "names of images are option strings"                 \
    }
#define IMAGE_OPTION_FORMAT                                                                        \
    {                                                                                              \
        'f', NULL, "FMT", "format of the image; else it is probed"                                 \
    }
#define IMAGE_OPTION_OUTPUT                                                                        \
    {                                                                                              \
        IMAGE_OUTPUT, "output", "OFMT", "human or json"                                            \
    }
#define IMAGE_OPTION_CACHE                                                                         \
    {                                                                                              \
        't', NULL, "CACHE", "cache mode of what is written"                                        \
    }
#define IMAGE_OPTION_SOURCE_CACHE                                                                  \
    {                                                                                              \
        'T', NULL, "SRC_CACHE", "cache mode of what is read"                                       \
    }
#define IMAGE_OPTION_QUIET                                                                         \
    {                                                                                              \
        'q', NULL, NULL, "say nothing but errors"                                                  \
    }
#define IMAGE_OPTION_PROGRESS                                                                      \
    {                                                                                              \
        'p', NULL, NULL, "show progress"                                                           \
    }
#define IMAGE_OPTION_SHARE                                                                         \
    {                                                                                              \
        'U', "force-share", NULL, "take no locks; the image may be in use"                         \
    }

/* What image_parse made of a command line. */
typedef struct ImageArguments {
    const char *format;       /* -f */
    const char *cache;        /* -t; NULL: not given */
    const char *source_cache; /* -T */
    bool image_opts, shared, progress, quiet, json;
    BlockObjects *objects; /* owned */
    char **names;          /* the operands, borrowed from argv */
    int n_names;
} ImageArguments;

void image_arguments_clear(ImageArguments *arguments);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(ImageArguments, image_arguments_clear)

typedef struct ImageCommand {
    const char *name;
    int (*run)(int argc, char **argv); /* argv[0] is the command's name; the exit status */
    const char *usage;                 /* its options and operands as `--help` lists them */
    const ImageOption *options;
} ImageCommand;

extern const ImageCommand *const image_commands[]; /* ends with NULL */

extern const ImageCommand image_backup_command, image_restore_command, image_verify_command;
extern const ImageCommand image_amend_command, image_bench_command, image_bitmap_command,
    image_check_command, image_commit_command, image_compare_command, image_convert_command,
    image_create_command, image_dd_command, image_info_command, image_io_command, image_map_command,
    image_measure_command, image_mount_command, image_rebase_command, image_resize_command,
    image_serve_command, image_snapshot_command;

/* The whole program; the exit status. */
int image_main(int argc, char **argv);
/* ---- help.c: made from the tables; free them */
char *image_help(void);
char *image_manual(void); /* the commands' sections of the manual page */
char *image_bash_completion(void);

/* main.c */
void image_print_version(void);

/* ---- common.c */

void image_set_program(const char *argv0);
const char *image_program(void); /* "lodge-img", "qemu-img", "qemu-io", ... */
/* "lodge-img: MESSAGE" on standard error; returns 1. */
int image_fail(const char *format, ...) G_GNUC_PRINTF(1, 2);
/* The same, and where to find help. */
int image_usage(const char *format, ...) G_GNUC_PRINTF(1, 2);

/*
 * Parses the options of @options. Those that ImageArguments has a place for go there, except
 * where @apply, called first with each option, says that it took it; it may be NULL.
 * True: go on. False: *status is the exit status (a message has been printed if it is not 0).
 */
typedef enum ImageApplied { IMAGE_APPLIED, IMAGE_NOT_MINE, IMAGE_REFUSED } ImageApplied;
typedef ImageApplied (*ImageApply)(void *opaque, int key, const char *value);
bool image_parse(const ImageOption *options, int argc, char **argv, ImageArguments *arguments,
                 ImageApply apply, void *opaque, int *status);

/* A size or count within [@least, @most]; false after "Invalid WHAT specified...". */
bool image_parse_number(const char *what, const char *text, uint64_t least, uint64_t most,
                        uint64_t *value);
/* As the above, silently: 0, -EINVAL (no size) or -ERANGE (above INT64_MAX). */
int image_size_parse(const char *text, uint64_t *value);
/* "64 MiB" as qemu-img writes it. Free it. */
char *image_size_text(uint64_t size);
void image_print_json(const json_t *value); /* in QEMU's layout, with a newline */

typedef struct ImageOpen {
    const char *format;
    bool write, shared, no_backing, no_secrets, repair;
    bool ignore_discard;         /* discards do not reach the image's file */
    bool image_opts;             /* the name is "driver=...,file.filename=..." */
    const char *cache;           /* "none", "writeback", "unsafe" ...; NULL: writeback */
    bool source;                 /* @cache was given by -T: how a message calls it */
    const char *snapshot;        /* show this one; NULL: the present */
    const BlockObjects *objects; /* NULL: none */
} ImageOpen;

/* NULL after a message on standard error. */
BlockNode *image_open(const char *path, const ImageOpen *open);
/* That a guest's writes may change what a raw image is taken for; NULL: nothing. */
void image_warn_probed(const BlockNode *node);
/* False with a message when it is none of the cache modes. */
bool image_cache_known(const char *cache, bool source);

bool image_cache_direct(const char *cache); /* does it mean O_DIRECT? */
/* What --image-opts makes of a name: QEMU's blockdev tree; NULL with @err. */
json_t *image_options_tree(const char *text, bool shared, GError **err);
/* The argument of -l: *which is an id or name; false after a message. */
bool image_snapshot_param(const char *text, char **which);

/* info.c: "Format specific information:", as info prints it; nothing for NULL. */
void image_print_specific(const json_t *specific);

/* ---- progress.c: -p, SIGUSR1 prints how far, SIGINT and SIGTERM end it early */
void image_progress_begin(bool show);
/* For BlockProgress; false: stop, a signal asks for it. */
bool image_progress_step(void *opaque, uint64_t done, uint64_t total);
void image_progress_end(bool success);
bool image_interrupted(void);

/* ---- create.c */
/* Adds "a=b,c=d" of `-o` to @options, which become @create's; false after a message. */
bool image_parse_create(const char *path, const char *text, BlockCreate *create, json_t *options);
/* The same, without the message. */
bool image_create_options(const char *text, BlockCreate *create, json_t *options, GError **err);
/* Is each value of its row's type? */
bool image_check_option_values(const json_t *options, const BlockOption *table, GError **err);
/* A table as `-o help` prints it. */
void image_print_option_table(const BlockOption *table);
/* True when "-o @text" asks for the list of options. */
bool image_wants_option_help(const char *text);
/* `-o help`; @path: the target, NULL when none was named. The exit status. */
int image_option_help(const char *path, const char *format);
/* Can several texts of `-o` be joined by commas? Else false after a message. */
bool image_option_list_valid(const char *text);
