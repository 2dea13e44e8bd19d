/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Many instructions over pages in many states: what they leave behind, or how they fault. */
#include "mirror.h"

#define AREA 0x20000000000ull /* at the start of a window of 1 TiB */

typedef struct Kind {
    const char *name;
    uint8_t code[12], n;
    uint8_t size;
    bool stack;  /* RSP, not RBX, points behind the operand */
    bool aligned;
    bool undefined; /* flags */
} Kind;

#define CODE(...) {__VA_ARGS__}, sizeof((uint8_t[]){__VA_ARGS__})

/* RBX is the address, RSI and RDI too; RCX a small count. */
static const Kind kinds[] = {
    {"load8", CODE(0x8a, 0x03), 1},
    {"load16", CODE(0x66, 0x8b, 0x03), 2},
    {"load32", CODE(0x8b, 0x03), 4},
    {"load64", CODE(0x48, 0x8b, 0x03), 8},
    {"load64 into r10", CODE(0x4c, 0x8b, 0x13), 8},
    {"movzx", CODE(0x0f, 0xb7, 0x03), 2},
    {"store8", CODE(0x88, 0x03), 1},
    {"store ah", CODE(0x88, 0x23), 1},
    {"store64 disp8", CODE(0x48, 0x89, 0x43, 0x00), 8},
    {"store r9", CODE(0x4c, 0x89, 0x0b), 8},
    {"store imm", CODE(0x48, 0xc7, 0x03, 1, 2, 3, 4), 8},
    {"store indexed", CODE(0x48, 0x89, 0x04, 0x13), 8},        /* (%rbx,%rdx) with rdx = 0 */
    {"store by r11", CODE(0x49, 0x89, 0x03), 8},
    {"load far disp", CODE(0x48, 0x8b, 0x82, 0x00, 0x00, 0x00, 0x00), 8}, /* disp(%rdx): see below */
    {"add to memory", CODE(0x48, 0x01, 0x03), 8},
    {"lock add", CODE(0xf0, 0x48, 0x01, 0x03), 8},
    {"adc from memory", CODE(0x48, 0x13, 0x03), 8},
    {"cmp memory", CODE(0x48, 0x39, 0x03), 8},
    {"inc32", CODE(0xff, 0x03), 4},
    {"neg16", CODE(0x66, 0xf7, 0x1b), 2},
    {"shl memory", CODE(0x48, 0xc1, 0x23, 3), 8, .undefined = true},
    {"rol memory cl", CODE(0x48, 0xd3, 0x03), 8, .undefined = true},
    {"xchg", CODE(0x48, 0x87, 0x03), 8},
    {"xadd", CODE(0xf0, 0x48, 0x0f, 0xc1, 0x03), 8},
    {"cmpxchg", CODE(0xf0, 0x48, 0x0f, 0xb1, 0x0b), 8},
    {"cmpxchg16b", CODE(0xf0, 0x48, 0x0f, 0xc7, 0x0b), 16, .aligned = true},
    {"bts bit string", CODE(0x48, 0x0f, 0xab, 0x0b), 8, .undefined = true},
    {"bt", CODE(0x48, 0x0f, 0xba, 0x23, 5), 8, .undefined = true},
    {"imul", CODE(0x48, 0x0f, 0xaf, 0x03), 8, .undefined = true},
    {"div", CODE(0xf7, 0x33), 4, .undefined = true},
    {"cmov not", CODE(0x48, 0x0f, 0x44, 0x03), 8},
    {"setcc", CODE(0x0f, 0x95, 0x03), 1},
    {"movnti", CODE(0x48, 0x0f, 0xc3, 0x03), 8},
    {"xlat", CODE(0xd7), 1},
    {"push", CODE(0x50), 8, .stack = true},
    {"push memory", CODE(0xff, 0x33), 8},
    {"push imm", CODE(0x6a, 0x7f), 8, .stack = true},
    {"pushf", CODE(0x9c), 8, .stack = true},
    {"call", CODE(0xe8, 0, 0, 0, 0), 8, .stack = true},
    {"enter", CODE(0xc8, 16, 0, 0), 8, .stack = true},
    {"pop", CODE(0x59), 8, .stack = true},
    {"pop memory", CODE(0x8f, 0x03), 8},
    {"leave", CODE(0xc9), 8},
    {"movsq", CODE(0x48, 0xa5), 8},
    {"rep movsb", CODE(0xf3, 0xa4), 1},
    {"rep movsq", CODE(0xf3, 0x48, 0xa5), 8},
    {"rep stosb", CODE(0xf3, 0xaa), 1},
    {"rep stosq", CODE(0xf3, 0x48, 0xab), 8},
    {"repe cmpsb", CODE(0xf3, 0xa6), 1},
    {"repne scasq", CODE(0xf2, 0x48, 0xaf), 8},
    {"lodsq", CODE(0x48, 0xad), 8},
    {"std rep stosq", CODE(0xfd, 0xf3, 0x48, 0xab), 8},
    {"movaps load", CODE(0x0f, 0x28, 0x03), 16, .aligned = true},
    {"movaps store", CODE(0x0f, 0x29, 0x03), 16, .aligned = true},
    {"movups store", CODE(0x0f, 0x11, 0x03), 16},
    {"movdqu load", CODE(0xf3, 0x0f, 0x6f, 0x03), 16},
    {"movntdq", CODE(0x66, 0x0f, 0xe7, 0x03), 16, .aligned = true},
    {"paddb aligned", CODE(0x66, 0x0f, 0xfc, 0x03), 16, .aligned = true},
    {"addsd", CODE(0xf2, 0x0f, 0x58, 0x03), 8},
    {"maskmovdqu", CODE(0x66, 0x0f, 0xf7, 0xc1), 16},
    {"fld", CODE(0xdd, 0x03), 8},
    {"fstp", CODE(0xdd, 0x1b), 8},
    {"clflush", CODE(0x0f, 0xae, 0x3b), 1},
    {"prefetch", CODE(0x0f, 0x18, 0x0b), 1},
    {"load fs", CODE(0x64, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0), 8},
};

