/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Descriptors, segment registers and seg:offset addresses (SDM vol. 3 chapters 3 and 5). */
#include "vcpu/soft/system-ops.h"
#include "vcpu/soft/vm.h"

void soft_raise_selector(SoftCpu *cpu, unsigned vector, uint16_t selector)
{
    soft_raise_error(cpu, vector, (selector & 0xfffcu) | cpu->system->ext);
}

/* ---- addresses ---- */

_Noreturn static void raise_address(SoftCpu *cpu, unsigned seg)
{
    soft_raise_error(cpu, seg == SEG_SS ? EXC_SS : EXC_GP, 0);
}

/* Whether [offset, offset + size) is inside; expand-down segments hold what is above the limit. */
static bool within_limit(const VcpuSegment *s, uint32_t offset, unsigned size)
{
    uint64_t last = (uint64_t)offset + size - 1;
    if ((s->attr & (SEG_ATTR_S | 0xc)) == (SEG_ATTR_S | 0x4)) {
        uint32_t top = s->attr & SEG_ATTR_DB ? 0xffffffff : 0xffff;
        return offset > s->limit && last <= top;
    }
    return last <= s->limit || s->limit == 0xffffffff;
}

static bool access_allowed(const VcpuSegment *s, unsigned access)
{
    bool code = s->attr & 8;
    switch (access) {
    case SOFT_WRITE:
        return !code && (s->attr & 2);
    case SOFT_EXECUTE:
        return code;
    default:
        return !code || (s->attr & 2);
    }
}

uint64_t soft_linear_slow(SoftCpu *cpu, unsigned seg, uint64_t offset, unsigned size,
                          unsigned access)
{
    const VcpuSegment *s = &cpu->seg[seg];
    if (cpu->mode & SOFT_MODE_CODE64) {
        uint64_t linear = offset + (seg >= SEG_FS ? s->base : 0);
        if (!soft_canonical(linear) || !soft_canonical(linear + size - 1))
            raise_address(cpu, seg);
        return linear;
    }
    uint32_t at = (uint32_t)offset;
    if ((cpu->mode & SOFT_MODE_FLAT) && seg <= SEG_DS &&
        (access == SOFT_WRITE ? seg != SEG_CS : access == SOFT_READ))
        return at;
    bool checked = (cpu->mode & (SOFT_MODE_PROTECTED | SOFT_MODE_VM86)) == SOFT_MODE_PROTECTED;
    if (checked && ((s->attr & SEG_ATTR_UNUSABLE) || !access_allowed(s, access)))
        raise_address(cpu, seg);
    if (!within_limit(s, at, size))
        raise_address(cpu, seg);
    return (uint32_t)(s->base + at);
}

/* ---- descriptors ---- */

bool soft_descriptor_read(SoftCpu *cpu, uint16_t selector, SoftDescriptor *d)
{
    uint64_t base = cpu->gdtr.base;
    uint32_t limit = cpu->gdtr.limit;
    if (selector & 4) {
        if (cpu->ldtr.attr & SEG_ATTR_UNUSABLE)
            return false;
        base = cpu->ldtr.base;
        limit = cpu->ldtr.limit;
    }
    uint32_t offset = selector & 0xfff8u;
    if ((uint64_t)offset + 7 > limit)
        return false;
    d->linear = base + offset;
    if (!(cpu->mode & SOFT_MODE_LONG))
        d->linear = (uint32_t)d->linear;
    d->low = soft_system_load(cpu, d->linear, 8);
    d->high = 0;
    return true;
}

void soft_descriptor_read_high(SoftCpu *cpu, uint16_t selector, SoftDescriptor *d)
{
    uint32_t limit = selector & 4 ? cpu->ldtr.limit : cpu->gdtr.limit;
    if ((uint64_t)(selector & 0xfff8u) + 15 > limit)
        soft_raise_selector(cpu, EXC_GP, selector);
    d->high = soft_system_load(cpu, d->linear + 8, 8);
    if (d->high >> 40 & 0x1f) /* the type field of the second half must be 0 */
        soft_raise_selector(cpu, EXC_GP, selector);
}

