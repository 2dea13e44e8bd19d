/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Page walks of every paging mode against what the SDM says (vol. 3 chapter 4): addresses, error
 * codes, accessed and dirty bits; the TLB's invalidations; accesses across pages.
 */
#include <sys/mman.h>

#include "vcpu/soft/vm.h"

#define RAM_SIZE (4u << 20)
#define P        1u
#define W        2u
#define U        4u
#define PS       0x80u
#define G        0x100u
#define NX       (1ull << 63)

typedef struct Fixture {
    VcpuBus bus;
    VcpuVm *vm;
    SoftCpu *cpu;
    uint8_t *ram;
    uint64_t mmio_gpa[4], mmio_value[4];
    unsigned mmio_size[4], n_mmio;
} Fixture;

static uint64_t mmio_read(void *opaque, unsigned vcpu, uint64_t gpa, unsigned size)
{
    Fixture *f = opaque;
    f->mmio_gpa[f->n_mmio % 4] = gpa;
    f->mmio_size[f->n_mmio++ % 4] = size;
    return 0x1122334455667788ull;
}

static void mmio_write(void *opaque, unsigned vcpu, uint64_t gpa, unsigned size, uint64_t value)
{
    Fixture *f = opaque;
    f->mmio_gpa[f->n_mmio % 4] = gpa;
    f->mmio_value[f->n_mmio % 4] = value;
    f->mmio_size[f->n_mmio++ % 4] = size;
}

static void set_up(Fixture *f, gconstpointer unused)
{
    GError *err = NULL;
    f->bus = (VcpuBus){.opaque = f, .mmio_read = mmio_read, .mmio_write = mmio_write};
    VcpuVmConfig config = {.n_vcpus = 1, .bus = &f->bus};
    f->vm = vcpu_engine_soft.vm_new(&config, &err);
    g_assert_no_error(err);
    f->ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    VcpuRamSlot slot = {.size = RAM_SIZE, .hva = f->ram};
    g_assert_true(vcpu_engine_soft.set_ram(f->vm, 0, &slot, &err));
    f->cpu = (SoftCpu *)vcpu_engine_soft.vcpu_new(f->vm, 0, &err);
    g_assert_no_error(err);
}

static void tear_down(Fixture *f, gconstpointer unused)
{
    vcpu_engine_soft.vcpu_free(&f->cpu->vcpu);
    vcpu_engine_soft.vm_free(f->vm);
    munmap(f->ram, RAM_SIZE);
}

static uint64_t *entry64(Fixture *f, uint64_t gpa)
{
    return (uint64_t *)(f->ram + gpa);
}

static uint32_t *entry32(Fixture *f, uint64_t gpa)
{
    return (uint32_t *)(f->ram + gpa);
}

static void paging(Fixture *f, uint64_t cr4, uint64_t efer)
{
    f->cpu->cr0 = CR0_PE | CR0_PG | CR0_WP;
    f->cpu->cr3 = 0x1000;
    f->cpu->cr4 = cr4;
    f->cpu->efer = efer;
    soft_tlb_reset(f->cpu);
    soft_mode_update(f->cpu);
}

/* The address, or -1 - error code. */
static int64_t walk(Fixture *f, uint64_t linear, unsigned mmu, unsigned access)
{
    SoftTranslation t;
    uint32_t error;
    if (soft_translate_try(f->cpu, linear, mmu, access, &t, &error))
        return (int64_t)t.gpa;
    return -1 - (int64_t)error;
}

#define FAULT(error) (-1 - (int64_t)(error))

/* 4 levels: PML4 1000, PDPT 2000, PD 3000, PT 4000. */
static void tables_long(Fixture *f)
{
    *entry64(f, 0x1000) = 0x2000 | P | W | U;
    *entry64(f, 0x2000) = 0x3000 | P | W | U;
    *entry64(f, 0x2008) = 0x40000000 | P | W | PS;
    *entry64(f, 0x3000) = 0x4000 | P | W | U;
    *entry64(f, 0x3008) = 0x200000 | P | W | U | PS;
    *entry64(f, 0x4000) = 0x10000 | P | W | U;
    *entry64(f, 0x4008) = 0x11000 | P | U;
    *entry64(f, 0x4010) = 0x12000 | P | W;
    *entry64(f, 0x4018) = 0x13000 | P | W | U | NX;
    *entry64(f, 0x4020) = 0x14000 | P | W | U | 1ull << 51;
    paging(f, CR4_PAE | CR4_PSE, EFER_LME | EFER_LMA | EFER_NXE);
}

