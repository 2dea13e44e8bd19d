# SPDX-License-Identifier: LGPL-2.1-or-later
# Real, protected and virtual-8086 mode: exceptions with their error codes, segment limits and rights,
# privilege changes through gates, task switches, 32-bit and PAE paging.
.include "common.inc"

.set STACK, 0x7000
.set STACK_RING0, 0x6000
.set STACK_RING3, 0x5000
.set STACK_TASK, 0x4800
.set STACK_VM86, 0x4000
.set PAGE_DIR, 0x100000
.set PAGE_TABLE, 0x101000     # 4 KiB pages of 0x400000-0x7fffff
.set PAE_PDPT, 0x102000
.set PAE_PD, 0x103000
.set PAE_PT, 0x104000         # 4 KiB pages of 0x400000-0x5fffff

.set KCODE, 0x08
.set KDATA, 0x10
.set UCODE, 0x18 | 3
.set UDATA, 0x20 | 3
.set TSS_MAIN, 0x28
.set TSS_OTHER, 0x30
.set SMALL, 0x38              # data, limit 0xfff
.set DOWN, 0x40               # expand-down data, limit 0xfff
.set RODATA, 0x48             # read-only data
.set XCODE, 0x50              # execute-only code
.set ABSENT, 0x58
.set CALL_GATE, 0x60 | 3      # to ring 0, two parameters
.set TASK_GATE, 0x68
.set CONFORMING, 0x70         # conforming code, DPL 0
.set LDT, 0x78
.set SMALL_STACK, 0x80        # stack, limit 0xfff
.set TSS_FAULT, 0x88          # the task behind the #NP gate
.set CODE16, 0x90
.set LDT_DATA, 0x04           # first entry of the LDT

    .code16
    .globl _start
_start:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw $STACK, %sp

    # --- real mode: vectors of 4 bytes, no error codes ---
    movw $real_fault, 6 * 4
    movw $0, 6 * 4 + 2
    movw $real_fault, 13 * 4
    movw $0, 13 * 4 + 2
    movw $real_fault, 0
    movw $0, 2
    movw $1f, real_resume
    movw $0, real_count
    ud2
1:  movw $2f, real_resume
    movl $0xffff, %ebx
    movw (%bx), %ax               # a word at the limit
2:  movw $3f, real_resume
    xorw %bx, %bx
    divw %bx
3:  cmpw $3, real_count
    je 1f
    fail 1
1:  cmpw $STACK, %sp
    je 1f
    fail 2
1:  movw $0x1234, %ax
    movw %ax, %fs
    movw %fs, %bx
    cmpw %ax, %bx
    je 1f
    fail 3
1:  movb $0x77, %fs:5
    movw $0x1200, %ax
    movw %ax, %gs
    cmpb $0x77, %gs:0x345
    je 1f
    fail 4
1:
    lgdtl gdt_pointer
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $KCODE, $protected
real_fault:
    incw real_count
    addw $6, %sp
    jmp *real_resume
real_resume: .word 0
real_count: .word 0

    .code32
.macro expect code, vector, error, insn:vararg
    movl $0xffff, got_vector
    movl $.Lresume\@, resume
    movl %esp, saved_esp
.Lat\@:
    \insn
    fail \code
.Lresume\@:
    movl $.Lat\@, %ebp
    movl $\code, check_code
    movl $\vector, %esi
    movl $\error, %edi
    call check_fault
.endm

# Code at @label runs at CPL 3 until it faults.
.macro expect_user code, vector, error, label
    movl $0xffff, got_vector
    movl $.Lresume\@, resume
    movl %esp, saved_esp
    pushl $UDATA
    pushl $STACK_RING3
    pushl user_flags
    pushl $UCODE
    pushl $\label
    iretl
.Lresume\@:
    movl $\label, %ebp
    movl $\code, check_code
    movl $\vector, %esi
    movl $\error, %edi
    call check_fault
.endm

check_fault:
    cmpl %esi, got_vector
    jne 1f
    cmpl %edi, got_error
    jne 1f
    cmpl %ebp, got_eip
    jne 1f
    ret
