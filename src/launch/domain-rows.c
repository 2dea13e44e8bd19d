/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the elements outside <devices> become. */
#include <inttypes.h>
#include <string.h>

#include "launch/plan-internal.h"

/* ---- generic nodes: kept by config, decided here */

typedef enum Verdict { VERDICT_REFUSE, VERDICT_WARN, VERDICT_NOTE } Verdict;

typedef struct NodeRow {
    const char *label;
    size_t offset;
    const char *harmless_attribute, *harmless_value; /* then no word is lost about it */
    Verdict verdict;
    const char *reason;
} NodeRow;

static const NodeRow os_rows[] = {
    {"os/loader", offsetof(DomainOs, loader), NULL, NULL, VERDICT_REFUSE,
     "firmware is not built yet; boot a kernel with <kernel>, <initrd> and <cmdline>"},
    {"os/nvram", offsetof(DomainOs, nvram), NULL, NULL, VERDICT_REFUSE,
     "firmware variables need firmware, which is not built yet"},
    {"os/firmware", offsetof(DomainOs, firmware_features), NULL, NULL, VERDICT_REFUSE,
     "firmware is not built yet"},
    {"os/acpi", offsetof(DomainOs, acpi), NULL, NULL, VERDICT_REFUSE,
     "extra ACPI tables are not built yet"},
    {"os/smbios", offsetof(DomainOs, smbios), "mode", "emulate", VERDICT_WARN,
     "the guest sees Lodge's own SMBIOS, with this domain's UUID"},
    {"os/bootmenu", offsetof(DomainOs, bootmenu), "enable", "no", VERDICT_NOTE,
     "a kernel that is booted directly has no boot menu"},
    {"os/bios", offsetof(DomainOs, bios), NULL, NULL, VERDICT_NOTE,
     "a kernel that is booted directly has no BIOS"},
    {0},
};

static const NodeRow feature_rows[] = {
    {"features/hap", offsetof(DomainFeatures, hap), NULL, NULL, VERDICT_NOTE, "the engine decides"},
    {"features/viridian", offsetof(DomainFeatures, viridian), NULL, NULL, VERDICT_WARN,
     "Xen's feature; not applied"},
    {"features/privnet", offsetof(DomainFeatures, privnet), NULL, NULL, VERDICT_WARN,
     "a container's feature; not applied"},
    {"features/hyperv", offsetof(DomainFeatures, hyperv), NULL, NULL, VERDICT_WARN,
     "Hyper-V enlightenments are not built yet; Windows runs without them"},
    {"features/kvm", offsetof(DomainFeatures, kvm), NULL, NULL, VERDICT_WARN, "not applied"},
    {"features/xen", offsetof(DomainFeatures, xen), NULL, NULL, VERDICT_WARN, "not applied"},
    {"features/pvspinlock", offsetof(DomainFeatures, pvspinlock), "state", "off", VERDICT_WARN,
     "not applied"},
    {"features/pmu", offsetof(DomainFeatures, pmu), "state", "off", VERDICT_WARN,
     "the guest sees no performance counters"},
    {"features/vmport", offsetof(DomainFeatures, vmport), "state", "off", VERDICT_WARN,
     "VMware's I/O port is not built"},
    {"features/smm", offsetof(DomainFeatures, smm), "state", "off", VERDICT_WARN,
     "system management mode is not built"},
    {"features/ioapic", offsetof(DomainFeatures, ioapic), NULL, NULL, VERDICT_NOTE,
     "the engine decides where the IOAPIC is"},
    {"features/vmcoreinfo", offsetof(DomainFeatures, vmcoreinfo), "state", "off", VERDICT_WARN,
     "not built yet"},
    {"features/tcg", offsetof(DomainFeatures, tcg), NULL, NULL, VERDICT_NOTE,
     "sizes QEMU's translator, which is not used"},
    {0},
};

