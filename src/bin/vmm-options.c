/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "bin/vmm-options.h"

#include <string.h>

#include "base/bytes.h"
#include "base/error.h"

/* One option; apply gets its argument (NULL for those without one). */
typedef struct VmmOption {
    const char *name, *argument, *help;
    bool (*apply)(VmmOptions *o, const char *name, const char *value, GError **err);
} VmmOption;

/* ---- values ---- */

static bool bad_value(GError **err, const char *name, const char *value, const char *allowed)
{
    return lodge_fail(err, LODGE_ERROR_INVALID, "--%s %s: %s", name, value, allowed);
}

static bool parse_uuid(const char *text, uint8_t uuid[16])
{
    unsigned n = 0;
    for (unsigned i = 0; i < 36; i++) {
        if (i == 8 || i == 13 || i == 18 || i == 23) {
            if (text[i] != '-')
                return false;
            continue;
        }
        int digit = g_ascii_xdigit_value(text[i]);
        if (digit < 0)
            return false;
        uuid[n / 2] = (uint8_t)(n % 2 ? uuid[n / 2] | digit : digit << 4);
        n++;
    }
    return text[36] == '\0';
}

static bool parse_size(const char *text, uint64_t *size)
{
    char *end;
    if (!g_ascii_isdigit(*text))
        return false;
    uint64_t n = g_ascii_strtoull(text, &end, 10);
    unsigned shift = 20; /* without a suffix: MiB */
    if (*end) {
        static const char units[] = "KMGT";
        const char *unit = strchr(units, g_ascii_toupper(*end));
        if (!unit || end[1])
            return false;
        shift = 10 * (unsigned)(1 + (unit - units));
    }
    return mul_u64(n, 1ull << shift, size);
}

/* The pieces of "a,b=c,,d": commas separate, doubled ones stand for themselves. */
static GPtrArray *split_commas(const char *text)
{
    GPtrArray *pieces = g_ptr_array_new_with_free_func(g_free);
    g_autoptr(GString) piece = g_string_new(NULL);
    for (;; text++) {
        if (*text == ',' && text[1] == ',') {
            g_string_append_c(piece, ',');
            text++;
        } else if (*text == ',' || *text == '\0') {
            g_ptr_array_add(pieces, g_strdup(piece->str));
            g_string_truncate(piece, 0);
            if (*text == '\0')
                return pieces;
        } else {
            g_string_append_c(piece, *text);
        }
    }
}

static bool parse_item(const char *name, const char *value, MachineItem **result, GError **err)
{
    g_autoptr(GPtrArray) pieces = split_commas(value);
    const char *type = g_ptr_array_index(pieces, 0);
    if (!*type || strchr(type, '='))
        return bad_value(err, name, value, "the type comes first, then key=value pairs");
    MachineItem *item = machine_item_new(type, NULL);
    for (guint i = 1; i < pieces->len; i++) {
        char *key = g_ptr_array_index(pieces, i);
        char *equals = strchr(key, '=');
        bool ok = equals && equals != key;
        if (ok) {
            *equals = '\0';
            bool is_id = strcmp(key, "id") == 0;
            ok = is_id ? !item->id : !machine_item_get(item, key);
            if (ok && is_id)
                item->id = g_strdup(equals + 1);
            else if (ok)
                machine_item_set(item, key, equals + 1);
        }
        if (!ok) {
            machine_item_free(item);
            return lodge_fail(err, LODGE_ERROR_INVALID,
                              "--%s %s: '%s' is not a key=value pair, or the key is there twice",
                              name, value, key);
        }
    }
    *result = item;
    return true;
}

static bool add_item(GPtrArray *list, bool needs_id, const char *name, const char *value,
                     GError **err)
{
    MachineItem *item;
    if (!parse_item(name, value, &item, err))
        return false;
    g_ptr_array_add(list, item);
    if (needs_id && (!item->id || !*item->id))
        return bad_value(err, name, value, "needs id=");
    return true;
}

static void replace(char **where, const char *value)
{
    g_free(*where);
    *where = g_strdup(value);
}

