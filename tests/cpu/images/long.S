# SPDX-License-Identifier: LGPL-2.1-or-later
# 64-bit mode: the way there from real mode and back, exceptions and their error codes, paging with
# every right and page size, system calls, debug traps, compatibility mode.
.include "common.inc"

.set PML4,     0x100000
.set PDPT,     0x101000
.set PD,       0x102000
.set PT,       0x103000      # 4 KiB pages of 0x200000-0x3fffff
.set PML4_B,   0x104000      # a second address space, differing in one page
.set PDPT_B,   0x105000
.set PD_B,     0x106000
.set PT_B,     0x107000
.set STACK,    0x7000
.set STACK_IST, 0x6000
.set STACK_RSP0, 0x5000
.set STACK_USER, 0x320000

.set USER, 0x321000          # where code for CPL 3 is copied

.set KCODE, 0x08
.set KDATA, 0x10
.set CODE32, 0x18
.set UCODE32, 0x20 | 3
.set UDATA, 0x28 | 3
.set UCODE, 0x30 | 3
.set TSS, 0x38
.set ABSENT, 0x48
.set CODE16, 0x50
.set DATA16, 0x58

.set KPAGE,  0x200000        # kernel, writable
.set RPAGE,  0x201000        # kernel, read only
.set UPAGE,  0x202000        # user, writable
.set URPAGE, 0x203000        # user, read only
.set NOPAGE, 0x204000        # absent
.set NXPAGE, 0x205000        # kernel, no execute
.set UNXPAGE, 0x206000       # user, no execute
.set RSVPAGE, 0x207000       # reserved bit set
.set AWPAGE, 0x208000        # two adjacent kernel pages,
.set AWPAGE2, 0x209000       # the second mapped elsewhere
.set SWPAGE, 0x20a000        # differs between the two address spaces

    .code16
    .globl _start
_start:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw $STACK, %sp
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
    call build_tables
    movl $user_code, %esi
    movl $USER, %edi
    movl $user_code_end - user_code, %ecx
    rep movsb
    movl %cr4, %eax
    orl $0x20, %eax               # PAE
    movl %eax, %cr4
    movl $PML4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x901, %eax              # NXE, LME, SCE
    wrmsr
    movl %cr0, %eax
    orl $0x80010000, %eax         # PG, WP
    movl %eax, %cr0
    movl $0xc0000080, %ecx
    rdmsr
    testl $0x400, %eax            # LMA
    jnz 1f
    fail 1
1:  ljmpl $KCODE, $long_mode

# Tables: 0-2 MiB by a large page for the supervisor, 2-4 MiB by PT, 1 GiB page at 1 GiB.
build_tables:
    movl $PML4, %edi
    xorl %eax, %eax
    movl $0x2000, %ecx
    cld
    rep stosl
    movl $PDPT + 7, PML4
    movl $PD + 7, PDPT
    movl $0x83 + 0x40000000, PDPT + 8    # 1 GiB page, present and writable; beyond RAM in part
    movl $0x83, PDPT + 8                 # ... at physical 0
    movl $0x83, PD
    movl $PT + 7, PD + 8
    movl $PDPT_B + 7, PML4_B
    movl $PD_B + 7, PDPT_B
    movl $0x83, PD_B
    movl $PT_B + 7, PD_B + 8
    movl $PT, %edi
    movl $0x200000 + 7, %eax
    movl $512, %ecx
2:  movl %eax, (%edi)
    movl %eax, PT_B - PT(%edi)
    addl $8, %edi
    addl $0x1000, %eax
    loop 2b
    movl $KPAGE + 3, PT
    movl $RPAGE + 1, PT + 8
    movl $UPAGE + 7, PT + 16
    movl $URPAGE + 5, PT + 24
    movl $0, PT + 32
    movl $NXPAGE + 3, PT + 40
    movl $0x80000000, PT + 44
    movl $UNXPAGE + 7, PT + 48
    movl $0x80000000, PT + 52
    movl $RSVPAGE + 3, PT + 56
    movl $0x00080000, PT + 60            # physical address bit 51
    movl $AWPAGE + 3, PT + 64
    movl $0x300000 + 3, PT + 72          # AWPAGE2 is not what follows in memory
    movl $0x301000 + 3, PT + 80
    movl $0x302000 + 3, PT_B + 80
    movl $0xaaaa, 0x301000
    movl $0xbbbb, 0x302000
    ret

    .code64
# Expects the instruction to raise @vector with @error, RIP at the instruction.
.macro expect code, vector, error, insn:vararg
    movl $0xffff, got_vector
    leaq .Lresume\@(%rip), %r15
    movq %rsp, %r14