VcpuSegment soft_descriptor_segment(const SoftDescriptor *d, uint16_t selector)
{
    VcpuSegment s = {.selector = selector};
    s.base = (d->low >> 16 & 0xffffff) | (d->low >> 32 & 0xff000000) | d->high << 32;
    s.limit = (uint32_t)((d->low & 0xffff) | (d->low >> 32 & 0xf0000));
    s.attr = (uint32_t)(d->low >> 40) & 0xf0ff;
    if (s.attr & SEG_ATTR_G)
        s.limit = s.limit << 12 | 0xfff;
    return s;
}

void soft_descriptor_accessed(SoftCpu *cpu, SoftDescriptor *d)
{
    if (d->low >> 40 & 1)
        return;
    d->low |= 1ull << 40;
    soft_system_store(cpu, d->linear + 5, 1, d->low >> 40 & 0xff);
}

VcpuSegment soft_segment_null(uint16_t selector)
{
    return (VcpuSegment){.selector = selector, .attr = SEG_ATTR_UNUSABLE};
}

void soft_set_cpl(SoftCpu *cpu, unsigned cpl)
{
    cpu->cpl = (uint8_t)cpl;
}

/* ---- segment registers ---- */

void soft_segment_real(SoftCpu *cpu, unsigned seg, uint16_t selector)
{
    VcpuSegment *s = &cpu->seg[seg];
    s->selector = selector;
    s->base = (uint32_t)selector << 4;
    if (cpu->rflags & FLAG_VM) {
        s->limit = 0xffff;
        s->attr = 0xf3;
    } else {
        /* Real mode loads leave limit and size as protected mode had set them. */
        if (s->attr & SEG_ATTR_UNUSABLE)
            s->limit = 0xffff;
        s->attr = 0x93 | (s->attr & (SEG_ATTR_DB | SEG_ATTR_G));
    }
}

VcpuSegment soft_segment_stack(SoftCpu *cpu, uint16_t selector, unsigned cpl, unsigned vector)
{
    SoftDescriptor d;
    if (!(selector & 0xfffc))
        soft_raise_selector(cpu, vector, 0);
    if (!soft_descriptor_read(cpu, selector, &d) || (selector & 3) != cpl ||
        !soft_descriptor_s(&d) || soft_descriptor_code(&d) || !(soft_descriptor_type(&d) & 2) ||
        soft_descriptor_dpl(&d) != cpl)
        soft_raise_selector(cpu, vector, selector);
    if (!soft_descriptor_present(&d))
        soft_raise_selector(cpu, EXC_SS, selector);
    soft_descriptor_accessed(cpu, &d);
    return soft_descriptor_segment(&d, selector);
}

static void load_data(SoftCpu *cpu, unsigned seg, uint16_t selector)
{
    SoftDescriptor d;
    unsigned rpl = selector & 3;
    if (!(selector & 0xfffc)) {
        cpu->seg[seg] = soft_segment_null(selector);
        return;
    }
    if (!soft_descriptor_read(cpu, selector, &d) || !soft_descriptor_s(&d) ||
        (soft_descriptor_code(&d) && !(soft_descriptor_type(&d) & 2)))
        soft_raise_selector(cpu, EXC_GP, selector);
    if (!soft_descriptor_conforming(&d) && soft_descriptor_dpl(&d) < MAX(rpl, cpu->cpl))
        soft_raise_selector(cpu, EXC_GP, selector);
    if (!soft_descriptor_present(&d))
        soft_raise_selector(cpu, EXC_NP, selector);
    soft_descriptor_accessed(cpu, &d);
    cpu->seg[seg] = soft_descriptor_segment(&d, selector);
}

