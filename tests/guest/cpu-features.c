/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Runs inside the guest of cpu-features.py: executes an instruction of each CPU feature that CPUID
 * offers and checks what it did; tries the others, which should be undefined. Prints one line each:
 * "FEATURE name yes|no right|wrong|undefined".
 */
#include <cpuid.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

typedef uint8_t Vector __attribute__((vector_size(16), aligned(16)));

static uint8_t area[4096] __attribute__((aligned(64)));
static sigjmp_buf undefined_jump;

static void on_undefined(int number)
{
    siglongjmp(undefined_jump, 1);
}

static Vector bytes_from(unsigned first)
{
    Vector v;
    for (unsigned i = 0; i < 16; i++)
        v[i] = (uint8_t)(first + i);
    return v;
}

static uint64_t low64(Vector v)
{
    uint64_t u;
    memcpy(&u, &v, 8);
    return u;
}

/* ---- one function a feature: whether its instruction does what the SDM says ---- */

static bool test_cmov(void)
{
    uint64_t v = 1;
    __asm__("xor %%ecx, %%ecx\n cmovz %1, %0" : "+r"(v) : "r"(7ull) : "ecx", "cc");
    return v == 7;
}

static bool test_cx8(void)
{
    uint64_t m = 5;
    bool ok;
    __asm__("lock cmpxchg8b %0\n setz %1" : "+m"(m), "=q"(ok) : "a"(5), "d"(0), "b"(9), "c"(1) : "cc");
    return ok && m == 0x100000009;
}

static bool test_cx16(void)
{
    uint64_t m[2] __attribute__((aligned(16))) = {5, 6};
    bool ok;
    __asm__("lock cmpxchg16b %0\n setz %1"
            : "+m"(m), "=q"(ok)
            : "a"(5ull), "d"(6ull), "b"(9ull), "c"(1ull)
            : "cc", "memory");
    return ok && m[0] == 9 && m[1] == 1;
}

static bool test_mmx(void)
{
    uint64_t v;
    __asm__("movq %1, %%mm0\n paddb %%mm0, %%mm0\n movq %%mm0, %0\n emms"
            : "=m"(v)
            : "m"(*(const uint64_t[]){0x0102030405060708}));
    return v == 0x020406080a0c0e10;
}

static bool test_fxsr(void)
{
    memset(area, 0xff, 512);
    __asm__ volatile("fxsave %0" : "=m"(area));
    return area[28] != 0 || area[24] == 0x80 || area[25] == 0x1f; /* MXCSR and its mask */
}

static bool test_sse(void)
{
    float v;
    __asm__("addss %1, %0" : "=x"(v) : "x"(1.5f), "0"(2.0f));
    return v == 3.5f;
}

static bool test_sse2(void)
{
    Vector v = bytes_from(0);
    __asm__("paddq %1, %0" : "+x"(v) : "x"(bytes_from(1)));
    return low64(v) == 0x0f0d0b0907050301;
}

static bool test_clflush(void)
{
    __asm__ volatile("clflush %0" : "+m"(area));
    return true;
}

static bool test_tsc(void)
{
    return __builtin_ia32_rdtsc() < __builtin_ia32_rdtsc();
}

static bool test_lahf(void)
{
    uint64_t v;
    __asm__("xor %%eax, %%eax\n lahf" : "=a"(v) : : "cc");
    return (v >> 8 & 0xff) == 0x46; /* ZF, PF and the bit that is always set */
}

static bool test_pni(void)
{
    double v[2] = {1, 2};
    __asm__("movupd %0, %%xmm0\n haddpd %%xmm0, %%xmm0\n movupd %%xmm0, %0" : "+m"(v) : : "xmm0");
    return v[0] == 3 && v[1] == 3;
}

static bool test_ssse3(void)
{
    Vector v = bytes_from(0);
    __asm__("pshufb %1, %0" : "+x"(v) : "x"(bytes_from(1)));
    return low64(v) == 0x0807060504030201;
}

static bool test_sse41(void)
{
    Vector v = bytes_from(0);
    __asm__("pminsd %1, %0" : "+x"(v) : "x"((Vector){1}));
    return low64(v) == 1;
}

static bool test_sse42(void)
{
    uint32_t crc = ~0u;
    __asm__("crc32b %1, %0" : "+r"(crc) : "q"((uint8_t)'a'));
    return ~crc == 0xc1d04330; /* CRC-32C of "a" */
}

