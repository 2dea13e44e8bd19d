/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a PC's firmware leaves behind, for kernels that may rely on it: the 8259 pair at vectors 08H
 * and 70H with only the timer unmasked, the 8254 ticking 18.2 times a second, and an interrupt
 * table whose entries return (Multiboot Specification 3.2: "as initialized by the BIOS").
 * The chips are programmed by a few instructions before the kernel's first one, so that it works
 * with whichever engine has them.
 */
#include <string.h>

#include "base/bytes.h"
#include "machine/boot/boot.h"

/* In the part of the first MiB that the memory map reserves, where a BIOS would be. */
#define BIOS_SEGMENT  0xf000u
#define BIOS_CODE     0xff000u
#define BIOS_RETURN   0x0 /* offsets in the code: an interrupt handler that returns, */
#define BIOS_MASTER   0x8 /* ... that ends an interrupt of the first 8259, */
#define BIOS_SLAVE    0x10 /* ... of the second */
#define BIOS_ENTRY    0x20
#define VECTOR_MASTER 0x08u
#define VECTOR_SLAVE  0x70u

static const uint8_t handler_return[] = {0xcf}; /* iret */
static const uint8_t handler_master[] = {
    0x50, 0xb0, 0x20, 0xe6, 0x20, 0x58, 0xcf}; /* push ax; out 20h, 20h; pop ax; iret */
static const uint8_t handler_slave[] = {
    0x50, 0xb0, 0x20, 0xe6, 0xa0, 0xe6, 0x20, 0x58, 0xcf}; /* ... both */

/* Flat 32-bit code; each line is mov al, value and out port, al. */
static const uint8_t entry_code[] = {
    0x89, 0xc2,                         /* mov edx, eax: the protocol's magic number */
    0xb0, 0x11, 0xe6, 0x20, 0xe6, 0xa0, /* ICW1 of both: edge, cascade, ICW4 follows */
    0xb0, 0x08, 0xe6, 0x21,             /* ICW2: vectors */
    0xb0, 0x70, 0xe6, 0xa1,             /* */
    0xb0, 0x04, 0xe6, 0x21,             /* ICW3: the second at input 2 */
    0xb0, 0x02, 0xe6, 0xa1,             /* */
    0xb0, 0x01, 0xe6, 0x21, 0xe6, 0xa1, /* ICW4 of both: 8086 */
    0xb0, 0xfa, 0xe6, 0x21,             /* OCW1: but timer and cascade all masked */
    0xb0, 0xff, 0xe6, 0xa1,             /* */
    0xb0, 0x34, 0xe6, 0x43,             /* counter 0: rate generator, 16 bits */
    0xb0, 0x00, 0xe6, 0x40, 0xe6, 0x40, /* 65536 */
    0x89, 0xd0,                         /* mov eax, edx */
    0xb9,                               /* mov ecx, entry; jmp ecx */
};

static void put_vector(uint8_t *table, unsigned vector, unsigned offset)
{
    le32_put(table + 4 * vector, BIOS_SEGMENT << 16 | ((BIOS_CODE & 0xffff) + offset));
}

bool boot_bios_state(const BootImage *image, VcpuState *bsp, GError **err)
{
    uint8_t table[1024], code[BIOS_ENTRY + sizeof(entry_code) + 6] = {0};
    for (unsigned i = 0; i < 256; i++)
        put_vector(table, i, BIOS_RETURN);
    for (unsigned i = 0; i < 8; i++) {
        put_vector(table, VECTOR_MASTER + i, BIOS_MASTER);
        put_vector(table, VECTOR_SLAVE + i, BIOS_SLAVE);
    }
    memcpy(code + BIOS_RETURN, handler_return, sizeof(handler_return));
    memcpy(code + BIOS_MASTER, handler_master, sizeof(handler_master));
    memcpy(code + BIOS_SLAVE, handler_slave, sizeof(handler_slave));
    uint8_t *entry = code + BIOS_ENTRY;
    memcpy(entry, entry_code, sizeof(entry_code));
    le32_put(entry + sizeof(entry_code), (uint32_t)bsp->rip);
    entry[sizeof(entry_code) + 4] = 0xff;
    entry[sizeof(entry_code) + 5] = 0xe1;
    bsp->rip = BIOS_CODE + BIOS_ENTRY;
    return boot_write(image, 0, table, sizeof(table), err) &&
           boot_write(image, BIOS_CODE, code, sizeof(code), err);
}
