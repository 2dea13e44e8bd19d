/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The machine's life: creation without a board, lock, loop, status, events, reset and end. */
#include "machine/machine.h"

#include <string.h>

#include "machine/machine-internal.h"

/* ---- lock ---------------------------------------------------------------------------------------
 */

static bool lock_is_mine(const Machine *m)
{
    return __atomic_load_n(&m->lock_depth, __ATOMIC_ACQUIRE) &&
           pthread_equal(__atomic_load_n(&m->lock_owner, __ATOMIC_RELAXED), pthread_self());
}

static void lock_take(Machine *m, unsigned depth)
{
    pthread_mutex_lock(&m->lock);
    __atomic_store_n(&m->lock_owner, pthread_self(), __ATOMIC_RELAXED);
    __atomic_store_n(&m->lock_depth, depth, __ATOMIC_RELEASE);
}

void machine_lock(Machine *m)
{
    if (lock_is_mine(m))
        m->lock_depth++;
    else
        lock_take(m, 1);
}

void machine_unlock(Machine *m)
{
    g_assert(lock_is_mine(m));
    if (m->lock_depth > 1) {
        m->lock_depth--;
        return;
    }
    __atomic_store_n(&m->lock_depth, 0, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&m->lock);
}

unsigned machine_lock_release(Machine *m)
{
    if (!lock_is_mine(m))
        return 0;
    unsigned depth = m->lock_depth;
    __atomic_store_n(&m->lock_depth, 0, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&m->lock);
    return depth;
}

void machine_lock_restore(Machine *m, unsigned depth)
{
    if (depth)
        lock_take(m, depth);
}

bool machine_is_main_thread(const Machine *m)
{
    return pthread_equal(m->main_thread, pthread_self());
}

/* ---- loop
 * ------------------------------------------------------------------------------------------ */

GMainContext *machine_context(Machine *m)
{
    return m->context;
}

typedef struct FdWatch {
    GSource source;
    Machine *machine;
    int fd;
    gpointer tag;
    MachineFdHandler f;
    void *opaque;
} FdWatch;

static gboolean watch_dispatch(GSource *source, GSourceFunc unused, gpointer unused_opaque)
{
    FdWatch *watch = (FdWatch *)source;
    Machine *m = watch->machine;
    machine_lock(m);
    /* It may have been destroyed while this thread waited for the lock. */
    if (!g_source_is_destroyed(source))
        watch->f(watch->opaque, watch->fd, g_source_query_unix_fd(source, watch->tag));
    machine_unlock(m);
    return G_SOURCE_CONTINUE;
}

static gboolean never_called(gpointer opaque)
{
    return G_SOURCE_CONTINUE;
}

GSource *machine_watch_fd(Machine *m, int fd, GIOCondition condition, MachineFdHandler f,
                          void *opaque)
{
    static GSourceFuncs funcs = {.dispatch = watch_dispatch};
    GSource *source = g_source_new(&funcs, sizeof(FdWatch));
    FdWatch *watch = (FdWatch *)source;
    watch->machine = m;
    watch->fd = fd;
    watch->f = f;
    watch->opaque = opaque;
    watch->tag = g_source_add_unix_fd(source, fd, condition);
    g_source_set_callback(source, never_called, NULL, NULL);
    g_source_attach(source, m->context);
    return source;
}

typedef struct Deferred {
    Machine *machine;
    void (*f)(void *opaque);
    void *opaque;
} Deferred;

static gboolean deferred_run(gpointer opaque)
{
    Deferred *d = opaque;
    machine_lock(d->machine);
    d->f(d->opaque);
    machine_unlock(d->machine);
    return G_SOURCE_REMOVE;
}

void machine_defer(Machine *m, void (*f)(void *opaque), void *opaque)
{
    Deferred *d = g_new(Deferred, 1);
    *d = (Deferred){m, f, opaque};
    GSource *source = g_idle_source_new();
    g_source_set_priority(source, G_PRIORITY_DEFAULT);
    g_source_set_callback(source, deferred_run, d, g_free);
    g_source_attach(source, m->context);
    g_source_unref(source);
}

/* ---- events
 * --------------------------------------------------------------------------------------------- */

void machine_add_event_handler(Machine *m, MachineEventHandler handler, void *opaque)
{
    MachineHandler added = {handler, opaque};
    machine_lock(m);
    g_array_append_val(m->handlers, added);
    machine_unlock(m);
}

