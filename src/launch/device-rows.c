/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One row a device kind: what it becomes, or why it is refused. */
#include <stdio.h>
#include <string.h>

#include "launch/plan-internal.h"

/* ---- labels and addresses */

static void append_attribute(GString *label, const char *name, const char *value)
{
    if (value)
        g_string_append_printf(label, " %s='%.40s'", name, value);
}

static void label_generic(GString *label, const ConfigNode *node)
{
    static const char *const telling[] = {"model", "type", "mode", "bus"};
    const ConfigNode *model = config_node_child(node, "model");
    for (unsigned i = 0; i < G_N_ELEMENTS(telling); i++)
        append_attribute(label, telling[i], config_node_attribute(node, telling[i]));
    if (model)
        append_attribute(label, "model", config_node_attribute(model, "type"));
}

char *plan_device_label(const DomainDevice *device)
{
    GString *label = g_string_new("<");
    g_string_append(label, device->kind->element);
    if (device->kind->id == DOMAIN_DEVICE_DISK) {
        const DomainDisk *disk = device->object;
        append_attribute(label, "device",
                         disk->device ? domain_disk_device_names[disk->device] : NULL);
        append_attribute(label, "dev", disk->target->dev);
        append_attribute(label, "bus", disk->target->bus);
    } else if (device->kind->id == DOMAIN_DEVICE_CONTROLLER) {
        const DomainController *controller = device->object;
        append_attribute(label, "type", controller->type);
        append_attribute(label, "model", controller->model);
    } else if (device->kind->id == DOMAIN_DEVICE_INTERFACE) {
        const DomainInterface *nic = device->object;
        append_attribute(label, "type", domain_interface_type_names[nic->type]);
        append_attribute(label, "model", nic->model ? nic->model->value : NULL);
    } else if (device->kind->id == DOMAIN_DEVICE_CHARDEV) {
        const DomainChardev *chardev = device->object;
        append_attribute(label, "type", domain_chardev_type_names[chardev->type]);
        append_attribute(label, "name", chardev->target ? chardev->target->name : NULL);
    } else if (device->kind->id == DOMAIN_DEVICE_BALLOON) {
        append_attribute(label, "model", ((const DomainBalloon *)device->object)->model);
    } else if (device->kind->id == DOMAIN_DEVICE_RNG) {
        append_attribute(label, "model", ((const DomainRng *)device->object)->model);
    } else {
        label_generic(label, device->node);
    }
    g_string_append_c(label, '>');
    return g_string_free(label, FALSE);
}

static bool has_root_port(const Domain *domain, unsigned bus)
{
    for (guint i = 0; i < domain->devices.list->len; i++) {
        const DomainDevice *device = domain->devices.list->pdata[i];
        const DomainController *controller = device->object;
        if (device->kind && device->kind->id == DOMAIN_DEVICE_CONTROLLER &&
            strcmp(controller->type, "pci") == 0 && controller->index == (int64_t)bus &&
            g_strcmp0(controller->model, "pcie-root-port") == 0)
            return true;
    }
    return false;
}

void plan_pci_address(Plan *plan, PlanItem *item, const DomainAddress *address, const char *what)
{
    DomainPciAddress pci;
    if (!domain_pci_address(address, &pci))
        return;
    if (pci.domain != 0) {
        plan_refuse(plan, address->object.line, what, "the board has PCI domain 0 only");
    } else if (pci.bus != 0 && !has_root_port(plan->domain, pci.bus)) {
        plan_refuse(plan, address->object.line, what,
                    "bus 0x%02x: there is no <controller type='pci' index='%u' "
                    "model='pcie-root-port'/>; add it, or leave out the address",
                    pci.bus, pci.bus);
    } else {
        char text[16];
        snprintf(text, sizeof(text), "%02x:%02x.%x", pci.bus & 0xff, pci.slot & 0x1f,
                 pci.function & 7);
        plan_item_set(item, "addr", text);
    }
}

/* ---- disk */

