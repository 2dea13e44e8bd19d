/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The KVM paravirtual clock (interface: Linux Documentation/virt/kvm/x86/msr.rst): tells the guest its
 * TSC's frequency and the wall clock. The TSC is invariant and the same on every vCPU, so the
 * structures are written once, when the guest asks.
 */
#include <time.h>

#include "base/bytes.h"
#include "vcpu/soft/vm.h"

#define FLAG_TSC_STABLE 1u

/* ns = (ticks << shift) * mul >> 32, with ticks counted at @khz. */
static void scale(uint64_t khz, uint32_t *mul, int8_t *shift)
{
    uint64_t ns = 1000000000u, hz = khz * 1000;
    int s = 0;
    while (hz > ns * 2) {
        hz >>= 1;
        s--;
    }
    while (hz <= ns) {
        hz <<= 1;
        s++;
    }
    *shift = (int8_t)s;
    *mul = (uint32_t)((ns << 32) / hz);
}

void soft_pvclock_system_time(SoftCpu *cpu)
{
    uint64_t gpa = cpu->system->msr.kvm_system_time;
    if (!(gpa & 1))
        return;
    gpa &= ~1ull;
    uint8_t raw[32] = {0};
    uint32_t mul;
    int8_t shift;
    scale(vcpu_host_tsc_khz(), &mul, &shift);
    le32_put(raw, 2); /* version: even = complete */
    /* The system time was 0 when the TSC was, apart from what the guest has moved it by since. */
    le64_put(raw + 8, cpu->system->msr.tsc_adjust);
    le64_put(raw + 16, 0);
    le32_put(raw + 24, mul);
    raw[28] = (uint8_t)shift;
    raw[29] = FLAG_TSC_STABLE;
    soft_physical_write(soft_vm(cpu), gpa, raw, sizeof(raw));
}

/* The wall clock when the system time was 0. */
void soft_pvclock_wall_clock(SoftCpu *cpu, uint64_t gpa)
{
    uint8_t raw[12];
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    uint64_t ticks = soft_tsc(cpu) - cpu->system->msr.tsc_adjust;
    uint64_t up = (uint64_t)((unsigned __int128)ticks * 1000000u / vcpu_host_tsc_khz());
    uint64_t wall = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec - up;
    wall = soft_observed_time(cpu, wall);
    le32_put(raw, 2);
    le32_put(raw + 4, (uint32_t)(wall / 1000000000u));
    le32_put(raw + 8, (uint32_t)(wall % 1000000000u));
    soft_physical_write(soft_vm(cpu), gpa, raw, sizeof(raw));
}
