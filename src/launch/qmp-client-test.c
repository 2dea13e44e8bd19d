/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The client against a peer that this test plays by hand over a socket pair. */
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/error.h"
#include "launch/qmp-client.h"

typedef struct Fixture {
    int peer;
    QmpClient *client;
    bool ready, closed;
    GString *log; /* of what the callbacks saw */
} Fixture;

static void on_ready(void *opaque)
{
    ((Fixture *)opaque)->ready = true;
}

static void on_event(void *opaque, const char *name, const json_t *data)
{
    Fixture *f = opaque;
    g_string_append_printf(f->log, "event %s %d;", name, (int)json_object_size(data));
}

static void on_closed(void *opaque, const GError *error)
{
    Fixture *f = opaque;
    f->closed = true;
    g_string_append_printf(f->log, "closed %s;", error->message);
}

static const QmpClientHandlers handlers = {on_ready, on_event, on_closed};

static void on_reply(void *opaque, const json_t *result, const GError *error)
{
    Fixture *f = opaque;
    if (result)
        g_string_append_printf(f->log, "return %d;", (int)json_integer_value(result));
    else
        g_string_append_printf(f->log, "error %d %s;", error->code, error->message);
}

static void set_up(Fixture *f)
{
    int pair[2];
    *f = (Fixture){0};
    f->log = g_string_new(NULL);
    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair), ==, 0);
    f->peer = pair[1];
    f->client = qmp_client_new_fd(pair[0], &handlers, f, NULL);
}

static void tear_down(Fixture *f)
{
    qmp_client_free(f->client);
    if (f->peer >= 0)
        close(f->peer);
    g_string_free(f->log, TRUE);
}

static void turn(void)
{
    for (unsigned i = 0; i < 20; i++)
        while (g_main_context_iteration(NULL, FALSE))
            continue;
}

static void say(Fixture *f, const char *text)
{
    g_assert_cmpint(write(f->peer, text, strlen(text)), ==, (ssize_t)strlen(text));
    turn();
}

static void expect(Fixture *f, const char *text)
{
    char block[4096] = {0};
    turn();
    ssize_t n = read(f->peer, block, sizeof(block) - 1);
    g_assert_cmpint(n, >, 0);
    g_assert_cmpstr(block, ==, text);
}

#define GREETING "{\"QMP\":{\"version\":{},\"capabilities\":[]}}\r\n"

static void greet(Fixture *f)
{
    say(f, GREETING);
    expect(f, "{\"execute\":\"qmp_capabilities\",\"id\":1}\n");
    say(f, "{\"return\":{},\"id\":1}\n");
    g_assert_true(f->ready);
}

static void test_conversation(void)
{
    Fixture f;
    set_up(&f);
    greet(&f);
    qmp_client_execute(f.client, "query-status", NULL, on_reply, &f);
    qmp_client_execute(f.client, "balloon", json_pack("{s:i}", "value", 7), on_reply, &f);
    expect(&f, "{\"execute\":\"query-status\",\"id\":2}\n"
               "{\"execute\":\"balloon\",\"id\":3,\"arguments\":{\"value\":7}}\n");
    say(&f, "{\"event\":\"STOP\",\"timestamp\":{}}\n{\"retu");
    say(&f, "rn\":5,\"id\":2}\r\n\n");
    say(&f, "{\"error\":{\"class\":\"CommandNotFound\",\"desc\":\"nope\"},\"id\":3}\n"
            "{\"event\":\"RESET\",\"data\":{\"guest\":true}}\n");
    g_autofree char *wanted = g_strdup_printf(
        "event STOP 0;return 5;error %d balloon: nope;event RESET 1;", LODGE_ERROR_UNSUPPORTED);
    g_assert_cmpstr(f.log->str, ==, wanted);
    g_assert_false(f.closed);
    tear_down(&f);
}