typedef struct Refusal {
    bool applies;
    const char *reason;
} Refusal;

static bool refuse_any(Plan *plan, unsigned line, const char *label, const Refusal *refusals,
                       unsigned count)
{
    bool any = false;
    for (unsigned i = 0; i < count; i++) {
        if (refusals[i].applies) {
            plan_refuse(plan, line, label, "%s", refusals[i].reason);
            any = true;
        }
    }
    return any;
}

static bool is_one_of(const char *text, const char *const *list)
{
    for (; *list; list++)
        if (strcmp(text, *list) == 0)
            return true;
    return false;
}

static bool disk_is_refused(Plan *plan, const DomainDevice *device, const char *label)
{
    static const char *const formats[] = {"raw", "qcow2", NULL};
    const DomainDisk *disk = device->object;
    const DomainDiskDriver *driver = disk->driver;
    const char *kind = domain_disk_device_names[disk->device];
    const char *type = domain_disk_type_names[disk->type];
    const char *bus = disk->target->bus ? disk->target->bus : "";
    const char *path =
        disk->source ? (disk->source->file ? disk->source->file : disk->source->dev) : NULL;
    bool plain = !*kind || strcmp(kind, "disk") == 0;
    bool local = !*type || strcmp(type, "file") == 0 || strcmp(type, "block") == 0;
    bool virtio =
        strcmp(bus, "virtio") == 0 || (!*bus && g_str_has_prefix(disk->target->dev, "vd"));
    g_autofree char *unknown_format = g_strdup_printf(
        "image format '%.40s' is not built yet; use raw or qcow2 (lodge-img converts)",
        driver && driver->type ? driver->type : "");
    const Refusal refusals[] = {
        {!plain, "only device='disk' is built yet; remove the drive from the document"},
        {plain && !virtio, "this bus is not built yet; use bus='virtio' (target dev='vda' ...)"},
        {plain && !local, "disks that are not files or block devices are not built yet"},
        {plain && local && !path, "there is no <source file='...'/>"},
        {driver && driver->type && !is_one_of(driver->type, formats),
         unknown_format},
        {disk->model && strcmp(disk->model, "virtio") != 0 &&
             strcmp(disk->model, "virtio-non-transitional") != 0,
         "only modern virtio is built; use model='virtio'"},
        {disk->encryption || (disk->source && disk->source->encryption),
         "encrypted images are not built yet"},
        {disk->source && disk->source->slices, "slices of files are not built yet"},
        {disk->source && disk->source->reservations, "persistent reservations are not built"},
        {disk->transient != NULL, "<transient/> is not built yet; put an overlay on the image"},
        {disk->shareable, "disks shared by running guests are not built yet"},
        {disk->iotune != NULL, "I/O limits are not built yet"},
        {disk->mirror != NULL, "a mirror cannot be asked for in the document"},
        {driver && g_strcmp0(driver->copy_on_read, "on") == 0, "copy on read is not built yet"},
        {disk->wwn || disk->vendor || disk->product,
         "a virtio disk has no wwn, vendor or product; use <serial>"},
    };
    return refuse_any(plan, device->line, label, refusals, G_N_ELEMENTS(refusals));
}

static void disk_warnings(Plan *plan, const DomainDevice *device, const char *label)
{
    const DomainDisk *disk = device->object;
    const DomainDiskDriver *driver = disk->driver;
    if (disk->geometry)
        plan_warn(plan, disk->geometry->line, label, "a virtio disk has no geometry");
    if (!driver)
        return;
    if (driver->io)
        plan_note(plan, driver->object.line, label,
                  "io='%s': Lodge picks io_uring or threads itself", driver->io);
    if (driver->error_policy || driver->rerror_policy)
        plan_warn(plan, driver->object.line, label, "errors are always reported to the guest");
    if (driver->detect_zeroes && strcmp(driver->detect_zeroes, "off") != 0)
        plan_warn(plan, driver->object.line, label, "zeroes are not detected yet");
    if (driver->iothread >= 0)
        plan_note(plan, driver->object.line, label,
                  "iothread: disks have their own threads anyway");
}

