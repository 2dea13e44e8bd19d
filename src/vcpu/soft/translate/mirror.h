/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Mirrored memory: the pages of a guest process, mapped into the VMM's own address space, so that its
 * user code needs no TLB check: host address = linear address + delta of its window.
 *
 * A window is 1 TiB of linear addresses, mapped somewhere between guard regions as large as any
 * displacement. The table SoftCpu.window_delta gives for bits 40-47 of a linear address what is to be
 * added; for windows that are not there, what leads into a guard region or to no canonical address.
 * So whatever address guest code makes up, it reaches its own process's mirrored pages or a fault:
 * the windows confine it as a TLB would.
 *
 * A mirror is kept as a TLB is: filled on a fault (SIGSEGV), page by page, with the rights that the
 * guest's page tables give then; dropped where the guest flushes; one for each PCID. It costs
 * microseconds a page, so only processes that have run for a while get one, and those whose mappings
 * change all the time lose it.
 */
#pragma once

#include <signal.h>

#include "vcpu/soft/cpu.h"

typedef struct SoftMirror SoftMirror;

#define MIRROR_WINDOW_BITS 40

/* Without a mirror (PCIDs off, no address space left) user code uses the software TLB. */
void mirror_init(SoftCpu *cpu);
void mirror_free(SoftCpu *cpu);
/* On the vCPU's thread, before it runs: signals and their stack. */
void mirror_thread_start(SoftCpu *cpu);
/* When it returns: the thread's own signal stack comes back. */
void mirror_thread_end(SoftCpu *cpu);
/* The part of it in mirror-signal.c. */
void mirror_thread_signals(SoftCpu *cpu);

/* As the TLB is told (mmu.c). */
void mirror_load_cr3(SoftCpu *cpu, bool flushed);
void mirror_drop_pcid(SoftCpu *cpu, unsigned pcid);
void mirror_drop_page(SoftCpu *cpu, unsigned pcid, uint64_t linear);
void mirror_drop_all(SoftCpu *cpu);
void mirror_protect(SoftCpu *cpu, uint64_t gpa, bool all);

/* Called when user code is about to run: whether it may use the mirror. */
bool mirror_ready(SoftCpu *cpu);
/* In the signal handler: maps the page of host address @at. False: nothing to map there. */
bool mirror_fill(SoftCpu *cpu, uint64_t at, unsigned access);
