# SPDX-License-Identifier: LGPL-2.1-or-later
# Entry of the 64-bit guest for debuggers: PVH (32-bit, paging off) to long mode, for the first processor
# and, from 0x8000 on, for the one that INIT and SIPI start. Memory is mapped at 0 and at -2 GiB, for user
# mode too.
    .section .note.pvh, "a", @note
    .long 4, 4, 18              # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long _start

    .set CODE64, 0x08
    .set DATA, 0x10
    .set USER_DATA, 0x23
    .set USER_CODE, 0x2b
    .set TASK, 0x30

    .section .text.start, "ax"
    .code32
    .globl _start
_start:
    cld
    mov $stack_top, %esp
    mov $pml4, %eax             # present, writable, user: 7
    movl $pdpt + 7, (%eax)
    movl $pdpt + 7, 511 * 8(%eax)
    movl $pd + 7, pdpt
    movl $pd + 7, pdpt + 510 * 8
    movl $pd_apic + 3, pdpt + 3 * 8
    movl $0xfee00093, pd_apic + 503 * 8
    mov $pd, %edi
    mov $0x87, %eax             # 2 MiB pages
1:  mov %eax, (%edi)
    add $0x200000, %eax
    add $8, %edi
    cmp $pd + 4096, %edi
    jne 1b
    lgdt gdt_pointer
    call long_mode
    ljmp $CODE64, $first
long_mode:
    mov $0x6a0, %eax            # PAE, PGE, OSFXSR, OSXMMEXCPT
    mov %eax, %cr4
    mov $pml4, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx       # EFER
    rdmsr
    or $0x901, %eax             # SCE, LME, NXE
    wrmsr
    mov $0x80000033, %eax       # PG, NE, ET, MP, PE
    mov %eax, %cr0
    mov $DATA, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    ret
second32:
    mov $DATA, %eax
    mov %eax, %ds
    mov %eax, %ss
    mov $second_stack_top, %esp
    call long_mode
    ljmp $CODE64, $second

    .code64
first:
    mov $stack_top, %rsp
    xor %ebp, %ebp
    mov $task, %eax             # base and gate: all below 4 GiB
    mov %ax, gdt_task + 2
    shr $16, %eax
    mov %al, gdt_task + 4
    mov %ah, gdt_task + 7
    mov $TASK, %eax
    ltr %ax
    mov $back_from_user, %eax
    mov %ax, idt + 0x40 * 16
    movw $CODE64, idt + 0x40 * 16 + 2
    movw $0xee00, idt + 0x40 * 16 + 4
    shr $16, %eax
    mov %ax, idt + 0x40 * 16 + 6
    lidt idt_pointer
    call guest_main
1:  hlt
    jmp 1b

    .globl user_call
user_call:                      # calls the function in RDI in user mode
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, task + 4          # RSP0
    pushq $USER_DATA
    pushq $user_stack_top
    pushq $2
    pushq $USER_CODE
    pushq $user_entry
    iretq
user_entry:
    xor %ebp, %ebp
    call *%rdi
    int $0x40
back_from_user:
    mov task + 4, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
second:
    mov $second_stack_top, %rsp
    xor %ebp, %ebp
    call second_main
1:  hlt
    jmp 1b

# Copied to 0x8000.
    .globl trampoline, trampoline_end
    .code16
trampoline:
    cli
    mov %cs, %ax
    mov %ax, %ds
    lgdtl low_gdt_pointer - trampoline
    mov $0x11, %eax
    mov %eax, %cr0
    ljmpl $0x18, $second32
    .align 8
low_gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt
trampoline_end:
    .code64

    .data
    .align 8
gdt:
    .quad 0
    .quad 0x00af9b000000ffff    # 64-bit code
    .quad 0x00cf93000000ffff    # data
    .quad 0x00cf9b000000ffff    # 32-bit code
    .quad 0x00cff3000000ffff    # user data
    .quad 0x00affb000000ffff    # user code, 64 bits
gdt_task:
    .quad 0x0000890000000067, 0 # 64-bit TSS
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt
idt_pointer:
    .word 0x41 * 16 - 1
    .quad idt
    .align 8
task:
    .skip 0x68

    .bss
    .align 4096
pml4: .skip 4096
pdpt: .skip 4096
pd: .skip 4096
pd_apic: .skip 4096
idt: .skip 0x41 * 16
    .align 16
    .skip 4096
user_stack_top:
    .skip 65536
stack_top:
    .skip 65536
second_stack_top:
