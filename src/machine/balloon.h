/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The hook between whoever steers the guest's memory size (QMP `balloon`) and the device that
 * carries it out. At most one balloon a machine. Machine lock held.
 */
#pragma once

#include "machine/machine.h"

/* What the guest tells of its memory, by VIRTIO_BALLOON_S_* tag (VIRTIO 1.2, 5.5.6.3): bytes or
 * counts. */
#define MACHINE_BALLOON_STATS 10
typedef struct MachineBalloonStats {
    uint32_t present; /* bit n: value[n] was told */
    uint64_t value[MACHINE_BALLOON_STATS];
} MachineBalloonStats;

typedef struct MachineBalloonOps {
    /* Asks the guest to come down (or up) to @bytes of memory; takes effect some time later and is
     * then told by MACHINE_EVENT_BALLOON_CHANGE. */
    bool (*set_target)(void *opaque, uint64_t bytes, GError **err);
    uint64_t (*actual)(void *opaque); /* memory that the guest has now, in bytes */
    bool (*stats)(void *opaque, MachineBalloonStats *stats); /* false: none were told yet */
} MachineBalloonOps;

/* For the device: false and @err if the machine has a balloon already. */
bool machine_balloon_register(Machine *m, const MachineBalloonOps *ops, void *opaque, GError **err);
void machine_balloon_unregister(Machine *m, void *opaque);

/* For the monitor: LODGE_ERROR_NOT_FOUND without a balloon. */
bool machine_balloon_set(Machine *m, uint64_t bytes, GError **err);
bool machine_balloon_actual(Machine *m, uint64_t *bytes, GError **err);
/* The latest statistics; LODGE_ERROR_STATE while the guest has told none. */
bool machine_balloon_stats(Machine *m, MachineBalloonStats *stats, GError **err);
