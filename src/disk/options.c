/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "disk/options.h"

#include "base/error.h"

#include <stdlib.h>
#include <string.h>

#define DEPTH_MAX 64u

const BlockOption *block_option_find(const BlockOption *table, const char *name)
{
    for (; table && table->name; table++) {
        if (!strcmp(table->name, name))
            return table;
    }
    return NULL;
}

/* Up to the next single comma; doubled ones are one of the text. Moves *text behind it. */
static char *next_part(const char **text)
{
    GString *part = g_string_new(NULL);
    const char *at = *text;
    for (; *at && (*at != ',' || at[1] == ','); at++) {
        g_string_append_c(part, *at);
        if (*at == ',')
            at++;
    }
    *text = *at == ',' ? at + 1 : at;
    return g_string_free(part, FALSE);
}

bool block_options_parse(const char *text, const BlockOption *table, const char *first,
                         json_t *into, GError **err)
{
    bool begin = true;
    while (*text) {
        g_autofree char *part = next_part(&text);
        const char *name = part, *value = "on";
        char *equals = strchr(part, '=');
        if (equals) {
            *equals = '\0';
            value = equals + 1;
        } else if (begin && first) {
            name = first;
            value = part;
        } else if (g_str_has_prefix(part, "no") && table && !block_option_find(table, part) &&
                   block_option_find(table, part + 2)) {
            name = part + 2;
            value = "off";
        }
        begin = false;
        if (!g_utf8_validate(name, -1, NULL) || !g_utf8_validate(value, -1, NULL))
            return lodge_fail(err, LODGE_ERROR_INVALID, "an option that is not UTF-8");
        if (table && !block_option_find(table, name))
            return lodge_fail(err, LODGE_ERROR_INVALID, "Invalid parameter '%s'", name);
        json_object_set_new(into, name, json_string(value));
    }
    return true;
}

/* ---- trees */

static bool put_nested(json_t *into, const char *name, json_t *value, unsigned depth, GError **err);

static json_t *nest(const json_t *flat, unsigned depth, GError **err)
{
    const char *name;
    json_t *value, *tree = json_object();
    if (depth > DEPTH_MAX) {
        lodge_fail(err, LODGE_ERROR_LIMIT, "options are nested deeper than %u", DEPTH_MAX);
        json_decref(tree);
        return NULL;
    }
    json_object_foreach((json_t *)flat, name, value)
    {
        json_t *inner = json_is_object(value) ? nest(value, depth + 1, err) : json_incref(value);
        bool ok = inner && put_nested(tree, name, inner, depth, err);
        json_decref(inner);
        if (!ok) {
            json_decref(tree);
            return NULL;
        }
    }
    return tree;
}

static bool put_nested(json_t *into, const char *name, json_t *value, unsigned depth, GError **err)
{
    const char *dot = strchr(name, '.');
    if (depth > DEPTH_MAX)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "options are nested deeper than %u", DEPTH_MAX);
    if (!dot) {
        json_t *have = json_object_get(into, name);
        if (json_is_object(have) && json_is_object(value))
            return json_object_update(have, value) == 0;
        if (have && (json_is_object(have) || json_is_object(value)))
            return lodge_fail(err, LODGE_ERROR_INVALID,
                              "Parameter '%s' is given as a value and as a group", name);
        json_object_set(into, name, value);
        return true;
    }
    g_autofree char *head = g_strndup(name, (gsize)(dot - name));
    json_t *group = json_object_get(into, head);
    if (!group) {
        group = json_object();
        json_object_set_new(into, head, group);
    }
    if (!json_is_object(group))
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "Parameter '%s' is given as a value and as a group", head);
    return put_nested(group, dot + 1, value, depth + 1, err);
}

/* {"0": a, "1": b} is [a, b]. */
static json_t *lists(json_t *tree)
{
    const char *name;
    json_t *value;
    void *next;
    json_object_foreach_safe(tree, next, name, value)
    {
        if (json_is_object(value))
            json_object_set_new(tree, name, lists(json_incref(value)));
    }
    size_t n = json_object_size(tree);
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++) {
        char key[24];
        g_snprintf(key, sizeof(key), "%zu", i);
        value = json_object_get(tree, key);
        if (!value)
            break;
        json_array_append(list, value);
    }
    if (n == 0 || json_array_size(list) != n) {
        json_decref(list);
        return tree;
    }
    json_decref(tree);
    return list;
}

json_t *block_options_nest(const json_t *flat, GError **err)
{
    json_t *tree = nest(flat, 0, err);
    if (!tree)
        return NULL;
    const char *name;
    json_t *value;
    void *next;
    json_object_foreach_safe(tree, next, name, value)
    {
        if (json_is_object(value))
            json_object_set_new(tree, name, lists(json_incref(value)));
    }
    return tree;
}

