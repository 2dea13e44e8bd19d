/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What all character devices share: buffering, watching descriptors, one user at a time. */
#include "machine/chardev/chardev.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/error.h"
#include "machine/chardev/chardev-type.h"

/* Every chardev of the process, for chardev_find. */
static GMutex registry_lock;
static GPtrArray *registry;

static void registry_add(Chardev *c)
{
    g_mutex_lock(&registry_lock);
    if (!registry)
        registry = g_ptr_array_new();
    g_ptr_array_add(registry, c);
    g_mutex_unlock(&registry_lock);
}

static void registry_remove(Chardev *c)
{
    g_mutex_lock(&registry_lock);
    if (registry)
        g_ptr_array_remove_fast(registry, c);
    if (registry && registry->len == 0)
        g_clear_pointer(&registry, g_ptr_array_unref);
    g_mutex_unlock(&registry_lock);
}

Chardev *chardev_find(Machine *m, const char *id)
{
    Chardev *found = NULL;
    g_mutex_lock(&registry_lock);
    for (guint i = 0; id && registry && i < registry->len && !found; i++) {
        Chardev *c = g_ptr_array_index(registry, i);
        if (c->machine == m && c->id && strcmp(c->id, id) == 0)
            found = c;
    }
    g_mutex_unlock(&registry_lock);
    return found;
}

/* ---- input: peer to device ---- */

static void deliver(Chardev *c)
{
    if (c->delivering)
        return;
    c->delivering = true;
    while (c->input_size && c->user) {
        size_t n = MIN(c->user->can_receive(c->user_opaque), c->input_size);
        if (n == 0)
            break;
        uint8_t data[CHARDEV_INPUT_MAX];
        memcpy(data, c->input, n);
        memmove(c->input, c->input + n, c->input_size - n);
        c->input_size -= n;
        c->user->receive(c->user_opaque, data, n);
    }
    c->delivering = false;
}

static void drop_source(GSource **source)
{
    if (*source) {
        g_source_destroy(*source);
        g_clear_pointer(source, g_source_unref);
    }
}

static void peer_gone(Chardev *c)
{
    drop_source(&c->in_watch);
    if (c->listen_fd < 0) {
        c->in_eof = true; /* output goes on */
        return;
    }
    g_mutex_lock(&c->out_lock);
    drop_source(&c->out_watch);
    g_byte_array_set_size(c->output, 0);
    int fd = c->in_fd;
    c->in_fd = c->out_fd = -1;
    c->in_hung_up = false;
    g_mutex_unlock(&c->out_lock);
    close(fd);
    chardev_set_connected(c, false);
    c->type->peer_left(c);
}

/* The peer left while its input waits for room: the next one takes over, if it comes first. */
static void peer_hung_up(void *opaque, int fd, GIOCondition condition)
{
    Chardev *c = opaque;
    drop_source(&c->in_watch);
    c->in_hung_up = true;
    c->type->peer_left(c);
}

static void input_ready(void *opaque, int fd, GIOCondition condition)
{
    Chardev *c = opaque;
    uint8_t data[CHARDEV_INPUT_MAX];
    size_t room = CHARDEV_INPUT_MAX - c->input_size;
    size_t want = c->in_terminal || !c->user ? sizeof(data) : room;
    if (want == 0) {
        chardev_update_input(c);
        return;
    }
    ssize_t n = read(fd, data, want);
    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return;
    if (n <= 0) {
        if (c->listen_fd >= 0 && c->input_size)
            peer_hung_up(c, fd, condition);
        else
            peer_gone(c);
        return;
    }
    size_t keep = c->type->filter ? c->type->filter(c, data, n) : (size_t)n;
    if (!c->user)
        return; /* nobody listens */
    keep = MIN(keep, room);
    memcpy(c->input + c->input_size, data, keep);
    c->input_size += keep;
    deliver(c);
    chardev_update_input(c);
}

bool chardev_leave_hung_up(Chardev *c)
{
    if (c->in_hung_up)
        peer_gone(c);
    return c->in_fd < 0;
}

