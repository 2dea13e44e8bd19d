/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Random code whose registers point into buffers far apart and swap them in every way there is: if an
 * emulator keeps something about a pointer for longer than it holds, results differ.
 */
#include "mirror.h"

#define BUFFERS 6u
#define SIZE (16 * PAGE)

static const uint64_t places[BUFFERS] = {0x30000000, 0x123400000000, 0x7e0000000000, 0x4567000000, 0x500000000000,
                                         0x10000000000 - 8 * PAGE}; /* the last one over an edge */

static uint64_t seed;
static uint8_t *out;

static unsigned below(unsigned n)
{
    return (unsigned)(random64(&seed) % n);
}

static void byte(unsigned b)
{
    *out++ = (uint8_t)b;
}

static void bytes4(int32_t v)
{
    memcpy(out, &v, 4);
    out += 4;
}

/* REX.W op /r between registers */
static void rr(unsigned opcode, unsigned reg, unsigned rm)
{
    byte(0x48 | (reg >> 3) << 2 | rm >> 3);
    if (opcode > 0xff)
        byte(0x0f);
    byte(opcode & 0xff);
    byte(0xc0 | (reg & 7) << 3 | (rm & 7));
}

/* REX.W op /r with disp32(base), or disp32(base,index) */
static void rm_memory(unsigned opcode, unsigned reg, unsigned base, int index, int32_t disp, unsigned rex_w)
{
    bool sib = (base & 7) == RSP || index >= 0;
    unsigned i = index < 0 ? RSP : (unsigned)index;
    byte(0x40 | rex_w << 3 | (reg >> 3) << 2 | (i >> 3) << 1 | base >> 3);
    if (opcode > 0xff)
        byte(0x0f);
    byte(opcode & 0xff);
    byte(0x80 | (reg & 7) << 3 | (sib ? 4 : base & 7));
    if (sib)
        byte((i & 7) << 3 | (base & 7));
    bytes4(disp);
}

/* Pointers: all registers but RAX, RCX, RDX and RSP; data: RAX, RCX, RDX. */
static const uint8_t pointers[] = {RBX, RBP, RSI, RDI, 8, 9, 10, 11, 12, 13, 14, 15};
static const uint8_t data[] = {RAX, RCX, RDX};

static unsigned pointer(void)
{
    return pointers[below(sizeof(pointers))];
}
static unsigned datum(void)
{
    return data[below(3)];
}
static int32_t offset(void)
{
    return (int32_t)below(4096) - 2048;
}

/* An access off @base. */
static void access_emit(unsigned base)
{
    static const uint16_t loads[] = {0x8b, 0x03, 0x33, 0x2b, 0x3b, 0x1b6, 0x1be, 0x1b7, 0x23, 0x13, 0x63, 0x1af, 0x1bc};
    static const uint16_t stores[] = {0x89, 0x01, 0x31, 0x29, 0x39, 0x87, 0x1c1, 0x21, 0x11, 0x85};
    bool store = below(2);
    unsigned opcode = store ? stores[below(10)] : loads[below(13)];
    if (below(8) == 0) { /* with a data register as index, made small */
        unsigned index = RCX;
        byte(0x81), byte(0xe1), bytes4(0xff8); /* and $0xff8,%ecx */
        rm_memory(opcode, RAX, base, (int)index, offset() / 2, 1);
        return;
    }
    if (below(10) == 0) { /* lock add */
        byte(0xf0);
        rm_memory(0x01, datum(), base, -1, offset(), below(2));
        return;
    }
    if (below(10) == 0) { /* movups xmm */
        bool to = below(2);
        unsigned x = below(8);
        byte(0x40 | base >> 3), byte(0x0f), byte(to ? 0x11 : 0x10);
        byte(0x80 | x << 3 | ((base & 7) == RSP ? 4 : base & 7));
        if ((base & 7) == RSP)
            byte(0x20 | (base & 7));
        bytes4(offset());
        return;
    }
    rm_memory(opcode, datum(), base, -1, offset(), opcode == 0x63 ? 1 : below(2));
}

