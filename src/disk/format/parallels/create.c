/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* New parallels images: of the extended kind, whose table counts in clusters. */
#include "base/bytes.h"
#include "base/error.h"
#include "disk/format/parallels/parallels.h"

#include <errno.h>

/* The geometry says nothing about the image; what QEMU puts there. */
#define HEADS              16u
#define SECTORS_A_CYLINDER 32u

const BlockOption parallels_create_options[] = {
    {"size", BLOCK_OPTION_SIZE, "Virtual disk size", NULL},
    {"cluster_size", BLOCK_OPTION_SIZE, "Parallels image cluster size", "1048576"},
    {NULL, 0, NULL, NULL},
};

static bool cluster_size(const BlockCreate *c, uint64_t *cluster, GError **err)
{
    *cluster = 0;
    if (!block_option_size(c->options, parallels_create_options, "cluster_size", cluster, err))
        return false;
    if (*cluster > INT64_MAX / 2)
        return lodge_fail(err, LODGE_ERROR_INVALID, "Cluster size is too large");
    if (*cluster == 0) /* in QEMU's words */
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "Image size is too large for this cluster size");
    *cluster = (*cluster + PARALLELS_SECTOR - 1) / PARALLELS_SECTOR * PARALLELS_SECTOR;
    return true;
}

bool parallels_create_check(const BlockCreate *c, GError **err)
{
    uint64_t cluster;
    if (!cluster_size(c, &cluster, err))
        return false;
    if (cluster / PARALLELS_SECTOR > PARALLELS_CLUSTER_MAX)
        return lodge_fail(err, LODGE_ERROR_INVALID, "Cluster size is too large");
    if ((c->size + cluster - 1) / cluster > BLOCKMAP_TABLE_MAX / 4)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "Image size is too large for this cluster size");
    return true;
}

bool parallels_create(BlockFile *file, const BlockCreate *c, GError **err)
{
    uint64_t cluster, sectors = (c->size + PARALLELS_SECTOR - 1) / PARALLELS_SECTOR;
    uint8_t h[PARALLELS_SECTOR] = {0};
    if (!cluster_size(c, &cluster, err))
        return false;
    uint64_t entries = (c->size + cluster - 1) / cluster;
    uint64_t head = PARALLELS_HEADER_BYTES + entries * 4;
    head = (head + cluster - 1) / cluster * cluster;
    memcpy(h, "WithouFreSpacExt", 16);
    le32_put(h + PARALLELS_VERSION, 2);
    le32_put(h + PARALLELS_HEADS, HEADS);
    le32_put(h + PARALLELS_CYLINDERS, (uint32_t)(sectors / HEADS / SECTORS_A_CYLINDER));
    le32_put(h + PARALLELS_TRACKS, (uint32_t)(cluster / PARALLELS_SECTOR));
    le32_put(h + PARALLELS_ENTRIES, (uint32_t)entries);
    le64_put(h + PARALLELS_SECTORS, sectors);
    le32_put(h + PARALLELS_DATA, (uint32_t)(head / PARALLELS_SECTOR));
    int result =
        file->block_device ? file->ops->zero(file, 0, head, true) : file->ops->truncate(file, head);
    if (result == 0)
        result = block_file_write(file, 0, h, sizeof(h));
    return result == 0 ||
           lodge_fail_errno(err, -result, "%s: Failed to create Parallels image", c->path);
}
