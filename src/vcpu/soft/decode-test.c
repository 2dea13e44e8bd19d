/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The decoder: lengths of encodings that the GNU assembler made, what is undefined where, and
 * that no bytes whatever make it read or claim more than there is.
 */
#include <sys/mman.h>

#include "vcpu/soft/opcode-table.h"
#include "vcpu/soft/system-ops.h"

#define MODE64 (SOFT_MODE_LONG | SOFT_MODE_PROTECTED | SOFT_MODE_CODE64)
#define MODE32 (SOFT_MODE_PROTECTED | SOFT_MODE_CODE32 | SOFT_MODE_STACK32 | SOFT_MODE_FLAT)
#define MODE16 0

typedef struct Length {
    unsigned mode, length;
    const char *bytes, *text;
} Length;

static const Length lengths[] = {
    { 64, 2, "\x00\x00", "add %al,(%rax)" },
    { 64, 8, "\x47\x00\x8c\xf8\x78\x56\x34\x12", "add %r9b,0x12345678(%r8,%r15,8)" },
    { 64, 2, "\x14\x12", "adc $0x12,%al" },
    { 64, 6, "\x48\x1d\x78\x56\x34\x12", "sbb $0x12345678,%rax" },
    { 64, 4, "\x66\x35\x34\x12", "xor $0x1234,%ax" },
    { 64, 4, "\x49\x83\xfc\x7f", "cmp $0x7f,%r12" },
    { 64, 5, "\x41\x80\x3c\x24\x7f", "cmpb $0x7f,(%r12)" },
    { 64, 7, "\x66\x41\x81\x7d\x10\x34\x12", "cmpw $0x1234,0x10(%r13)" },
    { 64, 7, "\x48\xf7\xc2\x78\x56\x34\x12", "test $0x12345678,%rdx" },
    { 64, 6, "\x66\xf7\x04\x24\x34\x12", "testw $0x1234,(%rsp)" },
    { 64, 10, "\x49\xbb\xf0\xde\xbc\x9a\x78\x56\x34\x12", "mov $0x123456789abcdef0,%r11" },
    { 64, 6, "\x41\xbb\x78\x56\x34\x12", "mov $0x12345678,%r11d" },
    { 64, 5, "\x66\x41\xbb\x34\x12", "mov $0x1234,%r11w" },
    { 64, 3, "\xc6\x07\x01", "movb $1,(%rdi)" },
    { 64, 11, "\x48\xc7\x05\x44\x33\x22\x11\xff\xff\xff\xff", "movq $-1,0x11223344(%rip)" },
    { 64, 10, "\xc7\x05\x44\x33\x22\x11\xff\xff\xff\xff", "movl $-1,0x11223344(%rip)" },
    { 64, 10, "\x64\x66\xc7\x05\x44\x33\x22\x11\xff\xff", "movw $-1,%fs:0x11223344(%rip)" },
    { 64, 9, "\xa0\x88\x77\x66\x55\x44\x33\x22\x11", "movabs 0x1122334455667788,%al" },
    { 64, 10, "\x48\xa3\x88\x77\x66\x55\x44\x33\x22\x11", "movabs %rax,0x1122334455667788" },
    { 64, 6, "\x67\xa1\x44\x33\x22\x11", "addr32 mov 0x11223344,%eax" },
    { 64, 4, "\x67\x8b\x04\x8b", "mov (%ebx,%ecx,4),%eax" },
    { 64, 5, "\x4c\x8d\x54\x6c\x7f", "lea 0x7f(%rsp,%rbp,2),%r10" },
    { 64, 8, "\x48\x8d\x0c\xc5\x00\x00\x00\x00", "lea 0x0(,%rax,8),%rcx" },
    { 64, 2, "\x6a\x7f", "push $0x7f" },
    { 64, 5, "\x68\x78\x56\x34\x12", "push $0x12345678" },
    { 64, 4, "\x66\x68\x34\x12", "pushw $0x1234" },
    { 64, 2, "\x41\x57", "push %r15" },
    { 64, 3, "\x41\x8f\x00", "pop (%r8)" },
    { 64, 4, "\xc8\x34\x12\x02", "enter $0x1234,$2" },
    { 64, 3, "\xc2\x34\x12", "ret $0x1234" },
    { 64, 5, "\xe8\xfb\x0f\x00\x00", "call .+0x1000" },
    { 64, 5, "\xe9\xfb\x0f\x00\x00", "jmp .+0x1000" },
    { 64, 2, "\xeb\x00", "jmp .+2" },
    { 64, 6, "\x0f\x84\xfa\x0f\x00\x00", "jz .+0x1000" },
    { 64, 2, "\x74\x00", "jz .+2" },
    { 64, 2, "\xe3\x00", "jrcxz .+2" },
    { 64, 3, "\x67\xe3\x01", "jecxz .+4" },
    { 64, 2, "\xe2\x00", "loop .+2" },
    { 64, 4, "\x41\xff\x51\x08", "call *0x8(%r9)" },
    { 64, 3, "\x41\xff\xe4", "jmp *%r12" },
    { 64, 2, "\xff\x1a", "lcall *(%rdx)" },
    { 64, 3, "\x48\xff\x2a", "rex.W ljmp *(%rdx)" },
    { 64, 3, "\x48\xd1\xe0", "shl %rax" },
    { 64, 4, "\x48\xc1\xe0\x05", "shl $5,%rax" },
    { 64, 2, "\xd3\x21", "shl %cl,(%rcx)" },
    { 64, 5, "\x48\x0f\xa4\x03\x03", "shld $3,%rax,(%rbx)" },
    { 64, 4, "\x45\x0f\xad\xca", "shrd %cl,%r9d,%r10d" },
    { 64, 7, "\x4d\x69\xc8\x78\x56\x34\x12", "imul $0x12345678,%r8,%r9" },
    { 64, 4, "\x45\x6b\x08\x12", "imul $0x12,(%r8),%r9d" },
    { 64, 4, "\x40\x0f\xb6\xd6", "movzbl %sil,%edx" },
    { 64, 4, "\x4c\x0f\xbe\x0a", "movsbq (%rdx),%r9" },
    { 64, 3, "\x48\x63\xc8", "movslq %eax,%rcx" },
    { 64, 3, "\x49\x0f\xcf", "bswap %r15" },
    { 64, 4, "\x48\x0f\xc7\x0f", "cmpxchg16b (%rdi)" },
    { 64, 4, "\xf0\x0f\xc7\x0f", "lock cmpxchg8b (%rdi)" },
    { 64, 4, "\xf0\x0f\xc1\x03", "lock xadd %eax,(%rbx)" },
    { 64, 3, "\x66\x41\x90", "xchg %ax,%r8w" },
    { 64, 5, "\x66\x0f\x1f\x04\x00", "nopw 0x0(%rax,%rax,1)" },
    { 64, 4, "\xf3\x0f\x1e\xfa", "endbr64" },
    { 64, 2, "\xf3\x90", "pause" },
    { 64, 2, "\x0f\x0b", "ud2" },
    { 64, 5, "\x48\x0f\xba\xe0\x3f", "bt $63,%rax" },
    { 64, 8, "\x48\x0f\xab\x8a\x00\x01\x00\x00", "bts %rcx,0x100(%rdx)" },
    { 64, 5, "\x66\xf3\x0f\xbc\xc8", "tzcnt %ax,%cx" },
    { 64, 5, "\xf3\x4d\x0f\xbd\xc8", "lzcnt %r8,%r9" },
    { 64, 5, "\xf3\x48\x0f\xb8\x08", "popcnt (%rax),%rcx" },
    { 64, 6, "\xf2\x40\x0f\x38\xf0\xc6", "crc32b %sil,%eax" },
    { 64, 6, "\xf2\x48\x0f\x38\xf1\x06", "crc32q (%rsi),%rax" },
    { 64, 5, "\x4c\x0f\x38\xf1\x08", "movbe %r9,(%rax)" },
    { 64, 6, "\x66\x4c\x0f\x38\xf6\xc8", "adcx %rax,%r9" },
    { 64, 6, "\xf3\x44\x0f\x38\xf6\x08", "adox (%rax),%r9d" },
    { 64, 5, "\xc4\xe2\xe0\xf2\xc8", "andn %rax,%rbx,%rcx" },
    { 64, 5, "\xc4\xe2\x78\xf7\x0b", "bextr %eax,(%rbx),%ecx" },
    { 64, 6, "\xc4\x43\xfb\xf0\xd1\x07", "rorx $7,%r9,%r10" },
    { 64, 5, "\xc4\x42\xb3\xf6\x10", "mulx (%r8),%r9,%r10" },
    { 64, 5, "\x66\x41\x0f\xc7\xf1", "rdrand %r9w" },
    { 64, 4, "\x48\x0f\xc7\xf8", "rdseed %rax" },
    { 64, 3, "\x0f\xae\x38", "clflush (%rax)" },
    { 64, 4, "\x66\x0f\xae\x38", "clflushopt (%rax)" },
    { 64, 3, "\x0f\xae\xe8", "lfence" },
    { 64, 3, "\x0f\xae\xf0", "mfence" },
    { 64, 3, "\x0f\xae\xf8", "sfence" },
    { 64, 4, "\x48\x0f\xc3\x03", "movnti %rax,(%rbx)" },
    { 64, 2, "\xf3\xa4", "rep movsb" },
    { 64, 3, "\xf3\x48\xab", "rep stosq" },
    { 64, 3, "\x66\xf2\xaf", "repne scasw" },
    { 64, 2, "\xe4\x70", "in $0x70,%al" },
    { 64, 1, "\xef", "out %eax,%dx" },
    { 64, 2, "\xcd\x80", "int $0x80" },
    { 64, 1, "\xcc", "int3" },
    { 64, 2, "\x0f\x05", "syscall" },
    { 64, 3, "\x48\x0f\x07", "sysretq" },
    { 64, 3, "\x0f\x01\xf8", "swapgs" },
    { 64, 3, "\x0f\x01\xf9", "rdtscp" },
    { 64, 2, "\x0f\x30", "wrmsr" },
    { 64, 3, "\x0f\x20\xd8", "mov %cr3,%rax" },
    { 64, 4, "\x45\x0f\x22\xc1", "mov %r9,%cr8" },
    { 64, 3, "\x0f\x21\xfb", "mov %db7,%rbx" },
    { 64, 7, "\x0f\x01\x15\x34\x12\x00\x00", "lgdt 0x1234(%rip)" },
    { 64, 4, "\x0f\x01\x0c\x24", "sidt (%rsp)" },
    { 64, 4, "\x41\x0f\x01\x38", "invlpg (%r8)" },
    { 64, 3, "\x0f\x00\xd8", "ltr %ax" },
    { 64, 3, "\x0f\x02\xcb", "lar %bx,%ecx" },
    { 64, 2, "\x8c\xd8", "mov %ds,%eax" },
    { 64, 2, "\x8e\x00", "mov (%rax),%es" },
    { 64, 2, "\x0f\xa0", "push %fs" },
    { 64, 2, "\x0f\xa9", "pop %gs" },
    { 64, 1, "\x9c", "pushf" },
    { 64, 1, "\x9d", "popf" },
    { 64, 2, "\x48\xcf", "iretq" },
    { 64, 1, "\xcb", "lret" },
    { 64, 3, "\xca\x08\x00", "lret $8" },
    { 64, 5, "\xf3\x48\x0f\xae\xd0", "wrfsbase %rax" },
    { 64, 4, "\xf3\x0f\xc7\xf9", "rdpid %rcx" },
    { 64, 3, "\x0f\x01\xd0", "xgetbv" },
    { 64, 3, "\x0f\x01\xcb", "stac" },
    { 64, 3, "\x0f\x01\xc8", "monitor" },
    { 64, 4, "\x66\x0f\xfe\xd1", "paddd %xmm1,%xmm2" },
    { 64, 8, "\x45\x0f\x29\x89\x78\x56\x34\x12", "movaps %xmm9,0x12345678(%r9)" },
    { 64, 5, "\x66\x0f\x70\x18\x1b", "pshufd $0x1b,(%rax),%xmm3" },
    { 64, 7, "\x66\x4c\x0f\x3a\x22\xc0\x01", "pinsrq $1,%rax,%xmm8" },
    { 64, 6, "\x66\x0f\x3a\x0f\xd1\x03", "palignr $3,%xmm1,%xmm2" },
    { 64, 5, "\x66\x0f\x38\xdc\x08", "aesenc (%rax),%xmm1" },
    { 64, 4, "\xc5\xec\x58\xd9", "vaddps %ymm1,%ymm2,%ymm3" },
    { 64, 6, "\xc4\x43\xfd\x00\x08\x4e", "vpermq $0x4e,(%r8),%ymm9" },
    { 64, 5, "\xc4\xe2\xed\xb8\xd9", "vfmadd231pd %ymm1,%ymm2,%ymm3" },
    { 64, 3, "\xc5\xf8\x77", "vzeroupper" },
    { 64, 2, "\x0f\x77", "emms" },
    { 64, 2, "\xd9\xe8", "fld1" },
    { 64, 4, "\xdb\x6c\x24\x10", "fldt 0x10(%rsp)" },
    { 64, 2, "\xdf\xe0", "fnstsw %ax" },
    { 64, 1, "\x9b", "fwait" },
    { 64, 3, "\x0f\xae\x00", "fxsave (%rax)" },
    { 64, 3, "\x0f\xae\x20", "xsave (%rax)" },
    { 64, 5, "\x0f\xae\x54\x24\x04", "ldmxcsr 0x4(%rsp)" },
    { 32, 2, "\x00\x00", "add %al,(%eax)" },
    { 32, 1, "\x41", "inc %ecx" },
    { 32, 1, "\x4f", "dec %edi" },
    { 32, 1, "\x06", "push %es" },
    { 32, 1, "\x1f", "pop %ds" },
    { 32, 1, "\x60", "pusha" },
    { 32, 2, "\x66\x61", "popaw" },
    { 32, 1, "\x27", "daa" },
    { 32, 1, "\x3f", "aas" },
    { 32, 2, "\xd4\x0a", "aam $10" },
    { 32, 2, "\xd5\x07", "aad $7" },
    { 32, 2, "\x62\x03", "bound %eax,(%ebx)" },
    { 32, 2, "\x63\x03", "arpl %ax,(%ebx)" },
    { 32, 2, "\xc4\x08", "les (%eax),%ecx" },
    { 32, 6, "\xc5\x15\x78\x56\x34\x12", "lds 0x12345678,%edx" },
    { 32, 7, "\xea\xbc\x9a\x78\x56\x34\x12", "ljmp $0x1234,$0x56789abc" },
    { 32, 7, "\x9a\xbc\x9a\x78\x56\x34\x12", "lcall $0x1234,$0x56789abc" },
    { 32, 1, "\xce", "into" },
    { 32, 5, "\xa1\x78\x56\x34\x12", "mov 0x12345678,%eax" },
    { 32, 6, "\x66\xa3\x78\x56\x34\x12", "mov %ax,0x12345678" },
    { 32, 6, "\x67\x66\xc7\x00\x34\x12", "movw $0x1234,(%bx,%si)" },
    { 32, 4, "\x67\x8a\x46\x7f", "mov 0x7f(%bp),%al" },
    { 32, 5, "\x67\x8b\x89\x34\x12", "mov 0x1234(%bx,%di),%ecx" },
    { 32, 4, "\x2e\x67\x89\x05", "mov %eax,%cs:(%di)" },
    { 32, 5, "\xe9\xfb\x0f\x00\x00", "jmp .+0x1000" },
    { 32, 5, "\xe8\xfb\x0f\x00\x00", "call .+0x1000" },
    { 32, 3, "\x67\xe3\x00", "jcxz .+3" },
    { 32, 5, "\x68\x78\x56\x34\x12", "push $0x12345678" },
    { 32, 4, "\x66\x68\x34\x12", "pushw $0x1234" },
    { 32, 3, "\x0f\x20\xc0", "mov %cr0,%eax" },
    { 32, 5, "\x0f\xb2\x64\x24\x08", "lss 0x8(%esp),%esp" },
    { 32, 2, "\x67\xa4", "addr16 movsb" },
    { 32, 4, "\xc5\xed\xfe\xd9", "vpaddd %ymm1,%ymm2,%ymm3" },
    { 32, 5, "\xc4\xe2\x60\xf2\xc8", "andn %eax,%ebx,%ecx" },
    { 32, 4, "\xc8\x10\x00\x00", "enter $16,$0" },
    { 32, 1, "\x93", "xchg %eax,%ebx" },
    { 32, 5, "\xbb\x78\x56\x34\x12", "mov $0x12345678,%ebx" },
    { 32, 5, "\xa9\x78\x56\x34\x12", "test $0x12345678,%eax" },
    { 32, 2, "\x0f\x34", "sysenter" },
    { 16, 2, "\x00\x00", "add %al,(%bx,%si)" },
    { 16, 3, "\xbb\x34\x12", "mov $0x1234,%bx" },
    { 16, 6, "\x66\xbb\x78\x56\x34\x12", "mov $0x12345678,%ebx" },
    { 16, 3, "\xa1\x34\x12", "mov (0x1234),%ax" },
    { 16, 9, "\x67\x66\x89\x84\x98\x78\x56\x34\x12", "mov %eax,0x12345678(%eax,%ebx,4)" },
    { 16, 3, "\x8b\x4e\x12", "mov 0x12(%bp),%cx" },
    { 16, 5, "\xea\x5b\xe0\x00\xf0", "ljmp $0xf000,$0xe05b" },
    { 16, 8, "\x66\xea\xbc\x9a\x78\x56\x34\x12", "ljmpl $0x1234,$0x56789abc" },
    { 16, 2, "\xcd\x10", "int $0x10" },
    { 16, 3, "\xe9\xfd\x0f", "jmp .+0x1000" },
    { 16, 3, "\xe8\xfd\x0f", "call .+0x1000" },
    { 16, 4, "\x0f\x85\xfc\x0f", "jne .+0x1000" },
    { 16, 6, "\x66\x0f\x01\x16\x34\x12", "lgdtl (0x1234)" },
    { 16, 3, "\x68\x34\x12", "push $0x1234" },
    { 16, 6, "\x66\x68\x78\x56\x34\x12", "pushl $0x12345678" },
    { 16, 3, "\x66\xf3\xa5", "rep movsl" },
    { 16, 1, "\xcf", "iret" },
    { 16, 3, "\xca\x02\x00", "lret $2" },
    { 16, 3, "\x66\x31\xc0", "xor %eax,%eax" },
    { 16, 3, "\x0f\x22\xc0", "mov %eax,%cr0" },
    { 16, 2, "\xc4\x35", "les (%di),%si" },
};

