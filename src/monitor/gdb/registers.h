/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A vCPU's registers as GDB numbers and names them: one table, from which the target description
 * is made. GDB manual, appendix G.5.18 "x86 Features".
 */
#pragma once

#include <glib.h>
#include <stdbool.h>

#include "vcpu/state.h"

#define GDB_REGISTER_BYTES_MAX 16

unsigned gdb_register_count(void);
unsigned gdb_register_size(unsigned number); /* in bytes */
void gdb_register_get(const VcpuState *state, unsigned number, uint8_t *to);
/* False if this register cannot have that value. */
bool gdb_register_set(VcpuState *state, unsigned number, const uint8_t *from);
/* target.xml; owned by the caller. */
char *gdb_target_description(void);
