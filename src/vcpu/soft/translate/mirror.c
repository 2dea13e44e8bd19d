/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The mirrors of a vCPU: windows, what is mapped in them, and when a process gets and loses one. */
#include <errno.h>
#include <sys/mman.h>
#include <x86intrin.h>

#include "vcpu/soft/translate/cache.h"
#include "vcpu/soft/translate/mirror.h"

#define WINDOW_SIZE  (1ull << MIRROR_WINDOW_BITS)
#define GUARD_SIZE   (8ull << 30) /* more than disp32 and what a block adds to a base register */
#define WINDOWS_MAX  6u           /* of one process */
#define SPACES       8u           /* processes; Linux uses 6 PCIDs a CPU */
#define HOST_WINDOWS 96u          /* TiB reserved in all: a process has 128 */
#define REGIONS      4096u        /* 2 MiB regions of a process that may be mapped; a power of two */
#define REGIONS_MAX  3000u
#define MAPS_MAX     40000u       /* pieces of a VM: vm.max_map_count is 65530 */
#define REGION_BITS  21

/* What is mapped of 2 MiB of linear addresses. */
typedef struct MirrorRegion {
    uint64_t number; /* linear >> 21, + 1; 0: free */
    uint64_t pages[8];
    bool large; /* all of it at once */
} MirrorRegion;

typedef struct MirrorWindow {
    unsigned index; /* linear >> 40 */
    uint8_t *host;
} MirrorWindow;

/* One guest address space. Times are in host TSC ticks. */
typedef struct MirrorSpace {
    unsigned pcid;
    uint64_t table;     /* CR3's page table address */
    bool on;
    uint64_t ran;       /* on this vCPU, before @since */
    uint64_t needed;    /* how long it has to run until it gets a mirror */
    uint64_t on_since, cost; /* since it has one: what filling and dropping took */
    MirrorWindow window[WINDOWS_MAX];
    unsigned n_windows, n_regions, n_maps;
    MirrorRegion *regions;
} MirrorSpace;

struct SoftMirror {
    MirrorSpace space[SPACES];
    MirrorSpace *current;
    uint64_t since;     /* when the current one was loaded */
    uint64_t tick;      /* TSC ticks of 1 ms */
    uint64_t *writable; /* a bit for each page of guest RAM (by slot, see page_bit): mapped writable */
    uint64_t n_bits, first_bit[VCPU_RAM_SLOTS_MAX];
    void *stack;        /* for signals */
};

#define STACK_SIZE 65536u
#ifndef SS_AUTODISARM
#define SS_AUTODISARM (1u << 31) /* sigaltstack(2), Linux 4.7; not in every libc's headers */
#endif

static uint8_t *guard;              /* WINDOW_SIZE of nothing, between guards; for all VMs */
static _Atomic unsigned host_windows;
static pthread_once_t guard_once = PTHREAD_ONCE_INIT;

