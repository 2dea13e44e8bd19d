# SPDX-License-Identifier: LGPL-2.1-or-later
# An exception without an IDT: the double fault cannot be delivered either, the processor shuts down.
.include "common.inc"
    .code16
    .globl _start
_start:
    cli
    lidtl %cs:no_idt
    ud2
    exit_with 1
no_idt:
    .word 0
    .long 0
