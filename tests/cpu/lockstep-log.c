/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the leader gets from outside, written down for the follower. */
#include <inttypes.h>
#include <stdio.h>

#include "lockstep-private.h"

/* Nanoseconds since 1970 are more, a guest's TSC is less. */
#define WALL_CLOCK_MIN 1000000000000000000u

static const char *const log_name[] = {
    "port read", "port write", "MMIO read", "MMIO write", "interrupt acknowledge", "CR8 read", "CR8 write",
    "APIC MSR read", "APIC MSR write", "time", "DMA"};

/* ---- the leader's bus: the real one, written down ---- */

void lockstep_log_add(LockVm *l, LogEntry e)
{
    if (l->logging)
        g_array_append_val(l->log, e);
}

static uint64_t lead_port_read(void *opaque, unsigned vcpu, uint16_t port, unsigned size)
{
    LockVm *l = opaque;
    unsigned at = l->log->len;
    lockstep_log_add(l, (LogEntry){.kind = LOG_PORT_READ, .size = size, .address = port});
    uint64_t v = l->vm.bus->port_read(l->vm.bus->opaque, vcpu, port, size);
    if (l->logging)
        g_array_index(l->log, LogEntry, at).value = v;
    return v;
}

static void lead_port_write(void *opaque, unsigned vcpu, uint16_t port, unsigned size, uint64_t value)
{
    LockVm *l = opaque;
    lockstep_log_add(l, (LogEntry){.kind = LOG_PORT_WRITE, .size = size, .address = port, .value = value});
    l->vm.bus->port_write(l->vm.bus->opaque, vcpu, port, size, value);
}

static uint64_t lead_mmio_read(void *opaque, unsigned vcpu, uint64_t gpa, unsigned size)
{
    LockVm *l = opaque;
    unsigned at = l->log->len;
    lockstep_log_add(l, (LogEntry){.kind = LOG_MMIO_READ, .size = size, .address = gpa});
    uint64_t v = l->vm.bus->mmio_read(l->vm.bus->opaque, vcpu, gpa, size);
    if (l->logging)
        g_array_index(l->log, LogEntry, at).value = v;
    return v;
}

static void lead_mmio_write(void *opaque, unsigned vcpu, uint64_t gpa, unsigned size, uint64_t value)
{
    LockVm *l = opaque;
    lockstep_log_add(l, (LogEntry){.kind = LOG_MMIO_WRITE, .size = size, .address = gpa, .value = value});
    l->vm.bus->mmio_write(l->vm.bus->opaque, vcpu, gpa, size, value);
}

static int lead_acknowledge(void *opaque, unsigned vcpu)
{
    LockVm *l = opaque;
    int vector = l->vm.bus->interrupt_acknowledge(l->vm.bus->opaque, vcpu);
    lockstep_log_add(l, (LogEntry){.kind = LOG_ACKNOWLEDGE, .value = (uint64_t)(int64_t)vector});
    return vector;
}

static uint64_t lead_cr8_read(void *opaque, unsigned vcpu)
{
    LockVm *l = opaque;
    uint64_t v = l->vm.bus->cr8_read ? l->vm.bus->cr8_read(l->vm.bus->opaque, vcpu) : 0;
    lockstep_log_add(l, (LogEntry){.kind = LOG_CR8_READ, .value = v});
    return v;
}

static void lead_cr8_write(void *opaque, unsigned vcpu, uint64_t value)
{
    LockVm *l = opaque;
    lockstep_log_add(l, (LogEntry){.kind = LOG_CR8_WRITE, .value = value});
    if (l->vm.bus->cr8_write) /* not before the machine has its APICs */
        l->vm.bus->cr8_write(l->vm.bus->opaque, vcpu, value);
}

static bool lead_apic_read(void *opaque, unsigned vcpu, uint32_t msr, uint64_t *value)
{
    LockVm *l = opaque;
    bool ok = l->vm.bus->apic_msr_read && l->vm.bus->apic_msr_read(l->vm.bus->opaque, vcpu, msr, value);
    lockstep_log_add(l, (LogEntry){.kind = LOG_APIC_READ, .address = msr, .value = *value, .ok = ok});
    return ok;
}

static bool lead_apic_write(void *opaque, unsigned vcpu, uint32_t msr, uint64_t value)
{
    LockVm *l = opaque;
    bool ok = l->vm.bus->apic_msr_write && l->vm.bus->apic_msr_write(l->vm.bus->opaque, vcpu, msr, value);
    lockstep_log_add(l, (LogEntry){.kind = LOG_APIC_WRITE, .address = msr, .value = value, .ok = ok});
    return ok;
}

uint64_t lockstep_leader_time(SoftCpu *cpu, void *opaque, uint64_t now)
{
    if (now < WALL_CLOCK_MIN)
        now /= lockstep_slow;
    lockstep_log_add(opaque, (LogEntry){.kind = LOG_TIME, .value = now});
    return now;
}

/* ---- the follower's: the log ---- */

uint8_t *lockstep_follower_ram(LockVm *l, uint64_t gpa, uint64_t size)
{
    for (unsigned i = 0; i < VCPU_RAM_SLOTS_MAX; i++) {
        const VcpuRamSlot *r = &l->follower->ram[i];
        if (r->size && gpa >= r->gpa && gpa - r->gpa < r->size && size <= r->size - (gpa - r->gpa))
            return r->hva + (gpa - r->gpa);
    }
    return NULL;
}

