/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The tables of the devices; order and names: libvirt's formatdomain. */
#include <string.h>

#include "config/domain.h"

#define F(struct_, member, name, kind, ...) CONFIG_FIELD(struct_, member, name, kind, __VA_ARGS__)
#define STR(struct_, member, name)          CONFIG_FIELD(struct_, member, name, FIELD_STRING, )
#define OBJECT(struct_, member, name, schema, ...)                                                 \
    CONFIG_FIELD(struct_, member, name, FIELD_OBJECT, .detail = &schema, __VA_ARGS__)
#define NODE(struct_, member, name) CONFIG_FIELD(struct_, member, name, FIELD_NODE, )
#define ENUM(struct_, member, name, list, ...)                                                     \
    CONFIG_FIELD(struct_, member, name, FIELD_ENUM, .detail = list, __VA_ARGS__)
#define ALIAS_AND_ADDRESS(struct_)                                                                 \
    OBJECT(struct_, alias, "alias", domain_alias_schema),                                          \
        OBJECT(struct_, address, "address", domain_address_schema)

const char *const domain_disk_type_names[] = {
    "", "block", "file", "dir", "network", "volume", "nvme", "vhostuser", "vhostvdpa", NULL};
const char *const domain_disk_device_names[] = {"", "disk", "cdrom", "floppy", "lun", NULL};
const char *const domain_interface_type_names[] = {
    "",       "user",     "ethernet", "vhostuser", "server", "client", "mcast", "udp", "network",
    "bridge", "internal", "direct",   "hostdev",   "vdpa",   "null",   "vds",   NULL};
const char *const domain_chardev_type_names[] = {
    "",    "null", "vc",       "pty",       "dev",  "file",         "pipe", "stdio", "udp",
    "tcp", "unix", "spicevmc", "spiceport", "nmdm", "qemu-vdagent", "dbus", NULL};

/* ---- parts of several kinds */

static const ConfigField alias_fields[] = {
    STR(DomainAlias, name, "@name"),
    {0},
};
const ConfigSchema domain_alias_schema = {sizeof(DomainAlias), alias_fields, NULL};

static const ConfigField address_fields[] = {
    F(DomainAddress, type, "@type", FIELD_STRING, .flags = FIELD_REQUIRED),
    STR(DomainAddress, domain, "@domain"),
    STR(DomainAddress, controller, "@controller"),
    STR(DomainAddress, bus, "@bus"),
    STR(DomainAddress, target, "@target"),
    STR(DomainAddress, unit, "@unit"),
    STR(DomainAddress, slot, "@slot"),
    STR(DomainAddress, function, "@function"),
    STR(DomainAddress, multifunction, "@multifunction"),
    STR(DomainAddress, port, "@port"),
    STR(DomainAddress, cid, "@cid"),
    STR(DomainAddress, iobase, "@iobase"),
    STR(DomainAddress, irq, "@irq"),
    STR(DomainAddress, reg, "@reg"),
    STR(DomainAddress, cssid, "@cssid"),
    STR(DomainAddress, ssid, "@ssid"),
    STR(DomainAddress, devno, "@devno"),
    STR(DomainAddress, base, "@base"),
    STR(DomainAddress, uuid, "@uuid"),
    STR(DomainAddress, autoassign, "@auto"),
    NODE(DomainAddress, zpci, "zpci"),
    {0},
};

static bool number_within(const char *text, uint64_t max, unsigned *value)
{
    uint64_t n;
    *value = 0;
    if (!text)
        return true;
    if (!config_parse_uint(text, &n) || n > max)
        return false;
    *value = (unsigned)n;
    return true;
}

bool domain_pci_address(const DomainAddress *address, DomainPciAddress *pci)
{
    /* PCI Local Bus 3.0, 3.2.2.3.2: 8 bits of bus, 5 of device, 3 of function. */
    return address && g_str_equal(address->type, "pci") &&
           number_within(address->domain, 0xffff, &pci->domain) &&
           number_within(address->bus, 0xff, &pci->bus) &&
           number_within(address->slot, 0x1f, &pci->slot) &&
           number_within(address->function, 7, &pci->function);
}

