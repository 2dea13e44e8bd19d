/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The IOMMU by its registers and tables, with the edu function behind it. */
#include "base/bytes.h"
#include "machine/board/layout.h"
#include "machine/iommu/vtd.h"
#include "machine/pci/pci-internal.h"
#include "machine/test-machine.h"

#define EDU_BAR    0xc0000000u
#define ROOT       0x10000u
#define CONTEXT    0x11000u
#define TABLES     0x12000u /* three levels, a page each */
#define INTERRUPTS 0x16000u
#define QUEUE      0x17000u
#define PAGE       0x20000u
#define IOVA       0x5000u

typedef struct Fixture {
    Machine *m;
    PciDevice *edu;
    uint16_t source;
} Fixture;

static Device *add(Machine *m, const char *type)
{
    g_autoptr(GError) error = NULL;
    MachineItem *item = machine_item_new(type, NULL);
    g_ptr_array_add(m->config->devices, item); /* which owns it */
    machine_lock(m);
    Device *dev = device_new(m, device_type_find(type), item, &error);
    machine_unlock(m);
    g_assert_no_error(error);
    return dev;
}

static void set_up(Fixture *f, gconstpointer unused)
{
    f->m = test_board(2);
    add(f->m, "intel-iommu");
    f->edu = (PciDevice *)add(f->m, "edu");
    f->source = f->edu->devfn;
    le32_put(f->edu->config + PCI_BAR0, EDU_BAR);
    le16_put(f->edu->config + PCI_COMMAND, 6); /* memory, bus master */
    g_assert_true(pci_device_loaded(f->edu, NULL));
    for (unsigned i = 0; i < 2; i++)
        test_mmio_write(f->m, i, LAYOUT_LAPIC_BASE + 0xf0, 4, 0x1ff);
}

static void tear_down(Fixture *f, gconstpointer unused)
{
    machine_free(f->m);
}

static uint64_t reg(Fixture *f, unsigned offset, unsigned size)
{
    return test_mmio_read(f->m, 0, LAYOUT_IOMMU_BASE + offset, size);
}

static void set_reg(Fixture *f, unsigned offset, unsigned size, uint64_t value)
{
    test_mmio_write(f->m, 0, LAYOUT_IOMMU_BASE + offset, size, value);
}

static void put(Fixture *f, uint64_t at, uint64_t value)
{
    le64_put(machine_ram(f->m, at, 8), value);
}

static void edu(Fixture *f, unsigned offset, unsigned size, uint64_t value)
{
    test_mmio_write(f->m, 0, EDU_BAR + offset, size, value);
}

/* Copies 4 bytes from @from to @to, one of them in the buffer. */
static void copy(Fixture *f, uint64_t from, uint64_t to)
{
    edu(f, 0x80, 8, from);
    edu(f, 0x88, 8, to);
    edu(f, 0x90, 8, 4);
    edu(f, 0x98, 4, to >= 0x40000 && to < 0x41000 ? 1 : 3);
    g_assert_cmphex(test_mmio_read(f->m, 0, EDU_BAR + 0x98, 4) & 1, ==, 0);
}

static void translation_on(Fixture *f)
{
    put(f, ROOT, CONTEXT | 1);
    put(f, CONTEXT + f->source * 16, TABLES | 1);
    put(f, CONTEXT + f->source * 16 + 8, 1); /* 39 bits */
    put(f, TABLES, (TABLES + 0x1000) | 3);
    put(f, TABLES + 0x1000, (TABLES + 0x2000) | 3);
    put(f, TABLES + 0x2000 + IOVA / 0x1000 * 8, PAGE | 1); /* read only */
    set_reg(f, VTD_RTADDR, 8, ROOT);
    set_reg(f, VTD_GCMD, 4, VTD_G_ROOT);
    set_reg(f, VTD_GCMD, 4, VTD_G_TRANSLATION);
    g_assert_cmphex(reg(f, VTD_GSTS, 4), ==, VTD_G_ROOT | VTD_G_TRANSLATION);
}

