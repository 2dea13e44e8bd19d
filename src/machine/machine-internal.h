/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the machine's own files share; devices use machine.h only.
 *
 * Order of locks, outermost first: control, machine lock, irq chips' own locks (local APIC), timer
 * lock. A vCPU thread holds no lock while inside engine->run, except within its callbacks.
 */
#pragma once

#include <pthread.h>

#include "base/bytes.h"
#include "base/error.h"
#include "machine/device.h"
#include "machine/machine.h"
#include "machine/pci/pci.h"

#define MACHINE_MEMORY_MIN    MIB(1)
#define MACHINE_MEMORY_MAX    (GIB(1024))
#define MACHINE_REGIONS_MAX   256 /* of one address space */
#define MACHINE_ROMS_MAX      8
#define MACHINE_ROM_SIZE_MAX  MIB(64)
#define MACHINE_IOEVENTFD_MAX 130 /* of one region */

/* ---- address spaces (machine-io.c) ---- */

typedef struct IoEventFd {
    uint64_t offset;
    unsigned size;
    int fd;
} IoEventFd;

typedef struct IoSpace IoSpace;

struct IoRegion {
    Machine *machine;
    IoSpace *space;
    uint64_t base, size;
    const IoOps *ops;
    void *opaque;
    char *name;
    bool enabled;
    bool visible;       /* enabled and not hidden under an earlier region */
    bool fixed;         /* never moved: wins against moved ones */
    GArray *ioeventfds; /* of IoEventFd; NULL until there is one; Machine.ioeventfd_lock */
};

/* The visible regions, sorted. Readers take no lock: they retry when @sequence moved or is odd. */
typedef struct IoSlot {
    uint64_t base, last;
    IoRegion *region;
} IoSlot;

struct IoSpace {
    unsigned sequence;
    unsigned count;
    IoSlot slot[MACHINE_REGIONS_MAX];
    GPtrArray *regions; /* every region, in order of creation; machine lock */
    uint64_t last;      /* highest address */
};

/* An unmapped region for io_region_move (a BAR); NULL when there are too many. */
IoRegion *io_region_new(Machine *m, bool ports, uint64_t size, const IoOps *ops, void *opaque,
                        const char *name);
void machine_io_init(Machine *m);
void machine_io_free(Machine *m);
uint64_t io_space_read(Machine *m, IoSpace *space, uint64_t address, unsigned size);
void io_space_write(Machine *m, IoSpace *space, uint64_t address, unsigned size, uint64_t value);
/* Access on behalf of @vcpu from outside a vCPU thread (tests, fuzzing); -1: none. */
void machine_set_current_vcpu(int vcpu);

/* ---- memory (machine-memory.c) ---- */

typedef struct MachineRom {
    uint64_t gpa, size;
    uint8_t *data; /* page aligned */
} MachineRom;

bool machine_memory_init(Machine *m, GError **err);
void machine_memory_free(Machine *m);
/* Gives RAM and ROMs to the engine. */
bool machine_memory_attach(Machine *m, GError **err);

/* ---- clock (machine-clock.c) ---- */

void machine_clock_init(Machine *m);
void machine_clock_free(Machine *m);
void machine_clock_run(Machine *m, bool running); /* machine lock held */
/* While the clock stands still: moves it on, running on this thread what falls due. */
void machine_clock_advance(Machine *m, int64_t ns);

/* ---- vCPUs (machine-vcpu.c) ---- */

typedef struct MachineVcpu {
    Machine *machine;
    unsigned index;
    Vcpu *vcpu;
    pthread_t thread;
    pid_t tid;
    bool created;   /* the thread exists */
    bool parked;    /* outside run and will stay so while it should; Machine.vcpu_lock */
    bool stuck;     /* triple fault or error: runs again after a reset */
    unsigned holds; /* machine_with_vcpu */
    bool held;      /* machine_hold_vcpu, or stopped for the debugger */
} MachineVcpu;

bool machine_vcpus_init(Machine *m, GError **err);
void machine_vcpus_free(Machine *m);                /* ends the threads */
bool machine_vcpus_start(Machine *m, GError **err); /* creates the threads, parked */
void machine_vcpus_pause(
    Machine *m); /* returns when all are outside run (the caller's own excepted) */
