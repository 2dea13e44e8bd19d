/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Packets of the GDB remote serial protocol: framing, checksums, escapes and numbers. GDB manual,
 * appendix E.1 "Overview". No I/O.
 */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#define GDB_PACKET_MAX 0x4000u /* bytes of contents, either way */

typedef enum GdbInput {
    GDB_INPUT_NOTHING, /* more bytes are needed, or this one means nothing */
    GDB_INPUT_PACKET,  /* reader->data holds it, with a NUL after it */
    GDB_INPUT_BAD,     /* a wrong checksum, or too long */
    GDB_INPUT_INTERRUPT,
    GDB_INPUT_ACK,
    GDB_INPUT_NAK,
} GdbInput;

typedef struct GdbReader {
    enum { GDB_OUTSIDE, GDB_CONTENTS, GDB_ESCAPED, GDB_SUM_HIGH, GDB_SUM_LOW } state;
    GByteArray *data; /* contents without escapes */
    bool too_long, bad_sum;
    uint8_t sum, wanted;
} GdbReader;

void gdb_reader_init(GdbReader *r);
void gdb_reader_clear(GdbReader *r);
GdbInput gdb_reader_push(GdbReader *r, uint8_t byte);

/* "$...#xx" of @contents; what the protocol reserves is escaped. The caller frees it. */
GString *gdb_packet_encode(const char *contents, size_t size);

/* A hexadecimal number of 1 to 16 digits at *at, which moves behind it. */
bool gdb_parse_hex(const char **at, uint64_t *value);
/* The same for a number and @separator after it. */
bool gdb_parse_hex_then(const char **at, char separator, uint64_t *value);
/* 2 * @size digits as bytes; false if there are others. */
bool gdb_parse_bytes(const char *hex, uint8_t *to, size_t size);
void gdb_append_bytes(GString *to, const uint8_t *from, size_t size);
