/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The machine of virtio-test-driver.h: RAM, a clock, a main loop, PCI registers and MSI-X counters.
 */
#include <errno.h>
#include <glib-unix.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "machine/balloon.h"
#include "machine/device/virtio/virtio-test-internal.h"

/* ---- life, RAM ---- */

Machine *test_machine_new(uint64_t ram_size, unsigned n_vcpus)
{
    Machine *m = g_new0(Machine, 1);
    m->config.name = g_strdup("test");
    m->config.memory_size = ram_size;
    m->config.n_vcpus = n_vcpus;
    m->status = MACHINE_RUNNING;
    m->context = g_main_context_new();
    m->ram_fd = memfd_create("test-ram", MFD_CLOEXEC);
    g_assert(m->ram_fd >= 0 && ftruncate(m->ram_fd, (off_t)ram_size) == 0);
    m->ram = mmap(NULL, ram_size, PROT_READ | PROT_WRITE, MAP_SHARED, m->ram_fd, 0);
    g_assert(m->ram != MAP_FAILED);
    m->shadow = g_malloc0(ram_size);
    m->devices = g_ptr_array_new();
    m->timers = g_ptr_array_new();
    m->chardevs = g_hash_table_new(g_str_hash, g_str_equal);
    return m;
}

void test_machine_free(Machine *m)
{
    for (guint i = m->devices->len; i-- > 0;) {
        Device *dev = m->devices->pdata[i];
        dev->type->unrealize(dev);
        test_item_free(dev->item);
        g_free(dev->id);
        g_free(dev);
    }
    test_host_free(m);
    g_assert_cmpuint(m->timers->len, ==, 0);
    g_ptr_array_unref(m->devices);
    g_ptr_array_unref(m->timers);
    g_hash_table_unref(m->chardevs);
    g_main_context_unref(m->context);
    munmap(m->ram, m->config.memory_size);
    close(m->ram_fd);
    g_free(m->shadow);
    g_free(m->config.name);
    g_free(m);
}

void *machine_ram(Machine *m, uint64_t gpa, uint64_t length)
{
    return range_within(gpa, length, m->config.memory_size) ? m->ram + gpa : NULL;
}

void machine_ram_dirty(Machine *m, uint64_t gpa, uint64_t length)
{
    g_assert(range_within(gpa, length, m->config.memory_size));
    memcpy(m->shadow + gpa, m->ram + gpa, length);
}

uint8_t *test_ram(Machine *m, uint64_t gpa)
{
    return m->ram + gpa;
}

void test_ram_write(Machine *m, uint64_t gpa, const void *data, size_t size)
{
    g_assert(range_within(gpa, size, m->config.memory_size));
    memcpy(m->ram + gpa, data, size);
    memcpy(m->shadow + gpa, data, size);
}

void test_check_dirty(Machine *m)
{
    for (uint64_t page = 0; page < m->config.memory_size; page += 4096)
        if (memcmp(m->ram + page, m->shadow + page, 4096) != 0)
            g_error("a device wrote page 0x%" G_GINT64_MODIFIER "x without machine_ram_dirty",
                    page);
}

/* ---- status, lock, events ---- */

const MachineConfig *machine_config(const Machine *m)
{
    return &m->config;
}

MachineStatus machine_status(const Machine *m)
{
    return m->status;
}

void machine_lock(Machine *m)
{
}

void machine_unlock(Machine *m)
{
}

void machine_add_event_handler(Machine *m, MachineEventHandler handler, void *opaque)
{
    g_assert(m->n_handlers < G_N_ELEMENTS(m->handlers));
    m->handlers[m->n_handlers++] = (TestHandler){handler, opaque};
}

void machine_emit(Machine *m, const MachineEvent *event)
{
    m->events[event->type]++;
    for (unsigned i = 0; i < m->n_handlers; i++)
        m->handlers[i].f(m->handlers[i].opaque, event);
}

unsigned test_events(Machine *m, MachineEventType type)
{
    return m->events[type];
}