static void *reserve(uint64_t size)
{
    void *p = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

static void guard_init(void)
{
    uint8_t *p = reserve(WINDOW_SIZE + 2 * GUARD_SIZE);
    guard = p ? p + GUARD_SIZE : NULL;
}

/* ---- windows ---- */

static void delta_set(SoftCpu *cpu, unsigned index, const uint8_t *host)
{
    cpu->window_delta[index] = (uintptr_t)host - ((uint64_t)index << MIRROR_WINDOW_BITS);
}

static void deltas_install(SoftCpu *cpu, const MirrorSpace *s, bool on)
{
    for (unsigned i = 0; i < s->n_windows; i++)
        delta_set(cpu, s->window[i].index, on ? s->window[i].host : guard);
}

static bool window_add(SoftCpu *cpu, MirrorSpace *s, unsigned index)
{
    for (unsigned i = 0; i < s->n_windows; i++)
        if (s->window[i].index == index)
            return true;
    if (s->n_windows == WINDOWS_MAX)
        return false;
    if (atomic_fetch_add(&host_windows, 1) >= HOST_WINDOWS) {
        atomic_fetch_sub(&host_windows, 1);
        return false;
    }
    uint8_t *p = reserve(WINDOW_SIZE + 2 * GUARD_SIZE);
    if (!p) {
        atomic_fetch_sub(&host_windows, 1);
        return false;
    }
    s->window[s->n_windows++] = (MirrorWindow){index, p + GUARD_SIZE};
    return true;
}

/* A window for each part of the user half that the top page table has something in. */
static bool windows_scan(SoftCpu *cpu, MirrorSpace *s)
{
    uint64_t top[256];
    unsigned before = s->n_windows;
    if (!soft_physical_read(soft_vm(cpu), s->table, top, sizeof(top)))
        return false;
    for (unsigned i = 0; i < 256; i++)
        if ((top[i] & 5) == 5 && !window_add(cpu, s, i / 2)) /* present, user; 512 GiB each */
            return false;
    if (s->n_windows != before)
        deltas_install(cpu, s, true);
    return s->n_windows != 0;
}

/* ---- what is mapped ---- */

static MirrorRegion *region_find(const MirrorSpace *s, uint64_t linear, bool add)
{
    uint64_t number = (linear >> REGION_BITS) + 1;
    for (unsigned i = (unsigned)(number * 0x9e3779b97f4a7c15u >> 52);; i++) {
        MirrorRegion *r = &s->regions[i % REGIONS];
        if (r->number == number)
            return r;
        if (!r->number) {
            if (!add)
                return NULL;
            r->number = number;
            return r;
        }
    }
}

static uint8_t *host_of(const MirrorSpace *s, uint64_t linear)
{
    for (unsigned i = 0; i < s->n_windows; i++)
        if (s->window[i].index == linear >> MIRROR_WINDOW_BITS)
            return s->window[i].host + (linear & (WINDOW_SIZE - 1));
    return NULL;
}

static void unmap(uint8_t *at, uint64_t size)
{
    if (at && mmap(at, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED)
        g_error("cannot unmap %" G_GUINT64_FORMAT " bytes of a mirror: %s", size, g_strerror(errno));
}

static void space_drop(MirrorSpace *s)
{
    if (!s->n_regions)
        return;
    uint64_t start = __rdtsc();
    if (s->n_regions > 16)
        for (unsigned i = 0; i < s->n_windows; i++)
            unmap(s->window[i].host, WINDOW_SIZE);
    for (unsigned i = 0; i < REGIONS; i++) {
        MirrorRegion *r = &s->regions[i];
        if (!r->number)
            continue;
        if (s->n_regions <= 16)
            unmap(host_of(s, (r->number - 1) << REGION_BITS), 1u << REGION_BITS);
        *r = (MirrorRegion){0};
    }
    s->n_regions = s->n_maps = 0;
    s->cost += __rdtsc() - start;
}

static void writable_clear(SoftMirror *m)
{
    memset(m->writable, 0, (m->n_bits + 63) / 64 * 8);
}

static uint64_t page_bit(const SoftMirror *m, const SoftVm *vm, uint64_t gpa)
{
    for (unsigned i = 0; i < vm->slots_used; i++)
        if (gpa - vm->vm.ram[i].gpa < vm->vm.ram[i].size)
            return m->first_bit[i] + ((gpa - vm->vm.ram[i].gpa) >> 12);
    return UINT64_MAX;
}

/* ---- which process ---- */

static void space_off(SoftCpu *cpu, MirrorSpace *s)
{
    if (!s->on)
        return;
    s->on = false;
    space_drop(s);
    deltas_install(cpu, s, false);
    if (s == cpu->mirror->current) {
        cpu->mirror_on = false;
        soft_fetch_ids_forget(cpu);
    }
}

static void space_reset(SoftCpu *cpu, MirrorSpace *s, unsigned pcid, uint64_t table)
{
    space_off(cpu, s);
    s->pcid = pcid;
    s->table = table;
    s->ran = s->cost = 0;
    s->needed = 4 * cpu->mirror->tick;
    for (unsigned i = 0; i < s->n_windows; i++) {
        munmap(s->window[i].host - GUARD_SIZE, WINDOW_SIZE + 2 * GUARD_SIZE);
        atomic_fetch_sub(&host_windows, 1);
    }
    s->n_windows = 0;
}

static void space_leave(SoftCpu *cpu)
{
    SoftMirror *m = cpu->mirror;
    if (!m->current)
        return;
    m->current->ran += __rdtsc() - m->since;
    if (m->current->on)
        deltas_install(cpu, m->current, false);
    m->current = NULL;
    cpu->mirror_on = false;
}

void mirror_load_cr3(SoftCpu *cpu, bool flushed)
{
    SoftMirror *m = cpu->mirror;
    if (!m)
        return;
    space_leave(cpu);
    if (!(cpu->cr4 & CR4_PCIDE) || !(cpu->mode & SOFT_MODE_LONG))
        return;
    unsigned pcid = cpu->cr3 & 0xfff;
    uint64_t table = cpu->cr3 & 0x000ffffffffff000u;
    MirrorSpace *s = &m->space[pcid % SPACES];
    if (s->pcid != pcid || s->table != table)
        space_reset(cpu, s, pcid, table);
    else if (flushed)
        space_drop(s);
    m->current = s;
    m->since = __rdtsc();
    if (s->on) {
        deltas_install(cpu, s, true);
        cpu->mirror_on = true;
    }
}

void mirror_drop_pcid(SoftCpu *cpu, unsigned pcid)
{
    SoftMirror *m = cpu->mirror;
    if (m && m->space[pcid % SPACES].pcid == pcid)
        space_drop(&m->space[pcid % SPACES]);
}

void mirror_drop_page(SoftCpu *cpu, unsigned pcid, uint64_t linear)
{
    SoftMirror *m = cpu->mirror;
    if (!m || m->space[pcid % SPACES].pcid != pcid || !m->space[pcid % SPACES].n_regions)
        return;
    MirrorSpace *s = &m->space[pcid % SPACES];
    MirrorRegion *r = region_find(s, linear, false);
    unsigned page = (unsigned)(linear >> 12) % 512;
    if (!r)
        return;
    uint64_t start = __rdtsc();
    if (r->large) {
        unmap(host_of(s, linear & ~(uint64_t)0x1fffff), 1u << REGION_BITS);
        r->large = false;
        memset(r->pages, 0, sizeof(r->pages));
    } else if (r->pages[page / 64] >> (page % 64) & 1) {
        unmap(host_of(s, linear & ~(uint64_t)4095), 4096);
        r->pages[page / 64] &= ~(1ull << (page % 64));
    }
    s->cost += __rdtsc() - start;
}

void mirror_drop_all(SoftCpu *cpu)
{
    SoftMirror *m = cpu->mirror;
    if (!m)
        return;
    for (unsigned i = 0; i < SPACES; i++)
        space_drop(&m->space[i]);
    writable_clear(m);
}

void mirror_protect(SoftCpu *cpu, uint64_t gpa, bool all)
{
    SoftMirror *m = cpu->mirror;
    if (!m)
        return;
    uint64_t bit = page_bit(m, soft_vm(cpu), gpa);
    if (all || (bit < m->n_bits && (m->writable[bit / 64] >> (bit % 64) & 1)))
        mirror_drop_all(cpu);
}

/* ---- getting and losing a mirror ---- */

static void promote(SoftCpu *cpu, MirrorSpace *s)
{
    if (!s->regions)
        s->regions = g_try_new0(MirrorRegion, REGIONS);
    if (!s->regions || !windows_scan(cpu, s)) {
        s->needed = UINT64_MAX;
        return;
    }
    s->on = true;
    s->cost = 0;
    s->on_since = __rdtsc();
    deltas_install(cpu, s, true);
    cpu->mirror_on = true;
    soft_fetch_ids_forget(cpu);
}

bool mirror_ready(SoftCpu *cpu)
{
    SoftMirror *m = cpu->mirror;
    MirrorSpace *s = m ? m->current : NULL;
    if (!s || cpu->mmu != SOFT_MMU_USER || cpu->system->data_breakpoints)
        return false;
    uint64_t now = __rdtsc();
    if (!s->on) {
        if (s->ran + (now - m->since) < s->needed)
            return false;
        promote(cpu, s);
    } else if (s->cost > 8 * m->tick && s->cost * 4 > now - s->on_since) {
        /* A quarter of its time went into the mirror: it is better off without, for a good while. */
        s->needed = s->ran + (now - m->since) + 4000 * m->tick;
        space_off(cpu, s);
    }
    return cpu->mirror_on;
}

/* ---- filling ---- */

/* Maps @size bytes of RAM at @host once more, at @to. */
static bool map_again(SoftVm *vm, uint8_t *host, uint64_t size, bool writable, uint8_t *to)
{
    if (!writable)
        host = soft_ram_read_only(vm, host);
    return host && mremap(host, 0, size, MREMAP_MAYMOVE | MREMAP_FIXED, to) != MAP_FAILED;
}

static void writable_note(SoftCpu *cpu, uint64_t gpa, uint64_t size)
{
    SoftMirror *m = cpu->mirror;
    uint64_t bit = page_bit(m, soft_vm(cpu), gpa);
    for (uint64_t i = 0; i < size >> 12 && bit + i < m->n_bits; i++)
        m->writable[(bit + i) / 64] |= 1ull << ((bit + i) % 64);
}

bool mirror_fill(SoftCpu *cpu, uint64_t at, unsigned access)
{
    SoftMirror *m = cpu->mirror;
    MirrorSpace *s = m ? m->current : NULL;
    uint64_t start = __rdtsc(), linear = 0, size = 4096;
    SoftUserPage page;
    bool found = false;

    if (!s || !s->on)
        return false;
    for (unsigned i = 0; i < s->n_windows && !found; i++) {
        found = at - (uintptr_t)s->window[i].host < WINDOW_SIZE;
        linear = (uint64_t)s->window[i].index << MIRROR_WINDOW_BITS | (at - (uintptr_t)s->window[i].host);
    }
    if (!found) {
        if (at - (uintptr_t)guard < WINDOW_SIZE && !windows_scan(cpu, s))
            s->needed = UINT64_MAX; /* too far spread: off at the next chance */
        return false;
    }
    linear &= ~(uint64_t)4095;
    if (!soft_user_page(cpu, linear, access, &page))
        return false;
    MirrorRegion *r = region_find(s, linear, true);
    if (page.large) {
        linear &= ~(uint64_t)0x1fffff;
        size = 1u << REGION_BITS;
    }
    if (!map_again(soft_vm(cpu), page.host, size, page.writable, host_of(s, linear)))
        return false;
    bool fresh = !r->large;
    for (unsigned i = 0; i < 8; i++)
        fresh = fresh && !r->pages[i];
    s->n_regions += fresh;
    if (page.large)
        r->large = true;
    else
        r->pages[(linear >> 12) % 512 / 64] |= 1ull << ((linear >> 12) % 64);
    if (page.writable)
        writable_note(cpu, page.gpa, size);
    if (++s->n_maps > MAPS_MAX / soft_vm(cpu)->vm.config.n_vcpus || s->n_regions > REGIONS_MAX) {
        s->cost += 1000 * m->tick;
        space_drop(s);
    }
    s->cost += __rdtsc() - start + m->tick / 200; /* the signal itself: 5 us */
    return true;
}

/* ---- lifetime ---- */

void mirror_ram_changed(SoftCpu *cpu)
{
    SoftMirror *m = cpu->mirror;
    SoftVm *vm = soft_vm(cpu);
    if (!m)
        return;
    for (unsigned i = 0; i < SPACES; i++)
        space_drop(&m->space[i]);
    m->n_bits = 0;
    for (unsigned i = 0; i < vm->slots_used; i++) {
        m->first_bit[i] = m->n_bits;
        m->n_bits += vm->vm.ram[i].size >> 12;
    }
    g_free(m->writable);
    m->writable = g_new0(uint64_t, m->n_bits / 64 + 1);
}

void mirror_init(SoftCpu *cpu)
{
    SoftVm *vm = soft_vm(cpu);
    pthread_once(&guard_once, guard_init);
    for (unsigned i = 0; i < 256; i++)
        delta_set(cpu, i, guard);
    if (!guard || vm->vm.config.tuning.no_mirror)
        return;
    SoftMirror *m = g_try_new0(SoftMirror, 1);
    if (!m)
        return;
    m->tick = vcpu_host_tsc_khz();
    m->stack = mmap(NULL, STACK_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (m->stack == MAP_FAILED) {
        g_free(m);
        return;
    }
    for (unsigned i = 0; i < SPACES; i++)
        m->space[i].pcid = UINT32_MAX;
    cpu->mirror = m;
    mirror_ram_changed(cpu);
}

void mirror_free(SoftCpu *cpu)
{
    SoftMirror *m = cpu->mirror;
    if (!m)
        return;
    for (unsigned i = 0; i < SPACES; i++) {
        space_reset(cpu, &m->space[i], 0, 0);
        g_free(m->space[i].regions);
    }
    munmap(m->stack, STACK_SIZE);
    g_free(m->writable);
    g_free(m);
    cpu->mirror = NULL;
}

void mirror_thread_start(SoftCpu *cpu)
{
    SoftMirror *m = cpu->mirror;
    sigset_t set;
    if (!m)
        return;
    /* Disarmed while a handler runs: RSP is the guest's, and the kernel must not take it for this stack. */
    stack_t stack = {.ss_sp = m->stack, .ss_size = STACK_SIZE, .ss_flags = (int)SS_AUTODISARM};
    if (sigaltstack(&stack, NULL) < 0)
        g_error("sigaltstack: %s", g_strerror(errno));
    sigemptyset(&set);
    sigaddset(&set, SIGSEGV);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    mirror_thread_signals(cpu);
}
