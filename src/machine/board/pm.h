/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the ACPI tables say about power management. */
#pragma once

/* Offsets from LAYOUT_PORT_PM. */
#define PM_EVENT_OFFSET   0x00
#define PM_EVENT_LENGTH   4
#define PM_CONTROL_OFFSET 0x04
#define PM_CONTROL_LENGTH 2
#define PM_TIMER_OFFSET   0x08
#define PM_TIMER_LENGTH   4
#define PM_GPE0_OFFSET    0x20
#define PM_GPE0_LENGTH    4

#define PM_SLEEP_TYPE_S5 5 /* the board's value of SLP_TYP for soft-off */
/* Written to port 0xcf9: CPU and hard reset. */
#define PM_RESET_VALUE 0x06
