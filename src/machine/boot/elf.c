/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* ELF executables of 32 and 64 bits. System V ABI, chapter 4 and 5 (object files, program loading);
 * Xen's public/elfnote.h for the PVH note. */
#include <elf.h>
#include <inttypes.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "machine/boot/boot.h"

#define SEGMENTS_MAX      256u
#define NOTES_SIZE_MAX    0x10000u
#define NOTE_PHYS32_ENTRY 18u

/* The fields of a program header that count, whatever the class. */
typedef struct Segment {
    uint32_t type;
    uint64_t offset, paddr, file_size, memory_size;
} Segment;

typedef struct Layout {
    bool is64;
    uint64_t entry, headers;
    unsigned count, header_size;
} Layout;

static bool read_header(const BootImage *image, Layout *layout, GError **err)
{
    uint8_t h[sizeof(Elf64_Ehdr)];
    const BootFile *f = &image->kernel;
    if (!boot_file_read(f, 0, h, sizeof(h), err))
        return false;
    bool is64 = h[EI_CLASS] == ELFCLASS64;
    unsigned machine = le16_get(h + offsetof(Elf64_Ehdr, e_machine));
    if (memcmp(h, ELFMAG, SELFMAG) || h[EI_DATA] != ELFDATA2LSB ||
        (!is64 && h[EI_CLASS] != ELFCLASS32) || (machine != EM_386 && machine != EM_X86_64))
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "kernel '%s' is not an x86 ELF file",
                          f->path);
    layout->is64 = is64;
    layout->entry = is64 ? le64_get(h + offsetof(Elf64_Ehdr, e_entry))
                         : le32_get(h + offsetof(Elf32_Ehdr, e_entry));
    layout->headers = is64 ? le64_get(h + offsetof(Elf64_Ehdr, e_phoff))
                           : le32_get(h + offsetof(Elf32_Ehdr, e_phoff));
    layout->count =
        le16_get(h + (is64 ? offsetof(Elf64_Ehdr, e_phnum) : offsetof(Elf32_Ehdr, e_phnum)));
    layout->header_size = le16_get(
        h + (is64 ? offsetof(Elf64_Ehdr, e_phentsize) : offsetof(Elf32_Ehdr, e_phentsize)));
    unsigned expected = is64 ? sizeof(Elf64_Phdr) : sizeof(Elf32_Phdr);
    if (layout->count == 0 || layout->count > SEGMENTS_MAX || layout->header_size != expected)
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "kernel '%s': %u program headers of %u bytes; 1 to %u of %u are allowed",
                          f->path, layout->count, layout->header_size, SEGMENTS_MAX, expected);
    return true;
}

static bool read_segment(const BootImage *image, const Layout *layout, unsigned i, Segment *s,
                         GError **err)
{
    uint8_t h[sizeof(Elf64_Phdr)];
    uint64_t at;
    if (!add_u64(layout->headers, (uint64_t)i * layout->header_size, &at))
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "kernel '%s': program headers at 0x%" PRIx64,
                          image->kernel.path, layout->headers);
    if (!boot_file_read(&image->kernel, at, h, layout->header_size, err))
        return false;
    s->type = le32_get(h);
    if (layout->is64) {
        s->offset = le64_get(h + offsetof(Elf64_Phdr, p_offset));
        s->paddr = le64_get(h + offsetof(Elf64_Phdr, p_paddr));
        s->file_size = le64_get(h + offsetof(Elf64_Phdr, p_filesz));
        s->memory_size = le64_get(h + offsetof(Elf64_Phdr, p_memsz));
    } else {
        s->offset = le32_get(h + offsetof(Elf32_Phdr, p_offset));
        s->paddr = le32_get(h + offsetof(Elf32_Phdr, p_paddr));
        s->file_size = le32_get(h + offsetof(Elf32_Phdr, p_filesz));
        s->memory_size = le32_get(h + offsetof(Elf32_Phdr, p_memsz));
    }
    return true;
}

/* Notes: name size, description size, type, then both padded to four bytes. */
static bool find_pvh_note(const BootImage *image, const Segment *s, BootElf *elf, GError **err)
{
    if (s->file_size > NOTES_SIZE_MAX)
        return lodge_fail(err, LODGE_ERROR_LIMIT,
                          "kernel '%s': a note segment of more than %u bytes", image->kernel.path,
                          NOTES_SIZE_MAX);
    g_autofree uint8_t *notes = g_malloc(s->file_size + 1);
    if (!boot_file_read(&image->kernel, s->offset, notes, s->file_size, err))
        return false;
    uint64_t at = 0;
    while (range_within(at, 12, s->file_size)) {
        uint64_t name_size = le32_get(notes + at), size = le32_get(notes + at + 4);
        uint32_t type = le32_get(notes + at + 8);
        uint64_t name = at + 12, description = name + align_up(name_size, 4);
        if (!range_within(name, name_size, s->file_size) ||
            !range_within(description, size, s->file_size))
            break;
        if (type == NOTE_PHYS32_ENTRY && name_size == 4 && memcmp(notes + name, "Xen", 4) == 0 &&
            size >= 4) {
            elf->has_pvh = true;
            elf->pvh_entry =
                size >= 8 ? le64_get(notes + description) : le32_get(notes + description);
        }
        at = description + align_up(size, 4);
    }
    return true;
}

static bool take_segment(const BootImage *image, const Segment *s, bool load, BootElf *elf,
                         GError **err)
{
    if (s->memory_size == 0)
        return true;
    if (s->file_size > s->memory_size || !boot_kernel_fits(image, s->paddr, s->memory_size))
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "kernel '%s' wants 0x%" PRIx64 " bytes at 0x%" PRIx64
                          ", where the machine has no memory for it",
                          image->kernel.path, s->memory_size, s->paddr);
    elf->start = MIN(elf->start, s->paddr);
    elf->end = MAX(elf->end, s->paddr + s->memory_size);
    return !load || boot_file_load(image, &image->kernel, s->offset, s->file_size, s->paddr,
                                   s->memory_size, err);
}

bool boot_elf_read(const BootImage *image, bool load, BootElf *elf, GError **err)
{
    Layout layout = {0};
    *elf = (BootElf){.start = UINT64_MAX};
    if (!read_header(image, &layout, err))
        return false;
    elf->entry = layout.entry;
    for (unsigned i = 0; i < layout.count; i++) {
        Segment s = {0};
        if (!read_segment(image, &layout, i, &s, err))
            return false;
        if (s.type == PT_LOAD && !take_segment(image, &s, load, elf, err))
            return false;
        if (s.type == PT_NOTE && !find_pvh_note(image, &s, elf, err))
            return false;
    }
    if (elf->end == 0)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "kernel '%s' has nothing to load",
                          image->kernel.path);
    return true;
}
