/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the files of the engine `lockstep` share. */
#pragma once

#include <pthread.h>

#include "lockstep-report.h"
#include "lockstep.h"
#include "vcpu/soft/vm.h"

/* The follower may take so many instructions to arrive, and so many repetitions of string instructions. */
#define STEPS_MAX 1024u
#define REPETITIONS_MAX (1ull << 28)

typedef enum {
    LOG_PORT_READ, LOG_PORT_WRITE, LOG_MMIO_READ, LOG_MMIO_WRITE, LOG_ACKNOWLEDGE, LOG_CR8_READ, LOG_CR8_WRITE,
    LOG_APIC_READ, LOG_APIC_WRITE, LOG_TIME, LOG_DMA
} LogKind;

/* What the leader did at the bus, and what it got. */
typedef struct LogEntry {
    LogKind kind;
    unsigned size;
    uint64_t address, value; /* address: port, GPA or MSR */
    bool ok;                 /* APIC MSRs */
    uint8_t *data;           /* DMA */
} LogEntry;

typedef struct DmaRange {
    uint64_t gpa, size;
} DmaRange;

typedef struct LockVm {
    VcpuVm vm; /* first */
    VcpuVm *leader, *follower;
    VcpuBus leader_bus, follower_bus;
    SoftObserver leader_observer, follower_observer;
    SoftCpu *lead, *follow;
    bool logging;   /* the leader runs */
    bool fresh;     /* the follower must take over the whole state first */
    GArray *log;    /* LogEntry */
    unsigned head;  /* the follower has come so far */
    pthread_t thread; /* that runs the leader */
    pthread_mutex_t lock; /* of dma */
    GArray *dma;    /* DmaRange: written by other threads, to be copied between blocks */

    uint64_t lead_steps;       /* when the follower last caught up */
    uint64_t follow_steps;
    bool nmi_waiting, exception_pending; /* of the leader then */
    LockTrace trace[STEPS_MAX + 1]; /* the follower's states on the way */
    unsigned tries;
    uint64_t repetitions;
    bool arrived, acknowledged, met;
    SoftFpu met_fpu; /* of the follower, when it first came past the leader's RIP */
    const char *wrong;         /* what the follower did that the leader did not */
    char wrong_text[160];
    uint64_t break_at, memory_every;
} LockVm;

/* lockstep-log.c: the buses of both, with the LockVm as opaque, and what the observers tell them of time. */
extern const VcpuBus lockstep_leader_bus, lockstep_follower_bus;
uint64_t lockstep_leader_time(SoftCpu *cpu, void *opaque, uint64_t now);
uint64_t lockstep_follower_time(SoftCpu *cpu, void *opaque, uint64_t now);
void lockstep_log_add(LockVm *l, LogEntry e);
/* The follower's RAM at @gpa, if it is all in one slot. */
uint8_t *lockstep_follower_ram(LockVm *l, uint64_t gpa, uint64_t size);
