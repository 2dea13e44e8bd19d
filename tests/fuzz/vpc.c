/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* As it is, and with checksums put right, so that what they cover is reached. */
#include "disk/format/vpc.h"
#include "image-target.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size > KIB(64))
        return 0;
    image_target("vpc", data, size);
    if (size < 512)
        return 0;
    g_autofree uint8_t *fixed = g_memdup2(data, size);
    uint8_t *footers[] = {fixed, fixed + size - 512};
    for (size_t i = 0; i < G_N_ELEMENTS(footers); i++)
        be32_put(footers[i] + VPC_CHECKSUM, vpc_checksum(footers[i], VPC_FOOTER_BYTES, VPC_CHECKSUM));
    uint64_t at = be64_get(footers[1] + VPC_DATA_OFFSET);
    if (range_within(at, VPC_DYNAMIC_BYTES, size))
        be32_put(fixed + at + VPC_DYNAMIC_CHECKSUM,
                 vpc_checksum(fixed + at, VPC_DYNAMIC_BYTES, VPC_DYNAMIC_CHECKSUM));
    image_target("vpc", fixed, size);
    return 0;
}
