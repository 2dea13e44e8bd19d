/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * For unit tests of devices: a machine without a CPU. Its engine runs nothing and notes the
 * interrupt lines that devices drive.
 */
#pragma once

#include "machine/machine-internal.h"

/* A machine of 16 MiB without a board. */
Machine *test_machine_new(void);
bool test_gsi(unsigned gsi);           /* the line's level */
unsigned test_gsi_rises(unsigned gsi); /* since the last call for it */
uint64_t test_in(Machine *m, uint16_t port, unsigned size);
void test_out(Machine *m, uint16_t port, unsigned size, uint64_t value);
/* Runs what is pending on the machine's main loop, and what becomes so within @ms. */
void test_loop(Machine *m, unsigned ms);
