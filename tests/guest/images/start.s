# SPDX-License-Identifier: LGPL-2.1-or-later
# Entry of the bare test guests: PVH (32-bit flat protected mode, paging off).
    .section .note.pvh, "a", @note
    .long 4, 4, 18              # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long _start
    .section .text.start, "ax"
    .globl _start
_start:
    mov $stack_top, %esp
    xor %ebp, %ebp
    call guest_main
1:  cli
    hlt
    jmp 1b
    .bss
    .align 16
    .skip 65536
stack_top:
