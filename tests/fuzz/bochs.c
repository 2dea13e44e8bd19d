/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "image-target.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size <= KIB(64))
        image_target("bochs", data, size);
    return 0;
}
