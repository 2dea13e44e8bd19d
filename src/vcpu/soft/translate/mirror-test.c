/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The table of window deltas: whatever address guest code makes up, what is accessed lies in a window of its
 * own process, where the guest's tables say, or in guards that are never mapped, or it is no canonical address.
 */
#include <sys/mman.h>

#include "vcpu/soft/translate/mirror.h"
#include "vcpu/soft/vm.h"

#define RAM_SIZE (4u << 20)
#define TIB      (1ull << 40)
#define GUARD    (8ull << 30)
#define DRIFT    (1ll << 30) /* more than what a block adds to a base register between two looks */

typedef struct Fixture {
    VcpuBus bus;
    VcpuVm *vm;
    SoftCpu *cpu;
    uint8_t *ram;
} Fixture;

static void set_up(Fixture *f, gconstpointer unused)
{
    GError *err = NULL;
    f->bus = (VcpuBus){.opaque = f};
    VcpuVmConfig config = {.n_vcpus = 1, .bus = &f->bus, .tuning.mirror_now = true};
    f->vm = vcpu_engine_soft.vm_new(&config, &err);
    g_assert_no_error(err);
    f->ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    VcpuRamSlot slot = {.size = RAM_SIZE, .hva = f->ram};
    g_assert_true(vcpu_engine_soft.set_ram(f->vm, 0, &slot, &err));
    f->cpu = (SoftCpu *)vcpu_engine_soft.vcpu_new(f->vm, 0, &err);
    g_assert_no_error(err);
    f->cpu->cr0 = CR0_PE | CR0_PG | CR0_WP;
    f->cpu->cr4 = CR4_PAE | CR4_PCIDE;
    f->cpu->efer = EFER_LME | EFER_LMA | EFER_NXE;
    f->cpu->seg[SEG_CS].attr |= SEG_ATTR_L;
    f->cpu->cpl = 3;
    soft_mode_update(f->cpu);
    soft_tlb_reset(f->cpu);
}

static void tear_down(Fixture *f, gconstpointer unused)
{
    vcpu_engine_soft.vcpu_free(&f->cpu->vcpu);
    vcpu_engine_soft.vm_free(f->vm);
    munmap(f->ram, RAM_SIZE);
}

/* A process whose top page table has user entries in the windows @indices, and one of the supervisor's. */
static void process(Fixture *f, uint64_t table, unsigned pcid, const uint8_t *indices, unsigned n)
{
    uint64_t *top = (uint64_t *)(f->ram + table);
    memset(top, 0, 4096);
    for (unsigned i = 0; i < n; i++)
        top[2 * indices[i]] = 0x100000 | 7;
    top[2 * 0x55] = 0x100000 | 3;
    top[256] = 0x100000 | 7; /* not in the user half */
    soft_tlb_load_cr3(f->cpu, table | pcid, false);
    f->cpu->mmu = SOFT_MMU_USER;
}

static bool is_mirrored(const uint8_t *indices, unsigned n, unsigned index)
{
    for (unsigned i = 0; i < n; i++)
        if (indices[i] == index)
            return true;
    return false;
}

/* Where an access of base register @base and a displacement goes. */
static void check(const Fixture *f, uint64_t base, int64_t disp, const uint8_t *indices, unsigned n)
{
    unsigned index = base >> 40 & 255;
    uint64_t host = base + f->cpu->window_delta[index] + (uint64_t)disp;
    uint64_t window = (uint64_t)index * TIB + f->cpu->window_delta[index];

    g_assert_cmphex(window & 4095, ==, 0);
    g_assert_cmphex(window - GUARD, <, (1ull << 47) - TIB - 2 * GUARD);
    if (base >> 48) { /* never the user half of the host */
        g_assert_cmphex(host >> 47, !=, 0);
        return;
    }
    g_assert_cmphex(host - (window - GUARD), <, TIB + 2 * GUARD);
    if (!is_mirrored(indices, n, index))
        g_assert_cmphex(window, ==, f->cpu->window_delta[255] + 255 * TIB); /* the one where nothing is */
    else if (host - window < TIB)
        g_assert_cmphex(host - window, ==, base + (uint64_t)disp - (uint64_t)index * TIB);
}