static void test_long(Fixture *f, gconstpointer unused)
{
    const unsigned user = SOFT_MMU_USER, kernel = SOFT_MMU_KERNEL_SMAP_OFF;
    tables_long(f);
    g_assert_cmphex(walk(f, 0x123, user, SOFT_READ), ==, 0x10123);
    g_assert_cmphex(walk(f, 0x200345, user, SOFT_WRITE), ==, 0x200345);
    g_assert_cmphex(walk(f, 0x40123456, kernel, SOFT_READ), ==, 0x40123456);
    g_assert_cmpint(walk(f, 0x1000, user, SOFT_WRITE), ==, FAULT(7));
    g_assert_cmpint(walk(f, 0x1000, kernel, SOFT_WRITE), ==, FAULT(3));
    g_assert_cmpint(walk(f, 0x2000, user, SOFT_READ), ==, FAULT(5));
    g_assert_cmpint(walk(f, 0x2000, user, SOFT_EXECUTE), ==, FAULT(0x15));
    g_assert_cmpint(walk(f, 0x3000, kernel, SOFT_EXECUTE), ==, FAULT(0x11));
    g_assert_cmpint(walk(f, 0x5000, kernel, SOFT_WRITE), ==, FAULT(2));
    g_assert_cmpint(walk(f, 0x5000, user, SOFT_READ), ==, FAULT(4));
    g_assert_cmpint(walk(f, 0x4000, user, SOFT_WRITE), ==, FAULT(0xf));
    g_assert_cmpint(walk(f, 0x8000000000, kernel, SOFT_READ), ==, FAULT(0));
    /* without NXE, bit 63 is reserved */
    paging(f, CR4_PAE, EFER_LME | EFER_LMA);
    g_assert_cmpint(walk(f, 0x3000, kernel, SOFT_READ), ==, FAULT(9));
    f->cpu->cr0 &= ~(uint64_t)CR0_WP;
    soft_tlb_flush(f->cpu, true);
    g_assert_cmphex(walk(f, 0x1000, kernel, SOFT_WRITE), ==, 0x11000);
    g_assert_cmpint(walk(f, 0x1000, user, SOFT_WRITE), ==, FAULT(7));
}

static void test_keys(Fixture *f, gconstpointer unused)
{
    const unsigned user = SOFT_MMU_USER, kernel = SOFT_MMU_KERNEL_SMAP_OFF;
    tables_long(f);
    *entry64(f, 0x4000) |= 5ull << 59;
    *entry64(f, 0x4010) |= 6ull << 59;
    soft_keys_set(f->cpu, false, UINT32_MAX); /* nothing before CR4 says so */
    soft_keys_set(f->cpu, true, UINT32_MAX);
    g_assert_cmphex(walk(f, 0, user, SOFT_WRITE), ==, 0x10000);
    paging(f, CR4_PAE | CR4_PKE | CR4_PKS, EFER_LME | EFER_LMA | EFER_NXE);
    g_assert_cmpint(walk(f, 0, user, SOFT_READ), ==, FAULT(0x25));
    g_assert_cmpint(walk(f, 0, kernel, SOFT_WRITE), ==, FAULT(0x23));
    g_assert_cmphex(walk(f, 0, user, SOFT_EXECUTE), ==, 0x10000);
    g_assert_cmpint(walk(f, 0x2000, kernel, SOFT_READ), ==, FAULT(0x21));
    g_assert_cmpint(walk(f, 0x2000, user, SOFT_READ), ==, FAULT(0x25)); /* both reasons */
    g_assert_cmphex(soft_pkru(f->cpu), ==, UINT32_MAX);
    /* write disable: for the supervisor only with CR0.WP */
    soft_keys_set(f->cpu, false, 2u << 10);
    soft_keys_set(f->cpu, true, 2u << 12);
    g_assert_cmphex(walk(f, 0, user, SOFT_READ), ==, 0x10000);
    g_assert_cmpint(walk(f, 0, user, SOFT_WRITE), ==, FAULT(0x27));
    g_assert_cmpint(walk(f, 0, kernel, SOFT_WRITE), ==, FAULT(0x23));
    g_assert_cmpint(walk(f, 0x2000, kernel, SOFT_WRITE), ==, FAULT(0x23));
    f->cpu->cr0 &= ~(uint64_t)CR0_WP;
    soft_tlb_flush(f->cpu, true);
    g_assert_cmphex(walk(f, 0, kernel, SOFT_WRITE), ==, 0x10000);
    g_assert_cmphex(walk(f, 0x2000, kernel, SOFT_WRITE), ==, 0x12000);
    g_assert_cmpint(walk(f, 0, user, SOFT_WRITE), ==, FAULT(0x27));
    /* what the first level holds goes when the rights do */
    soft_keys_set(f->cpu, false, 0);
    f->cpu->mmu = user;
    soft_store32(f->cpu, 0x40, 1);
    g_assert_cmphex(soft_tlb_entry(f->cpu, 0)->write_tag, ==, 0);
    soft_keys_set(f->cpu, false, 1u << 10);
    g_assert_cmphex(soft_tlb_entry(f->cpu, 0)->write_tag, !=, 0);
    g_assert_cmphex(soft_tlb_entry(f->cpu, 0)->read_tag, !=, 0);
}

