/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The two-operand and one-operand ALU instructions for one operand size; alu.c includes this for BITS =
 * 8, 16, 32, 64 with T (the unsigned type), Q (the mnemonic's suffix) and RC (the register constraint).
 */
#define F(name) PASTE(name##_, BITS)
#define GET PASTE(get, BITS)
#define SET PASTE(set, BITS)
#define SIZE (BITS / 8)

/*
 * d = d OP s, with the flags; CARRY is asm that makes the host's CF the guest's (ADC, SBB)
 * or nothing. The operation's own memory form is used for memory destinations.
 */
#define ALU_CORE(name, before, insn, carry)                                                        \
    static ALWAYS_INLINE T F(name##_do)(SoftCpu * cpu, T d, T s)                                   \
    {                                                                                              \
        uint32_t f = carry ? cpu->arith : 0;                                                       \
        __asm__(before insn Q " %2, %0\n\t" FLAGS_SAVE : "+" RC(d), "+a"(f) : RC(s) : "cc");       \
        cpu->arith = carry ? (uint16_t)f : f;                                                      \
        return d;                                                                                  \
    }                                                                                              \
    static ALWAYS_INLINE void F(name##_mem)(SoftCpu * cpu, T * p, T s)                             \
    {                                                                                              \
        uint32_t f = carry ? cpu->arith : 0;                                                       \
        __asm__ volatile(before insn Q " %2, %0\n\t" FLAGS_SAVE                                    \
                         : "+m"(*p), "+a"(f)                                                       \
                         : RC(s)                                                                   \
                         : "cc", "memory");                                                        \
        cpu->arith = carry ? (uint16_t)f : f;                                                      \
    }                                                                                              \
    static ALWAYS_INLINE void F(name##_locked)(SoftCpu * cpu, T * p, T s)                          \
    {                                                                                              \
        uint32_t f = carry ? cpu->arith : 0;                                                       \
        __asm__ volatile(before "lock " insn Q " %2, %0\n\t" FLAGS_SAVE                            \
                         : "+m"(*p), "+a"(f)                                                       \
                         : RC(s)                                                                   \
                         : "cc", "memory");                                                        \
        cpu->arith = carry ? (uint16_t)f : f;                                                      \
    }

ALU_CORE(add, "", "add", 0)
ALU_CORE(or, "", "or", 0)
ALU_CORE(and, "", "and", 0)
ALU_CORE(sub, "", "sub", 0)
ALU_CORE(xor, "", "xor", 0)
ALU_CORE(adc, FLAGS_RESTORE, "adc", 1)
ALU_CORE(sbb, FLAGS_RESTORE, "sbb", 1)

/* CMP and TEST have no destination. */
#define ALU_TEST(name, insn)                                                                       \
    static ALWAYS_INLINE void F(name##_do)(SoftCpu * cpu, T d, T s)                                \
    {                                                                                              \
        uint32_t f = 0;                                                                            \
        __asm__(insn Q " %2, %1\n\t" FLAGS_SAVE : "+a"(f) : RC(d), RC(s) : "cc");                  \
        cpu->arith = f;                                                                            \
    }

ALU_TEST(cmp, "cmp")
ALU_TEST(test, "test")

#define ALU_REGISTER_FORMS(name)                                                                   \
    static void F(name##_rr)(SoftCpu * cpu, const SoftOp *op)                                      \
    {                                                                                              \
        SET(cpu, op->rm, F(name##_do)(cpu, GET(cpu, op->rm), GET(cpu, op->reg)));                  \
        SOFT_NEXT(cpu, op);                                                                        \
    }                                                                                              \
    static void F(name##_ri)(SoftCpu * cpu, const SoftOp *op)                                      \
    {                                                                                              \
        SET(cpu, op->rm, F(name##_do)(cpu, GET(cpu, op->rm), (T)op->imm));                         \
        SOFT_NEXT(cpu, op);                                                                        \
    }                                                                                              \
    static COLD void F(name##_rm_slow)(SoftCpu * cpu, const SoftOp *op)                            \
    {                                                                                              \
        T s = (T)slow_read(cpu, op, SIZE);                                                         \
        SET(cpu, op->reg, F(name##_do)(cpu, GET(cpu, op->reg), s));                                \
        SOFT_NEXT(cpu, op);                                                                        \
    }                                                                                              \
    static void F(name##_rm)(SoftCpu * cpu, const SoftOp *op)                                      \
    {                                                                                              \
        const T *p;                                                                                 \
        if (!fast_read(cpu, op, SIZE, &p))                                                                          \
            return F(name##_rm_slow)(cpu, op);                                                     \
        SET(cpu, op->reg, F(name##_do)(cpu, GET(cpu, op->reg), *p));                               \
        SOFT_NEXT(cpu, op);                                                                        \
    }

/* form: mr or mi; source: where the second operand comes from. */
#define ALU_MEMORY_FORM(name, form, source)                                                        \
    static COLD void F(name##_##form##_slow)(SoftCpu * cpu, const SoftOp *op)                      \
    {                                                                                              \
        F(name##_mem)(cpu, slow_rmw(cpu, op, &cpu->rmw, SIZE, false), (T)(source));                     \
        soft_rmw_end(cpu, &cpu->rmw);                                                                   \
        SOFT_NEXT_STORED(cpu, op);                                                                 \
    }                                                                                              \
    static void F(name##_##form)(SoftCpu * cpu, const SoftOp *op)                                  \
    {                                                                                              \
        T *p;                                                                                       \
        if (!fast_write(cpu, op, SIZE, &p))                                                                          \
            return F(name##_##form##_slow)(cpu, op);                                               \
        F(name##_mem)(cpu, p, (T)(source));                                                        \
        SOFT_NEXT(cpu, op);                                                                        \
    }                                                                                              \
    static void F(name##_##form##_lock)(SoftCpu * cpu, const SoftOp *op)                           \
    {                                                                                              \
        F(name##_locked)(cpu, slow_rmw(cpu, op, &cpu->rmw, SIZE, true), (T)(source));                   \
        soft_rmw_end(cpu, &cpu->rmw);                                                                   \
        SOFT_NEXT_STORED(cpu, op);                                                                 \
    }

#define ALU(name)                                                                                  \
    ALU_REGISTER_FORMS(name)                                                                       \
    ALU_MEMORY_FORM(name, mr, GET(cpu, op->reg))                                                   \
    ALU_MEMORY_FORM(name, mi, op->imm)

ALU(add)
ALU(or)
ALU(and)
ALU(sub)
ALU(xor)
ALU(adc)
ALU(sbb)

#define ALU_COMPARE(name, form, first, second)                                                     \
    static COLD void F(name##_##form##_slow)(SoftCpu * cpu, const SoftOp *op)                      \
    {                                                                                              \
        T m = (T)slow_read(cpu, op, SIZE);                                                         \
        F(name##_do)(cpu, (T)(first), (T)(second));                                                \
        SOFT_NEXT(cpu, op);                                                                        \
    }                                                                                              \
    static void F(name##_##form)(SoftCpu * cpu, const SoftOp *op)                                  \
    {                                                                                              \
        const T *p;                                                                                 \
        T m;                                                                                       \
        if (!fast_read(cpu, op, SIZE, &p))                                                                          \
            return F(name##_##form##_slow)(cpu, op);                                               \
        m = *p;                                                                                    \
        F(name##_do)(cpu, (T)(first), (T)(second));                                                \
        SOFT_NEXT(cpu, op);                                                                        \
    }

#define ALU_COMPARE_REGISTER(name)                                                                 \
    static void F(name##_rr)(SoftCpu * cpu, const SoftOp *op)                                      \
    {                                                                                              \
        F(name##_do)(cpu, GET(cpu, op->rm), GET(cpu, op->reg));                                    \
        SOFT_NEXT(cpu, op);                                                                        \
    }                                                                                              \
    static void F(name##_ri)(SoftCpu * cpu, const SoftOp *op)                                      \
    {                                                                                              \
        F(name##_do)(cpu, GET(cpu, op->rm), (T)op->imm);                                           \
        SOFT_NEXT(cpu, op);                                                                        \
    }

ALU_COMPARE_REGISTER(cmp)
ALU_COMPARE_REGISTER(test)
ALU_COMPARE(cmp, rm, GET(cpu, op->reg), m)
ALU_COMPARE(cmp, mr, m, GET(cpu, op->reg))
ALU_COMPARE(cmp, mi, m, op->imm)
ALU_COMPARE(test, mr, m, GET(cpu, op->reg))
ALU_COMPARE(test, mi, m, op->imm)

/* One operand. INC and DEC leave CF, NOT leaves every flag: the guest's are loaded first. */
#define UNARY(name, insn)                                                                          \
    static ALWAYS_INLINE T F(name##_do)(SoftCpu * cpu, T d)                                        \
    {                                                                                              \
        uint32_t f = cpu->arith;                                                                   \
        __asm__(FLAGS_RESTORE insn Q " %0\n\t" FLAGS_SAVE : "+" RC(d), "+a"(f) : : "cc");          \
        cpu->arith = (uint16_t)f;                                                                  \
        return d;                                                                                  \
    }                                                                                              \
    static ALWAYS_INLINE void F(name##_mem)(SoftCpu * cpu, T * p, bool locked)                     \
    {                                                                                              \
        uint32_t f = cpu->arith;                                                                   \
        if (locked)                                                                                \
            __asm__ volatile(FLAGS_RESTORE "lock " insn Q " %0\n\t" FLAGS_SAVE                     \
                             : "+m"(*p), "+a"(f)                                                   \
                             :                                                                     \
                             : "cc", "memory");                                                    \
        else                                                                                       \
            __asm__ volatile(FLAGS_RESTORE insn Q " %0\n\t" FLAGS_SAVE                             \
                             : "+m"(*p), "+a"(f)                                                   \
                             :                                                                     \
                             : "cc", "memory");                                                    \
        cpu->arith = (uint16_t)f;                                                                  \
    }                                                                                              \
    static void F(name##_r)(SoftCpu * cpu, const SoftOp *op)                                       \
    {                                                                                              \
        SET(cpu, op->rm, F(name##_do)(cpu, GET(cpu, op->rm)));                                     \
        SOFT_NEXT(cpu, op);                                                                        \
    }                                                                                              \
    static COLD void F(name##_m_slow)(SoftCpu * cpu, const SoftOp *op)                             \
    {                                                                                              \
        bool locked = op->flags & SOFT_OP_LOCK;                                                    \
        F(name##_mem)(cpu, slow_rmw(cpu, op, &cpu->rmw, SIZE, locked), locked);                         \
        soft_rmw_end(cpu, &cpu->rmw);                                                                   \
        SOFT_NEXT_STORED(cpu, op);                                                                 \
    }                                                                                              \
    static void F(name##_m)(SoftCpu * cpu, const SoftOp *op)                                       \
    {                                                                                              \
        T *p;                                                                                       \
        if (!fast_write(cpu, op, SIZE, &p))                                                                          \
            return F(name##_m_slow)(cpu, op);                                                      \
        F(name##_mem)(cpu, p, false);                                                              \
        SOFT_NEXT(cpu, op);                                                                        \
    }

UNARY(inc, "inc")
UNARY(dec, "dec")
UNARY(neg, "neg")
UNARY(not, "not")

#undef ALU_CORE
#undef ALU_TEST
#undef ALU_REGISTER_FORMS
#undef ALU_MEMORY_FORM
#undef ALU
#undef ALU_COMPARE
#undef ALU_COMPARE_REGISTER
#undef UNARY
#undef F
#undef GET
#undef SET
#undef SIZE
#undef BITS
#undef T
#undef Q
#undef RC
