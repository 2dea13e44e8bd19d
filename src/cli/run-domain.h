/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the options of `lodge run` mean, as a domain. */
#pragma once

#include "config/domain.h"

typedef struct RunDisk {
    char *path, *format, *serial, *cache, *discard;
    bool readonly;
} RunDisk;

typedef struct RunOptions {
    char *file; /* the document; NULL: none */
    char *name, *uuid, *kernel, *initrd, *cmdline, *engine, *net, *mac, *console, *qmp,
        *perf_map, *gdb, *cpu;
    uint64_t memory_kib; /* 0: not given */
    unsigned n_vcpus;    /* 0: not given */
    GPtrArray *disks;    /* of RunDisk */
    bool paused, dry_run, verbose, test_devices;
} RunOptions;

RunOptions *run_options_new(void);
void run_options_free(RunOptions *options);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(RunOptions, run_options_free)

/* "PATH[,format=F][,readonly=on|off][,serial=S][,cache=C][,discard=D]"; commas are doubled. */
bool run_disk_parse(RunOptions *options, const char *text, GError **err);

/* "MODEL[,+FEATURE][,-FEATURE]..." (run-cpu.c): whether it can be meant; applying it. */
bool run_cpu_check(const char *text, GError **err);
void run_cpu_apply(Domain *domain, const char *text);

/* The document with the options applied; every path in it absolute. The caller frees it. */
Domain *run_domain(const RunOptions *options, GError **err);