/* Commands given early wait for the handshake. */
static void test_early(void)
{
    Fixture f;
    set_up(&f);
    qmp_client_execute(f.client, "stop", NULL, on_reply, &f);
    say(&f, GREETING);
    expect(&f, "{\"execute\":\"qmp_capabilities\",\"id\":2}\n");
    say(&f, "{\"return\":{},\"id\":2}\n");
    expect(&f, "{\"execute\":\"stop\",\"id\":1}\n");
    close(f.peer);
    f.peer = -1;
    turn();
    g_assert_true(f.closed);
    g_assert_true(g_str_has_prefix(f.log->str, "error"));
    g_string_truncate(f.log, 0);
    qmp_client_execute(f.client, "cont", NULL, on_reply, &f);
    g_assert_nonnull(strstr(f.log->str, "the guest process is gone"));
    tear_down(&f);
}

static void test_hostile(void)
{
    static const char *const peers[] = {
        "hello\n",
        "[]\n",
        "{}\n",
        "{\"QMP\":1}\n",
        GREETING "{\"return\":{},\"id\":99}\n",
        GREETING "{\"return\":{}}\n",
        GREETING "{\"error\":{\"desc\":\"no\"},\"id\":1}\n",
        GREETING "{\"id\":{\"a\":[]}}\n",
        GREETING "\"text\"\n",
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(peers); i++) {
        Fixture f;
        set_up(&f);
        say(&f, peers[i]);
        if (!f.closed)
            g_error("peer %u was believed", i);
        tear_down(&f);
    }
}

static void test_endless_line(void)
{
    Fixture f;
    set_up(&f);
    g_autofree char *block = g_strnfill(65536, 'x');
    for (size_t sent = 0; sent < QMP_LINE_MAX + 262144 && !f.closed;) {
        ssize_t n = write(f.peer, block, 65536);
        sent += n > 0 ? (size_t)n : 0;
        turn();
    }
    g_assert_true(f.closed);
    g_assert_nonnull(strstr(f.log->str, "longer than"));
    tear_down(&f);
}

static void test_connect(void)
{
    Fixture f = {.peer = -1, .log = g_string_new(NULL)};
    f.client = qmp_client_new("/nonexistent/qmp.sock", 50, &handlers, &f, NULL);
    while (!f.closed)
        g_main_context_iteration(NULL, TRUE);
    g_assert_nonnull(strstr(f.log->str, "/nonexistent/qmp.sock: cannot connect"));
    tear_down(&f);
}

/* The socket appears after the client began to look for it. */
static void test_late_socket(void)
{
    g_autofree char *folder = g_dir_make_tmp("lodge-qmp-XXXXXX", NULL);
    g_autofree char *path = g_build_filename(folder, "qmp", NULL);
    Fixture f = {.peer = -1, .log = g_string_new(NULL)};
    f.client = qmp_client_new(path, 5000, &handlers, &f, NULL);
    g_usleep(30000);
    turn();
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    g_strlcpy(address.sun_path, path, sizeof(address.sun_path));
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    g_assert_cmpint(bind(listener, (struct sockaddr *)&address, sizeof(address)), ==, 0);
    g_assert_cmpint(listen(listener, 1), ==, 0);
    /* The context waits in its poll for the next try. */
    g_main_context_iteration(NULL, TRUE);
    f.peer = accept(listener, NULL, NULL);
    greet(&f);
    close(listener);
    unlink(path);
    rmdir(folder);
    tear_down(&f);
}

static void test_call_timeout(void)
{
    Fixture f;
    g_autoptr(GError) err = NULL;
    set_up(&f);
    greet(&f);
    g_assert_null(qmp_client_call(f.client, "query-status", NULL, 30, &err));
    g_assert_error(err, LODGE_ERROR, LODGE_ERROR_TIMEOUT);
    say(&f, "{\"return\":{},\"id\":2}\n"); /* too late, but no harm */
    g_assert_false(f.closed);
    tear_down(&f);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/qmp-client/conversation", test_conversation);
    g_test_add_func("/qmp-client/early", test_early);
    g_test_add_func("/qmp-client/hostile", test_hostile);
    g_test_add_func("/qmp-client/endless-line", test_endless_line);
    g_test_add_func("/qmp-client/connect", test_connect);
    g_test_add_func("/qmp-client/late-socket", test_late_socket);
    g_test_add_func("/qmp-client/call-timeout", test_call_timeout);
    return g_test_run();
}
