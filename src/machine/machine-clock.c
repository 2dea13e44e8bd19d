/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The guest's clock and its timers: a heap of deadlines behind one timerfd, which is armed only
 * while something is due, so that an idle machine never wakes up.
 */
#include <errno.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "machine/machine-internal.h"

#define NOT_ARMED UINT_MAX

struct MachineTimer {
    Machine *machine;
    void (*f)(void *opaque);
    void *opaque;
    int64_t deadline_ns;
    unsigned index; /* in the heap, or NOT_ARMED */
    bool no_lock;
};

static int64_t host_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

int64_t machine_clock_ns(Machine *m)
{
    for (;;) {
        unsigned sequence = __atomic_load_n(&m->clock_sequence, __ATOMIC_ACQUIRE);
        bool running = __atomic_load_n(&m->clock_running, __ATOMIC_RELAXED);
        int64_t ns = __atomic_load_n(&m->clock_ns, __ATOMIC_RELAXED);
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
        if (!(sequence & 1) && __atomic_load_n(&m->clock_sequence, __ATOMIC_RELAXED) == sequence)
            return running ? host_ns() - ns : ns;
    }
}

static void clock_set(Machine *m, bool running, int64_t ns)
{
    unsigned sequence = m->clock_sequence;
    __atomic_store_n(&m->clock_sequence, sequence + 1, __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_RELEASE);
    __atomic_store_n(&m->clock_running, running, __ATOMIC_RELAXED);
    __atomic_store_n(&m->clock_ns, ns, __ATOMIC_RELAXED);
    __atomic_store_n(&m->clock_sequence, sequence + 2, __ATOMIC_RELEASE);
}

/* ---- the heap; timer_lock held ------------------------------------------------------------------
 */

static MachineTimer *heap_at(Machine *m, unsigned i)
{
    return m->timers->pdata[i];
}

static void heap_put(Machine *m, unsigned i, MachineTimer *t)
{
    m->timers->pdata[i] = t;
    t->index = i;
}

static void heap_up(Machine *m, unsigned i, MachineTimer *t)
{
    while (i && heap_at(m, (i - 1) / 2)->deadline_ns > t->deadline_ns) {
        heap_put(m, i, heap_at(m, (i - 1) / 2));
        i = (i - 1) / 2;
    }
    heap_put(m, i, t);
}

static void heap_down(Machine *m, unsigned i, MachineTimer *t)
{
    unsigned n = m->timers->len;
    for (;;) {
        unsigned child = 2 * i + 1;
        if (child >= n)
            break;
        if (child + 1 < n && heap_at(m, child + 1)->deadline_ns < heap_at(m, child)->deadline_ns)
            child++;
        if (heap_at(m, child)->deadline_ns >= t->deadline_ns)
            break;
        heap_put(m, i, heap_at(m, child));
        i = child;
    }
    heap_put(m, i, t);
}

static void heap_remove(Machine *m, MachineTimer *t)
{
    if (t->index == NOT_ARMED)
        return;
    unsigned i = t->index;
    MachineTimer *moved = heap_at(m, m->timers->len - 1);
    g_ptr_array_set_size(m->timers, (int)m->timers->len - 1);
    t->index = NOT_ARMED;
    if (moved == t)
        return;
    if (i && heap_at(m, (i - 1) / 2)->deadline_ns > moved->deadline_ns)
        heap_up(m, i, moved);
    else
        heap_down(m, i, moved);
}

/* Sets the timerfd for the first deadline, unless it is set for an earlier time already: then it
 * wakes up once too often, which costs less than a system call for each change. */
static void arm(Machine *m)
{
    if (!m->timers->len || !m->clock_running)
        return;
    int64_t at;
    if (__builtin_add_overflow(heap_at(m, 0)->deadline_ns, m->clock_ns, &at) || at < 1)
        at = heap_at(m, 0)->deadline_ns < 0 ? 1 : INT64_MAX;
    if (m->timer_armed_ns && m->timer_armed_ns <= at)
        return;
    m->timer_armed_ns = at;
    struct itimerspec spec = {.it_value = {at / 1000000000, at % 1000000000}};
    timerfd_settime(m->timer_fd, TFD_TIMER_ABSTIME, &spec, NULL);
}

static void disarm(Machine *m)
{
    struct itimerspec spec = {0};
    m->timer_armed_ns = 0;
    timerfd_settime(m->timer_fd, 0, &spec, NULL);
}

/* ---- timers
 * ----------------------------------------------------------------------------------------- */

MachineTimer *machine_timer_new(Machine *m, void (*f)(void *opaque), void *opaque)
{
    MachineTimer *t = g_new0(MachineTimer, 1);
    t->machine = m;
    t->f = f;
    t->opaque = opaque;
    t->index = NOT_ARMED;
    return t;
}

void machine_timer_set_no_lock(MachineTimer *t)
{
    t->no_lock = true;
}

