/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Finding zeroes, as fast as memory is read. */
#include "disk/copy/copy.h"

#include <string.h>

/* Compilers make the widest vectors of this that the host's level allows. */
typedef uint64_t Lane __attribute__((vector_size(32), aligned(8), may_alias));

static bool lanes_zero(const Lane *at, size_t n)
{
    Lane any = at[0];
    for (size_t i = 1; i < n; i++)
        any |= at[i];
    return (any[0] | any[1] | any[2] | any[3]) == 0;
}

bool block_copy_is_zero(const void *bytes, size_t length)
{
    const uint8_t *at = bytes;
    uint64_t word;
    /* Data mostly differs from zero at once. */
    for (; length >= 8 && ((uintptr_t)at & 7); at++, length--) {
        if (*at)
            return false;
    }
    if (length >= 8) {
        memcpy(&word, at, 8);
        if (word)
            return false;
        memcpy(&word, at + length - 8, 8);
        if (word)
            return false;
    }
    for (; length >= 256; at += 256, length -= 256) {
        if (!lanes_zero((const Lane *)at, 8))
            return false;
    }
    for (; length > 0; at++, length--) {
        if (*at)
            return false;
    }
    return true;
}
