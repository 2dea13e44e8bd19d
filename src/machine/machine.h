/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The virtual machine: guest memory, address spaces, interrupts, clock and vCPU threads,
 * made from a plain configuration. Knows no XML, RPC or JSON.
 *
 * Threads: one main thread runs the machine's GMainContext (timers, host descriptors);
 * each vCPU has a thread. Device code runs under the machine lock, which port and MMIO
 * dispatch and timer/descriptor callbacks take. Guest RAM is reached without the lock.
 */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "vcpu/engine.h"

typedef struct Machine Machine;

/* ---- configuration
 * ------------------------------------------------------------------------------- */

/* key=value options of one device or backend, in order; keys unique. */
typedef struct MachineOption {
    char *key, *value;
} MachineOption;

typedef struct MachineItem {
    char *type; /* a row of the device, chardev, netdev or drive table: "virtio-blk", "file", "user"
                 */
    char *id;   /* unique; may be NULL for devices */
    GArray *options; /* of MachineOption */
} MachineItem;

typedef struct MachineConfig {
    char *name;
    uint8_t uuid[16];     /* RFC 4122 byte order */
    char *board;          /* "q35" */
    char *engine;         /* "auto", "kvm", "soft" */
    uint64_t memory_size; /* bytes, multiple of 1 MiB */
    unsigned n_vcpus, sockets, cores, threads;
    char *kernel, *initrd, *cmdline; /* paths; kernel may be NULL */
    VcpuTuning cpu_tuning;
    char *cpu; /* X86CpuSpec as x86_cpu_parse takes it; NULL: all that the engine has */
    char *perf_map; /* where the engine writes a perf map (VcpuVmConfig); NULL: nowhere */
    int64_t rtc_offset_s;            /* guest RTC = host UTC + this */
    bool hpet;
    bool start_paused;
    bool no_reboot;      /* a reset stops the machine (on_reboot=destroy) */
    GPtrArray *drives;   /* MachineItem: type = format or "auto"; options file=, readonly=, cache=,
                            discard=, serial= … */
    GPtrArray *chardevs; /* MachineItem: type stdio, file, unix, pty, null, fd */
    GPtrArray *netdevs;  /* MachineItem: type user, tap-fd */
    GPtrArray *devices; /* MachineItem: type of the device table; options drive=, chardev=, netdev=,
                           addr= … */
} MachineConfig;

MachineConfig *machine_config_new(void);
void machine_config_free(MachineConfig *config);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(MachineConfig, machine_config_free)
MachineItem *machine_item_new(const char *type, const char *id);
void machine_item_free(MachineItem *item); /* those in a configuration belong to it */
void machine_item_set(MachineItem *item, const char *key, const char *value);
const char *machine_item_get(const MachineItem *item, const char *key); /* NULL if absent */

/* ---- life
 * ------------------------------------------------------------------------------------------ */

typedef enum MachineStatus {
    MACHINE_PRELAUNCH,
    MACHINE_RUNNING,
    MACHINE_PAUSED,
    MACHINE_SHUTDOWN,
    MACHINE_ERROR
} MachineStatus;

typedef enum MachineEventType {
    MACHINE_EVENT_SHUTDOWN,
    MACHINE_EVENT_RESET,
    MACHINE_EVENT_STOP,
    MACHINE_EVENT_RESUME,
    MACHINE_EVENT_POWERDOWN,
    MACHINE_EVENT_BALLOON_CHANGE,
    MACHINE_EVENT_ERROR,
} MachineEventType;

typedef enum MachineCause { /* why a shutdown or reset happened: QMP's ShutdownCause */
                            MACHINE_CAUSE_GUEST_SHUTDOWN,
                            MACHINE_CAUSE_GUEST_RESET,
                            MACHINE_CAUSE_GUEST_PANIC,
                            MACHINE_CAUSE_HOST_QMP_QUIT,
                            MACHINE_CAUSE_HOST_QMP_SYSTEM_RESET,
                            MACHINE_CAUSE_HOST_SIGNAL,
                            MACHINE_CAUSE_HOST_ERROR,
} MachineCause;

