/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * CPUID: the host's vendor, family and model, and of its features those that the software CPU
 * implements (SDM vol. 2 CPUID; APM vol. 3 appendix E). What needs no host support is offered
 * everywhere.
 */
#include <cpuid.h>

#include "base/error.h"
#include "vcpu/soft/vm.h"

SoftFeatures soft_features;
SoftLimits soft_limits;

typedef struct HostCpuid {
    SoftCpuid basic, leaf1, leaf7, xsave1, ext1, ext8;
    uint32_t brand[12];
    SoftCpuid amd_cache5, amd_cache6;
} HostCpuid;
static HostCpuid host;

static SoftCpuid read_host(uint32_t leaf, uint32_t subleaf)
{
    SoftCpuid c = {0};
    uint32_t max = __get_cpuid_max(leaf & 0x80000000u, NULL);
    if (leaf <= max)
        __cpuid_count(leaf, subleaf, c.eax, c.ebx, c.ecx, c.edx);
    return c;
}

static bool bit(uint32_t v, unsigned n)
{
    return v >> n & 1;
}

static void features_init(SoftFeatures *f)
{
    uint32_t c1 = host.leaf1.ecx, b7 = host.leaf7.ebx, c7 = host.leaf7.ecx;
    uint32_t x1 = host.xsave1.eax;
    *f = (SoftFeatures){
        .sse3 = bit(c1, 0), .pclmul = bit(c1, 1), .ssse3 = bit(c1, 9), .fma = bit(c1, 12),
        .cx16 = bit(c1, 13), .sse41 = bit(c1, 19), .sse42 = bit(c1, 20), .movbe = bit(c1, 22),
        .popcnt = bit(c1, 23), .aes = bit(c1, 25), .avx = bit(c1, 28), .f16c = bit(c1, 29),
        .rdrand = bit(c1, 30), .bmi1 = bit(b7, 3), .avx2 = bit(b7, 5), .bmi2 = bit(b7, 8),
        .erms = true, .rdseed = bit(b7, 18), .adx = bit(b7, 19), .clflushopt = bit(b7, 23),
        .clwb = bit(b7, 24), .sha = bit(b7, 29), .gfni = bit(c7, 8), .vaes = bit(c7, 9),
        .vpclmul = bit(c7, 10), .fsrm = bit(host.leaf7.edx, 4), .lzcnt = bit(host.ext1.ecx, 5),
        .prefetchw = bit(host.ext1.ecx, 8), .xsaveopt = bit(x1, 0), .xsavec = bit(x1, 1),
        .xgetbv1 = bit(x1, 2), .fsgsbase = true, .rdpid = true, .rdtscp = true, .invpcid = true,
    };
    if (!bit(c1, 27)) /* the host's OS has not enabled XSAVE: its AVX registers are not ours */
        f->avx = false;
    if (!f->avx)
        f->avx2 = f->fma = f->f16c = f->vaes = f->vpclmul = false;
}

static void limits_init(SoftLimits *limits)
{
    unsigned bits = host.ext8.eax & 0xff;
    *limits = (SoftLimits){
        .intel = host.basic.ebx == signature_INTEL_ebx, .smep = true, .smap = true, .umip = true,
        .pcid = true, .page1g = true, .nx = true, .xsave = true, .pku = true, .pks = true,
        .physical_bits = CLAMP(bits, 36, 48),
        .cr4_allowed = CR4_VME | CR4_PVI | CR4_TSD | CR4_DE | CR4_PSE | CR4_PAE | CR4_MCE |
                       CR4_PGE | CR4_PCE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_UMIP |
                       CR4_FSGSBASE | CR4_PCIDE | CR4_OSXSAVE | CR4_SMEP | CR4_SMAP | CR4_PKE |
                       CR4_PKS,
        .efer_allowed = EFER_SCE | EFER_LME | EFER_NXE,
    };
}

static void model_init(void);

