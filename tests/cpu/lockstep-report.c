/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "lockstep-report.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define REPORT_STEPS 80u /* of the way that are shown */

static const char *const gpr_name[16] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                         "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};

void lockstep_trace(LockTrace *to, const SoftCpu *cpu)
{
    to->rip = cpu->rip;
    memcpy(to->gpr, cpu->gpr, sizeof(to->gpr));
    to->rflags = soft_rflags(cpu);
}

static bool segment_equal(const VcpuSegment *a, const VcpuSegment *b)
{
    return a->selector == b->selector && a->base == b->base && a->limit == b->limit && a->attr == b->attr;
}

static bool system_equal(const SoftCpu *a, const SoftCpu *b)
{
    for (unsigned i = 0; i < SEG_COUNT; i++)
        if (!segment_equal(&a->seg[i], &b->seg[i]))
            return false;
    return segment_equal(&a->ldtr, &b->ldtr) && segment_equal(&a->tr, &b->tr) && a->gdtr.base == b->gdtr.base &&
           a->gdtr.limit == b->gdtr.limit && a->idtr.base == b->idtr.base && a->idtr.limit == b->idtr.limit &&
           a->cr0 == b->cr0 && a->cr2 == b->cr2 && a->cr3 == b->cr3 && a->cr4 == b->cr4 && a->efer == b->efer &&
           a->xcr0 == b->xcr0 && memcmp(a->dr, b->dr, sizeof(a->dr)) == 0 && a->cpl == b->cpl &&
           a->activity == b->activity && a->nmi_masked == b->nmi_masked && a->shadow == b->shadow;
}

/* x87 instruction and data pointers (bytes 6-23) are the last x87 instruction's, or the translator's. */
static bool vectors_equal(const SoftCpu *a, const SoftCpu *b)
{
    return memcmp(a->fpu.fxsave, b->fpu.fxsave, 6) == 0 && memcmp(a->fpu.fxsave + 24, b->fpu.fxsave + 24, 4) == 0 &&
           memcmp(a->fpu.fxsave + 32, b->fpu.fxsave + 32, 128) == 0 &&
           memcmp(a->fpu.ymm, b->fpu.ymm, sizeof(a->fpu.ymm)) == 0;
}

bool lockstep_equal(const SoftCpu *lead, const SoftCpu *follow)
{
    return memcmp(lead->gpr, follow->gpr, sizeof(lead->gpr)) == 0 && lead->rip == follow->rip &&
           lead->rflags == follow->rflags && system_equal(lead, follow) && vectors_equal(lead, follow);
}

/* The code between two linear addresses, by objdump where there is one. */
static void disassemble(SoftCpu *cpu, uint64_t from, uint64_t to)
{
    g_autofree char *path = NULL;
    uint8_t bytes[512];
    unsigned n = 0;
    uint64_t base = cpu->mode & SOFT_MODE_CODE64 ? 0 : cpu->seg[SEG_CS].base;
    while (n < sizeof(bytes) && from + n < to + 15) {
        SoftTranslation t;
        uint32_t error;
        if (!soft_translate_try(cpu, base + from + n, SOFT_MMU_KERNEL_SMAP_OFF, SOFT_READ, &t, &error) || !t.page.host)
            break;
        bytes[n] = t.page.host[t.gpa & 4095];
        n++;
    }
    fprintf(stderr, "code at %#" PRIx64 ":", from);
    for (unsigned i = 0; i < n; i++)
        fprintf(stderr, " %02x", bytes[i]);
    fprintf(stderr, "\n");
    int fd = g_file_open_tmp("lockstep-XXXXXX", &path, NULL);
    if (fd < 0)
        return;
    const char *kind = cpu->mode & SOFT_MODE_CODE64 ? "i386:x86-64" : cpu->mode & SOFT_MODE_CODE32 ? "i386" : "i8086";
    g_autofree char *command =
        g_strdup_printf("objdump -D -w -b binary -m %s --adjust-vma=%#" PRIx64 " %s 2>/dev/null | tail -n +8 >&2", kind,
                        from, path);
    if (write(fd, bytes, n) == (ssize_t)n && system(command) != 0)
        fprintf(stderr, "(objdump did not work)\n");
    close(fd);
    unlink(path);
}

/* The step that gave gpr @r its last value; -1: none did. */
static int last_change(const LockTrace *trace, unsigned n, unsigned r)
{
    for (int i = (int)n - 1; i >= 0; i--)
        if (trace[i].gpr[r] != trace[i + 1].gpr[r])
            return i;
    return -1;
}

