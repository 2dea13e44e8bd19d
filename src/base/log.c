/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>

static _Atomic LogLevel log_level = LOG_LEVEL_WARNING;
static const char *_Atomic log_program = "lodge";

void log_set_level(LogLevel level)
{
    atomic_store(&log_level, level);
}

void log_set_program(const char *program)
{
    atomic_store(&log_program, program);
}

void log_line(LogLevel level, const char *format, ...)
{
    static const char *const word[] = {"error: ", "warning: ", "", "debug: "};
    if (level > atomic_load(&log_level))
        return;
    va_list args;
    va_start(args, format);
    g_autofree char *text = g_strdup_vprintf(format, args);
    va_end(args);
    fprintf(stderr, "%s: %s%s\n", atomic_load(&log_program), word[level], text);
}