static void check_many(const Fixture *f, const uint8_t *indices, unsigned n)
{
    static const int64_t disps[] = {0, 8, -8, INT32_MAX, INT32_MIN, INT32_MAX + DRIFT, INT32_MIN - DRIFT};
    static const uint64_t tops[] = {0, 1, 2, 0x7fff, 0x8000, 0xfffe, 0xffff, 0x00ff, 0xff00};
    g_autoptr(GRand) rand = g_rand_new_with_seed(7);
    for (unsigned index = 0; index < 256; index++)
        for (unsigned t = 0; t < G_N_ELEMENTS(tops); t++)
            for (unsigned d = 0; d < G_N_ELEMENTS(disps); d++) {
                uint64_t start = tops[t] << 48 | (uint64_t)index << 40;
                check(f, start, disps[d], indices, n);
                check(f, start + TIB - 1, disps[d], indices, n);
                check(f, start + TIB / 2, disps[d], indices, n);
            }
    for (unsigned i = 0; i < 200000; i++) {
        uint64_t base = (uint64_t)g_rand_int(rand) << 32 | g_rand_int(rand);
        check(f, base >> g_rand_int_range(rand, 0, 20), disps[i % 7], indices, n);
    }
}

static void test_deltas(Fixture *f, gconstpointer unused)
{
    static const uint8_t one[] = {0, 0x7f}, other[] = {0x55, 0x7f, 3}, seven[] = {1, 2, 3, 4, 5, 6, 7};
    check_many(f, NULL, 0);
    process(f, 0x1000, 1, one, 2);
    g_assert_true(mirror_ready(f->cpu));
    check_many(f, one, 2);
    process(f, 0x2000, 2, other, 3);
    check_many(f, NULL, 0); /* not before it asks */
    g_assert_true(mirror_ready(f->cpu));
    check_many(f, other, 3);
    soft_tlb_load_cr3(f->cpu, 0x1001, true);
    check_many(f, one, 2);
    /* A kernel that isolates its page tables: the same process with another PCID. */
    process(f, 0x3000, 0x801, one, 2);
    check_many(f, NULL, 0);
    soft_tlb_load_cr3(f->cpu, 0x1001, true);
    g_assert_true(f->cpu->mirror_on);
    /* Too many windows: none of them. */
    process(f, 0x2000, 3, seven, 7);
    g_assert_false(mirror_ready(f->cpu));
    check_many(f, NULL, 0);
    /* Without PCIDs a process has no name. */
    soft_tlb_load_cr3(f->cpu, 0x1001, true);
    g_assert_true(f->cpu->mirror_on);
    f->cpu->cr4 &= ~(uint64_t)CR4_PCIDE;
    soft_tlb_flush(f->cpu, true);
    g_assert_false(f->cpu->mirror_on);
    check_many(f, NULL, 0);
}

static bool readable(const volatile uint8_t *at)
{
    int pipe_fds[2];
    g_assert_cmpint(pipe(pipe_fds), ==, 0);
    bool ok = write(pipe_fds[1], (const void *)(uintptr_t)at, 1) == 1;
    close(pipe_fds[0]);
    close(pipe_fds[1]);
    return ok;
}

