/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* QEMU's docs/interop/qmp-spec: greeting, capabilities, commands with ids, events. */
#include "launch/qmp-client.h"

#include <errno.h>
#include <fcntl.h>
#include <glib-unix.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/error.h"

#define RETRY_MS 10u

typedef struct Command {
    uint64_t id;
    char *name;
    QmpReply reply;
    void *opaque;
} Command;

struct QmpClient {
    int fd;
    char *path;
    GMainContext *context;
    QmpClientHandlers handlers;
    void *opaque;
    gint64 connect_deadline_us;
    GSource *retry, *readable, *writable;
    GString *input, *output, *waiting; /* waiting: commands given before the handshake was done */
    GQueue *commands;                  /* of Command, in the order sent */
    uint64_t next_id;
    bool greeted, ready, closed;
    unsigned depth; /* inside callbacks: freeing is put off */
    bool free_wanted;
};

static void command_free(Command *command)
{
    g_free(command->name);
    g_free(command);
}

static void clear_source(GSource **source)
{
    if (*source) {
        g_source_destroy(*source);
        g_source_unref(*source);
        *source = NULL;
    }
}

static void really_free(QmpClient *client)
{
    g_queue_free(client->commands);
    g_string_free(client->input, TRUE);
    g_string_free(client->output, TRUE);
    g_string_free(client->waiting, TRUE);
    g_main_context_unref(client->context);
    g_free(client->path);
    g_free(client);
}

static void enter(QmpClient *client)
{
    client->depth++;
}

static void leave(QmpClient *client)
{
    if (--client->depth == 0 && client->free_wanted)
        really_free(client);
}

static void fail_commands(QmpClient *client, const GError *error)
{
    Command *command;
    while ((command = g_queue_pop_head(client->commands))) {
        if (command->reply)
            command->reply(command->opaque, NULL, error);
        command_free(command);
    }
}

/* Ends the connection; takes @error. */
static void shut(QmpClient *client, GError *error)
{
    if (client->closed) {
        g_clear_error(&error);
        return;
    }
    client->closed = true;
    clear_source(&client->retry);
    clear_source(&client->readable);
    clear_source(&client->writable);
    if (client->fd >= 0)
        close(client->fd);
    client->fd = -1;
    fail_commands(client, error);
    if (client->handlers.closed && !client->free_wanted)
        client->handlers.closed(client->opaque, error);
    g_error_free(error);
}

static void shut_with(QmpClient *client, LodgeErrorCode code, const char *message)
{
    shut(client, g_error_new(LODGE_ERROR, (gint)code, "QMP %s: %s",
                             client->path ? client->path : "socket", message));
}

/* ---- output */

static gboolean on_writable(gint fd, GIOCondition condition, gpointer data);

static void flush_output(QmpClient *client)
{
    while (client->output->len > 0 && !client->closed) {
        ssize_t n =
            send(client->fd, client->output->str, client->output->len, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN) {
            if (!client->writable) {
                client->writable = g_unix_fd_source_new(client->fd, G_IO_OUT);
                g_source_set_callback(client->writable, G_SOURCE_FUNC(on_writable), client, NULL);
                g_source_attach(client->writable, client->context);
            }
            return;
        }
        if (n < 0) {
            shut_with(client, LODGE_ERROR_IO, g_strerror(errno));
            return;
        }
        g_string_erase(client->output, 0, n);
    }
    clear_source(&client->writable);
}

static gboolean on_writable(gint fd, GIOCondition condition, gpointer data)
{
    QmpClient *client = data;
    enter(client);
    flush_output(client);
    leave(client);
    return G_SOURCE_CONTINUE; /* flush_output destroys the source when it is done */
}

static void queue_command(QmpClient *client, GString *to, const char *name, json_t *arguments,
                          QmpReply reply, void *opaque)
{
    Command *command = g_new(Command, 1);
    *command = (Command){client->next_id++, g_strdup(name), reply, opaque};
    g_queue_push_tail(client->commands, command);
    json_t *message = json_pack("{s:s, s:I}", "execute", name, "id", (json_int_t)command->id);
    if (arguments)
        json_object_set_new(message, "arguments", arguments);
    char *text = json_dumps(message, JSON_COMPACT);
    g_string_append(to, text ? text : "{}");
    g_string_append_c(to, '\n');
    free(text);
    json_decref(message);
}

/* ---- input */

static void on_capabilities(void *opaque, const json_t *result, const GError *error)
{
    QmpClient *client = opaque;
    if (!result)
        return; /* the connection is being shut, or the peer refused: handled by the caller */
    client->ready = true;
    g_string_append_len(client->output, client->waiting->str, (gssize)client->waiting->len);
    g_string_truncate(client->waiting, 0);
    if (client->handlers.ready)
        client->handlers.ready(client->opaque);
}