static void set_blockio(PlanItem *item, const ConfigNode *blockio)
{
    static const struct {
        const char *attribute, *option;
    } sizes[] = {{"logical_block_size", "logical-block-size"},
                 {"physical_block_size", "physical-block-size"}};
    for (unsigned i = 0; blockio && i < G_N_ELEMENTS(sizes); i++) {
        const char *value = config_node_attribute(blockio, sizes[i].attribute);
        if (value)
            plan_item_set(item, sizes[i].option, value);
    }
}

static void plan_disk(Plan *plan, const DomainDevice *device)
{
    const DomainDisk *disk = device->object;
    const DomainDiskDriver *driver = disk->driver;
    g_autofree char *label = plan_device_label(device);
    if (disk_is_refused(plan, device, label))
        return;
    disk_warnings(plan, device, label);
    g_autofree char *id = g_strdup_printf("drive%u", plan->n_drives++);
    /* Without a type libvirt takes raw: a guest could write any format's header into a raw disk. */
    PlanItem drive = plan_item(plan, "--drive", driver && driver->type ? driver->type : "raw");
    plan_item_set(&drive, "id", id);
    plan_item_set(&drive, "file", disk->source->file ? disk->source->file : disk->source->dev);
    if (disk->readonly)
        plan_item_set(&drive, "readonly", "on");
    if (driver && driver->cache && strcmp(driver->cache, "default") != 0)
        plan_item_set(&drive, "cache", driver->cache);
    if (driver && driver->discard)
        plan_item_set(&drive, "discard", driver->discard);
    plan_item_done(&drive);

    PlanItem item = plan_item(plan, "--device", "virtio-blk");
    plan_item_set(&item, "drive", id);
    if (disk->serial)
        plan_item_set(&item, "serial", disk->serial);
    if (driver && driver->queues > 0)
        plan_item_set_uint(&item, "num-queues", (uint64_t)driver->queues);
    if (driver && driver->queue_size > 0)
        plan_item_set_uint(&item, "queue-size", (uint64_t)driver->queue_size);
    set_blockio(&item, disk->blockio);
    plan_pci_address(plan, &item, disk->address, label);
    plan_item_done(&item);
}

/* ---- controller */

typedef enum ControllerVerdict {
    CONTROLLER_BOARD,  /* the board has it anyway */
    CONTROLLER_UNUSED, /* left out: nothing that is built could be attached */
    CONTROLLER_VIRTIO_SERIAL,
    CONTROLLER_REFUSED,
} ControllerVerdict;

typedef struct ControllerRow {
    const char *type, *model; /* model NULL: any */
    ControllerVerdict verdict;
    const char *reason;
} ControllerRow;

/* libvirt itself adds PCI, SATA and USB controllers to every q35 guest. */
static const ControllerRow controller_rows[] = {
    {"pci", "pcie-root", CONTROLLER_BOARD, "the board's root bus"},
    {"pci", "pcie-root-port", CONTROLLER_BOARD, "made before all other devices: plan_root_port"},
    {"pci", NULL, CONTROLLER_REFUSED, "this kind of PCI bridge is not built; use pcie-root only"},
    {"virtio-serial", NULL, CONTROLLER_VIRTIO_SERIAL, NULL},
    {"sata", NULL, CONTROLLER_UNUSED,
     "no SATA controller is built yet, and SATA disks are refused"},
    {"usb", "none", CONTROLLER_BOARD, "the board has no USB"},
    {"usb", NULL, CONTROLLER_UNUSED, "no USB controller is built yet, and USB devices are refused"},
    {"ide", NULL, CONTROLLER_REFUSED, "IDE is not built; use bus='virtio' for disks"},
    {"scsi", NULL, CONTROLLER_REFUSED, "SCSI is not built yet; use bus='virtio' for disks"},
    {"fdc", NULL, CONTROLLER_REFUSED, "floppies are not built"},
    {"ccid", NULL, CONTROLLER_REFUSED, "smart cards are not built"},
    {"xenbus", NULL, CONTROLLER_REFUSED, "Xen's bus is not built"},
    {NULL, NULL, CONTROLLER_REFUSED, "this controller is not known"},
};

