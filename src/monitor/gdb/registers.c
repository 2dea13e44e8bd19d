/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "monitor/gdb/registers.h"

#include <string.h>

#include "base/bytes.h"

#define MSR_KERNEL_GS_BASE 0xc0000102u
#define CR0_PE             0x1u
#define RFLAGS_VM          0x20000u

/* The XSAVE area, SDM vol. 1 10.5.1 and 13.4. */
#define XSAVE_FCW    0
#define XSAVE_FSW    2
#define XSAVE_FTW    4
#define XSAVE_FOP    6
#define XSAVE_FIP    8
#define XSAVE_FDP    16
#define XSAVE_MXCSR  24
#define XSAVE_ST     32
#define XSAVE_XMM    160
#define XSAVE_BV     512
#define XSAVE_YMM    576
#define XCR0_X87     1u
#define XCR0_SSE     2u
#define XCR0_AVX     4u

typedef enum Kind {
    KIND_GPR,
    KIND_RIP,
    KIND_FLAGS,
    KIND_SELECTOR,
    KIND_ST,
    KIND_FPU, /* index: a row of fpu_fields */
    KIND_TAGS,
    KIND_XMM,
    KIND_MXCSR,
    KIND_YMM_HIGH,
    KIND_BASE, /* of segment @index */
    KIND_KERNEL_GS,
    KIND_SYSTEM, /* index: offset in VcpuState */
} Kind;

typedef struct Register {
    const char *name, *type, *group; /* group: NULL: what follows from the type */
    uint16_t bits;
    Kind kind;
    uint16_t index;
    const char *feature; /* the first register of one */
} Register;

/* Fields of the XSAVE area that GDB shows as 32-bit registers. */
static const struct {
    uint16_t offset, size;
} fpu_fields[] = {{XSAVE_FCW, 2},     {XSAVE_FSW, 2}, {XSAVE_FIP + 4, 2}, {XSAVE_FIP, 4},
                  {XSAVE_FDP + 4, 2}, {XSAVE_FDP, 4}, {XSAVE_FOP, 2}};

#define GPR(name, type, index) {name, type, NULL, 64, KIND_GPR, index, NULL}
#define SELECTOR(name, index)  {name, "int32", NULL, 32, KIND_SELECTOR, index, NULL}
#define ST(n)                  {"st" #n, "i387_ext", NULL, 80, KIND_ST, n, NULL}
#define FPU(name, index)       {name, "int", "float", 32, KIND_FPU, index, NULL}
#define XMM(n)                 {"xmm" #n, "vec128", NULL, 128, KIND_XMM, n, NULL}
#define YMM(n)                 {"ymm" #n "h", "uint128", NULL, 128, KIND_YMM_HIGH, n, NULL}
#define SYSTEM(name, type, field)                                                                  \
    {name, type, "system", 64, KIND_SYSTEM, offsetof(VcpuState, field), NULL}

static const Register registers[] = {
    {"rax", "int64", NULL, 64, KIND_GPR, GPR_RAX, "org.gnu.gdb.i386.core"},
    GPR("rbx", "int64", GPR_RBX),
    GPR("rcx", "int64", GPR_RCX),
    GPR("rdx", "int64", GPR_RDX),
    GPR("rsi", "int64", GPR_RSI),
    GPR("rdi", "int64", GPR_RDI),
    GPR("rbp", "data_ptr", GPR_RBP),
    GPR("rsp", "data_ptr", GPR_RSP),
    GPR("r8", "int64", 8),
    GPR("r9", "int64", 9),
    GPR("r10", "int64", 10),
    GPR("r11", "int64", 11),
    GPR("r12", "int64", 12),
    GPR("r13", "int64", 13),
    GPR("r14", "int64", 14),
    GPR("r15", "int64", 15),
    {"rip", "code_ptr", NULL, 64, KIND_RIP, 0, NULL},
    {"eflags", "i386_eflags", NULL, 32, KIND_FLAGS, 0, NULL},
    SELECTOR("cs", SEG_CS),
    SELECTOR("ss", SEG_SS),
    SELECTOR("ds", SEG_DS),
    SELECTOR("es", SEG_ES),
    SELECTOR("fs", SEG_FS),
    SELECTOR("gs", SEG_GS),
    ST(0), ST(1), ST(2), ST(3), ST(4), ST(5), ST(6), ST(7),
    FPU("fctrl", 0),
    FPU("fstat", 1),
    {"ftag", "int", "float", 32, KIND_TAGS, 0, NULL},
    FPU("fiseg", 2),
    FPU("fioff", 3),
    FPU("foseg", 4),
    FPU("fooff", 5),
    FPU("fop", 6),
    {"xmm0", "vec128", NULL, 128, KIND_XMM, 0, "org.gnu.gdb.i386.sse"},
    XMM(1), XMM(2), XMM(3), XMM(4), XMM(5), XMM(6), XMM(7), XMM(8),
    XMM(9), XMM(10), XMM(11), XMM(12), XMM(13), XMM(14), XMM(15),
    {"mxcsr", "i386_mxcsr", "vector", 32, KIND_MXCSR, 0, NULL},
    {"ymm0h", "uint128", NULL, 128, KIND_YMM_HIGH, 0, "org.gnu.gdb.i386.avx"},
    YMM(1), YMM(2), YMM(3), YMM(4), YMM(5), YMM(6), YMM(7), YMM(8),
    YMM(9), YMM(10), YMM(11), YMM(12), YMM(13), YMM(14), YMM(15),
    {"fs_base", "int64", NULL, 64, KIND_BASE, SEG_FS, "org.gnu.gdb.i386.segments"},
    {"gs_base", "int64", NULL, 64, KIND_BASE, SEG_GS, NULL},
    {"k_gs_base", "int64", "system", 64, KIND_KERNEL_GS, 0, "org.lodge.system"},
    SYSTEM("cr0", "x86_cr0", cr0),
    SYSTEM("cr2", "int64", cr2),
    SYSTEM("cr3", "int64", cr3),
    SYSTEM("cr4", "x86_cr4", cr4),
    SYSTEM("cr8", "int64", cr8),
    SYSTEM("efer", "x86_efer", efer),
};

