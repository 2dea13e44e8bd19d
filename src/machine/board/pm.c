/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * ACPI power management: the PM1a event and control blocks, the PM timer, GPE0 and the reset
 * control register. ACPI Specification 6.5, section 4.8 (register layout and behaviour);
 * Intel ICH9 datasheet 13.7.4 (reset control register at port 0xcf9).
 *
 * The machine is always in ACPI mode (no SMI command port), so SCI_EN reads as one.
 */
#include "machine/board/pm.h"

#include "base/error.h"
#include "machine/board/board.h"
#include "machine/board/devices.h"
#include "machine/board/layout.h"

#define PM_TIMER_HZ   3579545u
#define PM_TIMER_BITS 24
#define NS_PER_S      1000000000ull

/* Offsets from LAYOUT_PORT_PM. */
#define PM1_STS  0x00
#define PM1_EN   0x02
#define PM1_CNT  0x04
#define PM_TMR   0x08
#define GPE0_STS 0x20
#define GPE0_EN  0x22

#define STS_TMR    (1u << 0)
#define STS_BM     (1u << 4)
#define STS_GBL    (1u << 5)
#define STS_PWRBTN (1u << 8)
#define STS_RTC    (1u << 10)
#define STS_WAK    (1u << 15)
#define STS_MASK   (STS_TMR | STS_BM | STS_GBL | STS_PWRBTN | STS_RTC | STS_WAK)
#define EN_MASK    (STS_TMR | STS_GBL | STS_PWRBTN | STS_RTC)

#define CNT_SCI_EN        (1u << 0)
#define CNT_BM_RLD        (1u << 1)
#define CNT_SLP_TYP_SHIFT 10
#define CNT_SLP_TYP_MASK  (7u << CNT_SLP_TYP_SHIFT)
#define CNT_SLP_EN        (1u << 13)

#define RESET_HARD 0x02u
#define RESET_CPU  0x04u
#define RESET_FULL 0x08u

typedef struct Pm {
    Device dev;
    IoRegion *region;
    MachineTimer *timer; /* the next toggle of the PM timer's top bit, while TMR_EN is set */
    uint16_t sts, en, cnt;
    uint16_t gpe_sts, gpe_en;
    uint8_t reset_control;
    uint64_t toggles_seen; /* half periods of the PM timer at the last clearing of TMR_STS */
} Pm;

static uint64_t pm_ticks(Pm *pm)
{
    unsigned __int128 ns = (uint64_t)machine_clock_ns(pm->dev.machine);
    return (uint64_t)(ns * PM_TIMER_HZ / NS_PER_S);
}

static uint16_t pm_status(Pm *pm)
{
    if (pm_ticks(pm) >> (PM_TIMER_BITS - 1) != pm->toggles_seen)
        pm->sts |= STS_TMR;
    return pm->sts;
}

static void pm_update(Pm *pm)
{
    uint16_t sts = pm_status(pm);
    bool sci = (sts & pm->en & EN_MASK) || (pm->gpe_sts & pm->gpe_en);
    machine_set_gsi(pm->dev.machine, LAYOUT_GSI_SCI, sci);
    if ((pm->en & STS_TMR) && !(sts & STS_TMR)) {
        unsigned __int128 ticks = (unsigned __int128)(pm->toggles_seen + 1) << (PM_TIMER_BITS - 1);
        machine_timer_set(pm->timer, (int64_t)(ticks * NS_PER_S / PM_TIMER_HZ) + 1);
    } else {
        machine_timer_cancel(pm->timer);
    }
}

static void pm_timer_toggled(void *opaque)
{
    pm_update(opaque);
}

static uint8_t pm_read_byte(Pm *pm, unsigned offset)
{
    unsigned shift = (offset & 1) * 8;
    switch (offset & ~1u) {
    case PM1_STS:
        return pm_status(pm) >> shift;
    case PM1_EN:
        return pm->en >> shift;
    case PM1_CNT:
        return (pm->cnt | CNT_SCI_EN) >> shift;
    case GPE0_STS:
        return pm->gpe_sts >> shift;
    case GPE0_EN:
        return pm->gpe_en >> shift;
    default:
        return 0;
    }
}

static uint64_t pm_read(void *opaque, uint64_t offset, unsigned size)
{
    Pm *pm = opaque;
    if (offset >= PM_TMR && offset + size <= PM_TMR + 4) {
        uint32_t ticks = pm_ticks(pm) & ((1u << PM_TIMER_BITS) - 1);
        return ticks >> (offset - PM_TMR) * 8;
    }
    uint64_t value = 0;
    for (unsigned i = 0; i < size; i++)
        value |= (uint64_t)pm_read_byte(pm, offset + i) << i * 8;
    return value;
}

static void pm_write_status(Pm *pm, uint16_t clear)
{
    pm->sts = pm_status(pm) & ~clear;
    if (clear & STS_TMR)
        pm->toggles_seen = pm_ticks(pm) >> (PM_TIMER_BITS - 1);
}