static bool test_popcnt(void)
{
    uint64_t v;
    __asm__("popcnt %1, %0" : "=r"(v) : "r"(0xf0f0ull) : "cc");
    return v == 8;
}

static bool test_movbe(void)
{
    uint32_t v, m = 0x11223344;
    __asm__("movbe %1, %0" : "=r"(v) : "m"(m));
    return v == 0x44332211;
}

static bool test_pclmulqdq(void)
{
    Vector v = {3}, w = {5};
    __asm__("pclmulqdq $0, %1, %0" : "+x"(v) : "x"(w));
    return low64(v) == 15;
}

static bool test_aes(void)
{
    Vector v = {0};
    __asm__("aesenc %1, %0" : "+x"(v) : "x"((Vector){0}));
    return low64(v) == 0x6363636363636363;
}

static bool test_sha(void)
{
    Vector v = {1}, w = {2};
    __asm__("sha1nexte %1, %0" : "+x"(v) : "x"(w));
    return v[0] == 2 && v[12] == 0; /* adds ROL(v[3], 30) to the top word only */
}

static bool test_gfni(void)
{
    Vector v = {0x57}, w = {0x83};
    __asm__("gf2p8mulb %1, %0" : "+x"(v) : "x"(w));
    return v[0] == 0xc1; /* FIPS 197, 4.2 */
}

static bool test_xsave(void)
{
    uint32_t a, d;
    __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    memset(area, 0, 1024);
    __asm__ volatile("xsave %0" : "+m"(area) : "a"(3), "d"(0));
    return (a & 3) == 3 && (area[512] & 2);
}

static bool test_xsaveopt(void)
{
    memset(area, 0, 1024);
    __asm__ volatile("xsaveopt %0" : "+m"(area) : "a"(3), "d"(0));
    return (area[512] & ~3) == 0;
}

static bool test_xsavec(void)
{
    memset(area, 0, 1024);
    __asm__ volatile("xsavec %0" : "+m"(area) : "a"(3), "d"(0));
    return area[527] == 0x80; /* XCOMP_BV bit 63 */
}

static bool test_xgetbv1(void)
{
    uint32_t a, d;
    __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(1));
    return (a & ~0x2ffu) == 0; /* PKRU is the highest */
}

static bool test_avx(void)
{
    double in[4] = {1, 2, 3, 4}, out[4];
    __asm__("vmovupd %1, %%ymm0\n vaddpd %%ymm0, %%ymm0, %%ymm1\n vmovupd %%ymm1, %0\n vzeroupper"
            : "=m"(out)
            : "m"(in)
            : "xmm0", "xmm1");
    return out[0] == 2 && out[3] == 8;
}

static bool test_avx2(void)
{
    uint64_t in[4] = {1, 2, 3, ~0ull}, out[4];
    __asm__("vmovdqu %1, %%ymm0\n vpaddq %%ymm0, %%ymm0, %%ymm1\n vmovdqu %%ymm1, %0\n vzeroupper"
            : "=m"(out)
            : "m"(in)
            : "xmm0", "xmm1");
    return out[0] == 2 && out[3] == ~1ull;
}

static bool test_fma(void)
{
    double v = 2;
    __asm__("vfmadd213sd %2, %1, %0" : "+x"(v) : "x"(3.0), "x"(4.0));
    return v == 10;
}

static bool test_f16c(void)
{
    Vector v = {0, 0x3c}; /* 1.0 as half */
    float out[4];
    __asm__("vcvtph2ps %1, %%xmm0\n vmovups %%xmm0, %0" : "=m"(out) : "x"(v) : "xmm0");
    return out[0] == 1.0f;
}

static bool test_vaes(void)
{
    uint8_t out[32];
    __asm__("vpxor %%ymm0, %%ymm0, %%ymm0\n vaesenc %%ymm0, %%ymm0, %%ymm0\n vmovdqu %%ymm0, %0\n vzeroupper"
            : "=m"(out)
            :
            : "xmm0");
    return out[0] == 0x63 && out[31] == 0x63;
}

