# SPDX-License-Identifier: LGPL-2.1-or-later
# 64-bit mode: where debug traps come, and where they do not: RF after IRET, MOV SS, ICEBP, HLT, SYSRET;
# and what a return to user mode does to GS. Code that ran for the supervisor has the user's rights when the
# user jumps to it.
.include "common.inc"

.set PML4,  0x100000
.set PDPT,  0x101000
.set PD,    0x102000
.set STACK, 0x7000
.set STACK_RSP0, 0x5000

.set KCODE, 0x08
.set KDATA, 0x10
.set CODE32, 0x18
.set UCODE32, 0x20 | 3
.set UDATA, 0x28 | 3
.set UCODE, 0x30 | 3
.set TSS, 0x38

    .code16
    .globl _start
_start:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    lgdtl gdt_pointer
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $CODE32, $protected

    .code32
protected:
    movw $KDATA, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl $STACK, %esp
    movl $PML4, %edi              # 2 MiB for everybody
    xorl %eax, %eax
    movl $0xc00, %ecx
    rep stosl
    movl $PDPT + 7, PML4
    movl $PD + 7, PDPT
    movl $0x87, PD
    movl $0x200083, PD + 8        # ... and 2 MiB for the supervisor alone
    movl %cr4, %eax
    orl $0x20, %eax               # PAE
    movl %eax, %cr4
    movl $PML4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x101, %eax              # LME, SCE
    wrmsr
    movl %cr0, %eax
    orl $0x80000000, %eax
    movl %eax, %cr0
    ljmpl $KCODE, $long_mode

    .code64
.macro gate vector, target, access
    movl $\target, %eax
    movw %ax, idt + \vector * 16
    shrl $16, %eax
    movw %ax, idt + \vector * 16 + 6
    movl $KCODE | 0 << 16, idt + \vector * 16 + 2
    movb $\access, idt + \vector * 16 + 5
.endm

.macro forget
    movl $0, count
    xorl %eax, %eax
    movq %rax, %db6
.endm

long_mode:
    gate 1, debug_handler, 0xee
    gate 6, undefined_handler, 0x8e
    gate 13, protection_handler, 0x8e
    gate 14, page_fault_handler, 0x8e
    gate 0x40, user_done, 0xee
    gate 0x41, supervisors_page, 0xee
    lidt idt_pointer
    movw $TSS, %ax
    ltr %ax

    # --- RF from a fault's IRET is over after one instruction ---
    ud2
    movl $1f, %eax
    movq %rax, %db0
    movl $0x401, %eax             # execution, DR0
    movq %rax, %db7
1:  nop
    mem_equal 10, $1, count
    movl $1b, %eax
    must_equal 11, %rax, first_rip

    # --- MOV SS holds a code breakpoint off on Intel's processors, not on AMD's ---
    forget
    movl $1f, %eax
    movq %rax, %db0
    movw %ss, %ax
    movw %ax, %ss
1:  nop
    xorl %eax, %eax
    cpuid
    xorl %edx, %edx
    cmpl $0x756e6547, %ebx        # "Genu"
    setne %dl
    must_equal 20, count, %edx

    # --- a data breakpoint that MOV SS held off arrives together with ICEBP's trap ---
    forget
    movl $selector, %eax
    movq %rax, %db0
    movl $0x000f0401, %eax        # 4 bytes, reading or writing
    movq %rax, %db7
    movw selector, %ss
    .byte 0xf1
1:  mem_equal 30, $1, count
    movl $1b, %eax
    must_equal 31, %rax, first_rip
    mem_equal 32, $1, first_dr6
    movl $0x400, %eax
    movq %rax, %db7

    # --- HLT that is stepped over does not wait ---
    forget
    pushfq
    orl $0x100, (%rsp)
    popfq
    hlt
