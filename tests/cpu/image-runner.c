/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Runs a flat system image (tests/cpu/images) on an engine: real mode, loaded and entered at 0x8000.
 * Around the vCPUs there is RAM, a port for text (0xe9), one for the result (0xf4), a device that writes
 * memory, and for engines without an irqchip a local APIC that knows IPIs and nothing else.
 *
 * usage: image-runner ENGINE[:TUNING] IMAGE [VCPUS [triple]]
 *        TUNING as lodge-vmm --cpu-debug takes it; engine lockstep compares it with the interpreter (lockstep.h)
 * exit:  0 passed, 1 failed, 77 the engine cannot do this here. An engine that its own probe refuses is
 *        tried nevertheless (KVM without VMX or SVM emulates a part of the instructions); then only
 *        passing counts.
 */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "lockstep.h"
#include "vcpu/engine.h"

#define RAM_SIZE   (64u << 20)
#define ENTRY      0x8000u
#define PORT_TEXT  0xe9
#define PORT_EXIT  0xf4
#define PORT_DMA_ADDRESS 0xf8 /* where to write, */
#define PORT_DMA_VALUE 0xfc   /* and what: 32 bits */
#define APIC_BASE  0xfee00000u
#define TIMEOUT_S  20
#define TIMEOUT_TRIED_S 3 /* of an engine that its probe refuses */

typedef struct Apic {
    uint8_t irr[32], isr[32]; /* one bit a vector */
    uint32_t tpr, spurious, icr_high;
} Apic;

typedef struct Board {
    const VcpuEngine *engine;
    VcpuVm *vm;
    Vcpu *vcpu[VCPU_COUNT_MAX];
    unsigned n;
    pthread_mutex_t lock;
    Apic apic[VCPU_COUNT_MAX];
    bool ended, triple;
    uint32_t result, dma_address;
    uint8_t *ram;
} Board;

static void end(Board *b, uint32_t result)
{
    pthread_mutex_lock(&b->lock);
    if (!b->ended)
        b->result = result;
    b->ended = true;
    pthread_mutex_unlock(&b->lock);
    for (unsigned i = 0; i < b->n; i++)
        b->engine->kick(b->vcpu[i]);
}

/* ---- local APICs: interprocessor interrupts only (SDM vol. 3 chapter 11) ---- */

static int highest(const uint8_t *bits)
{
    for (int v = 255; v >= 0; v--)
        if (bits[v / 8] >> (v % 8) & 1)
            return v;
    return -1;
}

static void ipi(Board *b, unsigned to, unsigned mode, unsigned vector)
{
    if (to >= b->n)
        return;
    switch (mode) {
    case 0:
        pthread_mutex_lock(&b->lock);
        b->apic[to].irr[vector / 8] |= 1u << (vector % 8);
        pthread_mutex_unlock(&b->lock);
        b->engine->signal(b->vcpu[to], VCPU_SIGNAL_INTERRUPT, 0);
        break;
    case 4:
        b->engine->signal(b->vcpu[to], VCPU_SIGNAL_NMI, 0);
        break;
    case 5:
        b->engine->signal(b->vcpu[to], VCPU_SIGNAL_INIT, 0);
        break;
    case 6:
        b->engine->signal(b->vcpu[to], VCPU_SIGNAL_SIPI, vector);
        break;
    }
}

static void icr_write(Board *b, unsigned self, uint32_t v)
{
    unsigned mode = v >> 8 & 7, vector = v & 0xff;
    for (unsigned i = 0; i < b->n; i++) {
        bool take = false;
        switch (v >> 18 & 3) {
        case 0:
            take = i == b->apic[self].icr_high >> 24;
            break;
        case 1:
            take = i == self;
            break;
        case 2:
            take = true;
            break;
        case 3:
            take = i != self;
            break;
        }
        if (take)
            ipi(b, i, mode, vector);
    }
}

static void apic_write(Board *b, unsigned self, unsigned reg, uint32_t v)
{
    Apic *a = &b->apic[self];
    int vector;
    switch (reg) {
    case 0x80:
        a->tpr = v;
        b->engine->signal(b->vcpu[self], VCPU_SIGNAL_INTERRUPT, 0);
        break;
    case 0xb0:
        pthread_mutex_lock(&b->lock);
        vector = highest(a->isr);
        if (vector >= 0)
            a->isr[vector / 8] &= ~(1u << (vector % 8));
        pthread_mutex_unlock(&b->lock);
        b->engine->signal(b->vcpu[self], VCPU_SIGNAL_INTERRUPT, 0);
        break;
    case 0xf0:
        a->spurious = v;
        break;
    case 0x300:
        icr_write(b, self, v);
        break;
    case 0x310:
        a->icr_high = v;
        break;
    }
}

