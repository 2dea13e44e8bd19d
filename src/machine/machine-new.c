/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Putting a whole machine together: engine, host sides, board, devices, kernel. */
#include "machine/board/board.h"
#include "machine/machine-internal.h"

static void close_host(Machine *m)
{
    board_boot_free(m->boot);
    m->boot = NULL;
    machine_host_close(m);
}

static bool create_devices(Machine *m, GError **err)
{
    const GPtrArray *items = m->config->devices;
    for (unsigned i = 0; i < items->len; i++) {
        const MachineItem *item = items->pdata[i];
        const DeviceType *type = device_type_find(item->type);
        if (!type)
            return lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "there is no device type '%s'",
                              item->type);
        if (type->bus == DEVICE_BUS_SYSTEM)
            return lodge_fail(err, LODGE_ERROR_INVALID, "device %s belongs to the board already",
                              item->type);
        if (!device_new(m, type, item, err))
            return false;
    }
    return true;
}

static bool populate(Machine *m, GError **err)
{
    if (!g_str_equal(m->config->board, "q35"))
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "board '%s': only q35 is supported",
                          m->config->board);
    if (!machine_host_open(m, err) || !board_q35_init(m, err) || !create_devices(m, err))
        return false;
    m->boot = board_boot_open(m, err);
    return m->boot != NULL;
}

Machine *machine_new(const MachineConfig *config, GError **err)
{
    g_autofree char *reason = NULL;
    const VcpuEngine *engine = vcpu_engine_select(config->engine, &reason, err);
    if (!engine)
        return NULL;
    Machine *m = machine_new_bare(config, engine, err);
    if (!m)
        return NULL;
    m->engine_reason = m->vm->cpu_lacking
                           ? g_strdup_printf("%s; the CPU has no %s", reason, m->vm->cpu_lacking)
                           : g_steal_pointer(&reason);
    m->tsc_khz = vcpu_host_tsc_khz;
    m->close_host = close_host;
    machine_lock(m);
    bool ok = populate(m, err);
    machine_unlock(m);
    if (!ok) {
        machine_free(m);
        return NULL;
    }
    return m;
}

void machine_powerdown(Machine *m)
{
    machine_lock(m);
    if (m->pm && machine_status(m) != MACHINE_SHUTDOWN) {
        board_pm_power_button(m->pm);
        MachineEvent event = {.type = MACHINE_EVENT_POWERDOWN,
                              .cause = MACHINE_CAUSE_HOST_QMP_QUIT};
        machine_emit(m, &event);
    }
    machine_unlock(m);
}
