/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Programs that run in a guest, or on the host to see that they are right: one line a check. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static unsigned checks, failures;

static inline void check_that(bool ok, const char *file, int line, const char *what)
{
    checks++;
    if (ok)
        return;
    failures++;
    printf("FAILED %s:%d: %s\n", file, line, what);
}
#define CHECK(what) check_that((what), __FILE_NAME__, __LINE__, #what)
#define CHECK_EQUAL(a, b)                                                                          \
    do {                                                                                           \
        unsigned long long a_ = (unsigned long long)(a), b_ = (unsigned long long)(b);             \
        check_that(a_ == b_, __FILE_NAME__, __LINE__, #a " is " #b);                               \
        if (a_ != b_)                                                                              \
            printf("       %llx, not %llx\n", a_, b_);                                             \
    } while (0)

/* The last line; the exit status. */
static inline int checks_end(const char *name)
{
    printf("%s: %u checks, %u failed\n", name, checks, failures);
    return failures != 0;
}