void soft_features_init(void)
{
    static gsize done;
    if (!g_once_init_enter(&done))
        return;
    host.basic = read_host(0, 0);
    host.leaf1 = read_host(1, 0);
    host.leaf7 = read_host(7, 0);
    host.xsave1 = read_host(0xd, 1);
    host.ext1 = read_host(0x80000001, 0);
    host.ext8 = read_host(0x80000008, 0);
    host.amd_cache5 = read_host(0x80000005, 0);
    host.amd_cache6 = read_host(0x80000006, 0);
    for (unsigned i = 0; i < 3; i++) {
        SoftCpuid c = read_host(0x80000002 + i, 0);
        memcpy(&host.brand[i * 4], &c, sizeof(c));
    }
    features_init(&soft_features);
    limits_init(&soft_limits);
    model_init();
    g_once_init_leave(&done, 1);
}

/* ---- topology ---- */

/* Bits of an APIC id that number @n things. */
static unsigned bits_for(unsigned n)
{
    unsigned b = 0;
    while ((1u << b) < n)
        b++;
    return b;
}

static unsigned threads(const SoftCpu *cpu)
{
    return MAX(cpu->vcpu.vm->config.threads, 1);
}

/* vCPUs in a package. */
static unsigned package(const SoftCpu *cpu)
{
    const VcpuVmConfig *c = &cpu->vcpu.vm->config;
    return MAX(c->cores, 1) * threads(cpu);
}

/* Leaf BH: level 0 = threads of a core, 1 = cores of a package; APIC id = vCPU index. */
static SoftCpuid topology(const SoftCpu *cpu, uint32_t level)
{
    SoftCpuid c = {.ecx = level, .edx = cpu->vcpu.index};
    if (level == 0) {
        c.eax = bits_for(threads(cpu));
        c.ebx = threads(cpu);
        c.ecx |= 1 << 8;
    } else if (level == 1) {
        c.eax = bits_for(package(cpu));
        c.ebx = package(cpu);
        c.ecx |= 2 << 8;
    }
    return c;
}

/* Caches as (level, type 1 data 2 code 3 unified, KiB, ways): a plain modern hierarchy. */
typedef struct Cache {
    uint8_t level, type;
    uint16_t ways;
    uint32_t kib;
} Cache;
static const Cache caches[] = {{1, 1, 8, 32}, {1, 2, 8, 32}, {2, 3, 8, 512}, {3, 3, 16, 16384}};

/* Leaf 4 (Intel) and 8000001DH (AMD): line size 64, one partition. */
static SoftCpuid cache(const SoftCpu *cpu, uint32_t index, bool intel)
{
    SoftCpuid c = {0};
    if (index >= G_N_ELEMENTS(caches))
        return c;
    const Cache *k = &caches[index];
    unsigned sharing = k->level == 3 ? package(cpu) : threads(cpu);
    c.eax = k->type | (uint32_t)k->level << 5 | 1 << 8 | (sharing - 1) << 14;
    if (intel)
        c.eax |= ((1u << bits_for(MAX(package(cpu) / threads(cpu), 1))) - 1) << 26;
    c.ebx = 63 | (uint32_t)(k->ways - 1) << 22;
    c.ecx = k->kib * 1024 / 64 / k->ways - 1;
    return c;
}

/* ---- leaves ---- */

#define B(n, have) ((uint32_t)((have) ? 1u : 0u) << (n))

/* Leaf 1 EDX, common with AMD's 80000001H: FPU VME DE PSE TSC MSR PAE MCE CX8 APIC SEP MTRR PGE MCA
 * CMOV PAT PSE36 CLFSH MMX FXSR SSE SSE2. */
#define LEAF1_EDX 0x078bfbffu
#define LEAF1_EDX_COMMON 0x0183f3ffu
#define LEAF1_EDX_APIC 0x200u

#define MSR_APIC_BASE 0x1bu
#define APIC_BASE_ENABLE 0x800u

/* Bit 9 of leaf 1's EDX follows the global enable of IA32_APIC_BASE (SDM vol. 3 10.4.3). */
static bool apic_enabled(const SoftCpu *cpu)
{
    const VcpuBus *bus = cpu->vcpu.vm->bus;
    uint64_t base;
    return !bus->apic_msr_read ||
           !bus->apic_msr_read(bus->opaque, cpu->vcpu.index, MSR_APIC_BASE, &base) ||
           (base & APIC_BASE_ENABLE);
}