1:  movl check_code, %eax
    movw $PORT_EXIT, %dx
    outl %eax, %dx
    hlt

protected:
    movw $KDATA, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    xorl %eax, %eax
    movw %ax, %fs
    movw %ax, %gs
    movl $STACK, %esp
    call build_idt
    lidtl idt_pointer
    movw $TSS_MAIN, %ax
    ltr %ax
    movw $LDT, %ax
    lldt %ax
    sldt %bx
    must_equal 10, $LDT, %bx

    # --- segment rights and limits ---
    expect 11, 13, 0, movl %fs:0, %eax
    movw $SMALL, %ax
    movw %ax, %fs
    movl %fs:0xffc, %ebx
    expect 12, 13, 0, movl %fs:0xffd, %ebx
    expect 13, 13, 0, movb %bl, %fs:0x1000
    movw $DOWN, %ax
    movw %ax, %fs
    movl %fs:0x1000, %ebx
    expect 14, 13, 0, movl %fs:0xfff, %ebx
    movw $RODATA, %ax
    movw %ax, %fs
    movl %fs:0, %ebx
    expect 15, 13, 0, movl %ebx, %fs:0
    expect 16, 13, 0, movl %ebx, %cs:0
    movw $XCODE, %ax
    expect 17, 13, XCODE, movw %ax, %fs
    movw $ABSENT, %ax
    expect 18, 11, ABSENT, movw %ax, %fs
    expect 19, 12, ABSENT, movw %ax, %ss
    movw $RODATA, %ax
    expect 20, 13, RODATA, movw %ax, %ss
    xorl %eax, %eax
    expect 21, 13, 0, movw %ax, %ss
    movw $0x1000, %ax
    expect 22, 13, 0x1000, movw %ax, %ds
    movw $LDT_DATA, %ax
    movw %ax, %fs
    movl %fs:0, %ebx
    movw $0xc, %ax
    expect 23, 13, 0xc, movw %ax, %fs
    expect 24, 13, 0, ljmp $0, $0
    expect 25, 13, KDATA, ljmp $KDATA, $0
    expect 26, 13, ABSENT, ljmp $ABSENT, $0
    expect 27, 13, 0, ljmp $CODE16, $0x10000
    # beyond the stack's limit, with room for the exception's frame
    movl %esp, %ecx
    movw $SMALL_STACK, %ax
    movl $0xf00, %edx
    movl $0xffff, got_vector
    movl $1f, resume
    movl %esp, saved_esp
    movw %ax, %ss
    movl %edx, %esp
    movl %ss:0xffd, %ebx
    fail 28
1:  mem_equal 29, $12, got_vector
    mem_equal 30, $0, got_error

    # --- looking at descriptors ---
    movw $SMALL, %ax
    lsl %ax, %ebx
    jz 1f
    fail 31
1:  must_equal 32, $0xfff, %ebx
    lar %ax, %ebx
    jz 1f
    fail 33
1:  must_equal 34, $0x00409300, %ebx
    movw $KDATA, %ax
    lsl %ax, %ebx
    must_equal 35, $0xffffffff, %ebx
    verw %ax
    jz 1f
    fail 36
1:  movw $RODATA, %ax
    verw %ax
    jnz 1f
    fail 37
1:  verr %ax
    jz 1f
    fail 38
1:  movw $XCODE, %ax
    verr %ax
    jnz 1f
    fail 39
1:  movw $0x20, %ax
    movw $3, %bx
    arpl %bx, %ax
    jz 1f
    fail 40
1:  must_equal 41, $0x23, %ax

    # --- privilege ---
    expect_user 50, 13, 0, user_hlt
    expect_user 51, 13, (0x40*8+2), user_int
    expect_user 52, 13, 0, user_out
    expect_user 53, 13, KDATA, user_kernel_data
    mem_equal 54, $UCODE, got_cs
    movl $0x3002, user_flags             # IOPL 3
    expect_user 55, 6, 0, user_cli_ud
    movl $2, user_flags
    # a call gate: two parameters, then back by RETF
    movl %esp, saved_esp
    movl $1f, resume
    pushl $UDATA
    pushl $STACK_RING3
    pushl $2
    pushl $UCODE
    pushl $user_gate
    iretl
