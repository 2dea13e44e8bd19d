/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Crafted kernels of every protocol, loaded into a buffer; each lie that a header can tell is
 * refused. */
#include <elf.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "machine/board/layout.h"
#include "machine/board/memory-map.h"
#include "machine/boot/boot.h"

#define RAM_SIZE (64ull << 20)

typedef struct Fixture {
    uint8_t *ram;
    BootImage image;
    VcpuState bsp;
} Fixture;

static uint8_t *fixture_ram(void *opaque, uint64_t gpa, uint64_t length)
{
    Fixture *f = opaque;
    return range_within(gpa, length, RAM_SIZE) ? f->ram + gpa : NULL;
}

static void fixture_dirty(void *opaque, uint64_t gpa, uint64_t length)
{
    g_assert_true(range_within(gpa, length, RAM_SIZE));
}

static void set_up(Fixture *f, gconstpointer unused)
{
    f->ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    f->image = (BootImage){.kernel = {.fd = -1},
                           .initrd = {.fd = -1},
                           .cmdline = "console=ttyS0 quiet",
                           .memory = {f, fixture_ram, fixture_dirty, RAM_SIZE, RAM_SIZE}};
    memset(&f->bsp, 0x55, sizeof(f->bsp));
}

static void tear_down(Fixture *f, gconstpointer unused)
{
    boot_file_close(&f->image.kernel);
    boot_file_close(&f->image.initrd);
    munmap(f->ram, RAM_SIZE);
}

static void set_file(BootFile *file, const void *data, size_t size, const char *name)
{
    boot_file_close(file);
    int fd = memfd_create(name, MFD_CLOEXEC);
    g_assert_cmpint(write(fd, data, size), ==, (gssize)size);
    *file = (BootFile){fd, size, g_strdup(name)};
}

/* Expects the load to work, or to fail with @code and a message that has @text in it. */
static void load(Fixture *f, const char *text)
{
    g_autoptr(GError) error = NULL;
    const BootProtocol *p = boot_protocol_find(&f->image, &error);
    bool ok = p && p->load(&f->image, &f->bsp, &error);
    if (!text) {
        g_assert_no_error(error);
        g_assert_true(ok);
        return;
    }
    g_assert_false(ok);
    g_assert_nonnull(error);
    if (!strstr(error->message, text))
        g_error("'%s' does not contain '%s'", error->message, text);
}

static uint32_t get32(Fixture *f, uint64_t gpa)
{
    return le32_get(f->ram + gpa);
}

/* ---- bzImage ---- */

#define BZ_SECTORS 2
#define BZ_SETUP   ((BZ_SECTORS + 1) * 512)
#define BZ_PAYLOAD 0x3000

static void make_bzimage(uint8_t *k)
{
    memset(k, 0, BZ_SETUP);
    memset(k + BZ_SETUP, 0xab, BZ_PAYLOAD);
    k[0x1f1] = BZ_SECTORS;
    le16_put(k + 0x1fe, 0xaa55);
    k[0x200] = 0xeb;
    k[0x201] = 0x66;
    memcpy(k + 0x202, "HdrS", 4);
    le16_put(k + 0x206, 0x020f);
    k[0x211] = 1;
    le32_put(k + 0x1f4, BZ_PAYLOAD / 16);
    le32_put(k + 0x22c, 0x7fffffff);
    le32_put(k + 0x230, 0x200000);
    k[0x234] = 1;
    le16_put(k + 0x236, 1);
    le32_put(k + 0x238, 2047);
    le64_put(k + 0x258, 0x1000000);
    le32_put(k + 0x260, 0x800000);
}