static void report_vectors(const SoftFpu *lead, const SoftFpu *follow)
{
    for (unsigned i = 0; i < 160; i++)
        if (lead->fxsave[i] != follow->fxsave[i])
            fprintf(stderr, "  fxsave[%u]: leader %02x follower %02x\n", i, lead->fxsave[i], follow->fxsave[i]);
    for (unsigned i = 0; i < 16; i++) {
        const uint64_t *a = (const uint64_t *)lead->ymm[i], *b = (const uint64_t *)follow->ymm[i];
        if (memcmp(a, b, 32) != 0)
            fprintf(stderr, "  ymm%u: leader %016" PRIx64 "%016" PRIx64 "%016" PRIx64 "%016" PRIx64
                    "\n        follower %016" PRIx64 "%016" PRIx64 "%016" PRIx64 "%016" PRIx64 "\n",
                    i, a[3], a[2], a[1], a[0], b[3], b[2], b[1], b[0]);
    }
}

void lockstep_report(SoftCpu *lead, SoftCpu *follow, const SoftFpu *met_fpu, const LockTrace *trace, unsigned n)
{
    n = MIN(n, REPORT_STEPS);
    unsigned met = n; /* where the follower was at the leader's rip, if it was */
    for (unsigned i = n; i > 0; i--)
        if (trace[i].rip == lead->rip)
            met = i;
    const LockTrace *f = &trace[met];
    fprintf(stderr, "leader: rip %#" PRIx64 " rflags %#" PRIx64 " mode %#x cpl %u\n", lead->rip, soft_rflags(lead),
            lead->mode, lead->cpl);
    fprintf(stderr, "follower after %u instructions: rip %#" PRIx64 " rflags %#" PRIx64 " cpl %u\n", met, f->rip,
            f->rflags, follow->cpl);
    for (unsigned r = 0; r < 16; r++) {
        if (lead->gpr[r] == f->gpr[r])
            continue;
        int by = last_change(trace, met, r);
        fprintf(stderr, "  %s: leader %016" PRIx64 " follower %016" PRIx64 ", ", gpr_name[r], lead->gpr[r], f->gpr[r]);
        if (by < 0)
            fprintf(stderr, "which has not changed it\n");
        else
            fprintf(stderr, "last changed at %#" PRIx64 "\n", trace[by].rip);
    }
    if (!system_equal(lead, follow))
        fprintf(stderr, "  cr0 %#" PRIx64 " %#" PRIx64 " cr2 %#" PRIx64 " %#" PRIx64 " cr3 %#" PRIx64 " %#" PRIx64
                " activity %d %d shadow %d %d dr6 %#" PRIx64 " %#" PRIx64 " cs %#x %#x ss %#x %#x (leader, follower)\n",
                lead->cr0, follow->cr0, lead->cr2, follow->cr2, lead->cr3, follow->cr3, lead->activity,
                follow->activity, lead->shadow, follow->shadow, lead->dr[6], follow->dr[6], lead->seg[SEG_CS].selector,
                follow->seg[SEG_CS].selector, lead->seg[SEG_SS].selector, follow->seg[SEG_SS].selector);
    report_vectors(&lead->fpu, met_fpu);
    fprintf(stderr, "the follower's way:");
    uint64_t end = trace[0].rip;
    for (unsigned i = 0; i <= met; i++) {
        fprintf(stderr, " %#" PRIx64, trace[i].rip);
        if (trace[i].rip - trace[0].rip < 512)
            end = MAX(end, trace[i].rip);
    }
    fprintf(stderr, "\nregisters before it:");
    for (unsigned r = 0; r < 16; r++)
        fprintf(stderr, " %s %" PRIx64, gpr_name[r], trace[0].gpr[r]);
    fprintf(stderr, " rflags %" PRIx64 "\n", trace[0].rflags);
    disassemble(follow, trace[0].rip, end);
}

void lockstep_dump_ram(const char *who, VcpuVm *vm, uint64_t gpa)
{
    SoftPage page = soft_page_find((SoftVm *)vm, gpa & ~(uint64_t)4095);
    fprintf(stderr, "  %s %#" PRIx64 ":", who, gpa & ~(uint64_t)15);
    for (unsigned i = 0; i < 32 && page.host && (gpa & 4080) + i < 4096; i++)
        fprintf(stderr, " %02x", page.host[(gpa & 4080) + i]);
    fprintf(stderr, "\n");
}
