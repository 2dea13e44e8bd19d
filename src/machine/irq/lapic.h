/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The local APICs' insides, shared by lapic.c (delivery, device), lapic-registers.c and
 * lapic-timer.c. SDM vol. 3 chapter 10.
 */
#pragma once

#include "machine/irq/irq.h"
#include "machine/machine-internal.h"

/* Registers by their number: xAPIC offset / 16, x2APIC MSR - 0x800. */
enum {
    LAPIC_ID = 0x02,
    LAPIC_VERSION = 0x03,
    LAPIC_TPR = 0x08,
    LAPIC_APR = 0x09,
    LAPIC_PPR = 0x0a,
    LAPIC_EOI = 0x0b,
    LAPIC_LDR = 0x0d,
    LAPIC_DFR = 0x0e,
    LAPIC_SVR = 0x0f,
    LAPIC_ISR = 0x10,
    LAPIC_TMR = 0x18,
    LAPIC_IRR = 0x20,
    LAPIC_ESR = 0x28,
    LAPIC_ICR = 0x30,
    LAPIC_ICR_HIGH = 0x31,
    LAPIC_LVT_FIRST = 0x32,
    LAPIC_LVT_LAST = 0x37,
    LAPIC_INITIAL = 0x38,
    LAPIC_CURRENT = 0x39,
    LAPIC_DIVIDE = 0x3e,
    LAPIC_SELF_IPI = 0x3f,
};

enum { LVT_TIMER, LVT_THERMAL, LVT_PERFORMANCE, LVT_LINT0, LVT_LINT1, LVT_ERROR, LVT_COUNT };

#define LVT_MASKED         (1u << 16)
#define LVT_DELIVERY(v)    ((IrqDelivery)((v) >> 8 & 7))
#define LVT_TIMER_MODE(v)  ((v) >> 17 & 3)
#define TIMER_PERIODIC     1
#define TIMER_TSC_DEADLINE 2

#define BASE_BSP    (UINT64_C(1) << 8)
#define BASE_X2APIC (UINT64_C(1) << 10)
#define BASE_ENABLE (UINT64_C(1) << 11)
#define BASE_ADDRESS UINT64_C(0xffffff000) /* 36 bits of address: below every CPUID's MAXPHYADDR */
#define SVR_ENABLE  0x100u

#define ESR_SEND_ILLEGAL_VECTOR    0x20u
#define ESR_RECEIVE_ILLEGAL_VECTOR 0x40u
#define ESR_ILLEGAL_REGISTER       0x80u

/* The timer counts this often a second before division. */
#define LAPIC_TIMER_HZ INT64_C(1000000000)

typedef struct Lapic {
    pthread_mutex_t lock; /* guards everything below */
    Machine *machine;
    unsigned index; /* of the vCPU; also the APIC ID */
    MachineTimer *timer;

    uint64_t base; /* IA32_APIC_BASE */
    uint32_t tpr, ldr, dfr, svr;
    uint32_t esr, esr_pending;
    uint32_t icr_low, icr_high;
    uint32_t isr[8], tmr[8], irr[8];
    uint32_t lvt[LVT_COUNT];
    uint32_t initial_count, divide;
    int64_t count_start_ns; /* machine clock when the count was loaded */
    bool count_over;        /* a one-shot count ended before the mode became periodic: it stays 0 */
    uint64_t tsc_deadline;
} Lapic;

/* A place where the registers of some vCPUs are; opaque of its region. */
typedef struct LapicWindow {
    struct LapicDevice *device;
    uint64_t base; /* changes only while no vCPU has its registers there */
    IoRegion *region;
} LapicWindow;

typedef struct LapicDevice {
    Device dev;
    LapicWindow window[VCPU_COUNT_MAX + 1]; /* 0: the default address */
    Lapic cpu[VCPU_COUNT_MAX];
    unsigned count;
    int extint;      /* level of the 8259's INTR; atomic */
    unsigned lowest; /* where the last lowest-priority message went; atomic */
} LapicDevice;

static inline LapicDevice *lapic_device(Lapic *l)
{
    return (LapicDevice *)l->machine->irq.lapic;
}

static inline bool lapic_x2apic(const Lapic *l)
{
    return (l->base & (BASE_ENABLE | BASE_X2APIC)) == (BASE_ENABLE | BASE_X2APIC);
}

static inline bool lapic_enabled(const Lapic *l)
{
    return (l->base & BASE_ENABLE) && (l->svr & SVR_ENABLE);
}

/* lapic.c; the lock of @l held */
void lapic_accept(Lapic *l, uint8_t vector, bool level);
bool lapic_deliverable(const Lapic *l);
uint32_t lapic_ppr(const Lapic *l);
void lapic_error(Lapic *l, uint32_t bit);
void lapic_init_state(Lapic *l); /* after INIT: all but the ID and the base */
/* no lock held */
void lapic_signal(Lapic *l);
void lapic_end_of_interrupt(Lapic *l);
void lapic_send_icr(Lapic *l, uint64_t icr);
void lapic_lvt_changed(Lapic *l, unsigned lvt);

/* lapic-registers.c */
extern const IoOps lapic_ops;

/* lapic-window.c; the machine's lock held, that of no lapic. False: something else is there. */
bool lapic_window_open(LapicDevice *d, uint64_t base);
void lapic_windows_close_unused(LapicDevice *d);

/* lapic-timer.c; the lock of @l held */
void lapic_timer_fired(void *opaque); /* takes the lock itself */
void lapic_timer_arm(Lapic *l);
uint32_t lapic_timer_current(Lapic *l);
void lapic_timer_mode_changed(Lapic *l, unsigned old); /* between one-shot and periodic */
/* A deadline that is over already is an interrupt now, not soon. True: it was one. */
bool lapic_timer_deadline_passed(Lapic *l);
