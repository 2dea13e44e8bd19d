/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* `lodge run`: a guest in the foreground. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"
#include "cli/cli.h"
#include "cli/run-domain.h"
#include "launch/plan.h"
#include "launch/process.h"

/* ---- options */

static bool set_string(char **slot, const char *value)
{
    g_free(*slot);
    *slot = g_strdup(value);
    return true;
}

static bool set_disk(void *state, const char *value, GError **err)
{
    return run_disk_parse(state, value, err);
}

static bool set_memory(void *state, const char *value, GError **err)
{
    RunOptions *o = state;
    size_t digits = strspn(value, "0123456789");
    g_autofree char *number = g_strndup(value, digits);
    if (config_parse_kib(number, value[digits] ? value + digits : "MiB", &o->memory_kib) &&
        o->memory_kib > 0)
        return true;
    return lodge_fail(err, LODGE_ERROR_INVALID,
                      "'%s' is not a size such as 512M or 2G (without a unit: MiB)", value);
}

static bool set_vcpus(void *state, const char *value, GError **err)
{
    guint64 n;
    if (!g_ascii_string_to_unsigned(value, 10, 1, 4096, &n, NULL))
        return lodge_fail(err, LODGE_ERROR_INVALID, "'%s' is not a number of vCPUs from 1", value);
    ((RunOptions *)state)->n_vcpus = (unsigned)n;
    return true;
}

static bool set_path(char **slot, const char *value, GError **err)
{
    if (!*value)
        return lodge_fail(err, LODGE_ERROR_INVALID, "a path is missing");
    return set_string(slot, value);
}

static bool set_kernel(void *state, const char *value, GError **err)
{
    return set_path(&((RunOptions *)state)->kernel, value, err);
}

static bool set_initrd(void *state, const char *value, GError **err)
{
    return set_path(&((RunOptions *)state)->initrd, value, err);
}

static bool set_cmdline(void *state, const char *value, GError **err)
{
    return set_string(&((RunOptions *)state)->cmdline, value);
}

static bool set_engine(void *state, const char *value, GError **err)
{
    if (strcmp(value, "auto") != 0 && strcmp(value, "kvm") != 0 && strcmp(value, "soft") != 0)
        return lodge_fail(err, LODGE_ERROR_INVALID, "'%s' is not one of: auto, kvm, soft", value);
    return set_string(&((RunOptions *)state)->engine, value);
}

static bool set_cpu(void *state, const char *value, GError **err)
{
    return run_cpu_check(value, err) && set_string(&((RunOptions *)state)->cpu, value);
}

static bool set_net(void *state, const char *value, GError **err)
{
    return set_string(&((RunOptions *)state)->net, value);
}

static bool set_mac(void *state, const char *value, GError **err)
{
    bool good = strlen(value) == 17;
    for (unsigned i = 0; good && i < 17; i++)
        good = i % 3 == 2 ? value[i] == ':' : g_ascii_isxdigit(value[i]);
    if (!good || (g_ascii_xdigit_value(value[1]) & 1))
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "'%s' is not a unicast MAC address like 52:54:00:12:34:56", value);
    return set_string(&((RunOptions *)state)->mac, value);
}

static bool set_console(void *state, const char *value, GError **err)
{
    if (!*value || strcmp(value, "unix:") == 0)
        return lodge_fail(err, LODGE_ERROR_INVALID, "a path is missing");
    return set_string(&((RunOptions *)state)->console, value);
}

static bool set_qmp(void *state, const char *value, GError **err)
{
    RunOptions *o = state;
    const char *path = g_str_has_prefix(value, "unix:") ? value + strlen("unix:") : value;
    if (!*path)
        return lodge_fail(err, LODGE_ERROR_INVALID, "a path is missing");
    g_free(o->qmp);
    o->qmp = g_canonicalize_filename(path, NULL);
    return true;
}

static bool set_perf_map(void *state, const char *value, GError **err)
{
    return set_path(&((RunOptions *)state)->perf_map, value, err);
}

static bool set_gdb(void *state, const char *value, GError **err)
{
    RunOptions *o = state;
    if (g_str_has_prefix(value, "unix:") && value[strlen("unix:")]) {
        g_autofree char *path = g_canonicalize_filename(value + strlen("unix:"), NULL);
        g_free(o->gdb);
        o->gdb = g_strconcat("unix:", path, NULL);
        return true;
    }
    if (g_str_has_prefix(value, "tcp:"))
        return set_string(&o->gdb, value);
    return lodge_fail(err, LODGE_ERROR_INVALID,
                      "'%s' is neither unix:PATH nor tcp:ADDRESS:PORT (such as tcp:127.0.0.1:1234)",
                      value);
}

static bool set_paused(void *state, const char *value, GError **err)
{
    return ((RunOptions *)state)->paused = true;
}

static bool set_name(void *state, const char *value, GError **err)
{
    return domain_check_name(value, err) && set_string(&((RunOptions *)state)->name, value);
}