/* Two pointers change places, or one moves by little. */
static void move_emit(unsigned a, unsigned b)
{
    switch (below(18)) {
    case 0: /* xchg */
        rr(0x87, a, b);
        break;
    case 1: /* mov */
        rr(0x89, a, b);
        break;
    case 2:
        rr(0x8b, a, b);
        break;
    case 3: /* lea disp(b),a */
        rm_memory(0x8d, a, b, -1, 0, 1);
        break;
    case 4: /* add, sub imm32 */
        byte(0x48 | a >> 3), byte(0x81), byte(0xc0 | (a & 7)), bytes4(512);
        byte(0x48 | a >> 3), byte(0x81), byte(0xe8 | (a & 7)), bytes4(512);
        break;
    case 5: /* push, pop */
        byte(0x40 | b >> 3), byte(0x50 | (b & 7));
        byte(0x40 | a >> 3), byte(0x58 | (a & 7));
        break;
    case 6: /* cmov, by whatever the flags are */
        rr(0x140 | below(16), a, b);
        break;
    case 7: /* movq to xmm and back */
        byte(0x66), rr(0x16e, 7, a);
        byte(0x66), rr(0x17e, 7, b);
        break;
    case 8: /* from the table on the stack page that RSP points to */
        rm_memory(0x8b, a, RSP, -1, 1024 + 8 * (int32_t)below(BUFFERS), 1);
        break;
    case 9: /* xadd: the sum, then back */
        rr(0x1c1, a, b);
        rr(0x29, a, b); /* b = sum - old b */
        break;
    case 10: /* bswap twice */
        for (int i = 0; i < 2; i++)
            byte(0x48 | a >> 3), byte(0x0f), byte(0xc8 | (a & 7));
        break;
    case 11: /* not, not; neg, neg */
        for (int i = 0; i < 2; i++)
            byte(0x48 | a >> 3), byte(0xf7), byte(0xd0 | (a & 7));
        for (int i = 0; i < 2; i++)
            byte(0x48 | a >> 3), byte(0xf7), byte(0xd8 | (a & 7));
        break;
    case 12: /* xor swap */
        if (a == b)
            break;
        rr(0x31, a, b), rr(0x31, b, a), rr(0x31, a, b);
        break;
    case 13: /* rol by 32, twice, with an access off the other one between */
        byte(0x48 | a >> 3), byte(0xc1), byte(0xc0 | (a & 7)), byte(32);
        if (a != b)
            access_emit(b);
        byte(0x48 | a >> 3), byte(0xc1), byte(0xc0 | (a & 7)), byte(32);
        break;
    case 14: /* inc, dec */
        byte(0x48 | a >> 3), byte(0xff), byte(0xc0 | (a & 7));
        byte(0x48 | a >> 3), byte(0xff), byte(0xc8 | (a & 7));
        break;
    case 15: /* a = b by lea with an index of zero */
        rr(0x31, RDX, RDX);
        byte(0x48 | (a >> 3) << 2 | b >> 3), byte(0x8d);
        byte(0x80 | (a & 7) << 3 | 4), byte(RDX << 3 | (b & 7)), bytes4(0);
        break;
    case 16: /* cmpxchg: rax = a, so a = b */
        rr(0x89, a, RAX);
        rr(0x1b1, b, a);
        break;
    default: /* shld by 32 with itself is a rotation */
        for (int i = 0; i < 2; i++)
            rr(0x1a4, a, a), byte(32);
        break;
    }
}

/* A pointer goes on by little, as in loops over arrays: in a way that a translator may follow, or had better not. */
static void drift_emit(unsigned a)
{
    int by = (int)below(64) - 32;
    switch (below(9)) {
    case 0: /* lea by(a),a */
        rm_memory(0x8d, a, a, -1, by, 1);
        break;
    case 1:
        byte(0x48 | a >> 3), byte(0xff), byte(0xc0 | below(2) << 3 | (a & 7)); /* inc, dec */
        break;
    case 2: /* its low byte */
        byte(0x40 | a >> 3), byte(0xb0 | (a & 7)), byte(below(256));
        break;
    case 3: /* its low 16 bits */
        byte(0x66), byte(0x40 | a >> 3), byte(0x83), byte(0xc0 | (a & 7)), byte(below(32));
        break;
    case 4: /* by what is in memory, made small */
        rm_memory(0x8b, RDX, RSP, -1, 2048, 1);
        byte(0x83), byte(0xe2), byte(0x3f); /* and $0x3f,%edx */
        rr(below(2) ? 0x01 : 0x29, RDX, a);
        break;
    case 5: /* 32 bits of it: which loses the rest, but where there is none */
        if (below(6) == 0)
            byte(0x40 | a >> 3), byte(0x83), byte(0xc0 | (a & 7)), byte(8);
        break;
    default: /* add, sub imm8 */
        byte(0x48 | a >> 3), byte(0x83), byte((below(2) ? 0xc0 : 0xe8) | (a & 7)), byte(below(64));
        break;
    }
}