static VcpuVm *vm;
static SoftCpu *cpu;

static uint32_t mode_of(unsigned bits)
{
    return bits == 64 ? MODE64 : bits == 32 ? MODE32 : MODE16;
}

static unsigned decode(unsigned bits, const void *bytes, unsigned n, SoftOp *op)
{
    bool ends;

    return soft_decode(cpu, mode_of(bits), 0x1000, bytes, n, op, &ends);
}

static void test_lengths(void)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(lengths); i++) {
        const Length *l = &lengths[i];
        uint8_t bytes[15];
        SoftOp op;

        memset(bytes, 0x90, sizeof(bytes));
        memcpy(bytes, l->bytes, l->length);
        if (decode(l->mode, bytes, sizeof(bytes), &op) != l->length)
            g_error("%u bits: %s: %u bytes, not %u", l->mode, l->text, op.length, l->length);
        if (op.handler == soft_op_undefined && !strstr(l->text, "ud2"))
            g_error("%u bits: %s is undefined", l->mode, l->text);
        g_assert_cmpuint(decode(l->mode, bytes, l->length, &op), ==, l->length);
        for (unsigned n = 0; n < l->length; n++)
            g_assert_cmpuint(decode(l->mode, bytes, n, &op), ==, 0);
    }
}

/* Encodings that must raise #UD. */
static void test_undefined(void)
{
    static const struct {
        unsigned mode;
        const char *bytes;
    } rows[] = {
        { 64, "\x06" },             /* PUSH ES in 64-bit mode */
        { 64, "\x27" },             /* DAA */
        { 64, "\x60" },             /* PUSHA */
        { 64, "\x82\xc0\x01" },     /* ADD, the alias */
        { 64, "\x9a" },             /* CALL FAR */
        { 64, "\xce" },             /* INTO */
        { 64, "\xd4\x0a" },         /* AAM */
        { 64, "\xf0\x01\xc0" },     /* LOCK ADD to a register */
        { 64, "\xf0\x03\x00" },     /* LOCK ADD from memory */
        { 64, "\xf0\x39\x00" },     /* LOCK CMP */
        { 64, "\xf0\x90" },         /* LOCK NOP */
        { 64, "\x8d\xc0" },         /* LEA of a register */
        { 64, "\x8e\xc8" },         /* MOV CS */
        { 64, "\x8e\xf0" },         /* MOV to segment register 6 */
        { 64, "\x8f\xc8" },         /* POP with another digit */
        { 64, "\xc6\xf8\x00" },     /* XABORT: no TSX */
        { 64, "\xfe\xd0" },         /* group 4, digit 2 */
        { 64, "\xff\xf8" },         /* group 5, digit 7 */
        { 64, "\xff\xd8" },         /* CALL FAR of a register */
        { 64, "\x0f\x0b" },         /* UD2 */
        { 64, "\x0f\xc7\xc8" },     /* CMPXCHG8B of a register */
        { 64, "\x66\xc4\xe2\x78\xf2\xc0" }, /* ANDN after 66 */
        { 64, "\xc4\xe2\x7c\xf2\xc0" },     /* ANDN with L = 1 */
        { 64, "\xc4\xe3\x73\xf0\xc0\x01" }, /* RORX with vvvv */
        { 64, "\x48\xc4\xe2\x78\xf2\xc0" }, /* REX before VEX */
        { 32, "\xc4\xc0" },                 /* VEX with map 0 */
        { 16, "\xc4\xe2\x78\xf2\xc0" },     /* real mode has no VEX: LES of a register */
        { 32, "\x62\xc0" },                 /* BOUND of a register */
    };
    uint8_t bytes[15];
    SoftOp op;

    for (unsigned i = 0; i < G_N_ELEMENTS(rows); i++) {
        memset(bytes, 0, sizeof(bytes));
        memcpy(bytes, rows[i].bytes, strlen(rows[i].bytes));
        decode(rows[i].mode, bytes, sizeof(bytes), &op);
        if (op.handler != soft_op_undefined)
            g_error("row %u (%02x %02x) is not undefined", i, bytes[0], bytes[1]);
    }
}

