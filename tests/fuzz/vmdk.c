/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A VMDK from anywhere. If it is a descriptor, its extents, whatever their names, all hold what
 * follows the first 512 bytes of the input.
 */
#include "image-target.h"

#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#define INPUT_MAX KIB(128)
#define HEAD      512u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const uint8_t *input;
static size_t input_size;

static int open_extent(void *opaque, const char *path, int open_flags)
{
    int fd = memfd_create("extent", MFD_CLOEXEC);
    if (fd < 0)
        return -errno;
    size_t length = input_size > HEAD ? input_size - HEAD : 0;
    if (write(fd, input + input_size - length, length) != (ssize_t)length)
        abort();
    return fd;
}

static void described(void)
{
    g_autoptr(GError) err = NULL;
    g_autoptr(GByteArray) bytes = g_byte_array_new();
    g_autofree uint8_t *buffer = g_malloc0(IMAGE_PIECE);
    g_byte_array_append(bytes, input, (guint)MIN(input_size, HEAD));
    BlockOpen options = {.path = "input", .format = "vmdk", .read_only = true, .no_backing = true,
                         .opener = open_extent};
    g_autoptr(BlockNode) node =
        block_open_file(&memory_file_new(bytes, IMAGE_FILE_LIMIT, NULL)->file, &options, &err);
    if (!node != !!err)
        abort();
    if (node)
        image_touch(node, buffer, false);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 4 || size > INPUT_MAX)
        return 0;
    input = data;
    input_size = size;
    if (!memcmp(data, "KDMV", 4) || !memcmp(data, "COWD", 4))
        image_target("vmdk", data, size);
    else
        described();
    return 0;
}
