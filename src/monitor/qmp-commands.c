/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The QMP commands. Their arguments were checked against the schema; the machine lock is held. */
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "disk/block.h"
#include "machine/balloon.h"
#include "machine/chardev/chardev.h"
#include "monitor/qmp-session.h"

static json_t *query_status(Machine *m, json_t *arguments, QmpErrorClass *error_class, GError **err)
{
    MachineStatus status = machine_status(m);
    return json_pack("{s:s,s:b,s:b}", "status", monitor_status_name(status), "singlestep", 0,
                     "running", (int)(status == MACHINE_RUNNING));
}

static json_t *stop(Machine *m, json_t *arguments, QmpErrorClass *error_class, GError **err)
{
    machine_stop(m);
    return json_object();
}

static json_t *cont(Machine *m, json_t *arguments, QmpErrorClass *error_class, GError **err)
{
    MachineStatus status = machine_status(m);
    if (status == MACHINE_ERROR || status == MACHINE_SHUTDOWN) {
        lodge_fail(err, LODGE_ERROR_STATE, "the machine is in state %s and must be reset first",
                   monitor_status_name(status));
        return NULL;
    }
    machine_cont(m);
    return json_object();
}

static json_t *system_powerdown(Machine *m, json_t *arguments, QmpErrorClass *error_class,
                                GError **err)
{
    machine_powerdown(m);
    return json_object();
}

static json_t *system_reset(Machine *m, json_t *arguments, QmpErrorClass *error_class, GError **err)
{
    machine_reset(m, MACHINE_CAUSE_HOST_QMP_SYSTEM_RESET);
    return json_object();
}

static json_t *quit(Machine *m, json_t *arguments, QmpErrorClass *error_class, GError **err)
{
    machine_shutdown(m, MACHINE_CAUSE_HOST_QMP_QUIT);
    return json_object();
}

static json_t *query_cpus_fast(Machine *m, json_t *arguments, QmpErrorClass *error_class,
                               GError **err)
{
    const MachineConfig *config = machine_config(m);
    unsigned cores = MAX(config->cores, 1), threads = MAX(config->threads, 1);
    json_t *list = json_array();
    for (unsigned i = 0; i < machine_vcpu_count(m); i++) {
        g_autofree char *path = g_strdup_printf("/machine/cpu[%u]", i);
        json_array_append_new(
            list, json_pack("{s:i,s:s,s:i,s:s,s:{s:i,s:i,s:i}}", "cpu-index", (int)i, "qom-path",
                            path, "thread-id", (int)machine_vcpu_thread_id(m, i), "target",
                            "x86_64", "props", "socket-id", (int)(i / (cores * threads)), "core-id",
                            (int)(i / threads % cores), "thread-id", (int)(i % threads)));
    }
    return list;
}

static json_t *describe_image(BlockNode *node, const MachineItem *item)
{
    const char *path = block_path(node), *format = block_format(node);
    const char *cache = machine_item_get(item, "cache");
    return json_pack("{s:s,s:s,s:b,s:s,s:b,s:{s:b,s:b,s:b},s:{s:s,s:s,s:I}}", "file", path,
                     "node-name", item->id, "ro", (int)block_read_only(node), "drv", format,
                     "encrypted", 0, "cache", "writeback", 1, "direct",
                     (int)(g_strcmp0(cache, "none") == 0), "no-flush",
                     (int)(g_strcmp0(cache, "unsafe") == 0), "image", "filename", path, "format",
                     format, "virtual-size", (json_int_t)block_size(node));
}

static json_t *query_block(Machine *m, json_t *arguments, QmpErrorClass *error_class, GError **err)
{
    const GPtrArray *drives = machine_config(m)->drives;
    json_t *list = json_array();
    for (guint i = 0; i < drives->len; i++) {
        const MachineItem *item = g_ptr_array_index(drives, i);
        BlockNode *node = machine_drive(m, item->id, NULL);
        json_t *entry = json_pack("{s:s,s:b,s:b,s:s}", "device", item->id, "locked", 0, "removable",
                                  0, "type", "unknown");
        if (node)
            json_object_set_new(entry, "inserted", describe_image(node, item));
        json_array_append_new(list, entry);
    }
    return list;
}

static json_t *query_kvm(Machine *m, json_t *arguments, QmpErrorClass *error_class, GError **err)
{
    int enabled = strcmp(machine_engine_name(m), "kvm") == 0;
    /* The process may not open /dev/kvm by now; "present" can only repeat what was found. */
    return json_pack("{s:b,s:b}", "enabled", enabled, "present", enabled);
}

static json_t *query_version(Machine *m, json_t *arguments, QmpErrorClass *error_class,
                             GError **err)
{
    return qmp_version();
}