void machine_remove_event_handler(Machine *m, MachineEventHandler handler, void *opaque)
{
    machine_lock(m);
    for (unsigned i = 0; i < m->handlers->len; i++) {
        MachineHandler *h = &g_array_index(m->handlers, MachineHandler, i);
        if (h->f == handler && h->opaque == opaque) {
            g_array_remove_index(m->handlers, i);
            break;
        }
    }
    machine_unlock(m);
}

typedef struct QueuedEvent {
    Machine *machine;
    MachineEvent event;
    char *message;
} QueuedEvent;

static void call_handlers(Machine *m, const MachineEvent *event)
{
    machine_lock(m);
    for (unsigned i = 0; i < m->handlers->len; i++) {
        MachineHandler *h = &g_array_index(m->handlers, MachineHandler, i);
        h->f(h->opaque, event);
    }
    machine_unlock(m);
}

static gboolean queued_event_run(gpointer opaque)
{
    QueuedEvent *q = opaque;
    call_handlers(q->machine, &q->event);
    return G_SOURCE_REMOVE;
}

static void queued_event_free(gpointer opaque)
{
    QueuedEvent *q = opaque;
    g_free(q->message);
    g_free(q);
}

void machine_emit(Machine *m, const MachineEvent *event)
{
    if (machine_is_main_thread(m)) {
        call_handlers(m, event);
        return;
    }
    QueuedEvent *q = g_new0(QueuedEvent, 1);
    q->machine = m;
    q->event = *event;
    q->message = g_strdup(event->message);
    q->event.message = q->message;
    GSource *source = g_idle_source_new();
    g_source_set_priority(source, G_PRIORITY_DEFAULT);
    g_source_set_callback(source, queued_event_run, q, queued_event_free);
    g_source_attach(source, m->context);
    g_source_unref(source);
}

static void emit(Machine *m, MachineEventType type, MachineCause cause)
{
    MachineEvent event = {.type = type, .cause = cause};
    machine_emit(m, &event);
}

/* ---- status
 * --------------------------------------------------------------------------------------------- */

static void set_status(Machine *m, MachineStatus status)
{
    __atomic_store_n(&m->status, status, __ATOMIC_RELEASE);
}

MachineStatus machine_status(const Machine *m)
{
    return __atomic_load_n(&m->status, __ATOMIC_ACQUIRE);
}

static void drain(Machine *m)
{
    for (unsigned i = 0; i < m->devices->len; i++) {
        Device *dev = m->devices->pdata[i];
        if (dev->type->drain)
            dev->type->drain(dev);
    }
}

/* From running to @status: vCPUs outside run, clock still, disks quiet. */
static void halt(Machine *m, MachineStatus status)
{
    set_status(m, status);
    machine_vcpus_pause(m);
    machine_clock_run(m, false);
    drain(m);
}

static void go(Machine *m)
{
    set_status(m, MACHINE_RUNNING);
    machine_clock_run(m, true);
    machine_vcpus_resume(m);
}

/*
 * One change of status at a time: pausing lets go of the machine lock while it waits for vCPUs, and
 * nobody else may start them meanwhile. Taken before the machine lock, whatever the caller holds.
 */
static void control_enter(Machine *m)
{
    unsigned depth = machine_lock_release(m);
    pthread_mutex_lock(&m->control);
    machine_lock_restore(m, depth);
    machine_lock(m);
}

static void control_leave(Machine *m)
{
    machine_unlock(m);
    pthread_mutex_unlock(&m->control);
}

static void stop_now(void *opaque)
{
    Machine *m = opaque;
    control_enter(m);
    if (machine_status(m) == MACHINE_RUNNING) {
        halt(m, MACHINE_PAUSED);
        emit(m, MACHINE_EVENT_STOP, MACHINE_CAUSE_HOST_QMP_QUIT);
    }
    control_leave(m);
}

void machine_stop(Machine *m)
{
    /* A vCPU cannot wait for whoever waits for it to park. */
    if (machine_current_vcpu() >= 0)
        machine_defer(m, stop_now, m);
    else
        stop_now(m);
}

void machine_cont(Machine *m)
{
    control_enter(m);
    MachineStatus status = machine_status(m);
    if (m->start_requested && (status == MACHINE_PAUSED || status == MACHINE_PRELAUNCH)) {
        go(m);
        emit(m, MACHINE_EVENT_RESUME, MACHINE_CAUSE_HOST_QMP_QUIT);
    }
    control_leave(m);
}

