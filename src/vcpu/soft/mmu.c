/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Linear to guest physical addresses. Three levels: the first-level TLB in SoftCpu, one array per kind
 * of data access, which handlers look into by themselves; a small one for instruction fetches; and a
 * second level that holds walks for all kinds, tagged by PCID so that it outlives CR3 writes.
 */
#include "base/error.h"
#include "vcpu/soft/translate/mirror.h"
#include "vcpu/soft/vm.h"

#define FETCH_SIZE  256u
#define SECOND_SETS 2048u
#define SECOND_WAYS 4u
#define PCIDS       4096u

/* Flags in SoftTlbEntry.gpa. */
#define ENTRY_GLOBAL 1u
#define ENTRY_LARGE  2u

typedef struct FetchEntry {
    uint64_t tag; /* linear page | FETCH_* */
    uint64_t gpa;
    const uint8_t *host;
    bool global;
} FetchEntry;

#define FETCH_VALID 1u
#define FETCH_USER  2u

typedef struct SecondEntry {
    uint64_t linear; /* page address */
    uint64_t walk;   /* key << 56 | guest physical page | SOFT_PTE_* but the key */
    uint32_t tag;    /* 0: empty */
} SecondEntry;

#define WALK_PAGE      0x00fffffffffff000ull
#define WALK_KEY_SHIFT 56

struct SoftMmu {
    uint64_t filled[SOFT_MMU_COUNT][SOFT_TLB_SIZE / 64]; /* slots of the first level in use */
    FetchEntry fetch[FETCH_SIZE];
    uint64_t ids_filled[2][SOFT_FETCH_IDS / 64]; /* slots of SoftCpu.fetch_ids in use ... */
    uint64_t ids_global[2][SOFT_FETCH_IDS / 64]; /* ... for global pages */
    SecondEntry second[SECOND_SETS][SECOND_WAYS];
    uint8_t victim[SECOND_SETS];
    uint32_t pcid_tag[PCIDS]; /* what entries of that PCID carry; not above tag_floor: none yet */
    uint32_t global_tag, current_tag, tag_floor, next_tag;
    /* Which 2 MiB and 1 GiB regions (hashed; by half) may have fragments of large pages cached. */
    uint64_t large[2][4], huge[2][4];
};

/* ---- tags ---- */

static uint32_t new_tag(SoftCpu *cpu)
{
    struct SoftMmu *m = cpu->mmu_private;
    if (m->next_tag == UINT32_MAX) {
        memset(m->second, 0, sizeof(m->second));
        memset(m->pcid_tag, 0, sizeof(m->pcid_tag));
        m->tag_floor = 0;
        m->next_tag = 1;
        m->global_tag = 1;
        m->current_tag = 0;
    }
    return ++m->next_tag;
}

static uint32_t tag_of_pcid(SoftCpu *cpu, unsigned pcid)
{
    struct SoftMmu *m = cpu->mmu_private;
    if (m->pcid_tag[pcid] <= m->tag_floor)
        m->pcid_tag[pcid] = new_tag(cpu);
    return m->pcid_tag[pcid];
}

static unsigned current_pcid(const SoftCpu *cpu)
{
    return cpu->cr4 & CR4_PCIDE ? cpu->cr3 & 0xfff : 0;
}

/* ---- flushing ---- */

static void epoch_advance(SoftCpu *cpu)
{
    if (++cpu->fetch_epoch == 0)
        cpu->fetch_epoch = 1;
}

static void entry_clear(SoftCpu *cpu, unsigned mmu, unsigned slot)
{
    cpu->tlb[mmu][slot].read_tag = cpu->tlb[mmu][slot].write_tag = SOFT_TLB_INVALID(slot);
    cpu->mmu_private->filled[mmu][slot / 64] &= ~(1ull << (slot % 64));
}

static void data_clear(SoftCpu *cpu, unsigned keep)
{
    struct SoftMmu *m = cpu->mmu_private;
    for (unsigned mmu = 0; mmu < SOFT_MMU_COUNT; mmu++)
        for (unsigned w = 0; w < SOFT_TLB_SIZE / 64; w++)
            for (uint64_t bits = m->filled[mmu][w]; bits; bits &= bits - 1) {
                unsigned slot = w * 64 + (unsigned)__builtin_ctzll(bits);
                if (!(cpu->tlb[mmu][slot].gpa & keep))
                    entry_clear(cpu, mmu, slot);
            }
}

