/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* `lodge run --cpu MODEL[,+FEATURE][,-FEATURE]...` as the <cpu> element. */
#include <string.h>

#include "base/error.h"
#include "base/x86-cpu.h"
#include "cli/run-domain.h"

bool run_cpu_check(const char *text, GError **err)
{
    g_auto(GStrv) pieces = g_strsplit(text, ",", -1);
    g_autofree char *models = g_strjoinv(", ", (char **)x86_models);
    const char *model = pieces[0] ? pieces[0] : "";
    if (!g_strv_contains(x86_models, model))
        return lodge_fail(err, LODGE_ERROR_INVALID, "no CPU model is called '%s' (there are: %s)",
                          model, models);
    for (unsigned i = 1; pieces[i]; i++) {
        if (*pieces[i] != '+' && *pieces[i] != '-')
            return lodge_fail(err, LODGE_ERROR_INVALID,
                              "'%s' is not +FEATURE or -FEATURE, such as +aes", pieces[i]);
        if (!x86_feature_find(pieces[i] + 1))
            return lodge_fail(err, LODGE_ERROR_INVALID, "no CPU feature is called '%s'",
                              pieces[i] + 1);
    }
    return true;
}

/* The topology stays: --cpu is about what a CPU is, not about how many there are. */
void run_cpu_apply(Domain *domain, const char *text)
{
    g_auto(GStrv) pieces = g_strsplit(text, ",", -1);
    DomainCpu *cpu = config_object_new(&domain_cpu_schema);
    if (domain->cpu) {
        cpu->topology = g_steal_pointer(&domain->cpu->topology);
        cpu->numa = g_steal_pointer(&domain->cpu->numa);
        config_object_free(&domain_cpu_schema, domain->cpu);
    }
    domain->cpu = cpu;
    if (strcmp(pieces[0], x86_models[0]) == 0) {
        cpu->mode = config_enum_find(domain_cpu_mode_names, "maximum");
    } else {
        cpu->mode = config_enum_find(domain_cpu_mode_names, "custom");
        cpu->match = config_enum_find(domain_cpu_match_names, "exact");
        cpu->model = config_object_new(&domain_cpu_model_schema);
        cpu->model->fallback = g_strdup("forbid");
        cpu->model->name = g_strdup(pieces[0]);
    }
    for (unsigned i = 1; pieces[i]; i++) {
        DomainCpuFeature *feature = config_object_new(&domain_cpu_feature_schema);
        feature->policy = config_enum_find(domain_cpu_policy_names,
                                           *pieces[i] == '+' ? "require" : "disable");
        feature->name = g_strdup(pieces[i] + 1);
        g_ptr_array_add(cpu->features, feature);
    }
}
