/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <string.h>
#include <sys/wait.h>

#include "base/error.h"
#include "launch/plan.h"
#include "launch/process.h"

static char *golden_dir;

static void append_lines(GString *out, const char *title, const GPtrArray *lines)
{
    for (guint i = 0; i < lines->len && lines->pdata[i]; i++)
        g_string_append_printf(out, "%s %s\n", title, (const char *)lines->pdata[i]);
}

/* What a document becomes, as text. */
static char *describe(const char *path, const char *shown)
{
    g_autoptr(GError) err = NULL;
    g_autofree char *xml = NULL;
    gsize size;
    g_assert_true(g_file_get_contents(path, &xml, &size, NULL));
    g_autoptr(Domain) domain = domain_parse(xml, size, shown, &err);
    g_assert_no_error(err);
    launch_resolve_paths(domain, "/folder");
    LaunchOptions options = {.qmp = "unix:/q", .terminal_console = true};
    g_autoptr(LaunchPlan) plan = launch_plan_new(domain, &options, &err);
    if (!plan)
        return g_strconcat(err->message, "\n", NULL);
    GString *out = g_string_new(NULL);
    append_lines(out, "warning:", plan->warnings);
    append_lines(out, "note:", plan->notes);
    append_lines(out, "  ", plan->argv);
    return g_string_free(out, FALSE);
}

static void test_golden(void)
{
    static const char *const names[] = {"plain", "refused", "debian9_libvirt"};
    for (unsigned i = 0; i < G_N_ELEMENTS(names); i++) {
        g_autofree char *shown = g_strconcat(names[i], ".xml", NULL);
        g_autofree char *xml = g_build_filename(golden_dir, shown, NULL);
        g_autofree char *base = g_build_filename(golden_dir, names[i], NULL);
        g_autofree char *path = g_strconcat(base, ".args", NULL);
        g_autofree char *expected = NULL;
        g_autofree char *text = describe(xml, shown);
        if (g_getenv("UPDATE_GOLDEN"))
            g_assert_true(g_file_set_contents(path, text, -1, NULL));
        g_assert_true(g_file_get_contents(path, &expected, NULL, NULL));
        g_assert_cmpstr(text, ==, expected);
    }
}

static Domain *with_device(const char *device)
{
    g_autoptr(GError) err = NULL;
    g_autofree char *xml = g_strdup_printf(
        "<domain type='kvm'><name>g</name><memory>65536</memory><os><type>hvm</type>"
        "<kernel>/k</kernel></os><features><acpi/></features><devices>%s</devices></domain>",
        device);
    Domain *domain = domain_parse(xml, strlen(xml), "t.xml", &err);
    g_assert_no_error(err);
    return domain;
}

/* Whatever a kind of device is, it leaves a trace: an argument, a warning, a note or a refusal. */
static void test_nothing_is_silent(void)
{
    static const struct {
        const char *element, *xml;
    } minimal[] = {
        {"disk", "<disk><source file='/d'/><target dev='vda' bus='virtio'/></disk>"},
        {"controller", "<controller type='virtio-serial' index='0'/>"},
        {"interface", "<interface type='user'/>"},
        {"serial", "<serial type='null'/>"},
        {"parallel", "<parallel type='null'/>"},
        {"console", "<console type='null'/>"},
        {"channel", "<channel type='null'><target type='virtio' name='n'/></channel>"},
        {"memballoon", "<memballoon model='virtio'/>"},
        {"rng", "<rng model='virtio'><backend model='random'/></rng>"},
    };
    g_autoptr(Domain) empty = with_device("");
    LaunchOptions options = {0};
    g_autoptr(LaunchPlan) base = launch_plan_new(empty, &options, NULL);
    guint n_base = base->argv->len + base->warnings->len + base->notes->len;
    for (const DomainDeviceKind *kind = domain_device_kinds; kind->element; kind++) {
        g_autofree char *xml = g_strdup_printf("<%s/>", kind->element);
        for (unsigned i = 0; i < G_N_ELEMENTS(minimal); i++) {
            if (strcmp(minimal[i].element, kind->element) == 0) {
                g_free(xml);
                xml = g_strdup(minimal[i].xml);
            }
        }
        g_autoptr(Domain) domain = with_device(xml);
        g_autoptr(GError) err = NULL;
        g_autoptr(LaunchPlan) plan = launch_plan_new(domain, &options, &err);
        g_autofree char *name = g_strdup_printf("t.xml:1: <%s", kind->element);
        if (!plan && !strstr(err->message, name))
            g_error("the refusal does not name '%s': %s", name, err->message);
        if (plan && plan->argv->len + plan->warnings->len + plan->notes->len <= n_base)
            g_error("<%s> was ignored without a word", kind->element);
    }
}

static void test_engine(void)
{
    g_autoptr(GError) err = NULL;
    g_autoptr(Domain) domain = domain_new("g", 65536, 1);
    g_assert_cmpstr(launch_engine(domain), ==, "auto");
    static const char *const engines[] = {"soft", "kvm", "auto", "soft"};
    for (unsigned i = 0; i < G_N_ELEMENTS(engines); i++) {
        g_assert_true(launch_set_engine(domain, engines[i], &err));
        g_autofree char *xml = domain_format(domain);
        g_autoptr(Domain) again = domain_parse(xml, strlen(xml), "again", &err);
        g_assert_no_error(err);
        g_assert_cmpstr(launch_engine(again), ==, engines[i]);
    }
    g_assert_false(launch_set_engine(domain, "steam", &err));
    g_assert_error(err, LODGE_ERROR, LODGE_ERROR_INVALID);
}