/* DMA that a register access of the leader set off belongs to that access. */
static void replay_dma(LockVm *l)
{
    while (l->head < l->log->len && g_array_index(l->log, LogEntry, l->head).kind == LOG_DMA) {
        LogEntry *e = &g_array_index(l->log, LogEntry, l->head++);
        uint8_t *to = lockstep_follower_ram(l, e->address, e->value);
        if (to)
            memcpy(to, e->data, e->value);
        vcpu_engine_soft.ram_dirty(l->follower, e->address, e->value);
        g_clear_pointer(&e->data, g_free);
    }
}

/* The leader's next entry, if it is this one; else what the follower does is wrong, and it gets zeroes. */
static const LogEntry *replay(LockVm *l, LogKind kind, unsigned size, uint64_t address, const uint64_t *value)
{
    static const LogEntry nothing = {.ok = true};
    const LogEntry *e = l->head < l->log->len ? &g_array_index(l->log, LogEntry, l->head) : NULL;
    if (l->wrong)
        return &nothing;
    if (e && e->kind == kind && e->size == size && e->address == address && (!value || e->value == *value)) {
        l->head++;
        replay_dma(l);
        return e;
    }
    g_autofree char *lead = e ? g_strdup_printf("%s %#" PRIx64 " size %u value %#" PRIx64, log_name[e->kind],
                                                e->address, e->size, e->value)
                              : g_strdup("nothing");
    snprintf(l->wrong_text, sizeof(l->wrong_text), "%s %#" PRIx64 " size %u value %#" PRIx64 ", the leader: %s",
             log_name[kind], address, size, value ? *value : 0, lead);
    l->wrong = l->wrong_text;
    return &nothing;
}

static uint64_t follow_port_read(void *opaque, unsigned vcpu, uint16_t port, unsigned size)
{
    return replay(opaque, LOG_PORT_READ, size, port, NULL)->value;
}

static void follow_port_write(void *opaque, unsigned vcpu, uint16_t port, unsigned size, uint64_t value)
{
    replay(opaque, LOG_PORT_WRITE, size, port, &value);
}

static uint64_t follow_mmio_read(void *opaque, unsigned vcpu, uint64_t gpa, unsigned size)
{
    return replay(opaque, LOG_MMIO_READ, size, gpa, NULL)->value;
}

static void follow_mmio_write(void *opaque, unsigned vcpu, uint64_t gpa, unsigned size, uint64_t value)
{
    replay(opaque, LOG_MMIO_WRITE, size, gpa, &value);
}

static int follow_acknowledge(void *opaque, unsigned vcpu)
{
    return (int)replay(opaque, LOG_ACKNOWLEDGE, 0, 0, NULL)->value;
}

/* While the state is set from outside nobody has written a log. */
static uint64_t follow_cr8_read(void *opaque, unsigned vcpu)
{
    LockVm *l = opaque;
    return l->logging ? replay(l, LOG_CR8_READ, 0, 0, NULL)->value : 0;
}

static void follow_cr8_write(void *opaque, unsigned vcpu, uint64_t value)
{
    LockVm *l = opaque;
    if (l->logging)
        replay(l, LOG_CR8_WRITE, 0, 0, &value);
}

static bool follow_apic_read(void *opaque, unsigned vcpu, uint32_t msr, uint64_t *value)
{
    LockVm *l = opaque;
    if (!l->logging)
        return l->vm.bus->apic_msr_read && l->vm.bus->apic_msr_read(l->vm.bus->opaque, vcpu, msr, value);
    const LogEntry *e = replay(l, LOG_APIC_READ, 0, msr, NULL);
    *value = e->value;
    return e->ok;
}

static bool follow_apic_write(void *opaque, unsigned vcpu, uint32_t msr, uint64_t value)
{
    LockVm *l = opaque;
    return !l->logging || replay(l, LOG_APIC_WRITE, 0, msr, &value)->ok;
}

uint64_t lockstep_follower_time(SoftCpu *cpu, void *opaque, uint64_t now)
{
    LockVm *l = opaque;
    return l->logging ? replay(l, LOG_TIME, 0, 0, NULL)->value : now;
}

const VcpuBus lockstep_leader_bus = {
    .port_read = lead_port_read, .port_write = lead_port_write, .mmio_read = lead_mmio_read,
    .mmio_write = lead_mmio_write, .interrupt_acknowledge = lead_acknowledge, .cr8_read = lead_cr8_read,
    .cr8_write = lead_cr8_write, .apic_msr_read = lead_apic_read, .apic_msr_write = lead_apic_write};
const VcpuBus lockstep_follower_bus = {
    .port_read = follow_port_read, .port_write = follow_port_write, .mmio_read = follow_mmio_read,
    .mmio_write = follow_mmio_write, .interrupt_acknowledge = follow_acknowledge, .cr8_read = follow_cr8_read,
    .cr8_write = follow_cr8_write, .apic_msr_read = follow_apic_read, .apic_msr_write = follow_apic_write};
