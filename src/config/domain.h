/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A domain: the guest as libvirt's domain XML describes it (https://libvirt.org/formatdomain.html).
 * What Lodge builds is typed; the rest is kept as nodes and written back. Strings are owned by
 * their struct and NULL when absent, numbers are -1, enums 0.
 */
#pragma once

#include "config/binding.h"

/* Row 0 of each list is "absent"; DOMAIN_X_Y is the row of "y" in the list of X. */
typedef enum DomainVirt {
    DOMAIN_VIRT_NONE,
    DOMAIN_VIRT_QEMU,
    DOMAIN_VIRT_KQEMU,
    DOMAIN_VIRT_KVM
} DomainVirt;
typedef enum DomainSwitch {
    DOMAIN_SWITCH_ABSENT,
    DOMAIN_SWITCH_ON,
    DOMAIN_SWITCH_OFF
} DomainSwitch;
typedef enum DomainClockOffset {
    DOMAIN_CLOCK_NONE,
    DOMAIN_CLOCK_UTC,
    DOMAIN_CLOCK_LOCALTIME,
    DOMAIN_CLOCK_VARIABLE,
    DOMAIN_CLOCK_TIMEZONE,
    DOMAIN_CLOCK_ABSOLUTE
} DomainClockOffset;
typedef enum DomainAction {
    DOMAIN_ACTION_NONE,
    DOMAIN_ACTION_DESTROY,
    DOMAIN_ACTION_RESTART,
    DOMAIN_ACTION_PRESERVE,
    DOMAIN_ACTION_RENAME_RESTART,
    DOMAIN_ACTION_COREDUMP_DESTROY,
    DOMAIN_ACTION_COREDUMP_RESTART
} DomainAction;

typedef struct DomainMemory {
    ConfigObject object;
    uint64_t kib;
    int64_t slots;
    char *dump_core;
} DomainMemory;

typedef struct DomainVcpu {
    ConfigObject object;
    int64_t count, current;
    char *placement, *cpuset;
} DomainVcpu;

typedef struct DomainOsType {
    ConfigObject object;
    char *arch, *machine, *type;
} DomainOsType;

typedef struct DomainBootDevice {
    ConfigObject object;
    int dev;
} DomainBootDevice;

typedef struct DomainOs {
    ConfigObject object;
    char *firmware;
    DomainOsType *type;
    ConfigNode *firmware_features, *loader, *nvram, *bootmenu, *bios, *smbios, *acpi;
    char *kernel, *initrd, *cmdline, *dtb;
    GPtrArray *boot; /* of DomainBootDevice */
} DomainOs;

typedef struct DomainApic {
    ConfigObject object;
    int eoi;
} DomainApic;

typedef struct DomainFeatures {
    ConfigObject object;
    bool acpi, pae;
    DomainApic *apic;
    ConfigNode *hap, *viridian, *privnet, *hyperv, *kvm, *xen, *pvspinlock, *pmu, *vmport, *smm,
        *ioapic, *vmcoreinfo, *tcg;
} DomainFeatures;

typedef struct DomainCpuModel {
    ConfigObject object;
    char *fallback, *vendor_id, *name;
} DomainCpuModel;

typedef struct DomainCpuTopology {
    ConfigObject object;
    int64_t sockets, dies, cores, threads;
} DomainCpuTopology;

typedef struct DomainCpuFeature {
    ConfigObject object;
    int policy;
    char *name;
} DomainCpuFeature;

typedef struct DomainCpu {
    ConfigObject object;
    int mode, match, check;
    char *migratable, *vendor;
    DomainCpuModel *model;
    DomainCpuTopology *topology;
    ConfigNode *cache, *maxphysaddr, *numa;
    GPtrArray *features; /* of DomainCpuFeature */
} DomainCpu;

typedef struct DomainTimer {
    ConfigObject object;
    int name, present;
    char *track, *tickpolicy, *mode;
    int64_t frequency;
    ConfigNode *catchup;
} DomainTimer;

