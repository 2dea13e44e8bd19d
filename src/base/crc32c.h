/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* CRC-32C (Castagnoli, RFC 3720 appendix B.4): the checksum of VHDX images. */
#pragma once

#include <stddef.h>
#include <stdint.h>

/* Of @length bytes that follow on those whose checksum is @crc; 0 at first. */
uint32_t crc32c(uint32_t crc, const void *bytes, size_t length);