static SoftCpuid leaf1(const SoftCpu *cpu)
{
    const SoftFeatures *f = &soft_features;
    SoftCpuid c = {.eax = host.leaf1.eax & 0x0fff3fff};
    unsigned n = package(cpu);
    c.ebx = cpu->vcpu.index << 24 | MIN(n, 255) << 16 | 8 << 8;
    c.ecx = B(0, f->sse3) | B(1, f->pclmul) | B(9, f->ssse3) | B(12, f->fma) | B(13, f->cx16) |
            B(17, soft_limits.pcid) | B(19, f->sse41) | B(20, f->sse42) | B(21, 1) /* x2APIC */ |
            B(22, f->movbe) | B(23, f->popcnt) | B(24, 1) /* TSC deadline */ | B(25, f->aes) |
            B(26, 1) /* XSAVE */ | B(27, cpu->cr4 & CR4_OSXSAVE) | B(28, f->avx) | B(29, f->f16c) |
            B(30, f->rdrand) | B(31, 1) /* hypervisor */;
    c.edx = LEAF1_EDX | B(28, n > 1);
    if (!apic_enabled(cpu))
        c.edx &= ~LEAF1_EDX_APIC;
    return c;
}

static SoftCpuid leaf7(uint32_t subleaf)
{
    const SoftFeatures *f = &soft_features;
    SoftCpuid c = {0};
    if (subleaf != 0)
        return c;
    c.ebx = B(0, f->fsgsbase) | B(1, 1) /* TSC_ADJUST */ | B(3, f->bmi1) | B(5, f->avx2) |
            B(7, soft_limits.smep) | B(8, f->bmi2) | B(9, f->erms) | B(10, f->invpcid) |
            B(13, 1) /* no x87 selectors: see x87-decode.c */ |
            B(18, f->rdseed) | B(19, f->adx) | B(20, soft_limits.smap) | B(23, f->clflushopt) |
            B(24, f->clwb) | B(29, f->sha);
    c.ecx = B(2, soft_limits.umip) | B(3, soft_limits.pku) | B(8, f->gfni) | B(9, f->vaes) |
            B(10, f->vpclmul) |
            B(22, f->rdpid) | B(31, soft_limits.pks);
    c.edx = B(4, f->fsrm);
    return c;
}

uint64_t soft_xcr0_offered(void)
{
    return (soft_features.avx ? 7u : 3u) | (soft_limits.pku ? SOFT_XCR0_PKRU : 0);
}

/* The size of an area with the components @xcr0; PKRU's place in the standard format is fixed. */
static uint32_t xsave_size(uint64_t xcr0, bool compact)
{
    uint32_t avx = xcr0 & 4 ? 256 : 0;
    if (!(xcr0 & SOFT_XCR0_PKRU))
        return 576 + avx;
    return (compact ? 576 + avx : SOFT_XSAVE_PKRU) + 8;
}

/* Leaf DH: x87 and SSE in the legacy area, AVX at 576, PKRU behind it (SDM vol. 1 13.4). */
static SoftCpuid leaf_xsave(const SoftCpu *cpu, uint32_t subleaf)
{
    const SoftFeatures *f = &soft_features;
    SoftCpuid c = {0};
    switch (subleaf) {
    case 0:
        c.eax = (uint32_t)soft_xcr0_offered();
        c.ebx = xsave_size(cpu->xcr0, false);
        c.ecx = xsave_size(c.eax, false);
        break;
    case 1:
        c.eax = B(0, f->xsaveopt) | B(1, f->xsavec) | B(2, f->xgetbv1);
        c.ebx = xsave_size(cpu->xcr0, true);
        break;
    case 2:
        if (f->avx) {
            c.eax = 256;
            c.ebx = 576;
        }
        break;
    case 9:
        if (soft_limits.pku) {
            c.eax = 8;
            c.ebx = SOFT_XSAVE_PKRU;
        }
        break;
    default:
        break;
    }
    return c;
}

/* The board's local APICs count nanoseconds. */
#define LAPIC_TIMER_HZ 1000000000u