/* ---- ids of code pages ---- */

void soft_fetch_id_set(SoftCpu *cpu, uint64_t linear, bool user, uint32_t id)
{
    struct SoftMmu *m = cpu->mmu_private;
    unsigned slot = soft_fetch_slot(linear);
    uint64_t bit = 1ull << (slot % 64);
    const FetchEntry *e = &m->fetch[(linear >> 12) % FETCH_SIZE];
    cpu->fetch_ids[user][slot] = id;
    m->ids_filled[user][slot / 64] |= bit;
    if (e->tag && e->global)
        m->ids_global[user][slot / 64] |= bit;
    else
        m->ids_global[user][slot / 64] &= ~bit;
}

static void fetch_ids_clear(SoftCpu *cpu, bool keep_global)
{
    struct SoftMmu *m = cpu->mmu_private;
    for (unsigned user = 0; user < 2; user++)
        for (unsigned w = 0; w < SOFT_FETCH_IDS / 64; w++) {
            uint64_t drop = m->ids_filled[user][w] & ~(keep_global ? m->ids_global[user][w] : 0);
            m->ids_filled[user][w] &= ~drop;
            for (; drop; drop &= drop - 1)
                cpu->fetch_ids[user][w * 64 + (unsigned)__builtin_ctzll(drop)] = 0;
        }
}

void soft_fetch_ids_forget(SoftCpu *cpu)
{
    fetch_ids_clear(cpu, false);
}

/* Clears the first level: all of it, or all but what has one of the flags @keep. */
static void first_clear(SoftCpu *cpu, unsigned keep)
{
    struct SoftMmu *m = cpu->mmu_private;
    data_clear(cpu, keep);
    for (unsigned i = 0; i < FETCH_SIZE; i++)
        if (!(keep & ENTRY_GLOBAL) || !m->fetch[i].global)
            m->fetch[i].tag = 0;
    fetch_ids_clear(cpu, keep & ENTRY_GLOBAL);
    epoch_advance(cpu);
}

void soft_tlb_flush(SoftCpu *cpu, bool global)
{
    struct SoftMmu *m = cpu->mmu_private;
    if (global) {
        m->tag_floor = m->next_tag;
        m->global_tag = new_tag(cpu);
        memset(m->large, 0, sizeof(m->large));
        memset(m->huge, 0, sizeof(m->huge));
    } else {
        m->pcid_tag[current_pcid(cpu)] = new_tag(cpu);
    }
    m->current_tag = tag_of_pcid(cpu, current_pcid(cpu));
    first_clear(cpu, global ? 0 : ENTRY_GLOBAL);
    if (!global) {
        mirror_drop_pcid(cpu, current_pcid(cpu));
        return;
    }
    mirror_drop_all(cpu);
    mirror_load_cr3(cpu, true); /* CR3, CR4.PCIDE or the paging mode may be others now */
}

uint32_t soft_pkru(const SoftCpu *cpu)
{
    return cpu->system->pkru;
}

void soft_pkru_set(SoftCpu *cpu, uint32_t pkru)
{
    soft_keys_set(cpu, false, pkru);
}

/* Only the first level holds rights; the second keeps each page's key. Keys do not guard fetches. */
void soft_keys_set(SoftCpu *cpu, bool supervisor, uint32_t rights)
{
    SoftSystem *s = cpu->system;
    uint32_t old = supervisor ? (uint32_t)s->msr.pkrs : s->pkru;
    if (supervisor)
        s->msr.pkrs = rights;
    else
        s->pkru = rights;
    if (old == rights || !(cpu->cr4 & (supervisor ? CR4_PKS : CR4_PKE)))
        return;
    data_clear(cpu, 0);
    if (!supervisor && ((old ^ rights) & 3)) /* key 0's: see soft_user_page */
        mirror_drop_all(cpu);
}

void soft_tlb_reset(SoftCpu *cpu)
{
    soft_tlb_flush(cpu, true);
}

void soft_tlb_load_cr3(SoftCpu *cpu, uint64_t cr3, bool keep)
{
    struct SoftMmu *m = cpu->mmu_private;
    cpu->cr3 = cr3;
    unsigned pcid = current_pcid(cpu);
    if (!keep)
        m->pcid_tag[pcid] = new_tag(cpu);
    m->current_tag = tag_of_pcid(cpu, pcid);
    first_clear(cpu, ENTRY_GLOBAL);
    mirror_load_cr3(cpu, !keep);
}