/* ---- options ---- */

static bool set_name(VmmOptions *o, const char *name, const char *value, GError **err)
{
    replace(&o->config->name, value);
    return true;
}

static bool set_uuid(VmmOptions *o, const char *name, const char *value, GError **err)
{
    return parse_uuid(value, o->config->uuid) ||
           bad_value(err, name, value, "a UUID looks like 01234567-89ab-cdef-0123-456789abcdef");
}

static bool set_memory(VmmOptions *o, const char *name, const char *value, GError **err)
{
    return (parse_size(value, &o->config->memory_size) && o->config->memory_size > 0) ||
           bad_value(err, name, value, "a size is a number and K, M (the default), G or T");
}

static bool set_vcpus(VmmOptions *o, const char *name, const char *value, GError **err)
{
    MachineConfig *c = o->config;
    MachineItem *item;
    if (!parse_item(name, value, &item, err))
        return false;
    uint64_t n = 0, part[3] = {0};
    static const char *const keys[] = {"sockets", "cores", "threads"};
    unsigned found = 0;
    bool ok = g_ascii_string_to_unsigned(item->type, 10, 1, VCPU_COUNT_MAX, &n, NULL) && !item->id;
    for (unsigned i = 0; i < 3 && ok; i++) {
        const char *text = machine_item_get(item, keys[i]);
        found += text != NULL;
        part[i] = 1;
        ok = !text || g_ascii_string_to_unsigned(text, 10, 1, VCPU_COUNT_MAX, &part[i], NULL);
    }
    ok = ok && found == item->options->len;
    machine_item_free(item);
    if (found == 0)
        part[0] = n;
    if (!ok || part[0] * part[1] * part[2] != n)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "--vcpus %s: N[,sockets=S][,cores=C][,threads=T] with N = S*C*T from 1 "
                          "to %u",
                          value, VCPU_COUNT_MAX);
    c->n_vcpus = n;
    c->sockets = part[0];
    c->cores = part[1];
    c->threads = part[2];
    return true;
}

static bool set_cpu(VmmOptions *o, const char *name, const char *value, GError **err)
{
    replace(&o->config->cpu, value);
    g_autoptr(GError) error = NULL;
    g_autoptr(X86CpuSpec) spec = x86_cpu_parse(value, &error);
    return spec || bad_value(err, name, value, error->message);
}

static bool set_engine(VmmOptions *o, const char *name, const char *value, GError **err)
{
    replace(&o->config->engine, value);
    return strcmp(value, "auto") == 0 || strcmp(value, "kvm") == 0 || strcmp(value, "soft") == 0 ||
           bad_value(err, name, value, "auto, kvm or soft");
}

static bool set_kernel(VmmOptions *o, const char *name, const char *value, GError **err)
{
    replace(&o->config->kernel, value);
    return true;
}

static bool set_initrd(VmmOptions *o, const char *name, const char *value, GError **err)
{
    replace(&o->config->initrd, value);
    return true;
}

static bool set_cmdline(VmmOptions *o, const char *name, const char *value, GError **err)
{
    replace(&o->config->cmdline, value);
    return true;
}

static bool set_rtc_offset(VmmOptions *o, const char *name, const char *value, GError **err)
{
    return g_ascii_string_to_signed(value, 10, -(1ll << 40), 1ll << 40, &o->config->rtc_offset_s,
                                    NULL) ||
           bad_value(err, name, value, "a number of seconds");
}

static bool set_no_hpet(VmmOptions *o, const char *name, const char *value, GError **err)
{
    o->config->hpet = false;
    return true;
}

static bool set_paused(VmmOptions *o, const char *name, const char *value, GError **err)
{
    o->config->start_paused = true;
    return true;
}

static bool set_no_reboot(VmmOptions *o, const char *name, const char *value, GError **err)
{
    o->config->no_reboot = true;
    return true;
}

static bool add_drive(VmmOptions *o, const char *name, const char *value, GError **err)
{
    return add_item(o->config->drives, true, name, value, err);
}