static void test_operands(void)
{
    SoftOp op;

    /* mov %rax, 0x10(%rip): the address is the next instruction's and the displacement */
    decode(64, "\x48\x89\x05\x10\0\0\0", 7, &op);
    g_assert_cmphex((uint64_t)op.disp, ==, 0x1017);
    g_assert_cmpuint(op.base, ==, SOFT_REG_NONE);
    g_assert_cmpuint(op.size, ==, 8);
    g_assert_true(op.plain);
    /* mov %fs:(%rsp), %eax */
    decode(64, "\x64\x8b\x04\x24", 4, &op);
    g_assert_cmpuint(op.seg, ==, SEG_FS);
    g_assert_false(op.plain);
    /* ds ignored in 64-bit mode; RBP as base selects SS */
    decode(64, "\x3e\x8b\x45\x00", 4, &op);
    g_assert_cmpuint(op.seg, ==, SEG_SS);
    /* mov %ah, %bh and with REX mov %spl, %dil: offsets into the registers */
    decode(64, "\x88\xe7", 2, &op);
    g_assert_cmpuint(op.reg, ==, 1);
    g_assert_cmpuint(op.rm, ==, 3 * 8 + 1);
    decode(64, "\x40\x88\xe7", 3, &op);
    g_assert_cmpuint(op.reg, ==, 4 * 8);
    g_assert_cmpuint(op.rm, ==, 7 * 8);
    /* a REX that another prefix follows does not count */
    decode(64, "\x48\x66\x01\xc0", 4, &op);
    g_assert_cmpuint(op.size, ==, 2);
    /* jmp .-2 */
    decode(16, "\xeb\xfe", 2, &op);
    g_assert_cmphex(op.imm, ==, 0x1000);
    /* xchg %r8, %rax is not NOP */
    decode(64, "\x49\x90", 2, &op);
    g_assert_cmpstr(soft_opcode_of(&op, MODE64)->mnemonic, ==, "xchg");
    decode(64, "\x90", 1, &op);
    g_assert_cmpstr(soft_opcode_of(&op, MODE64)->mnemonic, ==, "nop");
    /* mod 3 is ignored by MOV CR: a register, nothing more to read */
    g_assert_cmpuint(decode(64, "\x0f\x20\x05", 3, &op), ==, 3);
}