static void load_stack(SoftCpu *cpu, uint16_t selector)
{
    if (!(selector & 0xfffc)) {
        if (!(cpu->mode & SOFT_MODE_CODE64) || cpu->cpl == 3 || (selector & 3) != cpu->cpl)
            soft_raise_error(cpu, EXC_GP, 0);
        cpu->seg[SEG_SS] = soft_segment_null(selector);
        return;
    }
    cpu->seg[SEG_SS] = soft_segment_stack(cpu, selector, cpu->cpl, EXC_GP);
}

void soft_segment_load(SoftCpu *cpu, unsigned seg, uint16_t selector)
{
    if ((cpu->mode & (SOFT_MODE_PROTECTED | SOFT_MODE_VM86)) != SOFT_MODE_PROTECTED)
        soft_segment_real(cpu, seg, selector);
    else if (seg == SEG_SS)
        load_stack(cpu, selector);
    else
        load_data(cpu, seg, selector);
    soft_mode_update(cpu);
}

void soft_segment_return_checks(SoftCpu *cpu)
{
    static const uint8_t data[] = {SEG_ES, SEG_DS, SEG_FS, SEG_GS};
    for (unsigned i = 0; i < sizeof(data); i++) {
        VcpuSegment *s = &cpu->seg[data[i]];
        if (s->attr & SEG_ATTR_UNUSABLE)
            continue;
        bool conforming = (s->attr & 0xc) == 0xc;
        if (conforming || (s->attr >> SEG_ATTR_DPL_SHIFT & 3) >= cpu->cpl)
            continue;
        /* The selector becomes null and the segment unusable; processors leave its base alone, and in
         * 64-bit mode the base of FS and GS is in use all the same. */
        s->selector = 0;
        s->attr |= SEG_ATTR_UNUSABLE;
    }
}

/* ---- LDTR and TR ---- */

void soft_segment_lldt(SoftCpu *cpu, uint16_t selector)
{
    SoftDescriptor d;
    if (!(selector & 0xfffc)) {
        cpu->ldtr = soft_segment_null(selector);
        return;
    }
    if ((selector & 4) || !soft_descriptor_read(cpu, selector, &d) || soft_descriptor_s(&d) ||
        soft_descriptor_type(&d) != SYS_LDT)
        soft_raise_selector(cpu, EXC_GP, selector);
    if (!soft_descriptor_present(&d))
        soft_raise_selector(cpu, EXC_NP, selector);
    if (cpu->mode & SOFT_MODE_LONG)
        soft_descriptor_read_high(cpu, selector, &d);
    VcpuSegment s = soft_descriptor_segment(&d, selector);
    if ((cpu->mode & SOFT_MODE_LONG) && !soft_canonical(s.base))
        soft_raise_selector(cpu, EXC_GP, selector);
    cpu->ldtr = s;
}

void soft_segment_ltr(SoftCpu *cpu, uint16_t selector)
{
    SoftDescriptor d;
    if (!(selector & 0xfffc) || (selector & 4) || !soft_descriptor_read(cpu, selector, &d) ||
        soft_descriptor_s(&d))
        soft_raise_selector(cpu, EXC_GP, selector & 0xfffc ? selector : 0);
    unsigned type = soft_descriptor_type(&d);
    bool long_mode = cpu->mode & SOFT_MODE_LONG;
    if (type != SYS_TSS32 && (long_mode || type != SYS_TSS16))
        soft_raise_selector(cpu, EXC_GP, selector);
    if (!soft_descriptor_present(&d))
        soft_raise_selector(cpu, EXC_NP, selector);
    if (long_mode)
        soft_descriptor_read_high(cpu, selector, &d);
    VcpuSegment s = soft_descriptor_segment(&d, selector);
    if (long_mode && !soft_canonical(s.base))
        soft_raise_selector(cpu, EXC_GP, selector);
    s.attr |= 2; /* busy */
    soft_system_store(cpu, d.linear + 5, 1, (d.low >> 40 & 0xff) | 2);
    cpu->tr = s;
}
