/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The host sides of a machine: disk images, character devices, network backends. */
#include <string.h>

#include "disk/block.h"
#include "machine/chardev/chardev.h"
#include "machine/machine-internal.h"
#include "machine/netdev/netdev.h"

/* ---- drives
 * -------------------------------------------------------------------------------------- */

static const char *const drive_options[] = {"file",    "readonly", "shared",  "cache",
                                            "discard", "serial",   "backing", NULL};

static bool one_of(const MachineItem *item, const char *key, const char *const *allowed,
                   const char **value, GError **err)
{
    *value = machine_item_get(item, key);
    if (!*value)
        *value = allowed[0];
    if (g_strv_contains(allowed, *value))
        return true;
    g_autofree char *list = g_strjoinv(", ", (char **)allowed);
    return lodge_fail(err, LODGE_ERROR_INVALID, "drive %s: %s=%s: must be one of %s", item->id, key,
                      *value, list);
}

static bool drive_open(Machine *m, const MachineItem *item, GError **err)
{
    static const char *const off_on[] = {"off", "on", NULL};
    static const char *const on_off[] = {"on", "off", NULL};
    static const char *const caches[] = {"writeback",  "none",   "writethrough",
                                         "directsync", "unsafe", NULL};
    static const char *const discards[] = {"ignore", "unmap", NULL};
    const char *read_only, *shared, *cache, *discard, *backing;
    for (unsigned i = 0; i < item->options->len; i++) {
        const char *key = g_array_index(item->options, MachineOption, i).key;
        if (!g_strv_contains(drive_options, key))
            return lodge_fail(err, LODGE_ERROR_INVALID, "drive %s has no option '%s'", item->id,
                              key);
    }
    if (!one_of(item, "readonly", off_on, &read_only, err) ||
        !one_of(item, "shared", off_on, &shared, err) ||
        !one_of(item, "cache", caches, &cache, err) ||
        !one_of(item, "discard", discards, &discard, err) ||
        !one_of(item, "backing", on_off, &backing, err))
        return false;
    BlockOpen options = {
        .path = machine_item_get(item, "file"),
        .format = g_str_equal(item->type, "auto") ? NULL : item->type,
        .read_only = g_str_equal(read_only, "on"),
        .shared = g_str_equal(shared, "on"),
        .direct = g_str_equal(cache, "none") || g_str_equal(cache, "directsync"),
        .no_flush = g_str_equal(cache, "unsafe"),
        .discard_unmap = g_str_equal(discard, "unmap"),
        .no_backing = g_str_equal(backing, "off"),
    };
    if (!options.path)
        return lodge_fail(err, LODGE_ERROR_INVALID, "drive %s needs the option 'file'", item->id);
    BlockNode *node = block_open(&options, err);
    if (!node) {
        g_prefix_error(err, "drive %s: ", item->id);
        return false;
    }
    MachineDrive drive = {item, node, false};
    g_array_append_val(m->drives, drive);
    return true;
}

static MachineDrive *drive_find(Machine *m, const char *id)
{
    for (unsigned i = 0; i < m->drives->len; i++) {
        MachineDrive *drive = &g_array_index(m->drives, MachineDrive, i);
        if (g_strcmp0(drive->item->id, id) == 0)
            return drive;
    }
    return NULL;
}

BlockNode *machine_drive(Machine *m, const char *id, const MachineItem **item)
{
    MachineDrive *drive = drive_find(m, id);
    if (drive && item)
        *item = drive->item;
    return drive ? drive->node : NULL;
}

bool machine_claim_drive(Machine *m, const char *id, GError **err)
{
    MachineDrive *drive = drive_find(m, id);
    if (!drive)
        return lodge_fail(err, LODGE_ERROR_NOT_FOUND, "there is no drive '%s'", id);
    if (drive->claimed)
        return lodge_fail(err, LODGE_ERROR_BUSY, "drive '%s' is used by another device", id);
    drive->claimed = true;
    return true;
}

/* ---- chardevs and netdevs
 * -------------------------------------------------------------------------- */

static bool check_ids(const GPtrArray *items, const char *kind, GError **err)
{
    g_autoptr(GHashTable) seen = g_hash_table_new(g_str_hash, g_str_equal);
    for (unsigned i = 0; i < items->len; i++) {
        const MachineItem *item = items->pdata[i];
        if (!item->id)
            return lodge_fail(err, LODGE_ERROR_INVALID, "a %s of type %s has no id", kind,
                              item->type);
        if (!g_hash_table_add(seen, item->id))
            return lodge_fail(err, LODGE_ERROR_EXISTS, "there are two %ss with the id '%s'", kind,
                              item->id);
    }
    return true;
}

static void chardev_destroy(void *p)
{
    chardev_free(p);
}

static void netdev_destroy(void *p)
{
    netdev_free(p);
}

bool machine_host_open(Machine *m, GError **err)
{
    const MachineConfig *config = m->config;
    if (!check_ids(config->drives, "drive", err) || !check_ids(config->chardevs, "chardev", err) ||
        !check_ids(config->netdevs, "netdev", err))
        return false;
    m->chardevs = g_ptr_array_new_with_free_func(chardev_destroy);
    m->netdevs = g_ptr_array_new_with_free_func(netdev_destroy);
    for (unsigned i = 0; i < config->drives->len; i++)
        if (!drive_open(m, config->drives->pdata[i], err))
            return false;
    for (unsigned i = 0; i < config->chardevs->len; i++) {
        const MachineItem *item = config->chardevs->pdata[i];
        Chardev *c = chardev_new(m, item, err);
        if (!c)
            return false;
        g_ptr_array_add(m->chardevs, c);
    }
    for (unsigned i = 0; i < config->netdevs->len; i++) {
        const MachineItem *item = config->netdevs->pdata[i];
        Netdev *n = netdev_new(m, item, err);
        if (!n)
            return false;
        g_ptr_array_add(m->netdevs, n);
    }
    return true;
}

void machine_host_close(Machine *m)
{
    g_clear_pointer(&m->netdevs, g_ptr_array_unref);
    g_clear_pointer(&m->chardevs, g_ptr_array_unref);
    for (unsigned i = 0; i < m->drives->len; i++)
        block_unref(g_array_index(m->drives, MachineDrive, i).node);
    g_array_set_size(m->drives, 0);
}
