/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Cuts a stream of bytes into JSON values, whatever the pieces it arrives in: values may follow
 * each other with or without white space. RFC 8259.
 */
#pragma once

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#define JSON_FRAME_SIZE_MAX  (1024 * 1024)
#define JSON_FRAME_DEPTH_MAX 256

typedef struct JsonFramer JsonFramer;

JsonFramer *json_framer_new(void);
void json_framer_free(JsonFramer *framer);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(JsonFramer, json_framer_free)

/*
 * Called for every value, or with NULL and the error for what is none: LODGE_ERROR_INVALID
 * and the stream goes on with the next value; LODGE_ERROR_LIMIT (too large, too deep) and the
 * stream cannot go on. @value is borrowed. False: take nothing more now.
 */
typedef bool (*JsonFrameHandler)(void *opaque, json_t *value, const GError *error);

/* Takes @size bytes; returns false after a LODGE_ERROR_LIMIT or when the handler said so. */
bool json_framer_push(JsonFramer *framer, const char *data, size_t size, JsonFrameHandler handler,
                      void *opaque);