/* What sits on a port's bus needs the port first. */
static void plan_root_port(Plan *plan, const DomainDevice *device)
{
    const DomainController *controller = device->object;
    g_autofree char *label = plan_device_label(device);
    if (strcmp(controller->type, "pci") != 0 || g_strcmp0(controller->model, "pcie-root-port") != 0)
        return;
    if (controller->index > 255) {
        plan_refuse(plan, device->line, label, "index='%d': PCI has buses 0 to 255",
                    (int)controller->index);
        return;
    }
    PlanItem item = plan_item(plan, "--device", "pcie-root-port");
    if (controller->index > 0)
        plan_item_set_uint(&item, "bus", (uint64_t)controller->index);
    plan_pci_address(plan, &item, controller->address, label);
    plan_item_done(&item);
}

static void plan_controller(Plan *plan, const DomainDevice *device)
{
    const DomainController *controller = device->object;
    g_autofree char *label = plan_device_label(device);
    const ControllerRow *row = controller_rows;
    while (row->type && (strcmp(row->type, controller->type) != 0 ||
                         (row->model && g_strcmp0(row->model, controller->model) != 0)))
        row++;
    switch (row->verdict) {
    case CONTROLLER_BOARD:
        break;
    case CONTROLLER_UNUSED:
        plan_note(plan, device->line, label, "left out: %s", row->reason);
        break;
    case CONTROLLER_VIRTIO_SERIAL:
        plan_virtio_serial_controller(plan, device);
        break;
    case CONTROLLER_REFUSED:
        plan_refuse(plan, device->line, label, "%s", row->reason);
        break;
    }
}

/* ---- interface */

static bool interface_is_refused(Plan *plan, const DomainDevice *device, const char *label)
{
    static const char *const models[] = {"virtio", "virtio-non-transitional", NULL};
    const DomainInterface *nic = device->object;
    const char *type = domain_interface_type_names[nic->type];
    bool user = strcmp(type, "user") == 0;
    const char *backend = nic->backend ? config_node_attribute(nic->backend, "type") : NULL;
    bool network = strcmp(type, "network") == 0 || strcmp(type, "bridge") == 0;
    const Refusal refusals[] = {
        {network, "host networks come later; use type='user' (or `lodge run --net user`)"},
        {!user && !network, "only type='user' is built yet"},
        {nic->model && nic->model->value && !is_one_of(nic->model->value, models),
         "this card is not built yet; use <model type='virtio'/>"},
        {backend && strcmp(backend, "default") != 0,
         "only the built-in backend is there (no passt)"},
        {user && nic->forwards->len > 0, "port forwarding is not built yet"},
        {user && (nic->ips->len > 0 || nic->routes->len > 0),
         "own addresses in type='user' are not built yet"},
        {nic->link && g_strcmp0(nic->link->value, "down") == 0,
         "<link state='down'/> is not built yet"},
        {nic->bandwidth != NULL, "bandwidth limits are not built yet"},
        {nic->filterref != NULL, "network filters are not built yet"},
        {nic->vlan != NULL, "VLAN tags are not built yet"},
        {nic->virtualport != NULL, "virtual ports are not built yet"},
        {nic->guest != NULL || nic->teaming != NULL || nic->script != NULL,
         "guest, teaming and script are not built"},
    };
    return refuse_any(plan, device->line, label, refusals, G_N_ELEMENTS(refusals));
}

