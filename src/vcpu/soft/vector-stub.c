/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Native stubs: the code that executes one vector instruction on the guest's registers, and the
 * bounded arena that holds them. The arena is a memfd mapped twice, writable and executable,
 * never both at one address. Each vCPU has its own, so no locks are needed.
 */
#include <cpuid.h>
#include <errno.h>
#include <stddef.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/error.h"
#include "vcpu/soft/vector.h"

#define ARENA_SIZE (4u << 20)

/* ---- emitter: registers are addressed from %rdi, the SoftCpu ------------------------------- */

typedef struct Emit {
    uint8_t *at;
} Emit;

#define OFFSET_YMM(n) ((uint32_t)(offsetof(SoftCpu, fpu.ymm) + (n) * 32u))
#define OFFSET_MM(n) ((uint32_t)(offsetof(SoftCpu, fpu.fxsave) + FX_ST + (n) * 16u))
#define OFFSET_GPR(n) ((uint32_t)(offsetof(SoftCpu, gpr) + (n) * 8u))
#define OFFSET_MXCSR ((uint32_t)(offsetof(SoftCpu, fpu.fxsave) + FX_MXCSR))
#define OFFSET_ARITH ((uint32_t)offsetof(SoftCpu, arith))
#define OFFSET_FXSAVE ((uint32_t)offsetof(SoftCpu, fpu.fxsave))

static void emit_bytes(Emit *e, const void *bytes, unsigned n)
{
    memcpy(e->at, bytes, n);
    e->at += n;
}

#define EMIT(e, ...)                                                                               \
    do {                                                                                           \
        static const uint8_t emit_code[] = {__VA_ARGS__};                                          \
        emit_bytes((e), emit_code, sizeof(emit_code));                                             \
    } while (0)

static void emit8(Emit *e, unsigned v)
{
    *e->at++ = (uint8_t)v;
}

/* ModRM and displacement of the operand offset(%rdi). */
static void emit_cpu(Emit *e, unsigned reg, uint32_t offset)
{
    emit8(e, 0x87 | (reg & 7) << 3);
    emit_bytes(e, &offset, 4);
}

/* movups / vmovups between a vector register and its place in SoftFpu. */
static void emit_vector(Emit *e, unsigned n, bool vex, bool store)
{
    if (vex) {
        emit8(e, 0xc5);
        emit8(e, n < 8 ? 0xfc : 0x7c);
    } else {
        if (n >= 8)
            emit8(e, 0x44);
        emit8(e, 0x0f);
    }
    emit8(e, store ? 0x11 : 0x10);
    emit_cpu(e, n, OFFSET_YMM(n));
}

static void emit_mmx(Emit *e, unsigned n, bool store)
{
    emit8(e, 0x0f);
    emit8(e, store ? 0x7f : 0x6f);
    emit_cpu(e, n, OFFSET_MM(n));
}

static void emit_gpr(Emit *e, unsigned host, unsigned guest, bool store)
{
    emit8(e, 0x48);
    emit8(e, store ? 0x89 : 0x8b);
    emit_cpu(e, host, OFFSET_GPR(guest));
}

/* ldmxcsr (digit 2) or stmxcsr (3) on the guest's MXCSR. */
static void emit_mxcsr(Emit *e, unsigned digit)
{
    emit8(e, 0x0f);
    emit8(e, 0xae);
    emit_cpu(e, digit, OFFSET_MXCSR);
}

static void emit_host_mxcsr(Emit *e)
{
    /* movl $0x1f80,-8(%rsp); ldmxcsr -8(%rsp): the ABI's MXCSR */
    EMIT(e, 0xc7, 0x44, 0x24, 0xf8, 0x80, 0x1f, 0x00, 0x00, 0x0f, 0xae, 0x54, 0x24, 0xf8);
}

/* lahf; seto %al; movzwl %ax,%eax; mov %eax,arith(%rdi) */
static void emit_flags_out(Emit *e)
{
    EMIT(e, 0x9f, 0x0f, 0x90, 0xc0, 0x0f, 0xb7, 0xc0, 0x89);
    emit_cpu(e, 0, OFFSET_ARITH);
}

/* mov arith(%rdi),%eax; add $0x7f,%al (OF); sahf */
static void emit_flags_in(Emit *e)
{
    emit8(e, 0x8b);
    emit_cpu(e, 0, OFFSET_ARITH);
    EMIT(e, 0x04, 0x7f, 0x9e);
}

