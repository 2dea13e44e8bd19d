/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "machine/state.h"

#include <string.h>

#include "base/error.h"

/* Lodge runs on little-endian hosts only (meson.build), so an integer's bytes are its wire form. */
void state_save(const StateField *fields, const void *object, GByteArray *to)
{
    for (const StateField *f = fields; f && f->kind != STATE_END; f++) {
        const uint8_t *p = (const uint8_t *)object + f->offset;
        for (size_t i = 0; i < f->count; i++, p += f->size) {
            if (f->kind == STATE_NESTED)
                state_save(f->nested, p, to);
            else
                g_byte_array_append(to, p, (guint)f->size);
        }
    }
}

bool state_load(const StateField *fields, void *object, const uint8_t *data, size_t size,
                size_t *used, GError **err)
{
    for (const StateField *f = fields; f && f->kind != STATE_END; f++) {
        uint8_t *p = (uint8_t *)object + f->offset;
        for (size_t i = 0; i < f->count; i++, p += f->size) {
            if (f->kind == STATE_NESTED) {
                if (!state_load(f->nested, p, data, size, used, err))
                    return false;
                continue;
            }
            if (*used > size || f->size > size - *used)
                return lodge_fail(err, LODGE_ERROR_CORRUPT,
                                  "saved state ends within field '%s' (%zu bytes, %zu needed)",
                                  f->name, size, *used + f->size);
            if (f->kind == STATE_BOOL) {
                if (data[*used] > 1)
                    return lodge_fail(err, LODGE_ERROR_CORRUPT,
                                      "saved state: field '%s' is %u, not 0 or 1", f->name,
                                      data[*used]);
                *(bool *)(void *)p = data[*used] != 0;
            } else {
                memcpy(p, data + *used, f->size);
            }
            *used += f->size;
        }
    }
    return true;
}
