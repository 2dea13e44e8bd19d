/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * For tests: an engine whose vCPUs run nothing, and a machine on it. Its clock stands still and is
 * moved by machine_clock_advance, so that timers are exact.
 */
#pragma once

#include "machine/machine-internal.h"

typedef struct TestVcpu {
    Vcpu vcpu;
    GMutex lock;
    GCond wake;
    bool kicked;
    unsigned runs, interrupts, nmis, inits, sipis;
    unsigned sipi_vector;
    VcpuExit exit_with; /* what run returns once instead of waiting; VCPU_EXIT_KICK: waits */
    VcpuState state;
} TestVcpu;

extern const VcpuEngine test_engine;

/* A configuration of 64 MiB and @n_vcpus. */
MachineConfig *test_config(unsigned n_vcpus);
/* A machine with nothing on its buses; aborts the test on failure. */
Machine *test_machine(unsigned n_vcpus);
/* With interrupt controllers, timers and a PCI root, as board_q35_init makes them, but no ACPI or
 * boot. */
Machine *test_board(unsigned n_vcpus);
TestVcpu *test_vcpu(Machine *m, unsigned index);
/* An access as if by vCPU @vcpu. */
uint64_t test_mmio_read(Machine *m, unsigned vcpu, uint64_t gpa, unsigned size);
void test_mmio_write(Machine *m, unsigned vcpu, uint64_t gpa, unsigned size, uint64_t value);
uint8_t test_in(Machine *m, uint16_t port);
void test_out(Machine *m, uint16_t port, uint8_t value);
