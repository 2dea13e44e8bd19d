/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "monitor/gdb/packet.h"

#include <string.h>

#define INTERRUPT 0x03
#define ESCAPE    0x7d
#define ESCAPE_XOR 0x20

void gdb_reader_init(GdbReader *r)
{
    *r = (GdbReader){.data = g_byte_array_new()};
}

void gdb_reader_clear(GdbReader *r)
{
    g_byte_array_unref(r->data);
    r->data = NULL;
}

static void add_byte(GdbReader *r, uint8_t byte)
{
    if (r->data->len == GDB_PACKET_MAX)
        r->too_long = true;
    else
        g_byte_array_append(r->data, &byte, 1);
}

static GdbInput outside(GdbReader *r, uint8_t byte)
{
    switch (byte) {
    case '$':
        r->state = GDB_CONTENTS;
        r->too_long = r->bad_sum = false;
        r->sum = 0;
        g_byte_array_set_size(r->data, 0);
        return GDB_INPUT_NOTHING;
    case INTERRUPT:
        return GDB_INPUT_INTERRUPT;
    case '+':
        return GDB_INPUT_ACK;
    case '-':
        return GDB_INPUT_NAK;
    default:
        return GDB_INPUT_NOTHING;
    }
}

static GdbInput contents(GdbReader *r, uint8_t byte)
{
    if (byte == '#') {
        r->state = GDB_SUM_HIGH;
        return GDB_INPUT_NOTHING;
    }
    if (byte == '$') /* the end of the packet before was lost */
        return outside(r, byte);
    r->sum += byte;
    if (byte == ESCAPE)
        r->state = GDB_ESCAPED;
    else
        add_byte(r, byte);
    return GDB_INPUT_NOTHING;
}

static GdbInput sum_digit(GdbReader *r, uint8_t byte)
{
    int digit = g_ascii_xdigit_value((char)byte);
    r->bad_sum |= digit < 0;
    if (r->state == GDB_SUM_HIGH) {
        r->wanted = (uint8_t)((unsigned)digit << 4);
        r->state = GDB_SUM_LOW;
        return GDB_INPUT_NOTHING;
    }
    r->state = GDB_OUTSIDE;
    if (r->bad_sum || r->too_long || (r->wanted | (unsigned)digit) != r->sum)
        return GDB_INPUT_BAD;
    g_byte_array_append(r->data, (const guint8 *)"", 1);
    g_byte_array_set_size(r->data, r->data->len - 1); /* the NUL stays behind the contents */
    return GDB_INPUT_PACKET;
}

GdbInput gdb_reader_push(GdbReader *r, uint8_t byte)
{
    switch (r->state) {
    case GDB_CONTENTS:
        return contents(r, byte);
    case GDB_ESCAPED:
        r->sum += byte;
        add_byte(r, byte ^ ESCAPE_XOR);
        r->state = GDB_CONTENTS;
        return GDB_INPUT_NOTHING;
    case GDB_SUM_HIGH:
    case GDB_SUM_LOW:
        return sum_digit(r, byte);
    default:
        return outside(r, byte);
    }
}

GString *gdb_packet_encode(const char *contents, size_t size)
{
    GString *packet = g_string_sized_new(size + 4);
    uint8_t sum = 0;
    g_string_append_c(packet, '$');
    for (size_t i = 0; i < size; i++) {
        char c = contents[i];
        if (c == '#' || c == '$' || c == ESCAPE || c == '*') {
            g_string_append_c(packet, ESCAPE);
            sum += ESCAPE;
            c ^= ESCAPE_XOR;
        }
        g_string_append_c(packet, c);
        sum += (uint8_t)c;
    }
    g_string_append_printf(packet, "#%02x", sum);
    return packet;
}

bool gdb_parse_hex(const char **at, uint64_t *value)
{
    const char *p = *at;
    uint64_t v = 0;
    for (; g_ascii_isxdigit(*p); p++) {
        if (p - *at == 16)
            return false;
        v = v << 4 | (unsigned)g_ascii_xdigit_value(*p);
    }
    if (p == *at)
        return false;
    *at = p;
    *value = v;
    return true;
}

bool gdb_parse_hex_then(const char **at, char separator, uint64_t *value)
{
    if (!gdb_parse_hex(at, value) || **at != separator)
        return false;
    ++*at;
    return true;
}

bool gdb_parse_bytes(const char *hex, uint8_t *to, size_t size)
{
    if (strlen(hex) != 2 * size)
        return false;
    for (size_t i = 0; i < size; i++) {
        int high = g_ascii_xdigit_value(hex[2 * i]), low = g_ascii_xdigit_value(hex[2 * i + 1]);
        if (high < 0 || low < 0)
            return false;
        to[i] = (uint8_t)(high << 4 | low);
    }
    return true;
}

void gdb_append_bytes(GString *to, const uint8_t *from, size_t size)
{
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < size; i++) {
        g_string_append_c(to, digits[from[i] >> 4]);
        g_string_append_c(to, digits[from[i] & 15]);
    }
}
