/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Options by name: what `-o` gives a new image, and what --image-opts, "json:{...}" and QMP's
 * blockdev tree say about opening one. They travel as a jansson object. Values may be of JSON's
 * types or strings ("on", "64k"); the getters take both.
 */
#pragma once

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

typedef enum BlockOptionType {
    BLOCK_OPTION_STRING,
    BLOCK_OPTION_BOOL,   /* on/off, yes/no, true/false */
    BLOCK_OPTION_NUMBER, /* decimal or 0x; no suffix */
    BLOCK_OPTION_SIZE,   /* bytes; k, M, G, T, P, E (powers of 1024) as suffix */
    BLOCK_OPTION_TREE,   /* a nested object, or a list */
} BlockOptionType;

/* A row of a table that ends with a NULL name. */
typedef struct BlockOption {
    const char *name;
    BlockOptionType type;
    const char *help;
    const char *fallback; /* what an absent option means, as text; NULL: nothing is said */
} BlockOption;

const BlockOption *block_option_find(const BlockOption *table, const char *name);

/*
 * Adds "a=b,c=d" to @into, as strings; a comma that belongs to a value is written twice; a name
 * alone means "on" ("noname": "off" for switches). With @first, a value without a name in front is
 * that option's. Names are checked against @table unless it is NULL.
 */
bool block_options_parse(const char *text, const BlockOption *table, const char *first,
                         json_t *into, GError **err);

/* Moves "a.b.c": v into nested objects, and objects whose keys are 0, 1, 2 ... into lists. A new
 * reference; NULL with @err when two keys contradict each other or the depth passes 64. */
json_t *block_options_nest(const json_t *flat, GError **err);

/* The other way round: "a.b.c" keys, every value a string. A new reference. */
json_t *block_options_flat(const json_t *tree);

/* True when each key of @options is in @table or, if given, in @more; else names the first that is not. */
bool block_options_known(const json_t *options, const BlockOption *table, const BlockOption *more,
                         const char *where, GError **err);

/* "10G", "0x1000", "4k", "1.5M"; false when it is no size or above INT64_MAX. */
bool block_parse_size(const char *text, uint64_t *size);

/*
 * Values by name; an absent one is the fallback of its row in @table (NULL @table: none), else what
 * is there already in *out. False with @err when it is not of the type. @options may be NULL.
 */
bool block_option_size(const json_t *options, const BlockOption *table, const char *name,
                       uint64_t *out, GError **err);
bool block_option_number(const json_t *options, const BlockOption *table, const char *name,
                         uint64_t *out, GError **err);
bool block_option_bool(const json_t *options, const BlockOption *table, const char *name, bool *out,
                       GError **err);
/* The string, borrowed; NULL: absent and no fallback. */
const char *block_option_string(const json_t *options, const BlockOption *table, const char *name);
bool block_option_given(const json_t *options, const char *name);
