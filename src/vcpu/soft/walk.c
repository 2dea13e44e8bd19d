/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Page table walks (SDM vol. 3 4.3 to 4.8): 32-bit paging with PSE and PSE-36, PAE paging, and
 * 4-level paging. PAE's page directory pointers are read from memory at each walk, as AMD does
 * (APM vol. 2 5.2.3), and their reserved bits are checked when CR3 is loaded.
 */
#include "vcpu/soft/vm.h"

#define PTE_P 0x1u
#define PTE_W 0x2u
#define PTE_U 0x4u
#define PTE_A 0x20u
#define PTE_D 0x40u
#define PTE_PS 0x80u
#define PTE_G 0x100u
#define PTE_XD (1ull << 63)
#define PTE_KEY_SHIFT 59 /* with 4-level paging; other formats have zeroes there */
#define ADDRESS_MASK 0x000ffffffffff000ull

/* A table entry that the walk came through, to set its accessed bit once the access is known to pass. */
typedef struct Step {
    uint8_t *host; /* NULL: outside RAM */
    _Atomic uint32_t *word;
    uint64_t value;
    unsigned size; /* 4 or 8 */
} Step;

typedef struct Walker {
    SoftCpu *cpu;
    uint64_t linear;
    Step step[4];
    unsigned n;
    uint32_t rights; /* SOFT_PTE_WRITE | SOFT_PTE_USER of all levels so far; SOFT_PTE_NX of any */
} Walker;

/* Reads an entry. Outside RAM all ones are read, which has reserved bits set. */
static uint64_t read_entry(Walker *w, uint64_t gpa, unsigned size)
{
    SoftPage page = soft_page_find(soft_vm(w->cpu), gpa);
    Step *s = &w->step[w->n++];
    *s = (Step){.size = size, .value = size == 8 ? UINT64_MAX : UINT32_MAX};
    if (!page.host)
        return s->value;
    uint8_t *at = page.host + (gpa & 0xfff);
    if (!page.readonly) {
        s->host = at;
        s->word = page.word;
    }
    s->value = size == 8 ? __atomic_load_n((uint64_t *)at, __ATOMIC_ACQUIRE)
                         : __atomic_load_n((uint32_t *)at, __ATOMIC_ACQUIRE);
    return s->value;
}