static void handle_answer(QmpClient *client, const json_t *message)
{
    const json_t *id = json_object_get(message, "id");
    const json_t *result = json_object_get(message, "return");
    const json_t *problem = json_object_get(message, "error");
    GList *link = client->commands->head;
    while (link && id && (json_int_t)((Command *)link->data)->id != json_integer_value(id))
        link = link->next;
    /* An error without id answers something that could not be parsed: the oldest command. */
    if (!link || (!id && !problem)) {
        shut_with(client, LODGE_ERROR_CORRUPT, "an answer that belongs to no command");
        return;
    }
    Command *command = link->data;
    g_queue_delete_link(client->commands, link);
    g_autoptr(GError) error = NULL;
    if (!result) {
        const char *text = json_string_value(json_object_get(problem, "desc"));
        const char *class = json_string_value(json_object_get(problem, "class"));
        lodge_fail(&error,
                   g_strcmp0(class, "CommandNotFound") == 0 ? LODGE_ERROR_UNSUPPORTED
                                                            : LODGE_ERROR_INVALID,
                   "%s: %s", command->name, text ? text : "refused without a reason");
    }
    if (command->reply)
        command->reply(command->opaque, result, error);
    bool fatal = !result && !client->ready;
    command_free(command);
    if (fatal && !client->closed)
        shut_with(client, LODGE_ERROR_UNSUPPORTED, "the peer refused qmp_capabilities");
}

static void handle_message(QmpClient *client, const json_t *message)
{
    const char *event = json_string_value(json_object_get(message, "event"));
    if (!client->greeted) {
        if (!json_is_object(json_object_get(message, "QMP"))) {
            shut_with(client, LODGE_ERROR_CORRUPT, "the peer does not speak QMP (no greeting)");
            return;
        }
        client->greeted = true;
        queue_command(client, client->output, "qmp_capabilities", NULL, on_capabilities, client);
    } else if (event) {
        const json_t *data = json_object_get(message, "data");
        json_t *empty = data ? NULL : json_object();
        if (client->handlers.event)
            client->handlers.event(client->opaque, event, data ? data : empty);
        json_decref(empty);
    } else {
        handle_answer(client, message);
    }
}

static void handle_lines(QmpClient *client)
{
    char *end;
    while (!client->closed && !client->free_wanted &&
           (end = memchr(client->input->str, '\n', client->input->len))) {
        size_t length = (size_t)(end - client->input->str);
        json_error_t where;
        json_t *message = json_loadb(client->input->str, length, JSON_REJECT_DUPLICATES, &where);
        bool blank = length == 0 || (length == 1 && client->input->str[0] == '\r');
        g_string_erase(client->input, 0, (gssize)length + 1);
        if (json_is_object(message))
            handle_message(client, message);
        else if (!blank)
            shut_with(client, LODGE_ERROR_CORRUPT, "a line that is not a JSON object");
        json_decref(message);
    }
    if (client->input->len > QMP_LINE_MAX && !client->closed)
        shut_with(client, LODGE_ERROR_LIMIT, "a message longer than 8 MiB");
}

static gboolean on_readable(gint fd, GIOCondition condition, gpointer data)
{
    QmpClient *client = data;
    char block[16384];
    ssize_t n = recv(fd, block, sizeof(block), MSG_DONTWAIT);
    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return G_SOURCE_CONTINUE;
    enter(client);
    if (n < 0) {
        shut_with(client, LODGE_ERROR_IO, g_strerror(errno));
    } else if (n == 0) {
        shut_with(client, LODGE_ERROR_IO, "the peer closed the connection");
    } else {
        g_string_append_len(client->input, block, n);
        handle_lines(client);
        if (!client->closed)
            flush_output(client);
    }
    leave(client);
    return G_SOURCE_CONTINUE; /* shut destroys the source */
}

/* ---- life */

static void attach(QmpClient *client)
{
    client->readable = g_unix_fd_source_new(client->fd, G_IO_IN | G_IO_HUP | G_IO_ERR);
    g_source_set_callback(client->readable, G_SOURCE_FUNC(on_readable), client, NULL);
    g_source_attach(client->readable, client->context);
}

static int try_connect(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof(address.sun_path))
        return -ENAMETOOLONG;
    strcpy(address.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -errno;
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        int errnum = errno;
        close(fd);
        return -errnum;
    }
    return fd;
}

