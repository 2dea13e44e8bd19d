/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* vCPU threads: running, pausing, and access to a vCPU's state from outside. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include "machine/machine-internal.h"

/* ---- what the engine calls
 * ----------------------------------------------------------------------- */

static uint64_t bus_port_read(void *opaque, unsigned vcpu, uint16_t port, unsigned size)
{
    Machine *m = opaque;
    return io_space_read(m, &m->ports, port, size);
}

static void bus_port_write(void *opaque, unsigned vcpu, uint16_t port, unsigned size,
                           uint64_t value)
{
    Machine *m = opaque;
    io_space_write(m, &m->ports, port, size, value);
}

static uint64_t bus_mmio_read(void *opaque, unsigned vcpu, uint64_t gpa, unsigned size)
{
    Machine *m = opaque;
    return io_space_read(m, &m->mmio, gpa, size);
}

static void bus_mmio_write(void *opaque, unsigned vcpu, uint64_t gpa, unsigned size, uint64_t value)
{
    Machine *m = opaque;
    io_space_write(m, &m->mmio, gpa, size, value);
}

bool machine_vcpus_init(Machine *m, GError **err)
{
    m->bus.opaque = m;
    m->bus.port_read = bus_port_read;
    m->bus.port_write = bus_port_write;
    m->bus.mmio_read = bus_mmio_read;
    m->bus.mmio_write = bus_mmio_write;
    m->vcpu_paused = 1;
    VcpuVmConfig config = {
        .n_vcpus = m->config->n_vcpus,
        .bus = &m->bus,
        .sockets = m->config->sockets,
        .cores = m->config->cores,
        .threads = m->config->threads,
        .perf_map = m->config->perf_map,
        .tuning = m->config->cpu_tuning,
    };
    g_autoptr(X86CpuSpec) cpu = NULL;
    if (m->config->cpu && !(cpu = x86_cpu_parse(m->config->cpu, err)))
        return false;
    config.cpu = cpu;
    m->vm = m->engine->vm_new(&config, err);
    if (!m->vm)
        return false;
    m->vcpus = g_new0(MachineVcpu, config.n_vcpus);
    for (unsigned i = 0; i < config.n_vcpus; i++) {
        MachineVcpu *v = &m->vcpus[i];
        v->machine = m;
        v->index = i;
        v->parked = true;
        v->vcpu = m->engine->vcpu_new(m->vm, i, err);
        if (!v->vcpu)
            return false;
        m->n_vcpus = i + 1;
    }
    return true;
}

void machine_vcpus_free(Machine *m)
{
    pthread_mutex_lock(&m->vcpu_lock);
    m->vcpu_quit = true;
    for (unsigned i = 0; i < m->n_vcpus; i++)
        if (m->vcpus[i].created)
            m->engine->kick(m->vcpus[i].vcpu);
    pthread_cond_broadcast(&m->vcpu_resume);
    pthread_mutex_unlock(&m->vcpu_lock);
    for (unsigned i = 0; i < m->n_vcpus; i++)
        if (m->vcpus[i].created)
            pthread_join(m->vcpus[i].thread, NULL);
    for (unsigned i = 0; i < m->n_vcpus; i++)
        m->engine->vcpu_free(m->vcpus[i].vcpu);
    g_clear_pointer(&m->vcpus, g_free);
    m->n_vcpus = 0;
    if (m->vm)
        m->engine->vm_free(m->vm);
    m->vm = NULL;
}

/* ---- threads
 * ----------------------------------------------------------------------------------------- */

static bool must_park(const MachineVcpu *v)
{
    return v->machine->vcpu_paused || v->holds || v->held || v->stuck;
}

static void debug_stop(void *opaque)
{
    MachineVcpu *v = opaque;
    Machine *m = v->machine;
    if (m->debug_handler)
        m->debug_handler(m->debug_opaque, v->index);
    else
        machine_hold_vcpu(m, v->index, false); /* the debugger has left meanwhile */
}

static void run_once(MachineVcpu *v)
{
    Machine *m = v->machine;
    g_autoptr(GError) error = NULL;
    switch (m->engine->run(v->vcpu, &error)) {
    case VCPU_EXIT_KICK:
        break;
    case VCPU_EXIT_TRIPLE_FAULT:
        v->stuck = true;
        machine_reset(m, MACHINE_CAUSE_GUEST_RESET);
        break;
    case VCPU_EXIT_DEBUG:
        machine_hold_vcpu(m, v->index, true);
        machine_defer(m, debug_stop, v);
        break;
    case VCPU_EXIT_ERROR: {
        v->stuck = true;
        g_autofree char *message = g_strdup_printf(
            "vCPU %u: %s", v->index, error ? error->message : "the engine gave no reason");
        machine_fail(m, message);
        break;
    }
    }
}

static void *vcpu_thread(void *opaque)
{
    MachineVcpu *v = opaque;
    Machine *m = v->machine;
    char name[16];
    snprintf(name, sizeof(name), "vcpu%u", v->index);
    pthread_setname_np(pthread_self(), name);
    machine_set_current_vcpu((int)v->index);
    pthread_mutex_lock(&m->vcpu_lock);
    v->tid = gettid();
    pthread_cond_broadcast(&m->vcpu_parked);
    while (!m->vcpu_quit) {
        if (must_park(v)) {
            v->parked = true;
            pthread_cond_broadcast(&m->vcpu_parked);
            pthread_cond_wait(&m->vcpu_resume, &m->vcpu_lock);
            continue;
        }
        v->parked = false;
        pthread_mutex_unlock(&m->vcpu_lock);
        run_once(v);
        pthread_mutex_lock(&m->vcpu_lock);
    }
    v->parked = true;
    pthread_cond_broadcast(&m->vcpu_parked);
    pthread_mutex_unlock(&m->vcpu_lock);
    return NULL;
}