/* False if an entry changed since it was read. */
static bool set_bits(SoftVm *vm, const Step *s, uint64_t bits)
{
    if ((s->value & bits) == bits || !s->host)
        return true;
    bool done;
    if (s->size == 8) {
        uint64_t old = s->value;
        done = __atomic_compare_exchange_n((uint64_t *)s->host, &old, old | bits, false,
                                           __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    } else {
        uint32_t old = (uint32_t)s->value;
        done = __atomic_compare_exchange_n((uint32_t *)s->host, &old, old | (uint32_t)bits, false,
                                           __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    }
    if (done)
        soft_page_written(vm, s->word);
    return done;
}

static void take_rights(Walker *w, uint64_t entry)
{
    w->rights &= (uint32_t)(entry & (PTE_W | PTE_U)) | ~(PTE_W | PTE_U);
    if (entry & PTE_XD)
        w->rights |= SOFT_PTE_NX;
}

/* The bits that must be 0 in every 8-byte entry. */
static uint64_t reserved_always(const SoftCpu *cpu, bool legacy)
{
    uint64_t r = ADDRESS_MASK & ~((1ull << soft_limits.physical_bits) - 1);
    if (!(cpu->efer & EFER_NXE))
        r |= PTE_XD;
    if (legacy)
        r |= 0x7ff0000000000000ull;
    return r;
}

/* Fills *walk for a leaf that maps 2^@shift bytes at @base. */
static void leaf(const Walker *w, SoftWalk *walk, uint64_t base, unsigned shift, uint64_t entry)
{
    uint64_t size = 1ull << shift;
    walk->gpa = (base & ~(size - 1)) | (w->linear & (size - 1) & ~(uint64_t)0xfff);
    walk->flags = (w->rights & (SOFT_PTE_WRITE | SOFT_PTE_USER | SOFT_PTE_NX)) |
                  (uint32_t)(entry & PTE_D) |
                  (uint32_t)(entry >> PTE_KEY_SHIFT & 0xf) << SOFT_PTE_KEY_SHIFT;
    if ((entry & PTE_G) && (w->cpu->cr4 & CR4_PGE))
        walk->flags |= SOFT_PTE_GLOBAL;
    if (shift > 12)
        walk->flags |= SOFT_PTE_LARGE;
    if (shift == 30)
        walk->flags |= SOFT_PTE_HUGE;
}

/* Levels from @level (4 = PML4, 3 = PDPT, 2 = PD, 1 = PT) down; *error gets P and RSVD. */
static bool walk_wide(Walker *w, uint64_t table, unsigned level, bool legacy, SoftWalk *walk,
                      uint32_t *error)
{
    uint64_t reserved = reserved_always(w->cpu, legacy);
    for (;; level--) {
        unsigned shift = 12 + 9 * (level - 1);
        uint64_t entry = read_entry(w, table + (w->linear >> shift & 0x1ff) * 8, 8);
        if (!(entry & PTE_P))
            return false;
        uint64_t bad = reserved;
        bool large = (entry & PTE_PS) && (level == 2 || (level == 3 && soft_limits.page1g));
        if (large)
            bad |= (1ull << shift) - 0x2000;
        else if (level > 2)
            bad |= PTE_PS;
        if (entry & bad) {
            *error |= PF_PRESENT | PF_RESERVED;
            return false;
        }
        take_rights(w, entry);
        if (level == 1 || large) {
            leaf(w, walk, entry & ADDRESS_MASK, shift, entry);
            return true;
        }
        table = entry & ADDRESS_MASK;
    }
}

static bool walk_pae(Walker *w, SoftWalk *walk, uint32_t *error)
{
    uint64_t pdpte =
        read_entry(w, (w->cpu->cr3 & 0xffffffe0u) + (w->linear >> 30 & 3) * 8, 8);
    w->n--; /* PAE's page directory pointers have no accessed bit */
    if (!(pdpte & PTE_P))
        return false;
    return walk_wide(w, pdpte & ADDRESS_MASK, 2, true, walk, error);
}

static bool walk_32(Walker *w, SoftWalk *walk, uint32_t *error)
{
    uint64_t pde = read_entry(w, (w->cpu->cr3 & 0xfffff000u) + (w->linear >> 22 & 0x3ff) * 4, 4);
    if (!(pde & PTE_P))
        return false;
    take_rights(w, pde);
    if ((pde & PTE_PS) && (w->cpu->cr4 & CR4_PSE)) {
        unsigned high_bits = MIN(soft_limits.physical_bits, 40) - 32;
        uint64_t high = pde >> 13 & 0xff;
        if ((pde & (1u << 21)) || high >> high_bits) {
            *error |= PF_PRESENT | PF_RESERVED;
            return false;
        }
        leaf(w, walk, (pde & 0xffc00000u) | high << 32, 22, pde);
        return true;
    }
    uint64_t pte = read_entry(w, (pde & 0xfffff000u) + (w->linear >> 12 & 0x3ff) * 4, 4);
    if (!(pte & PTE_P))
        return false;
    take_rights(w, pte);
    leaf(w, walk, pte & 0xfffff000u, 12, pte);
    return true;
}

static uint32_t error_of(const SoftCpu *cpu, unsigned mmu, unsigned access)
{
    uint32_t e = 0;
    if (access == SOFT_WRITE)
        e |= PF_WRITE;
    if (mmu == SOFT_MMU_USER || mmu == SOFT_MMU_CHECKED)
        e |= PF_USER;
    bool nx = (cpu->efer & EFER_NXE) && (cpu->cr4 & CR4_PAE);
    if (access == SOFT_EXECUTE && (nx || (cpu->cr4 & CR4_SMEP)))
        e |= PF_FETCH;
    return e;
}

/*
 * Protection keys (SDM vol. 3 4.6.2): two bits a key, access disabled and write disabled, in PKRU for
 * user pages and in IA32_PKRS for the others. They say nothing about fetches.
 */
static bool key_permits(const SoftCpu *cpu, uint32_t flags, unsigned mmu, unsigned access)
{
    const SoftSystem *s = cpu->system;
    bool user_page = flags & SOFT_PTE_USER, on = cpu->cr4 & (user_page ? CR4_PKE : CR4_PKS);
    if (!on || access == SOFT_EXECUTE || !(cpu->efer & EFER_LMA))
        return true;
    uint64_t all = user_page ? s->pkru : s->msr.pkrs;
    unsigned rights = (unsigned)(all >> 2 * (flags >> SOFT_PTE_KEY_SHIFT & 0xf));
    bool by_user = mmu == SOFT_MMU_USER || mmu == SOFT_MMU_CHECKED;
    bool writes = access == SOFT_WRITE && (by_user || (cpu->cr0 & CR0_WP));
    return !(rights & 1) && !((rights & 2) && writes);
}

bool soft_walk_permits(const SoftCpu *cpu, uint32_t flags, unsigned mmu, unsigned access,
                       uint32_t *error)
{
    bool ok;
    if (mmu == SOFT_MMU_USER || mmu == SOFT_MMU_CHECKED) {
        ok = (flags & SOFT_PTE_USER) && (access != SOFT_WRITE || (flags & SOFT_PTE_WRITE));
    } else {
        ok = access != SOFT_WRITE || (flags & SOFT_PTE_WRITE) || !(cpu->cr0 & CR0_WP);
        if (flags & SOFT_PTE_USER) {
            if (access == SOFT_EXECUTE)
                ok = ok && !(cpu->cr4 & CR4_SMEP);
            else
                ok = ok && mmu != SOFT_MMU_KERNEL;
        }
    }
    if (access == SOFT_EXECUTE && (flags & SOFT_PTE_NX))
        ok = false;
    bool key = key_permits(cpu, flags, mmu, access);
    if (!ok || !key)
        *error = error_of(cpu, mmu, access) | PF_PRESENT | (key ? 0 : PF_KEY);
    return ok && key;
}

bool soft_walk(SoftCpu *cpu, uint64_t linear, unsigned mmu, unsigned access, SoftWalk *walk,
               uint32_t *error)
{
    for (;;) {
        Walker w = {.cpu = cpu, .linear = linear, .rights = SOFT_PTE_WRITE | SOFT_PTE_USER};
        bool found;
        *error = error_of(cpu, mmu, access);
        if (cpu->efer & EFER_LMA)
            found = walk_wide(&w, cpu->cr3 & ADDRESS_MASK, 4, false, walk, error);
        else if (cpu->cr4 & CR4_PAE)
            found = walk_pae(&w, walk, error);
        else
            found = walk_32(&w, walk, error);
        if (!found || !soft_walk_permits(cpu, walk->flags, mmu, access, error))
            return false;

        bool same = true;
        for (unsigned i = 0; i < w.n && same; i++) {
            uint64_t bits = PTE_A;
            if (i == w.n - 1 && access == SOFT_WRITE) {
                bits |= PTE_D;
                walk->flags |= SOFT_PTE_DIRTY;
            }
            same = set_bits(soft_vm(cpu), &w.step[i], bits);
        }
        if (same)
            return true;
    }
}

bool soft_pdptes_valid(SoftCpu *cpu, uint64_t cr3)
{
    for (unsigned i = 0; i < 4; i++) {
        uint64_t pdpte = 0;
        if (!soft_physical_read(soft_vm(cpu), (cr3 & 0xffffffe0u) + i * 8, &pdpte, 8))
            continue;
        uint64_t reserved = 0xfff00000000001e6ull |
                            (ADDRESS_MASK & ~((1ull << soft_limits.physical_bits) - 1));
        if ((pdpte & PTE_P) && (pdpte & reserved))
            return false;
    }
    return true;
}
