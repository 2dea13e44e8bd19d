/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Handlers of system and far-control instructions (system-*.c, segment.c, event.c), named by the
 * decoder's tables. Each performs the whole instruction with all its checks, sets cpu->rip and
 * returns (it ends its block). Operands are in the op: size is the operand size after prefixes
 * (8 where the instruction is always 64-bit in 64-bit mode), reg the ModRM.reg (/digit is implied
 * by the handler).
 */
#pragma once

#include "vcpu/soft/cpu.h"

#define SOFT_SYSTEM_OPS(X)                                                                         \
    X(hlt)                                                                                         \
    X(cli) X(sti) X(clts) X(invd) X(wbinvd) X(invlpg) X(invpcid) X(swapgs) X(rdtsc) X(rdtscp)      \
        X(rdpmc) X(rdmsr) X(wrmsr) X(cpuid) X(xgetbv) X(xsetbv) X(monitor) X(mwait) X(rsm)         \
            X(rdpkru) X(wrpkru) X(vmcall) X(mov_from_cr) X(mov_to_cr) X(mov_from_dr) X(mov_to_dr) X(sgdt) X(sidt)      \
                X(lgdt) X(lidt) X(sldt) X(str) X(lldt) X(ltr) X(verr) X(verw) X(smsw) X(lmsw)      \
                    X(lar) X(lsl) X(arpl) X(clac) X(stac) X(rdfsbase) X(rdgsbase) X(wrfsbase)      \
                        X(wrgsbase) X(rdpid) X(syscall) X(sysret) X(sysenter) X(sysexit) X(int3)   \
                            X(int1) X(int_imm) X(into) X(iret) X(jmp_far_imm) X(call_far_imm)      \
                                X(jmp_far_mem) X(call_far_mem) X(retf) X(retf_imm) X(in_imm)       \
                                    X(out_imm) X(in_dx) X(out_dx) X(ins)                           \
                                        X(outs) /* size = data size; REP in op->flags */           \
        X(mov_from_seg) X(mov_to_seg) X(push_seg) X(pop_seg) /* reg = segment */                   \
        X(lseg) /* LDS LES LFS LGS LSS: op->sub = segment, reg = register */                       \
        X(pushf) X(popf)

#define SOFT_DECLARE_OP(name) void soft_op_##name(SoftCpu *cpu, const SoftOp *op);
SOFT_SYSTEM_OPS(SOFT_DECLARE_OP)
#undef SOFT_DECLARE_OP

/* Raises #UD; what the decoder puts for everything undefined. */
void soft_op_undefined(SoftCpu *cpu, const SoftOp *op);

/* Stack in the current mode (64-bit, SS.B): size 2, 4 or 8. They fault before changing anything. */
void soft_push(SoftCpu *cpu, uint64_t value, unsigned size);
/* The value at the top of the stack at byte @skip, without moving RSP. */
uint64_t soft_peek(SoftCpu *cpu, unsigned skip, unsigned size);
void soft_stack_add(SoftCpu *cpu, int64_t delta); /* RSP/ESP/SP += delta by stack size */