static SoftCpuid basic(const SoftCpu *cpu, uint32_t leaf, uint32_t subleaf)
{
    SoftCpuid c = {0};
    switch (leaf) {
    case 0:
        c = host.basic;
        c.eax = 0x16;
        break;
    case 1:
        c = leaf1(cpu);
        break;
    case 2:
        if (soft_limits.intel)
            c.eax = 0x00ff0001; /* FFH: leaf 4 describes the caches */
        break;
    case 4:
        if (soft_limits.intel)
            c = cache(cpu, subleaf, true);
        break;
    case 6:
        c.eax = 1 << 2; /* ARAT: the APIC timer never stops */
        break;
    case 7:
        c = leaf7(subleaf);
        break;
    case 0xb:
        c = topology(cpu, subleaf);
        break;
    case 0xd:
        c = leaf_xsave(cpu, subleaf);
        break;
    case 0x15: /* TSC = ECX * EBX / EAX; ECX: what the APIC timer counts, in Hz */
        c.eax = LAPIC_TIMER_HZ / 1000;
        c.ebx = (uint32_t)vcpu_host_tsc_khz();
        c.ecx = LAPIC_TIMER_HZ;
        break;
    case 0x16: /* in MHz: base, maximum, bus */
        c.eax = c.ebx = (uint32_t)(vcpu_host_tsc_khz() / 1000);
        c.ecx = 100;
        break;
    default:
        break;
    }
    return c;
}

/*
 * KVM's interface: clock source 2 (bit 3) and its stable bit (24), IPIs by call (11); leaf 40000010H: TSC
 * and APIC timer in kHz. Its EOI by memory (6) is left out: at 15,000 interrupts a second, EOI by MSR
 * takes 0.2 % of the process's time.
 */
static SoftCpuid hypervisor(uint32_t leaf)
{
    SoftCpuid c = {0};
    switch (leaf) {
    case 0x40000000:
        c.eax = 0x40000010;
        memcpy(&c.ebx, "KVMK", 4);
        memcpy(&c.ecx, "VMKV", 4);
        memcpy(&c.edx, "M\0\0\0", 4);
        break;
    case 0x40000001:
        c.eax = 1u << 3 | 1u << 11 | 1u << 24;
        break;
    case 0x40000010:
        c.eax = (uint32_t)vcpu_host_tsc_khz();
        c.ebx = LAPIC_TIMER_HZ / 1000;
        break;
    default:
        break;
    }
    return c;
}

static SoftCpuid ext1(const SoftCpu *cpu)
{
    const SoftFeatures *f = &soft_features;
    bool amd = !soft_limits.intel;
    SoftCpuid c = {0};
    c.ecx = B(0, 1) /* LAHF in 64-bit mode */ | B(5, f->lzcnt) | B(8, f->prefetchw);
    c.edx = B(20, soft_limits.nx) | B(26, soft_limits.page1g) | B(27, f->rdtscp) | B(29, 1);
    if (amd) {
        c.eax = host.ext1.eax;
        c.ecx |= B(1, package(cpu) > 1) | B(22, 1) /* topology extensions */;
        c.edx |= (LEAF1_EDX & LEAF1_EDX_COMMON) | B(11, 1);
        if (!apic_enabled(cpu))
            c.edx &= ~LEAF1_EDX_APIC;
    } else {
        c.edx |= B(11, cpu->mode & SOFT_MODE_CODE64);
    }
    return c;
}

static SoftCpuid extended_amd(const SoftCpu *cpu, uint32_t leaf, uint32_t subleaf)
{
    SoftCpuid c = {0};
    unsigned index = cpu->vcpu.index;
    switch (leaf) {
    case 0x80000005:
        c = host.amd_cache5;
        break;
    case 0x80000006:
        c = host.amd_cache6;
        break;
    case 0x8000001d:
        c = cache(cpu, subleaf, false);
        break;
    case 0x8000001e:
        c.eax = index;
        c.ebx = index / threads(cpu) % 256 | (threads(cpu) - 1) << 8;
        c.ecx = index / package(cpu);
        break;
    case 0x80000021:
        c.eax = 1 << 2 | 1 << 6; /* LFENCE serializes; a null selector clears the base */
        break;
    default:
        break;
    }
    return c;
}