static void plan_interface(Plan *plan, const DomainDevice *device)
{
    const DomainInterface *nic = device->object;
    g_autofree char *label = plan_device_label(device);
    if (interface_is_refused(plan, device, label))
        return;
    if (nic->driver || nic->tune || nic->coalesce || nic->rom)
        plan_warn(plan, device->line, label, "driver, tune, coalesce and rom are not applied");
    g_autofree char *id = g_strdup_printf("net%u", plan->n_netdevs++);
    PlanItem netdev = plan_item(plan, "--netdev", "user");
    plan_item_set(&netdev, "id", id);
    plan_item_done(&netdev);
    PlanItem item = plan_item(plan, "--device", "virtio-net");
    plan_item_set(&item, "netdev", id);
    if (nic->mac)
        plan_item_set(&item, "mac", nic->mac->address);
    const char *mtu = nic->mtu ? config_node_attribute(nic->mtu, "size") : NULL;
    if (mtu)
        plan_item_set(&item, "mtu", mtu);
    plan_pci_address(plan, &item, nic->address, label);
    plan_item_done(&item);
}

/* ---- memballoon, rng */

static void plan_balloon(Plan *plan, const DomainDevice *device)
{
    const DomainBalloon *balloon = device->object;
    g_autofree char *label = plan_device_label(device);
    if (strcmp(balloon->model, "none") == 0)
        return;
    if (strcmp(balloon->model, "virtio") != 0 &&
        strcmp(balloon->model, "virtio-non-transitional") != 0) {
        plan_refuse(plan, device->line, label, "this model is not built; use virtio or none");
        return;
    }
    if (balloon->driver)
        plan_warn(plan, balloon->driver->line, label, "its driver options are not applied");
    PlanItem item = plan_item(plan, "--device", "virtio-balloon");
    if (balloon->autodeflate)
        plan_item_set(&item, "deflate-on-oom", balloon->autodeflate);
    if (balloon->free_page_reporting)
        plan_item_set(&item, "free-page-reporting", balloon->free_page_reporting);
    if (balloon->stats && balloon->stats->period_s > 0)
        plan_item_set_uint(&item, "stats-interval", (uint64_t)balloon->stats->period_s);
    plan_pci_address(plan, &item, balloon->address, label);
    plan_item_done(&item);
}

static void plan_rng(Plan *plan, const DomainDevice *device)
{
    static const char *const sources[] = {"/dev/urandom", "/dev/random", NULL};
    const DomainRng *rng = device->object;
    const DomainRngBackend *backend = rng->backend;
    g_autofree char *label = plan_device_label(device);
    bool builtin = strcmp(backend->model, "builtin") == 0;
    const Refusal refusals[] = {
        {strcmp(rng->model, "virtio") != 0 && strcmp(rng->model, "virtio-non-transitional") != 0,
         "this model is not built; use model='virtio'"},
        {!builtin && strcmp(backend->model, "random") != 0,
         "this backend is not built; use <backend model='random'>/dev/urandom</backend>"},
        {!builtin && backend->path && !is_one_of(backend->path, sources),
         "only /dev/urandom and /dev/random are sources; the bytes are the kernel's getrandom()"},
    };
    if (refuse_any(plan, device->line, label, refusals, G_N_ELEMENTS(refusals)))
        return;
    if (rng->driver)
        plan_warn(plan, rng->driver->line, label, "its driver options are not applied");
    PlanItem item = plan_item(plan, "--device", "virtio-rng");
    const char *bytes = rng->rate ? config_node_attribute(rng->rate, "bytes") : NULL;
    const char *period = rng->rate ? config_node_attribute(rng->rate, "period") : NULL;
    if (bytes)
        plan_item_set(&item, "max-bytes", bytes);
    if (period)
        plan_item_set(&item, "period", period);
    plan_pci_address(plan, &item, rng->address, label);
    plan_item_done(&item);
}

/* ---- kept as nodes: refused, but for what means "none" or needs a display to mean anything */

static void refuse_generic(Plan *plan, const DomainDevice *device, const char *reason)
{
    g_autofree char *label = plan_device_label(device);
    plan_refuse(plan, device->line, label, "%s", reason);
}

