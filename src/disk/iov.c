/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "disk/iov.h"

#include <glib.h>
#include <string.h>

uint64_t block_iov_length(const struct iovec *iov, int n)
{
    uint64_t total = 0;
    for (int i = 0; i < n; i++)
        total += iov[i].iov_len;
    return total;
}

int block_iov_slice(struct iovec *out, int max, const struct iovec *iov, int n, uint64_t skip,
                    uint64_t length, uint64_t *covered)
{
    int count = 0;
    uint64_t done = 0;
    for (int i = 0; i < n && count < max && done < length; i++) {
        if (skip >= iov[i].iov_len) {
            skip -= iov[i].iov_len;
            continue;
        }
        uint64_t take = MIN(iov[i].iov_len - skip, length - done);
        out[count].iov_base = (char *)iov[i].iov_base + skip;
        out[count].iov_len = take;
        count++;
        done += take;
        skip = 0;
    }
    *covered = done;
    return count;
}

typedef enum { COPY_FROM, COPY_TO, COPY_ZERO } CopyKind;

static void iov_walk(CopyKind kind, const struct iovec *iov, int n, uint64_t skip, char *buffer,
                     uint64_t length)
{
    for (int i = 0; i < n && length > 0; i++) {
        if (skip >= iov[i].iov_len) {
            skip -= iov[i].iov_len;
            continue;
        }
        uint64_t take = MIN(iov[i].iov_len - skip, length);
        char *base = (char *)iov[i].iov_base + skip;
        if (kind == COPY_FROM)
            memcpy(base, buffer, take);
        else if (kind == COPY_TO)
            memcpy(buffer, base, take);
        else
            memset(base, 0, take);
        if (buffer)
            buffer += take;
        length -= take;
        skip = 0;
    }
}

void block_iov_from(const struct iovec *iov, int n, uint64_t skip, const void *buffer,
                    uint64_t length)
{
    iov_walk(COPY_FROM, iov, n, skip, (char *)buffer, length);
}

void block_iov_to(void *buffer, const struct iovec *iov, int n, uint64_t skip, uint64_t length)
{
    iov_walk(COPY_TO, iov, n, skip, buffer, length);
}

void block_iov_zero(const struct iovec *iov, int n, uint64_t skip, uint64_t length)
{
    iov_walk(COPY_ZERO, iov, n, skip, NULL, length);
}

bool block_iov_aligned(const struct iovec *iov, int n, uint64_t alignment)
{
    uint64_t bits = 0;
    for (int i = 0; i < n; i++)
        bits |= (uintptr_t)iov[i].iov_base | iov[i].iov_len;
    return (bits & (alignment - 1)) == 0;
}