typedef struct DomainClock {
    ConfigObject object;
    int offset; /* DomainClockOffset */
    char *basis, *adjustment, *timezone, *start;
    GPtrArray *timers; /* of DomainTimer */
} DomainClock;

/* ---- devices: what several kinds have */

typedef struct DomainAlias {
    ConfigObject object;
    char *name;
} DomainAlias;

typedef struct DomainAddress {
    ConfigObject object;
    char *type;
    /* As written: PCI numbers are hexadecimal, those of drives and ports decimal. */
    char *domain, *bus, *slot, *function, *multifunction, *controller, *target, *unit, *port, *cid,
        *iobase, *irq, *reg, *cssid, *ssid, *devno, *base, *uuid, *autoassign;
    ConfigNode *zpci;
} DomainAddress;

typedef struct DomainPciAddress {
    unsigned domain, bus, slot, function;
} DomainPciAddress;

typedef struct DomainBootOrder {
    ConfigObject object;
    int64_t order;
    char *loadparm;
} DomainBootOrder;

/* ---- devices that are built */

typedef struct DomainDiskDriver {
    ConfigObject object;
    char *name, *type, *cache, *error_policy, *rerror_policy, *io, *ioeventfd, *event_idx,
        *copy_on_read, *discard, *detect_zeroes;
    int64_t queues, queue_size, iothread;
} DomainDiskDriver;

typedef struct DomainDiskSource {
    ConfigObject object;
    char *file, *dev, *dir, *protocol, *name, *pool, *volume, *mode, *startup_policy, *index, *tls;
    GPtrArray *hosts; /* of ConfigNode */
    ConfigNode *auth, *encryption, *slices, *reservations, *snapshot, *config;
    GPtrArray *seclabels; /* of ConfigNode */
} DomainDiskSource;

typedef struct DomainDiskTarget {
    ConfigObject object;
    char *dev, *bus, *tray, *removable;
    int64_t rotation_rate;
} DomainDiskTarget;

typedef struct DomainDisk {
    ConfigObject object;
    int type, device;
    char *model, *rawio, *sgio, *snapshot;
    DomainDiskDriver *driver;
    DomainDiskSource *source;
    ConfigNode *auth, *backing_store, *mirror, *geometry, *blockio, *iotune, *transient,
        *encryption, *acpi;
    DomainDiskTarget *target;
    bool readonly, shareable;
    char *serial, *wwn, *vendor, *product;
    DomainBootOrder *boot;
    DomainAlias *alias;
    DomainAddress *address;
} DomainDisk;

typedef struct DomainControllerTarget {
    ConfigObject object;
    char *chassis_nr, *chassis, *port, *bus_nr, *hotplug, *index;
    ConfigNode *node;
} DomainControllerTarget;

typedef struct DomainControllerModel {
    ConfigObject object;
    char *name;
} DomainControllerModel;

typedef struct DomainController {
    ConfigObject object;
    char *type, *model;
    int64_t index, ports, vectors;
    ConfigNode *driver, *master, *pcihole64, *acpi;
    DomainControllerModel *model_name;
    DomainControllerTarget *target;
    DomainAlias *alias;
    DomainAddress *address;
} DomainController;

typedef struct DomainMac {
    ConfigObject object;
    char *address, *type, *check;
} DomainMac;

typedef struct DomainInterfaceSource {
    ConfigObject object;
    char *network, *portgroup, *bridge, *dev, *mode, *type, *path, *name, *address, *port, *portid,
        *connectionid;
    ConfigNode *local, *pci_address, *reconnect;
} DomainInterfaceSource;

typedef struct DomainNamed { /* <model type='..'/>, <target dev='..'/>, <link state='..'/> */
    ConfigObject object;
    char *value;
} DomainNamed;