unsigned gdb_register_count(void)
{
    return G_N_ELEMENTS(registers);
}

unsigned gdb_register_size(unsigned number)
{
    return registers[number].bits / 8u;
}

/* ---- x87 tags: GDB shows the full word, XSAVE holds a bit a register (SDM vol. 1 10.5.1.1) ---- */

static unsigned tag_of(const uint8_t *st)
{
    uint64_t mantissa = le64_get(st);
    unsigned exponent = le16_get(st + 8) & 0x7fff;
    if (exponent == 0 && mantissa == 0)
        return 1; /* zero */
    if (exponent == 0 || exponent == 0x7fff || !(mantissa >> 63))
        return 2; /* special */
    return 0;     /* valid */
}

static unsigned tags_get(const uint8_t *x)
{
    unsigned top = le16_get(x + XSAVE_FSW) >> 11 & 7, tags = 0;
    for (unsigned i = 0; i < 8; i++) {
        bool used = x[XSAVE_FTW] >> i & 1;
        tags |= (used ? tag_of(x + XSAVE_ST + 16 * ((i - top) & 7)) : 3u) << (2 * i);
    }
    return tags;
}

static void tags_set(uint8_t *x, unsigned tags)
{
    x[XSAVE_FTW] = 0;
    for (unsigned i = 0; i < 8; i++)
        if ((tags >> (2 * i) & 3) != 3)
            x[XSAVE_FTW] |= (uint8_t)(1u << i);
}

/* ---- reading and writing ---- */

static const VcpuMsr *kernel_gs(const VcpuState *s)
{
    for (unsigned i = 0; i < s->n_msr && i < VCPU_MSR_MAX; i++)
        if (s->msr[i].index == MSR_KERNEL_GS_BASE)
            return &s->msr[i];
    return NULL;
}

/* Where a register lies byte by byte in the XSAVE area. */
static uint8_t *xsave_bytes(VcpuState *s, const Register *r, uint8_t *component)
{
    switch (r->kind) {
    case KIND_ST:
        *component = XCR0_X87;
        return s->xsave + XSAVE_ST + 16 * r->index;
    case KIND_XMM:
        *component = XCR0_SSE;
        return s->xsave + XSAVE_XMM + 16 * r->index;
    case KIND_YMM_HIGH:
        *component = XCR0_AVX;
        return s->xsave + XSAVE_YMM + 16 * r->index;
    default:
        return NULL;
    }
}

