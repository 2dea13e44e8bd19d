/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Port and MMIO dispatch: the regions of an address space, flattened into a sorted array that
 * vCPU threads search without a lock.
 */
#include <errno.h>
#include <sched.h>
#include <string.h>
#include <unistd.h>

#include "machine/machine-internal.h"

static __thread int current_vcpu = -1;

int machine_current_vcpu(void)
{
    return current_vcpu;
}

void machine_set_current_vcpu(int vcpu)
{
    current_vcpu = vcpu;
}

void machine_io_init(Machine *m)
{
    pthread_mutex_init(&m->ioeventfd_lock, NULL);
    m->ports.regions = g_ptr_array_new();
    m->ports.last = 0xffff;
    m->mmio.regions = g_ptr_array_new();
    m->mmio.last = UINT64_MAX;
}

void machine_io_free(Machine *m)
{
    while (m->ports.regions->len)
        io_region_free(m->ports.regions->pdata[0]);
    while (m->mmio.regions->len)
        io_region_free(m->mmio.regions->pdata[0]);
    g_ptr_array_unref(m->ports.regions);
    g_ptr_array_unref(m->mmio.regions);
    pthread_mutex_destroy(&m->ioeventfd_lock);
}

/* ---- the table of visible regions -------------------------------------------------------------
 */

/* Inserts in order; false if it overlaps what is there. */
static bool slot_insert(IoSlot *slots, unsigned *count, IoRegion *region)
{
    uint64_t base = region->base, last = region->base + (region->size - 1);
    unsigned at = 0;
    while (at < *count && slots[at].last < base)
        at++;
    if (at < *count && slots[at].base <= last)
        return false;
    memmove(slots + at + 1, slots + at, (*count - at) * sizeof(IoSlot));
    slots[at] = (IoSlot){base, last, region};
    (*count)++;
    return true;
}

static void publish(IoSpace *space, const IoSlot *slots, unsigned count)
{
    unsigned sequence = space->sequence;
    __atomic_store_n(&space->sequence, sequence + 1, __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_RELEASE);
    for (unsigned i = 0; i < count; i++) {
        __atomic_store_n(&space->slot[i].base, slots[i].base, __ATOMIC_RELAXED);
        __atomic_store_n(&space->slot[i].last, slots[i].last, __ATOMIC_RELAXED);
        __atomic_store_n(&space->slot[i].region, slots[i].region, __ATOMIC_RELAXED);
    }
    __atomic_store_n(&space->count, count, __ATOMIC_RELAXED);
    __atomic_store_n(&space->sequence, sequence + 2, __ATOMIC_RELEASE);
}

/* Tells an engine that dispatches doorbells itself where the region's are. */
static void engine_doorbells(IoRegion *region, bool add)
{
    Machine *m = region->machine;
    if (!region->ioeventfds || !m->engine->add_ioeventfd)
        return;
    for (unsigned i = 0; i < region->ioeventfds->len; i++) {
        const IoEventFd *e = &g_array_index(region->ioeventfds, IoEventFd, i);
        /* An engine that refuses leaves the write to the dispatcher, which signals too. */
        if (add)
            m->engine->add_ioeventfd(m->vm, region->base + e->offset, e->size, e->fd, NULL);
        else
            m->engine->del_ioeventfd(m->vm, region->base + e->offset, e->size, e->fd, NULL);
    }
}

static void set_visible(IoRegion *region, bool visible)
{
    if (region->visible == visible)
        return;
    region->visible = visible;
    engine_doorbells(region, visible);
}

/* Fixed regions first, so that a guest cannot cover a system device with a BAR. */
static void rebuild(IoSpace *space)
{
    IoSlot slots[MACHINE_REGIONS_MAX];
    unsigned count = 0;
    for (int pass = 0; pass < 2; pass++) {
        for (unsigned i = 0; i < space->regions->len; i++) {
            IoRegion *region = space->regions->pdata[i];
            if (region->fixed != (pass == 0))
                continue;
            set_visible(region, region->enabled && slot_insert(slots, &count, region));
        }
    }
    publish(space, slots, count);
}