static SoftCpuid extended(const SoftCpu *cpu, uint32_t leaf, uint32_t subleaf)
{
    SoftCpuid c = {0};
    switch (leaf) {
    case 0x80000000:
        c = host.basic;
        if (soft_limits.intel)
            c.ebx = c.ecx = c.edx = 0;
        c.eax = soft_limits.intel ? 0x80000008 : 0x80000021;
        break;
    case 0x80000001:
        c = ext1(cpu);
        break;
    case 0x80000002:
    case 0x80000003:
    case 0x80000004:
        memcpy(&c, &host.brand[(leaf - 0x80000002) * 4], sizeof(c));
        break;
    case 0x80000007:
        c.edx = 1 << 8; /* invariant TSC */
        break;
    case 0x80000008:
        c.eax = soft_limits.physical_bits | 48 << 8;
        if (!soft_limits.intel)
            c.ecx = (package(cpu) - 1) | bits_for(package(cpu)) << 12;
        if (!soft_limits.intel)
            c.ebx = 1 << 2; /* FXSAVE always stores the x87 error pointers */
        break;
    default:
        if (!soft_limits.intel)
            c = extended_amd(cpu, leaf, subleaf);
    }
    return c;
}

static SoftCpuid unfiltered(const SoftCpu *cpu, uint32_t leaf, uint32_t subleaf)
{
    if (leaf >= 0x80000000)
        return extended(cpu, leaf, subleaf);
    if (leaf >= 0x40000000 && leaf < 0x40000100)
        return hypervisor(leaf);
    return basic(cpu, leaf, subleaf);
}

/* ---- models ---- */

/* Of the VMs that live; what there is without a model. */
static struct {
    GMutex lock;
    unsigned users;
    X86FeatureSet offered;
    uint32_t mask[X86_WORDS]; /* by x86_word_mask */
    X86FeatureSet max_offered;
    SoftFeatures max_features;
    SoftLimits max_limits;
} model;

static uint32_t *word_of(SoftCpuid *c, X86Word word)
{
    uint32_t *const regs[] = {&c->eax, &c->ebx, &c->ecx, &c->edx};
    return regs[x86_word_places[word].reg];
}

SoftCpuid soft_cpuid(SoftCpu *cpu, uint32_t leaf, uint32_t subleaf)
{
    SoftCpuid c = unfiltered(cpu, leaf, subleaf);
    for (unsigned w = 0; w < X86_WORDS; w++)
        if (x86_word_places[w].leaf == leaf && x86_word_places[w].subleaf == subleaf)
            *word_of(&c, w) &= model.mask[w];
    if (leaf == 7 && subleaf == 0 && soft_limits.pku)
        c.ecx |= B(4, cpu->cr4 & CR4_PKE); /* OSPKE, with PKU in whichever model */
    if (leaf == 0xd && !soft_limits.xsave)
        c = (SoftCpuid){0};
    return c;
}

/* What CPUID says of itself in 64-bit mode, with XSAVE enabled and more than one core. */
static void max_set(X86FeatureSet *set)
{
    VcpuBus bus = {0};
    VcpuVm vm = {.bus = &bus, .config = {.cores = 2}};
    SoftCpu *cpu = g_aligned_alloc0(1, sizeof(SoftCpu), _Alignof(SoftCpu));
    cpu->vcpu.vm = &vm;
    cpu->cr4 = CR4_OSXSAVE;
    cpu->mode = SOFT_MODE_LONG | SOFT_MODE_CODE64;
    for (unsigned w = 0; w < X86_WORDS; w++) {
        SoftCpuid c = unfiltered(cpu, x86_word_places[w].leaf, x86_word_places[w].subleaf);
        set->word[w] = *word_of(&c, w);
    }
    g_aligned_free(cpu);
}

static void model_init(void)
{
    model.max_features = soft_features;
    model.max_limits = soft_limits;
    memset(model.mask, 0xff, sizeof(model.mask));
    max_set(&model.max_offered);
    model.offered = model.max_offered;
}

