/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Serial lines, consoles and channels: the host side, then the device. */
#include <string.h>

#include "launch/plan-internal.h"

#define SERIAL_LINES_MAX 4 /* COM1 to COM4 */

typedef enum SourceNeed { NEED_NOTHING, NEED_PATH } SourceNeed;

/* domain XML's type and what lodge-vmm calls it. */
typedef struct SourceRow {
    const char *type, *chardev;
    SourceNeed need;
} SourceRow;

static const SourceRow source_rows[] = {
    {"pty", "pty", NEED_NOTHING}, {"stdio", "stdio", NEED_NOTHING}, {"null", "null", NEED_NOTHING},
    {"file", "file", NEED_PATH},  {"unix", "unix", NEED_PATH},      {0},
};

static const SourceRow *find_source(const char *type)
{
    for (const SourceRow *row = source_rows; row->type; row++)
        if (strcmp(row->type, type) == 0)
            return row;
    return NULL;
}

static bool check_source(Plan *plan, const SourceRow *row, const DomainChardev *chardev,
                         const DomainChardevSource *source, const char *label)
{
    unsigned line = chardev->object.line;
    if (row->need == NEED_PATH && (!source || !source->path)) {
        plan_refuse(plan, line, label, "type='%s' needs <source path='...'/>", row->type);
        return false;
    }
    if (strcmp(row->type, "unix") == 0 && source->mode && strcmp(source->mode, "bind") != 0) {
        plan_refuse(plan, line, label, "mode='%s' is not built; use mode='bind'", source->mode);
        return false;
    }
    return true;
}

/* Adds the host side; returns its id (the caller frees it), or NULL after a refusal. */
static char *add_chardev(Plan *plan, const DomainDevice *device, const DomainChardev *chardev)
{
    g_autofree char *label = plan_device_label(device);
    const char *type = domain_chardev_type_names[chardev->type];
    const SourceRow *row = find_source(type);
    const DomainChardevSource *source = chardev->sources->len ? chardev->sources->pdata[0] : NULL;
    if (!row) {
        plan_refuse(plan, device->line, label,
                    "type='%s' is not built; use pty, stdio, file, unix or null", type);
        return NULL;
    }
    if (chardev->log)
        plan_refuse(plan, chardev->log->line, label, "<log> is not built yet; use type='file'");
    if (!check_source(plan, row, chardev, source, label))
        return NULL;
    bool terminal = plan->options->terminal_console && !plan->terminal_taken &&
                    strcmp(type, "pty") == 0 && strcmp(device->kind->element, "channel") != 0;
    char *id = g_strdup_printf("chr%u", plan->n_chardevs++);
    PlanItem item = plan_item(plan, "--chardev", terminal ? "stdio" : row->chardev);
    plan_item_set(&item, "id", id);
    if (row->need == NEED_PATH)
        plan_item_set(&item, "path", source->path);
    if (strcmp(type, "file") == 0 && source->append)
        plan_item_set(&item, "append", source->append);
    plan_item_done(&item);
    plan->terminal_taken |= terminal || strcmp(type, "stdio") == 0;
    return id;
}

static void add_isa_serial(Plan *plan, const DomainDevice *device, const DomainChardev *chardev)
{
    g_autofree char *label = plan_device_label(device);
    const DomainChardevTarget *target = chardev->target;
    int64_t port = target && target->port >= 0 ? target->port : (int64_t)plan->n_serials;
    if (port >= SERIAL_LINES_MAX) {
        plan_refuse(plan, device->line, label, "port='%d': the board has ports 0 to %d", (int)port,
                    SERIAL_LINES_MAX - 1);
        return;
    }
    g_autofree char *id = add_chardev(plan, device, chardev);
    if (!id)
        return;
    PlanItem item = plan_item(plan, "--device", "isa-serial");
    plan_item_set(&item, "chardev", id);
    plan_item_set_uint(&item, "index", (uint64_t)port);
    plan_item_done(&item);
    plan->n_serials++;
}