static void test_smep_smap(Fixture *f, gconstpointer unused)
{
    tables_long(f);
    paging(f, CR4_PAE | CR4_SMEP | CR4_SMAP, EFER_LME | EFER_LMA | EFER_NXE);
    g_assert_cmpint(walk(f, 0, SOFT_MMU_KERNEL, SOFT_EXECUTE), ==, FAULT(0x11));
    g_assert_cmpint(walk(f, 0, SOFT_MMU_KERNEL, SOFT_READ), ==, FAULT(1));
    g_assert_cmpint(walk(f, 0, SOFT_MMU_KERNEL, SOFT_WRITE), ==, FAULT(3));
    g_assert_cmphex(walk(f, 0, SOFT_MMU_KERNEL_SMAP_OFF, SOFT_WRITE), ==, 0x10000);
    g_assert_cmphex(walk(f, 0x2000, SOFT_MMU_KERNEL, SOFT_WRITE), ==, 0x12000);
    /* what the second level remembers obeys the rights of each kind of access */
    g_assert_cmphex(walk(f, 0, SOFT_MMU_USER, SOFT_WRITE), ==, 0x10000);
    g_assert_cmpint(walk(f, 0, SOFT_MMU_KERNEL, SOFT_READ), ==, FAULT(1));
}

static void test_accessed_dirty(Fixture *f, gconstpointer unused)
{
    tables_long(f);
    walk(f, 0, SOFT_MMU_USER, SOFT_READ);
    g_assert_cmphex(*entry64(f, 0x1000), ==, 0x2027);
    g_assert_cmphex(*entry64(f, 0x4000), ==, 0x10027);
    walk(f, 0, SOFT_MMU_USER, SOFT_WRITE);
    g_assert_cmphex(*entry64(f, 0x3000), ==, 0x4027);
    g_assert_cmphex(*entry64(f, 0x4000), ==, 0x10067);
    walk(f, 0x1000, SOFT_MMU_USER, SOFT_WRITE); /* faults: the leaf stays as it was */
    g_assert_cmphex(*entry64(f, 0x4008), ==, 0x11005);
}

static void test_pae(Fixture *f, gconstpointer unused)
{
    f->cpu->cr3 = 0x1020;
    *entry64(f, 0x1000) = 0x3000 | P;
    *entry64(f, 0x3000) = 0x4000 | P | W | U;
    *entry64(f, 0x3008) = 0x200000 | P | W | U | PS;
    *entry64(f, 0x4000) = 0x10000 | P | W | U;
    *entry64(f, 0x4008) = 0x11000 | P | W | U | 1ull << 62;
    paging(f, CR4_PAE, EFER_NXE);
    g_assert_cmphex(walk(f, 0x10, SOFT_MMU_USER, SOFT_WRITE), ==, 0x10010);
    g_assert_cmphex(walk(f, 0x200010, SOFT_MMU_USER, SOFT_WRITE), ==, 0x200010);
    g_assert_cmpint(walk(f, 0x1000, SOFT_MMU_USER, SOFT_READ), ==, FAULT(0xd));
    g_assert_cmpint(walk(f, 0x40000000, SOFT_MMU_USER, SOFT_READ), ==, FAULT(4));
    g_assert_cmphex(*entry64(f, 0x1000), ==, 0x3001); /* no accessed bit at this level */
    g_assert_true(soft_pdptes_valid(f->cpu, 0x1000));
    *entry64(f, 0x1008) = 0x3000 | P | W; /* W is reserved there */
    g_assert_false(soft_pdptes_valid(f->cpu, 0x1000));
}