/* Of AVX and AVX2: only where the processor has them. */
static const Kind avx_kinds[] = {
    {"vmovups ymm", CODE(0xc5, 0xfc, 0x10, 0x03), 32},
    {"vmovups ymm store", CODE(0xc5, 0xfc, 0x11, 0x03), 32},
    {"vmovaps ymm store", CODE(0xc5, 0xfc, 0x29, 0x03), 32, .aligned = true},
    {"vpaddd ymm", CODE(0xc5, 0xfd, 0xfe, 0x03), 32},
    {"vbroadcastss", CODE(0xc4, 0xe2, 0x7d, 0x18, 0x03), 4},
    {"vmaskmovps load", CODE(0xc4, 0xe2, 0x75, 0x2c, 0x13), 32},
    {"vmaskmovps store", CODE(0xc4, 0xe2, 0x75, 0x2e, 0x13), 32},
    {"vpgatherdd", CODE(0xc4, 0xe2, 0x6d, 0x90, 0x04, 0x8b), 4}, /* (%rbx,ymm1,4): ymm1 = 0 */
    {"vextractf128", CODE(0xc4, 0xe3, 0x7d, 0x19, 0x03, 1), 16},
    {"andn", CODE(0xc4, 0xe2, 0xf8, 0xf2, 0x03), 8, .undefined = true},
    {"movbe", CODE(0x48, 0x0f, 0x38, 0xf0, 0x03), 8},
};

/* ---- states ---- */

typedef struct State {
    const char *name;
    void (*make)(uint8_t *page); /* of a page that was written and read */
    bool readable, writable;
} State;

