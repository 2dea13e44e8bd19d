# SPDX-License-Identifier: LGPL-2.1-or-later
# Interrupts and several processors: the local APIC's self-IPIs, the interrupt shadow, HLT, NMI masking,
# start-up by INIT and SIPI, locked accesses (split ones too), code modified by itself and by another
# processor.
.include "common.inc"

.set STACK, 0x7000
.set STACK_AP, 0x6000
.set APIC, 0xfee00000
.set KCODE, 0x08
.set KDATA, 0x10
.set ROUNDS, 20000

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
    ljmpl $KCODE, $protected

    .code32
.macro wait_for address, value
.Lwait\@:
    pause
    cmpl \value, \address
    jne .Lwait\@
.endm

.macro self_ipi vector
    movl $0x40000 + \vector, APIC + 0x300
.endm

protected:
    movw $KDATA, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl $STACK, %esp
    call build_idt
    lidtl idt_pointer
    movl $0x1ff, APIC + 0xf0             # enabled, spurious vector FF

    # --- an interrupt waits for IF, and for the instruction after STI ---
    self_ipi 0x40
    movl $10000, %ecx
1:  loop 1b
    mem_equal 1, $0, count_40
    xorl %ebx, %ebx
    sti
    incl %ebx                            # in the shadow of STI
    nop
    mem_equal 2, $1, count_40
    mem_equal 3, $1, ebx_at_40
    # the higher priority comes first, the lower one after EOI
    cli
    self_ipi 0x50
    self_ipi 0x61
    sti
    nop
    nop
    mem_equal 4, $1, order_61
    mem_equal 5, $2, order_50
    # HLT ends with an interrupt that is pending already, and with one that comes
    cli
    self_ipi 0x40
    sti
    hlt
    mem_equal 6, $2, count_40
    # MOV SS holds interrupts off for one instruction
    cli
    self_ipi 0x40
    movl $10000, %ecx
1:  loop 1b
    pushl $0x202
    xorl %ebx, %ebx
    movw %ss, %ax
    popfl                                # no shadow after POPF
    nop
    mem_equal 7, $3, count_40
    mem_equal 8, $0, ebx_at_40
    cli

    # --- NMI: not maskable by IF, masked until IRET ---
    movl $0x40400, APIC + 0x300
    movl $10000, %ecx
1:  loop 1b
    mem_equal 10, $2, count_nmi          # the handler sent itself another
    mem_equal 11, $0, nmi_nested

    # --- self-modifying code ---
    movl $1000, %esi
    xorl %edi, %edi
1:  movl %esi, patched + 1
patched:
    movl $0, %eax                        # its immediate was stored just before
    addl %eax, %edi
    decl %esi
    jnz 1b
    must_equal 20, $500500, %edi
    # a store into the instruction right after it
    movb $0x40, next_byte                # inc %eax
    xorl %eax, %eax
    jmp 2f
2:  movb $0x48, next_byte                # dec %eax
next_byte:
    incl %eax
    must_equal 21, $-1, %eax
    # code copied to another page, run, and overwritten
    movl $0x20000, %edi
    movl $0x00c3c031, (%edi)             # xor %eax, %eax; ret
    movl $5, %eax
    call *%edi
    must_equal 22, $0, %eax
    movl $0xc3404040, (%edi)             # inc, inc, inc, ret
    call *%edi
    must_equal 23, $3, %eax

    # --- another processor ---
    movl $ap_start, %esi
    movl $0x10000, %edi
    movl $ap_end - ap_start, %ecx
    cld
    rep movsb
    movl $0xc4500, APIC + 0x300          # INIT to all others
    movl $100000, %ecx
1:  loop 1b
    movl $0xc4610, APIC + 0x300          # SIPI: page 10H
    wait_for ap_up, $1
    # both add under LOCK: to a plain and to a split operand
    movl $1, go
    call add_rounds
    wait_for ap_done, $1
    mem_equal 30, $(ROUNDS*2), counter
    mem_equal 31, $(ROUNDS*2), (counter_split+0xffe)
    mem_equal 32, $(ROUNDS*2), counter_swap
    # an interrupt to the other one, which halts
    movl $1 << 24, APIC + 0x310
    movl $0x4070, APIC + 0x300
    wait_for count_70, $1
    # cross-modifying code: it calls a routine that this one rewrites, one value after the other
    movl $1, cross_go
    movl $1, %esi