void machine_vcpus_resume(Machine *m);
bool machine_vcpus_reset(Machine *m, GError **err); /* while paused */

/* ---- interrupt chips of the board: NULL when the engine has them ---- */

typedef struct MachineIrqChips {
    Device *lapic, *ioapic, *pic, *pit, *hpet, *rtc;
} MachineIrqChips;

/* ---- the machine ---- */

typedef struct MachineHandler {
    MachineEventHandler f;
    void *opaque;
} MachineHandler;

typedef struct MachineHook {
    MachineResetHook f;
    void *opaque;
} MachineHook;

typedef struct MachineDrive {
    const MachineItem *item;
    struct BlockNode *node;
    bool claimed;
} MachineDrive;

struct BoardBoot;
struct PciRoot; /* pci/pci-internal.h */
struct Vtd;     /* iommu/vtd.h */
struct Chardev;
struct Netdev;

struct Machine {
    MachineConfig *config;
    const VcpuEngine *engine;
    char *engine_reason;
    GMainContext *context;
    pthread_t main_thread;

    pthread_mutex_t control; /* changes of status: outside of lock */
    pthread_mutex_t lock;    /* with owner and depth: recursive, and can be let go of altogether */
    pthread_t lock_owner;
    unsigned lock_depth; /* of the owner; 0: free */

    MachineStatus status; /* atomic access */
    bool quit;
    int exit_status;
    bool start_requested; /* machine_start was called */
    int reset_pending;    /* atomic: a reset is queued */
    GArray *handlers;     /* of MachineHandler */
    GArray *reset_hooks;  /* of MachineHook */
    GPtrArray *devices;   /* Device, in order of creation */

    /* memory */
    int ram_fd;
    uint8_t *ram;
    uint64_t low_ram;
    MachineRom rom[MACHINE_ROMS_MAX];
    unsigned n_roms;

    IoSpace ports, mmio;
    pthread_mutex_t ioeventfd_lock;

    /* clock */
    pthread_mutex_t timer_lock;
    GPtrArray *timers; /* MachineTimer: binary heap by deadline of those armed */
    GSource *timer_source;
    int timer_fd;
    int64_t timer_armed_ns; /* what timer_fd is set to; 0: nothing */
    bool clock_running;
    int64_t clock_ns; /* running: CLOCK_MONOTONIC - guest clock; else the guest clock */
    unsigned clock_sequence;

    /* vCPUs */
    VcpuVm *vm;
    VcpuBus bus;
    MachineVcpu *vcpus;
    unsigned n_vcpus;
    pthread_mutex_t vcpu_lock;
    pthread_cond_t vcpu_resume, vcpu_parked;
    unsigned vcpu_paused; /* > 0: all must park */
    bool vcpu_quit;
    MachineDebugHandler debug_handler; /* machine lock */
    void *debug_opaque;

    MachineIrqChips irq;
    struct PciRoot *pci;
    struct Vtd *iommu; /* or NULL */
    Device *pm;
    struct BoardBoot *boot;

    GArray *drives; /* of MachineDrive */
    GPtrArray *chardevs, *netdevs;
    uint64_t (*tsc_khz)(void);      /* the guest's TSC frequency; NULL: 1 GHz */
    void (*close_host)(Machine *m); /* set by machine_new: closes boot files, drives and backends */
};

MachineConfig *machine_config_copy(const MachineConfig *from);
/* A machine with memory, clock and vCPUs but no board, no drives and no devices: for tests and
 * machine_new. */
Machine *machine_new_bare(const MachineConfig *config, const VcpuEngine *engine, GError **err);
/* Lets go of the machine lock however deep; returns the depth for machine_lock_restore. */
unsigned machine_lock_release(Machine *m);
void machine_lock_restore(Machine *m, unsigned depth);
bool machine_is_main_thread(const Machine *m);
void machine_reset_now(Machine *m, MachineCause cause);
/* Devices, PCI resources, vCPUs and hooks to power-on state; the vCPUs are paused. */
bool machine_reset_state(Machine *m, GError **err);
void machine_fail(Machine *m, const char *message); /* any thread: pauses, emits ERROR */
void device_free(Device *dev);
/* Host sides: drives, character devices, network backends (machine-host.c). */
bool machine_host_open(Machine *m, GError **err);
void machine_host_close(Machine *m);
