/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Scatter/gather lists as requests carry them. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

/* The longest list handed to one system call (IOV_MAX on Linux). */
#define BLOCK_IOV_MAX 1024

uint64_t block_iov_length(const struct iovec *iov, int n);

/*
 * Fills @out (room for @max entries) with the bytes [skip, skip + length) of @iov; returns the
 * number of entries. *covered is how many bytes they hold: less than @length only when @max or
 * @iov ran out.
 */
int block_iov_slice(struct iovec *out, int max, const struct iovec *iov, int n, uint64_t skip,
                    uint64_t length, uint64_t *covered);

/* Copies between bytes [skip, skip + length) of @iov and a flat buffer. */
void block_iov_from(const struct iovec *iov, int n, uint64_t skip, const void *buffer,
                    uint64_t length);
void block_iov_to(void *buffer, const struct iovec *iov, int n, uint64_t skip, uint64_t length);
void block_iov_zero(const struct iovec *iov, int n, uint64_t skip, uint64_t length);

/* True when every base and length of @iov is a multiple of @alignment (a power of two). */
bool block_iov_aligned(const struct iovec *iov, int n, uint64_t alignment);