1:  movl %esi, cross_code + 1
    wait_for cross_seen, %esi
    incl %esi
    cmpl $200, %esi
    jne 1b
    # store buffers: each reads its own store first
    exit_with 0

add_rounds:
    movl $ROUNDS, %ecx
1:  lock incl counter
    lock addl $1, (counter_split+0xffe)
2:  movl counter_swap, %eax
    leal 1(%eax), %edx
    lock cmpxchgl %edx, counter_swap
    jne 2b
    loop 1b
    ret

# Runs at 0x10000, real mode, CS 1000H.
    .code16
ap_start:
    cli
    movw %cs, %ax
    cmpw $0x1000, %ax
    jne .
    xorw %ax, %ax
    movw %ax, %ds
    lgdtl gdt_pointer
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $KCODE, $ap_protected
ap_end:
    .code32
ap_protected:
    movw $KDATA, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl $STACK_AP, %esp
    lidtl idt_pointer
    movl $0x1ff, APIC + 0xf0
    movl APIC + 0x20, %eax
    cmpl $1 << 24, %eax
    je 1f
    fail 40
1:  movl $1, ap_up
    wait_for go, $1
    call add_rounds
    movl $1, ap_done
    sti
1:  hlt
    cmpl $1, count_70
    jne 1b
    cli
    wait_for cross_go, $1
1:  call cross_code
    movl %eax, cross_seen
    jmp 1b

    .balign 4096
cross_code:
    movl $0, %eax
    ret
    .balign 4096

# --- handlers ---
handler_40:
    incl count_40
    movl %ebx, ebx_at_40
    jmp eoi
handler_50:
    incl order
    pushl order
    popl order_50
    jmp eoi
handler_61:
    incl order
    pushl order
    popl order_61
    jmp eoi
handler_70:
    incl count_70
eoi:
    movl $0, APIC + 0xb0
    iretl
handler_nmi:
    incl count_nmi
    cmpl $1, count_nmi
    jne 2f
    movl $1, nmi_inside
    pushl %ecx
    movl $0x40400, APIC + 0x300
    movl $10000, %ecx
1:  loop 1b
    popl %ecx
    movl $0, nmi_inside
    iretl
2:  pushl nmi_inside
    popl nmi_nested
    iretl
handler_bad:
    fail 99

.macro gate vector, handler
    movl $\handler, %eax
    movw %ax, idt + \vector * 8
    shrl $16, %eax
    movw %ax, idt + \vector * 8 + 6
.endm

build_idt:
    movl $idt, %edi
    movl $256, %ecx
1:  movl $handler_bad, %eax
    movw %ax, (%edi)
    movw $KCODE, 2(%edi)
    movw $0x8e00, 4(%edi)
    movw $0, 6(%edi)
    addl $8, %edi
    loop 1b
    gate 0x02, handler_nmi
    gate 0x40, handler_40
    gate 0x50, handler_50
    gate 0x61, handler_61
    gate 0x70, handler_70
    ret

    .balign 8
gdt:
    .quad 0
    descriptor 0, 0xfffff, 0x9b, 0xc
    descriptor 0, 0xfffff, 0x93, 0xc
gdt_pointer:
    .word . - gdt - 1
    .long gdt
idt_pointer:
    .word 256 * 8 - 1
    .long idt

    .balign 64
count_40:   .long 0
ebx_at_40:  .long 0
order:      .long 0
order_50:   .long 0
order_61:   .long 0
count_70:   .long 0
count_nmi:  .long 0
nmi_inside: .long 0
nmi_nested: .long 0
ap_up:      .long 0
ap_done:    .long 0
go:         .long 0
cross_go:   .long 0
cross_seen: .long 0
counter:    .long 0
counter_swap: .long 0
    .balign 4096
counter_split:
    .skip 8192
idt:
    .skip 256 * 8
