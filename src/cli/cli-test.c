/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* --help, manual pages and completion against the tables; what options mean as a domain. */
#include <glib/gstdio.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "cli/cli.h"
#include "cli/run-domain.h"
#include "launch/plan.h"

static char *source_path(const char *name)
{
    return g_build_filename(g_getenv("LODGE_SOURCE"), name, NULL);
}

static char *read_source(const char *name)
{
    g_autofree char *path = source_path(name);
    char *text = NULL;
    if (!g_file_get_contents(path, &text, NULL, NULL))
        g_error("%s is missing", name);
    return text;
}

/* Each option of the table has its line in the page, and the page has no other. */
static void check_page(const CliCommand *command, const char *page)
{
    g_auto(GStrv) lines = g_strsplit(page, "\n", -1);
    unsigned n_options = 0, n_items = 0;
    for (const CliOption *o = command->options; o->name; o++, n_options++) {
        g_autofree char *item = o->argument
                                    ? g_strdup_printf(".It Fl -%s Ar %s", o->name, o->argument)
                                    : g_strdup_printf(".It Fl -%s", o->name);
        if (!g_strv_contains((const char *const *)lines, item))
            g_error("the manual page of '%s' lacks the line: %s", command->name, item);
    }
    for (char **line = lines; *line; line++)
        n_items += g_str_has_prefix(*line, ".It Fl -") && strcmp(*line, ".It Fl -help") != 0;
    g_assert_cmpuint(n_items, ==, n_options);
}

static void test_manual_pages(void)
{
    g_autofree char *page = read_source("docs/man/lodge.1");
    unsigned n_commands = 0, n_items = 0;
    for (const CliCommand *command = cli_commands; command->name; command++, n_commands++) {
        g_autofree char *item = g_strdup_printf("\n.It Cm %s\n", command->name);
        if (!strstr(page, item))
            g_error("lodge.1 lacks the command '%s'", command->name);
    }
    for (const char *at = page; (at = strstr(at, "\n.It Cm ")); at++)
        n_items++;
    g_assert_cmpuint(n_items, ==, n_commands);
    g_autofree char *run_page = read_source("docs/man/lodge-run.1");
    check_page(cli_command_find("run"), run_page);
    g_assert_nonnull(strstr(page, ".Fl -bash-completion"));
}

static void test_help(void)
{
    g_autofree char *program = cli_program_help();
    for (const CliCommand *command = cli_commands; command->name; command++) {
        g_autofree char *help = cli_command_help(command);
        g_assert_nonnull(strstr(program, command->summary));
        g_assert_true(g_str_has_prefix(help, "Usage: lodge "));
        for (const CliOption *o = command->options; o && o->name; o++) {
            g_autofree char *line = g_strdup_printf(
                "\n  --%s%s%s\n", o->name, o->argument ? " " : "", o->argument ? o->argument : "");
            g_assert_nonnull(strstr(help, line));
            g_assert_nonnull(o->help);
            g_assert_nonnull(o->apply);
        }
    }
}

static void test_completion(void)
{
    g_autofree char *path = source_path("docs/completion/lodge.bash");
    g_autofree char *made = cli_bash_completion();
    if (g_getenv("UPDATE_GOLDEN"))
        g_assert_true(g_file_set_contents(path, made, -1, NULL));
    g_autofree char *kept = read_source("docs/completion/lodge.bash");
    g_assert_cmpstr(kept, ==, made);
}

/* ---- options as a domain */

static Domain *domain_of(const char *const *words, GError **err)
{
    g_autoptr(RunOptions) options = run_options_new();
    g_autoptr(GPtrArray) operands = g_ptr_array_new();
    bool help = false;
    int argc = (int)g_strv_length((char **)(uintptr_t)words);
    if (!cli_parse(cli_command_find("run"), argc, (char **)(uintptr_t)words, options, operands,
                   &help, err))
        return NULL;
    options->file = operands->len ? g_strdup(operands->pdata[0]) : NULL;
    return run_domain(options, err);
}

#define UUID "01234567-89ab-cdef-0123-456789abcdef"

/* The options' document is what is kept, and it means the same when it is read again. */
static void check_document(const char *name, const char *const *words)
{
    g_autoptr(GError) err = NULL;
    g_autoptr(Domain) domain = domain_of(words, &err);
    g_assert_no_error(err);
    g_autofree char *xml = domain_format(domain);
    /* Where the sources are must not matter. */
    g_auto(GStrv) parts = g_strsplit(xml, g_getenv("LODGE_SOURCE"), -1);
    g_autofree char *shown = g_strjoinv("/source", parts);
    g_autofree char *golden = g_strdup_printf("tests/golden/run/%s.xml", name);
    g_autofree char *path = source_path(golden);
    if (g_getenv("UPDATE_GOLDEN"))
        g_assert_true(g_file_set_contents(path, shown, -1, NULL));
    g_autofree char *expected = read_source(golden);
    g_assert_cmpstr(shown, ==, expected);

    g_autoptr(Domain) again = domain_parse(xml, strlen(xml), "again", &err);
    g_assert_no_error(err);
    g_assert_cmpuint(again->unknown->len, ==, domain->unknown->len);
    LaunchOptions launch = {.terminal_console = true};
    g_autoptr(LaunchPlan) first = launch_plan_new(domain, &launch, &err);
    g_assert_no_error(err);
    g_autoptr(LaunchPlan) second = launch_plan_new(again, &launch, &err);
    g_assert_no_error(err);
    g_assert_cmpuint(first->argv->len, ==, second->argv->len);
    for (guint i = 0; first->argv->pdata[i]; i++)
        g_assert_cmpstr(first->argv->pdata[i], ==, second->argv->pdata[i]);
}

