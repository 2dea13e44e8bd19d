/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "launch/process.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "base/error.h"

static char *own_folder(void)
{
    g_autofree char *self = g_file_read_link("/proc/self/exe", NULL);
    return self ? g_path_get_dirname(self) : g_strdup(".");
}

char *launch_find_program(const char *name, GError **err)
{
    g_autofree char *folder = own_folder();
    /* From bin/ to the installation's libexec; LODGE_LIBEXEC is where meson installs to. */
    char *candidates[] = {
        g_build_filename(folder, name, NULL),
        g_build_filename(folder, "..", "libexec", "lodge", name, NULL),
        g_build_filename(LODGE_LIBEXEC, name, NULL),
    };
    char *found = NULL;
    for (unsigned i = 0; i < G_N_ELEMENTS(candidates); i++) {
        if (!found && access(candidates[i], X_OK) == 0)
            found = g_canonicalize_filename(candidates[i], NULL);
        g_free(candidates[i]);
    }
    if (!found)
        lodge_fail(err, LODGE_ERROR_NOT_FOUND,
                   "%s is neither in %s nor in %s; build it (make) or install it (make install)",
                   name, folder, LODGE_LIBEXEC);
    return found;
}

char *launch_find_vmm(GError **err)
{
    const char *named = g_getenv("LODGE_VMM");
    if (!named || !*named)
        return launch_find_program("lodge-vmm", err);
    if (access(named, X_OK) != 0) {
        lodge_fail_errno(err, errno, "LODGE_VMM names '%s', which cannot be run", named);
        return NULL;
    }
    return g_strdup(named);
}

static char **full_argv(const char *vmm, const GPtrArray *argv)
{
    GPtrArray *all = g_ptr_array_new();
    g_ptr_array_add(all, (gpointer)(uintptr_t)vmm);
    for (guint i = 0; i < argv->len && argv->pdata[i]; i++)
        g_ptr_array_add(all, argv->pdata[i]);
    g_ptr_array_add(all, NULL);
    return (char **)g_ptr_array_free(all, FALSE);
}

/* Runs in the child between fork and exec: only async-signal-safe calls. */
static void child_setup(gpointer parent)
{
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != (pid_t)(intptr_t)parent)
        _exit(1);
    signal(SIGINT, SIG_DFL);
    signal(SIGQUIT, SIG_DFL);
}

bool launch_spawn(const char *vmm, const GPtrArray *argv, pid_t *pid, GError **err)
{
    g_autofree char **words = full_argv(vmm, argv);
    g_autoptr(GError) problem = NULL;
    GPid child;
    if (!g_spawn_async(NULL, words, NULL, G_SPAWN_DO_NOT_REAP_CHILD | G_SPAWN_CHILD_INHERITS_STDIN,
                       child_setup, (gpointer)(intptr_t)getpid(), &child, &problem))
        return lodge_fail(err, LODGE_ERROR_IO, "cannot start '%s': %s", vmm, problem->message);
    *pid = child;
    return true;
}

char *launch_command_line(const char *vmm, const GPtrArray *argv)
{
    g_autofree char **words = full_argv(vmm, argv);
    GString *line = g_string_new(NULL);
    for (char **word = words; *word; word++) {
        g_autofree char *quoted = g_shell_quote(*word);
        bool plain = **word != '\0';
        for (const char *p = *word; *p; p++)
            plain = plain && (g_ascii_isalnum(*p) || strchr("-_./=:,+@%", *p));
        g_string_append_printf(line, "%s%s", line->len ? " " : "", plain ? *word : quoted);
    }
    return g_string_free(line, FALSE);
}
