/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Shifts and rotates. */
#include "vcpu/soft/integer.h"

#define BITS 8
#define T uint8_t
#define Q "b"
#define RC "q"
#include "vcpu/soft/shift-template.h"
#define BITS 16
#define T uint16_t
#define Q "w"
#define RC "r"
#include "vcpu/soft/shift-template.h"
#define BITS 32
#define T uint32_t
#define Q "l"
#define RC "r"
#include "vcpu/soft/shift-template.h"
#define BITS 64
#define T uint64_t
#define Q "q"
#define RC "r"
#include "vcpu/soft/shift-template.h"

#define SHIFT_SETS(name)                                                                           \
    static const SoftHandlerSet name##_i_set = { SET_REG(name##_ri), SET_MEM(name##_mi) };         \
    static const SoftHandlerSet name##_c_set = { SET_REG(name##_rc), SET_MEM(name##_mc) };

SHIFT_SETS(rol)
SHIFT_SETS(ror)
SHIFT_SETS(rcl)
SHIFT_SETS(rcr)
SHIFT_SETS(shl)
SHIFT_SETS(shr)
SHIFT_SETS(sar)

static const SoftHandlerSet shld_set = { SET_REGV(shld_r), SET_MEMV(shld_m) };
static const SoftHandlerSet shrd_set = { SET_REGV(shrd_r), SET_MEMV(shrd_m) };

#define M OPC_MODRM

#define SHIFT_ROWS(name, n)                                                                        \
    { ROW(#name, 0, PREFIX_ANY, 0xc0, n, SIZE_B, IMM_BU, M | OPC_RM8), .set = &name##_i_set },     \
    { ROW(#name, 0, PREFIX_ANY, 0xc1, n, SIZE_V, IMM_BU, M), .set = &name##_i_set },               \
    { ROW(#name, 0, PREFIX_ANY, 0xd0, n, SIZE_B, IMM_ONE, M | OPC_RM8), .set = &name##_i_set },    \
    { ROW(#name, 0, PREFIX_ANY, 0xd1, n, SIZE_V, IMM_ONE, M), .set = &name##_i_set },              \
    { ROW(#name, 0, PREFIX_ANY, 0xd2, n, SIZE_B, IMM_NONE, M | OPC_RM8), .set = &name##_c_set },   \
    { ROW(#name, 0, PREFIX_ANY, 0xd3, n, SIZE_V, IMM_NONE, M), .set = &name##_c_set }

static const SoftOpcode rows[] = {
    SHIFT_ROWS(rol, 0),
    SHIFT_ROWS(ror, 1),
    SHIFT_ROWS(rcl, 2),
    SHIFT_ROWS(rcr, 3),
    SHIFT_ROWS(shl, 4),
    SHIFT_ROWS(shr, 5),
    SHIFT_ROWS(shl, 6), /* an alias that hardware has always had (APM vol. 3, SAL) */
    SHIFT_ROWS(sar, 7),
    { ROW("shld", 1, PREFIX_ANY, 0xa4, -1, SIZE_V, IMM_BU, M), .set = &shld_set },
    { ROW("shld", 1, PREFIX_ANY, 0xa5, -1, SIZE_V, IMM_NONE, M), .sub = 1, .set = &shld_set },
    { ROW("shrd", 1, PREFIX_ANY, 0xac, -1, SIZE_V, IMM_BU, M), .set = &shrd_set },
    { ROW("shrd", 1, PREFIX_ANY, 0xad, -1, SIZE_V, IMM_NONE, M), .sub = 1, .set = &shrd_set },
};

const SoftOpcodeGroup soft_shift_opcodes = { "shift", rows, sizeof(rows) / sizeof(rows[0]) };
