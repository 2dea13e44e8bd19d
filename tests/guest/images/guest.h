/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What bare test guests share: ports, the debug console, PCI configuration, halting. 32-bit, freestanding. */
#pragma once

#include <stdint.h>

void guest_main(void);

static inline void outb(uint16_t port, uint8_t v)
{
    __asm__ volatile("outb %0, %1" ::"a"(v), "Nd"(port));
}

static inline void outl(uint16_t port, uint32_t v)
{
    __asm__ volatile("outl %0, %1" ::"a"(v), "Nd"(port));
}

static inline uint32_t inl(uint16_t port)
{
    uint32_t v;
    __asm__ volatile("inl %1, %0" : "=a"(v) : "Nd"(port));
    return v;
}

static inline void print(const char *text)
{
    while (*text)
        outb(0xe9, (uint8_t)*text++);
}

static inline void print_number(char mark, uint32_t n)
{
    char digits[12];
    unsigned at = sizeof(digits);
    digits[--at] = 0;
    digits[--at] = '\n';
    do
        digits[--at] = (char)('0' + n % 10);
    while (n /= 10);
    outb(0xe9, (uint8_t)mark);
    print(digits + at);
}

_Noreturn static inline void fail(const char *why)
{
    print("FAIL ");
    print(why);
    print("\n");
    for (;;)
        __asm__ volatile("cli; hlt");
}

static inline uint32_t pci_read(unsigned device, unsigned offset)
{
    outl(0xcf8, 0x80000000u | device << 11 | (offset & 0xfc));
    return inl(0xcfc);
}

static inline void pci_write(unsigned device, unsigned offset, uint32_t v)
{
    outl(0xcf8, 0x80000000u | device << 11 | (offset & 0xfc));
    outl(0xcfc, v);
}
