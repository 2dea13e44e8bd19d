/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The table of engines, and what does not depend on which one runs. */
#include "vcpu/engine.h"

#include <cpuid.h>
#include <time.h>
#include <x86intrin.h>

#include "base/error.h"

const VcpuEngine *const vcpu_engines[] = {
    &vcpu_engine_kvm,
    &vcpu_engine_soft,
    NULL,
};

static const VcpuEngine *select_named(const char *name, char **reason, GError **err)
{
    for (const VcpuEngine *const *e = vcpu_engines; *e; e++) {
        if (strcmp((*e)->name, name) != 0)
            continue;
        g_autofree char *why = NULL;
        if (!(*e)->probe(&why)) {
            lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "CPU engine '%s' does not work here: %s", name,
                       why);
            return NULL;
        }
        *reason = g_strdup_printf("%s: asked for", name);
        return *e;
    }
    g_autoptr(GString) names = g_string_new("auto");
    for (const VcpuEngine *const *e = vcpu_engines; *e; e++)
        g_string_append_printf(names, ", %s", (*e)->name);
    lodge_fail(err, LODGE_ERROR_INVALID, "no CPU engine is called '%s' (there are: %s)", name,
               names->str);
    return NULL;
}

const VcpuEngine *vcpu_engine_select(const char *name, char **reason, GError **err)
{
    if (strcmp(name, "auto") != 0)
        return select_named(name, reason, err);

    g_autoptr(GString) refused = g_string_new(NULL);
    for (const VcpuEngine *const *e = vcpu_engines; *e; e++) {
        g_autofree char *why = NULL;
        if ((*e)->probe(&why)) {
            *reason = refused->len ? g_strdup_printf("%s: %s", (*e)->name, refused->str)
                                   : g_strdup_printf("%s: the best that works here", (*e)->name);
            return *e;
        }
        g_string_append_printf(refused, "%s%s does not work here (%s)", refused->len ? ", " : "",
                               (*e)->name, why);
    }
    lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "no CPU engine works here: %s", refused->str);
    return NULL;
}

/* CPUID leaf 15H: TSC = crystal * EBX / EAX (SDM vol. 2, CPUID). 0 where it is not enumerated. */
static uint64_t tsc_khz_from_cpuid(void)
{
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid_count(0x15, 0, &a, &b, &c, &d) || !a || !b || !c)
        return 0;
    return (uint64_t)c * b / a / 1000;
}

static uint64_t monotonic_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* One (clock, TSC) pair, of several tries the one that was least disturbed. */
static void sample(uint64_t *ns, uint64_t *tsc)
{
    uint64_t best = UINT64_MAX;
    for (int i = 0; i < 16; i++) {
        uint64_t before = __rdtsc(), now = monotonic_ns(), after = __rdtsc();
        if (after - before < best) {
            best = after - before;
            *ns = now;
            *tsc = before + (after - before) / 2;
        }
    }
}

static uint64_t tsc_khz_measured(void)
{
    uint64_t ns0 = 0, tsc0 = 0, ns1 = 0, tsc1 = 0;
    sample(&ns0, &tsc0);
    struct timespec pause = {.tv_nsec = 4000000};
    nanosleep(&pause, NULL);
    sample(&ns1, &tsc1);
    if (ns1 <= ns0)
        return 1000000;
    return (uint64_t)((unsigned __int128)(tsc1 - tsc0) * 1000000u / (ns1 - ns0));
}

uint64_t vcpu_host_tsc_khz(void)
{
    static gsize khz;
    if (g_once_init_enter(&khz)) {
        uint64_t v = tsc_khz_from_cpuid();
        g_once_init_leave(&khz, v ? v : MAX(tsc_khz_measured(), 1));
    }
    return khz;
}

static VcpuSegment reset_segment(uint16_t selector, uint64_t base, uint32_t attr)
{
    return (VcpuSegment){.base = base, .limit = 0xffff, .attr = attr, .selector = selector};
}

/* Where the FXSAVE image keeps what is not zero after reset (SDM vol. 1 10.5.1). */
#define XSAVE_FCW 0
#define XSAVE_MXCSR 24
#define XSAVE_XSTATE_BV 512

void vcpu_state_reset(VcpuState *state, unsigned index)
{
    *state = (VcpuState){0};
    for (unsigned i = 0; i < SEG_COUNT; i++)
        state->seg[i] = reset_segment(0, 0, 0x93);
    state->seg[SEG_CS] = reset_segment(0xf000, 0xffff0000, 0x9b);
    state->ldtr = reset_segment(0, 0, 0x82);
    state->tr = reset_segment(0, 0, 0x8b);
    state->gdtr.limit = state->idtr.limit = 0xffff;
    state->rip = 0xfff0;
    state->rflags = 2;
    state->cr0 = 0x60000010;
    state->dr[6] = 0xffff0ff0;
    state->dr[7] = 0x400;
    state->xcr0 = 1;
    unsigned a = 0, b, c, d;
    __get_cpuid(1, &a, &b, &c, &d); /* RDX holds the processor's signature */
    state->gpr[GPR_RDX] = a;
    state->activity = index == 0 ? VCPU_RUNNING : VCPU_WAIT_FOR_SIPI;
    state->xsave[XSAVE_FCW] = 0x40;
    state->xsave[XSAVE_MXCSR] = 0x80;
    state->xsave[XSAVE_MXCSR + 1] = 0x1f;
    state->xsave[XSAVE_XSTATE_BV] = 3;
}