bool machine_start(Machine *m, GError **err)
{
    control_enter(m);
    bool ok = true;
    if (m->start_requested)
        ok = lodge_fail(err, LODGE_ERROR_STATE, "the machine was started already");
    ok = ok && machine_reset_state(m, err) && machine_vcpus_start(m, err);
    if (ok) {
        m->start_requested = true;
        if (!m->config->start_paused)
            go(m);
    }
    control_leave(m);
    return ok;
}

/* ---- failing, reset, shutdown
 * ------------------------------------------------------------------------ */

typedef struct Failure {
    Machine *machine;
    char *message;
} Failure;

static void fail_now(void *opaque)
{
    Failure *failure = opaque;
    Machine *m = failure->machine;
    control_enter(m);
    if (machine_status(m) != MACHINE_SHUTDOWN && machine_status(m) != MACHINE_ERROR) {
        if (machine_status(m) == MACHINE_RUNNING)
            halt(m, MACHINE_ERROR);
        set_status(m, MACHINE_ERROR);
        MachineEvent event = {MACHINE_EVENT_ERROR, MACHINE_CAUSE_HOST_ERROR, 0, failure->message};
        machine_emit(m, &event);
    }
    control_leave(m);
    g_free(failure->message);
    g_free(failure);
}

void machine_fail(Machine *m, const char *message)
{
    Failure *failure = g_new(Failure, 1);
    *failure = (Failure){m, g_strdup(message)};
    machine_defer(m, fail_now, failure);
}

void machine_add_reset_hook(Machine *m, MachineResetHook hook, void *opaque)
{
    MachineHook added = {hook, opaque};
    g_array_append_val(m->reset_hooks, added);
}

bool machine_reset_state(Machine *m, GError **err)
{
    for (unsigned i = 0; i < m->devices->len; i++) {
        Device *dev = m->devices->pdata[i];
        if (dev->type->reset)
            dev->type->reset(dev);
    }
    if (!machine_vcpus_reset(m, err))
        return false;
    for (unsigned i = 0; i < m->reset_hooks->len; i++) {
        MachineHook *hook = &g_array_index(m->reset_hooks, MachineHook, i);
        if (!hook->f(hook->opaque, err))
            return false;
    }
    return true;
}

void machine_reset_now(Machine *m, MachineCause cause)
{
    g_autoptr(GError) error = NULL;
    control_enter(m);
    MachineStatus status = machine_status(m);
    if (status == MACHINE_SHUTDOWN || !m->start_requested) {
        control_leave(m);
        return;
    }
    machine_vcpus_pause(m);
    drain(m);
    bool ok = machine_reset_state(m, &error);
    if (ok && status == MACHINE_ERROR) {
        set_status(m, MACHINE_PAUSED);
    }
    emit(m, MACHINE_EVENT_RESET, cause);
    if (!ok)
        machine_fail(m, error->message);
    machine_vcpus_resume(m);
    control_leave(m);
}

typedef struct Request {
    Machine *machine;
    MachineCause cause;
} Request;

static void shutdown_now(void *opaque)
{
    Request *request = opaque;
    Machine *m = request->machine;
    control_enter(m);
    MachineStatus status = machine_status(m);
    if (status != MACHINE_SHUTDOWN) {
        if (status == MACHINE_RUNNING)
            halt(m, MACHINE_SHUTDOWN);
        set_status(m, MACHINE_SHUTDOWN);
        emit(m, MACHINE_EVENT_SHUTDOWN, request->cause);
        m->quit = true;
    }
    control_leave(m);
    g_free(request);
}

void machine_shutdown(Machine *m, MachineCause cause)
{
    Request *request = g_new(Request, 1);
    *request = (Request){m, cause};
    machine_defer(m, shutdown_now, request);
}

static void reset_request(void *opaque)
{
    Request *request = opaque;
    __atomic_store_n(&request->machine->reset_pending, 0, __ATOMIC_RELEASE);
    machine_reset_now(request->machine, request->cause);
    g_free(request);
}

void machine_reset(Machine *m, MachineCause cause)
{
    if (m->config->no_reboot && cause == MACHINE_CAUSE_GUEST_RESET) {
        machine_shutdown(m, cause);
        return;
    }
    /* A guest may ask a million times before the main thread runs. */
    if (__atomic_exchange_n(&m->reset_pending, 1, __ATOMIC_ACQ_REL))
        return;
    Request *request = g_new(Request, 1);
    *request = (Request){m, cause};
    machine_defer(m, reset_request, request);
}