static void plan_input(Plan *plan, const DomainDevice *device)
{
    const char *bus = config_node_attribute(device->node, "bus");
    g_autofree char *label = plan_device_label(device);
    /* libvirt adds a PS/2 keyboard and mouse to every x86 guest. */
    if (!bus || strcmp(bus, "ps2") == 0)
        plan_note(plan, device->line, label,
                  "left out: without a display nothing could type on it");
    else
        plan_refuse(plan, device->line, label, "input devices are not built yet");
}

static void plan_video(Plan *plan, const DomainDevice *device)
{
    const ConfigNode *model = config_node_child(device->node, "model");
    const char *type = model ? config_node_attribute(model, "type") : NULL;
    if (!type || strcmp(type, "none") != 0)
        refuse_generic(plan, device, "displays are not built yet; use the serial console");
}

static void plan_audio(Plan *plan, const DomainDevice *device)
{
    const char *type = config_node_attribute(device->node, "type");
    if (!type || strcmp(type, "none") != 0)
        refuse_generic(plan, device, "sound is not built yet");
}

static void plan_iommu(Plan *plan, const DomainDevice *device)
{
    refuse_generic(plan, device, "a guest IOMMU is not built yet");
}

typedef struct DeviceRow {
    const char *element;
    void (*plan)(Plan *plan, const DomainDevice *device); /* NULL: refused */
    const char *reason;
} DeviceRow;

/* In the order of the guest's devices: controllers before what is attached to them. */
static const DeviceRow device_rows[] = {
    {"controller", plan_root_port, NULL},
    {"controller", plan_controller, NULL},
    {"disk", plan_disk, NULL},
    {"interface", plan_interface, NULL},
    {"serial", plan_serial, NULL},
    {"console", plan_console, NULL},
    {"channel", plan_channel, NULL},
    {"memballoon", plan_balloon, NULL},
    {"rng", plan_rng, NULL},
    {"input", plan_input, NULL},
    {"video", plan_video, NULL},
    {"audio", plan_audio, NULL},
    {"iommu", plan_iommu, NULL},
    {"lease", NULL, "lock leases are not built yet"},
    {"filesystem", NULL, "shared folders are not built yet"},
    {"smartcard", NULL, "smart cards are not built"},
    {"parallel", NULL, "parallel ports are not built; use <serial>"},
    {"tpm", NULL, "a TPM is not built yet"},
    {"graphics", NULL, "displays are not built yet; use the serial console"},
    {"sound", NULL, "sound is not built yet"},
    {"hostdev", NULL, "host devices cannot be given to a guest yet"},
    {"redirdev", NULL, "USB redirection is not built yet"},
    {"redirfilter", NULL, "USB redirection is not built yet"},
    {"hub", NULL, "USB is not built yet"},
    {"watchdog", NULL, "watchdogs are not built yet"},
    {"nvram", NULL, "an x86 guest has no such device"},
    {"panic", NULL, "panic devices are not built yet"},
    {"shmem", NULL, "shared memory is not built yet"},
    {"memory", NULL, "memory modules are not built yet"},
    {"vsock", NULL, "vsock is not built yet"},
    {"crypto", NULL, "crypto devices are not built yet"},
    {0},
};

static void plan_emulator(Plan *plan)
{
    const char *emulator = plan->domain->devices.emulator;
    g_autofree char *base = emulator ? g_path_get_basename(emulator) : NULL;
    if (base && strcmp(base, "lodge-vmm") != 0)
        plan_note(plan, 0, "devices/emulator", "'%s' is not used: Lodge runs its own lodge-vmm",
                  emulator);
}

void plan_devices(Plan *plan)
{
    const GPtrArray *list = plan->domain->devices.list;
    plan_emulator(plan);
    for (const DeviceRow *row = device_rows; row->element; row++) {
        for (guint i = 0; i < list->len; i++) {
            const DomainDevice *device = list->pdata[i];
            if (!device->kind || strcmp(device->kind->element, row->element) != 0)
                continue;
            if (row->plan)
                row->plan(plan, device);
            else
                refuse_generic(plan, device, row->reason);
        }
    }
}
