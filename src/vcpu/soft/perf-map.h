/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A map of translated code for perf(1): one line "START SIZE NAME" a piece, in hexadecimal without
 * 0x (Linux, tools/perf/Documentation/jit-interface.txt).
 */
#pragma once

#include "vcpu/soft/cpu.h"

typedef struct SoftPerfMap SoftPerfMap;

/* @path must not exist yet; "%p" in it stands for the process's number. */
SoftPerfMap *soft_perf_map_open(const char *path, GError **err);
void soft_perf_map_close(SoftPerfMap *map); /* NULL is accepted */

/*
 * @size bytes of host code at @host came from guest code at CS:@rip, physical address @gpa, for
 * SoftCpu.mode @mode. Any thread; does nothing if no map was asked for. The file stops growing at
 * 64 MiB, as a guest chooses how much there is to say.
 */
void soft_perf_map_add(SoftVm *vm, const void *host, size_t size, uint64_t rip, uint64_t gpa,
                       uint32_t mode);