static bool check_address(void *object, ConfigContext *ctx, const ConfigNode *node, GError **err)
{
    const DomainAddress *address = object;
    DomainPciAddress pci;
    unsigned number;
    if (g_str_equal(address->type, "pci")) {
        if (!domain_pci_address(address, &pci))
            return config_invalid(ctx, node->line, err,
                                  "a pci address has domain 0 to 0xffff, bus 0 to 0xff, slot 0 to "
                                  "0x1f and function 0 to 7");
        return true;
    }
    if (g_str_equal(address->type, "drive") &&
        !(number_within(address->controller, 0xffff, &number) &&
          number_within(address->bus, 0xffff, &number) &&
          number_within(address->target, 0xffff, &number) &&
          number_within(address->unit, 0xffff, &number)))
        return config_invalid(ctx, node->line, err,
                              "controller, bus, target and unit are numbers from 0 to 65535");
    return true;
}
const ConfigSchema domain_address_schema = {sizeof(DomainAddress), address_fields, check_address};

static const ConfigField boot_order_fields[] = {
    F(DomainBootOrder, order, "@order", FIELD_UINT, .max = 65535, .flags = FIELD_REQUIRED),
    STR(DomainBootOrder, loadparm, "@loadparm"),
    {0},
};
const ConfigSchema domain_boot_order_schema = {sizeof(DomainBootOrder), boot_order_fields, NULL};

/* ---- disk */

static const ConfigField disk_driver_fields[] = {
    STR(DomainDiskDriver, name, "@name"),
    STR(DomainDiskDriver, type, "@type"),
    STR(DomainDiskDriver, cache, "@cache"),
    STR(DomainDiskDriver, error_policy, "@error_policy"),
    STR(DomainDiskDriver, rerror_policy, "@rerror_policy"),
    STR(DomainDiskDriver, io, "@io"),
    STR(DomainDiskDriver, ioeventfd, "@ioeventfd"),
    STR(DomainDiskDriver, event_idx, "@event_idx"),
    STR(DomainDiskDriver, copy_on_read, "@copy_on_read"),
    STR(DomainDiskDriver, discard, "@discard"),
    F(DomainDiskDriver, iothread, "@iothread", FIELD_UINT),
    STR(DomainDiskDriver, detect_zeroes, "@detect_zeroes"),
    F(DomainDiskDriver, queues, "@queues", FIELD_UINT, .max = 256),
    F(DomainDiskDriver, queue_size, "@queue_size", FIELD_UINT, .max = 32768),
    {0},
};
const ConfigSchema domain_disk_driver_schema = {sizeof(DomainDiskDriver), disk_driver_fields, NULL};

static const ConfigField disk_source_fields[] = {
    STR(DomainDiskSource, protocol, "@protocol"),
    STR(DomainDiskSource, name, "@name"),
    STR(DomainDiskSource, tls, "@tls"),
    STR(DomainDiskSource, file, "@file"),
    STR(DomainDiskSource, dev, "@dev"),
    STR(DomainDiskSource, dir, "@dir"),
    STR(DomainDiskSource, pool, "@pool"),
    STR(DomainDiskSource, volume, "@volume"),
    STR(DomainDiskSource, mode, "@mode"),
    STR(DomainDiskSource, startup_policy, "@startupPolicy"),
    STR(DomainDiskSource, index, "@index"),
    F(DomainDiskSource, hosts, "host", FIELD_NODES),
    NODE(DomainDiskSource, snapshot, "snapshot"),
    NODE(DomainDiskSource, config, "config"),
    F(DomainDiskSource, seclabels, "seclabel", FIELD_NODES),
    NODE(DomainDiskSource, auth, "auth"),
    NODE(DomainDiskSource, slices, "slices"),
    NODE(DomainDiskSource, encryption, "encryption"),
    NODE(DomainDiskSource, reservations, "reservations"),
    {0},
};
const ConfigSchema domain_disk_source_schema = {sizeof(DomainDiskSource), disk_source_fields, NULL};

