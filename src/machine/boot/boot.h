/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Loading a kernel straight into guest memory. Everything that the files say is checked: they may
 * come from the guest's owner, who is not trusted. The protocols are rows of boot_protocols.
 */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "vcpu/state.h"

#define BOOT_KERNEL_SIZE_MAX (1ull << 30)
#define BOOT_INITRD_SIZE_MAX (4ull << 30)
#define BOOT_CMDLINE_MAX     0xffffu

/*
 * Fixed places in low memory for what the loader hands over. Kernels load at 1 MiB and above, small
 * ones (images that stay in real mode) also into BOOT_LOW_KERNEL: 32-bit entries need no page tables.
 */
#define BOOT_GDT         0x1000u
#define BOOT_PARAMS      0x2000u /* Linux zero page, multiboot information, hvm_start_info */
#define BOOT_PARAMS_SIZE 0x1000u
#define BOOT_PAGE_TABLES 0x3000u /* six pages */
#define BOOT_LOW_KERNEL  0x8000u
#define BOOT_LOW_END     0x20000u
#define BOOT_STACK_TOP   0xf000u
#define BOOT_CMDLINE     0x20000u
#define BOOT_LISTS       0x30000u /* memory map and module list */
#define BOOT_LISTS_SIZE  0x1000u
#define BOOT_KERNEL_MIN  0x100000u

typedef struct BootFile {
    int fd; /* -1: none */
    uint64_t size;
    char *path;
} BootFile;

typedef struct BootMemory {
    void *opaque;
    /* Host pointer to guest RAM, or NULL if any of it is not RAM. */
    uint8_t *(*ram)(void *opaque, uint64_t gpa, uint64_t length);
    void (*dirty)(void *opaque, uint64_t gpa, uint64_t length);
    uint64_t memory_size, low_ram; /* bytes */
} BootMemory;

typedef struct BootImage {
    BootFile kernel, initrd;
    const char *cmdline; /* may be NULL */
    BootMemory memory;
} BootImage;

#define BOOT_HEAD_SIZE 8192 /* what probing sees of the file */

typedef struct BootProtocol {
    const char *name;
    bool (*probe)(const BootImage *image, const uint8_t *head, size_t size);
    /* @bsp comes as after reset and leaves as at the kernel's entry. */
    bool (*load)(const BootImage *image, VcpuState *bsp, GError **err);
} BootProtocol;

extern const BootProtocol boot_protocol_bzimage, boot_protocol_multiboot, boot_protocol_pvh;

/* The first protocol that recognizes the kernel; NULL and @err if none does. */
const BootProtocol *boot_protocol_find(const BootImage *image, GError **err);

bool boot_file_open(BootFile *file, const char *what, const char *path, uint64_t size_max,
                    GError **err);
void boot_file_close(BootFile *file);

/* ---- for the protocols ---- */

bool boot_file_read(const BootFile *file, uint64_t offset, void *to, uint64_t length, GError **err);
/* From the file to guest memory; the rest up to @memory_length is zeroed. */
bool boot_file_load(const BootImage *image, const BootFile *file, uint64_t offset, uint64_t length,
                    uint64_t gpa, uint64_t memory_length, GError **err);
/* Writes to one of the fixed places. */
bool boot_write(const BootImage *image, uint64_t gpa, const void *data, uint64_t length,
                GError **err);
/* Whether [gpa, gpa + length) is where a kernel with a 32-bit entry may go. */
bool boot_kernel_fits(const BootImage *image, uint64_t gpa, uint64_t length);
/* Whether it is RAM from 1 MiB to the ACPI tables. */
bool boot_is_usable(const BootImage *image, uint64_t gpa, uint64_t length);
/* Loads the initrd as high as possible below @limit and clear of [keep_start, keep_end). Without
 * an initrd *gpa is 0. */
bool boot_load_initrd(const BootImage *image, uint64_t limit, uint64_t keep_start,
                      uint64_t keep_end, uint64_t *gpa, GError **err);
/* Writes @text and its zero to BOOT_CMDLINE; refuses more than @max bytes. */
bool boot_load_cmdline(const BootImage *image, const char *text, uint64_t max, GError **err);
/* Flat 32-bit protected mode without paging, interrupts off. */
void boot_state_flat32(VcpuState *bsp, uint64_t entry);
/* Puts before the kernel's entry, bsp->rip, what a BIOS would have done. After boot_state_flat32. */
bool boot_bios_state(const BootImage *image, VcpuState *bsp, GError **err);
/* Long mode with the first 4 GiB mapped to themselves; writes page tables and a GDT. */
bool boot_state_long(const BootImage *image, VcpuState *bsp, uint64_t entry, GError **err);

/* What an ELF file asks to be loaded. */
typedef struct BootElf {
    uint64_t entry;      /* e_entry */
    uint64_t start, end; /* physical range of all segments */
    bool has_pvh;
    uint64_t pvh_entry;
} BootElf;
/* Checks the headers and finds the notes; loads the segments if @load. */
bool boot_elf_read(const BootImage *image, bool load, BootElf *elf, GError **err);
