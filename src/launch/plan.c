/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "launch/plan.h"

#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "launch/plan-internal.h"

/* ---- lists */

static void add_line(Plan *plan, GPtrArray *list, unsigned line, const char *what,
                     const char *format, va_list args)
{
    g_autofree char *message = g_strdup_vprintf(format, args);
    if (line)
        g_ptr_array_add(list,
                        g_strdup_printf("%s:%u: %s: %s", plan->domain->file, line, what, message));
    else
        g_ptr_array_add(list, g_strdup_printf("%s: %s: %s", plan->domain->file, what, message));
}

void plan_refuse(Plan *plan, unsigned line, const char *what, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    add_line(plan, plan->refused, line, what, format, args);
    va_end(args);
}

void plan_warn(Plan *plan, unsigned line, const char *what, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    add_line(plan, plan->out->warnings, line, what, format, args);
    va_end(args);
}

void plan_note(Plan *plan, unsigned line, const char *what, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    add_line(plan, plan->out->notes, line, what, format, args);
    va_end(args);
}

/* ---- arguments */

void plan_option(Plan *plan, const char *option, const char *value)
{
    g_ptr_array_add(plan->out->argv, g_strdup(option));
    if (value)
        g_ptr_array_add(plan->out->argv, g_strdup(value));
}

PlanItem plan_item(Plan *plan, const char *option, const char *type)
{
    return (PlanItem){plan, option, g_string_new(type)};
}

void plan_item_set(PlanItem *item, const char *key, const char *value)
{
    g_string_append_printf(item->text, ",%s=", key);
    for (const char *p = value; *p; p++) {
        g_string_append_c(item->text, *p);
        if (*p == ',')
            g_string_append_c(item->text, ',');
    }
}

void plan_item_set_uint(PlanItem *item, const char *key, uint64_t value)
{
    g_string_append_printf(item->text, ",%s=%" PRIu64, key, value);
}

void plan_item_done(PlanItem *item)
{
    Plan *plan = item->plan;
    char *text = g_string_free(item->text, FALSE);
    if (strcmp(item->option, "--device") != 0) {
        plan_option(plan, item->option, text);
        g_free(text);
    } else if (g_str_has_prefix(text, "pcie-root-port")) {
        g_ptr_array_add(plan->bridges, text);
    } else {
        g_ptr_array_add(strstr(text, ",addr=") ? plan->placed : plan->others, text);
    }
}

/* Takes @list. */
static void add_devices(Plan *plan, GPtrArray *list)
{
    for (guint i = 0; i < list->len; i++)
        plan_option(plan, "--device", list->pdata[i]);
    g_ptr_array_unref(list);
}

/* ---- test devices */

/* Where images of the kvm-unit-tests look for them. */
static void add_test_devices(Plan *plan)
{
    plan_option(plan, "--device", "pc-testdev");
    plan_option(plan, "--device", "fw-cfg");
    plan_option(plan, "--device", "intel-iommu");
    plan_option(plan, "--device", "edu");
    plan_option(plan, "--device", "isa-debug-exit,iobase=0xf4,iosize=4");
}

/* ---- the plan */

static bool refuse_all(const Plan *plan, GError **err)
{
    g_autoptr(GString) text = g_string_new(NULL);
    for (guint i = 0; i < plan->refused->len; i++)
        g_string_append_printf(text, "\n  %s", (const char *)plan->refused->pdata[i]);
    return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                      "guest '%s' cannot be started: %u thing%s that this version does not have:%s",
                      plan->domain->name, plan->refused->len, plan->refused->len == 1 ? "" : "s",
                      text->str);
}

static void warn_unknown(Plan *plan)
{
    for (guint i = 0; i < plan->domain->unknown->len; i++) {
        const ConfigUnknown *unknown = plan->domain->unknown->pdata[i];
        plan_warn(plan, unknown->line, unknown->path, "kept, but nothing acts on it");
    }
}

LaunchPlan *launch_plan_new(const Domain *domain, const LaunchOptions *options, GError **err)
{
    LaunchPlan *out = g_new0(LaunchPlan, 1);
    out->argv = g_ptr_array_new_with_free_func(g_free);
    out->warnings = g_ptr_array_new_with_free_func(g_free);
    out->notes = g_ptr_array_new_with_free_func(g_free);
    Plan plan = {.out = out, .domain = domain, .options = options};
    plan.refused = g_ptr_array_new_with_free_func(g_free);
    plan.bridges = g_ptr_array_new_with_free_func(g_free);
    plan.placed = g_ptr_array_new_with_free_func(g_free);
    plan.others = g_ptr_array_new_with_free_func(g_free);

    plan_domain(&plan);
    plan_devices(&plan);
    add_devices(&plan, plan.bridges);
    add_devices(&plan, plan.placed);
    add_devices(&plan, plan.others);
    warn_unknown(&plan);
    if (options->test_devices)
        add_test_devices(&plan);
    if (options->qmp)
        plan_option(&plan, "--qmp", options->qmp);
    if (options->perf_map)
        plan_option(&plan, "--perf-map", options->perf_map);
    if (options->gdb)
        plan_option(&plan, "--gdb", options->gdb);
    if (options->paused)
        plan_option(&plan, "--paused", NULL);
    if (options->verbose)
        plan_option(&plan, "--verbose", NULL);
    g_ptr_array_add(out->argv, NULL);
    bool good = plan.refused->len == 0 || refuse_all(&plan, err);
    g_ptr_array_unref(plan.refused);
    if (!good)
        g_clear_pointer(&out, launch_plan_free);
    return out;
}

