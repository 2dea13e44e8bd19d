/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Where the guest's arithmetic flags are. Address checks destroy EFLAGS; what is needed afterwards
 * goes to SoftCpu.arith in the form of LAHF and SETO, and comes back when an instruction wants it.
 */
#include "vcpu/soft/translate/cache.h"

void code_flags_store(Emit *e)
{
    emit_lahf(e);
    emit_setcc(e, 0, HOST_RAX);
    emit_store16(e, GS_FIELD(arith), HOST_RAX);
}

void code_flags_load(Emit *e)
{
    static const uint8_t add_al[] = {0x04, 0x7f}; /* add $0x7f,%al: OF = 1 exactly if AL was 1 */
    emit_load16_zero(e, HOST_RAX, GS_FIELD(arith));
    emit_bytes(e, add_al, sizeof(add_al));
    emit_sahf(e);
}

void translate_flags_clobber(Translation *t)
{
    if (t->flags_at != FLAGS_HOST || t->live[t->i] == 0)
        return;
    emit_mov(&t->e, TEMP1, HOST_RAX);
    code_flags_store(&t->e);
    emit_mov(&t->e, HOST_RAX, TEMP1);
    t->mirror_base = -1; /* was in TEMP1 */
    t->flags_at = FLAGS_SAVED;
}

void translate_flags_require(Translation *t)
{
    if (t->flags_at != FLAGS_SAVED)
        return;
    emit_store(&t->e, GS_FIELD(scratch_rax), HOST_RAX);
    code_flags_load(&t->e);
    emit_load(&t->e, HOST_RAX, GS_FIELD(scratch_rax));
    t->flags_at = FLAGS_HOST;
}

void translate_flags_before(Translation *t)
{
    const TranslateInfo *info = &t->info[t->i];

    /* What it leaves alone must be in EFLAGS, too: afterwards they are all looked for there. */
    if (info->reads || (info->touches && (t->live[t->i + 1] & ~info->kills)))
        translate_flags_require(t);
}

void translate_flags_after(Translation *t)
{
    if (t->info[t->i].touches)
        t->flags_at = FLAGS_HOST;
}