.Lat\@:
    \insn
    fail \code
.Lresume\@:
    leaq .Lat\@(%rip), %r10
    movl $\code, check_code
    movl $\vector, %r8d
    movl $\error, %r9d
    call check_fault
.endm

# The same for code at @label, run at CPL 3 (RIP is to be @label).
.macro expect_user code, vector, error, label
    movl $0xffff, got_vector
    leaq .Lresume\@(%rip), %r15
    movq %rsp, %r14
    pushq $UDATA
    pushq $STACK_USER
    pushq user_flags
    pushq $UCODE
    pushq $\label
    iretq
.Lresume\@:
    movq $\label, %r10
    movl $\code, check_code
    movl $\vector, %r8d
    movl $\error, %r9d
    call check_fault
.endm

check_fault:
    cmpl %r8d, got_vector
    jne 1f
    cmpl %r9d, got_error
    jne 1f
    cmpq %r10, got_rip
    jne 1f
    ret
1:  movl check_code, %eax
    movw $PORT_EXIT, %dx
    outl %eax, %dx
    hlt

.macro expect_cr2 code, address
    movq %cr2, %rax
    movq $\address, %rbx
    must_equal \code, %rbx, %rax
.endm

long_mode:
    movw $KDATA, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movq $STACK, %rsp
    call build_idt
    lidt idt_pointer
    movw $TSS, %ax
    ltr %ax
    strw %ax
    must_equal 2, $TSS, %ax
    # a TSS that is busy cannot be loaded
    movw $TSS, %bx
    expect 3, 13, TSS, ltr %bx

    # --- exceptions and their error codes ---
    expect 10, 6, 0, ud2
    xorl %ebx, %ebx
    expect 11, 0, 0, divl %ebx
    movw $0x1000, %bx
    expect 12, 13, 0x1000, movw %bx, %ds
    movw $ABSENT, %bx
    expect 13, 11, ABSENT, movw %bx, %ds
    expect 14, 12, ABSENT, movw %bx, %ss
    movq $0x800000000000, %rbx
    expect 15, 13, 0, movq (%rbx), %rcx
    movq %rbx, %rbp
    expect 16, 12, 0, movq (%rbp), %rcx
    movq $0x100000000, %rbx
    expect 18, 13, 0, movq %rbx, %cr0
    movq $0x80000000, %rbx
    expect 19, 13, 0, movq %rbx, %cr0
    movl $0x12345678, %ecx
    expect 20, 13, 0, rdmsr
.ifndef BASIC
    expect 21, 11, (0x90*8+2), int $0x90
    expect 22, 13, (0x91*8+2), int $0x91
    # int3 is a trap: RIP is the next instruction's
    movl $0xffff, got_vector
    leaq 1f(%rip), %r15
    movq %rsp, %r14
    int3
1:  mem_equal 23, $3, got_vector
    leaq 1b(%rip), %rax
    must_equal 24, %rax, got_rip

.endif
    # --- page faults ---
    expect 30, 14, 0, movl NOPAGE, %ebx
    expect_cr2 31, NOPAGE
    expect 32, 14, 2, movl %ebx, NOPAGE + 8
    expect_cr2 33, NOPAGE + 8
    expect 34, 14, 3, movl %ebx, RPAGE
    expect 35, 14, 9, movl RSVPAGE, %ebx
.ifdef BASIC
    exit_with 0
.endif
    movq %cr0, %rax
    andl $~0x10000, %eax
    movq %rax, %cr0
    movl $77, RPAGE
    mem_equal 36, $77, RPAGE
    orl $0x10000, %eax
    movq %rax, %cr0
    expect 37, 14, 3, movl %ebx, RPAGE
    expect_user 38, 14, 5, user_read_kernel
    expect_user 39, 14, 7, user_write_read_only
    expect_user 40, 14, 4, user_read_absent
    expect_user 41, 14, 13, user_read_reserved
    expect_user 42, 13, 0, user_hlt
    expect_user 43, 13, (0x91*8+2), user_int
    expect_user 44, 13, 0, user_cli
    expect_user 45, 13, 0, user_in
    # no execute
    movq $NXPAGE, %rbx
    movb $0xc3, (%rbx)
    movl $0xffff, got_vector
    leaq 1f(%rip), %r15
    movq %rsp, %r14
    call *%rbx
    fail 46
