/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "machine/boot/boot.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "machine/board/memory-map.h"

#define PAGE              4096u
#define PTE_PRESENT_WRITE 3u
#define PTE_LARGE         0x80u
#define CR0_PE            1u
#define CR0_ET            0x10u
#define CR0_PG            0x80000000u
#define CR4_PAE           0x20u
#define EFER_LME          0x100u
#define EFER_LMA          0x400u
#define RFLAGS_FIXED      2u
#define SELECTOR_CODE     0x10
#define SELECTOR_DATA     0x18
#define ATTR_CODE64       (0xbu | SEG_ATTR_S | SEG_ATTR_P | SEG_ATTR_L | SEG_ATTR_G)
#define ATTR_CODE32       (0xbu | SEG_ATTR_S | SEG_ATTR_P | SEG_ATTR_DB | SEG_ATTR_G)
#define ATTR_DATA         (0x3u | SEG_ATTR_S | SEG_ATTR_P | SEG_ATTR_DB | SEG_ATTR_G)
#define ATTR_TSS_BUSY     (0xbu | SEG_ATTR_P)

/* Multiboot first: images that offer it too expect its information. */
static const BootProtocol *const boot_protocols[] = {&boot_protocol_bzimage,
                                                     &boot_protocol_multiboot, &boot_protocol_pvh};

const BootProtocol *boot_protocol_find(const BootImage *image, GError **err)
{
    g_autofree uint8_t *head = g_malloc0(BOOT_HEAD_SIZE);
    uint64_t size = MIN(image->kernel.size, BOOT_HEAD_SIZE);
    if (!boot_file_read(&image->kernel, 0, head, size, err))
        return NULL;
    for (size_t i = 0; i < G_N_ELEMENTS(boot_protocols); i++)
        if (boot_protocols[i]->probe(image, head, size))
            return boot_protocols[i];
    lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
               "kernel '%s' is neither a Linux bzImage (protocol 2.06 or later) nor a PVH or "
               "multiboot image",
               image->kernel.path);
    return NULL;
}

/* ---- files ---- */

bool boot_file_open(BootFile *file, const char *what, const char *path, uint64_t size_max,
                    GError **err)
{
    struct stat st;
    /* O_NONBLOCK: a FIFO must not hold up the start. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return lodge_fail_errno(err, errno, "cannot open %s '%s'", what, path);
    bool ok = false;
    if (fstat(fd, &st) < 0)
        lodge_fail_errno(err, errno, "%s '%s'", what, path);
    else if (!S_ISREG(st.st_mode))
        lodge_fail(err, LODGE_ERROR_INVALID, "%s '%s' is not a regular file", what, path);
    else if ((uint64_t)st.st_size > size_max)
        lodge_fail(err, LODGE_ERROR_LIMIT, "%s '%s' is larger than %" G_GUINT64_FORMAT " MiB", what,
                   path, size_max >> 20);
    else
        ok = true;
    if (!ok) {
        close(fd);
        return false;
    }
    *file = (BootFile){.fd = fd, .size = st.st_size, .path = g_strdup(path)};
    return true;
}

void boot_file_close(BootFile *file)
{
    if (file->fd >= 0)
        close(file->fd);
    g_free(file->path);
    *file = (BootFile){.fd = -1};
}

bool boot_file_read(const BootFile *file, uint64_t offset, void *to, uint64_t length, GError **err)
{
    uint8_t *at = to;
    if (!range_within(offset, length, file->size))
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "'%s' is cut short: its headers name bytes up to %" G_GUINT64_FORMAT
                          ", it has %" G_GUINT64_FORMAT,
                          file->path, offset + length, file->size);
    while (length) {
        ssize_t n = pread(file->fd, at, length, offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return lodge_fail_errno(err, errno, "cannot read '%s'", file->path);
        if (n == 0)
            return lodge_fail(err, LODGE_ERROR_CORRUPT, "'%s' became shorter", file->path);
        at += n;
        offset += n;
        length -= n;
    }
    return true;
}

bool boot_file_load(const BootImage *image, const BootFile *file, uint64_t offset, uint64_t length,
                    uint64_t gpa, uint64_t memory_length, GError **err)
{
    const BootMemory *memory = &image->memory;
    if (memory_length == 0)
        return true;
    uint8_t *ram = length <= memory_length ? memory->ram(memory->opaque, gpa, memory_length) : NULL;
    if (!ram)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "'%s' does not fit: 0x%" G_GINT64_MODIFIER
                          "x bytes at 0x%" G_GINT64_MODIFIER "x",
                          file->path, memory_length, gpa);
    if (!boot_file_read(file, offset, ram, length, err))
        return false;
    memset(ram + length, 0, memory_length - length);
    memory->dirty(memory->opaque, gpa, memory_length);
    return true;
}

/* ---- guest memory ---- */

bool boot_write(const BootImage *image, uint64_t gpa, const void *data, uint64_t length,
                GError **err)
{
    const BootMemory *memory = &image->memory;
    uint8_t *ram = memory->ram(memory->opaque, gpa, length);
    if (!ram)
        return lodge_fail(err, LODGE_ERROR_INVALID, "the machine has too little memory to boot");
    memcpy(ram, data, length);
    memory->dirty(memory->opaque, gpa, length);
    return true;
}

bool boot_is_usable(const BootImage *image, uint64_t gpa, uint64_t length)
{
    uint64_t end = memory_map_low_end(image->memory.low_ram);
    return gpa >= BOOT_KERNEL_MIN && range_within(gpa, length, end);
}

bool boot_kernel_fits(const BootImage *image, uint64_t gpa, uint64_t length)
{
    return boot_is_usable(image, gpa, length) ||
           (gpa >= BOOT_LOW_KERNEL && range_within(gpa, length, BOOT_LOW_END));
}

bool boot_load_initrd(const BootImage *image, uint64_t limit, uint64_t keep_start,
                      uint64_t keep_end, uint64_t *gpa, GError **err)
{
    const BootFile *initrd = &image->initrd;
    *gpa = 0;
    if (initrd->fd < 0 || initrd->size == 0)
        return true;
    limit = MIN(limit, memory_map_low_end(image->memory.low_ram));
    uint64_t at = 0;
    if (initrd->size <= limit)
        at = align_down(limit - initrd->size, PAGE);
    if (at < keep_end && at + initrd->size > keep_start) {
        uint64_t below = MIN(keep_start, limit);
        at = initrd->size <= below ? align_down(below - initrd->size, PAGE) : 0;
    }
    if (!boot_is_usable(image, at, initrd->size))
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "initrd '%s' (%" G_GUINT64_FORMAT " KiB) does not fit into the machine's "
                          "memory beside the kernel: give it more memory",
                          initrd->path, initrd->size >> 10);
    *gpa = at;
    return boot_file_load(image, initrd, 0, initrd->size, at, initrd->size, err);
}