static bool set_uuid(void *state, const char *value, GError **err)
{
    g_autofree char *lower = g_ascii_strdown(value, -1);
    if (!g_uuid_string_is_valid(lower))
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "'%s' is not a UUID like 01234567-89ab-cdef-0123-456789abcdef", value);
    return set_string(&((RunOptions *)state)->uuid, lower);
}

static bool set_dry_run(void *state, const char *value, GError **err)
{
    return ((RunOptions *)state)->dry_run = true;
}

static bool set_test_devices(void *state, const char *value, GError **err)
{
    return ((RunOptions *)state)->test_devices = true;
}

static bool set_verbose(void *state, const char *value, GError **err)
{
    return ((RunOptions *)state)->verbose = true;
}

const CliOption cli_run_options[] = {
    {"disk", "PATH[,format=raw|qcow2][,readonly=on][,serial=S][,cache=C][,discard=D]",
     CLI_VALUE_FILE,
     "a virtio disk; may be given again for the next one. Replaces the document's disks. Without "
     "format= the image is looked at: give format=raw for a raw disk that the guest can write to",
     set_disk},
    {"memory", "SIZE", CLI_VALUE_ANY, "guest memory, such as 512M or 2G; 1G without a document",
     set_memory},
    {"vcpus", "N", CLI_VALUE_ANY, "number of virtual CPUs; 1 without a document", set_vcpus},
    {"kernel", "FILE", CLI_VALUE_FILE, "the kernel to boot: Linux bzImage, PVH ELF or multiboot",
     set_kernel},
    {"initrd", "FILE", CLI_VALUE_FILE, "its initial RAM disk", set_initrd},
    {"cmdline", "TEXT", CLI_VALUE_ANY, "its command line; console=ttyS0 without a document",
     set_cmdline},
    {"engine", "auto|kvm|soft", CLI_VALUE_WORDS,
     "what runs the vCPUs: hardware virtualization, Lodge's software CPU, or the first that works",
     set_engine},
    {"cpu", "MODEL[,+FEATURE][,-FEATURE]..", CLI_VALUE_ANY,
     "what the vCPUs are: max, x86-64-v1 to x86-64-v4, with features more or less", set_cpu},
    {"net", "user|none", CLI_VALUE_WORDS, "the first network interface, or none at all", set_net},
    {"mac", "MAC", CLI_VALUE_ANY, "address of the first network interface", set_mac},
    {"console", "stdio|FILE|unix:PATH", CLI_VALUE_FILE, "where the first serial line leads",
     set_console},
    {"qmp", "SOCKET", CLI_VALUE_FILE, "serve QMP on a UNIX socket made at this path", set_qmp},
    {"perf-map", "FILE", CLI_VALUE_FILE,
     "write a map of the software CPU's translated code for perf(1) there; %p is the process's number",
     set_perf_map},
    {"gdb", "unix:PATH|tcp:ADDRESS:PORT", CLI_VALUE_ANY,
     "let GDB debug the guest through this socket; whoever reaches it owns the guest", set_gdb},
    {"paused", NULL, CLI_VALUE_ANY,
     "do not start the vCPUs before GDB's continue or QMP's cont", set_paused},
    {"name", "NAME", CLI_VALUE_ANY, "the guest's name", set_name},
    {"uuid", "UUID", CLI_VALUE_ANY, "the guest's UUID", set_uuid},
    {"test-devices", NULL, CLI_VALUE_ANY,
     "give the guest the devices that images of the kvm-unit-tests use; the exit status is then the "
     "guest's own, (V << 1) | 1",
     set_test_devices},
    {"dry-run", NULL, CLI_VALUE_ANY, "print the domain XML that all this means, and start nothing",
     set_dry_run},
    {"verbose", NULL, CLI_VALUE_ANY, "say also what was left out, and how lodge-vmm is started",
     set_verbose},
    {0},
};

/* ---- files that must be there */

static bool check_file(const char *what, const char *path, bool writable, const char *file,
                       unsigned line, GError **err)
{
    if (!path || access(path, writable ? R_OK | W_OK : R_OK) == 0)
        return true;
    int errnum = errno;
    g_autofree char *where = line ? g_strdup_printf("%s:%u: ", file, line) : g_strdup("");
    return lodge_fail_errno(err, errnum, "%s%s: cannot %s '%s'", where, what,
                            writable && access(path, R_OK) == 0 ? "write to" : "read", path);
}

static bool check_files(const Domain *domain, GError **err)
{
    const DomainOs *os = domain->os;
    if (!check_file("kernel", os->kernel, false, domain->file, os->object.line, err) ||
        !check_file("initrd", os->initrd, false, domain->file, os->object.line, err))
        return false;
    for (guint i = 0; i < domain->devices.list->len; i++) {
        const DomainDevice *device = domain->devices.list->pdata[i];
        if (!device->kind || device->kind->id != DOMAIN_DEVICE_DISK)
            continue;
        const DomainDisk *disk = device->object;
        const char *path = disk->source ? disk->source->file : NULL;
        if (!check_file("disk", path, !disk->readonly, domain->file, device->line, err))
            return false;
    }
    return true;
}