static bool test_vpclmulqdq(void)
{
    uint64_t in[4] = {3, 0, 5, 0}, out[4];
    __asm__("vmovdqu %1, %%ymm0\n vpclmulqdq $0, %%ymm0, %%ymm0, %%ymm0\n vmovdqu %%ymm0, %0\n vzeroupper"
            : "=m"(out)
            : "m"(in)
            : "xmm0");
    return out[0] == 5 && out[2] == 17;
}

static bool test_bmi1(void)
{
    uint64_t v;
    __asm__("andn %2, %1, %0" : "=r"(v) : "r"(0xf0ull), "r"(0xffull) : "cc");
    return v == 0xf;
}

static bool test_bmi2(void)
{
    uint64_t v;
    __asm__("pdep %2, %1, %0" : "=r"(v) : "r"(5ull), "r"(0xf0ull));
    return v == 0x50;
}

static bool test_abm(void)
{
    uint64_t v;
    __asm__("lzcnt %1, %0" : "=r"(v) : "r"(1ull) : "cc");
    return v == 63;
}

static bool test_adx(void)
{
    uint64_t v = 1;
    __asm__("xor %%ecx, %%ecx\n stc\n adcx %1, %0" : "+r"(v) : "r"(2ull) : "ecx", "cc");
    return v == 4;
}

static bool test_rdrand(void)
{
    uint64_t v;
    bool ok = false;
    for (unsigned i = 0; i < 100 && !ok; i++)
        __asm__ volatile("rdrand %0\n setc %1" : "=r"(v), "=q"(ok) : : "cc");
    return ok;
}

static bool test_rdseed(void)
{
    uint64_t v;
    bool ok = false;
    for (unsigned i = 0; i < 100000 && !ok; i++)
        __asm__ volatile("rdseed %0\n setc %1" : "=r"(v), "=q"(ok) : : "cc");
    return ok;
}

static bool test_fsgsbase(void)
{
    uint64_t v, w;
    __asm__ volatile("rdgsbase %0\n wrgsbase %2\n rdgsbase %1\n wrgsbase %0" : "=&r"(v), "=&r"(w) : "r"(0x12345000ull));
    return w == 0x12345000;
}

static bool test_erms(void)
{
    uint8_t from[300], to[300] = {0};
    void *d = to, *s = from;
    size_t n = sizeof(from);
    memset(from, 0x5a, sizeof(from));
    __asm__ volatile("rep movsb" : "+D"(d), "+S"(s), "+c"(n) : : "memory");
    return memcmp(from, to, sizeof(to)) == 0;
}

static bool test_clflushopt(void)
{
    __asm__ volatile("clflushopt %0" : "+m"(area));
    return true;
}

static bool test_clwb(void)
{
    __asm__ volatile("clwb %0" : "+m"(area));
    return true;
}

static bool test_prefetchw(void)
{
    __asm__ volatile("prefetchw %0" : "+m"(area));
    return true;
}

static bool test_rdtscp(void)
{
    uint32_t a, d, c;
    __asm__ volatile("rdtscp" : "=a"(a), "=d"(d), "=c"(c));
    return (c & 0xfff) < 64; /* Linux keeps the CPU's number there */
}

static bool test_rdpid(void)
{
    uint64_t v;
    __asm__ volatile("rdpid %0" : "=r"(v));
    return (v & 0xfff) < 64;
}

/* Key 0 stays readable and writable; the kernel gives the others no rights. */
static bool test_pku(void)
{
    uint32_t old, new, d;
    __asm__ volatile("rdpkru" : "=a"(old), "=d"(d) : "c"(0));
    __asm__ volatile("wrpkru" : : "a"(old ^ 0x10u), "c"(0), "d"(0) : "memory");
    __asm__ volatile("rdpkru" : "=a"(new), "=d"(d) : "c"(0));
    __asm__ volatile("wrpkru" : : "a"(old), "c"(0), "d"(0) : "memory");
    return new == (old ^ 0x10u) && d == 0;
}

/* ---- the table ---- */

