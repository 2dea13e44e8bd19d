/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The human monitor, as far as QMP's human-monitor-command offers it. */
#include <string.h>

#include "base/error.h"
#include "monitor/qmp-session.h"

typedef struct HmpCommand {
    const char *name, *help;
    bool (*run)(Machine *m, unsigned cpu, GString *to, GError **err);
} HmpCommand;

static const char *const status_names[] = {
    [MACHINE_PRELAUNCH] = "prelaunch",  [MACHINE_RUNNING] = "running",
    [MACHINE_PAUSED] = "paused",        [MACHINE_SHUTDOWN] = "shutdown",
    [MACHINE_ERROR] = "internal-error",
};

const char *monitor_status_name(MachineStatus status)
{
    return status_names[status];
}

static bool info_status(Machine *m, unsigned cpu, GString *to, GError **err)
{
    MachineStatus status = machine_status(m);
    g_string_append(to, "VM status: ");
    if (status == MACHINE_RUNNING || status == MACHINE_PAUSED)
        g_string_append(to, monitor_status_name(status));
    else
        g_string_append_printf(to, "paused (%s)", monitor_status_name(status));
    g_string_append(to, "\r\n");
    return true;
}

static bool info_version(Machine *m, unsigned cpu, GString *to, GError **err)
{
    g_string_append(to, "7.2.0 (lodge " LODGE_VERSION ")\r\n");
    return true;
}

static bool info_name(Machine *m, unsigned cpu, GString *to, GError **err)
{
    const char *name = machine_config(m)->name;
    g_string_append_printf(to, "%s\r\n", name ? name : "");
    return true;
}

static bool info_kvm(Machine *m, unsigned cpu, GString *to, GError **err)
{
    bool kvm = strcmp(machine_engine_name(m), "kvm") == 0;
    g_string_append_printf(to, "kvm support: %s\r\n", kvm ? "enabled" : "disabled");
    return true;
}

typedef struct StateRequest {
    VcpuState *state;
    bool ok;
    GError *error;
} StateRequest;

static void take_state(Vcpu *vcpu, void *opaque)
{
    StateRequest *r = opaque;
    r->ok = vcpu->engine->get_state(vcpu, r->state, &r->error);
}

static bool print_registers(Machine *m, unsigned cpu, GString *to, GError **err)
{
    g_autofree VcpuState *state = g_new0(VcpuState, 1);
    StateRequest request = {.state = state};
    machine_with_vcpu(m, cpu, take_state, &request);
    if (request.ok)
        registers_print(to, cpu, state);
    else if (request.error)
        g_propagate_error(err, request.error);
    else
        return lodge_fail(err, LODGE_ERROR_INTERNAL, "CPU %u gave no state", cpu);
    return request.ok;
}

static bool print_all_registers(Machine *m, unsigned cpu, GString *to, GError **err)
{
    for (unsigned i = 0; i < machine_vcpu_count(m); i++)
        if (!print_registers(m, i, to, err))
            return false;
    return true;
}

static bool help(Machine *m, unsigned cpu, GString *to, GError **err);

static const HmpCommand hmp_commands[] = {
    {"help", "this list", help},
    {"info status", "whether the machine runs", info_status},
    {"info registers", "the registers of the chosen CPU", print_registers},
    {"info registers -a", "the registers of every CPU", print_all_registers},
    {"info version", "the version", info_version},
    {"info name", "the machine's name", info_name},
    {"info kvm", "whether KVM is in use", info_kvm},
};

static bool help(Machine *m, unsigned cpu, GString *to, GError **err)
{
    for (size_t i = 0; i < G_N_ELEMENTS(hmp_commands); i++)
        g_string_append_printf(to, "%s -- %s\r\n", hmp_commands[i].name, hmp_commands[i].help);
    return true;
}

/* The words of @line with single spaces between them. */
static char *normalize(const char *line)
{
    g_auto(GStrv) words = g_strsplit_set(line, " \t\r\n", -1);
    GString *text = g_string_new(NULL);
    for (char **w = words; *w; w++)
        if (**w)
            g_string_append_printf(text, "%s%s", text->len ? " " : "", *w);
    return g_string_free(text, FALSE);
}

char *hmp_run(Machine *m, const char *line, unsigned cpu, GError **err)
{
    g_autofree char *wanted = normalize(line);
    for (size_t i = 0; i < G_N_ELEMENTS(hmp_commands); i++) {
        if (strcmp(hmp_commands[i].name, wanted))
            continue;
        g_autoptr(GString) text = g_string_new(NULL);
        if (!hmp_commands[i].run(m, cpu, text, err))
            return NULL;
        return g_strdup(text->str);
    }
    return g_strdup_printf("unknown command: '%s'; help lists them\r\n", wanted);
}
