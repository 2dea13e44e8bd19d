/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Character devices: buffering, holding back, one user, peers that come and go, options. */
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "machine/chardev/chardev-type.h"
#include "machine/test-engine.h"

typedef struct Fixture {
    Machine *m;
    char *dir;
    GString *got;
    size_t room;
    int opened, closed;
} Fixture;

static size_t can_receive(void *opaque)
{
    Fixture *f = opaque;
    return f->room;
}

static void receive(void *opaque, const uint8_t *data, size_t size)
{
    Fixture *f = opaque;
    g_assert_cmpuint(size, <=, f->room);
    f->room -= size;
    g_string_append_len(f->got, (const char *)data, size);
}

static void opened(void *opaque, bool open)
{
    Fixture *f = opaque;
    f->opened += open;
    f->closed += !open;
}

static const ChardevUser user = {can_receive, receive, opened};

static void set_up(Fixture *f, gconstpointer unused)
{
    f->m = test_machine_new();
    f->dir = g_dir_make_tmp("lodge-chardev-XXXXXX", NULL);
    f->got = g_string_new(NULL);
    f->room = SIZE_MAX;
}

static void tear_down(Fixture *f, gconstpointer unused)
{
    machine_free(f->m);
    const char *const remove[] = {"rm", "-r", f->dir, NULL};
    g_spawn_sync(NULL, (char **)remove, NULL, G_SPAWN_SEARCH_PATH, NULL, NULL, NULL, NULL, NULL,
                 NULL);
    g_free(f->dir);
    g_string_free(f->got, TRUE);
}

/* "type key=value ..."; on failure NULL and *message. */
static Chardev *add(Fixture *f, const char *text, char **message)
{
    g_auto(GStrv) words = g_strsplit(text, " ", -1);
    MachineItem *item = machine_item_new(words[0], "c");
    for (char **w = words + 1; *w; w++) {
        char *equals = strchr(*w, '=');
        *equals = 0;
        machine_item_set(item, *w, equals + 1);
    }
    g_autoptr(GError) error = NULL;
    Chardev *c = chardev_new(f->m, item, &error);
    machine_item_free(item);
    g_assert_true((c == NULL) == (error != NULL));
    if (message)
        *message = error ? g_strdup(error->message) : NULL;
    else
        g_assert_no_error(error);
    return c;
}

static void write_text(Chardev *c, const char *text)
{
    chardev_write(c, (const uint8_t *)text, strlen(text));
}