1:  mem_equal 56, $0x11111111, gate_first
    mem_equal 57, $0x22222222, gate_second
    mem_equal 58, $UCODE, gate_cs
    mem_equal 59, $(0x41*8+2), got_error
    mem_equal 60, $STACK_RING3, user_esp

    # --- task switches ---
    movl %esp, saved_esp
    movl $0, task_count
    lcall $TSS_OTHER, $0
    mem_equal 70, $1, task_count
    str %ax
    must_equal 71, $TSS_MAIN, %ax
    lcall $TASK_GATE, $0
    mem_equal 72, $2, task_count
    mem_equal 73, $TSS_MAIN, tss_other
    movl %cr0, %eax
    testl $8, %eax                       # CR0.TS
    jnz 1f
    fail 74
1:  clts
    ljmp $TSS_OTHER, $0
    mem_equal 75, $3, task_count
    pushfl
    popl %eax
    testl $0x4000, %eax                  # NT: jumped, not called
    jz 1f
    fail 76
1:  expect 77, 13, TSS_MAIN, ljmp $TSS_MAIN, $0
    movw $0x8500, idt + 11 * 8 + 4
    movw $TSS_FAULT, idt + 11 * 8 + 2
    # an exception through a task gate, with an error code on the new task's stack
    movw $ABSENT, %ax
    movl $0, fault_error
1:  movw %ax, %fs
    mem_equal 78, $ABSENT, fault_error
    movw %fs, %ax
    must_equal 79, $KDATA, %ax

    # --- virtual-8086 mode ---
    movl $0xffff, got_vector
    movl $1f, resume
    movl %esp, saved_esp
    pushl $0                             # GS FS DS ES SS ESP EFLAGS CS EIP
    pushl $0
    pushl $0x100
    pushl $0x200
    pushl $0
    pushl $STACK_VM86
    pushl $0x20002
    pushl $0
    pushl $vm86_code
    iretl
1:  mem_equal 80, $13, got_vector
    mem_equal 81, $vm86_cli, got_eip
    mem_equal 82, $0x1000, vm86_linear
    mov %ds, %ax
    # the segments came as the frame's, above ESP and SS
    mem_equal 83, $0x200, got_es
    mem_equal 84, $0x100, got_ds
    movl got_eflags, %eax
    testl $0x20000, %eax
    jnz 1f
    fail 85
1:  # IOPL 3: CLI works, INT goes through the IDT at ring 0
    movl $0xffff, got_vector
    movl $1f, resume
    movl %esp, saved_esp
    pushl $0
    pushl $0
    pushl $0
    pushl $0
    pushl $0
    pushl $STACK_VM86
    pushl $0x23002
    pushl $0
    pushl $vm86_int
    iretl