static void test_32(Fixture *f, gconstpointer unused)
{
    *entry32(f, 0x1000) = 0x4000 | P | W | U;
    *entry32(f, 0x1004) = 0x00000000 | P | W | U | PS;
    *entry32(f, 0x1008) = 0x00002000 | P | W | U | PS; /* PSE-36: address bit 32 */
    *entry32(f, 0x100c) = 0x00200000 | P | W | U | PS; /* bit 21 is reserved */
    *entry32(f, 0x4000) = 0x10000 | P | W | U;
    *entry32(f, 0x4004) = 0x11000 | P;
    paging(f, CR4_PSE, 0);
    g_assert_cmphex(walk(f, 0x10, SOFT_MMU_USER, SOFT_WRITE), ==, 0x10010);
    g_assert_cmphex(walk(f, 0x523456, SOFT_MMU_USER, SOFT_WRITE), ==, 0x123456);
    g_assert_cmphex(walk(f, 0x800010, SOFT_MMU_USER, SOFT_READ), ==, 0x100000010);
    g_assert_cmpint(walk(f, 0xc00000, SOFT_MMU_USER, SOFT_READ), ==, FAULT(0xd));
    g_assert_cmpint(walk(f, 0x1000, SOFT_MMU_USER, SOFT_READ), ==, FAULT(5));
    g_assert_cmpint(walk(f, 0x1000, SOFT_MMU_USER, SOFT_EXECUTE), ==, FAULT(5)); /* no NX: no I bit */
    g_assert_cmphex(*entry32(f, 0x4000), ==, 0x10067);
}

static void test_no_paging(Fixture *f, gconstpointer unused)
{
    g_assert_cmphex(walk(f, 0x12345, SOFT_MMU_KERNEL_SMAP_OFF, SOFT_WRITE), ==, 0x12345);
    soft_store32(f->cpu, 0x20000, 0xcafe);
    g_assert_cmphex(*entry32(f, 0x20000), ==, 0xcafe);
    g_assert_cmphex(soft_load32(f->cpu, 0x20000), ==, 0xcafe);
}

static void test_invalidation(Fixture *f, gconstpointer unused)
{
    tables_long(f);
    *entry64(f, 0x4010) |= G;
    paging(f, CR4_PAE | CR4_PGE | CR4_PCIDE, EFER_LME | EFER_LMA | EFER_NXE);
    uint32_t epoch = f->cpu->fetch_epoch;
    walk(f, 0, SOFT_MMU_USER, SOFT_READ);
    walk(f, 0x2000, SOFT_MMU_KERNEL_SMAP_OFF, SOFT_READ);
    *entry64(f, 0x4000) = 0x18000 | P | W | U;
    *entry64(f, 0x4010) = 0x19000 | P | W | G;
    /* another PCID walks afresh, the first one remembers; global pages belong to all */
    soft_tlb_load_cr3(f->cpu, 0x1001, false);
    g_assert_cmphex(walk(f, 0, SOFT_MMU_USER, SOFT_READ), ==, 0x18000);
    g_assert_cmphex(walk(f, 0x2000, SOFT_MMU_KERNEL_SMAP_OFF, SOFT_READ), ==, 0x12000);
    soft_tlb_load_cr3(f->cpu, 0x1000, true);
    g_assert_cmphex(walk(f, 0, SOFT_MMU_USER, SOFT_READ), ==, 0x10000);
    soft_tlb_flush_page(f->cpu, 0x0);
    soft_tlb_flush_page(f->cpu, 0x2000);
    g_assert_cmphex(walk(f, 0, SOFT_MMU_USER, SOFT_READ), ==, 0x18000);
    g_assert_cmphex(walk(f, 0x2000, SOFT_MMU_KERNEL_SMAP_OFF, SOFT_READ), ==, 0x19000);
    g_assert_cmpuint(f->cpu->fetch_epoch, !=, epoch);
    /* one address of a large page takes its other fragments along */
    walk(f, 0x200000, SOFT_MMU_USER, SOFT_READ);
    *entry64(f, 0x3008) = P | W | U | PS;
    soft_tlb_flush_page(f->cpu, 0x3ff000);
    g_assert_cmphex(walk(f, 0x200000, SOFT_MMU_USER, SOFT_READ), ==, 0);
}

