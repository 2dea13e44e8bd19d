/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The registers as text, in the arrangement that tools which read QEMU's `info registers` know. */
#include <inttypes.h>

#include "base/bytes.h"
#include "monitor/qmp-session.h"

#define EFER_LMA    0x400u
#define XSAVE_MXCSR 24
#define XSAVE_FCW   0
#define XSAVE_FSW   2
#define XSAVE_FTW   4
#define XSAVE_ST    32
#define XSAVE_XMM   160

static void print_gprs(GString *to, const VcpuState *s)
{
    static const struct {
        const char *name;
        unsigned index;
    } order[] = {
        {"RAX", GPR_RAX}, {"RBX", GPR_RBX}, {"RCX", GPR_RCX}, {"RDX", GPR_RDX},
        {"RSI", GPR_RSI}, {"RDI", GPR_RDI}, {"RBP", GPR_RBP}, {"RSP", GPR_RSP},
        {"R8 ", 8},       {"R9 ", 9},       {"R10", 10},      {"R11", 11},
        {"R12", 12},      {"R13", 13},      {"R14", 14},      {"R15", 15},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(order); i++)
        g_string_append_printf(to, "%s=%016" PRIx64 "%s", order[i].name, s->gpr[order[i].index],
                               i % 4 == 3 ? "\r\n" : " ");
}

static void print_rip(GString *to, const VcpuState *s)
{
    static const struct {
        char letter;
        unsigned bit;
    } flags[] = {{'D', 10}, {'O', 11}, {'S', 7}, {'Z', 6}, {'A', 4}, {'P', 2}, {'C', 0}};
    unsigned cpl = s->seg[SEG_SS].attr >> SEG_ATTR_DPL_SHIFT & 3;
    g_string_append_printf(to, "RIP=%016" PRIx64 " RFL=%08" PRIx64 " [", s->rip, s->rflags);
    for (size_t i = 0; i < G_N_ELEMENTS(flags); i++)
        g_string_append_c(to, s->rflags >> flags[i].bit & 1 ? flags[i].letter : '-');
    g_string_append_printf(to, "] CPL=%u II=%d A20=1 SMM=0 HLT=%d\r\n", cpl, s->interrupt_shadow,
                           s->activity == VCPU_HALTED);
}

static void print_segment(GString *to, const char *name, const VcpuSegment *s)
{
    g_string_append_printf(to, "%-3s=%04x %016" PRIx64 " %08x %08x\r\n", name, s->selector, s->base,
                           s->limit, (s->attr & 0xffffu) << 8);
}

static void print_system(GString *to, const VcpuState *s)
{
    static const char *const names[] = {"ES", "CS", "SS", "DS", "FS", "GS"};
    for (unsigned i = 0; i < SEG_COUNT; i++)
        print_segment(to, names[i], &s->seg[i]);
    print_segment(to, "LDT", &s->ldtr);
    print_segment(to, "TR", &s->tr);
    g_string_append_printf(to, "GDT=     %016" PRIx64 " %08x\r\n", s->gdtr.base, s->gdtr.limit);
    g_string_append_printf(to, "IDT=     %016" PRIx64 " %08x\r\n", s->idtr.base, s->idtr.limit);
    g_string_append_printf(
        to, "CR0=%08" PRIx64 " CR2=%016" PRIx64 " CR3=%016" PRIx64 " CR4=%08" PRIx64 "\r\n", s->cr0,
        s->cr2, s->cr3, s->cr4);
    for (unsigned i = 0; i < 4; i++)
        g_string_append_printf(to, "DR%u=%016" PRIx64 " ", i, s->dr[i]);
    g_string_append_printf(to, "\r\nDR6=%016" PRIx64 " DR7=%016" PRIx64 "\r\n", s->dr[6], s->dr[7]);
    g_string_append_printf(to, "EFER=%016" PRIx64 "\r\n", s->efer);
}

static void print_vector(GString *to, const VcpuState *s)
{
    const uint8_t *x = s->xsave;
    g_string_append_printf(to, "FCW=%04x FSW=%04x FTW=%02x MXCSR=%08x\r\n", le16_get(x + XSAVE_FCW),
                           le16_get(x + XSAVE_FSW), x[XSAVE_FTW], le32_get(x + XSAVE_MXCSR));
    for (unsigned i = 0; i < 8; i++) {
        const uint8_t *st = x + XSAVE_ST + 16 * i;
        g_string_append_printf(to, "FPR%u=%016" PRIx64 " %04x%s", i, le64_get(st), le16_get(st + 8),
                               i % 2 ? "\r\n" : " ");
    }
    unsigned count = s->efer & EFER_LMA ? 16 : 8;
    for (unsigned i = 0; i < count; i++) {
        const uint8_t *xmm = x + XSAVE_XMM + 16 * i;
        g_string_append_printf(to, "XMM%02u=%016" PRIx64 " %016" PRIx64 "%s", i, le64_get(xmm + 8),
                               le64_get(xmm), i % 2 ? "\r\n" : " ");
    }
}

void registers_print(GString *to, unsigned index, const VcpuState *state)
{
    g_string_append_printf(to, "\r\nCPU#%u\r\n", index);
    print_gprs(to, state);
    print_rip(to, state);
    print_system(to, state);
    print_vector(to, state);
}
