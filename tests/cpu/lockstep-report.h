/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* When two software CPUs are equal, and what to say if they are not. */
#pragma once

#include "vcpu/soft/vm.h"

/* The follower between two instructions. */
typedef struct LockTrace {
    uint64_t rip, gpr[16], rflags;
} LockTrace;

void lockstep_trace(LockTrace *to, const SoftCpu *cpu);
/* All that a guest can see, but for arithmetic flags, which a translator leaves undone where they are not needed. */
bool lockstep_equal(const SoftCpu *lead, const SoftCpu *follow);
/*
 * Registers that differ, who wrote them last, and the way from trace[0] to trace[n], to standard error. @met: the
 * follower's vectors when it came past the leader's RIP.
 */
void lockstep_report(SoftCpu *lead, SoftCpu *follow, const SoftFpu *met, const LockTrace *trace, unsigned n);
void lockstep_dump_ram(const char *who, VcpuVm *vm, uint64_t gpa);
