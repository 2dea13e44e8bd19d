/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "diff.h"

#include <stdio.h>

DiffRow *diff_rows;
unsigned diff_row_count;

static GArray *rows;

/* Instructions that user mode cannot execute, or whose result says something about the machine. */
static bool integer_testable(const SoftOpcode *o)
{
    if (o->flags & (OPC_SYSTEM | OPC_NONDET))
        return false;
    return !o->feature || ((const bool *)&soft_features)[o->feature - 1];
}

static void add_integer(const SoftOpcode *o)
{
    DiffRow row = {.kind = DIFF_INTEGER, .integer = o, .map = o->map, .opcode = o->opcode};
    if (!integer_testable(o))
        return;
    snprintf(row.name, sizeof(row.name), "%s %u:%02x", o->mnemonic, o->map, o->opcode);
    g_array_append_val(rows, row);
}

static void add_vector(const VectorRow *v)
{
    static const char *prefix[] = {"", "66.", "f3.", "f2."};
    static const char *form[] = {"sse", "vex128", "vex256"};
    const uint8_t feature[] = {v->legacy, v->vex128, v->vex256};
    for (unsigned i = 0; i < 3; i++) {
        DiffRow row = {.kind = DIFF_VECTOR, .vector = v, .vex = i > 0, .l = i == 2, .map = v->map,
                       .opcode = v->opcode};
        if (!vector_feature_present(feature[i]))
            continue;
        int n = snprintf(row.name, sizeof(row.name), "%s %u:%s%02x", form[i], v->map, prefix[v->prefix],
                         v->opcode);
        if (v->digit >= 0)
            snprintf(row.name + n, sizeof(row.name) - (unsigned)n, "/%d", v->digit);
        g_array_append_val(rows, row);
    }
}

static void add_x87(void)
{
    for (unsigned opcode = 0xd8; opcode < 0xe0; opcode++) {
        for (unsigned digit = 0; digit < 8; digit++) {
            DiffRow row = {.kind = DIFF_X87_MEMORY, .opcode = (uint8_t)opcode,
                           .modrm = (uint8_t)(digit << 3)};
            snprintf(row.name, sizeof(row.name), "x87 %02x/%u mem", opcode, digit);
            if (x87_form_exists((uint8_t)opcode, row.modrm))
                g_array_append_val(rows, row);
        }
        for (unsigned modrm = 0xc0; modrm < 0x100; modrm++) {
            DiffRow row = {.kind = DIFF_X87_REGISTER, .opcode = (uint8_t)opcode,
                           .modrm = (uint8_t)modrm};
            snprintf(row.name, sizeof(row.name), "x87 %02x %02x", opcode, modrm);
            if (x87_form_exists((uint8_t)opcode, row.modrm))
                g_array_append_val(rows, row);
        }
    }
    DiffRow fwait = {.kind = DIFF_X87_REGISTER, .opcode = 0x9b, .name = "fwait"};
    g_array_append_val(rows, fwait);
}

static void add_state(const char *name, uint8_t opcode, uint8_t digit, bool vex, bool present)
{
    DiffRow row = {.kind = DIFF_STATE, .map = 1, .opcode = opcode, .modrm = (uint8_t)(digit << 3),
                   .vex = vex};
    g_strlcpy(row.name, name, sizeof(row.name));
    if (present)
        g_array_append_val(rows, row);
}

void diff_rows_init(void)
{
    rows = g_array_new(FALSE, TRUE, sizeof(DiffRow));
    const SoftOpcodeGroup *group;
    for (unsigned g = 0; (group = soft_opcode_group(g)); g++)
        for (unsigned i = 0; i < group->n_rows; i++)
            add_integer(&group->rows[i]);
    for (unsigned i = 0; i < vector_row_count; i++)
        add_vector(&vector_rows[i]);
    add_x87();
    add_state("fxsave", 0xae, 0, false, true);
    add_state("fxrstor", 0xae, 1, false, true);
    add_state("ldmxcsr", 0xae, 2, false, true);
    add_state("stmxcsr", 0xae, 3, false, true);
    add_state("vldmxcsr", 0xae, 2, true, soft_features.avx);
    add_state("vstmxcsr", 0xae, 3, true, soft_features.avx);
    add_state("xsave", 0xae, 4, false, true);
    add_state("xrstor", 0xae, 5, false, true);
    add_state("xsaveopt", 0xae, 6, false, soft_features.xsaveopt);
    add_state("xsavec", 0xc7, 4, false, soft_features.xsavec);
    DiffRow sequence = {.kind = DIFF_SEQUENCE, .name = "sequence"};
    g_array_append_val(rows, sequence);
    DiffRow loop = {.kind = DIFF_SEQUENCE, .name = "block loop", .loop = true};
    g_array_append_val(rows, loop);
    diff_row_count = rows->len;
    diff_rows = (DiffRow *)(void *)g_array_free(rows, FALSE);
}