static const ConfigField disk_target_fields[] = {
    F(DomainDiskTarget, dev, "@dev", FIELD_STRING, .flags = FIELD_REQUIRED),
    STR(DomainDiskTarget, bus, "@bus"),
    STR(DomainDiskTarget, tray, "@tray"),
    STR(DomainDiskTarget, removable, "@removable"),
    F(DomainDiskTarget, rotation_rate, "@rotation_rate", FIELD_UINT, .max = 65535),
    {0},
};
const ConfigSchema domain_disk_target_schema = {sizeof(DomainDiskTarget), disk_target_fields, NULL};

static const ConfigField disk_fields[] = {
    ENUM(DomainDisk, type, "@type", domain_disk_type_names),
    ENUM(DomainDisk, device, "@device", domain_disk_device_names),
    STR(DomainDisk, model, "@model"),
    STR(DomainDisk, rawio, "@rawio"),
    STR(DomainDisk, sgio, "@sgio"),
    STR(DomainDisk, snapshot, "@snapshot"),
    OBJECT(DomainDisk, driver, "driver", domain_disk_driver_schema),
    NODE(DomainDisk, auth, "auth"),
    OBJECT(DomainDisk, source, "source", domain_disk_source_schema),
    NODE(DomainDisk, backing_store, "backingStore"),
    NODE(DomainDisk, mirror, "mirror"),
    NODE(DomainDisk, geometry, "geometry"),
    NODE(DomainDisk, blockio, "blockio"),
    OBJECT(DomainDisk, target, "target", domain_disk_target_schema, .flags = FIELD_REQUIRED),
    NODE(DomainDisk, iotune, "iotune"),
    F(DomainDisk, readonly, "readonly", FIELD_FLAG),
    F(DomainDisk, shareable, "shareable", FIELD_FLAG),
    NODE(DomainDisk, transient, "transient"),
    STR(DomainDisk, serial, "serial"),
    STR(DomainDisk, wwn, "wwn"),
    STR(DomainDisk, vendor, "vendor"),
    STR(DomainDisk, product, "product"),
    NODE(DomainDisk, encryption, "encryption"),
    OBJECT(DomainDisk, boot, "boot", domain_boot_order_schema),
    ALIAS_AND_ADDRESS(DomainDisk),
    NODE(DomainDisk, acpi, "acpi"),
    {0},
};
static const ConfigSchema disk_schema = {sizeof(DomainDisk), disk_fields, NULL};

/* ---- controller */

static const ConfigField controller_target_fields[] = {
    STR(DomainControllerTarget, chassis_nr, "@chassisNr"),
    STR(DomainControllerTarget, chassis, "@chassis"),
    STR(DomainControllerTarget, port, "@port"),
    STR(DomainControllerTarget, bus_nr, "@busNr"),
    STR(DomainControllerTarget, index, "@index"),
    STR(DomainControllerTarget, hotplug, "@hotplug"),
    NODE(DomainControllerTarget, node, "node"),
    {0},
};
static const ConfigSchema controller_target_schema = {sizeof(DomainControllerTarget),
                                                      controller_target_fields, NULL};

static const ConfigField controller_model_fields[] = {
    STR(DomainControllerModel, name, "@name"),
    {0},
};
static const ConfigSchema controller_model_schema = {sizeof(DomainControllerModel),
                                                     controller_model_fields, NULL};

static const ConfigField controller_fields[] = {
    F(DomainController, type, "@type", FIELD_STRING, .flags = FIELD_REQUIRED),
    F(DomainController, index, "@index", FIELD_UINT, .max = 65535),
    STR(DomainController, model, "@model"),
    F(DomainController, ports, "@ports", FIELD_UINT, .max = 65535),
    F(DomainController, vectors, "@vectors", FIELD_UINT, .max = 65535),
    OBJECT(DomainController, model_name, "model", controller_model_schema),
    OBJECT(DomainController, target, "target", controller_target_schema),
    NODE(DomainController, driver, "driver"),
    NODE(DomainController, master, "master"),
    OBJECT(DomainController, alias, "alias", domain_alias_schema),
    OBJECT(DomainController, address, "address", domain_address_schema),
    NODE(DomainController, pcihole64, "pcihole64"),
    NODE(DomainController, acpi, "acpi"),
    {0},
};
static const ConfigSchema controller_schema = {sizeof(DomainController), controller_fields, NULL};