1:  mem_equal 47, $14, got_vector
    mem_equal 48, $0x11, got_error
    expect_user 49, 14, 0x15, UNXPAGE
    # accessed and dirty bits
    movl PT + 16, %eax
    andl $~0x60, PT + 16
    invlpg UPAGE
    movl UPAGE, %ebx
    movl PT + 16, %eax
    andl $0x60, %eax
    must_equal 50, $0x20, %eax
    movl %ebx, UPAGE
    movl PT + 16, %eax
    andl $0x60, %eax
    must_equal 51, $0x60, %eax
    # a new mapping after INVLPG
    movl $0x1234, 0x310000
    movl PT + 16, %eax
    movl $0x310000 + 7, PT + 16
    invlpg UPAGE
    mem_equal 52, $0x1234, UPAGE
    movl %eax, PT + 16
    invlpg UPAGE
    # the 1 GiB page shows the same memory
    movq $0x40000000 + 0x310000, %rbx
    mem_equal 53, $0x1234, (%rbx)

    # --- accesses across pages that are not adjacent ---
    movq $0x1122334455667788, %rbx
    movq %rbx, AWPAGE + 0xffd
    mem_equal 60, $0x22334455, 0x300000
    movq AWPAGE + 0xffd, %rcx
    must_equal 61, %rbx, %rcx
    lock xaddq %rbx, AWPAGE + 0xffc
    lock addl $1, AWPAGE + 0xffe
    # the second page absent: nothing is written
    movl PT + 72, %eax
    movl $0, PT + 72
    invlpg AWPAGE2
    movl $0, AWPAGE + 0xffc
    expect 62, 14, 2, movq %rbx, AWPAGE + 0xffc
    expect_cr2 63, AWPAGE2
    mem_equal 64, $0, AWPAGE + 0xffc
    movl $0x300003, PT + 72

    # --- SMEP and SMAP ---
    movq %cr4, %rax
    orl $0x300000, %eax
    movq %rax, %cr4
    movl $0xffff, got_vector
    leaq 1f(%rip), %r15
    movq %rsp, %r14
    stac
    movb $0xc3, UPAGE
    clac
    movq $UPAGE, %rbx
    call *%rbx
    fail 70
1:  mem_equal 71, $14, got_vector
    mem_equal 72, $0x11, got_error
    expect 73, 14, 1, movl UPAGE, %ebx
    expect 74, 14, 3, movl %ebx, UPAGE
    stac
    movl UPAGE, %ebx
    movl %ebx, UPAGE
    clac
    movq %cr4, %rax
    andl $~0x300000, %eax
    movq %rax, %cr4
    movl UPAGE, %ebx

    # --- UMIP, alignment ---
    movq %cr4, %rax
    orl $0x800, %eax
    movq %rax, %cr4
    expect_user 80, 13, 0, user_sgdt
    movq %cr4, %rax
    andl $~0x800, %eax
    movq %rax, %cr4
    movq %cr0, %rax
    orl $0x40000, %eax
    movq %rax, %cr0
    movq $0x40002, user_flags
    expect_user 81, 17, 0, user_unaligned
    movq $2, user_flags

    # --- PCID ---
    movq %cr4, %rax
    orl $0x20000, %eax
    movq %rax, %cr4
    mem_equal 90, $0xaaaa, SWPAGE
    movq $PML4_B + 1, %rax
    movq %rax, %cr3
    mem_equal 91, $0xbbbb, SWPAGE
    movq $PML4, %rax
    btsq $63, %rax
    movq %rax, %cr3
    mem_equal 92, $0xaaaa, SWPAGE
    movl $0x302000 + 3, PT + 80
    movq $0, invpcid_descriptor
    movq $SWPAGE, invpcid_descriptor + 8
    xorl %eax, %eax
    invpcid invpcid_descriptor, %rax
    mem_equal 93, $0xbbbb, SWPAGE
    movl $0x301000 + 3, PT + 80
    movq $PML4, %rax
    movq %rax, %cr3
    mem_equal 94, $0xaaaa, SWPAGE
    movq %cr4, %rax
    andl $~0x20000, %eax
    movq %rax, %cr4

    # --- double fault: #PF's gate is absent ---
    andb $0x7f, idt + 14 * 16 + 5
    movl $0xffff, got_vector
    leaq 1f(%rip), %r15
    movq %rsp, %r14
    movl NOPAGE, %eax
    fail 100