1:  mem_equal 86, $0x42, got_vector

    # --- 32-bit paging ---
    movl $PAGE_DIR, %edi
    xorl %eax, %eax
    movl $0x2000, %ecx
    cld
    rep stosl
    movl $0x83, PAGE_DIR                 # 0-4 MiB, supervisor
    movl $PAGE_TABLE + 7, PAGE_DIR + 4
    movl $0x400087, PAGE_DIR + 8         # 8-12 MiB shows 4-8 MiB
    movl $0x400000 + 7, PAGE_TABLE
    movl $0x401000 + 5, PAGE_TABLE + 4
    movl $0x402000 + 3, PAGE_TABLE + 8
    movl $0x00200083, PAGE_DIR + 12      # reserved bit 21 of a 4 MiB page
    movl %cr4, %eax
    orl $0x10, %eax                      # PSE
    movl %eax, %cr4
    movl $PAGE_DIR, %eax
    movl %eax, %cr3
    movl %cr0, %eax
    orl $0x80010000, %eax
    movl %eax, %cr0
    movl $0x5a5a, 0x400010
    mem_equal 90, $0x5a5a, 0x800010
    movl PAGE_TABLE, %eax
    andl $0x60, %eax
    must_equal 91, $0x60, %eax
    expect 92, 14, 0, movl 0x403000, %eax
    movl %cr2, %eax
    must_equal 93, $0x403000, %eax
    expect 94, 14, 3, movl %eax, 0x401000
    expect 95, 14, 9, movl 0xc00000, %eax
    movl $0x0098f4, 0x400100             # user code: hlt, cwtl
    expect_user 96, 13, 0, 0x400100
    expect_user 97, 14, 5, 0x402000      # fetch from the supervisor's page: no NX, no fetch bit
    movl %cr0, %eax
    andl $0x7fffffff, %eax
    movl %eax, %cr0

    # --- PAE ---
    movl $PAE_PD + 1, PAE_PDPT
    movl $0x83, PAE_PD
    movl $0x200083, PAE_PD + 8
    movl $PAE_PT + 7, PAE_PD + 16        # 4-6 MiB
    movl $0x400087, PAE_PD + 24          # 6-8 MiB shows 4-6 MiB
    movl $0x400000 + 7, PAE_PT
    movl $0x401000 + 5, PAE_PT + 8
    movl $0x402000 + 7, PAE_PT + 16
    movl $0x80000000, PAE_PT + 20        # no execute
    movl $0x403000 + 7, PAE_PT + 24
    movl $0x40000000, PAE_PT + 28        # reserved
    movl %cr4, %eax
    orl $0x20, %eax
    movl %eax, %cr4
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x800, %eax
    wrmsr
    movl $PAE_PDPT, %eax
    movl %eax, %cr3
    movl %cr0, %eax
    orl $0x80000000, %eax
    movl %eax, %cr0
    mem_equal 100, $0x5a5a, 0x600010
    expect 101, 14, 3, movl %eax, 0x401000
    expect 102, 14, 9, movl 0x403000, %eax
    expect 103, 14, 0, movl 0x404000, %eax
    expect_user 104, 14, 0x15, 0x402000
    # reserved bits of a page directory pointer: the load of CR3 fails
    movl $PAE_PDPT + 0x20, %eax
    movl $PAE_PD + 7, PAE_PDPT + 0x20
    expect 105, 13, 0, movl %eax, %cr3
    exit_with 0

handler:
    cli
    pushl %eax
    movw $KDATA, %ax
    movw %ax, %ds
    movw %ax, %es
    popl got_eax
    popl got_vector
    popl got_error
    popl got_eip
    popl got_cs
    popl got_eflags
    movl 8(%esp), %eax                   # from VM86: ESP, SS, then ES and DS
    movl %eax, got_es
    movl 12(%esp), %eax
    movl %eax, got_ds
    movw $KDATA, %ax
    movw %ax, %ss
    movl saved_esp, %esp
    pushl $2
    popfl
    movl got_eax, %eax
    jmp *resume

# The inner end of the call gate.
gate_entry:
    movl 4(%esp), %eax
    movl %eax, %ss:gate_cs
    movl 8(%esp), %eax
    movl %eax, %ss:gate_second
    movl 12(%esp), %eax
    movl %eax, %ss:gate_first
    lret $8

user_hlt: hlt
user_int: int $0x40
user_out: outb %al, $0x80
user_kernel_data: movw %cs:ring0_selector, %ds
user_cli_ud:
    ud2
user_gate:
    movw $UDATA, %ax
    movw %ax, %ds
    pushl $0x11111111
    pushl $0x22222222
    lcall $CALL_GATE, $0
    movl %esp, user_esp
    int $0x41

# The other task: counts and goes back the way it was entered.
task_entry:
    incl task_count
    pushfl
    popl %eax
    testl $0x4000, %eax
    jz 1f
    iretl
    jmp task_entry
1:  ljmp $TSS_MAIN, $0
    jmp task_entry

# The task behind vector 11: takes the error code, mends FS's image and repeats the instruction.
task_fault:
    popl fault_error
    movl $KDATA, tss_main + 0x28         # EAX of the interrupted task
    iretl
    jmp task_fault

    .code16
vm86_code:
    movw %ds, %ax                        # 0x100
    shll $4, %eax
    andl $0xffff, %eax
    movl %eax, %cs:vm86_linear