/* 15 bytes is the limit: 14 prefixes and NOP are one, 15 prefixes are #GP and not #UD. */
static void test_too_long(void)
{
    uint8_t bytes[16];
    SoftOp op;

    memset(bytes, 0x66, sizeof(bytes));
    bytes[14] = 0x90;
    g_assert_cmpuint(decode(64, bytes, 15, &op), ==, 15);
    g_assert_cmpstr(soft_opcode_of(&op, MODE64)->mnemonic, ==, "nop");
    bytes[14] = 0x66;
    g_assert_cmpuint(decode(64, bytes, 14, &op), ==, 0);
    g_assert_cmpuint(decode(64, bytes, 15, &op), ==, 15);
    g_assert_true(op.handler != soft_op_undefined);
}

static void test_random_bytes(void)
{
    g_autoptr(GRand) rand = g_rand_new_with_seed(1);
    static const unsigned modes[] = { 16, 32, 64 };

    for (unsigned i = 0; i < 300000; i++) {
        uint8_t *bytes;
        unsigned bits = modes[i % 3], length;
        uint32_t words[4];
        SoftOp op, again;

        for (unsigned w = 0; w < 4; w++)
            words[w] = g_rand_int(rand);
        bytes = (uint8_t *)words;
        if (i & 1)
            bytes[0] = "\x0f\x66\xf3\xf2\xc4\xc5\x48\x67"[i >> 1 & 7];
        length = decode(bits, bytes, 15, &op);
        g_assert_cmpuint(length, >=, 1);
        g_assert_cmpuint(length, <=, 15);
        g_assert_cmpuint(op.length, ==, length);
        g_assert_nonnull(op.handler);
        g_assert_cmpuint(op.base, <=, SOFT_REG_NONE);
        g_assert_cmpuint(op.index, <=, SOFT_REG_NONE);
        if (op.handler == soft_op_undefined || length == 15)
            continue;
        g_assert_cmpuint(decode(bits, bytes, length, &again), ==, length);
        g_assert_true(again.handler == op.handler);
        g_assert_cmpuint(decode(bits, bytes, length - 1, &again), ==, 0);
    }
}

