/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * lockstep-vmm is lodge-vmm with the engine `lockstep` behind its back: the linker leads its choice of an engine here
 * (--wrap, ld(1)).
 */
#include "base/error.h"
#include "lockstep.h"

const VcpuEngine *__wrap_vcpu_engine_select(const char *name, char **reason, GError **err);

const VcpuEngine *__wrap_vcpu_engine_select(const char *name, char **reason, GError **err)
{
    *reason = g_strdup_printf("%s: two software CPUs", vcpu_engine_lockstep.name);
    return &vcpu_engine_lockstep;
}

static void __attribute__((destructor)) at_exit(void)
{
    lockstep_summary();
}