void machine_exit(Machine *m, int status)
{
    m->exit_status = status;
    machine_shutdown(m, MACHINE_CAUSE_GUEST_SHUTDOWN);
}

int machine_run(Machine *m)
{
    m->main_thread = pthread_self();
    while (!m->quit)
        g_main_context_iteration(m->context, TRUE);
    return m->exit_status;
}

const MachineConfig *machine_config(const Machine *m)
{
    return m->config;
}

const char *machine_engine_name(const Machine *m)
{
    return m->engine->name;
}

const char *machine_engine_reason(const Machine *m)
{
    return m->engine_reason ? m->engine_reason : "";
}

/* ---- creation and end
 * ------------------------------------------------------------------------------------- */

static bool check_config(const MachineConfig *config, GError **err)
{
    unsigned sockets = MAX(config->sockets, 1), cores = MAX(config->cores, 1);
    unsigned threads = MAX(config->threads, 1);
    if (!config->n_vcpus || config->n_vcpus > VCPU_COUNT_MAX)
        return lodge_fail(err, LODGE_ERROR_INVALID, "%u vCPUs: must be 1 to %d", config->n_vcpus,
                          VCPU_COUNT_MAX);
    if (sockets > VCPU_COUNT_MAX || cores > VCPU_COUNT_MAX || threads > VCPU_COUNT_MAX ||
        sockets * cores * threads != config->n_vcpus)
        return lodge_fail(
            err, LODGE_ERROR_INVALID,
            "CPU topology of %u sockets, %u cores and %u threads does not make %u vCPUs", sockets,
            cores, threads, config->n_vcpus);
    return true;
}

Machine *machine_new_bare(const MachineConfig *config, const VcpuEngine *engine, GError **err)
{
    if (!check_config(config, err))
        return NULL;
    Machine *m = g_new0(Machine, 1);
    m->config = machine_config_copy(config);
    m->config->sockets = MAX(config->sockets, 1);
    m->config->cores = MAX(config->cores, 1);
    m->config->threads = MAX(config->threads, 1);
    m->engine = engine;
    m->context = g_main_context_new();
    m->main_thread = pthread_self();
    m->ram_fd = -1;
    pthread_mutexattr_t recursive;
    pthread_mutexattr_init(&recursive);
    pthread_mutexattr_settype(&recursive, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&m->control, &recursive);
    pthread_mutexattr_destroy(&recursive);
    pthread_mutex_init(&m->lock, NULL);
    pthread_mutex_init(&m->vcpu_lock, NULL);
    pthread_cond_init(&m->vcpu_resume, NULL);
    pthread_cond_init(&m->vcpu_parked, NULL);
    m->handlers = g_array_new(FALSE, FALSE, sizeof(MachineHandler));
    m->reset_hooks = g_array_new(FALSE, FALSE, sizeof(MachineHook));
    m->devices = g_ptr_array_new();
    m->drives = g_array_new(FALSE, TRUE, sizeof(MachineDrive));
    machine_io_init(m);
    machine_clock_init(m);
    if (!machine_memory_init(m, err) || !machine_vcpus_init(m, err) ||
        !machine_memory_attach(m, err)) {
        machine_free(m);
        return NULL;
    }
    return m;
}

static void devices_free(Machine *m)
{
    machine_lock(m);
    while (m->devices->len) {
        Device *dev = g_ptr_array_steal_index(m->devices, m->devices->len - 1);
        device_free(dev);
    }
    machine_unlock(m);
}

void machine_free(Machine *m)
{
    if (!m)
        return;
    m->main_thread = pthread_self();
    machine_vcpus_pause(m);
    machine_clock_run(m, false);
    devices_free(m);
    if (m->close_host)
        m->close_host(m);
    machine_io_free(m);
    machine_vcpus_free(m);
    machine_memory_free(m);
    machine_clock_free(m);
    g_main_context_unref(m->context);
    g_array_unref(m->handlers);
    g_array_unref(m->reset_hooks);
    g_array_unref(m->drives);
    g_ptr_array_unref(m->devices);
    pthread_cond_destroy(&m->vcpu_resume);
    pthread_cond_destroy(&m->vcpu_parked);
    pthread_mutex_destroy(&m->vcpu_lock);
    pthread_mutex_destroy(&m->lock);
    pthread_mutex_destroy(&m->control);
    g_free(m->engine_reason);
    machine_config_free(m->config);
    g_free(m);
}