static void test_bzimage(Fixture *f, gconstpointer unused)
{
    uint8_t k[BZ_SETUP + BZ_PAYLOAD], initrd[5000];
    make_bzimage(k);
    memset(initrd, 0x77, sizeof(initrd));
    set_file(&f->image.kernel, k, sizeof(k), "vmlinuz");
    set_file(&f->image.initrd, initrd, sizeof(initrd), "initrd");
    load(f, NULL);
    g_assert_cmphex(f->bsp.rip, ==, 0x1000200);
    g_assert_cmphex(f->bsp.gpr[GPR_RSI], ==, BOOT_PARAMS);
    g_assert_cmphex(f->bsp.efer, ==, 0x500);
    g_assert_true(f->bsp.seg[SEG_CS].attr & SEG_ATTR_L);
    g_assert_cmpint(f->bsp.seg[SEG_CS].selector, ==, 0x10);
    g_assert_cmpint(f->bsp.seg[SEG_DS].selector, ==, 0x18);
    g_assert_cmpint(f->ram[0x1000000], ==, 0xab);
    /* Identity mapping: the PDE of 16 MiB. */
    uint64_t pd = le64_get(f->ram + (le64_get(f->ram + f->bsp.cr3) & ~0xfffull)) & ~0xfffull;
    g_assert_cmphex(le64_get(f->ram + pd + 8 * 8), ==, 0x1000083);
    /* Zero page. */
    uint32_t at = get32(f, BOOT_PARAMS + 0x218);
    g_assert_cmpint(get32(f, BOOT_PARAMS + 0x21c), ==, sizeof(initrd));
    g_assert_cmphex(at & 0xfff, ==, 0);
    g_assert_cmpmem(f->ram + at, sizeof(initrd), initrd, sizeof(initrd));
    g_assert_cmpuint(at + sizeof(initrd), <=, memory_map_low_end(RAM_SIZE));
    g_assert_cmpstr((char *)f->ram + get32(f, BOOT_PARAMS + 0x228), ==, f->image.cmdline);
    g_assert_cmphex(le64_get(f->ram + BOOT_PARAMS + 0x70), ==, LAYOUT_RSDP_BASE);
    g_assert_cmpint(f->ram[BOOT_PARAMS + 0x210], ==, 0xff);
    g_assert_cmpint(f->ram[BOOT_PARAMS + 0x1e8], ==, 7);
    g_assert_cmphex(le64_get(f->ram + BOOT_PARAMS + 0x2d0 + 3 * 20), ==, 0x100000);
}

static void test_bzimage_32(Fixture *f, gconstpointer unused)
{
    uint8_t k[BZ_SETUP + BZ_PAYLOAD];
    make_bzimage(k);
    le16_put(k + 0x236, 0);
    set_file(&f->image.kernel, k, sizeof(k), "vmlinuz");
    load(f, NULL);
    g_assert_cmphex(f->bsp.rip, ==, 0x1000000);
    g_assert_cmphex(f->bsp.cr0 & 0x80000001, ==, 1);
    g_assert_true(f->bsp.seg[SEG_CS].attr & SEG_ATTR_DB);
}

static void test_bzimage_relocated(Fixture *f, gconstpointer unused)
{
    uint8_t k[BZ_SETUP + BZ_PAYLOAD];
    make_bzimage(k);
    le64_put(k + 0x258, 0x8000000); /* beyond RAM */
    set_file(&f->image.kernel, k, sizeof(k), "vmlinuz");
    load(f, NULL);
    g_assert_cmphex(f->bsp.rip, ==, 0x200200);
    k[0x234] = 0;
    set_file(&f->image.kernel, k, sizeof(k), "vmlinuz");
    load(f, "more memory");
}

static void test_bzimage_refused(Fixture *f, gconstpointer unused)
{
    uint8_t k[BZ_SETUP + BZ_PAYLOAD];
    make_bzimage(k);
    set_file(&f->image.kernel, k, BZ_SETUP, "vmlinuz");
    load(f, "cut short");
    set_file(&f->image.kernel, k, BZ_SETUP + BZ_PAYLOAD - 16, "vmlinuz");
    load(f, "should have");
    k[0x1f1] = 200;
    set_file(&f->image.kernel, k, sizeof(k), "vmlinuz");
    load(f, "cut short");
    make_bzimage(k);
    le32_put(k + 0x260, 0xffffffff);
    set_file(&f->image.kernel, k, sizeof(k), "vmlinuz");
    load(f, "more memory");
    make_bzimage(k);
    le64_put(k + 0x258, UINT64_MAX - 5);
    k[0x234] = 0;
    set_file(&f->image.kernel, k, sizeof(k), "vmlinuz");
    load(f, "more memory");
    make_bzimage(k);
    le32_put(k + 0x238, 4);
    set_file(&f->image.kernel, k, sizeof(k), "vmlinuz");
    load(f, "command line has 19 bytes");
    make_bzimage(k);
    le16_put(k + 0x206, 0x0205);
    set_file(&f->image.kernel, k, sizeof(k), "vmlinuz");
    load(f, "neither a Linux bzImage");
}

