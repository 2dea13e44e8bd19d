/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "cli/run-domain.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "launch/plan.h"

#define DEFAULT_MEMORY_KIB (1024u * 1024u)
#define DISKS_MAX          26 /* vda to vdz */

/* ---- options */

static void disk_free(gpointer data)
{
    RunDisk *disk = data;
    g_free(disk->path);
    g_free(disk->format);
    g_free(disk->serial);
    g_free(disk->cache);
    g_free(disk->discard);
    g_free(disk);
}

RunOptions *run_options_new(void)
{
    RunOptions *options = g_new0(RunOptions, 1);
    options->disks = g_ptr_array_new_with_free_func(disk_free);
    return options;
}

void run_options_free(RunOptions *o)
{
    if (!o)
        return;
    char *strings[] = {o->file,   o->name, o->uuid, o->kernel,  o->initrd, o->cmdline,
                       o->engine, o->net,  o->mac,  o->console, o->qmp,
                       o->perf_map, o->gdb, o->cpu};
    for (unsigned i = 0; i < G_N_ELEMENTS(strings); i++)
        g_free(strings[i]);
    g_ptr_array_unref(o->disks);
    g_free(o);
}

/* ---- --disk */

/* The next piece of "a,b=c,,d" (a doubled comma stands for itself); NULL at the end. */
static char *next_piece(const char **text)
{
    if (!*text)
        return NULL;
    GString *piece = g_string_new(NULL);
    const char *p = *text;
    for (; *p; p++) {
        if (*p == ',' && p[1] != ',')
            break;
        p += *p == ',';
        g_string_append_c(piece, *p);
    }
    *text = *p ? p + 1 : NULL;
    return g_string_free(piece, FALSE);
}

/* qcow2's magic is "QFI\xfb" (QEMU's docs/interop/qcow2.txt, "Header"); all else is raw.
 * O_NONBLOCK: a FIFO must not hold up the start. */