void test_machine_set_status(Machine *m, MachineStatus status)
{
    const MachineEvent event = {.type = MACHINE_EVENT_RESUME};
    bool resumed = m->status == MACHINE_PAUSED && status == MACHINE_RUNNING;
    m->status = status;
    if (resumed)
        machine_emit(m, &event);
}

/* ---- main loop ---- */

GMainContext *machine_context(Machine *m)
{
    return m->context;
}

typedef struct Watch {
    int fd;
    MachineFdHandler f;
    void *opaque;
} Watch;

static gboolean watch_ready(gint fd, GIOCondition condition, gpointer opaque)
{
    const Watch *w = opaque;
    w->f(w->opaque, fd, condition);
    return G_SOURCE_CONTINUE;
}

GSource *machine_watch_fd(Machine *m, int fd, GIOCondition condition, MachineFdHandler f,
                          void *opaque)
{
    Watch *w = g_new(Watch, 1);
    *w = (Watch){fd, f, opaque};
    GSource *source = g_unix_fd_source_new(fd, condition);
    g_source_set_callback(source, G_SOURCE_FUNC(watch_ready), w, g_free);
    g_source_attach(source, m->context);
    return source;
}

typedef struct Deferred {
    void (*f)(void *opaque);
    void *opaque;
} Deferred;

static gboolean deferred_run(gpointer opaque)
{
    const Deferred *d = opaque;
    d->f(d->opaque);
    return G_SOURCE_REMOVE;
}

void machine_defer(Machine *m, void (*f)(void *opaque), void *opaque)
{
    Deferred *d = g_new(Deferred, 1);
    *d = (Deferred){f, opaque};
    GSource *source = g_idle_source_new();
    g_source_set_priority(source, G_PRIORITY_DEFAULT);
    g_source_set_callback(source, deferred_run, d, g_free);
    g_source_attach(source, m->context);
    g_source_unref(source);
}

void test_run(Machine *m, unsigned rounds)
{
    for (unsigned i = 0; i < (rounds ? rounds : 10000); i++)
        if (!g_main_context_iteration(m->context, FALSE))
            return;
}

/* ---- clock ---- */

struct MachineTimer {
    Machine *machine;
    void (*f)(void *opaque);
    void *opaque;
    bool armed;
    int64_t deadline;
};

int64_t machine_clock_ns(Machine *m)
{
    return m->clock;
}

MachineTimer *machine_timer_new(Machine *m, void (*f)(void *opaque), void *opaque)
{
    MachineTimer *t = g_new0(MachineTimer, 1);
    *t = (MachineTimer){.machine = m, .f = f, .opaque = opaque};
    g_ptr_array_add(m->timers, t);
    return t;
}

void machine_timer_free(MachineTimer *t)
{
    g_ptr_array_remove(t->machine->timers, t);
    g_free(t);
}

void machine_timer_set(MachineTimer *t, int64_t deadline_ns)
{
    t->armed = true;
    t->deadline = deadline_ns;
}

void machine_timer_cancel(MachineTimer *t)
{
    t->armed = false;
}

bool machine_timer_pending(const MachineTimer *t)
{
    return t->armed;
}

void test_clock_advance(Machine *m, int64_t ns)
{
    m->clock += ns;
    for (guint i = 0; i < m->timers->len; i++) {
        MachineTimer *t = m->timers->pdata[i];
        if (t->armed && t->deadline <= m->clock) {
            t->armed = false;
            t->f(t->opaque);
        }
    }
}

/* ---- configuration ---- */

MachineItem *test_item_new(const char *type, const char *id, const char *options)
{
    MachineItem *item = g_new0(MachineItem, 1);
    item->type = g_strdup(type);
    item->id = g_strdup(id);
    item->options = g_array_new(FALSE, FALSE, sizeof(MachineOption));
    g_auto(GStrv) parts = g_strsplit(options ? options : "", ",", -1);
    for (unsigned i = 0; parts[i]; i++) {
        g_auto(GStrv) pair = g_strsplit(parts[i], "=", 2);
        if (!pair[0])
            continue;
        MachineOption o = {g_strdup(pair[0]), g_strdup(pair[1])};
        g_array_append_val(item->options, o);
    }
    return item;
}

