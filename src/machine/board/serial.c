/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * isa-serial: a 16550A UART. National Semiconductor PC16550D data sheet (registers: section
 * 8; FIFO interrupts: 8.10). The transmitter is infinitely fast: what is written has left
 * at once. The receiver holds the host back while its FIFO is full, so it never overruns
 * except in loopback.
 */
#include "base/error.h"
#include "machine/board/devices.h"
#include "machine/chardev/chardev.h"

#define FIFO_SIZE 16
#define BASE_BAUD 115200
#define NS_PER_S  1000000000ull

#define IER_RDA   0x01
#define IER_THRE  0x02
#define IER_LINE  0x04
#define IER_MODEM 0x08

#define IIR_NONE    0x01
#define IIR_MODEM   0x00
#define IIR_THRE    0x02
#define IIR_RDA     0x04
#define IIR_LINE    0x06
#define IIR_TIMEOUT 0x0c
#define IIR_FIFO    0xc0

#define FCR_ENABLE   0x01
#define FCR_CLEAR_RX 0x02
#define FCR_CLEAR_TX 0x04

#define LCR_BREAK 0x40
#define LCR_DLAB  0x80

#define MCR_DTR  0x01
#define MCR_RTS  0x02
#define MCR_OUT1 0x04
#define MCR_OUT2 0x08
#define MCR_LOOP 0x10

#define LSR_DR     0x01
#define LSR_OE     0x02
#define LSR_BI     0x10
#define LSR_THRE   0x20
#define LSR_TEMT   0x40
#define LSR_ERRORS 0x1e

#define MSR_DCTS   0x01
#define MSR_DDSR   0x02
#define MSR_TERI   0x04
#define MSR_DDCD   0x08
#define MSR_DELTAS 0x0f
#define MSR_CTS    0x10
#define MSR_DSR    0x20
#define MSR_RI     0x40
#define MSR_DCD    0x80

typedef struct Serial {
    Device dev;
    IoRegion *region;
    MachineTimer *timer; /* the FIFO's character time-out */
    Chardev *chardev;    /* may be NULL: nobody listens */
    IsaSerialResources resources;
    bool irq;
    uint8_t ier, fcr, lcr, mcr, lsr, msr, scr;
    uint16_t divisor;
    uint8_t thre_pending, timeout_pending;
    uint8_t fifo[FIFO_SIZE];
    uint8_t fifo_head, fifo_count;
} Serial;

static const IsaSerialResources com_ports[] = {
    {0, 0x3f8, 4}, {1, 0x2f8, 3}, {2, 0x3e8, 4}, {3, 0x2e8, 3}};

static unsigned serial_depth(const Serial *s)
{
    return s->fcr & FCR_ENABLE ? FIFO_SIZE : 1;
}

static unsigned serial_trigger(const Serial *s)
{
    static const uint8_t levels[] = {1, 4, 8, 14};
    return s->fcr & FCR_ENABLE ? levels[s->fcr >> 6] : 1;
}

/* The highest-priority interrupt that is enabled and pending, as IIR's low bits. */
static uint8_t serial_source(const Serial *s)
{
    if ((s->ier & IER_LINE) && (s->lsr & LSR_ERRORS))
        return IIR_LINE;
    if ((s->ier & IER_RDA) && s->fifo_count >= serial_trigger(s))
        return IIR_RDA;
    if ((s->ier & IER_RDA) && s->timeout_pending)
        return IIR_TIMEOUT;
    if ((s->ier & IER_THRE) && s->thre_pending)
        return IIR_THRE;
    if ((s->ier & IER_MODEM) && (s->msr & MSR_DELTAS))
        return IIR_MODEM;
    return IIR_NONE;
}

/* On a PC, OUT2 gates the interrupt; loopback turns OUT2 off at the pin. */
static void serial_update(Serial *s)
{
    bool gate = (s->mcr & (MCR_OUT2 | MCR_LOOP)) == MCR_OUT2;
    bool irq = gate && serial_source(s) != IIR_NONE;
    if (irq != s->irq) {
        s->irq = irq;
        machine_set_gsi(s->dev.machine, s->resources.irq, irq);
    }
}

