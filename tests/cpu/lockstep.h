/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The engine `lockstep`: two software CPUs side by side, each with RAM of its own. The leader is the one under
 * test, by its VcpuTuning; it has the machine's RAM and bus. After each of its blocks the follower, an interpreter
 * of single instructions, comes after it, with what the leader got from outside (port and MMIO reads, interrupts,
 * the time, DMA) from a log, and must arrive at the same state. If it does not, the process says where, and ends.
 * One vCPU.
 */
#pragma once

#include "vcpu/engine.h"

extern const VcpuEngine vcpu_engine_lockstep;

/* How many times slower the guest's TSC goes than the host's; 1 at first. */
extern unsigned lockstep_slow;

/* How many blocks and instructions were compared, to standard error; for the end of a run. */
void lockstep_summary(void);