static const NodeRow cpu_rows[] = {
    {"cpu/cache", offsetof(DomainCpu, cache), NULL, NULL, VERDICT_WARN, "not applied"},
    {"cpu/maxphysaddr", offsetof(DomainCpu, maxphysaddr), NULL, NULL, VERDICT_WARN, "not applied"},
    {"cpu/numa", offsetof(DomainCpu, numa), NULL, NULL, VERDICT_REFUSE,
     "NUMA nodes are not built yet; remove the element: the guest sees one node"},
    {0},
};

static void judge_nodes(Plan *plan, const NodeRow *rows, const void *object)
{
    for (; rows->label; rows++) {
        const ConfigNode *node = *(ConfigNode *const *)((const char *)object + rows->offset);
        if (!node)
            continue;
        const char *value =
            rows->harmless_attribute ? config_node_attribute(node, rows->harmless_attribute) : NULL;
        if (value && strcmp(value, rows->harmless_value) == 0)
            continue;
        if (rows->verdict == VERDICT_REFUSE)
            plan_refuse(plan, node->line, rows->label, "%s", rows->reason);
        else if (rows->verdict == VERDICT_WARN)
            plan_warn(plan, node->line, rows->label, "%s", rows->reason);
        else
            plan_note(plan, node->line, rows->label, "%s", rows->reason);
    }
}

/* ---- elements */

static void plan_identity(Plan *plan)
{
    plan_option(plan, "--name", plan->domain->name);
    plan_option(plan, "--uuid", plan->domain->uuid);
    const char *engine = launch_engine(plan->domain);
    if (engine)
        plan_option(plan, "--engine", engine);
    else
        plan_refuse(plan, plan->domain->object.line, "domain/@type",
                    "'%s' is another hypervisor's; Lodge runs type='kvm' (any engine) and "
                    "type='qemu' (its software CPU)",
                    domain_virt_names[plan->domain->type]);
    if (plan->domain->launch_security)
        plan_refuse(plan, plan->domain->launch_security->line, "launchSecurity",
                    "encrypted guests are not built");
}

static void plan_memory(Plan *plan)
{
    const Domain *domain = plan->domain;
    /* The board takes whole MiB; what is started is never less than what was asked for. */
    uint64_t mib = domain->memory->kib / 1024 + (domain->memory->kib % 1024 != 0);
    g_autofree char *size = g_strdup_printf("%" PRIu64 "M", mib);
    plan_option(plan, "--memory", size);
    if (domain->current_memory && domain->current_memory->kib < domain->memory->kib)
        plan_warn(plan, domain->current_memory->object.line, "currentMemory",
                  "the guest starts with all of <memory>; give the balloon its size over QMP");
    if (domain->max_memory)
        plan_warn(plan, domain->max_memory->object.line, "maxMemory",
                  "adding memory to a running guest is not built yet");
}

static void plan_vcpus(Plan *plan)
{
    const DomainVcpu *vcpu = plan->domain->vcpu;
    const DomainCpu *cpu = plan->domain->cpu;
    const DomainCpuTopology *topology = cpu ? cpu->topology : NULL;
    unsigned line = vcpu->object.line;
    g_autoptr(GString) text = g_string_new(NULL);
    g_string_printf(text, "%" PRId64, vcpu->count);
    if (vcpu->current > 0 && vcpu->current != vcpu->count)
        plan_refuse(plan, line, "vcpu/@current",
                    "adding vCPUs to a running guest is not built yet; make current the same as %d",
                    (int)vcpu->count);
    if (vcpu->cpuset)
        plan_warn(plan, line, "vcpu/@cpuset", "vCPUs are not pinned to host CPUs yet");
    if (topology) {
        int64_t dies = topology->dies > 0 ? topology->dies : 1;
        if (topology->sockets * dies * topology->cores * topology->threads != vcpu->count)
            plan_refuse(plan, topology->object.line, "cpu/topology",
                        "sockets x dies x cores x threads is not the number of vCPUs (%d)",
                        (int)vcpu->count);
        else if (dies > 1)
            plan_refuse(plan, topology->object.line, "cpu/topology",
                        "several dies in a socket are not built; use dies='1' and more cores");
        else
            g_string_append_printf(text, ",sockets=%d,cores=%d,threads=%d", (int)topology->sockets,
                                   (int)topology->cores, (int)topology->threads);
    }
    plan_option(plan, "--vcpus", text->str);
}

