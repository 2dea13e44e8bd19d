/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "vcpu/soft/cpu.h"

_Atomic uint32_t soft_code_epoch = 1;
