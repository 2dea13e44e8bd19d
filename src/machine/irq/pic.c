/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Two cascaded 8259A interrupt controllers with edge/level control registers. Intel 8259A
 * datasheet (231468); ELCR: ICH9 datasheet 13.4. Not there: MCS-80/85 mode, buffered mode.
 */
#include "machine/irq/irq.h"

#include "machine/machine-internal.h"
#include "machine/timer/timers.h"

#define CASCADE 2

typedef struct PicChip {
    uint8_t lines; /* input levels */
    uint8_t irr, imr, isr, elcr;
    uint8_t base;     /* vector of IR0 */
    uint8_t lowest;   /* the input with the lowest priority; 7 after reset */
    uint8_t next_icw; /* 0: initialized; else the ICW awaited */
    bool wants_icw4, single;
    bool auto_eoi, rotate_auto_eoi, special_mask, fully_nested, poll, read_isr;
} PicChip;

typedef struct Pic {
    Device dev;
    PicChip chip[2];
    bool output; /* INTR */
    IoRegion *region[3];
} Pic;

/* The requested input with the highest priority among @bits, or -1. */
static int highest(const PicChip *c, uint8_t bits)
{
    for (unsigned i = 1; i <= 8; i++) {
        unsigned n = (c->lowest + i) & 7;
        if (bits & (1u << n))
            return (int)n;
    }
    return -1;
}

static unsigned rank(const PicChip *c, int input)
{
    return input < 0 ? 8 : (unsigned)(input - c->lowest - 1) & 7;
}

/* The input that the chip asks the CPU to serve now, or -1. */
static int pending(const Pic *pic, unsigned which)
{
    const PicChip *c = &pic->chip[which];
    int wanted = highest(c, c->irr & ~c->imr);
    if (wanted < 0 || c->next_icw)
        return -1;
    uint8_t serving = c->isr;
    if (c->special_mask)
        serving &= ~c->imr;
    /* Special fully nested: the slave may interrupt its own service. */
    if (c->fully_nested && which == 0)
        serving &= ~(1u << CASCADE);
    return rank(c, wanted) < rank(c, highest(c, serving)) ? wanted : -1;
}

static void line(PicChip *c, unsigned input, bool level)
{
    uint8_t bit = 1u << input;
    if (c->elcr & bit)
        c->irr = level ? c->irr | bit : c->irr & ~bit;
    else if (level && !(c->lines & bit))
        c->irr |= bit;
    c->lines = level ? c->lines | bit : c->lines & ~bit;
}

static void update(Pic *pic)
{
    /* The slave's INT follows its state, so the master's input works like a level. */
    PicChip *master = &pic->chip[0];
    bool slave = pending(pic, 1) >= 0;
    master->irr = slave ? master->irr | 1u << CASCADE : master->irr & ~(1u << CASCADE);
    bool output = pending(pic, 0) >= 0;
    if (output == pic->output)
        return;
    pic->output = output;
    if (pic->dev.machine->irq.lapic)
        lapic_set_extint(pic->dev.machine->irq.lapic, output);
}

void pic_set_irq(Device *dev, unsigned irq, bool level)
{
    Pic *pic = (Pic *)dev;
    if (irq > 15 || irq == CASCADE)
        return;
    line(&pic->chip[irq / 8], irq & 7, level);
    update(pic);
}

bool pic_irq_masked(const Device *dev, unsigned irq)
{
    const Pic *pic = (const Pic *)dev;
    return pic->chip[irq / 8 & 1].imr & (1u << (irq & 7));
}

static void acknowledge(PicChip *c, int input)
{
    uint8_t bit = 1u << input;
    if (!(c->elcr & bit))
        c->irr &= ~bit;
    if (!c->auto_eoi)
        c->isr |= bit;
    else if (c->rotate_auto_eoi)
        c->lowest = (uint8_t)input;
}