/* ---- interface */

static const ConfigField mac_fields[] = {
    F(DomainMac, address, "@address", FIELD_STRING, .flags = FIELD_REQUIRED),
    STR(DomainMac, type, "@type"),
    STR(DomainMac, check, "@check"),
    {0},
};

static bool check_mac(void *object, ConfigContext *ctx, const ConfigNode *node, GError **err)
{
    const char *mac = ((DomainMac *)object)->address;
    bool good = strlen(mac) == 17;
    for (unsigned i = 0; good && i < 17; i++)
        good = i % 3 == 2 ? mac[i] == ':' : g_ascii_isxdigit(mac[i]);
    if (!good)
        return config_invalid(ctx, node->line, err,
                              "'%.32s' is not a MAC address like 52:54:00:12:34:56", mac);
    /* IEEE 802: bit 0 of the first octet marks a group address, which no card may have. */
    if (g_ascii_xdigit_value(mac[1]) & 1)
        return config_invalid(ctx, node->line, err, "'%s' is a multicast address", mac);
    return true;
}
const ConfigSchema domain_mac_schema = {sizeof(DomainMac), mac_fields, check_mac};

static const ConfigField interface_source_fields[] = {
    STR(DomainInterfaceSource, type, "@type"),
    STR(DomainInterfaceSource, network, "@network"),
    STR(DomainInterfaceSource, portid, "@portid"),
    STR(DomainInterfaceSource, portgroup, "@portgroup"),
    STR(DomainInterfaceSource, bridge, "@bridge"),
    STR(DomainInterfaceSource, name, "@name"),
    STR(DomainInterfaceSource, dev, "@dev"),
    STR(DomainInterfaceSource, path, "@path"),
    STR(DomainInterfaceSource, mode, "@mode"),
    STR(DomainInterfaceSource, address, "@address"),
    STR(DomainInterfaceSource, port, "@port"),
    STR(DomainInterfaceSource, connectionid, "@connectionid"),
    NODE(DomainInterfaceSource, reconnect, "reconnect"),
    NODE(DomainInterfaceSource, local, "local"),
    NODE(DomainInterfaceSource, pci_address, "address"),
    {0},
};
const ConfigSchema domain_interface_source_schema = {sizeof(DomainInterfaceSource),
                                                     interface_source_fields, NULL};

static const ConfigField model_fields[] = {STR(DomainNamed, value, "@type"), {0}};
static const ConfigField dev_fields[] = {STR(DomainNamed, value, "@dev"), {0}};
static const ConfigField state_fields[] = {STR(DomainNamed, value, "@state"), {0}};
const ConfigSchema domain_model_schema = {sizeof(DomainNamed), model_fields, NULL};
static const ConfigSchema target_dev_schema = {sizeof(DomainNamed), dev_fields, NULL};
static const ConfigSchema link_schema = {sizeof(DomainNamed), state_fields, NULL};

