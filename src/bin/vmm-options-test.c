/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <string.h>

#include "base/bytes.h"
#include "bin/vmm-options.h"

static VmmOptions *parse(const char *line, GError **err)
{
    g_auto(GStrv) words = g_strsplit(line, " ", -1);
    return vmm_options_parse(g_strv_length(words), words, err);
}

static void test_values(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(VmmOptions) o = parse(
        "lodge-vmm --name a --memory 2G --vcpus=4,cores=2,threads=2 --uuid "
        "00010203-0405-0607-0809-0a0b0c0d0e0f --rtc-offset -3600 --no-hpet --paused --no-reboot "
        "--drive qcow2,id=d,file=/tmp/a,,b,readonly=on --chardev null,id=c --device x,chardev=c "
        "--engine soft --sandbox off --verbose --qmp fd:3 --cmdline a=b,c",
        &error);
    g_assert_no_error(error);
    const MachineConfig *c = o->config;
    g_assert_cmpstr(c->name, ==, "a");
    g_assert_cmpuint(c->memory_size, ==, GIB(2));
    g_assert_cmpuint(c->n_vcpus, ==, 4);
    g_assert_cmpuint(c->sockets, ==, 1);
    g_assert_cmpuint(c->threads, ==, 2);
    for (unsigned i = 0; i < 16; i++)
        g_assert_cmpuint(c->uuid[i], ==, i);
    g_assert_cmpint(c->rtc_offset_s, ==, -3600);
    g_assert_true(!c->hpet && c->start_paused && c->no_reboot && o->verbose && !o->sandbox);
    g_assert_cmpstr(c->cmdline, ==, "a=b,c");
    const MachineItem *drive = g_ptr_array_index(c->drives, 0);
    g_assert_cmpstr(drive->type, ==, "qcow2");
    g_assert_cmpstr(drive->id, ==, "d");
    g_assert_cmpstr(machine_item_get(drive, "file"), ==, "/tmp/a,b");
    g_assert_cmpstr(machine_item_get(drive, "readonly"), ==, "on");
    const MachineItem *device = g_ptr_array_index(c->devices, 0);
    g_assert_null(device->id);
}

static void test_defaults(void)
{
    g_autoptr(VmmOptions) a = parse("lodge-vmm", NULL), b = parse("lodge-vmm", NULL);
    g_assert_cmpuint(a->config->memory_size, ==, MIB(512));
    g_assert_true(a->config->hpet && a->sandbox && !a->qmp);
    g_assert_cmpint(memcmp(a->config->uuid, b->config->uuid, 16), !=, 0);
}

static void test_sizes(void)
{
    static const struct {
        const char *text;
        uint64_t size; /* 0: refused */
    } cases[] = {{"64", MIB(64)},   {"64k", KIB(64)},
                 {"1T", GIB(1024)}, {"0", 0},
                 {"", 0},           {"-1", 0},
                 {"1.5G", 0},       {"1GB", 0},
                 {"0x10", 0},       {"18446744073709551615T", 0}};
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autofree char *line = g_strdup_printf("lodge-vmm --memory=%s", cases[i].text);
        g_autoptr(GError) error = NULL;
        g_autoptr(VmmOptions) o = parse(line, &error);
        g_assert_true((o != NULL) == (cases[i].size != 0) && (o == NULL) == (error != NULL));
        if (o)
            g_assert_cmpuint(o->config->memory_size, ==, cases[i].size);
    }
}

static void test_cpu_debug(void)
{
    static const char *const wrong[] = {"", "x", "kick=1", "tlb", "tlb=2", "flush", "flush=0", "flush=-1",
                                        "block=65", "chains=on", "kick,,kick", "interpreter,"};
    g_autoptr(VmmOptions) o = parse(
        "lodge-vmm --cpu-debug interpreter,kick,tlb=1,coalesce=off --cpu-debug=chains=off,flush=7,block=64", NULL);
    const VcpuTuning *t = &o->config->cpu_tuning;
    g_assert_true(t->interpreter && t->kick && t->tlb_one && t->no_coalescing && t->no_chains);
    g_assert_cmpuint(t->flush_blocks, ==, 7);
    g_assert_cmpuint(t->block_ops, ==, 64);
    for (size_t i = 0; i < G_N_ELEMENTS(wrong); i++) {
        g_autofree char *line = g_strdup_printf("lodge-vmm --cpu-debug %s", wrong[i]);
        g_autoptr(GError) error = NULL;
        g_assert_null(parse(line, &error));
        g_assert_nonnull(strstr(error->message, "--cpu-debug"));
    }
}

/* Every option is in the help, and every argument it names is needed. */
static void test_help(void)
{
    g_autofree char *help = vmm_options_help();
    g_auto(GStrv) lines = g_strsplit(help, "\n", -1);
    unsigned n = 0;
    for (char **l = lines; *l; l++) {
        g_auto(GStrv) words = g_strsplit(*l + MIN(2, strlen(*l)), " ", 2);
        if (!g_str_has_prefix(*l, "  --") || !words[1])
            continue;
        g_autofree char *line = g_strdup_printf("lodge-vmm %s", words[0]);
        g_autoptr(GError) error = NULL;
        g_assert_null(parse(line, &error));
        g_assert_nonnull(strstr(error->message, "needs"));
        n++;
    }
    g_assert_cmpuint(n, >, 12);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/vmm-options/values", test_values);
    g_test_add_func("/vmm-options/defaults", test_defaults);
    g_test_add_func("/vmm-options/sizes", test_sizes);
    g_test_add_func("/vmm-options/help", test_help);
    g_test_add_func("/vmm-options/cpu-debug", test_cpu_debug);
    return g_test_run();
}