int pic_acknowledge(Device *dev)
{
    Pic *pic = (Pic *)dev;
    int input = pending(pic, 0), vector;
    /* A request that went away gives IR7's vector and no service bit (datasheet, "default IR7"). */
    if (input < 0) {
        vector = pic->chip[0].base + 7;
    } else if (input == CASCADE) {
        int inner = pending(pic, 1);
        acknowledge(&pic->chip[0], CASCADE);
        if (inner >= 0)
            acknowledge(&pic->chip[1], inner);
        vector = pic->chip[1].base + (inner < 0 ? 7 : inner);
    } else {
        acknowledge(&pic->chip[0], input);
        vector = pic->chip[0].base + input;
    }
    update(pic);
    return vector;
}

/* ---- registers
 * --------------------------------------------------------------------------------------- */

static void write_icw1(PicChip *c, uint8_t value)
{
    c->irr = c->imr = c->isr = 0;
    c->irr = c->elcr & c->lines;
    c->lowest = 7;
    c->auto_eoi = c->rotate_auto_eoi = c->special_mask = c->fully_nested = false;
    c->poll = c->read_isr = false;
    c->wants_icw4 = value & 1;
    c->single = value & 2;
    c->next_icw = 2;
}

static void write_ocw2(PicChip *c, uint8_t value)
{
    int input = value & 7;
    switch (value >> 5) {
    case 0: /* rotate in automatic EOI mode: clear */
        c->rotate_auto_eoi = false;
        break;
    case 4:
        c->rotate_auto_eoi = true;
        break;
    case 1: /* non-specific EOI, 5: and rotate */
    case 5: {
        uint8_t serving = c->special_mask ? c->isr & ~c->imr : c->isr;
        input = highest(c, serving);
        if (input < 0)
            break;
        c->isr &= ~(1u << input);
        if (value >> 5 == 5)
            c->lowest = (uint8_t)input;
        break;
    }
    case 3: /* specific EOI, 7: and rotate */
    case 7:
        c->isr &= ~(1u << input);
        if (value >> 5 == 7)
            c->lowest = (uint8_t)input;
        break;
    case 6:
        c->lowest = (uint8_t)input;
        break;
    }
}

static void write_ocw3(PicChip *c, uint8_t value)
{
    if (value & 4)
        c->poll = true;
    if (value & 2)
        c->read_isr = value & 1;
    if (value & 0x40)
        c->special_mask = value & 0x20;
}

static void write_data(PicChip *c, uint8_t value)
{
    switch (c->next_icw) {
    case 2:
        c->base = value & 0xf8;
        c->next_icw = c->single ? (c->wants_icw4 ? 4 : 0) : 3;
        break;
    case 3: /* the cascade is wired: nothing to choose */
        c->next_icw = c->wants_icw4 ? 4 : 0;
        break;
    case 4:
        c->fully_nested = value & 0x10;
        c->auto_eoi = value & 2;
        c->next_icw = 0;
        break;
    default:
        c->imr = value;
    }
}

static void chip_write(Pic *pic, unsigned which, uint64_t offset, uint8_t value)
{
    PicChip *c = &pic->chip[which];
    if (offset)
        write_data(c, value);
    else if (value & 0x10)
        write_icw1(c, value);
    else if (value & 8)
        write_ocw3(c, value);
    else
        write_ocw2(c, value);
    update(pic);
    if (which == 0)
        pit_interrupt_unmasked(pic->dev.machine);
}

/* A poll is an acknowledge: bit 7 says whether there was a request (datasheet, "poll command"). */
static uint8_t chip_poll(Pic *pic, unsigned which)
{
    PicChip *c = &pic->chip[which];
    int input = pending(pic, which);
    c->poll = false;
    if (input < 0)
        return 0;
    acknowledge(c, input);
    update(pic);
    return 0x80 | (uint8_t)input;
}

static uint8_t chip_read(Pic *pic, unsigned which, uint64_t offset)
{
    PicChip *c = &pic->chip[which];
    if (c->poll)
        return chip_poll(pic, which);
    if (offset)
        return c->imr;
    return c->read_isr ? c->isr : c->irr;
}

static uint64_t master_read(void *opaque, uint64_t offset, unsigned size)
{
    return chip_read(opaque, 0, offset);
}

static void master_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    chip_write(opaque, 0, offset, (uint8_t)value);
}

static uint64_t slave_read(void *opaque, uint64_t offset, unsigned size)
{
    return chip_read(opaque, 1, offset);
}

static void slave_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    chip_write(opaque, 1, offset, (uint8_t)value);
}