static void plan_cpu(Plan *plan)
{
    if (plan->domain->cpu)
        judge_nodes(plan, cpu_rows, plan->domain->cpu);
    plan_cpu_model(plan);
}

static bool is_q35(const char *machine)
{
    return strcmp(machine, "q35") == 0 || g_str_has_prefix(machine, "pc-q35-");
}

static void plan_os(Plan *plan)
{
    const DomainOs *os = plan->domain->os;
    unsigned line = os->type->object.line;
    if (strcmp(os->type->type, "hvm") != 0)
        plan_refuse(plan, line, "os/type", "'%s' is not built; only hvm is", os->type->type);
    if (os->type->arch && strcmp(os->type->arch, "x86_64") != 0)
        plan_refuse(plan, line, "os/type/@arch", "'%s' is not built; only x86_64 is",
                    os->type->arch);
    if (os->type->machine && !is_q35(os->type->machine))
        plan_refuse(plan, line, "os/type/@machine", "'%s' is not built; use machine='q35'",
                    os->type->machine);
    if (os->firmware)
        plan_refuse(plan, os->object.line, "os/@firmware", "firmware '%s' is not built yet",
                    os->firmware);
    if (os->dtb)
        plan_refuse(plan, os->object.line, "os/dtb", "an x86 guest has no device tree");
    judge_nodes(plan, os_rows, os);
    if (!os->kernel) {
        plan_refuse(plan, os->object.line, "os",
                    "no <kernel>: this version boots kernels directly (firmware and boot from disk "
                    "are not built yet); add <kernel>, <initrd> and <cmdline>");
        return;
    }
    plan_option(plan, "--kernel", os->kernel);
    if (os->initrd)
        plan_option(plan, "--initrd", os->initrd);
    if (os->cmdline)
        plan_option(plan, "--cmdline", os->cmdline);
}

static void plan_features(Plan *plan)
{
    const DomainFeatures *features = plan->domain->features;
    if (features)
        judge_nodes(plan, feature_rows, features);
    if (!features || !features->acpi)
        plan_note(plan, plan->domain->object.line, "features/acpi",
                  "not asked for, but the board always has ACPI");
}

/* ---- clock */

static int64_t zone_offset_s(const char *zone, int64_t now_s, bool *known)
{
    g_autoptr(GTimeZone) tz = zone ? g_time_zone_new_identifier(zone) : g_time_zone_new_local();
    *known = tz != NULL;
    if (!tz)
        return 0;
    return g_time_zone_get_offset(tz, g_time_zone_find_interval(tz, G_TIME_TYPE_UNIVERSAL, now_s));
}

static int64_t clock_offset_s(Plan *plan, const DomainClock *clock)
{
    int64_t now_s = g_get_real_time() / G_USEC_PER_SEC, number = 0;
    unsigned line = clock->object.line;
    bool known = true;
    switch (clock->offset) {
    case DOMAIN_CLOCK_LOCALTIME:
        return zone_offset_s(NULL, now_s, &known);
    case DOMAIN_CLOCK_TIMEZONE:
        number = zone_offset_s(clock->timezone, now_s, &known);
        if (!known)
            plan_refuse(plan, line, "clock/@timezone", "'%s' is not a time zone of this host",
                        clock->timezone);
        return number;
    case DOMAIN_CLOCK_VARIABLE:
        if (clock->basis && strcmp(clock->basis, "localtime") == 0)
            number = zone_offset_s(NULL, now_s, &known);
        G_GNUC_FALLTHROUGH;
    case DOMAIN_CLOCK_UTC:
        if (clock->adjustment && strcmp(clock->adjustment, "reset") != 0) {
            gint64 adjustment = 0;
            if (!g_ascii_string_to_signed(clock->adjustment, 10, -(1LL << 40), 1LL << 40,
                                          &adjustment, NULL))
                plan_refuse(plan, line, "clock/@adjustment", "'%s' is not a number of seconds",
                            clock->adjustment);
            number += adjustment;
        }
        return number;
    case DOMAIN_CLOCK_ABSOLUTE:
        if (!g_ascii_string_to_signed(clock->start, 10, 0, 1LL << 40, &number, NULL)) {
            plan_refuse(plan, line, "clock/@start", "'%s' is not a number of seconds since 1970",
                        clock->start);
            return 0;
        }
        return number - now_s;
    default:
        return 0;
    }
}