static void flatten(json_t *into, const char *prefix, json_t *value)
{
    const char *name;
    json_t *inner;
    size_t i;
    if (json_is_object(value)) {
        json_object_foreach(value, name, inner)
        {
            g_autofree char *path =
                *prefix ? g_strdup_printf("%s.%s", prefix, name) : g_strdup(name);
            flatten(into, path, inner);
        }
    } else if (json_is_array(value)) {
        json_array_foreach(value, i, inner)
        {
            g_autofree char *path = g_strdup_printf("%s.%zu", prefix, i);
            flatten(into, path, inner);
        }
    } else if (json_is_string(value)) {
        json_object_set(into, prefix, value);
    } else if (json_is_integer(value)) {
        g_autofree char *text =
            g_strdup_printf("%" JSON_INTEGER_FORMAT, json_integer_value(value));
        json_object_set_new(into, prefix, json_string(text));
    } else if (json_is_boolean(value)) {
        json_object_set_new(into, prefix, json_string(json_is_true(value) ? "on" : "off"));
    } else {
        json_object_set_new(into, prefix, json_string(""));
    }
}

json_t *block_options_flat(const json_t *tree)
{
    json_t *into = json_object();
    flatten(into, "", (json_t *)tree);
    return into;
}

bool block_options_known(const json_t *options, const BlockOption *table, const BlockOption *more,
                         const char *where, GError **err)
{
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)options, name, value)
    {
        if (!block_option_find(table, name) && !block_option_find(more, name))
            return lodge_fail(err, LODGE_ERROR_INVALID,
                              "Block protocol '%s' doesn't support the option '%s'", where, name);
    }
    return true;
}

/* ---- values */

bool block_parse_size(const char *text, uint64_t *size)
{
    static const char suffixes[] = "bkmgtpe";
    char *end;
    if (!g_ascii_isdigit(text[0]))
        return false;
    bool hex = text[0] == '0' && (text[1] == 'x' || text[1] == 'X');
    unsigned long long whole = strtoull(text, &end, hex ? 16 : 10);
    double fraction = 0;
    if (!hex && *end == '.') {
        char *after;
        fraction = g_ascii_strtod(end, &after);
        if (after == end + 1)
            return false;
        end = after;
    }
    unsigned shift = 0;
    if (*end) {
        const char *at = strchr(suffixes, g_ascii_tolower(*end));
        if (!at || end[1])
            return false;
        shift = (unsigned)(at - suffixes) * 10;
    }
    if (whole > (uint64_t)INT64_MAX >> shift)
        return false;
    *size = ((uint64_t)whole << shift) + (uint64_t)(fraction * (double)(1ull << shift));
    return *size <= INT64_MAX;
}

const char *block_option_string(const json_t *options, const BlockOption *table, const char *name)
{
    json_t *value = options ? json_object_get(options, name) : NULL;
    if (json_is_string(value))
        return json_string_value(value);
    const BlockOption *row = block_option_find(table, name);
    return value || !row ? NULL : row->fallback;
}

bool block_option_given(const json_t *options, const char *name)
{
    return options && json_object_get(options, name);
}

static bool numeric(const json_t *options, const BlockOption *table, const char *name, bool suffix,
                    uint64_t *out, GError **err)
{
    json_t *value = options ? json_object_get(options, name) : NULL;
    if (json_is_integer(value) && json_integer_value(value) >= 0) {
        *out = (uint64_t)json_integer_value(value);
        return true;
    }
    const char *text = block_option_string(options, table, name);
    if (!text && !value)
        return true;
    uint64_t number;
    char *end = NULL;
    if (suffix && text && block_parse_size(text, &number)) {
        *out = number;
        return true;
    }
    if (!suffix && text && g_ascii_isdigit(*text)) {
        number = g_ascii_strtoull(text, &end, g_str_has_prefix(text, "0x") ? 16 : 10);
        if (!*end) {
            *out = number;
            return true;
        }
    }
    return suffix ? lodge_fail(err, LODGE_ERROR_INVALID,
                               "Parameter '%s' expects a non-negative number below 2^64\n"
                               "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, "
                               "tera-, peta-\nand exabytes, respectively.",
                               name)
                  : lodge_fail(err, LODGE_ERROR_INVALID, "Parameter '%s' expects a number", name);
}

bool block_option_size(const json_t *options, const BlockOption *table, const char *name,
                       uint64_t *out, GError **err)
{
    return numeric(options, table, name, true, out, err);
}

bool block_option_number(const json_t *options, const BlockOption *table, const char *name,
                         uint64_t *out, GError **err)
{
    return numeric(options, table, name, false, out, err);
}

bool block_option_bool(const json_t *options, const BlockOption *table, const char *name, bool *out,
                       GError **err)
{
    json_t *value = options ? json_object_get(options, name) : NULL;
    if (json_is_boolean(value)) {
        *out = json_is_true(value);
        return true;
    }
    const char *text = block_option_string(options, table, name);
    if (!text && !value)
        return true;
    if (text && (!strcmp(text, "on") || !strcmp(text, "yes") || !strcmp(text, "true") ||
                 !strcmp(text, "y")))
        *out = true;
    else if (text && (!strcmp(text, "off") || !strcmp(text, "no") || !strcmp(text, "false") ||
                      !strcmp(text, "n")))
        *out = false;
    else
        return lodge_fail(err, LODGE_ERROR_INVALID, "Parameter '%s' expects 'on' or 'off'", name);
    return true;
}