1:  mem_equal 101, $8, got_vector
    mem_equal 102, $0, got_error
    # it came on its own stack
    movq got_rsp, %rax
    must_equal 103, $(STACK_IST-40), %rax
    orb $0x80, idt + 14 * 16 + 5

    # --- SYSCALL and SYSRET ---
    movl $0xc0000081, %ecx
    xorl %eax, %eax
    movl $0x00200008, %edx               # SYSRET base 0x20, SYSCALL base 0x08
    wrmsr
    movl $0xc0000082, %ecx
    movl $syscall_entry, %eax
    xorl %edx, %edx
    wrmsr
    movl $0xc0000084, %ecx
    movl $0x500, %eax                    # TF and DF are cleared
    wrmsr
    movq %rsp, %r14
    pushq $UDATA
    pushq $STACK_USER
    pushq $0x402
    pushq $UCODE
    pushq $user_syscall
    iretq
syscall_done:
    movq %r14, %rsp
    must_equal 110, $user_after_syscall, %rcx
    movl %r11d, %eax
    must_equal 111, $0x402, %eax
    movw %cs, %ax
    must_equal 112, $KCODE, %ax
    movw %ss, %ax
    must_equal 113, $KDATA, %ax

    # --- SWAPGS and the segment bases ---
    movl $0xc0000101, %ecx
    movl $0x301000, %eax
    xorl %edx, %edx
    wrmsr
    movl $0xc0000102, %ecx
    movl $0x302000, %eax
    wrmsr
    movl $0x301000 + 3, PT + 0x101 * 8
    movl $0x302000 + 3, PT + 0x102 * 8
    mem_equal 120, $0xaaaa, %gs:0
    swapgs
    mem_equal 121, $0xbbbb, %gs:0
    swapgs
    movq %cr4, %rax
    btsq $16, %rax
    movq %rax, %cr4
    rdgsbase %rax
    must_equal 122, $0x301000, %rax

    # --- debug traps ---
    movl $0xffff, got_vector
    leaq 2f(%rip), %r15
    movq %rsp, %r14
    pushfq
    orl $0x100, (%rsp)
    popfq
1:  nop
    nop
    fail 130
2:  mem_equal 131, $1, got_vector
    leaq 1b + 1(%rip), %rax
    must_equal 132, %rax, got_rip
    movq %db6, %rax
    andl $0xe00f, %eax
    must_equal 133, $0x4000, %eax
    xorl %eax, %eax
    movq %rax, %db6
    # a write watchpoint on UPAGE, 4 bytes, by DR0: a trap after the instruction
    movq $UPAGE + 4, %rax
    movq %rax, %db0
    movl $0x000d0401, %eax
    movq %rax, %db7
    movl UPAGE + 4, %ebx
    movl $1, UPAGE
    movl $0xffff, got_vector
    leaq 2f(%rip), %r15
    movl $5, UPAGE + 4
1:  fail 134
2:  mem_equal 135, $1, got_vector
    leaq 1b(%rip), %rax
    must_equal 136, %rax, got_rip
    mem_equal 137, $5, UPAGE + 4
    movq %db6, %rax
    andl $0xf, %eax
    must_equal 138, $1, %eax
    # an execution breakpoint is a fault
    leaq 1f(%rip), %rax
    movq %rax, %db1
    xorl %eax, %eax
    movq %rax, %db6
    movl $0x00000404, %eax
    movq %rax, %db7
    movl $0xffff, got_vector
    leaq 2f(%rip), %r15
    nop
1:  incl %ebx
    fail 139
2:  mem_equal 140, $1, got_vector
    leaq 1b(%rip), %rax
    must_equal 141, %rax, got_rip
    movq %db6, %rax
    andl $0xf, %eax
    must_equal 142, $2, %eax
    movl $0x400, %eax
    movq %rax, %db7

    # --- the interrupt frame is aligned to 16 bytes, RSP comes back ---
    movq %rsp, %r13
    subq $4, %rsp
    movl $0xffff, got_vector
    leaq 1f(%rip), %r15
    movq %rsp, %r14
    ud2
1:  movq %r13, %rsp
    movq got_rsp, %rax
    andl $15, %eax
    must_equal 145, $8, %eax             # 5 words below an aligned address

    # --- compatibility mode and back ---
    movq %rsp, %r14
    pushq $KDATA
    pushq $STACK
    pushq $2
    pushq $CODE32
    pushq $compatibility
    iretq

    .code32
compatibility:
    movl $0xffffffff, %eax
    incl %eax
    jz 1f
    fail 150
1:  movl $0x12345678, %ebx
    pushl %ebx
    cmpl $STACK - 4, %esp
    je 1f
    fail 151
1:  popl %ecx
    cmpl %ebx, %ecx
    je 1f
    fail 152
1:  ljmpl $KCODE, $again64

    .code64
again64:
    movq $0x123456789abcdef0, %rax
    shrq $32, %rax
    must_equal 153, $0x12345678, %eax
    # and down to real mode
    ljmpl *down_pointer
    .code32