typedef struct DomainInterface {
    ConfigObject object;
    int type;
    char *managed, *trust_guest;
    DomainMac *mac;
    DomainInterfaceSource *source;
    DomainNamed *model, *target, *link;
    ConfigNode *backend, *virtualport, *driver, *guest, *filterref, *tune, *mtu, *bandwidth, *vlan,
        *coalesce, *rom, *acpi, *teaming, *script, *downscript, *port;
    GPtrArray *ips, *routes, *forwards; /* of ConfigNode */
    DomainBootOrder *boot;
    DomainAlias *alias;
    DomainAddress *address;
} DomainInterface;

typedef struct DomainChardevSource {
    ConfigObject object;
    char *path, *mode, *append, *host, *service, *channel, *tls, *master, *slave;
    ConfigNode *reconnect;
    GPtrArray *seclabels; /* of ConfigNode */
} DomainChardevSource;

typedef struct DomainChardevTarget {
    ConfigObject object;
    char *type, *name, *state, *address;
    int64_t port;
    DomainControllerModel *model;
} DomainChardevTarget;

typedef struct DomainChardev { /* serial, parallel, console, channel */
    ConfigObject object;
    int type;
    char *tty;
    GPtrArray *sources; /* of DomainChardevSource: UDP has two */
    ConfigNode *protocol, *log, *acpi;
    DomainChardevTarget *target;
    DomainAlias *alias;
    DomainAddress *address;
} DomainChardev;

typedef struct DomainRngBackend {
    ConfigObject object;
    char *model, *type, *path;
    GPtrArray *sources; /* of ConfigNode */
    ConfigNode *protocol;
} DomainRngBackend;

typedef struct DomainRng {
    ConfigObject object;
    char *model;
    ConfigNode *rate, *driver, *acpi;
    DomainRngBackend *backend;
    DomainAlias *alias;
    DomainAddress *address;
} DomainRng;

typedef struct DomainBalloonStats {
    ConfigObject object;
    int64_t period_s;
} DomainBalloonStats;

typedef struct DomainBalloon {
    ConfigObject object;
    char *model, *autodeflate, *free_page_reporting;
    DomainBalloonStats *stats;
    ConfigNode *driver, *acpi;
    DomainAlias *alias;
    DomainAddress *address;
} DomainBalloon;

/* ---- the list of devices */

typedef enum DomainDeviceId {
    DOMAIN_DEVICE_GENERIC, /* kept as a node */
    DOMAIN_DEVICE_DISK,
    DOMAIN_DEVICE_CONTROLLER,
    DOMAIN_DEVICE_INTERFACE,
    DOMAIN_DEVICE_CHARDEV,
    DOMAIN_DEVICE_BALLOON,
    DOMAIN_DEVICE_RNG,
} DomainDeviceId;

typedef struct DomainDeviceKind {
    const char *element;
    DomainDeviceId id;
    const ConfigSchema *schema; /* NULL: generic */
} DomainDeviceKind;

/* In the order in which libvirt writes them; ends with {0}. */
extern const DomainDeviceKind domain_device_kinds[];
const DomainDeviceKind *domain_device_kind_find(const char *element);

typedef struct DomainDevice {
    const DomainDeviceKind *kind; /* NULL: an element that libvirt's documents do not have */
    void *object;                 /* of the kind's struct; NULL: generic */
    ConfigNode *node;             /* generic or unknown: the whole element */
    int after;                    /* unknown: row of the kind before it; -1: first */
    unsigned line;
} DomainDevice;

typedef struct DomainDevices {
    char *emulator;
    ConfigNode *rest; /* attributes of <devices> and of <emulator>, hardly ever there */
    GPtrArray *list;  /* of DomainDevice */
} DomainDevices;

/* ---- the domain */