void test_item_free(const MachineItem *item)
{
    if (!item)
        return;
    for (guint i = 0; i < item->options->len; i++) {
        MachineOption *o = &g_array_index(item->options, MachineOption, i);
        g_free(o->key);
        g_free(o->value);
    }
    g_array_unref(item->options);
    g_free(item->type);
    g_free(item->id);
    g_free((void *)item);
}

const char *machine_item_get(const MachineItem *item, const char *key)
{
    for (guint i = 0; item && i < item->options->len; i++) {
        const MachineOption *o = &g_array_index(item->options, MachineOption, i);
        if (strcmp(o->key, key) == 0)
            return o->value;
    }
    return NULL;
}

const char *device_option(const Device *dev, const char *name)
{
    const char *value = machine_item_get(dev->item, name);
    for (const DeviceOption *o = dev->type->options; !value && o && o->name; o++)
        if (strcmp(o->name, name) == 0)
            value = o->fallback;
    return value;
}

uint64_t device_option_uint(const Device *dev, const char *name)
{
    const char *value = device_option(dev, name);
    return value ? g_ascii_strtoull(value, NULL, 0) : 0;
}

bool device_option_bool(const Device *dev, const char *name)
{
    return g_strcmp0(device_option(dev, name), "on") == 0;
}

Device *test_device_new(Machine *m, const DeviceType *type, const char *options, GError **err)
{
    Device *dev = g_malloc0(type->instance_size);
    dev->type = type;
    dev->machine = m;
    dev->id = g_strdup(type->name);
    dev->item = test_item_new(type->name, NULL, options);
    if (!type->realize(dev, err)) {
        test_item_free(dev->item);
        g_free(dev->id);
        g_free(dev);
        return NULL;
    }
    g_ptr_array_add(m->devices, dev);
    return dev;
}

Device *machine_find_device(Machine *m, const char *id)
{
    for (guint i = 0; i < m->devices->len; i++) {
        Device *dev = m->devices->pdata[i];
        if (strcmp(dev->id, id) == 0)
            return dev;
    }
    return NULL;
}

void machine_foreach_device(Machine *m, void (*f)(Device *dev, void *opaque), void *opaque)
{
    for (guint i = 0; i < m->devices->len; i++)
        f(m->devices->pdata[i], opaque);
}

/* ---- PCI ---- */

struct IoRegion {
    const IoOps *ops;
    void *opaque;
    struct {
        uint64_t offset;
        int fd;
    } doorbell[VIRTIO_QUEUES_MAX];
    unsigned n_doorbells;
};

static TestPci *test_pci(Device *dev)
{
    Machine *m = dev->machine;
    for (unsigned i = 0; i < G_N_ELEMENTS(m->pci); i++)
        if (m->pci[i].dev == dev)
            return &m->pci[i];
    return NULL;
}

bool pci_device_init(PciDevice *pci, const PciIds *ids, GError **err)
{
    Machine *m = pci->dev.machine;
    for (unsigned i = 0; i < G_N_ELEMENTS(m->pci); i++) {
        if (m->pci[i].dev)
            continue;
        m->pci[i] = (TestPci){.dev = &pci->dev};
        pci->config[4] = pci->write_mask[4] = 4; /* bus master */
        le16_put(pci->config, ids->vendor);
        le16_put(pci->config + 2, ids->device);
        pci->capability_end = 0x40;
        return true;
    }
    return lodge_fail(err, LODGE_ERROR_LIMIT, "no slot");
}

void pci_device_exit(PciDevice *pci)
{
    TestPci *t = test_pci(&pci->dev);
    for (unsigned i = 0; i < PCI_BAR_COUNT; i++)
        g_clear_pointer(&pci->bar[i].region, g_free);
    if (t)
        t->dev = NULL;
}

void pci_device_reset(PciDevice *pci)
{
    test_pci(&pci->dev)->msix_enabled = false;
    pci->intx_level = false;
}

bool pci_add_bar(PciDevice *pci, unsigned index, uint64_t size, bool is_port, bool prefetchable64,
                 const IoOps *ops, void *opaque, GError **err)
{
    IoRegion *region = g_new0(IoRegion, 1);
    region->ops = ops;
    region->opaque = opaque;
    pci->bar[index] = (PciBar){.size = size, .is_64bit = prefetchable64, .region = region};
    return true;
}

