/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Narrows what the process may ask of the kernel once the machine is built. */
#pragma once

#include <glib.h>
#include <stdbool.h>

/* @network: user-mode networking needs sockets and the resolver's configuration. All threads,
 * those to come included. Not undoable. */
bool vmm_sandbox_enter(bool network, GError **err);