void soft_tlb_flush_pcid(SoftCpu *cpu, unsigned pcid)
{
    if (pcid == current_pcid(cpu))
        soft_tlb_flush(cpu, false);
    else
        cpu->mmu_private->pcid_tag[pcid] = 0;
    mirror_drop_pcid(cpu, pcid);
}

static unsigned second_set(uint64_t linear)
{
    return (unsigned)((linear >> 12) ^ (linear >> 23)) % SECOND_SETS;
}

static void filter_add(uint64_t filter[2][4], uint64_t linear, unsigned shift)
{
    uint64_t region = linear >> shift;
    filter[linear >> 63][region / 64 % 4] |= 1ull << (region % 64);
}

static bool filter_has(uint64_t filter[2][4], uint64_t linear, unsigned shift)
{
    uint64_t region = linear >> shift;
    return filter[linear >> 63][region / 64 % 4] >> (region % 64) & 1;
}

static bool maybe_large(SoftCpu *cpu, uint64_t linear)
{
    struct SoftMmu *m = cpu->mmu_private;
    return filter_has(m->large, linear, 21) || filter_has(m->huge, linear, 30);
}

static void second_drop(SoftCpu *cpu, uint64_t linear, uint32_t tag, bool global)
{
    struct SoftMmu *m = cpu->mmu_private;
    SecondEntry *set = m->second[second_set(linear)];
    for (unsigned i = 0; i < SECOND_WAYS; i++)
        if (set[i].linear == linear &&
            (set[i].tag == tag || (global && set[i].tag == m->global_tag)))
            set[i].tag = 0;
}

void soft_tlb_flush_page(SoftCpu *cpu, uint64_t linear)
{
    struct SoftMmu *m = cpu->mmu_private;
    /* A fragment of a large page: its other fragments must go too, and are not found one by one. */
    if (maybe_large(cpu, linear)) {
        soft_tlb_flush(cpu, true);
        return;
    }
    linear &= ~(uint64_t)0xfff;
    unsigned slot = (linear >> 12) & (SOFT_TLB_SIZE - 1);
    for (unsigned mmu = 0; mmu < SOFT_MMU_COUNT; mmu++)
        entry_clear(cpu, mmu, slot);
    m->fetch[(linear >> 12) % FETCH_SIZE].tag = 0;
    cpu->fetch_ids[0][soft_fetch_slot(linear)] = cpu->fetch_ids[1][soft_fetch_slot(linear)] = 0;
    second_drop(cpu, linear, m->current_tag, true);
    mirror_drop_page(cpu, current_pcid(cpu), linear);
    epoch_advance(cpu);
}

void soft_tlb_flush_pcid_page(SoftCpu *cpu, unsigned pcid, uint64_t linear)
{
    if (pcid == current_pcid(cpu)) {
        soft_tlb_flush_page(cpu, linear);
    } else if (maybe_large(cpu, linear)) {
        cpu->mmu_private->pcid_tag[pcid] = 0;
        mirror_drop_pcid(cpu, pcid);
    } else {
        second_drop(cpu, linear & ~(uint64_t)0xfff, tag_of_pcid(cpu, pcid), false);
        mirror_drop_page(cpu, pcid, linear);
    }
}

void soft_tlb_protect(SoftCpu *cpu, uint64_t gpa, bool all)
{
    struct SoftMmu *m = cpu->mmu_private;
    for (unsigned mmu = 0; mmu < SOFT_MMU_COUNT; mmu++)
        for (unsigned w = 0; w < SOFT_TLB_SIZE / 64; w++)
            for (uint64_t bits = m->filled[mmu][w]; bits; bits &= bits - 1) {
                unsigned slot = w * 64 + (unsigned)__builtin_ctzll(bits);
                SoftTlbEntry *e = &cpu->tlb[mmu][slot];
                if (all || (e->gpa & ~(uint64_t)0xfff) == gpa)
                    e->write_tag = SOFT_TLB_INVALID(slot);
            }
    mirror_protect(cpu, gpa, all);
}

/* ---- the second level ---- */

static bool second_find(SoftCpu *cpu, uint64_t page, SoftWalk *walk)
{
    struct SoftMmu *m = cpu->mmu_private;
    const SecondEntry *set = m->second[second_set(page)];
    for (unsigned i = 0; i < SECOND_WAYS; i++)
        if (set[i].linear == page &&
            (set[i].tag == m->current_tag || set[i].tag == m->global_tag)) {
            walk->gpa = set[i].walk & WALK_PAGE;
            walk->flags = (uint32_t)(set[i].walk & 0xfff) |
                          (uint32_t)(set[i].walk >> WALK_KEY_SHIFT) << SOFT_PTE_KEY_SHIFT;
            return true;
        }
    return false;
}

