/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The commands of lodge-img: qemu-img's names, options, output and exit codes. */
#pragma once

#include "disk/image.h"

typedef struct ImageCommand {
    const char *name;
    int (*run)(int argc, char **argv); /* argv[0] is the command's name; the exit status */
    const char *usage;
} ImageCommand;

extern const ImageCommand image_bench_command, image_create_command, image_info_command, image_check_command,
    image_convert_command, image_compare_command, image_map_command, image_resize_command,
    image_io_command;

/* The whole program; the exit status. */
int image_main(int argc, char **argv);

/* common.c */
void image_set_program(const char *argv0);
/* "lodge-img: MESSAGE" on standard error; returns 1. */
int image_fail(const char *format, ...) G_GNUC_PRINTF(1, 2);
/* For what getopt_long could not place: names the option; returns 1. */
int image_bad_option(const char *command, char **argv);
/* The argument of --output; false after a message. */
bool image_parse_output(const char *text, bool *json);
/* "64 MiB" as qemu-img writes it. Free it. */
char *image_size_text(uint64_t size);

typedef struct ImageOpen {
    const char *format;
    bool write, shared, no_backing, repair;
    const char *cache; /* "none", "writeback", "unsafe" ...; NULL: writeback */
} ImageOpen;

/* NULL after a message on standard error. */
BlockNode *image_open(const char *path, const ImageOpen *open);

/* create.c: adds "a=b,c=d" of `-o` to @options, which become @create's; false after a message. */
bool image_parse_create(const char *path, const char *text, BlockCreate *create, json_t *options);
/* "(12.34/100%)" of -p */
void image_progress(bool show, uint64_t done, uint64_t total);
