# SPDX-License-Identifier: LGPL-2.1-or-later
# Code that changes, in the kernel of 64-bit mode: by its own stores, by page tables and INVLPG or CR3, by DMA, under
# instructions across a page end; and fetches that fault half way through an instruction.
.include "common.inc"

.set PML4,  0x100000
.set PDPT,  0x101000
.set PD,    0x102000
.set PT,    0x103000         # 4 KiB pages of 0x200000-0x3fffff
.set STACK, 0x7000
.set IDT,   0x5000

.set KCODE, 0x08
.set KDATA, 0x10
.set CODE32, 0x18

.set WINDOW, 0x200000        # three pages that are mapped to and fro
.set ALIAS,  0x208000        # two more addresses of FRAME5
.set ALIAS2, 0x209000
.set FRAME1, 0x400000        # what is mapped there
.set FRAME2, 0x401000
.set FRAME3, 0x402000
.set FRAME4, 0x403000
.set FRAME5, 0x404000
.set PORT_DMA_ADDRESS, 0xf8  # image-runner's device: where it writes,
.set PORT_DMA_VALUE, 0xfc    # and what, 32 bits
.set ROUNDS, 100
.set SUM, ROUNDS * (ROUNDS + 1) / 2

    .code16
    .globl _start
_start:
    cli
    xorw %ax, %ax
    movw %ax, %ds
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
    movl $PML4, %edi
    xorl %eax, %eax
    movl $0x4000 / 4, %ecx
    rep stosl
    movl $PDPT + 3, PML4
    movl $PD + 3, PDPT
    movl $0x83, %eax
    movl $PD, %edi
    movl $32, %ecx                       # 64 MiB
1:  movl %eax, (%edi)
    addl $0x200000, %eax
    addl $8, %edi
    loop 1b
    movl $PT + 3, PD + 8
    movl $FRAME5 + 3, PT + 8 * 8
    movl $FRAME5 + 3, PT + 9 * 8
    movl %cr4, %eax
    orl $0x20, %eax
    movl %eax, %cr4
    movl $PML4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x900, %eax                     # LME, NXE
    wrmsr
    movl %cr0, %eax
    orl $0x80010000, %eax
    movl %eax, %cr0
    ljmpl $KCODE, $long

    .code64
# frame \page of the window: frame \to
.macro map page, to, bits=3
    movl $\to + \bits, PT + 8 * \page
    invlpg WINDOW + 4096 * \page
.endm
# at \address: mov $\value, %eax; ret
.macro constant address, value
    movb $0xb8, \address
    movl $\value, \address + 1
    movb $0xc3, \address + 5
.endm

long:
    movw $KDATA, %ax
    movw %ax, %ss
    movl $STACK, %esp
    lidt idt_pointer
    movl $page_fault, %eax
    movl $IDT + 14 * 16, %edi
    movw %ax, (%rdi)
    movw $KCODE, 2(%rdi)
    movw $0x8e00, 4(%rdi)
    shrl $16, %eax
    movw %ax, 6(%rdi)

    # --- in its own block: a store changes the next instruction's immediate ---
    movl $ROUNDS, %ebp
1:  movl %ebp, 2f + 1(%rip)
2:  movl $0x11223344, %eax
    must_equal 1, %ebp, %eax
    decl %ebp
    jnz 1b
    # behind a jump; the code before itself; and by a string instruction
    movl $ROUNDS, %ebp
1:  movl %ebp, 2f + 1(%rip)
    jmp 2f
2:  movl $0x11223344, %eax
    must_equal 2, %ebp, %eax
    decl %ebp
    jnz 1b
    movl $ROUNDS, %ebp
    xorl %edx, %edx
1:  movl $1, %ecx
    addl %ecx, %edx
    incl 1b + 1(%rip)
    decl %ebp
    jnz 1b
    must_equal 3, $SUM, %edx
    movl $ROUNDS, %ebp
1:  movl %ebp, %eax
    leaq 2f + 1(%rip), %rdi
    movl $4, %ecx
    rep stosb
2:  movl $0x11223344, %eax
    movzbl %bpl, %ecx
    imull $0x01010101, %ecx, %ecx
    must_equal 4, %ecx, %eax
    decl %ebp
    jnz 1b
    # the target of a direct call that has been linked
    movl $ROUNDS, %ebp
1:  leaq four(%rip), %rax
    leaq five(%rip), %rcx
    testb $1, %bpl
    cmovnzq %rcx, %rax
    leaq 3f(%rip), %rcx
    subq %rcx, %rax
    movl %eax, 2f + 1(%rip)
2:  call four
3:  movl %ebp, %ecx
    andl $1, %ecx
    addl $4, %ecx
    must_equal 5, %ecx, %eax
    decl %ebp
    jnz 1b

    # --- another page at the same address, made known by INVLPG ---
    constant FRAME1, 1
    constant FRAME2, 2
    movl $ROUNDS, %ebp