typedef struct MachineEvent {
    MachineEventType type;
    MachineCause cause;
    uint64_t value;      /* BALLOON_CHANGE: actual memory in bytes */
    const char *message; /* ERROR */
} MachineEvent;
/* Called on the main thread, with the machine lock held. */
typedef void (*MachineEventHandler)(void *opaque, const MachineEvent *event);

/* Builds everything, starts no vCPU. Opens every file that the configuration names. */
Machine *machine_new(const MachineConfig *config, GError **err);
void machine_free(Machine *m); /* stops it first; NULL is accepted */
void machine_add_event_handler(Machine *m, MachineEventHandler handler, void *opaque);
void machine_remove_event_handler(Machine *m, MachineEventHandler handler, void *opaque);
bool machine_start(Machine *m, GError **err); /* vCPU threads run (unless start_paused) */
/* The calls below may come from any thread; they complete before returning unless noted (a stop
 * that a vCPU's thread asks for is carried out soon). */
void machine_stop(Machine *m); /* pauses the vCPUs and drains the disks */
void machine_cont(Machine *m);
void machine_powerdown(Machine *m);             /* presses the ACPI power button */
void machine_reset(Machine *m, MachineCause c); /* asynchronous: carried out on the main thread */
void machine_shutdown(Machine *m, MachineCause c); /* asynchronous; ends machine_run */
/* Runs the main loop on the calling thread until shutdown. Returns the process's exit status
 * (isa-debug-exit's code, else 0). */
int machine_run(Machine *m);
/* Ends machine_run with this exit status (isa-debug-exit). Asynchronous. */
void machine_exit(Machine *m, int status);
/* Run in order of addition, on the main thread under the lock, by every reset (the one of
 * machine_start included): after the devices were reset and each vCPU has vcpu_state_reset's state.
 * Failing stops the machine (or fails machine_start). */
typedef bool (*MachineResetHook)(void *opaque, GError **err);
void machine_add_reset_hook(Machine *m, MachineResetHook hook, void *opaque);
/* Calls the event handlers: at once on the main thread (lock held), else soon. Any thread. */
void machine_emit(Machine *m, const MachineEvent *event);
MachineStatus machine_status(const Machine *m);
const MachineConfig *machine_config(const Machine *m);
const char *machine_engine_name(const Machine *m);
const char *machine_engine_reason(const Machine *m);
unsigned machine_vcpu_count(const Machine *m);
Vcpu *machine_vcpu(Machine *m, unsigned index);
pid_t machine_vcpu_thread_id(const Machine *m, unsigned index);
/* Runs @f with the vCPU outside run (for get_state from the monitor). */
void machine_with_vcpu(Machine *m, unsigned index, void (*f)(Vcpu *vcpu, void *opaque),
                       void *opaque);

/* ---- debugging
 * ------------------------------------------------------------------------------- */

/* A vCPU left run with VCPU_EXIT_DEBUG and is held. Main thread, machine lock held. */
typedef void (*MachineDebugHandler)(void *opaque, unsigned vcpu);
void machine_set_debug_handler(Machine *m, MachineDebugHandler handler, void *opaque);
/* Keeps a vCPU outside run, whatever the status, until let go of. Does not wait for it. */
void machine_hold_vcpu(Machine *m, unsigned index, bool hold);

/* ---- lock, loop, clock
 * -------------------------------------------------------------------------------- */

void machine_lock(Machine *m); /* recursive */
void machine_unlock(Machine *m);
GMainContext *machine_context(Machine *m);
/* Calls @f under the machine lock when @fd is readable/writable (GIOCondition). Free with
 * g_source_destroy+unref. */
typedef void (*MachineFdHandler)(void *opaque, int fd, GIOCondition condition);
GSource *machine_watch_fd(Machine *m, int fd, GIOCondition condition, MachineFdHandler f,
                          void *opaque);
/* Calls @f once on the main thread under the lock, soon. */
void machine_defer(Machine *m, void (*f)(void *opaque), void *opaque);

/* The guest's clock in ns: stands still while the machine is paused. */
int64_t machine_clock_ns(Machine *m);
typedef struct MachineTimer MachineTimer;
MachineTimer *machine_timer_new(Machine *m, void (*f)(void *opaque), void *opaque);
void machine_timer_free(MachineTimer *t);
void machine_timer_set(MachineTimer *t, int64_t deadline_ns); /* by machine_clock_ns; replaces */
void machine_timer_cancel(MachineTimer *t);
bool machine_timer_pending(const MachineTimer *t);
/* For devices with their own lock: the callback runs without the machine lock. Call before the
 * first set. */
void machine_timer_set_no_lock(MachineTimer *t);

/* ---- memory and address spaces ---- */

/* Host pointer to guest RAM [gpa, gpa+length), or NULL if any of it is not RAM. Any thread. */
void *machine_ram(Machine *m, uint64_t gpa, uint64_t length);
/* Must follow every device write to guest RAM (translated code may be stale). Any thread. */
void machine_ram_dirty(Machine *m, uint64_t gpa, uint64_t length);
bool machine_dma_read(Machine *m, uint64_t gpa, void *to, uint64_t length);
bool machine_dma_write(Machine *m, uint64_t gpa, const void *from, uint64_t length);
/* The layout of RAM: low memory at 0 up to machine_low_ram, the rest from 4 GiB. */
uint64_t machine_low_ram(Machine *m);
/* A read-only piece (option ROM, ACPI tables go to RAM instead). @size page aligned. */
bool machine_add_rom(Machine *m, uint64_t gpa, const void *data, uint64_t size, GError **err);

/* Registers of a device. Accesses outside min..max are split or widened by the dispatcher
 * (default 1..4); what reaches the device is naturally aligned. */
typedef struct IoOps {
    uint64_t (*read)(void *opaque, uint64_t offset, unsigned size);
    void (*write)(void *opaque, uint64_t offset, unsigned size, uint64_t value);
    unsigned min_size, max_size; /* 0: 1 and 4 */
    bool no_lock;                /* called without the machine lock (the device has its own) */
} IoOps;
typedef struct IoRegion IoRegion;
/* Overlaps are refused (NULL) with an internal error. Regions may be moved and switched off (PCI
 * BARs). */
IoRegion *machine_map_mmio(Machine *m, uint64_t gpa, uint64_t size, const IoOps *ops, void *opaque,
                           const char *name);
IoRegion *machine_map_ports(Machine *m, uint16_t port, unsigned count, const IoOps *ops,
                            void *opaque, const char *name);
void io_region_move(IoRegion *region, bool enabled, uint64_t base);
void io_region_free(IoRegion *region);
/* The vCPU whose access is being dispatched on this thread, or -1. */
int machine_current_vcpu(void);

/* A guest write of @size at @offset of the MMIO region signals @fd (an eventfd) instead of calling
 * write, wherever the region is mapped (virtio doorbells). Machine lock held. False: too many. */
bool io_region_add_ioeventfd(IoRegion *region, uint64_t offset, unsigned size, int fd);
/* After this returns, @fd is not touched any more. */
void io_region_del_ioeventfd(IoRegion *region, uint64_t offset, unsigned size);
bool io_region_enabled(const IoRegion *region);

/* ---- host sides
 * ---------------------------------------------------------------------------------- */

/* The open image of drive @id and its configuration (serial=, cache= …), NULL if there is none. The
 * machine owns both; block_ref to keep the node. One device uses a drive: machine_claim_drive fails
 * if taken. */
struct BlockNode;
struct BlockNode *machine_drive(Machine *m, const char *id, const MachineItem **item);
bool machine_claim_drive(Machine *m, const char *id, GError **err);

/* ---- interrupts ---- */

void machine_set_gsi(Machine *m, unsigned gsi,
                     bool level); /* 0-15 also drive the PIC; any thread */
void machine_send_msi(Machine *m, uint64_t address, uint32_t data); /* any thread */
/* The same of a requester (bus << 8 | function; -1: none), machine lock held: see pci_send_msi. */
void machine_send_msi_from(Machine *m, int source, uint64_t address, uint32_t data);
