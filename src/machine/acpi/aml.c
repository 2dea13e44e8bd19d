/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "machine/acpi/aml.h"

#include <string.h>

#include "base/bytes.h"

#define OP_ZERO       0x00
#define OP_ONE        0x01
#define OP_NAME       0x08
#define OP_BYTE       0x0a
#define OP_WORD       0x0b
#define OP_DWORD      0x0c
#define OP_STRING     0x0d
#define OP_QWORD      0x0e
#define OP_SCOPE      0x10
#define OP_BUFFER     0x11
#define OP_PACKAGE    0x12
#define OP_METHOD     0x14
#define OP_DUAL_NAME  0x2e
#define OP_MULTI_NAME 0x2f
#define OP_EXTENDED   0x5b
#define OP_EXT_DEVICE 0x82
#define OP_ARG0       0x68
#define OP_RETURN     0xa4

Aml *aml_new(void)
{
    Aml *aml = g_new0(Aml, 1);
    aml->bytes = g_byte_array_new();
    return aml;
}

void aml_free(Aml *aml)
{
    if (aml)
        g_byte_array_unref(aml->bytes);
    g_free(aml);
}

static void put8(Aml *aml, uint8_t value)
{
    g_byte_array_append(aml->bytes, &value, 1);
}

static void put(Aml *aml, uint64_t value, unsigned size)
{
    for (unsigned i = 0; i < size; i++)
        put8(aml, value >> i * 8);
}

static void insert(GByteArray *bytes, guint at, const uint8_t *data, guint size)
{
    guint tail = bytes->len - at;
    g_byte_array_set_size(bytes, bytes->len + size);
    memmove(bytes->data + at + size, bytes->data + at, tail);
    memcpy(bytes->data + at, data, size);
}

/* PkgLength counts its own bytes (20.2.4). */
static unsigned encode_length(uint8_t *to, uint32_t content)
{
    if (content + 1 < 64) {
        to[0] = content + 1;
        return 1;
    }
    unsigned extra = content + 2 < 1u << 12 ? 1 : content + 3 < 1u << 20 ? 2 : 3;
    uint32_t total = content + 1 + extra;
    to[0] = extra << 6 | (total & 0xf);
    for (unsigned i = 0; i < extra; i++)
        to[1 + i] = total >> (4 + 8 * i);
    return 1 + extra;
}

static void open_content(Aml *aml, bool resources)
{
    g_assert(aml->depth < AML_DEPTH_MAX);
    aml->open[aml->depth].start = aml->bytes->len;
    aml->open[aml->depth].resources = resources;
    aml->depth++;
}

void aml_end(Aml *aml)
{
    g_assert(aml->depth > 0);
    aml->depth--;
    guint start = aml->open[aml->depth].start;
    uint8_t head[8];
    if (aml->open[aml->depth].resources) {
        put(aml, 0x79, 2); /* end tag, no checksum (6.4.2.9) */
        uint32_t size = aml->bytes->len - start;
        head[0] = OP_DWORD;
        le32_put(head + 1, size);
        insert(aml->bytes, start, head, 5);
    }
    insert(aml->bytes, start, head, encode_length(head, aml->bytes->len - start));
}

static void put_name(Aml *aml, const char *name)
{
    if (*name == '\\') {
        put8(aml, '\\');
        name++;
    }
    g_auto(GStrv) segs = g_strsplit(name, ".", -1);
    guint n = g_strv_length(segs);
    if (n == 2) {
        put8(aml, OP_DUAL_NAME);
    } else if (n > 2) {
        put8(aml, OP_MULTI_NAME);
        put8(aml, n);
    }
    for (guint i = 0; i < n; i++) {
        size_t length = strlen(segs[i]);
        g_assert(length >= 1 && length <= 4);
        g_byte_array_append(aml->bytes, (const uint8_t *)segs[i], length);
        for (; length < 4; length++)
            put8(aml, '_');
    }
}

void aml_scope_begin(Aml *aml, const char *name)
{
    put8(aml, OP_SCOPE);
    open_content(aml, false);
    put_name(aml, name);
}

void aml_device_begin(Aml *aml, const char *name)
{
    put8(aml, OP_EXTENDED);
    put8(aml, OP_EXT_DEVICE);
    open_content(aml, false);
    put_name(aml, name);
}