static void test_absolute_clock(void)
{
    g_autoptr(Domain) domain = domain_new("g", 65536, 1);
    domain->os->kernel = g_strdup("/k");
    domain->clock = config_object_new(&domain_clock_schema);
    domain->clock->offset = DOMAIN_CLOCK_ABSOLUTE;
    domain->clock->start = g_strdup("1000000000");
    LaunchOptions options = {0};
    g_autoptr(GError) err = NULL;
    g_autoptr(LaunchPlan) plan = launch_plan_new(domain, &options, &err);
    g_assert_no_error(err);
    for (guint i = 0; plan->argv->pdata[i]; i++) {
        if (strcmp(plan->argv->pdata[i], "--rtc-offset") != 0)
            continue;
        gint64 offset = g_ascii_strtoll(plan->argv->pdata[i + 1], NULL, 10);
        gint64 now = g_get_real_time() / G_USEC_PER_SEC;
        g_assert_cmpint(ABS(now + offset - 1000000000), <=, 5);
        return;
    }
    g_assert_not_reached();
}

static void test_cpu(void)
{
    static const struct {
        const char *cpu, *expected; /* argument, or part of the refusal after "!" */
    } cases[] = {
        {"", ""},
        {"<cpu mode='host-passthrough' migratable='on'/>", ""},
        {"<cpu mode='maximum'><feature name='aes' policy='disable'/></cpu>", "max,aes=disable"},
        {"<cpu mode='host-model' check='none'><model fallback='allow'>Haswell</model></cpu>",
         "max,check=off"},
        {"<cpu match='minimum'><model>x86-64-v2</model><feature name='sse4_1'/></cpu>",
         "x86-64-v2,sse4.1=require,match=minimum"},
        {"<cpu><model fallback='forbid'>Haswell</model></cpu>", "!x86-64-v3"},
        {"<cpu><model>i8080</model></cpu>", "!i8080"},
        {"<cpu><feature name='warp'/></cpu>", "!warp"},
        {"<cpu><feature name='warp' policy='disable'/></cpu>", ""},
        {"<clock><timer name='kvmclock' present='no'/></clock>", "max,kvmclock=disable"},
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autoptr(GError) err = NULL;
        g_autofree char *xml = g_strdup_printf(
            "<domain type='kvm'><name>g</name><memory>65536</memory><os><type>hvm</type>"
            "<kernel>/k</kernel></os>%s</domain>",
            cases[i].cpu);
        g_autoptr(Domain) domain = domain_parse(xml, strlen(xml), "t.xml", &err);
        g_assert_no_error(err);
        LaunchOptions options = {0};
        g_autoptr(LaunchPlan) plan = launch_plan_new(domain, &options, &err);
        if (cases[i].expected[0] == '!') {
            g_assert_error(err, LODGE_ERROR, LODGE_ERROR_UNSUPPORTED);
            g_assert_nonnull(strstr(err->message, cases[i].expected + 1));
            continue;
        }
        g_assert_no_error(err);
        const char *cpu = "";
        for (guint j = 0; plan->argv->pdata[j]; j++)
            if (strcmp(plan->argv->pdata[j], "--cpu") == 0)
                cpu = plan->argv->pdata[j + 1];
        g_assert_cmpstr(cpu, ==, cases[i].expected);
    }
}

static void test_test_devices(void)
{
    g_autoptr(Domain) domain = domain_new("g", 65536, 1);
    domain->os->kernel = g_strdup("/k");
    for (unsigned wanted = 0; wanted < 2; wanted++) {
        LaunchOptions options = {.test_devices = wanted};
        g_autoptr(GError) err = NULL;
        g_autoptr(LaunchPlan) plan = launch_plan_new(domain, &options, &err);
        g_assert_no_error(err);
        g_autofree char *line = g_strjoinv(" ", (char **)plan->argv->pdata);
        g_assert_cmpint(strstr(line, "isa-debug-exit") != NULL, ==, wanted);
        g_assert_cmpint(strstr(line, "--device pc-testdev") != NULL, ==, wanted);
    }
}

static void test_process(void)
{
    g_autoptr(GError) err = NULL;
    g_autoptr(GPtrArray) argv = g_ptr_array_new();
    g_ptr_array_add(argv, (gpointer) "-c");
    g_ptr_array_add(argv, (gpointer) "exit 7");
    g_ptr_array_add(argv, NULL);
    pid_t pid;
    int status;
    g_assert_true(launch_spawn("/bin/sh", argv, &pid, &err));
    g_assert_cmpint(waitpid(pid, &status, 0), ==, pid);
    g_assert_true(WIFEXITED(status));
    g_assert_cmpint(WEXITSTATUS(status), ==, 7);
    g_autofree char *line = launch_command_line("/bin/sh", argv);
    g_assert_cmpstr(line, ==, "/bin/sh -c 'exit 7'");
    g_assert_false(launch_spawn("/nonexistent/lodge-vmm", argv, &pid, &err));
    g_assert_nonnull(strstr(err->message, "/nonexistent/lodge-vmm"));
    g_clear_error(&err);
    g_assert_null(launch_find_program("no-such-program", &err));
    g_assert_error(err, LODGE_ERROR, LODGE_ERROR_NOT_FOUND);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    golden_dir = g_build_filename(g_getenv("LODGE_SOURCE"), "tests/golden/launch", NULL);
    g_test_add_func("/launch/golden", test_golden);
    g_test_add_func("/launch/nothing-is-silent", test_nothing_is_silent);
    g_test_add_func("/launch/engine", test_engine);
    g_test_add_func("/launch/absolute-clock", test_absolute_clock);
    g_test_add_func("/launch/cpu", test_cpu);
    g_test_add_func("/launch/test-devices", test_test_devices);
    g_test_add_func("/launch/process", test_process);
    int status = g_test_run();
    g_free(golden_dir);
    return status;
}