1:  nop
    mem_equal 40, $1, count
    movl $1b, %eax
    must_equal 41, %rax, first_rip
    mem_equal 42, $0x4000, first_dr6

    # --- a return to user mode takes GS's selector away, not its base ---
    movw $KDATA, %ax
    movw %ax, %gs
    movl $0xc0000101, %ecx
    movl $0x1000, %eax
    xorl %edx, %edx
    wrmsr
    movl $0x5a5a, 0x1234
    pushq $UDATA
    pushq $STACK
    pushq $2
    pushq $UCODE
    pushq $user
    iretq
user:
    movl %gs:0x234, %eax
    movw %gs, %bx
    int $0x40
user_done:
    movq $STACK, %rsp
    must_equal 50, $0x5a5a, %eax
    testw %bx, %bx
    jz 1f
    fail 51

    # --- SYSRET that sets TF traps at once ---
1:  forget
    movl $0xc0000081, %ecx
    xorl %eax, %eax
    movl $0x00200008, %edx
    wrmsr
    movl $syscalled, %eax
    xorl %edx, %edx
    movl $0xc0000082, %ecx
    wrmsr
    movl $0xc0000084, %ecx
    movl $0x100, %eax
    wrmsr
    movl $after_sysret, %ecx
    movl $0x102, %r11d
    sysretq
after_sysret:
    nop
    syscall
syscalled:
    mem_equal 60, $1, count
    movl $after_sysret, %eax
    must_equal 61, %rax, first_rip
    mem_equal 62, $0x4000, first_dr6

    # --- the same code at the same address, for the supervisor and then for the user ---
    movl $2f, %ebx
    movl $reads_kernel, %ecx
    movl $3, %esi
1:  jmp *%rcx
2:  decl %esi
    jnz 1b
    movl $user_reached, %ebx      # nothing is written into this page of code meanwhile
    pushq $UDATA
    pushq $STACK
    pushq $2
    pushq $UCODE
    pushq $user_jumps
    iretq
user_jumps:
    jmp *%rcx
reads_kernel:
    movl 0x200000, %eax
    jmp *%rbx
user_reached:
    int $0x41
supervisors_page:
    fail 70
page_fault_handler:
    mem_equal 71, $5, (%rsp)
    movl $reads_kernel, %eax
    must_equal 72, %rax, 8(%rsp)
    exit_with 0

# Notes the first trap since forget; ends single-stepping, and passes a code breakpoint by RF.
debug_handler:
    pushq %rax
    movq 8(%rsp), %rax
    cmpl $0, count
    jne 1f
    movq %rax, first_rip
    movq %db6, %rax
    andl $0xe00f, %eax
    movl %eax, first_dr6
1:  incl count
    andl $~0x100, 24(%rsp)
    orl $0x10000, 24(%rsp)
    popq %rax
    iretq

undefined_handler:                # comes back behind UD2, with RF as it was pushed
    addq $2, (%rsp)
    iretq

protection_handler:
    exit_with 99

    .balign 8
first_rip:  .quad 0
count:      .long 0
first_dr6:  .long 0
selector:   .word KDATA, 0

    .balign 8
gdt:
    .quad 0
    descriptor 0, 0xfffff, 0x9b, 0xa     # 08 kernel code, 64 bits
    descriptor 0, 0xfffff, 0x93, 0xc     # 10 kernel data
    descriptor 0, 0xfffff, 0x9b, 0xc     # 18 kernel code, 32 bits
    descriptor 0, 0xfffff, 0xfb, 0xc     # 20 user code, 32 bits
    descriptor 0, 0xfffff, 0xf3, 0xc     # 28 user data
    descriptor 0, 0xfffff, 0xfb, 0xa     # 30 user code, 64 bits
    descriptor 0x8000+(tss-_start), 0x67, 0x89, 0        # 38 TSS
    .quad 0
gdt_pointer:
    .word . - gdt - 1
    .long gdt
idt_pointer:
    .word 0x42 * 16 - 1
    .quad idt
    .balign 16
tss:
    .long 0
    .quad STACK_RSP0, 0, 0
    .skip 0x68 - 28
    .balign 16
idt:
    .skip 0x42 * 16