static int acknowledge(void *opaque, unsigned self)
{
    Board *b = opaque;
    Apic *a = &b->apic[self];
    pthread_mutex_lock(&b->lock);
    int vector = highest(a->irr), serving = highest(a->isr);
    int floor = MAX(serving >> 4, (int)(a->tpr >> 4));
    if (vector >> 4 <= floor)
        vector = -1;
    if (vector >= 0) {
        a->irr[vector / 8] &= ~(1u << (vector % 8));
        a->isr[vector / 8] |= 1u << (vector % 8);
    }
    pthread_mutex_unlock(&b->lock);
    return vector;
}

/* ---- the bus ---- */

static uint64_t mmio_read(void *opaque, unsigned self, uint64_t gpa, unsigned size)
{
    Board *b = opaque;
    if (gpa == APIC_BASE + 0x20)
        return (uint64_t)self << 24;
    if (gpa == APIC_BASE + 0xf0)
        return b->apic[self].spurious;
    if (gpa - APIC_BASE < 4096)
        return 0;
    return UINT64_MAX;
}

static void mmio_write(void *opaque, unsigned self, uint64_t gpa, unsigned size, uint64_t value)
{
    if (gpa - APIC_BASE < 4096)
        apic_write(opaque, self, gpa & 0xff0, (uint32_t)value);
}

static uint64_t port_read(void *opaque, unsigned self, uint16_t port, unsigned size)
{
    return UINT64_MAX;
}

/* What a device does. */
static void dma(Board *b, uint32_t value)
{
    if (b->dma_address > RAM_SIZE - sizeof(value))
        return;
    memcpy(b->ram + b->dma_address, &value, sizeof(value));
    if (b->engine->ram_dirty)
        b->engine->ram_dirty(b->vm, b->dma_address, sizeof(value));
}

static void port_write(void *opaque, unsigned self, uint16_t port, unsigned size, uint64_t value)
{
    if (port == PORT_TEXT)
        fputc((int)(value & 0xff), stderr);
    else if (port == PORT_EXIT)
        end(opaque, (uint32_t)value);
    else if (port == PORT_DMA_ADDRESS)
        ((Board *)opaque)->dma_address = (uint32_t)value;
    else if (port == PORT_DMA_VALUE)
        dma(opaque, (uint32_t)value);
}

static uint64_t cr8_read(void *opaque, unsigned self)
{
    return ((Board *)opaque)->apic[self].tpr >> 4;
}

static void cr8_write(void *opaque, unsigned self, uint64_t value)
{
    Board *b = opaque;
    b->apic[self].tpr = (uint32_t)value << 4;
    if (b->vcpu[self])
        b->engine->signal(b->vcpu[self], VCPU_SIGNAL_INTERRUPT, 0);
}

static bool apic_msr_read(void *opaque, unsigned self, uint32_t msr, uint64_t *value)
{
    *value = APIC_BASE | 0x800 | (self == 0 ? 0x100 : 0);
    return msr == 0x1b;
}

static bool apic_msr_write(void *opaque, unsigned self, uint32_t msr, uint64_t value)
{
    return msr == 0x1b;
}

/* ---- running ---- */

typedef struct Thread {
    Board *board;
    unsigned index;
    pthread_t id;
} Thread;

static void *vcpu_main(void *opaque)
{
    Thread *t = opaque;
    Board *b = t->board;
    for (;;) {
        GError *err = NULL;
        VcpuExit exit = b->engine->run(b->vcpu[t->index], &err);
        if (exit == VCPU_EXIT_TRIPLE_FAULT) {
            b->triple = true;
            end(b, 0xffff);
        }
        if (exit == VCPU_EXIT_ERROR) {
            fprintf(stderr, "image-runner: vCPU %u: %s\n", t->index, err->message);
            end(b, 0xfffe);
        }
        pthread_mutex_lock(&b->lock);
        bool ended = b->ended;
        pthread_mutex_unlock(&b->lock);
        if (ended)
            return NULL;
    }
}

static int failure = 1; /* the exit status of anything but passing */

static void timed_out(int number)
{
    static const char text[] = "image-runner: the image does not come to an end\n";
    if (write(STDERR_FILENO, text, sizeof(text) - 1) < 0 || failure)
        _exit(failure);
}

