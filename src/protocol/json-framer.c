/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "protocol/json-framer.h"

#include <string.h>

#include "base/error.h"

struct JsonFramer {
    GString *value; /* the bytes of the value that is being collected */
    unsigned depth; /* open brackets; 0 between values */
    bool in_string, escaped;
    bool garbage; /* between values: skipping what cannot start one */
};

JsonFramer *json_framer_new(void)
{
    JsonFramer *f = g_new0(JsonFramer, 1);
    f->value = g_string_new(NULL);
    return f;
}

void json_framer_free(JsonFramer *f)
{
    if (f)
        g_string_free(f->value, TRUE);
    g_free(f);
}

static void begin_again(JsonFramer *f)
{
    g_string_truncate(f->value, 0);
    f->depth = 0;
    f->in_string = f->escaped = false;
}

static bool report(JsonFrameHandler handler, void *opaque, LodgeErrorCode code, const char *text)
{
    g_autoptr(GError) error = NULL;
    lodge_fail(&error, code, "%s", text);
    return handler(opaque, NULL, error);
}

static bool complete(JsonFramer *f, JsonFrameHandler handler, void *opaque)
{
    json_error_t error;
    json_t *value = json_loadb(f->value->str, f->value->len, JSON_REJECT_DUPLICATES, &error);
    begin_again(f);
    if (!value) {
        g_autofree char *text =
            g_strdup_printf("not JSON: %s (byte %d)", error.text, error.position);
        return report(handler, opaque, LODGE_ERROR_INVALID, text);
    }
    bool go_on = handler(opaque, value, NULL);
    json_decref(value);
    return go_on;
}

/* A byte between values: the start of one, white space, or something wrong (told once a run). */
static bool outside(JsonFramer *f, char c, JsonFrameHandler handler, void *opaque)
{
    if (c == '{' || c == '[') {
        f->garbage = false;
        f->depth = 1;
        g_string_append_c(f->value, c);
        return true;
    }
    if (strchr(" \t\r\n", c) && c) {
        if (c == '\n')
            f->garbage = false;
        return true;
    }
    if (f->garbage)
        return true;
    f->garbage = true;
    return report(handler, opaque, LODGE_ERROR_INVALID, "a JSON object was expected");
}

static void inside(JsonFramer *f, char c)
{
    g_string_append_c(f->value, c);
    if (f->in_string) {
        if (f->escaped)
            f->escaped = false;
        else if (c == '\\')
            f->escaped = true;
        else if (c == '"')
            f->in_string = false;
    } else if (c == '"') {
        f->in_string = true;
    } else if (c == '{' || c == '[') {
        f->depth++;
    } else if (c == '}' || c == ']') {
        f->depth--;
    }
}

bool json_framer_push(JsonFramer *f, const char *data, size_t size, JsonFrameHandler handler,
                      void *opaque)
{
    for (size_t i = 0; i < size; i++) {
        bool go_on = true;
        if (f->depth == 0) {
            go_on = outside(f, data[i], handler, opaque);
        } else {
            inside(f, data[i]);
            if (f->depth == 0)
                go_on = complete(f, handler, opaque);
        }
        if (f->depth > JSON_FRAME_DEPTH_MAX || f->value->len > JSON_FRAME_SIZE_MAX) {
            bool deep = f->depth > JSON_FRAME_DEPTH_MAX;
            begin_again(f);
            report(handler, opaque, LODGE_ERROR_LIMIT,
                   deep ? "JSON nested deeper than 256 levels" : "a JSON value of more than 1 MiB");
            return false;
        }
        if (!go_on)
            return false;
    }
    return true;
}
