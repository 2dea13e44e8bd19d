/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The board's timers: PIT, HPET, RTC. Each arms a host timer only while somebody waits for it.
 */
#pragma once

#include "machine/device.h"

extern const DeviceType pit_device_type, hpet_device_type, rtc_device_type;

/* IRQ 0 may have become deliverable: the PIT runs no timer while it is masked. Machine lock held.
 */
void pit_interrupt_unmasked(Machine *m);
/* HPET's legacy replacement route takes IRQ 0 from the PIT and IRQ 8 from the RTC. Machine lock
 * held. */
void pit_set_replaced(Machine *m, bool replaced);
void rtc_set_replaced(Machine *m, bool replaced);