/* ---- vector stubs ------------------------------------------------------------------------------- */

enum { HOST_RAX = 0, HOST_RCX = 1, HOST_RDX = 2, HOST_RSI = 6 };

/* The registers of one instruction. */
typedef struct Operands {
    unsigned vectors, mmx; /* bit per register read */
    int destination;       /* vector register written, or -1 */
    int mmx_destination;
    int reg_gpr, rm_gpr; /* guest numbers, or -1 */
} Operands;

static void operand_rm(Operands *o, const VectorRow *row, const SoftOp *op)
{
    if (op->flags & SOFT_OP_MEM)
        return;
    if (row->flags & VO_RM_GPR)
        o->rm_gpr = op->rm;
    else if (row->flags & VO_RM_MMX)
        o->mmx |= 1u << (op->rm & 7);
    else
        o->vectors |= 1u << op->rm;
}

static void operand_reg(Operands *o, const VectorRow *row, const SoftOp *op)
{
    if (row->digit >= 0)
        return;
    if (row->flags & VO_REG_GPR)
        o->reg_gpr = op->reg;
    else if (row->flags & VO_REG_MMX)
        o->mmx |= 1u << (op->reg & 7);
    else
        o->vectors |= 1u << op->reg;
}

static void operand_destination(Operands *o, const VectorRow *row, const SoftOp *op)
{
    bool vex = op->flags & SOFT_OP_VEX;
    if (row->flags & VO_DEST_XMM0)
        o->destination = 0;
    else if ((row->flags & VO_NDD) && vex)
        o->destination = op->vvvv;
    else if (row->flags & VO_STORE) {
        if (op->flags & SOFT_OP_MEM)
            return;
        if (row->flags & VO_RM_MMX)
            o->mmx_destination = op->rm & 7;
        else if (!(row->flags & VO_RM_GPR))
            o->destination = op->rm;
    } else if (row->flags & VO_REG_MMX)
        o->mmx_destination = op->reg & 7;
    else if (!(row->flags & (VO_REG_GPR | VO_ECX)))
        o->destination = op->reg;
}

static Operands operands_of(const VectorRow *row, const SoftOp *op)
{
    Operands o = {.destination = -1, .mmx_destination = -1, .reg_gpr = -1, .rm_gpr = -1};
    bool vex = op->flags & SOFT_OP_VEX;
    operand_reg(&o, row, op);
    operand_rm(&o, row, op);
    bool nds_reg = (row->flags & VO_NDS_REG) && !(op->flags & SOFT_OP_MEM);
    if (vex && ((row->flags & (VO_NDS | VO_NDD)) || nds_reg))
        o.vectors |= 1u << op->vvvv;
    if (row->flags & VO_IS4)
        o.vectors |= 1u << ((op->imm >> 4) & 15);
    if (row->flags & VO_XMM0)
        o.vectors |= 1;
    operand_destination(&o, row, op);
    return o;
}

/* The instruction itself, with fixed registers for its memory and general register operands. */
static unsigned rewrite(uint8_t *bytes, const VectorRow *row, const SoftOp *op)
{
    Emit e = {bytes};
    bool memory = op->flags & SOFT_OP_MEM, vex = op->flags & SOFT_OP_VEX;
    unsigned reg = row->digit >= 0 ? (unsigned)row->digit
                   : (row->flags & VO_REG_GPR) ? HOST_RAX
                                               : op->reg;
    unsigned rm = memory ? HOST_RSI : (row->flags & VO_RM_GPR) ? HOST_RCX : op->rm;
    if (row->flags & VO_REG_MMX)
        reg &= 7;
    if (!memory && (row->flags & VO_RM_MMX))
        rm &= 7;
    bool w = op->flags & SOFT_OP_W, l = (op->flags & SOFT_OP_L) && !(row->flags & VO_LIG);
    if (vex) {
        emit8(&e, 0xc4);
        emit8(&e, (reg < 8 ? 0xc0 : 0x40) | (rm < 8 ? 0x20 : 0) | op->map);
        emit8(&e, (w ? 0x80 : 0) | (~op->vvvv & 15u) << 3 | (l ? 4 : 0) | op->prefix);
    } else {
        static const uint8_t mandatory[] = {0, 0x66, 0xf3, 0xf2};
        if (op->prefix)
            emit8(&e, mandatory[op->prefix]);
        unsigned rex = (w ? 8u : 0) | (reg >= 8 ? 4u : 0) | (rm >= 8 ? 1u : 0);
        if (rex)
            emit8(&e, 0x40 | rex);
        emit8(&e, 0x0f);
        if (op->map >= 2)
            emit8(&e, op->map == 2 ? 0x38 : 0x3a);
    }
    emit8(&e, op->opcode);
    emit8(&e, (memory ? 0 : 0xc0) | (reg & 7) << 3 | (rm & 7));
    if (row->flags & VO_IMM)
        emit8(&e, (unsigned)op->imm);
    return (unsigned)(e.at - bytes);
}

