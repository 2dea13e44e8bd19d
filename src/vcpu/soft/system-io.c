/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* I/O ports (SDM vol. 1 chapter 19). */
#include "vcpu/soft/system-ops.h"
#include "vcpu/soft/vm.h"

uint64_t soft_port_read(SoftCpu *cpu, uint16_t port, unsigned size)
{
    const VcpuBus *bus = cpu->vcpu.vm->bus;
    soft_sync_leave(cpu);
    vcpu_count(&cpu->stats.exits_io, 1);
    uint64_t v = bus->port_read(bus->opaque, cpu->vcpu.index, port, size);
    soft_sync_enter(cpu);
    soft_debug_port(cpu, port, size);
    return v;
}

void soft_port_write(SoftCpu *cpu, uint16_t port, unsigned size, uint64_t value)
{
    const VcpuBus *bus = cpu->vcpu.vm->bus;
    soft_sync_leave(cpu);
    vcpu_count(&cpu->stats.exits_io, 1);
    bus->port_write(bus->opaque, cpu->vcpu.index, port, size, value);
    soft_sync_enter(cpu);
    soft_debug_port(cpu, port, size);
}

/* IOPL, then the I/O permission bitmap of the TSS: two bytes are read, as a port may cross one. */
static void check_port(SoftCpu *cpu, uint16_t port, unsigned size)
{
    if (!(cpu->mode & SOFT_MODE_PROTECTED))
        return;
    if (cpu->cpl <= soft_iopl(cpu) && !(cpu->mode & SOFT_MODE_VM86))
        return;
    unsigned type = cpu->tr.attr & 0xf;
    if ((type != SYS_TSS32 && type != SYS_TSS32_BUSY) || cpu->tr.limit < 0x67)
        soft_raise_error(cpu, EXC_GP, 0);
    bool wide = cpu->mode & SOFT_MODE_LONG;
    uint64_t base = cpu->tr.base;
    unsigned at = (unsigned)soft_system_load(cpu, wide ? base + 0x66 : (uint32_t)(base + 0x66), 2);
    at += port / 8u;
    if (at + 1 > cpu->tr.limit)
        soft_raise_error(cpu, EXC_GP, 0);
    uint64_t bits = soft_system_load(cpu, wide ? base + at : (uint32_t)(base + at), 2);
    if (bits >> (port % 8) & ((1u << size) - 1))
        soft_raise_error(cpu, EXC_GP, 0);
}

static void in(SoftCpu *cpu, const SoftOp *op, uint16_t port)
{
    cpu->op = op;
    check_port(cpu, port, op->size);
    uint64_t v = soft_port_read(cpu, port, op->size);
    if (op->size == 1)
        cpu->gpr[GPR_RAX] = (cpu->gpr[GPR_RAX] & ~0xffull) | (v & 0xff);
    else
        soft_gpr_write(cpu, GPR_RAX, op->size, v);
    cpu->rip = soft_next_rip(cpu, op);
}

static void out(SoftCpu *cpu, const SoftOp *op, uint16_t port)
{
    cpu->op = op;
    check_port(cpu, port, op->size);
    uint64_t v = cpu->gpr[GPR_RAX] & ((1ull << (op->size * 8)) - 1);
    soft_port_write(cpu, port, op->size, v);
    cpu->rip = soft_next_rip(cpu, op);
}

void soft_op_in_imm(SoftCpu *cpu, const SoftOp *op)
{
    in(cpu, op, op->imm & 0xff);
}

void soft_op_in_dx(SoftCpu *cpu, const SoftOp *op)
{
    in(cpu, op, (uint16_t)cpu->gpr[GPR_RDX]);
}

void soft_op_out_imm(SoftCpu *cpu, const SoftOp *op)
{
    out(cpu, op, op->imm & 0xff);
}

void soft_op_out_dx(SoftCpu *cpu, const SoftOp *op)
{
    out(cpu, op, (uint16_t)cpu->gpr[GPR_RDX]);
}

/* ---- strings ---- */

static uint64_t masked(uint64_t v, unsigned asize)
{
    if (asize == 8)
        return v;
    return asize == 4 ? (uint32_t)v : (uint16_t)v;
}

static void add(SoftCpu *cpu, unsigned reg, unsigned asize, int64_t delta)
{
    uint64_t v = cpu->gpr[reg] + (uint64_t)delta;
    soft_gpr_write(cpu, reg, asize, v);
}

static uint64_t element_load(SoftCpu *cpu, uint64_t linear, unsigned size)
{
    return size == 1   ? soft_load8(cpu, linear)
           : size == 2 ? soft_load16(cpu, linear)
                       : soft_load32(cpu, linear);
}

static void element_store(SoftCpu *cpu, uint64_t linear, unsigned size, uint64_t v)
{
    if (size == 1)
        soft_store8(cpu, linear, (uint8_t)v);
    else if (size == 2)
        soft_store16(cpu, linear, (uint16_t)v);
    else
        soft_store32(cpu, linear, (uint32_t)v);
}

static void ins_one(SoftCpu *cpu, const SoftOp *op, uint16_t port)
{
    uint64_t offset = masked(cpu->gpr[GPR_RDI], op->asize);
    uint64_t linear = soft_linear(cpu, SEG_ES, offset, op->size, SOFT_WRITE);
    soft_probe_store(cpu, linear, op->size); /* the port must not be read in vain */
    element_store(cpu, linear, op->size, soft_port_read(cpu, port, op->size));
}

static void outs_one(SoftCpu *cpu, const SoftOp *op, uint16_t port)
{
    uint64_t offset = masked(cpu->gpr[GPR_RSI], op->asize);
    uint64_t linear = soft_linear(cpu, op->seg, offset, op->size, SOFT_READ);
    soft_port_write(cpu, port, op->size, element_load(cpu, linear, op->size));
}

/* Each element is an instruction of its own as to faults, interrupts and traps. */
static void string(SoftCpu *cpu, const SoftOp *op, unsigned reg,
                   void (*one)(SoftCpu *cpu, const SoftOp *op, uint16_t port))
{
    uint16_t port = (uint16_t)cpu->gpr[GPR_RDX];
    bool repeat = op->flags & (SOFT_OP_REP | SOFT_OP_REPNE);
    int64_t delta = cpu->rflags & FLAG_DF ? -(int64_t)op->size : op->size;
    cpu->op = op;
    check_port(cpu, port, op->size);
    while (!repeat || masked(cpu->gpr[GPR_RCX], op->asize)) {
        one(cpu, op, port);
        add(cpu, reg, op->asize, delta);
        if (!repeat)
            break;
        add(cpu, GPR_RCX, op->asize, -1);
        if (masked(cpu->gpr[GPR_RCX], op->asize) &&
            ((cpu->mode & SOFT_MODE_SINGLE) || atomic_load(&cpu->pending))) {
            cpu->rip = op->rip;
            return;
        }
    }
    cpu->rip = soft_next_rip(cpu, op);
}

void soft_op_ins(SoftCpu *cpu, const SoftOp *op)
{
    string(cpu, op, GPR_RDI, ins_one);
}

void soft_op_outs(SoftCpu *cpu, const SoftOp *op)
{
    string(cpu, op, GPR_RSI, outs_one);
}