void plan_serial(Plan *plan, const DomainDevice *device)
{
    const DomainChardev *chardev = device->object;
    const char *type = chardev->target ? chardev->target->type : NULL;
    const char *model =
        chardev->target && chardev->target->model ? chardev->target->model->name : NULL;
    g_autofree char *label = plan_device_label(device);
    if ((type && strcmp(type, "isa-serial") != 0) || (model && strcmp(model, "isa-serial") != 0)) {
        plan_refuse(plan, device->line, label, "target '%s' is not built; use isa-serial",
                    type && strcmp(type, "isa-serial") != 0 ? type : model);
        return;
    }
    add_isa_serial(plan, device, chardev);
}

/* ---- virtio ports */

static void ensure_virtio_serial(Plan *plan)
{
    if (plan->n_virtio_serials > 0)
        return;
    PlanItem item = plan_item(plan, "--device", "virtio-serial");
    plan_item_done(&item);
    plan->n_virtio_serials++;
}

void plan_virtio_serial_controller(Plan *plan, const DomainDevice *device)
{
    const DomainController *controller = device->object;
    g_autofree char *label = plan_device_label(device);
    if (controller->index > 0 || plan->n_virtio_serials > 0) {
        plan_refuse(plan, device->line, label,
                    "more than one is not built; put all ports on index='0'");
        return;
    }
    if (controller->driver)
        plan_warn(plan, controller->driver->line, label, "its driver options are not applied");
    PlanItem item = plan_item(plan, "--device", "virtio-serial");
    if (controller->ports > 0)
        plan_item_set_uint(&item, "max-ports", (uint64_t)controller->ports);
    plan_pci_address(plan, &item, controller->address, label);
    plan_item_done(&item);
    plan->n_virtio_serials++;
}

static void add_virtio_port(Plan *plan, const DomainDevice *device, const DomainChardev *chardev,
                            const char *type)
{
    ensure_virtio_serial(plan);
    g_autofree char *id = add_chardev(plan, device, chardev);
    if (!id)
        return;
    PlanItem item = plan_item(plan, "--device", type);
    plan_item_set(&item, "chardev", id);
    if (chardev->target && chardev->target->name)
        plan_item_set(&item, "name", chardev->target->name);
    const DomainAddress *address = chardev->address;
    uint64_t port;
    if (address && address->port && config_parse_uint(address->port, &port))
        plan_item_set_uint(&item, "nr", port);
    plan_item_done(&item);
}

static bool has_serial(const Domain *domain)
{
    for (guint i = 0; i < domain->devices.list->len; i++) {
        const DomainDevice *device = domain->devices.list->pdata[i];
        if (device->kind && strcmp(device->kind->element, "serial") == 0)
            return true;
    }
    return false;
}

void plan_console(Plan *plan, const DomainDevice *device)
{
    const DomainChardev *chardev = device->object;
    const char *type = chardev->target && chardev->target->type ? chardev->target->type : "serial";
    g_autofree char *label = plan_device_label(device);
    if (strcmp(type, "serial") == 0) {
        /* libvirt writes the first serial line a second time as a console. */
        if (!has_serial(plan->domain))
            add_isa_serial(plan, device, chardev);
        else
            plan_note(plan, device->line, label, "the same line as the first <serial>");
    } else if (strcmp(type, "virtio") == 0) {
        add_virtio_port(plan, device, chardev, "virtconsole");
    } else {
        plan_refuse(plan, device->line, label,
                    "target type='%s' is not built; use serial or virtio", type);
    }
}

void plan_channel(Plan *plan, const DomainDevice *device)
{
    const DomainChardev *chardev = device->object;
    const char *type = chardev->target ? chardev->target->type : NULL;
    g_autofree char *label = plan_device_label(device);
    if (!type || strcmp(type, "virtio") != 0)
        plan_refuse(plan, device->line, label, "target type='%s' is not built; use virtio",
                    type ? type : "");
    else
        add_virtio_port(plan, device, chardev, "virtserialport");
}