vm86_cli:
    cli
vm86_int:
    cli
    sti
    cli
    int $0x42

    .code32
    .balign 16
stubs:
    .set i, 0
    .rept 128
    .balign 16
    .if (i != 8) && !((i >= 10) && (i <= 14)) && (i != 17)
    pushl $0
    .endif
    pushl $i
    jmp handler
    .set i, i + 1
    .endr

build_idt:
    movl $idt, %edi
    movl $stubs, %eax
    movl $128, %ecx
1:  movw %ax, (%edi)
    movw $KCODE, 2(%edi)
    movw $0x8e00, 4(%edi)
    movl %eax, %ebx
    shrl $16, %ebx
    movw %bx, 6(%edi)
    addl $16, %eax
    addl $8, %edi
    loop 1b
    movb $0x8f, idt + 0x41 * 8 + 5       # a trap gate, but not for ring 3
    movb $0xee, idt + 0x42 * 8 + 5       # for ring 3
    ret

    .balign 8
got_vector: .long 0
got_error:  .long 0
got_eip:    .long 0
got_cs:     .long 0
got_eflags: .long 0
got_eax:    .long 0
got_es:     .long 0
got_ds:     .long 0
check_code: .long 0
ring0_selector: .word KDATA, 0
user_flags: .long 2
resume:     .long 0
saved_esp:  .long 0
gate_cs:    .long 0
gate_first: .long 0
gate_second: .long 0
user_esp:   .long 0
task_count: .long 0
fault_error: .long 0
vm86_linear: .long 0

.set BASE, 0x8000
    .balign 8
gdt:
    .quad 0
    descriptor 0, 0xfffff, 0x9b, 0xc                     # 08
    descriptor 0, 0xfffff, 0x93, 0xc                     # 10
    descriptor 0, 0xfffff, 0xfb, 0xc                     # 18
    descriptor 0, 0xfffff, 0xf3, 0xc                     # 20
    descriptor BASE+(tss_main-_start), 0x67, 0x89, 0     # 28
    descriptor BASE+(tss_other-_start), 0x67, 0x89, 0    # 30
    descriptor 0, 0xfff, 0x93, 4                         # 38
    descriptor 0, 0xfff, 0x97, 4                         # 40
    descriptor 0, 0xfffff, 0x91, 0xc                     # 48
    descriptor 0, 0xfffff, 0x99, 0xc                     # 50
    descriptor 0, 0xfffff, 0x13, 0xc                     # 58
    .word BASE+(gate_entry-_start), KCODE, 0xec02, 0     # 60
    .word 0, TSS_OTHER, 0x8500, 0                        # 68
    descriptor 0, 0xfffff, 0x9f, 0xc                     # 70
    descriptor BASE+(ldt-_start), 7, 0x82, 0             # 78
    descriptor 0, 0xfff, 0x93, 4                         # 80
    descriptor BASE+(tss_fault-_start), 0x67, 0x89, 0    # 88
    descriptor 0, 0xffff, 0x9b, 0                        # 90
gdt_pointer:
    .word . - gdt - 1
    .long gdt
idt_pointer:
    .word 128 * 8 - 1
    .long idt
ldt:
    descriptor 0, 0xfffff, 0x93, 0xc

    .balign 16
tss_main:
    .long 0, STACK_RING0, KDATA
    .skip 0x5a
    .word 0x68
tss_other:
    .long 0, STACK_RING0, KDATA
    .skip 0x14
    .long task_entry, 2, 0, 0, 0, 0, STACK_TASK, 0, 0, 0
    .long KDATA, KCODE, KDATA, KDATA, 0, 0, 0
    .word 0, 0x68
tss_fault:
    .long 0, STACK_RING0, KDATA
    .skip 0x14
    .long task_fault, 2, 0, 0, 0, 0, STACK_TASK - 0x200, 0, 0, 0
    .long KDATA, KCODE, KDATA, KDATA, 0, 0, 0
    .word 0, 0x68
    .balign 16
idt:
    .skip 128 * 8
