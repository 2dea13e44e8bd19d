/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Bytes of disks, wires and guests: explicit little- and big-endian access at any
 * alignment, and arithmetic that notices overflow.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define KIB(n) ((uint64_t)(n) << 10)
#define MIB(n) ((uint64_t)(n) << 20)
#define GIB(n) ((uint64_t)(n) << 30)

#define BYTES_ACCESSORS(bits)                                                                      \
    static inline uint##bits##_t le##bits##_get(const void *p)                                     \
    {                                                                                              \
        uint##bits##_t v;                                                                          \
        memcpy(&v, p, sizeof(v));                                                                  \
        return v;                                                                                  \
    }                                                                                              \
    static inline void le##bits##_put(void *p, uint##bits##_t v)                                   \
    {                                                                                              \
        memcpy(p, &v, sizeof(v));                                                                  \
    }                                                                                              \
    static inline uint##bits##_t be##bits##_get(const void *p)                                     \
    {                                                                                              \
        return __builtin_bswap##bits(le##bits##_get(p));                                           \
    }                                                                                              \
    static inline void be##bits##_put(void *p, uint##bits##_t v)                                   \
    {                                                                                              \
        le##bits##_put(p, __builtin_bswap##bits(v));                                               \
    }

/* Lodge runs on little-endian x86-64 hosts only; meson.build refuses others. */
BYTES_ACCESSORS(16)
BYTES_ACCESSORS(32)
BYTES_ACCESSORS(64)
#undef BYTES_ACCESSORS

/* True when [offset, offset + length) lies within [0, limit), without overflow. */
static inline bool range_within(uint64_t offset, uint64_t length, uint64_t limit)
{
    return offset <= limit && length <= limit - offset;
}

/* *sum = a + b; false (and *sum untouched) on overflow. */
static inline bool add_u64(uint64_t a, uint64_t b, uint64_t *sum)
{
    uint64_t s;
    if (__builtin_add_overflow(a, b, &s))
        return false;
    *sum = s;
    return true;
}

/* *product = a * b; false (and *product untouched) on overflow. */
static inline bool mul_u64(uint64_t a, uint64_t b, uint64_t *product)
{
    uint64_t p;
    if (__builtin_mul_overflow(a, b, &p))
        return false;
    *product = p;
    return true;
}

/* @alignment is a power of two; the caller keeps v + alignment within range. */
static inline uint64_t align_up(uint64_t v, uint64_t alignment)
{
    return (v + alignment - 1) & ~(alignment - 1);
}

static inline uint64_t align_down(uint64_t v, uint64_t alignment)
{
    return v & ~(alignment - 1);
}
