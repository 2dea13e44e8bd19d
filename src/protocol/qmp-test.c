/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "protocol/json-framer.h"
#include "protocol/qmp.h"

typedef struct Seen {
    GString *text; /* a line for each frame: the value, or "!" and the error */
    int last_code;
} Seen;

static bool note(void *opaque, json_t *value, const GError *error)
{
    Seen *seen = opaque;
    char *text = value ? json_dumps(value, JSON_COMPACT) : NULL;
    g_string_append_printf(seen->text, "%s\n", text ? text : "!");
    seen->last_code = error ? error->code : -1;
    free(text);
    return true;
}

static char *frames(const char *input, size_t piece)
{
    Seen seen = {.text = g_string_new(NULL)};
    g_autoptr(JsonFramer) f = json_framer_new();
    for (size_t at = 0, n = strlen(input); at < n; at += piece)
        if (!json_framer_push(f, input + at, MIN(piece, n - at), note, &seen))
            break;
    return g_string_free(seen.text, FALSE);
}

static void test_frames(void)
{
    static const struct {
        const char *input, *expected;
    } cases[] = {
        {"{\"a\":1}{\"b\":[2,{}]}", "{\"a\":1}\n{\"b\":[2,{}]}\n"},
        {" \r\n{\"a\" :\n 1}\n", "{\"a\":1}\n"},
        {"{\"a\":\"}{\\\"]\\\\\"}", "{\"a\":\"}{\\\"]\\\\\"}\n"},
        {"nonsense 1 2 3\n{}", "!\n{}\n"},
        {"{]}{}", "!\n!\n{}\n"},
        {"{\"a\":1,\"a\":2}{}", "!\n{}\n"},
        {"}\n}{}", "!\n!\n{}\n"},
        {"[1]", "[1]\n"},
        {"{\"half\":", ""},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        for (size_t piece = 1; piece < 8; piece++) {
            g_autofree char *got = frames(cases[i].input, piece);
            g_assert_cmpstr(got, ==, cases[i].expected);
        }
    }
}

static void test_limits(void)
{
    Seen seen = {.text = g_string_new(NULL)};
    g_autoptr(JsonFramer) deep = json_framer_new();
    g_autofree char *brackets = g_strnfill(JSON_FRAME_DEPTH_MAX + 1, '[');
    g_assert_false(json_framer_push(deep, brackets, strlen(brackets), note, &seen));
    g_assert_cmpint(seen.last_code, ==, LODGE_ERROR_LIMIT);

    g_autoptr(JsonFramer) large = json_framer_new();
    g_autofree char *blanks = g_strnfill(JSON_FRAME_SIZE_MAX, ' ');
    g_assert_true(json_framer_push(large, "{", 1, note, &seen));
    g_assert_false(json_framer_push(large, blanks, strlen(blanks), note, &seen));
    g_assert_cmpint(seen.last_code, ==, LODGE_ERROR_LIMIT);
    g_string_free(seen.text, TRUE);
}

static void test_requests(void)
{
    static const struct {
        const char *input, *error;
        QmpErrorClass error_class;
    } cases[] = {
        {"{\"execute\":\"query-status\",\"id\":7}", NULL, 0},
        {"{\"execute\":\"balloon\",\"arguments\":{\"value\":5}}", NULL, 0},
        {"{\"execute\":\"balloon\"}", "balloon: argument 'value' is missing", 0},
        {"{\"execute\":\"balloon\",\"arguments\":{\"value\":\"5\"}}",
         "balloon: argument 'value' must be of type integer", 0},
        {"{\"execute\":\"stop\",\"arguments\":{\"now\":true}}", "stop has no argument 'now'", 0},
        {"{\"execute\":\"fly\"}", "there is no command 'fly'", QMP_COMMAND_NOT_FOUND},
        {"{\"execute\":\"stop\",\"arguments\":[]}", "the member 'arguments' must be an object", 0},
        {"{\"execute\":3}", "a request needs the member 'execute', a string", 0},
        {"{\"execute\":\"stop\",\"extra\":1}",
         "a request has no member 'extra', only execute, arguments and id", 0},
        {"[]", "a request is a JSON object", 0},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        json_t *message = json_loads(cases[i].input, 0, NULL);
        g_autoptr(GError) error = NULL;
        QmpRequest request;
        QmpErrorClass error_class;
        bool ok = qmp_request_parse(message, &request, &error_class, &error);
        g_assert_cmpstr(ok ? NULL : error->message, ==, cases[i].error);
        if (!ok)
            g_assert_cmpint(error_class, ==, cases[i].error_class);
        json_decref(message);
    }
}

static void test_messages(void)
{
    json_t *id = json_integer(4);
    json_t *messages[] = {
        qmp_return(id, json_object()),
        qmp_error(NULL, QMP_DEVICE_NOT_ACTIVE, "no"),
        qmp_event("STOP", NULL, 1500000),
    };
    static const char *const expected[] = {
        "{\"return\": {}, \"id\": 4}\r\n",
        "{\"error\": {\"class\": \"DeviceNotActive\", \"desc\": \"no\"}}\r\n",
        "{\"timestamp\": {\"seconds\": 1, \"microseconds\": 500000}, \"event\": \"STOP\"}\r\n",
    };
    for (size_t i = 0; i < G_N_ELEMENTS(messages); i++) {
        g_autofree char *line = qmp_encode(messages[i]);
        g_assert_cmpstr(line, ==, expected[i]);
        json_decref(messages[i]);
    }
    json_decref(id);
    json_t *greeting = qmp_greeting();
    json_t *version = json_object_get(json_object_get(greeting, "QMP"), "version");
    g_assert_cmpint(json_integer_value(json_object_get(json_object_get(version, "qemu"), "major")),
                    ==, 7);
    json_decref(greeting);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/qmp/frames", test_frames);
    g_test_add_func("/qmp/limits", test_limits);
    g_test_add_func("/qmp/requests", test_requests);
    g_test_add_func("/qmp/messages", test_messages);
    return g_test_run();
}