down:
    movl %cr0, %eax
    andl $0x7fffffff, %eax
    movl %eax, %cr0
    movl $0xc0000080, %ecx
    rdmsr
    testl $0x400, %eax
    jz 1f
    fail 160
1:  ljmpl $CODE16, $down16
    .code16
down16:
    movw $DATA16, %ax
    movw %ax, %ds
    movw %ax, %ss
    movw %ax, %es
    movl %cr0, %eax
    andl $~1, %eax
    movl %eax, %cr0
    ljmpw $0, $real
real:
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %ss
    movw $STACK, %sp
    lidtl real_idt
    movw $real_handler, 0x60 * 4
    movw $0, 0x60 * 4 + 2
    movw $0, %bx
    int $0x60
    cmpw $0x5a, %bx
    je 1f
    fail 161
1:  exit_with 0
real_handler:
    movw $0x5a, %bx
    iretw

    .code64
syscall_entry:
    # the handler's stack is the user's still; SYSRET once, then stay
    cmpl $0, syscall_count
    jne syscall_done
    incl syscall_count
    sysretq

# Every vector comes here with its number and error code on the stack.
handler:
    popq got_vector
    popq %rax
    movl %eax, got_error
    movq %rsp, got_rsp
    movq (%rsp), %rax
    movq %rax, got_rip
    movq %r15, (%rsp)
    movq $KCODE, 8(%rsp)
    movq $2, 16(%rsp)
    movq %r14, 24(%rsp)
    movq $KDATA, 32(%rsp)
    iretq

    .balign 16
stubs:
    .set i, 0
    .rept 160
    .balign 16
    .if (i != 8) && !((i >= 10) && (i <= 14)) && (i != 17)
    pushq $0
    .endif
    pushq $i
    jmp handler
    .set i, i + 1
    .endr

build_idt:
    movl $idt, %edi
    movl $stubs, %eax
    movl $160, %ecx
1:  movw %ax, (%rdi)
    movw $KCODE, 2(%rdi)
    movb $0, 4(%rdi)
    movb $0x8e, 5(%rdi)
    movl %eax, %ebx
    shrl $16, %ebx
    movw %bx, 6(%rdi)
    movq $0, 8(%rdi)
    addl $16, %eax
    addl $16, %edi
    loop 1b
    movb $1, idt + 8 * 16 + 4            # #DF on IST 1
    movb $0x0e, idt + 0x90 * 16 + 5      # absent
    movb $0x85, idt + 0x91 * 16 + 5      # no gate of 64-bit mode
    ret

# Code that runs at CPL 3: the image's own pages are the supervisor's, so it is copied to USER.
user_code:
.set user_read_kernel, USER + (. - user_code)
    movl KPAGE, %eax
.set user_write_read_only, USER + (. - user_code)
    movl %eax, URPAGE
.set user_read_absent, USER + (. - user_code)
    movl NOPAGE, %eax
.set user_read_reserved, USER + (. - user_code)
    movl RSVPAGE, %eax
.set user_hlt, USER + (. - user_code)
    hlt
.set user_int, USER + (. - user_code)
    int $0x91
.set user_cli, USER + (. - user_code)
    cli
.set user_sgdt, USER + (. - user_code)
    sgdt STACK_USER - 0x100
.set user_unaligned, USER + (. - user_code)
    movl UPAGE + 1, %eax
.set user_syscall, USER + (. - user_code)
    syscall
    syscall
.set user_after_syscall, USER + (. - user_code)
.set user_in, USER + (. - user_code)
    inb $0x80, %al
user_code_end:

    .balign 8
got_vector: .quad 0
got_error:  .quad 0
got_rip:    .quad 0
got_rsp:    .quad 0
check_code: .quad 0
user_flags: .quad 2
syscall_count: .quad 0
invpcid_descriptor: .quad 0, 0
down_pointer:
    .long down
    .word CODE32
real_idt:
    .word 0x3ff
    .long 0

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
    descriptor 0, 0xfffff, 0x13, 0xc     # 48 absent data
    descriptor 0, 0xffff, 0x9b, 0        # 50 16-bit code
    descriptor 0, 0xffff, 0x93, 0        # 58 16-bit data
gdt_pointer:
    .word . - gdt - 1
    .long gdt
    .long 0
idt_pointer:
    .word 160 * 16 - 1
    .quad idt
    .balign 16
tss:
    .long 0
    .quad STACK_RSP0, 0, 0
    .quad 0
    .quad STACK_IST, 0, 0, 0, 0, 0, 0
    .quad 0
    .word 0, 0x68
    .balign 16
idt:
    .skip 160 * 16
