/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Control and debug registers (SDM vol. 3 2.5 and 17.2), SMSW and LMSW. */
#include "vcpu/soft/system-ops.h"
#include "vcpu/soft/vm.h"

#define CR0_KNOWN \
    (CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_NW | CR0_CD | \
     CR0_PG)
#define CR3_KEEP (1ull << 63)

bool soft_cr0_valid(uint64_t cr0)
{
    if (cr0 >> 32)
        return false;
    return !((cr0 & CR0_PG) && !(cr0 & CR0_PE)) && !((cr0 & CR0_NW) && !(cr0 & CR0_CD));
}

bool soft_cr4_valid(uint64_t cr4)
{
    return !(cr4 & ~soft_limits.cr4_allowed);
}

_Noreturn static void gp(SoftCpu *cpu)
{
    soft_raise_error(cpu, EXC_GP, 0);
}

static void cr0_write(SoftCpu *cpu, uint64_t v)
{
    if (!soft_cr0_valid(v))
        gp(cpu);
    v = (v & CR0_KNOWN) | CR0_ET;
    uint64_t changed = v ^ cpu->cr0;
    uint64_t efer = cpu->efer;
    if (changed & v & CR0_PG) {
        if (efer & EFER_LME) {
            if (!(cpu->cr4 & CR4_PAE) || (cpu->seg[SEG_CS].attr & SEG_ATTR_L) ||
                (cpu->tr.attr & 0xf) == SYS_TSS16_BUSY)
                gp(cpu);
            efer |= EFER_LMA;
        } else if ((cpu->cr4 & CR4_PAE) && !soft_pdptes_valid(cpu, cpu->cr3)) {
            gp(cpu);
        }
    } else if (changed & CR0_PG) {
        if ((cpu->mode & SOFT_MODE_CODE64) || (cpu->cr4 & CR4_PCIDE))
            gp(cpu);
        efer &= ~(uint64_t)EFER_LMA;
    }
    cpu->cr0 = v;
    cpu->efer = efer;
    if (changed & (CR0_PG | CR0_WP | CR0_PE))
        soft_tlb_flush(cpu, true);
    soft_mode_update(cpu);
}

static void cr3_write(SoftCpu *cpu, uint64_t v)
{
    bool keep = false;
    if (cpu->mode & SOFT_MODE_LONG) {
        if (cpu->cr4 & CR4_PCIDE) {
            keep = v & CR3_KEEP;
            v &= ~CR3_KEEP;
        }
        if (v >> soft_limits.physical_bits)
            gp(cpu);
    } else if ((cpu->cr0 & CR0_PG) && (cpu->cr4 & CR4_PAE) && !soft_pdptes_valid(cpu, v)) {
        gp(cpu);
    }
    soft_tlb_load_cr3(cpu, v, keep);
}

static void cr4_write(SoftCpu *cpu, uint64_t v)
{
    if (!soft_cr4_valid(v))
        gp(cpu);
    uint64_t changed = v ^ cpu->cr4;
    if ((cpu->mode & SOFT_MODE_LONG) && !(v & CR4_PAE))
        gp(cpu);
    if ((changed & v & CR4_PCIDE) && (!(cpu->mode & SOFT_MODE_LONG) || (cpu->cr3 & 0xfff)))
        gp(cpu);
    if ((changed & v & CR4_PAE) && (cpu->cr0 & CR0_PG) && !(cpu->mode & SOFT_MODE_LONG) &&
        !soft_pdptes_valid(cpu, cpu->cr3))
        gp(cpu);
    cpu->cr4 = v;
    if (changed & (CR4_PGE | CR4_PAE | CR4_PSE | CR4_SMEP | CR4_SMAP | CR4_PCIDE |
                   CR4_PKE | CR4_PKS))
        soft_tlb_flush(cpu, true);
    soft_mode_update(cpu);
}

static uint64_t cr8_read(SoftCpu *cpu)
{
    const VcpuBus *bus = cpu->vcpu.vm->bus;
    return bus->cr8_read ? bus->cr8_read(bus->opaque, cpu->vcpu.index) : 0;
}

static void cr8_write(SoftCpu *cpu, uint64_t v)
{
    const VcpuBus *bus = cpu->vcpu.vm->bus;
    if (v > 15)
        gp(cpu);
    if (!bus->cr8_write)
        return;
    soft_sync_leave(cpu);
    bus->cr8_write(bus->opaque, cpu->vcpu.index, v);
    soft_sync_enter(cpu);
}

static void check_cr(SoftCpu *cpu, const SoftOp *op)
{
    cpu->op = op;
    bool known = op->reg == 0 || (op->reg >= 2 && op->reg <= 4) || op->reg == 8;
    if (!known)
        soft_raise(cpu, EXC_UD);
    soft_require_cpl0(cpu, op);
}