static void test_initrd_refused(Fixture *f, gconstpointer unused)
{
    uint8_t k[BZ_SETUP + BZ_PAYLOAD];
    make_bzimage(k);
    set_file(&f->image.kernel, k, sizeof(k), "vmlinuz");
    set_file(&f->image.initrd, "x", 1, "initrd");
    g_assert_cmpint(ftruncate(f->image.initrd.fd, RAM_SIZE), ==, 0);
    f->image.initrd.size = RAM_SIZE;
    load(f, "does not fit");
    /* Smaller than memory, but the kernel is in the way on both sides. */
    f->image.initrd.size = RAM_SIZE - (14ull << 20);
    load(f, "does not fit");
}

/* ---- ELF: PVH and multiboot ---- */

typedef struct ElfFile {
    Elf64_Ehdr header;
    Elf64_Phdr segment[2];
    struct {
        uint32_t name_size, size, type;
        char name[4];
        uint32_t entry;
    } note;
    uint8_t code[0x40];
} ElfFile;

static void make_elf(ElfFile *e)
{
    memset(e, 0, sizeof(*e));
    memcpy(e->header.e_ident, ELFMAG, SELFMAG);
    e->header.e_ident[EI_CLASS] = ELFCLASS64;
    e->header.e_ident[EI_DATA] = ELFDATA2LSB;
    e->header.e_machine = EM_X86_64;
    e->header.e_entry = 0x200010;
    e->header.e_phoff = offsetof(ElfFile, segment);
    e->header.e_phentsize = sizeof(Elf64_Phdr);
    e->header.e_phnum = 2;
    e->segment[0] = (Elf64_Phdr){.p_type = PT_LOAD,
                                 .p_offset = offsetof(ElfFile, code),
                                 .p_paddr = 0x200000,
                                 .p_filesz = sizeof(e->code),
                                 .p_memsz = 0x1000};
    e->segment[1] = (Elf64_Phdr){.p_type = PT_NOTE,
                                 .p_offset = offsetof(ElfFile, note),
                                 .p_filesz = sizeof(e->note),
                                 .p_memsz = sizeof(e->note)};
    e->note.name_size = 4;
    e->note.size = 4;
    e->note.type = 18;
    memcpy(e->note.name, "Xen", 4);
    e->note.entry = 0x200020;
    memset(e->code, 0x90, sizeof(e->code));
}

static void test_pvh(Fixture *f, gconstpointer unused)
{
    ElfFile e;
    make_elf(&e);
    f->ram[0x200800] = 0xff; /* BSS is zeroed */
    set_file(&f->image.kernel, &e, sizeof(e), "vmlinux");
    set_file(&f->image.initrd, "initrd", 6, "initrd");
    load(f, NULL);
    g_assert_cmphex(f->bsp.rip, ==, 0x200020);
    g_assert_cmphex(f->bsp.cr0 & 0x80000001, ==, 1);
    g_assert_cmpint(f->ram[0x200000], ==, 0x90);
    g_assert_cmpint(f->ram[0x200800], ==, 0);
    uint64_t info = f->bsp.gpr[GPR_RBX];
    g_assert_cmphex(get32(f, info), ==, 0x336ec578);
    g_assert_cmpint(get32(f, info + 12), ==, 1);
    uint64_t module = le64_get(f->ram + info + 16);
    g_assert_cmpmem(f->ram + le64_get(f->ram + module), 6, "initrd", 6);
    g_assert_cmpstr((char *)f->ram + le64_get(f->ram + info + 24), ==, f->image.cmdline);
    g_assert_cmpint(get32(f, info + 48), ==, 7);
}

