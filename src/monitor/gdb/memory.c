/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Guest memory as the debugger sees it: linear addresses, no faults, no device registers. Page
 * tables: SDM vol. 3 4.3 to 4.5; access rights do not matter to a debugger.
 */
#include "monitor/gdb/session.h"

#define CR0_PG        0x80000000u
#define CR4_PSE       0x10u
#define CR4_PAE       0x20u
#define CR4_LA57      0x1000u
#define EFER_LMA      0x400u
#define ENTRY_P       0x1u
#define ENTRY_PS      0x80u
#define ENTRY_ADDRESS 0x000ffffffffff000ull
#define PAGE          4096u

static bool walk_32(Machine *m, const VcpuState *s, uint32_t linear, uint64_t *gpa)
{
    uint32_t entry;
    if (!machine_dma_read(m, (s->cr3 & 0xfffff000u) + (linear >> 22) * 4u, &entry, 4) ||
        !(entry & ENTRY_P))
        return false;
    if ((entry & ENTRY_PS) && (s->cr4 & CR4_PSE)) {
        /* Bits 13 to 20 are address bits 32 to 39 (PSE-36). */
        *gpa = (entry & 0xffc00000u) | (uint64_t)(entry >> 13 & 0xff) << 32 | (linear & 0x3fffffu);
        return true;
    }
    if (!machine_dma_read(m, (entry & 0xfffff000u) + (linear >> 12 & 0x3ff) * 4u, &entry, 4) ||
        !(entry & ENTRY_P))
        return false;
    *gpa = (entry & 0xfffff000u) | (linear & 0xfff);
    return true;
}

/* From @level (5 to 1) at @table on; @first: bits of the index there. */
static bool walk_wide(Machine *m, uint64_t table, unsigned level, unsigned first, uint64_t linear,
                      uint64_t *gpa)
{
    for (unsigned bits = first;; bits = 9, level--) {
        unsigned shift = 12 + 9 * (level - 1);
        uint64_t entry, index = linear >> shift & ((1u << bits) - 1);
        if (!machine_dma_read(m, table + index * 8, &entry, 8) || !(entry & ENTRY_P))
            return false;
        if (level == 1 || ((entry & ENTRY_PS) && (level == 2 || (level == 3 && first == 9)))) {
            uint64_t within = (1ull << shift) - 1;
            *gpa = (entry & ENTRY_ADDRESS & ~within) | (linear & within);
            return true;
        }
        table = entry & ENTRY_ADDRESS;
    }
}

static bool canonical(uint64_t linear, unsigned bits)
{
    return (uint64_t)((int64_t)(linear << (64 - bits)) >> (64 - bits)) == linear;
}

bool gdb_translate(Machine *m, const VcpuState *s, uint64_t linear, uint64_t *gpa)
{
    if (s->efer & EFER_LMA) {
        unsigned levels = s->cr4 & CR4_LA57 ? 5 : 4;
        return canonical(linear, 12 + 9 * levels) &&
               walk_wide(m, s->cr3 & ENTRY_ADDRESS, levels, 9, linear, gpa);
    }
    if (linear >> 32)
        return false;
    *gpa = linear;
    if (!(s->cr0 & CR0_PG))
        return true;
    if (s->cr4 & CR4_PAE)
        return walk_wide(m, s->cr3 & 0xffffffe0u, 3, 2, linear, gpa);
    return walk_32(m, s, (uint32_t)linear, gpa);
}

static size_t piece_of(uint64_t linear, size_t left)
{
    return MIN(left, PAGE - (linear & (PAGE - 1)));
}

size_t gdb_memory_read(Machine *m, const VcpuState *state, uint64_t linear, uint8_t *to,
                       size_t size)
{
    size_t done = 0;
    while (done < size) {
        size_t piece = piece_of(linear + done, size - done);
        uint64_t gpa;
        if (!gdb_translate(m, state, linear + done, &gpa) ||
            !machine_dma_read(m, gpa, to + done, piece))
            break;
        done += piece;
    }
    return done;
}

size_t gdb_memory_write(Machine *m, const VcpuState *state, uint64_t linear, const uint8_t *from,
                        size_t size)
{
    size_t done = 0;
    while (done < size) {
        size_t piece = piece_of(linear + done, size - done);
        uint64_t gpa;
        if (!gdb_translate(m, state, linear + done, &gpa) ||
            !machine_dma_write(m, gpa, from + done, piece))
            break;
        done += piece;
    }
    return done;
}
