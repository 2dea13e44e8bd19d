/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * usage: mirror [CASE...]     all cases without arguments
 * Each case runs in a process of its own. Lines "RESULT ..." must be the same wherever the program runs on
 * the same processor; "TIME ..." tell how long something took; a case ends with "PASS name" or "FAIL name".
 */
#include "mirror.h"

static unsigned failures;

double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

void warm(unsigned ms)
{
    static volatile uint64_t buffer[4096];
    double limit = now() + ms / 1e3;
    do
        for (unsigned i = 0; i < 4096; i++)
            buffer[i] += buffer[(i * 7) % 4096] + 1;
    while (now() < limit);
}

void check_at(bool ok, const char *what, int line)
{
    if (ok)
        return;
    if (failures++ < 10)
        printf("  line %d: not so: %s\n", line, what);
}

/* FNV-1a. */
uint64_t digest(uint64_t d, const void *bytes, size_t n)
{
    const uint8_t *p = bytes;
    if (!d)
        d = 0xcbf29ce484222325u;
    for (size_t i = 0; i < n; i++)
        d = (d ^ p[i]) * 0x100000001b3u;
    return d;
}

uint64_t random64(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u; /* splitmix64 */
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

void *map_at(uint64_t at, size_t size, int protection, int flags)
{
    int kind = flags & MAP_SHARED ? 0 : MAP_PRIVATE, fixed = flags & MAP_FIXED_NOREPLACE ? 0 : MAP_FIXED;
    return mmap((void *)at, size, protection, flags | kind | fixed | MAP_ANONYMOUS, -1, 0);
}

static void run(const Case *c)
{
    fflush(stdout);
    double start = now();
    pid_t child = fork();
    if (child == 0) {
        failures = 0;
        machine_init();
        alarm(300);
        c->run();
        fflush(stdout);
        _exit(failures != 0);
    }
    int status;
    waitpid(child, &status, 0);
    printf("%s %s (status %#x, %.2f s)\n", status == 0 ? "PASS" : "FAIL", c->name, (unsigned)status, now() - start);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    const Case *const all[] = {matrix_cases, fuzz_cases, space_cases, share_cases, thread_cases};
    if (argc == 3 && strcmp(argv[1], "--exit") == 0)
        return atoi(argv[2]);
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (unsigned i = 0; i < sizeof(all) / sizeof(*all); i++)
        for (const Case *c = all[i]; c->name; c++) {
            bool wanted = argc < 2;
            for (int a = 1; a < argc; a++)
                wanted = wanted || strcmp(argv[a], c->name) == 0;
            if (wanted)
                run(c);
        }
    printf("ALL-CASES-DONE\n");
    return 0;
}