static bool probe_format(RunDisk *disk, GError **err)
{
    uint8_t magic[4] = {0};
    int fd = open(disk->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return lodge_fail_errno(err, errno, "cannot open '%s'", disk->path);
    ssize_t n = read(fd, magic, sizeof(magic));
    int errnum = errno;
    close(fd);
    if (n < 0)
        return lodge_fail_errno(err, errnum, "cannot read '%s'", disk->path);
    bool qcow2 = n == sizeof(magic) && memcmp(magic, "QFI\xfb", sizeof(magic)) == 0;
    disk->format = g_strdup(qcow2 ? "qcow2" : "raw");
    return true;
}

static bool set_disk_option(RunDisk *disk, const char *piece, GError **err)
{
    const struct {
        const char *key;
        char **slot;
    } keys[] = {{"format", &disk->format},
                {"serial", &disk->serial},
                {"cache", &disk->cache},
                {"discard", &disk->discard}};
    const char *equals = strchr(piece, '=');
    size_t length = equals ? (size_t)(equals - piece) : strlen(piece);
    for (unsigned i = 0; equals && i < G_N_ELEMENTS(keys); i++) {
        if (strlen(keys[i].key) == length && strncmp(keys[i].key, piece, length) == 0) {
            if (*keys[i].slot)
                return lodge_fail(err, LODGE_ERROR_INVALID, "%s= is given twice", keys[i].key);
            *keys[i].slot = g_strdup(equals + 1);
            return true;
        }
    }
    if (strcmp(piece, "readonly=on") == 0 || strcmp(piece, "readonly=off") == 0) {
        disk->readonly = strcmp(equals, "=on") == 0;
        return true;
    }
    return lodge_fail(err, LODGE_ERROR_INVALID,
                      "'%s' is not one of: format=raw|qcow2, readonly=on|off, serial=TEXT, "
                      "cache=MODE, discard=unmap|ignore (a comma in a path is written twice)",
                      piece);
}

bool run_disk_parse(RunOptions *options, const char *text, GError **err)
{
    const char *rest = text;
    RunDisk *disk = g_new0(RunDisk, 1);
    g_autofree char *path = next_piece(&rest);
    bool good = true;
    disk->path = g_canonicalize_filename(path, NULL);
    if (!*path)
        good = lodge_fail(err, LODGE_ERROR_INVALID, "a path is missing");
    while (good && rest) {
        g_autofree char *piece = next_piece(&rest);
        good = set_disk_option(disk, piece, err);
    }
    if (good && options->disks->len >= DISKS_MAX)
        good = lodge_fail(err, LODGE_ERROR_LIMIT, "more than %d disks", DISKS_MAX);
    if (good && !disk->format)
        good = probe_format(disk, err);
    if (!good) {
        disk_free(disk);
        return false;
    }
    g_ptr_array_add(options->disks, disk);
    return true;
}

/* ---- changes to the domain */

static void replace(char **where, const char *value)
{
    g_free(*where);
    *where = g_strdup(value);
}

static void remove_devices(Domain *domain, const char *element)
{
    for (guint i = domain->devices.list->len; i-- > 0;) {
        const DomainDevice *device = domain->devices.list->pdata[i];
        if (device->kind && strcmp(device->kind->element, element) == 0)
            domain_remove_device(domain, device);
    }
}

static const DomainDevice *first_device(const Domain *domain, const char *element)
{
    for (guint i = 0; i < domain->devices.list->len; i++) {
        const DomainDevice *device = domain->devices.list->pdata[i];
        if (device->kind && strcmp(device->kind->element, element) == 0)
            return device;
    }
    return NULL;
}

static void add_disk(Domain *domain, const RunDisk *from, unsigned index)
{
    DomainDisk *disk = domain_add_device(domain, "disk");
    disk->type = config_enum_find(domain_disk_type_names, "file");
    disk->device = config_enum_find(domain_disk_device_names, "disk");
    disk->driver = config_object_new(&domain_disk_driver_schema);
    disk->driver->name = g_strdup("qemu");
    disk->driver->type = g_strdup(from->format);
    disk->driver->cache = g_strdup(from->cache);
    disk->driver->discard = g_strdup(from->discard);
    disk->source = config_object_new(&domain_disk_source_schema);
    disk->source->file = g_strdup(from->path);
    disk->target = config_object_new(&domain_disk_target_schema);
    disk->target->dev = g_strdup_printf("vd%c", 'a' + (int)index);
    disk->target->bus = g_strdup("virtio");
    disk->serial = g_strdup(from->serial);
    disk->readonly = from->readonly;
}

static DomainInterface *user_interface(Domain *domain)
{
    const DomainDevice *first = first_device(domain, "interface");
    DomainInterface *nic = first ? first->object : domain_add_device(domain, "interface");
    nic->type = config_enum_find(domain_interface_type_names, "user");
    config_object_free(&domain_interface_source_schema, nic->source);
    nic->source = NULL;
    if (!nic->model) {
        nic->model = config_object_new(&domain_model_schema);
        nic->model->value = g_strdup("virtio");
    }
    return nic;
}

static void set_mac(DomainInterface *nic, const char *address)
{
    if (!nic->mac)
        nic->mac = config_object_new(&domain_mac_schema);
    replace(&nic->mac->address, address);
}

static bool apply_net(Domain *domain, const RunOptions *options, GError **err)
{
    if (options->net && strcmp(options->net, "none") == 0)
        remove_devices(domain, "interface");
    else if (options->net && strcmp(options->net, "user") == 0)
        user_interface(domain);
    else if (options->net)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "--net: '%s' is not one of: user, none (host networks come later)",
                          options->net);
    const DomainDevice *first = first_device(domain, "interface");
    if (options->mac && !first)
        return lodge_fail(err, LODGE_ERROR_INVALID, "--mac: the guest has no network interface");
    if (options->mac)
        set_mac(first->object, options->mac);
    return true;
}

/* --console: where the first serial line leads. */
static void apply_console(Domain *domain, const char *console)
{
    const DomainDevice *first = first_device(domain, "serial");
    if (!first)
        first = first_device(domain, "console");
    DomainChardev *serial = first ? first->object : domain_add_device(domain, "serial");
    g_ptr_array_set_free_func(serial->sources, NULL);
    for (guint i = 0; i < serial->sources->len; i++)
        config_object_free(&domain_chardev_source_schema, serial->sources->pdata[i]);
    g_ptr_array_set_size(serial->sources, 0);
    const char *type = "file", *path = console;
    if (strcmp(console, "stdio") == 0) {
        type = "stdio";
        path = NULL;
    } else if (g_str_has_prefix(console, "unix:")) {
        type = "unix";
        path = console + strlen("unix:");
    }
    serial->type = config_enum_find(domain_chardev_type_names, type);
    if (!path)
        return;
    DomainChardevSource *source = config_object_new(&domain_chardev_source_schema);
    source->path = g_canonicalize_filename(path, NULL);
    if (strcmp(type, "unix") == 0)
        source->mode = g_strdup("bind");
    g_ptr_array_add(serial->sources, source);
}

static void apply_vcpus(Domain *domain, unsigned n_vcpus)
{
    domain->vcpu->count = n_vcpus;
    domain->vcpu->current = -1;
    /* The document's topology was for its own number. */
    if (domain->cpu && domain->cpu->topology) {
        config_object_free(&domain_cpu_topology_schema, domain->cpu->topology);
        domain->cpu->topology = NULL;
    }
}

static void apply_memory(Domain *domain, uint64_t kib)
{
    domain->memory->kib = kib;
    domain->current_memory->kib = kib;
}

