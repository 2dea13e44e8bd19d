/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The tables of the domain outside its devices; order and names: libvirt's formatdomain. */
#include "config/domain.h"

#define F(struct_, member, name, kind, ...) CONFIG_FIELD(struct_, member, name, kind, __VA_ARGS__)
#define OBJECT(struct_, member, name, schema, ...)                                                 \
    CONFIG_FIELD(struct_, member, name, FIELD_OBJECT, .detail = &schema, __VA_ARGS__)
#define NODE(struct_, member, name) CONFIG_FIELD(struct_, member, name, FIELD_NODE, )
#define UNAPPLIED(struct_, member, name)                                                           \
    CONFIG_FIELD(struct_, member, name, FIELD_NODE, .flags = FIELD_UNAPPLIED)
#define ENUM(struct_, member, name, list, ...)                                                     \
    CONFIG_FIELD(struct_, member, name, FIELD_ENUM, .detail = list, __VA_ARGS__)

const char *const domain_virt_names[] = {"",     "qemu",      "kqemu", "kvm",    "xen",    "lxc",
                                         "uml",  "openvz",    "test",  "vmware", "hyperv", "vbox",
                                         "phyp", "parallels", "bhyve", "vz",     "hvf",    NULL};
const char *const domain_switch_names[] = {"", "yes", "no", NULL};
const char *const domain_boot_device_names[] = {"", "fd", "cdrom", "hd", "network", NULL};
const char *const domain_clock_names[] = {"",         "utc",      "localtime", "variable",
                                          "timezone", "absolute", NULL};
const char *const domain_action_names[] = {
    "",  "destroy", "restart", "preserve", "rename-restart", "coredump-destroy", "coredump-restart",
    NULL};
const char *const domain_timer_names[] = {"",    "platform", "pit",         "rtc",       "hpet",
                                          "tsc", "kvmclock", "hypervclock", "armvtimer", NULL};
const char *const domain_cpu_mode_names[] = {"",        "custom", "host-model", "host-passthrough",
                                             "maximum", NULL};
const char *const domain_cpu_match_names[] = {"", "minimum", "exact", "strict", NULL};
const char *const domain_cpu_check_names[] = {"", "none", "partial", "full", NULL};
const char *const domain_cpu_policy_names[] = {"",        "force",  "require", "optional",
                                               "disable", "forbid", NULL};
static const char *const on_off_names[] = {"", "on", "off", NULL};

int config_enum_find(const char *const *list, const char *text)
{
    for (int i = 1; text && list[i]; i++)
        if (g_str_equal(list[i], text))
            return i;
    return 0;
}

static const ConfigField memory_fields[] = {
    F(DomainMemory, slots, "@slots", FIELD_UINT),
    F(DomainMemory, kib, "", FIELD_KIB, .flags = FIELD_REQUIRED),
    F(DomainMemory, dump_core, "@dumpCore", FIELD_STRING),
    {0},
};
const ConfigSchema domain_memory_schema = {sizeof(DomainMemory), memory_fields, NULL};

static const ConfigField vcpu_fields[] = {
    F(DomainVcpu, placement, "@placement", FIELD_STRING),
    F(DomainVcpu, cpuset, "@cpuset", FIELD_STRING),
    F(DomainVcpu, current, "@current", FIELD_UINT, .max = 4096),
    F(DomainVcpu, count, "", FIELD_UINT, .max = 4096),
    {0},
};

static bool check_vcpu(void *object, ConfigContext *ctx, const ConfigNode *node, GError **err)
{
    const DomainVcpu *vcpu = object;
    if (vcpu->count == 0 || vcpu->current == 0)
        return config_invalid(ctx, node->line, err, "a guest has at least one vCPU");
    if (vcpu->count > 0 && vcpu->current > vcpu->count)
        return config_invalid(ctx, node->line, err, "current='%d' is more than the maximum of %d",
                              (int)vcpu->current, (int)vcpu->count);
    return true;
}
const ConfigSchema domain_vcpu_schema = {sizeof(DomainVcpu), vcpu_fields, check_vcpu};