static void test_elf_refused(Fixture *f, gconstpointer unused)
{
    ElfFile e;
    static const struct {
        unsigned which;
        const char *text;
    } cases[] = {{0, "neither"}, {1, "neither"}, {2, "neither"},
                 {3, "neither"}, {4, "neither"}, {5, "entry lies outside"},
                 {6, "neither"}, {7, "neither"}};
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        make_elf(&e);
        switch (cases[i].which) {
        case 0:
            e.segment[0].p_paddr = RAM_SIZE;
            break;
        case 1:
            e.segment[0].p_paddr = 0x1000; /* where the loader's own data lies */
            break;
        case 2:
            e.segment[0].p_memsz = UINT64_MAX;
            break;
        case 3:
            e.header.e_phnum = 0xffff;
            break;
        case 4:
            e.header.e_phoff = UINT64_MAX - 10;
            break;
        case 5:
            e.note.entry = 0x300000;
            break;
        case 6:
            e.segment[1].p_filesz = UINT64_MAX;
            break;
        default:
            e.note.name_size = UINT32_MAX;
            break;
        }
        set_file(&f->image.kernel, &e, sizeof(e), "vmlinux");
        load(f, cases[i].text);
    }
    make_elf(&e);
    e.segment[0].p_offset = UINT64_MAX - 3;
    set_file(&f->image.kernel, &e, sizeof(e), "vmlinux");
    load(f, "cut short");
}

static void put_multiboot(uint8_t *at, uint32_t flags)
{
    le32_put(at, 0x1badb002);
    le32_put(at + 4, flags);
    le32_put(at + 8, -(0x1badb002u + flags));
}

static void check_multiboot_info(Fixture *f)
{
    uint64_t info = f->bsp.gpr[GPR_RBX];
    g_assert_cmphex(f->bsp.gpr[GPR_RAX], ==, 0x2badb002);
    g_assert_cmphex(get32(f, info), ==, 0x24d);
    g_assert_cmpint(get32(f, info + 4), ==, 639);
    g_autofree char *cmdline = g_strconcat(f->image.kernel.path, " ", f->image.cmdline, NULL);
    g_assert_cmpstr((char *)f->ram + get32(f, info + 16), ==, cmdline);
    g_assert_cmpint(get32(f, info + 44), ==, 7 * 24);
    uint32_t map = get32(f, info + 48);
    g_assert_cmpint(get32(f, map), ==, 20);
    g_assert_cmpint(get32(f, map + 20), ==, MEMORY_RAM);
    if (get32(f, info + 20)) {
        uint32_t module = get32(f, info + 24);
        g_assert_cmpint(get32(f, module + 4) - get32(f, module), ==, 6);
        g_assert_cmpstr((char *)f->ram + get32(f, module + 8), ==, "initrd");
    }
}

/* The kernel's entry: where the code that stands for a BIOS jumps, with the interrupt table set. */
static uint64_t entry_behind_bios(Fixture *f)
{
    const uint8_t *code = f->ram + f->bsp.rip;
    g_assert_cmphex(f->bsp.rip, >=, 0xff000);
    for (unsigned i = 0; i < 256; i++)
        g_assert_cmphex(get32(f, 4 * i) >> 16, ==, 0xf000);
    for (unsigned i = 0; i < 0x80; i++)
        if (code[i] == 0xb9 && code[i + 5] == 0xff && code[i + 6] == 0xe1) /* mov ecx; jmp ecx */
            return le32_get(code + i + 1);
    g_assert_not_reached();
}

static void test_multiboot_elf(Fixture *f, gconstpointer unused)
{
    ElfFile e;
    make_elf(&e);
    e.note.type = 1;
    put_multiboot(e.code, 3);
    set_file(&f->image.kernel, &e, sizeof(e), "test.elf");
    set_file(&f->image.initrd, "initrd", 6, "initrd");
    load(f, NULL);
    g_assert_cmphex(entry_behind_bios(f), ==, 0x200010);
    check_multiboot_info(f);
    put_multiboot(e.code, 0x10);
    set_file(&f->image.kernel, &e, sizeof(e), "test.elf");
    load(f, "requires multiboot features 0x10");
}