bool machine_vcpus_start(Machine *m, GError **err)
{
    /* Signals are the main thread's; engines unblock the one they kick with. */
    sigset_t all, old;
    sigfillset(&all);
    int rc = 0;
    pthread_sigmask(SIG_SETMASK, &all, &old);
    for (unsigned i = 0; i < m->n_vcpus && !rc; i++) {
        MachineVcpu *v = &m->vcpus[i];
        rc = v->created ? 0 : pthread_create(&v->thread, NULL, vcpu_thread, v);
        v->created = !rc;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (rc)
        return lodge_fail_errno(err, rc, "cannot create a vCPU thread");
    pthread_mutex_lock(&m->vcpu_lock);
    for (unsigned i = 0; i < m->n_vcpus; i++)
        while (!m->vcpus[i].tid)
            pthread_cond_wait(&m->vcpu_parked, &m->vcpu_lock);
    pthread_mutex_unlock(&m->vcpu_lock);
    return true;
}

/* vcpu_lock held. A vCPU thread does not wait for itself: it parks when its callback returns. */
static void wait_parked(Machine *m, MachineVcpu *v)
{
    if (v->created && pthread_equal(v->thread, pthread_self()))
        return;
    while (!v->parked) {
        m->engine->kick(v->vcpu);
        pthread_cond_wait(&m->vcpu_parked, &m->vcpu_lock);
    }
}

void machine_vcpus_pause(Machine *m)
{
    /* A vCPU may be waiting for the machine lock on its way out. */
    unsigned depth = machine_lock_release(m);
    pthread_mutex_lock(&m->vcpu_lock);
    m->vcpu_paused++;
    for (unsigned i = 0; i < m->n_vcpus; i++)
        if (!m->vcpus[i].parked)
            m->engine->kick(m->vcpus[i].vcpu);
    for (unsigned i = 0; i < m->n_vcpus; i++)
        wait_parked(m, &m->vcpus[i]);
    pthread_mutex_unlock(&m->vcpu_lock);
    machine_lock_restore(m, depth);
}

void machine_vcpus_resume(Machine *m)
{
    pthread_mutex_lock(&m->vcpu_lock);
    m->vcpu_paused--;
    pthread_cond_broadcast(&m->vcpu_resume);
    pthread_mutex_unlock(&m->vcpu_lock);
}

bool machine_vcpus_reset(Machine *m, GError **err)
{
    g_autofree VcpuState *state = g_new0(VcpuState, 1);
    for (unsigned i = 0; i < m->n_vcpus; i++) {
        vcpu_state_reset(state, i);
        state->activity = i ? VCPU_WAIT_FOR_SIPI : VCPU_RUNNING;
        if (!m->engine->set_state(m->vcpus[i].vcpu, state, err))
            return false;
        pthread_mutex_lock(&m->vcpu_lock);
        m->vcpus[i].stuck = false;
        pthread_mutex_unlock(&m->vcpu_lock);
    }
    return true;
}

/* ---- for the debugger
 * ------------------------------------------------------------------------------- */

void machine_set_debug_handler(Machine *m, MachineDebugHandler handler, void *opaque)
{
    machine_lock(m);
    m->debug_handler = handler;
    m->debug_opaque = opaque;
    machine_unlock(m);
}

void machine_hold_vcpu(Machine *m, unsigned index, bool hold)
{
    if (index >= m->n_vcpus)
        return;
    MachineVcpu *v = &m->vcpus[index];
    pthread_mutex_lock(&m->vcpu_lock);
    v->held = hold;
    if (hold && !v->parked)
        m->engine->kick(v->vcpu);
    pthread_cond_broadcast(&m->vcpu_resume);
    pthread_mutex_unlock(&m->vcpu_lock);
}

/* ---- for the monitor
 * ------------------------------------------------------------------------------------ */

unsigned machine_vcpu_count(const Machine *m)
{
    return m->n_vcpus;
}

Vcpu *machine_vcpu(Machine *m, unsigned index)
{
    return index < m->n_vcpus ? m->vcpus[index].vcpu : NULL;
}

pid_t machine_vcpu_thread_id(const Machine *m, unsigned index)
{
    return index < m->n_vcpus ? m->vcpus[index].tid : 0;
}

void machine_with_vcpu(Machine *m, unsigned index, void (*f)(Vcpu *vcpu, void *opaque),
                       void *opaque)
{
    if (index >= m->n_vcpus)
        return;
    MachineVcpu *v = &m->vcpus[index];
    unsigned depth = machine_lock_release(m);
    pthread_mutex_lock(&m->vcpu_lock);
    v->holds++;
    wait_parked(m, v);
    pthread_mutex_unlock(&m->vcpu_lock);
    machine_lock_restore(m, depth);
    f(v->vcpu, opaque);
    pthread_mutex_lock(&m->vcpu_lock);
    v->holds--;
    pthread_cond_broadcast(&m->vcpu_resume);
    pthread_mutex_unlock(&m->vcpu_lock);
}