/* Four character times without a character moving, with at least one in the FIFO. */
static void serial_arm_timeout(Serial *s)
{
    s->timeout_pending = 0;
    if (!(s->fcr & FCR_ENABLE) || s->fifo_count == 0) {
        machine_timer_cancel(s->timer);
        return;
    }
    unsigned data_bits = 5 + (s->lcr & 3), parity = s->lcr >> 3 & 1, stop = 1 + (s->lcr >> 2 & 1);
    uint64_t bits = 4 * (1 + data_bits + parity + stop);
    uint64_t divisor = s->divisor ? s->divisor : 1;
    machine_timer_set(s->timer, machine_clock_ns(s->dev.machine) +
                                    (int64_t)(bits * divisor * NS_PER_S / BASE_BAUD));
}

static void serial_timed_out(void *opaque)
{
    Serial *s = opaque;
    s->timeout_pending = s->fifo_count != 0;
    serial_update(s);
}

static void serial_push(Serial *s, uint8_t byte)
{
    if (s->fifo_count >= serial_depth(s)) {
        s->lsr |= LSR_OE;
        if (serial_depth(s) == 1)
            s->fifo[s->fifo_head] = byte; /* without FIFO the new character replaces the old */
        return;
    }
    s->fifo[(s->fifo_head + s->fifo_count) % FIFO_SIZE] = byte;
    s->fifo_count++;
    s->lsr |= LSR_DR;
}

static void serial_clear_rx(Serial *s)
{
    s->fifo_head = s->fifo_count = 0;
    s->lsr &= ~LSR_DR;
    serial_arm_timeout(s);
}

static void serial_set_msr(Serial *s, uint8_t lines)
{
    uint8_t changed = (s->msr ^ lines) & ~MSR_DELTAS;
    uint8_t deltas = s->msr & MSR_DELTAS;
    deltas |= changed & MSR_CTS ? MSR_DCTS : 0;
    deltas |= changed & MSR_DSR ? MSR_DDSR : 0;
    deltas |= (changed & MSR_RI) && !(lines & MSR_RI) ? MSR_TERI : 0;
    deltas |= changed & MSR_DCD ? MSR_DDCD : 0;
    s->msr = (lines & ~MSR_DELTAS) | deltas;
}

/* The modem lines that the chip sees: its own outputs in loopback, a ready peer otherwise. */
static uint8_t serial_lines(const Serial *s)
{
    if (!(s->mcr & MCR_LOOP))
        return MSR_CTS | MSR_DSR | MSR_DCD;
    return (s->mcr & MCR_RTS ? MSR_CTS : 0) | (s->mcr & MCR_DTR ? MSR_DSR : 0) |
           (s->mcr & MCR_OUT1 ? MSR_RI : 0) | (s->mcr & MCR_OUT2 ? MSR_DCD : 0);
}

static uint8_t serial_read_data(Serial *s)
{
    if (s->fifo_count == 0)
        return 0;
    uint8_t byte = s->fifo[s->fifo_head];
    s->fifo_head = (s->fifo_head + 1) % FIFO_SIZE;
    if (--s->fifo_count == 0)
        s->lsr &= ~LSR_DR;
    serial_arm_timeout(s);
    serial_update(s);
    if (s->chardev)
        chardev_accept_input(s->chardev);
    return byte;
}

static uint8_t serial_read_iir(Serial *s)
{
    uint8_t source = serial_source(s);
    if (source == IIR_THRE)
        s->thre_pending = 0;
    serial_update(s);
    return source | (s->fcr & FCR_ENABLE ? IIR_FIFO : 0);
}

static uint64_t serial_read(void *opaque, uint64_t offset, unsigned size)
{
    Serial *s = opaque;
    uint8_t value;
    switch (offset) {
    case 0:
        return s->lcr & LCR_DLAB ? s->divisor & 0xff : serial_read_data(s);
    case 1:
        return s->lcr & LCR_DLAB ? s->divisor >> 8 : s->ier;
    case 2:
        return serial_read_iir(s);
    case 3:
        return s->lcr;
    case 4:
        return s->mcr;
    case 5:
        value = s->lsr;
        s->lsr &= ~LSR_ERRORS;
        serial_update(s);
        return value;
    case 6:
        value = s->msr;
        s->msr &= ~MSR_DELTAS;
        serial_update(s);
        return value;
    default:
        return s->scr;
    }
}

static void serial_transmit(Serial *s, uint8_t byte)
{
    if (s->mcr & MCR_LOOP) {
        serial_push(s, byte);
        serial_arm_timeout(s);
    } else if (s->chardev) {
        chardev_write(s->chardev, &byte, 1);
    }
    s->thre_pending = 1;
}

