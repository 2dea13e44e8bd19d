/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A device's state as a table of fields, for saving, restoring and comparing. Integers are
 * written little-endian, in the order of the table.
 */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum StateFieldKind {
    STATE_END,
    STATE_BYTES,
    STATE_UINT,
    STATE_BOOL,
    STATE_NESTED
} StateFieldKind;

typedef struct StateField {
    StateFieldKind kind;
    const char *name;
    size_t offset;
    size_t size;  /* of one element */
    size_t count; /* elements */
    const struct StateField *nested;
} StateField;

/* A bool is checked to be 0 or 1 when it is loaded. */
#define STATE_KIND_OF(value) _Generic((value), bool : STATE_BOOL, default : STATE_UINT)
#define STATE_FIELD(type, member)                                                                  \
    {                                                                                              \
        STATE_KIND_OF(((type *)0)->member), #member, offsetof(type, member),                       \
            sizeof(((type *)0)->member), 1, NULL                                                   \
    }
#define STATE_ARRAY(type, member)                                                                  \
    {                                                                                              \
        STATE_KIND_OF(((type *)0)->member[0]), #member, offsetof(type, member),                    \
            sizeof(((type *)0)->member[0]),                                                        \
            sizeof(((type *)0)->member) / sizeof(((type *)0)->member[0]), NULL                     \
    }
#define STATE_BUFFER(type, member)                                                                 \
    {                                                                                              \
        STATE_BYTES, #member, offsetof(type, member), sizeof(((type *)0)->member), 1, NULL         \
    }
#define STATE_STRUCTS(type, member, fields)                                                        \
    {                                                                                              \
        STATE_NESTED, #member, offsetof(type, member), sizeof(((type *)0)->member[0]),             \
            sizeof(((type *)0)->member) / sizeof(((type *)0)->member[0]), fields                   \
    }
#define STATE_FIELDS_END                                                                           \
    {                                                                                              \
        STATE_END, NULL, 0, 0, 0, NULL                                                             \
    }

void state_save(const StateField *fields, const void *object, GByteArray *to);
/* Consumes exactly what state_save wrote; *used is advanced. False: too short. */
bool state_load(const StateField *fields, void *object, const uint8_t *data, size_t size,
                size_t *used, GError **err);