static void pm_write_byte(Pm *pm, unsigned offset, uint8_t byte)
{
    unsigned shift = (offset & 1) * 8;
    uint16_t value = (uint16_t)(byte << shift), keep = (uint16_t) ~(0xff << shift);
    switch (offset & ~1u) {
    case PM1_STS:
        pm_write_status(pm, value & STS_MASK);
        break;
    case PM1_EN:
        pm->en = (pm->en & keep) | (value & EN_MASK);
        break;
    case PM1_CNT:
        pm->cnt = (pm->cnt & keep) | (value & (CNT_BM_RLD | CNT_SLP_TYP_MASK));
        if ((value & CNT_SLP_EN) &&
            (value & CNT_SLP_TYP_MASK) >> CNT_SLP_TYP_SHIFT == PM_SLEEP_TYPE_S5)
            machine_shutdown(pm->dev.machine, MACHINE_CAUSE_GUEST_SHUTDOWN);
        break;
    case GPE0_STS:
        pm->gpe_sts &= ~value;
        break;
    case GPE0_EN:
        pm->gpe_en = (pm->gpe_en & keep) | value;
        break;
    default:
        break;
    }
}

static void pm_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    Pm *pm = opaque;
    for (unsigned i = 0; i < size; i++)
        pm_write_byte(pm, offset + i, value >> i * 8);
    pm_update(pm);
}

static const IoOps pm_ops = {.read = pm_read, .write = pm_write, .min_size = 1, .max_size = 4};

void board_pm_power_button(Device *dev)
{
    Pm *pm = (Pm *)dev;
    pm->sts |= STS_PWRBTN;
    pm_update(pm);
}

uint8_t board_reset_control_read(Device *dev)
{
    return ((Pm *)dev)->reset_control;
}

/* A reset happens when the CPU bit goes from 0 to 1. */
void board_reset_control_write(Device *dev, uint8_t value)
{
    Pm *pm = (Pm *)dev;
    bool rises = (value & RESET_CPU) && !(pm->reset_control & RESET_CPU);
    pm->reset_control = value & (RESET_HARD | RESET_CPU | RESET_FULL);
    if (rises)
        machine_reset(pm->dev.machine, MACHINE_CAUSE_GUEST_RESET);
}

static void pm_reset(Device *dev)
{
    Pm *pm = (Pm *)dev;
    pm->sts = pm->en = pm->cnt = 0;
    pm->gpe_sts = pm->gpe_en = 0;
    pm->reset_control = 0;
    pm->toggles_seen = pm_ticks(pm) >> (PM_TIMER_BITS - 1);
    pm_update(pm);
}

static void pm_unrealize(Device *dev)
{
    Pm *pm = (Pm *)dev;
    g_clear_pointer(&pm->region, io_region_free);
    g_clear_pointer(&pm->timer, machine_timer_free);
}

static bool pm_realize(Device *dev, GError **err)
{
    Pm *pm = (Pm *)dev;
    pm->timer = machine_timer_new(dev->machine, pm_timer_toggled, pm);
    pm->region = machine_map_ports(dev->machine, LAYOUT_PORT_PM, LAYOUT_PORT_PM_COUNT, &pm_ops, pm,
                                   "acpi-pm");
    if (!pm->region) {
        pm_unrealize(dev);
        return lodge_fail(err, LODGE_ERROR_INTERNAL, "acpi-pm: ports 0x%x-0x%x are taken",
                          LAYOUT_PORT_PM, LAYOUT_PORT_PM + LAYOUT_PORT_PM_COUNT - 1);
    }
    return true;
}

static bool pm_state_loaded(Device *dev, GError **err)
{
    Pm *pm = (Pm *)dev;
    if ((pm->sts & ~STS_MASK) || (pm->en & ~EN_MASK) ||
        (pm->cnt & ~(CNT_BM_RLD | CNT_SLP_TYP_MASK)))
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "acpi-pm: reserved bits are set in its state");
    pm_update(pm);
    return true;
}

static const StateField pm_state[] = {
    STATE_FIELD(Pm, sts),          STATE_FIELD(Pm, en),     STATE_FIELD(Pm, cnt),
    STATE_FIELD(Pm, gpe_sts),      STATE_FIELD(Pm, gpe_en), STATE_FIELD(Pm, reset_control),
    STATE_FIELD(Pm, toggles_seen), STATE_FIELDS_END,
};

const DeviceType acpi_pm_device_type = {
    .name = "acpi-pm",
    .summary = "ACPI power management: power button, soft-off, PM timer, reset control",
    .bus = DEVICE_BUS_SYSTEM,
    .instance_size = sizeof(Pm),
    .realize = pm_realize,
    .reset = pm_reset,
    .unrealize = pm_unrealize,
    .state = pm_state,
    .state_loaded = pm_state_loaded,
};

Device *board_pm_init(Machine *m, GError **err)
{
    Device *pm = device_new(m, &acpi_pm_device_type, NULL, err);
    if (!pm || !device_new(m, &i8042_device_type, NULL, err))
        return NULL;
    return pm;
}