static uint64_t value_get(const VcpuState *s, const Register *r)
{
    const VcpuMsr *msr;
    uint64_t v = 0;
    switch (r->kind) {
    case KIND_GPR:
        return s->gpr[r->index];
    case KIND_RIP:
        return s->rip;
    case KIND_FLAGS:
        return s->rflags;
    case KIND_SELECTOR:
        return s->seg[r->index].selector;
    case KIND_FPU:
        memcpy(&v, s->xsave + fpu_fields[r->index].offset, fpu_fields[r->index].size);
        return v;
    case KIND_TAGS:
        return tags_get(s->xsave);
    case KIND_MXCSR:
        return le32_get(s->xsave + XSAVE_MXCSR);
    case KIND_BASE:
        return s->seg[r->index].base;
    case KIND_KERNEL_GS:
        msr = kernel_gs(s);
        return msr ? msr->value : 0;
    case KIND_SYSTEM:
        memcpy(&v, (const uint8_t *)s + r->index, sizeof(v));
        return v;
    default:
        return 0;
    }
}

void gdb_register_get(const VcpuState *state, unsigned number, uint8_t *to)
{
    const Register *r = &registers[number];
    uint8_t component, value[8];
    const uint8_t *bytes = xsave_bytes((VcpuState *)state, r, &component);
    if (!bytes) {
        le64_put(value, value_get(state, r));
        bytes = value;
    }
    memcpy(to, bytes, r->bits / 8u);
}

/* Its hidden part follows from the selector only in real mode. */
static bool selector_set(VcpuState *s, unsigned seg, uint64_t value)
{
    if (value == s->seg[seg].selector)
        return true;
    if (value > 0xffff || ((s->cr0 & CR0_PE) && !(s->rflags & RFLAGS_VM)))
        return false;
    s->seg[seg].selector = (uint16_t)value;
    s->seg[seg].base = value << 4;
    return true;
}

static void xsave_used(VcpuState *s, uint8_t component)
{
    s->xsave[XSAVE_BV] |= component;
}

static bool fpu_set(VcpuState *s, unsigned field, uint64_t value)
{
    unsigned size = fpu_fields[field].size;
    if (value >> (8 * size))
        return false;
    memcpy(s->xsave + fpu_fields[field].offset, &value, size);
    xsave_used(s, XCR0_X87);
    return true;
}

static bool value_set(VcpuState *s, const Register *r, uint64_t value)
{
    VcpuMsr *msr;
    switch (r->kind) {
    case KIND_GPR:
        s->gpr[r->index] = value;
        return true;
    case KIND_RIP:
        s->rip = value;
        return true;
    case KIND_FLAGS:
        s->rflags = value;
        return true;
    case KIND_SELECTOR:
        return selector_set(s, r->index, value);
    case KIND_FPU:
        return fpu_set(s, r->index, value);
    case KIND_TAGS:
        if (value > 0xffff)
            return false;
        tags_set(s->xsave, (unsigned)value);
        xsave_used(s, XCR0_X87);
        return true;
    case KIND_MXCSR:
        if (value > 0xffff) /* reserved bits, SDM vol. 1 10.2.3 */
            return false;
        le32_put(s->xsave + XSAVE_MXCSR, (uint32_t)value);
        xsave_used(s, XCR0_SSE);
        return true;
    case KIND_BASE:
        s->seg[r->index].base = value;
        return true;
    case KIND_KERNEL_GS:
        msr = (VcpuMsr *)kernel_gs(s);
        if (msr)
            msr->value = value;
        return msr || !value;
    case KIND_SYSTEM:
        memcpy((uint8_t *)s + r->index, &value, sizeof(value));
        return true;
    default:
        return false;
    }
}

bool gdb_register_set(VcpuState *state, unsigned number, const uint8_t *from)
{
    const Register *r = &registers[number];
    uint8_t component, value[8] = {0};
    uint8_t *bytes = xsave_bytes(state, r, &component);
    if (!bytes) {
        memcpy(value, from, r->bits / 8u);
        return value_set(state, r, le64_get(value));
    }
    if (memcmp(bytes, from, r->bits / 8u) == 0)
        return true;
    if (component == XCR0_AVX && !(state->xcr0 & XCR0_AVX))
        return false;
    memcpy(bytes, from, r->bits / 8u);
    xsave_used(state, component);
    return true;
}

/* ---- the description ---- */

typedef struct Flag {
    const char *name;
    unsigned bit;
} Flag;

