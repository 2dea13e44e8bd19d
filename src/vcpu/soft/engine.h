/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The members of the `soft` engine that have files of their own. */
#pragma once

#include "vcpu/engine.h"

bool soft_get_state(Vcpu *vcpu, VcpuState *state, GError **err);
bool soft_set_state(Vcpu *vcpu, const VcpuState *state, GError **err);
