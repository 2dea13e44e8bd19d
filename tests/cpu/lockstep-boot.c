/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * lockstep-vmm is lodge-vmm with the engine `lockstep` behind its back: the linker leads its choice of an engine, and
 * its looks at the clock, here (--wrap, ld(1)).
 */
#include <sys/timerfd.h>
#include <time.h>

#include "base/error.h"
#include "lockstep.h"

/*
 * The guest's time is as much slower, so that it does not spend it all on timer interrupts. CLOCK_MONOTONIC and the
 * timers after it go that much slower, too, from the first look at it.
 */
#define SLOW 32

int __real_clock_gettime(clockid_t clock, struct timespec *t);
int __wrap_clock_gettime(clockid_t clock, struct timespec *t);
int __real_timerfd_settime(int fd, int flags, const struct itimerspec *to, struct itimerspec *old);
int __wrap_timerfd_settime(int fd, int flags, const struct itimerspec *to, struct itimerspec *old);
const VcpuEngine *__wrap_vcpu_engine_select(const char *name, char **reason, GError **err);

static int64_t base_ns;

static int64_t to_ns(struct timespec t)
{
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

static struct timespec from_ns(int64_t ns)
{
    return (struct timespec){.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};
}

static void __attribute__((constructor)) at_start(void)
{
    struct timespec t;
    __real_clock_gettime(CLOCK_MONOTONIC, &t);
    base_ns = to_ns(t);
}

int __wrap_clock_gettime(clockid_t clock, struct timespec *t)
{
    int result = __real_clock_gettime(clock, t);
    if (clock == CLOCK_MONOTONIC && result == 0)
        *t = from_ns(base_ns + (to_ns(*t) - base_ns) / SLOW);
    return result;
}

int __wrap_timerfd_settime(int fd, int flags, const struct itimerspec *to, struct itimerspec *old)
{
    struct itimerspec real = *to;
    int64_t ns = to_ns(to->it_value), late;
    if (ns > base_ns && (flags & TFD_TIMER_ABSTIME)) {
        if (__builtin_mul_overflow(ns - base_ns, SLOW, &late) || __builtin_add_overflow(late, base_ns, &late))
            late = INT64_MAX;
        real.it_value = from_ns(late);
    }
    return __real_timerfd_settime(fd, flags, &real, old);
}

const VcpuEngine *__wrap_vcpu_engine_select(const char *name, char **reason, GError **err)
{
    *reason = g_strdup_printf("%s: two software CPUs", vcpu_engine_lockstep.name);
    lockstep_slow = SLOW;
    return &vcpu_engine_lockstep;
}

static void __attribute__((destructor)) at_exit(void)
{
    lockstep_summary();
}