static void die(GError *err)
{
    fprintf(stderr, "image-runner: %s\n", err->message);
    exit(failure);
}

static void load(Board *b, const char *path)
{
    GError *err = NULL;
    char *data;
    gsize size;
    b->ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    g_assert(b->ram != MAP_FAILED);
    if (!g_file_get_contents(path, &data, &size, &err))
        die(err);
    g_assert(size <= RAM_SIZE - ENTRY);
    memcpy(b->ram + ENTRY, data, size);
    g_free(data);
    VcpuRamSlot slot = {.size = RAM_SIZE, .hva = b->ram};
    if (!b->engine->set_ram(b->vm, 0, &slot, &err))
        die(err);
}

static void start(Board *b)
{
    GError *err = NULL;
    VcpuState *state = g_new(VcpuState, 1);
    for (unsigned i = 0; i < b->n; i++) {
        if (!(b->vcpu[i] = b->engine->vcpu_new(b->vm, i, &err)))
            die(err);
        if (i != 0)
            continue;
        if (!b->engine->get_state(b->vcpu[i], state, &err))
            die(err);
        state->seg[SEG_CS].selector = 0;
        state->seg[SEG_CS].base = 0;
        state->rip = ENTRY;
        if (!b->engine->set_state(b->vcpu[i], state, &err))
            die(err);
    }
    g_free(state);
}

static const VcpuEngine *engine_named(const char *name)
{
    if (strcmp(name, vcpu_engine_lockstep.name) == 0)
        return &vcpu_engine_lockstep;
    for (const VcpuEngine *const *e = vcpu_engines; *e; e++)
        if (strcmp((*e)->name, name) == 0)
            return *e;
    return NULL;
}

int main(int argc, char **argv)
{
    static Board board;
    Board *b = &board;
    static const VcpuBus bus = {
        .opaque = &board, .port_read = port_read, .port_write = port_write,
        .mmio_read = mmio_read, .mmio_write = mmio_write, .interrupt_acknowledge = acknowledge,
        .cr8_read = cr8_read, .cr8_write = cr8_write, .apic_msr_read = apic_msr_read,
        .apic_msr_write = apic_msr_write,
    };
    if (argc < 3) {
        fprintf(stderr, "usage: image-runner ENGINE[:TUNING] IMAGE [VCPUS [triple]]\n");
        return 1;
    }
    GError *err = NULL;
    VcpuVmConfig config = {.bus = &bus};
    g_auto(GStrv) engine = g_strsplit(argv[1], ":", 2);
    if (engine[1] && !vcpu_tuning_parse(engine[1], &config.tuning, &err))
        die(err);
    if (!(b->engine = engine_named(engine[0]))) {
        fprintf(stderr, "image-runner: there is no engine '%s'\n", engine[0]);
        return 1;
    }
    g_autofree char *why = NULL;
    if (!b->engine->probe(&why)) {
        fprintf(stderr, "image-runner: %s: %s; trying nevertheless\n", argv[1], why);
        failure = 77;
    }
    signal(SIGALRM, timed_out);
    alarm(failure == 77 ? TIMEOUT_TRIED_S : TIMEOUT_S);
    b->n = argc > 3 ? (unsigned)atoi(argv[3]) : 1;
    pthread_mutex_init(&b->lock, NULL);
    config.n_vcpus = config.cores = b->n;
    if (!(b->vm = b->engine->vm_new(&config, &err)))
        die(err);
    load(b, argv[2]);
    start(b);

    Thread threads[VCPU_COUNT_MAX];
    for (unsigned i = 0; i < b->n; i++) {
        threads[i] = (Thread){.board = b, .index = i};
        if (pthread_create(&threads[i].id, NULL, vcpu_main, &threads[i]))
            return 1;
    }
    for (unsigned i = 0; i < b->n; i++)
        pthread_join(threads[i].id, NULL);
    for (unsigned i = 0; i < b->n; i++)
        b->engine->vcpu_free(b->vcpu[i]);
    b->engine->vm_free(b->vm);

    lockstep_summary();
    bool want_triple = argc > 4 && strcmp(argv[4], "triple") == 0;
    if (b->triple || want_triple) {
        fprintf(stderr, "image-runner: %s\n", b->triple ? "triple fault" : "no triple fault");
        return b->triple && want_triple ? 0 : failure;
    }
    if (b->result)
        fprintf(stderr, "image-runner: check %u failed\n", b->result);
    return b->result ? failure : 0;
}
