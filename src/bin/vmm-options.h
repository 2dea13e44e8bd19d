/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The command line of lodge-vmm. */
#pragma once

#include "machine/machine.h"

typedef struct VmmOptions {
    MachineConfig *config;
    char *qmp;     /* "unix:PATH" or "fd:N"; NULL: none */
    char *gdb;     /* "unix:PATH" or "tcp:ADDRESS:PORT"; NULL: none */
    char *pidfile; /* NULL: none */
    bool verbose, sandbox;
    bool help, version; /* print it and leave; the rest may be incomplete */
} VmmOptions;

VmmOptions *vmm_options_parse(int argc, char **argv, GError **err);
void vmm_options_free(VmmOptions *options);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmmOptions, vmm_options_free)
/* The text of --help; owned by the caller. */
char *vmm_options_help(void);