static const ConfigField os_type_fields[] = {
    F(DomainOsType, arch, "@arch", FIELD_STRING),
    F(DomainOsType, machine, "@machine", FIELD_STRING),
    F(DomainOsType, type, "", FIELD_STRING, .flags = FIELD_REQUIRED),
    {0},
};
const ConfigSchema domain_os_type_schema = {sizeof(DomainOsType), os_type_fields, NULL};

static const ConfigField boot_device_fields[] = {
    ENUM(DomainBootDevice, dev, "@dev", domain_boot_device_names, .flags = FIELD_REQUIRED),
    {0},
};
static const ConfigSchema boot_device_schema = {sizeof(DomainBootDevice), boot_device_fields, NULL};

static const ConfigField os_fields[] = {
    F(DomainOs, firmware, "@firmware", FIELD_STRING),
    OBJECT(DomainOs, type, "type", domain_os_type_schema, .flags = FIELD_REQUIRED),
    NODE(DomainOs, firmware_features, "firmware"),
    NODE(DomainOs, loader, "loader"),
    NODE(DomainOs, nvram, "nvram"),
    F(DomainOs, kernel, "kernel", FIELD_STRING),
    F(DomainOs, initrd, "initrd", FIELD_STRING),
    F(DomainOs, cmdline, "cmdline", FIELD_STRING),
    F(DomainOs, dtb, "dtb", FIELD_STRING),
    NODE(DomainOs, acpi, "acpi"),
    F(DomainOs, boot, "boot", FIELD_LIST, .detail = &boot_device_schema),
    NODE(DomainOs, bootmenu, "bootmenu"),
    NODE(DomainOs, bios, "bios"),
    NODE(DomainOs, smbios, "smbios"),
    {0},
};
const ConfigSchema domain_os_schema = {sizeof(DomainOs), os_fields, NULL};

static const ConfigField apic_fields[] = {
    ENUM(DomainApic, eoi, "@eoi", on_off_names),
    {0},
};
const ConfigSchema domain_apic_schema = {sizeof(DomainApic), apic_fields, NULL};

static const ConfigField features_fields[] = {
    F(DomainFeatures, acpi, "acpi", FIELD_FLAG),
    OBJECT(DomainFeatures, apic, "apic", domain_apic_schema),
    F(DomainFeatures, pae, "pae", FIELD_FLAG),
    NODE(DomainFeatures, hap, "hap"),
    NODE(DomainFeatures, viridian, "viridian"),
    NODE(DomainFeatures, privnet, "privnet"),
    NODE(DomainFeatures, hyperv, "hyperv"),
    NODE(DomainFeatures, kvm, "kvm"),
    NODE(DomainFeatures, xen, "xen"),
    NODE(DomainFeatures, pvspinlock, "pvspinlock"),
    NODE(DomainFeatures, pmu, "pmu"),
    NODE(DomainFeatures, vmport, "vmport"),
    NODE(DomainFeatures, smm, "smm"),
    NODE(DomainFeatures, ioapic, "ioapic"),
    NODE(DomainFeatures, vmcoreinfo, "vmcoreinfo"),
    NODE(DomainFeatures, tcg, "tcg"),
    {0},
};
const ConfigSchema domain_features_schema = {sizeof(DomainFeatures), features_fields, NULL};

static const ConfigField cpu_model_fields[] = {
    F(DomainCpuModel, fallback, "@fallback", FIELD_STRING),
    F(DomainCpuModel, vendor_id, "@vendor_id", FIELD_STRING),
    F(DomainCpuModel, name, "", FIELD_STRING),
    {0},
};
const ConfigSchema domain_cpu_model_schema = {sizeof(DomainCpuModel), cpu_model_fields, NULL};

