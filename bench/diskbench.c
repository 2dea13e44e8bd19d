/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Runs inside the guest: reads a disk with O_DIRECT, 1 MiB blocks in sequence, then 4 KiB blocks at random
 * places. usage: diskbench DEVICE MIB COUNT; prints "DISK sequential MiB/s" and "DISK random IO/s".
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define BLOCK (1u << 20)
#define SMALL 4096u

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

int main(int argc, char **argv)
{
    void *buffer;
    if (argc != 4 || posix_memalign(&buffer, SMALL, BLOCK) != 0)
        return 2;
    int fd = open(argv[1], O_RDONLY | O_DIRECT);
    long mib = atol(argv[2]), count = atol(argv[3]);
    if (fd < 0) {
        perror(argv[1]);
        return 1;
    }
    double start = now();
    for (long i = 0; i < mib; i++)
        if (pread(fd, buffer, BLOCK, i * (off_t)BLOCK) != BLOCK)
            return 1;
    printf("DISK sequential %.1f\n", (double)mib / (now() - start));
    uint64_t seed = 88172645463325252ull;
    start = now();
    for (long i = 0; i < count; i++) {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        off_t at = (off_t)(seed % ((uint64_t)mib * (BLOCK / SMALL))) * SMALL;
        if (pread(fd, buffer, SMALL, at) != SMALL)
            return 1;
    }
    printf("DISK random %.1f\n", (double)count / (now() - start));
    return 0;
}
