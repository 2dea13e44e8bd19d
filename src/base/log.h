/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Messages for a person, from programs (libraries return errors instead). One line on
 * standard error: "PROGRAM: warning: ...". Any thread.
 */
#pragma once

#include <glib.h>

typedef enum LogLevel {
    LOG_LEVEL_ERROR,
    LOG_LEVEL_WARNING,
    LOG_LEVEL_INFO,
    LOG_LEVEL_DEBUG
} LogLevel;

/* Messages above @level are dropped; the default is LOG_LEVEL_WARNING. */
void log_set_level(LogLevel level);
/* @program: a static string, used as the prefix of every line. */
void log_set_program(const char *program);
void log_line(LogLevel level, const char *format, ...) G_GNUC_PRINTF(2, 3);

#define log_error(...)   log_line(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warning(...) log_line(LOG_LEVEL_WARNING, __VA_ARGS__)
#define log_info(...)    log_line(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...)   log_line(LOG_LEVEL_DEBUG, __VA_ARGS__)