enum { EAX, EBX, ECX, EDX };
static const struct {
    const char *name;
    uint32_t leaf, subleaf;
    uint8_t reg, bit;
    bool (*test)(void);
} features[] = {
    {"tsc", 1, 0, EDX, 4, test_tsc},
    {"cx8", 1, 0, EDX, 8, test_cx8},
    {"cmov", 1, 0, EDX, 15, test_cmov},
    {"clflush", 1, 0, EDX, 19, test_clflush},
    {"mmx", 1, 0, EDX, 23, test_mmx},
    {"fxsr", 1, 0, EDX, 24, test_fxsr},
    {"sse", 1, 0, EDX, 25, test_sse},
    {"sse2", 1, 0, EDX, 26, test_sse2},
    {"pni", 1, 0, ECX, 0, test_pni},
    {"pclmulqdq", 1, 0, ECX, 1, test_pclmulqdq},
    {"ssse3", 1, 0, ECX, 9, test_ssse3},
    {"fma", 1, 0, ECX, 12, test_fma},
    {"cx16", 1, 0, ECX, 13, test_cx16},
    {"sse4.1", 1, 0, ECX, 19, test_sse41},
    {"sse4.2", 1, 0, ECX, 20, test_sse42},
    {"movbe", 1, 0, ECX, 22, test_movbe},
    {"popcnt", 1, 0, ECX, 23, test_popcnt},
    {"aes", 1, 0, ECX, 25, test_aes},
    {"xsave", 1, 0, ECX, 26, test_xsave},
    {"avx", 1, 0, ECX, 28, test_avx},
    {"f16c", 1, 0, ECX, 29, test_f16c},
    {"rdrand", 1, 0, ECX, 30, test_rdrand},
    {"fsgsbase", 7, 0, EBX, 0, test_fsgsbase},
    {"bmi1", 7, 0, EBX, 3, test_bmi1},
    {"avx2", 7, 0, EBX, 5, test_avx2},
    {"bmi2", 7, 0, EBX, 8, test_bmi2},
    {"erms", 7, 0, EBX, 9, test_erms},
    {"rdseed", 7, 0, EBX, 18, test_rdseed},
    {"adx", 7, 0, EBX, 19, test_adx},
    {"clflushopt", 7, 0, EBX, 23, test_clflushopt},
    {"clwb", 7, 0, EBX, 24, test_clwb},
    {"sha-ni", 7, 0, EBX, 29, test_sha},
    {"pku", 7, 0, ECX, 3, test_pku},
    {"gfni", 7, 0, ECX, 8, test_gfni},
    {"vaes", 7, 0, ECX, 9, test_vaes},
    {"vpclmulqdq", 7, 0, ECX, 10, test_vpclmulqdq},
    {"rdpid", 7, 0, ECX, 22, test_rdpid},
    {"fsrm", 7, 0, EDX, 4, test_erms},
    {"xsaveopt", 0xd, 1, EAX, 0, test_xsaveopt},
    {"xsavec", 0xd, 1, EAX, 1, test_xsavec},
    {"xgetbv1", 0xd, 1, EAX, 2, test_xgetbv1},
    {"lahf_lm", 0x80000001, 0, ECX, 0, test_lahf},
    {"abm", 0x80000001, 0, ECX, 5, test_abm},
    {"3dnowprefetch", 0x80000001, 0, ECX, 8, test_prefetchw},
    {"rdtscp", 0x80000001, 0, EDX, 27, test_rdtscp},
};

int main(void)
{
    struct sigaction action = {.sa_handler = on_undefined, .sa_flags = SA_NODEFER};
    sigaction(SIGILL, &action, NULL);
    sigaction(SIGSEGV, &action, NULL); /* XGETBV without its feature is #GP */
    for (unsigned i = 0; i < sizeof(features) / sizeof(features[0]); i++) {
        uint32_t r[4] = {0};
        __get_cpuid_count(features[i].leaf, features[i].subleaf, &r[0], &r[1], &r[2], &r[3]);
        const char *volatile result = "undefined";
        if (sigsetjmp(undefined_jump, 1) == 0)
            result = features[i].test() ? "right" : "wrong";
        bool offered = r[features[i].reg] >> features[i].bit & 1;
        printf("FEATURE %s %s %s\n", features[i].name, offered ? "yes" : "no", result);
    }
    /* The TSC's frequency in kHz as leaf 15H has it, and as KVM's leaf does. */
    uint32_t r[4], k[4];
    __cpuid(0x15, r[0], r[1], r[2], r[3]);
    __cpuid(0x40000010, k[0], k[1], k[2], k[3]);
    printf("FREQUENCY %llu %u\n", r[0] ? (unsigned long long)r[2] * r[1] / r[0] / 1000 : 0, k[0]);
    return 0;
}