void chardev_update_input(Chardev *c)
{
    bool room = c->in_terminal || c->input_size < CHARDEV_INPUT_MAX;
    bool open = c->in_fd >= 0 && !c->in_eof;
    bool want = open && (room || (c->listen_fd >= 0 && !c->in_hung_up));
    if (!want || c->in_watch_full == room)
        drop_source(&c->in_watch);
    if (!want || c->in_watch)
        return;
    c->in_watch_full = !room;
    GIOCondition end = G_IO_HUP | G_IO_ERR;
    c->in_watch = room ? machine_watch_fd(c->machine, c->in_fd, G_IO_IN | end, input_ready, c)
                       : machine_watch_fd(c->machine, c->in_fd, end, peer_hung_up, c);
}

void chardev_accept_input(Chardev *c)
{
    if (c->input_size == 0)
        return;
    deliver(c);
    chardev_update_input(c);
}

/* ---- output: device to peer ---- */

/* Writes what the peer takes now; returns how much, or -errno. */
static ssize_t put(Chardev *c, const uint8_t *data, size_t size)
{
    if (c->out_may_block) {
        struct pollfd p = {.fd = c->out_fd, .events = POLLOUT};
        if (poll(&p, 1, 0) <= 0 || !(p.revents & POLLOUT))
            return -EAGAIN;
        size = MIN(size, 512); /* small enough for a pipe or terminal that has room */
    }
    ssize_t n;
    do
        n = c->out_socket ? send(c->out_fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL)
                          : write(c->out_fd, data, size);
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

static void output_ready(void *opaque, int fd, GIOCondition condition)
{
    Chardev *c = opaque;
    g_mutex_lock(&c->out_lock);
    if (c->out_fd >= 0 && c->output->len) {
        ssize_t n = put(c, c->output->data, c->output->len);
        if (n > 0)
            g_byte_array_remove_range(c->output, 0, n);
        else if (n != -EAGAIN)
            g_byte_array_set_size(c->output, 0); /* the peer is gone: input notices it */
    }
    if (c->output->len == 0)
        drop_source(&c->out_watch);
    g_mutex_unlock(&c->out_lock);
}

static void queue_output(Chardev *c, const uint8_t *data, size_t size)
{
    if (size > CHARDEV_OUTPUT_MAX) {
        data += size - CHARDEV_OUTPUT_MAX;
        size = CHARDEV_OUTPUT_MAX;
    }
    size_t total = c->output->len + size;
    if (total > CHARDEV_OUTPUT_MAX)
        g_byte_array_remove_range(c->output, 0, total - CHARDEV_OUTPUT_MAX);
    g_byte_array_append(c->output, data, size);
    if (!c->out_watch)
        c->out_watch = machine_watch_fd(c->machine, c->out_fd, G_IO_OUT | G_IO_HUP | G_IO_ERR,
                                        output_ready, c);
}

void chardev_write(Chardev *c, const uint8_t *data, size_t size)
{
    g_mutex_lock(&c->out_lock);
    if (c->out_fd >= 0) {
        while (size && c->output->len == 0) {
            ssize_t n = put(c, data, size);
            if (n == -EAGAIN)
                break;
            if (n <= 0)
                size = 0;
            else {
                data += n;
                size -= n;
            }
        }
        if (size)
            queue_output(c, data, size);
    }
    g_mutex_unlock(&c->out_lock);
}

/* ---- users ---- */

void chardev_set_connected(Chardev *c, bool connected)
{
    if (c->connected == connected)
        return;
    c->connected = connected;
    if (!connected)
        c->input_size = 0;
    if (c->user && c->user->opened)
        c->user->opened(c->user_opaque, connected);
    chardev_update_input(c);
}

bool chardev_attach(Chardev *c, const ChardevUser *user, void *opaque, GError **err)
{
    if (c->user)
        return lodge_fail(err, LODGE_ERROR_BUSY, "chardev '%s' is in use by another device", c->id);
    c->user = user;
    c->user_opaque = opaque;
    if (c->connected && user->opened)
        user->opened(opaque, true);
    return true;
}

void chardev_detach(Chardev *c)
{
    c->user = NULL;
    c->user_opaque = NULL;
    c->input_size = 0;
}

bool chardev_in_use(const Chardev *c)
{
    return c->user != NULL;
}

const char *chardev_path(const Chardev *c)
{
    return c->path;
}

/* ---- life ---- */

bool chardev_bool_option(const MachineItem *item, const char *name, bool fallback, bool *value,
                         GError **err)
{
    const char *text = machine_item_get(item, name);
    *value = fallback;
    if (!text)
        return true;
    if (strcmp(text, "on") == 0 || strcmp(text, "off") == 0) {
        *value = text[1] == 'n';
        return true;
    }
    return lodge_fail(err, LODGE_ERROR_INVALID, "chardev '%s': %s=%s: on or off is allowed",
                      item->id, name, text);
}

static bool check_options(const ChardevType *type, const MachineItem *item, GError **err)
{
    for (guint i = 0; item->options && i < item->options->len; i++) {
        const char *key = g_array_index(item->options, MachineOption, i).key;
        if (!g_strv_contains(type->options, key))
            return lodge_fail(err, LODGE_ERROR_INVALID, "chardev '%s': %s has no option '%s'",
                              item->id, type->name, key);
    }
    return true;
}

static const ChardevType *find_type(const MachineItem *item, GError **err)
{
    g_autoptr(GString) known = g_string_new(NULL);
    for (const ChardevType *const *t = chardev_types; *t; t++) {
        if (strcmp((*t)->name, item->type) == 0)
            return *t;
        g_string_append_printf(known, "%s%s", known->len ? ", " : "", (*t)->name);
    }
    lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "chardev '%s': there is no type '%s', only %s",
               item->id ? item->id : "", item->type, known->str);
    return NULL;
}