static gboolean on_retry(gpointer data)
{
    QmpClient *client = data;
    int fd = try_connect(client->path);
    /* Not made yet, not listening yet, or its backlog is full (AF_UNIX: EAGAIN). */
    bool later = fd == -ENOENT || fd == -ECONNREFUSED || fd == -EAGAIN;
    if (fd < 0 && later && g_get_monotonic_time() < client->connect_deadline_us)
        return G_SOURCE_CONTINUE;
    enter(client);
    clear_source(&client->retry);
    if (fd < 0) {
        GError *error = NULL;
        lodge_fail_errno(&error, -fd, "QMP %s: cannot connect", client->path);
        shut(client, error);
    } else {
        client->fd = fd;
        attach(client);
    }
    leave(client);
    return G_SOURCE_REMOVE;
}

static QmpClient *client_new(const QmpClientHandlers *handlers, void *opaque, GMainContext *context)
{
    QmpClient *client = g_new0(QmpClient, 1);
    client->fd = -1;
    client->context =
        context ? g_main_context_ref(context) : g_main_context_ref(g_main_context_default());
    if (handlers)
        client->handlers = *handlers;
    client->opaque = opaque;
    client->input = g_string_new(NULL);
    client->output = g_string_new(NULL);
    client->waiting = g_string_new(NULL);
    client->commands = g_queue_new();
    client->next_id = 1;
    return client;
}

QmpClient *qmp_client_new(const char *path, unsigned timeout_ms, const QmpClientHandlers *handlers,
                          void *opaque, GMainContext *context)
{
    QmpClient *client = client_new(handlers, opaque, context);
    client->path = g_strdup(path);
    client->connect_deadline_us = g_get_monotonic_time() + (gint64)timeout_ms * 1000;
    client->retry = g_timeout_source_new(RETRY_MS);
    g_source_set_callback(client->retry, on_retry, client, NULL);
    g_source_attach(client->retry, client->context);
    return client;
}

QmpClient *qmp_client_new_fd(int fd, const QmpClientHandlers *handlers, void *opaque,
                             GMainContext *context)
{
    QmpClient *client = client_new(handlers, opaque, context);
    client->fd = fd;
    attach(client);
    return client;
}

void qmp_client_free(QmpClient *client)
{
    if (!client || client->free_wanted)
        return;
    enter(client);
    client->free_wanted = true;
    shut(client, g_error_new(LODGE_ERROR, LODGE_ERROR_CANCELLED, "QMP: the client was closed"));
    leave(client);
}

void qmp_client_execute(QmpClient *client, const char *command, json_t *arguments, QmpReply reply,
                        void *opaque)
{
    if (client->closed) {
        g_autoptr(GError) error = NULL;
        lodge_fail(&error, LODGE_ERROR_STATE, "%s: the guest process is gone", command);
        json_decref(arguments);
        if (reply)
            reply(opaque, NULL, error);
        return;
    }
    enter(client);
    queue_command(client, client->ready ? client->output : client->waiting, command, arguments,
                  reply, opaque);
    if (client->ready)
        flush_output(client);
    leave(client);
}

/* ---- a command that waits */

typedef struct Call {
    bool done;
    json_t *result;
    GError *error;
    bool abandoned; /* its caller has given up: the reply frees it */
} Call;

static void on_call_reply(void *opaque, const json_t *result, const GError *error)
{
    Call *call = opaque;
    if (call->abandoned) {
        g_free(call);
        return;
    }
    call->done = true;
    call->result = json_deep_copy(result);
    call->error = error ? g_error_copy(error) : NULL;
}

static gboolean on_call_timeout(gpointer flag)
{
    *(bool *)flag = true;
    return G_SOURCE_CONTINUE;
}

json_t *qmp_client_call(QmpClient *client, const char *command, json_t *arguments,
                        unsigned timeout_ms, GError **err)
{
    Call *call = g_new0(Call, 1);
    bool late = false;
    GSource *timer = g_timeout_source_new(timeout_ms);
    g_source_set_callback(timer, on_call_timeout, &late, NULL);
    g_source_attach(timer, client->context);
    qmp_client_execute(client, command, arguments, on_call_reply, call);
    while (!call->done && !late)
        g_main_context_iteration(client->context, TRUE);
    g_source_destroy(timer);
    g_source_unref(timer);
    if (!call->done) {
        call->abandoned = true;
        lodge_fail(err, LODGE_ERROR_TIMEOUT, "%s: no answer within %u ms", command, timeout_ms);
        return NULL;
    }
    json_t *result = call->result;
    if (call->error)
        g_propagate_error(err, call->error);
    g_free(call);
    return result;
}