static const ConfigField topology_fields[] = {
    F(DomainCpuTopology, sockets, "@sockets", FIELD_UINT, .max = 4096, .flags = FIELD_REQUIRED),
    F(DomainCpuTopology, dies, "@dies", FIELD_UINT, .max = 4096),
    F(DomainCpuTopology, cores, "@cores", FIELD_UINT, .max = 4096, .flags = FIELD_REQUIRED),
    F(DomainCpuTopology, threads, "@threads", FIELD_UINT, .max = 4096, .flags = FIELD_REQUIRED),
    {0},
};

static bool check_topology(void *object, ConfigContext *ctx, const ConfigNode *node, GError **err)
{
    const DomainCpuTopology *t = object;
    if (t->sockets && t->dies && t->cores && t->threads)
        return true;
    return config_invalid(ctx, node->line, err, "sockets, dies, cores and threads are at least 1");
}
const ConfigSchema domain_cpu_topology_schema = {sizeof(DomainCpuTopology), topology_fields,
                                                 check_topology};

static const ConfigField cpu_feature_fields[] = {
    ENUM(DomainCpuFeature, policy, "@policy", domain_cpu_policy_names),
    F(DomainCpuFeature, name, "@name", FIELD_STRING, .flags = FIELD_REQUIRED),
    {0},
};
const ConfigSchema domain_cpu_feature_schema = {sizeof(DomainCpuFeature), cpu_feature_fields, NULL};

static const ConfigField cpu_fields[] = {
    ENUM(DomainCpu, mode, "@mode", domain_cpu_mode_names),
    ENUM(DomainCpu, match, "@match", domain_cpu_match_names),
    ENUM(DomainCpu, check, "@check", domain_cpu_check_names),
    F(DomainCpu, migratable, "@migratable", FIELD_STRING),
    OBJECT(DomainCpu, model, "model", domain_cpu_model_schema),
    F(DomainCpu, vendor, "vendor", FIELD_STRING),
    OBJECT(DomainCpu, topology, "topology", domain_cpu_topology_schema),
    NODE(DomainCpu, cache, "cache"),
    NODE(DomainCpu, maxphysaddr, "maxphysaddr"),
    F(DomainCpu, features, "feature", FIELD_LIST, .detail = &domain_cpu_feature_schema),
    NODE(DomainCpu, numa, "numa"),
    {0},
};
const ConfigSchema domain_cpu_schema = {sizeof(DomainCpu), cpu_fields, NULL};

static const ConfigField timer_fields[] = {
    ENUM(DomainTimer, name, "@name", domain_timer_names, .flags = FIELD_REQUIRED),
    ENUM(DomainTimer, present, "@present", domain_switch_names),
    F(DomainTimer, tickpolicy, "@tickpolicy", FIELD_STRING),
    F(DomainTimer, track, "@track", FIELD_STRING),
    F(DomainTimer, frequency, "@frequency", FIELD_UINT),
    F(DomainTimer, mode, "@mode", FIELD_STRING),
    NODE(DomainTimer, catchup, "catchup"),
    {0},
};
const ConfigSchema domain_timer_schema = {sizeof(DomainTimer), timer_fields, NULL};

static const ConfigField clock_fields[] = {
    ENUM(DomainClock, offset, "@offset", domain_clock_names),
    F(DomainClock, adjustment, "@adjustment", FIELD_STRING),
    F(DomainClock, basis, "@basis", FIELD_STRING),
    F(DomainClock, timezone, "@timezone", FIELD_STRING),
    F(DomainClock, start, "@start", FIELD_STRING),
    F(DomainClock, timers, "timer", FIELD_LIST, .detail = &domain_timer_schema),
    {0},
};

