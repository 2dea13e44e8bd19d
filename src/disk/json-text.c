/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "disk/json-text.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* QEMU's dictionaries: chains by hash, walked by bucket, the newest of a bucket first. */
#define BUCKETS 512u

/* The string hash of the TDB data base, which QEMU's dictionaries use. */
static unsigned bucket_of(const char *name)
{
    uint32_t hash = UINT32_C(0x238F13AF) * (uint32_t)strlen(name);
    unsigned shift = 0;
    for (const char *at = name; *at; at++) {
        hash += (uint32_t)(unsigned char)*at << shift;
        shift = (shift + 5) % 24;
    }
    return (UINT32_C(1103515243) * hash + 12345) % BUCKETS;
}

typedef struct Member {
    const char *name;
    unsigned bucket, age;
} Member;

static int compare_members(const void *left, const void *right)
{
    const Member *a = left, *b = right;
    if (a->bucket != b->bucket)
        return a->bucket < b->bucket ? -1 : 1;
    return a->age > b->age ? -1 : 1;
}

GPtrArray *json_text_names(const json_t *object)
{
    g_autoptr(GArray) members = g_array_new(FALSE, FALSE, sizeof(Member));
    GPtrArray *names = g_ptr_array_new();
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)object, name, value)
    {
        Member member = {name, bucket_of(name), members->len};
        g_array_append_val(members, member);
    }
    if (members->len > 0)
        qsort(members->data, members->len, sizeof(Member), compare_members);
    for (guint i = 0; i < members->len; i++)
        g_ptr_array_add(names, (char *)(uintptr_t)g_array_index(members, Member, i).name);
    return names;
}

static void append_string(GString *out, const char *text)
{
    static const char plain[] = "\"\\\b\f\n\r\t", escapes[] = "\"\\bfnrt";
    g_string_append_c(out, '"');
    for (const char *at = text; *at; at = g_utf8_next_char(at)) {
        gunichar c = g_utf8_get_char(at);
        const char *special = c < 0x80 ? strchr(plain, (int)c) : NULL;
        if (special)
            g_string_append_printf(out, "\\%c", escapes[special - plain]);
        else if (c > 0xffff)
            g_string_append_printf(out, "\\u%04X\\u%04X", 0xd800 + ((c - 0x10000) >> 10),
                                   0xdc00 + ((c - 0x10000) & 0x3ff));
        else if (c < 0x20 || c >= 0x7f)
            g_string_append_printf(out, "\\u%04X", c);
        else
            g_string_append_c(out, (char)c);
    }
    g_string_append_c(out, '"');
}

static void new_line(GString *out, bool pretty, unsigned depth)
{
    if (pretty)
        g_string_append_printf(out, "\n%*s", (int)depth * 4, "");
}

static void separate(GString *out, bool pretty, unsigned depth, bool first)
{
    if (!first)
        g_string_append_c(out, ',');
    if (!first && !pretty)
        g_string_append_c(out, ' ');
    new_line(out, pretty, depth);
}

static void append_value(GString *out, const json_t *value, bool pretty, unsigned depth);

static void append_object(GString *out, const json_t *object, bool pretty, unsigned depth)
{
    g_autoptr(GPtrArray) names = json_text_names(object);
    g_string_append_c(out, '{');
    for (guint i = 0; i < names->len; i++) {
        const char *name = g_ptr_array_index(names, i);
        separate(out, pretty, depth + 1, i == 0);
        append_string(out, name);
        g_string_append(out, ": ");
        append_value(out, json_object_get(object, name), pretty, depth + 1);
    }
    new_line(out, pretty, depth);
    g_string_append_c(out, '}');
}

static void append_array(GString *out, const json_t *array, bool pretty, unsigned depth)
{
    size_t i;
    json_t *value;
    g_string_append_c(out, '[');
    json_array_foreach(array, i, value)
    {
        separate(out, pretty, depth + 1, i == 0);
        append_value(out, value, pretty, depth + 1);
    }
    new_line(out, pretty, depth);
    g_string_append_c(out, ']');
}

static void append_value(GString *out, const json_t *value, bool pretty, unsigned depth)
{
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        append_object(out, value, pretty, depth);
        break;
    case JSON_ARRAY:
        append_array(out, value, pretty, depth);
        break;
    case JSON_STRING:
        append_string(out, json_string_value(value));
        break;
    case JSON_INTEGER:
        g_string_append_printf(out, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
        break;
    case JSON_REAL:
        g_string_append_printf(out, "%.17g", json_real_value(value));
        break;
    case JSON_TRUE:
        g_string_append(out, "true");
        break;
    case JSON_FALSE:
        g_string_append(out, "false");
        break;
    case JSON_NULL:
        g_string_append(out, "null");
        break;
    }
}

char *json_text(const json_t *value, bool pretty)
{
    GString *out = g_string_new(NULL);
    append_value(out, value, pretty, 0);
    return g_string_free(out, FALSE);
}

/* One string in the quotes @at begins with, as one in double quotes; behind it. */
static const char *requote(GString *out, const char *at)
{
    char quote = *at++;
    g_string_append_c(out, '"');
    for (; *at && *at != quote; at++) {
        if (at[0] == '\\' && at[1]) {
            if (at[1] != '\'')
                g_string_append_c(out, '\\');
            g_string_append_c(out, *++at);
        } else if (*at == '"') {
            g_string_append(out, "\\\"");
        } else {
            g_string_append_c(out, *at);
        }
    }
    if (*at)
        g_string_append_c(out, '"');
    return *at ? at + 1 : at;
}

json_t *json_text_parse(const char *text, char **problem)
{
    json_error_t error;
    g_autoptr(GString) plain = g_string_new(NULL);
    for (const char *at = text; *at;) {
        if (*at == '"' || *at == '\'')
            at = requote(plain, at);
        else
            g_string_append_c(plain, *at++);
    }
    json_t *value = json_loads(plain->str, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &error);
    *problem = value ? NULL : g_strdup(error.text);
    return value;
}
