/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * An image is megabytes of nothing, so the input is what stands in it, in pieces that are put in
 * their places, with checksums put right.
 */
#include "disk/format/vhdx/vhdx.h"
#include "image-target.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct {
    uint64_t at, bytes;
} pieces[] = {
    {KIB(64), 80},          /* a header */
    {KIB(192), 16 + 4 * 32}, /* the region table */
    {MIB(3), 32 + 7 * 32},  /* the metadata table, where new images have it */
    {MIB(3) + KIB(64), 64}, /* its items */
    {MIB(2), 64},           /* the block allocation table */
    {MIB(1), KIB(32)},      /* the log */
};

static void seal(uint8_t *image)
{
    memcpy(image + KIB(128), image + KIB(64), VHDX_HEADER_BYTES);
    vhdx_seal(image + KIB(64), VHDX_HEADER_BYTES, 4);
    vhdx_seal(image + KIB(128), VHDX_HEADER_BYTES, 4);
    vhdx_seal(image + KIB(192), VHDX_TABLE_BYTES, 4);
    for (uint64_t at = MIB(1); at < MIB(1) + KIB(32); at += 4096) {
        uint32_t length = le32_get(image + at + 8);
        if (!memcmp(image + at, "loge", 4) && length >= 4096 && length <= KIB(64))
            vhdx_seal(image + at, length, 4);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autofree uint8_t *image = g_malloc0(MIB(5));
    memcpy(image, "vhdxfile", 8);
    for (size_t i = 0; i < G_N_ELEMENTS(pieces) && size > 0; i++) {
        uint64_t length = MIN(size, pieces[i].bytes);
        memcpy(image + pieces[i].at, data, length);
        data += length;
        size -= length;
    }
    seal(image);
    image_target("vhdx", image, MIB(5));
    return 0;
}