typedef struct Domain {
    ConfigObject object;
    int type; /* DomainVirt, or a later row: another hypervisor's */
    int64_t id;
    char *name, *uuid, *title, *description;
    ConfigNode *metadata;
    DomainMemory *max_memory, *memory, *current_memory;
    DomainVcpu *vcpu;
    DomainOs *os;
    DomainFeatures *features;
    DomainCpu *cpu;
    DomainClock *clock;
    int on_poweroff, on_reboot, on_crash; /* DomainAction */
    char *on_lockfailure;
    ConfigNode *pm;
    DomainDevices devices;
    /* Kept, not acted upon (yet). */
    ConfigNode *genid, *blkiotune, *memtune, *memory_backing, *vcpus, *iothreads, *iothreadids,
        *defaultiothread, *cputune, *numatune, *resource, *keywrap, *bootloader, *bootloader_args,
        *idmap, *perf, *launch_security;
    GPtrArray *sysinfo, *seclabels; /* of ConfigNode */
    /* Filled by parsing, not written. */
    char *file;         /* what the document was called in errors */
    GPtrArray *unknown; /* of ConfigUnknown: kept, but nothing acts on it */
    bool uuid_generated;
} Domain;

/*
 * A domain from a document; @file names it in errors ("FILE:LINE: domain/os/boot/@dev: ...").
 * Memory, name and os/type are required; a uuid is generated if absent. The caller frees it.
 */
Domain *domain_parse(const char *xml, size_t size, const char *file, GError **err);
Domain *domain_parse_file(const char *path, GError **err);
/* A domain with these and nothing else; @memory_kib in KiB. */
Domain *domain_new(const char *name, uint64_t memory_kib, unsigned n_vcpus);
void domain_free(Domain *domain); /* NULL is accepted */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Domain, domain_free)
/* The document as libvirt would write it. The caller frees it. */
char *domain_format(const Domain *domain);

/* Appends a device of that kind, made empty; returns its struct. */
void *domain_add_device(Domain *domain, const char *element);
void domain_remove_device(Domain *domain, const DomainDevice *device);
/* 16 bytes in RFC 4122 order. */
void domain_uuid_bytes(const Domain *domain, uint8_t bytes[16]);
/* False and @err if the name is not one that libvirt takes. */
bool domain_check_name(const char *name, GError **err);
/* A number of a pci address that is there and valid; false if @address is none. */
bool domain_pci_address(const DomainAddress *address, DomainPciAddress *pci);
/* The row named @text of a FIELD_ENUM list; 0 if there is none. */
int config_enum_find(const char *const *list, const char *text);

extern const char *const domain_virt_names[];
extern const char *const domain_switch_names[]; /* yes, no */
extern const char *const domain_disk_type_names[];
extern const char *const domain_disk_device_names[];
extern const char *const domain_interface_type_names[];
extern const char *const domain_chardev_type_names[];
extern const char *const domain_timer_names[];
extern const char *const domain_cpu_mode_names[];
extern const char *const domain_cpu_match_names[];
extern const char *const domain_cpu_check_names[];
extern const char *const domain_cpu_policy_names[];
extern const char *const domain_boot_device_names[];
extern const char *const domain_clock_names[];
extern const char *const domain_action_names[];
extern const ConfigSchema domain_schema;
extern const ConfigSchema domain_address_schema, domain_alias_schema, domain_boot_order_schema;
extern const ConfigSchema domain_memory_schema, domain_vcpu_schema, domain_os_schema,
    domain_os_type_schema, domain_features_schema, domain_apic_schema, domain_cpu_schema,
    domain_cpu_topology_schema, domain_cpu_model_schema, domain_cpu_feature_schema,
    domain_clock_schema, domain_timer_schema;
extern const ConfigSchema domain_disk_driver_schema, domain_disk_source_schema,
    domain_disk_target_schema, domain_mac_schema, domain_model_schema,
    domain_interface_source_schema, domain_chardev_source_schema, domain_chardev_target_schema,
    domain_rng_backend_schema;
extern const ConfigCustom domain_devices_custom;
