/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The text of a VMDK descriptor: refused, or within its bounds. */
#include "base/bytes.h"
#include "disk/format/vmdk/descriptor.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autoptr(GError) err = NULL;
    VmdkDescriptor d;
    vmdk_descriptor_probe((const char *)data, size);
    bool good = vmdk_descriptor_parse(&d, (const char *)data, size, &err);
    if (good == !!err || d.extents->len > VMDK_EXTENTS_MAX + 1)
        abort();
    if (good && (d.cid_at + d.cid_digits > size || d.cid_digits < 1 || d.cid_digits > 8))
        abort();
    vmdk_descriptor_clear(&d);
    return 0;
}
