/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Where the local APICs' registers are: IA32_APIC_BASE moves them, for each vCPU apart (SDM vol. 3
 * 10.4.5). vCPUs with the same address share a window. Windows are moved and reused but never freed
 * while the machine lives, so that an access on its way finds one that is not its own any more.
 */
#include "machine/board/layout.h"
#include "machine/irq/lapic.h"

static bool in_use(const LapicDevice *d, const LapicWindow *w)
{
    for (unsigned i = 0; i < d->count; i++)
        if ((d->cpu[i].base & BASE_ADDRESS) == w->base)
            return true;
    return false;
}

void lapic_windows_close_unused(LapicDevice *d)
{
    for (unsigned i = 1; i <= d->count; i++) {
        LapicWindow *w = &d->window[i];
        if (!w->region || in_use(d, w))
            continue;
        io_region_move(w->region, false, 0);
        __atomic_store_n(&w->base, 0, __ATOMIC_RELAXED);
    }
}

bool lapic_window_open(LapicDevice *d, uint64_t base)
{
    LapicWindow *free = NULL;
    for (unsigned i = 0; i <= d->count; i++) {
        LapicWindow *w = &d->window[i];
        if (w->region && w->base == base && w->region->visible)
            return true;
        if (i && !free && (!w->region || !in_use(d, w)))
            free = w;
    }
    /* With a window for each vCPU and one more, one is free. */
    if (!free || machine_ram(d->dev.machine, base, 0x1000))
        return false;
    if (!free->region)
        free->region =
            io_region_new(d->dev.machine, false, 0x1000, &lapic_ops, free, "lapic-moved");
    if (!free->region)
        return false;
    free->device = d;
    __atomic_store_n(&free->base, base, __ATOMIC_RELAXED);
    io_region_move(free->region, true, base);
    if (free->region->visible)
        return true;
    io_region_move(free->region, false, 0);
    __atomic_store_n(&free->base, 0, __ATOMIC_RELAXED);
    return false;
}