static void test_documents(void)
{
    g_autofree char *document = source_path("tests/golden/launch/plain.xml");
    check_document("options",
                   (const char *const[]){"--disk",
                                         "/images/a,,b.qcow2,format=qcow2,serial=s1,cache=none",
                                         "--disk=/images/b.raw,format=raw,readonly=on",
                                         "--memory",
                                         "512M",
                                         "--vcpus",
                                         "2",
                                         "--kernel",
                                         "/boot/k",
                                         "--initrd",
                                         "/boot/i",
                                         "--cmdline",
                                         "console=ttyS0 x=\"1\"",
                                         "--engine",
                                         "kvm",
                                         "--uuid",
                                         UUID,
                                         "--console",
                                         "unix:/run/c.sock",
                                         NULL});
    check_document("kernel-only",
                   (const char *const[]){"--kernel", "/boot/k", "--net", "none", "--engine", "soft",
                                         "--uuid", UUID, "--name", "tiny", "--memory", "64", NULL});
    check_document(
        "override",
        (const char *const[]){
            "--kernel",  "/other/k", "--initrd", "/other/i", "--vcpus", "3",
            "--memory",  "3G",       "--net",    "user",     "--mac",   "52:54:00:00:00:01",
            "--console", "/tmp/log", "--name",   "changed",  "--disk",  "/images/c,format=raw",
            document,    NULL});
}

static void test_refused(void)
{
    static const struct {
        const char *words[6];
        const char *needle;
    } cases[] = {
        {{NULL}, "name a domain XML file"},
        {{"--memory", "lots"}, "--memory: 'lots' is not a size"},
        {{"--memory"}, "--memory needs a value: --memory SIZE"},
        {{"--vcpus", "0"}, "--vcpus: '0' is not a number of vCPUs"},
        {{"--engine", "steam"}, "--engine: 'steam' is not one of: auto, kvm, soft"},
        {{"--kernel", "/k", "--net", "vde"}, "--net: 'vde' is not one of: user, none"},
        {{"--kernel", "/k", "--mac", "1:2:3"}, "--mac: '1:2:3' is not a unicast MAC"},
        {{"--mac", "03:00:00:00:00:00"}, "unicast"},
        {{"--uuid", "x"}, "--uuid: 'x' is not a UUID"},
        {{"--name", "a/b"}, "--name: name: '/'"},
        {{"--disk", ",format=raw"}, "--disk: a path is missing"},
        {{"--disk", "/nonexistent/disk"}, "--disk: cannot open '/nonexistent/disk'"},
        {{"--disk", "/dev/null,colour=red"}, "'colour=red' is not one of: format="},
        {{"--disk", "/dev/null,format=raw,format=qcow2"}, "--disk: format= is given twice"},
        {{"--kernel", ""}, "--kernel: a path is missing"},
        {{"--initrd="}, "--initrd: a path is missing"},
        {{"--name", "\xff"}, "is not UTF-8"},
        {{"--dry-run=yes"}, "--dry-run takes no value"},
        {{"--frobnicate"}, "there is no option '--frobnicate'; `lodge run --help`"},
        {{"-x"}, "'-x' is not an option"},
        {{"/nonexistent/guest.xml"}, "/nonexistent/guest.xml: cannot open the document"},
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autoptr(GError) err = NULL;
        g_autoptr(Domain) domain = domain_of(cases[i].words, &err);
        g_assert_null(domain);
        if (!strstr(err->message, cases[i].needle))
            g_error("'%s' lacks '%s'", err->message, cases[i].needle);
    }
}

static void test_probe(void)
{
    g_autofree char *folder = g_dir_make_tmp("lodge-run-XXXXXX", NULL);
    g_autofree char *path = g_build_filename(folder, "d.img", NULL);
    static const struct {
        const char *content;
        gssize size;
        const char *format;
    } images[] = {
        {"QFI\xfb rest", 9, "qcow2"}, {"QFI", 3, "raw"}, {"", 0, "raw"}, {"MZ", 2, "raw"}};
    for (unsigned i = 0; i < G_N_ELEMENTS(images); i++) {
        g_autoptr(RunOptions) options = run_options_new();
        g_autoptr(GError) err = NULL;
        g_assert_true(g_file_set_contents(path, images[i].content, images[i].size, NULL));
        g_assert_true(run_disk_parse(options, path, &err));
        g_assert_cmpstr(((RunDisk *)options->disks->pdata[0])->format, ==, images[i].format);
    }
    g_unlink(path);
    g_rmdir(folder);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/cli/manual-pages", test_manual_pages);
    g_test_add_func("/cli/help", test_help);
    g_test_add_func("/cli/completion", test_completion);
    g_test_add_func("/cli/documents", test_documents);
    g_test_add_func("/cli/refused", test_refused);
    g_test_add_func("/cli/probe", test_probe);
    return g_test_run();
}
