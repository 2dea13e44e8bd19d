/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "config/domain.h"

#include <string.h>

#include "base/error.h"

#define DOMAIN_DEVICE_KINDS_MAX 64   /* rows of domain_device_kinds; the unit test counts them */
#define DOMAIN_DEVICES_MAX      1024 /* of one guest */
#define DOMAIN_NAME_MAX         200  /* leaves room for suffixes within NAME_MAX */

/* ---- devices */

const DomainDeviceKind *domain_device_kind_find(const char *element)
{
    for (const DomainDeviceKind *kind = domain_device_kinds; kind->element; kind++)
        if (strcmp(kind->element, element) == 0)
            return kind;
    return NULL;
}

static void device_free(gpointer data)
{
    DomainDevice *device = data;
    if (device->object)
        config_object_free(device->kind->schema, device->object);
    config_node_free(device->node);
    g_free(device);
}

static void devices_init(void *slot)
{
    DomainDevices *devices = slot;
    devices->list = g_ptr_array_new_with_free_func(device_free);
}

static void devices_clear(void *slot)
{
    DomainDevices *devices = slot;
    g_clear_pointer(&devices->list, g_ptr_array_unref);
    g_clear_pointer(&devices->emulator, g_free);
    g_clear_pointer(&devices->rest, config_node_free);
}

static bool device_parse(DomainDevices *devices, const ConfigNode *parent, const ConfigNode *child,
                         unsigned nth, int *after, ConfigContext *ctx, GError **err)
{
    const DomainDeviceKind *kind = child->name ? domain_device_kind_find(child->name) : NULL;
    DomainDevice *device = g_new0(DomainDevice, 1);
    device->kind = kind;
    device->line = child->line;
    device->after = *after;
    g_ptr_array_add(devices->list, device);
    if (kind)
        *after = (int)(kind - domain_device_kinds);
    else
        config_note_unknown(ctx, parent, child->name ? child->name : "text", child->line);
    if (!kind || !kind->schema) {
        device->node = config_node_copy(child);
        return true;
    }
    size_t mark = config_path_push(ctx, child->name, nth);
    device->object = config_object_parse(kind->schema, child, ctx, err);
    config_path_pop(ctx, mark);
    return device->object != NULL;
}

static bool emulator_parse(DomainDevices *devices, const ConfigNode *node, const ConfigNode *child,
                           ConfigContext *ctx, GError **err)
{
    if (devices->emulator)
        return config_invalid(ctx, child->line, err,
                              "emulator: this element may be given only once");
    devices->emulator = g_strdup(child->text ? child->text : "");
    if (!child->attributes && !child->children)
        return true;
    devices->rest = config_node_copy(child);
    config_note_unknown(ctx, node, "emulator", child->line);
    return true;
}

static bool devices_parse(void *slot, const ConfigNode *node, ConfigContext *ctx, GError **err)
{
    DomainDevices *devices = slot;
    unsigned seen[DOMAIN_DEVICE_KINDS_MAX] = {0};
    int after = -1;
    for (guint i = 0; node->attributes && i < node->attributes->len; i++)
        return config_invalid(ctx, node->line, err, "attribute '%s' is not allowed here",
                              g_array_index(node->attributes, ConfigAttribute, i).name);
    for (unsigned i = 0; i < config_node_count(node); i++) {
        const ConfigNode *child = config_node_nth(node, i);
        if (child->name && strcmp(child->name, "emulator") == 0) {
            if (!emulator_parse(devices, node, child, ctx, err))
                return false;
            continue;
        }
        if (devices->list->len >= DOMAIN_DEVICES_MAX)
            return config_invalid(ctx, child->line, err, "more than %d devices",
                                  DOMAIN_DEVICES_MAX);
        const DomainDeviceKind *kind = child->name ? domain_device_kind_find(child->name) : NULL;
        unsigned nth = kind ? ++seen[kind - domain_device_kinds] : 0;
        if (!device_parse(devices, node, child, nth, &after, ctx, err))
            return false;
    }
    return true;
}

static ConfigNode *device_format(const DomainDevice *device)
{
    if (device->object)
        return config_object_format(device->kind->schema, device->kind->element, device->object);
    return config_node_copy(device->node);
}

static void format_group(ConfigNode *node, const DomainDevices *devices, int row)
{
    for (guint i = 0; i < devices->list->len; i++) {
        const DomainDevice *device = devices->list->pdata[i];
        if (row >= 0 && device->kind == &domain_device_kinds[row])
            config_node_append(node, device_format(device));
    }
    for (guint i = 0; i < devices->list->len; i++) {
        const DomainDevice *device = devices->list->pdata[i];
        if (!device->kind && device->after == row)
            config_node_append(node, device_format(device));
    }
}

static ConfigNode *devices_format(const void *slot)
{
    const DomainDevices *devices = slot;
    ConfigNode *node = config_node_new("devices");
    if (devices->emulator) {
        ConfigNode *emulator = config_node_append(
            node, devices->rest ? config_node_copy(devices->rest) : config_node_new("emulator"));
        config_node_set_text(emulator, devices->emulator);
    }
    format_group(node, devices, -1);
    for (int row = 0; domain_device_kinds[row].element; row++)
        format_group(node, devices, row);
    return node;
}

