/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "disk/format/formats.h"

#include <string.h>

/* One row a format; raw, which anything can be, comes last. */
const BlockFormat *const block_formats[] = {
    &block_format_qcow1,
    &block_format_qcow2,
    &block_format_luks,
    &block_format_vdi,
    &block_format_vmdk,
    &block_format_vpc,
    &block_format_vhdx,
    &block_format_qed,
    &block_format_parallels,
    &block_format_bochs,
    &block_format_cloop,
    &block_format_dmg,
    &block_format_raw,
    NULL,
};

const BlockFormat *block_format_find(const char *name)
{
    for (const BlockFormat *const *f = block_formats; *f; f++) {
        if (!strcmp((*f)->name, name))
            return *f;
    }
    return NULL;
}

char *block_format_names(void)
{
    GString *names = g_string_new(NULL);
    for (const BlockFormat *const *f = block_formats; *f; f++) {
        if (names->len)
            g_string_append(names, f[1] ? ", " : " and ");
        g_string_append(names, (*f)->name);
    }
    return g_string_free(names, FALSE);
}

const BlockFormat *block_format_probe(const uint8_t *head, size_t length)
{
    for (const BlockFormat *const *f = block_formats; *f; f++) {
        if ((*f)->probe && (*f)->probe(head, length))
            return *f;
    }
    return &block_format_raw;
}
