/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The translator, as the rest of the software CPU sees it. */
#pragma once

#include "vcpu/soft/cpu.h"

/* Whether the code at cpu->rip may be translated: 64-bit mode, no single steps, none of the guest's
 * code breakpoints (a debugger's are fine). */
bool soft_translate_possible(const SoftCpu *cpu);
/* As soft_blocks_run: at least one instruction, until something is pending. May raise faults. */
void soft_translate_run(SoftCpu *cpu);

#define CODE_CACHE_DEFAULT (64u << 20) /* bytes of translated code a VM */

/* A code cache of @size bytes. NULL cpu->code: the interpreter only. */
bool code_cache_init(SoftCpu *cpu, uint64_t size, GError **err);
void code_cache_free(SoftCpu *cpu);
/* Forgets all translated code. */
void code_cache_flush(SoftCpu *cpu);