static void serial_write_fcr(Serial *s, uint8_t value)
{
    if ((value ^ s->fcr) & FCR_ENABLE)
        value |= FCR_CLEAR_RX | FCR_CLEAR_TX;
    bool enabled = value & FCR_ENABLE;
    if (value & FCR_CLEAR_RX)
        serial_clear_rx(s);
    if (value & FCR_CLEAR_TX)
        s->thre_pending = 1;
    s->fcr = enabled ? value & 0xc9 : 0;
    if (s->chardev)
        chardev_accept_input(s->chardev);
}

static void serial_write_ier(Serial *s, uint8_t value)
{
    /* Enabling the transmitter's interrupt while it is empty raises it at once. */
    if ((value & IER_THRE) && !(s->ier & IER_THRE))
        s->thre_pending = 1;
    s->ier = value & 0x0f;
}

static void serial_write_mcr(Serial *s, uint8_t value)
{
    s->mcr = value & 0x1f;
    serial_set_msr(s, serial_lines(s));
}

static void serial_write_lcr(Serial *s, uint8_t value)
{
    if ((value & LCR_BREAK) && !(s->lcr & LCR_BREAK) && (s->mcr & MCR_LOOP)) {
        serial_push(s, 0);
        s->lsr |= LSR_BI;
    }
    s->lcr = value;
}

static void serial_write(void *opaque, uint64_t offset, unsigned size, uint64_t wide)
{
    Serial *s = opaque;
    uint8_t value = wide;
    switch (offset) {
    case 0:
        if (s->lcr & LCR_DLAB)
            s->divisor = (s->divisor & 0xff00) | value;
        else
            serial_transmit(s, value);
        break;
    case 1:
        if (s->lcr & LCR_DLAB)
            s->divisor = (uint16_t)(value << 8 | (s->divisor & 0xff));
        else
            serial_write_ier(s, value);
        break;
    case 2:
        serial_write_fcr(s, value);
        break;
    case 3:
        serial_write_lcr(s, value);
        break;
    case 4:
        serial_write_mcr(s, value);
        break;
    case 7:
        s->scr = value;
        break;
    default: /* LSR and MSR are read-only */
        break;
    }
    serial_update(s);
}

static const IoOps serial_ops = {
    .read = serial_read, .write = serial_write, .min_size = 1, .max_size = 1};

static size_t serial_can_receive(void *opaque)
{
    Serial *s = opaque;
    return s->mcr & MCR_LOOP ? 0 : serial_depth(s) - MIN(s->fifo_count, serial_depth(s));
}

static void serial_receive(void *opaque, const uint8_t *data, size_t size)
{
    Serial *s = opaque;
    for (size_t i = 0; i < size; i++)
        serial_push(s, data[i]);
    serial_arm_timeout(s);
    serial_update(s);
}

static const ChardevUser serial_user = {.can_receive = serial_can_receive,
                                        .receive = serial_receive};

static void serial_reset(Device *dev)
{
    Serial *s = (Serial *)dev;
    s->ier = s->fcr = s->lcr = s->mcr = s->scr = 0;
    s->lsr = LSR_THRE | LSR_TEMT;
    s->msr = MSR_CTS | MSR_DSR | MSR_DCD;
    s->divisor = 1;
    s->thre_pending = 0;
    serial_clear_rx(s);
    s->irq = false;
    machine_set_gsi(dev->machine, s->resources.irq, false);
    if (s->chardev)
        chardev_accept_input(s->chardev);
}

void isa_serial_resources(const Device *dev, IsaSerialResources *resources)
{
    *resources = ((const Serial *)dev)->resources;
}

static void serial_note_index(Device *dev, void *opaque)
{
    unsigned *used = opaque;
    if (dev->type == &isa_serial_device_type && ((Serial *)dev)->region)
        *used |= 1u << ((Serial *)dev)->resources.index;
}

