/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * query-stats and query-stats-schemas: the counters of the vCPUs' engine, in the shape that QEMU
 * 7.2 gives its own (qapi/stats.json). The one provider is "lodge", and it counts vCPUs.
 */
#include <string.h>

#include "base/error.h"
#include "monitor/qmp-session.h"

#define PROVIDER "lodge"

static const char *const kind_names[] = {
    [VCPU_STAT_CUMULATIVE] = "cumulative",
    [VCPU_STAT_INSTANT] = "instant",
    [VCPU_STAT_PEAK] = "peak",
};

/* ---- what is asked for ---- */

static const VcpuStatField *find_field(const char *name)
{
    for (const VcpuStatField *f = vcpu_stat_fields; f->name; f++)
        if (strcmp(f->name, name) == 0)
            return f;
    return NULL;
}

static bool check_names(json_t *names, GError **err)
{
    size_t i;
    json_t *name;
    if (names && !json_is_array(names))
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "query-stats: 'names' of a provider must be of type array");
    json_array_foreach(names, i, name)
    {
        const char *text = json_string_value(name);
        if (!text || !find_field(text))
            return lodge_fail(err, LODGE_ERROR_NOT_FOUND,
                              "query-stats: provider '" PROVIDER "' has no statistic '%s'",
                              text ? text : "(not a string)");
    }
    return true;
}

/* The names that the request for our provider lists, or NULL for all; *wanted: it was asked. */
static bool parse_providers(json_t *providers, bool *wanted, json_t **names, GError **err)
{
    size_t i;
    json_t *request;
    *wanted = !providers;
    *names = NULL;
    json_array_foreach(providers, i, request)
    {
        const char *provider = json_string_value(json_object_get(request, "provider"));
        if (!provider || strcmp(provider, PROVIDER) != 0)
            return lodge_fail(err, LODGE_ERROR_NOT_FOUND,
                              "query-stats: there is no provider '%s', only '" PROVIDER "'",
                              provider ? provider : "(not named)");
        *wanted = true;
        *names = json_object_get(request, "names");
        if (!check_names(*names, err))
            return false;
    }
    return true;
}

static char *vcpu_path(unsigned index)
{
    return g_strdup_printf("/machine/cpu[%u]", index);
}

static bool check_vcpus(Machine *m, json_t *vcpus, GError **err)
{
    size_t i;
    json_t *item;
    json_array_foreach(vcpus, i, item)
    {
        const char *wanted = json_string_value(item);
        bool found = false;
        for (unsigned n = 0; wanted && !found && n < machine_vcpu_count(m); n++) {
            g_autofree char *path = vcpu_path(n);
            found = strcmp(path, wanted) == 0;
        }
        if (!found)
            return lodge_fail(err, LODGE_ERROR_NOT_FOUND, "query-stats: there is no vCPU '%s'",
                              wanted ? wanted : "(not a string)");
    }
    return true;
}

/* Whether @text is in @list, of strings; an absent list has everything. */
static bool listed(json_t *list, const char *text)
{
    size_t i;
    json_t *item;
    json_array_foreach(list, i, item)
    {
        if (strcmp(json_string_value(item), text) == 0)
            return true;
    }
    return !list;
}

/* ---- answers ---- */

static json_t *stats_of(Vcpu *vcpu, const char *path, json_t *names)
{
    VcpuStats stats = {0};
    json_t *list = json_array();
    vcpu->engine->stats(vcpu, &stats);
    for (const VcpuStatField *f = vcpu_stat_fields; f->name; f++) {
        uint64_t value = *(const uint64_t *)((const char *)&stats + f->offset);
        if (listed(names, f->name))
            json_array_append_new(list, json_pack("{s:s,s:I}", "name", f->name, "value",
                                                  (json_int_t)MIN(value, (uint64_t)INT64_MAX)));
    }
    return json_pack("{s:s,s:s,s:o}", "provider", PROVIDER, "qom-path", path, "stats", list);
}

json_t *qmp_query_stats(Machine *m, json_t *arguments, QmpErrorClass *error_class, GError **err)
{
    const char *target = json_string_value(json_object_get(arguments, "target"));
    json_t *vcpus = json_object_get(arguments, "vcpus"), *names;
    bool wanted, vcpu = strcmp(target, "vcpu") == 0;
    if (!vcpu && strcmp(target, "vm") != 0) {
        lodge_fail(err, LODGE_ERROR_INVALID, "query-stats: the target is vm or vcpu, not '%s'",
                   target);
        return NULL;
    }
    if (vcpus && !vcpu) {
        lodge_fail(err, LODGE_ERROR_INVALID, "query-stats: 'vcpus' goes with target vcpu only");
        return NULL;
    }
    if (!parse_providers(json_object_get(arguments, "providers"), &wanted, &names, err) ||
        !check_vcpus(m, vcpus, err))
        return NULL;
    json_t *list = json_array();
    for (unsigned i = 0; vcpu && wanted && i < machine_vcpu_count(m); i++) {
        g_autofree char *path = vcpu_path(i);
        if (machine_vcpu(m, i)->engine->stats && listed(vcpus, path))
            json_array_append_new(list, stats_of(machine_vcpu(m, i), path, names));
    }
    return list;
}

static json_t *describe(const VcpuStatField *f)
{
    json_t *value = json_pack("{s:s,s:s,s:i}", "name", f->name, "type", kind_names[f->kind],
                              "exponent", f->unit == VCPU_STAT_NS ? -9 : 0);
    if (f->unit == VCPU_STAT_BYTES)
        json_object_set_new(value, "unit", json_string("bytes"));
    if (f->unit == VCPU_STAT_NS) {
        json_object_set_new(value, "unit", json_string("seconds"));
        json_object_set_new(value, "base", json_integer(10));
    }
    return value;
}

json_t *qmp_query_stats_schemas(Machine *m, json_t *arguments, QmpErrorClass *error_class,
                                GError **err)
{
    const char *provider = json_string_value(json_object_get(arguments, "provider"));
    if (provider && strcmp(provider, PROVIDER) != 0) {
        lodge_fail(err, LODGE_ERROR_NOT_FOUND,
                   "query-stats-schemas: there is no provider '%s', only '" PROVIDER "'", provider);
        return NULL;
    }
    json_t *list = json_array();
    for (const VcpuStatField *f = vcpu_stat_fields; f->name; f++)
        json_array_append_new(list, describe(f));
    return json_pack("[{s:s,s:s,s:o}]", "provider", PROVIDER, "target", "vcpu", "stats", list);
}
