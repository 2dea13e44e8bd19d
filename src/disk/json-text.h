/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * JSON as QEMU prints it: the members of an object in the order in which QEMU's dictionaries are
 * walked, which scripts and QEMU's own tests compare byte by byte, and its layout and escapes.
 */
#pragma once

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>

/* On one line ("{"a": 1, "b": 2}"), or with 4 columns a level. Free it. */
char *json_text(const json_t *value, bool pretty);

/* The names of @object in that order, borrowed from it; the array is to be freed. */
GPtrArray *json_text_names(const json_t *object);

/* As QEMU reads it: strings may also be in single quotes. NULL with *problem (free it). */
json_t *json_text_parse(const char *text, char **problem);
