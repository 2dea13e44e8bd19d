/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Executes instructions with chosen registers, RSP included, and catches what they raise. */
#include "mirror.h"

uint8_t *machine_code;
static Machine *current;
uint64_t fault_address, fault_error;
int fault_code;

uint64_t machine_rsp_saved, machine_target, machine_out[17], machine_in[17];

/*
 * Loads registers from machine_in, jumps to machine_target; machine_leave stores them in machine_out.
 * Flags: pushed and popped on our own stack.
 */
__asm__(".text\n"
        "machine_jump:\n"
        "  push %rbx\n push %rbp\n push %r12\n push %r13\n push %r14\n push %r15\n"
        "  mov %rsp,machine_rsp_saved\n"
        "  pushq machine_in+128\n popfq\n"
        "  mov machine_in+0,%rax\n mov machine_in+8,%rcx\n mov machine_in+16,%rdx\n mov machine_in+24,%rbx\n"
        "  mov machine_in+40,%rbp\n mov machine_in+48,%rsi\n mov machine_in+56,%rdi\n"
        "  mov machine_in+64,%r8\n mov machine_in+72,%r9\n mov machine_in+80,%r10\n mov machine_in+88,%r11\n"
        "  mov machine_in+96,%r12\n mov machine_in+104,%r13\n mov machine_in+112,%r14\n mov machine_in+120,%r15\n"
        "  mov machine_in+32,%rsp\n"
        "  jmp *machine_target\n"
        ".globl machine_leave\n"
        "machine_leave:\n"
        "  mov %rax,machine_out+0\n mov %rcx,machine_out+8\n mov %rdx,machine_out+16\n mov %rbx,machine_out+24\n"
        "  mov %rsp,machine_out+32\n"
        "  mov %rbp,machine_out+40\n mov %rsi,machine_out+48\n mov %rdi,machine_out+56\n"
        "  mov %r8,machine_out+64\n mov %r9,machine_out+72\n mov %r10,machine_out+80\n mov %r11,machine_out+88\n"
        "  mov %r12,machine_out+96\n mov %r13,machine_out+104\n mov %r14,machine_out+112\n mov %r15,machine_out+120\n"
        "  mov machine_rsp_saved,%rsp\n"
        "  pushfq\n popq machine_out+128\n"
        "machine_recover:\n"
        "  cld\n"
        "  pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbp\n pop %rbx\n"
        "  ret\n");
void machine_jump(void);
void machine_leave(void);
void machine_recover(void);

#define FLAGS 0xcd5u /* CF PF AF ZF SF DF OF */

static const int greg_of[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

static void on_signal(int number, siginfo_t *info, void *context)
{
    greg_t *g = ((ucontext_t *)context)->uc_mcontext.gregs;
    Machine *m = current;
    if (!m) {
        printf("FAIL unexpected signal %d at %p, address %p\n", number, (void *)g[REG_RIP], info->si_addr);
        _exit(1);
    }
    for (unsigned i = 0; i < 16; i++)
        m->r[i] = (uint64_t)g[greg_of[i]];
    m->flags = (uint64_t)g[REG_EFL] & FLAGS;
    m->rip = (uint64_t)g[REG_RIP];
    m->faulted = true;
    m->signal = number;
    m->code = info->si_code;
    m->address = (uint64_t)info->si_addr;
    m->error = (uint64_t)g[REG_ERR];
    m->trap = (uint64_t)g[REG_TRAPNO];
    g[REG_RSP] = (greg_t)machine_rsp_saved;
    g[REG_RIP] = (greg_t)machine_recover;
    g[REG_EFL] &= ~(greg_t)FLAGS;
}

void machine_init(void)
{
    static uint8_t stack[64 << 10];
    stack_t alternate = {.ss_sp = stack, .ss_size = sizeof(stack)};
    sigaltstack(&alternate, NULL);
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    static const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE};
    for (unsigned i = 0; i < 4; i++)
        sigaction(signals[i], &action, NULL);
    machine_code = mmap((void *)0x1000000, 1 << 20, PROT_READ | PROT_WRITE | PROT_EXEC,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
}

unsigned machine_end(uint8_t *to)
{
    /* jmp *0(%rip), with the address behind it */
    static const uint8_t jump[] = {0xff, 0x25, 0, 0, 0, 0};
    uint64_t leave = (uint64_t)machine_leave;
    memcpy(to, jump, 6);
    memcpy(to + 6, &leave, 8);
    return 14;
}

void machine_enter(Machine *m, const void *code)
{
    memcpy(machine_in, m->r, sizeof(m->r));
    machine_in[16] = m->flags | 2;
    machine_target = (uint64_t)code;
    m->faulted = false;
    m->signal = m->code = 0;
    m->address = m->error = m->trap = 0;
    current = m;
    machine_jump();
    current = NULL;
    if (m->faulted)
        return;
    memcpy(m->r, machine_out, sizeof(m->r));
    m->flags = machine_out[16] & FLAGS;
    m->rip = 0;
}

/* At another place each time, so that no code is written that was executed. */
void machine_run(Machine *m, const void *code, unsigned n)
{
    static unsigned at, last;
    uint8_t *to = machine_code + at;
    if (n != last || memcmp(to, code, n) != 0) {
        at = (at + 64) % (512 << 10);
        to = machine_code + at;
        memcpy(to, code, n);
        machine_end(to + n);
        last = n;
    }
    machine_enter(m, to);
    if (m->faulted)
        m->rip -= (uint64_t)to;
}

static int try(Machine *m, const void *code, unsigned n)
{
    machine_run(m, code, n);
    fault_address = m->address;
    fault_error = m->error;
    fault_code = m->code;
    return m->faulted ? m->signal : 0;
}

int try_read(const volatile void *at, uint64_t *value)
{
    static const uint8_t load[] = {0x48, 0x8b, 0x03}; /* mov (%rbx),%rax */
    Machine m = {.r[RBX] = (uint64_t)at};
    int n = try(&m, load, sizeof(load));
    if (value)
        *value = m.r[RAX];
    return n;
}

int try_write(volatile void *at, uint64_t value)
{
    static const uint8_t store[] = {0x48, 0x89, 0x03};
    Machine m = {.r[RBX] = (uint64_t)at, .r[RAX] = value};
    return try(&m, store, sizeof(store));
}