static void test_refusals(Fixture *f, gconstpointer unused)
{
    static const struct {
        const char *text, *part;
    } cases[] = {
        {"pigeon", "stdio, file, unix, pty, null, fd"},
        {"file", "path="},
        {"file path=/nowhere/x", "/nowhere/x"},
        {"file path=/tmp/x append=maybe", "append=maybe"},
        {"null path=/x", "no option 'path'"},
        {"fd", "fd=N"},
        {"fd fd=x", "fd=N"},
        {"fd fd=999", "999"},
        {"unix", "path="},
        {"unix path=/nowhere/s", "/nowhere/s"},
        {"unix path=/tmp/s server=off", "server=on"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autofree char *message = NULL;
        g_assert_null(add(f, cases[i].text, &message));
        if (!strstr(message, cases[i].part))
            g_error("%s: '%s' lacks '%s'", cases[i].text, message, cases[i].part);
        g_assert_null(chardev_find(f->m, "c"));
    }
    Chardev *c = add(f, "null", NULL);
    g_autofree char *message = NULL;
    g_assert_null(add(f, "null", &message));
    g_assert_nonnull(strstr(message, "two chardevs 'c'"));
    g_autoptr(GError) error = NULL;
    g_assert_true(chardev_attach(c, &user, f, &error));
    g_assert_false(chardev_attach(c, &user, f, &error));
    g_assert_nonnull(strstr(error->message, "in use"));
    chardev_detach(c);
    g_assert_false(chardev_in_use(c));
    write_text(c, "into nothing");
    chardev_free(c);
    g_assert_null(chardev_find(f->m, "c"));
}

static void test_file(Fixture *f, gconstpointer unused)
{
    g_autofree char *path = g_build_filename(f->dir, "out", NULL), *text = NULL;
    g_autofree char *fresh = g_strdup_printf("file path=%s", path);
    g_autofree char *more = g_strdup_printf("file path=%s append=on", path);
    static const char *const words[] = {"first", "second", "third"};
    for (unsigned i = 0; i < 3; i++) {
        Chardev *c = add(f, i == 2 ? more : fresh, NULL);
        write_text(c, words[i]);
        g_assert_cmpstr(chardev_path(c), ==, path);
        chardev_free(c);
    }
    g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
    g_assert_cmpstr(text, ==, "secondthird");
}

/* What nobody reads is kept up to a limit, and then the newest of it. */
static void test_output_limit(Fixture *f, gconstpointer unused)
{
    int fds[2], small = 4096;
    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), ==, 0);
    setsockopt(fds[1], SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
    g_autofree char *text = g_strdup_printf("fd fd=%d", fds[1]);
    Chardev *c = add(f, text, NULL);
    for (uint32_t i = 0; i < 100000; i++)
        chardev_write(c, (const uint8_t *)&i, sizeof(i));
    g_assert_cmpuint(c->output->len, <=, CHARDEV_OUTPUT_MAX);
    uint32_t last = 0;
    size_t total = 0, part = 0;
    uint8_t data[4096 + 4];
    for (unsigned round = 0; round < 200; round++) {
        ssize_t n = recv(fds[0], data + part, 4096, MSG_DONTWAIT);
        if (n > 0) {
            total += n;
            part += n;
            memcpy(&last, data + part / 4 * 4 - 4, 4);
            memmove(data, data + part / 4 * 4, part % 4);
            part %= 4;
        }
        test_loop(f->m, 1);
    }
    g_assert_cmpuint(last, ==, 99999);
    g_assert_cmpuint(total, >=, CHARDEV_OUTPUT_MAX - 4096);
    g_assert_null(c->out_watch);
    chardev_free(c);
    close(fds[0]);
}

static void test_input_held_back(Fixture *f, gconstpointer unused)
{
    int fds[2];
    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), ==, 0);
    g_autofree char *text = g_strdup_printf("fd fd=%d", fds[1]);
    Chardev *c = add(f, text, NULL);
    f->room = 3;
    g_assert_true(chardev_attach(c, &user, f, NULL));
    g_assert_cmpint(f->opened, ==, 1);
    g_autofree char *many = g_strnfill(20000, 'x');
    g_assert_cmpint(write(fds[0], many, 20000), ==, 20000);
    test_loop(f->m, 5);
    g_assert_cmpuint(f->got->len, ==, 3);
    g_assert_null(c->in_watch); /* full: the source is not even looked at */
    machine_lock(f->m);
    f->room = 100;
    chardev_accept_input(c);
    machine_unlock(f->m);
    test_loop(f->m, 5);
    g_assert_cmpuint(f->got->len, ==, 103);
    machine_lock(f->m);
    f->room = SIZE_MAX;
    chardev_accept_input(c);
    machine_unlock(f->m);
    test_loop(f->m, 10);
    g_assert_cmpuint(f->got->len, ==, 20000);
    close(fds[0]); /* end of file: no busy loop, no crash */
    test_loop(f->m, 5);
    g_assert_null(c->in_watch);
    write_text(c, "to nobody");
    chardev_free(c);
}

static int connect_to(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    g_strlcpy(address.sun_path, path, sizeof(address.sun_path));
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    g_assert_cmpint(connect(fd, (struct sockaddr *)&address, sizeof(address)), ==, 0);
    return fd;
}