/* What is mapped is the guest's page, as writable as it may be; and it goes when the guest says so. */
static void test_fill(Fixture *f, gconstpointer unused)
{
    static const uint8_t zero[] = {0};
    process(f, 0x1000, 1, zero, 1);
    uint64_t *entries = (uint64_t *)f->ram;
    entries[0x100000 / 8] = 0x101000 | 7;
    entries[0x101000 / 8] = 0x102000 | 7;
    entries[0x102000 / 8 + 5] = 0x200000 | 0x67; /* writable, dirty */
    entries[0x102000 / 8 + 6] = 0x201000 | 0x25; /* read-only */
    entries[0x102000 / 8 + 7] = 0x202000 | 0x63; /* the supervisor's */
    f->ram[0x200123] = 42;
    f->ram[0x201123] = 43;
    g_assert_true(mirror_ready(f->cpu));
    uint8_t *window = (uint8_t *)(uintptr_t)f->cpu->window_delta[0];
    g_assert_false(readable(window + 0x5123));
    g_assert_true(mirror_fill(f->cpu, (uintptr_t)window + 0x5123, SOFT_WRITE));
    g_assert_cmpuint(window[0x5123], ==, 42);
    window[0x5124] = 44;
    g_assert_cmpuint(f->ram[0x200124], ==, 44);
    g_assert_false(mirror_fill(f->cpu, (uintptr_t)window + 0x6123, SOFT_WRITE));
    g_assert_true(mirror_fill(f->cpu, (uintptr_t)window + 0x6123, SOFT_READ));
    g_assert_cmpuint(window[0x6123], ==, 43);
    g_assert_false(mirror_fill(f->cpu, (uintptr_t)window + 0x7123, SOFT_READ));
    g_assert_false(mirror_fill(f->cpu, (uintptr_t)window - 8, SOFT_READ));
    soft_tlb_flush_page(f->cpu, 0x5fff);
    g_assert_false(readable(window + 0x5123));
    g_assert_true(readable(window + 0x6123));
    /* A page that comes to hold code may not be written from there. */
    g_assert_true(mirror_fill(f->cpu, (uintptr_t)window + 0x5123, SOFT_WRITE));
    soft_page_protect(f->cpu, 0x200000);
    g_assert_false(readable(window + 0x5123));
    g_assert_false(mirror_fill(f->cpu, (uintptr_t)window + 0x5123, SOFT_WRITE));
    g_assert_true(mirror_fill(f->cpu, (uintptr_t)window + 0x5123, SOFT_READ));
    soft_tlb_flush(f->cpu, false);
    g_assert_false(readable(window + 0x6123));
}

/* In a large page of which a part holds code, the other parts may be written: until they hold code, too. */
static void test_large(Fixture *f, gconstpointer unused)
{
    static const uint8_t zero[] = {0};
    process(f, 0x1000, 1, zero, 1);
    uint64_t *entries = (uint64_t *)f->ram;
    entries[0x100000 / 8] = 0x101000 | 7;
    entries[0x101000 / 8] = 0x200000 | 0xe7; /* 2 MiB */
    g_assert_true(mirror_ready(f->cpu));
    uint8_t *window = (uint8_t *)(uintptr_t)f->cpu->window_delta[0];
    g_assert_true(mirror_fill(f->cpu, (uintptr_t)window + 0x5000, SOFT_WRITE));
    g_assert_true(readable(window + 0x1ff000));
    soft_page_protect(f->cpu, 0x203000);
    g_assert_false(readable(window + 0x1ff000));
    g_assert_true(mirror_fill(f->cpu, (uintptr_t)window + 0x3000, SOFT_READ)); /* all, read-only */
    g_assert_true(readable(window + 0x1ff000));
    g_assert_true(mirror_fill(f->cpu, (uintptr_t)window + 0x9000, SOFT_WRITE));
    window[0x9000] = 1;
    soft_page_protect(f->cpu, 0x209000);
    g_assert_false(readable(window + 0x9000));
    g_assert_false(mirror_fill(f->cpu, (uintptr_t)window + 0x9000, SOFT_WRITE));
    g_assert_true(mirror_fill(f->cpu, (uintptr_t)window + 0xa000, SOFT_WRITE));
    soft_tlb_flush_page(f->cpu, 0x1000);
    g_assert_false(readable(window + 0xa000));
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add("/soft/mirror/deltas", Fixture, NULL, set_up, test_deltas, tear_down);
    g_test_add("/soft/mirror/fill", Fixture, NULL, set_up, test_fill, tear_down);
    g_test_add("/soft/mirror/large", Fixture, NULL, set_up, test_large, tear_down);
    return g_test_run();
}