static void plan_timer(Plan *plan, const DomainTimer *timer)
{
    g_autofree char *label = g_strdup_printf("<timer name='%s'>", domain_timer_names[timer->name]);
    bool off = timer->present == DOMAIN_SWITCH_OFF;
    if (strcmp(domain_timer_names[timer->name], "hpet") == 0) {
        if (off)
            plan_option(plan, "--no-hpet", NULL);
    } else if (off && strcmp(domain_timer_names[timer->name], "kvmclock") != 0) {
        plan_warn(plan, timer->object.line, label, "this timer is always there");
    }
    if (timer->frequency >= 0)
        plan_warn(plan, timer->object.line, label, "its frequency is the host's");
    if (timer->catchup || timer->mode)
        plan_warn(plan, timer->object.line, label, "mode and catchup are not applied");
    if (timer->tickpolicy || timer->track)
        plan_note(plan, timer->object.line, label,
                  "ticks that the guest missed are not delivered later");
}

static void plan_clock(Plan *plan)
{
    const DomainClock *clock = plan->domain->clock;
    if (!clock)
        return;
    int64_t offset_s = clock_offset_s(plan, clock);
    if (offset_s) {
        g_autofree char *text = g_strdup_printf("%" PRId64, offset_s);
        plan_option(plan, "--rtc-offset", text);
    }
    for (guint i = 0; i < clock->timers->len; i++)
        plan_timer(plan, clock->timers->pdata[i]);
}

/* ---- what happens at the end of a guest */

static void plan_lifecycle(Plan *plan)
{
    const Domain *domain = plan->domain;
    unsigned line = domain->object.line;
    if (domain->on_reboot == DOMAIN_ACTION_DESTROY)
        plan_option(plan, "--no-reboot", NULL);
    else if (domain->on_reboot > DOMAIN_ACTION_RESTART)
        plan_refuse(plan, line, "on_reboot", "'%s' is not built; use restart or destroy",
                    domain_action_names[domain->on_reboot]);
    if (domain->on_poweroff > DOMAIN_ACTION_DESTROY)
        plan_refuse(plan, line, "on_poweroff", "'%s' is not built; use destroy",
                    domain_action_names[domain->on_poweroff]);
    if (domain->on_crash > DOMAIN_ACTION_DESTROY)
        plan_note(plan, line, "on_crash",
                  "'%s': without a panic device, which is not built yet, a crash is not noticed",
                  domain_action_names[domain->on_crash]);
    for (unsigned i = 0; domain->pm && i < config_node_count(domain->pm); i++) {
        const ConfigNode *state = config_node_nth(domain->pm, i);
        const char *enabled = state->name ? config_node_attribute(state, "enabled") : NULL;
        if (enabled && strcmp(enabled, "yes") == 0)
            plan_warn(plan, state->line, state->name, "the board has no sleep states");
    }
}

void plan_domain(Plan *plan)
{
    plan_identity(plan);
    plan_memory(plan);
    plan_vcpus(plan);
    plan_cpu(plan);
    plan_os(plan);
    plan_features(plan);
    plan_clock(plan);
    plan_lifecycle(plan);
}