bool boot_load_cmdline(const BootImage *image, const char *text, uint64_t max, GError **err)
{
    size_t length = strlen(text);
    if (length > MIN(max, BOOT_CMDLINE_MAX))
        return lodge_fail(err, LODGE_ERROR_LIMIT,
                          "the kernel command line has %zu bytes; kernel '%s' takes at most "
                          "%" G_GUINT64_FORMAT,
                          length, image->kernel.path, MIN(max, BOOT_CMDLINE_MAX));
    return boot_write(image, BOOT_CMDLINE, text, length + 1, err);
}

/* ---- CPU state at entry ---- */

static void set_flat_segments(VcpuState *bsp, uint32_t code_attr)
{
    for (unsigned i = 0; i < SEG_COUNT; i++)
        bsp->seg[i] = (VcpuSegment){0, UINT32_MAX, ATTR_DATA, SELECTOR_DATA};
    bsp->seg[SEG_CS] = (VcpuSegment){0, UINT32_MAX, code_attr, SELECTOR_CODE};
    bsp->ldtr = (VcpuSegment){0, 0, SEG_ATTR_UNUSABLE, 0};
    bsp->tr = (VcpuSegment){0, 0x67, ATTR_TSS_BUSY, 0};
    memset(bsp->gpr, 0, sizeof(bsp->gpr));
    bsp->rflags = RFLAGS_FIXED;
    bsp->idtr = (VcpuTable){0, 0};
}

void boot_state_flat32(VcpuState *bsp, uint64_t entry)
{
    set_flat_segments(bsp, ATTR_CODE32);
    bsp->cr0 = CR0_PE | CR0_ET;
    bsp->cr4 = 0;
    bsp->gdtr = (VcpuTable){0, 0};
    bsp->rip = entry;
}

bool boot_state_long(const BootImage *image, VcpuState *bsp, uint64_t entry, GError **err)
{
    /* PML4, PDPT, four page directories of 2 MiB pages. */
    g_autofree uint8_t *tables = g_malloc0(6 * PAGE);
    le64_put(tables, (BOOT_PAGE_TABLES + PAGE) | PTE_PRESENT_WRITE);
    for (unsigned i = 0; i < 4; i++)
        le64_put(tables + PAGE + 8 * i, (BOOT_PAGE_TABLES + (2 + i) * PAGE) | PTE_PRESENT_WRITE);
    for (uint64_t i = 0; i < 4 * 512; i++)
        le64_put(tables + 2 * PAGE + 8 * i, i << 21 | PTE_PRESENT_WRITE | PTE_LARGE);
    /* Descriptors 2 and 3: code and data, as the selectors of the Linux boot protocol. */
    uint8_t gdt[32] = {0};
    le64_put(gdt + SELECTOR_CODE, 0x00af9b000000ffffull);
    le64_put(gdt + SELECTOR_DATA, 0x00cf93000000ffffull);
    if (!boot_write(image, BOOT_PAGE_TABLES, tables, 6 * PAGE, err) ||
        !boot_write(image, BOOT_GDT, gdt, sizeof(gdt), err))
        return false;
    set_flat_segments(bsp, ATTR_CODE64);
    bsp->gdtr = (VcpuTable){BOOT_GDT, sizeof(gdt) - 1};
    bsp->cr0 = CR0_PE | CR0_ET | CR0_PG;
    bsp->cr3 = BOOT_PAGE_TABLES;
    bsp->cr4 = CR4_PAE;
    bsp->efer = EFER_LME | EFER_LMA;
    bsp->gpr[GPR_RSP] = BOOT_STACK_TOP;
    bsp->rip = entry;
    return true;
}