static json_t *query_commands(Machine *m, json_t *arguments, QmpErrorClass *error_class,
                              GError **err)
{
    json_t *list = json_array();
    for (const QmpSchema *s = qmp_schema; s->name; s++)
        json_array_append_new(list, json_pack("{s:s}", "name", s->name));
    return list;
}

static json_t *query_name(Machine *m, json_t *arguments, QmpErrorClass *error_class, GError **err)
{
    const char *name = machine_config(m)->name;
    return name ? json_pack("{s:s}", "name", name) : json_object();
}

static json_t *query_uuid(Machine *m, json_t *arguments, QmpErrorClass *error_class, GError **err)
{
    const uint8_t *u = machine_config(m)->uuid;
    char text[37];
    unsigned at = 0;
    for (unsigned i = 0; i < 16; i++) {
        at += g_snprintf(text + at, sizeof(text) - at, "%02x", u[i]);
        if (i == 3 || i == 5 || i == 7 || i == 9)
            text[at++] = '-';
    }
    return json_pack("{s:s}", "UUID", text);
}

static json_t *query_chardev(Machine *m, json_t *arguments, QmpErrorClass *error_class,
                             GError **err)
{
    const GPtrArray *chardevs = machine_config(m)->chardevs;
    json_t *list = json_array();
    for (guint i = 0; i < chardevs->len; i++) {
        const MachineItem *item = g_ptr_array_index(chardevs, i);
        Chardev *c = chardev_find(m, item->id);
        const char *path = c ? chardev_path(c) : NULL;
        g_autofree char *name =
            path ? g_strdup_printf("%s:%s", item->type, path) : g_strdup(item->type);
        json_array_append_new(list, json_pack("{s:s,s:s,s:b}", "label", item->id, "filename", name,
                                              "frontend-open", (int)(c && chardev_in_use(c))));
    }
    return list;
}

static json_t *balloon_result(bool ok, json_t *value, const GError *error,
                              QmpErrorClass *error_class)
{
    if (ok)
        return value;
    json_decref(value);
    if (g_error_matches(error, LODGE_ERROR, LODGE_ERROR_NOT_FOUND))
        *error_class = QMP_DEVICE_NOT_ACTIVE;
    return NULL;
}

static json_t *balloon(Machine *m, json_t *arguments, QmpErrorClass *error_class, GError **err)
{
    g_autoptr(GError) error = NULL;
    json_int_t bytes = json_integer_value(json_object_get(arguments, "value"));
    bool ok = bytes > 0 ? machine_balloon_set(m, (uint64_t)bytes, &error)
                        : lodge_fail(&error, LODGE_ERROR_INVALID,
                                     "balloon: 'value' must be a positive number of bytes");
    json_t *result = balloon_result(ok, json_object(), error, error_class);
    if (!ok)
        g_propagate_error(err, g_steal_pointer(&error));
    return result;
}

static json_t *query_balloon(Machine *m, json_t *arguments, QmpErrorClass *error_class,
                             GError **err)
{
    g_autoptr(GError) error = NULL;
    uint64_t actual = 0;
    bool ok = machine_balloon_actual(m, &actual, &error);
    json_t *result =
        balloon_result(ok, json_pack("{s:I}", "actual", (json_int_t)actual), error, error_class);
    if (!ok)
        g_propagate_error(err, g_steal_pointer(&error));
    return result;
}

static json_t *human_monitor_command(Machine *m, json_t *arguments, QmpErrorClass *error_class,
                                     GError **err)
{
    const char *line = json_string_value(json_object_get(arguments, "command-line"));
    json_int_t cpu = json_integer_value(json_object_get(arguments, "cpu-index"));
    if (cpu < 0 || cpu >= machine_vcpu_count(m)) {
        lodge_fail(err, LODGE_ERROR_INVALID, "human-monitor-command: there is no CPU %lld",
                   (long long)cpu);
        return NULL;
    }
    g_autofree char *text = hmp_run(m, line, (unsigned)cpu, err);
    return text ? json_string(text) : NULL;
}

const QmpCommand qmp_commands[] = {
    {"query-status", query_status},
    {"stop", stop},
    {"cont", cont},
    {"system_powerdown", system_powerdown},
    {"system_reset", system_reset},
    {"quit", quit},
    {"query-cpus-fast", query_cpus_fast},
    {"query-block", query_block},
    {"query-kvm", query_kvm},
    {"query-version", query_version},
    {"query-commands", query_commands},
    {"query-name", query_name},
    {"query-uuid", query_uuid},
    {"query-chardev", query_chardev},
    {"balloon", balloon},
    {"query-balloon", query_balloon},
    {"query-stats", qmp_query_stats},
    {"query-stats-schemas", qmp_query_stats_schemas},
    {"human-monitor-command", human_monitor_command},
    {0},
};