void soft_op_mov_from_cr(SoftCpu *cpu, const SoftOp *op)
{
    check_cr(cpu, op);
    uint64_t v;
    switch (op->reg) {
    case 0:
        v = cpu->cr0;
        break;
    case 2:
        v = cpu->cr2;
        break;
    case 3:
        v = cpu->cr3;
        break;
    case 4:
        v = cpu->cr4;
        break;
    default:
        v = cr8_read(cpu);
    }
    cpu->gpr[op->rm] = cpu->mode & SOFT_MODE_CODE64 ? v : (uint32_t)v;
    cpu->rip = soft_next_rip(cpu, op);
}

void soft_op_mov_to_cr(SoftCpu *cpu, const SoftOp *op)
{
    check_cr(cpu, op);
    uint64_t v = cpu->gpr[op->rm];
    if (!(cpu->mode & SOFT_MODE_CODE64))
        v = (uint32_t)v;
    uint64_t next = soft_next_rip(cpu, op);
    switch (op->reg) {
    case 0:
        cr0_write(cpu, v);
        break;
    case 2:
        cpu->cr2 = v;
        break;
    case 3:
        cr3_write(cpu, v);
        break;
    case 4:
        cr4_write(cpu, v);
        break;
    default:
        cr8_write(cpu, v);
    }
    cpu->rip = next;
    soft_pend(cpu, SOFT_PENDING_LOOP);
}

void soft_op_clts(SoftCpu *cpu, const SoftOp *op)
{
    soft_require_cpl0(cpu, op);
    cpu->cr0 &= ~(uint64_t)CR0_TS;
    soft_mode_update(cpu);
    cpu->rip = soft_next_rip(cpu, op);
}

void soft_op_smsw(SoftCpu *cpu, const SoftOp *op)
{
    cpu->op = op;
    if ((cpu->cr4 & CR4_UMIP) && cpu->cpl != 0)
        gp(cpu);
    soft_rm_write(cpu, op, op->flags & SOFT_OP_MEM ? 2 : op->size, cpu->cr0);
    cpu->rip = soft_next_rip(cpu, op);
}

/* PE can be set, but not cleared. */
void soft_op_lmsw(SoftCpu *cpu, const SoftOp *op)
{
    soft_require_cpl0(cpu, op);
    uint64_t v = soft_rm_read(cpu, op, 2) & 0xf;
    cr0_write(cpu, (cpu->cr0 & ~0xeull) | v);
    cpu->rip = soft_next_rip(cpu, op);
    soft_pend(cpu, SOFT_PENDING_LOOP);
}

/* ---- debug registers ---- */

#define DR6_FIXED 0xffff0ff0u
#define DR6_WRITABLE 0xe00fu
#define DR7_FIXED 0x400u
#define DR7_GD 0x2000u
#define DR6_BD 0x2000u

/* DR4 and DR5 are DR6 and DR7 unless CR4.DE is set. */
static unsigned check_dr(SoftCpu *cpu, const SoftOp *op)
{
    cpu->op = op;
    unsigned n = op->reg;
    if (n > 7 || ((n == 4 || n == 5) && (cpu->cr4 & CR4_DE)))
        soft_raise(cpu, EXC_UD);
    soft_require_cpl0(cpu, op);
    if (cpu->dr[7] & DR7_GD) {
        cpu->dr[6] |= DR6_BD;
        soft_raise(cpu, EXC_DB);
    }
    return n == 4 || n == 5 ? n + 2 : n;
}

void soft_op_mov_from_dr(SoftCpu *cpu, const SoftOp *op)
{
    uint64_t v = cpu->dr[check_dr(cpu, op)];
    cpu->gpr[op->rm] = cpu->mode & SOFT_MODE_CODE64 ? v : (uint32_t)v;
    cpu->rip = soft_next_rip(cpu, op);
}

void soft_op_mov_to_dr(SoftCpu *cpu, const SoftOp *op)
{
    unsigned n = check_dr(cpu, op);
    uint64_t v = cpu->gpr[op->rm];
    if (!(cpu->mode & SOFT_MODE_CODE64))
        v = (uint32_t)v;
    if (n >= 6 && v >> 32)
        gp(cpu);
    if (n == 6)
        v = (v & DR6_WRITABLE) | DR6_FIXED;
    if (n == 7)
        v = (v & 0xffff2bffu) | DR7_FIXED;
    cpu->dr[n] = v;
    cpu->rip = soft_next_rip(cpu, op);
    if (n == 7 || (cpu->dr[7] & 0xff))
        soft_debug_update(cpu);
}