static void protect_read(uint8_t *page)
{
    mprotect(page, PAGE, PROT_READ);
}
static void protect_none(uint8_t *page)
{
    mprotect(page, PAGE, PROT_NONE);
}
static void protect_back(uint8_t *page)
{
    mprotect(page, PAGE, PROT_NONE);
    mprotect(page, PAGE, PROT_READ | PROT_WRITE);
}
static void protect_execute(uint8_t *page)
{
    mprotect(page, PAGE, PROT_READ | PROT_EXEC);
}
static void unmap(uint8_t *page)
{
    munmap(page, PAGE);
}
static void move_away(uint8_t *page)
{
    uint8_t *to = map_at(AREA + (1 << 30), PAGE, PROT_NONE, 0);
    mremap(page, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to);
}
static void forget(uint8_t *page)
{
    madvise(page, PAGE, MADV_DONTNEED);
}
static void fresh(uint8_t *page)
{
    map_at((uint64_t)page, PAGE, PROT_READ | PROT_WRITE, 0);
}
static void file_private(uint8_t *page)
{
    int fd = memfd_create("matrix", 0);
    char bytes[PAGE];
    memset(bytes, 0x5a, PAGE);
    CHECK(write(fd, bytes, PAGE) == PAGE);
    mmap(page, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, 0);
    close(fd);
}
static void file_end(uint8_t *page)
{
    int fd = memfd_create("matrix", 0);
    mmap(page, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
    close(fd);
}
static void forked(uint8_t *page)
{
    pid_t child = fork();
    if (child == 0)
        _exit(page[0] == 0x5a);
    waitpid(child, NULL, 0);
}

static const State states[] = {
    {"plain", NULL, true, true},
    {"read-only", protect_read, true, false},
    {"none", protect_none, false, false},
    {"none and back", protect_back, true, true},
    {"executable", protect_execute, true, false},
    {"unmapped", unmap, false, false},
    {"moved", move_away, false, false},
    {"dontneed", forget, true, true},
    {"fresh", fresh, true, true},
    {"private file", file_private, true, true},
    {"behind the file's end", file_end, false, false},
    {"after fork", forked, true, true},
};

/* ---- one probe ---- */

static bool quiet;

/* Two pages: the second one in @state, both used before. */
static uint8_t *pages(const State *state)
{
    uint8_t *p = map_at(AREA + (1 << 20), 2 * PAGE, PROT_READ | PROT_WRITE, 0);
    for (unsigned i = 0; i < 2 * PAGE / 8; i++)
        ((volatile uint64_t *)p)[i] = i * 0x0101010101010101u;
    if (state->make)
        state->make(p + PAGE);
    return p;
}

static uint64_t memory_digest(uint8_t *p, const State *state)
{
    uint64_t d = digest(0, p, PAGE);
    if (state->make == move_away)
        return digest(d, (void *)(AREA + (1 << 30)), PAGE);
    if (state->make == unmap || state->make == file_end)
        return d;
    mprotect(p + PAGE, PAGE, PROT_READ | PROT_WRITE);
    return digest(d, p + PAGE, PAGE);
}

static uint64_t probe(const Kind *k, const State *state, int offset)
{
    uint8_t *p = pages(state);
    uint64_t at = (uint64_t)p + PAGE + (uint64_t)(int64_t)offset;
    Machine m = {.flags = 1};
    for (unsigned i = 0; i < 16; i++)
        m.r[i] = 0x1111111111111111u * i;
    m.r[RAX] = 0x1700000000000000;
    m.r[RBX] = m.r[RSI] = m.r[RDI] = m.r[11] = m.r[RBP] = at;
    m.r[RSP] = k->stack ? at + (k->code[0] == 0x59 ? 0 : 8) : (uint64_t)p + 256;
    m.r[RDX] = 0;
    m.r[RCX] = 40;
    if (strcmp(k->name, "rep movsb") == 0 || strcmp(k->name, "rep movsq") == 0)
        m.r[RSI] = (uint64_t)p + 512;
    if (strcmp(k->name, "load far disp") == 0)
        m.r[RDX] = at;
    if (strcmp(k->name, "xlat") == 0)
        m.r[RAX] = 0;
    if (strcmp(k->name, "repne scasq") == 0)
        m.r[RAX] = 12345;
    machine_run(&m, k->code, k->n);
    uint64_t d = digest(0, &m.faulted, 1);
    if (m.faulted) {
        uint64_t what[] = {(uint64_t)m.signal, (uint64_t)m.code, m.address, m.error, m.trap, m.rip};
        d = digest(d, what, sizeof(what));
    }
    for (unsigned i = 0; i < 16; i++)
        if (!(k->code[0] == 0xe8 && i == RSP)) /* its return address depends on where the code is */
            d = digest(d, &m.r[i], 8);
    if (!k->undefined)
        d = digest(d, &m.flags, 8);
    if (strcmp(k->name, "call"))
        d = digest(d, &(uint64_t){memory_digest(p, state)}, 8);
    if (!quiet && m.faulted)
        printf("  %s, %s, %d: signal %d code %d address %llx error %llu rip+%llx rsp %llx rcx %llx\n",
               k->name, state->name, offset, m.signal, m.code, (unsigned long long)m.address,
               (unsigned long long)m.error, (unsigned long long)m.rip, (unsigned long long)m.r[RSP],
               (unsigned long long)m.r[RCX]);
    return d;
}

static void kind_run(const Kind *k)
{
    int offsets[] = {0, 64, (int)PAGE - k->size, -k->size / 2, 4 + (k->size > 8 ? 4 : 0)};
    uint64_t d = 0;
    pid_t child = fork();
    if (child) {
        int status;
        waitpid(child, &status, 0);
        CHECK(status == 0);
        return;
    }
    quiet = !getenv("VERBOSE");
    for (unsigned s = 0; s < sizeof(states) / sizeof(*states); s++) {
        if (s % 3 == 0)
            warm(10);
        for (unsigned i = 0; i < 5; i++)
            d = digest(d, &(uint64_t){probe(k, &states[s], offsets[i])}, 8);
    }
    printf("RESULT matrix %s: %016llx\n", k->name, (unsigned long long)d);
    fflush(stdout);
    _exit(0);
}

static void matrix(void)
{
    for (unsigned i = 0; i < sizeof(kinds) / sizeof(*kinds); i++)
        if (strcmp(kinds[i].name, "load fs"))
            kind_run(&kinds[i]);
    if (__builtin_cpu_supports("avx2"))
        for (unsigned i = 0; i < sizeof(avx_kinds) / sizeof(*avx_kinds); i++)
            kind_run(&avx_kinds[i]);
}

/* ---- wild addresses ---- */

static void wild_one(uint64_t base, int64_t disp, bool store)
{
    uint8_t code[7] = {0x48, store ? 0x89 : 0x8b, 0x83}; /* disp32(%rbx) and %rax */
    int32_t d = (int32_t)disp;
    memcpy(code + 3, &d, 4);
    Machine m = {.r[RBX] = base, .r[RAX] = 7};
    machine_run(&m, code, sizeof(code));
    printf("RESULT wild %016llx %+lld %s: %d %d %llx err %llx trap %lld\n", (unsigned long long)base, (long long)disp,
           store ? "w" : "r", m.faulted ? m.signal : 0, m.code, (unsigned long long)m.address,
           (unsigned long long)m.error, (long long)m.trap);
}

static void wild(void)
{
    static const uint64_t bases[] = {
        0, 1, 8, 0xfff, 0x1000, 0x10000, 0x7fffffff, 0x80000000, 0xffffffff, 0xffffffffffull,
        0x10000000000ull, 0x1fffffffff8ull, 0x1fffffffffcull, 0x20000000000ull, 0x3fffffffffffull,
        0x500000000000ull, 0x7ffffffff000ull, 0x7fffffffeff8ull, 0x7fffffffefffull,
        0x7fffffffffffull, 0x7ffffffffffcull, 0x800000000000ull, 0x800000000008ull,
        0xffff7fffffffffffull, 0xffff800000000000ull, 0xffff888000000000ull, 0xffffffff81000000ull,
        0xfffffffffffffff8ull, 0xffffffffffffffffull, 0x8000000000000000ull, 0x0001000000000000ull,
        0x0100020000100000ull, 0x8000020000100000ull, 0xff00020000100000ull, 0xffff020000100000ull,
        0x0000820000100000ull, 0x4000000001000000ull, 0xffff000001000000ull,
    };
    static const int64_t disps[] = {0, 8, -8, 4096, -4096, 0x7fffffff, -0x7fffffffll - 1};
    map_at(AREA + (1 << 20), PAGE, PROT_READ | PROT_WRITE, 0);
    for (unsigned i = 0; i < sizeof(bases) / sizeof(*bases); i++) {
        warm(3);
        for (unsigned j = 0; j < sizeof(disps) / sizeof(*disps); j++) {
            wild_one(bases[i], disps[j], false);
            wild_one(bases[i], disps[j], true);
        }
    }
}

/* Displacements that lead from a window into the next one, and back. */
static void edges(void)
{
    static const uint64_t edge[] = {0x10000000000ull, 0x20000000000ull, 0x7f0000000000ull, 0x400000000000ull};
    for (unsigned i = 0; i < 4; i++) {
        uint8_t *p = map_at(edge[i] - 4 * PAGE, 8 * PAGE, PROT_READ | PROT_WRITE, 0);
        CHECK(p == (void *)(edge[i] - 4 * PAGE));
        warm(20);
        for (unsigned j = 0; j < 8 * PAGE / 8; j++)
            ((volatile uint64_t *)p)[j] = j;
        static const int32_t disps[] = {8, -8, 4096, -4096, 8192, -8192, 4, -4};
        for (unsigned j = 0; j < 8; j++)
            for (int from = -2; from < 2; from++) {
                uint8_t load[7] = {0x48, 0x8b, 0x83};
                memcpy(load + 3, &disps[j], 4);
                Machine m = {.r[RBX] = edge[i] + (uint64_t)(from * 8)};
                uint64_t wanted;
                machine_run(&m, load, sizeof(load));
                CHECK(!m.faulted);
                memcpy(&wanted, p + 4 * PAGE + from * 8 + disps[j], 8);
                CHECK(m.r[RAX] == wanted);
            }
        /* and far: 2 GiB from a base in another window */
        static const int32_t far[] = {0x7ffff000, -0x7ffff000};
        for (unsigned j = 0; j < 2; j++) {
            uint8_t load[7] = {0x48, 0x8b, 0x83};
            int32_t d = far[j];
            memcpy(load + 3, &d, 4);
            Machine m = {.r[RBX] = edge[i] - (uint64_t)(int64_t)d};
            machine_run(&m, load, sizeof(load));
            CHECK(!m.faulted && m.r[RAX] == 4 * PAGE / 8);
        }
        munmap(p, 8 * PAGE);
        CHECK(try_read((void *)edge[i], NULL) == SIGSEGV);
    }
}

const Case matrix_cases[] = {{"matrix", matrix}, {"wild", wild}, {"edges", edges}, {NULL, NULL}};