static void block_emit(void)
{
    unsigned n = 4 + below(40);
    uint8_t *again = NULL;
    if (below(3) == 0) { /* a loop, which counts in 2000(%rsp) */
        byte(0xc7), byte(0x84), byte(0x24), bytes4(2000), bytes4((int32_t)(2 + below(20)));
        byte(0xeb), byte(0);
        again = out;
        n = 1 + n / 4;
    }
    for (unsigned i = 0; i < n; i++) {
        unsigned a = pointer(), b = pointer();
        if (again && below(2)) {
            access_emit(a);
            drift_emit(below(3) ? a : b);
            access_emit(below(2) ? a : b);
        } else if (!(again && below(3)) && below(3) == 0) {
            access_emit(a);
            move_emit(a, b);
            access_emit(a);
            if (below(2))
                access_emit(b);
        } else if (below(4) == 0) {
            byte(0x50 | datum()), access_emit(pointer()), byte(0x58 | datum());
        } else if (below(6) == 0) { /* jump over an access */
            uint8_t *jump = out;
            byte(0x70 | below(16)), byte(0);
            access_emit(a);
            jump[1] = (uint8_t)(out - jump - 2);
        } else {
            access_emit(a);
        }
    }
    if (again) {
        byte(0xff), byte(0x8c), byte(0x24), bytes4(2000);
        byte(0x0f), byte(0x85), bytes4((int32_t)(again - out - 4));
    }
    out += machine_end(out);
}

static void memory_fill(void)
{
    for (unsigned i = 0; i < BUFFERS; i++)
        for (unsigned j = 0; j < SIZE / 8; j++)
            ((volatile uint64_t *)places[i])[j] = random64(&seed);
}

static void fuzz(void)
{
    uint8_t *stack = map_at(0x7f8000000000, SIZE, PROT_READ | PROT_WRITE, 0);
    unsigned rounds = getenv("FUZZ") ? (unsigned)atoi(getenv("FUZZ")) : 600;
    for (unsigned i = 0; i < BUFFERS; i++)
        CHECK(map_at(places[i], SIZE, PROT_READ | PROT_WRITE, 0) == (void *)places[i]);
    seed = getenv("SEED") ? strtoull(getenv("SEED"), NULL, 0) : 1;
    memory_fill();
    warm(40);
    uint64_t d = 0;
    for (unsigned round = 0; round < rounds; round++) {
        uint8_t *start = out = machine_code + (512 << 10) + (round % 64) * 4096;
        block_emit();
        if (out - start > 4096)
            CHECK(!"block too long");
        for (unsigned i = 0; i < BUFFERS; i++)
            *(uint64_t *)(stack + SIZE / 2 + 1024 + 8 * i) = places[i] + SIZE / 2;
        Machine m = {.flags = 0};
        for (unsigned again = 0; again < 2; again++) {
            for (unsigned i = 0; i < 16; i++)
                m.r[i] = places[random64(&seed) % BUFFERS] + SIZE / 2 + (random64(&seed) & 0x3f8);
            for (unsigned i = 0; i < 3; i++)
                m.r[data[i]] = random64(&seed);
            m.r[RSP] = (uint64_t)stack + SIZE / 2;
            m.flags = random64(&seed) & 0x8d5;
            machine_enter(&m, start);
            uint64_t what[] = {m.faulted, (uint64_t)m.signal, m.address, m.faulted ? m.rip : 0};
            d = digest(d, what, sizeof(what));
            d = digest(d, m.r, sizeof(m.r));
        }
        if (round % 50 == 49) {
            for (unsigned i = 0; i < BUFFERS; i++)
                d = digest(d, (void *)places[i], SIZE);
            printf("RESULT fuzz %u: %016llx\n", round, (unsigned long long)d);
        }
    }
}

const Case fuzz_cases[] = {{"fuzz", fuzz}, {NULL, NULL}};
