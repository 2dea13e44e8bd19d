/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A guest program that tries whether memory is what page tables say, in processes that have run long
 * enough for whatever shortcut an emulator takes then (tests/guest/mirror.py).
 */
#pragma once

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#define PAGE 4096u

/* ---- single instructions (mirror-machine.c) ---- */

enum { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI };

/* Registers before an instruction, and after it or at its fault. */
typedef struct Machine {
    uint64_t r[16];
    uint64_t flags; /* the arithmetic ones and DF */
    uint64_t rip;
    /* what became of it: */
    bool faulted;
    int signal, code;
    uint64_t address; /* si_addr */
    uint64_t error, trap;
} Machine;

void machine_init(void);
/* Executes the @n bytes at @code, which end by themselves, with the registers of @m. */
void machine_run(Machine *m, const void *code, unsigned n);
/* Memory for code; what is written there runs in machine_enter. */
extern uint8_t *machine_code;
/* Ends code at @to: back to machine_run. */
unsigned machine_end(uint8_t *to);
void machine_enter(Machine *m, const void *code);

/* ---- helpers (mirror.c) ---- */

/* Runs user code over memory for @ms milliseconds. */
void warm(unsigned ms);
double now(void);
void check_at(bool ok, const char *what, int line);
#define CHECK(condition) check_at((condition), #condition, __LINE__)
uint64_t digest(uint64_t d, const void *bytes, size_t n);
void *map_at(uint64_t at, size_t size, int protection, int flags);
uint64_t random64(uint64_t *state);

/* What an access of 8 bytes does: 0, or the signal; si_addr in *fault. */
int try_read(const volatile void *at, uint64_t *value);
int try_write(volatile void *at, uint64_t value);
extern uint64_t fault_address, fault_error;
extern int fault_code;

/* ---- cases ---- */

typedef struct Case {
    const char *name;
    void (*run)(void);
} Case;
extern const Case space_cases[], share_cases[], matrix_cases[], fuzz_cases[], thread_cases[];
