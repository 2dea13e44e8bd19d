/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Descriptors 0, 1 and 2. */
#pragma once

#include <stdbool.h>

/*
 * Opens /dev/null for each of them that is closed; the first thing in a main(). Otherwise the next
 * open() takes the number, and what the program prints goes into that file: an image, for example.
 * False with errno if that fails.
 */
bool standard_fds_open(void);
/* What main() returns: @status, or after a failed write to standard output a message and at least 1. */
int standard_output_end(int status);