static void make_flat(uint8_t *k, uint32_t header, uint32_t start, uint32_t load_end,
                      uint32_t bss_end, uint32_t entry)
{
    memset(k, 0x90, 0x1000);
    put_multiboot(k + 0x100, 0x10000);
    le32_put(k + 0x10c, header);
    le32_put(k + 0x110, start);
    le32_put(k + 0x114, load_end);
    le32_put(k + 0x118, bss_end);
    le32_put(k + 0x11c, entry);
}

static void test_multiboot_flat(Fixture *f, gconstpointer unused)
{
    uint8_t k[0x1000];
    make_flat(k, 0x400080, 0x400000, 0x400800, 0x401000, 0x400200);
    k[0x80] = 0x42; /* loading starts 0x80 bytes into the file */
    set_file(&f->image.kernel, k, sizeof(k), "test.flat");
    f->ram[0x400900] = 1;
    load(f, NULL);
    g_assert_cmphex(entry_behind_bios(f), ==, 0x400200);
    g_assert_cmpint(f->ram[0x400000], ==, 0x42);
    g_assert_cmpint(f->ram[0x400900], ==, 0);
    check_multiboot_info(f);
    make_flat(k, 0x400100, 0x400000, 0, 0, 0x400200);
    set_file(&f->image.kernel, k, sizeof(k), "test.flat");
    load(f, NULL);
    make_flat(k, 0x8100, 0x8000, 0, 0, 0x8200); /* an image that stays in real mode */
    set_file(&f->image.kernel, k, sizeof(k), "test.flat");
    load(f, NULL);
    g_assert_cmphex(entry_behind_bios(f), ==, 0x8200);
    check_multiboot_info(f);

    static const struct {
        uint32_t header, start, load_end, bss_end, entry;
        const char *text;
    } bad[] = {
        {0x400000, 0x400080, 0, 0, 0x400200, "does not match"},
        {0x400200, 0x400000, 0, 0, 0x400200, "does not match"},
        {0x400100, 0x400000, 0x3fffff, 0, 0x400200, "outside the file"},
        {0x400100, 0x400000, 0xffffffff, 0, 0x400200, "outside the file"},
        {0x400100, 0x400000, 0, 0xffffffff, 0x400200, "no memory for it"},
        {0x000100, 0x000000, 0, 0, 0x000200, "no memory for it"},
        {0x007100, 0x007000, 0, 0, 0x007200, "no memory for it"},
        {0x01f200, 0x01f100, 0, 0, 0x01f200, "no memory for it"},
        {0x400100, 0x400000, 0, 0, 0x100000, "entry lies outside"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        make_flat(k, bad[i].header, bad[i].start, bad[i].load_end, bad[i].bss_end, bad[i].entry);
        set_file(&f->image.kernel, k, sizeof(k), "test.flat");
        load(f, bad[i].text);
    }
}

static void test_files(Fixture *f, gconstpointer unused)
{
    g_autoptr(GError) error = NULL;
    BootFile file = {.fd = -1};
    g_assert_false(boot_file_open(&file, "kernel", "/nowhere/vmlinuz", 100, &error));
    g_assert_error(error, LODGE_ERROR, LODGE_ERROR_NOT_FOUND);
    g_clear_error(&error);
    g_assert_false(boot_file_open(&file, "kernel", "/dev/zero", 100, &error));
    g_assert_error(error, LODGE_ERROR, LODGE_ERROR_INVALID);
    set_file(&f->image.kernel, "", 0, "empty");
    load(f, "neither");
    set_file(&f->image.kernel,
             "\x7f"
             "ELF",
             4, "short");
    load(f, "neither");
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
#define ADD(name, function) g_test_add("/boot/" name, Fixture, NULL, set_up, function, tear_down)
    ADD("bzimage", test_bzimage);
    ADD("bzimage-32", test_bzimage_32);
    ADD("bzimage-relocated", test_bzimage_relocated);
    ADD("bzimage-refused", test_bzimage_refused);
    ADD("initrd-refused", test_initrd_refused);
    ADD("pvh", test_pvh);
    ADD("elf-refused", test_elf_refused);
    ADD("multiboot-elf", test_multiboot_elf);
    ADD("multiboot-flat", test_multiboot_flat);
    ADD("files", test_files);
    return g_test_run();
}
