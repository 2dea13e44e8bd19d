/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "machine/netdev/netdev.h"

#include <string.h>

#include "base/error.h"
#include "machine/netdev/netdev-type.h"

/* Every backend of the process, for netdev_find. */
static GMutex registry_lock;
static GPtrArray *registry;

static void registry_add(Netdev *n)
{
    g_mutex_lock(&registry_lock);
    if (!registry)
        registry = g_ptr_array_new();
    g_ptr_array_add(registry, n);
    g_mutex_unlock(&registry_lock);
}

static void registry_remove(Netdev *n)
{
    g_mutex_lock(&registry_lock);
    if (registry)
        g_ptr_array_remove_fast(registry, n);
    if (registry && registry->len == 0)
        g_clear_pointer(&registry, g_ptr_array_unref);
    g_mutex_unlock(&registry_lock);
}

Netdev *netdev_find(Machine *m, const char *id)
{
    Netdev *found = NULL;
    g_mutex_lock(&registry_lock);
    for (guint i = 0; id && registry && i < registry->len && !found; i++) {
        Netdev *n = g_ptr_array_index(registry, i);
        if (n->machine == m && n->id && strcmp(n->id, id) == 0)
            found = n;
    }
    g_mutex_unlock(&registry_lock);
    return found;
}

/* ---- frames ---- */

static void netdev_drop_held(Netdev *n)
{
    GBytes *frame;
    while ((frame = g_queue_pop_head(&n->held)))
        g_bytes_unref(frame);
}

bool netdev_has_room(Netdev *n)
{
    return g_queue_is_empty(&n->held) && n->user && n->user->can_receive(n->user_opaque);
}

void netdev_deliver(Netdev *n, const uint8_t *frame, size_t size)
{
    if (size > NETDEV_FRAME_MAX || !n->user)
        return;
    if (netdev_has_room(n))
        n->user->receive(n->user_opaque, frame, size);
    else if (g_queue_get_length(&n->held) < NETDEV_HELD_MAX)
        g_queue_push_tail(&n->held, g_bytes_new(frame, size));
}

void netdev_accept_input(Netdev *n)
{
    while (!g_queue_is_empty(&n->held) && n->user && n->user->can_receive(n->user_opaque)) {
        GBytes *frame = g_queue_pop_head(&n->held);
        gsize size;
        const uint8_t *data = g_bytes_get_data(frame, &size);
        n->user->receive(n->user_opaque, data, size);
        g_bytes_unref(frame);
    }
    if (g_queue_is_empty(&n->held) && n->type->room)
        n->type->room(n);
}

void netdev_send(Netdev *n, const struct iovec *iov, int count)
{
    n->type->send(n, iov, count);
}

/* ---- life ---- */

bool netdev_attach(Netdev *n, const NetdevUser *user, void *opaque, GError **err)
{
    if (n->user)
        return lodge_fail(err, LODGE_ERROR_BUSY, "netdev '%s' is in use by another device", n->id);
    n->user = user;
    n->user_opaque = opaque;
    return true;
}

void netdev_detach(Netdev *n)
{
    n->user = NULL;
    n->user_opaque = NULL;
    netdev_drop_held(n);
}

bool netdev_bool_option(const MachineItem *item, const char *name, bool fallback, bool *value,
                        GError **err)
{
    const char *text = machine_item_get(item, name);
    *value = fallback;
    if (!text)
        return true;
    if (strcmp(text, "on") == 0 || strcmp(text, "yes") == 0)
        *value = true;
    else if (strcmp(text, "off") == 0 || strcmp(text, "no") == 0)
        *value = false;
    else
        return lodge_fail(err, LODGE_ERROR_INVALID, "netdev '%s': %s=%s is neither on nor off",
                          item->id, name, text);
    return true;
}

static const NetdevType *type_find(const char *name)
{
    for (unsigned i = 0; netdev_types[i]; i++)
        if (strcmp(netdev_types[i]->name, name) == 0)
            return netdev_types[i];
    return NULL;
}

static bool options_known(const NetdevType *type, const MachineItem *item, GError **err)
{
    for (guint i = 0; i < item->options->len; i++) {
        const char *key = g_array_index(item->options, MachineOption, i).key;
        if (!g_strv_contains(type->options, key)) {
            g_autofree char *known = g_strjoinv(", ", (char **)type->options);
            return lodge_fail(err, LODGE_ERROR_INVALID,
                              "netdev '%s': type %s has no option '%s' (it has: %s)", item->id,
                              type->name, key, known);
        }
    }
    return true;
}

Netdev *netdev_new(Machine *m, const MachineItem *item, GError **err)
{
    const NetdevType *type = type_find(item->type);
    if (!type) {
        lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "netdev '%s': there is no type '%s'",
                   item->id ? item->id : "", item->type);
        return NULL;
    }
    if (!item->id) {
        lodge_fail(err, LODGE_ERROR_INVALID, "a netdev of type %s has no id", type->name);
        return NULL;
    }
    if (netdev_find(m, item->id)) {
        lodge_fail(err, LODGE_ERROR_EXISTS, "there are two netdevs '%s'", item->id);
        return NULL;
    }
    if (!options_known(type, item, err))
        return NULL;
    Netdev *n = g_malloc0(type->instance_size);
    n->type = type;
    n->machine = m;
    n->id = g_strdup(item->id);
    g_queue_init(&n->held);
    if (!type->open(n, item, err)) {
        type->close(n);
        g_free(n->id);
        g_free(n);
        return NULL;
    }
    registry_add(n);
    return n;
}

void netdev_free(Netdev *n)
{
    if (!n)
        return;
    registry_remove(n);
    n->type->close(n);
    netdev_drop_held(n);
    g_free(n->id);
    g_free(n);
}