/* An encoding that should decode to @row. */
static unsigned encode(const SoftOpcode *row, uint8_t *bytes)
{
    static const uint8_t prefixes[] = { 0, 0x66, 0xf3, 0xf2 };
    unsigned n = 0;

    memset(bytes, 0, 15);
    if (row->flags & OPC_VEX) {
        bytes[n++] = 0xc4;
        bytes[n++] = 0xe0 | row->map;
        bytes[n++] = 0x78 | (uint8_t)row->prefix;
    } else {
        if (row->prefix > 0)
            bytes[n++] = prefixes[row->prefix];
        if (row->map > 0)
            bytes[n++] = 0x0f;
        if (row->map > 1)
            bytes[n++] = row->map == 2 ? 0x38 : 0x3a;
    }
    bytes[n++] = row->opcode | (row->flags & OPC_OREG ? 1 : 0);
    if (row->modrm >= 0)
        bytes[n++] = (uint8_t)row->modrm;
    else if (row->flags & OPC_MODRM)
        bytes[n++] = (uint8_t)((row->flags & OPC_MEM ? 0 : 0xc0) | (row->digit > 0 ? row->digit << 3 : 0));
    return n;
}

/* Each row is what some encoding decodes to, else it stands behind another by mistake. */
static void test_rows(void)
{
    const SoftOpcodeGroup *g;
    uint8_t bytes[15];
    SoftOp op;

    for (unsigned i = 0; (g = soft_opcode_group(i)); i++) {
        for (unsigned r = 0; r < g->n_rows; r++) {
            const SoftOpcode *row = &g->rows[r];
            unsigned bits = row->flags & OPC_NO64 ? 32 : 64;

            g_assert_true((row->handler != NULL) != (row->set != NULL));
            if (row->feature && !((const bool *)&soft_features)[row->feature - 1])
                continue;
            encode(row, bytes);
            g_assert_cmpuint(decode(bits, bytes, sizeof(bytes), &op), >, 0);
            const SoftOpcode *found = soft_opcode_of(&op, mode_of(bits));
            if (found != row && !(found && found->feature)) /* a row for hosts without it */
                g_error("%s, map %u, opcode %02x is not reachable", row->mnemonic, row->map,
                        row->opcode);
        }
    }
}

int main(int argc, char **argv)
{
    static const VcpuBus bus = { 0 };
    VcpuVmConfig config = { .n_vcpus = 1, .bus = &bus };
    int status;

    g_test_init(&argc, &argv, NULL);
    vm = vcpu_engine_soft.vm_new(&config, NULL);
    cpu = (SoftCpu *)vcpu_engine_soft.vcpu_new(vm, 0, NULL);
    g_assert_nonnull(cpu);
    g_test_add_func("/decode/lengths", test_lengths);
    g_test_add_func("/decode/undefined", test_undefined);
    g_test_add_func("/decode/operands", test_operands);
    g_test_add_func("/decode/too-long", test_too_long);
    g_test_add_func("/decode/random-bytes", test_random_bytes);
    g_test_add_func("/decode/rows", test_rows);
    status = g_test_run();
    vcpu_engine_soft.vcpu_free(&cpu->vcpu);
    vcpu_engine_soft.vm_free(vm);
    return status;
}
