/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The mirrors of a vCPU: windows, what is mapped in them, and when a process gets and loses one. */
#include <errno.h>
#include <sys/mman.h>
#include <time.h>
#include <x86intrin.h>

#include "vcpu/soft/translate/cache.h"
#include "vcpu/soft/translate/mirror.h"

#define WINDOW_SIZE  (1ull << MIRROR_WINDOW_BITS)
#define GUARD_SIZE   (8ull << 30) /* more than disp32 and what a block adds to a base register */
#define WINDOWS_MAX  6u           /* of one process */
#define SPACES       16u          /* processes; Linux uses 6 PCIDs a CPU, each twice if it isolates its page tables */
#define HOST_WINDOWS 96u          /* TiB reserved in all: a process has 128 */
#define REGIONS      4096u        /* 2 MiB regions of a process that may be mapped; a power of two */
#define REGIONS_MAX  3000u
#define MAP_COUNT    65530u       /* vm.max_map_count, unless /proc/sys says otherwise */
#define REGION_BITS  21

/* What is mapped of 2 MiB of linear addresses. */
typedef struct MirrorRegion {
    uint64_t number;  /* linear >> 21, + 1; 0: free */
    uint64_t pages[8];
    bool large;       /* all of it at once, and perhaps single pages in its place */
    uint32_t large_frame; /* the first guest frame, + 1, if all of it may be written */
    uint32_t *frames; /* guest frame of each single page that may be written, + 1 */
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
    uint64_t on_since;  /* when it got one, by the thread's CPU time ... */
    uint64_t cost;      /* ... what filling and dropping took since */
    uint64_t look;      /* the cost at which to compare them */
    uint64_t allowance; /* ... and what they may take besides their share of the time */
    uint64_t rest;      /* for how long it goes without one if they take more */
    MirrorWindow window[WINDOWS_MAX];
    unsigned n_windows, n_regions, n_maps;
    MirrorRegion *regions;
    uint16_t used[REGIONS_MAX]; /* where in @regions: n_regions of them */
} MirrorSpace;

struct SoftMirror {
    MirrorSpace space[SPACES];
    MirrorSpace *current;
    uint64_t since;     /* when the current one was loaded */
    uint64_t tick;      /* TSC ticks of 1 ms */
    unsigned n_maps, n_windows; /* of all spaces */
    bool at_once;       /* for tests: every process has a mirror, from its start to its end */
    void *stack;        /* for signals */
    stack_t stack_before; /* the thread's outside run */
};

#define STACK_SIZE 65536u
#ifndef SS_AUTODISARM
#define SS_AUTODISARM (1u << 31) /* sigaltstack(2), Linux 4.7; not in every libc's headers */
#endif

static uint8_t *guard;              /* WINDOW_SIZE of nothing, between guards; for all VMs */
static _Atomic unsigned host_windows, host_maps;
static unsigned maps_max;           /* of this process */
static pthread_once_t guard_once = PTHREAD_ONCE_INIT;

