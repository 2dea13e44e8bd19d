/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* lodge-vmm: one virtual machine in one process. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"
#include "base/standard-fds.h"
#include "bin/vmm-options.h"
#include "bin/vmm-sandbox.h"
#include "machine/machine.h"
#include "monitor/gdb/gdb.h"
#include "monitor/monitor.h"

#define EXIT_USAGE 2

/* Signals that end the machine in good order; blocked in every thread and read from a descriptor.
 */
static int open_signals(void)
{
    static const int signals[] = {SIGTERM, SIGINT, SIGHUP, SIGQUIT};
    sigset_t set;
    sigemptyset(&set);
    for (size_t i = 0; i < G_N_ELEMENTS(signals); i++)
        sigaddset(&set, signals[i]);
    signal(SIGPIPE, SIG_IGN);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

static void signal_came(void *opaque, int fd, GIOCondition condition)
{
    struct signalfd_siginfo info;
    while (read(fd, &info, sizeof(info)) == sizeof(info))
        machine_shutdown(opaque, MACHINE_CAUSE_HOST_SIGNAL);
}

/* The file stays locked while the process lives, so that a stale one is recognized. */
static bool write_pidfile(const char *path, int *fd, GError **err)
{
    *fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (*fd < 0)
        return lodge_fail_errno(err, errno, "cannot write the pidfile '%s'", path);
    if (flock(*fd, LOCK_EX | LOCK_NB) < 0)
        return lodge_fail(err, LODGE_ERROR_BUSY, "the pidfile '%s' belongs to a running machine",
                          path);
    g_autofree char *text = g_strdup_printf("%d\n", getpid());
    if (ftruncate(*fd, 0) < 0 || write(*fd, text, strlen(text)) != (ssize_t)strlen(text))
        return lodge_fail_errno(err, errno, "cannot write the pidfile '%s'", path);
    return true;
}

typedef struct Watch {
    Machine *machine;
    bool monitored; /* somebody can look at a failed machine */
    bool failed;
} Watch;

static void on_event(void *opaque, const MachineEvent *event)
{
    Watch *w = opaque;
    if (event->type != MACHINE_EVENT_ERROR)
        return;
    w->failed = true;
    log_error("%s", event->message);
    if (!w->monitored)
        machine_shutdown(w->machine, MACHINE_CAUSE_HOST_ERROR);
}

static bool has_user_network(const MachineConfig *config)
{
    for (guint i = 0; i < config->netdevs->len; i++) {
        const MachineItem *item = g_ptr_array_index(config->netdevs, i);
        if (strcmp(item->type, "user") == 0)
            return true;
    }
    return false;
}

/* From the built machine to its end; returns the exit status. */
static int run(Machine *m, const VmmOptions *options, int signal_fd, bool monitored, GError **err)
{
    Watch w = {.machine = m, .monitored = monitored};
    machine_add_event_handler(m, on_event, &w);
    GSource *signals = machine_watch_fd(m, signal_fd, G_IO_IN, signal_came, m);
    int status = EXIT_FAILURE;
    if ((!options->sandbox || vmm_sandbox_enter(has_user_network(options->config), err)) &&
        machine_start(m, err)) {
        if (options->verbose)
            log_info("engine %s", machine_engine_reason(m)); /* "NAME: why" */
        status = machine_run(m);
        if (w.failed && status == 0)
            status = EXIT_FAILURE;
    }
    g_source_destroy(signals);
    g_source_unref(signals);
    machine_remove_event_handler(m, on_event, &w);
    return status;
}

static int build_and_run(const VmmOptions *options, GError **err)
{
    int signal_fd = open_signals(), pid_fd = -1;
    if (options->pidfile && !write_pidfile(options->pidfile, &pid_fd, err))
        return EXIT_FAILURE;
    Machine *m = machine_new(options->config, err);
    Monitor *monitor = NULL;
    GdbServer *gdb = NULL;
    int status = EXIT_FAILURE;
    if (options->gdb && gdb_where_is_remote(options->gdb))
        log_warning("--gdb %s: whoever reaches this port owns the guest, and there is no password",
                    options->gdb);
    if (m && (!options->qmp || (monitor = monitor_new(m, options->qmp, err))) &&
        (!options->gdb || (gdb = gdb_server_new(m, options->gdb, err))))
        status = run(m, options, signal_fd, monitor || gdb, err);
    gdb_server_free(gdb);
    monitor_free(monitor);
    machine_free(m);
    if (pid_fd >= 0 && ftruncate(pid_fd, 0) < 0)
        log_warning("cannot empty the pidfile '%s'", options->pidfile);
    return status;
}

int main(int argc, char **argv)
{
    if (!standard_fds_open())
        return EXIT_FAILURE;
    g_autoptr(GError) error = NULL;
    log_set_program("lodge-vmm");
    g_autoptr(VmmOptions) options = vmm_options_parse(argc, argv, &error);
    if (!options) {
        log_error("%s", error->message);
        return EXIT_USAGE;
    }
    if (options->help) {
        g_autofree char *help = vmm_options_help();
        fputs(help, stdout);
        return EXIT_SUCCESS;
    }
    if (options->version) {
        puts("lodge-vmm " LODGE_VERSION);
        return EXIT_SUCCESS;
    }
    if (options->verbose)
        log_set_level(LOG_LEVEL_INFO);
    int status = build_and_run(options, &error);
    if (error) {
        log_error("%s", error->message);
        return EXIT_FAILURE;
    }
    return status;
}