static IoRegion *region_find(IoSpace *space, uint64_t address, uint64_t *base, uint64_t *last)
{
    for (;;) {
        unsigned sequence = __atomic_load_n(&space->sequence, __ATOMIC_ACQUIRE);
        if (sequence & 1) {
            sched_yield();
            continue;
        }
        unsigned count = __atomic_load_n(&space->count, __ATOMIC_RELAXED);
        unsigned low = 0, high = count;
        while (low < high) {
            unsigned mid = (low + high) / 2;
            if (__atomic_load_n(&space->slot[mid].last, __ATOMIC_RELAXED) < address)
                low = mid + 1;
            else
                high = mid;
        }
        IoRegion *region = NULL;
        if (low < count) {
            *base = __atomic_load_n(&space->slot[low].base, __ATOMIC_RELAXED);
            *last = __atomic_load_n(&space->slot[low].last, __ATOMIC_RELAXED);
            region = __atomic_load_n(&space->slot[low].region, __ATOMIC_RELAXED);
            if (*base > address)
                region = NULL;
        }
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
        if (__atomic_load_n(&space->sequence, __ATOMIC_RELAXED) == sequence)
            return region;
    }
}

/* ---- regions -----------------------------------------------------------------------------------
 */

IoRegion *io_region_new(Machine *m, bool ports, uint64_t size, const IoOps *ops, void *opaque,
                        const char *name)
{
    IoSpace *space = ports ? &m->ports : &m->mmio;
    if (!size || size - 1 > space->last || space->regions->len == MACHINE_REGIONS_MAX)
        return NULL;
    IoRegion *region = g_new0(IoRegion, 1);
    region->machine = m;
    region->space = space;
    region->size = size;
    region->ops = ops;
    region->opaque = opaque;
    region->name = g_strdup(name);
    g_ptr_array_add(space->regions, region);
    return region;
}

static IoRegion *map(Machine *m, bool ports, uint64_t base, uint64_t size, const IoOps *ops,
                     void *opaque, const char *name)
{
    machine_lock(m);
    IoRegion *region = io_region_new(m, ports, size, ops, opaque, name);
    if (region && !range_within(base, size - 1, region->space->last)) {
        io_region_free(region);
        region = NULL;
    }
    if (region) {
        region->base = base;
        region->fixed = region->enabled = true;
        rebuild(region->space);
        if (!region->visible) {
            io_region_free(region);
            region = NULL;
        }
    }
    machine_unlock(m);
    return region;
}

IoRegion *machine_map_mmio(Machine *m, uint64_t gpa, uint64_t size, const IoOps *ops, void *opaque,
                           const char *name)
{
    return map(m, false, gpa, size, ops, opaque, name);
}

IoRegion *machine_map_ports(Machine *m, uint16_t port, unsigned count, const IoOps *ops,
                            void *opaque, const char *name)
{
    return map(m, true, port, count, ops, opaque, name);
}

void io_region_move(IoRegion *region, bool enabled, uint64_t base)
{
    machine_lock(region->machine);
    bool fits = range_within(base, region->size - 1, region->space->last);
    enabled = enabled && fits;
    if (region->enabled != enabled || (enabled && region->base != base)) {
        set_visible(region, false);
        region->enabled = enabled;
        region->base = base;
        rebuild(region->space);
    }
    machine_unlock(region->machine);
}

void io_region_free(IoRegion *region)
{
    if (!region)
        return;
    Machine *m = region->machine;
    machine_lock(m);
    set_visible(region, false);
    g_ptr_array_remove(region->space->regions, region);
    rebuild(region->space);
    machine_unlock(m);
    if (region->ioeventfds)
        g_array_unref(region->ioeventfds);
    g_free(region->name);
    g_free(region);
}

bool io_region_enabled(const IoRegion *region)
{
    return region->enabled;
}

/* ---- doorbells
 * ------------------------------------------------------------------------------------ */

bool io_region_add_ioeventfd(IoRegion *region, uint64_t offset, unsigned size, int fd)
{
    Machine *m = region->machine;
    if (!range_within(offset, size, region->size))
        return false;
    IoEventFd added = {offset, size, fd};
    pthread_mutex_lock(&m->ioeventfd_lock);
    GArray *list = region->ioeventfds;
    if (!list)
        list = g_array_new(FALSE, FALSE, sizeof(IoEventFd));
    bool ok = list->len < MACHINE_IOEVENTFD_MAX;
    if (ok)
        g_array_append_val(list, added);
    __atomic_store_n(&region->ioeventfds, list, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&m->ioeventfd_lock);
    if (ok && region->visible && m->engine->add_ioeventfd)
        m->engine->add_ioeventfd(m->vm, region->base + offset, size, fd, NULL);
    return ok;
}

void io_region_del_ioeventfd(IoRegion *region, uint64_t offset, unsigned size)
{
    Machine *m = region->machine;
    int fd = -1;
    pthread_mutex_lock(&m->ioeventfd_lock);
    for (unsigned i = 0; region->ioeventfds && i < region->ioeventfds->len; i++) {
        const IoEventFd *e = &g_array_index(region->ioeventfds, IoEventFd, i);
        if (e->offset == offset && e->size == size) {
            fd = e->fd;
            g_array_remove_index_fast(region->ioeventfds, i);
            break;
        }
    }
    pthread_mutex_unlock(&m->ioeventfd_lock);
    if (fd >= 0 && region->visible && m->engine->del_ioeventfd)
        m->engine->del_ioeventfd(m->vm, region->base + offset, size, fd, NULL);
}