static const Flag eflags[] = {
    {"CF", 0},  {"", 1},    {"PF", 2},  {"AF", 4},  {"ZF", 6},  {"SF", 7},   {"TF", 8},
    {"IF", 9},  {"DF", 10}, {"OF", 11}, {"NT", 14}, {"RF", 16}, {"VM", 17},  {"AC", 18},
    {"VIF", 19}, {"VIP", 20}, {"ID", 21}, {0},
};
static const Flag mxcsr[] = {
    {"IE", 0}, {"DE", 1}, {"ZE", 2}, {"OE", 3}, {"UE", 4}, {"PE", 5}, {"DAZ", 6}, {"IM", 7},
    {"DM", 8}, {"ZM", 9}, {"OM", 10}, {"UM", 11}, {"PM", 12}, {"FZ", 15}, {0},
};
static const Flag cr0[] = {
    {"PE", 0}, {"MP", 1}, {"EM", 2}, {"TS", 3}, {"ET", 4}, {"NE", 5}, {"WP", 16}, {"AM", 18},
    {"NW", 29}, {"CD", 30}, {"PG", 31}, {0},
};
static const Flag cr4[] = {
    {"VME", 0}, {"PVI", 1}, {"TSD", 2}, {"DE", 3}, {"PSE", 4}, {"PAE", 5}, {"MCE", 6}, {"PGE", 7},
    {"PCE", 8}, {"OSFXSR", 9}, {"OSXMMEXCPT", 10}, {"UMIP", 11}, {"LA57", 12}, {"VMXE", 13},
    {"SMXE", 14}, {"FSGSBASE", 16}, {"PCIDE", 17}, {"OSXSAVE", 18}, {"SMEP", 20}, {"SMAP", 21},
    {"PKE", 22}, {"CET", 23}, {"PKS", 24}, {0},
};
static const Flag efer[] = {{"SCE", 0}, {"LME", 8}, {"LMA", 10}, {"NXE", 11}, {"SVME", 12}, {0}};

static void add_flags(GString *to, const char *id, unsigned size, const Flag *flags)
{
    g_string_append_printf(to, "<flags id=\"%s\" size=\"%u\">", id, size);
    for (; flags->name; flags++)
        g_string_append_printf(to, "<field name=\"%s\" start=\"%u\" end=\"%u\"/>", flags->name,
                               flags->bit, flags->bit);
    g_string_append(to, "</flags>\n");
}

/* The ways to look at 128 bits. */
static void add_vectors(GString *to)
{
    static const struct {
        const char *id, *type, *field;
        unsigned count;
    } views[] = {{"v4f", "ieee_single", "v4_float", 4}, {"v2d", "ieee_double", "v2_double", 2},
                 {"v16i8", "int8", "v16_int8", 16},     {"v8i16", "int16", "v8_int16", 8},
                 {"v4i32", "int32", "v4_int32", 4},     {"v2i64", "int64", "v2_int64", 2}};
    for (unsigned i = 0; i < G_N_ELEMENTS(views); i++)
        g_string_append_printf(to, "<vector id=\"%s\" type=\"%s\" count=\"%u\"/>\n", views[i].id,
                               views[i].type, views[i].count);
    g_string_append(to, "<union id=\"vec128\">");
    for (unsigned i = 0; i < G_N_ELEMENTS(views); i++)
        g_string_append_printf(to, "<field name=\"%s\" type=\"%s\"/>", views[i].field, views[i].id);
    g_string_append(to, "<field name=\"uint128\" type=\"uint128\"/></union>\n");
}

static void begin_feature(GString *to, const Register *r)
{
    g_string_append_printf(to, "<feature name=\"%s\">\n", r->feature);
    if (r->kind == KIND_GPR) {
        add_flags(to, "i386_eflags", 4, eflags);
    } else if (r->kind == KIND_XMM) {
        add_vectors(to);
        add_flags(to, "i386_mxcsr", 4, mxcsr);
    } else if (r->kind == KIND_KERNEL_GS) {
        add_flags(to, "x86_cr0", 8, cr0);
        add_flags(to, "x86_cr4", 8, cr4);
        add_flags(to, "x86_efer", 8, efer);
    }
}

char *gdb_target_description(void)
{
    GString *to = g_string_new("<?xml version=\"1.0\"?>\n<!DOCTYPE target SYSTEM \"gdb-target.dtd\">\n"
                               "<target version=\"1.0\">\n"
                               "<architecture>i386:x86-64</architecture>\n");
    for (unsigned i = 0; i < G_N_ELEMENTS(registers); i++) {
        const Register *r = &registers[i];
        if (r->feature) {
            if (i)
                g_string_append(to, "</feature>\n");
            begin_feature(to, r);
        }
        g_string_append_printf(to, "<reg name=\"%s\" bitsize=\"%u\" type=\"%s\" regnum=\"%u\"",
                               r->name, r->bits, r->type, i);
        if (r->group)
            g_string_append_printf(to, " group=\"%s\"", r->group);
        g_string_append(to, "/>\n");
    }
    g_string_append(to, "</feature>\n</target>\n");
    return g_string_free(to, FALSE);
}
