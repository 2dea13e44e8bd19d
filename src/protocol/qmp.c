/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "protocol/qmp.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"

static const char *const class_names[] = {
    [QMP_GENERIC_ERROR] = "GenericError",
    [QMP_COMMAND_NOT_FOUND] = "CommandNotFound",
    [QMP_DEVICE_NOT_ACTIVE] = "DeviceNotActive",
};

static const char *const type_names[] = {
    [QMP_STRING] = "string", [QMP_INTEGER] = "integer", [QMP_BOOLEAN] = "boolean",
    [QMP_ARRAY] = "array",   [QMP_OBJECT] = "object",
};

static bool has_type(json_t *value, QmpType type)
{
    switch (type) {
    case QMP_STRING:
        return json_is_string(value);
    case QMP_INTEGER:
        return json_is_integer(value);
    case QMP_BOOLEAN:
        return json_is_boolean(value);
    case QMP_ARRAY:
        return json_is_array(value);
    default:
        return json_is_object(value);
    }
}

static const QmpSchema *find_schema(const char *name)
{
    for (const QmpSchema *s = qmp_schema; s->name; s++)
        if (strcmp(s->name, name) == 0)
            return s;
    return NULL;
}

static const QmpArgument *find_argument(const QmpSchema *schema, const char *name)
{
    for (const QmpArgument *a = schema->arguments; a && a->name; a++)
        if (strcmp(a->name, name) == 0)
            return a;
    return NULL;
}

static bool check_arguments(const QmpSchema *schema, json_t *arguments, GError **err)
{
    const char *key;
    json_t *value;
    json_object_foreach(arguments, key, value)
    {
        const QmpArgument *a = find_argument(schema, key);
        if (!a)
            return lodge_fail(err, LODGE_ERROR_INVALID, "%s has no argument '%s'", schema->name,
                              key);
        if (!has_type(value, a->type))
            return lodge_fail(err, LODGE_ERROR_INVALID, "%s: argument '%s' must be of type %s",
                              schema->name, key, type_names[a->type]);
    }
    for (const QmpArgument *a = schema->arguments; a && a->name; a++)
        if (!a->optional && !json_object_get(arguments, a->name))
            return lodge_fail(err, LODGE_ERROR_INVALID, "%s: argument '%s' is missing",
                              schema->name, a->name);
    return true;
}

static bool check_members(json_t *message, GError **err)
{
    const char *key;
    json_t *value;
    json_object_foreach(
        message, key,
        value) if (strcmp(key, "execute") && strcmp(key, "arguments") &&
                   strcmp(key, "id")) return lodge_fail(err, LODGE_ERROR_INVALID,
                                                        "a request has no member '%s', only "
                                                        "execute, arguments and id",
                                                        key);
    return true;
}

bool qmp_request_parse(json_t *message, QmpRequest *request, QmpErrorClass *error_class,
                       GError **err)
{
    *request = (QmpRequest){.id = json_object_get(message, "id")};
    *error_class = QMP_GENERIC_ERROR;
    if (!json_is_object(message))
        return lodge_fail(err, LODGE_ERROR_INVALID, "a request is a JSON object");
    if (!check_members(message, err))
        return false;
    const char *name = json_string_value(json_object_get(message, "execute"));
    if (!name)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "a request needs the member 'execute', a string");
    request->arguments = json_object_get(message, "arguments");
    if (request->arguments && !json_is_object(request->arguments))
        return lodge_fail(err, LODGE_ERROR_INVALID, "the member 'arguments' must be an object");
    request->schema = find_schema(name);
    if (!request->schema) {
        *error_class = QMP_COMMAND_NOT_FOUND;
        return lodge_fail(err, LODGE_ERROR_NOT_FOUND, "there is no command '%s'", name);
    }
    return check_arguments(request->schema, request->arguments, err);
}

static json_t *with_id(json_t *message, json_t *id)
{
    if (id)
        json_object_set(message, "id", id);
    return message;
}

json_t *qmp_return(json_t *id, json_t *value)
{
    return with_id(json_pack("{s:o}", "return", value), id);
}

json_t *qmp_error(json_t *id, QmpErrorClass error_class, const char *description)
{
    g_autofree char *valid = g_utf8_make_valid(description, -1);
    return with_id(
        json_pack("{s:{s:s,s:s}}", "error", "class", class_names[error_class], "desc", valid), id);
}

json_t *qmp_event(const char *name, json_t *data, gint64 time_us)
{
    json_t *message =
        json_pack("{s:{s:I,s:I},s:s}", "timestamp", "seconds", (json_int_t)(time_us / 1000000),
                  "microseconds", (json_int_t)(time_us % 1000000), "event", name);
    if (data)
        json_object_set_new(message, "data", data);
    return message;
}

/* The fields that clients judge features by follow QEMU 7.2. */
json_t *qmp_version(void)
{
    return json_pack("{s:{s:i,s:i,s:i},s:s}", "qemu", "major", 7, "minor", 2, "micro", 0, "package",
                     "lodge " LODGE_VERSION);
}

json_t *qmp_greeting(void)
{
    return json_pack("{s:{s:o,s:[]}}", "QMP", "version", qmp_version(), "capabilities");
}

char *qmp_encode(json_t *message)
{
    char *text = json_dumps(message, 0);
    char *line = g_strconcat(text, "\r\n", NULL);
    free(text);
    return line;
}