static const ConfigField interface_fields[] = {
    ENUM(DomainInterface, type, "@type", domain_interface_type_names, .flags = FIELD_REQUIRED),
    STR(DomainInterface, managed, "@managed"),
    STR(DomainInterface, trust_guest, "@trustGuestRxFilters"),
    OBJECT(DomainInterface, mac, "mac", domain_mac_schema),
    OBJECT(DomainInterface, source, "source", domain_interface_source_schema),
    NODE(DomainInterface, virtualport, "virtualport"),
    F(DomainInterface, ips, "ip", FIELD_NODES),
    F(DomainInterface, routes, "route", FIELD_NODES),
    NODE(DomainInterface, script, "script"),
    NODE(DomainInterface, downscript, "downscript"),
    OBJECT(DomainInterface, target, "target", target_dev_schema),
    NODE(DomainInterface, guest, "guest"),
    OBJECT(DomainInterface, model, "model", domain_model_schema),
    NODE(DomainInterface, driver, "driver"),
    F(DomainInterface, forwards, "portForward", FIELD_NODES),
    NODE(DomainInterface, backend, "backend"),
    NODE(DomainInterface, filterref, "filterref"),
    OBJECT(DomainInterface, boot, "boot", domain_boot_order_schema),
    NODE(DomainInterface, tune, "tune"),
    OBJECT(DomainInterface, link, "link", link_schema),
    NODE(DomainInterface, mtu, "mtu"),
    NODE(DomainInterface, bandwidth, "bandwidth"),
    NODE(DomainInterface, vlan, "vlan"),
    NODE(DomainInterface, port, "port"),
    NODE(DomainInterface, coalesce, "coalesce"),
    NODE(DomainInterface, teaming, "teaming"),
    NODE(DomainInterface, rom, "rom"),
    ALIAS_AND_ADDRESS(DomainInterface),
    NODE(DomainInterface, acpi, "acpi"),
    {0},
};
static const ConfigSchema interface_schema = {sizeof(DomainInterface), interface_fields, NULL};

/* ---- serial, parallel, console, channel */

static const ConfigField chardev_source_fields[] = {
    STR(DomainChardevSource, mode, "@mode"),
    STR(DomainChardevSource, path, "@path"),
    STR(DomainChardevSource, host, "@host"),
    STR(DomainChardevSource, service, "@service"),
    STR(DomainChardevSource, tls, "@tls"),
    STR(DomainChardevSource, append, "@append"),
    STR(DomainChardevSource, channel, "@channel"),
    STR(DomainChardevSource, master, "@master"),
    STR(DomainChardevSource, slave, "@slave"),
    NODE(DomainChardevSource, reconnect, "reconnect"),
    F(DomainChardevSource, seclabels, "seclabel", FIELD_NODES),
    {0},
};
const ConfigSchema domain_chardev_source_schema = {sizeof(DomainChardevSource),
                                                   chardev_source_fields, NULL};

static const ConfigField chardev_target_fields[] = {
    STR(DomainChardevTarget, type, "@type"),
    STR(DomainChardevTarget, name, "@name"),
    STR(DomainChardevTarget, state, "@state"),
    STR(DomainChardevTarget, address, "@address"),
    F(DomainChardevTarget, port, "@port", FIELD_UINT, .max = 65535),
    OBJECT(DomainChardevTarget, model, "model", controller_model_schema),
    {0},
};
const ConfigSchema domain_chardev_target_schema = {sizeof(DomainChardevTarget),
                                                   chardev_target_fields, NULL};

static const ConfigField chardev_fields[] = {
    ENUM(DomainChardev, type, "@type", domain_chardev_type_names, .flags = FIELD_REQUIRED),
    STR(DomainChardev, tty, "@tty"),
    F(DomainChardev, sources, "source", FIELD_LIST, .detail = &domain_chardev_source_schema),
    NODE(DomainChardev, protocol, "protocol"),
    NODE(DomainChardev, log, "log"),
    OBJECT(DomainChardev, target, "target", domain_chardev_target_schema),
    ALIAS_AND_ADDRESS(DomainChardev),
    NODE(DomainChardev, acpi, "acpi"),
    {0},
};
static const ConfigSchema chardev_schema = {sizeof(DomainChardev), chardev_fields, NULL};

/* ---- rng, memballoon */

static const ConfigField rng_backend_fields[] = {
    F(DomainRngBackend, model, "@model", FIELD_STRING, .flags = FIELD_REQUIRED),
    STR(DomainRngBackend, type, "@type"),
    STR(DomainRngBackend, path, ""),
    F(DomainRngBackend, sources, "source", FIELD_NODES),
    NODE(DomainRngBackend, protocol, "protocol"),
    {0},
};
const ConfigSchema domain_rng_backend_schema = {sizeof(DomainRngBackend), rng_backend_fields, NULL};

