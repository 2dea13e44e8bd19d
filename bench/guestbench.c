/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Fixed work for comparing a guest's CPU with its host's; runs in both (bench/guest).
 * Built with gcc -O2 -static -march=x86-64, so that the guest runs the same bytes as the host.
 *
 * usage: guestbench [-s SCALE] [-j COPIES] [NAME...], guestbench -x COMMAND
 * Prints "BENCH name seconds check" per workload (all without names), then "BENCH TOTAL seconds 0".
 * With one scale the work is the same everywhere, and "check" must be the same too. -j runs that
 * many copies of each workload at a time ("check" is the first's), and lets "make" use that many
 * jobs. -x times a shell's command instead ("check" is its status).
 */
#include <emmintrin.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

typedef uint64_t u64;
typedef uint32_t u32;
typedef uint8_t u8;
#define NI __attribute__((noinline))
static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}
#define SEED 88172645463325252ull
static u64 seed = SEED;
static inline u64 rnd(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed;
}
static double scale = 1.0;
static long jobs = 1;
#define N(x) ((long)((x)*scale) ? (long)((x)*scale) : 1)
static const char *self = "/proc/self/exe";

/* ---- integer ---- */
static int cmpu32(const void *a, const void *b)
{
    u32 x = *(const u32 *)a, y = *(const u32 *)b;
    return x < y ? -1 : x > y;
}
static NI u64 b_sort(void)
{ /* qsort via function pointer + quicksort-free checksum */
    u32 n = 1 << 17;
    u32 *v = malloc(n * 4);
    u64 s = 0;
    for (long r = 0; r < N(40); r++) {
        for (u32 i = 0; i < n; i++)
            v[i] = rnd();
        qsort(v, n, 4, cmpu32);
        s += v[n / 2] ^ v[7];
    }
    free(v);
    return s;
}
static NI u64 b_hash(void)
{ /* open addressing, 256k slots of 16 bytes (4 MB) */
    u32 m = 1 << 18;
    struct {
        u64 k, v;
    } *t = calloc(m, 16);
    u64 s = 0;
    for (long i = 0; i < N(30000000); i++) {
        u64 k = (rnd() % 150000) + 1, h = k * 0x9E3779B97F4A7C15ull >> 46;
        while (t[h].k && t[h].k != k)
            h = (h + 1) & (m - 1);
        t[h].k = k;
        t[h].v += i;
        s ^= t[h].v;
    }
    free(t);
    return s;
}
static NI u64 b_lz(void)
{ /* LZ-style greedy match finder with a hash head table */
    u32 n = 1 << 20;
    u8 *b = malloc(n + 8);
    static u32 head[1 << 14];
    u64 s = 0;
    for (u32 i = 0; i < n;) {
        if (i > 100 && (rnd() & 3)) {
            u32 l = 4 + rnd() % 28, o = 1 + rnd() % (i < 60000 ? i : 60000);
            while (l-- && i < n) {
                b[i] = b[i - o];
                i++;
            }
        } else {
            u32 l = 1 + rnd() % 12;
            while (l-- && i < n)
                b[i++] = 'a' + rnd() % 20;
        }
    }
    for (long r = 0; r < N(110); r++) {
        memset(head, 0, sizeof head);
        for (u32 i = 0; i + 8 < n;) {
            u32 w;
            memcpy(&w, b + i, 4);
            u32 h = (w * 2654435761u) >> 18, p = head[h];
            head[h] = i;
            u32 l = 0;
            if (p < i && i - p < 65535)
                while (i + l < n && b[p + l] == b[i + l] && l < 255)
                    l++;
            if (l >= 4) {
                s += (u64)l * 31 + (i - p);
                i += l;
            } else {
                s += b[i];
                i++;
            }
        }
    }
    free(b);
    return s;
}
static NI u64 b_mix(void)
{ /* CoreMark-like: list walk + int matrix + state machine + crc16 */
    struct n {
        struct n *nx;
        short d, k;
    } *pool = malloc(sizeof *pool * 256);
    static int A[40][40], B[40][40], C[40][40];
    u64 crc = 0;
    const char *txt = "5012,1.2e3,-874,+122,abc,0x7f,35.54400,.1234500,-110.700,T0.3e-1F,";
    for (int i = 0; i < 256; i++) {
        pool[i].nx = i < 255 ? &pool[i + 1] : 0;
        pool[i].d = rnd();
        pool[i].k = i;
    }
    struct n *hd = pool;
    for (long r = 0; r < N(15000); r++) {
        struct n *p = hd, *q = 0, *t;
        long f = 0;
        while (p) {
            t = p->nx;
            p->nx = q;
            q = p;
            f += p->d & 1 ? p->d : -p->k;
            p = t;
        }
        hd = q;
        for (int i = 0; i < 40; i++)
            for (int j = 0; j < 40; j++) {
                A[i][j] = (i * j + r) & 255;
                B[i][j] = (i + j + f) & 255;
            }
        for (int i = 0; i < 40; i++)
            for (int j = 0; j < 40; j++) {
                int x = 0;
                for (int k = 0; k < 40; k++)
                    x += A[i][k] * B[k][j];
                C[i][j] = x;
            }
        int st = 0;
        u32 cnt[6] = {0};
        for (int k = 0; k < 12; k++)
            for (const char *c = txt; *c; c++) {
                switch (st) {
                case 0:
                    st = *c == '-' || *c == '+'   ? 1
                         : *c >= '0' && *c <= '9' ? 2
                         : *c == '.'              ? 3
                                                  : 5;
                    break;
                case 1:
                    st = *c >= '0' && *c <= '9' ? 2 : *c == '.' ? 3 : 5;
                    break;
                case 2:
                    st = *c == '.'                ? 3
                         : *c == 'e'              ? 4
                         : *c == ','              ? 0
                         : *c >= '0' && *c <= '9' ? 2
                                                  : 5;
                    break;
                case 3:
                    st = *c == 'e' ? 4 : *c == ',' ? 0 : *c >= '0' && *c <= '9' ? 3 : 5;
                    break;
                case 4:
                    st = *c == ',' ? 0 : (*c >= '0' && *c <= '9') || *c == '-' ? 4 : 5;
                    break;
                case 5:
                    st = *c == ',' ? 0 : 5;
                    break;
                }
                cnt[st]++;
            }
        u32 w = f + C[r % 40][(r / 3) % 40] + cnt[2] * 7 + cnt[5];
        for (int k = 0; k < 32; k++) {
            u32 b = (crc ^ w) & 1;
            crc >>= 1;
            w >>= 1;
            if (b)
                crc ^= 0xA001;
        }
    }
    free(pool);
    return crc;
}
/* ---- hashes ---- */
static const u32 K256[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
#define R(x, n) ((x) >> (n) | (x) << (32 - (n)))
static NI u64 b_sha256(void)
{
    u32 h[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19},
        w[64];
    u8 buf[64];
    for (int i = 0; i < 64; i++)
        buf[i] = i * 7;
    for (long r = 0; r < N(2000000); r++) {
        for (int i = 0; i < 16; i++) {
            u32 x;
            memcpy(&x, buf + 4 * i, 4);
            w[i] = __builtin_bswap32(x) + r;
        }
        for (int i = 16; i < 64; i++)
            w[i] = (R(w[i - 2], 17) ^ R(w[i - 2], 19) ^ (w[i - 2] >> 10)) + w[i - 7] +
                   (R(w[i - 15], 7) ^ R(w[i - 15], 18) ^ (w[i - 15] >> 3)) + w[i - 16];
        u32 a = h[0], b = h[1], c = h[2], d = h[3], e = h[4], f = h[5], g = h[6], q = h[7];
        for (int i = 0; i < 64; i++) {
            u32 t1 = q + (R(e, 6) ^ R(e, 11) ^ R(e, 25)) + ((e & f) ^ (~e & g)) + K256[i] + w[i],
                t2 = (R(a, 2) ^ R(a, 13) ^ R(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
            q = g;
            g = f;
            f = e;
            e = d + t1;
            d = c;
            c = b;
            b = a;
            a = t1 + t2;
        }
        h[0] += a;
        h[1] += b;
        h[2] += c;
        h[3] += d;
        h[4] += e;
        h[5] += f;
        h[6] += g;
        h[7] += q;
    }
    return ((u64)h[0] << 32) | h[7];
}
static NI u64 b_crc32(void)
{ /* byte-at-a-time table */
    static u32 T[256];
    static u8 buf[65536];
    u32 c = ~0u;
    for (u32 i = 0; i < 256; i++) {
        u32 x = i;
        for (int k = 0; k < 8; k++)
            x = x & 1 ? x >> 1 ^ 0xEDB88320 : x >> 1;
        T[i] = x;
    }
    for (u32 i = 0; i < sizeof buf; i++)
        buf[i] = rnd();
    for (long r = 0; r < N(4500); r++)
        for (u32 i = 0; i < sizeof buf; i++)
            c = T[(c ^ buf[i]) & 255] ^ c >> 8;
    return c;
}
/* ---- memory ---- */
static NI u64 b_chase(void)
{ /* random cyclic pointer chase over 64 MB, one node per 64-byte line */
    u32 n = (64u << 20) / 64;
    struct ln {
        struct ln *nx;
        char p[56];
    } *m = mmap(0, 64u << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    u32 *o = malloc(n * 4);
    for (u32 i = 0; i < n; i++)
        o[i] = i;
    for (u32 i = n - 1; i; i--) {
        u32 j = rnd() % i, t = o[i];
        o[i] = o[j];
        o[j] = t;
    } /* Sattolo */
    for (u32 i = 0; i < n; i++)
        m[o[i]].nx = &m[o[(i + 1) % n]];
    free(o);
    struct ln *p = m;
    double t0 = now();
    for (long i = 0; i < N(6000000); i++)
        p = p->nx;
    double dt = now() - t0;
    u64 s = p - m;
    munmap(m, 64u << 20);
    return s ^ ((u64)(dt * 0)); /* whole sub-benchmark is timed, set-up included */
}
static NI u64 b_memcpy(void)
{ /* libc memcpy of 16 MB buffers (ifunc picks what CPUID allows) */
    size_t n = 16 << 20;
    char *a = malloc(n), *b = malloc(n);
    memset(a, 1, n);
    memset(b, 2, n);
    u64 s = 0;
    for (long i = 0; i < N(150); i++) {
        memcpy(a, b, n);
        a[i] = i;
        memcpy(b, a, n);
        s += b[i];
    }
    free(a);
    free(b);
    return s;
}
/* ---- FP ---- */
static NI u64 b_nbody(void)
{
    enum { n = 5 };
    double x[n][3], v[n][3], m[n];
    for (int i = 0; i < n; i++) {
        m[i] = 1.0 / (i + 1);
        for (int k = 0; k < 3; k++) {
            x[i][k] = (i * 3 + k) * 1.7 - (i & 1 ? 5 : 0) + i * i;
            v[i][k] = (k - 1) * 0.01 * i;
        }
    }
    for (long s = 0; s < N(2500000); s++) {
        for (int i = 0; i < n; i++)
            for (int j = i + 1; j < n; j++) {
                double dx = x[i][0] - x[j][0], dy = x[i][1] - x[j][1], dz = x[i][2] - x[j][2],
                       d2 = dx * dx + dy * dy + dz * dz, g = 0.001 / (d2 * sqrt(d2));
                v[i][0] -= dx * m[j] * g;
                v[i][1] -= dy * m[j] * g;
                v[i][2] -= dz * m[j] * g;
                v[j][0] += dx * m[i] * g;
                v[j][1] += dy * m[i] * g;
                v[j][2] += dz * m[i] * g;
            }
        for (int i = 0; i < n; i++)
            for (int k = 0; k < 3; k++)
                x[i][k] += 0.001 * v[i][k];
    }
    u64 r;
    double e = x[0][0] + x[4][2];
    memcpy(&r, &e, 8);
    return r;
}
__attribute__((noinline, optimize("no-tree-vectorize"))) static u64 b_matmul(void)
{ /* scalar double 256^3 */
    enum { n = 256 };
    static double A[n][n], B[n][n], C[n][n];
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++) {
            A[i][j] = i * 0.5 + j;
            B[i][j] = i - j * 0.25;
            C[i][j] = 0;
        }
    for (long r = 0; r < N(30); r++)
        for (int i = 0; i < n; i++)
            for (int k = 0; k < n; k++) {
                double a = A[i][k];
                for (int j = 0; j < n; j++)
                    C[i][j] += a * B[k][j];
            }
    u64 s;
    memcpy(&s, &C[17][200], 8);
    return s;
}
/* ---- SSE2 ---- */
static NI u64 b_sse2f(void)
{ /* packed double + packed float arithmetic over 16 KB */
    static double a[2048] __attribute__((aligned(16))), b[2048] __attribute__((aligned(16)));
    for (int i = 0; i < 2048; i++) {
        a[i] = 1.0 + i * 1e-4;
        b[i] = 0.5;
    }
    __m128d k = _mm_set1_pd(0.999), c = _mm_set1_pd(0.001);
    for (long r = 0; r < N(220000); r++)
        for (int i = 0; i < 2048; i += 4) {
            __m128d x = _mm_load_pd(b + i), y = _mm_load_pd(b + i + 2);
            x = _mm_add_pd(_mm_mul_pd(x, k), _mm_mul_pd(_mm_load_pd(a + i), c));
            y = _mm_add_pd(_mm_mul_pd(y, k), _mm_mul_pd(_mm_load_pd(a + i + 2), c));
            _mm_store_pd(b + i, x);
            _mm_store_pd(b + i + 2, y);
        }
    u64 s;
    memcpy(&s, &b[1001], 8);
    return s;
}
static NI u64 b_sse2i(void)
{ /* packed integer: SAD, compare, shuffle, saturating add, shifts */
    static u8 a[65536] __attribute__((aligned(16)));
    __m128i s = _mm_setzero_si128(), z = s, t = _mm_set1_epi8(77);
    for (u32 i = 0; i < sizeof a; i++)
        a[i] = rnd();
    for (long r = 0; r < N(50000); r++)
        for (u32 i = 0; i < sizeof a; i += 16) {
            __m128i x = _mm_load_si128((void *)(a + i)), m = _mm_cmpgt_epi8(x, t);
            x = _mm_adds_epu8(_mm_xor_si128(x, t), _mm_and_si128(m, x));
            x = _mm_shuffle_epi32(_mm_unpacklo_epi8(x, m), 0x1b);
            s = _mm_add_epi64(s, _mm_sad_epu8(_mm_slli_epi16(x, 3), z));
        }
    return _mm_cvtsi128_si64(s) ^ _mm_cvtsi128_si64(_mm_srli_si128(s, 8));
}
/* ---- control flow ---- */
__attribute__((noinline, noclone,
               optimize("no-optimize-sibling-calls,no-inline,no-tree-tail-merge"))) static u64
fib(unsigned n)
{
    if (n < 2)
        return n;
    u64 a = fib(n - 1);
    __asm__ volatile("" : "+r"(a));
    return a + fib(n - 2);
}
static NI u64 b_fib(void)
{
    u64 s = 0;
    for (long i = 0; i < N(4); i++)
        s += fib(38);
    return s;
}
enum { ADD, SUB, MUL, XOR, SHR, LD, ST, JNZ, DEC, MOV, INC, HALT };
__attribute__((noinline, optimize("jump-tables"))) static u64 b_interp(void)
{ /* bytecode interpreter, switch dispatch */
    static const u8 prog[] = {LD,  0, 1, ADD, 0, 2, XOR, 1, 0, MUL, 2, 1, SHR,  1, 2,
                              MOV, 3, 0, SUB, 3, 1, ST,  3, 2, INC, 2, 0, XOR,  0, 3,
                              ADD, 1, 3, INC, 1, 0, DEC, 7, 0, JNZ, 7, 0, HALT, 0, 0};
    u64 r[8] = {1, 2, 3, 4, 5, 6, 7, 0}, mem[256] = {0};
    r[7] = N(20000000);
    const u8 *p = prog;
    for (;;) {
        u32 d = p[1], s = p[2];
        switch (*p) {
        case ADD:
            r[d] += r[s];
            break;
        case SUB:
            r[d] -= r[s];
            break;
        case MUL:
            r[d] *= r[s] | 1;
            break;
        case XOR:
            r[d] ^= r[s];
            break;
        case SHR:
            r[d] >>= s;
            break;
        case LD:
            r[d] = mem[r[s] & 255];
            break;
        case ST:
            mem[r[s] & 255] = r[d];
            break;
        case DEC:
            r[d]--;
            break;
        case MOV:
            r[d] = r[s];
            break;
        case INC:
            r[d]++;
            break;
        case JNZ:
            if (r[d]) {
                p = prog + s;
                continue;
            }
            break;
        case HALT:
            return r[0] ^ r[3];
        }
        p += 3;
    }
}
typedef u64 (*fn)(u64);
static NI u64 f0(u64 x)
{
    return x + 3;
}
static NI u64 f1(u64 x)
{
    return x ^ 0x55;
}
static NI u64 f2(u64 x)
{
    return x * 5;
}
static NI u64 f3(u64 x)
{
    return x >> 1;
}
static NI u64 b_indcall(void)
{
    static fn t[4] = {f0, f1, f2, f3};
    u64 x = 12345, k = 99;
    volatile fn *v = (volatile fn *)t;
    for (long i = 0; i < N(60000000); i++) {
        k = k * 6364136223846793005ull + 1442695040888963407ull;
        x = v[k >> 62](x) + k;
    }
    return x;
}
/* ---- kernel ---- */
static NI u64 b_getpid(void)
{
    u64 s = 0;
    for (long i = 0; i < N(1000000); i++)
        s += syscall(SYS_getppid) >= 0;
    return s;
}
static NI u64 b_rdwr(void)
{ /* 4 KiB pwrite+pread on a memfd */
    int fd = memfd_create("b", 0);
    char buf[4096];
    memset(buf, 5, sizeof buf);
    u64 s = 0;
    for (long i = 0; i < N(150000); i++) {
        off_t o = (i & 255) * 4096L;
        s += pwrite(fd, buf, 4096, o);
        s += pread(fd, buf, 4096, o);
    }
    close(fd);
    return s;
}
static NI u64 b_forkexec(void)
{
    u64 s = 0;
    for (long i = 0; i < N(300); i++) {
        pid_t p = fork();
        if (!p) {
            execl(self, "guestbench", "--exit", (char *)0);
            _exit(99);
        }
        int st;
        waitpid(p, &st, 0);
        s += WIFEXITED(st) && WEXITSTATUS(st) == 7;
    }
    return s;
}
static NI u64 b_fork(void)
{
    u64 s = 0;
    for (long i = 0; i < N(1000); i++) {
        pid_t p = fork();
        if (!p)
            _exit(7);
        int st;
        waitpid(p, &st, 0);
        s += WEXITSTATUS(st) == 7;
    }
    return s;
}
static NI u64 b_pgfault(void)
{ /* mmap 4 MB, touch each page, munmap (THP off for the range) */
    u64 s = 0;
    for (long i = 0; i < N(250); i++) {
        char *p = mmap(0, 4 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        madvise(p, 4 << 20, MADV_NOHUGEPAGE);
        for (int k = 0; k < 4 << 20; k += 4096) {
            p[k] = k >> 12;
            s += p[k];
        }
        munmap(p, 4 << 20);
    }
    return s;
}
static NI u64 b_pipe(void)
{ /* ping-pong between two processes, both on one CPU by construction in a 1-vCPU guest */
    int a[2], b[2];
    char c = 1;
    u64 s = 0;
    long n = N(60000);
    if (pipe(a) || pipe(b))
        return 0;
    pid_t p = fork();
    if (!p) {
        for (long i = 0; i < n; i++) {
            if (read(a[0], &c, 1) != 1)
                break;
            if (write(b[1], &c, 1) != 1)
                break;
        }
        _exit(0);
    }
    for (long i = 0; i < n; i++) {
        if (write(a[1], &c, 1) != 1)
            break;
        if (read(b[0], &c, 1) != 1)
            break;
        s++;
    }
    int st;
    waitpid(p, &st, 0);
    close(a[0]);
    close(a[1]);
    close(b[0]);
    close(b[1]);
    return s;
}
static NI u64 b_clock(void)
{
    u64 s = 0;
    struct timespec t;
    for (long i = 0; i < N(500000); i++)
        s += syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &t) == 0;
    return s;
}
static NI u64 b_mprot(void)
{ /* mprotect flips: TLB flush of one page */
    char *p = mmap(0, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    u64 s = 0;
    for (long i = 0; i < N(60000); i++) {
        char *q = p + (i & 15) * 4096;
        mprotect(q, 4096, PROT_READ);
        s += *q;
        mprotect(q, 4096, PROT_READ | PROT_WRITE);
        *q = i;
    }
    munmap(p, 65536);
    return s;
}

/* Like make -j on small compilations: jobs that fork, exec, compute a little, write and read a
 * file. */
static int make_job(void)
{
    static u32 v[1 << 12];
    static u8 text[1 << 16];
    u64 s = 0;
    for (u32 r = 0; r < 3; r++) {
        for (u32 i = 0; i < 1 << 12; i++)
            v[i] = rnd();
        qsort(v, 1 << 12, 4, cmpu32);
        s += v[9];
    }
    int fd = memfd_create("object", 0);
    memset(text, (int)s, sizeof text);
    if (write(fd, text, sizeof text) != sizeof text ||
        pread(fd, text, sizeof text, 0) != sizeof text)
        return 1;
    return 7;
}
static NI u64 b_make(void)
{
    u64 done = 0;
    long started = 0, total = N(120);
    while (started < total || done < (u64)total) {
        if (started < total && started - (long)done < jobs) {
            pid_t p = fork();
            if (!p) {
                execl(self, "guestbench", "--job", (char *)0);
                _exit(99);
            }
            if (p < 0)
                return 0;
            started++;
            continue;
        }
        int st;
        if (wait(&st) < 0 || !WIFEXITED(st) || WEXITSTATUS(st) != 7)
            return 0;
        done++;
    }
    return done;
}

/* Runs 64 MiB of code once: a million functions that add a constant, 64 bytes apart. */
static NI u64 b_bigcode(void)
{
    size_t size = (size_t)N(64 << 20) & ~(size_t)4095;
    u8 *code = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    u64 s = 0;
    if (code == MAP_FAILED)
        return 0;
    for (size_t at = 0; at < size; at += 64) {
        u32 i = at / 64;
        memcpy(code + at, "\x48\x8d\x87", 3); /* lea i(%rdi), %rax; ret */
        memcpy(code + at + 3, &i, 4);
        code[at + 7] = 0xc3;
    }
    if (mprotect(code, size, PROT_READ | PROT_EXEC))
        return 0;
    for (size_t at = 0; at < size; at += 64)
        s = ((u64(*)(u64))(code + at))(s);
    munmap(code, size);
    return s;
}

typedef struct Workload {
    const char *name;
    u64 (*run)(void);
} Workload;
static const Workload workloads[] = {
    {"sort", b_sort},      {"hash", b_hash},          {"lz", b_lz},
    {"coremix", b_mix},    {"sha256", b_sha256},      {"crc32", b_crc32},
    {"chase64m", b_chase}, {"memcpy16m", b_memcpy},   {"nbody", b_nbody},
    {"matmul", b_matmul},  {"sse2_fp", b_sse2f},      {"sse2_int", b_sse2i},
    {"fib", b_fib},        {"interp", b_interp},      {"indcall", b_indcall},
    {"getppid", b_getpid}, {"clockgettime", b_clock}, {"rdwr4k", b_rdwr},
    {"fork", b_fork},      {"forkexec", b_forkexec},  {"pagefault", b_pgfault},
    {"mprotect", b_mprot}, {"pipe", b_pipe}};
/* Only when named: neither is run in copies. */
static const Workload named_workloads[] = {{"make", b_make}, {"bigcode", b_bigcode}};

static void measure(const Workload *w, long copies)
{
    double begin = now();
    for (long i = 1; i < copies; i++) {
        pid_t p = fork();
        if (!p) {
            seed = SEED;
            w->run();
            _exit(0);
        }
        if (p < 0) {
            perror("fork");
            exit(1);
        }
    }
    seed = SEED;
    u64 check = w->run();
    for (long i = 1; i < copies; i++)
        wait(NULL);
    printf("BENCH %s %.4f %016llx\n", w->name, now() - begin, (unsigned long long)check);
}
/* A program's time from start to end. */
static void measure_command(const char *command)
{
    double begin = now();
    int status = system(command);
    printf("BENCH command %.4f %x\n", now() - begin, (unsigned)status);
}
static bool wanted(const char *name, int argc, char **argv)
{
    for (int i = 0; i < argc; i++)
        if (!strcmp(argv[i], name))
            return true;
    return false;
}
int main(int argc, char **argv)
{
    int option;
    const char *command = NULL;
    if (argc > 1 && !strcmp(argv[1], "--exit"))
        _exit(7);
    if (argc > 1 && !strcmp(argv[1], "--job"))
        _exit(make_job());
    while ((option = getopt(argc, argv, "s:j:x:")) != -1) {
        if (option == 's')
            scale = atof(optarg);
        else if (option == 'j')
            jobs = atol(optarg);
        else if (option == 'x')
            command = optarg;
        else
            return 2;
    }
    argc -= optind;
    argv += optind;
    setvbuf(stdout, NULL, _IOLBF, 0);
    double begin = now();
    if (command)
        measure_command(command);
    for (size_t i = 0; !command && i < sizeof workloads / sizeof *workloads; i++)
        if (!argc || wanted(workloads[i].name, argc, argv))
            measure(&workloads[i], jobs);
    for (size_t i = 0; i < sizeof named_workloads / sizeof *named_workloads; i++)
        if (wanted(named_workloads[i].name, argc, argv))
            measure(&named_workloads[i], 1);
    printf("BENCH TOTAL %.4f 0\n", now() - begin);
    return 0;
}