static void emit_loads(Emit *e, const VectorRow *row, const Operands *o, bool vex)
{
    for (unsigned n = 0; n < 16; n++)
        if (o->vectors & 1u << n)
            emit_vector(e, n, vex, false);
    for (unsigned n = 0; n < 8; n++)
        if (o->mmx & 1u << n)
            emit_mmx(e, n, false);
    if (o->reg_gpr >= 0)
        emit_gpr(e, HOST_RAX, (unsigned)o->reg_gpr, false);
    if (o->rm_gpr >= 0)
        emit_gpr(e, HOST_RCX, (unsigned)o->rm_gpr, false);
    if (row->flags & VO_LENGTHS) {
        emit_gpr(e, HOST_RAX, GPR_RAX, false);
        emit_gpr(e, HOST_RDX, GPR_RDX, false);
    }
}

static void emit_stores(Emit *e, const VectorRow *row, const Operands *o, bool vex)
{
    if (o->reg_gpr >= 0)
        emit_gpr(e, HOST_RAX, (unsigned)o->reg_gpr, true);
    if (o->rm_gpr >= 0 && (row->flags & VO_STORE))
        emit_gpr(e, HOST_RCX, (unsigned)o->rm_gpr, true);
    if (row->flags & VO_ECX)
        emit_gpr(e, HOST_RCX, GPR_RCX, true);
    if (o->destination >= 0)
        emit_vector(e, (unsigned)o->destination, vex, true);
    if (o->mmx_destination >= 0)
        emit_mmx(e, (unsigned)o->mmx_destination, true);
}

unsigned vector_stub_build(uint8_t *code, const VectorRow *row, const SoftOp *op,
                           VectorStubKey *key)
{
    Emit e = {code};
    bool vex = op->flags & SOFT_OP_VEX;
    Operands o = operands_of(row, op);
    memset(key, 0, sizeof(*key));
    key->row = (uint16_t)(row - vector_rows);
    key->length = (uint8_t)rewrite(key->bytes, row, op);
    key->reg_gpr = (int8_t)o.reg_gpr;
    key->rm_gpr = (int8_t)o.rm_gpr;
    emit_loads(&e, row, &o, vex);
    if (row->flags & VO_FP)
        emit_mxcsr(&e, 2);
    emit_bytes(&e, key->bytes, key->length);
    if (row->flags & VO_FP)
        emit_mxcsr(&e, 3);
    if (row->flags & VO_FLAGS)
        emit_flags_out(&e);
    emit_stores(&e, row, &o, vex);
    if (row->flags & VO_FP)
        emit_host_mxcsr(&e);
    if (vex)
        EMIT(&e, 0xc5, 0xf8, 0x77); /* vzeroupper */
    if (row->flags & MMX_ANY)
        EMIT(&e, 0x0f, 0x77); /* emms */
    emit8(&e, 0xc3);
    return (unsigned)(e.at - code);
}

/*
 * An x87 instruction between FXRSTOR and FXSAVE of the guest's state. FXRSTOR also loads the XMM
 * registers, which the caller does not keep, and MXCSR, which is set back.
 */
unsigned x87_stub_build(uint8_t *code, const SoftOp *op, VectorStubKey *key)
{
    Emit e = {code};
    bool in = x87_reads_flags(op), out = x87_sets_flags(op);
    memset(key, 0, sizeof(*key));
    key->kind = 1;
    key->row = (uint16_t)(in | out << 1);
    key->length = 2;
    x87_canonical(op, &key->bytes[0], &key->bytes[1]);
    if (op->flags & SOFT_OP_MEM)
        key->bytes[1] = (uint8_t)((op->modrm & 0x38) | HOST_RSI);
    EMIT(&e, 0x48, 0x0f, 0xae); /* fxrstor64 */
    emit_cpu(&e, 1, OFFSET_FXSAVE);
    if (in)
        emit_flags_in(&e);
    emit_bytes(&e, key->bytes, key->length);
    if (out)
        emit_flags_out(&e);
    EMIT(&e, 0x48, 0x0f, 0xae); /* fxsave64 */
    emit_cpu(&e, 0, OFFSET_FXSAVE);
    EMIT(&e, 0xdb, 0xe3); /* fninit: the ABI's control word, empty registers */
    emit_host_mxcsr(&e);
    emit8(&e, 0xc3);
    return (unsigned)(e.at - code);
}