1:  map 0, FRAME1
    movl $WINDOW, %ebx
    call *%rbx
    must_equal 10, $1, %eax
    map 0, FRAME2
    call *%rbx
    must_equal 11, $2, %eax
    movl $FRAME1 + 3, PT                 # and by a load of CR3
    movq %cr3, %rax
    movq %rax, %cr3
    call *%rbx
    must_equal 12, $1, %eax
    decl %ebp
    jnz 1b
    # under the second half of an instruction
    map 0, FRAME1
    movb $0xb8, FRAME1 + 4094
    movb $0x44, FRAME1 + 4095
    movl $0xc3112233, FRAME3
    movl $0xc3556677, FRAME4
    movl $ROUNDS, %ebp
    movl $WINDOW + 4094, %ebx
1:  map 1, FRAME3
    call *%rbx
    must_equal 13, $0x11223344, %eax
    map 1, FRAME4
    call *%rbx
    must_equal 14, $0x55667744, %eax
    decl %ebp
    jnz 1b
    # that instruction's bytes change, in either page
    movl $ROUNDS, %ebp
1:  movl %ebp, %eax
    movb %al, FRAME1 + 4095
    call *%rbx
    movzbl %bpl, %ecx
    orl $0x55667700, %ecx
    must_equal 15, %ecx, %eax
    movl %ebp, %eax
    movb %al, FRAME4 + 2
    call *%rbx
    movzbl %bpl, %ecx
    movl %ecx, %edx
    shll $24, %edx
    orl %edx, %ecx
    orl $0x00667700, %ecx
    must_equal 16, %ecx, %eax
    movb $0x55, FRAME4 + 2
    decl %ebp
    jnz 1b

    # --- one page at two addresses, written at a third ---
    movb $0xc3, FRAME5 + 5
    movl $ROUNDS, %ebp
1:  movb $0xb8, FRAME5
    movl %ebp, FRAME5 + 1
    movl $ALIAS, %ebx
    call *%rbx
    must_equal 20, %ebp, %eax
    movl $ALIAS2, %ebx
    call *%rbx
    must_equal 21, %ebp, %eax
    notl ALIAS2 + 1
    movl $ALIAS, %ebx
    call *%rbx
    notl %eax
    must_equal 22, %ebp, %eax
    decl %ebp
    jnz 1b

    # --- DMA into code ---
    constant FRAME5 + 64, 0
    movl $ROUNDS, %ebp
    movl $ALIAS + 64, %ebx
1:  call *%rbx
    movl $FRAME5 + 65, %eax
    movw $PORT_DMA_ADDRESS, %dx
    outl %eax, %dx
    movl %ebp, %eax
    movw $PORT_DMA_VALUE, %dx
    outl %eax, %dx
    call *%rbx
    must_equal 30, %ebp, %eax
    decl %ebp
    jnz 1b

    # --- fetches that fault: the first page, the second one, one that may not execute ---
    movl $ROUNDS, %ebp
    movl $WINDOW + 4094, %ebx
1:  map 1, FRAME3, 2                     # not present
    movl $FRAME4 + 3, repair
    movl $PT + 8, repair_at
    call *%rbx
    shrl $8, %eax
    must_equal 40, $0x556677, %eax
    mem_equal 41, $WINDOW + 4096, faulted_at
    mem_equal 42, $WINDOW + 4094, faulted_rip
    movl $0x80000000, PT + 4             # NX
    invlpg WINDOW
    movl $FRAME1 + 3, repair
    movl $PT, repair_at
    call *%rbx
    mem_equal 43, $WINDOW + 4094, faulted_at
    mem_equal 44, $0x11, faulted_error  # a fetch, of a page that is there
    decl %ebp
    jnz 1b
    exit_with 0

four:
    movl $4, %eax
    ret
five:
    movl $5, %eax
    ret

# Notes what there is to note, writes repair to repair_at, and goes on.
page_fault:
    pushq %rax
    pushq %rcx
    movq %cr2, %rax
    movl %eax, faulted_at
    movl 16(%rsp), %ecx
    movl %ecx, faulted_error
    movl 24(%rsp), %ecx
    movl %ecx, faulted_rip
    movl repair_at, %ecx
    movl repair, %eax
    movl %eax, (%rcx)
    movl $0, 4(%rcx)
    movq %cr2, %rax
    invlpg (%rax)
    popq %rcx
    popq %rax
    addq $8, %rsp
    iretq

    .balign 8
repair:      .long 0
repair_at:   .long 0
faulted_at:  .long 0
faulted_error: .long 0
faulted_rip: .long 0

    .balign 8
gdt:
    .quad 0
    descriptor 0, 0xfffff, 0x9b, 0xa
    descriptor 0, 0xfffff, 0x93, 0xc
    descriptor 0, 0xfffff, 0x9b, 0xc
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt
idt_pointer:
    .word 16 * 16 - 1
    .quad IDT