void machine_timer_free(MachineTimer *t)
{
    if (!t)
        return;
    machine_timer_cancel(t);
    g_free(t);
}

void machine_timer_set(MachineTimer *t, int64_t deadline_ns)
{
    Machine *m = t->machine;
    pthread_mutex_lock(&m->timer_lock);
    heap_remove(m, t);
    t->deadline_ns = deadline_ns;
    g_ptr_array_add(m->timers, t);
    heap_up(m, m->timers->len - 1, t);
    if (t->index == 0)
        arm(m);
    pthread_mutex_unlock(&m->timer_lock);
}

void machine_timer_cancel(MachineTimer *t)
{
    Machine *m = t->machine;
    pthread_mutex_lock(&m->timer_lock);
    heap_remove(m, t);
    pthread_mutex_unlock(&m->timer_lock);
}

bool machine_timer_pending(const MachineTimer *t)
{
    Machine *m = t->machine;
    pthread_mutex_lock(&m->timer_lock);
    bool pending = t->index != NOT_ARMED;
    pthread_mutex_unlock(&m->timer_lock);
    return pending;
}

/* The first timer if it is due; taken from the heap if it needs no lock or the caller holds it. */
static MachineTimer *take_due(Machine *m, bool locked, int64_t now)
{
    pthread_mutex_lock(&m->timer_lock);
    MachineTimer *t = m->timers->len ? heap_at(m, 0) : NULL;
    if (t && t->deadline_ns > now)
        t = NULL;
    if (t && (locked || t->no_lock))
        heap_remove(m, t);
    pthread_mutex_unlock(&m->timer_lock);
    return t;
}

/* Everything that is due at @now. A timer that sets itself again for the past runs once a call. */
static void run_due(Machine *m, int64_t now)
{
    MachineTimer *t;
    unsigned budget = 1000;
    while (budget-- && (t = take_due(m, false, now))) {
        if (t->no_lock) {
            t->f(t->opaque);
            continue;
        }
        /* The timer may be freed or changed until the lock is held: look again then. */
        machine_lock(m);
        t = take_due(m, true, now);
        if (t)
            t->f(t->opaque);
        machine_unlock(m);
    }
}

static gboolean timer_dispatch(GSource *source, GSourceFunc f, gpointer opaque)
{
    Machine *m = opaque;
    uint64_t expirations;
    if (read(m->timer_fd, &expirations, sizeof(expirations)) < 0 && errno != EAGAIN)
        return G_SOURCE_CONTINUE;
    pthread_mutex_lock(&m->timer_lock);
    m->timer_armed_ns = 0;
    pthread_mutex_unlock(&m->timer_lock);
    if (m->clock_running)
        run_due(m, machine_clock_ns(m));
    pthread_mutex_lock(&m->timer_lock);
    arm(m);
    pthread_mutex_unlock(&m->timer_lock);
    return G_SOURCE_CONTINUE;
}

static gboolean never_called(gpointer opaque)
{
    return G_SOURCE_CONTINUE;
}

void machine_clock_init(Machine *m)
{
    static GSourceFuncs funcs = {.dispatch = timer_dispatch};
    pthread_mutex_init(&m->timer_lock, NULL);
    m->timers = g_ptr_array_new();
    m->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    m->timer_source = g_source_new(&funcs, sizeof(GSource));
    g_source_set_callback(m->timer_source, never_called, m, NULL);
    g_source_set_priority(m->timer_source, G_PRIORITY_HIGH);
    g_source_add_unix_fd(m->timer_source, m->timer_fd, G_IO_IN);
    g_source_attach(m->timer_source, m->context);
}

void machine_clock_free(Machine *m)
{
    g_source_destroy(m->timer_source);
    g_source_unref(m->timer_source);
    close(m->timer_fd);
    g_ptr_array_unref(m->timers);
    pthread_mutex_destroy(&m->timer_lock);
}

void machine_clock_run(Machine *m, bool running)
{
    int64_t now = machine_clock_ns(m);
    pthread_mutex_lock(&m->timer_lock);
    if (running != m->clock_running) {
        clock_set(m, running, running ? host_ns() - now : now);
        if (running)
            arm(m);
        else
            disarm(m);
    }
    pthread_mutex_unlock(&m->timer_lock);
}

void machine_clock_advance(Machine *m, int64_t ns)
{
    int64_t end = machine_clock_ns(m) + ns;
    for (unsigned budget = 1000000; budget; budget--) {
        pthread_mutex_lock(&m->timer_lock);
        int64_t next = m->timers->len ? heap_at(m, 0)->deadline_ns : INT64_MAX;
        pthread_mutex_unlock(&m->timer_lock);
        if (next > end)
            break;
        clock_set(m, false, MAX(next, machine_clock_ns(m)));
        run_due(m, machine_clock_ns(m));
    }
    clock_set(m, false, end);
}