static uint64_t elcr_read(void *opaque, uint64_t offset, unsigned size)
{
    Pic *pic = opaque;
    return pic->chip[offset & 1].elcr;
}

static void elcr_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    Pic *pic = opaque;
    /* 0, 1, 2, 8 and 13 are always edge triggered (ICH9 13.4.10). */
    static const uint8_t allowed[2] = {0xf8, 0xde};
    PicChip *c = &pic->chip[offset & 1];
    c->elcr = value & allowed[offset & 1];
    c->irr = (c->irr & ~c->elcr) | (c->lines & c->elcr);
    update(pic);
}

static const IoOps master_ops = {master_read, master_write, 1, 1, false};
static const IoOps slave_ops = {slave_read, slave_write, 1, 1, false};
static const IoOps elcr_ops = {elcr_read, elcr_write, 1, 1, false};

/* ---- device
 * ------------------------------------------------------------------------------------------- */

static void pic_reset(Device *dev)
{
    Pic *pic = (Pic *)dev;
    for (unsigned i = 0; i < 2; i++) {
        uint8_t lines = pic->chip[i].lines;
        /* Masked until the guest initializes it, as firmware leaves it: vectors 0x08 and 0x70. */
        pic->chip[i] = (PicChip){.lines = lines, .imr = 0xff, .lowest = 7, .base = i ? 0x70 : 0x08};
    }
    update(pic);
}

static void pic_unrealize(Device *dev)
{
    Pic *pic = (Pic *)dev;
    for (unsigned i = 0; i < 3; i++)
        io_region_free(pic->region[i]);
}

static bool pic_realize(Device *dev, GError **err)
{
    Pic *pic = (Pic *)dev;
    Machine *m = dev->machine;
    pic->region[0] = machine_map_ports(m, 0x20, 2, &master_ops, pic, "pic");
    pic->region[1] = machine_map_ports(m, 0xa0, 2, &slave_ops, pic, "pic2");
    pic->region[2] = machine_map_ports(m, 0x4d0, 2, &elcr_ops, pic, "elcr");
    if (!pic->region[0] || !pic->region[1] || !pic->region[2]) {
        pic_unrealize(dev);
        return lodge_fail(err, LODGE_ERROR_INTERNAL, "pic: its ports are taken");
    }
    pic_reset(dev);
    return true;
}

static bool pic_state_loaded(Device *dev, GError **err)
{
    Pic *pic = (Pic *)dev;
    for (unsigned i = 0; i < 2; i++) {
        const PicChip *c = &pic->chip[i];
        if (c->lowest > 7 || c->next_icw > 4 || c->next_icw == 1)
            return lodge_fail(err, LODGE_ERROR_CORRUPT, "pic: impossible saved state");
    }
    return true;
}

static const StateField chip_state[] = {
    STATE_FIELD(PicChip, lines),
    STATE_FIELD(PicChip, irr),
    STATE_FIELD(PicChip, imr),
    STATE_FIELD(PicChip, isr),
    STATE_FIELD(PicChip, elcr),
    STATE_FIELD(PicChip, base),
    STATE_FIELD(PicChip, lowest),
    STATE_FIELD(PicChip, next_icw),
    STATE_FIELD(PicChip, wants_icw4),
    STATE_FIELD(PicChip, single),
    STATE_FIELD(PicChip, auto_eoi),
    STATE_FIELD(PicChip, rotate_auto_eoi),
    STATE_FIELD(PicChip, special_mask),
    STATE_FIELD(PicChip, fully_nested),
    STATE_FIELD(PicChip, poll),
    STATE_FIELD(PicChip, read_isr),
    STATE_FIELDS_END,
};

static const StateField pic_state[] = {
    STATE_STRUCTS(Pic, chip, chip_state),
    STATE_FIELD(Pic, output),
    STATE_FIELDS_END,
};

const DeviceType pic_device_type = {
    .name = "pic",
    .summary = "8259A interrupt controllers",
    .bus = DEVICE_BUS_SYSTEM,
    .instance_size = sizeof(Pic),
    .realize = pic_realize,
    .reset = pic_reset,
    .unrealize = pic_unrealize,
    .state = pic_state,
    .state_loaded = pic_state_loaded,
};