Chardev *chardev_new(Machine *m, const MachineItem *item, GError **err)
{
    const ChardevType *type = find_type(item, err);
    if (!type)
        return NULL;
    if (!item->id) {
        lodge_fail(err, LODGE_ERROR_INVALID, "a chardev of type %s needs an id", type->name);
        return NULL;
    }
    if (!check_options(type, item, err))
        return NULL;
    if (chardev_find(m, item->id)) {
        lodge_fail(err, LODGE_ERROR_EXISTS, "there are two chardevs '%s'", item->id);
        return NULL;
    }
    Chardev *c = g_new0(Chardev, 1);
    c->type = type;
    c->machine = m;
    c->id = g_strdup(item->id);
    c->in_fd = c->out_fd = c->listen_fd = c->aux_fd = -1;
    g_mutex_init(&c->out_lock);
    c->output = g_byte_array_new();
    if (!type->open(c, item, err)) {
        chardev_free(c);
        return NULL;
    }
    registry_add(c);
    chardev_update_input(c);
    return c;
}

void chardev_free(Chardev *c)
{
    if (!c)
        return;
    registry_remove(c);
    drop_source(&c->in_watch);
    drop_source(&c->listen_watch);
    drop_source(&c->out_watch);
    if (c->out_fd >= 0 && c->output->len)
        put(c, c->output->data, c->output->len);
    if (c->type->close)
        c->type->close(c);
    if (c->owns_fds && c->in_fd >= 0)
        close(c->in_fd);
    if (c->owns_fds && c->out_fd >= 0 && c->out_fd != c->in_fd)
        close(c->out_fd);
    if (c->listen_fd >= 0)
        close(c->listen_fd);
    if (c->aux_fd >= 0)
        close(c->aux_fd);
    if (c->owns_path && c->path)
        unlink(c->path);
    g_byte_array_unref(c->output);
    g_mutex_clear(&c->out_lock);
    g_free(c->path);
    g_free(c->id);
    g_free(c);
}