static void test_dma(Fixture *f, gconstpointer unused)
{
    put(f, PAGE, 0x1122334455667788);
    copy(f, PAGE, 0x40000); /* off: addresses are physical */
    copy(f, 0x40000, PAGE + 8);
    g_assert_cmphex(le32_get(machine_ram(f->m, PAGE + 8, 4)), ==, 0x55667788);
    translation_on(f);
    copy(f, IOVA + 4, 0x40000);
    copy(f, 0x40000, IOVA + 12); /* not writable */
    g_assert_cmphex(le32_get(machine_ram(f->m, PAGE + 12, 4)), ==, 0);
    g_assert_cmphex(reg(f, VTD_FSTS, 4), ==, 2);
    g_assert_cmphex(reg(f, VTD_FRCD, 8), ==, IOVA);
    g_assert_cmphex(reg(f, VTD_FRCD + 8, 8), ==, UINT64_C(0x8000000500000000) | f->source);
    copy(f, IOVA + 0x1000, 0x40000); /* a second fault: overflow */
    g_assert_cmphex(reg(f, VTD_FSTS, 4), ==, 3);
    set_reg(f, VTD_FRCD + 12, 4, 1u << 31);
    set_reg(f, VTD_FSTS, 4, 1);
    g_assert_cmphex(reg(f, VTD_FSTS, 4), ==, 0);
    put(f, TABLES + 0x2000 + IOVA / 0x1000 * 8, PAGE | 3);
    copy(f, 0x40000, IOVA + 12); /* nothing was cached */
    g_assert_cmphex(le32_get(machine_ram(f->m, PAGE + 12, 4)), ==, 0x11223344);
    put(f, TABLES + 0x1000, 0x200000 | 0x83); /* a page of 2 MiB */
    put(f, 0x200008, 0xcafe);
    copy(f, 8, 0x40000);
    copy(f, 0x40000, 12);
    g_assert_cmphex(le32_get(machine_ram(f->m, 0x20000c, 4)), ==, 0xcafe);
    copy(f, UINT64_C(1) << 39, 0x40000);
    g_assert_cmphex(reg(f, VTD_FRCD + 12, 4), ==, 0xc0000004); /* beyond the tables, reading */
}

static int taken(Fixture *f, unsigned vcpu)
{
    int vector = lapic_acknowledge(f->m->irq.lapic, vcpu);
    test_mmio_write(f->m, vcpu, LAYOUT_LAPIC_BASE + 0xb0, 4, 0);
    return vector;
}

/* MSI to @address; the edu function's capability is its first. */
static void message(Fixture *f, uint32_t address, uint16_t data)
{
    uint8_t *msi = f->edu->config + f->edu->config[PCI_CAPABILITIES];
    le32_put(msi + 4, address);
    le16_put(msi + 12, data);
    le16_put(msi + 2, 0x81);
    edu(f, 0x60, 4, 1);
    edu(f, 0x64, 4, 1);
}

static void test_interrupts(Fixture *f, gconstpointer unused)
{
    message(f, 0xfee01000, 0x51);
    g_assert_cmpint(taken(f, 1), ==, 0x51);
    put(f, INTERRUPTS + 3 * 16, 1 | 0x520000 | UINT64_C(0x0100) << 32); /* to 1, vector 52H */
    put(f, INTERRUPTS + 3 * 16 + 8, f->source | 1 << 18);
    set_reg(f, VTD_IRTA, 8, INTERRUPTS | 7);
    set_reg(f, VTD_GCMD, 4, VTD_G_IRT);
    set_reg(f, VTD_GCMD, 4, VTD_G_INTERRUPTS);
    message(f, 0xfee00010 | 3 << 5, 0);
    g_assert_cmpint(taken(f, 1), ==, 0x52);
    message(f, 0xfee00018 | 1 << 5, 2); /* with a subhandle */
    g_assert_cmpint(taken(f, 1), ==, 0x52);
    put(f, INTERRUPTS + 3 * 16 + 8, (f->source ^ 8u) | 1 << 18); /* another's */
    message(f, 0xfee00010 | 3 << 5, 0);
    g_assert_cmpint(taken(f, 1), ==, -1);
    g_assert_cmphex(reg(f, VTD_FRCD + 12, 4), ==, 0x80000026);
    set_reg(f, VTD_FRCD + 12, 4, 1u << 31);
    message(f, 0xfee00010 | 300 << 5, 0); /* beyond 256 entries */
    g_assert_cmphex(reg(f, VTD_FRCD + 12, 4), ==, 0x80000021);
    set_reg(f, VTD_FRCD + 12, 4, 1u << 31);
    message(f, 0xfee01000, 0x51); /* the old format is blocked, until it is allowed */
    g_assert_cmpint(taken(f, 1), ==, -1);
    set_reg(f, VTD_GCMD, 4, VTD_G_INTERRUPTS | VTD_G_COMPATIBLE);
    message(f, 0xfee01000, 0x51);
    g_assert_cmpint(taken(f, 1), ==, 0x51);
    /* the IOAPIC's pin 5 */
    test_mmio_write(f->m, 0, LAYOUT_IOAPIC_BASE, 4, 0x10 + 2 * 5 + 1);
    test_mmio_write(f->m, 0, LAYOUT_IOAPIC_BASE + 0x10, 4, 3 << 17 | 1 << 16);
    test_mmio_write(f->m, 0, LAYOUT_IOAPIC_BASE, 4, 0x10 + 2 * 5);
    test_mmio_write(f->m, 0, LAYOUT_IOAPIC_BASE + 0x10, 4, 0x52);
    machine_set_gsi(f->m, 5, true);
    g_assert_cmpint(taken(f, 1), ==, 0x52);
}