void launch_plan_free(LaunchPlan *plan)
{
    if (!plan)
        return;
    g_ptr_array_unref(plan->argv);
    g_ptr_array_unref(plan->warnings);
    g_ptr_array_unref(plan->notes);
    g_free(plan);
}

/* ---- paths */

static void resolve(char **path, const char *folder)
{
    if (!*path || !**path || g_path_is_absolute(*path))
        return;
    char *absolute = g_canonicalize_filename(*path, folder);
    g_free(*path);
    *path = absolute;
}

static void resolve_device(const DomainDevice *device, const char *folder)
{
    if (device->kind && device->kind->id == DOMAIN_DEVICE_DISK) {
        DomainDisk *disk = device->object;
        if (disk->source) {
            resolve(&disk->source->file, folder);
            resolve(&disk->source->dev, folder);
        }
    } else if (device->kind && device->kind->id == DOMAIN_DEVICE_CHARDEV) {
        DomainChardev *chardev = device->object;
        for (guint i = 0; i < chardev->sources->len; i++)
            resolve(&((DomainChardevSource *)chardev->sources->pdata[i])->path, folder);
    }
}

void launch_resolve_paths(Domain *domain, const char *folder)
{
    g_autofree char *absolute = g_canonicalize_filename(folder, NULL);
    resolve(&domain->os->kernel, absolute);
    resolve(&domain->os->initrd, absolute);
    for (guint i = 0; i < domain->devices.list->len; i++)
        resolve_device(domain->devices.list->pdata[i], absolute);
}

/* ---- engine */

static ConfigNode *find_run_element(const Domain *domain)
{
    for (unsigned i = 0; domain->metadata && i < config_node_count(domain->metadata); i++) {
        ConfigNode *node = domain->metadata->children->pdata[i];
        const char *colon = node->name ? strchr(node->name, ':') : NULL;
        if (!colon || strcmp(colon, ":run") != 0)
            continue;
        g_autofree char *prefix = g_strndup(node->name, (gsize)(colon - node->name));
        g_autofree char *declaration = g_strconcat("xmlns:", prefix, NULL);
        const char *uri = config_node_attribute(node, declaration);
        if (!uri)
            uri = config_node_attribute(domain->metadata, declaration);
        if (uri && strcmp(uri, LAUNCH_NAMESPACE) == 0)
            return node;
    }
    return NULL;
}

static const char *const engine_names[] = {"", "auto", "kvm", "soft", NULL};

const char *launch_engine(const Domain *domain)
{
    const ConfigNode *run = find_run_element(domain);
    const char *engine = run ? config_node_attribute(run, "engine") : NULL;
    if (engine)
        return engine_names[config_enum_find(engine_names, engine)][0] ? engine : NULL;
    if (domain->type == DOMAIN_VIRT_KVM)
        return "auto";
    return domain->type == DOMAIN_VIRT_QEMU ? "soft" : NULL;
}

bool launch_set_engine(Domain *domain, const char *engine, GError **err)
{
    if (!config_enum_find(engine_names, engine))
        return lodge_fail(err, LODGE_ERROR_INVALID, "engine '%s' is not one of: auto, kvm, soft",
                          engine);
    domain->type = strcmp(engine, "soft") == 0 ? DOMAIN_VIRT_QEMU : DOMAIN_VIRT_KVM;
    ConfigNode *run = find_run_element(domain);
    if (run) {
        config_node_set_attribute(run, "engine", engine);
    } else if (strcmp(engine, "kvm") == 0) {
        /* type='kvm' alone means auto, so that documents written for KVM run anywhere. */
        if (!domain->metadata)
            domain->metadata = config_node_new("metadata");
        run = config_node_append(domain->metadata, config_node_new("lodge:run"));
        config_node_set_attribute(run, "xmlns:lodge", LAUNCH_NAMESPACE);
        config_node_set_attribute(run, "engine", engine);
    }
    return true;
}
