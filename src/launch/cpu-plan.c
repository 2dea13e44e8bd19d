/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* From <cpu> to lodge-vmm's --cpu: the model, its features, and what is checked. */
#include <string.h>

#include "base/x86-cpu.h"
#include "launch/plan-internal.h"

static const char *const max_model = "max";

/* <model> of mode='custom'. */
static const char *custom_model(Plan *plan, const DomainCpuModel *model)
{
    const char *closest = x86_model_closest(model->name);
    unsigned line = model->object.line;
    g_autofree char *ours = g_strjoinv(", ", (char **)x86_models);
    if (!closest) {
        plan_refuse(plan, line, "cpu/model", "no CPU model is called '%s'; there are: %s",
                    model->name, ours);
        return max_model;
    }
    if (strcmp(closest, model->name) == 0)
        return closest;
    if (model->fallback && strcmp(model->fallback, "forbid") == 0)
        plan_refuse(plan, line, "cpu/model",
                    "'%s' is not built (there are: %s), and its fallback='forbid'", model->name,
                    ours);
    else
        plan_warn(plan, line, "cpu/model", "'%s' is not built; the guest gets the closest: %s",
                  model->name, closest);
    return closest;
}

static void add_feature(Plan *plan, GString *spec, const DomainCpuFeature *feature)
{
    const char *policy = feature->policy ? domain_cpu_policy_names[feature->policy] : "require";
    const X86Feature *known = x86_feature_find(feature->name);
    unsigned line = feature->object.line;
    if (known)
        g_string_append_printf(spec, ",%s=%s", known->name, policy);
    else if (strcmp(policy, "require") == 0)
        plan_refuse(plan, line, "cpu/feature", "no CPU feature is called '%s'", feature->name);
    else
        plan_warn(plan, line, "cpu/feature",
                  "no CPU feature is called '%s': the guest does not have it", feature->name);
}

/* What has no effect is not passed over in silence. */
static void say_unapplied(Plan *plan, const DomainCpu *cpu)
{
    unsigned line = cpu->object.line;
    if (cpu->vendor)
        plan_warn(plan, line, "cpu/vendor", "not checked: the guest sees the host's vendor");
    if (cpu->model && cpu->model->vendor_id)
        plan_warn(plan, cpu->model->object.line, "cpu/model/@vendor_id",
                  "not applied: the guest sees the host's vendor");
    if (cpu->migratable)
        plan_note(plan, line, "cpu/@migratable", "the guest sees all that the engine has");
}

static void add_cpu(Plan *plan, GString *spec, const DomainCpu *cpu)
{
    const char *mode = domain_cpu_mode_names[cpu->mode];
    const char *match = domain_cpu_match_names[cpu->match];
    bool custom = !*mode || strcmp(mode, "custom") == 0;
    if (custom && cpu->model && cpu->model->name)
        g_string_assign(spec, custom_model(plan, cpu->model));
    for (guint i = 0; i < cpu->features->len; i++)
        add_feature(plan, spec, cpu->features->pdata[i]);
    if (custom && *match && strcmp(match, "exact") != 0)
        g_string_append_printf(spec, ",match=%s", match);
    if (strcmp(domain_cpu_check_names[cpu->check], "none") == 0)
        g_string_append(spec, ",check=off");
    say_unapplied(plan, cpu);
}

/* <timer name='kvmclock' present='no'/> is about a CPU feature. */
static bool clock_is_off(const Domain *domain)
{
    for (guint i = 0; domain->clock && i < domain->clock->timers->len; i++) {
        const DomainTimer *timer = domain->clock->timers->pdata[i];
        if (strcmp(domain_timer_names[timer->name], "kvmclock") == 0)
            return timer->present == DOMAIN_SWITCH_OFF;
    }
    return false;
}

void plan_cpu_model(Plan *plan)
{
    g_autoptr(GString) spec = g_string_new(max_model);
    if (plan->domain->cpu)
        add_cpu(plan, spec, plan->domain->cpu);
    if (clock_is_off(plan->domain))
        g_string_append(spec, ",kvmclock=disable");
    if (strcmp(spec->str, max_model) != 0)
        plan_option(plan, "--cpu", spec->str);
}