static void test_unix(Fixture *f, gconstpointer unused)
{
    g_autofree char *path = g_build_filename(f->dir, "sock", NULL);
    g_autofree char *text = g_strdup_printf("unix path=%s", path);
    char data[16] = {0};
    Chardev *c = add(f, text, NULL);
    g_assert_true(chardev_attach(c, &user, f, NULL));
    g_assert_cmpint(f->opened, ==, 0);
    write_text(c, "lost");
    int first = connect_to(path), second = connect_to(path);
    g_assert_cmpint(write(second, "2", 1), ==, 1);
    g_assert_cmpint(write(first, "1", 1), ==, 1);
    test_loop(f->m, 5);
    g_assert_cmpint(f->opened, ==, 1);
    write_text(c, "hello");
    g_assert_cmpint(read(first, data, sizeof(data)), ==, 5);
    g_assert_cmpstr(f->got->str, ==, "1");
    close(first);
    test_loop(f->m, 5);
    g_assert_cmpint(f->closed, ==, 1);
    g_assert_cmpint(f->opened, ==, 2); /* the second had waited */
    g_assert_cmpstr(f->got->str, ==, "12");
    chardev_detach(c);
    chardev_free(c);
    g_assert_cmpint(access(path, F_OK), <, 0);
    close(second);
}

/* A guest that does not read must not lock out who comes after a peer that left. */
static void test_unix_full(Fixture *f, gconstpointer unused)
{
    g_autofree char *path = g_build_filename(f->dir, "sock", NULL);
    g_autofree char *text = g_strdup_printf("unix path=%s", path);
    char data[2 * CHARDEV_INPUT_MAX];
    memset(data, 'x', sizeof(data));
    Chardev *c = add(f, text, NULL);
    g_assert_true(chardev_attach(c, &user, f, NULL));
    f->room = 0;
    int first = connect_to(path);
    g_assert_cmpint(write(first, data, sizeof(data)), ==, sizeof(data));
    test_loop(f->m, 5);
    close(first);
    test_loop(f->m, 5);
    /* As long as nobody else comes, the guest can have the rest. */
    f->room = 5000;
    chardev_accept_input(c);
    test_loop(f->m, 5);
    g_assert_cmpuint(f->got->len, ==, 5000);
    g_assert_cmpint(f->closed, ==, 0);
    int second = connect_to(path);
    test_loop(f->m, 5);
    g_assert_cmpint(f->closed, ==, 1);
    g_assert_cmpint(f->opened, ==, 2);
    f->room = 100;
    g_assert_cmpint(write(second, "new", 3), ==, 3);
    test_loop(f->m, 5);
    g_assert_cmpstr(f->got->str + 5000, ==, "new");
    chardev_free(c);
    close(second);
}

static void test_pty(Fixture *f, gconstpointer unused)
{
    char data[16] = {0};
    Chardev *c = add(f, "pty", NULL);
    g_assert_true(chardev_attach(c, &user, f, NULL));
    write_text(c, "early\n"); /* kept for who comes */
    int fd = open(chardev_path(c), O_RDWR | O_NOCTTY | O_CLOEXEC);
    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(read(fd, data, sizeof(data)), ==, 6);
    g_assert_cmpstr(data, ==, "early\n"); /* raw: no carriage return added */
    g_assert_cmpint(write(fd, "\x03\x1d", 2), ==, 2);
    test_loop(f->m, 5);
    g_assert_cmpstr(f->got->str, ==, "\x03\x1d");
    close(fd);
    test_loop(f->m, 5);
    fd = open(chardev_path(c), O_RDWR | O_NOCTTY | O_CLOEXEC);
    g_assert_cmpint(write(fd, "again", 5), ==, 5);
    test_loop(f->m, 5);
    g_assert_cmpstr(f->got->str, ==,
                    "\x03\x1d"
                    "again");
    close(fd);
    chardev_free(c);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
#define ADD(name, function) g_test_add("/chardev/" name, Fixture, NULL, set_up, function, tear_down)
    ADD("refusals", test_refusals);
    ADD("file", test_file);
    ADD("output-limit", test_output_limit);
    ADD("input-held-back", test_input_held_back);
    ADD("unix", test_unix);
    ADD("unix-full", test_unix_full);
    ADD("pty", test_pty);
    return g_test_run();
}