static bool add_chardev(VmmOptions *o, const char *name, const char *value, GError **err)
{
    return add_item(o->config->chardevs, true, name, value, err);
}

static bool add_netdev(VmmOptions *o, const char *name, const char *value, GError **err)
{
    return add_item(o->config->netdevs, true, name, value, err);
}

static bool add_device(VmmOptions *o, const char *name, const char *value, GError **err)
{
    return add_item(o->config->devices, false, name, value, err);
}

static bool set_qmp(VmmOptions *o, const char *name, const char *value, GError **err)
{
    replace(&o->qmp, value);
    return g_str_has_prefix(value, "unix:") || g_str_has_prefix(value, "fd:") ||
           bad_value(err, name, value, "unix:PATH or fd:N (a connected or listening socket)");
}

static bool set_cpu_debug(VmmOptions *o, const char *name, const char *value, GError **err)
{
    if (vcpu_tuning_parse(value, &o->config->cpu_tuning, err))
        return true;
    g_prefix_error(err, "--%s %s: ", name, value);
    return false;
}

static bool set_perf_map(VmmOptions *o, const char *name, const char *value, GError **err)
{
    replace(&o->config->perf_map, value);
    return *value || bad_value(err, name, value, "a file that does not exist yet");
}

static bool set_gdb(VmmOptions *o, const char *name, const char *value, GError **err)
{
    replace(&o->gdb, value);
    return g_str_has_prefix(value, "unix:") || g_str_has_prefix(value, "tcp:") ||
           bad_value(err, name, value, "unix:PATH or tcp:ADDRESS:PORT");
}

static bool set_pidfile(VmmOptions *o, const char *name, const char *value, GError **err)
{
    replace(&o->pidfile, value);
    return true;
}

static bool set_sandbox(VmmOptions *o, const char *name, const char *value, GError **err)
{
    o->sandbox = strcmp(value, "on") == 0;
    return o->sandbox || strcmp(value, "off") == 0 || bad_value(err, name, value, "on or off");
}

static bool set_verbose(VmmOptions *o, const char *name, const char *value, GError **err)
{
    return o->verbose = true;
}

static bool set_help(VmmOptions *o, const char *name, const char *value, GError **err)
{
    return o->help = true;
}

static bool set_version(VmmOptions *o, const char *name, const char *value, GError **err)
{
    return o->version = true;
}

static const VmmOption options_table[] = {
    {"name", "NAME", "the machine's name", set_name},
    {"uuid", "UUID", "its UUID; a random one if absent", set_uuid},
    {"memory", "SIZE[K|M|G|T]", "guest memory, in MiB without a suffix; 512 if absent", set_memory},
    {"vcpus", "N[,sockets=S][,cores=C][,threads=T]", "virtual CPUs and how they lie", set_vcpus},
    {"cpu", "MODEL[,FEATURE=POLICY..][,match=..][,check=..]",
     "what the virtual CPUs are: max, x86-64-v1 to x86-64-v4, and features one by one", set_cpu},
    {"engine", "auto|kvm|soft",
     "what runs them: hardware, Lodge's own CPU, or the first that works", set_engine},
    {"kernel", "FILE", "Linux bzImage, PVH ELF or multiboot kernel", set_kernel},
    {"initrd", "FILE", "initial RAM disk or multiboot module", set_initrd},
    {"cmdline", "TEXT", "kernel command line", set_cmdline},
    {"rtc-offset", "SECONDS", "guest's clock minus host's UTC", set_rtc_offset},
    {"no-hpet", NULL, "leave out the HPET", set_no_hpet},
    {"paused", NULL, "do not start the vCPUs before QMP's cont or GDB's continue", set_paused},
    {"no-reboot", NULL, "a guest's reset ends the machine", set_no_reboot},
    {"drive", "FORMAT,id=ID,file=FILE[,readonly=on][,cache=..][,discard=..]", "a disk image",
     add_drive},
    {"chardev", "TYPE,id=ID[,KEY=VALUE..]", "stdio, file, unix, pty, null or fd", add_chardev},
    {"netdev", "TYPE,id=ID[,KEY=VALUE..]", "user or tap-fd", add_netdev},
    {"device", "TYPE[,id=ID][,KEY=VALUE..]", "a device", add_device},
    {"qmp", "unix:PATH|fd:N", "serve QMP on this socket", set_qmp},
    {"perf-map", "FILE", "write a map of translated code for perf(1) there; %p is the process's number",
     set_perf_map},
    {"cpu-debug", "LIST", "run Lodge's own CPU in a way that shows its faults", set_cpu_debug},
    {"gdb", "unix:PATH|tcp:ADDRESS:PORT", "let GDB debug the guest through this socket", set_gdb},
    {"pidfile", "FILE", "write the process's number there and keep the file locked", set_pidfile},
    {"sandbox", "on|off", "confine the process once the machine is built; on if absent",
     set_sandbox},
    {"verbose", NULL, "say which engine was taken and why", set_verbose},
    {"help", NULL, "print this text", set_help},
    {"version", NULL, "print the version", set_version},
};

