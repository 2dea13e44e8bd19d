/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Tables that bind XML elements to structs. One table serves parsing, writing, freeing and the
 * list of what is unknown: an attribute or element without a row is kept with its place and
 * written back there.
 */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config/node.h"

/* What was in the document and has no row: "domain/devices/disk[2]/driver/@polling" on line 31. */
typedef struct ConfigUnknown {
    char *path;
    unsigned line;
} ConfigUnknown;

/* First member of every struct that a table describes. */
typedef struct ConfigObject {
    unsigned line;
    GPtrArray *kept; /* of ConfigKept; NULL: none */
} ConfigObject;

typedef enum ConfigFieldKind {
    FIELD_STRING, /* char *; NULL: absent */
    FIELD_UINT,   /* int64_t; -1: absent */
    FIELD_ENUM,   /* int, index into a NULL-terminated list whose row 0 is ""; 0: absent */
    FIELD_KIB,    /* uint64_t: text with a "unit" attribute, kept in KiB, rounded up */
    FIELD_UUID,   /* char *: normalized to lower case with hyphens */
    FIELD_FLAG,   /* bool: the element is there */
    FIELD_OBJECT, /* pointer to a struct of the table @detail; NULL: absent */
    FIELD_LIST,   /* GPtrArray * of such structs; never NULL */
    FIELD_NODE,   /* ConfigNode *: understood elsewhere or only kept; NULL: absent */
    FIELD_NODES,  /* GPtrArray * of ConfigNode; never NULL */
    FIELD_CUSTOM, /* @detail is a ConfigCustom */
} ConfigFieldKind;

typedef enum ConfigFieldFlags {
    FIELD_REQUIRED = 1 << 0,
    FIELD_UNAPPLIED =
        1 << 1, /* kept and known, but nothing acts on it: listed like an unknown one */
} ConfigFieldFlags;

typedef struct ConfigField {
    const char *name; /* "@attribute", "element", or "" for the element's own text */
    ConfigFieldKind kind;
    size_t offset;
    const void *detail; /* FIELD_ENUM: list; FIELD_OBJECT, FIELD_LIST: ConfigSchema */
    unsigned flags;
    uint64_t max; /* FIELD_UINT; 0: INT64_MAX */
} ConfigField;

typedef struct ConfigContext ConfigContext;

typedef struct ConfigSchema {
    size_t size;
    const ConfigField *fields; /* in the order of writing; ends with {0} */
    /* What a table cannot say; may be NULL. */
    bool (*check)(void *object, ConfigContext *ctx, const ConfigNode *node, GError **err);
} ConfigSchema;

typedef struct ConfigCustom {
    void (*init)(void *slot);
    void (*clear)(void *slot);
    bool (*parse)(void *slot, const ConfigNode *node, ConfigContext *ctx, GError **err);
    ConfigNode *(*format)(const void *slot); /* NULL: nothing to write */
} ConfigCustom;

struct ConfigContext {
    const char *file;
    GString *path;
    GPtrArray *unknown; /* of ConfigUnknown */
};

#define CONFIG_FIELD(struct_, member, name_, kind_, ...)                                           \
    {                                                                                              \
        .name = name_, .kind = kind_, .offset = offsetof(struct_, member), __VA_ARGS__             \
    }

void *config_object_new(const ConfigSchema *schema);
void config_object_free(const ConfigSchema *schema, void *object); /* NULL is accepted */
/* NULL and @err ("FILE:LINE: PATH: ...") if the element is not valid. */
void *config_object_parse(const ConfigSchema *schema, const ConfigNode *node, ConfigContext *ctx,
                          GError **err);
ConfigNode *config_object_format(const ConfigSchema *schema, const char *name, const void *object);

/* Appends to ctx->path; the result restores it through config_path_pop. */
size_t config_path_push(ConfigContext *ctx, const char *name, unsigned nth);
void config_path_pop(ConfigContext *ctx, size_t mark);
/* Returns false with "FILE:LINE: PATH: message". */
bool config_invalid(ConfigContext *ctx, unsigned line, GError **err, const char *format, ...)
    G_GNUC_PRINTF(4, 5);
void config_note_unknown(ConfigContext *ctx, const ConfigNode *parent, const char *name,
                         unsigned line);
GPtrArray *config_unknown_list_new(void);

/* A decimal or 0x number without sign or trailing text. */
bool config_parse_uint(const char *text, uint64_t *value);
/* libvirt's units: b, bytes, KB = 1000, k = KiB = 1024, ... up to E; *kib is rounded up. */
bool config_parse_kib(const char *text, const char *unit, uint64_t *kib);
extern const char CONFIG_UNITS_ALLOWED[];