static bool doorbell(IoRegion *region, uint64_t offset, unsigned size)
{
    bool found = false;
    if (!__atomic_load_n(&region->ioeventfds, __ATOMIC_ACQUIRE))
        return false;
    pthread_mutex_lock(&region->machine->ioeventfd_lock);
    for (unsigned i = 0; i < region->ioeventfds->len && !found; i++) {
        const IoEventFd *e = &g_array_index(region->ioeventfds, IoEventFd, i);
        found = e->offset == offset && e->size == size;
        if (found) {
            uint64_t one = 1;
            /* Fails only when the counter is full, and then the reader is woken already. */
            while (write(e->fd, &one, sizeof(one)) < 0 && errno == EINTR)
                continue;
        }
    }
    pthread_mutex_unlock(&region->machine->ioeventfd_lock);
    return found;
}

/* ---- dispatch
 * --------------------------------------------------------------------------------------- */

static uint64_t mask_of(unsigned size)
{
    return size >= 8 ? UINT64_MAX : (UINT64_C(1) << (8 * size)) - 1;
}

/* The largest naturally aligned piece at @offset that the device takes and that is not more than
 * @left. */
static unsigned piece_of(uint64_t offset, unsigned left, unsigned max)
{
    unsigned piece = max;
    while (piece > left || (offset & (piece - 1)))
        piece /= 2;
    return piece;
}

static uint64_t region_read(IoRegion *r, uint64_t offset, unsigned size)
{
    unsigned min = r->ops->min_size ? r->ops->min_size : 1;
    unsigned max = r->ops->max_size ? r->ops->max_size : 4;
    uint64_t value = 0;
    for (unsigned done = 0; done < size;) {
        uint64_t at = offset + done;
        unsigned piece = piece_of(at, size - done, max), wide = MAX(piece, min);
        uint64_t aligned = at & ~(uint64_t)(wide - 1);
        uint64_t v = r->ops->read ? r->ops->read(r->opaque, aligned, wide) : UINT64_MAX;
        v = v >> (8 * (at - aligned)) & mask_of(piece);
        value |= v << (8 * done);
        done += piece;
    }
    return value;
}

static void region_write(IoRegion *r, uint64_t offset, unsigned size, uint64_t value)
{
    unsigned min = r->ops->min_size ? r->ops->min_size : 1;
    unsigned max = r->ops->max_size ? r->ops->max_size : 4;
    if (!r->ops->write)
        return;
    for (unsigned done = 0; done < size;) {
        uint64_t at = offset + done;
        unsigned piece = piece_of(at, size - done, max), wide = MAX(piece, min);
        uint64_t aligned = at & ~(uint64_t)(wide - 1);
        uint64_t v = (value >> (8 * done) & mask_of(piece)) << (8 * (at - aligned));
        r->ops->write(r->opaque, aligned, wide, v);
        done += piece;
    }
}

uint64_t io_space_read(Machine *m, IoSpace *space, uint64_t address, unsigned size)
{
    uint64_t base = 0, last = 0;
    IoRegion *r = region_find(space, address, &base, &last);
    if (size > 1 && (r ? last - address < size - 1 : true)) {
        /* Leaves the region or starts outside one: its bytes may belong to different regions. */
        uint64_t value = 0;
        for (unsigned i = 0; i < size; i++)
            value |= io_space_read(m, space, (address + i) & space->last, 1) << (8 * i);
        return value;
    }
    if (!r)
        return mask_of(size);
    if (r->ops->no_lock)
        return region_read(r, address - base, size);
    machine_lock(m);
    uint64_t value = region_read(r, address - base, size);
    machine_unlock(m);
    return value;
}

void io_space_write(Machine *m, IoSpace *space, uint64_t address, unsigned size, uint64_t value)
{
    uint64_t base = 0, last = 0;
    IoRegion *r = region_find(space, address, &base, &last);
    if (size > 1 && (r ? last - address < size - 1 : true)) {
        for (unsigned i = 0; i < size; i++)
            io_space_write(m, space, (address + i) & space->last, 1, value >> (8 * i) & 0xff);
        return;
    }
    if (!r || doorbell(r, address - base, size))
        return;
    if (r->ops->no_lock) {
        region_write(r, address - base, size, value);
        return;
    }
    machine_lock(m);
    region_write(r, address - base, size, value);
    machine_unlock(m);
}
