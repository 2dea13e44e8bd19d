/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What makes the machine a PC that boots; machine_new and the reset path call these. All
 * on the main thread with the machine lock held.
 */
#pragma once

#include "machine/device.h"

/* Creates everything that the board always has (interrupt controllers, timers, PCI root, the
 * functions below) and registers the reset hooks. Devices of the configuration come after it. */
bool board_q35_init(Machine *m, GError **err);

/* Creates the board's own legacy devices: ACPI power management (with the reset control
 * register) and the i8042. Returns the power management device; the machine owns both. */
Device *board_pm_init(Machine *m, GError **err);
/* Presses the ACPI power button (machine_powerdown). */
void board_pm_power_button(Device *pm);
/* Port 0xcf9, for the owner of ports 0xcf8-0xcfb: byte accesses at offset 1. */
uint8_t board_reset_control_read(Device *pm);
void board_reset_control_write(Device *pm, uint8_t value);

/*
 * The kernel and initrd that the configuration names. open: at machine_new, checks the files
 * and keeps descriptors. load: at start and at every reset, after board_acpi_build and
 * board_smbios_build; writes guest RAM and turns @bsp (from vcpu_state_reset) into the state
 * of vCPU 0 at the kernel's entry.
 */
typedef struct BoardBoot BoardBoot;
BoardBoot *board_boot_open(Machine *m, GError **err);
bool board_boot_load(BoardBoot *boot, VcpuState *bsp, GError **err);
void board_boot_free(BoardBoot *boot); /* NULL is accepted */

/* Write the firmware tables into guest RAM (layout.h says where). */
bool board_acpi_build(Machine *m, GError **err);
bool board_smbios_build(Machine *m, GError **err);