/* A feature that decoding looks at, by the name that it has in CPUID. */
#define DECODED(member, name) {offsetof(SoftFeatures, member), name}
static const struct {
    size_t offset;
    const char *name;
} decoded[] = {
    DECODED(sse3, "pni"), DECODED(ssse3, "ssse3"), DECODED(sse41, "sse4.1"), DECODED(sse42, "sse4.2"),
    DECODED(popcnt, "popcnt"), DECODED(movbe, "movbe"), DECODED(aes, "aes"),
    DECODED(pclmul, "pclmulqdq"), DECODED(f16c, "f16c"), DECODED(fma, "fma"), DECODED(avx, "avx"),
    DECODED(avx2, "avx2"), DECODED(bmi1, "bmi1"), DECODED(bmi2, "bmi2"), DECODED(lzcnt, "abm"),
    DECODED(adx, "adx"), DECODED(sha, "sha-ni"), DECODED(rdrand, "rdrand"),
    DECODED(rdseed, "rdseed"), DECODED(fsgsbase, "fsgsbase"), DECODED(rdpid, "rdpid"),
    DECODED(clflushopt, "clflushopt"), DECODED(clwb, "clwb"), DECODED(erms, "erms"),
    DECODED(fsrm, "fsrm"), DECODED(rdtscp, "rdtscp"), DECODED(invpcid, "invpcid"),
    DECODED(xsaveopt, "xsaveopt"), DECODED(xsavec, "xsavec"), DECODED(xgetbv1, "xgetbv1"),
    DECODED(cx16, "cx16"), DECODED(vaes, "vaes"), DECODED(vpclmul, "vpclmulqdq"),
    DECODED(gfni, "gfni"), DECODED(prefetchw, "3dnowprefetch"),
};

static bool offers(const X86FeatureSet *set, const char *name)
{
    return x86_has(set, x86_feature_find(name));
}

static void narrow(const X86FeatureSet *set)
{
    soft_features = model.max_features;
    for (unsigned i = 0; i < G_N_ELEMENTS(decoded); i++) {
        bool *have = (bool *)((char *)&soft_features + decoded[i].offset);
        *have = *have && offers(set, decoded[i].name);
    }
    SoftLimits *l = &soft_limits;
    *l = model.max_limits;
    l->smep = offers(set, "smep");
    l->smap = offers(set, "smap");
    l->umip = offers(set, "umip");
    l->pcid = offers(set, "pcid");
    l->page1g = offers(set, "pdpe1gb");
    l->nx = offers(set, "nx");
    l->xsave = offers(set, "xsave");
    l->pku = offers(set, "pku");
    l->pks = offers(set, "pks");
    l->cr4_allowed &= ~(uint64_t)((l->smep ? 0 : CR4_SMEP) | (l->smap ? 0 : CR4_SMAP) |
                                  (l->umip ? 0 : CR4_UMIP) | (l->pcid ? 0 : CR4_PCIDE) |
                                  (l->xsave ? 0 : CR4_OSXSAVE) | (l->pku ? 0 : CR4_PKE) |
                                  (l->pks ? 0 : CR4_PKS) |
                                  (soft_features.fsgsbase ? 0 : CR4_FSGSBASE));
    if (!l->nx)
        l->efer_allowed &= ~(uint64_t)EFER_NXE;
}

bool soft_cpu_model_take(const X86CpuSpec *spec, char **lacking, GError **err)
{
    X86FeatureSet offered;
    soft_features_init();
    if (!x86_cpu_resolve(spec, &model.max_offered, &offered, lacking, err))
        return false;
    g_mutex_lock(&model.lock);
    bool same = memcmp(&offered, &model.offered, sizeof(offered)) == 0;
    bool ok = same || !model.users;
    if (ok)
        model.users++;
    if (ok && !same) {
        model.offered = offered;
        for (unsigned w = 0; w < X86_WORDS; w++)
            model.mask[w] = x86_word_mask(spec, &offered, (X86Word)w);
        narrow(&offered);
    }
    g_mutex_unlock(&model.lock);
    return ok || lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                            "another guest of this process has another CPU model");
}

void soft_cpu_model_release(void)
{
    g_mutex_lock(&model.lock);
    model.users--;
    g_mutex_unlock(&model.lock);
}