static void second_insert(SoftCpu *cpu, uint64_t page, const SoftWalk *walk)
{
    struct SoftMmu *m = cpu->mmu_private;
    unsigned index = second_set(page);
    SecondEntry *set = m->second[index], *to = NULL;
    for (unsigned i = 0; i < SECOND_WAYS; i++)
        if (set[i].linear == page &&
            (set[i].tag == m->current_tag || set[i].tag == m->global_tag))
            to = &set[i];
    if (!to)
        to = &set[m->victim[index]++ % SECOND_WAYS];
    to->linear = page;
    to->walk = (uint64_t)(walk->flags >> SOFT_PTE_KEY_SHIFT) << WALK_KEY_SHIFT | walk->gpa |
               (walk->flags & 0xfff);
    to->tag = walk->flags & SOFT_PTE_GLOBAL ? m->global_tag : m->current_tag;
    if (walk->flags & SOFT_PTE_LARGE)
        filter_add(m->large, page, 21);
    if (walk->flags & SOFT_PTE_HUGE)
        filter_add(m->huge, page, 30);
}

static bool walk_cached(SoftCpu *cpu, uint64_t page, unsigned mmu, unsigned access, SoftWalk *walk,
                        uint32_t *error)
{
    if (!(cpu->cr0 & CR0_PG)) {
        walk->gpa = page;
        walk->flags = SOFT_PTE_WRITE | SOFT_PTE_USER | SOFT_PTE_DIRTY;
        return true;
    }
    uint32_t ignored;
    if (second_find(cpu, page, walk) &&
        (access != SOFT_WRITE || (walk->flags & SOFT_PTE_DIRTY)) &&
        soft_walk_permits(cpu, walk->flags, mmu, access, &ignored))
        return true;
    vcpu_count(&cpu->stats.tlb_walks, 1);
    if (!soft_walk(cpu, page, mmu, access, walk, error)) {
        /* A fault drops what was cached for the address (SDM vol. 3 4.10.4.1). */
        second_drop(cpu, page, cpu->mmu_private->current_tag, true);
        return false;
    }
    second_insert(cpu, page, walk);
    return true;
}

/* ---- filling ---- */

static void first_fill(SoftCpu *cpu, uint64_t page, unsigned mmu, const SoftWalk *walk,
                       const SoftPage *ram)
{
    if (mmu == SOFT_MMU_CHECKED || !ram->host || soft_debug_page_watched(cpu, page))
        return;
    unsigned slot = (page >> 12) & (SOFT_TLB_SIZE - 1);
    SoftTlbEntry *e = &cpu->tlb[mmu][slot];
    if (cpu->vcpu.vm->config.tuning.tlb_one)
        data_clear(cpu, 0);
    e->read_tag = page;
    e->addend = (uintptr_t)ram->host - page;
    e->gpa = walk->gpa | (walk->flags & SOFT_PTE_GLOBAL ? ENTRY_GLOBAL : 0) |
             (walk->flags & SOFT_PTE_LARGE ? ENTRY_LARGE : 0);
    uint32_t ignored;
    bool write = !ram->readonly && (walk->flags & SOFT_PTE_DIRTY) &&
                 !(atomic_load(ram->word) & SOFT_WORD_PROTECTED) &&
                 (!(cpu->cr0 & CR0_PG) ||
                  soft_walk_permits(cpu, walk->flags, mmu, SOFT_WRITE, &ignored));
    e->write_tag = write ? page : SOFT_TLB_INVALID(slot);
    cpu->mmu_private->filled[mmu][slot / 64] |= 1ull << (slot % 64);
}

bool soft_translate_try(SoftCpu *cpu, uint64_t linear, unsigned mmu, unsigned access,
                        SoftTranslation *t, uint32_t *error)
{
    uint64_t page = linear & ~(uint64_t)0xfff;
    SoftWalk walk;
    if (!walk_cached(cpu, page, mmu, access, &walk, error))
        return false;
    t->gpa = walk.gpa | (linear & 0xfff);
    t->page = soft_page_find(soft_vm(cpu), walk.gpa);
    if (access != SOFT_EXECUTE) {
        vcpu_count(&cpu->stats.tlb_misses, 1);
        first_fill(cpu, page, mmu, &walk, &t->page);
    }
    return true;
}