static const VmmOption *find_option(const char *name, size_t length)
{
    for (size_t i = 0; i < G_N_ELEMENTS(options_table); i++)
        if (strlen(options_table[i].name) == length &&
            strncmp(options_table[i].name, name, length) == 0)
            return &options_table[i];
    return NULL;
}

/* Handles argv[*i], which may take argv[*i + 1] as its argument. */
static bool parse_one(VmmOptions *o, int argc, char **argv, int *i, GError **err)
{
    const char *word = argv[*i];
    if (!g_str_has_prefix(word, "--") || !word[2])
        return lodge_fail(err, LODGE_ERROR_INVALID, "'%s' is not an option; --help lists them",
                          word);
    const char *name = word + 2, *equals = strchr(name, '=');
    size_t length = equals ? (size_t)(equals - name) : strlen(name);
    const VmmOption *option = find_option(name, length);
    if (!option)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "there is no option '--%.*s'; --help lists them", (int)length, name);
    const char *value = equals ? equals + 1 : NULL;
    if (!option->argument && value)
        return lodge_fail(err, LODGE_ERROR_INVALID, "--%s takes no value", option->name);
    if (option->argument && !value) {
        if (*i + 1 >= argc)
            return lodge_fail(err, LODGE_ERROR_INVALID, "--%s needs %s", option->name,
                              option->argument);
        value = argv[++*i];
    }
    return option->apply(o, option->name, value, err);
}

static void random_uuid(uint8_t uuid[16])
{
    g_autofree char *text = g_uuid_string_random();
    parse_uuid(text, uuid);
}

VmmOptions *vmm_options_parse(int argc, char **argv, GError **err)
{
    VmmOptions *o = g_new0(VmmOptions, 1);
    o->config = machine_config_new();
    o->config->hpet = true;
    o->sandbox = true;
    random_uuid(o->config->uuid);
    for (int i = 1; i < argc && !o->help && !o->version; i++) {
        if (!parse_one(o, argc, argv, &i, err)) {
            vmm_options_free(o);
            return NULL;
        }
    }
    if (!o->config->name)
        o->config->name = g_strdup("lodge");
    return o;
}

void vmm_options_free(VmmOptions *o)
{
    if (!o)
        return;
    machine_config_free(o->config);
    g_free(o->qmp);
    g_free(o->gdb);
    g_free(o->pidfile);
    g_free(o);
}

char *vmm_options_help(void)
{
    GString *text = g_string_new("Usage: lodge-vmm [OPTION]...\n"
                                 "Runs one virtual machine in this process.\n\n"
                                 "A comma inside a value is written twice.\n\n");
    for (size_t i = 0; i < G_N_ELEMENTS(options_table); i++) {
        const VmmOption *o = &options_table[i];
        g_string_append_printf(text, "  --%s%s%s\n        %s\n", o->name, o->argument ? " " : "",
                               o->argument ? o->argument : "", o->help);
    }
    return g_string_free(text, FALSE);
}
