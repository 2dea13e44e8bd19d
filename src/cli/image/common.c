/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "cli/image/image.h"

#include <getopt.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *program;

void image_set_program(const char *argv0)
{
    g_free(program);
    program = g_path_get_basename(argv0);
}

int image_fail(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *text = g_strdup_vprintf(format, args);
    va_end(args);
    fflush(stdout);
    fprintf(stderr, "%s: %s\n", program ? program : "lodge-img", text);
    return 1;
}

int image_bad_option(const char *command, char **argv)
{
    const char *given = argv[optind > 0 ? optind - 1 : 0];
    if (optopt && strncmp(given, "--", 2))
        return image_fail("%s: the option '-%c' is not supported or lacks its argument\n"
                          "Try '%s --help' for more information",
                          command, optopt, program);
    return image_fail("%s: the option '%s' is not supported or lacks its argument\n"
                      "Try '%s --help' for more information",
                      command, given, program);
}

bool image_parse_output(const char *text, bool *json)
{
    *json = !strcmp(text, "json");
    if (!*json && strcmp(text, "human")) {
        image_fail("--output must be used with human or json as argument.");
        return false;
    }
    return true;
}

char *image_size_text(uint64_t size)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    int exponent;
    /* 1000 of one unit are already written in the next: three digits always suffice. */
    frexp((double)size / (1000.0 / 1024.0), &exponent);
    int unit = exponent > 0 ? (exponent - 1) / 10 : 0;
    return g_strdup_printf("%0.3g %s", (double)size / (double)(1ull << (unit * 10)), units[unit]);
}

static bool apply_cache(const char *cache, BlockOpen *options)
{
    if (!cache || !strcmp(cache, "writeback") || !strcmp(cache, "writethrough"))
        return true;
    if (!strcmp(cache, "none") || !strcmp(cache, "directsync") || !strcmp(cache, "off")) {
        options->direct = true;
        return true;
    }
    options->no_flush = !strcmp(cache, "unsafe");
    return options->no_flush;
}

BlockNode *image_open(const char *path, const ImageOpen *open)
{
    g_autoptr(GError) error = NULL;
    BlockOpen options = {.path = path,
                         .format = open->format,
                         .read_only = !open->write,
                         .shared = open->shared,
                         .no_backing = open->no_backing,
                         .repair = open->repair,
                         .discard_unmap = true};
    if (!apply_cache(open->cache, &options)) {
        image_fail("Invalid cache option: %s", open->cache);
        return NULL;
    }
    BlockNode *node = block_open(&options, &error);
    if (!node)
        image_fail("Could not open '%s': %s", path, error->message);
    return node;
}

void image_progress(bool show, uint64_t done, uint64_t total)
{
    if (!show)
        return;
    printf("    (%3.2f/100%%)\r", total ? 100.0 * (double)done / (double)total : 100.0);
    if (done >= total)
        printf("\n");
    fflush(stdout);
}