static const ConfigField rng_fields[] = {
    F(DomainRng, model, "@model", FIELD_STRING, .flags = FIELD_REQUIRED),
    NODE(DomainRng, rate, "rate"),
    OBJECT(DomainRng, backend, "backend", domain_rng_backend_schema, .flags = FIELD_REQUIRED),
    NODE(DomainRng, driver, "driver"),
    ALIAS_AND_ADDRESS(DomainRng),
    NODE(DomainRng, acpi, "acpi"),
    {0},
};
static const ConfigSchema rng_schema = {sizeof(DomainRng), rng_fields, NULL};

static const ConfigField balloon_stats_fields[] = {
    F(DomainBalloonStats, period_s, "@period", FIELD_UINT, .max = INT32_MAX),
    {0},
};
static const ConfigSchema balloon_stats_schema = {sizeof(DomainBalloonStats), balloon_stats_fields,
                                                  NULL};

static const ConfigField balloon_fields[] = {
    F(DomainBalloon, model, "@model", FIELD_STRING, .flags = FIELD_REQUIRED),
    STR(DomainBalloon, autodeflate, "@autodeflate"),
    STR(DomainBalloon, free_page_reporting, "@freePageReporting"),
    OBJECT(DomainBalloon, stats, "stats", balloon_stats_schema),
    OBJECT(DomainBalloon, alias, "alias", domain_alias_schema),
    OBJECT(DomainBalloon, address, "address", domain_address_schema),
    NODE(DomainBalloon, driver, "driver"),
    NODE(DomainBalloon, acpi, "acpi"),
    {0},
};
static const ConfigSchema balloon_schema = {sizeof(DomainBalloon), balloon_fields, NULL};

/* ---- all kinds, in libvirt's order of writing */

const DomainDeviceKind domain_device_kinds[] = {
    {"disk", DOMAIN_DEVICE_DISK, &disk_schema},
    {"controller", DOMAIN_DEVICE_CONTROLLER, &controller_schema},
    {"lease", DOMAIN_DEVICE_GENERIC, NULL},
    {"filesystem", DOMAIN_DEVICE_GENERIC, NULL},
    {"interface", DOMAIN_DEVICE_INTERFACE, &interface_schema},
    {"smartcard", DOMAIN_DEVICE_GENERIC, NULL},
    {"serial", DOMAIN_DEVICE_CHARDEV, &chardev_schema},
    {"parallel", DOMAIN_DEVICE_CHARDEV, &chardev_schema},
    {"console", DOMAIN_DEVICE_CHARDEV, &chardev_schema},
    {"channel", DOMAIN_DEVICE_CHARDEV, &chardev_schema},
    {"input", DOMAIN_DEVICE_GENERIC, NULL},
    {"tpm", DOMAIN_DEVICE_GENERIC, NULL},
    {"graphics", DOMAIN_DEVICE_GENERIC, NULL},
    {"sound", DOMAIN_DEVICE_GENERIC, NULL},
    {"audio", DOMAIN_DEVICE_GENERIC, NULL},
    {"video", DOMAIN_DEVICE_GENERIC, NULL},
    {"hostdev", DOMAIN_DEVICE_GENERIC, NULL},
    {"redirdev", DOMAIN_DEVICE_GENERIC, NULL},
    {"redirfilter", DOMAIN_DEVICE_GENERIC, NULL},
    {"hub", DOMAIN_DEVICE_GENERIC, NULL},
    {"watchdog", DOMAIN_DEVICE_GENERIC, NULL},
    {"memballoon", DOMAIN_DEVICE_BALLOON, &balloon_schema},
    {"rng", DOMAIN_DEVICE_RNG, &rng_schema},
    {"nvram", DOMAIN_DEVICE_GENERIC, NULL},
    {"panic", DOMAIN_DEVICE_GENERIC, NULL},
    {"shmem", DOMAIN_DEVICE_GENERIC, NULL},
    {"memory", DOMAIN_DEVICE_GENERIC, NULL},
    {"iommu", DOMAIN_DEVICE_GENERIC, NULL},
    {"vsock", DOMAIN_DEVICE_GENERIC, NULL},
    {"crypto", DOMAIN_DEVICE_GENERIC, NULL},
    {0},
};