uint64_t soft_fetch_translate(SoftCpu *cpu, uint64_t linear, const uint8_t **host)
{
    struct SoftMmu *m = cpu->mmu_private;
    uint64_t page = linear & ~(uint64_t)0xfff;
    FetchEntry *e = &m->fetch[(page >> 12) % FETCH_SIZE];
    uint64_t tag = page | FETCH_VALID | (cpu->cpl == 3 ? FETCH_USER : 0);
    if (e->tag != tag) {
        if ((cpu->mode & SOFT_MODE_LONG) && !soft_canonical(linear))
            soft_raise_error(cpu, EXC_GP, 0);
        unsigned mmu = cpu->cpl == 3 ? SOFT_MMU_USER : SOFT_MMU_KERNEL;
        SoftWalk walk;
        uint32_t error;
        if (!walk_cached(cpu, page, mmu, SOFT_EXECUTE, &walk, &error))
            soft_raise_pf(cpu, linear, error);
        e->tag = tag;
        e->gpa = walk.gpa;
        e->host = soft_page_find(soft_vm(cpu), walk.gpa).host;
        e->global = walk.flags & SOFT_PTE_GLOBAL;
    }
    *host = e->host ? e->host + (linear & 0xfff) : NULL;
    return e->gpa | (linear & 0xfff);
}

/* Whether the 2 MiB of guest physical memory around @page are RAM in one piece, and may all be written if it may. */
static bool large_possible(SoftVm *vm, uint64_t gpa, const SoftPage *page, bool writable)
{
    uint64_t offset = gpa & 0x1ff000;
    SoftPage first = soft_page_find(vm, gpa - offset), last = soft_page_find(vm, gpa - offset + 0x1ff000);
    if (!first.host || page->host - first.host != (ptrdiff_t)offset || last.host != first.host + 0x1ff000)
        return false;
    for (unsigned i = 0; writable && i < 512; i++)
        if (atomic_load(first.word + i) & SOFT_WORD_PROTECTED)
            return false;
    return true;
}

bool soft_user_page(SoftCpu *cpu, uint64_t linear, unsigned access, SoftUserPage *out)
{
    uint64_t page = linear & ~(uint64_t)0xfff;
    SoftWalk walk;
    uint32_t error;
    if (!walk_cached(cpu, page, SOFT_MMU_USER, access, &walk, &error))
        return false;
    /* Protection keys are looked at where the TLB is filled: only pages that PKRU leaves alone. */
    bool keyed = (cpu->cr4 & CR4_PKE) && (walk.flags >> SOFT_PTE_KEY_SHIFT || (cpu->system->pkru & 3));
    SoftPage ram = soft_page_find(soft_vm(cpu), walk.gpa);
    first_fill(cpu, page, SOFT_MMU_USER, &walk, &ram);
    if (keyed)
        return false;
    const SoftTlbEntry *e = &cpu->tlb[SOFT_MMU_USER][(page >> 12) & (SOFT_TLB_SIZE - 1)];
    bool writable = e->write_tag == page;
    if (!ram.host || e->read_tag != page || (access == SOFT_WRITE && !writable))
        return false;
    bool large = (walk.flags & SOFT_PTE_LARGE) && !cpu->system->data_breakpoints &&
                 large_possible(soft_vm(cpu), walk.gpa, &ram, writable);
    uint64_t offset = large ? walk.gpa & 0x1ff000 : 0;
    *out = (SoftUserPage){ram.host - offset, walk.gpa - offset, writable, large};
    return true;
}

bool soft_mmu_init(SoftCpu *cpu, GError **err)
{
    cpu->mmu_private = g_try_new0(struct SoftMmu, 1);
    if (!cpu->mmu_private)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "no memory for a vCPU's TLB");
    cpu->mmu_private->next_tag = 1;
    cpu->fetch_epoch = 1;
    for (unsigned mmu = 0; mmu < SOFT_MMU_COUNT; mmu++)
        for (unsigned slot = 0; slot < SOFT_TLB_SIZE; slot++)
            entry_clear(cpu, mmu, slot);
    soft_tlb_flush(cpu, true);
    return true;
}

void soft_mmu_free(SoftCpu *cpu)
{
    g_free(cpu->mmu_private);
    cpu->mmu_private = NULL;
}
