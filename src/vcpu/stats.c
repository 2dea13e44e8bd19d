/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The counters of a vCPU by name. */
#include <stddef.h>

#include "vcpu/engine.h"

#define FIELD(name, member, kind, unit)                                                            \
    {                                                                                              \
        name, offsetof(VcpuStats, member), VCPU_STAT_##kind, VCPU_STAT_##unit                      \
    }

const VcpuStatField vcpu_stat_fields[] = {
    FIELD("blocks-decoded", blocks_decoded, CUMULATIVE, COUNT),
    FIELD("blocks-translated", blocks_translated, CUMULATIVE, COUNT),
    FIELD("translated-guest-bytes", translated_guest_bytes, CUMULATIVE, BYTES),
    FIELD("translated-host-bytes", translated_host_bytes, CUMULATIVE, BYTES),
    FIELD("translation-time", translation_ns, CUMULATIVE, NS),
    FIELD("code-cache-size", code_cache_size, INSTANT, BYTES),
    FIELD("code-cache-used", code_cache_used, INSTANT, BYTES),
    FIELD("code-cache-evictions", code_cache_evictions, CUMULATIVE, COUNT),
    FIELD("code-cache-pause", code_cache_pause_ns, PEAK, NS),
    FIELD("tlb-misses", tlb_misses, CUMULATIVE, COUNT),
    FIELD("tlb-walks", tlb_walks, CUMULATIVE, COUNT),
    FIELD("mirror-fills", mirror_fills, CUMULATIVE, COUNT),
    FIELD("exits-interrupt", exits_interrupt, CUMULATIVE, COUNT),
    FIELD("exits-io", exits_io, CUMULATIVE, COUNT),
    FIELD("exits-mmio", exits_mmio, CUMULATIVE, COUNT),
    FIELD("exits-halt", exits_halt, CUMULATIVE, COUNT),
    FIELD("exits-fault", exits_fault, CUMULATIVE, COUNT),
    FIELD("exits-helper", exits_helper, CUMULATIVE, COUNT),
    FIELD("exits-smc", exits_smc, CUMULATIVE, COUNT),
    FIELD("exits-kick", exits_kick, CUMULATIVE, COUNT),
    {0},
};

void vcpu_stats_copy(VcpuStats *to, const VcpuStats *from)
{
    for (const VcpuStatField *f = vcpu_stat_fields; f->name; f++)
        *(uint64_t *)((char *)to + f->offset) =
            __atomic_load_n((const uint64_t *)((const char *)from + f->offset), __ATOMIC_RELAXED);
}