uint16_t pci_add_capability(PciDevice *pci, uint8_t id, uint8_t size)
{
    uint16_t at = pci->capability_end;
    pci->config[at] = id;
    pci->config[at + 1] = pci->config[0x34];
    pci->config[0x34] = (uint8_t)at;
    pci->capability_end = (uint16_t)align_up(at + size, 4);
    return at;
}

bool pci_add_pcie_capability(PciDevice *pci, unsigned port_type)
{
    return true;
}

bool pci_add_msix(PciDevice *pci, unsigned vectors, unsigned bar, GError **err)
{
    g_assert(vectors <= PCI_MSIX_VECTORS_MAX);
    pci->msix_vectors = vectors;
    return true;
}

bool pci_msix_enabled(const PciDevice *pci)
{
    return test_pci((Device *)&pci->dev)->msix_enabled;
}

void pci_msix_notify(PciDevice *pci, unsigned vector)
{
    g_assert(vector < pci->msix_vectors);
    test_pci(&pci->dev)->interrupts[vector]++;
}

void pci_set_intx(PciDevice *pci, bool level)
{
    pci->intx_level = level;
}

const StateField pci_device_state[] = {STATE_FIELD(PciDevice, devfn), STATE_FIELDS_END};

bool io_region_add_ioeventfd(IoRegion *region, uint64_t offset, unsigned size, int fd)
{
    g_assert(size == 2 && region->n_doorbells < VIRTIO_QUEUES_MAX);
    region->doorbell[region->n_doorbells].offset = offset;
    region->doorbell[region->n_doorbells++].fd = fd;
    return true;
}

void io_region_del_ioeventfd(IoRegion *region, uint64_t offset, unsigned size)
{
    for (unsigned i = 0; i < region->n_doorbells; i++)
        if (region->doorbell[i].offset == offset)
            region->doorbell[i].fd = -1;
}

static IoRegion *bar_of(Device *dev)
{
    return ((PciDevice *)dev)->bar[4].region;
}

uint64_t test_bar_read(Device *dev, uint64_t offset, unsigned size)
{
    IoRegion *r = bar_of(dev);
    return r->ops->read(r->opaque, offset, size);
}

void test_bar_write(Device *dev, uint64_t offset, unsigned size, uint64_t value)
{
    IoRegion *r = bar_of(dev);
    for (unsigned i = 0; i < r->n_doorbells; i++) {
        if (r->doorbell[i].offset == offset && size == 2 && r->doorbell[i].fd >= 0) {
            g_assert(write(r->doorbell[i].fd, &(uint64_t){1}, 8) == 8);
            return;
        }
    }
    r->ops->write(r->opaque, offset, size, value);
}

void test_config_write(Device *dev, unsigned offset, unsigned size, uint32_t value)
{
    PciDevice *pci = (PciDevice *)dev;
    for (unsigned i = 0; i < size; i++) {
        uint8_t mask = pci->write_mask[offset + i], byte = (uint8_t)(value >> (8 * i));
        pci->config[offset + i] = (uint8_t)((pci->config[offset + i] & ~mask) | (byte & mask));
    }
    if (pci->config_written)
        pci->config_written(pci, offset, size);
}

uint32_t test_config_read(Device *dev, unsigned offset, unsigned size)
{
    PciDevice *pci = (PciDevice *)dev;
    if (pci->config_read)
        pci->config_read(pci, offset, size);
    return le32_get(pci->config + offset) & (0xffffffffu >> (32 - 8 * size));
}

unsigned test_interrupts(Device *dev, unsigned vector)
{
    unsigned n = test_pci(dev)->interrupts[vector];
    test_pci(dev)->interrupts[vector] = 0;
    return n;
}

void test_msix_enable(Device *dev, bool enable)
{
    test_pci(dev)->msix_enabled = enable;
}

bool test_intx(Device *dev)
{
    return ((PciDevice *)dev)->intx_level;
}