void aml_method_begin(Aml *aml, const char *name, unsigned n_arguments)
{
    put8(aml, OP_METHOD);
    open_content(aml, false);
    put_name(aml, name);
    put8(aml, n_arguments);
}

void aml_package_begin(Aml *aml, uint8_t n_elements)
{
    put8(aml, OP_PACKAGE);
    open_content(aml, false);
    put8(aml, n_elements);
}

void aml_resources_begin(Aml *aml)
{
    put8(aml, OP_BUFFER);
    open_content(aml, true);
}

void aml_name(Aml *aml, const char *name)
{
    put8(aml, OP_NAME);
    put_name(aml, name);
}

void aml_int(Aml *aml, uint64_t value)
{
    if (value <= 1) {
        put8(aml, value ? OP_ONE : OP_ZERO);
        return;
    }
    unsigned size = value <= UINT8_MAX ? 1 : value <= UINT16_MAX ? 2 : value <= UINT32_MAX ? 4 : 8;
    put8(aml, size == 1 ? OP_BYTE : size == 2 ? OP_WORD : size == 4 ? OP_DWORD : OP_QWORD);
    put(aml, value, size);
}

void aml_string(Aml *aml, const char *text)
{
    put8(aml, OP_STRING);
    g_byte_array_append(aml->bytes, (const uint8_t *)text, strlen(text) + 1);
}

/* Three letters of five bits and four hexadecimal digits, big-endian (19.3.4). */
void aml_eisaid(Aml *aml, const char *id)
{
    g_assert(strlen(id) == 7);
    uint32_t v = (uint32_t)(id[0] & 0x1f) << 26 | (uint32_t)(id[1] & 0x1f) << 21 |
                 (uint32_t)(id[2] & 0x1f) << 16;
    for (unsigned i = 0; i < 4; i++)
        v |= (uint32_t)g_ascii_xdigit_value(id[3 + i]) << (12 - 4 * i);
    put8(aml, OP_DWORD);
    put(aml, GUINT32_SWAP_LE_BE(v), 4);
}

void aml_return_argument(Aml *aml, unsigned argument)
{
    put8(aml, OP_RETURN);
    put8(aml, OP_ARG0 + argument);
}

/* 6.4.2.5 */
void aml_io(Aml *aml, uint16_t port, uint8_t count)
{
    put8(aml, 0x47);
    put8(aml, 1); /* decodes 16 bits */
    put(aml, port, 2);
    put(aml, port, 2);
    put8(aml, 1);
    put8(aml, count);
}

/* 6.4.2.1, without flags */
void aml_irq(Aml *aml, unsigned irq)
{
    put8(aml, 0x22);
    put(aml, 1u << irq, 2);
}

/* 6.4.3.4 */
void aml_memory32(Aml *aml, uint32_t base, uint32_t size)
{
    put8(aml, 0x86);
    put(aml, 9, 2);
    put8(aml, 1); /* writable */
    put(aml, base, 4);
    put(aml, size, 4);
}

/* Address space descriptors (6.4.3.5): produced, fixed at both ends, positive decode. */
static void address_range(Aml *aml, unsigned width, uint8_t type, uint8_t specific, uint64_t first,
                          uint64_t last)
{
    put8(aml, width == 2 ? 0x88 : width == 4 ? 0x87 : 0x8a);
    put(aml, 3 + 5 * width, 2);
    put8(aml, type);
    put8(aml, 0x0c); /* minimum and maximum are fixed */
    put8(aml, specific);
    put(aml, 0, width); /* granularity */
    put(aml, first, width);
    put(aml, last, width);
    put(aml, 0, width); /* translation */
    put(aml, last - first + 1, width);
}

void aml_bus_range(Aml *aml, uint16_t first, uint16_t last)
{
    address_range(aml, 2, 2, 0, first, last);
}

void aml_port_range(Aml *aml, uint16_t first, uint16_t last)
{
    address_range(aml, 2, 1, 3, first, last); /* the entire range, ISA and not */
}

void aml_memory_range32(Aml *aml, uint32_t first, uint32_t last)
{
    address_range(aml, 4, 0, 1, first, last); /* writable, not cacheable */
}

void aml_memory_range64(Aml *aml, uint64_t first, uint64_t last, bool prefetchable)
{
    address_range(aml, 8, 0, 1 | (prefetchable ? 3 << 1 : 0), first, last);
}