static void *reserve(uint64_t size)
{
    void *p = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

/* A page mapped alone makes two pieces of address space out of one: itself and what is behind it. */
static void guard_init(void)
{
    g_autofree char *text = NULL;
    uint64_t count = MAP_COUNT;
    uint8_t *p = reserve(WINDOW_SIZE + 2 * GUARD_SIZE);
    guard = p ? p + GUARD_SIZE : NULL;
    if (g_file_get_contents("/proc/sys/vm/max_map_count", &text, NULL, NULL))
        count = g_ascii_strtoull(text, NULL, 10);
    maps_max = count > 10000 ? (unsigned)(MIN(count, 1u << 20) - 5000) / 3 : 0;
}

/* Whether the vCPU may map another piece: its share, and more while there is enough for all. */
static bool map_allowed(SoftCpu *cpu)
{
    unsigned share = maps_max / soft_vm(cpu)->vm.config.n_vcpus;
    return cpu->mirror->n_maps < share || atomic_load(&host_maps) < maps_max / 2;
}

/* ---- windows ---- */

static void space_off(SoftCpu *cpu, MirrorSpace *s);

static void delta_set(SoftCpu *cpu, unsigned index, const uint8_t *host)
{
    cpu->window_delta[index] = (uintptr_t)host - ((uint64_t)index << MIRROR_WINDOW_BITS);
}

static void deltas_install(SoftCpu *cpu, const MirrorSpace *s, bool on)
{
    for (unsigned i = 0; i < s->n_windows; i++)
        delta_set(cpu, s->window[i].index, on ? s->window[i].host : guard);
}

static uint8_t *window_reserve(SoftCpu *cpu)
{
    SoftMirror *m = cpu->mirror;
    unsigned share = MAX(2, HOST_WINDOWS / soft_vm(cpu)->vm.config.n_vcpus);
    if (m->n_windows >= share || atomic_load(&host_windows) >= HOST_WINDOWS)
        return NULL;
    uint8_t *p = reserve(WINDOW_SIZE + 2 * GUARD_SIZE);
    if (!p)
        return NULL;
    atomic_fetch_add(&host_windows, 1);
    m->n_windows++;
    return p + GUARD_SIZE;
}

static void windows_free(SoftCpu *cpu, MirrorSpace *s)
{
    for (unsigned i = 0; i < s->n_windows; i++)
        munmap(s->window[i].host - GUARD_SIZE, WINDOW_SIZE + 2 * GUARD_SIZE);
    atomic_fetch_sub(&host_windows, s->n_windows);
    cpu->mirror->n_windows -= s->n_windows;
    s->n_windows = 0;
}

static bool window_add(SoftCpu *cpu, MirrorSpace *s, unsigned index)
{
    for (unsigned i = 0; i < s->n_windows; i++)
        if (s->window[i].index == index)
            return true;
    if (s->n_windows == WINDOWS_MAX)
        return false;
    uint8_t *host = window_reserve(cpu);
    for (unsigned i = 0; !host && i < SPACES; i++) { /* from a process that does not run now */
        MirrorSpace *other = &cpu->mirror->space[i];
        if (other == cpu->mirror->current || !other->n_windows)
            continue;
        space_off(cpu, other);
        windows_free(cpu, other);
        host = window_reserve(cpu);
    }
    if (host)
        s->window[s->n_windows++] = (MirrorWindow){index, host};
    return host;
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

static MirrorRegion *region_find(MirrorSpace *s, uint64_t linear, bool add)
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
            s->used[s->n_regions++] = (uint16_t)(i % REGIONS);
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

/*
 * What something took that began at @start: at least @us (the signal is not seen from here), and not more
 * than COST_MAX_US, for what a busy host takes besides must not speak against a mirror.
 */
#define FILL_US 12
#define FAULT_US 6 /* a signal for nothing */
#define UNMAP_US 4
#define COST_MAX_US 400

static void cost_add(const SoftMirror *m, MirrorSpace *s, uint64_t start, unsigned us)
{
    uint64_t least = m->tick * us / 1000, took = __rdtsc() - start + least / 2;
    s->cost += CLAMP(took, least, m->tick * COST_MAX_US / 1000);
}

static void region_clear(MirrorRegion *r)
{
    uint32_t *frames = r->frames;
    if (frames)
        memset(frames, 0, 512 * sizeof(*frames));
    *r = (MirrorRegion){.frames = frames};
}

static void space_drop(SoftMirror *m, MirrorSpace *s)
{
    bool whole = s->n_regions > 16;
    uint64_t start = __rdtsc();
    if (!s->n_regions)
        return;
    for (unsigned i = 0; whole && i < s->n_windows; i++)
        unmap(s->window[i].host, WINDOW_SIZE);
    for (unsigned i = 0; i < s->n_regions; i++) {
        MirrorRegion *r = &s->regions[s->used[i]];
        if (!whole)
            unmap(host_of(s, (r->number - 1) << REGION_BITS), 1u << REGION_BITS);
        region_clear(r);
    }
    cost_add(m, s, start, UNMAP_US * MIN(s->n_regions, 16));
    m->n_maps -= s->n_maps;
    atomic_fetch_sub(&host_maps, s->n_maps);
    s->n_regions = s->n_maps = 0;
}

/* Drops one page (or 2 MiB, if it is part of a large one). */
static void page_drop(const SoftMirror *m, MirrorSpace *s, MirrorRegion *r, uint64_t linear)
{
    unsigned page = (unsigned)(linear >> 12) % 512;
    uint64_t start = __rdtsc();
    if (r->large) {
        unmap(host_of(s, linear & ~(uint64_t)0x1fffff), 1u << REGION_BITS);
        r->large = false;
        r->large_frame = 0;
        memset(r->pages, 0, sizeof(r->pages));
        if (r->frames)
            memset(r->frames, 0, 512 * sizeof(*r->frames));
    } else if (r->pages[page / 64] >> (page % 64) & 1) {
        unmap(host_of(s, linear & ~(uint64_t)4095), 4096);
        r->pages[page / 64] &= ~(1ull << (page % 64));
        if (r->frames)
            r->frames[page] = 0;
    } else {
        return;
    }
    cost_add(m, s, start, UNMAP_US);
}

/* ---- which process ---- */

static void space_off(SoftCpu *cpu, MirrorSpace *s)
{
    if (!s->on)
        return;
    s->on = false;
    space_drop(cpu->mirror, s);
    if (s == cpu->mirror->current) {
        deltas_install(cpu, s, false);
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
    s->needed = cpu->mirror->at_once ? 0 : 4 * cpu->mirror->tick;
    s->allowance = 50 * cpu->mirror->tick;
    s->rest = 100 * cpu->mirror->tick;
    windows_free(cpu, s);
}

static MirrorSpace *space_of(SoftMirror *m, unsigned pcid)
{
    return &m->space[(pcid & 7) | (pcid >> 8 & 8)];
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
    MirrorSpace *s = space_of(m, pcid);
    if (s->pcid != pcid || s->table != table)
        space_reset(cpu, s, pcid, table);
    else if (flushed)
        space_drop(m, s);
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
    if (m && space_of(m, pcid)->pcid == pcid)
        space_drop(m, space_of(m, pcid));
}

void mirror_drop_page(SoftCpu *cpu, unsigned pcid, uint64_t linear)
{
    SoftMirror *m = cpu->mirror;
    MirrorSpace *s = m ? space_of(m, pcid) : NULL;
    if (!s || s->pcid != pcid || !s->n_regions)
        return;
    MirrorRegion *r = region_find(s, linear, false);
    if (r)
        page_drop(m, s, r, linear);
}

void mirror_drop_all(SoftCpu *cpu)
{
    SoftMirror *m = cpu->mirror;
    for (unsigned i = 0; m && i < SPACES; i++)
        space_drop(m, &m->space[i]);
}

/* The page may not be written from here any more. */
static void region_protect(SoftMirror *m, MirrorSpace *s, MirrorRegion *r, uint32_t frame)
{
    uint64_t linear = (r->number - 1) << REGION_BITS;
    if (r->large_frame && frame - r->large_frame < 512)
        page_drop(m, s, r, linear);
    for (unsigned page = 0; r->frames && page < 512; page++)
        if (r->frames[page] == frame)
            page_drop(m, s, r, linear + page * 4096);
}

void mirror_protect(SoftCpu *cpu, uint64_t gpa, bool all)
{
    SoftMirror *m = cpu->mirror;
    if (all)
        mirror_drop_all(cpu);
    for (unsigned i = 0; m && !all && i < SPACES; i++) {
        MirrorSpace *s = &m->space[i];
        for (unsigned k = 0; k < s->n_regions; k++)
            region_protect(m, s, &s->regions[s->used[k]], (uint32_t)(gpa >> 12) + 1);
    }
}

/* ---- getting and losing a mirror ---- */

/* In TSC ticks: a host that gives the thread little time must not make a mirror look cheap. */
static uint64_t thread_time(const SoftMirror *m)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return ((uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000) * m->tick / 1000;
}

/* A fifth of its time went into the mirror: it is better off without, each time for longer. */
static bool costs_too_much(const SoftMirror *m, MirrorSpace *s)
{
    if (s->cost < s->look || m->at_once)
        return false;
    uint64_t now = thread_time(m);
    s->look = s->cost + m->tick;
    if ((s->cost - s->allowance) * 5 > now - s->on_since)
        return true;
    if (now - s->on_since > 1000 * m->tick) { /* what was long ago must not excuse what is now */
        s->on_since = now;
        s->cost = 0;
        s->look = s->allowance;
    }
    return false;
}

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
    s->on_since = thread_time(cpu->mirror);
    s->look = s->allowance;
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
    } else if (costs_too_much(m, s)) {
        s->needed = s->ran + (now - m->since) + s->rest;
        s->rest = MIN(s->rest * 2, 10000 * m->tick);
        s->allowance = 10 * m->tick;
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

static bool frame_note(MirrorRegion *r, uint64_t linear, const SoftUserPage *page)
{
    uint32_t frame = (uint32_t)(page->gpa >> 12) + 1;
    if (page->large) {
        r->large_frame = frame;
        return true;
    }
    if (!r->frames && !(r->frames = g_try_new0(uint32_t, 512)))
        return false;
    r->frames[(linear >> 12) % 512] = frame;
    return true;
}

/* The linear address that host address @at of a window stands for; UINT64_MAX: it is in none. */
static uint64_t linear_of(const MirrorSpace *s, uint64_t at)
{
    for (unsigned i = 0; i < s->n_windows; i++)
        if (at - (uintptr_t)s->window[i].host < WINDOW_SIZE)
            return (uint64_t)s->window[i].index << MIRROR_WINDOW_BITS |
                   (at - (uintptr_t)s->window[i].host);
    return UINT64_MAX;
}

/* Something was used where there is no window. Too far spread: off at the next chance, and for good. */
static void window_missing(SoftCpu *cpu, MirrorSpace *s, uint64_t at)
{
    SoftMirror *m = cpu->mirror;
    if (at - (uintptr_t)guard >= WINDOW_SIZE || windows_scan(cpu, s))
        return;
    s->rest = UINT64_MAX / 4;
    s->cost += m->at_once ? 0 : UINT64_MAX / 16;
}

static bool fill(SoftCpu *cpu, MirrorSpace *s, uint64_t linear, unsigned access)
{
    SoftMirror *m = cpu->mirror;
    uint64_t size = 4096;
    SoftUserPage page;

    if (!soft_user_page(cpu, linear, access, &page))
        return false;
    if (!map_allowed(cpu) || s->n_regions >= REGIONS_MAX)
        for (unsigned i = 0; i < SPACES; i++)
            space_drop(m, &m->space[i]);
    MirrorRegion *r = region_find(s, linear, true);
    if (page.large) {
        linear &= ~(uint64_t)0x1fffff;
        size = 1u << REGION_BITS;
        r->large = true;
    } else {
        r->pages[(linear >> 12) % 512 / 64] |= 1ull << ((linear >> 12) % 64);
    }
    s->n_maps++;
    m->n_maps++;
    atomic_fetch_add(&host_maps, 1);
    vcpu_count(&cpu->stats.mirror_fills, 1);
    return (!page.writable || frame_note(r, linear, &page)) &&
           map_again(soft_vm(cpu), page.host, size, page.writable, host_of(s, linear));
}

bool mirror_fill(SoftCpu *cpu, uint64_t at, unsigned access)
{
    SoftMirror *m = cpu->mirror;
    MirrorSpace *s = m ? m->current : NULL;
    uint64_t start = __rdtsc();

    if (!s || !s->on)
        return false;
    uint64_t linear = linear_of(s, at);
    if (linear == UINT64_MAX)
        window_missing(cpu, s, at);
    bool done = linear != UINT64_MAX && fill(cpu, s, linear & ~(uint64_t)4095, access);
    cost_add(m, s, start, done ? FILL_US : FAULT_US);
    return done;
}

/* ---- lifetime ---- */

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
    m->at_once = vm->vm.config.tuning.mirror_now;
    m->stack = mmap(NULL, STACK_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (m->stack == MAP_FAILED) {
        g_free(m);
        return;
    }
    for (unsigned i = 0; i < SPACES; i++)
        m->space[i].pcid = UINT32_MAX;
    cpu->mirror = m;
}

void mirror_free(SoftCpu *cpu)
{
    SoftMirror *m = cpu->mirror;
    if (!m)
        return;
    for (unsigned i = 0; i < SPACES; i++) {
        space_reset(cpu, &m->space[i], 0, 0);
        for (unsigned k = 0; m->space[i].regions && k < REGIONS; k++)
            g_free(m->space[i].regions[k].frames);
        g_free(m->space[i].regions);
    }
    munmap(m->stack, STACK_SIZE);
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
    if (sigaltstack(&stack, &m->stack_before) < 0)
        g_error("sigaltstack: %s", g_strerror(errno));
    sigemptyset(&set);
    sigaddset(&set, SIGSEGV);
    sigaddset(&set, SIGBUS);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    mirror_thread_signals(cpu);
}

void mirror_thread_end(SoftCpu *cpu)
{
    SoftMirror *m = cpu->mirror;
    /* The thread's own: a sanitizer, for one, unmaps at the thread's end what is set then. */
    if (m && sigaltstack(&m->stack_before, NULL) < 0)
        g_error("sigaltstack: %s", g_strerror(errno));
}