const ConfigCustom domain_devices_custom = {devices_init, devices_clear, devices_parse,
                                            devices_format};

void *domain_add_device(Domain *domain, const char *element)
{
    const DomainDeviceKind *kind = domain_device_kind_find(element);
    g_return_val_if_fail(kind && kind->schema, NULL);
    DomainDevice *device = g_new0(DomainDevice, 1);
    device->kind = kind;
    device->object = config_object_new(kind->schema);
    g_ptr_array_add(domain->devices.list, device);
    return device->object;
}

void domain_remove_device(Domain *domain, const DomainDevice *device)
{
    g_ptr_array_remove(domain->devices.list, (gpointer)(uintptr_t)device);
}

/* ---- the domain */

bool domain_check_name(const char *name, GError **err)
{
    bool blank = true;
    for (const char *p = name; *p; p++) {
        if (*p == '/' || (unsigned char)*p < 0x20 || *p == 0x7f)
            return lodge_fail(err, LODGE_ERROR_INVALID,
                              "name: '/' and control characters are not allowed in a guest's name");
        blank = blank && *p == ' ';
    }
    if (blank)
        return lodge_fail(err, LODGE_ERROR_INVALID, "name: a guest's name may not be empty");
    if (strlen(name) > DOMAIN_NAME_MAX || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "name: '%.32s' is not a guest's name (at most %d bytes, not . or ..)",
                          name, DOMAIN_NAME_MAX);
    return true;
}

static void set_defaults(Domain *domain)
{
    if (!domain->uuid) {
        domain->uuid = g_uuid_string_random();
        domain->uuid_generated = true;
    }
    if (!domain->vcpu)
        domain->vcpu = config_object_new(&domain_vcpu_schema);
    if (domain->vcpu->count < 0)
        domain->vcpu->count = 1;
    if (!domain->current_memory) {
        domain->current_memory = config_object_new(&domain_memory_schema);
        domain->current_memory->kib = domain->memory->kib;
    }
}

static Domain *domain_from_node(const ConfigNode *node, const char *file, GError **err)
{
    if (strcmp(node->name, "domain") != 0) {
        lodge_fail(err, LODGE_ERROR_XML,
                   "%s:%u: the document's element is <%.64s>; a guest is described by <domain>",
                   file, node->line, node->name);
        return NULL;
    }
    ConfigContext ctx = {file, g_string_new("domain"), config_unknown_list_new()};
    Domain *domain = config_object_parse(&domain_schema, node, &ctx, err);
    g_string_free(ctx.path, TRUE);
    if (!domain) {
        g_ptr_array_unref(ctx.unknown);
        return NULL;
    }
    domain->file = g_strdup(file);
    domain->unknown = ctx.unknown;
    set_defaults(domain);
    return domain;
}

Domain *domain_parse(const char *xml, size_t size, const char *file, GError **err)
{
    g_autoptr(ConfigNode) node = config_node_parse(xml, size, file, err);
    return node ? domain_from_node(node, file, err) : NULL;
}

Domain *domain_parse_file(const char *path, GError **err)
{
    g_autoptr(ConfigNode) node = config_node_parse_file(path, err);
    const char *shown = strcmp(path, "-") == 0 ? "standard input" : path;
    return node ? domain_from_node(node, shown, err) : NULL;
}

Domain *domain_new(const char *name, uint64_t memory_kib, unsigned n_vcpus)
{
    Domain *domain = config_object_new(&domain_schema);
    domain->type = DOMAIN_VIRT_KVM;
    domain->name = g_strdup(name);
    domain->memory = config_object_new(&domain_memory_schema);
    domain->memory->kib = memory_kib;
    domain->vcpu = config_object_new(&domain_vcpu_schema);
    domain->vcpu->count = n_vcpus;
    domain->os = config_object_new(&domain_os_schema);
    domain->os->type = config_object_new(&domain_os_type_schema);
    domain->os->type->arch = g_strdup("x86_64");
    domain->os->type->machine = g_strdup("q35");
    domain->os->type->type = g_strdup("hvm");
    domain->unknown = config_unknown_list_new();
    domain->file = g_strdup("command line");
    set_defaults(domain);
    return domain;
}

void domain_free(Domain *domain)
{
    if (!domain)
        return;
    g_free(domain->file);
    g_clear_pointer(&domain->unknown, g_ptr_array_unref);
    config_object_free(&domain_schema, domain);
}

char *domain_format(const Domain *domain)
{
    g_autoptr(ConfigNode) node = config_object_format(&domain_schema, "domain", domain);
    return config_node_to_string(node);
}

void domain_uuid_bytes(const Domain *domain, uint8_t bytes[16])
{
    unsigned n = 0;
    for (const char *p = domain->uuid; *p && n < 32; p++) {
        int digit = g_ascii_xdigit_value(*p);
        if (digit < 0)
            continue;
        bytes[n / 2] = (uint8_t)(n % 2 ? bytes[n / 2] | digit : digit << 4);
        n++;
    }
}
