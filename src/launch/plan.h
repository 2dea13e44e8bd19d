/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * From a domain to the command line of its guest process. What this version cannot give the
 * guest is refused, everything at once, each with its line in the document; what changes nothing
 * for the guest is left out with a reason.
 */
#pragma once

#include "config/domain.h"

typedef struct LaunchOptions {
    const char *qmp;       /* "unix:PATH" or "fd:N"; NULL: no monitor */
    const char *gdb;       /* "unix:PATH" or "tcp:ADDRESS:PORT"; NULL: none */
    bool terminal_console; /* the first pty serial or console is this process's standard
                              input/output */
    const char *perf_map; /* FILE of lodge-vmm's --perf-map; NULL: none */
    bool paused;
    bool test_devices; /* what images of the kvm-unit-tests expect; no part of a document */
    bool verbose;
} LaunchOptions;

typedef struct LaunchPlan {
    GPtrArray *argv;     /* without the program itself; NULL-terminated strings, then NULL */
    GPtrArray *warnings; /* "FILE:LINE: <element>: ..." : works, but not all that was asked for */
    GPtrArray *notes;    /* the same for what makes no difference to the guest */
} LaunchPlan;

/* NULL and @err if anything is refused. The caller frees the plan. */
LaunchPlan *launch_plan_new(const Domain *domain, const LaunchOptions *options, GError **err);
void launch_plan_free(LaunchPlan *plan);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(LaunchPlan, launch_plan_free)

/*
 * Makes the paths of kernel, initrd, disks, files and sockets absolute: relative ones are meant
 * from @folder.
 */
void launch_resolve_paths(Domain *domain, const char *folder);

/*
 * The engine that the document asks for: "auto" (type='kvm'), "soft" (type='qemu'), or what
 * <lodge:run engine='...'> in the metadata says. NULL: another hypervisor's type.
 */
const char *launch_engine(const Domain *domain);
/* False and @err if @engine is not auto, kvm or soft. */
bool launch_set_engine(Domain *domain, const char *engine, GError **err);
#define LAUNCH_NAMESPACE "urn:lodge:domain:1"