static void test_queue(Fixture *f, gconstpointer unused)
{
    set_reg(f, VTD_IQA, 8, QUEUE);
    put(f, QUEUE, 2 | 1 << 4); /* IOTLB, all */
    put(f, QUEUE + 16, 5 | 1 << 5 | UINT64_C(0x1234) << 32);
    put(f, QUEUE + 24, PAGE);
    set_reg(f, VTD_GCMD, 4, VTD_G_QUEUE);
    set_reg(f, VTD_IQT, 8, 32);
    g_assert_cmphex(reg(f, VTD_IQH, 8), ==, 32);
    g_assert_cmphex(le32_get(machine_ram(f->m, PAGE, 4)), ==, 0x1234);
    put(f, QUEUE + 32, 0xf); /* no descriptor: stands still until the error is cleared */
    set_reg(f, VTD_IQT, 8, 48);
    g_assert_cmphex(reg(f, VTD_FSTS, 4), ==, 0x10);
    g_assert_cmphex(reg(f, VTD_IQH, 8), ==, 32);
    put(f, QUEUE + 32, 5 | 1 << 4); /* a wait with an interrupt, masked */
    set_reg(f, VTD_FSTS, 4, 0x10);
    g_assert_cmphex(reg(f, VTD_IQH, 8), ==, 48);
    g_assert_cmphex(reg(f, VTD_ICS, 4), ==, 1);
    g_assert_cmphex(reg(f, VTD_IECTL, 4), ==, 0xc0000000);
    set_reg(f, VTD_IECTL + 4, 4, 0x61);
    set_reg(f, VTD_IECTL + 8, 4, 0xfee00000);
    set_reg(f, VTD_IECTL, 4, 0); /* what was pending goes out */
    g_assert_cmpint(taken(f, 0), ==, 0x61);
    set_reg(f, VTD_IQT, 8, 0x2000); /* outside the queue */
    g_assert_cmphex(reg(f, VTD_FSTS, 4), ==, 0x10);
    set_reg(f, VTD_IOTLB, 8, UINT64_C(0x9000000000000000)); /* by register: done, globally */
    g_assert_cmphex(reg(f, VTD_IOTLB + 4, 4), ==, 0x12000000);
}

static void test_edu(Fixture *f, gconstpointer unused)
{
    g_assert_cmphex(test_mmio_read(f->m, 0, EDU_BAR, 4), ==, 0x010000ed);
    edu(f, 4, 4, 0x1234);
    g_assert_cmphex(test_mmio_read(f->m, 0, EDU_BAR + 4, 4), ==, 0xffffedcb);
    edu(f, 8, 4, 10);
    g_assert_cmpuint(test_mmio_read(f->m, 0, EDU_BAR + 8, 4), ==, 3628800);
    edu(f, 8, 4, UINT32_MAX); /* ends all the same */
    g_assert_cmpuint(test_mmio_read(f->m, 0, EDU_BAR + 8, 4), ==, 0);
    edu(f, 0x60, 4, 6);
    g_assert_cmphex(test_mmio_read(f->m, 0, EDU_BAR + 0x24, 4), ==, 6);
    g_assert_true(f->edu->intx_level);
    edu(f, 0x64, 4, 6);
    g_assert_false(f->edu->intx_level);
    copy(f, PAGE, 0x40ffd); /* past the buffer's end */
    copy(f, UINT64_MAX - 1, 0x40000);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
#define ADD(name, fn) g_test_add("/iommu/" name, Fixture, NULL, set_up, fn, tear_down)
    ADD("dma", test_dma);
    ADD("interrupts", test_interrupts);
    ADD("queue", test_queue);
    ADD("edu", test_edu);
    return g_test_run();
}