static bool serial_choose(Serial *s, GError **err)
{
    unsigned used = 0, index = 0;
    machine_foreach_device(s->dev.machine, serial_note_index, &used);
    if (device_option(&s->dev, "index")) {
        index = device_option_uint(&s->dev, "index");
    } else {
        while (used & 1u << index)
            index++;
    }
    if (index >= G_N_ELEMENTS(com_ports))
        return lodge_fail(err, LODGE_ERROR_LIMIT, "isa-serial: a machine has at most %zu of them",
                          G_N_ELEMENTS(com_ports));
    if (used & 1u << index)
        return lodge_fail(err, LODGE_ERROR_EXISTS, "isa-serial: index %u is taken", index);
    s->resources = com_ports[index];
    if (device_option(&s->dev, "iobase"))
        s->resources.port = device_option_uint(&s->dev, "iobase");
    if (device_option(&s->dev, "irq"))
        s->resources.irq = device_option_uint(&s->dev, "irq");
    return true;
}

static void serial_unrealize(Device *dev)
{
    Serial *s = (Serial *)dev;
    g_clear_pointer(&s->region, io_region_free);
    g_clear_pointer(&s->chardev, chardev_detach);
    g_clear_pointer(&s->timer, machine_timer_free);
}

static bool serial_attach(Serial *s, GError **err)
{
    const char *id = device_option(&s->dev, "chardev");
    if (!id)
        return true;
    Chardev *c = chardev_find(s->dev.machine, id);
    if (!c)
        return lodge_fail(err, LODGE_ERROR_NOT_FOUND, "isa-serial: there is no chardev '%s'", id);
    if (!chardev_attach(c, &serial_user, s, err))
        return false;
    s->chardev = c;
    return true;
}

static bool serial_realize(Device *dev, GError **err)
{
    Serial *s = (Serial *)dev;
    if (!serial_choose(s, err))
        return false;
    s->timer = machine_timer_new(dev->machine, serial_timed_out, s);
    serial_reset(dev);
    if (!serial_attach(s, err)) {
        serial_unrealize(dev);
        return false;
    }
    s->region = machine_map_ports(dev->machine, s->resources.port, 8, &serial_ops, s, "isa-serial");
    if (!s->region) {
        serial_unrealize(dev);
        return lodge_fail(err, LODGE_ERROR_BUSY, "isa-serial: port 0x%x is taken",
                          s->resources.port);
    }
    return true;
}

static bool serial_state_loaded(Device *dev, GError **err)
{
    Serial *s = (Serial *)dev;
    if (s->fifo_head >= FIFO_SIZE || s->fifo_count > serial_depth(s))
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "isa-serial: impossible FIFO state %u+%u",
                          s->fifo_head, s->fifo_count);
    bool timed_out = s->timeout_pending;
    serial_arm_timeout(s);
    s->timeout_pending = timed_out;
    s->irq = false;
    serial_update(s);
    return true;
}

static const DeviceOption serial_options[] = {
    {.name = "chardev", .type = OPTION_STRING, .optional = true, .help = "its other end"},
    {.name = "index",
     .type = OPTION_UINT,
     .optional = true,
     .min = 0,
     .max = 3,
     .help = "0-3 for COM1-COM4; the first free one if absent"},
    {.name = "iobase",
     .type = OPTION_UINT,
     .optional = true,
     .min = 0x100,
     .max = 0xfff8,
     .help = "first port, if not the usual one"},
    {.name = "irq",
     .type = OPTION_UINT,
     .optional = true,
     .min = 3,
     .max = 15,
     .help = "ISA interrupt, if not the usual one"},
    {0},
};

static const StateField serial_state[] = {
    STATE_FIELD(Serial, ier),          STATE_FIELD(Serial, fcr),
    STATE_FIELD(Serial, lcr),          STATE_FIELD(Serial, mcr),
    STATE_FIELD(Serial, lsr),          STATE_FIELD(Serial, msr),
    STATE_FIELD(Serial, scr),          STATE_FIELD(Serial, divisor),
    STATE_FIELD(Serial, thre_pending), STATE_FIELD(Serial, timeout_pending),
    STATE_BUFFER(Serial, fifo),        STATE_FIELD(Serial, fifo_head),
    STATE_FIELD(Serial, fifo_count),   STATE_FIELDS_END,
};

const DeviceType isa_serial_device_type = {
    .name = "isa-serial",
    .summary = "16550A serial port (COM1-COM4)",
    .bus = DEVICE_BUS_ISA,
    .instance_size = sizeof(Serial),
    .options = serial_options,
    .realize = serial_realize,
    .reset = serial_reset,
    .unrealize = serial_unrealize,
    .state = serial_state,
    .state_loaded = serial_state_loaded,
};
