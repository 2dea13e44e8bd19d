/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The plain configuration struct: creation, copying and freeing. */
#include "machine/machine-internal.h"

#include <string.h>

static void option_clear(void *p)
{
    MachineOption *option = p;
    g_free(option->key);
    g_free(option->value);
}

void machine_item_free(MachineItem *item)
{
    if (!item)
        return;
    g_free(item->type);
    g_free(item->id);
    g_array_unref(item->options);
    g_free(item);
}

MachineItem *machine_item_new(const char *type, const char *id)
{
    MachineItem *item = g_new0(MachineItem, 1);
    item->type = g_strdup(type);
    item->id = g_strdup(id);
    item->options = g_array_new(FALSE, TRUE, sizeof(MachineOption));
    g_array_set_clear_func(item->options, option_clear);
    return item;
}

static MachineOption *item_find(const MachineItem *item, const char *key)
{
    for (unsigned i = 0; i < item->options->len; i++) {
        MachineOption *option = &g_array_index(item->options, MachineOption, i);
        if (g_str_equal(option->key, key))
            return option;
    }
    return NULL;
}

void machine_item_set(MachineItem *item, const char *key, const char *value)
{
    MachineOption *option = item_find(item, key);
    if (option) {
        g_free(option->value);
        option->value = g_strdup(value);
        return;
    }
    MachineOption added = {g_strdup(key), g_strdup(value)};
    g_array_append_val(item->options, added);
}

const char *machine_item_get(const MachineItem *item, const char *key)
{
    const MachineOption *option = item_find(item, key);
    return option ? option->value : NULL;
}

MachineConfig *machine_config_new(void)
{
    MachineConfig *config = g_new0(MachineConfig, 1);
    config->board = g_strdup("q35");
    config->engine = g_strdup("auto");
    config->memory_size = MIB(512);
    config->n_vcpus = 1;
    config->sockets = config->cores = config->threads = 1;
    config->drives = g_ptr_array_new_with_free_func((GDestroyNotify)machine_item_free);
    config->chardevs = g_ptr_array_new_with_free_func((GDestroyNotify)machine_item_free);
    config->netdevs = g_ptr_array_new_with_free_func((GDestroyNotify)machine_item_free);
    config->devices = g_ptr_array_new_with_free_func((GDestroyNotify)machine_item_free);
    return config;
}

void machine_config_free(MachineConfig *config)
{
    if (!config)
        return;
    g_free(config->name);
    g_free(config->board);
    g_free(config->engine);
    g_free(config->kernel);
    g_free(config->initrd);
    g_free(config->cmdline);
    g_free(config->perf_map);
    g_free(config->cpu);
    g_ptr_array_unref(config->drives);
    g_ptr_array_unref(config->chardevs);
    g_ptr_array_unref(config->netdevs);
    g_ptr_array_unref(config->devices);
    g_free(config);
}

static void items_copy(GPtrArray *to, const GPtrArray *from)
{
    for (unsigned i = 0; i < from->len; i++) {
        const MachineItem *item = from->pdata[i];
        MachineItem *copy = machine_item_new(item->type, item->id);
        for (unsigned j = 0; j < item->options->len; j++) {
            const MachineOption *option = &g_array_index(item->options, MachineOption, j);
            machine_item_set(copy, option->key, option->value);
        }
        g_ptr_array_add(to, copy);
    }
}

MachineConfig *machine_config_copy(const MachineConfig *from)
{
    MachineConfig *config = machine_config_new();
    g_free(config->board);
    g_free(config->engine);
    MachineConfig lists = *config;
    *config = *from;
    config->name = g_strdup(from->name);
    config->board = g_strdup(from->board);
    config->engine = g_strdup(from->engine);
    config->kernel = g_strdup(from->kernel);
    config->initrd = g_strdup(from->initrd);
    config->cmdline = g_strdup(from->cmdline);
    config->perf_map = g_strdup(from->perf_map);
    config->cpu = g_strdup(from->cpu);
    config->drives = lists.drives;
    config->chardevs = lists.chardevs;
    config->netdevs = lists.netdevs;
    config->devices = lists.devices;
    items_copy(config->drives, from->drives);
    items_copy(config->chardevs, from->chardevs);
    items_copy(config->netdevs, from->netdevs);
    items_copy(config->devices, from->devices);
    return config;
}
