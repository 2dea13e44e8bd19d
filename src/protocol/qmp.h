/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * QMP messages: the schema of commands, checking of requests, making of answers and events. No
 * I/O. QEMU Machine Protocol Specification 1.0.
 */
#pragma once

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>

typedef enum QmpType { QMP_STRING, QMP_INTEGER, QMP_BOOLEAN, QMP_ARRAY, QMP_OBJECT } QmpType;

typedef struct QmpArgument {
    const char *name;
    QmpType type;
    bool optional;
} QmpArgument;

typedef struct QmpSchema {
    const char *name;
    const QmpArgument *arguments; /* ends with {0}; NULL: none */
} QmpSchema;

extern const QmpSchema qmp_schema[]; /* ends with {0} */

typedef enum QmpErrorClass {
    QMP_GENERIC_ERROR,
    QMP_COMMAND_NOT_FOUND,
    QMP_DEVICE_NOT_ACTIVE,
} QmpErrorClass;

typedef struct QmpRequest {
    const QmpSchema *schema;
    json_t *arguments; /* an object, never NULL; borrowed from the message */
    json_t *id;        /* borrowed; NULL: none */
} QmpRequest;

/* Checks @message against the schema. On failure *error_class and @err say what to answer;
 * request->id is set if there was one. */
bool qmp_request_parse(json_t *message, QmpRequest *request, QmpErrorClass *error_class,
                       GError **err);

/* New references. @id may be NULL; @value is taken over. */
json_t *qmp_return(json_t *id, json_t *value);
json_t *qmp_error(json_t *id, QmpErrorClass error_class, const char *description);
json_t *qmp_event(const char *name, json_t *data, gint64 time_us); /* @data may be NULL */
json_t *qmp_version(void);
json_t *qmp_greeting(void);
/* The bytes of a message with its line end; owned by the caller. */
char *qmp_encode(json_t *message);