static bool check_clock(void *object, ConfigContext *ctx, const ConfigNode *node, GError **err)
{
    const DomainClock *clock = object;
    if (clock->offset == DOMAIN_CLOCK_TIMEZONE && !clock->timezone)
        return config_invalid(ctx, node->line, err, "offset='timezone' needs attribute timezone");
    if (clock->offset == DOMAIN_CLOCK_ABSOLUTE && !clock->start)
        return config_invalid(ctx, node->line, err, "offset='absolute' needs attribute start");
    return true;
}
const ConfigSchema domain_clock_schema = {sizeof(DomainClock), clock_fields, check_clock};

static bool check_domain(void *object, ConfigContext *ctx, const ConfigNode *node, GError **err)
{
    const Domain *domain = object;
    g_autoptr(GError) bad = NULL;
    if (!domain_check_name(domain->name, &bad))
        return config_invalid(ctx, node->line, err, "%s", bad->message);
    if (domain->memory->kib == 0)
        return config_invalid(ctx, node->line, err, "memory: a guest needs more than 0 KiB");
    return true;
}

static const ConfigField domain_fields[] = {
    ENUM(Domain, type, "@type", domain_virt_names, .flags = FIELD_REQUIRED),
    F(Domain, id, "@id", FIELD_UINT),
    F(Domain, name, "name", FIELD_STRING, .flags = FIELD_REQUIRED),
    F(Domain, uuid, "uuid", FIELD_UUID),
    UNAPPLIED(Domain, genid, "genid"),
    F(Domain, title, "title", FIELD_STRING),
    F(Domain, description, "description", FIELD_STRING),
    NODE(Domain, metadata, "metadata"),
    OBJECT(Domain, max_memory, "maxMemory", domain_memory_schema),
    OBJECT(Domain, memory, "memory", domain_memory_schema, .flags = FIELD_REQUIRED),
    OBJECT(Domain, current_memory, "currentMemory", domain_memory_schema),
    UNAPPLIED(Domain, blkiotune, "blkiotune"),
    UNAPPLIED(Domain, memtune, "memtune"),
    UNAPPLIED(Domain, memory_backing, "memoryBacking"),
    OBJECT(Domain, vcpu, "vcpu", domain_vcpu_schema),
    UNAPPLIED(Domain, vcpus, "vcpus"),
    UNAPPLIED(Domain, iothreads, "iothreads"),
    UNAPPLIED(Domain, iothreadids, "iothreadids"),
    UNAPPLIED(Domain, defaultiothread, "defaultiothread"),
    UNAPPLIED(Domain, cputune, "cputune"),
    UNAPPLIED(Domain, numatune, "numatune"),
    UNAPPLIED(Domain, resource, "resource"),
    UNAPPLIED(Domain, keywrap, "keywrap"),
    F(Domain, sysinfo, "sysinfo", FIELD_NODES, .flags = FIELD_UNAPPLIED),
    UNAPPLIED(Domain, bootloader, "bootloader"),
    UNAPPLIED(Domain, bootloader_args, "bootloader_args"),
    OBJECT(Domain, os, "os", domain_os_schema, .flags = FIELD_REQUIRED),
    UNAPPLIED(Domain, idmap, "idmap"),
    OBJECT(Domain, features, "features", domain_features_schema),
    OBJECT(Domain, cpu, "cpu", domain_cpu_schema),
    OBJECT(Domain, clock, "clock", domain_clock_schema),
    ENUM(Domain, on_poweroff, "on_poweroff", domain_action_names),
    ENUM(Domain, on_reboot, "on_reboot", domain_action_names),
    ENUM(Domain, on_crash, "on_crash", domain_action_names),
    F(Domain, on_lockfailure, "on_lockfailure", FIELD_STRING),
    NODE(Domain, pm, "pm"),
    UNAPPLIED(Domain, perf, "perf"),
    F(Domain, devices, "devices", FIELD_CUSTOM, .detail = &domain_devices_custom),
    F(Domain, seclabels, "seclabel", FIELD_NODES, .flags = FIELD_UNAPPLIED),
    NODE(Domain, launch_security, "launchSecurity"),
    {0},
};
const ConfigSchema domain_schema = {sizeof(Domain), domain_fields, check_domain};