/* ---- the process */

static volatile sig_atomic_t child_pid;

static void forward_signal(int number)
{
    if (child_pid > 0)
        kill((pid_t)child_pid, number);
}

static void catch_signals(void)
{
    struct sigaction forward = {.sa_handler = forward_signal};
    sigaction(SIGTERM, &forward, NULL);
    sigaction(SIGHUP, &forward, NULL);
    /* The terminal sends these to the guest process as well, which ends in good order. */
    signal(SIGINT, SIG_IGN);
    signal(SIGQUIT, SIG_IGN);
}

/* @own_status: the guest chooses the exit status (isa-debug-exit). */
static int wait_for(pid_t pid, const Domain *domain, bool own_status)
{
    int status;
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return EXIT_FAILURE;
    child_pid = 0;
    if (WIFSIGNALED(status)) {
        log_error("guest '%s': its process lodge-vmm was ended by signal %d (%s)", domain->name,
                  WTERMSIG(status), strsignal(WTERMSIG(status)));
        return EXIT_FAILURE;
    }
    if (WEXITSTATUS(status) == 0 || own_status)
        return WEXITSTATUS(status);
    log_error("guest '%s': lodge-vmm ended with status %d", domain->name, WEXITSTATUS(status));
    return EXIT_FAILURE;
}

static int run_guest(const Domain *domain, const LaunchPlan *plan, const RunOptions *options,
                     GError **err)
{
    struct termios terminal;
    bool on_terminal = isatty(STDIN_FILENO) && tcgetattr(STDIN_FILENO, &terminal) == 0;
    pid_t pid;
    g_autofree char *vmm = launch_find_vmm(err);
    if (!vmm)
        return EXIT_FAILURE;
    if (options->verbose) {
        g_autofree char *line = launch_command_line(vmm, plan->argv);
        log_info("starting %s", line);
    }
    catch_signals();
    if (!launch_spawn(vmm, plan->argv, &pid, err))
        return EXIT_FAILURE;
    child_pid = pid;
    int status = wait_for(pid, domain, options->test_devices);
    /* A process that crashed leaves the terminal raw. */
    if (on_terminal)
        tcsetattr(STDIN_FILENO, TCSANOW, &terminal);
    return status;
}

static void say_lines(const GPtrArray *lines, LogLevel level)
{
    for (guint i = 0; i < lines->len; i++)
        log_line(level, "%s", (const char *)lines->pdata[i]);
}

static int run_options(const RunOptions *options, GError **err)
{
    g_autoptr(Domain) domain = run_domain(options, err);
    if (!domain)
        return EXIT_FAILURE;
    if (options->dry_run && options->test_devices) {
        lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                   "--test-devices: a document cannot say this, so --dry-run cannot print it");
        return EXIT_FAILURE;
    }
    if (options->dry_run) {
        g_autofree char *xml = domain_format(domain);
        fputs(xml, stdout);
        return EXIT_SUCCESS;
    }
    g_autofree char *qmp = options->qmp ? g_strconcat("unix:", options->qmp, NULL) : NULL;
    /* The guest process says in its one line of --verbose which engine it took and why. */
    LaunchOptions launch = {.qmp = qmp, .perf_map = options->perf_map, .gdb = options->gdb,
                            .paused = options->paused, .terminal_console = true,
                            .verbose = true, .test_devices = options->test_devices};
    g_autoptr(LaunchPlan) plan = launch_plan_new(domain, &launch, err);
    if (!plan)
        return EXIT_FAILURE;
    say_lines(plan->warnings, LOG_LEVEL_WARNING);
    say_lines(plan->notes, LOG_LEVEL_INFO);
    if (!check_files(domain, err))
        return EXIT_FAILURE;
    return run_guest(domain, plan, options, err);
}

int cli_run(const CliCommand *command, int argc, char **argv)
{
    g_autoptr(GError) err = NULL;
    g_autoptr(RunOptions) options = run_options_new();
    g_autoptr(GPtrArray) operands = g_ptr_array_new();
    bool help = false;
    int status = EXIT_FAILURE;
    if (cli_parse(command, argc, argv, options, operands, &help, &err)) {
        if (help) {
            g_autofree char *text = cli_command_help(command);
            fputs(text, stdout);
            return EXIT_SUCCESS;
        }
        if (operands->len > 1) {
            lodge_fail(&err, LODGE_ERROR_INVALID, "one FILE.xml at most: '%s' is one too many",
                       (const char *)operands->pdata[1]);
        } else {
            options->file = operands->len ? g_strdup(operands->pdata[0]) : NULL;
            if (options->verbose)
                log_set_level(LOG_LEVEL_INFO);
            status = run_options(options, &err);
        }
    }
    if (err)
        log_error("%s", err->message);
    return status;
}
