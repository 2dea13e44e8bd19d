/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The architectural state of one x86-64 vCPU: one layout for every engine, so that a
 * snapshot made on one resumes on another. Names follow the Intel SDM.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

/* GPR_: <sys/ucontext.h> has taken REG_. */
enum { GPR_RAX, GPR_RCX, GPR_RDX, GPR_RBX, GPR_RSP, GPR_RBP, GPR_RSI, GPR_RDI, GPR_R8 };
enum { SEG_ES, SEG_CS, SEG_SS, SEG_DS, SEG_FS, SEG_GS, SEG_COUNT };

/* A segment register with its hidden part. attr: SDM vol. 3 3.4.5 bytes 5-6 of the descriptor:
 * bits 0-3 type, 4 S, 5-6 DPL, 7 P, 12 AVL, 13 L, 14 D/B, 15 G; bit 16 = unusable (null). */
typedef struct VcpuSegment {
    uint64_t base;
    uint32_t limit; /* in bytes, granularity applied */
    uint32_t attr;
    uint16_t selector;
} VcpuSegment;

#define SEG_ATTR_S 0x0010u
#define SEG_ATTR_DPL_SHIFT 5
#define SEG_ATTR_P 0x0080u
#define SEG_ATTR_AVL 0x1000u
#define SEG_ATTR_L 0x2000u
#define SEG_ATTR_DB 0x4000u
#define SEG_ATTR_G 0x8000u
#define SEG_ATTR_UNUSABLE 0x10000u

typedef struct VcpuTable {
    uint64_t base;
    uint16_t limit;
} VcpuTable;

typedef struct VcpuMsr {
    uint32_t index;
    uint64_t value;
} VcpuMsr;

#define VCPU_MSR_MAX 128
#define VCPU_XSAVE_SIZE 4096

typedef enum VcpuActivity {
    VCPU_RUNNING,
    VCPU_HALTED,       /* HLT: waits for an interrupt */
    VCPU_WAIT_FOR_SIPI /* an application processor after INIT */
} VcpuActivity;

typedef struct VcpuState {
    uint64_t gpr[16]; /* by encoding: RAX RCX RDX RBX RSP RBP RSI RDI R8..R15 */
    uint64_t rip;     /* offset within CS */
    uint64_t rflags;
    VcpuSegment seg[SEG_COUNT];
    VcpuSegment ldtr, tr;
    VcpuTable gdtr, idtr;
    uint64_t cr0, cr2, cr3, cr4, cr8;
    uint64_t efer, xcr0;
    uint64_t dr[8]; /* 4 and 5 unused */
    VcpuActivity activity;
    bool interrupt_shadow; /* after STI or MOV SS */
    bool nmi_masked;
    /* An exception that was raised but not yet delivered. */
    bool exception_pending;
    uint8_t exception_vector;
    bool exception_has_error;
    uint32_t exception_error;
    uint64_t tsc;             /* the guest's TSC at the time of the call */
    unsigned n_msr;           /* every other MSR that the engine implements */
    VcpuMsr msr[VCPU_MSR_MAX];
    uint8_t xsave[VCPU_XSAVE_SIZE]; /* standard (non-compacted) XSAVE format, SDM vol. 1 13.4 */
} VcpuState;

/* The state after RESET (SDM vol. 3 table 10-1): real mode at F000:FFF0. */
void vcpu_state_reset(VcpuState *state, unsigned index);
