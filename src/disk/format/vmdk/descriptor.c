/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "disk/format/vmdk/descriptor.h"

#include "base/bytes.h"
#include "base/error.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define FIELD_MAX 511u /* bytes of a file name */

const char *const vmdk_extent_types[] = {"FLAT", "SPARSE", "VMFS", "VMFSSPARSE", "SESPARSE"};

/* A piece of the text. */
typedef struct Slice {
    const char *at;
    size_t length;
} Slice;

static bool is_blank(char c)
{
    return c == ' ' || c == '\t' || c == '\r';
}

static void skip_blanks(Slice *s)
{
    while (s->length && is_blank(*s->at))
        s->at++, s->length--;
}

static Slice next_line(Slice *text)
{
    const char *end = memchr(text->at, '\n', text->length);
    Slice line = {text->at, end ? (size_t)(end - text->at) : text->length};
    size_t taken = line.length + (end != NULL);
    text->at += taken;
    text->length -= taken;
    while (line.length && is_blank(line.at[line.length - 1]))
        line.length--;
    return line;
}

static Slice next_word(Slice *line)
{
    skip_blanks(line);
    Slice word = {line->at, 0};
    while (line->length && !is_blank(*line->at))
        line->at++, line->length--, word.length++;
    return word;
}

static bool is_word(const Slice *s, const char *word)
{
    return s->length == strlen(word) && !memcmp(s->at, word, s->length);
}

/* Digits only; false: none, or more than 63 bits. */
static bool take_number(Slice *line, uint64_t *value)
{
    Slice word = next_word(line);
    uint64_t sum = 0;
    for (size_t i = 0; i < word.length; i++) {
        char c = word.at[i];
        if (c < '0' || c > '9' || !mul_u64(sum, 10, &sum) ||
            !add_u64(sum, (uint64_t)(c - '0'), &sum) || sum > INT64_MAX)
            return false;
    }
    *value = sum;
    return word.length > 0;
}

static char *take_quoted(Slice *line)
{
    skip_blanks(line);
    if (line->length < 2 || *line->at != '"')
        return NULL;
    const char *end = memchr(line->at + 1, '"', line->length - 1);
    size_t length = end ? (size_t)(end - line->at - 1) : 0;
    if (length == 0 || length > FIELD_MAX)
        return NULL;
    char *name = g_strndup(line->at + 1, length);
    line->length -= length + 2;
    line->at += length + 2;
    return name;
}

static bool type_of(const Slice *word, VmdkExtentType *type)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(vmdk_extent_types); i++) {
        if (is_word(word, vmdk_extent_types[i])) {
            *type = (VmdkExtentType)i;
            return true;
        }
    }
    return false;
}

/* RW 4192256 SPARSE "name" or RW 1048576 FLAT "name" 0; other lines are not for us. */
static bool parse_extent(VmdkDescriptor *d, Slice line, GError **err)
{
    Slice whole = line, access = next_word(&line);
    VmdkExtentLine e = {0};
    if (!is_word(&access, "RW") || !take_number(&line, &e.sectors))
        return true;
    Slice type = next_word(&line);
    if (!type.length)
        return true;
    e.name = take_quoted(&line);
    if (!e.name)
        return true;
    skip_blanks(&line);
    bool known = type_of(&type, &e.type), more = line.length > 0;
    bool flat = known && e.type == VMDK_FLAT;
    bool right = flat ? take_number(&line, &e.offset) && e.offset <= INT64_MAX / 512 : !more;
    if (!right) {
        g_free(e.name);
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "Invalid extent line: %.*s", (int)whole.length,
                          whole.at);
    }
    if (!known || e.sectors == 0) {
        g_free(e.name);
        return true;
    }
    g_array_append_val(d->extents, e);
    if (d->extents->len > VMDK_EXTENTS_MAX)
        return lodge_fail(err, LODGE_ERROR_LIMIT,
                          "the VMDK descriptor has more than %u extents", VMDK_EXTENTS_MAX);
    return true;
}

static bool starts_with(const Slice *line, const char *key, Slice *value)
{
    size_t length = strlen(key);
    if (line->length < length || memcmp(line->at, key, length))
        return false;
    *value = (Slice){line->at + length, line->length - length};
    skip_blanks(value);
    if (!value->length || *value->at != '=')
        return false;
    value->at++;
    value->length--;
    skip_blanks(value);
    return true;
}

static bool parse_hex(const Slice *value, uint32_t *number, size_t *digits)
{
    uint64_t sum = 0;
    size_t i = 0;
    for (; i < value->length && i < 9 && g_ascii_isxdigit(value->at[i]); i++)
        sum = sum * 16 + (uint64_t)g_ascii_xdigit_value(value->at[i]);
    *number = (uint32_t)sum;
    *digits = i;
    return i > 0 && i < 9;
}

/* False: the value is not what the key needs. */
static bool parse_setting(VmdkDescriptor *d, const char *text, const Slice *line, bool *has_cid)
{
    Slice value;
    size_t digits;
    if (starts_with(line, "CID", &value)) {
        d->cid_at = (size_t)(value.at - text);
        *has_cid = parse_hex(&value, &d->cid, &d->cid_digits);
        return *has_cid;
    }
    if (starts_with(line, "parentCID", &value))
        return parse_hex(&value, &d->parent_cid, &digits);
    if (starts_with(line, "createType", &value) && !d->create_type) {
        d->create_type = take_quoted(&value);
        return d->create_type != NULL;
    }
    if (starts_with(line, "parentFileNameHint", &value) && !d->parent) {
        d->parent = take_quoted(&value);
        return d->parent != NULL;
    }
    return true;
}

static void clear_line(gpointer p)
{
    g_free(((VmdkExtentLine *)p)->name);
}

bool vmdk_descriptor_parse(VmdkDescriptor *d, const char *text, size_t length, GError **err)
{
    bool has_cid = false;
    *d = (VmdkDescriptor){.parent_cid = VMDK_CID_NONE};
    d->extents = g_array_new(FALSE, TRUE, sizeof(VmdkExtentLine));
    g_array_set_clear_func(d->extents, clear_line);
    Slice rest = {text, length ? strnlen(text, MIN(length, VMDK_DESCRIPTOR_MAX)) : 0};
    while (rest.length) {
        Slice line = next_line(&rest);
        skip_blanks(&line);
        if (!line.length || *line.at == '#')
            continue;
        if (!parse_setting(d, text, &line, &has_cid))
            return lodge_fail(err, LODGE_ERROR_CORRUPT, "invalid VMDK image descriptor: %.*s",
                              (int)MIN(line.length, 80), line.at);
        if (!parse_extent(d, line, err))
            return false;
    }
    return has_cid || lodge_fail(err, LODGE_ERROR_CORRUPT, "invalid VMDK image descriptor");
}

void vmdk_descriptor_clear(VmdkDescriptor *d)
{
    g_clear_pointer(&d->create_type, g_free);
    g_clear_pointer(&d->parent, g_free);
    g_clear_pointer(&d->extents, g_array_unref);
}

bool vmdk_descriptor_probe(const char *text, size_t length)
{
    Slice rest = {text, length};
    while (rest.length) {
        Slice line = next_line(&rest);
        if (line.length && *line.at == '#')
            continue;
        if (!line.length)
            continue;
        return is_word(&line, "version=1") || is_word(&line, "version=2") ||
               is_word(&line, "version=3");
    }
    return false;
}