static void test_tags(Fixture *f, gconstpointer unused)
{
    /* Invalid entries hit nothing: neither the topmost page nor page 0. */
    tables_long(f);
    for (unsigned slot = 0; slot < SOFT_TLB_SIZE; slot++) {
        uint64_t tag = SOFT_TLB_INVALID(slot);
        for (unsigned size = 1; size <= 8; size *= 2) {
            g_assert_false(SOFT_TLB_HIT(tag, (uint64_t)slot << 12, size));
            g_assert_false(SOFT_TLB_HIT(tag, ~0ull << 22 | (uint64_t)slot << 12 | 0xff0, size));
        }
    }
}

static void test_straddle_and_devices(Fixture *f, gconstpointer unused)
{
    tables_long(f);
    f->cpu->mmu = SOFT_MMU_KERNEL_SMAP_OFF;
    *entry64(f, 0x4008) = 0x30000 | P | W | U;         /* 0 -> 10000, 1000 -> 30000 */
    *entry64(f, 0x4010) = 0xfee00000 | P | W | U;
    soft_store64(f->cpu, 0xffc, 0x1122334455667788ull);
    g_assert_cmphex(*entry32(f, 0x10ffc), ==, 0x55667788);
    g_assert_cmphex(*entry32(f, 0x30000), ==, 0x11223344);
    g_assert_cmphex(soft_load64(f->cpu, 0xffc), ==, 0x1122334455667788ull);
    /* a device sees natural accesses: 8 bytes at 2 as 2 + 4 + 2 */
    soft_store64(f->cpu, 0x2002, 0xaabbccddeeff0011ull);
    g_assert_cmpuint(f->n_mmio, ==, 3);
    g_assert_cmphex(f->mmio_gpa[1], ==, 0xfee00004);
    g_assert_cmpuint(f->mmio_size[1], ==, 4);
    g_assert_cmphex(f->mmio_value[1], ==, 0xccddeeff);
    /* a locked operand across pages is a copy until end */
    SoftRmw rmw;
    uint64_t *at = soft_rmw_begin(f->cpu, &rmw, 0xffc, 8, true);
    g_assert_true(rmw.bounced);
    *at += 1;
    soft_rmw_end(f->cpu, &rmw);
    g_assert_cmphex(soft_load64(f->cpu, 0xffc), ==, 0x1122334455667789ull);
}

static void test_code_pages(Fixture *f, gconstpointer unused)
{
    SoftVm *vm = soft_vm(f->cpu);
    tables_long(f);
    f->cpu->mmu = SOFT_MMU_KERNEL_SMAP_OFF;
    soft_store32(f->cpu, 0x10, 1); /* now in the write TLB */
    uint32_t generation = soft_page_protect(f->cpu, 0x10000);
    g_assert_cmphex(soft_page_generation(vm, 0x10000), ==, generation);
    SoftTlbEntry *e = soft_tlb_entry(f->cpu, 0x10);
    g_assert_false(SOFT_TLB_HIT(e->write_tag, 0x10, 4));
    uint8_t byte = 1;
    g_assert_true(soft_physical_write(vm, 0x10fff, &byte, 1));
    g_assert_cmphex(soft_page_generation(vm, 0x10000), !=, generation);
    generation = soft_page_protect(f->cpu, 0x10000);
    vcpu_engine_soft.ram_dirty(f->vm, 0xff00, 0x101);
    g_assert_cmphex(soft_page_generation(vm, 0x10000), !=, generation);
    g_assert_cmphex(soft_page_protect(f->cpu, 0xfee00000), ==, 0);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
#define ADD(name, fn) g_test_add("/soft/mmu/" name, Fixture, NULL, set_up, fn, tear_down)
    ADD("long", test_long);
    ADD("smep-smap", test_smep_smap);
    ADD("keys", test_keys);
    ADD("accessed-dirty", test_accessed_dirty);
    ADD("pae", test_pae);
    ADD("32", test_32);
    ADD("no-paging", test_no_paging);
    ADD("invalidation", test_invalidation);
    ADD("tags", test_tags);
    ADD("straddle-and-devices", test_straddle_and_devices);
    ADD("code-pages", test_code_pages);
#undef ADD
    return g_test_run();
}