/* ---- the arena ------------------------------------------------------------------------------- */

static uint32_t key_hash(const VectorStubKey *key)
{
    uint64_t w[2];
    memcpy(w, key, sizeof(w));
    return (uint32_t)((w[0] * 0x9e3779b97f4a7c15u ^ w[1] * 0xc2b2ae3d27d4eb4fu) >> 40);
}

static const void *stub_intern(SoftVector *v, const uint8_t *code, unsigned length,
                               const VectorStubKey *key)
{
    uint32_t i = key_hash(key) & (VECTOR_STUB_SLOTS - 1);
    while (v->slot[i].offset) {
        if (memcmp(&v->slot[i].key, key, sizeof(*key)) == 0)
            return v->rx + v->slot[i].offset;
        i = (i + 1) & (VECTOR_STUB_SLOTS - 1);
    }
    if (v->used + length > ARENA_SIZE || v->count >= VECTOR_STUB_SLOTS / 8 * 7)
        return NULL;
    memcpy(v->rw + v->used, code, length);
    v->slot[i].key = *key;
    v->slot[i].offset = v->used;
    v->count++;
    v->used += (length + 15) & ~15u;
    return v->rx + v->slot[i].offset;
}

const void *vector_stub_get(SoftCpu *cpu, const VectorRow *row, const SoftOp *op)
{
    uint8_t code[VECTOR_STUB_MAX];
    VectorStubKey key;
    unsigned length = vector_stub_build(code, row, op, &key);
    return stub_intern(cpu->vector, code, length, &key);
}

const void *x87_stub_get(SoftCpu *cpu, const SoftOp *op)
{
    uint8_t code[VECTOR_STUB_MAX];
    VectorStubKey key;
    unsigned length = x87_stub_build(code, op, &key);
    return stub_intern(cpu->vector, code, length, &key);
}

/* The arena is full: build the code in the first bytes of the arena, for this execution only. */
const void *vector_stub_late(SoftCpu *cpu, const SoftOp *op)
{
    SoftVector *v = cpu->vector;
    VectorStubKey key;
    if (op->map == 0)
        x87_stub_build(v->rw, op, &key);
    else
        vector_stub_build(v->rw, vector_op_row(op), op, &key);
    /* Code changed through another mapping needs a serializing instruction (SDM vol. 3 9.1.3). */
    unsigned a, b, c, d;
    __cpuid(0, a, b, c, d);
    return v->rx;
}

bool soft_vector_init(SoftCpu *cpu, GError **err)
{
    SoftVector *v = mmap(NULL, sizeof(*v), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (v == MAP_FAILED)
        return lodge_fail_errno(err, ENOMEM, "no memory for the vector unit of a vCPU");
    int fd = memfd_create("lodge-vector-stubs", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, ARENA_SIZE) < 0) {
        int e = errno;
        if (fd >= 0)
            close(fd);
        munmap(v, sizeof(*v));
        return lodge_fail_errno(err, e, "cannot make the code arena of a vCPU");
    }
    v->rw = mmap(NULL, ARENA_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    v->rx = mmap(NULL, ARENA_SIZE, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
    int e = errno;
    close(fd);
    cpu->vector = v;
    if (v->rw == MAP_FAILED || v->rx == MAP_FAILED) {
        soft_vector_free(cpu);
        return lodge_fail_errno(err, e, "cannot map the code arena of a vCPU");
    }
    v->used = (VECTOR_STUB_MAX + 63) & ~63u; /* the slot of vector_stub_late */
    return true;
}

void soft_vector_free(SoftCpu *cpu)
{
    SoftVector *v = cpu->vector;
    if (!v)
        return;
    if (v->rw != MAP_FAILED)
        munmap(v->rw, ARENA_SIZE);
    if (v->rx != MAP_FAILED)
        munmap((void *)(uintptr_t)v->rx, ARENA_SIZE);
    munmap(v, sizeof(*v));
    cpu->vector = NULL;
}
