/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "vcpu/soft/cpu.h"

uint64_t soft_rflags(const SoftCpu *cpu)
{
    uint32_t a = cpu->arith;

    return cpu->rflags | (a >> 8 & (FLAG_CF | FLAG_PF | FLAG_AF | FLAG_ZF | FLAG_SF)) |
           ((a & ARITH_OF) ? FLAG_OF : 0);
}

void soft_rflags_set(SoftCpu *cpu, uint64_t rflags)
{
    cpu->arith = (uint32_t)(rflags & (FLAG_CF | FLAG_PF | FLAG_AF | FLAG_ZF | FLAG_SF)) << 8 |
                 ((rflags & FLAG_OF) ? ARITH_OF : 0);
    cpu->rflags = (rflags & ~(uint64_t)FLAG_ARITH) | 2;
    soft_mode_update(cpu);
}
