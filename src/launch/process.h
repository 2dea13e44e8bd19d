/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The guest process: where its program is, and its start. */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/*
 * The path of lodge-vmm: $LODGE_VMM, or beside the running program, or in libexec of the
 * installation. NULL and @err if there is none. The caller frees it.
 */
char *launch_find_vmm(GError **err);
/* The same for any program of the project, such as "lodge-img". */
char *launch_find_program(const char *name, GError **err);

/*
 * Starts @vmm with @argv (a plan's, without the program). It shares standard input, output and
 * error, and is told to end (SIGTERM) when this process dies. *pid is a child to wait for.
 */
bool launch_spawn(const char *vmm, const GPtrArray *argv, pid_t *pid, GError **err);

/* One line a person could type: words quoted where the shell needs it. The caller frees it. */
char *launch_command_line(const char *vmm, const GPtrArray *argv);
