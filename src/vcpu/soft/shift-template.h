/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Shifts and rotates for one operand size; shift.c includes this, see alu-template.h. */
#define F(name) PASTE(name##_, BITS)
#define GET PASTE(get, BITS)
#define SET PASTE(set, BITS)
#define SIZE (BITS / 8)

/*
 * The host does it with the guest's flags loaded: a count of 0 leaves them, rotates leave
 * all but CF and OF, and what is undefined comes out as on the host.
 */
#define SHIFT_CORE(name, insn)                                                                     \
    static ALWAYS_INLINE T F(name##_do)(SoftCpu * cpu, T d, uint8_t count)                         \
    {                                                                                              \
        uint32_t f = cpu->arith;                                                                   \
        __asm__(FLAGS_RESTORE insn Q " %%cl, %0\n\t" FLAGS_SAVE                                    \
                : "+" RC(d), "+a"(f)                                                               \
                : "c"(count)                                                                       \
                : "cc");                                                                           \
        cpu->arith = (uint16_t)f;                                                                  \
        return d;                                                                                  \
    }

/* @form: i or c; @count: where the count comes from. */
#define SHIFT_FORM(name, form, count)                                                              \
    static void F(name##_r##form)(SoftCpu * cpu, const SoftOp *op)                                 \
    {                                                                                              \
        SET(cpu, op->rm, F(name##_do)(cpu, GET(cpu, op->rm), (uint8_t)(count)));                   \
        SOFT_NEXT(cpu, op);                                                                        \
    }                                                                                              \
    static COLD void F(name##_m##form##_slow)(SoftCpu * cpu, const SoftOp *op)                     \
    {                                                                                              \
        T *p = slow_rmw(cpu, op, &cpu->rmw, SIZE, false);                                               \
        *p = F(name##_do)(cpu, *p, (uint8_t)(count));                                              \
        soft_rmw_end(cpu, &cpu->rmw);                                                                   \
        SOFT_NEXT_STORED(cpu, op);                                                                 \
    }                                                                                              \
    static void F(name##_m##form)(SoftCpu * cpu, const SoftOp *op)                                 \
    {                                                                                              \
        T *p;                                                                                      \
        if (!fast_write(cpu, op, SIZE, &p))                                                        \
            return F(name##_m##form##_slow)(cpu, op);                                              \
        *p = F(name##_do)(cpu, *p, (uint8_t)(count));                                              \
        SOFT_NEXT(cpu, op);                                                                        \
    }

#define SHIFT(name)                                                                                \
    SHIFT_CORE(name, #name)                                                                        \
    SHIFT_FORM(name, i, op->imm)                                                                   \
    SHIFT_FORM(name, c, cpu->gpr[GPR_RCX])

SHIFT(rol)
SHIFT(ror)
SHIFT(rcl)
SHIFT(rcr)
SHIFT(shl)
SHIFT(shr)
SHIFT(sar)

#if BITS > 8
#define DOUBLE_SHIFT(name)                                                                         \
    static ALWAYS_INLINE T F(name##_do)(SoftCpu * cpu, T d, T s, uint8_t count)                    \
    {                                                                                              \
        uint32_t f = cpu->arith;                                                                   \
        __asm__(FLAGS_RESTORE #name Q " %%cl, %3, %0\n\t" FLAGS_SAVE                               \
                : "+r"(d), "+a"(f)                                                                 \
                : "c"(count), "r"(s)                                                               \
                : "cc");                                                                           \
        cpu->arith = (uint16_t)f;                                                                  \
        return d;                                                                                  \
    }                                                                                              \
    static void F(name##_r)(SoftCpu * cpu, const SoftOp *op)                                       \
    {                                                                                              \
        uint8_t count = op->sub ? (uint8_t)cpu->gpr[GPR_RCX] : (uint8_t)op->imm;                   \
        SET(cpu, op->rm, F(name##_do)(cpu, GET(cpu, op->rm), GET(cpu, op->reg), count));           \
        SOFT_NEXT(cpu, op);                                                                        \
    }                                                                                              \
    static void F(name##_m)(SoftCpu * cpu, const SoftOp *op)                                       \
    {                                                                                              \
        uint8_t count = op->sub ? (uint8_t)cpu->gpr[GPR_RCX] : (uint8_t)op->imm;                   \
        T *p = slow_rmw(cpu, op, &cpu->rmw, SIZE, false);                                               \
        *p = F(name##_do)(cpu, *p, GET(cpu, op->reg), count);                                      \
        soft_rmw_end(cpu, &cpu->rmw);                                                                   \
        SOFT_NEXT_STORED(cpu, op);                                                                 \
    }

DOUBLE_SHIFT(shld)
DOUBLE_SHIFT(shrd)
#undef DOUBLE_SHIFT
#endif

#undef SHIFT_CORE
#undef SHIFT_FORM
#undef SHIFT
#undef F
#undef GET
#undef SET
#undef SIZE
#undef BITS
#undef T
#undef Q
#undef RC
