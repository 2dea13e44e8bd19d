/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The board's devices under random accesses: ports, MMIO, configuration space, APIC MSRs, interrupt
 * lines, time and resets. An input is a series of operations of an opcode byte and its arguments.
 */
#include "machine/board/devices.h"
#include "machine/board/board.h"
#include "machine/board/layout.h"
#include "machine/irq/irq.h"
#include "machine/pci/pci-internal.h"
#include "machine/test-machine.h"
#include "machine/timer/timers.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define OPERATIONS_MAX 2000

enum {
    IN,
    OUT,
    MMIO_READ,
    MMIO_WRITE,
    CONFIG,
    APIC,
    MSR,
    LINE,
    MSI,
    TAKE,
    TIME,
    RESET,
    SAVE,
    OPCODES
};

typedef struct Input {
    const uint8_t *data;
    size_t size;
} Input;

static uint64_t take(Input *in, unsigned bytes)
{
    uint64_t v = 0;
    for (unsigned i = 0; i < bytes && in->size; i++, in->data++, in->size--)
        v |= (uint64_t)*in->data << (8 * i);
    return v;
}

static void add(Machine *m, const DeviceType *type, const MachineItem *item)
{
    if (!device_new(m, type, item, NULL))
        g_error("%s cannot be created", type->name);
}

/* One machine for all inputs; each starts with a reset. */
static Machine *machine(void)
{
    static Machine *m;
    if (m)
        return m;
    m = test_board(3);
    m->pm = board_pm_init(m, NULL);
    MachineItem *port = machine_item_new("pcie-root-port", NULL);
    machine_item_set(port, "addr", "02.0");
    add(m, &pcie_root_port_device_type, port);
    MachineItem *behind = machine_item_new("virtio-rng", NULL);
    machine_item_set(behind, "addr", "01:00.0");
    add(m, device_type_find("virtio-rng"), behind);
    add(m, device_type_find("virtio-balloon"), NULL);
    add(m, &isa_serial_device_type, NULL);
    add(m, &isa_debug_exit_device_type, NULL);
    return m;
}

/* An address within a region that is mapped now. */
static uint64_t address(const IoSpace *space, Input *in)
{
    if (!space->count)
        return 0;
    const IoSlot *slot = &space->slot[take(in, 1) % space->count];
    return slot->base + take(in, 2) % (slot->last - slot->base + 1);
}

static void save_and_load(Machine *m, Input *in)
{
    Device *dev = m->devices->pdata[take(in, 1) % m->devices->len];
    g_autoptr(GByteArray) bytes = g_byte_array_new();
    device_save(dev, bytes);
    unsigned flips = take(in, 1) & 3;
    for (unsigned i = 0; i < flips && bytes->len; i++) {
        unsigned at = (unsigned)take(in, 2) % bytes->len;
        bytes->data[at] = (uint8_t)take(in, 1);
    }
    /* A device whose load failed waits for a reset. */
    if (!device_load(dev, bytes->data, bytes->len, NULL) && dev->type->reset)
        dev->type->reset(dev);
}

static void operate(Machine *m, Input *in)
{
    unsigned opcode = (unsigned)take(in, 1), vcpu = opcode / OPCODES % m->n_vcpus;
    unsigned access = 1u << (opcode / OPCODES / 3 % 4);
    uint64_t value;
    switch (opcode % OPCODES) {
    case IN:
        io_space_read(m, &m->ports, address(&m->ports, in), MIN(access, 4));
        break;
    case OUT:
        value = address(&m->ports, in);
        io_space_write(m, &m->ports, value, MIN(access, 4), take(in, 4));
        break;
    case MMIO_READ:
        test_mmio_read(m, vcpu, address(&m->mmio, in), access);
        break;
    case MMIO_WRITE:
        value = address(&m->mmio, in);
        test_mmio_write(m, vcpu, value, access, take(in, 8));
        break;
    case CONFIG: /* bus, slot, register */
        value = LAYOUT_ECAM_BASE + (take(in, 1) % 3 << 20) + (take(in, 1) % 8 << 15) + take(in, 1);
        test_mmio_write(m, vcpu, value, access, take(in, 4));
        break;
    case APIC:
        value = LAYOUT_LAPIC_BASE + take(in, 1) % 64 * 16;
        test_mmio_read(m, vcpu, value, 4);
        test_mmio_write(m, vcpu, value, 4, take(in, 4));
        break;
    case MSR: {
        static const uint32_t others[] = {0x1b, 0x6e0};
        uint32_t msr = (uint32_t)take(in, 1);
        msr = msr < 2 ? others[msr] : 0x800 + msr;
        value = take(in, 6);
        lapic_msr_write(m->irq.lapic, vcpu, msr, msr == 0x1b ? value | 0xfee00000 : value);
        lapic_msr_read(m->irq.lapic, vcpu, msr, &value);
        break;
    }
    case LINE:
        value = take(in, 1);
        machine_set_gsi(m, value & 31, value & 32);
        break;
    case MSI:
        value = take(in, 3);
        machine_send_msi(m, 0xfee00000 | (value & 0xff) << 12 | (value >> 8 & 4),
                         (uint32_t)value >> 8);
        break;
    case TAKE:
        if (lapic_acknowledge(m->irq.lapic, vcpu) > 255)
            g_error("not a vector");
        break;
    case TIME:
        machine_clock_advance(m, (int64_t)take(in, 3));
        break;
    case RESET:
        if (!machine_reset_state(m, NULL) || !pci_assign_resources(m, NULL))
            g_error("reset failed");
        break;
    case SAVE:
        save_and_load(m, in);
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    Machine *m = machine();
    Input in = {data, size};
    machine_lock(m);
    if (!machine_reset_state(m, NULL) || !pci_assign_resources(m, NULL))
        g_error("reset failed");
    for (unsigned i = 0; in.size && i < OPERATIONS_MAX; i++)
        operate(m, &in);
    machine_unlock(m);
    while (g_main_context_iteration(m->context, FALSE))
        continue;
    return 0;
}