static bool apply_identity(Domain *domain, const RunOptions *options, GError **err)
{
    if (options->name) {
        if (!domain_check_name(options->name, err))
            return false;
        replace(&domain->name, options->name);
    }
    if (options->uuid)
        replace(&domain->uuid, options->uuid);
    return !options->engine || launch_set_engine(domain, options->engine, err);
}

static bool apply(Domain *domain, const RunOptions *options, GError **err)
{
    if (!apply_identity(domain, options, err) || !apply_net(domain, options, err))
        return false;
    if (options->memory_kib)
        apply_memory(domain, options->memory_kib);
    if (options->n_vcpus)
        apply_vcpus(domain, options->n_vcpus);
    if (options->cpu)
        run_cpu_apply(domain, options->cpu);
    if (options->kernel) {
        g_autofree char *path = g_canonicalize_filename(options->kernel, NULL);
        replace(&domain->os->kernel, path);
    }
    if (options->initrd) {
        g_autofree char *path = g_canonicalize_filename(options->initrd, NULL);
        replace(&domain->os->initrd, path);
    }
    if (options->cmdline)
        replace(&domain->os->cmdline, options->cmdline);
    if (options->disks->len > 0)
        remove_devices(domain, "disk");
    for (guint i = 0; i < options->disks->len; i++)
        add_disk(domain, options->disks->pdata[i], i);
    if (options->console)
        apply_console(domain, options->console);
    return true;
}

/* ---- a domain from nothing but options */

static char *default_name(const RunOptions *options)
{
    if (options->disks->len == 0)
        return g_strdup("lodge");
    g_autofree char *base = g_path_get_basename(((RunDisk *)options->disks->pdata[0])->path);
    char *dot = strrchr(base, '.');
    if (dot && dot != base)
        *dot = '\0';
    return domain_check_name(base, NULL) ? g_strdup(base) : g_strdup("lodge");
}

static void add_usual_devices(Domain *domain)
{
    DomainChardev *serial = domain_add_device(domain, "serial");
    serial->type = config_enum_find(domain_chardev_type_names, "pty");
    serial->target = config_object_new(&domain_chardev_target_schema);
    serial->target->type = g_strdup("isa-serial");
    serial->target->port = 0;
    /* Its own address for each guest: the last bytes of its UUID behind the prefix of KVM guests.
     */
    uint8_t uuid[16];
    domain_uuid_bytes(domain, uuid);
    g_autofree char *mac = g_strdup_printf("52:54:00:%02x:%02x:%02x", uuid[13], uuid[14], uuid[15]);
    set_mac(user_interface(domain), mac);
    DomainBalloon *balloon = domain_add_device(domain, "memballoon");
    balloon->model = g_strdup("virtio");
    DomainRng *rng = domain_add_device(domain, "rng");
    rng->model = g_strdup("virtio");
    rng->backend = config_object_new(&domain_rng_backend_schema);
    rng->backend->model = g_strdup("random");
    rng->backend->path = g_strdup("/dev/urandom");
}

static Domain *domain_from_options(const RunOptions *options)
{
    g_autofree char *name = default_name(options);
    Domain *domain = domain_new(name, DEFAULT_MEMORY_KIB, 1);
    if (options->uuid)
        replace(&domain->uuid, options->uuid);
    domain->features = config_object_new(&domain_features_schema);
    domain->features->acpi = true;
    domain->features->apic = config_object_new(&domain_apic_schema);
    domain->clock = config_object_new(&domain_clock_schema);
    domain->clock->offset = DOMAIN_CLOCK_UTC;
    domain->on_poweroff = DOMAIN_ACTION_DESTROY;
    domain->on_reboot = DOMAIN_ACTION_RESTART;
    domain->on_crash = DOMAIN_ACTION_DESTROY;
    if (options->kernel && !options->cmdline)
        domain->os->cmdline = g_strdup("console=ttyS0");
    add_usual_devices(domain);
    return domain;
}

Domain *run_domain(const RunOptions *options, GError **err)
{
    g_autoptr(Domain) domain = NULL;
    if (!options->file && !options->kernel && options->disks->len == 0) {
        lodge_fail(err, LODGE_ERROR_INVALID,
                   "name a domain XML file, or give --disk and --kernel; `lodge run --help` "
                   "explains both");
        return NULL;
    }
    if (options->file) {
        domain = domain_parse_file(options->file, err);
        if (!domain)
            return NULL;
        g_autofree char *folder =
            strcmp(options->file, "-") == 0 ? g_strdup(".") : g_path_get_dirname(options->file);
        launch_resolve_paths(domain, folder);
    } else {
        domain = domain_from_options(options);
    }
    return apply(domain, options, err) ? g_steal_pointer(&domain) : NULL;
}
